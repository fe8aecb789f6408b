"""Scores with their intervals, one small panel per metric: dots on lines, methods told apart by place and colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protomask.errors import InputError, expected
from protomask.visualise.palette import FAINT, INK, WHITE, method_colour
from protomask.visualise.sheet import FONT, MARGIN, axes_at, sheet, text_at, text_width
from protomask.visualise.wording import arrow

_WIDTH, _ROW, _COLUMNS = 1.9, 0.23, 4  # inches per panel and per method; panels per row


class Interval(Protocol):
    """A mean with its interval, whatever record holds it; NaN or None where it is undefined."""

    @property
    def mean(self) -> float | None:
        """The mean over the items where the score is defined."""

    @property
    def low(self) -> float | None:
        """The interval's lower end."""

    @property
    def high(self) -> float | None:
        """The interval's upper end."""

    @property
    def n(self) -> int:
        """How many items went into it."""


def defined(value: Interval | None) -> bool:
    """Whether there is a score: present, with a mean that is a finite number."""
    return value is not None and value.mean is not None and math.isfinite(value.mean)


def ends(value: Interval) -> tuple[float, float, float]:
    """(mean, low, high) of a score, NaN where it is undefined; one group alone has a mean and no interval."""
    mean, low, high = (math.nan if v is None else float(v) for v in (value.mean, value.low, value.high))
    return mean, low, high


def score_figure(
    scores: Mapping[str, Mapping[str, Interval]],
    metrics: Sequence[str],
    directions: Mapping[str, int],
    *,
    title: str = "",
) -> Figure:
    """Dots with intervals: one panel per metric, one line per method, in the order of ``scores``.

    Args:
        scores: method -> metric -> mean with its interval; missing and undefined ones stay blank.
        metrics: the metrics shown, in order.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither.
        title: above the figure.

    Returns:
        A figure with one axes per metric, labelled with its name.

    Raises:
        InputError: no methods or no metrics.
    """
    if not scores or not metrics:
        raise InputError(expected("scores, metrics", "at least one of each", f"{len(scores)} and {len(metrics)}"))
    columns = min(_COLUMNS, len(metrics))
    tall, top = len(scores) * _ROW + 0.06, 0.62 if title else 0.2
    pitch = tall + 0.78
    names = max(text_width(method, 9) for method in scores) + 0.16
    width = MARGIN + names + columns * (_WIDTH + 0.22) - 0.22 + MARGIN
    figure = sheet(width, top + math.ceil(len(metrics) / columns) * pitch + 0.22)
    text_at(figure, MARGIN, 0.16, title, 12, width=width - 2 * MARGIN, weight="bold")
    for k, metric in enumerate(metrics):
        x, y = MARGIN + names + k % columns * (_WIDTH + 0.22), top + k // columns * pitch
        heading = f"{metric} {arrow(directions.get(metric, 0))}".strip()
        text_at(figure, x, y, heading, 10, width=_WIDTH, weight="bold")
        axes = axes_at(figure, x, y + 0.26, _WIDTH, tall, metric)
        _dots(axes, scores, metric)
        if k % columns == 0:
            _names(figure, list(scores), MARGIN + names - 0.12, y + 0.26, tall)
    foot = float(figure.get_figheight()) - 0.26
    text_at(figure, MARGIN + names, foot, _key(scores, metrics, directions), 8.5, color=FAINT)
    return figure


def _dots(axes: Axes, scores: Mapping[str, Mapping[str, Interval]], metric: str) -> None:
    for row, (method, values) in enumerate(scores.items()):
        value = values.get(metric)
        if value is None or not defined(value):
            continue
        mean, low, high = ends(value)
        colour = method_colour(method)
        # White (the annotation) shows through its dark rim alone, here as in the pictures.
        bar = INK if colour == WHITE else colour
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [row, row], color=bar, lw=2, solid_capstyle="butt", zorder=2)
        axes.plot([mean], [row], "o", ms=6, mfc=colour, mec=INK, mew=0.8, zorder=3)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_yticks(range(len(scores)), labels=[])
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=2.5, labelsize=8, labelfontfamily=FONT, colors=FAINT)
    axes.grid(True, color="#E4E4E4", lw=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color="#9A9A9A", lw=0.7)


def _names(figure: Figure, methods: Sequence[str], right: float, y: float, tall: float) -> None:
    for row, method in enumerate(methods):
        text_at(figure, right, y + (row + 0.5) * tall / len(methods), method, 9, ha="right", va="center")


def _key(scores: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str], directions: Mapping[str, int]) -> str:
    shown = {directions.get(metric, 0) for metric in metrics}
    words = [w for d, w in ((1, f"{arrow(1)} higher is better"), (-1, f"{arrow(-1)} lower is better")) if d in shown]
    counts = [v.n for values in scores.values() for m, v in values.items() if m in metrics and defined(v)]
    if counts:
        words.append(f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}")
    return "    ".join(["dot: mean, bar: 95 % interval", *words])
