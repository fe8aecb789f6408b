"""Arrays as shards hold them: mask vectors exactly, maps to 16 bits, both small once they are compressed.

Trained vectors lie on a grid (``value_grain`` of the engine), so a byte per cell and a table of the values that occur
hold them to the last bit; half precision would not. Maps of [0, 1] are rounded to multiples of 1/65535, which moves a
value by at most 7.7e-6 and never swaps two pixels; neighbours are subtracted first, since what is smooth is then small.
"""

from __future__ import annotations

import numpy as np

LEVELS = 65535
_CODES = 256


def pack_exact(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Any array, to the last bit (but for the sign of zero): codes into a table where few values occur."""
    table, codes = np.unique(values, return_inverse=True)
    if len(table) > _CODES:
        return {f"{name}.values": values}
    return {f"{name}.table": table, f"{name}.codes": codes.astype(np.uint8).reshape(values.shape)}


def unpack_exact(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What :func:`pack_exact` packed under ``name``; KeyError or IndexError where it is not there or damaged."""
    if f"{name}.values" in arrays:
        return arrays[f"{name}.values"]
    unpacked: np.ndarray = arrays[f"{name}.table"][arrays[f"{name}.codes"]]
    return unpacked


def pack_maps(name: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Maps [N, H, W]: to 16 bits where they lie in [0, 1], else as they are."""
    if maps.size == 0 or not np.isfinite(maps).all() or maps.min() < 0 or maps.max() > 1:
        return {f"{name}.values": maps}
    levels = np.rint(maps.astype(np.float64) * LEVELS).astype(np.uint16)
    steps = _differences(levels)
    return {f"{name}.steps": np.stack([steps >> 8, steps & 255]).astype(np.uint8)}


def unpack_maps(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What :func:`pack_maps` packed: [N, H, W] float32, within 1/131070 of what it was (exact outside [0, 1])."""
    if f"{name}.values" in arrays:
        return arrays[f"{name}.values"].astype(np.float32)
    high, low = arrays[f"{name}.steps"].astype(np.uint16)
    levels = _sums((high << 8) | low)
    return (levels.astype(np.float64) / LEVELS).astype(np.float32)


def _differences(levels: np.ndarray) -> np.ndarray:
    """[N, H, W] uint16 -> differences along both axes, modulo 2^16, small ones of either sign as small numbers."""
    across = levels.copy()
    across[:, :, 1:] -= levels[:, :, :-1]
    down = across.copy()
    down[:, 1:] -= across[:, :-1]
    signed = down.view(np.int16)
    return ((signed << 1) ^ (signed >> 15)).view(np.uint16)


def _sums(folded: np.ndarray) -> np.ndarray:
    """Undoes :func:`_differences`."""
    down = (folded >> 1) ^ (0 - (folded & 1))
    across = np.cumsum(down, axis=1, dtype=np.uint16)
    return np.cumsum(across, axis=2, dtype=np.uint16)
