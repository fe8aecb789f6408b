"""Mask vectors: small grids of numbers in [0, 1] that render to masks of any resolution.

Axes: N problems, s x s cells, H, W pixels. 1 keeps a pixel, 0 replaces it with the fill.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def initial_vectors(count: int, scale: int, like: Tensor, value: float = 1.0) -> Tensor:
    """[N, s, s] of ``value``, in the dtype and on the device of ``like``.

    Ones: low masks sit in a flat region outside the data, where nothing pulls the part back in.
    """
    return torch.full((count, scale, scale), value, dtype=like.dtype, device=like.device)


def render(vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear masks of a size: [N, s, s] in [0, 1] -> [N, H, W] in [0, 1].

    What ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` computes, as two small matrix
    products: their gradient is two more, where the interpolation's scatters pixel by pixel.
    """
    down = _weights(vectors.shape[1], size[0], vectors.dtype, vectors.device)
    across = _weights(vectors.shape[2], size[1], vectors.dtype, vectors.device)
    return down @ vectors @ across.T


@lru_cache(maxsize=256)
def _weights(cells: int, pixels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[pixels, cells], what each cell gives to each pixel along one axis; rows sum to 1."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(cells, dtype=torch.float64)
        lines: Tensor = F.interpolate(unit[:, None], size=pixels, mode="linear", align_corners=False)
        return lines[:, 0].T.contiguous().to(device, dtype)


def blend(images: Tensor, masks: Tensor, fills: Tensor) -> Tensor:
    """``m * x + (1 - m) * b``: images [N, C, H, W], masks [N, H, W], fills [N, C, H, W] -> [N, C, H, W]."""
    return torch.lerp(fills, images, masks[:, None])
