"""Loading that runs a file's own code: only ever on the user's explicit word."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protomask.errors import CheckpointError, expected
from protomask.pickles import read_pickled


def load_trusted(path: str | os.PathLike[str]) -> nn.Module:
    """The module in a whole-module pickle, by ``torch.load``, on the CPU and in evaluation mode.

    **This runs whatever the file says.** The modules it names are imported, the working directory searched first.

    Raises:
        CheckpointError: it cannot be loaded (a module that it names is missing, say), or holds no ``nn.Module``.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = _run(Path(path))
    except Exception as error:  # the file's own code may raise anything
        reason = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(expected(str(path), "a file that its own code loads", reason)) from error
    if isinstance(value, Mapping):
        inside = [v for v in value.values() if isinstance(v, nn.Module)]
        value = inside[0] if len(inside) == 1 else value
    if not isinstance(value, nn.Module):
        raise CheckpointError(expected(str(path), "a whole module", type(value).__name__))
    return value.eval()


def _run(path: Path) -> Any:
    if read_pickled(path, data=False, strict=False).form != "pickle":
        return torch.load(path, map_location="cpu", weights_only=False)
    with path.open("rb") as file:
        return pickle.load(file)
