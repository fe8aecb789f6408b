"""From pixels of more than 256 levels to 8 bits.

Radiographs of 10, 12 or 14 bits are often stored in files of 16, and read as 16 bits they would be black. What is
stored does not say how many bits are meant, so the brightest pixel does: the values are taken to be of the least depth
among :data:`DEPTHS` that holds it. That keeps black black, needs no other image, and is the full range for images that
use it (value / 257). Its flaw: of a set of 12 bits, an image whose brightest pixel stays below 1,024 is shown four
times as bright as its neighbours. Where the range is known, say so by a window, and all images are scaled alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from protomask.errors import DataError, InputError, expected

Window = tuple[float, float]

_AT_ONCE = 1 << 20  # values
DEPTHS = (8, 10, 12, 14, 16)
"""The bit depths that integers may be meant to have."""


def check_window(window: Sequence[float] | None) -> Window | None:
    """``window`` as two floats, if they are finite and the first is the lower; None stays None. Else InputError."""
    if window is None:
        return None
    wanted = "(low, high): two finite numbers, the lower first"
    try:
        low, high = (float(value) for value in window)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(expected("window", wanted, repr(window))) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(expected("window", wanted, repr(window)))
    return low, high


def to_bytes(values: np.ndarray, name: str, window: Window | None = None) -> np.ndarray:
    """Pixels [H, W, ...] as uint8, same shape, rounded.

    uint8 stays as it is. Else, with a window, low becomes 0, high 255, and what lies outside is clipped. Without one,
    integers in 0 .. 65535 are divided by the greatest value of their depth (see above), and floats lie in [0, 1].

    Args:
        values: at least one pixel, of any real dtype.
        name: of the file, for the messages.
        window: (low, high) in the units of the values.

    Raises:
        DataError: no real numbers, NaN or infinity, or values out of range without a window.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":  # numpy counts time spans among the integers
        raise DataError(expected(name, "integers or floating-point numbers", values.dtype))
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise DataError(expected(name, "finite pixels", f"{bad} NaN or infinite of {values.size}"))
    low, high = window or _range(values, name)
    shown = np.empty(values.shape, np.uint8)
    rows = max(1, _AT_ONCE * len(values) // values.size)
    for start in range(0, len(values), rows):  # in float64 the whole would take many times the image
        # Clipped before the difference, since that of two extreme values could overflow.
        inside = np.clip(values[start : start + rows].astype(np.float64), low, high)
        shown[start : start + rows] = np.round((inside - low) / (high - low) * 255)
    return shown


def _range(values: np.ndarray, name: str) -> Window:
    least, most = values.min().item(), values.max().item()
    whole = np.issubdtype(values.dtype, np.integer)
    if least < 0 or most > (65535 if whole else 1):
        wanted = "integers in 0 .. 65535" if whole else "floating-point pixels in [0, 1]"
        raise DataError(expected(name, f"{wanted}, or a window (black, white)", f"values {least} to {most}"))
    if not whole:
        return 0.0, 1.0
    return 0.0, float(next(2**bits - 1 for bits in DEPTHS if most < 2**bits))
