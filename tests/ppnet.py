"""A small stand-in for the authors' ``PPNet``, written from its interface, with explicit distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PPNet(nn.Module):
    """Two convolutions with batch norm, then prototypes; attributes and methods are called as upstream calls them."""

    def __init__(
        self,
        activation: str | Callable[[Tensor], Tensor] = "log",
        prototypes: int = 6,
        classes: int = 3,
        kernel: int = 1,
        size: int = 32,
    ) -> None:
        super().__init__()
        self.img_size = size
        self.prototype_shape: Any = (prototypes, 4, kernel, kernel)
        self.num_prototypes = prototypes
        self.num_classes = classes
        self.epsilon = 1e-4
        self.prototype_activation_function = activation
        self.prototype_class_identity = torch.zeros(prototypes, classes)
        for j in range(prototypes):
            self.prototype_class_identity[j, j * classes // prototypes] = 1
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.add_on_layers = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Sigmoid())
        self.prototype_vectors = nn.Parameter(torch.rand(self.prototype_shape))
        self.ones = nn.Parameter(torch.ones(self.prototype_shape), requires_grad=False)
        self.last_layer = nn.Linear(prototypes, classes, bias=False)
        own = self.prototype_class_identity.t()
        self.last_layer.weight.data.copy_(own - 0.5 * (1 - own))

    def conv_features(self, x: Tensor) -> Tensor:
        return self.add_on_layers(self.features(x))

    def prototype_distances(self, x: Tensor) -> Tensor:
        return self.distances_of(self.conv_features(x))

    def distances_of(self, features: Tensor) -> Tensor:
        kernel = self.prototype_vectors.shape[2:]
        patches = functional.unfold(features, tuple(kernel)).transpose(1, 2)  # [B, L, D h1 w1]
        gaps = patches[:, :, None] - self.prototype_vectors.flatten(1)
        height, width = features.shape[2] - kernel[0] + 1, features.shape[3] - kernel[1] + 1
        return gaps.square().sum(3).transpose(1, 2).reshape(len(features), -1, height, width)

    def distance_2_similarity(self, distances: Tensor) -> Tensor:
        if self.prototype_activation_function == "log":
            return torch.log((distances + 1) / (distances + self.epsilon))
        if self.prototype_activation_function == "linear":
            return -distances
        return self.prototype_activation_function(distances)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Any:
        nearest = self.prototype_distances(x).amin((2, 3))
        return self.last_layer(self.distance_2_similarity(nearest)), nearest

    def push_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv_features(x)
        return features, self.distances_of(features)

    def prune_prototypes(self, pruned: list[int]) -> None:
        keep = [j for j in range(self.num_prototypes) if j not in pruned]
        self.prototype_vectors = nn.Parameter(self.prototype_vectors.data[keep])
        self.ones = nn.Parameter(self.ones.data[keep], requires_grad=False)
        self.prototype_shape = list(self.prototype_vectors.shape)
        self.num_prototypes = len(keep)
        self.last_layer.weight.data = self.last_layer.weight.data[:, keep]
        self.prototype_class_identity = self.prototype_class_identity[keep]


def ppnet(seed: int = 0, **options: Any) -> PPNet:
    """A seeded :class:`PPNet` whose batch norm has statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PPNet(**options)
        norm = model.features[1]
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return model
