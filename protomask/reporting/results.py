"""An evaluation read back from its folder: ``run.json``, ``pairs.csv`` or else ``pairs.parquet``, and ``examples/``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from protomask.errors import DataError, expected
from protomask.metrics import Summary, flattering, summarise
from protomask.opening import is_file
from protomask.reporting.beside import AGREEMENT, PROTOTYPES, Beside, read_beside
from protomask.reporting.examples import EXAMPLES, INDEX, Example, read_chunk
from protomask.reporting.tidy import Scored, Values, read_csv, read_parquet
from protomask.store._json import read_json

FORMAT_VERSION = 1
SANITY = "sanity"
NO_PROTOTYPES, NO_AGREEMENT = Beside(PROTOTYPES), Beside(AGREEMENT)


@dataclass(frozen=True, eq=False)
class Results:
    """Scores of several methods on the same N pairs, with everything that the report says of them.

    Attributes:
        folder: that they were read from.
        about: what ``run.json`` holds.
        pairs: N.
        values: method -> metric -> [N] float64, NaN where undefined.
        prototypes: scores over prototypes; empty where none were asked for.
        agreement: likewise, of several models.
    """

    folder: Path
    about: Mapping[str, Any]
    pairs: tuple[Scored, ...]
    values: Values
    prototypes: Beside = NO_PROTOTYPES
    agreement: Beside = NO_AGREEMENT

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.about["model"]["name"])

    @property
    def seed(self) -> int:
        """Of the intervals."""
        return int(self.about["seed"])

    @property
    def methods(self) -> tuple[str, ...]:
        """All of them, controls last."""
        return tuple(sorted(self.values, key=lambda method: method in self.controls))

    @property
    def controls(self) -> tuple[str, ...]:
        """The methods that look at the annotation, or at nothing."""
        return tuple(m for m in self.values if self.about["methods"].get(m, {}).get("control", False))

    @property
    def competitors(self) -> tuple[str, ...]:
        """The methods that are no controls."""
        return tuple(m for m in self.values if m not in self.controls)

    @cached_property
    def flattered(self) -> dict[str, tuple[str, ...]]:
        """method -> the metrics whose fill it optimised or perturbed with; only methods that have any."""
        found = {}
        for method in self.methods:
            fills = str(self.about["methods"].get(method, {}).get("fill", ""))
            metrics = [m for m in self.metrics if m in self.values[method]]
            found[method] = flattering(fills, metrics, self.about["scoring_fill"])
        return {method: metrics for method, metrics in found.items() if metrics}

    @property
    def groups(self) -> tuple[str, ...]:
        """N names, what intervals are clustered by."""
        return tuple(pair.group for pair in self.pairs)

    @cached_property
    def directions(self) -> dict[str, int]:
        """metric -> 1 where higher is better, -1 where lower is, 0 where neither or unknown."""
        return {m: int(self.about["metrics"].get(m, {}).get("direction", 0)) for m in self.metrics}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those that at least one method defines on at least one pair, in the order of ``run.json``.

        Without :attr:`sanity_metrics`, which rank nobody.
        """
        return tuple(m for m in self._defined if self._family(m) != SANITY)

    @cached_property
    def sanity_metrics(self) -> tuple[str, ...]:
        """Those that say whether a method can be trusted, not how good it is."""
        return tuple(m for m in self._defined if self._family(m) == SANITY)

    @cached_property
    def _defined(self) -> tuple[str, ...]:
        found = {m for values in self.values.values() for m, v in values.items() if np.isfinite(v).any()}
        known = [m for m in self.about["metrics"] if m in found]
        return (*known, *sorted(found - set(known)))

    def _family(self, metric: str) -> str:
        return str(self.about["metrics"].get(metric, {}).get("family", "other"))

    @cached_property
    def families(self) -> dict[str, tuple[str, ...]]:
        """family -> its metrics."""
        families: dict[str, list[str]] = {}
        for metric in self.metrics:
            families.setdefault(self._family(metric), []).append(metric)
        return {family: tuple(metrics) for family, metrics in families.items()}

    @cached_property
    def summaries(self) -> dict[str, dict[str, Summary]]:
        """method -> metric -> mean and 95 % interval, clustered by group."""
        return {
            method: {
                metric: summarise(self.values[method][metric], self.groups, seed=self.seed)
                for metric in self.metrics
                if metric in self.values[method]
            }
            for method in self.methods
        }

    @cached_property
    def areas(self) -> np.ndarray:
        """[N] share of the image that is annotated, NaN where nothing is."""
        areas = [math.nan if p is None or p[2] is None else float(p[2]) for p in self._places]
        return np.array(areas, dtype=np.float64)

    @cached_property
    def _places(self) -> list[tuple[str, int, float | None] | None]:
        """Of each pair: the file of its chunk, the row in it, and the annotated share of its image."""
        index = self.folder / EXAMPLES / INDEX
        places = read_json(index).get("pairs", []) if index.is_file() else []
        missing = [None] * (len(self.pairs) - len(places))
        try:
            return [None if p is None else (str(p[0]), int(p[1]), p[2]) for p in (*places, *missing)][: len(self.pairs)]
        except (IndexError, TypeError, ValueError) as error:
            raise DataError(expected(str(index), "a file, a row and an area of each pair", repr(error))) from error

    def examples(self, chosen: Sequence[int]) -> Iterator[tuple[int, Example]]:
        """(pair, its maps) of the chosen pairs that have any, in the order given; each chunk is read once per run."""
        read: tuple[str, list[Example]] | None = None
        places = self._places
        for k in chosen:
            place = places[k]
            if place is None:
                continue
            if read is None or read[0] != place[0]:
                read = (place[0], read_chunk(self.folder / EXAMPLES / Path(place[0]).name))
            if not 0 <= place[1] < len(read[1]):
                raise DataError(expected(f"row of {place[0]}", f"one of {len(read[1])}", place[1]))
            yield k, read[1][place[1]]


def read_results(folder: str | Path) -> Results:
    """The results in a folder that ``protomask evaluate`` wrote, from ``pairs.csv``, or ``pairs.parquet`` without it.

    Raises:
        DataError: no such files, or not of that form.
    """
    folder = Path(folder)
    about = read_json(folder / "run.json")
    wrong = _wrong(about)
    if about.get("version") != FORMAT_VERSION or wrong:
        came = f"version {about.get('version')!r}" if not wrong else f"another kind of {', '.join(wrong)}"
        raise DataError(expected(str(folder / "run.json"), f"run.json of format version {FORMAT_VERSION}", came))
    table = folder / "pairs.csv"
    if not is_file(table) and is_file(folder / "pairs.parquet"):
        table = folder / "pairs.parquet"
    pairs, values = (read_csv if table.suffix == ".csv" else read_parquet)(table)
    if not pairs:
        raise DataError(expected(str(table), "at least one pair", "none"))
    return Results(folder, about, pairs, values, read_beside(folder, PROTOTYPES), read_beside(folder, AGREEMENT))


_TOP: Mapping[str, type] = {
    "model": dict, "data": dict, "counts": dict, "methods": dict, "metrics": dict, "versions": dict, "pictures": list,
    "scoring_fill": str, "seed": int,
}  # fmt: skip
_INNER: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "methods": {
        "control": bool, "fill": str, "passes": (int, float, type(None)), "image_passes": (int, float, type(None)),
        "settings": dict, "unlocated": int,
    },
    "metrics": {"direction": int, "family": str},
}  # fmt: skip


def spell_flattered(flattered: Mapping[str, Sequence[str]]) -> str:
    """Methods with the metrics that flatter them, as in a sentence; those with the same ones are named together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for method, metrics in flattered.items():
        alike.setdefault(tuple(metrics), []).append(method)
    return "; ".join(f"{', '.join(methods)} on {', '.join(metrics)}" for metrics, methods in alike.items())


def spell_prototypes(prototypes: Sequence[tuple[int | str, str]]) -> list[str]:
    """Names with their indices, (index, name) each; alone where all end with it, as those made by default do."""
    told = all(re.search(rf"(?<!\d){index}$", name) for index, name in prototypes)
    return [name if told else f"{index}: {name}" for index, name in prototypes]


def _wrong(about: Mapping[str, Any]) -> list[str]:
    """What of ``run.json`` is not of its kind; what is missing inside a method or metric has a default."""
    wrong = [name for name, kind in _TOP.items() if not isinstance(about.get(name), kind)]
    for part, kinds in _INNER.items():
        for name, entry in about[part].items() if part not in wrong else ():
            if not isinstance(entry, dict):
                wrong.append(f"{part}.{name}")
                continue
            wrong += [
                f"{part}.{name}.{k}" for k, kind in kinds.items() if k in entry and not isinstance(entry[k], kind)
            ]
    if "model" not in wrong and not isinstance(about["model"].get("name"), str):
        wrong.append("model.name")
    if "pictures" not in wrong:
        texts = ("file", "heading", "alt", "caption")
        wrong += ["pictures" for p in about["pictures"] if not (isinstance(p, dict) and all(t in p for t in texts))][:1]
    return wrong
