"""What the reference models of all families have in common: layers, class identity, last layer, checkpoint tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import ADD_ONS, Description
from protomask.checks import check_choice, check_count
from protomask.errors import InputError, expected

OWN_CLASS, OTHER_CLASS = 1.0, -0.5  # the last layer's initial weights


class ReferenceModel(nn.Module):
    """Base of the reference models; a family adds its layers and its forward pass.

    Attributes:
        features: the backbone.
        add_on_layers: 1 x 1 convolutions between backbone and prototypes.
        prototype_vectors: [P, D, h1, w1] parameter.
        last_layer: from P activations to K logits.
        prototype_class_identity: [P, K] one-hot, outside the state dict, stored beside it in a checkpoint.
        prototype_shape: (P, D, h1, w1).
        num_prototypes, num_classes: P, K.
        img_size: the input's side, or a pair (H, W) where it is no square.
        mean, std, class_names: what the adapter reads.
    """

    features: nn.Module
    add_on_layers: nn.Module
    prototype_vectors: nn.Parameter
    last_layer: nn.Linear
    prototype_class_identity: Tensor

    def __init__(
        self,
        prototype_shape: Sequence[int],
        num_classes: int,
        *,
        img_size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str],
    ) -> None:
        super().__init__()
        shape = tuple(check_count("prototype_shape", s) for s in prototype_shape)
        if len(shape) != 4:
            raise InputError(expected("prototype_shape", "(P, D, h1, w1)", shape))
        self.prototype_shape: Sequence[int] = shape
        self.num_prototypes = shape[0]
        self.num_classes = check_count("num_classes", num_classes)
        self.img_size = img_size
        self.mean, self.std, self.class_names = tuple(mean), tuple(std), tuple(class_names)
        self.register_buffer("prototype_class_identity", class_identity(shape[0], num_classes), persistent=False)

    def set_last_layer(self, own: float, other: float) -> None:
        """Set the last layer to ``own`` for a prototype's own class and to ``other`` for the rest."""
        mine = self.prototype_class_identity.T
        self.last_layer.weight.data.copy_(own * mine + other * (1 - mine))

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores beside the state dict."""
        return {"prototype_class_identity": self.prototype_class_identity}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`extra_tensors` gave."""
        self.prototype_class_identity.copy_(tensors["prototype_class_identity"])


def described(description: Description) -> dict[str, Any]:
    """The keyword arguments of :class:`ReferenceModel` that a checkpoint's description gives."""
    height, width = description.size
    return {
        "img_size": height if height == width else (height, width),
        "mean": description.mean,
        "std": description.std,
        "class_names": description.class_names,
    }


def class_identity(prototypes: int, classes: int) -> Tensor:
    """[P, K] one-hot, the prototypes dealt out to the classes in equal runs (where P is no multiple, nearly equal)."""
    owners = torch.arange(prototypes) * classes // prototypes
    return functional.one_hot(owners, classes).float()


def add_on_layers(channels: int, depth: int, kind: str, end: type[nn.Module]) -> nn.Sequential:
    """The 1 x 1 convolutions between backbone and prototypes: [B, channels, h, w] -> [B, depth, h, w].

    Args:
        channels: of the backbone.
        depth: D, of the prototypes.
        kind: ``"regular"``, two of them, or ``"bottleneck"``, pairs that halve the channels until they are ``depth``.
        end: the activation function after the last one.

    Raises:
        InputError: another kind.
    """
    check_choice("add_on_layers_type", kind, ADD_ONS)
    layers: list[nn.Module] = []
    widths = [depth] if kind == "regular" else _halvings(channels, depth)
    for width in widths:
        last = end() if width == depth else nn.ReLU()
        layers += [nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), last]
        channels = width
    start_convolutions(layers)
    return nn.Sequential(*layers)


def start_convolutions(layers: Sequence[nn.Module]) -> None:
    """Kaiming's initial weights for convolutions, biases zero."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _halvings(channels: int, depth: int) -> list[int]:
    widths: list[int] = []
    while not widths or channels > depth:
        widths.append(max(depth, channels // 2))
        channels //= 2
    return widths
