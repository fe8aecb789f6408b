"""The walk over training images that a push is: for each prototype the nearest vector of its own class.

Ties go to the first image. What a vector is (a patch, or a pooled feature) is the family's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from protomask.files import write_bytes

PICTURES = "prototypes"

Take = Callable[[Tensor, Tensor], Tensor]
"""(rows [n], prototypes [n]) -> [n, ...], the nearest vectors on these images of the batch to these prototypes."""
Look = Callable[[Tensor], tuple[Tensor, Take]]
"""images [B, C, H, W] -> the distance [B, P] of each prototype, and how the vectors are taken."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each prototype the nearest vector of its class.

    Attributes:
        images: [P] int64, index of the image in the order in which images came; -1 where the class has none.
        distances: [P], of the prototype before the push; infinite where the class has no image.
        vectors: [P, ...], the vector; the prototype itself where the class has no image.
    """

    images: Tensor
    distances: Tensor
    vectors: Tensor


def own_classes(labels: Tensor, identity: Tensor) -> Tensor:
    """[B, P] bool, whether an image is of a prototype's class: labels [B] int64 or [B, K], identity [P, K]."""
    if labels.dim() == 1:
        return labels[:, None] == identity.argmax(1)
    return labels[:, identity.argmax(1)] > 0


@torch.no_grad()
def nearest(prototypes: Tensor, identity: Tensor, batches: Iterable[tuple[Tensor, Tensor]], look: Look) -> Nearest:
    """Walk over the images; nothing is changed.

    Args:
        prototypes: [P, ...], the vectors as they stand.
        identity: [P, K] one-hot, the prototypes' classes.
        batches: (images [B, C, H, W], labels [B] or [B, K]) on the prototypes' device.
        look: distances, and the vectors that they belong to.
    """
    count = len(prototypes)
    best = torch.full((count,), torch.inf, device=prototypes.device, dtype=prototypes.dtype)
    images = torch.full((count,), -1, device=prototypes.device)
    vectors = prototypes.detach().clone()
    start = 0
    for pictures, labels in batches:
        distances, take = look(pictures)
        least, rows = distances.masked_fill(~own_classes(labels, identity), torch.inf).min(0)
        closer = (least < best).nonzero().squeeze(1)
        if len(closer):
            chosen = rows[closer]
            best[closer], images[closer] = least[closer], start + chosen
            vectors[closer] = take(chosen, closer)
        start += len(labels)
    return Nearest(images, best, vectors)


def write_picture(folder: Path, prototype: int, image: np.ndarray) -> str:
    """Write the source image [H, W, 3] uint8 RGB as ``prototypes/{j}.png``; the path relative to ``folder``.

    Raises:
        ResourceError: it cannot be written.
    """
    name = f"{PICTURES}/{prototype}.png"
    write_bytes(folder / name, cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return name
