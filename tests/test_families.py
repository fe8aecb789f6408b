"""What must hold of every family: bad input is named, models come back as they came, batches change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import protomask
import protopnet_ext
import xprotonet_ext
from protomask.errors import InputError, ModelError
from protomask.model import Family, families
from tests.ppnet import PPNet, ppnet
from tests.test_locate import BAD, EVERY, box_iou, pearson, same, scene, snapshot
from tests.test_protopnet_adapter import Crashing as CrashingPPNet
from tests.test_protopnet_adapter import Unrelated as UnrelatedPPNet
from tests.test_protopnet_adapter import made
from tests.test_xprotonet_adapter import Silent
from tests.test_xprotonet_adapter import Unrelated as UnrelatedXProtoNet
from tests.xprotonet import TheirXProtoNet, xprotonet


class CrashingXProtoNet(TheirXProtoNet):
    """It cannot take images."""

    def forward(self, x: Tensor) -> Any:
        torch.rand(3)
        raise RuntimeError("no such luck")


@dataclass(frozen=True)
class Case:
    """A family and models that are not ours: 4 prototypes, 2 classes, 32 pixels; ``contrasted`` ones can be located."""

    family: Family
    wrap: Callable[..., Any]
    model: Callable[[], nn.Module]
    crashing: Callable[[], nn.Module]
    unrelated: Callable[[], nn.Module]
    contrasted: Callable[[], nn.Module]
    body: str


SMALL = {"prototypes": 4, "classes": 2}
CASES = {
    "protopnet": Case(
        protopnet_ext.FAMILY,
        protopnet_ext.wrap,
        lambda: ppnet(**SMALL),
        lambda: made(CrashingPPNet, **SMALL),
        lambda: made(UnrelatedPPNet, **SMALL),
        lambda: ppnet(**SMALL),
        "features",
    ),
    "xprotonet": Case(
        xprotonet_ext.FAMILY,
        xprotonet_ext.wrap,
        lambda: xprotonet(**SMALL),
        lambda: xprotonet(CrashingXProtoNet, **SMALL),
        lambda: xprotonet(UnrelatedXProtoNet, **SMALL),
        lambda: xprotonet(Silent, **SMALL),
        "cnn_backbone",
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def pushed(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose first prototypes were taken from the scenes, as trained ones are."""
    model, x = case.contrasted().to(dtype).eval(), scene(dtype)
    with torch.no_grad():
        if isinstance(model, PPNet):
            model.prototype_vectors[:] = model.conv_features(x)[:, :, 3:4, 4:5]
        else:
            model.prototype_vectors[:] = model.pooled(x)[0][range(4), range(4), :, None, None]  # type: ignore
    return model


def test_every_installed_family_is_here() -> None:
    assert families() == {name: case.family for name, case in CASES.items()}
    for name, case in CASES.items():
        assert [n for n, other in CASES.items() if other.family.matches(case.model())] == [name]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_names_argument_expectation_and_value(case: Case, change: dict[str, Any], message: str) -> None:
    model = case.model().train()
    with pytest.raises(InputError, match=message):
        protomask.locate(case.wrap(model), **{"images": scene(), "targets": "top:1", **change})
    assert all(m.training for m in model.modules())


def test_bad_input_is_refused_before_any_pass(case: Case) -> None:
    model = case.model()
    wrapped = case.wrap(model)
    model.get_submodule(case.body).register_forward_hook(lambda *_: pytest.fail("a pass was made"))
    for bad in ({"targets": [(0, 9)]}, {"targets": "top:x"}, {"method": "lime"}, {"steps": -1}):
        with pytest.raises(InputError):
            protomask.locate(wrapped, scene(), **{"targets": "top:1", **bad})


def test_wrong_arguments_of_wrap(case: Case) -> None:
    model = case.model()
    for arguments, message in (
        ({"class_names": ["a", "b", "c"]}, "class_names: expected 2 names or none, got 3"),
        ({"mean": [0.5]}, "mean: expected 3 values"),
        ({"std": [0.5] * 4}, "std: expected 3 values"),
        ({"input_shape": (32, 32)}, r"input_shape: expected \(C, H, W\)"),
    ):
        with pytest.raises(InputError, match=message):
            case.wrap(model, **arguments)
    del model.img_size
    with pytest.raises(InputError, match="no img_size"):
        case.wrap(model)
    assert case.wrap(model, input_shape=(3, 48, 32)).input_shape == (3, 48, 32)


@pytest.mark.parametrize("method", EVERY)
def test_a_model_comes_back_from_locate_as_it_came(case: Case, method: str) -> None:
    model = untidy(case.model())
    before = snapshot(model)  # type: ignore[arg-type]
    protomask.locate(model, scene(), "top:2", method)
    assert same(before, snapshot(model))  # type: ignore[arg-type]
    assert kept_gradient(model)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_also_after_an_error(case: Case, after: int) -> None:
    model = untidy(case.model())
    wrapped = case.wrap(model)
    left = [after]

    def fail(*_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyError("the user's model broke")

    model.get_submodule(case.body).register_forward_hook(fail)
    before = snapshot(model)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        protomask.locate(wrapped, scene(), "top:2")
    assert same(before, snapshot(model))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["model", "crashing", "unrelated"])
def test_a_model_comes_back_from_wrap_as_it_came(case: Case, kind: str) -> None:
    model = untidy(getattr(case, kind)())
    before = snapshot(model)  # type: ignore[arg-type]
    if kind == "model":
        case.wrap(model)
    else:
        with pytest.raises(ModelError):
            case.wrap(model)
    assert same(before, snapshot(model))  # type: ignore[arg-type]
    assert kept_gradient(model)


@pytest.mark.parametrize("method", EVERY)
def test_batching_changes_nothing_float64(case: Case, method: str) -> None:
    model, x = case.wrap(pushed(case, torch.float64)), scene(torch.float64)
    pairs = [(i, p) for i in range(4) for p in (i, (i + 1) % 4)]
    settings = {"steps": 10} if method in ("mdm", "single-mask") else {}
    whole = protomask.locate(model, x, pairs, method, batch=64, **settings)
    for batch in (1, 7):
        part = protomask.locate(model, x, pairs, method, batch=batch, **settings)
        assert float((part.maps - whole.maps).abs().max()) < 1e-6
    alone = protomask.locate(model, x[2:3], [(0, 3)], method, **settings)
    assert float((alone.maps[0] - whole.maps[pairs.index((2, 3))]).abs().max()) < 1e-6


@pytest.mark.parametrize("method", EVERY)
def test_batching_changes_nothing_float32(case: Case, method: str) -> None:
    model, x = case.wrap(pushed(case)), scene()
    pairs = [(i, i) for i in range(4)]
    whole, alone = (protomask.locate(model, x, pairs, method, batch=batch) for batch in (64, 1))
    keep = whole.located
    assert keep.any()
    assert torch.equal(alone.located, keep)
    assert (pearson(whole.maps[keep], alone.maps[keep]) >= 0.999).all()
    assert (box_iou(whole.boxes[keep], alone.boxes[keep]) >= 0.95).all()


def untidy(model: nn.Module) -> nn.Module:
    """In training mode but for one layer, with a frozen parameter, a gradient and a hook."""
    model.train()
    body = model.get_submodule(next(name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)))
    body.eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    list(model.parameters())[1].requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


def kept_gradient(model: nn.Module) -> bool:
    first, *others = model.parameters()
    return first.grad is not None and bool((first.grad == 1).all()) and all(p.grad is None for p in others)
