"""Reading other people's calls: the first argument, and the model inside ``DataParallel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from protomask.adapting import unwrapped
from protomask.patching import arguments_of


def first_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A method's first argument after ``self``, whatever it is called and however it came; None where there is none."""
    given = list(arguments_of(function, args, kwargs).values())[1:]
    first = given[0] if given else None
    return (first[0] if first else None) if isinstance(first, tuple) else first


def module_inside(network: Any) -> nn.Module:
    """The model that code calls ``network.module``, or the network itself."""
    inner = unwrapped(network)
    inner = getattr(inner, "module", inner)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(inner).__name__}")
    return inner
