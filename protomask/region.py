"""From a map to a region: rank the pixels, cut at a percentile or at the mask's own area, box it, find its peak.

Axes: N maps of H x W pixels. Everything depends on the *ranking* of the pixels alone. Ties (clamped masks have
plateaus) are broken by a blurred copy of the map, so that a plateau is entered from its middle and leftover pixels lie
beside the region, and then by a seeded shuffle, so that a constant map favours no place.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from protomask.blur import gaussian_blur
from protomask.checks import check_choice, check_count, check_number, check_tensor
from protomask.errors import InputError, expected

REGIONS = ("percentile", "own-area")


def rank(maps: Tensor, seed: int = 0) -> Tensor:
    """Pixel indices from the highest to the lowest: [N, H, W] -> [N, H * W] int64 (row-major indices).

    Ties are broken by a copy of the map blurred with a Gaussian of sigma = 5 % of the shorter side, then by one seeded
    shuffle, the same for every map, so that no member of the batch influences another.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    n, height, width = maps.shape
    shuffle = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    flat, blurred = (m.reshape(n, -1)[:, shuffle] for m in (maps, _blurred(maps)))
    order = torch.argsort(blurred, dim=1, descending=True, stable=True)
    order = order.gather(1, torch.argsort(flat.gather(1, order), dim=1, descending=True, stable=True))
    return shuffle[order]


def order_of(maps: Tensor, order: Tensor | None, seed: int = 0) -> Tensor:
    """The ranking [N, H * W] of maps [N, H, W]: the one given, if it fits, else made here."""
    if order is None:
        return rank(maps, seed)
    return check_order(order, len(maps), maps.shape[1] * maps.shape[2])


def check_order(order: Tensor, n: int, size: int) -> Tensor:
    """``order`` as it came, if it is an int64 tensor [n, size]; else InputError."""
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.shape != (n, size):
        came = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise InputError(expected("order", f"an int64 tensor [{n}, {size}], as rank() gives", came))
    return order


def top_pixels(maps: Tensor, counts: Tensor | int, seed: int = 0, order: Tensor | None = None) -> Tensor:
    """The ``counts`` highest pixels of each map: [N, H, W], [N] int64 or one int -> [N, H, W] bool.

    Here and below ``order`` [N, H * W] int64 is ``rank(maps, seed)`` where it is already known.
    """
    order = order_of(maps, order, seed)
    counts = torch.as_tensor(counts, device=maps.device).expand(len(maps))
    chosen = torch.arange(order.shape[1], device=maps.device) < counts[:, None]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, chosen).view(maps.shape)


def percentile_region(maps: Tensor, percentile: float = 95, seed: int = 0, order: Tensor | None = None) -> Tensor:
    """The round((1 - percentile / 100) * H * W) highest pixels, at least one: [N, H, W] -> [N, H, W] bool.

    ProtoPNet keeps the pixels at or above ``numpy.percentile(map, 95)``. Without ties the two agree within one pixel;
    on a map that is zero in more than 95 % of its pixels ProtoPNet keeps the whole image, and this does not.
    """
    check_number("percentile", percentile, 0, 100)
    size = maps.shape[-2] * maps.shape[-1]
    return top_pixels(maps, max(1, round((1 - percentile / 100) * size)), seed, order)


def own_area_region(masks: Tensor, seed: int = 0, order: Tensor | None = None) -> Tensor:
    """The round(sum(mask)) highest pixels of each mask in [0, 1], at least one: [N, H, W] -> [N, H, W] bool."""
    return top_pixels(masks, masks.sum((1, 2)).round().long().clamp(min=1), seed, order)


def rule_of(kind: str, masks: bool) -> str:
    """What maps are cut by where ``kind`` is asked for: only a mask's sum is an area, others go by the percentile."""
    return kind if masks else "percentile"


def regions_of(maps: Tensor, kind: str = "percentile", percentile: float = 95, order: Tensor | None = None) -> Tensor:
    """Regions [N, H, W] bool of maps [N, H, W], by one of :data:`REGIONS`."""
    check_choice("region", kind, REGIONS)
    if kind == "percentile":
        return percentile_region(maps, percentile, order=order)
    return own_area_region(maps, order=order)


def boxes_of(regions: Tensor) -> Tensor:
    """The tight box around each region: [N, H, W] bool -> [N, 4] int64 xyxy, exclusive end; zeros where it is empty."""

    def extent(line: Tensor) -> tuple[Tensor, Tensor]:
        size = line.shape[1]
        first = line.to(torch.uint8).argmax(1)
        last = size - line.flip(1).to(torch.uint8).argmax(1)
        filled = line.any(1)
        return first * filled, last * filled

    x0, x1 = extent(regions.any(1))
    y0, y1 = extent(regions.any(2))
    return torch.stack([x0, y0, x1, y1], dim=1)


def peaks(maps: Tensor, seed: int = 0, order: Tensor | None = None) -> Tensor:
    """(x, y) of the highest pixel of each map, ties broken as in :func:`rank`: [N, H, W] -> [N, 2] int64."""
    first = order_of(maps, order, seed)[:, 0]
    return torch.stack([first % maps.shape[2], first // maps.shape[2]], dim=1)


def is_constant(maps: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Whether a map says nothing, its range at most ``tolerance``: [N, H, W] -> [N] bool."""
    flat = maps.flatten(1)
    return (flat.amax(1) - flat.amin(1)) <= tolerance


@dataclass(frozen=True)
class Component:
    """One connected component of a region.

    Attributes:
        mask: [H, W] bool.
        box: (x0, y0, x1, y1) pixels, exclusive end.
        area: pixels.
        centroid: (x, y) pixels.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]


def components(region: Tensor | np.ndarray, minimum_area: int = 1) -> tuple[Component, ...]:
    """The 8-connected components of a region [H, W] bool, largest first, but those under ``minimum_area`` pixels."""
    check_count("minimum_area", minimum_area)
    pixels = np.asarray(region).astype(np.uint8)
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    found = []
    for k in range(1, count):  # label 0 is the background
        x, y, width, height, area = (int(v) for v in stats[k])
        if area >= minimum_area:
            centroid = (float(centroids[k][0]), float(centroids[k][1]))
            found.append(Component(labels == k, (x, y, x + width, y + height), area, centroid))
    return tuple(sorted(found, key=lambda c: -c.area))


def _blurred(maps: Tensor) -> Tensor:
    return gaussian_blur(maps, max(0.5, 0.05 * min(maps.shape[1:])))
