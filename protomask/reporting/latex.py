r"""``scores.tex``: tables for a paper. Needs ``\usepackage{booktabs}``; ``\input{scores.tex}`` takes all of them.

Names in other scripts than the Latin one need XeLaTeX or LuaLaTeX with a font that has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from protomask.visualise.charts import Interval, defined, ends
from protomask.visualise.wording import number

WIDEST = 3  # metrics per table, with their intervals
MARGINS = 345  # points between the margins of article at 10 pt
_GAP = 8  # points between columns
_LONGEST = 14  # characters of a metric's name on one line
_SMALL, _BOLD = 0.8, 1.15  # widths in \\scriptsize and in bold
# Computer Modern's widths in points at 10 pt, by kind of character: estimates from above.
_WIDTHS = {**dict.fromkeys("ijlt.,:;'|![]()/ -", 3.4), **dict.fromkeys("mwMW", 8.5), "\N{MINUS SIGN}": 7.8}
_ARROW = 8.4
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
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
        tables: caption -> metrics; split over several tables of at most :data:`WIDEST`, fewer where names or numbers
            are too wide for :data:`MARGINS`.
        directions: metric -> 1 where higher is better, -1 where lower is, 0 where neither (nothing is bold then).
        controls: methods below a rule, never bold.
        marked: (method, metric) of the scores that carry a dagger.
    """
    parts = [r"% Needs \usepackage{booktabs}. Mean and 95 % bootstrap interval, clustered; bold: the best method."]
    if marked:
        parts[0] += "\n% Dagger: the method was trained with the fill that scores it."
    for caption, metrics in tables.items():
        for part in _parts(scores, metrics):
            parts.append(_table(scores, part, directions, controls, caption, marked))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Any text as LaTeX prints it: special characters escaped, white space and control characters as spaces."""
    plain = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    found = "".join(_SPECIAL.get(character, character) for character in plain)
    return re.sub(r"-(?=-)", "-{}", found)  # not a dash


def _parts(scores: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str]) -> list[list[str]]:
    """The metrics in the order given, as many to a table as fit between the margins; at least one."""
    names = max(_width(method) for method in scores)
    parts: list[list[str]] = []
    left = 0.0
    for metric in metrics:
        cells = (_cell_width(values.get(metric)) for values in scores.values())
        wide = _GAP + max(*(_width(line) + _ARROW for line in _lines(metric)), *cells)
        if not parts or len(parts[-1]) == WIDEST or wide > left:
            parts.append([])
            left = MARGINS - names
        parts[-1].append(metric)
        left -= wide
    return parts


def _width(text: str) -> float:
    return sum(_WIDTHS.get(character, 7.8 if character.isupper() else 5.6) for character in text)


def _cell_width(value: Interval | None) -> float:
    """Points of a cell whose mean is bold, with a dagger."""
    if value is None or not defined(value):
        return 0.0
    mean, *reach = (sum(_WIDTHS.get(c, 5.0) for c in number(v, 3)) for v in ends(value))
    return _BOLD * mean + 4 + (3.4 + _SMALL * (sum(reach) + 4 * 3.0) if math.isfinite(ends(value)[1]) else 0)


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


def _lines(metric: str) -> list[str]:
    """The metric's name, on several lines where it is long."""
    lines = [""]
    for part in re.findall(r"[^-@]+[-@]?|[-@]", metric):
        if lines[-1] and len(lines[-1] + part) > _LONGEST:
            lines.append("")
        lines[-1] += part
    return lines


def _head(metric: str, arrow: str) -> str:
    """The metric's name with its arrow."""
    lines = _lines(metric)
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
    name = escaped(method)
    # The end of the row before takes a star or a bracket for its own.
    return " & ".join([f"{{}}{name}" if name[:1] in ("*", "[") else name, *cells]) + r" \\"


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
