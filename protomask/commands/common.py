"""Options, checks and files that several commands share."""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protomask.data import DATASETS, OWN_OPTIONS, Dataset, check_unused, make_dataset, open_dataset, own_options
from protomask.errors import InputError, expected
from protomask.files import write_with
from protomask.loading import Loaded, with_labels_of
from protomask.localisers import load_plugin, register_stored
from protomask.memory import choose_batch
from protomask.metrics import METRICS, Summary
from protomask.model import untouched
from protomask.pickles import printable
from protomask.visualise.wording import printable as spelt_out

MODEL_HELP = (
    "a checkpoint folder, a foreign checkpoint file (see `protomask inspect`), package.module:factory, or "
    "demo:protopnet, the shipped reference model"
)
_ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())
DIRECTIONS = {name: 1 if metric.higher_is_better else -1 for name, metric in METRICS.items()}
_ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}"}


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[None]:
    """Makes these the arguments that :func:`command_line` tells, until the block ends."""
    before = _ARGUMENTS.set(tuple(arguments))
    try:
        yield
    finally:
        _ARGUMENTS.reset(before)


def command_line() -> str:
    """The command that is running, as a shell takes it; empty where no command is.

    Those are not always the arguments of the process: a notebook calls ``main`` with its own.
    """
    arguments = _ARGUMENTS.get()
    return shlex.join(["protomask", *arguments]) if arguments else ""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """``--device``, ``--seed``, ``--batch``, ``--memory`` and ``--quiet``, as every command that computes has them."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--device", default="auto", metavar="DEVICE", help="cpu, cuda, cuda:N or auto (default: %(default)s)"
    )
    group.add_argument(
        "--seed", type=seed_option, default=0, metavar="N", help="of everything drawn (default: %(default)s)"
    )
    group.add_argument(
        "--batch",
        type=batch_option,
        default="auto",
        metavar="N",
        help="images in one network pass; auto: 32 on a CPU, as many as fit on a GPU (default: %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=bytes_option,
        metavar="SIZE",
        help="what a pass may take beside the weights, such as 512MiB or 2GiB (default: no limit)",
    )
    add_plugin(group)
    add_quiet(group)


def add_plugin(group: argparse._ActionsContainer) -> None:
    """``--plugin``, for commands that know methods by name."""
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        help="run this code of yours first, which registers methods; may be repeated",
    )


def load_methods(args: argparse.Namespace) -> tuple[str, ...]:
    """Runs the plugins that the options name, and makes each folder of ``--maps`` a method; the names of the latter.

    Both are done once, however often this is called.

    Raises:
        InputError: a plugin fails, or there is no such folder.
    """
    for text in getattr(args, "plugin", ()):
        load_plugin(text)
    return tuple(register_stored(folder) for folder in getattr(args, "maps", ()))


def add_trust(parser: argparse._ActionsContainer) -> None:
    """``--trust``, for commands that take a foreign checkpoint."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let a whole module that cannot be read as data run its own code (default: nothing in a file runs; in a "
        "state dict never, whatever it would call)",
    )


def add_quiet(group: argparse._ActionsContainer) -> None:
    """``--quiet``, which sets ``progress`` to False."""
    group.add_argument("--quiet", dest="progress", action="store_false", help="no progress bars")


def add_data_options(parser: argparse.ArgumentParser, *, own: bool = False) -> argparse._ArgumentGroup:
    """``--data``, ``--root``, ``--crop`` and the options of planted scenes; ``own``: --data takes a factory, too."""
    group = parser.add_argument_group("data")
    kinds = ", ".join(DATASETS)
    about = f"{kinds}, or package.module:factory, a function of yours that takes size and split and gives a data set"
    told: dict[str, Any] = {"type": data_option, "metavar": "KIND", "help": about}
    if not own:
        told = {"choices": DATASETS, "help": "the kind of data set"}
    group.add_argument("--data", required=True, **told)
    group.add_argument("--root", metavar="DIR", help="its folder (cub: the one that holds images.txt)")
    group.add_argument(
        "--crop",
        choices=("none", "box"),
        help="cub, boxes: full frames, or cut to the box first (default: as the model was trained, else none)",
    )
    group.add_argument("--scenes", dest="count", type=positive, metavar="N", help="planted: how many scenes")
    _add_xray_options(group)
    return group


def _add_xray_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--label", metavar="COLUMN", help="boxes: the column of images.csv that holds the class")
    group.add_argument("--task", help="boxes: classes made of the boxes: side, which half of the patient it is")
    group.add_argument(
        "--rename", type=pairs_option, metavar="A=B,...", help="boxes: values of that column to take for others"
    )
    group.add_argument(
        "--columns",
        type=pairs_option,
        metavar="KEY=NAME,...",
        help="boxes: how the tables name id, patient, class, ...",
    )
    group.add_argument(
        "--findings", type=names_option, metavar="A,B,...", help="chestxray14: the classes to keep (default: all)"
    )
    group.add_argument(
        "--negatives",
        action="store_true",
        help="chestxray14: keep images without any of them, for multi-label training",
    )
    group.add_argument("--partial", action="store_true", help="chestxray14: leave out images that are not there")
    group.add_argument(
        "--split-seed",
        type=seed_option,
        metavar="N",
        help="folder, chestxray14, boxes: of a split that is drawn (default: 0)",
    )
    add_window(group, "folder, chestxray14, boxes: ")


def add_window(group: argparse._ActionsContainer, kinds: str) -> None:
    """``--window``, of these kinds of data."""
    group.add_argument(
        "--window",
        type=window_option,
        metavar="LOW,HIGH",
        help=f"{kinds}values of 16-bit and .npy pixels that become black and white "
        "(default: as the model was trained, else by the bits that an image uses)",
    )


def data_option(text: str) -> str:
    """A kind of data set, or ``package.module:factory``."""
    if text not in DATASETS and ":" not in text:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(DATASETS)} or package.module:factory, got {text!r}"
        )
    return text


def add_evaluation_data_options(parser: argparse.ArgumentParser) -> None:
    """The data options, and which part of the data to evaluate on."""
    group = add_data_options(parser, own=True)
    group.add_argument(
        "--data-seed",
        type=seed_option,
        default=0,
        metavar="N",
        help="planted: the stream of scenes (default: %(default)s)",
    )
    group.add_argument(
        "--split",
        default="test",
        help="train or test; planted, chestxray14, boxes: or dev; all but planted: or all (default: %(default)s)",
    )
    group.add_argument(
        "--species", type=ids_option, metavar="ID,ID,...", help="cub: only these class ids of classes.txt"
    )
    group.add_argument(
        "--boxed", action="store_true", help="chestxray14: only findings with boxes, each as a sample of its own"
    )


def batch_option(text: str) -> int | str:
    """``auto`` or an integer of at least 1, for argparse."""
    return text if text == "auto" else positive(text)


def bytes_option(text: str) -> int:
    """``512MiB``, ``2GiB`` or a plain number of bytes, for argparse."""
    number, unit = text, 1
    for power, name in enumerate(("KiB", "MiB", "GiB"), start=1):
        if text.endswith(name):
            number, unit = text.removesuffix(name), 1024**power
    try:
        found = float(number) * unit
    except ValueError:
        found = 0.0
    if not 1 <= found < 1 << 60:
        raise argparse.ArgumentTypeError(f"expected a size such as 512MiB or 2GiB, got {text!r}")
    return int(found)


def settle_batch(args: argparse.Namespace, loaded: Loaded) -> None:
    """``--batch`` and ``--memory`` as a number, now that the model is known: ``args.batch``."""
    image = torch.zeros((1, len(loaded.model.mean), *loaded.size))
    args.batch = choose_batch(loaded.model, image, args.batch, args.memory)


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    return _integer(text, 1)


def count_option(text: str) -> int:
    """An integer of at least 0, for argparse."""
    return _integer(text, 0)


def seed_option(text: str) -> int:
    """An integer of at least 0, for argparse; generators take no others."""
    return _integer(text, 0)


def ids_option(text: str) -> tuple[int, ...]:
    """``1,7`` as (1, 7), for argparse."""
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*(,\s*[0-9]{1,9}\s*)*", text):
        raise argparse.ArgumentTypeError(f"expected integers with commas between, got {text!r}")
    return tuple(int(part) for part in text.split(","))


def _integer(text: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < low:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, got {text!r}")
    return int(text)


def names_option(text: str) -> tuple[str, ...]:
    """``A,B`` as ("A", "B"), for argparse."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return names


def pairs_option(text: str) -> dict[str, str]:
    """``A=B,C=D`` as {"A": "B", "C": "D"}, for argparse."""
    cells = [part.split("=") for part in text.split(",")]
    if any(len(cell) != 2 or not all(side.strip() for side in cell) for cell in cells):
        raise argparse.ArgumentTypeError(f"expected A=B,C=D, got {text!r}")
    return {key.strip(): value.strip() for key, value in cells}


def window_option(text: str) -> tuple[float, float]:
    """``0,4095`` as (0.0, 4095.0), for argparse."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH, got {text!r}") from error
    return low, high


def size_option(text: str) -> tuple[int, int]:
    """``224`` or ``224x160`` (height x width) as (height, width), for argparse."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"expected N or HxW, got {text!r}")
    return int(parts[0]), int(parts[-1])


def choose_device(name: str) -> str:
    """``auto`` as cuda where there is one, else cpu; any other name as it came, if tensors can be put there.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        wanted = "auto, cpu or an available cuda device"
        raise InputError(expected("--device", wanted, f"{name!r} ({error})")) from error
    return name


def dataset_for(args: argparse.Namespace, loaded: Loaded) -> Dataset:
    """The data set that the options name, at the model's size and with the model's class indices."""
    if ":" in args.data:
        check_unused(args.data, crop=args.crop, scenes=args.count, species=args.species, **own_options(vars(args)))
        return with_labels_of(loaded, make_dataset(args.data, size=loaded.size, split=args.split, root=args.root))
    crop = loaded.crop if args.crop is None else args.crop
    own = own_options(vars(args))
    if "window" in OWN_OPTIONS.get(args.data, ()):
        own = {"window": loaded.window, **own}
    data = open_dataset(
        args.data,
        root=args.root,
        split=args.split,
        size=loaded.size,
        crop=crop if args.data in ("cub", "boxes") else "none",
        seed=args.data_seed,
        count=args.count,
        species=args.species,
        classes=len(loaded.class_names) or 12,
        **own,
    )
    return with_labels_of(loaded, data)


def seconds_per_pass(loaded: Loaded, batch: int, *, gradient: bool) -> float:
    """What one image costs on this machine in a pass of ``batch``: forward, with the input gradient if asked for.

    One pass to warm up, one to measure; the model's prototype 0 on the mean image.
    """
    model = loaded.model
    parameter = next(model.module.parameters(), None) if model.module is not None else None
    device = torch.device("cpu") if parameter is None else parameter.device
    images = torch.zeros((batch, len(model.mean), *loaded.size), device=device)
    prototypes = torch.zeros(batch, dtype=torch.int64, device=device)
    with untouched(model.module), torch.set_grad_enabled(gradient):
        for _ in range(2):
            start = time.perf_counter()
            _one_pass(model.activations(images.requires_grad_(gradient), prototypes), images, gradient)
    return (time.perf_counter() - start) / batch


def seconds_of(loaded: Loaded, batch: int, backward: float, forward: float) -> float:
    """What so many passes cost, with the input gradient and without, by a look at one of each that is needed."""
    counts = {True: backward, False: forward}
    at_once = min(batch, 8)
    return sum(n * seconds_per_pass(loaded, at_once, gradient=kind) for kind, n in counts.items() if n)


def _one_pass(activations: Tensor, images: Tensor, gradient: bool) -> None:
    if gradient:
        torch.autograd.grad(activations.sum(), images)
    if activations.is_cuda:
        torch.cuda.synchronize(activations.device)


def safe_lines(text: str) -> str:
    """The text with everything but line ends escaped that a terminal would obey, or that cannot be encoded."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def spell_duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def score_table(summaries: Mapping[str, Mapping[str, Summary]], metrics: Sequence[str]) -> str:
    """Methods by metrics as text tables of means; an arrow says which way is better, a dash that it is undefined.

    The metrics are spread over as many tables as the width of the terminal asks for; where there is none, 120.
    """
    shown = [m for m in metrics if any(m in v and v[m].n for v in summaries.values())]
    heads = {m: f"{m} {_ARROWS[DIRECTIONS[m]]}" for m in shown}
    first = max(len(m) for m in summaries)
    room = shutil.get_terminal_size((120, 24)).columns - first
    tables: list[list[str]] = [[]]
    for metric in shown:
        if tables[-1] and sum(len(heads[m]) + 2 for m in (*tables[-1], metric)) > room:
            tables.append([])
        tables[-1].append(metric)
    return "\n\n".join(_columns(summaries, {m: heads[m] for m in table}, first) for table in tables)


def _columns(summaries: Mapping[str, Mapping[str, Summary]], heads: Mapping[str, str], first: int) -> str:
    lines = [" " * first + "".join(f"  {head}" for head in heads.values())]
    for method, values in summaries.items():
        cells = {m: f"{values[m].mean:.3f}" if m in values and values[m].n else "-" for m in heads}
        lines.append(f"{method:<{first}}" + "".join(f"  {cells[m]:>{len(head)}}" for m, head in heads.items()))
    return "\n".join(lines)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, whole or not at all; rows are written as they come, bytes of names that are no text spelt out."""

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([spelt_out(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)

    write_with(path, write)


def versions() -> dict[str, str]:
    """Versions of protomask and of what its numbers depend on."""
    return {name: version(name) for name in ("protomask", "torch", "torchvision", "opencv-python", "numpy")}
