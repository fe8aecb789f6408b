"""An XProtoNet in training: what its stages minimise, and how it is pushed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from protomask.training.batches import Batch
from protomask.training.push import Nearest
from protomask.training.run import Costs, Entry, TrainingRun

from .adapter import XProtoNetModel, wrap
from .losses import (
    Terms,
    Weights,
    blank_images,
    classification,
    cluster_and_separation,
    foreign_l1,
    random_affine,
    transformation,
)
from .model import XProtoNet
from .push import push
from .settings import TrainSettings

_BLANK = 4  # blank images beside each batch


@dataclass(eq=False)
class Run(TrainingRun):
    """An XProtoNet in training."""

    settings: TrainSettings
    model: XProtoNet
    _drawn: int = field(init=False, default=0)

    def head(self) -> Sequence[nn.Module]:
        """The add-on layers and the occurrence module."""
        return [self.model.add_on_layers, self.model.occurrence_module]

    def epoch(self, kind: str, number: int, *args: object) -> Entry:
        """As the base does; the transformations depend on the seed, the epoch and the place in it alone."""
        self._drawn = (self.settings.seed * 1_000_003 + number) * 1_000_003 % 2**62
        return super().epoch(kind, number, *args)  # type: ignore[arg-type]

    def costs(self, images: Tensor, labels: Tensor) -> Costs:
        """Classification, cluster, separation, area, transformation, blank images and L1."""
        s, m = self.settings, self.model
        count, seen = len(images), images
        if s.blank:
            # within the batch and not in a pass of their own, so that batch norm sees them among pictures
            seen = torch.cat([images, blank_images(images, _BLANK)])
        logits, similarity, maps = m(seen)
        blank = similarity[count:].mean() if s.blank else similarity.new_zeros(())
        logits, similarity, maps = logits[:count], similarity[:count], maps[:count]
        cluster, separation = cluster_and_separation(similarity, labels, m.prototype_class_identity)
        terms = Terms(
            classification=classification(logits, labels),
            cluster=cluster,
            separation=separation,
            area=maps.mean(),
            transformation=self._transformation(images, maps.squeeze(2)),
            blank=blank,
            l1=foreign_l1(m.last_layer.weight, m.prototype_class_identity),
        )
        weights = Weights(s.cluster, s.separation, s.area, s.transformation, s.blank, s.l1)
        return Costs(terms.total(weights), logits, dict(vars(terms)))

    def last_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Classification and L1."""
        m = self.model
        return classification(logits, labels) + self.settings.l1 * foreign_l1(
            m.last_layer.weight, m.prototype_class_identity
        )

    def activations_of(self, images: Tensor) -> Tensor:
        """The similarities."""
        found: Tensor = self.model(images)[1]
        return found

    def move_prototypes(self, made: Iterable[Batch]) -> Nearest:
        """Onto the nearest pooled features."""
        return push(self.model, made)

    def own_activation(self) -> float:
        """The cosine of a vector with itself."""
        return 1.0

    def adapter(self) -> XProtoNetModel:
        """The model behind the contract."""
        return wrap(self.model)

    def after_step(self) -> None:
        """Prototypes stay at 0 or above, as the features are that they are compared with."""
        self.model.prototype_vectors.data.clamp_(min=0)

    def _transformation(self, images: Tensor, maps: Tensor) -> Tensor:
        s = self.settings
        if s.transformation == 0:
            return maps.new_zeros(())
        count = s.transformed or len(images)
        self._drawn += 1
        affine = random_affine(len(images[:count]), self._drawn, images)
        return transformation(
            images[:count], maps[:count], affine, lambda x: self.model.compute_occurrence_map(x).squeeze(2)
        )


def initial_strength(model: XProtoNet, strength: float) -> None:
    """The last layer before training: ``strength`` for a prototype's own class, half of it against the others."""
    with torch.no_grad():
        model.set_last_layer(strength, -strength / 2)
