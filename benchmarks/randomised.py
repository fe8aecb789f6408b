"""Sanity check: with shuffled weights no method should find the annotation better than `random` or `centre` does.

The pairs and what they are about are those of the trained model; then its weights are shuffled
(:func:`protomask.sanity.randomised`), the methods locate the same pairs, and each annotation metric is compared with
the better of the two controls: paired, clustered by image and model, Holm's correction over all methods and metrics.
Methods that are significantly better are listed: what they show is the image, or the architecture. A pair whose
activation is at its floor under the shuffled weights has nothing to locate; its map is empty under every method, the
controls among them, and scores as no localisation. ::

    python benchmarks/randomised.py --data planted --scenes 600 --pairs 100 --seeds 0,1,2 \\
        --methods mdm,smoothgrad,upsampling --out benchmarks/results/randomised runs/planted-0 runs/planted-1
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from evaluated import LEVEL, flips
from full_table import block_tables
from localisation import Done, Pool, pool, provenance, scored
from tqdm import tqdm
from writing import markdown, spelt, spelt_p

from protomask.allocator import keep_memory
from protomask.commands.common import (
    DIRECTIONS,
    add_evaluation_data_options,
    add_run_options,
    choose_device,
    dataset_for,
    ids_option,
    load_methods,
    names_option,
    positive,
    settle_batch,
)
from protomask.data import Dataset
from protomask.errors import InputError, ModelError, expected
from protomask.evaluation import CONTROLS, Evaluation, chunk_size, locate_and_score
from protomask.files import write_text
from protomask.loading import Loaded, load_model
from protomask.locating import resolve_method
from protomask.metrics import METRICS, Summary, holm, paired_difference, sign_flip_p
from protomask.pairs import PairSet, draw_pairs, truth_of
from protomask.reporting.tidy import write_csv
from protomask.sanity import randomised
from protomask.store import prepare_output, write_scores

BLIND = ("random", "centre")
ANNOTATION = tuple(name for name, metric in METRICS.items() if metric.family == "annotation")


@dataclass(frozen=True)
class Compared:
    """A method against the better of the two controls on one metric.

    Attributes:
        method: its name.
        metric: its name.
        control: the better of :data:`BLIND` by its mean.
        by: how much better the method is, positive in the metric's direction; paired.
        p: corrected over all methods and metrics; NaN where undefined.
        seeds: in how many of the shuffles its mean is better.
    """

    method: str
    metric: str
    control: str
    by: Summary
    p: float
    seeds: int

    @property
    def exception(self) -> bool:
        """Significantly better."""
        return self.by.mean > 0 and self.p <= LEVEL


def score(
    loaded: Loaded, dataset: Dataset, drawn: PairSet, methods: Sequence[str], weights: int, seed: int, batch: int
) -> tuple[Evaluation, dict[str, int]]:
    """The methods on pairs that the trained model gave, its weights shuffled by ``weights``.

    Also on how many pairs each found nothing; ``random`` finds nothing where the activation is at its floor alone.
    """
    if loaded.model.module is None:
        raise ModelError(expected("model.module", "a module with weights to shuffle", None))
    localisers = {name: resolve_method(name)[0] for name in methods}
    values: dict[str, dict[str, list[np.ndarray]]] = {name: {k: [] for k in ANNOTATION} for name in methods}
    fills, nothing, size = dict[str, str](), dict.fromkeys(methods, 0), chunk_size(batch)
    with randomised(loaded.model.module, weights):
        for start in range(0, len(drawn.pairs), size):
            chunk = list(drawn.pairs[start : start + size])
            samples = [dataset[pair.index] for pair in chunk]
            truth = truth_of(samples, chunk, drawn.kind)
            for name, localiser in localisers.items():
                found, scores = locate_and_score(
                    loaded.model, localiser, samples, chunk, truth, seed=seed, batch=batch, metrics=ANNOTATION
                )
                nothing[name] += int((~found.located).sum())
                fills[name] = found.fill
                for k in ANNOTATION:
                    values[name][k].append(scores[k].double().numpy())
    joined = {name: {k: np.concatenate(v) for k, v in own.items()} for name, own in values.items()}
    return Evaluation(drawn, joined, fills), nothing


def compare(data: Pool, seeds: np.ndarray) -> list[Compared]:
    """Every method that is no control on every metric against the better of the controls.

    Args:
        data: the pairs of all models and shuffles; intervals are clustered by its groups.
        seeds: [N] which shuffle a pair was scored under.
    """
    means = {m: {k: s.mean for k, s in found.items()} for m, found in data.summaries().items()}
    methods = [m for m in data.values if m not in CONTROLS]
    keys = [(m, k) for m in methods for k in ANNOTATION if np.isfinite(data.values[m][k]).any()]
    found, raw = [], []
    for method, metric in keys:
        sign = DIRECTIONS[metric]
        defined = [c for c in BLIND if np.isfinite(means[c][metric])]
        control = max(defined, key=lambda c: sign * means[c][metric]) if defined else BLIND[0]
        mine, other = sign * data.values[method][metric], sign * data.values[control][metric]
        gaps = mine - other
        ahead = sum(float(np.nansum(gaps[seeds == seed])) > 0 for seed in np.unique(seeds))
        raw.append(sign_flip_p(mine, other, data.groups, permutations=flips(len(keys))))
        found.append(Compared(method, metric, control, paired_difference(mine, other, data.groups), 1.0, ahead))
    corrected = holm(np.array(raw, dtype=np.float64))
    return [replace(c, p=float(p)) for c, p in zip(found, corrected, strict=True)]


def exceptions(compared: Sequence[Compared], shuffles: int) -> list[str]:
    rows = [
        [c.method, c.metric, c.control, spelt(c.by), spelt_p(c.p), f"{c.seeds} of {shuffles}"]
        for c in compared
        if c.exception
    ]
    tested = sum(bool(np.isfinite(c.p)) for c in compared)
    if not rows:
        return ["## Exceptions", f"None in {tested} comparisons: no method beats the better control significantly."]
    said = (
        f"{len(rows)} of {tested} comparisons in which a method is significantly better than the better control (p at "
        f"most {LEVEL:.2f} after Holm's correction); positive is better whichever way the metric goes."
    )
    heads = ["method", "metric", "better control", "ahead by", "p", "shuffles in which it is ahead"]
    return ["## Exceptions", said, markdown(heads, rows)]


def text(command: object, data: Pool, compared: Sequence[Compared], shuffles: int, nothing: Mapping[str, int]) -> str:
    summaries = data.summaries()
    by = {(c.method, c.metric): c for c in compared}
    shown = [k for k in ANNOTATION if any(s[k].n for s in summaries.values())]

    def mean(method: str, metric: str) -> str:
        return spelt(summaries[method][metric])

    def gap(method: str, metric: str) -> str:
        c = by.get((method, metric))
        return "-" if c is None or c.by.n == 0 else f"{spelt(c.by)}, {spelt_p(c.p)}{'*' if c.exception else ''}"

    empty = [f"{m} on {n - nothing['random']}" for m, n in nothing.items() if n > nothing["random"]]
    counted = (
        f"{len(data.groups)} scored pairs ({shuffles} shuffles), {len(set(data.groups))} images, an image under each "
        f"model counted by itself. On {nothing['random']} of the pairs the shuffled network's activation is at its "
        f"floor, and every method's map is empty. {'; '.join(empty) or 'No method'} found nothing elsewhere. An empty "
        "map scores as no localisation. Intervals are over images: they say nothing of other shuffles than these."
    )
    methods = [m for m in summaries if m not in CONTROLS]
    return "\n\n".join(
        [
            f"`{command}`",
            counted,
            *exceptions(compared, shuffles),
            "## Means with shuffled weights",
            *block_tables(shown, [*methods, *(m for m in summaries if m in CONTROLS)], mean),
            "## Ahead of the better of random and centre by",
            "Paired; positive is better whichever way the metric goes; 95 % interval; p after Holm's correction. "
            "*: an exception.",
            *block_tables(shown, methods, gap),
        ]
    ) + "\n"  # fmt: skip


def run(args: argparse.Namespace, methods: Sequence[str]) -> tuple[list[Done], list[int], dict[str, int]]:
    """Every model under every shuffle, the models' numbers, and on how many pairs each method found nothing."""
    done, models, nothing = [], [], Counter[str]()
    for number, name in enumerate(args.models):
        loaded = load_model(name, choose_device(args.device))
        settle_batch(args, loaded)
        data = dataset_for(args, loaded)
        drawn = draw_pairs(
            loaded.model, data, args.pairs, seed=args.seed, batch=args.batch, clear=args.clear_parts
        )  # of the trained model
        for seed in tqdm(args.seeds, desc=loaded.name, unit="shuffle", disable=not args.progress):
            result, missing = score(loaded, data, drawn, methods, seed, args.seed, args.batch)
            done.append(Done(result, loaded, data))
            models.append(number)
            nothing.update(missing)
    return done, models, dict(nothing)


def pooled(done: Sequence[Done], models: Sequence[int]) -> Pool:
    """All pairs; one cluster for an image under a model, whatever the shuffle."""
    values = pool([d.result for d in done]).values
    return Pool(values, tuple(f"{n}/{g}" for n, d in zip(models, done, strict=True) for g in d.result.groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--methods", type=names_option, default=("mdm", "upsampling", "smoothgrad"), metavar="NAME,...")
    parser.add_argument("--seeds", type=ids_option, default=(0, 1, 2), metavar="N,N,...", help="of the shuffles")
    parser.add_argument("--pairs", type=positive, default=100, help="per model (default: %(default)s)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--clear-parts", action="store_true", help="only pairs with a clear causal part")
    add_evaluation_data_options(parser)
    add_run_options(parser)
    args = parser.parse_args()
    methods = [*(m for m in (*args.methods, *load_methods(args)) if m not in BLIND), *BLIND]
    if len(methods) == len(BLIND):
        raise InputError(expected("--methods", "a method that is no control", ",".join(args.methods)))
    keep_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    out = prepare_output(args.out)
    start = time.perf_counter()
    done, models, nothing = run(args, methods)
    data = pooled(done, models)
    write_csv(out / "pairs.csv", [s for n, d in zip(models, done, strict=True) for s in scored(d, n)], data.values)
    seeds = np.repeat(np.tile(args.seeds, len(args.models)), [len(d.result.pairs.pairs) for d in done])
    compared = compare(data, seeds)
    about = provenance("randomised.py", args.seed, time.perf_counter() - start)
    said = text(about["command"], data, compared, len(args.seeds), nothing)
    print(said)
    write_text(out / "table.md", said)
    write_scores(out / "scores.json", {"shuffled weights": data.summaries()})
    write_text(out / "about.json", json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
