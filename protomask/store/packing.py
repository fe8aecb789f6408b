"""Arrays as shards hold them: mask vectors exactly, maps to 16 bits, both small once they are compressed.

Trained vectors lie on a grid (``value_grain`` of the engine), so a byte per cell and a table of the values that occur
hold them to the last bit; half precision would not. Maps of [0, 1] are rounded to multiples of 1/65535, which moves a
value by at most 7.7e-6 and never swaps two pixels; neighbours are subtracted first, since what is smooth is then small.
Rounding makes pixels equal that were not, most of those that a map ranks far below its maximum. Where maps are scored,
that costs: the rank of each pixel is then stored beside rounded values (:func:`pack_ranked`), at two to four times the
size.
"""

from __future__ import annotations

from typing import Any

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
    if not _in_range(maps):
        return {f"{name}.values": maps}
    levels = np.rint(maps.astype(np.float64) * LEVELS).astype(np.uint16)
    steps = _differences(levels)
    return {f"{name}.steps": _bytes(steps, 2)}


def unpack_maps(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What :func:`pack_maps` packed: [N, H, W] float32, within 1/131070 of what it was (exact outside [0, 1])."""
    if f"{name}.values" in arrays:
        return arrays[f"{name}.values"].astype(np.float32)
    levels = _sums(_from_bytes(arrays[f"{name}.steps"], np.uint16))
    return (levels.astype(np.float64) / LEVELS).astype(np.float32)


def pack_ranked(name: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Maps [N, H, W] float32 with every pixel's rank and its value to 16 bits where they lie in [0, 1], else as they
    are."""
    if not _in_range(maps):
        return {f"{name}.values": maps}
    tables, ranks = [], np.empty(maps.shape, np.uint32)
    for row, one in enumerate(maps.astype(np.float32)):
        values, places = np.unique(one, return_inverse=True)
        ranks[row] = places.reshape(one.shape)
        tables.append(np.floor(values.astype(np.float64) * LEVELS).astype(np.uint16))
    steps = _differences(ranks)
    return {
        f"{name}.ranks": _bytes(steps, 4 if steps.max() >> 16 else 2),
        f"{name}.levels": np.concatenate([np.diff(table, prepend=table.dtype.type(0)) for table in tables]),
        f"{name}.counts": np.array([len(table) for table in tables], dtype=np.int64),
    }


def unpack_ranked(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What :func:`pack_ranked` packed: [N, H, W] float32, pixels equal and in order as they were, values within
    1/65535."""
    if f"{name}.values" in arrays:
        return arrays[f"{name}.values"].astype(np.float32)
    ranks = _sums(_from_bytes(arrays[f"{name}.ranks"], np.uint32))
    ends = np.cumsum(arrays[f"{name}.counts"])
    tables = np.split(arrays[f"{name}.levels"], ends[:-1])
    rows = [_ascending(np.cumsum(table, dtype=np.uint16))[rank] for table, rank in zip(tables, ranks, strict=True)]
    return np.stack(rows)


def _in_range(maps: np.ndarray) -> bool:
    return bool(maps.size and np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1)


def _bytes(steps: np.ndarray, count: int) -> np.ndarray:
    """[N, H, W] unsigned -> [count, N, H, W] uint8, the highest byte first: planes compress better than numbers."""
    return np.stack([steps >> (8 * k) & 255 for k in reversed(range(count))]).astype(np.uint8)


def _from_bytes(planes: np.ndarray, kind: type[np.unsignedinteger[Any]]) -> np.ndarray:
    steps = np.zeros(planes.shape[1:], kind)
    for plane in planes.astype(kind):
        steps = steps << 8 | plane
    return steps


def _ascending(levels: np.ndarray) -> np.ndarray:
    """[K] levels, none lower than the one before -> [K] float32, each within its level and above the one before.

    From the lowest number of a level on in the smallest steps there are: what was distinct there had at least these.
    Numbers too small for full precision are left out, since some devices take them for 0.
    """
    low = (levels / LEVELS).astype(np.float32)
    low = np.where(low.astype(np.float64) * LEVELS < levels, np.nextafter(low, np.float32(1)), low)
    first = np.flatnonzero(np.diff(levels, prepend=levels[:1] ^ 1))
    within = np.arange(len(levels)) - np.repeat(first, np.diff(first, append=len(levels)))
    bits = low.view(np.int32) + within.astype(np.int32)
    tiny = np.finfo(np.float32).tiny.view(np.int32)
    found = np.where((levels == 0) & (within > 0), tiny + within, bits).astype(np.int32)
    return found.view(np.float32)


def _differences(levels: np.ndarray) -> np.ndarray:
    """[N, H, W] unsigned -> differences along both axes, modulo their range, small ones of either sign as small
    numbers."""
    across = levels.copy()
    across[:, :, 1:] -= levels[:, :, :-1]
    down = across.copy()
    down[:, 1:] -= across[:, :-1]
    bits = levels.dtype.itemsize * 8
    signed = down.view(np.dtype(f"i{levels.dtype.itemsize}"))
    return ((signed << 1) ^ (signed >> (bits - 1))).view(levels.dtype)


def _sums(folded: np.ndarray) -> np.ndarray:
    """Undoes :func:`_differences`."""
    down = (folded >> 1) ^ (0 - (folded & 1))
    across = np.cumsum(down, axis=1, dtype=folded.dtype)
    return np.cumsum(across, axis=2, dtype=folded.dtype)
