"""Pool the pairs of several runs of localisation.py, such as one per training seed, into one table.

Each run is a folder with the pairs.csv that localisation.py writes; methods and metrics that all runs have are kept,
and intervals are clustered by image and run. ::

    python benchmarks/pool.py --out benchmarks/results/cub20-clear-parts-pooled \\
        benchmarks/results/cub20-clear-parts benchmarks/results/cub20-clear-parts-1
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from localisation import Pool, tables

from protomask.files import write_text
from protomask.metrics import METRICS
from protomask.store import prepare_output, write_scores

Scores = dict[str, dict[str, dict[tuple[str, str, str], float]]]


def read(folder: Path) -> Scores:
    """method -> metric -> (model, image, prototype) -> score."""
    scores: Scores = {}
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            pair = (row["model"], row["image"], row["prototype"])
            value = float(row["score"]) if row["score"] else np.nan
            scores.setdefault(row["method"], {}).setdefault(row["metric"], {})[pair] = value
    return scores


def pooled(runs: list[Scores]) -> Pool:
    """The pairs of all runs, one after the other."""
    methods = [m for m in runs[0] if all(m in run for run in runs)]
    metrics = [k for k in METRICS if all(k in run[m] for run in runs for m in methods)]
    pairs = [list(run[methods[0]][metrics[0]]) for run in runs]
    values = {
        m: {k: np.array([run[m][k][p] for run, own in zip(runs, pairs, strict=True) for p in own]) for k in metrics}
        for m in methods
    }
    return Pool(values, tuple(f"{n}/{model}/{image}" for n, own in enumerate(pairs) for model, image, _ in own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DIR")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = prepare_output(args.out)
    pool = pooled([read(Path(run)) for run in args.runs])
    summaries = pool.summaries()
    text = "\n\n".join([f"`python benchmarks/pool.py {' '.join(sys.argv[1:])}`", *tables(pool, summaries)])
    print(text)
    write_text(out / "table.md", text + "\n")
    write_scores(out / "scores.json", {"pooled": summaries})


if __name__ == "__main__":
    main()
