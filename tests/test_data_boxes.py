"""Box lists: columns and complaints, splits by patient, and the two halves of a radiograph, on images made here."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protomask.commands.common import names_option, pairs_option, window_option
from protomask.data import BoxList, Dataset, Geometry, file_of, make_sample, open_dataset
from protomask.data._boxes import annotate
from protomask.data._patients import split_patients
from protomask.errors import DataError, InputError
from protomask.loading import Relabelled
from protomask.store.regions import to_original
from tests.toys import BlockScenes

LUNGS = Path(os.environ.get("PROTOMASK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cxr-lungs"
needs_lungs = pytest.mark.skipif(not LUNGS.is_dir(), reason=f"no chest X-rays at {LUNGS} (set PROTOMASK_DATA)")

IMAGES = (
    "id,w,h,patientid,view,license\n"
    'a,40,20,7,PA,"CC BY, 4.0"\n'
    "b,40,20,7,AP,CC BY 4.0\n"
    "c,40,20,9,AP Supine,CC BY 4.0\n"
)  # fmt: skip
BOXES = (
    "id,class,x,y,w,h\n"
    "a,right_lung,2,2,14,10\n"
    "a,left_lung,20,4,16,12\n"
    "b,left_lung,22,0,10,20\n"
    "b,right_lung,4,0,14,20\n"
    "c,right_lung,5.5,5.25,10,10\n"
    "c,left_lung,25,5,20,10\n"
)
FILES = {"images.csv": IMAGES, "boxes.csv": BOXES}


def picture() -> np.ndarray:
    """[20, 40] uint8, every pixel another value within its row and column."""
    y, x = np.mgrid[:20, :40]
    return (x * 5 + y).astype(np.uint8)


def write(root: Path, **changed: str) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (root / name).write_bytes(changed.get(name.replace(".", "_"), text).encode())
    for name in "abc":
        Image.fromarray(picture()).save(root / "images" / f"{name}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "list")


def test_classes_of_a_column(root: Path) -> None:
    data = BoxList(root, "all", (20, 40), label="view")
    assert isinstance(data, Dataset)
    assert data.class_names == ("AP", "AP Supine", "PA")
    assert data.labels == (2, 0, 1)
    assert data.image_ids == ("a.png", "b.png", "c.png")
    assert data.groups == ("7", "7", "9") == tuple(s.group for s in data)
    assert data.without_part(0, 0) is None
    merged = BoxList(root, "all", label="view", rename={"AP Supine": "AP"})
    assert (merged.class_names, merged.labels) == (("AP", "PA"), (1, 0, 0))


def test_boxes_are_moved_along_and_united(root: Path) -> None:
    sample = BoxList(root, "all", (20, 40), label="view")[0]
    wanted = np.zeros((20, 40), bool)
    wanted[2:12, 2:16] = wanted[4:16, 20:36] = True
    assert np.array_equal(sample.segmentation, wanted)
    assert np.allclose(sample.box, [2, 2, 36, 16])
    assert np.array_equal(sample.image[..., 0], picture())
    small = BoxList(root, "all", (10, 10), label="view")[0]
    assert np.allclose(small.box, [0.5, 1, 9, 8])
    # x 0.5 to 4 and 5 to 9 in sample pixels: centres 0.5 .. 3.5 and 5.5 .. 8.5; y 1 to 6 and 2 to 8.
    rows, columns = np.nonzero(small.segmentation)
    assert Counter(rows.tolist()) == {1: 4, **dict.fromkeys(range(2, 6), 8), 6: 4, 7: 4}
    assert set(columns.tolist()) == {0, 1, 2, 3, 5, 6, 7, 8}
    third = BoxList(root, "all", (20, 40), label="view")[2]  # its left lung reaches beyond the image
    assert np.allclose(third.box, [5.5, 5, 40, 15.25])


def test_cut_to_the_boxes(root: Path) -> None:
    sample = BoxList(root, "all", (14, 34), "box", label="view")[0]
    assert sample.geometry == Geometry((20, 40), (2.0, 2.0, 36.0, 16.0), (14, 34))
    assert np.array_equal(sample.image[..., 0], picture()[2:16, 2:36])
    assert np.allclose(sample.box, [0, 0, 34, 14])


def test_a_thin_box_keeps_the_pixel_under_it() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    got = annotate(make_sample("x", image, 0, (10, 10)), np.array([[32.0, 61.0, 34.0, 62.0]]))
    assert np.argwhere(got.segmentation).tolist() == [[6, 3]]
    assert np.allclose(got.box, [3.2, 6.1, 3.4, 6.2])
    away = annotate(make_sample("x", image, 0, (10, 10)), np.array([[120.0, 0.0, 130.0, 10.0]]))
    assert away.box is None
    assert away.segmentation is None


def test_a_samples_file_exists_whatever_it_is_called(root: Path) -> None:
    data = BoxList(root, "all", (20, 20), task="side")
    for k in range(len(data)):
        name = file_of(data, k, data[k].image_id)
        assert data.path(k).as_posix().endswith(name)
        assert data[k].image_id.startswith(name)
        assert data[k].image_id != name  # it names the half, too
    renamed = Relabelled(data, (0, 1), data.class_names)
    assert file_of(renamed, 0, data[0].image_id) == file_of(data, 0, data[0].image_id)
    assert file_of(BlockScenes(), 3, "blocks/3") == "blocks/3"


def test_the_task_side_cuts_between_the_lungs_and_mirrors_one_half(root: Path) -> None:
    data = BoxList(root, "all", (20, 20), task="side")
    assert data.class_names == ("right_lung", "left_lung")
    assert data.labels == (0, 1) * 3
    assert data.image_ids[:2] == ("a.png#right_lung", "a.png#left_lung")
    cuts = {"a": 18, "b": 20, "c": 20}  # half way from 16 to 20, from 18 to 22, from 15.5 to 25
    for k, sample in enumerate(data):
        cut = cuts[sample.image_id[0]]
        edges = (0, cut) if sample.label == 0 else (cut, 40)
        x0, _, x1, _ = sample.geometry.crop
        assert sorted((x0, x1)) == list(edges)
        half = picture()[:, edges[0] : edges[1]]
        shown = half[:, ::-1] if sample.geometry.mirrored else half
        plain = make_sample("x", np.repeat(shown[..., None], 3, 2), 0, (20, 20))
        assert np.array_equal(sample.image, plain.image)
        assert data.groups[k] == sample.group
    for right, left in zip(data, list(data)[1:], strict=False):
        if right.image_id[0] == left.image_id[0]:
            assert right.geometry.mirrored is not left.geometry.mirrored


def test_the_lungs_move_along_with_cut_mirror_and_size(root: Path) -> None:
    data = BoxList(root, "all", (40, 36), task="side")
    right, left = data[0], data[1]  # of a: 0 .. 18 and 18 .. 40; the left lung begins at 20
    assert right.geometry.mirrored is not left.geometry.mirrored
    x = np.array([2, 16]) * 2.0  # 18 columns become 36
    x = 36 - x[::-1] if right.geometry.mirrored else x
    assert np.allclose(right.box, [x[0], 4, x[1], 24])
    x = (np.array([20, 36]) - 18) * 36 / 22
    x = 36 - x[::-1] if left.geometry.mirrored else x
    assert np.allclose(left.box, [x[0], 8, x[1], 32])
    inside = np.zeros((40, 36), bool)
    columns = np.arange(36) + 0.5
    inside[8:32] = (columns >= x[0]) & (columns < x[1])
    assert np.array_equal(left.segmentation, inside)


def test_what_of_the_other_lung_is_visible_counts(tmp_path: Path) -> None:
    text = BOXES.replace("a,right_lung,2,2,14,10", "a,right_lung,2,2,20,10")  # up to 22, beyond the cut at 21
    data = BoxList(write(tmp_path, boxes_csv=text), "all", (20, 20), task="side")
    right, left = data[0], data[1]
    assert sorted(right.geometry.crop[::2]) == [0, 21]
    whole = np.zeros((20, 40), bool)
    whole[2:12, 2:22] = whole[4:16, 20:36] = True
    for sample in (right, left):
        back = to_original(sample.segmentation, sample.geometry)
        x0, x1 = (int(v) for v in sorted(sample.geometry.crop[::2]))
        assert not back[:, :x0].any()
        assert not back[:, x1:].any()
        assert (back[:, x0:x1] == whole[:, x0:x1]).mean() > 0.95  # 19 or 21 columns are not 20


def test_a_half_cut_to_its_lung(root: Path) -> None:
    data = BoxList(root, "all", (20, 20), "box", task="side")
    crops = [(*sorted(s.geometry.crop[::2]), *s.geometry.crop[1::2]) for s in data]
    assert crops[:2] == [(2, 18, 2, 12), (18, 36, 4, 16)]
    assert crops[4:] == [(5, 20, 5, 16), (20, 40, 5, 15)]  # outwards to whole pixels, and not beyond the image
    assert np.allclose(np.sort(data[0].box[[0, 2]]), [0, 17.5]) or np.allclose(data[0].box[[0, 2]], [2.5, 20])


def test_mirrored_geometry_goes_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for crop in ((10.0, 5.0, 50.0, 25.0), (50.0, 5.0, 10.0, 25.0)):
        geometry = Geometry((40, 60), crop, (30, 80))
        boxes = np.sort(rng.uniform(0, 30, (3, 7, 2, 2)), axis=-2).reshape(3, 7, 4)
        there = geometry.to_source(boxes)
        assert (there[..., :2] <= there[..., 2:]).all()
        assert np.allclose(geometry.to_sample(there), boxes)
        assert geometry.mirrored is (crop[0] > crop[2])
    assert np.allclose(geometry.to_source(np.array([0, 0, 8, 3])), [46, 5, 50, 7])
    mask = np.zeros((30, 80), bool)
    mask[:3, :8] = True
    back = np.argwhere(to_original(mask, geometry))
    assert (back.min(0).tolist(), back.max(0).tolist()) == ([5, 46], [6, 49])


def test_splits_keep_patients_together() -> None:
    names = [str(k) for k in range(100) for _ in range(1 + k % 4)]
    shares = {"train": 0.6, "dev": 0.15, "test": 0.25}
    of = split_patients(names, shares, 3)
    assert Counter(of.values()) == {"train": 60, "dev": 15, "test": 25}
    assert of == split_patients(reversed(names), shares, 3)
    assert of != split_patients(names, shares, 4)
    assert split_patients(["only"], shares) == {"only": "train"}


def test_every_split_has_its_own_patients(tmp_path: Path) -> None:
    rows = [f"i{k},{k // 2},{'PA' if k % 2 else 'AP'}" for k in range(40)]
    root = write(
        tmp_path,
        images_csv="\n".join(["id,patient,view", *rows]),
        boxes_csv="\n".join(["id,class,x,y,w,h", *(f"i{k},lung,1,1,9,9" for k in range(40))]),
    )
    for k in range(40):
        Image.new("L", (12, 12)).save(root / "images" / f"i{k}.png")
    found = {s: BoxList(root, s, label="view") for s in ("train", "dev", "test", "all")}
    assert {s: len(set(d.groups)) for s, d in found.items()} == {"train": 12, "dev": 3, "test": 5, "all": 20}
    assert len({g for s in ("train", "dev", "test") for g in set(found[s].groups)}) == 20
    assert {tuple(d.class_names) for d in found.values()} == {("AP", "PA")}
    with pytest.raises(DataError, match="at least one image in the split 'dev', got none"):
        BoxList(root, "dev", label="view", shares=(0.5, 0, 0.5))


def test_the_coin_is_seeded_and_says_nothing_about_the_label(tmp_path: Path) -> None:
    ids = [f"{k}" for k in range(60)]
    root = write(
        tmp_path,
        images_csv="\n".join(["id,patient", *(f"{k},p{k}" for k in ids)]),
        boxes_csv="\n".join(["id,class,x,y,w,h", *(f"{k},right_lung,1,1,4,9\n{k},left_lung,7,1,4,9" for k in ids)]),
    )
    for k in ids:
        Image.new("L", (12, 12)).save(root / "images" / f"{k}.png")
    data = BoxList(root, "all", (6, 6), task="side")
    mirrored = [s.geometry.mirrored for s in data]
    assert mirrored == [s.geometry.mirrored for s in BoxList(root, "all", (8, 8), task="side")]
    assert mirrored != [s.geometry.mirrored for s in BoxList(root, "all", (6, 6), task="side", split_seed=1)]
    assert 15 <= sum(mirrored[::2]) <= 45
    # The edge that the spine lies at: in each split as often left for one class as for the other.
    for split in ("train", "dev", "test"):
        spine = Counter((s.label, s.geometry.mirrored is (s.label == 0)) for s in BoxList(root, split, task="side"))
        assert spine[0, True] == spine[1, True]
        assert spine[0, False] == spine[1, False]


def test_crlf_mark_other_names_and_npy(root: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other",
        images_csv="\ufeff" + IMAGES.replace("patientid", "subject").replace("\n", "\r\n"),
        boxes_csv=BOXES.replace("class", "what").replace("\n", "\r\n"),
    )
    (other / "images" / "a.png").unlink()
    np.save(other / "images" / "a.npy", picture().astype(np.uint16) * 16)
    columns = {"patient": "subject", "class": "what"}
    one = BoxList(other, "all", (20, 40), label="view", columns=columns, window=(0, 255 * 16))
    two = BoxList(root, "all", (20, 40), label="view")
    assert one.image_ids[0] == "a.npy"
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.segmentation, b.segmentation)
        assert (a.label, a.group) == (b.label, b.group)
    with pytest.raises(
        DataError, match=r"images\.csv, line 1: expected a column for the patient, named 'patientid' or"
    ):
        BoxList(other, "all", label="view")
    with pytest.raises(InputError, match="columns: expected keys of id, patient, class, x"):
        BoxList(root, label="view", columns={"who": "patientid"})


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.csv", "view", "w", r"images\.csv, line 1: expected the column 'w' once, got it twice"),
        ("images.csv", "view", "sight", r"images\.csv, line 1: expected a column for the class, named 'view', got id"),
        ("images.csv", "b,40", "a,40", r"images\.csv, line 3: expected each image once, got a again, first in line 2"),
        ("images.csv", "b,40", ",40", r"images\.csv, line 3: expected image to be given, got an empty cell"),
        ("images.csv", "b,40", "b,4O", r"images\.csv, line 3: expected width to be an integer"),
        ("images.csv", ",7,AP", ",,AP", r"images\.csv, line 3: expected patientid to be given"),
        ("images.csv", ",7,AP,", ",7,,", r"images\.csv, line 3: expected view to be given"),
        ("images.csv", ",7,AP,CC BY 4.0", ",7,AP,CC BY,4.0", r"images\.csv, line 3: expected 6 cells .*, got 7"),
        ("images.csv", "b,40", "d,40", r"boxes\.csv, line 4: expected an image of images\.csv, got b"),
        ("images.csv", "c,40,20,9,AP Supine,CC BY 4.0\n", "c,40,20,9,PA,X\nd,40,20,9,PA,X\n",
         r"images\.csv, line 5: expected an image d in .*images, got none"),
        ("images.csv", IMAGES, "id,patientid,view\n", r"images\.csv: .*got no line below a header"),
        ("boxes.csv", "class", "kind", r"boxes\.csv, line 1: expected a column for the box's class, named 'class' or"),
        ("boxes.csv", "20,4,16,12", "20,4,16", r"boxes\.csv, line 3: expected 6 cells"),
        ("boxes.csv", "20,4,16,12", "20,4,nan,12", r"boxes\.csv, line 3: expected w to be a finite number, got 'nan'"),
        ("boxes.csv", "20,4,16,12", "20,4,,12", r"boxes\.csv, line 3: expected w to be a finite number, got ''"),
        ("boxes.csv", "20,4,16,12", "20,-inf,16,12", r"boxes\.csv, line 3: expected y to be a finite number"),
        ("boxes.csv", "20,4,16,12", "20,4,16,-2", r"boxes\.csv, line 3: expected a width and height above 0, got 16"),
        ("boxes.csv", "20,4,16,12", "40,4,16,12", r"boxes\.csv, line 3: expected a box that overlaps the image of 40"),
        ("boxes.csv", "20,4,16,12", "20,-9,16,9", r"boxes\.csv, line 3: .* got x 20 to 36, y -9 to 0"),
        ("boxes.csv", "a,left_lung,20,4,16,12", "a,right_lung,2.0,2,14,10", r"boxes\.csv, line 3: .*line 2 again"),
        ("boxes.csv", "a,left", "z,left", r"boxes\.csv, line 3: expected an image of images\.csv, got z"),
        ("boxes.csv", "a,left_lung", '"a,left_lung', r"boxes\.csv, line \d: expected cells separated by commas"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(root: Path, file: str, old: str, new: str, message: str) -> None:
    text = FILES[file]
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        BoxList(root, "all", label="view")


def test_no_text_and_no_files(root: Path, tmp_path: Path) -> None:
    (root / "boxes.csv").write_bytes(b"id,class\xff\n")
    with pytest.raises(DataError, match=r"boxes\.csv: expected a table, readable and in UTF-8"):
        BoxList(root, label="view")
    (root / "boxes.csv").unlink()
    with pytest.raises(DataError, match=r"boxes\.csv: expected a table, got no such file"):
        BoxList(root, label="view")
    with pytest.raises(DataError, match=r"nowhere: expected a folder with images\.csv and boxes\.csv"):
        BoxList(tmp_path / "nowhere", label="view")


def test_two_files_of_one_name_and_files_of_another_size(root: Path) -> None:
    data = BoxList(root, "all", label="view")
    Image.new("L", (39, 20)).save(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"images\.csv, line 2: expected the size of a\.png, 39 x 20"):
        data[0]
    Image.new("L", (40, 20)).save(root / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"line 2: expected one image for a, got a\.jpg, a\.png"):
        BoxList(root, "all", label="view")
    (root / "images" / "a.jpg").unlink()
    (root / "images.csv").write_text(IMAGES.replace("id,w,h", "id,u,v"))  # the table does not tell sizes
    (root / "boxes.csv").write_text(BOXES.replace("25,5,20", "40,5,20"))
    with pytest.raises(DataError, match=r"boxes\.csv, line 7: expected a box that overlaps the image of 40 x 20"):
        BoxList(root, "all", label="view")[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a,left_lung,20,4,16,12\n", "", r"images\.csv, line 2: expected one box 'left_lung' for a, .* got 0"),
        ("a,left_lung", "a,right_lung", r"images\.csv, line 2: expected one box 'right_lung' for a, .* got 2"),
        ("20,4,16,12", "4,4,10,12", r"boxes\.csv, line \d: expected a box beside that of line \d, got one that covers"),
    ],
)
def test_the_task_needs_two_lungs_side_by_side(root: Path, old: str, new: str, message: str) -> None:
    (root / "boxes.csv").write_text(BOXES.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        BoxList(root, "all", task="side")


def test_an_image_without_boxes_is_not_annotated(root: Path) -> None:
    (root / "boxes.csv").write_text("\n".join(line for line in BOXES.split("\n") if not line.startswith("b,")))
    sample = BoxList(root, "all", label="view")[1]
    assert sample.box is None
    assert sample.segmentation is None
    with pytest.raises(DataError, match=r"images\.csv, line 3: expected a box to cut at, got none for b"):
        BoxList(root, "all", crop="box", label="view")


def test_options(root: Path) -> None:
    for wrong, message in (
        ({}, "label, task: expected one of them, got neither"),
        ({"label": "view", "task": "side"}, "label, task: expected one of them, got both"),
        ({"task": "top"}, "task: expected one of side"),
        ({"task": "side", "rename": {"AP": "PA"}}, "rename: expected nothing"),
        ({"task": "side", "sides": ("a", "a")}, "sides: expected what"),
        ({"label": "view", "rename": {"XX": "PA"}}, "rename: expected values of view: AP, AP Supine, PA, got 'XX'"),
        ({"label": "view", "shares": (0.5, 0.5)}, "shares: expected the shares of train, dev and test"),
        ({"label": "view", "shares": (0.5, 0.5, 0.5)}, "shares: expected shares that sum to 1"),
        ({"label": "view", "split": "val"}, "split: expected one of train"),
        ({"label": "view", "crop": "part"}, "crop: expected one of none, box"),
    ):
        with pytest.raises(InputError, match=message):
            BoxList(root, **wrong)
    with pytest.raises(InputError, match=r"index: expected an index in 0 \.\. 2"):
        BoxList(root, "all", label="view")[3]


def test_open_dataset(root: Path) -> None:
    data = open_dataset(
        "boxes", root=root, split="all", size=(20, 20), crop="box", task="side", label=None, boxed=False
    )
    assert data[0].geometry.crop[1] == 2
    with pytest.raises(InputError, match="findings: expected nothing, since boxes"):
        open_dataset("boxes", root=root, split="all", size=(20, 20), findings=["Mass"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'tsk'"):
        open_dataset("boxes", root=root, split="all", size=(20, 20), tsk="side")
    with pytest.raises(InputError, match="task: expected nothing, since planted has no such option"):
        open_dataset("planted", split="test", size=(48, 48), task="side")


def test_options_of_the_command_line() -> None:
    assert pairs_option("AP Supine=AP, x=left") == {"AP Supine": "AP", "x": "left"}
    assert names_option("Mass, Nodule") == ("Mass", "Nodule")
    assert window_option("0,4095") == (0, 4095)
    for parse, text in ((pairs_option, "a"), (pairs_option, "a="), (names_option, "a,,b"), (window_option, "1,2,3")):
        with pytest.raises(Exception, match="expected"):
            parse(text)


@needs_lungs
def test_real_lungs() -> None:
    views = {s: BoxList(LUNGS, s, (64, 64), label="view", rename={"AP Supine": "AP"}) for s in ("train", "dev", "test")}
    assert sum(map(len, views.values())) == 270
    assert sum(len(set(d.groups)) for d in views.values()) == len({g for d in views.values() for g in d.groups}) == 146
    sides = open_dataset("boxes", root=LUNGS, split="test", size=(64, 32), task="side")
    assert Counter(sides.labels) == {0: len(sides) // 2, 1: len(sides) // 2}
    for k in range(0, len(sides), 11):
        sample = sides[k]
        assert sample.segmentation.mean() > 0.1
        assert (sample.image == sample.image[..., :1]).all()
        # The half's own lung, mapped back, is the list's box.
        own = next(b for b in sides._items[k].record.boxes if b.name == sides.class_names[sample.label])
        x0, y0, x1, y1 = sample.geometry.to_sample(np.array(own.edges))
        inside = sample.segmentation[max(0, round(y0)) : round(y1), max(0, round(x0)) : round(x1)]
        assert inside.mean() > 0.99
