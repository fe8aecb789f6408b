"""The allowlist: the few callables whose work we do ourselves, and the names that stand for plain values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from protomask.errors import expected
from protomask.pickles import arrays
from protomask.pickles.arrays import NumpyArray, NumpyType
from protomask.pickles.inert import Global, Inert
from protomask.pickles.machine import Machine, PickleError, Rebuilder, plain
from protomask.pickles.storages import Storage, Storages

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
)
CONSTANTS: dict[Global, Any] = {Global("torch", name): getattr(torch, name) for name in _DTYPES}


def rebuilders(storages: Storages, nested: Callable[[bytes], Storage]) -> dict[Global, Rebuilder]:
    """The allowlist for one file.

    Args:
        storages: what tensors are made of.
        nested: the storage in bytes that ``torch.save`` wrote into another pickle.
    """

    def tensor(machine: Machine, args: tuple[Any, ...]) -> Any:
        return storages.tensor(*_first(args, 4))

    def tensor_of_dtype(machine: Machine, args: tuple[Any, ...]) -> Any:
        storage, offset, size, stride, _, _, dtype = _first(args, 7)
        if not isinstance(dtype, torch.dtype):
            raise PickleError(expected("tensor", "a dtype", type(dtype).__name__))
        return storages.tensor(storage, offset, size, stride, dtype)

    def from_bytes(machine: Machine, args: tuple[Any, ...]) -> Any:
        (content,) = _first(args, 1)
        if not isinstance(content, (bytes, bytearray)):
            raise PickleError(expected("storage", "bytes", type(content).__name__))
        machine.charge(len(content))
        return nested(bytes(content))

    return _CONTAINERS | {
        Global("torch._utils", "_rebuild_tensor"): tensor,
        Global("torch._utils", "_rebuild_tensor_v2"): tensor,
        Global("torch._utils", "_rebuild_tensor_v3"): tensor_of_dtype,
        Global("torch.storage", "_load_from_bytes"): from_bytes,
    }


def build(machine: Machine, target: Any, state: Any) -> bool:
    """Hand state to something that we rebuilt; False where it takes none."""
    del machine
    if isinstance(target, (NumpyType, NumpyArray)):
        target.build(state)
        return True
    # An OrderedDict's attributes (a state dict's versions) or a tensor's: nothing that we need.
    return isinstance(target, (OrderedDict, torch.Tensor))


def _first(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(args) < count:
        raise PickleError(expected("call", f"{count} arguments", len(args)))
    return args[:count]


def _parameter(machine: Machine, args: tuple[Any, ...]) -> Any:
    return _first(args, 1)[0]


def _of_type(machine: Machine, args: tuple[Any, ...]) -> Any:
    function, _, inner = _first(args, 3)
    return machine.call(function, inner)


def _items(machine: Machine, args: tuple[Any, ...]) -> list[Any]:
    if not args:
        return []
    if len(args) != 1 or not isinstance(args[0], (list, tuple, set, frozenset)):
        raise PickleError(expected("container", "a list of its items", "something else"))
    machine.charge(len(args[0]))
    return list(args[0])


def _keys(machine: Machine, args: tuple[Any, ...]) -> list[Any]:
    values = _items(machine, args)
    if not all(plain(v) for v in values):
        raise PickleError(expected("set", "numbers, texts and names", "something else"))
    return values


def _ordered(machine: Machine, args: tuple[Any, ...]) -> Any:
    found: OrderedDict[Any, Any] = OrderedDict()
    if len(args) == 1 and isinstance(args[0], Mapping):
        machine.charge(len(args[0]))
        found.update(args[0])
        return found
    for pair in _items(machine, args):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not plain(pair[0]):
            raise PickleError(expected("OrderedDict", "pairs of key and value", "something else"))
        found[pair[0]] = pair[1]
    return found


def _counted(machine: Machine, args: tuple[Any, ...]) -> Any:
    return _ordered(machine, args[-1:] if args and isinstance(args[-1], Mapping) else ())


def _encoded(machine: Machine, args: tuple[Any, ...]) -> bytes:
    text, codec = (*args, "latin-1")[:2] if args else ("", "latin-1")
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise PickleError(expected("bytes", "text in Latin-1", "something else"))
    machine.charge(len(text))
    return text.encode("latin-1")


def _bytes(machine: Machine, args: tuple[Any, ...]) -> Any:
    content = args[0] if args else b""
    content = _encoded(machine, args) if isinstance(content, str) else content
    if not isinstance(content, (bytes, bytearray)):  # bytes(n) would allocate n
        raise PickleError(expected("bytes", "their content", type(content).__name__))
    machine.charge(len(content))
    return bytes(content)


def _device(machine: Machine, args: tuple[Any, ...]) -> Any:
    return ":".join(str(a)[:20] for a in args if isinstance(a, (str, int)))


def _new_object(machine: Machine, args: tuple[Any, ...]) -> Any:
    function = _first(args, 1)[0]
    if not isinstance(function, Global):
        raise PickleError(expected("instance", "a class", type(function).__name__))
    return machine.record(function, args[1:], called=False)


def _reconstructed(machine: Machine, args: tuple[Any, ...]) -> Any:
    """An instance as protocols 0 and 1 write it: (class, base, state), where the base's ``__init__`` is called."""
    base = _first(args, 2)[1]
    if not isinstance(base, (Global, Inert)):
        raise PickleError(expected("instance", "a base class", type(base).__name__))
    machine.record(base, args[2:], called=True)
    return _new_object(machine, args)


def _generator(name: str) -> tuple[Global, Rebuilder]:
    """A constructor of numpy's generators, which calls the class or function that it is given."""
    made = Global("numpy.random._pickle", name)

    def generator(machine: Machine, args: tuple[Any, ...]) -> Any:
        for given in args[:1]:
            if isinstance(given, Global):  # else a generator's name, or the generator itself
                machine.record(given, (), called=True)
        for given in args[1:]:
            if isinstance(given, (Global, Inert)):
                machine.record(given, args[:1], called=True)
        return machine.record(made, args, called=True)

    return made, generator


def _attribute(machine: Machine, args: tuple[Any, ...]) -> Any:
    """A class inside another, which older protocols write as ``getattr(Outer, "Inner")``; else a record."""
    if len(args) == 2 and isinstance(args[0], Global) and isinstance(args[1], str):
        return machine.name(args[0].module, f"{args[0].name}.{args[1]}")
    return machine.record(Global("builtins", "getattr"), args, called=True)


_CONTAINERS: dict[Global, Rebuilder] = {
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch._tensor", "_rebuild_from_type"): _of_type,
    Global("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    Global("torch", "Size"): lambda m, a: tuple(_items(m, a)),
    Global("torch", "device"): _device,
    Global("collections", "OrderedDict"): _ordered,
    Global("collections", "defaultdict"): _counted,
    Global("collections", "Counter"): _counted,
    Global("builtins", "dict"): _ordered,
    Global("builtins", "list"): _items,
    Global("builtins", "tuple"): lambda m, a: tuple(_items(m, a)),
    Global("builtins", "set"): lambda m, a: set(_keys(m, a)),
    Global("builtins", "frozenset"): lambda m, a: frozenset(_keys(m, a)),
    Global("builtins", "bytes"): _bytes,
    Global("builtins", "bytearray"): lambda m, a: bytearray(_bytes(m, a)),
    Global("builtins", "getattr"): _attribute,
    Global("_codecs", "encode"): _encoded,
    Global("copyreg", "_reconstructor"): _reconstructed,
    Global("copyreg", "__newobj__"): _new_object,
    **dict(map(_generator, ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"))),
    **arrays.REBUILDERS,
}
ALLOWED = (
    frozenset(_CONTAINERS)
    | frozenset(CONSTANTS)
    | {
        Global("torch._utils", "_rebuild_tensor"),
        Global("torch._utils", "_rebuild_tensor_v2"),
        Global("torch._utils", "_rebuild_tensor_v3"),
        Global("torch.storage", "_load_from_bytes"),
        Global("torch.nn.parameter", "Parameter"),
        Global("numpy", "ndarray"),
        Global("builtins", "object"),
    }
)
