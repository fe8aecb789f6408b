"""All annotation metrics of a batch of maps in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_tensor
from protomask.errors import InputError, expected
from protomask.metrics import localisation as score
from protomask.metrics.catalogue import METRICS
from protomask.metrics.truth import Truth
from protomask.region import rank

_BLOCK = 4_000_000
"""Pixels scored at a time: a ranking takes 8 bytes for each, and a handful of copies."""


def score_annotation(maps: Tensor, masks: bool, truth: Truth, *, seed: int = 0) -> dict[str, Tensor]:
    """Every annotation metric of :data:`protomask.metrics.METRICS`, NaN where it does not apply or is undefined.

    Args:
        maps: [N, H, W].
        masks: whether the maps are masks in [0, 1], whose sum is an area (``iou-own-area``).
        truth: N rows.
        seed: of the shuffle that breaks the last ties of the ranking.

    Returns:
        name -> [N] float64, on the CPU.

    Raises:
        InputError: maps and truth of different sizes.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    if len(maps) != len(truth):
        raise InputError(expected("truth", f"{len(maps)} rows, one per map", len(truth)))
    rows = max(1, _BLOCK // (maps.shape[1] * maps.shape[2]))
    blocks = [
        _score_block(maps[start : start + rows], masks, truth[start : start + rows], seed)
        for start in range(0, len(maps), rows)
    ]
    names = [name for name, metric in METRICS.items() if metric.family == "annotation"]
    empty = torch.empty(0, dtype=torch.float64)
    return {name: torch.cat([empty, *(block[name].cpu() for block in blocks)]) for name in names}


def _score_block(maps: Tensor, masks: bool, truth: Truth, seed: int) -> dict[str, Tensor]:
    order = rank(maps, seed)
    undefined = torch.full((len(maps),), torch.nan, dtype=torch.float64)
    scores = dict.fromkeys((n for n, m in METRICS.items() if m.family == "annotation"), undefined)
    if truth.regions is not None:
        scores["pointing-game"] = score.pointing_game(maps, truth.regions, order=order)
        scores["energy"] = score.energy(maps, truth.regions)
        scores["energy-floor"] = score.energy_floor(maps, truth.regions)
    if truth.regions is not None and truth.kind != "object":
        scores["iou-p95"] = score.iou_p95(maps, truth.regions, order=order)
        scores["iou-best"] = score.iou_best(maps, truth.regions, order=order)
        scores["box-iou"] = score.box_iou(maps, truth.regions, order=order)
        if masks:
            scores["iou-own-area"] = score.iou_own_area(maps, truth.regions, order=order)
    if truth.boxes is not None:
        scores["top5-in-box"] = score.top5_in_box(maps, truth.boxes, order=order)
    if truth.points is not None and truth.radii is not None:
        scores["part-hit"] = score.part_hit(maps, truth.points, truth.radii, order=order)
        scores["part-hit-2r"] = score.part_hit(maps, truth.points, truth.radii, 2, order=order)
    return scores
