"""``protomask evaluate``: methods by metrics on the same pairs, with intervals, pictures and a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protomask import gallery
from protomask.commands.common import (
    DIRECTIONS,
    MODEL_HELP,
    add_evaluation_data_options,
    add_run_options,
    add_trust,
    choose_device,
    dataset_for,
    positive,
    score_table,
    seconds_per_pass,
    size_option,
    spell_duration,
    versions,
    write_table,
)
from protomask.data import Dataset, Sample
from protomask.errors import InputError, expected
from protomask.evaluation import CONTROLS, METHODS, Evaluation, evaluate
from protomask.files import write_bytes
from protomask.loading import Loaded, load_model
from protomask.locating import resolve_method
from protomask.metrics import METRICS, Truth
from protomask.pairs import Pair
from protomask.records import Localisation
from protomask.store import ImageInfo, prepare_output, write_regions, write_scores
from protomask.visualise.figures import png_bytes, score_figure
from protomask.visualise.report import DifferenceTable, Picture, Report, ScoreTable, write_report

ANNOTATION_METRICS = tuple(name for name, m in METRICS.items() if m.family == "annotation")
CAUSAL_METRICS = tuple(name for name, m in METRICS.items() if m.family == "causal")
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


@dataclass
class Kept:
    """What an evaluation keeps of the maps it sees: regions of all pairs, and the first few pairs whole."""

    panels: int
    regions: list[tuple[Localisation, list[ImageInfo]]] = field(default_factory=list)
    examples: list[tuple[Pair, Sample, dict[str, Localisation], np.ndarray | None]] = field(default_factory=list)

    def see(
        self, pairs: Sequence[Pair], samples: Sequence[Sample], found: Mapping[str, Localisation], truth: Truth
    ) -> None:
        """Called by :func:`protomask.evaluation.evaluate` with every chunk."""
        infos = [ImageInfo(s.image_id, s.geometry) for s in samples]
        self.regions.extend((record, infos) for method, record in found.items() if method not in CONTROLS)
        for row in range(min(len(pairs), self.panels - len(self.examples))):
            one = {method: record[row : row + 1] for method, record in found.items()}
            self.examples.append((pairs[row], samples[row], one, gallery.annotation_of(truth, row)))


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
    summaries = result.summaries(seed)
    print(describe_pairs(result))
    print(score_table(summaries, tuple(METRICS)))
    write_scores(out / "scores.json", {loaded.name: summaries})
    write_table(out / "pairs.csv", ("image", "prototype", "part", "method", "metric", "score"), tidy(result, dataset))
    write_regions(out / "regions.json", kept.regions, loaded.names())
    pictures = [*extra, *draw_panels(out, loaded, result, kept)]
    write_report(out / "report.html", report_of(loaded, dataset, result, pictures, seed))
    print(f"written: {', '.join(str(out / n) for n in ('scores.json', 'pairs.csv', 'regions.json', 'report.html'))}")
    return result, kept


def _say_cost(loaded: Loaded, methods: Sequence[str], pairs: int, batch: int) -> None:
    passes = sum(resolve_method(name)[0].passes for name in methods)
    each = [seconds_per_pass(loaded, min(batch, 8), gradient=g) for g in (True, False)]
    seconds = pairs * (passes * each[0] + SCORING_PASSES * len(methods) * each[1])
    print(
        f"{pairs} pairs, {len(methods)} methods: {passes:.0f} forward + gradient and {SCORING_PASSES * len(methods)} "
        f"forward passes per pair, about {spell_duration(seconds)}."
    )


def describe_pairs(result: Evaluation) -> str:
    """How many pairs were scored, and how many have a clear causal part."""
    pairs = result.pairs
    text = f"{len(pairs.pairs)} pairs scored of {pairs.drawn} drawn"
    if pairs.kind == "part":
        return f"{text}; {pairs.qualified} of the drawn have a clear causal part."
    clear = sum(pair.part >= 0 for pair in pairs.pairs)
    return f"{text}; {clear} of the scored have a clear causal part (part-hit is defined on those)."


def tidy(result: Evaluation, dataset: Dataset) -> list[tuple[object, ...]]:
    """One row per pair, method and metric; undefined scores are empty."""
    rows: list[tuple[object, ...]] = []
    for k, pair in enumerate(result.pairs.pairs):
        part = dataset.part_names[pair.part] if pair.part >= 0 else ""
        for method, values in result.values.items():
            for metric, scores in values.items():
                score = f"{scores[k]:.6g}" if np.isfinite(scores[k]) else ""
                rows.append((pair.image_id, pair.prototype, part, method, metric, score))
    return rows


def draw_panels(out: Path, loaded: Loaded, result: Evaluation, kept: Kept) -> list[Picture]:
    """A panel per kept example, as PNG files under ``panels/`` and as pictures for the report."""
    pictures = []
    for k, (pair, sample, found, annotation) in enumerate(kept.examples):
        scores = gallery.panel_scores(result.values, k)
        figure = gallery.panel(loaded, sample, found, 0, annotation=annotation, scores=scores)
        png = png_bytes(figure, dpi=110)
        write_bytes(out / "panels" / f"{k:03d}.png", png)
        alt = f"{loaded.model.describe(pair.prototype)} on {sample.image_id} under {len(found)} methods"
        pictures.append(Picture("The same pair under every method", png, alt, f"{sample.image_id}, pair {k}."))
    return pictures


def report_of(loaded: Loaded, dataset: Dataset, result: Evaluation, pictures: Sequence[Picture], seed: int) -> Report:
    """The page: tables of scores and of paired differences, the dot plot, the pictures, settings and versions."""
    summaries = result.summaries(seed)
    defined = {m for values in summaries.values() for m, s in values.items() if s.n}
    reference = "mdm" if "mdm" in result.values else next(iter(result.values))
    differences = result.differences(reference, seed) if len(result.values) > 1 else {}
    tables: list[ScoreTable | DifferenceTable] = []
    for heading, metrics, caption in (
        ("Against the annotation", ANNOTATION_METRICS, "Does the map lie where the annotated part or object is?"),
        (
            "Against the model",
            CAUSAL_METRICS,
            f"Does the model need what is marked? Scoring fill: {result.scoring_fill}.",
        ),
    ):
        shown = [m for m in metrics if m in defined]
        if shown:
            tables.append(ScoreTable(heading, summaries, shown, DIRECTIONS, caption))
            if differences:
                title = f"{heading}: {reference} minus the others"
                tables.append(DifferenceTable(title, reference, differences, shown, DIRECTIONS, "Paired, same pairs."))
    charts = []
    for heading, metrics in (("annotation", ANNOTATION_METRICS), ("model", CAUSAL_METRICS)):
        shown = [m for m in metrics if m in defined]
        if shown:
            png = png_bytes(score_figure(summaries, shown, DIRECTIONS), dpi=110)
            charts.append(Picture("Scores at a glance", png, f"Dot plot of the scores against the {heading}"))
    flattered = result.optimised_with_scoring_fill()
    lines = [describe_pairs(result)]
    if flattered:
        names = ", ".join(flattered)
        lines.append(f"Trained with the fill that scores them, which flatters their causal scores: {names}.")
    return Report(
        title=f"{loaded.name} on {dataset.name}",
        summary_lines=lines,
        tables=tables,
        figures=[*charts, *pictures],
        command=" ".join(["protomask", *sys.argv[1:]]),
        settings={"seed": seed, **{f"fill of {m}": f for m, f in result.fills.items() if f}},
        versions=versions(),
    )
