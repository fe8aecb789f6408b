"""The adapter: it reads modules of XProtoNet's form by their own forward pass, and refuses what it cannot read."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import protomask
from protomask.errors import InputError, ModelError
from protomask.localisers.upsampling import cell_centres
from protomask.model import class_prototypes, contract
from protopnet_ext import matches as is_protopnet
from tests.ppnet import ppnet
from tests.toys import scenes
from tests.xprotonet import TheirXProtoNet, xprotonet
from xprotonet_ext import matches, wrap


def images(count: int = 3, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


class Normalised(TheirXProtoNet):
    """As others have it: occurrence maps sum to one, and the similarity is the cosine itself."""

    def occurrence_of(self, base: Tensor) -> Tensor:
        return self.occurrence_module(base).flatten(2).softmax(2).view(len(base), -1, 1, *base.shape[2:])

    def similarity_of(self, features: Tensor) -> Tensor:
        return 2 * super().similarity_of(features) - 1


class Positive(TheirXProtoNet):
    """Features that cannot be negative."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_on_layers.append(nn.ReLU())


class Distant(TheirXProtoNet):
    """Its second output is a distance."""

    def forward(self, x: Tensor) -> Any:
        logits, similarity, occurrence = super().forward(x)
        return logits, 1 - similarity, occurrence


class Unrelated(TheirXProtoNet):
    """Its logits come from elsewhere."""

    def forward(self, x: Tensor) -> Any:
        logits, similarity, occurrence = super().forward(x)
        return logits + 0.01, similarity, occurrence


class Mixing(TheirXProtoNet):
    """Its similarities are relative to the batch."""

    def similarity_of(self, features: Tensor) -> Tensor:
        return super().similarity_of(features - 0.5 * features.mean(0, keepdim=True))


class Lonely(TheirXProtoNet):
    """It cannot take one image alone."""

    def forward(self, x: Tensor) -> Any:
        if len(x) == 1:
            raise IndexError("too few")
        return super().forward(x)


class Two(TheirXProtoNet):
    """It gives two outputs."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:2]


class Transposed(TheirXProtoNet):
    """Its similarities lie the other way round."""

    def forward(self, x: Tensor) -> Any:
        logits, similarity, occurrence = super().forward(x)
        return logits, similarity.T, occurrence


class Nan(TheirXProtoNet):
    """It divides by zero."""

    def similarity_of(self, features: Tensor) -> Tensor:
        return super().similarity_of(features) * math.nan


class Volumes(TheirXProtoNet):
    """Its occurrence maps have a time axis."""

    def forward(self, x: Tensor) -> Any:
        logits, similarity, occurrence = super().forward(x)
        return logits, similarity, torch.stack([occurrence, occurrence], 3)


class Signed(TheirXProtoNet):
    """Its occurrence maps are of either sign."""

    def occurrence_of(self, base: Tensor) -> Tensor:
        return self.occurrence_module(base).unsqueeze(2)


class Squaring(TheirXProtoNet):
    """Its last layer squares its weights, as some do to keep them positive."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        weight = self.last_layer.weight.detach()

        class Squared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(weight)

            def forward(self, x: Tensor) -> Tensor:
                return functional.linear(x, self.weight.square())

        self.last_layer = Squared()  # type: ignore[assignment]


class Deep(TheirXProtoNet):
    """Its classifier is no linear layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last_layer = nn.Sequential(self.last_layer, nn.Tanh())  # type: ignore[assignment]


class Silent(TheirXProtoNet):
    """It tells nothing beside its forward pass, so that the filled image stands in for a floor."""

    push_forward = None  # type: ignore[assignment]


class Headless(TheirXProtoNet):
    """Its logits are made without a last layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.head, self.last_layer = self.last_layer, None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        features, occurrence = self.pooled(x)
        similarity = self.similarity_of(features)
        return self.head(similarity), similarity, occurrence


def test_it_is_read_by_its_own_forward_pass() -> None:
    model = xprotonet().double().eval()
    wrapped, x = wrap(model), images(dtype=torch.float64)
    logits, similarity, occurrence = model(x)
    assert torch.equal(wrapped.activations(x), similarity)
    assert torch.equal(wrapped.logits(x), logits)
    maps = wrapped.occurrence_maps(x)
    assert maps is not None
    assert torch.equal(maps, occurrence[:, :, 0])
    features = wrapped.prototype_features(x)
    assert features is not None
    by_hand = torch.zeros(3, 6, 4, dtype=torch.float64)
    deep = model.add_on_layers(model.cnn_backbone(x))
    for p in range(6):
        for y in range(8):
            for z in range(8):
                by_hand[:, p] += (maps[:, p, y, z, None] * deep[:, :, y, z]).detach()
    assert torch.allclose(features, by_hand, rtol=0, atol=1e-10)
    assert torch.equal(wrapped.class_weights(), model.last_layer.weight.T)  # type: ignore[arg-type]


def test_one_prototype_per_image() -> None:
    wrapped, chosen = wrap(xprotonet().eval()), torch.tensor([5, 0, 3, 3, 1, 2])
    x = images(6).requires_grad_()
    alone, every = wrapped.activations(x, chosen), wrapped.activations(x)[torch.arange(6), chosen]
    assert torch.equal(alone, every)
    slopes = [torch.autograd.grad(a.sum(), x)[0] for a in (alone, every)]
    assert torch.allclose(*slopes, rtol=0, atol=1e-6)
    assert float(slopes[0].abs().max()) > 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_batch_that_does_not_fit_goes_in_parts(size: int) -> None:
    model = xprotonet().double().eval()
    wrapped = wrap(model)
    x, chosen = images(5, dtype=torch.float64).requires_grad_(), torch.tensor([5, 0, 3, 3, 1])
    assert wrapped.images_per_pass > 100
    whole = wrapped.activations(x, chosen)
    slope = torch.autograd.grad(whole.sum(), x)[0]
    seen: list[int] = []
    hook = model.cnn_backbone.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    wrapped.images_per_pass = size
    parts = wrapped.activations(x, chosen)
    assert max(seen) == size
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(parts.sum(), x)[0], slope, rtol=0, atol=1e-12)
    hook.remove()
    assert torch.allclose(wrapped.activations(x), model(x)[1], rtol=0, atol=1e-12)
    maps = wrapped.occurrence_maps(x)
    assert maps is not None
    assert maps.shape == (5, 6, 8, 8)


def test_the_parts_follow_the_memory_allowed() -> None:
    few, many = (wrap(xprotonet(prototypes=p), pass_bytes=2**24).images_per_pass for p in (60, 600))
    assert 5 * many < few < 20 * many
    assert wrap(xprotonet(), pass_bytes=1).images_per_pass == 1


def largest_pass(limit: int) -> tuple[int, Tensor]:
    """Images in the largest pass of 40 images and of 4 located pairs at P = 2000, and the activations."""
    model = xprotonet(prototypes=2000, classes=20, depth=32, size=16).eval()
    wrapped = wrap(model, pass_bytes=limit)
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    many = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = wrapped.activations(many)
    protomask.locate(wrapped, many, [(i, 50 * i) for i in range(4)], scales=(6, 8), steps=2, batch=40)
    hook.remove()
    return max(passes), found


def test_memory_is_bounded_with_two_thousand_prototypes() -> None:
    """Naively, a pass of 40 images makes 40 x 2000 x 32 x 4 x 4 floats, 164 MB, forward alone.

    Counted and not measured: a process's peak depends on what its allocator kept. benchmarks/memory_xprotonet.py
    measures.
    """
    each = 2000 * 32 * 4 * 4 * 4  # bytes
    bounded, some = largest_pass(2**25)
    free, all_ = largest_pass(2**31)
    assert bounded * each <= 2**25
    assert free == 40
    assert torch.allclose(some, all_, atol=1e-6)


def test_ranges_are_found_out() -> None:
    assert wrap(xprotonet()).activation_range == (0.0, 1.0)
    assert wrap(xprotonet(Normalised)).activation_range == (-1.0, 1.0)
    assert wrap(xprotonet(Positive)).activation_range == (0.5, 1.0)
    silent = xprotonet(Silent)
    assert wrap(silent).activation_range == (None, None)
    assert wrap(silent).prototype_features(images()) is None
    assert wrap(silent, activation_range=(0, 1)).activation_range == (0, 1)
    with pytest.raises(InputError, match="activation_range: expected a range that holds the similarities"):
        wrap(xprotonet(), activation_range=(0.9, 1))


def test_data_parallel_grey_and_names() -> None:
    model = xprotonet(channels=1).eval()
    wrapped = wrap(nn.DataParallel(model), mean=[0.5], std=[0.2], class_names=["a", "b", "c"])
    assert wrapped.module is model
    assert wrapped.input_shape == (1, 32, 32)
    assert wrapped.activations(images(channels=1)).shape == (3, 6)
    assert wrapped.describe(3) == "b / 3"
    known = contract(wrapped)
    assert known.mean == (0.5,)
    assert [class_prototypes(known, [k]).tolist() for k in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InputError, match="mean: expected 1 values"):
        wrap(model)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Distant, "largest difference of .*; its second output is a distance"),
        (Unrelated, r"expected logits that are last_layer\(similarity\)"),
        (Mixing, r"the same results for an image alone and in a batch .* in logits"),
        (Lonely, r"also one alone, got an error \(too few\)"),
        (Two, r"expected logits \[B, K\], similarity .*, got \['Tensor', 'Tensor'\]"),
        (Transposed, r"with P = 6, got \[2, 3\], \[6, 2\], \[2, 6, 1, 8, 8\]"),
        (Nan, "finite values"),
    ],
)
def test_what_only_looks_like_an_xprotonet_is_refused(kind: type[TheirXProtoNet], why: str) -> None:
    model = xprotonet(kind)
    assert matches(model)
    with pytest.raises(ModelError, match=why):
        wrap(model)


def test_a_last_layer_is_read_whatever_it_does_to_its_weights() -> None:
    model = xprotonet(Squaring)
    weights = wrap(model).class_weights()
    assert weights is not None
    assert torch.allclose(weights, model.last_layer.weight.square().T, rtol=0, atol=1e-6)


def test_unknown_class_weights_are_absent_with_a_warning() -> None:
    for kind in (Deep, Headless):
        with pytest.warns(UserWarning, match="class weights unknown"):
            wrapped = wrap(xprotonet(kind))
        assert wrapped.class_weights() is None
        assert wrapped.describe(3) == "class 1 / 3"
        with pytest.raises(ModelError, match="class_weights"):
            protomask.locate(wrapped, images(), "class:0", "centre")
        assert len(protomask.locate(wrapped, images(), "top:1", "centre")) == 3


@pytest.mark.parametrize(("kind", "what"), [(Volumes, r"got shape \[2, 6, 1, 2"), (Signed, "got values below 0")])
def test_other_occurrence_maps_are_dropped_with_a_warning(kind: type[TheirXProtoNet], what: str) -> None:
    with pytest.warns(UserWarning, match=f"occurrence maps dropped: .*{what}"):
        wrapped = wrap(xprotonet(kind))
    assert wrapped.occurrence_maps(images()) is None
    with pytest.raises(ModelError, match="similarity_maps or occurrence_maps"):
        protomask.locate(wrapped, images(), "top:1", "upsampling")


def test_families_do_not_take_each_others_models() -> None:
    assert not matches(ppnet())
    assert not is_protopnet(xprotonet())
    for other in (nn.Linear(2, 2), object(), None):
        assert not matches(other)
        with pytest.raises(ModelError, match="model: expected an XProtoNet"):
            wrap(other)


def test_it_is_located_without_changes_to_it() -> None:
    """A model object that is not ours, handed to ``locate`` as it is."""
    model, x = xprotonet(Silent).eval(), scenes(4)
    with torch.no_grad():  # pushed, as trained models are
        model.prototype_vectors[:4] = model.pooled(x)[0][range(4), range(4), :, None, None]
    model.train()
    found = protomask.locate(model, x, [(i, i) for i in range(4)])
    picture = protomask.locate(model, x, found.targets, "upsampling")
    assert model.training
    model.eval()
    with torch.no_grad():
        _, similarity, occurrence = model(x)
    rows, columns = found.targets.images, found.targets.prototypes
    assert torch.allclose(found.activations_before, similarity[rows, columns], rtol=0, atol=1e-6)
    coarse = occurrence[rows, columns, 0]
    # The picture's peak lies in or beside the cell in which the occurrence map has its own.
    cells = torch.stack([coarse.flatten(1).argmax(1) % 8, coarse.flatten(1).argmax(1) // 8], 1)
    assert ((picture.peaks // 4 - cells).abs() <= 1).all()
    assert found.located.any()


@pytest.mark.parametrize("parts", [False, True])
def test_upsampling_is_of_the_occurrence_map(parts: bool) -> None:
    wrapped = wrap(xprotonet().eval())
    if parts:
        wrapped.images_per_pass = 1
    x, pairs = images(), [(0, 4), (2, 1), (2, 5)]
    coarse = wrapped.occurrence_maps(x)
    assert coarse is not None
    found = protomask.locate(wrapped, x, pairs, "upsampling")
    for row, (image, prototype) in enumerate(pairs):
        fine = cv2.resize(coarse[image, prototype].detach().numpy(), (32, 32), interpolation=cv2.INTER_CUBIC)
        wanted = (fine - fine.min()) / (fine.max() - fine.min())
        assert np.abs(found.maps[row].numpy() - wanted).max() < 1e-5
    rows, columns = cell_centres(contract(wrapped), x[:1])
    # Two convolutions of stride 2 and padding 1: cell i looks at pixel 4 i, where its picture is drawn at 4 i + 1.5.
    assert np.abs(rows[1:-1] - 4 * np.arange(8)[1:-1]).max() < 0.7
    assert np.abs(columns[1:-1] - 4 * np.arange(8)[1:-1]).max() < 0.7
    centred = protomask.locate(wrapped, x, pairs, "upsampling-centred")
    assert not torch.allclose(centred.maps, found.maps, atol=0.05)
