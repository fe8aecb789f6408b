"""Wrong versus right: the same images under two methods, with the part that the prototype responds to outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from protomask.checks import check_number
from protomask.errors import InputError, expected
from protomask.visualise.palette import FAINT, INK, method_colour
from protomask.visualise.sheet import GAP, MARGIN, disc_at, picture_at, sheet, text_at, wrap
from protomask.visualise.view import View, spotlit

_LABEL = 1.5  # inches, the column of row labels
_CAPTION = 0.22


@dataclass(frozen=True, eq=False)
class Contrast:
    """One image under two methods.

    Attributes:
        wrong: the image with the first method's region (or box) and the annotated part; its caption goes below.
        right: the same image with the second method's.
        caption: a few words for above the image.
    """

    wrong: View
    right: View
    caption: str = ""


def wrong_versus_right(
    rows: Sequence[Contrast],
    *,
    wrong: str = "upsampling",
    right: str = "mdm",
    wrong_label: str = "Upsampled similarity map",
    right_label: str = "MDM",
    truth_label: str = "the part that the prototype responds to",
    width: float = 9.0,
) -> Figure:
    """Images in columns: above the image itself, then the region of the wrong method, then that of the right one.

    Args:
        rows: three or four images, each under both methods.
        wrong, right: the methods' names, for their colours.
        wrong_label, right_label: what to call them.
        truth_label: what the white outline is.
        width: inches; the text is legible where an inch is shown on 100 pixels (900 pixels for the whole).

    Returns:
        A figure with three axes per image, labelled ``image 0``, ``wrong 0``, ``right 0``.

    Raises:
        InputError: no rows, or a width below 4 inches.
    """
    if not rows:
        raise InputError(expected("rows", "at least one", "none"))
    check_number("width", width, 4)
    head = 0.44 if any(row.caption for row in rows) else MARGIN
    below = _CAPTION if any(v.caption for row in rows for v in (row.wrong, row.right)) else 0.0
    cell = (width - MARGIN - _LABEL - MARGIN + GAP) / len(rows) - GAP
    tops = (head, head + cell + GAP, head + 2 * (cell + GAP) + below)
    figure = sheet(width, tops[2] + cell + below + 0.36)
    labels = (("Image", None), (wrong_label, method_colour(wrong)), (right_label, method_colour(right)))
    for (name, colour), y in zip(labels, tops, strict=True):
        _row_label(figure, name, colour, y + cell / 2)
    for k, row in enumerate(rows):
        x = MARGIN + _LABEL + k * (cell + GAP)
        text_at(figure, x, 0.16, row.caption, 10, width=cell)
        plain = View(row.right.image, annotation=row.right.annotation)
        views = {"image": plain, "wrong": row.wrong, "right": row.right}
        for (name, view), (_, colour), y in zip(views.items(), labels, tops, strict=True):
            drawn = spotlit(view, colour or INK)
            picture_at(figure, drawn, x, y, cell, cell, f"{name} {k}")
            text_at(figure, x, y + cell + 0.03, view.caption, 9, width=cell, color=FAINT)
    text_at(figure, MARGIN + _LABEL, tops[2] + cell + below + 0.09, f"White outline: {truth_label}.", 10, color=FAINT)
    return figure


def _row_label(figure: Figure, name: str, colour: str | None, middle: float) -> None:
    lines = wrap(name, _LABEL - 0.2, 11, "bold", 4)
    text_at(figure, MARGIN, middle, "\n".join(lines), 11, weight="bold", va="center")
    if colour is not None:
        disc_at(figure, MARGIN + 0.07, middle - 0.1 * len(lines) - 0.14, colour, 9)
