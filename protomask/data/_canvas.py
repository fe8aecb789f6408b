"""Drawing of the planted scenes: filled outlines on a supersampled canvas that remembers what covers each pixel.

Coordinates are percent of the frame's side, x to the right and y down, so that a scene is the same at every size. A
:class:`Stencil` is the constant shape of something, made once; tinted with a colour it gives a :class:`Drawing`. Every
outline carries a tag beside its colour; canvas and tags are one four-channel picture, so that occlusion is exact by
construction: what was drawn last on a pixel is what is visible there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

Colour = tuple[float, float, float]

BACKGROUND, OBJECT, FIRST_PART, FIRST_DISTRACTOR = 0, 1, 2, 128
_FRACTION_BITS = 6  # of OpenCV's fixed-point coordinates: 1/64 of a canvas pixel
_DARK: Colour = (34.0, 30.0, 36.0)
_LIGHT: Colour = (255.0, 252.0, 240.0)


@dataclass(frozen=True, eq=False)
class Drawing:
    """Filled outlines, bottom to top, stored end to end so that they move in one operation.

    Attributes:
        points: [sum(lengths), 2] float (x, y), percent of the frame's side.
        lengths: [L] int, vertices of each outline; outlines are closed.
        colours: [L, 3] float RGB, 0 .. 255.
        tags: [L] int, what each belongs to: BACKGROUND, OBJECT, FIRST_PART + part or FIRST_DISTRACTOR + number.
    """

    points: np.ndarray
    lengths: np.ndarray
    colours: np.ndarray
    tags: np.ndarray

    def mapped(self, move: Callable[[np.ndarray], np.ndarray]) -> Drawing:
        """The same outlines with ``move`` [N, 2] -> [N, 2] applied to all their points."""
        return replace(self, points=move(self.points))

    def extent(self) -> np.ndarray:
        """The box [4] xyxy around everything, percent of the frame's side."""
        return np.concatenate([self.points.min(0), self.points.max(0)])


@dataclass(frozen=True, eq=False)
class Stencil:
    """The shape of something without its colour: layer l is painted ``weight[l] * colour + added[l]``.

    Attributes:
        points, lengths: as in :class:`Drawing`.
        weight: [L] float, share of the tint in each layer; 0 where the layer's colour is fixed.
        added: [L, 3] float RGB, what is added to that share.
    """

    points: np.ndarray
    lengths: np.ndarray
    weight: np.ndarray
    added: np.ndarray

    def tinted(self, colour: Colour, tag: int) -> Drawing:
        """The stencil painted in ``colour``, all of it tagged ``tag``."""
        colours = self.weight[:, None] * np.array(colour) + self.added
        return Drawing(self.points, self.lengths, colours, np.full(len(self.lengths), tag))

    def mapped(self, move: Callable[[np.ndarray], np.ndarray]) -> Stencil:
        """The same outlines with ``move`` [N, 2] -> [N, 2] applied to all their points."""
        return replace(self, points=move(self.points))

    def toned(self, share: float) -> Stencil:
        """The stencil as if its tint had ``share`` of warm near-black in it, or -share of warm white where negative."""
        other = np.array(_DARK if share > 0 else _LIGHT)
        added = self.added + abs(share) * self.weight[:, None] * other
        return replace(self, weight=self.weight * (1 - abs(share)), added=added)


def joined(drawings: Sequence[Drawing]) -> Drawing:
    """One drawing: the given ones from bottom to top."""
    columns = zip(*((d.points, d.lengths, d.colours, d.tags) for d in drawings), strict=True)
    return Drawing(*(np.concatenate(column) for column in columns))


def stacked(*stencils: Stencil) -> Stencil:
    """One stencil: the given ones from bottom to top."""
    columns = zip(*((s.points, s.lengths, s.weight, s.added) for s in stencils), strict=True)
    return Stencil(*(np.concatenate(column) for column in columns))


def tone(outline: np.ndarray, share: float = 0.0) -> Stencil:
    """One outline in the tint with ``share`` of warm near-black in it (-share of warm white where negative)."""
    flat = Stencil(outline, np.array([len(outline)]), np.ones(1), np.zeros((1, 3)))
    return flat.toned(share)


def fixed(outline: np.ndarray, colour: Colour) -> Stencil:
    """One outline whose colour is ``colour`` whatever the tint."""
    return Stencil(outline, np.array([len(outline)]), np.zeros(1), np.array([colour], dtype=np.float64))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with ``share`` (0 .. 1) of ``b``."""
    return (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2]))


def darker(colour: Colour, share: float) -> Colour:
    """``colour`` with ``share`` of a warm near-black."""
    return mix(colour, _DARK, share)


def lighter(colour: Colour, share: float) -> Colour:
    """``colour`` with ``share`` of a warm white."""
    return mix(colour, _LIGHT, share)


def curve(path: str, per: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve [P * per, 2] through the P points of ``path``, ``per`` vertices from each to the next.

    Points are written as in SVG: ``"x,y x,y ..."``.
    """
    p = np.array([[float(number) for number in pair.split(",")] for pair in path.split()])
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = (np.arange(per) / per)[None, :, None]
    p0, p1, p2, p3 = (q[:, None, :] for q in (before, p, after, beyond))
    out = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return out.reshape(-1, 2)


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0, vertices: int = 28
) -> np.ndarray:
    """Ellipse [vertices, 2], its first axis turned by ``degrees`` (clockwise as seen, as y points down)."""
    angle = np.arange(vertices) * (2 * np.pi / vertices)
    return turned(np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], 1), degrees) + np.array(centre)


def ribbon(spine: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Outline [2 N, 2] of a band along ``spine`` [N, 2] that is ``width`` [N] wide."""
    along = np.gradient(spine, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    half = normal * (width[:, None] / 2)
    return np.concatenate([spine + half, (spine - half)[::-1]])


def turned(points: np.ndarray, degrees: float, pivot: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """``points`` [..., 2] turned about ``pivot`` (clockwise as seen, as y points down)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    centre = np.array(pivot)
    return (points - centre) @ np.array([[c, s], [-s, c]]) + centre


def solid(
    outline: np.ndarray, steps: int = 4, depth: float = 0.2, toward: tuple[float, float] = (-0.2, -0.35)
) -> Stencil:
    """An outline as a solid body: a dark rim, then copies that shrink towards the light and grow paler.

    ``toward`` is where the light falls, in half-extents from the middle; every copy lies inside the outermost one if
    the outline is star-shaped from there. ``depth`` is the range of the shading, 0 .. 1.
    """
    low, high = outline.min(0), outline.max(0)
    focus = (low + high) / 2 + np.array(toward) * (high - low) / 2
    layers = [tone(outline, 1.6 * depth)]
    for share in np.linspace(0, 1, steps):
        layers.append(tone(focus + (outline - focus) * (0.93 - 0.62 * share), depth * (0.5 - share)))
    return stacked(*layers)


def moved(drawing: Drawing, scale: float, degrees: float, mirror: bool, to: tuple[float, float]) -> Drawing:
    """A drawing about the origin: mirrored in x where asked, then turned, scaled and moved to ``to``."""
    flip = np.array([-scale if mirror else scale, scale])
    return drawing.mapped(lambda points: turned(points * flip, degrees) + np.array(to))


def oversampling(size: int) -> int:
    """Canvas pixels per pixel and side: odd, so that one of them is the pixel's centre; fewer where pixels are fine."""
    return 5 if size < 64 else 3


def paint(
    backdrop: np.ndarray, drawing: Drawing, size: int, without: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """A drawing over a backdrop, leaving out the outlines whose tag is in ``without``.

    Args:
        backdrop: [h, w, 3] uint8, smooth; enlarged to the canvas.
        drawing: what to draw, bottom to top.
        size: side of the result, pixels.
        without: tags left out; all else stays as it is.

    Returns:
        Image [size, size, 3] uint8, each pixel the mean of what covers it, and tags [size, size] uint8: what covers the
        pixel's centre.
    """
    factor = oversampling(size)
    side = size * factor
    canvas = np.zeros((side, side, 4), np.uint8)
    canvas[..., :3] = cv2.resize(backdrop, (side, side), interpolation=cv2.INTER_LINEAR)
    # a pixel covers i .. i + 1, and OpenCV's coordinate i is its centre
    pixel = 1 << _FRACTION_BITS
    points = np.rint(drawing.points * (pixel * side / 100) - pixel // 2).astype(np.int32)
    start = 0
    columns = (drawing.lengths.tolist(), drawing.colours.tolist(), drawing.tags.tolist())
    for length, colour, tag in zip(*columns, strict=True):
        if tag not in without:
            outline = points[start : start + length]
            cv2.fillPoly(canvas, [outline], (*colour, tag), lineType=cv2.LINE_8, shift=_FRACTION_BITS)
        start += length
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[..., :3]), canvas[factor // 2 :: factor, factor // 2 :: factor, 3].copy()
