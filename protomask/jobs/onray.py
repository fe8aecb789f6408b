"""The work on a Ray cluster: Ray Data reads images and hands them to a pool of actors, a model in each.

An actor has a GPU, or as many CPUs as the plan has threads. Ray Data restarts actors that die and repeats what they
were at; results come back as the files that one process would have written, and the driver stores them. ::

    ray start --head                                          # a cluster on this machine; others join it
    protomask locate runs/cub photos/ --out found --engine ray --address auto
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from protomask.errors import InputError, ProtomaskError, ResourceError, expected
from protomask.jobs.digests import digest_model, versions
from protomask.jobs.work import Engine, Job, Read
from protomask.model import device_of
from protomask.store.plans import ShardPlan
from protomask.store.shards import shard_bytes

INSTALL = "in the clone: `pip install '.[ray]'`"
# Readers must find room beside actors on every CPU, or both would wait for each other for ever.
_ACTOR_SHARE = 0.9
_READER_CPUS = 0.05


def ray_engine(reopen: Callable[[], Job], address: str | None, workers: int | None, *, gpu: bool) -> Engine:
    """An engine on a Ray cluster.

    Args:
        reopen: opens the job in an actor; picklable.
        address: of the cluster; where None, one that runs on this machine, else a new one.
        workers: how many actors; where None, one per GPU, or per share of CPUs.
        gpu: whether the plan is one for GPUs.

    Raises:
        InputError: Ray is not installed.
    """
    _ray()

    def engine(job: Job, shards: Sequence[ShardPlan], keep: Callable[[ShardPlan, bytes, float], None]) -> None:
        if shards:
            with _cluster(address) as ray:
                _run(ray, job, reopen, shards, keep, workers, gpu)

    return engine


def _run(
    ray: Any,
    job: Job,
    reopen: Callable[[], Job],
    shards: Sequence[ShardPlan],
    keep: Callable[[ShardPlan, bytes, float], None],
    workers: int | None,
    gpu: bool,
) -> None:
    import ray.data as data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters is raised
    data.DataContext.get_current().enable_progress_bars = False
    count = int(job.plan.settings["threads"])
    pool = min(workers or _room(ray, count, gpu), len(shards))
    share: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": _ACTOR_SHARE * count}
    reader, plans = job.reader, list(shards)

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "read": pickle.dumps(reader(plans[row["number"]]))}

    numbers = data.from_items([{"number": k} for k in range(len(plans))], override_num_blocks=len(plans))
    worker: Any = Worker
    done = numbers.map(read, num_cpus=_READER_CPUS).map(
        worker, fn_constructor_args=(reopen, plans), compute=data.ActorPoolStrategy(size=pool), **share
    )
    try:
        for row in done.iter_rows():
            keep(plans[row["number"]], row["content"], row["seconds"])
    except ray.exceptions.RayError as error:
        raise _unwrapped(error) from error


class Worker:
    """An actor: a model, and the shards that it is handed, one at a time."""

    def __init__(self, reopen: Callable[[], Job], shards: Sequence[ShardPlan]) -> None:
        self._job, self._shards = reopen(), shards
        settings = self._job.plan.settings
        torch.set_num_threads(int(settings["threads"]))
        model = self._job.loaded.model  # type: ignore[attr-defined]
        for name, here in (("model", digest_model(model)), ("device", device_of(model).type), ("versions", versions())):
            if here != settings[name]:
                raise ResourceError(expected(f"{name} of a Ray worker", f"the driver's, {settings[name]}", here))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """From what was read for a shard to the shard's file."""
        begun = time.perf_counter()
        read: Read = pickle.loads(row["read"])  # our own, from a task of this run
        content = shard_bytes(self._job.compute(self._shards[row["number"]], read))
        return {"number": row["number"], "content": content, "seconds": time.perf_counter() - begun}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(expected("--engine ray", f"Ray to be installed ({INSTALL})", error)) from error
    return ray


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; disconnected afterwards where we connected it."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        try:
            ray.init(address=address or "auto", **{k: v for k, v in quiet.items() if k != "include_dashboard"})
        except ConnectionError:
            if address is not None:
                raise
            ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(expected("--address", "a Ray cluster that can be reached", error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, threads: int, gpu: bool) -> int:
    resources = ray.cluster_resources()
    if gpu:
        return max(1, int(resources.get("GPU", 0)))
    return max(1, int(resources.get("CPU", 1)) // threads)


def _unwrapped(error: BaseException) -> ProtomaskError:
    """What a worker raised on purpose; else that Ray failed, and how."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ProtomaskError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    said = str(error).strip().splitlines()[-1]
    return ResourceError(said.partition("protomask.errors.ResourceError: ")[2] or f"ray: {said}")
