"""The reference ProtoPNet: published architecture on torchvision backbones, state dict under upstream's names.

A state dict moves to and from the authors' own ``PPNet`` as it is. What they keep outside the state dict, each
prototype's class, is here a buffer that the state dict leaves out and a checkpoint of ours stores beside it.

Chen et al., "This looks like that: deep learning for interpretable image recognition", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import Description
from protomask.checks import check_choice, check_index
from protomask.errors import InputError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD
from protomask.training.backbones import build_features, feature_channels, receptive_field
from protomask.training.model import OTHER_CLASS, OWN_CLASS, ReferenceModel, add_on_layers, described

ACTIVATIONS = ("log", "linear")


class ProtoPNet(ReferenceModel):
    """Backbone, add-on layers, prototypes, last layer; attributes and methods as upstream's ``PPNet`` has them.

    All of :class:`protomask.training.model.ReferenceModel`, and:

    Attributes:
        ones: [P, D, h1, w1] parameter, never trained: upstream's state dict has it.
        epsilon, proto_layer_rf_info, prototype_activation_function: as upstream.
    """

    def __init__(
        self,
        features: nn.Module,
        prototype_shape: Sequence[int],
        num_classes: int,
        *,
        img_size: int | tuple[int, int] = 224,
        prototype_activation_function: str = "log",
        add_on_layers_type: str = "regular",
        epsilon: float = 1e-4,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(prototype_shape, num_classes, img_size=img_size, mean=mean, std=std, class_names=class_names)
        check_choice("prototype_activation_function", prototype_activation_function, ACTIVATIONS)
        shape = tuple(self.prototype_shape)
        self.epsilon = epsilon
        self.prototype_activation_function = prototype_activation_function
        side = img_size if isinstance(img_size, int) else max(img_size)
        self.proto_layer_rf_info = receptive_field(features, side, shape[2])

        self.features = features
        self.add_on_layers = add_on_layers(feature_channels(features), shape[1], add_on_layers_type, nn.Sigmoid)
        self.prototype_vectors = nn.Parameter(torch.rand(shape))
        self.ones = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.last_layer = nn.Linear(shape[0], num_classes, bias=False)
        self.set_last_layer_incorrect_connection(OTHER_CLASS)

    def conv_features(self, x: Tensor) -> Tensor:
        """What patches are compared with prototypes: [B, C, H, W] -> [B, D, h, w], in (0, 1)."""
        return cast(Tensor, self.add_on_layers(self.features(x)))

    def prototype_distances(self, x: Tensor) -> Tensor:
        """Squared L2 distance of every patch to every prototype: [B, C, H, W] -> [B, P, h, w]."""
        return self._l2_convolution(self.conv_features(x))

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(conv_features(x), prototype_distances(x))`` of one pass."""
        features = self.conv_features(x)
        return features, self._l2_convolution(features)

    def distance_2_similarity(self, distances: Tensor) -> Tensor:
        """log((d + 1) / (d + epsilon)), or -d; any shape."""
        if self.prototype_activation_function == "log":
            return torch.log((distances + 1) / (distances + self.epsilon))
        return -distances

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> logits [B, K] and each prototype's distance to its nearest patch [B, P]."""
        distances = self.prototype_distances(x)
        nearest = -functional.max_pool2d(-distances, distances.shape[2:]).flatten(1)
        return self.last_layer(self.distance_2_similarity(nearest)), nearest

    def prune_prototypes(self, prototypes_to_prune: Sequence[int]) -> None:
        """Remove prototypes by index, with their entries in the last layer and in the class identity."""
        pruned = {check_index("prototypes_to_prune", int(j), self.num_prototypes) for j in prototypes_to_prune}
        keep = [j for j in range(self.num_prototypes) if j not in pruned]
        if not keep:
            raise InputError(expected("prototypes_to_prune", "at least one prototype left", f"all {len(pruned)}"))
        self.prototype_vectors = nn.Parameter(self.prototype_vectors.detach()[keep].clone())
        self.ones = nn.Parameter(self.ones.detach()[keep].clone(), requires_grad=False)
        self.prototype_class_identity = self.prototype_class_identity[keep]
        self.last_layer.weight.data = self.last_layer.weight.data[:, keep].clone()
        self.last_layer.in_features = len(keep)
        self.prototype_shape = list(self.prototype_vectors.shape)
        self.num_prototypes = len(keep)

    def set_last_layer_incorrect_connection(self, incorrect_strength: float) -> None:
        """Set the last layer to 1 for a prototype's own class and to ``incorrect_strength`` for the others."""
        self.set_last_layer(OWN_CLASS, incorrect_strength)

    def _l2_convolution(self, features: Tensor) -> Tensor:
        """|x|^2 - 2 x p + |p|^2 per patch x and prototype p, as convolutions: never holds [B, P, D, h, w]."""
        patch = functional.conv2d(features.square(), self.ones[:1])
        inner = functional.conv2d(features, self.prototype_vectors)
        own = self.prototype_vectors.square().sum((1, 2, 3)).view(-1, 1, 1)
        return functional.relu(patch - 2 * inner + own)


def build(description: Description) -> ProtoPNet:
    """The module that a checkpoint's description describes, with initial weights.

    Raises:
        InputError: an unknown backbone.
    """
    return ProtoPNet(
        build_features(description.backbone, len(description.mean)),
        description.prototype_shape,
        description.num_classes,
        prototype_activation_function=description.activation,
        add_on_layers_type=description.add_on,
        epsilon=description.epsilon,
        **described(description),
    )
