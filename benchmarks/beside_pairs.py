"""What stands beside the pairs in the full table: scores of prototypes, randomised weights, agreement of trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from evaluated import ROUNDING, Evaluated
from writing import markdown, spelt

from protomask.commands.common import DIRECTIONS
from protomask.metrics import METRICS, Summary, paired_difference, summarise
from protomask.reporting.beside import Beside

AGREEMENT, UNRELATED = "agreement", "agreement-unrelated"


@dataclass(frozen=True, eq=False)
class Study:
    """The tables of one kind of all runs that have one, one after the other.

    Attributes:
        runs: how many have one.
        values: method -> metric -> [N] float64, NaN where undefined, of the methods and metrics that all of them have.
        groups: N, what intervals are clustered by.
    """

    runs: int
    values: Mapping[str, Mapping[str, np.ndarray]]
    groups: tuple[str, ...]

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """method -> metric -> mean and 95 % interval."""
        return {m: {k: summarise(v, self.groups) for k, v in own.items()} for m, own in self.values.items()}


def pooled(tables: Sequence[Beside]) -> Study | None:
    """The tables that hold something as one; None where none does."""
    filled = [table for table in tables if table.values]
    methods = [m for m in filled[0].values if all(m in t.values for t in filled)] if filled else []
    if not methods:
        return None
    metrics = [k for k in filled[0].values[methods[0]] if all(k in t.values[m] for t in filled for m in methods)]
    values = {m: {k: np.concatenate([t.values[m][k] for t in filled]) for k in metrics} for m in methods}
    groups = (f"{n}/{group}" for n, table in enumerate(filled) for group in table.column(table.kind.group))
    return Study(len(filled), values, tuple(groups))


def prototypes_of(data: Evaluated) -> Study | None:
    """The scores of prototypes."""
    return pooled([run.prototypes for run in data.runs])


def agreement_of(data: Evaluated) -> Study | None:
    """The agreement of trainings."""
    return pooled([run.agreement for run in data.runs])


def over_prototypes(data: Evaluated, reference: str) -> list[str]:
    """Paragraphs: means over prototypes, differences to the reference, and where it is not the best."""
    study = prototypes_of(data)
    if study is None or reference not in study.values:
        return []
    metrics = [k for k in METRICS if k in study.values[reference]]
    found, rivals = study.summaries(), [m for m in data.competitors if m in study.values]
    shown = [*rivals, *(m for m in data.controls if m in study.values)]
    best = {k: _best(found, k, rivals) for k in metrics}
    heads = ["method", *(f"{k} ({'higher' if DIRECTIONS[k] > 0 else 'lower'})" for k in metrics)]
    rows = [[m, *(f"**{spelt(found[m][k])}**" if m in best[k] else spelt(found[m][k]) for k in metrics)] for m in shown]
    gaps = [[m, *(spelt(_gap(study, reference, m, k)) for k in metrics)] for m in shown if m != reference]
    said = (
        f"Means over {len(study.groups)} prototypes, drawn by seed; 95 % interval over prototypes. Bold: the best "
        "method, controls not counted."
    )
    minus = f"{reference} minus each other method, paired:"
    tables = [said, markdown(heads, rows), minus, markdown(heads, gaps)]
    return ["## Over prototypes", *tables, *_behind(study, best, reference)]


def sanity(data: Evaluated) -> list[str]:
    """Paragraphs on what ranks no method: likeness under randomised weights, and of independent trainings."""
    study, shown = agreement_of(data), [*data.competitors, *data.controls]
    columns = {k: {m: data.summaries[m][k] for m in shown} for k in data.sanity}
    columns |= dict(_agreement(study)) if study is not None else {}
    if not columns:
        return []
    said = (
        "These rank nobody. `randomisation`: rank correlation of a pair's map with that under shuffled weights: what "
        "both share was not learned. Controls see no weights and score 1. `agreement`: rank correlation of the maps "
        "of independent trainings, of the same image and of two unrelated ones; only the difference is agreement."
    )
    rows = [[m, *(spelt(column[m]) if m in column else "-" for column in columns.values())] for m in shown]
    return ["## Sanity", said, markdown(["method", *columns], rows)]


def _agreement(study: Study) -> Iterator[tuple[str, dict[str, Summary]]]:
    same, other = ({m: own[k] for m, own in study.values.items() if k in own} for k in (AGREEMENT, UNRELATED))
    for head, columns in (("agreement, same image", same), ("unrelated images", other)):
        yield head, {m: summarise(column, study.groups) for m, column in columns.items()}
    both = [m for m in same if m in other]
    yield "difference", {m: paired_difference(same[m], other[m], study.groups) for m in both}


def _best(found: Mapping[str, Mapping[str, Summary]], metric: str, methods: Sequence[str]) -> tuple[str, ...]:
    means = {m: DIRECTIONS[metric] * found[m][metric].mean for m in methods if found[m][metric].n}
    return tuple(m for m, mean in means.items() if mean >= max(means.values()) - ROUNDING)


def _gap(study: Study, one: str, other: str, metric: str) -> Summary:
    return paired_difference(study.values[one][metric], study.values[other][metric], study.groups)


def _behind(study: Study, best: Mapping[str, Sequence[str]], reference: str) -> list[str]:
    ahead = {k: names[0] for k, names in best.items() if names and reference not in names}
    if not ahead:
        return [f"{reference} is the best, or as good as any, on each."]
    said = [
        f"{m} on {k} by {spelt(_gap(study, *((m, reference) if DIRECTIONS[k] > 0 else (reference, m)), k))}"
        for k, m in ahead.items()
    ]
    return [f"Ahead of {reference}: {'; '.join(said)}."]
