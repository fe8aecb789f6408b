"""Batch norm folded into the convolutions before it, in a copy: what a frozen network computes, in fewer operations.

In evaluation mode a batch norm is a scale and a shift per channel, and a convolution can carry both. Which convolution
feeds which norm is seen in one pass, layer by layer, and the copy is used only if it computes what the model does: a
convolution whose output something else reads as well (a residual branch) would be found out there.

A copy that :func:`quick` has proved is remembered for as long as its network lives and stays as it is, since the proof
costs half a floor pass per pair of 16 on small networks. What the network is, is read off its bits, anew in each call.
"""

from __future__ import annotations

import copy
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from protomask.hooks import has_hooks
from protomask.model import Contract, PrototypeModel

_TOLERANCE = 1e-7  # of the largest activation, in float64, where rounding cannot hide a difference
_ROUNDING = 1e-4  # likewise after rounding the copy's weights to float32, where the order of sums may differ, too
_MOST = 4  # networks whose copies are kept: a copy may hold its original, in a closure, and then neither would ever go
_INTEGERS = {1: torch.uint8, 2: torch.int16}  # by bytes per number, else int32


@dataclass(frozen=True, eq=False)
class _Proved:
    """A folded copy, and the :func:`_state` of the network that it was made of."""

    state: tuple[object, ...]
    copy: nn.Module


_COPIES: weakref.WeakKeyDictionary[nn.Module, _Proved] = weakref.WeakKeyDictionary()
_LOCK = Lock()


def quick(model: Contract, images: Tensor) -> Contract:
    """The model for many passes: folded, and with its images channels-last; about half a pass saved on small networks.

    What it computes is what the model does, but for rounding. Not for methods that look inside: layers may be missing.
    A model with hooks comes back as it is: in a copy, one that keeps features would go on to keep the original's.
    The copy of an unchanged network is made once; that it agrees is seen on one image in every call.

    Args:
        model: frozen, in evaluation mode (:func:`protomask.model.untouched`).
        images: [B, C, H, W] to look at; one is used.
    """
    if model.module is None or model.channels_last:
        return model
    root = _root(model)
    if has_hooks(model.module if root is None else root):
        return model
    state = _state(root, images) if root is not None and _has_norms(model.module) else None
    known = _remembered(model, root, state)
    if known is not None and _agrees(model, known, images[:1]):
        return known
    other = replace(folded(model, images[:1]), channels_last=True)
    fits = _agrees(model, other, images[:1])
    _remember(root, state if fits and other.module is not model.module else None, other)
    return other if fits else model


def _agrees(model: Contract, other: Contract, image: Tensor) -> bool:
    """In float32, or in float64 where the model's own rounding hides it.

    A ProtoPNet's distance is a difference of large numbers, whose logarithm at a prototype's own patch is off by a
    hundredth: on birds two of three images showed more than :data:`_ROUNDING` between two networks that are the same.
    """
    try:
        with torch.no_grad():
            wanted, came = model.activations(image), other.activations(image)
    except Exception:  # code that views its tensors instead of reshaping them, say
        return False
    return _close(came, wanted, _ROUNDING) or _agrees_exactly(model, other, image)


@torch.no_grad()
def _agrees_exactly(model: Contract, other: Contract, image: Tensor) -> bool:
    try:
        first, second = _doubled(model), _doubled(other)
        if first is None or second is None:
            return False
        exact = image.double()
        return _close(second.activations(exact), first.activations(exact), _ROUNDING)
    except Exception:
        return False


def _close(came: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return bool((came - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-6))


def _doubled(model: Contract) -> Contract | None:
    """A copy in float64, in evaluation mode, or None where the source keeps its network elsewhere."""
    other = _copied(model)
    if other is None or other.module is None:
        return None
    other.module.double().eval()  # a copy that a model makes of itself may be in training mode
    return other


def _root(model: Contract) -> nn.Module | None:
    """What is copied: the source where it is a module, else the module that it keeps; None where it keeps none."""
    if isinstance(model.source, nn.Module):
        return model.source
    return model.module if getattr(model.source, "module", None) is model.module else None


def _remembered(model: Contract, root: nn.Module | None, state: tuple[object, ...] | None) -> Contract | None:
    """The model around the copy that was kept of an equal state; a copy of any other state is dropped."""
    if root is None:
        return None
    with _LOCK:
        found = _COPIES.get(root)
        if found is not None and found.state != state:
            del _COPIES[root]
            found = None
    return None if found is None else replace(_around(model, found.copy), channels_last=True)


def _remember(root: nn.Module | None, state: tuple[object, ...] | None, other: Contract) -> None:
    """Keep the copy in ``other``, or none where there is no state, in the place of what was kept."""
    made = _root(other)
    if root is None or made is None:
        return
    with _LOCK:
        _COPIES.pop(root, None)
        if state is not None:
            for oldest in list(_COPIES)[: max(0, len(_COPIES) - _MOST + 1)]:
                del _COPIES[oldest]
            _COPIES[root] = _Proved(state, made)


def _state(root: nn.Module, images: Tensor) -> tuple[object, ...] | None:
    """Equal only for one and the same network with the same bits; None where that cannot be told.

    Layers (weakly, as a number could be given again), plain attributes, and the bits, type, shape and device of every
    tensor; 1 ms for a small network, 40 ms for 20 million weights on one core.
    """
    layers = list(root.modules())
    plain: list[object] = []
    tensors: list[Tensor] = []
    for layer in layers:
        for name, value in (*vars(layer).items(), *layer._parameters.items(), *layer._buffers.items()):
            if isinstance(value, Tensor):
                plain.append((name, value.dtype, value.shape, value.device))
                tensors.append(value)
            elif isinstance(value, (int, float, str)) and name != "training":
                plain.append((name, value))
    try:
        bits = _checksums(tensors)
    except (RuntimeError, TypeError, NotImplementedError):
        return None  # sparse, quantised, without memory
    # A copy made in inference mode cannot be used outside.
    about = (images.dtype, images.device, torch.is_inference_mode_enabled())
    return (tuple(weakref.ref(layer) for layer in layers), tuple(plain), bits, about)


@torch.no_grad()
def _checksums(tensors: list[Tensor]) -> tuple[int, ...]:
    """One per tensor, by its bits and their places: shuffled weights are other weights."""
    near = [zlib.crc32(_bits(t, torch.uint8).numpy().data) for t in tensors if t.device.type == "cpu"]
    far = [t for t in tensors if t.device.type != "cpu"]  # added up there, and fetched at once
    return (*near, *(torch.stack([_weighed(t) for t in far]).tolist() if far else ()))


def _weighed(tensor: Tensor) -> Tensor:
    """Sum of the bits as integers times odd numbers, so that no single change is lost by wrapping around."""
    bits = _bits(tensor, _INTEGERS.get(tensor.element_size(), torch.int32))
    return (bits * torch.arange(1, 2 * len(bits), 2, dtype=torch.int32, device=bits.device)).sum()


def _bits(tensor: Tensor, integers: torch.dtype) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(integers)


def _has_norms(module: nn.Module) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def folded(model: Contract, images: Tensor) -> Contract:
    """The model with its batch norms folded, in a copy; the model itself where that cannot be done exactly.

    Only for adapters that keep their network in an attribute ``module`` and for models that are a module themselves;
    others come back as they are, as does a model whose copy computes something else on ``images``.

    Args:
        model: frozen, in evaluation mode (:func:`protomask.model.untouched`).
        images: [B, C, H, W] to look at, at least one; a few are enough.
    """
    if model.module is None or not _has_norms(model.module):
        return model
    try:
        other = _doubled(model)
        if other is None or other.module is None:
            return model
        exact = images.double()
        wanted = other.activations(exact)
        pairs = _pairs(other, other.module, exact)
        if not pairs:
            return model
        _fuse(other.module, pairs)
        came = other.activations(exact)
        other.module.to(images.dtype).requires_grad_(False)
    except Exception:  # what cannot be copied, traced or fused works as it is, only slower
        return model
    return other if _close(came, wanted, _TOLERANCE) else model


def _copied(model: Contract) -> Contract | None:
    """A contract whose module is a copy, or None where the source keeps its network elsewhere."""
    root = _root(model)
    return None if root is None else _around(model, copy.deepcopy(root))


def _around(model: Contract, root: nn.Module) -> Contract:
    """The model with another module in the place of its :func:`_root`; the source that wraps it is a shallow copy."""
    if isinstance(model.source, nn.Module):
        return replace(model, source=cast("PrototypeModel", root), module=getattr(root, "module", root))
    source = copy.copy(model.source)
    object.__setattr__(source, "module", root)
    return replace(model, source=source, module=root)


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
