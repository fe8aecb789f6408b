"""Batch norm folded into the convolutions before it, in a copy: what a frozen network computes, in fewer operations.

In evaluation mode a batch norm is a scale and a shift per channel, and a convolution can carry both. Which convolution
feeds which norm is seen in one pass, layer by layer, and the copy is used only if it computes what the model does: a
convolution whose output something else reads as well (a residual branch) would be found out there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from protomask.model import Contract, contract

_TOLERANCE = 1e-7  # of the largest activation, in float64, where rounding cannot hide a difference
_ROUNDING = 1e-4  # likewise in float32, where nothing but the order of sums may differ


def quick(model: Contract, images: Tensor) -> Contract:
    """The model for many passes: folded, and with its images channels-last; about half a pass saved on small networks.

    What it computes is what the model does, but for rounding. Not for methods that look inside: layers may be missing.

    Args:
        model: frozen, in evaluation mode (:func:`protomask.model.untouched`).
        images: [B, C, H, W] to look at; one is used.
    """
    if model.module is None or model.channels_last:
        return model
    other = replace(folded(model, images[:1]), channels_last=True)
    try:
        with torch.no_grad():
            wanted, came = model.activations(images[:1]), other.activations(images[:1])
    except RuntimeError:
        return model  # code that views its tensors instead of reshaping them
    close = (came - wanted).abs().max() <= _ROUNDING * wanted.abs().max().clamp(min=1e-6)
    return other if bool(close) else model


def folded(model: Contract, images: Tensor) -> Contract:
    """The model with its batch norms folded, in a copy; the model itself where that cannot be done exactly.

    Only for adapters that keep their network in an attribute ``module`` and for models that are a module themselves;
    others come back as they are, as does a model whose copy computes something else on ``images``.

    Args:
        model: frozen, in evaluation mode (:func:`protomask.model.untouched`).
        images: [B, C, H, W] to look at, at least one; a few are enough.
    """
    if model.module is None or not any(isinstance(m, nn.BatchNorm2d) for m in model.module.modules()):
        return model
    try:
        other = _copied(model)
        if other is None or other.module is None:
            return model
        exact = images.double()
        other.module.double().eval()  # a copy that a model makes of itself may be in training mode
        wanted = other.activations(exact)
        pairs = _pairs(other, other.module, exact)
        if not pairs:
            return model
        _fuse(other.module, pairs)
        came = other.activations(exact)
        other.module.to(images.dtype)
    except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError, AssertionError):
        return model  # a module that cannot be copied or traced works as it is, only slower
    close = (came - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp(min=1e-6)
    return other if bool(close) else model


def _copied(model: Contract) -> Contract | None:
    """A contract whose module is a copy, or None where the source keeps its network elsewhere."""
    if isinstance(model.source, nn.Module):
        return contract(copy.deepcopy(model.source))
    if getattr(model.source, "module", None) is not model.module:
        return None
    source = copy.copy(model.source)
    object.__setattr__(source, "module", copy.deepcopy(model.module))
    return contract(source)


def _pairs(model: Contract, module: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """(convolution, norm) by name, where the norm's input is the very tensor that the convolution put out."""
    names = {layer: name for name, layer in module.named_modules()}
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    seen: dict[nn.Module, nn.Module | None] = {}

    def after(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = (layer, output)  # the tensor is kept, so that its id is not given again
        elif given and isinstance(given[0], Tensor):
            before = made.get(id(given[0]), (None,))[0]
            # A norm that runs twice, after two convolutions, cannot be folded into one of them.
            seen[layer] = before if seen.get(layer, before) is before else None

    with _hooked(module, after):
        model.activations(images[:1])
    users = [conv for conv in seen.values() if conv is not None]
    return [(names[conv], names[norm]) for norm, conv in seen.items() if conv is not None and users.count(conv) == 1]


@contextmanager
def _hooked(module: nn.Module, after: object) -> Iterator[None]:
    handles = [
        m.register_forward_hook(after)  # type: ignore[arg-type]
        for m in module.modules()
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fuse(module: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for conv, norm in pairs:
        layers: tuple[Any, Any] = module.get_submodule(conv), module.get_submodule(norm)
        fused = fuse_conv_bn_eval(*layers)
        _put(module, conv, fused)
        _put(module, norm, nn.Identity())


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
