"""Replacing other people's attributes and undoing it, without any family."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protomask.patching import Patch, Replacements, Report, Tally


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Two modules: ``pm_maker`` defines ``make``; ``pm_user`` binds it early."""
    (tmp_path / "pm_maker.py").write_text("def make():\n    return 1\n")
    (tmp_path / "pm_user.py").write_text("from pm_maker import make\n\ndef use():\n    return make()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module
    for name in ("pm_maker", "pm_user"):
        sys.modules.pop(name, None)


def plus_one(original: Callable[..., int]) -> Callable[..., int]:
    return lambda *args: original(*args) + 1


def test_a_function_is_replaced_where_it_is_already_bound(pair: Callable[[str], ModuleType]) -> None:
    user, maker = pair("pm_user"), pair("pm_maker")
    original = maker.make
    replacements = Replacements()
    replacements.wrap(maker, "make", plus_one)
    assert (maker.make(), user.make(), user.use()) == (2, 2, 2)
    assert (maker.make.__name__, maker.make.__module__) == ("make", "pm_maker")
    replacements.undo()
    assert maker.make is user.make is original


def test_a_function_is_replaced_in_modules_that_are_imported_later(pair: Callable[[str], ModuleType]) -> None:
    replacements = Replacements()

    def see(module: ModuleType) -> None:
        if replacements.defines(module, "make"):
            replacements.wrap(module, "make", plus_one)

    replacements.on_import(see)
    user = pair("pm_user")
    assert user.use() == 2
    maker = sys.modules["pm_maker"]
    assert importlib.reload(maker).make() == 2
    replacements.undo()
    assert user.use() == maker.make() == 1
    assert not any(type(finder).__module__ == "protomask.patching" for finder in sys.meta_path)
    assert maker.__spec__ is not None
    assert type(maker.__spec__.loader) is type(maker.__loader__) is type(pair("pm_user").__loader__)


def test_only_the_defining_module_defines(pair: Callable[[str], ModuleType]) -> None:
    user, maker = pair("pm_user"), pair("pm_maker")
    replacements = Replacements()
    assert replacements.defines(maker, "make")
    assert not replacements.defines(user, "make")
    assert not replacements.defines(maker, "absent")
    replacements.wrap(maker, "make", plus_one)
    assert not replacements.defines(maker, "make"), "a second watcher would wrap it twice"
    replacements.undo()


def test_a_failing_import_fails_as_it_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pm_broken.py").write_text("raise ValueError('as written')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    replacements = Replacements()
    replacements.on_import(lambda module: None)
    with pytest.raises(ValueError, match="as written"):
        importlib.import_module("pm_broken")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pm_no_such_module")
    replacements.undo()
    assert "pm_broken" not in sys.modules


@pytest.mark.filterwarnings("ignore:.*Old.find_spec:ImportWarning")  # before Python 3.12
def test_finders_without_find_spec_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def find_module(self, name: str, path: object = None) -> None: ...

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Old()])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pm_no_such_module")
    replacements = Replacements()
    replacements.on_import(lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("pm_no_such_module")
    replacements.undo()


def test_attributes_that_were_absent_are_absent_again() -> None:
    class Base:
        @staticmethod
        def kept() -> int:
            return 1

    class Owner(Base):
        @classmethod
        def made(cls) -> int:
            return 2

    before = vars(Owner)["made"]
    replacements = Replacements()
    replacements.set(Owner, "kept", staticmethod(lambda: 5))
    replacements.set(Owner, "made", classmethod(lambda cls: 6))
    assert (Owner.kept(), Owner.made()) == (5, 6)
    replacements.undo()
    assert (Owner.kept(), Owner.made()) == (1, 2)
    assert "kept" not in vars(Owner)
    assert vars(Owner)["made"] is before


def test_what_somebody_else_replaced_since_stays_theirs(pair: Callable[[str], ModuleType]) -> None:
    maker = pair("pm_maker")
    replacements = Replacements()
    replacements.wrap(maker, "make", plus_one)

    def theirs() -> int:
        return 9

    maker.make = theirs  # type: ignore[attr-defined]
    replacements.undo()
    assert maker.make is theirs


def test_replacements_of_replacements_undo_in_turn(pair: Callable[[str], ModuleType]) -> None:
    maker = pair("pm_maker")
    original = maker.make
    first, second = Replacements(), Replacements()
    first.wrap(maker, "make", plus_one)
    second.wrap(maker, "make", plus_one)
    assert maker.make() == 3
    second.undo()
    assert maker.make() == 2
    first.undo()
    assert maker.make is original


def test_the_report() -> None:
    tally = Tally("toy")
    assert str(tally.report()) == "toy: found nothing to patch: no code that it knows was imported"
    tally.found["m.f"] = None
    assert str(tally.report()) == "toy: patched m.f; nothing was drawn while the patch was in place"
    tally.draw("push")
    tally.draw("push", "too dark")
    tally.located = 1
    report = tally.report()
    assert report == Report("toy", ("m.f",), {"push": 2}, {"push": 1}, 1, {"too dark": 1})
    line = (
        "toy: replaced 1 of 2 regions drawn (push 1 of 2), 1 pairs located; patched m.f; 1 kept as they were: too dark"
    )
    assert str(report) == line
    tally.draw("push")
    assert report.drawn == {"push": 2}, "a report is a snapshot"


def test_a_function_of_other_arguments_is_noted() -> None:
    def theirs(model: object, *, k: int = 5) -> None: ...

    tally = Tally("toy")
    assert tally.knows("m.theirs", theirs, ["k", "model"])
    assert tally.report().notes == ()
    assert not tally.knows("m.theirs", theirs, ["network"])
    assert not tally.knows("m.dict", dict, ["network"]), "no signature"
    notes = [f"{name} is left as it is: its arguments are not known" for name in ("m.theirs", "m.dict")]
    assert tally.report().notes == tuple(notes)
    assert str(tally.report()).endswith("; ".join(["", *notes]))


def test_the_handle_undoes_also_after_an_error(pair: Callable[[str], ModuleType]) -> None:
    maker = pair("pm_maker")
    said: list[Any] = []
    replacements = Replacements()
    replacements.wrap(maker, "make", plus_one)
    with pytest.raises(KeyError), Patch("toy", replacements, Tally("toy"), said.append) as handle:  # noqa: PT012
        assert maker.make() == 2
        raise KeyError
    assert maker.make() == 1
    handle.undo()
    assert len(said) == 1
