"""Checkpoints that are not ours, read as data: which tensors, under which names, and what else is said.

State dicts, dicts that hold one, and whole modules, by ``torch.save`` (zip or legacy), ``pickle.dump`` or safetensors.
Nothing is imported and nothing runs: a whole module comes as stand-ins (:mod:`protomask.pickles`), of which tensors and
plain attributes are taken. What the tensors mean is for a family to say: ``Family.recognise`` and ``Family.adopt``.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from protomask.errors import CheckpointError, HostileError, expected
from protomask.opening import check_regular
from protomask.pickles import ALLOWED, HARMLESS, Global, Inert, never, read_pickled

STATE_DICT, MODULE, OTHER = "state dict", "module", "other"
# Where trainers keep the weights, the likeliest first.
KEYS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "ppnet", "module", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ppnet.")
# What a ProtoPNet's names begin with: where they all lie under one prefix, what lies elsewhere is not the model's.
_MODEL = ("prototype_vectors", "features.", "last_layer")
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
_MAX_MODULES, _MAX_DEPTH, _MAX_NAME = 100_000, 100, 500

_KNOWN_LIBRARIES = ("torch", "torchvision", "numpy")
_GETATTR = Global("builtins", "getattr")


@dataclass(frozen=True, eq=False)
class Foreign:
    """What a foreign file holds.

    Attributes:
        path: the file.
        form: ``"zip"``, ``"legacy"``, ``"pickle"`` or ``"safetensors"``.
        kind: ``"state dict"``, ``"module"`` or ``"other"``.
        keys: under which keys of wrapping dicts it lies, outermost first; empty where it is not wrapped.
        prefix: what was taken off all names, such as ``"module."`` of DataParallel.
        tensors: the state dict, by name without prefix; a module's is put together from its stand-ins.
        beside: names of tensors that lie beside the model's in the same dict, such as a counter's or a loss's.
        attributes: a module's other attributes: plain values, tensors outside the state dict, names, stand-ins.
        root: the module's stand-in.
        uses: how the pickle uses each global it names.
        problem: why nothing could be made of it; empty where all is well.
    """

    path: Path
    form: str
    kind: str
    keys: tuple[str, ...] = ()
    prefix: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    root: Inert | None = None
    uses: Mapping[Global, frozenset[str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def class_name(self) -> str:
        """The module's class, such as ``"model.PPNet"``; empty for a state dict."""
        return "" if self.root is None else str(self.root.origin)


@dataclass(frozen=True)
class Layout:
    """What the names and shapes of the tensors imply, as a family reads them.

    Attributes:
        family: who says so.
        name: of the architecture, such as ``"ProtoPNet"``.
        refused: why the family's reference model cannot take it; empty where it can.
        backbones: those of the family's that fit, by name and shape; one where it is certain.
        add_on: kind of the add-on layers; empty where none fits.
        prototype_shape: (P, D, h1, w1); empty where not told.
        num_classes: K; 0 where not told.
        has_classes: whether the file says which class each prototype belongs to.
        notes: what a reader should know.
    """

    family: str
    name: str
    refused: str = ""
    backbones: tuple[str, ...] = ()
    add_on: str = ""
    prototype_shape: tuple[int, ...] = ()
    num_classes: int = 0
    has_classes: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stated:
    """What a user says about a foreign checkpoint; None where nothing is said.

    Attributes:
        backbone, activation: names that the family knows.
        size: (height, width) of the input, pixels.
        mean, std: per channel, of pixels in [0, 1].
        crop: ``"none"`` or ``"box"``.
        class_names: K names.
        classes_from: a ``bb.npy`` file, whose last column is each prototype's class.
        prototypes_per_class: N, where prototype j belongs to class j // N.
        key: under which key of a wrapping dict the weights lie.
    """

    backbone: str | None = None
    activation: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: str | None = None
    class_names: tuple[str, ...] | None = None
    classes_from: Path | None = None
    prototypes_per_class: int | None = None
    key: str | None = None


def read_foreign(path: str | os.PathLike[str], *, key: str | None = None, data: bool = True) -> Foreign:
    """The state dict or module in a file; a file that holds neither, or asks for what is refused, says so in it.

    Args:
        path: the file.
        key: of the wrapping dict, where several entries hold weights.
        data: False for tensors without content, on the ``meta`` device.

    Raises:
        CheckpointError: no such file.
    """
    path = Path(path)
    if _is_safetensors(path):
        return _read_safetensors(path, data)
    read = read_pickled(path, data=data, strict=False)
    if read.problem is not None:
        return Foreign(path, read.form, OTHER, uses=read.uses, problem=str(read.problem))
    try:
        return _found(path, read.form, read.value, read.uses, key)
    except CheckpointError as error:
        return Foreign(path, read.form, OTHER, uses=read.uses, problem=str(error))


def check_harmless(foreign: Foreign) -> None:
    """Refuse a file that holds no model, or that would call what no checkpoint needs to.

    Reading it has run nothing, and could not have; but whoever made such a file meant another reader, and nothing in it
    deserves trust.

    Raises:
        HostileError: with the names of what it would call.
        CheckpointError: it holds no model.
    """
    suspects = sorted(str(name) for name, how in foreign.uses.items() if verdict(name, how) == "refused")
    if suspects:
        came = f"one that would call {', '.join(suspects[:5])}"
        raise HostileError(expected(str(foreign.path), "a checkpoint that only describes a model", came))
    if foreign.problem:
        raise CheckpointError(foreign.problem)


def verdict(name: Global, how: frozenset[str]) -> str:
    """What a global in a pickle is: ``"data"``, ``"class"``, ``"code"`` or ``"refused"``.

    ``data``: rebuilt by our own reader. ``class``: one of torch's, torchvision's or numpy's, or a plain value's.
    ``code``: a class or function of someone's, which ``torch.load`` would import and run. ``refused``: a call that a
    model has no need of.
    """
    library = name.module.partition(".")[0]
    known = library in _KNOWN_LIBRARIES or library in sys.stdlib_module_names
    # What getattr gives may be a class that state would change for all.
    if never(name) or (known and "chained" in how) or (name == _GETATTR and "set" in how):
        return "refused"
    if name in ALLOWED or (name.module.startswith("torch") and re.fullmatch(r"\w+Storage", name.name)):
        return "data"
    if name in HARMLESS:
        return "class"
    # Names with dots are other modules' functions: each module holds those that it imports.
    rebuild = name.module == "torch._utils" and re.fullmatch(r"_rebuild_\w+", name.name)
    if "called" in how and known and not rebuild:
        return "refused"
    return "class" if library in _KNOWN_LIBRARIES else "code"


def _is_safetensors(path: Path) -> bool:
    size = check_regular(path, "a checkpoint file", CheckpointError)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(expected(str(path), "a file that can be read", error)) from error
    # The length of a JSON header, 8 bytes, then the header.
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < size


def read_safetensors(path: Path, *, data: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; without ``data``, on the ``meta`` device and not read.

    Raises:
        CheckpointError: damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _of_file(file, name, data) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(expected(str(path), "a whole safetensors file", error)) from error


def _read_safetensors(path: Path, data: bool) -> Foreign:
    try:
        return _state_dict(path, "safetensors", read_safetensors(path, data=data))
    except CheckpointError as error:
        return Foreign(path, "safetensors", OTHER, problem=str(error))


def _state_dict(
    path: Path,
    form: str,
    tensors: Mapping[str, Tensor],
    keys: tuple[str, ...] = (),
    uses: Mapping[Global, frozenset[str]] = MappingProxyType({}),
) -> Foreign:
    prefix, found, beside = without_prefix(tensors)
    return Foreign(path, form, STATE_DICT, keys, prefix, found, beside, uses=uses)


def _of_file(file: Any, name: str, data: bool) -> Tensor:
    if data:
        return file.get_tensor(name)
    part = file.get_slice(name)
    empty = part[:0] if part.get_shape() else file.get_tensor(name)
    return torch.empty(part.get_shape(), dtype=empty.dtype, device="meta")


def _found(path: Path, form: str, value: Any, uses: Mapping[Global, frozenset[str]], key: str | None) -> Foreign:
    keys, inner = _weights_in(value, key)
    if isinstance(inner, Inert):
        root, wrapper = _unwrapped(inner)
        tensors = _checked_names(dict(_module_tensors(root)))
        return Foreign(path, form, MODULE, keys, wrapper, tensors, (), _attributes(root), root, uses)
    if inner is None:
        came = f"{_kind(value)} at its root"
        raise CheckpointError(expected(str(path), "a state dict, a module, or a dict with one of them", came))
    return _state_dict(path, form, _checked_names(inner), keys, uses)


def _checked_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    odd = [name for name in tensors if not name.isprintable() or len(name) > _MAX_NAME]
    if odd:
        raise CheckpointError(expected("names of tensors", "short printable texts", repr(odd[0][:40])))
    return tensors


_Way = tuple[tuple[str, ...], Any]  # keys that lead there, and what is there or None


def _weights_in(value: Any, key: str | None, depth: int = 0, seen: dict[tuple[int, int], _Way] | None = None) -> _Way:
    """The way to the state dict or module in ``value``; each part is looked at once, however often it is shared."""
    seen = {} if seen is None else seen
    if (id(value), depth) not in seen:
        seen[id(value), depth] = _look_into(value, key, depth, seen)
    return seen[id(value), depth]


def _look_into(value: Any, key: str | None, depth: int, seen: dict[tuple[int, int], _Way]) -> _Way:
    if key is None and (_is_module(value) or _is_state_dict(value)):
        return (), value
    if not isinstance(value, Mapping) or depth == 2:
        return (), None
    named = {k: v for k, v in value.items() if isinstance(k, str) and k.isprintable() and key in (None, k)}
    inside = {k: _weights_in(v, None, depth + 1, seen) for k, v in named.items()}
    inside = {k: (path, found) for k, (path, found) in inside.items() if found is not None}
    first = next((k for k in KEYS if k in inside), None)
    if first is None and len(inside) > 1:
        wanted = "one entry with weights, or its name as key"
        raise CheckpointError(expected("checkpoint", wanted, ", ".join(sorted(inside))[:200]))
    first = next(iter(inside), None) if first is None else first
    if first is None:
        return (), None
    path, found = inside[first]
    return (first, *path), found


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _is_module(value: Any) -> bool:
    return isinstance(value, Inert) and {"_modules", "_parameters"} <= value.attributes.keys()


def _unwrapped(module: Inert) -> tuple[Inert, str]:
    """The module inside DataParallel and its like, and the prefix that their state dicts have."""
    prefix = ""
    while (inner := _WRAPPERS.get(module.origin.name)) is not None and module.origin.module.startswith("torch"):
        child = _children(module).get(inner)
        if child is None or len(prefix) > 100:
            break
        module, prefix = child, f"{prefix}{inner}."
    return module, prefix


def without_prefix(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """What a model's names begin with, of DataParallel and its like, and its tensors by the rest of their names.

    All names have the prefix, or those of the model do and of no other known prefix: ``AveragedModel`` counts beside
    the model, Lightning keeps the loss there.

    Returns:
        (the prefix, the tensors without it, the names that do not have it).
    """
    taken = ""
    found = dict(tensors)
    while found and (common := _common_prefix(found)):
        found = {k.removeprefix(common): v for k, v in found.items() if k.startswith(common)}
        taken += common
    return taken, found, tuple(k for k in tensors if not k.startswith(taken))


def _common_prefix(names: Iterable[str]) -> str:
    shared = next((p for p in PREFIXES if all(k.startswith(p) for k in names)), None)
    if shared is not None:
        return shared
    covering = [p for p in PREFIXES if _is_model(k.removeprefix(p) for k in names if k.startswith(p))]
    bare = any(k.startswith(_MODEL) for k in names)
    return covering[0] if len(covering) == 1 and not bare else ""


def _is_model(names: Iterable[str]) -> bool:
    """Whether the names are a model's, bare or wrapped once more."""
    bare = {k.removeprefix(next((p for p in PREFIXES if k.startswith(p)), "")) for k in names}
    return all(any(k.startswith(part) for k in bare) for part in _MODEL)


def _children(module: Inert) -> dict[str, Inert]:
    children = module.attributes.get("_modules")
    if not isinstance(children, Mapping):
        return {}
    return {str(name): child for name, child in children.items() if _is_module(child)}


def submodules(root: Inert) -> Iterator[tuple[str, Inert]]:
    """(path, stand-in) of a module and everything inside it, as ``named_modules`` gives them, shared ones repeated.

    Raises:
        CheckpointError: modules inside each other without end.
    """
    waiting = [("", root, 0)]
    count = 0
    while waiting:
        path, module, depth = waiting.pop()
        count += 1
        if count + len(waiting) > _MAX_MODULES or depth > _MAX_DEPTH:
            raise CheckpointError(expected("module", f"at most {_MAX_MODULES} modules, {_MAX_DEPTH} deep", "more"))
        yield path, module
        below = [(f"{path}.{name}".lstrip("."), child, depth + 1) for name, child in _children(module).items()]
        waiting.extend(reversed(below))


def _module_tensors(root: Inert) -> Iterator[tuple[str, Tensor]]:
    looked_at = 0
    for path, module in submodules(root):
        said = module.attributes
        skipped = _left_out(said)
        for group, left_out in (("_parameters", frozenset()), ("_buffers", skipped)):
            entries = said.get(group)
            entries = entries if isinstance(entries, Mapping) else {}
            looked_at += len(entries)
            if looked_at > _MAX_MODULES:
                raise CheckpointError(expected("module", f"at most {_MAX_MODULES} tensors", "more"))
            for name, value in entries.items():
                if isinstance(value, Tensor) and name not in left_out:
                    yield f"{path}.{name}".lstrip("."), value


def _attributes(root: Inert) -> dict[str, Any]:
    said = root.attributes
    buffers, skipped = said.get("_buffers"), _left_out(said)
    found = {name: value for name, value in said.items() if name.isidentifier() and name[0] != "_"}
    found.pop("training", None)
    if isinstance(buffers, Mapping):
        found |= {name: value for name, value in buffers.items() if name in skipped and isinstance(value, Tensor)}
    return found


def _left_out(said: Mapping[str, Any]) -> frozenset[str]:
    names = said.get("_non_persistent_buffers_set")
    return frozenset(n for n in names if isinstance(n, str)) if isinstance(names, (set, frozenset)) else frozenset()


def parameter_count(tensors: Mapping[str, Tensor]) -> int:
    """Elements of all floating-point tensors but batch norm's statistics."""
    statistics = ("running_mean", "running_var")
    counted = (t for n, t in tensors.items() if t.is_floating_point() and n.rpartition(".")[2] not in statistics)
    return sum(math.prod(t.shape) for t in counted)


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return f"an object of {value.origin}"
    if isinstance(value, Mapping):
        return "a dict without weights" if value else "an empty dict"
    return f"a {type(value).__name__}"
