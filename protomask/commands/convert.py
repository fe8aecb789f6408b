"""``protomask convert``: a foreign checkpoint, written in our format."""

from __future__ import annotations

import argparse
from pathlib import Path

from protomask.commands.common import add_trust, positive, size_option
from protomask.conversion import convert
from protomask.foreign import Stated
from protomask.opening import read_text


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``convert`` and its options."""
    parser = commands.add_parser(
        "convert",
        help="write a foreign checkpoint in our format",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Read a foreign checkpoint (a state dict, a dict with one, a whole module; zip, legacy or\n"
        "safetensors) without running anything in it, write it in our format, load that back, compare activations.",
        epilog="examples:\n"
        "  protomask convert 100push0.7823.pth --out runs/upstream\n"
        "  protomask convert state.pth --classes-from img/epoch-100/bb100.npy --out runs/upstream\n"
        "  protomask convert state.pth --prototypes-per-class 10 --size 224 --out runs/upstream",
    )
    parser.add_argument("file", metavar="FILE", help="the foreign checkpoint (see `protomask inspect`)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the checkpoint to write")
    parser.add_argument("--backbone", metavar="NAME",
                        help="where it is not recognised, such as mobilenet_v2@16 (default: recognised)")  # fmt: skip
    parser.add_argument("--activation", metavar="NAME", help="log or linear (default: the file's own, else log)")
    parser.add_argument("--size", type=size_option, metavar="HxW",
                        help="input size, as the file says where it does (default: the file's, else 224)")  # fmt: skip
    parser.add_argument("--mean", type=numbers_option, metavar="R,G,B", help="of the input (default: ImageNet's)")
    parser.add_argument("--std", type=numbers_option, metavar="R,G,B", help="of the input (default: ImageNet's)")
    parser.add_argument("--crop", choices=("none", "box"),
                        help="how its images were cut; the authors cut CUB to its boxes (default: none)")  # fmt: skip
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="a text file with a class name per line")
    parser.add_argument("--key", metavar="NAME", help="of a dict in the file, where several entries hold weights")
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--classes-from", type=Path, metavar="BB.NPY",
                         help="upstream's bb.npy: each prototype's class, where the file does not say it")  # fmt: skip
    classes.add_argument("--prototypes-per-class", type=positive, metavar="N",
                         help="or: prototype j belongs to class j // N")  # fmt: skip
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Convert, and say what was proved and what was assumed."""
    stated = Stated(
        backbone=args.backbone,
        activation=args.activation,
        size=args.size,
        mean=args.mean,
        std=args.std,
        crop=args.crop,
        class_names=None if args.class_names is None else read_names(args.class_names),
        classes_from=args.classes_from,
        prototypes_per_class=args.prototypes_per_class,
        key=args.key,
    )
    done = convert(args.file, args.out, stated, trust=args.trust)
    shape, classes = list(done.description.prototype_shape), done.description.num_classes
    print(f"{done.folder}: {done.description.backbone}, prototypes {shape}, {classes} classes.")
    print("Loaded back, its activations are those of the tensors read, to the bit.")
    if done.source is not None:
        print(f"Against the file's own code they differ by at most {done.source:.2g}.")
    for assumption in done.description.extra.get("assumed", ()):
        print(f"Assumed, since the file does not say it: {assumption}.")
    if "unproved" in done.description.extra:
        print(f"Not proved: {done.description.extra['unproved']}.")


def read_names(path: Path) -> tuple[str, ...]:
    """The lines of a text file, without those that are empty.

    Raises:
        DataError: it cannot be read.
    """
    lines = read_text(path, "a text file with a class name per line").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def numbers_option(text: str) -> tuple[float, ...]:
    """``0.5,0.5,0.5`` as numbers, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from error
