"""Causal metrics against closed forms, a naive double loop, and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, trapezoid
from torch import Tensor

from protomask.errors import InputError
from protomask.fills import SCORING_FILL, fill_images
from protomask.metrics import (
    area,
    curves,
    faithfulness_scores,
    filled_activations,
    passes,
    relative_activation,
    sufficiency_drop,
)
from protomask.model import Contract, contract, floor_of
from protomask.records import Targets
from protomask.region import rank
from tests.toys import BlockModel, ConvModel

EXACT = {"rtol": 0, "atol": 1e-12}
SIDE = 32
PIXELS = SIDE * SIDE
QUARTER = (8, 8, 24, 24)  # x0, y0, x1, y1: a quarter of the image, 8 of 32 steps
SMALL = (10, 4, 17, 11)  # 49 pixels, fewer than the top 5 % (51)
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)


class Counting:
    """A BlockModel that counts the images it has seen and notes the largest pass."""

    def __init__(self, blocks: list[tuple[int, int, int, int]]) -> None:
        self.inner = BlockModel(blocks, SIDE)
        self.num_prototypes, self.input_shape = self.inner.num_prototypes, self.inner.input_shape
        self.seen = self.largest = 0

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        if len(images) == 0:
            raise ValueError("an empty pass")
        self.seen += len(images)
        self.largest = max(self.largest, len(images))
        return self.inner.activations(images, prototypes)


def block_map(block: tuple[int, int, int, int]) -> Tensor:
    x0, y0, x1, y1 = block
    one = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    one[0, y0:y1, x0:x1] = 1
    return one


def block_problem() -> tuple[Contract, Tensor, Targets, Tensor, Tensor]:
    """One white image, black fill, two prototypes that each see one block."""
    model = contract(BlockModel([QUARTER, SMALL], SIDE))
    images = torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64)
    targets = Targets(torch.tensor([0, 0]), torch.tensor([0, 1]))
    return model, images, targets, torch.zeros_like(images), torch.ones(2, dtype=torch.float64)


def conv_problem(n: int = 5) -> tuple[Contract, Tensor, Targets, Tensor, Tensor, Tensor]:
    """Three noise images, n pairs in no order, in float64; maps with plateaus."""
    model = contract(ConvModel().double().eval())
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    which = torch.tensor([2, 0, 1, 2, 0])[:n]
    targets = Targets(which, torch.tensor([3, 1, 0, 1, 2])[:n])
    maps = (torch.rand(n, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 - 0.5).clamp(0, 1)
    before = model.activations(images[which], targets.prototypes).detach()
    return model, images, targets, maps, torch.zeros_like(images), before


# --- relative activation and area -----------------------------------------------------------------------------------


def test_relative_activation_of_any_trailing_shape() -> None:
    a = torch.tensor([[2.0, 5, -1], [1, 1, 1], [3, 3, 3]])
    ours = relative_activation(a, torch.tensor([5.0, 1, 0]), torch.tensor([1.0, 1, 2]))
    assert ours.dtype == torch.float64
    wanted = torch.tensor([[0.25, 1, -0.5], [math.nan] * 3, [math.nan] * 3]).double()
    torch.testing.assert_close(ours, wanted, equal_nan=True)
    assert relative_activation(torch.tensor([3.0]), torch.tensor([6.0]), 0.0).tolist() == [0.5]
    with pytest.raises(InputError, match=r"floor: expected a number or a tensor \[3\]"):
        relative_activation(a, torch.tensor([5.0, 1, 0]), torch.zeros(2))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 32])
def test_area_is_the_mean_of_the_interpolated_curve(steps: int, share: float) -> None:
    """scipy integrates the piecewise linear curve up to the cut, knot by knot."""
    curve = torch.rand(4, steps + 1, generator=torch.Generator().manual_seed(steps)).double()
    knots = np.arange(steps + 1) / steps
    wanted = []
    for heights in curve.numpy():
        inner = [k for k in knots if k < share]
        ends = zip(inner, [*inner[1:], share], strict=True)
        total = sum(quad(lambda t, h=heights: np.interp(t, knots, h), low, high)[0] for low, high in ends)
        wanted.append(total / share)
    torch.testing.assert_close(area(curve, share), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-9)
    whole = torch.from_numpy(trapezoid(curve.numpy(), knots))
    torch.testing.assert_close(area(curve), whole, **EXACT)


@FEW
@given(st.integers(1, 40), st.floats(0.001, 1), st.floats(-2, 2), st.floats(-2, 2))
def test_area_of_a_line_is_its_middle(steps: int, share: float, start: float, slope: float) -> None:
    line = start + slope * torch.arange(steps + 1, dtype=torch.float64) / steps
    middle = torch.tensor([start + slope * share / 2], dtype=torch.float64)
    torch.testing.assert_close(area(line[None], share), middle, rtol=0, atol=1e-9)


def test_area_of_an_undefined_curve_is_undefined() -> None:
    curve = torch.ones(2, 5)
    curve[1] = torch.nan
    assert area(curve, 0.3)[0] == 1
    assert area(curve, 0.3)[1].isnan()
    with pytest.raises(InputError, match="share: expected a number in"):
        area(curve, 0)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_the_blocks_own_map_gives_the_closed_form() -> None:
    """Deleting the block first takes r down linearly to 0 at its share of the image; inserting it, up to 1."""
    model, images, targets, fill, before = block_problem()
    order = rank(torch.cat([block_map(QUARTER), block_map(SMALL)]))
    removed = torch.arange(33, dtype=torch.float64) * PIXELS / 32
    areas = torch.tensor([[256.0], [49.0]], dtype=torch.float64)
    left = (1 - removed / areas).clamp(min=0)
    deletion = curves(model, images, targets, order, fill, before, 0.0, kind="deletion")
    insertion = curves(model, images, targets, order, fill, before, 0.0, kind="insertion")
    torch.testing.assert_close(deletion, left, rtol=0, atol=1e-9)
    torch.testing.assert_close(insertion, 1 - left, rtol=0, atol=1e-9)
    scores = faithfulness_scores(
        model, images, targets, torch.cat([block_map(QUARTER), block_map(SMALL)]), fill, before, 0.0
    )
    assert scores["deletion"][0].item() == pytest.approx(0.125)
    assert scores["insertion"][0].item() == pytest.approx(0.875)
    assert scores["deletion-30"][0].item() == pytest.approx(0.125 / 0.3)
    assert scores["insertion-30"][0].item() == pytest.approx((0.125 + 0.05) / 0.3)
    assert scores["sufficiency-drop"].tolist() == pytest.approx([1 - 51 / 256, 0])


def test_a_ranking_that_leaves_the_block_to_the_end_is_the_worst() -> None:
    model, images, targets, fill, before = block_problem()
    last = 1 - torch.cat([block_map(QUARTER), block_map(SMALL)])
    scores = faithfulness_scores(model, images, targets, last, fill, before, 0.0)
    assert scores["deletion"][0].item() == pytest.approx(0.875)
    assert scores["insertion"][0].item() == pytest.approx(0.125)
    assert scores["deletion-30"].tolist() == pytest.approx([1, 1])
    assert scores["insertion-30"].tolist() == pytest.approx([0, 0])
    assert scores["sufficiency-drop"].tolist() == pytest.approx([1, 1])


def test_a_constant_map_scores_as_the_seeded_shuffle() -> None:
    """A random ranking removes the block at the pace of the image: r falls along the diagonal."""
    model, images, targets, fill, before = block_problem()
    constant = torch.full((2, SIDE, SIDE), 0.4, dtype=torch.float64)
    shuffle = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(7))
    ranked = torch.empty(PIXELS, dtype=torch.float64)
    ranked[shuffle] = torch.arange(PIXELS, 0, -1, dtype=torch.float64)
    scores = faithfulness_scores(model, images, targets, constant, fill, before, 0.0, seed=7)
    same = faithfulness_scores(
        model, images, targets, ranked.view(1, SIDE, SIDE).repeat(2, 1, 1), fill, before, 0.0, seed=7
    )
    for name, values in scores.items():
        torch.testing.assert_close(values, same[name], **EXACT)
    assert scores["deletion"][0].item() == pytest.approx(0.5, abs=0.03)
    assert scores["insertion-30"][0].item() == pytest.approx(0.15, abs=0.03)


def test_a_distractor_can_lift_r_above_one() -> None:
    """Activation = block minus a rival: removing the rival first overshoots, and nothing is clipped but the drop."""

    class Rivals:
        num_prototypes = 1

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = images[:, :, :16].mean((1, 2, 3)) * 2 - images[:, :, 16:].mean((1, 2, 3))
            return values if prototypes is not None else values[:, None]

    images = torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64)
    maps = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    maps[:, 16:] = 1  # points at the rival
    model, one = contract(Rivals()), torch.ones(1, dtype=torch.float64)
    targets = Targets(torch.tensor([0]), torch.tensor([0]))
    curve = curves(model, images, targets, rank(maps), torch.zeros_like(images), one, 0.0)
    assert curve[0, 16].item() == pytest.approx(2)
    drop = sufficiency_drop(model, images, targets, rank(maps), torch.zeros_like(images), one, 0.0)
    assert drop.item() == pytest.approx(1 + 51 / 512)
    other = sufficiency_drop(model, images, targets, rank(1 - maps), 2 * images, one, 0.0)
    assert other.item() == 0  # r = 2 (2 - 51 / 512) - 2 > 1


# --- a second route -------------------------------------------------------------------------------------------------


def naive_curve(problem: tuple, steps: int, kind: str, floor: float) -> list[list[float]]:  # type: ignore[type-arg]
    """Pixel lists and one image at a time, as one would write it down."""
    model, images, targets, maps, fill, before = problem
    rows = []
    for n, (image, prototype) in enumerate(targets):
        order, row = rank(maps[n : n + 1])[0].tolist(), []
        for k in range(steps + 1):
            mixed = (images if kind == "deletion" else fill)[image].clone()
            source = (fill if kind == "deletion" else images)[image]
            for pixel in order[: round(k / steps * len(order))]:
                mixed[:, pixel // SIDE, pixel % SIDE] = source[:, pixel // SIDE, pixel % SIDE]
            with torch.no_grad():
                row.append(float(model.activations(mixed[None])[0, prototype]))
        rows.append([(a - floor) / (float(before[n]) - floor) for a in row])
    return rows


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_curves_are_what_a_naive_loop_gives(kind: str) -> None:
    problem = conv_problem()
    model, images, targets, maps, fill, before = problem
    ours = curves(model, images, targets, rank(maps), fill, before, floor_of(model), steps=6, kind=kind)
    torch.testing.assert_close(
        ours, torch.tensor(naive_curve(problem, 6, kind, 0.0), dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert ours.std() > 0.01


@pytest.mark.parametrize("batch", [1, 2, 7, 1000])
def test_the_chunk_changes_nothing(batch: int) -> None:
    model, images, targets, maps, fill, before = conv_problem()
    whole = faithfulness_scores(model, images, targets, maps, fill, before, 0.0, steps=5)
    chunked = faithfulness_scores(model, images, targets, maps, fill, before, 0.0, steps=5, batch=batch)
    for name, values in whole.items():
        torch.testing.assert_close(chunked[name], values, **EXACT)


def test_the_company_changes_nothing() -> None:
    model, images, targets, maps, fill, before = conv_problem()
    whole = faithfulness_scores(model, images, targets, maps, fill, before, None, steps=5)
    for n in (0, 3):
        alone = faithfulness_scores(
            model, images, targets[n : n + 1], maps[n : n + 1], fill, before[n : n + 1], None, steps=5
        )
        for name, values in whole.items():
            torch.testing.assert_close(alone[name], values[n : n + 1], **EXACT)


def test_scores_are_the_areas_of_the_curves() -> None:
    model, images, targets, maps, fill, before = conv_problem()
    order = rank(maps)
    scores = faithfulness_scores(model, images, targets, maps, fill, before, 0.0, steps=8)
    for kind in ("deletion", "insertion"):
        curve = curves(model, images, targets, order, fill, before, 0.0, steps=8, kind=kind)
        torch.testing.assert_close(scores[kind], area(curve), **EXACT)
        torch.testing.assert_close(scores[f"{kind}-30"], area(curve, 0.3), **EXACT)
    drop = sufficiency_drop(model, images, targets, order, fill, before, 0.0)
    torch.testing.assert_close(scores["sufficiency-drop"], drop, **EXACT)


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
@pytest.mark.parametrize("steps", [1, 2, 10, 32])
def test_the_early_part_of_a_curve_passes_that_part_alone(kind: str, steps: int) -> None:
    model, images, targets, maps, fill, before = conv_problem()
    filled, told = filled_activations(model, fill, targets), list[int]()
    part = {"steps": steps, "kind": kind, "filled": filled}
    whole = curves(model, images, targets, rank(maps), fill, before, 0.0, **part)
    early = curves(model, images, targets, rank(maps), fill, before, 0.0, **part, share=0.3, progress=told.append)
    known = min(math.ceil(0.3 * steps), steps - 1)
    assert sum(told) == known * len(targets)
    torch.testing.assert_close(early[:, : known + 1], whole[:, : known + 1], **EXACT)
    assert early[:, known + 1 : -1].isnan().all()
    torch.testing.assert_close(area(early, 0.3), area(whole, 0.3), **EXACT)
    alone = faithfulness_scores(model, images, targets, maps, fill, before, 0.0, steps=steps, names=[f"{kind}-30"])
    torch.testing.assert_close(alone[f"{kind}-30"], area(whole, 0.3), **EXACT)


# --- floors ---------------------------------------------------------------------------------------------------------


def test_without_a_floor_the_filled_image_stands_in() -> None:
    model, images, targets, maps, fill, before = conv_problem()
    fill = fill_images(SCORING_FILL, images, model.mean, model.std) + 0.1
    with torch.no_grad():
        wanted = model.activations(fill[targets.images], targets.prototypes)
    filled = filled_activations(model, fill, targets, batch=2)
    torch.testing.assert_close(filled, wanted, **EXACT)
    curve = curves(model, images, targets, rank(maps), fill, before, None, steps=3)
    assert (before > filled).tolist() == (~curve[:, 0].isnan()).tolist()
    assert not curve[:, 0].isnan().all()
    live = before > filled
    torch.testing.assert_close(curve[live][:, [0, -1]], torch.tensor([[1.0, 0]]).double().expand(int(live.sum()), 2))
    explicit = curves(model, images, targets, rank(maps), fill, before, filled, steps=3)
    torch.testing.assert_close(curve, explicit, **EXACT, equal_nan=True)


def test_nothing_to_explain_is_undefined_and_costs_nothing() -> None:
    source = Counting([QUARTER, SMALL])
    _, images, targets, fill, before = block_problem()
    maps = torch.cat([block_map(QUARTER), block_map(SMALL)])
    floor = torch.tensor([0.0, 1.0])
    scores = faithfulness_scores(contract(source), images, targets, maps, fill, before, floor, steps=4)
    for values in scores.values():
        assert values.isnan().tolist() == [False, True]
    assert source.seen == passes(1, 1, 4)
    scores = faithfulness_scores(contract(source), images, targets, maps, fill, before, 1.0, steps=4)
    assert all(values.isnan().all() for values in scores.values())
    alone = curves(contract(source), images, targets, rank(maps), fill, before, 0.0, steps=1)
    assert alone.tolist() == [[1, 0], [1, 0]]


def test_the_cost_is_as_announced() -> None:
    source = Counting([QUARTER, SMALL])
    _, images, targets, fill, before = block_problem()
    told: list[int] = []
    maps = torch.cat([block_map(QUARTER), block_map(SMALL)])
    faithfulness_scores(
        contract(source), images, targets, maps, fill, before, 0.0, steps=9, batch=5, progress=told.append
    )
    assert sum(told) == source.seen == passes(2, 1, 9) == 2 * 17 + 1
    assert max(told) == source.largest == 5


# --- the model comes back as it came; bad input ---------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_come_back(fails: bool) -> None:
    module = ConvModel().train()
    model = contract(module)
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    targets = Targets(torch.tensor([0, 1]), torch.tensor([0, 1]))
    maps = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()

    def run() -> dict[str, Tensor]:
        return faithfulness_scores(model, images, targets, maps, torch.zeros_like(images), torch.ones(2), 0.0, steps=3)

    if fails:
        module.vectors.data = torch.zeros(4, 9)  # the wrong width: the pass raises
        with pytest.raises(RuntimeError):
            run()
        module.vectors.data = kept["vectors"]
    else:
        first, second = run(), run()  # dropout is off: twice the same
        for name, values in first.items():
            assert torch.equal(values, second[name])
    assert all(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input_is_named_before_any_pass() -> None:
    source = Counting([QUARTER, SMALL])
    model = contract(source)
    _, images, targets, fill, before = block_problem()
    order = rank(torch.cat([block_map(QUARTER), block_map(SMALL)]))

    def refused(match: str, run: Callable[[], object]) -> None:
        with pytest.raises(InputError, match=match):
            run()

    outside = Targets(torch.tensor([0, 1]), torch.tensor([0, 1]))
    unknown = Targets(torch.tensor([0, 0]), torch.tensor([0, 2]))
    refused("order: expected an int64", lambda: curves(model, images, targets, order[:1], fill, before, 0.0))
    refused("kind: expected one of", lambda: curves(model, images, targets, order, fill, before, 0.0, kind="x"))
    refused("steps: expected an integer", lambda: curves(model, images, targets, order, fill, before, 0.0, steps=0))
    refused("batch: expected an integer", lambda: curves(model, images, targets, order, fill, before, 0.0, batch=0))
    refused(r"targets\.images: expected", lambda: curves(model, images, outside, order, fill, before, 0.0))
    refused(
        r"targets\.prototypes: expected", lambda: sufficiency_drop(model, images, unknown, order, fill, before, 0.0)
    )
    refused("fill: expected shape", lambda: curves(model, images, targets, order, fill[:, :1], before, 0.0))
    refused("images: expected shape", lambda: curves(model, images[:, :1], targets, order, fill, before, 0.0))
    refused("before: expected shape", lambda: curves(model, images, targets, order, fill, before[:1], 0.0))
    refused(
        "maps: expected shape",
        lambda: faithfulness_scores(model, images, targets, torch.zeros(2, 8, 8), fill, before, 0.0),
    )
    assert source.seen == 0
