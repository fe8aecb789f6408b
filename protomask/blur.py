"""A Gaussian blur that no member of a batch can influence.

Two passes of shifted, weighted sums, each product and sum rounded on its own, so that an image gives the same bits
alone and in company (a convolution library picks its algorithm, and with it the rounding, by the size of the batch).
Separable, which a 2-D kernel is not: 135 x 135 taps at 225 pixels would cost more than the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_number


def gaussian_blur(images: Tensor, sigma: float, truncate: float = 3.0) -> Tensor:
    """Blur the last two axes, mirrored at the border without repeating the edge: [..., H, W] -> [..., H, W].

    Args:
        images: [..., H, W] float.
        sigma: pixels.
        truncate: the kernel ends at int(truncate * sigma) pixels, and at the image's size.

    Equals ``scipy.ndimage.gaussian_filter(..., mode="mirror", radius=int(truncate * sigma))``.
    """
    check_number("sigma", sigma, 0, open_low=True)
    return _along(_along(images, -1, sigma, truncate), -2, sigma, truncate)


def _along(images: Tensor, axis: int, sigma: float, truncate: float) -> Tensor:
    size = images.shape[axis]
    reach = min(int(truncate * sigma), size - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    places = torch.arange(size, device=images.device)
    blurred = torch.zeros_like(images)
    for offset, weight in zip(range(-reach, reach + 1), weights.tolist(), strict=True):
        index = (places + offset).abs()
        mirrored = torch.where(index < size, index, 2 * (size - 1) - index)
        blurred = blurred + images.index_select(axis, mirrored) * weight
    return blurred
