"""A Gaussian blur that no member of a batch can influence.

Two passes of shifted, weighted sums, each product and sum rounded on its own, so that an image gives the same bits
alone and in company (a convolution library picks its algorithm, and with it the rounding, by the size of the batch).
Separable, which a 2-D kernel is not: 135 x 135 taps at 225 pixels would cost more than the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from protomask.checks import check_number


def gaussian_blur(images: Tensor, sigma: float, truncate: float = 3.0, *, repeatable: bool = True) -> Tensor:
    """Blur the last two axes, mirrored at the border without repeating the edge: [..., H, W] -> [..., H, W].

    Args:
        images: [..., H, W] float.
        sigma: pixels.
        truncate: the kernel ends at int(truncate * sigma) pixels, and at the image's size.
        repeatable: add in a fixed order, so that a map gets the same value to the bit in every batch, as breaking ties
            asks for. Else two matrix products, which are many times faster and round as the batch size has it.

    Equals ``scipy.ndimage.gaussian_filter(..., mode="mirror", radius=int(truncate * sigma))``.
    """
    check_number("sigma", sigma, 0, open_low=True)
    if repeatable:
        return _along(_along(images, -1, sigma, truncate), -2, sigma, truncate)
    down, across = (_matrix(size, sigma, truncate).to(images) for size in images.shape[-2:])
    return down @ images @ across.T


def _kernel(size: int, sigma: float, truncate: float) -> Iterator[tuple[float, Tensor]]:
    """(weight, [size] int64 where it is read from) for each offset."""
    reach = min(int(truncate * sigma), size - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    places = torch.arange(size)
    for offset, weight in zip(range(-reach, reach + 1), weights.tolist(), strict=True):
        index = (places + offset).abs()
        yield weight, torch.where(index < size, index, 2 * (size - 1) - index)


def _along(images: Tensor, axis: int, sigma: float, truncate: float) -> Tensor:
    blurred = torch.zeros_like(images)
    for weight, places in _kernel(images.shape[axis], sigma, truncate):
        blurred = blurred + images.index_select(axis, places.to(images.device)) * weight
    return blurred


@lru_cache(maxsize=32)
def _matrix(size: int, sigma: float, truncate: float) -> Tensor:
    """[size, size] float64, whose rows are the weights of each pixel; on the CPU."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.arange(size)
    for weight, places in _kernel(size, sigma, truncate):
        matrix.index_put_((rows, places), torch.tensor(weight, dtype=torch.float64), accumulate=True)
    return matrix
