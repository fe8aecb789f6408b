"""Which method is better, over pairs and metrics: ranks, paired differences and their correction.

Axes: M methods, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from protomask.metrics import Summary, paired_difference, summarise
from protomask.metrics.summary import PERMUTATIONS, holm, sign_flip_p
from protomask.reporting.results import Results

LEVEL = 0.05  # of the corrected comparisons


def mean_ranks(results: Results, metrics: Sequence[str]) -> tuple[dict[str, Summary], tuple[str, ...]]:
    """The mean rank of every competitor, 1 the best, with its interval clustered by group.

    On each pair and metric the M competitors are ranked, equal scores share their mean rank; a pair's rank is the mean
    over its metrics. A metric that is undefined for a competitor on a pair is left out of that pair, so that all are
    ranked on the same scores; one that is undefined for a competitor on every pair takes no part at all.

    A score that flatters a method (:attr:`Results.flattered`) takes no part either: the others are ranked among
    themselves, their ranks stretched to 1 .. M, so that metrics with fewer competitors count as much as the others.

    Returns:
        method -> its summary, and the metrics that took part; both empty where fewer than two methods compete. A method
        whose every score flatters it is not among them.
    """
    methods = results.competitors
    if len(methods) < 2:
        return {}, ()
    used = []
    ranks = []
    for metric in metrics:
        fair = [k for k, m in enumerate(methods) if metric not in results.flattered.get(m, ())]
        found = _metric_ranks(results, metric, [methods[k] for k in fair])
        if found is None:
            continue
        used.append(metric)
        ranks.append(np.full((len(methods), len(results.pairs)), np.nan))
        ranks[-1][fair] = 1 + (found - 1) * (len(methods) - 1) / (len(fair) - 1)
    if not ranks:
        return {}, ()
    stacked = np.stack(ranks)  # [metrics, M, N]
    counts = np.isfinite(stacked).sum(0)
    per_pair = np.where(counts > 0, np.nansum(stacked, 0) / np.maximum(counts, 1), np.nan)
    means = {m: summarise(per_pair[k], results.groups, seed=results.seed) for k, m in enumerate(methods)}
    ranked = {m: value for m, value in means.items() if value.n}
    return dict(sorted(ranked.items(), key=lambda item: item[1].mean)), tuple(used)


def _metric_ranks(results: Results, metric: str, methods: Sequence[str]) -> np.ndarray | None:
    """[M, N] ranks of at least two methods, NaN on pairs where one is undefined; None where they cannot be ranked."""
    direction = results.directions.get(metric, 0)
    columns = [results.values[m].get(metric) for m in methods]
    if len(methods) < 2 or not direction or any(c is None or not np.isfinite(c).any() for c in columns):
        return None
    scores = direction * np.stack([c for c in columns if c is not None])
    return np.where(np.isfinite(scores).all(0), _ranked(scores), np.nan)


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


def _ranked(scores: np.ndarray) -> np.ndarray:
    """[M, N] higher is better -> ranks [M, N], 1 the best, equal scores the mean of theirs."""
    above = (scores[None] > scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return above + (equal + 1) / 2


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
