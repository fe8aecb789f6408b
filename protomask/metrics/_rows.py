"""What the annotation metrics share: the checks of their arguments, and the rule for rows that say nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from protomask.checks import check_tensor
from protomask.errors import InputError, expected
from protomask.metrics.truth import check_regions
from protomask.region import is_constant


def checked_regions(maps: Tensor, regions: Tensor) -> Tensor:
    """``regions`` on the maps' device, both shapes checked: [N, H, W] and [N, H, W] bool."""
    check_tensor("maps", maps, ("N", "H", "W"))
    check_regions("regions", regions, len(maps))
    if regions.shape != maps.shape:
        raise InputError(expected("regions", f"the maps' shape {list(maps.shape)}", list(regions.shape)))
    return regions.to(maps.device)


def divided(regions: Tensor) -> Tensor:
    """[N] bool: some pixels are annotated and some are not, so that inside can be told from outside."""
    flat = regions.flatten(1)
    return flat.any(1) & ~flat.all(1)


def scores(values: Tensor, maps: Tensor, defined: Tensor, constant: Tensor | float = 0) -> Tensor:
    """[N] float64: ``constant`` (a number or [N]) for constant maps, NaN where undefined."""
    chance = torch.as_tensor(constant, dtype=torch.float64, device=values.device)
    return torch.where(is_constant(maps), chance, values.double()).masked_fill(~defined, torch.nan)
