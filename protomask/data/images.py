"""Reading image files: upright, RGB, complete, or an error that names the file.

OpenCV fills the missing part of a truncated JPEG with grey and says nothing, so Pillow decodes here. What has more
levels than 256, X-rays for the most part, is brought to 8 bits by :mod:`protomask.data.levels`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from protomask.data.levels import Window, check_window, to_bytes
from protomask.errors import DataError, ResourceError, expected
from protomask.opening import check_regular, is_file, is_folder

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode here, whatever a file is called: pixels only. It hands PostScript to an interpreter."""

MOST_PIXELS = 2 * 89_478_485  # where Pillow refuses to decode a file, unless somebody took its limit away
MOST_PER_BYTE = 10_000  # pixels; deflate packs 8 x 1032 one-bit pixels into a byte, the other formats fewer
_UNBOUNDED = ("WEBP", "JPEG2000")  # a plain picture of any size takes them a few bytes
MOST_ASPECT = 1000  # of an array: a list of vectors is no image

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WANTED = "a complete, readable image"
_strict_lock = threading.Lock()


def read_image(path: str | Path, window: Window | None = None) -> np.ndarray:
    """The image in a file, upright (EXIF orientation applied): [H, W, 3] uint8 RGB.

    Grey becomes three equal channels, an alpha channel is dropped (not blended), and of several frames the first is
    read. Grey with more than 8 bits becomes 8 bits by :func:`protomask.data.levels.to_bytes`: the full range of the
    bits that the image uses, or the window. (Of 16-bit colour Pillow keeps the high byte.) An array in a ``.npy`` file
    is [H, W], [H, W, 1] or [H, W, 3]: integers like 16-bit grey, uint8 as it is, floats in [0, 1]; pickled objects
    are not loaded.

    Args:
        path: of the file.
        window: (low, high), the values that become black and white; of grey with more than 8 bits and of arrays other
            than uint8. Where None, see :func:`protomask.data.levels.to_bytes`.

    Raises:
        InputError: a window that is not two finite numbers, the lower first.
        DataError: the file is missing, empty, truncated, corrupt, no image, or has floating-point or 32-bit pixels; an
            array of another shape or dtype, with NaN or infinity, or out of range without a window.
        ResourceError: too little memory for an image of an acceptable size.
    """
    path = Path(path)
    window = check_window(window)
    if path.suffix.lower() == ".npy":
        return _read_array(path, window)
    try:
        size = check_regular(path, _WANTED)
        # Not by its name: then Pillow maps raw TIFFs, and scrambles those that lie on their side.
        with _no_truncated_images(), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            _check_pixels(path, image, size)
            image.load()
            return _rgb(_upright(image), path, window)
    except DataError:
        raise
    except MemoryError as error:
        raise ResourceError(expected(str(path), "memory to decode it in", "too little")) from error
    except UnidentifiedImageError as error:
        came = f"{size} bytes in none of the formats {', '.join(FORMATS)}" if size else "an empty file"
        raise DataError(expected(str(path), _WANTED, came)) from error
    except Exception as error:  # damaged files make Pillow's decoders raise almost any type
        raise DataError(expected(str(path), _WANTED, f"{type(error).__name__}: {error}")) from error


def list_images(path: str | Path) -> list[Path]:
    """The image files at ``path``: itself where it is a file, else those in the folder and below, sorted by path.

    In a folder, files count by suffix (:data:`IMAGE_SUFFIXES`, any case); names with a leading dot are left out. A file
    that is named itself is returned whatever its suffix. Whether a file can be read shows when it is.

    Raises:
        DataError: nothing is there, the folder cannot be listed, or it holds no image.
    """
    path = Path(path)
    if is_file(path):
        return [path]
    if not is_folder(path):
        raise DataError(expected(str(path), "an image file or a folder of images", "no such file or folder"))
    found = sorted(_walk(path), key=lambda p: p.relative_to(path).as_posix())
    if not found:
        raise DataError(expected(str(path), f"at least one image ({', '.join(IMAGE_SUFFIXES)})", "none"))
    return found


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is an image and it is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _walk(top: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(expected(str(top), "a folder that can be listed", error)) from error

    seen: set[Path] = set()
    for folder, names, files in os.walk(top, onerror=refuse, followlinks=True):
        here = Path(folder).resolve()
        if here in seen:  # a link back up would be walked for ever
            names.clear()
            continue
        seen.add(here)
        names[:] = sorted(n for n in names if not n.startswith("."))
        yield from (file for file in (Path(folder) / name for name in files) if is_image(file))


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    # Pillow's switch is global, and training scripts like to set it.
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _strict_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which were complete
        orientation = 1
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_pixels(path: Path, image: Image.Image, size: int) -> None:
    """Refuse what a file of ``size`` bytes declares, before memory is allocated for it."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(expected(str(path), f"at most {MOST_PIXELS} pixels", f"{width} x {height} declared"))
    if image.format not in _UNBOUNDED and width * height > MOST_PER_BYTE * size:
        came = f"{width} x {height} declared by a file of {size} bytes"
        raise DataError(expected(str(path), f"at most {MOST_PER_BYTE} pixels for each byte", came))


def _rgb(image: Image.Image, path: Path, window: Window | None) -> np.ndarray:
    if image.mode == "F":
        raise DataError(expected(str(path), "an image of 8 or 16 bits", "floating-point pixels"))
    if image.mode.startswith("I"):
        return _three_channels(_from_16_bits(np.asarray(image), path, window))
    image.info.pop("transparency", None)  # Pillow would warn that it cannot keep a palette's
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_16_bits(grey: np.ndarray, path: Path, window: Window | None) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(expected(str(path), "an image of 8 or 16 bits", f"values {grey.min()} to {grey.max()}"))
    return to_bytes(grey, str(path), window)


def _read_array(path: Path, window: Window | None) -> np.ndarray:
    check_regular(path, _WANTED)
    try:
        # Mapped, so that a damaged header cannot ask for more memory than the file has; pickles cannot be mapped.
        stored = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers make numpy's parser raise almost any type
        raise DataError(expected(str(path), "a complete .npy array of numbers", f"{error}" or "no array")) from error
    shape = stored.shape
    if stored.ndim not in (2, 3) or 0 in shape or (stored.ndim == 3 and shape[2] not in (1, 3)):
        raise DataError(expected(str(path), "an array [H, W], [H, W, 1] or [H, W, 3]", list(shape)))
    if shape[0] * shape[1] > MOST_PIXELS or max(shape[:2]) > MOST_ASPECT * min(shape[:2]):
        wanted = f"at most {MOST_PIXELS} pixels, no side {MOST_ASPECT} times as long as the other"
        raise DataError(expected(str(path), wanted, list(shape)))
    return _three_channels(to_bytes(stored, str(path), window))


def _three_channels(image: np.ndarray) -> np.ndarray:
    grey = image[..., None] if image.ndim == 2 else image
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey
