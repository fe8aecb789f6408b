"""Checkpoints as upstream's users have them: a ``PPNet`` on a backbone that we know, saved in every form."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from protomask.training.backbones import build_features, feature_channels
from tests.ppnet import PPNet

FORMS = ("zip", "legacy", "pickle")
# Importing it leaves a file behind, so that a test sees whether anybody did.
REPOSITORY = """
from pathlib import Path
Path(__file__).with_name("imported").write_text("")
from tests.ppnet import PPNet as Standin

class {name}(Standin):
    pass
"""


def write(form: str, value: object, path: Path) -> Path:
    """``value`` in a file by ``torch.save`` in one of its two formats, or by ``pickle.dump``."""
    if form == "pickle":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path


def fill(model: PPNet, backbone: str = "conv-small", add_on: Callable[[], nn.Module] = nn.Sigmoid) -> PPNet:
    """Put a known backbone and the published add-on layers into a stand-in."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        depth = model.prototype_vectors.shape[1]
        model.features = build_features(backbone)
        for module in model.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
        first = nn.Conv2d(feature_channels(model.features), depth, 1)
        model.add_on_layers = nn.Sequential(first, nn.ReLU(), nn.Conv2d(depth, depth, 1), add_on())
        nn.init.uniform_(model.prototype_vectors)
        nn.init.normal_(model.last_layer.weight)
    return model.eval()


def upstream(**options: Any) -> PPNet:
    """A ``PPNet`` on ``conv-small``, 6 prototypes of 3 classes, 64 x 64 pixels."""
    return fill(PPNet(**{"size": 64, **options}))


@contextmanager
def repository(folder: Path, name: str = "PPNet", **options: Any) -> Iterator[PPNet]:
    """Inside, a ``PPNet`` whose class is ``model.PPNet`` of a repository in ``folder``; outside, that is gone."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(REPOSITORY.format(name=name))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module("model")
        (folder / "imported").unlink()
        yield fill(getattr(module, name)(**{"size": 64, **options}))
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("model", None)


def boxes(path: Path, classes: list[int], columns: int = 6) -> Path:
    """A ``bb.npy`` as upstream's push writes it."""
    table = np.full((len(classes), columns), 7)
    if columns == 6:
        table[:, 5] = classes
    np.save(path, table)
    return path


def save_tensors(model: nn.Module, path: Path) -> Path:
    """The state dict as safetensors."""
    save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, path)
    return path
