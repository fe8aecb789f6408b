"""What the metrics share of a ranking: how many pixels are the top, and which."""

from __future__ import annotations

import torch
from torch import Tensor


def top_count(size: int) -> int:
    """The pixels of the top 5 % of ``size``, at least one; what :func:`protomask.region.percentile_region` takes."""
    return max(1, round((1 - 95 / 100) * size))


def first_pixels(order: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """The first ``count`` pixels of each ranking: [N, H * W] -> [N, H, W] bool."""
    chosen = torch.zeros_like(order, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :count], True).view(len(order), *size)
