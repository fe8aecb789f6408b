"""``locate`` as a job: the prototypes of a list of image files, by one or several methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protomask.data import Sample, make_sample, read_image
from protomask.data.levels import Window
from protomask.errors import DataError
from protomask.jobs.apart import all_or_each, read_each
from protomask.jobs.cutting import cut_images
from protomask.jobs.digests import digest_file, digest_method, digest_model, versions
from protomask.jobs.work import Read
from protomask.loading import Loaded
from protomask.locating import locate, measure
from protomask.model import device_of, untouched
from protomask.pairs import tensors
from protomask.records import Localisation, Targets
from protomask.store.plans import Plan, ShardPlan
from protomask.store.regions import ImageInfo, entries_of
from protomask.store.shards import Shard
from protomask.targets import choose_targets, needs_activations

_UNREADABLE = "unreadable"


@dataclass(frozen=True)
class LocateTask:
    """What to locate; everything of it changes results.

    Attributes:
        targets: ``"top:K"``, ``"all"`` or ``"class:K"``.
        methods: name -> settings; the regions of the first go to ``regions.json``.
        seed: of whatever the methods draw.
        batch: images in one network pass.
        region: what a region is cut by.
        threads: of the processor; a shard is computed with as many wherever it is computed.
        window: (low, high), what pixels of more than 8 bits are scaled by; None goes by their depth.
    """

    targets: str
    methods: Mapping[str, Mapping[str, Any]]
    seed: int = 0
    batch: int = 32
    region: str = "percentile"
    threads: int = 1
    window: Window | None = None


def plan_locate(loaded: Loaded, images: Sequence[tuple[str, Path]], task: LocateTask) -> Plan:
    """The plan: every image's content and the model's are read for it.

    Args:
        loaded: the model.
        images: (image_id, path).
        task: what to locate.
    """
    items = [{"id": name, "path": str(path), "digest": _digest(path)} for name, path in images]
    settings = {
        "model": digest_model(loaded.model),
        "size": list(loaded.size),
        "window": None if task.window is None else list(task.window),
        "targets": task.targets,
        "seed": task.seed,
        "batch": task.batch,
        "region": task.region,
        "threads": task.threads,
        "device": device_of(loaded.model).type,
        "versions": versions(),
    }
    methods = {name: digest_method(name, given) for name, given in task.methods.items()}
    count = targets_per_image(loaded, task.targets)
    shards = cut_images([[i["id"], i["digest"]] for i in items], count, methods, settings)
    about = {"model_name": loaded.name, "methods": methods, "per_image": count}
    return Plan("locate", settings, tuple(items), tuple(shards), about)


def targets_per_image(loaded: Loaded, targets: str) -> int:
    """How many prototypes ``targets`` names on every image."""
    activations = torch.zeros(1, loaded.model.num_prototypes)
    return len(choose_targets(targets, loaded.model, 1, activations))


@dataclass(frozen=True, eq=False)
class LocateJob:
    """Image files, read and located shard by shard (:class:`protomask.jobs.work.Job`).

    Attributes:
        plan: of :func:`plan_locate`.
        loaded: the model.
        task: what to locate.
    """

    plan: Plan
    loaded: Loaded
    task: LocateTask

    @property
    def reader(self) -> Callable[[ShardPlan], Read]:
        """Reads a shard's images at the model's size."""
        return partial(read_images, self.plan.items, self.loaded.size, window=self.task.window)

    def compute(self, shard: ShardPlan, read: Read) -> Shard:
        """The shard's method on its images; where one image breaks the pass, the others do without it."""
        images = [self.plan.items[shard.start + row] for row in read.rows]
        infos = tuple(ImageInfo(s.image_id, s.geometry, i["path"]) for s, i in zip(read.samples, images, strict=True))
        names = [info.image_id for info in infos]
        parts, bad = all_or_each(lambda rows: self._locate(shard, [read.samples[r] for r in rows]), names)
        failed = (*read.failed, *bad)
        if not parts:
            return Shard(shard.key, None, infos, np.zeros(0, np.int64), failed=failed)
        found = Localisation.join([_counted(part, rows) for rows, part in parts])
        entries = entries_of(found, infos, region=self.task.region)
        return Shard(shard.key, found, infos, np.arange(len(found)), entries=entries, failed=failed)

    def _locate(self, shard: ShardPlan, samples: Sequence[Sample]) -> Localisation:
        task, model = self.task, self.loaded.model
        images = tensors(model, list(samples))
        options: dict[str, Any] = {"seed": task.seed, "batch": task.batch, "region": task.region}
        options["image_ids"] = [sample.image_id for sample in samples]
        settings = dict(task.methods[shard.method])
        return locate(model, images, self._pairs(images, shard), shard.method, **options, **settings)

    def _pairs(self, images: torch.Tensor, shard: ShardPlan) -> Targets:
        """The shard's part of every image's targets."""
        task, model = self.task, self.loaded.model
        if needs_activations(task.targets):
            with untouched(model.module):
                chosen = measure(model, images, task.targets, task.batch).targets
        else:
            chosen = choose_targets(task.targets, model, len(images), None)
        which = torch.arange(len(chosen)) % int(self.plan.about["per_image"])
        return chosen[(which >= shard.low) & (which < shard.high)]


def read_images(
    items: Sequence[Mapping[str, str]], size: tuple[int, int], shard: ShardPlan, window: Window | None = None
) -> Read:
    """A shard's image files at a size, through a window; those that cannot be read are told of."""
    own = items[shard.start : shard.stop]

    def read(row: int) -> Sample:
        return make_sample(own[row]["id"], read_image(own[row]["path"], window), 0, size)

    samples, rows, failed = read_each(read, [item["id"] for item in own])
    return Read(tuple(samples), tuple(rows), tuple(failed))


def _counted(found: Localisation, rows: Sequence[int]) -> Localisation:
    """A Localisation of some of the images, its targets counting all of them."""
    return replace(found, targets=Targets(torch.tensor(rows)[found.targets.images], found.targets.prototypes))


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except DataError:
        return _UNREADABLE
