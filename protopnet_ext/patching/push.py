"""``push_prototypes``: run as it is; then each prototype is located once, and its bounds and pictures are drawn again.

What the function is called with (Chen et al.'s code, and what descends from it): a model in ``DataParallel``, a folder,
an epoch number and prefixes of file names. It calls ``update_prototypes_on_batch`` for every batch, which writes the
rows of the prototypes that this batch improves into ``proto_bound_boxes`` [P, 5 or 6] and ``proto_rf_boxes``, both
(image, top, bottom, left, right, ...), and saves their pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.patching import Replacements

from .calls import arguments_of, module_inside
from .pictures import Bounds, Pictures, bounds_of
from .session import Session

PUSH, UPDATE = "push_prototypes", "update_prototypes_on_batch"
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
    """One push while it runs: each prototype's source so far, and the pictures' names."""

    first: int = 0
    sources: dict[int, _Source | None] = field(default_factory=dict)
    pictures: Pictures | None = None


def see(replacements: Replacements, session: Session, module: ModuleType) -> None:
    """Wrap the two functions where a module defines both."""
    if not (replacements.defines(module, PUSH) and replacements.defines(module, UPDATE)):
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
        boxes: np.ndarray = call["proto_bound_boxes"]
        before = boxes.copy()
        session.seen.clear()
        result = original(*args, **kwargs)
        _note(session, running[-1], call, np.flatnonzero((boxes != before).any(1)))
        return result

    return update_prototypes_on_batch


def _note(session: Session, push: _Push, call: dict[str, Any], improved: np.ndarray) -> None:
    """Remember the images of the prototypes that a batch has improved; a later batch may improve them further."""
    push.pictures = Pictures.of_call(call)
    if push.pictures is None:
        return
    batch = session.seen[-1] if session.seen else None
    start, raw = int(call["start_index_of_search_batch"]), call["search_batch_input"]
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    for j in improved.tolist():
        row = int(call["proto_bound_boxes"][j, 0]) - start
        if batch is None or not 0 <= row < len(batch.images):
            push.sources[j] = None
            continue
        push.first = batch.first
        if row not in copies:
            copies[row] = (raw[row].detach().cpu().clone(), batch.images[row].cpu().clone())
        push.sources[j] = _Source(*copies[row], tuple(int(v) for v in call["proto_rf_boxes"][j, 1:5]))


def _draw_again(session: Session, push: _Push, call: dict[str, Any]) -> None:
    pictures = push.pictures
    if pictures is None:
        return
    bounds = Bounds.of_call(call, pictures.folder)
    module = module_inside(call["prototype_network_parallel"])
    known = {j: source for j, source in sorted(push.sources.items()) if source is not None}
    for _ in range(len(push.sources) - len(known)):
        session.tally.draw(PLACE, MISSED)
    for group in _groups(list(known), session.options["batch"]):
        _draw_group(session, module, push.first, {j: known[j] for j in group}, pictures, bounds)
    bounds.save()


def _draw_group(
    session: Session, module: nn.Module, first: int, sources: dict[int, _Source], pictures: Pictures, bounds: Bounds
) -> None:
    images = {id(source.image): source.image for source in sources.values()}
    rows = {key: row for row, key in enumerate(images)}
    pairs = [(rows[id(source.image)], first + j) for j, source in sources.items()]
    device = next(module.parameters()).device
    stacked = torch.stack(list(images.values())).to(device)
    found = session.locate(module, stacked, pairs)
    for (j, source), located in zip(sources.items(), found, strict=True):
        if isinstance(located, str):
            session.tally.draw(PLACE, located)
            continue
        session.tally.draw(PLACE)
        bounds.set(j, bounds_of(located))
        pictures.draw(j, source.picture, located, source.field_of_view)


def _groups(items: list[int], size: int) -> list[list[int]]:
    """Consecutive groups, so that memory is bounded: a group's images are on the device together."""
    return [items[start : start + size] for start in range(0, len(items), size)]
