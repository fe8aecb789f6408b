"""One image under several methods, side by side.

Axes: H x W pixels of the image, K points. Boxes are xyxy in pixels with exclusive end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from protomask.checks import check_array, check_count
from protomask.errors import InputError, expected
from protomask.visualise.palette import FAINT, INK, method_colour
from protomask.visualise.sheet import GAP, MARGIN, disc_at, picture_at, sheet, text_at, wrap, wrap_name
from protomask.visualise.view import View, picture, stretched
from protomask.visualise.wording import short

_CELL = 2.1  # inches, the width of a picture
_SIZE = 8.5  # points, of captions
_DOT = " \N{MIDDLE DOT} "


def method_panel(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    boxes: Mapping[str, Sequence[float] | np.ndarray],
    *,
    title: str = "",
    regions: Mapping[str, np.ndarray] | None = None,
    peaks: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    annotation: np.ndarray | None = None,
    points: np.ndarray | None = None,
    scores: Mapping[str, Mapping[str, float | None]] | None = None,
    notes: Mapping[str, str] | None = None,
    columns: int = 4,
    size: tuple[int, int] | None = None,
) -> Figure:
    """One image under several methods: the image first, then each method's map with its region, box and peak.

    Args:
        image: [H, W, 3] uint8.
        maps: method -> [H, W] in [0, 1], in the order shown.
        boxes: method -> xyxy; a method may be missing.
        title: above the panel.
        regions: method -> [H, W] bool; where given, the region is outlined and its box drawn finely.
        peaks: method -> (x, y).
        annotation: [H, W] bool, the annotated part, outlined in white on every picture.
        points: [K, 2] annotated points (x, y), drawn on the first picture; NaN where not visible.
        scores: method -> short name -> value, printed below the picture as in ``IoU .71``; NaN and None as a dash.
        notes: method -> words below the picture, such as ``"constant map"`` where nothing was located.
        columns: pictures per row.
        size: (height, width) in pixels that all is stretched to (:func:`protomask.visualise.view.stretched`); the
            image's own where None.

    Returns:
        A figure with one axes per picture, labelled ``image`` or with the method's name.

    Raises:
        InputError: no maps, an array of another shape than the image's, or a size smaller than that.
    """
    check_array("image", image, ("H", "W", 3), dtype=np.uint8)
    if not maps:
        raise InputError(expected("maps", "at least one method's map", "none"))
    regions, peaks, scores, notes = regions or {}, peaks or {}, scores or {}, notes or {}
    outlined = "" if annotation is None else "white: the annotated part"
    views = [("image", View(image, annotation=annotation, points=points, caption=outlined))]
    for method, map_ in maps.items():
        words = (_spell(scores.get(method, {})), notes.get(method, ""))
        caption = _DOT.join(w for w in words if w)
        parts = (regions.get(method), boxes.get(method), peaks.get(method), annotation)
        views.append((method, View(image, map_, *parts, caption=caption)))
    if size is not None:
        views = [(name, stretched(view, size)) for name, view in views]
    return _grid(views, title, min(check_count("columns", columns), len(views)))


def _grid(views: Sequence[tuple[str, View]], title: str, columns: int) -> Figure:
    height, width = views[0][1].image.shape[:2]
    tall = _CELL * height / width
    wide = columns * (_CELL + GAP) - GAP
    heading = wrap_name(title, wide, 11, "bold") if title else []
    top = MARGIN + 0.12 * bool(title) + 0.2 * len(heading)
    lines = max(len(wrap(view.caption, _CELL, _SIZE, lines=2)) for _, view in views)
    pitch = tall + 0.4 + 0.16 * lines
    figure = sheet(2 * MARGIN + wide, top + math.ceil(len(views) / columns) * pitch + 0.04)
    text_at(figure, MARGIN, 0.14, "\n".join(heading), 11, weight="bold")
    for k, (name, view) in enumerate(views):
        x, y = MARGIN + k % columns * (_CELL + GAP), top + k // columns * pitch
        _cell(figure, name, view, (x, y, tall), plain=k == 0)
    return figure


def _cell(figure: Figure, name: str, view: View, place: tuple[float, float, float], *, plain: bool) -> None:
    x, y, tall = place
    colour = INK if plain else method_colour(name)
    picture_at(figure, picture(view, colour), x, y, _CELL, tall, name)
    indent = 0.0 if plain else 0.17
    if not plain:
        disc_at(figure, x + 0.06, y + tall + 0.14, colour)
    weight = "normal" if plain else "bold"
    text_at(figure, x + indent, y + tall + 0.06, name, 9.5, width=_CELL - indent, weight=weight)
    text_at(figure, x, y + tall + 0.26, view.caption, _SIZE, width=_CELL, lines=2, color=FAINT)


def _spell(scores: Mapping[str, float | None]) -> str:
    return _DOT.join(f"{name} {short(value)}" for name, value in scores.items())
