"""Kill -9 at random moments of ``locate`` and of ``evaluate``: is every resumed result that of an uninterrupted run?

    PYTHONPATH=. python benchmarks/kill.py --kills 50

Half of the kills hit ``locate``, half ``evaluate``, on the shipped model and planted birds. Prints, per command, how
many kills hit a run at work, how many runs were resumed to their end, and every file in which any of them differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import torch

from protomask.data import Planted
from tests.killing import trial

QUIET = ("--out", "{out}", "--panels", "1", "--quiet")
LOCATE = ("locate", "demo:protopnet", "{photos}", "--set", "steps=2", *QUIET)
DATA = ("--data", "planted", "--scenes", "40", "--pairs", "8", "--batch", "4")
EVALUATE = ("evaluate", "demo:protopnet", *DATA, "--methods", "single-mask,upsampling,centre", *QUIET)


def photos(folder: Path, count: int) -> Path:
    """Planted birds as image files, and one that is broken."""
    folder.mkdir()
    scenes = Planted("birds", "test", count=count)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), scenes[index].image[..., ::-1])
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for name, command, kills in (
        ("locate", LOCATE, args.kills - args.kills // 2),
        ("evaluate", EVALUATE, args.kills // 2),
    ):
        with tempfile.TemporaryDirectory() as folder:
            images = photos(Path(folder) / "photos", args.images)
            told = trial([str(images) if a == "{photos}" else a for a in command], kills, args.seed, Path(folder))
        print(json.dumps({"command": name, **told}), flush=True)
        wrong += len(told["wrong"])  # type: ignore[arg-type]
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
