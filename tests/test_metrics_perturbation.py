"""Soft masks, local perturbation and the attack outside the region: closed forms, naive loops, models known by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from protomask.blur import gaussian_blur
from protomask.errors import InputError
from protomask.metrics import (
    Attack,
    attack_outside,
    average_drop,
    increase,
    local_perturbation,
    misalignment_scores,
    pac,
    plc,
    prc,
    seen_through,
)
from protomask.metrics._passes import pair_generator
from protomask.metrics.misalignment import spared_boxes, spared_pixels
from protomask.model import Contract, contract
from protomask.records import Targets
from protomask.region import percentile_region, rank, top_pixels
from tests.test_locate import same, snapshot
from tests.toys import BlockModel, ConvModel

SIDE = 32
BLOCK = (8, 8, 16, 16)
EXACT = {"rtol": 0, "atol": 1e-12}
FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def block_map(block: tuple[int, int, int, int] = BLOCK) -> Tensor:
    x0, y0, x1, y1 = block
    one = torch.zeros(1, SIDE, SIDE, dtype=torch.float64)
    one[0, y0:y1, x0:x1] = 1
    return one


def conv_problem(seed: int = 4) -> tuple[Contract, Tensor, Targets, Tensor, Tensor]:
    """Three images of valid colours, five pairs in no order, float64."""
    model = contract(ConvModel().double().eval())
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) - 0.5) / 0.25
    targets = Targets(torch.tensor([2, 0, 1, 2, 0]), torch.tensor([3, 1, 0, 1, 2]))
    maps = torch.rand(5, SIDE, SIDE, generator=generator, dtype=torch.float64)
    before = model.activations(images[targets.images], targets.prototypes).detach()
    return model, images, targets, maps, before


# --- soft masks -----------------------------------------------------------------------------------------------------


def test_average_drop_and_increase_by_hand() -> None:
    relative = torch.tensor([0.25, 1.0, 1.5, -0.5, math.nan])
    assert average_drop(relative).tolist()[:4] == [0.75, 0, 0, 1.5]
    assert increase(relative).tolist()[:4] == [0, 0, 1, 0]
    assert average_drop(relative)[4].isnan()
    assert increase(relative)[4].isnan()


def test_rounding_is_no_increase() -> None:
    assert increase(torch.tensor([1 + 3e-7, 1 + 1e-5, 1.001])).tolist() == [0, 0, 1]


@FEW
@given(share=st.floats(0.05, 1), fill=st.floats(0, 0.5), colour=st.floats(0.6, 1))
def test_seen_through_is_linear_for_a_linear_model(share: float, fill: float, colour: float) -> None:
    """BlockModel's activation is a mean, so a mask of value m on it gives m x + (1 - m) b."""
    model = contract(BlockModel([BLOCK], SIDE))
    images = torch.full((1, 3, SIDE, SIDE), colour, dtype=torch.float64)
    left = seen_through(
        model, images, Targets(torch.tensor([0]), torch.tensor([0])), share * block_map(), True,
        torch.full_like(images, fill), torch.tensor([colour], dtype=torch.float64), 0.0,
    )  # fmt: skip
    assert float(left) == pytest.approx((share * colour + (1 - share) * fill) / colour, abs=1e-9)


def test_maps_are_scaled_masks_are_not_and_constant_ones_keep_nothing() -> None:
    model = contract(BlockModel([BLOCK], SIDE))
    images = torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64)
    targets, before = Targets(torch.tensor([0]), torch.tensor([0])), torch.ones(1, dtype=torch.float64)

    def left(maps: Tensor, masks: bool) -> float:
        return float(seen_through(model, images, targets, maps, masks, torch.zeros_like(images), before, 0.0))

    half = block_map() / 2
    assert left(half, True) == 0.5
    assert left(half, False) == 1
    assert left(3 + half, False) == pytest.approx(1, abs=1e-12)
    for constant in (0.0, 0.4, 1.0):
        assert left(torch.full_like(half, constant), True) == left(torch.full_like(half, constant), False) == 0


def test_seen_through_is_the_naive_loop_whatever_the_batch() -> None:
    model, images, targets, maps, before = conv_problem()
    fill = torch.zeros_like(images)
    wanted = []
    for row, (image, prototype) in enumerate(targets):
        m = (maps[row] - maps[row].min()) / (maps[row].max() - maps[row].min())
        wanted.append(model.activations((m * images[image])[None])[0, prototype].detach() / before[row])
    for batch in (1, 2, 64):
        ours = seen_through(model, images, targets, maps, False, fill, before, 0.0, batch=batch)
        torch.testing.assert_close(ours, torch.stack(wanted), rtol=0, atol=1e-9)
    floor = torch.where(torch.arange(5) == 3, before, 0)
    assert seen_through(model, images, targets, maps, False, fill, before, floor).isnan().tolist() == [False] * 3 + [
        True, False,
    ]  # fmt: skip


# --- local perturbation ---------------------------------------------------------------------------------------------


def test_each_perturbation_by_hand() -> None:
    """One prototype that reads the red of a block of 51 pixels, the top 5 %, on an image of one colour."""

    class Red(BlockModel):
        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = images[:, 0, 8:11, 8:25].mean((1, 2))[:, None]
            return values if prototypes is None else values[:, 0]

    model = contract(Red([BLOCK], SIDE))
    image = torch.tensor([0.8, 0.6, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE).contiguous()
    targets, before = Targets(torch.tensor([0]), torch.tensor([0])), torch.tensor([0.8], dtype=torch.float64)
    drops = local_perturbation(model, image, targets, block_map((8, 8, 25, 11)), before, 0.0)
    assert float(drops["local-perturbation-recolour"]) == pytest.approx(
        1 - 0.4 / 0.8
    )  # red becomes the opposite of green
    assert float(drops["local-perturbation-blur"]) == pytest.approx(0, abs=1e-12)  # one colour stays itself
    noise = float(drops["local-perturbation-noise"])
    assert 0 < abs(noise) < 0.1
    mean = (noise + 1 - 0.4 / 0.8) / 3
    assert float(drops["local-perturbation"]) == pytest.approx(mean, abs=1e-12)
    elsewhere = local_perturbation(model, image, targets, block_map((0, 16, 17, 19)), before, 0.0)
    assert all(float(drop) == 0 for drop in elsewhere.values())


def test_only_the_region_is_blurred() -> None:
    model, images, targets, maps, before = conv_problem()
    ours = local_perturbation(model, images, targets, maps, before, 0.0, kinds=["blur"], batch=2)
    assert list(ours) == ["local-perturbation", "local-perturbation-blur"]
    regions, blurred = percentile_region(maps), gaussian_blur(images, SIDE / 10)
    for row, (image, prototype) in enumerate(targets):
        mixed = torch.where(regions[row], blurred[image], images[image])[None]
        wanted = 1 - float(model.activations(mixed)[0, prototype].detach() / before[row])
        assert float(ours["local-perturbation-blur"][row]) == pytest.approx(wanted, abs=1e-9)
    torch.testing.assert_close(ours["local-perturbation"], ours["local-perturbation-blur"], **EXACT)
    with pytest.raises(InputError, match="kinds: expected one of blur, recolour, noise"):
        local_perturbation(model, images, targets, maps, before, 0.0, kinds=["waves"])
    with pytest.raises(InputError, match="kinds: expected at least one of blur, recolour, noise, got none"):
        local_perturbation(model, images, targets, maps, before, 0.0, kinds=[])


def test_the_noise_is_seeded_by_the_pair_alone() -> None:
    model, images, targets, maps, before = conv_problem()

    def noise(rows: slice, seed: int = 0, batch: int = 64) -> Tensor:
        one = Targets(targets.images[rows], targets.prototypes[rows])
        found = local_perturbation(
            model, images, one, maps[rows], before[rows], 0.0, kinds=["noise"], seed=seed, batch=batch
        )
        return found["local-perturbation-noise"]

    whole = noise(slice(None))
    torch.testing.assert_close(torch.cat([noise(slice(0, 2)), noise(slice(2, 5), batch=1)]), whole, rtol=0, atol=1e-9)
    assert (noise(slice(None), seed=1) - whole).abs().min() > 1e-9


def test_recolouring_grey_images_inverts_them() -> None:
    class Grey(BlockModel):
        mean, std = (0.5,), (0.25,)  # type: ignore[assignment]

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = (0.25 * images + 0.5).mean((1, 2, 3))[:, None]
            return values if prototypes is None else values[:, 0]

    inner = Grey([BLOCK], SIDE)
    inner.input_shape = (1, SIDE, SIDE)
    image = torch.full((1, 1, SIDE, SIDE), (0.9 - 0.5) / 0.25, dtype=torch.float64)
    targets, before = Targets(torch.tensor([0]), torch.tensor([0])), torch.tensor([0.9], dtype=torch.float64)
    drop = local_perturbation(contract(inner), image, targets, block_map(), before, 0.0, kinds=["recolour"])
    share = 51 / SIDE**2
    assert float(drop["local-perturbation"]) == pytest.approx(share * 0.8 / 0.9, abs=1e-9)


class Oblong(ConvModel):
    """Channels of different mean and spread, images that are higher than wide."""

    mean, std = (0.5, 0.4, 0.6), (0.25, 0.2, 0.3)
    input_shape = (3, SIDE, 24)


def perturbed(kind: str, colours: Tensor, generator: torch.Generator) -> Tensor:
    """[3, H, W] in [0, 1] -> the same, disturbed everywhere, by the letter of the documentation."""
    red, green, blue = colours
    if kind == "recolour":
        return torch.stack([1 - green, 1 - blue, 1 - red])
    if kind == "blur":
        sigma = min(red.shape) / 10
        planes = [gaussian_filter(c.numpy(), sigma, mode="mirror", radius=int(3 * sigma)) for c in colours]
        return torch.stack([torch.from_numpy(plane) for plane in planes])
    drawn = torch.randn(colours.shape, generator=generator, dtype=torch.float64)
    return torch.clamp(colours + 0.2 * drawn, 0, 1)


@pytest.mark.parametrize("kind", ["blur", "recolour", "noise"])
@pytest.mark.parametrize("made", [ConvModel, Oblong])
def test_the_colours_of_the_region_are_disturbed_as_the_naive_loop_does(made: type[ConvModel], kind: str) -> None:
    inner = made().double().eval()
    model = contract(inner)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (inner.mean, inner.std))
    generator = torch.Generator().manual_seed(8)
    colours = torch.rand(2, *inner.input_shape, generator=generator, dtype=torch.float64)
    targets = Targets(torch.tensor([1, 0, 1, 0]), torch.tensor([3, 2, 0, 1]))
    maps = torch.rand(4, *inner.input_shape[1:], generator=generator, dtype=torch.float64)
    images, regions = (colours - mean) / std, percentile_region(maps)
    before = model.activations(images[targets.images], targets.prototypes).detach()
    wanted = []
    for row, (image, prototype) in enumerate(targets):
        draws = pair_generator(images[image], prototype, 5, "local-perturbation")
        mixed = torch.where(regions[row], perturbed(kind, colours[image], draws), colours[image])
        assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
        after = model.activations(((mixed - mean) / std)[None])[0, prototype].detach()
        wanted.append(1 - after / before[row])
    ours = local_perturbation(model, images, targets, maps, before, 0.0, kinds=[kind], seed=5, batch=3)
    torch.testing.assert_close(ours[f"local-perturbation-{kind}"], torch.stack(wanted), rtol=0, atol=1e-9)


# --- the attack outside the region ----------------------------------------------------------------------------------


def test_of_a_linear_model_the_attack_finds_the_optimum() -> None:
    """Block mean: what is free of the block goes down by epsilon, the rest stays; colours stay valid."""
    model = contract(BlockModel([BLOCK], SIDE))
    images = torch.full((3, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    images[2] = 0.04  # epsilon would leave the range of colours
    spared = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    spared[0, :12] = True  # half of the block
    spared[1] = block_map()[0] > 0  # all of it
    changed = attack_outside(model, images, torch.zeros(3, dtype=torch.int64), spared, Attack(iterations=30))
    assert model.activations(changed)[:, 0].tolist() == pytest.approx([0.45, 0.5, 0.0], abs=1e-12)
    assert torch.equal(changed.masked_select(spared[:, None]), images.masked_select(spared[:, None]))
    assert float((changed - images).abs().max()) <= 0.1 + 1e-12
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_the_attack_attacks_where_the_published_one_does_not() -> None:
    """On a convolutional model, also from a prototype's own image, where the gradient at the start is zero."""
    model, images, targets, _, before = conv_problem()
    free = torch.zeros(5, SIDE, SIDE, dtype=torch.bool)
    mine = images[targets.images]
    after = {}
    for mode in ("descent", "published"):
        changed = attack_outside(model, mine, targets.prototypes, free, Attack(mode=mode))
        assert float((changed - mine).abs().max()) <= 0.1 + 1e-12
        after[mode] = model.activations(changed, targets.prototypes).detach() / before
    assert (after["descent"] < after["published"]).all()
    assert float((1 - after["descent"]).mean()) > 3 * float((1 - after["published"]).abs().mean())
    none = torch.ones_like(free)
    assert torch.equal(attack_outside(model, mine, targets.prototypes, none), mine)


def test_a_prototypes_own_image_has_no_gradient_and_is_attacked_all_the_same() -> None:
    class Near(nn.Module):
        """exp(-mean squared distance to a grey image): the gradient on the grey image itself is zero."""

        num_prototypes, input_shape = 1, (3, SIDE, SIDE)
        mean, std, activation_range = (0.0,) * 3, (1.0,) * 3, (0.0, 1.0)

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = torch.exp(-(images - 0.5).square().mean((1, 2, 3)))[:, None]
            return values if prototypes is None else values[:, 0]

    image = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    free = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    changed = attack_outside(contract(Near()), image, torch.zeros(1, dtype=torch.int64), free, Attack(iterations=30))
    torch.testing.assert_close((changed - image).abs(), torch.full_like(image, 0.1), rtol=0, atol=1e-9)


def tried(model: Contract, image: Tensor, prototype: int, spared: Tensor, attack: Attack) -> list[Tensor]:
    """The image, the start and every step from there; the colours are (0.25 x + 0.5), as ConvModel has them."""
    generator = pair_generator(image, prototype, attack.seed, "misalignment")
    drawn = torch.rand(image.shape, generator=generator, dtype=torch.float64)

    def allowed(pushed: Tensor) -> Tensor:
        near = pushed.clamp(image - attack.epsilon, image + attack.epsilon)
        return torch.where(spared, image, ((0.25 * near + 0.5).clamp(0, 1) - 0.5) / 0.25)

    found = [image, allowed(image + attack.epsilon * (2 * drawn - 1))]
    for _ in range(attack.iterations):
        now = found[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.activations(now[None])[0, prototype], now)
        found.append(allowed(found[-1] - attack.step * gradient.sign()))
    return found


@pytest.mark.parametrize("attack", [Attack(), Attack(0.02, 1e-4, 1, seed=7)], ids=["strong", "weak"])
def test_the_attack_keeps_the_lowest_of_the_image_the_start_and_every_step(attack: Attack) -> None:
    model, images, targets, maps, _ = conv_problem()
    spared = maps > 0.9
    chosen, wanted = [], []
    for row, (image, prototype) in enumerate(targets):
        candidates = tried(model, images[image], prototype, spared[row], attack)
        values = [float(model.activations(one[None])[0, prototype].detach()) for one in candidates]
        chosen.append(values.index(min(values)))
        wanted.append(candidates[chosen[-1]])
    if attack.iterations == 1:  # for some the start and the step from it are no gain, for others they are
        assert 0 in chosen
        assert max(chosen) > 0
    ours = attack_outside(model, images[targets.images], targets.prototypes, spared, attack, batch=2)
    torch.testing.assert_close(ours, torch.stack(wanted), rtol=0, atol=1e-9)


def test_where_nothing_is_lower_the_image_itself_is_what_the_attack_finds() -> None:
    class Bowl(BlockModel):
        """Lowest on a grey image: every change is a gain."""

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = (0.3 + (images - 0.5).square().mean((1, 2, 3)))[:, None]
            return values if prototypes is None else values[:, 0]

    model = contract(Bowl([BLOCK], SIDE))
    image = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    targets, before = Targets(torch.tensor([0]), torch.tensor([0])), torch.tensor([0.3], dtype=torch.float64)
    attack = Attack(iterations=1)
    found = attack_outside(model, image, targets.prototypes, torch.zeros(1, SIDE, SIDE, dtype=torch.bool), attack)
    assert torch.equal(found, image)
    assert float(misalignment_scores(model, image, targets, block_map(), before, 0.0, attack=attack)["pac"]) == 0


@pytest.mark.parametrize("classed", [True, False], ids=["classed", "no weights"])
def test_misalignment_is_the_naive_loop_over_the_attacked_images(classed: bool) -> None:
    """Six prototypes, of the classes 0 0 1 1 2 2 where the model tells; a pair of each, in two chunks."""
    inner = ConvModel(prototypes=6, classes=3).double().eval()
    if not classed:
        inner.class_weights = lambda: None  # type: ignore[method-assign, assignment, return-value]
    model, generator = contract(inner), torch.Generator().manual_seed(1)
    images = (torch.rand(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) - 0.5) / 0.25
    targets = Targets(torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([5, 0, 1, 2, 3, 4]))
    maps = torch.rand(6, SIDE, SIDE, generator=generator, dtype=torch.float64)
    before = model.activations(images[targets.images], targets.prototypes).detach()
    floor, attack, tenth = before / torch.arange(2, 8), Attack(iterations=8, seed=3), round(SIDE**2 / 10)

    def overtaken(values: list[float], mine: int) -> int:
        rivals = [p for p in range(6) if (p // 2 != mine // 2 if classed else p != mine)]
        return sum(values[p] > values[mine] for p in rivals)

    def top(own: Tensor) -> set[int]:
        large = F.interpolate(own[None, None], (SIDE, SIDE), mode="bilinear")[0]
        return set(rank(large)[0, :tenth].tolist())

    wanted: dict[str, list[float]] = {"plc": [], "prc": [], "pac": []}
    for row, (image, prototype) in enumerate(targets):
        spared = maps[row] >= maps[row].flatten().sort(descending=True).values[tenth - 1]
        whole = images[image][None]
        attacked = attack_outside(model, whole, torch.tensor([prototype]), spared[None], attack)
        old, new = (inner.similarity_maps(shown)[0].detach() for shown in (whole, attacked))
        first, then = (top(own[prototype]) for own in (old, new))
        peaks, after = old.amax((1, 2)).tolist(), new.amax((1, 2)).tolist()
        wanted["plc"].append(1 - len(first & then) / len(first | then))
        wanted["prc"].append(overtaken(after, prototype) - overtaken(peaks, prototype))
        wanted["pac"].append(float(1 - (after[prototype] - floor[row]) / (before[row] - floor[row])))
    ours = misalignment_scores(model, images, targets, maps, before, floor, attack=attack, batch=4)
    for name, values in wanted.items():
        assert len(set(values)) > 2, name
        assert ours[name].tolist() == pytest.approx(values, abs=1e-9), name


def test_the_location_of_a_model_that_tells_occurrences_is_theirs() -> None:
    inner = ConvModel().double().eval()
    model, images, targets, maps, before = conv_problem()
    wanted = misalignment_scores(model, images, targets, maps, before, 0.0)["plc"]
    inner.occurrence_maps = inner.similarity_maps  # type: ignore[assignment]
    inner.similarity_maps = lambda shown: None  # type: ignore[method-assign, assignment, return-value]
    inner.activations = model.activations  # type: ignore[method-assign]
    told = misalignment_scores(contract(inner), images, targets, maps, before, 0.0)
    torch.testing.assert_close(told["plc"], wanted, rtol=0, atol=1e-9)
    assert not wanted.isnan().any()


def test_an_image_outside_the_range_of_colours_is_pushed_no_further_out() -> None:
    model, images, targets, maps, _ = conv_problem()
    far = images * 4
    outside = (0.25 * far + 0.5 < 0) | (0.25 * far + 0.5 > 1)
    assert outside.any()
    shown, spared = far[targets.images], maps > 0.9
    found = attack_outside(model, shown, targets.prototypes, spared, Attack())
    assert not torch.equal(found, shown)
    beyond = torch.where(outside, far, 0)[targets.images]
    assert (found.abs() <= beyond.abs().clamp(min=2) + 1e-9).all()  # mean .5, std .25: colours end at 2
    assert float((found - shown).abs().max()) <= Attack().epsilon + 1e-9


def test_nothing_couples_the_batch() -> None:
    model, images, targets, maps, before = conv_problem()
    whole = misalignment_scores(model, images, targets, maps, before, 0.0)
    for batch in (1, 2):
        part = misalignment_scores(model, images, targets, maps, before, 0.0, batch=batch)
        for name, values in whole.items():
            torch.testing.assert_close(part[name], values, rtol=0, atol=1e-9)
    floor = torch.where(torch.arange(5) == 2, before, 0)
    partly = misalignment_scores(model, images, targets, maps, before, floor)
    assert all(values.isnan().tolist() == [False, False, True, False, False] for values in partly.values())
    assert (whole["pac"] > 0).all()


def test_sparing_the_part_leaves_nothing_to_attack() -> None:
    model = contract(BlockModel([BLOCK], SIDE))
    image = torch.full((1, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    targets, before = Targets(torch.tensor([0]), torch.tensor([0])), torch.tensor([0.5], dtype=torch.float64)
    right = misalignment_scores(model, image, targets, block_map(), before, 0.0)
    wrong = misalignment_scores(model, image, targets, block_map((20, 20, 30, 30)), before, 0.0)
    assert float(right["pac"]) == 0
    assert float(wrong["pac"]) == pytest.approx(0.2, abs=1e-9)
    assert float(right["prc"]) == float(wrong["prc"]) == 0  # no other prototype that could overtake
    assert right["plc"].isnan().all()  # a model without maps


def test_the_model_comes_back_as_it_came() -> None:
    model = ConvModel().train()
    images = torch.rand(1, 3, SIDE, SIDE)
    before = snapshot(model)
    attack_outside(contract(model), images, torch.tensor([1]), torch.zeros(1, SIDE, SIDE, dtype=torch.bool))
    assert same(before, snapshot(model))


def test_plc_prc_and_pac_by_hand() -> None:
    assert pac(torch.tensor([1.0, 0.25, -0.5])).tolist() == [0, 0.75, 1.5]
    before = torch.tensor([[5.0, 4, 3, 2], [5, 4, 3, 2]])
    after = torch.tensor([[2.5, 4, 3, 2], [5, 4, 1, 2]])
    others = torch.tensor([[False, False, True, True], [True, True, False, False]])
    # Row 0: only prototype 2, of another class, overtakes it. Row 1: both others were above before.
    assert prc(before, after, torch.tensor([0, 2]), others).tolist() == [1, 0]
    maps = torch.zeros(3, 10, 10)
    maps[:, :2, :5] = 1
    moved = maps.clone()
    moved[1] = maps[1].flip(0)
    moved[2] = 0
    assert plc(maps, moved).tolist() == plc(1e-9 * maps, 1e-9 * moved).tolist() == [0, 1, 1]
    assert plc(moved, maps).isnan().tolist() == [False, False, True]


def test_what_is_spared_has_one_area_unlike_the_published_boxes() -> None:
    maps = torch.rand(4, 40, 50, generator=torch.Generator().manual_seed(0))
    pixels = spared_pixels(maps)
    assert pixels.flatten(1).sum(1).tolist() == [200] * 4
    assert torch.equal(pixels, top_pixels(maps, 200))
    boxes = spared_boxes(maps, margin=0.05)
    assert boxes.float().mean() > 0.9  # scattered maps: nearly everything
    one = torch.zeros(1, 40, 50)
    one[0, 10:20, 5:15] = 1  # the top 5 %, 100 pixels
    inside = torch.zeros(40, 50, dtype=torch.bool)
    inside[8:22, 3:17] = True
    assert torch.equal(spared_boxes(one, margin=0.05)[0], inside)
