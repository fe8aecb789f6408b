"""Gradient methods: closed forms, Captum and hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import protomask
from protomask.errors import InputError, ModelError, ResourceError
from protomask.localisers import GradCAM, IntegratedGradients, Saliency, SmoothGrad, attribution
from protomask.localisers.bottleneck import feature_layer
from protomask.localisers.optional import check_installed
from protomask.model import contract, untouched
from tests.localising import request_for
from tests.toys import BlockModel, ConvModel, scenes

captum = pytest.importorskip("captum.attr", reason="needs the optional package captum")


class LinearModel:
    """a_p(x) = <w_p, x> + 3: gradients are w_p, integrated gradients w_p x (x - baseline)."""

    num_prototypes = 2
    mean, std = (0.0,) * 3, (1.0,) * 3
    activation_range = (-1e3, None)
    input_shape = (3, 8, 10)

    def __init__(self) -> None:
        self.weights = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = torch.einsum("bchw,pchw->bp", images, self.weights) + 3
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


PAIRS = [(0, 1), (2, 0), (1, 1)]


def unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def test_saliency_of_a_linear_model_is_its_weights() -> None:
    model = LinearModel()
    found = protomask.locate(model, pictures(), PAIRS, Saliency(blur=0))
    expected = unit(model.weights[[1, 0, 1]].abs().amax(1))
    assert float((found.maps - expected).abs().max()) < 1e-9


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_smoothgrad_of_a_linear_model_is_weights_times_image(batch: int) -> None:
    model, images = LinearModel(), pictures()
    found = protomask.locate(model, images, PAIRS, SmoothGrad(blur=0, samples=3), batch=batch)
    expected = unit((model.weights[[1, 0, 1]] * images[[0, 2, 1]]).sum(1).abs())
    assert float((found.maps - expected).abs().max()) < 1e-9


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_integrated_gradients_of_a_linear_model_are_weights_times_the_way(batch: int) -> None:
    model, images = LinearModel(), pictures()
    method = IntegratedGradients(blur=0, steps=4, baseline="grey")
    request = request_for(model, images, PAIRS, batch=batch)
    expected = model.weights[[1, 0, 1]] * (images[[0, 2, 1]] - 0.5)
    assert float((method.attributions(request) - expected).abs().max()) < 1e-9
    found = protomask.locate(model, images, PAIRS, method, batch=batch)
    assert float((found.maps - unit(expected.sum(1).abs())).abs().max()) < 1e-9
    assert found.fill == "grey"  # what it perturbs with


def test_integrated_gradients_sum_to_the_difference() -> None:
    model, images = ConvModel().double(), scenes(2).double()
    with untouched(model):
        request = request_for(model, images, [(0, 0), (1, 2)])
        with torch.no_grad():
            ends = model.activations(images)[[0, 1], [0, 2]]
            starts = model.activations(torch.zeros_like(images))[[0, 1], [0, 2]]
        found = IntegratedGradients(steps=200, baseline="mean").attributions(request).sum((1, 2, 3))
    assert float((found - (ends - starts)).abs().max()) < 0.02


def test_smoothgrad_against_captum_with_the_same_noise() -> None:
    model, images = ConvModel().double(), scenes(1).double()
    with untouched(model):
        request = request_for(model, images, [(0, 2)], seed=5)
        found = SmoothGrad(blur=0, samples=6, noise=0.1)(request).maps
        draws = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        noisy = (images + 0.1 * (images.max() - images.min()) * draws).requires_grad_()
        gradient = captum.Saliency(model.activations).attribute(noisy, target=2, abs=False)
    assert float((found - unit((gradient.mean(0) * images[0]).sum(0).abs()[None])).abs().max()) < 1e-9


def test_noise_depends_on_the_seed_alone() -> None:
    model, images = ConvModel(), scenes(2)
    maps = [protomask.locate(model, images, [(1, 0)], "smoothgrad", samples=3, seed=s).maps for s in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2], atol=1e-3)


def test_the_blur_is_a_share_of_the_shorter_side() -> None:
    from scipy.ndimage import gaussian_filter

    sharp = protomask.locate(LinearModel(), pictures(1), [(0, 0)], Saliency(blur=0)).maps[0].numpy()
    soft = protomask.locate(LinearModel(), pictures(1), [(0, 0)], Saliency(blur=0.25)).maps[0].numpy()
    expected = gaussian_filter(sharp, 2.0, mode="mirror", radius=6)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert np.abs(soft - expected).max() < 1e-6


class TinyNet(nn.Module):
    """Two feature maps A = relu(conv(x)); a_0 = 2 mean(A_0) - mean(A_1), a_1 = mean(A_1): Grad-CAM by hand."""

    num_prototypes = 3
    mean, std = (0.0,), (1.0,)
    input_shape = (1, 4, 4)
    activation_range = (-1e3, None)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 2, 2, bias=False)
        self.act = nn.ReLU()
        with torch.no_grad():
            self.stem.weight.copy_(torch.tensor([[[[1.0, 0], [0, 0]]], [[[0.0, 0], [0, 1]]]]))
        self.mix = torch.tensor([[2.0, -1], [0, 1], [1, 1]])

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = self.act(self.stem(images)).mean((2, 3)) @ self.mix.to(images).T
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]


def test_gradcam_by_hand() -> None:
    model = TinyNet()
    image = torch.tensor([[[[1.0, 0, 4, 0], [0, 2, 0, 1], [3, 0, -1, 0], [0, 5, 0, -2]]]])
    with untouched(model):
        request = request_for(model, image, [(0, 0), (0, 1)])
        assert feature_layer(request.model, image, torch.tensor([0]))[0] == "act"
        coarse = GradCAM().coarse(request)
    first, second = torch.tensor([[1.0, 4], [3, 0]]), torch.tensor([[2.0, 1], [5, 0]])
    by_hand = [torch.relu((2 * first - second) / 4), second / 4]
    assert float((coarse[:, 0] - torch.stack(by_hand)).abs().max()) < 1e-6
    maps = protomask.locate(model, image, [(0, 0)], "gradcam").maps
    fine = F.interpolate(by_hand[0][None, None], size=(4, 4), mode="bilinear", align_corners=False)[:, 0]
    assert float((maps - unit(fine)).abs().max()) < 1e-6


class Forked(ConvModel):
    """Two branches read the body, as XProtoNet's do: only the body carries everything."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 1)

    def similarity_maps(self, images: Tensor) -> Tensor:
        features = self.body(images)
        return torch.sigmoid(self.right(features)) * self.left(features).square().mean(1, keepdim=True)


def test_the_layer_is_the_last_that_carries_everything() -> None:
    for model in (Forked(), ConvModel()):
        with untouched(model):
            name, layer = feature_layer(contract(model), scenes(1), torch.tensor([1]))
        assert name == "body"
        assert layer is model.body
    demo = {"protopnet": "add_on_layers", "xprotonet": "features"}
    from protomask.loading import load_model

    for family, wanted in demo.items():
        known = load_model(f"demo:{family}").model
        assert known.module is not None
        assert known.input_shape is not None
        with untouched(known.module):
            image = torch.zeros(1, *known.input_shape)
            assert feature_layer(known, image, torch.tensor([0]))[0] == wanted


def test_gradcam_takes_a_named_layer_and_refuses_what_it_cannot_use() -> None:
    images = scenes(1)
    named = protomask.locate(ConvModel(), images, "all", "gradcam", layer="body.4").maps
    found = protomask.locate(ConvModel(), images, "all", "gradcam").maps
    assert torch.equal(named, found)
    with pytest.raises(InputError, match="layer: expected the dotted name"):
        protomask.locate(ConvModel(), images, "all", "gradcam", layer="nowhere")
    with pytest.raises(ModelError, match=r"model\.module: expected an nn\.Module, whose layers gradcam looks at"):
        protomask.locate(BlockModel([(0, 0, 9, 9)]), images.abs(), "all", "gradcam")


def test_without_captum_the_message_is_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"\(in the clone: `pip install '\.\[captum\]'`\)"):
        check_installed("no_such_package_at_all", "captum")
    missing = ResourceError("captum: expected it installed")

    def refuse(package: str, extra: str) -> None:
        assert (package, extra) == ("captum", "captum")
        raise missing

    monkeypatch.setattr(attribution, "check_installed", refuse)
    for name in ("saliency", "smoothgrad", "integrated-gradients"):
        with pytest.raises(ResourceError):
            protomask.locate(ConvModel(), scenes(1), "top:1", name)
