"""All annotation metrics of a batch of maps in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from protomask.checks import check_choice, check_tensor
from protomask.errors import InputError, expected
from protomask.metrics import contrast, overlap, pixels
from protomask.metrics import localisation as score
from protomask.metrics.catalogue import METRICS
from protomask.metrics.truth import Truth
from protomask.region import check_order, rank

ANNOTATION = tuple(name for name, metric in METRICS.items() if metric.family == "annotation")
_BLOCK = 4_000_000
"""Pixels scored at a time: a ranking takes 8 bytes for each, and a handful of copies."""


def score_annotation(
    maps: Tensor,
    masks: bool,
    truth: Truth,
    *,
    seed: int = 0,
    order: Tensor | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The annotation metrics of :data:`protomask.metrics.METRICS`, NaN where one does not apply or is undefined.

    Args:
        maps: [N, H, W].
        masks: whether the maps are masks in [0, 1], whose sum is an area (``iou-own-area``).
        truth: N rows.
        seed: of the shuffle that breaks the last ties of the ranking.
        order: [N, H * W] int64, ``rank(maps, seed)`` where it is already known.
        names: which of them; all where None.

    Returns:
        name -> [N] float64, on the CPU.

    Raises:
        InputError: maps and truth of different sizes, or a name that is not an annotation metric's.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    if len(maps) != len(truth):
        raise InputError(expected("truth", f"{len(maps)} rows, one per map", len(truth)))
    for name in names or ():
        check_choice("names", name, ANNOTATION)
    wanted = [name for name in ANNOTATION if names is None or name in names]
    if order is not None:
        check_order(order, len(maps), maps.shape[1] * maps.shape[2])
    rows = max(1, _BLOCK // (maps.shape[1] * maps.shape[2]))
    blocks = []
    for start in range(0, len(maps), rows):
        part = slice(start, start + rows)
        mine = rank(maps[part], seed) if order is None else order[part]
        blocks.append(_score_block(maps[part], masks, truth[part], mine, wanted))
    empty = torch.empty(0, dtype=torch.float64)
    return {name: torch.cat([empty, *(block[name].cpu() for block in blocks)]) for name in wanted}


def _score_block(maps: Tensor, masks: bool, truth: Truth, order: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    undefined = torch.full((len(maps),), torch.nan, dtype=torch.float64)
    able = _available(maps, masks, truth, order)
    return {name: able[name]() if name in able else undefined for name in wanted}


def _available(maps: Tensor, masks: bool, truth: Truth, order: Tensor) -> dict[str, Callable[[], Tensor]]:
    """name -> what computes it, for the metrics whose annotation there is."""
    able: dict[str, Callable[[], Tensor]] = {}
    regions, boxes, points, radii = truth.regions, truth.boxes, truth.points, truth.radii
    if regions is not None:
        able |= _by_region(maps, regions, order)
        if truth.kind != "object":
            able |= _by_part_region(maps, masks, regions, order)
    if boxes is not None:
        able["top5-in-box"] = lambda: score.top5_in_box(maps, boxes, order=order)
    if points is not None and radii is not None:
        able["part-hit"] = lambda: score.part_hit(maps, points, radii, order=order)
        able["part-hit-2r"] = lambda: score.part_hit(maps, points, radii, 2, order=order)
    return able


def _by_region(maps: Tensor, regions: Tensor, order: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "pointing-game": lambda: score.pointing_game(maps, regions, order=order),
        "energy": lambda: score.energy(maps, regions),
        "energy-floor": lambda: score.energy_floor(maps, regions),
        "activation-precision": lambda: overlap.activation_precision(maps, regions, order=order),
        "relevance": lambda: overlap.relevance(maps, regions, order=order),
        "oirr": lambda: contrast.oirr(maps, regions),
        "ior": lambda: contrast.ior(maps, regions),
        "pixel-auc": lambda: pixels.pixel_auc(maps, regions, order=order),
        "pixel-ap": lambda: pixels.pixel_ap(maps, regions, order=order),
    }


def _by_part_region(maps: Tensor, masks: bool, regions: Tensor, order: Tensor) -> dict[str, Callable[[], Tensor]]:
    able = {
        "iou-p95": lambda: score.iou_p95(maps, regions, order=order),
        "iou-best": lambda: score.iou_best(maps, regions, order=order),
        "box-iou": lambda: score.box_iou(maps, regions, order=order),
        "dice": lambda: overlap.dice(maps, regions),
        "ppv": lambda: overlap.ppv(maps, regions),
        "sensitivity": lambda: overlap.sensitivity(maps, regions),
    }
    if masks:
        able["iou-own-area"] = lambda: score.iou_own_area(maps, regions, order=order)
    return able
