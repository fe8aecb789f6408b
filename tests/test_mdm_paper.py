"""``mdm-paper`` against its description: one problem at a time, torch's Adam and interpolation, numpy's percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import protomask
from protomask.errors import InputError, ModelError
from protomask.localisers import LOCALISERS, MDMPaper
from protomask.localisers.mdm_paper import voted
from protomask.model import contract, untouched
from protopnet_ext import wrap as wrap_protopnet
from tests.localising import request_for
from tests.ppnet import ppnet
from tests.test_locate import same, snapshot
from tests.toys import BLOCKS, BlockModel, ConvModel, scenes
from tests.xprotonet import xprotonet
from xprotonet_ext import wrap as wrap_xprotonet

PAIRS = [(0, 0), (0, 2), (1, 1), (2, 3)]
# Steps and weights at which masks of so small a network take a shape; the default is the authors'.
SMALL: dict[str, Any] = {"scales": (3, 5, 4), "steps": 12, "learning_rate": 0.05, "consistency": 0.5, "votes": 2}


class Distant(ConvModel):
    """A ConvModel that tells its distances, of which its similarity is a falling function."""

    def distance_maps(self, images: Tensor) -> Tensor:
        return -8 * self.similarity_maps(images).log()


class Pooled(ConvModel):
    """A ConvModel with a vector per prototype in place of maps, as an XProtoNet has."""

    def prototype_features(self, images: Tensor) -> Tensor:
        features = self.body(images)
        gates = torch.sigmoid(torch.einsum("bdhw,pd->bphw", features, self.vectors))
        return torch.einsum("bdhw,bphw->bpd", features, gates) / 8

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        values = torch.exp(-(self.prototype_features(images) - self.vectors).square().sum(2) / 64)
        return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]

    def similarity_maps(self, images: Tensor) -> Tensor | None:  # type: ignore[override]
        return None


MODELS = {"distances": Distant, "similarities": ConvModel, "features": Pooled}


def exact(kind: str) -> ConvModel:
    return MODELS[kind]().double().eval()


def compared(model: Any, image: Tensor, prototype: int) -> Any:
    """A function from a masked image [1, C, H, W] to the sum of squared differences to the whole image's."""
    if isinstance(model, Pooled):
        whole = model.prototype_features(image)[0, prototype].detach()
        return lambda seen: ((model.prototype_features(seen)[0, prototype] - whole) ** 2).sum()
    maps = model.distance_maps if isinstance(model, Distant) else lambda x: -model.similarity_maps(x)
    first = maps(image)[0, prototype].detach()
    y, x = int(first.argmin()) // first.shape[1], int(first.argmin()) % first.shape[1]
    return lambda seen: (maps(seen)[0, prototype, y, x] - first[y, x]) ** 2


def alone(model: Any, image: Tensor, prototype: int, settings: MDMPaper, scale: int, cells: int, divisor: int) -> Any:
    """The mask [H, W] of one grid, and the steps that it took."""
    size = (image.shape[-2], image.shape[-1])
    upsample = nn.Upsample(size=size, mode="bilinear", align_corners=True)
    grid = nn.Parameter(torch.full((1, 1, cells, cells), settings.start, dtype=image.dtype))
    optimiser = torch.optim.Adam([grid], lr=settings.learning_rate)
    difference = compared(model, image, prototype)
    lowest, lowest_at, step = float("inf"), -1, 0
    while step < settings.steps + settings.extra_steps:
        if step >= settings.steps and step - lowest_at > settings.patience:
            break
        loss = settings.consistency * difference(upsample(grid) * image)
        loss = loss + settings.sparsity * grid.norm(p=1) / divisor
        if loss.item() < lowest:
            lowest, lowest_at = loss.item(), step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    return upsample(grid)[0, 0].detach().numpy(), step


def vote(masks: list[np.ndarray], percentile: float, votes: int) -> np.ndarray:
    total, ballots = np.zeros(masks[0].shape), np.zeros(masks[0].shape)
    for mask in masks:
        mask = mask - mask.min()
        mask = np.round(mask / mask.max() * 255) / 255
        total += mask
        ballots += mask >= np.percentile(mask, percentile)
    kept = total * (ballots >= votes) - votes
    found: np.ndarray = (kept - kept.min()) / (kept.max() - kept.min())
    return found


def one_by_one(model: Any, images: Tensor, settings: MDMPaper) -> tuple[Tensor, int]:
    """The maps [N, H, W] of PAIRS and the passes made."""
    maps, passes = [], 0
    for image, prototype in PAIRS:
        masks = []
        for scale in settings.scales:
            cells, divisor = scale, scale**2
            if settings.as_released:
                cells, divisor = (scale, 36) if isinstance(model, Pooled) else (10, scale**2)
            mask, steps = alone(model, images[image : image + 1], prototype, settings, scale, cells, divisor)
            masks.append(mask)
            passes += steps
        maps.append(torch.from_numpy(vote(masks, settings.percentile, settings.votes)))
    return torch.stack(maps), passes


def found(model: Any, images: Tensor, settings: MDMPaper, batch: int = 7) -> tuple[Tensor, int]:
    made: list[int] = []
    with untouched(contract(model).module):
        request = request_for(model, images, PAIRS, batch=batch, progress=made.append)
        maps = settings(request).maps
    return maps, sum(made)


VARIANTS: dict[str, dict[str, Any]] = {
    "vote": {"percentile": 70.0},
    "low vote": {"percentile": 1.0, "votes": 3},
    "as released": {"as_released": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_what_one_at_a_time_gives(kind: str, variant: str) -> None:
    model, images = exact(kind), scenes(3).double()
    settings = MDMPaper(**{**SMALL, **VARIANTS[variant]})
    wanted, passes = one_by_one(model, images, settings)
    maps, made = found(model, images, settings)
    assert float((maps - wanted).abs().max()) < 1e-9
    assert made == passes == len(PAIRS) * settings.passes
    assert maps.flatten(1).std(1).min() > 0.01, "no map may be flat, or nothing was compared"


@pytest.mark.parametrize("kind", MODELS)
def test_steps_go_on_while_the_loss_falls(kind: str) -> None:
    model, images = exact(kind), scenes(3).double()
    settings = MDMPaper(**{**SMALL, "steps": 3, "extra_steps": 30, "patience": 2, "learning_rate": 0.2})
    wanted, passes = one_by_one(model, images, settings)
    maps, made = found(model, images, settings)
    assert float((maps - wanted).abs().max()) < 1e-9
    grids = len(PAIRS) * len(settings.scales)
    assert 3 * grids < passes < 33 * grids, "some must go on, and some must stop before the end"
    assert made == len(PAIRS) * settings.passes == 33 * grids, "whoever stops counts as if it had gone on"


@pytest.mark.parametrize("kind", MODELS)
def test_batch_and_company_change_nothing(kind: str) -> None:
    model, images = exact(kind), scenes(3).double()
    settings = MDMPaper(**{**SMALL, "extra_steps": 20, "patience": 2})
    whole = protomask.locate(model, images, PAIRS, settings, batch=64).maps
    assert float((protomask.locate(model, images, PAIRS, settings, batch=1).maps - whole).abs().max()) < 1e-9
    backwards = protomask.locate(model, images, PAIRS[::-1], settings, batch=5).maps.flip(0)
    assert float((backwards - whole).abs().max()) < 1e-9
    single = protomask.locate(model, images[1:2], [(0, 1)], settings).maps[0]
    assert float((single - whole[2]).abs().max()) < 1e-9


def test_a_model_of_one_bright_block_keeps_that_block() -> None:
    class Told(BlockModel):
        def distance_maps(self, images: Tensor) -> Tensor:
            return 1 - self.activations(images)[:, :, None, None]

    image = torch.ones(1, 3, 32, 32)
    settings = MDMPaper(scales=(8, 16), steps=200, learning_rate=0.02, consistency=2.0, votes=2, percentile=50)
    found = protomask.locate(Told(BLOCKS), image, [(0, 0)], settings)
    x0, y0, x1, y1 = BLOCKS[0]
    inside = found.maps[0, y0:y1, x0:x1].sum() / found.maps[0].sum()
    assert inside > 0.5 > 0.1 > (x1 - x0) * (y1 - y0) / 32**2
    assert found.maps.max() == 1
    assert found.fill == "mean"


def test_the_vote() -> None:
    masks = torch.rand(6, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 1
    for percentile, votes in ((1, 5), (50, 3), (80, 2), (100, 1), (0, 6)):
        wanted = vote(list(masks.numpy()), percentile, votes)
        assert np.abs(voted(masks, percentile, votes).numpy() - wanted).max() < 1e-12


def test_a_constant_mask_neither_votes_nor_adds() -> None:
    masks = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(2))
    with_flat = torch.cat([masks, torch.full((2, 9, 7), 0.3)])
    assert torch.equal(voted(with_flat, 50, 2), voted(masks, 50, 2))
    assert voted(with_flat, 50, 4).max() == 0
    assert voted(with_flat[3:], 0, 1).max() == 0


def test_a_protopnet_is_held_to_its_distances() -> None:
    theirs = ppnet()
    model = contract(wrap_protopnet(theirs))
    images = torch.rand(2, *model.input_shape or ())
    with untouched(model.module), torch.no_grad():
        distances, maps = model.distance_maps(images), model.similarity_maps(images)
        assert distances is not None
        assert maps is not None
        assert torch.equal(distances, theirs.push_forward(images)[1])
        assert torch.equal(theirs.distance_2_similarity(distances), maps)


def test_distances_come_before_features_and_those_before_similarities() -> None:
    class Both(Pooled, Distant):
        def similarity_maps(self, images: Tensor) -> Tensor:
            return ConvModel.similarity_maps(self, images)

    class Two(Both):
        distance_maps = None  # type: ignore[assignment]

    images, settings = scenes(3).double(), MDMPaper(**SMALL)
    both, distant = Both().double().eval(), exact("distances")
    assert torch.equal(found(both, images, settings)[0], found(distant, images, settings)[0])
    assert not torch.equal(found(both, images, settings)[0], found(Two().double().eval(), images, settings)[0])


def test_an_xprotonet_is_held_to_its_features() -> None:
    model = contract(wrap_xprotonet(xprotonet(), input_shape=(3, 32, 32)))
    assert model.distance_maps(scenes(1)) is None
    result = protomask.locate(model, scenes(2), [(0, 1), (1, 4)], MDMPaper(**SMALL))
    assert result.maps.isfinite().all()
    assert result.maps.flatten(1).amax(1).eq(1).all()


def test_a_model_that_tells_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="distance_maps, prototype_features or similarity_maps"):
        protomask.locate(BlockModel(BLOCKS), torch.ones(1, 3, 32, 32), [(0, 0)], "mdm-paper")


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (6, 6, 7, 8, 9)}, "scales"),
        ({"scales": (1, 2, 3, 4, 5)}, "scales"),
        ({"scales": (6, 8)}, "votes"),
        ({"steps": 0}, "steps"),
        ({"extra_steps": -1}, "extra_steps"),
        ({"patience": 0}, "patience"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"consistency": -0.1}, "consistency"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"start": -1.0}, "start"),
        ({"percentile": 101}, "percentile"),
        ({"votes": 0}, "votes"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        MDMPaper(**wrong)


def test_the_default_is_the_authors() -> None:
    method = LOCALISERS["mdm-paper"].make()
    assert method == MDMPaper()
    assert method.passes == 24 * 2001
    assert MDMPaper(scales=(6, 8, 10, 12, 14), steps=10, extra_steps=5).passes == 75


def test_the_model_comes_back_as_it_came() -> None:
    model = Pooled().train()
    model.body[0].weight.requires_grad_(False)
    before = snapshot(model)
    protomask.locate(model, scenes(2), "top:2", MDMPaper(**SMALL))
    assert same(before, snapshot(model))
