"""``push_prototypes``: run as it is; then each prototype is located once, and its bounds and pictures are drawn again.

What the function is called with (Chen et al.'s code, and what descends from it): a model in ``DataParallel``, a folder,
an epoch number and prefixes of file names. It calls ``update_prototypes_on_batch`` for every batch, which writes the
rows of the prototypes that this batch improves into ``proto_bound_boxes`` [P, 5 or 6] and ``proto_rf_boxes``, both
(image, top, bottom, left, right, ...), and saves their pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.patching import Replacements, arguments_of
from protomask.redrawing import reason_of

from .calls import module_inside
from .pictures import Bounds, Pictures, bounds_of
from .seen import Seen
from .session import Session

PUSH, UPDATE = "push_prototypes", "update_prototypes_on_batch"
READ = {
    PUSH: ("prototype_network_parallel",),
    UPDATE: ("search_batch_input", "start_index_of_search_batch", "proto_bound_boxes", "proto_rf_boxes"),
}
"""The arguments that are read; a fork without them is left as it is, and its maps are recognised by their content."""
PLACE = "push"
MISSED = "the batch that a prototype was pushed to was not seen"


@dataclass(eq=False)
class _Source:
    """Where a prototype was found: picture [3, H, W] in [0, 1], model-ready image [C, H, W], receptive field."""

    picture: Tensor
    image: Tensor
    field_of_view: tuple[int, ...]


@dataclass(eq=False)
class _Push:
    """One push while it runs: each prototype's source so far, or why it is not known, and the pictures' names.

    Where not even the improved prototypes could be told, ``lost`` is the reason: any source may be outdated then.
    """

    first: int = 0
    sources: dict[int, _Source | str] = field(default_factory=dict)
    pictures: Pictures | None = None
    lost: str = ""


def see(replacements: Replacements, session: Session, module: ModuleType) -> None:
    """Wrap the two functions where a module defines both."""
    if not (replacements.defines(module, PUSH) and replacements.defines(module, UPDATE)):
        return
    if not all(session.tally.knows(f"{module.__name__}.{name}", vars(module)[name], READ[name]) for name in READ):
        return
    running: list[_Push] = []
    session.tally.found[f"{module.__name__}.{PUSH}"] = None
    replacements.wrap(module, UPDATE, functools.partial(_update, session, running))
    replacements.wrap(module, PUSH, functools.partial(_push, session, running))


def _push(session: Session, running: list[_Push], original: Callable[..., Any]) -> Callable[..., Any]:
    def push_prototypes(*args: Any, **kwargs: Any) -> Any:
        call = arguments_of(original, args, kwargs)
        running.append(_Push())
        try:
            with session.push():
                result = original(*args, **kwargs)
            done = running[-1]
        finally:
            running.pop()
        _draw_again(session, done, call)
        return result

    return push_prototypes


def _update(session: Session, running: list[_Push], original: Callable[..., Any]) -> Callable[..., Any]:
    def update_prototypes_on_batch(*args: Any, **kwargs: Any) -> Any:
        if not running:
            return original(*args, **kwargs)
        call = arguments_of(original, args, kwargs)
        push = running[-1]
        with _losing(push):
            before = np.array(call["proto_bound_boxes"])
        session.seen.clear()
        result = original(*args, **kwargs)
        with _losing(push):
            if not push.lost:
                _note(session, push, call, np.flatnonzero((call["proto_bound_boxes"] != before).any(1)).tolist())
        return result

    return update_prototypes_on_batch


@contextmanager
def _losing(push: _Push) -> Iterator[None]:
    """An error inside loses the push, not the script."""
    try:
        yield
    except Exception as error:
        push.lost = reason_of(error)


def _note(session: Session, push: _Push, call: dict[str, Any], improved: list[int]) -> None:
    """Remember the images of the prototypes that a batch has improved; a later batch may improve them further."""
    push.pictures = Pictures.of_call(call)
    if push.pictures is None:
        return
    push.sources.update(dict.fromkeys(improved, MISSED))
    if not session.seen:
        return
    try:
        push.first = session.seen[-1].first
        push.sources.update(_sources(session.seen[-1], call, improved))
    except Exception as error:
        push.sources.update(dict.fromkeys(improved, reason_of(error)))


def _sources(batch: Seen, call: dict[str, Any], improved: list[int]) -> dict[int, _Source]:
    """Where the improved prototypes were found, as far as that is in the batch."""
    start, raw = int(call["start_index_of_search_batch"]), call["search_batch_input"]
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    found: dict[int, _Source] = {}
    for j in improved:
        row = int(call["proto_bound_boxes"][j, 0]) - start
        if not 0 <= row < len(batch.images):
            continue
        if row not in copies:
            copies[row] = (raw[row].detach().cpu().clone(), batch.images[row].cpu().clone())
        found[j] = _Source(*copies[row], tuple(int(v) for v in call["proto_rf_boxes"][j, 1:5]))
    return found


def _draw_again(session: Session, push: _Push, call: dict[str, Any]) -> None:
    pictures = push.pictures
    if push.lost:
        session.tally.draw(PLACE, push.lost)
    if pictures is None or push.lost:
        return
    try:
        module = module_inside(call["prototype_network_parallel"])
        bounds = Bounds.of_call(call, pictures.folder)
    except Exception as error:
        push.sources = dict.fromkeys(push.sources, reason_of(error))
        bounds = Bounds(None, np.zeros((0, 6), dtype=np.int64))
    known = {j: source for j, source in sorted(push.sources.items()) if isinstance(source, _Source)}
    for source in push.sources.values():
        if isinstance(source, str):
            session.tally.draw(PLACE, source)
    for group in _groups(list(known), session.options["batch"]):
        _draw_group(session, module, push.first, {j: known[j] for j in group}, pictures, bounds)
    try:
        bounds.save()
    except OSError as error:
        session.tally.note(f"the bounds could not be written again: {error}")


def _draw_group(
    session: Session, module: nn.Module, first: int, sources: dict[int, _Source], pictures: Pictures, bounds: Bounds
) -> None:
    images = {id(source.image): source.image for source in sources.values()}
    rows = {key: row for row, key in enumerate(images)}
    pairs = [(rows[id(source.image)], first + j) for j, source in sources.items()]
    try:
        found = session.locate(module, torch.stack(list(images.values())), pairs)
    except RuntimeError as error:  # images of several sizes
        found = [reason_of(error)] * len(pairs)
    for (j, source), located in zip(sources.items(), found, strict=True):
        if isinstance(located, str):
            session.tally.draw(PLACE, located)
            continue
        try:
            pictures.draw(j, source.picture, located, source.field_of_view)
            bounds.set(j, bounds_of(located))
        except Exception as error:
            session.tally.draw(PLACE, reason_of(error))
        else:
            session.tally.draw(PLACE)


def _groups(items: list[int], size: int) -> list[list[int]]:
    """Consecutive groups, so that memory is bounded: a group's images are on the device together."""
    return [items[start : start + size] for start in range(0, len(items), size)]
