"""Carrying out a training run, resumable: the same settings in the same folder go on where it stopped.

After every step ``train-state.pt`` is written; on a CPU with the same number of threads an interrupted run ends with
the same weights as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from protomask.checkpoint import Description, PrototypeSource, save_checkpoint
from protomask.data import OWN_OPTIONS, open_dataset
from protomask.data.levels import Window, check_window
from protomask.data.sample import Dataset
from protomask.errors import InputError, expected
from protomask.files import prepare_output, write_text
from protomask.localisers import make_localiser
from protomask.training.backbones import has_identity_statistics, load_weights
from protomask.training.batches import Pictures, in_order, read_pictures
from protomask.training.model import ReferenceModel
from protomask.training.run import Entry, TrainingRun
from protomask.training.schedule import Step, is_tested, schedule
from protomask.training.settings import BaseSettings
from protomask.training.state import file_digest, fingerprint, load_state, pixel_means, save_state

LOG = "train.jsonl"
_DATA_OPTIONS = {"root", "crop", "count", "scene", "classes", "species"}.union(*OWN_OPTIONS.values())


@dataclass(frozen=True)
class Recipe:
    """What a family brings to a run.

    Attributes:
        describe: the checkpoint's description, from settings and training set.
        build: the module of a description, with initial weights.
        run: the family's :class:`TrainingRun`.
    """

    describe: Callable[[Any, Dataset], Description]
    build: Callable[[Description], ReferenceModel]
    run: Callable[..., TrainingRun]


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        folder: the checkpoint, which :func:`protomask.checkpoint.load_checkpoint` reads.
        test_accuracy, train_accuracy: in [0, 1], on images that are not augmented.
        history: one entry per step, as in ``train.jsonl``.
    """

    folder: Path
    test_accuracy: float
    train_accuracy: float
    history: tuple[Entry, ...]

    def summary(self) -> str:
        """One line."""
        return f"test accuracy {self.test_accuracy:.4f}, train {self.train_accuracy:.4f}: {self.folder}"


def train_command(recipe: Recipe, settings: BaseSettings, args: argparse.Namespace) -> None:
    """``protomask train FAMILY``: open the data that the options name, train, say how it ended.

    Raises:
        InputError: an option out of range, other settings or data than the run in the folder began with, or a training
            that diverged.
        DataError: the data's files are missing or malformed.
        CheckpointError: the weights do not fit.
        ResourceError: the folder cannot be written.
    """
    out = prepare_output(args.out)
    options = {name: getattr(args, name) for name in _DATA_OPTIONS if getattr(args, name, None) not in (None, False)}
    train_set, test_set = (
        open_dataset(args.data, split=split, size=settings.size, seed=settings.seed, **options)
        for split in ("train", "test")
    )
    result = fit(recipe, settings, train_set, test_set, out)
    tqdm.write(result.summary())


def fit(
    recipe: Recipe, settings: BaseSettings, train: Dataset, test: Dataset, out: str | os.PathLike[str]
) -> TrainResult:
    """Train, or go on with, the run in ``out``; at the end a checkpoint lies there.

    Beside the checkpoint: ``train-state.pt``, ``train.jsonl`` (a line per step), ``prototypes/{j}.png`` (the image each
    prototype was taken from, at the model's size) and ``prototypes/regions.json``.

    Raises:
        InputError: other settings or data than the run in ``out`` began with, train and test differ in classes, or a
            step's costs or weights became NaN or infinite; the state of the step before stays.
        DataError: a data set is empty or hands out samples of another size.
        CheckpointError: weights or state cannot be read.
        ResourceError: ``out`` cannot be written.
    """
    folder = prepare_output(Path(out))
    if tuple(train.class_names) != tuple(test.class_names):
        raise InputError(expected("test.class_names", f"those of train, {list(train.class_names)}", test.class_names))
    description = recipe.describe(settings, train)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        model, frozen_norm = _initial(settings, recipe.build(description))
        pictures = [_read(data, settings) for data in (train, test)]
        identity = _identity(settings, train, *pictures)
        watch = _watch(settings.progress)
        run = recipe.run(settings, model, pictures[0], pictures[1], folder, frozen_norm, watch)
        data = {"name": train.name, "train": len(run.train), "test": len(run.test), "window": _window(train)}
        return _carry_out(run, identity, description, data)


def base_description(settings: BaseSettings, data: Dataset) -> dict[str, Any]:
    """What every family's description takes from settings and training set."""
    classes = len(data.class_names)
    return {
        "backbone": settings.backbone,
        "prototype_shape": (settings.prototypes_per_class * classes, settings.prototype_depth, 1, 1),
        "num_classes": classes,
        "add_on": settings.add_on,
        "mean": settings.mean,
        "std": settings.std,
        "size": settings.size,
        "crop": settings.crop,
        "class_names": tuple(str(name) for name in data.class_names),
    }


def _carry_out(
    run: TrainingRun, identity: dict[str, Any], description: Description, data: dict[str, Any]
) -> TrainResult:
    steps = schedule(run.settings)
    history = _resume(run, identity)
    if run.settings.progress:
        _say(_forecast(run, steps, len(history)))
    for number in range(len(history), len(steps)):
        history.append(_timed(run, steps[number], number, last=number == len(steps) - 1))
        # The last layer's epochs take a moment, the file may take longer: they are begun again together.
        if [step.kind for step in steps[number : number + 2]] != ["last", "last"]:
            save_state(run.folder, identity, _state(run, history))
        _write_log(run.folder, history)
    return _finish(run, history, description, data)


def _timed(run: TrainingRun, step: Step, number: int, *, last: bool) -> Entry:
    torch.manual_seed(_step_seed(run.settings.seed, number))  # for a backbone with dropout; restored by fit
    start = time.perf_counter()
    entry = run.do(step, number)
    if last or is_tested(step, run.settings):
        entry["test_accuracy"] = run.accuracy()
    seconds = round(time.perf_counter() - start, 3)
    entry = {"step": number + 1, "stage": step.kind, "epoch": step.epoch, **entry, "seconds": seconds}
    if run.settings.progress:
        _say(_line(entry))
    return entry


def _initial(settings: BaseSettings, model: ReferenceModel) -> tuple[ReferenceModel, bool]:
    """The model before training, and whether its backbone's batch norm keeps its statistics."""
    folded = False
    if settings.weights is not None:
        load_weights(model.features, settings.weights)
        folded = has_identity_statistics(model.features)
    frozen = settings.batch_norm == "eval" or (settings.batch_norm == "auto" and folded)
    if frozen and settings.batch_norm == "auto" and settings.progress:
        _say("batch norm was folded into these weights: the backbone's stays in evaluation mode (--batch-norm train)")
    return model.to(_device(settings.device)).to(memory_format=torch.channels_last), frozen


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(expected("device", "auto, or a device that this PyTorch can use", repr(name))) from error
    return device


def _read(data: Dataset, settings: BaseSettings) -> Pictures:
    watch = _watch(settings.progress)
    return read_pictures(
        data,
        settings.size,
        lambda indices: watch(indices, f"read {data.name}", len(indices)),
        multi_label=settings.is_multi_label(),
    )


def _identity(settings: BaseSettings, data: Dataset, train: Pictures, test: Pictures) -> dict[str, Any]:
    window = _window(data)
    return {
        **settings.identity(),
        "weights": None if settings.weights is None else file_digest(settings.weights),
        "class_names": [str(name) for name in data.class_names],
        "window": None if window is None else list(window),
        "training images": fingerprint(train),
        "training pixels": pixel_means(train),
        "test images": fingerprint(test),
        "test pixels": pixel_means(test),
    }


def _window(data: Dataset) -> Window | None:
    """What the data set scales pixels of more than 8 bits by."""
    try:
        return check_window(getattr(data, "window", None))
    except InputError:  # what a data set of the user's own calls so
        return None


def _resume(run: TrainingRun, identity: dict[str, Any]) -> list[Entry]:
    state = load_state(run.folder, identity)
    if state is None:
        return []
    run.model.load_state_dict(state["model"])
    for name, optimiser in run.optimisers.items():
        optimiser.load_state_dict(state["optimisers"][name])
    run.scheduler.load_state_dict(state["scheduler"])
    run.sources = tuple(PrototypeSource(**source) for source in state["sources"])
    history: list[Entry] = state["history"]
    return history


def _state(run: TrainingRun, history: list[Entry]) -> dict[str, Any]:
    return {
        "model": run.model.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in run.optimisers.items()},
        "scheduler": run.scheduler.state_dict(),
        "sources": [asdict(source) for source in run.sources],
        "history": history,
    }


def _finish(run: TrainingRun, history: list[Entry], description: Description, data: dict[str, Any]) -> TrainResult:
    test, train = run.accuracy("test"), run.accuracy("train")
    extra = {
        "training": {**asdict(run.settings), "weights": run.settings.weights and Path(run.settings.weights).name},
        "frozen_batch_norm": run.frozen_norm,
        "data": data,
        "test_accuracy": test,
        "train_accuracy": train,
        "torch": torch.__version__,
    }
    final = {**vars(description), "prototypes": run.sources, "extra": extra}
    save_checkpoint(run.folder, run.model.eval(), Description(**final))
    return TrainResult(run.folder, test, train, tuple(history))


def _write_log(folder: Path, history: list[Entry]) -> None:
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in history)
    write_text(folder / LOG, text)


def _step_seed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**64  # what torch takes; smaller seeds stay what they are


def _forecast(run: TrainingRun, steps: tuple[Step, ...], done: int) -> str:
    """What the rest of a run will cost, from a few batches on a copy of the model."""
    left = [step.kind for step in steps[done:]]
    # The last layer's tests need no pass: what it is fed is known by then.
    tested = 1 + sum(step.kind != "last" and is_tested(step, run.settings) for step in steps[done:])
    if not left:
        return f"nothing left to do in {run.folder}"
    seconds = _measure(run)
    train_batches, test_batches = (len(in_order(len(p), run.settings.batch)) for p in (run.train, run.test))
    once = train_batches * seconds["push"]
    parts = {
        "warm-up": left.count("warm") * train_batches * seconds["warm"],
        "joint": left.count("joint") * train_batches * seconds["joint"],
        "push and last layer": left.count("push") * 2 * once + (once if left[0] == "last" else 0),
        "tests": tested * test_batches * seconds["push"],
    }
    if "locate" in left:
        passes = make_localiser("mdm", {}).passes * run.model.num_prototypes
        parts["regions"] = passes * seconds["joint"] / run.settings.batch
    told = ", ".join(f"{name} {_minutes(value)}" for name, value in parts.items() if value)
    joint = f"{seconds['joint']:.2f} s per joint batch of {run.settings.batch}"
    start = f"resuming after step {done} of {len(steps)}: " if done else ""
    return f"{start}about {_minutes(sum(parts.values()))} on {run.device} ({joint}; {told})"


def _measure(run: TrainingRun) -> dict[str, float]:
    """Seconds per batch of each kind, the faster of two, on copies that are thrown away."""
    kind_of_run = type(run)
    copied = copy.deepcopy(run.model)
    trial = kind_of_run(run.settings, copied, run.train, run.test, run.folder, run.frozen_norm, run.watch)
    group = in_order(len(run.train), run.settings.batch)[:1]
    seconds: dict[str, float] = {}
    for kind in ("push", "warm", "joint"):
        trial.train_mode(kind)
        for _ in range(2):
            start = time.perf_counter()
            for images, labels in trial.batches(run.train, group, 0, trial.augment if kind != "push" else None):
                if kind == "push":
                    with torch.no_grad():
                        float(trial.model.eval()(images)[0].sum())
                else:
                    trial.step(kind, images, labels)
            seconds[kind] = min(seconds.get(kind, float("inf")), time.perf_counter() - start)
    return seconds


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _line(entry: Entry) -> str:
    shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in entry.items()}
    head = f"{shown.pop('step'):>4}  {shown.pop('stage'):<6} {shown.pop('epoch'):>3}"
    return head + "".join(f"  {name} {value}" for name, value in shown.items())


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _watch(progress: bool) -> Any:
    def watch(items: Iterable[Any], name: str, total: int) -> Iterator[Any]:
        return iter(tqdm(items, desc=name, total=total, disable=not progress, leave=False))

    return watch
