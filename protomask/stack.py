"""Stacking: S masks of one pair into one map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protomask.checks import check_choice

EMPTY = 0.01
"""A mask that keeps nowhere more than this says nothing: at its scale the fill alone was enough."""

STACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda masks: masks.prod(0),
    "geometric": lambda masks: masks.clamp(min=1e-12).log().mean(0).exp(),
    "mean": lambda masks: masks.mean(0),
}


def stack(masks: Tensor, how: str = "product") -> Tensor:
    """One map from the masks of all scales: [S, N, H, W] in [0, 1] -> [N, H, W] in [0, 1].

    A scale whose mask is empty for a pair has no say in that pair's product, which would be empty as well; where all
    are empty, so is the map. A mean counts it as what it is.

    Args:
        masks: one mask per scale and pair.
        how: ``"product"`` (a pixel stays only where every scale keeps it), ``"geometric"`` (its S-th root: the same
            ranking, softer values) or ``"mean"``.

    Raises:
        InputError: an unknown way of stacking.
    """
    check_choice("stack", how, tuple(STACKS))
    empty = masks.amax((2, 3), keepdim=True) <= EMPTY
    if how == "mean" or not bool(empty.any()):
        return STACKS[how](masks)
    stacked = STACKS[how](torch.where(empty, torch.ones_like(masks), masks))
    return torch.where(empty.all(0), torch.zeros_like(stacked), stacked)
