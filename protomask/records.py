"""Frozen records that pass between the stages: what to locate, and what was found.

Axes: N (image, prototype) pairs, S scales, H, W image pixels. Boxes are xyxy in pixels with exclusive end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from protomask.checks import check_count, check_tensor
from protomask.errors import InputError, expected


@dataclass(frozen=True, eq=False)
class Targets:
    """The pairs to locate, in order.

    Attributes:
        images: [N] int64, index of the image within its batch.
        prototypes: [N] int64, index of the prototype.
    """

    images: Tensor
    prototypes: Tensor

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("prototypes", self.prototypes)):
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 1:
                raise InputError(expected(f"Targets.{name}", "an int64 tensor [N]", _kind(value)))
        if len(self.images) != len(self.prototypes):
            raise InputError(
                expected("Targets.prototypes", f"{len(self.images)} entries, one per image", len(self.prototypes))
            )
        if len(self.images) == 0:
            raise InputError(expected("targets", "at least one (image, prototype) pair", "none"))

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.images.tolist(), self.prototypes.tolist(), strict=True))

    def __getitem__(self, chosen: Tensor | slice) -> Targets:
        return Targets(self.images[chosen], self.prototypes[chosen])


@dataclass(frozen=True, eq=False)
class Localisation:
    """Where a method finds each target: one row per (image, prototype) pair.

    Attributes:
        method: the localiser's name.
        targets: the N pairs.
        maps: [N, H, W] float, in [0, 1], higher where the method sees the prototype.
        boxes: [N, 4] int64 xyxy pixels, exclusive end: the box of the region of each map.
        peaks: [N, 2] int64 (x, y) of each map's highest pixel.
        activations_before: [N] the prototype's activation on the image.
        activations_after: [N] its activation when the map, as a soft mask, keeps the image and a fill replaces the
            rest: the method's own, or the mean colour for a method that has none. MDM's is that of the trained mask,
            before gradients weigh it.
        scores: [N] the relative activation kept, (after - floor) / (before - floor); NaN where nothing was to locate.
        located: [N] bool, False where there was nothing to locate or the map says nothing.
        reasons: N strings, empty where located: ``"activation at or below its floor"`` or ``"constant map"``.
        masks: True where maps are masks (1 keeps a pixel), whose sum is an area; False where they are only rankings.
        mask_vectors: scale -> [N, s, s] trained mask vectors in [0, 1]; empty for methods that train none.
        fill: what the method optimised with, several names joined by ``+``; empty where it optimised nothing.
        settings: the method's settings, as plain values.
    """

    method: str
    targets: Targets
    maps: Tensor
    boxes: Tensor
    peaks: Tensor
    activations_before: Tensor
    activations_after: Tensor
    scores: Tensor
    located: Tensor
    reasons: tuple[str, ...]
    masks: bool = False
    mask_vectors: Mapping[int, Tensor] = field(default_factory=dict)
    fill: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.targets, Targets):
            raise InputError(expected("Localisation.targets", "a Targets record", _kind(self.targets)))
        n = len(self.targets)
        for name, kind in (
            ("method", str),
            ("fill", str),
            ("masks", bool),
            ("mask_vectors", Mapping),
            ("settings", Mapping),
        ):
            if not isinstance(getattr(self, name), kind):
                raise InputError(expected(f"Localisation.{name}", f"a {kind.__name__}", _kind(getattr(self, name))))
        check_tensor("Localisation.maps", self.maps, (n, "H", "W"))
        for name, width in (("boxes", 4), ("peaks", 2)):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != (n, width):
                raise InputError(expected(f"Localisation.{name}", f"an int64 tensor [{n}, {width}]", _kind(value)))
        for name in ("activations_before", "activations_after", "scores"):
            check_tensor(f"Localisation.{name}", getattr(self, name), (n,), finite=False)
        if not isinstance(self.located, Tensor) or self.located.dtype != torch.bool or self.located.shape != (n,):
            raise InputError(expected("Localisation.located", f"a bool tensor [{n}]", _kind(self.located)))
        if not _texts(self.reasons, n):
            raise InputError(expected("Localisation.reasons", f"a tuple of {n} strings", _kind(self.reasons)))
        for scale, vectors in self.mask_vectors.items():
            check_count("Localisation.mask_vectors: scale", scale)
            check_tensor(f"Localisation.mask_vectors[{scale}]", vectors, (n, scale, scale))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, chosen: Tensor | slice) -> Localisation:
        """The rows chosen by a slice, a boolean [N] or an index tensor, as a Localisation of their own."""
        rows = torch.arange(len(self))[chosen]
        named = ("targets", "maps", "boxes", "peaks", "activations_before", "activations_after", "scores", "located")
        parts = {name: getattr(self, name)[rows] for name in named}
        reasons = tuple(self.reasons[i] for i in rows.tolist())
        vectors = {scale: v[rows] for scale, v in self.mask_vectors.items()}
        return replace(self, **parts, reasons=reasons, mask_vectors=vectors)

    @staticmethod
    def join(parts: list[Localisation]) -> Localisation:
        """Consecutive parts of one run (same method and settings) as one record, in the order given."""
        if not parts:
            raise InputError(expected("parts", "at least one Localisation", "none"))
        first = parts[0]
        if any(p.method != first.method or dict(p.settings) != dict(first.settings) for p in parts):
            raise InputError(expected("parts", "one method with one set of settings", {p.method for p in parts}))
        named = ("maps", "boxes", "peaks", "activations_before", "activations_after", "scores", "located")
        joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in named}
        targets = Targets(
            torch.cat([p.targets.images for p in parts]), torch.cat([p.targets.prototypes for p in parts])
        )
        reasons = tuple(r for p in parts for r in p.reasons)
        vectors = {s: torch.cat([p.mask_vectors[s] for p in parts]) for s in first.mask_vectors}
        return replace(first, targets=targets, **joined, reasons=reasons, mask_vectors=vectors)


def _texts(value: object, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count and all(isinstance(text, str) for text in value)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
