"""The report: one HTML file with tables, figures and how they were made, that needs nothing but itself.

Pictures are embedded, styles are inline, and a content security policy forbids the file to load anything. All text is
escaped: names of classes and images come from users' folders. ::

    write_report("out/report.html", Report("Planted birds", tables=(table,), figures=(section,)))
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from protomask.errors import InputError, expected
from protomask.files import write_text
from protomask.visualise.charts import Interval, defined, ends
from protomask.visualise.palette import method_colour
from protomask.visualise.wording import UNDEFINED, arrow, number

CONTROLS = ("random", "centre", "annotation")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ScoreTable:
    """Methods by metrics; the best method of each metric is bold.

    Attributes:
        heading: above the table.
        scores: method -> metric -> mean with its interval; missing and undefined ones are dashes.
        metrics: the columns, in order.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither (nothing is bold then).
        caption: between heading and table.
        controls: methods that are set apart and never bold: the annotation is the ceiling, not a competitor.
    """

    heading: str
    scores: Mapping[str, Mapping[str, Interval]]
    metrics: Sequence[str]
    directions: Mapping[str, int]
    caption: str = ""
    controls: Sequence[str] = CONTROLS


@dataclass(frozen=True)
class DifferenceTable:
    """Paired differences, ``baseline`` minus each other method; those whose interval excludes zero are marked.

    Attributes:
        heading: above the table.
        baseline: the method from which the others are subtracted.
        differences: other method -> metric -> mean difference with its interval.
        metrics: the columns, in order.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither.
        caption: between heading and table.
        controls: methods that are set apart.
    """

    heading: str
    baseline: str
    differences: Mapping[str, Mapping[str, Interval]]
    metrics: Sequence[str]
    directions: Mapping[str, int]
    caption: str = ""
    controls: Sequence[str] = CONTROLS


@dataclass(frozen=True)
class Picture:
    """One figure of the report.

    Attributes:
        heading: of its section; consecutive pictures with the same heading share one.
        png: the bytes of a PNG file.
        alt: what it shows, in words, for those who cannot see it.
        caption: below it.
    """

    heading: str
    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise InputError(expected("png", "the bytes of a PNG file", f"{len(self.png)} other bytes"))


@dataclass(frozen=True)
class Report:
    """Everything that is in the report, in the order in which it is shown.

    Attributes:
        title: of the page.
        summary_lines: paragraphs below the title: what was found, in words.
        tables: score and difference tables.
        figures: pictures.
        command: what makes the report again.
        settings: name -> value.
        versions: name -> version, of the packages and the model.
    """

    title: str
    summary_lines: Sequence[str] = ()
    tables: Sequence[ScoreTable | DifferenceTable] = ()
    figures: Sequence[Picture] = ()
    command: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)


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
    loader = PackageLoader("protomask.visualise", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tables = [_scores(t) if isinstance(t, ScoreTable) else _differences(t) for t in report.tables]
    figures = _sections(report.figures)
    sections = [(f"table-{k}", table.heading) for k, table in enumerate(tables, 1)]
    sections += [(section.id, section.heading) for section in figures] + [("making", "How this was made")]
    template = environment.get_template("report.html")
    return template.render(report=report, tables=tables, figures=figures, sections=sections)


@dataclass(frozen=True)
class _Cell:
    mean: str
    range: str = ""
    verdict: str = ""
    count: str = ""
    marked: bool = False


@dataclass(frozen=True)
class _Row:
    name: str
    colour: str
    control: bool
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class _Table:
    heading: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    note: str
    stars: bool


@dataclass(frozen=True)
class _Figure:
    id: str
    data: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class _Section:
    id: str
    heading: str
    figures: list[_Figure]


def _scores(table: ScoreTable) -> _Table:
    best = {metric: _best(table, metric) for metric in table.metrics}
    pairs = _one_count(table.scores, table.metrics)
    rows = []
    for method, values in table.scores.items():
        cells = tuple(_cell(values.get(metric), method in best[metric], pairs) for metric in table.metrics)
        rows.append(_Row(method, method_colour(method), method in table.controls, cells))
    note = f"Mean and 95 % interval{_of(pairs)}. Bold: the best, controls aside. {_directions(table)}"
    return _Table(table.heading, table.caption, "method", _columns(table), tuple(rows), note.strip(), False)


def _differences(table: DifferenceTable) -> _Table:
    pairs = _one_count(table.differences, table.metrics)
    rows = []
    for method, values in table.differences.items():
        cells = tuple(_difference(table, values.get(metric), metric, pairs) for metric in table.metrics)
        rows.append(_Row(method, method_colour(method), method in table.controls, cells))
    note = (
        f"{table.baseline} minus the other, pair by pair: mean and 95 % interval{_of(pairs)}. "
        f"Bold with a star: the interval excludes zero; the word says how {table.baseline} fares. {_directions(table)}"
    )
    corner = f"{table.baseline} minus"
    return _Table(table.heading, table.caption, corner, _columns(table), tuple(rows), note.strip(), True)


def _difference(table: DifferenceTable, value: Interval | None, metric: str, pairs: int | None) -> _Cell:
    if value is None or not _excludes_zero(value):
        return _cell(value, False, pairs, "+")
    _, low, high = ends(value)
    side = table.directions.get(metric, 0) * (1 if low > 0 else -1)
    verdict = {1: "better", -1: "worse"}.get(side, "")
    # An end that would be printed as 0.00 gets a third digit: the reader is told that zero lies outside.
    digits = 3 if min(abs(low), abs(high)) < 0.005 else 2
    return replace(_cell(value, True, pairs, "+", digits), verdict=verdict)


def _best(table: ScoreTable, metric: str) -> set[str]:
    """The methods whose mean, as printed, is the best: those that look alike are bold together."""
    direction = table.directions.get(metric, 0)
    means = {
        method: round(ends(values[metric])[0], 2) * direction
        for method, values in table.scores.items()
        if method not in table.controls and metric in values and defined(values[metric])
    }
    return {method for method, mean in means.items() if direction and mean == max(means.values())}


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


def _of(pairs: int | None) -> str:
    return "" if pairs is None else f" of {pairs} pair{'s' if pairs != 1 else ''}"


def _columns(table: ScoreTable | DifferenceTable) -> tuple[str, ...]:
    return tuple(f"{metric} {arrow(table.directions.get(metric, 0))}".strip() for metric in table.metrics)


def _directions(table: ScoreTable | DifferenceTable) -> str:
    present = {table.directions.get(metric, 0) for metric in table.metrics}
    words = [f"{arrow(d)} {w} is better" for d, w in ((1, "higher"), (-1, "lower")) if d in present]
    return ", ".join(words) + "." if words else ""


def _sections(pictures: Sequence[Picture]) -> list[_Section]:
    sections: list[_Section] = []
    for k, picture in enumerate(pictures, 1):
        if not sections or sections[-1].heading != picture.heading:
            sections.append(_Section(f"figures-{len(sections) + 1}", picture.heading, []))
        # Bytes 16 to 24 of a PNG file are its width and height; the page does not jump while pictures are decoded.
        width, height = struct.unpack(">II", picture.png[16:24])
        data = base64.b64encode(picture.png).decode("ascii")
        sections[-1].figures.append(_Figure(f"figure-{k}", data, width, height, picture.alt, picture.caption))
    return sections
