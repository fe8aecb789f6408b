"""Which of two methods is better, where the answer must hold under every scoring fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from protomask.metrics.catalogue import METRICS, OTHER_FILLS
from protomask.metrics.summary import Summary, decided, paired_difference


def verdicts(
    first: Mapping[str, Tensor | np.ndarray], second: Mapping[str, Tensor | np.ndarray], groups: Sequence[str]
) -> dict[str, str]:
    """For each causal metric that both methods have under more than one fill: which of them is better.

    Args:
        first: metric -> [N] float of one method, NaN where undefined.
        second: likewise of the other, on the same pairs.
        groups: N names, what pairs are clustered by.

    Returns:
        metric, without its fill -> ``"first"``, ``"second"`` or ``"undecided"`` (:func:`protomask.metrics.decided`),
        lower counted as better where it is.
    """
    found = {}
    for name, metric in METRICS.items():
        names = [n for n in (name, *(f"{name}@{fill}" for fill in OTHER_FILLS)) if n in first and n in second]
        if "@" in name or len(names) < 2:
            continue
        differences: dict[str, Summary] = {
            n: paired_difference(first[n], second[n], groups, resamples=1) for n in names
        }
        higher = decided(differences)
        better = {"first": "second", "second": "first"}.get(higher, higher)
        found[name] = higher if metric.higher_is_better else better
    return found
