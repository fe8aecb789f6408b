"""The same images under every method, as one picture: the first pairs of an evaluation, not the best.

Reads a folder that ``protomask evaluate`` wrote, and locates nothing anew. ::

    python benchmarks/small_multiples.py scores/planted-10 --images 4 --metric iou-best --out docs/every-method.webp
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from protomask.checks import check_choice
from protomask.commands.common import positive
from protomask.errors import InputError, expected
from protomask.files import write_bytes
from protomask.reporting.examples import Example
from protomask.reporting.results import Results, read_results
from protomask.visualise.overlay import display_factor, dot, heat, outline, upscale, upscale_map, upscale_region
from protomask.visualise.palette import FAINT, WHITE, method_colour, rgb
from protomask.visualise.pixels import webp
from protomask.visualise.sheet import GAP, MARGIN, disc_at, picture_at, png_bytes, sheet, text_at

GUTTER = 0.05  # inches between tiles: small, since each has a caption of its own
HEAD, CAPTION, FOOT = 0.4, 0.2, 0.36
SIDE = 192  # pixels of a tile


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture [H, W, 3] uint8 RGB and what stands below it."""

    picture: np.ndarray
    caption: str = ""


Column = tuple[str, list[Tile]]


def columns_of(results: Results, images: int, metric: str, without: Collection[str] = ()) -> list[Column]:
    """The bare image and every method, each with its tiles of the first ``images`` pairs that have maps."""
    kept = list(results.examples(range(len(results.pairs))))[:images]
    if not kept:
        raise InputError(expected("scores", "an evaluation with maps in examples/", str(results.folder)))
    methods = [method for method in results.methods if method not in without]
    bare = [Tile(outlined(example.image, example)) for _, example in kept]
    return [("image", bare), *((m, [tile(results, m, metric, k, e) for k, e in kept]) for m in methods)]


def tile(results: Results, method: str, metric: str, pair: int, example: Example) -> Tile:
    """One method on one image: its map over the image in grey, its peak, the annotated part; the pair's score below."""
    grey = example.image.mean(2, keepdims=True).repeat(3, axis=2)  # so that all colour is the map's
    peak = example.peaks[method]
    if peak is None:
        return Tile(outlined(grey.astype(np.uint8), example), "nothing")
    factor = display_factor(example.image, SIDE)
    drawn = outlined(grey.astype(np.uint8), example, upscale_map(example.maps[method], factor))
    drawn = dot(drawn, tuple((p + 0.5) * factor - 0.5 for p in peak), rgb(method_colour(method)), 4)
    score = float(results.values[method][metric][pair])
    return Tile(drawn, f"{score:.2f}" if np.isfinite(score) else "-")


def outlined(image: np.ndarray, example: Example, map_: np.ndarray | None = None) -> np.ndarray:
    """The image enlarged, under a map of the enlarged size, with the annotated part in white."""
    factor = display_factor(example.image, SIDE)
    drawn = upscale(image, factor)
    if map_ is not None:
        drawn = heat(drawn, np.clip(map_, 0, 1), alpha=0.85)
    if example.annotation is not None and example.annotation.any():
        drawn = outline(drawn, upscale_region(example.annotation, factor), rgb(WHITE), 1)
    return drawn


def draw(columns: Sequence[Column], metric: str, *, across: int, width: float) -> Figure:
    """Banks of ``across`` columns, one below the other; each row of a bank is one image."""
    cell = (width - 2 * MARGIN + GUTTER) / across - GUTTER
    rows = len(columns[0][1])
    banks = [columns[start : start + across] for start in range(0, len(columns), across)]
    height = HEAD + rows * (cell + CAPTION) + GAP
    figure = sheet(width, MARGIN + len(banks) * height + FOOT)
    for number, bank in enumerate(banks):
        for place, column in enumerate(bank):
            _column(figure, column, MARGIN + place * (cell + GUTTER), MARGIN + number * height, cell)
    note = f"White outline: the annotated part. Disc: the map's highest pixel. Below each picture: {metric}."
    text_at(figure, MARGIN, MARGIN + len(banks) * height + 0.06, note, 9, width=width - 2 * MARGIN, color=FAINT)
    return figure


def _column(figure: Figure, column: Column, x: float, y: float, cell: float) -> None:
    name, tiles = column
    colour = method_colour(name) if name != "image" else WHITE
    if name != "image":
        disc_at(figure, x + 0.05, y + 0.08, colour, 6)
    place = x + (0.13 if name != "image" else 0)
    text_at(figure, place, y, name.replace("-", " "), 7.5, width=cell - 0.13, lines=2, weight="bold")
    for row, one in enumerate(tiles):
        top = y + HEAD + row * (cell + CAPTION)
        picture_at(figure, one.picture, x, top, cell, cell, f"{name} {row}")
        text_at(figure, x, top + cell + 0.03, one.caption, 7.5, width=cell, color=FAINT)


def encoded(figure: Figure, path: str) -> bytes:
    """A PNG file's bytes, or a WebP file's, a tenth of the size, where ``path`` ends so."""
    data = png_bytes(figure)
    if not path.endswith(".webp"):
        return data
    return webp(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), quality=88)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read an evaluation and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", metavar="DIR", help="what protomask evaluate wrote")
    parser.add_argument("--images", type=positive, default=4, help="how many pairs (default: %(default)s)")
    parser.add_argument("--metric", default="iou-best", help="whose score stands below (default: %(default)s)")
    parser.add_argument("--without", nargs="*", default=["annotation"], metavar="METHOD", help="methods left out")
    parser.add_argument("--across", type=positive, default=9, help="columns (default: %(default)s)")
    parser.add_argument("--width", type=float, default=11.0, help="inches (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FILE", help="a PNG or WebP file, replaced if there")
    args = parser.parse_args(arguments)
    results = read_results(args.scores)
    check_choice("--metric", args.metric, results.metrics)
    columns = columns_of(results, args.images, args.metric, args.without)
    figure = draw(columns, args.metric, across=args.across, width=args.width)
    print(write_bytes(args.out, encoded(figure, args.out)))


if __name__ == "__main__":
    main()
