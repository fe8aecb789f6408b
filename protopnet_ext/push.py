"""Push: each prototype becomes the nearest training patch of its own class (Chen et al. 2019, section 2.2).

Images are not augmented, and the network is in evaluation mode. Ties go to the first image and the first cell.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from protomask.training.push import Nearest, Take, nearest

from .model import ProtoPNet


def nearest_patches(model: ProtoPNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Find each prototype's nearest patch among the images of its class, by squared L2; nothing is changed.

    Args:
        model: in evaluation mode.
        batches: (images [B, C, H, W], labels [B]) on the model's device.
    """
    kernel = model.prototype_vectors.shape[2:]

    def look(images: Tensor) -> tuple[Tensor, Take]:
        features, distances = model.push_forward(images)
        cells = distances.flatten(2).min(2)
        return cells.values, lambda rows, which: _patches(features[rows], cells.indices[rows, which], kernel)

    return nearest(model.prototype_vectors, model.prototype_class_identity, batches, look)


def push(model: ProtoPNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Move each prototype onto its nearest patch; one whose class has no image stays where it is."""
    model.eval()
    found = nearest_patches(model, batches)
    model.prototype_vectors.data.copy_(found.vectors)
    return found


def _patches(features: Tensor, cells: Tensor, kernel: torch.Size) -> Tensor:
    """The patch at one cell of each row: [n, D, h, w], [n] int64 (row-major) -> [n, D, h1, w1]."""
    columns = functional.unfold(features, tuple(kernel)) if tuple(kernel) != (1, 1) else features.flatten(2)
    picked = columns.gather(2, cells[:, None, None].expand(-1, columns.shape[1], 1)).squeeze(2)
    return picked.view(len(features), features.shape[1], *kernel)
