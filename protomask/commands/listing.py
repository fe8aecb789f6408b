"""``protomask methods`` and ``protomask metrics``: what there is, a name and a sentence per line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from protomask.commands.common import add_plugin
from protomask.errors import ResourceError
from protomask.jobs.needs import NEEDS
from protomask.localisers import LOCALISERS, image_passes_of, load_entry_points
from protomask.metrics import METRICS, Metric


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], None],
) -> None:
    """A command that lists something."""
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    if run is methods:
        add_plugin(parser)
    parser.set_defaults(run=run)


def methods(args: argparse.Namespace) -> None:
    """Print every localiser and its cost, plugins and those of installed packages included."""
    load_entry_points()
    _print({name: f"{entry.sentence} {_cost(name)}".strip() for name, entry in LOCALISERS.items()})


def _cost(name: str) -> str:
    """Network passes at the default settings."""
    try:
        made = LOCALISERS[name].make()
    except ResourceError as error:
        return f"Not available: {error}."
    passes, forward = float(getattr(made, "passes", 0)), image_passes_of(made)
    if passes:
        return f"Costs {passes:.0f} forward + gradient passes per pair."
    return f"Costs {forward:.0f} forward passes per image." if forward else ""


def metrics(args: argparse.Namespace) -> None:
    """Print every metric, its direction, and what it asks for where that is more than its name."""
    arrow = {True: "Higher is better.", False: "Lower is better."}
    said = {name: f"{m.sentence} {arrow[m.higher_is_better]}" for name, m in METRICS.items()}
    _print({name: f"{sentence} {_asked(METRICS[name])}".strip() for name, sentence in said.items()})


def _asked(metric: Metric) -> str:
    """What `protomask evaluate` needs for it beside a name per pair."""
    if metric.scope == "prototype":
        return "Over prototypes: needs annotated parts; --prototypes N are located on 10 images each."
    told = [words for need, words in NEEDS.items() if need in metric.needs]
    told += ["a method whose maps are masks"] if "mask" in metric.needs else []
    if told:
        return f"Needs {', and '.join(told)}."
    if "models" in metric.needs:
        return "Needs --agree MODEL, another training; may be repeated."
    return "Runs each method once more on every pair." if metric.scope == "study" else ""


def _print(sentences: dict[str, str]) -> None:
    width = max(map(len, sentences)) + 2
    for name, sentence in sentences.items():
        print(f"{name:<{width}}{sentence}")
