"""Where the hooks go: forward passes of models, ``cv2.resize``, and the functions known by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from torch import Tensor, nn

from protomask.patching import Replacements, subclasses
from protomask.redrawing import reason_of

from . import cabrnet, nearest, push
from .calls import first_of
from .seen import record
from .session import Session

# The methods that give maps, by what a class has: ProtoPNet and most others, ST-ProtoPNet, ProtoPool.
_ONE_BANK = ("push_forward",)
_TWO_BANKS = ("push_forward_trivial", "push_forward_support", "forward")
_SHARED = ("prototype_distances",)
_MARK = "distance_2_similarity"
MAPS = "maps"


def install(replacements: Replacements, session: Session) -> None:
    """Put every hook in place."""
    _watch_models(replacements, session)
    _watch_resize(replacements, session)
    replacements.on_import(lambda module: _watch_functions(replacements, session, module))


def _watch_functions(replacements: Replacements, session: Session, module: ModuleType) -> None:
    for part in (push, nearest, cabrnet):
        part.see(replacements, session, module)


def _watch_models(replacements: Replacements, session: Session) -> None:
    """Record what models see: those whose classes exist, and those whose classes are yet to be defined."""

    def defined(cls: type[nn.Module], /, **options: Any) -> None:
        super(nn.Module, cls).__init_subclass__(**options)
        if replacements.active:
            _watch_class(replacements, session, cls)

    for cls in list(subclasses(nn.Module)):
        _watch_class(replacements, session, cls)
    replacements.set(nn.Module, "__init_subclass__", classmethod(defined))


def _watch_class(replacements: Replacements, session: Session, cls: type) -> None:
    if not callable(getattr(cls, _MARK, None)) or cls.__module__.partition(".")[0] == "protopnet_ext":
        return
    for name in next((names for names in (_ONE_BANK, _TWO_BANKS, _SHARED) if names[0] in vars(cls)), ()):
        session.tally.found[f"{cls.__module__}.{cls.__name__}.{name}"] = None
        replacements.wrap(cls, name, functools.partial(_recording, session, name))


def _recording(session: Session, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        came = original(self, *args, **kwargs)
        # What training calls is recorded in evaluation mode only, so that no batch of it is kept alive.
        if not session.locating and (name.startswith("push_forward") or not self.training):
            try:
                images, banks = first_of(original, (self, *args), kwargs), _banks(self, name, came)
                session.seen.extend(record(self, images, maps, first) for first, maps in banks)
                again = functools.partial(original, self, *args, **kwargs)
                session.try_without_hooks(self, _maps(banks), lambda: _maps(_banks(self, name, again())))
            except Exception as error:  # a form that is not known; what it draws is then not recognised
                session.tally.note(f"a batch of {type(self).__name__} was not recorded: {reason_of(error)}")
        return came

    return forward


def _banks(module: nn.Module, name: str, came: Any) -> list[tuple[int, Tensor]]:
    """(index of the first prototype, maps [B, P, h, w]) of every bank in what a forward pass gave."""
    if name == "prototype_distances":
        maps = [came]
    elif name == "forward":
        maps = list(came[2]) if isinstance(came, tuple) and len(came) == 3 and isinstance(came[2], tuple) else []
    else:
        maps = [came[1]] if isinstance(came, tuple) and len(came) > 1 else []
    count = getattr(module, "num_prototypes", None)
    start = int(count) if name.endswith("_support") and count is not None else 0
    good = [m for m in maps if isinstance(m, Tensor) and m.dim() == 4 and m.shape[1] == count]
    return [(start + k * int(m.shape[1]), m) for k, m in enumerate(good)]


def _maps(banks: list[tuple[int, Tensor]]) -> list[Tensor]:
    return [maps for _, maps in banks]


def _watch_resize(replacements: Replacements, session: Session) -> None:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def resize(src: Any, *args: Any, **kwargs: Any) -> Any:
            map_like = isinstance(src, np.ndarray) and src.ndim == 2 and src.dtype.kind == "f"
            if session.locating or session.pushing or not map_like:
                return original(src, *args, **kwargs)
            try:
                place, located = _located(session, src)
                drawn = None
                if isinstance(located, np.ndarray):
                    drawn = _fitted(original, located.astype(src.dtype), src, args, kwargs)
            except Exception as error:
                place, located, drawn = MAPS, reason_of(error), None
            if located is not None:
                session.tally.draw(place, located if isinstance(located, str) else "")
            return original(src, *args, **kwargs) if drawn is None else drawn

        return resize

    replacements.wrap(cv2, "resize", make)


def _located(session: Session, array: np.ndarray) -> tuple[str, np.ndarray | str | None]:
    """(where it is drawn, the located map or a reason why there is none, or None where the array is no map)."""
    kept = nearest.map_of(session, array)
    if kept is not None:
        return "nearest patches", kept
    pair = session.identify(array)
    return MAPS, session.map_of(*pair) if isinstance(pair, tuple) else pair


def _fitted(
    resize: Callable[..., Any], located: np.ndarray, src: np.ndarray, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The located map in the size that the call asks for; a map of that size comes back as it is."""
    given = dict(zip(("dsize", "dst", "fx", "fy"), args, strict=False)) | kwargs
    dsize = given.get("dsize")
    if dsize is None or not all(dsize):
        dsize = (round(src.shape[1] * given["fx"]), round(src.shape[0] * given["fy"]))
    return resize(located, dsize, dst=given.get("dst"), interpolation=cv2.INTER_LINEAR)
