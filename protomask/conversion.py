"""Foreign checkpoints written in our format, with the proof that nothing was lost on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from protomask.checkpoint import Checkpoint, Description, load_checkpoint, own_folder, save_checkpoint
from protomask.errors import CheckpointError, ModelError, expected
from protomask.foreign import Stated
from protomask.model import PrototypeModel, untouched, wrap
from protomask.opening import is_file
from protomask.trusted import load_trusted

_IMAGES = 2
_ROUNDING = 1e-4  # of the largest activation; two programs that compute the same in float32 differ by less


@dataclass(frozen=True)
class Conversion:
    """What was written and how it was proved.

    Attributes:
        folder: the checkpoint.
        description: what its ``model.json`` says.
        written: largest difference between the activations of the model that was read and of the one loaded back; 0.
        source: the same against the file's own code, where that was trusted; else None.
    """

    folder: Path
    description: Description
    written: float
    source: float | None


def convert(
    path: str | os.PathLike[str], out: str | os.PathLike[str], stated: Stated | None = None, *, trust: bool = False
) -> Conversion:
    """Read a foreign checkpoint, write it as one of ours, load that back, and compare activations on random images.

    Args:
        path: the foreign file.
        out: the folder to write.
        stated: what the user says about the file.
        trust: whether a whole module may also run its own code, to compare with it. Reading needs no trust.

    Raises:
        CheckpointError: it cannot be read, or what was written does not compute the same.
        ModelError: the family's adapter refuses the module.
        ResourceError: the folder cannot be written.
    """
    if own_folder(path) != Path(path):
        raise CheckpointError(expected("checkpoint", f"a foreign file at {path}", "one of ours, in our format already"))
    if not is_file(path):
        raise CheckpointError(expected("checkpoint", f"a file at {path}", "no file"))
    read = load_checkpoint(path, stated=stated)
    if read.description is None:  # only a trusted file has none
        raise CheckpointError(expected(str(path), "a checkpoint that can be read as data", "code"))
    source = _against_source(Path(path), read, read.description) if trust else None
    description = read.description if source is None else _proved(read.description, source)
    folder = save_checkpoint(out, read.module, description)
    written = _against(read, load_checkpoint(folder).model, description, 0.0, "what was written")
    return Conversion(folder, description, written, source)


def _proved(description: Description, gap: float) -> Description:
    extra = {name: value for name, value in description.extra.items() if name != "unproved"}
    return replace(description, extra=extra | {"largest difference to the file's own code": gap})


def _against_source(path: Path, read: Checkpoint, description: Description) -> float | None:
    module = load_trusted(path).float()  # as what was read
    return _against(read, wrap(module), description, _ROUNDING, "the file's own code")


def _against(read: Checkpoint, other: PrototypeModel, description: Description, tolerance: float, name: str) -> float:
    ours, theirs = (_activations(model, description) for model in (read.model, other))
    if ours.shape != theirs.shape:
        raise CheckpointError(expected(f"activations of {name}", str(list(ours.shape)), list(theirs.shape)))
    gap = float((ours - theirs).abs().max())
    if not gap <= tolerance * max(1.0, float(ours.abs().max())):
        raise CheckpointError(expected(f"activations of {name}", "those of the tensors read", f"a difference of {gap}"))
    return gap


def _activations(model: PrototypeModel, description: Description) -> Tensor:
    """[2, P] on seeded random images."""
    module: nn.Module | None = getattr(model, "module", None)
    shape = (_IMAGES, len(description.mean), *description.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with untouched(module), torch.no_grad():
        try:
            return model.activations(images)
        except RuntimeError as error:
            raise ModelError(expected("model", f"one that takes images {list(shape)}", error)) from error
