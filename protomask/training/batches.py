"""Training images: read once, kept small, handed out in seeded batches, augmented anew in each epoch.

What a batch holds depends on the seed, the epoch and its place in it alone, not on worker processes or on an
interruption, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from protomask.data.sample import Dataset, Geometry, Sample, to_tensor
from protomask.errors import DataError, expected

Augment = Callable[[np.ndarray, int], np.ndarray]
Batch = tuple[Tensor, Tensor]

_KEPT = 2 * 2**30  # bytes of pixels that are kept in memory; beyond, images are read again in each epoch


@dataclass(frozen=True, eq=False)
class Pictures:
    """What training needs of a data set's N samples.

    Attributes:
        labels: [N] int64; where an image may be of several classes, [N, K] float32, 1 where it is of the class.
        image_ids: N names.
        geometries: N ways back to the files' pixels.
        read: the image [H, W, 3] uint8 of an index.
    """

    labels: np.ndarray
    image_ids: tuple[str, ...]
    geometries: tuple[Geometry, ...]
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)


def read_pictures(
    data: Dataset,
    size: tuple[int, int],
    watch: Callable[[range], Iterator[int]] = iter,
    *,
    multi_label: bool = False,
) -> Pictures:
    """Read every sample once; images are kept where they fit into 2 GiB.

    Args:
        data: the data set.
        size: (height, width) that its samples must have.
        watch: wraps the indices, for a progress bar.
        multi_label: an image may be of several classes or none: those of the sample's ``labels`` [K] bool, or its
            ``label`` alone where it has none.

    Raises:
        DataError: no sample, a sample of another size, or a label without a class name.
    """
    keep = len(data) * size[0] * size[1] * 3 <= _KEPT
    kept: list[np.ndarray] = []
    about = []
    for index in watch(range(len(data))):
        sample = data[index]
        if sample.image.shape[:2] != tuple(size):
            raise DataError(expected(f"{sample.image_id}: size", str(tuple(size)), sample.image.shape[:2]))
        classes = _classes(sample, multi_label)
        for label in classes:
            if not 0 <= label < len(data.class_names):
                wanted = f"a class index in 0 .. {len(data.class_names) - 1}"
                raise DataError(expected(f"{sample.image_id}: label", wanted, label))
        about.append((classes, sample.image_id, sample.geometry))
        if keep:
            kept.append(sample.image)
    if not about:
        raise DataError(expected(data.name, "at least one sample", "none"))
    classes_of, image_ids, geometries = zip(*about, strict=True)
    read = _Reader(data, kept if keep else None)
    return Pictures(_labels(classes_of, len(data.class_names), multi_label), image_ids, geometries, read)


def _classes(sample: Sample, multi_label: bool) -> tuple[int, ...]:
    many = getattr(sample, "labels", None) if multi_label else None
    return (sample.label,) if many is None else tuple(int(k) for k in np.flatnonzero(many))


def _labels(classes_of: Sequence[tuple[int, ...]], count: int, multi_label: bool) -> np.ndarray:
    if not multi_label:
        return np.array([classes[0] for classes in classes_of], dtype=np.int64)
    labels = np.zeros((len(classes_of), count), dtype=np.float32)
    for row, classes in enumerate(classes_of):
        labels[row, list(classes)] = 1
    return labels


@dataclass(frozen=True, eq=False)
class _Reader:
    """A class and not a closure, so that worker processes can be handed one."""

    data: Dataset
    kept: list[np.ndarray] | None

    def __call__(self, index: int) -> np.ndarray:
        return self.data[index].image if self.kept is None else self.kept[index]


def shuffled(count: int, batch: int, seed: Sequence[int]) -> list[np.ndarray]:
    """All indices once, in seeded order, in batches of nearly equal size and at most ``batch``."""
    order = np.random.default_rng(list(seed)).permutation(count)
    return np.array_split(order, -(-count // batch))


def in_order(count: int, batch: int) -> list[np.ndarray]:
    """All indices in order, in batches of nearly equal size and at most ``batch``."""
    return np.array_split(np.arange(count), -(-count // batch))


def batches(
    pictures: Pictures,
    groups: Sequence[np.ndarray],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augment: Augment | None = None,
    seed: Sequence[int] = (0,),
    workers: int = 0,
) -> Iterator[Batch]:
    """Model-ready batches (images [B, C, H, W], labels [B] int64 or [B, K] float32), one for each group of indices.

    Args:
        pictures: where images come from.
        groups: indices of each batch.
        mean, std: what images are normalised by.
        augment: changes an image, given a seed of its own.
        seed: of the augmentation, together with each image's index.
        workers: processes that do it; 0 does it here.
    """
    made = _Batches(pictures, groups, mean, std, augment, tuple(seed))
    if workers == 0:
        return (made[k] for k in range(len(groups)))
    # A generator of its own, or else the loader would draw from the global random state.
    return iter(DataLoader(made, batch_size=None, num_workers=workers, generator=torch.Generator()))


class _Batches(TorchDataset[Batch]):
    def __init__(
        self,
        pictures: Pictures,
        groups: Sequence[np.ndarray],
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment | None,
        seed: tuple[int, ...],
    ) -> None:
        self.pictures, self.groups, self.mean, self.std = pictures, groups, mean, std
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, k: int) -> Batch:
        group = self.groups[k]
        images = [self._image(int(index)) for index in group]
        return to_tensor(images, self.mean, self.std), torch.from_numpy(self.pictures.labels[group])

    def _image(self, index: int) -> np.ndarray:
        image = self.pictures.read(index)
        if self.augment is None:
            return image
        return self.augment(image, int(np.random.SeedSequence([*self.seed, index]).generate_state(1)[0]))


@dataclass(frozen=True)
class Chain:
    """One augmentation after another, each with the image's seed."""

    steps: Sequence[Augment]

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """The changed image, of the same size."""
        for step in self.steps:
            image = step(image, seed)
        return image


class Erase:
    """Up to ``most`` rectangles, each a sixth to a half of the image's side, filled by mean colour, colour or noise.

    Cutout (DeVries and Taylor, arXiv 1708.04552), with more than one kind of fill, so that none of them means anything.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """The changed image, of the same size."""
        rng = np.random.default_rng([seed, self.most])
        erased, mean = image.copy(), image.mean((0, 1))
        for _ in range(int(rng.integers(0, self.most + 1))):
            tall, wide = (int(rng.integers(side // 6, side // 2 + 1)) for side in image.shape[:2])
            y, x = int(rng.integers(-tall // 2, image.shape[0])), int(rng.integers(-wide // 2, image.shape[1]))
            hole = erased[max(0, y) : max(0, y + tall), max(0, x) : max(0, x + wide)]
            fills = (mean, rng.uniform(0, 255, 3), mean + rng.normal(0, 40, hole.shape))
            hole[...] = np.clip(fills[int(rng.integers(3))], 0, 255)
        return erased


class Warp:
    """Flip with probability 1/2, and one of rotation by up to 15 degrees, skew, and shear by up to 10 degrees.

    The transforms that upstream applied to disk, 30 copies of each image; here they are drawn anew in each epoch.
    Borders are mirrored. Call it with an image [H, W, 3] uint8 and a seed.
    """

    def __init__(self) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or else importing it asks PyPI for a newer version
        import albumentations

        border = cv2.BORDER_REFLECT_101
        moves = [
            albumentations.Rotate(limit=15, border_mode=border, p=1),
            albumentations.Perspective(scale=(0.01, 0.05), border_mode=border, p=1),
            albumentations.Affine(shear={"x": (-10, 10), "y": (0, 0)}, border_mode=border, p=1),
        ]
        self._compose = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.OneOf(moves, p=1)])

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """The changed image, of the same size."""
        self._compose.set_random_seed(seed)
        changed: np.ndarray = self._compose(image=image)["image"]
        return changed
