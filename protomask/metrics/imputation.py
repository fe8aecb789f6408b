"""Noisy linear imputation: removed pixels become the weighted mean of their neighbours, plus a little noise.

Source: ROAD (Rong et al. 2022, "A consistent and efficient evaluation strategy for attribution methods"). A constant
fill betrays the mask's shape to the network, and an edge is evidence too; values that follow their surroundings do
not. Each removed pixel equals the weighted mean of its eight neighbours (1/6 beside, 1/12 at the corners, renormalised
at the border of the image), which is one sparse linear system per image: symmetric and, as soon as one pixel is known,
positive definite. It is solved for a whole batch by conjugate gradients, from coarse to fine, each member for itself.

J images of C x H x W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protomask.checks import check_number, check_tensor
from protomask.draws import content_of, generator_of
from protomask.errors import InputError, expected

NOISE = 0.01
TOLERANCE = 1e-3  # leaves a mean error of .001 to .003 on smooth images of unit variance, well below the noise
_COARSEST = 8
_ROUNDS = 500


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


def impute(images: Tensor, removed: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
    """Removed pixels as the weighted mean of their neighbours; zero (the mean colour) where every pixel is removed.

    Args:
        images: [J, C, H, W], model-ready.
        removed: [J, H, W] bool.
        tolerance: of the residual's norm, relative to the right-hand side's, at which a member is done.

    Returns:
        [J, C, H, W]; the known pixels as they came.

    Raises:
        InputError: ``removed`` is no bool tensor of the images' size.
    """
    check_tensor("images", images, ("J", "C", "H", "W"))
    wanted = (len(images), *images.shape[2:])
    if not isinstance(removed, Tensor) or removed.dtype != torch.bool or tuple(removed.shape) != wanted:
        came = f"{removed.dtype} {list(removed.shape)}" if isinstance(removed, Tensor) else type(removed).__name__
        raise InputError(expected("removed", f"a bool tensor {list(wanted)}", came))
    holes = removed.to(images.device)[:, None]
    return torch.where(holes, _solve(images.masked_fill(holes, 0), holes, tolerance), images)


def _noise(image: Tensor, seed: int) -> Tensor:
    generator = generator_of(seed, content_of(image))
    return torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)


def _solve(known: Tensor, holes: Tensor, tolerance: float) -> Tensor:
    """The solution [J, C, H, W] on the holes [J, 1, H, W]; the coarser solution is where the finer one starts."""
    height, width = known.shape[2:]
    start = torch.zeros_like(known)
    if min(height, width) > _COARSEST:
        start = _upsampled(_coarse(known, holes, tolerance), (height, width))
    return _conjugate_gradients(known, holes, start * holes, tolerance)


def _coarse(known: Tensor, holes: Tensor, tolerance: float) -> Tensor:
    """The solution at half the size: a coarse pixel is the mean of its known ones, a hole where it has none."""
    padding = (0, known.shape[3] % 2, 0, known.shape[2] % 2)
    present = F.pad((~holes).to(known), padding)
    count = 4 * F.avg_pool2d(present, 2)
    total = 4 * F.avg_pool2d(F.pad(known, padding), 2)
    smaller = count == 0
    means = total / count.clamp(min=1)
    return torch.where(smaller, _solve(means, smaller, tolerance), means)


def _upsampled(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    large = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return large[:, :, : size[0], : size[1]]


def _conjugate_gradients(known: Tensor, holes: Tensor, start: Tensor, tolerance: float) -> Tensor:
    """Preconditioned on many grids; a member that is done stands still, so that nobody depends on its company."""
    inside = holes.to(known)
    diagonal = _neighbours(torch.ones_like(inside))
    right = _neighbours(known) * inside
    enough = (tolerance * _norm(right)).clamp(min=torch.finfo(known.dtype).tiny)

    def applied(values: Tensor) -> Tensor:
        return (diagonal * values - _neighbours(values)) * inside

    solution = start
    residual = right - applied(solution)
    direction = _preconditioned(residual, diagonal, inside)
    size = _dot(residual, direction)
    for _ in range(_ROUNDS):
        running = _norm(residual) > enough
        if not running.any():
            break
        moved = applied(direction)
        step = torch.where(running, size / _dot(direction, moved), 0)
        solution = solution + step * direction
        residual = residual - step * moved
        scaled = _preconditioned(residual, diagonal, inside)
        now = torch.where(running, _dot(residual, scaled), size)
        direction = torch.where(running, scaled + now / size * direction, direction)
        size = now
    return solution


def _preconditioned(residual: Tensor, diagonal: Tensor, inside: Tensor) -> Tensor:
    """The residual over the diagonal, plus its sums on ever coarser grids: a third to a half of the rounds saved.

    Sums over blocks and copies into blocks are each other's adjoint, so the whole is symmetric, as the method needs.
    """
    grids = [residual]
    while min(grids[-1].shape[2:]) > _COARSEST:
        last = grids[-1]
        # A sum over blocks of side b counts b to the -1/2: of the powers 0, -1/2 and -1 the one with the fewest rounds.
        grids.append(4 * F.avg_pool2d(F.pad(last, (0, last.shape[3] % 2, 0, last.shape[2] % 2)), 2) * 0.5**0.5)
    total = torch.zeros_like(grids[-1])
    for level in range(len(grids) - 1, 0, -1):
        total = total + grids[level]
        height, width = grids[level - 1].shape[2:]
        total = F.interpolate(total, scale_factor=2, mode="nearest")[:, :, :height, :width]
    return (residual / diagonal + total) * inside


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours, zero beyond the border: the outer product of (1, 2, 1) less its middle.

    Shifted sums, whose rounding does not depend on the size of the batch as a convolution's does.
    """
    return (_along(_along(values, -1), -2) - 4 * values) / 12


def _along(values: Tensor, axis: int) -> Tensor:
    size = values.shape[axis]
    summed = 2 * values
    summed.narrow(axis, 1, size - 1).add_(values.narrow(axis, 0, size - 1))
    summed.narrow(axis, 0, size - 1).add_(values.narrow(axis, 1, size - 1))
    return summed


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[J, C, 1, 1], per image and channel."""
    return (a * b).sum((2, 3), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()
