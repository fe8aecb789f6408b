"""``xprotonet_ext.patch``: XProtoNet code bases as they are, drawing MDM's maps where they draw occurrence maps. ::

    import xprotonet_ext
    xprotonet_ext.patch()              # one line at the top of push- or explanation code, or: with patch(): ...

What is patched is ProtoASNet's code, and what shares its functions' names and arguments:

- ``prototype_plot(img, occurrence_map, proto_id, ...)`` while ``push_prototypes`` runs: the prototype is located in the
  image [3, H, W] that it is given, and plotted with that map [1, H, W] instead of its occurrence map.
- ``explain_local``: it takes pictures by ``get_src`` (N of them: one image, or each prototype's own) and then asks
  ``get_normalized_upsample_occurence_maps`` for maps of prototypes, all or some, in any order. Each map is recognised
  by its content among the occurrence maps of those pictures, and located in the picture that it belongs to.

What is computed and pickled (features, distances, occurrence maps, predictions) is not touched. Videos, models that the
adapter cannot prove, maps that are not recognised, whatever fails while it is located, and prototypes with nothing to
locate keep what the code itself draws; the report counts them. Functions of other arguments are left alone, and noted.
Forward hooks of the model are called while it is located.

Vaseli et al., "ProtoASNet", MICCAI 2023.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.adapting import unwrapped
from protomask.checks import check_count
from protomask.locating import resolve_method
from protomask.model import contract, untouched
from protomask.patching import Patch, Replacements, Say, Tally, arguments_of, to_stderr
from protomask.redrawing import Redrawer, reason_of

from .adapter import wrap

_FAMILY = "xprotonet_ext"
_PUSH, _PLOT = "push_prototypes", "prototype_plot"
_EXPLAIN, _PICTURES, _MAPS = "explain_local", "get_src", "get_normalized_upsample_occurence_maps"
_EXPLANATIONS = "explanations"
_READ = {_PUSH: ("model",), _EXPLAIN: ("model",), _PLOT: ("img", "occurrence_map", "proto_id")}
VIDEO = "a video: only images are located"
NO_MODEL = "no model is known where it was drawn"
UNKNOWN = "map not recognised among those of the pictures taken last"
AMBIGUOUS = "map of several different pictures or prototypes"
OTHER_FORM = "maps of a form that is not known"
_ROUNDING = 1e-4  # of a map's largest value: the pictures are passed again, in other batches; TF32 takes more
_TF32 = 2e-2


def patch(
    method: str = "mdm",
    *,
    seed: int = 0,
    batch: int = 32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    say: Say | None = to_stderr,
    **settings: Any,
) -> Patch:
    """Patch XProtoNet code until the handle's ``undo`` or the end of a ``with`` block.

    Args:
        method: a localiser's name (``protomask methods`` lists them).
        seed: of whatever the method draws.
        batch: images in one network pass.
        mean, std: per channel, what the code normalises images by; by default the model's own attributes, else
            ImageNet's for RGB, and 0 and 1 for other images, which the report then says.
        say: is given one line on undo that tells what was found and replaced; standard error by default, None for
            silence.
        **settings: the method's, such as ``steps=25``.

    Raises:
        InputError: unknown method or setting, numbers that are none, or a patch of this package is in place already.
    """
    Patch.refuse_second(_FAMILY)
    resolve_method(method, settings)
    tally = Tally(f"{_FAMILY}.patch({method})")
    options = {"method": method, "seed": seed, "batch": check_count("batch", batch), **settings}
    session = _Session(options, wrap, tally, mean=mean, std=std)
    replacements = Replacements()
    try:
        replacements.on_import(functools.partial(_see, replacements, session))
    except BaseException:
        replacements.undo()
        raise
    return Patch(_FAMILY, replacements, tally, say)


class _Session(Redrawer):
    """What is known while code runs: the model of the push or explanation, and the pictures that it took last.

    Attributes:
        module: the model.
        pictures: [N, C, H, W], model-ready, or [N, C, T, H, W] of videos.
    """

    module: nn.Module | None = None
    pictures: Tensor | None = None

    def draw(self, place: str, maps: Sequence[np.ndarray | str]) -> None:
        """Count what is drawn at a place: located maps, or the reasons why there are none."""
        for located in maps:
            self.tally.draw(place, located if isinstance(located, str) else "")

    def locate_one(self, picture: Tensor, prototype: int) -> np.ndarray | str:
        """The located map [H, W] of a prototype in a picture [C, H, W], or the reason why there is none."""
        if self.module is None:
            return NO_MODEL
        if picture.dim() != 3:
            return VIDEO
        return self.locate(self.module, picture[None], [(0, prototype)])[0]

    def locate_maps(self, maps: Tensor) -> list[np.ndarray | str]:
        """For each occurrence map of ``maps`` [n, h, w] the located map [H, W], or the reason why there is none."""
        if self.module is None or self.pictures is None:
            return [NO_MODEL] * len(maps)
        if self.pictures.dim() != 4:
            return [VIDEO] * len(maps)
        pairs = self._recognise(self.module, self.pictures, maps)
        known = [pair for pair in pairs if isinstance(pair, tuple)]
        found = iter(self.locate(self.module, self.pictures, known) if known else [])
        return [next(found) if isinstance(pair, tuple) else pair for pair in pairs]

    def _recognise(self, module: nn.Module, pictures: Tensor, maps: Tensor) -> list[tuple[int, int] | str]:
        """The pair (picture, prototype) of each map, or the reason why it is not known; raises what the model does."""
        model = self._model(module, tuple(pictures.shape[1:]))
        with self._unnoticed(module), untouched(module), torch.no_grad():
            like = next(module.parameters())
            parts = pictures.split(self.options["batch"])
            every = [contract(model).occurrence_maps(part.to(like)) for part in parts]
        told = [part.cpu().double() for part in every if part is not None]
        if len(told) < len(every):
            return [UNKNOWN] * len(maps)
        rounding = _ROUNDING if like.device.type == "cpu" and like.dtype.itemsize >= 4 else _TF32
        return [_pair_of(map_.double(), torch.cat(told), pictures, rounding) for map_ in maps]


def _pair_of(map_: Tensor, every: Tensor, pictures: Tensor, rounding: float) -> tuple[int, int] | str:
    """Which of ``every`` [N, P, h, w] a map [h, w] is; pictures of the same pixels are the same picture."""
    if map_.shape != every.shape[2:]:
        return UNKNOWN
    gaps = (every - map_).abs().amax((2, 3))
    for near in (gaps == 0, gaps <= rounding * map_.abs().max()):
        pairs = [(int(i), int(j)) for i, j in near.nonzero()]
        if pairs:
            image, prototype = pairs[0]
            same = all(j == prototype and torch.equal(pictures[i], pictures[image]) for i, j in pairs)
            return (image, prototype) if same else AMBIGUOUS
    return UNKNOWN


def _see(replacements: Replacements, session: _Session, module: ModuleType) -> None:
    made: dict[str, Callable[[_Session, Callable[..., Any]], Callable[..., Any]]] = {}
    if all(replacements.defines(module, name) for name in (_PUSH, _PLOT)):
        made |= {_PUSH: _knowing_model, _PLOT: _plot}
    if replacements.defines(module, _EXPLAIN) and callable(vars(module).get(_MAPS)):
        made |= {_EXPLAIN: _knowing_model}
    if all(replacements.defines(module, name) for name in (_PICTURES, _MAPS)):
        made |= {_PICTURES: _pictures, _MAPS: _maps}
    full = {name: f"{module.__name__}.{name}" for name in made}
    if not all(session.tally.knows(full[name], vars(module)[name], _READ.get(name, ())) for name in made):
        return
    for name, make in made.items():
        session.tally.found[full[name]] = None
        replacements.wrap(module, name, functools.partial(make, session))


def _knowing_model(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def knowing_model(*args: Any, **kwargs: Any) -> Any:
        model = unwrapped(arguments_of(original, args, kwargs).get("model"))
        before, session.module = session.module, model if isinstance(model, nn.Module) else None
        try:
            return original(*args, **kwargs)
        finally:
            session.module = before

    return knowing_model


def _plot(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def prototype_plot(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(*args, **kwargs)
        try:
            given = call.arguments
            located = session.locate_one(_tensor(given["img"]), int(given["proto_id"]))
            if not isinstance(located, str):
                given["occurrence_map"] = _like(given["occurrence_map"], located[None])
        except Exception as error:
            located = reason_of(error)
        session.draw("prototype plots", [located])
        return original(*call.args, **call.kwargs)

    return prototype_plot


def _pictures(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def get_src(*args: Any, **kwargs: Any) -> Any:
        session.pictures = None
        try:
            session.pictures = _tensor(_first(original, args, kwargs))
        except Exception as error:
            session.tally.note(f"{_PICTURES}: {reason_of(error)}")
        return original(*args, **kwargs)

    return get_src


def _maps(session: _Session, original: Callable[..., Any]) -> Callable[..., Any]:
    def normalised_maps(*args: Any, **kwargs: Any) -> Any:
        given = torch.zeros(())
        with suppress(Exception):  # before the call, which may write over it; what is no array has no maps
            given = _tensor(_first(original, args, kwargs))
        drawn = original(*args, **kwargs)
        try:
            return _redrawn(session, given, drawn)
        except Exception as error:
            session.draw(_EXPLANATIONS, [reason_of(error)])
            return drawn

    return normalised_maps


def _redrawn(session: _Session, given: Tensor, drawn: Any) -> Any:
    """What the code draws of the maps that it was given, as it came but for the maps that could be located.

    Args:
        session: what is known.
        given: [..., h, w], the occurrence maps; of videos [n, ..., T, h, w].
        drawn: [..., H, W], an array or a tensor: the same maps, one by one, upsampled to the pictures' size.
    """
    video = session.pictures is not None and session.pictures.dim() == 5
    count = len(given) if video else math.prod(given.shape[:-2])
    if video or not _is_stack(drawn, count):
        session.draw(_EXPLANATIONS, [VIDEO if video else OTHER_FORM] * count)
        return drawn
    size = tuple(drawn.shape[-2:])
    found = session.locate_maps(given.reshape(count, *given.shape[-2:]))
    found = [OTHER_FORM if isinstance(f, np.ndarray) and f.shape != size else f for f in found]
    session.draw(_EXPLANATIONS, found)
    maps = (drawn.clone() if isinstance(drawn, Tensor) else drawn.copy()).reshape(count, *size)
    for row, located in enumerate(found):
        if not isinstance(located, str):
            maps[row] = _like(drawn, located)
    return maps.reshape(drawn.shape)


def _is_stack(drawn: object, count: int) -> bool:
    """Whether these are ``count`` maps of real numbers."""
    if isinstance(drawn, Tensor):
        real = drawn.is_floating_point()
    else:
        real = isinstance(drawn, np.ndarray) and drawn.dtype.kind == "f"
    return real and math.prod(drawn.shape[:-2]) == count  # type: ignore[attr-defined]


def _tensor(value: Any) -> Tensor:
    """A copy on the CPU of an array or a tensor, whatever the code does with it afterwards."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))


def _like(given: Any, located: np.ndarray) -> Any:
    """A located map of the type of ``given``; float32 where that is an array of another kind."""
    if isinstance(given, Tensor):
        return torch.from_numpy(located).to(given)
    dtype = np.asarray(given).dtype
    return located.astype(dtype if dtype.kind == "f" else np.float32)


def _first(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return next(iter(arguments_of(function, args, kwargs).values()))
