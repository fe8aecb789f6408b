"""Bootstrap intervals against scipy, closed forms and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, permutation_test, ttest_1samp

from protomask.errors import InputError
from protomask.metrics import Summary, decided, holm, paired_difference, sign_flip_p, summarise, verdicts

FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def clustered(seed: int = 0, groups: int = 30) -> tuple[np.ndarray, list[str]]:
    """Scores that share a level within their group; groups of one to six."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 7, groups)
    names = [f"image {g}" for g, size in enumerate(sizes) for _ in range(size)]
    values = np.concatenate([generator.normal() + 0.3 * generator.normal(size=size) for size in sizes])
    return values, names


def test_the_interval_is_scipys_over_groups() -> None:
    """scipy resamples (sum, count) pairs; both draw 20,000 times, so ends agree to a few thousandths."""
    values, names = clustered()
    sums = np.array([values[np.array(names) == g].sum() for g in sorted(set(names))])
    counts = np.array([names.count(g) for g in sorted(set(names))])
    theirs = bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = summarise(values, names, resamples=20000)
    assert ours.mean == pytest.approx(values.mean(), abs=1e-12)
    assert ours.n == len(values)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_of_independent_pairs_the_interval_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    ours = summarise(values, [str(i) for i in range(400)], resamples=20000, level=0.9)
    half = norm.ppf(0.95) * values.std() / math.sqrt(400)
    assert (ours.low, ours.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_pairs_of_one_group_add_no_certainty() -> None:
    """Each pair four times over, in its group: the same interval; as if independent: half as wide."""
    values = np.random.default_rng(2).normal(size=50)
    names = [str(i) for i in range(50)]
    once = summarise(values, names)
    fourfold = summarise(np.repeat(values, 4), np.repeat(names, 4).tolist())
    assert (fourfold.low, fourfold.high) == pytest.approx((once.low, once.high), abs=1e-12)
    careless = summarise(np.repeat(values, 4), [str(i) for i in range(200)])
    assert careless.high - careless.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_the_means_are_those_of_a_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    values, names = clustered(3, 8)
    groups = sorted(set(names))
    for block in (10**6, 8):  # all draws at once, and one at a time
        monkeypatch.setattr("protomask.metrics.summary._DRAWS", block)
        ours = summarise(values, names, seed=5, resamples=200, level=0.8)
        generator, means = np.random.default_rng(5), []
        shape = (200, len(groups)) if block > 8 else (1, len(groups))
        for _ in range(200 // shape[0]):
            for draw in generator.integers(len(groups), size=shape):
                picked = [v for g in draw for v, name in zip(values, names, strict=True) if name == groups[g]]
                means.append(np.mean(picked))
        assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-12)


def test_undefined_pairs_are_left_out() -> None:
    values, names = clustered()
    holes = values.copy()
    holes[::3] = math.nan
    holes[np.array(names) == "image 4"] = math.nan  # a group without any defined pair
    kept = ~np.isnan(holes)
    ours = summarise(holes, names)
    assert ours == summarise(values[kept], [n for n, k in zip(names, kept, strict=True) if k])
    assert ours.n == kept.sum()


def test_nothing_defined_is_undefined() -> None:
    for values in (np.full(3, math.nan), np.empty(0)):
        ours = summarise(values, ["a"] * len(values))
        assert ours.n == 0
        assert all(math.isnan(v) for v in (ours.mean, ours.low, ours.high))


def test_one_group_has_a_mean_and_no_interval() -> None:
    ours = summarise(np.array([1.0, 2.0, math.nan]), ["a", "a", "b"])
    assert (ours.mean, ours.n) == (1.5, 2)
    assert math.isnan(ours.low)
    assert math.isnan(ours.high)


def test_equal_scores_have_no_spread() -> None:
    assert summarise(np.full(6, 0.25), list("aabbcc")) == Summary(0.25, 0.25, 0.25, 6)


@FEW
@given(st.integers(0, 2**16), st.integers(2, 12))
def test_the_interval_ignores_order_names_and_the_global_state(seed: int, groups: int) -> None:
    values, names = clustered(seed, groups)
    first = summarise(values, names, seed=9, resamples=100)
    np.random.default_rng(0)
    torch.rand(3)
    shuffle = np.random.default_rng(seed).permutation(len(values))
    again = summarise(values[shuffle], [names[i] for i in shuffle], seed=9, resamples=100)
    assert (again.mean, again.low, again.high) == pytest.approx((first.mean, first.low, first.high), abs=1e-12)
    assert first.low <= first.mean + 3 * (first.high - first.low)
    assert summarise(torch.from_numpy(values), names, seed=9, resamples=100) == first
    wide = summarise(values, names, seed=9, resamples=100, level=0.5)
    assert first.low <= wide.low <= wide.high <= first.high


def test_another_seed_draws_otherwise() -> None:
    values, names = clustered()
    assert summarise(values, names, seed=0) == summarise(values, names, seed=0)
    assert summarise(values, names, seed=0).low != summarise(values, names, seed=1).low


def test_a_paired_difference_is_the_summary_of_differences() -> None:
    a, names = clustered()
    b = a - 0.2 + 0.01 * np.random.default_rng(1).normal(size=len(a))
    a[0], b[1] = math.nan, math.nan
    ours = paired_difference(a, b, names, seed=4)
    assert ours == summarise(a - b, names, seed=4)
    assert ours.n == len(a) - 2
    assert 0.19 < ours.low < 0.2 < ours.high < 0.21
    unpaired = summarise(a, names)
    assert unpaired.high - unpaired.low > 10 * (ours.high - ours.low)
    mirrored = paired_difference(b, a, names, seed=4)
    assert (mirrored.low, mirrored.high) == pytest.approx((-ours.high, -ours.low), abs=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="values: expected a float array"):
        summarise(np.array([True, False]), ["a", "b"])
    with pytest.raises(InputError, match="values: expected a float array"):
        summarise(np.zeros((2, 2)), ["a", "b"])
    with pytest.raises(InputError, match="values: expected finite values or NaN, got 1 infinite"):
        summarise(np.array([math.inf, 0]), ["a", "b"])
    with pytest.raises(InputError, match="groups: expected 2 names, one per pair, got 1"):
        summarise(np.zeros(2), ["a"])
    with pytest.raises(InputError, match="b: expected a float array"):
        paired_difference(np.zeros(2), np.zeros(2, dtype=int), ["a", "b"])
    with pytest.raises(InputError, match="resamples: expected an integer"):
        summarise(np.zeros(2), ["a", "b"], resamples=0)


# --- many comparisons -----------------------------------------------------------------------------------------------


def test_sign_flips_of_independent_pairs_are_scipys() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 9))
    a += 0.6
    theirs = permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf)
    # scipy takes twice the smaller tail; of a symmetric distribution that is the share at least as far from 0.
    assert sign_flip_p(a, b, [str(i) for i in range(9)]) == pytest.approx(float(theirs.pvalue), abs=1e-12)


def test_sign_flips_of_many_groups_are_students() -> None:
    a = np.random.default_rng(4).normal(size=300) + 0.1
    ours = sign_flip_p(a, np.zeros(300), [str(i) for i in range(300)], permutations=20000)
    assert ours == pytest.approx(ttest_1samp(a, 0).pvalue, abs=0.01)
    assert ours == sign_flip_p(a, np.zeros(300), [str(i) for i in range(300)], permutations=20000)
    assert ours != sign_flip_p(a, np.zeros(300), [str(i) for i in range(300)], seed=1, permutations=20000)


def test_whole_groups_are_flipped() -> None:
    """Four times the same pair is no more evidence than once; as if independent, it would be."""
    a = np.random.default_rng(5).normal(size=8) + 0.8
    once = sign_flip_p(a, np.zeros(8), [str(i) for i in range(8)])
    four, names = np.repeat(a, 4), [str(i) for i in range(8) for _ in range(4)]
    assert sign_flip_p(four, np.zeros(32), names) == pytest.approx(once, abs=1e-12)
    assert sign_flip_p(four, np.zeros(32), [str(i) for i in range(32)]) < once


def test_sign_flip_p_at_its_ends() -> None:
    names = [str(i) for i in range(6)]
    assert sign_flip_p(np.ones(6), np.zeros(6), names) == 2**-5  # as far from 0 as six groups can be
    assert sign_flip_p(np.ones(6), np.ones(6), names) == 1
    assert math.isnan(sign_flip_p(np.full(6, np.nan), np.ones(6), names))
    some = np.array([1, 1, 1, 1, np.nan, 1])
    assert sign_flip_p(some, np.zeros(6), names) == 2**-4  # undefined pairs count for nothing
    many = [str(i) for i in range(200)]
    assert sign_flip_p(np.ones(200), np.zeros(200), many, permutations=99) == 1 / 100  # never 0


def test_under_the_null_p_is_uniform() -> None:
    generator = np.random.default_rng(6)
    names = [str(i // 2) for i in range(20)]
    found = [sign_flip_p(generator.normal(size=20), generator.normal(size=20), names) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == []
    with_gaps = holm([0.02, math.nan, 0.6])
    assert with_gaps[[0, 2]].tolist() == [0.04, 0.6]
    assert math.isnan(with_gaps[1])
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(InputError, match="p_values: expected an array"):
            holm(np.array(wrong))


@FEW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    corrected = holm(values)
    assert (corrected >= np.array(values) - 1e-15).all()
    assert (corrected <= np.minimum(len(values) * np.array(values) + 1e-15, 1)).all()
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for step, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
            if values[index] * (len(values) - step) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(corrected) if p <= level} == rejected


def test_a_ranking_that_flips_between_fills_is_undecided() -> None:
    def difference(mean: float) -> Summary:
        return Summary(mean, mean - 1, mean + 1, 10)

    assert decided({"mean": difference(0.1), "blur": difference(0.4), "road": difference(0.01)}) == "first"
    assert decided({"mean": difference(-0.1), "road": difference(-0.2)}) == "second"
    for other in (-0.2, 0.0, math.nan):
        assert decided({"mean": difference(0.1), "road": difference(other)}) == "undecided"
    assert decided({}) == "undecided"


def test_verdicts_count_lower_as_better_where_it_is_and_hold_under_every_fill() -> None:
    names = ["a", "b", "c"]
    low, high = np.array([0.1, 0.2, np.nan]), np.array([0.3, 0.3, 0.9])
    both = ("deletion", "deletion@blur", "insertion", "insertion@blur", "sufficiency-drop", "energy")
    first = {**dict.fromkeys(both, low), "deletion-30": low, "deletion-30@road": high}
    second = {**dict.fromkeys(both, high), "deletion-30": high, "deletion-30@road": low}
    assert verdicts(first, second, names) == {"deletion": "first", "insertion": "second", "deletion-30": "undecided"}


def test_rounding_is_no_difference() -> None:
    # In tenths, so that resamples often add up to 0 but for rounding, and intervals end there.
    gaps = np.array([-0.1, -0.1, -0.1, -0.1, -0.1, 0.1, 0, 0, 0, 0])
    names = [str(k) for k in range(10)]
    a = np.linspace(0.1, 1, 10)
    ends = [paired_difference(a, a + gaps, names, seed=seed) for seed in range(20)]
    assert all(end == 0 or abs(end) > 1e-6 for found in ends for end in (found.low, found.high))
    same = paired_difference(np.full(10, 0.3), np.full(10, 0.1 + 0.2), names)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
