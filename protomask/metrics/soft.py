"""The map as a soft mask: what of the activation is left of the image seen through it?

N (image, prototype) pairs; images are held once, [B, C, H, W], and indexed by the targets. r is the relative activation
of :mod:`protomask.metrics.faithfulness`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protomask.checks import check_tensor
from protomask.metrics._passes import Progress, activations_of, check_pairs
from protomask.metrics.faithfulness import explicable, relative_activation
from protomask.model import Contract
from protomask.records import Targets
from protomask.region import is_constant

ROUNDING = 1e-4


def average_drop(relative: Tensor) -> Tensor:
    """max(0, 1 - r), r the relative activation of the image seen through its map (:func:`seen_through`).

    Source: Chattopadhay et al. 2018 (Grad-CAM++), on a prototype's activation in place of a class's probability. Range
    [0, 1], above 1 where the activation falls below its floor; lower is better. NaN where there was nothing to explain.
    Pitfalls: a map that keeps everything drops nothing, so it rewards large and blurred maps: read it beside
    ``sufficiency-drop``, whose area is fixed. pytorch-grad-cam multiplies the *normalised* image by the map, so that
    its fill is the mean colour whatever it says; ours blends with a fill that is named.

    Args:
        relative: [N], NaN where undefined.

    Returns:
        [N] float64.
    """
    check_tensor("relative", relative, ("N",), finite=False)
    return (1 - relative.double()).clamp(min=0)


def increase(relative: Tensor) -> Tensor:
    """1 where the image seen through its map is closer to the prototype than the whole, r > 1.0001, else 0.

    Source: Chattopadhay et al. 2018 (increase in confidence). Range {0, 1}; higher is better. NaN where there was
    nothing to explain (not 0: an undefined pair is no failure). Where the map keeps all that the
    network looks at, r is 1 but for rounding, which depends on the batch size: a rise of less than
    :data:`ROUNDING` is none. Pitfalls: as :func:`average_drop`; and a pair whose
    activation is already the highest possible cannot rise, so training images of a pushed prototype always score 0.

    Args:
        relative: [N], NaN where undefined.

    Returns:
        [N] float64.
    """
    check_tensor("relative", relative, ("N",), finite=False)
    return (relative > 1 + ROUNDING).double().masked_fill(relative.isnan(), torch.nan)


def seen_through(
    model: Contract,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    masks: bool,
    fill: Tensor,
    before: Tensor,
    floor: Tensor | float,
    *,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """Relative activation of ``m * x + (1 - m) * fill``; a constant map keeps nothing, since it points at nothing.

    Args:
        model: the model.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        maps: [N, H, W], at the images' size.
        masks: whether the maps are masks in [0, 1], used as they are; others are scaled by their minimum and maximum.
        fill: [B, C, H, W].
        before: [N], the activations on the whole images.
        floor: [N] or one number.
        batch: images in one network pass; one image per pair.
        progress: told of the images passed.

    Returns:
        [N] float64, NaN where ``before`` is at or below the floor.
    """
    check_pairs(model, images, targets, maps, before)
    check_tensor("fill", fill, images.shape)
    build = _blended(images, targets, _soft(maps, masks), fill)
    kept = activations_of(model, targets, explicable(before, floor), build, batch=batch, progress=progress)
    return relative_activation(kept, before, floor)


def _soft(maps: Tensor, masks: bool) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = maps if masks else (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    return scaled.masked_fill(is_constant(maps)[:, None, None], 0).clamp(0, 1)


def _blended(images: Tensor, targets: Targets, soft: Tensor, fill: Tensor) -> Callable[[Tensor], Tensor]:
    def build(rows: Tensor) -> Tensor:
        chosen = targets.images.cpu()[rows].to(images.device)
        weights = soft[rows.to(soft.device)].to(images)[:, None]
        return torch.lerp(fill.to(images)[chosen], images[chosen], weights)

    return build
