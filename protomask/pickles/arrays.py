"""NumPy's scalars and arrays out of a pickle, of plain numbers and texts only; numpy rebuilds none of it itself."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from protomask.errors import expected
from protomask.pickles.inert import Global, Inert
from protomask.pickles.machine import Machine, PickleError, Rebuilder

_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6})")
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class NumpyType:
    """A ``numpy.dtype`` on its way: its code, then (by BUILD) its byte order."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Take the byte order from ``(version, order, subdtype, names, fields, ...)``."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise PickleError(expected("numpy dtype", "a plain state", "fields or a sub-array"))
        if state[1] not in ("<", ">", "=", "|"):
            raise PickleError(expected("numpy dtype", "a byte order", repr(state[1])[:20]))
        self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """A ``numpy.ndarray`` on its way; ``array`` is None until BUILD has brought its content, and for objects."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Take ``(version, shape, dtype, is_fortran, bytes)``."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise PickleError(expected("numpy array", "its shape, dtype, order and bytes", "something else"))
        shape, dtype, fortran, content = state[-4:]
        if isinstance(dtype, Inert):
            return
        self.array = _shaped(content, dtype, shape, "F" if fortran else "C")


def _shaped(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    content = content.encode("latin-1") if isinstance(content, str) else content  # bytes, as Python 2 wrote them
    if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, NumpyType):
        raise PickleError(expected("numpy array", "bytes and a dtype", f"{type(content).__name__}"))
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > 32:
        raise PickleError(expected("numpy array", "a shape", repr(shape)[:40]))
    wanted = dtype.dtype.itemsize
    for n in shape:
        wanted *= n
    if wanted != len(content):
        raise PickleError(expected("numpy array", f"{wanted} bytes for shape {shape}", len(content)))
    if not wanted:
        return np.empty(shape, dtype.dtype)
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _dtype(machine: Machine, args: tuple[Any, ...]) -> Any:
    if args and isinstance(args[0], str) and _PLAIN.fullmatch(args[0]):
        return NumpyType(args[0])
    return machine.record(Global("numpy", "dtype"), args, called=True)


def _array(machine: Machine, args: tuple[Any, ...]) -> NumpyArray:
    del machine, args
    return NumpyArray()


def _scalar(machine: Machine, args: tuple[Any, ...]) -> Any:
    if len(args) != 2:
        raise PickleError(expected("numpy scalar", "a dtype and bytes", f"{len(args)} arguments"))
    if isinstance(args[0], Inert):
        return machine.record(Global("numpy", "generic"), args, called=False)
    return _shaped(args[1], args[0], (), "C").item()


def _from_buffer(machine: Machine, args: tuple[Any, ...]) -> NumpyArray:
    del machine
    if len(args) != 4:
        raise PickleError(expected("numpy array", "bytes, dtype, shape and order", f"{len(args)} arguments"))
    made = NumpyArray()
    made.array = _shaped(args[0], args[1], args[2], str(args[3]))
    return made


_BY_NAME: dict[str, Rebuilder] = {
    "dtype": _dtype,
    "_reconstruct": _array,
    "scalar": _scalar,
    "_frombuffer": _from_buffer,
}
REBUILDERS: dict[Global, Rebuilder] = {
    Global(module, name): rebuilder for module in _MODULES for name, rebuilder in _BY_NAME.items()
}
