"""What gradient methods share: Captum, a model that it can call, and maps from per-channel attributions.

Axes: N pairs, C channels, H, W pixels. Captum is an optional package: ``pip install '.[captum]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.checks import check_number
from protomask.engine import in_chunks
from protomask.localisers.base import Maps, Request, scaled, smoothed
from protomask.localisers.optional import check_installed
from protomask.model import Contract

BLUR = 0.04
"""Sigma of the blur, a share of the shorter side: 9 pixels at 224. The raw gradient of a network with strides is a
checkerboard, whose peak says little."""

ROUNDING = 1e-4
"""A gradient that explains a smaller share of the activation is rounding, and differs from batch size to batch size."""


@dataclass(frozen=True)
class Gradients:
    """What every gradient method is told.

    Attributes:
        blur: sigma of the Gaussian blur of the map as a share of the image's shorter side; 0 leaves the map as the
            method's paper has it.
    """

    blur: float = BLUR

    def __post_init__(self) -> None:
        check_installed("captum", "captum")
        check_number("blur", self.blur, 0, 1)

    def _maps(self, request: Request, values: Tensor, explained: Tensor, fill: str = "") -> Maps:
        """Values [N, H, W] >= 0, blurred and scaled to [0, 1]; empty where they explain [N] no more than rounding."""
        return Maps(explained_maps(request, values, explained, self.blur), fill=fill)


def ranges(images: Tensor) -> Tensor:
    """[B], the range of each image's values: [B, C, H, W] -> [B]."""
    flat = images.flatten(1)
    return flat.amax(1) - flat.amin(1)


def without_rounding(request: Request, values: Tensor, explained: Tensor) -> Tensor:
    """Values [N, ...], zero for pairs of whose activation they explain less than :data:`ROUNDING`.

    Args:
        request: whose pairs.
        values: [N, ...].
        explained: [N], the size of the change of activation that they add up to.
    """
    enough = explained.abs() >= ROUNDING * (request.before - request.floors)
    return torch.where(enough.view(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values))


def explained_maps(request: Request, values: Tensor, explained: Tensor, blur: float) -> Tensor:
    """Values [N, H, W] >= 0, blurred by ``blur`` of the shorter side and scaled to [0, 1]; empty where they explain [N]
    no more than rounding does."""
    return scaled(smoothed(without_rounding(request, values, explained), blur))


def activation_of(model: Contract) -> Callable[[Tensor, Tensor], Tensor]:
    """``f(images [N, C, H, W], prototypes [N]) -> [N]``, as Captum calls a model: its outputs are the scalars."""

    def activation(images: Tensor, prototypes: Tensor) -> Tensor:
        return model.activations(images, prototypes)

    return activation


def over_pairs(request: Request, batch: int, passes: float, work: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``work(images, prototypes)`` over all pairs: the images [n, C, H, W] of at most ``batch`` pairs need gradients.

    Args:
        request: whose pairs.
        batch: pairs at once.
        passes: per pair, for the progress bar.
        work: gives one row per pair.

    Returns:
        The rows of all N pairs.
    """
    rows, prototypes = request.targets.images, request.targets.prototypes

    def attribute(part: slice) -> Tensor:
        images = request.images[rows[part]].detach().clone().requires_grad_()
        with torch.enable_grad():
            found = work(images, prototypes[part]).detach()
        if request.progress is not None:
            request.progress(round(passes * len(images)))
        return found

    return torch.cat(list(in_chunks(len(rows), max(1, batch), attribute)))
