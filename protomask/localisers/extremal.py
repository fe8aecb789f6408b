"""Extremal perturbations: of all smooth masks of a given area, the one that matters most (Fong et al., ICCV 2019).

Not the price of a pixel but its number is given: for each of several areas a mask is trained to keep the activation as
high as possible (``"preserve"``), or at the same time to leave as little as possible without it (``"hybrid"``), under a
growing price of any other area (:func:`protomask.localisers.smoothmax.area_price`). The masks of all areas are averaged
and blurred, so that what is in the smallest one ranks first. Written from the paper, with the relative activation in
place of a class score, and Adam with fewer steps in place of 800 steps of gradient descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.checks import check_choice, check_count, check_number
from protomask.engine import in_chunks
from protomask.errors import InputError, expected
from protomask.fills import FILLS, fill_images
from protomask.folding import quick
from protomask.localisers.base import Maps, Request, register, scaled, smoothed
from protomask.localisers.smoothmax import SmoothMax, area_price
from protomask.masks import blend

VARIANTS = ("preserve", "hybrid")


@register("extremal", "The masks of fixed areas that keep the activation highest, averaged over four areas; blurred.")
@dataclass(frozen=True)
class Extremal:
    """Extremal perturbations of several areas.

    Attributes:
        areas: shares of the image, one mask each.
        variant: ``"preserve"`` keeps the activation with the mask, ``"hybrid"`` also takes it away without, which costs
            a second pass per step.
        steps: optimiser steps per area.
        learning_rate: Adam's.
        start: the value of every cell before the first step.
        price: of another area, at the first step.
        growth: the price is multiplied by this in the course of all steps.
        cells: cells along the image's shorter side; the paper has 32 on 224 pixels.
        sigma: width of the smooth maximum's kernel, in cells.
        blur: sigma of the blur of the averaged masks as a share of the shorter side; 0 for none.
        fill: what is seen where the mask hides; the paper blurs.
    """

    areas: float | Sequence[float] = (0.025, 0.05, 0.1, 0.2)
    variant: str = "preserve"
    steps: int = 50
    learning_rate: float = 0.1
    start: float = 0.5
    price: float = 3.0
    growth: float = 30.0
    cells: int = 16
    sigma: float = 0.6
    blur: float = 0.04
    fill: str = "blur"

    def __post_init__(self) -> None:
        object.__setattr__(self, "areas", self.shares)
        if not self.shares or len(set(self.shares)) != len(self.shares):
            raise InputError(expected("areas", "at least one area, each once", self.areas))
        for area in self.shares:
            check_number("areas", area, 0, 1, open_low=True)
        check_choice("variant", self.variant, VARIANTS)
        check_choice("fill", self.fill, tuple(FILLS))
        check_count("steps", self.steps)
        check_number("start", self.start, 0, 1)
        for name in ("learning_rate", "price", "growth", "sigma"):
            check_number(name, getattr(self, name), 0, open_low=True)
        check_count("cells", self.cells, 2)
        check_number("blur", self.blur, 0, 1)

    @property
    def shares(self) -> tuple[float, ...]:
        """The areas, one or more."""
        return (self.areas,) if isinstance(self.areas, (int, float)) else tuple(self.areas)

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.steps * len(self.shares) * (1 + (self.variant == "hybrid")))

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W], each scaled to [0, 1]."""
        return Maps(scaled(smoothed(self.masks(request).mean(1), self.blur)), fill=self.fill)

    def masks(self, request: Request) -> Tensor:
        """[N, A, H, W] in [0, 1], one mask per area."""
        request = replace(request, model=quick(request.model, request.images))
        model, count = request.model, len(self.shares)
        fills = fill_images(self.fill, request.images, model.mean, model.std)
        height, width = (round(self.cells * length / min(request.size)) for length in request.size)
        render = SmoothMax(request.size, (height, width), self.sigma)

        def work(part: slice) -> Tensor:
            index = torch.arange(part.start, part.stop, device=request.images.device)
            return self._train(request, fills, render, index // count, index % count)

        # Under hybrid a step passes every mask twice, at once.
        batch = request.batch // (1 + (self.variant == "hybrid"))
        found = torch.cat(list(in_chunks(len(request.targets) * count, max(1, batch), work)))
        return found.view(len(request.targets), count, *request.size)

    def _train(self, request: Request, fills: Tensor, render: SmoothMax, pairs: Tensor, which: Tensor) -> Tensor:
        """[n, H, W], the masks of pairs [n] at areas [n] (indices); losses are summed, so company has no say."""
        rows, prototypes = request.targets.images[pairs], request.targets.prototypes[pairs]
        images, filled = request.images[rows], fills[rows]
        before, floors = request.before[pairs], request.floors[pairs]
        cells = images.new_full((len(pairs), *render.cells), self.start).requires_grad_()
        optimiser = torch.optim.Adam([cells], lr=self.learning_rate, betas=(0.9, 0.99))
        for step in range(self.steps):
            price = self.price * self.growth ** (step / max(1, self.steps - 1))
            with torch.enable_grad():
                masks = render(cells)
                kept = request.model.activations(blend(images, masks, filled), prototypes)
                loss = -relative_activation(kept, before, floors).clamp(max=1)
                if self.variant == "hybrid":
                    removed = request.model.activations(blend(images, 1 - masks, filled), prototypes)
                    loss = loss + relative_activation(removed, before, floors).clamp(min=0)
                for k in which.unique().tolist():
                    mine = which == k
                    loss = loss.index_add(0, mine.nonzero().squeeze(1), price * area_price(masks[mine], self.shares[k]))
                (cells.grad,) = torch.autograd.grad(loss.sum(), cells)
            optimiser.step()
            with torch.no_grad():
                cells.clamp_(0, 1)
            if request.progress is not None:
                request.progress(len(pairs) * (1 + (self.variant == "hybrid")))
        with torch.no_grad():
            return render(cells)
