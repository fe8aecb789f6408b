"""Tables and examples on disk, and the page that is made from these files alone."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from pycocotools.coco import COCO
from scipy.stats import binom, rankdata

from protomask import opening
from protomask.cli import main
from protomask.commands.common import DIRECTIONS
from protomask.errors import DataError, InputError
from protomask.localisers import LOCALISERS
from protomask.metrics import METRICS, Summary
from protomask.pairs import Pair
from protomask.reporting.checking import LEVEL, chance_of_hits
from protomask.reporting.comparing import holding, mean_ranks
from protomask.reporting.examples import EXAMPLES, read_chunk, small_size, write_chunk, write_thumbnail
from protomask.reporting.kept import Kept
from protomask.reporting.latex import escaped, latex
from protomask.reporting.page import Choice, page, settled
from protomask.reporting.results import Results, read_results, spell_flattered, spell_prototypes
from protomask.reporting.tidy import COLUMNS, Scored, read_csv, read_parquet, write_csv, write_parquet
from protomask.store import read_regions
from protomask.visualise.blocks import DifferenceTable, DotPlot, Multiples, PlainTable, ScoreTable
from protomask.visualise.report import render

from .results_tools import METHODS, about, localisation, make_results, sample, values

NASTY = "<img src=x onerror=alert(1)>\n\"'& %_$\\ \udc80"
PAIRS = [Scored(NASTY, "g", "c, d", 3, "p;\n", ""), Scored("b", "g", "", 4, "q", "wing")]
VALUES = {"mdm": {"energy": np.array([0.123456789, np.nan])}, "random": {"energy": np.array([1e-12, 1.0])}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("results"), 20)


def test_the_tidy_table_comes_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "pairs.csv", PAIRS, VALUES)
    pairs, read = read_csv(tmp_path / "pairs.csv")
    assert pairs == tuple(PAIRS)
    assert pairs[0].image == NASTY.replace("\udc80", "\\udc80")
    for method, columns in VALUES.items():
        assert read[method]["energy"] == pytest.approx(columns["energy"], rel=1e-8, nan_ok=True)


def test_parquet_holds_the_same_table(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_csv(tmp_path / "pairs.csv", PAIRS, VALUES)
    write_parquet(tmp_path / "pairs.parquet", PAIRS, VALUES)
    table = parquet.read_table(tmp_path / "pairs.parquet")
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    with (tmp_path / "pairs.csv").open(newline="", encoding="utf-8") as file:
        for row, text in zip(rows, csv.DictReader(file), strict=True):
            number = None if text["value"] == "" else pytest.approx(float(text["value"]), rel=1e-8)
            assert row == {**text, "pair": int(text["pair"]), "prototype": int(text["prototype"]), "value": number}
    assert table["value"].null_count == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("a,b\n", "other columns"),
        (",".join(COLUMNS) + "\n0,i,g,c,x,n,p,mdm,energy,0.5\n", "invalid literal"),
        (",".join(COLUMNS) + "\n1,i,g,c,0,n,p,mdm,energy,0.5\n", "gaps between"),
        (",".join(COLUMNS) + "\n0,i\n", "unpack"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "pairs.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_csv(path)


@pytest.mark.parametrize("small", [False, True])
def test_the_parquet_table_comes_back_exactly(tmp_path: Path, small: bool) -> None:
    lone = {**VALUES, "alone": {"deletion": np.array([np.nan, 1 / 3])}}  # a metric that the others have not
    lone["last"] = {"deletion": np.zeros(2), "energy": np.ones(2)}  # and the two in another order
    write_parquet(tmp_path / "pairs.parquet", PAIRS, lone, small=small)
    pairs, read = read_parquet(tmp_path / "pairs.parquet")
    assert pairs == tuple(PAIRS)
    assert [(m, list(columns)) for m, columns in read.items()] == [(m, list(columns)) for m, columns in lone.items()]
    for method, columns in lone.items():
        for metric, column in columns.items():
            assert np.array_equal(read[method][metric], column, equal_nan=True)


def test_a_small_parquet_file_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [Scored(f"bird-{k}.jpg", f"bird-{k}.jpg", f"class {k % 7}", k, f"class {k} / 0", "") for k in range(200)]
    made = {f"method {m}": {f"metric {k}": rng.random(200) for k in range(39)} for m in range(18)}
    for small in (False, True):
        write_parquet(tmp_path / f"{small}.parquet", pairs, made, small=small)
    sizes = [(tmp_path / f"{small}.parquet").stat().st_size for small in (False, True)]
    assert sizes[1] < min(1.03e6, 0.8 * sizes[0]), sizes


def _columns(**changed: object) -> dict[str, object]:
    """The columns of a table of two pairs, as they should be but for the changed ones."""
    row = {"pair": [0, 1], "image": ["i", "j"], "group": ["g", "g"], "class": ["c", "c"], "prototype": [0, 1]}
    row |= {"prototype_name": ["n", "n"], "part": ["", ""], "method": ["mdm", "mdm"], "metric": ["energy", "energy"]}
    return {**row, "value": [0.5, None], **changed}


def test_a_parquet_table_that_another_program_wrote_is_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(_columns())  # plain texts, and numbers of eight bytes
    parquet.write_table(table.take([1, 0]), tmp_path / "pairs.parquet", row_group_size=1)
    pairs, read = read_parquet(tmp_path / "pairs.parquet")
    assert [pair.image for pair in pairs] == ["i", "j"]
    assert np.array_equal(read["mdm"]["energy"], [0.5, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"more": [1, 2]}, "other columns"),
        ({"pair": [0, 2]}, "2 pairs with gaps between"),
        ({"pair": [-1, 0]}, "gaps between"),
        ({"pair": [0, 1 << 40]}, "not in range"),
        ({"pair": [0, None]}, "empty cells in pair"),
        ({"method": ["mdm", None]}, "empty cells in method"),
        ({"image": [1, 2]}, r"pairs\.parquet: expected a table with the columns"),
        ({"value": ["a", "a"]}, "'a' as a scalar"),
    ],
)
def test_a_broken_parquet_table_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(_columns(**changed)), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=message):
        read_parquet(tmp_path / "pairs.parquet")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(DataError, match=r"pairs\.parquet: .*no such file"):
        read_parquet(path)
    write_parquet(path, PAIRS, VALUES)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", b"a,b\n0,1\n" * 9, whole[: len(whole) // 2], whole[:4] + bytes(99) + whole[103:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"pairs\.parquet: expected a table"):
            read_parquet(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="a folder"):
        read_parquet(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "pairs.parquet"
    parquet.write_table(pyarrow.table(_columns(pair=[0, 0], image=["i", "jjjj"])), path, compression="none")
    assert len(read_parquet(path)[0]) == 1
    path.write_bytes(path.read_bytes().replace(b"jjjj", b"\xff" * 4))
    with pytest.raises(DataError, match=r"pairs\.parquet: expected a table"):
        read_parquet(path)


def test_a_damaged_byte_is_refused_or_gives_other_known_names(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path, methods = tmp_path / "pairs.parquet", ["ma", "mb", "mc"]  # two bits each, of which 11 names nothing
    row = {name: column[:1] * 3 for name, column in _columns().items()}
    parquet.write_table(pyarrow.table({**row, "method": methods}), path, compression="none")
    whole, column = path.read_bytes(), parquet.read_metadata(path).row_group(0).column(COLUMNS.index("method"))
    read, refused = set(), []
    for at in range(column.data_page_offset, column.dictionary_page_offset + column.total_compressed_size):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            read |= set(read_parquet(path)[1])
        except DataError as error:
            refused.append(str(error))
    assert read == set(methods)
    assert [error for error in refused if "out of bounds" in error]


def test_a_parquet_file_that_unpacks_to_far_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pairs.parquet"
    pairs = [Scored("i", "g", "", 0, "n", "")] * 100_000
    write_parquet(path, pairs, {"mdm": {"energy": np.zeros(len(pairs))}}, small=True)
    assert len(read_parquet(path)[0]) == len(pairs)
    monkeypatch.setattr(opening, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr(opening, "MOST_PER_BYTE", 1)
    with pytest.raises(DataError, match="bytes that unpack to 4400000"):
        read_parquet(path)


def test_results_come_from_the_parquet_table_where_there_is_no_csv(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "made", 4, ("mdm", "random"), size=24)
    first = read_results(folder)
    write_parquet(folder / "pairs.parquet", first.pairs, {"mdm": first.values["mdm"]})
    assert set(read_results(folder).values) == {"mdm", "random"}
    (folder / "pairs.csv").unlink()
    again = read_results(folder)
    assert again.pairs == first.pairs
    assert set(again.values) == {"mdm"}
    write_parquet(folder / "pairs.parquet", [], {"mdm": {"energy": np.zeros(0)}})
    with pytest.raises(DataError, match=r"pairs\.parquet: expected at least one pair"):
        read_results(folder)
    (folder / "pairs.parquet").unlink()
    with pytest.raises(DataError, match=r"pairs\.csv: .*no such file"):
        read_results(folder)


def _summary(mean: float) -> Summary:
    return Summary(mean, mean - 0.1, mean + 0.1, 9)


def test_latex_is_booktabs_with_the_best_bold() -> None:
    scores = {
        "mdm": {"energy": _summary(0.7), "deletion": _summary(0.4)},
        "up_sampling": {"energy": _summary(0.2), "deletion": _summary(0.3)},
        "annotation": {"energy": _summary(0.9)},
    }
    text = latex(scores, {"50 % & more": ["energy", "deletion"]}, {"energy": 1, "deletion": -1}, ["annotation"])
    lines = text.splitlines()
    assert r"mdm & \textbf{0.700} {\scriptsize [0.600, 0.800]} & 0.400 {\scriptsize [0.300, 0.500]} \\" in lines
    assert any(line.startswith(r"up\_sampling & 0.200") and r"\textbf{0.300}" in line for line in lines)
    assert r"\dagger" not in text
    flattered = latex(scores, {"t": ["energy", "deletion"]}, {}, ["annotation"], {("mdm", "deletion")})
    assert r"mdm & 0.700 {\scriptsize [0.600, 0.800]} & 0.400$^\dagger$ {\scriptsize [0.300, 0.500]} \\" in flattered
    assert "% Dagger: the method was trained with the fill that scores it." in flattered
    assert r"annotation & 0.900 {\scriptsize [0.800, 1.000]} & -- \\" in lines  # the ceiling is no competitor
    assert r"\caption{50 \% \& more}" in lines
    order = [lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert order == sorted(order)
    assert text.count("{") == text.count("}")
    assert all(line.count(" & ") == 2 for line in lines if line.endswith(r"\\"))


def test_wide_latex_tables_are_split() -> None:
    names = [f"m{k}" for k in range(12)]
    text = latex({"mdm": {m: _summary(0.5) for m in names}}, {"t": names}, {}, [])
    assert text.count(r"\begin{tabular}") == 4
    assert text.count(r"\textbf") == 0


def _points(text: str, size: float) -> float:
    """The width of a text in LaTeX's own typeface."""
    font = FontProperties(family="cmr10", size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def _cell_points(cell: str) -> float:
    if r"\shortstack" in cell:
        return max(map(_cell_points, cell.removeprefix(r"\shortstack{").removesuffix("}").split(r"\\")))
    mean, _, interval = cell.partition(r" {\scriptsize ")
    plain = re.sub(r"\$\\(up|down)arrow\$", "XX", re.sub(r"\\textbf\{([^}]*)\}", r"\1", mean)).replace("\\", "")
    # The real cmr7 is wider than cmr10 made smaller, 3.99 points a digit in place of 3.5.
    return _points(plain, 10) + (_points(interval.removesuffix("}"), 7) * 3.99 / 3.5 + 3.4 if interval else 0)


def test_latex_tables_fit_between_the_margins() -> None:
    scores = {method: {metric: Summary(0.967, 0.948, 0.983, 9) for metric in METRICS} for method in LOCALISERS}
    tables = latex(scores, {"t": tuple(METRICS)}, DIRECTIONS, []).split(r"\begin{table}")[1:]
    for table in tables:
        rows = [line.removesuffix(r" \\").split(" & ") for line in table.splitlines() if " & " in line]
        columns = [max(map(_cell_points, column)) for column in zip(*rows, strict=True)]
        assert sum(columns) + 2 * 4 * (len(columns) - 1) <= 345, rows[0]
    wide = {m: {k: Summary(-0.5, -0.6, -0.4, 9) for k in ("energy", "dice", "ppv")} for m in ("mdm", "W" * 12)}
    assert latex(wide, {"t": ("energy", "dice", "ppv")}, {}, []).count(r"\begin{table}") == 2
    assert {name for table in tables for name in re.findall(r"local-\\\\perturbation-\\\\[a-z]+", table)} == {
        rf"local-\\perturbation-\\{kind}" for kind in ("blur", "recolour", "noise")
    }


def test_latex_has_true_minus_signs_and_none_before_nought() -> None:
    text = latex({"mdm": {"a": Summary(-0.0931, -0.2, -0.0001, 9)}}, {"t": ["a"]}, {"a": 1}, [])
    assert r"mdm & \textbf{$-$0.093} {\scriptsize [$-$0.200, 0.000]} \\" in text.splitlines()


def test_latex_special_characters_are_escaped() -> None:
    assert escaped("<a|b>") == r"\textless{}a\textbar{}b\textgreater{}"
    assert escaped("a--b---c") == "a-{}-b-{}-{}-c"
    rows = latex({m: {"energy": _summary(0.5)} for m in ("*best", "[v2] maps")}, {"t": ["energy"]}, {}, []).splitlines()
    assert [row.split(" & ")[0] for row in rows if row.startswith("{}")] == ["{}*best", "{}[v2] maps"]
    assert escaped("a_b%\n{c}~\\^#$&") == r"a\_b\% \{c\}\textasciitilde{}\textbackslash{}\textasciicircum{}\#\$\&"


def test_examples_come_back_small(tmp_path: Path) -> None:
    make_results(tmp_path, 3, ("mdm", "upsampling"), size=200, chunk=2)
    assert small_size((200, 200)) == (112, 112)
    assert small_size((400, 100)) == (112, 28)
    assert small_size((96, 64)) == (96, 64)
    first = read_chunk(tmp_path / EXAMPLES / "00000.npz")
    assert len(first) == 2
    assert list(first[0].maps) == ["mdm", "upsampling"]
    full = localisation("mdm", 2, 200, 0)
    for row, example in enumerate(first):
        assert example.image.shape == (112, 112, 3)
        whole, small = full.maps[row].numpy(), example.maps["mdm"]
        assert float(small.mean()) == pytest.approx(float(whole.mean()), abs=0.005)
        x, y = example.peaks["mdm"]  # type: ignore[misc]
        assert (x + 0.5) / 112 == pytest.approx((float(full.peaks[row, 0]) + 0.5) / 200, abs=1e-6)
        assert (y + 0.5) / 112 == pytest.approx((float(full.peaks[row, 1]) + 0.5) / 200, abs=1e-6)
        assert example.annotation is not None
        assert example.annotation.mean() == pytest.approx(1 / 16, abs=0.005)
        original = sample(row, 200).image
        assert float(np.abs(example.image.mean((0, 1)) - original.mean((0, 1))).max()) < 3  # JPEG, channels in order


def test_thin_annotations_stay_in_thumbnails(tmp_path: Path) -> None:
    annotations = np.zeros((3, 448, 448), bool)
    annotations[0, 200, 100:300] = annotations[1, 300, 301] = True
    annotations[2, 100:300] = True
    write_thumbnail(tmp_path / "000000.jpg", np.zeros((448, 448, 3), np.uint8))
    write_chunk(tmp_path / "00000.npz", {"mdm": localisation("mdm", 3, 448, 0)}, annotations, [0, 0, 0])
    line, dot, half = (example.annotation for example in read_chunk(tmp_path / "00000.npz"))
    assert line is not None
    assert dot is not None
    assert half is not None
    assert [np.argwhere(line).min(0).tolist(), np.argwhere(line).max(0).tolist()] == [[50, 25], [50, 74]]
    assert np.argwhere(dot).tolist() == [[75, 75]]
    assert np.flatnonzero(half.all(1)).tolist() == list(range(25, 75))


def test_kept_writes_as_it_sees_and_forgets_what_was_there(tmp_path: Path) -> None:
    make_results(tmp_path, 20, ("mdm", "random"), size=24, chunk=4)
    make_results(tmp_path, 6, ("mdm", "random"), size=24, chunk=4)
    names = {path.name for path in (tmp_path / EXAMPLES).iterdir()}
    assert names == {*(f"{k:05d}.npz" for k in range(2)), *(f"{k:06d}.jpg" for k in range(6)), "index.json"}
    regions = read_regions(tmp_path / "regions.json")
    assert [r.image_id for r in regions.regions] == [f"images/{k}.jpg" for k in range(6)]
    assert {r.method for r in regions.regions} == {"mdm"}
    assert len(COCO(str(tmp_path / "regions.json")).getAnnIds()) == 6


def test_kept_without_a_folder_moves_its_files_at_the_end(tmp_path: Path) -> None:
    kept = Kept(1)
    pair = Pair(0, 0, "a", "a", -1, 1.0, 0.0)
    from protomask.metrics import Truth

    truth = Truth(None, "object", None, None, None, ("a",))
    kept.see([pair], [sample(0, 24)], {"mdm": localisation("mdm", 1, 24, 0)}, truth)
    kept.finish(tmp_path, [pair], ["p"])
    assert {p.name for p in (tmp_path / EXAMPLES).iterdir()} == {"00000.npz", "000000.jpg", "index.json"}
    assert read_chunk(tmp_path / EXAMPLES / "00000.npz")[0].annotation is None
    assert not kept._folder.exists()


def test_kept_is_bounded(tmp_path: Path) -> None:
    make_results(tmp_path / "a", 2, ("mdm",), size=24)
    kept = Kept(3, tmp_path)
    from protomask.metrics import Truth

    for k in range(5):
        pairs = [Pair(2 * k + r, r, f"{2 * k + r}", "g", -1, 1.0, 0.0) for r in range(2)]
        found = {"mdm": localisation("mdm", 2, 24, k)}
        kept.see(
            pairs, [sample(p.index, 24) for p in pairs], found, Truth(None, "object", None, None, None, ("g", "g"))
        )
    assert len(kept.examples) == 3
    held = [v for v in vars(kept).values() if isinstance(v, list) and v is not kept.examples]
    assert not any("Localisation" in repr(type(item)) for items in held for item in items)


def _results(values_: dict[str, dict[str, np.ndarray]], methods: tuple[str, ...], count: int) -> Results:
    pairs = tuple(Scored(f"{k}", f"{k}", f"c{k % 3}", k % 4, "p", "") for k in range(count))
    return Results(Path(), about(methods, count), pairs, values_)


def test_mean_ranks_are_scipys() -> None:
    methods = ("mdm", "upsampling", "single-mask", "random")
    made = values(30, methods, ("energy", "dice"))
    for method in methods:
        made[method]["energy"] = made[method]["energy"].round(1)  # ties
    made["mdm"]["dice"][:5] = np.nan
    ranking = mean_ranks(_results(made, methods, 30), ("energy", "dice"))
    assert ranking.metrics == ("energy", "dice")
    energy, dice = (rankdata(-np.stack([made[m][k] for m in methods[:3]]), axis=0) for k in ("energy", "dice"))
    per_pair = np.where(np.arange(30) < 5, energy, (energy + dice) / 2)
    for row, method in enumerate(methods[:3]):
        assert ranking.means[method].mean == pytest.approx(per_pair[row].mean())
    assert list(ranking.means) == sorted(ranking.means, key=lambda m: ranking.means[m].mean)
    assert "random" not in ranking.means


def test_two_methods_are_ranked_by_what_flatters_neither() -> None:
    metrics = ("energy", "deletion", "deletion@blur")
    made = values(8, METHODS, metrics)
    results = _results(made, METHODS, 8)
    ranking = mean_ranks(results, metrics)
    for method in results.competitors:
        ranks = []
        for k in range(8):
            lost = []
            for other in set(results.competitors) - {method}:
                fair = [m for m in metrics if all(m not in results.flattered.get(x, ()) for x in (method, other))]
                gaps = [results.directions[m] * (made[other][m][k] - made[method][m][k]) for m in fair]
                lost.append(np.mean([(np.sign(gap) + 1) / 2 for gap in gaps]))
            ranks.append(1 + sum(lost))
        assert ranking.means[method].mean == pytest.approx(np.mean(ranks))
    assert set(mean_ranks(results, ("deletion",)).means) == {"mdm", "upsampling"}
    two = {m: made[m] for m in ("mdm", "single-mask")}
    assert not mean_ranks(_results(two, ("mdm", "single-mask"), 8), ("deletion",)).means  # one is no competition


def test_the_dominated_does_not_rank_before() -> None:
    methods = ("mdm", "neuromask", "upsampling", "gradcam")  # the first two train with blur
    bare = ("deletion-30", "deletion", "sufficiency-drop")
    names = (*bare, *(f"{name}@blur" for name in bare))
    made = {m: {k: np.full(6, 0.1 + 0.2 * row) for k in names} for row, m in enumerate(methods)}
    results = _results(made, methods, 6)
    results.about["methods"]["mdm"]["fill"] = results.about["methods"]["neuromask"]["fill"] = "blur"
    ranking = mean_ranks(results, names)
    assert list(ranking.means) == list(methods)
    assert [value.mean for value in ranking.means.values()] == pytest.approx([1, 2, 3, 4])


def test_who_is_not_told_apart_from_the_first_is_named() -> None:
    made = values(40, ("mdm", "upsampling", "rise"), ("energy",))
    made["rise"]["energy"] = made["mdm"]["energy"] + np.where(np.arange(40) % 2, 0.01, -0.01)
    made["upsampling"]["energy"] = made["mdm"]["energy"] - 0.1
    results = _results(made, ("mdm", "upsampling", "rise"), 40)
    ranking = mean_ranks(results, ("energy",))
    assert set(ranking.level) == {"mdm", "rise"} - {next(iter(ranking.means))}
    said = next(line for line in page(results).summary_lines if line.startswith("Ranked first"))
    assert f"not told apart from {ranking.level[0]})." in said
    one = Results(Path(), results.about, results.pairs[:1], {m: {"energy": v["energy"][:1]} for m, v in made.items()})
    assert not [line for line in page(one).summary_lines if line.startswith("Ranked first")]  # one image ranks nobody


def test_a_competitor_without_scores_does_not_end_the_ranking() -> None:
    made = values(8, ("mdm", "upsampling", "rise"), ("energy",))
    made["mdm"]["energy"][:] = np.nan
    results = _results(made, ("mdm", "upsampling", "rise"), 8)
    ranking = mean_ranks(results, ("energy",))
    assert set(ranking.means) == {"upsampling", "rise"}
    assert ranking.silent == ("mdm",)
    plot = next(b for b in page(results).blocks if b.heading == "Ranking")
    assert isinstance(plot, DotPlot)
    assert plot.caption.endswith("Without any score: mdm.")
    assert settled(results, Choice()) == Choice("upsampling", "rise", "energy")


def test_a_prototype_is_told_its_index_once() -> None:
    assert spell_prototypes([(2, "Cardinal / 2"), ("13", "Jay / 13")]) == ["Cardinal / 2", "Jay / 13"]
    assert spell_prototypes([(2, "Cardinal / 12")]) == ["2: Cardinal / 12"]
    assert spell_prototypes([(0, "a / 0"), (2, "b / 0")]) == ["0: a / 0", "2: b / 0"]


def test_wide_tables_are_cut_into_parts(tmp_path: Path) -> None:
    names = [m for m in METRICS if METRICS[m].family == "causal"]
    assert len(names) > 12
    made = make_results(tmp_path, 4, ("mdm", "upsampling"), size=24, metrics=names)
    blocks = page(read_results(made)).blocks
    for kind in (ScoreTable, DifferenceTable):
        parts = [b for b in blocks if isinstance(b, kind) and b.heading.startswith("Against the model")]
        assert [m for part in parts for m in part.metrics] == names
        assert max(len(part.metrics) for part in parts) <= 12


def test_what_the_reference_does_not_have_is_no_column_of_dashes(folder: Path) -> None:
    results = read_results(folder)
    lacking = {**results.values["mdm"], "energy": np.full(20, np.nan)}
    told = Results(folder, results.about, results.pairs, {**results.values, "mdm": lacking})
    tables = [b for b in page(told, Choice("mdm", "upsampling", pairs=1)).blocks if isinstance(b, DifferenceTable)]
    assert tables
    assert all("energy" not in table.metrics for table in tables)


def test_one_image_is_checked_against_no_control(tmp_path: Path) -> None:
    made = make_results(tmp_path, 1, ("mdm", "random"), size=24, metrics=("energy",))
    blocks = page(read_results(made)).blocks
    table = next(
        b for b in blocks if isinstance(b, PlainTable) and b.columns[0] == "method" and "beats" in b.columns[1]
    )
    assert table.rows[0][1:] == (None, None)
    assert page(read_results(made)).summary_lines[0].startswith("1 pair scored of")


def test_cases_are_chosen_by_what_flatters_neither(folder: Path) -> None:
    made = _results(values(8, METHODS, ("deletion", "deletion@blur")), METHODS, 8)
    assert settled(made, Choice("single-mask", "upsampling")).metric == "deletion@blur"
    assert settled(made, Choice("mdm", "upsampling")).metric == "deletion"
    blocks = page(read_results(folder), Choice("single-mask", "upsampling", "deletion", 1)).blocks
    tables = [b for b in blocks if isinstance(b, PlainTable) and b.heading == "Per class"]
    assert "deletion, single-mask\N{DAGGER}" in tables[0].columns
    assert "deletion, upsampling" in tables[0].columns
    assert "trained with the fill" in tables[0].caption
    cases = next(b for b in blocks if b.heading == "Worst cases for single-mask")
    assert "by deletion\N{DAGGER}." in cases.caption  # type: ignore[union-attr]


def test_what_is_left_out_of_the_ranks_is_marked(folder: Path) -> None:
    blocks = [b for b in page(read_results(folder), Choice(pairs=1)).blocks if b.heading == "Ranking"]
    plot, table = blocks
    assert isinstance(plot, DotPlot)
    assert isinstance(table, ScoreTable)
    assert "single-mask on deletion, insertion, deletion-30, insertion-30, sufficiency-drop." in plot.caption
    assert table.marked == {("single-mask", "Against the model")}
    assert set(plot.scores["single-mask"]) == {"Against the annotation"}
    assert set(plot.scores["mdm"]) == {"Against the annotation", "Against the model"}


def test_a_metric_that_a_competitor_lacks_ranks_nobody() -> None:
    made = values(8, ("mdm", "upsampling"), ("energy", "iou-own-area"))
    made["upsampling"]["iou-own-area"][:] = np.nan
    results = _results(made, ("mdm", "upsampling"), 8)
    assert mean_ranks(results, ("energy", "iou-own-area")).metrics == ("energy",)
    assert not mean_ranks(results, ("iou-own-area",)).means


def test_only_real_differences_stand_after_correction() -> None:
    made = values(60, METHODS, ("energy", "deletion"))
    results = _results(made, METHODS, 60)
    assert holding(results, "mdm") == (
        {(o, m) for o in ("upsampling", "single-mask") for m in ("energy", "deletion")},
        4,
    )
    stand, compared = holding(results, "upsampling")
    assert stand == {("mdm", "energy"), ("mdm", "deletion")}
    assert compared == 4


def test_the_choice_has_defaults_and_is_checked(folder: Path) -> None:
    results = read_results(folder)
    assert settled(results, Choice()) == Choice("mdm", "upsampling", "iou-best", 200)
    assert settled(results, Choice("upsampling")).against == "mdm"
    for choice, message in (
        (Choice("lime"), "--reference: expected one of"),
        (Choice(metric="speed"), "--metric: expected one of"),
        (Choice("mdm", "mdm"), "--against: expected another method"),
    ):
        with pytest.raises(InputError, match=message):
            settled(results, choice)


def test_the_page_tells_everything(folder: Path) -> None:
    results = read_results(folder)
    report = page(results, Choice(pairs=10))
    headings = list(dict.fromkeys(block.heading for block in report.blocks))
    assert headings == [
        "Ranking", "Against the annotation", "Against the annotation: mdm minus the others", "Against the model",
        "Against the model: mdm minus the others", "Worst cases for mdm", "Best cases for mdm",
        "The same image under every method", "Per class", "Per prototype", "Sanity checks",
        "Methods and their settings",
    ]  # fmt: skip
    assert "single-mask" in next(line for line in report.summary_lines if "†" in line)
    differences = [b for b in report.blocks if isinstance(b, DifferenceTable)]
    assert all(("upsampling", m) in (b.holds or ()) for b in differences for m in b.metrics)
    assert {name for b in differences for name, _ in b.marked} == {"single-mask"}
    strips = [b for b in report.blocks if isinstance(b, Multiples)]
    assert [len(b.strips) for b in strips] == [6, 6, 8, 2]
    assert [tile.name for tile in strips[0].strips[0].tiles] == ["image", *METHODS]
    gaps = results.values["mdm"]["iou-best"] - results.values["upsampling"]["iou-best"]
    worst, best = (f"images/{k}.jpg" for k in (int(np.argmin(gaps)), int(np.argmax(gaps))))
    assert worst in strips[0].strips[0].title
    assert best in strips[1].strips[0].title
    html = render(report)
    assert "mean rank 1." in html
    assert html.count("data:image/webp;base64,") == 22 * 7


@pytest.mark.parametrize("methods", [("mdm",), ("random", "centre"), ("upsampling", "annotation")])
def test_few_methods_make_a_page_too(tmp_path: Path, methods: tuple[str, ...]) -> None:
    made = make_results(tmp_path, 3, methods, size=24, metrics=("energy", "deletion"))
    report = page(read_results(made))
    assert "Per prototype" in {block.heading for block in report.blocks}
    assert all(f">{method}<" in render(report) for method in methods)
    text = {words for block in report.blocks if isinstance(block, DotPlot) for words in block.scores}
    assert text >= set(methods)


def test_metrics_of_every_family_and_fill_have_their_place(tmp_path: Path) -> None:
    names = ("energy", "deletion", "deletion@blur", "deletion@road", "pac")
    made = make_results(tmp_path, 6, ("mdm", "upsampling", "random"), size=24, metrics=names)
    report = page(read_results(made))
    headings = {block.heading for block in report.blocks}
    assert headings >= {"Against the annotation", "Against the model", "Under attack and chance"}
    fills = next(b for b in report.blocks if isinstance(b, PlainTable) and b.columns[0] == "mdm or")
    assert fills.columns == ("mdm or", "deletion")
    assert fills.rows == [("upsampling", "mdm"), ("random", "mdm")]


def test_cases_follow_the_metrics_direction(folder: Path) -> None:
    results = read_results(folder)
    report = page(results, Choice(metric="deletion", pairs=1))
    worst = next(b for b in report.blocks if isinstance(b, Multiples))
    gaps = results.values["mdm"]["deletion"] - results.values["upsampling"]["deletion"]
    assert f"images/{int(np.argmax(gaps))}.jpg" in worst.strips[0].title  # a low deletion is good


def test_tables_by_class_are_means_of_their_pairs(folder: Path) -> None:
    results = read_results(folder)
    table = next(b for b in page(results, Choice(pairs=1)).blocks if b.heading == "Per class")
    assert isinstance(table, PlainTable)
    assert table.sortable
    first = table.rows[0]
    members = [k for k, pair in enumerate(results.pairs) if pair.class_name == first[0]]
    assert first[1] == len(members)
    column = table.columns.index("energy, mdm")
    assert first[column] == pytest.approx(results.values["mdm"]["energy"][members].mean())


def _checks(results: Results) -> dict[str, tuple[str, bool | None]]:
    table = next(b for b in page(results, Choice(pairs=1)).blocks if b.heading == "Sanity checks")
    assert isinstance(table, PlainTable)
    return {str(row[0]): (str(row[2]), table.good.get(k)) for k, row in enumerate(table.rows)}


def test_sanity_checks_tick_what_is_as_expected(folder: Path) -> None:
    results = read_results(folder)
    areas = results.areas
    assert areas == pytest.approx(np.full(20, 1 / 16))
    made = {m: {k: v.copy() for k, v in columns.items()} for m, columns in results.values.items()}
    made["random"]["energy"] = areas + np.random.default_rng(0).normal(0, 0.01, 20)
    made["annotation"]["energy"] = np.ones(20)
    good = _checks(Results(folder, results.about, results.pairs, made))
    assert good["random, energy"][1] is True
    assert good["annotation, energy"] == ("none is above it", True)
    said, passed = good["scoring fill"]
    assert passed is False
    assert said == "single-mask on deletion, insertion, deletion-30, insertion-30, sufficiency-drop"
    assert good["annotation, iou-best"][1] is False  # in the made-up scores mdm lies above the annotation
    assert good["annotation, iou-best"][0].startswith("above it: mdm by 0.")
    assert good["random, pointing-game"][1] is False


@pytest.mark.parametrize(("count", "together"), [(20, 1), (60, 1), (200, 1), (60, 3)])
def test_blind_hits_raise_few_false_alarms(count: int, together: int) -> None:
    rng, alarms, rounds = np.random.default_rng(0), 0, 2000
    groups = [str(k // together) for k in range(count)]
    for _ in range(rounds):
        areas = rng.uniform(0.015, 0.035, count)
        draws = rng.random(count).reshape(-1, together)
        draws[:] = draws[:, :1]  # pairs of an image hit together
        alarms += chance_of_hits(int((draws.ravel() < areas).sum()), areas, groups) < LEVEL
    assert alarms / rounds < LEVEL + 2 * (LEVEL * (1 - LEVEL) / rounds) ** 0.5


def test_the_test_of_hits_is_the_binomial_where_areas_are_equal() -> None:
    areas, apart = np.full(40, 0.1), [str(k) for k in range(40)]
    for hits in (0, 1, 4, 9, 40):
        tails = binom.cdf(hits, 40, 0.1), binom.sf(hits - 1, 40, 0.1)
        assert chance_of_hits(hits, areas, apart) == pytest.approx(min(1, 2 * min(tails)))
    assert chance_of_hits(40, areas, ["one image"] * 40) == pytest.approx(0.2)  # it hit once, for all of them
    assert chance_of_hits(9, areas, apart) < LEVEL < chance_of_hits(9, areas, [str(k // 4) for k in range(40)])


def test_no_hit_on_few_small_annotations_is_no_alarm(folder: Path) -> None:
    results = read_results(folder)
    for hits, fine in ((0, True), (2, True), (9, False)):  # of 20 annotations of a 16th each
        column = np.r_[np.ones(hits), np.zeros(20 - hits)]
        values = {**results.values, "random": {**results.values["random"], "pointing-game": column}}
        found = _checks(Results(folder, results.about, results.pairs, values))
        assert found["random, pointing-game"][1] is fine


def test_cases_and_tables_show_a_metric_that_both_methods_have(tmp_path: Path) -> None:
    names = ("iou-own-area", "relevance", "dice")
    made = make_results(tmp_path, 6, ("mdm", "upsampling", "random"), size=24, metrics=names)
    read = read_results(made)
    values = {m: {**c, "iou-own-area": np.full(6, np.nan)} for m, c in read.values.items()}
    values["random"]["iou-own-area"] = np.ones(6)
    report = page(Results(made, read.about, read.pairs, values), Choice(pairs=2))
    assert {"Worst cases for mdm", "Best cases for mdm"} <= {b.heading for b in report.blocks}
    table = next(b for b in report.blocks if b.heading == "Per class")
    assert isinstance(table, PlainTable)
    assert {"relevance, mdm", "dice, upsampling"} <= set(table.columns)


def test_the_ranking_stands_in_a_table_too(tmp_path: Path) -> None:
    made = make_results(tmp_path, 6, ("upsampling", "rise", "random"), size=24, metrics=("energy", "dice"))
    ranking = [b for b in page(read_results(made)).blocks if b.heading == "Ranking"]
    assert [type(b) for b in ranking] == [DotPlot, ScoreTable]


def test_a_carriage_return_in_a_name_breaks_no_table(tmp_path: Path) -> None:
    pairs = [Scored("a\rb.png", "a\rb.png", "c\rd", 0, "p\r", "")]
    write_csv(tmp_path / "pairs.csv", pairs, {"mdm": {"energy": np.array([0.5])}})
    read, values = read_csv(tmp_path / "pairs.csv")
    assert list(read) == pairs
    assert read[0].image == "a\\rb.png"
    assert values["mdm"]["energy"].tolist() == [0.5]


def test_only_metrics_that_the_annotation_tops_are_checked_against_it(tmp_path: Path) -> None:
    names = ("energy", "part-hit", "top5-in-box", "box-iou", "ior", "oirr")
    made = make_results(tmp_path, 6, ("mdm", "upsampling", "annotation"), size=24, metrics=names)
    found = _checks(read_results(made))
    assert {name for name in found if name.startswith("annotation")} == {"annotation, energy", "annotation, oirr"}


def test_scores_that_flatter_a_method_are_no_evidence_against_the_controls(folder: Path) -> None:
    results = read_results(folder)

    def count(read: Results) -> int:
        tables = [b for b in page(read, Choice(pairs=1)).blocks if isinstance(b, PlainTable)]
        table = next(t for t in tables if t.columns[1].startswith("metrics on which it clearly beats"))
        return int(str(next(row[1] for row in table.rows if row[0] == "single-mask")).split(" of ")[0])

    values = dict(results.values)
    values["single-mask"] = {**values["single-mask"], "insertion": np.full(20, 5.0), "energy": np.full(20, 5.0)}
    methods = dict(results.about["methods"])
    methods["single-mask"] = {**methods["single-mask"], "fill": ""}
    assert count(Results(folder, {**results.about, "methods": methods}, results.pairs, values)) == 2
    assert count(Results(folder, results.about, results.pairs, values)) == 1


def test_methods_that_the_same_scores_flatter_are_named_together() -> None:
    flattered = {"mdm": ("a", "b"), "rise": ("c",), "extremal": ("a", "b")}
    assert spell_flattered(flattered) == "mdm, extremal on a, b; rise on c"
    assert spell_flattered({}) == ""


def test_odd_names_do_no_harm(tmp_path: Path) -> None:
    make_results(tmp_path, 6, ("mdm", "upsampling", "random"), size=24, name=NASTY)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "new" / "page.html")]) == 0
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert html.count("<script") == 1


def test_report_needs_only_the_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    import shutil

    shutil.copytree(folder, moved)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "elsewhere", "--reference", "upsampling", "--pairs", "3"]) == 0
    assert re.search(r"written: elsewhere/report\.html \(\d+\.\d MB\)", capsys.readouterr().out)
    assert "upsampling minus" in (moved / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(moved / EXAMPLES)
    assert main(["report", "elsewhere"]) == 0
    html = (moved / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html
    assert "Per class" in html


def _edit(folder: Path, name: str, value: object) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, name: value}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "run.json").unlink(), "run.json: expected a JSON file, got no such file"),
        (lambda f: (f / "run.json").write_text('{"version": 99}'), "expected run.json of format version 1"),
        (lambda f: (f / "pairs.csv").write_text(",".join(COLUMNS) + "\n"), "expected at least one pair"),
        (lambda f: _edit(f, "methods", {"mdm": {"passes": "many"}}), "got another kind of methods.mdm.passes"),
        (lambda f: _edit(f, "metrics", {"energy": 3}), "got another kind of metrics.energy"),
        (lambda f: _edit(f, "model", {}), "got another kind of model.name"),
        (lambda f: _edit(f, "pictures", [{}]), "got another kind of pictures"),
        (lambda f: (f / EXAMPLES / "00000.npz").write_bytes(b"no"), "expected maps as protomask evaluate writes them"),
        (lambda f: (f / EXAMPLES / "000001.jpg").write_bytes(b"no"), "is no thumbnail of that size"),
        (lambda f: (f / EXAMPLES / "index.json").write_text('{"pairs": [[1]]}'), "expected a file, a row and an area"),
        (
            lambda f: (f / EXAMPLES / "index.json").write_text('{"pairs": [["00000.npz", 9, 0.1]]}'),
            "row of 00000.npz: expected one of 3, got 9",
        ),
    ],
)
def test_damaged_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, message: str
) -> None:
    make_results(tmp_path, 3, ("mdm", "upsampling"), size=24)
    damage(tmp_path)  # type: ignore[operator]
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_pictures_outside_the_folder_are_not_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_results(tmp_path / "in", 3, ("mdm", "upsampling"), size=24)
    record = json.loads((tmp_path / "in" / "run.json").read_text())
    record["pictures"] = [{"file": "../secret.png", "heading": "h", "alt": "a", "caption": ""}]
    (tmp_path / "in" / "run.json").write_text(json.dumps(record))
    assert main(["report", str(tmp_path / "in")]) == 2
    assert "pictures of run.json: expected files in the folder" in capsys.readouterr().err


def test_a_damaged_picture_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_results(tmp_path, 3, ("mdm", "upsampling"), size=24)
    kept = [
        {"file": f"pictures/{n}.png", "heading": n, "alt": "a", "caption": ""} for n in ("good", "cut", "big", "no")
    ]
    rng = np.random.default_rng(0)
    small, large = (
        cv2.imencode(".png", rng.integers(0, 255, (n, n, 3)).astype(np.uint8))[1].tobytes() for n in (9, 300)
    )
    (tmp_path / "pictures").mkdir()
    for name, data in (("good", small), ("cut", small[:99]), ("big", large[:200_000]), ("no", b"no picture")):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(data)
    _edit(tmp_path, "pictures", [*kept, {**kept[0], "file": "pictures/deleted.png"}])
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(".png: ")[0] for line in said] == [
        f"left out: {tmp_path / 'pictures' / name}" for name in ("cut", "big", "no")
    ]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 1
    assert "Per class" in html


@pytest.mark.parametrize("method", ["mdm", "upsampling", "random"])
def test_a_method_may_lack_a_metric(tmp_path: Path, method: str) -> None:
    names = ("energy", "iou-best", "deletion", "deletion@blur", "pixel-auc", "pointing-game")
    methods = ("mdm", "upsampling", "single-mask", "random", "annotation")
    make_results(tmp_path, 6, methods, size=24, metrics=names)
    read = read_results(tmp_path)
    for missing in names:
        left = {m: {k: v for k, v in c.items() if (m, k) != (method, missing)} for m, c in read.values.items()}
        write_csv(tmp_path / "pairs.csv", read.pairs, left)
        assert main(["report", str(tmp_path)]) == 0
    write_csv(tmp_path / "pairs.csv", read.pairs, {**read.values, method: {}, "late": {"energy": np.ones(6)}})
    assert main(["report", str(tmp_path)]) == 0


def test_every_metric_has_a_family_that_the_page_can_name() -> None:
    from protomask.reporting.page import TITLES

    assert {metric.family for metric in METRICS.values()} <= set(TITLES)
