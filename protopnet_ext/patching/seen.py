"""What a model saw last: batches with their maps, and which pair a map that turns up later belongs to.

Axes: B images, P prototypes, h, w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protomask.precision import full_precision

_TOLERANCE = 1e-5  # numpy and torch round logarithms of float32 differently in the last places


Pair = tuple[int, int]
"""(image, prototype): index in the batch, and among all prototypes, banks concatenated."""


@dataclass(eq=False)
class Seen:
    """One batch that went through a model in evaluation mode.

    Attributes:
        module: the model.
        images: [B, C, H, W], model-ready, as the model took them.
        maps: [B, P, h, w], what the model gave: distances or similarities.
        first: index of the first of these prototypes among all; above 0 in a model's second bank.
        training: whether a layer that treats training apart, such as batch norm, was in training mode.
    """

    module: nn.Module
    images: Tensor
    maps: Tensor
    first: int = 0
    training: bool = False
    _drawable: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w)."""
        return self.maps.shape[2], self.maps.shape[3]

    def find(self, array: np.ndarray) -> list[Pair]:
        """The pairs whose map, in any of the forms in which code draws it, is ``array`` [h, w]."""
        if array.shape != self.cells:
            return []
        for exact in (True, False):
            for form in self._forms():
                gap = np.abs(form - array).max((2, 3))
                near = gap == 0 if exact else gap <= _TOLERANCE * max(1.0, float(np.abs(array).max()))
                if near.any():
                    return [(int(b), self.first + int(p)) for b, p in np.argwhere(near)]
        return []

    def _forms(self) -> list[np.ndarray]:
        if not self._drawable:
            self._drawable.extend(form.cpu().double().numpy() for form in _drawable_forms(self.module, self.maps))
        return self._drawable


def _drawable_forms(module: nn.Module, maps: Tensor) -> Iterator[Tensor]:
    """Similarities of distances, these raised by the largest distance, the maps as they came, and their negatives."""
    # Code that runs at half precision may convert at either, as autocast or numpy have it.
    for distances in (maps,) if maps.dtype in (torch.float32, torch.float64) else (maps, maps.float()):
        similarity = _similarity(module, distances)
        if similarity is not None and similarity.shape == maps.shape:
            yield similarity
            if getattr(module, "prototype_activation_function", None) == "linear":
                shape: Any = module.prototype_shape
                yield similarity + math.prod(int(n) for n in shape[1:])
    yield maps
    yield -maps


def _similarity(module: nn.Module, distances: Tensor) -> Tensor | None:
    """What the module makes of distances; None where that takes more than distances."""
    convert: Callable[[Tensor], Tensor] | None = getattr(module, "distance_2_similarity", None)
    try:
        with torch.no_grad(), full_precision():
            return None if convert is None else convert(distances)
    except Exception:  # a fork's own function: its maps are then known as they came
        return None


def record(module: nn.Module, images: Tensor, maps: Tensor, first: int = 0) -> Seen:
    """The batch as it is now, cut off from autograd: a script may write its next one, or pictures, over it."""
    with torch.inference_mode(False):  # what is made there could not be used in autograd later
        kept = [t.detach().clone() for t in (images, maps)]
    apart = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    training = any(m.training for m in module.modules() if isinstance(m, apart))
    return Seen(module, kept[0], kept[1], first, training)
