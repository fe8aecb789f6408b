"""``protomask report``: the page of an evaluation, made again from its files alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from protomask.commands.common import positive
from protomask.commands.publish import report_from
from protomask.files import prepare_output
from protomask.reporting.page import Choice, size_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``report`` and its options."""
    parser = commands.add_parser(
        "report",
        help="make the report of an evaluation again from its files",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make one self-contained HTML page from what `protomask evaluate` left in DIR (run.json,\n"
        "pairs.csv, examples/): no model and no data are needed. Rankings, paired comparisons, small\n"
        "multiples, best and worst cases, tables per class and prototype, sanity checks.",
        epilog="example:\n  protomask report scores --against single-mask --metric energy --out compared.html",
    )
    parser.add_argument("folder", metavar="DIR", help="that `protomask evaluate` or `protomask demo` wrote")
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html in DIR)")
    parser.add_argument("--reference", default="", metavar="METHOD", help="compare with this method (default: mdm)")
    parser.add_argument(
        "--against",
        default="",
        metavar="METHOD",
        help="the other method of the best and worst cases (default: upsampling)",
    )
    parser.add_argument("--metric", default="", metavar="METRIC", help="that orders best and worst cases")
    parser.add_argument(
        "--pairs", type=positive, default=200, metavar="N", help="pairs to draw at most (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    if args.out is not None:
        prepare_output(Path(args.out).parent)
    path = report_from(args.folder, args.out, Choice(args.reference, args.against, args.metric, args.pairs))
    print(f"written: {path} ({size_of(path)})")
