"""ProtoPNet code, patched and not: the same files, the same numbers, other regions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

import protomask
import protopnet_ext
from protomask.errors import InputError
from protopnet_ext.patching.nearest import FIND
from protopnet_ext.patching.pictures import Pictures

from .patching_tools import (
    PROBE,
    Loader,
    files,
    module_of,
    network,
    normalise,
    probe,
    randomness,
    region_bounds,
    repository,
    same_objects,
    state,
)
from .ppnet import PPNet

PREFIXES = {
    "prototype_img_filename_prefix": "prototype-img",
    "prototype_self_act_filename_prefix": "prototype-self-act",
    "proto_bound_boxes_filename_prefix": "bb",
}


@pytest.fixture(autouse=True)
def _probe() -> Iterator[None]:
    with probe():
        yield


def push(out: Path, net: nn.DataParallel[Any], **options: Any) -> list[str]:
    """Push as upstream's training script does; the log."""
    log: list[str] = []
    module: ModuleType = importlib.import_module("push")
    module.push_prototypes(
        Loader(),
        prototype_network_parallel=net,
        preprocess_input_function=normalise,
        root_dir_for_saving_prototypes=str(out),
        epoch_number=10,
        log=log.append,
        **PREFIXES | options,
    )
    return log


def located_boxes(net: nn.DataParallel[Any], bounds: np.ndarray) -> np.ndarray:
    """The second route: locate each prototype in the image that the bounds file names; top, bottom, left, right."""
    images = normalise(Loader().pictures)
    targets = [(int(row[0]), j) for j, row in enumerate(bounds)]
    found = protomask.locate(protopnet_ext.wrap(net), images, targets, **PROBE)
    assert found.located.all()
    return region_bounds(found.maps)


def test_push_keeps_everything_but_the_regions(tmp_path: Path) -> None:
    nets = network(), network()
    with repository("protopnet"):
        log = push(tmp_path / "plain", nets[0])
        with protopnet_ext.patch(say=None, **PROBE) as handle:
            patched_log = push(tmp_path / "patched", nets[1])
    plain, patched = files(tmp_path / "plain"), files(tmp_path / "patched")
    assert plain.keys() == patched.keys()
    assert log == patched_log
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)

    differing = {name for name in plain if plain[name] != patched[name]}
    kinds = {"".join(c for c in Path(name).stem if not c.isdigit()) for name in differing}
    regions = {"bb", "prototype-img"}
    overlays = {"prototype-img-original_with_self_act", "prototype-img-receptive_field_with_self_act"}
    assert kinds == regions | overlays

    bounds = [np.load(tmp_path / which / "epoch-10" / "bb10.npy") for which in ("plain", "patched")]
    assert bounds[0].dtype == bounds[1].dtype
    assert bounds[0].shape == bounds[1].shape == (6, 6)
    assert np.array_equal(bounds[0][:, [0, 5]], bounds[1][:, [0, 5]])
    assert np.array_equal(bounds[1][:, 1:5], located_boxes(nets[1], bounds[1]))
    assert handle.report.drawn == {"push": 6} == handle.report.replaced


def test_push_pictures_show_the_new_region(tmp_path: Path) -> None:
    net = network()
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE):
        push(tmp_path, net)
    folder = tmp_path / "epoch-10"
    for j, (image, top, bottom, left, right, _) in enumerate(np.load(folder / "bb10.npy")):
        shown = matplotlib.image.imread(folder / f"prototype-img{j}.png")[..., :3]
        crop = Loader().pictures[image].permute(1, 2, 0).numpy()[top:bottom, left:right]
        assert shown.shape == crop.shape
        assert np.abs(shown - crop).max() <= 1 / 255
        original, overlay = (
            matplotlib.image.imread(folder / f"prototype-img-original{kind}{j}.png")[..., :3]
            for kind in ("", "_with_self_act")
        )
        levels = _levels((overlay - 0.5 * original) / 0.3)
        peak = np.unravel_index(levels.argmax(), levels.shape)
        assert top <= peak[0] < bottom
        assert left <= peak[1] < right


def _levels(colours: np.ndarray) -> np.ndarray:
    """Jet colours [H, W, 3] RGB as levels 0 .. 255, by the nearest entry of OpenCV's own table."""
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_JET).reshape(256, 3)[:, ::-1] / 255
    levels: np.ndarray = np.square(colours[..., None, :] - table).sum(-1).argmin(-1)
    return levels


def test_push_locates_each_prototype_once(tmp_path: Path) -> None:
    improvements = []
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE) as handle:
        helpers = importlib.import_module("helpers")
        counted = helpers.find_high_activation_crop
        helpers.find_high_activation_crop = lambda *a: improvements.append(1) or counted(*a)
        push(tmp_path, network())
    assert len(improvements) > 6, "the stand-in's images improve no prototype twice, so this test shows nothing"
    assert handle.report.located == 6


@pytest.mark.parametrize(
    "options",
    [
        {"root_dir_for_saving_prototypes": None},
        {"proto_bound_boxes_filename_prefix": None},
        {"prototype_img_filename_prefix": "other"},
    ],
)
def test_push_with_less_to_write(tmp_path: Path, options: dict[str, Any]) -> None:
    module_options = {**PREFIXES, "root_dir_for_saving_prototypes": str(tmp_path), **options}
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE) as handle:
        importlib.import_module("push").push_prototypes(
            Loader(), network(), preprocess_input_function=normalise, epoch_number=1, log=str, **module_options
        )
    nothing = options.get("root_dir_for_saving_prototypes", "") is None
    assert handle.report.drawn == ({} if nothing else {"push": 6})
    assert handle.report.located == (0 if nothing else 6)


def test_what_upstream_computes_is_untouched(tmp_path: Path) -> None:
    net = network()
    net.module.features[0].weight.requires_grad_(False)
    net.module.last_layer.weight.grad = torch.ones_like(net.module.last_layer.weight)
    flags = [p.requires_grad for p in net.parameters()]
    settings = torch.backends.cudnn.benchmark, torch.is_grad_enabled(), torch.get_default_dtype()
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE):
        before = randomness()
        push(tmp_path, net)
        assert randomness() == before
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [p.grad is not None for p in net.parameters()].count(True) == 1
    assert not any(m.training for m in net.modules())
    assert (torch.backends.cudnn.benchmark, torch.is_grad_enabled(), torch.get_default_dtype()) == settings


def find(out: Path, net: nn.DataParallel[Any], *, save: bool = True) -> np.ndarray:
    labels: np.ndarray = importlib.import_module("find_nearest").find_k_nearest_patches_to_prototypes(
        Loader(), net, k=2, preprocess_input_function=normalise, full_save=save, root_dir_for_saving_images=str(out)
    )
    return labels


def test_nearest_patches_are_all_replaced(tmp_path: Path) -> None:
    net = network()
    with repository("protopnet"):
        labels = find(tmp_path / "plain", net)
        with protopnet_ext.patch(say=None, **PROBE) as handle:
            patched_labels = find(tmp_path / "patched", net)
    plain, patched = files(tmp_path / "plain"), files(tmp_path / "patched")
    assert plain.keys() == patched.keys()
    assert np.array_equal(labels, patched_labels)
    differing = {name for name in plain if plain[name] != patched[name]}
    assert {Path(name).name.partition("_")[2] for name in differing} <= {
        "high_act_patch_indices.npy",
        "original_with_heatmap.png",
    }
    assert sum("heatmap" in name for name in differing) == 12
    assert handle.report.drawn == {"nearest patches": 12} == handle.report.replaced
    _check_nearest_boxes(tmp_path, net)


def _check_nearest_boxes(tmp_path: Path, net: nn.DataParallel[Any]) -> None:
    """The second route: rank the images by distance ourselves, and locate the best two of each prototype."""
    images = normalise(Loader().pictures)
    with torch.no_grad():
        nearest = net.module.push_forward(images)[1].amin((2, 3))
    for j in range(6):
        best = nearest[:, j].argsort()[:2].tolist()
        found = protomask.locate(protopnet_ext.wrap(net), images, [(i, j) for i in best], **PROBE)
        for rank, bounds in enumerate(region_bounds(found.maps).tolist(), 1):
            crop = np.load(tmp_path / "patched" / str(j) / f"nearest-{rank}_high_act_patch_indices.npy")
            assert crop.tolist() == bounds


def test_a_search_that_saves_nothing_locates_nothing(tmp_path: Path) -> None:
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE) as handle:
        find(tmp_path, network(), save=False)
    assert handle.report.located == 0
    assert "nothing was drawn" in str(handle.report)


@pytest.mark.parametrize(("activation", "raised"), [("log", 0), ("linear", 4)])
def test_maps_that_a_script_upsamples(activation: str, raised: float) -> None:
    """Upstream draws linear similarities raised by the largest distance there is, here 4 channels of [0, 1]."""
    net = network(activation=activation)
    images, draws = normalise(Loader().pictures[:3]), (4, 2, 4)
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        with torch.no_grad():
            distances = net.module.push_forward(images)[1]
        raised = (
            4.0 if activation == "linear" else 0.0
        )  # upstream draws linear similarities raised by the most there is
        patterns = (net.module.distance_2_similarity(distances) + raised).numpy()
        drawn = [cv2.resize(patterns[2, j], dsize=(32, 32), interpolation=cv2.INTER_CUBIC) for j in draws]
        mask_like = cv2.resize(np.eye(5, dtype=np.float32), (32, 32))
    assert handle.report.replaced == {"maps": len(draws)}
    assert handle.report.located == len(set(draws))
    found = protomask.locate(protopnet_ext.wrap(net), images[2:], [(0, j) for j in draws], **PROBE)
    for row, map_ in enumerate(drawn):
        assert map_.dtype == np.float32
        assert np.corrcoef(map_.ravel(), found.maps[row].numpy().ravel())[0, 1] > 0.99
        kept = map_ >= np.percentile(map_, 95)
        rows, columns = np.nonzero(kept)
        bounds = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
        assert bounds == region_bounds(found.maps)[row].tolist()
        assert kept.mean() < 0.06
    assert np.array_equal(mask_like, cv2.resize(np.eye(5, dtype=np.float32), (32, 32)))


def test_a_map_in_another_size_is_resized() -> None:
    net = network()
    with protopnet_ext.patch(say=None, **PROBE), torch.no_grad():
        maps = net.module.distance_2_similarity(net.module.push_forward(normalise(Loader().pictures[:1]))[1])[0].numpy()
        whole = cv2.resize(maps[0], (32, 32))
        assert cv2.resize(maps[0], None, fx=2, fy=2).shape == (16, 16)
        half = cv2.resize(maps[0], (16, 16), 0, 0, 0, cv2.INTER_CUBIC)
    assert np.allclose(half, cv2.resize(whole, (16, 16), interpolation=cv2.INTER_LINEAR))


def test_a_map_that_is_none_of_the_model_is_kept_and_counted() -> None:
    net = network()
    mine = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        with torch.no_grad():
            net.module.push_forward(normalise(Loader().pictures[:1]))
        upsampled = cv2.resize(mine, (32, 32), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(upsampled, cv2.resize(mine, (32, 32), interpolation=cv2.INTER_CUBIC))
    assert handle.report.drawn == {"maps": 1}
    assert handle.report.replaced == {}
    assert handle.report.kept == {"map not recognised": 1}
    assert "1 kept as they were: map not recognised" in str(handle.report)


def test_one_map_of_two_different_prototypes_is_refused() -> None:
    net = network()
    vectors = net.module.prototype_vectors.data
    vectors[:2] = torch.tensor([1.0, -1.0])[:, None, None, None] + 0.5  # as far from features of 0.5, on either side
    net.module.add_on_layers[0].weight.data.zero_()
    net.module.add_on_layers[0].bias.data.zero_()
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        maps = net.module.push_forward(normalise(Loader().pictures[:1]))[1].numpy()
        cv2.resize(maps[0, 0], (32, 32))
    assert handle.report.kept == {"map of several different prototypes": 1}


def test_two_equal_prototypes_share_their_map() -> None:
    net = network()
    net.module.prototype_vectors.data[1] = net.module.prototype_vectors.data[0]
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        maps = net.module.push_forward(normalise(Loader().pictures[:1]))[1].numpy()
        cv2.resize(maps[0, 1], (32, 32))
    assert handle.report.replaced == {"maps": 1}


def test_a_model_that_the_adapter_cannot_prove_keeps_its_own_regions(tmp_path: Path) -> None:
    nets = network(), network()
    for net in nets:
        net.module.forward = lambda x: (torch.ones(len(x), 3), None)
    with repository("protopnet"):
        push(tmp_path / "plain", nets[0])
        with protopnet_ext.patch(say=None, **PROBE) as handle:
            push(tmp_path / "patched", nets[1])
    assert files(tmp_path / "plain") == files(tmp_path / "patched")
    assert handle.report.replaced == {}
    assert sum(handle.report.kept.values()) == 6
    assert "largest difference" in next(iter(handle.report.kept))


def test_names_bound_before_the_patch(tmp_path: Path) -> None:
    with repository("protopnet"):
        module = importlib.import_module("push")
        bound = ModuleType("bound_early")
        bound.mine, bound.resize = module.push_prototypes, cv2.resize  # type: ignore[attr-defined]
        originals = module.push_prototypes, cv2.resize
        sys.modules["bound_early"] = bound
        try:
            with protopnet_ext.patch(say=None, **PROBE) as handle:
                bound.mine(
                    Loader(),
                    network(),
                    preprocess_input_function=normalise,
                    root_dir_for_saving_prototypes=str(tmp_path),
                    **PREFIXES,
                    log=str,
                )
                assert bound.resize is not originals[1]
            assert handle.report.replaced == {"push": 6}
            assert (bound.mine, bound.resize) == originals
            assert module.push_prototypes is originals[0]
        finally:
            del sys.modules["bound_early"]


def test_names_bound_during_the_patch_are_restored() -> None:
    with repository("protopnet"), protopnet_ext.patch(say=None, **PROBE):
        module = importlib.import_module("push")
        late = ModuleType("bound_late")
        late.push_prototypes = module.push_prototypes  # type: ignore[attr-defined]
        sys.modules["bound_late"] = late
        assert type(module.__loader__).__name__ == "SourceFileLoader"
        held = module.push_prototypes
    try:
        assert not hasattr(module.push_prototypes, "__wrapped__")
        assert late.push_prototypes is module.push_prototypes
        assert held.__wrapped__ is module.push_prototypes
    finally:
        del sys.modules["bound_late"]


def test_a_replacement_that_outlives_the_patch_only_calls_the_original(tmp_path: Path) -> None:
    net = network()
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        held = cv2.resize
    with torch.no_grad():
        maps = net.module.push_forward(normalise(Loader().pictures[:1]))[1].numpy()
    assert np.array_equal(held(maps[0, 0], (32, 32)), cv2.resize(maps[0, 0], (32, 32)))
    assert handle.report.drawn == {}


def test_everything_is_undone_after_an_error(tmp_path: Path) -> None:
    before = state()
    with repository("protopnet"):
        inside = state()
        with pytest.raises(RuntimeError, match="as asked"), protopnet_ext.patch(say=None, **PROBE):  # noqa: PT012
            push(tmp_path, network())
            assert not same_objects(inside, state())
            raise RuntimeError("as asked")
        assert same_objects(inside, state())
    assert same_objects(before, state())


def test_a_class_defined_during_the_patch_is_watched() -> None:
    with protopnet_ext.patch(say=None, **PROBE) as handle:

        class Late(nn.Module):
            def push_forward(self, x: torch.Tensor) -> Any: ...
            def distance_2_similarity(self, x: torch.Tensor) -> Any: ...

        assert any(name.endswith("Late.push_forward") for name in handle.report.found)
        assert hasattr(Late.push_forward, "__wrapped__")
    assert not hasattr(Late.push_forward, "__wrapped__")


def test_maps_of_a_model_in_training_mode_are_kept_and_counted() -> None:
    net = network().train()
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        maps = net.module.push_forward(normalise(Loader().pictures[:2]))[1].detach().numpy()
        cv2.resize(maps[0, 0], (32, 32))
    assert handle.report.replaced == {}
    (reason,) = handle.report.kept
    assert "training mode" in reason


def test_under_no_grad_and_inference_mode() -> None:
    net = network()
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.inference_mode():
        maps = net.module.push_forward(normalise(Loader().pictures[:1]))[1].numpy()
        cv2.resize(maps[0, 0], (32, 32))
    assert handle.report.replaced == {"maps": 1}


def test_the_handle_of_a_one_line_call() -> None:
    lines: list[str] = []
    before = state()
    handle = protopnet_ext.patch(say=lines.append, **PROBE)
    assert lines == []
    handle.undo()
    handle.undo()
    assert len(lines) == 1
    assert same_objects(before, state())


def test_it_says_that_it_found_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("protopnet_ext.patching.hooks.subclasses", lambda cls: [])
    with protopnet_ext.patch():
        pass
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == "protopnet_ext.patch(mdm): found nothing to patch: no code that it knows was imported\n"


def test_refusals_leave_nothing_behind() -> None:
    before = state()
    with pytest.raises(InputError, match="unknown"):
        protopnet_ext.patch("unknown")
    with pytest.raises(InputError, match="sharpness"):
        protopnet_ext.patch(sharpness=3)
    with pytest.raises(InputError, match="remember"):
        protopnet_ext.patch(remember=0)
    assert same_objects(before, state())
    with protopnet_ext.patch(say=None), pytest.raises(InputError, match="undone"):
        protopnet_ext.patch()
    assert same_objects(before, state())


def test_other_methods() -> None:
    net = network()
    with protopnet_ext.patch("upsampling", say=None) as handle, torch.no_grad():
        maps = net.module.distance_2_similarity(net.module.push_forward(normalise(Loader().pictures[:1]))[1])[0].numpy()
        drawn = cv2.resize(maps[0], (32, 32))
    assert handle.report.replaced == {"maps": 1}
    found = protomask.locate(protopnet_ext.wrap(net), normalise(Loader().pictures[:1]), [(0, 0)], method="upsampling")
    assert np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99


def test_mdm_draws_small_masks_as_small_regions() -> None:
    net = network(activation="linear")
    images = normalise(Loader().pictures[:1])
    options: dict[str, Any] = {"steps": 17, "scales": (6, 8), "together": False, "gradient_power": 0}
    found = protomask.locate(protopnet_ext.wrap(net), images, "all", **options)
    flat = found.maps.flatten(1)
    small = ((flat > 0).float().mean(1) < 0.05) & found.located
    assert small.any(), "no mask under 5 % of the image, so this test shows nothing"
    with protopnet_ext.patch(say=None, **options), torch.no_grad():
        maps = net.module.distance_2_similarity(net.module.push_forward(images)[1])[0].numpy()
        for j in small.nonzero().flatten().tolist():
            drawn = cv2.resize(maps[j], (32, 32))
            assert (drawn >= np.percentile(drawn, 95)).mean() < 0.06


@pytest.mark.parametrize("name", ["prototype-img{kind}7.png", "7prototype-img{kind}.png"])
def test_pictures_are_found_under_either_form_of_name(tmp_path: Path, name: str) -> None:
    """ST-ProtoPNet puts the prototype's index first; a picture that is not there is not made."""
    kinds = ("", "-original_with_self_act")
    for kind in kinds:
        matplotlib.image.imsave(tmp_path / name.format(kind=kind), np.zeros((4, 4, 3)))
    located = np.zeros((32, 32))
    located[10:20, 4:10] = np.arange(1, 61).reshape(10, 6) / 60  # the highest 52 of its 60 pixels are kept
    picture = Loader().pictures[0]
    Pictures(tmp_path, "prototype-img").draw(7, picture, located, (0, 8, 0, 8))
    assert {path.name for path in tmp_path.iterdir()} == {name.format(kind=kind) for kind in kinds}
    sizes = [matplotlib.image.imread(tmp_path / name.format(kind=kind)).shape[:2] for kind in kinds]
    assert sizes == [(9, 6), (32, 32)]


def drawn_map(net: nn.Module, images: torch.Tensor, prototype: int = 0) -> np.ndarray:
    """What a script draws of its first image."""
    with torch.no_grad():
        maps = net.distance_2_similarity(net.push_forward(images)[1]).float().numpy()  # type: ignore[operator]
    return cv2.resize(maps[0, prototype], (32, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [True, False])
def test_code_under_autocast_is_located_at_full_precision(dtype: torch.dtype, inside: bool) -> None:
    net, images = network().module, normalise(Loader().pictures[:1])
    with protopnet_ext.patch("mdm", steps=4, scales=(6,), say=None) as handle:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            maps = net.distance_2_similarity(net.push_forward(images)[1]).float().numpy()
            if inside:
                drawn = cv2.resize(maps[0, 0], (32, 32))
        if not inside:
            drawn = cv2.resize(maps[0, 0], (32, 32))
    assert handle.report.replaced == {"maps": 1}
    found = protomask.locate(protopnet_ext.wrap(net), images, [(0, 0)], "mdm", steps=4, scales=(6,))
    assert np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99


def test_pictures_that_the_script_makes_of_its_batch_are_not_what_is_located() -> None:
    net, images = network().module, normalise(Loader().pictures[:1])
    kept = images.clone()
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        maps = net.push_forward(images)[1]
        array = maps.numpy().copy()
        images.mul_(0.2).add_(0.4)
        maps.zero_()
        drawn = cv2.resize(array[0, 0], (32, 32))
    assert handle.report.replaced == {"maps": 1}
    found = protomask.locate(protopnet_ext.wrap(net), kept, [(0, 0)], **PROBE)
    assert np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99


class Named(PPNet):
    """A fork whose argument has another name."""

    def push_forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().push_forward(images)


class Loose(PPNet):
    """A fork that takes whatever comes."""

    def push_forward(self, *args: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return super().push_forward(*args)


class Tempered(PPNet):
    """A fork whose similarity takes a second argument; no form of it is known."""

    def distance_2_similarity(self, distances: torch.Tensor, temperature: float) -> torch.Tensor:  # type: ignore[override]
        return -distances / temperature


def test_forks_of_other_arguments_run() -> None:
    images = normalise(Loader().pictures[:1])
    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        for model, called in (
            (Named(), lambda m: m.push_forward(images=images)),
            (Named(), lambda m: m.push_forward(images)),
            (Loose(), lambda m: m.push_forward(images)),
        ):
            cv2.resize(called(model.eval())[1].numpy()[0, 0], (32, 32))
        assert handle.report.replaced == {"maps": 3}
        maps = Tempered().eval().push_forward(images)[1].numpy()
        assert cv2.resize(-maps[0, 0] / 2, (32, 32)).shape == (32, 32)
    assert handle.report.kept == {"map not recognised": 1}


def test_a_batch_that_cannot_be_recorded_is_noted() -> None:
    class Listed(PPNet):
        def push_forward(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return super().push_forward(torch.stack(x))

    with protopnet_ext.patch(say=None, **PROBE) as handle, torch.no_grad():
        Listed().eval().push_forward(list(normalise(Loader().pictures[:2])))
    (note,) = handle.report.notes
    assert note.startswith("a batch of Listed was not recorded: AttributeError")


def test_whatever_fails_while_locating_becomes_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = network().module, normalise(Loader().pictures[:1])

    def fail(*args: object, **kwargs: object) -> None:
        raise errors.pop()

    errors: list[BaseException] = [KeyError("as asked"), KeyboardInterrupt()]
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        plain = drawn_map(network(seed=1).module, images)  # its adapter is proved before
        monkeypatch.setattr("protomask.redrawing.locate", fail)
        with pytest.raises(KeyboardInterrupt):
            drawn_map(net, images)
        drawn = drawn_map(net, images)
        monkeypatch.setattr("protopnet_ext.patching.hooks._located", lambda *_: 1 / 0)
        again = drawn_map(net, images)
    assert np.array_equal(drawn, drawn_map(net, images))
    assert np.array_equal(again, drawn)
    assert plain.shape == drawn.shape
    assert handle.report.kept == {"KeyError: 'as asked'": 1, "ZeroDivisionError: division by zero": 1}


FORK = """
    import cv2, numpy as np, torch

    def push_prototypes(dataloader, model, folder, prepare):
        boxes, best = np.full((model.num_prototypes, 6), -1), np.full(model.num_prototypes, np.inf)
        for batch, _ in dataloader:
            update_prototypes_on_batch(batch, model, best, boxes, prepare)
        return boxes

    def update_prototypes_on_batch(batch, model, best, boxes, prepare):
        with torch.no_grad():
            maps = model.push_forward(prepare(batch))[1].numpy()
        for j in range(model.num_prototypes):
            i = int(maps[:, j].min((1, 2)).argmin())
            if maps[i, j].min() < best[j]:
                best[j] = maps[i, j].min()
                boxes[j, :5] = (i, *cv2.resize(maps[i, j], (32, 32)).shape, 0, 4)

    class ImagePatch:
        def __init__(self, distance, act_pattern):
            self.negative_distance, self.act_pattern = -distance, act_pattern

    def find_k_nearest_patches_to_prototypes(dataloader, NETWORK, preprocess_input_function=None):
        kept = []
        for batch, _ in dataloader:
            with torch.no_grad():
                maps = NETWORK.module.push_forward(preprocess_input_function(batch))[1].numpy()
            kept += [ImagePatch(m.min(), m) for image in maps for m in image]
        return [cv2.resize(patch.act_pattern, (32, 32)) for patch in kept[-6:]]
"""


@pytest.mark.parametrize("name", ["prototype_network_parallel", "model"])
def test_forks_of_push_and_search_run_and_their_maps_are_recognised(name: str) -> None:
    with module_of(FORK.replace("NETWORK", name)) as fork:
        plain = fork.push_prototypes(Loader(), network().module, None, normalise)
        with protopnet_ext.patch(say=None, **PROBE) as handle:
            patched = fork.push_prototypes(Loader(), network().module, None, normalise)
            improved = handle.report.drawn["maps"]
            maps = fork.find_k_nearest_patches_to_prototypes(Loader(), network(), normalise)
    assert np.array_equal(plain, patched)
    assert len(maps) == 6
    assert handle.report.drawn == handle.report.replaced == {"maps": improved + 6}
    left = {"push_prototypes", "find_k_nearest_patches_to_prototypes"} - ({FIND} if name != "model" else set())
    assert handle.report.notes == tuple(
        f"pm_fork.{name} is left as it is: its arguments are not known" for name in sorted(left, reverse=True)
    )


def test_a_push_that_cannot_be_followed_keeps_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with repository("protopnet"):
        push(tmp_path / "plain", network())
        plain = files(tmp_path / "plain")
        for place in ("_sources", "_note", "module_inside", "Bounds.of_call", "Pictures.draw"):
            with monkeypatch.context() as patched, protopnet_ext.patch(say=None, **PROBE) as handle:
                patched.setattr(f"protopnet_ext.patching.push.{place}", lambda *_: 1 / 0)
                push(tmp_path / place, network())
            assert files(tmp_path / place) == plain, place
            assert handle.report.kept == {"ZeroDivisionError: division by zero": 1 if place == "_note" else 6}, place


def test_a_replica_of_several_gpus_says_so() -> None:
    net = network().module
    replica = net._replicate_for_data_parallel()
    for name, parameter in net._parameters.items():
        object.__setattr__(replica, name, parameter)
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        drawn_map(replica, normalise(Loader().pictures[:1]))
    (reason,) = handle.report.kept
    assert "seen inside a multi-GPU replica" in reason


def test_grey_images_are_located() -> None:
    net = network().module
    net.features[0] = nn.Conv2d(1, 8, 3, 2, 1)
    images = normalise(Loader().pictures[:1])[:, :1]
    with protopnet_ext.patch("mdm", steps=4, scales=(6,), say=None, mean=[0.5], std=[0.25]) as handle:
        drawn = drawn_map(net, images)
    assert handle.report.replaced == {"maps": 1}
    assert handle.report.notes == ()
    found = protomask.locate(protopnet_ext.wrap(net, mean=[0.5], std=[0.25]), images, [(0, 0)], steps=4, scales=(6,))
    assert np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99
    with protopnet_ext.patch(say=None, **PROBE) as handle:
        drawn_map(net, images)
    assert handle.report.replaced == {"maps": 1}
    assert [note.partition(" of images")[0] for note in handle.report.notes] == [
        "0 is taken for the mean",
        "1 is taken for the std",
    ]
    with pytest.raises(InputError, match="std: expected a number"):
        protopnet_ext.patch(std=[0])


def test_a_registry_that_has_the_name_gets_another() -> None:
    with module_of("SUPPORTED_ATTRIBUTION_FUNCTIONS = {'smoothgrad': 1}") as registry:
        sys.modules["pm_also"] = also = ModuleType("pm_also")
        also.SUPPORTED_ATTRIBUTION_FUNCTIONS = entries = registry.SUPPORTED_ATTRIBUTION_FUNCTIONS  # type: ignore[attr-defined]
        try:
            with protopnet_ext.patch("smoothgrad", say=None) as handle:
                assert list(entries) == ["smoothgrad", "protomask-smoothgrad"]
                assert entries["smoothgrad"] == 1
        finally:
            del sys.modules["pm_also"]
    assert entries == {"smoothgrad": 1}
    place = "pm_fork.SUPPORTED_ATTRIBUTION_FUNCTIONS"
    assert handle.report.notes == (f"{place} has a smoothgrad of its own: ours is protomask-smoothgrad",)


def hooked(net: PPNet, kind: str) -> tuple[list[Any], Any]:
    """Hooks of every kind that keep what they see in a list, and the handle of one; ``"changing"`` ones change it."""
    seen: list[Any] = []
    layer = net.add_on_layers
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.utils.spectral_norm(net.features[3])  # a hook that makes the layer's weights

    def forward(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor | None:
        seen.append(output.detach().clone())
        return output * 0.5 if kind == "changing" else None

    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    return seen, layer.register_forward_hook(forward, with_kwargs=True)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["looking", "changing"])
def test_hooks_that_only_look_are_not_called_while_locating(kind: str, inference: bool) -> None:
    images = normalise(Loader().pictures[:2])
    nets = [network().module for _ in range(2)]
    (plain, _), (seen, handle) = (hooked(net.eval(), kind) for net in nets)
    before = drawn_map(nets[0], images)
    order = [list(part._forward_hooks.items()) for part in nets[1].modules()]
    with protopnet_ext.patch("mdm", steps=4, scales=(6,), say=None) as report, torch.inference_mode(inference):
        drawn = drawn_map(nets[1], images)
        drawn_map(nets[1], images, 3)
    assert report.report.replaced == {"maps": 2}
    assert not np.array_equal(before, drawn)
    assert [list(part._forward_hooks.items()) for part in nets[1].modules()] == order
    assert "backward" not in seen
    if kind == "looking":
        assert len(seen) == 2 * len(plain) == 4
        assert torch.equal(seen[-1], plain[-1])
    else:
        assert len(seen) > 4, "they are a part of the model"
    handle.remove()
    assert all(handle.id not in part._forward_hooks for part in nets[1].modules())
