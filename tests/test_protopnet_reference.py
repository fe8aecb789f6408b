"""The reference ProtoPNet: upstream's names and numbers, its weights files, its checkpoints."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn

from protomask import checkpoint as checkpoints
from protomask.checkpoint import Description, load_checkpoint, save_checkpoint
from protomask.errors import CheckpointError, InputError
from protomask.training.backbones import (
    BACKBONES,
    build_features,
    feature_channels,
    has_identity_statistics,
    load_weights,
    receptive_field,
)
from protopnet_ext import FAMILY, ProtoPNet, build, wrap
from tests.ppnet import PPNet

SHAPE = (6, 16, 1, 1)
HEAD = [f"add_on_layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
PROTOTYPES = ["prototype_vectors", "ones"]


def small(backbone: str = "conv-small", **options: object) -> ProtoPNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"img_size": 64} | options
        model = ProtoPNet(build_features(backbone), SHAPE, 3, **settings)  # type: ignore[arg-type]
        statistics(model)
    return model.eval()


def statistics(model: nn.Module) -> None:
    """Give batch norm statistics as of a trained network."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


def images(count: int = 2, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def norm_keys(prefix: str) -> list[str]:
    return [prefix + k for k in (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")]


def vgg11_keys() -> list[str]:
    return [f"features.features.{n}.{kind}" for n in (0, 3, 6, 8, 11, 13, 16, 18) for kind in ("weight", "bias")]


def resnet18_keys() -> list[str]:
    keys = ["features.conv1.weight", *norm_keys("features.bn1")]
    for layer in range(1, 5):
        for block in range(2):
            name = f"features.layer{layer}.{block}"
            for n in (1, 2):
                keys += [f"{name}.conv{n}.weight", *norm_keys(f"{name}.bn{n}")]
            if block == 0 and layer > 1:
                keys += [f"{name}.downsample.0.weight", *norm_keys(f"{name}.downsample.1")]
    return keys


def densenet121_keys() -> list[str]:
    keys = ["features.features.conv0.weight", *norm_keys("features.features.norm0")]
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.features.denseblock{block}.denselayer{layer}"
            for n in (1, 2):
                keys += [*norm_keys(f"{name}.norm{n}"), f"{name}.conv{n}.weight"]
        if block < 4:
            name = f"features.features.transition{block}"
            keys += [*norm_keys(f"{name}.norm"), f"{name}.conv.weight"]
    return keys + norm_keys("features.features.norm5")


@pytest.mark.parametrize(
    ("backbone", "keys"), [("vgg11", vgg11_keys()), ("resnet18", resnet18_keys()), ("densenet121", densenet121_keys())]
)
def test_the_state_dict_has_upstreams_names(backbone: str, keys: list[str]) -> None:
    assert set(small(backbone).state_dict()) == {*keys, *HEAD, *PROTOTYPES, "last_layer.weight"}


def test_the_stand_in_computes_the_same() -> None:
    ours, theirs = small(), PPNet(size=64)
    theirs.features, theirs.add_on_layers = ours.features, ours.add_on_layers  # type: ignore[assignment]
    theirs.prototype_vectors, theirs.last_layer = ours.prototype_vectors, ours.last_layer
    assert torch.equal(theirs.prototype_class_identity, ours.prototype_class_identity)
    for mine, other in zip(ours(images()), theirs.eval()(images()), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-5)
    for mine, other in zip(ours.push_forward(images()), theirs.push_forward(images()), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-5)


@pytest.fixture
def upstream() -> Iterator[ModuleType]:
    """The authors' module ``model``, from a checkout of github.com/cfchen-duke/ProtoPNet."""
    folder = os.environ.get("PROTOMASK_UPSTREAM")
    if not folder:
        pytest.skip("set PROTOMASK_UPSTREAM to a checkout of cfchen-duke/ProtoPNet")
    known = set(sys.modules)
    sys.path.insert(0, str(Path(folder).resolve()))
    yield importlib.import_module("model")
    sys.path.pop(0)
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(Path(folder).resolve())):
            del sys.modules[name]


@pytest.mark.parametrize("backbone", ["vgg11", "resnet18", "densenet121"])
@pytest.mark.parametrize(("activation", "add_on"), [("log", "bottleneck"), ("linear", "regular")])
def test_weights_move_to_and_from_upstream(upstream: ModuleType, backbone: str, activation: str, add_on: str) -> None:
    options = {"prototype_activation_function": activation, "add_on_layers_type": add_on}
    theirs = upstream.construct_PPNet(
        backbone, pretrained=False, img_size=64, prototype_shape=SHAPE, num_classes=3, **options
    )
    statistics(theirs)
    ours = small(backbone, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.proto_layer_rf_info == theirs.proto_layer_rf_info
    assert torch.equal(ours.last_layer.weight, theirs.last_layer.weight)
    for source, target in ((theirs.eval(), ours), (small(backbone, **options), theirs)):
        target.load_state_dict(source.state_dict())
        came, wanted = ((*m(images()), *m.push_forward(images())) for m in (target, source))
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(came, wanted, strict=True))
    assert wrap(theirs).num_prototypes == 6


@pytest.mark.parametrize("backbone", ["conv-small", "vgg11_bn", "resnet50", "mobilenet_v2", "squeezenet1_0"])
def test_backbones_carry_a_model(backbone: str) -> None:
    model = small(backbone)
    features, distances = model.push_forward(images())
    assert features.shape[1] == 16
    assert features.shape[2] == model.proto_layer_rf_info[0]
    assert distances.shape == (2, 6, *features.shape[2:])
    assert wrap(model).num_prototypes == 6


def test_every_backbone_is_torchvisions() -> None:
    assert {b for b in BACKBONES if b != "conv-small"} <= set(torchvision.models.list_models())
    with pytest.raises(InputError, match=r"backbone: expected one of vgg11.*'alexnet'"):
        build_features("alexnet")


def test_features_are_torchvisions_own() -> None:
    net = torchvision.models.densenet121(weights=None).eval()
    statistics(net)
    features = build_features("densenet121").eval()
    features.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("classifier")})
    pooled = features(images()).mean((2, 3))
    assert torch.allclose(net.classifier(pooled), net(images()), rtol=0, atol=1e-5)


CUTS = {
    "mobilenet_v2@16": (96, "features.13."),
    "mobilenet_v2@4": (24, "features.3."),
    "vgg11_bn@16": (512, "features.26."),
    "vgg11@1": (64, "features.0."),
    "resnet18@16": (256, "layer3."),
    "resnet50@4": (256, "layer1."),
    "densenet121@16": (1024, "features.denseblock3."),
    "squeezenet1_1@8": (256, "features.7."),
    "conv-small@8": (64, "features.16."),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_backbone_is_the_first_layers_of_the_whole(name: str, tmp_path: Path) -> None:
    whole = build_features(name.partition("@")[0]).eval()
    statistics(whole)
    torch.save(whole.state_dict() | {"classifier.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    features = build_features(name).eval()
    load_weights(features, tmp_path / "weights.pth")
    kept = features.state_dict()
    first = {k: v for k, v in whole.state_dict().items() if k in kept}
    assert list(first) == list(whole.state_dict())[: len(kept)]
    assert all(torch.equal(kept[k], v) for k, v in first.items())
    channels, last = CUTS[name]
    assert list(kept)[-1].startswith(last)
    stride = int(name.partition("@")[2])
    cells = 128 // stride - ("squeezenet" in name)  # which does not pad
    assert features(images(1, 128)).shape == (1, channels, cells, cells)
    assert receptive_field(features, 128)[:2] == [cells, stride]
    assert repr(features) == f"{name}_features"


def test_a_cut_backbone_gives_the_inner_activations_of_the_whole() -> None:
    whole, cut = build_features("mobilenet_v2").eval(), build_features("mobilenet_v2@16").eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    assert torch.equal(cut(images()), whole[0][:14](images()))  # type: ignore[index]
    assert [m(images()).shape[2] for m in (cut, whole[0][:15])] == [4, 2]  # type: ignore[index]


def test_a_cut_at_the_last_stride_is_the_whole() -> None:
    for name, stride in (("mobilenet_v2", 32), ("resnet18", 32), ("densenet121", 32), ("conv-small", 16)):
        cut, whole = build_features(f"{name}@{stride}"), build_features(name)
        assert [k for k, _ in cut.named_modules()] == [k for k, _ in whole.named_modules()]


@pytest.mark.parametrize("stride", ["64", "3", "", "016", "16@8", "x", "-1", "1"])
def test_a_stride_that_a_backbone_does_not_have(stride: str) -> None:
    with pytest.raises(InputError, match=f"a stride of 2, 4, 8, 16, 32, got 'mobilenet_v2@{stride}'"):
        build_features(f"mobilenet_v2@{stride}")


def test_weights_files_of_a_cut_backbone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    features = build_features("conv-small@8", 1)
    whole = build_features("conv-small").state_dict()
    torch.save(whole, path)
    load_weights(features, path)
    first = "features.0.weight"
    assert torch.equal(features.state_dict()[first], whole[first].sum(1, keepdim=True))
    torch.save(features.state_dict(), path)
    load_weights(features, path)
    torch.save(whole | {"features.99.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"conv-small@8_features, got 1 unexpected: features\.99\.weight"):
        load_weights(features, path)
    torch.save({k: v for k, v in whole.items() if k != first}, path)
    with pytest.raises(CheckpointError, match=r"1 missing: features\.0\.weight"):
        load_weights(features, path)


@pytest.mark.parametrize(("backbone", "size"), [("conv-small", 208), ("vgg11", 208), ("squeezenet1_1", 320)])
def test_receptive_field_against_gradients(backbone: str, size: int) -> None:
    features = build_features(backbone).eval()
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.fill_(1e-3)
    cells, jump, extent, start = receptive_field(features, size)
    # A bump in every pixel reaches the output, so the gradient's support is the field; max pooling picks one of equals,
    # so noise makes the support vary, and several draws fill it.
    support = torch.zeros(size, dtype=torch.bool)
    for seed in range(6):
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        out = features(x)
        cell = out.shape[2] // 2
        out[0, :, cell].sum().backward()
        assert x.grad is not None
        support |= (x.grad != 0).any(1).any(0).any(1)
    rows = support.nonzero().squeeze(1)
    assert out.shape[2] == cells
    assert int(rows[-1] - rows[0]) + 1 == pytest.approx(extent, abs=0 if backbone == "conv-small" else 4)
    assert float(rows[0] + rows[-1] + 1) / 2 == pytest.approx(start + cell * jump, abs=2)


def test_bottleneck_halves_the_channels() -> None:
    model = small("resnet18", add_on_layers_type="bottleneck")
    widths = [m.out_channels for m in model.add_on_layers if isinstance(m, nn.Conv2d)]
    assert widths == [256, 256, 128, 128, 64, 64, 32, 32, 16, 16]
    assert [type(m) for m in model.add_on_layers][1::2] == [nn.ReLU] * 9 + [nn.Sigmoid]
    assert feature_channels(model.features) == 512


def test_pruning_keeps_the_rest() -> None:
    model = small()
    logits, nearest = model(images())
    weights = model.last_layer.weight.detach().clone()
    model.prune_prototypes([0, 4])
    pruned = model(images())
    assert torch.equal(pruned[1], nearest[:, [1, 2, 3, 5]])
    similarity = model.distance_2_similarity(nearest)
    assert torch.allclose(pruned[0], logits - similarity[:, [0, 4]] @ weights[:, [0, 4]].T, rtol=0, atol=1e-5)
    assert model.prototype_class_identity.argmax(1).tolist() == [0, 1, 1, 2]
    assert model.prototype_shape == [4, 16, 1, 1]
    with pytest.raises(InputError, match="expected at least one prototype left"):
        model.prune_prototypes([0, 1, 2, 3])
    with pytest.raises(InputError, match=r"prototypes_to_prune: expected an index in 0 \.\. 3, got 4"):
        model.prune_prototypes([4])


def description(model: ProtoPNet, **changes: object) -> Description:
    values: dict[str, object] = {
        "family": "protopnet",
        "backbone": "conv-small",
        "prototype_shape": tuple(model.prototype_shape),
        "num_classes": 3,
        "size": (64, 64),
        "class_names": ("a", "b", "c"),
        "mean": (0.1, 0.2, 0.3),
    }
    return Description(**values | changes)  # type: ignore[arg-type]


def test_checkpoint_of_a_pruned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "families", lambda: {"protopnet": FAMILY})
    model = small()
    model.prune_prototypes([0, 1, 3])
    loaded = load_checkpoint(save_checkpoint(tmp_path, model, description(model)))
    assert isinstance(loaded.module, ProtoPNet)
    for mine, other in zip(model(images()), loaded.module(images()), strict=True):
        assert torch.equal(mine, other)
    assert loaded.module.prototype_class_identity.argmax(1).tolist() == [1, 2, 2]
    assert loaded.model.describe(1) == "c / 1"  # type: ignore[attr-defined]
    assert loaded.model.mean == (0.1, 0.2, 0.3)  # type: ignore[attr-defined]
    assert loaded.model.input_shape == (3, 64, 64)  # type: ignore[attr-defined]


@pytest.mark.parametrize("backbone", ["mobilenet_v2@16", "resnet18@8", "conv-small@8"])
def test_checkpoint_of_a_cut_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    monkeypatch.setattr(checkpoints, "families", lambda: {"protopnet": FAMILY})
    model = small(backbone)
    saved = save_checkpoint(tmp_path, model, description(model, backbone=backbone))
    loaded = load_checkpoint(saved)
    assert loaded.description is not None
    assert loaded.description.backbone == backbone
    for mine, other in zip(model(images()), loaded.module(images()), strict=True):
        assert torch.equal(mine, other)
    text = (saved / "model.json").read_text()
    for wrong, message in ((backbone.partition("@")[0], "missing"), (backbone + "0", "and a stride of")):
        (saved / "model.json").write_text(text.replace(backbone, wrong))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(saved)


def test_oblong_input() -> None:
    model = small(img_size=(64, 96))
    assert wrap(model).input_shape == (3, 64, 96)
    assert build(description(model, size=(64, 96))).img_size == (64, 96)


def test_building_refuses_what_it_cannot() -> None:
    with pytest.raises(InputError, match="backbone: expected one of"):
        build(description(small(), backbone="alexnet"))
    with pytest.raises(InputError, match="prototype_activation_function: expected one of log, linear"):
        small(prototype_activation_function="cosine")


def wrapped_in(state: dict[str, Tensor], form: str) -> dict[str, object]:
    if form == "data parallel":
        return {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    if form == "model":
        return {"model": state}
    if form == "half":
        return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if form == "old":
        old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in state.items()}
        assert old.keys() != state.keys()
        return {k: v for k, v in old.items() if not k.endswith("num_batches_tracked")}
    return dict(state)


@pytest.mark.parametrize(
    ("backbone", "form"),
    [
        ("resnet18", "plain"),
        ("resnet18", "data parallel"),
        ("mobilenet_v2", "half"),
        ("squeezenet1_1", "model"),
        ("densenet121", "old"),
    ],
)
def test_weights_files(tmp_path: Path, backbone: str, form: str) -> None:
    net = torchvision.models.get_model(backbone, weights=None)
    statistics(net)
    state = wrapped_in(net.state_dict(), form)
    torch.save(state, tmp_path / "weights.pth")
    features = build_features(backbone)
    load_weights(features, tmp_path / "weights.pth")
    exact = {
        k: v.half().float() if form == "half" and v.is_floating_point() else v for k, v in net.state_dict().items()
    }
    for key, value in features.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, exact[key])
            assert value.dtype == exact[key].dtype
    assert not has_identity_statistics(features)


def test_wrong_weights_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    features = build_features("conv-small")
    good = features.state_dict()
    first = "features.0.weight"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle ran code",)

    wrong: list[tuple[object, str]] = [
        (
            {k: v for k, v in good.items() if k != first},
            r"of conv-small_features, got 1 missing: features\.0\.w",
        ),
        (good | {"layer.weight": torch.zeros(1)}, r"1 unexpected: layer\.weight"),
        (good | {first: torch.zeros(2, 3)}, r"features\.0\.weight: expected shape \[\d+, 3, 3, 3\], got \[2, 3\]"),
        (good | {first: good[first] / 0}, r"features\.0\.weight: expected finite values"),
        ([1, 2], "expected a state dict of tensors, got list"),
        ({"a": 1}, "expected a state dict of tensors, got dict"),
        (Bomb(), "loads without running code"),
    ]
    for content, message in wrong:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_weights(features, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="loads without running code"):
        load_weights(features, path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(features, tmp_path / "nowhere.pth")


def test_folded_batch_norm_is_noticed(real_data: Path) -> None:
    features = build_features("mobilenet_v2")
    load_weights(features, real_data / "weights" / "mobilenet_v2_inat_birds.pth")
    assert has_identity_statistics(features)
    assert not has_identity_statistics(build_features("squeezenet1_1"))  # it has no batch norm
