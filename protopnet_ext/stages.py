"""The stages of a training run, in order: warm-up, joint training, push, last layer, regions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protomask.checkpoint import PrototypeSource
from protomask.data.sample import to_tensor
from protomask.locating import locate
from protomask.records import Targets
from protomask.store import ImageInfo, write_regions

from .adapter import wrap
from .batches import Augment, Batch, Chain, Erase, Pictures, Warp, batches, in_order, shuffled
from .losses import costs, foreign_l1
from .model import ProtoPNet
from .push import PICTURES, push, write_picture
from .settings import TrainSettings

REGIONS = f"{PICTURES}/regions.json"
_LOCATED_AT_ONCE = 32  # prototypes per call, so that their maps need not all be held at once

Entry = dict[str, Any]
Watch = Callable[[Iterable[Any], str, int], Iterator[Any]]


def one_cycle(progress: float, rise: float = 0.15, start: float = 0.04) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1): from ``start`` to 1 and down to 0, by half cosines."""
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


@dataclass(frozen=True)
class Step:
    """One unit of a run, after which it can be interrupted: an epoch of ``warm``, ``joint`` or ``last``, or a whole
    ``push`` or ``locate``."""

    kind: str
    epoch: int


def schedule(settings: TrainSettings) -> tuple[Step, ...]:
    """All steps of a run, in order."""
    steps = [Step("warm", e) for e in range(1, settings.warm_epochs + 1)]
    for epoch in range(1, settings.joint_epochs + 1):
        steps.append(Step("joint", epoch))
        if settings.push_every and epoch % settings.push_every == 0 and epoch < settings.joint_epochs:
            steps += _pushed(settings, epoch)
    steps += _pushed(settings, settings.joint_epochs)
    return (*steps, Step("locate", 1)) if settings.locate else tuple(steps)


def _pushed(settings: TrainSettings, epoch: int) -> list[Step]:
    # Published code trains the last layer for the log activation only.
    epochs = settings.last_layer_epochs if settings.activation == "log" else 0
    return [Step("push", epoch), *(Step("last", e) for e in range(1, epochs + 1))]


@dataclass(eq=False)
class Run:
    """A model in training, with all that the stages share.

    Attributes:
        settings: of the run.
        model: on its device.
        train, test: the images.
        folder: where pictures and regions go.
        frozen_norm: the backbone's batch norm keeps its statistics.
        watch: wraps an iterable in a progress bar.
        sources: where each prototype came from, after the first push.
    """

    settings: TrainSettings
    model: ProtoPNet
    train: Pictures
    test: Pictures
    folder: Path
    frozen_norm: bool
    watch: Watch
    sources: tuple[PrototypeSource, ...] = ()
    optimisers: dict[str, torch.optim.Optimizer] = field(init=False)
    scheduler: torch.optim.lr_scheduler.StepLR = field(init=False)
    augment: Augment | None = field(init=False)
    _known: dict[str, tuple[Tensor, Tensor]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        s, m = self.settings, self.model
        decay = {"weight_decay": s.weight_decay}
        features = {"params": list(m.features.parameters()), "lr": s.lr_features, **decay}
        add_on = {"params": list(m.add_on_layers.parameters()), "lr": s.lr_add_on, **decay}
        prototypes = {"params": [m.prototype_vectors], "lr": s.lr_prototypes}
        self.optimisers = {
            "warm": torch.optim.Adam([dict(add_on), dict(prototypes)]),
            "joint": torch.optim.Adam([dict(features), dict(add_on), dict(prototypes)]),
            "last": torch.optim.Adam([{"params": list(m.last_layer.parameters()), "lr": s.lr_last_layer}]),
        }
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimisers["joint"], s.lr_step, gamma=0.1)
        steps = [step for step in (Warp() if s.augment else None, Erase(s.erase) if s.erase else None) if step]
        self.augment = Chain(steps) if steps else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.prototype_vectors.device

    def do(self, step: Step, number: int) -> Entry:
        """Carry out one step, the ``number``-th of the run; what it has to tell."""
        stage: Callable[[int], Entry] = {
            "warm": lambda n: self.epoch("warm", n),
            "joint": lambda n: self.joint(n, step.epoch),
            "push": self.push,
            "last": self.last,
            "locate": self.locate,
        }[step.kind]
        return stage(number)

    def joint(self, number: int, epoch: int) -> Entry:
        """An epoch of everything but the last layer, after which the learning rates move on."""
        entry = self.epoch("joint", number, self._cycle(epoch) if self.settings.one_cycle else None)
        if not self.settings.one_cycle:
            self.scheduler.step()
        return entry

    def _cycle(self, epoch: int) -> Callable[[float], None]:
        """Sets the joint learning rates by the share of this epoch (1, 2, ...) that is done."""
        length = self.settings.push_every or self.settings.joint_epochs
        cycle, begun = divmod(epoch - 1, length)
        peaks = [group["initial_lr"] for group in self.optimisers["joint"].param_groups]

        def move(done: float) -> None:
            factor = one_cycle((begun + done) / length) / 2**cycle
            for group, peak in zip(self.optimisers["joint"].param_groups, peaks, strict=True):
                group["lr"] = peak * factor

        return move

    def epoch(self, kind: str, number: int, move: Callable[[float], None] | None = None) -> Entry:
        """One pass over the augmented training images; mean costs and accuracy.

        The last layer stays as it is: upstream gives it to neither optimiser.
        """
        self._known.clear()
        self._train_mode(kind)
        groups = shuffled(len(self.train), self.settings.batch, (self.settings.seed, number))
        sums: dict[str, float] = {}
        made = self.watch(self._batches(self.train, groups, number, self.augment), kind, len(groups))
        for k, (images, labels) in enumerate(made):
            if move is not None:
                move(k / len(groups))
            for name, value in self.step(kind, images, labels).items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
        return {name: value / len(self.train) for name, value in sums.items()}

    def step(self, kind: str, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on a batch; its mean costs."""
        s, m = self.settings, self.model
        logits, distances = m(images)
        limit = float(m.prototype_vectors[0].numel())
        found = costs(logits, distances, labels, m.prototype_class_identity, m.last_layer.weight, limit)
        loss = found.total(s.cluster, s.separation, s.l1)
        m.zero_grad(set_to_none=True)
        loss.backward()
        self.optimisers[kind].step()
        named = {"loss": loss, "cross_entropy": found.cross_entropy}
        named |= {"cluster": found.cluster, "separation": found.separation, "l1": found.l1}
        named["train_accuracy"] = (logits.argmax(1) == labels).float().mean()
        return {name: float(value.detach()) for name, value in named.items()}

    def push(self, number: int) -> Entry:
        """Move the prototypes onto training patches, and keep the pictures that these come from."""
        self._known.clear()
        groups = in_order(len(self.train), self.settings.batch)
        found = push(self.model, self.watch(self._batches(self.train, groups), "push", len(groups)))
        rows = found.images.tolist()
        self.sources = tuple(self._source(j, row) for j, row in enumerate(rows))
        moved = found.distances.isfinite()
        distance = float(found.distances[moved].mean()) if moved.any() else None
        return {"pushed": int(moved.sum()), "from_images": len({r for r in rows if r >= 0}), "distance": distance}

    def last(self, number: int) -> Entry:
        """One epoch of the last layer, on activations that are computed once: the rest of the network stands still.

        Published code goes over the augmented images in training mode here; these are the plain ones, which the
        prototypes were pushed to.
        """
        s, m = self.settings, self.model
        activations, labels = self._activations("train")
        m.last_layer.weight.requires_grad_(True)
        total = right = 0.0
        for group in shuffled(len(labels), s.batch, (s.seed, number)):
            rows = torch.from_numpy(group).to(self.device)
            logits = m.last_layer(activations[rows])
            loss = functional.cross_entropy(logits, labels[rows])
            loss = loss + s.l1 * foreign_l1(m.last_layer.weight, m.prototype_class_identity)
            m.zero_grad(set_to_none=True)
            loss.backward()
            self.optimisers["last"].step()
            total += float(loss.detach()) * len(group)
            right += float((logits.argmax(1) == labels[rows]).sum())
        return {"loss": total / len(labels), "train_accuracy": right / len(labels)}

    def accuracy(self, split: str = "test") -> float:
        """Share of the split's images (``"train"``: not augmented) whose class has the highest logit."""
        activations, labels = self._activations(split)
        with torch.no_grad():
            logits = self.model.last_layer(activations)
        return float((logits.argmax(1) == labels).float().mean())

    def locate(self, number: int) -> Entry:
        """Each prototype's region on its own image, by MDM: boxes into the sources, masks into ``regions.json``."""
        model = wrap(self.model)
        pushed = [j for j, source in enumerate(self.sources) if source.image_id]
        parts = [pushed[k : k + _LOCATED_AT_ONCE] for k in range(0, len(pushed), _LOCATED_AT_ONCE)]
        index = {image_id: i for i, image_id in enumerate(self.train.image_ids)}
        sources = list(self.sources)
        located = 0

        def results() -> Iterator[Any]:
            nonlocal located
            for part in self.watch(parts, "locate", len(parts)):
                rows = [index[sources[j].image_id] for j in part]
                images = to_tensor([self.train.read(i) for i in rows], model.mean, model.std).to(self.device)
                targets = Targets(torch.arange(len(part)), torch.tensor(part))
                found = locate(model, images, targets, method="mdm", seed=self.settings.seed)
                for j, box, there in zip(part, found.boxes.tolist(), found.located.tolist(), strict=True):
                    sources[j] = replace(sources[j], box=tuple(map(float, box)) if there else None)
                    located += there
                yield found, [ImageInfo(self.train.image_ids[i], self.train.geometries[i]) for i in rows]

        names = {j: model.describe(j) for j in range(model.num_prototypes)}
        write_regions(self.folder / REGIONS, results(), names)
        self.sources = tuple(sources)
        return {"located": located}

    def _source(self, prototype: int, row: int) -> PrototypeSource:
        if row < 0:
            return PrototypeSource()
        image = self.train.read(row)
        file = write_picture(self.folder, prototype, image)
        activation = float(self.model.distance_2_similarity(torch.zeros(())))  # it meets the very patch it became
        return PrototypeSource(self.train.image_ids[row], file, int(self.train.labels[row]), activation)

    def _train_mode(self, kind: str) -> None:
        m = self.model
        m.train()
        m.requires_grad_(True)
        m.features.requires_grad_(kind == "joint")
        m.last_layer.requires_grad_(False)
        m.ones.requires_grad_(False)
        if self.frozen_norm:
            for layer in m.features.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    @torch.no_grad()
    def _activations(self, split: str) -> tuple[Tensor, Tensor]:
        """Activations [N, P] and labels [N] of the plain images, kept until the network changes."""
        if split not in self._known:
            pictures = self.train if split == "train" else self.test
            self.model.eval()
            groups = in_order(len(pictures), self.settings.batch)
            made = []
            for images, labels in self.watch(self._batches(pictures, groups), split, len(groups)):
                made.append((self.model.distance_2_similarity(self.model(images)[1]), labels))
            values, labels = zip(*made, strict=True)
            self._known[split] = (torch.cat(values), torch.cat(labels))
        return self._known[split]

    def _batches(
        self, pictures: Pictures, groups: Sequence[Any], number: int = 0, augment: Augment | None = None
    ) -> Iterator[Batch]:
        s, m = self.settings, self.model
        seed = (s.seed, number)
        made = batches(pictures, groups, m.mean, m.std, augment=augment, seed=seed, workers=s.workers)
        for images, labels in made:
            yield images.to(self.device, memory_format=torch.channels_last), labels.to(self.device)
