"""Data sets: planted scenes with exact truth, birds, chest X-rays and any image folder, behind one contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protomask.checks import check_choice
from protomask.data.boxlist import BoxList
from protomask.data.chestxray import ChestXray14
from protomask.data.cub import Cub
from protomask.data.folder import Folder
from protomask.data.images import list_images, read_image
from protomask.data.own import make_dataset
from protomask.data.planted import Planted
from protomask.data.sample import Dataset, Geometry, Sample, to_tensor
from protomask.data.transforms import check_size, make_sample
from protomask.errors import InputError, expected

__all__ = [
    "DATASETS",
    "OWN_OPTIONS",
    "BoxList",
    "ChestXray14",
    "Cub",
    "Dataset",
    "Folder",
    "Geometry",
    "Planted",
    "Sample",
    "check_unused",
    "file_of",
    "list_images",
    "make_dataset",
    "make_sample",
    "open_dataset",
    "own_options",
    "read_image",
    "to_tensor",
]

DATASETS = ("planted", "planted-flowers", "cub", "folder", "chestxray14", "boxes")
OWN_OPTIONS = {
    "folder": ("split_seed", "window"),
    "chestxray14": ("findings", "boxed", "negatives", "dev", "split_seed", "window", "partial"),
    "boxes": ("label", "task", "rename", "sides", "columns", "shares", "split_seed", "window"),
}
"""Options that a data set hands to its class as they come; see there."""


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
    **own: Any,
) -> Dataset:
    """The data set ``name`` of :data:`DATASETS`, one split of it.

    Args:
        name: one of :data:`DATASETS`; ``"planted-flowers"`` is ``"planted"`` with the scene ``"flowers"``.
        split: ``"train"`` or ``"test"``; planted and the X-rays also have ``"dev"``, all but planted have ``"all"``.
        size: (height, width) of the samples, pixels; planted scenes are square.
        root: the folder of the files, of all but planted.
        crop: of cub and boxes, ``"none"`` or ``"box"``.
        seed: of planted's scenes. The split that folder and the X-rays draw has a seed of its own, ``split_seed``:
            whatever a model was trained with, no image or patient it was trained on is in its test.
        count: how many scenes planted draws; its own number where None.
        scene: of planted, ``"birds"`` or ``"flowers"``.
        classes: of planted, how many.
        species: of cub, the class ids to keep.
        own: what only this data set has, by :data:`OWN_OPTIONS`; what is None or False counts as not given.

    Raises:
        InputError: an unknown name, or an option that the data set does not have or needs.
        DataError: its files are missing or malformed.
    """
    check_choice("data", name, DATASETS)
    height, width = check_size(size)
    unknown = set(own) - set(own_options(dict.fromkeys(own, True)))
    if unknown:
        raise TypeError(f"open_dataset() got an unexpected keyword argument {min(unknown)!r}")
    own = own_options(own)
    check_unused(name, **{option: value for option, value in own.items() if option not in OWN_OPTIONS.get(name, ())})
    if name.startswith("planted"):
        check_unused(name, root=root, crop=None if crop == "none" else crop, species=species)
        if height != width:
            raise InputError(expected("size", f"a square for {name}", f"{height} x {width}"))
        chosen = "flowers" if name == "planted-flowers" else scene
        drawn = {} if count is None else {"count": count}
        return Planted(chosen, split, size=height, classes=classes, seed=seed, **drawn)
    check_unused(name, count=count)
    if root is None:
        raise InputError(expected("root", f"the folder of the data set {name!r}", None))
    if name == "cub":
        return Cub(root, split, (height, width), crop, species)
    check_unused(name, species=species)
    if name == "boxes":
        return BoxList(root, split, (height, width), crop, **own)
    check_unused(name, crop=None if crop == "none" else crop)
    if name == "chestxray14":
        return ChestXray14(root, split, (height, width), **own)
    return Folder(root, split, (height, width), **own)


def file_of(dataset: Dataset, index: int, image_id: str) -> str:
    """The name of a sample's file, below the folder of its data set's images: that part of its path with which its
    ``image_id`` begins (an image of two lungs makes two samples). The ``image_id`` where the data set tells no path.
    """
    inner: Any = getattr(dataset, "dataset", dataset)  # behind other labels
    if not callable(getattr(inner, "path", None)):
        return image_id
    parts = Path(inner.path(index)).parts
    endings = ("/".join(parts[k:]) for k in range(len(parts)))
    return next((ending for ending in endings if image_id.startswith(ending)), parts[-1])


def own_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that stand in :data:`OWN_OPTIONS` and are neither None nor False: a command's, for example."""
    names = {option for options in OWN_OPTIONS.values() for option in options}
    return {option: v for option, v in given.items() if option in names and v is not None and v is not False}


def check_unused(name: str, **options: object) -> None:
    """InputError where an option has a value that the data set ``name`` does not take."""
    for option, value in options.items():
        if value is not None:
            raise InputError(expected(option, f"nothing, since {name} has no such option", repr(value)))
