"""Patching other people's code so that it can be undone: what every extension's ``patch`` is made of.

:class:`Replacements` replaces attributes of modules and classes, wherever a function is already bound under another
name too (``from push import push_prototypes``), and in modules that are imported later. :class:`Tally` counts what was
drawn and what was replaced. :class:`Patch` is the handle that the user gets::

    with protopnet_ext.patch(method="mdm"):
        ...                                  # scripts as they are
    # everything is undone here, also after an exception, and one line on standard error says what was replaced
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType, TracebackType
from typing import Any

from protomask.errors import InputError, expected

Make = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From an original function to what replaces it."""
See = Callable[[ModuleType], None]
"""Called with a module whose code has run."""
Say = Callable[[str], object]

_ABSENT = object()


class Replacements:
    """Replaced attributes and an import hook, undone in reverse order.

    Attributes:
        active: False once undone; replacements that somebody still holds (in a closure, say) must then do nothing.
    """

    def __init__(self) -> None:
        self.active = True
        self._undone: list[tuple[object, str, object, object]] = []
        self._bound: dict[int, tuple[object, object]] = {}  # id of a replacement -> (replacement, original)
        self._added: list[tuple[dict[Any, Any], object, object]] = []
        self._finder: _Finder | None = None

    def set(self, owner: object, name: str, value: object) -> None:
        """Set one attribute of a module or class; what stood in its own dictionary comes back on undo."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._undone.append((owner, name, before, vars(owner).get(name, _ABSENT)))

    def add_item(self, mapping: dict[Any, Any], key: object, value: object) -> None:
        """Add an entry to a registry; taken out on undo, unless it is somebody else's by then."""
        mapping[key] = value
        self._added.append((mapping, key, value))

    def wrap(self, owner: object, name: str, make: Make) -> None:
        """Replace the function ``owner.name``, and where that is a module, the same function in every other module."""
        original = getattr(owner, name)
        made = make(original)

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return (made if self.active else original)(*args, **kwargs)

        self.set(owner, name, replacement)
        if isinstance(owner, ModuleType):
            self._bound[id(replacement)] = (replacement, original)
            for module, other in _bindings({id(original)}):
                self.set(module, other, replacement)

    def defines(self, module: ModuleType, name: str) -> bool:
        """Whether the module itself defines a function of that name, which is not replaced already."""
        value = vars(module).get(name)
        own = isinstance(value, FunctionType) and value.__module__ == module.__name__
        return own and id(value) not in self._bound

    def on_import(self, see: See) -> None:
        """Call ``see`` for every module that is there, and for every one right after its import."""
        if self._finder is None:
            self._finder = _Finder(self)
            sys.meta_path.insert(0, self._finder)
        self._finder.watchers.append(see)
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                see(module)

    def undo(self) -> None:
        """Put everything back; what somebody else replaced in the meantime stays theirs. Once is enough."""
        if not self.active:
            return
        self.active = False
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for owner, name, before, ours in reversed(self._undone):
            if vars(owner).get(name, _ABSENT) is not ours:
                continue
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        for mapping, key, value in reversed(self._added):
            if mapping.get(key) is value:
                del mapping[key]
        for module, name in _bindings(set(self._bound)):
            setattr(module, name, self._bound[id(vars(module)[name])][1])


def _bindings(wanted: set[int]) -> list[tuple[ModuleType, str]]:
    """Where the objects with these ids are bound, in all imported modules."""
    if not wanted:
        return []
    modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    return [(m, name) for m in modules for name, value in list(vars(m).items()) if id(value) in wanted]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as the finders after it do, and runs the watchers when a source file's code has run."""

    def __init__(self, owner: Replacements) -> None:
        self.owner = owner
        self.watchers: list[See] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that another finder gives, its loader wrapped."""
        after = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else []
        for finder in after:
            find = getattr(finder, "find_spec", None)  # Python passes over finders without it
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                if type(spec.loader) in (SourceFileLoader, _Loader):  # another patch may watch too
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def seen(self, module: ModuleType) -> None:
        """Tell the watchers of a module whose code has run."""
        if self.owner.active:
            for watcher in self.watchers:
                watcher(module)


class _Loader(importlib.abc.Loader):
    """Runs a module's code by its own loader, which the module then shows as its loader too."""

    def __init__(self, inner: SourceFileLoader | _Loader, finder: _Finder) -> None:
        self.inner = inner
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        """What else a loader of files has: its code, its path, its resources."""
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the code, then tell the watchers."""
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        self.finder.seen(module)


@dataclass(frozen=True)
class Report:
    """What a patch found and did.

    Attributes:
        name: who patched, such as ``"protopnet_ext.patch(mdm)"``.
        found: functions, classes and registries that were patched, as ``module.name``.
        drawn: place -> regions that the patched code drew.
        replaced: place -> how many of those carry the method's map.
        located: pairs located; one that is drawn twice is located once.
        kept: reason -> how many drawn regions kept the code's own map for it.
        notes: what else the user should know.
    """

    name: str
    found: tuple[str, ...] = ()
    drawn: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)
    located: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for the user."""
        return self._counts() + "".join(f"; {note}" for note in self.notes)

    def _counts(self) -> str:
        if not self.found:
            return f"{self.name}: found nothing to patch: no code that it knows was imported"
        found = f"patched {', '.join(self.found)}"
        total = sum(self.drawn.values())
        if not total:
            return f"{self.name}: {found}; nothing was drawn while the patch was in place"
        places = ", ".join(f"{place} {self.replaced.get(place, 0)} of {n}" for place, n in self.drawn.items())
        line = f"{self.name}: replaced {sum(self.replaced.values())} of {total} regions drawn ({places}), "
        line += f"{self.located} pairs located; {found}"
        return line + "".join(f"; {n} kept as they were: {reason}" for reason, n in self.kept.items())


class Tally:
    """Counts while code runs; :meth:`report` gives them as they stand."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: dict[str, None] = {}
        self.drawn: Counter[str] = Counter()
        self.replaced: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.notes: dict[str, None] = {}
        self.located = 0

    def draw(self, place: str, reason: str = "") -> None:
        """One region was drawn at a place, with the method's map unless there is a reason why not."""
        self.drawn[place] += 1
        if reason:
            self.kept[reason] += 1
        else:
            self.replaced[place] += 1

    def note(self, text: str) -> None:
        """Something that the user should know, said once."""
        self.notes[text] = None

    def knows(self, name: str, function: Callable[..., Any], arguments: Iterable[str]) -> bool:
        """Whether a function has arguments of these names; if not, a note says that it is left alone."""
        if not set(arguments) <= _parameters(function):
            self.note(f"{name} is left as it is: its arguments are not known")
            return False
        return True

    def report(self) -> Report:
        """The counts as a record."""
        counts = (dict(c) for c in (self.drawn, self.replaced))
        drawn, replaced = counts
        notes = tuple(self.notes)
        return Report(self.name, tuple(self.found), drawn, replaced, self.located, dict(self.kept), notes)


def arguments_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, defaults filled in; what does not fit raises TypeError, as the call itself would."""
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return dict(call.arguments)


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # Python knows no signature of it
        return set()


class Patch:
    """The handle of a patch that is in place: a context manager, and ``undo`` for those who cannot use one.

    At the interpreter's exit it undoes itself, so that a one-line call at the top of a script reports too.

    Args:
        family: who patches; a family's second patch is refused while its first is in place.
        replacements: what to undo.
        tally: what to report.
        say: is given the report's line on undo; standard error by default, and None says nothing.
    """

    _in_place: dict[str, Patch] = {}  # noqa: RUF012  (shared on purpose)

    def __init__(self, family: str, replacements: Replacements, tally: Tally, say: Say | None) -> None:
        self._family, self._replacements, self._tally, self._say = family, replacements, tally, say
        Patch._in_place[family] = self
        atexit.register(self.undo)

    @classmethod
    def refuse_second(cls, family: str) -> None:
        """Raise InputError while a patch of the family is in place."""
        if family in cls._in_place:
            raise InputError(expected(f"{family}.patch", "to be undone before it is called again", "a second call"))

    @property
    def report(self) -> Report:
        """What was found and replaced so far."""
        return self._tally.report()

    def undo(self) -> None:
        """Put everything back and say what was replaced; a second call does nothing."""
        if not self._replacements.active:
            return
        self._replacements.undo()
        atexit.unregister(self.undo)
        Patch._in_place.pop(self._family, None)
        if self._say is not None:
            self._say(str(self.report))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def to_stderr(line: str) -> None:
    """Write one line to standard error: a script's own output stays as it was."""
    sys.stderr.write(line + "\n")


def subclasses(cls: type) -> Iterable[type]:
    """All subclasses that exist now, at any depth, each once."""
    seen: set[type] = set()
    waiting = [cls]
    while waiting:
        found: list[type] = type.__subclasses__(waiting.pop())
        for sub in found:
            if sub not in seen:
                seen.add(sub)
                waiting.append(sub)
                yield sub
