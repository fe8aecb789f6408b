"""The reference ProtoPNet: published architecture on torchvision backbones, state dict under upstream's names.

A state dict moves to and from the authors' own ``PPNet`` as it is. What they keep outside the state dict, each
prototype's class, is here a buffer that the state dict leaves out and a checkpoint of ours stores beside it.

Chen et al., "This looks like that: deep learning for interpretable image recognition", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import ACTIVATIONS, ADD_ONS, Description
from protomask.checks import check_choice, check_count, check_index
from protomask.errors import InputError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD

from .backbones import build_features, feature_channels, receptive_field

OWN_CLASS, OTHER_CLASS = 1.0, -0.5  # the last layer's initial weights


class ProtoPNet(nn.Module):
    """Backbone, add-on layers, prototypes, last layer; attributes and methods as upstream's ``PPNet`` has them.

    Attributes:
        features, add_on_layers, last_layer: the layers.
        prototype_vectors: [P, D, h1, w1] parameter.
        ones: [P, D, h1, w1] parameter, never trained: upstream's state dict has it.
        prototype_class_identity: [P, K] one-hot, outside the state dict.
        prototype_shape: (P, D, h1, w1).
        num_prototypes, num_classes, epsilon, img_size, proto_layer_rf_info, prototype_activation_function: as upstream;
            ``img_size`` is a pair (H, W) where the input is no square.
        mean, std, class_names: what the adapter reads.
    """

    prototype_class_identity: Tensor

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
        super().__init__()
        check_choice("prototype_activation_function", prototype_activation_function, ACTIVATIONS)
        check_choice("add_on_layers_type", add_on_layers_type, ADD_ONS)
        shape = tuple(check_count("prototype_shape", s) for s in prototype_shape)
        if len(shape) != 4:
            raise InputError(expected("prototype_shape", "(P, D, h1, w1)", shape))
        self.img_size = img_size
        self.prototype_shape: Sequence[int] = shape
        self.num_prototypes = shape[0]
        self.num_classes = check_count("num_classes", num_classes)
        self.epsilon = epsilon
        self.prototype_activation_function = prototype_activation_function
        self.mean, self.std, self.class_names = tuple(mean), tuple(std), tuple(class_names)
        side = img_size if isinstance(img_size, int) else max(img_size)
        self.proto_layer_rf_info = receptive_field(features, side, shape[2])
        self.register_buffer("prototype_class_identity", _identity(shape[0], num_classes), persistent=False)

        self.features = features
        self.add_on_layers = _add_on(feature_channels(features), shape[1], add_on_layers_type)
        self.prototype_vectors = nn.Parameter(torch.rand(shape))
        self.ones = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.last_layer = nn.Linear(shape[0], num_classes, bias=False)
        self.set_last_layer_incorrect_connection(OTHER_CLASS)

    def conv_features(self, x: Tensor) -> Tensor:
        """What patches are compared with prototypes: [B, 3, H, W] -> [B, D, h, w], in (0, 1)."""
        return cast(Tensor, self.add_on_layers(self.features(x)))

    def prototype_distances(self, x: Tensor) -> Tensor:
        """Squared L2 distance of every patch to every prototype: [B, 3, H, W] -> [B, P, h, w]."""
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
        """[B, 3, H, W] -> logits [B, K] and each prototype's distance to its nearest patch [B, P]."""
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
        own = self.prototype_class_identity.T
        self.last_layer.weight.data.copy_(OWN_CLASS * own + incorrect_strength * (1 - own))

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores beside the state dict."""
        return {"prototype_class_identity": self.prototype_class_identity}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`extra_tensors` gave."""
        self.prototype_class_identity.copy_(tensors["prototype_class_identity"])

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
    height, width = description.size
    return ProtoPNet(
        build_features(description.backbone),
        description.prototype_shape,
        description.num_classes,
        img_size=height if height == width else (height, width),
        prototype_activation_function=description.activation,
        add_on_layers_type=description.add_on,
        epsilon=description.epsilon,
        mean=description.mean,
        std=description.std,
        class_names=description.class_names,
    )


def _identity(prototypes: int, classes: int) -> Tensor:
    """[P, K] one-hot, the prototypes dealt out to the classes in equal runs (where P is no multiple, nearly equal)."""
    owners = torch.arange(prototypes) * classes // prototypes
    return functional.one_hot(owners, classes).float()


def _add_on(channels: int, depth: int, kind: str) -> nn.Sequential:
    """The 1 x 1 convolutions between backbone and prototypes, ending in a sigmoid.

    ``regular``: two of them. ``bottleneck``: pairs that halve the channels until they are down to ``depth``.
    """
    layers: list[nn.Module] = []
    widths = [depth] if kind == "regular" else _halvings(channels, depth)
    for width in widths:
        last = nn.Sigmoid() if width == depth else nn.ReLU()
        layers += [nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), last]
        channels = width
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    return nn.Sequential(*layers)


def _halvings(channels: int, depth: int) -> list[int]:
    widths: list[int] = []
    while not widths or channels > depth:
        widths.append(max(depth, channels // 2))
        channels //= 2
    return widths
