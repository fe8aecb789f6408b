"""Mask vectors: small grids of numbers in [0, 1] that render to masks of any resolution.

Axes: N problems, s x s cells, H, W pixels. 1 keeps a pixel, 0 replaces it with the fill.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def initial_vectors(count: int, scale: int, like: Tensor, value: float = 1.0) -> Tensor:
    """[N, s, s] of ``value``, in the dtype and on the device of ``like``.

    Ones: low masks sit in a flat region outside the data, where nothing pulls the part back in.
    """
    return torch.full((count, scale, scale), value, dtype=like.dtype, device=like.device)


def render(vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear masks of a size: [N, s, s] in [0, 1] -> [N, H, W] in [0, 1]."""
    masks: Tensor = F.interpolate(vectors[:, None], size=size, mode="bilinear", align_corners=False)
    return masks[:, 0]


def blend(images: Tensor, masks: Tensor, fills: Tensor) -> Tensor:
    """``m * x + (1 - m) * b``: images [N, C, H, W], masks [N, H, W], fills [N, C, H, W] -> [N, C, H, W]."""
    return torch.lerp(fills, images, masks[:, None])
