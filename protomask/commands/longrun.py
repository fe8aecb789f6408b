"""What ``locate`` and ``evaluate`` share as long runs: options, thread count, and how they end."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from protomask.commands.common import positive
from protomask.errors import DataError, InputError, ProtomaskError, expected
from protomask.jobs.folder import Folder, locked
from protomask.jobs.onray import ray_engine
from protomask.jobs.work import Engine, Job, Terms, work
from protomask.store.plans import Plan, plan_path, read_plan
from protomask.store.runs import Run


def add_long_run_options(parser: argparse.ArgumentParser) -> None:
    """``--shard``, ``--assemble``, ``--strict``, ``--threads``, ``--engine`` and ``--address``."""
    group = parser.add_argument_group(
        "long runs",
        "Results are stored as they come, in shards under --out; the same command goes on where a run was stopped. "
        "`protomask status DIR` tells how far it is.",
    )
    group.add_argument("--shard", type=share_option, metavar="I/N", help="compute only this of N shares, I from 0")
    group.add_argument("--assemble", action="store_true", help="compute nothing, write the files from what is stored")
    group.add_argument("--strict", action="store_true", help="stop at the first bad item instead of skipping it")
    group.add_argument(
        "--threads", type=positive, metavar="N", help="of the processor (default: as the run began, else torch's own)"
    )
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="what computes (default: local)")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="ray: the cluster (default: a running one, else a new one)"
    )
    group.add_argument(
        "--workers", type=positive, metavar="N", help="ray: how many (default: one per GPU, else per CPU)"
    )


def share_option(text: str) -> tuple[int, int]:
    """``2/8`` as (2, 8), for argparse."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[0]) >= int(parts[1]):
        raise argparse.ArgumentTypeError(f"expected I/N with I in 0 .. N - 1, got {text!r}")
    return int(parts[0]), int(parts[1])


def terms_of(args: argparse.Namespace) -> Terms:
    """How this process works."""
    if args.assemble and args.shard is not None:
        raise InputError(expected("--assemble", "not beside --shard", "both"))
    return Terms(args.shard, args.strict, args.progress)


def engine_of(args: argparse.Namespace, plan: Plan, reopen: Callable[[], Job]) -> Engine | None:
    """What computes: None for this process itself.

    Args:
        args: of the command.
        plan: of the job.
        reopen: opens the same job in another process; must be picklable.
    """
    if args.engine == "local":
        return None
    return ray_engine(reopen, args.address, args.workers, gpu=plan.settings["device"] == "cuda")


def threads_of(asked: int | None, out: Path) -> int:
    """As asked, else as the run in the folder began, else torch's own."""
    if asked is not None:
        return asked
    return _count(_begun(out), "threads") or torch.get_num_threads()


def batch_of(asked: int | str, memory: int | None, device: str, out: Path) -> int | str:
    """``--batch`` as asked; on a GPU ``auto`` is what the run in the folder began with on one.

    What fits differs from day to day with who else is on the GPU, and with another batch nothing stored would be ours.

    Args:
        asked: a number or ``"auto"``.
        memory: bytes that a pass may take, which decides where it is given.
        device: ``"cpu"`` or ``"cuda"``.
        out: the output folder.
    """
    begun = _begun(out)
    if asked != "auto" or memory is not None or device != "cuda" or begun.get("device") != device:
        return asked
    return _count(begun, "batch") or asked


def _begun(out: Path) -> Mapping[str, Any]:
    """The settings of the run in a folder; none where there is no run."""
    if not plan_path(out).is_file():
        return {}
    try:
        return read_plan(out).settings
    except DataError:
        return {}


def _count(settings: Mapping[str, Any], name: str) -> int | None:
    """A setting, if it is an integer of at least 1."""
    value = settings.get(name)
    return value if isinstance(value, int) and value >= 1 else None


def run_job(
    job: Job,
    out: Path,
    terms: Terms,
    engine: Engine | None,
    *,
    assemble: bool,
    say: Callable[[float], object],
    finish: Callable[[Folder], object],
    rescue: Callable[[Folder], object] | None = None,
) -> bool:
    """Compute what is missing and write the final files.

    Args:
        job: what is computed.
        out: the output folder.
        terms: how.
        engine: what computes.
        assemble: compute nothing.
        say: told of the share of maps that is missing, before anything is computed.
        finish: writes the final files.
        rescue: writes what can be told of an unfinished run, where it is interrupted.

    Returns:
        Whether the final files were written: not by one of several shares.
    """
    with Folder(out, job.plan) as folder:
        if not assemble:
            say(_missing_share(folder.run))
            try:
                work(job, folder, terms, engine)
            except (KeyboardInterrupt, DataError):
                if rescue is not None and terms.share is None:
                    with contextlib.suppress(ProtomaskError):  # what stopped the run is what is to be told
                        rescue(folder)
                raise
        if terms.share is not None:
            index, count = terms.share
            print(f"share {index} of {count} is done; with all done, the same command with --assemble writes the files")
            return False
        if folder.run.missing():
            left = f"{len(folder.run.missing())} of {len(folder.run)} missing"
            if rescue is None:
                raise DataError(expected(f"shards in {out}", "all of them", left))
            print(f"incomplete: {left}")
        # Processes that end together would take each other's files for those of an earlier run.
        with locked(folder.path, "plan"):
            finish(folder)
    return True


def _missing_share(run: Run) -> float:
    total = sum(shard.maps for shard in run.plan.shards)
    return sum(shard.maps for shard in run.missing()) / max(1, total)
