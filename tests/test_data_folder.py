"""Image folders: classes, splits and damage; and the one function that opens any data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from protomask.data import Dataset, Folder, Planted, open_dataset
from protomask.data.folder import draw_split
from protomask.errors import DataError, InputError


def fill(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (i, 0, 0)).save(root / name)
    return root


def ids(data: Folder) -> list[str]:
    return list(data.image_ids)


def test_class_folders_are_labelled_as_torchvision_does(tmp_path: Path) -> None:
    fill(tmp_path, "b/1.png", "a/2.png", "a/sub/3.png", "c d/4.png")
    data = Folder(tmp_path, "all", (4, 6))
    other = ImageFolder(str(tmp_path))
    assert list(data.class_names) == other.classes
    theirs = {(Path(p).relative_to(tmp_path).as_posix(), k) for p, k in other.samples}
    assert set(zip(data.image_ids, data.labels, strict=True)) == theirs
    assert isinstance(data, Dataset)


def test_a_sample_is_the_resized_image_without_annotation(tmp_path: Path) -> None:
    sample = Folder(fill(tmp_path, "a/1.png"), "all", (4, 6))[0]
    assert sample.image.shape == (4, 6, 3)
    assert sample.geometry.source_size == (8, 12)
    assert (sample.box, sample.points, sample.part_masks, sample.segmentation) == (None,) * 4
    assert (sample.image_id, sample.label) == ("a/1.png", 0)


def test_without_class_folders_there_is_one_class(tmp_path: Path) -> None:
    data = Folder(fill(tmp_path, "1.png", "2.png"), "all")
    assert data.class_names == ("unlabelled",)
    assert data.labels == (0, 0)
    assert data.without_part(0, 0) is None
    assert len(data.part_names) == 0


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_split_folders_are_the_splits_and_share_their_labels(tmp_path: Path, held_out: str) -> None:
    fill(tmp_path, "train/b/1.png", "train/c/2.png", f"{held_out}/a/3.png", f"{held_out}/c/4.png")
    train, test = Folder(tmp_path, "train"), Folder(tmp_path, "test")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert (ids(train), train.labels) == (["train/b/1.png", "train/c/2.png"], (1, 2))
    assert (ids(test), test.labels) == ([f"{held_out}/a/3.png", f"{held_out}/c/4.png"], (0, 2))
    assert len(Folder(tmp_path, "all")) == 4


def test_a_drawn_split_is_a_partition_with_the_share_in_every_class(tmp_path: Path) -> None:
    fill(tmp_path, *(f"a/{i}.png" for i in range(20)), *(f"b/{i}.png" for i in range(5)), "c/0.png")
    train, test = Folder(tmp_path, "train"), Folder(tmp_path, "test")
    assert [train.labels.count(k) for k in range(3)] == [16, 4, 1]
    assert [test.labels.count(k) for k in range(3)] == [4, 1, 0]
    assert not set(ids(train)) & set(ids(test))
    assert set(ids(train)) | set(ids(test)) == set(ids(Folder(tmp_path, "all")))
    assert train.class_names == test.class_names


def test_a_drawn_split_depends_on_names_and_seed_only(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(30)]
    once = draw_split(tmp_path, files)
    assert once == draw_split(tmp_path, files[::-1])
    assert once != draw_split(tmp_path, files, seed=1)
    elsewhere = draw_split(Path("/else"), [Path("/else") / f.name for f in files])
    assert [f.name for f in elsewhere["test"]] == [f.name for f in once["test"]]
    assert draw_split(tmp_path, files, fraction=1)["test"] == []
    assert [len(v) for v in draw_split(tmp_path, files[:2], fraction=0.99).values()] == [1, 1]
    # Frozen, so that published results stay reproducible.
    # The names come from `printf %s 0/16.png | sha256sum` and its like, sorted.
    assert [f.name for f in once["test"]] == ["16.png", "18.png", "20.png", "23.png", "4.png", "9.png"]


def test_a_corrupt_file_is_an_error_on_access_and_can_be_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "a/2.png").write_bytes((tmp_path / "a/2.png").read_bytes()[:-30])
    data = Folder(tmp_path, "all")
    with pytest.raises(DataError, match=r"a/2\.png"):
        data[1]
    wrong = data.check()
    assert list(wrong) == [1]
    assert "2.png" in str(wrong[1])
    good = data.readable()
    assert (ids(good), good.labels, good.class_names) == (["a/1.png", "b/3.png"], (0, 1), ("a", "b"))
    assert len(data) == 3
    assert [s.label for s in good] == [0, 1]
    (tmp_path / "a/1.png").write_bytes(b"")
    (tmp_path / "b/3.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 3"):
        data.readable()


def test_bad_folders_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root: expected a folder of images, got .*nowhere"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least one image"):
        Folder(tmp_path / "empty")
    fill(tmp_path / "mixed", "loose.png", "a/1.png")
    with pytest.raises(DataError, match=r"loose\.png beside the folder a"):
        Folder(tmp_path / "mixed")
    fill(tmp_path / "uneven", "train/a/1.png", "test/1.png")
    with pytest.raises(DataError, match="class folders in train and test alike"):
        Folder(tmp_path / "uneven")
    one = fill(tmp_path / "one", "a/1.png")
    with pytest.raises(DataError, match="at least one image in the split 'test'"):
        Folder(one, "test")
    for wrong in ({"split": "dev"}, {"fraction": 0.0}, {"fraction": 1.5}, {"size": (0, 4)}, {"size": 224}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Folder(one, **{"split": "all", **wrong})
    with pytest.raises(InputError, match=r"index: expected an index in 0 \.\. 0, got 1"):
        Folder(one, "all")[1]


def test_open_dataset_opens_each(tmp_path: Path) -> None:
    folder = open_dataset("folder", root=fill(tmp_path, "a/1.png", "a/2.png"), split="all", size=(5, 7))
    assert folder[0].image.shape == (5, 7, 3)
    birds = open_dataset("planted", split="dev", size=(48, 48), count=5, classes=6, seed=3)
    assert np.array_equal(birds[4].image, Planted("birds", "dev", count=5, size=48, classes=6, seed=3)[4].image)
    flowers = open_dataset("planted-flowers", split="test", size=(48, 48), count=2)
    assert flowers.name == "planted-flowers"
    assert open_dataset("planted", scene="flowers", split="test", size=(48, 48), count=2).name == flowers.name
    assert all(isinstance(d, Dataset) for d in (folder, birds, flowers))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coco", {}, "data: expected one of planted"),
        ("cub", {}, "root: expected the folder of the data set 'cub', got None"),
        ("folder", {}, "root: expected the folder of the data set 'folder', got None"),
        ("folder", {"root": ".", "crop": "box"}, "crop: expected nothing, since folder"),
        ("cub", {"root": ".", "count": 3}, "count: expected nothing, since cub"),
        ("planted", {"root": "."}, "root: expected nothing, since planted"),
        ("planted", {"species": [3]}, "species: expected nothing, since planted"),
        ("planted", {"size": (48, 64)}, "size: expected a square for planted, got 48 x 64"),
    ],
)
def test_open_dataset_refuses_what_a_data_set_does_not_have(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(name, **{"split": "train", "size": (48, 48), **options})
