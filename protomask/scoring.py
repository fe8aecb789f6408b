"""The scores of a chunk of pairs under one method: maps against annotations, and maps against the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protomask.data.sample import Sample
from protomask.fills import SCORING_FILL, fill_images
from protomask.metrics import Truth, faithfulness_scores, score_annotation
from protomask.model import Contract, untouched
from protomask.pairs import Pair, tensors
from protomask.records import Localisation


def score_chunk(
    model: Contract,
    samples: Sequence[Sample],
    chunk: Sequence[Pair],
    found: Localisation,
    truth: Truth,
    *,
    fill: str = SCORING_FILL,
    batch: int = 32,
) -> dict[str, torch.Tensor]:
    """Every metric of one method's maps on N pairs.

    Args:
        model: the contract.
        samples: N, the image of each pair.
        chunk: the N pairs.
        found: the method's localisation, one row per pair.
        truth: N rows.
        fill: of the causal scores.
        batch: images in one network pass.

    Returns:
        name -> [N] float64, NaN where undefined.
    """
    images = tensors(model, list(samples))
    before = torch.tensor([pair.activation for pair in chunk], dtype=images.dtype)
    floors = torch.tensor([pair.floor for pair in chunk], dtype=images.dtype)
    with untouched(model.module):
        causal = faithfulness_scores(
            model,
            images,
            found.targets,
            found.maps,
            fill_images(fill, images, model.mean, model.std),
            before,
            floors,
            batch=batch,
        )
    return {**score_annotation(found.maps, found.masks, truth), **causal}
