"""Ray on one machine against one process: the same bytes? At what overhead? And what that means for all of CUB.

    PYTHONPATH=. python benchmarks/ray_overhead.py --workers 2 --out benchmarks/results/ray
    PYTHONPATH=. python benchmarks/ray_overhead.py --kills 10            # workers killed at random moments
    PYTHONPATH=. python benchmarks/ray_overhead.py --project 3000        # arithmetic alone, from passes/s of one GPU

``start_s`` is the cluster, ``one_s`` the run in one process, ``ray_s`` the same run on the cluster once it is up, the
actors' start and model loading included, both with the threads of one worker. With as many cores as workers, an ideal
cluster takes one_s / workers: ``overhead`` is ray_s * workers / one_s, and ``speed-up`` one_s / ray_s.

``ray_first_s`` is when the first shard was stored: what starting the actors costs, once. ``one_shards_s`` and
``ray_shards_s`` are the seconds that the shards took, summed over workers, reading not included on Ray.

The projection for P prototypes on I images: P * I pairs, MDM's passes per pair, ``rate`` forward + gradient passes per
second and GPU, the overhead as measured, and what the driver does alone and one shard at a time: storing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for the workers

import cv2
import numpy as np
import torch

from protomask.allocator import keep_memory
from protomask.data import Planted
from protomask.files import prepare_output, write_bytes, write_text
from protomask.jobs.cutting import PAIRS_PER_CHUNK
from protomask.localisers import MDM
from tests.raykill import trial

PROTOTYPES, IMAGES = 2000, 5794
GPUS = (1, 8, 64)


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    scenes = Planted("birds", "test", count=count)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:04d}.png"), scenes[index].image[..., ::-1])
    return folder


def storing_seconds(work: Path, size: int = 60_000, times: int = 50) -> float:
    """What the driver takes to store one shard of so many bytes."""
    content = np.random.default_rng(0).bytes(size)
    begun = time.perf_counter()
    for k in range(times):
        write_bytes(work / f"{k}.npz", content)
    return (time.perf_counter() - begun) / times


def projection(rate: float, overhead: float, storing: float) -> list[str]:
    """Lines of arithmetic: hours on 1, 8 and 64 GPUs."""
    pairs, passes = PROTOTYPES * IMAGES, MDM().passes
    shards = IMAGES * -(-PROTOTYPES // PAIRS_PER_CHUNK)
    lines = [
        f"{PROTOTYPES} prototypes x {IMAGES} images = {pairs} pairs; x {passes:.0f} forward + gradient passes = "
        f"{pairs * passes:.3g} passes; {shards} shards of at most {PAIRS_PER_CHUNK} pairs.",
        f"{rate:g} passes/s and GPU, overhead {overhead:.2f}, {1000 * storing:.1f} ms to store a shard, serial.",
    ]
    for gpus in GPUS:
        computing = pairs * passes / (rate * gpus) * overhead
        stored = shards * storing
        bound, most = ("computing", computing) if computing > stored else ("storing", stored)
        lines.append(
            f"{gpus} GPUs: {pairs * passes:.3g} / ({rate:g} x {gpus}) x {overhead:.2f} = {computing / 3600:.1f} h of "
            f"computing, {stored / 3600:.1f} h of storing beside it: {most / 3600:.1f} h, {bound} bounds."
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--model", default="demo:protopnet")
    parser.add_argument("--kills", type=int, default=0, help="workers to kill, at random moments")
    parser.add_argument("--pause", type=float, default=10.0, help="most seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--project", type=float, metavar="RATE", help="forward + gradient passes per second of one GPU")
    parser.add_argument("--overhead", type=float, default=1.0, help="for --project alone")
    parser.add_argument("--out", help="a folder for ray.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        storing = storing_seconds(work)
        if args.project is not None:
            print("\n".join(projection(args.project, args.overhead, storing)))
            return 0
        keep_memory()
        torch.set_num_threads(1)
        import ray

        begun = time.perf_counter()
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        told: dict[str, object] = {"start_s": round(time.perf_counter() - begun, 1), "workers": args.workers}
        command = ["locate", args.model, str(photos(work / "photos", args.images)), "--threads", "1", "--panels", "0"]
        command += ["--quiet", "--out", "{out}"]
        told |= trial(command, args.kills, args.seed, work, workers=args.workers, pause=args.pause)
    one, many = float(str(told["one_s"])), float(str(told["ray_s"]))
    told |= {"overhead": round(many * args.workers / one, 3), "speed-up": round(one / many, 3)}
    told |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "storing_ms": round(1000 * storing, 2)}
    print(json.dumps(told))
    if args.out:
        write_text(prepare_output(args.out) / "ray.json", json.dumps(told, indent=1) + "\n")
    return 1 if told["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
