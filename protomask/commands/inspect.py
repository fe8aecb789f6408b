"""``protomask inspect``: what a checkpoint is, without running anything in it."""

from __future__ import annotations

import argparse

from protomask.inspection import as_json, as_text, inspect_checkpoint


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``inspect`` and its options."""
    parser = commands.add_parser(
        "inspect",
        help="tell what a checkpoint is, without running anything in it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tell what a checkpoint is: its form, which code its pickle asks for, the architecture that its\n"
        "names and shapes imply, and whether it can be loaded, by all but its tensors' values. Nothing in the file is\n"
        "executed.",
        epilog="examples:\n  protomask inspect 100push0.7823.pth\n  protomask inspect runs/cub --json",
    )
    parser.add_argument("file", metavar="FILE", help="a checkpoint: a folder of ours, or any file")
    parser.add_argument("--key", metavar="NAME", help="of a dict in the file, where several entries hold weights")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print what is there."""
    found = inspect_checkpoint(args.file, key=args.key)
    print(as_json(found) if args.json else as_text(found), end="" if args.json else "\n")
