"""Small multiples: the same image under every method, for chosen pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protomask.reporting.examples import Example
from protomask.reporting.results import Results
from protomask.visualise.blocks import Strip, Tile
from protomask.visualise.palette import method_colour
from protomask.visualise.pixels import tile, webp
from protomask.visualise.wording import number


def strips(results: Results, chosen: Sequence[int], metric: str, notes: dict[int, str] | None = None) -> list[Strip]:
    """One strip per chosen pair, in that order: the image, then every method's map with its peak and its score.

    Args:
        results: with examples.
        chosen: pairs.
        metric: whose score stands below each tile.
        notes: pair -> what stands beside its title.
    """
    ordered = dict(results.examples(sorted(chosen)))
    said = notes or {}
    return [_strip(results, k, ordered[k], metric, said.get(k, "")) for k in chosen if k in ordered]


def title_of(results: Results, k: int) -> str:
    """Which pair it is, in words."""
    pair = results.pairs[k]
    about = f", about {pair.part}" if pair.part else ""
    return f"{pair.prototype_name} on {pair.image}{about}"


def _strip(results: Results, k: int, example: Example, metric: str, note: str) -> Strip:
    size = example.image.shape[:2]
    bare = tile(example.image, None, None, example.annotation, "#000000")
    activation = f"activation {number(example.activation)}"
    tiles = [Tile("image", webp(bare), size, activation, method=False)]
    for method in results.methods:
        if method not in example.maps:
            continue
        peak = example.peaks[method]
        drawn = tile(
            example.image,
            None if peak is None else example.maps[method],
            peak,
            example.annotation,
            method_colour(method),
        )
        tiles.append(Tile(method, webp(drawn), size, _score(results, method, metric, k, located=peak is not None)))
    return Strip(title_of(results, k), tiles, note)


def _score(results: Results, method: str, metric: str, k: int, *, located: bool) -> str:
    if not located:
        return "nothing located"
    column = results.values[method].get(metric)
    return number(None if column is None or not np.isfinite(column[k]) else float(column[k]))
