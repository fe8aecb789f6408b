"""The costs of training an XProtoNet (Kim et al. 2021).

Axes: B images, P prototypes, K classes, h x w cells. Labels are [B] int64 (one class per image) or [B, K], 1 where the
image is of the class. Similarities are cosines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_FOCUS = 2  # exponent by which answers that are right already count less


@dataclass(frozen=True, eq=False)
class Weights:
    """What the costs are multiplied by; separation is added, since it is a similarity to begin with."""

    cluster: float
    separation: float
    area: float
    transformation: float
    blank: float
    l1: float


@dataclass(frozen=True, eq=False)
class Terms:
    """Scalars of one batch.

    Attributes:
        classification: :func:`classification`.
        cluster: mean distance 1 - similarity to the nearest prototype of a class that the image is of.
        separation: mean similarity to the nearest prototype of a class that it is not of.
        area: mean of the occurrence maps.
        transformation: :func:`transformation`.
        blank: mean similarity of the images of :func:`blank_images`. Ours, not the paper's.
        l1: :func:`foreign_l1`.
    """

    classification: Tensor
    cluster: Tensor
    separation: Tensor
    area: Tensor
    transformation: Tensor
    blank: Tensor
    l1: Tensor

    def total(self, weights: Weights) -> Tensor:
        """The weighted sum."""
        named = ("cluster", "separation", "area", "transformation", "blank", "l1")
        return self.classification + sum(getattr(weights, n) * getattr(self, n) for n in named)


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """One class per image: cross entropy. Several: per class a balanced, focused cross entropy of yes and no.

    For each class the images that are of it and those that are not weigh the same, whatever their number, and an answer
    of probability p counts by (1 - p)^2; then the mean over classes. Logits [B, K] -> scalar.
    """
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels)
    entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    focused = (1 - (-entropy).exp()) ** _FOCUS * entropy
    sides = [(focused * side).sum(0) / side.sum(0).clamp(min=1) for side in (labels, 1 - labels)]
    return torch.stack(sides).sum(0).mean()


def nearest_by_class(similarity: Tensor, identity: Tensor) -> Tensor:
    """The highest similarity among each class's prototypes: [B, P], [P, K] -> [B, K]; -1 for a class of none."""
    owners = identity.argmax(1).expand(len(similarity), -1)
    start = similarity.new_full((len(similarity), identity.shape[1]), -1.0)
    return start.scatter_reduce(1, owners, similarity, "amax", include_self=False)


def cluster_and_separation(similarity: Tensor, labels: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """Means over (image, class) pairs: 1 - similarity where the image is of the class, similarity where it is not."""
    near = nearest_by_class(similarity, identity)
    own = functional.one_hot(labels, identity.shape[1]).to(near) if labels.dim() == 1 else labels
    cluster = ((1 - near) * own).sum() / own.sum().clamp(min=1)
    separation = (near * (1 - own)).sum() / (1 - own).sum().clamp(min=1)
    return cluster, separation


def foreign_l1(last_layer: Tensor, identity: Tensor) -> Tensor:
    """Sum of absolute weights between prototypes and classes not their own: [K, P], [P, K] -> scalar."""
    return torch.where(identity.T > 0, 0.0, last_layer.abs()).sum()


def blank_images(images: Tensor, count: int) -> Tensor:
    """[count, C, H, W] of nothing: zeros, and the mean colours of the first images [B, C, H, W].

    A cosine knows no length: whatever faint features a blank image has point somewhere, and may point at a prototype.
    """
    means = images[: count - 1].mean((2, 3), keepdim=True)
    return torch.cat([torch.zeros_like(means[:1]), means]).expand(-1, -1, *images.shape[2:])


def random_affine(count: int, seed: int, like: Tensor) -> Tensor:
    """[count, 2, 3] seeded maps from output to input coordinates: flip, turn up to 20 degrees, size .8 to 1.25, shift.

    For :func:`torch.nn.functional.affine_grid`; shifts are up to a tenth of the image.
    """
    generator = torch.Generator().manual_seed(seed)
    turn, zoom, right, down, flip = torch.rand(5, count, generator=generator, dtype=torch.float64)
    angle = (2 * turn - 1) * math.radians(20)
    scale = 1.25 ** (2 * zoom - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    sign = torch.where(flip < 0.5, -1.0, 1.0)
    rows = [torch.stack([sign * cos, -sin, (2 * right - 1) * 0.2], 1)]
    rows.append(torch.stack([sign * sin, cos, (2 * down - 1) * 0.2], 1))
    return torch.stack(rows, 1).to(like)


def moved(maps: Tensor, affine: Tensor) -> Tensor:
    """Images or maps under an affine map: [B, C, H, W], [B, 2, 3] -> [B, C, H, W]; zero where it points outside."""
    grid = functional.affine_grid(affine, list(maps.shape), align_corners=False)
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def transformation(images: Tensor, maps: Tensor, affine: Tensor, maps_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean |A(M(x)) - M(A(x))| over prototypes and the cells that A leaves inside the image.

    Args:
        images: [B, C, H, W].
        maps: [B, P, h, w], their occurrence maps M(x).
        affine: [B, 2, 3], A.
        maps_of: M.
    """
    inside = (moved(torch.ones_like(maps[:, :1]), affine) > 0.99).to(maps)
    gap = (moved(maps, affine) - maps_of(moved(images, affine))).abs() * inside
    return gap.sum() / (inside.sum() * maps.shape[1]).clamp(min=1)
