"""ProtoPNet behind protomask's contract: ``wrap(model)`` for any upstream-style ``PPNet``.

The form is recognised by its attributes (``push_forward``, ``distance_2_similarity``, ``prototype_vectors``,
``last_layer``); upstream is never imported. Many forks keep these names and change what they mean, so the adapter
proves itself when it is built: on seeded random images, logits recomputed from its activations must be the model's
own. ::

    model = torch.load("ppnet.pth", weights_only=False)  # a whole-module pickle runs code: only from a source you trust
    protomask.locate(protopnet_ext.wrap(model), images, targets)

Chen et al., "This looks like that: deep learning for interpretable image recognition", NeurIPS 2019.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.adapting import Adapter, agree, as_module, random_images, unwrapped
from protomask.errors import ModelError, expected
from protomask.model import untouched

_METHODS = ("push_forward", "distance_2_similarity")
_PROOF_IMAGES = 3
_PROOF_PAIRS = 32

_log = logging.getLogger(__name__)


def matches(model: object) -> bool:
    """Whether ``model`` has the form of an upstream ``PPNet``, judged by its attributes."""
    inner = unwrapped(model)
    return (
        isinstance(inner, nn.Module)
        and isinstance(getattr(inner, "prototype_vectors", None), Tensor)
        and isinstance(getattr(inner, "last_layer", None), nn.Module)
        and all(callable(getattr(inner, name, None)) for name in _METHODS)
    )


def wrap(
    model: object,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> ProtoPNetModel:
    """A ``PPNet`` behind protomask's contract; the model itself is left as it came.

    Args:
        model: an upstream-style ``PPNet``, pruned or not, possibly inside ``DataParallel``.
        input_shape: (C, H, W); by default the first convolution's channels and the model's ``img_size``.
        mean, std: what inputs are normalised by; by default the model's own attributes, else ImageNet's.
        class_names: K names; by default the model's own ``class_names``, else none.
        seed: of the random images that the adapter proves itself on.

    Raises:
        ModelError: the model has not the form of a ``PPNet``, or its logits do not follow from its distances.
        InputError: a keyword argument does not fit the model.
    """
    if not matches(model):
        wanted = "a PPNet: an nn.Module with prototype_vectors, last_layer, push_forward and distance_2_similarity"
        raise ModelError(expected("model", wanted, type(model).__name__))
    wrapped = ProtoPNetModel(unwrapped(model), input_shape=input_shape, mean=mean, std=std, class_names=class_names)
    with untouched(wrapped.module), torch.no_grad():
        wrapped._prove(seed)
    return wrapped


class ProtoPNetModel(Adapter):
    """Build it with :func:`wrap`, which also proves that it reads the model rightly.

    Attributes:
        activation_range: (0, log(1 / epsilon)) for the log activation, (None, 0) for the linear one, else (None, None).
    """

    def __init__(
        self,
        module: object,
        *,
        input_shape: Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        module = as_module(module)
        vectors: Tensor = module.prototype_vectors  # type: ignore[assignment]
        if vectors.dim() != 4:
            raise ModelError(expected("model.prototype_vectors", "a tensor [P, D, h1, w1]", list(vectors.shape)))
        super().__init__(module, len(vectors), input_shape=input_shape, mean=mean, std=std)
        self.activation_range = _activation_range(module)
        self.name_classes(len(_last_weight(module)), class_names)
        self._selects = True
        self._has_maps = True

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """Similarity of each prototype to its nearest patch, higher is closer, differentiable in ``images``.

        With one prototype per image only that prototype is compared, as a sum of squared differences: the float32
        rounding of ``|x|^2 - 2 x p + |p|^2``, by which upstream computes all distances, is 1e-6 and more, and the log
        activation magnifies it ten-thousandfold where a prototype meets its own patch.

        Args:
            images: [B, C, H, W], model-ready.
            prototypes: None for all, or [B] int64.

        Returns:
            [B, P], or [B] where ``prototypes`` was given.
        """
        if prototypes is None:
            return self._similarity(_nearest(self._distances(images)))
        prototypes = prototypes.to(images.device)
        if not self._selects:
            return self.activations(images).gather(1, prototypes[:, None]).squeeze(1)
        return self._selected(self.module.conv_features(images), prototypes)  # type: ignore[operator]

    def similarity_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w], whose maxima are the activations; None for a model where they are not."""
        return self._similarity(self._distances(images)) if self._has_maps else None

    def distance_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w], the distances that the similarity maps are made of, as ``push_forward`` gives them; or None."""
        return self._distances(images) if self._has_maps else None

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], the model's own."""
        came = self.module(images)
        logits: Tensor = came[0] if isinstance(came, (tuple, list)) else came
        return logits

    def class_weights(self) -> Tensor:
        """[P, K], the last layer's weights: what a unit of activation adds to each class's score."""
        return _last_weight(self.module).detach().T.clone()

    def _distances(self, images: Tensor) -> Tensor:
        """[B, P, h, w], what ``push_forward`` gives second: squared L2 distances, if this is a PPNet."""
        distances: Tensor = self.module.push_forward(images)[1]  # type: ignore[operator]
        return distances

    def _similarity(self, distances: Tensor) -> Tensor:
        similarity: Tensor = self.module.distance_2_similarity(distances)  # type: ignore[operator]
        return similarity

    def _selected(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Activation of one prototype per row: features [B, D, h, w], prototypes [B] int64 -> [B]."""
        vectors: Tensor = self.module.prototype_vectors[prototypes]  # type: ignore[index]
        kernel = tuple(vectors.shape[2:])
        patches = features.flatten(2) if kernel == (1, 1) else functional.unfold(features, kernel)
        distances = (patches - vectors.flatten(1)[:, :, None]).square().sum(1)
        return self._similarity(distances.min(1, keepdim=True).values).squeeze(1)

    def _prove(self, seed: int) -> None:
        """Check on random images that logits follow from the activations, and which shortcuts and maps hold.

        Raises:
            ModelError: they do not follow.
        """
        vectors: Tensor = self.module.prototype_vectors  # type: ignore[assignment]
        images = random_images(vectors, _PROOF_IMAGES, self.input_shape, seed)
        try:
            logits = self.logits(images)
            distances = self._distances(images)
        except Exception as error:
            shape = list(images.shape)
            raise ModelError(expected("model", f"a PPNet that takes images {shape}", f"an error ({error})")) from error
        activations = self._prove_logits(logits, distances)
        self._prove_selection(images, activations)
        self._prove_maps(distances, activations)
        low, high = self.activation_range
        below = low is not None and float(activations.min()) < low
        if below or (high is not None and float(activations.max()) > high):
            self.activation_range = (None, None)  # "linear" in what is no distance: TesNet's projections have no bound

    def _prove_logits(self, logits: Tensor, distances: Tensor) -> Tensor:
        wanted = f"distances [B, {self.num_prototypes}, h, w] as its second output"
        if not isinstance(distances, Tensor) or distances.dim() != 4 or distances.shape[1] != self.num_prototypes:
            raise ModelError(expected("model.push_forward", wanted, list(getattr(distances, "shape", ()))))
        last: nn.Module = self.module.last_layer  # type: ignore[assignment]
        wanted = "logits that are last_layer(activations recomputed from distances)"
        try:
            activations = self._similarity(_nearest(distances))
            recomputed = last(activations)
        except Exception as error:  # a fork's own functions, with other arguments, say
            raise ModelError(expected("model", wanted, f"an error ({type(error).__name__}: {error})")) from error
        if not agree(recomputed, logits):
            gap = float((recomputed - logits).abs().max()) if recomputed.shape == logits.shape else math.nan
            came = f"a largest difference of {gap:.3g}{_diagnosis(last, distances, logits)}"
            raise ModelError(expected("model", wanted, came))
        return activations

    def _prove_selection(self, images: Tensor, activations: Tensor) -> None:
        """Keep the cheap route to one prototype per image only where it gives what the full one does."""
        pairs = min(_PROOF_PAIRS, self.num_prototypes)
        prototypes = torch.linspace(0, self.num_prototypes - 1, pairs).long().to(images.device)
        rows = torch.arange(pairs, device=images.device) % _PROOF_IMAGES
        try:
            features = self.module.conv_features(images)  # type: ignore[operator]
            self._selects = agree(self._selected(features[rows], prototypes), activations[rows, prototypes])
        except Exception:  # a fork's own distance or activation function, or features that come with more
            self._selects = False
        if not self._selects:
            _log.info("%s: distances of its own; one prototype costs as much as all", type(self.module).__name__)

    def _prove_maps(self, distances: Tensor, activations: Tensor) -> None:
        self._has_maps = agree(self._similarity(distances).flatten(2).amax(2), activations)
        if not self._has_maps:
            warnings.warn(
                "similarity maps dropped: their maxima are not the prototypes' activations (the activation function "
                "does not fall with distance)",
                stacklevel=4,
            )


def _nearest(distances: Tensor) -> Tensor:
    """[B, P, h, w] -> [B, P]; ``min``, since its gradient goes to one cell as in upstream's pooling."""
    return distances.flatten(2).min(2).values


def _diagnosis(last: nn.Module, distances: Tensor, logits: Tensor) -> str:
    """What the second output of ``push_forward`` is instead, where that can be told."""
    flat = distances.flatten(2)
    if agree(last(flat.amax(2)), logits):
        return "; push_forward's second output is a similarity (its maximum gives the logits), not a distance"
    if agree(last(-flat.amin(2)), logits):
        return "; push_forward's second output is a negative similarity, which the logits use as it is"
    return "; push_forward's second output is not what the logits are made of"


def _last_weight(module: nn.Module) -> Tensor:
    weight = getattr(module.last_layer, "weight", None)
    prototypes = len(module.prototype_vectors)  # type: ignore[arg-type]
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != prototypes:
        came = list(weight.shape) if isinstance(weight, Tensor) else weight
        raise ModelError(expected("model.last_layer.weight", f"a tensor [K, {prototypes}]", came))
    return weight


def _activation_range(module: nn.Module) -> tuple[float | None, float | None]:
    kind = getattr(module, "prototype_activation_function", None)
    if kind == "log":
        epsilon = getattr(module, "epsilon", None)
        return 0.0, None if not epsilon else math.log(1 / float(epsilon))
    return (None, 0.0) if kind == "linear" else (None, None)
