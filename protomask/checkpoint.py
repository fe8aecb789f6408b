"""Checkpoints: a folder with ``model.safetensors`` and ``model.json``. No code runs on loading, foreign files included.

The JSON file is a :class:`Description`; the family it names rebuilds the module, and the tensors are checked one by one
before they go in. A module may keep tensors outside its state dict (ProtoPNet's class identity is one) and have them
stored too, by offering ``extra_tensors() -> dict`` and ``load_extra_tensors(dict)``. ::

    save_checkpoint("out", module, description)
    checkpoint = load_checkpoint("out")
    protomask.locate(checkpoint.model, images, targets)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from protomask.checks import check_area, check_choice, check_count, check_number
from protomask.errors import CheckpointError, HostileError, InputError, ModelError, ProtomaskError, expected
from protomask.files import write_bytes, write_text
from protomask.foreign import MODULE, OTHER, Foreign, Layout, Stated, check_harmless, read_foreign, read_safetensors
from protomask.model import IMAGENET_MEAN, IMAGENET_STD, Family, PrototypeModel, families, wrap
from protomask.opening import is_file, is_folder, read_text
from protomask.trusted import load_trusted

FORMAT_VERSION = 1
TENSORS = "model.safetensors"
DESCRIPTION = "model.json"
ACTIVATIONS = ("log", "linear", "cosine")
ADD_ONS = ("regular", "bottleneck")
DIGEST = "description_sha256"  # of what was saved; an edit of model.json leaves it as it is
RESIZES = ("squash",)
CROPS = ("none", "box")

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class PrototypeSource:
    """Where a prototype was taken from.

    Attributes:
        image_id: the training image, as its data set names it; empty where the prototype was never pushed.
        file: that image at the model's input size, a PNG's path relative to the checkpoint; empty where not stored.
        label: class index of that image.
        activation: the prototype's activation on that image, or None.
        box: xyxy in the pixels of ``file``, exclusive end; None where not located.
        split: the data set's split that the image is from.
    """

    image_id: str = ""
    file: str = ""
    label: int = 0
    activation: float | None = None
    box: tuple[float, float, float, float] | None = None
    split: str = "train"

    def __post_init__(self) -> None:
        for name in ("image_id", "file", "split"):
            _text(f"prototypes.{name}", getattr(self, name))
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts or "\\" in self.file or ":" in self.file:
            raise InputError(expected("prototypes.file", "a path inside the checkpoint's folder", repr(self.file)))
        check_count("prototypes.label", self.label, 0)
        if self.activation is not None:
            _number("prototypes.activation", self.activation)
        if self.box is not None:
            object.__setattr__(self, "box", _numbers("prototypes.box", self.box, 4))


@dataclass(frozen=True)
class Description:
    """What ``model.json`` says: enough to rebuild the module, to feed it, and to name what it knows.

    Attributes:
        family: an installed family's name, such as ``"protopnet"``.
        backbone: the family's name of the backbone, such as ``"resnet18"`` or ``"resnet18@16"``.
        prototype_shape: (P, D, h1, w1).
        num_classes: K.
        activation: ``"log"`` or ``"linear"`` in the squared L2 distance, or ``"cosine"``.
        add_on: ``"regular"`` or ``"bottleneck"``, the layers between backbone and prototypes.
        mean, std: per channel, of pixels in [0, 1]: what inputs are normalised by.
        size: (height, width) of the input, pixels.
        resize: how an image becomes that size; ``"squash"`` changes its aspect ratio.
        crop: ``"none"``, or ``"box"`` where the object's box is cut out first.
        class_names: K names, or none.
        epsilon: of the log activation, log((d + 1) / (d + epsilon)).
        multi_label: True where an image may be of several classes or none: a logit above 0 says yes.
        prototypes: where each prototype was taken from: P entries, or none.
        extra: anything else, such as the training's settings; plain JSON values.
        format_version: 1.
    """

    family: str
    backbone: str
    prototype_shape: tuple[int, int, int, int]
    num_classes: int
    activation: str = "log"
    add_on: str = "regular"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] = (224, 224)
    resize: str = "squash"
    crop: str = "none"
    class_names: tuple[str, ...] = ()
    epsilon: float = 1e-4
    multi_label: bool = False
    prototypes: tuple[PrototypeSource, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("family", "backbone"):
            _text(name, getattr(self, name))
        self._freeze("prototype_shape", _counts("prototype_shape", self.prototype_shape, 4))
        self._freeze("size", check_area("size", _pair(_counts("size", self.size, 2))))
        check_count("num_classes", self.num_classes)
        for name, choices in (("activation", ACTIVATIONS), ("add_on", ADD_ONS), ("resize", RESIZES), ("crop", CROPS)):
            check_choice(name, getattr(self, name), choices)
        self._freeze("mean", _numbers("mean", self.mean))
        self._freeze("std", _numbers("std", self.std, len(self.mean)))
        if len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise InputError(expected("mean, std", "1 or 3 values each, std above 0", (self.mean, self.std)))
        check_number("epsilon", self.epsilon, 0, 1, open_low=True)
        if not isinstance(self.multi_label, bool):
            raise InputError(expected("multi_label", "true or false", repr(self.multi_label)))
        self._freeze("class_names", tuple(_text("class_names", n) for n in _sequence("class_names", self.class_names)))
        if len(self.class_names) not in (0, self.num_classes):
            raise InputError(expected("class_names", f"{self.num_classes} names or none", len(self.class_names)))
        self._freeze("prototypes", tuple(_sequence("prototypes", self.prototypes)))
        if len(self.prototypes) not in (0, self.prototype_shape[0]):
            wanted = f"{self.prototype_shape[0]} entries or none"
            raise InputError(expected("prototypes", wanted, len(self.prototypes)))
        if not isinstance(self.extra, Mapping):
            raise InputError(expected("extra", "a mapping", type(self.extra).__name__))
        self._freeze("extra", dict(self.extra))

    def _freeze(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: the module behind the contract.
        module: the module itself, in evaluation mode, on the CPU.
        description: what ``model.json`` says, or what a foreign file implies; None for a module that ran its own code.
        folder: where it was read from; ``description.prototypes[j].file`` is relative to it.
    """

    model: PrototypeModel
    module: nn.Module
    description: Description | None
    folder: Path


def save_checkpoint(folder: str | os.PathLike[str], module: nn.Module, description: Description) -> Path:
    """Write ``model.safetensors`` and ``model.json`` into ``folder`` (made where it is missing); give the folder back.

    Each file is written whole or not at all, so that an interrupted run leaves the one before. Both hold a digest of
    the description: where it was interrupted between them and they are of two saves, loading refuses the pair.

    Raises:
        ResourceError: the folder cannot be written.
        InputError: ``description.extra`` holds something that JSON cannot.
    """
    folder = Path(folder)
    try:
        values = json.dumps(asdict(description), allow_nan=False)
        digest = hashlib.sha256(values.encode("utf-8")).hexdigest()
        head = {"format_version": FORMAT_VERSION, DIGEST: digest}
        text = json.dumps(head | asdict(description), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(expected("description.extra", "plain, finite JSON values", error)) from error
    # Clones, since safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in _tensors_of(module).items()}
    # As bytes, since safetensors' own writer leaves a file that only its owner can read.
    write_bytes(folder / TENSORS, serialise(tensors, metadata={"format": "pt", DIGEST: digest}))
    write_text(folder / DESCRIPTION, text)
    return folder


def read_description(folder: str | os.PathLike[str]) -> Description:
    """The description in ``folder``, checked.

    Raises:
        CheckpointError: no such folder or file, no JSON, another format version, or a value of the wrong kind.
    """
    path = _member(Path(folder), DESCRIPTION)
    values = _values(path)
    values.pop(DIGEST, None)
    try:
        sources = _sequence("prototypes", values.get("prototypes", ()))
        values["prototypes"] = tuple(_record(PrototypeSource, "prototypes", source) for source in sources)
        return _record(Description, "description", values)
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _values(path: Path) -> dict[str, Any]:
    """The JSON object in a description's file, of our format version."""
    try:
        values = json.loads(read_text(path, "a JSON file", CheckpointError))
    except RecursionError as error:
        raise CheckpointError(expected(str(path), "a JSON file", "one that is nested too deeply")) from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(expected(str(path), "a JSON file", error)) from error
    if not isinstance(values, dict):
        raise CheckpointError(expected(str(path), "a JSON object", type(values).__name__))
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            expected(f"{path}: format_version", str(FORMAT_VERSION), repr(values.get("format_version")))
        )
    return values


def load_checkpoint(path: str | os.PathLike[str], *, stated: Stated | None = None, trust: bool = False) -> Checkpoint:
    """The checkpoint at ``path``, on the CPU, in float32 and evaluation mode.

    A folder is one of ours, also where its ``model.safetensors`` is named. Any other file is a foreign checkpoint: a
    state dict, a dict that holds one, or a whole module, by ``torch.save`` or as safetensors. It is read without
    running anything (:mod:`protomask.foreign`) and taken into the reference model of the family that recognises it.

    Args:
        path: a folder of ours, or a foreign file.
        stated: what the user says about a foreign file.
        trust: whether a whole module that cannot be had otherwise may run its own code (:mod:`protomask.trusted`). A
            state dict never does, nor does a file that holds no module and would call what no model needs.

    Raises:
        CheckpointError: a file is missing, truncated or of another format, the description is wrong or names a family
            that is not installed, or a tensor is missing, unexpected, of another shape or not finite; a foreign file is
            of no family's form, or lacks what only the user can say, or needs code (:class:`HostileError`: would call
            what no model needs).
        ModelError: the family's adapter refuses the module.
    """
    path = own_folder(path)
    if not is_file(path):
        return _load_folder(path)
    stated = stated or Stated()
    foreign = read_foreign(path, key=stated.key)
    try:
        return _load_foreign(foreign, stated)
    except (CheckpointError, ModelError) as error:
        if not trust or not _may_run(foreign, error):
            raise
        return _load_trusted(path, error)


def own_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint of ours where its ``model.safetensors`` is named, else the path as it came.

    The tensors alone do not say the input's size, its normalisation or the classes' names.
    """
    path = Path(path)
    return path.parent if path.name == TENSORS and is_file(path.with_name(DESCRIPTION)) else path


def check_folder(folder: Path) -> dict[str, Tensor]:
    """What of :func:`load_checkpoint` needs no tensor's content, for a folder of ours.

    Returns:
        its tensors by name, on the ``meta`` device.

    Raises:
        CheckpointError: as there.
    """
    path, family, description, tensors = _opened(folder, lambda path: read_safetensors(path, data=False))
    _check_outline(path, folder, family, description, tensors)
    return tensors


def check_foreign(foreign: Foreign, stated: Stated) -> None:
    """What of :func:`load_checkpoint` needs no tensor's content, for a foreign file read without data.

    Raises:
        ProtomaskError: as there.
    """
    family, description, tensors = _adopted(foreign, stated)
    _check_outline(foreign.path, foreign.path, family, description, tensors)


def recognise(foreign: Foreign) -> tuple[Family, Layout] | None:
    """The installed family whose form a foreign checkpoint has, and what it reads in it; one that can take it first."""
    read = [(family, family.recognise(foreign)) for family in families().values() if family.recognise is not None]
    known: list[tuple[Family, Layout]] = [(family, layout) for family, layout in read if layout is not None]
    return min(known, key=lambda pair: bool(pair[1].refused), default=None)


def readers() -> list[str]:
    """The installed families that read foreign checkpoints as data; of others a module is known once it is loaded."""
    return [name for name, family in families().items() if family.recognise is not None and family.adopt is not None]


def _load_folder(folder: Path) -> Checkpoint:
    path, family, description, tensors = _opened(folder, _read_tensors)
    return _filled(path, folder, family, description, tensors)


def _opened(
    folder: Path, read: Callable[[Path], dict[str, Tensor]]
) -> tuple[Path, Family, Description, dict[str, Tensor]]:
    """A folder of ours: its tensors' file, its family, its description, and the tensors, which belong together."""
    description = read_description(folder)
    family = _family(folder, description)
    path = _member(folder, TENSORS)
    tensors = read(path)
    _check_pair(folder, path)
    _check_size(folder, description, tensors)
    return path, family, description, tensors


def _check_pair(folder: Path, path: Path) -> None:
    """CheckpointError where the tensors and the description are of two saves, the second of them interrupted."""
    with safe_open(path, framework="pt") as file:
        stored = (file.metadata() or {}).get(DIGEST)
    said = _values(folder / DESCRIPTION).get(DIGEST)
    if None not in (stored, said) and stored != said:
        came = "those of another save (one was interrupted: save again)"
        raise CheckpointError(expected(str(path), f"the tensors that {DESCRIPTION} was written with", came))


def _load_trusted(path: Path, reason: Exception) -> Checkpoint:
    try:
        module = load_trusted(path)
    except CheckpointError as error:
        raise CheckpointError(f"{reason}; nor by its own code: {error}") from error
    return Checkpoint(wrap(module), module, None, path.parent)


def _may_run(foreign: Foreign, reason: Exception) -> bool:
    """Whether trust may run a file's own code: only where that can give what reading it as data cannot, a module."""
    return foreign.kind == MODULE or (foreign.kind == OTHER and not isinstance(reason, HostileError))


def _load_foreign(foreign: Foreign, stated: Stated) -> Checkpoint:
    check_harmless(foreign)
    family, description, tensors = _adopted(foreign, stated)
    return _filled(foreign.path, foreign.path, family, description, tensors)


def _adopted(foreign: Foreign, stated: Stated) -> tuple[Family, Description, dict[str, Tensor]]:
    known = recognise(foreign)
    if known is None or known[0].adopt is None:
        some = ", ".join(list(foreign.tensors)[:3])
        wanted = f"a model of a family that reads foreign checkpoints ({', '.join(readers()) or 'none'})"
        trusted = " (with --trust it runs its own code)" if foreign.kind == MODULE else ""
        raise CheckpointError(expected(str(foreign.path), wanted, f"a {foreign.kind} with {some}, ...{trusted}"))
    return known[0], *known[0].adopt(foreign, known[1], stated)


def _filled(
    path: Path, source: Path, family: Family, description: Description, tensors: dict[str, Tensor]
) -> Checkpoint:
    """The family's module with the tensors of ``path`` in it; ``source`` is the folder or file it all came from."""
    # First without memory for its weights, since a description may ask for layers of any size.
    _check_outline(path, source, family, description, tensors)
    module = _build(source, family, description)
    _fill(path, module, tensors)
    module.eval()
    return Checkpoint(family.wrap(module), module, description, source if is_folder(source) else source.parent)


def _check_outline(
    path: Path, source: Path, family: Family, description: Description, tensors: Mapping[str, Tensor]
) -> None:
    with torch.device("meta"):
        outline = _build(source, family, description)
    _check_tensors(path, _tensors_of(outline), tensors)


def _member(folder: Path, name: str) -> Path:
    if not is_folder(folder):
        came = "a file" if is_file(folder) else "no such folder"
        raise CheckpointError(expected("checkpoint", f"a folder with {DESCRIPTION} and {TENSORS} at {folder}", came))
    path = folder / name
    if not is_file(path):
        raise CheckpointError(expected(str(path), f"the checkpoint's {name}", "no such file"))
    return path


def _family(folder: Path, description: Description) -> Family:
    known = families()
    if description.family not in known:
        wanted = f"an installed family ({', '.join(known) or 'none'})"
        raise CheckpointError(expected(f"{folder / DESCRIPTION}: family", wanted, repr(description.family)))
    return known[description.family]


def _check_size(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a description far larger than its tensors before anything of that size is allocated."""
    stored = sum(t.numel() for t in tensors.values())
    wanted = math.prod(description.prototype_shape) + description.prototype_shape[0] * description.num_classes
    if wanted > stored:
        shown = f"{list(description.prototype_shape)} for {description.num_classes} classes"
        limit = f"a shape that {stored} stored values can fill"
        raise CheckpointError(expected(f"{folder / DESCRIPTION}: prototype_shape", limit, shown))


def _build(folder: Path, family: Family, description: Description) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, then replaced
            return family.build(description)
    except (ProtomaskError, ValueError, RuntimeError) as error:
        wanted = f"a {family.name} model that can be built"
        where = folder if folder.is_file() else folder / DESCRIPTION
        raise CheckpointError(expected(str(where), wanted, error)) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    wanted = "a whole safetensors file"
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(expected(str(path), wanted, error)) from error
    size = path.stat().st_size
    # A safetensors file opens with the length of its header, 8 bytes, then the header itself, a JSON object.
    if head[8:9] != b"{":
        raise CheckpointError(expected(str(path), wanted, _kind_of(head, size)))
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(expected(str(path), wanted, f"{size} bytes, truncated or corrupt ({error})")) from error


def _kind_of(head: bytes, size: int) -> str:
    if head.startswith(b"PK\x03\x04"):
        return "a zip file (a pickle by torch.save, which may run code on loading)"
    if head[:1] == b"\x80":
        return "a pickle, which may run code on loading"
    return f"{size} bytes that open with {head[:8]!r}"


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict and what the module keeps outside it."""
    extra: Callable[[], Mapping[str, Tensor]] | None = getattr(module, "extra_tensors", None)
    return dict(module.state_dict()) | ({} if extra is None else dict(extra()))


def _fill(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    wanted = _tensors_of(module)
    _check_tensors(path, wanted, tensors)
    state = module.state_dict()
    module.load_state_dict({name: tensors[name] for name in state})
    rest = {name: tensor.to(wanted[name].dtype).clone() for name, tensor in tensors.items() if name not in state}
    if rest:
        module.load_extra_tensors(rest)  # type: ignore[operator]


def _check_tensors(path: Path, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless the tensors have the names, shapes and dtypes of ``wanted`` and are finite."""
    for problem, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise CheckpointError(expected(str(path), f"{len(wanted)} tensors", f"{len(names)} {problem}: {some}"))
    for name, tensor in tensors.items():
        _check_tensor(f"{path}: {name}", tensor, wanted[name])


def _check_tensor(name: str, tensor: Tensor, wanted: Tensor) -> None:
    if tensor.shape != wanted.shape:
        raise CheckpointError(expected(name, f"shape {list(wanted.shape)}", list(tensor.shape)))
    # Half precision goes into float32 without loss; nothing else may change its type.
    lossless = wanted.dtype == torch.float32 and tensor.dtype in (torch.float16, torch.bfloat16)
    if tensor.dtype != wanted.dtype and not lossless:
        raise CheckpointError(expected(name, f"dtype {wanted.dtype}", tensor.dtype))
    if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(expected(name, "finite values", f"{bad} NaN or infinite of {tensor.numel()}"))


def _record(kind: type[_Record], name: str, values: object) -> _Record:
    """A record from a JSON object whose keys must be the record's fields."""
    if not isinstance(values, dict):
        raise InputError(expected(name, "a JSON object", type(values).__name__))
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if values.keys() - known:
        raise InputError(expected(name, f"the keys {sorted(known)}", f"also {sorted(values.keys() - known)}"))
    try:
        return kind(**values)
    except TypeError as error:  # a key without default is missing
        raise InputError(expected(name, f"the keys {sorted(known)}", error)) from error


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(expected(name, "a string", repr(value)))
    if any("\ud800" <= c <= "\udfff" for c in value):  # JSON can say them, but no file of ours could hold them
        raise InputError(expected(name, "a string without half a surrogate pair", repr(value)[:200]))
    return value


def _pair(counts: tuple[int, ...]) -> tuple[int, int]:
    return counts[0], counts[1]


def _number(name: str, value: Any) -> float:
    return float(check_number(name, value, -1.7e308, 1.7e308))  # which leaves infinity out


def _sequence(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(expected(name, "a list", repr(value)))
    return value


def _numbers(name: str, value: object, length: int | None = None) -> tuple[float, ...]:
    numbers = tuple(_number(name, v) for v in _sequence(name, value))
    if length is not None and len(numbers) != length:
        raise InputError(expected(name, f"{length} numbers", len(numbers)))
    return numbers


def _counts(name: str, value: object, length: int) -> tuple[int, ...]:
    counts = tuple(check_count(name, v) for v in _sequence(name, value))
    if len(counts) != length:
        raise InputError(expected(name, f"{length} integers", len(counts)))
    return counts
