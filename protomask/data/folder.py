"""Any folder of images, with classes from its sub-folders or with none.

::

    root/train/Cardinal/a.jpg  root/test/Cardinal/b.jpg     the splits are the folders (val/ where there is no test/)
    root/Cardinal/a.jpg        root/Mallard/c.jpg           classes; the split is drawn, see :func:`draw_split`
    root/a.jpg                 root/b.jpg                   one class, "unlabelled"; the split is drawn
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from protomask.checks import check_choice, check_index, check_number
from protomask.data.images import list_images, read_image
from protomask.data.levels import Window, check_window
from protomask.data.sample import Sample
from protomask.data.transforms import check_size, make_sample
from protomask.errors import DataError, expected
from protomask.opening import is_folder, readable_name

SPLITS = ("train", "test", "all")
UNLABELLED = "unlabelled"


class Folder:
    """One split of a folder of images, without annotations, ordered by class and path.

    Attributes:
        name: ``"folder"``.
        class_names: the sub-folders' names, sorted, over both splits; ``("unlabelled",)`` without sub-folders.
        part_names: none.
        image_ids: by index, the path relative to ``root``.
        labels: by index.
    """

    name: str = "folder"
    class_names: Sequence[str]
    part_names: Sequence[str] = ()

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] = (224, 224),
        *,
        fraction: float = 0.8,
        split_seed: int = 0,
        window: Window | None = None,
    ) -> None:
        """List the files; no image is opened yet.

        Args:
            root: the folder.
            split: ``"train"``, ``"test"`` or ``"all"``.
            size: (height, width) of the samples, pixels.
            fraction: the share of each class that a drawn split trains on, in (0, 1]. Unused where folders say it.
            split_seed: of a drawn split; apart from the training's seed, so that a model trained with any seed is
                never tested on an image that it was trained on.
            window: (low, high) of pixels with more than 8 bits, see :func:`protomask.data.images.read_image`.

        Raises:
            InputError: an unknown split, a fraction out of range, no window.
            DataError: no such folder, no image in the split, or images beside class folders.
        """
        self.root = Path(root)
        self.split = check_choice("split", split, SPLITS)
        self.size = check_size(size)
        self.window = check_window(window)
        check_number("fraction", fraction, 0, 1, open_low=True)
        if not is_folder(self.root):
            raise DataError(expected("root", "a folder of images", root))
        folders = _split_folders(self.root)
        by_split = {name: _classes(folder) for name, folder in folders.items()}
        classes = sorted({c for found in by_split.values() for c in found})
        if "" in classes and len(classes) > 1:
            raise DataError(expected(str(self.root), "class folders in train and test alike", "one without"))
        self.class_names = tuple(c or UNLABELLED for c in classes)
        if "all" in by_split and split != "all":
            undivided = by_split["all"].items()
            by_split[split] = {c: draw_split(self.root, p, fraction, split_seed)[split] for c, p in undivided}
        chosen = [by_split[split]] if split in by_split else list(by_split.values())
        files = [(f, k) for k, c in enumerate(classes) for found in chosen for f in found.get(c, ())]
        if not files:
            raise DataError(expected(str(self.root), f"at least one image in the split {split!r}", "none"))
        self._set(files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``: image and label.

        Raises:
            InputError: the index is out of range.
            DataError: the file is gone or corrupt.
        """
        image = read_image(self.path(index), self.window)
        return make_sample(self.image_ids[index], image, self.labels[index], self.size)

    def path(self, index: int) -> Path:
        """The image file of sample ``index``."""
        return self._files[check_index("index", index, len(self))]

    def without_part(self, index: int, part: int) -> None:
        """None: no part is annotated."""

    def check(self) -> dict[int, DataError]:
        """What is wrong with which index, found by decoding every image; empty where all can be read."""
        wrong: dict[int, DataError] = {}
        for index, path in enumerate(self._files):
            try:
                read_image(path, self.window)
            except DataError as error:
                wrong[index] = error
        return wrong

    def readable(self) -> Folder:
        """This data set without the images that :meth:`check` finds wrong.

        Raises:
            DataError: no image can be read.
        """
        wrong = self.check()
        if len(wrong) == len(self):
            raise DataError(expected(str(self.root), "at least one readable image", f"none of {len(self)}"))
        kept = copy.copy(self)
        kept._set([(f, self.labels[i]) for i, f in enumerate(self._files) if i not in wrong])
        return kept

    def _set(self, files: list[tuple[Path, int]]) -> None:
        self._files = tuple(file for file, _ in files)
        self.labels = tuple(label for _, label in files)
        self.image_ids = tuple(readable_name(file, self.root) for file in self._files)


def draw_split(root: Path, files: list[Path], fraction: float = 0.8, seed: int = 0) -> dict[str, list[Path]]:
    """One class's files as ``"train"`` and ``"test"``, each in path order.

    The files are ranked by the SHA-256 of ``"seed/path relative to root"`` and the first round(fraction * n) train, at
    least one; of two and more files at least one tests, unless ``fraction`` is 1. So the split depends on names alone,
    not on the machine or on the order of listing.
    """

    def key(file: Path) -> str:
        return hashlib.sha256(f"{seed}/{readable_name(file, root)}".encode()).hexdigest()

    ranked = sorted(files, key=key)
    most = len(ranked) if fraction == 1 else max(1, len(ranked) - 1)
    cut = min(max(1, round(fraction * len(ranked))), most)
    return {"train": sorted(ranked[:cut]), "test": sorted(ranked[cut:])}


def _split_folders(root: Path) -> dict[str, Path]:
    held_out = next((root / name for name in ("test", "val") if is_folder(root / name)), None)
    if held_out is not None and is_folder(root / "train"):
        return {"train": root / "train", "test": held_out}
    return {"all": root}


def _classes(folder: Path) -> dict[str, list[Path]]:
    below: dict[str, list[Path]] = {}
    for file in list_images(folder):
        parts = PurePosixPath(readable_name(file, folder)).parts
        below.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    loose = below.pop("", [])
    if loose and below:
        wanted = "images in class folders only, or no class folders"
        raise DataError(expected(str(folder), wanted, f"{loose[0].name} beside the folder {min(below)}"))
    return below or {"": loose}
