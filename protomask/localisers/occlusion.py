"""Occlusion: slide a window over the image and see how far the activation drops (Zeiler, Fergus, ECCV 2014).

A pixel's value is the mean drop over the windows that cover it, 0 where covering it raises the activation. One set of
windows serves all prototypes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.checks import check_choice, check_number
from protomask.fills import FILLS
from protomask.localisers.base import Maps, Request, register, scaled
from protomask.localisers.perturbing import MaskSet, responses


@register("occlusion", "A window slides over the image: the mean drop of the activation where it covers a pixel.")
@dataclass(frozen=True)
class Occlusion:
    """Occlusion by a sliding window.

    Attributes:
        window: the window's side as a share of the image's shorter side.
        stride: likewise, the distance from window to window; the last one ends at the border.
        fill: what is seen in the window.
    """

    window: float = 0.125
    stride: float = 0.0625
    fill: str = "blur"
    passes = 0.0

    def __post_init__(self) -> None:
        check_number("window", self.window, 0, 1, open_low=True)
        check_number("stride", self.stride, 0, self.window, open_low=True)
        check_choice("fill", self.fill, tuple(FILLS))

    @property
    def image_passes(self) -> float:
        """Forward passes per (square) image, which serve all its prototypes."""
        side = 960  # any large side: window and stride are shares of it
        return float(len(_starts(side, *(max(1, round(share * side)) for share in (self.window, self.stride)))) ** 2)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        corners, side = self._corners(request.size)
        masks = MaskSet(len(corners), lambda part: 1 - _windows(corners[part], side, request.size).to(request.images))
        maps = request.images.new_zeros((len(request.targets), *request.size))
        covered = _spread(maps.new_ones(len(corners)), corners, side, request.size)
        for rows, values in responses(request, masks, self.fill):
            drops = request.before[rows][None] - values
            for row, drop in zip(rows.tolist(), drops.unbind(1), strict=True):
                maps[row] = (_spread(drop, corners, side, request.size) / covered).clamp(min=0)
        return Maps(scaled(maps), fill=self.fill)

    def _corners(self, size: tuple[int, int]) -> tuple[Tensor, int]:
        """[M, 2] int64 (y, x) of the windows' first pixels, and the windows' side."""
        side, step = (max(1, round(share * min(size))) for share in (self.window, self.stride))
        y, x = (torch.tensor(_starts(length, side, step)) for length in size)
        return torch.cartesian_prod(y, x), side


def _starts(length: int, side: int, step: int) -> list[int]:
    """First pixels of windows along an axis; the last window ends at the border."""
    last = length - side
    return [*range(0, last, step), last]


def _windows(corners: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """[M, H, W] bool, True inside each window."""
    y, x = (torch.arange(length)[None] - corners[:, axis, None] for axis, length in enumerate(size))
    inside = [(place >= 0) & (place < side) for place in (y, x)]
    return inside[0][:, :, None] & inside[1][:, None]


def _spread(values: Tensor, corners: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """[H, W], each window's value added to its pixels, window by window: the order of the sum is always the same."""
    total = values.new_zeros(size)
    for value, (y, x) in zip(values, corners.tolist(), strict=True):
        total[y : y + side, x : x + side] += value
    return total
