"""How far a run is, from its folder alone: for people as text, for programs as JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protomask.jobs.folder import Worker, plan_digest, workers
from protomask.store.runs import read_run
from protomask.store.shards import Failure


@dataclass(frozen=True, eq=False)
class Status:
    """How far a run is.

    Attributes:
        folder: of its results.
        kind: ``"locate"`` or ``"evaluate"``.
        settings: of the plan.
        about: what else the plan tells, such as the model's name and the methods.
        shards_done, shards_total: how many shards are stored, of how many.
        maps_done, maps_total: how many maps they hold.
        failed: items that were skipped.
        running: the processes at work now.
        per_second: maps per second, of all that are at work, or of the last that was; None where nobody knows yet.
    """

    folder: Path
    kind: str
    settings: dict[str, Any]
    about: dict[str, Any]
    shards_done: int
    shards_total: int
    maps_done: int
    maps_total: int
    failed: tuple[Failure, ...]
    running: tuple[Worker, ...]
    per_second: float | None

    @property
    def seconds_left(self) -> float | None:
        """At that pace; 0 where all is done, None where the pace is unknown."""
        left = self.maps_total - self.maps_done
        if left == 0:
            return 0.0
        return None if not self.per_second else left / self.per_second

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = {**vars(self), "folder": str(self.folder), "seconds_left": self.seconds_left}
        values["failed"] = [asdict(failure) for failure in self.failed]
        values["running"] = [asdict(worker) for worker in self.running]
        return values


def status_of(folder: str | Path) -> Status:
    """The status of the run in a folder.

    Raises:
        DataError: there is no run in it.
    """
    run = read_run(folder)
    stored = [shard for shard in run.plan.shards if run.stored(shard)]
    mine = [worker for worker in workers(folder) if worker.plan == plan_digest(run.plan)]
    running = [worker for worker in mine if worker.alive]
    return Status(
        folder=Path(folder),
        kind=run.plan.kind,
        settings=dict(run.plan.settings),
        about=dict(run.plan.about),
        shards_done=len(stored),
        shards_total=len(run),
        maps_done=sum(shard.maps for shard in stored),
        maps_total=sum(shard.maps for shard in run.plan.shards),
        failed=tuple(run.failures()),
        running=tuple(running),
        per_second=_pace(running or sorted(mine, key=lambda worker: worker.started)[-1:]),
    )


def _pace(counted: list[Worker]) -> float | None:
    paces = [worker.maps / worker.seconds for worker in counted if worker.maps and worker.seconds > 0]
    return sum(paces) if paces else None
