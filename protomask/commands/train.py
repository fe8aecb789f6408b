"""``protomask train FAMILY``: the family's own training; its options come from the extension."""

from __future__ import annotations

import argparse

from protomask.commands.common import add_data_options, add_quiet
from protomask.model import families


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``train`` with one sub-command per installed family that can train."""
    parser = commands.add_parser(
        "train",
        help="train a reference model as published",
        description="Train a reference model of a family as its paper does; an interrupted run continues.",
    )
    kinds = parser.add_subparsers(dest="family", required=True, metavar="FAMILY")
    for name, family in families().items():
        if family.train is None:
            continue
        sub = kinds.add_parser(
            name,
            help=f"train a {name}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=f"Train a reference {name}.",
        )
        sub.add_argument("--out", required=True, metavar="DIR", help="the checkpoint; a run that stopped there goes on")
        add_data_options(sub)
        add_quiet(sub)
        if family.add_train_arguments is not None:
            family.add_train_arguments(sub)
        sub.set_defaults(run=family.train)
