"""``protomask evaluate``: methods by metrics on the same pairs, with intervals, pictures and a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from protomask.commands.common import (
    MODEL_HELP,
    add_evaluation_data_options,
    add_run_options,
    add_trust,
    choose_device,
    dataset_for,
    positive,
    seconds_per_pass,
    size_option,
    spell_duration,
)
from protomask.commands.publish import Kept, publish
from protomask.data import Dataset
from protomask.errors import InputError, expected
from protomask.evaluation import METHODS, Evaluation, evaluate
from protomask.loading import Loaded, load_model
from protomask.locating import resolve_method
from protomask.store import prepare_output
from protomask.visualise.report import Picture

SCORING_PASSES = 67  # network passes per pair and method: two curves of 33 and one of sufficiency


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``evaluate`` and its options."""
    parser = commands.add_parser(
        "evaluate",
        help="score localisation methods on a data set",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Score localisation methods on the same (image, prototype) pairs.\n\n"
        "Writes into --out: scores.json, pairs.csv (one row per pair, method and metric), regions.json, panels/ and a\n"
        "self-contained report.html. Intervals are 95 % bootstrap intervals, clustered by image.",
        epilog="examples:\n"
        "  protomask evaluate demo:protopnet --data planted --scenes 400 --out scores\n"
        "  protomask evaluate runs/cub --data cub --root CUB_200_2011 --methods mdm,upsampling,random --out scores",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_trust(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--methods", metavar="A,B,C", help=f"see `protomask methods` (default: {','.join(METHODS)})")
    parser.add_argument(
        "--pairs", type=positive, default=200, metavar="N", help="pairs to score (default: %(default)s)"
    )
    parser.add_argument(
        "--clear-parts",
        action="store_true",
        help="score only pairs with a clear causal part (always so where parts have masks)",
    )
    parser.add_argument("--panels", type=int, default=12, metavar="N", help="pairs to draw (default: %(default)s)")
    parser.add_argument("--size", type=size_option, metavar="HxW", help="input size, for a model that does not tell it")
    add_evaluation_data_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write the files."""
    out = prepare_output(args.out)
    methods = default_methods(args.data) if args.methods is None else tuple(args.methods.split(","))
    check_methods(methods)
    loaded = load_model(args.model, choose_device(args.device), args.size, trust=args.trust)
    dataset = dataset_for(args, loaded)
    evaluate_into(
        out,
        loaded,
        dataset,
        methods,
        pairs=args.pairs,
        panels=args.panels,
        seed=args.seed,
        batch=args.batch,
        progress=args.progress,
        clear_parts=args.clear_parts,
    )  # fmt: skip


def default_methods(data: str) -> tuple[str, ...]:
    """All methods of this kind of data: a folder has no annotation to show."""
    return tuple(m for m in METHODS if data != "folder" or m != "annotation")


def check_methods(methods: Sequence[str]) -> None:
    """InputError unless these are registered methods, each once."""
    if len(set(methods)) != len(methods):
        raise InputError(expected("--methods", "each method once", ",".join(methods)))
    for method in methods:
        resolve_method(method)


def evaluate_into(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    methods: Sequence[str],
    *,
    pairs: int,
    panels: int,
    seed: int,
    batch: int,
    progress: bool,
    clear_parts: bool = False,
    extra: Sequence[Picture] = (),
) -> tuple[Evaluation, Kept]:
    """Evaluate ``methods`` and write everything into ``out``; also what ``protomask demo`` runs.

    Args:
        out: an existing folder.
        loaded: the model.
        dataset: its samples, with the model's class indices.
        methods: names of localisers.
        pairs: to score.
        panels: pairs to draw.
        seed: of everything drawn.
        batch: images in one network pass.
        progress: show progress bars.
        clear_parts: score only pairs with a clear causal part.
        extra: pictures to put into the report before the panels.
    """
    _say_cost(loaded, methods, pairs, batch)
    kept = Kept(panels)
    result = evaluate(
        loaded.model,
        dataset,
        methods,
        pairs=pairs,
        seed=seed,
        batch=batch,
        clear_parts=clear_parts,
        progress=progress,
        seen=kept.see,
    )
    publish(out, loaded, dataset, result, kept, seed=seed, extra=extra)
    return result, kept


def _say_cost(loaded: Loaded, methods: Sequence[str], pairs: int, batch: int) -> None:
    passes = sum(resolve_method(name)[0].passes for name in methods)
    each = [seconds_per_pass(loaded, min(batch, 8), gradient=g) for g in (True, False)]
    seconds = pairs * (passes * each[0] + SCORING_PASSES * len(methods) * each[1])
    print(
        f"{pairs} pairs, {len(methods)} methods: {passes:.0f} forward + gradient and {SCORING_PASSES * len(methods)} "
        f"forward passes per pair, about {spell_duration(seconds)}."
    )
