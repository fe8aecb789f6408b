"""The blocks of the report that are not about pairs: scores of prototypes, and sanity of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from protomask.metrics import METRICS, Summary, paired_difference, summarise
from protomask.reporting.beside import Beside
from protomask.reporting.checking import HEADING
from protomask.reporting.comparing import standing
from protomask.reporting.results import Results, spell_prototypes
from protomask.visualise.blocks import Block, Cell, DifferenceTable, PlainTable, ScoreTable
from protomask.visualise.wording import number

Scores = TypeVar("Scores")

PER_PROTOTYPE = "Per prototype"
_FOLDED = 40  # rows above which a table is behind a click


def prototype_blocks(results: Results, methods: Sequence[str]) -> list[Block]:
    """Means over prototypes under every method, and each prototype under ``methods``."""
    table = results.prototypes
    if not table.values:
        return []
    metrics = _metrics(table)
    caption = (
        f"Does a prototype show the same part wherever it is found? Means over {len(table.items)} prototypes, with "
        "95 % bootstrap intervals over prototypes. A spot in the middle of aligned objects is consistent too: compare "
        "with the centre control."
    )
    shown = [method for method in methods if method in table.values]
    keys = [(metric, m) for metric in metrics for m in shown]
    rows: list[Sequence[Cell]] = [
        (spelt, table.items[k][2], *(_cell(table, m, metric, k) for metric, m in keys))
        for k, spelt in enumerate(spell_prototypes([(item[0], item[1]) for item in table.items]))
    ]
    columns = ("prototype", "class", *(f"{metric}, {method}" for metric, method in keys))
    means = ScoreTable(
        PER_PROTOTYPE,
        _ordered(table.summaries(results.seed), results),
        metrics,
        {m: _direction(m) for m in metrics},
        caption,
        results.controls,
        counted="prototype",
    )
    each = PlainTable(PER_PROTOTYPE, columns, rows, "", sortable=True, folded=len(rows) > _FOLDED)
    return [means, *_prototype_differences(results, methods[0] if methods else "", metrics), each]


def _prototype_differences(results: Results, reference: str, metrics: Sequence[str]) -> list[Block]:
    table = results.prototypes
    mine = table.values.get(reference)
    others = {method: columns for method, columns in table.values.items() if method != reference}
    if mine is None or not others:
        return []
    groups = table.column(table.kind.group)
    found = {
        method: {m: paired_difference(mine[m], columns[m], groups, seed=results.seed) for m in metrics if m in columns}
        for method, columns in _ordered(others, results).items()
    }
    directions = {m: _direction(m) for m in metrics}
    keys = [(method, m) for method in found if method not in results.controls for m in metrics]
    holds, compared = standing(table.values, reference, keys, groups, results.seed)
    caption = (
        f"The same prototypes. The star is by Holm's method at 5 % over {compared} comparisons of prototypes with "
        "other methods; controls are not among them."
    )
    told = (caption, results.controls, holds)
    return [DifferenceTable(PER_PROTOTYPE, reference, found, metrics, directions, *told, counted="prototype")]


def sanity_blocks(results: Results) -> list[Block]:
    """Randomisation and agreement, where they were asked for."""
    return [*_randomisation(results), *_agreement(results)]


def _randomisation(results: Results) -> list[Block]:
    metrics = results.sanity_metrics
    if not metrics:
        return []
    scores = {
        method: {m: summarise(columns[m], results.groups, seed=results.seed) for m in metrics if m in columns}
        for method, columns in results.values.items()
    }
    caption = (
        "Rank correlation of each map with the map of the same model with shuffled weights: what they share is not "
        "about what was learned. Low is as it should be, but smooth maps correlate anyway. What does not look at the "
        "model scores 1; a method that finds nothing in the shuffled one 0."
    )
    return [ScoreTable(HEADING, _ordered(scores, results), metrics, {}, caption, results.controls)]


def _agreement(results: Results) -> list[Block]:
    table = results.agreement
    rows: list[Sequence[Cell]] = []
    for method in _ordered(table.values, results):
        same, other = (table.values[method].get(name) for name in ("agreement", "agreement-unrelated"))
        if same is None or other is None:
            continue
        groups = table.column("group")
        gap = paired_difference(same, other, groups, seed=results.seed)
        means = (summarise(column, groups, seed=results.seed) for column in (same, other))
        rows.append((method, *map(_spelt, (*means, gap)), gap.n))
    if not rows:
        return []
    caption = (
        "Rank correlation of the evidence maps of independently trained models: of the same image, and of two "
        "unrelated ones, which is what the method's own habits make of it. Only the difference is agreement."
    )
    if results.about.get("compared"):
        caption += f" Models of little capacity agree because they can do little else: {spell_compared(results)}."
    columns = ("agreement", "same image", "unrelated images", "difference", "n")
    return [PlainTable(HEADING, columns, rows, caption)]


def spell_compared(results: Results) -> str:
    """The models that were compared, with their capacities."""
    told = results.about.get("compared", ())
    return "; ".join(f"{m['name']}, {m['weights']:,} weights and {m['prototypes']:,} prototypes" for m in told)


def _metrics(table: Beside) -> tuple[str, ...]:
    found = {metric for columns in table.values.values() for metric in columns}
    return (*(m for m in METRICS if m in found), *sorted(found - set(METRICS)))


def _direction(metric: str) -> int:
    if metric not in METRICS:
        return 0
    return 1 if METRICS[metric].higher_is_better else -1


def _ordered(scores: Mapping[str, Scores], results: Results) -> dict[str, Scores]:
    """The methods in the order of the other tables: controls last."""
    return {method: scores[method] for method in (*results.methods, *scores) if method in scores}


def _cell(table: Beside, method: str, metric: str, row: int) -> float:
    column = table.values[method].get(metric)
    return float("nan") if column is None else float(column[row])


def _spelt(value: Summary) -> str:
    return f"{number(value.mean, 3)} [{number(value.low, 3)}, {number(value.high, 3)}]"
