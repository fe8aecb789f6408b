"""Noisy linear imputation against scipy's direct solver and closed forms, and the causal scores under it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from protomask.errors import InputError
from protomask.metrics import Imputation, curves, faithfulness_scores, impute
from protomask.metrics.imputation import TOLERANCE, _Solver
from protomask.model import contract
from protomask.records import Targets
from protomask.region import rank
from tests.toys import BlockModel, ConvModel


def noise_and_holes(height: int = 21, width: int = 26) -> tuple[Tensor, Tensor]:
    """Four images, float64: scattered holes, a block of them at the border, nearly everything, and all but a pixel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, height, width, generator=generator, dtype=torch.float64)
    shares = torch.tensor([0.3, 0.0, 0.95, 1.0])[:, None, None]
    holes = torch.rand(4, height, width, generator=generator) < shares
    holes[1, 5:17, :9] = True
    holes[3, 4, 7] = False
    return images, holes


def direct(image: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """One image by scipy: each hole is the mean of its neighbours, 1/6 beside and 1/12 at the corners."""
    where = [tuple(p) for p in np.argwhere(holes)]
    place = {p: i for i, p in enumerate(where)}
    matrix, right = lil_matrix((len(where), len(where))), np.zeros((len(where), len(image)))
    for (y, x), i in place.items():
        for dy, dx in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
            weight, there = 1 / 12 if dy and dx else 1 / 6, (y + dy, x + dx)
            if 0 <= there[0] < holes.shape[0] and 0 <= there[1] < holes.shape[1]:
                matrix[i, i] += weight
                if there in place:
                    matrix[i, place[there]] -= weight
                else:
                    right[i] += weight * image[:, there[0], there[1]]
    filled = image.copy()
    filled[:, holes] = spsolve(matrix.tocsc(), right).T
    return filled


def test_it_solves_the_linear_system_that_scipy_solves() -> None:
    images, holes = noise_and_holes()
    ours = impute(images, holes, tolerance=1e-11)
    for k in range(len(images)):
        np.testing.assert_allclose(ours[k].numpy(), direct(images[k].numpy(), holes[k].numpy()), rtol=0, atol=1e-8)
    rough = impute(images.float(), holes)
    assert float((rough.double() - ours).abs().max()) < 0.05
    assert float((rough.double() - ours).abs().mean()) < 2e-3  # the noise that goes on top is .01


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (8, 1), (2, 3), (5, 4), (16, 16), (33, 50)])
def test_any_size_is_solved(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    images = torch.randn(3, 2, height, width, generator=generator, dtype=torch.float64)
    holes = torch.rand(3, height, width, generator=generator) < torch.tensor([0.2, 0.6, 0.9])[:, None, None]
    holes[:, -1, -1] = False
    ours = impute(images, holes, tolerance=1e-11)
    for k in range(3):
        wanted = direct(images[k].numpy(), holes[k].numpy()) if holes[k].any() else images[k].numpy()
        np.testing.assert_allclose(ours[k].numpy(), wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("rough", [0.0, 0.7])
def test_a_large_image_takes_few_rounds(share: float, rough: float) -> None:
    """Holes of a smooth or a rough map, as a deletion curve makes them; the time of a round does not depend on it."""
    generator = torch.Generator().manual_seed(3)
    images, maps = (
        F.interpolate(torch.randn(2, c, n, n, generator=generator), size=(225, 225), mode="bicubic")
        for c, n in ((3, 40), (1, 12))
    )
    maps = maps + rough * torch.randn(maps.shape, generator=generator)
    holes = maps <= maps.flatten(1).quantile(share, dim=1)[:, None, None, None]
    solved, rounds = _Solver(images).solve(images, holes, TOLERANCE)
    assert rounds <= 5
    exact, _ = _Solver(images.double()).solve(images.double(), holes, 1e-9)
    wrong = (solved - exact).abs().masked_select(holes)
    assert float(wrong.mean()) < 3e-3 * float(images.std())


def test_images_in_one_batch_are_solved_as_one_by_one() -> None:
    """A CPU takes one image and its holes' box at a time, another device the whole batch."""
    images, holes = noise_and_holes()
    together, _ = _Solver(images).solve(images, holes[:, None], TOLERANCE)
    for k in range(len(images)):
        alone, _ = _Solver(images[:1]).solve(images[k : k + 1], holes[k : k + 1, None], TOLERANCE)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-12)
    tight, _ = _Solver(images).solve(images, holes[:, None], 1e-11)
    boxed = impute(images, holes, tolerance=1e-11)
    torch.testing.assert_close(torch.where(holes[:, None], tight, images), boxed, rtol=0, atol=1e-8)


def test_what_was_in_a_hole_does_not_count() -> None:
    images, holes = noise_and_holes()
    odd = images.requires_grad_().masked_fill(holes[:, None], 1e30)
    torch.testing.assert_close(impute(odd, holes), impute(images, holes), rtol=0, atol=0)


def test_a_constant_image_stays_and_known_pixels_do_not_move() -> None:
    images, holes = noise_and_holes()
    constant = torch.full_like(images, 0.3)
    torch.testing.assert_close(impute(constant, holes, tolerance=1e-9), constant, rtol=0, atol=1e-6)
    kept = impute(images, holes)
    assert torch.equal(kept.masked_select(~holes[:, None]), images.masked_select(~holes[:, None]))
    low, high = (images.masked_fill(holes[:, None], v).flatten(2) for v in (torch.inf, -torch.inf))
    inner = impute(images, holes, tolerance=1e-11).flatten(2)  # a harmonic function has its extremes at the border
    assert (inner >= low.amin(2, keepdim=True) - 1e-8).all()
    assert (inner <= high.amax(2, keepdim=True) + 1e-8).all()


def test_where_nothing_is_known_the_mean_colour_stands_in() -> None:
    images, holes = noise_and_holes()
    assert not impute(images, torch.ones_like(holes)).any()
    assert torch.equal(impute(images, torch.zeros_like(holes)), images)


def test_members_do_not_wait_for_each_other() -> None:
    images, holes = noise_and_holes()
    together = impute(images, holes)
    for k in range(len(images)):
        torch.testing.assert_close(together[k : k + 1], impute(images[k : k + 1], holes[k : k + 1]), rtol=0, atol=1e-12)


def test_the_noise_is_the_images_own() -> None:
    images, holes = noise_and_holes()
    fill = Imputation.of(images, seed=1)
    assert float(fill.noise.std()) == pytest.approx(0.01, rel=0.05)
    torch.testing.assert_close(Imputation.of(images[2:3], seed=1).noise, fill.noise[2:3], rtol=0, atol=0)
    assert not torch.equal(Imputation.of(images, seed=2).noise, fill.noise)
    there = torch.tensor([2, 0])
    mixed = fill(images[there], there, holes[there])
    noise = (mixed - impute(images[there], holes[there])).masked_select(holes[there][:, None])
    assert torch.equal(noise != 0, torch.ones_like(noise, dtype=torch.bool))
    quiet = Imputation.of(images, noise=0)(images[there], there, holes[there])
    torch.testing.assert_close(quiet, impute(images[there], holes[there]), rtol=0, atol=0)


def test_curves_under_imputation_are_the_naive_ones() -> None:
    model = contract(ConvModel().double().eval())
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    targets = Targets(torch.tensor([1, 0, 1]), torch.tensor([0, 3, 2]))
    maps = torch.rand(3, 32, 32, generator=generator, dtype=torch.float64)
    before = model.activations(images[targets.images], targets.prototypes).detach()
    fill, order = Imputation.of(images), rank(maps)
    found = curves(model, images, targets, order, fill, before, 0.0, steps=4, kind="deletion", batch=2)
    for row, (image, prototype) in enumerate(targets):
        for step in (1, 2, 3):
            holes = torch.zeros(1, 32 * 32, dtype=torch.bool)
            holes[0, order[row, : step * 256]] = True
            mixed = fill(images[image][None], torch.tensor([image]), holes.view(1, 32, 32))
            wanted = float(model.activations(mixed)[0, prototype].detach() / before[row])
            assert float(found[row, step]) == pytest.approx(wanted, abs=1e-9)
    scores = faithfulness_scores(model, images, targets, maps, fill, before, 0.0, steps=4, names=["deletion"])
    torch.testing.assert_close(scores["deletion"], (found[:, 1:] + found[:, :-1]).mean(1) / 2, rtol=0, atol=1e-12)
    assert list(scores) == ["deletion"]


def test_a_smooth_surrounding_betrays_nothing_of_a_part() -> None:
    """A bright block on grey: with its pixels imputed it is gone; with others imputed it stays."""
    model = contract(BlockModel([(10, 10, 18, 18)]))
    image = torch.full((1, 3, 32, 32), 0.2, dtype=torch.float64)
    image[:, :, 10:18, 10:18] = 1
    part = image[0, 0] > 0.5
    fill = Imputation.of(image, noise=0)
    for removed, wanted in ((part, 0.2), (~part, 1.0)):
        mixed = fill(image, torch.tensor([0]), removed[None])
        assert float(model.activations(mixed)) == pytest.approx(wanted, abs=0.01)


def test_wrong_holes_are_refused() -> None:
    with pytest.raises(InputError, match=r"removed: expected a bool tensor \[2, 4, 5\]"):
        impute(torch.rand(2, 3, 4, 5), torch.ones(2, 4, 4, dtype=torch.bool))
