"""What a mask is trained for: small losses per problem, never averaged over the batch.

N problems. The activation enters as the *relative* activation r = (a(x') - floor) / (a(x) - floor), since families
differ in scale: 1 is as close as on the whole image, 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protomask.checks import check_number


class Loss(Protocol):
    """What the engine minimises, per problem."""

    @property
    def needs_complement(self) -> bool:
        """Whether the loss looks at the image without what the mask keeps, which costs a second pass per step."""

    @property
    def flat_at_one(self) -> bool:
        """Whether ``kept`` has no slope where it is 1: the first step of a mask of ones then needs no pass."""

    def __call__(self, kept: Tensor, without: Tensor, masks: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Losses [N].

        Args:
            kept: [N] relative activation of the image seen through the mask.
            without: [N] relative activation of its complement, zero unless :attr:`needs_complement`.
            masks: [N, H, W].
            vectors: one [N, s, s] for each scale that the masks are made of.
        """


def consistency(relative: Tensor) -> Tensor:
    """relu(1 - r)^2, [N] -> [N]: a shortfall counts, an excess does not."""
    return torch.relu(1 - relative) ** 2


def necessity(without: Tensor) -> Tensor:
    """relu(r')^2, [N] -> [N], of what the image keeps without the region: evidence that the mask left out counts.

    Squared, so that it fades with r'. At the first step the image without the region is the bare fill, on which all
    cells of the coarse map are nearly equal and rounding decides which of them wins.
    """
    return torch.relu(without) ** 2


def area(masks: Tensor) -> Tensor:
    """The share of the image that a mask keeps: [N, H, W] -> [N] in [0, 1]."""
    return masks.mean((1, 2))


def total_variation(vectors: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring cells, both directions added: [N, s, s] -> [N]."""
    down = (vectors[:, 1:] - vectors[:, :-1]).abs().mean((1, 2))
    across = (vectors[:, :, 1:] - vectors[:, :, :-1]).abs().mean((1, 2))
    return down + across


@dataclass(frozen=True)
class KeepLoss:
    """As little of the image as will do, and little left without it.

    ``consistency + area_weight * area + smoothness_weight * total variation + necessity_weight * necessity``.

    Attributes:
        area_weight: price of the area; flat between 1 and 4, below 1 residue stays, from 8 on sufficiency suffers.
        smoothness_weight: price of the total variation of the vector; helps boxes a little, 1 and more costs insertion.
        necessity_weight: price of the relative activation that is left without the region; 0 asks for a sufficient
            region only, which may be a piece of the evidence.
    """

    area_weight: float = 3.0
    smoothness_weight: float = 0.3
    necessity_weight: float = 0.0

    def __post_init__(self) -> None:
        check_number("area_weight", self.area_weight, 0)
        check_number("smoothness_weight", self.smoothness_weight, 0)
        check_number("necessity_weight", self.necessity_weight, 0)

    @property
    def needs_complement(self) -> bool:
        """Whether necessity has a price."""
        return self.necessity_weight > 0

    @property
    def flat_at_one(self) -> bool:
        """The shortfall counts squared, so it has no slope where there is none."""
        return True

    def __call__(self, kept: Tensor, without: Tensor, masks: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """[N] losses; see :class:`Loss` for the arguments."""
        loss = consistency(kept) + self.area_weight * area(masks) + self.necessity_weight * necessity(without)
        return loss + self.smoothness_weight * sum(map(total_variation, vectors)) if self.smoothness_weight else loss
