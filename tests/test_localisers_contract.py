"""What holds for every registered method: company, order and batch size change nothing, and nothing is left behind."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import protomask
from protomask.localisers import LOCALISERS, image_passes_of, make_localiser
from tests.localising import energy, planted
from tests.test_locate import box_iou, pearson, same, snapshot
from tests.toys import ConvModel, scenes

OPTIONAL = {"captum": ("saliency", "smoothgrad", "integrated-gradients", "gradcam"), "zennit": ("prp",)}
# Small settings: what is tested does not depend on them.
METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "smoothgrad": {"samples": 5},
    "integrated-gradients": {"steps": 5},
    "gradcam": {},
    "prp": {},
    "occlusion": {"window": 0.25, "stride": 0.125},
    "rise": {"masks": 70},
    "neuromask": {"steps": 8},
    "extremal": {"steps": 4, "areas": (0.05, 0.2), "cells": 8},
    "mdm-paper": {"scales": (4, 5), "votes": 1, "steps": 6, "learning_rate": 0.05, "consistency": 10.0},
}


class Prototyped(ConvModel):
    """Its prototypes under the name that the families share."""

    @property
    def prototype_vectors(self) -> Tensor:
        return self.vectors[:, :, None, None]


def built(method: str, **more: Any) -> Any:
    for package, names in OPTIONAL.items():
        if method in names:
            pytest.importorskip(package, reason=f"needs the optional package {package}")
    return make_localiser(method, {**METHODS[method], **more})


def test_every_method_is_here_or_in_the_tests_of_locate() -> None:
    from tests.test_locate import EVERY

    mdm = {name for name in LOCALISERS if name.startswith("mdm")}
    assert mdm | METHODS.keys() | set(EVERY) | {"annotation"} == LOCALISERS.keys() | set(EVERY)


@pytest.mark.parametrize("method", METHODS)
def test_company_order_and_batch_change_nothing_float64(method: str) -> None:
    model, images = Prototyped().double(), scenes(3).double()
    pairs = [(i, p) for i in range(3) for p in (0, 1, 3)]
    localiser = built(method)
    whole = protomask.locate(model, images, pairs, localiser, batch=64)
    assert whole.located.any()
    backwards = protomask.locate(model, images, pairs[::-1], localiser, batch=5)
    assert float((backwards.maps.flip(0) - whole.maps).abs().max()) < 1e-6
    for row in (0, 5):
        image, prototype = pairs[row]
        alone = protomask.locate(model, images[image : image + 1], [(0, prototype)], localiser, batch=1)
        assert float((alone.maps[0] - whole.maps[row]).abs().max()) < 1e-6
        assert torch.equal(alone.boxes[0], whole.boxes[row])


@pytest.mark.parametrize("method", METHODS)
def test_batching_changes_nothing_float32(method: str) -> None:
    model, images = Prototyped(), scenes(4)
    localiser = built(method)
    whole = protomask.locate(model, images, "all", localiser, batch=64)
    alone = protomask.locate(model, images, "all", localiser, batch=1)
    shown = whole.located
    assert torch.equal(shown, alone.located)
    assert (pearson(whole.maps[shown], alone.maps[shown]) >= 0.999).double().mean() >= 0.99
    assert (box_iou(whole.boxes[shown], alone.boxes[shown]) >= 0.95).double().mean() >= 0.99


@pytest.mark.parametrize("method", METHODS)
def test_the_model_comes_back_as_it_came(method: str) -> None:
    model = Prototyped().train()
    model.body[0].weight.requires_grad_(False)
    model.body[1].eval()
    before = snapshot(model)
    attributes = copy.copy(vars(model.body[0]))
    protomask.locate(model, scenes(2), "top:2", built(method))
    assert same(before, snapshot(model))
    assert vars(model.body[0]).keys() == attributes.keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in Prototyped().modules()]


class Breaking(Prototyped):
    """Fails at its n-th pass."""

    left = 1_000_000

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        type(self).left -= 1
        if self.left < 0:
            raise KeyError("the user's model broke")
        return super().activations(images, prototypes)


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_also_after_an_error(method: str, after: int) -> None:
    model = Breaking().train()
    before = snapshot(model)
    Breaking.left = after
    localiser = built(method)
    if localiser.passes + image_passes_of(localiser) > 1 or after == 1:
        with pytest.raises(KeyError):
            protomask.locate(model, scenes(2), "top:2", localiser, batch=1)
    Breaking.left = 1_000_000
    assert same(before, snapshot(model))


@pytest.mark.parametrize("method", METHODS)
def test_it_works_without_gradients_and_on_images_that_want_them(method: str) -> None:
    model, images = Prototyped(), scenes(1)
    expected = protomask.locate(model, images, [(0, 1)], built(method)).maps
    with torch.no_grad():
        assert torch.equal(protomask.locate(model, images, [(0, 1)], built(method)).maps, expected)
    wanting = images.clone().requires_grad_()
    found = protomask.locate(model, wanting, [(0, 1)], built(method)).maps
    assert torch.equal(found, expected)
    assert wanting.grad is None
    assert not found.requires_grad


# Grad-CAM on a ProtoPNet weighs channels by a gradient that only the winning cell has: as wrong as the upsampled map.
CASES = [(m, f) for m in METHODS for f in ("protopnet", "xprotonet") if (m, f) != ("gradcam", "protopnet")]
PAPER = {"scales": (6, 12), "votes": 2, "percentile": 90.0, "steps": 100, "learning_rate": 0.015}
FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 120},
    "neuromask": {"steps": 25},
    "extremal": {"steps": 10, "areas": (0.05, 0.15)},
    "occlusion": {"window": 0.2, "stride": 0.1},
    "smoothgrad": {"samples": 8},
    # At its own weight of .01 its masks close on this ProtoPNet, whose distances are small.
    "mdm-paper, protopnet": {**PAPER, "consistency": 0.3},
    "mdm-paper, xprotonet": {**PAPER, "consistency": 0.01},
}


@pytest.mark.parametrize(("method", "family"), CASES)
def test_the_part_is_found_better_than_by_chance(method: str, family: str) -> None:
    model, images, targets, regions = planted(family)
    own = FAMILY_SETTINGS.get(f"{method}, {family}", {})
    localiser = built(method, **FAMILY_SETTINGS.get(method, own))
    found = protomask.locate(model, images, targets, localiser)
    chance = protomask.locate(model, images, targets, "random")
    assert found.located.double().mean() >= 0.8
    assert found.maps.min() >= 0
    assert found.maps.max() <= 1 + 1e-6
    assert energy(found.maps, regions).mean() > 2 * energy(chance.maps, regions).mean()


def test_gradcam_runs_on_a_protopnet() -> None:
    model, images, targets, _ = planted("protopnet")
    found = protomask.locate(model, images, targets, built("gradcam"))
    assert found.located.double().mean() >= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_the_passes_that_are_promised(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counting(request: protomask.Request) -> protomask.Maps:
        from dataclasses import replace

        return localiser(replace(request, progress=made.append))

    localiser = built(method)
    counting.passes = 0.0  # type: ignore[attr-defined]
    protomask.locate(Prototyped(), scenes(2), [(0, 0), (0, 1), (1, 0)], counting)
    assert sum(made) == pytest.approx(3 * localiser.passes + 2 * image_passes_of(localiser))


@pytest.mark.parametrize("method", [protomask.MDM, protomask.SingleMask])
def test_help_lists_every_setting(method: type) -> None:
    told = method.__doc__ or ""
    assert all(f"    {field.name}: " in told for field in dataclasses.fields(method))
