"""Push: each prototype becomes the nearest training patch of its own class (Chen et al. 2019, section 2.2).

Images are not augmented, and the network is in evaluation mode. Ties go to the first image and the first cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protomask.files import write_bytes

from .model import ProtoPNet

PICTURES = "prototypes"


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each prototype the nearest patch of its class.

    Attributes:
        images: [P] int64, index of the image in the order in which images came; -1 where the class has none.
        distances: [P], squared L2, of the prototype before the push; infinite where the class has no image.
        patches: [P, D, h1, w1], the patch's features.
    """

    images: Tensor
    distances: Tensor
    patches: Tensor


@torch.no_grad()
def nearest_patches(model: ProtoPNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Find each prototype's nearest patch among the images of its class; nothing is changed.

    Args:
        model: in evaluation mode.
        batches: (images [B, 3, H, W], labels [B]) on the model's device.
    """
    count = model.num_prototypes
    classes = model.prototype_class_identity.argmax(1)
    best = torch.full((count,), torch.inf, device=classes.device, dtype=model.prototype_vectors.dtype)
    images = torch.full((count,), -1, device=classes.device)
    patches = model.prototype_vectors.detach().clone()
    start = 0
    for pictures, labels in batches:
        features, distances = model.push_forward(pictures)
        cells = distances.flatten(2).min(2)
        values = cells.values.masked_fill(labels[:, None] != classes, torch.inf)
        nearest, rows = values.min(0)
        closer = (nearest < best).nonzero().squeeze(1)
        if len(closer):
            chosen = rows[closer]
            best[closer], images[closer] = nearest[closer], start + chosen
            patches[closer] = _patches(features[chosen], cells.indices[chosen, closer], patches.shape[2:])
        start += len(labels)
    return Nearest(images, best, patches)


def push(model: ProtoPNet, batches: Iterable[tuple[Tensor, Tensor]]) -> Nearest:
    """Move each prototype onto its nearest patch; one whose class has no image stays where it is."""
    model.eval()
    found = nearest_patches(model, batches)
    model.prototype_vectors.data.copy_(found.patches)
    return found


def write_picture(folder: Path, prototype: int, image: np.ndarray) -> str:
    """Write the source image [H, W, 3] uint8 RGB as ``prototypes/{j}.png``; the path relative to ``folder``.

    Raises:
        ResourceError: it cannot be written.
    """
    name = f"{PICTURES}/{prototype}.png"
    write_bytes(folder / name, cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return name


def _patches(features: Tensor, cells: Tensor, kernel: torch.Size) -> Tensor:
    """The patch at one cell of each row: [n, D, h, w], [n] int64 (row-major) -> [n, D, h1, w1]."""
    columns = functional.unfold(features, tuple(kernel)) if tuple(kernel) != (1, 1) else features.flatten(2)
    picked = columns.gather(2, cells[:, None, None].expand(-1, columns.shape[1], 1)).squeeze(2)
    return picked.view(len(features), features.shape[1], *kernel)
