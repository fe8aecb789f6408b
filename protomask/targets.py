"""Which pairs to locate: explicit pairs, ``"top:3"``, ``"all"`` or one class's prototypes.

B images, P prototypes, N pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from protomask.checks import check_index
from protomask.errors import InputError, expected
from protomask.model import Contract, class_prototypes
from protomask.records import Targets

TargetsLike = Targets | Sequence[tuple[int, int]] | Tensor | str
FORMS = '"top:K", "all", "class:K", a list of (image, prototype) pairs, a tensor [N, 2] or a Targets record'


def needs_activations(targets: TargetsLike) -> bool:
    """Whether the choice depends on the activations [B, P] of the images."""
    return isinstance(targets, str) and targets.startswith("top:")


def check_targets(targets: TargetsLike, model: Contract, images: int) -> None:
    """Everything that can be known about ``targets`` before any network pass; raises as :func:`choose_targets` does."""
    if needs_activations(targets):
        _top_count(str(targets), model.num_prototypes)
    else:
        choose_targets(targets, model, images, None)


def choose_targets(targets: TargetsLike, model: Contract, images: int, activations: Tensor | None) -> Targets:
    """The pairs that ``targets`` names, image by image.

    Args:
        targets: ``"top:3"`` (each image's three most activated prototypes, best first), ``"all"`` (every prototype on
            every image), ``"class:17"`` (the prototypes of the model's class 17, counted from 0, on every image; where
            the model names its classes, ``"class:Cardinal"`` too), pairs (image, prototype), a tensor [N, 2] of them,
            or a :class:`Targets`.
        model: says how many prototypes there are, and whose.
        images: B.
        activations: [B, P], needed for ``"top:K"`` only.

    Raises:
        InputError: another form, an index out of range, or nothing to locate.
        ModelError: a class was asked for and the model tells no class weights.
    """
    if isinstance(targets, Targets):
        pairs = torch.stack([targets.images, targets.prototypes], 1)
    elif isinstance(targets, str):
        pairs = _named(targets, model, images, activations)
    else:
        pairs = _explicit(targets)
    if len(pairs) == 0:
        raise InputError(expected("targets", "at least one (image, prototype) pair", "none"))
    for name, column, size in (("image", 0, images), ("prototype", 1, model.num_prototypes)):
        low, high = int(pairs[:, column].min()), int(pairs[:, column].max())
        check_index(f"targets: {name}", low, size)
        check_index(f"targets: {name}", high, size)
    return Targets(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


def _named(text: str, model: Contract, images: int, activations: Tensor | None) -> Tensor:
    if text == "all":
        chosen = torch.arange(model.num_prototypes).expand(images, -1)
    elif text.startswith("top:"):
        count = _top_count(text, model.num_prototypes)
        if activations is None:
            raise InputError(expected("activations", f"a tensor [B, P], which {text!r} needs", None))
        # A stable sort, so that ties go to the lower index whatever the batch.
        chosen = activations.cpu().sort(dim=1, descending=True, stable=True).indices[:, :count]
    elif text.startswith("class:"):
        chosen = class_prototypes(model, [_class_index(text.removeprefix("class:"), model)]).expand(images, -1)
    else:
        raise InputError(expected("targets", FORMS, repr(text)))
    rows = torch.arange(images).repeat_interleave(chosen.shape[1])
    return torch.stack([rows, chosen.reshape(-1)], 1)


def _class_index(text: str, model: Contract) -> int:
    """The class that a number or a name means; a number is always an index."""
    if re.fullmatch(r"\d{1,9}", text):
        return int(text)
    names = list(getattr(model.source, "class_names", None) or ())
    if names.count(text) != 1:
        named = f"or one name of the model's classes ({', '.join(map(str, names[:3]))}, ...)" if names else ""
        came = repr(text) + ("" if names else ", and the model names no classes")
        raise InputError(expected("targets: class", f"an index from 0 {named}".rstrip(), came))
    return names.index(text)


def _top_count(text: str, prototypes: int) -> int:
    match = re.fullmatch(r"top:(\d{1,9})", text)
    if match is None or int(match[1]) < 1:
        raise InputError(expected("targets", "top:K with K of at least 1", repr(text)))
    return min(int(match[1]), prototypes)


def _explicit(pairs: Sequence[tuple[int, int]] | Tensor) -> Tensor:
    if not isinstance(pairs, Tensor):
        try:
            pairs = torch.tensor([[index(i), index(p)] for i, p in pairs], dtype=torch.int64).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last of what int64 cannot hold
            raise InputError(expected("targets", FORMS, repr(pairs)[:80])) from error
    integers = not (pairs.is_floating_point() or pairs.is_complex() or pairs.dtype == torch.bool)
    if pairs.dim() != 2 or pairs.shape[1] != 2 or not integers or pairs.is_meta:
        raise InputError(expected("targets", "integer pairs [N, 2]", f"{pairs.dtype} {list(pairs.shape)}"))
    return pairs.to("cpu", torch.int64)
