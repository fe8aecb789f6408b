"""``protomask locate``: regions of prototypes in images, as pictures and as numbers."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from protomask.commands.common import (
    MODEL_HELP,
    add_run_options,
    add_trust,
    add_window,
    choose_device,
    count_option,
    load_methods,
    seconds_of,
    settle_batch,
    size_option,
    spell_duration,
)
from protomask.commands.located import ROWS, draw, write_tables
from protomask.commands.longrun import add_long_run_options, batch_of, engine_of, run_job, terms_of, threads_of
from protomask.data import list_images
from protomask.data.levels import check_window
from protomask.errors import DataError, InputError, ModelError, expected
from protomask.jobs.folder import Folder
from protomask.jobs.locating import LocateJob, LocateTask, plan_locate
from protomask.loading import Loaded, load_model
from protomask.localisers import image_passes_of
from protomask.localisers.upsampling import coarse_maps
from protomask.locating import resolve_method
from protomask.model import device_of, untouched
from protomask.store import Plan, Run, prepare_output
from protomask.store.shards import Failure, read_failures
from protomask.targets import check_targets


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``locate`` and its options."""
    parser = commands.add_parser(
        "locate",
        help="find prototypes in images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find the regions of prototypes in images.\n\n"
        "Writes into --out: regions.json (COCO, pixels of the upright original), regions.csv, a panel per pair under\n"
        "panels/, and 'this looks like that' per image under looks-like/ where the model holds its source images: the\n"
        f"{ROWS} prototypes of the highest activation at most. Pictures of an earlier run do not stay.",
        epilog="examples:\n"
        "  protomask locate demo:protopnet photos/ --out found\n"
        "  protomask locate runs/cub bird.jpg --targets class:3 --method mdm --out found\n"
        "  protomask locate mypackage.models:load photos/ --set steps=50 --out found",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_trust(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image file, or a folder of them")
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--method", default="mdm", metavar="METHOD",
                        help="see `protomask methods` (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--beside",
        metavar="METHOD",
        help="a second method for the panels, or none (default: upsampling, where the model has maps)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the method, such as steps=50; may be repeated")  # fmt: skip
    parser.add_argument("--targets", default="top:3", metavar="WHICH",
                        help="top:K per image, all, or class:K, the prototypes of a class: its index in the model, from"
                        " 0, or its name (default: %(default)s)")  # fmt: skip
    parser.add_argument("--region", default="percentile", choices=("percentile", "own-area"),
                        help="what a region is cut by (default: %(default)s)")  # fmt: skip
    parser.add_argument("--panels", type=count_option, default=None, metavar="N",
                        help="draw pictures for the first N images only (default: all)")  # fmt: skip
    parser.add_argument("--size", type=size_option, metavar="HxW", help="input size, for a model that does not tell it")
    add_window(parser, "")
    add_run_options(parser)
    add_long_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Locate, draw, write; a corrupt image is reported and skipped, and what was computed stays."""
    out = prepare_output(args.out)
    args.device = choose_device(args.device)
    terms = terms_of(args)
    job = open_job(args, threads_of(args.threads, out))
    run_job(
        job,
        out,
        terms,
        engine_of(args, job.plan, partial(reopen_job, args, job.plan, job.task)),
        assemble=args.assemble,
        say=lambda left: _say_cost(args, job, left),
        finish=lambda folder: _finish(args, job, folder),
        rescue=lambda folder: _rescue(args, job, folder),
    )


def open_job(args: argparse.Namespace, threads: int) -> LocateJob:
    """The job that the options describe."""
    settings = parse_settings(args.settings)
    resolve_method(args.method, settings)
    methods: dict[str, dict[str, Any]] = {args.method: settings}
    if args.beside not in (None, "none", args.method):
        resolve_method(args.beside)
        methods[args.beside] = {}
    paths = _paths(args.images)
    loaded = load_model(args.model, choose_device(args.device), args.size, trust=args.trust)
    if args.beside is None and args.method != "upsampling" and _has_maps(loaded):
        methods["upsampling"] = {}
    check_targets(args.targets, loaded.model, 1)
    args.batch = batch_of(args.batch, args.memory, device_of(loaded.model).type, Path(args.out))
    settle_batch(args, loaded)
    window = loaded.window if args.window is None else check_window(args.window)
    task = LocateTask(args.targets, methods, args.seed, args.batch, args.region, threads, window)
    return LocateJob(plan_locate(loaded, paths, task), loaded, task)


def _has_maps(loaded: Loaded) -> bool:
    """Whether the model has a map that ``upsampling`` enlarges; says so where it has not."""
    image = torch.zeros((1, len(loaded.model.mean), *loaded.size), device=device_of(loaded.model))
    try:
        with untouched(loaded.model.module), torch.no_grad():
            coarse_maps(loaded.model, image)
    except ModelError as error:
        print(f"upsampling is not shown beside: {error}")
        return False
    return True


def reopen_job(args: argparse.Namespace, plan: Plan, task: LocateTask) -> LocateJob:
    """The same job in another process."""
    load_methods(args)
    return LocateJob(plan, load_model(args.model, choose_device(args.device), args.size, trust=args.trust), task)


def parse_settings(pairs: Sequence[str]) -> dict[str, object]:
    """``["steps=50", "scales=6,12", "together=false"]`` as settings: numbers, truth values, lists, else text."""
    settings: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(expected("--set", "NAME=VALUE", repr(pair)))
        values = [_value(part) for part in text.split(",")]
        settings[name] = tuple(values) if len(values) > 1 or name == "scales" else values[0]
    return settings


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _paths(given: Sequence[str]) -> list[tuple[str, Path]]:
    """(image_id, path) of each file once: the id is relative to the first folder that was named and holds it.

    It is the path where that names two images.
    """
    paths = []
    seen: set[str] = set()
    for text in given:
        top = Path(text)
        for path in list_images(top):
            file = os.path.realpath(path)
            if file not in seen:
                seen.add(file)
                paths.append((path.relative_to(top).as_posix() if top.is_dir() else path.name, path))
    count = Counter(name for name, _ in paths)
    named = [(name if count[name] == 1 else path.as_posix(), path) for name, path in paths]
    if len({name for name, _ in named}) < len(named):  # a path that is another image's name
        return [(path.as_posix(), path) for _, path in named]
    return named


def _say_cost(args: argparse.Namespace, job: LocateJob, left: float) -> None:
    images, pairs = len(job.plan.items), len(job.plan.items) * int(job.plan.about["per_image"])
    made = [resolve_method(name, dict(settings))[0] for name, settings in job.task.methods.items()]
    parts = len({shard.low for shard in job.plan.shards})  # of an image with many targets, each seen by itself
    backward, forward = sum(m.passes for m in made), sum(image_passes_of(m) for m in made)
    looked = parts * (forward + len(made))  # each method begins with the activations
    seconds = seconds_of(job.loaded, args.batch, left * pairs * backward, left * images * looked)
    already = "" if left == 1 else f"; {1 - left:.0%} is stored"
    print(
        f"{images} images, {pairs} pairs: {backward:.0f} forward + gradient passes per pair and {looked:.0f} forward "
        f"passes per image with {' and '.join(job.task.methods)}: about {spell_duration(seconds)} on {args.device}"
        f"{already}."
    )


def _finish(args: argparse.Namespace, job: LocateJob, folder: Folder) -> None:
    """The final files, and a line that says where they are."""
    out, failures = folder.path, _failures(folder.run, args.method)
    failed = {failure.item for failure in failures}
    images = write_tables(out, job.loaded, folder.run, args.method)
    if images == 0:
        came = f"none of {len(job.plan.items)}" + (f" (the first: {failures[0].reason})" if failures else "")
        raise DataError(expected("IMAGE", "at least one readable image that the method can work on", came))
    drawn = draw(folder, job.loaded, args.method, args.panels, progress=args.progress)
    skipped = f", {len(failed)} images skipped" if failed else ""
    written = ("regions.json", "regions.csv", *sorted({name.split("/")[0] for name in drawn}, reverse=True))
    print(f"{images} images located{skipped}: {', '.join(str(out / name) for name in written)}")


def _failures(run: Run, method: str) -> list[Failure]:
    """What one method failed on; where it is the other one, an image was located all the same."""
    stored = [shard for shard in run.plan.shards if shard.method == method and run.stored(shard)]
    return list(dict.fromkeys(failure for shard in stored for failure in read_failures(run.path(shard))))


def _rescue(args: argparse.Namespace, job: LocateJob, folder: Folder) -> None:
    """Tables of what an interrupted run has stored."""
    if len(folder.run.missing()) < len(folder.run):
        write_tables(folder.path, job.loaded, folder.run, args.method)
