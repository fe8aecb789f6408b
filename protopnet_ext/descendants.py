"""ProtoPNet's descendants behind protomask's contract: code bases that keep its names and change what they mean.

=============== ============================================ ==================================================
code base       prototypes' maps                             class scores
=============== ============================================ ==================================================
TesNet          ``push_forward`` gives negative projections  ``last_layer`` of the largest projections
EvalProtoPNet   ``push_forward`` gives similarities          ``forward_SA_module`` of the largest ones
ST-ProtoPNet    ``forward`` gives two banks of similarities  the sum of two last layers
ProtoPool       ``prototype_distances``, shared by classes   slots that mix minimum and mean distances
=============== ============================================ ==================================================

None is told by its name: each reading that a model's attributes allow is tried, and the one that reproduces the model's
own logits on random images is taken. Where none does, the model is refused.

Wang et al., ICCV 2021 (TesNet); Huang et al., ICCV 2023 (EvalProtoPNet); Wang et al., ICCV 2023 (ST-ProtoPNet);
Rymarczyk et al., ECCV 2022 (ProtoPool).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from protomask.adapting import Adapter, agree, random_images, unwrapped
from protomask.errors import ModelError, ProtomaskError, expected
from protomask.model import untouched

from . import adapter

_PROOF_IMAGES = 3


class Descendant(Adapter):
    """A model whose maps [B, P, h, w] are similarities, the activations their maxima. Build it with :func:`wrap`."""

    activation_range: tuple[float | None, float | None] = (None, None)

    def __init__(
        self,
        module: nn.Module,
        *,
        input_shape: Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        super().__init__(module, self.count(module), input_shape=input_shape, mean=mean, std=std)
        self.name_classes(self._classes(), class_names)

    @staticmethod
    @abstractmethod
    def fits(module: nn.Module) -> bool:
        """Whether the module has the attributes that this reading needs."""

    @staticmethod
    def count(module: nn.Module) -> int:
        """P, all banks together."""
        vectors: Any = module.prototype_vectors
        return len(vectors)

    @abstractmethod
    def similarity_maps(self, images: Tensor) -> Tensor:
        """[B, P, h, w], higher is closer."""

    @abstractmethod
    def head(self, maps: Tensor) -> Tensor:
        """Class scores [B, K] recomputed from the maps [B, P, h, w]."""

    def logits(self, images: Tensor) -> Tensor:
        """[B, K], the model's own."""
        came = self.module(images)
        logits: Tensor = came[0] if isinstance(came, (tuple, list)) else came
        return logits

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """[B, P], or [B] where ``prototypes`` [B] was given; one prototype costs as much as all."""
        pooled = self.similarity_maps(images).flatten(2).max(2).values
        return pooled if prototypes is None else pooled.gather(1, prototypes.to(images.device)[:, None]).squeeze(1)

    def _classes(self) -> int:
        """K: what the module says, else as many as there are weights for."""
        own: Any = getattr(self.module, "num_classes", None)
        return int(self.class_weights().shape[1] if own is None else own)

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """[P, K]: the class scores of each prototype alone, since the head is linear."""
        like = next(self.module.parameters())
        units = torch.eye(self.num_prototypes, dtype=like.dtype, device=like.device)
        return self.head(units[:, :, None, None]).detach()

    @torch.no_grad()
    def prove(self, seed: int) -> None:
        """Raise ModelError unless the logits recomputed from the maps are the model's own."""
        images = random_images(next(self.module.parameters()), _PROOF_IMAGES, self.input_shape, seed)
        with untouched(self.module):
            logits, maps = self.logits(images), self.similarity_maps(images)
            if maps.dim() != 4 or maps.shape[1] != self.num_prototypes:
                wanted = f"maps [B, {self.num_prototypes}, h, w]"
                raise ModelError(expected("model", wanted, list(maps.shape)))
            if not agree(self.head(maps), logits):
                raise ModelError(expected("model", "logits that follow from its maps", "others"))


class TesNet(Descendant):
    """``push_forward`` gives negative projections on the prototypes."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """As a ``PPNet``."""
        return adapter.matches(module)

    def similarity_maps(self, images: Tensor) -> Tensor:
        """Projections; they have no bound."""
        maps: Tensor = self.module.push_forward(images)[1]  # type: ignore[operator]
        return -maps

    def head(self, maps: Tensor) -> Tensor:
        """``last_layer`` of the largest values."""
        scores: Tensor = self.module.last_layer(maps.flatten(2).amax(2))  # type: ignore[operator]
        return scores


class Similarities(TesNet):
    """``push_forward`` gives similarities, the sign reversed; the head is EvalProtoPNet's or a last layer."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """With ``push_forward``, and either head."""
        heads = (getattr(module, name, None) for name in ("forward_SA_module", "last_layer"))
        return callable(getattr(module, "push_forward", None)) and any(map(callable, heads))

    def similarity_maps(self, images: Tensor) -> Tensor:
        """As the model gives them."""
        maps: Tensor = self.module.push_forward(images)[1]  # type: ignore[operator]
        return maps

    def head(self, maps: Tensor) -> Tensor:
        """``forward_SA_module``, else ``last_layer``, of the largest values."""
        own: Any = getattr(self.module, "forward_SA_module", None)
        return super().head(maps) if own is None else own(maps.flatten(2).amax(2))


class STProtoPNet(Descendant):
    """Two banks, trivial before support, each with a last layer of its own."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """With both banks' prototypes and last layers."""
        names = ("prototype_vectors", "last_layer")
        return all(hasattr(module, f"{name}_{bank}") for name in names for bank in ("trivial", "support"))

    @staticmethod
    def count(module: nn.Module) -> int:
        """Both banks."""
        banks: list[Any] = [module.prototype_vectors_trivial, module.prototype_vectors_support]
        return sum(map(len, banks))

    def similarity_maps(self, images: Tensor) -> Tensor:
        """The third thing that the model gives: the maps that it pools, trivial and support."""
        return torch.cat(list(self.module(images)[2]), 1)

    def logits(self, images: Tensor) -> Tensor:
        """The sum of both banks' scores, by which the model predicts."""
        trivial, support = self.module(images)[0]
        scores: Tensor = trivial + support
        return scores

    def head(self, maps: Tensor) -> Tensor:
        """The sum of the two last layers."""
        trivial, support = maps.flatten(2).amax(2).chunk(2, 1)
        module: Any = self.module
        scores: Tensor = module.last_layer_trivial(trivial) + module.last_layer_support(support)
        return scores

    def prototype_classes(self) -> Tensor | None:
        """[P] int64; both banks are allotted alike."""
        identity: Any = self.module.prototype_class_identity
        return torch.cat([identity, identity]).argmax(1).cpu()


class ProtoPool(Descendant):
    """Prototypes shared between classes: each class has slots, and each slot a distribution over prototypes."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """With slots."""
        return isinstance(getattr(module, "proto_presence", None), Tensor) and hasattr(module, "prototype_distances")

    def similarity_maps(self, images: Tensor) -> Tensor:
        """Similarities of the distances."""
        return self._similarity(self._distances(images))

    def head(self, maps: Tensor) -> Tensor:
        """Not defined: scores depend on distances, see :meth:`prove`."""
        raise NotImplementedError

    def class_weights(self) -> Tensor:
        """[P, K]: how much of each class's slots a prototype fills."""
        return self._presence().sum(2).T.detach().clone()

    @torch.no_grad()
    def prove(self, seed: int) -> None:
        """Raise ModelError unless the model's logits follow from minimum and mean distances mixed by the slots."""
        images = random_images(next(self.module.parameters()), _PROOF_IMAGES, self.input_shape, seed)
        with untouched(self.module):
            distances = self._distances(images).flatten(2)
            mixed = [
                self._similarity(torch.einsum("bp,cpn->bcn", pooled, self._presence()))
                for pooled in (distances.amin(2), distances.mean(2))
            ]
            slots = mixed[0] - mixed[1]
            last: Any = self.module.last_layer
            scores = slots.sum(2) if isinstance(last, nn.Identity) else last(slots.flatten(1))
            if not agree(scores, self.logits(images)):
                raise ModelError(expected("model", "logits that follow from its distances and slots", "others"))

    def _distances(self, images: Tensor) -> Tensor:
        distances: Tensor = self.module.prototype_distances(images)  # type: ignore[operator]
        return distances

    def _similarity(self, distances: Tensor) -> Tensor:
        similarity: Tensor = self.module.distance_2_similarity(distances)  # type: ignore[operator]
        return similarity

    def _presence(self) -> Tensor:
        presence: Tensor = self.module.proto_presence  # type: ignore[assignment]
        return presence.softmax(1)


_READINGS: tuple[type[Descendant], ...] = (STProtoPNet, ProtoPool, TesNet, Similarities)


def matches(model: object) -> bool:
    """Whether ``model`` has the form of a ``PPNet`` or of a descendant, judged by its attributes."""
    inner = unwrapped(model)
    if hasattr(inner, "occurrence_module"):  # an XProtoNet; ProtoASNet's inherits all that a PPNet has
        return False
    if adapter.matches(inner):
        return True
    named = isinstance(inner, nn.Module) and callable(getattr(inner, "distance_2_similarity", None))
    return named and any(reading.fits(inner) for reading in _READINGS)  # type: ignore[arg-type]


def wrap(
    model: object,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> adapter.ProtoPNetModel | Descendant:
    """A ``PPNet``, or a descendant, behind protomask's contract; the model itself is left as it came.

    Args:
        model: an upstream-style model, pruned or not, possibly inside ``DataParallel``.
        input_shape: (C, H, W); by default the first convolution's channels and the model's ``img_size``.
        mean, std: what inputs are normalised by; by default the model's own attributes, else ImageNet's.
        class_names: K names; by default the model's own ``class_names``, else none.
        seed: of the random images that the adapter proves itself on.

    Raises:
        ModelError: the model has the form of none, or its logits do not follow from what any reading makes of it.
        InputError: a keyword argument does not fit the model.
    """
    given: dict[str, Any] = {"input_shape": input_shape, "mean": mean, "std": std, "class_names": class_names}
    inner = unwrapped(model)
    if not isinstance(inner, nn.Module) or not matches(inner):
        return adapter.wrap(inner)  # refuses it, and says what a PPNet has
    refused: ModelError | None = None
    if adapter.matches(inner):
        try:
            return adapter.wrap(inner, seed=seed, **given)
        except ModelError as error:
            refused = error
    for reading in _READINGS:
        if reading.fits(inner):
            try:
                return _proved(reading, inner, given, seed)
            except ModelError as error:
                refused = refused or error
    raise refused or ModelError(expected("model", "a PPNet or a descendant", type(inner).__name__))


def _proved(reading: type[Descendant], module: nn.Module, given: dict[str, Any], seed: int) -> Descendant:
    try:
        wrapped = reading(module, **given)
        wrapped.prove(seed)
    except ProtomaskError:
        raise
    except Exception as error:  # whatever a model raises that has the names and not the form
        wanted = f"a model that {reading.__name__} reads"
        raise ModelError(expected("model", wanted, f"an error ({type(error).__name__}: {error})")) from error
    return wrapped
