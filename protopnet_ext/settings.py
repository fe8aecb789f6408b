"""What a ProtoPNet's training is told: one frozen record, and the command line's options for it.

Learning rates, costs and the order of the stages are those of Chen et al. 2019. Scaled down for small data are the
numbers of epochs: upstream trains 1,000 epochs at most, with a push after every tenth, on 30 augmented copies of each
image.

What small data wants (20 bird species, 600 images, a MobileNetV2 trained on birds): a frozen backbone, add-on layers at
1e-2 and half the published cluster cost (``benchmarks/train_cub.sh``). On 120 images kept out of the training split,
40 epochs of warm-up then give 0.98 to 1.0 after the push, and in 6 % of the pairs a blurred image keeps half of the
activation, against 42 % with the published costs. Ten times the published weight decay on a trained backbone is as
accurate, but its features grow alike: prototypes then respond to every image. Accuracy hides that.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from protomask.training.settings import BaseSettings, add_base_arguments, add_option, settings_from

from .model import ACTIVATIONS


@dataclass(frozen=True)
class TrainSettings(BaseSettings):
    """Settings of :func:`protopnet_ext.fit`; the defaults are the published ones, epochs and batch apart.

    All of :class:`protomask.training.settings.BaseSettings`, where ``separation`` is subtracted, and:

    Attributes:
        activation: ``"log"`` or ``"linear"``; with ``"linear"`` the last layer is not trained, as published.
    """

    activation: str = "log"

    CHOICES = BaseSettings.CHOICES | {"activation": ACTIVATIONS}

    def last_layer_steps(self) -> int:
        """Published code trains the last layer for the log activation only."""
        return self.last_layer_epochs if self.activation == "log" else 0


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``protomask train protopnet``, all but the data's own (--data, --root, --crop) and --out."""
    nearest = "the distance to {} nearest prototype{}, as published"
    groups = add_base_arguments(
        parser,
        TrainSettings,
        nearest.format("the own class's", ""),
        nearest.format("other classes'", ", subtracted"),
    )
    about = "log((d + 1) / (d + 1e-4)) or -d"
    add_option(groups["model"], TrainSettings, "activation", str, about, choices=ACTIVATIONS)


def settings_of(args: argparse.Namespace) -> TrainSettings:
    """The settings that parsed options describe; a field without its option keeps its default."""
    return settings_from(TrainSettings, args)
