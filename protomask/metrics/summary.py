"""Means over pairs with bootstrap intervals clustered by group (the image, or the patient).

Pairs of one image are not independent, so whole groups are resampled. Undefined (NaN) pairs are left out before
anything is drawn. Paired differences of many methods on many metrics are many tests: their p-values come from sign-flip
permutations of whole groups (:func:`sign_flip_p`), and are corrected by :func:`holm`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from protomask.checks import check_count, check_number
from protomask.errors import InputError, expected

RESAMPLES = 2000
PERMUTATIONS = 9999
LEVEL = 0.95
ROUNDING = 1e-12  # of the largest score: an end that is nearer to 0 is 0
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
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # Differences that cancel leave rounding, which would tell that zero lies outside.
    ends[np.abs(ends) < ROUNDING * np.abs(scores[defined]).max()] = 0
    return Summary(mean, float(ends[0]), float(ends[1]), n)


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
    one, other = _checked("a", a, groups), _checked("b", b, groups)
    gaps = one - other
    gaps[np.abs(gaps) < ROUNDING * np.maximum(np.abs(one), np.abs(other))] = 0
    return summarise(gaps, groups, seed, resamples, level)


def sign_flip_p(
    a: Tensor | np.ndarray,
    b: Tensor | np.ndarray,
    groups: Sequence[str],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> float:
    """Two-sided p-value of the mean of a - b over the pairs where both are defined, by flipping whole groups' signs.

    If two methods were the same, a group's differences could as well have come with the opposite sign; the p-value is
    the share of sign patterns whose mean is at least as far from 0 (Fisher 1935). All of them are tried where there are
    at most ``permutations``, else that many are drawn, the pattern as it came counted in (Phipson and Smyth 2010), so
    that no p-value is 0. Pitfall: with n groups it cannot fall below 2 ** (1 - n), so a handful of images cannot be
    significant, however large the difference.

    Args:
        a: [N] float, NaN where undefined.
        b: [N] float, likewise, the same pairs in the same order.
        groups: N names.
        seed: of the draws.
        permutations: the most sign patterns that are tried.

    Returns:
        In (0, 1]; NaN where no pair is defined.
    """
    check_count("permutations", permutations)
    scores = _checked("a", a, groups) - _checked("b", b, groups)
    defined = ~np.isnan(scores)
    if not defined.any():
        return float("nan")
    _, members = np.unique(np.asarray(groups, dtype=str)[defined], return_inverse=True)
    sums = np.bincount(members, weights=scores[defined])
    exact = len(sums) - 1 < 60 and 2 ** (len(sums) - 1) <= permutations
    totals = _every_sign(sums) if exact else _drawn_signs(sums, seed, permutations)
    # What differs from the observed sum only by the order of additions is as far from 0.
    far = np.abs(totals) >= np.abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    return float(far.mean()) if exact else float((far.sum() + 1) / (permutations + 1))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values corrected for how many there are, Holm's step-down way (1979): the family-wise error holds at any level.

    The k-th smallest of m is multiplied by m - k + 1, and none may fall below a smaller one's. Where it is at most
    .05, the difference is significant whatever else was tested. Undefined (NaN) entries stay, and do not count in m.

    Args:
        p_values: [M], in [0, 1] or NaN: every comparison that was made, not the interesting ones.

    Returns:
        [M] float64, at least the p-value and at most 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise InputError(expected("p_values", "an array [M] of values in [0, 1] or NaN", repr(p_values)[:80]))
    corrected = np.full_like(values, np.nan)
    defined = np.flatnonzero(~np.isnan(values))
    ascending = defined[np.argsort(values[defined], kind="stable")]
    factors = len(ascending) - np.arange(len(ascending))
    corrected[ascending] = np.minimum(np.maximum.accumulate(values[ascending] * factors), 1)
    return corrected


def decided(differences: Mapping[str, Summary]) -> str:
    """Which of two methods scores higher under every fill: ``"first"``, ``"second"``, or ``"undecided"``.

    A ranking that flips between scoring fills says as much about the fills as about the methods.

    Args:
        differences: fill -> first minus second, as from :func:`paired_difference`.

    Returns:
        ``"undecided"`` where the means differ in sign, where one is 0 or undefined, or where there is none.
    """
    signs = {float(np.sign(difference.mean)) for difference in differences.values()}
    if signs == {1.0}:
        return "first"
    return "second" if signs == {-1.0} else "undecided"


def _every_sign(sums: np.ndarray) -> np.ndarray:
    """[2 ** (n - 1)] totals: the first sign stays, as a pattern and its opposite are equally far from 0."""
    totals = sums[:1]
    for value in sums[1:]:
        totals = np.concatenate([totals + value, totals - value])
    return totals


def _drawn_signs(sums: np.ndarray, seed: int, permutations: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS // len(sums))
    totals = []
    for start in range(0, permutations, block):
        flips = generator.integers(2, size=(min(block, permutations - start), len(sums)), dtype=np.int8)
        totals.append(sums.sum() - 2 * (flips @ sums))
    return np.concatenate(totals)


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
