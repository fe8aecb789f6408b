"""The adapter: it reads a PPNet rightly, refuses what only looks like one, and leaves the model as it came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protomask.errors import InputError, ModelError
from protomask.model import IMAGENET_MEAN, class_prototypes, contract
from protopnet_ext.adapter import matches, wrap
from tests.ppnet import PPNet, ppnet


def images(count: int = 3, size: int = 32, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Similar(PPNet):
    """As EvalProtoPNet: ``push_forward`` gives similarities."""

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, distances = super().push_forward(x)
        return features, -distances

    def forward(self, x: Tensor) -> Any:
        similarity = (-self.prototype_distances(x)).amax((2, 3))
        return self.last_layer(similarity), similarity


class Projecting(PPNet):
    """As TesNet: ``push_forward`` gives negative projections, which the logits do not use through distances."""

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv_features(x)
        return features, -nn.functional.conv2d(features, self.prototype_vectors)

    def forward(self, x: Tensor) -> Any:
        projections = nn.functional.conv2d(self.conv_features(x), self.prototype_vectors).amax((2, 3))
        return self.last_layer(projections), -projections


class Unrelated(PPNet):
    """Its logits come from elsewhere."""

    def forward(self, x: Tensor) -> Any:
        logits, nearest = super().forward(x)
        return logits + 0.01, nearest


class Weighted(PPNet):
    """A distance of its own: squared differences weighted by channel."""

    def distances_of(self, features: Tensor) -> Tensor:
        gaps = features[:, None] - self.prototype_vectors
        return (gaps.square() * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1, 1)).sum(2)


class Bare(PPNet):
    """Its forward pass gives logits alone."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[0]


class Crashing(PPNet):
    """It cannot take images."""

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        torch.rand(3)
        raise RuntimeError("no such luck")


def made(kind: type[PPNet], **options: Any) -> PPNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options)


@pytest.mark.parametrize("activation", ["log", "linear"])
@pytest.mark.parametrize("kernel", [1, 2])
def test_activations_by_hand(activation: str, kernel: int) -> None:
    model = ppnet(activation=activation, kernel=kernel).double().eval()
    x = images(dtype=torch.float64)
    features = model.conv_features(x).detach()
    vectors = model.prototype_vectors.detach()
    similarity = torch.full((3, 6), -math.inf, dtype=torch.float64)
    for b in range(3):
        for p in range(6):
            for top in range(features.shape[2] - kernel + 1):
                for left in range(features.shape[3] - kernel + 1):
                    patch = features[b, :, top : top + kernel, left : left + kernel]
                    d = float((patch - vectors[p]).square().sum())
                    value = math.log((d + 1) / (d + 1e-4)) if activation == "log" else -d
                    similarity[b, p] = max(float(similarity[b, p]), value)
    wrapped = wrap(model)
    assert torch.allclose(wrapped.activations(x), similarity, rtol=0, atol=1e-12)
    maps = wrapped.similarity_maps(x)
    assert maps is not None
    assert torch.allclose(maps.amax((2, 3)), similarity, rtol=0, atol=1e-12)
    assert torch.equal(wrapped.logits(x), model(x)[0])


@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("activation", ["log", "linear", torch.exp])
def test_one_prototype_per_image_is_the_same_as_all(
    activation: Any, kernel: int, dtype: torch.dtype, tolerance: float
) -> None:
    model = ppnet(activation=(lambda d: (-d).exp()) if callable(activation) else activation, kernel=kernel)
    wrapped = wrap(model.to(dtype).eval())
    assert wrapped._selects
    x, chosen = images(6, dtype=dtype).requires_grad_(), torch.tensor([5, 0, 3, 3, 1, 2])
    alone, every = wrapped.activations(x, chosen), wrapped.activations(x)[torch.arange(6), chosen]
    assert alone.shape == (6,)
    assert torch.allclose(alone, every, rtol=0, atol=tolerance)
    slopes = [torch.autograd.grad(a.sum(), x)[0] for a in (alone, every)]
    assert torch.allclose(*slopes, rtol=0, atol=tolerance)
    assert float(slopes[0].abs().max()) > 0


def test_one_prototype_per_image_computes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap(ppnet())
    monkeypatch.setattr(wrapped.module, "push_forward", lambda x: pytest.fail("all distances were computed"))
    assert wrapped.activations(images(2), torch.tensor([4, 1])).shape == (2,)


def test_a_pushed_prototype_on_its_own_image() -> None:
    model = ppnet().eval()
    x = images(1)
    with torch.no_grad():
        model.prototype_vectors[2] = model.conv_features(x)[0, :, 3, 4][:, None, None]
    x.requires_grad_()
    value = wrap(model).activations(x, torch.tensor([2]))
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(math.log(1 / 1e-4), abs=1e-6)
    assert x.grad is not None
    assert float(x.grad.abs().max()) == 0


def test_ranges() -> None:
    assert wrap(ppnet()).activation_range == (0.0, pytest.approx(9.2103404))
    assert wrap(ppnet(activation="linear")).activation_range == (None, 0.0)
    assert wrap(ppnet(activation=lambda d: -d / 2)).activation_range == (None, None)


def test_data_parallel_and_pruned() -> None:
    model = ppnet().eval()
    before = wrap(nn.DataParallel(model)).activations(images())
    model.prune_prototypes([0, 3])
    wrapped = wrap(nn.DataParallel(model))
    assert wrapped.module is model
    assert wrapped.num_prototypes == 4
    assert torch.allclose(wrapped.activations(images()), before[:, [1, 2, 4, 5]], rtol=0, atol=1e-6)
    assert wrapped.prototype_classes().tolist() == [0, 1, 2, 2]
    assert wrapped.class_weights().shape == (4, 3)


def test_logits_alone() -> None:
    model = made(Bare).eval()
    assert wrap(model).logits(images()).shape == (3, 3)


def test_classes_and_names() -> None:
    model = ppnet()
    wrapped = wrap(model, class_names=["Cardinal", "Jay", "Wren"])
    assert torch.equal(wrapped.class_weights(), model.last_layer.weight.T)
    assert wrapped.describe(3) == "Jay / 3"
    assert wrap(model).describe(3) == "class 1 / 3"
    # Upstream's initial last layer, 1 and -1/2, gives each class exactly its own prototypes.
    known = contract(wrapped)
    assert [class_prototypes(known, [k]).tolist() for k in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InputError, match=r"prototype: expected an index in 0 \.\. 5"):
        wrapped.describe(6)


def test_the_contract_reads_it() -> None:
    known = contract(wrap(ppnet(), mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
    assert known.input_shape == (3, 32, 32)
    assert known.mean == (0.1, 0.2, 0.3)
    assert known.std == (1.0, 1.0, 1.0)
    assert known.activations(images(2)).shape == (2, 6)
    assert known.activations(images(2), torch.tensor([0, 5])).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Similar, "second output is a similarity"),
        (Projecting, "second output is a negative similarity"),
        (Unrelated, "second output is not what the logits are made of"),
        (Crashing, r"a PPNet that takes images \[3, 3, 32, 32\], got an error \(no such luck\)"),
    ],
)
def test_what_only_looks_like_a_ppnet_is_refused(kind: type[PPNet], why: str) -> None:
    model = made(kind, activation="log")
    assert matches(model)
    with pytest.raises(ModelError, match=why):
        wrap(model)


def test_projections_read_as_linear_have_no_range() -> None:
    model = made(Projecting, activation="linear").eval()
    wrapped = wrap(model)
    assert wrapped.activation_range == (None, None)
    projections = nn.functional.conv2d(model.conv_features(images()), model.prototype_vectors).amax((2, 3))
    assert torch.allclose(wrapped.activations(images()), projections)
    chosen = torch.tensor([5, 0, 3])
    assert torch.allclose(wrapped.activations(images(), chosen), projections[range(3), chosen])


def test_nan_is_refused() -> None:
    model = ppnet()
    model.prototype_vectors.data[0] = math.nan
    with pytest.raises(ModelError, match="largest difference of nan"):
        wrap(model)


def test_a_distance_of_its_own_takes_the_full_route() -> None:
    model = made(Weighted).eval()
    wrapped = wrap(model)
    chosen = torch.tensor([5, 0, 3])
    assert not wrapped._selects
    assert torch.equal(wrapped.activations(images(), chosen), wrapped.activations(images())[range(3), chosen])
    assert torch.allclose(model(images())[0], model.last_layer(wrapped.activations(images())))


def test_maps_that_do_not_pool_are_dropped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="similarity maps dropped"):
        wrapped = wrap(ppnet(activation=lambda d: d))
    assert wrapped.similarity_maps(images()) is None
    assert torch.allclose(wrapped.logits(images()), wrapped.module.last_layer(wrapped.activations(images())))


def test_no_ppnet() -> None:
    for other in (nn.Linear(2, 2), object(), None):
        assert not matches(other)
        with pytest.raises(ModelError, match="model: expected a PPNet"):
            wrap(other)


def test_a_last_layer_that_does_not_fit() -> None:
    model = ppnet()
    model.last_layer = nn.Linear(5, 3)
    with pytest.raises(ModelError, match=r"last_layer\.weight: expected a tensor \[K, 6\], got \[3, 5\]"):
        wrap(model)


def test_grey_input() -> None:
    model = ppnet()
    model.features[0] = nn.Conv2d(1, 8, 3, 2, 1)
    assert wrap(model, mean=[0.5], std=[0.2]).input_shape == (1, 32, 32)


def test_attributes_of_any_form_are_read() -> None:
    model = ppnet()
    model.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(1, 3, 1, 1))
    model.register_buffer("std", torch.tensor([0.5, 0.25, 1.0], dtype=torch.bfloat16).view(3, 1, 1))
    model.class_names = None  # type: ignore[assignment]
    model.img_size = np.int64(32)  # type: ignore[assignment]
    wrapped = wrap(model)
    assert (wrapped.mean, wrapped.std) == ((0.4, 0.5, 0.6), (0.5, 0.25, 1.0))
    assert wrapped.class_names == ()
    assert wrapped.input_shape == (3, 32, 32)
    model.img_size, model.mean, model.std = [32, 32], None, None  # type: ignore[assignment]
    wrapped = wrap(model)
    assert (wrapped.mean, wrapped.input_shape) == (IMAGENET_MEAN, (3, 32, 32))


@pytest.mark.parametrize("name", ["mean", "std", "img_size", "class_names"])
def test_attributes_that_cannot_be_read_are_named(name: str) -> None:
    model = ppnet()
    setattr(model, name, object())
    with pytest.raises(ModelError, match=rf"model\.{name}: expected n.*, got object"):
        wrap(model)


class Tempered(PPNet):
    """Its similarity takes a second argument, which its own forward pass gives."""

    def distance_2_similarity(self, distances: Tensor, temperature: float) -> Tensor:  # type: ignore[override]
        return -distances / temperature

    def forward(self, x: Tensor) -> Any:
        nearest = self.prototype_distances(x).amin((2, 3))
        return self.last_layer(self.distance_2_similarity(nearest, 2.0)), nearest


class Accompanied(PPNet):
    """Its features come with more."""

    def conv_features(self, x: Tensor) -> Any:
        return super().conv_features(x), []

    def distances_of(self, features: Any) -> Tensor:
        return super().distances_of(features[0])


def test_forks_with_other_arguments_and_results() -> None:
    with pytest.raises(ModelError, match=r"an error \(TypeError: .*temperature"):
        wrap(made(Tempered))
    model = made(Accompanied).eval()
    assert torch.equal(wrap(model).logits(images()), model(images())[0])
