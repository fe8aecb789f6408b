"""Descendants of ProtoPNet: each is read by what reproduces its logits, and what none reproduces is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import protomask
import protopnet_ext
from protomask.errors import ModelError
from protopnet_ext import matches, wrap

from .patching_tools import PROBE, Loader, normalise, probe
from .ppnet import PPNet


class TesNet(PPNet):
    """``push_forward`` gives negative projections; its second output and its name for similarity say something else."""

    def projections(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.conv_features(x), functional.normalize(self.prototype_vectors, dim=1))

    def forward(self, x: Tensor) -> Any:
        largest = self.projections(x).amax((2, 3))
        return self.last_layer(largest), -0.5 * largest

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv_features(x), -self.projections(x)


class EvalProtoPNet(TesNet):
    """``push_forward`` gives similarities; the head weights prototypes within their class; features come with more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.last_layer
        self.activation_weight = nn.Parameter(torch.rand(self.num_prototypes))

    def conv_features(self, x: Tensor) -> Any:
        return super().conv_features(x), []

    def projections(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.conv_features(x)[0], functional.normalize(self.prototype_vectors, dim=1))

    def forward_SA_module(self, activations: Tensor) -> Tensor:
        weights = self.activation_weight.reshape(self.num_classes, -1).softmax(1).flatten()
        return (activations * weights).reshape(len(activations), self.num_classes, -1).sum(2)

    def forward(self, x: Tensor) -> Any:
        similarities = self.projections(x)
        return self.forward_SA_module(similarities.amax((2, 3))), (similarities,)

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv_features(x)[0], self.projections(x)


class STProtoPNet(PPNet):
    """Two banks, no ``push_forward``, no ``last_layer`` and no ``prototype_vectors`` of that name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prototype_vectors_trivial = nn.Parameter(torch.rand(self.prototype_shape) - 0.5)
        self.prototype_vectors_support = nn.Parameter(torch.rand(self.prototype_shape) - 0.5)
        self.last_layer_trivial = nn.Linear(self.num_prototypes, self.num_classes, bias=False)
        self.last_layer_support = nn.Linear(self.num_prototypes, self.num_classes, bias=False)
        del self.prototype_vectors, self.last_layer
        self.push_forward = None  # type: ignore[assignment]

    def bank(self, x: Tensor, vectors: Tensor) -> Tensor:
        features = functional.normalize(self.conv_features(x), dim=1)
        return functional.conv2d(features, functional.normalize(vectors, dim=1))

    def forward(self, x: Tensor) -> Any:
        maps = tuple(self.bank(x, v).relu() for v in (self.prototype_vectors_trivial, self.prototype_vectors_support))
        trivial, support = (m.amax((2, 3)) for m in maps)
        logits = self.last_layer_trivial(trivial), self.last_layer_support(support)
        return logits, (trivial, support), maps

    def push_forward_trivial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv_features(x), -self.bank(x, self.prototype_vectors_trivial)

    def push_forward_support(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv_features(x), -self.bank(x, self.prototype_vectors_support)


class ProtoPool(nn.Module):
    """Prototypes shared by classes through slots; it squeezes a batch of one away."""

    def __init__(self, prototypes: int = 6, classes: int = 4, slots: int = 2) -> None:
        super().__init__()
        inner = PPNet(prototypes=prototypes)
        self.img_size, self.num_prototypes, self.num_classes, self.epsilon = 32, prototypes, classes, 1e-4
        self.features, self.add_on_layers = inner.features, inner.add_on_layers
        self.prototype_vectors = inner.prototype_vectors
        self.prototype_activation_function = "log"
        self.proto_presence = nn.Parameter(torch.randn(classes, prototypes, slots))
        self.last_layer = nn.Linear(classes * slots, classes, bias=False)

    def conv_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.add_on_layers(self.features(x))
        return features

    def prototype_distances(self, x: Tensor) -> Tensor:
        return (self.conv_features(x)[:, None] - self.prototype_vectors[None]).square().sum(2)

    def distance_2_similarity(self, distances: Tensor) -> Tensor:
        return torch.log((distances + 1) / (distances + self.epsilon))

    def forward(self, x: Tensor, gumbel_scale: int = 0) -> Any:
        presence = self.proto_presence.softmax(1)
        distances = self.prototype_distances(x)
        pooled = [distances.amin((2, 3)).squeeze(), distances.mean((2, 3)).squeeze()]
        slots = [self.distance_2_similarity(torch.einsum("bp,cpn->bcn", d, presence)) for d in pooled]
        return self.last_layer((slots[0] - slots[1]).flatten(1)), pooled[0], presence


def made(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()


def images(count: int = 3) -> Tensor:
    return normalise(Loader().pictures[:count])


def expected_maps(model: Any, x: Tensor) -> Tensor:
    """[B, P, h, w], the maps that the model pools, by its own methods."""
    if isinstance(model, ProtoPool):
        return model.distance_2_similarity(model.prototype_distances(x))
    if isinstance(model, STProtoPNet):
        return torch.cat([-model.push_forward_trivial(x)[1], -model.push_forward_support(x)[1]], 1).relu()
    return model.projections(x)


KINDS = [TesNet, EvalProtoPNet, STProtoPNet, ProtoPool]


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_what_the_model_pools(kind: type[nn.Module]) -> None:
    model = made(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert matches(model)
    assert matches(nn.DataParallel(model))
    wrapped = wrap(model)
    maps = expected_maps(model, images())
    count = 12 if kind is STProtoPNet else 6
    assert wrapped.num_prototypes == count
    assert torch.allclose(wrapped.activations(images()), maps.amax((2, 3)), atol=1e-6)
    chosen = torch.tensor([count - 1, 0, 3])
    assert torch.allclose(wrapped.activations(images(), chosen), maps.amax((2, 3))[range(3), chosen], atol=1e-6)
    assert torch.allclose(wrapped.similarity_maps(images()), maps, atol=1e-6)
    assert wrapped.activations(images(1)).shape == (1, count), "one image alone"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_located_through_the_general_call(kind: type[nn.Module]) -> None:
    with probe():
        found = protomask.locate(made(kind), images(), "top:1", **PROBE)
    assert len(found) == 3


def test_class_weights() -> None:
    tesnet = made(TesNet)
    assert torch.allclose(wrap(tesnet).class_weights(), tesnet.last_layer.weight.T)
    sa = made(EvalProtoPNet)
    weights = wrap(sa).class_weights()
    own = sa.activation_weight.reshape(3, 2).softmax(1)
    assert torch.allclose(weights[[0, 1], 0], own[0])
    assert weights[0, 1:].abs().max() == 0
    st = made(STProtoPNet)
    both = torch.cat([st.last_layer_trivial.weight, st.last_layer_support.weight], 1).T
    assert torch.allclose(wrap(st).class_weights(), both)
    pool = made(ProtoPool)
    assert torch.allclose(wrap(pool).class_weights().sum(0), torch.full((4,), 2.0)), "each of a class's two slots is 1"


def test_names() -> None:
    assert wrap(made(STProtoPNet)).describe(7) == "class 0 / 7"
    assert wrap(made(EvalProtoPNet), class_names=["a", "b", "c"]).describe(5) == "c / 5"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_logits_come_from_elsewhere_is_refused(kind: type[nn.Module]) -> None:
    class Off(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Any:
            logits, *rest = super().forward(x)
            return (tuple(v + 0.01 for v in logits) if isinstance(logits, tuple) else logits + 0.01, *rest)

    with pytest.raises(ModelError, match="model: expected"):
        wrap(made(Off))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_crashes_is_refused(kind: type[nn.Module]) -> None:
    class Crashing(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Any:
            raise KeyError("no such luck")

    with pytest.raises(ModelError, match="no such luck"):
        wrap(made(Crashing))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_counted_where_the_model_does_not_say(kind: type[nn.Module]) -> None:
    model, other = made(kind), made(kind)
    del model.num_classes
    if kind is EvalProtoPNet:
        model.forward_SA_module = other.forward_SA_module  # its own reshapes by the count
        model.forward = other.forward
    assert wrap(model).num_classes == other.num_classes


def test_what_disagrees_is_said_of_a_model_without_num_classes() -> None:
    model = made(PPNet)
    del model.num_classes
    model.forward = lambda x: (torch.ones(len(x), 3), None)
    with pytest.raises(ModelError, match="a largest difference of"):
        wrap(model)


@pytest.fixture
def _probe() -> Iterator[None]:
    with probe():
        yield


@pytest.mark.usefixtures("_probe")
@pytest.mark.parametrize(
    ("kind", "maps", "prototype"),
    [
        (TesNet, lambda m, x: -m.push_forward(x)[1], 4),
        (EvalProtoPNet, lambda m, x: m.push_forward(x)[1], 4),
        (STProtoPNet, lambda m, x: m(x)[2][0], 4),
        (STProtoPNet, lambda m, x: m(x)[2][1], 10),
        (STProtoPNet, lambda m, x: -m.push_forward_support(x)[1], 10),
        (ProtoPool, lambda m, x: m.distance_2_similarity(m.prototype_distances(x)), 4),
    ],
)
def test_their_maps_are_recognised(kind: type[nn.Module], maps: Callable[..., Tensor], prototype: int) -> None:
    model = made(kind)
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        drawn = cv2.resize(maps(model, images())[1, 4].numpy(), (32, 32))
    assert handle.report.replaced == {"maps": 1}
    found = protomask.locate(wrap(model), images(), [(1, prototype)], **PROBE)
    assert np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99
