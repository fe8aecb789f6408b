"""Batch norm folded into a copy, and the copy that is kept: what it computes, when it is made anew, when it goes."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import protomask
from protomask import folding
from protomask.folding import folded, quick
from protomask.model import Contract, contract
from tests.toys import BlockModel, ConvModel, scenes

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))


class Residual(nn.Module):
    """Batch norms that can be folded, one whose convolution is read by another, and one after no convolution."""

    mean, std, num_prototypes = (0.5,) * 3, (0.25,) * 3, 4

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.other = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.last = nn.BatchNorm2d(4)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 2)
                nn.init.normal_(m.bias)
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        raw = self.first(images)
        x = self.other(self.second(self.norm(raw).relu())).relu()
        values = self.last(x).amax((2, 3)) + (raw.mean((2, 3)) if self.shared else 0)
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def norms(model: Contract) -> int:
    assert model.module is not None
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.module.modules())


def test_folding_computes_the_same_and_leaves_the_model() -> None:
    torch.manual_seed(0)
    model = Residual(shared=False).eval()
    before, images = copy.deepcopy(model.state_dict()), torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        other = folded(contract(model), images)
        assert norms(other) == 1
        assert torch.allclose(other.activations(images), model.activations(images), atol=1e-5)
    assert norms(contract(model)) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert parameters_to_vector(other.module.parameters()).dtype == torch.float32  # type: ignore[union-attr]


def test_a_convolution_that_something_else_reads_is_not_folded() -> None:
    torch.manual_seed(0)
    model = Residual(shared=True).eval()
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        other = folded(contract(model), images)
        assert torch.allclose(other.activations(images), model.activations(images), atol=1e-6)
    assert other.source is model


def test_a_copy_in_training_mode_is_folded_in_evaluation_mode() -> None:
    class Rebuilt(Residual):
        def __deepcopy__(self, memo: dict[int, object]) -> Rebuilt:
            other = Rebuilt(self.shared)  # as some repositories' own copies, in training mode
            other.load_state_dict(self.state_dict())
            return other

    torch.manual_seed(0)
    model, images = Rebuilt(shared=False).eval(), torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        other = folded(contract(model), images)
        assert norms(other) == 1
        assert torch.allclose(other.activations(images), model.activations(images), atol=1e-5)


def test_a_model_that_is_no_module_is_not_folded() -> None:
    model = contract(BlockModel([(0, 0, 9, 9)]))
    assert folded(model, torch.rand(1, 3, 32, 32)) is model


def test_the_quick_copy_computes_the_same_and_takes_any_layout() -> None:
    torch.manual_seed(0)
    model, images = ConvModel().eval(), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        other = quick(contract(model), images)
        assert other.channels_last
        assert other.source is not model
        assert quick(other, images) is other
        torch.testing.assert_close(other.activations(images), model.activations(images), rtol=1e-4, atol=1e-6)


def test_a_model_that_views_its_tensors_stays_as_it_is() -> None:
    class Views(ConvModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            return super().activations(images.view(len(images), -1).view(images.shape), prototypes)

    known = contract(Views().eval())
    assert quick(known, torch.rand(2, 3, 32, 32)) is known


class Wrapped:
    """An adapter: the network in an attribute, and settings of its own that no fingerprint of the network knows."""

    num_prototypes = 4

    def __init__(self, module: Any, factor: float = 1.0) -> None:
        self.module, self.factor = module, factor

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        return self.factor * self.module.activations(images, prototypes)


class Loose(Residual):
    """Its settings are in a list, where nobody looks for them."""

    def __init__(self) -> None:
        super().__init__(shared=False)
        self.settings = [1.0]

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self.shared = self.settings[0] > 5
        return super().activations(images, prototypes) * self.settings[0]


def net(make: Callable[[], nn.Module] = lambda: Residual(shared=False)) -> Any:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Contract]]:
    """The copies that were folded, in a process that has kept none before."""
    found: list[Contract] = []

    def counting(model: Contract, images: Tensor) -> Contract:
        found.append(folded(model, images))
        return found[-1]

    monkeypatch.setattr(folding, "folded", counting)
    monkeypatch.setattr(folding, "_COPIES", weakref.WeakKeyDictionary())
    yield found
    found.clear()


def agree(model: object, images: Tensor = IMAGES) -> Contract:
    """The quick model, which computes what the model does."""
    other = quick(contract(model), images)
    torch.testing.assert_close(other.activations(images), contract(model).activations(images), rtol=1e-4, atol=1e-5)
    return other


def test_the_copy_of_an_unchanged_network_is_made_once(made: list[Contract]) -> None:
    model = net()
    before = set(vars(model))
    first = agree(model)
    assert agree(model, IMAGES[1:]).module is first.module
    assert agree(model).module is first.module
    assert norms(first) == 1
    assert len(made) == 1
    assert set(vars(model)) == before


CHANGES: dict[str, Callable[[Any], object]] = {
    "a weight in place": lambda m: m.second.weight[0, 0, 0].add_(1),
    "a weight behind autograd's back": lambda m: m.second.weight.data.mul_(-1),
    "a new tensor for a weight": lambda m: setattr(m.norm.weight, "data", torch.rand(4)),
    "a buffer, too little for the proof": lambda m: m.norm.running_mean.add_(1e-6),
    "a layer": lambda m: setattr(m, "first", copy.deepcopy(m.first)),
    "a number, too little for the proof": lambda m: setattr(m.norm, "eps", 1.1e-5),
    "a method's settings": lambda m: m.settings.__setitem__(0, 2.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_copy_of_a_changed_network_is_made_anew(name: str, made: list[Contract]) -> None:
    model = net(Loose)
    first = agree(model)
    with torch.no_grad():
        CHANGES[name](model)
    second = agree(model)
    assert len(made) == 2
    assert second.module is not first.module
    assert agree(model).module is second.module
    assert len(folding._COPIES) == 1


def test_shuffled_weights_are_others_even_where_the_image_does_not_show_them(made: list[Contract]) -> None:
    model, images = net(), torch.cat([torch.zeros_like(IMAGES[:1]), IMAGES])
    model.norm.reset_running_stats()
    agree(model, images)
    model.first.weight.data = model.first.weight.data.flip(2, 3)
    agree(model, images)
    assert len(made) == 2


def test_another_type_of_numbers_is_another_network(made: list[Contract]) -> None:
    model = net()
    agree(model)
    other = agree(model.double(), IMAGES.double())
    assert parameters_to_vector(other.module.parameters()).dtype == torch.float64
    agree(model.float())
    assert len(made) == 3
    assert len(folding._COPIES) == 1


def test_a_network_with_hooks_is_not_copied(made: list[Contract]) -> None:
    """A hook may keep what it sees in an object that the copy does not have."""
    model = net()
    agree(model)
    handle = model.first.register_forward_hook(lambda m, given, output: None)
    agree(model)
    assert len(made) == 1
    handle.remove()
    agree(model)
    assert len(made) == 1


def test_an_adapter_is_made_anew_around_the_copy_and_not_kept(made: list[Contract]) -> None:
    model = net()
    source = Wrapped(model)
    first = agree(source)
    source.factor = 3.0
    assert agree(source).module is first.module
    assert agree(Wrapped(model, 0.5)).module is first.module
    assert len(made) == 1
    assert first.module is not model
    gone, first, made[:] = weakref.ref(source), agree(Wrapped(model)), []
    del source
    gc.collect()
    assert gone() is None
    assert model in folding._COPIES


def test_what_the_model_says_of_its_images_is_read_anew(made: list[Contract]) -> None:
    model = net()
    agree(model)
    model.mean = (0.1, 0.2, 0.3)
    assert agree(model).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapped])
def test_the_copy_goes_with_its_network(wrap: Callable[[nn.Module], object], made: list[Contract]) -> None:
    model = net()
    other = agree(wrap(model)).module
    assert other is not None
    assert other is not model
    gone = weakref.ref(other), weakref.ref(model)
    made.clear()
    del other
    gc.collect()
    assert gone[0]() is not None
    del model
    gc.collect()
    assert [one() for one in gone] == [None, None]
    assert len(folding._COPIES) == 0


def hold(model: nn.Module) -> None:
    """A function that knows the model; copies share it, as they share all functions."""
    model.again = lambda: model  # type: ignore[assignment]


def test_a_copy_that_holds_its_network_is_dropped_after_a_few_others(made: list[Contract]) -> None:
    model = net()
    hold(model)
    gone = weakref.ref(model)
    agree(model)
    del model
    others = [net() for _ in range(folding._MOST)]
    for other in others:
        agree(other)
    made.clear()
    gc.collect()
    assert gone() is None
    assert len(folding._COPIES) == folding._MOST


def test_a_copy_that_no_longer_agrees_is_dropped(made: list[Contract]) -> None:
    model = net(Loose)
    agree(model)
    model.settings[0] = 9.0
    assert agree(model).source is model
    assert len(made) == 2
    assert len(folding._COPIES) == 0


class Distances(Residual):
    """A ProtoPNet's score of a prototype that is a patch of :data:`IMAGES`: the logarithm of a difference near zero."""

    prototype: Tensor

    def __init__(self) -> None:
        super().__init__(shared=False)
        self.register_buffer("prototype", torch.zeros(4))

    def features(self, images: Tensor) -> Tensor:
        return 30 * self.other(self.second(self.norm(self.first(images)).relu())).relu()

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        x = self.features(images)
        products = (x * self.prototype[:, None, None]).sum(1)
        distances = ((x**2).sum(1) - 2 * products + (self.prototype**2).sum()).relu().flatten(1)
        return (((distances + 1) / (distances + 1e-4)).log()).amax(1, keepdim=True)


def distances(images: Tensor) -> Distances:
    model: Distances = net(Distances)
    model.num_prototypes = 1
    model.prototype += model.features(images)[0, :, 4, 4] + 0.02
    return model


@torch.no_grad()
def test_a_model_whose_own_rounding_is_large_is_folded_once(made: list[Contract]) -> None:
    images = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(6))
    model, off = distances(images), []
    exact = copy.deepcopy(model).double().activations(images.double())
    for image in images.split(1):
        other = quick(contract(model), image)
        assert other.channels_last
        wanted = model.activations(image)
        off.append(float((other.activations(image) - wanted).abs().max() / wanted.max()))
    assert max(off) > 10 * folding._ROUNDING  # what float32 alone would have refused
    assert float((model.activations(images) - exact).abs().max()) > 10 * folding._ROUNDING  # though it is rounding
    assert len(made) == 1


@torch.no_grad()
def test_a_wrong_copy_is_refused_also_where_rounding_is_large(
    made: list[Contract], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distances(IMAGES)
    wrong = copy.deepcopy(model)
    wrong.prototype *= 1.001
    monkeypatch.setattr(folding, "folded", lambda found, images: folding._around(found, wrong))
    assert quick(contract(model), IMAGES).source is model


@torch.no_grad()
def test_a_model_that_cannot_be_copied_stays_as_it_is_also_where_rounding_is_large() -> None:
    class Single(Distances):
        def __deepcopy__(self, memo: dict[int, object]) -> Single:
            raise ValueError("there is one of me")

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            channels_last = images.is_contiguous(memory_format=torch.channels_last)
            return super().activations(images) + 0.01 * channels_last  # rounds otherwise

    model = net(Single)
    model.num_prototypes = 1
    assert quick(contract(model), IMAGES).source is model


def test_a_copy_from_inference_mode_is_not_for_gradients(made: list[Contract]) -> None:
    model = net()
    with torch.inference_mode():
        agree(model)
    leaf = IMAGES.clone().requires_grad_()
    (found,) = torch.autograd.grad(agree(model).activations(leaf).sum(), leaf)
    assert len(made) == 2
    assert float(found.abs().max()) > 0


def test_threads_share_a_copy(made: list[Contract]) -> None:
    model, came = net(), []
    threads = [threading.Thread(target=lambda: came.append(quick(contract(model), IMAGES))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = contract(model).activations(IMAGES)
    assert len(came) == 8
    for one in came:
        torch.testing.assert_close(one.activations(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    assert len(folding._COPIES) == 1


def test_locating_twice_folds_once_and_finds_the_same(made: list[Contract]) -> None:
    model = ConvModel()
    first, second = (protomask.locate(model, scenes(), "top:1", "mdm-fast") for _ in range(2))
    assert torch.equal(first.maps, second.maps)
    assert len(made) == 1
    with torch.no_grad():
        model.vectors.mul_(1.01)
    third = protomask.locate(model, scenes(), "top:1", "mdm-fast")
    assert len(made) == 2
    assert not torch.equal(first.activations_before, third.activations_before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.int64])
def test_the_sum_for_other_devices_tells_places_and_single_bits(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 0], [0, 0, 0]]).to(dtype)
    turned = values.flip(1).roll(1, 1)
    assert int(folding._weighed(values)) == int(folding._weighed(values.clone()))
    assert int(folding._weighed(values)) != int(folding._weighed(turned))
    assert int(folding._weighed(values)) != int(folding._weighed(values.roll(1, 0)))
    assert int(folding._weighed(values)) != int(folding._weighed(torch.zeros_like(values)))
    assert int(folding._weighed(torch.tensor(1).to(dtype))) != int(folding._weighed(torch.tensor(0).to(dtype)))
