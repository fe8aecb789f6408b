from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import protomask
from protomask.errors import InputError
from protomask.localisers import LOCALISERS, make_localiser, settings_of
from protomask.localisers.upsampling import cell_centres, place
from protomask.metrics import (
    dice,
    energy,
    energy_floor,
    iou_best,
    iou_own_area,
    pixel_ap,
    pixel_auc,
    pointing_game,
    relevance,
)
from protomask.model import contract
from protomask.records import Localisation
from tests.toys import BlockModel, ConvModel, scenes


def published_crop(activation_map: np.ndarray, percentile: float = 95) -> list[int]:
    """ProtoPNet's box, from its description: the extent of all pixels at or above the percentile."""
    y, x = np.nonzero(activation_map >= np.percentile(activation_map, percentile))
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def test_upsampling_is_exactly_protopnets() -> None:
    model, images = ConvModel().eval(), scenes()
    found = protomask.locate(model, images, "all", "upsampling")
    with torch.no_grad():
        maps = model.similarity_maps(images)
    for row, (image, prototype) in enumerate(found.targets):
        up = cv2.resize(maps[image, prototype].numpy(), dsize=(32, 32), interpolation=cv2.INTER_CUBIC)
        expected = (up - up.min()) / (up.max() - up.min())
        assert np.abs(found.maps[row].numpy() - expected).max() < 1e-6
        box = found.boxes[row].tolist()
        # numpy interpolates between order statistics, so one pixel may fall on the other side of the threshold.
        assert np.abs(np.array(box) - published_crop(up)).max() <= 1


class Strided(nn.Module):
    """One flat convolution of kernel 2 r + 1, stride s and padding p: cell i is centred at s i + r - p."""

    num_prototypes = 1
    mean, std = (0.0,), (1.0,)
    input_shape = (1, 48, 64)

    def __init__(self, reach: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 2 * reach + 1, stride, padding, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def similarity_maps(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = F.adaptive_max_pool2d(self.similarity_maps(images), 1).flatten(1)
        return values if prototypes is None else values[:, 0]


@pytest.mark.parametrize(("reach", "stride", "padding"), [(1, 4, 0), (2, 8, 2), (0, 16, 0), (3, 8, 1)])
def test_centres_in_closed_form(reach: int, stride: int, padding: int) -> None:
    model = Strided(reach, stride, padding)
    rows, columns = cell_centres(contract(model), torch.zeros(1, 1, 48, 64))
    for centres, size in ((rows, 48), (columns, 64)):
        exact = stride * np.arange(len(centres)) + reach - padding
        inside = (exact - reach >= 0) & (exact + reach < size)  # at the border the image cuts the kernel
        assert np.abs(centres[inside] - exact[inside]).max() < 1e-6
        assert (np.diff(centres) >= 0).all()


def test_a_cell_is_placed_at_its_centre() -> None:
    coarse = np.zeros((5, 6), np.float32)
    coarse[2, 3] = 1
    rows, columns = np.array([0.0, 9, 21, 30, 39]), np.array([1.0, 11, 20, 33, 40, 55])
    fine = place(coarse, rows, columns, (40, 60))
    assert np.unravel_index(fine.argmax(), fine.shape) == (21, 33)
    assert fine[21, 33] == pytest.approx(1)
    for y, x in ((9, 33), (21, 20), (30, 33), (21, 40)):
        assert fine[y, x] == pytest.approx(0, abs=1e-3)
    assert np.allclose(fine[39, :], fine[39, :])
    flat = place(np.full((5, 6), 0.7, np.float32), rows, columns, (40, 60))
    assert np.allclose(flat, 0.7)


def test_centred_and_plain_upsampling_agree_where_cells_lie_in_the_middle() -> None:
    model = Strided(0, 8, 0)
    model.conv = nn.Conv2d(1, 1, 8, 8, bias=False)
    nn.init.constant_(model.conv.weight, 1.0)
    images = torch.rand(2, 1, 48, 64, generator=torch.Generator().manual_seed(0))
    plain, centred = (protomask.locate(model, images, "all", m).maps for m in ("upsampling", "upsampling-centred"))
    inside = (slice(None), slice(8, -8), slice(8, -8))
    # OpenCV's remap rounds positions to 1/32 of a cell.
    assert float((plain - centred)[inside].abs().max()) < 0.05


def test_centre_is_a_gaussian_on_the_box_or_the_image() -> None:
    boxes = torch.tensor([[2.0, 4, 9, 13], [torch.nan] * 4])
    found = protomask.locate(ConvModel(), scenes(2), [(0, 0), (1, 1)], "centre", boxes=boxes, width=0.1)
    assert found.peaks.tolist()[0] == [5, 8]
    y, x = np.mgrid[:32, :32]
    expected = np.exp(-((x - 5) ** 2 + (y - 8) ** 2) / (2 * 3.2**2))
    assert np.abs(found.maps[0].numpy() - expected).max() < 1e-6
    whole = np.exp(-((x - 15.5) ** 2 + (y - 15.5) ** 2) / (2 * 3.2**2))
    assert np.abs(found.maps[1].numpy() - whole).max() < 1e-6


def test_annotation_is_the_annotation() -> None:
    regions = torch.zeros(2, 32, 32, dtype=torch.bool)
    regions[0, 5:15, 8:20] = True
    found = protomask.locate(ConvModel(), scenes(2), [(0, 0), (1, 1)], "annotation", regions=regions, region="own-area")
    assert found.boxes[0].tolist() == [8, 5, 20, 15]
    assert found.located.tolist() == [True, False]
    assert float(found.maps[0].sum()) == pytest.approx(120, rel=1e-3)
    assert float(found.maps[0][~regions[0]].abs().max()) == 0
    assert found.peaks[0].tolist() in [[x, y] for x in (13, 14) for y in (9, 10)]  # its middle


@pytest.mark.parametrize("side", [3, 9, 20])
def test_the_control_annotation_is_the_ceiling(side: int) -> None:
    """Also for annotations above 20 % of the image, of which energy-floor cuts off all but the highest."""
    regions = torch.zeros(1, 32, 32, dtype=torch.bool)
    regions[0, 6 : 6 + side, 5 : 5 + side] = True
    maps = protomask.locate(ConvModel(), scenes(1), [(0, 0)], "annotation", regions=regions).maps
    for metric in (energy, energy_floor, iou_best, iou_own_area, pointing_game, relevance, dice, pixel_auc, pixel_ap):
        assert float(metric(maps, regions)) == pytest.approx(1, abs=1e-9), metric.__name__


def test_random_depends_on_seed_image_and_prototype() -> None:
    images = scenes(3)
    maps = protomask.locate(ConvModel(), images, "all", "random").maps
    flat = maps.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.8
    shuffled = protomask.locate(ConvModel(), images[[2, 0]], [(0, 1), (1, 3)], "random").maps
    assert torch.equal(shuffled, maps[[2 * 4 + 1, 3]])


def test_a_user_adds_a_localiser_by_registering_it() -> None:
    from dataclasses import dataclass

    @protomask.register("left-half", "The left half of every image.")
    @dataclass(frozen=True)
    class LeftHalf:
        value: float = 1.0
        passes = 0.0

        def __call__(self, request: protomask.Request) -> protomask.Maps:
            maps = torch.zeros((len(request.targets), *request.size))
            maps[:, :, : request.size[1] // 2] = self.value
            return protomask.Maps(maps, masks=True)

    try:
        found = protomask.locate(ConvModel(), scenes(1), "all", "left-half", value=0.5, region="own-area")
        assert found.settings == {"value": 0.5}
        assert found.method == "left-half"
        with pytest.raises(InputError, match="name: expected one that is not registered yet, got 'left-half'"):
            protomask.register("left-half", "again")(LeftHalf)
        with pytest.raises(InputError, match="settings of left-half: expected one of value, got width"):
            make_localiser("left-half", {"width": 1})
    finally:
        del LOCALISERS["left-half"]


def test_a_localiser_without_its_passes_is_told_so() -> None:
    @protomask.register("silent", "It does not say what it costs.")
    def silent() -> object:
        return lambda request: protomask.Maps(torch.ones((len(request.targets), *request.size)))

    try:
        with pytest.raises(
            InputError, match=r"passes of silent: expected its forward \+ input-gradient passes per pair"
        ):
            protomask.locate(ConvModel(), scenes(1), "all", "silent")
    finally:
        del LOCALISERS["silent"]


def test_a_localiser_that_gives_nonsense_is_refused() -> None:
    def wrong_shape(request: protomask.Request) -> protomask.Maps:
        return protomask.Maps(torch.zeros(1, 2, 2))

    def not_finite(request: protomask.Request) -> protomask.Maps:
        return protomask.Maps(torch.full((len(request.targets), *request.size), torch.nan))

    for broken, message in ((wrong_shape, "expected shape"), (not_finite, "expected finite values")):
        broken.passes = 0.0  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=message):
            protomask.locate(ConvModel(), scenes(1), "all", broken)


def test_what_the_method_measured_is_not_measured_again() -> None:
    class Counting(ConvModel):
        seen = 0

        def activations(self, images: torch.Tensor, prototypes: torch.Tensor | None = None) -> torch.Tensor:
            self.seen += len(images)
            return super().activations(images, prototypes)

    def whole(request: protomask.Request) -> protomask.Maps:
        count = len(request.targets)
        return protomask.Maps(torch.rand(count, *request.size), after=torch.arange(count) / 10 if told else None)

    whole.passes = 0.0  # type: ignore[attr-defined]
    told, model = True, Counting()
    found = protomask.locate(model, scenes(2), [(0, 1), (1, 0)], whole)
    assert model.seen == 2
    assert found.activations_after.tolist() == pytest.approx([0.0, 0.1])
    told = False
    protomask.locate(model, scenes(2), [(0, 1), (1, 0)], whole)
    assert model.seen == 2 + 2 + 2


def test_settings_are_recorded_and_rebuild_the_method() -> None:
    for name, entry in LOCALISERS.items():
        made = entry.make()
        assert make_localiser(name, settings_of(made)) == made
        assert entry.sentence.endswith(".")


def test_mdm_keeps_vectors_that_rebuild_its_map() -> None:
    from protomask.masks import render
    from protomask.stack import stack

    model = BlockModel([(4, 4, 12, 12)])
    images = torch.full((1, 3, 32, 32), 0.1)
    images[:, :, 4:12, 4:12] = 0.9
    found: Localisation = protomask.locate(model, images, "all", scales=(4, 7), fill="black", gradient_power=0)
    rebuilt = stack(torch.stack([render(v, (32, 32)) for v in found.mask_vectors.values()]), "product")
    assert torch.equal(rebuilt, found.maps)
    assert found.masks
    assert found.fill == "black"
    weighed = protomask.locate(model, images, "all", scales=(4, 7), fill="black")
    assert not weighed.masks
    assert all(torch.equal(v, found.mask_vectors[s]) for s, v in weighed.mask_vectors.items())
    assert torch.equal(weighed.activations_after, found.activations_after)


def test_each_pair_takes_the_first_fill_that_does_not_leak() -> None:
    """A wide block keeps its brightness under blur, and needs the second fill; a narrow one does not."""
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :, :16] = 0.9
    images[:, :, 14:16, 24:26] = 0.9
    model = BlockModel([(0, 0, 10, 32), (24, 14, 26, 16)])
    fills = ("blur", "black", ("blur", "black"))
    blur, black, both = (protomask.locate(model, images, "all", fill=fill).mask_vectors[12] for fill in fills)
    assert torch.equal(both[0], black[0])
    assert torch.equal(both[1], blur[1])
    assert not torch.allclose(black[0], blur[0])
