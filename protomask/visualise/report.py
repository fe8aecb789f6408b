"""The report: one HTML file with tables, figures and how they were made, that needs nothing but itself.

Pictures are embedded, styles and the few lines that sort tables are inline, and a content security policy forbids the
file to load anything and to run any other line. All text is escaped: names of classes and images come from users'
folders. It reads without scripts, in the dark and on paper. ::

    write_report("out/report.html", Report("Planted birds", blocks=(table, strips)))
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from protomask.files import write_text
from protomask.visualise.blocks import (
    Block,
    Cell,
    DifferenceTable,
    DotPlot,
    Multiples,
    Picture,
    PlainTable,
    Report,
    ScoreTable,
    Strip,
    Tile,
    media_type,
)
from protomask.visualise.charts import Interval, defined, ends
from protomask.visualise.dots import best_methods, panels
from protomask.visualise.palette import method_colour
from protomask.visualise.pixels import picture_size
from protomask.visualise.wording import UNDEFINED, arrow, number, printable

__all__ = [
    "Block",
    "DifferenceTable",
    "DotPlot",
    "Multiples",
    "Picture",
    "PlainTable",
    "Report",
    "ScoreTable",
    "Strip",
    "Tile",
    "render",
    "write_report",
]

_MOST_DIGITS = 6


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report as one HTML file, whole or not at all; missing folders are made.

    Returns:
        The path.

    Raises:
        ResourceError: the file cannot be written.
    """
    return write_text(path, render(report))


def render(report: Report) -> str:
    """The report's HTML."""
    environment = Environment(
        loader=PackageLoader("protomask.visualise", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("protomask.visualise").joinpath("report.js").read_text(encoding="utf-8").strip()
    template = environment.get_template("report.html")
    html = template.render(
        report=report,
        sections=_sections(report.blocks),
        script=script,
        # The policy names the one script by its digest: nothing that slipped in could run.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        colour=method_colour,
    )
    return printable(html)


@dataclass(frozen=True)
class _Cell:
    text: str
    range: str = ""
    verdict: str = ""
    count: str = ""
    marked: bool = False
    star: bool = False
    dagger: bool = False
    key: str = ""
    number: bool = True


@dataclass(frozen=True)
class _Row:
    name: str
    colour: str
    control: bool
    cells: tuple[_Cell, ...]
    good: str = ""


@dataclass(frozen=True)
class _Table:
    label: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    note: str = ""
    plain: bool = False
    sortable: bool = False
    folded: bool = False


@dataclass(frozen=True)
class _Section:
    id: str
    heading: str
    parts: list[tuple[str, Any]] = field(default_factory=list)


def _sections(blocks: Sequence[Block]) -> list[_Section]:
    sections: list[_Section] = []
    for k, block in enumerate(blocks, 1):
        if not sections or sections[-1].heading != block.heading:
            sections.append(_Section(f"section-{len(sections) + 1}", block.heading))
        kind, part = _part(block, k)
        if kind == "table":
            before = sum(other == "table" for other, _ in sections[-1].parts)
            part = replace(part, label=f"{part.label}, table {before + 1}" if before else part.label)
        sections[-1].parts.append((kind, part))
    return sections


def _part(block: Block, k: int) -> tuple[str, Any]:
    if isinstance(block, ScoreTable):
        return "table", _scores(block)
    if isinstance(block, DifferenceTable):
        return "table", _differences(block)
    if isinstance(block, PlainTable):
        return "table", _plain(block)
    if isinstance(block, DotPlot):
        return "dots", {"plot": block, "panels": panels(block)}
    if isinstance(block, Multiples):
        return "strips", {"block": block, "source": _source}
    height, width = picture_size(block.data)
    about = {"id": f"figure-{k}", "source": _source(block.data), "width": width, "height": height}
    return "picture", {**about, "alt": block.alt, "caption": block.caption}


def _source(data: bytes) -> str:
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode('ascii')}"


def _scores(table: ScoreTable) -> _Table:
    best = {
        metric: best_methods(table.scores, metric, table.directions.get(metric, 0), table.controls)
        for metric in table.metrics
    }
    pairs = _one_count(table.scores, table.metrics)
    rows = []
    for method, values in table.scores.items():
        cells = tuple(
            replace(_cell(values.get(metric), method in best[metric], pairs), dagger=(method, metric) in table.marked)
            for metric in table.metrics
        )
        rows.append(_Row(method, method_colour(method), method in table.controls, cells))
    bold = " Bold: the best, controls aside." if any(best.values()) else ""
    note = f"{_what(table.scores, table.metrics)}{_of(pairs, table.counted)}.{bold} {_directions(table)}"
    if any(cell.dagger for row in rows for cell in row.cells):
        note += f" {table.why}"
    return _Table(table.heading, table.caption, "method", _columns(table), tuple(rows), note.strip())


def _differences(table: DifferenceTable) -> _Table:
    pairs = _one_count(table.differences, table.metrics)
    rows = []
    for method, values in table.differences.items():
        cells = tuple(
            replace(
                _difference(table, method, values.get(metric), metric, pairs),
                dagger=any((side, metric) in table.marked for side in (method, table.baseline)),
            )
            for metric in table.metrics
        )
        rows.append(_Row(method, method_colour(method), method in table.controls, cells))
    if table.holds is None:
        signs = "Bold with a star: the interval excludes zero"
    else:
        signs = "Bold: the interval excludes zero; star: it also stands after correction for many comparisons"
    note = (
        f"{table.baseline} minus the other, {table.counted} by {table.counted}: "
        f"{_what(table.differences, table.metrics).lower()}{_of(pairs, table.counted)}. "
        f"{signs}; the word says how {table.baseline} fares. {_directions(table)}"
    )
    if any(cell.dagger for row in rows for cell in row.cells):
        note += " †: one of the two was trained with the fill that scores it here."
    corner = f"{table.baseline} minus"
    return _Table(table.heading, table.caption, corner, _columns(table), tuple(rows), note.strip())


def _difference(table: DifferenceTable, method: str, value: Interval | None, metric: str, pairs: int | None) -> _Cell:
    if value is None or not _excludes_zero(value):
        return _cell(value, False, pairs, "+")
    _, low, high = ends(value)
    side = table.directions.get(metric, 0) * (1 if low > 0 else -1)
    verdict = {1: "better", -1: "worse"}.get(side, "")
    # An end that would be printed as 0.00 gets more digits: the reader is told that zero lies outside.
    nearest = min(abs(low), abs(high))
    digits = next((d for d in range(2, _MOST_DIGITS) if round(nearest, d)), _MOST_DIGITS)
    star = table.holds is None or (method, metric) in table.holds
    return replace(_cell(value, True, pairs, "+", digits), verdict=verdict, star=star)


def _plain(table: PlainTable) -> _Table:
    rows = []
    for k, row in enumerate(table.rows):
        name, *cells = row
        good = {True: "good", False: "bad"}.get(table.good[k], "") if k in table.good else ""
        rows.append(_Row(_word(name, table.digits), "", False, tuple(_any(c, table.digits) for c in cells), good=good))
    return _Table(
        table.heading,
        table.caption,
        table.columns[0] if table.columns else "",
        tuple(table.columns[1:]),
        tuple(rows),
        plain=True,
        sortable=table.sortable,
        folded=table.folded,
    )


def _any(value: Cell, digits: int) -> _Cell:
    if isinstance(value, str):
        return _Cell(value, number=False)
    key = "" if value is None or not math.isfinite(value) else repr(value)
    return _Cell(_word(value, digits), key=key)


def _word(value: Cell, digits: int) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else number(value, digits)


def _excludes_zero(value: Interval | None) -> bool:
    if value is None or not defined(value):
        return False
    _, low, high = ends(value)
    return low > 0 or high < 0


def _cell(value: Interval | None, marked: bool, pairs: int | None, sign: str = "", digits: int = 2) -> _Cell:
    if value is None or not defined(value):
        return _Cell(UNDEFINED)
    mean, low, high = ends(value)
    plus = sign if round(mean, digits) > 0 else ""
    reach = f"[{number(low, digits)}, {number(high, digits)}]" if math.isfinite(high - low) else ""
    count = "" if pairs is not None else f"n = {value.n}"
    return _Cell(plus + number(mean, digits), reach, count=count, marked=marked)


def _one_count(scores: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str]) -> int | None:
    """The number of pairs where it is the same in every cell; it is then said once, below the table."""
    counts = {v.n for values in scores.values() for m, v in values.items() if m in metrics and defined(v)}
    return counts.pop() if len(counts) == 1 else None


def _what(scores: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str]) -> str:
    """What the cells hold; one image alone has no interval."""
    reaches = [ends(v)[1] for values in scores.values() for m, v in values.items() if m in metrics and defined(v)]
    return "Mean and 95 % interval" if any(map(math.isfinite, reaches)) else "Mean"


def _of(pairs: int | None, counted: str = "pair") -> str:
    return "" if pairs is None else f" of {pairs} {counted}{'s' if pairs != 1 else ''}"


def _columns(table: ScoreTable | DifferenceTable) -> tuple[str, ...]:
    return tuple(f"{metric} {arrow(table.directions.get(metric, 0))}".strip() for metric in table.metrics)


def _directions(table: ScoreTable | DifferenceTable) -> str:
    present = {table.directions.get(metric, 0) for metric in table.metrics}
    words = [f"{arrow(d)} {w} is better" for d, w in ((1, "higher"), (-1, "lower")) if d in present]
    return ", ".join(words) + "." if words else ""
