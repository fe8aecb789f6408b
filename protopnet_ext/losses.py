"""The published costs of training a ProtoPNet (Chen et al. 2019, section 2.2).

Axes: B images, P prototypes, K classes. Distances are squared L2, of each prototype to the nearest patch of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Costs:
    """Scalars of one batch; cluster and separation are means over its images."""

    cross_entropy: Tensor
    cluster: Tensor
    separation: Tensor
    l1: Tensor

    def total(self, cluster: float, separation: float, l1: float) -> Tensor:
        """Cross entropy + cluster cost - separation cost + L1, weighted."""
        return self.cross_entropy + cluster * self.cluster - separation * self.separation + l1 * self.l1


def nearest_of(distances: Tensor, members: Tensor, limit: float) -> Tensor:
    """Distance to the nearest of each image's members, ``limit`` at most: [B, P], [B, P] bool -> [B].

    ``limit`` is the largest distance there can be between points of the unit cube, D h1 w1; published code gives it
    where an image has no member too.
    """
    return distances.masked_fill(~members, limit).min(1).values.clamp(max=limit)


def costs(
    logits: Tensor, distances: Tensor, labels: Tensor, identity: Tensor, last_layer: Tensor, limit: float
) -> Costs:
    """The four costs of a batch.

    Args:
        logits: [B, K].
        distances: [B, P], to each prototype's nearest patch.
        labels: [B] int64.
        identity: [P, K] one-hot, the prototypes' classes.
        last_layer: [K, P] weights.
        limit: the largest possible distance, D h1 w1.
    """
    own = identity.T[labels] > 0
    return Costs(
        cross_entropy=functional.cross_entropy(logits, labels),
        cluster=nearest_of(distances, own, limit).mean(),
        separation=nearest_of(distances, ~own, limit).mean(),
        l1=foreign_l1(last_layer, identity),
    )


def foreign_l1(last_layer: Tensor, identity: Tensor) -> Tensor:
    """Sum of absolute weights between prototypes and classes not their own: [K, P], [P, K] -> scalar."""
    return torch.where(identity.T > 0, 0.0, last_layer.abs()).sum()
