"""The planted flower: a plant with its bulb, in the manner of an8Flower (Oramas et al. 2019), percent of the frame.

The same random numbers are drawn whatever the colours, and all of them before anything is painted.
"""

from __future__ import annotations

import numpy as np

from protomask.data._backdrop import placed
from protomask.data._canvas import (
    BACKGROUND,
    FIRST_PART,
    OBJECT,
    Colour,
    Drawing,
    curve,
    darker,
    ellipse,
    fixed,
    joined,
    lighter,
    mix,
    moved,
    ribbon,
    solid,
    stacked,
    tone,
    turned,
)

PARTS = ("petals", "disc", "stem", "left leaf", "right leaf", "bud", "bulb")
DIAGNOSTIC = ("disc", "bud", "bulb")
_TAG = {part: FIRST_PART + number for number, part in enumerate(PARTS)}

_PETALS: tuple[Colour, ...] = ((238, 232, 222), (226, 224, 234), (236, 222, 216), (222, 228, 222))
_GREEN: Colour = (104, 134, 92)
_SOIL: Colour = (138, 124, 106)

_HEAD = np.array((1.5, -25.0))
_STEM = np.array([(0.0, 28.0), (-1.6, 14.0), (-1.6, 0.0), (-0.2, -13.0), (1.5, -24.0)])
_SHOOT = np.array([(-1.8, 7.0), (4.5, 4.0), (11.0, 0.5), (17.0, -1.5), (20.0, -1.0)])
_BULB_LINE = curve("0,23.5 3.4,26.2 8.2,29 10,34 7,39.4 0,41.4 -7,39.4 -10,34 -8.2,29 -3.4,26.2")

_PETAL = solid(curve("5,0 8.5,-4.6 15,-5.4 19.4,0 15,5.4 8.5,4.6", 4), 3, 0.12, (0.1, 0.0))
_SEEDS = tuple(
    turned(ellipse((radius, 0), (1.0, 0.75), vertices=10), 360 * k / number + radius)
    for radius, number in ((2.6, 4), (5.9, 9))
    for k in range(number)
)
# each diagnostic part has a marking of its own: it can be told from the others, and from distractors, close up
_DISC = stacked(solid(ellipse((0, 0), (8.9, 8.6)), steps=5, depth=0.18), *(tone(seed, 0.5) for seed in _SEEDS)).mapped(
    lambda points: points * 1.14
)
_LEAF = stacked(
    solid(curve("0,0 6,-4.4 14,-5.4 22,-2.6 27,0.6 20,2.8 11,3.4 4,2", 4), 3, 0.18, (0.0, -0.2)),
    tone(np.array([(1.0, -0.4), (23.5, -0.6), (23.5, 0.0), (1.0, 0.4)]), -0.3),
)
_FOLDS = tuple(
    ribbon(np.array([(3.4 * side, 3.0), (3.9 * side, 8.0), (1.2 * side, 15.2)]), np.array([0.8, 1.5, 0.4]))
    for side in (-1.0, 1.0)
)
_BUD_LINE = curve("0,-3 6.4,-1.4 9,5 6.6,12.2 0,17.6 -6.6,12.2 -9,5 -6.4,-1.4")
_BUD = stacked(solid(_BUD_LINE, steps=4, depth=0.18), *(tone(fold, 0.4) for fold in _FOLDS)).mapped(
    lambda points: points * 1.14
)
_CALYX = tone(curve("0,-4.8 7.2,-3 9.7,2.6 4.6,0.6 0,3.8 -4.6,0.6 -9.7,2.6 -7.2,-3", 4), 0.18).mapped(
    lambda points: points * 1.14
)
_STALK = stacked(
    *(
        stacked(tone(ribbon(spine, width), 0.3), tone(ribbon(spine - (0.4, 0.2), width * 0.5), -0.08))
        for spine, width in ((_SHOOT, np.linspace(2.4, 1.9, 5)), (_STEM, np.linspace(3.6, 2.6, 5)))
    )
)
_SKIN = tuple(
    ribbon(np.array([(0.6 * s, 27), (3.4 * s, 30), (4.2 * s, 34.5), (2.6 * s, 39.6)]), np.array([0.3, 0.7, 0.7, 0.3]))
    for s in (-1.3, 0.1, 1.4)
)
_COLLAR = np.array((0.0, 27.0))
_BULB = stacked(solid(_BULB_LINE, 4, 0.18, (-0.2, 0.0)), *(tone(line, 0.26) for line in _SKIN)).mapped(
    lambda points: (points - _COLLAR) * 1.12 + _COLLAR
)
_ROOTS = stacked(
    *(
        fixed(
            ribbon(np.array([(x, 40), (1.3 * x + 0.5, 43), (1.9 * x, 45.6)]), np.array([1.2, 0.9, 0.4])),
            (176, 160, 136),
        )
        for x in (-3.6, -0.4, 3.4)
    )
)


def _leaf(green: Colour, part: str, degrees: float, height: float, side: float) -> Drawing:
    at = np.array((-1.3, height))
    return _LEAF.tinted(green, _TAG[part]).mapped(lambda points: turned(points, degrees) * (side, 1.0) + at)


def _head(petals: Colour, disc: Colour, count: int, degrees: float, squash: float) -> Drawing:
    petal = _PETAL.tinted(petals, _TAG["petals"])
    ring = [moved(petal, 1.0, degrees + 360 * k / count, False, (0.0, 0.0)) for k in range(count)]
    whole = joined([*ring, _DISC.tinted(disc, _TAG["disc"])])
    return whole.mapped(lambda points: points * (1.0, squash) + _HEAD)


def _soil(rng: np.random.Generator, height: float) -> Drawing:
    """Soil below ``height`` with pebbles, and blades of grass along its edge."""
    x = np.linspace(-4, 104, 10)
    edge = height + np.cumsum(rng.uniform(-1.1, 1.1, 10))
    below = np.array([(104.0, 106.0), (-4.0, 106.0)])
    bands = [
        tone(np.concatenate([np.stack([x, edge + drop], 1), below]), share)
        for drop, share in ((0, 0), (2.2, 0.1), (8, 0.18))
    ]
    soil = stacked(*bands).tinted(mix(_SOIL, (150, 150, 128), rng.uniform(0, 1)), BACKGROUND)
    blades = []
    for place, tall, lean, pale in rng.uniform((0, 4, -3, 0), (100, 10, 3, 1), (16, 4)).tolist():
        foot = float(np.interp(place, x, edge)) + 0.8
        bend, tip = (place + 0.4 * lean, foot - 0.6 * tall), (place + lean, foot - tall)
        blade = np.array([(place - 0.7, foot), bend, tip, (place + 0.7, foot)])
        blades.append(fixed(blade, mix((128, 148, 108), (162, 172, 138), pale)))
    pebbles = [
        fixed(
            ellipse((place, height + drop), (radius, 0.65 * radius), vertices=14),
            mix((112, 102, 90), (186, 178, 164), pale),
        )
        for place, drop, radius, pale in rng.uniform((0, 3, 0.8, 0), (100, 20, 2.2, 1), (7, 4)).tolist()
    ]
    return joined([soil, stacked(*blades, *pebbles).tinted(_SOIL, BACKGROUND)])


def _plant(
    colours: dict[str, Colour], petals: Colour, green: Colour, pose: np.ndarray, count: int, squash: float
) -> Drawing:
    """The plant about the origin.

    ``pose`` [6] is the turn of left leaf, right leaf, bud and petals, degrees, then the height of either leaf's root.
    """
    left, right, nod, twist, low, high = pose
    neutral = {"bulb": (196.0, 182.0, 160.0), "bud": lighter(green, 0.3), "disc": (136.0, 116.0, 96.0)}
    bulb, bud, disc = (colours.get(part, neutral[part]) for part in ("bulb", "bud", "disc"))
    shoot = joined([_BUD.tinted(bud, _TAG["bud"]), _CALYX.tinted(green, OBJECT)])
    return joined(
        [
            _ROOTS.tinted(green, OBJECT),
            _BULB.tinted(bulb, _TAG["bulb"]),
            _STALK.tinted(green, _TAG["stem"]),
            _leaf(green, "left leaf", left, low, -1.0),
            _leaf(darker(green, 0.08), "right leaf", right, high, 1.0),
            shoot.mapped(lambda points: turned(points, nod) + _SHOOT[-1]),
            _head(petals, disc, count, twist, squash),
        ]
    )


def flower(rng: np.random.Generator, colours: dict[str, Colour]) -> tuple[Drawing, Drawing]:
    """A plant somewhere in the frame, wholly inside it, and the ground it stands on.

    Args:
        rng: where all jitter comes from; the same draws are made whatever the colours.
        colours: RGB of the diagnostic parts that have one; the others are of a neutral colour.

    Returns:
        The ground (behind the plant) and the plant, both in percent of the frame's side.
    """
    pale, shade = _PETALS[rng.integers(len(_PETALS))], rng.uniform(-10, 10, 5).tolist()
    petals: Colour = (pale[0] + shade[0], pale[1] + shade[0], pale[2] + shade[0])
    green: Colour = (_GREEN[0] + shade[1] + shade[2], _GREEN[1] + shade[1] + shade[3], _GREEN[2] + shade[1] + shade[4])
    pose = rng.uniform((-42, -38, -20, 0, 16, 12), (-8, -6, 20, 45, 22, 18))
    count, squash = int(rng.integers(7, 10)), rng.uniform(0.86, 1.0)
    lean, scale, mirror = rng.uniform(-10, 10), rng.uniform(0.86, 1.0), bool(rng.integers(2))
    posed = moved(_plant(colours, petals, green, pose, count, squash), scale, lean, mirror, (0.0, 0.0))
    shift = placed(rng, posed)
    foot = turned(np.array((0.0, 34.0)) * scale, lean) + shift
    return _soil(rng, float(foot[1])), posed.mapped(lambda points: points + shift)
