"""XProtoNet for protomask: the adapter for modules of its form, a reference model, and its training."""

from __future__ import annotations

from pathlib import Path

from protomask.model import Family

from .adapter import XProtoNetModel, matches, wrap
from .model import XProtoNet, build
from .patch import patch
from .train import TrainSettings, add_train_arguments, fit, train

_DEMO = Path(__file__).parent / "demo"

FAMILY = Family(
    name="xprotonet",
    matches=matches,
    wrap=wrap,
    build=build,
    add_train_arguments=add_train_arguments,
    train=train,
    patch=patch,
    demo=_DEMO if _DEMO.is_dir() else None,
)

__all__ = [
    "FAMILY",
    "TrainSettings",
    "XProtoNet",
    "XProtoNetModel",
    "build",
    "fit",
    "matches",
    "patch",
    "train",
    "wrap",
]
