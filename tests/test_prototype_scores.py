"""Scores per prototype against loops over single pairs, and on data whose scores are known by construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import protomask
from protomask.data.sample import Geometry, Sample, to_tensor
from protomask.draws import content_of, generator_of
from protomask.errors import InputError
from protomask.loading import Relabelled
from protomask.localisers import Maps, Request
from protomask.model import contract
from protomask.prototype_scores import PrototypeScores, _noised, prototype_pools, prototype_scores
from tests.test_locate import same, snapshot
from tests.toys import BlockModel, BlockScenes, ClassedBlocks, ConvModel, block_model


def sample_of(
    index: int, image: np.ndarray, label: int, points: np.ndarray | None, box: np.ndarray | None = None
) -> Sample:
    height, width = image.shape[:2]
    geometry = Geometry((height, width), (0, 0, width, height), (height, width))
    return Sample(str(index), image, label, geometry, box=box, points=points)


class PointsOnly:
    """A data set whose parts cannot be in-painted."""

    def without_part(self, index: int, part: int) -> None:
        return None


@dataclass(frozen=True)
class Brightest:
    """The image's own first channel, wherever the prototype looks."""

    passes = 0.0

    def __call__(self, request: Request) -> Maps:
        return Maps(request.images[request.targets.images, 0].clamp(0, 2) / 2)


# --- against a loop over single pairs -------------------------------------------------------------------------------


@dataclass
class Scattered(PointsOnly):
    """Coloured patches, wider than high; parts anywhere, or not visible; every sixth image is not annotated."""

    count: int = 30
    name = "scattered"
    class_names = ("first", "second", "third")
    part_names = ("left eye", "crown", "right eye", "tail")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([5, index])
        patches = rng.integers(0, 236, (4, 5, 3)).repeat(8, 0).repeat(8, 1)
        points = rng.random((4, 2)) * [39, 31]
        points[rng.random(4) < 0.3] = np.nan
        corner = rng.random(2) * [20, 16]
        box = np.concatenate([corner, corner + 4 + rng.random(2) * [16, 12]])
        image = (patches + rng.integers(0, 20, patches.shape)).astype(np.uint8)
        label = int(rng.integers(3))
        return sample_of(index, image, label, points if index % 6 else None, box if index % 5 else None)


EYES = ((0, 2), (1,), (3,))
ALONE = ((0,), (1,), (2,), (3,))


def seven_prototypes() -> ConvModel:
    """Of which the first speaks for two classes and the last for none."""
    model = ConvModel(prototypes=7, classes=7)
    model.input_shape = (3, 32, 40)
    model.weights = torch.eye(3).repeat(3, 1)[:7] * 1.5 - 0.5
    model.weights[0, 1] = 1
    model.weights[6] = -0.5
    return model


@dataclass
class Loop:
    """Every image and every prototype by itself."""

    model: ConvModel
    data: Scattered
    method: str
    images: int
    pool: int
    half: float
    patch_half: float
    mode: str
    seed: int
    shown: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        whole = [to_tensor(self.data[k].image[None], self.model.mean, self.model.std) for k in range(len(self.data))]
        self.shown = [image[0] for image in whole]

    def own(self, prototype: int) -> list[int]:
        classes = [k for k in range(3) if self.model.weights[prototype, k] == 1]
        order = np.random.default_rng([self.seed, 2]).permutation(len(self.data))
        return [int(index) for index in order if self.data[index].label in classes]

    def activation(self, index: int, prototype: int) -> float:
        with torch.no_grad():
            return float(self.model.activations(self.shown[index][None])[0, prototype])

    def hits(self, index: int, prototype: int, half: float, noise: bool = False) -> list[bool | None]:
        """Whether each part is near the peak; None where it is not visible."""
        sample, image = self.data[index], self.shown[index]
        if noise:
            generator = generator_of("stability", self.seed, content_of(image))
            drawn = 0.2 * torch.randn(image.shape, generator=generator, dtype=torch.float64)
            image = image + drawn.clamp(-0.25, 0.25).float()
        box = torch.full((1, 4), math.nan) if sample.box is None else torch.from_numpy(sample.box)[None]
        found = protomask.locate(
            self.model, image[None], [(0, prototype)], self.method, seed=self.seed, boxes=box.double()
        )
        x, y = found.peaks[0].tolist()
        points = [(math.nan, math.nan)] * 4 if sample.points is None else sample.points.tolist()
        near = [max(abs(px - x), abs(py - y)) <= half * 32 and bool(found.located[0]) for px, py in points]
        return [None if math.isnan(px) else value for (px, _), value in zip(points, near, strict=True)]

    def shares(self, vectors: list[list[bool | None]], groups: Sequence[Sequence[int]]) -> list[float]:
        """Of the images that show a part, on how many it is hit, for each part that is shown often enough."""
        found = []
        for group in groups:
            told = [[v[k] for k in group if v[k] is not None] for v in vectors]
            seen = [any(values) for values in told if values]
            if len(seen) >= (2 if self.mode == "fixed" else 1):
                found.append(sum(seen) / len(seen))
        return found

    def consistency(self, prototype: int) -> float:
        found = self.shares([self.hits(k, prototype, self.half) for k in self.own(prototype)[: self.images]], ALONE)
        return float(max(found) >= 0.8) if found else math.nan

    def stability(self, prototype: int) -> float:
        told = []
        for index in self.own(prototype)[: self.images]:
            plain, noisy = (self.hits(index, prototype, self.half, noise) for noise in (False, True))
            if self.mode == "published":
                told.append(plain == noisy)
            elif any(value is not None for value in plain):
                told.append(plain == noisy and any(plain))
        return sum(told) / len(told) if told else math.nan

    def purity(self, prototype: int) -> float:
        pool = self.own(prototype)[: self.pool]
        best = sorted(pool, key=lambda index: -self.activation(index, prototype))[: self.images]
        found = self.shares([self.hits(k, prototype, self.patch_half) for k in best], EYES)
        return max(found) if found else math.nan


def known(values: Sequence[float]) -> set[float]:
    return {round(v, 6) for v in values if not math.isnan(v)}


@pytest.mark.parametrize(
    ("method", "mode", "seed"),
    [("upsampling", "fixed", 0), ("upsampling", "published", 3), ("centre", "fixed", 1), ("random", "fixed", 4)],
)
def test_scores_are_those_of_a_loop_over_single_pairs(method: str, mode: str, seed: int) -> None:
    data, model = Scattered(), seven_prototypes().train()
    wanted = [5, 0, 1, 6, 2, 4]
    how: dict[str, Any] = {"images": 4, "pool": 8, "half": 0.42, "patch_half": 0.3, "mode": mode, "seed": seed}
    loop = Loop(seven_prototypes().eval(), data, method, **how)
    before = snapshot(model)
    result = prototype_scores(model, data, method, prototypes=wanted, batch=5, **how)
    assert same(before, snapshot(model))
    assert result.prototypes.tolist() == wanted
    assert result.images.tolist() == [min(4, len(loop.own(p))) for p in wanted] == [4, 4, 4, 0, 4, 4]
    for metric, values in result.values.items():
        expected = [getattr(loop, metric)(prototype) for prototype in wanted]
        assert values.tolist() == pytest.approx(expected, nan_ok=True), metric
        assert len(known(expected)) > 1, metric
        assert metric == "consistency" or known(expected) - {0.0, 1.0}, metric


# --- which images ---------------------------------------------------------------------------------------------------


CORNERS = np.array([[6.0, 6], [26, 6], [6, 26], [26, 26]])
NAMES = ("left eye", "right eye", "beak", "tail")
NOWHERE = (16, 16)


@dataclass(frozen=True)
class Spotted(PointsOnly):
    """Images ever brighter, in a shuffled order, with a white pixel on a part, or on none (-1)."""

    spots: tuple[int, ...]
    part_names: tuple[str, ...] = NAMES
    name = "spotted"
    class_names = ("only",)

    def __len__(self) -> int:
        return len(self.spots)

    def __getitem__(self, index: int) -> Sample:
        rank = np.random.default_rng(8).permutation(len(self.spots))[index]
        image = np.full((32, 32, 3), 9 * rank, np.uint8)
        spot = self.spots[rank]
        x, y = NOWHERE if spot < 0 else CORNERS[spot].astype(int)
        image[y, x] = 255
        return sample_of(index, image, 0, CORNERS)


DARK_TO_BRIGHT = (2, 2, 2, 2, 3, -1, 3, -1, 0, 1, -1, 0)
WHOLE = BlockModel([(0, 0, 32, 32)])


def spotted_purity(data: Spotted, images: int) -> float:
    result = prototype_scores(WHOLE, data, Brightest(), metrics=["purity"], images=images, patch_half=2 / 32)
    return float(result.values["purity"])


def test_purity_is_that_of_the_most_activated_images_with_left_and_right_as_one() -> None:
    eyes = Spotted(DARK_TO_BRIGHT)
    assert spotted_purity(eyes, 4) == 3 / 4
    assert spotted_purity(eyes, 2) == 1 / 2
    assert spotted_purity(eyes, 12) == 4 / 12
    # Without sides in their names the two eyes are two parts.
    assert spotted_purity(Spotted(DARK_TO_BRIGHT, ("eye one", "eye two", "beak", "tail")), 4) == 2 / 4
    # The other way round the beak comes first.
    assert spotted_purity(Spotted(DARK_TO_BRIGHT[::-1]), 4) == 1


def test_consistency_keeps_left_and_right_apart() -> None:
    sided = Spotted((0, 1) * 4)
    result = prototype_scores(WHOLE, sided, Brightest(), half=2 / 32, patch_half=2 / 32)
    assert {name: values.tolist() for name, values in result.values.items()} == {
        "consistency": [0], "stability": [1], "purity": [1],
    }  # fmt: skip


class ClassParts(BlockScenes):
    """Blocks whose part k is annotated at block k on images of class k, and at another block on all others."""

    def __getitem__(self, index: int) -> Sample:
        plain = super().__getitem__(index)
        assert plain.points is not None
        points = np.roll(plain.points, 1, axis=0)
        points[plain.label] = plain.points[plain.label]
        return sample_of(index, plain.image, plain.label, points)


@dataclass(frozen=True)
class MiddleOfBlock:
    """A dot in the middle of the prototype's block."""

    passes = 0.0

    def __call__(self, request: Request) -> Maps:
        blocks: list[tuple[int, int, int, int]] = request.model.source.blocks  # type: ignore[attr-defined]
        maps = request.images.new_zeros((len(request.targets), *request.size))
        for row, (_, prototype) in enumerate(request.targets):
            x0, y0, x1, y1 = blocks[prototype]
            maps[row, (y0 + y1) // 2, (x0 + x1) // 2] = 1
        return Maps(maps)


def test_prototypes_are_scored_on_images_of_their_class_where_the_model_tells_classes() -> None:
    def scores(model: BlockModel) -> dict[str, list[float]]:
        result = prototype_scores(model, ClassParts(18), MiddleOfBlock(), images=18, half=2 / 32, patch_half=2 / 32)
        return {"images": result.images.tolist()} | {n: v.tolist() for n, v in result.values.items()}

    every = [1.0, 1.0, 1.0]
    assert scores(block_model()) == {
        "images": [6, 6, 6], "consistency": every, "stability": every, "purity": every
    }  # fmt: skip
    unclassed = scores(BlockModel(block_model().blocks))
    assert unclassed["images"] == [18, 18, 18]
    assert unclassed["consistency"] == [0, 0, 0]
    assert max(unclassed["purity"]) < 0.8


# --- which parts ----------------------------------------------------------------------------------------------------


class Away(PointsOnly):
    """An image of 260 x 224 per sample; class k has one visible part, so many pixels off the middle, to the left."""

    name = "away"
    distances = (15.5, 16.5, 35.5, 36.5)
    class_names = part_names = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        points = np.full((4, 2), np.nan)
        points[index % 4] = (130 - self.distances[index % 4], 112)
        image = np.full((224, 260, 3), 100 + index, np.uint8)
        return sample_of(index, image, index % 4, points)


def test_the_default_squares_reach_36_and_16_of_224_pixels() -> None:
    model = ClassedBlocks([(0, 0, 260, 224)] * 4)
    model.input_shape = (3, 224, 260)
    result = prototype_scores(model, Away(), MiddleOfBlock())
    assert {name: values.tolist() for name, values in result.values.items()} == {
        "consistency": [1, 1, 1, 0], "stability": [1, 1, 1, 0], "purity": [1, 0, 0, 0],
    }  # fmt: skip


class Fading(BlockScenes):
    """Every third image is black, so that its activation is at its floor; every third is of one grey."""

    def __getitem__(self, index: int) -> Sample:
        plain = super().__getitem__(index)
        image = plain.image if index % 3 == 0 else np.full_like(plain.image, 0 if index % 3 == 1 else 90)
        return sample_of(index, image, 0, plain.points)


def test_images_on_which_nothing_is_found_are_misses_whatever_the_square() -> None:
    def scores(data: BlockScenes) -> dict[str, float]:
        result = prototype_scores(WHOLE, data, Brightest(), half=2, patch_half=2)
        return {name: float(values) for name, values in result.values.items()}

    assert scores(BlockScenes(9)) == {"consistency": 1, "stability": 1, "purity": 1}
    assert scores(Fading(9)) == {"consistency": 0, "stability": 3 / 9, "purity": 3 / 9}


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_is_a_clipped_normal() -> None:
    sigma, clip = 0.2, 0.25
    noise = _noised(torch.zeros(3, 200, 200), 0).double()
    normal = NormalDist()
    a = clip / sigma
    tail = 2 * (1 - normal.cdf(a))
    variance = sigma**2 * (1 - tail - 2 * a * normal.pdf(a)) + clip**2 * tail
    assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    assert float(noise.std()) == pytest.approx(math.sqrt(variance), rel=0.01)
    assert float(noise.min()) == -clip
    assert float(noise.max()) == clip
    assert float((noise.abs() == clip).double().mean()) == pytest.approx(tail, rel=0.02)


def test_noise_depends_on_the_seed_and_the_image_alone() -> None:
    image, other = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    torch.manual_seed(1)
    first = _noised(image, 0)
    torch.manual_seed(2)
    assert torch.equal(first, _noised(image, 0))
    for another in (_noised(image, 1) - image, _noised(other, 0) - other):
        assert float((another - (first - image)).abs().max()) > 0.1
    assert first.dtype == image.dtype


def test_a_spot_that_stands_out_by_more_than_two_clips_is_stable() -> None:
    # White less the noise is .75 at least, the brightest ground with it .64 at most.
    data = Spotted((0, 1, 2, 3) * 3)
    result = prototype_scores(WHOLE, data, Brightest(), metrics=["stability"], images=12, half=2 / 32)
    assert result.values["stability"].tolist() == [1]


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_a_prototype_that_is_named_twice_or_a_mode_that_is_none_is_refused_before_any_pass() -> None:
    model, data = ConvModel(), BlockScenes(6, masks=False)
    calls: list[int] = []
    told = {"progress": calls.append, "metrics": ("consistency",)}
    with pytest.raises(InputError, match="prototypes: expected each index once"):
        prototype_scores(model, data, "centre", prototypes=[2, 2], **told)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mode: expected one of fixed, published"):
        prototype_scores(model, data, "centre", mode="old", **told)  # type: ignore[arg-type]
    assert calls == []
    none = prototype_scores(model, data, "centre", prototypes=[])
    assert (none.prototypes.dtype, none.images.dtype) == (torch.int64, torch.int64)


def test_purity_chooses_from_no_more_than_the_pool() -> None:
    data = Scattered()
    model = seven_prototypes()
    small = prototype_scores(model, data, "upsampling", metrics=("purity",), images=4, pool=4)
    assert same_values(prototype_scores(model, data, "upsampling", metrics=("purity",), images=9, pool=4), small)
    both = prototype_scores(model, data, "upsampling", metrics=("consistency", "purity"), images=9, pool=4)
    assert same_values(both, small)


def same_values(one: PrototypeScores, other: PrototypeScores) -> bool:
    return torch.equal(one.values["purity"].nan_to_num(-1), other.values["purity"].nan_to_num(-1))


def test_an_image_of_no_class_is_no_prototypes() -> None:
    data = Scattered(9)
    labels = [data[k].label for k in range(9)]
    data.labels = tuple(-1 if k in (2, 5) else label for k, label in enumerate(labels))  # type: ignore[attr-defined]
    model = contract(seven_prototypes())
    pools = prototype_pools(model, data, range(7), 9, seed=0)
    assert not {index for pool in pools.values() for index in pool} & {2, 5}
    renamed = Relabelled(data, (2, 0, 1), ("third", "first", "second"))
    moved = prototype_pools(model, renamed, range(7), 9, seed=0)
    assert not {index for pool in moved.values() for index in pool} & {2, 5}
    assert {labels[index] for index in moved[2]} <= {0}  # prototype 2 is of class 2, the data's first
