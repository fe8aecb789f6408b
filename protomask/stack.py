"""Stacking: S masks of one pair into one map."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from protomask.checks import check_choice

STACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda masks: masks.prod(0),
    "geometric": lambda masks: masks.clamp(min=1e-12).log().mean(0).exp(),
    "mean": lambda masks: masks.mean(0),
}


def stack(masks: Tensor, how: str = "product") -> Tensor:
    """One map from the masks of all scales: [S, N, H, W] in [0, 1] -> [N, H, W] in [0, 1].

    Args:
        masks: one mask per scale and pair.
        how: ``"product"`` (a pixel stays only where every scale keeps it), ``"geometric"`` (its S-th root: the same
            ranking, softer values) or ``"mean"``.

    Raises:
        InputError: an unknown way of stacking.
    """
    check_choice("stack", how, tuple(STACKS))
    return STACKS[how](masks)
