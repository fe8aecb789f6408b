"""What a mask is trained for: small losses per problem, never averaged over the batch.

N problems. The activation enters as the *relative* activation r = (a(x') - floor) / (a(x) - floor), since families
differ in scale: 1 is as close as on the whole image, 0 is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.checks import check_number

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(relative activation [N], masks [N, H, W], vectors [N, s, s]) -> loss [N]."""


def consistency(relative: Tensor) -> Tensor:
    """relu(1 - r)^2, [N] -> [N]: a shortfall counts, an excess does not."""
    return torch.relu(1 - relative) ** 2


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
    """``consistency + area_weight * area + smoothness_weight * total variation``: as little of the image as will do.

    Attributes:
        area_weight: price of the area; flat between 1 and 4, below 1 residue stays, from 8 on sufficiency suffers.
        smoothness_weight: price of the total variation of the vector; helps boxes a little, 1 and more costs insertion.
    """

    area_weight: float = 3.0
    smoothness_weight: float = 0.3

    def __post_init__(self) -> None:
        check_number("area_weight", self.area_weight, 0)
        check_number("smoothness_weight", self.smoothness_weight, 0)

    def __call__(self, relative: Tensor, masks: Tensor, vectors: Tensor) -> Tensor:
        """[N] losses; see :data:`Loss` for the arguments."""
        loss = consistency(relative) + self.area_weight * area(masks)
        return loss + self.smoothness_weight * total_variation(vectors) if self.smoothness_weight else loss
