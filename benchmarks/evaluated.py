"""What `protomask evaluate` left in the folders of one or several models, pooled, and the comparisons made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from joined import beside_only, join
from localisation import Pool

from protomask.commands.common import DIRECTIONS
from protomask.errors import InputError, expected
from protomask.metrics import METRICS, Summary, holm, paired_difference, sign_flip_p, summarise, verdicts
from protomask.metrics.summary import PERMUTATIONS
from protomask.reporting.results import SANITY, Results, read_results

PRESETS = ("mdm-fast", "mdm", "mdm-best")
FORWARD = 1 / 3  # of a forward + input-gradient pass
LEVEL = 0.05
ROUNDING = 1e-9  # a lead that the order of additions can make is none


@dataclass(frozen=True)
class Cost:
    """Network passes of a method.

    Attributes:
        pair: forward + input-gradient passes per (image, prototype) pair.
        image: forward passes per image, which serve all its prototypes.
    """

    pair: float
    image: float

    def ratio(self, prototypes: int) -> float:
        """The cost of so many prototypes of one image; one forward + input-gradient pass is 1."""
        return self.pair * prototypes + self.image * FORWARD


@dataclass(frozen=True)
class Lead:
    """A method that is better than another on a metric.

    Attributes:
        metric: name.
        behind: the other.
        ahead: the method.
        by: how much better, positive in the metric's direction, paired.
    """

    metric: str
    behind: str
    ahead: str
    by: Summary


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The pairs of all runs, one after the other; intervals are clustered by image and model.

    Attributes:
        runs: what was read, one per model; evaluations of one model on the same pairs are joined.
        pool: method -> metric -> [N], of the methods and metrics that all runs have.
    """

    runs: tuple[Results, ...]
    pool: Pool

    @property
    def controls(self) -> tuple[str, ...]:
        """The methods that look at the annotation, or at nothing."""
        return tuple(m for m in self.pool.values if any(m in run.controls for run in self.runs))

    @property
    def competitors(self) -> tuple[str, ...]:
        """The others, MDM's presets first."""
        rest = [m for m in self.pool.values if m not in self.controls]
        return tuple(sorted(rest, key=lambda m: PRESETS.index(m) if m in PRESETS else len(PRESETS)))

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those that some method defines on some pair, in the catalogue's order, without :attr:`sanity`."""
        return tuple(k for k in self._defined if METRICS[k].family != SANITY)

    @cached_property
    def sanity(self) -> tuple[str, ...]:
        """Likewise those that say whether a method can be trusted, and rank nobody."""
        return tuple(k for k in self._defined if METRICS[k].family == SANITY)

    @cached_property
    def _defined(self) -> tuple[str, ...]:
        values = self.pool.values.values()
        return tuple(k for k in METRICS if any(k in v and np.isfinite(v[k]).any() for v in values))

    @cached_property
    def summaries(self) -> dict[str, dict[str, Summary]]:
        return self.pool.summaries()

    @cached_property
    def flattered(self) -> frozenset[tuple[str, str]]:
        """(method, metric) where the method optimised or perturbed with the fill that scores it, in any run."""
        return frozenset((m, k) for run in self.runs for m, ks in run.flattered.items() for k in ks)

    def best(self, metric: str, methods: Collection[str]) -> str | None:
        """The method of the best mean; None where none is defined."""
        return next(iter(self.tied(metric, methods)), None)

    def tied(self, metric: str, methods: Collection[str]) -> tuple[str, ...]:
        """All methods of the best mean, in the order given."""
        means = {m: DIRECTIONS[metric] * self.summaries[m][metric].mean for m in methods}
        means = {m: mean for m, mean in means.items() if np.isfinite(mean)}
        return tuple(m for m, mean in means.items() if mean >= max(means.values()) - ROUNDING)

    def oracle(self, metric: str) -> np.ndarray:
        """[N] the best value that any competitor has on each pair; NaN where none has one."""
        return self.elsewhere(metric, metric)

    def elsewhere(self, chooser: str, metric: str) -> np.ndarray:
        """[N] ``metric`` of the competitor that is best by ``chooser`` on each pair; NaN where no method has one."""
        ranked = np.stack([DIRECTIONS[chooser] * self.pool.values[m][chooser] for m in self.competitors])
        values = np.stack([self.pool.values[m][metric] for m in self.competitors])
        known = np.isfinite(ranked)
        best = np.where(known, ranked, -np.inf).argmax(0)
        return np.where(known.any(0), values[best, np.arange(values.shape[1])], np.nan)

    def cost(self, method: str) -> Cost | None:
        """As the runs recorded it; None where maps came from elsewhere."""
        about = self.runs[0].about["methods"][method]
        pair, image = about.get("passes"), about.get("image_passes") or 0
        if pair is None:
            return None
        # Passes of 0 say that one forward pass per image is all; a control makes none.
        single = not pair and not image and method not in self.controls
        return Cost(float(pair), 1.0 if single else float(image))

    def lead(self, metric: str, behind: str, others: Collection[str]) -> Lead | None:
        """The method that is ahead of ``behind`` by most, over the pairs where both are defined; None if none is."""
        mine, sign = self.pool.values[behind][metric], DIRECTIONS[metric]
        gaps = {m: sign * float(np.nanmean(d)) for m in others if np.isfinite(d := self._gap(m, mine, metric)).any()}
        if not gaps or max(gaps.values()) <= ROUNDING:
            return None
        ahead = max(gaps, key=lambda m: gaps[m])
        return Lead(metric, behind, ahead, summarise(sign * self._gap(ahead, mine, metric), self.pool.groups))

    def _gap(self, method: str, mine: np.ndarray, metric: str) -> np.ndarray:
        return self.pool.values[method][metric] - mine

    def leads(self, reference: str) -> list[tuple[str, Lead | None, Lead | None]]:
        """Each metric on which the reference, or all of MDM's presets, are not the best of the competitors.

        Returns:
            metric, who is ahead of the reference, and which method that is no preset is ahead of the best preset.
        """
        found = []
        presets = [m for m in PRESETS if m in self.pool.values]
        for metric in self.metrics:
            own = self.lead(metric, reference, [m for m in self.competitors if m != reference])
            top = self.best(metric, presets)
            rest = [m for m in self.competitors if m not in presets]
            any_ = None if top is None else self.lead(metric, top, rest)
            if own is not None or any_ is not None:
                found.append((metric, own, any_))
        return found

    def p_values(self, reference: str) -> dict[str, dict[str, float]]:
        """Other competitor -> metric -> p-value of the paired difference, corrected by Holm over all of them."""
        mine = self.pool.values[reference]
        keys = [(m, k) for m in self.competitors if m != reference for k in self.metrics]
        values, groups, tries = self.pool.values, self.pool.groups, flips(len(keys))
        raw = [sign_flip_p(mine[k], values[m][k], groups, permutations=tries) for m, k in keys]
        found: dict[str, dict[str, float]] = {}
        for (m, k), p in zip(keys, holm(np.array(raw, dtype=np.float64)), strict=True):
            found.setdefault(m, {})[k] = float(p)
        return found

    def differences(self, reference: str) -> dict[str, dict[str, Summary]]:
        """Other method -> metric -> reference minus other, paired."""
        mine = self.pool.values[reference]
        others = [m for m in (*self.competitors, *self.controls) if m != reference]
        groups = self.pool.groups
        return {
            m: {k: paired_difference(mine[k], self.pool.values[m][k], groups) for k in self.metrics} for m in others
        }

    def verdicts(self, reference: str) -> dict[str, dict[str, str]]:
        """Other competitor -> causal metric -> who is better under every fill, or ``undecided``."""
        mine = self.pool.values[reference]
        found: dict[str, dict[str, str]] = {}
        for m in self.competitors:
            if m != reference:
                said = {"first": reference, "second": m}
                decided = verdicts(mine, self.pool.values[m], self.pool.groups)
                found[m] = {k: said.get(v, v) for k, v in decided.items()}
        return found


def flips(comparisons: int) -> int:
    """How many sign flips are drawn: so many that the smallest corrected p-value can be .01."""
    return max(PERMUTATIONS, 100 * comparisons)


def read(folders: Sequence[str | Path], beside: Sequence[str | Path] = ()) -> Evaluated:
    """The runs in these folders, those of one model joined (of a method's values the last count), the models pooled.

    Args:
        folders: of runs.
        beside: of runs of the same models, of which only what stands beside the pairs is taken.

    Raises:
        DataError: a folder does not hold what an evaluation leaves behind.
        InputError: the runs were scored with different fills, share no method or metric, or have different pairs
            although model, data and seed are the same.
    """
    found = [read_results(folder) for folder in folders]
    found += [beside_only(read_results(folder)) for folder in beside]
    fills = {run.about["scoring_fill"] for run in found}
    if len(fills) > 1:
        raise InputError(expected("runs", "runs scored with one fill", ", ".join(sorted(fills))))
    runs = join(found)
    alone = next((run for run in runs if not run.values), None)
    if alone is not None:
        raise InputError(expected("--beside", "runs of models that have pairs, too", str(alone.folder)))
    methods = [m for m in runs[0].values if all(m in run.values for run in runs)]
    metrics = [k for k in METRICS if all(k in run.values[m] for run in runs for m in methods)]
    if not methods or not metrics:
        raise InputError(expected("runs", "runs with a method and a metric in common", "none"))
    values = {m: {k: np.concatenate([run.values[m][k] for run in runs]) for k in metrics} for m in methods}
    return Evaluated(runs, Pool(values, tuple(f"{n}/{group}" for n, run in enumerate(runs) for group in run.groups)))


def left_out(evaluated: Evaluated) -> Mapping[str, tuple[str, ...]]:
    """Model -> methods that it has and others have not, so that the table has not either."""
    found = {run.name: tuple(m for m in run.values if m not in evaluated.pool.values) for run in evaluated.runs}
    return {name: methods for name, methods in found.items() if methods}


def metrics_left_out(evaluated: Evaluated) -> Mapping[str, tuple[str, ...]]:
    """Metric -> methods of the table that do not have it in every run, so that the table has not either."""
    methods, kept = evaluated.pool.values, {k for values in evaluated.pool.values.values() for k in values}
    defined = {k for run in evaluated.runs for m in methods for k, v in run.values[m].items() if np.isfinite(v).any()}
    return {
        k: tuple(m for m in methods if any(k not in run.values[m] for run in evaluated.runs))
        for k in METRICS
        if k in defined - kept
    }
