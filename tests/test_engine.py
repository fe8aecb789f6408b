from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from protomask.activation import relative_activation
from protomask.engine import Problems, Schedule, in_chunks, train_masks
from protomask.errors import InputError, ResourceError
from protomask.localisers.mdm import MDM
from protomask.masks import blend, render
from protomask.model import contract
from protomask.objective import KeepLoss, area, consistency, total_variation
from protomask.stack import stack
from tests.toys import BlockModel


def problems(dtype: torch.dtype = torch.float64) -> tuple[BlockModel, Problems]:
    model = BlockModel([(0, 0, 16, 16), (16, 16, 32, 32)])
    images = torch.full((2, 3, 32, 32), 0.8, dtype=dtype)
    rows, prototypes = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    before = model.activations(images)[rows, prototypes]
    return model, Problems(images, torch.zeros_like(images), rows, rows, prototypes, before, torch.zeros_like(before))


class Recorder(BlockModel):
    """Counts images per pass, and runs out of memory above a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__([(0, 0, 16, 16), (16, 16, 32, 32)])
        self.limit, self.sizes = limit, []

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return super().activations(images, prototypes)


def test_a_block_is_found_in_closed_form() -> None:
    """Scale 2, block = the first cell. Bilinear rendering gives the cell's value a the weight c = .875^2 within the
    block and .25 over the image, so (1 - c a)^2 + w a / 4 is least at a = (1 - w / (8 c)) / c; other cells stay at
    zero, since they add more area than activation."""
    model, posed = problems()
    weight, share = 2.0, 0.875**2
    vectors = train_masks(
        contract(model), posed, [2], KeepLoss(weight, 0.0), Schedule(steps=600, learning_rate=0.02)
    ).vectors[2]
    assert float(vectors[0, 0, 0]) == pytest.approx((1 - weight / (8 * share)) / share, abs=1e-3)
    assert float(vectors[0].flatten()[1:].max()) == pytest.approx(0, abs=1e-6)


def test_necessity_in_closed_form() -> None:
    """As above; the complement keeps 1 - c a of the activation too, which makes it (1 + n) (1 - c a)^2 + w a / 4."""
    model, posed = problems()
    weight, price, share = 2.0, 0.2, 0.875**2
    loss = KeepLoss(weight, 0.0, price)
    vectors = train_masks(contract(model), posed, [2], loss, Schedule(steps=600, learning_rate=0.02)).vectors[2]
    assert float(vectors[0, 0, 0]) == pytest.approx((1 - weight / (8 * share * (1 + price))) / share, abs=1e-3)
    assert float(vectors[0].flatten()[1:].max()) == pytest.approx(0, abs=1e-6)


def test_necessity_asks_for_the_second_of_two_equal_pieces() -> None:
    """Two blocks of which either suffices: a sufficient mask may drop one, a necessary one must hold both."""

    class Either(BlockModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            seen = super().activations(images).max(1, keepdim=True).values.expand(-1, 2)
            return seen if prototypes is None else seen[:, 0]

    _, posed = problems()
    either = Either([(0, 0, 16, 16), (16, 16, 32, 32)])
    posed = replace(posed, images=posed.images * torch.where(torch.arange(32) < 16, 1.0, 0.9))
    posed = replace(posed, before=either.activations(posed.images)[posed.rows, posed.prototypes])
    one, both = (
        train_masks(contract(either), posed, [4], KeepLoss(0.2, 0.0, n), Schedule(steps=100)).vectors[4][0]
        for n in (0, 1)
    )
    assert float(one[:2, :2].min()) == 1.0
    assert float(one[2:, 2:].max()) == 0.0
    assert float(both[:2, :2].min()) > 0.5
    assert float(both[2:, 2:].min()) > 0.5


def test_a_cheap_block_is_kept_whole_and_nothing_else() -> None:
    model, posed = problems()
    vectors = train_masks(contract(model), posed, [4], KeepLoss(0.2, 0.0), Schedule(steps=100)).vectors[4]
    block = torch.zeros(4, 4, dtype=torch.float64)
    block[:2, :2] = 1
    assert torch.equal(vectors[0], block)


def test_the_same_block_in_both_images_gives_the_same_mask() -> None:
    model, posed = problems()
    vectors = train_masks(contract(model), posed, [4, 6], KeepLoss(), Schedule()).vectors
    for scale in (4, 6):
        assert torch.equal(vectors[scale][1], vectors[scale][2])
        assert torch.allclose(vectors[scale][0], vectors[scale][1].flip(0, 1), atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_chunks_change_nothing(batch: int) -> None:
    model, posed = problems()
    whole = train_masks(contract(model), posed, [4, 6], KeepLoss(), Schedule(), batch=64).vectors
    parts = train_masks(contract(model), posed, [4, 6], KeepLoss(), Schedule(), batch=batch).vectors
    for scale in whole:
        assert float((whole[scale] - parts[scale]).abs().max()) < 1e-6


def test_out_of_memory_halves_the_chunk_and_changes_nothing_else() -> None:
    model, posed = problems()
    free = train_masks(contract(model), posed, [4, 6], KeepLoss(), Schedule()).vectors
    tight = Recorder(limit=2)
    found = train_masks(contract(tight), posed, [4, 6], KeepLoss(), Schedule()).vectors
    assert max(tight.sizes) == 6
    assert sum(size > 2 for size in tight.sizes) == 2  # 6, then 3, then it fits
    for scale in free:
        assert float((free[scale] - found[scale]).abs().max()) < 1e-6


def test_no_memory_for_one_image_is_said() -> None:
    _, posed = problems()
    with pytest.raises(ResourceError, match="single image"):
        train_masks(contract(Recorder(limit=0)), posed, [4], KeepLoss(), Schedule())


def test_other_runtime_errors_are_not_taken_for_memory() -> None:
    def broken(part: slice) -> None:
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(in_chunks(4, 2, broken))


def test_passes_are_counted() -> None:
    model, posed = problems()
    told: list[int] = []
    train_masks(contract(model), posed, [4, 6, 8], KeepLoss(), Schedule(steps=5), batch=4, progress=told.append)
    assert sum(told) == 3 * 3 * 4  # the first step needs none
    told.clear()
    train_masks(contract(model), posed, [4, 6], KeepLoss(necessity_weight=0.3), Schedule(steps=5), progress=told.append)
    assert sum(told) == 3 * 2 * 4 * 2 == 3 * MDM(scales=(4, 6), steps=5, together=False, gradient_power=0).passes


def test_losses_in_closed_form() -> None:
    assert consistency(torch.tensor([0.5, 1.0, 2.0])).tolist() == [0.25, 0.0, 0.0]
    assert area(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])).tolist() == [0.5]
    stripes = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert total_variation(stripes).tolist() == [1.0]
    relative = relative_activation(torch.tensor([3.0, 1.0]), torch.tensor([5.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert relative[0] == 0.5
    assert relative[1].isnan()


def test_blend_and_render_in_closed_form() -> None:
    image, fill = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    mask = torch.tensor([[[0.0, 0.25], [0.5, 1.0]]])
    assert torch.equal(blend(image, mask, fill)[0, 0], mask[0])
    ramp = render(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (1, 4))
    # Bilinear without aligned corners: pixel centres .25 and .75 of a cell.
    assert ramp.flatten().tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])


def test_stacks_in_closed_form() -> None:
    masks = torch.tensor([[[[0.5, 1.0]]], [[[0.5, 0.25]]]])
    assert stack(masks, "product").flatten().tolist() == [0.25, 0.25]
    assert stack(masks, "geometric").flatten().tolist() == pytest.approx([0.5, 0.5])
    assert stack(masks, "mean").flatten().tolist() == [0.5, 0.625]
    some = torch.cat([masks, torch.zeros(1, 1, 1, 2)])
    assert torch.equal(stack(some, "product"), stack(masks, "product"))  # an empty scale has no say
    assert stack(torch.zeros(2, 1, 1, 2), "product").flatten().tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="stack: expected one of"):
        stack(masks, "max")
