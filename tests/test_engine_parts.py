"""The pieces of the engine against other routes to the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import protomask
from protomask.activation import relative_activation
from protomask.blending import blend_sides, shares_of
from protomask.blur import gaussian_blur
from protomask.engine import Problems, Schedule, train_masks
from protomask.errors import InputError, ResourceError
from protomask.localisers.mdm import MDM
from protomask.masks import blend, render
from protomask.memory import bytes_per_image, choose_batch
from protomask.model import Contract, contract, untouched
from protomask.objective import KeepLoss
from protomask.precision import autocast
from protomask.workset import Block, adam
from tests.toys import BlockModel, ConvModel, scenes


@pytest.mark.parametrize(("scale", "size"), [(6, (96, 96)), (24, (33, 50)), (5, (4, 4)), (3, (3, 7))])
def test_rendering_is_bilinear_interpolation(scale: int, size: tuple[int, int]) -> None:
    vectors = torch.rand(3, scale, scale, dtype=torch.float64, requires_grad=True)
    wanted = F.interpolate(vectors[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(render(vectors, size), wanted, atol=1e-12)
    weights = torch.rand(3, *size, dtype=torch.float64)
    mine = torch.autograd.grad((render(vectors, size) * weights).sum(), vectors)[0]
    theirs = torch.autograd.grad((wanted * weights).sum(), vectors)[0]
    assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("complement", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_both_sides_of_a_blend_and_what_an_activation_says_to_a_pixels_share(channels: int, complement: bool) -> None:
    images, fills = torch.rand(2, 5, channels, 6, 7, dtype=torch.float64).unbind()
    masks = torch.rand(5, 6, 7, dtype=torch.float64, requires_grad=True)
    sides = blend_sides(images, fills, masks, complement=complement)
    assert sides.is_contiguous(memory_format=torch.channels_last)
    assert not sides.requires_grad
    wanted = [blend(images, masks, fills), *([blend(images, 1 - masks, fills)] if complement else [])]
    assert torch.allclose(sides, torch.cat(wanted))
    gradient = torch.rand_like(images)
    for side, sign in zip(wanted, (1, -1), strict=False):
        (theirs,) = torch.autograd.grad((side * gradient).sum(), masks)
        assert torch.allclose(sign * shares_of(gradient, images, fills), theirs)


def test_a_mask_of_ones_changes_no_bit() -> None:
    images, fills = torch.randn(2, 4, 3, 8, 8).unbind()
    assert torch.equal(blend_sides(images, fills, torch.ones(4, 8, 8), complement=False), images)


def test_adam_is_torchs_adam_and_every_row_has_its_own_count() -> None:
    schedule = Schedule(learning_rate=0.05, betas=(0.8, 0.95))
    block = Block((3, 2), torch.zeros(1, dtype=torch.float64), 0.5)
    block.pairs.append(0)
    block.grow(lambda fresh: None)
    theirs = [torch.full((13,), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    optimisers = [torch.optim.Adam([t], lr=0.05, betas=(0.8, 0.95)) for t in theirs]
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        if step == 3:
            block.pairs.append(1)
            block.grow(lambda fresh: None)
        gradient = torch.randn(len(block.pairs), 13, generator=generator, dtype=torch.float64) * 0.1
        adam(block, gradient, schedule)
        for row, (vector, optimiser) in enumerate(zip(theirs, optimisers, strict=True)):
            if row < len(gradient):
                vector.grad = gradient[row]
                optimiser.step()
                vector.data.clamp_(0, 1)
    assert torch.allclose(block.state["vectors"], torch.stack(theirs), atol=1e-12)


LOSS = KeepLoss(1.0, 0.1, 0.2)


def posed(model: Contract, images: Tensor) -> Problems:
    with torch.no_grad():
        before = model.activations(images)
    rows, prototypes = torch.arange(len(images)), before.argmax(1)
    chosen = before[rows, prototypes]
    return Problems(images, torch.zeros_like(images), rows, rows, prototypes, chosen, torch.zeros_like(chosen))


def located(
    schedule: Schedule,
    batch: int = 64,
    scales: tuple[int, ...] = (4, 8),
    passes: list[int] | None = None,
    loss: KeepLoss = LOSS,
):
    model = ConvModel().double()
    known = contract(model)
    with untouched(model):
        problems = posed(known, scenes(6).double())
        progress = None if passes is None else passes.append
        return train_masks(known, problems, scales, loss, schedule, batch=batch, progress=progress).vectors


def test_the_first_step_of_ones_needs_no_pass_and_is_the_prices_alone() -> None:
    passes: list[int] = []
    one = located(Schedule(steps=1, learning_rate=0.1), passes=passes)
    assert not passes
    for values in one.values():
        torch.testing.assert_close(values, torch.full_like(values, 0.9))
    located(Schedule(steps=1, start=0.5), passes=passes)
    assert sum(passes) == 6 * 2 * 2


def test_a_free_first_step_is_one_whose_complement_does_not_count() -> None:
    """The literal loop: one problem at a time, torch's Adam, the complement's term left out of the first step."""
    loss = KeepLoss(1.0, 0.0, 0.2)  # at equal cells the slope of total variation hangs on rounding
    found = located(Schedule(steps=4, learning_rate=0.1), scales=(4,), loss=loss)[4]
    model = ConvModel().double().eval()
    posed_ = posed(contract(model), scenes(6).double())
    for row in range(6):
        vector = torch.ones(1, 4, 4, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([vector], lr=0.1, betas=(0.9, 0.99))
        for step in range(4):
            mask = render(vector, (32, 32))
            sides = [blend(posed_.images[[row]], m, posed_.fills[[row]]) for m in (mask, 1 - mask)]
            kept, without = (
                relative_activation(
                    model.activations(side, posed_.prototypes[[row]]), posed_.before[[row]], posed_.floors[[row]]
                )
                for side in sides
            )
            optimiser.zero_grad()
            loss(kept, without if step else torch.zeros_like(without), mask, [vector]).sum().backward()
            optimiser.step()
            vector.data.clamp_(0, 1)
        torch.testing.assert_close(found[row], vector.detach()[0], rtol=0, atol=1e-9)


def test_one_scale_together_is_one_scale_apart() -> None:
    apart = located(Schedule(steps=12), scales=(6,))
    together = located(Schedule(steps=12, together=True), scales=(6,))
    assert torch.allclose(apart[6], together[6], atol=1e-12)


def test_the_product_is_what_is_trained_together() -> None:
    """Block = the first quarter: the product of two masks keeps it, and nothing else is worth its area."""
    model = BlockModel([(0, 0, 16, 16)])
    images = torch.full((1, 3, 32, 32), 0.8)
    rows = torch.zeros(1, dtype=torch.int64)
    before = model.activations(images)[:, 0]
    problems = Problems(images, torch.zeros_like(images), rows, rows, rows, before, torch.zeros(1))
    schedule = Schedule(steps=150, together=True, learning_rate=0.05)
    found = train_masks(contract(model), problems, [4, 8], KeepLoss(0.3, 0.0), schedule).vectors
    product = (render(found[4], (32, 32)) * render(found[8], (32, 32)))[0]
    assert float(product[:14, :14].mean()) > 0.9
    assert float(product[18:, :].mean()) < 0.02
    assert float(product[:, 18:].mean()) < 0.02


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("extra", [{}, {"tolerance": 0.004}])
def test_who_leaves_early_leaves_no_trace_in_the_others(together: bool, extra: dict[str, float]) -> None:
    schedule = Schedule(steps=60, together=together, **extra)
    whole = located(schedule, batch=64)
    for batch in (1, 3, 8):
        part = located(schedule, batch=batch)
        assert max(float((part[s] - whole[s]).abs().max()) for s in whole) < 1e-6


def test_retirement_saves_passes_and_hardly_moves_a_mask() -> None:
    counts: dict[float, int] = {}
    masks: dict[float, Tensor] = {}
    for tolerance in (0.0, 0.004):
        model, images = ConvModel(), scenes(6)
        seen = Counting(model)
        found = protomask.locate(seen, images, "top:1", together=True, scales=(4, 8), steps=80, tolerance=tolerance)
        counts[tolerance], masks[tolerance] = seen.images, found.maps
    assert counts[0.004] < counts[0.0] / 1.3
    assert float(correlations(masks[0.0], masks[0.004]).median()) > 0.98


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """[N], Pearson's between maps [N, H, W]."""
    pairs = zip(first.flatten(1), second.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


class Counting:
    """A user's own class around a ConvModel; counts the images it is shown."""

    def __init__(self, model: ConvModel) -> None:
        self.inner, self.images = model.eval(), 0
        self.num_prototypes, self.mean, self.std = model.num_prototypes, model.mean, model.std
        self.activation_range, self.input_shape = model.activation_range, model.input_shape

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        self.images += len(images)
        return self.inner.activations(images, prototypes)


def test_no_problem_is_lost_when_memory_runs_out_on_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, left, fresh = located(Schedule(steps=5)), [3], Block._fresh

    def tight(block: Block, count: int) -> dict[str, Tensor]:
        left[0] -= bool(count)
        if count and left[0] == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return fresh(block, count)

    monkeypatch.setattr(Block, "_fresh", tight)
    again = located(Schedule(steps=5), batch=8)
    assert left[0] < 0
    assert max(float((again[s] - whole[s]).abs().max()) for s in whole) < 1e-6


def test_progress_counts_the_passes_that_were_spared_too() -> None:
    passes: list[int] = []
    located(Schedule(steps=60, tolerance=0.004), passes=passes)
    assert sum(passes) == 6 * 2 * 59 * 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_finds_about_the_same(precision: str) -> None:
    if precision == "fp16":
        try:
            with autocast("fp16", torch.device("cpu")):
                nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 4, 4))
        except RuntimeError as error:
            pytest.skip(f"no half-precision convolutions on this CPU: {error}")
    full = protomask.locate(ConvModel(), scenes(), "top:1")
    half = protomask.locate(ConvModel(), scenes(), "top:1", precision=precision)
    assert half.maps.dtype == torch.float32
    assert half.mask_vectors[12].dtype == torch.float32
    each = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(full.maps, half.maps, strict=True)
    ]
    assert float(torch.stack(each).median()) > 0.8
    with pytest.raises(InputError, match="precision: expected one of fp32, bf16, fp16"):
        protomask.locate(ConvModel(), scenes(), "top:1", precision="int8")


def test_the_fast_blur_is_the_repeatable_one() -> None:
    images = torch.rand(2, 3, 31, 44, dtype=torch.float64)
    for sigma in (0.7, 3.1, 40.0):
        fast = gaussian_blur(images, sigma, repeatable=False)
        assert torch.allclose(fast, gaussian_blur(images, sigma), atol=1e-12)


def test_a_batch_is_cut_to_the_memory_given() -> None:
    model, images = contract(ConvModel().eval()), scenes(2)
    each = bytes_per_image(model, images)
    # 32 x 32 images through a convolution of 8 x 16 x 16 floats and what follows; a few kilobytes, not megabytes
    assert 3 * 32 * 32 * 4 < each < 64 * 3 * 32 * 32 * 4
    assert choose_batch(model, images) == 32
    assert choose_batch(model, images, 100) == 100
    assert choose_batch(model, images, 100, memory=10 * each) == 10
    assert choose_batch(model, images, 4, memory=10 * each) == 4
    with pytest.raises(
        ResourceError, match=r"memory: expected at least \d+ bytes, what one image of 3 x 32 x 32 takes"
    ):
        choose_batch(model, images, memory=each - 1)
    with pytest.raises(InputError, match="batch"):
        choose_batch(model, images, "many")
    with pytest.raises(InputError, match="memory"):
        choose_batch(model, images, memory=0)


def test_memory_changes_nothing_but_the_batch() -> None:
    model, images = ConvModel().double(), scenes().double()
    free = protomask.locate(model, images, "top:1")
    tight = protomask.locate(model, images, "top:1", memory=4 * bytes_per_image(contract(model), images))
    assert float((free.maps - tight.maps).abs().max()) < 1e-6


def test_the_presets_are_mdm_with_other_settings() -> None:
    images = scenes()
    for name in ("mdm-fast", "mdm", "mdm-best"):
        found = protomask.locate(ConvModel(), images, "top:1", name)
        plain = protomask.locate(ConvModel(), images, "top:1", MDM(**dict(found.settings)))
        assert torch.equal(found.maps, plain.maps)
        assert found.method == name
