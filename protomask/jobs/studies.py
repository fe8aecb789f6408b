"""What ``evaluate`` computes beside its pairs: scores of prototypes over images, agreement of several models.

Both run a method again on samples that are drawn when the run is planned, and are stored in shards of their own, which
hold numbers and no maps: a few prototypes each, or the agreement of one method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protomask.data.sample import Dataset
from protomask.errors import DataError, InputError, expected
from protomask.jobs.apart import all_or_each, read_each
from protomask.jobs.cutting import cut_study
from protomask.jobs.digests import digest_model
from protomask.loading import Loaded
from protomask.localisers.controls import Annotation
from protomask.localisers.stored import Stored
from protomask.locating import resolve_method
from protomask.metrics import metrics_by_scope
from protomask.pairs import SHOWN
from protomask.prototype_scores import (
    IMAGES,
    own_prototypes,
    pool_size,
    prototype_pools,
    prototype_scores,
    rounds_of,
)
from protomask.sanity import AGREEMENT_IMAGES, agreement_images, agreement_on, capacity, check_shuffles
from protomask.store.plans import ShardPlan
from protomask.store.runs import Run
from protomask.store.shards import Shard

PROTOTYPES, AGREEMENT = "prototypes", "agreement"
UNRELATED = "agreement-unrelated"
"""Beside ``agreement``: the same maps, each compared with another image's."""
MOST_PROTOTYPES = 50
_PER_SHARD = 8  # prototypes: some 80 maps, or 240, as many as a shard of pairs holds and a few times that


@dataclass(frozen=True)
class Asked:
    """Which studies are asked for.

    Attributes:
        metrics: of prototypes, by name.
        prototypes: how many at most; drawn from the seed where the model has more.
        others: further models, whose maps are compared with the first one's.
        images: on how many, at most, drawn from the seed.
    """

    metrics: tuple[str, ...] = ()
    prototypes: int = MOST_PROTOTYPES
    others: tuple[Loaded, ...] = ()
    images: int = AGREEMENT_IMAGES


@dataclass(frozen=True)
class Planned:
    """What is computed beside the pairs, by name, as the plan tells it: JSON values with digests of what they rest on.

    Attributes:
        items: study -> its items.
        settings: study -> what its results depend on beside the method, the model and the run's settings.
        maps: study -> how many maps an item takes.
        compared: name, number of weights and of prototypes of each model that is compared, the first one's first.
    """

    items: Mapping[str, list[Any]] = field(default_factory=dict)
    settings: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)
    compared: tuple[tuple[str, int, int], ...] = ()


def check_studies(
    names: Sequence[str] | None,
    loaded: Loaded,
    dataset: Dataset,
    others: Sequence[Loaded],
    images: int = AGREEMENT_IMAGES,
) -> None:
    """That what the metrics need is there.

    Raises:
        InputError: an unknown metric; no annotated parts; no other model, or one of other classes or another size; a
            single image to compare models on.
        ModelError: no weights to shuffle.
    """
    scopes = metrics_by_scope(names)
    if scopes["prototype"] and not dataset.part_names:
        wanted = f"data with annotated parts for {', '.join(scopes['prototype'])}"
        raise InputError(expected("--metrics", wanted, f"no parts in {dataset.name!r}"))
    if "agreement" in scopes["study"] and not others:
        raise InputError(expected("--agree", "another training, with which `agreement` compares the model", "none"))
    if others and images < 2:
        raise InputError(expected("--agree-images", "at least 2: each is compared with another one, too", images))
    if "randomisation" in scopes["study"]:
        check_shuffles(loaded.model)
    for other in others:
        if other.size != loaded.size:
            raise InputError(expected(f"--agree {other.name}", f"a model of the input size {loaded.size}", other.size))
        if other.class_names != loaded.class_names:
            came = f"{len(other.class_names)} others"
            raise InputError(expected(f"--agree {other.name}", f"a model of {loaded.name}'s classes, in order", came))


def plan_studies(loaded: Loaded, dataset: Dataset, content: Callable[[int], str], asked: Asked, seed: int) -> Planned:
    """The items of the studies asked for.

    Args:
        loaded: the model.
        dataset: its samples.
        content: what a sample contains, by index, as a digest.
        asked: which studies.
        seed: of what is drawn.
    """
    items: dict[str, list[Any]] = {}
    settings: dict[str, dict[str, Any]] = {}
    maps: dict[str, int] = {}
    if asked.metrics:
        items[PROTOTYPES] = _prototypes(loaded, dataset, content, asked, seed)
        settings[PROTOTYPES] = {"metrics": list(asked.metrics)}
        most = max((len(pool) for _, pool in items[PROTOTYPES]), default=0)
        maps[PROTOTYPES] = min(IMAGES, most) * rounds_of(asked.metrics)
    if asked.others:
        drawn = agreement_images(dataset, asked.images, seed)
        items[AGREEMENT] = [_compared(dataset, content, drawn)]
        settings[AGREEMENT] = {"models": [digest_model(other.model) for other in asked.others]}
        maps[AGREEMENT] = len(drawn) * (1 + len(asked.others)) * SHOWN
    models = (loaded, *asked.others) if asked.others else ()
    compared = tuple((m.name, capacity(m.model), m.model.num_prototypes) for m in models)
    return Planned(items, settings, maps, compared)


def _prototypes(
    loaded: Loaded, dataset: Dataset, content: Callable[[int], str], asked: Asked, seed: int
) -> list[list[Any]]:
    """[prototype, digests of the samples that it may be located on] of each prototype, in order."""
    order = np.random.default_rng([seed, 4]).permutation(loaded.model.num_prototypes).tolist()
    shown = own_prototypes(loaded.model, dataset)
    drawn = [p for p in order if shown is None or p in shown][: asked.prototypes]
    pools = prototype_pools(loaded.model, dataset, sorted(drawn), pool_size(asked.metrics), seed)
    known: dict[int, str] = {}
    for index in sorted({index for pool in pools.values() for index in pool}):
        known[index] = _content(content, index)
    return [[prototype, [[index, known[index]] for index in pool]] for prototype, pool in pools.items()]


def _compared(dataset: Dataset, content: Callable[[int], str], drawn: Sequence[int]) -> list[list[str]]:
    """[image, group, digest] of the samples on which models are compared; those that cannot be read say so later."""
    told = []
    for index in drawn:
        try:
            sample = dataset[index]
            told.append([sample.image_id, sample.group, content(index)])
        except DataError:
            told.append([str(index), str(index), ""])
    return told


def _content(content: Callable[[int], str], index: int) -> str:
    try:
        return content(index)
    except DataError:
        return ""  # told of where it is needed


def cut_studies(
    planned: Planned, methods: Mapping[str, Any], settings: Mapping[str, Any], first: int
) -> list[ShardPlan]:
    """The shards of the studies, for the methods that can be run again.

    Args:
        planned: the studies.
        methods: name -> what its results depend on.
        settings: of the run, of which the metrics and fills of pairs change nothing here.
        first: number of the first chunk.
    """
    common = {name: settings[name] for name in ("model", "seed", "batch", "threads", "device", "versions")}
    again = {name: how for name, how in methods.items() if runs_again(name)}
    shards: list[ShardPlan] = []
    for study, items in planned.items.items():
        size = _PER_SHARD if study == PROTOTYPES else 1
        own = {**common, **planned.settings[study]}
        cut = cut_study(study, items, size, planned.maps[study], again, own, first)
        first = max((shard.chunk for shard in cut), default=first - 1) + 1
        shards += cut
    return shards


def runs_again(method: str) -> bool:
    """Whether a method can locate other pairs than those scored: not stored maps, nor the annotation of the pairs."""
    return not isinstance(resolve_method(method)[0], (Annotation, Stored))


def compute_study(
    shard: ShardPlan, items: Sequence[Any], loaded: Loaded, dataset: Dataset, asked: Asked, seed: int, batch: int
) -> Shard:
    """The numbers of one shard of a study: metric -> [n], n prototypes, or images under each pair of models.

    Args:
        shard: of :func:`cut_studies`.
        items: of its study.
        loaded: the model.
        dataset: its samples.
        asked: as the studies were planned.
        seed: of what is drawn.
        batch: images in one network pass.
    """
    if shard.study == AGREEMENT:
        return _agreement(shard, loaded, dataset, asked, seed, batch)
    wanted = [item[0] for item in items[shard.start : shard.stop]]

    def score(rows: list[int]) -> Mapping[str, Tensor]:
        chosen = [wanted[row] for row in rows]
        told: dict[str, Any] = {"prototypes": chosen, "metrics": asked.metrics, "seed": seed, "batch": batch}
        return prototype_scores(loaded.model, dataset, shard.method, **told).values

    parts, failed = all_or_each(score, [f"prototype {p} over its images, {shard.method}" for p in wanted])
    rows = np.array([row for rows, _ in parts for row in rows], dtype=np.int64)
    names = parts[0][1] if parts else ()
    scores = {name: torch.cat([values[name] for _, values in parts]).double().numpy() for name in names}
    return Shard(shard.key, None, (), rows, scores, failed=tuple(failed))


def _agreement(shard: ShardPlan, loaded: Loaded, dataset: Dataset, asked: Asked, seed: int, batch: int) -> Shard:
    models = [loaded.model, *(other.model for other in asked.others)]
    drawn = agreement_images(dataset, asked.images, seed)
    samples, places, unread = read_each(lambda place: dataset[drawn[place]], [str(index) for index in drawn])

    def score(_: list[int]) -> Mapping[str, Tensor]:
        found = agreement_on(models, samples, shard.method, seed=seed, batch=batch)
        return {AGREEMENT: found.same.flatten(), UNRELATED: found.different.flatten()}

    parts, failed = all_or_each(score, [f"agreement, {shard.method}"])
    scores = {name: values.double().numpy() for _, part in parts for name, values in part.items()}
    pairs = comb(len(models), 2)
    rows = np.array([pair * len(drawn) + place for pair in range(pairs) for place in places], dtype=np.int64)
    return Shard(shard.key, None, (), rows if scores else rows[:0], scores, failed=(*unread, *failed))


@dataclass(frozen=True, eq=False)
class Studied:
    """What was found beside the pairs.

    Attributes:
        prototypes: those that were scored.
        scores: method -> metric -> [P'] float64, NaN where undefined; empty where none were asked for.
        images: (image, group) of those on which models were compared.
        models: their names, the first model's first.
        capacities: weights and prototypes of each.
        alike: method -> ``agreement`` and :data:`UNRELATED` -> [M (M - 1) / 2, B] float64, NaN where undefined.
    """

    prototypes: tuple[int, ...] = ()
    scores: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    images: tuple[tuple[str, str], ...] = ()
    models: tuple[str, ...] = ()
    capacities: tuple[tuple[int, int], ...] = ()
    alike: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def gather_studies(run: Run) -> Studied:
    """What a complete run holds of studies.

    Raises:
        DataError: a shard is missing or damaged.
    """
    about = run.plan.about
    prototypes = tuple(int(item[0]) for item in about.get(PROTOTYPES, ()))
    compared = about.get(AGREEMENT, ((),))[0]
    images = tuple((str(image), str(group)) for image, group, _ in compared)
    compared = about.get("compared", ()) if images else ()
    models = tuple(str(name) for name, _, _ in compared)
    capacities = tuple((int(weights), int(count)) for _, weights, count in compared)
    scores: dict[str, dict[str, np.ndarray]] = {}
    alike: dict[str, dict[str, np.ndarray]] = {}
    for planned in run.plan.shards:
        if planned.study == PROTOTYPES:
            _put(scores.setdefault(planned.method, {}), run.read(planned), planned.start, len(prototypes))
        elif planned.study == AGREEMENT:
            flat: dict[str, np.ndarray] = {}
            pairs = comb(len(models), 2)
            _put(flat, run.read(planned), 0, pairs * len(images))
            alike[planned.method] = {name: values.reshape(pairs, len(images)) for name, values in flat.items()}
    return Studied(prototypes, scores, images, models, capacities, alike)


def _put(columns: dict[str, np.ndarray], shard: Shard, start: int, count: int) -> None:
    """A shard's scores at their places in columns of ``count``, NaN elsewhere."""
    for name, values in shard.scores.items():
        columns.setdefault(name, np.full(count, np.nan))[start + shard.rows] = values
