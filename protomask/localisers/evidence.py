"""Evidence: what the gradient says of each pixel, and how a map is weighed by it.

A mask says which pixels together hold the activation; many of them are there because a cell is large, or because some
small set of pixels had to be kept. Gradients say which pixels the activation answers to, in every place at once, and
scatter. The two err for different reasons, so that what both mark is evidence: their product finds parts better than
either does, on planted scenes and on birds.

Three such readings are joined, as they err differently in turn: the gradient's mean over noisy copies times the image
(Smilkov et al. 2017, SmoothGrad); its integral on the straight way from a blank image to this one (Sundararajan, Taly,
Yan 2017, integrated gradients); and its sum over the passes that trained the mask, which is known anyway
(:attr:`protomask.engine.Trained.slopes`).

Axes: N pairs, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from protomask.engine import in_chunks
from protomask.errors import InputError, expected
from protomask.fills import fill_images
from protomask.folding import quick
from protomask.localisers.attribution import BLUR, explained_maps, ranges
from protomask.localisers.base import Request, scaled
from protomask.model import Contract

NOISE = 0.1
"""Standard deviation of the noise, a share of each image's own range of values."""

BLANK = "image-mean"
"""Where the straight way begins: a fill that no scores are made with, and no mask is trained with unless blur leaks."""

TAIL = 1e-6
"""What the evidence alone adds to a weighed map, whose maximum is 1. A mask is zero over most of the image and ranks
nothing there; the evidence does. Too little to move region, energy or peak, it brings insertion .86 -> .88 and
.76 -> .77 on planted development scenes; .001 would bring .89 and .78, at .05 of box IoU."""

Gradient = Callable[[Contract, Tensor, Tensor], Tensor]
"""Of some rows: (model, images [n, C, H, W] that ask for gradients, prototypes [n]) -> [n, C, H, W]."""


def weighed(maps: Tensor, evidence: Tensor, power: float, mask_power: float = 1.0) -> Tensor:
    """``w + TAIL x evidence x (1 - w)``, where w is ``maps^mask_power x evidence^power`` over its maximum.

    A map keeps its ranking, divided by its maximum, where the evidence is silent, and stays empty where it is empty.

    Args:
        maps: [N, H, W] in [0, 1].
        evidence: [N, H, W] in [0, 1].
        power: 2 and not 1, so that the ranking leans on the evidence within the mask; 3 costs hits.
        mask_power: of the mask.

    Returns:
        [N, H, W] in [0, 1].
    """
    known = evidence.amax((1, 2), keepdim=True) > 0
    maps = maps if mask_power == 1 else maps**mask_power
    product = torch.where(known, maps * evidence**power, maps)
    highest = product.amax((1, 2), keepdim=True)
    product = product / highest.clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.where(highest > 0, product + TAIL * evidence * (1 - product), product)


def evidence_of(request: Request, products: Tensor, blur: float = BLUR) -> Tensor:
    """The size of signed products, blurred, scaled to [0, 1].

    Args:
        request: whose N pairs.
        products: [N, H, W], what each pixel adds to the activation, in its units.
        blur: sigma, a share of the shorter side.

    Returns:
        [N, H, W]; zeros where they explain no more of the activation than rounding does.
    """
    sizes = products.abs()
    return explained_maps(request, sizes, sizes.sum((1, 2)), blur)


def joined(readings: Sequence[Tensor]) -> Tensor:
    """The geometric mean of readings [N, H, W] in [0, 1], scaled to [0, 1]; who is silent on a pair has no say in it.

    Raises:
        InputError: there are none.
    """
    if not readings:
        raise InputError(expected("readings", "at least one", "none"))
    stacked = torch.stack(tuple(readings))
    known = stacked.amax((2, 3), keepdim=True) > 0
    count = known.sum(0)
    product = torch.where(known, stacked, torch.ones_like(stacked)).prod(0)
    # In the readings' own dtype: a quotient of integers has the default one.
    power = 1 / count.clamp(min=1).to(product)
    return scaled(torch.where(count > 0, product**power, torch.zeros_like(product)))


def noisy_products(request: Request, samples: int) -> Tensor:
    """[N, H, W], the mean gradient over noisy copies times the image, summed over channels."""
    return (mean_gradients(request, samples) * request.images[request.targets.images]).sum(1)


def path_products(request: Request, points: int) -> Tensor:
    """[N, H, W], integrated gradients from :data:`BLANK` to the image, by Gauss and Legendre, summed over channels."""
    model, rows = request.model, request.targets.images
    blank = fill_images(BLANK, request.images, model.mean, model.std)
    nodes, weights = np.polynomial.legendre.leggauss(points)
    place, weight = (torch.from_numpy(v).to(request.images) for v in ((nodes + 1) / 2, weights / 2))

    def copy(pairs: Tensor, copies: Tensor) -> Tensor:
        own = rows[pairs]
        return torch.lerp(blank[own], request.images[own], place[copies][:, None, None, None])

    return (summed_gradients(request, weight, copy) * (request.images - blank)[rows]).sum(1)


def plain_gradient(model: Contract, images: Tensor, prototypes: Tensor) -> Tensor:
    """[n, C, H, W], the gradient of the prototypes' activations [n] with respect to images that ask for it."""
    (found,) = torch.autograd.grad(model.activations(images, prototypes).sum(), images)
    return found


def mean_gradients(request: Request, samples: int, noise: float = NOISE, gradient: Gradient = plain_gradient) -> Tensor:
    """[N, C, H, W], the activations' gradient, mean over noisy copies.

    The noise depends on the seed and the image's shape alone: every pair sees the same, in any company.

    Args:
        request: whose N pairs.
        samples: noisy copies, a forward + input-gradient pass each.
        noise: its standard deviation, a share of each image's own range of values.
        gradient: of some rows.
    """
    rows = request.targets.images
    generator = torch.Generator().manual_seed(request.seed)
    shape = (samples, *request.images.shape[1:])
    draws = torch.randn(shape, generator=generator, dtype=torch.float64).to(request.images)
    spread = (noise * ranges(request.images)).view(-1, 1, 1, 1)

    def copy(pairs: Tensor, copies: Tensor) -> Tensor:
        return request.images[rows[pairs]] + spread[rows[pairs]] * draws[copies]

    return summed_gradients(request, request.images.new_ones(samples), copy, gradient) / samples


def summed_gradients(
    request: Request, weights: Tensor, copy: Callable[[Tensor, Tensor], Tensor], gradient: Gradient = plain_gradient
) -> Tensor:
    """[N, C, H, W], the activations' gradients at K copies of each image, weighed and added; rows fill the passes.

    Args:
        request: whose N pairs.
        weights: [K].
        copy: (pairs [n], copies [n]) -> images [n, C, H, W].
        gradient: of some rows.
    """
    model, prototypes = quick(request.model, request.images), request.targets.prototypes
    total = torch.zeros_like(request.images[request.targets.images])
    count = len(weights)

    def work(part: slice) -> None:
        index = torch.arange(part.start, part.stop, device=prototypes.device)
        pairs, copies = index // count, index % count
        images = copy(pairs, copies).requires_grad_()
        with torch.enable_grad():
            found = gradient(model, images, prototypes[pairs]).detach()
        # One by one and in order: a sum over the chunk would round by where chunks begin.
        for pair, weight, own in zip(pairs.tolist(), weights[copies], found, strict=True):
            total[pair] += weight * own
        if request.progress is not None:
            request.progress(len(pairs))

    for _ in in_chunks(len(prototypes) * count, request.batch, work):
        pass
    return total
