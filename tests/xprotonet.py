"""A stand-in for re-implementations of XProtoNet, written from their interface, multiplied out naively.

``forward(x) -> (logits, similarity [B, P], occurrence [B, P, 1, h, w])``; the similarity is (cosine + 1) / 2, and the
occurrence map an absolute value that nothing normalises. ``push_forward`` gives features, distances, maps and logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TheirXProtoNet(nn.Module):
    """Two convolutions with batch norm, then prototypes; attributes and methods are called as others call them."""

    def __init__(
        self, prototypes: int = 6, classes: int = 3, size: int = 32, channels: int = 3, depth: int = 4
    ) -> None:
        super().__init__()
        self.img_size = size
        self.prototype_shape = (prototypes, depth, 1, 1)
        self.num_prototypes = prototypes
        self.num_classes = classes
        self.prototype_class_identity = torch.zeros(prototypes, classes)
        for j in range(prototypes):
            self.prototype_class_identity[j, j * classes // prototypes] = 1
        self.cnn_backbone = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)
        )
        self.add_on_layers = nn.Sequential(nn.Conv2d(8, depth, 1), nn.ReLU(), nn.Conv2d(depth, depth, 1))
        self.occurrence_module = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, prototypes, 1, bias=False))
        self.prototype_vectors = nn.Parameter(torch.rand(self.prototype_shape))
        self.ones = nn.Parameter(torch.ones(self.prototype_shape), requires_grad=False)
        self.last_layer = nn.Linear(prototypes, classes, bias=False)
        own = self.prototype_class_identity.t()
        self.last_layer.weight.data.copy_(own - 0.5 * (1 - own))
        self.cosine_similarity = nn.CosineSimilarity(dim=2)

    def occurrence_of(self, base: Tensor) -> Tensor:
        return self.occurrence_module(base).abs().unsqueeze(2)

    def pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        base = self.cnn_backbone(x)
        occurrence = self.occurrence_of(base)
        return (occurrence * self.add_on_layers(base).unsqueeze(1)).sum((3, 4)), occurrence

    def similarity_of(self, features: Tensor) -> Tensor:
        return (self.cosine_similarity(features, self.prototype_vectors.flatten(1).unsqueeze(0)) + 1) / 2

    def forward(self, x: Tensor) -> Any:
        features, occurrence = self.pooled(x)
        similarity = self.similarity_of(features)
        return self.last_layer(similarity), similarity, occurrence

    def push_forward(self, x: Tensor) -> Any:
        features, occurrence = self.pooled(x)
        similarity = self.similarity_of(features)
        return features, 1 - similarity, occurrence, self.last_layer(similarity)

    def compute_occurence_map(self, x: Tensor) -> Tensor:
        return self.occurrence_of(self.cnn_backbone(x))


def xprotonet(kind: type[TheirXProtoNet] = TheirXProtoNet, seed: int = 0, **options: Any) -> TheirXProtoNet:
    """A seeded model whose batch norm has statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(**options)
        norm = model.cnn_backbone[1]
        norm.running_mean.normal_(0, 0.3)  # type: ignore[operator,union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[operator,union-attr]
    return model
