"""What adapters share: reading a foreign module's input and names, and telling whether two results are the same.

An adapter duck-types and never imports upstream; it proves itself when it is built. :class:`Adapter` is the base that
the families' adapters derive from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protomask.checks import check_index, flat_numbers
from protomask.errors import InputError, ModelError, expected
from protomask.model import IMAGENET_MEAN, IMAGENET_STD


class Adapter(ABC):
    """A foreign module behind the contract.

    Attributes:
        module: the module itself.
        num_prototypes: P.
        num_classes: K.
        input_shape: (C, H, W).
        mean, std: per channel, what model-ready images are normalised by.
        class_names: K names, or none.
        activation_range: (floor, ceiling) of the activations.
    """

    activation_range: tuple[float | None, float | None]

    def __init__(
        self,
        module: nn.Module,
        num_prototypes: int,
        *,
        input_shape: Sequence[int] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.module = module
        self.num_prototypes = num_prototypes
        self.input_shape = _input_shape(module, input_shape)
        self.mean = _per_channel("mean", mean, module, IMAGENET_MEAN, self.input_shape[0])
        self.std = _per_channel("std", std, module, IMAGENET_STD, self.input_shape[0])

    def name_classes(self, num_classes: int, class_names: Sequence[str] | None) -> None:
        """Take the names given, else the module's own ``class_names``, else none.

        Raises:
            InputError: neither K names nor none.
            ModelError: the module's own cannot be read.
        """
        self.num_classes = num_classes
        named = getattr(self.module, "class_names", None) if class_names is None else class_names
        try:
            self.class_names = () if named is None else tuple(str(name) for name in named)
        except TypeError as error:
            raise ModelError(expected("model.class_names", "names or none", type(named).__name__)) from error
        if len(self.class_names) not in (0, num_classes):
            raise InputError(expected("class_names", f"{num_classes} names or none", len(self.class_names)))

    @abstractmethod
    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, P], or [B] where ``prototypes`` [B] was given; higher is closer."""

    @abstractmethod
    def class_weights(self) -> Tensor | None:
        """[P, K], what a unit of activation adds to each class's score, or None."""

    def prototype_classes(self) -> Tensor | None:
        """[P] int64: the class each prototype was allotted to, else that of its largest weight; None where unknown."""
        identity = getattr(self.module, "prototype_class_identity", None)
        if isinstance(identity, Tensor) and identity.shape == (self.num_prototypes, self.num_classes):
            return identity.argmax(1).cpu()
        weights = self.class_weights()
        return None if weights is None else weights.argmax(1).cpu()

    def describe(self, prototype: int) -> str:
        """``"Cardinal / 3"``: the prototype's class, where it is known, and its index among all prototypes."""
        check_index("prototype", prototype, self.num_prototypes)
        classes = self.prototype_classes()
        if classes is None:
            return f"prototype {prototype}"
        k = int(classes[prototype])
        return f"{self.class_names[k] if self.class_names else f'class {k}'} / {prototype}"


def unwrapped(model: object) -> object:
    """The module inside ``DataParallel`` or ``DistributedDataParallel``, or the model itself."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def agree(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding. Accelerators may multiply float32 at lower precision (TF32), hence their tolerance."""
    if a.shape != b.shape:
        return False
    loose = a.dtype in (torch.float16, torch.bfloat16) or a.device.type != "cpu"
    tolerance = 2e-2 if loose else 1e-9 if a.dtype == torch.float64 else 1e-4
    scale = max(1.0, float(b.abs().max()))
    return bool((a - b).abs().max() <= tolerance * scale)  # False on NaN


def as_module(model: object) -> nn.Module:
    """The model as it came, if it is an ``nn.Module``; else ModelError."""
    if not isinstance(model, nn.Module):
        raise ModelError(expected("model", "an nn.Module", type(model).__name__))
    return model


def random_images(like: Tensor, count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Seeded standard normal noise [count, *shape], of the dtype and on the device of ``like``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *shape), generator=generator).to(like)


def _input_shape(module: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        size = getattr(module, "img_size", None)
        if size is None:
            raise InputError(expected("input_shape", "(C, H, W), since the model has no img_size", None))
        first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
        sides = tuple(map(int, _flat("model.img_size", size)))
        given = (3 if first is None else first.in_channels, *(sides * 2 if len(sides) == 1 else sides))
    shape = tuple(int(s) for s in given)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(expected("input_shape", "(C, H, W)", shape))
    return shape


def _per_channel(
    name: str, given: Sequence[float] | None, module: nn.Module, default: Sequence[float], channels: int
) -> tuple[float, ...]:
    own = getattr(module, name, None)
    if given is not None or own is None:
        values = tuple(float(v) for v in (default if given is None else given))
    else:
        values = _flat(f"model.{name}", own)
    if len(values) != channels:
        raise InputError(expected(name, f"{channels} values, one per input channel", len(values)))
    return values


def _flat(name: str, value: object) -> tuple[float, ...]:
    """The numbers of a module's attribute, in any form.

    Raises:
        ModelError: it has no numbers.
    """
    try:
        return flat_numbers(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(expected(name, "numbers", type(value).__name__)) from error
