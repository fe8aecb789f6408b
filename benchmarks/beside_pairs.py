"""What stands beside the pairs in the full table: scores of prototypes, randomised weights, agreement of trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from evaluated import Evaluated
from localisation import Pool
from writing import markdown, spelt

from protomask.commands.common import DIRECTIONS
from protomask.jobs.studies import AGREEMENT, UNRELATED
from protomask.metrics import Summary, paired_difference
from protomask.reporting.beside import Beside
from protomask.reporting.studies import spell_compared


def pooled(tables: Sequence[Beside]) -> Pool | None:
    """The tables that hold something, one after the other: methods and metrics that all have; None where none does."""
    filled = [table for table in tables if table.values]
    methods = [m for m in filled[0].values if all(m in t.values for t in filled)] if filled else []
    if not methods:
        return None
    metrics = [k for k in filled[0].values[methods[0]] if all(k in t.values[m] for t in filled for m in methods)]
    values = {m: {k: np.concatenate([t.values[m][k] for t in filled]) for k in metrics} for m in methods}
    groups = (f"{n}/{group}" for n, table in enumerate(filled) for group in table.column(table.kind.group))
    return Pool(values, tuple(groups))


def prototypes_of(data: Evaluated) -> Pool | None:
    """The scores of prototypes."""
    return pooled([run.prototypes for run in data.runs])


def agreement_of(data: Evaluated) -> Pool | None:
    """The agreement of trainings."""
    return pooled([run.agreement for run in data.runs])


def over_prototypes(data: Evaluated, reference: str) -> list[str]:
    """Paragraphs: means over prototypes, differences to the reference, and where it is not the best."""
    pool = prototypes_of(data)
    if pool is None or reference not in pool.values:
        return []
    data = replace(data, pool=pool)
    best = {k: data.tied(k, data.competitors) for k in data.metrics}
    heads = ["method", *(f"{k} ({'higher' if DIRECTIONS[k] > 0 else 'lower'})" for k in data.metrics)]

    def cell(method: str, metric: str) -> str:
        text = spelt(data.summaries[method][metric])
        return f"**{text}**" if method in best[metric] else text

    rows = [[m, *(cell(m, k) for k in data.metrics)] for m in (*data.competitors, *data.controls)]
    gaps = [[m, *(spelt(own[k]) for k in data.metrics)] for m, own in data.differences(reference).items()]
    defined = np.any([np.isfinite(v) for own in pool.values.values() for v in own.values()], axis=0)
    count = f"{len(defined)} prototypes, drawn by seed"
    if not defined.all():
        count = f"{defined.sum()} of {count} (the others have no images here)"
    if len(data.runs) > 1:
        count += f", of {' and '.join(run.name for run in data.runs if run.prototypes.values)}"
    said = f"Means over {count}; 95 % interval over prototypes. Bold: the best method, controls not counted."
    minus = f"{reference} minus each other method, paired:"
    tables = [said, markdown(heads, rows), minus, markdown(heads, gaps)]
    return ["## Over prototypes", *tables, *_ahead(data, reference)]


def sanity(data: Evaluated) -> list[str]:
    """Paragraphs on what ranks no method: likeness under randomised weights, and of independent trainings."""
    pool, shown = agreement_of(data), [*data.competitors, *data.controls]
    columns = {k: {m: data.summaries[m][k] for m in shown} for k in data.sanity}
    columns |= dict(_agreement(pool)) if pool is not None else {}
    if not columns:
        return []
    said = (
        "These rank nobody. `randomisation`: rank correlation of a pair's map with that under shuffled weights: what "
        "both share was not learned. Controls see no weights and score 1. `agreement`: rank correlation of the maps "
        "of independent trainings, of the same image and of two unrelated ones; only the difference is agreement."
    )
    compared = [spell_compared(run) for run in data.runs if run.about.get("compared")]
    if compared:
        said += f" Compared were: {'. '.join(compared)}."
    rows = [[m, *(spelt(column[m]) if m in column else "-" for column in columns.values())] for m in shown]
    return ["## Sanity", said, markdown(["method", *columns], rows)]


def _agreement(pool: Pool) -> Iterator[tuple[str, dict[str, Summary]]]:
    found = pool.summaries()
    for head, metric in (("agreement, same image", AGREEMENT), ("unrelated images", UNRELATED)):
        yield head, {m: own[metric] for m, own in found.items()}
    values = pool.values.items()
    yield "difference", {m: paired_difference(own[AGREEMENT], own[UNRELATED], pool.groups) for m, own in values}


def _ahead(data: Evaluated, reference: str) -> list[str]:
    rivals = [m for m in data.competitors if m != reference]
    leads = [lead for k in data.metrics if (lead := data.lead(k, reference, rivals)) is not None]
    if not leads:
        return [f"{reference} is the best, or as good as any, on each."]
    return [f"Ahead of {reference}: {'; '.join(f'{x.ahead} on {x.metric} by {spelt(x.by)}' for x in leads)}."]
