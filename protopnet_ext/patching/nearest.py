"""``find_k_nearest_patches_to_prototypes``: the maps of the patches that it keeps.

The function (Chen et al.'s code, and what descends from it) makes an ``ImagePatch`` for every image and prototype, with
the picture and the map, keeps the nearest few of each prototype in heaps, and upsamples the kept maps at the end, when
the batches are gone. So the patch itself is remembered, weakly, and found again by its map when that is upsampled.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.patching import Replacements, arguments_of
from protomask.redrawing import reason_of

from .calls import module_inside
from .seen import Seen
from .session import UNKNOWN, Session

FIND, PATCH = "find_k_nearest_patches_to_prototypes", "ImagePatch"
_NETWORK = "prototype_network_parallel"


@dataclass(eq=False)
class Search:
    """One search while it runs.

    Attributes:
        module: the model.
        prepare: from pictures [B, 3, H, W] in [0, 1] to model-ready images, or None where they are the same.
        patches: for each prototype the patches that are still alive, in the order in which they were made.
        prototypes: id of a patch's map -> (the map, weakly; its prototype; None where that is not known).
        located: id of a map -> its located map or a reason, for the prototype that is being drawn.
    """

    module: nn.Module
    prepare: Callable[[Tensor], Tensor] | None
    patches: dict[int | None, weakref.WeakValueDictionary[int, Any]] = field(
        default_factory=lambda: defaultdict(weakref.WeakValueDictionary)
    )
    prototypes: dict[int, tuple[weakref.ref[np.ndarray], int | None]] = field(default_factory=dict)
    located: dict[int, np.ndarray | str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _batch: Seen | None = None
    _least: np.ndarray | None = None
    _next: int = 0

    def add(self, patch: Any, distance: float, array: np.ndarray, batch: Seen | None) -> None:
        """Remember a patch; its prototype is the one whose smallest distance in the batch this is."""
        prototype = self._prototype(distance, batch)
        key = id(array)
        self.prototypes[key] = (weakref.ref(array, lambda _: self.prototypes.pop(key, None)), prototype)
        self.patches[prototype][next(self._numbers)] = patch

    def _prototype(self, distance: float, batch: Seen | None) -> int | None:
        if batch is None:
            return None
        if batch is not self._batch:
            self._batch, self._next = batch, 0
            self._least = batch.maps.flatten(2).amin(2).cpu().numpy().reshape(-1)
        least = self._least
        if least is None or self._next >= len(least) or least[self._next] != distance:
            return None
        prototype = batch.first + self._next % batch.maps.shape[1]
        self._next += 1
        return int(prototype)

    def prototype_of(self, array: np.ndarray) -> int | None:
        """The prototype of a patch's map."""
        return self.prototypes[id(array)][1]

    def knows(self, array: np.ndarray) -> bool:
        """Whether the array is the map of a patch of this search."""
        entry = self.prototypes.get(id(array))
        return entry is not None and entry[0]() is array


def see(replacements: Replacements, session: Session, module: ModuleType) -> None:
    """Wrap the function, and the making of its patches, where a module defines both."""
    patch = vars(module).get(PATCH)
    if not isinstance(patch, type) or not replacements.defines(module, FIND):
        return
    name = f"{module.__name__}.{FIND}"
    if not session.tally.knows(name, vars(module)[FIND], [_NETWORK]):
        return
    session.tally.found[name] = None
    replacements.wrap(patch, "__init__", functools.partial(_patch, session))
    replacements.wrap(module, FIND, functools.partial(_find, session))


def _find(session: Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def find_k_nearest_patches_to_prototypes(*args: Any, **kwargs: Any) -> Any:
        call = arguments_of(original, args, kwargs)
        outer = session.search
        try:
            session.search = Search(module_inside(call[_NETWORK]), call.get("preprocess_input_function"))
        except TypeError as error:  # no network that we know; its maps may still be recognised by their content
            session.search = None
            session.tally.note(f"{FIND}: {error}")
        try:
            return original(*args, **kwargs)
        finally:
            session.search = outer

    return find_k_nearest_patches_to_prototypes


def _patch(session: Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        search, array = session.search, getattr(self, "act_pattern", None)
        # Without its picture a patch cannot be located; its map may still be recognised by its content.
        pictured = getattr(self, "original_img", None) is not None
        if isinstance(search, Search) and isinstance(array, np.ndarray) and pictured:
            try:
                search.add(self, -self.negative_distance, array, session.seen[-1] if session.seen else None)
            except Exception as error:
                session.tally.note(f"{PATCH}: {reason_of(error)}")

    return __init__


def map_of(session: Session, array: np.ndarray) -> np.ndarray | str | None:
    """The located map [H, W] of a kept patch, a reason why there is none, or None for another array."""
    search = session.search
    if not isinstance(search, Search) or not search.knows(array):
        return None
    prototype = search.prototype_of(array)
    if prototype is None:
        return UNKNOWN
    if id(array) not in search.located:
        search.located = _locate(session, search, prototype)
    return search.located[id(array)]


def _locate(session: Session, search: Search, prototype: int) -> dict[int, np.ndarray | str]:
    """All patches of one prototype that are alive, which are those that were kept, in one go."""
    kept = list(search.patches[prototype].values())
    pictures = np.stack([np.asarray(patch.original_img).transpose(2, 0, 1) for patch in kept])
    like = next(search.module.parameters())
    images = torch.from_numpy(pictures)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        images = images if search.prepare is None else search.prepare(images)
    pairs = [(row, prototype) for row in range(len(kept))]
    found = session.locate(search.module, images.to(like.device), pairs)
    return {id(patch.act_pattern): located for patch, located in zip(kept, found, strict=True)}
