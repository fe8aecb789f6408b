"""What maps are compared with: one row per (image, prototype) pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protomask.checks import check_choice, check_tensor
from protomask.errors import InputError, expected

KINDS = ("part", "segmentation", "object")
"""What a region is: the pixels of the causal part, of the whole object, or only the object's box filled."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The annotation of N pairs, moved along to the maps' frame.

    Attributes:
        regions: [N, H, W] bool, what a map is compared with; a row that is all False is undefined. None: no regions.
        kind: one of :data:`KINDS`. The IoU of a prototype's region with a box of the whole object says nothing, so
            the IoU metrics are undefined for ``"object"``.
        boxes: [N, 4] float, the *object's* box, xyxy in pixels, exclusive end; NaN rows where unknown, or None.
        points: [N, 2] float (x, y) pixels, the centre of the causally determined part, counted as peaks are (the
            centre of the first pixel is 0); NaN rows where there is no clear winner, or None.
        radii: [N] float pixels, .05 x the diagonal of the object's box; given wherever points are.
        groups: N names of the clusters that intervals resample (the image, or the patient).
    """

    regions: Tensor | None
    kind: str
    boxes: Tensor | None
    points: Tensor | None
    radii: Tensor | None
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.groups)
        check_choice("Truth.kind", self.kind, KINDS)
        if self.regions is not None:
            check_regions("Truth.regions", self.regions, n)
        for name, shape in (("boxes", (n, 4)), ("points", (n, 2)), ("radii", (n,))):
            value = getattr(self, name)
            if value is not None:
                check_tensor(f"Truth.{name}", value, shape, finite=False)
        if self.points is not None and self.radii is None:
            raise InputError(expected("Truth.radii", "radii beside the points", None))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, chosen: Tensor | slice) -> Truth:
        """The rows chosen by a slice, a boolean [N] or an index tensor, as a Truth of their own."""
        rows = torch.arange(len(self))[chosen]
        regions, boxes, points, radii = (_rows(v, rows) for v in (self.regions, self.boxes, self.points, self.radii))
        groups = tuple(self.groups[i] for i in rows.tolist())
        return Truth(regions, self.kind, boxes, points, radii, groups)

    @staticmethod
    def join(parts: Sequence[Truth]) -> Truth:
        """Consecutive parts of one data set (same kind, same size) as one record, in the order given.

        A field that only some parts have is undefined (all False, NaN) in the rows of the others.

        Raises:
            InputError: no part, or parts of different kinds or sizes.
        """
        if not parts:
            raise InputError(expected("parts", "at least one Truth", "none"))
        if len({p.kind for p in parts}) > 1:
            raise InputError(expected("parts", "one kind of truth", sorted({p.kind for p in parts})))
        regions, boxes, points, radii = (_joined(name, parts) for name in ("regions", "boxes", "points", "radii"))
        return Truth(regions, parts[0].kind, boxes, points, radii, tuple(g for p in parts for g in p.groups))


def check_regions(name: str, value: object, n: int) -> Tensor:
    """``value`` as it came, if it is a bool tensor [n, H, W]; else InputError."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.dim() != 3 or len(value) != n:
        came = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(expected(name, f"a bool tensor [{n}, H, W]", came))
    return value


def _rows(value: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if value is None else value[rows.to(value.device)]


def _joined(name: str, parts: Sequence[Truth]) -> Tensor | None:
    given = [getattr(p, name) for p in parts]
    first = next((v for v in given if v is not None), None)
    if first is None:
        return None
    if any(v is not None and v.shape[1:] != first.shape[1:] for v in given):
        raise InputError(expected(f"Truth.{name}", "one size", sorted({tuple(v.shape[1:]) for v in given})))
    unknown = False if first.dtype == torch.bool else torch.nan
    rows = [
        first.new_full((len(p), *first.shape[1:]), unknown) if v is None else v
        for p, v in zip(parts, given, strict=True)
    ]
    return torch.cat(rows)
