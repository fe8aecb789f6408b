from __future__ import annotations

import csv
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from protomask import gallery
from protomask.cli import _joined, main, parser
from protomask.commands import common, evaluate, locate, located, train
from protomask.commands.common import dataset_for, score_table, size_option, spell_duration, write_table
from protomask.commands.evaluate import default_methods
from protomask.commands.locate import _paths, open_job, parse_settings
from protomask.data import Geometry, Sample
from protomask.errors import CheckpointError, InputError
from protomask.jobs import cutting
from protomask.loading import Loaded, load_model
from protomask.localisers import LOCALISERS
from protomask.metrics import DEFAULT_METRICS, METRICS, Summary
from protomask.model import families
from protomask.records import Localisation
from protomask.region import own_area_region
from protomask.store import read_run, read_scores
from protomask.visualise.sheet import sheet
from protopnet_ext import FAMILY
from tests.toys import BlockScenes

MODEL = "tests.toys:block_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three readable images, one larger than the model's input, and a corrupt one."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        image = cv2.resize(BlockScenes()[index].image, None, fx=2 + index, fy=2, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(images / f"{index}.png"), image[..., ::-1])
    whole = (images / "0.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    return images


def test_locate_writes_regions_numbers_and_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["locate", MODEL, str(folder), "--beside", "centre", "--targets", "all", "--panels", "1", "--quiet"]
    assert main([*arguments, "--set", "fill=black", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "about" in said.splitlines()[0]
    assert "1 images skipped" in said
    coco = COCO(str(out / "regions.json"))
    assert len(coco.getImgIds()) == 3
    assert {a["method"] for a in coco.dataset["annotations"]} == {"mdm"}
    with (out / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2
    first = next(r for r in rows if (r["image"], r["prototype"], r["method"]) == ("1.png", "0", "mdm"))
    # Block 0 is 4..12 in the model's 32 pixels; image 1 is 96 wide and 64 high.
    assert float(first["x0"]) == pytest.approx(12, abs=3)
    assert float(first["x1"]) == pytest.approx(36, abs=3)
    assert float(first["y0"]) == pytest.approx(8, abs=2)
    assert float(first["y1"]) == pytest.approx(24, abs=2)
    panels = sorted((out / "panels").iterdir())
    assert len(panels) == 3
    assert cv2.imread(str(panels[0])).std() > 5


def test_pictures_outline_the_regions_that_the_files_hold(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, drawn = tmp_path / "out", []
    real = gallery.method_panel

    def panel(*args: object, **options: object) -> object:
        drawn.append(options)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery, "method_panel", panel)
    options = ["--region", "own-area", "--set", "gradient_power=0", "--beside", "centre", "--targets", "all", "--quiet"]
    assert main(["locate", MODEL, str(folder / "0.png"), *options, "--set", "fill=black", "--out", str(out)]) == 0
    found = next(iter(read_run(out))).found
    assert found is not None
    assert found.masks
    for row, figure in enumerate(drawn):
        own = own_area_region(found.maps[row : row + 1])[0].numpy()
        assert np.array_equal(figure["regions"]["mdm"], own)
        assert figure["regions"]["centre"].sum() == round(0.05 * 32 * 32)  # no mask, so its sum is no area
        view = gallery.view_of(BlockScenes()[0], found, row, region="own-area")
        assert np.array_equal(view.region, own)
    assert len(drawn) == 3


def test_the_explanation_of_an_image_with_many_targets_shows_the_strongest_of_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "out", []

    def likeness(loaded: Loaded, sample: Sample, found: Localisation, rows: range, **options: object) -> Figure:
        drawn.append((sample.image_id, found.targets.prototypes[list(rows)].tolist(), options["count"]))
        return sheet(1, 1)

    monkeypatch.setattr(gallery, "likeness", likeness)
    monkeypatch.setattr(located, "ROWS", 2)
    monkeypatch.setattr(cutting, "PAIRS_PER_CHUNK", 1)
    arguments = [
        "locate",
        MODEL,
        *(str(folder / f"{k}.png") for k in range(2)),
        "--method",
        "centre",
        "--beside",
        "none",
    ]
    assert main([*arguments, "--targets", "all", "--quiet", "--out", str(out)]) == 0
    with (out / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3
    for name, shown, count in drawn:
        ranked = sorted((r for r in rows if r["image"] == name), key=lambda r: -float(r["activation"]))
        assert (shown, count) == ([int(r["prototype"]) for r in ranked[:2]], 3)
    assert [name for name, *_ in drawn] == ["0.png", "1.png"]
    assert [len(list((out / kind).iterdir())) for kind in ("panels", "looks-like")] == [6, 2]
    assert capsys.readouterr().out.rstrip().endswith(f"{out / 'regions.csv'}, {out / 'panels'}, {out / 'looks-like'}")


@pytest.mark.parametrize(
    ("crop", "shown"),
    [
        ((0, 0, 400, 300), (32, 43)),
        ((0, 0, 300, 400), (43, 32)),
        ((350, 0, 50, 300), (32, 32)),  # mirrored
        ((0, 0, 9000, 3), (32, 128)),
    ],
)
def test_pictures_have_the_aspect_of_the_original(crop: tuple[float, ...], shown: tuple[int, int]) -> None:
    geometry = Geometry((400, 9000), crop, (32, 32))  # type: ignore[arg-type]
    assert gallery.shown_size(Sample("a", np.zeros((32, 32, 3), np.uint8), 0, geometry)) == shown


def test_a_model_without_maps_is_located_by_the_defaults(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["locate", MODEL, str(folder / "0.png"), "--targets", "all", "--set", "steps=2", "--panels", "0"]
    for options, methods, said in (([], {"mdm"}, 1), (["--beside", "upsampling"], {"mdm", "upsampling"}, 0)):
        out = tmp_path / str(said)
        assert main([*arguments, *options, "--quiet", "--out", str(out)]) == 0
        told = capsys.readouterr().out
        assert told.count("upsampling is not shown beside: model: expected similarity_maps or occurrence_maps") == said
        assert "1 images located: " in told  # whatever the other method did
        assert {shard.method for shard in read_run(out).plan.shards} == methods
        assert {row["method"] for row in csv.DictReader((out / "regions.csv").read_text().splitlines())} == {"mdm"}


def test_the_cost_counts_every_pass_of_both_methods(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "seconds_per_pass", lambda *_, gradient, **__: 10.0 if gradient else 1.0)
    options = [
        "locate",
        MODEL,
        str(folder / "0.png"),
        str(folder / "1.png"),
        "--targets",
        "all",
        "--out",
        str(tmp_path),
    ]
    for method, beside, passes, looked in (
        ("rise", "none", 0, round(LOCALISERS["rise"].make().image_passes) + 1),  # type: ignore[attr-defined]
        ("centre", "mdm-fast", round(LOCALISERS["mdm-fast"].make().passes), 2),
    ):
        args = parser().parse_args([*options, "--method", method, "--beside", beside, "--batch", "4"])
        args.device = "cpu"
        locate._say_cost(args, locate.open_job(args, 1), 0.5)
        told = capsys.readouterr().out
        assert (
            f"{passes} forward + gradient passes per pair and {looked} forward passes per image with {method}" in told
        )
        assert f"about {spell_duration(0.5 * (2 * 3 * passes * 10 + 2 * looked))} on cpu; 50% is stored." in told


def test_pictures_of_an_earlier_run_do_not_stay(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["locate", MODEL, str(folder), "--beside", "none", "--method", "centre", "--quiet", "--out", str(out)]
    assert main([*arguments, "--targets", "all"]) == 0
    (out / "panels" / "mine.png").write_bytes(b"not ours")
    for options, left in (
        (["--targets", "top:1"], 3),
        (["--targets", "all", "--panels", "1"], 3),
        (["--targets", "all"], 9),
    ):
        assert main([*arguments, *options]) == 0
        assert len(list((out / "panels").iterdir())) == left + 1
    capsys.readouterr()
    assert main([*arguments, "--panels", "0"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(out / "regions.csv"))
    assert [path.name for path in (out / "panels").iterdir()] == ["mine.png"]
    with pytest.raises(SystemExit):
        main([*arguments, "--panels", "-1"])
    assert "expected an integer of at least 0, got '-1'" in capsys.readouterr().err


def test_nothing_readable_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    assert main(["locate", MODEL, str(tmp_path / "a.jpg"), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "at least one readable image" in capsys.readouterr().err


def test_what_was_computed_stays_when_a_run_breaks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protomask.jobs import cutting, locating

    real, calls = locating.locate, []

    def breaks(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(locating, "locate", breaks)
    monkeypatch.setattr(cutting, "IMAGES_PER_CHUNK", 1)
    out = tmp_path / "out"
    arguments = ["locate", MODEL, str(folder), "--beside", "centre", "--targets", "all", "--quiet", "--panels", "0"]
    assert main([*arguments, "--out", str(out)]) == 130
    assert len(json.loads((out / "regions.json").read_text())["images"]) == 1


def test_evaluate_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from protomask.commands import evaluate as command

    monkeypatch.setattr(command, "dataset_for", lambda args, loaded: BlockScenes())
    out = tmp_path / "out"
    arguments = ["evaluate", MODEL, "--data", "planted", "--pairs", "6", "--panels", "2", "--quiet", "--out", str(out)]
    assert main([*arguments, "--methods", "mdm,centre,annotation"]) == 0
    said = capsys.readouterr().out
    assert "6 pairs scored of 6 drawn; 6 of the drawn have a clear causal part." in said
    scores = read_scores(out / "scores.json")["block_model"]
    assert scores["annotation"]["pointing-game"].mean == 1
    assert scores["mdm"]["energy"].n == 6
    with (out / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3 * len(DEFAULT_METRICS)
    energies = [float(r["value"]) for r in rows if (r["method"], r["metric"]) == ("mdm", "energy")]
    assert np.mean(energies) == pytest.approx(scores["mdm"]["energy"].mean, abs=1e-5)
    assert {a["method"] for a in COCO(str(out / "regions.json")).dataset["annotations"]} == {"mdm"}
    assert len(list((out / "panels").iterdir())) == 2
    assert {row["class"] for row in rows} == {"first", "second", "third"}
    assert {row["part"] for row in rows} == {"a", "b", "c"}
    about = json.loads((out / "run.json").read_text())
    assert about["counts"]["pairs"] == 6
    assert about["model"]["digest"] is None  # a model without a module
    assert about["methods"]["mdm"]["settings"]["steps"] > 0
    assert about["methods"]["mdm"]["passes"] > about["methods"]["centre"]["passes"] == 0
    assert [m for m, k in about["methods"].items() if k["control"]] == ["centre", "annotation"]
    command = shlex.join(["protomask", *arguments, "--methods", "mdm,centre,annotation"])
    assert about["command"] == command  # not what the process was called with
    for name in ("pairs.parquet", "scores.tex", "examples/index.json"):
        assert (out / name).stat().st_size > 100
    page = (out / "report.html").read_text()
    assert command in html.unescape(page)
    assert len(re.findall("data:image/(?:png|webp);base64,", page)) == 2 + 4 * (3 + 3 + 6)  # panels; best, worst, all
    assert "http://" not in page
    assert "https://" not in page


def test_a_users_control_is_no_competitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOCALISERS, "cheat", replace(LOCALISERS["annotation"], name="cheat"))
    monkeypatch.setattr(evaluate, "dataset_for", lambda args, loaded: BlockScenes())
    arguments = [
        "evaluate",
        MODEL,
        "--data",
        "planted",
        "--pairs",
        "4",
        "--panels",
        "0",
        "--quiet",
        "--metrics",
        "energy",
    ]
    assert main([*arguments, "--methods", "single-mask, cheat", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "scores.tex").read_text().splitlines()
    assert [line.split(" ")[0] for line in lines if r"\textbf" in line] == ["single-mask"]
    assert any(line.startswith("cheat & 1.000") for line in lines)
    assert {a["method"] for a in COCO(str(tmp_path / "regions.json")).dataset["annotations"]} == {"single-mask"}
    assert json.loads((tmp_path / "run.json").read_text())["methods"]["cheat"]["control"] is True


@pytest.mark.parametrize("width", [60, 100, 2000])
def test_the_printed_table_is_as_wide_as_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    values = {m: {k: Summary(i + j / 100, 0, 1, 5) for j, k in enumerate(METRICS)} for i, m in enumerate(("mdm", "a"))}
    values["a"]["energy"] = Summary(0, 0, 0, 0)
    tables = [table.splitlines() for table in score_table(values, tuple(METRICS)).split("\n\n")]
    assert all(len(line) <= width for table in tables for line in table)
    assert (len(tables) == 1) == (width == 2000)
    assert all([line.split()[0] for line in table[1:]] == ["mdm", "a"] for table in tables)
    heads = [head for table in tables for head in table[0].split() if len(head) > 1]
    assert heads == list(METRICS)  # each once, in order
    cells = [cell for table in tables for cell in table[2].split()[1:]]
    wanted = ["-" if k == "energy" else f"{1 + j / 100:.3f}" for j, k in enumerate(METRICS)]
    assert cells == wanted


def test_a_folder_of_other_classes_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "folder", "--root", str(folder), "--split", "all", "--out", str(tmp_path / "out")]
    assert main(["evaluate", MODEL, *options]) == 2
    assert "classes of the data: expected classes that the model knows, got unlabelled" in capsys.readouterr().err
    assert "annotation" not in default_methods("folder")
    assert "annotation" in default_methods("cub")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["locate", "nowhere", "IMAGES"],
            "MODEL: expected a checkpoint folder or file, demo:NAME or package.module:factory",
        ),
        (["locate", "demo:lime", "IMAGES"], "MODEL: expected one of demo:"),
        (["locate", "tests.toys:missing", "IMAGES"], "MODEL: expected .* has no attribute 'missing'"),
        (["locate", MODEL, "nothing.jpg"], "nothing.jpg"),
        (["locate", MODEL, "IMAGES", "--targets", "best"], "targets: expected"),
        (["locate", MODEL, "IMAGES", "--targets", "class:9"], "class: expected an index in 0 .. 2"),
        (["locate", MODEL, "IMAGES", "--set", "steps"], "--set: expected NAME=VALUE"),
        (["locate", MODEL, "IMAGES", "--set", "stepps=3"], "settings of mdm: expected one of"),
        (["locate", MODEL, "IMAGES", "--device", "warp:3"], "--device: expected"),
        (["evaluate", MODEL, "--data", "cub"], "root: expected the folder"),
        (["evaluate", MODEL, "--data", "planted", "--methods", "mdm,lime"], "method: expected one of"),
        (["evaluate", MODEL, "--data", "planted", "--methods", "mdm,mdm"], "--methods: expected each method once"),
        (["evaluate", MODEL, "--data", "planted", "--methods", "mdm, mdm"], "--methods: expected each method once"),
    ],
)
def test_errors_are_said_in_one_line(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = [str(folder) if a == "IMAGES" else a for a in arguments]
    assert main([*real, "--quiet", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("protomask: ")
    assert len(error.splitlines()) == 1


def test_an_unwritable_output_is_said_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for command in (["locate", MODEL, str(folder)], ["evaluate", MODEL, "--data", "planted"], ["demo"]):
        assert main([*command, "--out", str(tmp_path / "file")]) == 2
        assert "a folder that can be written to" in capsys.readouterr().err


def test_methods_and_metrics_are_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in (("methods", LOCALISERS), ("metrics", METRICS)):
        assert main([command]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(names)
        assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["locate"],
        ["evaluate"],
        ["report"],
        ["train"],
        ["train", "protopnet"],
        ["train", "xprotonet"],
    ],
)
def test_help_teaches(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "usage: protomask" in said
    if command not in ([], ["train"], ["report"]):
        for option in ("--out", "--device", "--seed", "--batch"):
            assert option in said


def test_a_family_that_cannot_train_is_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = families()
    dotted = replace(known["xprotonet"], name="dotted", train=None, add_train_arguments=None)
    monkeypatch.setattr(train, "families", lambda: {**known, "dotted": dotted})
    with pytest.raises(SystemExit):
        main(["train", "dotted", "--data", "planted", "--out", str(tmp_path)])
    assert "invalid choice: 'dotted'" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["protopnet", "xprotonet"])
def test_the_example_of_a_training_is_what_a_random_backbone_needs(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", family, "--help"])
    said = capsys.readouterr().out
    example = said.rpartition("example:")[2].replace("\\\n", " ").split()
    args = parser().parse_args(example[1:])
    assert args.weights is None
    assert "starts random: then --warm-epochs 0 --one-cycle --lr-features 2e-3" in " ".join(said.split())
    assert (args.warm_epochs, args.one_cycle, args.lr_features) == (0, True, 2e-3)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--species", "1,a", "expected integers with commas between, got '1,a'"),
        ("--seed", "-1", "expected an integer of at least 0, got '-1'"),
        ("--pairs", "few", "expected an integer of at least 1, got 'few'"),
    ],
)
def test_numbers_that_are_none_are_said(
    option: str, value: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", MODEL, "--data", "cub", "--out", str(tmp_path), f"{option}={value}"])
    assert stop.value.code == 2
    assert f"argument {option}: {said}" in capsys.readouterr().err


def test_names_of_files_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\udc80.png"
    try:
        (tmp_path / name).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes no such name")
    out = tmp_path / "out"
    assert main(["locate", MODEL, str(tmp_path / name), "--out", str(out), "--quiet"]) == 2
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\udc80" not in said.out + said.err
    for text in (said.out, said.err):
        assert r"a\x1b[31m\udc80.png" in text


def test_the_table_is_text_whatever_files_are_called(tmp_path: Path) -> None:
    write_table(tmp_path / "regions.csv", ("image", "x0"), [("caf\udce9\r.png", 1.5), ("b,c.png", "")])
    text = (tmp_path / "regions.csv").read_bytes().decode("utf-8")
    assert text == 'image,x0\ncaf\\udce9\\r.png,1.5\n"b,c.png",\n'


def test_image_ids_tell_all_images_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("d/x.png", "photos/x.png", "photos/d/x.png", "photos/y.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_bytes(b"")
    assert [name for name, _ in _paths(["photos"])] == ["d/x.png", "x.png", "y.png"]
    names = [name for name, _ in _paths(["photos", "d"])]
    assert sorted(names) == ["d/x.png", "photos/d/x.png", "photos/x.png", "photos/y.png"]
    assert _paths(["photos/y.png", "./photos/y.png", "photos"]) == [
        ("y.png", Path("photos/y.png")),
        ("d/x.png", Path("photos/d/x.png")),
        ("x.png", Path("photos/x.png")),
    ]
    assert [name for name, _ in _paths(["photos/d", "photos"])] == ["photos/d/x.png", "photos/x.png", "y.png"]


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    """A checkpoint that was trained through the window (-1000, 3000)."""
    assert FAMILY.demo is not None
    model = Path(shutil.copytree(FAMILY.demo, tmp_path / "model"))
    _set_window(model, [-1000, 3000])
    return model


def _set_window(model: Path, window: object) -> None:
    told = json.loads((model / "model.json").read_text())
    told["extra"].setdefault("data", {})["window"] = window
    (model / "model.json").write_text(json.dumps(told))


def test_wide_pixels_are_scaled_as_the_model_was_trained(windowed: Path, tmp_path: Path) -> None:
    loaded = load_model(str(windowed))
    images = tmp_path / "images" / loaded.class_names[0]
    images.mkdir(parents=True)
    for name in ("a", "b"):
        np.save(images / f"{name}.npy", np.full((40, 40), 1000, np.int16))
    for given, window, shown in (([], (-1000, 3000), 128), (["--window", "-1000,1500"], (-1000, 1500), 204)):
        where = ["locate", str(windowed), str(images), "--method", "centre", "--beside", "none", "--out", str(tmp_path)]
        job = open_job(parser().parse_args(_joined([*where, *given])), 1)
        samples = job.reader(job.plan.shards[0]).samples
        assert {int(value) for sample in samples for value in np.unique(sample.image)} == {shown}
        about = ["evaluate", str(windowed), "--data", "folder", "--root", str(tmp_path / "images"), "--out", "unused"]
        data = dataset_for(parser().parse_args(_joined([*about, *given])), loaded)
        assert data.dataset.window == window  # type: ignore[attr-defined]
        assert np.unique(data[0].image).tolist() == [shown]
    planted = parser().parse_args(["evaluate", str(windowed), "--data", "planted", "--out", "unused"])
    assert not hasattr(dataset_for(planted, loaded), "window")  # which has no such option
    _set_window(windowed, [3, 2])
    with pytest.raises(CheckpointError, match=r"model: extra\.data\.window: expected \(low, high\)"):
        load_model(str(windowed))


def test_a_window_that_begins_below_zero_draws_what_it_locates(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = cv2.cvtColor(cv2.imread(str(folder / "0.png")), cv2.COLOR_BGR2RGB).astype(np.int16) * 4 - 1000
    np.save(tmp_path / "scan.npy", image)
    arguments = ["locate", MODEL, str(tmp_path / "scan.npy"), "--method", "centre", "--beside", "none", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 2
    assert "or a window" in capsys.readouterr().err
    assert main([*arguments, "--window", "-1000,20", "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out" / "panels").iterdir())
    assert main([*arguments, "--window", "20,-1000", "--out", str(tmp_path / "out")]) == 2
    assert "window: expected (low, high)" in capsys.readouterr().err
    script = ["run", "--", "script.py", "--window", "-3,4"]
    assert _joined(script) == script


def test_the_console_script_runs() -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "protomask", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("protomask ")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("command", ["methods", "metrics"])
def test_a_reader_that_stops_reading_is_no_error(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from protomask.cli import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code, command], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


def test_small_readers() -> None:
    assert parse_settings(["steps=50", "scales=6,12", "fill=black", "area_weight=.5"]) == {
        "steps": 50, "scales": (6, 12), "fill": "black", "area_weight": 0.5,
    }  # fmt: skip
    assert parse_settings(["scales=6"]) == {"scales": (6,)}
    assert parse_settings(["together=false", "choose=True"]) == {"together": False, "choose": True}
    with pytest.raises(InputError):
        parse_settings(["=3"])
    assert size_option("224") == (224, 224)
    assert size_option("160x224") == (160, 224)
    assert [spell_duration(s) for s in (0.2, 61, 600, 7200)] == ["1 s", "61 s", "10 min", "2.0 h"]
    assert os.environ.get("NO_ALBUMENTATIONS_UPDATE") == "1"
