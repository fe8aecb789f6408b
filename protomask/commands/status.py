"""``protomask status``: how far a long run is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from protomask.commands.common import safe_lines, spell_duration
from protomask.jobs.status import Status, status_of

_SHOWN = ("targets", "region", "seed", "batch", "threads", "fill", "metrics", "device")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``status`` and its options."""
    parser = commands.add_parser(
        "status",
        help="tell how far a run is",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tell how far the run of `locate` or `evaluate` in DIR is: shards done, pace and time left, items\n"
        "that failed, processes at work, settings. Changes nothing, and may be called at any time.",
        epilog="example:\n  protomask status found",
    )
    parser.add_argument("folder", metavar="DIR", help="the --out of the run")
    parser.add_argument("--json", action="store_true", help="as one JSON object, for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the status."""
    status = status_of(args.folder)
    print(json.dumps(status.as_json(), indent=1) if args.json else "\n".join(map(safe_lines, _lines(status))))


def _lines(status: Status) -> Iterator[str]:
    methods = ", ".join(status.about.get("methods", {}))
    yield f"{status.folder}: {status.kind} {status.about.get('model_name', '')} with {methods}"
    share = status.maps_done / max(1, status.maps_total)
    yield (
        f"{status.shards_done} of {status.shards_total} shards, {status.maps_done} of {status.maps_total} maps "
        f"({share:.0%})"
    )
    for worker in status.running:
        yield f"at work: process {worker.pid} on {worker.host}, {worker.maps} maps in {spell_duration(worker.seconds)}"
    if status.seconds_left == 0:
        yield "complete"
    elif not status.running:
        yield "nobody is at work: the command that began the run goes on with it"
    if status.seconds_left:
        yield f"{status.per_second:.3g} maps per second; about {spell_duration(status.seconds_left)} left at that pace"
    settings = {name: status.settings[name] for name in _SHOWN if status.settings.get(name) is not None}
    yield "settings: " + ", ".join(f"{name} {value}" for name, value in settings.items())
    yield f"{len(status.failed)} items failed" + (":" if status.failed else "")
    yield from (f"  {failure.reason}" for failure in status.failed)
