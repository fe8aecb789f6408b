"""Caltech-UCSD Birds-200-2011 in its standard files (Wah et al. 2011), the whole set or any part of it.

``root`` holds ``images/``, ``images.txt``, ``image_class_labels.txt``, ``classes.txt``, ``train_test_split.txt``,
``bounding_boxes.txt`` and ``parts/``; the segmentations come as a folder of their own. The tables are read and checked
when the data set is opened, the images when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from protomask.checks import check_choice, check_index
from protomask.data._boxes import box_edges
from protomask.data._tables import Row, by_id, read_rows
from protomask.data.images import read_image
from protomask.data.inpaint import PART_RADIUS, inpaint_disc
from protomask.data.sample import Sample
from protomask.data.transforms import CROPS, check_size, make_sample
from protomask.errors import DataError, InputError, expected
from protomask.opening import is_folder

SPLITS = ("train", "test", "all")
SEGMENTED = 128  # of 255: the grey values are shares of annotators, so the majority's pixels


@dataclass(frozen=True, eq=False)
class _Record:
    path: str
    class_id: int
    train: bool
    box: tuple[float, float, float, float]
    points: np.ndarray


class Cub:
    """CUB-200-2011, one split of it, ordered by image id.

    Ids and labels need not be contiguous: labels are 0 .. n - 1 by ascending class id over the classes that have an
    image in either split, so that both splits label alike.

    Attributes:
        name: ``"cub"``.
        class_names: by label, ``"017.Cardinal"`` told as ``"Cardinal"``.
        class_ids: by label, the id in ``classes.txt``.
        part_names: by part, in the order of ``parts.txt``.
        image_ids: by index, the path in ``images.txt``.
        labels: by index.
    """

    name: str = "cub"
    class_names: Sequence[str]
    part_names: Sequence[str]

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] = (224, 224),
        crop: str = "none",
        species: Sequence[int] | None = None,
        segmentations: str | Path | None = None,
    ) -> None:
        """Read and check the tables.

        Args:
            root: the folder with ``images.txt``.
            split: ``"train"`` or ``"test"`` by ``train_test_split.txt``, or ``"all"``.
            size: (height, width) of the samples, pixels.
            crop: ``"none"``, or ``"box"`` to cut at the bounding box first.
            species: class ids of ``classes.txt`` to keep; all where None.
            segmentations: their folder; where None, ``root/segmentations`` or the one beside ``root``, if there.

        Raises:
            InputError: an unknown split or crop, or species that the data does not have.
            DataError: a file is missing, malformed, or disagrees with another; the message names file and line.
        """
        self.root = Path(root)
        self.split = check_choice("split", split, SPLITS)
        self.size = check_size(size)
        self.crop = check_choice("crop", crop, CROPS)
        names, self.part_names, records = _read_tables(self.root)
        self.class_ids = _chosen(species, sorted({r.class_id for r in records}))
        self.class_names = tuple(names[k] for k in self.class_ids)
        label = {k: i for i, k in enumerate(self.class_ids)}
        wanted = {"train": (True,), "test": (False,), "all": (True, False)}[split]
        self._records = [r for r in records if r.class_id in label and r.train in wanted]
        if not self._records:
            raise DataError(expected(str(self.root), f"at least one image in the split {split!r}", "none"))
        self.image_ids = tuple(r.path for r in self._records)
        self.labels = tuple(label[r.class_id] for r in self._records)
        self._segmentations = _segmentation_folder(self.root, segmentations, self.image_ids[0])
        self._recent: tuple[int, Sample] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, with box, points and, where there are some, its segmentation.

        Raises:
            InputError: the index is out of range.
            DataError: the image or its segmentation is missing or corrupt, or they differ in size, or the box lies
                outside the image.
        """
        record = self._records[check_index("index", index, len(self))]
        image = read_image(self.path(index))
        return make_sample(
            record.path,
            image,
            self.labels[index],
            self.size,
            crop=self.crop,
            box=np.array(record.box),
            points=record.points,
            segmentation=self._segmentation(record.path, image.shape[:2]),
        )

    def path(self, index: int) -> Path:
        """The image file of sample ``index``."""
        return self.root / "images" / self.image_ids[check_index("index", index, len(self))]

    def without_part(self, index: int, part: int) -> np.ndarray | None:
        """Sample ``index``'s image [H, W, 3] uint8 with a disc around ``part`` in-painted, None where not visible.

        The disc's radius is :data:`PART_RADIUS` x the diagonal of the sample's box, in sample pixels.
        """
        check_index("part", part, len(self.part_names))
        sample = self._sample(check_index("index", index, len(self)))
        if sample.points is None or sample.box is None or np.isnan(sample.points[part]).any():
            return None
        x, y = sample.points[part].tolist()
        radius = PART_RADIUS * float(np.hypot(*(sample.box[2:] - sample.box[:2])))
        return inpaint_disc(sample.image, x, y, radius)

    def _sample(self, index: int) -> Sample:
        # All parts of one image are asked for in a row: decode it once.
        if self._recent is None or self._recent[0] != index:
            self._recent = (index, self[index])
        return self._recent[1]

    def _segmentation(self, image_id: str, size: tuple[int, ...]) -> np.ndarray | None:
        if self._segmentations is None:
            return None
        path = (self._segmentations / image_id).with_suffix(".png")
        pixels = read_image(path)[..., 0]
        if pixels.shape != tuple(size):
            raise DataError(expected(str(path), f"the image's size {size[1]} x {size[0]}", pixels.shape[::-1]))
        return pixels >= SEGMENTED


def _read_tables(root: Path) -> tuple[dict[int, str], tuple[str, ...], list[_Record]]:
    if not is_folder(root):
        raise DataError(expected(str(root), "the folder of CUB-200-2011, with images.txt", "no such folder"))
    images = by_id(read_rows(root / "images.txt", ("image_id", "path"), open_end=True), "image_id")
    paths = _paths(images)
    classes = by_id(read_rows(root / "classes.txt", ("class_id", "name"), open_end=True), "class_id")
    labels = _per_image(root, "image_class_labels.txt", ("image_id", "class_id"), paths)
    splits = _per_image(root, "train_test_split.txt", ("image_id", "is_training_image"), paths)
    boxes = _per_image(root, "bounding_boxes.txt", ("image_id", "x", "y", "width", "height"), paths)
    parts = by_id(read_rows(root / "parts" / "parts.txt", ("part_id", "name"), open_end=True), "part_id")
    points = _points(root / "parts" / "part_locs.txt", paths, sorted(parts))
    records = [
        _Record(paths[k], _class(labels[k], classes), splits[k].flag(1, "is_training_image"), _box(boxes[k]), points[k])
        for k in sorted(paths)
    ]
    names = {k: re.sub(r"^\d+\.", "", row.cells[1]).replace("_", " ") for k, row in classes.items()}
    return names, tuple(parts[k].cells[1] for k in sorted(parts)), records


def _per_image(root: Path, name: str, columns: tuple[str, ...], known: dict[int, str]) -> dict[int, Row]:
    return by_id(read_rows(root / name, columns), "image_id", known, "images.txt")


def _paths(images: dict[int, Row]) -> dict[int, str]:
    first: dict[str, Row] = {}
    for row in images.values():
        path = row.cells[1]
        if _leaves(path) or not PurePosixPath(path).name:
            raise row.complaint("a path below images/", repr(path))
        if path in first:
            raise row.complaint("each path once", f"{path!r} again, first in line {first[path].line}")
        first[path] = row
    return {k: row.cells[1] for k, row in images.items()}


def _leaves(path: str) -> bool:
    """Whether a path leads out of its folder, on any system."""
    read = (PurePosixPath(path), PureWindowsPath(path))
    return any(p.anchor or ".." in p.parts for p in read)


def _class(row: Row, classes: dict[int, Row]) -> int:
    class_id = row.count(1, "class_id")
    if class_id not in classes:
        raise row.complaint("a class_id of classes.txt", class_id)
    return class_id


def _box(row: Row) -> tuple[float, float, float, float]:
    x, y, width, height = (row.number(i, n) for i, n in enumerate(("x", "y", "width", "height"), start=1))
    return box_edges(row, x, y, width, height)


def _points(path: Path, images: dict[int, str], parts: list[int]) -> dict[int, np.ndarray]:
    column = {k: i for i, k in enumerate(parts)}
    points = {k: np.full((len(parts), 2), np.nan) for k in images}
    seen: dict[tuple[int, int], int] = {}
    for row in read_rows(path, ("image_id", "part_id", "x", "y", "visible")):
        key = (row.count(0, "image_id"), row.count(1, "part_id"))
        if key[0] not in images:
            raise row.complaint("an image_id of images.txt", key[0])
        if key[1] not in column:
            raise row.complaint("a part_id of parts.txt", key[1])
        if key in seen:
            raise row.complaint("each part of an image once", f"image {key[0]}, part {key[1]} as in line {seen[key]}")
        seen[key] = row.line
        x, y, visible = row.number(2, "x"), row.number(3, "y"), row.flag(4, "visible")
        if visible:
            points[key[0]][column[key[1]]] = x, y
    if len(seen) != len(images) * len(parts):
        image, part = next((i, p) for i in images for p in parts if (i, p) not in seen)
        raise DataError(expected(str(path), "a line for every image and part", f"none for image {image}, part {part}"))
    return points


def _chosen(species: Sequence[int] | None, present: list[int]) -> tuple[int, ...]:
    if species is None:
        return tuple(present)
    chosen = sorted(set(species))
    if not chosen or any(k not in present for k in chosen):
        ids = ", ".join(str(k) for k in present)
        raise InputError(expected("species", f"class ids that have images ({ids})", list(species)))
    return tuple(chosen)


def _segmentation_folder(root: Path, given: str | Path | None, image_id: str) -> Path | None:
    if given is not None:
        if not is_folder(given):
            raise DataError(expected("segmentations", "a folder", given))
        return Path(given)
    # The published archive unpacks beside the data set; a folder of another's is known by its lack of our classes.
    found = (p for p in (root / "segmentations", root.parent / "segmentations") if is_folder((p / image_id).parent))
    return next(found, None)
