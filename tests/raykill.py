"""A run on a local Ray cluster whose workers are killed at random moments, against the same run in one process.

    python -m tests.raykill --kills 1 locate demo:protopnet photos/ --threads 1 --out {out}

prints, as JSON, how many workers were killed, the files that differ, and the seconds that both took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from protomask.cli import main
from protomask.jobs.folder import workers as workers_of
from tests.killing import contents


def parents() -> dict[int, tuple[int, str]]:
    """Process id -> its parent, and what it calls itself, of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (parent, (folder / "cmdline").read_bytes().decode(errors="replace"))
        except (OSError, ValueError, IndexError):
            continue
    return found


def actors() -> list[int]:
    """The process ids of our own cluster's actors: below us, so that nobody else's are hit."""
    known = parents()

    def ours(pid: int) -> bool:
        while pid in known and pid > 1:
            if pid == os.getpid():
                return True
            pid = known[pid][0]
        return False

    return [pid for pid, (_, name) in known.items() if name.startswith("ray::") and "Worker" in name and ours(pid)]


class Killer(threading.Thread):
    """Kills one actor at a random moment after the first shard is stored, again and again, while the run lasts."""

    def __init__(self, out: Path, kills: int, seed: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.out, self.left, self.chance, self.pause = out, kills, random.Random(seed), pause
        self.done, self.killed = threading.Event(), 0

    def run(self) -> None:
        while self.left and not self.done.is_set():
            if not list((self.out / "shards").glob("*.npz")):
                self.done.wait(0.05)
                continue
            self.done.wait(self.chance.uniform(0, self.pause))
            at_work = actors()
            if at_work and not self.done.is_set():
                os.kill(self.chance.choice(at_work), signal.SIGKILL)
                self.left, self.killed = self.left - 1, self.killed + 1


def timed(command: list[str], out: Path) -> float:
    begun = time.perf_counter()
    places = [str(out) if a == "{out}" else a for a in command]
    if main(places) != 0:
        raise SystemExit("a run failed")
    return time.perf_counter() - begun


def trial(
    command: list[str], kills: int, seed: int, work: Path, *, workers: int = 2, pause: float = 1.0
) -> dict[str, object]:
    """The command in one process, and on a cluster of which workers are killed."""
    one, many = work / "one", work / "many"
    alone = timed(command, one)
    killer = Killer(many, kills, seed, pause)
    killer.start()
    begun = time.time()
    together = timed([*command, "--engine", "ray", "--workers", str(workers)], many)
    killer.done.set()
    wanted, came = contents(one), contents(many)
    wrong = sorted(name for name in wanted.keys() | came.keys() if wanted.get(name) != came.get(name))
    first = min(path.stat().st_mtime for path in (many / "shards").glob("*.npz")) - begun
    return {
        "killed": killer.killed,
        "wrong": wrong,
        "files": len(wanted),
        "one_s": round(alone, 1),
        "ray_s": round(together, 1),
        "ray_first_s": round(first, 1),
        "one_shards_s": round(sum(worker.seconds for worker in workers_of(one)), 1),
        "ray_shards_s": round(sum(worker.seconds for worker in workers_of(many)), 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    sys.stdout, told = sys.stderr, sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trial(args.command, args.kills, args.seed, Path(folder))), file=told)
