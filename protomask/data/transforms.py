"""From an annotated image to a :class:`~protomask.data.sample.Sample`: crop, resize, and everything moves along.

Albumentations moves image, points and masks together; the box is moved here, since Albumentations would do it in
float32, in which a thin one has no width. Coordinates: a box covers [x0, x1) on a continuous axis on
which pixel i covers [i, i + 1); a point is a pixel index, so pixel 0's centre is the point 0. Under a resize by the
factor s a box's edge goes to s * x, and a point to s * (x + 0.5) - 0.5. (Albumentations scales points as it scales
edges: half a pixel is added before and taken off after.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import cv2
import numpy as np

from protomask.checks import check_area, check_array, check_choice, check_count
from protomask.data.sample import Geometry, Sample
from protomask.errors import DataError, InputError, expected

# Importing Albumentations asks PyPI for a newer version, and waits for the answer, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

CROPS = ("none", "box")


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """(height, width) as two integers of at least one, or InputError."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise InputError(expected("size", "(height, width)", repr(size)))
    return check_area("size", (check_count("size[0]", size[0]), check_count("size[1]", size[1])))


def make_sample(
    image_id: str,
    image: np.ndarray,
    label: int,
    size: tuple[int, int],
    *,
    crop: str = "none",
    box: np.ndarray | None = None,
    points: np.ndarray | None = None,
    part_masks: np.ndarray | None = None,
    segmentation: np.ndarray | None = None,
    group: str = "",
) -> Sample:
    """The image squashed to ``size`` (aspect ratio given up), after a cut at its box where ``crop`` is ``"box"``.

    The cut is ProtoPNet's protocol for CUB (Chen et al. 2019): at the box rounded outwards to whole pixels, within the
    image. A point outside what is left becomes NaN, masks and segmentation are cut, and the box is clipped to it. An
    image's shrinking axes are averaged over area, its growing ones interpolated linearly; masks take the nearest pixel.

    Args:
        image_id: the image's stable name.
        image: [H, W, 3] uint8 RGB, the original.
        label: class index.
        size: (height, width) of the sample.
        crop: one of :data:`CROPS`.
        box: [4] xyxy in original pixels, exclusive end.
        points: [K, 2] (x, y) in original pixels, NaN where not visible.
        part_masks: [K, H, W] bool.
        segmentation: [H, W] bool.
        group: what intervals are clustered by; the image where empty.

    Raises:
        InputError: a wrong shape, dtype or size, or a crop without a box.
        DataError: the box does not overlap the image.
    """
    check_array("image", image, ("H", "W", 3), dtype=np.uint8)
    height, width = image.shape[:2]
    if not image.size:
        raise InputError(expected("image", "at least one pixel", f"{width} x {height}"))
    masks = _masks(part_masks, segmentation, (height, width))
    edges = None if box is None else _clipped(image_id, _real("box", check_array("box", box, (4,))), (height, width))
    window = _window(check_choice("crop", crop, CROPS), edges, (height, width))
    geometry = Geometry((height, width), window, check_size(size))
    out_box, out_points = None, None
    request: dict[str, object] = {"image": image, "masks": masks}
    if edges is not None:
        out_box = _moved(image_id, edges, geometry)
    if points is not None:
        out_points = np.full(_real("points", check_array("points", points, ("K", 2))).shape, np.nan)
        shown = _inside(points, window)
        request["keypoints"] = points[shown] + 0.5
    moved = _pipeline(geometry)(**request)
    if out_points is not None and shown.any():
        out_points[shown] = np.asarray(moved["keypoints"], dtype=np.float64)[:, :2] - 0.5
    out_masks = np.stack(moved["masks"]).astype(bool) if masks else np.zeros((0, *geometry.size), bool)
    return Sample(
        image_id=image_id,
        image=np.ascontiguousarray(moved["image"]),
        label=label,
        geometry=geometry,
        box=out_box,
        points=out_points,
        part_masks=None if part_masks is None else out_masks[: len(part_masks)],
        segmentation=None if segmentation is None else out_masks[-1],
        group=group,
    )


def _pipeline(geometry: Geometry) -> A.Compose:
    x0, y0, x1, y1 = (int(v) for v in geometry.crop)
    height, width = geometry.size
    # Averaging over area is right only on axes that shrink, so those go first and the growing ones after.
    shrunk = (min(height, y1 - y0), min(width, x1 - x0))
    return A.Compose(
        [
            A.Crop(x0, y0, x1, y1),
            A.Resize(*shrunk, interpolation=cv2.INTER_AREA, mask_interpolation=cv2.INTER_NEAREST_EXACT),
            A.Resize(height, width, interpolation=cv2.INTER_LINEAR, mask_interpolation=cv2.INTER_NEAREST_EXACT),
        ],
        keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
    )


def _real(name: str, numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype.kind not in "iuf":
        raise InputError(expected(name, "real numbers", numbers.dtype))
    return numbers


def _window(crop: str, edges: np.ndarray | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
    if crop == "none":
        return 0.0, 0.0, float(size[1]), float(size[0])
    if edges is None:
        raise InputError(expected("crop", "'none', since no box is annotated", repr(crop)))
    x0, y0, x1, y1 = edges.tolist()
    return float(math.floor(x0)), float(math.floor(y0)), float(math.ceil(x1)), float(math.ceil(y1))


def _clipped(image_id: str, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    limits = np.array([size[1], size[0], size[1], size[0]], dtype=np.float64)
    edges = np.clip(np.asarray(box, dtype=np.float64), 0, limits)
    if not (edges[0] < edges[2] and edges[1] < edges[3]):
        wanted = f"a box that overlaps the image of {size[1]} x {size[0]} pixels"
        raise DataError(expected(f"box of {image_id}", wanted, np.asarray(box).tolist()))
    return edges


def _moved(image_id: str, edges: np.ndarray, geometry: Geometry) -> np.ndarray:
    height, width = geometry.size
    moved = np.clip(geometry.to_sample(edges), 0, [width, height, width, height])
    if not (moved[0] < moved[2] and moved[1] < moved[3]):
        raise DataError(expected(f"box of {image_id}", "a box that is not lost to rounding", edges.tolist()))
    return moved


def _inside(points: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    x0, y0, x1, y1 = window
    x, y = points[:, 0] + 0.5, points[:, 1] + 0.5  # NaN compares false
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def _masks(part_masks: np.ndarray | None, segmentation: np.ndarray | None, size: tuple[int, int]) -> list[np.ndarray]:
    masks: list[np.ndarray] = []
    if part_masks is not None:
        masks.extend(check_array("part_masks", part_masks, ("K", *size), dtype=np.bool_))
    if segmentation is not None:
        masks.append(check_array("segmentation", segmentation, size, dtype=np.bool_))
    return [m.astype(np.uint8) for m in masks]
