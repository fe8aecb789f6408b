"""Data sets: planted scenes with exact truth, CUB-200-2011, and any image folder, behind one contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protomask.checks import check_choice
from protomask.data.cub import Cub
from protomask.data.folder import Folder
from protomask.data.images import list_images, read_image
from protomask.data.planted import Planted
from protomask.data.sample import Dataset, Geometry, Sample, to_tensor
from protomask.data.transforms import check_size, make_sample
from protomask.errors import InputError, expected

__all__ = [
    "DATASETS",
    "Cub",
    "Dataset",
    "Folder",
    "Geometry",
    "Planted",
    "Sample",
    "list_images",
    "make_sample",
    "open_dataset",
    "read_image",
    "to_tensor",
]

DATASETS = ("planted", "planted-flowers", "cub", "folder")


def open_dataset(
    name: str,
    *,
    split: str,
    size: tuple[int, int],
    root: str | Path | None = None,
    crop: str = "none",
    seed: int = 0,
    count: int | None = None,
    scene: str = "birds",
    classes: int = 12,
    species: Sequence[int] | None = None,
) -> Dataset:
    """The data set ``name`` of :data:`DATASETS`, one split of it.

    Args:
        name: one of :data:`DATASETS`; ``"planted-flowers"`` is ``"planted"`` with the scene ``"flowers"``.
        split: ``"train"`` or ``"test"``; planted also has ``"dev"``, cub and folder ``"all"``.
        size: (height, width) of the samples, pixels; planted scenes are square.
        root: the folder of cub or folder.
        crop: of cub, ``"none"`` or ``"box"``.
        seed: of planted's scenes, or of the split that folder draws.
        count: how many scenes planted draws; its own number where None.
        scene: of planted, ``"birds"`` or ``"flowers"``.
        classes: of planted, how many.
        species: of cub, the class ids to keep.

    Raises:
        InputError: an unknown name, or an option that the data set does not have or needs.
        DataError: its files are missing or malformed.
    """
    check_choice("data", name, DATASETS)
    height, width = check_size(size)
    if name.startswith("planted"):
        _unused(name, root=root, crop=None if crop == "none" else crop, species=species)
        if height != width:
            raise InputError(expected("size", f"a square for {name}", f"{height} x {width}"))
        chosen = "flowers" if name == "planted-flowers" else scene
        drawn = {} if count is None else {"count": count}
        return Planted(chosen, split, size=height, classes=classes, seed=seed, **drawn)
    _unused(name, count=count)
    if root is None:
        raise InputError(expected("root", f"the folder of the data set {name!r}", None))
    if name == "cub":
        return Cub(root, split, (height, width), crop, species)
    _unused(name, crop=None if crop == "none" else crop, species=species)
    return Folder(root, split, (height, width), seed=seed)


def _unused(name: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(expected(option, f"nothing, since {name} has no such option", repr(value)))
