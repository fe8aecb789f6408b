"""What surrounds a user's model while it is looked at: precision, threads, buffers, hooks, dtypes, odd declarations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import protomask
from protomask.errors import InputError, ModelError
from protomask.model import contract, untouched
from tests.toys import BLOCKS, BlockModel, ConvModel, scenes

CHEAP = ("mdm-fast", "mdm", "mdm-best", "single-mask", "occlusion", "rise", "extremal", "neuromask", "upsampling")


def quickly(method: str) -> dict[str, Any]:
    """Settings with which a method takes a moment."""
    return {"rise": {"masks": 16}, "extremal": {"steps": 2}, "neuromask": {"steps": 2}}.get(method, {})


@pytest.mark.parametrize("method", CHEAP)
def test_a_surrounding_autocast_changes_nothing(method: str) -> None:
    model, images = ConvModel(), scenes(2)
    plain = protomask.locate(model, images, "top:1", method, **quickly(method))
    with torch.autocast("cpu", torch.bfloat16):
        inside = protomask.locate(model, images, "top:1", method, **quickly(method))
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(plain.maps, inside.maps)
    assert inside.maps.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["mdm", "mdm-best", "random"])
def test_models_in_half_precision_are_located(method: str, dtype: torch.dtype) -> None:
    model, images = ConvModel(), scenes(2)
    found = protomask.locate(model.to(dtype), images.to(dtype), "top:1", method)
    assert found.located.all()
    assert found.maps.isfinite().all()


def test_the_default_dtype_is_no_matter() -> None:
    model, images = ConvModel(), scenes(2)
    plain = [protomask.locate(model, images, "top:1", m, **quickly(m)) for m in ("mdm", "rise")]
    torch.set_default_dtype(torch.float64)
    try:
        other = [protomask.locate(model, images, "top:1", m, **quickly(m)) for m in ("mdm", "rise")]
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(a.maps, b.maps)


def test_images_of_another_dtype_are_named() -> None:
    with pytest.raises(
        InputError, match=r"images: expected torch.float32, as the model's parameters, got torch.float64"
    ):
        protomask.locate(ConvModel(), scenes(1).double())

    class Casting(ConvModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            return super().activations(images.float(), prototypes)

    assert protomask.locate(Casting(), scenes(1).double(), "top:1", "mdm-fast").located.all()


class Kept:
    """A user's own class that keeps its network in an attribute, features by a forward hook if ``hooked``."""

    mean, std, num_prototypes, activation_range = (0.5,) * 3, (0.25,) * 3, 4, (0.0, 1.0)

    def __init__(self, *, hooked: bool = False) -> None:
        self.net = ConvModel()
        if hooked:
            self.module = self.net.body
            self.module.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, given: object, output: Tensor) -> None:
        self.features = output

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        if not hasattr(self, "module"):
            return self.net.activations(images, prototypes)
        self.module(images)
        distance = (self.features[:, None] - self.net.vectors[None, :, :, None, None]).square().sum(2)
        values = torch.exp(-distance / 8).amax((2, 3))
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def test_a_network_that_is_called_otherwise_is_frozen_too() -> None:
    model, images = Kept(), scenes(3)
    model.net.train()
    buffers = {name: b.clone() for name, b in model.net.named_buffers()}
    company = protomask.locate(model, images, [(0, 0), (1, 1), (2, 2)], "mdm-fast")
    alone = protomask.locate(model, images[:1], [(0, 0)], "mdm-fast")
    assert torch.allclose(company.maps[0], alone.maps[0], atol=1e-5)
    assert model.net.training
    assert all(torch.equal(b, buffers[name]) for name, b in model.net.named_buffers())
    assert all(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("method", ["mdm-fast", "smoothgrad", "rise", "occlusion"])
def test_features_that_a_hook_keeps_are_those_of_the_pass(method: str) -> None:
    hooked, plain = Kept(hooked=True), Kept()
    for batch in (1, 32):
        settings = {"batch": batch, **quickly(method)}
        ours = protomask.locate(hooked, scenes(1), [(0, 0), (0, 1)], method, **settings)
        theirs = protomask.locate(plain, scenes(1), [(0, 0), (0, 1)], method, **settings)
        assert torch.allclose(ours.maps, theirs.maps, atol=1e-4)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrised_convolution_is_passed_as_it_is(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = ConvModel()
    wrap(model.body[0])
    assert protomask.locate(model, scenes(1), "top:1", "mdm-fast").maps.isfinite().all()


class Counting(ConvModel):
    """Counts its passes in a buffer, and puts another tensor in the place of a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self.passes += 1
        self.last = images.detach().mean().view(1)
        return super().activations(images, prototypes)


def test_buffers_come_back() -> None:
    model = Counting()
    last = model.last
    protomask.locate(model, scenes(1), "top:1", "mdm-fast")
    assert float(model.passes) == 0
    assert model.last is last
    assert float(model.last) == 0


def test_threads_take_turns() -> None:
    model = ConvModel().train()
    entered: list[str] = []

    def other() -> None:
        with untouched(nn.DataParallel(model)):
            entered.append("other")

    worker = threading.Thread(target=other)
    with untouched(model):
        worker.start()
        worker.join(0.2)
        assert not entered
    worker.join()
    assert entered == ["other"]
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_the_same_thread_does_not_wait_for_itself() -> None:
    model = ConvModel().train()
    with untouched(model), untouched(model.body):
        assert not model.training
    assert model.training


class Declared(BlockModel):
    """A BlockModel of any declarations."""

    def __init__(self, **declared: object) -> None:
        super().__init__(BLOCKS)
        for name, value in declared.items():
            setattr(self, name, value)


def test_declarations_may_be_tensors_arrays_and_numbers() -> None:
    known = contract(Declared(mean=torch.full((1, 3, 1, 1), 0.5), std=np.array([0.25, 0.25, 0.5])))
    assert known.mean == (0.5, 0.5, 0.5)
    assert known.std == (0.25, 0.25, 0.5)
    assert contract(Declared(mean=0.5)).mean == (0.5,)
    assert contract(Declared(activation_range=None)).activation_range == (None, None)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"mean": None}, "model.mean: expected a number per channel, got None"),
        ({"mean": "grey"}, "model.mean: expected a number per channel, got 'grey'"),
        ({"mean": (0.5, float("nan"), 0.5)}, "model.mean: expected a finite number per channel"),
        ({"std": (0.0, 1.0, 1.0)}, "model.std: expected a number above 0 per channel"),
        ({"activation_range": 0.0}, r"model.activation_range: expected \(floor, ceiling\)"),
    ],
)
def test_a_declaration_that_cannot_be_read_is_named(declared: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        protomask.locate(Declared(**declared), torch.rand(1, 3, 32, 32))


def test_a_colour_of_another_number_of_channels_is_named() -> None:
    model, images = Declared(mean=(0.5, 0.5)), torch.rand(1, 3, 32, 32)
    assert protomask.locate(model, images, "top:1", "mdm-fast").located.all()
    with pytest.raises(ModelError, match=r"model.mean: expected 3 values, one per channel of the images, got 2"):
        protomask.locate(model, images, "top:1", "mdm-fast", fill="black")


class Short:
    """A model with no memory for more than ``most`` images in a pass; the largest pass that went through is kept."""

    def __init__(self, most: int) -> None:
        self.inner, self.most, self.largest = ConvModel(), most, 0
        self.num_prototypes, self.mean, self.std = 4, self.inner.mean, self.inner.std
        self.activation_range = (0.0, 1.0)

    def _count(self, images: Tensor) -> None:
        if len(images) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        self.largest = max(self.largest, len(images))

    def similarity_maps(self, images: Tensor) -> Tensor:
        self._count(images)
        return self.inner.similarity_maps(images)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self._count(images)
        return self.inner.activations(images, prototypes)


@pytest.mark.parametrize("method", ["integrated-gradients", "upsampling-centred"])
def test_too_little_memory_halves_the_batch(method: str) -> None:
    model, images = Short(3), scenes(2)
    found = protomask.locate(model, images, "top:1", method)
    free = protomask.locate(model.inner, images, found.targets, method)
    assert model.largest <= 3
    assert torch.allclose(found.maps, free.maps, atol=1e-4)


def test_a_numpy_number_is_a_batch_too() -> None:
    model = Short(99)
    protomask.locate(model, scenes(4), "all", "mdm-fast", batch=np.int64(2))  # type: ignore[arg-type]
    assert model.largest == 2
