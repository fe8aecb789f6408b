"""XProtoNet behind protomask's contract: ``wrap(model)`` for any module of the form that re-implementations share.

There is no official code. What re-implementations have in common is ``forward(x) -> (logits, similarity [B, P],
occurrence [B, P, 1, h, w])``; they differ in how occurrence maps and similarities are normalised, so the module's own
forward pass is called and nothing is recomputed. The form is recognised by its attributes (``prototype_vectors`` and
``occurrence_module``); upstream is never imported. The adapter proves itself when it is built: on seeded random images
the three outputs must have these shapes and be finite, no image may influence another, and logits recomputed from the
similarities by the last layer must be the model's own. ::

    protomask.locate(xprotonet_ext.wrap(model, input_shape=(3, 224, 224)), images, targets)

The target is the scalar similarity: there is no map of it. Kim, Kim, Seo, Yoon, "XProtoNet: diagnosis in chest
radiography with global and local explanations", CVPR 2021.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from protomask.adapting import Adapter, agree, as_module, random_images, unwrapped
from protomask.checks import check_count
from protomask.errors import InputError, ModelError, expected
from protomask.model import untouched

PASS_BYTES = 2**30
"""What one forward pass may keep in memory, unless :func:`wrap` is told otherwise."""

_PROOF_IMAGES = 2  # no more than it takes, since many prototypes make a pass large
_PROOF_PAIRS = 32
_NAIVE_COPIES = 3  # of the [P, D, h, w] features: the product, its gradient, and the gradient of a factor
_FORM = "logits [B, K], similarity [B, P] and occurrence maps [B, P, 1, h, w]"

Outputs = tuple[Tensor, Tensor, Tensor]
_log = logging.getLogger(__name__)


def matches(model: object) -> bool:
    """Whether ``model`` has the form of an XProtoNet, judged by its attributes."""
    inner = unwrapped(model)
    return (
        isinstance(inner, nn.Module)
        and isinstance(getattr(inner, "prototype_vectors", None), Tensor)
        and isinstance(getattr(inner, "occurrence_module", None), nn.Module)
    )


def wrap(
    model: object,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    activation_range: tuple[float | None, float | None] | None = None,
    pass_bytes: int = PASS_BYTES,
    seed: int = 0,
) -> XProtoNetModel:
    """A module of the form of an XProtoNet behind protomask's contract; the module itself is left as it came.

    Args:
        model: such a module, possibly inside ``DataParallel``.
        input_shape: (C, H, W); by default the first convolution's channels and the model's ``img_size``.
        mean, std: what inputs are normalised by, one value for grey images, three for RGB; by default the model's own
            attributes, else ImageNet's.
        class_names: K names; by default the model's own ``class_names``, else none.
        activation_range: (floor, ceiling) of the similarities, None where there is none; by default found out, see
            :class:`XProtoNetModel`.
        pass_bytes: what one pass may keep in memory. Larger batches go through the module in parts, and where gradients
            are asked for, each part is passed again when its gradient is due.
        seed: of the random images that the adapter proves itself on.

    Raises:
        ModelError: the model has not the form of an XProtoNet, mixes the images of a batch, or its logits do not follow
            from its similarities.
        InputError: a keyword argument does not fit the model.

    Warns:
        UserWarning: its class weights cannot be determined, or its occurrence maps are not of the kind named above;
            the adapter then does without them.
    """
    if not matches(model):
        wanted = "an XProtoNet: an nn.Module with prototype_vectors and occurrence_module"
        raise ModelError(expected("model", wanted, type(model).__name__))
    check_count("pass_bytes", pass_bytes)
    module = as_module(unwrapped(model))
    with untouched(module):
        return XProtoNetModel(
            module,
            input_shape=input_shape,
            mean=mean,
            std=std,
            class_names=class_names,
            activation_range=activation_range,
            pass_bytes=pass_bytes,
            seed=seed,
        )


class XProtoNetModel(Adapter):
    """Build it with :func:`wrap`, which keeps the module as it came.

    Attributes:
        activation_range: of the similarities. The module's own ``activation_range`` where it has one. Else it is found
            out: where ``push_forward`` gives the pooled features [B, P, D] first and the similarities are their cosines
            with the prototypes, (-1, 1), or (cosine + 1) / 2, (0, 1); where features and prototypes have no entry below
            0, neither has the cosine, and the floor is 0 or 1/2. Else (None, None): then the activation of an image of
            the mean colour stands in for the floor.
        images_per_pass: how many images go through the module at once.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        input_shape: Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        class_names: Sequence[str] | None,
        activation_range: tuple[float | None, float | None] | None,
        pass_bytes: int,
        seed: int,
    ) -> None:
        vectors: Tensor = module.prototype_vectors  # type: ignore[assignment]
        super().__init__(module, len(vectors), input_shape=input_shape, mean=mean, std=std)
        self.images_per_pass = 1
        images = random_images(vectors, _PROOF_IMAGES, self.input_shape, seed)
        with torch.no_grad():
            logits, similarity, occurrence = self._prove_outputs(images)
            self._weights = self._prove_logits(logits, similarity)
            self._features_first = self._prove_features(images, similarity)
            self._selects = self._prove_selection(images, similarity)
            self._has_maps = _are_maps(occurrence)
            given = getattr(module, "activation_range", None) if activation_range is None else activation_range
            self.activation_range = self._find_range(images, similarity) if given is None else given
            self._check_range(similarity)
        self.name_classes(logits.shape[1], class_names)
        self.images_per_pass = max(1, pass_bytes // self._bytes_per_image(images[:1], occurrence[0]))

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """The similarities, higher is closer, differentiable in ``images``.

        A module that offers ``selected_similarity(images, prototypes) -> [B]`` (the reference model does) computes one
        prototype per image alone; any other computes all.

        Args:
            images: [B, C, H, W], model-ready.
            prototypes: None for all, or [B] int64.

        Returns:
            [B, P], or [B] where ``prototypes`` was given.
        """
        if prototypes is None:
            return self._in_parts(lambda x: self._outputs(x)[1], images)
        prototypes = prototypes.to(images.device)
        if self._selects:
            return self._selected(images, prototypes)
        chosen = prototypes[:, None]
        return self._in_parts(lambda x, p: self._outputs(x)[1].gather(1, p).squeeze(1), images, chosen)

    def occurrence_maps(self, images: Tensor) -> Tensor | None:
        """[B, P, h, w], where each prototype occurs, as the module gives them; None where they are no such maps."""
        if not self._has_maps:
            return None
        return self._in_parts(lambda x: _without_axis(self._outputs(x)[2]), images)

    def prototype_features(self, images: Tensor) -> Tensor | None:
        """[B, P, D], the pooled features that are compared with the prototypes; None where the module tells none."""
        return self._in_parts(self._features, images) if self._features_first else None

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], the model's own."""
        return self._in_parts(lambda x: self._outputs(x)[0], images)

    def class_weights(self) -> Tensor | None:
        """[P, K], what a unit of similarity adds to each class's score; None where that is not known."""
        return None if self._weights is None else self._weights.clone()

    def _outputs(self, images: Tensor) -> Outputs:
        outputs: Outputs = self.module(images)
        return outputs[0], outputs[1], outputs[2]

    def _features(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.module.push_forward(images)[0]  # type: ignore[operator]
        return pooled

    def _selected(self, images: Tensor, prototypes: Tensor) -> Tensor:
        similarity: Tensor = self.module.selected_similarity(images, prototypes)  # type: ignore[operator]
        return similarity

    def _in_parts(self, work: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``work`` over parts of the batch that fit; with gradients each part is passed again when its turn comes."""
        size = self.images_per_pass
        if len(tensors[0]) <= size:
            return work(*tensors)
        parts = zip(*(t.split(size) for t in tensors), strict=True)
        if torch.is_grad_enabled() and tensors[0].requires_grad:
            made = [checkpoint(work, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            return torch.cat(made)
        return torch.cat([work(*part) for part in parts])

    def _prove_outputs(self, images: Tensor) -> Outputs:
        """The three outputs, if they have the form, are finite, and no image influences another."""
        shape = list(images.shape)
        try:
            found = self.module(images)
            alone = self.module(images[1:2])
        except Exception as error:
            wanted = f"an XProtoNet that takes images {shape}, also one alone"
            raise ModelError(expected("model", wanted, f"an error ({error})")) from error
        outputs = _checked(found, self.num_prototypes)
        single = _checked(alone, self.num_prototypes)
        for k, name in enumerate(("logits", "similarity")):
            if not agree(single[k][0], outputs[k][1]):
                came = f"a largest difference of {float((single[k][0] - outputs[k][1]).abs().max()):.3g} in {name}"
                wanted = "the same results for an image alone and in a batch (does a layer use the batch's statistics?)"
                raise ModelError(expected("model", wanted, came))
        return outputs

    def _prove_logits(self, logits: Tensor, similarity: Tensor) -> Tensor | None:
        """[P, K] weights, if the last layer is affine and gives the logits; None with a warning where there is none."""
        last = getattr(self.module, "last_layer", None)
        weights = None if not isinstance(last, nn.Module) else _affine(last, similarity)
        if not isinstance(last, nn.Module) or weights is None:
            warnings.warn(
                "class weights unknown: the model has no last_layer that maps similarities [B, P] to logits linearly",
                stacklevel=4,
            )
            return None
        recomputed = last(similarity)
        if not agree(recomputed, logits):
            gap = float((recomputed - logits).abs().max()) if recomputed.shape == logits.shape else math.nan
            reason = "; its second output is a distance" if agree(last(1 - similarity), logits) else ""
            wanted = "logits that are last_layer(similarity), its second output"
            raise ModelError(expected("model", wanted, f"a largest difference of {gap:.3g}{reason}"))
        return weights

    def _prove_features(self, images: Tensor, similarity: Tensor) -> bool:
        """Whether ``push_forward`` gives the pooled features [B, P, D] first, one vector per prototype."""
        try:
            features = self._features(images)
        except Exception:  # no such method, or one of another kind
            return False
        depth = self._vectors().shape[1]
        return isinstance(features, Tensor) and features.shape == (*similarity.shape, depth)

    def _prove_selection(self, images: Tensor, similarity: Tensor) -> bool:
        """Keep the cheap route to one prototype per image only where it gives what the full one does."""
        if not callable(getattr(self.module, "selected_similarity", None)):
            return False
        pairs = min(_PROOF_PAIRS, self.num_prototypes)
        prototypes = torch.linspace(0, self.num_prototypes - 1, pairs).long().to(images.device)
        rows = torch.arange(pairs, device=images.device) % len(images)
        try:
            return agree(self._selected(images[rows], prototypes), similarity[rows, prototypes])
        except (RuntimeError, TypeError, IndexError):  # a method of that name that does something else
            return False

    def _find_range(self, images: Tensor, similarity: Tensor) -> tuple[float | None, float | None]:
        if not self._features_first:
            return None, None
        features, vectors = self._features(images), self._vectors()
        cosine = functional.cosine_similarity(features, vectors, dim=-1)
        floor = 0.0 if bool((features >= 0).all()) and bool((vectors >= 0).all()) else -1.0
        if agree(cosine, similarity):
            return floor, 1.0
        return ((floor + 1) / 2, 1.0) if agree((cosine + 1) / 2, similarity) else (None, None)

    def _check_range(self, similarity: Tensor) -> None:
        low, high = self.activation_range
        least, most = float(similarity.min()), float(similarity.max())
        if (low is not None and least < low - 1e-4) or (high is not None and most > high + 1e-4):
            wanted = f"a range that holds the similarities, {least:.3g} to {most:.3g} on random images"
            raise InputError(expected("activation_range", wanted, self.activation_range))

    def _vectors(self) -> Tensor:
        vectors: Tensor = self.module.prototype_vectors  # type: ignore[assignment]
        return vectors.flatten(1)

    def _bytes_per_image(self, image: Tensor, occurrence: Tensor) -> int:
        """What a pass with gradients keeps for one image: what autograd saves, and naive products beside it.

        Re-implementations multiply every occurrence map with all features, [P, D, h, w] numbers per image, which
        autograd does not save but makes when it goes forward and back.
        """
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in own:
                seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.data_ptr() for p in self.module.parameters()}
        probe = image.clone().requires_grad_()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            self.module(probe)
        naive = 0 if self._selects else occurrence.numel() * self._vectors().shape[1] * image.element_size()
        return max(1, sum(seen.values()) + _NAIVE_COPIES * naive)


def _checked(outputs: object, prototypes: int) -> Outputs:
    """The first three outputs, if they are of the form and finite."""
    first = outputs[:3] if isinstance(outputs, (tuple, list)) else [outputs]
    tensors = [t for t in first if isinstance(t, Tensor)]
    if len(tensors) < 3:
        raise ModelError(expected("model(images)", _FORM, [type(t).__name__ for t in first]))
    logits, similarity, occurrence = tensors
    count = len(logits)
    fits = logits.dim() == 2 and similarity.shape == (count, prototypes) and occurrence.dim() >= 4
    if not fits or tuple(occurrence.shape[:2]) != (count, prototypes):
        shapes = ", ".join(str(list(t.shape)) for t in (logits, similarity, occurrence))
        raise ModelError(expected("model(images)", f"{_FORM} with P = {prototypes}", shapes))
    for name, tensor in (("logits", logits), ("similarity", similarity), ("occurrence maps", occurrence)):
        if not tensor.isfinite().all():
            raise ModelError(expected(f"model(images): {name}", "finite values", "NaN or infinity"))
    return logits, similarity, occurrence


def _without_axis(occurrence: Tensor) -> Tensor:
    """[B, P, 1, h, w] -> [B, P, h, w]; [B, P, h, w] as it is."""
    return occurrence.squeeze(2) if occurrence.dim() == 5 else occurrence


def _are_maps(occurrence: Tensor) -> bool:
    flat = occurrence.dim() == 4 or (occurrence.dim() == 5 and occurrence.shape[2] == 1)
    if flat and bool((occurrence >= 0).all()):
        return True
    came = "values below 0" if flat else f"shape {list(occurrence.shape)}"
    wanted = "[B, P, 1, h, w] with values of at least 0"
    warnings.warn(f"occurrence maps dropped: expected {wanted}, got {came}", stacklevel=4)
    return False


def _affine(last: nn.Module, similarity: Tensor) -> Tensor | None:
    """[P, K], the weights of a layer that is affine in the similarities [B, P]; None where it is not.

    Found by feeding it one unit at a time, whatever it does to its parameters first (some square them).
    """
    units = torch.eye(similarity.shape[1], dtype=similarity.dtype, device=similarity.device)
    try:
        offset = last(torch.zeros_like(units[:1]))
        weights: Tensor = last(units) - offset
        return weights.detach() if agree(similarity @ weights + offset, last(similarity)) else None
    except (RuntimeError, TypeError):
        return None
