"""Noisy linear imputation: removed pixels become the weighted mean of their neighbours, plus a little noise.

Source: ROAD (Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods"). A constant
fill betrays the mask's shape to the network, and an edge is evidence too; values that follow their surroundings do
not. Each removed pixel equals the weighted mean of its eight neighbours (1/6 beside, 1/12 at the corners, renormalised
at the border of the image), which is one sparse linear system per image: symmetric and, as soon as one pixel is known,
positive definite. It is solved by conjugate gradients, each image and channel for itself, with one cycle over ever
coarser grids as the preconditioner: three or four rounds at any share of holes.

J images of C x H x W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_number, check_tensor
from protomask.draws import content_of, generator_of
from protomask.errors import InputError, expected

NOISE = 0.01
TOLERANCE = 1e-2  # a mean error of .0001 to .002 remains on photographs of unit variance, well below the noise
_LEAK = 0.8  # of .7, .8, .9 and 1 the one with the fewest rounds at shares of .02 to .98
_ROUNDS = 500  # three to five are needed; an image one pixel wide takes dozens


@dataclass(frozen=True, eq=False)
class Imputation:
    """The scoring fill ``road`` of B images: what the causal metrics take in place of a fill [B, C, H, W].

    Attributes:
        fill: [B, C, H, W], what the images are with every pixel removed: the mean colour (zero) plus the noise.
        noise: [B, C, H, W], added to every imputed pixel.
    """

    fill: Tensor
    noise: Tensor

    @staticmethod
    def of(images: Tensor, seed: int = 0, noise: float = NOISE) -> Imputation:
        """For images [B, C, H, W]; the noise depends on the seed and on the image alone, not on its company.

        Args:
            images: model-ready.
            seed: of the noise.
            noise: its standard deviation, in model-ready units (.01 as published).
        """
        check_tensor("images", images, ("B", "C", "H", "W"))
        check_number("noise", noise, 0)
        drawn = noise * torch.stack([_noise(image, seed) for image in images])
        return Imputation(drawn, drawn)

    def __call__(self, images: Tensor, chosen: Tensor, removed: Tensor) -> Tensor:
        """Images [J, C, H, W], which are ``chosen`` [J] of the B, with ``removed`` [J, H, W] imputed."""
        imputed = impute(images, removed)
        return torch.where(removed[:, None], imputed + self.noise.to(images)[chosen.to(self.noise.device)], images)


@torch.no_grad()
def impute(images: Tensor, removed: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
    """Removed pixels as the weighted mean of their neighbours; zero (the mean colour) where every pixel is removed.

    Args:
        images: [J, C, H, W], model-ready.
        removed: [J, H, W] bool.
        tolerance: of the last correction, at which a channel is done: its root mean square over the holes, relative to
            that of the known pixels. The error that remains is about a tenth of it.

    Returns:
        [J, C, H, W]; the known pixels as they came. No gradient passes.

    Raises:
        InputError: ``removed`` is no bool tensor of the images' size.
    """
    check_tensor("images", images, ("J", "C", "H", "W"))
    wanted = (len(images), *images.shape[2:])
    if not isinstance(removed, Tensor) or removed.dtype != torch.bool or tuple(removed.shape) != wanted:
        came = f"{removed.dtype} {list(removed.shape)}" if isinstance(removed, Tensor) else type(removed).__name__
        raise InputError(expected("removed", f"a bool tensor {list(wanted)}", came))
    holes = removed.to(images.device)[:, None]
    if images.device.type != "cpu":
        return torch.where(holes, _Solver(images).solve(images, holes, tolerance)[0], images)
    return _one_by_one(images, holes, tolerance)


def _noise(image: Tensor, seed: int) -> Tensor:
    generator = generator_of(seed, content_of(image))
    return torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)


def _one_by_one(images: Tensor, holes: Tensor, tolerance: float) -> Tensor:
    """Each image alone and only the box around its holes: what one needs stays in the cache of a CPU core."""
    filled = images.clone(memory_format=torch.contiguous_format)
    solver: _Solver | None = None
    for k in range(len(images)):
        if not holes[k].any():
            continue
        rows, columns = _around(holes[k, 0].any(1)), _around(holes[k, 0].any(0))
        window, inside = images[k : k + 1, :, rows, columns], holes[k : k + 1, :, rows, columns]
        if solver is None or solver.shape != window.shape:
            solver = _Solver(window)
        filled[k : k + 1, :, rows, columns] = torch.where(inside, solver.solve(window, inside, tolerance)[0], window)
    return filled


def _around(touched: Tensor) -> slice:
    """From the first to the last that is touched, and one more on either side: the known neighbours."""
    there = touched.nonzero()
    return slice(max(int(there[0]) - 1, 0), int(there[-1]) + 2)


class _Sums:
    """The outer product of (1, 2, 1) with itself around every pixel of ``source``, in four passes of sums of two.

    The planes [J, C, H + 2, W + 2] lie one behind the other with zeros around each, so that a pass is one contiguous
    sum of the whole buffer with itself, shifted: .08 ms at 3 x 225 x 225, where a convolution takes .7 ms. Its rounding
    does not depend on the size of the batch either. What it leaves in the padding means nothing.
    """

    def __init__(self, source: Tensor, spare: Tensor, result: Tensor) -> None:
        flat, a, b = source.view(-1), spare.view(-1), result.view(-1)
        size, width = len(flat), source.shape[-1]
        self._passes = (
            (flat[:-1], flat[1:], a[: size - 1]),
            (a[: size - 2], a[1 : size - 1], b[: size - 2]),
            (b[: size - 2 - width], b[width : size - 2], a[: size - 2 - width]),
            (a[: size - 2 - 2 * width], a[width : size - 2 - width], b[1 + width : size - 1 - width]),
        )
        self._result = result

    def __call__(self) -> Tensor:
        for left, right, out in self._passes:
            torch.add(left, right, out=out)
        return self._result


class _Grid:
    """One resolution: the buffers [J, C, H + 2, W + 2] of a cycle, and the weights [J, 1, H + 2, W + 2] of the holes.

    A coarse pixel sits on every second fine one; between them values are bilinear (a corner's part is 1 / 4).

    Attributes:
        right: the right-hand side; of the finest grid, the residual of the conjugate gradients.
        value: the solution; zero where there is no hole.
        weight: 1 / diagonal at the holes, else 0.
        share: how far a pixel lies in the holes, 0 .. 1; twice that where it has a coarse one on one side only.
        scale: [J, 1, H, W], between this grid and the finer one, both ways.
    """

    weight: Tensor
    share: Tensor
    scale: Tensor

    def __init__(self, like: Tensor, height: int, width: int) -> None:
        shape = (*like.shape[:2], height + 2, width + 2)
        self.right, self.value, self.scaled, self.spread, spare, summed = (like.new_zeros(shape) for _ in range(6))
        self.size = (height, width)
        self.right_inner, self.value_inner = self.right[..., 1:-1, 1:-1], self.value[..., 1:-1, 1:-1]
        self.summed_even, self.spread_even = summed[..., 1:-1:2, 1:-1:2], self.spread[..., 1:-1:2, 1:-1:2]
        self.sum_value, self.sum_scaled, self.sum_spread = (
            _Sums(source, spare, summed) for source in (self.value, self.scaled, self.spread)
        )

    def neighbours(self) -> Tensor:
        """12 times the weighted sum of the eight neighbours of ``value``, in a buffer that the next sum overwrites."""
        return self.sum_value().sub_(self.value, alpha=4)

    def down(self, coarse: _Grid) -> None:
        """One sweep of Jacobi from zero; what remains of the right-hand side becomes the coarser grid's."""
        torch.mul(self.right, self.weight, out=self.value)
        torch.mul(self.neighbours(), self.share, out=self.scaled)  # after this sweep the residual is the neighbours
        self.sum_scaled()
        torch.mul(self.summed_even, coarse.scale, out=coarse.right_inner)

    def up(self, coarse: _Grid) -> None:
        """The coarser grid's solution added, and one more sweep; the mirror of ``down``, as the method needs."""
        torch.mul(coarse.value_inner, coarse.scale, out=self.spread_even)
        self.value.addcmul_(self.sum_spread(), self.share)
        torch.mul(self.neighbours().add_(self.right), self.weight, out=self.value)


class _Solver:
    """Conjugate gradients with a multigrid cycle, for images of one shape; its buffers serve one after the other.

    Everything is 12 times the system of the published weights, whose entries are then whole numbers.
    """

    def __init__(self, like: Tensor) -> None:
        self.shape = like.shape
        size = (like.shape[2], like.shape[3])
        self._grids = [_Grid(like, *size)]
        while max(size) > 1:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
            self._grids.append(_Grid(like, *size))
        top = self._grids[0]
        self._solution, self._direction, self._spare, summed = (torch.zeros_like(top.right) for _ in range(4))
        self._diagonal = _summed(F.pad(like.new_ones(1, 1, like.shape[2], like.shape[3]), (1, 1, 1, 1))) - 4
        self._sum_direction = _Sums(self._direction, self._spare, summed)

    def solve(self, images: Tensor, holes: Tensor, tolerance: float) -> tuple[Tensor, int]:
        """The solution [J, C, H, W] at the holes [J, 1, H, W], and the rounds that the slowest channel took."""
        top, inside = self._grids[0], F.pad(holes.to(images), (1, 1, 1, 1))
        diagonal = self._diagonal * inside
        _set_weights(self._grids, inside, diagonal)
        known = top.value
        top.value_inner.copy_(images).masked_fill_(holes, 0)
        torch.mul(top.neighbours(), inside, out=top.right)
        count = holes.sum((2, 3), keepdim=True)
        enough = tolerance**2 * self._dot(known, known) * count / (holes[0, 0].numel() - count).clamp(min=1)
        return self._iterated(inside, diagonal + 4 * inside, enough)

    def _iterated(self, inside: Tensor, diagonal: Tensor, enough: Tensor) -> tuple[Tensor, int]:
        """A channel that is done stands still, so that nobody depends on its company."""
        top, solution, direction = self._grids[0], self._solution.zero_(), self._direction.zero_()
        residual, moved, tiny = top.right, top.scaled, torch.finfo(inside.dtype).tiny
        running = torch.ones_like(enough, dtype=torch.bool)
        before = torch.ones_like(enough)
        rounds = 0
        while rounds < _ROUNDS and running.any():
            rounds += 1
            correction = _cycle(self._grids)
            size = self._dot(residual, correction)
            torch.addcmul(correction, direction, size / before.clamp(min=tiny), out=direction)
            torch.mul(direction, diagonal, out=moved).addcmul_(self._sum_direction(), inside, value=-1)
            step = torch.where(running, size / self._dot(direction, moved).clamp(min=tiny), 0)
            solution.addcmul_(direction, step)
            residual.addcmul_(moved, step, value=-1)
            running = running & (self._dot(correction, correction) > enough)
            before = size
        return solution[..., 1:-1, 1:-1], rounds

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """[J, C, 1, 1], per image and channel; the products go where they always go, as fresh memory costs more."""
        return torch.mul(a, b, out=self._spare).sum((2, 3), keepdim=True)


def _cycle(grids: Sequence[_Grid]) -> Tensor:
    """What the finest grid's right-hand side asks for, about: down to one pixel and up again, one sweep on each."""
    for fine, coarse in pairwise(grids):
        fine.down(coarse)
    torch.mul(grids[-1].right, grids[-1].weight, out=grids[-1].value)
    for coarse, fine in pairwise(reversed(grids)):
        fine.up(coarse)
    return grids[0].value


def _set_weights(grids: Sequence[_Grid], inside: Tensor, diagonal: Tensor) -> None:
    """Every grid's weights for the holes ``inside`` and the finest matrix's ``diagonal`` there [J, 1, H + 2, W + 2].

    A coarse grid has the fine one's matrix, as far as its pixels lie in the holes (``part``, in 0 .. 1), plus a leak to
    the known pixels: the sum of each row of the variational matrix. That keeps a single known pixel in a hole what it
    is, and costs no more than the plain matrix. The unknowns are scaled by ``part``, which makes the matrix plain.
    """
    part, leak = inside, diagonal - inside * (_summed(inside) - 4)
    grids[0].weight = _inverse(diagonal)
    for fine, coarse in pairwise(grids):
        share = _share(part > 0).to(part)
        fine.share = share * part
        part = _halved(share).div_(16).clamp_(max=1)
        leak = _halved(share * leak).mul_(_LEAK / 4)
        scale = _inverse(part)
        coarse.scale = scale[..., 1:-1, 1:-1] / 4
        diagonal = (leak * scale + _summed(part)) * scale - 4 * (part > 0)
        coarse.weight = _inverse(diagonal)


def _share(inside: Tensor) -> Tensor:
    """1 where ``inside``, and 2 on a last row or column that has a coarse pixel on one side only."""
    share = inside.to(torch.uint8)
    for axis in (2, 3):
        if inside.shape[axis] % 2 == 0:
            share.narrow(axis, inside.shape[axis] - 2, 1).mul_(2)
    return share


def _halved(values: Tensor) -> Tensor:
    """The sums around every second pixel, on the coarser grid and padded."""
    return F.pad(_summed(values)[..., 1:-1:2, 1:-1:2], (1, 1, 1, 1))


def _summed(values: Tensor) -> Tensor:
    return _Sums(values, torch.empty_like(values), torch.zeros_like(values))()


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where they are 0: outside the holes, and on one pixel where nothing is known."""
    return torch.where(values > 0, 1 / values, 0)
