"""``locate``: where does each prototype really look? The one call that all localisers share.

Example::

    found = protomask.locate(model, images, "top:3")           # MDM
    old = protomask.locate(model, images, found.targets, method="upsampling")
    found.maps, found.boxes, found.scores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from protomask.activation import relative_activation
from protomask.checks import check_choice, check_count, check_number, check_tensor
from protomask.engine import in_chunks
from protomask.errors import InputError, ModelError, expected
from protomask.fills import SCORING_FILL, fill_images
from protomask.localisers import (
    LOCALISERS,
    Localiser,
    Maps,
    Request,
    image_passes_of,
    load_entry_points,
    make_localiser,
    settings_of,
)
from protomask.masks import blend
from protomask.memory import check_batch, choose_batch
from protomask.model import Contract, check_images, contract, device_of, floor_of, untouched
from protomask.records import Localisation, Targets
from protomask.region import REGIONS, boxes_of, is_constant, peaks, rank, regions_of, rule_of
from protomask.targets import TargetsLike, check_targets, choose_targets

AT_FLOOR = "activation at or below its floor"
CONSTANT = "constant map"

_ROUNDING = 1e-2  # what a half-precision map may be beside [0, 1]


@dataclass(frozen=True, eq=False)
class Baseline:
    """What is known of the pairs before any method runs.

    Attributes:
        targets: the N pairs.
        before: [N] activations on the whole images.
        floors: [N] the model's floor, or the activation of the image filled with the mean colour.
    """

    targets: Targets
    before: Tensor
    floors: Tensor

    @property
    def locatable(self) -> Tensor:
        """[N] bool: the activation is finite and above its floor, so there is something to locate."""
        return self.before.isfinite() & (self.before > self.floors)


def locate(
    model: object,
    images: Tensor,
    targets: TargetsLike = "top:3",
    method: str | Localiser = "mdm",
    *,
    seed: int = 0,
    batch: int | str = "auto",
    memory: int | None = None,
    region: str = "percentile",
    percentile: float = 95,
    regions: Tensor | None = None,
    boxes: Tensor | None = None,
    image_ids: Sequence[str] | None = None,
    progress: bool = False,
    **settings: object,
) -> Localisation:
    """Locate prototypes in images.

    Args:
        model: an object that fulfils :class:`protomask.model.PrototypeModel`, or a model of a known family, such as an
            upstream ``PPNet``. It comes back exactly as it was: mode, gradient flags, hooks, buffers, random state.
        images: [B, C, H, W] float, model-ready (normalised as the model expects).
        targets: which pairs: ``"top:3"`` per image, ``"all"``, ``"class:17"``, or explicit (image, prototype) pairs.
        method: the name of a localiser (``protomask methods`` lists them) or one built by hand, e.g. ``MDM(steps=50)``.
        seed: of everything the method draws.
        batch: images in one network pass, or ``"auto"``: 32 on a CPU, on a GPU as many as fit. Results do not depend
            on it beyond rounding; it halves itself when memory runs out.
        memory: bytes that a pass may take, the network's weights not counted; fewer images make a pass where they would
            take more.
        region: what a box is drawn around: ``"percentile"`` or ``"own-area"`` (as many pixels as the mask sums to;
            maps that are no masks are cut by the percentile all the same).
        percentile: for ``"percentile"``: 95 keeps the highest 5 % of the pixels, as ProtoPNet does.
        regions: [N, H, W] bool annotations, for the control ``annotation`` only.
        boxes: [N, 4] object boxes xyxy, for the control ``centre`` only.
        image_ids: B names of the images, for maps that are looked up by name (:mod:`protomask.localisers.stored`).
        progress: show a progress bar on standard error.
        **settings: of the method, e.g. ``steps=50`` for ``"mdm"``.

    Returns:
        N maps [N, H, W] with boxes, mask vectors, scores and the activations before and after. A pair whose activation
        is at or below its floor is no error: its map is zero and ``located`` and ``reasons`` say so.

    Raises:
        InputError: wrong shape, size or dtype, NaN in an image, an index out of range, no targets, unknown method or
            setting, or maps that are no finite numbers in [0, 1].
        ModelError: the model's form is unknown, or it cannot do what the method needs.
        ResourceError: memory ran out with a single image.
    """
    check_count("seed", seed, 0)
    check_number("percentile", percentile, 0, 100)
    # In inference mode no gradient ever flows, whatever a method asks for, nor through a tensor that was made in it.
    with torch.inference_mode(False):
        if isinstance(images, Tensor) and images.is_inference():
            images = images.clone()
        known, images, localiser, name = _prepared(model, images, targets, method, settings, batch, region)
        batch = choose_batch(known, images, batch, memory)
        with untouched(known.module):
            start = measure(known, images, targets, batch)
            rows = start.locatable.nonzero().squeeze(1)
            forward = image_passes_of(localiser) * len(start.targets.images[rows.cpu()].unique())
            passes = round(localiser.passes * len(rows) + forward)
            with tqdm(total=passes, desc=name, unit="pass", disable=not progress) as bar:
                request = Request(
                    known,
                    images,
                    _moved(start.targets[rows.cpu()], images.device) if len(rows) else start.targets,
                    start.before[rows],
                    start.floors[rows],
                    seed=seed,
                    batch=batch,
                    regions=_rows("regions", regions, start, rows),
                    boxes=_rows("boxes", boxes, start, rows),
                    progress=bar.update,
                    image_ids=_names(image_ids, len(images)),
                )
                maps = localiser(request) if len(rows) else None
            return _record(known, images, start, rows, maps, name, localiser, (region, percentile), batch)


def _prepared(
    model: object,
    images: Tensor,
    targets: TargetsLike,
    method: str | Localiser,
    settings: dict[str, object],
    batch: int | str,
    region: str,
) -> tuple[Contract, Tensor, Localiser, str]:
    """Every check that needs no network pass."""
    known = contract(model)
    images = check_images(known, images).detach()
    check_batch(batch)
    check_choice("region", region, REGIONS)
    check_targets(targets, known, len(images))
    localiser, name = resolve_method(method, settings)
    return known, images.to(device_of(known)), localiser, name


def resolve_method(method: str | Localiser, settings: dict[str, object] | None = None) -> tuple[Localiser, str]:
    """A localiser and its name, from a name with settings or from a localiser built by hand.

    Raises:
        InputError: unknown method or setting, or settings beside a localiser that already has its own.
    """
    if isinstance(method, str):
        if method not in LOCALISERS:
            load_entry_points()
        return make_localiser(method, settings or {}), method
    if isinstance(method, type):
        raise InputError(expected("method", f"a name or a localiser, such as {method.__name__}()", "the class itself"))
    if not callable(method) or not hasattr(method, "passes"):
        wanted = "a name, a localiser, or a function registered by protomask.register_localiser"
        raise InputError(expected("method", wanted, type(method).__name__))
    if settings:
        raise InputError(expected("settings", "none beside a localiser that was built by hand", ", ".join(settings)))
    names = [n for n, entry in LOCALISERS.items() if entry.make is type(method)]
    return method, names[0] if names else str(getattr(method, "name", type(method).__name__))


@torch.no_grad()
def measure(model: Contract, images: Tensor, targets: TargetsLike, batch: int = 32) -> Baseline:
    """Activations and floors of the pairs; the model must be frozen (:func:`protomask.model.untouched`).

    Raises:
        ModelError: an activation is NaN or infinite.
    """
    before = _activations(model, images, batch)
    pairs = choose_targets(targets, model, len(images), before)
    where = (pairs.images.to(before.device), pairs.prototypes.to(before.device))
    mine = before[where]
    if not mine.isfinite().all():
        bad = int((~mine.isfinite()).sum())
        raise ModelError(
            expected("model.activations(images)", "finite values", f"{bad} of {len(mine)} NaN or infinite")
        )
    floor = floor_of(model)
    if floor is not None:
        return Baseline(pairs, mine, torch.full_like(mine, floor))
    filled = fill_images(SCORING_FILL, images[:1], model.mean, model.std)
    floors = model.activations(filled)[0]
    if not floors.isfinite().all():
        bad = int((~floors.isfinite()).sum())
        wanted = "finite values on an image of the mean colour, since activation_range tells no lowest one"
        raise ModelError(expected("model.activations(images)", wanted, f"{bad} of {len(floors)} NaN or infinite"))
    return Baseline(pairs, mine, floors[where[1]])


def _activations(model: Contract, images: Tensor, batch: int) -> Tensor:
    """[B, P]; InputError where the model cannot take them because they are of another dtype than its parameters."""
    try:
        return torch.cat(list(in_chunks(len(images), batch, lambda part: model.activations(images[part]))))
    except RuntimeError as error:
        own = next((p.dtype for p in model.module.parameters()), None) if model.module is not None else None
        if own is None or images.dtype == own:
            raise
        raise InputError(expected("images", f"{own}, as the model's parameters", images.dtype)) from error


def _moved(targets: Targets, device: torch.device) -> Targets:
    return Targets(targets.images.to(device), targets.prototypes.to(device))


def _names(image_ids: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if image_ids is None:
        return None
    if isinstance(image_ids, str) or len(image_ids) != count:
        came = repr(image_ids) if isinstance(image_ids, str) else len(image_ids)
        raise InputError(expected("image_ids", f"one name for each of the {count} images", came))
    return tuple(image_ids)


def _rows(name: str, value: Tensor | None, start: Baseline, rows: Tensor) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise InputError(expected(name, "a torch.Tensor", type(value).__name__))
    if name == "boxes":
        check_tensor(name, value, ("N", 4), finite=False)
    if len(value) != len(start.targets):
        raise InputError(expected(name, f"one row for each of the {len(start.targets)} targets", len(value)))
    return value.to(rows.device)[rows]


def _record(
    model: Contract,
    images: Tensor,
    start: Baseline,
    rows: Tensor,
    found: Maps | None,
    name: str,
    localiser: Localiser,
    box_rule: tuple[str, float],
    batch: int,
) -> Localisation:
    n, size = len(start.targets), (images.shape[-2], images.shape[-1])
    maps = images.new_zeros((n, *size))
    found = found if found is not None else Maps(maps[:0])
    _check_maps(name, found, (len(rows), *size))
    maps[rows] = found.maps.to(maps)
    after = torch.empty_like(start.before)
    unmeasured = torch.ones(n, dtype=torch.bool, device=after.device)
    if found.after is not None:
        after[rows] = found.after.to(after)
        unmeasured[rows] = False
    others = unmeasured.nonzero().squeeze(1)
    if len(others):
        after[others] = _activations_after(model, images, start.targets[others.cpu()], maps[others], batch)
    constant = is_constant(maps)
    located = start.locatable & ~constant
    reasons = [
        AT_FLOOR if not ok else CONSTANT if flat else "" for ok, flat in zip(start.locatable, constant, strict=True)
    ]
    order = rank(maps)
    kind, percentile = box_rule
    boxes = boxes_of(regions_of(maps, rule_of(kind, found.masks), percentile, order=order)) * located[:, None]
    vectors = {}
    for scale, values in found.vectors.items():
        vectors[scale] = images.new_zeros((n, scale, scale))
        vectors[scale][rows] = values
    record = Localisation(
        method=name,
        targets=start.targets,
        maps=maps,
        boxes=boxes,
        peaks=peaks(maps, order=order),
        activations_before=start.before,
        activations_after=after,
        scores=relative_activation(after, start.before, start.floors),
        located=located,
        reasons=tuple(reasons),
        masks=found.masks,
        mask_vectors=vectors,
        fill=found.fill,
        settings=settings_of(localiser),
    )
    return _on_cpu(record)


def _check_maps(name: str, found: object, shape: tuple[int, ...]) -> None:
    """InputError unless a localiser gave finite maps of that shape, in [0, 1] but for rounding."""
    if not isinstance(found, Maps):
        raise InputError(expected(f"what {name} gives", "protomask.Maps", type(found).__name__))
    maps = check_tensor(f"maps of {name}", found.maps, shape)
    if maps.numel() and not bool(((maps >= -_ROUNDING) & (maps <= 1 + _ROUNDING)).all()):
        raise InputError(expected(f"maps of {name}", "values in [0, 1]", f"{float(maps.min())} to {float(maps.max())}"))


@torch.no_grad()
def _activations_after(model: Contract, images: Tensor, targets: Targets, maps: Tensor, batch: int) -> Tensor:
    """[N] activations of the images seen through the maps, the scoring fill elsewhere."""
    rows, prototypes = (t.to(images.device) for t in (targets.images, targets.prototypes))
    fills = fill_images(SCORING_FILL, images, model.mean, model.std)

    def work(part: slice) -> Tensor:
        masked = blend(images[rows[part]], maps[part], fills[rows[part]])
        return model.activations(masked, prototypes[part])

    return torch.cat(list(in_chunks(len(rows), batch, work)))


def _on_cpu(record: Localisation) -> Localisation:
    named = ("maps", "boxes", "peaks", "activations_before", "activations_after", "scores", "located")
    moved = {name: getattr(record, name).cpu() for name in named}
    return replace(record, **moved, mask_vectors={s: v.cpu() for s, v in record.mask_vectors.items()})
