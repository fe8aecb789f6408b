"""Long runs: continued where they stopped, never from stale results, by one process or by several."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from pycocotools.coco import COCO

import protomask
from protomask import files
from protomask.cli import main
from protomask.commands import evaluate as evaluate_command
from protomask.commands import locate as locate_command
from protomask.commands.longrun import batch_of
from protomask.commands.publish import amend
from protomask.data import Sample
from protomask.errors import DataError, InputError, ModelError
from protomask.jobs import cutting, digests, evaluating, locating, work
from protomask.jobs.digests import digest, digest_method, digest_model, digest_sample, digest_weights
from protomask.jobs.folder import Folder
from protomask.jobs.status import status_of
from protomask.model import contract
from protomask.pairs import draw_pairs
from protomask.store import Plan, read_run, render
from protomask.store.plans import write_plan
from protomask.visualise.report import Picture
from tests.killing import contents
from tests.toys import BlockScenes, ConvModel, block_model

ROOT = Path(__file__).parents[1]
MODEL = "tests.toys:block_model"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "IMAGES_PER_CHUNK", 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images in the toy model's size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), BlockScenes()[index].image[..., ::-1])
    return folder


def locate_into(out: Path, photos: Path, *more: str) -> int:
    common = ["--beside", "centre", "--targets", "all", "--panels", "1", "--quiet", "--set", "steps=2"]
    return main(["locate", MODEL, str(photos), "--out", str(out), *common, *more])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the shards that were computed, in order."""
    done: list[str] = []
    for job in (locating.LocateJob, evaluating.EvaluateJob):
        real = job.compute

        def compute(self: Any, shard: Any, read: Any, real: Callable[..., Any] = real) -> Any:
            result = real(self, shard, read)
            done.append(shard.method)
            return result

        monkeypatch.setattr(job, "compute", compute)
    return done


def breaking(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> Callable[[], None]:
    """Lets ``after`` localisations succeed, then raises; returns what heals it."""
    real, calls = locating.locate, [0]

    def locate(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return real(*args, **options)

    for module in (locating, protomask.evaluation):
        monkeypatch.setattr(module, "locate", locate)

    def heal() -> None:
        for module in (locating, protomask.evaluation):
            monkeypatch.setattr(module, "locate", real)

    return heal


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert locate_into(whole, photos) == 0
    assert counted == ["mdm", "centre"] * 3
    for broken in (1, 2, 1):
        counted.clear()
        heal = breaking(monkeypatch, broken, KeyboardInterrupt())
        assert locate_into(out, photos) == 130
        heal()
        assert len(counted) == broken
        assert "the same command goes on from there" in capsys.readouterr().err
        assert COCO(str(out / "regions.json")).dataset["images"]
    counted.clear()
    assert locate_into(out, photos) == 0
    assert len(counted) == 2
    assert contents(out) == contents(whole)
    counted.clear()
    assert locate_into(out, photos) == 0
    assert counted == []
    assert contents(out) == contents(whole)


def test_a_changed_setting_never_reuses_and_going_back_does(photos: Path, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    assert locate_into(out, photos) == 0
    first = contents(out)
    for change, methods in (
        (["--seed", "1"], {"mdm", "centre"}),
        (["--set", "area_weight=1"], {"mdm"}),
        (["--batch", "4"], {"mdm", "centre"}),
        (["--targets", "top:1"], {"mdm", "centre"}),
        (["--region", "own-area"], {"mdm", "centre"}),
        (["--threads", "2"], {"mdm", "centre"}),
    ):
        counted.clear()
        assert locate_into(out, photos, *change) == 0
        assert set(counted) == methods, change
        other = tmp_path / "other"
        assert locate_into(other, photos, *change) == 0
        made, wanted = contents(out), contents(other)
        assert wanted.items() <= made.items()
        assert all(name.startswith("shards/") for name in made.keys() - wanted.keys())  # no picture of another run
        shutil.rmtree(other)
    counted.clear()
    assert locate_into(out, photos, "--threads", "1") == 0
    assert counted == []
    again = contents(out)
    assert first.items() <= again.items()
    assert all(name.startswith("shards/") for name in again.keys() - first.keys())
    photo = cv2.imread(str(photos / "4.png"))
    cv2.imwrite(str(photos / "4.png"), photo[::-1])
    assert locate_into(out, photos) == 0
    assert counted == ["mdm", "centre"]  # of the one chunk that holds the changed image


@pytest.mark.parametrize("swallowed", [1, 2, 10])
def test_an_interrupt_that_a_library_swallows_is_seen_after_the_shard(
    swallowed: int,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = locating.locate, [0]

    def locate(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == swallowed:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(cutting, "IMAGES_PER_CHUNK", 1)
    monkeypatch.setattr(locating, "locate", locate)
    out, handler = tmp_path / "out", signal.getsignal(signal.SIGINT)
    assert locate_into(out, photos) == 130
    assert f"stopped; {swallowed} of 10 shards are stored" in capsys.readouterr().err
    assert calls == [swallowed]
    assert signal.getsignal(signal.SIGINT) is handler
    assert locate_into(out, photos) == 0
    assert calls == [10]


def test_a_handler_of_the_users_own_stays(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, told = locating.locate, []

    def locate(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return real(*args, **options)

    monkeypatch.setattr(locating, "locate", locate)
    before = signal.signal(signal.SIGINT, lambda *_: told.append("interrupted"))
    try:
        assert locate_into(tmp_path / "out", photos) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) == 6


def test_a_folder_keeps_its_thread_count(photos: Path, tmp_path: Path, counted: list[str]) -> None:
    seen = []
    out = tmp_path / "out"
    assert locate_into(out, photos, "--threads", "2") == 0
    counted.clear()
    assert torch.get_num_threads() == 1
    assert locate_into(out, photos) == 0
    assert counted == []
    with work.threads(3):
        seen.append(torch.get_num_threads())
    assert seen == [3]
    assert torch.get_num_threads() == 1


def test_digests_follow_what_matters() -> None:
    model = ConvModel()
    plain = digest_model(contract(model))
    assert digest_model(contract(ConvModel())) == plain
    model.train()
    assert digest_model(contract(model)) == plain
    assert digest_model(contract(ConvModel(seed=1))) != plain
    with torch.no_grad():
        model.vectors[0, 0] += 1e-6
    assert digest_model(contract(model)) != plain
    other = ConvModel()
    other.activation_range = (0.0, 2.0)  # type: ignore[assignment]
    assert digest_model(contract(other)) != plain
    moved = block_model()
    moved.blocks = [(4, 4, 12, 13), *moved.blocks[1:]]
    assert digest_model(contract(moved)) != digest_model(contract(block_model()))
    assert digest_method("mdm", {}) != digest_method("mdm", {"steps": 3})
    assert digest_method("mdm", {}) == digest_method("mdm", {"steps": protomask.MDM().steps})
    data = BlockScenes()
    assert digest_sample(data[0]) == digest_sample(data[0]) != digest_sample(data[1])
    assert digest({1: "x", "1": "y", (2, 3): None}) != digest({1: "y", "1": "x", (2, 3): None})
    assert digest([torch.zeros(2)]) != digest([torch.zeros(2, 1)])
    assert digest({"a": 1, "b": np.float32(2)}) == digest({"b": np.float32(2), "a": 1}) != digest({"a": 1, "b": 3})


class Wrapped:
    """No module, and no attribute of that name: the network lies in one of its own."""

    num_prototypes = 4

    def __init__(self, seed: int = 0, power: float = 1.0) -> None:
        self.net = ConvModel(seed=seed)
        self.nets = [ConvModel(seed=seed)]
        self.options = Options(power)

    def activations(self, images: torch.Tensor, prototypes: torch.Tensor | None = None) -> torch.Tensor:
        return self.net.activations(images, prototypes)


@dataclass
class Options:
    power: float


class Adapted(Wrapped):
    """A module, and a setting of its own beside it."""

    def __init__(self, scale: float) -> None:
        self.module, self.scale = ConvModel(), scale


def test_a_digest_of_weights_tells_trainings_apart_and_nothing_else() -> None:
    model = ConvModel()
    plain = digest_weights(contract(model))
    assert plain == digest_weights(contract(ConvModel()))
    model.train().activation_range = (0.0, 2.0)  # type: ignore[assignment]
    assert digest_weights(contract(model)) == plain
    with torch.no_grad():
        model.vectors[0, 0] += 1e-6
    assert digest_weights(contract(model)) != plain
    assert digest_weights(contract(block_model())) is None


def test_digests_see_what_a_model_holds_in_attributes_of_its_own() -> None:
    plain = digest_model(contract(Wrapped()))
    assert digest_model(contract(Wrapped())) == plain
    assert digest_model(contract(Wrapped(power=2.0))) != plain
    for change in ("net", "nets"):
        other = Wrapped()
        changed = other.net if change == "net" else other.nets[0]
        with torch.no_grad():
            changed.vectors[0, 0] += 1e-6
        assert digest_model(contract(other)) != plain, change
    assert digest_model(contract(Adapted(1.0))) == digest_model(contract(Adapted(1.0)))
    assert digest_model(contract(Adapted(1.0))) != digest_model(contract(Adapted(2.0)))


def test_digests_see_the_code_of_a_decorated_function_and_of_the_families(tmp_path: Path) -> None:
    found = []
    for text in ("pass", "return 1"):
        path = tmp_path / "pm_decorated.py"
        path.write_text(f"import torch\n@torch.no_grad()\ndef f():\n    {text}\n")
        spec = importlib.util.spec_from_file_location("pm_decorated", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        digests._file.cache_clear()
        found.append(digests.code_of(module.f))
    assert found[0] != found[1]
    assert {"protomask", "protopnet_ext", "xprotonet_ext", "torch"} <= digests.versions().keys()


def test_images_that_were_moved_are_found_where_they_are(photos: Path, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "out"
    assert locate_into(out, photos) == 0
    counted.clear()
    moved = photos.rename(tmp_path / "moved")
    assert locate_into(out, moved, "--panels", "5") == 0
    assert counted == []
    assert len(list((out / "panels").iterdir())) == 15
    assert {Path(i["file_name"]).parent for i in COCO(str(out / "regions.json")).dataset["images"]} == {moved}
    assert {Path(item["path"]).parent for item in read_run(out).plan.items} == {moved}
    shutil.rmtree(out / "panels")
    assert locate_into(out, moved, "--panels", "5") == 0
    assert len(list((out / "panels").iterdir())) == 15


def test_processes_that_end_together_write_one_after_the_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the other would be taken for an earlier run's and removed under its hands."""
    real, held = locate_command.write_tables, []

    def write_tables(folder: Path, *more: Any) -> Any:
        lock = FileLock(folder / "shards" / "plan.lock")
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
        held.append(folder)
        return real(folder, *more)

    monkeypatch.setattr(locate_command, "write_tables", write_tables)
    assert locate_into(tmp_path / "out", photos) == 0
    assert held == [tmp_path / "out"]


def test_a_shard_under_the_name_of_another_is_refused(photos: Path, tmp_path: Path) -> None:
    assert locate_into(tmp_path / "out", photos) == 0
    run = read_run(tmp_path / "out")
    first, second = run.plan.shards[:2]
    shutil.copy(run.path(second), run.path(first))
    with pytest.raises(DataError, match=f"expected the shard {first.key}, got the shard {second.key}"):
        run.read(first)


def test_on_a_gpu_a_folder_keeps_the_batch_that_it_began_with(tmp_path: Path) -> None:
    write_plan(tmp_path, Plan("locate", {"batch": 7, "device": "cuda"}, (), ()))
    assert batch_of("auto", None, "cuda", tmp_path) == 7
    assert batch_of(9, None, "cuda", tmp_path) == 9
    for memory, device, out in ((1 << 30, "cuda", tmp_path), (None, "cpu", tmp_path), (None, "cuda", tmp_path / "new")):
        assert batch_of("auto", memory, device, out) == "auto"


def test_nothing_is_tidied_where_nobody_can_tell_who_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan("locate", {"threads": 1}, (), (), {})
    half = tmp_path / "shards" / f".a.npz.{'0' * 16}"
    half.parent.mkdir()
    half.write_bytes(b"")
    real = FileLock.acquire

    def acquire(self: FileLock, *args: Any, **options: Any) -> Any:
        if Path(self.lock_file).parent.name == "workers":
            raise NotImplementedError("no locks")
        return real(self, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with Folder(tmp_path, plan):
        assert half.exists()
    monkeypatch.setattr(FileLock, "acquire", real)
    with Folder(tmp_path, plan):
        assert not half.exists()


def test_shares_make_the_whole(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert locate_into(whole, photos) == 0
    assert locate_into(out, photos, "--shard", "1/2") == 0
    assert not (out / "regions.json").exists()
    assert (status_of(out).shards_done, status_of(out).shards_total) == (2, 6)
    assert locate_into(out, photos, "--assemble") == 0
    assert "incomplete: 4 of 6 missing" in capsys.readouterr().out
    assert len(json.loads((out / "regions.json").read_text())["images"]) == 2
    assert locate_into(out, photos, "--shard", "0/2") == 0
    assert locate_into(out, photos, "--assemble") == 0
    assert contents(out) == contents(whole)
    assert locate_into(out, photos, "--shard", "0/2", "--assemble") == 2
    for wrong in ("2/2", "x", "1"):
        with pytest.raises(SystemExit):
            locate_into(out, photos, "--shard", wrong)
    with pytest.raises(InputError, match="--shard: expected I/N"):
        work.Terms(share=(3, 2))


def test_one_bad_image_is_told_of_and_strict_stops_there(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "2.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert locate_into(out, photos) == 0
    assert "4 images located, 1 images skipped" in capsys.readouterr().out
    assert [failure.item for failure in status_of(out).failed] == ["2.png"]
    assert locate_into(out, photos, "--strict") == 2
    assert "2.png: expected a complete, readable image" in capsys.readouterr().err
    strict = tmp_path / "strict"
    assert locate_into(strict, photos, "--strict") == 2
    assert 0 < status_of(strict).shards_done < 6
    assert locate_into(strict, photos) == 0
    assert contents(strict) == contents(out)


def test_one_image_that_breaks_the_model_takes_no_other_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import toys

    real = toys.BlockModel.activations

    def activations(self: Any, images: torch.Tensor, prototypes: torch.Tensor | None = None) -> torch.Tensor:
        values = real(self, images, prototypes)
        return torch.where(images.amin((1, 2, 3)) > 0.99, torch.nan, 1.0).view(-1, *[1] * (values.dim() - 1)) * values

    monkeypatch.setattr(toys.BlockModel, "activations", activations)
    cv2.imwrite(str(photos / "2.png"), np.full((32, 32, 3), 255, np.uint8))
    out = tmp_path / "out"
    assert locate_into(out, photos) == 0
    assert [f.item for f in status_of(out).failed] == ["2.png"]
    coco = COCO(str(out / "regions.json"))
    assert sorted(i["name"] for i in coco.dataset["images"]) == ["0.png", "1.png", "3.png", "4.png"]
    rows = {a["image_id"]: a["bbox"] for a in coco.dataset["annotations"] if a["category_id"] == 0}
    assert len(rows) == 4


def test_status_tells_how_far_a_run_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    breaking(monkeypatch, 3, KeyboardInterrupt())
    assert locate_into(out, photos) == 130
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "3 of 6 shards, 18 of 30 maps (60%)" in said
    assert "nobody is at work" in said
    assert "left at that pace" in said
    assert main(["status", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards_done"], told["maps_total"], told["running"], told["failed"]) == (3, 30, [], [])
    assert told["seconds_left"] == pytest.approx(12 / told["per_second"])
    assert told["settings"]["targets"] == "all"
    assert main(["status", str(tmp_path)]) == 2
    assert "plan.json: expected a JSON file, got no such file" in capsys.readouterr().err


def test_a_shard_that_another_holds_is_waited_for(photos: Path, tmp_path: Path, counted: list[str]) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert locate_into(whole, photos) == 0
    counted.clear()
    shutil.copytree(whole, out)
    held = read_run(out).plan.shards[0]
    stored = (out / "shards" / f"{held.key}.npz").read_bytes()
    (out / "shards" / f"{held.key}.npz").unlink()
    ready, lock = threading.Event(), FileLock(out / "shards" / f"{held.key}.lock")

    def other() -> None:
        with lock:
            ready.set()
            threading.Event().wait(1.0)
            (out / "shards" / f"{held.key}.npz").write_bytes(stored)

    # No Folder must tidy while the other holds its lock: it is at work under the same plan.
    with Folder(out, read_run(out).plan):
        thread = threading.Thread(target=other)
        thread.start()
        ready.wait()
        assert locate_into(out, photos) == 0
        thread.join()
    assert counted == []
    assert contents(out) == contents(whole)


# Disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    seed: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert locate_into(whole, photos) == 0
    chance, real, full = random.Random(seed), files.os.fsync, [True]

    def fsync(handle: int) -> None:
        if full[0] and chance.random() < 0.15:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    codes = [locate_into(out, photos) for _ in range(3)]
    assert 2 in codes
    assert "No space left on device" in capsys.readouterr().err
    for shard in read_run(out):
        assert shard.found is not None
    full[0] = False
    assert locate_into(out, photos) == 0
    assert contents(out) == contents(whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, who may mount a small disk")
def test_a_small_disk_fills_and_is_emptied(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "other").write_bytes(b"0" * 72_000)
        out = disk / "out"
        assert locate_into(out, photos, "--panels", "0") == 2
        assert "No space left on device" in capsys.readouterr().err
        (disk / "other").unlink()
        assert locate_into(out, photos, "--panels", "0") == 0
        assert locate_into(whole, photos, "--panels", "0") == 0
        assert contents(out) == contents(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_turns_read_only_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert locate_into(out, photos) == 0

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    assert locate_into(out, photos, "--seed", "3") == 2
    error = capsys.readouterr().err
    assert "Read-only file system" in error
    assert len(error.strip().splitlines()) == 1
    assert len(list(read_run(out))) == 6


# Evaluation ------------------------------------------------------------------------------------------------------


class Broken(BlockScenes):
    """Sample 4 cannot be read; sample 5 not any more after the pairs were drawn."""

    late = False

    def __getitem__(self, index: int) -> Sample:
        if index == 4 or (index == 5 and self.late):
            raise DataError(f"{index}.png: expected a complete, readable image, got rubbish")
        return super().__getitem__(index)


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> BlockScenes:
    data = BlockScenes()
    monkeypatch.setattr(evaluate_command, "dataset_for", lambda args, loaded: data)
    return data


def evaluate_into(out: Path, *more: str) -> int:
    methods = ["--methods", "single-mask,centre,annotation", "--pairs", "9", "--batch", "8", "--panels", "1", "--quiet"]
    return main(["evaluate", MODEL, "--data", "planted", "--out", str(out), *methods, *more])


def test_a_job_scores_what_evaluate_scores(scenes: BlockScenes, tmp_path: Path) -> None:
    assert evaluate_into(tmp_path) == 0
    run = read_run(tmp_path)
    got = evaluating.gather(run, scenes)
    methods = ("single-mask", "centre", "annotation")
    wanted = protomask.evaluate(block_model(), scenes, methods, pairs=9, batch=8)
    assert [vars(pair) for pair in got.pairs.pairs] == [vars(pair) for pair in wanted.pairs.pairs]
    assert (got.fills, got.groups) == (wanted.fills, wanted.groups)
    for method in methods:
        assert got.values[method].keys() == wanted.values[method].keys()
        for metric, values in wanted.values[method].items():
            assert np.array_equal(got.values[method][metric], values, equal_nan=True), (method, metric)
    shard = next(iter(run))
    assert shard.found is not None
    assert render(shard.found, (64, 64)).shape == (4, 64, 64)


def test_an_interrupted_evaluation_goes_on_and_draws_no_pair_again(
    scenes: BlockScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    out, whole = tmp_path / "out" / "made", tmp_path / "whole" / "made"
    for folder in (whole, out):
        folder.parent.mkdir()
    monkeypatch.chdir(whole.parent)  # the report shows the command, which is to be the same
    assert evaluate_into(Path("made")) == 0
    monkeypatch.chdir(out.parent)
    heal = breaking(monkeypatch, 4, KeyboardInterrupt())
    assert evaluate_into(Path("made")) == 130
    heal()
    counted.clear()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pairs were drawn again")

    monkeypatch.setattr("protomask.jobs.drawing.draw_pairs", never)
    assert evaluate_into(Path("made")) == 0
    assert len(counted) == 9 - 4
    assert contents(out) == contents(whole)


def test_another_method_leaves_the_others_alone_and_other_samples_do_not(
    scenes: BlockScenes, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate_into(tmp_path) == 0
    counted.clear()
    assert evaluate_into(tmp_path, "--methods", "mdm,centre") == 0
    assert counted == ["mdm"] * 3
    counted.clear()
    assert evaluate_into(tmp_path, "--metrics", "energy") == 0
    assert len(counted) == 9
    counted.clear()
    monkeypatch.setattr(evaluate_command, "dataset_for", lambda args, loaded: BlockScenes(masks=False))
    assert evaluate_into(tmp_path) == 0
    assert len(counted) == 9


def test_pictures_of_an_earlier_evaluation_do_not_stay(scenes: BlockScenes, tmp_path: Path) -> None:
    left = []
    for panels in ("3", "1"):
        assert evaluate_into(tmp_path, "--panels", panels) == 0
        amend(tmp_path, pictures=[Picture("One", (tmp_path / "panels" / "000.png").read_bytes(), "a picture")])
        left.append([len(list((tmp_path / name).iterdir())) for name in ("panels", "pictures")])
    assert left == [[3, 1], [1, 1]]


def test_a_method_that_suits_no_pair_is_named_with_its_reason(
    scenes: BlockScenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(monkeypatch, 0, ModelError("model: expected one with maps, got none"))
    assert evaluate_into(tmp_path) == 2
    error = capsys.readouterr().err
    assert "pairs: expected at least one that every method could work on" in error
    assert "model: expected one with maps" in error


def test_bad_samples_are_left_out_of_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Broken()
    monkeypatch.setattr(evaluate_command, "dataset_for", lambda args, loaded: data)
    assert evaluate_into(tmp_path / "strict", "--strict") == 2
    assert "4.png: expected a complete" in capsys.readouterr().err
    out = tmp_path / "out"
    assert evaluate_into(out, "--shard", "0/3") == 0
    drawn = len(read_run(out).plan.items)
    assert drawn == 8
    with pytest.raises(DataError, match=r"4\.png"):
        draw_pairs(contract(block_model()), data, 9)
    # A sample may also break between drawing and reading.
    monkeypatch.setattr("protomask.jobs.drawing.digest_sample", lambda sample: "same")
    data.late = True
    plan = read_run(out).plan
    read = evaluating.read_samples(data, plan, None, plan.shards[-1])
    late = [item[0] for item in plan.items[plan.shards[-1].start : plan.shards[-1].stop]]
    assert len(read.samples) == len([index for index in late if index != 5])
    assert [failure.reason[:5] for failure in read.failed] == ["5.png"] * late.count(5)


# Kills and memory ------------------------------------------------------------------------------------------------


def test_processes_that_share_a_folder_are_limited_refused_and_killed(photos: Path, tmp_path: Path) -> None:
    """Of the kills, benchmarks/kill.py makes fifty."""
    run = [sys.executable, "-m", "tests.processes", str(tmp_path), str(photos)]
    ended = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["whole"] == 0
    assert told["shared"] == [0, 0]
    assert told["shared same"]
    assert told["limited"] == 2
    assert "File too large" in told["limited said"]
    assert len(told["limited said"].strip().splitlines()) == 1
    assert (told["limited again"], told["limited same"]) == (0, True)
    assert told["refused"] == 2
    assert f"process {told['pid']} on" in told["refused said"]
    assert "at work there with other settings" in told["refused said"]
    assert told["stopped"] == 130
    assert re.fullmatch(
        r"protomask: stopped; \d+ of 10 shards are stored in .*: the same command goes on from there\n",
        told["stopped said"],
    )
    assert told["killed"]["kills"] >= 5
    assert told["killed"]["resumed"] >= 1
    assert told["killed"]["wrong"] == []


def test_memory_is_flat_over_many_pairs() -> None:
    """benchmarks/memory_flat.py does so over ten thousand."""
    run = [sys.executable, str(ROOT / "benchmarks" / "memory_flat.py"), "--pairs", "900", "--json"]
    told = json.loads(subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True).stdout)
    assert told["pairs"] == 900
    assert told["growth"] < 0.02
