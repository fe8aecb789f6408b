"""Part vectors and map similarity by hand, against scipy and torchmetrics; the drivers on models known by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

import protomask
from protomask.data import Sample, to_tensor
from protomask.errors import InputError, ModelError
from protomask.localisers import Maps, Request
from protomask.metrics import (
    consistency,
    map_similarity,
    merged_sides,
    parts_in_box,
    purity,
    rank_correlation,
    ssim,
    stability,
)
from protomask.prototype_scores import prototype_scores
from protomask.sanity import agreement, agreement_images, cascade, layers_of, randomisation, randomised, unrelated
from tests.test_locate import same, snapshot
from tests.toys import BLOCKS, BlockScenes, ConvModel, block_model, scenes

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def rows(*vectors: str) -> Tensor:
    return torch.tensor([[c == "1" for c in v] for v in vectors])


def table(values: Tensor) -> list[float]:
    return [round(v, 6) for v in values.nan_to_num(-1).tolist()]


# --- part vectors ---------------------------------------------------------------------------------------------------


def test_parts_lie_in_a_square_that_includes_its_border() -> None:
    points = torch.tensor([[[10.0, 10], [13, 8], [13.1, 10], [math.nan, math.nan]]])
    hits, visible = parts_in_box(torch.tensor([[10, 10]]), points, 3)
    assert hits.tolist() == [[True, True, False, False]]
    assert visible.tolist() == [[True, True, True, False]]


def test_left_and_right_are_one_part() -> None:
    names = ("left eye", "crown", "right eye", "Left wing", "tail")
    hits, visible = merged_sides(rows("00100", "00000"), rows("10101", "00010"), names)
    assert hits.tolist() == [[True, False, False, False], [False] * 4]
    assert visible.tolist() == [[True, False, False, True], [False, False, True, False]]


def test_consistency_and_purity_by_hand() -> None:
    # Prototype 0: part a on 4 of 5 images that show it. 1: on 3 of 4. 2: a part seen once, hit once. 3: no image.
    hits = rows("10", "10", "10", "10", "00", "10", "10", "10", "00", "01", "00")
    visible = rows("11", "11", "11", "11", "10", "10", "10", "10", "10", "01", "00")
    prototypes = torch.tensor([0] * 5 + [1] * 4 + [2] * 2)
    wanted = torch.arange(4)
    assert table(consistency(hits, visible, prototypes, wanted)) == [1, 0, -1, -1]
    assert table(purity(hits, visible, prototypes, wanted)) == [0.8, 0.75, -1, -1]
    blank = torch.zeros_like(visible)  # images of prototypes 0 .. 2 that show no part at all
    assert table(consistency(hits & blank, blank, prototypes, wanted)) == [-1] * 4
    assert table(consistency(hits & blank, blank, prototypes, wanted, mode="published")) == [0, 0, 0, -1]
    # Published: seen once, hit once, is a share of 1.
    assert table(consistency(hits, visible, prototypes, wanted, mode="published")) == [1, 0, 1, -1]
    assert table(purity(hits, visible, prototypes, wanted, mode="published")) == [0.8, 0.75, 1, -1]
    assert table(consistency(hits, visible, prototypes, wanted, threshold=0.75)) == [1, 1, -1, -1]
    shuffled = torch.randperm(len(hits), generator=torch.Generator().manual_seed(0))
    again = purity(hits[shuffled], visible[shuffled], prototypes[shuffled], wanted.flip(0))
    assert table(again.flip(0)) == [0.8, 0.75, -1, -1]


def test_stability_by_hand() -> None:
    hits, noisy = rows("10", "10", "11", "00"), rows("10", "11", "11", "00")
    prototypes = torch.tensor([5, 5, 5, 5])
    assert table(stability(hits, noisy, prototypes, torch.tensor([5, 6]))) == [0.5, -1]
    assert table(stability(hits, noisy, prototypes, torch.tensor([5, 6]), mode="published")) == [0.75, -1]
    shown = rows("11", "10", "11", "00")  # the last image shows no part: it cannot say
    assert table(stability(hits, noisy, prototypes, torch.tensor([5, 6]), visible=shown)) == pytest.approx([2 / 3, -1])
    unseen = stability(hits[3:], noisy[3:], prototypes[3:], torch.tensor([5]), visible=shown[3:])
    assert unseen.isnan().all()


@FEW
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(["fixed", "published"]), n=st.integers(1, 30))
def test_scores_per_prototype_are_the_naive_loops(seed: int, mode: str, n: int) -> None:
    rng = np.random.default_rng(seed)
    visible, prototypes = rng.random((n, 3)) < 0.7, rng.integers(0, 3, n)
    hits, noisy = ((rng.random((n, 3)) < 0.6) & visible for _ in range(2))
    naive: dict[str, list[float]] = {"consistency": [], "purity": [], "stability": []}
    for prototype in range(4):
        mine = np.flatnonzero(prototypes == prototype)
        shares = [
            hits[mine, part].sum() / visible[mine, part].sum()
            for part in range(3)
            if visible[mine, part].sum() >= (2 if mode == "fixed" else 1)
        ]
        unseen = 0.0 if mode == "published" and len(mine) else -1
        naive["consistency"].append(float(max(shares) >= 0.8) if shares else unseen)
        naive["purity"].append(max(shares) if shares else -1)
        same = [(hits[i] == noisy[i]).all() and (mode == "published" or hits[i].any()) for i in mine]
        naive["stability"].append(float(np.mean(same)) if same else -1)
    a, b, c, p = (torch.from_numpy(v) for v in (hits, visible, noisy, prototypes))
    wanted = torch.arange(4)
    assert table(consistency(a, b, p, wanted, mode=mode)) == naive["consistency"]
    assert table(purity(a, b, p, wanted, mode=mode)) == pytest.approx(naive["purity"], abs=1e-6)
    assert table(stability(a, c, p, wanted, mode=mode)) == pytest.approx(naive["stability"], abs=1e-6)


def test_part_vectors_of_another_kind_are_refused() -> None:
    good = rows("10", "01")
    with pytest.raises(InputError, match=r"part vectors: expected two bool tensors \[N, K\]"):
        stability(good, good.float(), torch.tensor([0, 0]), torch.tensor([0]))
    with pytest.raises(InputError, match=r"prototypes: expected an int64 tensor \[2\]"):
        purity(good, good, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(InputError, match="mode: expected one of fixed, published"):
        purity(good, good, torch.tensor([0, 0]), torch.tensor([0]), mode="old")
    with pytest.raises(InputError, match="names: expected 2 names"):
        merged_sides(good, good, ["a"])


# --- the driver -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PointAt:
    """A dot at block (prototype + ``shift``): a method that is right, or wrong in a known way."""

    shift: int = 0
    jumpy: bool = False
    passes = 0.0

    def __call__(self, request: Request) -> Maps:
        maps = request.images.new_zeros((len(request.targets), *request.size))
        for row, (image, prototype) in enumerate(request.targets):
            x0, y0, x1, y1 = BLOCKS[(prototype + self.shift) % 3]
            odd = self.jumpy and float(request.images[image].sum()) % 1 > 0.5
            maps[row, (y0 + y1) // 2 - (0 if not odd else 8), (x0 + x1) // 2] = 1
        return Maps(maps)


def test_a_method_that_finds_the_part_is_consistent_stable_and_pure() -> None:
    result = prototype_scores(block_model(), BlockScenes(9), PointAt(), half=4 / 32, patch_half=2 / 32)
    assert result.prototypes.tolist() == [0, 1, 2]
    assert result.images.tolist() == [3, 3, 3]
    assert {name: values.tolist() for name, values in result.values.items()} == {
        "consistency": [1, 1, 1], "stability": [1, 1, 1], "purity": [1, 1, 1],
    }  # fmt: skip
    jumpy = prototype_scores(block_model(), BlockScenes(30), PointAt(jumpy=True), half=3 / 32, images=10)
    assert (jumpy.values["consistency"] < 1).all()
    assert (jumpy.values["stability"] < 1).all()
    few = prototype_scores(block_model(), BlockScenes(9), PointAt(), prototypes=[2], images=1, metrics=["consistency"])
    assert few.images.tolist() == [1]
    assert few.values["consistency"].isnan().all()  # one image is no consistency
    assert list(few.values) == ["consistency"]


def test_a_method_that_finds_nothing_is_not_stable() -> None:
    @dataclass(frozen=True)
    class Nothing:
        passes = 0.0

        def __call__(self, request: Request) -> Maps:
            return Maps(request.images.new_zeros((len(request.targets), *request.size)))

    result = prototype_scores(block_model(), BlockScenes(9), Nothing())
    assert {name: values.tolist() for name, values in result.values.items()} == {
        "consistency": [0, 0, 0], "stability": [0, 0, 0], "purity": [0, 0, 0],
    }  # fmt: skip


def test_prototype_scores_do_not_depend_on_the_batch_but_on_the_seed() -> None:
    def scores(seed: int, batch: int) -> list[float]:
        result = prototype_scores(
            block_model(), BlockScenes(24), "random", images=4, half=5 / 32, seed=seed, batch=batch, metrics=["purity"]
        )
        return result.values["purity"].tolist()

    assert scores(0, 32) == scores(0, 3)
    assert any(scores(seed, 32) != scores(0, 32) for seed in (1, 2, 3))


def test_wrong_prototype_calls_are_refused() -> None:
    with pytest.raises(InputError, match="metrics: expected one of consistency, stability, purity"):
        prototype_scores(block_model(), BlockScenes(3), metrics=["energy"])
    with pytest.raises(InputError, match=r"prototypes: expected an index in 0 \.\. 2"):
        prototype_scores(block_model(), BlockScenes(3), prototypes=[3])
    bare = BlockScenes(3)
    bare.part_names = ()  # type: ignore[assignment]
    with pytest.raises(InputError, match="dataset: expected annotated parts, got none in 'blocks'"):
        prototype_scores(block_model(), bare)


# --- similarity of maps ---------------------------------------------------------------------------------------------


def two_maps(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 24, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    return (a * 5).round() / 5, 0.5 * a + 0.5 * b  # plateaus in one of them


def test_rank_correlation_is_scipys() -> None:
    a, b = two_maps()
    wanted = [spearmanr(x.flatten().numpy(), y.flatten().numpy()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b).numpy(), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(rank_correlation(a.exp(), b**3), rank_correlation(a, b), rtol=0, atol=1e-12)
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(len(a)).double(), rtol=0, atol=1e-12)


def test_ssim_is_torchmetrics() -> None:
    a, b = two_maps()
    a, b = (
        (m - m.amin((1, 2), keepdim=True)) / (m.amax((1, 2), keepdim=True) - m.amin((1, 2), keepdim=True))
        for m in (a, b)
    )
    for k in range(len(a)):
        # Population covariance and mirrored borders, as ours; theirs trims the border off the mean, so compare the map.
        _, theirs = structural_similarity_index_measure(
            a[k][None, None], b[k][None, None], sigma=1.5, data_range=1.0, return_full_image=True
        )
        assert float(ssim(a[k : k + 1], b[k : k + 1])) == pytest.approx(float(theirs.mean()), abs=1e-6)
    torch.testing.assert_close(ssim(a, 3 * a + 1), torch.ones(len(a)).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(ssim(a, b), ssim(b, a), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["rank-correlation", "ssim"])
def test_constant_maps_are_like_nothing(kind: str) -> None:
    a, _ = two_maps(3)
    flat = torch.full_like(a, 0.3)
    assert map_similarity(a, flat, kind).tolist() == map_similarity(flat, a, kind).tolist() == [0, 0, 0]
    assert map_similarity(flat, flat, kind).isnan().all()


# --- randomisation and agreement ------------------------------------------------------------------------------------


def test_randomised_weights_are_shuffled_and_come_back() -> None:
    model = ConvModel().train()
    before, values = snapshot(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    with randomised(model, seed=3):
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.flatten().sort().values, values[name].flatten().sort().values, rtol=0, atol=0)
        assert not torch.equal(model.vectors, values["vectors"])
    assert same(before, snapshot(model))
    with pytest.raises(RuntimeError, match="stop"), randomised(model):
        raise RuntimeError("stop")
    assert same(before, snapshot(model))
    with randomised(model, layers=["body.4"]):
        assert not torch.equal(model.body[4].weight, values["body.4.weight"])
        assert torch.equal(model.vectors, values["vectors"])
    assert layers_of(model) == ("", "body.0", "body.1", "body.4")
    with pytest.raises(InputError, match="layers: expected one of"), randomised(model, layers=["head"]):
        pass


def test_maps_that_ignore_the_model_fail_the_randomisation_test() -> None:
    model, images = ConvModel().eval(), scenes(3)
    before = snapshot(model)
    pairs = [(0, 0), (1, 1), (2, 2)]
    boxes = torch.tensor([[4.0, 4, 20, 24]] * 3)
    torch.testing.assert_close(randomisation(model, images, pairs, "centre", boxes=boxes), torch.ones(3).double())
    learned = randomisation(model, images, pairs, "upsampling")
    assert float(learned.mean()) < 0.7
    found = protomask.locate(model, images, pairs, method="upsampling")
    torch.testing.assert_close(randomisation(model, images, pairs, "upsampling", found=found), learned)
    stages = cascade(model, images, pairs, "upsampling", stages=2)
    assert list(stages) == ["body.1", ""]
    upper = randomisation(model, images, pairs, "upsampling", layers=layers_of(model)[:1:-1])
    torch.testing.assert_close(stages["body.1"], upper)
    assert not torch.allclose(upper, learned)
    torch.testing.assert_close(stages[""], learned)
    assert same(before, snapshot(model))
    with pytest.raises(ModelError, match="a module with weights to shuffle"):
        randomisation(block_model(), torch.rand(1, 3, 32, 32), [(0, 0)], "centre")


def test_agreement_tells_the_image_from_the_habit() -> None:
    models = [ConvModel(3, 3, seed=0).eval(), ConvModel(3, 3, seed=0).eval(), ConvModel(3, 3, seed=1).eval()]
    data = BlockScenes(8)
    result = agreement(models, data, "upsampling", images=5)
    assert result.pairs == ((0, 1), (0, 2), (1, 2))
    assert result.same.shape == result.different.shape == (3, 5)
    torch.testing.assert_close(result.same[0], torch.ones(5).double())  # the same weights twice
    torch.testing.assert_close(result.same[1], result.same[2])
    centre = agreement(models[::2], data, "centre", images=5)
    torch.testing.assert_close(centre.same, centre.different)  # perfect, and about nothing
    assert len(result.groups) == 5
    assert result.capacities == (sum(p.numel() for p in models[0].parameters()),) * 3
    with pytest.raises(InputError, match="models: expected at least two of one input size"):
        agreement(models[:1], data)
    with pytest.raises(InputError, match="images: expected at least two"):
        agreement(models, data, images=1)


def test_agreement_is_of_the_most_activated_prototypes_of_the_own_class() -> None:
    models, data = [ConvModel(6, 3, seed=k).eval() for k in (0, 1)], BlockScenes(12)
    samples = [data[index] for index in agreement_images(data, 5, 0)]
    evidence: list[list[Tensor]] = []
    for model in models:
        evidence.append([])
        for sample in samples:
            image = to_tensor([sample.image], model.mean, model.std)
            own = [p for p in range(6) if p // 2 == sample.label]
            best = max(own, key=lambda p: float(model.activations(image)[0, p].detach()))
            evidence[-1].append(protomask.locate(model, image, [(0, best)], method="upsampling").maps[0])
    result = agreement(models, data, "upsampling", images=5, shown=1)
    for k, sample in enumerate(samples):
        other = next(n % 5 for n in range(k + 1, k + 5) if samples[n % 5].label != sample.label)
        for known, place in ((result.same, k), (result.different, other)):
            wanted = spearmanr(evidence[0][k].flatten(), evidence[1][place].flatten()).statistic
            assert float(known[0, k]) == pytest.approx(wanted, abs=1e-4)
    assert not torch.allclose(result.same, result.different, atol=0.05)


def test_a_model_that_finds_nothing_neither_agrees_nor_disagrees() -> None:
    data = BlockScenes(6)
    blind = ConvModel(3, 3, seed=1).eval()
    with torch.no_grad():
        blind.vectors += 1e3  # every similarity is 0, its floor
    result = agreement([ConvModel(3, 3).eval(), blind], data, "upsampling", images=4)
    assert result.same.isnan().all()
    assert result.different.isnan().all()


def test_the_unrelated_image_is_the_next_of_another_class_and_group() -> None:
    def sample(label: int, group: str) -> Sample:
        return replace(BlockScenes(1)[0], label=label, group=group)

    assert unrelated([sample(0, "a"), sample(0, "b"), sample(1, "a"), sample(1, "c")]) == [3, 2, 1, 0]
    assert unrelated([sample(0, "a"), sample(0, "a"), sample(0, "b")]) == [2, 2, 0]  # of the same class, if need be
    assert unrelated([sample(0, "a"), sample(0, "a"), sample(0, "a")]) == [1, 2, 0]
