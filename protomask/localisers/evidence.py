"""Gradient evidence: how a map is weighed by the mean gradient over noisy copies of the image.

A mask says which pixels together hold the activation; many of them are there because a cell is large, or because some
small set of pixels had to be kept. A gradient averaged over noise (Smilkov et al. 2017, SmoothGrad) says which pixels
the activation answers to, in every place at once, and scatters. The two err for different reasons, so that what both
mark is evidence: their product finds parts better than either does, on planted scenes and on birds.

Axes: N pairs, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protomask.engine import in_chunks
from protomask.folding import quick
from protomask.localisers.attribution import BLUR, ranges, without_rounding
from protomask.localisers.base import Request, scaled, smoothed
from protomask.model import Contract

NOISE = 0.1
"""Standard deviation of the noise, a share of each image's own range of values."""

TAIL = 1e-6
"""What the evidence alone adds to a weighed map, whose maximum is 1. A mask is zero over most of the image and ranks
nothing there; the evidence does. Too little to move region, energy or peak, it brings insertion .86 -> .88 and
.76 -> .77 on planted development scenes; .001 would bring .89 and .78, at .05 of box IoU."""


def weighed(maps: Tensor, evidence: Tensor, power: float) -> Tensor:
    """``w + TAIL x evidence x (1 - w)``, where w is ``maps x evidence^power`` over its maximum.

    A map stays as it came, divided by its maximum, where the gradient explains nothing, and empty where it is empty.

    Args:
        maps: [N, H, W] in [0, 1].
        evidence: [N, H, W] in [0, 1], of :func:`gradient_evidence`.
        power: 2 and not 1, so that the ranking leans on the gradient within the mask; 3 costs hits.

    Returns:
        [N, H, W] in [0, 1].
    """
    known = evidence.amax((1, 2), keepdim=True) > 0
    product = torch.where(known, maps * evidence**power, maps)
    highest = product.amax((1, 2), keepdim=True)
    product = product / highest.clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.where(highest > 0, product + TAIL * evidence * (1 - product), product)


def gradient_evidence(request: Request, samples: int) -> Tensor:
    """\\|mean gradient x input\\|, summed over channels before the size is taken, blurred, scaled to [0, 1].

    Returns:
        [N, H, W]; zeros where it explains no more of the activation than rounding does.
    """
    own = request.images[request.targets.images]
    products = (mean_gradients(request, samples) * own).sum(1).abs()
    return scaled(smoothed(without_rounding(request, products, products.sum((1, 2))), BLUR))


def warm_masks(evidence: Tensor, cold: float) -> Tensor:
    """Masks to begin with: .5 where the evidence [N, H, W] is lowest, 1 where it is highest, by its ranks in between.

    Half is as low as is safe: lower masks lie in a flat region outside the data.

    Args:
        evidence: [N, H, W] in [0, 1].
        cold: the value of all pixels where there is no evidence.

    Returns:
        [N, H, W] in [.5, 1].
    """
    flat = evidence.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1).to(flat) / max(1, flat.shape[1] - 1)
    known = flat.amax(1, keepdim=True) > 0
    return torch.where(known, 0.5 + 0.5 * ranks, cold).view_as(evidence)


def plain_gradient(model: Contract, images: Tensor, prototypes: Tensor) -> Tensor:
    """[n, C, H, W], the gradient of the prototypes' activations [n] with respect to images that ask for it."""
    (found,) = torch.autograd.grad(model.activations(images, prototypes).sum(), images)
    return found


def mean_gradients(
    request: Request,
    samples: int,
    noise: float = NOISE,
    gradient: Callable[[Contract, Tensor, Tensor], Tensor] = plain_gradient,
) -> Tensor:
    """[N, C, H, W], the activations' gradient, mean over noisy copies; (pair, copy) rows fill the passes.

    The noise depends on the seed and the image's shape alone: every pair sees the same, in any company.

    Args:
        request: whose N pairs.
        samples: noisy copies, a forward + input-gradient pass each.
        noise: its standard deviation, a share of each image's own range of values.
        gradient: as :func:`plain_gradient`, of some rows.
    """
    model = quick(request.model, request.images)
    rows, prototypes = request.targets.images, request.targets.prototypes
    generator = torch.Generator().manual_seed(request.seed)
    shape = (samples, *request.images.shape[1:])
    draws = torch.randn(shape, generator=generator, dtype=torch.float64).to(request.images)
    spread = (noise * ranges(request.images)).view(-1, 1, 1, 1)
    total = torch.zeros_like(request.images[rows])

    def work(part: slice) -> None:
        index = torch.arange(part.start, part.stop, device=rows.device)
        pairs, copies = index // samples, index % samples
        images = (request.images[rows[pairs]] + spread[rows[pairs]] * draws[copies]).requires_grad_()
        with torch.enable_grad():
            found = gradient(model, images, prototypes[pairs]).detach()
        # One by one and in order: a sum over the chunk would round by where chunks begin.
        for pair, own in zip(pairs.tolist(), found, strict=True):
            total[pair] += own
        if request.progress is not None:
            request.progress(len(pairs))

    for _ in in_chunks(len(rows) * samples, request.batch, work):
        pass
    return total / samples
