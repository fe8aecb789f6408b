"""Numbers as they stand in captions and tables: true minus signs, dashes where undefined."""

from __future__ import annotations

import math

UNDEFINED = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}"}


def number(value: float | None, digits: int = 2) -> str:
    """A number with that many decimals, its minus a true one; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    text = f"{value:.{digits}f}"
    # A negative number that rounds to nothing is printed without its sign.
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def short(value: float | None) -> str:
    """A score for a caption, without its leading nought: ``.71``, ``1.00``; a dash where it is undefined."""
    text = number(value)
    return text.replace("0.", ".", 1) if text.lstrip("\N{MINUS SIGN}").startswith("0.") else text


def arrow(direction: int) -> str:
    """An arrow up for 1 (higher is better), down for -1 (lower is better), nothing for 0."""
    return ARROWS.get(direction, "")


def printable(text: str) -> str:
    """The text, with what cannot be encoded (bytes of a file name that are no Unicode) spelt as ``\\udc80``.

    So is a carriage return (``\\r``): tables in CSV lose it or break at it.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\r", "\\r")
