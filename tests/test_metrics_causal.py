"""The causal part: its rule by a table and by a naive loop, and the in-painting of a disc."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protomask.errors import InputError
from protomask.metrics import causal_parts, part_drops

NAN = math.nan


@pytest.mark.parametrize(
    ("drops", "part", "drop", "runner_up"),
    [
        ([0.5, 0.1, 0.0], 0, 0.5, 0.1),
        ([0.1, 0.25, 0.5], 2, 0.5, 0.25),  # the runner-up at exactly half
        ([0.1, 0.2501, 0.5], -1, 0.5, 0.2501),
        ([0.05, 0.2, 0.1], 1, 0.2, 0.1),  # the winner at exactly the threshold
        ([0.05, 0.1999, 0.0], -1, 0.1999, 0.05),
        ([NAN, 0.3, NAN], 1, 0.3, NAN),  # alone: no runner-up
        ([NAN, 0.1, NAN], -1, 0.1, NAN),
        ([NAN, NAN, NAN], -1, NAN, NAN),
        ([0.4, 0.4, 0.4], -1, 0.4, 0.4),
        ([-0.5, 0.3, -0.1], 1, 0.3, -0.1),  # removing a part can raise the activation
        ([-0.5, -0.3, NAN], -1, -0.3, -0.5),
    ],
)
def test_the_rule(drops: list[float], part: int, drop: float, runner_up: float) -> None:
    found = causal_parts(torch.tensor([drops], dtype=torch.float64))
    assert found.part.dtype == torch.int64
    assert found.part.tolist() == [part]
    assert found.drop.tolist() == pytest.approx([drop], nan_ok=True)
    assert found.runner_up.tolist() == pytest.approx([runner_up], nan_ok=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.sampled_from([NAN, -0.2, 0, 0.1, 0.19, 0.2, 0.3, 0.41, 0.9]), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_the_rule_against_a_naive_loop(rows: list[list[float]]) -> None:
    found = causal_parts(torch.tensor(rows, dtype=torch.float64))
    assert len(found) == len(rows)
    for part, row in zip(found.part.tolist(), rows, strict=True):
        winners = [
            k
            for k, value in enumerate(row)
            if value >= 0.2 and all(i == k or math.isnan(other) or other <= value / 2 for i, other in enumerate(row))
        ]
        assert [part] == (winners or [-1])


def test_a_single_part_may_win() -> None:
    assert causal_parts(torch.tensor([[0.3], [0.1]])).part.tolist() == [0, -1]
    with pytest.raises(InputError, match="drops: expected at least one part"):
        causal_parts(torch.zeros(2, 0))


def test_part_drops_are_relative_to_the_floor() -> None:
    before = torch.tensor([5.0, 2.0, 1.0])
    without = torch.tensor([[3.0, NAN], [2.5, 1.0], [0.5, 0.5]])
    ours = part_drops(before, without, torch.tensor([1.0, 0.0, 1.0]))
    wanted = torch.tensor([[0.5, NAN], [-0.25, 0.5], [NAN, NAN]]).double()
    torch.testing.assert_close(ours, wanted, equal_nan=True)
    assert causal_parts(ours).part.tolist() == [0, 1, -1]
    with pytest.raises(InputError, match=r"without: expected shape \[3, K\]"):
        part_drops(before, without[:2], 0.0)
