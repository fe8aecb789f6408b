"""Which method is better, over pairs and metrics: ranks, paired differences and their correction.

Axes: M methods, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protomask.metrics import Summary, paired_difference, summarise
from protomask.metrics.summary import PERMUTATIONS, holm, sign_flip_p
from protomask.reporting.results import Results

LEVEL = 0.05  # of the corrected comparisons


@dataclass(frozen=True)
class Ranking:
    """The competitors by their mean rank.

    Attributes:
        means: method -> mean rank with its interval, 1 the best; the best first. Empty where fewer than two compete.
        metrics: those that took part.
        level: the methods whose paired difference to the first is not shown to be one (its interval reaches 0).
        silent: competitors without any score, which are not ranked.
    """

    means: Mapping[str, Summary] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    level: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


def mean_ranks(results: Results, metrics: Sequence[str]) -> Ranking:
    """The mean rank of every competitor, with its interval clustered by group.

    A method's rank on a pair is 1 and the number of competitors that score better, equal ones counted half: a mean over
    metrics. A metric that is undefined for a competitor on a pair is left out of that pair, so that all are ranked on
    the same scores; one that is undefined for a competitor on every pair takes no part at all.

    Nor does a score that flatters a method (:attr:`Results.flattered`): two methods are compared on the metrics that
    flatter neither. Where nothing flatters anybody this is the mean of ordinary ranks. A method whose every score
    flatters it has no rank.
    """
    told = [m for m in metrics if results.directions.get(m, 0)]
    silent = tuple(m for m in results.competitors if not any(_has(results, m, k) for k in told))
    methods = [m for m in results.competitors if m not in silent]
    used = tuple(k for k in told if len(methods) > 1 and all(_has(results, m, k) for m in methods))
    lost = _lost(results, methods, used)  # [M, M, N]
    rivals = np.isfinite(lost).sum(1)
    per_pair = np.where(rivals > 0, 1 + (len(methods) - 1) * np.nansum(lost, 1) / np.maximum(rivals, 1), np.nan)
    columns = dict(zip(methods, per_pair, strict=True))
    means = {m: summarise(column, results.groups, seed=results.seed) for m, column in columns.items()}
    ranked = dict(sorted(((m, v) for m, v in means.items() if v.n), key=lambda item: item[1].mean))
    if not ranked:
        return Ranking(silent=silent)
    first, *rest = ranked
    gaps = {m: paired_difference(columns[m], columns[first], results.groups, seed=results.seed) for m in rest}
    return Ranking(ranked, used, tuple(m for m, gap in gaps.items() if not gap.low > 0), silent)


def _has(results: Results, method: str, metric: str) -> bool:
    column = results.values[method].get(metric)
    return column is not None and bool(np.isfinite(column).any())


def _lost(results: Results, methods: Sequence[str], metrics: Sequence[str]) -> np.ndarray:
    """[M, M, N] the share of the metrics on which the second scores better than the first; NaN where none counts."""
    shape = (len(methods), len(methods), len(results.pairs))
    lost, counted = np.zeros(shape), np.zeros(shape)
    for metric in metrics:
        fair = np.array([metric not in results.flattered.get(m, ()) for m in methods])
        scores = results.directions[metric] * np.stack([results.values[m][metric] for m in methods])
        counts = (fair & fair[:, None] & ~np.eye(len(methods), dtype=bool))[..., None] & np.isfinite(scores).all(0)
        better = (scores > scores[:, None]) + (scores == scores[:, None]) / 2
        lost += np.where(counts, better, 0)
        counted += counts
    return np.where(counted > 0, lost / np.maximum(counted, 1), np.nan)


def differences(results: Results, reference: str) -> dict[str, dict[str, Summary]]:
    """other method -> metric -> paired difference, reference minus other, over pairs where both are defined."""
    mine = results.values[reference]
    return {
        other: {
            m: paired_difference(mine[m], results.values[other][m], results.groups, seed=results.seed)
            for m in results.metrics
            if m in mine and m in results.values[other]
        }
        for other in results.methods
        if other != reference
    }


def holding(results: Results, reference: str) -> tuple[set[tuple[str, str]], int]:
    """Which differences stand at 5 % after Holm's correction over all competitors and metrics.

    P-values are those of sign flips of whole groups (:func:`protomask.metrics.summary.sign_flip_p`), with so many
    permutations that the smallest could stand. Controls take no part: they are no rivals, and would only cost power.

    Returns:
        (other, metric) of the differences that stand, and how many were compared.
    """
    keys = [(other, metric) for other in results.competitors for metric in results.metrics if other != reference]
    return standing(results.values, reference, keys, results.groups, results.seed)


def standing(
    values: Mapping[str, Mapping[str, np.ndarray]],
    reference: str,
    keys: Sequence[tuple[str, str]],
    groups: Sequence[str],
    seed: int,
) -> tuple[set[tuple[str, str]], int]:
    """:func:`holding` over the (method, metric) ``keys`` of which both methods have values."""
    mine = values[reference]
    keys = [(other, metric) for other, metric in keys if metric in mine and metric in values[other]]
    told: dict[str, Any] = {"seed": seed, "permutations": max(PERMUTATIONS, 40 * len(keys))}
    raw = [sign_flip_p(mine[m], values[o][m], groups, **told) for o, m in keys]
    stand = {key for key, p in zip(keys, holm(np.array(raw, dtype=np.float64)), strict=True) if p <= LEVEL}
    return stand, int(np.isfinite(raw).sum())


def by(results: Results, key: Callable[[int], str]) -> dict[str, list[int]]:
    """name -> the pairs of that name, in the order in which names first come."""
    found: dict[str, list[int]] = {}
    for k in range(len(results.pairs)):
        found.setdefault(key(k), []).append(k)
    return found


def mean_of(values: Mapping[str, np.ndarray], metric: str, rows: Sequence[int]) -> float:
    """The mean over the defined of these pairs; NaN where none is."""
    column = values[metric][list(rows)] if metric in values else np.array([])
    column = column[np.isfinite(column)]
    return float(column.mean()) if len(column) else float("nan")
