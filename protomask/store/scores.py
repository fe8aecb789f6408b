"""``scores.json``: ``{model: {method: {metric: {mean, low, high, n}}}}``, null where undefined.

n counts pairs; prototypes where the metric is one of prototypes, images by pairs of models for ``agreement``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protomask.errors import DataError, expected
from protomask.store._json import finite, number, read_json, write_json


class Interval(Protocol):
    """A score as the summaries give it: a mean with its interval, over ``n`` pairs. NaN where undefined."""

    @property
    def mean(self) -> float:
        """The point estimate."""

    @property
    def low(self) -> float:
        """The interval's lower end."""

    @property
    def high(self) -> float:
        """The interval's upper end."""

    @property
    def n(self) -> int:
        """How many pairs were scored."""


@dataclass(frozen=True)
class Score:
    """One entry of ``scores.json``: mean and interval over ``n`` (image, prototype) pairs, NaN where undefined."""

    mean: float
    low: float
    high: float
    n: int


def write_scores(path: str | Path, scores: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> None:
    """``{model: {method: {metric: {mean, low, high, n}}}}``, null where a number is NaN or infinite.

    Raises:
        ResourceError: the file cannot be written.
    """
    content = {
        model: {
            method: {
                metric: {"mean": finite(s.mean), "low": finite(s.low), "high": finite(s.high), "n": int(s.n)}
                for metric, s in metrics.items()
            }
            for method, metrics in methods.items()
        }
        for model, methods in scores.items()
    }
    write_json(path, content, indent=1)


def read_scores(path: str | Path) -> dict[str, dict[str, dict[str, Score]]]:
    """What :func:`write_scores` wrote, NaN for null.

    Raises:
        DataError: no such file, no JSON, or not of that form.
    """
    content = read_json(path)
    try:
        return {
            model: {
                method: {
                    metric: Score(number(s["mean"]), number(s["low"]), number(s["high"]), int(s["n"]))
                    for metric, s in metrics.items()
                }
                for method, metrics in methods.items()
            }
            for model, methods in content.items()
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        wanted = "{model: {method: {metric: {mean, low, high, n}}}}"
        raise DataError(expected(str(path), wanted, repr(error))) from error
