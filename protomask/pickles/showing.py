"""What came out of a pickle as short text, for messages and tables."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from protomask.pickles.inert import Inert, printable

_SHOWN = 200  # characters of an attribute


def shown(value: Any) -> str:
    """A short text of an attribute; tensors by shape, stand-ins by class."""
    if isinstance(value, Inert):
        return f"an object of {value.origin}"
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, int) and not _plain(value):
        return "a huge number"
    return printable(repr(value), _SHOWN) if _plain(value) or _flat(value) else f"a {type(value).__name__}"


def _flat(value: Any) -> bool:
    listed = isinstance(value, (list, tuple)) and len(value) <= 16
    return listed and all(_plain(v) for v in value)


def _plain(value: Any) -> bool:
    # Python refuses to write out numbers of thousands of digits.
    short = isinstance(value, int) and value.bit_length() < _SHOWN
    return value is None or short or isinstance(value, (float, str))
