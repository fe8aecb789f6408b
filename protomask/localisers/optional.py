"""Packages that only some methods need: asked for when a method is built, imported when it runs."""

from __future__ import annotations

from importlib.util import find_spec

from protomask.errors import ResourceError, expected

INSTALL = "in the clone: `pip install '.[{}]'`"


def check_installed(package: str, extra: str) -> None:
    """Nothing where ``package`` can be imported; it is not imported yet.

    Raises:
        ResourceError: it is missing; the message is the line that installs it.
    """
    if find_spec(package) is None:
        raise ResourceError(expected(package, f"it installed ({INSTALL.format(extra)})", "no such package"))
