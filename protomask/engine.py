"""The one loop that trains masks.

A *problem* is one (image, prototype) pair at one scale. Problems of all pairs and scales run together in batches;
gradients flow to the mask vectors only; losses are summed, so that a problem's steps do not depend on its company. The
caller freezes the model (:func:`protomask.model.untouched`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.checks import check_count, check_number
from protomask.errors import ResourceError
from protomask.masks import blend, initial_vectors, render
from protomask.model import Contract
from protomask.objective import Loss

Result = TypeVar("Result")
Progress = Callable[[int], object]
"""Called with the number of forward + input-gradient passes (one image each) just made."""


@dataclass(frozen=True)
class Schedule:
    """How vectors are trained: Adam, clamped to [0, 1] after every step.

    Attributes:
        steps: optimiser steps.
        learning_rate: Adam's.
        betas: Adam's; a short second memory, since runs are short.
        start: the value of every cell before the first step.
        gradient_grain: gradients are rounded to multiples of this over scale^2, the gradient of a cell's area; 0 rounds
            nothing. A network rounds its sums differently in another batch size, and many steps blow such a difference
            up until masks differ visibly; what is rounded away does not grow.
        value_grain: vectors are rounded to multiples of this after every step, likewise.
    """

    steps: int = 16
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    start: float = 1.0
    gradient_grain: float = 0.0
    value_grain: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("start", self.start, 0, 1)
        check_number("gradient_grain", self.gradient_grain, 0)
        check_number("value_grain", self.value_grain, 0, self.learning_rate)


@dataclass(frozen=True, eq=False)
class Problems:
    """The pairs to train masks for, one row each; images may repeat, so they are held once and indexed.

    Attributes:
        images: [B, C, H, W] model-ready.
        fills: [M, C, H, W] what stands in for removed pixels.
        rows: [N] int64, the image of each pair.
        fill_rows: [N] int64, the fill of each pair.
        prototypes: [N] int64.
        before: [N] the activation on the whole image, above the floor.
        floors: [N] the activation of nothing.
    """

    images: Tensor
    fills: Tensor
    rows: Tensor
    fill_rows: Tensor
    prototypes: Tensor
    before: Tensor
    floors: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def train_masks(
    model: Contract,
    problems: Problems,
    scales: Sequence[int],
    loss: Loss,
    schedule: Schedule,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[int, Tensor]:
    """Mask vectors of every pair at every scale.

    Args:
        model: frozen, in evaluation mode.
        problems: N pairs.
        scales: cells per side, one vector each.
        loss: losses per problem.
        schedule: optimiser settings.
        batch: images in one network pass; halved when memory runs out.
        progress: told of passes made.

    Returns:
        scale -> [N, s, s] in [0, 1], detached.

    Raises:
        ResourceError: memory ran out with a single image in the pass.
    """
    n = len(problems)
    found = {scale: initial_vectors(n, scale, problems.images, schedule.start) for scale in scales}
    pairs = torch.arange(n).repeat_interleave(len(scales))
    which = torch.tensor(list(scales)).repeat(n)

    def solve(part: slice) -> None:
        chunk = _by_scale(pairs[part], which[part])
        for scale, vectors in _train_chunk(model, problems, chunk, loss, schedule, progress).items():
            found[scale][chunk[scale].to(vectors.device)] = vectors

    for _ in in_chunks(len(pairs), batch, solve):
        pass
    return found


def _round_to(values: Tensor | None, grain: float) -> None:
    """Round in place to multiples of ``grain``; 0 rounds nothing."""
    if values is not None and grain > 0:
        values.div_(grain).round_().mul_(grain)


def in_chunks(total: int, batch: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """``work`` over consecutive slices of at most ``batch``; out of memory halves the slice and repeats it.

    Raises:
        ResourceError: memory ran out on a slice of one.
    """
    start, size = 0, max(1, batch)
    while start < total:
        part = slice(start, min(start + size, total))
        try:
            result = work(part)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if part.stop - part.start == 1:
                raise ResourceError("batch: memory ran out with a single image in the pass") from error
            size = max(1, (part.stop - part.start) // 2)
            # The traceback keeps the failed pass's tensors alive; drop it before the next try.
            error.__traceback__ = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield result
        start = part.stop


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def _by_scale(pairs: Tensor, which: Tensor) -> dict[int, Tensor]:
    return {int(scale): pairs[which == scale] for scale in which.unique().tolist()}


def _train_chunk(
    model: Contract,
    problems: Problems,
    chunk: dict[int, Tensor],
    loss: Loss,
    schedule: Schedule,
    progress: Progress | None,
) -> dict[int, Tensor]:
    device = problems.images.device
    rows = torch.cat(list(chunk.values())).to(device)
    images = problems.images[problems.rows[rows]].contiguous(memory_format=torch.channels_last)
    fills = problems.fills[problems.fill_rows[rows]].contiguous(memory_format=torch.channels_last)
    prototypes, before, floors = problems.prototypes[rows], problems.before[rows], problems.floors[rows]
    size, sizes = (images.shape[-2], images.shape[-1]), [len(p) for p in chunk.values()]
    vectors = {s: initial_vectors(len(p), s, images, schedule.start).requires_grad_() for s, p in chunk.items()}
    optimiser = torch.optim.Adam(list(vectors.values()), lr=schedule.learning_rate, betas=schedule.betas)
    with torch.enable_grad():
        for _ in range(schedule.steps):
            masks = {s: render(v, size) for s, v in vectors.items()}
            kept = torch.cat(list(masks.values()))
            relative = relative_activation(model.activations(blend(images, kept, fills), prototypes), before, floors)
            without = torch.zeros_like(relative)
            if loss.needs_complement:
                removed = model.activations(blend(images, 1 - kept, fills), prototypes)
                without = relative_activation(removed, before, floors)
            each = zip(chunk, relative.split(sizes), without.split(sizes), strict=True)
            # Summed, never averaged: a problem's step must not depend on its company.
            losses = [loss(r, w, masks[s], vectors[s]).sum() for s, r, w in each]
            optimiser.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            for scale, v in vectors.items():
                _round_to(v.grad, schedule.gradient_grain / scale**2)
            optimiser.step()
            with torch.no_grad():
                for v in vectors.values():
                    _round_to(v.clamp_(0, 1), schedule.value_grain)
            if progress is not None:
                progress(len(rows) * (1 + loss.needs_complement))
    return {s: v.detach() for s, v in vectors.items()}
