"""Maps as ``.npz`` of plain arrays, mask vectors included. Reading runs no code."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_choice
from protomask.errors import DataError, InputError, expected
from protomask.files import write_bytes
from protomask.opening import open_npz
from protomask.records import Localisation, Targets
from protomask.store._json import FORMAT_VERSION
from protomask.store.regions import check_rows

DTYPES = ("float32", "float16")
_ROWS = ("boxes", "peaks", "activations_before", "activations_after", "scores", "located")


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
    arrays = {"maps": as_numpy(localisation.maps).astype(dtype), **row_arrays(localisation)}
    for scale, vectors in localisation.mask_vectors.items():
        arrays[f"vectors_{scale}"] = as_numpy(vectors)
    about = {"version": FORMAT_VERSION, **described(localisation), "image_ids": list(image_ids)}
    write_bytes(path, npz_bytes(arrays, about))


def read_maps(path: str | Path) -> tuple[Localisation, tuple[str, ...]]:
    """What :func:`write_maps` wrote: the Localisation (maps float32; lists in settings as tuples), and the image_ids.

    Raises:
        DataError: no such file, a truncated one, or not of that form.
    """
    try:
        arrays, about = read_npz(path)
        check_version(about)
        vectors = {int(k.removeprefix("vectors_")): v for k, v in arrays.items() if k.startswith("vectors_")}
        return rebuilt(arrays, about, arrays["maps"], vectors), tuple(about["image_ids"])
    except DAMAGED as error:
        raise damaged(path, "maps as write_maps writes them", error) from error


def check_version(about: dict[str, Any]) -> None:
    """ValueError unless a file says that it is of our version of the format."""
    if about["version"] != FORMAT_VERSION:
        raise ValueError(f"version {about['version']!r} of the format; this is {FORMAT_VERSION}")


DAMAGED = (
    *(OSError, EOFError, MemoryError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    *(RuntimeError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a damaged ``.npz`` may raise."""


def damaged(path: str | Path, wanted: str, error: Exception) -> DataError:
    """The DataError for a file that cannot be read."""
    came = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
    return DataError(expected(str(path), wanted, came))


def npz_bytes(arrays: dict[str, np.ndarray], about: dict[str, object]) -> bytes:
    """Arrays and JSON values as one compressed ``.npz``; the same content gives the same bytes."""
    content = np.frombuffer(json.dumps(about, allow_nan=False).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, about=content)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_npz(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`npz_bytes` made; raises one of :data:`DAMAGED`."""
    with open_npz(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return arrays, json.loads(arrays.pop("about").tobytes())


def row_arrays(localisation: Localisation) -> dict[str, np.ndarray]:
    """What a Localisation says of each row, but for its maps and vectors."""
    arrays = {name: as_numpy(getattr(localisation, name)) for name in _ROWS}
    return arrays | {f"target_{n}": as_numpy(getattr(localisation.targets, n)) for n in ("images", "prototypes")}


def described(localisation: Localisation) -> dict[str, object]:
    """What a Localisation says of all rows, as JSON values.

    Raises:
        InputError: settings that are no JSON values.
    """
    try:
        settings = json.loads(json.dumps(dict(localisation.settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(expected("settings", "plain JSON values", error)) from error
    return {
        "method": localisation.method,
        "masks": localisation.masks,
        "fill": localisation.fill,
        "reasons": list(localisation.reasons),
        "settings": settings,
    }


def rebuilt(
    arrays: dict[str, np.ndarray], about: dict[str, Any], maps: np.ndarray, vectors: dict[int, np.ndarray]
) -> Localisation:
    """The Localisation of :func:`row_arrays` and :func:`described`, with its maps and vectors."""
    return Localisation(
        method=about["method"],
        targets=Targets(*(torch.from_numpy(arrays[f"target_{n}"]) for n in ("images", "prototypes"))),
        maps=torch.from_numpy(maps).float(),
        **{name: torch.from_numpy(arrays[name]) for name in _ROWS},
        reasons=tuple(about["reasons"]),
        masks=about["masks"],
        mask_vectors={scale: torch.from_numpy(v) for scale, v in vectors.items()},
        fill=about["fill"],
        settings={k: _tupled(v) for k, v in about["settings"].items()},
    )


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor on the CPU, half precision as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _tupled(value: object) -> object:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
