r"""``scores.tex``: tables for a paper. Needs ``\usepackage{booktabs}``; ``\input{scores.tex}`` takes all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from protomask.visualise.charts import Interval, defined, ends
from protomask.visualise.wording import number

# What the 345 pt between the margins of article at 10 pt hold, beside the longest name of a method.
WIDEST = 3  # metrics per table, with their intervals
_LONGEST = 14  # characters of a metric's name on one line
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_ARROWS = {1: r" $\uparrow$", -1: r" $\downarrow$"}


def latex(
    scores: Mapping[str, Mapping[str, Interval]],
    tables: Mapping[str, Sequence[str]],
    directions: Mapping[str, int],
    controls: Sequence[str],
    marked: Collection[tuple[str, str]] = (),
) -> str:
    """Booktabs tables of means with their 95 % intervals; the best method of each metric is bold, controls aside.

    Args:
        scores: method -> metric -> mean with its interval.
        tables: caption -> metrics; more than :data:`WIDEST` metrics are split over several tables.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither (nothing is bold then).
        controls: methods below a rule, never bold.
        marked: (method, metric) of the scores that carry a dagger.
    """
    parts = [r"% Needs \usepackage{booktabs}. Mean and 95 % bootstrap interval, clustered; bold: the best method."]
    if marked:
        parts[0] += "\n% Dagger: the method was trained with the fill that scores it."
    for caption, metrics in tables.items():
        for start in range(0, len(metrics), WIDEST):
            parts.append(_table(scores, metrics[start : start + WIDEST], directions, controls, caption, marked))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Any text as LaTeX prints it: special characters escaped, white space and control characters as spaces."""
    plain = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    return "".join(_SPECIAL.get(character, character) for character in plain)


def _table(
    scores: Mapping[str, Mapping[str, Interval]],
    metrics: Sequence[str],
    directions: Mapping[str, int],
    controls: Sequence[str],
    caption: str,
    marked: Collection[tuple[str, str]],
) -> str:
    best = {metric: _best(scores, metric, directions.get(metric, 0), controls) for metric in metrics}
    heads = [_head(metric, _ARROWS.get(directions.get(metric, 0), "")) for metric in metrics]
    ranked = [_row(method, scores[method], metrics, best, marked) for method in scores if method not in controls]
    aside = [_row(method, scores[method], metrics, best, marked) for method in scores if method in controls]
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}",
        r"\setlength{\tabcolsep}{4pt}", rf"\begin{{tabular}}{{@{{}}l{'c' * len(metrics)}@{{}}}}", r"\toprule",
        " & ".join(["method", *heads]) + r" \\", r"\midrule", *ranked,
        *([r"\midrule"] if ranked and aside else []), *aside,
        r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines)


def _head(metric: str, arrow: str) -> str:
    """The metric's name with its arrow, on several lines where it is long."""
    lines = [""]
    for part in re.findall(r"[^-@]+[-@]?|[-@]", metric):
        if lines[-1] and len(lines[-1] + part) > _LONGEST:
            lines.append("")
        lines[-1] += part
    text = r"\\".join(map(escaped, lines)) + arrow
    return text if len(lines) == 1 else rf"\shortstack{{{text}}}"


def _row(
    method: str,
    values: Mapping[str, Interval],
    metrics: Sequence[str],
    best: Mapping[str, set[str]],
    marked: Collection[tuple[str, str]],
) -> str:
    cells = [_cell(values.get(metric), method in best[metric], (method, metric) in marked) for metric in metrics]
    return " & ".join([escaped(method), *cells]) + r" \\"


def _cell(value: Interval | None, bold: bool, dagger: bool) -> str:
    if value is None or not defined(value):
        return "--"
    mean, low, high = ends(value)
    text = (rf"\textbf{{{_number(mean)}}}" if bold else _number(mean)) + (r"$^\dagger$" if dagger else "")
    return rf"{text} {{\scriptsize [{_number(low)}, {_number(high)}]}}" if math.isfinite(high - low) else text


def _number(value: float) -> str:
    return number(value, 3).replace("\N{MINUS SIGN}", "$-$")


def _best(
    scores: Mapping[str, Mapping[str, Interval]], metric: str, direction: int, controls: Sequence[str]
) -> set[str]:
    means = {
        method: round(ends(values[metric])[0], 3) * direction
        for method, values in scores.items()
        if method not in controls and metric in values and defined(values[metric])
    }
    return {method for method, mean in means.items() if direction and mean == max(means.values())}
