"""Gradient evidence against Captum's SmoothGrad, and the weighing of a map in closed form."""

from __future__ import annotations

import pytest
import torch

import protomask
from protomask.errors import InputError
from protomask.localisers import MDM, Request
from protomask.localisers.evidence import TAIL, gradient_evidence, mean_gradients, warm_masks, weighed
from protomask.locating import measure
from protomask.model import contract, untouched
from tests.toys import BlockModel, ConvModel, scenes

PAIRS = [(0, 1), (1, 0), (0, 3), (2, 2)]


def asked(model: ConvModel, batch: int = 32, seed: int = 0) -> Request:
    known, images = contract(model), scenes(3).double()
    start = measure(known, images, PAIRS)
    return Request(known, images, start.targets, start.before, start.floors, seed=seed, batch=batch)


def test_evidence_is_captums_smoothgrad() -> None:
    pytest.importorskip("captum.attr", reason="needs the optional package captum")
    model, images = ConvModel().double(), scenes(3).double()
    theirs = protomask.locate(model, images, PAIRS, "smoothgrad", samples=6, seed=4).maps
    with untouched(model):
        ours = gradient_evidence(asked(model, seed=4), 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_evidence_depends_on_the_seed_and_neither_on_the_batch_nor_on_the_company(batch: int) -> None:
    model = ConvModel().double()
    with untouched(model):
        whole = mean_gradients(asked(model), 4)
        torch.testing.assert_close(mean_gradients(asked(model, batch), 4), whole, rtol=0, atol=1e-12)
        assert not torch.equal(mean_gradients(asked(model, seed=1), 4), whole)
    images = scenes(3).double()
    together = protomask.locate(model, images, PAIRS, "mdm", batch=batch).maps
    for row, (image, prototype) in enumerate(PAIRS):
        alone = protomask.locate(model, images[[image]], [(0, prototype)], "mdm").maps[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-6)


def test_a_map_is_weighed_in_closed_form() -> None:
    """The gradient is constant in the block and zero elsewhere, so the evidence is the image in the block."""
    model = BlockModel([(4, 4, 28, 28), (0, 0, 2, 2)])
    images = torch.full((1, 3, 32, 32), 0.2, dtype=torch.float64)
    images[:, :, 4:28, 4:16] = 0.8
    start = measure(contract(model), images, [(0, 0)])
    request = Request(contract(model), images, start.targets, start.before, start.floors)
    evidence = gradient_evidence(request, 3)[0]
    assert float(evidence.max()) == 1
    assert float(evidence[12:20, 8:11].min()) > 0.9
    assert float(evidence[12:20, 20:26].max()) < 0.3
    maps = torch.rand(1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for power in (2.0, 0.0):
        product = maps[0] * evidence**power
        product /= product.max()
        expected = product + TAIL * evidence * (1 - product)
        torch.testing.assert_close(weighed(maps, evidence[None], power)[0], expected, rtol=0, atol=1e-12)


def test_the_evidence_ranks_what_the_mask_leaves_out_and_moves_nothing_else() -> None:
    model = BlockModel([(4, 4, 28, 28)])
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double() + 0.2
    start = measure(contract(model), images, [(0, 0)])
    request = Request(contract(model), images, start.targets, start.before, start.floors)
    evidence = gradient_evidence(request, 3)[0]
    maps = torch.zeros(1, 32, 32, dtype=torch.float64)
    maps[0, 8:14, 8:14] = 1
    found, outside = weighed(maps, evidence[None], 2.0)[0], maps[0] == 0
    assert torch.equal(found[outside].argsort(stable=True), evidence[outside].argsort(stable=True))
    assert float(found[outside].max()) <= TAIL
    assert bool(((maps[0] * evidence**2 > TAIL) <= (found > TAIL)).all())
    assert torch.equal(weighed(0 * maps, evidence[None], 2.0), 0 * maps)  # nothing found stays nothing found


def test_where_the_gradient_explains_nothing_the_mask_stands() -> None:
    """A pushed prototype is at distance zero on its own patch, and so is the gradient there."""

    class Flat(BlockModel):
        def activations(self, images: torch.Tensor, prototypes: torch.Tensor | None = None) -> torch.Tensor:
            seen = super().activations(images, prototypes)
            return seen.detach() + 0 * images.sum() if seen.requires_grad else seen

    model = Flat([(4, 4, 12, 12)])
    images = torch.full((1, 3, 32, 32), 0.8)
    start = measure(contract(model), images, [(0, 0)])
    request = Request(contract(model), images, start.targets, start.before, start.floors)
    maps = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighed(maps, gradient_evidence(request, 3), 2.0), maps / maps.max())


def test_warm_masks_lie_between_half_and_one_as_the_evidence_ranks() -> None:
    evidence = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    evidence[1] = 0  # nothing is known
    warm = warm_masks(evidence, 0.8)
    assert float(warm[0].min()) == 0.5
    assert float(warm[0].max()) == 1
    assert torch.equal(warm[0].flatten().argsort(), evidence[0].flatten().argsort())
    assert torch.equal(warm[1], torch.full((8, 8), 0.8))


def test_a_warm_start_costs_nothing_and_changes_the_masks() -> None:
    model, images = ConvModel().double(), scenes(3).double()
    cold = protomask.locate(model, images, PAIRS, "mdm", steps=3)
    warm = protomask.locate(model, images, PAIRS, "mdm", steps=3, warm_start=True)
    assert MDM(steps=3, warm_start=True).passes == MDM(steps=3).passes
    assert not torch.equal(cold.maps, warm.maps)
    for row, (image, prototype) in enumerate(PAIRS):
        alone = protomask.locate(model, images[[image]], [(0, prototype)], "mdm", steps=3, warm_start=True).maps[0]
        torch.testing.assert_close(alone, warm.maps[row], rtol=0, atol=1e-6)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="gradients: expected at least one where warm_start"):
        MDM(gradients=0, warm_start=True)
    with pytest.raises(InputError, match="gradients: expected"):
        MDM(gradients=-1)
    with pytest.raises(InputError, match="gradient_power: expected"):
        MDM(gradient_power=-1.0)
