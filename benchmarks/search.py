"""The search for a better MDM: variants on development pairs of one model, as rows of ``docs/search-log.csv``.

A variant is a method with settings, ``mdm:steps=6;scales=6,12``; ``NAME=mdm:...`` gives it a name. All variants see the
same pairs, which are drawn once. Printed are the means, and for the three causal scores under each fill the paired
difference to the first variant with its 95 % interval (images resampled); ``--log`` adds a row per variant, as
``docs/search-protocol.md`` asks. Repeatability is the mean Pearson correlation with the map of the same image under
noise of 2 % of its range (``pearson-noise``), and with the map that another seed gives (``pearson-seed``). ::

    python benchmarks/search.py demo:protopnet --data planted --split dev --scenes 400 --pairs 60 --seed 5 \\
        --variant smoothgrad --variant mdm --variant "bare=mdm:gradient_power=0"
    python benchmarks/search.py runs/inat --data cub --root CUB --species 10,12,14,17,36,47,53,57,68,69 --pairs 60 \\
        --seed 5 --variant mdm --variant "mdm:fill=image-mean" --log docs/search-log.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from evaluated import Cost
from localisation import provenance
from torch import Tensor
from tqdm import tqdm

from protomask.allocator import keep_memory
from protomask.commands.common import (
    add_evaluation_data_options,
    add_run_options,
    choose_device,
    dataset_for,
    names_option,
    positive,
    settle_batch,
)
from protomask.commands.locate import parse_settings
from protomask.data import Dataset
from protomask.errors import InputError, expected
from protomask.evaluation import chunk_size, locate_and_score
from protomask.files import write_with
from protomask.loading import load_model
from protomask.localisers import LOCALISERS, Localiser, image_passes_of, make_localiser
from protomask.localisers.attribution import ranges
from protomask.locating import locate
from protomask.metrics import paired_difference
from protomask.model import Contract, contract
from protomask.pairs import PairSet, draw_pairs, tensors, truth_of

CAUSAL = ("insertion-30", "deletion-30", "sufficiency-drop")
FILLS = ("", "@blur", "@road")
PLACE = ("energy", "energy-floor", "pointing-game", "iou-best", "box-iou", "top5-in-box", "part-hit", "part-hit-2r")
METRICS = (*PLACE, "deletion", "insertion", *(f"{name}{fill}" for fill in FILLS for name in CAUSAL))
NOISE = 0.02  # of an image's range


@dataclass(frozen=True, eq=False)
class Variant:
    """What is tried.

    Attributes:
        name: in the log.
        settings: as they were asked for.
        localiser: built of them.
    """

    name: str
    settings: str
    localiser: Localiser


@dataclass(frozen=True, eq=False)
class Ground:
    """What all variants are tried on."""

    model: Contract
    dataset: Dataset
    pairs: PairSet
    batch: int


def variant(text: str) -> Variant:
    """``[NAME=]METHOD[:setting=value;...]``, the values as ``protomask locate --set`` takes them."""
    head, _, settings = text.partition(":")
    name, _, method = head.rpartition("=")
    if method not in LOCALISERS:
        raise InputError(expected("--variant", "a method of `protomask methods`", repr(method)))
    given = parse_settings([item for item in settings.split(";") if item])
    return Variant(name or text, f"method={method};{settings}".rstrip(";"), make_localiser(method, given))


def tried(ground: Ground, one: Variant, metrics: Sequence[str], repeat: bool) -> dict[str, np.ndarray]:
    """metric -> [N], and ``pearson-noise`` and ``pearson-seed`` -> [N] where asked for."""
    found: dict[str, list[Tensor]] = {}
    size = chunk_size(ground.batch)
    for start in range(0, len(ground.pairs.pairs), size):
        chunk = list(ground.pairs.pairs[start : start + size])
        samples = [ground.dataset[pair.index] for pair in chunk]
        truth = truth_of(samples, chunk, ground.pairs.kind)
        located, scores = locate_and_score(
            ground.model, one.localiser, samples, chunk, truth, seed=0, batch=ground.batch, metrics=metrics
        )
        if repeat:
            images = tensors(ground.model, samples)
            pairs = [(row, pair.prototype) for row, pair in enumerate(chunk)]
            for name, (seen, seed) in {"pearson-noise": (noised(images), 0), "pearson-seed": (images, 1)}.items():
                again = locate(ground.model, seen, pairs, one.localiser, seed=seed, batch=ground.batch)
                scores[name] = pearson(located.maps, again.maps)
        for name, values in scores.items():
            found.setdefault(name, []).append(values.double().cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def noised(images: Tensor) -> Tensor:
    """[B, C, H, W] with seeded noise of :data:`NOISE` of each image's range; every image gets the same."""
    drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    return images + NOISE * ranges(images).view(-1, 1, 1, 1) * drawn


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Of maps [N, H, W]: [N], NaN where one is constant."""
    one, other = (m.flatten(1).double() - m.flatten(1).double().mean(1, keepdim=True) for m in (a, b))
    return (one * other).sum(1) / (one.square().sum(1) * other.square().sum(1)).sqrt()


def said(values: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], groups: Sequence[str]) -> Iterator[str]:
    """A cell for each score that is defined: its mean, and of a causal one the paired difference to the base."""
    for name, own in values.items():
        if not np.isfinite(own).any():
            continue
        text = f"{name} {np.nanmean(own):.3f}"
        if name.partition("@")[0] in CAUSAL and own is not base[name]:
            gap = paired_difference(own, base[name], groups)
            text += f" ({gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}])"
        yield text


def log(path: Path, row: Mapping[str, object]) -> None:
    """Add a row below those that are there; columns that the log lacks are added on the right."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, old = list(reader.fieldnames or ()), list(reader)
    columns += [name for name in row if name not in columns]

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*old, row])

    write_with(path, write)


def row(one: Variant, values: Mapping[str, np.ndarray], args: argparse.Namespace, commit: str) -> dict[str, object]:
    means = {k: f"{np.nanmean(v):.3f}" for k, v in values.items() if np.isfinite(v).any()}
    settings = ";".join(filter(None, (one.settings, f"commit={commit[:7]}" if commit else "")))
    split = f"{Path(args.model).name}, {args.data}, {args.split}"
    about = {"date": datetime.date.today().isoformat(), "variant": one.name, "settings": settings, "data": split}
    passes = Cost(float(one.localiser.passes), image_passes_of(one.localiser)).ratio(1)
    return {**about, "pairs": args.pairs, "seed": args.seed, **means, "passes": f"{passes:g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--variant", action="append", required=True, metavar="[NAME=]METHOD[:SETTINGS]", help="may be repeated"
    )
    parser.add_argument("--pairs", type=positive, default=60)
    parser.add_argument(
        "--metrics", type=names_option, default=METRICS, metavar="NAME,...", help="(default: those of the log)"
    )
    parser.add_argument("--repeat", action="store_true", help="locate again, under noise and by another seed")
    parser.add_argument("--log", type=Path, metavar="FILE", help="add a row per variant to this file")
    add_evaluation_data_options(parser)
    add_run_options(parser)
    args = parser.parse_args()
    variants = [variant(text) for text in args.variant]
    keep_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    loaded = load_model(args.model, choose_device(args.device))
    settle_batch(args, loaded)
    known, dataset = contract(loaded.model), dataset_for(args, loaded)
    drawn = draw_pairs(known, dataset, args.pairs, seed=args.seed, batch=args.batch)
    ground = Ground(known, dataset, drawn, args.batch)
    groups = tuple(pair.group for pair in drawn.pairs)
    base: Mapping[str, np.ndarray] = {}
    commit = str(provenance("search.py", args.seed, 0)["commit"])
    for one in tqdm(variants, desc="variants", disable=not args.progress):
        values = tried(ground, one, args.metrics, args.repeat)
        base = base or values
        print(f"{one.name}: " + ", ".join(said(values, base, groups)), flush=True)
        if args.log:
            log(args.log, row(one, values, args, commit))


if __name__ == "__main__":
    main()
