"""What methods that look at activations of changed images share.

Forward-only methods put the same changes (masks) to an image whatever the prototype, so one pass of a changed image
serves all prototypes that are asked of it. Axes: M masks, H, W pixels, T targets of one image, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.engine import in_chunks
from protomask.fills import fill_images
from protomask.folding import quick
from protomask.localisers.base import Request
from protomask.masks import blend

GRAIN = 128  # machine epsilons of a pair's activation that responses are rounded to: rounding in a pass breaks no tie
CHUNK = 64  # masks that are added up at once; constant, so that sums do not depend on the batch size


@dataclass(frozen=True)
class MaskSet:
    """M masks that are made when they are needed, since 600 at 224 x 224 pixels are 120 MB.

    Attributes:
        count: M.
        make: the masks of a slice, [m, H, W] in [0, 1]; 1 keeps a pixel.
    """

    count: int
    make: Callable[[slice], Tensor]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of :data:`CHUNK` with their masks, in order."""
        for start in range(0, self.count, CHUNK):
            part = slice(start, min(start + CHUNK, self.count))
            yield part, self.make(part)


@torch.no_grad()
def masked_activations(request: Request, masks: Tensor, fills: Tensor, fill_rows: Tensor | None = None) -> Tensor:
    """Activations of the pairs' images seen through masks.

    Args:
        request: whose N pairs.
        masks: [N, H, W] in [0, 1].
        fills: [F, C, H, W], what is seen where a mask is 0.
        fill_rows: [N] int64, the fill of each pair; that of the pair's image where None.

    Returns:
        [N].
    """
    rows, prototypes = request.targets.images, request.targets.prototypes
    chosen = rows if fill_rows is None else fill_rows

    def work(part: slice) -> Tensor:
        blended = blend(request.images[rows[part]], masks[part], fills[chosen[part]])
        return request.model.activations(blended, prototypes[part])

    return torch.cat(list(in_chunks(len(rows), request.batch, work)))


@torch.no_grad()
def responses(request: Request, masks: MaskSet, fill: str) -> Iterator[tuple[Tensor, Tensor]]:
    """For every image that has targets: the rows [T] of its pairs, and their activations [M, T] under the masks.

    Every masked image passes the network once, however many prototypes are asked of the image.
    """
    model = quick(request.model, request.images)
    for image in request.targets.images.unique().tolist():
        rows = (request.targets.images == image).nonzero().squeeze(1)
        prototypes = request.targets.prototypes[rows]
        own = request.images[image : image + 1]
        filled = fill_images(fill, own, model.mean, model.std)

        def work(part: slice, own: Tensor = own, filled: Tensor = filled, chosen: Tensor = prototypes) -> Tensor:
            kept = masks.make(part)
            blended = blend(own.expand(len(kept), -1, -1, -1), kept, filled.expand(len(kept), -1, -1, -1))
            if request.progress is not None:
                request.progress(len(kept))
            return model.activations(blended)[:, chosen]

        values = torch.cat(list(in_chunks(masks.count, request.batch, work)))
        grain = grains(request)[rows].to(values)
        yield rows, (values / grain).round() * grain


def grains(request: Request) -> Tensor:
    """[N], what responses are rounded to: a change of an activation by no more than this says nothing."""
    reach = (request.before - request.floors).abs().clamp(min=1e-12)
    return GRAIN * torch.finfo(reach.dtype).eps * reach
