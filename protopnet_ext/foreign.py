"""Checkpoints of upstream ``PPNet`` and of its descendants: recognised by names and shapes, taken into the reference.

The authors' state dict has the reference model's names already; what it lacks is the backbone's name, each prototype's
class (a plain tensor outside the state dict), the input's size and the activation function. A whole-module pickle says
all but the first. Where the class is not said, it comes from the ``bb.npy`` that upstream's push writes or from the
user's word, and is never guessed.

TesNet uses the same names and compares differently. A whole module tells its class; a bare state dict cannot, and is
read as the ProtoPNet that its names say.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import ADD_ONS, Description
from protomask.checks import check_choice, check_count
from protomask.errors import CheckpointError, InputError, expected
from protomask.foreign import Foreign, Layout, Stated
from protomask.layers import check_layers
from protomask.model import IMAGENET_MEAN, IMAGENET_STD
from protomask.opening import check_regular
from protomask.pickles import Inert, printable, shown
from protomask.training.backbones import BACKBONES, check_backbone

from .model import ACTIVATIONS, build

NAME = "protopnet"
IDENTITY = "prototype_class_identity"
CLASSES = ("PPNet", "ProtoPNet")  # whose forward pass the reference model computes
_HEAD = ("prototype_vectors", "ones", "last_layer.weight")
_SIZE, _EPSILON, _ACTIVATION = 224, 1e-4, "log"  # as published, and as upstream's settings have them
_LARGEST = 2048  # pixels along a side, unless stated: a file may not make us draw test images of any size

# (a name that only this descendant's state dict has, what it is, why the reference model cannot take it)
_DESCENDANTS = (
    ("prototype_vectors_support", "ST-ProtoPNet", "it has two banks of prototypes"),
    ("proto_presence", "ProtoPool", "its classes share prototypes through slots"),
    ("occurrence_module.", "XProtoNet", "it pools features by occurrence maps; of one of ours, give the folder"),
    ("activation_weight", "EvalProtoPNet", "it compares by projection and has no last layer"),
    ("cap_width_l2", "a ProtoPNet with capped activations", "it bounds its activations"),
)
# What the published class and our reference model keep as attributes; what changes the pass where it is there.
_ATTRIBUTES = frozenset(
    (
        *("img_size", "prototype_shape", "num_prototypes", "num_classes", "epsilon", "prototype_activation_function"),
        *("proto_layer_rf_info", "mean", "std", "class_names", IDENTITY),
    )
)
_POOLED = "topk_k"  # IAIA-BL's: the mean of so many smallest distances is pooled
# The oldest DenseNet files write norm.1 where the layer is called norm1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def recognise(foreign: Foreign) -> Layout | None:
    """What the names and shapes imply, if they are those of a ``PPNet`` or of a descendant that we know by name."""
    tensors = foreign.tensors
    if not any(k.startswith(_HEAD[0]) for k in tensors):
        return None
    for mark, name, reason in _DESCENDANTS:
        if any(k == mark or k.startswith(mark) for k in tensors):
            return _described(foreign, name, f"the reference ProtoPNet cannot take it: {reason}")
    if not set(_HEAD) <= tensors.keys() or not any(k.startswith("features.") for k in tensors):
        return None
    vectors, weight = tensors["prototype_vectors"], tensors["last_layer.weight"]
    if vectors.dim() != 4 or weight.dim() != 2 or weight.shape[1] != len(vectors):
        return _described(foreign, "ProtoPNet's names", "its shapes are not a ProtoPNet's")
    name = foreign.class_name.rpartition(".")[2]
    if name and name not in CLASSES:
        reason = "its names are a ProtoPNet's, but what its class computes cannot be told without its code"
        return _described(foreign, name, reason)
    return _described(foreign, "ProtoPNet", _another_pass(foreign))


def adopt(foreign: Foreign, layout: Layout, stated: Stated) -> tuple[Description, dict[str, Tensor]]:
    """The reference model's description and tensors, class identity included.

    What is neither in the file nor stated is as published (the input's size, its normalisation, the activation of a
    bare state dict), and named in ``description.extra["assumed"]``.

    Raises:
        CheckpointError: not a ProtoPNet's, or it says something else than what is stated, or does not say what only the
            user can (which backbone, the prototypes' classes).
        InputError: what is stated is not possible.
    """
    if layout.refused:
        raise CheckpointError(expected(str(foreign.path), "a ProtoPNet", f"{layout.name}: {layout.refused}"))
    assumed: list[str] = []
    tensors = _tensors(foreign.tensors)
    layout = _with_stated(foreign, layout, stated)
    description = Description(
        family=NAME,
        backbone=_backbone(foreign, layout, stated),
        prototype_shape=layout.prototype_shape,  # type: ignore[arg-type]
        num_classes=layout.num_classes,
        activation=_activation(foreign, stated, assumed),
        add_on=layout.add_on,
        size=_size(foreign, stated, assumed),
        class_names=_class_names(foreign, stated),
        epsilon=_epsilon(foreign, assumed),
        crop=_crop(stated, assumed),
        **_normalisation(foreign, stated, assumed),
    )
    tensors[IDENTITY] = _identity(foreign, layout, stated)
    if foreign.root is not None:
        _check_root(foreign, foreign.root, description)
        unproved = (
            f"the forward pass of {foreign.class_name}, whose code is not in the file, is taken to be as published"
        )
        unproved = "; ".join((unproved, *_unknown(foreign)))
    else:
        unproved = "the forward pass is taken to be a ProtoPNet's (a TesNet's state dict has the same names)"
    source: dict[str, Any] = {"file": foreign.path.name, "form": foreign.form, "kind": foreign.kind}
    source["class"] = foreign.class_name
    if foreign.beside:
        source["left aside"] = list(foreign.beside)
    extra = {"converted from": source, "assumed": assumed, "unproved": unproved}
    return replace(description, extra=extra), tensors


def _another_pass(foreign: Foreign) -> str:
    """Why the published forward pass is not the module's, where an attribute says so; else an empty text."""
    pooled = foreign.attributes.get(_POOLED, 1)
    return (
        ""
        if type(pooled) is int and pooled == 1
        else f"it pools the mean of several distances ({_POOLED} = {shown(pooled)})"
    )


def _unknown(foreign: Foreign) -> list[str]:
    """A sentence that names the plain attributes which neither the published class nor ours has, if there are any."""
    known = _ATTRIBUTES | {_POOLED}
    plain = [n for n, v in foreign.attributes.items() if n not in known and isinstance(v, (int, float, str))]
    if not plain:
        return []
    names = ", ".join(printable(name, 40) for name in plain[:8]) + (", ..." if len(plain) > 8 else "")
    return [f"attributes that the published class does not have: {names}; the forward pass may differ"]


def _described(foreign: Foreign, name: str, refused: str) -> Layout:
    tensors = foreign.tensors
    vectors = next((t for k, t in tensors.items() if k.startswith("prototype_vectors")), None)
    last = next((t for k, t in tensors.items() if k.startswith("last_layer") and k.endswith("weight")), None)
    notes: list[str] = []
    likely = _named(foreign)
    backbones, add_on = _fitting(tensors, likely) if vectors is not None and vectors.dim() == 4 else ((), "")
    if not refused and not add_on and backbones:
        refused = "its add-on layers are not a ProtoPNet's"
    has_classes = IDENTITY in foreign.attributes or IDENTITY in tensors
    if not refused and not has_classes:
        notes.append("the classes of the prototypes are not in the file")
    if foreign.beside:
        names = ", ".join(printable(name, 40) for name in foreign.beside[:8])
        notes.append(f"{len(foreign.beside)} tensors beside the model are left aside: {names}")
    notes += _unknown(foreign)
    return Layout(
        NAME,
        name,
        refused,
        backbones,
        add_on,
        () if vectors is None else tuple(vectors.shape),
        0 if last is None or last.dim() != 2 else len(last),
        has_classes,
        tuple(notes),
    )


def _fitting(tensors: Mapping[str, Tensor], named: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
    """The backbones whose names and shapes ``features.*`` has, cut ones where they are named, and the add-on layers.

    Raises:
        InputError: a backbone is named that cannot be built.
    """
    came = {name: tuple(t.shape) for name, t in _tensors(tensors).items()}
    features = {k.replace("cnn_backbone.", "features.", 1): s for k, s in came.items()}
    features = _without_counters({k: s for k, s in features.items() if k.startswith("features.")})
    channels = next((s[1] for s in features.values() if len(s) == 4), 3)
    tried = (named, _likely(features)) if channels in (1, 3) else ()
    fitting = (tuple(n for n in some if _shapes(n, channels, 1, "features.") == features) for some in tried)
    found = next((some for some in fitting if some), ())
    add_on = {k: s for k, s in came.items() if k.startswith("add_on_layers.")}
    depth = came["prototype_vectors"][1] if "prototype_vectors" in came else 0
    kinds = ADD_ONS if found and depth else ()
    fits = [k for k in kinds if _shapes(found[0], channels, depth, "add_on_layers.", k) == add_on]
    return found, fits[0] if fits else ""  # where both kinds fit they are the same layers


def _named(foreign: Foreign) -> list[str]:
    """The cut backbone that a whole module of ours names, if it can be built."""
    modules = {} if foreign.root is None else foreign.root.attributes.get("_modules")
    features = modules.get("features") if isinstance(modules, Mapping) else None
    name = features.attributes.get("name") if isinstance(features, Inert) else None
    if not isinstance(name, str) or "@" not in name:
        return []
    try:
        _shapes(check_backbone(name), 3, 1, "features.")
    except InputError:
        return []
    return [name]


def _with_stated(foreign: Foreign, layout: Layout, stated: Stated) -> Layout:
    """The layout where a backbone is stated that is tried only then: one that is cut."""
    if stated.backbone is None or "@" not in check_backbone(stated.backbone):
        return layout
    backbones, add_on = _fitting(foreign.tensors, (stated.backbone,))
    if backbones and not add_on:
        raise CheckpointError(expected(f"{foreign.path}: add_on_layers", "a ProtoPNet's add-on layers", "others"))
    return replace(layout, backbones=backbones, add_on=add_on)


def _likely(features: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The backbones worth building for a comparison: the deep ones take a fifth of a second each."""
    marks = (("resnet", "features.layer1."), ("densenet", "features.features.denseblock1."))
    kind = next((kind for kind, mark in marks if any(k.startswith(mark) for k in features)), "")
    deep = tuple(k for k, _ in marks)
    return [n for n in BACKBONES if (n.startswith(kind) if kind else not n.startswith(deep))]


@functools.lru_cache(maxsize=128)
def _shapes(backbone: str, channels: int, depth: int, part: str, add_on: str = "regular") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a part of the reference model, built without memory."""
    blank = (0.5,) * channels
    described = Description(NAME, backbone, (1, depth, 1, 1), 1, add_on=add_on, mean=blank, std=blank)
    with torch.device("meta"):
        state = build(described).state_dict()
    return _without_counters({k: tuple(t.shape) for k, t in state.items() if k.startswith(part)})


def _without_counters(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    # Files by PyTorch before 0.4.1 have no num_batches_tracked, which nothing here depends on.
    return {k: s for k, s in shapes.items() if not k.endswith("num_batches_tracked")}


def _tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under today's names, with batch norm's counters."""
    found = {_OLD_DENSENET.sub(r"\1\2.", k): v for k, v in tensors.items() if k != IDENTITY}
    for name in [k for k in found if k.endswith(".running_mean")]:
        found.setdefault(name.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))
    return found


def _backbone(foreign: Foreign, layout: Layout, stated: Stated) -> str:
    if stated.backbone is not None:
        check_backbone(stated.backbone)
        if stated.backbone not in layout.backbones:
            came = f"layers of {' or '.join(layout.backbones) or 'another network'}"
            raise CheckpointError(expected(f"{foreign.path}: features", f"the layers of {stated.backbone}", came))
        return stated.backbone
    if len(layout.backbones) != 1:
        known = " or ".join(layout.backbones) or "none that we know, by their names and shapes"
        raise CheckpointError(expected(f"{foreign.path}: backbone", "one that is recognised, or its name", known))
    return layout.backbones[0]


def _activation(foreign: Foreign, stated: Stated, assumed: list[str]) -> str:
    said = foreign.attributes.get("prototype_activation_function")
    if said is not None and (not isinstance(said, str) or said not in ACTIVATIONS):
        shown = str(said.origin if isinstance(said, Inert) else said)[:80]
        raise CheckpointError(
            expected(f"{foreign.path}: prototype_activation_function", " or ".join(ACTIVATIONS), f"code ({shown})")
        )
    if stated.activation is not None:
        check_choice("activation", stated.activation, ACTIVATIONS)
        _check_agreement(foreign, "prototype_activation_function", said, stated.activation)
        return stated.activation
    if said is None:
        assumed.append(f"activation: {_ACTIVATION}")
        return _ACTIVATION
    return str(said)


def _size(foreign: Foreign, stated: Stated, assumed: list[str]) -> tuple[int, int]:
    said = foreign.attributes.get("img_size")
    if isinstance(said, int) and not isinstance(said, bool):
        said = (said, said)
    if stated.size is not None:
        _check_agreement(foreign, "img_size", tuple(said) if isinstance(said, list) else said, tuple(stated.size))
        return stated.size
    if said is None:
        assumed.append(f"size: {_SIZE}")
        return _SIZE, _SIZE
    if not isinstance(said, (tuple, list)) or len(said) != 2 or not all(_is_number(side) for side in said):
        raise CheckpointError(expected(f"{foreign.path}: img_size", "a number or a pair", type(said).__name__))
    height, width = (check_count("img_size", side) for side in said)
    if max(height, width) > _LARGEST:
        raise CheckpointError(expected(f"{foreign.path}: img_size", f"at most {_LARGEST}", (height, width)))
    return height, width


def _epsilon(foreign: Foreign, assumed: list[str]) -> float:
    said = foreign.attributes.get("epsilon")
    if said is None:
        assumed.append(f"epsilon: {_EPSILON}")
        return _EPSILON
    if not _is_number(said):
        raise CheckpointError(expected(f"{foreign.path}: epsilon", "a number", shown(said)))
    return float(said)


def _is_number(value: Any) -> bool:
    """Whether a value is a number that floats can be and that Python writes out."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() <= 64)


def _crop(stated: Stated, assumed: list[str]) -> str:
    if stated.crop is None:
        assumed.append("crop: none (the authors cut CUB to boxes)")
    return stated.crop or "none"


def _normalisation(foreign: Foreign, stated: Stated, assumed: list[str]) -> dict[str, Any]:
    """``mean`` and ``std``: stated, the module's own, or ImageNet's."""
    first = next(t for k, t in foreign.tensors.items() if k.startswith("features.") and t.dim() == 4)
    found: dict[str, Any] = {}
    for name, given, default in (("mean", stated.mean, IMAGENET_MEAN), ("std", stated.std, IMAGENET_STD)):
        said = foreign.attributes.get(name)
        if isinstance(said, (tuple, list)) and all(_is_number(v) for v in said):
            if given is not None and tuple(given) != tuple(said):
                raise CheckpointError(expected(f"{foreign.path}: {name}", str(tuple(given)), shown(said)))
            given = tuple(said)
        if given is None:
            assumed.append(f"{name}: ImageNet's")
            given = default
        if len(given) != first.shape[1]:
            raise InputError(expected(name, f"{first.shape[1]} values, one per input channel", given))
        found[name] = given
    return found


def _class_names(foreign: Foreign, stated: Stated) -> tuple[str, ...]:
    said = foreign.attributes.get("class_names", ())
    plain = isinstance(said, (tuple, list)) and all(isinstance(name, str) for name in said)
    return stated.class_names if stated.class_names is not None else tuple(said) if plain else ()


def _identity(foreign: Foreign, layout: Layout, stated: Stated) -> Tensor:
    """[P, K] one-hot: the file's own, from ``bb.npy``, or as stated; each of them checked."""
    count, classes = layout.prototype_shape[0], layout.num_classes
    given: Tensor | None = None
    if stated.classes_from is not None:
        given = _one_hot(read_classes(stated.classes_from, count, classes), classes)
    elif stated.prototypes_per_class is not None:
        each = check_count("prototypes_per_class", stated.prototypes_per_class)
        if each * classes != count:
            came = f"{each} x {classes} classes for {count} (pruned? then take the classes from its bb.npy)"
            raise InputError(expected("prototypes_per_class", "as many prototypes as the file has", came))
        given = _one_hot(torch.arange(count) // each, classes)
    said = foreign.attributes.get(IDENTITY, foreign.tensors.get(IDENTITY))
    if said is None and given is None:
        wanted = "each prototype's class, by --classes-from BB.NPY or --prototypes-per-class N of `protomask convert`"
        raise CheckpointError(expected(f"{foreign.path}: {IDENTITY}", wanted, "neither"))
    if said is None:
        return given  # type: ignore[return-value]
    identity = _checked_identity(foreign.path, said, count, classes)
    if given is not None and not torch.equal(given, identity):
        rows = int((given != identity).any(1).sum())
        raise CheckpointError(expected(f"{foreign.path}: {IDENTITY}", "the stated classes", f"{rows} others"))
    return identity


def _checked_identity(path: Path, said: Any, count: int, classes: int) -> Tensor:
    if not isinstance(said, Tensor) or said.shape != (count, classes):
        came = list(said.shape) if isinstance(said, Tensor) else type(said).__name__
        raise CheckpointError(expected(f"{path}: {IDENTITY}", f"a tensor {[count, classes]}", came))
    identity = said.detach().float()
    if identity.is_meta:  # not read
        return identity
    if not bool((((identity == 0) | (identity == 1)).all(1) & (identity.sum(1) == 1)).all()):
        raise CheckpointError(expected(f"{path}: {IDENTITY}", "one class per prototype", "none, several or parts"))
    return identity


def _one_hot(classes: Tensor, count: int) -> Tensor:
    return functional.one_hot(classes, count).float()


def read_classes(path: Path, prototypes: int, classes: int) -> Tensor:
    """[P] int64, the classes in the last of the six columns of upstream's ``bb{epoch}.npy``.

    Raises:
        CheckpointError: no such file, of five columns (without class), of another number of rows, or a prototype
            without class.
    """
    check_regular(path, "upstream's bb.npy", CheckpointError)
    try:
        # Mapped: a header that promises more than the file holds is refused before anything is allocated.
        table = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers make numpy's parser raise almost any type
        raise CheckpointError(expected(str(path), "upstream's bb.npy", error)) from error
    if table.ndim != 2 or table.shape[1] != 6 or table.dtype.kind not in "iuf":
        came = f"{list(table.shape)} of {table.dtype}"
        raise CheckpointError(expected(str(path), "six columns of numbers, the last of them the class", came))
    if len(table) != prototypes:
        wanted = f"a row for each of the {prototypes} prototypes (a pruned model has a bb.npy of its own)"
        raise CheckpointError(expected(str(path), wanted, f"{len(table)} rows"))
    column = np.array(table[:, 5])
    if not np.isin(column, np.arange(classes)).all():
        bad = int((~np.isin(column, np.arange(classes))).sum())
        raise CheckpointError(expected(str(path), f"classes in 0 .. {classes - 1}", f"{bad} others (-1: never found)"))
    return torch.from_numpy(column.astype(np.int64))


def _check_root(foreign: Foreign, root: Inert, description: Description) -> None:
    """What a whole module says of itself agrees with what is built from it."""
    with torch.device("meta"):
        module: nn.Module = build(description)
    try:
        check_layers(root, module)
    except CheckpointError as error:
        raise CheckpointError(f"{foreign.path}: {error}") from error
    for name, value in (("num_classes", description.num_classes), ("num_prototypes", description.prototype_shape[0])):
        _check_agreement(foreign, name, foreign.attributes.get(name), value)
    shape = foreign.attributes.get("prototype_shape")
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else shape
    _check_agreement(foreign, "prototype_shape", shape, description.prototype_shape)


def _check_agreement(foreign: Foreign, name: str, said: Any, wanted: Any) -> None:
    parts = said if isinstance(said, tuple) else (said,)
    if said is not None and (not all(isinstance(v, (int, str)) for v in parts) or said != wanted):
        raise CheckpointError(expected(f"{foreign.path}: {name}", str(wanted), shown(said)))
