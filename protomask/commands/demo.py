"""``protomask demo``: the shipped reference model on planted scenes, start to finish."""

from __future__ import annotations

import argparse
from pathlib import Path

from protomask import gallery
from protomask.commands.common import add_run_options, choose_device, positive
from protomask.commands.evaluate import Kept, evaluate_into
from protomask.data import Planted
from protomask.evaluation import METHODS
from protomask.files import write_bytes
from protomask.loading import Loaded, load_model
from protomask.locating import locate
from protomask.pairs import tensors
from protomask.store import prepare_output
from protomask.visualise.figures import png_bytes, wrong_versus_right
from protomask.visualise.report import Picture

SCENES = 200
EXAMPLES = 4


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``demo`` and its options."""
    parser = commands.add_parser(
        "demo",
        help="the whole way on embedded data, in under two minutes",
        description="Locate the prototypes of the shipped reference ProtoPNet in planted scenes, by MDM, by upsampling "
        "and by the controls; score them; draw them. Needs no download.",
    )
    parser.add_argument("--out", default="protomask-demo", metavar="DIR", help="for results (default: %(default)s)")
    parser.add_argument("--model", default="demo:protopnet", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--pairs", type=positive, default=60, metavar="N", help="pairs to score (default: %(default)s)")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the demo and write table, scores, regions, pictures and report."""
    out = prepare_output(args.out)
    loaded = load_model(args.model, choose_device(args.device))
    classes = len(loaded.class_names)
    dataset = Planted("birds", "test", count=SCENES, size=loaded.size[0], classes=classes)
    extra = explanations(out, loaded, dataset, args.batch)
    _, kept = evaluate_into(
        out,
        loaded,
        dataset,
        METHODS,
        pairs=args.pairs,
        panels=6,
        seed=args.seed,
        batch=args.batch,
        progress=args.progress,
        extra=extra,
    )
    path = out / "wrong-versus-right.png"
    write_bytes(path, contrast_png(dataset, kept))
    print(f"pictures: {path}, {out / 'looks-like.png'}, {out / 'bank.png'}, {out / 'panels'}")
    print(f"open {out / 'report.html'}")


def explanations(out: Path, loaded: Loaded, dataset: Planted, batch: int) -> list[Picture]:
    """This looks like that for the first scene, and the bank of its class."""
    sample = dataset[0]
    found = locate(loaded.model, tensors(loaded.model, [sample]), "top:3", batch=batch)
    pictures = []
    for name, heading, figure in (
        ("looks-like", "This looks like that", gallery.likeness(loaded, sample, found, range(len(found)))),
        ("bank", "The bank of a class's prototypes", gallery.bank(loaded, dataset, sample.label, batch=batch)),
    ):
        if figure is not None:
            png = png_bytes(figure, dpi=110)
            write_bytes(out / f"{name}.png", png)
            pictures.append(Picture(heading, png, f"{heading}, for {dataset.class_names[sample.label]}"))
    return pictures


def contrast_png(dataset: Planted, kept: Kept) -> bytes:
    """The picture of wrong versus right regions: the first examples in the order drawn, not the best."""
    columns = [
        gallery.contrast(s, found["upsampling"], found["mdm"], 0, annotation, dataset.class_names[s.label])
        for _, s, found, annotation in kept.examples[:EXAMPLES]
    ]
    return png_bytes(wrong_versus_right(columns), dpi=120)
