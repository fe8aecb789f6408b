"""Tensors out of a checkpoint's raw bytes, every size checked against what the file holds before it is allocated."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protomask.errors import expected
from protomask.pickles.inert import Global
from protomask.pickles.machine import PickleError

_KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
}
STORAGES = {
    Global(module, f"{kind}Storage"): dtype
    for kind, dtype in _KINDS.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}
_EXPANSION = 1 << 26  # bytes that a stride of zero may add to what the file holds


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of elements that tensors are views of.

    Attributes:
        key: its name in the file.
        dtype: of the elements; uint8 where the storage is untyped.
        numel: how many.
        start: the first of them, where this is a part of a larger storage.
    """

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0


class Storages:
    """The storages of one file.

    Args:
        sizes: bytes stored under each key; None while that is not known (legacy files tell it behind the pickle).
        read: the bytes under a key; None to make tensors without data, on the ``meta`` device.
        limit: bytes of the file.

    Attributes:
        declared: what the pickle says about each key.
    """

    def __init__(
        self, sizes: dict[str, int] | None, read: Callable[[str], bytearray] | None, limit: int, legacy: bool = False
    ) -> None:
        self.declared: dict[str, Storage] = {}
        self._sizes = sizes
        self._read = read
        self._limit = limit
        self._legacy = legacy
        self._flat: dict[str, Tensor] = {}

    def persistent(self, identity: Any) -> Any:
        """The storage, or the class, that a persistent id stands for.

        ``("storage", class, key, location, numel)``, with a sixth entry in legacy files: None or
        ``(key of the part, start, numel)``; and there also ``("module", class, file, source)``.
        """
        if isinstance(identity, tuple) and self._legacy and len(identity) == 4 and identity[0] == "module":
            return identity[1]
        if not isinstance(identity, tuple) or len(identity) != 5 + self._legacy or identity[0] != "storage":
            raise PickleError(expected("persistent id", "a storage's five entries", _shown(identity)))
        _, kind, key, location, numel = identity[:5]
        if kind not in STORAGES or not isinstance(key, str) or not isinstance(location, str) or not _count(numel):
            wanted = "a storage's class, key, location and element count"
            raise PickleError(expected("persistent id", wanted, _shown(identity)))
        whole = self._declare(Storage(key, STORAGES[kind], numel))
        return whole if len(identity) == 5 or identity[5] is None else _part(whole, identity[5])

    def adopt(self, flat: Tensor) -> Storage:
        """A storage that came from elsewhere, as one of this file's."""
        storage = Storage(f"nested {len(self.declared)}", flat.dtype, flat.numel())
        self.declared[storage.key] = storage
        self._flat[storage.key] = flat
        return storage

    def whole(self, storage: Storage) -> Tensor:
        """[n], all elements of a storage."""
        return self.tensor(storage, 0, (storage.numel,), (1,))

    def _declare(self, storage: Storage) -> Storage:
        known = self.declared.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            was, came = (f"{s.numel} of {s.dtype}" for s in (known, storage))
            raise PickleError(expected(f"storage {storage.key}", was, came))
        if self._sizes is not None:
            stored = self._sizes.get(storage.key)
            if stored != storage.numel * storage.dtype.itemsize:
                wanted = f"{storage.numel * storage.dtype.itemsize} bytes in the file"
                raise PickleError(expected(f"storage {storage.key}", wanted, "none" if stored is None else stored))
        return known

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
        """The view of ``storage`` that a tensor is: ``offset`` and ``stride`` in elements of ``dtype``."""
        if not isinstance(storage, Storage):
            raise PickleError(expected("tensor", "a storage", type(storage).__name__))
        dtype = storage.dtype if dtype is None else dtype
        size, stride = _counts("size", size), _counts("stride", stride)
        if not _count(offset) or len(size) != len(stride):
            raise PickleError(expected("tensor", "an offset, and as many strides as sizes", _shown((offset, stride))))
        held = storage.numel * storage.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        empty = 0 in size
        if not empty and last >= held:
            raise PickleError(expected("tensor", f"elements inside its storage's {held}", f"element {last}"))
        if not empty and math.prod(size) * dtype.itemsize > self._limit + _EXPANSION:
            raise PickleError(expected("tensor", f"a size that a file of {self._limit} bytes explains", list(size)))
        if empty and max((*size, *stride, offset)) >= 1 << 40:
            raise PickleError(expected("tensor", "an empty tensor of sensible shape", list(size)))
        flat = self._elements(storage)
        if dtype != storage.dtype:
            flat = flat[: held * dtype.itemsize // storage.dtype.itemsize].view(dtype)
        return flat.new_empty(size) if empty else torch.as_strided(flat, size, stride, flat.storage_offset() + offset)

    def _elements(self, storage: Storage) -> Tensor:
        whole = self.declared[storage.key]
        if storage.key not in self._flat:
            self._flat[storage.key] = self._fresh(whole)
        return self._flat[storage.key][storage.start : storage.start + storage.numel]

    def _fresh(self, storage: Storage) -> Tensor:
        if self._read is None:
            return torch.empty(storage.numel, dtype=storage.dtype, device="meta")
        if storage.numel == 0:
            return torch.empty(0, dtype=storage.dtype)
        if sys.byteorder != "little":
            raise PickleError(expected("this machine", "little-endian byte order", sys.byteorder))
        return torch.frombuffer(self._read(storage.key), dtype=storage.dtype)


def _part(whole: Storage, part: Any) -> Storage:
    if not isinstance(part, tuple) or len(part) != 3 or not _count(part[1]) or not _count(part[2]):
        raise PickleError(expected("persistent id", "a part's key, start and element count", _shown(part)))
    if part[1] + part[2] > whole.numel:
        raise PickleError(expected("persistent id", f"a part of {whole.numel} elements", _shown(part)))
    return Storage(whole.key, whole.dtype, part[2], part[1])


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _counts(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > 64 or not all(_count(v) for v in values):
        raise PickleError(expected(f"tensor's {name}", "whole numbers of at least 0", _shown(values)))
    return tuple(values)


def _shown(value: Any) -> str:
    """A short text of anything, cycles and giants included."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shown(v) if not isinstance(v, (tuple, list)) else "..." for v in value[:6]) + ")"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    return repr(value)[:60] if isinstance(value, (str, bytes, int, float, type(None), Global)) else type(value).__name__
