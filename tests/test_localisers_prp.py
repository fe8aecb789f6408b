"""Prototypical relevance propagation: conservation, a hand computation, and which models it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import protomask
import protopnet_ext
from protomask.errors import ModelError
from protomask.localisers import PRP
from protomask.localisers.prototype_relevance import find_head
from protomask.model import contract, untouched
from protomask.training.backbones import build_features
from tests.localising import planted, request_for
from tests.toys import BlockModel, scenes

pytest.importorskip("zennit", reason="needs the optional package zennit")


class Patches(nn.Module):
    """A ProtoPNet on any features: the nearest patch of sigmoid features, negative squared distances."""

    mean, std = (0.5,) * 3, (0.5,) * 3
    activation_range = (None, None)
    num_prototypes = 3

    def __init__(self, features: nn.Module, channels: int, size: int = 64) -> None:
        super().__init__()
        self.features = features
        self.add_on_layers = nn.Sequential(nn.Conv2d(channels, 6, 1), nn.Sigmoid())
        self.prototype_vectors = nn.Parameter(torch.rand(3, 6, 1, 1, generator=torch.Generator().manual_seed(2)))
        self.input_shape = (3, size, size)

    def similarity_maps(self, images: Tensor) -> Tensor:
        features = self.add_on_layers(self.features(images))
        return 6 - (features[:, None] - self.prototype_vectors[None]).square().sum(2)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = self.similarity_maps(images).flatten(2).amax(2)
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def settle(model: nn.Module, size: int = 64) -> nn.Module:
    """Seeded weights and batch statistics, so that activations of random images have an ordinary size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and p.shape[2:] and p is not getattr(model, "prototype_vectors", None):
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
        model.train()
        for _ in range(3):
            model.features(torch.randn(4, 3, size, size, generator=generator))  # type: ignore[operator]
    return model.eval()


def test_a_chain_by_hand() -> None:
    """One 1 x 1 convolution over non-negative channels: alpha-1 beta-0 shares by positive contributions."""

    class Chain(Patches):
        mean, std = (0.0,) * 3, (1.0,) * 3

    model = Chain(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU()), 4, 4)
    model.input_shape = (3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (model.features[0].weight, model.add_on_layers[0].weight):
            p.copy_(torch.randn(p.shape, generator=generator) + 0.7)
        model.add_on_layers[0].bias.zero_()
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = model.double()
    with untouched(model), torch.no_grad():
        request = request_for(model, images, [(0, 1)])
        found = PRP().relevance(request)[0]
        features = model.features(images)[0]
        z = model.add_on_layers(features[None])[0]
        prototype = model.prototype_vectors[1]
        squares = (z - prototype).square()
        cell = int(squares.sum(0).argmin())
        row, column = divmod(cell, 4)
        parts = 1 / squares[:, row, column]
        share = parts / parts.sum() * float(request.before[0])
        weights = model.add_on_layers[0].weight[:, :, 0, 0].clamp(min=0)
        flow = weights * features[:, row, column]
        hidden = (share[:, None] * flow / flow.sum(1, keepdim=True)).sum(0)
        first = model.features[0].weight[:, :, 0, 0]
        x = images[0, :, row, column]
        # The box rule with pixels in [0, 1]: x w - low w+ - high w-.
        flow = first * x - first.clamp(max=0)
        pixel = (hidden[:, None] * flow / flow.sum(1, keepdim=True)).sum(0)
    assert float(((found[:, row, column] - pixel) / pixel).abs().max()) < 1e-3
    assert float(found.abs().sum() - found[:, row, column].abs().sum()) < 1e-9


@pytest.mark.parametrize("family", ["protopnet", "xprotonet"])
def test_relevance_is_conserved(family: str) -> None:
    model, images, targets, _ = planted(family)
    with untouched(model.module):
        request = request_for(model, images, targets)
        total = PRP().relevance(request).sum((1, 2, 3))
    assert torch.allclose(total, request.before, rtol=0.02)


def test_a_linear_activation_has_the_map_of_the_logarithm() -> None:
    model, images, targets, _ = planted("protopnet")
    found = protomask.locate(model, images, targets, "prp")
    inner = copy.deepcopy(model.module)
    inner.prototype_activation_function = "linear"  # type: ignore[union-attr]
    linear = protopnet_ext.wrap(inner)
    assert linear.activation_range == (None, 0)
    other = protomask.locate(linear, images, targets, "prp")
    assert other.located.all()
    assert torch.allclose(other.maps, found.maps, atol=1e-4)


def test_the_heads_that_the_families_have() -> None:
    for family, layer in (("protopnet", "add_on_layers"), ("xprotonet", "add_on_layers")):
        model, images, targets, _ = planted(family)
        with untouched(model.module):
            assert find_head(model, images[:1], torch.tensor([targets[0][1]])).name == layer


@pytest.mark.parametrize("backbone", ["vgg11_bn", "resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_known_backbones_conserve_and_come_back(backbone: str) -> None:
    features = build_features(backbone)
    channels = {"vgg11_bn": 512, "resnet18": 512, "squeezenet1_1": 512, "mobilenet_v2": 1280}[backbone]
    model = settle(Patches(features, channels))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with untouched(model):
        request = request_for(model, images, [(0, 0), (1, 2)])
        total = PRP().relevance(request).sum((1, 2, 3))
    if backbone == "mobilenet_v2":  # with random weights, many an output is carried by nothing but a bias
        assert ((total > 0) & (total < request.before)).all()
    else:
        assert torch.allclose(total, request.before, rtol=0.05)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def refused(model: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        protomask.locate(model, torch.rand(1, *model.input_shape), "all", "prp")


def test_the_order_of_registration_is_no_matter() -> None:
    class Net(nn.Module):
        """An add-on after a body, either of them registered first."""

        mean, std, activation_range, input_shape = (0.5,) * 3, (0.25,) * 3, (0.0, 1.0), (3, 32, 32)
        num_prototypes = 4

        def __init__(self, swapped: bool) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            parts = {
                "body": nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
                "add_on": nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid()),
            }
            for part in parts.values():
                with torch.no_grad():
                    for p in part.parameters():
                        p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
            for name in reversed(parts) if swapped else parts:
                self.add_module(name, parts[name])
            self.vectors = nn.Parameter(torch.rand(4, 8, generator=generator))

        def similarity_maps(self, images: Tensor) -> Tensor:
            features = self.add_on(self.body(images))
            return torch.exp(-(features[:, None] - self.vectors[None, :, :, None, None]).square().sum(2))

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = self.similarity_maps(images).flatten(2).amax(2)
            return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]

    pairs = [(0, 0), (1, 1), (2, 3)]
    plain, swapped = (protomask.locate(Net(order).eval(), scenes(3), pairs, "prp") for order in (False, True))
    assert plain.located.all()
    assert torch.equal(plain.maps, swapped.maps)


def test_what_it_cannot_propagate_through_is_refused() -> None:
    densenet = torchvision.models.DenseNet(8, (1, 1), 8, num_classes=2).features
    refused(settle(Patches(densenet, 16)), "layers that relevance can be propagated through, got")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * x.mean()

    refused(settle(Patches(Odd(), 4)), "features: Odd")
    refused(settle(Patches(nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Tanh()), 4)), r"features\.1: Tanh")
    late = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.BatchNorm2d(4))
    refused(settle(Patches(late, 4)), "batch norm right after a convolution")


def test_other_ways_to_compare_are_refused() -> None:
    refused(BlockModel([(0, 0, 9, 9)]), r"model\.module: expected an nn\.Module")

    class Products(Patches):
        def similarity_maps(self, images: Tensor) -> Tensor:
            features = self.add_on_layers(self.features(images))
            return torch.einsum("bdhw,pd->bphw", features, -self.prototype_vectors.flatten(1)) + 9

    refused(settle(Products(nn.Conv2d(3, 4, 3, 4), 4)), "compared with the nearest patch")


def test_a_user_without_a_module_is_told() -> None:
    with pytest.raises(ModelError, match="whose layers prp looks at"):
        protomask.locate(BlockModel([(0, 0, 9, 9)]), scenes(1).abs(), "all", "prp")
    assert contract(BlockModel([(0, 0, 9, 9)])).module is None
