"""CUB: the tables and their complaints, and coordinates against closed forms, on a small set made here and on birds."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from protomask.data import Cub, Dataset, Sample, make_sample, open_dataset
from protomask.data.inpaint import disc, inpaint_disc
from protomask.errors import DataError, InputError

BIRDS = Path(os.environ.get("PROTOMASK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cub20"
needs_birds = pytest.mark.skipif(not BIRDS.is_dir(), reason=f"no CUB images at {BIRDS} (set PROTOMASK_DATA)")
EDGE = 1e-3  # px; Albumentations moves points in float32

TABLES = {
    "images.txt": "7 009.Rock_Wren/a b.png\n12 030.Puffin/c.png\n3 030.Puffin/d.png\n",
    "image_class_labels.txt": "7 9\n12 30\n3 30\n",
    "classes.txt": "9 009.Rock_Wren\n30 030.Puffin\n31 031.Gull\n",
    "train_test_split.txt": "7 1\n12 0\n3 1\n",
    "bounding_boxes.txt": "7 10.0 5.0 40.0 20.0\n12 0.0 0.0 80.0 40.0\n3 -5.0 30.0 30.0 30.0\n",
    "parts/parts.txt": "1 back\n2 left eye\n",
    "parts/part_locs.txt": "7 1 10 5 1\n7 2 49.0 24.0 1\n12 1 0 0 0\n12 2 79.0 39.0 1\n3 1 4 39 1\n3 2 60 2 1\n",
}


def write(root: Path, **changed: str) -> Path:
    """The tables above with whole files replaced (dots and slashes in names as ``__``), and three images of 40 x 80."""
    for name, text in TABLES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed.get(name.replace("/", "__").replace(".", "__"), text).encode())
    y, x = np.mgrid[:40, :80]
    image = np.stack([x * 3, y * 6, np.full_like(x, 99)], axis=2).astype(np.uint8)
    for line in TABLES["images.txt"].splitlines():
        path = root / "images" / line.split(" ", 1)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "cub")


def test_ids_labels_and_names(root: Path) -> None:
    data = Cub(root, "all", (40, 80))
    assert data.image_ids == ("030.Puffin/d.png", "009.Rock_Wren/a b.png", "030.Puffin/c.png")  # by image id
    assert data.labels == (1, 0, 1)
    assert data.class_names == ("Rock Wren", "Puffin")  # no image shows the gull
    assert data.class_ids == (9, 30)
    assert data.part_names == ("back", "left eye")
    assert isinstance(data, Dataset)
    sample = data[1]
    assert (sample.image_id, sample.label, sample.group) == ("009.Rock_Wren/a b.png", 0, "009.Rock_Wren/a b.png")
    assert sample.segmentation is None


def test_splits_and_species(root: Path) -> None:
    assert Cub(root, "train").image_ids == ("030.Puffin/d.png", "009.Rock_Wren/a b.png")
    assert Cub(root, "test").image_ids == ("030.Puffin/c.png",)
    assert Cub(root, "test").labels == (1,)  # as in training, though no wren is among them
    puffins = Cub(root, "all", species=[30])
    assert (puffins.class_names, puffins.labels) == (("Puffin",), (0, 0))
    for species in ([31], [1], []):
        with pytest.raises(InputError, match=r"species: expected class ids that have images \(9, 30\)"):
            Cub(root, species=species)
    with pytest.raises(DataError, match="at least one image in the split 'test', got none"):
        Cub(root, "test", species=[9])


def test_at_the_files_own_size_nothing_moves(root: Path) -> None:
    sample = Cub(root, "all", (40, 80))[1]
    assert np.allclose(sample.box, [10, 5, 50, 25], atol=EDGE)
    assert np.allclose(sample.points, [[10, 5], [49, 24]], atol=EDGE)
    assert sample.image[24, 49].tolist() == [49 * 3, 24 * 6, 99]


def test_squash_moves_edges_and_pixel_centres(root: Path) -> None:
    sample = Cub(root, "all", (80, 40))[1]  # twice as high, half as wide
    assert np.allclose(sample.box, [5, 10, 25, 50], atol=EDGE)
    assert np.allclose(sample.points, [[10.5 / 2 - 0.5, 5.5 * 2 - 0.5], [49.5 / 2 - 0.5, 24.5 * 2 - 0.5]], atol=EDGE)
    assert np.allclose(sample.geometry.to_source(sample.box), [10, 5, 50, 25], atol=EDGE)
    # Each new pixel is the mean of the two columns that it covers; rows between two old ones are interpolated.
    assert abs(int(sample.image[0, 10, 0]) - 20.5 * 3) <= 1
    assert np.abs(sample.image[1::2, 0, 1].astype(float)[:-1] - (np.arange(39) + 0.25) * 6).max() <= 1


def test_boxes_are_clipped_and_hidden_points_are_nan(root: Path) -> None:
    data = Cub(root, "all", (40, 80))
    assert np.allclose(data[0].box, [0, 30, 25, 40], atol=EDGE)
    points = data[2].points
    assert np.isnan(points[0]).all()
    assert np.allclose(points[1], [79, 39], atol=EDGE)


def test_the_crop_is_the_box_and_parts_outside_become_invisible(root: Path) -> None:
    data = Cub(root, "all", (20, 50), crop="box")
    sample = data[0]  # box 0..25 x 30..40 after clipping, so both axes double
    assert sample.geometry.crop == (0, 30, 25, 40)
    assert np.allclose(sample.box, [0, 0, 50, 20], atol=EDGE)
    assert np.allclose(sample.points[0], [4.5 * 2 - 0.5, 9.5 * 2 - 0.5], atol=EDGE)
    assert np.isnan(sample.points[1]).all()
    assert np.allclose(sample.geometry.to_source(sample.box), [0, 30, 25, 40], atol=EDGE)
    assert abs(int(sample.image[19, 9, 1]) - 39 * 6) <= 6  # the file's row 39, not its row 9


def test_segmentations_move_along(root: Path) -> None:
    full = np.zeros((40, 80), np.uint8)
    full[5:25, 10:30] = 204
    full[5:25, 30:50] = 102  # two of five annotators
    for name in ("009.Rock_Wren/a b.png", "030.Puffin/c.png", "030.Puffin/d.png"):
        path = root.parent / "segmentations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(full).save(path)
    for data in (Cub(root, "all", (80, 160)), Cub(root, "all", (80, 160), segmentations=root.parent / "segmentations")):
        wanted = np.zeros((80, 160), bool)
        wanted[10:50, 20:60] = True
        assert np.array_equal(data[1].segmentation, wanted)
    cut = Cub(root, "all", (20, 40), crop="box")[1].segmentation
    assert np.array_equal(cut, np.arange(40)[None].repeat(20, 0) < 20)
    Image.fromarray(full[:, :60]).save(root.parent / "segmentations" / "009.Rock_Wren" / "a b.png")
    with pytest.raises(DataError, match=r"a b\.png: expected the image's size 80 x 40, got \(60, 40\)"):
        Cub(root, "all")[1]
    (root.parent / "segmentations" / "030.Puffin" / "c.png").unlink()
    with pytest.raises(DataError, match="no such file"):
        Cub(root, "all")[2]
    with pytest.raises(DataError, match="segmentations: expected a folder"):
        Cub(root, segmentations=root / "nowhere")


def test_a_folder_of_another_data_sets_segmentations_is_left_alone(root: Path) -> None:
    (root.parent / "segmentations" / "cats").mkdir(parents=True)
    assert Cub(root, "all")[0].segmentation is None


def test_without_part_changes_the_disc_and_nothing_else(root: Path) -> None:
    data = Cub(root, "all", (40, 80))
    before = data[1].image
    after = data.without_part(1, 1)
    radius = 0.05 * np.hypot(40, 20)
    y, x = np.mgrid[:40, :80]
    inside = (x - 49) ** 2 + (y - 24) ** 2 <= radius**2
    assert np.array_equal(after[~inside], before[~inside])
    plain = cv2.inpaint(before, inside.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert np.abs(after.astype(int) - plain).max() <= 12
    assert not np.array_equal(after, before)
    assert data.without_part(2, 0) is None
    assert np.array_equal(data[1].image, before)
    with pytest.raises(InputError, match="part: expected an index"):
        data.without_part(1, 2)
    with pytest.raises(InputError, match="index: expected an index"):
        data.without_part(3, 0)


def test_inpainting_removes_a_spot_from_a_plain_ground() -> None:
    image = np.full((30, 40, 3), (60, 120, 200), np.uint8)
    spotted = image.copy()
    spotted[disc((30, 40), 12, 9, 3)] = 255
    difference = np.abs(inpaint_disc(spotted, 12, 9, 3).astype(int) - image)
    assert difference.max() <= 3  # Telea's own rounding
    assert disc((30, 40), 12, 9, 3).sum() == 29  # Gauss's circle problem, N(3)
    assert not np.array_equal(spotted, image)
    assert np.array_equal(inpaint_disc(spotted, 100, 100, 3), spotted)
    for name, wrong in (("radius", (1.0, 1.0, 0.0)), ("x", (np.nan, 1.0, 2.0)), ("radius", (1.0, 1.0, 99.0))):
        with pytest.raises(InputError, match=f"{name}: expected"):
            inpaint_disc(image, *wrong)


def test_what_the_disc_covers_does_not_shine_through() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        x, y, radius = rng.uniform(0, 60), rng.uniform(0, 60), rng.uniform(1, 15)
        other = image.copy()
        other[disc((60, 60), x, y, radius)] = 255
        assert np.array_equal(inpaint_disc(image, x, y, radius), inpaint_disc(other, x, y, radius))


def test_the_same_every_time_and_in_any_order(root: Path) -> None:
    data = Cub(root, "all", (33, 47))
    again = Cub(root, "all", (33, 47))
    backwards = [again[i] for i in (2, 1, 0)][::-1]
    for one, two in zip(data, backwards, strict=True):
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.points, two.points, equal_nan=True)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images.txt", "7\n", r"images\.txt, line 1: expected 2 columns \(image_id path\), got 1: '7'"),
        ("images.txt", "x a.png\n", r"images\.txt, line 1: expected image_id to be an integer of at least 0, got 'x'"),
        (
            "images.txt",
            "7 a.png\n\n7 b.png\n",
            r"images\.txt, line 3: expected each image_id once, got 7 again, .*line 1",
        ),
        ("images.txt", "7 a.png\n8 a.png\n", r"images\.txt, line 2: expected each path once"),
        ("images.txt", "7 ../../secret.png\n", r"images\.txt, line 1: expected a path below images/"),
        ("images.txt", "", r"images\.txt: expected a table of image_id path, got an empty file"),
        (
            "image_class_labels.txt",
            "7 9\n12 30\n",
            r"image_class_labels\.txt: expected a line for every image_id.*first 3",
        ),
        (
            "image_class_labels.txt",
            "7 9\n12 30\n3 30\n4 9\n",
            r"labels\.txt, line 4: expected a image_id of images\.txt, got 4",
        ),
        (
            "image_class_labels.txt",
            "7 9\n12 77\n3 30\n",
            r"labels\.txt, line 2: expected a class_id of classes\.txt, got 77",
        ),
        (
            "classes.txt",
            "9 009.Wren\n9 010.Gull\n30 030.Puffin\n",
            r"classes\.txt, line 2: expected each class_id once",
        ),
        (
            "train_test_split.txt",
            "7 1\n12 2\n3 1\n",
            r"split\.txt, line 2: expected is_training_image to be 0 or 1, got '2'",
        ),
        (
            "bounding_boxes.txt",
            "7 1 1 nan 9\n12 0 0 1 1\n3 0 0 1 1\n",
            r"boxes\.txt, line 1: expected width to be a finite",
        ),
        ("bounding_boxes.txt", "7 1 1 9\n12 0 0 1 1\n3 0 0 1 1\n", r"boxes\.txt, line 1: expected 5 columns"),
        (
            "bounding_boxes.txt",
            "7 1 1 0 9\n12 0 0 1 1\n3 0 0 1 1\n",
            r"boxes\.txt, line 1: expected a width and height above",
        ),
        ("parts/parts.txt", "1 back\n1 eye\n", r"parts\.txt, line 2: expected each part_id once"),
        (
            "parts/part_locs.txt",
            "7 1 NaN 5 1\n",
            r"part_locs\.txt, line 1: expected x to be a finite number, got 'NaN'",
        ),
        (
            "parts/part_locs.txt",
            "7 1 5 5 1\n",
            r"part_locs\.txt: expected a line for every image and part, .*image 7, part 2",
        ),
        ("parts/part_locs.txt", "7 3 5 5 1\n", r"part_locs\.txt, line 1: expected a part_id of parts\.txt, got 3"),
        ("parts/part_locs.txt", "8 1 5 5 1\n", r"part_locs\.txt, line 1: expected an image_id of images\.txt, got 8"),
        (
            "parts/part_locs.txt",
            "7 1 5 5 1\n7 1 5 5 1\n",
            r"part_locs\.txt, line 2: expected each part of an image once",
        ),
    ],
)
def test_a_malformed_table_is_named_with_its_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    root = write(tmp_path, **{file.replace("/", "__").replace(".", "__"): text})
    with pytest.raises(DataError, match=message):
        Cub(root)


@pytest.mark.parametrize("file", sorted(TABLES))
def test_a_missing_table_is_named(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(DataError, match=rf"{Path(file).name}: expected a table of .*, got no such file"):
        Cub(root)


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    changed = {n.replace("/", "__").replace(".", "__"): "\ufeff" + t.replace("\n", "\r\n") for n, t in TABLES.items()}
    windows, plain = Cub(write(tmp_path / "w", **changed), "all"), Cub(write(tmp_path / "p"), "all")
    assert windows.image_ids == plain.image_ids
    assert windows.part_names == plain.part_names
    assert windows.class_names == plain.class_names


def test_tables_that_are_no_text(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"9 \xff\xfe\x00")
    with pytest.raises(DataError, match=r"classes\.txt: expected a table of .*, readable and in UTF-8"):
        Cub(root)
    with pytest.raises(DataError, match="expected the folder of CUB-200-2011"):
        Cub(root / "nowhere")


def test_images_are_missed_on_access_only(root: Path) -> None:
    (root / "images" / "030.Puffin" / "d.png").unlink()
    data = Cub(root, "all")
    with pytest.raises(DataError, match=r"d\.png: expected a complete, readable image, got no such file"):
        data[0]
    assert data[1].label == 0


def test_a_box_outside_the_image(tmp_path: Path) -> None:
    root = write(tmp_path, bounding_boxes__txt="7 90 5 40 20\n12 0 0 80 40\n3 0 0 30 30\n")
    with pytest.raises(DataError, match=r"box of 009.Rock_Wren/a b.png: expected a box that overlaps .* 80 x 40"):
        Cub(root, "all")[1]


def test_bad_arguments(root: Path) -> None:
    for name, wrong in (("split", "dev"), ("crop", "tight"), ("size", (224, 0)), ("size", (224,))):
        with pytest.raises(InputError, match=name):
            Cub(root, **{name: wrong})
    with pytest.raises(InputError, match="crop: expected 'none', since no box is annotated"):
        make_sample("x", np.zeros((4, 4, 3), np.uint8), 0, (4, 4), crop="box")


def test_shrinking_averages_images_and_takes_the_middle_of_masks() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 60, 3), dtype=np.uint8)
    mask = rng.random((30, 60)) < 0.5
    sample = make_sample("x", image, 0, (10, 40), segmentation=mask, part_masks=mask[None])
    down = make_sample("x", image, 0, (10, 12), part_masks=mask[None])  # by three and by five
    blocks = image.reshape(10, 3, 12, 5, 3).mean((1, 3))
    assert np.abs(down.image - blocks).max() <= 0.51
    assert np.array_equal(down.part_masks[0], mask[1::3, 2::5])
    assert np.array_equal(sample.part_masks[0], sample.segmentation)


@pytest.mark.parametrize("crop", ["none", "box"])
@pytest.mark.parametrize("size", [(224, 224), (50, 333), (17, 9)])
def test_geometry_leads_back_from_any_size(crop: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        height, width = (int(v) for v in rng.integers(30, 300, 2))
        box = np.array([rng.uniform(-9, width / 2), rng.uniform(-9, height / 2), width * 0.7, height + 5.0])
        points = rng.uniform(-10, 310, (6, 2))
        masks = rng.random((2, height, width)) < 0.5
        image = np.zeros((height, width, 3), np.uint8)
        got = make_sample("x", image, 0, size, crop=crop, box=box, points=points, part_masks=masks)
        clipped = np.clip(box, 0, [width, height, width, height])
        assert np.allclose(got.geometry.to_source(got.box), clipped, atol=EDGE)
        assert np.allclose(got.geometry.to_sample(clipped), got.box, atol=EDGE)
        x0, y0, x1, y1 = got.geometry.crop
        shown = (points + 0.5 >= [x0, y0]).all(1) & (points + 0.5 < [x1, y1]).all(1)
        assert np.array_equal(np.isfinite(got.points).all(1), shown)
        corners = np.tile(got.points[shown] + 0.5, 2)
        assert np.allclose(got.geometry.to_source(corners)[:, :2] - 0.5, points[shown], atol=EDGE)
        assert got.part_masks.shape == (2, *size)


@needs_birds
def test_birds_counts_and_splits() -> None:
    train, test = (open_dataset("cub", root=BIRDS, split=s, size=(64, 64)) for s in ("train", "test"))
    assert (len(train), len(test)) == (600, 590)
    assert len(train.class_names) == 20
    assert train.class_names[3] == "Cardinal"
    assert train.class_names == test.class_names
    assert len(train.part_names) == 15
    assert not set(train.image_ids) & set(test.image_ids)
    folders = {(i.split("/")[0], label) for i, label in zip(train.image_ids, train.labels, strict=True)}
    assert sorted(folders) == [(name, k) for k, name in enumerate(sorted({f for f, _ in folders}))]


def _same_scene(whole: Sample, cut: Sample) -> np.ndarray:
    """What the crop shows, cut from the uncropped sample by the two geometries."""
    x0, y0, x1, y1 = (int(v) for v in cut.geometry.crop)
    return cv2.resize(whole.image[y0:y1, x0:x1], cut.geometry.size[::-1], interpolation=cv2.INTER_LINEAR)


@needs_birds
def test_birds_crop_shows_the_same_pixels_and_points() -> None:
    for index in (0, 100, 200):
        native = Cub(BIRDS, "test", (8, 8))[index].geometry.source_size
        whole, cut = Cub(BIRDS, "test", native)[index], Cub(BIRDS, "test", (100, 100), crop="box")[index]
        difference = np.abs(_same_scene(whole, cut).astype(int) - cut.image)
        assert difference.mean() < 8
        x0, y0, x1, y1 = cut.geometry.crop
        wanted = (whole.points + 0.5 - [x0, y0]) * 100 / [x1 - x0, y1 - y0] - 0.5
        shown = np.isfinite(cut.points).all(1)
        assert shown.sum() >= 5
        assert np.allclose(cut.points[shown], wanted[shown], atol=EDGE)


def mode(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


@needs_birds
def test_birds_grey_image_and_visible_points() -> None:
    data = Cub(BIRDS, "all", (32, 32))
    grey = [i for i in range(len(data)) if mode(data.path(i)) == "L"]
    assert len(grey) == 1
    image = data[grey[0]].image
    assert (image == image[..., :1]).all()
    lines = (BIRDS / "parts" / "part_locs.txt").read_text().split("\n")
    assert sum(line.endswith(" 1") for line in lines) == 14163
    assert sum(int(np.isfinite(r.points[:, 0]).sum()) for r in data._records) == 14163
