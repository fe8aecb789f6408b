"""Means over pairs with bootstrap intervals clustered by group (the image, or the patient).

Pairs of one image are not independent, so whole groups are resampled. Undefined (NaN) pairs are left out before
anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from protomask.checks import check_count, check_number
from protomask.errors import InputError, expected

RESAMPLES = 2000
LEVEL = 0.95
_DRAWS = 4_000_000


@dataclass(frozen=True)
class Summary:
    """The mean of a score and its interval.

    Attributes:
        mean: over the defined pairs; NaN where there is none.
        low: lower end of the interval; NaN where fewer than two groups have a defined pair.
        high: upper end, likewise.
        n: defined pairs.
    """

    mean: float
    low: float
    high: float
    n: int


def summarise(
    values: Tensor | np.ndarray,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Summary:
    """The mean over the defined pairs, with a percentile bootstrap interval over groups (Efron 1979).

    Each resample draws as many groups as have a defined pair, with replacement; its mean is the sum of their scores
    over the number of their pairs (a ratio, as groups differ in size). A single group says nothing about the spread
    between groups, so its interval is NaN, not a point.

    Args:
        values: [N] float, NaN where undefined.
        groups: N names.
        seed: of the draws; the same seed gives the same interval, whatever else was drawn before.
        resamples: draws.
        level: the share of resampled means within the interval.

    Raises:
        InputError: values that are not float [N] (a boolean cannot hold NaN), infinite values, or another number of
            groups.
    """
    scores = _checked("values", values, groups)
    check_count("resamples", resamples)
    check_number("level", level, 0, 1, open_low=True)
    defined = ~np.isnan(scores)
    n = int(defined.sum())
    if n == 0:
        return Summary(float("nan"), float("nan"), float("nan"), 0)
    # Groups in order of appearance would make the draws depend on the order of pairs; np.unique sorts them.
    names, members = np.unique(np.asarray(groups, dtype=str)[defined], return_inverse=True)
    sums = np.bincount(members, weights=scores[defined])
    counts = np.bincount(members).astype(np.float64)
    mean = float(sums.sum() / n)
    if len(names) == 1:
        return Summary(mean, float("nan"), float("nan"), n)
    means = _resampled_means(sums, counts, seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Summary(mean, float(low), float(high), n)


def paired_difference(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    groups: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Summary:
    """The mean of a - b over the pairs where both are defined, summarised as by :func:`summarise`.

    Args:
        a: [N] float, NaN where undefined.
        b: [N] float, likewise, the same pairs in the same order.
        groups: N names.
        seed: of the draws.
        resamples: draws.
        level: the share of resampled differences within the interval.
    """
    return summarise(_checked("a", a, groups) - _checked("b", b, groups), groups, seed, resamples, level)


def _checked(name: str, values: Tensor | np.ndarray, groups: Sequence[str]) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != 1:
        came = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(expected(name, "a float array [N]", came))
    if len(array) != len(groups):
        raise InputError(expected("groups", f"{len(array)} names, one per pair", len(groups)))
    if np.isinf(array).any():
        raise InputError(expected(name, "finite values or NaN", f"{int(np.isinf(array).sum())} infinite"))
    return array.astype(np.float64)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """[resamples] ratios of sums; drawn in blocks, so that many groups do not cost memory."""
    generator = np.random.default_rng(seed)
    groups = len(sums)
    block = max(1, _DRAWS // groups)
    means = []
    for start in range(0, resamples, block):
        drawn = generator.integers(groups, size=(min(block, resamples - start), groups))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)
