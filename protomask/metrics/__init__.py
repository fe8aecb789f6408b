"""Scores of maps, one per (image, prototype) pair: against annotations, against the model, and their summaries."""

from protomask.metrics.annotation import score_annotation
from protomask.metrics.catalogue import METRICS, Metric
from protomask.metrics.causal import CausalParts, causal_parts, part_drops
from protomask.metrics.faithfulness import (
    area,
    curves,
    faithfulness_scores,
    filled_activations,
    passes,
    relative_activation,
    sufficiency_drop,
)
from protomask.metrics.localisation import (
    box_iou,
    energy,
    energy_floor,
    iou_best,
    iou_own_area,
    iou_p95,
    part_hit,
    pointing_game,
    top5_in_box,
)
from protomask.metrics.summary import Summary, paired_difference, summarise
from protomask.metrics.truth import Truth

__all__ = [
    "METRICS",
    "CausalParts",
    "Metric",
    "Summary",
    "Truth",
    "area",
    "box_iou",
    "causal_parts",
    "curves",
    "energy",
    "energy_floor",
    "faithfulness_scores",
    "filled_activations",
    "iou_best",
    "iou_own_area",
    "iou_p95",
    "paired_difference",
    "part_drops",
    "part_hit",
    "passes",
    "pointing_game",
    "relative_activation",
    "score_annotation",
    "sufficiency_drop",
    "summarise",
    "top5_in_box",
]
