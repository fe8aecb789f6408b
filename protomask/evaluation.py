"""``evaluate``: score several localisers on the same pairs, against annotations and causally.

Pairs are drawn once (:mod:`protomask.pairs`); every method locates the same pairs; scores are per pair, NaN where
undefined; summaries carry bootstrap intervals clustered by image (by patient where there are patients).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from protomask.checks import check_choice, check_count
from protomask.data.sample import Dataset, Sample
from protomask.errors import InputError, expected
from protomask.fills import SCORING_FILL
from protomask.localisers import Localiser
from protomask.locating import locate, resolve_method
from protomask.metrics import (
    METRICS,
    Summary,
    Truth,
    flattering,
    paired_difference,
    summarise,
)
from protomask.model import Contract, contract
from protomask.pairs import Pair, PairSet, draw_pairs, tensors, truth_of
from protomask.records import Localisation, Targets
from protomask.scoring import score_chunk
from protomask.store.shards import as_stored

CONTROLS = ("random", "centre", "annotation")
METHODS = ("mdm", "upsampling", "upsampling-centred", "single-mask", *CONTROLS)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of several methods on the same pairs.

    Attributes:
        pairs: what was scored.
        values: method -> metric -> [N] float64, NaN where undefined.
        fills: method -> the fill it optimised with, empty where it optimised nothing.
        scoring_fill: the fill of the causal scores.
    """

    pairs: PairSet
    values: Mapping[str, Mapping[str, np.ndarray]]
    fills: Mapping[str, str]
    scoring_fill: str = SCORING_FILL

    @property
    def groups(self) -> tuple[str, ...]:
        """N names, what intervals are clustered by."""
        return tuple(pair.group for pair in self.pairs.pairs)

    def summaries(self, seed: int = 0) -> dict[str, dict[str, Summary]]:
        """method -> metric -> mean and 95 % interval; metrics that no method defines are left out."""
        shown = {m for values in self.values.values() for m, v in values.items() if np.isfinite(v).any()}
        return {
            method: {m: summarise(v, self.groups, seed=seed) for m, v in values.items() if m in shown}
            for method, values in self.values.items()
        }

    def differences(self, reference: str = "mdm", seed: int = 0) -> dict[str, dict[str, Summary]]:
        """other method -> metric -> paired difference (reference minus other) over pairs where both are defined."""
        check_choice("reference", reference, tuple(self.values))
        mine = self.values[reference]
        return {
            other: {m: paired_difference(mine[m], v, self.groups, seed=seed) for m, v in values.items() if m in mine}
            for other, values in self.values.items()
            if other != reference
        }

    def optimised_with_scoring_fill(self) -> tuple[str, ...]:
        """Methods that :func:`protomask.metrics.flattering` names a score of: it was trained with the fill of that."""
        return tuple(m for m, fill in self.fills.items() if flattering(fill, self.values.get(m, ()), self.scoring_fill))


Seen = Callable[[Sequence[Pair], Sequence[Sample], Mapping[str, Localisation], Truth], object]
"""Called with every chunk: its pairs, their samples, the localisations by method, and the truth."""


def evaluate(
    model: object,
    dataset: Dataset,
    methods: Sequence[str | Localiser] = METHODS,
    *,
    pairs: int = 200,
    seed: int = 0,
    batch: int = 32,
    fill: str = SCORING_FILL,
    clear_parts: bool = False,
    metrics: Sequence[str] | None = None,
    progress: bool = False,
    seen: Seen | None = None,
) -> Evaluation:
    """Score methods on seeded pairs of a data set.

    Args:
        model: as for :func:`protomask.locate`.
        dataset: samples with whatever annotation it has; a metric without its annotation is NaN.
        methods: names of localisers, or localisers built by hand.
        pairs: how many (image, prototype) pairs.
        seed: of the pairs and of everything drawn.
        batch: images in one network pass.
        fill: the scoring fill: ``"mean"`` (zero after normalisation) by protocol, or ``"blur"``, ``"image-mean"``,
            ``"black"``, ``"grey"`` (:func:`protomask.fills.fill_images`).
        clear_parts: score only pairs with a clear causal part, as is always done where parts have pixel masks. Where
            they are points, few pairs have one: this way the part metrics get as many as the data holds.
        metrics: names of metrics per pair; :data:`protomask.metrics.DEFAULT_METRICS` where None.
        progress: show progress bars on standard error.
        seen: called with every chunk (:data:`Seen`): its pairs, their samples, what each method found, and the truth, a
            row per pair. For pictures and files; keep what you need, the maps are not stored.

    Returns:
        What was scored: ``pairs``, and ``values``: method -> metric -> [N] float64, NaN where undefined.

    Raises:
        InputError: an unknown method, metric or fill, no methods, a count or seed out of range, a data set that names
            parts and has no ``without_part``, or no pair to score.
        ModelError: the model's form is unknown, or it cannot do what a method needs.
        DataError: a sample cannot be read.
    """
    check_count("seed", seed, 0)
    check_count("batch", batch)
    known = contract(model)
    localisers = dict(_named(methods))
    with tqdm(total=pairs, desc="pairs", unit="pair", disable=not progress) as bar:
        drawn = draw_pairs(known, dataset, pairs, seed=seed, batch=batch, clear=clear_parts, progress=bar.update)
    scores: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in localisers}
    fills: dict[str, str] = {}
    with tqdm(total=len(drawn.pairs) * len(localisers), desc="locate + score", unit="map", disable=not progress) as bar:
        for chunk in _chunks(drawn.pairs, chunk_size(batch)):
            samples = [dataset[pair.index] for pair in chunk]
            truth = truth_of(samples, chunk, drawn.kind)
            found = {}
            for name, localiser in localisers.items():
                found[name], values = locate_and_score(
                    known, localiser, samples, chunk, truth, seed=seed, batch=batch, fill=fill, metrics=metrics
                )
                fills[name] = found[name].fill
                scores[name].append(values)
                bar.update(len(chunk))
            if seen is not None:
                seen(chunk, samples, found, truth)
    return Evaluation(drawn, {name: _joined(parts) for name, parts in scores.items()}, fills, fill)


def _named(methods: Sequence[str | Localiser]) -> Iterator[tuple[str, Localiser]]:
    if isinstance(methods, str) or not methods:
        raise InputError(expected("methods", "a list of at least one method", repr(methods)))
    names: set[str] = set()
    for method in methods:
        localiser, name = resolve_method(method)
        if name in names:
            raise InputError(expected("methods", "each method once", f"{name} twice"))
        names.add(name)
        yield name, localiser


def _chunks(pairs: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    for start in range(0, len(pairs), size):
        yield list(pairs[start : start + size])


def chunk_size(batch: int) -> int:
    """How many pairs are located and scored together."""
    return max(1, batch // 2)


def locate_and_score(
    model: Contract,
    localiser: Localiser,
    samples: Sequence[Sample],
    chunk: Sequence[Pair],
    truth: Truth,
    *,
    seed: int,
    batch: int,
    fill: str = SCORING_FILL,
    metrics: Sequence[str] | None = None,
) -> tuple[Localisation, dict[str, torch.Tensor]]:
    """One method on N pairs: where it finds them, and metric -> [N] float64, NaN where undefined.

    Args:
        model: the contract.
        localiser: the method.
        samples: N, the image of each pair.
        chunk: the N pairs.
        truth: N rows.
        seed: of whatever the method draws.
        batch: images in one network pass.
        fill: of the causal scores.
        metrics: as :func:`protomask.scoring.score_chunk` takes it.
    """
    found = locate_pairs(model, localiser, samples, chunk, truth, seed=seed, batch=batch)
    scores = score_chunk(model, samples, chunk, found, truth, fill=fill, batch=batch, metrics=metrics, seed=seed)
    return found, scores


def locate_pairs(
    model: Contract,
    localiser: Localiser,
    samples: Sequence[Sample],
    chunk: Sequence[Pair],
    truth: Truth,
    *,
    seed: int,
    batch: int,
) -> Localisation:
    """Where one method finds N pairs, one row each, with maps as runs store them: scores are of these.

    Args: as :func:`locate_and_score`.
    """
    rows, places = each_image_once(chunk)
    shown = [samples[row] for row in rows]
    found = locate(
        model,
        tensors(model, shown),
        [(place, pair.prototype) for place, pair in zip(places, chunk, strict=True)],
        localiser,
        seed=seed,
        batch=batch,
        regions=truth.regions,
        boxes=truth.boxes,
        image_ids=[sample.image_id for sample in shown],
    )
    return as_stored(replace(found, targets=Targets(torch.arange(len(chunk)), found.targets.prototypes)))


def each_image_once(chunk: Sequence[Pair]) -> tuple[list[int], list[int]]:
    """The first row of each image, and of each pair which of these is its image's.

    An image that several pairs share is passed on once, so that a method may use its passes for all of them.
    """
    first: dict[int, int] = {}
    for row, pair in enumerate(chunk):
        first.setdefault(pair.index, row)
    places = {index: place for place, index in enumerate(first)}
    return list(first.values()), [places[pair.index] for pair in chunk]


def _joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([p[name] for p in parts]).double().cpu().numpy() for name in METRICS if name in parts[0]}
