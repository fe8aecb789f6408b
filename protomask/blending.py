"""What a mask keeps of an image and what it removes, in one tensor, with a gradient written by hand.

Networks want channels-last, in which a mask that is shared by the three channels of a pixel is slow to apply and slower
to differentiate: torch's own gradient of ``lerp`` costs as much as a small network's first layers. Here both are done
channel by channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blend_sides(images: Tensor, fills: Tensor, masks: Tensor, *, complement: bool) -> Tensor:
    """``m * x + (1 - m) * b`` in channels-last, below it ``(1 - m) * x + m * b`` if asked; differentiable in the masks.

    Args:
        images: [N, C, H, W], contiguous.
        fills: [N, C, H, W], contiguous.
        masks: [N, H, W].
        complement: whether to give what the masks remove as well.

    Returns:
        [N, C, H, W], or [2 N, C, H, W] with the complements below.
    """
    blended: Tensor = _Blend.apply(images, fills, masks, complement)
    return blended


class _Blend(torch.autograd.Function):
    """:func:`blend_sides`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, fills: Tensor, masks: Tensor, complement: bool) -> Tensor:
        ctx.save_for_backward(images, fills)
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

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None]:
        images, fills = ctx.saved_tensors
        count = len(images)
        if len(gradient) > count:
            gradient = gradient[:count] - gradient[count:]
        found = gradient[:, 0] * (images[:, 0] - fills[:, 0])
        for channel in range(1, images.shape[1]):
            found.addcmul_(gradient[:, channel], images[:, channel] - fills[:, channel])
        return None, None, found, None
