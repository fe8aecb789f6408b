"""Local perturbation: does the prototype mind when its region, and only that, is disturbed?

The region is the highest 5 % of the map's pixels, so that no map gains by claiming more. It is blurred, recoloured or
noised; the rest of the image stays. N (image, prototype) pairs; images are held once, [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from protomask.checks import check_choice, check_number
from protomask.errors import InputError, expected
from protomask.fills import fill_images
from protomask.metrics._passes import Progress, activations_of, check_pairs, pair_generator
from protomask.metrics._ranking import first_pixels, top_count
from protomask.metrics.faithfulness import explicable, relative_activation
from protomask.model import Contract
from protomask.records import Targets
from protomask.region import order_of

NOISE = 0.2
PERTURBATIONS = ("blur", "recolour", "noise")


def local_perturbation(
    model: Contract,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    before: Tensor,
    floor: Tensor | float,
    *,
    order: Tensor | None = None,
    kinds: Collection[str] = PERTURBATIONS,
    noise: float = NOISE,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """1 - r where the highest 5 % of the pixels are perturbed: the relative activation that goes with them.

    Source: CaBRNet's local perturbation analysis (Xu-Darme et al. 2023). ``local-perturbation`` is the mean over the
    kinds asked for, each of which is given as well. Range: at most 1 where r is not negative, 0 where the prototype
    does not mind, negative where the activation rose; higher is better. NaN where ``before`` is at or below the floor.

    Published defect: CaBRNet reads the similarity at the cell that was the highest *before*, so it sees a drop where
    the best match has only moved on; ours pools again, as the model does. Its region is the map as a soft mask, so
    that a broader map perturbs more; ours has a fixed area.

    Pitfalls: a part of middle grey keeps its colour; a perturbed region is an edge of its
    own; read it beside ``deletion-30``. A constant map has no region: a random one is perturbed.

    Args:
        model: the model; its ``mean`` and ``std`` say what the colours are.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        maps: [N, H, W], at the images' size.
        before: [N], the activations on the whole images.
        floor: [N] or one number.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.
        kinds: out of ``"blur"`` (Gaussian, sigma = shorter side / 10), ``"recolour"`` (red, green, blue become the
            opposites of green, blue, red; grey images are inverted) and ``"noise"``.
        noise: standard deviation of the noise, as a share of the range of colours; the result stays a valid colour.
        seed: of the noise, which depends on it and on the pair alone.
        batch: images in one network pass; one per pair and kind.
        progress: told of the images passed.

    Returns:
        ``local-perturbation-KIND`` for each kind, and their mean ``local-perturbation``: [N] float64 each.

    Raises:
        InputError: no kind, or an unknown one; maps and images of different sizes.
    """
    check_pairs(model, images, targets, maps, before)
    check_number("noise", noise, 0)
    if not kinds:
        raise InputError(expected("kinds", "at least one of " + ", ".join(PERTURBATIONS), "none"))
    for kind in kinds:
        check_choice("kinds", kind, PERTURBATIONS)
    size = (images.shape[-2], images.shape[-1])
    regions = first_pixels(order_of(maps, order), top_count(size[0] * size[1]), size)
    rows = explicable(before, floor)
    drops = {}
    for kind in (k for k in PERTURBATIONS if k in kinds):
        change = _change(kind, model, images, targets, noise, seed)
        after = activations_of(
            model, targets, rows, _within(images, targets, regions, change), batch=batch, progress=progress
        )
        drops[f"local-perturbation-{kind}"] = 1 - relative_activation(after, before, floor)
    return {"local-perturbation": torch.stack(list(drops.values())).mean(0), **drops}


Change = Callable[[Tensor, Tensor], Tensor]
"""Rows [J] of the pairs and their whole images [J, C, H, W] -> the images changed everywhere."""


def _within(images: Tensor, targets: Targets, regions: Tensor, change: Change) -> Callable[[Tensor], Tensor]:
    def build(rows: Tensor) -> Tensor:
        whole = images[targets.images.cpu()[rows].to(images.device)]
        inside = regions[rows.to(regions.device)].to(images.device)[:, None]
        return torch.where(inside, change(rows, whole), whole)

    return build


def _change(kind: str, model: Contract, images: Tensor, targets: Targets, noise: float, seed: int) -> Change:
    mean, std = (_channels(values, images) for values in (model.mean, model.std))

    def blur(rows: Tensor, whole: Tensor) -> Tensor:
        return fill_images("blur", whole, model.mean, model.std)

    def recolour(rows: Tensor, whole: Tensor) -> Tensor:
        colours = whole * std + mean
        return (1 - colours.roll(-1, 1) - mean) / std

    def noised(rows: Tensor, whole: Tensor) -> Tensor:
        return torch.stack(
            [_noised(image, int(targets.prototypes[row])) for image, row in zip(whole, rows, strict=True)]
        )

    def _noised(image: Tensor, prototype: int) -> Tensor:
        generator = pair_generator(image, prototype, seed, "local-perturbation")
        drawn = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)
        colours = (image * std[0] + mean[0] + noise * drawn).clamp(0, 1)
        return (colours - mean[0]) / std[0]

    return {"blur": blur, "recolour": recolour, "noise": noised}[kind]


def _channels(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
