from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import protomask
from protomask.data import Sample
from protomask.errors import InputError
from protomask.evaluation import locate_and_score
from protomask.localisers import Maps, Request
from protomask.metrics import DEFAULT_METRICS
from protomask.model import contract
from protomask.pairs import Pair, draw_pairs, truth_of
from tests.toys import BLOCKS, BlockModel, BlockScenes, block_model

METHODS = (protomask.MDM(fill="black"), "random", "centre", "annotation")
NAMES = ("mdm", "random", "centre", "annotation")
PAIRS = [(4, 1), (4, 0), (2, 2)]


def test_pairs_are_of_the_images_own_class_and_about_its_part() -> None:
    drawn = draw_pairs(contract(block_model()), BlockScenes(), 9)
    assert sorted(pair.index for pair in drawn.pairs) == list(range(9))
    for pair in drawn.pairs:
        assert pair.prototype == pair.index % 3
        assert pair.part == pair.prototype
    assert (drawn.drawn, drawn.qualified, drawn.kind) == (9, 9, "part")


def test_pairs_depend_on_the_seed_alone() -> None:
    def draw(seed: int, batch: int) -> list[tuple[int, int]]:
        drawn = draw_pairs(contract(block_model()), BlockScenes(), 6, seed=seed, batch=batch)
        return [(p.index, p.prototype) for p in drawn.pairs]

    assert draw(0, 32) == draw(0, 4)
    assert draw(0, 32) != draw(1, 32)


def test_a_pair_without_a_clear_part_is_left_out_where_parts_are_the_truth() -> None:
    both = block_model()
    both.blocks = [(4, 2, 26, 12), BLOCKS[1], BLOCKS[2]]  # prototype 0 now sees parts a and b alike
    drawn = draw_pairs(contract(both), BlockScenes(), 9)
    assert {pair.prototype for pair in drawn.pairs} == {1, 2}
    assert (drawn.drawn, drawn.qualified) == (9, 6)
    with_points = draw_pairs(contract(both), BlockScenes(masks=False), 9)
    assert [pair.part for pair in with_points.pairs if pair.prototype == 0] == [-1] * 3
    assert len(with_points.pairs) == 9
    clear = draw_pairs(contract(both), BlockScenes(masks=False), 9, clear=True)
    assert [(p.index, p.prototype) for p in clear.pairs] == [
        (p.index, p.prototype) for p in with_points.pairs if p.prototype
    ]
    assert (clear.drawn, clear.qualified, clear.kind) == (9, 6, with_points.kind)


@pytest.mark.parametrize("batch", [4, 8, 32])
def test_the_kind_of_truth_is_the_finest_of_any_image_whatever_the_batch(batch: int) -> None:
    class Partly(BlockScenes):
        """Every third object has its pixels, every other third a box, the others nothing."""

        def __getitem__(self, index: int) -> Sample:
            plain = super().__getitem__(index)
            pixels = np.zeros((32, 32), bool)
            pixels[4:20, 4:20] = True
            have = (index % 9) // 3
            return replace(
                plain, segmentation=pixels if have == 1 else None, box=None if have == 2 else plain.box, points=None
            )

    model, data = contract(BlockModel(BLOCKS)), Partly(9, masks=False)
    drawn = draw_pairs(model, data, 9, batch=batch)
    assert drawn.kind == "segmentation"
    truth = truth_of([data[pair.index] for pair in drawn.pairs], list(drawn.pairs), drawn.kind)
    assert truth.regions is not None
    told = {pair.index % 9 // 3: bool(region.any()) for pair, region in zip(drawn.pairs, truth.regions, strict=True)}
    assert told == {0: False, 1: True, 2: False}  # an IoU with a box says nothing


def test_no_pair_is_an_error() -> None:
    dark = BlockModel([(0, 0, 2, 2)])
    dark.activation_range = (1.0, None)  # type: ignore[assignment]
    with pytest.raises(InputError, match="pairs: expected at least one pair"):
        draw_pairs(contract(dark), BlockScenes(), 3)


class Unnamed(BlockScenes):
    part_names = ()  # type: ignore[assignment]


class Unremoved(BlockScenes):
    def without_part(self, index: int, part: int) -> np.ndarray | None:
        return None


class Larger(BlockScenes):
    def without_part(self, index: int, part: int) -> np.ndarray | None:
        return np.zeros((64, 64, 3), np.uint8)


class Marked(BlockScenes):
    without_part = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unnamed, r"a clear causal part, got none in 9 drawn \(the data set's part_names are empty\)"),
        (Unremoved, "a clear causal part, got none in 9 drawn$"),
        (Larger, r"without_part\(\d, 0\): expected shape \[32, 32, 3\], got .*64"),
        (Marked, r"dataset: expected without_part\(index, part\) beside part_names, .* got Marked"),
    ],
)
def test_a_data_set_that_cannot_be_scored_says_why(kind: type[BlockScenes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_pairs(contract(block_model()), kind(9), 3)


def test_a_data_set_without_parts_needs_no_way_to_take_them_out() -> None:
    class Boxed(Unnamed):
        without_part = None  # type: ignore[assignment]

    assert len(draw_pairs(contract(block_model()), Boxed(9, masks=False), 3).pairs) == 3


def test_truth_of_points_and_masks() -> None:
    data = BlockScenes()
    drawn = draw_pairs(contract(block_model()), data, 3)
    samples = [data[p.index] for p in drawn.pairs]
    truth = truth_of(samples, list(drawn.pairs), "part")
    for row, pair in enumerate(drawn.pairs):
        x0, y0, x1, y1 = BLOCKS[pair.part]
        assert int(truth.regions[row].sum()) == (x1 - x0) * (y1 - y0)  # type: ignore[index]
        assert truth.points[row].tolist() == [(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2]  # type: ignore[index]
    assert truth.radii.tolist() == pytest.approx([0.05 * np.hypot(22, 28)] * 3)  # type: ignore[union-attr]
    whole = truth_of(samples, list(drawn.pairs), "object")
    assert whole.regions.flatten(1).sum(1).tolist() == [22 * 28] * 3  # type: ignore[union-attr]


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def test_scores_say_what_is_known() -> None:
    result = protomask.evaluate(block_model(), BlockScenes(), METHODS, pairs=9)
    mean = {method: {k: _mean(v) for k, v in scores.items()} for method, scores in result.values.items()}
    assert set(mean["mdm"]) == set(DEFAULT_METRICS)
    assert mean["annotation"]["iou-best"] > 0.95
    assert mean["annotation"]["pointing-game"] == 1
    assert mean["mdm"]["pointing-game"] == 1
    assert mean["mdm"]["iou-best"] > 0.8
    assert mean["mdm"]["energy"] > 0.8
    assert mean["centre"]["pointing-game"] == 0
    assert mean["mdm"]["insertion"] > mean["random"]["insertion"]
    assert mean["mdm"]["deletion"] < mean["random"]["deletion"]
    assert mean["mdm"]["part-hit-2r"] == 1
    assert np.isnan(mean["random"]["iou-own-area"])  # no mask, no area of its own
    difference = result.differences()["random"]["energy"]
    assert difference.low > 0
    assert difference.n == 9
    assert result.summaries()["mdm"]["energy"].mean == pytest.approx(mean["mdm"]["energy"])
    assert result.fills == {"mdm": "black", "random": "", "centre": "", "annotation": ""}
    assert result.optimised_with_scoring_fill() == ()


def test_optimising_with_the_scoring_fill_is_marked() -> None:
    result = protomask.evaluate(block_model(), BlockScenes(), [protomask.MDM(fill="mean"), "random"], pairs=3)
    assert result.optimised_with_scoring_fill() == ("mdm",)


def test_the_batch_changes_no_score() -> None:
    one, other = (protomask.evaluate(block_model(), BlockScenes(), METHODS, pairs=9, batch=b) for b in (64, 2))
    for method in NAMES:
        for metric, values in one.values[method].items():
            assert np.allclose(values, other.values[method][metric], atol=1e-4, equal_nan=True), (method, metric)


def test_chunks_are_handed_out_once() -> None:
    seen: list[int] = []
    protomask.evaluate(
        block_model(), BlockScenes(), ["random"], pairs=9, batch=4,
        seen=lambda pairs, samples, found, truth: seen.extend(p.index for p in pairs),
    )  # fmt: skip
    assert sorted(seen) == list(range(9))


def test_bad_calls_are_refused_before_any_pass() -> None:
    for methods, message in (
        ([], "methods: expected a list of at least one method"),
        ("mdm", "methods: expected a list"),
        (["mdm", "mdm"], "methods: expected each method once"),
        (["lime"], "method: expected one of"),
    ):
        with pytest.raises(InputError, match=message):
            protomask.evaluate(block_model(), BlockScenes(), methods, pairs=3)
    with pytest.raises(InputError, match="pairs: expected an integer of at least 1"):
        protomask.evaluate(block_model(), BlockScenes(), ["mdm"], pairs=0)


def test_the_model_comes_back_as_it_came() -> None:
    from tests.test_locate import same, snapshot
    from tests.toys import ConvModel

    model = ConvModel(prototypes=3, classes=3).train()
    before = snapshot(model)
    protomask.evaluate(model, BlockScenes(3, masks=False), ["single-mask", "upsampling"], pairs=3)
    assert same(before, snapshot(model))
    assert torch.is_grad_enabled()


def test_an_image_with_several_pairs_is_handed_over_once() -> None:
    data, model = BlockScenes(), block_model()
    pairs = [Pair(index, prototype, str(index), str(index), prototype, 1.0, 0.0) for index, prototype in PAIRS]
    samples = [data[pair.index] for pair in pairs]
    seen: list[tuple[int, list[int]]] = []

    def method(request: Request) -> Maps:
        seen.append((len(request.images), request.targets.images.tolist()))
        return Maps(torch.linspace(0, 1, 32 * 32).view(1, 32, 32).expand(len(request.targets), -1, -1))

    method.passes = 0.0  # type: ignore[attr-defined]
    both = truth_of(samples, pairs, "part")
    found, scores = locate_and_score(contract(model), method, samples, pairs, both, seed=0, batch=8)  # type: ignore[arg-type]
    assert seen == [(2, [0, 0, 1])]
    assert found.targets.images.tolist() == [0, 1, 2]
    assert found.targets.prototypes.tolist() == [prototype for _, prototype in PAIRS]
    for row, (sample, pair) in enumerate(zip(samples, pairs, strict=True)):
        one = truth_of([sample], [pair], "part")
        _, alone = locate_and_score(contract(model), method, [sample], [pair], one, seed=0, batch=8)  # type: ignore[arg-type]
        for name, values in scores.items():
            assert torch.allclose(values[[row]], alone[name], equal_nan=True), name


def test_pairs_of_an_image_lie_side_by_side() -> None:
    drawn = draw_pairs(contract(BlockModel(BLOCKS)), BlockScenes(masks=False), 14, shown=3)
    indices = [pair.index for pair in drawn.pairs]
    assert len(set(indices)) < len(indices)
    assert len(set(indices)) == 1 + sum(a != b for a, b in pairwise(indices))
