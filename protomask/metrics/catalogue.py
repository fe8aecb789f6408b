"""The metrics by name, as Python, the commands and the files know them."""

from __future__ import annotations

from dataclasses import dataclass

NEEDS = frozenset({"region", "part-region", "box", "point", "mask", "model"})
FAMILIES = ("annotation", "causal")


@dataclass(frozen=True)
class Metric:
    """What there is to know about a metric before it is computed.

    Attributes:
        name: the same everywhere.
        sentence: one line for a person.
        higher_is_better: its direction.
        needs: out of ``"region"`` (any annotated region), ``"part-region"`` (the pixels of a part, or a segmentation of
            the object; a box will not do), ``"box"`` (the object's box), ``"point"`` (the causal part's centre),
            ``"mask"`` (the method's maps are masks), ``"model"`` (network passes).
        family: ``"annotation"``, map against annotation, or ``"causal"``, map against the model.
    """

    name: str
    sentence: str
    higher_is_better: bool
    needs: frozenset[str]
    family: str


def _annotation(name: str, sentence: str, *needs: str) -> Metric:
    return Metric(name, sentence, True, frozenset(needs), "annotation")


def _causal(name: str, sentence: str, *, higher: bool) -> Metric:
    return Metric(name, sentence, higher, frozenset({"model"}), "causal")


_ALL = (
    _annotation("pointing-game", "Share of maps whose peak lies in the annotation; no tolerance.", "region"),
    _annotation("energy", "Share of the map's sum that lies in the annotation.", "region"),
    _annotation("iou-p95", "IoU of the highest 5 % of the pixels with the annotation.", "part-region"),
    _annotation("iou-own-area", "IoU of as many of the highest pixels as the mask sums to.", "part-region", "mask"),
    _annotation("iou-best", "IoU with the annotation at the best of all cuts of the ranking.", "part-region"),
    _annotation("box-iou", "IoU of the box round the highest 5 % with the annotation's box.", "part-region"),
    _annotation("energy-floor", "Energy after subtracting the map's own 80th percentile.", "region"),
    _causal("deletion", "Mean relative activation while the highest pixels are removed first.", higher=False),
    _causal("insertion", "Mean relative activation while the highest pixels are put back first.", higher=True),
    _causal("deletion-30", "Deletion over the first 30 % of the pixels.", higher=False),
    _causal("insertion-30", "Insertion over the first 30 % of the pixels.", higher=True),
    _causal("sufficiency-drop", "Relative activation lost with only the highest 5 % kept.", higher=False),
    _annotation("top5-in-box", "Share of the highest 5 % of the pixels inside the object's box.", "box"),
    _annotation("part-hit", "Share of maps whose peak lies within one radius of the causal part.", "point"),
    _annotation("part-hit-2r", "Share of maps whose peak lies within two radii of the causal part.", "point"),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""name -> :class:`Metric`, in the order of the tables."""
