"""Sanity of maps: do they depend on what was learned, and do independently trained models agree on them?

Randomisation (Adebayo et al. 2018): the same method on the same model with its weights shuffled. A map that stays as it
was shows the image, not the model. Agreement: the same method on models trained from different seeds. ::

    alike = randomisation(model, images, targets, "mdm")           # [N], the lower the better
    result = agreement([first, second], dataset, "mdm", images=50)
    result.same.nanmean() - result.different.nanmean()             # what is not explained by the method's own habits
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from protomask.checks import check_choice, check_count
from protomask.data.sample import Dataset, Sample
from protomask.draws import generator_of
from protomask.errors import InputError, ModelError, expected
from protomask.localisers import Localiser
from protomask.locating import locate
from protomask.metrics.similarity import map_similarity
from protomask.model import Contract, class_prototypes, contract, untouched
from protomask.pairs import SHOWN, tensors
from protomask.records import Localisation, Targets
from protomask.region import is_constant
from protomask.store.shards import as_stored
from protomask.targets import TargetsLike

AGREEMENT_IMAGES = 50


@contextmanager
def randomised(module: nn.Module, seed: int = 0, layers: Collection[str] | None = None) -> Iterator[None]:
    """The module with its weights shuffled inside, bit by bit as it came afterwards, also after an exception.

    The entries of each parameter change places, so each keeps its mean, spread and outliers and the activations their
    scale and there still is something to locate (Adebayo et al. draw new weights). Running statistics and other
    buffers stay.

    Args:
        module: any.
        seed: of the shuffles; a parameter's depends on it and on the parameter's name.
        layers: names as :func:`layers_of` gives them; all where None.
    """
    chosen = layers_of(module) if layers is None else tuple(layers)
    for name in chosen:
        check_choice("layers", name, layers_of(module))
    own = {f"{name}.{key}": p for name in chosen for key, p in _own(module, name).items()}
    saved = {name: p.detach().clone() for name, p in own.items()}
    try:
        with torch.no_grad():
            for name, p in own.items():
                generator = generator_of(seed, name)
                places = torch.randperm(p.numel(), generator=generator).to(p.device)
                p.copy_(saved[name].flatten()[places].view_as(p))
        yield
    finally:
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(saved[name])


def layers_of(module: nn.Module) -> tuple[str, ...]:
    """The submodules with parameters of their own, by name, in the order of registration: input side first mostly."""
    return tuple(name for name, inner in module.named_modules() if any(True for _ in inner.parameters(recurse=False)))


def randomisation(
    model: object,
    images: Tensor,
    targets: TargetsLike,
    method: str | Localiser = "mdm",
    *,
    found: Localisation | None = None,
    layers: Collection[str] | None = None,
    kind: str = "rank-correlation",
    seed: int = 0,
    batch: int = 32,
    boxes: Tensor | None = None,
    regions: Tensor | None = None,
    image_ids: Sequence[str] | None = None,
) -> Tensor:
    """How alike each map is to the map of the same model with shuffled weights.

    Source: Adebayo et al. 2018, on a prototype's activation. Range [-1, 1]; lower is better: what a map shares with
    that of a network that knows nothing is not about the network. NaN where there was nothing to locate (a constant
    map); 0 where the shuffled network gave a constant map. Pitfalls: a network's architecture alone makes maps alike
    (its edges, its fall at the border), so a little is no failure; a method that draws at random scores best: read it
    beside the causal metrics. The controls look at no weights and score 1 by construction (``random`` draws from the
    seed, the image and the prototype), except where the shuffled network has nothing to locate. Maps are compared as
    runs store them, so that those of an earlier run do as well.

    Args:
        model: as for :func:`protomask.locate`; it comes back bit by bit as it came.
        images: [B, C, H, W], model-ready.
        targets: N pairs.
        method: a localiser.
        found: the maps of the model as it is, where they are already known (all pairs, in order).
        layers: which layers are shuffled, all where None (:func:`cascade` goes through them).
        kind: one of :data:`protomask.metrics.similarity.SIMILARITIES`.
        seed: of the shuffles and of whatever the method draws.
        batch: images in one network pass.
        boxes: [N, 4], for the control ``centre``.
        regions: [N, H, W], for the control ``annotation``.
        image_ids: B names of the images, for methods that look maps up by name.

    Returns:
        [N] float64.
    """
    known = contract(model)
    module = check_shuffles(known)

    def maps(pairs: TargetsLike) -> Localisation:
        told = {"boxes": boxes, "regions": regions, "image_ids": image_ids}
        return locate(known, images, pairs, method, seed=seed, batch=batch, **told)  # type: ignore[arg-type]

    before = as_stored(maps(targets) if found is None else found)
    with randomised(module, seed, layers):
        after = maps(Targets(before.targets.images.cpu(), before.targets.prototypes.cpu()))
    return _likeness(before, as_stored(after), kind)


def cascade(
    model: object,
    images: Tensor,
    targets: TargetsLike,
    method: str | Localiser = "mdm",
    *,
    stages: int = 4,
    kind: str = "rank-correlation",
    seed: int = 0,
    batch: int = 32,
) -> dict[str, Tensor]:
    """:func:`randomisation` from the output side down: after each stage more layers are shuffled, in the end all.

    Args:
        model: as for :func:`randomisation`.
        images: [B, C, H, W].
        targets: N pairs.
        method: a localiser; it runs ``stages`` + 1 times.
        stages: groups of layers of about equal number.
        kind: as there.
        seed: as there.
        batch: as there.

    Returns:
        The lowest layer shuffled -> [N] float64, in the order of the stages.
    """
    known = contract(model)
    down = layers_of(check_shuffles(known))[::-1]
    check_count("stages", stages)
    found = locate(known, images, targets, method, seed=seed, batch=batch)
    ends = sorted({round(len(down) * k / stages) for k in range(1, stages + 1)} - {0})
    return {
        down[end - 1]: randomisation(
            known, images, found.targets, method, found=found, layers=down[:end], kind=kind, seed=seed, batch=batch
        )
        for end in ends
    }


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike the maps of several models are.

    Attributes:
        same: [M (M - 1) / 2, B] float64, per pair of models and image: the maps of one image; NaN where one is flat.
        different: likewise, the first model's map against the second's of an unrelated image (:func:`unrelated`): what
            the method's habits alone (smoothness, a fall towards the border, a blob in the middle) make of it.
        pairs: the models of each row.
        groups: B names, what intervals are clustered by.
        capacities: M numbers of weights.
    """

    same: Tensor
    different: Tensor
    pairs: tuple[tuple[int, int], ...]
    groups: tuple[str, ...]
    capacities: tuple[int, ...]


def agreement_images(dataset: Dataset, images: int = AGREEMENT_IMAGES, seed: int = 0) -> list[int]:
    """The samples that :func:`agreement` compares maps of, by index, in its order; all where there are fewer."""
    return np.random.default_rng([seed, 3]).permutation(len(dataset))[:images].tolist()


def agreement(
    models: Sequence[object],
    dataset: Dataset,
    method: str | Localiser = "mdm",
    *,
    images: int = AGREEMENT_IMAGES,
    shown: int = SHOWN,
    kind: str = "rank-correlation",
    seed: int = 0,
    batch: int = 32,
) -> Agreement:
    """How alike the evidence maps of independently trained models are on the same images.

    Prototype 3 of one training is not prototype 3 of another, so what is compared is an image's evidence for its own
    class: the mean map of its ``shown`` most activated prototypes of that class. Source: ours. Range [-1, 1]; higher is
    better, and only by as much as it exceeds ``different``. NaN where one of the two maps is constant. Pitfalls: models
    of little capacity agree because they can do little else, so compare methods on the same models, and state their
    ``capacities``; a map that ignores the model agrees perfectly (the controls show it).

    Args:
        models: at least two, of one input size, trained on the data set's classes.
        dataset: its samples.
        method: a localiser.
        images: how many, at least two, drawn from the seed.
        shown: prototypes per image.
        kind: one of :data:`protomask.metrics.similarity.SIMILARITIES`.
        seed: of the images and of whatever the method draws.
        batch: images in one network pass.

    Raises:
        InputError: fewer than two models or images, or models of different input sizes.
    """
    check_count("images", images)
    samples = [dataset[index] for index in agreement_images(dataset, images, seed)]
    return agreement_on(models, samples, method, shown=shown, kind=kind, seed=seed, batch=batch)


def agreement_on(
    models: Sequence[object],
    samples: Sequence[Sample],
    method: str | Localiser = "mdm",
    *,
    shown: int = SHOWN,
    kind: str = "rank-correlation",
    seed: int = 0,
    batch: int = 32,
) -> Agreement:
    """:func:`agreement` on samples that were chosen and read before; the rest as there."""
    known = [contract(model) for model in models]
    if len(known) < 2 or len({m.input_shape for m in known}) > 1:
        shapes = [m.input_shape for m in known]
        raise InputError(expected("models", "at least two of one input size", shapes))
    if len(samples) < 2:
        raise InputError(expected("images", "at least two, since each is compared with another one", len(samples)))
    maps = [_evidence(model, samples, method, shown, seed, batch) for model in known]
    others = unrelated(samples)
    pairs = tuple(combinations(range(len(known)), 2))
    same = torch.stack([_alike(maps[a], maps[b], kind) for a, b in pairs])
    different = torch.stack([_alike(maps[a], maps[b][others], kind) for a, b in pairs])
    return Agreement(same, different, pairs, tuple(s.group for s in samples), tuple(map(capacity, known)))


def unrelated(samples: Sequence[Sample]) -> list[int]:
    """For each of B >= 2 samples the next one, round the end, of another class and group; else of another group; else
    the next."""
    count = len(samples)
    found = []
    for k, own in enumerate(samples):
        others = [(k + step) % count for step in range(1, count)]
        strange = [n for n in others if samples[n].group != own.group]
        found.append(next((n for n in strange if samples[n].label != own.label), (strange or others)[0]))
    return found


def capacity(model: Contract) -> int:
    """The number of a model's weights; 0 where it has no module."""
    return 0 if model.module is None else sum(p.numel() for p in model.module.parameters())


def _alike(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """[N] float64; NaN where one of the two is constant: a model that finds nothing neither agrees nor disagrees."""
    return map_similarity(a, b, kind).masked_fill(is_constant(a) | is_constant(b), torch.nan)


def _evidence(
    model: Contract, samples: Sequence[Sample], method: str | Localiser, shown: int, seed: int, batch: int
) -> Tensor:
    """[B, H, W], the mean map of each image's most activated prototypes of its own class."""
    maps = []
    for start in range(0, len(samples), batch):
        part = list(samples[start : start + batch])
        images = tensors(model, part)
        targets = _own_targets(model, images, [sample.label for sample in part], shown)
        found = locate(model, images, targets, method, seed=seed, batch=batch)
        sums = torch.zeros((len(part), *found.maps.shape[1:]), dtype=torch.float64)
        sums.index_add_(0, found.targets.images, found.maps.double())
        maps.append(sums / torch.bincount(found.targets.images, minlength=len(part)).clamp(min=1)[:, None, None])
    return torch.cat(maps)


def _own_targets(model: Contract, images: Tensor, labels: Sequence[int], shown: int) -> list[tuple[int, int]]:
    with torch.no_grad(), untouched(model.module):
        activations = model.activations(images).cpu()
    targets = []
    for row, label in enumerate(labels):
        known = model.class_weights() is not None
        own = class_prototypes(model, [label]) if known else torch.arange(model.num_prototypes)
        best = activations[row, own].sort(descending=True, stable=True).indices[:shown]
        targets += [(row, int(own[k])) for k in best]
    return targets


def _likeness(before: Localisation, after: Localisation, kind: str) -> Tensor:
    alike = map_similarity(before.maps, after.maps, kind)
    return alike.masked_fill(~before.located, torch.nan)


def check_shuffles(model: Contract) -> nn.Module:
    """The model's module; ModelError where it has none with weights that could be shuffled."""
    if model.module is None or not layers_of(model.module):
        raise ModelError(expected("model.module", "a module with weights to shuffle", type(model.module).__name__))
    return model.module


def _own(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """A layer's own parameters, without those of the layers inside it."""
    return dict(module.get_submodule(name).named_parameters(recurse=False))
