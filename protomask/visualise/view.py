"""One image with what is to be shown on it, and how that becomes a picture.

Axes: H x W pixels of the image; K points. Everything lies in the image's own pixels, whatever the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from protomask.checks import check_array, check_choice
from protomask.errors import InputError, expected
from protomask.visualise import overlay
from protomask.visualise.palette import WHITE, rgb

STYLES = ("heat", "spotlight", "plain")


@dataclass(frozen=True, eq=False)
class View:
    """An image and what was found on it. Whatever is None is not drawn.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        map: [H, W] in [0, 1], laid over the image as heat.
        region: [H, W] bool, outlined in the method's colour.
        box: xyxy pixels, exclusive end, of the region; an empty one (x0 = x1) is not drawn.
        peak: (x, y) pixels of the map's highest pixel.
        annotation: [H, W] bool, the annotated part, outlined in white.
        points: [K, 2] (x, y) pixels of annotated points, NaN where not visible.
        caption: a few words for below the picture.
    """

    image: np.ndarray
    map: np.ndarray | None = None
    region: np.ndarray | None = None
    box: Sequence[float] | np.ndarray | None = None
    peak: Sequence[float] | np.ndarray | None = None
    annotation: np.ndarray | None = None
    points: np.ndarray | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        check_array("image", self.image, ("H", "W", 3), dtype=np.uint8)
        size = self.image.shape[:2]
        if self.map is not None:
            check_array("map", self.map, size)
        for name in ("region", "annotation"):
            if getattr(self, name) is not None:
                check_array(name, getattr(self, name), size, dtype=np.bool_)
        if self.points is not None:
            check_array("points", self.points, ("K", 2))


def stretched(view: View, size: tuple[int, int]) -> View:
    """The view at (height, width) pixels, with all that lies on it; no smaller than it is, so that nothing vanishes.

    Raises:
        InputError: the view is higher or wider than that.
    """
    height, width = view.image.shape[:2]
    if size == (height, width):
        return view
    if size[0] < height or size[1] < width:
        raise InputError(expected("size", f"at least the image's, {height} x {width}", f"{size[0]} x {size[1]}"))
    scale = np.array([size[1] / width, size[0] / height])

    def resized(array: np.ndarray, how: int = cv2.INTER_LINEAR) -> np.ndarray:
        return np.asarray(cv2.resize(array, size[::-1], interpolation=how))

    def outlined(region: np.ndarray | None) -> np.ndarray | None:
        return None if region is None else resized(region.astype(np.float32)) >= 0.5

    def moved(points: Sequence[float] | np.ndarray | None) -> np.ndarray | None:  # the centres of pixels
        return None if points is None else (np.asarray(points, dtype=np.float64) + 0.5) * scale - 0.5

    return View(
        resized(view.image, cv2.INTER_CUBIC),
        map=None if view.map is None else resized(view.map.astype(np.float32)),
        region=outlined(view.region),
        box=None if view.box is None else np.asarray(view.box, dtype=np.float64) * np.tile(scale, 2),
        peak=moved(view.peak),
        annotation=outlined(view.annotation),
        points=moved(view.points),
        caption=view.caption,
    )


def picture(view: View, colour: str, style: str = "heat", side: int = 448) -> np.ndarray:
    """The view as an image of at least ``side`` pixels on its shorter side (a whole multiple of the image's size).

    Args:
        view: what to draw.
        colour: ``#rrggbb`` of the region, its box and its peak.
        style: ``"heat"`` lays the map over the image; ``"spotlight"`` dims all but the region (or, without a region,
            all but the box); ``"plain"`` leaves the image as it is. Outlines are drawn in every style.
        side: pixels.

    Returns:
        [factor * H, factor * W, 3] uint8.
    """
    check_choice("style", style, STYLES)
    factor = overlay.display_factor(view.image, side)
    drawn = overlay.upscale(view.image, factor)
    thickness = max(2, round(min(drawn.shape[:2]) / 110))
    region = None if view.region is None else overlay.upscale_region(view.region, factor)
    if style == "heat" and view.map is not None:
        drawn = overlay.heat(drawn, overlay.upscale_map(view.map, factor))
    if style == "spotlight" and (region is not None or view.box is not None):
        drawn = overlay.spotlight(drawn, _inside(view, drawn, factor) if region is None else region)
    if view.annotation is not None:
        drawn = overlay.outline(drawn, overlay.upscale_region(view.annotation, factor), rgb(WHITE), thickness)
    return _found(view, drawn, region, rgb(colour), thickness, factor)


def spotlit(view: View, colour: str) -> np.ndarray:
    """The view without its map and peak, the region in the light; a box only where there is no region.

    Returns:
        [factor * H, factor * W, 3] uint8, as from :func:`picture`.
    """
    box = view.box if view.region is None else None
    return picture(replace(view, map=None, peak=None, box=box), colour, "spotlight")


def _found(
    view: View, drawn: np.ndarray, region: np.ndarray | None, colour: overlay.Colour, thickness: int, factor: int
) -> np.ndarray:
    if view.points is not None:
        for point in view.points:
            drawn = overlay.dot(drawn, _centre(point, factor), rgb(WHITE), thickness + 1)
    if region is not None:
        drawn = overlay.outline(drawn, region, colour, thickness)
    if view.box is not None:
        fine = thickness if region is None else max(2, thickness // 2)
        drawn = overlay.box(drawn, [factor * float(v) for v in view.box], colour, fine)
    if view.peak is not None:
        drawn = overlay.dot(drawn, _centre(view.peak, factor), colour, thickness + 1)
    return drawn


def _centre(xy: Sequence[float] | np.ndarray, factor: int) -> tuple[float, float]:
    # The centre of pixel i lies at factor * (i + .5) - .5 in the enlarged picture.
    return factor * (float(xy[0]) + 0.5) - 0.5, factor * (float(xy[1]) + 0.5) - 0.5


def _inside(view: View, drawn: np.ndarray, factor: int) -> np.ndarray:
    inside = np.zeros(drawn.shape[:2], dtype=np.bool_)
    if view.box is not None:
        x0, y0, x1, y1 = (max(0, round(factor * float(v))) for v in view.box)
        inside[y0:y1, x0:x1] = True
    return inside
