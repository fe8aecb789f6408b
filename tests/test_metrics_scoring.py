"""score_chunk: what is asked for, from one ranking, at the cost that the catalogue tells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import protomask
from protomask.data.sample import Sample
from protomask.errors import InputError
from protomask.metrics import DEFAULT_METRICS, METRICS, PAIR_METRICS, Truth, score_annotation, scoring_passes
from protomask.model import Contract, contract
from protomask.pairs import Pair, draw_pairs, tensors, truth_of
from protomask.records import Localisation
from protomask.scoring import score_chunk
from tests.toys import BlockScenes, ClassedBlocks, ConvModel, block_model

Problem = tuple[Contract, list[Sample], list[Pair], Localisation, Truth]


def problem(model: object, method: str = "annotation", count: int = 3) -> Problem:
    known, data = contract(model), BlockScenes()
    drawn = draw_pairs(known, data, count)
    chunk = list(drawn.pairs)
    samples = [data[pair.index] for pair in chunk]
    truth = truth_of(samples, chunk, drawn.kind)
    targets = [(row, pair.prototype) for row, pair in enumerate(chunk)]
    images = tensors(known, samples)
    found = protomask.locate(known, images, targets, method, regions=truth.regions, boxes=truth.boxes)
    return known, samples, chunk, found, truth


class Counted(ClassedBlocks):
    """Counts the images that pass with and without a gradient."""

    forward = gradient = 0

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        if images.requires_grad:
            self.gradient += len(images)
        else:
            self.forward += len(images)
        return super().activations(images, prototypes)


def test_every_metric_is_given_in_the_order_of_the_tables() -> None:
    parts = problem(block_model())
    scores = score_chunk(*parts, metrics=PAIR_METRICS)
    assert list(scores) == list(PAIR_METRICS)
    undefined = {name for name, values in scores.items() if values.isnan().any()}
    assert undefined == {"plc"}  # the toy has no maps of its own
    assert all(values.shape == (3,) and values.dtype == torch.float64 for values in scores.values())
    assert list(score_chunk(*parts)) == list(DEFAULT_METRICS)
    assert list(score_chunk(*parts, metrics=["pac", "energy"])) == ["energy", "pac"]


@pytest.mark.parametrize(
    "names",
    [["energy", "deletion-30"], ["insertion@blur", "pac"], ["deletion@road", "increase"], ["local-perturbation"]],
)
def test_alone_or_together_the_scores_are_the_same(names: Sequence[str]) -> None:
    parts = problem(block_model())
    everything, some = score_chunk(*parts, metrics=PAIR_METRICS), score_chunk(*parts, metrics=names, batch=2)
    for name in names:
        torch.testing.assert_close(some[name], everything[name], rtol=0, atol=2e-5)
    annotation = score_annotation(parts[3].maps, parts[3].masks, parts[4])
    for name, values in annotation.items():
        torch.testing.assert_close(everything[name], values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "names",
    [
        DEFAULT_METRICS, ["energy"], ["deletion"], ["deletion-30", "insertion"], ["sufficiency-drop"], ["average-drop"],
        ["local-perturbation-noise"], ["pac"], ["deletion@blur", "deletion"],
    ],
)  # fmt: skip
def test_the_catalogue_tells_what_scoring_costs(names: Sequence[str]) -> None:
    model = Counted([(4, 4, 12, 12), (18, 2, 26, 10), (8, 20, 20, 30)])
    parts = problem(model)
    model.forward = model.gradient = 0
    score_chunk(*parts, metrics=names)
    assert (model.forward / 3, model.gradient / 3) == scoring_passes(names)


def test_the_annotation_is_right_and_the_others_are_not() -> None:
    right, wrong = (
        score_chunk(*problem(block_model(), method), metrics=PAIR_METRICS) for method in ("annotation", "centre")
    )
    for name in PAIR_METRICS:
        # Noise and blur have the mean of the colours they start from, so a mean over a block hardly sees them.
        if name in ("iou-own-area", "top5-in-box", "increase", "plc", "prc") or name.endswith(("-noise", "-blur")):
            continue
        sign = 1 if METRICS[name].higher_is_better else -1
        assert sign * float((right[name] - wrong[name]).mean()) > 0, name


def test_a_model_with_maps_has_a_location_change() -> None:
    scores = score_chunk(*problem(ConvModel(prototypes=3, classes=3).eval(), "random"), metrics=["plc", "prc", "pac"])
    assert not any(values.isnan().any() for values in scores.values())
    assert (scores["pac"] >= 0).all()


def test_the_models_own_maps_are_made_for_plc_only() -> None:
    class Mapped(ConvModel):
        made = 0

        def similarity_maps(self, images: Tensor) -> Tensor:
            Mapped.made += len(images)  # also those of copies
            return super().similarity_maps(images)

    made = []
    for names in (["prc", "pac"], ["plc"]):
        parts = problem(Mapped(prototypes=3, classes=3).eval(), "random")  # anew: a network is folded once
        Mapped.made = 0  # the activations go through the maps, too
        assert list(score_chunk(*parts, metrics=names)) == names
        made.append(Mapped.made)
    assert made[1] - made[0] == 2 * 3


def test_a_pair_at_its_floor_is_undefined() -> None:
    known, samples, chunk, found, truth = problem(block_model())
    chunk[1] = Pair(**{**vars(chunk[1]), "floor": chunk[1].activation})
    scores = score_chunk(known, samples, chunk, found, truth, metrics=PAIR_METRICS)
    for name, values in scores.items():
        expected = METRICS[name].family != "annotation" or name == "plc"
        assert math.isnan(values[1]) == expected, name


def test_what_is_not_per_pair_is_refused() -> None:
    for name in ("purity", "agreement", "fidelity"):
        with pytest.raises(InputError, match="metrics: expected one of"):
            score_chunk(*problem(block_model()), metrics=[name])
