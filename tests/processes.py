"""Several processes in one folder, as children of one that has everything imported; prints, as JSON, how they ended.

python -m tests.processes WORK IMAGES
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from protomask.jobs import cutting
from protomask.jobs.folder import Folder
from protomask.store import read_run
from tests.killing import contents, start, trial

OPTIONS = ["--beside", "centre", "--targets", "all", "--panels", "1", "--quiet", "--set", "steps=2", "--out"]


def code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def scenarios(work: Path, images: str) -> dict[str, object]:
    command = ["locate", "tests.toys:block_model", images, *OPTIONS]
    whole, shared, limited = work / "whole", work / "shared", work / "limited"
    told: dict[str, object] = {"whole": code(start([*command, str(whole)]))}
    wanted = contents(whole)
    told["shared"] = [code(child) for child in [start([*command, str(shared)]) for _ in range(2)]]
    told["shared same"] = contents(shared) == wanted
    errors = work / "limited.txt"
    told["limited"] = code(start([*command, str(limited)], largest=4000, errors=errors))
    told["limited said"] = errors.read_text()
    told["limited again"] = code(start([*command, str(limited)]))
    told["limited same"] = contents(limited) == wanted
    errors = work / "refused.txt"
    with Folder(whole, read_run(whole).plan):
        told["refused"] = code(start([*command, str(whole), "--seed", "5"], errors=errors))
    told["refused said"], told["pid"] = errors.read_text(), os.getpid()
    stopped, errors = work / "stopped", work / "stopped.txt"
    slow = [*command, str(stopped), "--set", "steps=2000"]
    child = start(slow, errors=errors)
    while not list((stopped / "shards").glob("*.npz")):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    told["stopped"], told["stopped said"] = code(child), errors.read_text()
    told["killed"] = trial([*command, "{out}"], 5, 0, work)
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    cutting.IMAGES_PER_CHUNK = 1
    print(json.dumps(scenarios(Path(sys.argv[1]), sys.argv[2])))
