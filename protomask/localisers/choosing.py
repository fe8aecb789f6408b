"""Choosing among maps of one pair by what they do to the activation, under the fill that its mask was trained with.

Axes: N pairs, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.localisers.base import Request
from protomask.localisers.perturbing import masked_activations
from protomask.region import top_pixels

SHARES = (0.025, 0.05, 0.1)
"""Of the image's pixels; where scores ask for a region of 5 %, and to either side."""

MARGIN = 0.1
"""What another map must be ahead of the first by. Without it planted scenes, where all keep as much, draw lots. With it
birds' sufficiency drop falls by .06 under the mean colour, their insertion rises by .005; box IoU on planted XProtoNets
falls by .014."""

GRAIN = 1e-4
"""To which what a map is worth is rounded: rounding within a pass decides nothing."""


def passes_of(maps: int) -> float:
    """Of choosing among so many maps, in forward + input-gradient passes; a forward pass alone is a third."""
    return maps * len(SHARES) * 2 / 3


def chosen(request: Request, candidates: Sequence[Tensor], fills: Tensor, fill_rows: Tensor) -> Tensor:
    """The best of several maps for each pair: the first, unless another is worth :data:`MARGIN` more.

    A map is worth the relative activation that its highest pixels keep on the fill, less what is left without them,
    mean over :data:`SHARES`.

    Args:
        request: whose N pairs.
        candidates: maps [N, H, W] each.
        fills: [F, C, H, W].
        fill_rows: [N] int64, the fill of each pair.

    Returns:
        [N, H, W].
    """
    worth = torch.stack([_worth(request, maps, fills, fill_rows) for maps in candidates])
    worth[0] += MARGIN
    best = (worth / GRAIN).round().argmax(0)
    return torch.stack(tuple(candidates))[best, torch.arange(len(best), device=best.device)]


def _worth(request: Request, maps: Tensor, fills: Tensor, fill_rows: Tensor) -> Tensor:
    # Not rank(): it blurs every map to break ties, of which a map weighed by evidence has none that matter here.
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    total = torch.zeros_like(request.before)
    for share in SHARES:
        count = max(1, round(share * order.shape[1]))
        top = top_pixels(maps, count, order=order).to(maps)
        for mask, sign in ((top, 1), (1 - top, -1)):
            kept = masked_activations(request, mask, fills, fill_rows)
            total += sign * relative_activation(kept, request.before, request.floors) / len(SHARES)
    if request.progress is not None:
        request.progress(round(len(maps) * passes_of(1)))
    return total
