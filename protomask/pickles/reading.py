"""Files by ``torch.save`` (zip, or the legacy format before 1.6) and plain pickles, read without running anything.

A legacy file is five pickles (a magic number, a protocol version, facts about the machine, the object, the storages'
keys) and then the storages: 8 bytes of element count, and the elements. So its object is read twice: once for the
storages that it declares, once when it is known where they lie.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from torch import Tensor

from protomask.errors import CheckpointError, expected
from protomask.opening import check_regular
from protomask.pickles.archive import Archive, Buffer, Reader
from protomask.pickles.inert import Global
from protomask.pickles.machine import Machine, PickleError
from protomask.pickles.rebuild import CONSTANTS, build, rebuilders
from protomask.pickles.storages import Storage, Storages

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_LEGACY_PROTOCOL = 1001
_PROTO = 0x80  # the opcode that pickles of protocol 2 and later begin with
FORMS = {"zip": "zip (torch.save)", "legacy": "legacy (torch.save before 1.6)", "pickle": "a plain pickle"}
# What malformed input may raise in pickletools, torch or numpy; all of it means the same.
_CORRUPT = (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, AttributeError, MemoryError)

Uses = Mapping[Global, frozenset[str]]


@dataclass(frozen=True, eq=False)
class Pickled:
    """What a pickle holds.

    Attributes:
        form: ``"zip"``, ``"legacy"`` or ``"pickle"``.
        value: tensors, plain values, and stand-ins for everything else; None where there is a problem.
        uses: how each global is used: ``"named"``, ``"called"``, ``"made"``, ``"set"``.
        problem: why it could not be read to its end, where the caller wanted to know instead of an error.
    """

    form: str
    value: Any
    uses: Uses
    problem: CheckpointError | None = None


def read_pickled(path: str | os.PathLike[str], *, data: bool = True, strict: bool = True) -> Pickled:
    """The object in a file by ``torch.save`` or ``pickle.dump``; nothing that it names is imported or called.

    Args:
        path: the file.
        data: False for tensors on the ``meta`` device: shapes and dtypes, without reading their content.
        strict: False to have a problem reported in the record instead of raised.

    Raises:
        CheckpointError: no such file; truncated or corrupt; or made to exhaust memory or time.
    """
    with _opened(Path(path)) as buffer:
        machine: list[Machine] = []
        form = "zip" if bytes(buffer[:4]) == b"PK\x03\x04" else "pickle"
        try:
            form, value = _read(buffer, data, machine, nested=False)
            return Pickled(form, value, _uses(machine))
        except (*_CORRUPT, RecursionError) as error:
            known = isinstance(error, CheckpointError) and (form == "zip" or buffer[0] == _PROTO)
            problem = CheckpointError(f"{path}: {error}" if known else _no_checkpoint(path, buffer, error))
            cause = error
        if strict:
            raise problem from cause
        return Pickled(form, None, _uses(machine), problem)


def _no_checkpoint(path: str | os.PathLike[str], buffer: Buffer, error: Exception) -> str:
    wanted = "a checkpoint: a folder of ours, or a file by torch.save, pickle or safetensors"
    came = f"a file of {len(buffer)} bytes that opens with {bytes(buffer[:8])!r} ({error})"
    return expected(str(path), wanted, came[:300])


def _uses(machines: list[Machine]) -> Uses:
    found: dict[Global, set[str]] = {}
    for machine in machines:
        for name, how in machine.uses.items():
            found.setdefault(name, set()).update(how)
    return MappingProxyType({name: frozenset(how) for name, how in found.items()})


@contextmanager
def _opened(path: Path) -> Iterator[Buffer]:
    if check_regular(path, "a checkpoint", CheckpointError) == 0:
        raise CheckpointError(expected(str(path), "a checkpoint", "an empty file"))
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as buffer,
        ):
            yield buffer
    except OSError as error:
        raise CheckpointError(expected(str(path), "a file that can be read", error)) from error


def _read(buffer: Buffer, data: bool, machines: list[Machine], *, nested: bool) -> tuple[str, Any]:
    if bytes(buffer[:4]) == b"PK\x03\x04":
        return "zip", _read_zip(buffer, data, machines)
    stream = cast("IO[bytes]", Reader(buffer))
    storages = Storages({}, None, len(buffer))
    first = _machine(storages, len(buffer), data, machines, nested).load(stream)
    if isinstance(first, int) and first == MAGIC:
        return "legacy", _read_legacy(stream, buffer, data, machines)
    if stream.tell() != len(buffer):
        raise PickleError(expected("pickle", "nothing behind its end", f"{len(buffer) - stream.tell()} bytes"))
    return "pickle", first


def _machine(storages: Storages, size: int, data: bool, machines: list[Machine], nested: bool = True) -> Machine:
    def inner(content: bytes) -> Storage:
        if nested:
            raise PickleError(expected("storage", "no pickle inside another's storage", "one"))
        return storages.adopt(_nested(content, data, machines))

    machine = Machine(rebuilders(storages, inner), CONSTANTS, storages.persistent, size, build)
    machines.append(machine)
    return machine


def _nested(content: bytes, data: bool, machines: list[Machine]) -> Tensor:
    """[n], the storage that ``torch.save`` wrote into a plain pickle."""
    held: list[Storages] = []
    with memoryview(content) as buffer:
        if bytes(buffer[:4]) == b"PK\x03\x04":
            storage = _read_zip(buffer, data, machines, held.append)
        else:
            stream = cast("IO[bytes]", Reader(buffer))
            first = _machine(Storages({}, None, len(buffer)), len(buffer), data, machines).load(stream)
            if first != MAGIC:
                raise PickleError(expected("storage", "bytes by torch.save", "others"))
            storage = _read_legacy(stream, buffer, data, machines, held.append)
        if not isinstance(storage, Storage):
            raise PickleError(expected("storage", "bytes that hold a storage", type(storage).__name__))
        return held[-1].whole(storage)


def _read_zip(
    buffer: Buffer, data: bool, machines: list[Machine], keep: Callable[[Storages], None] = lambda s: None
) -> Any:
    archive = Archive(buffer)
    if archive.script:
        raise CheckpointError(expected("zip file", "a state dict or a module", "a TorchScript program"))
    read = (lambda key: archive.read(f"data/{key}")) if data else None
    storages = Storages(archive.sizes(), read, len(buffer))
    keep(storages)
    content = bytes(archive.read("data.pkl"))
    with memoryview(content) as inner:
        stream = cast("IO[bytes]", Reader(inner))
        return _machine(storages, len(content), data, machines).load(stream)


def _read_legacy(
    stream: IO[bytes],
    buffer: Buffer,
    data: bool,
    machines: list[Machine],
    keep: Callable[[Storages], None] = lambda s: None,
) -> Any:
    declared = Storages(None, None, len(buffer), legacy=True)
    machine = _machine(declared, len(buffer), False, machines)
    protocol, facts = machine.load(stream), machine.load(stream)
    if protocol != _LEGACY_PROTOCOL:
        raise PickleError(expected("legacy file", f"protocol {_LEGACY_PROTOCOL}", str(protocol)[:20]))
    if isinstance(facts, dict) and facts.get("little_endian") is False:
        raise PickleError(expected("legacy file", "little-endian numbers", "another byte order"))
    start = stream.tell()
    machine.load(stream)
    places = _places(machine.load(stream), stream.tell(), declared, buffer)
    stream.seek(start)
    read = (lambda key: bytearray(buffer[places[key][0] : sum(places[key])])) if data else None
    storages = Storages({key: size for key, (_, size) in places.items()}, read, len(buffer), legacy=True)
    keep(storages)
    return _machine(storages, len(buffer), data, machines).load(stream)


def _places(keys: Any, at: int, declared: Storages, buffer: Buffer) -> dict[str, tuple[int, int]]:
    """(start, bytes) of each storage behind the pickles, in the order of ``keys``."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleError(expected("legacy file", "a list of storage keys", type(keys).__name__))
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = declared.declared.get(key)
        if storage is None or key in places:
            raise PickleError(expected("legacy file", "each declared storage once", repr(key)[:40]))
        count = int.from_bytes(buffer[at : at + 8], "little")
        size = storage.numel * storage.dtype.itemsize
        if len(buffer) < at + 8 + size or count != storage.numel:
            came = f"{max(0, len(buffer) - at - 8)} bytes left for {count} elements"
            raise PickleError(expected(f"storage {key}", f"{storage.numel} elements in {size} bytes", came))
        places[key] = (at + 8, size)
        at += 8 + size
    return places
