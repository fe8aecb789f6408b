"""A Gaussian blur that no member of a batch can influence.

Two passes of shifted, weighted sums, each product and sum rounded on its own, so that an image gives the same bits
alone and in company (a convolution library picks its algorithm, and with it the rounding, by the size of the batch).
Separable, which a 2-D kernel is not: 135 x 135 taps at 225 pixels would cost more than the network.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from protomask.checks import check_number

_CACHED = 1 << 17  # pixels that are blurred together on a CPU: more do not stay in the cache of a core


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
        planes = images.reshape(-1, *images.shape[-2:])
        together = max(1, _CACHED // max(1, planes[:1].numel())) if images.device.type == "cpu" else max(1, len(planes))
        parts = [_along(_along(part, 2, sigma, truncate), 1, sigma, truncate) for part in planes.split(together)]
        return torch.cat(parts).view(images.shape)
    down, across = (_matrix(size, sigma, truncate).to(images) for size in images.shape[-2:])
    return down @ images @ across.T


def _kernel(size: int, sigma: float, truncate: float) -> list[float]:
    """The weights of the offsets -reach .. reach."""
    reach = min(int(truncate * sigma), size - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    found: list[float] = (weights / weights.sum()).tolist()
    return found


def _mirrored(size: int, reach: int) -> Tensor:
    """[size + 2 reach] int64: where the pixels -reach .. size + reach - 1 are read from."""
    places = torch.arange(-reach, size + reach).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def _along(images: Tensor, axis: int, sigma: float, truncate: float) -> Tensor:
    size = images.shape[axis]
    weights = _kernel(size, sigma, truncate)
    wide = images.index_select(axis, _mirrored(size, len(weights) // 2).to(images.device))
    blurred = torch.zeros_like(images)
    for start, weight in enumerate(weights):
        blurred += wide.narrow(axis, start, size) * weight
    return blurred


@lru_cache(maxsize=32)
def _matrix(size: int, sigma: float, truncate: float) -> Tensor:
    """[size, size] float64, whose rows are the weights of each pixel; on the CPU."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows, weights = torch.arange(size), _kernel(size, sigma, truncate)
    mirrored = _mirrored(size, len(weights) // 2)
    for start, weight in enumerate(weights):
        places = mirrored.narrow(0, start, size)
        matrix.index_put_((rows, places), torch.tensor(weight, dtype=torch.float64), accumulate=True)
    return matrix
