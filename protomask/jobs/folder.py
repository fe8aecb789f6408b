"""The folder of a run, shared by whoever works on it: shards, who holds which, and who is at work.

What keeps results right is that a shard is moved into place whole, under a name that tells its content. The locks only
keep two processes from doing the same work, and two runs with different plans out of one folder; the system lets go of
them when a process dies. Where a file system has no locks, work may be done twice, with the same result.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from protomask.errors import DataError, ResourceError, expected
from protomask.files import remove_leftovers, write_bytes, write_text
from protomask.jobs.digests import digest
from protomask.store.plans import SHARDS, Plan, ShardPlan, plan_path, read_plan, write_plan
from protomask.store.runs import Run

_WORKERS = "workers"
_PICTURES = "drawn"
_WRITTEN_TO = (SHARDS, f"{SHARDS}/{_WORKERS}", f"{SHARDS}/{_PICTURES}", "panels", "looks-like", "examples", "pictures")


@dataclass(frozen=True)
class Worker:
    """A process that works or worked on the run.

    Attributes:
        name: of its files.
        host, pid: which process.
        plan: digest of its plan.
        started: seconds since the epoch.
        seconds: that it has worked on shards.
        maps: that it made in that time.
        alive: whether it is at work.
    """

    name: str
    host: str
    pid: int
    plan: str
    started: float
    seconds: float = 0.0
    maps: int = 0
    alive: bool = True


class Folder:
    """A folder of results under a plan, for one process at work on it. Use as a context manager."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.run = Run(path, plan)
        self._shards = path / SHARDS
        host = socket.gethostname()
        name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.me = Worker(name, host, os.getpid(), plan_digest(plan), time.time())
        self._lock: FileLock | None = None

    def __enter__(self) -> Folder:
        _made(self._shards / _WORKERS)
        with locked(self.path, "plan"):
            others = [w for w in workers(self.path) if w.alive]
            self._refuse_other_plans(others)
            self._lock = FileLock(self._shards / _WORKERS / f"{self.me.name}.lock")
            with contextlib.suppress(OSError, NotImplementedError):
                self._lock.acquire(timeout=0)
            if self._lock.is_locked and not others:  # without locks, who knows who is at work
                self._tidy()
            self._put_plan()
            self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()
        if self._lock is not None:
            self._lock.release()
            with contextlib.suppress(OSError):  # what ended the run is what is to be told
                Path(self._lock.lock_file).unlink(missing_ok=True)

    def write(self, shard: ShardPlan, content: bytes, seconds: float) -> None:
        """Store a shard's file and tell of the time it took; ResourceError where it cannot be written."""
        write_bytes(self.run.path(shard), content)
        self.me = replace(self.me, seconds=self.me.seconds + seconds, maps=self.me.maps + shard.maps)
        self._tell()

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether the shard is ours to compute: nobody else holds it. Held until the block ends."""
        lock = FileLock(self._shards / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except NotImplementedError:  # no locks here: twice the work at worst
            yield True
            return
        except OSError as error:
            raise ResourceError(expected(str(lock.lock_file), "a file that can be locked", error)) from error
        try:
            yield True
        finally:
            # Whoever waits for the removed file finds the shard stored, or computes the same bytes once more.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def drawn(self, key: str) -> list[str] | None:
        """The pictures that were drawn under a key, by their names in the folder; None unless all of them are there."""
        marker = self._shards / _PICTURES / key
        if not marker.is_file():
            return None
        names = marker.read_text(encoding="utf-8").splitlines()
        return names if all((self.path / name).is_file() for name in names) else None

    def set_drawn(self, key: str, names: Sequence[str]) -> None:
        """Remember that these were drawn under a key; no line ends in their names."""
        write_text(self._shards / _PICTURES / key, "\n".join(names))

    def _refuse_other_plans(self, others: list[Worker]) -> None:
        for worker in others:
            if worker.plan != self.me.plan:
                came = f"process {worker.pid} on {worker.host}, at work there with other settings"
                raise ResourceError(expected(f"output folder {self.path}", "one that no other run writes to", came))

    def _put_plan(self) -> None:
        """Write the plan, unless it is there; with another one, or with the pictures, go the marks that they exist."""
        stored = _stored_plan(self.path)
        if stored is None or plan_digest(stored) != self.me.plan or not (self.path / "panels").is_dir():
            for marker in (self._shards / _PICTURES).glob("*"):
                remove(marker)
        # Shards do not depend on where the images lie, but who reads the plan looks for them there.
        if stored is None or _whole_digest(stored) != _whole_digest(self.plan):
            write_plan(self.path, self.plan)

    def _tidy(self) -> None:
        """Remove what killed processes left: half-written files, locks, and all but the last worker's account.

        What cannot be removed stays: it does no harm.
        """
        for name in ("", *_WRITTEN_TO):
            remove_leftovers(self.path / name)
        for lock in (*self._shards.glob("*.lock"), *(self._shards / _WORKERS).glob("*.lock")):
            if lock.name not in ("plan.lock", f"{self.me.name}.lock"):
                with contextlib.suppress(OSError):
                    lock.unlink(missing_ok=True)
        for worker in sorted(workers(self.path), key=lambda w: w.started)[:-1]:
            with contextlib.suppress(OSError):
                (self._shards / _WORKERS / f"{worker.name}.json").unlink(missing_ok=True)

    def _tell(self) -> None:
        # An account only: a full disk stops the run where a result is written.
        with contextlib.suppress(ResourceError):
            write_text(self._shards / _WORKERS / f"{self.me.name}.json", json.dumps(asdict(self.me)))


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """One process at a time inside, for what takes seconds, or is to be done once.

    Raises:
        ResourceError: the folder cannot be written to.
    """
    folder = _made(path / SHARDS)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire()
    except NotImplementedError:
        yield
        return
    except OSError as error:
        raise ResourceError(expected(str(lock.lock_file), "a file that can be locked", error)) from error
    try:
        yield
    finally:
        lock.release()


def workers(path: str | Path) -> list[Worker]:
    """Who works or worked on the run in a folder."""
    found = []
    for file in sorted((Path(path) / SHARDS / _WORKERS).glob("*.json")):
        try:
            told = Worker(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError):
            continue
        # The name of the file, since what is read must not lead out of the folder.
        found.append(replace(told, name=file.stem, alive=_held(file.with_suffix(".lock"))))
    return found


def plan_digest(plan: Plan) -> str:
    """What tells two plans apart."""
    return digest(plan.kind, dict(plan.settings), [s.key for s in plan.shards])


def _whole_digest(plan: Plan) -> str:
    return digest(plan_digest(plan), list(plan.items), dict(plan.about))


def _stored_plan(path: Path) -> Plan | None:
    if not plan_path(path).is_file():
        return None
    try:
        return read_plan(path)
    except DataError:
        return None


def _held(path: Path) -> bool:
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def remove(path: Path) -> None:
    """Remove a file, if it is there; ResourceError where it cannot be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(expected(str(path), "a file that can be removed", error)) from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(expected(str(folder), "a folder that can be written to", error)) from error
    return folder
