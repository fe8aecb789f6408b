"""Masks of extremal perturbations: coarse cells rendered by a smooth maximum, and the price of another area.

Fong, Patrick, Vedaldi, "Understanding deep networks via extremal perturbations and smooth masks", ICCV 2019, sections
3.1 and 3.2; written from the paper. Axes: N masks, h, w cells, H, W pixels, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SmoothMax:
    """``m(u) = smax_c k(u - c) v(c)``: each point takes the largest of the cells near it, weighed by their distance.

    ``smax f = sum f exp(f / T) / sum exp(f / T)``, and k flat to half a cell's diagonal, so that a cell at 1 is a
    plateau, and falling as exp(-(d / sigma)^2 / 4) beyond. A maximum keeps masks full where a mean would leave them
    half transparent. It is taken at ``samples`` points per cell and side and resized to pixels: the mask is smooth on
    the scale of a cell, and at full resolution the maxima would cost several times what the network does.

    Attributes:
        size: (H, W).
        cells: (h, w).
        sigma: width of the kernel, cells.
        temperature: T of the smooth maximum.
        samples: points per cell and side.
    """

    size: tuple[int, int]
    cells: tuple[int, int]
    sigma: float = 1.0
    temperature: float = 0.05
    samples: int = 2

    @property
    def reach(self) -> int:
        """How many cells away a neighbour still counts: the kernel is below .11 beyond three sigma."""
        return max(1, round(3 * self.sigma))

    def kernel(self, like: Tensor) -> Tensor:
        """[K, samples, samples]: the weight of each neighbour for each point of a cell."""
        offsets = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        points = (torch.arange(self.samples, dtype=torch.float64) + 0.5) / self.samples - 0.5
        apart = (points[None] - offsets[:, None]).square()
        distance = (apart[:, None, :, None] + apart[None, :, None, :]).sqrt().flatten(0, 1)
        beyond = (distance - 0.5**0.5).clamp(min=0)
        return torch.exp(-((beyond / self.sigma) ** 2) / 4).to(like)

    def __call__(self, cells: Tensor) -> Tensor:
        """Masks: [N, h, w] in [0, 1] -> [N, H, W] in [0, 1]."""
        count, (height, width), s = len(cells), self.cells, self.samples
        padded = F.pad(cells[:, None], (self.reach,) * 4)
        near = F.unfold(padded, 2 * self.reach + 1).view(count, -1, 1, 1, height, width)
        weighed = near * self.kernel(cells)[None, :, :, :, None, None]
        masks = (torch.softmax(weighed / self.temperature, dim=1) * weighed).sum(1)  # [N, s, s, h, w]
        points = masks.permute(0, 3, 1, 4, 2).reshape(count, 1, height * s, width * s)
        return F.interpolate(points, size=self.size, mode="bilinear", align_corners=False)[:, 0]


def area_price(masks: Tensor, area: float) -> Tensor:
    """``mean((sorted(m) - r)^2)``, r zeros and then ones for a share ``area`` of the pixels: [N, H, W] -> [N].

    0 only for a binary mask of exactly that area.
    """
    values = masks.flatten(1).sort(1).values
    zeros = values.shape[1] - round(area * values.shape[1])
    return (values[:, :zeros].square().sum(1) + (1 - values[:, zeros:]).square().sum(1)) / values.shape[1]
