"""Metrics added to an evaluation are scored from the maps that it stored: as if all had been asked for at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import protomask
from protomask import sanity
from protomask.cli import main
from protomask.data import Dataset
from protomask.jobs import evaluating
from protomask.records import Localisation
from protomask.store import read_run, read_shard
from protomask.store.shards import as_stored, write_shard
from tests.killing import contents
from tests.test_studies import MODEL, Damaged
from tests.toys import BlockScenes

METHODS = ("mdm-fast", "single-mask", "upsampling", "random", "annotation")
FIRST, MORE = "energy,deletion-30", "insertion,sufficiency-drop@blur"


@pytest.fixture(autouse=True)
def scenes(use: Callable[[Dataset], Dataset]) -> Dataset:
    """What the commands open unless a test puts another data set there."""
    return use(BlockScenes(12, masks=False))


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The methods that located something, by the module that asked for it."""
    seen: dict[str, list[str]] = {"pairs": [], "shuffled": []}
    for name, module in (("pairs", protomask.evaluation), ("shuffled", sanity)):
        real = module.locate

        def locate(*args: Any, name: str = name, real: Callable[..., Any] = real, **options: Any) -> Localisation:
            found: Localisation = real(*args, **options)
            seen[name].append(found.method)
            return found

        monkeypatch.setattr(module, "locate", locate)
    return seen


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The metrics of every call that scores."""
    seen: list[tuple[str, ...]] = []
    real = evaluating.score_chunk

    def score_chunk(*args: Any, metrics: Any, **options: Any) -> Mapping[str, torch.Tensor]:
        seen.append(tuple(metrics))
        return real(*args, metrics=metrics, **options)

    monkeypatch.setattr(evaluating, "score_chunk", score_chunk)
    return seen


def evaluate_into(out: Path, metrics: str, *more: str) -> int:
    common = ["--data", "planted", "--methods", ",".join(METHODS), "--pairs", "6", "--panels", "1", "--quiet"]
    return main(["evaluate", MODEL, "--out", str(out), *common, "--batch", "8", "--metrics", metrics, *more])


def results(out: Path) -> dict[str, str]:
    """The files of a folder, those of the shards of its present plan only, and not its report: it tells the command."""
    run = read_run(out)
    mine = {f"shards/{shard.key}.npz" for shard in run.plan.shards}
    kept = contents(out)
    return {
        name: digest
        for name, digest in kept.items()
        if (name in mine or not name.startswith("shards/")) and name not in ("report.html", "run.json")
    }


def test_in_steps_is_as_at_once_and_locates_once(
    tmp_path: Path, located: dict[str, list[str]], scored: list[tuple[str, ...]]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluate_into(whole, f"{FIRST},{MORE}") == 0
    located["pairs"].clear()
    assert evaluate_into(out, FIRST) == 0
    assert sorted(set(located["pairs"])) == sorted(METHODS)
    located["pairs"].clear()
    scored.clear()
    assert evaluate_into(out, f"{FIRST},{MORE}") == 0
    assert located == {"pairs": [], "shuffled": []}
    assert set(scored) == {("insertion", "sufficiency-drop@blur")}
    assert results(out) == results(whole)


def test_what_two_earlier_runs_scored_is_put_together(
    tmp_path: Path, located: dict[str, list[str]], scored: list[tuple[str, ...]]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluate_into(whole, f"{FIRST},{MORE}") == 0
    assert evaluate_into(out, FIRST) == 0
    assert evaluate_into(out, MORE) == 0
    located["pairs"].clear()
    scored.clear()
    assert evaluate_into(out, f"{FIRST},{MORE}") == 0
    assert (located["pairs"], scored) == ([], [])
    assert results(out) == results(whole)


def test_shuffled_weights_are_located_under_and_only_once(tmp_path: Path, located: dict[str, list[str]]) -> None:
    assert evaluate_into(tmp_path / "whole", "energy,insertion,randomisation") == 0
    assert evaluate_into(tmp_path / "out", "energy") == 0
    located.update(pairs=[], shuffled=[])
    assert evaluate_into(tmp_path / "out", "energy,randomisation") == 0
    assert located["pairs"] == []
    assert sorted(set(located["shuffled"])) == sorted(METHODS)
    located["shuffled"].clear()
    assert evaluate_into(tmp_path / "out", "energy,insertion,randomisation") == 0
    assert located == {"pairs": [], "shuffled": []}
    assert results(tmp_path / "out") == results(tmp_path / "whole")


@pytest.mark.parametrize("change", [["--seed", "1"], ["--batch", "4"], ["--threads", "2"]])
def test_maps_of_other_settings_are_not_taken(change: list[str], tmp_path: Path, located: dict[str, list[str]]) -> None:
    assert evaluate_into(tmp_path, FIRST) == 0
    located["pairs"].clear()
    assert evaluate_into(tmp_path, MORE, *change) == 0
    assert sorted(set(located["pairs"])) == sorted(METHODS)


def test_maps_of_other_images_are_not_taken(
    use: Callable[[Dataset], Dataset], tmp_path: Path, located: dict[str, list[str]]
) -> None:
    assert evaluate_into(tmp_path, FIRST) == 0

    class Brighter(BlockScenes):
        def _image(self, index: int, without: int | None = None) -> np.ndarray:
            return super()._image(index, without) ^ np.uint8(1)

    use(Brighter(12, masks=False))
    located["pairs"].clear()
    assert evaluate_into(tmp_path, MORE) == 0
    assert sorted(set(located["pairs"])) == sorted(METHODS)


@pytest.mark.parametrize("how", ["truncated", "another's"])
def test_a_damaged_shard_is_located_anew(how: str, tmp_path: Path, located: dict[str, list[str]]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluate_into(whole, MORE) == 0
    assert evaluate_into(out, FIRST) == 0
    run = read_run(out)
    broken, other = (next(s for s in run.plan.shards if s.method == m) for m in ("upsampling", "random"))
    content = run.path(broken if how == "truncated" else other).read_bytes()
    run.path(broken).write_bytes(content[:-200] if how == "truncated" else content)
    located["pairs"].clear()
    assert evaluate_into(out, MORE) == 0
    assert located["pairs"] == ["upsampling"]
    assert results(out) == results(whole)


def test_a_pair_that_failed_before_fails_again_alone(
    use: Callable[[Dataset], Dataset], tmp_path: Path, located: dict[str, list[str]]
) -> None:
    use(Damaged(12, masks=False))
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert evaluate_into(whole, MORE) == 0
    assert evaluate_into(out, FIRST) == 0
    located["pairs"].clear()
    assert evaluate_into(out, MORE) == 0
    assert located["pairs"] == []
    assert results(out) == results(whole)


def test_the_cost_is_that_of_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("6 pairs"))

    assert evaluate_into(tmp_path, FIRST) == 0
    assert "of the maps to score are there" not in told()
    assert evaluate_into(tmp_path, f"{FIRST},sufficiency-drop") == 0
    said = told()
    assert "0 forward + gradient and 10 forward passes per pair" in said  # two of each method
    assert "100% of the maps to score are there" in said


@pytest.mark.parametrize("method", ["mdm-fast", "single-mask", "centre"])
def test_maps_as_stored_are_those_that_a_shard_gives_back(method: str, tmp_path: Path) -> None:
    from tests.test_shards import located as find
    from tests.test_shards import shard

    found = find(method)
    wanted = as_stored(found)
    for k, record in enumerate((found, wanted)):
        write_shard(tmp_path / f"{k}.npz", shard(record))
        got = read_shard(tmp_path / f"{k}.npz").found
        assert got is not None
        assert torch.equal(got.maps, wanted.maps)
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert torch.equal(as_stored(wanted).maps, wanted.maps)
    assert float((wanted.maps - found.maps).abs().max()) < 1.6e-5
    outside = replace(found, maps=found.maps * 3 - 1)
    assert torch.equal(as_stored(outside).maps, outside.maps)
