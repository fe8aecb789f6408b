"""What lies behind and around a planted object: a soft backdrop, foliage, and the distractors.

Distractors carry the diagnostic colours, are about as large as the parts, but have other shapes and lie away from the
object: colour alone does not give the class.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from protomask.data._canvas import (
    BACKGROUND,
    FIRST_DISTRACTOR,
    Colour,
    Drawing,
    Stencil,
    curve,
    ellipse,
    fixed,
    joined,
    mix,
    moved,
    solid,
    stacked,
    tone,
    turned,
)

_SOFT = 64  # side of the backdrop before it is enlarged: it holds nothing sharper
_CANDIDATES = 60
_MOODS: tuple[tuple[Colour, Colour], ...] = (
    ((222, 232, 216), (150, 178, 150)),  # mist over a meadow
    ((214, 228, 236), (158, 178, 184)),  # overcast
    ((240, 228, 208), (188, 176, 148)),  # sand
    ((226, 222, 234), (164, 164, 182)),  # dusk
    ((216, 234, 228), (140, 170, 164)),  # sea air
    ((232, 234, 206), (160, 172, 128)),  # early summer
)
_FOLIAGE: tuple[Colour, ...] = ((118, 140, 104), (134, 150, 112), (104, 132, 118), (146, 148, 118))
_HAZE: Colour = (205.0, 214.0, 200.0)
_TWIG: Colour = (96.0, 84.0, 66.0)
_INSECT: Colour = (70.0, 62.0, 62.0)

_BLADE = curve("-10,0 -5,-3.6 1,-4.3 7,-2.2 11,0 7,2.2 1,4.3 -5,3.6", 4)
_VEIN = np.array([(-12.5, -0.45), (8.0, -0.1), (8.0, 0.1), (-12.5, 0.45)])
_WING = curve("0,0 2,-5.6 7.2,-7.4 8.4,-3.6 5.6,-0.4 7.2,3.4 3.6,5.2 0.9,2.6", 4)
_ANTENNAE = np.array([(-0.3, -3.0), (-2.4, -6.6), (-2.0, -6.8), (0.0, -3.4), (2.0, -6.8), (2.4, -6.6), (0.3, -3.0)])
_STALK = np.array([(-0.4, -8.5), (0.4, -8.5), (4.2, 0.0), (3.4, 0.3), (0.3, -5.5), (-3.4, 0.3), (-4.2, 0.0)])

_PALE_LEAF = stacked(tone(_BLADE), tone(_VEIN, -0.3))
_LEAF = stacked(tone(_VEIN, 0.45), solid(_BLADE, steps=3, depth=0.16), tone(_VEIN * (0.85, 0.9), 0.3))
_BERRIES = stacked(
    fixed(_STALK, _TWIG),
    *(solid(ellipse(at, (3.9, 3.9), vertices=20), steps=3, depth=0.22) for at in ((-3.6, 1.6), (3.8, 1.2), (0.2, 5.6))),
)
_BLOSSOM = stacked(
    *(solid(turned(ellipse((4.3, 0), (4, 2.7), vertices=16), 72 * k), steps=2, depth=0.14) for k in range(5)),
    fixed(ellipse((0, 0), (1.9, 1.9), vertices=14), (244.0, 238.0, 214.0)),
)
_BUTTERFLY = stacked(
    fixed(_ANTENNAE, _INSECT),
    *(solid(_WING * (side, 1.0), steps=3, depth=0.18, toward=(-0.2 * side, -0.1)) for side in (-1.0, 1.0)),
    fixed(ellipse((0, 0.4), (0.9, 4.0), vertices=14), _INSECT),
)
# stencil, and how far it may be turned from upright, degrees
_LURES: tuple[tuple[Stencil, float], ...] = ((_LEAF, 180), (_BERRIES, 30), (_BLOSSOM, 180), (_BUTTERFLY, 40))
_REACH = 10.5  # radius of the largest of them


def _upscaled(coarse: np.ndarray) -> np.ndarray:
    return cv2.resize(coarse.astype(np.float32), (_SOFT, _SOFT), interpolation=cv2.INTER_CUBIC)


def backdrop(rng: np.random.Generator) -> np.ndarray:
    """A soft picture [64, 64, 3] uint8: a gradient of two muted colours, blotches and discs out of focus."""
    top, bottom = (np.array(colour) + rng.uniform(-8, 8) for colour in _MOODS[rng.integers(len(_MOODS))])
    rise = np.linspace(0, 1, _SOFT)[:, None] + rng.uniform(-0.35, 0.35) * np.linspace(-1, 1, _SOFT)[None, :]
    picture = top + np.clip(rise, 0, 1)[..., None] * (bottom - top)
    picture += _upscaled(rng.normal(0, 8, (8, 8)))[..., None] + _upscaled(rng.normal(0, 4, (5, 5, 3)))
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    for x, y, radius, share in rng.uniform((0, 0, 3, -0.12), (_SOFT, _SOFT, 9, 0.3), (9, 4)).tolist():
        r, g, b = picture[int(y), int(x)].tolist()
        disc = mix((r, g, b), (255, 252, 240) if share > 0 else (34, 30, 36), abs(share))
        cv2.circle(picture, (int(x * 16), int(y * 16)), int(radius * 16), disc, -1, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(picture, (5, 5), 1.1)


def foliage(rng: np.random.Generator, count: int = 7) -> Drawing:
    """Muted leaves around the frame's edges, behind everything else."""
    leaves = []
    draws = rng.uniform((0, -6, 0.8, 0, 0.25), (100, 20, 1.5, 360, 0.65), (count, 5)).tolist()
    for (along, inward, scale, degrees, haze), (side, hue) in zip(draws, rng.integers(4, size=(count, 2)), strict=True):
        place = [(along, inward), (along, 100 - inward), (inward, along), (100 - inward, along)][side]
        leaf = _PALE_LEAF.tinted(mix(_FOLIAGE[hue], _HAZE, haze), BACKGROUND)
        leaves.append(moved(leaf, scale, degrees, False, place))
    return joined(leaves)


def _clearance(spots: np.ndarray, hull: np.ndarray) -> np.ndarray:
    """How far spots [N, 2] lie outside a convex outline [M, 2]: at most their distance to it, negative inside. [N]"""
    edges = np.roll(hull, -1, 0) - hull
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1) / np.linalg.norm(edges, axis=1, keepdims=True)
    outward = normals * np.sign(((hull - hull.mean(0)) * normals).sum(1, keepdims=True))
    return (spots @ outward.T - (hull * outward).sum(1)).max(1)


def _places(candidates: np.ndarray, hull: np.ndarray, reaches: np.ndarray) -> np.ndarray:
    """(x, y, reach) [M, 3] of each distractor: clear of the object and of each other, shrunken where it has to be."""
    done = np.zeros((0, 3))
    for reach in reaches:
        spots = 0.75 * reach + candidates * (100 - 1.5 * reach)
        gaps = _clearance(spots, hull)
        for x, y, other in done:
            gaps = np.minimum(gaps, np.hypot(spots[:, 0] - x, spots[:, 1] - y) - other)
        fits = np.flatnonzero(gaps > 1.1 * reach)
        best = int(fits[0]) if len(fits) else int(gaps.argmax())
        done = np.concatenate([done, [[*spots[best], np.clip(gaps[best] / 1.1, 0.6 * reach, reach)]]])
    return done


def distractors(rng: np.random.Generator, around: Drawing, colours: Sequence[Colour]) -> Drawing:
    """3 to 5 distractors in the given colours, each tagged FIRST_DISTRACTOR + its number, away from ``around``.

    Colours come in a shuffled round: as many different ones as possible are in the scene, whatever its class.
    """
    count = int(rng.integers(3, 6))
    order, kinds = rng.permutation(len(colours)), rng.integers(len(_LURES), size=count)
    hull = cv2.convexHull(around.points.astype(np.float32))[:, 0].astype(np.float64)
    places = _places(rng.uniform(0, 1, (_CANDIDATES, 2)), hull, rng.uniform(0.85, 1.15, count) * _REACH)
    turns = rng.uniform(-1, 1, count)
    lures = []
    for number, (x, y, reach) in enumerate(places.tolist()):
        stencil, freedom = _LURES[kinds[number]]
        lure = stencil.tinted(colours[order[number % len(order)]], FIRST_DISTRACTOR + number)
        lures.append(moved(lure, reach / _REACH, freedom * turns[number], False, (x, y)))
    return joined(lures)


def placed(rng: np.random.Generator, drawing: Drawing, margin: float = 2.5) -> np.ndarray:
    """Shift [2] that brings a drawing to a random place with all of it at least ``margin`` inside the frame."""
    box = drawing.extent()
    low, high = margin - box[:2], 100 - margin - box[2:]
    return np.where(high > low, low + rng.uniform(0, 1, 2) * (high - low), (low + high) / 2)
