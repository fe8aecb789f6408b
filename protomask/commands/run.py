"""``protomask run``: somebody's script as it is, drawing located regions in the files that it always wrote."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from protomask.commands.common import add_plugin, positive, seed_option
from protomask.commands.convert import numbers_option
from protomask.commands.locate import parse_settings
from protomask.commands.script import loading, run_script, without_cuda
from protomask.errors import InputError, expected
from protomask.locating import resolve_method
from protomask.model import families
from protomask.patching import Patch, to_stderr


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``run`` and its options."""
    parser = commands.add_parser(
        "run",
        help="run a script of your own repository, unedited, with located regions",
        usage="protomask run [OPTIONS] -- [-m MODULE | SCRIPT] [ARGUMENT ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a script as Python would, and replace the regions that it draws: the code bases that the\n"
        "installed families know (ProtoPNet's push, find_nearest, local_analysis and global_analysis, and what\n"
        "descends from them) write the files they always wrote, with the regions of --method.\n"
        "A line on standard error says what was replaced; the exit code is the script's.",
        epilog="examples:\n"
        "  protomask run -- main.py -gpuid 0\n"
        "  protomask run --device cpu --trust -- local_analysis.py -modeldir ./saved_models/vgg19/003/ ...\n"
        "  protomask run --set steps=25 -- -m mypackage.push",
    )
    parser.add_argument("--device", choices=("cpu",), help="cpu: whatever the script sends to CUDA stays on the CPU")
    parser.add_argument("--trust", action="store_true",
                        help="let the script's torch.load unpickle whole modules, which runs their code")  # fmt: skip
    parser.add_argument("--method", default="mdm", metavar="METHOD",
                        help="see `protomask methods` (default: %(default)s)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the method, such as steps=50; may be repeated")  # fmt: skip
    parser.add_argument("--seed", type=seed_option, default=0, metavar="N",
                        help="of everything drawn (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch", type=positive, default=32, metavar="N",
                        help="images in one network pass (default: %(default)s)")  # fmt: skip
    parser.add_argument("--remember", type=positive, metavar="N",
                        help="last batches in which a drawn map is looked for (default: the family's)")  # fmt: skip
    parser.add_argument("--mean", type=numbers_option, metavar="R,G,B",
                        help="what the script normalises images by (default: the model's own; else ImageNet's for RGB,"
                        " else 0)")  # fmt: skip
    parser.add_argument("--std", type=numbers_option, metavar="R,G,B",
                        help="likewise (default: the model's own; else ImageNet's for RGB, else 1)")  # fmt: skip
    add_plugin(parser)
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the script and its arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Patch, run, undo, report; what the script raises passes through."""
    script, arguments, as_module = _script(args.script)
    settings = parse_settings(args.settings)
    resolve_method(args.method, settings)
    patches: list[Patch] = []
    with ExitStack() as stack:
        stack.callback(_report, patches)
        stack.enter_context(loading(trust=args.trust, to_cpu=args.device == "cpu"))
        if args.device == "cpu":
            stack.enter_context(without_cuda())
        for family in families().values():
            if family.patch is not None:
                told = _told(args, family.patch)
                patch = family.patch(args.method, seed=args.seed, batch=args.batch, say=None, **told, **settings)
                patches.append(stack.enter_context(patch))
        run_script(script, arguments, as_module=as_module)


def _told(args: argparse.Namespace, patch: Callable[..., Any]) -> dict[str, Any]:
    """The options that were given and that a family's patch takes."""
    taken = inspect.signature(patch).parameters
    given = {name: getattr(args, name) for name in ("remember", "mean", "std")}
    return {name: value for name, value in given.items() if value is not None and name in taken}


def _script(words: Sequence[str]) -> tuple[str, list[str], bool]:
    """(script or module, its arguments, whether it is a module)."""
    words = list(words[1:] if words and words[0] == "--" else words)
    as_module = bool(words) and words[0] == "-m"
    words = words[1:] if as_module else words
    if not words:
        raise InputError(expected("SCRIPT", "-- SCRIPT or -- -m MODULE after the options", "nothing"))
    return words[0], words[1:], as_module


def _report(patches: Sequence[Patch]) -> None:
    reports = [patch.report for patch in patches]
    lines = [str(report) for report in reports if report.found or report.notes]
    if not lines:
        lines = ["protomask run: found nothing to patch: the script imported no code that an installed family knows"]
    to_stderr("\n".join(lines))
    sys.stderr.flush()
