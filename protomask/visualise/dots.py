"""The geometry of dot plots: where dots, bars, grid lines and ticks lie, in percent of a track. The page draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from protomask.visualise.blocks import DotPlot
from protomask.visualise.charts import Interval, defined, ends
from protomask.visualise.palette import method_colour
from protomask.visualise.wording import arrow, number

_TRACK = 24  # characters of a tick that stand side by side below a track
_EDGE = 4.0  # percent of the track kept free on either side, for the dots' radius


@dataclass(frozen=True)
class Dot:
    """One method in one panel; ``at`` and the bar's ends in percent, None where undefined."""

    name: str
    row: int
    colour: str
    control: bool
    at: float | None
    low: float | None
    high: float | None
    text: str
    best: bool
    dagger: bool = False


@dataclass(frozen=True)
class Panel:
    """One metric: its dots from above, and (percent, label) of its ticks."""

    heading: str
    dots: tuple[Dot, ...]
    ticks: tuple[tuple[float, str], ...]


def panels(plot: DotPlot) -> list[Panel]:
    """The panels of a plot; a metric that no method defines gets none."""
    shown = [m for m in plot.metrics if any(defined(v.get(m)) for v in plot.scores.values())]
    return [_panel(plot, metric) for metric in shown]


def ticks(low: float, high: float, wanted: int = 4, most: int | None = None) -> list[float]:
    """Round numbers within [low, high]: at least ``wanted`` of them, two if ``most`` allows no more.

    Args:
        low: of the range; alone where the range is empty.
        high: of the range.
        wanted: numbers, about; up to twice as many where no rounder step gives so many.
        most: not more than these, as long as two are left.
    """
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    found: list[float] = []
    for step in (power * s for s in (10, 5, 2, 1, 0.5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if len(found) >= 2 and most is not None and last - first + 1 > most:
            break
        found = [k * step for k in range(first, last + 1)]
        if len(found) >= wanted:
            break
    return found


def _panel(plot: DotPlot, metric: str) -> Panel:
    values = {method: scores.get(metric) for method, scores in plot.scores.items()}
    reached = [v for value in values.values() if value is not None for v in ends(value) if math.isfinite(v)]
    low, high = min(reached), max(reached)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    best = _best(plot, metric)

    def place(value: float) -> float:
        return round(_EDGE + (100 - 2 * _EDGE) * (value - low) / (high - low), 2)

    dots = tuple(
        replace(
            _dot(method, row, value, method in plot.controls, method in best, place, plot.digits),
            dagger=(method, metric) in plot.marked and value is not None and defined(value),
        )
        for row, (method, value) in enumerate(values.items())
    )
    marks = ticks(low, high, 3)
    widest = max(len(number(m, _digits(marks))) for m in marks)
    marks = ticks(low, high, 3, max(2, _TRACK // (widest + 1)))
    digits = _digits(marks)
    heading = f"{metric} {arrow(plot.directions.get(metric, 0))}".strip()
    return Panel(heading, dots, tuple((place(m), number(m, digits)) for m in marks))


def _digits(marks: list[float]) -> int:
    """Decimals that tell marks at equal steps apart."""
    return max(0, -math.floor(math.log10(abs(marks[1] - marks[0])) + 1e-9)) if len(marks) > 1 else 2


def _dot(
    name: str,
    row: int,
    value: Interval | None,
    control: bool,
    best: bool,
    place: Callable[[float], float],
    digits: int,
) -> Dot:
    if value is None or not defined(value):
        return Dot(name, row, method_colour(name), control, None, None, None, number(None), False)
    mean, low, high = ends(value)
    bar = (place(low), place(high)) if math.isfinite(high - low) else (None, None)
    return Dot(name, row, method_colour(name), control, place(mean), bar[0], bar[1], number(mean, digits), best)


def _best(plot: DotPlot, metric: str) -> set[str]:
    direction = plot.directions.get(metric, 0)
    return best_methods(plot.scores, metric, direction, plot.controls, plot.digits)


def best_methods(
    scores: Mapping[str, Mapping[str, Interval]],
    metric: str,
    direction: int,
    controls: Collection[str],
    digits: int = 2,
) -> set[str]:
    """The methods whose mean, as printed, is the best: those that look alike are best together; controls never are."""
    means = {
        method: round(ends(values[metric])[0], digits) * direction
        for method, values in scores.items()
        if method not in controls and metric in values and defined(values[metric])
    }
    return {method for method, mean in means.items() if direction and mean == max(means.values())}
