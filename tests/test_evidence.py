"""Evidence against Captum's SmoothGrad and integrated gradients, and weighing and choosing in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import protomask
from protomask.engine import Problems, Schedule, train_masks
from protomask.errors import InputError
from protomask.localisers import MDM, Request, make_localiser
from protomask.localisers.choosing import MARGIN, SHARES, chosen, passes_of
from protomask.localisers.evidence import (
    TAIL,
    evidence_of,
    joined,
    mean_gradients,
    noisy_products,
    path_products,
    weighed,
)
from protomask.locating import measure
from protomask.model import contract, untouched
from protomask.objective import KeepLoss
from tests.toys import BlockModel, ConvModel, scenes

PAIRS = [(0, 1), (1, 0), (0, 3), (2, 2)]


class Flat(BlockModel):
    """Its gradient is zero everywhere."""

    def activations(self, images: torch.Tensor, prototypes: torch.Tensor | None = None) -> torch.Tensor:
        seen = super().activations(images, prototypes)
        return seen.detach() + 0 * images.sum() if seen.requires_grad else seen


def asked(model: ConvModel, batch: int = 32, seed: int = 0) -> Request:
    known, images = contract(model), scenes(3).double()
    start = measure(known, images, PAIRS)
    return Request(known, images, start.targets, start.before, start.floors, seed=seed, batch=batch)


def test_evidence_is_captums_smoothgrad() -> None:
    pytest.importorskip("captum.attr", reason="needs the optional package captum")
    model, images = ConvModel().double(), scenes(3).double()
    theirs = protomask.locate(model, images, PAIRS, "smoothgrad", samples=6, seed=4).maps
    with untouched(model):
        ours = evidence_of(asked(model, seed=4), noisy_products(asked(model, seed=4), 6))
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
    evidence = evidence_of(request, noisy_products(request, 3))[0]
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
    evidence = evidence_of(request, noisy_products(request, 3))[0]
    maps = torch.zeros(1, 32, 32, dtype=torch.float64)
    maps[0, 8:14, 8:14] = 1
    found, outside = weighed(maps, evidence[None], 2.0)[0], maps[0] == 0
    assert torch.equal(found[outside].argsort(stable=True), evidence[outside].argsort(stable=True))
    assert float(found[outside].max()) <= TAIL
    assert bool(((maps[0] * evidence**2 > TAIL) <= (found > TAIL)).all())
    assert torch.equal(weighed(0 * maps, evidence[None], 2.0), 0 * maps)  # nothing found stays nothing found


def test_where_the_gradient_explains_nothing_the_mask_stands() -> None:
    """A pushed prototype is at distance zero on its own patch, and so is the gradient there."""

    model = Flat([(4, 4, 12, 12)])
    images = torch.full((1, 3, 32, 32), 0.8)
    start = measure(contract(model), images, [(0, 0)])
    request = Request(contract(model), images, start.targets, start.before, start.floors)
    maps = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighed(maps, evidence_of(request, noisy_products(request, 3)), 2.0), maps / maps.max())


def test_the_path_is_captums_integrated_gradients() -> None:
    pytest.importorskip("captum.attr", reason="needs the optional package captum")
    from protomask.localisers.gradients import IntegratedGradients

    model = ConvModel().double()
    with untouched(model):
        theirs = IntegratedGradients(steps=7).attributions(asked(model)).sum(1)
        ours = path_products(asked(model), 7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)  # Captum's points are rounded to float32


def test_what_the_training_saw_sums_up_to_the_activation_on_a_linear_model() -> None:
    """Where the activation is linear in the pixels, every pass says the same: the activation of (image - fill)."""
    model = BlockModel([(4, 4, 12, 12)])
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = torch.zeros(1, dtype=torch.int64)
    before = model.activations(images)[:, 0]
    problems = Problems(images, torch.zeros_like(images), rows, rows, rows, before, torch.zeros_like(before))
    schedule = Schedule(steps=5, together=True)
    slopes = train_masks(contract(model), problems, [4, 8], KeepLoss(1.0, 0.0, 0.2), schedule).slopes[0]
    assert float(slopes.sum()) == pytest.approx(4 * 2 * float(before), rel=1e-9)  # four steps with a pass, two sides
    assert float(slopes[12:].abs().max()) == 0


def test_readings_are_joined_by_their_geometric_mean_and_a_silent_one_has_no_say() -> None:
    a, b = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    a, b = a / a.amax((1, 2), keepdim=True), b / b.amax((1, 2), keepdim=True)
    a[:, 0, 0] = b[:, 0, 0] = 0  # so that scaling has its zero
    b[1] = 0
    found = joined([a, b])
    both = (a[0] * b[0]).sqrt()
    torch.testing.assert_close(found[0], both / both.max())
    torch.testing.assert_close(found[1], a[1])
    assert torch.equal(joined([0 * a, 0 * b]), 0 * a)
    with pytest.raises(ValueError, match="at least one"):
        joined([])


def test_the_map_is_chosen_whose_pixels_hold_the_activation_and_the_first_unless_another_is_clearly_better() -> None:
    model = BlockModel([(4, 4, 10, 10), (20, 20, 26, 26)])
    images = torch.full((1, 3, 32, 32), 0.8, dtype=torch.float64)
    start = measure(contract(model), images, [(0, 0), (0, 1)])
    request = Request(contract(model), images, start.targets, start.before, start.floors)
    first, second = torch.zeros(2, 2, 32, 32, dtype=torch.float64)
    first[:, 4:10, 4:10] = 1
    second[:, 20:26, 20:26] = 1
    fills, rows = torch.zeros_like(images), torch.zeros(2, dtype=torch.int64)
    found = chosen(request, [first, second], fills, rows)
    assert torch.equal(found[0], first[0])
    assert torch.equal(found[1], second[1])
    nearly = first.clone()
    nearly[0, 9, 9] = 0.5  # the same pixels hold less than the margin more or less
    assert torch.equal(chosen(request, [nearly, first], fills, rows)[0], nearly[0])
    assert passes_of(3) == 3 * len(SHARES) * 2 / 3
    assert 0 < MARGIN < 1


@pytest.mark.parametrize("method", ["mdm", "mdm-fast", "mdm-best"])
@pytest.mark.parametrize("settings", [{}, {"path": 0}, {"path": 0, "gradients": 0}, {"gradients": 0, "steps": 1}])
def test_the_passes_that_are_told_are_those_that_are_made(method: str, settings: dict[str, object]) -> None:
    counted: list[int] = []
    model = ConvModel().double()
    request = replace(asked(model), progress=counted.append)
    localiser = make_localiser(method, settings)
    with untouched(model):
        localiser(request)
    assert sum(counted) == len(PAIRS) * localiser.passes


def test_without_power_the_map_is_the_mask_and_no_gradient_is_read() -> None:
    model, images = ConvModel().double(), scenes(3).double()
    bare = MDM(gradient_power=0)
    assert bare.passes == 7 * 2
    found = protomask.locate(model, images, PAIRS, bare)
    assert found.masks
    assert not protomask.locate(model, images, PAIRS, "mdm", choose=False).masks


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="gradients: expected"):
        MDM(gradients=-1)
    with pytest.raises(InputError, match="gradient_power: expected"):
        MDM(gradient_power=-1.0)
    with pytest.raises(InputError, match="path: expected"):
        MDM(path=-1)
    with pytest.raises(InputError, match="mask_power: expected"):
        MDM(mask_power=0.0)


def test_a_closed_mask_without_evidence_is_an_empty_map() -> None:
    images = torch.full((1, 3, 32, 32), 0.8)
    found = protomask.locate(Flat([(4, 4, 12, 12)]), images, [(0, 0)], MDM(area_weight=1000.0, fill="black"))
    assert float(found.maps.abs().max()) == 0


def test_where_the_price_closes_the_mask_the_map_is_the_evidence_and_where_nothing_is_hidden_it_is_empty() -> None:
    model = BlockModel([(4, 4, 12, 12)])
    images = torch.full((1, 3, 32, 32), 0.2, dtype=torch.float64)
    images[:, :, 4:12, 4:12] = 0.8
    dear = MDM(area_weight=1000.0, fill="black", choose=False)
    found = protomask.locate(model, images, [(0, 0)], dear)
    assert float(found.maps[0, 5:11, 5:11].min()) > 0.5
    assert float(found.maps[0, 20:].max()) < 0.01
    assert float(protomask.locate(model, images, [(0, 0)], replace(dear, gradient_power=0)).maps.max()) < 0.01
    everywhere = BlockModel([(0, 0, 32, 32)])
    even = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)  # what its blur is as well
    assert float(protomask.locate(everywhere, even, [(0, 0)], replace(dear, fill="blur")).maps.max()) == 0
