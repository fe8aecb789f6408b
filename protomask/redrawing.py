"""Locating on behalf of patched code, while it runs, without its noticing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from protomask.errors import ProtomaskError
from protomask.locating import locate
from protomask.model import PrototypeModel
from protomask.patching import Tally
from protomask.records import Localisation
from protomask.region import rank

Pairs = Sequence[tuple[int, int]]
"""(image, prototype)."""
Wrap = Callable[[nn.Module, tuple[int, ...]], PrototypeModel]
"""From a module and the shape (C, H, W) of its input to its adapter; raises ModelError."""

_TIES = 0.02  # of a drawn map's range goes to its pixels' order, so that no percentile of it is a plateau


class Redrawer:
    """Locates pairs for patched code: nothing of the code's state changes, and what protomask refuses becomes a reason.

    Attributes:
        options: of :func:`protomask.locate`: method, seed, batch and the method's settings.
        tally: counts for the report.
        locating: true while it locates: hooks must record and replace nothing then.
    """

    def __init__(self, options: Mapping[str, Any], wrap: Wrap, tally: Tally) -> None:
        self.options = dict(options)
        self.tally = tally
        self.locating = False
        self._wrap = wrap
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
        except ProtomaskError as error:
            return [str(error)] * len(pairs)

    def locate_in(
        self, model: PrototypeModel, module: nn.Module, images: Tensor, pairs: Pairs
    ) -> list[np.ndarray | str]:
        """As :meth:`locate`, with the adapter given; what protomask refuses is raised."""
        rows = {image: row for row, image in enumerate(sorted({image for image, _ in pairs}))}
        with self._unnoticed():
            chosen = images[list(rows)].to(next(module.parameters()))
            found = locate(model, chosen, [(rows[image], prototype) for image, prototype in pairs], **self.options)
        self.tally.located += len(pairs)
        return drawable(found)

    def _model(self, module: nn.Module, shape: tuple[int, ...]) -> PrototypeModel:
        """The adapter, which proves itself once for each model, input shape and set of parameters' shapes."""
        state = (shape, [(name, p.shape) for name, p in module.named_parameters()])
        known = self._models.get(module)
        if known is None or known[0] != state:
            with self._unnoticed():
                known = (state, self._wrap(module, shape))
            self._models[module] = known
        return known[1]

    @contextmanager
    def _unnoticed(self) -> Iterator[None]:
        """Gradients can be taken whatever the code has switched off, and no warning of ours is among the code's."""
        before, self.locating = self.locating, True
        try:
            with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self.locating = before


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
