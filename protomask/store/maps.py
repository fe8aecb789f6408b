"""Maps as ``.npz`` of plain arrays, mask vectors included. Reading runs no code."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_choice
from protomask.errors import DataError, InputError, expected
from protomask.files import write_bytes
from protomask.records import Localisation, Targets
from protomask.store._json import FORMAT_VERSION
from protomask.store.regions import check_rows

DTYPES = ("float32", "float16")
_ROWS = ("maps", "boxes", "peaks", "activations_before", "activations_after", "scores", "located")


def write_maps(
    path: str | Path, localisation: Localisation, image_ids: Sequence[str], *, dtype: str = "float32"
) -> None:
    """A whole Localisation as a compressed ``.npz`` of plain arrays, mask vectors included.

    ``dtype`` is that of the maps: float16 halves the file and moves values by up to 0.00025, which can change the
    ranking of nearly equal pixels. All else is stored as float32 or int64.

    Args:
        path: of the file.
        localisation: what to store; its settings must be JSON values.
        image_ids: by ``targets.images``.
        dtype: one of :data:`DTYPES`.

    Raises:
        InputError: too few image_ids, or settings that are no JSON values.
        ResourceError: the file cannot be written.
    """
    check_choice("dtype", dtype, DTYPES)
    check_rows("image_ids", len(image_ids), localisation)
    arrays = {name: _numpy(getattr(localisation, name)) for name in _ROWS}
    arrays["maps"] = arrays["maps"].astype(dtype)
    for scale, vectors in localisation.mask_vectors.items():
        arrays[f"vectors_{scale}"] = _numpy(vectors)
    arrays |= {f"target_{n}": _numpy(getattr(localisation.targets, n)) for n in ("images", "prototypes")}
    try:
        settings = json.dumps(dict(localisation.settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(expected("settings", "plain JSON values", error)) from error
    about = {
        "version": FORMAT_VERSION,
        "method": localisation.method,
        "masks": localisation.masks,
        "fill": localisation.fill,
        "reasons": localisation.reasons,
        "image_ids": list(image_ids),
        "settings": json.loads(settings),
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_maps(path: str | Path) -> tuple[Localisation, tuple[str, ...]]:
    """What :func:`write_maps` wrote: the Localisation (maps float32; lists in settings as tuples), and the image_ids.

    Raises:
        DataError: no such file, a truncated one, or not of that form.
    """
    try:
        # Opened here, since numpy leaves its own handle open on a damaged archive.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        rows = {name: torch.from_numpy(arrays[name]) for name in _ROWS}
        rows["maps"] = rows["maps"].float()
        vectors = {k.removeprefix("vectors_"): v for k, v in arrays.items() if k.startswith("vectors_")}
        localisation = Localisation(
            method=about["method"],
            targets=Targets(*(torch.from_numpy(arrays[f"target_{n}"]) for n in ("images", "prototypes"))),
            **rows,
            reasons=tuple(about["reasons"]),
            masks=about["masks"],
            mask_vectors={int(scale): torch.from_numpy(v) for scale, v in vectors.items()},
            fill=about["fill"],
            settings={k: _tupled(v) for k, v in about["settings"].items()},
        )
        return localisation, tuple(about["image_ids"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        came = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise DataError(expected(str(path), "maps as write_maps writes them", came)) from error


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _tupled(value: object) -> object:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
