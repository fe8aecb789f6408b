"""Is a prototype about one part? Scores per prototype, over all images on which it was located.

N located (image, prototype) pairs with K annotated parts each: which parts lie in the region (``hits``) and which are
visible at all (``visible``); ``prototypes`` [N] groups the rows. One value per prototype asked for, in its order, NaN
where none of its images can say. The driver :mod:`protomask.prototype_scores` makes the rows.

Source: consistency and stability from EvalProtoPNet (Huang et al., ICCV 2023), purity from PIP-Net (Nauta et al., CVPR
2023). Two defects of the published code are mended, and kept under ``mode="published"`` for comparability:

- A part that is visible in a single image, and lies in the region there, has a share of 1, so one lucky image makes a
  prototype consistent, or pure. Ours asks for a part seen at least twice.
- A prototype whose region holds no part at all, with noise and without, has equal vectors and counts as perfectly
  stable. Ours counts it as not stable: nothing was found, twice.

A prototype none of whose images shows a part is published as not consistent; ours is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protomask.checks import check_choice, check_number, check_tensor
from protomask.errors import InputError, expected

MODES = ("fixed", "published")
THRESHOLD = 0.8
SEEN = 2
SIDES = ("left", "right")


def parts_in_box(peaks: Tensor, points: Tensor, half: Tensor | float) -> tuple[Tensor, Tensor]:
    """Which parts lie in the square of half-side ``half`` round each peak: hits and visible, [N, K] bool each.

    EvalProtoPNet takes 36 pixels of 224, PIP-Net a patch of 32. A square of fixed size, and not a method's region, so
    that no method gains by a larger one. Points must be in the frame that the peaks are in: where images are cropped,
    the annotation moves along (as :class:`protomask.data.sample.Sample` does); published code that leaves them behind
    scores other places.

    Args:
        peaks: [N, 2] (x, y) pixels.
        points: [N, K, 2] float (x, y) pixels, NaN where a part is not visible.
        half: pixels, one number or [N].
    """
    check_tensor("points", points, (len(peaks), "K", 2), finite=False)
    visible = ~points.isnan().any(2)
    reach = torch.as_tensor(half, dtype=torch.float64).reshape(-1, 1, 1)
    away = (points.double() - peaks.double()[:, None]).abs()
    return (away <= reach).all(2) & visible, visible


def merged_sides(hits: Tensor, visible: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Left and right parts as one (PIP-Net merges them): hit where either is, visible where either is.

    Args:
        hits: [N, K] bool.
        visible: [N, K] bool.
        names: K names; those that differ only in the words left and right are merged, at the first one's place.

    Returns:
        hits and visible, [N, K'] bool.
    """
    _check_rows(hits, visible)
    if len(names) != hits.shape[1]:
        raise InputError(expected("names", f"{hits.shape[1]} names of parts", len(names)))
    plain = [" ".join(word for word in name.lower().split() if word not in SIDES) for name in names]
    groups = [[k for k, other in enumerate(plain) if other == name] for name in dict.fromkeys(plain)]
    merged = [torch.stack([rows[:, group].any(1) for group in groups], 1) for rows in (hits, visible)]
    return merged[0], merged[1]


def consistency(
    hits: Tensor,
    visible: Tensor,
    prototypes: Tensor,
    wanted: Tensor,
    *,
    threshold: float = THRESHOLD,
    mode: str = "fixed",
) -> Tensor:
    """1 where one part lies in the region on at least ``threshold`` of the images on which that part is visible.

    Source: EvalProtoPNet (Huang et al. 2023). Range {0, 1}; higher is better. NaN where no part is visible often enough
    to say (twice); published: 0 where none is visible at all. Pitfall: any map that always points at one spot of an
    aligned object is consistent: show the ``centre`` control.

    Args:
        hits: [N, K] bool.
        visible: [N, K] bool.
        prototypes: [N] int64.
        wanted: [P'] int64, the prototypes to score.
        threshold: .8 as published.
        mode: ``"fixed"`` or ``"published"``: a part seen once counts.

    Returns:
        [P'] float64.
    """
    check_number("threshold", threshold, 0, 1)
    shares = _shares(hits, visible, prototypes, wanted, mode)
    found = (shares >= threshold).any(1).double()
    unknown = shares.isnan().all(1)
    if mode == "published":
        unknown &= ~_members(prototypes, wanted, len(hits)).any(1)
    return found.masked_fill(unknown, torch.nan)


def purity(hits: Tensor, visible: Tensor, prototypes: Tensor, wanted: Tensor, *, mode: str = "fixed") -> Tensor:
    """The highest share, over parts, of images on which the part lies in the region, of those where it is visible.

    Source: PIP-Net (Nauta et al. 2023), which takes each prototype's ten most activated images and merges left and
    right (:func:`merged_sides`). Range [0, 1]; higher is better. NaN where no part is visible often enough to say.
    Pitfalls: as :func:`consistency`; a larger square is purer, so its side must be stated; the maximum over parts is
    biased upwards where images are few.

    Args:
        hits: [N, K] bool.
        visible: [N, K] bool.
        prototypes: [N] int64.
        wanted: [P'] int64, the prototypes to score.
        mode: ``"fixed"`` or ``"published"``: a part seen once counts.

    Returns:
        [P'] float64.
    """
    shares = _shares(hits, visible, prototypes, wanted, mode)
    return shares.nan_to_num(-1).amax(1).masked_fill(shares.isnan().all(1), torch.nan)


def stability(
    hits: Tensor,
    noisy: Tensor,
    prototypes: Tensor,
    wanted: Tensor,
    *,
    visible: Tensor | None = None,
    mode: str = "fixed",
) -> Tensor:
    """The share of images whose region holds the same parts with noise on the image as without.

    Source: EvalProtoPNet (Huang et al. 2023). Noise of standard deviation .2, clipped at .25, in model-ready units, as
    published, but seeded. Range [0, 1]; higher is better. NaN where the prototype has no image (none that shows a part,
    where ``visible`` is given). Pitfalls: unseeded noise makes the published number differ from run to run; a region
    that holds no part is stable there (not here); a map that ignores the image is perfectly stable: show the ``centre``
    control.

    Args:
        hits: [N, K] bool, without noise.
        noisy: [N, K] bool, with.
        prototypes: [N] int64.
        wanted: [P'] int64, the prototypes to score.
        visible: [N, K] bool; images that show no part at all cannot say, and are left out. None: all count.
        mode: ``"fixed"`` or ``"published"``: two empty vectors are stable, and no image is left out.

    Returns:
        [P'] float64.
    """
    check_choice("mode", mode, MODES)
    _check_rows(hits, noisy)
    same = (hits == noisy).all(1)
    members = _members(prototypes, wanted, len(hits))
    if mode == "fixed":
        same = same & hits.any(1)
        if visible is not None:
            _check_rows(hits, visible)
            members = members & visible.any(1)
    return (members.double() @ same.double()) / members.sum(1)


def _shares(hits: Tensor, visible: Tensor, prototypes: Tensor, wanted: Tensor, mode: str) -> Tensor:
    """[P', K] float64, the share of the images showing a part on which it is hit; NaN where it is shown too seldom."""
    check_choice("mode", mode, MODES)
    _check_rows(hits, visible)
    members = _members(prototypes, wanted, len(hits)).double()
    shown = members @ visible.double()
    seldom = shown < (SEEN if mode == "fixed" else 1)
    return (members @ (hits & visible).double() / shown).masked_fill(seldom, torch.nan)


def _members(prototypes: Tensor, wanted: Tensor, n: int) -> Tensor:
    """[P', N] bool: which rows are of which prototype."""
    if prototypes.dtype != torch.int64 or prototypes.shape != (n,):
        raise InputError(
            expected("prototypes", f"an int64 tensor [{n}]", f"{prototypes.dtype} {list(prototypes.shape)}")
        )
    return wanted[:, None] == prototypes[None, :]


def _check_rows(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.bool or b.dtype != torch.bool or a.dim() != 2 or a.shape != b.shape:
        came = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        raise InputError(expected("part vectors", "two bool tensors [N, K]", came))
