"""``protomask run``: a script as Python would run it, patched, with CUDA harmless and pickles as the user says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from protomask.cli import main
from protomask.commands.script import without_cuda
from protomask.localisers import LOCALISERS

from .patching_tools import STANDINS, Loader, files, network, normalise, probe, same_objects, state

LOCAL = str(STANDINS / "protopnet" / "local_analysis.py")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    before = set(sys.modules)
    with probe():
        yield
    for name in set(sys.modules) - before:
        if str(STANDINS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A whole-module pickle and an image, as the stand-in's script takes them."""
    torch.save(network().module, tmp_path / "model.pth")
    np.save(tmp_path / "image.npy", normalise(Loader().pictures[:1])[0].numpy())
    return [str(tmp_path / "model.pth"), str(tmp_path / "image.npy")]


def run(*words: str) -> int:
    return main(["run", *words])


def test_a_script_draws_located_regions(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    outputs = []
    for name, method in (("probe", "probe"), ("again", "probe"), ("upsampling", "upsampling")):
        with pytest.raises(SystemExit) as stop:
            run("--device", "cpu", "--trust", "--method", method, "--", LOCAL, *inputs, str(tmp_path / name))
        assert stop.value.code == 0
        outputs.append(capsys.readouterr())
    assert outputs[0].out == outputs[2].out
    assert "replaced 12 of 12 regions drawn (maps 12 of 12), 6 pairs located" in outputs[0].err
    assert same_objects(before, state())
    found = [files(tmp_path / name) for name in ("probe", "again", "upsampling")]
    assert found[0] == found[1]
    assert found[0].keys() == found[2].keys()
    assert {name for name in found[0] if found[0][name] == found[2][name]} >= {"logits.npy"}
    assert sum("prototype" in name and found[0][name] != found[2][name] for name in found[0]) == 12


GREY = """
import sys
sys.path.insert(0, {root!r})
import cv2, torch
from tests.patching_tools import Loader
from tests.ppnet import ppnet

model = ppnet().eval()
model.features[0] = torch.nn.Conv2d(1, 8, 3, 2, 1)
batches = list(Loader().pictures[:3, :1].split(1))
with torch.no_grad():
    maps = [model.push_forward(batch)[1].numpy() for batch in batches]
cv2.resize(maps[0][0, 0], (32, 32))
"""


def test_statistics_and_remembered_batches_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, GREY.format(root=str(STANDINS.parent.parent)))
    said = []
    for words in ((), ("--mean", "0.5", "--std=0.25", "--remember", "3"), ("--remember", "2"), ("--std", "0.5,0.5")):
        assert run("--method", "probe", *words, "--", path) == 0
        said.append(capsys.readouterr().err)
    assert [("replaced 1 of 1" in err, "since none is given" in err) for err in said[:2]] == [
        (True, True),
        (True, False),
    ]
    assert "1 kept as they were: map not recognised" in said[2]
    assert "std: expected 1 values" in said[3]


def test_exit_codes_and_errors_pass_through(
    tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = state()
    words = ["--device", "cpu", "--trust", "--method", "probe", "--", LOCAL, *inputs, str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        run(*words, "--exit")
    assert stop.value.code == 7
    assert same_objects(before, state())
    with pytest.raises(RuntimeError, match="as asked"):
        run(*words, "--fail")
    assert same_objects(before, state())
    assert capsys.readouterr().err.count("replaced 12 of 12") == 2


def test_a_plugins_method_draws(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plugin = script(
        tmp_path,
        "import torch\nfrom protomask import register_localiser\n"
        "@register_localiser('pm-ramp', 'From left to right.')\n"
        "def ramp(request):\n"
        "    return torch.linspace(0, 1, request.size[1]).expand(len(request.targets), *request.size)\n",
        "pm_plugin.py",
    )
    words = ["--device", "cpu", "--trust", "--method", "pm-ramp"]
    assert run(*words, "--", LOCAL, *inputs, str(tmp_path / "out")) == 2
    assert "method: expected one of" in capsys.readouterr().err
    try:
        with pytest.raises(SystemExit) as stop:
            run(*words, "--plugin", plugin, "--", LOCAL, *inputs, str(tmp_path / "out"))
    finally:
        LOCALISERS.pop("pm-ramp", None)
    assert stop.value.code == 0
    assert "replaced 12 of 12" in capsys.readouterr().err


def test_whole_modules_need_trust(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    assert run("--device", "cpu", "--", LOCAL, *inputs, str(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert "--trust" in err
    assert "model.pth" in err
    assert same_objects(before, state())


def script(tmp_path: Path, text: str, name: str = "script.py") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_a_script_sees_what_python_would_show_it(tmp_path: Path) -> None:
    text = "import json, pathlib, sys, neighbour\n"
    text += "out = [sys.argv, sys.path[0], __name__, sys.modules['__main__'].__file__, neighbour.HERE]\n"
    text += "pathlib.Path(sys.argv[1]).write_text(json.dumps(out))\n"
    path = script(tmp_path, text)
    script(tmp_path, "HERE = 5\n", "neighbour.py")
    out = str(tmp_path / "out.json")
    before = state()
    assert run("--", path, out, "--", "-x") == 0
    assert same_objects(before, state())
    sys.modules.pop("neighbour")
    assert json.loads(Path(out).read_text()) == [[path, out, "--", "-x"], str(tmp_path), "__main__", path, 5]


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pm_package").mkdir()
    text = "import pathlib, sys\nseen = repr((__name__, __package__, sys.argv[1:], sys.path[0]))\n"
    text += "pathlib.Path('out.txt').write_text(seen)\n"
    script(tmp_path / "pm_package", text, "__main__.py")
    script(tmp_path / "pm_package", "", "__init__.py")
    monkeypatch.chdir(tmp_path)
    assert run("--", "-m", "pm_package", "a") == 0
    sys.modules.pop("pm_package")
    assert (tmp_path / "out.txt").read_text() == repr(("__main__", "pm_package", ["a"], str(tmp_path)))


def test_it_says_that_it_found_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A test session has models of the known form in memory, which a command of its own has not; so only drawing counts.
    assert run("--", script(tmp_path, "print('hello')\n")) == 0
    out = capsys.readouterr()
    assert out.out == "hello\n"
    assert "found nothing to patch" in out.err or "nothing was drawn" in out.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--"], "SCRIPT"),
        (["--", "-m"], "SCRIPT"),
        (["--", "no-such-file.py"], "no-such-file.py"),
        (["--set", "sharpness=1", "--", LOCAL], "sharpness"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = state()
    assert run(*words) == 2
    assert said in capsys.readouterr().err
    assert same_objects(before, state())


def test_cuda_is_harmless() -> None:
    with without_cuda():
        tensor = torch.ones(2)
        there = tensor.cuda()
        assert there is not tensor, "a copy, as on CUDA"
        assert there.cuda() is there.to("cuda") is there, "is there already"
        assert tensor.cuda(0, non_blocking=True).to("cuda:1").to(0).to(torch.device("cuda")).device.type == "cpu"
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.tensor([1.0], device=torch.device("cuda", 0)).device.type == "cpu"
        assert torch.nn.Linear(2, 2, device="cuda").cuda().to("cuda").weight.device.type == "cpu"
        assert tensor.type("torch.cuda.FloatTensor").device.type == "cpu"
        assert torch.cuda.FloatTensor(3).device.type == "cpu"  # type: ignore[attr-defined]
        assert tensor.to(torch.float64).dtype == torch.float64
        assert not torch.cuda.is_available()
        torch.cuda.set_device(0)
        torch.cuda.manual_seed_all(1)
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        with torch.cuda.device(0):
            parallel = torch.nn.DataParallel(torch.nn.Linear(2, 1).cuda(), device_ids=[0, 1])
        assert parallel(tensor[None].cuda()).shape == (1, 1)
    assert torch.zeros(1, device="meta").device.type == "meta"


def test_integers_are_devices_and_so_are_defaults() -> None:
    before = torch.Generator
    with without_cuda():
        assert torch.zeros(2, device=0).device.type == "cpu"
        assert torch.zeros(2).to(device=0).device.type == "cpu"
        assert torch.nn.Linear(2, 2, device=0).weight.device.type == "cpu"
        torch.set_default_device("cuda")
        try:
            assert torch.zeros(2).device.type == "cpu"
        finally:
            torch.set_default_device(None)
        for device in ("cuda", torch.device("cuda", 0), 0, "cpu"):
            generator = torch.Generator(device=device).manual_seed(3)
            assert isinstance(generator, torch.Generator)
            assert torch.rand(2, generator=generator, device="cuda").device.type == "cpu"
        assert isinstance(torch.default_generator, torch.Generator)
        assert torch.cuda.memory_summary() == ""
        assert not isinstance(0, torch.cuda.device)
        with torch.cuda.device_of(torch.ones(1)):
            pass
    assert torch.Generator is before


def test_what_is_a_copy_on_cuda_is_a_copy() -> None:
    with without_cuda():
        for move in (
            lambda x: x.cuda(),
            lambda x: x.to("cuda"),
            lambda x: x.to(0),
            lambda x: x.to(device=torch.device("cuda")),
            lambda x: x.type("torch.cuda.FloatTensor"),
            lambda x: torch.as_tensor(x, device="cuda"),
        ):
            image = torch.ones(3)
            batch = move(image)
            image.zero_()
            assert batch.tolist() == [1, 1, 1]
            batch.requires_grad_()
            assert image.numpy().tolist() == [0, 0, 0]
            assert move(batch) is batch
        made = torch.zeros(2, device="cuda").requires_grad_()
        assert made.cuda() is made
        assert image.to("cpu") is image.to(torch.float32) is image


def test_gradients_and_modules_move_as_on_cuda() -> None:
    model = torch.nn.BatchNorm1d(2)
    parameters, optimiser = list(model.parameters()), torch.optim.SGD(model.parameters(), 0.1)
    with without_cuda():
        leaf = torch.ones(4, 2, requires_grad=True)
        moved = leaf.cuda()
        assert not moved.is_leaf
        assert all(a is b for a, b in zip(model.cuda().to("cuda").parameters(), parameters, strict=True))
        (model(moved) ** 2 * torch.arange(8.0).view(4, 2)).sum().backward()
        assert leaf.grad is not None
        assert model.bias.grad is not None
        model.bias.grad.fill_(1)
        optimiser.step()
    assert model.bias.tolist() == pytest.approx([-0.1, -0.1])


def test_numbers_are_those_of_the_cpu() -> None:
    model = network().module
    images = normalise(Loader().pictures[:2])
    with torch.no_grad():
        plain = model(images)[0]
        with without_cuda():
            assert torch.equal(model.cuda()(images.cuda())[0], plain)


def test_loading(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "plain.pth")
    text = "import sys, torch\nfrom torch import load\n"
    text += "assert load(sys.argv[1])['weight'].device.type == 'cpu'\n"
    text += "assert torch.load(sys.argv[1], map_location='cuda:0')['weight'].device.type == 'cpu'\n"
    text += "assert torch.load(sys.argv[1], 'cuda')['weight'].device.type == 'cpu'\n"
    text += "assert torch.load(sys.argv[1], map_location=lambda storage, loc: storage)['weight'].device.type == 'cpu'\n"
    text += "assert torch.load(sys.argv[1], map_location=lambda storage, loc: storage.cuda(0))['weight'].sum() == 2\n"
    text += "assert torch.load(sys.argv[1], map_location={'cuda:1': 'cuda:0', 'cpu': 'cuda:0'})['weight'].sum() == 2\n"
    text += "assert torch.load(sys.argv[1], map_location=0)['weight'].device.type == 'cpu'\n"
    text += "assert torch.load(sys.argv[1], map_location='meta')['weight'].device.type == 'meta'\n"
    assert run("--device", "cpu", "--", script(tmp_path, text), str(tmp_path / "plain.pth")) == 0
