"""What an evaluation leaves behind: the printed table, the files, the pictures and the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protomask import gallery
from protomask.commands.common import DIRECTIONS, score_table, versions, write_table
from protomask.data import Dataset, Sample
from protomask.evaluation import CONTROLS, Evaluation
from protomask.files import write_bytes
from protomask.loading import Loaded
from protomask.metrics import METRICS, Truth
from protomask.pairs import Pair
from protomask.records import Localisation
from protomask.store import ImageInfo, write_regions, write_scores
from protomask.visualise.figures import png_bytes, score_figure
from protomask.visualise.report import DifferenceTable, Picture, Report, ScoreTable, write_report

ANNOTATION_METRICS = tuple(name for name, m in METRICS.items() if m.family == "annotation")
CAUSAL_METRICS = tuple(name for name, m in METRICS.items() if m.family == "causal")


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


def publish(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    result: Evaluation,
    kept: Kept,
    *,
    seed: int,
    extra: Sequence[Picture] = (),
) -> None:
    """Print the table and write everything into ``out``.

    Args:
        out: an existing folder.
        loaded: the model.
        dataset: its samples.
        result: the scores.
        kept: the maps that were kept for files and pictures.
        seed: of the intervals.
        extra: pictures to put into the report before the panels.
    """
    summaries = result.summaries(seed)
    print(describe_pairs(result))
    print(score_table(summaries, tuple(METRICS)))
    write_scores(out / "scores.json", {loaded.name: summaries})
    write_table(out / "pairs.csv", ("image", "prototype", "part", "method", "metric", "score"), tidy(result, dataset))
    write_regions(out / "regions.json", kept.regions, loaded.names())
    pictures = [*extra, *draw_panels(out, loaded, result, kept)]
    write_report(out / "report.html", report_of(loaded, dataset, result, pictures, seed))
    print(f"written: {', '.join(str(out / n) for n in ('scores.json', 'pairs.csv', 'regions.json', 'report.html'))}")


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
