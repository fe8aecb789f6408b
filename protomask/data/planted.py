"""Planted parts: generated scenes in which what decides the class is known, with a pixel mask for every part.

Two scenes: ``birds``, a songbird on a branch, and ``flowers``, a plant with its bulb in the manner of an8Flower
(Oramas, Wang, Tuytelaars, "Visual Explanation by Interpretation", ICLR 2019).

What decides the class: **the colour of one part**. With D diagnostic parts (birds: crown, breast, tail; flowers: disc,
bud, bulb), class c is that in which part ``c % D`` has colour ``c // D`` of the palette; its other diagnostic parts are
of a neutral colour. So ``red crown``, ``red breast`` and ``red tail`` are three classes, and a scene of any class holds
3 to 5 distractors (leaves, berries, blossoms, butterflies) in the very same colours: colour alone does not give the
class, a part's shape, markings and place on the object do. Which part and colour a class has depends on the scene and
the number of classes only; ``seed`` and ``split`` choose the stream of pictures.

    >>> data = Planted("birds", "test", count=3, classes=12)
    >>> data.class_names[:2], data.part_names[data.diagnostic_part(0)]
    (('red crown', 'red breast'), 'crown')
    >>> sample = data[0]
    >>> sample.image.shape, sample.part_masks.shape
    ((96, 96, 3), (7, 96, 96))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from protomask.checks import check_choice, check_count, check_index
from protomask.data import _birds, _flowers
from protomask.data._backdrop import backdrop, distractors, foliage
from protomask.data._canvas import FIRST_DISTRACTOR, FIRST_PART, OBJECT, Colour, Drawing, joined, paint
from protomask.data.sample import Geometry, Sample

SCENES = ("birds", "flowers")
SPLITS = ("train", "dev", "test")

_GRAIN = 4  # half-range of the per-pixel noise, of 255
_NAMED: tuple[tuple[str, Colour], ...] = (
    ("red", (206, 40, 46)),
    ("blue", (36, 92, 208)),
    ("yellow", (250, 200, 28)),
    ("pink", (244, 76, 184)),
    ("turquoise", (0, 176, 172)),
    ("violet", (132, 52, 190)),
    ("orange", (240, 118, 20)),
    ("lime", (140, 204, 30)),
)


@dataclass(frozen=True)
class _Kind:
    """One scene: its parts, those that can decide a class, and what draws setting and object."""

    parts: tuple[str, ...]
    diagnostic: tuple[str, ...]
    draw: Callable[[np.random.Generator, dict[str, Colour]], tuple[Drawing, Drawing]]


_KINDS = {
    "birds": _Kind(_birds.PARTS, _birds.DIAGNOSTIC, _birds.bird),
    "flowers": _Kind(_flowers.PARTS, _flowers.DIAGNOSTIC, _flowers.flower),
}


def _lab(colours: np.ndarray) -> np.ndarray:
    """RGB [N, 3], 0 .. 255 -> CIE L*a*b* [N, 3]."""
    return np.asarray(cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0])


@lru_cache(maxsize=32)
def palette(count: int) -> tuple[tuple[str, Colour], ...]:
    """``count`` vivid colours, each a name and its RGB (0 .. 255), well apart in CIE L*a*b*.

    The first eight have plain names; each further one is the vivid colour farthest from all before it, named by its
    hexadecimal code.
    """
    chosen = list(_NAMED[:count])
    levels = np.linspace(0, 255, max(7, int(np.ceil((4 * count) ** (1 / 3)))))
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    grid = np.rint(grid[np.ptp(grid, axis=1) > 120])
    lab = _lab(grid)
    gaps = np.linalg.norm(lab[:, None] - _lab(np.array([c for _, c in chosen]))[None], axis=2).min(1)
    while len(chosen) < count:
        best = int(gaps.argmax())
        r, g, b = (int(v) for v in grid[best])
        chosen.append((f"#{r:02x}{g:02x}{b:02x}", (r, g, b)))
        gaps = np.minimum(gaps, np.linalg.norm(lab - lab[best], axis=1))
    return tuple(chosen)


@dataclass(frozen=True, eq=False)
class _Scene:
    """One sample before it is painted: every random number has been drawn."""

    backdrop: np.ndarray
    drawing: Drawing
    grain: np.ndarray


class Planted:
    """A stream of planted scenes; a :class:`protomask.data.sample.Dataset`.

    Sample i depends on scene, split, seed, size, classes and i only, not on ``count`` or on what was asked before; the
    same arguments give the same scene at every size, up to its pixel noise. Classes come in turn: label = i % classes.

    Args:
        scene: one of :data:`SCENES`.
        split: one of :data:`SPLITS`; their streams have nothing in common.
        count: number of samples, at least 1.
        size: side of the square images, pixels, at least 32.
        classes: number of classes, at least 2.
        seed: which stream, at least 0. The classes are the same under every seed.

    Raises:
        InputError: an argument outside what is said above.
    """

    name: str
    class_names: Sequence[str]
    part_names: Sequence[str]

    def __init__(
        self,
        scene: str = "birds",
        split: str = "train",
        count: int = 1200,
        size: int = 96,
        classes: int = 12,
        seed: int = 0,
    ) -> None:
        self.scene, self.split = check_choice("scene", scene, SCENES), check_choice("split", split, SPLITS)
        self.count, self.size = check_count("count", count), check_count("size", size, 32)
        self.classes, self.seed = check_count("classes", classes, 2), check_count("seed", seed, 0)
        self._kind = _KINDS[scene]
        self._colours = palette(-(-classes // len(self._kind.diagnostic)))
        self.name = f"planted-{scene}"
        self.part_names = self._kind.parts
        self.class_names = tuple(
            f"{self._colours[self._colour_of(label)][0]} {self.part_names[self.diagnostic_part(label)]}"
            for label in range(classes)
        )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` with everything annotated; ``points`` are the mean (x, y) of a part's pixel indices.

        Raises:
            InputError: the index is not in 0 .. len - 1.
        """
        index = check_index("index", index, self.count)
        image, tags = self._paint(self._scene(index))
        masks = tags[None] == np.arange(FIRST_PART, FIRST_PART + len(self.part_names), dtype=np.uint8)[:, None, None]
        whole = (tags >= OBJECT) & (tags < FIRST_DISTRACTOR)
        rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
        size = (self.size, self.size)
        return Sample(
            image_id=f"{self.name}/{self.seed}/{self.split}/{index}",
            image=image,
            label=index % self.classes,
            geometry=Geometry(size, (0.0, 0.0, float(self.size), float(self.size)), size),
            box=np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64),
            points=_centroids(masks),
            part_masks=masks,
            segmentation=whole,
        )

    def without_part(self, index: int, part: int) -> np.ndarray | None:
        """The image [H, W, 3] uint8 of the same scene painted without one part: what lies beneath it shows.

        Pixels more than 2 from the part's visible ones are as in the sample. None where the part is not visible.

        Raises:
            InputError: index or part out of range.
        """
        index, part = check_index("index", index, self.count), check_index("part", part, len(self.part_names))
        scene = self._scene(index)
        image, tags = self._paint(scene)
        mask = tags == FIRST_PART + part
        if not mask.any():
            return None
        # beyond the anti-aliased edge, slivers of the part too thin for its mask may show: they stay
        near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        return np.where(near[..., None] > 0, self._paint(scene, without=FIRST_PART + part)[0], image)

    def distractors(self, index: int) -> np.ndarray:
        """Masks [M, H, W] bool of what is visible of the sample's M distractors, 3 <= M <= 5.

        Raises:
            InputError: the index is not in 0 .. len - 1.
        """
        tags = self._paint(self._scene(check_index("index", index, self.count)))[1]
        return np.stack([tags == tag for tag in np.unique(tags[tags >= FIRST_DISTRACTOR])])

    def diagnostic_part(self, label: int) -> int:
        """Index of the part whose colour decides class ``label``.

        Raises:
            InputError: the label is not in 0 .. classes - 1.
        """
        label = check_index("label", label, self.classes)
        return self.part_names.index(self._kind.diagnostic[label % len(self._kind.diagnostic)])

    def diagnostic_colour(self, label: int) -> tuple[int, int, int]:
        """RGB (0 .. 255) of the colour that decides class ``label``, before shading and jitter.

        Raises:
            InputError: the label is not in 0 .. classes - 1.
        """
        r, g, b = self._colours[self._colour_of(check_index("label", label, self.classes))][1]
        return int(r), int(g), int(b)

    def _colour_of(self, label: int) -> int:
        return label // len(self._kind.diagnostic)

    def _scene(self, index: int) -> _Scene:
        key = [SCENES.index(self.scene), SPLITS.index(self.split), self.seed, self.classes, index]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        colours = self._jittered(rng)
        label = index % self.classes
        marked = {self.part_names[self.diagnostic_part(label)]: colours[self._colour_of(label)]}
        behind = backdrop(rng)
        leaves = foliage(rng)
        setting, whole = self._kind.draw(rng, marked)
        lures = distractors(rng, whole, self._jittered(rng))
        grain = rng.integers(-_GRAIN, _GRAIN + 1, (self.size, self.size, 1), dtype=np.int16)
        return _Scene(behind, joined([leaves, setting, lures, whole]), grain)

    def _jittered(self, rng: np.random.Generator) -> list[Colour]:
        """The palette under this scene's light; the more colours there are, the less they vary."""
        spread = min(12.0, 96.0 / len(self._colours))
        shifts = rng.uniform(-spread, spread, (len(self._colours), 3))
        return [
            (c[0] + s[0], c[1] + s[1], c[2] + s[2]) for (_, c), s in zip(self._colours, shifts.tolist(), strict=True)
        ]

    def _paint(self, scene: _Scene, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Image [H, W, 3] uint8 and tags [H, W] uint8 of a scene, without the outlines of one tag."""
        image, tags = paint(scene.backdrop, scene.drawing, self.size, () if without is None else (without,))
        return np.clip(image + scene.grain, 0, 255).astype(np.uint8), tags


def _centroids(masks: np.ndarray) -> np.ndarray:
    """Mean (x, y) [K, 2] of each mask [K, H, W], pixel indices; NaN where a mask is empty."""
    weights = masks.astype(np.float64)
    area = masks.sum((1, 2))
    index = np.arange(masks.shape[1], dtype=np.float64)
    sums = np.stack([weights.sum(1) @ index, weights.sum(2) @ index], 1)
    centroids = np.full_like(sums, np.nan)
    np.divide(sums, area[:, None], out=centroids, where=area[:, None] > 0)
    return centroids
