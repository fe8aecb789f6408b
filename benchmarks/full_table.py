"""The full table: every method, every metric, of what `protomask evaluate` left in the folders of one or more models.

Pools the runs' pairs (intervals clustered by image and model) and writes table.md (commands, counts, cost in network
passes, means, paired differences with Holm's correction, and every cell in which MDM is not the best), scores.json,
differences.json and about.json. ::

    protomask evaluate runs/planted-0 --data planted --scenes 600 --methods mdm,smoothgrad,random --out scores/planted-0
    protomask evaluate runs/planted-1 --data planted --scenes 600 --methods mdm,smoothgrad,random --out scores/planted-1
    python benchmarks/full_table.py scores/planted-0 scores/planted-1 --out benchmarks/results/planted-full

Folders of the same model, data, seed and scoring fill are one run: their methods are joined, and their pairs have to be
the same. A method that several of them score by the same metric is taken from the last, and the table says so; one that
scores it by other metrics adds these. The values of every pair are kept in runs/MODEL/ under --out (run.json,
pairs.parquet, and what was scored beside the pairs), which is such a folder, too. So one method's rows are replaced, or
a method is added, without running the others again::

    protomask evaluate runs/planted-0 --data planted --scenes 600 --methods mdm --out scores/mdm-0
    protomask evaluate runs/planted-1 --data planted --scenes 600 --methods mdm --out scores/mdm-1
    python benchmarks/full_table.py benchmarks/results/planted-full/runs/* scores/mdm-0 scores/mdm-1 \\
        --out benchmarks/results/planted-full --commit "$(git rev-parse --short HEAD)"

Scores of prototypes and of agreement may come from runs of other pairs, which --beside names. A table of other
prototypes, or of other images that models are compared on, replaces the earlier one whole.

--commit is of those evaluations only that do not tell theirs; what was kept does. The table has the metrics that all
methods have, and names the others; what is kept has all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from beside_pairs import agreement_of, over_prototypes, prototypes_of, sanity
from evaluated import FORWARD, LEVEL, PRESETS, Evaluated, Lead, flips, left_out, metrics_left_out, read
from joined import commands as recorded
from joined import commits, dated, folder_names, keep, origins
from localisation import provenance, shortened
from writing import markdown, spelt, spelt_p

from protomask.checks import check_choice
from protomask.commands.common import DIRECTIONS
from protomask.files import write_text
from protomask.metrics import METRICS, Summary, summarise
from protomask.store import prepare_output, write_scores
from protomask.store._json import finite

PROTOTYPES = (1, 3, 10)
WIDEST = 6  # metrics per table
BLOCKS = (
    "Against the annotation",
    "Causal, filled with the mean colour",
    "Causal, filled by blurring or linear imputation",
    "Perturbation and misalignment",
)
DAGGER = "\N{DAGGER}"
Row = Callable[[str, str], str]


def block_of(metric: str) -> str:
    """The one of :data:`BLOCKS` that a metric stands under."""
    if METRICS[metric].family == "annotation":
        return BLOCKS[0]
    if metric.startswith("local-perturbation") or METRICS[metric].family not in ("annotation", "causal"):
        return BLOCKS[3]
    return BLOCKS[2 if "@" in metric else 1]


def blocks(metrics: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Heading, and at most :data:`WIDEST` metrics; a heading comes as often as its metrics need."""
    for heading in BLOCKS:
        own = [m for m in metrics if block_of(m) == heading]
        tables = -(-len(own) // WIDEST)
        for part in np.array_split(np.array(own, dtype=object), tables) if tables else ():
            yield heading, [str(m) for m in part]


def block_tables(metrics: Sequence[str], methods: Sequence[str], cell: Row) -> list[str]:
    """Paragraphs: a table of methods by metrics per block; columns in which nothing is said are left out."""
    found, said = [], ""
    for heading, part in blocks(metrics):
        heads = ["method", *(f"{m} ({'higher' if DIRECTIONS[m] > 0 else 'lower'})" for m in part)]
        table = markdown(heads, [[method, *(cell(method, m) for m in part)] for method in methods])
        found += [table] if heading == said else [f"### {heading}", table]
        said = heading
    return found


def means(data: Evaluated) -> list[str]:
    best = {k: data.tied(k, data.competitors) for k in data.metrics}

    def cell(method: str, metric: str) -> str:
        text = spelt(data.summaries[method][metric])
        text = f"**{text}**" if method in best[metric] else text
        return text + DAGGER if (method, metric) in data.flattered and text != "-" else text

    said = (
        "Mean and 95 % interval. Bold: the best method, controls (the last rows) not counted. "
        f"{DAGGER}: the method optimised or perturbed with the fill that scores it."
    )
    return ["## Means", said, *block_tables(data.metrics, (*data.competitors, *data.controls), cell)]


def differences(
    data: Evaluated,
    reference: str,
    gaps: Mapping[str, Mapping[str, Summary]],
    p_values: Mapping[str, Mapping[str, float]],
) -> list[str]:
    def cell(method: str, metric: str) -> str:
        text, p = spelt(gaps[method][metric]), p_values.get(method, {}).get(metric, float("nan"))
        if text == "-" or not np.isfinite(p):
            return text
        return f"{text}, {spelt_p(p)}{'*' if p <= LEVEL else ''}"

    compared = sum(bool(np.isfinite(p)) for ps in p_values.values() for p in ps.values())
    said = (
        "Paired; 95 % interval; p by sign flips of whole images, after Holm's correction for all "
        f"{compared} comparisons with methods that are no controls; by the number of flips drawn it is at least "
        f"{compared / flips(compared):.4f}. "
        f"*: at most {LEVEL:.2f}. Where lower is better, a negative difference favours {reference}."
    )
    return [f"## {reference} minus each other method", said, *block_tables(data.metrics, tuple(gaps), cell)]


def fills(data: Evaluated, reference: str) -> list[str]:
    found = data.verdicts(reference)
    metrics = [k for k in data.metrics if any(k in v for v in found.values())]
    if not metrics:
        return []
    rows = [[m, *(v.get(k, "-") for k in metrics)] for m, v in found.items()]
    said = "Which is better by its mean under every scoring fill; undecided where the order flips between fills."
    return [f"## {reference} or the other, whatever the fill", said, markdown(["method", *metrics], rows)]


def cost(data: Evaluated) -> list[str]:
    rows = []
    for method in (*data.competitors, *data.controls):
        own = data.cost(method)
        if own is None:
            rows.append([method, *["-"] * (2 + len(PROTOTYPES))])
        else:
            ratios = (f"{own.ratio(k):.1f}" for k in PROTOTYPES)
            rows.append([method, f"{own.pair:.0f}", f"{own.image:.0f}", *ratios])
    heads = ["method", "forward + input gradient, per pair", "forward only, per image"]
    heads += [f"{k} prototype{'s' * (k > 1)} of an image" for k in PROTOTYPES]
    said = (
        "Network passes of one image. The last columns are in ratio to one pass: a forward + input-gradient pass is 1, "
        f"a forward-only pass 1/{1 / FORWARD:.0f}. Not counted: the forward pass that measures the activations, which "
        "all methods need, and single forward passes per pair by which mask methods choose a fill and measure their "
        "result (about 1 in ratio)."
    )
    return ["## Cost", said, markdown(heads, rows)]


def not_best(data: Evaluated, reference: str, p_values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Every cell in which MDM is not the best, and by how much."""

    def lead(found: Lead | None, p: bool) -> list[str]:
        if found is None:
            return ["-", "-"]
        marks = DAGGER if (found.ahead, found.metric) in data.flattered else ""
        said = spelt_p(p_values.get(found.ahead, {}).get(found.metric, float("nan"))) if p else ""
        return [found.ahead + marks, spelt(found.by) + (f", {said}" if said else "")]

    presets = [m for m in PRESETS if m in data.pool.values]
    rows = []
    for metric, own, other in data.leads(reference):
        row = [metric, *lead(own, True)]
        rows.append([*row, data.best(metric, presets) or "-", *lead(other, False)] if presets else row)
    heads = ["metric", "best", f"ahead of {reference} by"]
    heads += ["best preset of MDM", "best of the rest, where ahead of it", "by"] if presets else []
    title = f"## Where {reference if reference not in PRESETS else 'MDM'} is not the best"
    flattered = [k for k in data.metrics if reference in data.tied(k, data.competitors)]
    flattered = [k for k in flattered if (reference, k) in data.flattered]
    won = f"{reference} is the best with the fill that it optimised with ({DAGGER}) on {', '.join(flattered)}."
    noted = [*([won] if flattered else []), *_controls_ahead(data, reference)]
    if not rows:
        return [title, f"{reference} is the best method on every metric{_undefined(data, reference)}.", *noted]
    said = _counted(data, reference, presets, sum(r[1] != "-" for r in rows))
    said += (
        ". How far the best is ahead is positive whichever way the metric goes; paired, 95 % interval. It was chosen "
        "as the best on these pairs, which flatters its lead. Controls are not counted."
    )
    return [title, said, markdown(heads, rows), *noted]


def _counted(data: Evaluated, reference: str, presets: Sequence[str], behind: int) -> str:
    """On how many metrics the reference is not the best, of those that it has; and none of the presets."""
    number = sum(np.isfinite(data.summaries[reference][k].mean) for k in data.metrics)
    said = f"Of {number} metrics {reference} is not the best on {behind}"
    if presets:
        said += f", and none of {', '.join(presets)} on {sum(x is not None for _, _, x in data.leads(reference))}"
    return said + _undefined(data, reference)


def _undefined(data: Evaluated, reference: str) -> str:
    found = [k for k in data.metrics if not np.isfinite(data.summaries[reference][k].mean)]
    return f"; undefined for {reference}: {', '.join(found)}" if found else ""


def _controls_ahead(data: Evaluated, reference: str) -> list[str]:
    found = [data.lead(k, reference, [control]) for control in data.controls for k in data.metrics]
    said = [f"{lead.ahead} on {lead.metric} by {spelt(lead.by)}" for lead in found if lead is not None]
    return [f"Controls, which are no rivals, ahead of {reference}: {'; '.join(said)}."] if said else []


def choosing(data: Evaluated, reference: str) -> list[str]:
    """What an oracle would reach that takes the best method of every pair: how far choosing among these can lead."""
    rows = []
    for metric in data.metrics:
        best, mine = data.oracle(metric), data.pool.values[reference][metric]
        both = np.isfinite(best) & np.isfinite(mine)
        if both.any():
            found = summarise(np.where(both, best, np.nan), data.pool.groups)
            rows.append([metric, f"{mine[both].mean():.3f}", spelt(found), f"{(best[both] == mine[both]).mean():.2f}"])
    said = (
        f"The mean of each pair's best value under any of the {len(data.competitors)} methods: no choice among these "
        f"maps can score more. In the last column the share of the pairs on which {reference} has that value."
    )
    heads = ["metric", reference, "best of each pair", f"{reference} is the best or level"]
    return ["## An oracle's choice", said, markdown(heads, rows), *_choosing_elsewhere(data, reference)]


def _choosing_elsewhere(data: Evaluated, reference: str) -> list[str]:
    """The same oracle, but it knows the score under one fill and is judged under another."""
    rows, plain = [], data.runs[0].about["scoring_fill"]
    for base in (k for k in data.metrics if "@" not in k):
        fills = [k for k in data.metrics if k.partition("@")[0] == base]
        for judge in fills if len(fills) > 1 else ():
            chosen = [f"{k.partition('@')[2] or plain} {np.nanmean(data.elsewhere(k, judge)):.3f}" for k in fills]
            rows.append([judge, f"{data.summaries[reference][judge].mean:.3f}", ", ".join(chosen)])
    if not rows:
        return []
    said = (
        "And where the best method of a pair is chosen by the same score under another fill (after its name the mean "
        "under the fill of the row): what a choice that is right under one fill is worth under another."
    )
    return [said, markdown(["metric", reference, "chosen under"], rows)]


def counts(data: Evaluated) -> list[str]:
    pairs, clusters = len(data.pool.groups), len(set(data.pool.groups))
    models = len(data.runs)
    said = f"{pairs} pairs of {clusters} images under {models} model{'s' * (models > 1)}"
    each = [f"{r.name} ({r.about['data'].get('name', 'data')}): {len(r.pairs)} pairs" for r in data.runs]
    drawn = sum(int(run.about["counts"].get("drawn", 0)) for run in data.runs)
    clear = sum(int(run.about["counts"].get("qualified", 0)) for run in data.runs)
    said += f", an image under each model counted by itself: {'; '.join(each)}. "
    said += f"{drawn} pairs were drawn, {clear} of them with a clear causal part."
    missing = [f"{name}: {', '.join(methods)}" for name, methods in left_out(data).items()]
    found = [said] + ([f"Left out, since not all models have them: {'; '.join(missing)}."] if missing else [])
    lacking = [f"{metric} ({', '.join(methods)})" for metric, methods in metrics_left_out(data).items()]
    if lacking:
        found.append(f"Metrics left out, since the methods in brackets do not have them: {', '.join(lacking)}.")
    return found


def unlocated(data: Evaluated) -> list[str]:
    found = {m: sum(int(r.about["methods"][m].get("unlocated", 0)) for r in data.runs) for m in data.pool.values}
    said = ", ".join(f"{m} {n}" for m, n in found.items() if n)
    return [f"Pairs on which a method found nothing, scored as no localisation: {said}."] if said else []


def text(data: Evaluated, reference: str, commands: Sequence[str]) -> tuple[str, dict[str, object]]:
    """table.md, and what differences.json says."""
    gaps, p_values = data.differences(reference), data.p_values(reference)
    paragraphs = [
        "Made by:", "```bash\n" + "\n".join(commands) + "\n```",
        *counts(data), *(said for name, run in zip(names(data), data.runs, strict=True) for said in origins(name, run)),
        *unlocated(data), *cost(data), *means(data),
        *differences(data, reference, gaps, p_values), *fills(data, reference), *not_best(data, reference, p_values),
        *choosing(data, reference), *over_prototypes(data, reference), *sanity(data),
    ]  # fmt: skip
    record = {
        method: {
            metric: {
                "mean": finite(s.mean), "low": finite(s.low), "high": finite(s.high), "n": s.n,
                "p": finite(p_values.get(method, {}).get(metric, float("nan"))),
            }
            for metric, s in found.items()
        }
        for method, found in gaps.items()
    }  # fmt: skip
    return "\n\n".join(paragraphs) + "\n", {reference: record}


def names(data: Evaluated) -> list[str]:
    """The models' names, told apart where they are alike."""
    plain = [run.name for run in data.runs]
    return [f"{name} {n}" if plain.count(name) > 1 else name for n, name in enumerate(plain)]


def write(data: Evaluated, out: Path, reference: str, commands: Collection[str], commit: str | None) -> str:
    check_choice("--reference", reference, data.competitors)
    start = time.perf_counter()
    data = replace(data, runs=tuple(dated(run, commit) for run in data.runs))
    lines = [shortened(c) for c in commands] or recorded(data.runs)
    about = provenance("full_table.py", 0, 0)
    said, record = text(data, reference, [*lines, str(about["command"])])
    about |= {"minutes": round((time.perf_counter() - start) / 60, 1), "evaluated with": lines}
    about |= {"commit of the runs": commit} if commit else {}
    about["runs"] = {
        name: {
            "seed": run.seed, "device": run.about["model"].get("device"), "versions": run.about["versions"],
            "commits": commits(run),
        }
        for name, run in zip(names(data), data.runs, strict=True)
    }  # fmt: skip
    write_text(out / "table.md", said)
    each = {name: run.summaries for name, run in zip(names(data), data.runs, strict=True)}
    studies = {"prototypes": prototypes_of(data), "agreement": agreement_of(data)}
    beside = {name: pool.summaries() for name, pool in studies.items() if pool is not None}
    write_scores(out / "scores.json", {"pooled": data.summaries, **(each if len(each) > 1 else {}), **beside})
    write_text(out / "differences.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "about.json", json.dumps(about, indent=2) + "\n")
    for folder, run in zip(folder_names(each), data.runs, strict=True):
        keep(run, out / "runs" / folder)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that `protomask evaluate` or this wrote")
    parser.add_argument("--out", required=True)
    parser.add_argument("--reference", default="mdm", metavar="METHOD", help="(default: %(default)s)")
    parser.add_argument(
        "--command", action="append", default=[], metavar="LINE",
        help="what made the runs, where run.json does not tell all of it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--commit", metavar="HASH", help="of the code that made those runs that do not tell it")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="RUN",
        help="of this run only the scores of prototypes and the agreement of trainings; may be repeated",
    )  # fmt: skip
    args = parser.parse_args()
    print(write(read(args.runs, args.beside), prepare_output(args.out), args.reference, args.command, args.commit))


if __name__ == "__main__":
    main()
