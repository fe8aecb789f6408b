"""CaBRNet's own evaluation against our metrics: equal numbers where both define the same, and what differs where not.

Defined alike:

- ``energy_relevance`` is ``energy`` on maps that are nowhere negative. CaBRNet does not clip negative values, scores a
  constant map by the annotation's area and an image without annotation as 0; ours clips, scores a constant map 0, and
  leaves the other undefined.
- ``mask_relevance`` is ``relevance`` where its area is the annotation's, and ``activation-precision`` where it is 5 %,
  once its cut is moved by one pixel: it keeps the pixels *above* a value, and so ceil(n p) - 1 of n and not n p, and
  none of a plateau that reaches the cut. Ours keeps round(n p) always, and breaks ties.
- the local perturbation analysis with its blur set to ours (sigma a tenth of the side) is
  ``local-perturbation-blur`` where the map is our region, the highest 5 %, and the activation is read at the old
  highest cell, as CaBRNet reads it. Pooled again, as the model does and we do, the drop is never larger. Its pictures
  are rounded to 8 bits. CaBRNet's other perturbations (brightness, contrast, saturation, hue, waves) and its dual score
  have no counterpart here; it has none of ``-recolour`` and ``-noise``.

It has no part metrics, no deletion or insertion and no attacks: nothing else of ours is comparable.
"""

from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from protomask.metrics import activation_precision, energy, local_perturbation, relevance
from protomask.metrics._ranking import first_pixels, top_count
from protomask.model import contract
from protomask.records import Targets
from protomask.region import rank
from protopnet_ext.cabrnet import wrap

from .patching_tools import normalise
from .test_patch_cabrnet import SIZE, picture, projected  # skips where CaBRNet is not installed

pytestmark = pytest.mark.filterwarnings("ignore")  # CaBRNet's own, and those of what it imports
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cabrnet.core.evaluation import local_perturbation_analysis as perturbation
    from cabrnet.core.evaluation.relevance_analysis import pg_energy_relevance, pg_mask_relevance

EXACT = 1e-12  # float64 sums, added in another order
ROUNDED = 1e-3  # float32, magnified by the logarithm near a distance of 0; 8 bits may be rounded either way


def maps_and_regions(count: int = 8, height: int = 24, width: int = 25) -> tuple[Tensor, Tensor]:
    """Maps [N, H, W] float64 in [0, 1) without ties, and annotated boxes of all sizes, bool."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand((count, height, width), generator=generator, dtype=torch.float64)
    regions = torch.zeros((count, height, width), dtype=torch.bool)
    for row in range(count):
        regions[row, row : row + 3 + row, 2 : 4 + 3 * row] = True
    return maps, regions


def segmentation(region: Tensor) -> np.ndarray:
    """As CaBRNet loads it: a picture [H, W, 3]."""
    return np.repeat(region.numpy()[..., None].astype(np.uint8) * 255, 3, axis=2)


def theirs(function: Any, maps: Tensor, regions: Tensor, *args: Any) -> list[float]:
    return [float(function(m.numpy(), segmentation(r), *args)) for m, r in zip(maps, regions, strict=True)]


def test_energy() -> None:
    maps, regions = maps_and_regions()
    assert energy(maps, regions).tolist() == pytest.approx(theirs(pg_energy_relevance, maps, regions), abs=EXACT)


def test_energy_of_negative_and_constant_maps_and_without_annotation() -> None:
    maps, regions = maps_and_regions()
    signed = maps - 0.5
    found = energy(signed, regions).tolist()
    assert found == pytest.approx(theirs(pg_energy_relevance, signed.clamp(min=0), regions), abs=EXACT)
    unclipped = theirs(pg_energy_relevance, signed, regions)
    assert max(abs(a - b) for a, b in zip(found, unclipped, strict=True)) > 0.1
    assert not all(0 <= share <= 1 for share in unclipped)
    flat = torch.ones_like(maps)
    areas = regions.double().mean((1, 2)).tolist()
    assert theirs(pg_energy_relevance, flat, regions) == pytest.approx(areas, abs=EXACT)
    assert energy(flat, regions).tolist() == [0] * len(maps)
    assert theirs(pg_energy_relevance, maps, regions & False) == [0] * len(maps)
    assert energy(maps, regions & False).isnan().all()


def test_mask_relevance_at_the_annotations_own_area() -> None:
    maps, regions = maps_and_regions()
    found, pixels = relevance(maps, regions), maps[0].numel()
    for row, region in enumerate(regions):
        area = (int(region.sum()) + 0.5) / pixels
        (wanted,) = theirs(pg_mask_relevance, maps[row : row + 1], region[None], area)
        assert float(found[row]) == pytest.approx(wanted, abs=EXACT)


def test_mask_relevance_at_five_per_cent_keeps_one_pixel_fewer() -> None:
    maps, regions = maps_and_regions()
    pixels = maps[0].numel()
    count = top_count(pixels)
    moved = theirs(pg_mask_relevance, maps, regions, (count + 0.5) / pixels)
    assert activation_precision(maps, regions).tolist() == pytest.approx(moved, abs=EXACT)
    as_published = theirs(pg_mask_relevance, maps, regions, 0.05)
    fewer = first_pixels(rank(maps), count - 1, (maps.shape[1], maps.shape[2]))
    wanted = (fewer & regions).sum((1, 2)).double() / (count - 1)
    assert as_published == pytest.approx(wanted.tolist(), abs=EXACT)


def test_mask_relevance_of_a_plateau() -> None:
    _, regions = maps_and_regions()
    binary = regions.double()
    large = regions.double().mean((1, 2)) > 0.1
    assert large.any()
    assert theirs(pg_mask_relevance, binary[large], regions[large], 0.05) == [0] * int(large.sum())
    assert activation_precision(binary[large], regions[large]).tolist() == [1] * int(large.sum())


class Rounded:
    """CaBRNet's activations on pictures of 8 bits: what its analysis passes, as it saves and loads the pictures."""

    def __init__(self, model: Any, cell: tuple[int, int] | None = None) -> None:
        inner = wrap(model, input_shape=(3, SIZE, SIZE), cell=cell)
        self.activations_of, self.module = inner.activations, inner.module
        self.num_prototypes, self.input_shape = inner.num_prototypes, inner.input_shape
        self.activation_range, self.mean, self.std = inner.activation_range, inner.mean, inner.std

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        pixels = ((denormalise(images) * 255).round() / 255).clamp(0, 1)
        return self.activations_of(normalise(pixels), prototypes)


def denormalise(images: Tensor) -> Tensor:
    low, high = normalise(torch.zeros_like(images)), normalise(torch.ones_like(images))
    return (images - low) / (high - low)


def analysed(model: Any, index: int, regions: Tensor) -> dict[int, dict[str, Any]]:
    """CaBRNet's analysis of one picture under our blur, by prototype; its map is the region."""
    sigma = SIZE / 10
    blur = {"gaussian_blur_ksize": 2 * int(3 * sigma) + 1, "gaussian_blur_sigma": sigma}
    image = picture(index)

    def preprocess(img: Any) -> Tensor:
        return normalise(torch.from_numpy(np.array(img)).permute(2, 0, 1).float()[None] / 255)[0]

    def attribution(img: Any, img_tensor: Any, proto_idx: int, location: Any, device: Any) -> np.ndarray:
        return regions[proto_idx].numpy().astype(np.float32)

    stats = perturbation.analyze(
        model=model,
        img=image,
        img_id=index,
        preprocess=preprocess,
        visualizer=types.SimpleNamespace(get_attribution=attribution),
        device="cpu",
        perturbations={"blur": {"type": "blur", "params": blur}},
        num_prototypes=len(regions),
        enable_dual_mode=False,
    )
    return {row["proto_idx"]: row for row in stats}


def test_local_perturbation_by_blurring() -> None:
    model, _ = projected()
    moved = compared = 0
    for index in range(6):
        pixels = torch.from_numpy(np.array(picture(index))).permute(2, 0, 1).float()[None] / 255
        images = normalise(pixels)
        highest = model.similarities(images)[0].flatten(1).argmax(1)
        centres = (torch.stack([highest // 4, highest % 4], 1) + 0.5) * SIZE / 4
        away = (torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)) - centres[:, None]).square().sum(2)
        maps = torch.exp(-away / 60).view(6, SIZE, SIZE)
        regions = first_pixels(rank(maps), top_count(SIZE * SIZE), (SIZE, SIZE))
        for prototype, row in analysed(model, index, regions).items():
            wanted = (row["original_score"] - row["score_after_perturbation"]) / row["original_score"]
            found = {}
            for name, cell in (("their cell", (row["h"], row["w"])), ("pooled", None)):
                adapter = contract(Rounded(model, cell))
                before = adapter.activations(images, torch.tensor([prototype])).detach()
                target, one = Targets(torch.tensor([0]), torch.tensor([prototype])), maps[prototype][None]
                drops = local_perturbation(adapter, images, target, one, before, 0.0, kinds=("blur",))
                found[name] = float(drops["local-perturbation-blur"])
            assert found["their cell"] == pytest.approx(wanted, abs=ROUNDED)
            assert found["pooled"] <= wanted + ROUNDED
            moved += found["pooled"] < wanted - 5 * ROUNDED
            compared += abs(wanted) > 10 * ROUNDED
    assert compared >= 6
    assert moved  # the highest cell was another one afterwards: their drop is not the prototype's
