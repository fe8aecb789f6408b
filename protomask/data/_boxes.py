"""Boxes as annotation: checked against the image, and moved along into a sample's frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from protomask.checks import check_array
from protomask.data._tables import Row
from protomask.data.sample import Sample

MOST_SIDE = 10**9  # pixels; sums and products of such numbers stay exact enough and finite


@dataclass(frozen=True)
class Box:
    """One box of a list.

    Attributes:
        name: what it is around.
        edges: (x0, y0, x1, y1) in pixels of the original image, exclusive end.
        row: the line that it comes from.
    """

    name: str
    edges: tuple[float, float, float, float]
    row: Row

    def check(self, size: tuple[int, int]) -> None:
        """DataError unless the box overlaps an image of ``size`` = (H, W)."""
        x0, y0, x1, y1 = self.edges
        if x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0:
            wanted = f"a box that overlaps the image of {size[1]} x {size[0]} pixels"
            raise self.row.complaint(wanted, f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g}")


def read_box(name: str, row: Row, columns: Sequence[int], scale: float = 1.0) -> Box:
    """The box whose x, y, width and height stand in ``columns``, as xyxy.

    Raises:
        DataError: a cell that is no finite number, or a width or height not above 0.
    """
    pairs = zip(columns, ("x", "y", "w", "h"), strict=True)
    x, y, width, height = (row.number(column, what) * scale for column, what in pairs)
    return Box(name, box_edges(row, x, y, width, height), row)


def box_edges(row: Row, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1), exclusive end, of the box that ``row`` gives.

    Raises:
        DataError: a width or height not above 0 (or lost to rounding), or numbers that no image's pixels have.
    """
    x1, y1 = x + width, y + height
    if not (x < x1 and y < y1):
        raise row.complaint("a width and height above 0", f"{width:g} and {height:g}")
    if max(-x, -y, x1, y1) > MOST_SIDE:
        raise row.complaint(f"a box within {MOST_SIDE} pixels", f"x {x:g} to {x1:g}, y {y:g} to {y1:g}")
    return x, y, x1, y1


def annotate(sample: Sample, edges: np.ndarray) -> Sample:
    """The sample with the union of boxes as its segmentation, and the box around them all as its box.

    A pixel belongs to the union where its centre lies in a box; a box between the centres keeps the pixel under its
    own centre. Boxes are cut at the sample's edge; where nothing of them is visible the sample stays as it was.

    Args:
        sample: without box and segmentation.
        edges: [N, 4] xyxy in original pixels, exclusive end.
    """
    height, width = sample.image.shape[:2]
    boxes = sample.geometry.to_sample(check_array("edges", edges, ("N", 4)))
    boxes = np.clip(boxes, 0, [width, height, width, height])
    boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    if len(boxes) == 0:
        return sample
    union = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        union[_covered(y0, y1)[:, None], _covered(x0, x1)] = True
    hull = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    return replace(sample, box=hull, segmentation=union)


def _covered(start: float, stop: float) -> np.ndarray:
    first, last = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    return np.arange(first, last) if first < last else np.array([int((start + stop) / 2)])
