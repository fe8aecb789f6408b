"""``protomask inspect``: what a file is, which code it asks for, and what its names imply; nothing in it runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from protomask.checkpoint import Description, load_checkpoint, recognise, save_checkpoint
from protomask.cli import main
from protomask.errors import CheckpointError, ProtomaskError
from protomask.foreign import Foreign, Stated, without_prefix
from protomask.inspection import as_text, inspect_checkpoint
from protomask.training.backbones import BACKBONES
from protomask.trusted import load_trusted
from protopnet_ext import FAMILY
from protopnet_ext.foreign import IDENTITY
from tests.ppnet import PPNet
from tests.upstream import FORMS, repository, save_tensors, upstream, write


def meta_state(backbone: str, add_on: str = "regular", channels: int = 3, depth: int = 8) -> dict[str, Tensor]:
    blank = (0.5,) * channels
    with torch.device("meta"):
        shape = (6, depth, 1, 1)
        return FAMILY.build(
            Description("protopnet", backbone, shape, 3, add_on=add_on, mean=blank, std=blank)
        ).state_dict()


def state_of(tensors: dict[str, Tensor], prefix: str = "") -> Foreign:
    return Foreign(Path("x"), "zip", "state dict", (), prefix, tensors)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_is_recognised_uniquely(backbone: str) -> None:
    found = recognise(state_of(meta_state(backbone, "bottleneck", depth=64)))
    assert found is not None
    family, layout = found
    assert family.name == "protopnet"
    assert layout.backbones == (backbone,)
    assert layout.prototype_shape == (6, 64, 1, 1)
    assert layout.num_classes == 3
    assert not layout.refused
    # The channels are halved until they are down to 64; where one halving is enough, both kinds are the same layers.
    assert layout.add_on == ("regular" if backbone == "conv-small" else "bottleneck")


def test_add_on_layers() -> None:
    for add_on, depth in (("regular", 8), ("bottleneck", 8), ("regular", 128)):
        found = recognise(state_of(meta_state("resnet18", add_on, depth=depth)))
        assert found is not None
        assert found[1].add_on == add_on
    state = meta_state("resnet18")
    del state["add_on_layers.2.weight"]
    found = recognise(state_of(state))
    assert found is not None
    assert "add-on" in found[1].refused


def test_old_names_and_missing_counters_are_seen_through() -> None:
    state = meta_state("densenet121")
    old = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in state.items()}
    old = {k: v for k, v in old.items() if not k.endswith("num_batches_tracked")}
    assert old.keys() != state.keys()
    found = recognise(state_of(old))
    assert found is not None
    assert found[1].backbones == ("densenet121",)


def test_a_changed_backbone_is_not_recognised() -> None:
    state = meta_state("resnet18")
    state["features.conv1.weight"] = torch.empty(64, 3, 3, 3, device="meta")
    found = recognise(state_of(state))
    assert found is not None
    assert found[1].backbones == ()


def test_grey_images() -> None:
    found = recognise(state_of(meta_state("resnet18", channels=1)))
    assert found is not None
    assert found[1].backbones == ("resnet18",)


def renamed(state: dict[str, Tensor], **changes: str) -> dict[str, Tensor]:
    return {next((k.replace(a, b) for a, b in changes.items() if a in k), k): v for k, v in state.items()}


DESCENDANTS = {
    "ST-ProtoPNet": lambda s: renamed(
        s, prototype_vectors="prototype_vectors_support", last_layer="last_layer_support"
    ),
    "ProtoPool": lambda s: s | {"proto_presence": torch.empty(3, 6, 2, device="meta")},
    "EvalProtoPNet": lambda s: {k: v for k, v in s.items() if "last" not in k} | {"activation_weight": torch.empty(6)},
    "XProtoNet": lambda s: (
        renamed(s, features="cnn_backbone") | {"occurrence_module.0.weight": torch.empty(8, 8, 1, 1)}
    ),
}


@pytest.mark.parametrize("name", DESCENDANTS)
def test_descendants_are_named_and_not_taken_for_a_protopnet(name: str) -> None:
    layout = FAMILY.recognise(state_of(DESCENDANTS[name](meta_state("resnet18"))))
    assert layout.name == name
    assert layout.refused
    assert layout.backbones == ("resnet18",)


def test_others_are_nobody_s() -> None:
    assert recognise(state_of(dict(nn.Linear(3, 4).state_dict()))) is None


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
def test_state_dicts(form: str, tmp_path: Path) -> None:
    model = upstream()
    path = tmp_path / "x"
    write(form, model.state_dict(), path) if form in FORMS else save_tensors(model, path)
    found = inspect_checkpoint(path)
    assert (found.form, found.kind, found.keys, found.prefix) == (form, "state dict", (), "")
    assert found.tensors == len(model.state_dict())
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.dtypes["float32"] + found.dtypes["int64"] == found.tensors
    assert found.layout is not None
    assert found.layout.backbones == ("conv-small",)
    assert "each prototype's class" in found.loads
    assert {u.verdict for u in found.globals} <= {"data"}


WRAPPERS = {
    "state_dict": lambda s: ({"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}}, ""),
    "model": lambda s: ({"model": s, "acc": 0.9}, ""),
    "my weights": lambda s: ({"my weights": s, "args": {"lr": 1}}, ""),
    "prefixed": lambda s: ({"state_dict": {f"module.{k}": v for k, v in s.items()}}, "module."),
    "lightning": lambda s: ({"state_dict": {f"model.module.{k}": v for k, v in s.items()}}, "model.module."),
    "both": lambda s: ({"model": {"state_dict": s}}, ""),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(name: str, tmp_path: Path) -> None:
    value, prefix = WRAPPERS[name](dict(upstream().state_dict()))
    found = inspect_checkpoint(write("zip", value, tmp_path / "x"))
    keys = {"prefixed": ("state_dict",), "lightning": ("state_dict",), "both": ("model", "state_dict")}
    assert found.keys == keys.get(name, (name,))
    assert found.prefix == prefix
    assert found.layout is not None
    assert found.layout.backbones == ("conv-small",)


def test_several_weights_are_asked_about(tmp_path: Path) -> None:
    state = upstream().state_dict()
    path = write("zip", {"student": state, "teacher": state}, tmp_path / "x")
    assert "student, teacher" in inspect_checkpoint(path).loads
    assert inspect_checkpoint(path, key="teacher").keys == ("teacher",)


@pytest.mark.parametrize("form", FORMS)
def test_whole_modules_without_their_repository(form: str, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with repository(repo) as model:
        path = write(form, nn.DataParallel(model), tmp_path / "x")
    found = inspect_checkpoint(path)
    assert (found.kind, found.prefix, found.class_name) == ("module", "module.", "model.PPNet")
    assert found.loads == "yes"
    verdicts = {u.name: u.verdict for u in found.globals}
    assert verdicts["model.PPNet"] == "code"
    assert verdicts["torch.nn.modules.conv.Conv2d"] == "class"
    assert verdicts["torch._utils._rebuild_parameter"] == "data"
    assert found.attributes["img_size"] == "64"
    assert found.attributes[IDENTITY] == "tensor [6, 3], float32"
    assert not (repo / "imported").exists()


def test_another_class_needs_trust(tmp_path: Path) -> None:
    with repository(tmp_path / "repo", "TESNet") as model:
        path = write("legacy", model, tmp_path / "x")
    found = inspect_checkpoint(path)
    assert found.layout is not None
    assert found.layout.name == "TESNet"
    assert "with trust" in found.loads


def test_a_module_of_a_family_that_reads_no_files_is_told_what_would(tmp_path: Path) -> None:
    path = write("zip", nn.Sequential(nn.Linear(2, 3)), tmp_path / "x")
    said = r"reads? foreign checkpoints \(protopnet\b.*\).*\(with --trust it runs its own code\)"
    assert re.search(said, inspect_checkpoint(path).loads)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_our_own_format(tmp_path: Path) -> None:
    module = FAMILY.build(Description("protopnet", "conv-small", (6, 8, 1, 1), 3))
    save_checkpoint(tmp_path, module, Description("protopnet", "conv-small", (6, 8, 1, 1), 3))
    found = inspect_checkpoint(tmp_path)
    assert (found.kind, found.form, found.loads) == ("protomask checkpoint", "folder", "yes")
    assert found.parameters == sum(p.numel() for p in module.parameters())
    with pytest.raises(CheckpointError, match="no such file"):
        inspect_checkpoint(tmp_path / "nowhere")


def test_our_own_tensors_are_read_with_their_description(tmp_path: Path) -> None:
    described = Description("protopnet", "conv-small", (6, 8, 1, 1), 3)
    save_checkpoint(tmp_path, FAMILY.build(described), described)
    assert inspect_checkpoint(tmp_path / "model.safetensors") == inspect_checkpoint(tmp_path)
    edits = {"family": ("nobody", "an installed family"), "backbone": ("resnet18", r"missing|unexpected")}
    whole = json.loads((tmp_path / "model.json").read_text())
    for name, (value, message) in edits.items():
        (tmp_path / "model.json").write_text(json.dumps(whole | {name: value}))
        assert re.search(f"^no: .*({message})", inspect_checkpoint(tmp_path).loads)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path)


def double(model: PPNet) -> None:
    model.double()


def activation(model: PPNet) -> None:
    model.prototype_activation_function = functional.relu


def stride(model: PPNet) -> None:
    next(m for m in model.features.modules() if isinstance(m, nn.Conv2d)).stride = (1, 1)


def hook(model: PPNet) -> None:
    model.register_forward_hook(print)


def large(model: PPNet) -> None:
    model.img_size = 5000


@pytest.mark.parametrize("change", [double, activation, stride, hook, large], ids=lambda f: f.__name__)
def test_what_is_not_loaded_is_not_said_to_load(change: Callable[[PPNet], None], tmp_path: Path) -> None:
    model = upstream()
    change(model)
    path = write("zip", model, tmp_path / "x")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert inspect_checkpoint(path).loads == f"no: {caught.value} (with trust it runs its own)"


@pytest.mark.parametrize("value", [10**6000, torch.ones(2), (torch.ones(2), 1), [torch.ones(2)], "x"], ids=range(5))
def test_attributes_of_another_kind_are_refused(value: object, tmp_path: Path) -> None:
    """Tensors where numbers belong, and numbers that Python refuses to write out."""
    for name in ("epsilon", "img_size", "mean", "num_classes", "stride", "_forward_hooks"):
        model = upstream()
        owner = model.features.features[0] if name in ("stride", "_forward_hooks") else model
        setattr(owner, name, value)
        path = write("zip", model, tmp_path / "x")
        loads = inspect_checkpoint(path).loads
        if name == "mean":  # another name of theirs, unless it is a list of numbers
            assert loads == "yes"
            continue
        assert loads.startswith("no: ")
        with pytest.raises(ProtomaskError):
            load_checkpoint(path)


def test_a_state_dict_that_is_not_loaded_whatever_is_told(tmp_path: Path) -> None:
    path = write("zip", upstream().double().state_dict(), tmp_path / "x")
    assert "expected dtype torch.float32, got torch.float64" in inspect_checkpoint(path).loads


def test_attributes_that_the_published_class_does_not_have(tmp_path: Path) -> None:
    model = upstream()
    model.topk_k, model.tau, model.scaled = 1, 0.5, True  # type: ignore[assignment]
    path = write("zip", model, tmp_path / "x")
    found = inspect_checkpoint(path)
    said = "attributes that the published class does not have: tau, scaled; the forward pass may differ"
    assert found.layout is not None
    assert said in found.layout.notes
    assert found.loads == "yes"
    assert f"note: {said}" in as_text(found)
    description = load_checkpoint(path).description
    assert description is not None
    assert description.extra["unproved"].endswith(said)
    assert inspect_checkpoint(write("zip", upstream(), tmp_path / "y")).layout.notes == ()  # type: ignore[union-attr]


def averaged(model: PPNet) -> tuple[dict[str, Tensor], str, str]:
    return AveragedModel(model).state_dict(), "module.", "n_averaged"


def lightning(model: PPNet) -> tuple[dict[str, Tensor], str, str]:
    state = {f"model.module.{k}": v for k, v in model.state_dict().items()}
    return state | {"criterion.weight": torch.ones(3)}, "model.module.", "criterion.weight"


@pytest.mark.parametrize("make", [averaged, lightning], ids=lambda f: f.__name__)
def test_tensors_beside_the_model_are_left_aside(make: Callable[..., Any], tmp_path: Path) -> None:
    model = upstream()
    state, prefix, beside = make(model)
    path = write("zip", {"state_dict": state}, tmp_path / "x")
    found = inspect_checkpoint(path)
    assert found.prefix == prefix
    assert found.layout is not None
    assert f"1 tensors beside the model are left aside: {beside}" in found.layout.notes
    loaded = load_checkpoint(path, stated=Stated(prototypes_per_class=2, size=(64, 64)))
    assert loaded.description is not None
    assert loaded.description.extra["converted from"]["left aside"] == [beside]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor)


def test_two_models_are_not_taken_apart() -> None:
    state = meta_state("conv-small")
    for names in (("model.", "net."), ("model.", "")):
        both = {f"{name}{k}": v for name in names for k, v in state.items()}
        assert without_prefix(both) == ("", both, ())


class Touches:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch marker",)


@pytest.mark.parametrize("form", FORMS)
def test_a_malicious_file_is_told_and_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = upstream()
    model.extra = Touches()  # type: ignore[assignment]
    path = write(form, model, tmp_path / "x.pth")
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "a call that no model needs:\n  posix.system (called)" in said.replace("nt.system", "posix.system")
    assert "loads: no" in said
    assert main(["convert", str(path), "--out", "out"]) == 2
    assert main(["locate", str(path), str(tmp_path), "--out", "out"]) == 2
    assert "would call" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out" / "model.json").exists()
    load_trusted(path)  # and it does bite
    assert (tmp_path / "marker").exists()


def test_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("legacy", upstream(), tmp_path / "x.pth")
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in ("module (legacy", "backbone conv-small, add-on regular", "prototypes: [6, 4, 1, 1], 3 classes"):
        assert part in text
    assert text.rstrip().endswith("loads: yes")
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "module"
    assert found["layout"]["backbones"] == ["conv-small"]
    assert found["layout"]["has_classes"] is True
    assert {"name": "tests.ppnet.PPNet", "verdict": "code", "how": ["made", "named", "set"]} in found["globals"]


def test_files_that_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("a.txt", b"hello there"), ("b.json", b'{"a": 1}'), ("c.png", b"\x89PNG\r\n\x1a\n....")):
        (tmp_path / name).write_bytes(content)
        assert main(["inspect", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert "other" in said
        assert "loads: no" in said
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2


def test_names_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"cos\x1b[2J\nsystem\n)R.")
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"os\x1b[2J.system" in said
    write("zip", {"weight\x1b[2J": torch.zeros(2)}, path)
    assert main(["inspect", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_odd_attributes_are_shown_shortly(tmp_path: Path) -> None:
    model = upstream()
    for name, value in {"big": 10**6000, "long": "x" * 9999, "shapes": [1, (2,)], "cycle": []}.items():
        setattr(model, name, value)
    model.cycle.append(model.cycle)  # type: ignore[union-attr, operator]
    found = inspect_checkpoint(write("pickle", model, tmp_path / "x"))
    assert found.attributes["big"] == "a huge number"
    assert len(found.attributes["long"]) < 300
    assert found.attributes["cycle"] == "a list"
    assert found.loads == "yes"


@pytest.mark.parametrize(("command", "options"), [("inspect", ["--json", "--key"]), ("convert", ["--out", "--trust"])])
def test_help_teaches(command: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for part in ("usage: protomask", f"protomask {command}", *options):
        assert part in said
