"""A module's hooks: whether there are any, and set aside for passes that who registered them has not asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

FORWARD = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a module or one of its parts has a hook of any kind, also one by which torch makes weights."""
    return any(_dictionaries(module, (*FORWARD, *_BACKWARD)))


def forward_hooks(module: nn.Module) -> frozenset[int]:
    """The ids of all forward hooks on a module and its parts, but those by which torch itself makes weights."""
    dictionaries = _dictionaries(module, FORWARD)
    return frozenset(key for hooks in dictionaries for key, hook in hooks.items() if not _makes_weights(hook))


@contextmanager
def without_hooks(module: nn.Module, *, forward: bool) -> Iterator[None]:
    """Inside, no backward hook is called, nor with ``forward`` a forward hook; all are back in order afterwards.

    Weight norm, spectral norm and pruning live in forward hooks: these stay. Handles stay valid.
    """
    kinds = (*_BACKWARD, *FORWARD) if forward else _BACKWARD
    before = [(hooks, dict(hooks)) for hooks in _dictionaries(module, kinds) if hooks]
    for hooks, all_ in before:
        for key, hook in all_.items():
            if not _makes_weights(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, all_ in before:
            added = {key: hook for key, hook in hooks.items() if key not in all_}
            hooks.clear()
            hooks.update({**all_, **added})


def _dictionaries(module: nn.Module, kinds: tuple[str, ...]) -> list[dict[int, Callable[..., Any]]]:
    return [getattr(part, kind, {}) for part in module.modules() for kind in kinds]


def _makes_weights(hook: object) -> bool:
    return any(kind.__module__.startswith("torch.nn.utils.") for kind in type(hook).__mro__)
