"""Regions against numpy, scipy and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torchvision.ops import masks_to_boxes

from protomask.errors import InputError
from protomask.region import (
    boxes_of,
    components,
    is_constant,
    own_area_region,
    peaks,
    percentile_region,
    rank,
    regions_of,
    top_pixels,
)

SIZES = [(1, 1), (5, 9), (20, 30), (40, 24)]
ONE_AT_A_TIME = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def distinct(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[n, height, width] maps without ties."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.stack([torch.randperm(height * width, generator=generator) for _ in range(n)])
    return flat.view(n, height, width).float() / (height * width)


def blocky(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[n, height, width] maps of five values, most of them zero: plateaus everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]
    return ((smooth * 8 - 3).round() / 4).clamp(0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_without_ties_the_ranking_is_numpys(size: tuple[int, int]) -> None:
    maps = distinct(3, *size)
    np.testing.assert_array_equal(rank(maps).numpy(), np.argsort(-maps.flatten(1).numpy(), axis=1))


def test_ties_follow_the_blurred_map() -> None:
    """Where the map ties, a Gaussian blur by scipy (sigma 5 % of the shorter side, mirrored edges) decides."""
    maps = blocky(4, 30, 40)
    order = rank(maps)
    for one, indices in zip(maps.double().numpy(), order.numpy(), strict=True):
        values = one.ravel()[indices]
        blurred = ndimage.gaussian_filter(one, 1.5, mode="mirror", radius=4).ravel()[indices]
        assert (np.diff(values) <= 0).all()
        tied = np.diff(values) == 0
        assert tied.sum() > 1000
        assert np.diff(blurred)[tied].max() <= 1e-6
        assert np.diff(blurred)[~tied].max() > 1e-3  # the blur alone would have ranked otherwise


@ONE_AT_A_TIME
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**16))
def test_a_ranking_is_a_permutation_that_ignores_the_company(n: int, height: int, width: int, seed: int) -> None:
    maps = blocky(n, height, width, seed)
    order = rank(maps)
    assert torch.equal(order.sort(1).values, torch.arange(height * width).expand(n, -1))
    alone = torch.cat([rank(one[None]) for one in maps])
    assert torch.equal(order, alone)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_map_is_ranked_by_the_seeded_shuffle(value: float) -> None:
    maps = torch.full((2, 24, 31), value)
    shuffle = torch.randperm(24 * 31, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(rank(maps, seed=5), shuffle.expand(2, -1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(rank(maps, seed=6), rank(maps, seed=5))


@pytest.mark.parametrize("transform", [torch.exp, torch.sqrt, lambda m: 3 * m - 7])
def test_a_monotone_transform_leaves_the_ranking(transform: object) -> None:
    maps = distinct(3, 16, 17).double()
    assert torch.equal(rank(transform(maps)), rank(maps))  # type: ignore[operator]


@pytest.mark.parametrize("percentile", [50, 80, 95, 99])
def test_the_percentile_region_is_protopnets_within_a_pixel(percentile: float) -> None:
    maps = distinct(3, 20, 31)
    ours = percentile_region(maps, percentile).numpy()
    for mine, one in zip(ours, maps.numpy(), strict=True):
        theirs = one >= np.percentile(one, percentile)
        assert (mine != theirs).sum() <= 1


def test_a_mostly_zero_map_keeps_five_percent_round_its_mass() -> None:
    """ProtoPNet's rule keeps the whole image here: the percentile is zero, and every pixel is at or above it."""
    one = torch.zeros(1, 40, 40)
    one[0, 10, 25] = 1
    region = percentile_region(one)
    assert (one.numpy() >= np.percentile(one.numpy(), 95)).all()
    assert int(region.sum()) == 80
    rows, columns = region[0].nonzero().double().T
    assert max((rows - 10).abs().max(), (columns - 25).abs().max()) <= 6


def test_own_area_is_the_sum_of_the_mask() -> None:
    masks = torch.rand(5, 20, 20, generator=torch.Generator().manual_seed(2)) ** 4
    masks[4] = 0
    region = own_area_region(masks)
    assert region.sum((1, 2)).tolist() == [max(1, round(float(m.double().sum()))) for m in masks]
    for mask, chosen in zip(masks[:4], region[:4], strict=True):
        assert mask[chosen].min() >= mask[~chosen].max()


def test_top_pixels_takes_one_count_or_one_for_each() -> None:
    maps = distinct(3, 8, 8)
    assert top_pixels(maps, 7).sum((1, 2)).tolist() == [7, 7, 7]
    each = top_pixels(maps, torch.tensor([0, 3, 64]))
    assert each.sum((1, 2)).tolist() == [0, 3, 64]
    assert torch.equal(each[1], maps[1] >= maps[1].flatten().topk(3).values[-1])


def test_regions_are_chosen_by_name() -> None:
    maps = distinct(2, 20, 20) ** 8
    assert torch.equal(regions_of(maps, "percentile", 90), percentile_region(maps, 90))
    assert torch.equal(regions_of(maps, "own-area"), own_area_region(maps))
    with pytest.raises(InputError, match="region: expected one of percentile, own-area, got 'otsu'"):
        regions_of(maps, "otsu")


def test_boxes_are_torchvisions_with_an_exclusive_end() -> None:
    generator = torch.Generator().manual_seed(3)
    regions = torch.rand(50, 12, 17, generator=generator) > 0.97
    regions[:, 5, 5] = True
    theirs = masks_to_boxes(regions) + torch.tensor([0, 0, 1, 1])
    assert torch.equal(boxes_of(regions), theirs.long())
    assert boxes_of(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_the_peak_is_x_then_y_and_the_middle_of_a_plateau() -> None:
    maps = distinct(4, 12, 17)
    highest = maps.flatten(1).argmax(1)
    assert torch.equal(peaks(maps), torch.stack([highest % 17, highest // 17], 1))
    plateau = torch.zeros(1, 40, 60)
    plateau[0, 8:17, 30:39] = 1
    assert peaks(plateau).tolist() == [[34, 12]]


def test_a_map_is_constant_within_the_tolerance() -> None:
    maps = torch.full((3, 4, 4), 0.5, dtype=torch.float64)
    maps[1, 0, 0] += 1e-7
    maps[2, 0, 0] += 1e-5
    assert is_constant(maps).tolist() == [True, True, False]


def test_a_map_with_nan_is_refused() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[1, 2, 2] = torch.nan
    with pytest.raises(InputError, match="maps: expected finite values"):
        rank(maps)


def test_components_are_scipys() -> None:
    region = np.random.default_rng(0).random((30, 40)) > 0.75
    labels, count = ndimage.label(region, np.ones((3, 3)))
    ours = components(torch.from_numpy(region))
    assert len(ours) == count
    assert [c.area for c in ours] == sorted((c.area for c in ours), reverse=True)
    theirs = {}
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box = (columns.start, rows.start, columns.stop, rows.stop)
        y, x = ndimage.center_of_mass(labels == k)
        theirs[(labels == k).tobytes()] = (box, int((labels == k).sum()), (x, y))
    for found in ours:
        box, area, centroid = theirs[found.mask.tobytes()]
        assert (found.box, found.area) == (box, area)
        assert found.centroid == pytest.approx(centroid)
    assert len(components(region, minimum_area=5)) == sum(area >= 5 for _, area, _ in theirs.values())
    assert components(np.zeros((3, 3), bool)) == ()
