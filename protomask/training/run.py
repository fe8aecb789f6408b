"""A model in training: the stages of a run, one step at a time. A family says what its costs and its push are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protomask.checkpoint import PrototypeSource
from protomask.data.sample import to_tensor
from protomask.errors import InputError, expected
from protomask.locating import locate
from protomask.model import contract
from protomask.records import Targets
from protomask.store import ImageInfo, write_regions
from protomask.training.batches import Augment, Batch, Chain, Erase, Pictures, Warp, batches, in_order, shuffled
from protomask.training.model import ReferenceModel
from protomask.training.push import PICTURES, Nearest, own_classes, write_picture
from protomask.training.schedule import Step, one_cycle
from protomask.training.settings import BaseSettings

REGIONS = f"{PICTURES}/regions.json"
_LOCATED_AT_ONCE = 32  # prototypes per call, so that their maps need not all be held at once
_RATES = {
    "warm": ("lr_add_on", "lr_prototypes"),
    "joint": ("lr_features", "lr_add_on", "lr_prototypes"),
    "last": ("lr_last_layer",),
}  # of each optimiser's groups, in order

Entry = dict[str, Any]
Watch = Callable[[Iterable[Any], str, int], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class Costs:
    """What a family's costs are on one batch.

    Attributes:
        loss: scalar, what is minimised.
        logits: [B, K].
        named: further scalars, for the log.
    """

    loss: Tensor
    logits: Tensor
    named: dict[str, Tensor]


@dataclass(eq=False)
class TrainingRun(ABC):
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

    settings: Any
    model: Any
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
        s: BaseSettings = self.settings
        m: ReferenceModel = self.model
        decay = {"weight_decay": s.weight_decay}
        features = {"params": list(m.features.parameters()), "lr": s.lr_features, **decay}
        head = {"params": [p for layer in self.head() for p in layer.parameters()], "lr": s.lr_add_on, **decay}
        prototypes = {"params": [m.prototype_vectors], "lr": s.lr_prototypes}
        self.optimisers = {
            "warm": torch.optim.Adam([dict(head), dict(prototypes)]),
            "joint": torch.optim.Adam([dict(features), dict(head), dict(prototypes)]),
            "last": torch.optim.Adam([{"params": list(m.last_layer.parameters()), "lr": s.lr_last_layer}]),
        }
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimisers["joint"], s.lr_step, gamma=0.1)
        steps = [step for step in (Warp() if s.augment else None, Erase(s.erase) if s.erase else None) if step]
        self.augment = Chain(steps) if steps else None

    @abstractmethod
    def head(self) -> Sequence[nn.Module]:
        """The layers that are trained at ``lr_add_on``, from the warm-up on."""

    @abstractmethod
    def costs(self, images: Tensor, labels: Tensor) -> Costs:
        """The costs of a batch: images [B, C, H, W], labels [B] int64 or [B, K] multi-hot."""

    @abstractmethod
    def last_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the last layer's epochs minimise on a batch: logits [B, K], labels -> scalar."""

    @abstractmethod
    def activations_of(self, images: Tensor) -> Tensor:
        """What the last layer is fed: [B, C, H, W] -> [B, P]."""

    @abstractmethod
    def move_prototypes(self, made: Iterable[Batch]) -> Nearest:
        """Push: move each prototype onto the nearest vector of its class among these batches."""

    @abstractmethod
    def own_activation(self) -> float:
        """The activation of a prototype by the very vector it became."""

    def after_step(self) -> None:
        """Whatever must hold of the parameters after each optimiser step; nothing by default."""
        return

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = self.model.prototype_vectors.device
        return found

    def do(self, step: Step, number: int) -> Entry:
        """Carry out one step, the ``number``-th of the run; what it has to tell.

        Raises:
            InputError: a cost, or the model after the step, is NaN or infinite.
        """
        stage: Callable[[int], Entry] = {
            "warm": lambda n: self.epoch("warm", n),
            "joint": lambda n: self.joint(n, step.epoch),
            "push": self.push,
            "last": self.last,
            "locate": self.locate,
        }[step.kind]
        entry = stage(number)
        self._check_finite(step.kind, number, {k: v for k, v in entry.items() if isinstance(v, float)})
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self._check_finite(step.kind, number, {name: math.nan})
        return entry

    def joint(self, number: int, epoch: int) -> Entry:
        """An epoch of everything but the last layer, after which the learning rates move on."""
        entry = self.epoch("joint", number, self._cycle(epoch) if self.settings.one_cycle else None)
        if not self.settings.one_cycle:
            self.scheduler.step()
        return entry

    def _cycle(self, epoch: int) -> Callable[[float], None]:
        """Sets the joint learning rates by the share of this epoch (1, 2, ...) that is done."""
        every = self.settings.push_every or self.settings.joint_epochs
        cycle, begun = divmod(epoch - 1, every)
        length = min(every, self.settings.joint_epochs - cycle * every)  # the last push may come sooner
        peaks = [group["initial_lr"] for group in self.optimisers["joint"].param_groups]

        def move(done: float) -> None:
            factor = one_cycle((begun + done) / length) / 2**cycle
            for group, peak in zip(self.optimisers["joint"].param_groups, peaks, strict=True):
                group["lr"] = peak * factor

        return move

    def epoch(self, kind: str, number: int, move: Callable[[float], None] | None = None) -> Entry:
        """One pass over the augmented training images; mean costs and accuracy.

        The last layer stays as it is: published code gives it to neither optimiser.
        """
        self._known.clear()
        self.train_mode(kind)
        groups = shuffled(len(self.train), self.settings.batch, (self.settings.seed, number))
        sums: dict[str, float] = {}
        made = self.watch(self.batches(self.train, groups, number, self.augment), kind, len(groups))
        for k, (images, labels) in enumerate(made):
            if move is not None:
                move(k / len(groups))
            costs = self.step(kind, images, labels)
            self._check_finite(kind, number, costs)
            for name, value in costs.items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
        return {name: value / len(self.train) for name, value in sums.items()}

    def step(self, kind: str, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on a batch; its mean costs."""
        found = self.costs(images, labels)
        self.model.zero_grad(set_to_none=True)
        found.loss.backward()
        self.optimisers[kind].step()
        self.after_step()
        named = {"loss": found.loss, **found.named, "train_accuracy": right(found.logits, labels).mean()}
        return {name: float(value.detach()) for name, value in named.items()}

    def push(self, number: int) -> Entry:
        """Move the prototypes onto training images, and keep the pictures that these come from."""
        self._known.clear()
        groups = in_order(len(self.train), self.settings.batch)
        self.model.eval()
        found = self.move_prototypes(self.watch(self.batches(self.train, groups), "push", len(groups)))
        rows = found.images.tolist()
        with_images = own_classes(torch.from_numpy(self.train.labels), self.model.prototype_class_identity.cpu()).any(0)
        if (with_images & (found.images.cpu() < 0)).any():
            self._check_finite("push", number, {"distance": math.nan})
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
        total = correct = 0.0
        for group in shuffled(len(labels), s.batch, (s.seed, number)):
            rows = torch.from_numpy(group).to(self.device)
            logits = m.last_layer(activations[rows])
            loss = self.last_cost(logits, labels[rows])
            m.zero_grad(set_to_none=True)
            loss.backward()
            self.optimisers["last"].step()
            self._check_finite("last", number, {"loss": float(loss.detach())})
            total += float(loss.detach()) * len(group)
            correct += float(right(logits, labels[rows]).sum())
        return {"loss": total / len(labels), "train_accuracy": correct / len(labels)}

    def accuracy(self, split: str = "test") -> float:
        """Share of right answers on the split's images (``"train"``: not augmented), as :func:`right` counts them."""
        activations, labels = self._activations(split)
        with torch.no_grad():
            logits = self.model.last_layer(activations)
        return float(right(logits, labels).mean())

    def locate(self, number: int) -> Entry:
        """Each prototype's region on its own image, by MDM: boxes into the sources, masks into ``regions.json``."""
        model = contract(self.adapter())
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

    @abstractmethod
    def adapter(self) -> object:
        """The model behind the contract."""

    def train_mode(self, kind: str) -> None:
        """Training mode, and gradients for what an epoch of this kind trains."""
        m = self.model
        m.train()
        m.requires_grad_(True)
        m.features.requires_grad_(kind == "joint")
        m.last_layer.requires_grad_(False)
        if self.frozen_norm:
            for layer in m.features.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def batches(
        self, pictures: Pictures, groups: Sequence[Any], number: int = 0, augment: Augment | None = None
    ) -> Iterator[Batch]:
        """The batches of a step, on the model's device."""
        s, m = self.settings, self.model
        seed = (s.seed, number)
        made = batches(pictures, groups, m.mean, m.std, augment=augment, seed=seed, workers=s.workers)
        for images, labels in made:
            yield images.to(self.device, memory_format=torch.channels_last), labels.to(self.device)

    def _source(self, prototype: int, row: int) -> PrototypeSource:
        if row < 0:
            return PrototypeSource()
        image = self.train.read(row)
        file = write_picture(self.folder, prototype, image)
        label = int(self.model.prototype_class_identity[prototype].argmax())  # pushed from its own class alone
        return PrototypeSource(self.train.image_ids[row], file, label, self.own_activation())

    def _check_finite(self, kind: str, number: int, values: Mapping[str, float]) -> None:
        """Stop a run that has diverged before its state is kept: InputError, since the settings made it do so."""
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        groups = self.optimisers[kind].param_groups if kind in self.optimisers else ()
        rates = ", ".join(f"{name} {group['lr']:.3g}" for name, group in zip(_RATES.get(kind, ()), groups, strict=True))
        came = f"{', '.join(wrong)} NaN or infinite" + (f" at {rates}" if rates else "")
        wanted = "finite costs and weights (lower learning rates may keep them so)"
        raise InputError(expected(f"step {number + 1}, {kind}", wanted, came))

    @torch.no_grad()
    def _activations(self, split: str) -> tuple[Tensor, Tensor]:
        """Activations [N, P] and labels of the plain images, kept until the network changes."""
        if split not in self._known:
            pictures = self.train if split == "train" else self.test
            self.model.eval()
            groups = in_order(len(pictures), self.settings.batch)
            made = []
            for images, labels in self.watch(self.batches(pictures, groups), split, len(groups)):
                made.append((self.activations_of(images), labels))
            values, labels = zip(*made, strict=True)
            self._known[split] = (torch.cat(values), torch.cat(labels))
        return self._known[split]


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Right answers per image: logits [B, K], labels -> [B] in [0, 1].

    Labels [B] int64: 1 where the label has the highest logit. Labels [B, K] multi-hot: the share of the K classes whose
    logit is above 0 exactly where the image is of the class.
    """
    if labels.dim() == 1:
        return (logits.argmax(1) == labels).float()
    return ((logits > 0) == (labels > 0)).float().mean(1)
