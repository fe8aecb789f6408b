"""Which part is a prototype about? The part whose removal drops its activation most, where there is a clear winner.

N (image, prototype) pairs, K parts. Where parts have pixel masks, they are in-painted; where a data set has points
only, a disc round each point is. The rule is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.checks import check_tensor
from protomask.errors import InputError, expected
from protomask.metrics.faithfulness import relative_activation

WINNER = 0.2
RUNNER_UP = 0.5


@dataclass(frozen=True, eq=False)
class CausalParts:
    """The part each pair is about.

    Attributes:
        part: [N] int64, -1 where there is no clear winner.
        drop: [N] float64, the largest relative drop of any visible part; NaN where no part is visible.
        runner_up: [N] float64, the second largest; NaN where fewer than two parts are visible.
    """

    part: Tensor
    drop: Tensor
    runner_up: Tensor

    def __len__(self) -> int:
        return len(self.part)


def part_drops(before: Tensor, without: Tensor, floor: Tensor | float) -> Tensor:
    """Relative drops (a(x) - a(x without part k)) / (a(x) - floor) = 1 - r; negative where the activation rose.

    Args:
        before: [N], the activations on the whole images.
        without: [N, K], on the images with part k removed; NaN where part k is not visible.
        floor: [N] or one number, the activation of nothing.

    Returns:
        [N, K] float64; NaN where the part is not visible, or ``before`` is at or below the floor.
    """
    check_tensor("before", before, ("N",))
    check_tensor("without", without, (len(before), "K"), finite=False)
    return 1 - relative_activation(without, before, floor)


def causal_parts(drops: Tensor, *, winner: float = WINNER, runner_up: float = RUNNER_UP) -> CausalParts:
    """The winning part of each pair: its drop at least ``winner``, the runner-up's at most ``runner_up`` of that.

    Where only one part is visible it has no runner-up, and its own drop decides.

    Args:
        drops: [N, K], as from :func:`part_drops`; NaN where a part is not visible.
        winner: the least drop of a winner.
        runner_up: the largest share of the winner's drop that the runner-up may reach.
    """
    check_tensor("drops", drops, ("N", "K"), finite=False)
    if drops.shape[1] == 0:
        raise InputError(expected("drops", "at least one part", list(drops.shape)))
    values = drops.double()
    visible = values.masked_fill(values.isnan(), -torch.inf)
    ordered, parts = torch.sort(visible, dim=1, descending=True, stable=True)
    best = ordered[:, 0]
    second = ordered[:, 1] if values.shape[1] > 1 else torch.full_like(best, -torch.inf)
    clear = (best >= winner) & (second <= runner_up * best)
    part = parts[:, 0].masked_fill(~clear, -1)
    return CausalParts(part, *(v.masked_fill(v.isneginf(), torch.nan) for v in (best, second)))
