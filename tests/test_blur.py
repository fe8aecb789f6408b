from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from protomask import blur
from protomask.blur import gaussian_blur
from protomask.fills import fill_images


@pytest.mark.parametrize(("size", "sigma"), [((20, 31), 1.5), ((64, 48), 6.4), ((9, 9), 3.0)])
def test_equals_scipy(size: tuple[int, int], sigma: float) -> None:
    image = np.random.default_rng(0).normal(size=size)
    radius = min(int(3 * sigma), min(size) - 1)
    expected = gaussian_filter(image, sigma, mode="mirror", radius=radius)
    assert np.abs(gaussian_blur(torch.from_numpy(image), sigma).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("together", [1, 2000, 1 << 17])
def test_company_changes_no_bit(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blur, "_CACHED", together)
    images = torch.randn(7, 3, 33, 29, generator=torch.Generator().manual_seed(0))
    together = gaussian_blur(images, 3.3)
    assert torch.equal(together, torch.cat([gaussian_blur(image[None], 3.3) for image in images]))


def test_no_image_is_no_error() -> None:
    assert gaussian_blur(torch.zeros(0, 3, 5, 4), 2.0).shape == (0, 3, 5, 4)


def test_a_constant_stays() -> None:
    assert torch.allclose(gaussian_blur(torch.full((5, 4), 0.3), 2.0), torch.full((5, 4), 0.3))


def test_fills_in_closed_form() -> None:
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    assert torch.equal(fill_images("mean", image, mean, std), torch.zeros_like(image))
    flat = fill_images("image-mean", image, mean, std)
    assert torch.equal(flat[1, 2], torch.full((8, 8), float(image[1, 2].mean()), dtype=torch.float64))
    black = fill_images("black", image, mean, std)
    assert [float(black[0, c, 0, 0]) for c in range(3)] == pytest.approx([-2.5, -1.6, -0.6])
    grey = fill_images("grey", image, mean, std)
    assert [float(grey[0, c, 0, 0]) for c in range(3)] == pytest.approx([0.0, 0.4, 0.4])
    assert torch.allclose(fill_images("blur", image, mean, std), gaussian_blur(image, 0.8))
