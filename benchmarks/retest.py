"""How far the causal part agrees with itself: the truth of `part-hit`, found again with another fill or radius.

The truth of a pair is the part whose in-painted disc (radius .05 of the box's diagonal) costs most activation, where it
wins clearly (:func:`protomask.metrics.causal_parts`). No method can hit a part better than that part is known: here the
same pairs' parts are found with other discs, and the part then strongest is scored like a method's peak. ::

    python benchmarks/retest.py runs/cub --data cub --root CUB --pairs 200 --out benchmarks/results/retest
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from localisation import cell, provenance
from tqdm import tqdm

from protomask.commands.common import (
    add_evaluation_data_options,
    add_run_options,
    choose_device,
    dataset_for,
    positive,
    settle_batch,
)
from protomask.data import Dataset
from protomask.data.inpaint import PART_RADIUS, disc, inpaint_disc
from protomask.data.sample import Sample
from protomask.errors import DataError, expected
from protomask.files import write_text
from protomask.loading import load_model
from protomask.metrics import Summary, causal_parts, summarise
from protomask.model import Contract, device_of, untouched
from protomask.pairs import Pair, draw_pairs, drops_without
from protomask.store import prepare_output, write_scores

TRUTH = "in-painted, .05"
COLUMNS = ("same part", "clear, and the same", "within r", "within 2 r")


@dataclass(frozen=True)
class Removal:
    """A way to take a part out: what fills its disc, and the disc's radius as a share of the box's diagonal."""

    fill: str
    radius: float

    def __call__(self, image: np.ndarray, x: float, y: float, radius: float, mean: np.ndarray) -> np.ndarray:
        """``image`` [H, W, 3] uint8 without the disc of ``radius`` pixels round (x, y)."""
        if self.fill == "in-painted":
            return inpaint_disc(image, x, y, radius)
        without = (
            cv2.GaussianBlur(image, (0, 0), radius) if self.fill == "blurred" else np.broadcast_to(mean, image.shape)
        )
        return np.where(disc(image.shape[:2], x, y, radius)[..., None], without, image).astype(np.uint8)


REMOVALS = {
    TRUTH: Removal("in-painted", PART_RADIUS),
    "in-painted, .04": Removal("in-painted", 0.8 * PART_RADIUS),
    "in-painted, .0625": Removal("in-painted", 1.25 * PART_RADIUS),
    "mean colour, .05": Removal("mean colour", PART_RADIUS),
    "blurred, .05": Removal("blurred", PART_RADIUS),
}


def geometry(sample: Sample) -> tuple[np.ndarray, float]:
    """A sample's points [K, 2] and its box's diagonal, both in pixels.

    Raises:
        DataError: it has no points or no box.
    """
    if sample.points is None or sample.box is None:
        raise DataError(expected("data", "annotated points and a box on every image", sample.image_id))
    return np.asarray(sample.points, dtype=float), float(np.hypot(*(sample.box[2:] - sample.box[:2])))


def drops(model: Contract, dataset: Dataset, pairs: Sequence[Pair], removal: Removal, batch: int) -> torch.Tensor:
    """[N, K] relative drops of every part of every pair; NaN where it is not visible."""
    mean, found = np.rint(np.array(model.mean) * 255), []
    for pair in tqdm(pairs, desc=f"{removal.fill} {removal.radius:.4g}", unit="pair", leave=False):
        sample = dataset[pair.index]
        points, diagonal = geometry(sample)
        radius = removal.radius * diagonal
        removed = [
            None if np.isnan((x, y)).any() else removal(sample.image, x, y, radius, mean) for x, y in points.tolist()
        ]
        before, floor = torch.tensor([[pair.activation], [pair.floor]], device=device_of(model))
        found.append(drops_without(model, [removed], [pair.prototype], before, floor, batch))
    return torch.cat(found).cpu()


def agreement(
    dataset: Dataset, pairs: Sequence[Pair], found: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, Summary]], dict[str, int]]:
    """Per removal: :data:`COLUMNS` over the pairs that are clear under the truth; and how many are clear under each."""
    clear = {name: causal_parts(values).part.numpy() for name, values in found.items()}
    rows = np.flatnonzero(clear[TRUTH] >= 0).tolist()
    groups = tuple(pairs[row].group for row in rows)
    places = [geometry(dataset[pairs[row].index]) for row in rows]
    told = {}
    for name, values in found.items():
        strongest = values.nan_to_num(nan=-torch.inf).argmax(1).numpy()
        columns = np.full((len(COLUMNS), len(rows)), np.nan)
        for n, (row, (points, diagonal)) in enumerate(zip(rows, places, strict=True)):
            part = clear[TRUTH][row]
            far = float(np.hypot(*(points[strongest[row]] - points[part]))) / (PART_RADIUS * diagonal)
            columns[:, n] = strongest[row] == part, clear[name][row] == part, far <= 1, far <= 2
        told[name] = {c: summarise(v, groups) for c, v in zip(COLUMNS, columns, strict=True)}
    return told, {name: int((parts >= 0).sum()) for name, parts in clear.items()}


def text(command: str, told: Mapping[str, Mapping[str, Summary]], counts: Mapping[str, int], pairs: int) -> str:
    """The table, as Markdown."""
    lines = [
        f"`{command}`",
        "",
        f"{pairs} pairs, {counts[TRUTH]} of them with a clear causal part (first row). Of these, mean and 95 % "
        "interval clustered by image: how often the part found again is the same; is the same and wins clearly again; "
        "lies within one or two radii of it, as `part-hit` and `part-hit-2r` count a peak.",
        "",
        f"| removed by | pairs with a clear part | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, row in told.items():
        lines.append(f"| {name} | {counts[name]} | {' | '.join(cell(row[c]) for c in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw the pairs, find their parts five times, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--pairs", type=positive, default=200, help="default: %(default)s")
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--clear-parts", action="store_true", help="only pairs with a clear causal part (less to score)"
    )
    add_evaluation_data_options(parser)
    add_run_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    out = prepare_output(args.out)
    start = time.perf_counter()
    loaded = load_model(args.model, choose_device(args.device))
    settle_batch(args, loaded)
    dataset = dataset_for(args, loaded)
    pairs = draw_pairs(
        loaded.model, dataset, args.pairs, seed=args.seed, batch=args.batch, clear=args.clear_parts
    ).pairs
    with untouched(loaded.model.module), torch.no_grad():
        found = {name: drops(loaded.model, dataset, pairs, how, args.batch) for name, how in REMOVALS.items()}
    told, counts = agreement(dataset, pairs, found)
    about = provenance("retest.py", args.seed, time.perf_counter() - start)
    said = text(str(about["command"]), told, counts, len(pairs))
    print(said)
    write_text(out / "table.md", said)
    write_scores(out / "scores.json", {"retest": told})
    write_text(out / "about.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
