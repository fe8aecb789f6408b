"""Regions and rankings against annotations: torchmetrics, scikit-learn, numpy's means, closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

from protomask.errors import InputError
from protomask.metrics import (
    activation_precision,
    dice,
    ior,
    oirr,
    pixel_ap,
    pixel_auc,
    ppv,
    relevance,
    sensitivity,
)
from protomask.region import percentile_region, rank, top_pixels

H, W = 13, 17
EXACT = {"rtol": 0, "atol": 1e-12}
FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
Score = Callable[[Tensor, Tensor], Tensor]
ALL: dict[str, tuple[Score, float, float]] = {  # name -> function, best score, score of a constant map on a quarter
    "activation-precision": (activation_precision, 1, 0),
    "relevance": (relevance, 1, 0),
    "dice": (dice, 1, 0),
    "ppv": (ppv, 1, 0),
    "sensitivity": (sensitivity, 1, 0),
    "oirr": (oirr, 0, 0.5),
    "ior": (ior, 1, 0),
    "pixel-auc": (pixel_auc, 1, 0.5),
    "pixel-ap": (pixel_ap, 1, 0.25),
}
BY_RANKING = ("activation-precision", "relevance", "pixel-auc", "pixel-ap")
names = pytest.mark.parametrize("name", list(ALL))


def scene(seed: int = 0, n: int = 10) -> tuple[Tensor, Tensor]:
    """Maps with and without plateaus, float64, and regions of many shapes: none empty, none the whole image."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, H, W, generator=generator, dtype=torch.float64) ** 3
    maps[::3] = (maps[::3] * 4).round() / 4
    share = 0.03 + 0.9 * torch.rand(n, 1, 1, generator=generator)
    regions = torch.rand(n, H, W, generator=generator) < share
    regions[:, 0, 0], regions[:, -1, -1] = True, False
    return maps, regions


def places(maps: Tensor) -> np.ndarray:
    """[N, H * W] scores that rank pixels as :func:`rank` does, for libraries that know no ties."""
    order = rank(maps)
    heights = torch.arange(H * W, 0, -1).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, heights).numpy()


# --- oracles --------------------------------------------------------------------------------------------------------


def test_activation_precision_is_torchmetrics_precision_of_the_top_5_percent() -> None:
    maps, regions = scene()
    theirs = [binary_precision(c.int(), r.int()) for c, r in zip(percentile_region(maps), regions, strict=True)]
    torch.testing.assert_close(activation_precision(maps, regions), torch.stack(theirs).double(), rtol=0, atol=1e-7)


def test_relevance_is_precision_and_recall_at_the_annotations_own_size() -> None:
    maps, regions = scene()
    chosen = top_pixels(maps, regions.flatten(1).sum(1))
    for theirs in (binary_precision, binary_recall):
        wanted = torch.stack([theirs(c.int(), r.int()) for c, r in zip(chosen, regions, strict=True)]).double()
        torch.testing.assert_close(relevance(maps, regions), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(dice, binary_f1_score), (ppv, binary_precision), (sensitivity, binary_recall)]
)
def test_the_half_maximum_is_scored_as_torchmetrics_does(ours: Score, theirs: Callable[..., Tensor]) -> None:
    maps, regions = scene()
    middle = [(m.min() + m.max()) / 2 for m in maps]
    wanted = [theirs((m >= t).int(), r.int()) for m, t, r in zip(maps, middle, regions, strict=True)]
    torch.testing.assert_close(ours(maps, regions), torch.stack(wanted).double(), rtol=0, atol=1e-7)


def test_pixel_auc_and_ap_are_scikit_learns() -> None:
    maps, regions = scene()
    for ours, theirs in ((pixel_auc, roc_auc_score), (pixel_ap, average_precision_score)):
        wanted = [theirs(r.flatten().numpy(), s) for r, s in zip(regions, places(maps), strict=True)]
        np.testing.assert_allclose(ours(maps, regions).numpy(), wanted, rtol=0, atol=1e-12)
    unique = torch.rand(3, H, W, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # no ties to break
    theirs_too = [
        roc_auc_score(r.flatten().numpy(), m.flatten().numpy()) for m, r in zip(unique, regions, strict=False)
    ]
    np.testing.assert_allclose(pixel_auc(unique, regions[:3]).numpy(), theirs_too, rtol=0, atol=1e-12)


def test_oirr_and_ior_are_ratios_of_means() -> None:
    maps, regions = scene()
    maps = maps - 0.1  # negative values count as nothing
    positive = maps.clamp(min=0)
    inside = torch.stack([m[r].mean() for m, r in zip(positive, regions, strict=True)])
    outside = torch.stack([m[~r].mean() for m, r in zip(positive, regions, strict=True)])
    ratio = outside / inside
    torch.testing.assert_close(oirr(maps, regions), ratio / (1 + ratio), **EXACT)
    torch.testing.assert_close(ior(maps, regions), (inside - outside) / positive.amax((1, 2)), **EXACT)


def test_the_published_oirr_has_the_published_defects() -> None:
    maps = torch.zeros(4, 4, 4)
    maps[0, :2], maps[0, 3, 3] = 1, 1  # 8 bright pixels inside and one outside
    maps[1, 3, 3] = 1
    maps[2, 0, 0] = 1
    regions = torch.zeros(4, 4, 4, dtype=torch.bool)
    regions[:3, :2] = True
    assert oirr(maps, regions, mode="published").tolist()[:3] == [1, math.inf, 0]
    assert oirr(maps, regions, mode="published").isnan().tolist() == [False, False, False, True]
    torch.testing.assert_close(oirr(maps, regions)[:3], torch.tensor([1 / 9, 1, 0], dtype=torch.float64), **EXACT)
    with pytest.raises(InputError, match="mode: expected one of bounded, published"):
        oirr(maps, regions, mode="quanproto")


def test_a_map_that_is_nowhere_positive_scores_what_chance_does() -> None:
    """Not constant, so that it is scored by its own values, all of which count as nothing."""
    regions = torch.zeros(2, 8, 8, dtype=torch.bool)
    regions[:, :4, :4] = True
    maps = -torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2))
    maps[1, :4, :4] = 0  # highest inside
    assert ior(maps, regions).tolist() == [0, 0]
    assert oirr(maps, regions).tolist() == [0.5, 0.5]


# --- rules that hold for all ----------------------------------------------------------------------------------------


@names
def test_the_annotation_scores_best_and_its_opposite_worst(name: str) -> None:
    score, best, _ = ALL[name]
    regions = torch.zeros(2, 20, 20, dtype=torch.bool)
    regions[0, 3:9, 4:11] = True  # above 5 % of the image, so that the top 5 % fit in
    regions[1, 10:16, :] = True
    torch.testing.assert_close(score(regions.double(), regions), torch.full((2,), float(best)).double(), **EXACT)
    worst = score((~regions).double(), regions)
    assert ((worst - best).abs() > 0.5).all()
    if name not in ("pixel-ap",):
        assert worst.tolist() == [{"oirr": 1.0, "ior": -1.0}.get(name, 0.0)] * 2


@names
def test_a_constant_map_is_no_hit_and_no_annotation_is_undefined(name: str) -> None:
    score, best, constant = ALL[name]
    regions = torch.zeros(3, 8, 8, dtype=torch.bool)
    regions[:2, :4, :4] = True
    maps = torch.stack([torch.zeros(8, 8), torch.full((8, 8), 0.7), torch.rand(8, 8)])
    values = score(maps, regions)
    assert values.dtype == torch.float64
    assert values[:2].tolist() == [constant, constant]
    assert abs(constant - best) >= 0.5
    assert math.isnan(values[2])
    whole = score(torch.rand(1, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool))
    assert math.isnan(whole)  # no map could miss it


@names
def test_random_maps_score_at_their_expectation(name: str) -> None:
    """A quarter of the image is annotated; 400 independent maps of independent pixels."""
    score, _, _ = ALL[name]
    maps = torch.rand(400, 24, 24, generator=torch.Generator().manual_seed(5))
    regions = torch.zeros(400, 24, 24, dtype=torch.bool)
    regions[:, 4:16, 6:18] = True
    expected = {"oirr": 0.5, "ior": 0.0, "pixel-auc": 0.5, "dice": 1 / 3, "sensitivity": 0.5}.get(name, 0.25)
    values = score(maps, regions)
    error = float(values.std() / 400**0.5)
    assert float(values.mean()) == pytest.approx(expected, abs=5 * error + (0.006 if name == "pixel-ap" else 1e-3))


@names
def test_rows_do_not_influence_each_other(name: str) -> None:
    score, _, _ = ALL[name]
    maps, regions = scene()
    alone = torch.cat([score(maps[k : k + 1], regions[k : k + 1]) for k in range(len(maps))])
    torch.testing.assert_close(score(maps, regions), alone, **EXACT)


@FEW
@given(seed=st.integers(0, 1000), power=st.floats(0.3, 3), scale=st.floats(0.1, 10), name=st.sampled_from(list(ALL)))
def test_bounds_and_invariances(seed: int, power: float, scale: float, name: str) -> None:
    score, _, _ = ALL[name]
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, H, W, generator=generator, dtype=torch.float64) + 0.01  # no ties: a power keeps the order
    _, regions = scene(seed, 2)
    values = score(maps, regions)
    assert ((values >= (-1 if name == "ior" else 0)) & (values <= 1)).all()
    torch.testing.assert_close(score(scale * maps, regions), values, rtol=0, atol=1e-9)
    if name in BY_RANKING:
        torch.testing.assert_close(score(maps**power, regions), values, **EXACT)
    mirrored = score(maps.flip(2), regions.flip(2))  # no ties, so no shuffle that a mirror could change
    torch.testing.assert_close(mirrored, values, rtol=0, atol=1e-12)


def test_a_ranking_that_is_known_is_not_made_again() -> None:
    maps, regions = scene()
    order = rank(maps)
    for name in BY_RANKING:
        score, _, _ = ALL[name]
        torch.testing.assert_close(score(maps, regions, order=order), score(maps, regions), **EXACT)  # type: ignore[call-arg]
        assert not torch.equal(score(maps, regions, order=order.flip(1)), score(maps, regions))  # type: ignore[call-arg]


@names
def test_regions_of_another_shape_are_refused(name: str) -> None:
    score, _, _ = ALL[name]
    with pytest.raises(InputError, match="regions: expected"):
        score(torch.rand(2, 4, 4), torch.ones(2, 4, 5, dtype=torch.bool))
