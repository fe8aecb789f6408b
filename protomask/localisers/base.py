"""What a localiser is: a callable from a :class:`Request` to :class:`Maps`, registered under a name. ::

    @register("edges", "Sobel edges of the image, whatever the prototype.")
    @dataclass(frozen=True)
    class Edges:
        passes = 0

        def __call__(self, request: Request) -> Maps:
            return Maps(sobel(request.images)[request.targets.images])

Its fields are its settings: ``locate(..., method="edges", width=3)`` fills them in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from protomask.blur import gaussian_blur
from protomask.checks import check_choice
from protomask.engine import Progress
from protomask.errors import InputError, expected
from protomask.model import Contract
from protomask.records import Targets


@dataclass(frozen=True, eq=False)
class Request:
    """Everything a localiser is told. The model is frozen and in evaluation mode.

    Attributes:
        model: the contract with its defaults filled in.
        images: [B, C, H, W] model-ready.
        targets: the N pairs; all of them have something to locate.
        before: [N] activations on the whole images.
        floors: [N] activations of nothing.
        seed: of whatever the method draws; draws depend on it and on the pair alone, never on its company.
        batch: images in one network pass.
        regions: [N, H, W] bool, the annotated part or object of each pair, or None; only controls look at it.
        boxes: [N, 4] xyxy, the annotated object's box, NaN where unknown, or None; only controls look at it.
        progress: told of forward + input-gradient passes made.
        image_ids: B names of the images, or None; only methods that look maps up by name need them.
    """

    model: Contract
    images: Tensor
    targets: Targets
    before: Tensor
    floors: Tensor
    seed: int = 0
    batch: int = 32
    regions: Tensor | None = None
    boxes: Tensor | None = None
    progress: Progress | None = None
    image_ids: tuple[str, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images, pixels."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True, eq=False)
class Maps:
    """What a localiser gives back.

    Attributes:
        maps: [N, H, W] float in [0, 1], finite.
        masks: True where they are masks, whose sum is an area; False where only the ranking counts.
        vectors: scale -> [N, s, s] trained mask vectors; empty where none are trained.
        fill: the fill that the method optimised or perturbed with; empty where it did neither.
        after: [N] activations under the maps as soft masks, from a method that has fills of its own.
    """

    maps: Tensor
    masks: bool = False
    vectors: Mapping[int, Tensor] = field(default_factory=dict)
    fill: str = ""
    after: Tensor | None = None


class Localiser(Protocol):
    """A callable from a request to maps.

    Attributes:
        passes: forward + input-gradient passes per pair; 0 where one forward pass per image is all.

    A method that makes forward passes only, which serve all prototypes of an image, says how many in an attribute of
    its own, ``image_passes`` (:func:`image_passes_of`); its ``passes`` are 0.
    """

    @property
    def passes(self) -> float:
        """Forward + input-gradient passes per pair."""
        ...

    def __call__(self, request: Request) -> Maps:
        """The maps of the request's N pairs."""
        ...


@dataclass(frozen=True)
class Registered:
    """A localiser by name.

    Attributes:
        name: as it stands in Python, on the command line and in files.
        sentence: what it does, in one line.
        make: builds it from its settings.
        control: True for the controls, which look at the annotation or at nothing.
    """

    name: str
    sentence: str
    make: Callable[..., Localiser]
    control: bool = False


LOCALISERS: dict[str, Registered] = {}

_NOISE = 16  # machine epsilons

Made = TypeVar("Made", bound=Callable[..., Any])


def register(name: str, sentence: str, *, control: bool = False) -> Callable[[Made], Made]:
    """Makes a localiser (a frozen dataclass, or a factory of one) known under a name.

    What is built must have ``passes`` (:class:`Localiser`), which is asked for when it is built.

    Raises:
        InputError: the name is taken.
    """

    def keep(make: Made) -> Made:
        if name in LOCALISERS:
            raise InputError(expected("name", "one that is not registered yet", repr(name)))
        LOCALISERS[name] = Registered(name, sentence, make, control)
        return make

    return keep


def make_localiser(method: str, settings: Mapping[str, object]) -> Localiser:
    """The registered localiser with these settings.

    Raises:
        InputError: an unknown method, a setting that it does not have, or a localiser that tells no ``passes``.
    """
    check_choice("method", method, tuple(LOCALISERS))
    make = LOCALISERS[method].make
    known = [f.name for f in fields(make) if f.init] if hasattr(make, "__dataclass_fields__") else None  # type: ignore[arg-type]
    unknown = [s for s in settings if known is not None and s not in known]
    if unknown:
        wanted = "one of " + ", ".join(known) if known else "no settings"
        raise InputError(expected(f"settings of {method}", wanted, ", ".join(unknown)))
    _check_call(method, make, settings)
    made = make(**settings)
    if not hasattr(made, "passes"):
        wanted = "its forward + input-gradient passes per pair (0 where one forward pass per image is all)"
        raise InputError(expected(f"passes of {method}", wanted, "no such attribute"))
    return made


def _check_call(method: str, make: Callable[..., Localiser], settings: Mapping[str, object]) -> None:
    """InputError unless a factory takes these settings by name."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return  # a built-in that tells nothing of itself
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise InputError(expected(f"settings of {method}", f"those of {signature}", error)) from error


def image_passes_of(localiser: object) -> float:
    """Forward passes per image that serve all its prototypes: the localiser's ``image_passes``, 0 where it has none."""
    return float(getattr(localiser, "image_passes", 0.0))


def settings_of(localiser: object) -> dict[str, object]:
    """The settings of a localiser as plain values: its ``settings``, else its fields, else none."""
    own = getattr(localiser, "settings", None)
    if isinstance(own, Mapping):
        return dict(own)
    if not hasattr(localiser, "__dataclass_fields__"):
        return {}
    return {f.name: getattr(localiser, f.name) for f in fields(localiser) if f.init}  # type: ignore[arg-type]


def smoothed(maps: Tensor, share: float) -> Tensor:
    """Maps [N, H, W] blurred with a Gaussian of sigma ``share`` x the shorter side; as they are where it is 0.

    Each by itself, and copied to one place first, since the rounding of a matrix product may depend on the number and
    the alignment of what it is given; that is ten times faster than sums in a fixed order. A constant map stays what it
    is: rounding would give it a shape, and :func:`scaled` would blow that up.
    """
    if not share or len(maps) == 0:
        return maps
    own, blurred = torch.empty_like(maps[0]), torch.empty_like(maps)
    for row, values in enumerate(maps):
        blurred[row] = gaussian_blur(own.copy_(values), share * min(maps.shape[1:]), repeatable=False)
    flat = maps.flatten(1)
    constant = (flat == flat[:, :1]).all(1)
    return torch.where(constant[:, None, None], maps, blurred)


def scaled(maps: Tensor) -> Tensor:
    """Each map by its own minimum and maximum to [0, 1]: [N, H, W] -> [N, H, W].

    A constant map becomes zeros, as does one whose values differ by less than :data:`_NOISE` machine epsilons of the
    largest: that is rounding, such as upsampling makes of equal cells, and would become a map out of nothing.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    noise = _NOISE * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    told = span > noise
    return torch.where(told, (maps - low) / span.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps))
