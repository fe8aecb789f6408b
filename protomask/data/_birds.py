"""The planted bird: a small songbird on a branch, in percent of the frame's side, designed facing right.

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

PARTS = ("beak", "crown", "eye", "breast", "wing", "tail", "feet")
DIAGNOSTIC = ("crown", "breast", "tail")
_TAG = {part: FIRST_PART + number for number, part in enumerate(PARTS)}

_PLUMAGE: tuple[Colour, ...] = (
    (142, 122, 104),  # taupe
    (120, 124, 132),  # slate
    (160, 142, 120),  # sand
    (104, 100, 102),  # charcoal
    (132, 128, 110),  # olive grey
)
_HORN: Colour = (84, 76, 70)
_BARK: Colour = (122, 104, 88)

_BODY_LINE = curve("10,-15 17,-10 21.5,-2 19.5,7 12,13.5 2,15.5 -8,13 -17,8.5 -20,4.5 -16,0 -7,-5.5 1,-11")
_HEAD_LINE = ellipse((15.5, -14.5), (10.4, 9.8))
_WING_LINE = curve("7.5,-7.5 9.6,-2 6,4.2 -3,8 -12,9.2 -20.5,8.6 -14,3 -7,-4 1,-8.6")
_QUILLS = tuple(
    np.array([(x, y), (x - 11, y + 2.4), (x - 11.4, y + 3.2)])
    for x, y in ((3.5, 4.4), (-1.5, 2.2), (-5, -0.4), (-2, 6.4))
)
_TAIL_LINE = curve(
    "-25.6,5.6 -32.5,3.4 -40.2,2.2 -42.6,5.4 -41.2,9.2 -42.6,13.2 -40.2,16.4 -32.5,14.4 -25.4,11.8 -24.4,8.6"
)

_RUMP = solid(curve("-10,0.5 -20,3.6 -28.5,5.6 -28.2,11.6 -20,11.2 -9,11.5", 4), steps=3, depth=0.14).toned(0.12)
_TAIL_ROOT = np.array((-25.0, 8.7))
_BARS = tuple(
    ribbon(np.array([(x + 0.5, 8.9 - rise), (x - 0.4, 9.0), (x + 0.5, 9.1 + rise)]), np.array([1.2, 2.0, 1.2]))
    for x, rise in ((-30.4, 3.6), (-34.6, 4.4), (-38.8, 5.0))
)
_TAIL = stacked(
    solid(_TAIL_LINE, steps=4, depth=0.14, toward=(0.0, -0.2)),
    *(tone(bar, 0.5) for bar in _BARS),
)
_BODY = solid(_BODY_LINE, steps=6, depth=0.2, toward=(0.1, -0.25))
_BELLY = tone(curve("17.5,7.5 12,12.8 2,14.6 -8,12.2 -14,8.6 -4,9.2 8,7.5"), -0.36)
_BREAST_LINE = curve("20.4,-4.6 21.6,1.4 18.8,7.8 11.8,9.4 6.4,4.8 6.6,-2.2 12.4,-6.8")
_SPECKLES = tuple(
    ellipse(at, (0.95, 1.35), vertices=10)
    for at in ((11.6, -2.8), (16.0, -3.0), (13.8, 0.3), (18.4, 0.4), (10.2, 3.2), (15.4, 4.0), (12.6, 6.6))
)
# each diagnostic part has a marking of its own: it can be told from the others, and from distractors, close up
_BREAST = stacked(solid(_BREAST_LINE, steps=5, depth=0.16, toward=(0.1, -0.3)), *(tone(s, 0.55) for s in _SPECKLES))
_KEEL = np.array((17.0, 1.0))
_RIMS = stacked(tone(_HEAD_LINE, 0.3), tone(_BODY_LINE, 0.32))
# the rim lies under the body, so that head and body run into each other
_HEAD = solid(ellipse((15.5, -14.5), (9.9, 9.3)), steps=5, depth=0.14, toward=(0.2, -0.2))
_CROWN_LINE = curve("24.8,-17.4 23,-22.5 17,-26.4 9.5,-27.2 1.5,-29 3.6,-22.6 7.4,-17.2 15,-18.2")
_STREAKS = tuple(
    ribbon(np.array([start, middle, end]), np.array([0.6, 1.5, 0.5]))
    for start, middle, end in (
        ((4.0, -27.6), (9.4, -24.6), (14.4, -23.0)),
        ((5.2, -24.0), (10.2, -21.0), (15.4, -19.8)),
    )
)
_CROWN = stacked(solid(_CROWN_LINE, steps=4, depth=0.16, toward=(0.1, 0.0)), *(tone(s, 0.45) for s in _STREAKS))
_NAPE = np.array((9.0, -19.0))
_EYE = stacked(
    tone(ellipse((19.4, -13.6), (3.7, 3.5), vertices=20), -0.62),
    fixed(ellipse((19.9, -13.7), (2.0, 2.0), vertices=16), (26, 24, 28)),
    fixed(ellipse((20.6, -14.5), (0.65, 0.65), vertices=10), (250, 250, 250)),
)
_BEAK = stacked(
    solid(curve("24.2,-17 28.5,-14.8 33.6,-11.4 28.6,-10.6 23.6,-10.2 23.2,-13.5", 4), steps=3),
    tone(np.array([(24.4, -12.9), (33.4, -11.5), (24.2, -12.2)]), 0.5),
)
_COVERTS = curve("6.9,-6.4 8.2,-2.2 4.6,2.6 -3,4.2 -7.5,2.6 -2.5,-3.4 2.2,-7")
_WING = stacked(
    solid(_WING_LINE, steps=3, depth=0.16, toward=(0.35, -0.2)),
    tone(_COVERTS, -0.16),
    *(tone(quill, -0.3) for quill in _QUILLS),
).toned(0.3)
_FOOT_LINE = 23.2  # where the toes hold the branch


def _leg(x: float) -> list[np.ndarray]:
    shin = ribbon(np.array([(x, 12.5), (x + 1.2, 18.0), (x + 1.0, _FOOT_LINE)]), np.array([2.4, 1.7, 1.7]))
    ankle = (x + 0.8, _FOOT_LINE - 0.8)
    ends = ((x + dx, x + 1.25 * dx) for dx in (-3.0, 3.4, 5.4))
    toes = [ribbon(np.array([ankle, (a, _FOOT_LINE + 0.4), (b, _FOOT_LINE + 1.8)]), np.full(3, 1.6)) for a, b in ends]
    return [shin, *toes]


_LEGS = stacked(*(tone(piece) for x in (-0.5, 6.5) for piece in _leg(x)))


def _branch(rng: np.random.Generator, through: np.ndarray, degrees: float) -> Drawing:
    """A branch across the frame through the point ``through`` [2], rising by about ``degrees``."""
    x = np.linspace(-8, 108, 9)
    sway = np.interp(x, x[::2], rng.uniform(-2.2, 2.2, 5))
    thick, thin = rng.permutation(rng.uniform((4.4, 2.4), (6.0, 3.6))).tolist()
    width = np.linspace(thick, thin, 9)
    rise = np.tan(np.radians(degrees + rng.uniform(-7, 7)))
    y = through[1] + (x - through[0]) * rise + sway - np.interp(through[0], x, sway) + width / 2 - 0.6
    spine = np.stack([x, y], 1)
    pieces = ((0.0, 1.0, 0.3), (0.7, 0.66, 0.0), (1.4, 0.22, -0.3))
    bark = stacked(*(tone(ribbon(spine - (0, up), width * share), shade) for up, share, shade in pieces))
    return bark.tinted(mix(_BARK, (128, 122, 112), rng.uniform(0, 1)), BACKGROUND)


def _bird(body: Colour, colours: dict[str, Colour], pose: np.ndarray, stretch: np.ndarray) -> Drawing:
    """The bird about the origin.

    ``pose`` [3] is the turn of head, tail and wing, degrees; ``stretch`` [4] that of breast (x, y), crown and tail.
    """
    head, tail, wing = pose
    neutral = {"crown": darker(body, 0.25), "breast": lighter(body, 0.25), "tail": darker(body, 0.25)}
    crown, breast, fan = (colours.get(part, neutral[part]) for part in ("crown", "breast", "tail"))
    bib = _BREAST.mapped(lambda points: (points - _KEEL) * stretch[:2] + _KEEL)
    cap = _CROWN.mapped(lambda points: (points - _NAPE) * stretch[2] + _NAPE)
    face = [_HEAD.tinted(body, OBJECT), cap.tinted(crown, _TAG["crown"]), _EYE.tinted(body, _TAG["eye"])]
    tip = _TAIL.mapped(lambda points: (points - _TAIL_ROOT) * stretch[3] + _TAIL_ROOT)
    hind = joined([_RUMP.tinted(body, OBJECT), tip.tinted(fan, _TAG["tail"])])
    front = joined([_BEAK.tinted(_HORN, _TAG["beak"]), _RIMS.tinted(body, OBJECT)])
    return joined(
        [
            hind.mapped(lambda points: turned(points, tail, (-14.0, 5.5))),
            _LEGS.tinted(_HORN, _TAG["feet"]),
            front.mapped(lambda points: turned(points, head, (11.0, -9.0))),
            _BODY.tinted(body, OBJECT),
            _BELLY.tinted(body, OBJECT),
            joined(face).mapped(lambda points: turned(points, head, (11.0, -9.0))),
            bib.tinted(breast, _TAG["breast"]),
            _WING.tinted(body, _TAG["wing"]).mapped(lambda points: turned(points, wing, (5.0, -4.0))),
        ]
    )


def bird(rng: np.random.Generator, colours: dict[str, Colour]) -> tuple[Drawing, Drawing]:
    """A bird somewhere in the frame, wholly inside it, and the branch it sits on.

    Args:
        rng: where all jitter comes from; the same draws are made whatever the colours.
        colours: RGB of the diagnostic parts that have one; the others are of a neutral colour near the body's.

    Returns:
        The branch (behind the bird) and the bird, both in percent of the frame's side.
    """
    base = np.array(_PLUMAGE[rng.integers(len(_PLUMAGE))]) + rng.uniform(-14, 14) + rng.uniform(-7, 7, 3)
    pose, stretch = rng.uniform((-9, -14, -7), (11, 14, 7)), rng.uniform(1.14, 1.28, 4)
    lean, scale, mirror = rng.uniform(-13, 13), rng.uniform(0.88, 1.06), bool(rng.integers(2))
    body: Colour = (float(base[0]), float(base[1]), float(base[2]))
    posed = moved(_bird(body, colours, pose, stretch), scale, lean, mirror, (0.0, 0.0))
    shift = placed(rng, posed)
    foot = turned(np.array([-4.0 if mirror else 4.0, _FOOT_LINE + 0.8]) * scale, lean) + shift
    return _branch(rng, foot, lean), posed.mapped(lambda points: points + shift)
