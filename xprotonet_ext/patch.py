"""``xprotonet_ext.patch``: XProtoNet code bases as they are, drawing MDM's maps where they draw occurrence maps. ::

    import xprotonet_ext
    xprotonet_ext.patch()              # one line at the top of push- or explanation code, or: with patch(): ...

What is patched is ProtoASNet's code, and what shares its functions' names and arguments:

- ``prototype_plot(img, occurrence_map, proto_id, ...)`` while ``push_prototypes`` runs: the prototype is located in the
  image [3, H, W] that it is given, and plotted with that map [1, H, W] instead of its occurrence map.
- ``explain_local``: it takes pictures by ``get_src`` (N of them: one image, or each prototype's own) and then asks
  ``get_normalized_upsample_occurence_maps`` for a map of every prototype; these are located in those pictures.

What is computed and pickled (features, distances, occurrence maps, predictions) is not touched. Videos, models that the
adapter cannot prove, and prototypes with nothing to locate keep what the code itself draws; the report counts them.

Vaseli et al., "ProtoASNet", MICCAI 2023.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.adapting import unwrapped
from protomask.checks import check_count
from protomask.locating import resolve_method
from protomask.model import PrototypeModel
from protomask.patching import Patch, Replacements, Say, Tally, to_stderr
from protomask.redrawing import Redrawer

from .adapter import wrap

_FAMILY = "xprotonet_ext"
_PUSH, _PLOT = "push_prototypes", "prototype_plot"
_EXPLAIN, _PICTURES, _MAPS = "explain_local", "get_src", "get_normalized_upsample_occurence_maps"
VIDEO = "a video: only images are located"
NO_MODEL = "no model is known where it was drawn"


def patch(
    method: str = "mdm", *, seed: int = 0, batch: int = 32, say: Say | None = to_stderr, **settings: Any
) -> Patch:
    """Patch XProtoNet code until the handle's ``undo`` or the end of a ``with`` block.

    Args:
        method: a localiser's name (``protomask methods`` lists them).
        seed: of whatever the method draws.
        batch: images in one network pass.
        say: is given one line on undo that tells what was found and replaced; standard error by default, None for
            silence.
        **settings: the method's, such as ``steps=25``.

    Raises:
        InputError: unknown method or setting, or a patch of this package is in place already.
    """
    Patch.refuse_second(_FAMILY)
    resolve_method(method, settings)
    tally = Tally(f"{_FAMILY}.patch({method})")
    session = _Session({"method": method, "seed": seed, "batch": check_count("batch", batch), **settings}, tally)
    replacements = Replacements()
    try:
        replacements.on_import(functools.partial(_see, replacements, session))
    except BaseException:
        replacements.undo()
        raise
    return Patch(_FAMILY, replacements, tally, say)


class _Session(Redrawer):
    """What is known while code runs: the model of the push or explanation, and the pictures that it took last."""

    def __init__(self, options: Mapping[str, Any], tally: Tally) -> None:
        super().__init__(options, _wrapped, tally)
        self.module: nn.Module | None = None
        self.pictures: np.ndarray | None = None

    def maps(self, place: str, pictures: np.ndarray | None, prototypes: list[int]) -> list[np.ndarray | None]:
        """Maps [H, W] of the prototypes, each in its own picture or all in one; None where there is none, counted.

        Args:
            place: for the report.
            pictures: [N, C, H, W] model-ready; N is 1 or the number of prototypes.
            prototypes: their indices.
        """
        found: list[np.ndarray | str]
        if pictures is None or self.module is None or len(pictures) not in (1, len(prototypes)):
            found = [NO_MODEL] * len(prototypes)
        elif pictures.ndim != 4:
            found = [VIDEO] * len(prototypes)
        else:
            rows = [0] * len(prototypes) if len(pictures) == 1 else range(len(prototypes))
            images = torch.from_numpy(np.asarray(pictures)).to(next(self.module.parameters()))
            found = self.locate(self.module, images, list(zip(rows, prototypes, strict=True)))
        for located in found:
            self.tally.draw(place, located if isinstance(located, str) else "")
        return [None if isinstance(located, str) else located for located in found]


def _wrapped(module: nn.Module, shape: tuple[int, ...]) -> PrototypeModel:
    return wrap(module, input_shape=shape)


def _see(replacements: Replacements, session: _Session, module: ModuleType) -> None:
    made: dict[str, Callable[[_Session, Callable[..., Any]], Callable[..., Any]]] = {}
    if all(replacements.defines(module, name) for name in (_PUSH, _PLOT)):
        made = {_PUSH: _knowing_model, _PLOT: _plot}
    elif replacements.defines(module, _EXPLAIN) and callable(vars(module).get(_MAPS)):
        made = {_EXPLAIN: _knowing_model}
    elif all(replacements.defines(module, name) for name in (_PICTURES, _MAPS)):
        made = {_PICTURES: _pictures, _MAPS: _maps}
    for name, make in made.items():
        session.tally.found[f"{module.__name__}.{name}"] = None
        replacements.wrap(module, name, functools.partial(make, session))


def _knowing_model(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def knowing_model(*args: Any, **kwargs: Any) -> Any:
        model = unwrapped(_arguments(original, args, kwargs).get("model"))
        before, session.module = session.module, model if isinstance(model, nn.Module) else None
        try:
            return original(*args, **kwargs)
        finally:
            session.module = before

    return knowing_model


def _plot(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def prototype_plot(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(*args, **kwargs)
        image = np.asarray(call.arguments["img"])
        (located,) = session.maps("prototype plots", image[None], [int(call.arguments["proto_id"])])
        if located is not None:
            call.arguments["occurrence_map"] = located[None].astype(np.float32)
        return original(*call.args, **call.kwargs)

    return prototype_plot


def _pictures(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def get_src(*args: Any, **kwargs: Any) -> Any:
        session.pictures = np.asarray(next(iter(_arguments(original, args, kwargs).values())))
        return original(*args, **kwargs)

    return get_src


def _maps(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def normalised_maps(*args: Any, **kwargs: Any) -> Any:
        drawn: np.ndarray | Tensor = original(*args, **kwargs)
        count = len(next(iter(_arguments(original, args, kwargs).values())))
        maps = np.array(drawn).reshape(count, *np.shape(drawn)[-2:]) if np.ndim(drawn) < 4 else np.array(drawn)
        for prototype, located in enumerate(session.maps("explanations", session.pictures, list(range(count)))):
            if located is not None:
                maps[prototype] = located
        return maps.reshape(np.shape(drawn))

    return normalised_maps


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return dict(call.arguments)
