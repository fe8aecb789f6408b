"""Whether a pickled module's layers are those of a module that we built: what a state dict's shapes cannot tell.

A stride or an activation function leaves no trace in a state dict. A whole-module pickle holds both, in the plain
attributes of its stand-ins, so a model that would be rebuilt wrongly is found out without running any of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from protomask.errors import CheckpointError, expected
from protomask.foreign import submodules
from protomask.hooks import FORWARD
from protomask.pickles import Inert, shown

SETTINGS = (
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "ceil_mode", "count_include_pad"),
    *("eps", "affine", "track_running_stats", "negative_slope", "in_channels", "out_channels", "num_features"),
)
_NO_EFFECT = ("Identity", "Dropout", "Dropout2d")  # in evaluation mode


def check_layers(root: Inert, module: nn.Module) -> None:
    """Compare every layer of a stand-in with the layer of the same path in ``module``: class, settings, hooks.

    Layers are what has no modules inside; of the others only the paths count.

    Raises:
        CheckpointError: with the first path where they differ.
    """
    ours = {path: layer for path, layer in module.named_modules() if next(layer.children(), None) is None}
    theirs = dict(submodules(root))
    inner = {path.rpartition(".")[0] for path in theirs if path}
    leaves = {path: layer for path, layer in theirs.items() if path not in inner}
    for path, layer in theirs.items():
        if any(_some(layer.attributes.get(name)) for name in FORWARD):
            raise CheckpointError(expected(f"module {path or 'root'}", "no hooks", "some, which are code"))
    for path in sorted(ours.keys() | leaves.keys()):
        _check_layer(path, leaves.get(path), ours.get(path))


def _check_layer(path: str, came: Inert | None, wanted: nn.Module | None) -> None:
    name = "no layer" if came is None else came.origin.name
    known = "no layer" if wanted is None else type(wanted).__name__
    if came is None or wanted is None:
        if not {name, known} <= {"no layer", *_NO_EFFECT, "Sequential"}:
            raise CheckpointError(expected(f"layer {path}", known, name))
        return
    if name != known or not came.origin.module.startswith("torch."):
        raise CheckpointError(expected(f"layer {path}", f"torch's {known}", str(came.origin)))
    said = came.attributes
    for setting in SETTINGS:
        if setting in said and hasattr(wanted, setting):
            ours, theirs = _pair(getattr(wanted, setting)), _pair(said[setting])
            parts = theirs if isinstance(theirs, tuple) else (theirs,)
            # Compared with a number, a tensor gives a tensor.
            if any(isinstance(part, Tensor) for part in parts) or ours != theirs:
                raise CheckpointError(expected(f"layer {path}: {setting}", str(ours), shown(theirs)[:60]))


def _some(hooks: Any) -> bool:
    return hooks is not None and not (isinstance(hooks, Mapping) and not hooks)


def _pair(value: Any) -> Any:
    """A window's number as the pair that it stands for; anything else as it is."""
    if isinstance(value, list):
        value = tuple(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, Mapping):
        return dict(value)
    return (value, value) if whole else value
