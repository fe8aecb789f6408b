"""Maps at any resolution: mask vectors are rendered anew, other methods' maps are resized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_count
from protomask.masks import render as render_masks
from protomask.records import Localisation
from protomask.stack import stack

_CHUNK = 16  # rows at a time: a mask per scale and row is in memory


def render(found: Localisation, size: tuple[int, int]) -> Tensor:
    """The maps of a Localisation at another size: [N, H, W] in [0, 1].

    Where it holds mask vectors they are rendered and stacked as its settings say (``stack``, a product where they say
    nothing), with nothing lost; else its maps are resized bilinearly.

    Args:
        found: N pairs.
        size: (H, W) pixels.

    Raises:
        InputError: a side under one pixel.
    """
    height, width = (check_count("size", side) for side in size)
    if not found.mask_vectors:
        resized: Tensor = F.interpolate(found.maps[:, None], size=(height, width), mode="bilinear", align_corners=False)
        return resized[:, 0]
    how = str(found.settings.get("stack", "product"))
    chunks = (slice(start, start + _CHUNK) for start in range(0, len(found), _CHUNK))
    return torch.cat([_stacked(found, rows, (height, width), how) for rows in chunks])


def _stacked(found: Localisation, rows: slice, size: tuple[int, int], how: str) -> Tensor:
    return stack(torch.stack([render_masks(v[rows], size) for v in found.mask_vectors.values()]), how)
