"""This looks like that, and the bank of a class's prototypes (Chen et al., NeurIPS 2019, figures 1 and 5).

Every view carries its region or box in its own image's pixels; cut-outs are made here, with some context around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from protomask.errors import InputError, expected
from protomask.visualise import overlay
from protomask.visualise.palette import FAINT, INK, method_colour
from protomask.visualise.sheet import GAP, MARGIN, axes_at, picture_at, sheet, text_at, wrap_name
from protomask.visualise.view import View, picture, spotlit
from protomask.visualise.wording import TIMES, number

_LARGE, _SMALL, _BAR = 1.75, 1.3, 2.6  # inches: whole images, cut-outs, the column of bars


@dataclass(frozen=True, eq=False)
class Likeness:
    """One row of "this looks like that": a prototype on the image, and on the training image that it came from.

    Attributes:
        prototype: its name.
        test: where it is on the explained image.
        source: where it is on its own training image.
        activation: its activation on the explained image.
        weight: its weight for the class.
    """

    prototype: str
    test: View
    source: View
    activation: float
    weight: float

    @property
    def contribution(self) -> float:
        """What the prototype adds to the class's score: activation times weight."""
        return self.activation * self.weight


@dataclass(frozen=True, eq=False)
class Patch:
    """Where a prototype is on one image.

    Attributes:
        view: the image with the region or box found on it.
        activation: the prototype's activation on the image; None where it is not to be printed.
    """

    view: View
    activation: float | None = None


@dataclass(frozen=True, eq=False)
class BankRow:
    """One prototype of a class, with the patches nearest to it.

    Attributes:
        prototype: its name.
        source: where it is on its own training image.
        nearest: the nearest patches, closest first.
    """

    prototype: str
    source: Patch
    nearest: tuple[Patch, ...] = ()


def looks_like(
    rows: Sequence[Likeness],
    *,
    class_name: str,
    title: str = "",
    method: str = "mdm",
    score: float | None = None,
    count: int | None = None,
) -> Figure:
    """This looks like that: per prototype, the region on the image, the prototype's source, and what it contributes.

    Columns: the image with the region; the region cut out; the source's region cut out; the source with its region;
    activation x weight = contribution, in numbers and as a bar. Below, the sum, and with ``score`` what is not shown.

    Args:
        rows: prototypes in the order shown.
        class_name: the class that the weights are for.
        title: above the figure.
        method: whose colour the regions are drawn in.
        score: the class's score (its logit); None leaves the line of all other prototypes out.
        count: how many prototypes the rows were chosen from, said where it is more than are shown.

    Returns:
        A figure with five axes per row, labelled ``test 0``, ``test part 0``, ``source part 0``, ``source 0`` and
        ``bar 0``.

    Raises:
        InputError: no rows.
    """
    _some(rows)
    colour, top, pitch = method_colour(method), 0.88 if title else 0.5, _LARGE + 0.3
    xs = [MARGIN]
    for width in (_LARGE + 0.16, _SMALL + 0.34, _SMALL + 0.34, _LARGE + 0.35):
        xs.append(xs[-1] + width)
    figure = sheet(xs[-1] + _BAR + MARGIN, top + len(rows) * pitch + (0.8 if score is not None else 0.4))
    text_at(figure, MARGIN, 0.16, title, 12, width=xs[-1] + _BAR - MARGIN, weight="bold")
    heads = ("this image", "this part", "looks like that part", "of this training image", f"score for {class_name}")
    for x, head, width in zip(xs, heads, (_LARGE, _SMALL, _SMALL + 0.3, _LARGE, _BAR), strict=True):
        text_at(figure, x, top - 0.26, head, 9.5, width=width, color=FAINT)
    values = [row.contribution for row in rows]
    span = (min(0.0, *values), max(0.0, *values))
    for k, row in enumerate(rows):
        _likeness(figure, row, k, xs, top + k * pitch, colour)
        _contribution(figure, row, k, xs[-1], top + k * pitch, span)
    _sum(figure, rows, xs[-1], top + len(rows) * pitch - 0.02, score, count)
    return figure


def prototype_bank(class_name: str, rows: Sequence[BankRow], *, title: str = "", method: str = "mdm") -> Figure:
    """The bank of a class's prototypes: each on its own training image, then cut-outs of the patches nearest to it.

    Args:
        class_name: the class.
        rows: one per prototype.
        title: above the figure; by default the class and the number of its prototypes.
        method: whose colour the regions are drawn in.

    Returns:
        A figure with one axes per picture, labelled ``source 0``, ``nearest 0.0``, ``nearest 0.1``, ...

    Raises:
        InputError: no rows.
    """
    _some(rows)
    colour, most = method_colour(method), max(len(row.nearest) for row in rows)
    top, label, pitch = 0.88, 1.35, _LARGE + 0.36
    start = MARGIN + label + _LARGE + 0.3
    figure = sheet(max(4.2, start + most * (_SMALL + GAP) - GAP + MARGIN), top + len(rows) * pitch)
    heading = title or f"{class_name}: {len(rows)} prototype{'s' if len(rows) > 1 else ''}"
    text_at(figure, MARGIN, 0.16, heading, 12, width=float(figure.get_figwidth()) - 2 * MARGIN, weight="bold")
    text_at(figure, MARGIN + label, top - 0.26, "its training image", 9.5, color=FAINT)
    text_at(figure, start, top - 0.26, "nearest patches, closest first" if most else "", 9.5, color=FAINT)
    for k, row in enumerate(rows):
        y = top + k * pitch
        text_at(figure, MARGIN, y, row.prototype, 9.5, width=label - 0.15, lines=4, weight="bold")
        _patch(
            figure,
            row.source,
            spotlit(row.source.view, colour),
            (MARGIN + label, y, _LARGE),
            f"source {k}",
        )
        for j, near in enumerate(row.nearest):
            place = (start + j * (_SMALL + GAP), y + (_LARGE - _SMALL) / 2, _SMALL)
            _patch(figure, near, _part(near.view, colour), place, f"nearest {k}.{j}")
    return figure


def _likeness(figure: Figure, row: Likeness, k: int, xs: Sequence[float], y: float, colour: str) -> None:
    lower = y + (_LARGE - _SMALL) / 2
    picture_at(figure, spotlit(row.test, colour), xs[0], y, _LARGE, _LARGE, f"test {k}")
    picture_at(figure, _part(row.test, colour), xs[1], lower, _SMALL, _SMALL, f"test part {k}")
    picture_at(figure, _part(row.source, colour), xs[2], lower, _SMALL, _SMALL, f"source part {k}")
    picture_at(figure, spotlit(row.source, colour), xs[3], y, _LARGE, _LARGE, f"source {k}")
    text_at(figure, xs[0], y + _LARGE + 0.04, row.test.caption, 8, width=_LARGE, color=FAINT)
    text_at(figure, xs[3], y + _LARGE + 0.04, row.source.caption, 8, width=_LARGE, color=FAINT)


def _contribution(figure: Figure, row: Likeness, k: int, x: float, y: float, span: tuple[float, float]) -> None:
    middle = y + _LARGE / 2
    name = wrap_name(row.prototype, _BAR, 9.5, "bold")
    text_at(figure, x, middle - 0.42 - 0.18 * (len(name) - 1), "\n".join(name), 9.5, weight="bold")
    product = f"{number(row.activation)} {TIMES} {number(row.weight)} = {number(row.contribution)}"
    text_at(figure, x, middle - 0.2, product, 9.5, width=_BAR)
    axes = axes_at(figure, x, middle + 0.04, _BAR, 0.16, f"bar {k}")
    # Grey, not a method's colour: the side of the line says whether it speaks for the class or against it.
    axes.barh([0], [row.contribution], height=0.8, color="#8C8C8C")
    axes.axvline(0, color=INK, lw=1)
    reach = (span[1] - span[0]) or 1.0
    axes.set(xlim=(span[0] - 0.01 * reach, span[1] + 0.01 * reach), ylim=(-0.5, 0.5))
    axes.set_axis_off()


def _sum(figure: Figure, rows: Sequence[Likeness], x: float, y: float, score: float | None, count: int | None) -> None:
    shown = sum(row.contribution for row in rows)
    chosen = f" of {count}" if count is not None and count > len(rows) else ""
    lines = [(shown, f"from the {len(rows) if len(rows) > 1 else 'one'} shown{chosen}", "normal")]
    if score is not None:
        lines += [(score - shown, "from all others", "normal"), (score, "in all", "bold")]
    for k, (value, words, weight) in enumerate(lines):
        text_at(figure, x + 0.5, y + 0.19 * k, number(value), 9.5, ha="right", weight=weight)
        text_at(figure, x + 0.6, y + 0.19 * k, words, 9.5, width=_BAR - 0.6, weight=weight)


def _patch(figure: Figure, patch: Patch, drawn: np.ndarray, place: tuple[float, float, float], label: str) -> None:
    x, y, side = place
    picture_at(figure, drawn, x, y, side, side, label)
    activation = "" if patch.activation is None else number(patch.activation)
    words = "  ".join(w for w in (activation, patch.view.caption) if w)
    text_at(figure, x, y + side + 0.04, words, 8.5, width=side, color=FAINT)


def _part(view: View, colour: str, context: float = 0.5) -> np.ndarray:
    """The region's surroundings cut out of the view, the region outlined: a square with half a box of context.

    A blank where nothing was located: the whole image there would pass for a part of it.
    """
    height, width = view.image.shape[:2]
    box = _box_of(view)
    if box is None:
        return np.full((8, 8, 3), 238, np.uint8)
    _, (x0, y0, x1, y1) = overlay.crop(view.image, box, context, minimum=max(8, min(height, width) // 5))
    window = (slice(y0, y1), slice(x0, x1))
    shift = np.array([x0, y0], dtype=np.float64)
    moved = None if view.region is not None else np.asarray(box, dtype=np.float64) - np.tile(shift, 2)
    region = None if view.region is None else view.region[window]
    return picture(View(view.image[window].copy(), region=region, box=moved), colour)


def _box_of(view: View) -> np.ndarray | None:
    if view.box is not None:
        box = np.asarray(view.box, dtype=np.float64)
    elif view.region is not None and view.region.any():
        rows, columns = (np.flatnonzero(view.region.any(axis)) for axis in (1, 0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    else:
        return None
    return box if box[2] > box[0] and box[3] > box[1] else None


def _some(rows: Sequence[object]) -> None:
    if not rows:
        raise InputError(expected("rows", "at least one", "none"))
