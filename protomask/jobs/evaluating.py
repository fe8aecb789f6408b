"""``evaluate`` as a job: methods located and scored on pairs that were drawn before, a method and a chunk per shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protomask.data.sample import Dataset, Sample
from protomask.errors import DataError, expected
from protomask.evaluation import Evaluation, Seen, chunk_size, each_image_once, locate_pairs
from protomask.fills import SCORING_FILL
from protomask.jobs.apart import all_or_each, read_each
from protomask.jobs.cutting import cut_pairs
from protomask.jobs.digests import digest_method, versions
from protomask.jobs.drawing import Drawn, pair_of, spell_pair
from protomask.jobs.studies import MOST_PROTOTYPES, Asked, Planned, compute_study, cut_studies
from protomask.jobs.work import Read
from protomask.loading import Loaded
from protomask.localisers import Localiser
from protomask.localisers.stored import Stored
from protomask.locating import resolve_method
from protomask.metrics import METRICS, Truth, metrics_by_scope
from protomask.model import device_of
from protomask.pairs import Pair, PairSet, tensors, truth_of
from protomask.records import Localisation, Targets
from protomask.sanity import AGREEMENT_IMAGES, randomisation
from protomask.scoring import score_chunk
from protomask.store.plans import Plan, ShardPlan
from protomask.store.regions import ImageInfo
from protomask.store.runs import Run, maps_of, stored_maps
from protomask.store.shards import Shard

RANDOMISATION = "randomisation"


@dataclass(frozen=True)
class EvaluateTask:
    """What to score; everything of it changes results.

    Attributes:
        methods: names of localisers.
        seed: of everything drawn.
        batch: images in one network pass; half as many pairs make a shard.
        fill: of the causal scores.
        metrics: names of metrics of any scope; :data:`protomask.metrics.DEFAULT_METRICS` where None.
        threads: of the processor; a shard is computed with as many wherever it is computed.
        prototypes: how many are scored at most, where a metric of prototypes is asked for.
        agree_images: on how many images models are compared, where there are others.
    """

    methods: tuple[str, ...]
    seed: int = 0
    batch: int = 32
    fill: str = SCORING_FILL
    metrics: tuple[str, ...] | None = None
    threads: int = 1
    prototypes: int = MOST_PROTOTYPES
    agree_images: int = AGREEMENT_IMAGES

    @property
    def per_pair(self) -> tuple[str, ...]:
        """The metrics that :func:`protomask.scoring.score_chunk` computes."""
        return metrics_by_scope(self.metrics)["pair"]

    @property
    def scored(self) -> tuple[str, ...]:
        """All metrics that pairs are scored by, in their order."""
        return (*self.per_pair, *((RANDOMISATION,) if self.randomises else ()))

    @property
    def randomises(self) -> bool:
        """Whether each method runs once more on each pair, with the model's weights shuffled."""
        return RANDOMISATION in metrics_by_scope(self.metrics)["study"]

    def asked(self, others: Sequence[Loaded] = ()) -> Asked:
        """The studies beside the pairs; ``others`` are the models that the first is compared with."""
        return Asked(metrics_by_scope(self.metrics)["prototype"], self.prototypes, tuple(others), self.agree_images)


def plan_evaluate(
    loaded: Loaded, dataset: Dataset, drawn: Drawn, task: EvaluateTask, beside: Planned | None = None
) -> Plan:
    """The plan of scoring these pairs, and of the studies beside them."""
    beside = beside or Planned()
    settings: dict[str, Any] = {
        "model": drawn.model,
        "seed": task.seed,
        "batch": task.batch,
        "fill": task.fill,
        "threads": task.threads,
        "kind": drawn.pairs.kind,
        "device": device_of(loaded.model).type,
        "versions": versions(),
    }
    methods = {name: digest_method(name, {}) for name in task.methods}
    items = [[*spell_pair(pair), known] for pair, known in zip(drawn.pairs.pairs, drawn.digests, strict=True)]
    shards = cut_pairs(items, chunk_size(task.batch), methods, settings, task.scored)
    settings["metrics"] = list(task.scored)
    about = {
        "model_name": loaded.name,
        "data_name": dataset.name,
        "methods": methods,
        "drawn": drawn.pairs.drawn,
        "qualified": drawn.pairs.qualified,
        "skipped": list(drawn.skipped),
        **beside.items,
        "compared": [list(model) for model in beside.compared],
    }
    chunks = 1 + max((shard.chunk for shard in shards), default=-1)
    shards += cut_studies(beside, methods, settings, chunks)
    # After the pairs are cut: what is asked for beside them changes no shard of theirs.
    settings |= {"beside": {study: beside.settings[study] for study in beside.items}} if beside.items else {}
    return Plan("evaluate", settings, tuple(items), tuple(shards), about)


def pairs_of(items: Sequence[Any], shard: ShardPlan) -> list[Pair]:
    """The pairs of one of a plan's shards, from the plan's items."""
    return [pair_of(item[:-1]) for item in items[shard.start : shard.stop]]


@dataclass(frozen=True, eq=False)
class EvaluateJob:
    """Pairs, located and scored shard by shard (:class:`protomask.jobs.work.Job`).

    Attributes:
        plan: of :func:`plan_evaluate`.
        loaded: the model.
        dataset: its samples.
        task: what to score.
        others: models that the first is compared with.
        folder: of the results: maps that lie there, scored by other metrics, are not located again. Where it cannot
            be seen, or None, all are, with the same result.
    """

    plan: Plan
    loaded: Loaded
    dataset: Dataset
    task: EvaluateTask
    others: tuple[Loaded, ...] = ()
    folder: Path | None = None

    @property
    def reader(self) -> Callable[[ShardPlan], Read]:
        """Reads the sample of each of a shard's pairs; a study reads its own."""
        return partial(read_samples, self.dataset, self.plan, self.folder)

    def known(self) -> tuple[float, frozenset[str]]:
        """The share of the missing pairs whose maps are there, and the metrics that such pairs have their scores of."""
        if self.folder is None:
            return 0.0, frozenset()
        run = Run(self.folder, self.plan)
        missing = [shard for shard in run.missing() if not shard.study]
        stored = stored_maps(self.folder)
        there = [shard for shard in missing if maps_of(shard.key) in stored]
        first = run.earlier(there[0]) if there else None
        scores = () if first is None else first.scores
        return sum(s.maps for s in there) / max(1, sum(s.maps for s in missing)), frozenset(scores)

    def compute(self, shard: ShardPlan, read: Read) -> Shard:
        """The shard's method on its pairs, scored; where one pair breaks the pass, the others do without it."""
        if shard.study:
            items, asked = self.plan.about[shard.study], self.task.asked(self.others)
            return compute_study(shard, items, self.loaded, self.dataset, asked, self.task.seed, self.task.batch)
        pairs = pairs_of(self.plan.items, shard)
        infos = tuple(ImageInfo(sample.image_id, sample.geometry) for sample in read.samples)
        names = [f"{pairs[row].image_id}, prototype {pairs[row].prototype}" for row in read.rows]

        def score(rows: list[int]) -> tuple[Localisation, dict[str, torch.Tensor]]:
            shown, chunk = [read.samples[r] for r in rows], [pairs[read.rows[r]] for r in rows]
            return self._score(shard.method, shown, chunk, _known(read, rows))

        parts, bad = all_or_each(score, names)
        failed = (*read.failed, *bad)
        if not parts:
            return Shard(shard.key, None, infos, np.zeros(0, np.int64), failed=failed)
        kept = [r for rows, _ in parts for r in rows]
        found = Localisation.join([part for _, (part, _) in parts])
        counted = Targets(torch.tensor(kept), found.targets.prototypes)
        scores = {
            name: torch.cat([values[name] for _, (_, values) in parts]).double().cpu().numpy()
            for name in parts[0][1][1]
        }
        rows = np.array([read.rows[r] for r in kept], dtype=np.int64)
        return Shard(shard.key, replace(found, targets=counted), infos, rows, scores, failed=failed)

    def _score(
        self, method: str, samples: Sequence[Sample], pairs: Sequence[Pair], known: _Known | None
    ) -> tuple[Localisation, dict[str, torch.Tensor]]:
        truth = truth_of(list(samples), list(pairs), self.plan.settings["kind"])
        localiser, _ = resolve_method(method)
        task, model = self.task, self.loaded.model
        options: dict[str, Any] = {"seed": task.seed, "batch": task.batch}
        if known is None:
            known = _Known(locate_pairs(model, localiser, samples, pairs, truth, **options), {})
        found, scores = known.found, dict(known.scores)
        left = [name for name in task.per_pair if name not in scores]
        if left:
            scores |= score_chunk(model, samples, pairs, found, truth, fill=task.fill, metrics=left, **options)
        if task.randomises and RANDOMISATION not in scores:
            scores[RANDOMISATION] = self._randomised(localiser, samples, pairs, found, truth)
        return found, {name: scores[name] for name in task.scored}

    def _randomised(
        self,
        localiser: Localiser,
        samples: Sequence[Sample],
        pairs: Sequence[Pair],
        found: Localisation,
        truth: Truth,
    ) -> torch.Tensor:
        """[N] float64; NaN under maps that were made before, which cannot be made again."""
        if isinstance(localiser, Stored):
            return torch.full((len(pairs),), torch.nan, dtype=torch.float64)
        rows, places = each_image_once(pairs)
        targets = Targets(torch.tensor(places), found.targets.prototypes)
        return randomisation(
            self.loaded.model,
            tensors(self.loaded.model, [samples[row] for row in rows]),
            targets,
            localiser,
            found=replace(found, targets=targets),
            seed=self.task.seed,
            batch=self.task.batch,
            boxes=truth.boxes,
            regions=truth.regions,
        )


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of some pairs: where a method finds them, and metric -> [n] scores."""

    found: Localisation
    scores: Mapping[str, torch.Tensor]


def _known(read: Read, rows: Sequence[int]) -> _Known | None:
    """What an earlier run stored of these of the rows that were read; None where it has not all that were."""
    earlier = read.earlier
    if earlier is None or earlier.found is None or earlier.rows.tolist() != list(read.rows):
        return None
    found = earlier.found[torch.tensor(rows)]
    counted = Targets(torch.arange(len(rows)), found.targets.prototypes)
    return _Known(
        replace(found, targets=counted), {k: torch.from_numpy(v[list(rows)]) for k, v in earlier.scores.items()}
    )


def read_samples(dataset: Dataset, plan: Plan, folder: Path | None, shard: ShardPlan) -> Read:
    """The sample of each of a shard's pairs, with what is stored of their maps; bad samples are told of.

    Args:
        dataset: its samples.
        plan: of the run.
        folder: of its results; None where nothing is to be looked for.
        shard: which pairs.
    """
    if shard.study:
        return Read()
    pairs = pairs_of(plan.items, shard)
    samples, rows, failed = read_each(lambda row: dataset[pairs[row].index], [pair.image_id for pair in pairs])
    earlier = None if folder is None else Run(folder, plan).earlier(shard)
    return Read(tuple(samples), tuple(rows), tuple(failed), earlier)


def gather(run: Run, dataset: Dataset, seen: Seen | None = None) -> Evaluation:
    """The evaluation that a complete run holds, read chunk by chunk; pairs that failed under any method are left out.

    Args:
        run: all of whose shards are stored.
        dataset: its samples are read again for ``seen``.
        seen: called with every chunk, as :func:`protomask.evaluation.evaluate` calls it.

    Raises:
        DataError: a shard is missing or damaged, or no pair was scored.
    """
    plan, kept = run.plan, list[Pair]()
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    fills: dict[str, str] = {}
    for chunk in plan.chunks:
        if chunk[0].study:
            continue
        shards = {planned.method: run.read(planned) for planned in chunk}
        common = sorted(set.intersection(*(set(shard.rows.tolist()) for shard in shards.values())))
        if not common:
            continue
        pairs = [pairs_of(plan.items, chunk[0])[row] for row in common]
        found = {}
        for method, shard in shards.items():
            where = np.flatnonzero(np.isin(shard.rows, common))
            for name, column in shard.scores.items():
                values.setdefault(method, {}).setdefault(name, []).append(column[where])
            if shard.found is not None:
                part = shard.found[torch.from_numpy(where)]
                found[method] = replace(part, targets=Targets(torch.arange(len(where)), part.targets.prototypes))
                fills[method] = shard.found.fill
        if seen is not None:
            samples = [dataset[pair.index] for pair in pairs]
            seen(pairs, samples, found, truth_of(samples, pairs, plan.settings["kind"]))
        kept.extend(pairs)
    if not kept:
        failures = run.failures()
        came = "none" + (f" (the first that failed: {failures[0].reason})" if failures else "")
        raise DataError(expected("pairs", "at least one that every method could work on", came))
    drawn = PairSet(tuple(kept), plan.about["drawn"], plan.about["qualified"], plan.settings["kind"])
    joined = {
        method: {name: np.concatenate(columns[name]) for name in METRICS if name in columns}
        for method, columns in values.items()
    }
    return Evaluation(drawn, joined, fills, plan.settings["fill"])
