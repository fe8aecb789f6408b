"""What a map costs: the engine against the floor, the presets against a literal MDM and against other methods.

One run measures everything, interleaved: every round times every method once, so that a machine that slows down slows
all of them. Reported are ratios of medians, with the quartiles of the times; absolute times are in the JSON file only.

*floor*: forward pass and gradient with respect to the input of the frozen network as it was loaded, in channels-last,
at the batch size that is fastest for it. *naive*: the mask method as one would first write it: one pair, one scale and
one step at a time, parameters not frozen, 5 scales x 150 steps. Its step in floor passes, under each table's heading,
is what passes that are well filled can give at best; what methods are faster than that, they owe to fewer passes.

On small networks all is timed whole. On large ones naive is timed over 10 steps and multiplied, as it does next to
nothing once. A method of more than 10 passes is timed in two parts of its work, in turn in each round, which differ in
their number of passes alone (of the same kinds, in the proportion of those that are left), and a line through the two
is extended to all passes: what a call does once (a look at the network, fills, the pass after) counts once. Each pass
has as many images as there are pairs, so that all are equally full. The copy with folded batch norms is kept from call
to call and is made in the round that is not counted. ::

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
from functools import partial
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

SCALES, STEPS, TIMED_STEPS = (6, 8, 12, 16, 24), 150, 2
PRESETS = ("mdm-fast", "mdm", "mdm-best")
OTHERS = ("single-mask", "smoothgrad", "occlusion", "rise", "extremal")
BATCHES = (4, 8, 16, 32, 64)
FEW_BATCHES = (1, 2, 4, 8, 16)
SLOW, FEW_PAIRS = ("occlusion", "rise", "extremal"), 8  # methods that are timed on the first few pairs only
# Pairs on a CPU, so that a round takes a minute or two: a floor pass of VGG19 is half a second, MobileNetV2's a tenth.
PAIRS = {"mobilenet_v2": 8, "resnet34": 8}
OTHER_PAIRS = 4
FEW_PASSES = 10  # methods of no more are timed whole on large networks as well

Settings = Mapping[str, object]
# Two parts of a method's work. Of the presets' passes, from the one part to the other as from there to the whole, as
# many per gradient are steps: the first step needs no pass, and the others take two for each mask. All choose.
PARTS: dict[str, tuple[Settings, Settings]] = {
    "mdm": ({"steps": 2, "gradients": 2, "path": 2}, {"steps": 4, "gradients": 3, "path": 3}),
    "mdm-best": ({"steps": 2, "gradients": 4, "path": 4}, {"steps": 3, "gradients": 5, "path": 5}),
    "single-mask": ({"steps": 2}, {"steps": 4}),
    "smoothgrad": ({"samples": 2}, {"samples": 8}),
    "extremal": ({"steps": 1}, {"steps": 2}),
    "loop, scales apart": ({"steps": 2}, {"steps": 4}),
    "loop, scales together": ({"steps": 2}, {"steps": 6}),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and the pairs that it is timed on.

    Attributes:
        name: in the table.
        request: the pairs.
        whole: whether all methods are timed whole; else naive over :data:`TIMED_STEPS` steps per scale, and others as
            :data:`PARTS` says.
        batch: images in a pass.
    """

    name: str
    request: Request
    whole: bool
    batch: int


@dataclass(frozen=True)
class Work:
    """One thing to time.

    Attributes:
        parts: one run with its number of passes (or steps), or two with different numbers.
        passes: of the whole.
        pairs: that a run is on; images, for a floor.
        seconds: of the whole, per pair, one for each round.
    """

    parts: tuple[tuple[Callable[[], object], float], ...]
    passes: float
    pairs: int
    seconds: list[float] = field(default_factory=list)

    def add(self, spent: Sequence[float]) -> None:
        """A round's seconds of each part."""
        numbers = [number for _, number in self.parts]
        self.seconds.append(extended(numbers, spent, self.passes) / self.pairs)


def extended(numbers: Sequence[float], spent: Sequence[float], whole: float) -> float:
    """Seconds of the whole: on the line through two parts, in proportion where there is one."""
    if len(numbers) == 1:
        return spent[0] * (whole / numbers[0])
    slope = (spent[1] - spent[0]) / (numbers[1] - numbers[0])
    return spent[1] + slope * (whole - numbers[1])


def planted(name: str, path: str, pairs: int, batch: int, device: str) -> Subject:
    model = load_model(path, device).model
    known = contract(model)
    data = Planted("birds", "test", count=pairs, size=96, classes=12, seed=40)
    images = tensors(known, [data[i] for i in range(pairs)])
    return Subject(name, requested(known, images), True, batch)


def pretrained(backbone: str, size: int, pairs: int, batch: int, device: str) -> Subject:
    """A ProtoPNet with random weights: timing does not ask what they are. Pairs fill whole passes."""
    if device == "cpu":
        pairs = min(pairs, PAIRS.get(backbone, OTHER_PAIRS))
    batch = min(batch, pairs)
    pairs -= pairs % batch
    torch.manual_seed(0)
    features = build_features(backbone)
    model = ProtoPNet(features, (40, 128, 1, 1), 8, img_size=size).to(device).eval()
    known = contract(protopnet_ext.wrap(model))
    images = torch.randn(pairs, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    return Subject(f"{backbone} at {size} px", requested(known, images), False, batch)


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
        run = torch.enable_grad()(partial(floor, request.model, images, prototypes))
        works[f"floor@{batch}"] = Work(((run, 1),), 1, batch)
    return works


def method_work(subject: Subject, name: str, localiser: Localiser) -> Work:
    """The method, whole or in two parts."""
    ready = replace(subject.request, batch=subject.batch)
    if name in SLOW:
        ready = first(ready, FEW_PAIRS if subject.whole else max(1, len(ready.images) // 2))
    whole = all_passes(localiser)
    parts = [localiser]
    if not subject.whole and whole > FEW_PASSES:
        parts = [replace(localiser, **settings) for settings in parts_of(name, subject.batch)]  # type: ignore[type-var]
    return Work(tuple((partial(one, ready), all_passes(one)) for one in parts), whole, len(ready.targets))


def first(request: Request, images: int) -> Request:
    rows = request.targets.images < images
    return replace(
        request,
        images=request.images[:images],
        targets=request.targets[rows],
        before=request.before[rows],
        floors=request.floors[rows],
    )


def parts_of(name: str, batch: int) -> tuple[Settings, ...]:
    """Settings of the two parts; none for a method that is not timed on large networks."""
    if name == "rise":
        return {"masks": batch}, {"masks": 3 * batch}
    return PARTS.get(name, ())


def all_passes(localiser: Localiser) -> float:
    """Per pair or per image: a method has the one or the other."""
    return float(localiser.passes) or image_passes_of(localiser)


def works_of(subject: Subject, methods: Mapping[str, Localiser]) -> dict[str, Work]:
    """Everything that is timed, by name."""
    steps = STEPS if subject.whole else TIMED_STEPS
    works = {"naive": Work(((torch.enable_grad()(partial(naive, subject.request, steps)), steps),), STEPS, 1)}
    works |= floor_works(subject, BATCHES if subject.whole else [b for b in FEW_BATCHES if b <= 2 * subject.batch])
    for name, localiser in methods.items():
        if subject.whole or all_passes(localiser) <= FEW_PASSES or parts_of(name, subject.batch):
            works[name] = method_work(subject, name, localiser)
    return works


def time_all(subject: Subject, works: Mapping[str, Work], rounds: int) -> None:
    """Every work once per round; the first round warms up and is not counted."""
    for turn in range(rounds + 1):
        for work in works.values():
            spent = [time_one(subject, run) for run, _ in work.parts]
            if turn:
                work.add(spent)


def time_one(subject: Subject, run: Callable[[], object]) -> float:
    """Seconds of one run on the frozen network."""
    with untouched(subject.request.model.module), torch.no_grad():
        synchronise(subject.request.images.device)
        start = time.perf_counter()
        run()
        synchronise(subject.request.images.device)
        return time.perf_counter() - start


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
            "pairs": works[name].pairs,
            "speed-up over naive": medians["naive"] / medians[name],
            "floor passes": medians[name] / floors[best],
            "a pass in floors": medians[name] / passes / floors[best] if passes else None,
            "a mask-step: speed-up over naive": (medians["naive"] / (len(SCALES) * STEPS)) / (medians[name] / passes)
            if passes
            else None,
        }
    return {
        "timed": timed(subject),
        "best floor": best,
        "a step of naive in floors": medians["naive"] / (len(SCALES) * STEPS) / floors[best],
        "rows": rows,
        "seconds per unit": {n: {"median": medians[n], "quartiles": quartiles(t)} for n, t in times.items()},
    }


def timed(subject: Subject) -> str:
    if subject.whole:
        return "whole"
    naive_steps = f"naive over {len(SCALES) * TIMED_STEPS} of {len(SCALES) * STEPS} steps and multiplied"
    return f"{naive_steps}; methods of over {FEW_PASSES} passes in two parts, and the line through them extended"


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
        f"naive step = {result['a step of naive in floors']:.2f} floors: what well-filled passes can give at best.",
        "",
        "| method | passes | pairs | times the speed of naive | cost in floor passes | a pass in floors | spread |",
        "|---|---|---|---|---|---|---|",
    ]
    rows, times = result["rows"], result["seconds per unit"]
    assert isinstance(rows, dict)
    assert isinstance(times, dict)
    for method, row in rows.items():
        median, (low, high) = times[method]["median"], times[method]["quartiles"]
        each = "-" if row["a pass in floors"] is None else f"{row['a pass in floors']:.2f}"
        lines.append(
            f"| {method} | {row['passes']:.0f} | {row['pairs']} | {row['speed-up over naive']:.0f} "
            f"| {row['floor passes']:.1f} | {each} | {100 * (high - low) / median:.0f} % |"
        )
    return "\n".join([*lines, ""])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", default="1,2", help="numbers of threads, each a part of the run")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--pairs", type=int, default=48, help="pairs that a method is timed on, at most")
    parser.add_argument("--batch", type=int, default=32, help="images in a pass, at most")
    parser.add_argument("--planted", default="demo:protopnet,demo:xprotonet", help="planted models")
    parser.add_argument("--networks", default="mobilenet_v2:225,resnet34:224,vgg19:224", help="backbone:size, or none")
    parser.add_argument("--methods", default=",".join([*PRESETS, *OTHERS]))
    return parser.parse_args()


def subjects(args: argparse.Namespace) -> list[Callable[[], Subject]]:
    """How to make each; one is in memory at a time."""
    makers: list[Callable[[], Subject]] = []
    for path in filter(None, args.planted.split(",")):
        makers.append(partial(planted, path, path, args.pairs, args.batch, args.device))
    for text in filter(lambda t: t and t != "none", args.networks.split(",")):
        name, _, size = text.partition(":")
        makers.append(partial(pretrained, name, int(size), args.pairs, args.batch, args.device))
    return makers


def chosen(text: str) -> dict[str, Localiser]:
    """The methods, and two plain MDMs, whose step is one pass: the loop itself against the floor."""
    methods = {name: make_localiser(name, {}) for name in text.split(",") if name in LOCALISERS}
    loop = {"scales": (6, 12, 24), "necessity_weight": 0.0, "steps": 21, "gradient_power": 0.0}
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
            works = works_of(subject, methods)
            time_all(subject, works, args.rounds)
            result = summary(subject, works, methods)
            report["results"][f"{subject.name}, {threads} threads"] = result
            text.append(table(subject.name, threads, result))
            print(text[-1], flush=True)
            write_text(out / "speed.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "table.md", "\n".join(text))


if __name__ == "__main__":
    main()
