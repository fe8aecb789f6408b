"""A map's region against the annotation: precision, sensitivity, Dice, at three kinds of cut.

Like :mod:`protomask.metrics.localisation`: N maps of H x W pixels, one score each (float64), a row's score depends on
that row alone; NaN where nothing is annotated, or the whole image; a constant map scores 0.

Three cuts, since no one of them is fair to every method: the highest 5 % of the pixels
(:func:`activation_precision`), as many pixels as are annotated (:func:`relevance`), and the middle of the map's own
range (:func:`dice`, :func:`ppv`, :func:`sensitivity`), whose area is what the map claims.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.metrics._ranking import top_count
from protomask.metrics._rows import checked_regions, divided, scores
from protomask.region import order_of


def activation_precision(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """The share of the highest 5 % of the pixels that lies inside the annotation: |top 5 % and A| / |top 5 %|.

    Source: activation precision of IAIA-BL (Barnett et al. 2021) and MProtoNet (Wei et al. 2023). Range [0, 1]; higher
    is better; a random map expects the annotation's share of the image. NaN where the region is empty or the whole
    image. Pitfalls: an annotation of less than 5 % of the image cannot reach 1; code that keeps every pixel at or above
    the percentile's value keeps the whole of a map that is zero in most places (ours keeps 5 % always).

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    count = top_count(maps.shape[1] * maps.shape[2])
    inside = regions.flatten(1).gather(1, order_of(maps, order)[:, :count]).sum(1).double()
    return scores(inside / count, maps, divided(regions))


def relevance(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """Relevance rank accuracy: of the |A| highest pixels, the share inside the annotation A.

    Source: Arras et al. 2022 (CLEVR-XAI); Quantus' RelevanceRankAccuracy; CaBRNet's mask relevance (Xu-Darme et al.
    2023) with the annotation's own area in place of a fixed one, so that the annotation can always reach 1. Range [0,
    1]; higher is better; a random map expects the annotation's share of the image. NaN where the region is empty or the
    whole image. Pitfalls: CaBRNet keeps the pixels *above* a value, so a map with a plateau at the top keeps none and
    scores 0; beyond the top it forgives nothing, so read it beside ``energy``.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    flat = regions.flatten(1)
    size = flat.sum(1)
    chosen = torch.arange(flat.shape[1], device=maps.device) < size[:, None]
    inside = (flat.gather(1, order_of(maps, order)) & chosen).sum(1).double()
    return scores(inside / size, maps, divided(regions))


def dice(maps: Tensor, regions: Tensor) -> Tensor:
    """2 |R and A| / (|R| + |A|), R the pixels at or above the middle of the map's own range.

    Source: Dice 1945; the MDM authors score their masks by it. Range [0, 1]; higher is better; equals 2 IoU / (1 + IoU)
    of the same region. NaN where the region is empty or the whole image. Pitfall: half of the range is a convention for
    maps that are no masks; their area is not their claim, so compare them on ``iou-best`` as well.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    both, claimed, true, regions = _half_maximum(maps, regions)
    return scores(2 * both / (claimed + true), maps, divided(regions))


def ppv(maps: Tensor, regions: Tensor) -> Tensor:
    """Positive predictive value |R and A| / |R|, R the pixels at or above the middle of the map's own range.

    Source: the MDM authors' evaluation; precision elsewhere. Range [0, 1]; higher is better. NaN where the region is
    empty or the whole image. Pitfall: one bright pixel inside scores 1: read it beside :func:`sensitivity`.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    both, claimed, _, regions = _half_maximum(maps, regions)
    return scores(both / claimed, maps, divided(regions))


def sensitivity(maps: Tensor, regions: Tensor) -> Tensor:
    """|R and A| / |A|, R the pixels at or above the middle of the map's own range.

    Source: the MDM authors' evaluation; recall elsewhere. Range [0, 1]; higher is better. NaN where the region is empty
    or the whole image. Pitfall: a map that is high everywhere but in one pixel scores near 1: read it beside
    :func:`ppv`.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    both, _, true, regions = _half_maximum(maps, regions)
    return scores(both / true, maps, divided(regions))


def _half_maximum(maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels in both, claimed and annotated, [N] float64 each, and the regions on the maps' device."""
    regions = checked_regions(maps, regions)
    values = maps.double()
    middle = (values.amin((1, 2), keepdim=True) + values.amax((1, 2), keepdim=True)) / 2
    claimed = values >= middle
    counts = [pixels.flatten(1).sum(1).double() for pixels in (claimed & regions, claimed, regions)]
    return counts[0], counts[1], counts[2], regions
