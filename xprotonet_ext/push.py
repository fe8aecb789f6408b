"""Push: each prototype becomes the nearest pooled feature of a training image of its own class (Kim et al. 2021).

Images are not augmented, and the network is in evaluation mode. Ties go to the first image.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from protomask.training.push import Nearest, Take, nearest

from .model import XProtoNet


def nearest_features(model: XProtoNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Find each prototype's nearest feature among the images of its class, by cosine; nothing is changed.

    Args:
        model: in evaluation mode.
        batches: (images [B, C, H, W], labels [B] or [B, K]) on the model's device.
    """

    def look(images: Tensor) -> tuple[Tensor, Take]:
        features, distances, _, _ = model.push_forward(images)
        return distances, lambda rows, which: features[rows, which, :, None, None]

    return nearest(model.prototype_vectors, model.prototype_class_identity, batches, look)


def push(model: XProtoNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Move each prototype onto its nearest feature; one whose class has no image stays where it is."""
    model.eval()
    found = nearest_features(model, batches)
    model.prototype_vectors.data.copy_(found.vectors)
    return found
