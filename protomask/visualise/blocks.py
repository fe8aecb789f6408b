"""What a report is made of. Names and numbers only: how they become a page is :mod:`protomask.visualise.report`'s."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from protomask.errors import InputError, expected
from protomask.visualise.charts import Interval

CONTROLS = ("random", "centre", "annotation")
DAGGER = "\N{DAGGER}"
FLATTERED = f"{DAGGER}: the method was trained with the fill that scores it here."
_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def media_type(data: bytes) -> str:
    """``image/png``, ``image/jpeg`` or ``image/webp``, by a file's first bytes.

    Raises:
        InputError: none of them.
    """
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    raise InputError(expected("picture", "the bytes of a PNG, JPEG or WebP file", f"{len(data)} other bytes"))


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
        marked: (method, metric) of the scores that carry a dagger.
        counted: what the means are over.
        why: what a dagger says, below the table.
    """

    heading: str
    scores: Mapping[str, Mapping[str, Interval]]
    metrics: Sequence[str]
    directions: Mapping[str, int]
    caption: str = ""
    controls: Collection[str] = CONTROLS
    marked: Collection[tuple[str, str]] = ()
    counted: str = "pair"
    why: str = FLATTERED


@dataclass(frozen=True)
class DifferenceTable:
    """Paired differences, ``baseline`` minus each other method; those whose interval excludes zero are bold.

    Attributes:
        heading: above the table.
        baseline: the method from which the others are subtracted.
        differences: other method -> metric -> mean difference with its interval.
        metrics: the columns, in order.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither.
        caption: between heading and table.
        controls: methods that are set apart.
        holds: (method, metric) of the differences that stand after correction for many comparisons, which get the
            star; None where nothing was corrected: then all whose interval excludes zero get it.
        marked: (method, metric) of the scores that carry a dagger, of the baseline or another: so does a difference
            with such a score on either side.
        counted: what the means are over.
    """

    heading: str
    baseline: str
    differences: Mapping[str, Mapping[str, Interval]]
    metrics: Sequence[str]
    directions: Mapping[str, int]
    caption: str = ""
    controls: Collection[str] = CONTROLS
    holds: Collection[tuple[str, str]] | None = None
    marked: Collection[tuple[str, str]] = ()
    counted: str = "pair"


@dataclass(frozen=True)
class DotPlot:
    """One small panel per metric: a dot per method, its interval as a bar. Drawn as SVG, in the page's own colours.

    Attributes:
        heading: above it.
        scores: method -> metric -> mean with its interval; undefined ones stay blank.
        metrics: the panels, in order.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither.
        caption: between heading and panels.
        controls: methods in italics.
        digits: of the number beside each dot.
        marked: (method, metric) of the scores that carry a dagger; the table beside the plot says what it means.
    """

    heading: str
    scores: Mapping[str, Mapping[str, Interval]]
    metrics: Sequence[str]
    directions: Mapping[str, int]
    caption: str = ""
    controls: Collection[str] = CONTROLS
    digits: int = 2
    marked: Collection[tuple[str, str]] = ()


Cell = str | int | float | None


@dataclass(frozen=True)
class PlainTable:
    """Any table; numbers to the right, undefined ones as dashes.

    Attributes:
        heading: above the table.
        columns: their names.
        rows: one cell per column; the first one names the row.
        caption: between heading and table.
        digits: of floats.
        sortable: whether a click on a column's name sorts by it.
        folded: whether the rows are behind a line to be clicked.
        good: row number -> True or False, for a table of checks; rows that are not in it are neither.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    digits: int = 2
    sortable: bool = False
    folded: bool = False
    good: Mapping[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(expected("rows", f"{len(self.columns)} cells each", len(row)))


@dataclass(frozen=True)
class Tile:
    """One small picture of a strip.

    Attributes:
        name: of the method, or of what is shown.
        data: the bytes of a PNG, JPEG or WebP file.
        size: (height, width) in pixels, as large as it is shown.
        text: a few numbers below it.
        method: whether the name is a method's, and gets its colour.
    """

    name: str
    data: bytes
    size: tuple[int, int]
    text: str = ""
    method: bool = True


@dataclass(frozen=True)
class Strip:
    """The same image under every method: a line of tiles.

    Attributes:
        title: above it: which pair.
        tiles: in order.
        note: beside the title.
    """

    title: str
    tiles: Sequence[Tile]
    note: str = ""


@dataclass(frozen=True)
class Multiples:
    """Strips, one below the other.

    Attributes:
        heading: above them.
        strips: in order.
        caption: between heading and strips.
        folded: whether they are behind a line to be clicked; then they do not go on paper.
    """

    heading: str
    strips: Sequence[Strip]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """One figure of the report.

    Attributes:
        heading: of its section; consecutive blocks with the same heading share one.
        data: the bytes of a PNG, JPEG or WebP file.
        alt: what it shows, in words, for those who cannot see it.
        caption: below it.
    """

    heading: str
    data: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        media_type(self.data)


Block = ScoreTable | DifferenceTable | DotPlot | PlainTable | Multiples | Picture


@dataclass(frozen=True)
class Report:
    """Everything that is in the report, in the order in which it is shown.

    Attributes:
        title: of the page.
        summary_lines: paragraphs below the title: what was found, in words.
        blocks: tables, plots and pictures.
        command: what makes the numbers again.
        settings: name -> value.
        versions: name -> version, of the packages and the model.
    """

    title: str
    summary_lines: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    command: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
