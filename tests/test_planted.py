"""Planted scenes: determinism, exact masks, painting without a part, and how hard the scenes are."""

from __future__ import annotations

import pickle
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy import ndimage

from protomask.data import _canvas
from protomask.data.planted import SCENES, SPLITS, Planted, palette
from protomask.data.sample import Dataset
from protomask.errors import InputError

COUNT = 36


@pytest.fixture(scope="module", params=SCENES)
def data(request: pytest.FixtureRequest) -> Planted:
    return Planted(request.param, "dev", count=COUNT, seed=5)


def test_is_a_dataset_with_the_declared_size_and_names(data: Planted) -> None:
    assert isinstance(data, Dataset)
    assert len(data) == COUNT == len(list(data))
    assert len(data.class_names) == 12 == len(set(data.class_names))
    assert len(data.part_names) == 7
    sample = data[3]
    assert sample.image.shape == (96, 96, 3)
    assert sample.image_id == f"{data.name}/5/dev/3"
    assert np.array_equal(sample.geometry.to_source(sample.box), sample.box)


def test_a_sample_depends_on_its_arguments_alone(data: Planted) -> None:
    again = Planted(data.scene, "dev", count=COUNT + 100, seed=5)
    backwards = {i: again[i] for i in (20, 7, 0)}
    for i, other in backwards.items():
        sample = data[i]
        assert np.array_equal(sample.image, other.image)
        assert np.array_equal(sample.part_masks, other.part_masks)
        assert (sample.image_id, sample.label) == (other.image_id, other.label)
    assert np.array_equal(pickle.loads(pickle.dumps(data))[7].image, backwards[7].image)


def test_no_global_random_state_is_read_or_moved(data: Planted) -> None:
    images = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        images.append(data[1].image)
        assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert np.array_equal(*images)


def test_splits_and_seeds_are_different_streams_of_the_same_classes(data: Planted) -> None:
    streams = [Planted(data.scene, split, count=24, seed=seed) for split in SPLITS for seed in (0, 1)]
    images = {sample.image.tobytes() for stream in streams for sample in stream}
    assert len(images) == 24 * len(streams)
    assert len({stream.class_names for stream in streams}) == 1


def test_classes_come_in_turn_and_each_has_one_part_and_colour(data: Planted) -> None:
    assert Counter(sample.label for sample in data) == dict.fromkeys(range(12), 3)
    decided = {(data.diagnostic_part(label), data.diagnostic_colour(label)) for label in range(12)}
    assert len(decided) == 12
    for label, name in enumerate(data.class_names):
        assert name.endswith(data.part_names[data.diagnostic_part(label)])


def _mean_colour(sample, part: int) -> np.ndarray:
    core = ndimage.binary_erosion(sample.part_masks[part])
    return np.median(sample.image[core], axis=0)


def _lab(colour: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((np.asarray(colour, np.float32) / 255).reshape(1, 1, 3), cv2.COLOR_RGB2LAB)[0, 0]


def test_the_class_can_be_read_from_the_parts_pixels(data: Planted) -> None:
    """Second route: the (part, colour) whose pixels are nearest to their class colour names the class."""
    for sample in data:
        gaps = [
            np.linalg.norm(_lab(_mean_colour(sample, data.diagnostic_part(c))) - _lab(data.diagnostic_colour(c)))
            for c in range(12)
        ]
        assert int(np.argmin(gaps)) == sample.label


def test_parts_do_not_overlap_and_belong_to_the_object(data: Planted) -> None:
    for sample in data:
        assert sample.part_masks.sum(0).max() == 1
        assert not (sample.part_masks.any(0) & ~sample.segmentation).any()
        rows, columns = np.nonzero(sample.segmentation)
        assert sample.box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert min(sample.box[:2]) > 0
        assert max(sample.box[2:]) < 96


def test_points_are_the_masks_centroids(data: Planted) -> None:
    sample = data[11]
    expected = [ndimage.center_of_mass(mask)[::-1] for mask in sample.part_masks]
    np.testing.assert_allclose(sample.points, expected, atol=1e-9)


def test_without_part_changes_only_that_part(data: Planted) -> None:
    for i in (0, 1, 2, 17):
        sample = data[i]
        for part, mask in enumerate(sample.part_masks):
            other = data.without_part(i, part)
            if not mask.any():
                assert other is None
                continue
            changed = (sample.image != other).any(2)
            near = ndimage.binary_dilation(mask, np.ones((5, 5)))
            assert not (changed & ~near).any()
            assert changed[mask].mean() > 0.5
    assert np.array_equal(sample.image, data[17].image)


def test_without_its_part_the_class_colour_is_gone(data: Planted) -> None:
    for i in range(12):
        sample, part = data[i], data.diagnostic_part(i)
        core = ndimage.binary_erosion(sample.part_masks[part])
        bare = data.without_part(i, part)[core].astype(float).mean(0)
        assert np.linalg.norm(_lab(bare) - _lab(data.diagnostic_colour(i))) > 25


def test_a_part_that_is_not_visible_has_no_point_and_cannot_be_removed(
    data: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Planted._paint

    def covered(self, scene, without=None):  # type: ignore[no-untyped-def]
        image, tags = whole(self, scene, without)
        return image, np.where(tags == _canvas.FIRST_PART + 2, _canvas.OBJECT, tags).astype(np.uint8)

    monkeypatch.setattr(Planted, "_paint", covered)
    assert np.isnan(data[0].points[2]).all()
    assert data.without_part(0, 2) is None
    assert data.without_part(0, 1) is not None


def test_scenes_are_as_hard_as_promised(data: Planted) -> None:
    """Median diagnostic part 1 to 4 % of the image, compact, hardly ever in a centre; parts wholly in the frame."""
    many = Planted(data.scene, "test", count=120, seed=1)
    area, solidity, box_hits, image_hits = [], [], [], []
    for sample in many:
        mask = sample.part_masks[many.diagnostic_part(sample.label)]
        x0, y0, x1, y1 = sample.box
        area.append(mask.mean())
        box_hits.append(mask[int((y0 + y1) / 2), int((x0 + x1) / 2)])
        image_hits.append(mask[48, 48])
        outline = max(cv2.findContours(mask.astype(np.uint8), 0, 2)[0], key=cv2.contourArea)
        solidity.append(cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline)))
    assert 0.015 <= np.median(area) <= 0.03
    assert min(area) > 0.01
    assert np.median(solidity) > 0.85
    assert np.mean(box_hits) <= 0.1
    assert np.mean(image_hits) <= 0.1


def test_three_distractors_or_more_carry_diagnostic_colours_away_from_the_object(data: Planted) -> None:
    colours = np.array([_lab(data.diagnostic_colour(label)) for label in range(0, 12, 3)])
    for i in range(COUNT):
        sample, masks = data[i], data.distractors(i)
        assert 3 <= len(masks) <= 5
        assert not (masks & sample.segmentation).any()
        assert masks.sum(0).max() <= 1
        close = 0
        for mask in masks:
            pixels = cv2.cvtColor((sample.image[mask][None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
            close += (np.linalg.norm(pixels[:, None] - colours[None], axis=2).min(1) < 30).mean() > 0.4
        assert close >= 3


def test_distractors_do_not_depend_on_the_class(data: Planted) -> None:
    """The share of scenes whose distractors show the class's own colour is what a blind draw gives."""
    many = Planted(data.scene, "train", count=120, seed=3)
    seen = []
    for i in range(120):
        own = _lab(many.diagnostic_colour(i % 12))
        image = many[i].image
        median = [np.median(image[mask], axis=0) for mask in many.distractors(i)]
        seen.append(min(np.linalg.norm(_lab(colour) - own) for colour in median) < 30)
    assert 0.75 < np.mean(seen) < 1  # 3, 4 or 5 of 4 colours: 11/12 expected


@pytest.mark.parametrize("size", [32, 75, 96, 224])
def test_any_size_shows_the_same_scene(data: Planted, size: int) -> None:
    sample = Planted(data.scene, "dev", count=COUNT, size=size, seed=5)[4]
    assert sample.image.shape == (size, size, 3)
    assert sample.part_masks.shape == (7, size, size)
    reference = data[4]
    np.testing.assert_allclose(sample.box / size, reference.box / 96, atol=1.5 / min(size, 96))
    seen = ~np.isnan(sample.points).any(1)
    np.testing.assert_allclose(sample.points[seen] / size, reference.points[seen] / 96, atol=1.5 / min(size, 96))


@pytest.mark.parametrize("classes", [2, 7, 31, 100])
def test_any_number_of_classes_with_colours_apart(data: Planted, classes: int) -> None:
    other = Planted(data.scene, count=classes, classes=classes)
    assert len(set(other.class_names)) == classes
    colours = {other.diagnostic_colour(label) for label in range(classes)}
    assert len(colours) == -(-classes // 3)
    lab = [_lab(colour) for colour in colours]
    gaps = [np.linalg.norm(a - b) for k, a in enumerate(lab) for b in lab[:k]]
    assert min(gaps, default=99) > (40 if classes < 30 else 15)
    assert other[classes - 1].label == classes - 1


def test_palette_keeps_its_first_colours() -> None:
    assert palette(30)[:12] == palette(12)


def test_occlusion_is_exact() -> None:
    """Closed form: an 8 x 8 square half covered by another one; the uncovered half is what is left of it."""

    def square(x0: float, x1: float) -> np.ndarray:
        return np.array([(x0, 25.0), (x1, 25.0), (x1, 75.0), (x0, 75.0)])

    below = _canvas.fixed(square(25, 75), (200, 0, 0)).tinted((0, 0, 0), 2)
    above = _canvas.fixed(square(50, 100), (0, 0, 200)).tinted((0, 0, 0), 3)
    grey = np.full((4, 4, 3), 90, np.uint8)
    image, tags = _canvas.paint(grey, _canvas.joined([below, above]), 64)
    assert (tags == 2).sum() == 16 * 32
    assert (tags == 3).sum() == 32 * 32
    assert np.array_equal(tags[32], np.repeat([0, 2, 3, 3], 16))
    assert tuple(image[32, 24]) == (200, 0, 0)
    assert tuple(image[2, 2]) == (90, 90, 90)
    bare = _canvas.paint(grey, _canvas.joined([below, above]), 64, without=(3,))[1]
    assert (bare == 2).sum() == 32 * 32


def test_drawing_is_quick(data: Planted) -> None:
    data[0]
    took = []
    for i in range(20):
        start = time.process_time()
        data[i]
        took.append(time.process_time() - start)
    assert np.median(took) < 0.02  # some 2 ms; the margin is for slow machines


@pytest.mark.parametrize(
    ("argument", "value"),
    [("scene", "fish"), ("split", "val"), ("count", 0), ("size", 31), ("classes", 1), ("seed", -1), ("size", 96.0)],
)
def test_bad_arguments_are_named(argument: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{argument}: expected .*{value}"):
        Planted(**{argument: value})  # type: ignore[arg-type]


def test_bad_indices_are_named(data: Planted) -> None:
    with pytest.raises(InputError, match="index"):
        data[COUNT]
    with pytest.raises(InputError, match="index"):
        data[-1]
    with pytest.raises(InputError, match="part"):
        data.without_part(0, 7)
    with pytest.raises(InputError, match="label"):
        data.diagnostic_part(12)
