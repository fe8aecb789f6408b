"""A finished or unfinished run of ``protomask locate`` or ``evaluate``, read shard by shard. ::

run = protomask.store.read_run("found")
for shard in run:
    for (image, prototype), map_ in zip(shard.found.targets, render(shard.found, (512, 512))):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from protomask.errors import DataError, expected
from protomask.store.plans import SCORED, SHARDS, Plan, ShardPlan, read_plan
from protomask.store.shards import Failure, Shard, read_failures, read_shard


@dataclass(frozen=True, eq=False)
class Run:
    """The plan of a run and what is stored of it; iterating reads one stored shard at a time, in the plan's order.

    Attributes:
        folder: of the results.
        plan: what the run consists of.
    """

    folder: Path
    plan: Plan

    def path(self, shard: ShardPlan) -> Path:
        """The file of a shard."""
        return shard_path(self.folder, shard.key)

    def stored(self, shard: ShardPlan) -> bool:
        """Whether a shard was computed."""
        return self.path(shard).is_file()

    def read(self, shard: ShardPlan) -> Shard:
        """A stored shard; DataError where there is none, it is damaged, or it is another one under this name."""
        found = read_shard(self.path(shard))
        if found.key != shard.key:
            raise DataError(expected(str(self.path(shard)), f"the shard {shard.key}", f"the shard {found.key}"))
        return found

    def earlier(self, shard: ShardPlan) -> Shard | None:
        """What a shard of the same maps under other metrics holds: its maps, with the scores of all such shards.

        None where there is none that can be read.
        """
        found: Shard | None = None
        for path in _same_maps(self.folder, shard.key):
            try:
                other = read_shard(path)
            except DataError:
                continue  # damaged: what is computed anew needs it not
            if other.key != path.stem or other.found is None:
                continue
            if found is None:
                found = other
            elif np.array_equal(found.rows, other.rows):
                found = replace(found, scores={**found.scores, **other.scores})
        return found

    def missing(self) -> list[ShardPlan]:
        """What is left to compute."""
        return [shard for shard in self.plan.shards if not self.stored(shard)]

    def failures(self) -> list[Failure]:
        """The failed items of all stored shards, each once."""
        stored = (read_failures(self.path(shard)) for shard in self.plan.shards if self.stored(shard))
        return list(dict.fromkeys(failure for failures in stored for failure in failures))

    def __iter__(self) -> Iterator[Shard]:
        return (self.read(shard) for shard in self.plan.shards if self.stored(shard))

    def __len__(self) -> int:
        return len(self.plan.shards)


def shard_path(folder: str | Path, key: str) -> Path:
    """The file of the shard with this key in a folder of results."""
    return Path(folder) / SHARDS / f"{key}.npz"


def maps_of(key: str) -> str:
    """What the maps of a shard of scored pairs depend on, as a part of its key; empty for another shard."""
    maps, _, scored = key.partition(SCORED)
    return maps if scored else ""


def stored_maps(folder: str | Path) -> set[str]:
    """:func:`maps_of` of every file in a folder of results, by one look at it."""
    return {maps_of(path.stem) for path in (Path(folder) / SHARDS).glob(f"*{SCORED}*.npz")}


def _same_maps(folder: str | Path, key: str) -> list[Path]:
    """The files whose maps are those of the shard with this key, but for its own."""
    maps = maps_of(key)
    if not maps:
        return []
    return [path for path in sorted((Path(folder) / SHARDS).glob(f"{maps}{SCORED}*.npz")) if path.stem != key]


def read_run(folder: str | Path) -> Run:
    """The run whose results are in a folder, complete or not.

    Raises:
        DataError: there is no plan in it, or it is damaged.
    """
    return Run(Path(folder), read_plan(folder))
