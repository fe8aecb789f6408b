"""Occlusion and RISE against literal loops; NeuroMask's loss and extremal perturbations' area in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import protomask
from protomask.errors import InputError
from protomask.fills import fill_images
from protomask.localisers import RISE, Extremal, NeuroMask, Occlusion, image_passes_of
from protomask.localisers.neuromask import CloseLoss
from protomask.localisers.rise import random_masks
from protomask.localisers.smoothmax import SmoothMax, area_price
from protomask.model import untouched
from tests.localising import request_for
from tests.toys import BLOCKS, BlockModel, ConvModel, scenes

PAIRS = [(0, 1), (1, 0), (0, 3)]


def unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def activations(model: ConvModel, images: Tensor) -> Tensor:
    with untouched(model), torch.no_grad():
        return model.activations(images)


@pytest.mark.parametrize(("window", "stride"), [(0.25, 0.125), (0.3, 0.2)])
def test_occlusion_is_its_literal_loop(window: float, stride: float) -> None:
    model, images = ConvModel().double(), scenes(2).double()
    found = protomask.locate(model, images, PAIRS, "occlusion", window=window, stride=stride, fill="mean")
    side, step = round(32 * window), round(32 * stride)
    starts = [*range(0, 32 - side, step), 32 - side]
    whole = activations(model, images)
    expected = []
    for image, prototype in PAIRS:
        drops, covered = np.zeros((32, 32)), np.zeros((32, 32))
        for y in starts:
            for x in starts:
                changed = images[image : image + 1].clone()
                changed[:, :, y : y + side, x : x + side] = 0
                drop = float(whole[image, prototype] - activations(model, changed)[0, prototype])
                drops[y : y + side, x : x + side] += drop
                covered[y : y + side, x : x + side] += 1
        expected.append(torch.from_numpy((drops / covered).clip(min=0)))
    assert float((found.maps - unit(torch.stack(expected))).abs().max()) < 1e-9
    assert found.fill == "mean"


def test_occlusion_agrees_with_captum_where_the_windows_tile_the_image() -> None:
    captum = pytest.importorskip("captum.attr", reason="needs the optional package captum")
    model, images = ConvModel().double(), scenes(1).double()
    found = protomask.locate(model, images, [(0, 2)], Occlusion(window=0.25, stride=0.25, fill="mean"))
    with untouched(model), torch.no_grad():
        method = captum.Occlusion(model.activations)
        theirs = method.attribute(images, target=2, sliding_window_shapes=(3, 8, 8), strides=(3, 8, 8), baselines=0)
    assert float((found.maps - unit(theirs[:, 0].clamp(min=0))).abs().max()) < 1e-9


def literal_masks(count: int, cells: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """RISE's masks from the paper's description, bilinear by hand."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand((count, cells + 1, cells + 1), generator=generator) < 0.5).double().numpy()
    cell = [-(-length // cells) for length in size]
    shifts = [torch.randint(0, c, (count,), generator=generator).tolist() for c in cell]
    masks = []
    for k in range(count):
        at = [(np.arange(shifts[a][k], shifts[a][k] + size[a]) + 0.5) / cell[a] - 0.5 for a in (0, 1)]
        near = [np.clip(v, 0, cells) for v in at]
        low = [np.minimum(np.floor(v).astype(int), cells - 1) for v in near]
        part = [v - w for v, w in zip(near, low, strict=True)]
        top, bottom = (grids[k][low[0] + d] for d in (0, 1))
        rows = top * (1 - part[0][:, None]) + bottom * part[0][:, None]
        masks.append(rows[:, low[1]] * (1 - part[1]) + rows[:, low[1] + 1] * part[1])
    return masks


@pytest.mark.parametrize("centred", [False, True])
def test_rise_is_its_literal_loop(centred: bool) -> None:
    model, images = ConvModel().double(), scenes(2).double()
    found = protomask.locate(model, images, PAIRS, RISE(masks=70, cells=5, fill="mean", centred=centred), seed=3)
    masks = literal_masks(70, 5, (32, 32), 3)
    made = random_masks(70, 5, 0.5, (32, 32), images, 3).make(slice(0, 70))
    assert np.abs(made.numpy() - np.stack(masks)).max() < 1e-9
    expected = []
    for image, prototype in PAIRS:
        kept = [float(activations(model, images[image][None] * torch.from_numpy(m))[0, prototype]) for m in masks]
        mean = sum(kept) / len(kept) if centred else 0.0
        expected.append(torch.from_numpy(sum((a - mean) * m for a, m in zip(kept, masks, strict=True))))
    assert float((found.maps - unit(torch.stack(expected))).abs().max()) < 1e-9


def test_one_pass_serves_all_prototypes_of_an_image() -> None:
    class Counting(ConvModel):
        seen = 0

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            Counting.seen += len(images) if prototypes is None else 0  # also those of copies
            return super().activations(images, prototypes)

    methods: tuple[Any, ...] = (RISE(masks=20), Occlusion(0.25, 0.25))
    for method in methods:
        model, Counting.seen = Counting(), 0
        protomask.locate(model, scenes(3), [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (2, 3)], method)
        proof = 5  # that the folded copy, its images laid out otherwise, agrees
        assert Counting.seen == 3 + proof + 2 * image_passes_of(method)
        assert method.passes == 0


def test_rise_depends_on_the_seed_and_not_on_the_company() -> None:
    model, images = ConvModel().double(), scenes(3).double()
    whole = protomask.locate(model, images, "all", "rise", masks=80, seed=1).maps
    alone = protomask.locate(model, images[[2]], [(0, 3)], "rise", masks=80, seed=1, batch=7).maps[0]
    other = protomask.locate(model, images[[2]], [(0, 3)], "rise", masks=80, seed=2).maps[0]
    assert float((alone - whole[11]).abs().max()) < 1e-9
    assert float((other - whole[11]).abs().max()) > 0.05


def blocks_image() -> Tensor:
    image = torch.full((1, 3, 32, 32), 0.05)
    for x0, y0, x1, y1 in BLOCKS:
        image[:, :, y0:y1, x0:x1] = 0.9
    return image


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("neuromask", {"fill": "black"}),
        ("extremal", {"fill": "black", "steps": 30}),
        ("extremal", {"fill": "black", "steps": 20, "variant": "hybrid", "areas": 0.06}),
        ("occlusion", {"fill": "black"}),
        ("rise", {"fill": "black", "masks": 200}),
    ],
)
def test_the_block_is_found(method: str, settings: dict[str, Any]) -> None:
    model = BlockModel(BLOCKS)
    found = protomask.locate(model, blocks_image(), "all", method, **settings)
    for (_, prototype), (x, y) in zip(found.targets, found.peaks.tolist(), strict=True):
        x0, y0, x1, y1 = BLOCKS[prototype]
        assert x0 - 1 <= x <= x1
        assert y0 - 1 <= y <= y1


def test_neuromask_prices_both_sides_of_the_activation() -> None:
    loss = CloseLoss(sparsity=2, smoothness=3)
    masks, vectors = torch.full((3, 4, 4), 0.5), torch.zeros(3, 2, 2)
    vectors[2, 0, 0] = 1
    values = loss(torch.tensor([0.8, 1.2, 1.0]), torch.zeros(3), masks, (vectors,))
    assert values.tolist() == pytest.approx([0.04 + 1, 0.04 + 1, 1 + 3 * (0.5 + 0.5)])
    assert not loss.needs_complement


def test_neuromask_is_a_mask_and_keeps_its_vector() -> None:
    from protomask.masks import render

    found = protomask.locate(BlockModel(BLOCKS), blocks_image(), "all", NeuroMask(fill="black", scale=9, steps=20))
    assert found.masks
    assert torch.equal(render(found.mask_vectors[9], (32, 32)), found.maps)
    assert found.fill == "black"
    assert (found.scores > 0.8).all()


@pytest.mark.parametrize("area", [0.05, 0.2, 0.4])
def test_the_area_is_respected(area: float) -> None:
    model, images = ConvModel(), scenes(2)
    with untouched(model):
        masks = Extremal(areas=area, steps=60).masks(request_for(model, images, PAIRS))
    assert masks.shape == (3, 1, 32, 32)
    assert float((masks.mean((2, 3)) - area).abs().max()) < 0.04
    assert float(((masks > 0.1) & (masks < 0.9)).double().mean()) < 0.35


def test_the_price_is_zero_only_for_a_binary_mask_of_that_area() -> None:
    masks = torch.zeros(4, 10, 10)
    masks[0, :2] = 1
    masks[1, :3] = 1
    masks[2] = 0.2
    masks[3, 3:5, :] = 1
    assert area_price(masks, 0.2).tolist() == pytest.approx([0, 0.1, 0.8 * 0.04 + 0.2 * 0.64, 0])


def test_the_smooth_maximum_in_closed_form() -> None:
    render = SmoothMax((24, 36), (4, 6), sigma=0.7, samples=3)
    one = torch.zeros(1, 4, 6, dtype=torch.float64)
    one[0, 1, 2] = 1
    mask = render(one)
    assert mask.shape == (1, 24, 36)
    assert float(mask.max()) > 0.99  # one cell alone is a plateau of its own
    assert float(mask.min()) >= 0
    assert float(render(torch.ones_like(one)).min()) > 0.9
    assert float(render(torch.zeros_like(one)).max()) == 0
    # By hand, at the middle point of the cell beside it: K neighbours, of which this one alone is lit.
    beyond = 1 - 0.5**0.5
    weight = np.exp(-((beyond / 0.7) ** 2) / 4)
    others = (2 * render.reach + 1) ** 2 - 1
    by_hand = weight * np.exp(weight / 0.05) / (np.exp(weight / 0.05) + others)
    coarse = SmoothMax((12, 18), (4, 6), sigma=0.7, samples=3)(one)
    assert float(coarse[0, 3 * 1 + 1, 3 * 3 + 1]) == pytest.approx(by_hand, rel=1e-9)


def test_extremal_combines_its_areas() -> None:
    model, images = ConvModel().double(), scenes(1).double()
    method = Extremal(areas=(0.1, 0.3), steps=5, blur=0)
    with untouched(model):
        masks = method.masks(request_for(model, images, [(0, 1)]))
        single = [Extremal(areas=a, steps=5).masks(request_for(model, images, [(0, 1)])) for a in (0.1, 0.3)]
    assert float((masks - torch.cat(single, 1)).abs().max()) < 1e-9
    found = protomask.locate(model, images, [(0, 1)], method)
    assert float((found.maps - unit(masks.mean(1))).abs().max()) < 1e-9
    assert not found.masks
    assert [Extremal(steps=10, areas=a, variant=v).passes for a, v in ((0.1, "hybrid"), ((0.1, 0.2), "preserve"))] == [
        20,
        20,
    ]


def test_what_replaces_pixels_is_the_fill() -> None:
    """A window that shows what was there before changes nothing."""
    image = fill_images("image-mean", blocks_image(), (0,) * 3, (1,) * 3).clone()
    found = protomask.locate(BlockModel(BLOCKS), image, "all", Occlusion(fill="image-mean"))
    assert found.reasons == ("constant map",) * 3


BAD = [
    ("occlusion", {"window": 0}, "window: expected a number"),
    ("occlusion", {"stride": 0.5}, "stride: expected a number"),
    ("occlusion", {"fill": "green"}, "fill: expected one of"),
    ("rise", {"masks": 0}, "masks: expected an integer"),
    ("rise", {"keep": 1.5}, "keep: expected a number"),
    ("neuromask", {"sparsity": -1}, "sparsity: expected a number"),
    ("neuromask", {"scale": 1}, "scale: expected an integer"),
    ("extremal", {"areas": ()}, "areas: expected at least one area"),
    ("extremal", {"areas": (0.1, 0.1)}, "areas: expected at least one area, each once"),
    ("extremal", {"areas": 1.5}, "areas: expected a number"),
    ("extremal", {"variant": "delete"}, "variant: expected one of preserve, hybrid"),
]


@pytest.mark.parametrize(("method", "settings", "message"), BAD)
def test_bad_settings_are_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        protomask.locate(BlockModel(BLOCKS), blocks_image(), "all", method, **settings)
