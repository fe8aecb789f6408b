"""ChestX-ray14: the official tables' quirks and complaints, splits by patient, labels and boxes, on a set made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protomask.data import ChestXray14, Dataset, Sample, open_dataset
from protomask.data.chestxray import CLASSES, FINDINGS
from protomask.errors import DataError, InputError
from protomask.loading import Loaded, Relabelled, with_labels_of

# As published: brackets with commas in the headers, names without a column at the end, and the box list's "Infiltrate".
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    "00000001_000.png,Atelectasis|Mass|Infiltration,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
    "00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143,\n"
    "00000002_000.png,Nodule,0,2,81,M,PA,2500,2048,0.171,0.171,\n"
    "00000003_000.png,Effusion|Hernia,0,3,75,F,AP,2048,2500,0.168,0.168,\n"
)
BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    "00000001_000.png,Mass,512,256,128,256,,,\n"
    "00000001_000.png,Infiltrate,0.0,0.0,256.0,128.0\n"
    "00000001_000.png,Infiltrate,512.5,1000.0,511.5,60.0\n"
    "00000003_000.png,Effusion,100,200,300,400\n"
)
TRAIN = "00000001_000.png\n00000001_001.png\n00000002_000.png\n"
TEST = "00000003_000.png\n"
FILES = {
    "Data_Entry_2017.csv": ENTRIES,
    "BBox_List_2017.csv": BOXES,
    "train_val_list.txt": TRAIN,
    "test_list.txt": TEST,
}


def write(root: Path, folder: str = "images", side: int = 64, **changed: str | None) -> Path:
    """The files above with some replaced (dots in names as ``__``) or left out, and images of noise."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        content = changed.get(name.replace(".", "__"), text)
        if content is not None:
            (root / name).write_bytes(content.encode())
    for number, line in enumerate(ENTRIES.splitlines()[1:]):
        path = root / folder.format(number + 1) / line.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (side, side), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "nih")


def names(data: ChestXray14, sample: Sample) -> set[str]:
    return {data.class_names[k] for k in np.flatnonzero(sample.labels)}


def test_labels_groups_and_order(root: Path) -> None:
    data = ChestXray14(root, "all", (32, 32))
    assert isinstance(data, Dataset)
    assert tuple(data.class_names) == CLASSES
    assert len(CLASSES) == 15
    assert data.image_ids == ("00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png")
    assert data.groups == ("1", "1", "2", "3")
    samples = list(data)
    assert [s.group for s in samples] == ["1", "1", "2", "3"]
    assert names(data, samples[0]) == {"Atelectasis", "Mass", "Infiltration"}
    assert names(data, samples[1]) == {"No Finding"}
    # Of three findings the first with a box; without boxes the first of all.
    assert [data.class_names[s.label] for s in samples] == ["Infiltration", "No Finding", "Nodule", "Effusion"]
    assert [data.class_names[k] for k in data.labels] == ["Infiltration", "No Finding", "Nodule", "Effusion"]
    assert data.ignored_boxes == 0
    (root / "BBox_List_2017.csv").unlink()
    plain = ChestXray14(root, "all", (32, 32))
    assert plain.class_names[plain[0].label] == "Atelectasis"
    assert plain[0].box is None
    assert plain[0].segmentation is None


def test_the_boxes_of_the_label_become_the_segmentation(root: Path) -> None:
    sample = ChestXray14(root, "all", (64, 32))[0]
    wanted = np.zeros((64, 32), bool)  # 1,024 pixels of the list are 64 high and 32 wide here
    wanted[:8, :8] = True
    wanted[62:, 16:] = True  # from (16.02, 62.5), the centre of row 62, beyond the lower edge
    assert np.array_equal(sample.segmentation, wanted)
    assert np.allclose(sample.box, [0, 0, 32, 64])
    assert ChestXray14(root, "all", (64, 32))[1].segmentation is None


@pytest.mark.parametrize("side", [64, 100, 1024])
def test_boxes_are_in_the_published_frame_whatever_the_copy_measures(tmp_path: Path, side: int) -> None:
    data = ChestXray14(write(tmp_path, side=side), "test", (64, 64))
    assert np.allclose(data[0].box, np.array([100, 200, 400, 600]) / 16)
    assert data[0].geometry.source_size == (side, side)


def test_boxed_gives_a_sample_for_every_finding_with_boxes(root: Path) -> None:
    data = ChestXray14(root, "train", (64, 64), boxed=True, dev=0)
    assert data.image_ids == ("00000001_000.png",) * 2
    assert [data.class_names[k] for k in data.labels] == ["Infiltration", "Mass"]
    assert np.allclose(data[1].box, [32, 16, 40, 32])
    assert data[1].segmentation.sum() == 8 * 16
    assert all(names(data, s) == {"Atelectasis", "Mass", "Infiltration"} for s in data)


def test_chosen_findings_leave_other_images_out(root: Path) -> None:
    data = ChestXray14(root, "all", findings=["No Finding", "Mass"])
    assert data.class_names == ("Mass", "No Finding")
    assert data.image_ids == ("00000001_000.png", "00000001_001.png")
    assert [s.labels.tolist() for s in data] == [[True, False], [False, True]]
    for wrong in (["Cold"], [], "Mass"):
        with pytest.raises(InputError, match="findings: expected some of Atelectasis"):
            ChestXray14(root, findings=wrong)
    with pytest.raises(DataError, match="at least one image with a box of Nodule in the split 'all', got none"):
        ChestXray14(root, "all", findings=["Nodule"], boxed=True)


def test_negatives_are_of_no_class(root: Path) -> None:
    data = ChestXray14(root, "all", (16, 16), findings=FINDINGS, negatives=True)
    assert len(data.class_names) == 14
    assert [s.labels.sum() for s in data] == [3, 0, 1, 2]
    assert data.labels[1] == data[1].label == -1
    assert data[1].box is None
    assert Relabelled(data, tuple(range(14)), data.class_names)[1].label == -1
    assert ChestXray14(root, "all", findings=["Mass"], negatives=True).labels == (0, -1, -1, -1)
    with pytest.raises(InputError, match="boxed, negatives: expected one of them"):
        ChestXray14(root, boxed=True, negatives=True)


def test_the_official_lists_are_the_splits_and_dev_is_cut_by_patient(root: Path) -> None:
    assert ChestXray14(root, "test").image_ids == ("00000003_000.png",)
    assert ChestXray14(root, "train", dev=0).image_ids == tuple(TRAIN.split())
    halves = [ChestXray14(root, s, dev=0.5) for s in ("train", "dev")]
    assert {len(set(h.groups)) for h in halves} == {1}
    assert not set(halves[0].groups) & set(halves[1].groups)
    assert sorted(halves[0].image_ids + halves[1].image_ids) == sorted(TRAIN.split())
    with pytest.raises(DataError, match=r"at least one image of .* in the split 'dev', got none"):
        ChestXray14(root, "dev", dev=0)


def many(patients: int) -> str:
    lines = [f"{p:08d}_{k:03d}.png,No Finding,0,{p}" for p in range(patients) for k in range(1 + p % 3)]
    return "\n".join(["Image Index,Finding Labels,Follow-up #,Patient ID", *lines])


def test_without_lists_the_split_is_drawn_by_patient(tmp_path: Path) -> None:
    table = many(40)
    root = write(tmp_path, Data_Entry_2017__csv=table, BBox_List_2017__csv=None, train_val_list__txt=None,
                 test_list__txt=None)  # fmt: skip
    for line in table.splitlines()[1:]:
        Image.new("L", (4, 4)).save(root / "images" / line.split(",")[0])
    splits = {s: ChestXray14(root, s) for s in ("train", "dev", "test")}
    patients = {s: set(d.groups) for s, d in splits.items()}
    assert {s: len(p) for s, p in patients.items()} == {"train": 28, "dev": 4, "test": 8}
    assert len(set.union(*patients.values())) == 40
    assert sum(len(d) for d in splits.values()) == len(table.splitlines()) - 1
    assert splits["test"].image_ids == ChestXray14(root, "test").image_ids
    assert splits["test"].image_ids != ChestXray14(root, "test", split_seed=1).image_ids
    # Whatever the others are, and in whatever order, a patient stays where the ranking puts them.
    (root / "Data_Entry_2017.csv").write_text("\n".join([table.splitlines()[0], *table.splitlines()[:0:-1]]))
    assert set(ChestXray14(root, "test").groups) == patients["test"]


def test_twelve_folders_the_newer_table_and_crlf(tmp_path: Path) -> None:
    crlf = {name.replace(".", "__"): text.replace("\n", "\r\n") for name, text in FILES.items()}
    root = write(tmp_path, "images_{:03d}/images", **crlf)
    (root / "Data_Entry_2017.csv").rename(root / "Data_Entry_2017_v2020.csv")
    text = (root / "Data_Entry_2017_v2020.csv").read_bytes()
    (root / "Data_Entry_2017_v2020.csv").write_bytes(b"\xef\xbb\xbf" + text)
    data = ChestXray14(root, "all", (32, 32))
    assert data.path(3) == root / "images_004" / "images" / "00000003_000.png"
    plain = ChestXray14(write(tmp_path / "plain"), "all", (32, 32))
    for one, other in zip(data, plain, strict=True):
        assert np.array_equal(one.image, other.image)
        assert (one.image_id, one.label, one.group) == (other.image_id, other.label, other.group)
        assert one.labels.tolist() == other.labels.tolist()
        assert (one.box is None) is (other.box is None)


def test_sixteen_bit_copies_are_found_by_name(root: Path) -> None:
    (root / "images" / "00000003_000.png").unlink()
    np.save(root / "images" / "00000003_000.npy", np.full((8, 8), 2048, np.uint16))
    data = ChestXray14(root, "test", (4, 4), window=(0, 4096))
    assert (data[0].image == 128).all()
    assert data[0].image_id == "00000003_000.png"


def test_a_partial_download_is_complained_about_or_left_out(root: Path) -> None:
    (root / "images" / "00000002_000.png").unlink()
    with pytest.raises(DataError, match=r"Data_Entry_2017\.csv, line 4: .* got none for 1 of 4, first 00000002_000"):
        ChestXray14(root, "all")
    assert len(ChestXray14(root, "all", partial=True)) == 3
    # A table cut down to what is there, under the whole lists.
    (root / "Data_Entry_2017.csv").write_text("\n".join(line for line in ENTRIES.split("\n") if ",Nodule" not in line))
    with pytest.raises(DataError, match=r"train_val_list\.txt, line 3: expected an Image Index .* 00000002_000"):
        ChestXray14(root, "all")
    assert len(ChestXray14(root, "all", partial=True)) == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("test_list.txt", TEST, TEST + "00000001_001.png\n", r"test_list\.txt, line 2: expected an image that train"),
        ("test_list.txt", TEST, "00000003_000.png\n\n00000003_000.png\n", r"test_list\.txt, line 3: .* each name once"),
        ("test_list.txt", TEST, "", r"test_list\.txt: expected a list with one name a line, got an empty file"),
        ("test_list.txt", TEST, "9.png\n", r"test_list\.txt, line 1: expected an Image Index of the Data_Entry table"),
        ("train_val_list.txt", "00000001_000.png\n", "", r"line 2: expected an image of train_val_list\.txt or"),
        ("Data_Entry_2017.csv", "Patient ID", "Who", r"line 1: expected a column for the patient, named 'Patient ID'"),
        ("Data_Entry_2017.csv", "00000002_000", "00000001_000", r"line 4: expected each Image Index once.*in line 2"),
        ("Data_Entry_2017.csv", "Nodule", "Nodul", r"line 4: expected findings of Atelectasis, .*got 'Nodul'"),
        ("Data_Entry_2017.csv", "Nodule", "Nodule|Nodule", r"line 4: expected each finding once"),
        ("Data_Entry_2017.csv", "Nodule", "Nodule|No Finding", r"line 4: expected 'No Finding' alone"),
        ("Data_Entry_2017.csv", ",Nodule,", ",,", r"line 4: expected Finding Labels to be given, got an empty cell"),
        ("Data_Entry_2017.csv", ",2,81,", ",,81,", r"line 4: expected Patient ID to be given"),
        ("Data_Entry_2017.csv", ",2,81,M,PA", ",2", r"line 4: expected 11 cells .*, got 9"),
        ("Data_Entry_2017.csv", ",Nodule,", ',"Nodule,', r"Data_Entry_2017\.csv, line \d: expected cells separated"),
        ("BBox_List_2017.csv", "00000003_000.png,Eff", "3.png,Eff", r"csv, line 5: expected an Image Index of the"),
        ("BBox_List_2017.csv", "Effusion", "No Finding", r"line 5: expected a finding of Atelectasis, .*'No Finding'"),
        ("BBox_List_2017.csv", "100,200,300", "nan,200,300", r"line 5: expected x to be a finite number, got 'nan'"),
        ("BBox_List_2017.csv", "100,200,300", "100,inf,300", r"line 5: expected y to be a finite number"),
        ("BBox_List_2017.csv", "300,400", "300,0", r"line 5: expected a width and height above 0, got 300 and 0"),
        ("BBox_List_2017.csv", "100,200", "1024,200", r"line 5: expected a box that overlaps the image of 1024 x 1024"),
        ("BBox_List_2017.csv", "100,200,300,400", "100,200,300", r"line 5: expected 6 cells .*, got 5"),
        ("BBox_List_2017.csv", "00000003_000.png,Effusion,100,200,300,400", BOXES.split("\n")[2], "line 5.*box once"),
        ("BBox_List_2017.csv", "Bbox [x", "left", r"line 1: expected a column for the box's x"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(root: Path, file: str, old: str, new: str, message: str) -> None:
    text = FILES[file]
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        ChestXray14(root, "all")


def test_a_patient_in_both_lists_is_an_error(root: Path) -> None:
    (root / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    (root / "test_list.txt").write_text("00000003_000.png\n00000001_001.png\n")
    message = (
        r"test_list\.txt, line 2: expected a patient that train_val_list\.txt lacks, "
        r"got 00000001_001\.png of patient 1, of whom 00000001_000\.png is in line 1"
    )
    for split in ("train", "test"):
        with pytest.raises(DataError, match=message):
            ChestXray14(root, split)


def test_missing_files(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder of ChestX-ray14"):
        ChestXray14(tmp_path / "nowhere")
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt: expected the official list beside the other one"):
        ChestXray14(root)
    (root / "test_list.txt").write_text(TEST)
    (root / "images").rename(root / "pictures")
    with pytest.raises(DataError, match=r"images/ or images_001/images/ to images_012/images/, got neither"):
        ChestXray14(root)
    (root / "Data_Entry_2017.csv").unlink()
    with pytest.raises(DataError, match=r"Data_Entry_2017_v2020\.csv or Data_Entry_2017\.csv, got neither"):
        ChestXray14(root)


def test_damaged_and_oblong_images(root: Path) -> None:
    Image.new("L", (40, 64)).save(root / "images" / "00000003_000.png")
    data = ChestXray14(root, "test")
    with pytest.raises(DataError, match=r"00000003_000\.png: expected a square image, .*, got 40 x 64"):
        data[0]
    (root / "images" / "00000003_000.png").write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        data[0]
    with pytest.raises(InputError, match=r"index: expected an index in 0 \.\. 0"):
        data[1]
    for wrong in ({"split": "val"}, {"dev": 1.5}, {"split_seed": -1}, {"window": (5, 5)}, {"size": (0, 4)}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ChestXray14(root, **wrong)


def test_a_box_of_a_finding_that_the_table_lacks_is_left_aside(root: Path) -> None:
    data = ChestXray14(write(root, BBox_List_2017__csv=BOXES.replace("Mass", "Cardiomegaly")), "all")
    assert data.ignored_boxes == 1
    assert data.class_names[data[0].label] == "Infiltration"


def test_open_dataset_and_labels_in_a_models_order(root: Path) -> None:
    data = open_dataset("chestxray14", root=root, split="test", size=(16, 16), findings=["Effusion", "Hernia"])
    assert tuple(data.class_names) == ("Effusion", "Hernia")
    model = Loaded("model", None, (16, 16), class_names=("Hernia", "Mass", "Effusion"))
    moved = with_labels_of(model, data)
    assert isinstance(moved, Relabelled)
    assert moved[0].label == 2
    assert moved[0].labels.tolist() == [True, False, True]
    with pytest.raises(InputError, match="boxed: expected nothing, since folder"):
        open_dataset("folder", root=root, split="test", size=(16, 16), boxed=True)
    with pytest.raises(InputError, match="crop: expected nothing, since chestxray14"):
        open_dataset("chestxray14", root=root, split="test", size=(16, 16), crop="box")


def test_labels_of_a_sample_agree_with_its_label(root: Path) -> None:
    sample = ChestXray14(root, "test", (16, 16))[0]
    parts = {name: getattr(sample, name) for name in ("image_id", "image", "geometry", "label")}
    assert Sample(**parts).labels is None
    with pytest.raises(InputError, match=r"label: expected one of \[0\], as labels say, got 2"):
        Sample(**parts, labels=np.array([True, False, False]))
    with pytest.raises(InputError, match=r"label: expected one of \[-1\]"):
        Sample(**parts, labels=np.zeros(15, bool))
    with pytest.raises(InputError, match="labels: expected dtype bool"):
        Sample(**parts, labels=np.ones(15))
