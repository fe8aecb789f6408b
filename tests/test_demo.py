"""The shipped reference model, the demo, and a shorter version of the training that made it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

import protomask
from protomask.cli import main
from protomask.commands import demo
from protomask.commands.common import seconds_per_pass
from protomask.data import Planted, to_tensor
from protomask.loading import load_model
from protomask.model import class_prototypes, untouched
from protomask.store import read_regions, read_scores
from tests.test_locate import box_iou, pearson

ROOT = Path(__file__).parents[1]
DEMO = "demo:protopnet"


def demo_images(count: int, split: str = "test") -> tuple[Planted, torch.Tensor]:
    model = load_model(DEMO).model
    data = Planted("birds", split, count=count)
    return data, to_tensor([data[i].image for i in range(count)], model.mean, model.std)


def test_the_shipped_model_knows_planted_birds() -> None:
    loaded = load_model(DEMO)
    data, images = demo_images(120)
    with untouched(loaded.model.module), torch.no_grad():
        logits = loaded.model.logits(images)
    labels = torch.tensor([data[i].label for i in range(120)])
    assert loaded.class_names == tuple(data.class_names)
    assert float((logits.argmax(1) == labels).double().mean()) >= 0.98  # type: ignore[union-attr]
    assert sum(file.stat().st_size for file in loaded.folder.rglob("*") if file.is_file()) < 3_000_000  # type: ignore[union-attr]


def test_every_prototype_has_a_source_that_activates_it() -> None:
    loaded = load_model(DEMO)
    assert loaded.description is not None
    for prototype, source in enumerate(loaded.description.prototypes):
        stored = loaded.source(prototype)
        assert stored is not None
        image, box = stored
        assert image.shape[:2] == loaded.size
        assert box is not None
        with untouched(loaded.model.module), torch.no_grad():
            features = to_tensor([image], loaded.model.mean, loaded.model.std)
            distance = loaded.model.module.push_forward(features)[1][0, prototype].min()  # type: ignore[union-attr]
        # At a distance of zero rounding moves the log activation by .1, so the distance itself is compared.
        assert float(distance) < 1e-4
        assert source.activation == pytest.approx(9.21, abs=0.2)
        assert prototype in class_prototypes(loaded.model, [source.label]).tolist()


@pytest.mark.parametrize("method", ["mdm", "single-mask", "upsampling", "upsampling-centred"])
def test_batching_changes_nothing_on_a_real_model(method: str) -> None:
    """The design's tolerance for float32: Pearson .999 and box IoU .95 for 99 % of the pairs."""
    model = load_model(DEMO).model
    _, images = demo_images(12, "dev")
    targets = [(i, p) for i in range(12) for p in (2 * i % 24, (2 * i + 1) % 24)]
    whole = protomask.locate(model, images, targets, method, batch=64)
    keep = whole.located
    assert int(keep.sum()) > 12
    for batch in (1, 7):
        parts = protomask.locate(model, images, targets, method, batch=batch)
        assert torch.equal(parts.located, keep)
        assert (pearson(whole.maps[keep], parts.maps[keep]) >= 0.999).double().mean() >= 0.99
        assert (box_iou(whole.boxes[keep], parts.boxes[keep]) >= 0.95).double().mean() >= 0.99


def test_the_demo_writes_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, drawn = [], demo.wrong_versus_right

    def told(*args: Any, wrong_label: str) -> Any:
        labels.append(wrong_label)
        return drawn(*args, wrong_label=wrong_label)

    monkeypatch.setattr(demo, "wrong_versus_right", told)
    assert main(["demo", "--out", str(tmp_path), "--pairs", "4", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "4 pairs scored" in said
    assert labels == ["Upsampled similarity map", "Upsampled occurrence map"]  # a ProtoPNet's, an XProtoNet's
    scores = read_scores(tmp_path / "scores.json")[DEMO]
    assert scores["annotation"]["pointing-game"].mean == 1
    assert scores["mdm"]["energy"].mean > scores["upsampling"]["energy"].mean
    regions = read_regions(tmp_path / "regions.json")
    assert {r.method for r in regions.regions} >= {"mdm", "upsampling"}
    for name in ("wrong-versus-right", "looks-like", "bank"):
        assert cv2.imread(str(tmp_path / f"{name}.png")) is not None
    page = (tmp_path / "report.html").read_text()
    for heading in ("This looks like that", "Wrong versus right", "Sanity checks", "The same image under every method"):
        assert f">{heading}</h2>" in page
    assert "Beside it: demo:xprotonet" in page
    assert "demo:xprotonet" in read_scores(tmp_path / "scores.json")
    assert (tmp_path / "xprotonet" / "report.html").is_file()
    assert not re.search(r"(src|href)=.(?!data:|#)", page)


def test_two_models_stand_next_to_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(load_model(DEMO).folder, other)  # type: ignore[arg-type]
    out = tmp_path / "out"
    arguments = ["demo", "--out", str(out), "--pairs", "1", "--quiet", "--model", DEMO]
    assert main([*arguments, "--model", str(other)]) == 0
    said = capsys.readouterr().out
    assert f"{DEMO} mdm" in said
    assert "other upsampling" in said
    assert set(read_scores(out / "scores.json")) == {DEMO, "other"}
    assert set(read_scores(out / "other" / "scores.json")) == {"other"}
    page = (out / "report.html").read_text()
    assert "Wrong versus right" in page
    told = page[page.index(">Beside it: other<") :]
    assert told.count("<table") >= 2  # the scores of the other model, too
    assert "its own report" in told
    assert "Beside it" not in (out / "other" / "report.html").read_text()
    assert main(["report", str(out)]) == 0  # from the files alone, and still of both
    assert "Beside it: other" in (out / "report.html").read_text()
    for name in ("report.html", "regions.json", "wrong-versus-right.png"):
        assert (out / name).is_file()
        assert (out / "other" / name).is_file()
    assert main([*arguments, "--model", DEMO]) == 2
    assert "--model: expected each model once" in capsys.readouterr().err


def test_locate_on_the_demo_model_shows_sources(tmp_path: Path) -> None:
    data, _ = demo_images(1)
    cv2.imwrite(str(tmp_path / "bird.png"), data[0].image[..., ::-1])
    out = tmp_path / "out"
    assert main(["locate", DEMO, str(tmp_path / "bird.png"), "--out", str(out), "--quiet"]) == 0
    assert len(list((out / "looks-like").iterdir())) == 1
    assert len(list((out / "panels").iterdir())) == 3


def test_the_training_command_trains(tmp_path: Path) -> None:
    """The shipped model's own command with fewer scenes and epochs."""
    script = (ROOT / "benchmarks" / "train_planted.sh").read_text(encoding="utf-8")
    command = script[script.index("protomask train") :].replace("\\\n", " ")
    command = command.replace('"${3:-planted}"', "planted").replace('"$1"', "0").replace('"$2"', str(tmp_path / "run"))
    shorter = ["--scenes", "1600", "--joint-epochs", "8", "--push-every", "4", "--erase", "0", "--quiet", "--no-locate"]
    assert main([*shlex.split(command)[1:], *shorter]) == 0
    entries = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    joint = [entry for entry in entries if entry["stage"] == "joint"]
    assert joint[-1]["cross_entropy"] < 0.5 * joint[0]["cross_entropy"]
    assert joint[-1]["train_accuracy"] > 0.6
    # So few scenes are half learnt by heart; still twelve classes are told apart twice as well as by chance. 960 scenes
    # give .13 or more than .17, as threads and processor round; 1,600 give .42 to .77 over two seeds.
    assert entries[-1]["test_accuracy"] > 2 / 12
    assert load_model(str(tmp_path / "run")).class_names == load_model(DEMO).class_names


def test_the_cost_of_a_pass_is_measured() -> None:
    loaded = load_model(DEMO)
    forward, both = (seconds_per_pass(loaded, 8, gradient=g) for g in (False, True))
    assert forward > 0
    assert both > 0
