"""What `evaluate` scores beside pairs: prototypes over their images, other weights, other trainings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from protomask.cli import main
from protomask.commands import evaluate as evaluate_command
from protomask.data import Dataset
from protomask.data.sample import Sample
from protomask.errors import DataError, InputError
from protomask.jobs import evaluating
from protomask.jobs.status import status_of
from protomask.jobs.studies import gather_studies
from protomask.loading import Relabelled
from protomask.localisers import LOCALISERS
from protomask.metrics import METRICS, metrics_by_scope, summarise
from protomask.model import contract
from protomask.pairs import draw_pairs, tensors, truth_of
from protomask.prototype_scores import prototype_pools, prototype_scores
from protomask.reporting.beside import AGREEMENT, PROTOTYPES, Beside, read_beside, write_beside
from protomask.reporting.page import Choice, page
from protomask.reporting.results import read_results
from protomask.reporting.tidy import read_csv
from protomask.sanity import agreement, agreement_images, randomisation
from protomask.store import read_run, read_scores
from protomask.visualise.blocks import DifferenceTable, PlainTable, ScoreTable
from tests.killing import contents
from tests.results_tools import make_results
from tests.toys import BlockScenes, ConvModel, block_model

MODEL = "tests.test_studies:conv_model"
OTHER = "tests.test_studies:other_model"
METHODS = ("upsampling", "random", "centre", "annotation")
STUDIED = "consistency,stability,purity"
DRAWN = [0, 1, 2, 4]  # by seed 0, of six


def conv_model() -> ConvModel:
    return ConvModel(prototypes=6, classes=3)


def other_model() -> ConvModel:
    return ConvModel(prototypes=6, classes=3, seed=1)


class Damaged(BlockScenes):
    """One sample cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        if index == 5:
            raise DataError("5.png: expected a complete image, got half of one")
        return super().__getitem__(index)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(study, method) of the shards that were computed, in order."""
    done: list[tuple[str, str]] = []
    inner = evaluating.EvaluateJob.compute

    def compute(job: object, shard: object, read: object) -> object:
        done.append((shard.study, shard.method))  # type: ignore[attr-defined]
        return inner(job, shard, read)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluating.EvaluateJob, "compute", compute)
    return done


def evaluate_into(out: Path, metrics: str, *more: str, model: str = MODEL) -> int:
    common = ["--data", "planted", "--methods", ",".join(METHODS), "--pairs", "6", "--panels", "1", "--quiet"]
    return main(["evaluate", model, "--out", str(out), *common, "--prototypes", "4", "--metrics", metrics, *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that can be asked for, on twelve scenes."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_command, "dataset_for", lambda args, loaded: BlockScenes(12, masks=False))
        names = f"energy,deletion-30,{STUDIED},randomisation,agreement"
        assert evaluate_into(out, names, "--agree", OTHER) == 0
    return out


def same(one: object, other: object) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True))


# Values ----------------------------------------------------------------------------------------------------------


def test_prototypes_are_scored_as_in_python(whole: Path) -> None:
    table = read_beside(whole, PROTOTYPES)
    assert [int(item[0]) for item in table.items] == DRAWN
    for method in ("upsampling", "random", "centre"):
        known = prototype_scores(conv_model(), BlockScenes(12, masks=False), method, prototypes=DRAWN)
        assert known.values["purity"].isfinite().any()
        for metric, values in known.values.items():
            assert same(table.values[method][metric], [float(f"{v:.9g}") for v in values.tolist()]), (method, metric)
    assert set(table.values) == {"upsampling", "random", "centre"}  # only pairs have an annotation


def test_randomisation_is_that_of_python(whole: Path) -> None:
    _, values = read_csv(whole / "pairs.csv")
    data, model = BlockScenes(12, masks=False), conv_model()
    pairs = list(draw_pairs(contract(model), data, 6).pairs)
    samples = [data[pair.index] for pair in pairs]
    truth = truth_of(samples, pairs, "object")
    targets = [(row, pair.prototype) for row, pair in enumerate(pairs)]
    for method in METHODS:
        known = randomisation(
            model, tensors(contract(model), samples), targets, method, boxes=truth.boxes, regions=truth.regions
        )
        assert values[method]["randomisation"] == pytest.approx(known.numpy(), abs=1e-5, nan_ok=True)
    # The same map, except where the shuffled network has nothing to locate.
    assert set(values["centre"]["randomisation"].round(6)) <= {0.0, 1.0}
    assert 1 in values["centre"]["randomisation"].round(6)
    assert np.nanmax(values["upsampling"]["randomisation"]) < 0.99


def test_agreement_is_that_of_python(whole: Path) -> None:
    table = read_beside(whole, AGREEMENT)
    assert set(table.values) == {"upsampling", "random", "centre"}
    known = agreement([conv_model(), other_model()], BlockScenes(12, masks=False), "upsampling")
    assert table.values["upsampling"]["agreement"] == pytest.approx(known.same[0].numpy(), abs=1e-6, nan_ok=True)
    other = table.values["upsampling"]["agreement-unrelated"]
    assert other == pytest.approx(known.different[0].numpy(), abs=1e-6, nan_ok=True)
    assert table.column("group") == known.groups
    assert set(table.column("models")) == {"conv_model and other_model"}


def test_agreement_on_as_many_images_as_asked_for(use: Callable[[Dataset], Dataset], tmp_path: Path) -> None:
    use(BlockScenes(12, masks=False))
    assert evaluate_into(tmp_path, "energy,agreement", "--agree", OTHER, "--agree-images", "5") == 0
    table = read_beside(tmp_path, AGREEMENT)
    known = agreement([conv_model(), other_model()], BlockScenes(12, masks=False), "upsampling", images=5)
    assert table.values["upsampling"]["agreement"] == pytest.approx(known.same[0].numpy(), abs=1e-6, nan_ok=True)


# Files -----------------------------------------------------------------------------------------------------------


def test_the_tables_have_their_columns(whole: Path) -> None:
    with (whole / "prototypes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["prototype", "prototype_name", "class", "method", "metric", "value"]
    assert len(rows) == 4 * 3 * 3
    assert {(r["prototype"], r["prototype_name"], r["class"]) for r in rows} == {
        (str(p), f"class {p // 2} / {p % 2}", str(p // 2)) for p in DRAWN
    }
    with (whole / "agreement.csv").open(newline="") as file:
        heads = next(csv.reader(file))
    assert heads == ["item", "image", "group", "models", "method", "metric", "value"]


def test_means_with_intervals_are_in_the_files(whole: Path) -> None:
    scores = next(iter(read_scores(whole / "scores.json").values()))
    table = read_beside(whole, PROTOTYPES)
    for metric in STUDIED.split(","):
        column = table.values["upsampling"][metric]
        known = summarise(column, [str(p) for p in DRAWN])  # each prototype by itself
        came = scores["upsampling"][metric]
        assert came.n == known.n == int(np.isfinite(column).sum())
        assert [came.mean, came.low, came.high] == pytest.approx([known.mean, known.low, known.high], nan_ok=True)
    assert scores["upsampling"]["agreement"].n > 6
    assert scores["centre"]["randomisation"].n == 6
    assert "consistency" not in scores["annotation"]
    text = (whole / "scores.tex").read_text()
    assert r"\caption{Over a prototype's images}" in text
    assert r"consistency $\uparrow$ & stability $\uparrow$ & purity $\uparrow$" in text
    ranks_nobody = next(part for part in text.split(r"\begin{table}") if r"\caption{Sanity checks}" in part)
    assert r"method & randomisation & agreement & \shortstack{agreement-\\unrelated} \\" in ranks_nobody
    assert r"\textbf" not in ranks_nobody
    assert "consistency" not in (whole / "pairs.csv").read_text()


def test_the_report_shows_them(whole: Path) -> None:
    results = read_results(whole)
    blocks = page(results, Choice()).blocks
    of_prototypes = [b for b in blocks if b.heading == "Per prototype"]
    means = next(b for b in of_prototypes if isinstance(b, ScoreTable))
    assert tuple(means.metrics) == tuple(STUDIED.split(","))
    assert list(means.scores) == ["upsampling", "random", "centre"]
    gaps = next(b for b in of_prototypes if isinstance(b, DifferenceTable))
    assert (gaps.baseline, list(gaps.differences), gaps.counted) == ("upsampling", ["random", "centre"], "prototype")
    columns = read_beside(whole, PROTOTYPES).values
    wanted = np.nanmean(columns["upsampling"]["purity"] - columns["centre"]["purity"])
    assert gaps.differences["centre"]["purity"].mean == pytest.approx(wanted)
    each = of_prototypes[-1]
    assert isinstance(each, PlainTable)
    assert [row[0] for row in each.rows] == [f"{p}: class {p // 2} / {p % 2}" for p in DRAWN]
    sane = [b for b in blocks if b.heading == "Sanity checks"]
    assert any(isinstance(b, ScoreTable) and tuple(b.metrics) == ("randomisation",) for b in sane)
    agreed = next(b for b in sane if isinstance(b, PlainTable) and b.columns[0] == "agreement")
    assert [row[0] for row in agreed.rows] == ["upsampling", "random", "centre"]
    weights = sum(p.numel() for p in conv_model().parameters())
    assert f"conv_model, {weights} weights and 6 prototypes; other_model, {weights} weights" in agreed.caption
    html = (whole / "report.html").read_text(encoding="utf-8")
    for words in ("Per prototype", "Sanity checks", "consistency", "randomisation", "unrelated images"):
        assert words in html


def test_sanity_ranks_nobody(whole: Path) -> None:
    results = read_results(whole)
    assert results.sanity_metrics == ("randomisation",)
    assert "randomisation" not in results.metrics
    assert set(results.families) == {"annotation", "causal"}


def test_status_tells_of_all(whole: Path) -> None:
    status = status_of(whole)
    assert status.shards_done == status.shards_total == 4 + 3 + 3
    assert status.maps_done == status.maps_total > 6 * 4


def test_tables_come_back_and_go(tmp_path: Path) -> None:
    values = {"mdm": {"consistency": np.array([1.0, np.nan])}}
    table = Beside(PROTOTYPES, (("3", 'a, "b"\n\udc80', ""), ("4", "", "c")), values)
    assert write_beside(tmp_path, table)
    read = read_beside(tmp_path, PROTOTYPES)
    assert read.items == (("3", 'a, "b"\n\\udc80', ""), ("4", "", "c"))
    assert same(read.values["mdm"]["consistency"], values["mdm"]["consistency"])
    assert not write_beside(tmp_path, Beside(PROTOTYPES))
    assert read_beside(tmp_path, PROTOTYPES).values == {}


@pytest.mark.parametrize("text", ["a,b\n", "HEAD0,p\n", "HEADx,p,c,mdm,purity,1\n", "HEAD0,p,c,mdm,purity,high\n"])
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_results(tmp_path, 3, ("mdm",), size=24, metrics=("energy",))
    (tmp_path / "prototypes.csv").write_text(text.replace("HEAD", ",".join(PROTOTYPES.columns) + "\n"))
    assert main(["report", str(tmp_path)]) == 2
    assert "prototypes.csv: expected a table with the columns prototype, prototype_name" in capsys.readouterr().err


# Long runs -------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(
    use: Callable[[Dataset], Dataset], tmp_path: Path, counted: list[tuple[str, str]]
) -> None:
    use(BlockScenes(12, masks=False))
    assert evaluate_into(tmp_path, f"energy,{STUDIED}", "--agree", OTHER) == 0
    studies = [("prototypes", m) for m in METHODS[:3]] + [("agreement", m) for m in METHODS[:3]]
    assert sorted(counted) == sorted([("", m) for m in METHODS] + studies)
    first = contents(tmp_path)
    counted.clear()
    assert evaluate_into(tmp_path, f"energy,{STUDIED}", "--agree", OTHER) == 0
    assert counted == []
    assert contents(tmp_path) == first
    assert evaluate_into(tmp_path, "energy") == 0
    assert counted == []  # pairs do not depend on what is asked for beside them
    assert not (tmp_path / "prototypes.csv").exists()
    assert not (tmp_path / "agreement.csv").exists()
    assert "consistency" not in (tmp_path / "scores.json").read_text()
    assert evaluate_into(tmp_path, "energy,purity") == 0
    assert counted == studies[:3]
    counted.clear()
    assert evaluate_into(tmp_path, "energy,randomisation") == 0
    assert counted == [("", m) for m in METHODS]


def test_a_lost_shard_alone_is_computed_again_and_shares_join(
    use: Callable[[Dataset], Dataset], tmp_path: Path, counted: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(BlockScenes(12, masks=False))
    monkeypatch.setattr("protomask.jobs.studies._PER_SHARD", 3)
    for share in ("0/2", "1/2"):
        assert evaluate_into(tmp_path, "energy,consistency", "--shard", share) == 0
    assert len(counted) == 4 + 2 * 3
    assert evaluate_into(tmp_path, "energy,consistency", "--assemble") == 0
    first = (tmp_path / "prototypes.csv").read_bytes()
    run = read_run(tmp_path)
    lost = [shard for shard in run.plan.shards if shard.study][1]
    run.path(lost).unlink()
    counted.clear()
    assert evaluate_into(tmp_path, "energy,consistency") == 0
    assert counted == [("prototypes", lost.method)]
    assert (tmp_path / "prototypes.csv").read_bytes() == first


def test_other_images_are_scored_anew(
    use: Callable[[Dataset], Dataset], tmp_path: Path, counted: list[tuple[str, str]]
) -> None:
    use(BlockScenes(12, masks=False))
    assert evaluate_into(tmp_path, "energy,consistency") == 0
    counted.clear()

    class Brighter(BlockScenes):
        def _image(self, index: int, without: int | None = None) -> np.ndarray:
            return super()._image(index, without) + np.uint8(index == 9)

    assert 9 not in {item[0] for item in read_run(tmp_path).plan.items}  # of no pair
    use(Brighter(12, masks=False))
    assert evaluate_into(tmp_path, "energy,consistency") == 0
    assert counted == [("prototypes", m) for m in METHODS[:3]]


def test_a_sample_that_cannot_be_read_costs_its_prototypes_only(
    use: Callable[[Dataset], Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Damaged(12, masks=False))
    # Labels are known without reading, as in most data sets.
    Damaged.labels = tuple(k % 3 for k in range(12))  # type: ignore[attr-defined]
    try:
        assert evaluate_into(tmp_path, "energy,consistency", "--methods", "centre") == 0
    finally:
        del Damaged.labels  # type: ignore[attr-defined]
    values = gather_studies(read_run(tmp_path)).scores["centre"]["consistency"]
    assert np.isnan(values).tolist() == [p // 2 == 5 % 3 for p in DRAWN]
    assert "prototype 4 over its images, centre: 5.png: expected a complete image" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_costs_its_agreement_only(
    use: Callable[[Dataset], Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Damaged(12, masks=False))
    assert evaluate_into(tmp_path, "energy,agreement", "--methods", "upsampling,centre", "--agree", OTHER) == 0
    assert "5.png: expected a complete image" in capsys.readouterr().out
    for method in ("upsampling", "centre"):
        same = gather_studies(read_run(tmp_path)).alike[method]["agreement"]
        drawn = agreement_images(BlockScenes(12), seed=0)
        assert np.isnan(same[0]).tolist() == [index == 5 for index in drawn]


def test_stored_maps_cannot_be_made_again(use: Callable[[Dataset], Dataset], tmp_path: Path) -> None:
    data = use(BlockScenes(12, masks=False))
    folder = tmp_path / "theirs-of-studies"
    folder.mkdir()
    for k in range(12):
        stem = data[k].image_id.replace("/", "_")
        for p in range(6):
            np.save(folder / f"{stem}--{p}.npy", np.random.default_rng(k).random((8, 8)))
    from protomask.store import safe_name

    for path in list(folder.glob("*--0.npy")):
        k = int(path.name.split("_")[1].split("--")[0])
        for p in range(6):
            (folder / f"blocks_{k}--{p}.npy").rename(folder / f"{safe_name(f'blocks/{k}')}--{p}.npy")
    try:
        assert evaluate_into(tmp_path / "out", "energy,purity,randomisation", "--maps", str(folder)) == 0
    finally:
        LOCALISERS.pop(folder.name, None)
    _, values = read_csv(tmp_path / "out" / "pairs.csv")
    assert np.isfinite(values[folder.name]["energy"]).all()
    assert np.isnan(values[folder.name]["randomisation"]).all()
    assert folder.name not in read_beside(tmp_path / "out", PROTOTYPES).values


# Asking ----------------------------------------------------------------------------------------------------------


def test_the_cost_is_told(
    use: Callable[[Dataset], Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(BlockScenes(12, masks=False))
    assert evaluate_into(tmp_path, "energy,purity,randomisation", "--agree", OTHER, "--methods", "centre") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("6 pairs"))
    maps = 4 * 4 + 12 * 2 * 3  # prototypes x images of a class; images x models x prototypes shown
    assert f"(randomisation locates each pair once more; purity, agreement: {maps} more maps per method)" in line


@pytest.mark.parametrize(
    ("metrics", "more", "message"),
    [
        ("energy,consistency,purity", [], "--metrics: expected data with annotated parts for consistency, purity"),
        ("energy,agreement", [], "--agree: expected another training, with which `agreement` compares the model"),
        ("consistency,purity", [], "--metrics: expected one metric per pair at least, such as energy"),
        ("energy,nonsense", [], "metrics: expected one of"),
        ("energy,agreement", ["--agree", OTHER, "--agree-images", "1"], "--agree-images: expected at least 2"),
        ("energy", ["--agree", "tests.toys:block_model"], "--agree block_model: expected a model of conv_model's"),
    ],
)
def test_what_is_missing_is_named(
    use: Callable[[Dataset], Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    metrics: str,
    more: list[str],
    message: str,
) -> None:
    data = BlockScenes(12, masks=False)
    data.part_names = ()  # type: ignore[assignment]
    use(data)
    assert evaluate_into(tmp_path, metrics, *more) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_weights_cannot_be_shuffled(
    use: Callable[[Dataset], Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(BlockScenes())
    assert evaluate_into(tmp_path, "energy,randomisation", model="tests.toys:block_model") == 2
    assert "model.module: expected a module with weights to shuffle" in capsys.readouterr().err


def test_scopes_divide_the_metrics() -> None:
    scopes = metrics_by_scope(METRICS)
    assert sorted(name for names in scopes.values() for name in names) == sorted(METRICS)
    assert scopes["prototype"] == ("consistency", "stability", "purity")
    assert scopes["study"] == ("randomisation", "agreement")
    assert metrics_by_scope(["purity", "energy", "purity"]) == {
        "pair": ("energy",),
        "prototype": ("purity",),
        "study": (),
    }
    with pytest.raises(InputError, match="metrics: expected one of"):
        metrics_by_scope(["nonsense"])


def test_metrics_are_listed_with_how_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "annotated parts" in lines["consistency"]
    assert "--agree" in lines["agreement"]
    assert "once more" in lines["randomisation"]
    assert "--" not in lines["energy"]


def test_pools_follow_the_models_classes() -> None:
    """A data set whose classes come in another order than the model's, and whose labels are known by index."""

    class Labelled(BlockScenes):
        @property
        def labels(self) -> tuple[int, ...]:
            return tuple(k % 3 for k in range(self.count))

    data = Relabelled(Labelled(12), (2, 0, 1), ("second", "third", "first"))
    pools = prototype_pools(contract(block_model()), data, [0, 1, 2], 4, 0)
    assert {p: {data[k].label for k in pool} for p, pool in pools.items()} == {0: {0}, 1: {1}, 2: {2}}
    assert json.dumps(pools) == json.dumps(prototype_pools(contract(block_model()), data, [0, 1, 2], 4, 0))
    assert torch.equal(prototype_scores(block_model(), data, "centre", images=4).images, torch.full((3,), 4))
