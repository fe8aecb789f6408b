"""Evaluations of one model on the same pairs, made in several runs and even at different commits, joined to one.

A method that several runs score by the same metric is taken from the last of them, whole: its values, and what run.json
says of it. A run that scores it by other metrics alone adds these. Where values came from stands in
``about["sources"]``, one record per evaluation that still gives some: ``run`` (its folder's name), ``command``,
``commit`` (or None), ``device``, ``versions``, ``methods``, ``instead``, those of the methods that an earlier folder
had, too, and, where it added some, ``metrics``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from localisation import shortened

from protomask.errors import InputError, expected
from protomask.metrics import METRICS
from protomask.reporting.beside import Beside, write_beside
from protomask.reporting.results import Results
from protomask.reporting.tidy import Scored, write_parquet
from protomask.store._json import write_json

TABLES = ("prototypes", "agreement")  # of what stands beside the pairs
SAME = ("name", "prototypes", "size", "crop")  # of a model, whose device may be another
ABSOLUTE = re.compile(r"(?<![\w.~)\]}/-])/(?!/)(?:[^/\s,;:'\"]+/)*(?=[^/\s]|$)")


def join(runs: Sequence[Results]) -> tuple[Results, ...]:
    """The runs in the order given, those of one model on the same data with the same seed and fill made one.

    Methods keep their place when their values are replaced. Metrics are those that each method has in its own runs. In
    tables of prototypes and of agreement the last run that has a method's metric counts; a table of other prototypes,
    or of other images, replaces the earlier one whole. A run of :func:`beside_only` gives nothing but these, and comes
    after one that has pairs.

    Raises:
        InputError: runs that should be one have different pairs.
    """
    groups: list[list[Results]] = []
    for run in runs:
        group = next((group for group in groups if all(_same(other, run) for other in group)), None)
        if group is None:
            groups.append([run])
        else:
            if run.values:
                _check_pairs(group[0], run)
            group.append(run)
    return tuple(_joined(group) if len(group) > 1 else group[0] for group in groups)


def _same(one: Results, other: Results) -> bool:
    # Paths: a record that was kept has lost them, the one that was not must still be found to be the same.
    return _of_model(one, other) and all(
        pathless(one.about[key]) == pathless(other.about[key]) for key in ("data", "seed", "scoring_fill")
    )


def _of_model(one: Results, other: Results) -> bool:
    first, second = one.about["model"], other.about["model"]
    if first.get("digest") and second.get("digest"):
        return bool(first["digest"] == second["digest"])
    return all(pathless(first.get(key)) == pathless(second.get(key)) for key in SAME)


def _check_pairs(first: Results, other: Results) -> None:
    found = next(_differences(first.pairs, other.pairs), None)
    if found is not None:
        wanted = f"the pairs of {first.folder}, since model ({first.name}), data and seed are the same"
        raise InputError(expected(str(other.folder), wanted, found))


def _differences(first: Sequence[Scored], other: Sequence[Scored]) -> Iterator[str]:
    for k, (one, two) in enumerate(zip(first, other, strict=False)):
        for name in (field.name for field in fields(Scored)):
            if getattr(one, name) != getattr(two, name):
                yield f"{name} {getattr(two, name)!r} instead of {getattr(one, name)!r} in pair {k}"
    if len(first) != len(other):
        yield f"{len(other)} instead of {len(first)}"


def beside_only(run: Results) -> Results:
    """The run without its pairs' values: what stands beside them."""
    return replace(run, pairs=(), values={})


def _joined(runs: Sequence[Results]) -> Results:
    runs = _without_replaced(runs)
    holders = _holders(runs)
    last = [run for run in runs if run.values][-1]
    about = {
        **last.about,
        "model": {key: value for run in runs for key, value in run.about["model"].items()},
        "metrics": {name: metric for run in runs for name, metric in run.about["metrics"].items()},
        "methods": {method: own[0].about["methods"].get(method, {}) for method, own in holders.items()},
        "sources": list(_left(runs, holders)),
        "compared": next((run.about.get("compared", []) for run in runs if run.agreement.values), []),
    }
    about["command"] = "\n".join(str(source["command"]) for source in about["sources"])
    values = {method: {k: v for run in own for k, v in run.values[method].items()} for method, own in holders.items()}
    tables = (_joined_tables([getattr(run, name) for run in runs]) for name in TABLES)
    return Results(last.folder, about, last.pairs, values, *tables)


def _holders(runs: Sequence[Results]) -> dict[str, list[Results]]:
    """Method -> the runs that its values are of: the last that replaced it, and those that added metrics since."""
    holders: dict[str, list[Results]] = {}
    for run in runs:
        for method, values in run.values.items():
            known = {metric for other in holders.get(method, ()) for metric in other.values[method]}
            if known & set(values):
                holders[method] = [run]
            else:
                holders.setdefault(method, []).append(run)
    return holders


def _without_replaced(runs: Sequence[Results]) -> list[Results]:
    """The runs without the tables of other items than the last such table has, and without what tells their origin."""
    found = list(runs)
    for name in TABLES:
        last = next((run for run in reversed(runs) if getattr(run, name).values), None)
        items = getattr(last, name).items if last is not None else ()
        found = [_without_table(run, name) if getattr(run, name).items != items else run for run in found]
    return found


def _without_table(run: Results, name: str) -> Results:
    table: Beside = getattr(run, name)
    gone = {metric for columns in table.values.values() for metric in columns}
    told = []
    for source in sources(run):
        left = [metric for metric in source.get("metrics", ()) if metric not in gone]
        if left or "metrics" not in source:
            told.append({**source, "metrics": left} if left else source)
    return replace(run, about={**run.about, "sources": told}, **{name: replace(table, items=(), values={})})


def _joined_tables(tables: Sequence[Beside]) -> Beside:
    filled = [table for table in tables if table.values]
    if not filled:
        return tables[-1]
    values: dict[str, dict[str, Any]] = {}
    for table in filled:
        for method, columns in table.values.items():
            values.setdefault(method, {}).update(columns)
    return replace(filled[0], values=values)


def _left(runs: Sequence[Results], holders: Mapping[str, Sequence[Results]]) -> Iterator[dict[str, Any]]:
    """The sources of the values that were not replaced."""
    earlier: set[str] = set()
    for run in runs:
        if not run.values:
            tables = [getattr(run, name).values for name in TABLES]
            beside = {m: None for values in tables for m in values}
            metrics = {k: None for values in tables for columns in values.values() for k in columns}
            for source in sources(run) if beside else ():
                yield {**source, "methods": list(beside), "instead": [], "metrics": list(metrics)}
            continue
        for source in sources(run):
            methods = [m for m in source["methods"] if holders[m][0] is run]
            added = [m for m in source["methods"] if run in holders[m][1:]]
            if methods:
                instead = [m for m in methods if m in earlier or m in source["instead"]]
                yield {**source, "methods": methods, "instead": [] if "metrics" in source else instead}
            if added:
                metrics = source.get("metrics") or [k for k in METRICS if k in run.values[added[0]]]
                yield {**source, "methods": added, "instead": [], "metrics": metrics}
        earlier |= set(run.values)


def sources(run: Results) -> list[dict[str, Any]]:
    """Where the values of a run came from, joined or not; see the module."""
    about = run.about
    own = {
        "run": run.folder.resolve().name,
        "command": str(about.get("command", "")),
        "commit": about.get("commit"),
        "device": about["model"].get("device"),
        "versions": about["versions"],
        "methods": list(run.values),
        "instead": [],
    }
    return [dict(source) for source in about.get("sources", [own])]


def dated(run: Results, commit: str | None) -> Results:
    """The run with its sources written out; those that tell no commit are of this one."""
    found = [{**source, "commit": source["commit"] or commit} for source in sources(run)]
    return replace(run, about={**run.about, "sources": found})


def commands(runs: Sequence[Results]) -> list[str]:
    """Each command that made the runs' values, once, without the folders of this machine."""
    found = (shortened(str(source["command"])) for run in runs for source in sources(run))
    return list(dict.fromkeys(command for command in found if command))


def commits(run: Results) -> list[str]:
    """Each commit at which values of the run were made, as far as they are known."""
    return list(dict.fromkeys(str(source["commit"]) for source in sources(run) if source["commit"]))


def origins(name: str, run: Results) -> list[str]:
    """A paragraph on which method's values are of which evaluation; none where all are of one and replace nothing."""
    parts = sources(run)
    if len(parts) == 1 and not parts[0]["instead"]:
        return []
    return [f"Evaluations of {name} that were joined. " + "; ".join(_origin(part) for part in parts) + "."]


def _origin(part: Mapping[str, Any]) -> str:
    added = f"{', '.join(part['metrics'])} of " if part.get("metrics") else ""
    at = f" at {part['commit']}" if part["commit"] else ""
    said = f"{added}{', '.join(part['methods'])}: of {part['run']}{at}"
    if not part["instead"]:
        return said
    which = "" if part["instead"] == part["methods"] else f"{', '.join(part['instead'])} "
    return f"{said} ({which}in place of an earlier evaluation's)"


def keep(run: Results, folder: Path) -> None:
    """Write run.json, pairs.parquet and what stands beside the pairs, for ``read_results`` and for :func:`join`.

    No folder of this machine gets into them, but for images that the data set itself names by such paths. Pictures and
    maps are not kept.
    """
    found = [{**source, "command": shortened(str(source["command"]))} for source in sources(run)]
    about = {**run.about, "sources": found, "command": "\n".join(commands([run])), "pictures": []}
    about.pop("beside", None)
    write_parquet(folder / "pairs.parquet", run.pairs, run.values, small=True)
    write_json(folder / "run.json", pathless(about), indent=1)
    for name in TABLES:
        write_beside(folder, getattr(run, name))


def pathless(value: Any) -> Any:
    """A JSON value in whose texts of each absolute path the last part is left."""
    if isinstance(value, dict):
        return {key: pathless(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [pathless(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if "\n" not in value:
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.is_absolute():
                return path.name
    return ABSOLUTE.sub("", value)


def folder_names(names: Collection[str]) -> list[str]:
    """A folder's name for each name, all different and none hidden."""
    found = [re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "model" for name in names]
    alike = len({name.casefold() for name in found}) < len(found)
    return [f"{n}-{name}" for n, name in enumerate(found)] if alike else found
