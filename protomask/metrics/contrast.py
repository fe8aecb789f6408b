"""The map inside the annotation against the map outside it, mean against mean.

Like :mod:`protomask.metrics.localisation`: N maps of H x W pixels, one score each (float64). Negative values count as
0. NaN where the annotation is empty or the whole image, since inside cannot be told from outside. A constant map scores
what chance does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_choice
from protomask.metrics._rows import checked_regions, divided, scores

MODES = ("bounded", "published")


def oirr(maps: Tensor, regions: Tensor, *, mode: str = "bounded") -> Tensor:
    """Outside-inside relevance ratio: out / (in + out), of the mean map value outside and inside the annotation.

    Source: Bach et al. 2016 (Analyzing classifiers: Fisher vectors and deep nets), who take out / in; quanproto.
    Ours is rho / (1 + rho) of their ratio rho: the same order of maps, but in [0, 1], since a ratio is infinite for a
    map that is zero inside, and its mean over pairs is then infinite, or that of a few pairs. Lower is better; .5 is
    chance, and what a constant map gets. Pitfall: a small annotation can be missed by a hair and the ratio is that of
    a random map: read it beside ``energy``.

    Published defects (``mode="published"`` has them, for comparability): quanproto averages over the *non-zero* pixels,
    so one pixel outside as bright as those inside makes the ratio 1; infinite where the map is zero inside; the guard
    against small denominators computes a result and drops it.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        mode: ``"bounded"``, or ``"published"`` for quanproto's ratio, in [0, inf], inf where the map is zero inside
            (a constant map included), 0 where it is zero outside only.

    Returns:
        [N] float64.
    """
    check_choice("mode", mode, MODES)
    regions = checked_regions(maps, regions)
    if mode == "published":
        return _published_ratio(maps, regions)
    inside, outside = _means(maps, regions)
    total = inside + outside
    share = torch.where(total > 0, outside / total, torch.full_like(total, 0.5))
    return scores(share, maps, divided(regions), 0.5)


def ior(maps: Tensor, regions: Tensor) -> Tensor:
    """Inside minus outside relevance: (mean inside - mean outside) / the map's maximum.

    Source: quanproto. Range [-1, 1]; higher is better; 0 is chance, and what a constant map gets; 1 where the map is at
    its maximum everywhere inside and 0 outside. Pitfalls: quanproto's means are over the non-zero pixels (ours over all
    pixels, else a single bright pixel stands for the whole annotation); a peaked map inside a large annotation scores
    near 0 though it points right.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    inside, outside = _means(maps, regions)
    highest = maps.double().clamp(min=0).amax((1, 2))
    difference = torch.where(highest > 0, (inside - outside) / highest, torch.zeros_like(highest))
    return scores(difference, maps, divided(regions))


def _means(maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """[N] and [N] float64, the mean of max(map, 0) inside and outside; NaN where there is no such pixel."""
    positive = maps.double().clamp(min=0)
    inside = (positive * regions).sum((1, 2))
    size = regions.flatten(1).sum(1)
    return inside / size, (positive.sum((1, 2)) - inside).clamp(min=0) / (regions[0].numel() - size)


def _published_ratio(maps: Tensor, regions: Tensor) -> Tensor:
    values = maps.double()
    means, counts = [], []
    for part in (values * regions, values * ~regions):
        count = (part != 0).flatten(1).sum(1)
        counts.append(count)
        means.append(part.sum((1, 2)) / count)
    ratio = means[1] / means[0]
    ratio = ratio.masked_fill((counts[0] > 0) & (counts[1] == 0), 0).masked_fill(counts[0] == 0, torch.inf)
    return ratio.masked_fill(~divided(regions), torch.nan)
