"""Runs of the command that are killed at random moments, in children of one process that has everything imported.

    python -m tests.killing --kills 5 locate demo:protopnet photos/ --out {out}

prints, as JSON, how many kills hit a run at work, how many runs were resumed to their end, and the files in which any
of them differs from an uninterrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from protomask.cli import main

OWN = ("workers", "plan.lock", "drawing.lock")  # who worked when; not a part of the results


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder of results by its digest."""
    files = [p for p in folder.rglob("*") if p.is_file() and not set(p.relative_to(folder).parts) & set(OWN)]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def start(arguments: list[str], *, largest: int | None = None, errors: Path | None = None) -> int:
    """A child that runs the command, with a limit on the size of a file and its errors in a file; its process id."""
    child = os.fork()
    if child == 0:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        if errors is not None:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        torch.set_num_threads(1)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        try:
            os._exit(main(arguments))
        finally:
            os._exit(1)
    return child


def finished(child: int, within: float) -> bool:
    """Whether the child ended by itself within so many seconds; killed where it did not."""
    end = time.perf_counter() + within
    while time.perf_counter() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"a run failed: {status}")
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def trial(command: list[str], kills: int, seed: int, work: Path) -> dict[str, object]:
    """Kill and resume until so many kills hit, and the last run has ended."""
    chance = random.Random(seed)
    out, places = work / "out", [str(work / "out") if a == "{out}" else a for a in command]
    began = time.perf_counter()
    finished(start(places), 1e6)
    whole = time.perf_counter() - began
    wanted = contents(out)
    shutil.rmtree(out)
    hits, ends, wrong = 0, 0, set()
    while hits < kills or out.exists():
        alone = hits >= kills
        if finished(start(places), 1e6 if alone else chance.uniform(0, whole)):
            ends += 1
            came = contents(out)
            wrong |= {name for name in wanted.keys() | came.keys() if wanted.get(name) != came.get(name)}
            shutil.rmtree(out)
        else:
            hits += 1
            out.mkdir(exist_ok=True)
    return {"kills": hits, "resumed": ends, "files": len(wanted), "seconds": round(whole, 2), "wrong": sorted(wrong)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trial(args.command, args.kills, args.seed, Path(folder))))
