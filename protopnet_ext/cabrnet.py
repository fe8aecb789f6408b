"""CaBRNet's models behind protomask's contract; CaBRNet is never imported.

``model.similarities(x)`` gives [B, P, h, w] and says what CaBRNet itself draws, so it is what is located. Where the
classifier has a linear last layer, the adapter proves that the model's own scores follow from it.

Xu-Darme et al., "CaBRNet, an open-source library for developing and evaluating case-based reasoning models", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protomask.adapting import Adapter, agree, random_images
from protomask.errors import ModelError, expected
from protomask.model import untouched

_PROOF_IMAGES = 3
_FAR = 1e12  # a squared distance that no features have; one over it is nothing


def matches(model: object) -> bool:
    """Whether ``model`` has the form of a CaBRNet model, judged by its attributes."""
    parts = all(isinstance(getattr(model, name, None), nn.Module) for name in ("extractor", "classifier"))
    return isinstance(model, nn.Module) and parts and callable(getattr(model, "similarities", None))


def wrap(
    model: nn.Module,
    *,
    input_shape: Sequence[int],
    cell: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> CaBRNetModel:
    """A CaBRNet model behind the contract; the model itself is left as it came.

    Args:
        model: any CaBRNet architecture whose ``similarities`` are [B, P, h, w].
        input_shape: (C, H, W), which the model does not tell.
        cell: (row, column) of the map whose value is the activation; None for the largest.
        mean, std: what inputs are normalised by; by default ImageNet's.
        class_names: K names, or none.
        seed: of the random images that the adapter proves itself on.

    Raises:
        ModelError: another form, or its scores do not follow from its similarities.
    """
    if not matches(model):
        wanted = "a CaBRNet model: an nn.Module with extractor, classifier and similarities"
        raise ModelError(expected("model", wanted, type(model).__name__))
    wrapped = CaBRNetModel(model, cell, input_shape=input_shape, mean=mean, std=std, class_names=class_names)
    wrapped.prove(seed)
    return wrapped


class CaBRNetModel(Adapter):
    """Build it with :func:`wrap`.

    Attributes:
        cell: (row, column) of the map whose value is the activation; None for the largest.
        activation_range: (0, None) where the similarity of an endless distance is zero, else (None, None).
    """

    def __init__(
        self,
        module: nn.Module,
        cell: tuple[int, int] | None,
        *,
        input_shape: Sequence[int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        count: Any = module.num_prototypes
        super().__init__(module, int(count), input_shape=input_shape, mean=mean, std=std)
        self.cell = cell
        self.activation_range = (_floor(module), None)
        classes: Any = module.classifier.num_classes  # type: ignore[union-attr]
        self.name_classes(int(classes), class_names)

    def similarity_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w], whose maxima are the activations; None where these are a cell's."""
        return self._maps(images) if self.cell is None else None

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """[B, P], or [B] where ``prototypes`` [B] was given; one prototype costs as much as all."""
        maps = self._maps(images)
        pooled = maps.flatten(2).max(2).values if self.cell is None else maps[:, :, self.cell[0], self.cell[1]]
        return pooled if prototypes is None else pooled.gather(1, prototypes.to(images.device)[:, None]).squeeze(1)

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], the model's own."""
        came = self.module(images)
        logits: Tensor = came[0] if isinstance(came, (tuple, list)) else came
        return logits

    def class_weights(self) -> Tensor | None:
        """[P, K], the last layer's weights; None for an architecture without one, such as a tree."""
        last = self._last_layer()
        return None if last is None else last.weight.detach().T.clone()

    def prototype_classes(self) -> Tensor | None:
        """[P] int64 from the model's own mapping."""
        mapping: Any = self.module.prototype_class_mapping
        return torch.as_tensor(mapping).argmax(1)

    @torch.no_grad()
    def prove(self, seed: int) -> None:
        """Raise ModelError unless the maps are [B, P, h, w] and, with a last layer, the scores follow from them."""
        images = random_images(next(self.module.parameters()), _PROOF_IMAGES, self.input_shape, seed)
        with untouched(self.module):
            maps = self._maps(images)
            if maps.dim() != 4 or maps.shape[1] != self.num_prototypes:
                wanted = f"maps [B, {self.num_prototypes}, h, w]"
                raise ModelError(expected("model.similarities", wanted, list(maps.shape)))
            last = self._last_layer()
            if last is not None and not agree(last(maps.flatten(2).amax(2)), self.logits(images)):
                raise ModelError(expected("model", "scores that are last_layer(largest similarities)", "others"))

    def _maps(self, images: Tensor) -> Tensor:
        maps: Tensor = self.module.similarities(images)  # type: ignore[operator]
        return maps

    def _last_layer(self) -> nn.Linear | None:
        last = getattr(self.module.classifier, "last_layer", None)
        fits = isinstance(last, nn.Linear) and last.in_features == self.num_prototypes
        return last if fits else None


def _floor(module: nn.Module) -> float | None:
    """0 for a similarity that falls to it with distance, such as the log or the exponential; None where it is none."""
    convert = getattr(getattr(module.classifier, "similarity_layer", None), "distances_to_similarities", None)
    try:
        far = None if convert is None else convert(torch.full((1, 1, 1, 1), _FAR))
    except (RuntimeError, NotImplementedError, TypeError):  # an architecture without distances
        return None
    return 0.0 if isinstance(far, Tensor) and float(far.abs().max()) < 1e-6 else None
