"""Working through a plan: read, compute, store, shard by shard; whatever ends it, what is stored stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from protomask.errors import DataError, InputError, ResourceError, expected
from protomask.jobs.folder import Folder
from protomask.jobs.interrupts import kept_interrupts
from protomask.jobs.threads import threads
from protomask.pickles import printable
from protomask.store.plans import Plan, ShardPlan
from protomask.store.shards import Failure, Shard, read_failures, shard_bytes

MOST_SAID = 2000  # characters of a reason on the terminal
_WAIT = 0.5  # seconds between looks at a shard that another process holds


@dataclass(frozen=True)
class Read:
    """What a shard needs of the data: read without the model, anywhere.

    Attributes:
        samples: :class:`protomask.data.sample.Sample`, those that could be read.
        rows: the item of the shard's range that each is, counted from 0.
        failed: the others.
        earlier: the same maps as a run of other metrics stored them; None where there are none.
    """

    samples: tuple[Any, ...] = ()
    rows: tuple[int, ...] = ()
    failed: tuple[Failure, ...] = ()
    earlier: Shard | None = None


class Job(Protocol):
    """What is computed; the same for one process and for a cluster."""

    @property
    def plan(self) -> Plan:
        """The plan, cut beforehand."""
        ...

    @property
    def reader(self) -> Callable[[ShardPlan], Read]:
        """Reads the data of a shard, without the model and in any process; bad items are told of, not raised."""
        ...

    def compute(self, shard: ShardPlan, read: Read) -> Shard:
        """The shard's result; depends on nothing but the plan and what was read."""
        ...


@dataclass(frozen=True)
class Terms:
    """How a process works on a plan; changes no result.

    Attributes:
        share: (i, n): only chunks whose index leaves the remainder i when divided by n; all where None.
        strict: stop at the first bad item instead of telling of it and going on.
        progress: show a progress bar on standard error.
    """

    share: tuple[int, int] | None = None
    strict: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share[0] < self.share[1]:
            raise InputError(expected("--shard", "I/N with I in 0 .. N - 1", "/".join(map(str, self.share))))

    def mine(self, plan: Plan) -> list[ShardPlan]:
        """The shards of the plan that are this process's to do."""
        if self.share is None:
            return list(plan.shards)
        index, count = self.share
        return [shard for shard in plan.shards if shard.chunk % count == index]


Engine = Callable[[Job, Sequence[ShardPlan], Callable[[ShardPlan, bytes, float], None]], None]
"""Computes shards and hands each to a callback that stores it: the shard's plan, its file, the seconds it took."""


@dataclass
class _Progress:
    """Counts what is done, tells of bad items once, and stops at the first where that is asked for."""

    folder: Folder
    terms: Terms
    bar: tqdm[Any]
    look: Callable[[], None]
    told: set[Failure] = field(default_factory=set)

    def done(self, shard: ShardPlan) -> None:
        """A stored shard, computed here or elsewhere; the time to see whether somebody wants to stop."""
        self.bar.update(shard.maps)
        for failure in read_failures(self.folder.run.path(shard)):
            if failure not in self.told:
                self.told.add(failure)
                if self.terms.strict:
                    raise DataError(failure.reason)
                tqdm.write(f"skipped: {printable(failure.reason, MOST_SAID)}")
        self.look()


def work(job: Job, folder: Folder, terms: Terms, engine: Engine | None = None) -> None:
    """Compute every shard of the job's plan that is not stored yet and is this process's to do.

    A shard that another process holds is waited for; where that process dies, it is computed here.

    Raises:
        DataError: a bad item, where the terms are strict.
        ResourceError: the folder cannot be written to; what is stored stays.
        KeyboardInterrupt: with a sentence that says how to go on.
    """
    todo = terms.mine(job.plan)
    with (
        tqdm(total=sum(s.maps for s in todo), desc=job.plan.kind, unit="map", disable=not terms.progress) as bar,
        kept_interrupts() as look,
    ):
        progress = _Progress(folder, terms, bar, look)
        stored = [shard for shard in todo if folder.run.stored(shard)]
        for shard in stored:
            progress.done(shard)
        bar.initial = bar.n  # what was there already says nothing about the pace
        bar.unpause()
        left = [shard for shard in todo if not folder.run.stored(shard)]
        try:
            with threads(int(job.plan.settings["threads"])):
                if engine is None:
                    _work_here(job, folder, left, progress)
                else:
                    _work_by(engine, job, folder, left, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {_kept(folder, todo)}") from None
        except ResourceError as error:
            raise ResourceError(f"{error}; {_kept(folder, todo)}") from error


def _work_here(job: Job, folder: Folder, left: Sequence[ShardPlan], progress: _Progress) -> None:
    waiting = list(left)
    while waiting:
        held = []
        for shard in waiting:
            with folder.claim(shard.key) as ours:
                if folder.run.stored(shard):
                    pass
                elif ours:
                    start = time.perf_counter()
                    content = shard_bytes(job.compute(shard, job.reader(shard)))
                    folder.write(shard, content, time.perf_counter() - start)
                else:
                    held.append(shard)
                    continue
            progress.done(shard)
        if len(held) == len(waiting):
            time.sleep(_WAIT)
        waiting = held


def _work_by(engine: Engine, job: Job, folder: Folder, left: Sequence[ShardPlan], progress: _Progress) -> None:
    def keep(shard: ShardPlan, content: bytes, seconds: float) -> None:
        folder.write(shard, content, seconds)
        progress.done(shard)

    engine(job, left, keep)


def _kept(folder: Folder, todo: Sequence[ShardPlan]) -> str:
    stored = sum(folder.run.stored(shard) for shard in todo)
    return f"{stored} of {len(todo)} shards are stored in {folder.path}: the same command goes on from there"
