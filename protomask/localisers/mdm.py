"""MDM, multiple dynamic masks (after Peng et al., arXiv 2207.08046), and the single mask it grew from.

For every pair a mask vector is trained at each of several scales, so that the masked image keeps the prototype's
activation with as little of the image as possible, and so that little of the activation is left without the region; the
rendered masks are stacked into one map. The paper fixes vectors of several sizes, a constraint on their values,
activation consistency and stacking. The constants are ours and this is our own variant, not the authors' procedure:
inputs are blended with a blurred image, masks start at one, the loss is ``relu(1 - r)^2 + area_weight * mean(m) +
smoothness_weight * TV(v) + necessity_weight * relu(r')^2`` with r the relative activation of what the mask keeps and r'
that of what it removes. In the end the stacked mask is weighed by what gradients say of each pixel
(:mod:`protomask.localisers.evidence`), and of several ways to read them each pair takes the one that its activation
answers to most (:mod:`protomask.localisers.choosing`). The authors' own procedure is ``mdm-paper``.

Example::

    found = protomask.locate(model, images, "top:3", method="mdm", steps=50)
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.checks import check_choice, check_count, check_flag, check_number, check_scales
from protomask.engine import Problems, Schedule, in_chunks, train_masks
from protomask.errors import InputError, expected
from protomask.fills import FILLS, fill_images
from protomask.folding import quick
from protomask.localisers.base import Maps, Request, register
from protomask.localisers.choosing import chosen, passes_of
from protomask.localisers.evidence import evidence_of, joined, noisy_products, path_products, weighed
from protomask.localisers.perturbing import masked_activations
from protomask.masks import render
from protomask.objective import KeepLoss
from protomask.stack import EMPTY, STACKS, stack

LEAK = 0.5
FINER, COARSER = 0.025, 0.06
"""Other blurs of the evidence that are tried, beside :data:`protomask.localisers.attribution.BLUR`."""


@dataclass(frozen=True, eq=False)
class Found:
    """What training gave: the masks, what the activation answered to on the way, and the fills it was trained on.

    Attributes:
        maps: the stacked masks.
        slopes: [N, H, W], :attr:`protomask.engine.Trained.slopes`.
        fills: [F, C, H, W].
        fill_rows: [N] int64, the fill of each pair.
        closed: [N] bool, whose masks are empty although the fill hides the activation: they kept too little for their
            price, which says nothing against the evidence.
    """

    maps: Maps
    slopes: Tensor
    fills: Tensor
    fill_rows: Tensor
    closed: Tensor


def _ready(request: Request) -> Request:
    """With the model in the form that many passes are cheapest in."""
    return replace(request, model=quick(request.model, request.images))


def _tight_fills(request: Request, problems: Problems, count: int) -> tuple[Tensor, Tensor]:
    """[N] rows of ``problems.fills``: for each pair the first kind of fill that does not keep the activation itself.

    With [N], what share of the activation that fill keeps.

    Where a fill alone keeps more than :data:`LEAK` of the activation (a blurred red breast is still red), an empty mask
    would do, and there would be nothing to find. Where all kinds leak, the one that leaks least.
    """
    chosen, least = problems.rows.clone(), torch.full_like(problems.before, torch.inf)
    for kind in range(count):
        left = (least > LEAK).nonzero().squeeze(1)
        if len(left) == 0:
            break
        rows = problems.rows[left] + kind * len(problems.images)
        without = _on_fills(request, problems, rows, problems.prototypes[left])
        leak = relative_activation(without, problems.before[left], problems.floors[left])
        better = leak < least[left]
        chosen[left] = torch.where(better, rows, chosen[left])
        least[left] = torch.where(better, leak, least[left])
    return chosen, least


@torch.no_grad()
def _on_fills(request: Request, problems: Problems, rows: Tensor, prototypes: Tensor) -> Tensor:
    """[n] activations of prototypes [n] on the fills of ``rows`` [n]."""

    def work(part: slice) -> Tensor:
        return request.model.activations(problems.fills[rows[part]], prototypes[part])

    return torch.cat(list(in_chunks(len(rows), request.batch, work)))


@dataclass(frozen=True)
class Learned:
    """What every learned mask is told; the settings and what was measured of them:

    Attributes:
        steps: optimiser steps, of which the first needs no network pass; regions are flat from 8 to 200, energy rises,
            deletion and repeatability fall.
        learning_rate: Adam's. A cell can fall from 1 to 0 if steps x rate is at least 1; more than .15 scatters masks
            on real birds, which only a gradient's say makes good.
        area_weight: price of the kept area, 1 to 4.
        smoothness_weight: price of the vectors' total variation, under 1.
        necessity_weight: price of the activation that is left when the region is taken away, .1 to .3. Without it (0) a
            mask is content with a piece of the evidence: at half the passes, .1 less best IoU on planted parts.
        fill: what replaces removed pixels while training: one name, or several, of which each pair takes the first that
            does not keep the activation by itself; ``"blur"`` before ``"image-mean"`` before ``"black"``.
        tolerance: a pair leaves when its cells have moved by no more than this on average within five steps; .004
            spares a quarter and more of the passes of 80 steps and hardly moves a map. 0: nobody leaves early.
        precision: of the network passes: ``"fp32"``, ``"bf16"`` or ``"fp16"``. Half precision leaves scores as they
            are, but single maps differ.
    """

    steps: int = 8
    learning_rate: float = 0.125
    area_weight: float = 3.0
    smoothness_weight: float = 0.3
    necessity_weight: float = 0.2
    fill: str | tuple[str, ...] = ("blur", "image-mean")
    tolerance: float = 0.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not isinstance(self.fill, (str, tuple, list)):
            raise InputError(expected("fill", "one or several of " + ", ".join(FILLS), repr(self.fill)))
        object.__setattr__(self, "fill", self.fills)
        if not self.fills:
            raise InputError(expected("fill", "at least one of " + ", ".join(FILLS), "none"))
        for fill in self.fills:
            check_choice("fill", fill, tuple(FILLS))
        self._loss(), self._schedule()  # they check their numbers

    @property
    def fills(self) -> tuple[str, ...]:
        """The names in ``fill``."""
        return (self.fill,) if isinstance(self.fill, str) else tuple(self.fill)

    def _loss(self) -> KeepLoss:
        return KeepLoss(self.area_weight, self.smoothness_weight, self.necessity_weight)

    def _schedule(self, together: bool = False) -> Schedule:
        """Gradients are rounded to a third of the area's, vectors to an eighth of a step."""
        return Schedule(
            steps=self.steps,
            learning_rate=self.learning_rate,
            gradient_grain=self.area_weight / 3,
            value_grain=self.learning_rate / 8,
            together=together,
            tolerance=self.tolerance,
            precision=self.precision,
        )

    def _passes(self, masks: int) -> float:
        return float((self.steps - 1) * masks * (1 + self._loss().needs_complement))

    def _masks(self, request: Request, scales: tuple[int, ...], how: str, together: bool = False) -> Found:
        images, model = request.images, request.model
        problems = Problems(
            images=images,
            fills=torch.cat([fill_images(name, images, model.mean, model.std) for name in self.fills]),
            rows=request.targets.images,
            fill_rows=request.targets.images,
            prototypes=request.targets.prototypes,
            before=request.before,
            floors=request.floors,
        )
        fill_rows, leaks = _tight_fills(request, problems, len(self.fills))
        problems = replace(problems, fill_rows=fill_rows)
        loss, schedule = self._loss(), self._schedule(together)
        trained = train_masks(model, problems, scales, loss, schedule, batch=request.batch, progress=request.progress)
        maps = stack(torch.stack([render(v, request.size) for v in trained.vectors.values()]), how)
        after = masked_activations(request, maps, problems.fills, problems.fill_rows)
        masks = Maps(maps, masks=True, vectors=trained.vectors, fill="+".join(self.fills), after=after)
        closed = (maps.amax((1, 2)) <= EMPTY) & (leaks <= LEAK)
        return Found(masks, trained.slopes, problems.fills, fill_rows, closed)


@register("mdm", "Multiple dynamic masks, trained to keep the activation, stacked, weighed by what gradients say.")
@dataclass(frozen=True)
class MDM(Learned):
    """Multiple dynamic masks; the other settings are those of :class:`Learned`.

    The trained vectors, and the activation after, are those of the mask; the map is the mask, weighed by the geometric
    mean of up to three readings of the gradient, of which that along the training is free. Where the mask closes
    although the fill hides the activation, which on birds one pair in fifty does, the map is the evidence.

    Attributes:
        scales: cells per side of the mask vectors; fine ones (16, 24) help, 4 and below cost energy.
        stack: how scales combine; ``"product"`` before ``"mean"``.
        together: train the scales as one mask, their geometric mean, in one pass per step for all, instead of each by
            itself; then ``stack`` must be ``"product"``, a power of it with the same ranking.
        gradients: noisy copies of the image whose mean gradient is read, a pass each; ten for five move insertion on
            birds by .005.
        path: points on the straight way from a blank image to this one at which it is read, a pass each; none costs
            birds .01 of insertion.
        gradient_power: the map is ``mask^mask_power x evidence^gradient_power``; 0: it is the mask, and no gradient is
            read.
        mask_power: .5 to 1; at .5 birds' insertion is .005 to .01 better than at 1, energy on planted .07 less.
        choose: whether each pair chooses among five readings (all three joined, at three blurs, and two of them alone)
            by what their highest pixels keep and leave of the activation under the training fill.
    """

    scales: tuple[int, ...] = (6, 12, 24)
    stack: str = "product"
    together: bool = True
    gradients: int = 5
    path: int = 5
    gradient_power: float = 2.0
    mask_power: float = 0.75
    choose: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        super().__post_init__()
        check_flag("together", self.together)
        check_flag("choose", self.choose)
        check_choice("stack", self.stack, ("product",) if self.together else tuple(STACKS))
        check_count("gradients", self.gradients, 0)
        check_count("path", self.path, 0)
        check_number("gradient_power", self.gradient_power, 0)
        check_number("mask_power", self.mask_power, 0, open_low=True)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair; a forward pass alone is a third."""
        training = self._passes(1 if self.together else len(self.scales))
        if self.gradient_power == 0:
            return training
        return training + self.gradients + self.path + (passes_of(self._readings) if self.choose else 0)

    @property
    def _readings(self) -> int:
        """How many maps a pair chooses from: three blurs, and the first two readings where there are several."""
        return 5 if self.path or self.gradients else 3

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W] of the request's pairs: masks, or a ranking where evidence weighs them."""
        request = _ready(request)
        found = self._masks(request, self.scales, self.stack, self.together)
        if self.gradient_power == 0:
            return found.maps
        products = self._products(request, found)
        apart = [evidence_of(request, one) for one in products]
        maps = self._weighed(found, joined(apart))
        if self.choose:
            blurred = [joined([evidence_of(request, one, blur) for one in products]) for blur in (FINER, COARSER)]
            alone = apart[:2] if len(apart) > 1 else []
            others = [self._weighed(found, evidence) for evidence in (*blurred, *alone)]
            maps = chosen(request, [maps, *others], found.fills, found.fill_rows)
        return replace(found.maps, maps=maps, masks=False)

    def _products(self, request: Request, found: Found) -> list[Tensor]:
        """[N, H, W] each, what the readings say each pixel adds to the activation."""
        products = [found.slopes]
        products += [path_products(request, self.path)] if self.path else []
        products += [noisy_products(request, self.gradients)] if self.gradients else []
        return products

    def _weighed(self, found: Found, evidence: Tensor) -> Tensor:
        """The masks, weighed by evidence [N, H, W], and where they are closed the evidence, if there is any."""
        alone = (found.closed & (evidence.amax((1, 2)) > 0))[:, None, None]
        masks = torch.where(alone, torch.ones_like(evidence), found.maps.maps)
        return weighed(masks, evidence, self.gradient_power, self.mask_power)


@register("mdm-fast", "MDM in five larger steps and one gradient: the fewest passes, for many maps or a first look.")
@dataclass(frozen=True)
class MDMFast(MDM):
    """The cheap preset. Its masks alone would scatter at such steps; weighed, they do not."""

    steps: int = 5
    learning_rate: float = 0.2
    gradients: int = 1
    path: int = 0
    choose: bool = False


@register("mdm-best", "MDM with each scale trained by itself, and more gradients: the most passes.")
@dataclass(frozen=True)
class MDMBest(MDM):
    """The thorough preset: every scale is an opinion of its own on the region."""

    together: bool = False
    gradients: int = 10
    path: int = 10


@register("single-mask", "One mask vector of 12 x 12 cells, trained as MDM's are: what a single scale can do.")
@dataclass(frozen=True)
class SingleMask(Learned):
    """One mask vector per pair; the other settings are those of :class:`Learned`.

    Attributes:
        scale: cells per side.
    """

    scale: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("scale", self.scale, 2)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return self._passes(1)

    def __call__(self, request: Request) -> Maps:
        """Masks [N, H, W] of the request's pairs."""
        return self._masks(_ready(request), (self.scale,), "product").maps


def _documented(*methods: type[Learned]) -> None:
    """``help()`` of a method lists the settings of :class:`Learned` as well, which its own docstring leaves to that."""
    shared = inspect.cleandoc(Learned.__doc__ or "").partition("Attributes:")[2].rstrip()
    for method in methods:
        method.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\nSettings of :class:`Learned`:{shared}\n"


_documented(MDM, SingleMask)
