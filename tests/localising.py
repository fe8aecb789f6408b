"""What tests of localisers share."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from protomask.data import Planted
from protomask.loading import load_model, with_labels_of
from protomask.localisers import Request
from protomask.locating import measure
from protomask.model import Contract, contract
from protomask.pairs import draw_pairs, tensors, truth_of


def request_for(model: object, images: Tensor, pairs: list[tuple[int, int]], **more: Any) -> Request:
    """The request that ``locate`` would make; the caller freezes the model."""
    known = contract(model)
    start = measure(known, images, pairs)
    return Request(known, images, start.targets, start.before, start.floors, **more)


@cache
def planted(family: str, count: int = 6) -> tuple[Contract, Tensor, list[tuple[int, int]], Tensor]:
    """A demo model, ``count`` planted images, one pair of each that has a clear part, and the parts [N, H, W] bool."""
    loaded = load_model(f"demo:{family}")
    data = with_labels_of(loaded, Planted("birds", "test", count=24))
    drawn = draw_pairs(loaded.model, data, count, seed=1)
    samples = [data[pair.index] for pair in drawn.pairs]
    regions = truth_of(samples, list(drawn.pairs), drawn.kind).regions
    assert regions is not None
    targets = [(row, pair.prototype) for row, pair in enumerate(drawn.pairs)]
    return loaded.model, tensors(loaded.model, samples), targets, regions


def energy(maps: Tensor, regions: Tensor) -> Tensor:
    """[N], the share of each map inside its region; 0 for an empty map."""
    return (maps * regions).sum((1, 2)) / maps.sum((1, 2)).clamp(min=torch.finfo(maps.dtype).tiny)
