"""Resident memory of a long run: does it depend on how much data there is?

    PYTHONPATH=. python benchmarks/memory_flat.py --pairs 10000
    PYTHONPATH=. python benchmarks/memory_flat.py --pairs 10000 --kind evaluate

A toy model on 32 x 32 images, so that nothing else takes the memory. Resident pages are read after every shard; the
first fifth of the pairs is warm-up. ``growth`` is the highest reading afterwards, putting the files together included,
over the highest reading of the warm-up, minus one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import torch

from protomask.allocator import keep_memory
from protomask.commands.located import write_tables
from protomask.jobs.drawing import drawn_pairs
from protomask.jobs.evaluating import EvaluateJob, EvaluateTask, gather, plan_evaluate
from protomask.jobs.folder import Folder
from protomask.jobs.locating import LocateJob, LocateTask, plan_locate
from protomask.jobs.work import Terms, work
from protomask.loading import Loaded
from protomask.model import contract
from tests.toys import BlockScenes, block_model

WARM = 0.2


def resident() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Watched:
    """A job that notes the resident memory after every shard."""

    job: Any
    seen: list[float] = field(default_factory=list)

    @property
    def plan(self) -> Any:
        return self.job.plan

    @property
    def reader(self) -> Any:
        return self.job.reader

    def compute(self, shard: Any, read: Any) -> Any:
        result = self.job.compute(shard, read)
        self.seen.append(resident())
        return result


def locate_job(pairs: int, folder: Path, loaded: Loaded) -> LocateJob:
    data = BlockScenes(count=-(-pairs // 3))
    images = []
    for index in range(len(data)):
        path = folder / f"{index:06d}.png"
        cv2.imwrite(str(path), data[index].image[..., ::-1])
        images.append((path.name, path))
    task = LocateTask("all", {"single-mask": {"steps": 2}, "centre": {}})
    return LocateJob(plan_locate(loaded, images, task), loaded, task)


def evaluate_job(pairs: int, out: Path, loaded: Loaded) -> EvaluateJob:
    data = BlockScenes(count=pairs)
    drawn = drawn_pairs(out, loaded, data, {}, pairs=pairs, seed=0, batch=32, clear=False, thread_count=1)
    task = EvaluateTask(("single-mask", "centre"))
    return EvaluateJob(plan_evaluate(loaded, data, drawn, task), loaded, data, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--kind", choices=("locate", "evaluate"), default="locate")
    parser.add_argument("--json", action="store_true", help="only the result")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    loaded = Loaded("blocks", contract(block_model()), (32, 32))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, images = Path(folder) / "out", Path(folder) / "images"
        images.mkdir()
        job = locate_job(args.pairs, images, loaded) if args.kind == "locate" else evaluate_job(args.pairs, out, loaded)
        watched = Watched(job)
        with Folder(out, job.plan) as store:
            work(watched, store, Terms(progress=not args.json))
            if args.kind == "locate":
                write_tables(out, loaded, store.run, "single-mask")
            else:
                gather(store.run, job.dataset, lambda *_: watched.seen.append(resident()))
        watched.seen.append(resident())
    warm = max(1, round(WARM * len(watched.seen)))
    before, after = max(watched.seen[:warm]), max(watched.seen[warm:])
    told = {
        "pairs": len(job.plan.items) * (3 if args.kind == "locate" else 1),
        "shards": len(job.plan.shards),
        "warm_mb": round(before, 1),
        "most_mb": round(after, 1),
        "growth": round(after / before - 1, 4),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
