"""The report of an evaluation, from its files alone: what is on the page, in which order, and with which words."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from protomask.checks import check_choice
from protomask.errors import DataError, InputError, expected
from protomask.metrics import Summary
from protomask.pickles import printable
from protomask.reporting.checking import checks
from protomask.reporting.comparing import by, differences, holding, mean_of, mean_ranks
from protomask.reporting.results import Results, spell_flattered, spell_prototypes
from protomask.reporting.strips import strips
from protomask.reporting.studies import PER_PROTOTYPE, prototype_blocks, sanity_blocks
from protomask.visualise.blocks import (
    DAGGER,
    FLATTERED,
    Block,
    Cell,
    DifferenceTable,
    DotPlot,
    Multiples,
    Picture,
    PlainTable,
    Report,
    ScoreTable,
    media_type,
)
from protomask.visualise.pixels import webp
from protomask.visualise.wording import number

CASES = 6  # best and worst
OPEN = 8  # strips that are shown without a click
TITLES = {
    "annotation": "Against the annotation",
    "causal": "Against the model",
    "robustness": "Under attack and chance",
    "prototype": "Over a prototype's images",
    "sanity": "Sanity checks",
}
CAPTIONS = {
    "annotation": "Does the map lie where the annotated part or object is?",
    "causal": "Does the model need what is marked? Scoring fill: {fill}, unless the name says another.",
    "robustness": "What an attack does to the prototype and to the map.",
}
# What the tables by class and prototype and the cases show, the first that are defined.
HEADLINES = (
    "iou-best",
    "energy",
    "deletion",
    "insertion",
    "part-hit-2r",
    "pointing-game",
    "deletion-30",
    "insertion-30",
)
RANK_NOTE = f"{DAGGER}: without the metrics that flatter the method."
_COLUMNS = 12  # metrics of a table that a landscape page holds
_HEAVY = 150_000  # bytes, above which a picture is embedded as WebP
_MOST_SAID = 1000  # characters of a reason
_DAMAGED = (OSError, InputError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow's are of many kinds


@dataclass(frozen=True)
class Choice:
    """What the reader asked for.

    Attributes:
        reference: the method that the others are compared with; ``mdm`` (else the first) where empty.
        against: what it is compared with in the cases and in the tables by class; ``upsampling`` (else the next) where
            empty.
        metric: that orders best and worst cases; the first headline that is defined where empty.
        pairs: how many pairs are drawn at most.
    """

    reference: str = ""
    against: str = ""
    metric: str = ""
    pairs: int = 200


def page(results: Results, choice: Choice | None = None, beside: Sequence[Results] = ()) -> Report:
    """The report.

    Args:
        results: of the first model, told in full.
        choice: what to compare with what.
        beside: results of further models, told in brief.

    Raises:
        InputError: the choice names a method or metric that was not evaluated.
    """
    asked = settled(results, choice or Choice())
    blocks = [
        *_ranking(results),
        *_scores(results, asked.reference),
        *_cases(results, asked),
        *_multiples(results, asked),
        *_groups(results, asked),
        *prototype_blocks(results, [m for m in (asked.reference, asked.against) if m]),
        *checks(results, asked.reference),
        *sanity_blocks(results),
        *_pictures(results),
    ]
    for other in beside:
        blocks.extend(_brief(other))
    blocks.append(_methods(results))
    about = results.about
    return Report(
        title=f"{results.name} on {about['data'].get('name', 'its data')}",
        summary_lines=_lines(results, asked, beside),
        blocks=blocks,
        command=str(about.get("command", "")),
        settings=_settings(about, asked),
        versions=about.get("versions", {}),
    )


def settled(results: Results, choice: Choice) -> Choice:
    """The choice with its defaults filled in.

    Raises:
        InputError: a method or metric that was not evaluated.
    """
    for name, wanted, known in (
        ("--reference", choice.reference, tuple(results.values)),
        ("--against", choice.against, tuple(results.values)),
        ("--metric", choice.metric, results.metrics),
    ):
        if wanted:
            check_choice(name, wanted, known)
    reference = choice.reference or _default(results, "mdm")
    against = choice.against or _default(results, "upsampling", reference)
    if against == reference:
        raise InputError(expected("--against", "another method than the reference", against))
    metric = choice.metric or next(iter(_shown(results, [m for m in (reference, against) if m])), "")
    return Choice(reference, against, metric, choice.pairs)


def _default(results: Results, wanted: str, other: str = "") -> str:
    """The method of that name, else the first, controls last; one without scores only where none has any.

    Never ``other``; empty where there is none.
    """
    known = [m for m in (wanted, *results.competitors, *results.controls) if m in results.values and m != other]
    scored = [m for m in known if any(value.n for value in results.summaries[m].values())]
    return next(iter((*scored, *known)), "")


def _shown(results: Results, methods: Sequence[str]) -> list[str]:
    """The metrics in which all of the methods have a score, those that flatter none and tell most first."""
    order = dict.fromkeys((*HEADLINES, *results.metrics))
    summaries = [results.summaries[m] for m in methods]
    shown = [k for k in order if k in results.metrics and all(k in means and means[k].n for means in summaries)]
    return sorted(shown, key=lambda k: bool(_dagger(results, k, methods)))


def _dagger(results: Results, metric: str, methods: Sequence[str]) -> str:
    """A dagger where the metric flatters one of the methods."""
    return DAGGER if any(metric in results.flattered.get(m, ()) for m in methods) else ""


def _lines(results: Results, choice: Choice, beside: Sequence[Results]) -> list[str]:
    lines = [describe_pairs(results.about.get("counts", {}))]
    first = _first_line(results)
    if first:
        lines.append(first)
    if results.flattered:
        names = ", ".join(results.flattered)
        lines.append(f"Trained with a fill that scores them, which flatters the scores that carry a †: {names}.")
    if beside:
        lines.append(f"Below, in brief: {', '.join(other.name for other in beside)}.")
    lines.append("Intervals are 95 % bootstrap intervals, clustered by image (by patient where there are patients).")
    return lines


def _first_line(results: Results) -> str:
    parts = []
    if len(set(results.groups)) < 2:
        return ""  # one image ranks nobody
    for family in results.families:
        ranking = mean_ranks(results, results.families[family])
        if ranking.means:
            best, value = next(iter(ranking.means.items()))
            level = f", not told apart from {', '.join(ranking.level)}" if ranking.level else ""
            parts.append(f"{TITLES.get(family, family).lower()} {best} (mean rank {number(value.mean)}{level})")
    return f"Ranked first: {'; '.join(parts)}." if parts else ""


def describe_pairs(counts: Any) -> str:
    """How many pairs were scored, and how many have a clear causal part."""
    pairs = int(counts.get("pairs", 0))
    text = f"{pairs} pair{'s' * (pairs != 1)} scored of {counts.get('drawn', 0)} drawn"
    if counts.get("kind") == "part":
        return f"{text}; {counts.get('qualified', 0)} of the drawn have a clear causal part."
    return f"{text}; {counts.get('clear', 0)} of the scored have a clear causal part, on which part-hit is defined."


def _ranking(results: Results) -> list[Block]:
    scores: dict[str, dict[str, Summary]] = {}
    used: list[str] = []
    silent: set[str] = set(results.competitors)
    for family, metrics in results.families.items():
        ranking = mean_ranks(results, metrics)
        silent &= set(ranking.silent)
        if ranking.means:
            column = TITLES.get(family, family.capitalize())
            used.append(f"{column.lower()}: {', '.join(ranking.metrics)}")
            for method, value in ranking.means.items():
                scores.setdefault(method, {})[column] = value
    if not scores:
        return []
    columns = [TITLES.get(f, f.capitalize()) for f in results.families]
    marked = {
        (method, TITLES.get(family, family.capitalize()))
        for family, metrics in results.families.items()
        for method, flattered in results.flattered.items()
        if set(metrics) & set(flattered)
    }
    caption = (
        "Mean rank over pairs and metrics, 1 is best: 1 and the number of methods that score better, equal ones "
        "counted half; controls take no part. Metrics that are alike count several times, so read the scores as well. "
        f"Counted {'; '.join(used)}."
    )
    if marked:
        competing = {m: metrics for m, metrics in results.flattered.items() if m in results.competitors}
        caption += (
            " Two methods are compared on the metrics that flatter neither, so these are left out of a method's rank "
            f"({DAGGER}): {spell_flattered(competing)}."
        )
    if silent:
        caption += f" Without any score: {', '.join(m for m in results.competitors if m in silent)}."
    directions = dict.fromkeys(columns, -1)
    plot = DotPlot("Ranking", scores, columns, directions, caption, (), marked=marked)
    return [plot, ScoreTable("Ranking", scores, columns, directions, "", (), marked, why=RANK_NOTE)]


def _scores(results: Results, reference: str) -> list[Block]:
    blocks: list[Block] = []
    others = [m for m in results.methods if m != reference]
    found = differences(results, reference) if others else {}
    holds, compared = holding(results, reference)
    marked = _marked(results)
    for family, metrics in results.families.items():
        heading = TITLES.get(family, family.capitalize())
        caption = CAPTIONS.get(family, "").format(fill=results.about["scoring_fill"])
        scores, directions, controls = results.summaries, results.directions, results.controls
        blocks.append(DotPlot(heading, scores, metrics, directions, caption, controls, marked=marked))
        blocks += [ScoreTable(heading, scores, part, directions, "", controls, marked) for part in _parts(metrics)]
        own = [m for m in metrics if m in scores[reference] and scores[reference][m].n]
        if not found or not own:
            continue
        heading, caption = f"{heading}: {reference} minus the others", _paired(compared)
        for part in _parts(own):
            told = (part, directions, caption, controls, holds, marked)
            blocks.append(DifferenceTable(heading, reference, found, *told))
            caption = ""
    return blocks


def _parts(metrics: Sequence[str]) -> list[list[str]]:
    """The metrics in parts of about the same length, each of which fits a landscape page."""
    parts = np.array_split(np.array(metrics, dtype=object), max(1, math.ceil(len(metrics) / _COLUMNS)))
    return [[str(m) for m in part] for part in parts]


def _marked(results: Results) -> set[tuple[str, str]]:
    """(method, metric) of the scores that carry a dagger."""
    return {(method, metric) for method, metrics in results.flattered.items() for metric in metrics}


def _paired(compared: int) -> str:
    if not compared:
        return "Paired, same pairs. Nothing could be tested: that takes other methods, and two images."
    return (
        f"Paired, same pairs. The star is by Holm's method at 5 % over {compared} comparisons of pairs with other "
        "methods, in all tables (sign flips of whole images); controls are not among them."
    )


def _cases(results: Results, choice: Choice) -> list[Block]:
    if not choice.against or not choice.metric:
        return []
    sign, compared = results.directions[choice.metric] or 1, (choice.reference, choice.against)
    mine, other = (results.values[m].get(choice.metric) for m in compared)
    if mine is None or other is None:
        return []
    gaps = sign * (mine - other)
    order = [int(k) for k in np.argsort(gaps, kind="stable") if math.isfinite(gaps[k])]
    count, dagger = min(CASES, len(order) // 2), _dagger(results, choice.metric, compared)
    blocks: list[Block] = []
    for word, rows in (("Worst", order[:count]), ("Best", order[::-1][:count])):
        notes = {k: f"{choice.reference} {_signed(mine[k] - other[k])} {choice.metric}" for k in rows}
        drawn = strips(results, rows, choice.metric, notes)
        if drawn:
            caption = (
                f"The {count} pairs on which {choice.reference} does {word.lower()} against {choice.against}, by "
                f"{choice.metric}{dagger}. White outline: the annotation. Disc: the map's peak."
            )
            blocks.append(Multiples(f"{word} cases for {choice.reference}", drawn, caption))
    return blocks


def _signed(value: float) -> str:
    return ("+" if round(value, 2) > 0 else "") + number(value)


def _multiples(results: Results, choice: Choice) -> list[Block]:
    drawn = strips(results, range(min(choice.pairs, len(results.pairs))), choice.metric)
    if not drawn:
        return []
    heading = "The same image under every method"
    caption = "The first pairs in the order drawn, not the best."
    if choice.metric:
        caption += f" Below each map: its {choice.metric}{_dagger(results, choice.metric, results.competitors)}."
    blocks: list[Block] = [Multiples(heading, drawn[:OPEN], caption)]
    if len(drawn) > OPEN:
        blocks.append(Multiples(heading, drawn[OPEN:], folded=True))
    return blocks


def _groups(results: Results, choice: Choice) -> list[Block]:
    compared = [m for m in (choice.reference, choice.against) if m]
    shown = list(dict.fromkeys([*([choice.metric] if choice.metric else []), *_shown(results, compared)]))[:4]
    pairs = results.pairs
    names = spell_prototypes([(pair.prototype, pair.prototype_name) for pair in pairs])
    blocks: list[Block] = []
    keys: list[tuple[str, str, Callable[[int], str]]] = [
        ("Per class", "class", lambda k: pairs[k].class_name or "(unknown)"),
        (PER_PROTOTYPE, "prototype", lambda k: names[k]),
    ]
    methods = [m for m in (choice.reference, choice.against) if m]
    columns = [f"{metric}, {method}{_dagger(results, metric, [method])}" for metric in shown for method in methods]
    for heading, name, key in keys:
        groups = by(results, key)
        rows: list[Sequence[Cell]] = [
            (
                group,
                len(members),
                len({pairs[k].image for k in members}),
                *(mean_of(results.values[method], metric, members) for metric in shown for method in methods),
            )
            for group, members in groups.items()
        ]
        caption = "Means over few pairs scatter: no intervals are given here. Click a column's name to sort."
        if any(DAGGER in column for column in columns):
            caption += f" {FLATTERED}"
        table = PlainTable(
            heading, (name, "pairs", "images", *columns), rows, caption, sortable=True, folded=len(rows) > 40
        )
        blocks.append(table)
    return blocks


def _brief(results: Results) -> list[Block]:
    asked = settled(results, Choice())
    heading = f"Beside it: {results.name}"
    blocks: list[Block] = []
    for family, metrics in results.families.items():
        title = TITLES.get(family, family.capitalize())
        caption = f"{title}. {describe_pairs(results.about.get('counts', {}))}"
        marked = _marked(results)
        blocks.append(
            ScoreTable(heading, results.summaries, metrics, results.directions, caption, results.controls, marked)
        )
    drawn = strips(results, range(min(4, len(results.pairs))), asked.metric)
    if drawn:
        below = f"; below each map its {asked.metric}" if asked.metric else ""
        blocks.append(Multiples(heading, drawn, f"The first pairs, under every method{below}."))
    place = results.folder.name
    pictures = _pictures(results, "Wrong")
    blocks.extend(Picture(heading, p.data, p.alt, f"{p.heading}. {p.caption}".strip()) for p in pictures)
    blocks.append(
        PlainTable(heading, ("more", "where"), [("its own report", f"{place}/report.html, beside this file")])
    )
    return blocks


def _pictures(results: Results, only: str = "") -> list[Picture]:
    """The pictures that ``run.json`` names; only those whose heading begins so, where one is given."""
    found = []
    for entry in results.about.get("pictures", ()):
        if not str(entry["heading"]).startswith(only):
            continue
        path = results.folder / str(entry["file"])
        if not path.resolve().is_relative_to(results.folder.resolve()):
            raise DataError(expected("pictures of run.json", "files in the folder", str(entry["file"])))
        try:
            data = _light(path.read_bytes())
        except FileNotFoundError:
            continue
        except _DAMAGED as error:  # no reason to withhold the tables
            print(f"left out: {printable(f'{path}: {error}', _MOST_SAID)}", file=sys.stderr)
            continue
        found.append(Picture(str(entry["heading"]), data, str(entry["alt"]), str(entry["caption"])))
    return found


def _light(data: bytes) -> bytes:
    """The picture, as WebP where it is heavy; OSError or InputError where it is damaged or of another kind."""
    media_type(data)
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return data if len(data) <= _HEAVY else webp(pixels, quality=85)


def _methods(results: Results) -> PlainTable:
    rows: list[Sequence[Cell]] = []
    for method, about in results.about["methods"].items():
        settings = ", ".join(f"{k} = {v}" for k, v in about.get("settings", {}).items() if v != "") or "none"
        costs = (about.get(name) for name in ("passes", "image_passes"))
        rows.append((method, *(None if c is None else _whole(c) for c in costs), about.get("fill") or "none", settings))
    columns = ("method", "passes per pair", "passes per image", "fill", "settings")
    caption = (
        "Passes of the network: per pair forward + input gradient; per image forward only, which serve all prototypes "
        "of the image; where both are 0, the forward pass that measures the activations is all. Fill: what the method "
        "optimised or perturbed with."
    )
    return PlainTable("Methods and their settings", columns, rows, caption)


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)


def _settings(about: Any, choice: Choice) -> dict[str, object]:
    counts = about.get("counts", {})
    return {
        "model": about["model"]["name"],
        "data": about["data"].get("name", ""),
        "seed": about["seed"],
        "scoring fill": about["scoring_fill"],
        **{name: counts[name] for name in ("pairs", "images", "groups", "prototypes", "classes") if name in counts},
        "compared": f"{choice.reference} with {choice.against}" if choice.against else choice.reference,
    }


def size_of(path: Path) -> str:
    """``3.2 MB``."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
