"""How a prototype's activation is shared out over the features that it is compared with.

Two ways to compare are known, and each proves itself on the model at hand before it is used:

- the nearest patch (ProtoPNet): all of the activation above its floor goes to the winning cell, and there to the
  channels in proportion to 1 / (z - p)^2, as Gautam et al. do: the closer a channel, the more it speaks for the
  prototype. A linear activation is a negative distance, which shared out as it is would speak against all of them;
- pooling under an occurrence map (XProtoNet): ``cos(f, p)`` with ``f = sum_u M_u F_u`` is a sum over cells and channels
  of ``M_u F_uk p_k / (|f| |p|)``, so each gets its own term. The occurrence map counts as a gate, not as evidence.

Axes: n pairs, D channels, h, w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protomask.errors import ModelError, expected
from protomask.localisers.bottleneck import Step, module_of, trace
from protomask.model import Contract, floor_of

_TINY = 1e-12
_TOLERANCE = 1e-3  # relative, of what a head must reproduce


@dataclass(frozen=True, eq=False)
class Head:
    """Where the features are and how the activation is shared out over them.

    Attributes:
        name: dotted name of the layer whose output they are.
        layer: that layer.
        model: whose it is.
        share: (images [n, C, H, W], prototypes [n]) -> relevance of the features [n, D, h, w].
    """

    name: str
    layer: nn.Module
    model: Contract
    share: Callable[[Tensor, Tensor], Tensor]

    def features(self, images: Tensor, prototypes: Tensor) -> Tensor:
        """[n, D, h, w], the layer's output on images, in the graph."""
        return features_of(self.model, self.layer, images, prototypes)


def features_of(model: Contract, layer: nn.Module, images: Tensor, prototypes: Tensor) -> Tensor:
    """What a layer gives when the activations of images are computed.

    Raises:
        ModelError: it did not run once on the whole batch.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, inputs, output: seen.append(output))
    try:
        model.activations(images, prototypes)
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0]) != len(images):
        came = f"{len(seen)} times, on {[len(s) for s in seen]} images"
        raise ModelError(expected("the layer before the prototypes", f"to run once on {len(images)} images", came))
    return seen[0]


def find_head(model: Contract, image: Tensor, prototype: Tensor) -> Head:
    """The head that holds for this model, tried on one image [1, C, H, W] and prototype [1].

    Raises:
        ModelError: neither way to compare reproduces what the model computes.
    """
    module = module_of(model, "prp")
    vectors = getattr(module, "prototype_vectors", getattr(module, "vectors", None))
    if isinstance(vectors, Tensor) and vectors.flatten(1).shape[0] == model.num_prototypes:
        depth = vectors.flatten(1).shape[1]
        flat = vectors.detach().flatten(1)
        with torch.no_grad():
            steps = trace(module, lambda: model.activations(image, prototype))
            steps = [s for s in steps if s.output.dim() == 4 and s.output.shape[1] == depth]
            for make, proves in ((_nearest_patch, _is_nearest), (_pooled, _is_pooled)):
                for step in reversed(steps):
                    if proves(model, step, flat, image):
                        return make(model, step, flat)
    wanted = "prototype_vectors [P, D, 1, 1] compared with the nearest patch, or with features under occurrence maps"
    raise ModelError(expected("model.module", wanted, "something else"))


def _squared(features: Tensor, vectors: Tensor) -> Tensor:
    """(z - p)^2: features [n, D, h, w], vectors [n, D] -> [n, D, h, w]."""
    return (features - vectors[:, :, None, None]).square()


def _is_nearest(model: Contract, step: Step, vectors: Tensor, image: Tensor) -> bool:
    """Whether the similarity maps fall with the distance of these features: for every prototype one winner."""
    maps = model.similarity_maps(image)
    if maps is None or maps.shape[2:] != step.output.shape[2:]:
        return False
    features = step.output.expand(len(vectors), -1, -1, -1)
    distances = _squared(features, vectors).sum(1).flatten(1)
    winners = maps[0].flatten(1).argmax(1, keepdim=True)
    least = distances.amin(1)
    return bool((distances.gather(1, winners)[:, 0] <= least * (1 + _TOLERANCE) + _TOLERANCE * distances.mean()).all())


def _nearest_patch(model: Contract, step: Step, vectors: Tensor) -> Head:
    def share(images: Tensor, prototypes: Tensor) -> Tensor:
        squares = _squared(features_of(model, step.module, images, prototypes), vectors[prototypes])
        winners = squares.sum(1).flatten(1).argmin(1)
        near = squares.flatten(2).gather(2, winners[:, None, None].expand(-1, squares.shape[1], 1))[:, :, 0]
        parts = 1 / (near + _TINY)
        parts = parts / parts.sum(1, keepdim=True) * _above_floor(model, images, prototypes)[:, None]
        relevance = torch.zeros_like(squares).flatten(2)
        return relevance.scatter(2, winners[:, None, None].expand(-1, squares.shape[1], 1), parts[:, :, None]).view_as(
            squares
        )

    return Head(step.name, step.module, model, share)


def _above_floor(model: Contract, images: Tensor, prototypes: Tensor) -> Tensor:
    """[n], how far the activations are above the lowest that they can be; their size where there is no such value."""
    values, floor = model.activations(images, prototypes), floor_of(model)
    return values.abs() if floor is None else values - floor


def _is_pooled(model: Contract, step: Step, vectors: Tensor, image: Tensor) -> bool:
    """Whether these features, summed under the occurrence maps, are the vectors that are compared."""
    maps, pooled = model.occurrence_maps(image), model.prototype_features(image)
    if maps is None or pooled is None or maps.shape[2:] != step.output.shape[2:]:
        return False
    ours = torch.einsum("phw,dhw->pd", maps[0], step.output[0])
    return ours.shape == pooled[0].shape and bool(
        (ours - pooled[0]).abs().max() <= _TOLERANCE * pooled[0].abs().max().clamp(min=_TINY)
    )


def _pooled(model: Contract, step: Step, vectors: Tensor) -> Head:
    def share(images: Tensor, prototypes: Tensor) -> Tensor:
        maps = model.occurrence_maps(images)
        if maps is None:  # it had some when the head proved itself
            raise ModelError(expected("model.occurrence_maps(images)", "a tensor [B, P, h, w]", None))
        features = features_of(model, step.module, images, prototypes)
        own = maps[torch.arange(len(images), device=maps.device), prototypes][:, None] * features
        directions = nn.functional.normalize(vectors[prototypes], dim=1)
        length = own.sum((2, 3)).norm(dim=1).clamp(min=_TINY)
        return own * directions[:, :, None, None] / length[:, None, None, None]

    return Head(step.name, step.module, model, share)
