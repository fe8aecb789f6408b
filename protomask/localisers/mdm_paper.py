"""The authors' own MDM, as their public code has it: ``mdm-paper``. Our variant is ``mdm`` and is never called theirs.

Peng et al. (arXiv 2207.08046), code ``ytpeng-tongji/MultipleDynamicMasks``, commit beedcd5; it has no licence, so the
procedure was read and written anew. For one pair and each grid:

1. A grid of s x s cells starts at 0.5, is upsampled (bilinear, corners aligned) and multiplied with the normalised
   image: what is hidden becomes zero, the mean colour. Nothing clamps its values.
2. The loss is ``0.01 * |t(masked) - t(image)|^2 + sum |v| / s^2``. A ProtoPNet's t is its squared distance at one cell,
   the one that wins on the whole image; an XProtoNet's is the D numbers that are compared with the prototype.
3. Adam, 3e-3, at its defaults: 2,001 steps and no more on grey images with a ProtoPNet. On colour images, and with an
   XProtoNet, steps go on beyond these until 200 steps in a row have brought no new lowest loss, at most to 20,000
   (``extra_steps=17999``). The last vector counts, not the best.
4. Every mask is scaled by its own minimum and maximum, and votes for the pixels that reach its ``percentile``.
5. The scaled masks are summed, pixels with fewer than ``votes`` votes are emptied, and the sum is scaled to [0, 1].

The released percentile is 1: each grid votes for 99 % of the pixels, so the vote empties next to nothing and the map is
the mean of the scaled masks. (They score the vote itself, and in another script the map at percentiles 80 to 99.)

Where the scripts contradict each other or themselves, and what is done here:

- *Grids.* The scripts name 6 .. 32 for a ProtoPNet on colour images; for an XProtoNet 6 .. 25, 27, 29, 30, 32, 56, 112,
  and its loop then runs past the end of that list. The one vote released for prototypes reads 6 .. 25, 27, 29, 30, 32:
  these 24 are the default.
- *Cells.* The ProtoPNet scripts hand over a grid's size under a name that sets the penalty's divisor alone: all their
  grids have 10 x 10 cells, under a penalty of sum |v| / s^2. The XProtoNet script has grids of s x s cells and divides
  by 36 for all. Both are slips against the paper (and the vote reads files of other names than are written); by
  default every grid has s x s cells and the penalty is their mean. ``as_released`` repeats the slips, all but a divisor
  of 23 x 32 at grid 23.
- *Pictures.* Masks travel to the vote through 8-bit pictures in a colour map (viridis) that are read back as grey. Here
  they are rounded to 256 even levels: without ties, rounding errors would say who is above the percentile of a plateau.
  A constant mask, a division by zero there, neither votes nor adds here.
- *Mode.* Their networks stay in the mode they were saved in; here they are in evaluation mode, and frozen.

A model without distances (``distance_maps``) or features (``prototype_features``) is served by its ``similarity_maps``,
at the cell that wins: another quantity on another scale, to which the weight of 0.01 was never fitted, and so not the
authors' procedure to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_count, check_flag, check_number, check_scales
from protomask.engine import in_chunks
from protomask.errors import InputError, ModelError, expected
from protomask.localisers.base import Maps, Request, register, scaled
from protomask.model import Contract

GRIDS = (*range(6, 26), 27, 29, 30, 32)
"""Cells per side of the grids that the authors' vote of a ProtoPNet reads."""

_DISTANCES, _FEATURES = "distance_maps", "prototype_features"
_SOURCES = (_DISTANCES, _FEATURES, "similarity_maps")
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's defaults, which the authors leave
_SLIP_CELLS, _SLIP_DIVISOR = 10, 36
_LEVELS = 256  # of an 8-bit picture
_FLAT = 1e-6  # between the least and the greatest value of a mask that is constant but for rounding


@register(
    "mdm-paper", "The MDM authors' own procedure: 24 grids of 2,001 steps each, a vote, and their mean; very slow."
)
@dataclass(frozen=True)
class MDMPaper:
    """The procedure of the module's docstring. With fewer steps or grids it is a shortened form, and no longer theirs.

    Attributes:
        scales: cells per side of the grids.
        steps: optimiser steps per grid, at least.
        extra_steps: steps beyond these, for as long as the loss has had a new low in the last ``patience`` steps; 0 as
            for the authors' grey images, 17,999 as for their colour images and XProtoNets.
        patience: see ``extra_steps``.
        learning_rate: Adam's.
        consistency: weight of the squared difference.
        sparsity: weight of the mean of the absolute values.
        start: the value of every cell before the first step.
        percentile: a grid votes for the pixels at or above this percentile of its mask.
        votes: pixels with fewer are emptied.
        as_released: repeat the slips of the released scripts in the size of the grids and the penalty's divisor.
    """

    scales: tuple[int, ...] = GRIDS
    steps: int = 2001
    extra_steps: int = 0
    patience: int = 200
    learning_rate: float = 3e-3
    consistency: float = 0.01
    sparsity: float = 1.0
    start: float = 0.5
    percentile: float = 1.0
    votes: int = 5
    as_released: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        check_flag("as_released", self.as_released)
        for name in ("steps", "patience", "votes"):
            check_count(name, getattr(self, name))
        check_count("extra_steps", self.extra_steps, 0)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        for name in ("consistency", "sparsity", "start"):
            check_number(name, getattr(self, name), 0)
        check_number("percentile", self.percentile, 0, 100)
        if self.votes > len(self.scales):
            raise InputError(expected("votes", f"at most the number of scales, {len(self.scales)}", self.votes))

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair; with ``extra_steps``, at most."""
        return float(len(self.scales) * (self.steps + self.extra_steps))

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W] in [0, 1], the sum of the scaled masks where enough grids vote; a ranking, no masks.

        Raises:
            ModelError: the model offers no distances, no features and no similarity maps.
        """
        target, count = _target(request), len(self.scales)
        layout = self._layout(request, target)

        def work(part: slice) -> Tensor:
            index = torch.arange(part.start, part.stop, device=request.images.device)
            return self._train(request, target, layout, index // count, index % count)

        problems = len(request.targets) * count
        vectors = torch.cat(list(in_chunks(problems, request.batch, work)))
        of_pairs = vectors.view(-1, count, *vectors.shape[1:])
        # One pair at a time: the masks of all would fill the memory.
        masks = (_render(grids, layout.down, layout.across) for grids in of_pairs)
        maps = [voted(m, self.percentile, self.votes) for m in masks]
        return Maps(torch.stack(maps), fill="mean")

    def _layout(self, request: Request, target: _Target) -> _Layout:
        cells, divisors = list(self.scales), [scale**2 for scale in self.scales]
        if self.as_released and target.name == _FEATURES:
            divisors = [_SLIP_DIVISOR] * len(cells)
        elif self.as_released:
            cells = [_SLIP_CELLS] * len(cells)
        return _laid_out(cells, divisors, request.size, request.images)

    def _train(self, request: Request, target: _Target, layout: _Layout, pairs: Tensor, which: Tensor) -> Tensor:
        """[n, K, K], the vectors of pairs [n] at grids [n] (indices), zero beyond a grid's own cells."""
        images = request.images[request.targets.images[pairs]]
        vectors = self.start * layout.inside[which]
        rows = torch.arange(len(pairs), device=pairs.device)
        found, run = vectors.clone(), _Run(images, vectors, pairs, which, rows)
        most = self.steps + self.extra_steps
        for step in range(most):
            if step >= self.steps:
                over = step - run.lowest_at > self.patience
                if bool(over.any()):
                    found[run.rows[over]] = run.vectors[over]
                    run.keep(~over)
                    _tell(request, int(over.sum()) * (most - step))
                if len(run.rows) == 0:
                    return found
            losses, gradient = self._losses(request, target, layout, run)
            run.note(losses, step)
            run.adam(gradient, self.learning_rate, step + 1)
            _tell(request, len(run.rows))
        found[run.rows] = run.vectors
        return found

    def _losses(self, request: Request, target: _Target, layout: _Layout, run: _Run) -> tuple[Tensor, Tensor]:
        """[n] losses and [n, K, K] gradients; the losses are summed, so company has no say."""
        vectors = run.vectors.detach().requires_grad_()
        with torch.enable_grad():
            masks = _render(vectors, layout.down[run.which], layout.across[run.which])
            seen = target.of(request, run.images * masks[:, None], run.pairs)
            penalty = vectors.abs().sum((1, 2)) / layout.divisors[run.which]
            apart = (seen - target.aims[run.pairs]).square().sum(1)
            losses = self.consistency * apart + self.sparsity * penalty
            (gradient,) = torch.autograd.grad(losses.sum(), vectors)
        return losses.detach(), gradient


def voted(masks: Tensor, percentile: float, votes: int) -> Tensor:
    """One map of the masks of all grids: their sum, each scaled by its own minimum and maximum, where enough vote.

    Scaled masks are rounded to 256 levels; see the module's docstring.

    Args:
        masks: [S, H, W], any range.
        percentile: a mask votes for the pixels at or above this percentile of its values (between two values, linearly
            interpolated).
        votes: pixels with fewer are zero.

    Returns:
        [H, W] in [0, 1]; zero where all masks are constant or no pixel has the votes.
    """
    uneven = masks.amax((1, 2), keepdim=True) - masks.amin((1, 2), keepdim=True) > _FLAT
    shares = (scaled(masks) * (_LEVELS - 1)).round() / (_LEVELS - 1) * uneven
    rank = percentile / 100 * (masks[0].numel() - 1)
    ordered = shares.flatten(1).sort(1).values
    low, high = ordered[:, int(rank)], ordered[:, min(int(rank) + 1, ordered.shape[1] - 1)]
    ballots = (shares >= torch.lerp(low, high, rank - int(rank))[:, None, None]) & uneven
    return scaled((shares.sum(0) * (ballots.sum(0) >= votes))[None])[0]


@dataclass(frozen=True, eq=False)
class _Target:
    """What a masked image is held to.

    Attributes:
        name: the method of the contract that tells it.
        cells: [N, 1], the flat index of each pair's winning cell; None where all numbers are compared.
        aims: [N, K], what the whole images give.
    """

    name: str
    cells: Tensor | None
    aims: Tensor

    def of(self, request: Request, images: Tensor, pairs: Tensor) -> Tensor:
        """[n, K] of masked images [n, C, H, W] of pairs [n] (indices)."""
        values = _values(request.model, self.name, images, request.targets.prototypes[pairs])
        return values if self.cells is None else values.gather(1, self.cells[pairs])


@torch.no_grad()
def _target(request: Request) -> _Target:
    model, targets = request.model, request.targets
    name = next((n for n in _SOURCES if getattr(model, n)(request.images[:1]) is not None), None)
    if name is None:
        wanted = "with distance_maps, prototype_features or similarity_maps, which mdm-paper compares"
        raise ModelError(expected("model", wanted, "a model that offers none of them"))

    def work(part: slice) -> Tensor:
        return _values(model, name, request.images[targets.images[part]], targets.prototypes[part])

    values = torch.cat(list(in_chunks(len(targets), request.batch, work)))
    if name == _FEATURES:
        return _Target(name, None, values)
    cells = (values.argmin(1) if name == _DISTANCES else values.argmax(1))[:, None]
    return _Target(name, cells, values.gather(1, cells))


def _values(model: Contract, name: str, images: Tensor, prototypes: Tensor) -> Tensor:
    """[n, h * w] or [n, D]: what the model tells of one prototype per image."""
    values: Tensor = getattr(model, name)(images)
    return values[torch.arange(len(images), device=values.device), prototypes].flatten(1)


@dataclass(frozen=True, eq=False)
class _Layout:
    """S grids in tensors of one shape, K x K cells, the most that any has.

    Attributes:
        inside: [S, K, K], 1 at a grid's own cells, else 0.
        divisors: [S], what the sum of absolute values is divided by.
        down, across: [S, H, K] and [S, W, K], what each cell gives to each row and column of pixels.
    """

    inside: Tensor
    divisors: Tensor
    down: Tensor
    across: Tensor


def _laid_out(cells: list[int], divisors: list[int], size: tuple[int, int], like: Tensor) -> _Layout:
    most = max(cells)
    line = (torch.arange(most) < torch.tensor(cells)[:, None]).to(like)
    down, across = (torch.stack([_weights(s, pixels, most) for s in cells]).to(like) for pixels in size)
    return _Layout(line[:, :, None] * line[:, None], torch.tensor(divisors).to(like), down, across)


@lru_cache(maxsize=256)
def _weights(cells: int, pixels: int, columns: int) -> Tensor:
    """[pixels, columns] float64: bilinear weights along one axis with corners aligned, zero beyond ``cells``."""
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(cells, columns, dtype=torch.float64)
        return F.interpolate(unit.T[:, None], size=pixels, mode="linear", align_corners=True)[:, 0].T.contiguous()


def _render(vectors: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """[n, K, K] cells, [n, H, K] and [n, W, K] weights -> [n, H, W]."""
    return down @ vectors @ across.mT


def _tell(request: Request, passes: int) -> None:
    if request.progress is not None:
        request.progress(passes)


class _Run:
    """The problems in work; every tensor has a row for each, and no row knows of another.

    Attributes:
        images: [n, C, H, W], whole.
        vectors: [n, K, K].
        pairs, which, rows: [n], each problem's pair, grid, and place in its chunk.
        first, second: Adam's moments.
        lowest, lowest_at: [n], the lowest loss so far and its step.
    """

    def __init__(self, images: Tensor, vectors: Tensor, pairs: Tensor, which: Tensor, rows: Tensor) -> None:
        self.images, self.vectors, self.pairs, self.which, self.rows = images, vectors, pairs, which, rows
        self.first, self.second = torch.zeros_like(vectors), torch.zeros_like(vectors)
        self.lowest = vectors.new_full((len(rows),), torch.inf)
        self.lowest_at = torch.full_like(rows, -1)

    def keep(self, rows: Tensor) -> None:
        """Only these rows [n] bool stay."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])

    def note(self, losses: Tensor, step: int) -> None:
        """Take down a new lowest loss."""
        lower = losses < self.lowest
        self.lowest = torch.where(lower, losses, self.lowest)
        self.lowest_at = self.lowest_at.masked_fill(lower, step)

    def adam(self, gradient: Tensor, rate: float, count: int) -> None:
        """One step (Kingma and Ba 2015), the ``count``-th of every row."""
        fast, slow = _BETAS
        self.first = self.first.lerp(gradient, 1 - fast)
        self.second = (slow * self.second).addcmul(gradient, gradient, value=1 - slow)
        spread = (self.second / (1 - slow**count)).sqrt() + _EPSILON
        self.vectors = self.vectors - rate / (1 - fast**count) * self.first / spread
