"""What a map costs: the engine against the floor, the presets against a literal MDM and against other methods.

One run measures everything, interleaved: every round times every method once, so that a machine that slows down slows
all of them. Reported are ratios of medians, with the quartiles of the times; absolute times are in the JSON file only.

*floor*: forward pass and gradient with respect to the input of the frozen network as it was loaded, in channels-last,
at the batch size that is fastest for it. *naive*: the mask method as one would first write it: one pair, one scale and
one step at a time, parameters not frozen, 5 scales x 150 steps. On large networks 20 steps of it, and a part of the
work of every other method, are timed and multiplied; the table says so. What a call does once (folding, fills, the pass
after) is multiplied with it, so these rows are upper bounds. ::

    python benchmarks/speed.py --threads 1,2 --out benchmarks/results/speed
    python benchmarks/speed.py --device cuda --out benchmarks/results/speed-cuda
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import protopnet_ext
from protomask.allocator import keep_memory
from protomask.commands.common import versions
from protomask.data import Planted
from protomask.files import write_text
from protomask.loading import load_model
from protomask.localisers import LOCALISERS, Localiser, Request, image_passes_of, make_localiser
from protomask.locating import measure
from protomask.model import Contract, contract, untouched
from protomask.pairs import tensors
from protomask.records import Targets
from protomask.store import prepare_output
from protomask.training.backbones import build_features
from protopnet_ext.model import ProtoPNet

SCALES, STEPS, TIMED_STEPS = (6, 8, 12, 16, 24), 150, 4
PRESETS = ("mdm-fast", "mdm", "mdm-best")
OTHERS = ("single-mask", "smoothgrad", "occlusion", "rise", "extremal")
BATCHES = (4, 8, 16, 32, 64)
FEW_BATCHES = (2, 4, 8, 16)
SLOW, FEW_PAIRS = ("occlusion", "rise", "extremal"), 8  # methods that are timed on the first few pairs only
# On large networks a method is timed over a part of its work and multiplied, as the literal one is.
SHORT: dict[str, dict[str, object]] = {
    **{name: {"steps": 2, "gradients": 1} for name in PRESETS},  # the first step needs no pass
    "single-mask": {"steps": 2},
    "smoothgrad": {"samples": 2},
    "rise": {"masks": 12},
    "extremal": {"steps": 1},
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and the pairs that it is timed on.

    Attributes:
        name: in the table.
        request: the pairs.
        whole: whether methods are timed whole; else the literal one over :data:`TIMED_STEPS` steps per scale and others
            as :data:`SHORT` says, and multiplied.
    """

    name: str
    request: Request
    whole: bool


@dataclass(frozen=True)
class Work:
    """One thing to time: what to run, and how many units (pairs, images) a run is; a fraction where it is a part."""

    run: Callable[[], object]
    units: float
    seconds: list[float] = field(default_factory=list)


def planted(name: str, path: str, pairs: int, device: str) -> Subject:
    model = load_model(path, device).model
    known = contract(model)
    data = Planted("birds", "test", count=pairs, size=96, classes=12, seed=40)
    images = tensors(known, [data[i] for i in range(pairs)])
    return Subject(name, requested(known, images), True)


def pretrained(name: str, backbone: str, size: int, pairs: int, device: str) -> Subject:
    """A ProtoPNet with random weights: timing does not ask what they are."""
    torch.manual_seed(0)
    features = build_features(backbone)
    model = ProtoPNet(features, (40, 128, 1, 1), 8, img_size=size).to(device).eval()
    known = contract(protopnet_ext.wrap(model))
    images = torch.randn(pairs, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    return Subject(name, requested(known, images), False)


def requested(model: Contract, images: Tensor) -> Request:
    """Each image's most activated prototype."""
    with untouched(model.module), torch.no_grad():
        start = measure(model, images, "top:1", 16)
    targets = Targets(start.targets.images.to(images.device), start.targets.prototypes.to(images.device))
    return Request(model, images, targets, start.before, start.floors)


def naive(request: Request, steps: int) -> None:
    """The first pair's masks, as the method reads: nothing batched, frozen or folded."""
    model, image = request.model, request.images[:1]
    prototype, target = int(request.targets.prototypes[0]), request.before[0]
    fill = torch.zeros_like(image)
    for parameter in model.module.parameters() if model.module is not None else ():
        parameter.requires_grad_(True)
    masks = []
    for scale in SCALES:
        vector = torch.ones(1, 1, scale, scale, device=image.device, requires_grad=True)
        optimiser = torch.optim.Adam([vector], lr=0.1)
        for _ in range(steps):
            mask = F.interpolate(vector.clamp(0, 1), size=image.shape[-2:], mode="bilinear", align_corners=False)
            activation = model.activations(mask * image + (1 - mask) * fill)[0, prototype]
            loss = (1 - activation / target).square() + 2 * mask.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        masks.append(mask.detach())
    torch.stack(masks).mean(0)


def floor(model: Contract, images: Tensor, prototypes: Tensor) -> None:
    """Forward pass and input gradient, and nothing else."""
    leaf = images.detach().requires_grad_()
    torch.autograd.grad(model.activations(leaf, prototypes).sum(), leaf)


def floor_works(subject: Subject, batches: Sequence[int]) -> dict[str, Work]:
    """The floor at several batch sizes; the fastest counts."""
    request, works = subject.request, {}
    for batch in batches:
        rows = torch.arange(batch, device=request.images.device) % len(request.images)
        images = request.images[rows].contiguous(memory_format=torch.channels_last)
        prototypes = request.targets.prototypes[rows]
        works[f"floor@{batch}"] = Work(lambda i=images, p=prototypes: floor(request.model, i, p), batch)
    return works


def method_work(subject: Subject, name: str, localiser: Localiser, batch: int) -> Work:
    ready = Request(**{**vars(subject.request), "batch": batch})
    if name in SLOW:
        rows = ready.targets.images < FEW_PAIRS
        kept = {"targets": ready.targets[rows], "before": ready.before[rows], "floors": ready.floors[rows]}
        ready = Request(**{**vars(ready), **kept, "images": ready.images[:FEW_PAIRS]})
    factor = 1.0
    if not subject.whole:
        whole = localiser
        localiser = replace(whole, **SHORT.get(name, {"steps": 2}))  # type: ignore[type-var]
        factor = all_passes(whole) / all_passes(localiser)
    return Work(lambda: localiser(ready), len(ready.targets) / factor)


def all_passes(localiser: Localiser) -> float:
    """Per pair or per image: a method has the one or the other."""
    return float(localiser.passes) or image_passes_of(localiser)


def works_of(subject: Subject, methods: Mapping[str, Localiser], batch: int) -> dict[str, Work]:
    steps = STEPS if subject.whole else TIMED_STEPS
    works = {"naive": Work(lambda: naive(subject.request, steps), steps / STEPS)}
    works |= floor_works(subject, BATCHES if subject.whole else FEW_BATCHES)
    for name, localiser in methods.items():
        if subject.whole or name in SHORT or name.startswith("loop"):
            works[name] = method_work(subject, name, localiser, batch)
    return works


def time_all(subject: Subject, works: Mapping[str, Work], rounds: int) -> None:
    """Every work once per round; the first round warms up and is not counted."""
    model = subject.request.model
    for turn in range(rounds + 1):
        for name, work in works.items():
            with untouched(model.module):
                synchronise(subject.request.images.device)
                start = time.perf_counter()
                if name == "naive":
                    work.run()
                else:
                    with torch.no_grad():
                        work.run() if not name.startswith("floor") else torch.enable_grad()(work.run)()
                synchronise(subject.request.images.device)
                if turn:
                    work.seconds.append((time.perf_counter() - start) / work.units)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(subject: Subject, works: Mapping[str, Work], methods: Mapping[str, Localiser]) -> dict[str, object]:
    """Medians and quartiles in seconds per unit, and the ratios that are asked for."""
    times = {name: work.seconds for name, work in works.items()}
    medians = {name: statistics.median(t) for name, t in times.items()}
    floors = {name: s for name, s in medians.items() if name.startswith("floor")}
    best = min(floors, key=lambda name: floors[name])
    rows = {}
    for name, localiser in methods.items():
        if name not in works:
            continue
        passes = float(localiser.passes)
        rows[name] = {
            "passes": passes,
            "speed-up over naive": medians["naive"] / medians[name],
            "floor passes": medians[name] / floors[best],
            "a pass in floors": medians[name] / passes / floors[best] if passes else None,
            "a mask-step: speed-up over naive": (medians["naive"] / (len(SCALES) * STEPS)) / (medians[name] / passes)
            if passes
            else None,
        }
    return {
        "timed": "whole" if subject.whole else "naive over 20 of 750 steps, the others over a part, and multiplied",
        "best floor": best,
        "rows": rows,
        "seconds per unit": {n: {"median": medians[n], "quartiles": quartiles(t)} for n, t in times.items()},
    }


def quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def hardware(device: str) -> dict[str, str]:
    chip = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        chip = names[0] if names else chip
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {"cpu": chip, "cores": str(os.cpu_count()), "gpu": card}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(name: str, threads: int, result: Mapping[str, object]) -> str:
    lines = [
        f"### {name}, {threads} thread{'s' if threads > 1 else ''} (timed: {result['timed']})",
        "",
        "| method | passes | times the speed of naive | cost in floor passes | a pass in floors | spread |",
        "|---|---|---|---|---|---|",
    ]
    rows, times = result["rows"], result["seconds per unit"]
    assert isinstance(rows, dict)
    assert isinstance(times, dict)
    for method, row in rows.items():
        median, (low, high) = times[method]["median"], times[method]["quartiles"]
        each = "-" if row["a pass in floors"] is None else f"{row['a pass in floors']:.2f}"
        lines.append(
            f"| {method} | {row['passes']:.0f} | {row['speed-up over naive']:.0f} | {row['floor passes']:.1f} | {each} "
            f"| {100 * (high - low) / median:.0f} % |"
        )
    return "\n".join([*lines, ""])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", default="1,2", help="numbers of threads, each a part of the run")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--pairs", type=int, default=48, help="pairs that a batched method is timed on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--planted", default="demo:protopnet,demo:xprotonet", help="planted models")
    parser.add_argument("--networks", default="mobilenet_v2:225,resnet34:224,vgg19:224", help="backbone:size, or none")
    parser.add_argument("--methods", default=",".join([*PRESETS, *OTHERS]))
    return parser.parse_args()


def subjects(args: argparse.Namespace) -> list[Callable[[], Subject]]:
    """How to make each; one is in memory at a time."""
    makers: list[Callable[[], Subject]] = []
    for path in filter(None, args.planted.split(",")):
        makers.append(lambda p=path: planted(p, p, args.pairs, args.device))
    few = max(2, args.pairs // 6)
    for text in filter(lambda t: t and t != "none", args.networks.split(",")):
        name, _, size = text.partition(":")
        makers.append(lambda n=name, s=int(size), few=few: pretrained(f"{n} at {s} px", n, s, few, args.device))
    return makers


def chosen(text: str) -> dict[str, Localiser]:
    """The methods, and two plain MDMs, whose step is one pass: the loop itself against the floor."""
    methods = {name: make_localiser(name, {}) for name in text.split(",") if name in LOCALISERS}
    loop = {"scales": (6, 12, 24), "necessity_weight": 0.0, "steps": 21, "gradients": 0}
    methods["loop, scales apart"] = make_localiser("mdm", {**loop, "together": False})
    methods["loop, scales together"] = make_localiser("mdm", {**loop, "together": True})
    return methods


def main() -> None:
    args = options()
    keep_memory()
    out = prepare_output(args.out)
    methods = chosen(args.methods)
    report = {"hardware": hardware(args.device), "commit": commit(), "seed": 0, "rounds": args.rounds}
    report |= {"versions": versions(), "results": {}}
    text = []
    for make in subjects(args):
        for threads in [int(t) for t in args.threads.split(",")]:
            torch.set_num_threads(threads)
            subject = make()
            works = works_of(subject, methods, args.batch)
            time_all(subject, works, args.rounds)
            result = summary(subject, works, methods)
            report["results"][f"{subject.name}, {threads} threads"] = result
            text.append(table(subject.name, threads, result))
            print(text[-1], flush=True)
            write_text(out / "speed.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "table.md", "\n".join(text))


if __name__ == "__main__":
    main()
