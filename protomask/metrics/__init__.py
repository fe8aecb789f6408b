"""Scores of maps, one per (image, prototype) pair: against annotations, against the model, and their summaries.

Per prototype rather than per pair: :mod:`protomask.metrics.parts`.
"""

from protomask.metrics.annotation import score_annotation
from protomask.metrics.catalogue import (
    DEFAULT_METRICS,
    METRICS,
    OTHER_FILLS,
    PAIR_METRICS,
    Metric,
    check_metrics,
    fill_of,
    flattering,
    metrics_by_scope,
    scoring_passes,
)
from protomask.metrics.causal import CausalParts, causal_parts, part_drops
from protomask.metrics.contrast import ior, oirr
from protomask.metrics.faithfulness import (
    area,
    curves,
    faithfulness_scores,
    filled_activations,
    passes,
    relative_activation,
    sufficiency_drop,
)
from protomask.metrics.imputation import Imputation, impute
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
from protomask.metrics.misalignment import Attack, attack_outside, misalignment_scores, pac, plc, prc
from protomask.metrics.overlap import activation_precision, dice, ppv, relevance, sensitivity
from protomask.metrics.parts import consistency, merged_sides, parts_in_box, purity, stability
from protomask.metrics.perturbation import local_perturbation
from protomask.metrics.pixels import pixel_ap, pixel_auc
from protomask.metrics.similarity import map_similarity, rank_correlation, ssim
from protomask.metrics.soft import average_drop, increase, seen_through
from protomask.metrics.summary import Summary, decided, holm, paired_difference, sign_flip_p, summarise
from protomask.metrics.truth import Truth
from protomask.metrics.verdicts import verdicts

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "OTHER_FILLS",
    "PAIR_METRICS",
    "Attack",
    "CausalParts",
    "Imputation",
    "Metric",
    "Summary",
    "Truth",
    "activation_precision",
    "area",
    "attack_outside",
    "average_drop",
    "box_iou",
    "causal_parts",
    "check_metrics",
    "consistency",
    "curves",
    "decided",
    "dice",
    "energy",
    "energy_floor",
    "faithfulness_scores",
    "fill_of",
    "filled_activations",
    "flattering",
    "holm",
    "impute",
    "increase",
    "ior",
    "iou_best",
    "iou_own_area",
    "iou_p95",
    "local_perturbation",
    "map_similarity",
    "merged_sides",
    "metrics_by_scope",
    "misalignment_scores",
    "oirr",
    "pac",
    "paired_difference",
    "part_drops",
    "part_hit",
    "parts_in_box",
    "passes",
    "pixel_ap",
    "pixel_auc",
    "plc",
    "pointing_game",
    "ppv",
    "prc",
    "purity",
    "rank_correlation",
    "relative_activation",
    "relevance",
    "score_annotation",
    "scoring_passes",
    "seen_through",
    "sensitivity",
    "sign_flip_p",
    "ssim",
    "stability",
    "sufficiency_drop",
    "summarise",
    "top5_in_box",
    "verdicts",
]
