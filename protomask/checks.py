"""Shapes, dtypes and ranges, checked once at the border; inside, code may trust its arguments.

A shape is written as a tuple of names and numbers: ``("B", 3, "H", "W")``. A name stands for any size, a number for
itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from protomask.errors import InputError, expected

Shape = Sequence[str | int]

MOST_INPUT = 1 << 26  # pixels, 8192 x 8192: one image of float32 takes 805 MB


def _fits(shape: Sequence[int], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(isinstance(w, str) or s == w for s, w in zip(shape, wanted, strict=True))


def _spell(shape: Shape) -> str:
    return "[" + ", ".join(str(s) for s in shape) + "]"


def check_tensor(name: str, value: object, shape: Shape, *, finite: bool = True) -> Tensor:
    """``value`` as it came, if it is a floating-point tensor of that shape without NaN or infinity; else InputError."""
    if not isinstance(value, Tensor):
        raise InputError(expected(name, f"a torch.Tensor {_spell(shape)}", type(value).__name__))
    if not _fits(value.shape, shape):
        raise InputError(expected(name, f"shape {_spell(shape)}", _spell(tuple(value.shape))))
    if not value.is_floating_point():
        raise InputError(expected(name, "a floating-point dtype", value.dtype))
    if finite and value.is_meta:
        raise InputError(expected(name, "a tensor with values", "one on the meta device"))
    if finite and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise InputError(expected(name, "finite values", f"{bad} NaN or infinite of {value.numel()}"))
    return value


def check_array(name: str, value: object, shape: Shape, dtype: type | None = None) -> np.ndarray:
    """``value`` as it came, if it is a numpy array of that shape (and dtype, where one is given); else InputError."""
    if not isinstance(value, np.ndarray):
        raise InputError(expected(name, f"a numpy array {_spell(shape)}", type(value).__name__))
    if not _fits(value.shape, shape):
        raise InputError(expected(name, f"shape {_spell(shape)}", _spell(value.shape)))
    if dtype is not None and value.dtype != dtype:
        raise InputError(expected(name, f"dtype {np.dtype(dtype)}", value.dtype))
    return value


def check_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """``value`` as it came, if it is a number in [low, high] (or (low, high] with ``open_low``); else InputError."""
    number = _as_float(value)
    if not low <= number <= high or (open_low and number == low):  # NaN compares false
        bracket = "(" if open_low else "["
        raise InputError(expected(name, f"a number in {bracket}{low}, {high}]", repr(value)))
    return value


def _as_float(value: object) -> float:
    """NaN for what is no number, or a greater one than floats can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_count(name: str, value: int, low: int = 1) -> int:
    """``value`` as it came, if it is an integer of at least ``low``; else InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise InputError(expected(name, f"an integer of at least {low}", repr(value)))
    return int(value)


def check_scales(value: object) -> tuple[int, ...]:
    """One or several numbers of cells per side as a tuple: each at least 2, and once; else InputError."""
    if isinstance(value, (int, np.integer)):
        value = (int(value),)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or len(set(value)) != len(value):
        raise InputError(expected("scales", "at least one scale, each once", repr(value)))
    return tuple(check_count("scales", scale, 2) for scale in value)


def check_flag(name: str, value: bool) -> bool:
    """``value`` as it came, if it is True or False; else InputError: the word ``"no"`` would count as True."""
    if not isinstance(value, bool):
        raise InputError(expected(name, "True or False", repr(value)))
    return value


def flat_numbers(value: object) -> tuple[float, ...]:
    """The numbers in a number, a sequence, an array or a tensor of any shape, such as a buffer [1, C, 1, 1].

    Raises:
        TypeError, ValueError, RuntimeError: it has others in it, or none can be read.
    """
    array = value.detach().cpu().double() if isinstance(value, Tensor) else value
    return tuple(np.asarray(array, dtype=np.float64).ravel().tolist())


def check_area(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) as it came, if so many pixels can be an input (:data:`MOST_INPUT`); else InputError."""
    if size[0] * size[1] > MOST_INPUT:
        raise InputError(expected(name, f"at most {MOST_INPUT} pixels", f"{size[0]} x {size[1]}"))
    return size


def check_index(name: str, value: int, size: int) -> int:
    """``value`` as it came, if it is an integer in 0 .. size - 1; else InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < size:
        raise InputError(expected(name, f"an index in 0 .. {size - 1}", repr(value)))
    return int(value)


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """``value`` as it came, if it is one of ``choices``; else InputError."""
    if value not in choices:
        raise InputError(expected(name, "one of " + ", ".join(choices), repr(value)))
    return value
