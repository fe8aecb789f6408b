"""Spatial misalignment: can the prototype be switched off without touching the region that is shown for it?

Source: the spatial misalignment benchmark (Sacha et al., "Interpretability benchmark for evaluating spatial
misalignment of prototypical parts explanations", AAAI 2024). The pixels *outside* the region are attacked; where the
region is what the prototype looks at, nothing happens. Three numbers: how far the activation falls (PAC), how many
prototypes of other classes overtake it (PRC), and how far the model's own map moves (PLC).

Published defect: the benchmark hands the mean activation, a single number, to a projected gradient descent that
maximises the cross-entropy of its softmax. Of a single number the softmax is 1 and the gradient exactly zero, so the
image that is scored is the random start of the attack. ``mode="published"`` is that: uniform noise, no step, outside
the box of the region. :func:`attack_outside` descends on the activation itself. Other differences: the published attack
spares the boxes of *all* prototypes of the class by their upsampled maps, ours the region of the pair itself by the
method under test, so that it scores the method as well as the model; and not its box but the map's highest tenth of the
pixels, the same area for every method, since the box of a scattered map is most of the image, which no attack touches
then (the control ``random`` beat everything). It returns the last step, ours the best; it may leave the range of
colours, ours does not.

N (image, prototype) pairs. Every bound and step is per image: nothing couples the batch. (In float32 a network rounds
its sums differently in another batch size, and the sign of a vanishing gradient may turn: .005 of PAC at the most on
the small reference models.)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_choice, check_count, check_number, check_tensor
from protomask.metrics._passes import Progress, check_pairs, pair_generator
from protomask.metrics._ranking import first_pixels, top_count
from protomask.metrics.faithfulness import explicable, relative_activation
from protomask.metrics.truth import check_regions
from protomask.model import Contract, device_of, untouched
from protomask.records import Targets
from protomask.region import boxes_of, is_constant, order_of, top_pixels

MISALIGNMENT = ("plc", "prc", "pac")
MODES = ("descent", "published")
SPARED_SHARE = 0.1
MARGIN = 10 / 224
MOVED_SHARE = 0.1


@dataclass(frozen=True)
class Attack:
    """How far and how hard the pixels outside are pushed.

    Attributes:
        epsilon: the largest change of a value, in model-ready units (.1 as published, about 6 of 255 levels).
        step: of one iteration, likewise.
        iterations: forward + input-gradient passes.
        seed: of the start, which depends on it and on the pair alone.
        mode: ``"descent"``, or ``"published"`` for what the published attack does: noise.
    """

    epsilon: float = 0.1
    step: float = 0.01
    iterations: int = 20
    seed: int = 0
    mode: str = "descent"

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, 0)
        check_number("step", self.step, 0)
        check_count("iterations", self.iterations)
        check_choice("mode", self.mode, MODES)


def pac(after: Tensor) -> Tensor:
    """Prototype activation change: 1 - r(attacked), the relative activation lost to changes outside the region.

    Source: Sacha et al. 2024. Range [0, 1], above 1 where the activation falls below its floor; 0 where the attack
    finds nothing (the image itself is always among the candidates, but under ``mode="published"``, where noise can
    raise the activation and the change be negative); lower is better. NaN where there was nothing to explain. Pitfalls:
    published in per cent of the raw activation, which has no meaning where a model's floor is not 0; a larger region is
    attacked less, so regions have one area (:func:`spared_pixels`); a network that is robust scores well whatever its
    maps.

    Args:
        after: [N], the relative activation after the attack, NaN where undefined.

    Returns:
        [N] float64.
    """
    check_tensor("after", after, ("N",), finite=False)
    return 1 - after.double()


def prc(before: Tensor, after: Tensor, prototypes: Tensor, others: Tensor) -> Tensor:
    """Prototype rank change: how many more prototypes of other classes lie above the pair's own after the attack.

    Source: as :func:`pac`. Range -(P - 1) .. P - 1, whole numbers; lower is better. Never undefined. Pitfalls: it grows
    with the number of prototypes, so it compares methods on one model, never models of different size; activations of
    prototypes that differ in scale do not compare.

    Args:
        before: [N, P] activations on the whole images.
        after: [N, P] activations on the attacked images.
        prototypes: [N] int64.
        others: [N, P] bool, the prototypes of other classes than the pair's own.

    Returns:
        [N] float64.
    """
    check_tensor("before", before, ("N", "P"))
    check_tensor("after", after, before.shape)

    def above(values: Tensor) -> Tensor:
        mine = values.gather(1, prototypes.to(values.device)[:, None])
        return ((values > mine) & others.to(values.device)).sum(1)

    return (above(after) - above(before)).double()


def plc(before: Tensor, after: Tensor, share: float = MOVED_SHARE) -> Tensor:
    """Prototype location change: 1 - IoU of the highest tenth of the pixels before and after the attack.

    Source: as :func:`pac`. Range [0, 1]; lower is better. NaN where the map before is constant; 1 where only the one
    after is. Pitfalls: published over 100; cut by a quantile's value there, which keeps nothing of a plateau and then
    scores 0, "unmoved"; it is about the maps given, which for :func:`misalignment_scores` are the model's own.

    Args:
        before: [N, H, W].
        after: [N, H, W].
        share: of the pixels.

    Returns:
        [N] float64.
    """
    check_tensor("before", before, ("N", "H", "W"))
    check_tensor("after", after, before.shape)
    check_number("share", share, 0, 1, open_low=True)
    count = max(1, round(share * before.shape[1] * before.shape[2]))
    one, other = (top_pixels(maps, count).flatten(1) for maps in (before, after))
    moved = 1 - (one & other).sum(1).double() / (one | other).sum(1)
    return moved.masked_fill(_flat(after), 1).masked_fill(_flat(before), torch.nan)


def spared_pixels(maps: Tensor, *, order: Tensor | None = None, share: float = SPARED_SHARE) -> Tensor:
    """What the attack leaves alone: the highest ``share`` of each map's pixels, the same area for every map.

    Args:
        maps: [N, H, W].
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.
        share: of the pixels; a tenth is about what the published boxes take on a peaked map.

    Returns:
        [N, H, W] bool.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    check_number("share", share, 0, 1)
    size = (maps.shape[1], maps.shape[2])
    return first_pixels(order_of(maps, order), round(share * size[0] * size[1]), size)


def spared_boxes(maps: Tensor, *, order: Tensor | None = None, margin: float = MARGIN) -> Tensor:
    """What the published attack leaves alone: the box of the highest 5 %, widened by ``margin`` of the shorter side.

    Args:
        maps: [N, H, W].
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.
        margin: 10 of 224 pixels as published.

    Returns:
        [N, H, W] bool.
    """
    check_tensor("maps", maps, ("N", "H", "W"))
    check_number("margin", margin, 0)
    _, height, width = maps.shape
    boxes = boxes_of(first_pixels(order_of(maps, order), top_count(height * width), (height, width)))
    wide = round(margin * min(height, width))
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    x, y = torch.arange(width, device=maps.device), torch.arange(height, device=maps.device)
    columns, rows = (x >= x0 - wide) & (x < x1 + wide), (y >= y0 - wide) & (y < y1 + wide)
    return rows[:, :, None] & columns[:, None, :]


def attack_outside(
    model: Contract,
    images: Tensor,
    prototypes: Tensor,
    spared: Tensor,
    attack: Attack | None = None,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """The attacked images: within epsilon, valid colours, unchanged where spared, the lowest activation met.

    Projected descent on the sign of the input gradient of the prototype's own activation, from a random start (a pushed
    prototype has exactly no gradient on its own image).

    Args:
        model: the model; it comes back as it came.
        images: [N, C, H, W], one per pair.
        prototypes: [N] int64.
        spared: [N, H, W] bool, the pixels that stay.
        attack: its strength.
        batch: images in one network pass.
        progress: told of forward + input-gradient passes made.

    Returns:
        [N, C, H, W]; the image itself where nothing lower was met.
    """
    return _attack(model, images, prototypes, spared, attack or Attack(), batch, progress)[0]


def misalignment_scores(
    model: Contract,
    images: Tensor,
    targets: Targets,
    maps: Tensor,
    before: Tensor,
    floor: Tensor | float,
    *,
    order: Tensor | None = None,
    attack: Attack | None = None,
    batch: int = 32,
    progress: Progress | None = None,
    names: Collection[str] = MISALIGNMENT,
) -> dict[str, Tensor]:
    """``plc``, ``prc`` and ``pac`` of N maps, from one attack.

    PLC follows the model's own map of the prototype (its similarity map, else its occurrence map, bilinear), NaN where
    it has neither. PRC's other classes are those that a prototype's largest weight does not speak for; where the model
    tells no weights, every other prototype counts.

    Args:
        model: the model.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        maps: [N, H, W], at the images' size: what is spared.
        before: [N], the activations on the whole images.
        floor: [N] or one number.
        order: [N, H * W] int64, ``rank(maps)`` where it is already known.
        attack: its strength.
        batch: images in one network pass.
        progress: told of passes made.
        names: which of :data:`MISALIGNMENT`; the model's own maps, two passes more, are made for ``plc`` only.

    Returns:
        Those named, [N] float64 each, NaN where ``before`` is at or below the floor.
    """
    check_pairs(model, images, targets, maps, before)
    for name in names:
        check_choice("names", name, MISALIGNMENT)
    scores = {name: torch.full((len(targets),), torch.nan, dtype=torch.float64) for name in MISALIGNMENT}
    attack = attack or Attack()
    spare = spared_boxes if attack.mode == "published" else spared_pixels
    spared = spare(maps, order=order).cpu()
    others = _others(model, targets.prototypes.cpu())
    floors = torch.as_tensor(floor, dtype=torch.float64, device="cpu").expand(len(targets))
    for rows in torch.split(explicable(before, floor), batch):
        if len(rows) == 0:  # an empty tensor splits into one empty chunk
            continue
        whole = images[targets.images.cpu()[rows].to(images.device)].to(device_of(model))
        mine = targets.prototypes.cpu()[rows]
        changed, lowest = _attack(model, whole, mine, spared[rows], attack, batch, progress)
        old, new = (_looked_at(model, shown, mine, "plc" in names, progress) for shown in (whole, changed))
        scores["pac"][rows] = pac(relative_activation(lowest, before.cpu()[rows], floors[rows]))
        scores["prc"][rows] = prc(old[0], new[0], mine, others[rows])
        if old[1] is not None and new[1] is not None:
            scores["plc"][rows] = plc(old[1], new[1])
    return {name: scores[name] for name in MISALIGNMENT if name in names}


def _attack(
    model: Contract,
    images: Tensor,
    prototypes: Tensor,
    spared: Tensor,
    attack: Attack,
    batch: int,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """The attacked images [N, C, H, W] and the activations [N] on them."""
    check_tensor("images", images, ("N", "C", "H", "W"))
    check_regions("spared", spared, len(images))
    check_count("batch", batch)
    found, lowest = torch.empty_like(images), torch.empty(len(images), dtype=torch.float64)
    with untouched(model.module):
        for part in torch.split(torch.arange(len(images)), batch):
            here = part.to(images.device)
            free = ~spared[part.to(spared.device)].to(images.device)[:, None]
            changed, values = _attacked(model, images[here], prototypes.cpu()[part], free, attack, progress)
            found[here], lowest[part] = changed.to(found), values.double().cpu()
    return found, lowest


def _attacked(
    model: Contract, images: Tensor, prototypes: Tensor, free: Tensor, attack: Attack, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    whole = images.to(device_of(model))
    free, mine = free.to(whole.device), prototypes.to(whole.device)
    low, high = _bounds(model, whole, attack.epsilon)
    start = torch.stack([_start(image, int(p), attack) for image, p in zip(whole, prototypes, strict=True)])
    now = torch.where(free, (whole + start).clamp(low, high), whole)
    if attack.mode == "published":
        with torch.no_grad():
            return now, model.activations(now, mine)
    with torch.no_grad():
        lowest, best = model.activations(whole, mine), whole
    for _ in range(attack.iterations):
        now = now.detach().requires_grad_(True)
        with torch.enable_grad():
            values = model.activations(now, mine)
            (gradient,) = torch.autograd.grad(values.sum(), now)
        best = torch.where((values < lowest)[:, None, None, None], now.detach(), best)
        lowest = torch.minimum(values.detach(), lowest)
        pushed = (now.detach() - attack.step * gradient.sign()).clamp(low, high)
        now = torch.where(free, pushed, whole)
        if progress is not None:
            progress(len(whole))
    with torch.no_grad():
        last = model.activations(now, mine)
    return torch.where((last < lowest)[:, None, None, None], now, best), torch.minimum(last, lowest)


def _start(image: Tensor, prototype: int, attack: Attack) -> Tensor:
    generator = pair_generator(image, prototype, attack.seed, "misalignment")
    drawn = 2 * torch.rand(image.shape, generator=generator, dtype=torch.float64) - 1
    return attack.epsilon * drawn.to(image)


def _bounds(model: Contract, whole: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """[N, C, H, W] each: within epsilon, and no further out of the range of colours than the image already is."""
    mean, std = (
        torch.tensor(v, dtype=whole.dtype, device=whole.device).view(1, -1, 1, 1) for v in (model.mean, model.std)
    )
    darkest, brightest = -mean / std, (1 - mean) / std
    low = torch.maximum(whole - epsilon, torch.minimum(darkest, whole))
    high = torch.minimum(whole + epsilon, torch.maximum(brightest, whole))
    return low, high


def _flat(maps: Tensor) -> Tensor:
    """[N] bool: constant up to a millionth of its own size, as a model's own maps come in any scale."""
    size = maps.abs().amax((1, 2))
    return is_constant(maps / torch.where(size > 0, size, 1)[:, None, None])


def _others(model: Contract, prototypes: Tensor) -> Tensor:
    """[N, P] bool, the prototypes whose largest weight speaks for another class; all but itself where unknown."""
    weights = model.class_weights()
    own = torch.arange(model.num_prototypes) if weights is None else weights.detach().cpu().argmax(1)
    return own[prototypes][:, None] != own[None, :]


def _looked_at(
    model: Contract, images: Tensor, prototypes: Tensor, located: bool, progress: Progress | None
) -> tuple[Tensor, Tensor | None]:
    """Activations [n, P] on the CPU, and where ``located`` the model's own maps [n, H, W], if it has any."""
    with torch.no_grad(), untouched(model.module):
        activations = model.activations(images).double().cpu()
        maps = model.similarity_maps(images) if located else None
        maps = model.occurrence_maps(images) if located and maps is None else maps
        if progress is not None:
            progress(len(images) * (1 + (maps is not None)))
        if maps is None:
            return activations, None
        rows = torch.arange(len(images), device=maps.device)
        mine = maps[rows, prototypes.to(maps.device)][:, None].double()
        large = F.interpolate(mine, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return activations, large[:, 0].cpu()
