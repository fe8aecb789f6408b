"""NeuroMask: one mask that hides and reveals, tuned so that the result stays (Alzantot et al., SMARTCOMP 2019).

A coarse mask is upsampled and put to the image; its values are trained so that the model's result stays as it was, with
few pixels shown (sparsity) and without fragments (smoothness). For a prototype the result is its activation, and close
to it means close from either side: a mask that raises the activation is as wrong as one that lowers it. That is what
sets it apart from ``single-mask``, whose loss lets the activation rise and also asks that little is left without the
region. The paper classifies images; what replaces the hidden pixels and all weights are our choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from protomask.checks import check_choice, check_count, check_number
from protomask.engine import Problems, Schedule, train_masks
from protomask.fills import FILLS, fill_images
from protomask.localisers.base import Maps, Request, register
from protomask.localisers.perturbing import masked_activations
from protomask.masks import render
from protomask.objective import area, total_variation


@dataclass(frozen=True)
class CloseLoss:
    """``(1 - r)^2 + sparsity * mean(m) + smoothness * TV(v)``, r the relative activation of the masked image.

    Attributes:
        sparsity: price of the shown area.
        smoothness: price of the total variation of the vector.
    """

    sparsity: float = 1.0
    smoothness: float = 0.5
    needs_complement = False
    flat_at_one = False  # all of the steps as published

    def __post_init__(self) -> None:
        check_number("sparsity", self.sparsity, 0)
        check_number("smoothness", self.smoothness, 0)

    def __call__(self, kept: Tensor, without: Tensor, masks: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """[N] losses; see :class:`protomask.objective.Loss` for the arguments."""
        return (1 - kept) ** 2 + self.sparsity * area(masks) + self.smoothness * sum(map(total_variation, vectors))


@register("neuromask", "One mask that hides and reveals, trained to keep the activation as it is, sparse and smooth.")
@dataclass(frozen=True)
class NeuroMask:
    """NeuroMask for a prototype's activation.

    Attributes:
        scale: cells per side of the mask vector.
        steps: optimiser steps, one pass each.
        learning_rate: Adam's.
        sparsity: price of the shown area.
        smoothness: price of the vector's total variation.
        fill: what is seen where the mask hides.
    """

    scale: int = 14
    steps: int = 50
    learning_rate: float = 0.1
    sparsity: float = 1.0
    smoothness: float = 0.5
    fill: str = "blur"

    def __post_init__(self) -> None:
        check_count("scale", self.scale, 2)
        check_choice("fill", self.fill, tuple(FILLS))
        self._loss(), self._schedule()  # they check their numbers

    def _loss(self) -> CloseLoss:
        return CloseLoss(self.sparsity, self.smoothness)

    def _schedule(self) -> Schedule:
        # Rounded as MDM's are, so that rounding in the network does not grow over the steps.
        return Schedule(
            steps=self.steps,
            learning_rate=self.learning_rate,
            gradient_grain=self.sparsity / 3,
            value_grain=self.learning_rate / 8,
        )

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        return float(self.steps)

    def __call__(self, request: Request) -> Maps:
        """Masks [N, H, W] of the request's pairs."""
        model, images = request.model, request.images
        rows = request.targets.images
        fills = fill_images(self.fill, images, model.mean, model.std)
        problems = Problems(images, fills, rows, rows, request.targets.prototypes, request.before, request.floors)
        loss, schedule = self._loss(), self._schedule()
        scales, progress = (self.scale,), request.progress
        vectors = train_masks(model, problems, scales, loss, schedule, batch=request.batch, progress=progress).vectors
        masks = render(vectors[self.scale], request.size)
        return Maps(masks, masks=True, vectors=vectors, fill=self.fill, after=masked_activations(request, masks, fills))
