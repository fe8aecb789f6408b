"""Foreign checkpoints become the reference model exactly, without the repository and without running anything."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import protopnet_ext
import xprotonet_ext
from protomask.checkpoint import Description, load_checkpoint, save_checkpoint
from protomask.cli import main
from protomask.conversion import convert
from protomask.data import Planted
from protomask.errors import CheckpointError, DataError, HostileError, InputError, ProtomaskError
from protomask.foreign import Stated
from protomask.loading import load_model, with_labels_of
from protopnet_ext import wrap
from tests.ppnet import PPNet
from tests.upstream import FORMS, boxes, fill, repository, save_tensors, upstream, write

PER_CLASS = Stated(prototypes_per_class=2, size=(64, 64))
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def check_same(path: Path, model: PPNet, stated: Stated | None = None) -> Any:
    """The loaded model has the source's tensors to the bit and computes what the source computes."""
    loaded = load_checkpoint(path, stated=stated)
    state = loaded.module.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor.float() if tensor.is_floating_point() else tensor), name
    assert torch.equal(loaded.module.prototype_class_identity, model.prototype_class_identity)
    with torch.no_grad():
        ours, theirs = loaded.module(IMAGES)[0], model.float()(IMAGES)[0]
        assert torch.allclose(ours, theirs, atol=1e-3)
        assert torch.allclose(loaded.model.activations(IMAGES), wrap(model).activations(IMAGES), atol=1e-3)
    assert not loaded.module.training
    return loaded


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
def test_state_dicts(form: str, tmp_path: Path) -> None:
    model = upstream()
    path = tmp_path / "x"
    write(form, model.state_dict(), path) if form in FORMS else save_tensors(model, path)
    loaded = check_same(path, model, PER_CLASS)
    assert loaded.description.backbone == "conv-small"
    assert loaded.description.size == (64, 64)
    assumed = " / ".join(loaded.description.extra["assumed"])
    for part in ("activation: log", "epsilon", "mean", "std", "crop: none (the authors cut CUB to boxes)"):
        assert part in assumed
    assert "TesNet" in loaded.description.extra["unproved"]
    assert "size" not in assumed


@pytest.mark.parametrize("form", FORMS)
def test_whole_modules_without_their_repository(form: str, tmp_path: Path) -> None:
    with repository(tmp_path / "repo", activation="linear") as model:
        path = write(form, model, tmp_path / "x")
    (tmp_path / "repo" / "model.py").unlink()
    loaded = check_same(path, model)
    assert loaded.description.activation == "linear"
    assert loaded.description.size == (64, 64)
    assert loaded.description.epsilon == 1e-4
    assert not (tmp_path / "repo" / "imported").exists()


def test_a_torchvision_backbone(tmp_path: Path) -> None:
    model = fill(PPNet(size=64), "resnet18")
    loaded = check_same(write("zip", nn.DataParallel(model), tmp_path / "x"), model)
    assert loaded.description.backbone == "resnet18"


def test_data_parallel_and_wrappers(tmp_path: Path) -> None:
    model = upstream()
    state = nn.DataParallel(model).state_dict()
    assert all(k.startswith("module.") for k in state)
    check_same(write("zip", {"state_dict": state, "epoch": 3}, tmp_path / "a"), model, PER_CLASS)
    check_same(write("legacy", {"model": nn.DataParallel(model)}, tmp_path / "b"), model)


def test_half_precision(tmp_path: Path) -> None:
    model = upstream().half()
    check_same(write("zip", model, tmp_path / "x"), model)


@pytest.mark.parametrize("whole", [True, False])
def test_pruned_prototypes(whole: bool, tmp_path: Path) -> None:
    model = upstream()
    model.prune_prototypes([1, 4, 5])
    path = write("zip", model if whole else model.state_dict(), tmp_path / "x")
    if whole:
        loaded = check_same(path, model)
    else:
        with pytest.raises(InputError, match="pruned"):
            load_checkpoint(path, stated=PER_CLASS)
        kept = boxes(tmp_path / "bb10.npy", [0, 1, 1])
        model.prototype_class_identity = torch.eye(3)[[0, 1, 1]]
        loaded = check_same(path, model, Stated(classes_from=kept, size=(64, 64)))
    assert loaded.description.prototype_shape == (3, 4, 1, 1)


def test_old_batch_norm_and_a_registered_identity(tmp_path: Path) -> None:
    model = upstream()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = write("legacy", state | {"prototype_class_identity": model.prototype_class_identity}, tmp_path / "x")
    check_same(path, model, Stated(size=(64, 64)))


def test_classes_come_from_bb_npy(tmp_path: Path) -> None:
    model = upstream()
    classes = [2, 0, 1, 1, 0, 2]
    model.prototype_class_identity = torch.eye(3)[classes]
    path = write("zip", model.state_dict(), tmp_path / "x")
    check_same(path, model, Stated(classes_from=boxes(tmp_path / "bb10.npy", classes), size=(64, 64)))


WRONG_BOXES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "five columns": (lambda p: boxes(p, [0] * 6, columns=5), "six columns of numbers"),
    "another count": (lambda p: boxes(p, [0] * 7), "a row for each of the 6 prototypes"),
    "never found": (lambda p: boxes(p, [0, 1, 2, 0, 1, -1]), "1 others"),
    "too many classes": (lambda p: boxes(p, [0, 1, 2, 0, 1, 3]), "classes in 0 .. 2"),
    "no file": (lambda p: p, "no such file"),
    "a pickle": (lambda p: np.save(p, np.array([{}]), allow_pickle=True) or p, "upstream's bb"),
    "a bomb": (lambda p: p.write_bytes(huge_header()) and p, "upstream's bb"),
}


def huge_header() -> bytes:
    head = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 6), }"
    head = head.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


@pytest.mark.parametrize("name", WRONG_BOXES)
def test_wrong_boxes(name: str, tmp_path: Path) -> None:
    make, message = WRONG_BOXES[name]
    path = write("zip", upstream().state_dict(), tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, stated=Stated(classes_from=make(tmp_path / "bb.npy")))


def test_classes_are_never_guessed(tmp_path: Path) -> None:
    path = write("zip", upstream().state_dict(), tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"each prototype's class, by --classes-from .* got neither"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="prototypes_per_class"):
        load_checkpoint(path, stated=Stated(prototypes_per_class=3))


def test_what_is_stated_must_agree(tmp_path: Path) -> None:
    path = write("zip", upstream(), tmp_path / "x")
    with pytest.raises(CheckpointError, match="the stated classes, got 4 others"):
        load_checkpoint(path, stated=Stated(classes_from=boxes(tmp_path / "bb.npy", [0, 1, 2, 0, 1, 2])))
    with pytest.raises(CheckpointError, match="the layers of resnet18, got layers of conv-small"):
        load_checkpoint(path, stated=Stated(backbone="resnet18"))
    with pytest.raises(CheckpointError, match="prototype_activation_function: expected linear, got 'log'"):
        load_checkpoint(path, stated=Stated(activation="linear"))
    with pytest.raises(CheckpointError, match=r"img_size: expected \(96, 96\), got \(64, 64\)"):
        load_checkpoint(path, stated=Stated(size=(96, 96)))
    with pytest.raises(InputError, match="mean: expected 3 values"):
        load_checkpoint(path, stated=Stated(mean=(0.5,)))
    with pytest.raises(InputError, match="class_names: expected 3 names"):
        load_checkpoint(path, stated=Stated(class_names=("a",)))


def strided(model: PPNet) -> None:
    next(m for m in model.features.modules() if isinstance(m, nn.Conv2d)).stride = (1, 1)


def tanh(model: PPNet) -> None:
    model.add_on_layers[-1] = nn.Tanh()


def leaky(model: PPNet) -> None:
    model.features.features[2] = nn.LeakyReLU()


def hooked(model: PPNet) -> None:
    model.features.register_forward_hook(hook)


def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output * 2


def callable_activation(model: PPNet) -> None:
    model.prototype_activation_function = squared


def squared(distances: Tensor) -> Tensor:
    return -distances.square()


def other_shape(model: PPNet) -> None:
    model.prototype_shape = (6, 4, 2, 2)


def several_distances(model: PPNet) -> None:
    model.topk_k = 9  # as IAIA-BL's, which is a PPNet of the same tensors  # type: ignore[assignment]


def two_classes(model: PPNet) -> None:
    model.prototype_class_identity[0] = torch.tensor([1.0, 1.0, 0.0])


def not_finite(model: PPNet) -> None:
    model.prototype_vectors.data[0] = torch.nan


def more(model: PPNet) -> None:
    model.extra = nn.Linear(2, 2)


CHANGES = {
    strided: r"layer features\.features\.0: stride: expected \(2, 2\), got \(1, 1\)",
    tanh: r"layer add_on_layers\.3: expected torch's Sigmoid",
    leaky: r"layer features\.features\.2: expected torch's ReLU",
    hooked: "no hooks, got some",
    callable_activation: r"log or linear, got code \(tests\.test_convert\.squared\)",
    other_shape: "prototype_shape: expected",
    several_distances: r"it pools the mean of several distances \(topk_k = 9\)",
    two_classes: "one class per prototype",
    not_finite: "finite values",
    more: "layer extra: expected no layer|1 unexpected|2 unexpected",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_module_that_would_be_rebuilt_wrongly_is_refused(change: Callable[[PPNet], None], tmp_path: Path) -> None:
    model = upstream()
    change(model)
    path = write("zip", model, tmp_path / "x")
    with pytest.raises(CheckpointError, match=CHANGES[change]):
        load_checkpoint(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [strided, leaky, hooked, callable_activation], ids=lambda f: f.__name__)
def test_with_trust_its_own_code_runs(change: Callable[[PPNet], None], form: str, tmp_path: Path) -> None:
    model = upstream()
    change(model)
    path = write(form, {"model": model}, tmp_path / "x")
    loaded = load_checkpoint(path, trust=True)
    assert loaded.description is None
    assert isinstance(loaded.module, PPNet)
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES)[0], model(IMAGES)[0])
    assert load_model(str(path), trust=True).size == (64, 64)


def test_trust_is_not_used_where_it_is_not_needed(tmp_path: Path) -> None:
    with repository(tmp_path / "repo") as model:
        path = write("legacy", model, tmp_path / "x")
    assert load_checkpoint(path, trust=True).description is not None
    assert not (tmp_path / "repo" / "imported").exists()


def test_trust_needs_the_code(tmp_path: Path) -> None:
    with repository(tmp_path / "repo", "TESNet") as model:
        path = write("legacy", model, tmp_path / "x")
    with pytest.raises(CheckpointError, match="what its class computes cannot be told"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"nor by its own code: .*No module named 'model'"):
        load_checkpoint(path, trust=True)


def beside(path: Path, content: bytes) -> Path:
    """The file by ``torch.save`` with ``content`` at the beginning of its pickle, dropped from the stack again."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:2] + content + b"0" + data[2:] if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_trust_runs_whole_modules_only(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state dict gains nothing by its own code, so that only what it would call is left."""
    monkeypatch.chdir(tmp_path)
    model = upstream()
    path = write("zip", model if whole else model.state_dict(), tmp_path / "x")
    if not whole:
        with pytest.raises(CheckpointError, match=r"got neither$"):
            load_checkpoint(path, trust=True)
    beside(path, b"cos\nsystem\n(X\x0c\0\0\0touch markertR")
    with pytest.raises(HostileError, match=r"would call os\.system"):
        load_checkpoint(path, stated=Stated() if whole else PER_CLASS)
    if whole:
        assert isinstance(load_checkpoint(path, trust=True).module, PPNet)
    else:
        with pytest.raises(HostileError, match=r"would call os\.system$"):
            load_checkpoint(path, stated=PER_CLASS, trust=True)
    assert (tmp_path / "marker").exists() == whole


def test_a_backbone_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    path = write("zip", PPNet(), tmp_path / "x")
    with pytest.raises(CheckpointError, match="backbone: expected one that is recognised, or its name"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="backbone: expected one of"):
        load_checkpoint(path, stated=Stated(backbone="resnet999"))


def described_module(backbone: str = "conv-small", **changes: Any) -> tuple[nn.Module, Description]:
    """A ProtoPNet of our own, as a training leaves it."""
    described = Description("protopnet", backbone, (4, 8, 1, 1), 2, size=(64, 64), **changes)
    return protopnet_ext.FAMILY.build(described).eval(), described


@pytest.mark.parametrize("whole", [True, False])
def test_cut_backbones_of_ours_come_back(whole: bool, tmp_path: Path) -> None:
    module, _ = described_module("mobilenet_v2@16")
    path = write("zip", module if whole else module.state_dict(), tmp_path / "x")
    stated = Stated() if whole else Stated("mobilenet_v2@16", prototypes_per_class=2, size=(64, 64))
    loaded = load_checkpoint(path, stated=stated)
    assert loaded.description is not None
    assert loaded.description.backbone == "mobilenet_v2@16"
    with torch.no_grad():
        assert torch.equal(loaded.module(IMAGES)[0], module(IMAGES)[0])
    with pytest.raises(CheckpointError, match=r"the layers of mobilenet_v2@8, got layers of another network"):
        load_checkpoint(path, stated=Stated("mobilenet_v2@8"))
    with pytest.raises(InputError, match="mobilenet_v2@ and a stride of"):
        load_checkpoint(path, stated=Stated("mobilenet_v2@3"))


def test_normalisation_in_whole_numbers_and_what_disagrees(tmp_path: Path) -> None:
    module, _ = described_module()
    module.mean, module.std = (0, 0, 0), (1, 1, 1)  # type: ignore[assignment]
    path = write("zip", module, tmp_path / "x")
    description = load_checkpoint(path).description
    assert description is not None
    assert (description.mean, description.std) == ((0, 0, 0), (1, 1, 1))
    assert not any("mean" in part for part in description.extra["assumed"])
    with pytest.raises(CheckpointError, match=r"std: expected \(0\.5, 0\.5, 0\.5\), got \(1, 1, 1\)"):
        load_checkpoint(path, stated=Stated(std=(0.5,) * 3))


@pytest.mark.parametrize("whole", [True, False])
def test_of_our_xprotonet_the_folder_is_asked_for(whole: bool, tmp_path: Path) -> None:
    described = Description("xprotonet", "conv-small", (4, 8, 1, 1), 2, activation="cosine", size=(64, 64))
    module = xprotonet_ext.FAMILY.build(described)
    with pytest.raises(CheckpointError, match=r"XProtoNet: .* of one of ours, give the folder"):
        load_checkpoint(write("zip", module if whole else module.state_dict(), tmp_path / "x"))


def test_our_own_tensors_are_read_with_their_description(tmp_path: Path) -> None:
    module, described = described_module(mean=(0.1, 0.2, 0.3), class_names=("a", "b"))
    path = save_checkpoint(tmp_path / "run", module, described) / "model.safetensors"
    loaded = load_model(str(path))
    assert (loaded.name, loaded.size, loaded.class_names) == ("run", (64, 64), ("a", "b"))
    assert load_checkpoint(path).description == described
    with pytest.raises(CheckpointError, match="one of ours, in our format already"):
        convert(path, tmp_path / "out")
    path.with_name("model.json").unlink()
    assert load_checkpoint(path, stated=Stated(prototypes_per_class=2)).description.size == (224, 224)  # type: ignore


def test_what_is_assumed_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("zip", upstream(), tmp_path / "x")
    for _ in range(2):
        load_model(str(path))
    said = capsys.readouterr().err
    assert said.count("assumed, since the file does not say: ") == 1
    assert f"{path}: assumed" in said
    assert "mean: ImageNet's, std: ImageNet's" in said
    load_model(str(save_checkpoint(tmp_path / "run", *described_module())))
    assert not capsys.readouterr().err


def test_classes_without_names_are_not_matched_by_number(tmp_path: Path) -> None:
    """Of a folder with some of the classes, the first is not the model's first."""
    folder = save_checkpoint(tmp_path / "run", *described_module())
    loaded = load_model(str(folder))
    two, three = (Planted("birds", "test", count=2, size=64, classes=n) for n in (2, 3))
    assert with_labels_of(loaded, two) is two
    with pytest.raises(DataError, match=r"classes of the data: expected the model's 2, .*--class-names.* got 3"):
        with_labels_of(loaded, three)


def test_half_precision_is_compared_with_its_own_code(tmp_path: Path) -> None:
    path = write("zip", upstream().half(), tmp_path / "x")
    source = convert(path, tmp_path / "out", trust=True).source
    assert source is not None
    assert source < 1e-3


def test_files_of_no_family(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a family that reads foreign checkpoints \(protopnet\)"):
        load_checkpoint(write("zip", nn.Linear(2, 3).state_dict(), tmp_path / "x"))
    with pytest.raises(CheckpointError, match="a dict without weights at its root"):
        load_checkpoint(write("zip", {"epoch": 3}, tmp_path / "x"))
    with pytest.raises(CheckpointError, match="an object of"):
        load_checkpoint(write("pickle", Stated(), tmp_path / "x"))


def test_convert_proves_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = upstream()
    path = write("legacy", model, tmp_path / "x.pth")
    (tmp_path / "names.txt").write_text("red\ngreen\n\nblue\n")
    arguments = ["convert", str(path), "--out", str(tmp_path / "out"), "--class-names", str(tmp_path / "names.txt")]
    assert main([*arguments, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2", "--crop", "box", "--trust"]) == 0
    said = capsys.readouterr().out
    assert "to the bit" in said
    assert "Against the file's own code they differ by at most" in said
    assert "Not proved" not in said
    loaded = check_same(tmp_path / "out", model)
    assert loaded.description.class_names == ("red", "green", "blue")
    assert loaded.description.mean == (0.5, 0.4, 0.3)
    assert loaded.description.crop == "box"
    assert json.loads((tmp_path / "out" / "model.json").read_text())["extra"]["converted from"]["form"] == "legacy"
    assert loaded.model.describe(5) == "blue / 5"


def test_convert_states_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = upstream()
    path = write("zip", model.state_dict(), tmp_path / "x.pth")
    out = str(tmp_path / "out")
    assert main(["convert", str(path), "--out", out]) == 2
    assert "--classes-from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(path), "--out", out, "--prototypes-per-class", "2", "--size", "64"]) == 0
    check_same(tmp_path / "out", model)
    said = capsys.readouterr().out
    assert "Assumed, since the file does not say it: activation: log." in said
    assert "Not proved: the forward pass is taken to be a ProtoPNet's" in said


class Fork:
    """Holds a fork of the same class name whose forward pass is another: no attribute shows it."""

    class PPNet(PPNet):
        def distances_of(self, features: Tensor) -> Tensor:
            return super().distances_of(features) * 2


def test_convert_finds_out_a_fork_when_its_code_may_run(tmp_path: Path) -> None:
    path = write("zip", fill(Fork.PPNet(size=64)), tmp_path / "x.pth")
    read = convert(path, tmp_path / "a")
    assert read.source is None
    assert "as published" in read.description.extra["unproved"]
    with pytest.raises(CheckpointError, match="activations of the file's own code"):
        convert(path, tmp_path / "b", trust=True)
    assert not (tmp_path / "b").exists()


def test_model_may_be_a_foreign_file(tmp_path: Path) -> None:
    path = write("zip", upstream(), tmp_path / "model.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (70, 80, 3), np.uint8))
    out = tmp_path / "out"
    arguments = ["locate", str(path), str(tmp_path / "a.png"), "--method", "upsampling", "--beside", "none", "--quiet"]
    assert main([*arguments, "--panels", "0", "--out", str(out)]) == 0
    assert (out / "regions.json").exists()
    loaded = load_model(str(path))
    assert (loaded.name, loaded.size) == ("model", (64, 64))
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ProtomaskError, match="got a file"):
        load_model(str(tmp_path / "x.txt"))


def test_what_fails_leaves_the_random_state(tmp_path: Path) -> None:
    path = write("zip", upstream(), tmp_path / "x")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    convert(path, tmp_path / "out", trust=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [10**9, (10**5, 224), 0, "224", (1, 2, 3), torch.ones(2)])
def test_an_absurd_size_is_refused(value: object, tmp_path: Path) -> None:
    model = upstream()
    model.img_size = value  # type: ignore[assignment]
    with pytest.raises(ProtomaskError, match="img_size"):
        load_checkpoint(write("zip", model, tmp_path / "x"))
