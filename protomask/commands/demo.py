"""``protomask demo``: the shipped reference models on planted scenes, start to finish."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from protomask import gallery
from protomask.commands.common import add_run_options, choose_device, positive, score_table, settle_batch
from protomask.commands.evaluate import evaluate_into
from protomask.commands.publish import Kept, amend
from protomask.data import Planted
from protomask.errors import InputError, expected
from protomask.evaluation import METHODS
from protomask.files import write_bytes
from protomask.loading import Loaded, load_model
from protomask.locating import locate
from protomask.metrics import Summary
from protomask.model import families, untouched
from protomask.pairs import tensors
from protomask.store import prepare_output, write_scores
from protomask.visualise.figures import png_bytes, wrong_versus_right
from protomask.visualise.report import Picture

SCENES = 200
EXAMPLES = 4


@dataclass(frozen=True)
class Shown:
    """What the demo says of one model.

    Attributes:
        name: of the model.
        summaries: method -> metric -> mean with its interval.
        folder: of its results.
        contrast: the picture of wrong versus right regions.
    """

    name: str
    summaries: Mapping[str, Mapping[str, Summary]]
    folder: Path
    contrast: Picture


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``demo`` and its options."""
    parser = commands.add_parser(
        "demo",
        help="the whole way on embedded data, in under two minutes",
        description="Locate the prototypes of the shipped reference models in planted scenes, by MDM, by upsampling "
        "and by the controls; score them; draw them. Needs no download. The first model's results lie in --out itself, "
        "each further model's in a folder of its name there, with a report of its own; the report of --out tells of "
        "the first in full and of the others in brief, and its scores.json holds the scores of all.",
    )
    parser.add_argument("--out", default="protomask-demo", metavar="DIR", help="for results (default: %(default)s)")
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help=f"may be given several times (default: {' and '.join(demo_models())})",
    )
    parser.add_argument("--pairs", type=positive, default=60, metavar="N", help="pairs to score (default: %(default)s)")
    add_run_options(parser)
    parser.set_defaults(run=run)


def demo_models() -> list[str]:
    """``demo:NAME`` of every installed family that ships a reference model."""
    return [f"demo:{name}" for name, family in families().items() if family.demo is not None]


def run(args: argparse.Namespace) -> None:
    """Run the demo and write tables, scores, regions, pictures and reports."""
    out = prepare_output(args.out)
    names = args.model or demo_models()
    if len(set(names)) < len(names):
        raise InputError(expected("--model", "each model once", ", ".join(names)))
    device = choose_device(args.device)
    first, *others = [load_model(name, device) for name in names]
    folders = [_folder_name(loaded.name) for loaded in (first, *others)]
    if len(set(folders)) < len(folders):
        raise InputError(expected("--model", "models of different names, which name their folders", ", ".join(folders)))
    shown = [_show(out, first, args)]
    shown += [_show(prepare_output(out / _folder_name(loaded.name)), loaded, args) for loaded in others]
    write_scores(out / "scores.json", {one.name: one.summaries for one in shown})
    if others:
        columns = ("energy", "pointing-game", "iou-best", "box-iou", "deletion", "insertion")
        rows = {f"{one.name} {method}": values for one in shown for method, values in one.summaries.items()}
        print(score_table(rows, columns))
    for one in shown[1:]:
        amend(one.folder, pictures=[one.contrast])
    amend(out, pictures=[shown[0].contrast], beside=[one.folder.name for one in shown[1:]])
    print(f"open {out / 'report.html'}")


def _folder_name(model: str) -> str:
    return model.removeprefix("demo:").replace(":", "-")


def _show(out: Path, loaded: Loaded, args: argparse.Namespace) -> Shown:
    """One model: everything that ``protomask evaluate`` writes, and the demo's own pictures."""
    settle_batch(args, loaded)
    dataset = Planted("birds", "test", count=SCENES, size=loaded.size[0], classes=len(loaded.class_names))
    extra = explanations(out, loaded, dataset, args.batch)
    result, kept = evaluate_into(
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
    contrast = contrast_png(loaded, dataset, kept)
    write_bytes(path, contrast)
    alt = f"The first {EXAMPLES} pairs of {loaded.name}: above upsampling, below MDM"
    caption = f"The first {EXAMPLES} pairs in the order drawn, not the best."
    print(f"pictures: {path}, {out / 'looks-like.png'}, {out / 'bank.png'}, {out / 'panels'}")
    return Shown(loaded.name, result.summaries(args.seed), out, Picture("Wrong versus right", contrast, alt, caption))


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


def contrast_png(loaded: Loaded, dataset: Planted, kept: Kept) -> bytes:
    """The picture of wrong versus right regions: the first examples in the order drawn, not the best."""
    columns = [
        gallery.contrast(s, found["upsampling"], found["mdm"], 0, annotation, dataset.class_names[s.label])
        for _, s, found, annotation in kept.examples[:EXAMPLES]
    ]
    with untouched(loaded.model.module), torch.no_grad():
        own = loaded.model.similarity_maps(tensors(loaded.model, [dataset[0]]))
    kind = "occurrence" if own is None else "similarity"  # as the method "upsampling" takes them
    return png_bytes(wrong_versus_right(columns, wrong_label=f"Upsampled {kind} map"), dpi=120)
