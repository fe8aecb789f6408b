"""``--data package.module:factory``: a data set of the user's own is stored, resumed and reported as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protomask.cli import main
from protomask.data import Dataset, make_dataset
from protomask.errors import InputError
from protomask.evaluation import evaluate
from protomask.reporting.results import read_results
from tests.toys import BlockScenes, ConvModel, block_model

MODEL, SCENES = "tests.test_own_data:blocks", "tests.test_own_data:scenes"
ASKED: list[dict[str, Any]] = []


def blocks() -> object:
    return block_model()


def scenes(size: tuple[int, int], split: str = "test", root: str | None = None) -> Dataset:
    ASKED.append({"size": size, "split": split, "root": root})
    return BlockScenes(9 if split == "test" else 6)


def run(out: Path, *more: str, data: str = SCENES) -> int:
    common = ["--methods", "saliency,random,annotation", "--metrics", "energy,pointing-game", "--pairs", "5"]
    return main(["evaluate", MODEL, "--data", data, "--out", str(out), "--quiet", "--panels", "1", *common, *more])


def test_it_is_scored_as_in_python_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ASKED.clear()
    assert run(tmp_path) == 0
    assert ASKED == [{"size": (32, 32), "split": "test", "root": None}]
    results = read_results(tmp_path)
    wanted = evaluate(block_model(), BlockScenes(9), ["saliency"], pairs=5, metrics=("energy",))
    energy = np.asarray(wanted.values["saliency"]["energy"])
    assert results.values["saliency"]["energy"] == pytest.approx(energy, abs=1e-6)
    assert (tmp_path / "report.html").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.npz")}
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.npz")}
    assert "100% is stored" in capsys.readouterr().out


def test_the_factory_is_told_what_the_options_say(tmp_path: Path) -> None:
    ASKED.clear()
    assert run(tmp_path, "--split", "train", "--root", "somewhere") == 0
    assert ASKED == [{"size": (32, 32), "split": "train", "root": "somewhere"}]


def no_samples(size: tuple[int, int], split: str) -> Dataset:
    return BlockScenes(0)


def no_arguments() -> Dataset:
    return BlockScenes()


def no_data(size: tuple[int, int], split: str) -> object:
    return ConvModel()


WRONG = [
    ("tests.test_own_data:nothing", r"--data: expected package\.module:factory, got 'tests\.test_own_data:nothing' \("),
    ("no.such.module:scenes", r"--data: expected package\.module:factory, got .*No module named"),
    ("tests.test_own_data:MODEL", r"which is a str"),
    ("tests.test_own_data:no_arguments", r"--data: expected a factory that takes size, split, got "),
    ("tests.test_own_data:no_samples", r"--data: expected a data set .*, got one without samples"),
    ("tests.test_own_data:no_data", r"--data: expected a data set .*, got a ConvModel without name, class_names"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_no_data_set_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_dataset(text, size=(32, 32), split="test")


def test_samples_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"--data: expected samples of the model's size \(64, 64\), got \(32, 32\)"):
        make_dataset(SCENES, size=(64, 64), split="test")


def test_options_of_other_kinds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--species", "1") == 2
    assert "species: expected nothing, since tests.test_own_data:scenes has no such option" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, data="mine")
    assert "package.module:factory, got 'mine'" in capsys.readouterr().err
