"""The benchmarks' own arithmetic: pooling, cost, who is best and by how much, and the check with shuffled weights."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import protomask
from protomask.cli import main
from protomask.data import Planted
from protomask.data.inpaint import disc
from protomask.data.sample import Geometry, Sample
from protomask.errors import DataError, InputError
from protomask.jobs.drawing import pair_of
from protomask.loading import load_model
from protomask.localisers import LOCALISERS, image_passes_of, make_localiser, settings_of
from protomask.metrics import METRICS
from protomask.model import contract
from protomask.pairs import Pair, draw_pairs, tensors
from protomask.reporting.beside import AGREEMENT, PROTOTYPES, Beside, write_beside
from protomask.reporting.results import read_results
from protomask.reporting.tidy import Scored, read_csv, write_csv
from protomask.sanity import randomised
from protomask.store import read_run, read_scores
from protomask.store._json import write_json

from .results_tools import make_results
from .toys import BLOCKS, BlockScenes, block_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A benchmark's module by its name, imported as the script imports its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def run(folder: Path, values: Mapping[str, Mapping[str, list[float]]], fills: Mapping[str, str] | None = None) -> Path:
    """A folder as ``protomask evaluate`` leaves it; two pairs to an image."""
    folder.mkdir()
    arrays = {m: {k: np.array(v) for k, v in own.items()} for m, own in values.items()}
    count = len(next(iter(arrays["mdm"].values())))
    pairs = [Scored(f"{k // 2}.png", f"{k // 2}.png", "a class", k % 2, "a / 0", "") for k in range(count)]
    write_csv(folder / "pairs.csv", pairs, arrays)
    methods = {}
    for m in arrays:
        made = make_localiser(m, {})
        fill = (fills or {}).get(m, "")
        methods[m] = {"control": LOCALISERS[m].control, "fill": fill, "passes": float(made.passes), "settings": {}}
        methods[m] |= {"image_passes": image_passes_of(made), "unlocated": 1 if m == "rise" else 0}
    metrics = {m: {"direction": 1 if k.higher_is_better else -1, "family": k.family} for m, k in METRICS.items()}
    about = {
        "version": 1, "command": f"protomask evaluate /far/away/{folder.name} --out=/far/out", "data": {"name": "made"},
        "model": {"name": folder.name}, "seed": 0, "scoring_fill": "mean", "pictures": [], "versions": {"torch": "0"},
        "counts": {"drawn": 2 * count, "qualified": count}, "methods": methods, "metrics": metrics,
    }  # fmt: skip
    write_json(folder / "run.json", about)
    return folder


def scores(energy: float, deletion: float, count: int = 24) -> dict[str, list[float]]:
    """Around these means, exactly: neighbours, which share an image, lie as far below as above."""
    wave = [0.01, -0.01] * (count // 2)
    return {"energy": [energy + w for w in wave], "deletion-30": [deletion + w for w in wave]}


def retold(folder: Path, **changed: Any) -> Path:
    """The folder after its run.json was changed; dictionaries are merged."""
    about = json.loads((folder / "run.json").read_text())
    for key, value in changed.items():
        about[key] = {**about[key], **value} if isinstance(value, dict) else value
    (folder / "run.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two evaluations of one model: mdm, rise and random; then mdm anew, gradcam, and a metric fewer."""
    old = run(tmp_path / "old", {m: scores(0.3, 0.4) for m in ("mdm", "rise", "random")}, {"mdm": "mean"})
    new = run(tmp_path / "new", {m: {"energy": scores(0.9, 0)["energy"]} for m in ("gradcam", "mdm")}, {"mdm": "blur"})
    about = {"name": "net", "device": "cpu"}
    retold(old, model=about, commit="0ld0ld0", versions={"torch": "1"})
    return [old, retold(new, model=about | {"device": "cuda"})]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """mdm has the best energy, RISE the lowest deletion; annotation, a control, beats all of them."""
    common = {"random": scores(0.1, 0.9), "annotation": scores(1, 0.01)}
    one = {"rise": scores(0.3, 0.1), "mdm": scores(0.8, 0.3), "mdm-best": scores(0.7, 0.2), **common}
    other = {"rise": scores(0.5, 0.2, 12), "mdm": scores(0.6, 0.3, 12), "mdm-best": scores(0.5, 0.3, 12)}
    other |= {"random": scores(0.1, 0.9, 12), "annotation": scores(1, 0.01, 12), "upsampling": scores(0, 1, 12)}
    return [run(tmp_path / "one", one, {"rise": "mean"}), run(tmp_path / "two", other, {"rise": "mean"})]


def test_pooled_means_count_every_pair_once(benchmark: Any, two: list[Path]) -> None:
    data = benchmark("evaluated").read(two)
    assert data.pool.groups[23:25] == ("0/11.png", "1/0.png")
    assert len(set(data.pool.groups)) == 12 + 6
    # 24 pairs of the first model, 12 of the second.
    assert data.summaries["rise"]["energy"].mean == pytest.approx((24 * 0.3 + 12 * 0.5) / 36, abs=1e-9)
    assert data.summaries["mdm"]["deletion-30"].n == 36
    gap = data.differences("mdm")["rise"]["energy"]
    assert gap.mean == pytest.approx((24 * 0.5 + 12 * 0.1) / 36, abs=1e-9)
    assert gap.low <= gap.mean <= gap.high
    assert "upsampling" not in data.pool.values
    assert benchmark("evaluated").left_out(data) == {"two": ("upsampling",)}
    assert data.competitors == ("mdm", "mdm-best", "rise")
    assert data.controls == ("random", "annotation")


def test_an_oracle_takes_the_best_method_of_each_pair(benchmark: Any, tmp_path: Path) -> None:
    nan = float("nan")
    mdm = {"energy": [0.9, 0.2, nan, nan], "deletion-30": [0.1, 0.2, 0.3, 0.4]}
    rise = {"energy": [0.5, 0.6, 0.3, nan], "deletion-30": [0.3, 0.1, 0.3, 0.5]}
    annotation = {"energy": [1.0, 1.0, 1.0, 1.0], "deletion-30": [0.0, 0.0, 0.0, 0.0]}  # a control: no choice
    data = benchmark("evaluated").read([run(tmp_path / "one", {"mdm": mdm, "rise": rise, "annotation": annotation})])
    assert np.array_equal(data.oracle("energy"), [0.9, 0.6, 0.3, nan], equal_nan=True)
    assert np.array_equal(data.oracle("deletion-30"), [0.1, 0.1, 0.3, 0.4])
    *_, table = benchmark("full_table").choosing(data, "mdm")
    energy, deletion = table.splitlines()[2:]
    assert energy.startswith("| energy | 0.550 | 0.750 ")  # over the two pairs on which mdm is defined
    assert energy.endswith("| 0.50 |")
    assert deletion.startswith("| deletion-30 | 0.250 | 0.225 [")
    assert deletion.endswith("| 0.75 |")


def test_an_oracle_that_knows_another_fill_takes_what_is_best_there(benchmark: Any, tmp_path: Path) -> None:
    nan = float("nan")
    mdm = {"deletion-30": [0.1, 0.2, 0.3, nan], "deletion-30@road": [0.9, 0.1, nan, nan]}
    rise = {"deletion-30": [0.3, 0.1, 0.4, 0.5], "deletion-30@road": [0.2, 0.4, 0.6, nan]}
    data = benchmark("evaluated").read([run(tmp_path / "one", {"mdm": mdm, "rise": rise})])
    assert np.array_equal(data.elsewhere("deletion-30@road", "deletion-30"), [0.3, 0.2, 0.4, nan], equal_nan=True)
    assert np.array_equal(data.elsewhere("deletion-30", "deletion-30@road"), [0.9, 0.4, nan, nan], equal_nan=True)
    assert np.array_equal(data.elsewhere("deletion-30", "deletion-30"), [0.1, 0.1, 0.3, 0.5])
    table = benchmark("full_table").choosing(data, "mdm")[-1]
    assert table.splitlines()[2] == "| deletion-30 | 0.200 | mean 0.250, road 0.300 |"


def test_a_cell_that_another_method_wins_is_listed(benchmark: Any, two: list[Path]) -> None:
    data = benchmark("evaluated").read(two)
    ((metric, own, other),) = data.leads("mdm")  # energy is mdm's, and a control is nobody's rival
    assert (metric, own.ahead, other.behind, other.ahead) == ("deletion-30", "rise", "mdm-best", "rise")
    assert own.by.mean == pytest.approx((24 * 0.2 + 12 * 0.1) / 36, abs=1e-9)
    assert other.by.mean == pytest.approx(0.1, abs=1e-9)
    behind = data.leads("mdm-best")
    assert [(m, own.ahead) for m, own, _ in behind] == [("energy", "mdm"), ("deletion-30", "rise")]
    assert behind[0][2] is None  # a preset is the best there


def test_p_values_are_corrected_for_all_rivals_and_metrics(benchmark: Any, two: list[Path]) -> None:
    data = benchmark("evaluated").read(two)
    p = data.p_values("mdm")
    assert set(p) == {"mdm-best", "rise"}
    assert p["rise"]["deletion-30"] <= 0.05
    # The same sign on all 18 images: the smallest p-value that 10,000 flips can give, times four comparisons at most.
    assert 1e-4 <= p["rise"]["energy"] <= 4 * 2e-4


def test_cost_in_passes(benchmark: Any, two: list[Path], tmp_path: Path) -> None:
    evaluated = benchmark("evaluated")
    data = evaluated.read(two)
    rise, mdm, blind = data.cost("rise"), data.cost("mdm"), data.cost("random")
    assert [rise.ratio(k) for k in (1, 3, 10)] == pytest.approx([200] * 3)  # 600 forward passes serve all prototypes
    assert [mdm.ratio(k) for k in (1, 3, 10)] == [34, 102, 340]  # 7 x 2, 10 gradients, 30 forward passes
    assert blind.ratio(10) == 0
    other = evaluated.read([run(tmp_path / "three", {m: scores(0.5, 0.5) for m in ("mdm", "upsampling", "gradcam")})])
    assert other.cost("upsampling").ratio(10) == pytest.approx(1 / 3)
    assert other.cost("gradcam").ratio(3) == 3


def test_the_table_says_all_of_it(benchmark: Any, two: list[Path], tmp_path: Path) -> None:
    table, evaluated = benchmark("full_table"), benchmark("evaluated")
    out = tmp_path / "out"
    out.mkdir()
    said = table.write(evaluated.read(two), out, "mdm", [], None)
    assert said == (out / "table.md").read_text()
    assert "protomask evaluate one --out=out\nprotomask evaluate two --out=out\n" in said
    assert "/far" not in said
    assert "36 pairs of 18 images under 2 models" in said
    assert "rise 2." in said  # found nothing, once per model
    means = said[said.index("## Means") : said.index("## mdm minus")]
    rows = {line.split(" | ")[0].strip("| "): line for line in means.splitlines() if line.startswith("| ")}
    assert "| **0.133 [" in rows["rise"]  # deletion-30, the last block
    assert rows["rise"].count("\N{DAGGER}") == 1
    assert "**" not in rows["annotation"]
    assert "**" not in rows["mdm-best"]
    assert "| mdm | **0.733 [" in means
    last = said[said.index("## Where MDM is not the best") :]
    assert "Of 2 metrics mdm is not the best on 1, and none of mdm, mdm-best on 1." in last
    assert "| deletion-30 | rise\N{DAGGER} | 0.167 [" in last
    assert "| mdm-best | rise\N{DAGGER} | 0.100" in last
    assert "optimised with" not in last
    assert "ahead of mdm: annotation on energy by 0.267 [" in last
    assert "random on" not in last
    assert "rise is the best with the fill that it optimised with (\N{DAGGER}) on deletion-30." in "\n".join(
        table.not_best(evaluated.read(two), "rise", {})
    )
    stored = read_scores(out / "scores.json")
    assert set(stored) == {"pooled", "one", "two"}
    assert stored["one"]["rise"]["energy"].mean == pytest.approx(0.3)
    differences = json.loads((out / "differences.json").read_text())["mdm"]
    assert differences["rise"]["deletion-30"]["mean"] == pytest.approx(1 / 6)
    assert differences["random"]["energy"]["p"] is None
    assert json.loads((out / "about.json").read_text())["runs"]["two"]["seed"] == 0


def test_every_metric_has_its_place_in_a_table_of_few_columns(benchmark: Any) -> None:
    table = benchmark("full_table")
    made = list(table.blocks(tuple(METRICS)))
    assert sorted(m for _, part in made for m in part) == sorted(METRICS)
    assert max(len(part) for _, part in made) <= table.WIDEST
    assert table.block_of("average-drop") == "Causal, filled with the mean colour"
    assert table.block_of("deletion@road").startswith("Causal, filled by blurring")
    assert table.block_of("pac") == table.block_of("local-perturbation-blur")


def test_what_cannot_be_pooled_is_refused(benchmark: Any, two: list[Path]) -> None:
    about = json.loads((two[1] / "run.json").read_text())
    (two[1] / "run.json").write_text(json.dumps(about | {"scoring_fill": "blur"}))
    with pytest.raises(InputError, match="one fill"):
        benchmark("evaluated").read(two)
    with pytest.raises(InputError, match="--reference"):
        benchmark("full_table").write(benchmark("evaluated").read(two[:1]), two[0], "annotation", [], None)


def test_evaluations_of_one_model_are_joined_and_the_last_counts(benchmark: Any, parts: list[Path]) -> None:
    data = benchmark("evaluated").read(parts)
    (joined,) = data.runs
    assert list(joined.values) == ["mdm", "rise", "random", "gradcam"]
    assert len(data.pool.groups) == 24
    assert data.summaries["mdm"]["energy"].mean == pytest.approx(0.9)
    assert data.summaries["rise"]["energy"].mean == pytest.approx(0.3)
    assert set(joined.values["rise"]) == {"energy", "deletion-30"}
    assert data.metrics == ("energy",)  # what all methods have
    assert benchmark("evaluated").metrics_left_out(data) == {"deletion-30": ("mdm", "gradcam")}
    assert [joined.about["methods"][m]["fill"] for m in ("mdm", "rise")] == ["blur", ""]
    assert joined.about["methods"]["rise"]["unlocated"] == 1
    first, last = joined.about["sources"]
    assert (first["methods"], first["instead"], first["commit"]) == (["rise", "random"], [], "0ld0ld0")
    assert (last["methods"], last["instead"], last["commit"]) == (["gradcam", "mdm"], ["mdm"], None)
    assert (first["device"], last["device"], first["versions"]["torch"]) == ("cpu", "cuda", "1")
    turned = benchmark("evaluated").read(parts[::-1])
    assert turned.summaries["mdm"]["energy"].mean == pytest.approx(0.3)
    assert turned.runs[0].about["methods"]["mdm"]["fill"] == "mean"


def test_an_evaluation_of_which_nothing_is_left_is_not_told(benchmark: Any, parts: list[Path], tmp_path: Path) -> None:
    again = retold(run(tmp_path / "again", {m: scores(0.5, 0.5) for m in ("mdm", "gradcam")}), model={"name": "net"})
    data = benchmark("evaluated").read([*parts, again])
    assert [source["run"] for source in data.runs[0].about["sources"]] == ["old", "again"]
    assert data.metrics == ("energy", "deletion-30")  # the one with fewer metrics is gone
    (whole,) = benchmark("joined").join([data.runs[0], *benchmark("evaluated").read(parts[:1]).runs])
    assert [(s["run"], s["methods"], s["instead"]) for s in whole.about["sources"]] == [
        ("again", ["gradcam"], ["gradcam"]),
        ("old", ["mdm", "rise", "random"], ["mdm", "rise", "random"]),
    ]


def test_a_later_evaluation_by_other_metrics_adds_them(benchmark: Any, parts: list[Path], tmp_path: Path) -> None:
    table, evaluated = benchmark("full_table"), benchmark("evaluated")
    added = {m: {"insertion-30": scores(v, 0)["energy"]} for m, v in (("mdm", 0.6), ("rise", 0.5), ("random", 0.1))}
    more = retold(run(tmp_path / "more", added, {"mdm": "grey"}), model={"name": "net"}, commit="m0re")
    said = table.write(evaluated.read([parts[0], more]), tmp_path / "out", "mdm", [], None)
    kept = read_results(tmp_path / "out" / "runs" / "net")
    assert set(kept.values["rise"]) == {"energy", "deletion-30", "insertion-30"}
    assert kept.values["mdm"]["insertion-30"].mean() == pytest.approx(0.6)
    assert kept.about["methods"]["mdm"]["fill"] == "mean"  # what it is said to be is said by the run that it is of
    assert "mdm, rise, random: of old at 0ld0ld0; insertion-30 of mdm, rise, random: of more at m0re." in said
    # What is kept tells the same, and one that scores it anew replaces the method with all that was added.
    assert table.text(evaluated.read([tmp_path / "out" / "runs" / "net"]), "mdm", [])[0].split("## Cost")[1]
    again = evaluated.read([tmp_path / "out" / "runs" / "net", parts[1]]).runs[0]
    assert set(again.values["mdm"]) == {"energy"}
    assert [(s["run"], s["methods"], s.get("metrics")) for s in again.about["sources"]] == [
        ("old", ["rise", "random"], None),
        ("more", ["rise", "random"], ["insertion-30"]),
        ("new", ["gradcam", "mdm"], None),
    ]


def test_the_table_tells_what_stands_beside_the_pairs(benchmark: Any, two: list[Path], tmp_path: Path) -> None:
    table, evaluated = benchmark("full_table"), benchmark("evaluated")
    for folder, held in zip(two, (1.0, 0.5), strict=True):
        items = tuple((str(k), f"a / {k}", "a") for k in range(4))
        told = {"mdm": np.full(4, held), "rise": np.array([0, 0, 1, 1.0]), "random": np.zeros(4)}
        values = {m: {"consistency": v, "purity": 1 - v} for m, v in told.items()}
        write_beside(folder, Beside(PROTOTYPES, items, values))
    images = tuple((str(k), f"{k}.png", f"{k}.png", "one and two") for k in range(3))
    alike = {"agreement": np.array([0.9, 0.8, 0.7]), "agreement-unrelated": np.array([0.1, 0.2, 0.3])}
    write_beside(two[0], Beside(AGREEMENT, images, {"mdm": alike, "random": {k: 0 * v for k, v in alike.items()}}))
    said = table.write(evaluated.read(two), tmp_path / "out", "mdm", [], None)
    prototypes, sane = said.split("## Over prototypes")[1].split("## Sanity")
    assert "Means over 8 prototypes, drawn by seed, of one and two;" in prototypes
    assert "| mdm | **0.750 [" in prototypes
    assert "| rise | 0.500 [" in prototypes
    assert "Ahead of mdm: rise on purity by 0.250 [" in prototypes
    assert "| mdm | 0.800 [0.700, 0.900" in sane
    assert "| 0.600 [" in sane
    assert "| rise | - | - | - |" in sane
    # What is kept has them, too.
    kept = evaluated.read([*(tmp_path / "out" / "runs").iterdir()])
    assert sorted(len(run.agreement.items) for run in kept.runs) == [0, 3]
    assert all(run.prototypes.values["mdm"]["consistency"].size == 4 for run in kept.runs)


def test_a_run_may_give_what_stands_beside_the_pairs_alone(benchmark: Any, two: list[Path], tmp_path: Path) -> None:
    table, evaluated = benchmark("full_table"), benchmark("evaluated")
    study = run(tmp_path / "study", {m: scores(0.1, 0.1, 2) for m in ("mdm", "rise")})
    retold(study, model={"name": "one"})
    items = tuple((str(k), f"a / {k}", "a") for k in range(4))
    purity = np.array([0.2, 0.4, np.nan, 0.6])
    write_beside(study, Beside(PROTOTYPES, items, {m: {"purity": purity} for m in ("mdm", "rise")}))
    plain = evaluated.read(two[:1])
    data = evaluated.read(two[:1], [study])
    assert data.pool.values.keys() == plain.pool.values.keys()
    for method, columns in plain.pool.values.items():
        for metric, column in columns.items():
            assert np.array_equal(data.pool.values[method][metric], column)
    said = table.write(data, tmp_path / "out", "mdm", [], "c0ffee")
    assert "Means over 3 of 4 prototypes, drawn by seed (the others have no images here)" in said
    assert "purity of mdm, rise: of study at c0ffee" in said
    kept = evaluated.read([tmp_path / "out" / "runs" / "one"]).runs[0]
    assert kept.prototypes.values["rise"]["purity"].tolist()[:2] == [0.2, 0.4]
    assert [s["run"] for s in kept.about["sources"]] == [plain.runs[0].folder.name, "study"]
    other = run(tmp_path / "other", {"mdm": scores(0.1, 0.1)})
    with pytest.raises(InputError, match="--beside: expected runs of models that have pairs"):
        evaluated.read(two[:1], [other])


def test_a_metric_that_mdm_does_not_have_is_not_won(benchmark: Any, tmp_path: Path) -> None:
    values = {}
    for method, energy, own in (("mdm", 0.9, np.nan), ("rise", 0.1, 1)):
        values[method] = scores(energy, 0.5) | {"iou-own-area": [own] * 24}
    data = benchmark("evaluated").read([run(tmp_path / "a", values)])
    said = {m: "\n".join(benchmark("full_table").not_best(data, m, {})) for m in ("mdm", "rise")}
    assert "best method on every metric; undefined for mdm: iou-own-area." in said["mdm"]
    assert "Of 3 metrics rise is not the best on 1, and none of mdm on 0." in said["rise"]


def test_a_study_of_other_prototypes_replaces_the_earlier_one(benchmark: Any, two: list[Path], tmp_path: Path) -> None:
    table, evaluated = benchmark("full_table"), benchmark("evaluated")
    studies = []
    for name, count, methods in (("few", 2, ("mdm", "rise", "random")), ("many", 4, ("mdm", "rise"))):
        studies.append(run(tmp_path / name, {m: scores(0.1, 0.1, 2) for m in methods}))
        retold(studies[-1], model={"name": "one"})
        items = tuple((str(k), f"a / {k}", "a") for k in range(count))
        values = {m: {"purity": np.full(count, 1 / count)} for m in methods}
        write_beside(studies[-1], Beside(PROTOTYPES, items, values))
    images = tuple((str(k), f"{k}.png", f"{k}.png", "one and two") for k in range(3))
    alike = {"agreement": np.ones(3), "agreement-unrelated": np.zeros(3)}
    write_beside(studies[0], Beside(AGREEMENT, images, {"mdm": alike}))
    table.write(evaluated.read(two[:1], studies[:1]), tmp_path / "out", "mdm", [], "c0ffee")
    kept = tmp_path / "out" / "runs" / "one"
    said = table.write(evaluated.read([kept], studies[1:]), tmp_path / "out", "mdm", [], "beef")
    assert "Means over 4 prototypes, drawn by seed" in said
    assert "purity of mdm, rise: of many at beef" in said
    again = evaluated.read([kept]).runs[0]
    assert {m: v["purity"].tolist() for m, v in again.prototypes.values.items()} == {
        "mdm": [0.25] * 4,
        "rise": [0.25] * 4,
    }
    assert again.agreement.values["mdm"]["agreement"].tolist() == [1, 1, 1]  # of the same images still
    told = {s["run"]: s.get("metrics") for s in again.about["sources"]}
    assert told == {two[0].name: None, "few": ["agreement", "agreement-unrelated"], "many": ["purity"]}


def test_sanity_ranks_nobody_in_the_table(benchmark: Any, tmp_path: Path) -> None:
    values = {m: scores(0.5, 0.5) | {"randomisation": [v] * 24} for m, v in (("mdm", 0.4), ("rise", 0.1))}
    data = benchmark("evaluated").read([run(tmp_path / "one", values)])
    assert data.metrics == ("energy", "deletion-30")
    assert data.sanity == ("randomisation",)
    assert "| rise | 0.100 [0.100, 0.100] |" in benchmark("full_table").text(data, "mdm", [])[0]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({}, {"seed": 1}),
        ({}, {"data": {"images": 7}}),
        ({}, {"model": {"name": "another"}}),
        ({}, {"model": {"crop": "box"}}),
        ({"model": {"digest": "a"}}, {"model": {"digest": "b"}}),
    ],
)
def test_other_models_data_and_seeds_are_runs_of_their_own(
    benchmark: Any, parts: list[Path], first: dict[str, Any], other: dict[str, Any]
) -> None:
    retold(parts[0], **first)
    assert len(benchmark("evaluated").read([parts[0], retold(parts[1], **other)]).runs) == 2


@pytest.mark.parametrize("first", [{"digest": "a"}, {}])
def test_a_digest_tells_a_model_better_than_its_name(benchmark: Any, parts: list[Path], first: dict[str, Any]) -> None:
    retold(parts[0], model=first)
    name = "renamed" if first else "net"  # where one of the two has no digest, names are all there is
    (joined,) = benchmark("evaluated").read([parts[0], retold(parts[1], model={"digest": "a", "name": name})]).runs
    assert joined.about["model"]["digest"] == "a"


def test_different_pairs_of_one_model_are_refused(benchmark: Any, parts: list[Path]) -> None:
    pairs, values = read_csv(parts[1] / "pairs.csv")
    write_csv(parts[1] / "pairs.csv", [*pairs[:5], replace(pairs[5], prototype=9), *pairs[6:]], values)
    with pytest.raises(InputError, match=r"new: expected the pairs of .*old.*got prototype 9 instead of 1 in pair 5"):
        benchmark("evaluated").read(parts)
    fewer = {m: {k: v[:23] for k, v in own.items()} for m, own in values.items()}
    write_csv(parts[1] / "pairs.csv", pairs[:23], fewer)
    with pytest.raises(InputError, match="got 23 instead of 24"):
        benchmark("evaluated").read(parts)


def test_what_is_kept_is_joined_with_a_later_run(benchmark: Any, parts: list[Path], tmp_path: Path) -> None:
    table, evaluated, out = benchmark("full_table"), benchmark("evaluated"), tmp_path / "out"
    table.write(evaluated.read(parts[:1]), out, "mdm", [], None)
    kept = out / "runs" / "net"
    assert {path.name for path in kept.iterdir()} == {"run.json", "pairs.parquet"}
    assert np.array_equal(read_results(kept).values["rise"]["energy"], read_results(parts[0]).values["rise"]["energy"])
    said = table.write(evaluated.read([kept, parts[1]]), out, "mdm", [], "abc1234")
    assert "rise, random: of old at 0ld0ld0; gradcam, mdm: of new at abc1234 (mdm in place of an earlier" in said
    assert "Metrics left out, since the methods in brackets do not have them: deletion-30 (mdm, gradcam)." in said
    assert "protomask evaluate old --out=out\nprotomask evaluate new --out=out\npython" in said
    assert json.loads((out / "about.json").read_text())["runs"]["net"]["commits"] == ["0ld0ld0", "abc1234"]
    before = (kept / "pairs.parquet").read_bytes()
    again = table.write(evaluated.read([kept]), out, "mdm", [], "no-such")
    assert again == said  # whatever is kept tells its own commit
    assert (kept / "pairs.parquet").read_bytes() == before
    assert set(read_results(kept).values["rise"]) == {"energy", "deletion-30"}  # more than the table has
    whole = {m: scores(0.7, 0.2) for m in ("gradcam", "mdm")}
    final = evaluated.read([kept, retold(run(tmp_path / "last", whole), model={"name": "net"})])
    assert final.metrics == ("energy", "deletion-30")


def test_what_is_kept_has_no_folder_of_this_machine(benchmark: Any, parts: list[Path], tmp_path: Path) -> None:
    settings = {"mdm": {"settings": {"folder": "/home/my name/maps", "scales": [3, "a=/far/off/b"]}, "fill": "mean"}}
    command = "protomask evaluate '/home/my name/net' --root=/far/data"
    retold(parts[0], methods=settings, data={"name": "/far/data"}, beside=["other"], command=command)
    retold(parts[1], data={"name": "/near/data"}, pictures=[dict.fromkeys(("file", "heading", "alt", "caption"), "a")])
    table, out = benchmark("full_table"), tmp_path / "out"
    table.write(benchmark("evaluated").read(parts[:1]), out, "mdm", [], None)
    text = (out / "runs" / "net" / "run.json").read_text()
    assert not [bad for bad in ("/far", "/home", "my name", str(tmp_path)) if bad in text]
    about = json.loads(text)
    assert about["methods"]["mdm"]["settings"] == {"folder": "maps", "scales": [3, "a=b"]}
    assert "beside" not in about
    assert about["command"] == about["sources"][0]["command"] == "protomask evaluate net --root=data"
    # The data set is the same, wherever it lies.
    (joined,) = benchmark("evaluated").read([out / "runs" / "net", parts[1]]).runs
    benchmark("joined").keep(joined, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "run.json").read_text())["pictures"] == []


def test_only_absolute_paths_are_cut(benchmark: Any) -> None:
    pathless = benchmark("joined").pathless
    for text in (
        "rel/ative",
        "Cardinal / 3",
        "https://host/a/b",
        "./a/b",
        "../a",
        "~/a",
        "1/2",
        "2.5.0+cu121",
        "",
        "/",
    ):
        assert pathless(text) in (text, text.strip("/"))
    assert pathless({m: k.sentence for m, k in METRICS.items()}) == {m: k.sentence for m, k in METRICS.items()}
    assert pathless(["/a/b c/d", "x /a/b, y", "k:C", r"C:\Users\me\maps", 3, None]) == [
        "d", "x b, y", "k:C", "maps", 3, None,
    ]  # fmt: skip


def test_kept_runs_have_folders_of_their_own(benchmark: Any) -> None:
    names = benchmark("joined").folder_names
    assert names(["a b", "..", "x/../y"]) == ["a-b", "model", "x-..-y"]
    assert names(["net", "Net"]) == ["0-net", "1-Net"]  # one folder on some file systems


def test_an_exception_is_a_method_that_beats_the_better_control(benchmark: Any) -> None:
    pool, check = benchmark("localisation").Pool, benchmark("randomised")
    nothing = np.full(40, np.nan)
    wave = np.tile([0.02, -0.02], 20)
    metric = {"energy": {"mdm": 0.3, "rise": 0.15, "random": 0.1, "centre": 0.2}}
    metric["oirr"] = {"mdm": 0.7, "rise": 0.2, "random": 0.5, "centre": 0.9}
    values = {
        m: {k: metric[k][m] + wave * (m == "mdm") if k in metric else nothing for k in check.ANNOTATION}
        for m in ("mdm", "rise", "random", "centre")
    }
    groups = tuple(f"0/{k // 2}" for k in range(40))
    found = {(c.method, c.metric): c for c in check.compare(pool(values, groups), np.repeat([0, 1], 20))}
    assert set(found) == {(m, k) for m in ("mdm", "rise") for k in metric}
    # rise is above random, but not above centre; on oirr, where less is better, random is the better control.
    assert {key for key, c in found.items() if c.exception} == {("mdm", "energy"), ("rise", "oirr")}
    assert found["rise", "oirr"].control == "random"
    assert found["rise", "oirr"].by.mean == pytest.approx(0.3)
    assert found["mdm", "energy"].control == "centre"
    assert found["mdm", "energy"].seeds == 2
    said = "\n".join(check.exceptions(list(found.values()), 2))
    assert "2 of 4 comparisons" in said
    assert "| mdm | energy | centre | 0.100 [" in said
    assert "rise | energy" not in said


def blank(request: protomask.Request) -> protomask.Maps:
    """Finds nothing anywhere."""
    return protomask.Maps(torch.zeros(len(request.targets), *request.size))


blank.passes = 0.0  # type: ignore[attr-defined]


def test_shuffled_weights_score_the_trained_models_pairs_and_leave_it_as_it_was(
    benchmark: Any, request: pytest.FixtureRequest
) -> None:
    loaded = load_model("demo:protopnet")
    scenes = Planted("birds", "test", count=12)
    drawn = draw_pairs(loaded.model, scenes, 2, batch=8)
    module = loaded.model.module
    assert module is not None
    before = {name: value.clone() for name, value in module.state_dict().items()}
    score = benchmark("randomised").score
    protomask.register("blank", "For tests.")(lambda: blank)
    request.addfinalizer(lambda: LOCALISERS.pop("blank"))
    methods = ("upsampling", "random", "centre", "blank")
    shuffled, nothing = score(loaded, scenes, drawn, methods, 1, 0, 8)
    again, _ = score(loaded, scenes, drawn, methods, 2, 0, 8)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert shuffled.pairs is drawn
    # Controls see no weights: theirs are the same under every shuffle, unless there is nothing to locate.
    assert nothing == {"upsampling": 0, "random": 0, "centre": 0, "blank": 2}
    assert (shuffled.values["blank"]["energy"] == 0).all()
    for method, same in (("random", True), ("centre", True), ("upsampling", False)):
        assert np.array_equal(shuffled.values[method]["energy"], again.values[method]["energy"]) == same
    with randomised(module, 1):
        by_hand = load_model("demo:protopnet").model.module
        assert by_hand is not None
        assert not all(torch.equal(a, b) for a, b in zip(module.parameters(), by_hand.parameters(), strict=True))


def test_commands_keep_no_folder_of_this_machine(benchmark: Any) -> None:
    shortened = benchmark("localisation").shortened
    assert shortened("python a.py --root /data/birds --out=/tmp/x 'a b' rel/ative") == (
        "python a.py --root birds --out=x 'a b' rel/ative"
    )


def test_pool_reads_what_localisation_writes(benchmark: Any, tmp_path: Path) -> None:
    for n in range(2):
        pairs = [Scored(f"{k}.png", f"0/{k}.png", "", 0, "a", "") for k in range(3)]
        write_csv((tmp_path / str(n)).with_suffix(".csv"), pairs, {"mdm": {"energy": np.full(3, n / 2)}})
        (tmp_path / f"run{n}").mkdir()
        (tmp_path / f"{n}.csv").rename(tmp_path / f"run{n}" / "pairs.csv")
    pool = benchmark("pool").pooled([tmp_path / "run0", tmp_path / "run1"])
    assert pool.summaries()["mdm"]["energy"].mean == 0.25
    assert pool.groups[2:4] == ("0/0/2.png", "1/0/0.png")
    assert len(read_csv(tmp_path / "run0" / "pairs.csv")[0]) == 3


def test_a_variant_is_a_method_with_settings(benchmark: Any) -> None:
    search = benchmark("search")
    plain = search.variant("mdm")
    assert (plain.name, plain.localiser) == ("mdm", make_localiser("mdm", {}))
    built = search.variant("bare=mdm:gradient_power=0;scales=6,12;learning_rate=.2;together=false;fill=black")
    wanted = {"gradient_power": 0, "scales": (6, 12), "learning_rate": 0.2, "together": False, "fill": "black"}
    assert (built.name, built.localiser) == ("bare", make_localiser("mdm", wanted))
    for wrong in ("no-such-method", "mdm:steps", "mdm:no_such_setting=3"):
        with pytest.raises(InputError):
            search.variant(wrong)


def test_the_search_scores_variants_on_the_same_pairs_and_logs_them(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = benchmark("search")
    log = tmp_path / "log.csv"
    log.write_text(
        "date,variant,settings,data,pairs,seed,energy,passes\n2026-01-01,old,,x,3,5,0.5,9\n", encoding="utf-8"
    )
    asked = "--data planted --split dev --scenes 40 --pairs 3 --seed 5 --metrics energy,insertion-30@blur --quiet"
    said = ["search.py", "demo:xprotonet", *asked.split(), "--repeat", "--log", str(log)]
    said += ["--variant", "upsampling", "--variant", "again=upsampling", "--variant", "saliency"]
    monkeypatch.setattr(sys, "argv", said)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # as the other tests were told
    search.main()
    first, again, saliency = capsys.readouterr().out.splitlines()
    assert "(+0.000 [+0.000, +0.000])" in again
    assert "(" not in first
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["old", "upsampling", "again", "saliency"]
    assert rows[0] == {**dict.fromkeys(rows[0], ""), **rows[0], "energy": "0.5", "passes": "9"}
    assert rows[1]["energy"] == rows[2]["energy"] != rows[3]["energy"]
    assert all(0.5 < float(row[name]) <= 1 for row in rows[1:] for name in ("pearson-noise", "pearson-seed"))
    assert all(row["insertion-30@blur"] and row["passes"] for row in rows[1:])
    assert f"energy {rows[3]['energy']}" in saliency


def test_kept_maps_answer_for_their_own_weights_and_pairs_only(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = benchmark("kept_maps")
    loaded, scenes = load_model("demo:protopnet"), Planted(split="test", count=40)
    asked = "evaluate demo:protopnet --data planted --scenes 40 --pairs 4 --methods saliency,random --metrics energy"
    assert main([*asked.split(), "--threads", "1", "--quiet", "--panels", "0", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(kept, "LOCALISERS", known := dict(LOCALISERS))
    kept.keep(str(tmp_path))
    assert known["random"] is LOCALISERS["random"]
    answering, plain = known["saliency"].make(), LOCALISERS["saliency"].make()
    assert (answering.passes, settings_of(answering)) == (plain.passes, settings_of(plain))
    pairs = [pair_of(item[:-1]) for item in read_run(tmp_path).plan.items]
    samples = [scenes[pair.index] for pair in pairs]
    model, ids = contract(loaded.model), [sample.image_id for sample in samples]
    images, calls = tensors(model, samples), []
    monkeypatch.setattr(type(plain), "__call__", counted(type(plain).__call__, calls))

    def found(localiser: object, targets: list[tuple[int, int]]) -> torch.Tensor:
        return protomask.locate(model, images, targets, localiser, image_ids=ids).maps  # type: ignore[arg-type]

    own = [(row, pair.prototype) for row, pair in enumerate(pairs)]
    maps = found(answering, own)
    assert not calls
    assert (maps - found(plain, own)).abs().max() < 1 / 65535
    assert torch.equal(maps.flatten(1).argsort(1), found(plain, own).flatten(1).argsort(1))
    assert maps.std() > 0
    calls.clear()
    other = [(0, (pairs[0].prototype + 1) % model.num_prototypes)]
    assert torch.equal(found(answering, other), found(plain, other))
    assert len(calls) == 2
    with randomised(model.module, 1):
        assert torch.equal(found(answering, own), found(plain, own))


def counted(call: Any, calls: list[object]) -> Any:
    """The same function, which notes that it was called."""

    def noted(self: object, request: object) -> object:
        calls.append(request)
        return call(self, request)

    return noted


def test_small_multiples_show_the_first_pairs_under_every_method(benchmark: Any, tmp_path: Path) -> None:
    scores = make_results(tmp_path / "scores", 3)
    script = benchmark("small_multiples")
    results = read_results(scores)
    columns = script.columns_of(results, 2, results.metrics[0], ["annotation"])
    assert [name for name, _ in columns] == ["image", *(m for m in results.methods if m != "annotation")]
    assert all(len(tiles) == 2 for _, tiles in columns)
    for name, tiles in columns[1:]:
        value = results.values[name][results.metrics[0]][0]
        assert tiles[0].caption in (f"{value:.2f}", "nothing", "-")
        assert tiles[0].picture.shape == columns[0][1][0].picture.shape
    out = tmp_path / "deep" / "picture.png"
    script.main([str(scores), "--metric", results.metrics[0], "--images", "2", "--across", "3", "--out", str(out)])
    with Image.open(out) as picture:
        assert picture.width == 11 * 160
    script.main([str(scores), "--metric", results.metrics[0], "--images", "2", "--out", str(out.with_suffix(".webp"))])
    with Image.open(out.with_suffix(".webp")) as picture:
        assert (picture.format, picture.width) == ("WEBP", 11 * 160)
    with pytest.raises(InputError, match="--metric"):
        script.main([str(scores), "--metric", "beauty", "--out", str(out)])


class Pointed:
    """Five images with two points each, 10 px apart; the box's diagonal is 100 px, so that a radius is 5 px."""

    part_names = ("crown", "tail")

    def __getitem__(self, index: int) -> Any:
        points = np.array([[20.0, 20.0], [30.0, 20.0]])
        image = np.full((80, 80, 3), 50 * index, np.uint8)
        geometry = Geometry((80, 80), (0, 0, 80, 80), (80, 80))
        return Sample(f"{index}.png", image, 0, geometry, np.array([0.0, 0.0, 60.0, 80.0]), points)


def test_a_part_found_again_is_scored_as_a_peak_would_be(benchmark: Any) -> None:
    script = benchmark("retest")
    pairs = [Pair(k, 0, f"{k}.png", f"{k}.png", 0, 1.0, 0.0) for k in range(5)]
    truth = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.5, 0.4]])  # the last one is not clear
    again = torch.tensor([[0.9, 0.1], [0.9, 0.8], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
    told, counts = script.agreement(Pointed(), pairs, {script.TRUTH: truth, "again": again})
    assert counts == {script.TRUTH: 4, "again": 4}
    assert [told[script.TRUTH][c].mean for c in script.COLUMNS] == [1, 1, 1, 1]
    # Three of four the same; one of these no longer clear; the other part is two radii away.
    assert [told["again"][c].mean for c in script.COLUMNS] == [0.75, 0.5, 0.75, 1]
    assert told["again"]["same part"].n == 4


@pytest.mark.parametrize("name", ["in-painted, .04", "mean colour, .05", "blurred, .05"])
def test_a_removal_changes_its_disc_alone(benchmark: Any, name: str) -> None:
    removal = benchmark("retest").REMOVALS[name]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mean = np.array([10, 20, 30])
    without = removal(image, 30.0, 20.0, 6.0, mean)
    inside = disc((64, 64), 30, 20, 6)
    assert (without[~inside] == image[~inside]).all()
    assert (without[inside] != image[inside]).mean() > 0.9
    if name.startswith("mean"):
        assert (without[inside] == mean).all()


def test_drops_are_of_each_pairs_own_prototype_and_part(benchmark: Any) -> None:
    """Blocks of one colour on black: what a black disc takes from its own block is its share of the block's pixels."""
    script, scenes = benchmark("retest"), BlockScenes(6, masks=False)
    model = contract(block_model())
    pairs = draw_pairs(model, scenes, 6).pairs
    found = script.drops(model, scenes, pairs, script.REMOVALS["mean colour, .05"], batch=2)
    for row, pair in enumerate(pairs):
        sample = scenes[pair.index]
        points, diagonal = script.geometry(sample)
        x0, y0, x1, y1 = BLOCKS[pair.prototype]
        hidden = disc((32, 32), *points[pair.prototype], 0.05 * diagonal)[y0:y1, x0:x1].mean()
        wanted = np.where(np.arange(3) == pair.prototype, hidden, 0)
        assert np.allclose(found[row], wanted, atol=1e-5)


def test_a_data_set_without_points_has_no_retest(benchmark: Any) -> None:
    with pytest.raises(DataError, match="annotated points"):
        benchmark("retest").geometry(replace(BlockScenes(1)[0], points=None))


def test_the_shortened_procedure_is_the_authors_with_fewer_steps(benchmark: Any) -> None:
    try:
        benchmark("paper_short")
        short, full = make_localiser("mdm-paper-short", {}), make_localiser("mdm-paper", {})
    finally:
        LOCALISERS.pop("mdm-paper-short", None)
    assert replace(full, steps=201, learning_rate=0.03).passes == short.passes == full.passes * 201 / 2001
    assert {k: v for k, v in vars(short).items() if v != getattr(full, k)} == {"steps": 201, "learning_rate": 0.03}
