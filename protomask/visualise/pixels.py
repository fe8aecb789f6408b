"""Small pictures for pages: encoding, and the size that an encoded picture has."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from protomask.visualise import overlay
from protomask.visualise.palette import INK, WHITE, rgb

_QUALITY = 72


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an encoded picture, by its header."""
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def webp(image: np.ndarray, quality: int = _QUALITY) -> bytes:
    """An image [H, W, 3] uint8 RGB as a WebP file's bytes; about half of what JPEG takes at this size."""
    encoded = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return encoded.tobytes()


def tile(
    image: np.ndarray,
    map_: np.ndarray | None,
    peak: tuple[float, float] | None,
    annotation: np.ndarray | None,
    colour: str,
) -> np.ndarray:
    """A small picture of one method on one image.

    Args:
        image: [h, w, 3] uint8.
        map_: [h, w] in [0, 1], laid over it; None leaves it bare.
        peak: (x, y) pixels, marked by a disc of the method's colour.
        annotation: [h, w] bool, outlined in white.
        colour: ``#rrggbb``.

    Returns:
        [h, w, 3] uint8.
    """
    drawn = image if map_ is None else overlay.heat(image, np.clip(map_, 0, 1), alpha=0.62)
    if annotation is not None and annotation.any():
        drawn = overlay.outline(drawn, annotation, rgb(WHITE), 1, None)
    if peak is not None:
        drawn = overlay.dot(drawn, peak, rgb(INK if colour == WHITE else colour), 2)
    return drawn
