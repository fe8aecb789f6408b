"""The reference XProtoNet: published architecture on torchvision backbones. There is no official code.

An occurrence map says where each prototype would be found; the features under it are pooled into one vector, which is
compared with the prototype: ``f_p = sum_u M_p(x)_u F(x)_u``, ``similarity = cos(f_p, p)``. Ours: the add-on layers end
in a ReLU and prototypes are kept at 0 or above, so that a similarity lies in [0, 1] and 0 means nothing in common.

Kim, Kim, Seo, Yoon, "XProtoNet: diagnosis in chest radiography with global and local explanations", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import Description
from protomask.errors import InputError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD
from protomask.training.backbones import build_features, feature_channels
from protomask.training.model import (
    OTHER_CLASS,
    OWN_CLASS,
    ReferenceModel,
    add_on_layers,
    described,
    start_convolutions,
)

_TINY = 1e-8  # a vector of that length or less has no direction


class XProtoNet(ReferenceModel):
    """Backbone, add-on layers, occurrence module, prototypes, last layer.

    All of :class:`protomask.training.model.ReferenceModel`, with prototypes of shape (P, D, 1, 1), and:

    Attributes:
        occurrence_module: from the backbone's features to the occurrence maps before their sigmoid, 1 x 1 convolutions.
    """

    def __init__(
        self,
        features: nn.Module,
        prototype_shape: Sequence[int],
        num_classes: int,
        *,
        img_size: int | tuple[int, int] = 224,
        add_on_layers_type: str = "regular",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(prototype_shape, num_classes, img_size=img_size, mean=mean, std=std, class_names=class_names)
        count, depth, *kernel = self.prototype_shape
        if kernel != [1, 1]:
            raise InputError(expected("prototype_shape", "(P, D, 1, 1)", tuple(prototype_shape)))
        channels = feature_channels(features)
        self.features = features
        self.add_on_layers = add_on_layers(channels, depth, add_on_layers_type, nn.ReLU)
        self.occurrence_module = nn.Sequential(nn.Conv2d(channels, depth, 1), nn.ReLU(), nn.Conv2d(depth, count, 1))
        start_convolutions(list(self.occurrence_module))
        self.prototype_vectors = nn.Parameter(torch.rand(count, depth, 1, 1))
        self.last_layer = nn.Linear(count, num_classes, bias=False)
        self.set_last_layer(OWN_CLASS, OTHER_CLASS)

    @property
    def activation_range(self) -> tuple[float, float]:
        """(0, 1); (-1, 1) where a prototype has an entry below 0, as a trained one of ours has not."""
        return (0.0 if bool((self.prototype_vectors >= 0).all()) else -1.0), 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> logits [B, K], similarity [B, P] and occurrence maps [B, P, 1, h, w] in (0, 1)."""
        pooled, occurrence = self._pooled(self.features(x))
        similarity = self._similarity(pooled, self.prototype_vectors.flatten(1))
        return self.last_layer(similarity), similarity, occurrence.unsqueeze(2)

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """f [B, P, D], distance 1 - similarity [B, P], occurrence maps [B, P, 1, h, w] and logits [B, K] of a pass."""
        pooled, occurrence = self._pooled(self.features(x))
        similarity = self._similarity(pooled, self.prototype_vectors.flatten(1))
        return pooled, 1 - similarity, occurrence.unsqueeze(2), self.last_layer(similarity)

    def compute_occurrence_map(self, x: Tensor) -> Tensor:
        """The occurrence maps alone: [B, C, H, W] -> [B, P, 1, h, w]."""
        return torch.sigmoid(self.occurrence_module(self.features(x))).unsqueeze(2)

    def selected_similarity(self, x: Tensor, prototypes: Tensor) -> Tensor:
        """The similarity of one prototype per image, without the others' maps: [B, C, H, W], [B] int64 -> [B]."""
        base = self.features(x)
        last = cast(nn.Conv2d, self.occurrence_module[-1])
        rows = last.weight.flatten(1)[prototypes]
        scores = torch.einsum("bdhw,bd->bhw", self.occurrence_module[:-1](base), rows)
        occurrence = torch.sigmoid(scores + cast(Tensor, last.bias)[prototypes, None, None])
        pooled = torch.einsum("bhw,bdhw->bd", occurrence, self.add_on_layers(base))
        return self._similarity(pooled, self.prototype_vectors.flatten(1)[prototypes])

    def _pooled(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """f [B, P, D] and occurrence maps [B, P, h, w]; a matrix product, so never holds [B, P, D, h, w]."""
        occurrence = torch.sigmoid(self.occurrence_module(base))
        features = self.add_on_layers(base)
        return torch.bmm(occurrence.flatten(2), features.flatten(2).transpose(1, 2)), occurrence

    @staticmethod
    def _similarity(pooled: Tensor, prototypes: Tensor) -> Tensor:
        return functional.cosine_similarity(pooled, prototypes, dim=-1, eps=_TINY)


def build(description: Description) -> XProtoNet:
    """The module that a checkpoint's description describes, with initial weights.

    Raises:
        InputError: an unknown backbone, another activation than the cosine, or prototypes larger than one cell.
    """
    if description.activation != "cosine":
        raise InputError(expected("activation", "cosine", repr(description.activation)))
    return XProtoNet(
        build_features(description.backbone, len(description.mean)),
        description.prototype_shape,
        description.num_classes,
        add_on_layers_type=description.add_on,
        **described(description),
    )
