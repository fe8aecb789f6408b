"""What the metrics share of the pixel ranking: how many pixels are the top, and which."""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.errors import InputError, expected
from protomask.region import rank


def top_count(size: int) -> int:
    """The pixels of the top 5 % of ``size``, at least one; what :func:`protomask.region.percentile_region` takes."""
    return max(1, round((1 - 95 / 100) * size))


def order_of(maps: Tensor, order: Tensor | None) -> Tensor:
    """The ranking [N, H * W] of maps [N, H, W]: the one given, if it fits, else made here with seed 0."""
    if order is None:
        return rank(maps)
    return check_order(order, len(maps), maps.shape[1] * maps.shape[2])


def check_order(order: Tensor, n: int, size: int) -> Tensor:
    """``order`` as it came, if it is an int64 tensor [n, size]; else InputError."""
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.shape != (n, size):
        came = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise InputError(expected("order", f"an int64 tensor [{n}, {size}], as rank() gives", came))
    return order


def first_pixels(order: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """The first ``count`` pixels of each ranking: [N, H * W] -> [N, H, W] bool."""
    chosen = torch.zeros_like(order, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :count], True).view(len(order), *size)
