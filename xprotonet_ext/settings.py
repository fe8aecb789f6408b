"""What an XProtoNet's training is told: one frozen record, and the command line's options for it.

The costs and the order of the stages are those of Kim et al. 2021; their weights, and the numbers of epochs, are ours.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from protomask.checks import check_number
from protomask.training.settings import MOST, BaseSettings, add_base_arguments, add_option, settings_from


@dataclass(frozen=True)
class TrainSettings(BaseSettings):
    """Settings of :func:`xprotonet_ext.fit`.

    All of :class:`protomask.training.settings.BaseSettings`, where ``lr_add_on`` is the occurrence module's as well,
    and:

    Attributes:
        multi_label: an image may be of several classes or none, as a data set's samples say; else it is of one.
        area: weight of the mean of the occurrence maps.
        transformation: weight of the cost by which occurrence maps must move along with the image; it takes a second
            pass of the network over ``transformed`` images of each batch.
        transformed: how many; 0 looks at all of them.
        blank: weight of the similarity of images that hold nothing but one colour, in which no prototype should be
            found; ours, 0 as published.
        strength: initial weight of a prototype for its own class; half of it against the others. Similarities are at
            most 1, so it bounds how sure an answer can be.
    """

    prototypes_per_class: int = 3
    cluster: float = 0.5
    separation: float = 0.5
    multi_label: bool = False
    area: float = 0.5
    transformation: float = 0.5
    transformed: int = 0
    blank: float = 0.0
    strength: float = 4.0

    COUNTS_FROM_0 = (*BaseSettings.COUNTS_FROM_0, "transformed")
    NUMBERS = (*BaseSettings.NUMBERS, "area", "transformation", "blank")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength, 0, MOST, open_low=True)

    def is_multi_label(self) -> bool:
        """Whether an image may be of several classes, or none."""
        return self.multi_label


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``protomask train xprotonet``, all but the data's own (--data, --root, --crop) and --out."""
    groups = add_base_arguments(
        parser,
        TrainSettings,
        "1 - similarity to the own class's nearest prototype",
        "the similarity to the nearest prototype of every other class",
    )
    model, optimiser = groups["model"], groups["optimiser"]
    model.add_argument("--multi-label", action="store_true", help="an image may be of several classes or none")
    add_option(model, TrainSettings, "strength", float, "initial weight of a prototype for its own class")
    add_option(optimiser, TrainSettings, "area", float, "weight of the mean of the occurrence maps")
    about = "weight of the cost by which occurrence maps must move along with the image"
    add_option(optimiser, TrainSettings, "transformation", float, about)
    about = "images of each batch that this cost looks at, 0: all, which doubles the time"
    add_option(optimiser, TrainSettings, "transformed", int, about)
    about = "weight of the similarity of images of one colour, published: 0"
    add_option(optimiser, TrainSettings, "blank", float, about)


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings that parsed options describe; a field without its option keeps its default."""
    return settings_from(TrainSettings, args)
