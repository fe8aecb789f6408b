"""Locating on behalf of patched code, while it runs, without its noticing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from protomask.adapting import agree
from protomask.checks import check_number
from protomask.errors import ProtomaskError
from protomask.hooks import forward_hooks, without_hooks
from protomask.locating import locate
from protomask.model import PrototypeModel, untouched
from protomask.patching import Tally
from protomask.precision import full_precision
from protomask.records import Localisation
from protomask.region import rank

Pairs = Sequence[tuple[int, int]]
"""(image, prototype)."""
Wrap = Callable[..., PrototypeModel]
"""From a module, and the keywords ``input_shape`` (C, H, W), ``mean``, ``std``, to its adapter; raises ModelError."""
Values = Sequence[float]

_log = logging.getLogger(__name__)
_TIES = 0.02  # of a drawn map's range goes to its pixels' order, so that no percentile of it is a plateau


class Redrawer:
    """Locates pairs for patched code: nothing of the code's state changes, and whatever fails becomes a reason.

    Attributes:
        options: of :func:`protomask.locate`: method, seed, batch and the method's settings.
        tally: counts for the report.
        locating: true while it locates: hooks must record and replace nothing then.

    Args:
        options: see above.
        wrap: makes a module's adapter.
        tally: see above.
        mean, std: per channel, what the code normalises images by; None for what the module says, else the default.

    Raises:
        InputError: a mean that is no number, or a standard deviation that is none above 0.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        wrap: Wrap,
        tally: Tally,
        *,
        mean: Values | None = None,
        std: Values | None = None,
    ) -> None:
        self._given = {
            "mean": None if mean is None else tuple(check_number("mean", value) for value in mean),
            "std": None if std is None else tuple(check_number("std", value, 0, open_low=True) for value in std),
        }
        self.options = dict(options)
        self.tally = tally
        self.locating = False
        self._wrap = wrap
        self._tried: WeakKeyDictionary[nn.Module, tuple[frozenset[int], bool]] = WeakKeyDictionary()
        self._models: WeakKeyDictionary[nn.Module, tuple[object, PrototypeModel]] = WeakKeyDictionary()

    def locate(self, module: nn.Module, images: Tensor, pairs: Pairs) -> list[np.ndarray | str]:
        """For each pair the drawable map [H, W] float64 in [0, 1], or the reason why there is none.

        Args:
            module: the model.
            images: [B, C, H, W], model-ready.
            pairs: indices into ``images`` and into the model's prototypes.
        """
        try:
            return self.locate_in(self._model(module, tuple(images.shape[1:])), module, images, pairs)
        except Exception as error:  # whatever a model does: the code that draws has not asked for it to be located
            return [reason_of(error)] * len(pairs)

    def locate_in(
        self, model: PrototypeModel, module: nn.Module, images: Tensor, pairs: Pairs
    ) -> list[np.ndarray | str]:
        """As :meth:`locate`, with the adapter given; what fails is raised."""
        rows = {image: row for row, image in enumerate(sorted({image for image, _ in pairs}))}
        with self._unnoticed(module):
            chosen = images[list(rows)].to(next(module.parameters()))
            found = locate(model, chosen, [(rows[image], prototype) for image, prototype in pairs], **self.options)
        self.tally.located += len(pairs)
        return drawable(found)

    def statistics(self, module: nn.Module, channels: int) -> dict[str, Any]:
        """``mean`` and ``std`` for an adapter; where nobody tells those of images that are not RGB, 0 and 1, noted."""
        told = dict(self._given)
        for name, plain in (("mean", 0.0), ("std", 1.0)):
            if told[name] is None and channels != 3 and getattr(module, name, None) is None:
                told[name] = (plain,) * channels
                said = f"{plain:g} is taken for the {name} of images of {channels} channels, since none is given"
                self.tally.note(said)
        return told

    def try_without_hooks(
        self, module: nn.Module, maps: Sequence[Tensor], again: Callable[[], Sequence[Tensor]]
    ) -> None:
        """Find out whether the code's forward hooks only look; then they are not called when we locate.

        Args:
            module: the model, in evaluation mode.
            maps: what it has just given.
            again: gives that again, when it is called without the hooks; what it raises tells that they matter.
        """
        hooks = forward_hooks(module)
        if not hooks or hooks == self._tried.get(module, (None, False))[0] or any(m.training for m in module.modules()):
            return
        before, self.locating = self.locating, True
        same = False
        try:
            with untouched(module), torch.no_grad(), without_hooks(module, forward=True):
                same = all(map(agree, again(), maps))
        except Exception as error:
            _log.info("the hooks of %s stay, since without them: %s", type(module).__name__, reason_of(error))
        finally:
            self.locating = before
        self._tried[module] = hooks, same

    def _model(self, module: nn.Module, shape: tuple[int, ...]) -> PrototypeModel:
        """The adapter, which proves itself once for each model, input shape and set of parameters' shapes."""
        state = (shape, [(name, p.shape) for name, p in module.named_parameters()])
        known = self._models.get(module)
        if known is None or known[0] != state:
            told = self.statistics(module, shape[0])
            with self._unnoticed(module):
                known = (state, self._wrap(module, input_shape=shape, **told))
            self._models[module] = known
        return known[1]

    @contextmanager
    def _unnoticed(self, module: nn.Module) -> Iterator[None]:
        """Gradients at full precision whatever the code has set; neither its hooks nor its warnings tell of it."""
        before, self.locating = self.locating, True
        tried, same = self._tried.get(module, (frozenset(), False))
        hooks = without_hooks(module, forward=same and forward_hooks(module) <= tried)
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad(), full_precision(), hooks:
                warnings.simplefilter("ignore")
                yield
        finally:
            self.locating = before


def reason_of(error: Exception) -> str:
    """What a report says of an error: our own message as it is, any other's after its kind."""
    return str(error) if isinstance(error, ProtomaskError) else f"{type(error).__name__}: {error}"


def drawable(found: Localisation) -> list[np.ndarray | str]:
    """Maps [H, W] float64 in [0, 1] without plateaus, or the reasons why there are none.

    A mask is zero in most of the image. Code that keeps the pixels at or above a percentile would then keep all; with a
    little of the range given to the pixels' order (:func:`protomask.region.rank`) it keeps the method's own region.
    """
    maps = found.maps.double()
    n, height, width = maps.shape
    order = torch.empty((n, height * width), dtype=torch.float64)
    falling = torch.linspace(1, 0, height * width, dtype=torch.float64).expand(n, -1)
    order.scatter_(1, rank(found.maps), falling)
    low, high = maps.flatten(1).amin(1)[:, None, None], maps.flatten(1).amax(1)[:, None, None]
    scaled = (maps - low) / (high - low).clamp(min=1e-12)
    graded = (1 - _TIES) * scaled + _TIES * order.view_as(maps)
    rows = zip(graded.numpy(), found.located.tolist(), found.reasons, strict=True)
    return [row if located else reason for row, located, reason in rows]
