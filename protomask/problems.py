"""What the engine is given: the pairs to train masks for, and how vectors are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from protomask.checks import check_choice, check_count, check_number
from protomask.precision import PRECISIONS


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
        together: train the scales as one mask, their geometric mean, in one pass per step for all; else each by itself.
            The plain product would fall three times as fast as its factors and is scattered by the same steps.
        tolerance: a problem leaves when its cells have moved by no more than this on average within ``patience`` steps;
            0: nobody leaves early.
        patience: steps between two looks at who has converged; a look makes a device wait.
        precision: of the network passes; vectors, masks and losses stay in float32.
    """

    steps: int = 16
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    start: float = 1.0
    gradient_grain: float = 0.0
    value_grain: float = 0.0
    together: bool = False
    tolerance: float = 0.0
    patience: int = 5
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("start", self.start, 0, 1)
        check_number("gradient_grain", self.gradient_grain, 0)
        check_number("value_grain", self.value_grain, 0, self.learning_rate)
        check_number("tolerance", self.tolerance, 0, 1)
        check_count("patience", self.patience)
        check_choice("precision", self.precision, tuple(PRECISIONS))


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
