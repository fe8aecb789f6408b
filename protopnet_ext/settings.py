"""What a training run is told: one frozen record, and the command line's options for it.

Learning rates, costs and the order of the stages are those of Chen et al. 2019. Scaled down for small data are the
numbers of epochs: upstream trains 1,000 epochs at most, with a push after every tenth, on 30 augmented copies of each
image.

What small data wants (20 bird species, 600 images, a MobileNetV2 trained on birds): many small steps and ten times the
published weight decay. With ``batch=10``, ten epochs of warm-up give 0.84 test accuracy at a weight decay of 1e-3 and
0.96 at 1e-2; a second push (``push_every``) and a last layer at 1e-3 take back most of what the first push costs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from typing import Any

from protomask.checkpoint import ACTIVATIONS, ADD_ONS, CROPS
from protomask.checks import check_choice, check_count, check_number
from protomask.errors import InputError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD

from .backbones import BACKBONES

BATCH_NORMS = ("auto", "train", "eval")
# They change how a run is carried out, not what it computes, so a run may be resumed with others.
_FREE = ("device", "workers", "progress", "locate", "test_every")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of :func:`protopnet_ext.fit`; the defaults are the published ones, epochs and batch apart.

    Attributes:
        backbone: one of :data:`protopnet_ext.backbones.BACKBONES`.
        weights: a file with the backbone's weights, or None to start from random ones.
        prototypes_per_class, prototype_depth: 10 prototypes of 128 channels per class.
        activation: ``"log"`` or ``"linear"``; with ``"linear"`` the last layer is not trained, as published.
        add_on: ``"regular"`` or ``"bottleneck"``.
        size: (height, width) of the input, pixels.
        crop: what the data set cut out, for the description.
        batch: images per step.
        warm_epochs: backbone frozen.
        joint_epochs: all but the last layer.
        push_every: joint epochs between pushes; 0 pushes once, at the end.
        last_layer_epochs: after each push.
        lr_features, lr_add_on, lr_prototypes, lr_last_layer: Adam's learning rates.
        lr_step: joint epochs after which the learning rates fall to a tenth.
        one_cycle: instead, the joint learning rates rise and fall once before every push (Smith and Topin, arXiv
            1708.07120), half as high after each push: for training from scratch in a few epochs.
        weight_decay: of backbone and add-on layers.
        cluster, separation, l1: weights of the costs; separation is subtracted.
        batch_norm: of the backbone in training: ``"train"`` as published, ``"eval"``, or ``"auto"``: eval for weights
            whose batch norm was folded away.
        augment: flip, small rotation, shear or skew, drawn anew for each image and epoch.
        erase: rectangles erased from each training image at most, filled with its mean colour, one colour or noise
            (cutout, DeVries and Taylor 2017); 0 as published. A model that never saw an occluded image falls apart
            when a part is shown alone, and every causal score with it.
        mean, std: per channel, of pixels in [0, 1]: what images are normalised by.
        seed: of everything random.
        locate: find the prototypes' regions by MDM at the end.
        test_every: epochs between tests, which also follow a push; 0 tests at the end only.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        workers: processes that read and augment; 0 does it in this one.
        progress: bars and messages on standard error.
    """

    backbone: str
    weights: str | None = None
    prototypes_per_class: int = 10
    prototype_depth: int = 128
    activation: str = "log"
    add_on: str = "regular"
    size: tuple[int, int] = (224, 224)
    crop: str = "none"
    batch: int = 20
    warm_epochs: int = 5
    joint_epochs: int = 10
    push_every: int = 0
    last_layer_epochs: int = 20
    lr_features: float = 1e-4
    lr_add_on: float = 3e-3
    lr_prototypes: float = 3e-3
    lr_last_layer: float = 1e-4
    lr_step: int = 5
    one_cycle: bool = False
    weight_decay: float = 1e-3
    cluster: float = 0.8
    separation: float = 0.08
    l1: float = 1e-4
    batch_norm: str = "auto"
    augment: bool = True
    erase: int = 0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    seed: int = 0
    locate: bool = True
    test_every: int = 1
    device: str = "auto"
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        choices = {"backbone": BACKBONES, "activation": ACTIVATIONS, "add_on": ADD_ONS, "crop": CROPS}
        for name, allowed in (choices | {"batch_norm": BATCH_NORMS}).items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("prototypes_per_class", "prototype_depth", "batch", "lr_step"):
            check_count(name, getattr(self, name))
        for name in (
            "warm_epochs",
            "joint_epochs",
            "push_every",
            "last_layer_epochs",
            "seed",
            "test_every",
            "workers",
            "erase",
        ):
            check_count(name, getattr(self, name), 0)
        for name in ("lr_features", "lr_add_on", "lr_prototypes", "lr_last_layer", "weight_decay", "cluster"):
            check_number(name, getattr(self, name), 0)
        for name in ("separation", "l1"):
            check_number(name, getattr(self, name), 0)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(expected("mean, std", "3 values each, std above 0", (self.mean, self.std)))
        if len(self.size) != 2 or min(self.size) < 32:
            raise InputError(expected("size", "(height, width) of at least 32 pixels", self.size))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in _FREE}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``protomask train protopnet``, all but the data's own (--data, --root, --crop) and --out."""
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", required=True, choices=BACKBONES, metavar="NAME", help=", ".join(BACKBONES))
    _add(
        model,
        "weights",
        str,
        "state dict of the torchvision model, .pth or .safetensors; "
        "without it the backbone starts random: then --warm-epochs 0 --lr-features 1e-3",
        metavar="FILE",
    )
    _add(model, "prototypes_per_class", int, "prototypes per class")
    _add(model, "prototype_depth", int, "channels of a prototype")
    _add(model, "activation", str, "log((d + 1) / (d + 1e-4)) or -d", choices=ACTIVATIONS)
    _add(model, "add_on", str, "layers between backbone and prototypes", choices=ADD_ONS)
    _add(model, "size", parse_size, "input size in pixels: 224, or 192x256 (height x width)", metavar="SIZE")

    stages = parser.add_argument_group("stages")
    _add(stages, "warm_epochs", int, "with the backbone frozen, published: 5")
    _add(stages, "joint_epochs", int, "of backbone, add-on layers and prototypes, published: up to 995")
    _add(stages, "push_every", int, "joint epochs between pushes, 0: one at the end, published: 10")
    _add(stages, "last_layer_epochs", int, "of the last layer after each push, published: 20")

    optimiser = parser.add_argument_group("optimiser (Adam)")
    _add(optimiser, "batch", int, "images per step, published: 80")
    for part, what in (("features", "backbone"), ("add_on", "add-on layers"), ("prototypes", "prototypes")):
        _add(optimiser, f"lr_{part}", float, f"learning rate of the {what}, as published")
    _add(optimiser, "lr_last_layer", float, "learning rate of the last layer, as published")
    _add(optimiser, "lr_step", int, "joint epochs after which learning rates fall to a tenth, as published")
    optimiser.add_argument(
        "--one-cycle",
        action="store_true",
        help="let the joint learning rates rise and fall once before every push, half as high after each",
    )
    _add(optimiser, "weight_decay", float, "of backbone and add-on layers, as published")
    _add(optimiser, "cluster", float, "weight of the distance to the own class's nearest prototype, as published")
    _add(optimiser, "separation", float, "weight of the distance to other classes' nearest, subtracted, as published")
    _add(optimiser, "l1", float, "weight of the last layer's connections to other classes, as published")
    about_norm = "batch norm of the backbone; auto: eval where the weights have it folded away, else train (published)"
    _add(optimiser, "batch_norm", str, about_norm, choices=BATCH_NORMS)
    optimiser.add_argument(
        "--augment",
        choices=("on", "off"),
        default="on",
        help="flip, small rotation, shear or skew, anew in each epoch; published: 30 copies on disk (default: on)",
    )

    _add(optimiser, "erase", int, "rectangles erased from each training image at most (published: 0)")
    for name in ("mean", "std"):
        _add(optimiser, name, parse_colour, "R,G,B in [0, 1] that images are normalised by", metavar="R,G,B")

    run = parser.add_argument_group("run")
    _add(run, "seed", int, "of everything random")
    _add(run, "device", str, "auto, cpu, cuda, ...", metavar="DEVICE")
    _add(run, "workers", int, "processes that read and augment images")
    _add(run, "test_every", int, "epochs between tests, 0: at the end only, published: 1")
    run.add_argument("--no-locate", dest="locate", action="store_false", help="leave the prototypes' MDM regions out")


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings that parsed options describe; a field without its option keeps its default."""
    given = {f.name: getattr(args, f.name) for f in fields(TrainSettings) if hasattr(args, f.name)}
    if isinstance(given.get("augment"), str):
        given["augment"] = given["augment"] == "on"
    given["crop"] = given.get("crop") or "none"
    return TrainSettings(**given)


def parse_size(text: str) -> tuple[int, int]:
    """``"224"`` -> (224, 224); ``"192x256"`` -> (192, 256), height first."""
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2):
        raise argparse.ArgumentTypeError(expected("size", "a number of pixels, or HEIGHTxWIDTH", repr(text)))
    return sides[0], sides[-1]


def parse_colour(text: str) -> tuple[float, ...]:
    """``"0.5,0.5,0.4"`` -> (0.5, 0.5, 0.4)."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError(expected("mean, std", "three numbers R,G,B", repr(text)))
    return values


def _spell(name: str, default: object) -> str:
    if not isinstance(default, tuple):
        return str(default)
    return str(default[0]) if name == "size" else ",".join(map(str, default))


def _add(group: Any, name: str, kind: Any, about: str, **options: Any) -> None:
    default = next(f.default for f in fields(TrainSettings) if f.name == name)
    if default is not None:
        about += f" (default: {_spell(name, default)})"
    if "choices" not in options:
        options.setdefault("metavar", "N")
    group.add_argument("--" + name.replace("_", "-"), type=kind, default=default, help=about, **options)
