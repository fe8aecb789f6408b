"""The speed benchmark's own arithmetic: a line through two parts of a method's work, and what the table says of it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protomask.localisers import Maps, Request, make_localiser
from protomask.model import contract
from protomask.records import Targets
from tests.toys import ConvModel, scenes

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("speed")
    del sys.modules["speed"]


def subject(speed: Any, whole: bool, pairs: int = 4) -> Any:
    model = contract(ConvModel().eval())
    targets = Targets(torch.arange(pairs), torch.arange(pairs) % 4)
    request = Request(model, scenes(pairs), targets, torch.ones(pairs), torch.zeros(pairs))
    return speed.Subject("toy", request, whole, pairs)


def test_what_is_done_once_counts_once(speed: Any) -> None:
    assert speed.extended([3, 7], [10 + 3 * 2, 10 + 7 * 2], 67) == 10 + 67 * 2
    assert speed.extended([10], [4], 750) == 300
    work = speed.Work(((None, 3), (None, 7)), 67, 4)
    work.add([16, 24])
    work.add([3, 7])
    assert work.seconds == [(10 + 67 * 2) / 4, 67 / 4]


def test_the_parts_of_the_presets_have_the_kinds_of_passes_that_are_left(speed: Any) -> None:
    for name in ("mdm", "mdm-best"):
        whole = make_localiser(name, {})
        few, many = (replace(whole, **settings) for settings in speed.parts_of(name, 8))
        assert few.choose == many.choose == whole.choose
        read = [one.gradients + one.path for one in (few, many, whole)]
        masks = [one.passes - own for one, own in zip((few, many, whole), read, strict=True)]
        assert (masks[1] - masks[0]) / (read[1] - read[0]) == pytest.approx((masks[2] - masks[1]) / (read[2] - read[1]))


def test_the_parts_differ_and_are_less_than_the_whole(speed: Any) -> None:
    methods = speed.chosen(",".join([*speed.PRESETS, *speed.OTHERS]))
    assert {"loop, scales apart", "loop, scales together"} < set(methods)
    works = speed.works_of(subject(speed, whole=False), methods)
    assert "occlusion" not in works
    assert len(works["mdm-fast"].parts) == len(works["naive"].parts) == 1
    for name in set(methods) - {"occlusion", "mdm-fast"}:
        (_, few), (_, many) = works[name].parts
        assert 0 < few < many < works[name].passes == speed.all_passes(methods[name])
    assert works["extremal"].pairs == works["rise"].pairs == 2
    assert works["mdm"].pairs == 4
    whole = speed.works_of(subject(speed, whole=True), methods)
    assert all(len(work.parts) == 1 for work in whole.values())


def test_the_line_finds_the_cost_of_the_whole(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the passes move, and what is done once: the parts tell the whole's time exactly."""
    now = [0.0]

    def pretend(self: Any, request: Request) -> Maps:
        now[0] += 10 + self.passes * len(request.targets)
        return Maps(torch.zeros(len(request.targets), 32, 32), masks=True)

    monkeypatch.setattr(type(make_localiser("smoothgrad", {})), "__call__", pretend)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    one = subject(speed, whole=False)
    works = {"smoothgrad": speed.method_work(one, "smoothgrad", make_localiser("smoothgrad", {}))}
    speed.time_all(one, works, 3)
    assert works["smoothgrad"].seconds == [10 / 4 + 25] * 3


def test_the_table_says_how_it_was_timed_and_what_a_naive_step_costs(speed: Any) -> None:
    one = subject(speed, whole=False)
    methods = {"mdm": make_localiser("mdm", {}), "occlusion": make_localiser("occlusion", {})}
    works = {name: speed.Work((), 1, 4, [seconds]) for name, seconds in (("floor@2", 2.0), ("floor@4", 1.0))}
    works |= {"naive": speed.Work((), 1, 1, [1500.0]), "mdm": speed.Work((), 34, 4, [20.0, 30.0, 40.0])}
    result = speed.summary(one, works, methods)
    assert result["a step of naive in floors"] == 2
    text = speed.table("toy", 1, result)
    assert "in two parts" in text
    assert "naive step = 2.00 floors" in text
    assert "| mdm | 34 | 4 | 50 | 30.0 | 0.88 | 33 % |" in text
    assert "occlusion" not in text
    assert speed.summary(subject(speed, whole=True), works, methods)["timed"] == "whole"


def test_a_subject_may_be_left_out(speed: Any) -> None:
    args = argparse.Namespace(planted="", networks="none", pairs=12, batch=32, device="cpu")
    assert speed.subjects(args) == []
    args.networks = "vgg19:224,mobilenet_v2:225"
    assert [one.args[:2] for one in speed.subjects(args)] == [("vgg19", 224), ("mobilenet_v2", 225)]


@pytest.mark.parametrize(("pairs", "batch", "left"), [(48, 32, (8, 8)), (3, 32, (3, 3)), (7, 2, (6, 2))])
def test_pairs_fill_whole_passes(speed: Any, pairs: int, batch: int, left: tuple[int, int]) -> None:
    made = speed.pretrained("mobilenet_v2", 64, pairs, batch, "cpu")
    assert (len(made.request.targets), made.batch) == left
    assert made.name == "mobilenet_v2 at 64 px"
