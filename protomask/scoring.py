"""The scores of a chunk of pairs under one method: maps against annotations, and maps against the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protomask.data.sample import Sample
from protomask.fills import SCORING_FILL, fill_images
from protomask.folding import quick
from protomask.metrics import (
    METRICS,
    OTHER_FILLS,
    Attack,
    Imputation,
    Truth,
    average_drop,
    check_metrics,
    faithfulness_scores,
    increase,
    local_perturbation,
    misalignment_scores,
    score_annotation,
    seen_through,
)
from protomask.metrics.misalignment import MISALIGNMENT
from protomask.metrics.perturbation import PERTURBATIONS
from protomask.model import Contract, untouched
from protomask.pairs import Pair, tensors
from protomask.records import Localisation
from protomask.region import rank


def score_chunk(
    model: Contract,
    samples: Sequence[Sample],
    chunk: Sequence[Pair],
    found: Localisation,
    truth: Truth,
    *,
    fill: str = SCORING_FILL,
    batch: int = 32,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The metrics of one method's maps on N pairs; a map is ranked once for all of them.

    Args:
        model: the contract.
        samples: N, the image of each pair.
        chunk: the N pairs.
        found: the method's localisation, one row per pair.
        truth: N rows.
        fill: of the causal scores whose name has no ``@``.
        batch: images in one network pass.
        metrics: names of metrics per pair; :data:`protomask.metrics.DEFAULT_METRICS` where None.
            :func:`protomask.metrics.scoring_passes` says what they cost.
        seed: of the last ties of the ranking, of noise and of attacks; each depends on it and on the pair alone.

    Returns:
        name -> [N] float64, NaN where undefined, in the order of :data:`protomask.metrics.METRICS`.

    Raises:
        InputError: an unknown metric, or one that is not per pair.
    """
    names = check_metrics(metrics)
    task = _Task(model, samples, chunk, found, fill, batch, seed)
    scores = score_annotation(
        found.maps, found.masks, truth, order=task.order, names=[n for n in names if METRICS[n].family == "annotation"]
    )
    if any("model" in METRICS[name].needs for name in names):
        with untouched(model.module):
            scores |= task.causal(names)
    return {name: scores[name] for name in names}


class _Task:
    """What all metrics of one chunk share: images, activations, floors and the ranking, each made once."""

    def __init__(
        self,
        model: Contract,
        samples: Sequence[Sample],
        chunk: Sequence[Pair],
        found: Localisation,
        fill: str,
        batch: int,
        seed: int,
    ) -> None:
        self.model, self.found, self.fill, self.batch, self.seed = model, found, fill, batch, seed
        self.images = tensors(model, list(samples))
        self.before = torch.tensor([pair.activation for pair in chunk], dtype=self.images.dtype)
        self.floors = torch.tensor([pair.floor for pair in chunk], dtype=self.images.dtype)
        self.order = rank(found.maps, seed)

    def causal(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The metrics that pass images; the model is frozen."""
        self.model = quick(self.model, self.images)
        scores: dict[str, Tensor] = {}
        for fill in ("", *OTHER_FILLS):
            scores |= self._faithfulness(names, fill)
        if {"average-drop", "increase"} & set(names):
            scores |= self._soft()
        kinds = [name.rpartition("-")[2] for name in names if name.startswith("local-perturbation-")]
        if kinds or "local-perturbation" in names:
            scores |= self._perturbed(PERTURBATIONS if "local-perturbation" in names else kinds)
        attacked = [name for name in MISALIGNMENT if name in names]
        if attacked:
            scores |= self._attacked(attacked)
        return scores

    def _faithfulness(self, names: Sequence[str], fill: str) -> dict[str, Tensor]:
        """The curves and sufficiency under one fill; ``""`` is the chunk's own, whose names have no suffix."""
        suffix = f"@{fill}" if fill else ""
        causal = [name for name in names if any("@" in work for work in METRICS[name].work)]
        wanted = [name.partition("@")[0] for name in causal if name.partition("@")[2] == fill]
        if not wanted:
            return {}
        scores = faithfulness_scores(
            self.model,
            self.images,
            self.found.targets,
            self.found.maps,
            Imputation.of(self.images, self.seed) if fill == "road" else self._filled(fill or self.fill),
            self.before,
            self.floors,
            batch=self.batch,
            order=self.order,
            names=wanted,
        )
        return {f"{name}{suffix}": values for name, values in scores.items()}

    def _soft(self) -> dict[str, Tensor]:
        left = seen_through(
            self.model,
            self.images,
            self.found.targets,
            self.found.maps,
            self.found.masks,
            self._filled(self.fill),
            self.before,
            self.floors,
            batch=self.batch,
        )
        return {"average-drop": average_drop(left), "increase": increase(left)}

    def _perturbed(self, kinds: Sequence[str]) -> dict[str, Tensor]:
        return local_perturbation(
            self.model,
            self.images,
            self.found.targets,
            self.found.maps,
            self.before,
            self.floors,
            order=self.order,
            kinds=kinds,
            seed=self.seed,
            batch=self.batch,
        )

    def _attacked(self, names: Sequence[str]) -> dict[str, Tensor]:
        return misalignment_scores(
            self.model,
            self.images,
            self.found.targets,
            self.found.maps,
            self.before,
            self.floors,
            order=self.order,
            attack=Attack(seed=self.seed),
            batch=self.batch,
            names=names,
        )

    def _filled(self, name: str) -> Tensor:
        return fill_images(name, self.images, self.model.mean, self.model.std)
