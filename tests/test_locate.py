from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import protomask
from protomask.errors import InputError, ModelError
from protomask.locating import AT_FLOOR, CONSTANT
from protomask.region import boxes_of, regions_of
from tests.toys import BlockModel, ConvModel, scenes

EVERY = ("mdm-fast", "mdm", "mdm-best", "single-mask", "upsampling", "upsampling-centred", "random", "centre")


def scene(dtype: torch.dtype = torch.float32, count: int = 4) -> Tensor:
    return scenes(count).to(dtype)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inside = (high - low).clamp(min=0).prod(1).double()
    areas = [(t[:, 2:] - t[:, :2]).prod(1).double() for t in (a, b)]
    return inside / (areas[0] + areas[1] - inside).clamp(min=1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(
        [torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1] for x, y in zip(a, b, strict=True)]
    )


def test_a_users_own_class_is_located_in_its_blocks() -> None:
    model = BlockModel([(4, 4, 12, 12), (16, 20, 28, 28)])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    for x0, y0, x1, y1 in model.blocks:
        images[:, :, y0:y1, x0:x1] = 0.9
    found = protomask.locate(model, images, "all", fill="black", steps=50)
    for (_, prototype), (x, y), box in zip(found.targets, found.peaks.tolist(), found.boxes.tolist(), strict=True):
        x0, y0, x1, y1 = model.blocks[prototype]
        assert x0 <= x < x1
        assert y0 <= y < y1
        assert box[0] >= x0 - 1
        assert box[3] <= y1 + 1
    assert found.located.all()
    assert set(found.mask_vectors) == {6, 12, 24}


@pytest.mark.parametrize("method", EVERY)
def test_batching_and_order_change_nothing_float64(method: str) -> None:
    model, images = ConvModel().double(), scene(torch.float64)
    pairs = [(i, p) for i in range(4) for p in range(4)]
    whole = protomask.locate(model, images, pairs, method, batch=64)
    for batch in (1, 7):
        part = protomask.locate(model, images, pairs, method, batch=batch)
        assert float((part.maps - whole.maps).abs().max()) < 1e-6
    backwards = protomask.locate(model, images, pairs[::-1], method, batch=5)
    assert float((backwards.maps.flip(0) - whole.maps).abs().max()) < 1e-6
    for row, (image, prototype) in list(enumerate(pairs))[::3]:
        alone = protomask.locate(model, images[image : image + 1], [(0, prototype)], method)
        assert float((alone.maps[0] - whole.maps[row]).abs().max()) < 1e-6
        assert torch.equal(alone.boxes[0], whole.boxes[row])


@pytest.mark.parametrize("method", EVERY)
def test_batching_changes_nothing_float32(method: str) -> None:
    model, images = ConvModel(), scene()
    whole = protomask.locate(model, images, "top:1", method, batch=64)
    alone = protomask.locate(model, images, "top:1", method, batch=1)
    assert (pearson(whole.maps, alone.maps) >= 0.999).double().mean() >= 0.99
    assert (box_iou(whole.boxes, alone.boxes) >= 0.95).double().mean() >= 0.99


def snapshot(model: ConvModel) -> dict[str, Any]:
    return {
        "mode": [m.training for m in model.modules()],
        "grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad is None for p in model.parameters()],
        "state": copy.deepcopy(model.state_dict()),
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "enabled": torch.is_grad_enabled(),
        "strides": [p.stride() for p in model.parameters()],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    state = all(torch.equal(a["state"][k], b["state"][k]) for k in a["state"])
    plain = all(a[k] == b[k] for k in ("mode", "grad", "gradients", "hooks", "enabled", "strides"))
    return state and plain and torch.equal(a["torch"], b["torch"]) and bool((a["numpy"] == b["numpy"]).all())


class Failing(ConvModel):
    """Fails at its n-th pass."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyError("the user's model broke")
        return super().activations(images, prototypes)


@pytest.mark.parametrize("method", EVERY)
def test_the_model_comes_back_as_it_came(method: str) -> None:
    model = ConvModel().train()
    model.body[0].weight.requires_grad_(False)
    model.body[1].eval()
    before = snapshot(model)
    protomask.locate(model, scene(), "top:2", method)
    assert same(before, snapshot(model))


@pytest.mark.parametrize("after", [0, 1, 7])
def test_also_after_an_error(after: int) -> None:
    model = Failing(after).train()
    before = snapshot(model)
    with pytest.raises(KeyError):
        protomask.locate(model, scene(), "top:2")
    assert same(before, snapshot(model))


def test_works_under_no_grad() -> None:
    with torch.no_grad():
        found = protomask.locate(ConvModel(), scene(count=1), [(0, 1)])
    assert torch.equal(found.maps, protomask.locate(ConvModel(), scene(count=1), [(0, 1)]).maps)


def test_the_seed_reproduces_and_matters() -> None:
    draw = [protomask.locate(ConvModel(), scene(), "all", "random", seed=s).maps for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.allclose(draw[0], draw[2])


def test_an_activation_at_its_floor_is_said_and_no_error() -> None:
    model = BlockModel([(0, 0, 8, 8), (8, 8, 24, 24)])
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8:24, 8:24] = 0.9
    found = protomask.locate(model, images, "all", fill="black")
    assert found.located.tolist() == [False, True]
    assert found.reasons == (AT_FLOOR, "")
    assert found.maps[0].abs().max() == 0
    assert found.scores[0].isnan()
    assert found.boxes[0].tolist() == [0, 0, 0, 0]
    nothing = protomask.locate(model, torch.zeros(1, 3, 32, 32), "all")
    assert nothing.reasons == (AT_FLOOR, AT_FLOOR)


def test_a_constant_map_is_no_localisation() -> None:
    def flat(request: protomask.Request) -> protomask.Maps:
        return protomask.Maps(torch.full((len(request.targets), *request.size), 0.5))

    flat.passes = 0.0  # type: ignore[attr-defined]
    found = protomask.locate(ConvModel(), scene(), "top:1", flat)
    assert found.reasons == (CONSTANT,) * 4
    assert not found.located.any()
    assert found.method == "function"


def test_no_floor_means_the_filled_image_stands_in() -> None:
    model = ConvModel()
    model.activation_range = (None, None)  # type: ignore[assignment]
    found = protomask.locate(model, scene(), "all", "upsampling")
    model.eval()
    with torch.no_grad():
        filled = model.activations(torch.zeros(1, 3, 32, 32))[0]
        before = model.activations(scene())
    expected = (before > filled).flatten()
    assert found.located.tolist() == expected.tolist()
    assert int(expected.sum()) > 0


def test_records_agree_with_a_second_route() -> None:
    model, images = ConvModel(), scene()
    found = protomask.locate(model, images, "top:2", region="own-area", gradient_power=0)
    weighed = protomask.locate(model, images, "top:2", region="own-area")  # no mask, so its sum is no area
    assert torch.equal(weighed.boxes, protomask.locate(model, images, "top:2").boxes)
    model.eval()
    with torch.no_grad():
        activations = model.activations(images)
    rows, columns = found.targets.images, found.targets.prototypes
    assert torch.allclose(found.activations_before, activations[rows, columns], atol=1e-6)
    assert columns.view(4, 2).tolist() == activations.topk(2).indices.tolist()
    assert torch.equal(found.boxes, boxes_of(regions_of(found.maps, "own-area")) * found.located[:, None])
    relative = found.activations_after / found.activations_before
    assert torch.allclose(found.scores, relative, atol=1e-5)
    joined = protomask.Localisation.join([found[:3], found[3:]])
    assert torch.equal(joined.maps, found.maps)
    assert joined.reasons == found.reasons


BAD: list[tuple[dict[str, Any], str]] = [
    ({"images": torch.zeros(2, 1, 32, 32)}, r"images: expected shape \[B, 3, 32, 32\], got \[2, 1, 32, 32\]"),
    ({"images": torch.zeros(2, 3, 16, 16)}, r"images: expected shape .* got \[2, 3, 16, 16\]"),
    ({"images": torch.full((1, 3, 32, 32), torch.nan)}, "images: expected finite values, got 3072 NaN"),
    ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "images: expected a floating-point dtype"),
    ({"images": torch.zeros(0, 3, 32, 32)}, "images: expected at least one image"),
    ({"images": "bird.jpg"}, "images: expected a torch.Tensor .* got str"),
    ({"targets": [(0, 4)]}, r"targets: prototype: expected an index in 0 .. 3, got 4"),
    ({"targets": [(0, -1)]}, r"targets: prototype: expected an index in 0 .. 3, got -1"),
    ({"targets": [(7, 0)]}, r"targets: image: expected an index in 0 .. 3, got 7"),
    ({"targets": []}, "targets: expected at least one"),
    ({"targets": "top:0"}, "targets: expected top:K"),
    ({"targets": "best"}, 'targets: expected "top:K"'),
    ({"targets": "class:9"}, r"class: expected an index in 0 .. 1, got 9"),
    ({"targets": torch.zeros(2, 3, dtype=torch.int64)}, r"integer pairs \[N, 2\]"),
    ({"method": "lime"}, "method: expected one of"),
    ({"batch": 0}, "batch: expected an integer of at least 1, got 0"),
    ({"region": "otsu"}, "region: expected one of"),
    ({"width": 3}, "settings of mdm: expected one of"),
    ({"scales": (1,)}, "scales: expected an integer of at least 2"),
    ({"steps": 0}, "steps: expected an integer of at least 1"),
    ({"fill": "green"}, "fill: expected one of blur"),
    ({"method": "annotation"}, "regions: expected the annotated regions"),
    ({"method": "annotation", "regions": [True]}, "regions: expected a torch.Tensor, got list"),
    ({"method": "centre", "boxes": torch.zeros(4, 3)}, r"boxes: expected shape \[N, 4\], got \[4, 3\]"),
    ({"seed": "a"}, "seed: expected an integer of at least 0, got 'a'"),
    ({"seed": 1.5}, "seed: expected an integer of at least 0, got 1.5"),
    ({"percentile": 150}, r"percentile: expected a number in \[0, 100\], got 150"),
    ({"choose": "no"}, "choose: expected True or False, got 'no'"),
    ({"method": "rise", "centred": 1}, "centred: expected True or False, got 1"),
    ({"method": "mdm-paper", "as_released": "no"}, "as_released: expected True or False"),
    ({"scales": "big"}, "scales: expected at least one scale, each once, got 'big'"),
    ({"fill": None}, "fill: expected one or several of blur, .* got None"),
    ({"method": protomask.MDM}, r"method: expected a name or a localiser, such as MDM\(\), got the class itself"),
    ({"method": lambda request: request.images}, "a function registered by protomask.register_localiser, got function"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_names_argument_expectation_and_value(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"images": scene(), "targets": "top:1", **change}
    model = ConvModel().train()
    with pytest.raises(InputError, match=message):
        protomask.locate(model, **call)
    assert model.training


def test_bad_input_is_refused_before_any_pass() -> None:
    model = Failing(after=0)
    late = ({"percentile": 101}, {"seed": -1})
    for bad in ({"targets": [(0, 9)]}, {"targets": "top:x"}, {"method": "lime"}, {"steps": -1}, *late):
        with pytest.raises(InputError):
            protomask.locate(model, scene(), **{"targets": "top:1", **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda maps: maps, "what bare gives: expected protomask.Maps, got Tensor"),
        (lambda maps: protomask.Maps(maps - 3), r"maps of bare: expected values in \[0, 1\], got -3.0 to -2.0"),
        (lambda maps: protomask.Maps(maps[:, 1:]), r"maps of bare: expected shape \[4, 32, 32\]"),
    ],
)
def test_what_a_localiser_gives_is_checked(given: Any, message: str) -> None:
    class Bare:
        name, passes = "bare", 0.0

        def __call__(self, request: protomask.Request) -> Any:
            maps = torch.zeros(len(request.targets), *request.size)
            maps[:, 3] = 1
            return given(maps)

    with pytest.raises(InputError, match=message):
        protomask.locate(ConvModel(), scene(), "top:1", Bare())


def test_one_scale_needs_no_tuple() -> None:
    assert protomask.MDM(scales=12).scales == (12,)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["upsampling", "upsampling-centred", "rise", "occlusion"])
def test_rounding_of_an_activation_that_never_changes_is_no_map(method: str) -> None:
    class Dead(ConvModel):
        def similarity_maps(self, images: Tensor) -> Tensor:
            return 0.7123 + 0 * super().similarity_maps(images)

    found = protomask.locate(Dead(), scene(), "all", method, **({"masks": 64} if method == "rise" else {}))
    assert not found.located.any()
    assert set(found.reasons) == {CONSTANT}


def test_a_model_of_unknown_form_is_refused() -> None:
    with pytest.raises(ModelError, match="num_prototypes and activations"):
        protomask.locate(torch.nn.Linear(2, 2), scene())


def test_a_model_with_broken_shapes_or_values_is_refused() -> None:
    class Flat(ConvModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            return super().activations(images).flatten()

    class Nans(ConvModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            return super().activations(images, prototypes) * torch.nan

    with pytest.raises(ModelError, match=r"expected a tensor \[4, 4\], got \[16\]"):
        protomask.locate(Flat(), scene())
    with pytest.raises(ModelError, match="finite values"):
        protomask.locate(Nans(), scene())


def test_mistakes_of_a_users_class_are_named() -> None:
    class Detached(BlockModel):
        @torch.no_grad()
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            return super().activations(images, prototypes)

    class All(BlockModel):
        def activations(self, images: Tensor) -> Tensor:  # type: ignore[override]
            return super().activations(images)

    class Turned(BlockModel):
        def class_weights(self) -> Tensor:
            return torch.ones(3, 2)

    blocks, images = [(0, 0, 8, 8), (16, 16, 24, 24)], torch.full((1, 3, 32, 32), 0.8)
    for model, targets, message in (
        (
            Detached,
            "all",
            r"activations\(...\): expected values differentiable in the images, got .* without a gradient",
        ),
        (All, "all", r"expected activations\(images, prototypes=None\), got activations\(images: .*\)"),
        (Turned, "class:1", r"class_weights\(\): expected a tensor \[2, K\], a row per prototype, got \[3, 2\]"),
    ):
        with pytest.raises(ModelError, match=message):
            protomask.locate(model(blocks), images, targets, "single-mask", fill="black", steps=2)
    assert protomask.locate(
        Detached(blocks), images, "all", "occlusion", fill="black"
    ).located.all()  # it asks for no gradient


def test_a_model_that_fulfils_the_contract_needs_no_wrapping() -> None:
    model = BlockModel([(0, 0, 8, 8)])
    assert protomask.wrap(model) is model


def test_upsampling_needs_maps() -> None:
    with pytest.raises(ModelError, match="similarity_maps or occurrence_maps"):
        protomask.locate(BlockModel([(0, 0, 9, 9)]), torch.rand(1, 3, 32, 32), "all", "upsampling")


def test_class_targets_and_tensor_targets() -> None:
    found = protomask.locate(ConvModel(), scene(), "class:1", "centre")
    assert list(found.targets) == [(i, p) for i in range(4) for p in (2, 3)]
    named = ConvModel()
    named.class_names = ("wren", "tern")  # type: ignore[assignment]
    assert list(protomask.locate(named, scene(), "class:tern", "centre").targets) == list(found.targets)
    with pytest.raises(
        InputError, match=r"an index from 0 or one name of the model's classes \(wren, tern, ...\), got 'x'"
    ):
        protomask.locate(named, scene(), "class:x", "centre")
    with pytest.raises(InputError, match="class: expected an index from 0, got 'tern', and the model names no classes"):
        protomask.locate(ConvModel(), scene(), "class:tern", "centre")
    pairs = torch.tensor([[3, 1], [0, 2]])
    assert list(protomask.locate(ConvModel(), scene(), pairs, "centre").targets) == [(3, 1), (0, 2)]
