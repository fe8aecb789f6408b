"""Scores per prototype: is it about one part, and does it stay there under noise?

Each prototype is located on several images of its own class, by the method under test; the parts within a square round
the peaks make the part vectors that :mod:`protomask.metrics.parts` scores. ::

    result = prototype_scores(model, dataset, "mdm", images=10)
    result.values["consistency"].nanmean()
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protomask.checks import check_choice, check_count, check_index, check_number
from protomask.data.sample import Dataset, Sample
from protomask.draws import content_of, generator_of
from protomask.errors import InputError, expected
from protomask.loading import Relabelled
from protomask.localisers import Localiser
from protomask.locating import locate
from protomask.metrics.parts import MODES, consistency, merged_sides, parts_in_box, purity, stability
from protomask.model import Contract, class_prototypes, contract, untouched
from protomask.pairs import tensors

PROTOTYPE_METRICS = ("consistency", "stability", "purity")
IMAGES = 10
POOL = 50
HALF = 36 / 224
PATCH_HALF = 16 / 224
NOISE, CLIP = 0.2, 0.25


@dataclass(frozen=True, eq=False)
class PrototypeScores:
    """One value per prototype and metric.

    Attributes:
        prototypes: [P'] int64.
        images: [P'] int64, on how many images each was located for consistency and stability.
        values: metric -> [P'] float64, NaN where the prototype's images cannot say.
    """

    prototypes: Tensor
    images: Tensor
    values: Mapping[str, Tensor]


def prototype_scores(
    model: object,
    dataset: Dataset,
    method: str | Localiser = "mdm",
    *,
    prototypes: Sequence[int] | None = None,
    metrics: Collection[str] = PROTOTYPE_METRICS,
    images: int = IMAGES,
    pool: int = POOL,
    half: float = HALF,
    patch_half: float = PATCH_HALF,
    mode: str = "fixed",
    seed: int = 0,
    batch: int = 32,
    progress: Callable[[int], object] | None = None,
) -> PrototypeScores:
    """Consistency, stability and purity of a model's prototypes, as a method locates them.

    Consistency and stability: up to ``images`` seeded images of the prototype's classes. Purity: of up to ``pool`` of
    them, the ``images`` on which it is most activated, left and right parts merged. Published: all test images of the
    class (EvalProtoPNet), all images of the projection set (PIP-Net).

    Args:
        model: as for :func:`protomask.locate`.
        dataset: samples with annotated points, in the model's frame.
        method: a localiser.
        prototypes: which, each once; all where None.
        metrics: which of :data:`PROTOTYPE_METRICS`; stability locates twice.
        images: per prototype.
        pool: images per class that purity chooses from.
        half: half-side of the square round a peak, as a share of the image's shorter side (36 of 224 as published).
        patch_half: the same for purity (a patch of 32 of 224).
        mode: ``"fixed"`` or ``"published"``, see :mod:`protomask.metrics.parts`.
        seed: of the images, the noise and whatever the method draws.
        batch: images in one network pass.
        progress: told of the pairs located.

    Raises:
        InputError: no annotated parts, an unknown metric or mode, an index out of range or given twice.
    """
    known = contract(model)
    for name in metrics:
        check_choice("metrics", name, PROTOTYPE_METRICS)
    check_choice("mode", mode, MODES)
    check_count("images", images)
    check_count("pool", pool)
    for name, value in (("half", half), ("patch_half", patch_half)):
        check_number(name, value, 0, open_low=True)
    if not dataset.part_names:
        raise InputError(expected("dataset", "annotated parts", f"none in {dataset.name!r}"))
    wanted = list(range(known.num_prototypes) if prototypes is None else prototypes)
    for prototype in wanted:
        check_index("prototypes", prototype, known.num_prototypes)
    if len(set(wanted)) < len(wanted):  # their images would count as often
        raise InputError(expected("prototypes", "each index once", wanted))
    work = _Work(known, dataset, method, seed, batch, progress)
    pools = prototype_pools(known, dataset, wanted, pool_size(metrics, images, pool), seed)
    return _scored(
        work, pools, torch.tensor(wanted, dtype=torch.int64), metrics, (images, pool), (half, patch_half), mode
    )


def _scored(
    work: _Work,
    pools: Mapping[int, list[int]],
    wanted: Tensor,
    metrics: Collection[str],
    counts: tuple[int, int],
    halves: tuple[float, float],
    mode: str,
) -> PrototypeScores:
    images, pool = counts
    drawn = [(index, p) for p in wanted.tolist() for index in pools[p][:images]]
    values: dict[str, Tensor] = {}
    if drawn and {"consistency", "stability"} & set(metrics):
        hits, visible, rows = work.located(drawn, halves[0])
        if "consistency" in metrics:
            values["consistency"] = consistency(hits, visible, rows, wanted, mode=mode)
        if "stability" in metrics:
            noisy, _, _ = work.located(drawn, halves[0], noise=True)
            values["stability"] = stability(hits, noisy, rows, wanted, visible=visible, mode=mode)
    if drawn and "purity" in metrics:
        chosen = work.most_activated({p: found[:pool] for p, found in pools.items()}, images)
        hits, visible, rows = work.located(chosen, halves[1])
        merged = merged_sides(hits, visible, work.dataset.part_names)
        values["purity"] = purity(*merged, rows, wanted, mode=mode)
    undefined = torch.full((len(wanted),), torch.nan, dtype=torch.float64)
    located = torch.tensor([min(images, len(pools[p])) for p in wanted.tolist()], dtype=torch.int64)
    return PrototypeScores(wanted, located, {n: values.get(n, undefined) for n in PROTOTYPE_METRICS if n in metrics})


class _Work:
    """A model, a data set and a method, which all steps need."""

    def __init__(
        self,
        model: Contract,
        dataset: Dataset,
        method: str | Localiser,
        seed: int,
        batch: int,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.model, self.dataset, self.method = model, dataset, method
        self.seed, self.batch, self.progress = seed, check_count("batch", batch), progress

    def located(
        self, pairs: Sequence[tuple[int, int]], half: float, *, noise: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hits and visible [N, K] bool, and prototypes [N], of (sample, prototype) pairs, in an order by sample.

        A pair on which the method finds nothing has no hits.
        """
        hits, visible, rows = [], [], []
        for chunk in _by_image(pairs, self.batch):
            indices = list(dict.fromkeys(index for index, _ in chunk))
            samples = [self.dataset[index] for index in indices]
            shown = tensors(self.model, samples)
            if noise:
                shown = torch.stack([_noised(image, self.seed) for image in shown])
            targets = [(indices.index(index), prototype) for index, prototype in chunk]
            boxes = torch.stack([_box(samples[row]) for row, _ in targets])
            found = locate(self.model, shown, targets, self.method, seed=self.seed, batch=self.batch, boxes=boxes)
            points = torch.stack([_points(samples[row], len(self.dataset.part_names)) for row, _ in targets])
            inside, seen = parts_in_box(found.peaks, points, half * min(shown.shape[-2:]))
            hits.append(inside & found.located[:, None])
            visible.append(seen)
            rows.append(found.targets.prototypes)
            if self.progress is not None:
                self.progress(len(chunk))
        return torch.cat(hits), torch.cat(visible), torch.cat(rows)

    def most_activated(self, pools: Mapping[int, list[int]], count: int) -> list[tuple[int, int]]:
        """The (sample, prototype) pairs of each prototype's ``count`` most activated images of its pool."""
        indices = sorted({index for pool in pools.values() for index in pool})
        values: dict[int, Tensor] = {}
        with torch.no_grad(), untouched(self.model.module):
            for start in range(0, len(indices), self.batch):
                part = indices[start : start + self.batch]
                shown = tensors(self.model, [self.dataset[index] for index in part])
                values |= dict(zip(part, self.model.activations(shown).double().cpu(), strict=True))
        best = {
            prototype: sorted(pool, key=lambda index, p=prototype: (-float(values[index][p]), index))[:count]  # type: ignore[misc]
            for prototype, pool in pools.items()
        }
        return [(index, prototype) for prototype, chosen in best.items() for index in chosen]


def pool_size(metrics: Collection[str], images: int = IMAGES, pool: int = POOL) -> int:
    """How many samples of a prototype's classes :func:`prototype_scores` looks at for these metrics, at most."""
    return max(pool if "purity" in metrics else 0, images)


def rounds_of(metrics: Collection[str]) -> int:
    """How often a prototype is located on its images for these metrics."""
    shared = {"consistency", "stability"} & set(metrics)
    return bool(shared) + ("stability" in metrics) + ("purity" in metrics)


def prototype_pools(
    model: Contract, dataset: Dataset, wanted: Sequence[int], size: int, seed: int
) -> dict[int, list[int]]:
    """prototype -> up to ``size`` samples of its classes, in an order drawn from the seed.

    Where the model tells no class weights, every sample is every prototype's; else a sample of no class is nobody's.
    """
    classed = model.class_weights() is not None
    owners: dict[int, frozenset[int]] = {}
    pools: dict[int, list[int]] = {p: [] for p in wanted}
    for index in np.random.default_rng([seed, 2]).permutation(len(dataset)).tolist():
        open_ = {p for p, pool in pools.items() if len(pool) < size}
        if not open_:
            break
        label = _label(dataset, index)
        if label not in owners:
            nobody = classed and label < 0
            own = class_prototypes(model, [label]).tolist() if classed and not nobody else wanted
            owners[label] = frozenset(() if nobody else own)
        for prototype in open_ & owners[label]:
            pools[prototype].append(index)
    return pools


def own_prototypes(model: Contract, dataset: Dataset) -> set[int] | None:
    """The prototypes of classes that the data set has images of; None where that cannot be told without reading it."""
    inner = dataset.dataset if isinstance(dataset, Relabelled) else dataset
    if model.class_weights() is None or getattr(inner, "labels", None) is None:
        return None
    labels = {_label(dataset, index) for index in range(len(dataset))} - {-1}
    return set(class_prototypes(model, sorted(labels)).tolist()) if labels else set()


def _label(dataset: Dataset, index: int) -> int:
    """A sample's class; without reading the sample where the data set tells the labels of all."""
    if isinstance(dataset, Relabelled):
        inner = _label(dataset.dataset, index)
        return dataset.labels[inner] if inner >= 0 else inner
    known = getattr(dataset, "labels", None)
    return dataset[index].label if known is None else int(known[index])


def _by_image(pairs: Sequence[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """Pairs in chunks of ``size``, ordered by sample, so that an image is read once and shared by its prototypes."""
    ordered = sorted(pairs)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _noised(image: Tensor, seed: int) -> Tensor:
    generator = generator_of("stability", seed, content_of(image))
    noise = NOISE * torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return image + noise.clamp(-CLIP, CLIP).to(image)


def _points(sample: Sample, parts: int) -> Tensor:
    if sample.points is None:
        return torch.full((parts, 2), torch.nan, dtype=torch.float64)
    return torch.from_numpy(np.asarray(sample.points, dtype=np.float64))


def _box(sample: Sample) -> Tensor:
    if sample.box is None:
        return torch.full((4,), torch.nan, dtype=torch.float64)
    return torch.from_numpy(np.asarray(sample.box, dtype=np.float64))
