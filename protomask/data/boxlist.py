"""Lists of boxes: two tables, one line per image and one line per box, and a folder of images.

::

    root/images.csv    id, patientid, view, ...      one line per image: its patient, and whatever can be a class
    root/boxes.csv     id, class, x, y, w, h         pixels of the image; as many lines per image as there are boxes
    root/images/       <id>.jpg, .png, .npy, ...

    BoxList(root, "train", label="view", rename={"AP Supine": "AP"})   # classes from a column
    BoxList(root, "train", task="side")                                # classes made of the boxes, see below

A sample's segmentation is the union of its boxes (rectangles, not outlines), its box is the box around them all, its
group the patient. No patient is in two splits.

**The task "side"** makes of every radiograph two samples and asks which side of the patient each shows. The image is
cut in two, half way between the inner edges of the right and the left lung's boxes; of the two halves a seeded coin
picks one to be mirrored. Both halves of an image then have the spine at the same edge, and in every split it is as
often the left edge for one class as for the other, exactly: where the spine, the cut or the arm is says nothing about
the label. What remains to decide by is anatomy (the heart's shadow, the aortic arch, the gastric bubble, the
diaphragm's height), and what comes with it: the letters L and R that are burned into many radiographs, in mirror
writing or not, the letter that a journal puts into the corner of a figure, pacemakers, lines and tubes. The labels are
honest, as they need no diagnosis; but a model that does well may have read the letter, which is what maps of its
prototypes are to show. The lungs' boxes say where lung is, not what decides: they cover more than half of a half image,
energy inside them tells whether prototypes stay on the chest, not whether they are right, and the heart lies partly
inside the left lung's box, partly between the two. With ``crop="box"`` a half is cut to its own lung, which leaves most
letters out; then the boxes are nearly all there is to see, and energy inside them says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from protomask.checks import check_choice, check_index
from protomask.data._boxes import Box, annotate, read_box
from protomask.data._csv import Table, distinct, read_csv
from protomask.data._patients import check_shares, digest, split_patients
from protomask.data._tables import Row
from protomask.data.images import list_images, read_image
from protomask.data.levels import Window, check_window
from protomask.data.sample import Geometry, Sample
from protomask.data.transforms import CROPS, check_size, make_sample
from protomask.errors import DataError, InputError, expected
from protomask.opening import is_folder

SPLITS = ("train", "dev", "test", "all")
TASKS = ("side",)
SHARES = (0.6, 0.15, 0.25)
SIDES = ("right_lung", "left_lung")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "image_id", "image"),
    "patient": ("patientid", "patient_id", "patient", "Patient ID"),
    "class": ("class", "label", "category", "name"),
    "x": ("x",),
    "y": ("y",),
    "width": ("w", "width"),
    "height": ("h", "height"),
}
"""The names that each column may have; ``width`` and ``height`` are a box's in boxes.csv, the image's in images.csv."""


@dataclass(frozen=True, eq=False)
class _Record:
    name: str
    row: Row
    path: Path
    patient: str
    size: tuple[int, int] | None  # (height, width) as the table says
    boxes: Sequence[Box]


@dataclass(frozen=True, eq=False)
class _Item:
    """A sample to be: ``window`` is what it shows of the image, xyxy in original pixels, cut at the image's edges."""

    image_id: str
    record: _Record
    label: int
    window: tuple[float, float, float, float] = (0.0, 0.0, math.inf, math.inf)
    mirrored: bool = False


class BoxList:
    """One split of a list of boxes, in the order of ``images.csv``; see the module's own words.

    Attributes:
        name: ``"boxes"``.
        class_names: the values of the label's column, sorted, over all splits; for the task ``"side"`` the two sides.
        part_names: none.
        image_ids: by index, the image's path below ``images/``; a half's ends in ``#`` and the side.
        labels: by index.
        groups: by index, the patient.
    """

    name: str = "boxes"
    class_names: Sequence[str]
    part_names: Sequence[str] = ()

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] = (224, 224),
        crop: str = "none",
        *,
        label: str | None = None,
        task: str | None = None,
        rename: Mapping[str, str] | None = None,
        sides: Sequence[str] = SIDES,
        columns: Mapping[str, str] | None = None,
        shares: Sequence[float] = SHARES,
        split_seed: int = 0,
        window: Window | None = None,
    ) -> None:
        """Read and check the tables.

        Args:
            root: the folder with ``images.csv`` and ``boxes.csv``.
            split: ``"train"``, ``"dev"``, ``"test"`` or ``"all"``.
            size: (height, width) of the samples, pixels.
            crop: ``"none"``, or ``"box"`` to cut at the box around all boxes first; of the task ``"side"`` a half then
                reaches from its lung's outer edge to the cut between the lungs, and is as high as its lung.
            label: the column of ``images.csv`` that holds the class. Either this or ``task``.
            task: ``"side"``, see the module.
            rename: values of the label's column to take for others, so that classes merge.
            sides: of the task ``"side"``, what ``boxes.csv`` calls the right and the left lung.
            columns: how the tables name a column, by its key in :data:`COLUMNS`, where it is none of those names.
            shares: of the patients in train, dev and test; they sum to 1.
            split_seed: of the split and of the coin that mirrors; apart from the training's seed, so that a model
                trained with any seed is never tested on its own training patients.
            window: (low, high) of pixels with more than 8 bits, see :func:`protomask.data.images.read_image`.

        Raises:
            InputError: an unknown split or task, both or neither of label and task, or an option out of range.
            DataError: a file is missing, malformed, or disagrees with another; the message names file, line, column.
        """
        self.root = Path(root)
        self.split = check_choice("split", split, SPLITS)
        self.size = check_size(size)
        self.window = check_window(window)
        if (label is None) == (task is None):
            raise InputError(expected("label, task", "one of them", "neither" if label is None else "both"))
        self.crop = check_choice("crop", crop, CROPS)
        ratio = check_shares("shares", shares)
        table = _open_table(self.root / "images.csv")
        records = _records(self.root, table, _Names(columns))
        if task is None:
            self.class_names, items = _by_column(table, records, str(label), rename or {}, crop)
        else:
            check_choice("task", task, TASKS)
            if rename:
                raise InputError(expected("rename", "nothing, since the task has its own classes", dict(rename)))
            self.class_names = _two(sides)
            items = [half for record in records for half in _halves(record, self.class_names, crop, split_seed)]
        named = dict(zip(("train", "dev", "test"), ratio, strict=True))
        of_patient = split_patients((r.patient for r in records), named, split_seed)
        self._items = [i for i in items if split in (of_patient[i.record.patient], "all")]
        if not self._items:
            raise DataError(expected(str(self.root), f"at least one image in the split {split!r}", "none"))
        self.image_ids = tuple(item.image_id for item in self._items)
        self.labels = tuple(item.label for item in self._items)
        self.groups = tuple(item.record.patient for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, with its boxes and the patient as its group.

        Raises:
            InputError: the index is out of range.
            DataError: the image is missing or corrupt, of another size than the table says, or a box lies outside it.
        """
        item = self._items[check_index("index", index, len(self))]
        image = read_image(item.record.path, self.window)
        height, width = image.shape[:2]
        _check_size(item.record, (height, width))
        x0, y0, x1, y1 = _whole_pixels(item, (height, width))
        part = image[y0:y1, x0:x1]
        plain = make_sample(
            item.image_id,
            np.ascontiguousarray(part[:, ::-1] if item.mirrored else part),
            item.label,
            self.size,
            group=item.record.patient,
        )
        left, right = (x1, x0) if item.mirrored else (x0, x1)
        window = (float(left), float(y0), float(right), float(y1))
        sample = replace(plain, geometry=Geometry((height, width), window, self.size))
        return annotate(sample, np.array([box.edges for box in item.record.boxes]).reshape(-1, 4))

    def path(self, index: int) -> Path:
        """The image file of sample ``index``."""
        return self._items[check_index("index", index, len(self))].record.path

    def without_part(self, index: int, part: int) -> None:
        """None: no part is annotated, since a lung is too large to be in-painted believably."""


class _Names:
    """What the tables may call each column: the user's word alone where there is one."""

    def __init__(self, given: Mapping[str, str] | None) -> None:
        self._given = dict(given or {})
        unknown = [key for key in self._given if key not in COLUMNS]
        if unknown:
            raise InputError(expected("columns", f"keys of {', '.join(COLUMNS)}", repr(unknown[0])))

    def of(self, key: str) -> tuple[str, ...]:
        return (self._given[key],) if key in self._given else COLUMNS[key]


def _open_table(path: Path) -> Table:
    if not is_folder(path.parent):
        raise DataError(expected(str(path.parent), "a folder with images.csv and boxes.csv", "no such folder"))
    return read_csv(path)


def _records(root: Path, table: Table, names: _Names) -> list[_Record]:
    rows = distinct(table, table.column("the image", names.of("id")), "image")
    patient = table.column("the patient", names.of("patient"))
    sides = [table.find(names.of(key)) for key in ("height", "width")]
    files = _files(root / "images")
    boxes = _boxes(_open_table(root / "boxes.csv"), names, rows)
    records = []
    for name, row in rows.items():
        size = _stated_size(row, sides)
        if name not in files:
            raise row.complaint(f"an image {name} in {root / 'images'}", "none")
        if len(files[name]) > 1:
            raise row.complaint(f"one image for {name}", ", ".join(sorted(p.name for p in files[name])))
        for box in boxes.get(name, ()):
            if size is not None:
                box.check(size)
        whose = row.text(patient, table.header[patient])
        records.append(_Record(name, row, files[name][0], whose, size, boxes.get(name, ())))
    return records


def _files(folder: Path) -> dict[str, list[Path]]:
    """The image files by their paths below the folder, with and without suffix."""
    found: dict[str, list[Path]] = {}
    for path in list_images(folder):
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        for name in (str(relative), str(relative.with_suffix(""))):
            found.setdefault(name, []).append(path)
    return found


def _stated_size(row: Row, columns: Sequence[int | None]) -> tuple[int, int] | None:
    height, width = columns
    return None if height is None or width is None else (row.count(height, "height"), row.count(width, "width"))


def _check_size(record: _Record, size: tuple[int, int]) -> None:
    if record.size not in (None, size):
        raise record.row.complaint(f"the size of {record.path.name}, {size[1]} x {size[0]}", record.size)
    for box in record.boxes:
        box.check(size)


def _boxes(table: Table, names: _Names, known: Mapping[str, Row]) -> dict[str, list[Box]]:
    image, kind = (table.column(f"the box's {key}", names.of(key)) for key in ("id", "class"))
    columns = [table.column(f"the box's {key}", names.of(key)) for key in ("x", "y", "width", "height")]
    found: dict[str, list[Box]] = {}
    seen: dict[tuple[object, ...], Row] = {}
    for row in table.rows:
        name, of = row.text(image, table.header[image]), row.text(kind, table.header[kind])
        if name not in known:
            raise row.complaint("an image of images.csv", name)
        box = read_box(of, row, columns)
        first = seen.setdefault((name, of, box.edges), row)
        if first is not row:
            raise row.complaint("each box once", f"that of line {first.line} again")
        found.setdefault(name, []).append(box)
    return found


def _whole_pixels(item: _Item, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What the sample shows, rounded outwards to whole pixels and cut at the image's edges."""
    x0, y0 = (math.floor(max(0.0, edge)) for edge in item.window[:2])
    x1, y1 = (math.ceil(min(edge, side)) for edge, side in zip(item.window[2:], size[::-1], strict=True))
    if x0 >= x1 or y0 >= y1:
        wanted = f"boxes that meet within the image of {size[1]} x {size[0]} pixels"
        raise item.record.row.complaint(wanted, f"x {x0} to {x1}, y {y0} to {y1}")
    return x0, y0, x1, y1


def _by_column(
    table: Table, records: Sequence[_Record], label: str, rename: Mapping[str, str], crop: str
) -> tuple[tuple[str, ...], list[_Item]]:
    column = table.column("the class", (label,))
    values = [record.row.text(column, label) for record in records]
    unknown = sorted(set(rename) - set(values))
    if unknown:
        raise InputError(expected("rename", f"values of {label}: {', '.join(sorted(set(values)))}", repr(unknown[0])))
    values = [rename.get(value, value) for value in values]
    classes = tuple(sorted(set(values)))
    whole = _Item.window
    items = [
        _Item(_image_id(r), r, classes.index(value), _around(r) if crop == "box" else whole)
        for r, value in zip(records, values, strict=True)
    ]
    return classes, items


def _around(record: _Record) -> tuple[float, float, float, float]:
    if not record.boxes:
        raise record.row.complaint("a box to cut at", f"none for {record.name}")
    x0, y0, x1, y1 = zip(*(box.edges for box in record.boxes), strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _two(sides: Sequence[str]) -> tuple[str, str]:
    if isinstance(sides, str) or len(sides) != 2 or sides[0] == sides[1]:
        raise InputError(expected("sides", "what boxes.csv calls the right and the left lung", repr(sides)))
    return sides[0], sides[1]


def _halves(record: _Record, sides: Sequence[str], crop: str, seed: int) -> Iterator[_Item]:
    """The two halves of a radiograph, by label, one of them mirrored."""
    lungs = [_only(record, side) for side in sides]
    first, second = sorted(lungs, key=_centre)
    cut = round((first.edges[2] + second.edges[0]) / 2)
    if not max(0, _centre(first)) < cut < _centre(second):
        raise second.row.complaint(f"a box beside that of line {first.row.line}", "one that covers its middle")
    coin = digest(seed, f"mirror/{record.name}")[0] & 1
    for label, side in enumerate(sides):
        x0, y0, x1, y1 = lungs[label].edges if crop == "box" else _Item.window
        window = (x0, y0, float(cut), y1) if lungs[label] is first else (float(cut), y0, x1, y1)
        yield _Item(f"{_image_id(record)}#{side}", record, label, window, mirrored=label == coin)


def _centre(box: Box) -> float:
    return (box.edges[0] + box.edges[2]) / 2


def _only(record: _Record, side: str) -> Box:
    found = [box for box in record.boxes if box.name == side]
    if len(found) != 1:
        raise record.row.complaint(f"one box {side!r} for {record.name}, as the task needs", len(found))
    return found[0]


def _image_id(record: _Record) -> str:
    # A file in a folder of its own keeps the folder in its name, so that names stay apart.
    return str(PurePosixPath(record.name).parent / record.path.name)
