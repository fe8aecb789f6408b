"""What metrics need of the data and the model, looked for before anything is located."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protomask.data.sample import Dataset
from protomask.errors import InputError, expected
from protomask.metrics import METRICS, Truth
from protomask.model import Contract
from protomask.pairs import PairSet, truth_of

NEEDS = {
    "region": "an annotated region: a box, a segmentation or part masks",
    "part-region": "a segmentation or part masks (a box will not do)",
    "box": "boxes",
    "point": "a clear causal part among annotated points, and boxes",
    "maps": "a model with maps of its own (similarity_maps or occurrence_maps)",
}
"""What the data or the model may lack -> in words; needs that are not here are always met, or depend on the method."""


def lacking(names: Collection[str], model: Contract, dataset: Dataset, drawn: PairSet) -> dict[str, str]:
    """Metrics that are undefined on every pair drawn -> what they would need, in words.

    Args:
        names: of metrics per pair.
        model: whose pairs they are.
        dataset: its samples, which are read until everything that is needed was seen.
        drawn: the pairs.
    """
    wanted = {need for name in names for need in METRICS[name].needs} & set(NEEDS)
    own = any(hasattr(model.source, kind) for kind in ("similarity_maps", "occurrence_maps"))
    met = {"maps"} if own else set()
    for pair in drawn.pairs:
        if wanted <= met | {"maps"}:
            break
        met |= _told_by(truth_of([dataset[pair.index]], [pair], drawn.kind))
    missing = wanted - met
    return {
        name: " and ".join(NEEDS[need] for need in NEEDS if need in METRICS[name].needs & missing)
        for name in names
        if METRICS[name].needs & missing
    }


def check_needs(names: Sequence[str], model: Contract, dataset: Dataset, drawn: PairSet) -> list[str]:
    """A line for each of the metrics that has no value on any pair.

    Raises:
        InputError: none of them has.
    """
    found = lacking(names, model, dataset, drawn)
    if names and len(found) == len(set(names)):
        name, need = next(iter(found.items()))
        came = f"{', '.join(names)} on {dataset.name!r} with that model"
        raise InputError(expected("--metrics", f"one that is defined here ({name} needs {need})", came))
    return [f"{name} is undefined on all of these pairs: it needs {need}" for name, need in found.items()]


def _told_by(truth: Truth) -> set[str]:
    """Which of :data:`NEEDS` a pair's annotation meets."""
    region = truth.regions is not None and bool(truth.regions.any())
    told = {
        "region": region,
        "part-region": region and truth.kind != "object",
        "box": truth.boxes is not None and bool(truth.boxes.isfinite().all()),
        "point": truth.points is not None
        and truth.radii is not None
        and bool(truth.points.isfinite().all() and truth.radii.isfinite().all()),
    }
    return {need for need, has in told.items() if has}
