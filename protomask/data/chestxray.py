"""NIH ChestX-ray14 in its standard files (Wang et al., CVPR 2017), the whole set or any part of it.

``root`` holds ``Data_Entry_2017_v2020.csv`` or ``Data_Entry_2017.csv``, the images in ``images/`` or in
``images_001/images/`` to ``images_012/images/``, and, where the user has them, ``BBox_List_2017.csv`` and the official
``train_val_list.txt`` and ``test_list.txt``. The tables are read and checked when the data set is opened, the images
when they are asked for. ::

    ChestXray14(root, "train")                                     # 15 classes; sample.labels has all of an image
    ChestXray14(root, "test", findings=["Mass", "Nodule"], boxed=True)  # a sample per image and finding with boxes

**One label of several.** ``sample.labels`` are all findings of the image. ``sample.label`` is the first, in the order
of :data:`CLASSES`, of those that have a box in this image, else the first of all; with ``boxed`` every finding that has
a box gets a sample of its own. The findings were mined from reports by text analysis, and many are wrong.

**What is annotated.** Radiologists boxed eight findings in 880 images. A sample's segmentation is the union of the
boxes of its *label*; boxes of other findings in the same image do not count. It is made of boxes, not of outlines: IoU
and energy are measured against rectangles, and a map that follows a lesion's contour cannot reach 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from protomask.checks import check_choice, check_index, check_number
from protomask.data._boxes import Box, annotate, read_box
from protomask.data._csv import Table, distinct, read_csv, read_names
from protomask.data._patients import split_patients
from protomask.data._tables import Row
from protomask.data.images import is_image, read_image
from protomask.data.levels import Window, check_window
from protomask.data.sample import Sample
from protomask.data.transforms import check_size, make_sample
from protomask.errors import DataError, InputError, expected
from protomask.opening import is_file, is_folder

SPLITS = ("train", "dev", "test", "all")
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
CLASSES = (*FINDINGS, NO_FINDING)
BOX_NAMES = {"Infiltrate": "Infiltration"}  # the box list's own word
BOX_FRAME = 1024  # pixels: the side of the published images, which the boxes are drawn on
TEST_SHARE = 0.2  # of the patients, where there are no official lists

_ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


@dataclass(frozen=True, eq=False)
class _Record:
    name: str
    row: Row
    patient: str
    findings: tuple[str, ...]
    boxes: Mapping[str, Sequence[Box]]


@dataclass(frozen=True, eq=False)
class _Item:
    record: _Record
    path: Path
    label: int
    labels: np.ndarray


class ChestXray14:
    """ChestX-ray14, one split of it, in the order of the table.

    No patient is in two splits. With the official lists, ``"test"`` is ``test_list.txt``, and the patients of
    ``train_val_list.txt`` are shared out to ``"train"`` and ``"dev"``; without lists all three are drawn by patient.

    Attributes:
        name: ``"chestxray14"``.
        class_names: those of :data:`CLASSES` that were chosen, in that order.
        part_names: none.
        image_ids: by index, the file name in the table; with ``boxed`` an image may come more than once.
        labels: by index, the one label.
        groups: by index, the patient.
        ignored_boxes: how many boxes are of a finding that the table does not give their image.
    """

    name: str = "chestxray14"
    class_names: Sequence[str]
    part_names: Sequence[str] = ()

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] = (224, 224),
        *,
        findings: Sequence[str] | None = None,
        boxed: bool = False,
        negatives: bool = False,
        dev: float = 0.125,
        split_seed: int = 0,
        window: Window | None = None,
        partial: bool = False,
    ) -> None:
        """Read and check the tables.

        Args:
            root: the folder with the tables.
            split: ``"train"``, ``"dev"``, ``"test"`` or ``"all"``.
            size: (height, width) of the samples, pixels.
            findings: the classes to keep, of :data:`CLASSES`, all where None; an image without any of them is left out,
                and of what an image has only these are told. ``"No Finding"`` is a class like the others.
            boxed: only findings with boxes, one sample for each image and finding: for evaluation.
            negatives: keep the images without any of the findings, as multi-label training wants them: ``labels`` all
                False, ``label`` -1. What trains or evaluates on one class per image refuses those. The fourteen
                :data:`FINDINGS` with negatives are the usual task.
            dev: the share of the patients outside test that makes up ``"dev"``, in [0, 1].
            split_seed: of what is drawn; apart from the training's seed, so that a model trained with any seed is never
                tested on its own training patients.
            window: (low, high) of pixels with more than 8 bits, see :func:`protomask.data.images.read_image`.
            partial: leave out images that are not there, as in a partial download, instead of complaining.

        Raises:
            InputError: an unknown split or finding, or an option out of range.
            DataError: a file is missing, malformed, or disagrees with another, or a patient is in both official lists;
                the message names file and line.
        """
        self.root = Path(root)
        self.split = check_choice("split", split, SPLITS)
        self.size = check_size(size)
        self.class_names = _chosen(findings)
        self.window = check_window(window)
        check_number("dev", dev, 0, 1)
        if boxed and negatives:
            raise InputError(expected("boxed, negatives", "one of them, since negatives have no box", "both"))
        records, self.ignored_boxes = _read_tables(self.root)
        wanted = _in_split(self.root, records, split, dev, split_seed, partial)
        files = _files(self.root)
        _check_present(records, files, partial)
        self._items = [
            _Item(record, files[PurePosixPath(record.name).stem], label, labels)
            for record in records
            if record.name in wanted and PurePosixPath(record.name).stem in files
            for label, labels in _labels(record, self.class_names, boxed, negatives)
        ]
        if not self._items:
            what = "image with a box" if boxed else "image"
            of = f"of {', '.join(self.class_names)} in the split {split!r}"
            raise DataError(expected(str(self.root), f"at least one {what} {of}", "none"))
        self.image_ids = tuple(item.record.name for item in self._items)
        self.labels = tuple(item.label for item in self._items)
        self.groups = tuple(item.record.patient for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, with all labels, the patient as its group, and the boxes of its label as segmentation.

        Raises:
            InputError: the index is out of range.
            DataError: the image is missing or corrupt, or has boxes and is not square.
        """
        item = self._items[check_index("index", index, len(self))]
        image = read_image(item.path, self.window)
        plain = make_sample(item.record.name, image, item.label, self.size, group=item.record.patient)
        sample = replace(plain, labels=item.labels.copy())
        boxes = () if item.label == -1 else item.record.boxes.get(self.class_names[item.label], ())
        return annotate(sample, _edges(boxes, item, image.shape[:2])) if boxes else sample

    def path(self, index: int) -> Path:
        """The image file of sample ``index``."""
        return self._items[check_index("index", index, len(self))].path

    def without_part(self, index: int, part: int) -> None:
        """None: no part is annotated."""


def _read_tables(root: Path) -> tuple[list[_Record], int]:
    if not is_folder(root):
        raise DataError(expected(str(root), f"the folder of ChestX-ray14, with {_ENTRIES[0]}", "no such folder"))
    found = next((root / name for name in _ENTRIES if is_file(root / name)), None)
    if found is None:
        raise DataError(expected(str(root), f"a file {' or '.join(_ENTRIES)}", "neither"))
    table = read_csv(found)
    names = distinct(table, table.column("the image", ["Image Index"]), "Image Index")
    labels = table.column("the findings", ["Finding Labels"])
    patient = table.column("the patient", ["Patient ID"])
    boxes = _read_boxes(root / "BBox_List_2017.csv", names)
    records, ignored = [], 0
    for name, row in names.items():
        findings = _findings(row, labels)
        of_image = boxes.get(name, {})
        ignored += sum(len(listed) for finding, listed in of_image.items() if finding not in findings)
        kept = {finding: listed for finding, listed in of_image.items() if finding in findings}
        records.append(_Record(name, row, row.text(patient, "Patient ID"), findings, kept))
    return records, ignored


def _findings(row: Row, column: int) -> tuple[str, ...]:
    named = [part.strip() for part in row.text(column, "Finding Labels").split("|")]
    unknown = [name for name in named if name not in CLASSES]
    if unknown:
        raise row.complaint(f"findings of {', '.join(CLASSES)}", repr(unknown[0]))
    if len(set(named)) < len(named):
        raise row.complaint("each finding once", "|".join(named))
    if NO_FINDING in named and len(named) > 1:
        raise row.complaint(f"{NO_FINDING!r} alone", "|".join(named))
    return tuple(name for name in CLASSES if name in named)


def _read_boxes(path: Path, known: Mapping[str, Row]) -> dict[str, dict[str, list[Box]]]:
    """Boxes in the frame of :data:`BOX_FRAME`, by image and finding; none where there is no file."""
    if not is_file(path):
        return {}
    table = read_csv(path)
    image = table.column("the image", ["Image Index"])
    finding = table.column("the finding", ["Finding Label"])
    columns = _box_columns(table)
    found: dict[str, dict[str, list[Box]]] = {}
    seen: dict[tuple[object, ...], Row] = {}
    for row in table.rows:
        name, label = row.text(image, "Image Index"), row.text(finding, "Finding Label")
        label = BOX_NAMES.get(label, label)
        if name not in known:
            raise row.complaint("an Image Index of the Data_Entry table", name)
        if label not in FINDINGS:
            raise row.complaint(f"a finding of {', '.join(FINDINGS)}", repr(label))
        box = read_box(label, row, columns)
        box.check((BOX_FRAME, BOX_FRAME))
        first = seen.setdefault((name, label, box.edges), row)
        if first is not row:
            raise row.complaint("each box once", f"that of line {first.line} again")
        found.setdefault(name, {}).setdefault(label, []).append(box)
    return found


def _box_columns(table: Table) -> tuple[int, ...]:
    # The published header has the four names in one pair of brackets, so commas cut it into "Bbox [x" ... "h]".
    wanted = (["Bbox [x", "x"], ["y"], ["w"], ["h]", "h"])
    return tuple(table.column(f"the box's {names[-1]}", names) for names in wanted)


def _in_split(
    root: Path, records: Sequence[_Record], split: str, dev: float, seed: int, partial: bool
) -> frozenset[str]:
    """The images in a split."""
    patients = [r.patient for r in records]
    listed = {name: root / file for name, file in _LISTS.items() if is_file(root / file)}
    if len(listed) == 1:
        missing = next(file for name, file in _LISTS.items() if name not in listed)
        raise DataError(expected(str(root / missing), "the official list beside the other one", "no such file"))
    if listed:
        tested = _official(listed, records, partial)
        others = {r.patient for r in records if r.name not in tested}
        of_patient = split_patients(others, {"dev": dev, "train": 1 - dev}, seed)
        splits = {r.name: "test" if r.name in tested else of_patient[r.patient] for r in records}
    else:
        rest = 1 - TEST_SHARE
        shares = {"test": TEST_SHARE, "dev": rest * dev, "train": rest * (1 - dev)}
        of_patient = split_patients(patients, shares, seed)
        splits = {r.name: of_patient[r.patient] for r in records}
    return frozenset(name for name, of in splits.items() if split in (of, "all"))


def _official(lists: Mapping[str, Path], records: Sequence[_Record], partial: bool) -> frozenset[str]:
    """The images of the test list, after both lists are found to share out images and patients."""
    names = {split: read_names(path) for split, path in lists.items()}
    patients = {r.name: r.patient for r in records}
    trained: dict[str, str] = {}
    for split, listed in names.items():
        for name, line in listed.items():
            row = Row(lists[split], line, (name,))
            if name not in patients:
                if partial:
                    continue
                raise row.complaint("an Image Index of the Data_Entry table", name)
            if split == "train":
                trained.setdefault(patients[name], name)
            elif name in names["train"]:
                raise row.complaint(f"an image that {_LISTS['train']} lacks", f"{name}, in line {names['train'][name]}")
            elif patients[name] in trained:
                other = trained[patients[name]]
                came = f"{name} of patient {patients[name]}, of whom {other} is in line {names['train'][other]}"
                raise row.complaint(f"a patient that {_LISTS['train']} lacks", came)
    for record in records:
        if not any(record.name in listed for listed in names.values()):
            raise record.row.complaint(f"an image of {' or '.join(_LISTS.values())}", record.name)
    return frozenset(names["test"])


def _files(root: Path) -> dict[str, Path]:
    """The image files by their names without suffix, so that a copy of the set in another format is found too."""
    folders = [root / "images", *sorted(root.glob("images_[0-9][0-9][0-9]/images"))]
    present = [folder for folder in folders if is_folder(folder)]
    if not present:
        raise DataError(expected(str(root), "images/ or images_001/images/ to images_012/images/", "neither"))
    found: dict[str, Path] = {}
    for folder in present:
        for path in _listed(folder):
            found.setdefault(path.stem, path)
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_image(path))
    except OSError as error:
        raise DataError(expected(str(folder), "a folder that can be listed", error)) from error


def _check_present(records: Sequence[_Record], files: Mapping[str, Path], partial: bool) -> None:
    missing = [r for r in records if PurePosixPath(r.name).stem not in files]
    if missing and not partial:
        wanted = "an image for every line, or partial=True to leave out what is not there"
        raise missing[0].row.complaint(wanted, f"none for {len(missing)} of {len(records)}, first {missing[0].name}")


def _labels(record: _Record, classes: Sequence[str], boxed: bool, negatives: bool) -> Iterator[tuple[int, np.ndarray]]:
    """The label and all labels [C] of each sample that the image gives."""
    labels = np.array([name in record.findings for name in classes])
    with_boxes = [k for k, name in enumerate(classes) if name in record.boxes]
    if boxed:
        yield from ((k, labels) for k in with_boxes)
    elif labels.any():
        yield (with_boxes or np.flatnonzero(labels).tolist())[0], labels
    elif negatives:
        yield -1, labels


def _edges(boxes: Sequence[Box], item: _Item, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    if height != width:
        wanted = f"a square image, since its boxes are drawn on {BOX_FRAME} x {BOX_FRAME} pixels"
        raise DataError(expected(str(item.path), wanted, f"{width} x {height}"))
    return np.array([box.edges for box in boxes]) * (width / BOX_FRAME)


def _chosen(findings: Sequence[str] | None) -> tuple[str, ...]:
    if findings is None:
        return CLASSES
    chosen = set() if isinstance(findings, str) else set(findings)
    if not chosen or not chosen <= set(CLASSES):
        raise InputError(expected("findings", f"some of {', '.join(CLASSES)}", repr(findings)))
    return tuple(name for name in CLASSES if name in chosen)
