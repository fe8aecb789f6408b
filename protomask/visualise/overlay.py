"""Maps, regions and boxes drawn on images: numpy and OpenCV only, and never on the caller's own array.

Axes: B images of H x W pixels. Images are uint8 RGB [H, W, 3], maps float [H, W] in [0, 1], regions bool [H, W], boxes
xyxy in pixels with exclusive end, colours (red, green, blue) in 0 .. 255. Small images are enlarged *before* anything
is drawn on them (:func:`upscale` and its companions), so that lines are crisp::

    factor = display_factor(image)
    picture = heat(upscale(image, factor), upscale_map(map_, factor))
    picture = outline(picture, upscale_region(region, factor), (213, 94, 0))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_array, check_choice, check_count, check_number, check_tensor
from protomask.errors import InputError, expected

Colour = tuple[int, int, int]
Box = Sequence[float] | np.ndarray

# Perceptually uniform maps of rising lightness, read alike by colour-blind readers; rainbows such as jet are left out.
COLORMAPS = {
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "cividis": cv2.COLORMAP_CIVIDIS,
}
HALO: Colour = (16, 16, 16)
_ROUNDING = 1e-5
_SUBPIXEL = 4  # bits of fixed-point precision in OpenCV's drawing calls


def heat(image: np.ndarray, map_: np.ndarray, alpha: float = 0.45, colormap: str = "inferno") -> np.ndarray:
    """The map laid over the image, more opaque where it is higher: where it is zero, the image stays as it was.

    Args:
        image: [H, W, 3] uint8.
        map_: [H, W] in [0, 1].
        alpha: opacity in [0, 1] where the map is 1; opacity falls linearly with the map.
        colormap: one of :data:`COLORMAPS`.

    Returns:
        [H, W, 3] uint8.

    Raises:
        InputError: wrong shape or dtype, a map outside [0, 1], an unknown colour map.
    """
    _check_image(image)
    values = _check_map(map_, image)
    check_number("alpha", alpha, 0, 1)
    check_choice("colormap", colormap, tuple(COLORMAPS))
    levels = np.rint(values * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, COLORMAPS[colormap])[:, :, ::-1].astype(np.float32)
    opacity = (alpha * values)[:, :, None]
    mixed: np.ndarray = np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8)
    return mixed


def outline(
    image: np.ndarray, region: np.ndarray, colour: Colour, thickness: int = 2, halo: Colour | None = HALO
) -> np.ndarray:
    """The contours of a region, holes included, as lines with a thin dark rim that shows on any background.

    Args:
        image: [H, W, 3] uint8.
        region: [H, W] bool; an empty one draws nothing.
        colour: of the line.
        thickness: of the line in pixels; the rim adds one pixel or more on either side.
        halo: colour of the rim, or None for none.

    Returns:
        [H, W, 3] uint8.
    """
    _check_image(image)
    _check_region(region, image)
    check_count("thickness", thickness)
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture: np.ndarray = image.copy()
    for width, paint in _strokes(thickness, colour, halo):
        cv2.drawContours(picture, contours, -1, paint, width, lineType=cv2.LINE_AA)
    return picture


def box(image: np.ndarray, xyxy: Box, colour: Colour, thickness: int = 2, halo: Colour | None = HALO) -> np.ndarray:
    """A box (xyxy pixels, exclusive end) drawn along its outermost pixels; an empty box draws nothing.

    Returns:
        [H, W, 3] uint8.
    """
    _check_image(image)
    check_count("thickness", thickness)
    x0, y0, x1, y1 = _check_box(xyxy)
    picture: np.ndarray = image.copy()
    if x1 > x0 and y1 > y0:
        for width, paint in _strokes(thickness, colour, halo):
            cv2.rectangle(picture, (round(x0), round(y0)), (round(x1) - 1, round(y1) - 1), paint, width)
    return picture


def dot(image: np.ndarray, xy: Sequence[float] | np.ndarray, colour: Colour, radius: int = 4) -> np.ndarray:
    """A disc at (x, y) pixels with a dark rim; a point that is NaN (not visible) draws nothing. [H, W, 3] uint8."""
    _check_image(image)
    check_count("radius", radius)
    x, y = (float(v) for v in xy)
    picture: np.ndarray = image.copy()
    if math.isfinite(x) and math.isfinite(y):
        centre = (round(x * 2**_SUBPIXEL), round(y * 2**_SUBPIXEL))
        for reach, paint in ((radius + _rim(radius), HALO), (radius, colour)):
            cv2.circle(picture, centre, reach << _SUBPIXEL, paint, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL)
    return picture


def spotlight(image: np.ndarray, region: np.ndarray, light: float = 0.62, saturation: float = 0.3) -> np.ndarray:
    """The region as it is, the rest darkened to ``light`` and its colour faded to ``saturation``, both in [0, 1].

    Args:
        image: [H, W, 3] uint8.
        region: [H, W] bool.
        light: factor on the brightness outside.
        saturation: share of the colour kept outside.

    Returns:
        [H, W, 3] uint8, equal to ``image`` inside the region.
    """
    _check_image(image)
    _check_region(region, image)
    check_number("light", light, 0, 1)
    check_number("saturation", saturation, 0, 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    faded = np.rint(light * (grey + saturation * (image - grey))).clip(0, 255).astype(np.uint8)
    return np.where(region[:, :, None], image, faded)


def display_factor(image: np.ndarray, side: int = 448) -> int:
    """The least whole factor that brings the shorter side of an image [H, W, 3] to ``side`` pixels; at least 1."""
    shorter = max(1, int(min(image.shape[:2])))
    return max(1, math.ceil(check_count("side", side) / shorter))


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """An image enlarged by a whole factor, Lanczos: [H, W, 3] -> [factor * H, factor * W, 3] uint8."""
    _check_image(image)
    return _resize(image, factor, cv2.INTER_LANCZOS4)


def upscale_map(map_: np.ndarray, factor: int) -> np.ndarray:
    """A map enlarged by a whole factor, bilinear (so that it stays in [0, 1]): [H, W] -> [factor * H, factor * W]."""
    check_array("map", map_, ("H", "W"))
    return _resize(map_.astype(np.float32), factor, cv2.INTER_LINEAR)


def upscale_region(region: np.ndarray, factor: int) -> np.ndarray:
    """A region enlarged by a whole factor, its corners rounded by less than one of its own pixels; none vanishes.

    [H, W] bool -> [factor * H, factor * W] bool: where the bilinear interpolation of the region is at least one half.
    """
    check_array("region", region, ("H", "W"), dtype=np.bool_)
    smooth = _resize(region.astype(np.float32), factor, cv2.INTER_LINEAR)
    return np.asarray(smooth >= 0.5)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Model-ready images as pictures, the inverse of :func:`protomask.data.sample.to_tensor`.

    Args:
        images: [B, C, H, W] float, C = 1 or 3, value = (pixel / 255 - mean) / std.
        mean, std: C values each.

    Returns:
        [B, H, W, 3] uint8; grey images have three equal channels. Values beyond black and white are clipped.

    Raises:
        InputError: wrong shape, NaN, or a mean and std that do not fit the channels.
    """
    check_tensor("images", images, ("B", "C", "H", "W"))
    channels = images.shape[1]
    if channels not in (1, 3):
        raise InputError(expected("images", "1 or 3 channels", channels))
    if len(mean) != channels or len(std) != channels:
        raise InputError(expected("mean, std", f"{channels} values each", f"{len(mean)} and {len(std)}"))
    centre, spread = (torch.tensor(list(v), dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
    pixels = (images.detach().float().cpu() * spread + centre).mul(255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def crop(
    image: np.ndarray, xyxy: Box, context: float = 0.0, minimum: int = 8
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A square cut-out around a box, moved (never squeezed) to lie within the image.

    Args:
        image: [H, W, 3] uint8.
        xyxy: the box, pixels, exclusive end.
        context: how much to add on each side, as a share of the box's longer side.
        minimum: the least side of the cut-out, pixels.

    Returns:
        The cut-out [S, S, 3] uint8 (less than square only where the image is smaller) and its box xyxy in ``image``.
    """
    _check_image(image)
    check_number("context", context, 0)
    x0, y0, x1, y1 = _check_box(xyxy)
    side = max(check_count("minimum", minimum), math.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * context)))
    height, width = image.shape[:2]
    left, right = _window((x0 + x1) / 2, side, width)
    top, bottom = _window((y0 + y1) / 2, side, height)
    return image[top:bottom, left:right].copy(), (left, top, right, bottom)


def _window(centre: float, side: int, size: int) -> tuple[int, int]:
    side = min(side, size)
    start = min(max(0, round(centre - side / 2)), size - side)
    return start, start + side


def _resize(array: np.ndarray, factor: int, how: int) -> np.ndarray:
    height, width = array.shape[:2]
    size = (width * check_count("factor", factor), height * factor)
    return np.asarray(cv2.resize(array, size, interpolation=how))


def _rim(thickness: int) -> int:
    return max(1, round(thickness / 3))


def _strokes(thickness: int, colour: Colour, halo: Colour | None) -> tuple[tuple[int, Colour], ...]:
    line = (thickness, colour)
    return (line,) if halo is None else ((thickness + 2 * _rim(thickness), halo), line)


def _check_image(image: object) -> None:
    check_array("image", image, ("H", "W", 3), dtype=np.uint8)


def _check_map(map_: object, image: np.ndarray) -> np.ndarray:
    values = check_array("map", map_, image.shape[:2])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    # Written so that NaN is refused too; scaling to [0, 1] in float32 can overshoot by a rounding error.
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(expected("map", "values in [0, 1]", f"{low:g} to {high:g}"))
    return values.astype(np.float32).clip(0, 1)


def _check_region(region: object, image: np.ndarray) -> None:
    check_array("region", region, image.shape[:2], dtype=np.bool_)


def _check_box(xyxy: Box) -> tuple[float, float, float, float]:
    values = [float(v) for v in xyxy]
    if len(values) != 4 or not all(math.isfinite(v) for v in values):
        raise InputError(expected("box", "four finite numbers x0, y0, x1, y1", values))
    return values[0], values[1], values[2], values[3]
