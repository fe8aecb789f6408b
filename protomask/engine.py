"""The one loop that trains masks.

A *problem* is one (image, prototype) pair with the scales of its mask: one scale each where scales are trained apart,
all of them where they are trained together as one mask. Problems run in batches that are kept full:
whoever has converged or made all steps leaves, and the next in the queue comes in. Gradients flow to the mask vectors
only; losses are summed and every problem has its own optimiser state, so that its steps do not depend on its company.
The caller freezes the model (:func:`protomask.model.untouched`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from protomask.errors import ResourceError
from protomask.model import Contract
from protomask.objective import Loss
from protomask.problems import Problems, Schedule
from protomask.workset import WorkSet

__all__ = ["Problems", "Progress", "Schedule", "Trained", "in_chunks", "train_masks"]

Result = TypeVar("Result")
Progress = Callable[[int], object]
"""Called with the number of forward + input-gradient passes (one image each) just made."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes:
        vectors: scale -> [N, s, s] in [0, 1], the mask vectors of every pair, detached.
        slopes: [N, H, W], how the activation answered to each pixel's share of the image, in its own units and signed,
            summed over all passes (:func:`protomask.blending.shares_of`). Masks begin alike all over and what they
            remove is looked at as well, so that it is close to a path integral of the gradient between fill and image,
            and costs nothing.
    """

    vectors: dict[int, Tensor]
    slopes: Tensor


def train_masks(
    model: Contract,
    problems: Problems,
    scales: Sequence[int],
    loss: Loss,
    schedule: Schedule,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> Trained:
    """Mask vectors of every pair at every scale.

    Args:
        model: frozen, in evaluation mode.
        problems: N pairs.
        scales: cells per side, one vector each.
        loss: losses per problem.
        schedule: optimiser settings.
        batch: images in one network pass; halved when memory runs out.
        progress: told of passes made; for a problem that leaves early, of those it would have made as well.

    Returns:
        Vectors and slopes. Of masks that begin as ones the first step needs no pass.

    Raises:
        ResourceError: memory ran out with a single image in the pass.
    """
    layouts = [tuple(scales)] if schedule.together else [(scale,) for scale in scales]
    queue = deque((pair, kind) for pair in range(len(problems)) for kind in range(len(layouts)))
    work = WorkSet(model, problems, layouts, loss, schedule, progress)
    size = batch
    while queue or work.active:
        try:
            work.admit(queue, size)
            work.retire()
            work.step(size)
        except RuntimeError as error:
            used = max(1, min(size, work.images))
            queue.extendleft(reversed(work.abandon()))
            size = _halved(used, error)
    return Trained(work.found, work.slopes)


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
            size = _halved(part.stop - part.start, error)
            continue
        yield result
        start = part.stop


def halving(size: int, work: Callable[[int], Result]) -> Result:
    """``work(size)``; out of memory halves the size and repeats it.

    Raises:
        ResourceError: memory ran out at a size of one.
    """
    while True:
        try:
            return work(size)
        except RuntimeError as error:
            size = _halved(size, error)


def _halved(size: int, error: RuntimeError) -> int:
    """The size to try after memory ran out at ``size``; any other error is raised as it came."""
    if not _out_of_memory(error):
        raise error
    if size == 1:
        raise ResourceError("batch: memory ran out with a single image in the pass") from error
    # The traceback keeps the failed pass's tensors alive; drop it before the next try.
    error.__traceback__ = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)
