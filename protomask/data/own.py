"""A data set of the user's own on the command line: ``--data package.module:factory``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from protomask.data.sample import Dataset, check_dataset
from protomask.errors import DataError, InputError, expected
from protomask.importing import import_factory

FORMS = "package.module:factory"
_NEEDED = ("name", "class_names", "part_names", "__len__", "__getitem__")


def make_dataset(text: str, *, size: tuple[int, int], split: str, root: str | Path | None = None) -> Dataset:
    """The data set that a factory of the user's makes.

    It is called as ``factory(size=(height, width), split=split)``, with ``root=root`` where one was given.

    Args:
        text: ``package.module:factory``; the working directory is searched first.
        size: (height, width) of the model's input, pixels, which the samples must have.
        split: which part of the data.
        root: a folder, if the factory takes one.

    Raises:
        InputError: no such factory, one that takes other arguments, or what it makes is no data set of that size.
    """
    factory = import_factory(text, "--data", FORMS)
    given: dict[str, Any] = {"size": size, "split": split, **({} if root is None else {"root": root})}
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise InputError(
            expected("--data", f"a factory that takes {', '.join(given)}", f"{text!r} ({error})")
        ) from error
    except ValueError:
        pass  # a built-in that tells nothing of itself
    dataset = factory(**given)
    missing = [name for name in _NEEDED if not hasattr(dataset, name)]
    if missing or not len(dataset):
        came = f"a {type(dataset).__name__} without {', '.join(missing)}" if missing else "one without samples"
        raise InputError(expected("--data", f"a data set ({', '.join(_NEEDED)})", came))
    made: Dataset = dataset
    check_dataset(made)
    _check_size(made, size)
    return made


def _check_size(dataset: Dataset, size: tuple[int, int]) -> None:
    try:
        found = tuple(dataset[0].image.shape[:2])
    except DataError:
        return  # told where samples are read one by one
    if found != size:
        raise InputError(expected("--data", f"samples of the model's size {size}", found))
