"""What a metric needs and is not there is told before anything is located."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protomask.cli import main
from protomask.data import Dataset
from protomask.data.sample import Sample
from protomask.errors import InputError
from protomask.jobs.needs import NEEDS, check_needs, lacking
from protomask.metrics import METRICS, PAIR_METRICS
from protomask.model import contract
from protomask.pairs import draw_pairs
from protomask.prototype_scores import own_prototypes
from tests.test_studies import conv_model
from tests.toys import BLOCKS, BlockModel, BlockScenes, ConvModel, block_model

MODEL = "tests.test_studies:conv_model"


class Bare(BlockScenes):
    """Nothing is annotated."""

    part_names = ()

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), box=None, points=None, part_masks=None)

    def without_part(self, index: int, part: int) -> None:
        return None


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (BlockScenes(6), set()),
        (BlockScenes(6, masks=False), {"part-region"}),
        (Bare(6), {"region", "part-region", "box", "point"}),
    ],
)
def test_what_is_lacking_follows_from_the_data(data: BlockScenes, missing: set[str]) -> None:
    model = contract(block_model())
    drawn = draw_pairs(model, data, 6)
    found = lacking(PAIR_METRICS, model, data, drawn)
    lost = {name for name in PAIR_METRICS if METRICS[name].needs & missing}
    assert set(found) == lost | {"plc"}  # the model has no maps
    for name in lost:
        assert all(NEEDS[need] in found[name] for need in METRICS[name].needs & missing)
    own = contract(conv_model())
    assert "plc" not in lacking(["plc"], own, data, draw_pairs(own, data, 6))


def test_an_evaluation_without_a_single_metric_that_is_defined_is_refused(
    use: Callable[[Dataset], Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Bare(9))
    common = ["evaluate", MODEL, "--data", "planted", "--methods", "upsampling", "--pairs", "4", "--quiet", "--out"]
    assert main([*common, str(tmp_path / "none"), "--metrics", "energy,part-hit"]) == 2
    said = capsys.readouterr().err
    assert "--metrics: expected one that is defined here (energy needs an annotated region" in said
    assert not (tmp_path / "none" / "pairs.csv").exists()
    assert main([*common, str(tmp_path / "some"), "--metrics", "energy,deletion-30"]) == 0
    told = capsys.readouterr()
    assert "energy is undefined on all of these pairs: it needs an annotated region" in told.out + told.err
    with pytest.raises(InputError, match="--metrics"):
        check_needs(["energy"], contract(conv_model()), Bare(6), draw_pairs(contract(conv_model()), Bare(6), 3))


def test_prototypes_are_drawn_of_classes_that_have_images() -> None:
    model = contract(ConvModel(prototypes=6, classes=3))
    data = BlockScenes(9)
    assert own_prototypes(model, data) is None  # its labels are not known without reading it
    data.labels = (0, 2, 2, -1)  # type: ignore[attr-defined]
    data.count = 4
    assert own_prototypes(model, data) == {0, 1, 4, 5}
    assert own_prototypes(contract(BlockModel(BLOCKS)), data) is None
