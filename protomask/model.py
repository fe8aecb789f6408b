"""The contract a prototype model fulfils, its defaults, and how an adapter is found for a model that does not.

Any object with ``num_prototypes`` and ``activations`` is a valid model: no base class, no registration. ::

    class Mine:
        num_prototypes = 10
        def activations(self, images, prototypes=None): ...

    protomask.locate(Mine(), images, targets)

A model of a known family (an upstream ``PPNet``, say) is wrapped by the adapter that an extension registers under the
entry point group ``protomask.families``.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from protomask.checks import check_count, check_tensor, flat_numbers
from protomask.errors import InputError, ModelError, expected
from protomask.precision import full_precision

FAMILIES = "protomask.families"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class PrototypeModel(Protocol):
    """What every localiser and metric may ask of a model; only this is mandatory, :class:`Contract` lists the rest.

    Attributes:
        num_prototypes: P, the number of prototypes, banks concatenated.
    """

    num_prototypes: int

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """Pooled scores, higher is closer, differentiable in ``images``.

        Args:
            images: [B, C, H, W], model-ready (normalised as the model expects).
            prototypes: None for all, or [B] int64: one prototype for each image.

        Returns:
            [B, P], or [B] where ``prototypes`` was given.
        """
        ...


@dataclass(frozen=True)
class Contract:
    """A model with every optional attribute of the contract filled in. Build it with :func:`contract`.

    Attributes:
        source: the object that the user gave.
        num_prototypes: P.
        module: what is frozen and restored: the source, its ``module``, else every ``nn.Module`` among its attributes;
            None where it holds none.
        input_shape: (C, H, W); None, the default, where the model takes any size.
        mean, std: per channel, what model-ready images were normalised by; ImageNet's where the source tells none.
        activation_range: (floor, ceiling) of an activation; None, the default of both, where there is none. Without a
            floor, an activation counts from that of an image of the mean colour.
        channels_last: whether images are laid out channels-last for a pass, as convolutions prefer.
    """

    source: PrototypeModel
    num_prototypes: int
    module: nn.Module | None
    input_shape: tuple[int, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    activation_range: tuple[float | None, float | None]
    channels_last: bool = False

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """The model's own activations, checked: [B, P], or [B] with ``prototypes`` [B].

        Raises:
            ModelError: another shape, or no gradient in images that ask for one.
        """
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        values = self.source.activations(images, prototypes)
        wanted = (len(images),) if prototypes is not None else (len(images), self.num_prototypes)
        if not isinstance(values, Tensor) or tuple(values.shape) != wanted:
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ModelError(expected("model.activations(...)", f"a tensor {list(wanted)}", came))
        if images.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
            cut = "a tensor without a gradient (torch.no_grad, .detach() or .data?)"
            raise ModelError(expected("model.activations(...)", "values differentiable in the images", cut))
        return values

    def similarity_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w] which pool to the activations, or None where the model has no such maps."""
        return self._optional("similarity_maps", images)

    def distance_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w], what the similarity maps are made of, lowest where they are highest (ProtoPNet), or None."""
        return self._optional("distance_maps", images)

    def occurrence_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w] >= 0, where each prototype occurs (XProtoNet), or None."""
        return self._optional("occurrence_maps", images)

    def prototype_features(self, images: Tensor) -> Tensor | None:
        """[B, P, D], the vector compared with each prototype (XProtoNet), or None."""
        return self._optional("prototype_features", images)

    def logits(self, images: Tensor) -> Tensor | None:
        """[B, K] class scores, or None."""
        return self._optional("logits", images)

    def class_weights(self) -> Tensor | None:
        """[P, K] weight of each prototype for each class, negative where against; or None.

        Raises:
            ModelError: another shape, such as the last layer's own [K, P].
        """
        method = getattr(self.source, "class_weights", None)
        weights = None if method is None else method()
        if weights is None:
            return None
        if not isinstance(weights, Tensor) or weights.dim() != 2 or len(weights) != self.num_prototypes:
            came = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            wanted = f"a tensor [{self.num_prototypes}, K], a row per prototype"
            raise ModelError(expected("model.class_weights()", wanted, came))
        return weights

    def describe(self, prototype: int) -> str:
        """A short name of the prototype, such as ``"Cardinal / 3"``; ``"prototype 3"`` where the model has none."""
        method = getattr(self.source, "describe", None)
        return f"prototype {prototype}" if method is None else str(method(prototype))

    def _optional(self, name: str, images: Tensor) -> Tensor | None:
        method = getattr(self.source, name, None)
        return None if method is None else cast("Tensor | None", method(images))


def contract(model: object) -> Contract:
    """The model with all optional attributes filled in; an ``nn.Module`` of a known family is wrapped first.

    Raises:
        ModelError: the object neither fulfils the contract nor is known to an installed adapter, or what it says of
            itself is none of the contract's forms.
    """
    if isinstance(model, Contract):
        return model
    source = wrap(model)
    _check_call(source)
    shape = getattr(source, "input_shape", None)
    return Contract(
        source=source,
        num_prototypes=check_count("model.num_prototypes", source.num_prototypes),
        module=_module_of(source),
        input_shape=None if shape is None else tuple(int(s) for s in shape),
        mean=_numbers("model.mean", getattr(source, "mean", IMAGENET_MEAN)),
        std=_numbers("model.std", getattr(source, "std", IMAGENET_STD), positive=True),
        activation_range=_range(getattr(source, "activation_range", None)),
    )


def _check_call(source: PrototypeModel) -> None:
    """ModelError unless ``activations`` takes images and prototypes; without a pass."""
    try:
        signature = inspect.signature(source.activations)
    except (TypeError, ValueError):
        return  # a built-in that tells nothing of itself
    try:
        signature.bind(None, None)
    except TypeError as error:
        came = f"activations{signature}"
        raise ModelError(expected("model.activations", "activations(images, prototypes=None)", came)) from error


def _module_of(source: object) -> nn.Module | None:
    """The source itself, its ``module``, else all modules that it keeps in attributes of its own; None where none is.

    A network that nobody freezes would be passed in training mode, where batch norm couples the images of a batch.
    """
    if isinstance(source, nn.Module):  # its own `module` is only a part of it
        return source
    stated = getattr(source, "module", None)
    if stated is not None:
        return cast("nn.Module", stated)
    kept: list[nn.Module] = []
    for value in getattr(source, "__dict__", {}).values():
        held = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (value,)
        kept += [m for m in held if isinstance(m, nn.Module)]
    return kept[0] if len(kept) == 1 else nn.ModuleList(kept) if kept else None


def _numbers(name: str, values: object, *, positive: bool = False) -> tuple[float, ...]:
    """A number per channel, in any form."""
    try:
        numbers = None if values is None else flat_numbers(values)  # numpy makes NaN of None
    except (TypeError, ValueError, RuntimeError):
        numbers = None
    if numbers is None:
        raise ModelError(expected(name, "a number per channel", repr(values)))
    if not numbers or not all(map(math.isfinite, numbers)) or (positive and min(numbers) <= 0):
        wanted = "a number above 0 per channel" if positive else "a finite number per channel"
        raise ModelError(expected(name, wanted, list(numbers)))
    return numbers


def _range(stated: object) -> tuple[float | None, float | None]:
    """(floor, ceiling); a model that says None has neither."""
    if stated is None:
        return None, None
    try:
        low, high = cast("Sequence[float | None]", stated)
        return tuple(None if v is None else float(v) for v in (low, high))  # type: ignore[return-value]
    except (TypeError, ValueError) as error:
        wanted = "(floor, ceiling), numbers or None"
        raise ModelError(expected("model.activation_range", wanted, repr(stated))) from error


@dataclass(frozen=True)
class Family:
    """What an extension registers under the entry point group ``protomask.families``.

    Attributes:
        name: the family's name in files and commands, such as ``"protopnet"``.
        matches: whether a foreign model has this family's form, judged by its attributes (upstream is never imported).
        wrap: a foreign or reference model behind the contract; raises ModelError where it cannot prove that it reads
            the model rightly.
        build: the reference model from a checkpoint's description (:class:`protomask.checkpoint.Description`).
        add_train_arguments: adds the family's own options to the parser of ``protomask train NAME``, or None.
        train: runs the training that those options describe; where it is None, that command does not know the family.
        demo: the folder of the small reference model that ships with the package, or None.
        recognise: what a foreign checkpoint's names and shapes imply (:class:`protomask.foreign.Foreign` ->
            :class:`protomask.foreign.Layout`), or None where they are not of this family's.
        adopt: the description and the tensors of the reference model that a recognised checkpoint becomes
            (Foreign, Layout, :class:`protomask.foreign.Stated` -> Description, tensors); raises CheckpointError.
        patch: patches the family's code bases (method, its settings and ``say`` -> :class:`protomask.patching.Patch`).
    """

    name: str
    matches: Callable[[object], bool]
    wrap: Callable[[object], PrototypeModel]
    build: Callable[[Any], nn.Module]
    add_train_arguments: Callable[[argparse.ArgumentParser], None] | None = None
    train: Callable[[argparse.Namespace], None] | None = None
    demo: Path | None = None
    recognise: Callable[[Any], Any] | None = None
    adopt: Callable[[Any, Any, Any], tuple[Any, dict[str, Tensor]]] | None = None
    patch: Callable[..., Any] | None = None


def families() -> dict[str, Family]:
    """The installed families by name, in alphabetical order."""
    points = sorted(entry_points(group=FAMILIES), key=lambda p: p.name)
    return {point.name: point.load() for point in points}


def wrap(model: object) -> PrototypeModel:
    """The model behind the contract, by the first installed family that knows its form; as it is where it fulfils it.

    Raises:
        ModelError: no family knows the model, or its adapter could not prove that it reads it rightly.
    """
    if isinstance(model, PrototypeModel):
        return model
    known = families()
    for family in known.values():
        if family.matches(model):
            return family.wrap(model)
    names = ", ".join(known) or "none"
    wanted = f"num_prototypes and activations(images, prototypes), or a model of a known family ({names})"
    raise ModelError(expected("model", wanted, type(model).__name__))


_TURNS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_TURNS_LOCK = Lock()


@contextmanager
def untouched(module: nn.Module | None) -> Iterator[None]:
    """Evaluation mode, frozen parameters and full precision inside; afterwards the model is as it came.

    Mode, ``requires_grad``, buffers and random state come back, also after an exception. In ``train()`` batch norm
    would couple the samples of a batch, so ``eval()`` is a must; a surrounding ``torch.autocast`` would round our own
    small products, and is off unless a method's setting ``precision`` asks for it. Threads that share a network take
    turns, since one would freeze what the other has frozen already and leave it frozen.
    """
    modules = list(module.modules()) if module is not None else []
    with ExitStack() as stack:
        if modules:
            stack.enter_context(_turn_of(modules[-1]))
        parameters = list(module.parameters()) if module is not None else []
        cuda = {p.device.index for p in parameters if p.device.type == "cuda" and p.device.index is not None}
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        stack.enter_context(full_precision())
        stack.enter_context(_kept_buffers(modules))
        modes = [m.training for m in modules]
        flags = [p.requires_grad for p in parameters]
        try:
            for m in modules:
                m.training = False
            for p in parameters:
                p.requires_grad_(False)
            yield
        finally:
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode
            for p, flag in zip(parameters, flags, strict=True):
                p.requires_grad_(flag)


def _turn_of(layer: nn.Module) -> Any:
    """The lock of the networks that end in this layer: whatever they are wrapped in, it is the same one."""
    with _TURNS_LOCK:
        return _TURNS.setdefault(layer, RLock())


@contextmanager
def _kept_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Buffers come back: the tensors as they were, and what was in them where it was changed in place."""
    own = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None and not b.is_inference()]
    kept = [(m, name, b, b.detach().clone(), b._version) for m, name, b in own]
    try:
        yield
    finally:
        for m, name, buffer, values, version in kept:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(values)
            if m._buffers.get(name) is not buffer:
                m._buffers[name] = buffer


def check_images(model: Contract, images: object) -> Tensor:
    """``images`` as they came if the model can take them: float [B, C, H, W], finite, B >= 1, of the model's shape."""
    shape: tuple[str | int, ...] = ("B", "C", "H", "W")
    if model.input_shape is not None:
        shape = ("B", *model.input_shape)
    batch = check_tensor("images", images, shape)
    if len(batch) == 0:
        raise InputError(expected("images", "at least one image", "none"))
    return batch


def floor_of(model: Contract) -> float | None:
    """The lowest value an activation of this model can take, or None where there is none."""
    floor = model.activation_range[0]
    return None if floor is None or not math.isfinite(floor) else float(floor)


def device_of(model: Contract) -> torch.device:
    """Where the model's parameters live; the CPU for a model without any."""
    parameter = next(model.module.parameters(), None) if model.module is not None else None
    return torch.device("cpu") if parameter is None else parameter.device


def class_prototypes(model: Contract, classes: Sequence[int]) -> Tensor:
    """[n] int64, the prototypes that speak for any of ``classes``: their largest class weight is positive and there.

    Raises:
        ModelError: the model tells no class weights.
        InputError: a class index out of range.
    """
    weights = model.class_weights()
    if weights is None:
        raise ModelError(expected("model.class_weights()", "a tensor [P, K], since a class was asked for", None))
    for k in classes:
        if not 0 <= k < weights.shape[1]:
            raise InputError(expected("class", f"an index in 0 .. {weights.shape[1] - 1}", k))
    own = (weights == weights.max(1, keepdim=True).values) & (weights > 0)
    return own[:, list(classes)].any(1).nonzero().squeeze(1).cpu()
