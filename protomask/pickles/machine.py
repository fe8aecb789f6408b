"""A machine for the pickle language that cannot run code: it knows no way to import or to call what a pickle names.

A name becomes a :class:`~protomask.pickles.inert.Global`; what the pickle would call or make becomes an
:class:`~protomask.pickles.inert.Inert` record, unless a rebuilder of ours is registered under that name. Only opcodes
are read with :mod:`pickletools`, whose documentation is the specification followed here.

A hostile pickle can also try to exhaust time and memory. Sizes are checked by reading from what is there; what one call
copies is charged to a budget in proportion to the file; dictionary keys and set members may be plain values only, since
hashing tuples nested by sharing takes exponential time.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import torch

from protomask.errors import CheckpointError, expected
from protomask.pickles.inert import Global, Inert

Rebuilder = Callable[["Machine", tuple[Any, ...]], Any]
BUDGET_PER_BYTE, BUDGET_BASE = 4, 1 << 20  # honest constructors copy less than the bytes that they took
_KEY_DEPTH, _KEY_LENGTH, _KEY_BITS = 2, 8, 61  # hashes are modulo 2 ** 61 - 1: longer numbers may all share one
_PYTHON_3 = 3  # the first protocol with its names; below it Python 2's are meant

# Opcodes whose argument is the value itself.
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_VALUES = frozenset((*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_EXTENSIONS = frozenset({"EXT1", "EXT2", "EXT4"})
_BUFFERS = frozenset({"NEXT_BUFFER", "READONLY_BUFFER"})


class PickleError(CheckpointError):
    """The pickle is malformed, or asks for what no honest checkpoint needs."""


def plain(value: object, depth: int = 0) -> bool:
    """Whether a value may be a key: a number of few bits, text, bytes, None, a name, a stand-in, or a short tuple."""
    if isinstance(value, tuple):
        return depth < _KEY_DEPTH and len(value) <= _KEY_LENGTH and all(plain(v, depth + 1) for v in value)
    if isinstance(value, int):
        return value.bit_length() <= _KEY_BITS
    return value is None or isinstance(value, (float, str, bytes, Global, Inert, torch.dtype))


class Machine:
    """Reads one pickle after another from a stream; the budget and the record of uses run through all of them.

    Attributes:
        uses: for each global that was named, how: ``"named"``, ``"called"``, ``"made"`` (an empty instance), ``"set"``
            (state handed to an instance or a callable's result), ``"chained"`` (what it gave was called in turn).
    """

    def __init__(
        self,
        rebuilders: Mapping[Global, Rebuilder],
        constants: Mapping[Global, Any],
        persistent: Callable[[Any], Any],
        size: int,
        build: Callable[[Machine, Any, Any], bool],
    ) -> None:
        self.uses: dict[Global, set[str]] = {}
        self._rebuilders = rebuilders
        self._constants = constants
        self._persistent = persistent
        self._build_known = build
        self._budget = BUDGET_BASE + BUDGET_PER_BYTE * size

    def charge(self, amount: int) -> None:
        """Count work that a single opcode of a few bytes causes; refuses a pickle that causes too much."""
        self._budget -= amount
        if self._budget < 0:
            raise PickleError(expected("pickle", "work in proportion to its size", "far more (a decompression bomb)"))

    def load(self, stream: IO[bytes]) -> Any:
        """The object of the next pickle in ``stream``, which is left right behind it."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise PickleError(expected("pickle", "a STOP at its end", "none"))

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _EXTENSIONS:
            raise PickleError(expected("pickle", "no extension codes", f"{name} {argument}"))
        elif name in _BUFFERS:
            raise PickleError(expected("pickle", "no out-of-band buffers", name))
        else:
            action = _ACTIONS.get(name)
            if action is None:
                raise PickleError(expected("pickle", "a known opcode", name))
            action(self, argument)

    # The stack.

    def _pop(self) -> Any:
        if not self._stack or (self._marks and len(self._stack) <= self._marks[-1]):
            raise PickleError(expected("pickle", "a value on the stack", "none"))
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError(expected("pickle", "a mark on the stack", "none"))
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _drop(self, _: Any) -> None:
        if self._marks and len(self._stack) == self._marks[-1]:
            self._marks.pop()  # POP on a mark takes the mark
        else:
            self._pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._top())

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    # The memo.

    def _put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError(expected("pickle", "an entry that the memo has", index))
        self._stack.append(self._memo[index])

    # Containers.

    def _dict(self, _: Any) -> None:
        self._stack.append(_set_items({}, self._pop_mark()))

    def _extend(self, values: Iterable[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Inert):
            target.values.extend(values)
        else:
            raise PickleError(expected("pickle", "a list to append to", type(target).__name__))

    def _set_items(self, flat: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target = target.pairs
        if not isinstance(target, dict):
            raise PickleError(expected("pickle", "a dict to set items of", type(target).__name__))
        _set_items(target, flat)

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._extend([value])

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _add_items(self, _: Any) -> None:
        values = self._pop_mark()
        target = self._top()
        if isinstance(target, set):
            target.update(_keys(values))
        elif isinstance(target, Inert):
            target.values.extend(values)
        else:
            raise PickleError(expected("pickle", "a set to add to", type(target).__name__))

    # Names, calls, instances.

    def name(self, module: Any, name: Any) -> Any:
        """The record of a name, or the plain value that it stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError(expected("pickle", "names as text", f"{type(module).__name__}, {type(name).__name__}"))
        found = Global(module, name) if self._protocol >= _PYTHON_3 else _of_today(module, name)
        self.uses.setdefault(found, set()).add("named")
        return self._constants.get(found, found)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self.name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(self.name(module, name))

    def call(self, function: Any, args: Any) -> Any:
        """What ``function(*args)`` gives where a rebuilder of ours stands for it, else the record of the call."""
        if not isinstance(function, (Global, Inert)):
            raise PickleError(expected("pickle", "a name to call", type(function).__name__))
        if isinstance(function, Global) and isinstance(args, tuple) and function in self._rebuilders:
            self.uses[function].add("called")
            return self._rebuilders[function](self, args)
        return self.record(function, args, called=True)

    def record(self, function: Global | Inert, args: Any, kwargs: Any = None, *, called: bool) -> Inert:
        """The stand-in for a call, or for an empty instance."""
        inert = Inert(function, called, args, kwargs)
        how = self.uses.setdefault(inert.origin, set())
        how.add("called" if called else "made")
        if called and isinstance(function, Inert):
            how.add("chained")
        return inert

    def _reduce(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        self._stack.append(self.call(function, args))

    def _make(self, function: Any, args: Any, kwargs: Any = None) -> None:
        if isinstance(function, Global) and function in self._rebuilders and not kwargs:
            self._stack.append(self.call(function, args))
        elif isinstance(function, (Global, Inert)):
            self._stack.append(self.record(function, args, kwargs, called=False))
        else:
            raise PickleError(expected("pickle", "a class to make an instance of", type(function).__name__))

    def _new(self, _: Any) -> None:
        args, function = self._pop(), self._pop()
        self._make(function, args)

    def _new_with_keywords(self, _: Any) -> None:
        kwargs, args, function = self._pop(), self._pop(), self._pop()
        self._make(function, args, kwargs)

    def _instance(self, argument: str) -> None:
        args = tuple(self._pop_mark())
        self._global(argument)
        self._stack.append(self.call(self._pop(), args))

    def _object(self, _: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise PickleError(expected("pickle", "a class to make an instance of", "nothing"))
        self._stack.append(self.call(values[0], tuple(values[1:])))

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Inert):
            self.uses.setdefault(target.origin, set()).add("set")
            target.state = state
        # State for a class or a function would change it for everybody.
        elif isinstance(target, Global) or not self._build_known(self, target, state):
            raise PickleError(expected("pickle", "an object that takes state", type(target).__name__))

    def _proto(self, version: int) -> None:
        self._protocol = version

    def _persist(self, argument: Any) -> None:
        self._stack.append(self._persistent(argument))


def _of_today(module: str, name: str) -> Global:
    """A name that may be Python 2's, such as ``__builtin__.xrange``, as Python 3 reads it."""
    renamed = _compat_pickle.NAME_MAPPING.get((module, name))
    return Global(*renamed) if renamed else Global(_compat_pickle.IMPORT_MAPPING.get(module, module), name)


def _keys(values: list[Any]) -> list[Any]:
    for value in values:
        if not plain(value):
            raise PickleError(expected("pickle", "numbers, texts and names as keys", type(value).__name__))
    return values


def _set_items(target: dict[Any, Any], flat: list[Any]) -> dict[Any, Any]:
    if len(flat) % 2:
        raise PickleError(expected("pickle", "keys and values in pairs", f"{len(flat)} entries"))
    for key, value in zip(_keys(flat[::2]), flat[1::2], strict=True):
        target[key] = value
    return target


def _pushed(make: Callable[[Machine], Any]) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, _: Any) -> None:
        machine._stack.append(make(machine))

    return action


def _nothing(machine: Machine, argument: Any) -> None:
    del machine, argument


_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine._proto,
    "FRAME": _nothing,
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_to_mark,
    "DUP": Machine._duplicate,
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._put,
    "GET": Machine._get,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "TUPLE": _pushed(lambda m: tuple(m._pop_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "LIST": _pushed(lambda m: m._pop_mark()),
    "APPEND": Machine._append,
    "APPENDS": lambda m, _: m._extend(m._pop_mark()),
    "DICT": Machine._dict,
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda m, _: m._set_items(m._pop_mark()),
    "ADDITEMS": Machine._add_items,
    "FROZENSET": _pushed(lambda m: frozenset(_keys(m._pop_mark()))),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "NEWOBJ": Machine._new,
    "NEWOBJ_EX": Machine._new_with_keywords,
    "PERSID": Machine._persist,
    "BINPERSID": lambda m, _: m._persist(m._pop()),
}
