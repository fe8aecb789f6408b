"""``protomask locate``: regions of prototypes in images, as pictures and as numbers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protomask import gallery
from protomask.commands.common import (
    MODEL_HELP,
    add_run_options,
    add_trust,
    choose_device,
    seconds_per_pass,
    size_option,
    spell_duration,
    write_table,
)
from protomask.data import Sample, list_images, make_sample, read_image
from protomask.errors import DataError, InputError, expected
from protomask.loading import Loaded, load_model
from protomask.localisers import LOCALISERS
from protomask.locating import locate, resolve_method
from protomask.pairs import tensors
from protomask.records import Localisation
from protomask.store import ImageInfo, prepare_output, safe_name, write_regions
from protomask.targets import check_targets
from protomask.visualise.figures import save_figure

_NUMBERS = ("activation", "activation_after", "kept", "x0", "y0", "x1", "y1")
COLUMNS = ("image", "prototype", "name", "method", *_NUMBERS, "note")
IMAGES_AT_ONCE = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``locate`` and its options."""
    parser = commands.add_parser(
        "locate",
        help="find prototypes in images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find the regions of prototypes in images.\n\n"
        "Writes into --out: regions.json (COCO, pixels of the upright original), regions.csv, a panel per pair under\n"
        "panels/, and 'this looks like that' per image under looks-like/ where the model holds its source images.",
        epilog="examples:\n"
        "  protomask locate demo:protopnet photos/ --out found\n"
        "  protomask locate runs/cub bird.jpg --targets class:3 --method mdm --out found\n"
        "  protomask locate mypackage.models:load photos/ --set steps=50 --out found",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_trust(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image file, or a folder of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--method", default="mdm", choices=tuple(LOCALISERS), metavar="METHOD",
                        help="see `protomask methods` (default: %(default)s)")  # fmt: skip
    parser.add_argument("--beside", default="upsampling", metavar="METHOD",
                        help="a second method for the panels, or none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the method, such as steps=50; may be repeated")  # fmt: skip
    parser.add_argument("--targets", default="top:3", metavar="WHICH",
                        help="top:K per image, all, or class:K (default: %(default)s)")  # fmt: skip
    parser.add_argument("--region", default="percentile", choices=("percentile", "own-area"),
                        help="what a region is cut by (default: %(default)s)")  # fmt: skip
    parser.add_argument("--panels", type=int, default=None, metavar="N",
                        help="draw pictures for the first N images only (default: all)")  # fmt: skip
    parser.add_argument("--size", type=size_option, metavar="HxW", help="input size, for a model that does not tell it")
    add_run_options(parser)
    parser.set_defaults(run=run)


@dataclass
class _Results:
    """What was computed so far; written out at the end of the run, however it ends."""

    found: list[tuple[Localisation, list[ImageInfo]]] = field(default_factory=list)
    rows: list[tuple[object, ...]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> None:
    """Locate, draw, write; a corrupt image is reported and skipped, and what was computed stays."""
    out = prepare_output(args.out)
    args.device = choose_device(args.device)
    settings = parse_settings(args.settings)
    localiser, _ = resolve_method(args.method, settings)
    beside = None if args.beside in ("none", args.method) else args.beside
    if beside is not None:
        resolve_method(beside)
    paths = _paths(args.images)
    loaded = load_model(args.model, args.device, args.size, trust=args.trust)
    check_targets(args.targets, loaded.model, 1)
    _say_cost(args, loaded, localiser.passes, len(paths))
    results = _Results()
    try:
        with tqdm(total=len(paths), desc="locate", unit="image", disable=not args.progress) as bar:
            for samples in _read(paths, loaded, results.skipped, bar):
                _locate(args, loaded, samples, settings, beside, out, results)
                bar.update(len(samples))
    finally:
        _write(out, loaded, results, args.region)
    if not results.rows:
        raise DataError(expected("IMAGE", "at least one readable image", f"none of {len(paths)}"))


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """``["steps=50", "scales=6,12"]`` as settings: numbers, lists of numbers, else text."""
    settings: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(expected("--set", "NAME=VALUE", repr(pair)))
        values = [_value(part) for part in text.split(",")]
        settings[name] = tuple(values) if len(values) > 1 or name == "scales" else values[0]
    return settings


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _paths(given: Sequence[str]) -> list[tuple[str, Path]]:
    """(image_id, path): the id is relative to the folder that was named."""
    paths = []
    for text in given:
        top = Path(text)
        for path in list_images(top):
            paths.append((path.relative_to(top).as_posix() if top.is_dir() else path.name, path))
    names = [name for name, _ in paths]
    return [(name if names.count(name) == 1 else path.as_posix(), path) for name, path in paths]


def _say_cost(args: argparse.Namespace, loaded: Loaded, passes: float, images: int) -> None:
    targets = str(args.targets)
    each = int(targets.removeprefix("top:")) if targets.startswith("top:") else loaded.model.num_prototypes
    pairs = images * min(each, loaded.model.num_prototypes)
    seconds = seconds_per_pass(loaded, min(args.batch, 8), gradient=passes > 0) * max(passes, 1) * pairs
    bound = "" if not targets.startswith("class:") else "at most "
    print(
        f"{images} images, {bound}{pairs} pairs, {passes:.0f} forward + gradient passes each with {args.method}: "
        f"{bound}about {spell_duration(seconds)} on {args.device}."
    )


def _read(
    paths: Sequence[tuple[str, Path]], loaded: Loaded, skipped: list[str], bar: tqdm[object]
) -> Iterator[list[tuple[Sample, Path]]]:
    group: list[tuple[Sample, Path]] = []
    for name, path in paths:
        try:
            image = read_image(path)
            group.append((make_sample(name, image, 0, loaded.size), path))
        except DataError as error:
            skipped.append(str(error))
            tqdm.write(f"skipped: {error}")
            bar.update(1)
        if len(group) == IMAGES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _locate(
    args: argparse.Namespace,
    loaded: Loaded,
    read: list[tuple[Sample, Path]],
    settings: dict[str, Any],
    beside: str | None,
    out: Path,
    results: _Results,
) -> None:
    samples = [sample for sample, _ in read]
    images = tensors(loaded.model, samples)
    options: dict[str, Any] = {"seed": args.seed, "batch": args.batch, "region": args.region}
    first = locate(loaded.model, images, args.targets, args.method, **options, **settings)
    found = {args.method: first}
    if beside is not None:
        found = {beside: locate(loaded.model, images, first.targets, beside, **options), args.method: first}
    drawn = sum(len(infos) for _, infos in results.found)
    infos = [ImageInfo(sample.image_id, sample.geometry, str(path)) for sample, path in read]
    results.found.append((first, infos))
    for method, record in found.items():
        results.rows.extend(_rows(loaded, samples, record, method))
    count = len(samples) if args.panels is None else max(0, min(len(samples), args.panels - drawn))
    for index in range(count):
        _draw(loaded, samples[index], index, found, out)


def _rows(loaded: Loaded, samples: list[Sample], found: Localisation, method: str) -> Iterator[tuple[object, ...]]:
    for row, (image, prototype) in enumerate(found.targets):
        box = samples[image].geometry.to_source(found.boxes[row].numpy()).round(1).tolist()
        numbers = (found.activations_before[row], found.activations_after[row], found.scores[row])
        yield (
            samples[image].image_id,
            prototype,
            loaded.model.describe(prototype),
            method,
            *(f"{float(v):.5f}" for v in numbers),
            *(box if found.located[row] else [""] * 4),
            found.reasons[row],
        )


def _draw(loaded: Loaded, sample: Sample, index: int, found: dict[str, Localisation], out: Path) -> None:
    main = list(found.values())[-1]
    rows = [row for row, (image, _) in enumerate(main.targets) if image == index]
    name = safe_name(sample.image_id)
    for row in rows:
        prototype = int(main.targets.prototypes[row])
        save_figure(gallery.panel(loaded, sample, found, row), out / "panels" / f"{name}-prototype-{prototype}.png")
    figure = gallery.likeness(loaded, sample, main, rows)
    if figure is not None:
        save_figure(figure, out / "looks-like" / f"{name}.png")


def _write(out: Path, loaded: Loaded, results: _Results, region: str) -> None:
    if not results.rows:
        return
    write_regions(out / "regions.json", results.found, loaded.names(), region=region)
    write_table(out / "regions.csv", COLUMNS, results.rows)
    skipped = f", {len(results.skipped)} images skipped" if results.skipped else ""
    images = sum(len(infos) for _, infos in results.found)
    print(f"{images} images located{skipped}: {out / 'regions.json'}, {out / 'regions.csv'}, {out / 'panels'}")
