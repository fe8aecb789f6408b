"""Maps at any resolution: mask vectors are rendered anew, other methods' maps are resized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_count
from protomask.masks import render as render_masks
from protomask.records import Localisation
from protomask.stack import stack

_SAME = 1e-6  # maps that vectors render to, up to rounding
_CHUNK = 16  # rows at a time: a mask per scale and row is in memory


def render(found: Localisation, size: tuple[int, int]) -> Tensor:
    """The maps of a Localisation at another size: [N, H, W] in [0, 1].

    Where its maps are what its mask vectors render to, these are rendered and stacked as its settings say (``stack``, a
    product where they say nothing), with nothing lost; else, also where a map is its mask weighed by a gradient, its
    maps are resized bilinearly.

    Args:
        found: N pairs.
        size: (H, W) pixels.

    Raises:
        InputError: a side under one pixel.
    """
    height, width = (check_count("size", side) for side in size)
    if rendered_maps(found) is None:
        resized: Tensor = F.interpolate(found.maps[:, None], size=(height, width), mode="bilinear", align_corners=False)
        return resized[:, 0]
    return render_vectors(found, (height, width))


def rendered_maps(found: Localisation) -> Tensor | None:
    """The maps [N, H, W] that its mask vectors render to, where these are its maps up to rounding; else None."""
    if not found.mask_vectors:
        return None
    rendered = render_vectors(found, (found.maps.shape[1], found.maps.shape[2]))
    return rendered if torch.allclose(rendered, found.maps, rtol=0, atol=_SAME) else None


def render_vectors(found: Localisation, size: tuple[int, int]) -> Tensor:
    """[N, H, W], the stacked masks alone, of a Localisation that holds mask vectors, whatever its maps are."""
    how = str(found.settings.get("stack", "product"))
    chunks = (slice(start, start + _CHUNK) for start in range(0, len(found), _CHUNK))
    return torch.cat([_stacked(found, rows, size, how) for rows in chunks])


def _stacked(found: Localisation, rows: slice, size: tuple[int, int], how: str) -> Tensor:
    return stack(torch.stack([render_masks(v[rows], size) for v in found.mask_vectors.values()]), how)
