"""Controls: what a method must beat. They look at the annotation, or at nothing, never at the model.

Axes: N pairs, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_count, check_number
from protomask.draws import content_of, generator_of
from protomask.errors import InputError, expected
from protomask.localisers.base import Maps, Request, register, scaled

GRADE = 1e-4


@register("random", "Control: a smooth random map, drawn for each pair from the seed.", control=True)
@dataclass(frozen=True)
class Random:
    """Uniform noise on a coarse grid, upsampled: as smooth as a similarity map, and as blind as chance.

    The draw depends on the seed, the image's content and the prototype, so that a pair keeps its map in any company.

    Attributes:
        cells: cells per side of the grid.
    """

    cells: int = 7
    passes = 0.0

    def __post_init__(self) -> None:
        check_count("cells", self.cells, 2)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W] in [0, 1]."""
        hashes = [content_of(image) for image in request.images]
        draws = [self._draw(request.seed, hashes[image], prototype) for image, prototype in request.targets]
        grid = torch.stack(draws)[:, None].to(request.images)
        return Maps(scaled(F.interpolate(grid, size=request.size, mode="bilinear", align_corners=False)[:, 0]))

    def _draw(self, seed: int, content: int, prototype: int) -> Tensor:
        generator = generator_of(seed, content, prototype)
        return torch.rand((self.cells, self.cells), generator=generator, dtype=torch.float64)


@register(
    "centre", "Control: a blob at the centre of the object's box, or of the image where no box is known.", control=True
)
@dataclass(frozen=True)
class Centre:
    """A Gaussian at the centre of the annotated box (of the image where there is none).

    Attributes:
        width: its sigma as a share of the image's shorter side.
    """

    width: float = 0.1
    passes = 0.0

    def __post_init__(self) -> None:
        check_number("width", self.width, 0, open_low=True)

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W] in (0, 1]."""
        height, width = request.size
        middle = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64).expand(len(request.targets), 4)
        boxes = middle if request.boxes is None else request.boxes.cpu().double()
        boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, middle)
        # Pixel i covers [i, i + 1): a box's middle in pixel indices is half a pixel lower.
        x, y = (boxes[:, 0] + boxes[:, 2] - 1) / 2, (boxes[:, 1] + boxes[:, 3] - 1) / 2
        across = (torch.arange(width)[None] - x[:, None]) ** 2
        down = (torch.arange(height)[None] - y[:, None]) ** 2
        spread = 2 * (self.width * min(height, width)) ** 2
        return Maps(torch.exp(-(down[:, :, None] + across[:, None]) / spread).to(request.images))


@register(
    "annotation",
    "Control: the annotated part or object itself, highest in its middle: the annotation's own score.",
    control=True,
)
@dataclass(frozen=True)
class Annotation:
    """The annotation as a map: the best possible on annotation metrics only.

    Nothing outside, and inside 1 but for :data:`GRADE`, by which it rises from its border to its middle: a blurred one
    would spill energy over the border, and a flat one has no middle for the ranking to begin with.
    """

    passes = 0.0

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W] in [0, 1]; zeros where nothing is annotated.

        Raises:
            InputError: the request holds no annotation.
        """
        if request.regions is None:
            raise InputError(expected("regions", "the annotated regions [N, H, W], which `annotation` shows", None))
        masks = [_graded(region) for region in request.regions.cpu().numpy()]
        return Maps(torch.stack(masks).to(request.images), masks=True)


def _graded(region: np.ndarray) -> Tensor:
    """[H, W] bool -> [H, W] float64: 0 outside, inside from 1 - GRADE up to 1, where the border is farthest."""
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    return torch.from_numpy(region * (1 - GRADE * (1 - depth / max(depth.max(), 1.0))))
