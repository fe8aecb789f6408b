"""Which (image, prototype) pairs an evaluation looks at, and which part each of them is causally about.

A pair is an image of the data set and one of the prototypes of the image's own class that an explanation would show:
one of the image's few most activated (:data:`SHOWN`). A prototype that hardly responds to an image is not there to be
found, and scores relative to its activation would divide by next to nothing. The part that a pair is about is found
causally: every annotated part is in-painted in turn, and the one whose removal lowers the relative activation
most is the pair's part, if it is a clear winner (:func:`protomask.metrics.causal_parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_array, check_count
from protomask.data.inpaint import PART_RADIUS
from protomask.data.sample import Dataset, Sample, check_dataset, to_tensor
from protomask.engine import in_chunks
from protomask.errors import DataError, InputError, expected
from protomask.locating import measure
from protomask.metrics import Truth, causal_parts, part_drops
from protomask.metrics.truth import KINDS
from protomask.model import Contract, class_prototypes, device_of, untouched

SHOWN = 3  # as many prototypes per image as ``locate`` looks for where nothing else is said


@dataclass(frozen=True, eq=False)
class Pair:
    """One (image, prototype) pair with what is known of it.

    Attributes:
        index: of the sample in the data set.
        prototype: index.
        image_id: of the sample.
        group: what intervals are clustered by.
        part: index of the causal part, -1 where there is no clear winner or no annotation.
        activation: on the whole image.
        floor: of the activation.
    """

    index: int
    prototype: int
    image_id: str
    group: str
    part: int
    activation: float
    floor: float


@dataclass(frozen=True, eq=False)
class PairSet:
    """The pairs of one evaluation and how they were found.

    Attributes:
        pairs: in the order they were drawn.
        drawn: how many pairs were looked at (among the image's most activated, the activation above its floor).
        qualified: how many of the drawn have a clear causal part; 0 where the data set annotates no parts.
        kind: ``"part"`` where parts have pixel masks (a pair without a clear part is then left out), else
            ``"segmentation"`` where the whole object has, else ``"object"``: the finest that any image has. Pairs of
            images that have less are undefined where the region counts.
    """

    pairs: tuple[Pair, ...]
    drawn: int
    qualified: int
    kind: str


def draw_pairs(
    model: Contract,
    dataset: Dataset,
    count: int,
    *,
    seed: int = 0,
    batch: int = 32,
    shown: int = SHOWN,
    clear: bool = False,
    progress: Callable[[int], object] | None = None,
    skip: Callable[[int, DataError], object] | None = None,
) -> PairSet:
    """``count`` seeded pairs, images first: every image gives one pair before any gives a second; by image.

    Only an own-class prototype that is among the image's ``shown`` most activated of all classes makes a pair.

    Where parts have pixel masks, or where ``clear`` says so, only pairs with a clear causal part count, and drawing
    goes on until there are ``count`` of them or every image has been tried with every prototype of its class.
    Elsewhere every pair counts. A sample that cannot be read is told to ``skip`` and left out, where that is given.

    Raises:
        InputError: no pair could be drawn, or the data set names parts and has no ``without_part``, or one that gives
            images of another size.
        DataError: a sample cannot be read, and ``skip`` is not given.
    """
    check_dataset(dataset)
    check_count("pairs", count)
    check_count("shown", shown)
    drawn, qualified = 0, 0
    kept: list[Pair] = []
    kinds: set[str] = set()
    candidates = _candidates(model, dataset, seed, skip)
    with untouched(model.module):
        for group in _batched(candidates, max(1, batch // 4)):
            before = len(kept)
            for pair, own in _look(model, dataset, group, shown, batch):
                drawn += 1
                qualified += pair.part >= 0
                if pair.part >= 0 or not (clear or own == "part"):
                    kept.append(pair)
                    kinds.add(own)
                if len(kept) == count:
                    break
            if progress is not None:
                progress(len(kept) - before)
            if len(kept) == count:
                break
    if not kept:
        # Every pair drawn has something to locate, so those left out had no clear part.
        wanted = "with a clear causal part" if drawn else "with something to locate"
        unnamed = "" if dataset.part_names or not drawn else " (the data set's part_names are empty)"
        raise InputError(expected("pairs", f"at least one pair {wanted}", f"none in {drawn} drawn{unnamed}"))
    return PairSet(_by_image(kept), drawn, qualified, min(kinds, key=KINDS.index))


def _by_image(pairs: list[Pair]) -> tuple[Pair, ...]:
    """The pairs of an image side by side, so that passes which serve all of them are shared; images as first drawn."""
    first: dict[int, int] = {}
    for row, pair in enumerate(pairs):
        first.setdefault(pair.index, row)
    return tuple(sorted(pairs, key=lambda pair: first[pair.index]))


def _candidates(
    model: Contract, dataset: Dataset, seed: int, skip: Callable[[int, DataError], object] | None
) -> Iterator[tuple[int, int]]:
    """(sample, prototype) in drawing order: rounds over all images, each round with another prototype of the class."""
    order = np.random.default_rng([seed, 0]).permutation(len(dataset))
    labels: dict[int, int | None] = {}  # a sample is read for its label once, not in every round
    own: dict[int, np.ndarray] = {}
    for round_ in range(model.num_prototypes):
        for index in order.tolist():
            if index not in labels:
                labels[index] = _label(dataset, index, skip)
            label = labels[index]
            if label is None:
                continue
            if label not in own:
                known = model.class_weights() is not None
                own[label] = class_prototypes(model, [label]).numpy() if known else np.arange(model.num_prototypes)
            if round_ < len(own[label]):
                shuffled = np.random.default_rng([seed, 1, index]).permutation(own[label])
                yield index, int(shuffled[round_])


def _label(dataset: Dataset, index: int, skip: Callable[[int, DataError], object] | None) -> int | None:
    """A sample's label; None where it cannot be read and somebody wants to know."""
    try:
        return dataset[index].label
    except DataError as error:
        if skip is None:
            raise
        skip(index, error)
        return None


def _batched(items: Iterator[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    group: list[tuple[int, int]] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@torch.no_grad()
def _look(
    model: Contract, dataset: Dataset, group: list[tuple[int, int]], shown: int, batch: int
) -> list[tuple[Pair, str]]:
    """What makes a pair of the (sample, prototype) candidates in ``group``, each with its causal part, and the kind of
    its image's annotation."""
    samples = [dataset[index] for index, _ in group]
    start = measure(model, tensors(model, samples), f"top:{shown}", batch)
    wanted = torch.tensor([prototype for _, prototype in group])[start.targets.images]
    keep = ((start.targets.prototypes == wanted) & start.locatable.cpu()).nonzero().squeeze(1)
    rows = start.targets.images[keep].tolist()
    before, floors = start.before[keep], start.floors[keep]
    looked = [(*group[row], samples[row]) for row in rows]
    parts = _parts(model, dataset, looked, before, floors, batch)
    pairs = [
        Pair(group[row][0], group[row][1], samples[row].image_id, samples[row].group, part, activation, floor)
        for row, part, activation, floor in zip(rows, parts, before.tolist(), floors.tolist(), strict=True)
    ]
    return [(pair, _kind(samples[row])) for pair, row in zip(pairs, rows, strict=True)]


def _kind(sample: Sample) -> str:
    if sample.part_masks is not None:
        return "part"
    return "object" if sample.segmentation is None else "segmentation"


def _parts(
    model: Contract, dataset: Dataset, group: list[tuple[int, int, Sample]], before: Tensor, floors: Tensor, batch: int
) -> list[int]:
    """The causal part of each (index, prototype, sample), -1 where there is none."""
    if not dataset.part_names or not group:
        return [-1] * len(group)
    removed = [_without_parts(dataset, index, sample) for index, _, sample in group]
    drops = drops_without(model, removed, [prototype for _, prototype, _ in group], before, floors, batch)
    return [int(p) for p in causal_parts(drops).part]


def _without_parts(dataset: Dataset, index: int, sample: Sample) -> list[np.ndarray | None]:
    """The sample's image without each part in turn; None where that part is not visible."""
    removed = [dataset.without_part(index, part) for part in range(len(dataset.part_names))]
    for part, image in enumerate(removed):
        if image is not None:
            check_array(f"without_part({index}, {part})", image, sample.image.shape, dtype=np.uint8)
    return removed


def drops_without(
    model: Contract,
    removed: Sequence[Sequence[np.ndarray | None]],
    prototypes: Sequence[int],
    before: Tensor,
    floors: Tensor,
    batch: int,
) -> Tensor:
    """What each of K parts adds to the activation of N pairs, as relative drops where it is removed.

    Args:
        model: frozen, in evaluation mode.
        removed: N rows of K images [H, W, 3] uint8, each without one part; None where that part is not visible.
        prototypes: N indices.
        before: [N] activations on the whole images.
        floors: [N], of the activations.
        batch: images in one network pass.

    Returns:
        [N, K] float64, as from :func:`protomask.metrics.part_drops`; NaN where a part is not visible.
    """
    where = [(row, part) for row, own in enumerate(removed) for part, image in enumerate(own) if image is not None]
    images = [image for own in removed for image in own if image is not None]
    activations = torch.full((len(removed), len(removed[0])), torch.nan, dtype=before.dtype, device=before.device)
    wanted = torch.tensor([prototypes[row] for row, _ in where], device=before.device)

    def work(part: slice) -> Tensor:
        return model.activations(to_tensor(images[part], model.mean, model.std).to(before.device), wanted[part])

    if images:
        values = torch.cat(list(in_chunks(len(images), batch, work)))
        rows, columns = torch.tensor(where, device=before.device).unbind(1)
        activations[rows, columns] = values
    return part_drops(before, activations, floors)


def tensors(model: Contract, samples: list[Sample]) -> Tensor:
    """Samples as the model expects them, on its device: [B, C, H, W]."""
    return to_tensor([s.image for s in samples], model.mean, model.std).to(device_of(model))


def truth_of(samples: list[Sample], pairs: list[Pair], kind: str) -> Truth:
    """What is annotated about each pair, one row per pair.

    Where parts have masks, the region is the causal part's; else it is the object: its segmentation, or its box.
    """
    size = samples[0].image.shape[:2]
    boxes = torch.full((len(pairs), 4), torch.nan, dtype=torch.float64)
    points = torch.full((len(pairs), 2), torch.nan, dtype=torch.float64)
    regions = torch.zeros((len(pairs), *size), dtype=torch.bool)
    for row, (sample, pair) in enumerate(zip(samples, pairs, strict=True)):
        if sample.box is not None:
            boxes[row] = torch.from_numpy(np.asarray(sample.box, dtype=np.float64))
        if pair.part >= 0 and sample.points is not None:
            points[row] = torch.from_numpy(np.asarray(sample.points[pair.part], dtype=np.float64))
        region = _region(sample, pair, kind)
        if region is not None:
            regions[row] = torch.from_numpy(region)
    diagonal = ((boxes[:, 2] - boxes[:, 0]) ** 2 + (boxes[:, 3] - boxes[:, 1]) ** 2).sqrt()
    groups = tuple(pair.group for pair in pairs)
    return Truth(regions, kind, boxes, points, PART_RADIUS * diagonal, groups)


def _region(sample: Sample, pair: Pair, kind: str) -> np.ndarray | None:
    if kind == "part":
        return sample.part_masks[pair.part] if sample.part_masks is not None and pair.part >= 0 else None
    if sample.segmentation is not None:
        return sample.segmentation
    if kind == "segmentation" or sample.box is None:
        return None
    x0, y0, x1, y1 = (round(float(v)) for v in sample.box)
    region = np.zeros(sample.image.shape[:2], bool)
    region[max(0, y0) : y1, max(0, x0) : x1] = True
    return region
