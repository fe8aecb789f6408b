"""``examples/``: the maps of every pair under every method, small enough to keep, and thumbnails of the images.

A chunk of pairs is one ``.npz`` file of plain arrays, written as soon as the chunk has been scored; a thumbnail is one
JPEG file per sample. Reading runs no code.

Axes of a chunk: M methods, n pairs, h x w pixels, the longer at most :data:`SIDE`.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from protomask.errors import DataError, expected
from protomask.files import write_bytes
from protomask.opening import open_npz
from protomask.records import Localisation

EXAMPLES = "examples"
INDEX = "index.json"
SIDE = 112  # pixels: as large as the report shows them
_QUALITY = 88
_TRACE = 1e-4  # share of a thumbnail's pixel, above the rounding of those that only touch it


@dataclass(frozen=True, eq=False)
class Example:
    """One pair under every method, small.

    Attributes:
        image: [h, w, 3] uint8 RGB.
        maps: method -> [h, w] float32 in [0, 1].
        peaks: method -> (x, y) in pixels of the thumbnail; None where the method located nothing.
        annotation: [h, w] bool; None where nothing is annotated.
        activation: of the prototype on the whole image.
    """

    image: np.ndarray
    maps: Mapping[str, np.ndarray]
    peaks: Mapping[str, tuple[float, float] | None]
    annotation: np.ndarray | None
    activation: float


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) scaled down to at most :data:`SIDE` pixels; never up."""
    factor = min(1.0, SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shrunk(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] or [H, W, 3] -> the same at (h, w), every pixel the mean of those it stands for."""
    if array.shape[:2] == size:
        return array
    return cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def write_thumbnail(path: Path, image: np.ndarray) -> None:
    """An image [H, W, 3] uint8 RGB as a JPEG file of at most :data:`SIDE` pixels a side."""
    small = np.ascontiguousarray(shrunk(image, small_size(image.shape[:2]))[..., ::-1])
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    write_bytes(path, encoded.tobytes())


def write_chunk(
    path: Path, found: Mapping[str, Localisation], annotations: np.ndarray | None, samples: Sequence[int]
) -> None:
    """The maps of a chunk of n pairs.

    Args:
        path: of the ``.npz`` file.
        found: method -> localisation, n rows each.
        annotations: [n, H, W] bool, None where nothing is annotated.
        samples: n indices in the data set: the names of the thumbnails.
    """
    first = next(iter(found.values()))
    full = (int(first.maps.shape[1]), int(first.maps.shape[2]))
    size = small_size(full)
    scale = np.array([size[1] / full[1], size[0] / full[0]])
    rows = range(len(first.targets))
    maps = np.stack(
        [np.stack([_compact(f.maps[row].cpu().float().numpy(), size) for row in rows]) for f in found.values()]
    )
    peaks = np.stack([(f.peaks.cpu().numpy() + 0.5) * scale - 0.5 for f in found.values()])
    about = {"methods": list(found), "samples": [int(index) for index in samples], "scale": scale.tolist()}
    arrays = {
        "maps": maps,
        "peaks": peaks.astype(np.float32),
        "located": np.stack([f.located.cpu().numpy() for f in found.values()]),
        "activations": first.activations_before.detach().cpu().double().numpy(),
        "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    }
    if annotations is not None:
        # Every pixel that holds some of it: what is thin would vanish by halves.
        arrays["annotations"] = np.stack([shrunk(a.astype(np.float32), size) > _TRACE for a in annotations])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_chunk(path: Path) -> list[Example]:
    """The pairs of a chunk in their order, with the thumbnails beside the file.

    Raises:
        DataError: no such file, or not of that form.
    """
    try:
        with open_npz(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays["about"].tobytes())
        return [_example(path.parent, arrays, about["methods"], row, int(i)) for row, i in enumerate(about["samples"])]
    except (OSError, EOFError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        came = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise DataError(expected(str(path), "maps as protomask evaluate writes them", came)) from error


def thumbnail_name(sample: int) -> str:
    """The file name of a sample's thumbnail."""
    return f"{sample:06d}.jpg"


def _example(folder: Path, arrays: Mapping[str, np.ndarray], methods: Sequence[str], row: int, sample: int) -> Example:
    image = cv2.imdecode(np.fromfile(folder / thumbnail_name(sample), dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != arrays["maps"].shape[2:]:
        raise ValueError(f"{thumbnail_name(sample)} is no thumbnail of that size")
    annotation = arrays["annotations"][row] if "annotations" in arrays else None
    return Example(
        image=np.ascontiguousarray(image[..., ::-1]),
        maps={m: arrays["maps"][k, row].astype(np.float32) / 255 for k, m in enumerate(methods)},
        peaks={
            m: (float(arrays["peaks"][k, row, 0]), float(arrays["peaks"][k, row, 1]))
            if arrays["located"][k, row]
            else None
            for k, m in enumerate(methods)
        },
        annotation=annotation if annotation is not None and annotation.any() else None,
        activation=float(arrays["activations"][row]),
    )


def _compact(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.rint(np.clip(shrunk(map_, size), 0, 1) * 255).astype(np.uint8)
