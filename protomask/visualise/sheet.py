"""A white sheet on which pictures and text are placed in inches from the top left; saved as PNG.

Matplotlib is used through its objects alone: no ``pyplot``, no backend chosen for the caller, no global setting.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from protomask.checks import check_number
from protomask.files import write_bytes
from protomask.visualise.palette import INK

# The one font that comes with matplotlib: a figure looks the same on every machine.
FONT = "DejaVu Sans"
DPI = 160
_BASELINE = 0.9  # of a text's size: from the top that matplotlib gives a line with descenders to its baseline
MARGIN, GAP = 0.18, 0.12  # inches: around a sheet, between pictures


def sheet(width: float, height: float) -> Figure:
    """An empty white figure of that size in inches, with an Agg canvas of its own."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, x: float, y: float, width: float, height: float, label: str = "") -> Axes:
    """Axes with their top left corner at (x, y) inches from the figure's top left."""
    total_width, total_height = figure.get_size_inches()
    place = (x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height)
    return figure.add_axes(place, label=label)


def picture_at(
    figure: Figure, image: np.ndarray, x: float, y: float, width: float, height: float, label: str = ""
) -> Axes:
    """An image [H, W, 3] uint8 in a cell, as large as fits, centred; the label names the axes for the tests."""
    axes = axes_at(figure, x, y, width, height, label)
    axes.imshow(image, interpolation="antialiased", aspect="equal")
    axes.set_axis_off()
    return axes


def text_at(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    size: float = 9,
    *,
    width: float | None = None,
    lines: int = 1,
    **style: Any,
) -> None:
    """Text at (x, y) inches from the top left; with a ``width`` in inches it is wrapped and cut to ``lines`` lines.

    ``$`` stands for itself: names of classes come from users' folders, and are no formulae.
    """
    total_width, total_height = figure.get_size_inches()
    weight = style.get("weight", "normal")
    shown = text if width is None else "\n".join(wrap(text, width, size, weight, lines))
    look: dict[str, Any] = {"color": INK, "ha": "left", "va": "top", "linespacing": 1.25, **style}
    if look["va"] == "top" and "\n" not in shown:
        # By its baseline: matplotlib measures the ink, and a text without descenders would stand lower than others.
        y, look["va"] = y + _BASELINE * size / 72, "baseline"
    figure.text(x / total_width, 1 - y / total_height, shown, fontsize=size, family=FONT, parse_math=False, **look)


def disc_at(figure: Figure, x: float, y: float, colour: str, size: float = 7) -> None:
    """A disc of a method's colour with a dark rim, centred at (x, y) inches from the top left; ``size`` in points."""
    width, height = figure.get_size_inches()
    place = ([x / width], [1 - y / height])
    figure.add_artist(Line2D(*place, marker="o", ms=size, mfc=colour, mec=INK, mew=0.8, transform=figure.transFigure))


def wrap(text: str, width: float, size: float, weight: str = "normal", lines: int = 1) -> list[str]:
    """``text`` broken between words into at most ``lines`` lines of ``width`` inches, cut with an ellipsis after."""
    done: list[str] = []
    words = text.split()
    while words and len(done) < lines:
        line = words.pop(0)
        while words and text_width(f"{line} {words[0]}", size, weight) <= width:
            line = f"{line} {words.pop(0)}"
        done.append(line)
    if words:
        done[-1] = f"{done[-1]} {' '.join(words)}"
    return [_cut(line, width, size, weight) for line in done]


def wrap_name(name: str, width: float, size: float, weight: str = "normal", lines: int = 2) -> list[str]:
    """As :func:`wrap`, but what follows the last slash stays: of ``class / 12`` the class is shortened instead.

    Two prototypes of one class differ in nothing else.
    """
    head, slash, end = name.rpartition(" / ")

    def shown(beginning: str) -> list[str]:
        return wrap(f"{beginning}{slash}{end}", width, size, weight, lines)

    if not slash or " ".join(shown(head)).endswith(end):
        return shown(head)
    low, high = 0, len(head)  # the longest beginning of the class that leaves room for the rest
    while low < high:
        middle = (low + high + 1) // 2
        fits = " ".join(shown(f"{head[:middle].rstrip()}…")).endswith(end)
        low, high = (middle, high) if fits else (low, middle - 1)
    return shown(f"{head[:low].rstrip()}…")


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of one line of text in inches."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def png_bytes(figure: Figure, dpi: float = DPI) -> bytes:
    """The figure as a PNG file's bytes, the same on every call (no time and no version is written into it)."""
    check_number("dpi", dpi, 0, open_low=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path, dpi: float = DPI) -> Path:
    """Write the figure as PNG, whole or not at all; missing folders are made.

    Args:
        figure: a figure.
        path: the file to write or replace.
        dpi: pixels per inch of the figure's size.

    Returns:
        The path.

    Raises:
        ResourceError: the file cannot be written.
    """
    return write_bytes(path, png_bytes(figure, dpi))


def _cut(line: str, width: float, size: float, weight: str) -> str:
    if text_width(line, size, weight) <= width:
        return line
    low, high = 0, len(line)  # the longest beginning that fits together with its ellipsis
    while low < high:
        middle = (low + high + 1) // 2
        fits = text_width(line[:middle].rstrip() + "…", size, weight) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return line[:low].rstrip() + "…"
