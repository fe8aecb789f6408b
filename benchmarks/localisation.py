"""Localisation quality of all methods on the pairs of one or several models: the tables of the README and the notes.

Pairs are drawn from the test split, unseen in training and in tuning; several models (training seeds) are pooled, with
intervals clustered by image and model. Prints and writes a table of means with 95 % intervals, the paired differences
of MDM to every other method, and how hard the pairs are. ::

    python benchmarks/localisation.py --data planted --scenes 400 --pairs 120 --out benchmarks/results/planted \\
        runs/planted-1 runs/planted-2
    python benchmarks/localisation.py --data cub --root CUB --species 10,12,14 --pairs 200 \\
        --out benchmarks/results/cub20 runs/cub20
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from protomask.allocator import keep_memory
from protomask.commands.common import (
    DIRECTIONS,
    add_evaluation_data_options,
    add_run_options,
    choose_device,
    dataset_for,
    names_option,
    positive,
    settle_batch,
    versions,
)
from protomask.data import Dataset
from protomask.evaluation import METHODS, Evaluation, evaluate
from protomask.files import write_text
from protomask.loading import Loaded, load_model
from protomask.metrics import METRICS, Summary, check_metrics, paired_difference, summarise
from protomask.reporting.tidy import Scored, write_csv
from protomask.store import prepare_output, write_scores


@dataclass(frozen=True, eq=False)
class Pool:
    """Scores of all models together: method -> metric -> [N], and the clusters of the N pairs."""

    values: dict[str, dict[str, np.ndarray]]
    groups: tuple[str, ...]

    def summaries(self) -> dict[str, dict[str, Summary]]:
        return {m: {k: summarise(v, self.groups) for k, v in s.items()} for m, s in self.values.items()}

    def differences(self, reference: str) -> dict[str, dict[str, Summary]]:
        mine = self.values[reference]
        others = {m: s for m, s in self.values.items() if m != reference}
        return {m: {k: paired_difference(mine[k], v, self.groups) for k, v in s.items()} for m, s in others.items()}


def pool(results: Sequence[Evaluation]) -> Pool:
    first = results[0].values
    values = {m: {k: np.concatenate([r.values[m][k] for r in results]) for k in first[m]} for m in first}
    return Pool(values, tuple(f"{n}/{g}" for n, r in enumerate(results) for g in r.groups))


def cell(summary: Summary | None) -> str:
    if summary is None or summary.n == 0:
        return "-"
    return f"{summary.mean:.3f} [{summary.low:.3f}, {summary.high:.3f}]"


def table(rows: dict[str, dict[str, Summary]], metrics: Sequence[str]) -> str:
    heads = [f"{m} ({'higher' if DIRECTIONS[m] > 0 else 'lower'})" for m in metrics]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| {m} | " + " | ".join(cell(s.get(k)) for k in metrics) + " |" for m, s in rows.items()]
    return "\n".join(lines)


def tables(pool: Pool, summaries: dict[str, dict[str, Summary]]) -> list[str]:
    """Paragraphs: how many pairs, their means, and the paired differences of MDM to every other method."""
    shown = [m for m in METRICS if any(s[m].n for s in summaries.values() if m in s)]
    return [
        f"{len(pool.groups)} pairs scored, {len(set(pool.groups))} images; mean and 95 % interval.",
        table(summaries, shown),
        "MDM minus each other method, paired; 95 % interval.",
        table(pool.differences("mdm"), shown),
    ]


@dataclass(frozen=True, eq=False)
class Done:
    """One model's evaluation, and what it was made of."""

    result: Evaluation
    loaded: Loaded
    dataset: Dataset


def difficulty(runs: Sequence[Done]) -> str:
    areas, clear, drawn = [], 0, 0
    for done in runs:
        clear, drawn = clear + done.result.pairs.qualified, drawn + done.result.pairs.drawn
        for pair in done.result.pairs.pairs:
            masks = done.dataset[pair.index].part_masks
            if pair.part >= 0 and masks is not None:
                areas.append(float(masks[pair.part].mean()))
    said = f"{drawn} pairs drawn, {clear} with a clear causal part."
    return said + (f" Median part: {100 * float(np.median(areas)):.2f} % of the image." if areas else "")


def run(args: argparse.Namespace) -> list[Done]:
    done = []
    for name in args.models:
        loaded = load_model(name, choose_device(args.device))
        settle_batch(args, loaded)
        data = dataset_for(args, loaded)
        result = evaluate(
            loaded.model,
            data,
            args.methods.split(","),
            pairs=args.pairs,
            seed=args.seed,
            batch=args.batch,
            clear_parts=args.clear_parts,
            metrics=args.metrics,
            progress=args.progress,
        )
        done.append(Done(result, loaded, data))
    return done


def scored(done: Done, number: int) -> list[Scored]:
    """What pairs.csv says of one model's pairs; the ``number`` of the model goes into their groups."""
    names = done.dataset.class_names
    found = []
    for pair in done.result.pairs.pairs:
        label = done.dataset[pair.index].label
        found.append(
            Scored(
                image=pair.image_id,
                group=f"{number}/{pair.group}",
                class_name=names[label] if 0 <= label < len(names) else "",
                prototype=pair.prototype,
                prototype_name=done.loaded.model.describe(pair.prototype),
                part=done.dataset.part_names[pair.part] if pair.part >= 0 else "",
            )
        )
    return found


def provenance(script: str, seed: int, seconds: float) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    # Commands that were told have a place of their own.
    own = [word for word, last in zip(sys.argv[1:], sys.argv, strict=False) if "--command" not in (word, last)]
    return {
        "command": shortened(shlex.join(["python", f"benchmarks/{script}", *own])),
        "commit": commit,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "minutes": round(seconds / 60, 1),
    }


def shortened(command: str) -> str:
    """A command line without the folders that only one machine has: of an absolute path the last part stays."""
    return shlex.join(re.sub(r"^(--[\w-]+=)?/(.*/)?(?=[^/]|$)", r"\1", word) for word in shlex.split(command))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--pairs", type=positive, default=200, help="per model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--clear-parts", action="store_true", help="only pairs with a clear causal part")
    parser.add_argument(
        "--metrics", type=names_option, metavar="NAME,...", help="(default: as `protomask evaluate` has it)"
    )
    add_evaluation_data_options(parser)
    add_run_options(parser)
    args = parser.parse_args()
    check_metrics(args.metrics)
    keep_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    out = prepare_output(args.out)
    start = time.perf_counter()
    done = run(args)
    pooled = pool([d.result for d in done])
    summaries = pooled.summaries()
    about = provenance("localisation.py", args.seed, time.perf_counter() - start)
    text = "\n\n".join([f"`{about['command']}`", difficulty(done), *tables(pooled, summaries)])
    print(text)
    write_text(out / "table.md", text + "\n")
    write_scores(out / "scores.json", {"pooled": summaries})
    write_text(out / "about.json", json.dumps(about, indent=2) + "\n")
    write_csv(out / "pairs.csv", [s for n, d in enumerate(done) for s in scored(d, n)], pooled.values)


if __name__ == "__main__":
    main()
