"""Methods from elsewhere: entry points of installed packages, and files or modules that the user names.

Both run code of others, which the user asked for: by installing the package, or by naming the file.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from importlib.metadata import entry_points
from pathlib import Path

from protomask.errors import InputError, expected
from protomask.files import safe_name
from protomask.localisers.base import LOCALISERS
from protomask.localisers.functions import register_localiser

GROUP = "protomask.localisers"
_log = logging.getLogger(__name__)
_loaded: set[str] = set()


def load_entry_points() -> None:
    """Loads what installed packages name under ``protomask.localisers``, each once.

    An entry point is a module that registers methods when it is imported, or a function, which becomes the method of
    the entry point's name. One that fails is reported in the log and left out: it must not stop the others.
    """
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        key = f"{point.name}={point.value}"
        if key in _loaded:
            continue
        _loaded.add(key)
        try:
            found = point.load()
            if callable(found) and point.name not in LOCALISERS:
                register_localiser(point.name)(found)
        except Exception:  # whatever a foreign package raises
            _log.exception("entry point %s of %s failed and is left out", key, GROUP)


def load_plugin(text: str) -> None:
    """Runs a file ``FILE.py``, or imports a module, that registers methods; each once.

    Args:
        text: a path that ends in ``.py``, or a dotted module name (the working directory is searched first).

    Raises:
        InputError: there is no such file or module, or it fails.
    """
    path = Path(text)
    key = str(path.resolve()) if text.endswith(".py") else text
    if key in _loaded:
        return
    before = set(LOCALISERS)
    try:
        _run(path) if text.endswith(".py") else _import(text)
    except Exception as error:
        for name in set(LOCALISERS) - before:
            del LOCALISERS[name]
        came = f"{text!r} ({type(error).__name__}: {error})"
        raise InputError(expected("--plugin", "a file FILE.py or a module that registers methods", came)) from error
    _loaded.add(key)


def _run(path: Path) -> None:
    # Under a name of its own, and kept, so that dataclasses and pickles of the file find their module.
    name = "protomask_plugin_" + safe_name(str(path.resolve())).replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _import(name: str) -> None:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.import_module(name)
