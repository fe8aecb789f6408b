"""Pool the pairs of several runs of localisation.py, such as one per training seed, into one table.

Each run is a folder with the pairs.csv that localisation.py writes; methods and metrics that all runs have are kept,
and intervals are clustered by image, model and run. What `protomask evaluate` wrote: full_table.py. ::

    python benchmarks/pool.py --out benchmarks/results/cub20-clear-parts-pooled \\
        benchmarks/results/cub20-clear-parts benchmarks/results/cub20-clear-parts-1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from localisation import Pool, tables

from protomask.files import write_text
from protomask.metrics import METRICS
from protomask.reporting.tidy import read_csv
from protomask.store import prepare_output, write_scores


def pooled(runs: list[Path]) -> Pool:
    """The pairs of all runs, one after the other."""
    read = [read_csv(run / "pairs.csv") for run in runs]
    first = read[0][1]
    methods = [m for m in first if all(m in values for _, values in read)]
    metrics = [k for k in METRICS if all(k in values[m] for _, values in read for m in methods)]
    values = {m: {k: np.concatenate([v[m][k] for _, v in read]) for k in metrics} for m in methods}
    return Pool(values, tuple(f"{n}/{pair.group}" for n, (pairs, _) in enumerate(read) for pair in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DIR")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = prepare_output(args.out)
    pool = pooled([Path(run) for run in args.runs])
    summaries = pool.summaries()
    text = "\n\n".join([f"`python benchmarks/pool.py {' '.join(sys.argv[1:])}`", *tables(pool, summaries)])
    print(text)
    write_text(out / "table.md", text + "\n")
    write_scores(out / "scores.json", {"pooled": summaries})


if __name__ == "__main__":
    main()
