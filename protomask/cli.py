"""The command ``protomask``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence

from protomask import __version__
from protomask.allocator import keep_memory
from protomask.commands import convert, demo, evaluate, inspect, listing, locate, report, run, status, train
from protomask.commands.common import load_methods, running, safe_lines
from protomask.errors import ProtomaskError

DESCRIPTION = """Where prototype networks really look.

Prototype networks explain a decision by "this part looks like that prototype", and show the part by upsampling a coarse
map, which is known to be wrong. protomask finds the region by training masks (MDM) instead, draws it, and scores it
against the other methods. Begin with:

  protomask demo --out protomask-demo
"""


_CLOSED_PIPE = 141  # 128 + SIGPIPE, what a shell tells of other programs there


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="protomask", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"protomask {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    locate.add_parser(commands)
    evaluate.add_parser(commands)
    status.add_parser(commands)
    report.add_parser(commands)
    train.add_parser(commands)
    inspect.add_parser(commands)
    convert.add_parser(commands)
    run.add_parser(commands)
    for name, listed, text in (
        ("methods", listing.methods, "list the localisation methods"),
        ("metrics", listing.metrics, "list the metrics"),
    ):
        listing.add_parser(commands, name, text, listed)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those after ``protomask``; the process's own where None.

    Returns:
        0 when it worked, 2 for an error that we can explain, 130 after Ctrl-C, 141 where nobody reads on (``| head``).
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # else it is tried at the very end, where nobody can catch it
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what still waits to be written has to go somewhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE


def _run(arguments: Sequence[str]) -> int:
    args = parser().parse_args(_joined(arguments))
    keep_memory()
    try:
        with running(arguments):
            load_methods(args)
            args.run(args)
    except ProtomaskError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped; what was computed so far is kept where the command writes it"
        _say(said)
        return 130
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--window -1000,400`` as one word: argparse would take the value for an option. A script's own stay."""
    words: list[str] = []
    for word in arguments:
        if words[-1:] == ["--window"] and words[0] != "run" and re.match(r"-[0-9.]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _say(text: str) -> None:
    """On standard error; names of files may hold what a terminal would obey."""
    print(f"protomask: {safe_lines(text)}", file=sys.stderr)
