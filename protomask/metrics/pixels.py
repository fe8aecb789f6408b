"""A map as a ranking of pixels: does it rank the annotated ones first?

Like :mod:`protomask.metrics.localisation`: N maps of H x W pixels, one score each (float64), ranked by
:func:`protomask.region.rank`. NaN where the annotation is empty or the whole image. A constant map scores what chance
does: .5, and the annotation's share of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.metrics._rows import checked_regions, divided, scores
from protomask.region import order_of


def pixel_auc(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: how likely an annotated pixel ranks above one that is not.

    (sum of the annotated pixels' ranks, counted from the lowest, - n (n + 1) / 2) / (n m): Mann-Whitney's U. Source:
    the AUC of the saliency benchmarks (Judd et al. 2012). Range [0, 1]; higher is better; a random map expects .5. NaN
    where all pixels are annotated, or none. Pitfall: nearly all of it is about the ranking of background pixels, so
    maps that differ at the top hardly differ here: read it beside :func:`pixel_ap`. Ties are broken by the ranking, not
    counted half, so that a plateau counts as it is cut.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    hits = regions.flatten(1).gather(1, order_of(maps, order))
    size = hits.shape[1]
    inside = hits.sum(1).double()
    heights = torch.arange(size, 0, -1, device=maps.device, dtype=torch.float64)
    above = (hits * heights).sum(1) - inside * (inside + 1) / 2
    return scores(above / (inside * (size - inside)), maps, divided(regions), 0.5)


def pixel_ap(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """Average precision: the mean, over the annotated pixels, of the precision at the cut that just takes each in.

    Source: pixel average precision (PxAP, Choe et al. 2020), per item. Range (0, 1]; higher is better; a random map
    expects about the annotation's share of the image. NaN where all pixels are annotated, or none. Pitfall: its chance
    level is the annotation's share, so means over annotations of many sizes mix scales: compare methods on the same
    pairs only.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    hits = regions.flatten(1).gather(1, order_of(maps, order))
    found = hits.cumsum(1, dtype=torch.int32)
    taken = torch.arange(1, hits.shape[1] + 1, device=maps.device, dtype=torch.int32)
    inside = found[:, -1].double()
    precision = (found.double() / taken * hits).sum(1) / inside
    return scores(precision, maps, divided(regions), inside / hits.shape[1])
