"""Annotation metrics against naive loops, torchmetrics, torchvision, numpy and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import binary_jaccard_index
from torchvision.ops import box_iou as torchvision_box_iou
from torchvision.ops import masks_to_boxes

from protomask.errors import InputError
from protomask.metrics import (
    DEFAULT_METRICS,
    METRICS,
    PAIR_METRICS,
    Truth,
    box_iou,
    energy,
    energy_floor,
    fill_of,
    flattering,
    iou_best,
    iou_own_area,
    iou_p95,
    part_hit,
    pointing_game,
    score_annotation,
    scoring_passes,
    top5_in_box,
)
from protomask.metrics.catalogue import FAMILIES, NEEDS, SCOPES
from protomask.region import own_area_region, peaks, percentile_region, rank

H, W = 14, 19
EXACT = {"rtol": 0, "atol": 1e-12}
BY_REGION = [pointing_game, energy, energy_floor, iou_p95, iou_own_area, iou_best, box_iou]
BY_RANKING = [pointing_game, iou_p95, iou_best, box_iou]
ROBUSTNESS = ("plc", "prc", "pac", "randomisation")
FEW = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def scene(n: int = 12, seed: int = 0, height: int = H, width: int = W) -> tuple[Tensor, Tensor]:
    """Random maps [n, H, W] in [0, 1], float64, a third of them with plateaus, and non-empty rectangles [n, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, height, width, generator=generator, dtype=torch.float64) ** 3
    maps[::3] = (maps[::3] * 4).round() / 4
    regions = torch.zeros(n, height, width, dtype=torch.bool)
    for region in regions:
        x, y = (
            int(torch.randint(width - 3, (), generator=generator)),
            int(torch.randint(height - 3, (), generator=generator)),
        )
        tall, wide = (int(v) for v in torch.randint(1, 7, (2,), generator=generator))
        region[y : y + tall, x : x + wide] = True
    return maps, regions


def jaccard(chosen: Tensor, regions: Tensor) -> Tensor:
    pairs = zip(chosen, regions, strict=True)
    return torch.stack([binary_jaccard_index(c.int(), r.int()) for c, r in pairs]).double()


# --- one metric at a time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0, 1, 2.5, 40])
def test_pointing_game_is_the_distance_to_the_nearest_annotated_pixel(tolerance: float) -> None:
    maps, regions = scene()
    naive = []
    for (px, py), region in zip(peaks(maps).tolist(), regions, strict=True):
        away = [math.hypot(x - px, y - py) for y, x in region.nonzero().tolist()]
        naive.append(float(min(away) <= tolerance))
    assert pointing_game(maps, regions, tolerance).tolist() == naive
    assert tolerance in (0, 40) or 0 < sum(naive) < len(naive)


def test_pointing_tolerance_includes_its_own_distance() -> None:
    maps = torch.zeros(1, 20, 20)
    maps[0, 10, 10] = 1
    regions = torch.zeros(1, 20, 20, dtype=torch.bool)
    regions[0, 14, 13] = True  # 3 across, 4 down: 5 away
    assert pointing_game(maps, regions, 5).tolist() == [1]
    assert pointing_game(maps, regions, 4.99).tolist() == [0]


def test_energy_is_a_ratio_of_sums_without_the_negatives() -> None:
    maps, regions = scene()
    maps = maps - 0.1
    naive = [
        sum(max(v, 0) for v in m[r].tolist()) / sum(max(v, 0) for v in m.flatten().tolist())
        for m, r in zip(maps, regions, strict=True)
    ]
    torch.testing.assert_close(energy(maps, regions), torch.tensor(naive, dtype=torch.float64), **EXACT)
    assert energy(-torch.rand(2, H, W), regions[:2]).tolist() == [0, 0]


def test_energy_floor_subtracts_numpys_80th_percentile() -> None:
    maps, regions = scene()
    naive = []
    for m, r in zip(maps.numpy(), regions.numpy(), strict=True):
        left = np.clip(m - np.percentile(m, 80), 0, None)
        naive.append(left[r].sum() / left.sum())
    torch.testing.assert_close(energy_floor(maps, regions), torch.tensor(naive, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(energy_floor(maps + 5, regions), energy_floor(maps, regions), rtol=0, atol=1e-9)
    assert (energy(maps + 5, regions) - energy(maps, regions)).abs().max() > 0.02


def test_energy_floor_of_a_broad_top_is_zero() -> None:
    maps = torch.ones(1, 10, 10)
    maps[0, 0] = 0
    assert energy_floor(maps, maps > 0).tolist() == [0]


def test_energy_is_summed_in_double() -> None:
    maps = torch.full((1, 300, 300), 1e-4)
    maps[0, 0, 0] = 1e4  # in float32 the rest would drown in the first pixel's rounding
    regions = torch.zeros(1, 300, 300, dtype=torch.bool)
    regions[0, 0, 0] = True
    small = float(torch.tensor(1e-4))
    assert energy(maps, regions).item() == pytest.approx(1e4 / (1e4 + 89999 * small), rel=1e-12)


def test_iou_p95_is_the_jaccard_index_of_the_percentile_region() -> None:
    maps, regions = scene()
    torch.testing.assert_close(iou_p95(maps, regions), jaccard(percentile_region(maps), regions), rtol=0, atol=1e-6)


def test_iou_own_area_is_the_jaccard_index_of_the_own_area_region() -> None:
    masks, regions = scene()
    torch.testing.assert_close(
        iou_own_area(masks, regions), jaccard(own_area_region(masks), regions), rtol=0, atol=1e-6
    )
    with pytest.raises(InputError, match=r"masks: expected values in \[0, 1\]"):
        iou_own_area(masks * 2, regions)


def test_iou_best_is_the_best_of_all_cuts() -> None:
    maps, regions = scene(8, height=9, width=8)
    naive = []
    for order, region in zip(rank(maps).tolist(), regions.flatten(1), strict=True):
        annotated = set(region.nonzero()[:, 0].tolist())
        cuts = [set(order[:k]) for k in range(1, len(order) + 1)]
        naive.append(max(len(cut & annotated) / len(cut | annotated) for cut in cuts))
    torch.testing.assert_close(iou_best(maps, regions), torch.tensor(naive, dtype=torch.float64), **EXACT)


def test_box_iou_is_torchvisions() -> None:
    maps, regions = scene()
    maps = torch.nn.functional.avg_pool2d(maps[:, None], 5, 1, 2)[:, 0]  # smooth, so that boxes are not the whole image
    ours = box_iou(maps, regions)
    end = torch.tensor([0, 0, 1, 1])
    theirs = torchvision_box_iou(
        masks_to_boxes(percentile_region(maps)).double() + end, masks_to_boxes(regions).double() + end
    ).diagonal()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert 0 < float(ours.max()) < 1


def test_top5_in_box_counts_pixel_centres() -> None:
    maps, _ = scene(4)
    boxes = torch.tensor([[2.0, 3, 15, 12], [2.4, 2.6, 9.5, 9.49], [-5, -5, 100, H - 1], [0, 0, 4, 14]])
    naive = []
    for region, (x0, y0, x1, y1) in zip(percentile_region(maps), boxes.tolist(), strict=True):
        inside = [x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for y, x in region.nonzero().tolist()]
        naive.append(sum(inside) / len(inside))
    torch.testing.assert_close(top5_in_box(maps, boxes), torch.tensor(naive, dtype=torch.float64), **EXACT)
    assert 0.5 < naive[2] <= 1
    assert 0 < naive[0] < 1


def test_a_pixel_is_inside_where_its_centre_is() -> None:
    maps = torch.zeros(1, 20, 20)
    maps[0, 7] = 1  # one row: the top 5 %
    boxes = torch.tensor([[3.5, 7.4, 9.5, 7.6]])  # centres 3.5 .. 8.5
    assert top5_in_box(maps, boxes).tolist() == [6 / 20]


def test_top5_in_box_is_undefined_without_a_box() -> None:
    maps, _ = scene(3)
    boxes = torch.tensor([[torch.nan] * 4, [3.1, 3.1, 3.4, 3.4], [100, 100, 120, 120]])
    assert top5_in_box(maps, boxes).isnan().all()


def test_part_hit_is_a_distance_in_radii() -> None:
    maps = torch.zeros(5, 30, 30)
    maps[:, 20, 10] = 1  # x 10, y 20
    points = torch.tensor([[10.0, 20], [13, 24], [13, 24.1], [torch.nan, torch.nan], [10, 20]])
    radii = torch.tensor([1.0, 5, 5, 5, torch.nan])
    torch.testing.assert_close(
        part_hit(maps, points, radii), torch.tensor([1, 1, 0, math.nan, math.nan]).double(), equal_nan=True
    )
    torch.testing.assert_close(
        part_hit(maps, points, radii / 2, 2), torch.tensor([1, 1, 0, math.nan, math.nan]).double(), equal_nan=True
    )
    assert part_hit(maps[1:2], points[1:2], radii[1:2] / 2).tolist() == [0]


# --- rules that hold for all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", BY_REGION)
def test_no_annotation_is_undefined_and_a_constant_map_scores_zero(metric: Callable[..., Tensor]) -> None:
    maps, regions = scene(4)
    maps[1], maps[2] = 1, 0
    regions[1:3] = True
    regions[1:3, 0, 0] = False  # all but a pixel is annotated: a careless metric would score a constant map 1
    regions[3] = False
    scores = metric(maps, regions)
    assert scores.dtype == torch.float64
    assert scores[1:3].tolist() == [0, 0]
    assert math.isnan(scores[3])
    assert not math.isnan(scores[0])
    assert math.isnan(metric(torch.ones(1, H, W), regions[3:])[0])  # undefined comes before constant


def test_a_constant_map_never_hits_a_point_or_a_box() -> None:
    maps = torch.full((1, H, W), 0.7)
    assert part_hit(maps, torch.tensor([[5.0, 5.0]]), torch.tensor([1000.0])).tolist() == [0]
    assert top5_in_box(maps, torch.tensor([[0.0, 0, W, H - 1]])).tolist() == [0]
    nearly = torch.ones(1, H, W, dtype=torch.bool)
    nearly[0, 0, 0] = False
    assert pointing_game(maps, nearly, 100).tolist() == [0]


@pytest.mark.parametrize("metric", BY_REGION)
def test_an_annotation_of_the_whole_image_asks_nothing(metric: Callable[..., Tensor]) -> None:
    maps = torch.rand(2, H, W, generator=torch.Generator().manual_seed(0))
    regions = torch.ones(2, H, W, dtype=torch.bool)
    regions[1, 0, 0] = False
    scores = metric(maps, regions)
    assert math.isnan(scores[0])
    assert not math.isnan(scores[1])


def test_a_box_of_the_whole_image_asks_nothing() -> None:
    maps = torch.rand(2, H, W, generator=torch.Generator().manual_seed(0))
    scores = top5_in_box(maps, torch.tensor([[0.0, 0, W, H], [0, 0, W - 1, H]]))
    assert math.isnan(scores[0])
    assert not math.isnan(scores[1])


@pytest.mark.parametrize("metric", BY_REGION)
def test_an_annotations_own_map_scores_best(metric: Callable[..., Tensor]) -> None:
    """The IoU at 95 % is capped by areas: an annotation of exactly 5 % reaches 1."""
    regions = torch.zeros(3, 20, 20, dtype=torch.bool)
    for k, region in enumerate(regions):
        region[4 + k : 8 + k, 3 * k : 3 * k + 5] = True
    torch.testing.assert_close(metric(regions.double(), regions), torch.ones(3, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("side", [(2, 2), (6, 9)])
def test_iou_p95_of_the_annotation_is_capped_by_its_area(side: tuple[int, int]) -> None:
    regions = torch.zeros(1, 20, 20, dtype=torch.bool)
    regions[0, 3 : 3 + side[0], 5 : 5 + side[1]] = True
    share = side[0] * side[1] / 400
    assert iou_p95(regions.double(), regions).item() == pytest.approx(min(share, 0.05) / max(share, 0.05))


@FEW
@given(st.integers(1, 6), st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**16))
def test_scores_lie_in_range_and_ignore_the_company(n: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = (torch.rand(n, height, width, generator=generator) * 6 - 3).clamp(0, 1)
    regions = torch.rand(n, height, width, generator=generator) > 0.7
    for metric in BY_REGION:
        scores = metric(maps, regions)
        known = scores[~scores.isnan()]
        assert torch.equal(scores.isnan(), ~regions.flatten(1).any(1))
        assert ((known >= 0) & (known <= 1 + 1e-12)).all()
        alone = torch.cat([metric(maps[i : i + 1], regions[i : i + 1]) for i in range(n)])
        torch.testing.assert_close(alone, scores, rtol=0, atol=1e-12, equal_nan=True)
    area = regions.double().mean((1, 2))
    live = (area > 0) & (maps.flatten(1).amax(1) > maps.flatten(1).amin(1))
    best = iou_best(maps, regions)
    assert (best[live] >= area[live] - 1e-12).all()
    assert (best[live] >= iou_p95(maps, regions)[live]).all()


@FEW
@given(st.integers(0, 2**16), st.sampled_from([torch.exp, torch.sqrt, torch.tanh, lambda m: 40 * m + 3]))
def test_a_monotone_transform_leaves_ranking_metrics(seed: int, transform: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.stack([torch.randperm(H * W, generator=generator) for _ in range(3)]).view(3, H, W).double() / (H * W)
    _, regions = scene(3, seed)
    for metric in BY_RANKING:
        assert torch.equal(metric(transform(maps), regions), metric(maps, regions))
    boxes = torch.tensor([[2.0, 2, 12, 9]]).expand(3, 4)
    assert torch.equal(top5_in_box(transform(maps), boxes), top5_in_box(maps, boxes))


def test_a_random_map_scores_its_expectation() -> None:
    """Hit, energy and top 5 % expect the annotation's share of the image: 15 % here, within four standard errors."""
    n = 3000
    maps = torch.rand(n, 10, 20, generator=torch.Generator().manual_seed(0))
    regions = torch.zeros(n, 10, 20, dtype=torch.bool)
    regions[:, 2:7, 4:10] = True
    boxes = torch.tensor([[4.0, 2, 10, 7]]).expand(n, 4)
    floored = energy_floor(maps, regions)
    for scores in (pointing_game(maps, regions), energy(maps, regions), floored, top5_in_box(maps, boxes)):
        assert abs(scores.mean() - 0.15) < 4 * scores.std() / math.sqrt(n)
    disc = part_hit(maps, torch.tensor([[9.0, 4]]).expand(n, 2), torch.tensor([2.0]).expand(n))
    assert abs(disc.mean() - 13 / 200) < 4 * disc.std() / math.sqrt(n)  # pixels within two of another
    own = iou_own_area(maps, regions)  # 100 pixels on average, 15 of them inside
    assert abs(own.mean() - 15 / (100 + 30 - 15)) < 0.003
    inside = torch.tensor(percentile_region(maps[:1]).sum().item() * 0.15)
    expected_iou = inside / (10 + 30 - inside)
    assert abs(iou_p95(maps, regions).mean() - expected_iou) < 0.005


def test_a_known_ranking_may_be_handed_in() -> None:
    maps, regions = scene()
    order = rank(maps, seed=3)
    for metric in BY_RANKING:
        torch.testing.assert_close(metric(maps, regions, order=rank(maps)), metric(maps, regions), **EXACT)
        with pytest.raises(InputError, match="order: expected an int64 tensor"):
            metric(maps, regions, order=order[:, 1:])


def test_wrong_shapes_are_named() -> None:
    maps, regions = scene(2)
    with pytest.raises(InputError, match="regions: expected a bool tensor"):
        energy(maps, regions.float())
    with pytest.raises(InputError, match="regions: expected the maps' shape"):
        energy(maps, regions[:, 1:])
    with pytest.raises(InputError, match="boxes: expected shape"):
        top5_in_box(maps, torch.zeros(3, 4))
    with pytest.raises(InputError, match="tolerance: expected a number"):
        pointing_game(maps, regions, -1)
    with pytest.raises(InputError, match="maps: expected finite values"):
        energy(maps * torch.nan, regions)


# --- truth, and all at once -----------------------------------------------------------------------------------------


def truth(regions: Tensor | None, kind: str = "part") -> Truth:
    n = 4
    boxes = torch.tensor([[1.0, 1, 12, 9]]).repeat(n, 1)
    boxes[2] = torch.nan
    points = torch.tensor([[5.0, 5], [torch.nan, torch.nan], [8, 8], [2, 2]])
    return Truth(regions, kind, boxes, points, torch.full((n,), 3.0), ("a", "a", "b", "c"))


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("kind", ["part", "segmentation", "object"])
def test_score_annotation_gives_every_metric_that_applies(kind: str, masks: bool) -> None:
    maps, regions = scene(4)
    away = torch.tensor([[0.0, 0], [3 * 1.5, 0], [0, 3 * 2.5], [math.nan, math.nan]])  # in radii of 3: 0, 1.5, 2.5
    annotated = replace(truth(regions, kind), points=peaks(maps) + away)
    scores = score_annotation(maps, masks, annotated)
    assert set(scores) == {name for name, metric in METRICS.items() if metric.family == "annotation"}
    assert annotated.boxes is not None
    assert annotated.points is not None
    assert annotated.radii is not None
    separate = {
        "pointing-game": pointing_game(maps, regions),
        "energy": energy(maps, regions),
        "energy-floor": energy_floor(maps, regions),
        "iou-p95": iou_p95(maps, regions),
        "iou-own-area": iou_own_area(maps, regions),
        "iou-best": iou_best(maps, regions),
        "box-iou": box_iou(maps, regions),
        "top5-in-box": top5_in_box(maps, annotated.boxes),
        "part-hit": part_hit(maps, annotated.points, annotated.radii),
        "part-hit-2r": part_hit(maps, annotated.points, annotated.radii, 2),
    }
    for name, values in separate.items():
        needs = METRICS[name].needs
        if ("part-region" in needs and kind == "object") or ("mask" in needs and not masks):
            assert scores[name].isnan().all(), name
        else:
            torch.testing.assert_close(scores[name], values, **EXACT, equal_nan=True)
        assert scores[name].dtype == torch.float64
    assert scores["part-hit"][:3].tolist() == [1, 0, 0]
    assert scores["part-hit-2r"][:3].tolist() == [1, 1, 0]


def test_score_annotation_is_undefined_without_annotation() -> None:
    maps, _ = scene(4)
    nothing = Truth(None, "object", None, None, None, ("a",) * 4)
    scores = score_annotation(maps, True, nothing)
    assert all(values.isnan().all() and values.shape == (4,) for values in scores.values())
    with pytest.raises(InputError, match="truth: expected 3 rows, one per map, got 4"):
        score_annotation(maps[:3], True, nothing)


def test_score_annotation_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, regions = scene(4)
    whole = score_annotation(maps, True, truth(regions))
    monkeypatch.setattr("protomask.metrics.annotation._BLOCK", 3 * H * W)
    blocks = score_annotation(maps, True, truth(regions))
    for name, values in whole.items():
        torch.testing.assert_close(blocks[name], values, **EXACT, equal_nan=True)


def test_truth_rows_and_join_are_inverse() -> None:
    _, regions = scene(4)
    whole = truth(regions)
    again = Truth.join([whole[:1], whole[torch.tensor([1, 2])], whole[torch.tensor([False, False, False, True])]])
    assert again.groups == whole.groups
    for name in ("regions", "boxes", "points", "radii"):
        torch.testing.assert_close(getattr(again, name), getattr(whole, name), equal_nan=True)


def test_joining_fills_what_a_part_lacks_with_undefined() -> None:
    _, regions = scene(4)
    bare = Truth(None, "part", None, None, None, ("d", "e"))
    joined = Truth.join([truth(regions), bare])
    assert joined.regions is not None
    assert joined.boxes is not None
    assert not joined.regions[4:].any()
    assert joined.boxes[4:].isnan().all()
    assert Truth.join([bare, bare]).regions is None


def test_a_wrong_truth_is_refused() -> None:
    _, regions = scene(4)
    with pytest.raises(InputError, match=r"Truth\.kind: expected one of part, segmentation, object, got 'box'"):
        truth(regions, "box")
    with pytest.raises(InputError, match=r"Truth\.regions: expected a bool tensor \[4, H, W\]"):
        truth(regions[:3])
    with pytest.raises(InputError, match=r"Truth\.radii: expected radii beside the points"):
        Truth(None, "part", None, torch.zeros(1, 2), None, ("a",))
    with pytest.raises(InputError, match="parts: expected one kind"):
        Truth.join([truth(regions), truth(regions, "object")])
    with pytest.raises(InputError, match=r"Truth\.regions: expected one size"):
        Truth.join([truth(regions), truth(regions[:, 1:])])
    with pytest.raises(InputError, match="parts: expected at least one"):
        Truth.join([])


def test_the_catalogue_is_the_published_list() -> None:
    names = """
        pointing-game energy iou-p95 iou-own-area iou-best box-iou energy-floor deletion insertion deletion-30
        insertion-30 sufficiency-drop top5-in-box part-hit part-hit-2r activation-precision relevance oirr ior pixel-auc
        pixel-ap dice ppv sensitivity average-drop increase local-perturbation local-perturbation-blur
        local-perturbation-recolour local-perturbation-noise deletion@blur insertion@blur deletion-30@blur
        insertion-30@blur sufficiency-drop@blur deletion@road insertion@road deletion-30@road insertion-30@road
        sufficiency-drop@road plc prc pac randomisation agreement consistency stability purity
    """
    assert list(METRICS) == names.split()
    lower = {name.partition("@")[0] for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"deletion", "deletion-30", "sufficiency-drop", "oirr", "average-drop", *ROBUSTNESS}
    for name, metric in METRICS.items():
        assert name == metric.name
        assert metric.sentence.endswith(".")
        assert "\n" not in metric.sentence
        assert metric.needs <= NEEDS
        assert metric.family in FAMILIES
        assert metric.scope in SCOPES
        assert (metric.family == "annotation") == ({"model", "models"}.isdisjoint(metric.needs))
        assert (metric.passes > 0) == (metric.scope == "pair" and "model" in metric.needs)
        assert metric.higher_is_better == METRICS[name.partition("@")[0]].higher_is_better
    assert set(DEFAULT_METRICS) < set(PAIR_METRICS) < set(METRICS)


def test_what_scoring_costs() -> None:
    assert scoring_passes(["energy", "part-hit"]) == (0, 0)
    assert scoring_passes(["deletion", "deletion-30"]) == (32, 0)  # one curve, and the filled image
    assert scoring_passes(["deletion", "deletion@blur"]) == (64, 0)
    assert scoring_passes(["local-perturbation", "local-perturbation-blur"]) == (3, 0)
    assert scoring_passes(["pac", "prc"]) == scoring_passes(["prc"]) == (4, 20)
    assert scoring_passes(["pac", "plc"]) == (6, 20)  # the model's own maps, before and after
    assert scoring_passes() == scoring_passes(DEFAULT_METRICS) == (65, 0)
    for name in ("purity", "agreement", "deletion@black"):
        with pytest.raises(InputError, match="metrics: expected one of"):
            scoring_passes([name])


def test_which_fill_a_metric_is_scored_under() -> None:
    assert fill_of("deletion-30") == fill_of("increase") == "mean"
    assert fill_of("deletion-30", "grey") == "grey"
    assert fill_of("insertion@road", "grey") == "road"
    assert fill_of("local-perturbation") == fill_of("local-perturbation-blur", "grey") == "blur"
    assert fill_of("energy") is fill_of("local-perturbation-noise") is fill_of("pac") is fill_of("purity") is None


def test_every_fill_that_a_method_trained_with_flatters() -> None:
    names = ["energy", "deletion", "deletion@blur", "local-perturbation-blur", "insertion@road", "a metric of yours"]
    assert flattering("blur+image-mean", names) == ("deletion@blur", "local-perturbation-blur")
    assert flattering("mean", names) == ("deletion",)
    assert flattering("mean", names, "grey") == flattering("", names) == ()
