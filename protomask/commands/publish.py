"""What an evaluation leaves behind: the printed table, the files, and the report that is made from these files alone.

``publish`` writes into the output folder

- ``pairs.csv`` and ``pairs.parquet``, one row per pair, method and metric (:mod:`protomask.reporting.tidy`);
- ``prototypes.csv`` and ``agreement.csv``, where they were asked for (:mod:`protomask.reporting.beside`);
- ``scores.json``, means with intervals, and ``scores.tex``, the same as LaTeX tables;
- ``run.json``, what was run: model, data, seed, methods with settings, metrics, counts, versions, command;
- ``regions.json``, COCO annotations; ``examples/``, compact maps of all pairs; ``panels/`` and ``pictures/``;
- ``report.html``, which ``protomask report`` makes again from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from protomask import gallery
from protomask.commands.common import DIRECTIONS, command_line, score_table, versions
from protomask.data import Dataset
from protomask.errors import ProtomaskError
from protomask.evaluation import Evaluation
from protomask.files import write_bytes, write_text
from protomask.jobs.digests import digest_weights
from protomask.jobs.studies import AGREEMENT as AGREED
from protomask.jobs.studies import UNRELATED, Studied
from protomask.loading import Loaded
from protomask.localisers import LOCALISERS
from protomask.metrics import METRICS, Summary, flattering
from protomask.model import device_of
from protomask.pairs import Pair
from protomask.reporting.beside import AGREEMENT, PROTOTYPES, Beside, write_beside
from protomask.reporting.kept import Kept, is_control
from protomask.reporting.latex import latex
from protomask.reporting.page import TITLES, Choice, describe_pairs, page
from protomask.reporting.results import FORMAT_VERSION, SANITY, read_results
from protomask.reporting.tidy import Scored, write_csv, write_parquet
from protomask.store import write_scores
from protomask.store._json import read_json, write_json
from protomask.visualise.figures import png_bytes
from protomask.visualise.report import Picture, write_report

__all__ = ["Kept", "amend", "publish", "report_from"]

PANELS_SHOWN = 3  # in the report, which has small multiples of all pairs; all of them lie in panels/
WRITTEN = ("scores.json", "scores.tex", "pairs.csv", "pairs.parquet", "run.json", "regions.json", "report.html")


def publish(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    result: Evaluation,
    kept: Kept,
    studied: Studied | None = None,
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
        studied: what was found beside the pairs.
        seed: of the intervals.
        extra: pictures to put into the report before the panels.
    """
    beside = tables_of(studied or Studied(), loaded)
    summaries = result.summaries(seed)
    for table in beside:
        for method, scores in table.summaries(seed).items():
            summaries[method] = {**summaries.get(method, {}), **scores}
    counts = counts_of(result)
    print(describe_pairs(counts))
    print(score_table(summaries, tuple(METRICS)))
    pairs = [_scored(pair, loaded, dataset, kept) for pair in result.pairs.pairs]
    write_scores(out / "scores.json", {loaded.name: summaries})
    write_csv(out / "pairs.csv", pairs, result.values)
    write_parquet(out / "pairs.parquet", pairs, result.values)
    written = [table.kind.file for table in beside if write_beside(out, table)]
    write_text(out / "scores.tex", _latex(summaries, result))
    kept.finish(out, result.pairs.pairs, loaded.names())
    pictures = [*_put_pictures(out, extra), *draw_panels(out, loaded, result, kept)[:PANELS_SHOWN]]
    about = run_record(loaded, dataset, result, kept, seed, counts, pictures)
    write_json(out / "run.json", {**about, **_compared(studied or Studied())}, indent=1)
    report_from(out)
    print(f"written: {', '.join(str(out / name) for name in (*WRITTEN, *written))}")


def tables_of(studied: Studied, loaded: Loaded) -> tuple[Beside, Beside]:
    """What was found beside the pairs, as tables: of prototypes, and of agreement."""
    prototypes = tuple((str(p), loaded.model.describe(p), _classes(loaded, p)) for p in studied.prototypes)
    compared = list(combinations(studied.models, 2))
    rows = [(image, group, f"{a} and {b}") for a, b in compared for image, group in studied.images]
    alike = {m: {name: v.ravel() for name, v in columns.items()} for m, columns in studied.alike.items()}
    return (
        Beside(PROTOTYPES, prototypes, studied.scores),
        Beside(AGREEMENT, tuple((str(k), *row) for k, row in enumerate(rows)), alike),
    )


def _compared(studied: Studied) -> dict[str, Any]:
    """What run.json says of the models that were compared; nothing where none were."""
    told = [
        {"name": name, "weights": weights, "prototypes": count}
        for name, (weights, count) in zip(studied.models, studied.capacities, strict=True)
    ]
    return {"compared": told} if told else {}


def _classes(loaded: Loaded, prototype: int) -> str:
    """The classes that a prototype speaks for, by name or index; empty where the model does not say."""
    weights = loaded.model.class_weights()
    if weights is None:
        return ""
    own = weights[prototype]
    indices = ((own == own.max()) & (own > 0)).nonzero().squeeze(1).tolist()
    names = loaded.class_names
    return "; ".join(names[k] if k < len(names) else str(k) for k in indices)


def report_from(folder: str | Path, out: str | Path | None = None, choice: Choice | None = None) -> Path:
    """The report of the results in a folder, from its files alone.

    Args:
        folder: that ``protomask evaluate`` or ``protomask demo`` wrote.
        out: the HTML file; ``report.html`` in the folder where None.
        choice: which methods and metric to compare.

    Returns:
        The file.

    Raises:
        DataError: the folder does not hold what an evaluation leaves behind.
        InputError: the choice names what was not evaluated.
        ResourceError: the file cannot be written.
    """
    folder = Path(folder)
    results = read_results(folder)
    beside = [read_results(folder / Path(str(name)).name) for name in results.about.get("beside", ())]
    return write_report(folder / "report.html" if out is None else out, page(results, choice, beside))


def amend(folder: Path, *, pictures: Sequence[Picture] = (), beside: Sequence[str] = ()) -> None:
    """Put pictures before those of a folder's report, and name the sub-folders that hold results of further models.

    The report is made again. What ``beside`` names is told in brief, beside the folder's own results.
    """
    about = read_json(folder / "run.json")
    kept = about["pictures"]
    put = _put_pictures(folder, pictures, sum(str(entry["file"]).startswith("pictures/") for entry in kept))
    about = {**about, "pictures": [*put, *kept], "beside": [*about.get("beside", ()), *beside]}
    write_json(folder / "run.json", about, indent=1)
    report_from(folder)


def counts_of(result: Evaluation) -> dict[str, object]:
    """How many pairs were drawn and scored, of how many images and prototypes."""
    pairs = result.pairs
    return {
        "pairs": len(pairs.pairs),
        "drawn": pairs.drawn,
        "qualified": pairs.qualified,
        "clear": sum(pair.part >= 0 for pair in pairs.pairs),
        "kind": pairs.kind,
        "images": len({pair.image_id for pair in pairs.pairs}),
        "groups": len(set(result.groups)),
        "prototypes": len({pair.prototype for pair in pairs.pairs}),
    }


def run_record(
    loaded: Loaded,
    dataset: Dataset,
    result: Evaluation,
    kept: Kept,
    seed: int,
    counts: Mapping[str, object],
    pictures: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """What ``run.json`` says."""
    return {
        "version": FORMAT_VERSION,
        "command": command_line(),
        "model": {
            "name": loaded.name,
            "digest": digest_weights(loaded.model),
            "prototypes": loaded.model.num_prototypes,
            "size": list(loaded.size),
            "crop": loaded.crop,
            "device": str(device_of(loaded.model)),
        },
        "data": {"name": dataset.name, "images": len(dataset), "classes": len(dataset.class_names)},
        "seed": seed,
        "scoring_fill": result.scoring_fill,
        "counts": dict(counts),
        "methods": {method: _method(method, result, kept) for method in result.values},
        "metrics": {
            name: {"direction": DIRECTIONS[name], "family": metric.family, "sentence": metric.sentence}
            for name, metric in METRICS.items()
        },
        "pictures": [dict(picture) for picture in pictures],
        "versions": versions(),
    }


def draw_panels(out: Path, loaded: Loaded, result: Evaluation, kept: Kept) -> list[dict[str, str]]:
    """A panel per kept example, as PNG files under ``panels/``; what ``run.json`` says of them."""
    rows = {(pair.index, pair.prototype): k for k, pair in enumerate(result.pairs.pairs)}
    entries = []
    for pair, sample, found, annotation in kept.examples:
        k = rows[pair.index, pair.prototype]
        scores = gallery.panel_scores(result.values, k)
        figure = gallery.panel(loaded, sample, found, 0, annotation=annotation, scores=scores)
        file = f"panels/{k:03d}.png"
        write_bytes(out / file, png_bytes(figure, dpi=110))
        alt = f"{loaded.model.describe(pair.prototype)} on {sample.image_id} under {len(found)} methods"
        entries.append(_entry(file, "Regions, boxes and peaks", alt, f"{sample.image_id}, pair {k}."))
    drawn = {Path(entry["file"]).name for entry in entries}
    for path in (out / "panels").glob("[0-9]*.png"):
        if path.stem.isdigit() and path.name not in drawn:  # of an earlier run
            path.unlink()
    return entries


def _put_pictures(out: Path, pictures: Sequence[Picture], first: int = 0) -> list[dict[str, str]]:
    entries = []
    for k, picture in enumerate(pictures, first):
        file = f"pictures/{k:03d}.png"
        write_bytes(out / file, picture.data)
        entries.append(_entry(file, picture.heading, picture.alt, picture.caption))
    return entries


def _entry(file: str, heading: str, alt: str, caption: str) -> dict[str, str]:
    return {"file": file, "heading": heading, "alt": alt, "caption": caption}


def _scored(pair: Pair, loaded: Loaded, dataset: Dataset, kept: Kept) -> Scored:
    names = dataset.class_names
    label = kept.labels.get((pair.index, pair.prototype), -1)
    return Scored(
        image=pair.image_id,
        group=pair.group,
        class_name=names[label] if 0 <= label < len(names) else "",
        prototype=pair.prototype,
        prototype_name=loaded.model.describe(pair.prototype),
        part=dataset.part_names[pair.part] if pair.part >= 0 else "",
    )


def _method(method: str, result: Evaluation, kept: Kept) -> dict[str, object]:
    settings = {name: _plain(value) for name, value in kept.settings.get(method, {}).items()}
    return {
        "control": is_control(method),
        "fill": result.fills.get(method, ""),
        **_passes(method, settings),
        "settings": settings,
        "unlocated": kept.unlocated.get(method, 0),
    }


def _passes(method: str, settings: Mapping[str, Any]) -> dict[str, float | None]:
    """Passes per pair and per image of the method with these settings; None for maps that came from elsewhere."""
    registered = LOCALISERS.get(method)
    if registered is None:
        return {"passes": None, "image_passes": None}
    try:
        made = registered.make(**settings)
    except (ProtomaskError, TypeError, ValueError):  # settings as JSON has them may not make the method again
        made = registered.make()
    return {"passes": float(made.passes), "image_passes": float(getattr(made, "image_passes", 0))}


def _plain(value: object) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else str(value)


def _latex(summaries: Mapping[str, Mapping[str, Summary]], result: Evaluation) -> str:
    defined = {m for values in summaries.values() for m, s in values.items() if s.n}
    tables: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if name in defined:
            own = [name, UNRELATED] if name == AGREED else [name]  # neither means anything without the other
            tables.setdefault(TITLES.get(metric.family, metric.family.capitalize()), []).extend(own)
    ranking = {name: 0 if METRICS[name].family == SANITY else way for name, way in DIRECTIONS.items()}
    controls = [m for m in summaries if is_control(m)]
    marked = {
        (method, metric)
        for method, fill in result.fills.items()
        for metric in flattering(fill, summaries.get(method, ()), result.scoring_fill)
    }
    return latex(summaries, tables, ranking, controls, marked)
