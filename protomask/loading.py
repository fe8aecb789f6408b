"""MODEL on the command line: a checkpoint folder or file, ``demo:NAME``, or ``package.module:factory``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from protomask.checkpoint import Description, load_checkpoint, own_folder
from protomask.data import Dataset, Sample
from protomask.data.images import read_image
from protomask.data.levels import Window, check_window
from protomask.errors import CheckpointError, DataError, InputError, ModelError, expected
from protomask.foreign import Stated
from protomask.importing import import_factory
from protomask.model import Contract, contract, families
from protomask.opening import is_file, is_folder
from protomask.pickles import printable

FORMS = "a checkpoint folder or file, demo:NAME or package.module:factory"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with everything the commands need to feed it and to name what it says.

    Attributes:
        name: for files and titles.
        model: behind the contract.
        size: (height, width) of its input, pixels.
        crop: ``"none"`` or ``"box"``, as it was trained.
        class_names: K names, or none.
        description: of a checkpoint, else None.
        folder: of a checkpoint, else None.
        window: (low, high), what pixels of more than 8 bits were scaled by when it was trained; None where not told.
    """

    name: str
    model: Contract
    size: tuple[int, int]
    crop: str = "none"
    class_names: tuple[str, ...] = ()
    description: Description | None = None
    folder: Path | None = None
    window: Window | None = None

    def names(self) -> list[str]:
        """What each of the P prototypes is called."""
        return [self.model.describe(p) for p in range(self.model.num_prototypes)]

    def source(self, prototype: int) -> tuple[np.ndarray, tuple[float, float, float, float] | None] | None:
        """The training image [H, W, 3] uint8 that a prototype was taken from, and its box; None where not stored."""
        if self.description is None or self.folder is None or not self.description.prototypes:
            return None
        stored = self.description.prototypes[prototype]
        if not stored.file or not is_file(self.folder / stored.file):
            return None
        return read_image(self.folder / stored.file), stored.box


def load_model(text: str, device: str = "cpu", size: tuple[int, int] | None = None, *, trust: bool = False) -> Loaded:
    """The model that MODEL names, on a device.

    ``package.module:factory`` imports your module (the working directory is searched first) and calls the factory
    without arguments: your code, run because you named it. Nothing else runs code, foreign checkpoints included, unless
    they are trusted.

    Args:
        text: MODEL.
        device: a torch device, such as ``"cpu"`` or ``"cuda:0"``.
        size: (height, width) for a model that does not tell its input's size.
        trust: whether a whole module that cannot be read as data may run its own code.

    Raises:
        InputError: not one of the forms, or no input size.
        CheckpointError: the checkpoint cannot be loaded.
        ModelError: the model does not fulfil the contract.
    """
    if text.startswith("demo:"):
        return _checkpoint(_demo(text.removeprefix("demo:")), text, device)
    path = own_folder(text)
    if is_folder(path):
        return _checkpoint(path, path.name or text, device)
    if is_file(path):
        return _checkpoint(path, path.stem, device, size, trust=trust)
    if ":" in text:
        return _made(text, device, size)
    raise InputError(expected("MODEL", FORMS, f"{text!r}, which does not exist"))


def _demo(name: str) -> Path:
    demos = {f.name: f.demo for f in families().values() if f.demo is not None}
    if name not in demos:
        raise InputError(expected("MODEL", "one of " + ", ".join(f"demo:{n}" for n in demos), f"demo:{name}"))
    return demos[name]


def _checkpoint(
    path: Path, name: str, device: str, size: tuple[int, int] | None = None, *, trust: bool = False
) -> Loaded:
    loaded = load_checkpoint(path, stated=Stated(size=size), trust=trust)
    if loaded.description is None:  # the others' tensors were checked one by one
        check_finite(loaded.module)
    loaded.module.to(device)
    model, description = contract(loaded.model), loaded.description
    if description is None:
        return _sized(name, model, size)
    _say_assumed(path, _assumed(description))
    window = _window(path, description)
    told = (description.size, description.crop, description.class_names)
    return Loaded(name, model, *told, description, loaded.folder, window)


def _window(path: Path, description: Description) -> Window | None:
    data = description.extra.get("data")
    try:
        return check_window(data.get("window") if isinstance(data, Mapping) else None)
    except InputError as error:
        raise CheckpointError(f"{path}: extra.data.{error}") from error


def _assumed(description: Description) -> str:
    """What a foreign file did not say, as one line; empty where it said all."""
    said = description.extra.get("assumed")
    return ", ".join(printable(str(part)) for part in said) if isinstance(said, (list, tuple)) else ""


@cache
def _say_assumed(path: Path, assumed: str) -> None:
    """On standard error, once per process, since a model may be loaded several times."""
    if assumed:
        print(f"{path}: assumed, since the file does not say: {assumed}", file=sys.stderr)


def _made(text: str, device: str, size: tuple[int, int] | None) -> Loaded:
    factory = import_factory(text, "MODEL", FORMS)
    model = contract(factory())
    if model.module is not None:
        check_finite(model.module)
        model.module.to(device)
    return _sized(text.partition(":")[2], model, size)


def _sized(name: str, model: Contract, size: tuple[int, int] | None) -> Loaded:
    if model.input_shape is not None:
        size = (model.input_shape[-2], model.input_shape[-1])
    if size is None:
        raise InputError(expected("--size", "the input's height and width, since the model does not tell", None))
    return Loaded(name, model, size, class_names=tuple(getattr(model.source, "class_names", ())))


def check_finite(module: nn.Module) -> None:
    """ModelError where a floating-point parameter or buffer is NaN or infinite: every activation would be NaN."""
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(expected(f"model: {name}", "finite values", f"{bad} NaN or infinite of {tensor.numel()}"))


@dataclass(frozen=True, eq=False)
class Relabelled:
    """A data set whose labels are the model's classes, matched by name: subsets and other orders stay right."""

    dataset: Dataset
    labels: tuple[int, ...]
    class_names: Sequence[str]

    @property
    def name(self) -> str:
        """The data set's own name."""
        return self.dataset.name

    @property
    def part_names(self) -> Sequence[str]:
        """The data set's own part names."""
        return self.dataset.part_names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index].relabelled(self.labels, len(self.class_names))

    def without_part(self, index: int, part: int) -> np.ndarray | None:
        """As the data set gives it."""
        return self.dataset.without_part(index, part)


def with_labels_of(loaded: Loaded, dataset: Dataset) -> Dataset:
    """The data set with the model's class indices; as it is where the model names no classes or they agree.

    Raises:
        DataError: the data set has a class that the model does not know, or the model names none and has another number
            of them, so that nothing tells which is which.
    """
    known_count = None if loaded.description is None else loaded.description.num_classes
    if not loaded.class_names and known_count not in (None, len(dataset.class_names)):
        wanted = f"the model's {known_count}, since it names none (`protomask convert --class-names` does)"
        raise DataError(expected("classes of the data", wanted, len(dataset.class_names)))
    if not loaded.class_names or tuple(dataset.class_names) == loaded.class_names:
        return dataset
    known = {name: k for k, name in enumerate(loaded.class_names)}
    missing = [name for name in dataset.class_names if name not in known]
    if missing:
        raise DataError(expected("classes of the data", "classes that the model knows", ", ".join(missing[:5])))
    return Relabelled(dataset, tuple(known[name] for name in dataset.class_names), loaded.class_names)
