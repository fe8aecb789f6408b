"""The report is one file that holds everything, escapes everything and asks nothing of the network."""

# ruff: noqa: RUF001 (true minus signs and dashes are what is tested)

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from protomask.errors import InputError, ResourceError
from protomask.visualise.dots import panels, ticks
from protomask.visualise.pixels import webp
from protomask.visualise.report import (
    DifferenceTable,
    DotPlot,
    Multiples,
    Picture,
    PlainTable,
    Report,
    ScoreTable,
    Strip,
    Tile,
    render,
    write_report,
)
from protomask.visualise.sheet import png_bytes, sheet

VOID = {"meta", "img", "br", "link", "input", "hr"}
QUIET = {"style", "script"}
PNG = png_bytes(sheet(0.4, 0.3), dpi=100)
NASTY = "<script>alert('x')</script> & \"quotes\""


@dataclass(frozen=True)
class _Summary:
    mean: float | None
    low: float | None
    high: float | None
    n: int = 210


class _Page(HTMLParser):
    """Reads the page strictly: every element closed in order; keeps its attributes, its tables and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.marked: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "strong":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if QUIET & set(self.open):
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if "strong" in self.open:
            self.marked[-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def _scores() -> ScoreTable:
    scores = {
        "mdm": {"energy": _Summary(0.71, 0.69, 0.74), "deletion": _Summary(0.31, 0.28, 0.33)},
        "upsampling": {"energy": _Summary(0.42, 0.40, 0.44), "deletion": _Summary(0.12, 0.1, 0.14)},
        "random": {"energy": _Summary(math.nan, math.nan, math.nan), "deletion": _Summary(0.05, 0.04, 0.06)},
        "annotation": {"energy": _Summary(0.99, 0.98, 1.0)},
    }
    return ScoreTable("Scores", scores, ["energy", "deletion"], {"energy": 1, "deletion": -1}, "210 pairs")


def _differences() -> DifferenceTable:
    differences = {
        "upsampling": {"energy": _Summary(0.29, 0.25, 0.33), "deletion": _Summary(0.19, 0.15, 0.22)},
        "random": {"energy": _Summary(0.02, -0.01, 0.05), "deletion": _Summary(-0.10, -0.2, -0.001)},
        "annotation": {"energy": _Summary(0.4, math.nan, math.nan), "deletion": _Summary(None, None, None)},
    }
    return DifferenceTable("Differences", "mdm", differences, ["energy", "deletion"], {"energy": 1, "deletion": -1})


def _full() -> Report:
    return Report(
        "Planted birds",
        ("MDM finds the part.", "Intervals are clustered by image."),
        (
            _scores(),
            _differences(),
            Picture("Panels", PNG, "a panel", "Image 3"),
            Picture("Panels", PNG, "another"),
            Picture("Bank", PNG, "a bank"),
        ),
        "protomask demo --out out --seed 0",
        {"steps": 25, "fill": "mean colour"},
        {"torch": "2.9", "model": "demo:protopnet"},
    )


def test_report_holds_everything_in_order() -> None:
    page = _Page(render(_full()))
    text = " ".join(" ".join(page.text).split())
    wanted = (
        "Planted birds", "MDM finds the part.", "Intervals are clustered", "210 pairs", "Differences", "Panels",
        "Image 3", "Bank", "How this was made", "protomask demo --out out --seed 0", "steps", "25", "mean colour",
        "torch", "2.9",
    )  # fmt: skip
    places = [text.find(word) for word in wanted]
    assert -1 not in places
    body = text[text.index("210 pairs") :]
    order = [body.find(word) for word in ("Differences", "Image 3", "Bank", "protomask demo", "mean colour", "2.9")]
    assert order == sorted(order)
    assert page.values("alt") == ["a panel", "another", "a bank"]


def test_pictures_are_embedded_with_their_size() -> None:
    page = _Page(render(_full()))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 3
    assert all(base64.b64decode(s.removeprefix("data:image/png;base64,"), validate=True) == PNG for s in sources)
    assert page.values("width")[0] == "40"
    assert page.values("height")[0] == "30"


def test_score_table_prints_means_intervals_and_arrows() -> None:
    head, mdm, upsampling, random, annotation = _Page(render(_full())).tables[0]
    assert [" ".join(cell.split()) for cell in head] == ["method", "energy ↑", "deletion ↓"]
    assert [" ".join(cell.split()) for cell in mdm] == ["mdm", "0.71 [0.69, 0.74]", "0.31 [0.28, 0.33]"]
    assert upsampling[0] == "upsampling"
    assert random[1] == "–"
    assert annotation[2] == "–"


def test_the_best_is_bold_by_direction_and_controls_never_are() -> None:
    page = _Page(render(Report("t", blocks=(_scores(),))))
    assert page.marked == ["0.71", "0.12"]  # energy: mdm; deletion: upsampling, for random is a control
    both = {m: {"energy": _Summary(v, 0.6, 0.8)} for m, v in (("mdm", 0.714), ("single-mask", 0.706), ("other", 0.70))}
    tied = _Page(render(Report("t", blocks=(ScoreTable("s", both, ["energy"], {"energy": 1}),))))
    assert tied.marked == ["0.71", "0.71"]
    undirected = _Page(render(Report("t", blocks=(ScoreTable("s", both, ["energy"], {}),))))
    assert undirected.marked == []


def test_differences_are_marked_where_the_interval_excludes_zero() -> None:
    page = _Page(render(Report("t", blocks=(_differences(),))))
    head, upsampling, random, annotation = ([" ".join(c.split()) for c in row] for row in page.tables[0])
    assert head[0] == "mdm minus"
    assert upsampling[1:] == ["+0.29 * [0.25, 0.33] better", "+0.19 * [0.15, 0.22] worse"]
    # The interval's end is told to the digit that shows on which side of zero it lies.
    assert random[1:] == ["+0.02 [−0.01, 0.05]", "−0.100 * [−0.200, −0.001] better"]
    assert annotation[1:] == ["+0.40", "–"]  # one group has a mean and no interval, so nothing is said about zero
    assert [word.replace("\u2009", "") for word in page.marked] == ["+0.29*", "+0.19*", "−0.100*"]


def test_counts_are_said_once_where_they_agree_and_in_each_cell_where_they_do_not() -> None:
    agreed = " ".join(_Page(render(Report("t", blocks=(_scores(),)))).text)
    assert "interval of 210 pairs" in agreed
    assert "n = " not in agreed
    scores = {"mdm": {"a": _Summary(0.5, 0.4, 0.6, 210), "b": _Summary(0.5, 0.4, 0.6, 1)}}
    mixed = _Page(render(Report("t", blocks=(ScoreTable("s", scores, ["a", "b"], {}),)))).tables[0][1]
    assert [cell.split("n = ")[1] for cell in mixed[1:]] == ["210", "1"]


def test_everything_is_escaped() -> None:
    summary = {NASTY: {NASTY: _Summary(0.5, 0.4, 0.6)}}
    report = Report(
        NASTY,
        (NASTY,),
        (
            ScoreTable(NASTY, summary, [NASTY], {}, NASTY),
            DifferenceTable(NASTY, NASTY, summary, [NASTY], {}, NASTY),
            DotPlot(NASTY, summary, [NASTY], {}, NASTY),
            PlainTable(NASTY, [NASTY, NASTY], [(NASTY, NASTY)], NASTY, sortable=True, folded=True),
            Multiples(NASTY, [Strip(NASTY, [Tile(NASTY, PNG, (3, 4), NASTY)], NASTY)], NASTY, folded=True),
            Picture(NASTY, PNG, NASTY, NASTY),
        ),
        NASTY,
        {NASTY: NASTY},
        {NASTY: NASTY},
    )
    html = render(report)
    assert html.count("<script") == 1
    assert html.count("</script>") == 1
    page = _Page(html)
    assert " ".join(page.text).count(NASTY) >= 25
    assert page.values("alt") == [f"{NASTY}: {NASTY}", NASTY]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_file_needs_nothing_but_itself() -> None:
    html = render(_full())
    page = _Page(html)
    words = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert len(words) < len(html)
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", words, re.IGNORECASE)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _, _ in page.attributes}  # the script has none
    assert all(value.startswith("data:image/png;base64,") for value in page.values("src"))
    targets = {value[1:] for value in page.values("href")}
    assert all(value.startswith("#") for value in page.values("href"))
    assert targets <= set(page.values("id"))
    assert len(page.values("id")) == len(set(page.values("id")))
    policy = next(value for value in page.values("content") if "default-src 'none'" in value)
    script = html[html.index("<script>") + 8 : html.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy  # this one script, and no other


def test_the_page_reads_in_the_dark_on_paper_and_by_keyboard() -> None:
    html = render(_full())
    page = _Page(html)
    for rule in ("prefers-color-scheme: dark", "@media print", ":focus-visible", "overflow-x: auto", "max-width: 100%"):
        assert rule in html
    assert ("html", "lang", "en-GB") in page.attributes
    assert page.values("scope").count("col") == 6
    scrolling = [value for tag, name, value in page.attributes if (tag, name) == ("div", "tabindex")]
    assert scrolling == ["0", "0"]


def test_an_empty_report_is_still_a_page() -> None:
    page = _Page(render(Report("Nothing yet")))
    assert "Nothing yet" in "".join(page.text)
    assert page.tables == []


def test_write_report_writes_the_file_and_says_when_it_cannot(tmp_path: Path) -> None:
    path = write_report(tmp_path / "out" / "report.html", _full())
    assert path.read_text(encoding="utf-8") == render(_full())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"report\.html: expected a file that can be written"):
        write_report(tmp_path / "file" / "report.html", _full())


def test_pictures_must_be_of_a_kind_that_browsers_show() -> None:
    with pytest.raises(InputError, match="picture: expected the bytes of a PNG, JPEG or WebP file"):
        Picture("h", b"GIF89a", "alt")
    small = webp(np.zeros((6, 9, 3), np.uint8))
    page = _Page(render(Report("t", blocks=(Picture("h", small, "alt"),))))
    assert page.values("src")[0].startswith("data:image/webp;base64,")
    assert (page.values("width")[0], page.values("height")[0]) == ("9", "6")


def test_the_star_is_for_differences_that_stand_after_correction() -> None:
    table = replace(_differences(), holds={("upsampling", "energy")})
    page = _Page(render(Report("t", blocks=(table,))))
    assert [word.replace("\u2009", "") for word in page.marked] == ["+0.29*", "+0.19", "−0.100"]
    assert "after correction" in " ".join(page.text)


def test_scores_with_a_mark_carry_a_dagger() -> None:
    plain, marked = (
        _Page(render(Report("t", blocks=(replace(_scores(), marked=marked),)))) for marked in ((), [("mdm", "energy")])
    )
    daggers = [[column for column, cell in enumerate(row) if "†" in cell] for row in marked.tables[0]]
    assert daggers == [[], [1], [], [], []]
    assert not any("†" in text for text in plain.text)
    assert any("†: the method was trained" in text for text in marked.text)


@pytest.mark.parametrize("method", ["upsampling", "mdm"])
def test_differences_with_a_marked_score_on_either_side_carry_a_dagger(method: str) -> None:
    table = replace(_differences(), marked=[(method, "energy")])
    page = _Page(render(Report("t", blocks=(table,))))
    daggers = [[column for column, cell in enumerate(row) if "†" in cell] for row in page.tables[0]]
    assert daggers == [[], [1], [1] if method == "mdm" else [], [1] if method == "mdm" else []]
    assert any("†: one of the two was trained" in text for text in page.text)


def test_an_end_near_zero_is_not_printed_as_zero() -> None:
    gaps = {"other": {"energy": _Summary(-0.01, -0.02, -0.00031)}}
    page = _Page(render(Report("t", blocks=(DifferenceTable("d", "mdm", gaps, ["energy"], {"energy": 1}),))))
    assert any("−0.0003]" in text.replace("-", "−") for text in page.text), page.text


def test_dots_lie_where_the_numbers_say() -> None:
    plot = DotPlot("d", _scores().scores, ["energy", "deletion", "absent"], {"energy": 1, "deletion": -1})
    energy, deletion = panels(plot)
    assert energy.heading == "energy ↑"
    places = {dot.name: dot.at for dot in energy.dots}
    assert places["random"] is None
    # The axis runs from the lowest end, .40, to the highest, 1, with 4 % free on either side.
    assert places["mdm"] == pytest.approx(4 + 92 * (0.71 - 0.40) / 0.60, abs=0.01)
    assert next(d for d in energy.dots if d.name == "annotation").high == pytest.approx(96)
    assert [d.name for d in energy.dots if d.best] == ["mdm"]
    assert [d.name for d in deletion.dots if d.best] == ["upsampling"]
    assert [label for _, label in energy.ticks] == ["0.4", "0.6", "0.8", "1.0"]
    page = _Page(render(Report("t", blocks=(plot,))))
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("circle", "cx")]) == 3 + 3


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.42, 0.47), (-3.2, 811), (0.5, 0.5000001), (1, 1)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert all(low - 1e-9 <= mark <= high + 1e-9 for mark in marks)
    assert len(marks) >= 2 or low == high
    assert len(marks) <= 10


@pytest.mark.parametrize(("low", "high"), [(0.1234, 0.1239), (-0.29, 0.07), (-0.011, 0.049), (0, 31.9), (0.05, 0.95)])
def test_ticks_have_room(low: float, high: float) -> None:
    values = {"mdm": {"a": _Summary(low, low, low)}, "rise": {"a": _Summary(high, high, high)}}
    (panel,) = panels(DotPlot("d", values, ["a"], {"a": 1}))
    assert len(panel.ticks) >= 2
    assert sum(len(label) + 1 for _, label in panel.ticks) <= 25
    assert len({label for _, label in panel.ticks}) == len(panel.ticks)


def test_a_dot_tells_that_its_score_flatters() -> None:
    scores = _scores()
    plot = DotPlot(scores.heading, scores.scores, ["deletion"], {"deletion": -1}, marked={("mdm", "deletion")})
    assert {dot.name: dot.dagger for dot in panels(plot)[0].dots} == {
        "mdm": True,
        "upsampling": False,
        "random": False,
        "annotation": False,
    }
    assert "0.31†" in "".join(_Page(render(Report("t", blocks=(plot,)))).text)


def test_the_regions_of_a_page_have_names_of_their_own() -> None:
    html = render(Report("t", blocks=(_scores(), replace(_scores(), caption="again"), _differences())))
    names = re.findall(r'role="region" aria-label="([^"]*)"', html)
    assert names == ["Scores", "Scores, table 2", "Differences"]


def test_one_image_has_means_without_intervals() -> None:
    one = {"mdm": {"energy": _Summary(0.5, math.nan, math.nan)}}
    said = "".join(_Page(render(Report("t", blocks=(ScoreTable("s", one, ["energy"], {"energy": 1}),)))).text)
    assert "interval" not in said
    assert "Mean of 210 pairs." in said


def test_plain_tables_sort_by_numbers_and_show_dashes() -> None:
    rows = [("a", 2, 0.5), ("b", 11, math.nan), ("c", 3, None)]
    page = _Page(render(Report("t", blocks=(PlainTable("p", ("name", "n", "score"), rows, sortable=True),))))
    assert page.tables[0][1:] == [["a", "2", "0.50"], ["b", "11", "–"], ["c", "3", "–"]]
    assert page.values("data-key") == ["2", "0.5", "11", "", "3", ""]
    with pytest.raises(InputError, match="rows: expected 3 cells each"):
        PlainTable("p", ("name", "n", "score"), [("a", 1)])
