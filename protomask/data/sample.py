"""What a data set hands over: one image, as the model will see it, with everything that is annotated on it.

A :class:`Sample` is already resized (and cropped) to the model's input size; its boxes, points and masks moved along.
:class:`Geometry` says how to go back to the pixels of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_array
from protomask.errors import InputError, expected


@dataclass(frozen=True)
class Geometry:
    """How a sample's pixels lie in the original image (EXIF-rotated): ``crop`` was cut out, then resized.

    Attributes:
        source_size: (height, width) of the original image, pixels.
        crop: xyxy in original pixels, exclusive end; what of the original the sample shows. Where x0 is the greater of
            the two, the sample shows it mirrored left to right.
        size: (height, width) of the sample, pixels.
    """

    source_size: tuple[int, int]
    crop: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def mirrored(self) -> bool:
        """Whether the sample shows the original mirrored left to right."""
        return self.crop[0] > self.crop[2]

    def to_source(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] xyxy in sample pixels -> xyxy in original pixels (floats, same leading axes)."""
        x0, y0, x1, y1 = self.crop
        scale = np.array([(x1 - x0) / self.size[1], (y1 - y0) / self.size[0]] * 2)
        return self._ordered(np.asarray(boxes, dtype=np.float64) * scale + np.array([x0, y0, x0, y0]))

    def to_sample(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] xyxy in original pixels -> xyxy in sample pixels (floats, same leading axes)."""
        x0, y0, x1, y1 = self.crop
        scale = np.array([self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)] * 2)
        return self._ordered((np.asarray(boxes, dtype=np.float64) - np.array([x0, y0, x0, y0])) * scale)

    def _ordered(self, boxes: np.ndarray) -> np.ndarray:
        return boxes[..., [2, 1, 0, 3]] if self.mirrored else boxes


@dataclass(frozen=True, eq=False)
class Sample:
    """One annotated image in the model's frame. K is the data set's number of parts.

    Where an image has several classes at once (the findings of a chest X-ray), ``labels`` has them all and ``label`` is
    one of them, by a rule that the data set documents: what trains or evaluates on one class per image reads ``label``
    and needs not know more, what is multi-label reads ``labels``. Box and segmentation are those of ``label``.

    Attributes:
        image_id: stable name of the image (a relative path, or ``"planted-birds/7/test/12"``).
        image: [H, W, 3] uint8 RGB, at the model's input size.
        label: class index in 0 .. len(class_names) - 1; -1 where ``labels`` says that the image is of no class.
        geometry: the way back to the file's pixels.
        box: [4] float xyxy in sample pixels, exclusive end, of the whole object; None where not annotated.
        points: [K, 2] float (x, y) in sample pixels, NaN where the part is not visible; None where not annotated.
        part_masks: [K, H, W] bool, visible pixels of each part; None where not annotated.
        segmentation: [H, W] bool, the whole object; None where not annotated.
        group: what intervals are clustered by (the image, or the patient); the image_id where empty.
        labels: [C] bool, by class, True at ``label`` and at the image's other classes; None where one class is all.
    """

    image_id: str
    image: np.ndarray
    label: int
    geometry: Geometry
    box: np.ndarray | None = None
    points: np.ndarray | None = None
    part_masks: np.ndarray | None = None
    segmentation: np.ndarray | None = None
    group: str = ""
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_array("image", self.image, ("H", "W", 3), dtype=np.uint8)
        size = self.image.shape[:2]
        if size != tuple(self.geometry.size):
            raise InputError(expected("geometry.size", f"the image's size {size}", self.geometry.size))
        if self.box is not None:
            check_array("box", self.box, (4,))
        if self.points is not None:
            check_array("points", self.points, ("K", 2))
        if self.part_masks is not None:
            check_array("part_masks", self.part_masks, ("K", *size), dtype=np.bool_)
        if self.segmentation is not None:
            check_array("segmentation", self.segmentation, size, dtype=np.bool_)
        if self.labels is not None:
            check_array("labels", self.labels, ("C",), dtype=np.bool_)
            true = np.flatnonzero(self.labels).tolist() or [-1]
            if self.label not in true:
                raise InputError(expected("label", f"one of {true}, as labels say", self.label))
        if not self.group:
            object.__setattr__(self, "group", self.image_id)

    def relabelled(self, indices: Sequence[int], count: int) -> Sample:
        """The sample among other classes: class k becomes ``indices[k]`` of ``count``, in ``label`` and ``labels``."""
        labels = None
        if self.labels is not None:
            labels = np.zeros(count, bool)
            labels[np.asarray(indices)[self.labels]] = True
        return replace(self, label=-1 if self.label == -1 else int(indices[self.label]), labels=labels)


@runtime_checkable
class Dataset(Protocol):
    """What evaluation and training need of a data set. Indexing must be deterministic (augmentation is the trainer's).

    From images without a part, the part that a prototype is about is found causally.
    """

    @property
    def name(self) -> str:
        """For files and titles."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """K names, by label."""
        ...

    @property
    def part_names(self) -> Sequence[str]:
        """Names of the annotated parts; empty where there are none."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def without_part(self, index: int, part: int) -> np.ndarray | None:
        """Sample ``index`` with a part in-painted: [H, W, 3] uint8, None where the part is not visible."""
        ...


def check_dataset(dataset: Dataset) -> None:
    """InputError where a data set names parts and cannot take them out."""
    if dataset.part_names and not callable(getattr(dataset, "without_part", None)):
        wanted = "without_part(index, part) beside part_names, which finds the part that a prototype is about"
        raise InputError(expected("dataset", wanted, type(dataset).__name__))


def to_tensor(images: np.ndarray | Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images as the model expects them: [B, H, W, 3] uint8 (or a list of [H, W, 3]) -> [B, C, H, W] float32.

    A mean of one entry makes grey input (C = 1, ITU-R 601 luma); of three, RGB. Value = (pixel / 255 - mean) / std.

    Raises:
        InputError: no image, images of unequal size, or another number of channels than 1 or 3 in ``mean``.
    """
    batch = np.stack(list(images)) if len(images) else np.zeros((0, 0, 0, 3), np.uint8)
    check_array("images", batch, ("B", "H", "W", 3), dtype=np.uint8)
    if len(batch) == 0:
        raise InputError(expected("images", "at least one image", "none"))
    if len(mean) not in (1, 3) or len(mean) != len(std):
        raise InputError(expected("mean, std", "1 or 3 values each", f"{len(mean)} and {len(std)}"))
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    if len(mean) == 1:
        pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    centre, spread = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
    return ((pixels - centre) / spread).contiguous()
