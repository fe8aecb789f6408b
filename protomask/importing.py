"""What the user names as ``package.module:factory``: their own code, run because they named it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protomask.errors import InputError, expected


def import_factory(text: str, argument: str, forms: str) -> Callable[..., Any]:
    """The factory that ``package.module:factory`` names; the working directory is searched first.

    Args:
        text: as given.
        argument: what it was given for, told in the error.
        forms: what that takes.

    Raises:
        InputError: no such module, or nothing to call of that name in it.
    """
    module_name, _, factory_name = text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a name that begins with a dot
        raise InputError(expected(argument, forms, f"{text!r} ({error})")) from error
    if not callable(factory):
        raise InputError(expected(argument, forms, f"{text!r}, which is a {type(factory).__name__}"))
    return factory
