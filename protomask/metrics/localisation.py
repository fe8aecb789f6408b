"""Maps against annotations: does the map point where the annotation is?

N maps of H x W pixels, one score each (float64). Every function is pure, and a row's score depends on that row alone.
Three rules hold throughout:

- Where a row's annotation is missing (a region that is all False, a NaN box or point) the score is NaN, and so it is
  where the annotation is the whole image, as boxes are on images that were cut to them: no map could miss it.
- A constant map says nothing (:func:`protomask.region.is_constant`: a range of at most 1e-6, since maps are in [0, 1];
  scale raw gradients first) and scores 0, never a hit, whatever the annotation.
- Pixels are ranked by :func:`protomask.region.rank`: by the map, ties by a blurred copy, then by a seeded shuffle. A
  caller who needs several scores ranks once and hands the result in as ``order``.

Metrics that depend on the ranking alone are unchanged by any strictly increasing transform of the map; ``energy`` and
``energy_floor`` are not, and ``iou_own_area`` depends on the mask's sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_number, check_tensor
from protomask.errors import InputError, expected
from protomask.metrics._ranking import first_pixels, top_count
from protomask.metrics._rows import checked_regions, divided, scores
from protomask.region import boxes_of, order_of, peaks


def pointing_game(maps: Tensor, regions: Tensor, tolerance: float = 0, *, order: Tensor | None = None) -> Tensor:
    """Whether the peak lies in the annotation: 1 where an annotated pixel is within ``tolerance`` of the peak, else 0.

    Source: Zhang et al. 2018 (Excitation Backprop). Range {0, 1}; higher is better. NaN where the region is empty or
    the whole image. Pitfalls: TorchRay's 15 pixels of tolerance hit small objects from outside, so ours is 0 unless
    stated; Quantus lets a constant map hit always, since its every pixel is the highest.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        tolerance: Euclidean pixels between pixel centres.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    check_number("tolerance", tolerance, 0)
    near = _distance(maps, peaks(maps, order=order)) <= tolerance
    return scores((regions & near).flatten(1).any(1), maps, divided(regions))


def energy(maps: Tensor, regions: Tensor) -> Tensor:
    """The energy pointing game: sum of max(map, 0) inside the annotation / sum of max(map, 0).

    Source: Wang et al. 2020 (Score-CAM). Range [0, 1]; higher is better; a random map expects the annotation's share of
    the image. NaN where the region is empty or the whole image; 0 where the map is nowhere positive. Pitfalls: negative
    values must be clipped (CaBRNet does not), and a constant floor under the map costs energy without moving its
    region: see :func:`energy_floor`.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    return scores(_share_inside(maps.double(), regions), maps, divided(regions))


def energy_floor(maps: Tensor, regions: Tensor) -> Tensor:
    """:func:`energy` of max(map - q, 0), q the map's own 80th percentile (linear interpolation, as numpy's).

    Source: ours; it forgives the floor that normalising, or blurring, puts under a map. Range [0, 1]; higher is better.
    NaN where the region is empty or the whole image; 0 where nothing exceeds q (a plateau of more than 20 % at the
    top). Pitfalls: outside the highest 20 % it forgives everything, so read it beside ``energy``; a flat map of a large
    object scores 0.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    floor = _percentile(maps.flatten(1), 80)[:, None, None]
    return scores(_share_inside(maps.double() - floor, regions), maps, divided(regions))


def iou_p95(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """IoU of the highest 5 % of the pixels with the annotation.

    Source: ProtoPNet's percentile-95 region (Chen et al. 2019). Range [0, 1]; higher is better. NaN where the region is
    empty or the whole image. Pitfall: the area is fixed, so an annotation of a share s of the image caps it at min(s,
    .05) / max(s, .05); read it beside :func:`iou_best`.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    ious = _iou_at(order_of(maps, order), regions, torch.full((len(maps),), top_count(maps.shape[1] * maps.shape[2])))
    return scores(ious, maps, divided(regions))


def iou_own_area(masks: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """IoU of the round(sum(mask)) highest pixels (at least one) with the annotation: the area is the mask's own claim.

    Source: ours. Range [0, 1]; higher is better. NaN where the region is empty or the whole image. Pitfall: only a
    mask's sum is an area; for other maps, scaled to [0, 1], the number means nothing.

    Args:
        masks: [N, H, W] in [0, 1].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(masks)`` where it is already known.

    Returns:
        [N] float64.

    Raises:
        InputError: a value outside [0, 1].
    """
    regions = checked_regions(masks, regions)
    if masks.numel() and not 0 <= float(masks.min()) <= float(masks.max()) <= 1:
        raise InputError(expected("masks", "values in [0, 1]", f"{float(masks.min())} .. {float(masks.max())}"))
    counts = masks.sum((1, 2), dtype=torch.float64).round().long().clamp(min=1)
    return scores(_iou_at(order_of(masks, order), regions, counts), masks, divided(regions))


def iou_best(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """The best IoU with the annotation over all cuts of the ranking: the k highest pixels, k = 1 .. H * W.

    Exact, by one cumulative sum, and not over a grid of thresholds. Source: the maximal box accuracy's idea (Choe et
    al. 2020), per item. Range (0, 1], at least the annotation's share of the image (the whole image is one cut); higher
    is better. NaN where the region is empty or the whole image. Pitfall: the threshold is chosen by the annotation, so
    this is an upper bound on what any fixed rule would get.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    flat = regions.flatten(1)
    inside = flat.gather(1, order_of(maps, order)).cumsum(1, dtype=torch.int32)
    sizes = torch.arange(1, flat.shape[1] + 1, device=maps.device, dtype=torch.int32)
    union = sizes + flat.sum(1, dtype=torch.int32)[:, None] - inside
    return scores((inside.double() / union).amax(1), maps, divided(regions))


def box_iou(maps: Tensor, regions: Tensor, *, order: Tensor | None = None) -> Tensor:
    """IoU of the box round the highest 5 % of the pixels with the tight box round the annotation.

    Source: ProtoPNet's high-activation box against the annotation. Range [0, 1]; higher is better. NaN where the region
    is empty or the whole image. Pitfall: one stray pixel stretches the box, so scattered maps lose more than they do on
    :func:`iou_p95`.

    Args:
        maps: [N, H, W].
        regions: [N, H, W] bool.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    regions = checked_regions(maps, regions)
    top = first_pixels(order_of(maps, order), top_count(maps.shape[1] * maps.shape[2]), (maps.shape[1], maps.shape[2]))
    return scores(_overlap(boxes_of(top).double(), boxes_of(regions).double()), maps, divided(regions))


def top5_in_box(maps: Tensor, boxes: Tensor, *, order: Tensor | None = None) -> Tensor:
    """The share of the highest 5 % of the pixels whose centres lie inside the object's box.

    Source: the relevance-inside-box ratios of quanproto, on the region in place of the map's values, so that it cannot
    be infinite. Range [0, 1]; higher is better; a random map expects the box's share of the image. NaN where the box
    is, or where it holds no pixel's centre, or all. Pitfall: any blob in the box scores 1, so show the ``centre``
    control beside it.

    Args:
        maps: [N, H, W].
        boxes: [N, 4] float, xyxy in pixels, exclusive end; NaN rows where unknown.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    check_tensor("boxes", boxes, (len(maps), 4), finite=False)
    count = top_count(maps.shape[1] * maps.shape[2])
    inside = _filled(boxes.to(maps.device), maps).flatten(1)
    share = inside.gather(1, order_of(maps, order)[:, :count]).sum(1).double() / count
    return scores(share, maps, inside.any(1) & ~inside.all(1))


def part_hit(maps: Tensor, points: Tensor, radii: Tensor, factor: float = 1, *, order: Tensor | None = None) -> Tensor:
    """Whether the peak lies within ``factor`` radii of the causally determined part: 1 or 0.

    Source: the pointing game, against the part whose in-painting drops the activation
    (:mod:`protomask.metrics.causal`). Range {0, 1}; higher is better. NaN where the point or radius is. Pitfall: the
    causal part is itself noisy; say how many pairs qualify.

    Args:
        maps: [N, H, W].
        points: [N, 2] float (x, y) pixels, counted as peaks are; NaN where no part is a clear winner.
        radii: [N] float pixels.
        factor: radii within which a peak hits.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.

    Returns:
        [N] float64.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    check_tensor("points", points, (len(maps), 2), finite=False)
    check_tensor("radii", radii, (len(maps),), finite=False)
    check_number("factor", factor, 0)
    peak = peaks(maps, order=order).double()
    away = (peak - points.to(maps.device).double()).square().sum(1).sqrt()
    reach = factor * radii.to(maps.device).double()
    return scores(away <= reach, maps, ~(away.isnan() | reach.isnan()))


def _distance(maps: Tensor, places: Tensor) -> Tensor:
    """[N, H, W] Euclidean pixels from each pixel to its map's peak."""
    _, height, width = maps.shape
    across = (torch.arange(width, device=maps.device) - places[:, :1]).double().square()
    down = (torch.arange(height, device=maps.device) - places[:, 1:]).double().square()
    return (down[:, :, None] + across[:, None, :]).sqrt()


def _share_inside(values: Tensor, regions: Tensor) -> Tensor:
    positive = values.clamp(min=0)
    total = positive.sum((1, 2))
    share = (positive * regions).sum((1, 2)) / total
    return torch.where(total > 0, share, torch.zeros_like(total))


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """[N] of [N, M], linear between order statistics; ``torch.quantile`` refuses more than 16 million values."""
    at = percentile / 100 * (values.shape[1] - 1)
    low = int(at)
    # The values from the lower neighbour up, then the two smallest of those: far cheaper than a sort.
    upper = torch.topk(values, values.shape[1] - low, dim=1, sorted=False).values
    ends = torch.topk(upper, min(2, upper.shape[1]), dim=1, largest=False).values.double()
    return ends[:, 0] + (at - low) * (ends[:, -1] - ends[:, 0])


def _iou_at(order: Tensor, regions: Tensor, counts: Tensor) -> Tensor:
    """[N] IoU of the first counts [N] pixels of each ranking with its region; 0 where both are empty."""
    counts = counts.to(order.device)
    flat = regions.flatten(1)
    chosen = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    inside = (flat.gather(1, order) & chosen).sum(1)
    return inside.double() / (counts + flat.sum(1) - inside)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of paired boxes [N, 4] xyxy, exclusive end -> [N]."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    shared = sides.prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return shared / (areas - shared)


def _filled(boxes: Tensor, maps: Tensor) -> Tensor:
    """[N, H, W] bool, the pixels whose centres lie in the box; none where the box is NaN."""
    _, height, width = maps.shape
    x, y = (torch.arange(size, device=maps.device, dtype=torch.float64) + 0.5 for size in (width, height))
    x0, y0, x1, y1 = boxes.double()[:, :, None].unbind(1)
    rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
    return rows[:, :, None] & columns[:, None, :]
