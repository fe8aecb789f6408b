"""Checkpoints: what goes in comes out, and everything wrong is refused with its name, before anything runs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from protomask import checkpoint as ours
from protomask.checkpoint import Description, PrototypeSource, load_checkpoint, read_description, save_checkpoint
from protomask.errors import CheckpointError, InputError, ResourceError
from protomask.model import Family

SHAPE = (4, 2, 1, 1)


class Tiny(nn.Module):
    """A linear model of a family of its own, with one tensor outside its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("count", torch.tensor(3))
        self.identity = torch.eye(4, 2)
        self.num_prototypes = 4

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        return self.layer(images.mean((2, 3)))

    def extra_tensors(self) -> dict[str, Tensor]:
        return {"identity": self.identity}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.identity = tensors["identity"]


def build(description: Description) -> nn.Module:
    if description.backbone != "tiny":
        raise InputError("backbone: expected tiny")
    return Tiny()


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Family("tiny-family", lambda m: False, lambda m: m, build, lambda p: None, lambda a: None)  # type: ignore
    monkeypatch.setattr(ours, "families", lambda: {"tiny-family": known})


@pytest.fixture
def description() -> Description:
    sources = (PrototypeSource("a/1.jpg", "prototypes/0.png", 1, 9.2, (1, 2, 30, 40)), *[PrototypeSource()] * 3)
    return Description(
        "tiny-family",
        "tiny",
        SHAPE,
        2,
        activation="linear",
        size=(64, 96),
        crop="box",
        class_names=("Möwe", "b"),
        prototypes=sources,
        extra={"training": {"seed": 3, "size": [64, 96]}},
    )


@pytest.fixture
def folder(tmp_path: Path, description: Description) -> Path:
    return save_checkpoint(tmp_path / "new" / "model", Tiny(), description)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_what_goes_in_comes_out(tmp_path: Path, description: Description) -> None:
    module = Tiny()
    module.identity = torch.rand(4, 2)
    module.count += 4
    loaded = load_checkpoint(save_checkpoint(tmp_path, module, description))
    assert loaded.description == description
    assert isinstance(loaded.module, Tiny)
    assert not loaded.module.training
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)
    assert torch.equal(loaded.module.identity, module.identity)
    assert loaded.model is loaded.module
    assert loaded.folder == tmp_path
    files = sorted(tmp_path.iterdir())
    assert [p.name for p in files] == ["model.json", "model.safetensors"]
    assert files[0].stat().st_mode == files[1].stat().st_mode  # both readable by whoever may read new files


def test_half_precision_becomes_float32(folder: Path) -> None:
    path = folder / "model.safetensors"
    halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
    save_file(halves, path)
    module = load_checkpoint(folder).module
    assert isinstance(module, Tiny)
    assert module.layer.weight.dtype == torch.float32
    assert module.identity.dtype == torch.float32
    assert torch.equal(module.layer.weight, halves["layer.weight"].float())


def test_loading_leaves_the_random_state(folder: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_save_leaves_the_old_one(
    folder: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full(path: Path) -> None:
        assert path.stat().st_size > 0
        raise OSError("disk full")

    monkeypatch.setattr("protomask.files._to_disk", full)
    with pytest.raises(ResourceError, match="disk full"):
        save_checkpoint(folder, Tiny(), description)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


def test_two_halves_of_two_saves_are_no_pair(
    folder: Path, description: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two files, a save would leave the new tensors with the old description."""

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ours, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, Tiny(), replace(description, epsilon=0.5))
    with pytest.raises(CheckpointError, match=r"expected the tensors that .* got those of another save"):
        load_checkpoint(folder)
    save_checkpoint(folder, Tiny(), description)
    edit(folder, epsilon=0.25)  # by hand
    assert load_checkpoint(folder).description == replace(description, epsilon=0.25)
    edit(folder, description_sha256=...)  # as before there was one
    assert load_checkpoint(folder).description == replace(description, epsilon=0.25)


def test_unwritable_folder(tmp_path: Path, description: Description) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"model\.safetensors: expected a file that can be written"):
        save_checkpoint(tmp_path / "file" / "model", Tiny(), description)


def test_extra_must_be_json(tmp_path: Path, description: Description) -> None:
    with pytest.raises(InputError, match=r"description\.extra"):
        save_checkpoint(tmp_path, Tiny(), replace(description, extra={"f": lambda: 0}))
    with pytest.raises(InputError, match=r"description\.extra"):
        save_checkpoint(tmp_path, Tiny(), replace(description, extra={"f": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_missing_things(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="got a file"):
        load_checkpoint(folder / "model.json")
    (folder / "model.safetensors").rename(folder / "x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected .* no such file"):
        load_checkpoint(folder)
    (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json: expected .* no such file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_tensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a whole safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_unopened(folder: Path, zipped: bool) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle was opened",)

    path = folder / "model.safetensors"
    torch.save({"layer.weight": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"got a .*pickle"):
        load_checkpoint(folder)
    path.write_bytes(pickle.dumps({"layer.weight": 0}))
    with pytest.raises(CheckpointError, match="got a pickle"):
        load_checkpoint(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = load_file(path)
    weight = good["layer.weight"]
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in good.items() if k != "layer.bias"}, r"1 missing: layer\.bias"),
        (good | {"layer.other": weight.clone()}, r"1 unexpected: layer\.other"),
        ({k: v for k, v in good.items() if k != "identity"}, "1 missing: identity"),
        (good | {"layer.weight": weight.T.contiguous()}, r"layer\.weight: expected shape \[4, 3\], got \[3, 4\]"),
        (good | {"layer.weight": weight.double()}, r"layer\.weight: expected dtype torch\.float32, got torch\.float64"),
        (good | {"count": torch.tensor(3.0)}, r"count: expected dtype torch\.int64"),
        (good | {"layer.weight": weight / 0}, r"layer\.weight: expected finite values, got 12 NaN or infinite of 12"),
    ]
    for tensors, message in wrong:
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(folder)


WRONG = [
    ({"format_version": 2}, "format_version: expected 1, got 2"),
    ({"format_version": ...}, "format_version: expected 1, got None"),
    ({"family": 3}, "family: expected a string, got 3"),
    ({"family": ...}, "missing 1 required positional argument: 'family'"),
    ({"colour": "red"}, r"also \['colour'\]"),
    ({"prototype_shape": [4, 2, 1]}, "prototype_shape: expected 4 integers, got 3"),
    ({"prototype_shape": [4, 2, 1, -1]}, "prototype_shape: expected an integer of at least 1, got -1"),
    ({"prototype_shape": "4211"}, "prototype_shape: expected a list"),
    ({"num_classes": True}, "num_classes: expected an integer"),
    ({"num_classes": 2.5}, "num_classes: expected an integer"),
    ({"activation": "cubic"}, "activation: expected one of log, linear, cosine, got 'cubic'"),
    ({"multi_label": 1}, "multi_label: expected true or false, got 1"),
    ({"add_on": None}, "add_on: expected one of"),
    ({"crop": ["box"]}, "crop: expected one of"),
    ({"mean": [0.5, 0.5]}, "std: expected 2 numbers"),
    ({"std": [0.2, 0.2, 0.0]}, "std above 0"),
    ({"mean": [0.5, float("nan"), 0.5]}, "mean: expected a number"),
    ({"mean": [0.5, float("inf"), 0.5]}, "mean: expected a number"),
    ({"size": [64]}, "size: expected 2 integers"),
    ({"class_names": ["a"]}, "class_names: expected 2 names or none, got 1"),
    ({"class_names": [1, 2]}, "class_names: expected a string"),
    ({"epsilon": 0}, "epsilon: expected a number"),
    ({"epsilon": "1e-4"}, "epsilon: expected a number"),
    ({"prototypes": [{}]}, "prototypes: expected 4 entries or none, got 1"),
    ({"prototypes": {}}, "prototypes: expected a list"),
    ({"prototypes": [3] * 4}, "prototypes: expected a JSON object, got int"),
    ({"prototypes": [{"file": "../../etc/passwd"}] * 4}, "a path inside the checkpoint's folder"),
    ({"prototypes": [{"file": "/etc/passwd"}] * 4}, "a path inside the checkpoint's folder"),
    ({"prototypes": [{"box": [1, 2, 3]}] * 4}, "box: expected 4 numbers"),
    ({"prototypes": [{"activation": "high"}] * 4}, "activation: expected a number"),
    ({"extra": []}, "extra: expected a mapping"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_description(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_description(folder)
    assert str(folder / "model.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", '{"format_version": 1'])
def test_no_json(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"model\.json: expected a JSON"):
        read_description(folder)


def test_unknown_family_and_backbone(folder: Path) -> None:
    edit(folder, family="other")
    with pytest.raises(CheckpointError, match=r"family: expected an installed family \(tiny-family\), got 'other'"):
        load_checkpoint(folder)
    edit(folder, family="tiny-family", backbone="huge")
    with pytest.raises(CheckpointError, match="a tiny-family model that can be built, got backbone"):
        load_checkpoint(folder)


def test_a_huge_shape_is_refused_before_it_is_built(folder: Path) -> None:
    edit(folder, prototype_shape=[10**6, 10**6, 1, 1], prototypes=[])
    with pytest.raises(CheckpointError, match="prototype_shape: expected a shape that 25 stored values can fill"):
        load_checkpoint(folder)
