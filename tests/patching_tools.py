"""What the patching tests share: stand-in repositories on the path, a small push set, and what must come back."""

from __future__ import annotations

import builtins
import math
import random
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import protomask
from protomask.commands.script import without_cuda
from protomask.region import boxes_of, top_pixels

from .ppnet import PPNet, ppnet

STANDINS = Path(__file__).parent / "standins"
PROBE: dict[str, Any] = {"method": "probe"}


@contextmanager
def probe() -> Iterator[None]:
    """A method that finds something in any model, in one pass: the input's gradient times the input, as a ranking."""

    def locate(request: protomask.Request) -> protomask.Maps:
        images = request.images[request.targets.images].clone().requires_grad_()
        activations = request.model.activations(images, request.targets.prototypes)
        (gradient,) = torch.autograd.grad(activations.sum(), images)
        relevance = (gradient * images.detach()).sum(1).abs() + 1e-3 * images.detach().mean(1).abs()
        return protomask.Maps(relevance / relevance.flatten(1).amax(1)[:, None, None])

    locate.passes = 1  # type: ignore[attr-defined]
    protomask.register("probe", "For tests.")(lambda: locate)
    try:
        yield
    finally:
        del protomask.LOCALISERS["probe"]


def region_bounds(maps: torch.Tensor) -> np.ndarray:
    """[N, 4] top, bottom, left, right of the pixels at or above the 95th percentile, were there no ties."""
    size = maps.shape[1] * maps.shape[2]
    boxes = boxes_of(top_pixels(maps, size - math.ceil(0.95 * (size - 1))))
    return boxes.numpy()[:, [1, 3, 0, 2]]


@contextmanager
def repository(name: str) -> Iterator[None]:
    """The stand-in's modules importable by their bare names, CUDA harmless; nothing of either is left behind."""
    before = set(sys.modules)
    folder = str(STANDINS / name)
    sys.path.insert(0, folder)
    try:
        with without_cuda():
            yield
    finally:
        sys.path.remove(folder)
        for added in set(sys.modules) - before:
            if str(getattr(sys.modules[added], "__file__", "")).startswith(folder):
                del sys.modules[added]


def state() -> list[object]:
    """The objects that patching may touch: all must be the very same afterwards."""
    return [
        builtins.__import__,
        tuple(sys.meta_path),
        cv2.resize,
        torch.load,
        torch.Tensor.cuda,
        torch.cuda.is_available,
        torch.cuda.device,
        torch.cuda.FloatTensor,
        vars(nn.Module).get("__init_subclass__"),
        vars(PPNet)["push_forward"],
        tuple(sys.path),
        tuple(sys.argv),
        sys.modules["__main__"],
    ]


def same_objects(before: list[object], after: list[object]) -> bool:
    """Identical, element by element; tuples by equality."""
    return all(a == b if isinstance(a, tuple) else a is b for a, b in zip(before, after, strict=True))


def randomness() -> tuple[Any, ...]:
    """The global random states."""
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy_state, random.getstate()


class Loader:
    """Batches of pictures in [0, 1] with labels, as a data loader that does not shuffle gives them."""

    def __init__(self, count: int = 9, size: int = 32, batch: int = 4, classes: int = 3) -> None:
        self.batch_size = batch
        generator = torch.Generator().manual_seed(3)
        self.pictures = torch.rand(count, 3, 8, 8, generator=generator)
        self.pictures = nn.functional.interpolate(self.pictures, size=(size, size), mode="bilinear")
        self.labels = torch.arange(count) % classes

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(self.pictures.split(self.batch_size), self.labels.split(self.batch_size), strict=True))


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] as the model expects them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pictures - mean[:, None, None]) / std[:, None, None]


def network(seed: int = 0, **options: Any) -> nn.DataParallel[PPNet]:
    """The stand-in model in the ``DataParallel`` that the code expects."""
    return nn.DataParallel(ppnet(seed, **options).eval())


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of everything under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def module_of(text: str, name: str = "pm_fork") -> Iterator[Any]:
    """A module of that source, imported before any patch."""
    module = ModuleType(name)
    exec(compile(textwrap.dedent(text), name, "exec"), vars(module))
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]
