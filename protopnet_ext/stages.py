"""A ProtoPNet in training: what its stages minimise, and how it is pushed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.training.batches import Batch
from protomask.training.push import Nearest
from protomask.training.run import Costs, TrainingRun

from .adapter import ProtoPNetModel, wrap
from .losses import costs, foreign_l1
from .model import ProtoPNet
from .push import push
from .settings import TrainSettings


@dataclass(eq=False)
class Run(TrainingRun):
    """A ProtoPNet in training."""

    settings: TrainSettings
    model: ProtoPNet

    def head(self) -> Sequence[nn.Module]:
        """The add-on layers."""
        return [self.model.add_on_layers]

    def costs(self, images: Tensor, labels: Tensor) -> Costs:
        """Cross entropy, cluster, separation and L1, as published."""
        s, m = self.settings, self.model
        logits, distances = m(images)
        limit = float(m.prototype_vectors[0].numel())
        found = costs(logits, distances, labels, m.prototype_class_identity, m.last_layer.weight, limit)
        named = {"cross_entropy": found.cross_entropy, "cluster": found.cluster}
        named |= {"separation": found.separation, "l1": found.l1}
        return Costs(found.total(s.cluster, s.separation, s.l1), logits, named)

    def last_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy and L1."""
        m = self.model
        l1 = foreign_l1(m.last_layer.weight, m.prototype_class_identity)
        return functional.cross_entropy(logits, labels) + self.settings.l1 * l1

    def activations_of(self, images: Tensor) -> Tensor:
        """Similarity to the nearest patch."""
        return self.model.distance_2_similarity(self.model(images)[1])

    def move_prototypes(self, made: Iterable[Batch]) -> Nearest:
        """Onto the nearest patches."""
        return push(self.model, made)

    def own_activation(self) -> float:
        """The activation at a distance of zero."""
        return float(self.model.distance_2_similarity(torch.zeros(())))

    def adapter(self) -> ProtoPNetModel:
        """The model behind the contract."""
        return wrap(self.model)

    def train_mode(self, kind: str) -> None:
        """As the base does; upstream's ``ones`` are never trained."""
        super().train_mode(kind)
        self.model.ones.requires_grad_(False)
