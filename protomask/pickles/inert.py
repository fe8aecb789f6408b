"""What a pickle names and would make, as records: nothing here can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def printable(text: str, limit: int = 200) -> str:
    """A text from a file that may be shown: control characters escaped, since a terminal would obey them, and cut."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to; never imported.

    Attributes:
        module: such as ``"torch._utils"``; Python 2's names of built-in modules are given as Python 3's.
        name: such as ``"_rebuild_tensor_v2"``; with dots where the pickle follows attributes.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")


@dataclass(eq=False, repr=False)
class Inert:
    """The stand-in of an object whose class is not on the allowlist: what the pickle says about it, and no behaviour.

    Attributes:
        of: the class, or the callable that would have made it.
        called: whether a callable would have been called (REDUCE, INST, OBJ), rather than an empty instance made.
        args, kwargs: with what.
        state: what ``__setstate__`` or ``__dict__`` would have been given; None where the pickle gives none.
        pairs: what would have been set by index, ``object[key] = value``.
        values: what would have been appended or added.
        origin: the global that the object goes back to.
    """

    of: Global | Inert
    called: bool
    args: Any = ()
    kwargs: Any = None
    state: Any = None
    pairs: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    origin: Global = field(init=False)  # kept, since a chain of calls may be as long as the file
    _said: dict[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.origin = self.of.origin if isinstance(self.of, Inert) else self.of

    def __repr__(self) -> str:  # shallow, since a pickle may hold cycles
        return f"<stand-in of {self.origin}>"

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The object's ``__dict__``, its slots included; empty where the state is of another form."""
        if self._said is None:
            parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
            pairs = (pair for part in parts if isinstance(part, Mapping) for pair in part.items())
            self._said = {key: value for key, value in pairs if isinstance(key, str)}
        return self._said
