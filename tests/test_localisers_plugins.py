"""Methods from elsewhere: functions, files, modules and entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor

import protomask
from protomask.cli import main
from protomask.errors import InputError
from protomask.localisers import LOCALISERS, Maps, Request, image_passes_of, make_localiser, plugins, register_localiser
from tests.toys import ConvModel, scenes


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before, loaded = dict(LOCALISERS), set(plugins._loaded)
    yield
    LOCALISERS.clear()
    LOCALISERS.update(before)
    plugins._loaded.clear()
    plugins._loaded.update(loaded)


def test_a_function_is_a_method() -> None:
    @register_localiser("ramp", passes=2, image_passes=3)
    def ramp(request: Request, power: float = 1.0, *, down: bool = False) -> Tensor:
        """From left to right.

        Further lines are left out of the sentence.
        """
        row = torch.linspace(2, 4, request.size[1]) ** power
        return (row.flip(0) if down else row).expand(len(request.targets), *request.size)

    assert ramp.__name__ == "ramp"  # the function stays as it is
    assert LOCALISERS["ramp"].sentence == "From left to right."
    found = protomask.locate(ConvModel(), scenes(2), "top:1", "ramp", power=2.0, down=True)
    row = torch.linspace(2, 4, 32) ** 2
    assert torch.allclose(found.maps[0, 5], ((row - 4) / 12).flip(0), atol=1e-6)
    assert found.method == "ramp"
    assert found.settings == {"power": 2.0, "down": True}
    made = make_localiser("ramp", {"power": 3})
    assert (made.passes, image_passes_of(made)) == (2, 3)
    with pytest.raises(InputError, match="settings of ramp: expected one of power, down, got width"):
        protomask.locate(ConvModel(), scenes(1), "top:1", "ramp", width=3)


def test_a_function_may_give_maps_as_they_are() -> None:
    @register_localiser("half", "The left half.")
    def half(request: Request) -> Maps:
        maps = torch.zeros(len(request.targets), *request.size)
        maps[:, :, :16] = 0.5
        return Maps(maps, masks=True)

    found = protomask.locate(ConvModel(), scenes(1), "top:1", "half")
    assert found.masks
    assert float(found.maps.max()) == 0.5
    with pytest.raises(InputError, match="settings of half: expected no settings, got x"):
        make_localiser("half", {"x": 1})


def test_a_function_takes_any_setting_if_it_says_so() -> None:
    @register_localiser("any", "Whatever.")
    def anything(request: Request, **settings: float) -> Tensor:
        maps = torch.zeros(len(request.targets), *request.size)
        maps[:, : int(settings["rows"])] = 1
        return maps

    assert protomask.locate(ConvModel(), scenes(1), "top:1", "any", rows=3).maps.sum() == 3 * 32


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda request: torch.zeros(1, 2, 2), "maps of odd: expected shape"),
        (lambda request: torch.full((1, 32, 32), torch.nan), "maps of odd: expected finite values"),
        (lambda request: None, "maps of odd: expected a torch.Tensor"),
    ],
)
def test_nonsense_is_refused_by_name(give: object, message: str) -> None:
    register_localiser("odd", "Nonsense.")(give)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        protomask.locate(ConvModel(), scenes(1), "top:1", "odd")


def test_what_cannot_take_a_request_or_a_taken_name_is_refused() -> None:
    with pytest.raises(InputError, match="function: expected one that takes a request"):
        register_localiser("none", "No.")(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name: expected one that is not registered yet, got 'mdm'"):
        register_localiser("mdm", "Again.")(lambda request: None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="passes: expected a number"):
        register_localiser("x", "No.", passes=-1)


PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
import torch
import protomask

@protomask.register_localiser("mine", "Mine: the top row.")
def mine(request):
    maps = torch.zeros(len(request.targets), *request.size)
    maps[:, 0] = 1
    return maps

@protomask.register("mine-too", "Mine: a row.")
@dataclass(frozen=True)
class Mine:
    row: int = 1
    passes = 0.0
    def __call__(self, request):
        maps = torch.zeros(len(request.targets), *request.size)
        maps[:, self.row] = 1
        return protomask.Maps(maps)
"""


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    path = tmp_path / "odd name.py"
    path.write_text(PLUGIN)
    plugins.load_plugin(str(path))
    plugins.load_plugin(str(path))  # once is enough
    assert protomask.locate(ConvModel(), scenes(1), "top:1", "mine").maps[0, 0].min() == 1
    assert protomask.locate(ConvModel(), scenes(1), "top:1", "mine-too", row=4).maps[0, 4].min() == 1


def test_a_module_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods_module.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    plugins.load_plugin("my_methods_module")
    assert "mine" in LOCALISERS
    del sys.modules["my_methods_module"]


@pytest.mark.parametrize("content", [None, "raise KeyError('broken')", "def (", PLUGIN + "\n1 / 0"])
def test_a_plugin_that_fails_leaves_nothing_behind(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    modules = set(sys.modules)
    for _ in range(2):
        with pytest.raises(InputError, match=r"--plugin: expected a file FILE\.py or a module .*broken\.py"):
            plugins.load_plugin(str(path))
    assert "mine" not in LOCALISERS
    assert set(sys.modules) == modules
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        plugins.load_plugin("no_such_module_anywhere")


def test_entry_points_are_loaded_when_a_name_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "from_a_package.py").write_text(PLUGIN + "\ndef named(request):\n    return mine(request)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    values = {"broken": "no_such_package:f", "from-function": "from_a_package:named", "module": "from_a_package"}
    points = [EntryPoint(name, value, plugins.GROUP) for name, value in values.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == plugins.GROUP else [])
    for name in ("from-function", "mine", "mine-too"):
        assert protomask.locate(ConvModel(), scenes(1), "top:1", name).maps[0].amax() == 1
    assert "no_such_package" in caplog.text
    with pytest.raises(InputError, match="method: expected one of"):
        protomask.locate(ConvModel(), scenes(1), "top:1", "still-unknown")
    del sys.modules["from_a_package"]


def test_a_plugin_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    arguments = ["evaluate", "tests.toys:block_model", "--data", "planted", "--out", str(tmp_path / "out"), "--quiet"]
    arguments += ["--methods", "mine", "--pairs", "1", "--scenes", "4", "--plugin", str(tmp_path / "absent.py")]
    assert main(arguments) == 2
    assert "--plugin: expected a file FILE.py" in capsys.readouterr().err
    assert main(["methods", "--plugin", str(path)]) == 0
    assert "Mine: the top row." in capsys.readouterr().out
