"""Taking a part out of an image by in-painting a disc around it."""

from __future__ import annotations

import cv2
import numpy as np

from protomask.checks import check_array, check_number
from protomask.errors import InputError, expected

PART_RADIUS = 0.05
"""Radius of the disc that stands for an annotated point, as a share of the diagonal of the object's box."""
REACH = 3  # px around a missing pixel that Telea's method looks at


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """The pixels whose centre lies within ``radius`` of (x, y): [H, W] bool for ``size`` = (H, W).

    (x, y) and ``radius`` are in pixels; pixel (0, 0) has its centre at x = y = 0.
    """
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return np.asarray(inside)


def inpaint_disc(image: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    """A copy of ``image`` [H, W, 3] uint8 with the :func:`disc` around (x, y) filled from its surroundings.

    Telea's fast marching method (J. Graphics Tools 9(1), 2004) as in OpenCV. What the disc covers has no influence on
    what it becomes, and a disc that covers no pixel changes nothing.

    Raises:
        InputError: another image, a radius not above zero, NaN or infinite coordinates, or a disc over the whole image.
    """
    check_array("image", image, ("H", "W", 3), dtype=np.uint8)
    check_number("radius", radius, 0, open_low=True)
    for name, value in (("x", x), ("y", y)):
        if not np.isfinite(value):
            raise InputError(expected(name, "a finite number", value))
    size = (image.shape[0], image.shape[1])
    missing = disc(size, x, y, radius)
    if missing.all():
        raise InputError(expected("radius", "a disc that leaves some of the image", radius))
    if not missing.any():
        return np.array(image)
    # OpenCV's gradients look at missing pixels too: a neutral colour there keeps what was hidden out of the result.
    neutral = image.copy()
    neutral[missing] = image[disc(size, x, y, radius + REACH) & ~missing].mean(0).round()
    return np.asarray(cv2.inpaint(neutral, missing.astype(np.uint8), REACH, cv2.INPAINT_TELEA))
