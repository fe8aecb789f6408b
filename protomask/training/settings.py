"""What every family's training is told: a frozen record, and the command line's options for it.

A family derives its own record, with its own fields and defaults, and adds its own options to the groups of
:func:`add_base_arguments`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from protomask.checkpoint import ADD_ONS, CROPS
from protomask.checks import check_choice, check_count, check_number
from protomask.errors import InputError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD
from protomask.training.backbones import BACKBONES, check_backbone

BATCH_NORMS = ("auto", "train", "eval")
# They change how a run is carried out, not what it computes, so a run may be resumed with others.
_FREE = ("device", "workers", "progress", "locate", "test_every")

MOST = 3e38  # of what float32 can be

RANDOM_START = "--warm-epochs 0 --one-cycle --lr-features 2e-3"
"""What a backbone without weights is trained with: warm epochs would keep it frozen at random, and the published
learning rate is one for pretrained weights."""

_Settings = TypeVar("_Settings", bound="BaseSettings")


@dataclass(frozen=True)
class BaseSettings:
    """Settings of a training run that all families have.

    Attributes:
        backbone: one of :data:`protomask.training.backbones.BACKBONES`, or cut at a stride, as ``"mobilenet_v2@16"``.
        weights: a file with the backbone's weights, or None to start from random ones.
        prototypes_per_class, prototype_depth: prototypes of each class, and their channels.
        add_on: ``"regular"`` or ``"bottleneck"``, the layers between backbone and prototypes.
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
        cluster, separation, l1: weights of the costs.
        batch_norm: of the backbone in training: ``"train"`` as published, ``"eval"``, or ``"auto"``: eval for weights
            whose batch norm was folded away.
        augment: flip, small rotation, shear or skew, drawn anew for each image and epoch.
        erase: rectangles erased from each training image at most, filled with its mean colour, one colour or noise
            (cutout, DeVries and Taylor 2017); 0 as published. A model that never saw an occluded image falls apart
            when a part is shown alone, and every causal score with it.
        mean, std: per channel, of pixels in [0, 1]: what images are normalised by. Three values make RGB input, one
            value grey input (ITU-R 601 luma) and a backbone whose first convolution has one channel.
        seed: of everything random, below 2^63.
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

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "add_on": ADD_ONS,
        "crop": CROPS,
        "batch_norm": BATCH_NORMS,
    }
    COUNTS: ClassVar[tuple[str, ...]] = ("prototypes_per_class", "prototype_depth", "batch", "lr_step")
    COUNTS_FROM_0: ClassVar[tuple[str, ...]] = (
        *("warm_epochs", "joint_epochs", "push_every", "last_layer_epochs"),
        *("seed", "test_every", "workers", "erase"),
    )
    NUMBERS: ClassVar[tuple[str, ...]] = (
        *("lr_features", "lr_add_on", "lr_prototypes", "lr_last_layer"),
        *("weight_decay", "cluster", "separation", "l1"),
    )

    def __post_init__(self) -> None:
        check_backbone(self.backbone)
        for name, allowed in self.CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in self.COUNTS:
            check_count(name, getattr(self, name))
        for name in self.COUNTS_FROM_0:
            check_count(name, getattr(self, name), 0)
        check_number("seed", self.seed, 0, 2**63 - 1)
        for name in self.NUMBERS:
            check_number(name, getattr(self, name), 0, MOST)
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise InputError(expected("mean, std", "1 or 3 values each, std above 0", (self.mean, self.std)))
        if len(self.size) != 2 or min(self.size) < 32:
            raise InputError(expected("size", "(height, width) of at least 32 pixels", self.size))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in _FREE}

    def last_layer_steps(self) -> int:
        """Epochs of the last layer after each push."""
        return self.last_layer_epochs

    def is_multi_label(self) -> bool:
        """Whether an image may be of several classes, or none."""
        return False


def add_base_arguments(
    parser: argparse.ArgumentParser, settings: type[BaseSettings], cluster: str, separation: str
) -> dict[str, Any]:
    """Add the options that all families have, but the data's own (--data, --root, --crop) and --out, and an example.

    Args:
        parser: of ``protomask train FAMILY``.
        settings: the family's record, for the defaults.
        cluster, separation: what these costs are weights of.

    Returns:
        The groups ``model``, ``stages``, ``optimiser`` and ``run``, for the family's own options.
    """
    parser.epilog = (
        f"example:\n  {parser.prog} --data planted --backbone conv-small --size 96 \\\n"
        f"      {RANDOM_START} --out runs/planted"
    )
    model = parser.add_argument_group("model")
    about_backbone = ", ".join(BACKBONES) + "; mobilenet_v2@16 ends with its last layer of stride 16"
    model.add_argument("--backbone", required=True, type=parse_backbone, metavar="NAME", help=about_backbone)
    start = "state dict of the torchvision model, .pth or .safetensors; without it the backbone starts random: then "
    start += RANDOM_START
    add_option(model, settings, "weights", str, start, metavar="FILE")
    add_option(model, settings, "prototypes_per_class", int, "prototypes per class")
    add_option(model, settings, "prototype_depth", int, "channels of a prototype")
    add_option(model, settings, "add_on", str, "layers between backbone and prototypes", choices=ADD_ONS)
    about_size = "input size in pixels: 224, or 192x256 (height x width)"
    add_option(model, settings, "size", parse_size, about_size, metavar="SIZE")

    stages = parser.add_argument_group("stages")
    add_option(stages, settings, "warm_epochs", int, "with the backbone frozen, published: 5")
    add_option(stages, settings, "joint_epochs", int, "of everything but the last layer, published: up to 995")
    add_option(stages, settings, "push_every", int, "joint epochs between pushes, 0: one at the end, published: 10")
    add_option(stages, settings, "last_layer_epochs", int, "of the last layer after each push, published: 20")

    optimiser = parser.add_argument_group("optimiser (Adam)")
    add_option(optimiser, settings, "batch", int, "images per step, published: 80")
    for part, what in (("features", "backbone"), ("add_on", "add-on layers"), ("prototypes", "prototypes")):
        add_option(optimiser, settings, f"lr_{part}", float, f"learning rate of the {what}")
    add_option(optimiser, settings, "lr_last_layer", float, "learning rate of the last layer")
    add_option(optimiser, settings, "lr_step", int, "joint epochs after which learning rates fall to a tenth")
    about_cycle = "let the joint learning rates rise and fall once before every push, half as high after each"
    optimiser.add_argument("--one-cycle", action="store_true", help=about_cycle)
    add_option(optimiser, settings, "weight_decay", float, "of backbone and add-on layers")
    add_option(optimiser, settings, "cluster", float, f"weight of {cluster}")
    add_option(optimiser, settings, "separation", float, f"weight of {separation}")
    add_option(optimiser, settings, "l1", float, "weight of the last layer's connections to other classes")
    about_norm = "batch norm of the backbone; auto: eval where the weights have it folded away, else train (published)"
    add_option(optimiser, settings, "batch_norm", str, about_norm, choices=BATCH_NORMS)
    about_augment = "flip, small rotation, shear or skew, anew in each epoch, published: 30 copies (default: on)"
    optimiser.add_argument("--augment", choices=("on", "off"), default="on", help=about_augment)
    add_option(optimiser, settings, "erase", int, "rectangles erased from each training image at most (published: 0)")
    for name in ("mean", "std"):
        about = "R,G,B, or one value for grey input, in [0, 1], that images are normalised by"
        add_option(optimiser, settings, name, parse_colour, about, metavar="R,G,B")

    run = parser.add_argument_group("run")
    add_option(run, settings, "seed", int, "of everything random")
    add_option(run, settings, "device", str, "auto, cpu, cuda, ...", metavar="DEVICE")
    add_option(run, settings, "workers", int, "processes that read and augment images")
    add_option(run, settings, "test_every", int, "epochs between tests, 0: at the end only, published: 1")
    run.add_argument("--no-locate", dest="locate", action="store_false", help="leave the prototypes' MDM regions out")
    return {"model": model, "stages": stages, "optimiser": optimiser, "run": run}


def add_option(group: Any, settings: type[BaseSettings], name: str, kind: Any, about: str, **options: Any) -> None:
    """Add ``--name`` with the default of the settings' field, which the help text tells."""
    default = next(f.default for f in fields(settings) if f.name == name)
    if default is not None:
        about += f" (default: {_spell(name, default)})"
    if "choices" not in options:
        options.setdefault("metavar", "N")
    group.add_argument("--" + name.replace("_", "-"), type=kind, default=default, help=about, **options)


def settings_from(settings: type[_Settings], args: argparse.Namespace) -> _Settings:
    """The settings that parsed options describe; a field without its option keeps its default."""
    given = {f.name: getattr(args, f.name) for f in fields(settings) if hasattr(args, f.name)}
    if isinstance(given.get("augment"), str):
        given["augment"] = given["augment"] == "on"
    given["crop"] = given.get("crop") or "none"
    return settings(**given)


def parse_backbone(text: str) -> str:
    """A backbone's name as it came, if it is a known one."""
    try:
        return check_backbone(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
    """``"0.5,0.5,0.4"`` -> (0.5, 0.5, 0.4); ``"0.5"`` -> (0.5,)."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(expected("mean, std", "three numbers R,G,B, or one for grey", repr(text)))
    return values


def _spell(name: str, default: object) -> str:
    if not isinstance(default, tuple):
        return str(default)
    return str(default[0]) if name == "size" else ",".join(map(str, default))
