"""Maps against the model: does the activation go when the map's pixels go, and come when they come?

N (image, prototype) pairs; images are held once, [B, C, H, W], and indexed by the targets. Every score is made of the
*relative activation* r(x') = (a(x') - floor) / (a(x) - floor): 1 is as close as on the whole image, 0 is nothing. It is
not clipped: an image without distractors can be closer than the whole, and a mixture further than the fill.

The protocol is one for all: pixels in the order of :func:`protomask.region.rank`, the scoring fill
(:data:`protomask.fills.SCORING_FILL`), 32 equal steps, trapezoid. Where the activation on the whole image is at or
below the floor there is nothing to explain, and the score is NaN. A constant map has no order of its own: its ranking
is the seeded shuffle, so it gets, honestly, what a random map gets.

Pitfalls: a method that optimised with the fill it is scored with must be marked; rankings of methods can flip between
fills; deletion rewards adversarial order as much as evidence, so read it beside insertion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from protomask.activation import relative_activation as _relative
from protomask.checks import check_choice, check_count, check_number, check_tensor
from protomask.errors import InputError, expected
from protomask.metrics._ranking import top_count
from protomask.metrics.imputation import Imputation
from protomask.model import Contract, check_images, device_of, untouched
from protomask.records import Targets
from protomask.region import check_order, rank

STEPS = 32
EARLY = 0.3
CURVES = ("deletion", "insertion")
FAITHFULNESS = ("deletion", "insertion", "deletion-30", "insertion-30", "sufficiency-drop")
Progress = Callable[[int], object]
"""Called with the number of images that just went through the network."""
Fill = Tensor | Imputation
"""[B, C, H, W], what stands in for each pixel whatever else is removed; or what is imputed from the pixels left."""


def relative_activation(activations: Tensor, before: Tensor, floor: Tensor | float) -> Tensor:
    """:func:`protomask.activation.relative_activation` in float64, with ``floor`` [N] or one number."""
    whole = before.to(activations.device, torch.float64)
    return _relative(activations.double(), whole, _floors(floor, len(whole)).to(activations.device))


def filled_activations(
    model: Contract, fill: Fill, targets: Targets, *, batch: int = 64, progress: Progress | None = None
) -> Tensor:
    """The activation of each target's prototype on its fully filled image: the floor where a model tells none.

    Args:
        model: the model.
        fill: [B, C, H, W], what stands in for every pixel, or an imputation of B images.
        targets: N pairs.
        batch: images in one network pass.
        progress: told of the images passed.

    Returns:
        [N] float64.
    """
    images, place = torch.unique(targets.images.cpu(), return_inverse=True)
    prototypes = targets.prototypes.cpu()
    filled = _filled(fill)
    found = torch.empty(len(targets), dtype=torch.float64)
    with torch.no_grad(), untouched(model.module):
        for start in range(0, len(images), check_count("batch", batch)):
            chunk = images[start : start + batch]
            values = model.activations(filled[chunk.to(filled.device)].to(device_of(model))).double().cpu()
            mine = (place >= start) & (place < start + len(chunk))
            found[mine] = values[place[mine] - start, prototypes[mine]]
            if progress is not None:
                progress(len(chunk))
    return found


def curves(
    model: Contract,
    images: Tensor,
    targets: Targets,
    order: Tensor,
    fill: Fill,
    before: Tensor,
    floor: Tensor | float | None,
    *,
    steps: int = STEPS,
    batch: int = 64,
    kind: str = "deletion",
    filled: Tensor | None = None,
    share: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Relative activation as 0, 1 / steps, ... 1 of the pixels, in ranking order, are deleted or inserted.

    Deletion replaces them by the fill; insertion puts them on the filled image. The two ends of a curve are known
    (``before`` and the filled image), so a pair costs ``steps - 1`` images. Source: Petsiuk et al. 2018 (RISE). Range:
    that of r, 1 on the whole image; low is good for deletion, high for insertion. Pitfall: a mixture of image and fill
    is an image that the network never saw: look at more than one fill.

    Args:
        model: the model.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        order: [N, H * W] int64, ``rank(maps)``.
        fill: [B, C, H, W], what stands in for deleted pixels, or an imputation of the B images.
        before: [N], the activations on the whole images.
        floor: [N] or one number; None where the model has none, and the filled image's activation stands in.
        steps: equal steps of the pixel count, rounded to whole pixels.
        batch: images in one network pass; the result does not depend on it.
        kind: ``"deletion"`` or ``"insertion"``.
        filled: [N], :func:`filled_activations` where they are already known.
        share: of the pixels, in (0, 1]: how far to go; only what :func:`area` needs of that share is passed.
        progress: told of the images passed.

    Returns:
        [N, steps + 1] float64; NaN rows where ``before`` is at or below the floor, and NaN beyond ``share``.
    """
    _check(model, images, targets, order, fill, before)
    check_choice("kind", kind, CURVES)
    check_count("batch", batch)
    check_count("steps", steps)
    check_number("share", share, 0, 1, open_low=True)
    size = images.shape[-2] * images.shape[-1]
    counts = [round(k * size / steps) for k in range(1, min(math.ceil(share * steps), steps - 1) + 1)]
    if filled is None:
        filled = filled_activations(model, fill, targets, batch=batch, progress=progress)
    check_tensor("filled", filled, (len(targets),))
    floor = filled if floor is None else floor
    inner = _mixtures(
        model,
        images,
        targets,
        order,
        fill,
        counts,
        explicable(before, floor),
        kept=kind == "insertion",
        batch=batch,
        progress=progress,
    )
    ends = [before.double().cpu()[:, None], filled.double().cpu()[:, None]]
    first, last = ends if kind == "deletion" else ends[::-1]
    beyond = inner.new_full((len(inner), steps - 1 - len(counts)), torch.nan)
    inner = torch.cat([inner, beyond], dim=1)
    return relative_activation(torch.cat([first, inner, last], dim=1), before, floor)


def area(curve: Tensor, share: float = 1.0) -> Tensor:
    """The mean height of a curve over the first ``share`` of the pixels: trapezoid, linear at the cut, / share.

    Source: Petsiuk et al. 2018 (RISE), on a prototype's activation in place of a class's probability. The range is that
    of r; for deletion lower is better, for insertion higher. Pitfall: most of it lies far down the ranking, where maps
    say little: the first ``share`` tells methods apart.

    Args:
        curve: [N, steps + 1].
        share: in (0, 1]; .3 of 32 steps is 9.6 of them.

    Returns:
        [N] float64, NaN where the curve is.
    """
    check_tensor("curve", curve, ("N", "steps + 1"), finite=False)
    check_number("share", share, 0, 1, open_low=True)
    steps = check_count("steps", curve.shape[1] - 1)
    values = curve.double()
    cut = share * steps
    whole = min(int(cut), steps)
    part = cut - whole
    total = ((values[:, :whole] + values[:, 1 : whole + 1]) / 2).sum(1)
    if part > 0:
        left, right = values[:, whole], values[:, whole + 1]
        total = total + part * (left + part * (right - left) / 2)
    return total / cut


def sufficiency_drop(
    model: Contract,
    images: Tensor,
    targets: Targets,
    order: Tensor,
    fill: Fill,
    before: Tensor,
    floor: Tensor | float,
    *,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """max(0, 1 - r) where only the highest 5 % of the pixels are kept and the fill replaces the rest.

    Source: average drop (Chattopadhay et al. 2018), with a region of fixed area in place of a soft mask, so that a map
    cannot win by keeping more. Range [0, 1] and above 1 where r is negative; lower is better. NaN where ``before``
    is at or below the floor. Pitfall: what is left is mostly fill, so it depends on the fill more than any other score
    does. Arguments as in :func:`curves`.

    Returns:
        [N] float64.
    """
    _check(model, images, targets, order, fill, before)
    count = top_count(images.shape[-2] * images.shape[-1])
    rows = explicable(before, floor)
    kept = _mixtures(model, images, targets, order, fill, [count], rows, kept=True, batch=batch, progress=progress)
    return (1 - relative_activation(kept[:, 0], before, floor)).clamp(min=0)


def faithfulness_scores(
    model: Contract,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    fill: Fill,
    before: Tensor,
    floor: Tensor | float | None,
    *,
    seed: int = 0,
    steps: int = STEPS,
    batch: int = 64,
    progress: Progress | None = None,
    order: Tensor | None = None,
    names: Collection[str] = FAITHFULNESS,
) -> dict[str, Tensor]:
    """The causal metrics of N maps; pixels are ranked once and the curves shared.

    Args:
        model: the model.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        maps: [N, H, W], at the images' size.
        fill: [B, C, H, W], the scoring fill, or an imputation of the B images.
        before: [N], the activations on the whole images.
        floor: [N] or one number; None where the model has none, and the filled image's activation stands in.
        seed: of the shuffle that breaks the last ties.
        steps: of the curves.
        batch: images in one network pass.
        progress: told of the images passed, :func:`passes` of them where every pair has something to explain.
        order: [N, H * W] int64, ``rank(maps, seed)`` where it is already known.
        names: which of :data:`FAITHFULNESS`; of a curve only what is wanted is made.

    Returns:
        Out of ``deletion``, ``deletion-30``, ``insertion``, ``insertion-30``, ``sufficiency-drop``, those named:
        [N] float64 each.
    """
    check_tensor("maps", maps, (len(targets), images.shape[-2], images.shape[-1]))
    for name in names:
        check_choice("names", name, FAITHFULNESS)
    order = rank(maps, seed) if order is None else order
    _check(model, images, targets, order, fill, before)
    filled = filled_activations(model, fill, targets, batch=batch, progress=progress)
    floor = filled if floor is None else floor
    scores: dict[str, Tensor] = {}
    for kind in (k for k in CURVES if not {k, f"{k}-30"}.isdisjoint(names)):
        curve = curves(
            model,
            images,
            targets,
            order,
            fill,
            before,
            floor,
            steps=steps,
            batch=batch,
            kind=kind,
            filled=filled,
            share=1.0 if kind in names else EARLY,
            progress=progress,
        )
        scores[kind], scores[f"{kind}-30"] = area(curve), area(curve, EARLY)
    if "sufficiency-drop" in names:
        scores["sufficiency-drop"] = sufficiency_drop(
            model, images, targets, order, fill, before, floor, batch=batch, progress=progress
        )
    return {name: scores[name] for name in FAITHFULNESS if name in names}


def passes(pairs: int, images: int, steps: int = STEPS) -> int:
    """Images that :func:`faithfulness_scores` sends through the network: 2 (steps - 1) + 1 per pair, 1 per image."""
    return pairs * (2 * (steps - 1) + 1) + images


def _check(model: Contract, images: Tensor, targets: Targets, order: Tensor, fill: Fill, before: Tensor) -> None:
    check_images(model, images)
    check_tensor("fill", _filled(fill), images.shape)
    check_tensor("before", before, (len(targets),))
    check_order(order, len(targets), images.shape[-2] * images.shape[-1])
    limits = (("images", targets.images, len(images)), ("prototypes", targets.prototypes, model.num_prototypes))
    for name, indices, limit in limits:
        if int(indices.min()) < 0 or int(indices.max()) >= limit:
            came = f"{int(indices.min())} .. {int(indices.max())}"
            raise InputError(expected(f"targets.{name}", f"indices in 0 .. {limit - 1}", came))


def _filled(fill: Fill) -> Tensor:
    return fill.fill if isinstance(fill, Imputation) else fill


def _mixed(fill: Fill, images: Tensor, chosen: Tensor, removed: Tensor) -> Tensor:
    """Images ``chosen`` [J] of the B, with ``removed`` [J, H, W] replaced: [J, C, H, W]."""
    whole = images[chosen]
    if isinstance(fill, Imputation):
        return fill(whole, chosen, removed)
    return torch.where(removed[:, None], fill.to(images.device)[chosen], whole)


def explicable(before: Tensor, floor: Tensor | float) -> Tensor:
    """The rows [n] int64 with an activation above the floor: the others need no network pass."""
    return (before.double().cpu() > _floors(floor, len(before))).nonzero()[:, 0]


def _floors(floor: Tensor | float, n: int) -> Tensor:
    """[n] float64 on the CPU, of [n] or one number."""
    values = torch.as_tensor(floor, dtype=torch.float64, device="cpu")
    if values.shape not in ((), (n,)):
        raise InputError(expected("floor", f"a number or a tensor [{n}]", list(values.shape)))
    return values.expand(n)


def _mixtures(
    model: Contract,
    images: Tensor,
    targets: Targets,
    order: Tensor,
    fill: Fill,
    counts: Sequence[int],
    rows: Tensor,
    *,
    kept: bool,
    batch: int,
    progress: Progress | None,
) -> Tensor:
    """Activations with the first counts [K] pixels of each ranking alone kept, or else replaced by the fill.

    Returns:
        [N, K] float64; NaN outside ``rows``.
    """
    found = torch.full((len(targets), len(counts)), torch.nan, dtype=torch.float64)
    first = torch.tensor(counts, dtype=torch.int64, device=order.device)
    jobs = torch.cartesian_prod(rows, torch.arange(len(counts)))
    check_count("batch", batch)
    if len(jobs) == 0:  # an empty tensor splits into one empty chunk, which not every model takes
        return found
    with torch.no_grad(), untouched(model.module):
        for pair, step in (chunk.unbind(1) for chunk in torch.split(jobs, batch)):
            top = _position(order, pair) < first[step.to(order.device), None]
            chosen = targets.images.cpu()[pair].to(images.device)
            top = top.to(images.device).view(len(pair), *images.shape[-2:])
            mixed = _mixed(fill, images, chosen, ~top if kept else top)
            prototypes = targets.prototypes.cpu()[pair].to(device_of(model))
            found[pair, step] = model.activations(mixed.to(device_of(model)), prototypes).double().cpu()
            if progress is not None:
                progress(len(pair))
    return found


def _position(order: Tensor, pair: Tensor) -> Tensor:
    """The place of each pixel in the ranking of each job: [N, H * W], jobs [J] -> [J, H * W]."""
    needed, which = torch.unique(pair, return_inverse=True)
    ranking = order[needed.to(order.device)]
    places = torch.arange(order.shape[1], device=order.device).expand_as(ranking)
    return torch.empty_like(ranking).scatter_(1, ranking, places)[which.to(order.device)]
