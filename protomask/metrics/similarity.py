"""How alike are two maps? For randomisation tests and for the agreement of independently trained models.

N pairs of maps of H x W pixels, one score each (float64). Randomisation (Adebayo et al. 2018, "Sanity checks for
saliency maps"): the map of the trained model against that of the same model with its weights randomised; alike means
that the map does not depend on what was learned, so lower is better. Agreement: the maps of models trained from
different seeds on the same image; higher is better. Which maps are compared is decided by the driver
(:mod:`protomask.sanity`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.blur import gaussian_blur
from protomask.checks import check_choice, check_tensor
from protomask.region import is_constant

SIMILARITIES = ("rank-correlation", "ssim")


def map_similarity(a: Tensor, b: Tensor, kind: str = "rank-correlation") -> Tensor:
    """One of :data:`SIMILARITIES` of maps [N, H, W] and [N, H, W]: [N] float64."""
    check_choice("kind", kind, SIMILARITIES)
    return rank_correlation(a, b) if kind == "rank-correlation" else ssim(a, b)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of the pixels, tied pixels at their mean rank.

    Range [-1, 1]; symmetric; unchanged by strictly increasing transforms of either map. A constant map has no ranks:
    0 where one of the two is constant (nothing of the other is left in it), NaN where both are. Pitfall: two maps that
    share only their smoothness and their fall towards the border correlate: give the value of two unrelated images
    beside it, as :func:`protomask.sanity.agreement` does.

    Args:
        a: [N, H, W].
        b: [N, H, W].
    """
    check_tensor("a", a, ("N", "H", "W"))
    check_tensor("b", b, a.shape)
    ranks = [_mean_ranks(maps.flatten(1)) for maps in (a, b.to(a.device))]
    one, other = (r - r.mean(1, keepdim=True) for r in ranks)
    sizes = (one.square().sum(1) * other.square().sum(1)).sqrt()
    flat = is_constant(a), is_constant(b.to(a.device))
    found = ((one * other).sum(1) / sizes.clamp(min=1e-300)).clamp(-1, 1)
    return found.masked_fill(flat[0] | flat[1], 0).masked_fill(flat[0] & flat[1], torch.nan)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of two maps, each scaled to [0, 1] by its own minimum and maximum first.

    Source: Wang et al. 2004: Gaussian window of sigma 1.5 (11 x 11), K1 .01, K2 .03, population covariance, mirrored at
    the border. Range [-1, 1]; symmetric. NaN where both maps are constant, 0 where one is. Pitfall: it depends on the
    maps' resolution, since the window does not.

    Args:
        a: [N, H, W].
        b: [N, H, W].
    """
    check_tensor("a", a, ("N", "H", "W"))
    check_tensor("b", b, a.shape)
    one, other = _scaled(a), _scaled(b.to(a.device))
    means = _window(one), _window(other)
    spreads = _window(one * one) - means[0].square(), _window(other * other) - means[1].square()
    shared = _window(one * other) - means[0] * means[1]
    small, large = 0.01**2, 0.03**2
    above = (2 * means[0] * means[1] + small) * (2 * shared + large)
    below = (means[0].square() + means[1].square() + small) * (spreads[0] + spreads[1] + large)
    flat = is_constant(a), is_constant(b.to(a.device))
    return (above / below).mean((1, 2)).masked_fill(flat[0] | flat[1], 0).masked_fill(flat[0] & flat[1], torch.nan)


def _window(maps: Tensor) -> Tensor:
    return gaussian_blur(maps, 1.5, truncate=5 / 1.5)


def _scaled(maps: Tensor) -> Tensor:
    values = maps.double()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-300)


def _mean_ranks(values: Tensor) -> Tensor:
    """[N, M] -> [N, M] float64, ranks from 1, ties at their mean."""
    ordered, places = values.sort(1)
    size = values.shape[1]
    at = torch.arange(size, device=values.device).expand_as(places)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(new, at, 0).cummax(1).values
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = torch.where(ends, at, size).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(ordered, dtype=torch.float64).scatter_(1, places, (first + last).double() / 2 + 1)
