"""The problems that are being worked on: their vectors, their optimiser state, and one step for all of them.

A *block* holds the problems of one layout, that is of the same scales; the blocks of all layouts share a network pass.
Every row is a problem of its own, with its own count of steps, so rows come and go without a trace in the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from protomask.activation import relative_activation
from protomask.blending import blend_sides, shares_of
from protomask.masks import initial_vectors, render
from protomask.model import Contract
from protomask.objective import Loss
from protomask.precision import autocast
from protomask.problems import Problems, Schedule

Waiting = deque[tuple[int, int]]
"""(pair, layout) of the problems whose turn has not come."""

_EPSILON = 1e-8  # Adam's
_DARK = 1e-6  # a root has no slope at 0, where a mask that is closed could never open again


@dataclass(eq=False)
class Block:
    """Problems of one layout; every tensor has a row for each.

    Attributes:
        scales: the layout.
        pairs: whose masks these are.
        taken: steps that each has made.
        state: ``vectors``, Adam's ``first`` and ``second`` moments and the vectors at the last look, ``seen``: all
            [n, K], K the cells of all scales in a row; ``age`` [n, 1], ``taken`` as a tensor, and ``slopes``
            [n, H, W], the sum of :func:`protomask.blending.shares_of` over all passes so far.
    """

    scales: tuple[int, ...]
    like: Tensor
    start: float
    pairs: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self._fresh(0)

    def _fresh(self, count: int) -> dict[str, Tensor]:
        cells = [initial_vectors(count, s, self.like, self.start).flatten(1) for s in self.scales]
        vectors = torch.cat(cells, 1)
        empty = {name: torch.zeros_like(vectors) for name in ("first", "second")}
        copies = {name: vectors.clone() for name in ("vectors", "seen")}
        slopes = vectors.new_zeros(count, *self.like.shape[-2:])
        return {**copies, **empty, "age": vectors.new_zeros(count, 1), "slopes": slopes}

    def grow(self, begin: Callable[[Block], None]) -> None:
        """Rows at their start for those of ``pairs`` that have none, as ``begin`` leaves them."""
        new = len(self.pairs) - len(self.taken)
        if new:
            fresh = Block(self.scales, self.like, self.start, self.pairs[-new:], [0] * new)
            fresh.state = self._fresh(new)
            begin(fresh)
            self.state = {name: torch.cat([value, fresh.state[name]]) for name, value in self.state.items()}
            self.taken += fresh.taken

    def keep(self, rows: list[int]) -> None:
        """Only these rows stay."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.like.device)
        self.state = {name: value[index] for name, value in self.state.items()}
        self.pairs = [self.pairs[row] for row in rows]
        self.taken = [self.taken[row] for row in rows]

    def grids(self, cells: Tensor) -> list[Tensor]:
        """[n, K] as one [n, s, s] for each scale."""
        parts = cells.split([s * s for s in self.scales], 1)
        return [part.unflatten(1, (s, s)) for part, s in zip(parts, self.scales, strict=True)]


@lru_cache(maxsize=32)
def _grains(scales: tuple[int, ...], grain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[K], ``grain`` over scale^2 for each cell; kept, since a copy to the device in every step would be waited for."""
    return torch.cat([torch.full((s * s,), grain / s**2) for s in scales]).to(device, dtype)


def adam(block: Block, gradient: Tensor, schedule: Schedule) -> None:
    """One step of Adam (Kingma and Ba 2015) in place, each row by its own count; values stay in [0, 1].

    torch's own keeps one count for a whole tensor, and rows here come and go.
    """
    s, (fast, slow) = block.state, schedule.betas
    if schedule.gradient_grain:
        grains = _grains(block.scales, schedule.gradient_grain, gradient.dtype, gradient.device)
        gradient = (gradient / grains).round_().mul_(grains)
    s["age"] += 1
    s["first"].lerp_(gradient, 1 - fast)
    s["second"].mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
    spread = (s["second"] / (1 - slow ** s["age"])).sqrt_().add_(_EPSILON)
    s["vectors"].sub_(s["first"] / (1 - fast ** s["age"]) / spread, alpha=schedule.learning_rate).clamp_(0, 1)
    if schedule.value_grain:
        s["vectors"].div_(schedule.value_grain).round_().mul_(schedule.value_grain)


class _GeometricMean(torch.autograd.Function):
    """Of masks [n, H, W] that are at least :data:`_DARK`; the gradient in closed form costs a third of torch's own."""

    @staticmethod
    def forward(ctx: Any, *masks: Tensor) -> Tensor:
        open_ = [mask.clamp(min=_DARK) for mask in masks]
        product = open_[0] * open_[1]
        for mask in open_[2:]:
            product *= mask
        mean = product.pow_(1 / len(masks))
        ctx.save_for_backward(mean, *open_)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        mean, *open_ = ctx.saved_tensors
        share = gradient * mean / len(open_)
        return tuple((share / mask).masked_fill_(mask <= _DARK, 0) for mask in open_)


class WorkSet:
    """The problems in work.

    Attributes:
        found: scale -> [N, s, s], filled as problems leave.
        slopes: [N, H, W], the sum over passes of :func:`protomask.blending.shares_of`, likewise.
    """

    def __init__(
        self,
        model: Contract,
        problems: Problems,
        layouts: Sequence[tuple[int, ...]],
        loss: Loss,
        schedule: Schedule,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._model, self._problems, self._loss, self._schedule = model, problems, loss, schedule
        self._progress = progress
        self._sides = 1 + loss.needs_complement  # images per problem and step
        images = problems.images
        self.found = {s: initial_vectors(len(problems), s, images) for layout in layouts for s in layout}
        self.slopes = images.new_zeros(len(problems), *images.shape[-2:])
        self._blocks = [Block(layout, images, schedule.start) for layout in layouts]
        self._stale = True

    @property
    def active(self) -> int:
        """How many problems are in work."""
        return sum(len(block.pairs) for block in self._blocks)

    @property
    def images(self) -> int:
        """How many images the next step needs."""
        return self.active * self._sides

    def admit(self, waiting: Waiting, batch: int) -> None:
        """Fill up to ``batch`` images a step; a gap of less than a quarter is left, since filling copies all images."""
        room = max(1, batch // self._sides)
        free = room - self.active
        if not waiting or free < max(1, room // 4):
            return
        for _ in range(min(free, len(waiting))):
            pair, kind = waiting.popleft()
            self._blocks[kind].pairs.append(pair)
        # All are on the list before any memory is asked for, so that none is lost if there is not enough.
        for block in self._blocks:
            block.grow(self._begin)
        self._stale = True

    def _begin(self, block: Block) -> None:
        """The first step of masks that begin as ones, which needs no pass.

        What such a mask keeps is the image itself, at which consistency has no slope. What it removes leaves the bare
        fill, on which the cells of a coarse map are nearly equal and rounding decides which of them wins: that slope is
        left out, and birds are found better without it.
        """
        if self._schedule.start != 1 or not self._loss.flat_at_one:
            return
        leaf = block.state["vectors"].detach().requires_grad_()
        with torch.enable_grad():
            grids = block.grids(leaf)
            mask = self._mask(grids)
            whole, nothing = mask.new_ones(len(mask)), mask.new_zeros(len(mask))
            (gradient,) = torch.autograd.grad(self._loss(whole, nothing, mask, grids).sum(), leaf)
        adam(block, gradient, self._schedule)
        block.taken = [count + 1 for count in block.taken]

    def abandon(self) -> list[tuple[int, int]]:
        """Empty the set; whoever was in it starts again another time."""
        lost = [(pair, kind) for kind, block in enumerate(self._blocks) for pair in block.pairs]
        for block in self._blocks:
            block.keep([])
        self._stale = True
        return lost

    def step(self, batch: int) -> None:
        """One optimiser step of every problem, at most ``batch`` images in a network pass."""
        if self.active == 0:
            return
        self._gather()
        busy = [block for block in self._blocks if block.pairs]
        leaves = [block.state["vectors"].detach().requires_grad_() for block in busy]
        sizes = [len(block.pairs) for block in busy]
        with torch.enable_grad():
            grids = [block.grids(leaf) for block, leaf in zip(busy, leaves, strict=True)]
            masks = [self._mask(g) for g in grids]
            relative, slopes = self._pass(torch.cat(masks), batch)
            sides = relative.requires_grad_()
            without = sides[1] if len(sides) > 1 else torch.zeros_like(relative[0])
            each = zip(sides[0].split(sizes), without.split(sizes), masks, grids, strict=True)
            # Summed, never averaged: a problem's step must not depend on its company.
            total = torch.stack([self._loss(*terms).sum() for terms in each]).sum()
            (weights,) = torch.autograd.grad(total, sides, retain_graph=True)
            gradients = torch.autograd.grad([total, *masks], leaves, [None, *self._pull(weights, slopes).split(sizes)])
        for block, gradient, own in zip(busy, gradients, slopes.sum(0).split(sizes), strict=True):
            adam(block, gradient, self._schedule)
            block.state["slopes"] += own
            block.taken = [count + 1 for count in block.taken]
        if self._progress is not None:
            self._progress(self.images)

    def retire(self) -> None:
        """Whoever has made all steps, or has stopped moving, leaves with its vectors."""
        for block in self._blocks:
            done = self._done(block) if block.pairs else []
            if any(done):
                self._leave(block, [row for row, over in enumerate(done) if over])
                block.keep([row for row, over in enumerate(done) if not over])
                self._stale = True

    def _leave(self, block: Block, rows: list[int]) -> None:
        index = torch.tensor(rows, dtype=torch.int64, device=block.like.device)
        pairs = torch.tensor([block.pairs[row] for row in rows], dtype=torch.int64, device=block.like.device)
        for scale, grid in zip(block.scales, block.grids(block.state["vectors"][index]), strict=True):
            self.found[scale][pairs] = grid
        self.slopes[pairs] += block.state["slopes"][index]
        if self._progress is not None:
            spared = sum(self._schedule.steps - block.taken[row] for row in rows)
            if spared:
                self._progress(spared * self._sides)

    def _done(self, block: Block) -> list[bool]:
        schedule = self._schedule
        over = [count >= schedule.steps for count in block.taken]
        due = [count % schedule.patience == 0 and not o for count, o in zip(block.taken, over, strict=True)]
        if not any(due) or not schedule.tolerance:
            return over
        left = self._settled(block, due)
        return [o or gone for o, gone in zip(over, left.tolist(), strict=True)]  # here alone a device is waited for

    def _settled(self, block: Block, due: list[bool]) -> Tensor:
        """[n] bool: whose cells have hardly moved since the last look."""
        state, rows = block.state, torch.tensor(due, device=block.like.device)
        moved = (state["vectors"] - state["seen"]).abs().mean(1)
        state["seen"] = torch.where(rows[:, None], state["vectors"], state["seen"])
        return rows & (moved <= self._schedule.tolerance)

    def _mask(self, grids: list[Tensor]) -> Tensor:
        """[n, H, W]: the mask of one scale, or the geometric mean of all scales'."""
        size = (self._problems.images.shape[-2], self._problems.images.shape[-1])
        if len(grids) == 1:
            return render(grids[0], size)
        mask: Tensor = _GeometricMean.apply(*(render(grid, size) for grid in grids))
        return mask

    def _gather(self) -> None:
        """The images, fills and activations of the problems in work, in the order of the blocks."""
        if not self._stale:
            return
        p = self._problems
        rows = torch.tensor([pair for block in self._blocks for pair in block.pairs], device=p.images.device)
        self._images, self._fills = p.images[p.rows[rows]].contiguous(), p.fills[p.fill_rows[rows]].contiguous()
        self._prototypes, self._before, self._floors = p.prototypes[rows], p.before[rows], p.floors[rows]
        self._stale = False

    def _pass(self, masks: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """[S, n] relative activations and [S, n, H, W] slopes of what the masks keep and, where asked, remove."""
        seen = blend_sides(self._images, self._fills, masks, complement=self._sides > 1)
        prototypes = self._prototypes.repeat(self._sides)
        activations, gradients = [], []
        for images, own in zip(seen.split(batch), prototypes.split(batch), strict=True):
            found = self._activations(images.requires_grad_(), own)
            gradients.append(torch.autograd.grad(found.sum(), images)[0])
            activations.append(found.detach())
        sides = torch.cat(activations).view(self._sides, -1)
        relative = torch.stack([relative_activation(side, self._before, self._floors) for side in sides])
        halves = torch.cat(gradients).split(len(masks))
        return relative, torch.stack([shares_of(half, self._images, self._fills) for half in halves])

    def _pull(self, weights: Tensor, slopes: Tensor) -> Tensor:
        """[n, H, W], the loss's gradient with respect to the masks by way of activations.

        Args:
            weights: [S, n], the loss's gradient with respect to the relative activations.
            slopes: [S, n, H, W].
        """
        weights = (weights / (self._before - self._floors))[:, :, None, None]
        pull = weights[0] * slopes[0]
        return pull - weights[1] * slopes[1] if len(slopes) > 1 else pull

    def _activations(self, images: Tensor, prototypes: Tensor) -> Tensor:
        """[n] of a pass in the precision asked for, in the dtype of the images."""
        with autocast(self._schedule.precision, images.device):
            return self._model.activations(images, prototypes).to(images.dtype)
