"""RISE: the mean of random masks, weighted by the activation that each of them keeps (Petsiuk et al., BMVC 2018).

Masks are coarse random grids, upsampled and shifted by a random part of a cell. They depend on the seed and the image's
size alone, so that a pair has the same map in any company, and one set serves all prototypes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_choice, check_count, check_flag, check_number
from protomask.fills import FILLS
from protomask.localisers.base import Maps, Request, register, scaled
from protomask.localisers.perturbing import MaskSet, grains, responses


@register("rise", "The mean of 600 random masks, weighted by the activation that each of them keeps.")
@dataclass(frozen=True)
class RISE:
    """Randomised input sampling.

    The published map is ``sum_i a_i m_i / (M keep)``. Where masks show a pixel more often than others by chance, that
    sum favours it; ``centred`` weighs by ``a_i`` less its mean, which takes that noise out and changes nothing in
    expectation but a constant.

    Attributes:
        masks: M; the paper takes 4000 to 8000, ever finer maps for ever more passes.
        cells: cells per side of the random grids.
        keep: chance of a cell to be kept.
        fill: what replaces removed pixels.
        centred: whether the mean activation is subtracted from the weights; the published sum has False, a black fill
            and grids of ``cells`` x ``cells`` values, stretched to the size of ours.
    """

    masks: int = 600
    cells: int = 7
    keep: float = 0.5
    fill: str = "image-mean"
    centred: bool = True
    passes = 0.0

    def __post_init__(self) -> None:
        check_count("masks", self.masks)
        check_count("cells", self.cells, 2)
        check_number("keep", self.keep, 0, 1, open_low=True)
        check_choice("fill", self.fill, tuple(FILLS))
        check_flag("centred", self.centred)

    @property
    def image_passes(self) -> float:
        """Forward passes per image, which serve all its prototypes."""
        return float(self.masks)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        masks = random_masks(self.masks, self.cells, self.keep, request.size, request.images, request.seed)
        maps = request.images.new_zeros((len(request.targets), *request.size))
        for rows, values in responses(request, masks, self.fill):
            weights = values - values.mean(0, keepdim=True) if self.centred else values
            told = values.amax(0) - values.amin(0) > 2 * grains(request)[rows]
            weights = torch.where(told, weights, torch.zeros_like(weights))
            total = request.images.new_zeros((len(rows), *request.size))
            for part, kept in masks.chunks():
                # Per target: a matrix product would pick its algorithm, and its rounding, by the number of targets.
                for row, own in enumerate(weights[part].unbind(1)):
                    total[row] += torch.einsum("m,mhw->hw", own, kept)
            maps[rows] = total / (self.masks * self.keep)
        return Maps(scaled(maps), fill=self.fill)


def random_masks(count: int, cells: int, keep: float, size: tuple[int, int], like: Tensor, seed: int) -> MaskSet:
    """RISE's masks: grids of ``cells`` + 1 cells per side, kept with chance ``keep``, upsampled, shifted, cut to size.

    A cell is ceil(H / cells) x ceil(W / cells) pixels; the shift is uniform within a cell. Drawn on the CPU from
    ``seed`` alone, in the dtype and on the device of ``like``.
    """
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand((count, cells + 1, cells + 1), generator=generator, dtype=torch.float32) < keep).to(like)
    cell = tuple(-(-length // cells) for length in size)
    shifts = torch.stack([torch.randint(0, c, (count,), generator=generator) for c in cell], 1).tolist()
    whole = tuple((cells + 1) * c for c in cell)

    def make(part: slice) -> Tensor:
        fine = F.interpolate(grids[part][:, None], size=whole, mode="bilinear", align_corners=False)[:, 0]
        pairs = zip(fine, shifts[part], strict=True)
        return torch.stack([mask[y : y + size[0], x : x + size[1]] for mask, (y, x) in pairs])

    return MaskSet(count, make)
