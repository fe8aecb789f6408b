"""The relative activation: what losses and scores use, since families differ in the scale of their activations."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_activation(activations: Tensor, before: Tensor, floors: Tensor) -> Tensor:
    """(a - floor) / (before - floor): 1 is as close as on the whole image, 0 is nothing.

    Args:
        activations: [N, ...].
        before: [N], the activations on the whole images.
        floors: [N], the activations of nothing.

    Returns:
        The shape and dtype of ``activations``; NaN where ``before`` is at or below the floor.
    """
    shape = (-1,) + (1,) * (activations.dim() - 1)
    span = torch.where(before > floors, before - floors, torch.nan)
    return (activations - floors.view(shape)) / span.view(shape)
