"""Maps that another program made, read from a folder.

For an image of id ``IMAGE`` and prototype 3 the folder holds ``IMAGE--3.npy`` ([h, w], any real dtype) or
``IMAGE--3.png`` (grey, 8 or 16 bit), or one ``IMAGE.npz`` for all its prototypes, with an array [h, w] under the name
``3``. IMAGE is the id itself where it is a plain file name (letters, digits, ``.``, ``_``, ``-`` and spaces), else, and
also then if you like, :func:`protomask.store.safe_name` of it. Maps may have any resolution: they show the image as the
model sees it (cut and resized), and are resized bilinearly. Values are >= 0, higher where the method sees the
prototype; each map is scaled to [0, 1] by its own minimum and maximum.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.errors import DataError, InputError, expected
from protomask.files import safe_name
from protomask.localisers.base import LOCALISERS, Maps, Request, register, scaled
from protomask.opening import open_npz

_DAMAGED_ZIP = (RuntimeError, zipfile.BadZipFile, zlib.error)
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")


@dataclass(frozen=True)
class Stored:
    """The maps in a folder, as a method.

    Attributes:
        folder: where they lie.
    """

    folder: str
    passes = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        if not Path(self.folder).is_dir():
            raise InputError(expected("maps", "a folder of maps", f"{self.folder!r}, which is none"))

    @property
    def name(self) -> str:
        """The folder's own name."""
        return Path(self.folder).resolve().name or "maps"

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1].

        Raises:
            InputError: the request names no images.
            DataError: a map is missing, or holds something else than finite numbers >= 0; the file is named.
        """
        if request.image_ids is None:
            raise InputError(expected("image_ids", "a name for each image, by which stored maps are found", None))
        names = [(request.image_ids[image], prototype) for image, prototype in request.targets]
        maps = [_resized(self.read(name, prototype), request.size) for name, prototype in names]
        return Maps(scaled(torch.stack(maps).to(request.images)))

    def read(self, image_id: str, prototype: int) -> np.ndarray:
        """[h, w] float64, finite, >= 0: the map of a pair as it was stored.

        Raises:
            DataError: it is missing or no map.
        """
        stems = _stems(image_id)
        folder = Path(self.folder)
        for stem in stems:
            for suffix, read in ((".npy", _npy), (".png", _png)):
                path = folder / f"{stem}--{prototype}{suffix}"
                if path.is_file():
                    return _checked(path, "", read(path))
            path = folder / f"{stem}.npz"
            if path.is_file():
                return _checked(path, f", array {prototype!s}", _npz(path, prototype))
        wanted = " or ".join(f"{stem}--{prototype}.npy, {stem}--{prototype}.png, {stem}.npz" for stem in stems)
        raise DataError(expected(f"map of image {image_id!r}, prototype {prototype}", wanted, f"none in {folder}"))


def register_stored(folder: str | Path) -> str:
    """Makes a folder of maps a method, under the folder's own name (``maps-NAME`` where a method has that); its name.

    Raises:
        InputError: there is no such folder, or another one is registered under both names.
    """
    made = Stored(str(folder))
    where = Path(made.folder).resolve()
    for name in (made.name, f"maps-{made.name}"):
        known = LOCALISERS.get(name)
        if known is None:
            register(name, f"Maps that another program made, in {made.folder}.")(_Folder(str(where)))
            return name
        if isinstance(known.make, _Folder) and known.make.folder == str(where):
            return name
    raise InputError(expected("maps", "folders of different names", repr(made.name)))


@dataclass(frozen=True)
class _Folder:
    """Makes the localiser of a folder, as its recorded settings do."""

    folder: str

    def __call__(self, folder: str = "") -> Stored:
        return Stored(folder or self.folder)


def _stems(image_id: str) -> list[str]:
    # Never the id itself where it could lead out of the folder.
    return [*([image_id] if _PLAIN.fullmatch(image_id) else []), safe_name(image_id)]


def _npy(path: Path) -> np.ndarray:
    try:
        # Opened here, since numpy leaves its own handle open on a damaged file.
        with path.open("rb") as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, EOFError, MemoryError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(expected(str(path), "an array [h, w] as numpy.save writes it", _spell(error))) from error


def _npz(path: Path, prototype: int) -> np.ndarray:
    try:
        with open_npz(path, str(prototype)) as stored:
            if str(prototype) not in stored.files:
                came = ", ".join(sorted(stored.files)[:8]) or "none"
                raise DataError(expected(str(path), f"an array named {prototype!s}", came))
            return np.asarray(stored[str(prototype)])
    except (OSError, EOFError, MemoryError, ValueError, AttributeError, TypeError, *_DAMAGED_ZIP) as error:
        if isinstance(error, DataError):
            raise
        wanted = "arrays [h, w] as numpy.savez writes them"
        raise DataError(expected(str(path), wanted, _spell(error))) from error


def _png(path: Path) -> np.ndarray:
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise DataError(expected(str(path), "a PNG image", _spell(error))) from error
    if pixels is None:
        raise DataError(expected(str(path), "a PNG image", "something else"))
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        return np.asarray(pixels[:, :, 0])  # grey, saved as colour
    return np.asarray(pixels)


def _checked(path: Path, part: str, values: np.ndarray) -> np.ndarray:
    name = f"{path}{part}"
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(expected(name, "a map [h, w]", list(values.shape)))
    if values.dtype.kind not in "buif":
        raise DataError(expected(name, "real numbers", values.dtype))
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(expected(name, "finite values", f"{int((~np.isfinite(numbers)).sum())} NaN or infinite"))
    if (numbers < 0).any():
        raise DataError(expected(name, "values of at least 0", f"a lowest of {numbers.min():.4g}"))
    return numbers


def _resized(values: np.ndarray, size: tuple[int, int]) -> Tensor:
    maps = torch.from_numpy(values)[None, None]
    fine: Tensor = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return fine[0, 0]


def _spell(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
