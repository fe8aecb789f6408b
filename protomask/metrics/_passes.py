"""Forward passes over changed images, one per pair, in batches; and draws that depend on the pair alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from protomask.checks import check_count, check_tensor
from protomask.draws import content_of, generator_of
from protomask.model import Contract, check_images, device_of, untouched
from protomask.records import Targets

Progress = Callable[[int], object]


def activations_of(
    model: Contract,
    targets: Targets,
    rows: Tensor,
    build: Callable[[Tensor], Tensor],
    *,
    batch: int,
    progress: Progress | None = None,
) -> Tensor:
    """Each pair's activation on the image that ``build`` makes for it.

    Args:
        model: the model.
        targets: N pairs.
        rows: [n] int64, the pairs that are passed.
        build: some of the rows [J] -> their images [J, C, H, W].
        batch: images in one network pass.
        progress: told of the images passed.

    Returns:
        [N] float64 on the CPU, NaN outside ``rows``.
    """
    check_count("batch", batch)
    found = torch.full((len(targets),), torch.nan, dtype=torch.float64)
    if len(rows) == 0:
        return found
    device = device_of(model)
    with torch.no_grad(), untouched(model.module):
        for part in torch.split(rows.cpu(), batch):
            prototypes = targets.prototypes.cpu()[part].to(device)
            found[part] = model.activations(build(part).to(device), prototypes).double().cpu()
            if progress is not None:
                progress(len(part))
    return found


def check_pairs(model: Contract, images: Tensor, targets: Targets, maps: Tensor, before: Tensor) -> None:
    """InputError unless images [B, C, H, W], maps [N, H, W] of their size and before [N] belong together."""
    check_images(model, images)
    check_tensor("maps", maps, (len(targets), images.shape[-2], images.shape[-1]))
    check_tensor("before", before, (len(targets),))


def pair_generator(image: Tensor, prototype: int, seed: int, purpose: str) -> torch.Generator:
    """A generator seeded by an image's content, its prototype and the seed: the pair draws alike in any company."""
    return generator_of(purpose, seed, content_of(image), prototype)
