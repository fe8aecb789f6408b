"""A method in one function: ``register_localiser`` makes a plain function a localiser. ::

    @protomask.register_localiser("dark", "Dark pixels, whatever the prototype.", passes=0)
    def dark(request, power=1.0):
        return (-request.images.mean(1)[request.targets.images]).exp() ** power

    protomask.locate(model, images, "top:3", "dark", power=2)

Installed packages name such functions (or the modules that register them) under the entry-point group
``protomask.localisers``; on the command line ``--plugin FILE.py`` (or a module) runs a file that registers some.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from protomask.checks import check_number, check_tensor
from protomask.errors import InputError, expected
from protomask.localisers.base import Maps, Request, register, scaled

Located = Callable[..., "Tensor | Maps"]


@dataclass(frozen=True)
class FunctionLocaliser:
    """A plain function as a localiser; made by :func:`register_localiser`.

    Attributes:
        name: under which it is registered.
        function: from a request (and settings by name) to maps: [N, H, W] finite numbers, which are scaled to [0, 1] by
            their own minimum and maximum, or :class:`Maps` as they are.
        settings: given to the function by name.
        passes: forward + input-gradient passes per pair, as its author stated them.
        image_passes: forward passes per image, likewise.
    """

    name: str
    function: Located
    settings: Mapping[str, object] = field(default_factory=dict)
    passes: float = 0.0
    image_passes: float = 0.0

    def __call__(self, request: Request) -> Maps:
        """Maps [N, H, W].

        Raises:
            InputError: the function gave something else.
        """
        found = self.function(request, **self.settings)
        if isinstance(found, Maps):
            return found
        return Maps(scaled(check_tensor(f"maps of {self.name}", found, (len(request.targets), *request.size))))


def register_localiser(
    name: str, sentence: str = "", *, passes: float = 0.0, image_passes: float = 0.0, control: bool = False
) -> Callable[[Located], Located]:
    """Makes a function ``f(request, **settings) -> Tensor | Maps`` a method under a name; the function stays as it is.

    Args:
        name: as it stands in Python, on the command line and in files.
        sentence: what it does; by default the first line of the function's docstring.
        passes: forward + input-gradient passes per pair, for estimates of cost.
        image_passes: forward passes per image that serve all its prototypes, likewise.
        control: True for a control, which looks at the annotation or at nothing.

    Raises:
        InputError: the name is taken, or the function cannot take a request.
    """
    check_number("passes", passes, 0)
    check_number("image_passes", image_passes, 0)

    def keep(function: Located) -> Located:
        known = _settings_of(function)
        said = sentence or (inspect.getdoc(function) or "A method of yours.").splitlines()[0]

        def make(**settings: object) -> FunctionLocaliser:
            unknown = [s for s in settings if known is not None and s not in known]
            if unknown:
                wanted = "one of " + ", ".join(known) if known else "no settings"
                raise InputError(expected(f"settings of {name}", wanted, ", ".join(unknown)))
            return FunctionLocaliser(name, function, settings, passes, image_passes)

        register(name, said, control=control)(make)
        return function

    return keep


def _settings_of(function: Located) -> list[str] | None:
    """Names of all parameters but the first; None where the function takes any."""
    try:
        first, *others = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputError(expected("function", "one that takes a request", repr(function))) from error
    if first.kind == first.KEYWORD_ONLY or first.kind == first.VAR_KEYWORD:
        raise InputError(expected("function", "one that takes a request", repr(function)))
    if any(p.kind == p.VAR_KEYWORD for p in others):
        return None
    return [p.name for p in others if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
