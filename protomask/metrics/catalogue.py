"""The metrics by name, as Python, the commands and the files know them, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protomask.checks import check_choice

NEEDS = frozenset({"region", "part-region", "box", "point", "mask", "model", "parts", "maps", "method", "models"})
FAMILIES = ("annotation", "causal", "robustness", "prototype", "sanity")
SCOPES = ("pair", "prototype", "study")
OTHER_FILLS = ("blur", "road")
"""Scoring fills beside the protocol's own, ``mean``: the names of their metrics end in ``@blur`` and ``@road``."""


@dataclass(frozen=True)
class Metric:
    """What there is to know about a metric before it is computed.

    Attributes:
        name: the same everywhere.
        sentence: one line for a person.
        higher_is_better: its direction.
        needs: out of ``"region"`` (any annotated region), ``"part-region"`` (the pixels of a part, or a segmentation of
            the object; a box will not do), ``"box"`` (the object's box), ``"point"`` (the causal part's centre),
            ``"mask"`` (the method's maps are masks), ``"model"`` (network passes), ``"maps"`` (the model has maps of
            its own), ``"parts"`` (annotated parts), ``"method"`` (the method runs again), ``"models"`` (several
            independently trained models).
        family: ``"annotation"``, map against annotation; ``"causal"``, map against the model; ``"robustness"``, what
            an attack does; ``"prototype"``, a prototype over its images; ``"sanity"``, what other weights or another
            training do, which ranks no methods.
        scope: what has a value: a ``"pair"``, scored by :func:`protomask.scoring.score_chunk`; a ``"prototype"``,
            by :func:`protomask.prototype_scores.prototype_scores`; or a ``"study"`` that runs methods or models again,
            by :mod:`protomask.sanity`.
        default: whether ``score_chunk`` computes it unasked.
        work: the computations that it rests on, keys of :data:`COST`; metrics of one work share its passes.
    """

    name: str
    sentence: str
    higher_is_better: bool
    needs: frozenset[str]
    family: str
    scope: str = "pair"
    default: bool = True
    work: tuple[str, ...] = ()

    @property
    def passes(self) -> float:
        """Network passes per pair where it is computed alone, forward and forward + input-gradient ones added."""
        return sum(sum(COST[work]) for work in self.work)


COST: dict[str, tuple[float, float]] = {
    **{f"{curve}-30@{fill}": (10, 0) for curve in ("deletion", "insertion") for fill in ("mean", *OTHER_FILLS)},
    **{f"{curve}-rest@{fill}": (21, 0) for curve in ("deletion", "insertion") for fill in ("mean", *OTHER_FILLS)},
    **{f"sufficiency@{fill}": (1, 0) for fill in ("mean", *OTHER_FILLS)},
    **{f"filled@{fill}": (1, 0) for fill in ("mean", *OTHER_FILLS)},
    **{f"perturbed-{kind}": (1, 0) for kind in ("blur", "recolour", "noise")},
    "seen-through": (1, 0),
    "attack": (4, 20),
    "own-maps": (2, 0),
}
"""work -> (forward passes, forward + input-gradient passes) per pair. ``filled`` is one per image, so at most this."""


def _annotation(name: str, sentence: str, *needs: str, higher: bool = True) -> Metric:
    return Metric(name, sentence, higher, frozenset(needs), "annotation")


def _causal(name: str, sentence: str, *work: str, higher: bool, fill: str = "mean", default: bool = True) -> Metric:
    return Metric(name, sentence, higher, frozenset({"model"}), "causal", default=default, work=work)


def _curves(fill: str) -> tuple[Metric, ...]:
    """The five causal metrics under one fill."""
    own = fill == "mean"
    at, said = ("", "") if own else (f"@{fill}", f" (fill: {fill})")

    def made(name: str, sentence: str, *work: str, higher: bool) -> Metric:
        works = (*(f"{w}@{fill}" for w in work), f"filled@{fill}")
        return _causal(f"{name}{at}", f"{sentence}{said}.", *works, higher=higher, default=own)

    removed, returned = (
        "Mean relative activation while the highest pixels are removed first",
        "Mean relative activation while the highest pixels are put back first",
    )
    return (
        made("deletion", removed, "deletion-30", "deletion-rest", higher=False),
        made("insertion", returned, "insertion-30", "insertion-rest", higher=True),
        made("deletion-30", "Deletion over the first 30 % of the pixels", "deletion-30", higher=False),
        made("insertion-30", "Insertion over the first 30 % of the pixels", "insertion-30", higher=True),
        made(
            "sufficiency-drop", "Relative activation lost with only the highest 5 % kept", "sufficiency", higher=False
        ),
    )


def _perturbations() -> tuple[Metric, ...]:
    work = tuple(f"perturbed-{kind}" for kind in ("blur", "recolour", "noise"))
    said = {"blur": "blurred", "recolour": "recoloured", "noise": "noised"}
    every = "Relative activation lost when the highest 5 % are disturbed: mean of blurred, recoloured and noised."
    return (
        _causal("local-perturbation", every, *work, higher=True, default=False),
        *(
            _causal(
                f"local-perturbation-{kind}",
                f"Relative activation lost when the highest 5 % are {said[kind]}.",
                f"perturbed-{kind}",
                higher=True,
                default=False,
            )
            for kind in said
        ),
    )


def _robust(name: str, sentence: str, *needs: str, higher: bool, scope: str, work: tuple[str, ...] = ()) -> Metric:
    return Metric(name, sentence, higher, frozenset(needs), "robustness", scope, default=False, work=work)


def _sane(name: str, sentence: str, *needs: str, higher: bool) -> Metric:
    return Metric(name, sentence, higher, frozenset(needs), "sanity", "study", default=False)


def _prototype(name: str, sentence: str) -> Metric:
    needs = frozenset({"parts", "model", "method"})
    return Metric(name, sentence, True, needs, "prototype", "prototype", default=False)


_ALL = (
    _annotation("pointing-game", "Share of maps whose peak lies in the annotation; no tolerance.", "region"),
    _annotation("energy", "Share of the map's sum that lies in the annotation.", "region"),
    _annotation("iou-p95", "IoU of the highest 5 % of the pixels with the annotation.", "part-region"),
    _annotation("iou-own-area", "IoU of as many of the highest pixels as the mask sums to.", "part-region", "mask"),
    _annotation("iou-best", "IoU with the annotation at the best of all cuts of the ranking.", "part-region"),
    _annotation("box-iou", "IoU of the box round the highest 5 % with the annotation's box.", "part-region"),
    _annotation("energy-floor", "Energy after subtracting the map's own 80th percentile.", "region"),
    *_curves("mean"),
    _annotation("top5-in-box", "Share of the highest 5 % of the pixels inside the object's box.", "box"),
    _annotation("part-hit", "Share of maps whose peak lies within one radius of the causal part.", "point"),
    _annotation("part-hit-2r", "Share of maps whose peak lies within two radii of the causal part.", "point"),
    _annotation("activation-precision", "Share of the highest 5 % of the pixels inside the annotation.", "region"),
    _annotation("relevance", "Share, inside the annotation, of as many of the highest pixels as it has.", "region"),
    _annotation(
        "oirr", "Mean of the map outside the annotation, as a share of outside plus inside.", "region", higher=False
    ),
    _annotation("ior", "Mean of the map inside the annotation minus outside, over its maximum.", "region"),
    _annotation("pixel-auc", "How often an annotated pixel ranks above one that is not.", "region"),
    _annotation("pixel-ap", "Average precision of the map as a ranking of pixels.", "region"),
    _annotation("dice", "Dice of the pixels above half of the map's range with the annotation.", "part-region"),
    _annotation("ppv", "Share of the pixels above half of the map's range inside the annotation.", "part-region"),
    _annotation("sensitivity", "Share of the annotation above half of the map's range.", "part-region"),
    _causal(
        "average-drop", "Relative activation lost of the image seen through its map.", "seen-through", higher=False
    ),
    _causal(
        "increase",
        "Share of images closer to the prototype seen through their map than whole.",
        "seen-through",
        higher=True,
    ),
    *_perturbations(),
    *_curves("blur"),
    *_curves("road"),
    _robust(
        "plc",
        "How far the model's own map moves under an attack outside the region.",
        "model",
        "maps",
        higher=False,
        scope="pair",
        work=("attack", "own-maps"),
    ),
    _robust(
        "prc",
        "Other classes' prototypes that overtake under an attack outside the region.",
        "model",
        higher=False,
        scope="pair",
        work=("attack",),
    ),
    _robust(
        "pac",
        "Relative activation lost to an attack outside the region.",
        "model",
        higher=False,
        scope="pair",
        work=("attack",),
    ),
    _sane(
        "randomisation",
        "Rank correlation with the map of the same model with shuffled weights.",
        "model",
        "method",
        higher=False,
    ),
    _sane(
        "agreement",
        "Rank correlation of the maps of independently trained models.",
        "models",
        "method",
        higher=True,
    ),
    _prototype("consistency", "Share of prototypes that hold one part on 80 % of the images that show it."),
    _prototype("stability", "Share of images whose region holds the same parts under noise."),
    _prototype("purity", "Share of a prototype's ten most activated images that show it the same part."),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""name -> :class:`Metric`, in the order of the tables."""

DEFAULT_METRICS: tuple[str, ...] = tuple(metric.name for metric in _ALL if metric.default)
"""What is computed unasked: every annotation metric, and the causal ones under the protocol's fill that do not disturb
the region in other ways."""

PAIR_METRICS: tuple[str, ...] = tuple(metric.name for metric in _ALL if metric.scope == "pair")
"""What :func:`protomask.scoring.score_chunk` can compute."""


def check_metrics(names: Iterable[str] | None) -> tuple[str, ...]:
    """The metrics named, each once, in the order of the tables; :data:`DEFAULT_METRICS` where None.

    Raises:
        InputError: a name that is not that of a metric per pair.
    """
    if names is None:
        return DEFAULT_METRICS
    wanted = {check_choice("metrics", name, PAIR_METRICS) for name in names}
    return tuple(name for name in PAIR_METRICS if name in wanted)


def metrics_by_scope(names: Iterable[str] | None) -> dict[str, tuple[str, ...]]:
    """scope -> the metrics named that have it, each once, in the order of the tables; for every one of :data:`SCOPES`.

    :data:`DEFAULT_METRICS` where None.

    Raises:
        InputError: an unknown metric.
    """
    wanted = set(DEFAULT_METRICS) if names is None else {check_choice("metrics", n, tuple(METRICS)) for n in names}
    return {scope: tuple(n for n, m in METRICS.items() if m.scope == scope and n in wanted) for scope in SCOPES}


def scoring_passes(names: Iterable[str] | None = None) -> tuple[float, float]:
    """Forward, and forward + input-gradient, passes per pair and method that scoring these metrics takes, shared ones
    counted once; :data:`DEFAULT_METRICS` where None."""
    work = {work for name in check_metrics(names) for work in METRICS[name].work}
    return sum(COST[w][0] for w in work), sum(COST[w][1] for w in work)


def fill_of(name: str, own: str = "mean") -> str | None:
    """The scoring fill of a metric: that of its name, ``own`` where it names none, None where it needs no fill.

    ``local-perturbation-blur``, and the mean that it is part of, put the fill ``blur`` in place of the region.

    Args:
        name: of a metric.
        own: the fill of the causal metrics whose name has no ``@``.

    Raises:
        InputError: an unknown metric.
    """
    metric = METRICS[check_choice("metric", name, tuple(METRICS))]
    if "perturbed-blur" in metric.work:
        return "blur"
    if "seen-through" not in metric.work and not any("@" in work for work in metric.work):
        return None
    return name.partition("@")[2] or own


def flattering(trained: str, names: Iterable[str], own: str = "mean") -> tuple[str, ...]:
    """The metrics that flatter a method, since they score it with a fill that it optimised or perturbed with.

    Args:
        trained: the method's fills as :class:`protomask.Localisation` names them, joined by ``+``; empty for none.
        names: of metrics; those that are not in the catalogue are passed over.
        own: as for :func:`fill_of`.
    """
    fills = set(trained.split("+")) - {""}
    return tuple(name for name in names if name in METRICS and fill_of(name, own) in fills)
