"""What a mask keeps of an image and what it removes, in one tensor, and what an activation says to each pixel's share.

Networks want channels-last, in which a mask that is shared by the three channels of a pixel is slow to apply and slower
to differentiate: torch's own gradient of ``lerp`` costs as much as a small network's first layers. Here both are done
channel by channel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def blend_sides(images: Tensor, fills: Tensor, masks: Tensor, *, complement: bool) -> Tensor:
    """``m * x + (1 - m) * b`` in channels-last, below it ``(1 - m) * x + m * b`` if asked; no gradient.

    Args:
        images: [N, C, H, W], contiguous.
        fills: [N, C, H, W], contiguous.
        masks: [N, H, W].
        complement: whether to give what the masks remove as well.

    Returns:
        [N, C, H, W], or [2 N, C, H, W] with the complements below.
    """
    with torch.no_grad():
        kept = torch.lerp(fills, images, masks[:, None])
        count = len(images)
        out = torch.empty(
            (count * (1 + complement), *images.shape[1:]),
            dtype=images.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        out[:count] = kept
        if complement:
            torch.sub(images + fills, kept, out=out[count:])
        return out


def shares_of(gradient: Tensor, images: Tensor, fills: Tensor) -> Tensor:
    """``sum over channels of gradient x (x - b)``: how an activation answers to the share of x at each pixel.

    It is the derivative with respect to a mask of what the mask keeps, and minus that of what the mask removes.

    Args:
        gradient: [N, C, H, W], the activations' with respect to blends of x and b.
        images: [N, C, H, W], x.
        fills: [N, C, H, W], b.

    Returns:
        [N, H, W].
    """
    found = gradient[:, 0] * (images[:, 0] - fills[:, 0])
    for channel in range(1, images.shape[1]):
        found.addcmul_(gradient[:, channel], images[:, channel] - fills[:, channel])
    return found
