"""Sanity checks of an evaluation: do the controls score as they must, and what flatters a method?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from protomask.metrics import Summary, paired_difference, verdicts
from protomask.reporting.results import Results, spell_flattered
from protomask.visualise.blocks import Block, Cell, PlainTable
from protomask.visualise.wording import number

HEADING = "Sanity checks"
LEVEL = 0.05  # of the test of hits
_BY_AREA = ("energy", "pointing-game")  # what a map blind to the image scores: the annotation's share of the image
# Metrics on which no map scores above the annotation's own: a box is judged by its corners, a part where the annotation
# may be the object, an object where it may be the part.
_REACHED = (
    *("pointing-game", "energy", "energy-floor", "iou-p95", "iou-own-area", "iou-best", "activation-precision"),
    *("relevance", "oirr", "pixel-auc", "pixel-ap", "dice", "ppv", "sensitivity"),
)


def checks(results: Results, reference: str) -> list[Block]:
    """The blocks of the section; the fills are checked for the differences between ``reference`` and the others."""
    rows: list[tuple[str, str, str]] = []
    good: dict[int, bool] = {}
    for name, wanted, found, passed in (*_random(results), *_ceiling(results), *_marks(results)):
        if passed is not None:
            good[len(rows)] = passed
        rows.append((name, wanted, found))
    blocks: list[Block] = [PlainTable(HEADING, ("check", "expected", "found"), rows, _CAPTION, good=good)]
    return [*blocks, *_against_controls(results), *_fills(results, reference)]


_CAPTION = (
    "What must be so whatever the methods do. A tick: as expected; an exclamation mark: look closer. The hits of "
    "random are judged by their number, at 5 %, not by their interval, which is none where there are few."
)
_Check = tuple[str, str, str, bool | None]


def _random(results: Results) -> list[_Check]:
    if "random" not in results.values:
        return []
    found: list[_Check] = []
    areas = results.areas
    for metric in _BY_AREA:
        scores = results.values["random"].get(metric)
        if scores is None or not np.isfinite(scores + areas).any():
            continue
        area = float(np.nanmean(np.where(np.isfinite(scores), areas, np.nan)))
        wanted = f"{number(area, 3)}, the annotation's share of the image"
        found.append(
            (f"random, {metric}", wanted, _spelt(results.summaries["random"][metric]), _by_chance(results, scores))
        )
    auc = results.values["random"].get("pixel-auc")
    if auc is not None and np.isfinite(auc).any():
        value = results.summaries["random"]["pixel-auc"]
        found.append(("random, pixel-auc", "0.500, chance", _spelt(value), _around(value, 0.5)))
    return found


def _ceiling(results: Results) -> list[_Check]:
    metrics = [m for m in _REACHED if m in results.values.get("annotation", {})]
    found: list[_Check] = []
    for metric in metrics:
        ceiling = results.values["annotation"][metric]
        if not np.isfinite(ceiling).any():
            continue
        sign = results.directions[metric] or 1
        above = []
        for method in results.competitors:
            other = results.values[method].get(metric)
            if other is None:
                continue
            gap = paired_difference(sign * other, sign * ceiling, results.groups, seed=results.seed)
            if gap.low > 0:
                above.append(f"{method} by {number(gap.mean, 3)}")
        said = "none is above it" if not above else "above it: " + ", ".join(above)
        found.append((f"annotation, {metric}", "no method scores clearly higher", said, not above))
    return found


def _marks(results: Results) -> list[_Check]:
    fill = results.about["scoring_fill"]
    flattered = results.flattered
    said = spell_flattered(flattered) or "none"
    wanted = f"no method was trained with a fill that scores it ({fill}, or the one that a metric's name tells)"
    rows: list[_Check] = [("scoring fill", wanted, said, not flattered)]
    for method, about in results.about["methods"].items():
        missing = int(about.get("unlocated", 0))
        if missing:
            share = f"{missing} of {len(results.pairs)} pairs"
            rows.append((f"{method}, located", "a map that says something on every pair", f"nothing on {share}", None))
    return rows


def _fills(results: Results, reference: str) -> list[Block]:
    """Whether the order of reference and others is the same under every scoring fill."""
    bases = [m for m in results.metrics if "@" not in m and any(other.startswith(f"{m}@") for other in results.metrics)]
    mine = results.values[reference]
    rows: list[Sequence[Cell]] = []
    for method in results.methods:
        if method == reference or not bases:
            continue
        found = verdicts(mine, results.values[method], results.groups)
        better = {"first": reference, "second": method}
        rows.append((method, *(better.get(found.get(base, ""), "undecided") for base in bases)))
    if not rows:
        return []
    caption = "Which of the two is better by its mean under every scoring fill; undecided where the order flips."
    return [PlainTable(HEADING, (f"{reference} or", *bases), rows, caption)]


def _against_controls(results: Results) -> list[Block]:
    blind = [m for m in ("random", "centre") if m in results.values]
    if not blind or not results.competitors:
        return []
    rows: list[Sequence[Cell]] = []
    for method in results.competitors:
        better: list[str] = []
        worse: list[str] = []
        flattered = results.flattered.get(method, ())
        metrics = [m for m in results.metrics if results.directions[m] and m in results.values[method]]
        metrics = [m for m in metrics if m not in flattered]
        tested = 0
        for metric in metrics:
            gaps = [_gap(results, method, other, metric) for other in blind]
            gaps = [g for g in gaps if np.isfinite(g.low)]
            tested += bool(gaps)
            if gaps and all(g.low > 0 for g in gaps):
                better.append(metric)
            elif any(g.high < 0 for g in gaps):
                worse.append(metric)
        told = (f"{len(better)} of {tested}", ", ".join(worse) or "none") if tested else (None, None)
        rows.append((method, *told))
    columns = ("method", f"metrics on which it clearly beats {' and '.join(blind)}", "clearly below one of them on")
    caption = (
        "Clearly: the 95 % interval of the paired difference excludes zero; not corrected for many comparisons. Scores "
        "that flatter the method (†) are left out."
    )
    return [PlainTable(HEADING, columns, rows, caption)]


def _gap(results: Results, method: str, other: str, metric: str) -> Summary:
    sign = results.directions[metric]
    columns: Mapping[str, np.ndarray] = results.values[other]
    if metric not in columns:
        return Summary(float("nan"), float("nan"), float("nan"), 0)
    return paired_difference(
        sign * results.values[method][metric], sign * columns[metric], results.groups, seed=results.seed
    )


def _by_chance(results: Results, scores: np.ndarray) -> bool | None:
    """Whether scores [N] may be those of maps that are blind to the annotation, on average its share of the image.

    Hits are counted: few pairs with small annotations have no hit at all, and then no interval of the mean.
    """
    known = np.isfinite(scores + results.areas)
    hits, areas = scores[known], results.areas[known]
    if np.isin(hits, (0, 1)).all():
        groups = [group for group, kept in zip(results.groups, known, strict=True) if kept]
        return chance_of_hits(int(hits.sum()), areas, groups) >= LEVEL
    return _around(paired_difference(scores, results.areas, results.groups, seed=results.seed), 0)


def chance_of_hits(hits: int, areas: np.ndarray, groups: Sequence[str]) -> float:
    """The two-sided p-value of so many hits by points drawn uniformly on images.

    The number of hits of independent pairs is Poisson-binomial. Pairs of a group may hit and miss together, so the
    widest case is taken: one draw per group, by which all its pairs with larger annotations hit before the others.

    Args:
        hits: of the N pairs.
        areas: [N] in [0, 1], the annotated share of each pair's image.
        groups: N names, the image's or the patient's.

    Returns:
        In [0, 1]; twice the smaller tail, so that it is exact or too large.
    """
    shares: dict[str, list[float]] = {}
    for group, area in zip(groups, areas.tolist(), strict=True):
        shares.setdefault(group, []).append(area)
    counts = np.ones(1)
    for own in shares.values():
        steps = np.array([1.0, *sorted(own, reverse=True), 0.0])  # P(at least k hits)
        counts = np.convolve(counts, steps[:-1] - steps[1:])
    return min(1.0, 2 * float(min(counts[: hits + 1].sum(), counts[hits:].sum())))


def _around(value: Summary, wanted: float) -> bool | None:
    if not np.isfinite(value.low):
        return None
    return value.low <= wanted <= value.high


def _spelt(value: Summary) -> str:
    reach = f" [{number(value.low, 3)}, {number(value.high, 3)}]" if np.isfinite(value.low) else ""
    return number(value.mean, 3) + reach
