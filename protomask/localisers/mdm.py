"""MDM, multiple dynamic masks (after Peng et al., arXiv 2207.08046), and the single mask it grew from.

For every pair a mask vector is trained at each of several scales, so that the masked image keeps the prototype's
activation with as little of the image as possible; the rendered masks are stacked into one map. The paper fixes vectors
of several sizes, a constraint on their values, activation consistency and stacking. The constants are ours and this is
our own variant, not the authors' procedure: inputs are blended with a blurred image, masks start at one, the loss is
``relu(1 - r)^2 + area_weight * mean(m) + smoothness_weight * TV(v)`` with r the relative activation.

Example::

    found = protomask.locate(model, images, "top:3", method="mdm", steps=50)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.checks import check_choice, check_count
from protomask.engine import Problems, Schedule, in_chunks, train_masks
from protomask.errors import InputError, expected
from protomask.fills import FILLS, fill_images
from protomask.localisers.base import Maps, Request, register
from protomask.masks import blend, render
from protomask.objective import KeepLoss
from protomask.stack import STACKS, stack

LEAK = 0.5


def _parts(steps: int, learning_rate: float, area_weight: float, smoothness_weight: float) -> tuple[KeepLoss, Schedule]:
    """Loss and schedule; gradients are rounded to a sixth of the area's, vectors to an eighth of a step."""
    schedule = Schedule(
        steps=steps,
        learning_rate=learning_rate,
        gradient_grain=area_weight / 6,
        value_grain=learning_rate / 8,
    )
    return KeepLoss(area_weight, smoothness_weight), schedule


def _train(
    request: Request, scales: tuple[int, ...], loss: KeepLoss, schedule: Schedule, fills: tuple[str, ...], how: str
) -> Maps:
    model, targets = request.model, request.targets
    images = request.images
    problems = Problems(
        images=images,
        fills=torch.cat([fill_images(name, images, model.mean, model.std) for name in fills]),
        rows=targets.images,
        fill_rows=targets.images,
        prototypes=targets.prototypes,
        before=request.before,
        floors=request.floors,
    )
    problems = replace(problems, fill_rows=_tight_fills(request, problems, len(fills)))
    vectors = train_masks(model, problems, scales, loss, schedule, batch=request.batch, progress=request.progress)
    maps = stack(torch.stack([render(v, request.size) for v in vectors.values()]), how)
    after = _activations(request, problems, problems.fill_rows, maps)
    return Maps(maps, masks=True, vectors=vectors, fill="+".join(fills), after=after)


def _tight_fills(request: Request, problems: Problems, count: int) -> Tensor:
    """[N] rows of ``problems.fills``: for each pair the first kind of fill that does not keep the activation itself.

    Where a fill alone keeps more than :data:`LEAK` of the activation (a blurred red breast is still red), an empty mask
    would do, and there would be nothing to find. Where all kinds leak, the one that leaks least.
    """
    n, images = len(problems), len(problems.images)
    empty = problems.images.new_zeros((n, *request.size))
    chosen, least = problems.rows, torch.full_like(problems.before, torch.inf)
    for kind in range(count):
        rows = problems.rows + kind * images
        leak = relative_activation(_activations(request, problems, rows, empty), problems.before, problems.floors)
        better = (least > LEAK) & (leak < least)
        chosen, least = torch.where(better, rows, chosen), torch.where(better, leak, least)
    return chosen


@torch.no_grad()
def _activations(request: Request, problems: Problems, fill_rows: Tensor, masks: Tensor) -> Tensor:
    """[N] activations under masks [N, H, W]."""

    def work(part: slice) -> Tensor:
        blended = blend(problems.images[problems.rows[part]], masks[part], problems.fills[fill_rows[part]])
        return request.model.activations(blended, problems.prototypes[part])

    return torch.cat(list(in_chunks(len(problems), request.batch, work)))


def _names(fill: str | tuple[str, ...]) -> tuple[str, ...]:
    return (fill,) if isinstance(fill, str) else tuple(fill)


def _check(scales: tuple[int, ...], fills: tuple[str, ...]) -> None:
    if not scales or len(set(scales)) != len(scales):
        raise InputError(expected("scales", "at least one scale, each once", scales))
    for scale in scales:
        check_count("scales", scale, 2)
    if not fills:
        raise InputError(expected("fill", "at least one of " + ", ".join(FILLS), "none"))
    for fill in fills:
        check_choice("fill", fill, tuple(FILLS))


@register("mdm", "Multiple dynamic masks: vectors of five sizes trained to keep the activation, stacked into one map.")
@dataclass(frozen=True)
class MDM:
    """Multiple dynamic masks. Settings, with what was measured:

    Attributes:
        scales: cells per side of the mask vectors; fine ones (16, 24) help, 4 and below cost energy.
        steps: optimiser steps; regions are flat from 8 to 200, energy rises, deletion and repeatability fall.
        learning_rate: Adam's, .05 to .1.
        area_weight: price of the kept area, 1 to 4.
        smoothness_weight: price of the vectors' total variation, under 1.
        fill: what replaces removed pixels while training: one name, or several, of which each pair takes the first that
            does not keep the activation by itself; ``"blur"`` before ``"image-mean"`` before ``"black"``.
        stack: how scales combine; ``"product"`` before ``"mean"``.
    """

    scales: tuple[int, ...] = (6, 8, 12, 16, 24)
    steps: int = 16
    learning_rate: float = 0.1
    area_weight: float = 3.0
    smoothness_weight: float = 0.3
    fill: str | tuple[str, ...] = ("blur", "image-mean")
    stack: str = "product"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "fill", _names(self.fill))
        _check(self.scales, _names(self.fill))
        check_choice("stack", self.stack, tuple(STACKS))
        self._parts()

    def _parts(self) -> tuple[KeepLoss, Schedule]:
        return _parts(self.steps, self.learning_rate, self.area_weight, self.smoothness_weight)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.steps * len(self.scales))

    def __call__(self, request: Request) -> Maps:
        """Masks [N, H, W] of the request's pairs."""
        return _train(request, self.scales, *self._parts(), _names(self.fill), self.stack)


@register("single-mask", "One mask vector of 12 x 12 cells, trained as MDM's are: what a single scale can do.")
@dataclass(frozen=True)
class SingleMask:
    """One mask vector per pair; the settings are those of :class:`MDM`.

    Attributes:
        scale: cells per side.
        steps: optimiser steps.
        learning_rate: Adam's.
        area_weight: price of the kept area.
        smoothness_weight: price of the vector's total variation.
        fill: what replaces removed pixels while training: one name, or several.
    """

    scale: int = 12
    steps: int = 16
    learning_rate: float = 0.1
    area_weight: float = 3.0
    smoothness_weight: float = 0.3
    fill: str | tuple[str, ...] = ("blur", "image-mean")

    def __post_init__(self) -> None:
        object.__setattr__(self, "fill", _names(self.fill))
        _check((self.scale,), _names(self.fill))
        self._parts()

    def _parts(self) -> tuple[KeepLoss, Schedule]:
        return _parts(self.steps, self.learning_rate, self.area_weight, self.smoothness_weight)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.steps)

    def __call__(self, request: Request) -> Maps:
        """Masks [N, H, W] of the request's pairs."""
        return _train(request, (self.scale,), *self._parts(), _names(self.fill), "product")
