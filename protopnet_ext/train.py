"""Training a ProtoPNet as published, resumable: ``protomask train protopnet``, or :func:`fit` from Python.

Stages: warm-up of add-on layers and prototypes, joint training with cluster and separation costs, push, last layer
with L1, and the prototypes' regions by MDM. After every epoch ``train-state.pt`` is written; the same settings in the
same folder go on from there and, on a CPU with the same number of threads, end with the same weights. ::

    fit(TrainSettings("resnet18", weights="resnet18.pth"), train, test, "out")

Chen et al., "This looks like that: deep learning for interpretable image recognition", NeurIPS 2019.
"""

from __future__ import annotations

import argparse
import os

from protomask.checkpoint import Description
from protomask.data.sample import Dataset
from protomask.training import train as training
from protomask.training.train import Recipe, TrainResult

from .model import build
from .settings import TrainSettings, add_train_arguments, settings_of
from .stages import Run

__all__ = ["TrainResult", "TrainSettings", "add_train_arguments", "fit", "train"]


def train(args: argparse.Namespace) -> None:
    """``protomask train protopnet``, with the options of :func:`add_train_arguments` and data, root, crop and out.

    Raises:
        InputError: an option out of range, other settings or data than the run in the folder began with, or a training
            that diverged.
        DataError: the data's files are missing or malformed.
        CheckpointError: the weights do not fit.
        ResourceError: the folder cannot be written.
    """
    training.train_command(_RECIPE, settings_of(args), args)


def fit(settings: TrainSettings, train: Dataset, test: Dataset, out: str | os.PathLike[str]) -> TrainResult:
    """Train, or go on with, the run in ``out``; :func:`protomask.training.train.fit` says what then lies there."""
    return training.fit(_RECIPE, settings, train, test, out)


def _describe(settings: TrainSettings, data: Dataset) -> Description:
    return Description(family="protopnet", activation=settings.activation, **training.base_description(settings, data))


_RECIPE = Recipe(_describe, build, Run)
