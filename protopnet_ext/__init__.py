"""ProtoPNet for protomask: the adapter for upstream's ``PPNet``, a reference model, and its training."""

from __future__ import annotations

from pathlib import Path

from protomask.model import Family

from .adapter import ProtoPNetModel
from .descendants import matches, wrap
from .foreign import adopt, recognise
from .model import ProtoPNet, build
from .patching import patch
from .train import TrainSettings, add_train_arguments, fit, train

_DEMO = Path(__file__).parent / "demo"

FAMILY = Family(
    name="protopnet",
    matches=matches,
    wrap=wrap,
    build=build,
    add_train_arguments=add_train_arguments,
    train=train,
    demo=_DEMO if _DEMO.is_dir() else None,
    recognise=recognise,
    adopt=adopt,
    patch=patch,
)

__all__ = [
    "FAMILY",
    "ProtoPNet",
    "ProtoPNetModel",
    "TrainSettings",
    "build",
    "fit",
    "matches",
    "patch",
    "train",
    "wrap",
]
