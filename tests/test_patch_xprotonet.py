"""XProtoNet code, patched and not: the same files, the same numbers, other maps."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import protomask
import protopnet_ext
import xprotonet_ext
from protomask.errors import InputError
from xprotonet_ext.patch import AMBIGUOUS, NO_MODEL, OTHER_FORM, UNKNOWN

from .patching_tools import PROBE, Loader, files, module_of, normalise, probe, repository, same_objects, state
from .xprotonet import TheirXProtoNet, xprotonet


@pytest.fixture(autouse=True)
def _probe() -> Iterator[None]:
    with probe():
        yield


def samples(count: int = 9) -> list[dict[str, Any]]:
    return [{"cine": normalise(pictures)} for pictures, _ in Loader(count)]


def push(out: Path, model: TheirXProtoNet) -> None:
    module = importlib.import_module("push_abs_revision")
    module.push_prototypes(samples(), model, root_dir_for_saving_prototypes=str(out), log=str)


def corresponds(drawn: np.ndarray, model: TheirXProtoNet, images: torch.Tensor, pair: tuple[int, int]) -> bool:
    found = protomask.locate(xprotonet_ext.wrap(model), images, [pair], **PROBE)
    return bool(np.corrcoef(drawn.ravel(), found.maps[0].numpy().ravel())[0, 1] > 0.99)


def test_push_plots_located_maps(tmp_path: Path) -> None:
    models = xprotonet(), xprotonet()
    unpushed = xprotonet().eval()
    with repository("protoasnet"):
        push(tmp_path / "plain", models[0])
        with xprotonet_ext.patch(say=None, **PROBE) as handle:
            push(tmp_path / "patched", models[1])
    plain, patched = files(tmp_path / "plain"), files(tmp_path / "patched")
    assert plain.keys() == patched.keys()
    assert {name for name in plain if plain[name] == patched[name]} == {"occurrence.npy"}
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert handle.report.drawn == {"prototype plots": 6} == handle.report.replaced
    images = normalise(Loader().pictures)
    nearest = unpushed.push_forward(images)[1].argmin(0)
    for j in range(6):
        drawn = np.load(tmp_path / "patched" / f"{j:02d}_map.npy")
        assert drawn.shape == (32, 32)
        assert corresponds(drawn, unpushed, images[nearest[j]][None], (0, j))


def explain(folder: Path, model: TheirXProtoNet) -> None:
    folder.mkdir()
    np.save(folder / "own.npy", normalise(Loader(6).pictures).numpy())
    importlib.import_module("local_explainability").explain_local("val", samples(3), model, str(folder))


def test_explanations_show_located_maps(tmp_path: Path) -> None:
    model = xprotonet()
    with repository("protoasnet"):
        explain(tmp_path / "plain", model)
        with xprotonet_ext.patch(say=None, **PROBE) as handle:
            explain(tmp_path / "patched", model)
    plain, patched = files(tmp_path / "plain"), files(tmp_path / "patched")
    assert plain.keys() == patched.keys()
    same = {name for name in plain if plain[name] == patched[name]}
    assert same == {"own.npy", *(f"val-0-{i}-distances.npy" for i in range(3))}
    assert handle.report.drawn == {"explanations": 24} == handle.report.replaced
    images = normalise(Loader(6).pictures)
    own = np.load(tmp_path / "patched" / "val-prototypes.npy")
    third = np.load(tmp_path / "patched" / "val-0-2.npy")
    before = np.load(tmp_path / "plain" / "val-0-2.npy")
    assert own.shape == third.shape == before.shape == (6, 32, 32)
    assert own.dtype == third.dtype == before.dtype
    for j in range(6):
        assert corresponds(own[j], model, images[j][None], (0, j))
        assert corresponds(third[j], model, images[2][None], (0, j))


def test_a_model_of_another_form_keeps_its_maps(tmp_path: Path) -> None:
    models = xprotonet(), xprotonet()
    for model in models:
        model.forward = lambda x: (torch.ones(len(x), 3), torch.ones(len(x), 6), None)
    with repository("protoasnet"):
        push(tmp_path / "plain", models[0])
        with xprotonet_ext.patch(say=None, **PROBE) as handle:
            push(tmp_path / "patched", models[1])
    assert files(tmp_path / "plain") == files(tmp_path / "patched")
    assert sum(handle.report.kept.values()) == 6


@pytest.mark.parametrize(("inside", "reason"), [(True, "a video: only images are located"), (False, NO_MODEL)])
def test_what_cannot_be_located_keeps_its_maps(inside: bool, reason: str, tmp_path: Path) -> None:
    clip = np.zeros((3, 2, 8, 8), dtype=np.float32)
    with repository("protoasnet"), xprotonet_ext.patch(say=None, **PROBE) as handle:
        module = importlib.import_module("push_abs_revision")
        plot = {
            "img": clip,
            "occurrence_map": clip[:1],
            "proto_id": 0,
            "fn": "",
            "pred": clip,
            "gt": 0,
            "proto_dir": "",
        }

        def loader() -> Iterator[dict[str, Any]]:
            with pytest.raises(NotImplementedError, match="Got 5D"):  # the stand-in draws no videos
                module.prototype_plot(**plot)
            yield from [][0:0]
            raise KeyError

        if inside:
            with pytest.raises(KeyError):
                module.push_prototypes(loader(), xprotonet(), root_dir_for_saving_prototypes=str(tmp_path), log=str)
        else:
            with pytest.raises(KeyError):
                next(loader())
    assert handle.report.kept == {reason: 1}


def ordered(folder: Path, model: TheirXProtoNet, images: torch.Tensor, order: list[int]) -> Any:
    """Maps of the prototypes asked for, in that order, drawn as a script draws them."""
    utils, local = (importlib.import_module(name) for name in ("explainability_utils", "local_explainability"))

    def maps_of(loader: Any, model: Any) -> Any:
        with torch.no_grad():
            maps = model.eval().push_forward(images)[2][0, order].numpy()
        _, upsampler = utils.get_src(images.numpy())
        return utils.get_normalized_upsample_occurence_maps(maps, upsampler)

    drawn: list[Any] = []

    class Samples(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            drawn.append(maps_of(self, model))
            return iter([])

    folder.mkdir(exist_ok=True)
    np.save(folder / "own.npy", normalise(Loader(6).pictures).numpy())
    local.explain_local("val", Samples(), model, str(folder))
    return drawn[0]


def test_maps_are_of_the_prototypes_that_the_script_asks_for(tmp_path: Path) -> None:
    model, images = xprotonet().eval(), normalise(Loader().pictures[:1])
    for order in ([4, 1, 3], [5, 4, 3, 2, 1, 0], [2, 2]):
        with repository("protoasnet"), xprotonet_ext.patch(say=None, **PROBE) as handle:
            drawn = ordered(tmp_path, model, images, order)
        assert handle.report.replaced == {"explanations": 6 + len(order)}
        every = protomask.locate(xprotonet_ext.wrap(model), images, "all", **PROBE).maps.flatten(1).numpy()
        for row, j in enumerate(order):
            assert corresponds(drawn[row], model, images, (0, j))
            assert np.corrcoef(drawn[row].ravel(), every)[0, 1:].argmax() == j, "another is alike, but less so"


def test_maps_that_are_not_of_the_pictures_taken_last_are_kept_and_counted(tmp_path: Path) -> None:
    model, images = xprotonet().eval(), normalise(Loader().pictures)
    with repository("protoasnet"), xprotonet_ext.patch(say=None, **PROBE) as handle:
        utils = importlib.import_module("explainability_utils")
        importlib.import_module("local_explainability")
        with torch.no_grad():
            maps = model.push_forward(images[:2])[2].numpy()

        def loader() -> Iterator[dict[str, Any]]:
            for own, given in ((images[1:2], maps[0]), (images[[0, 0]], maps[:, 1]), (images[:1], 0 * maps[0, :3])):
                _, upsampler = utils.get_src(own.numpy())
                drawn.append(utils.get_normalized_upsample_occurence_maps(given, upsampler))
            yield from []

        drawn: list[np.ndarray] = []
        np.save(tmp_path / "own.npy", images[:6].numpy())
        sys.modules["local_explainability"].explain_local("val", loader(), model, str(tmp_path))
    assert handle.report.drawn == {"explanations": 6 + 6 + 2 + 3}
    assert handle.report.replaced == {"explanations": 6 + 1}
    assert handle.report.kept == {UNKNOWN: 6 + 1 + 3}
    assert corresponds(drawn[1][0], model, images[:1], (0, 1))


def test_one_map_of_two_prototypes_is_refused(tmp_path: Path) -> None:
    model = xprotonet().eval()
    model.occurrence_module[2].weight.data[1] = model.occurrence_module[2].weight.data[0]
    with repository("protoasnet"), xprotonet_ext.patch(say=None, **PROBE) as handle:
        ordered(tmp_path, model, normalise(Loader().pictures[:1]), [1, 3])
    assert handle.report.kept == {AMBIGUOUS: 3}, "of the prototypes' own maps two"


TENSORS = """
    import torch

    def get_src(src_imgs):
        return src_imgs.detach().numpy(), None

    def get_normalized_upsample_occurence_maps(occurrence_maps, dtype):
        maps = torch.nn.functional.interpolate(occurrence_maps, size=(32, 32), mode="bilinear")
        span = maps - maps.amin((2, 3), keepdim=True)
        return (span / span.amax((2, 3), keepdim=True)).to(dtype)

    def explain_local(images, model, dtype):
        get_src(images)
        return get_normalized_upsample_occurence_maps(model.push_forward(images)[2][0], dtype)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_tensors_stay_tensors(dtype: torch.dtype) -> None:
    model, images = xprotonet().eval(), normalise(Loader().pictures[:1]).requires_grad_()
    with module_of(TENSORS) as theirs:
        plain = theirs.explain_local(images, model, dtype)
        with xprotonet_ext.patch(say=None, **PROBE) as handle:
            drawn = theirs.explain_local(images, model, dtype)
    assert isinstance(drawn, torch.Tensor)
    assert (drawn.shape, drawn.dtype, drawn.requires_grad) == (plain.shape, plain.dtype, plain.requires_grad)
    if dtype == torch.uint8:
        assert torch.equal(plain, drawn)
        assert handle.report.kept == {OTHER_FORM: 6}
    else:
        assert handle.report.replaced == {"explanations": 6}
        assert corresponds(drawn[2, 0].detach().float().numpy(), model, images.detach(), (0, 2))


def test_whatever_fails_keeps_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = xprotonet(), xprotonet()
    with repository("protoasnet"):
        push(tmp_path / "plain", models[0])
        explain(tmp_path / "plain-explained", models[0])
        with xprotonet_ext.patch(say=None, **PROBE) as handle:
            for name in ("locate_one", "locate_maps"):
                monkeypatch.setattr(sys.modules["xprotonet_ext.patch"]._Session, name, lambda *_: 1 / 0)
            push(tmp_path / "patched", models[1])
            explain(tmp_path / "patched-explained", models[1])
    assert files(tmp_path / "plain") == files(tmp_path / "patched")
    assert files(tmp_path / "plain-explained") == files(tmp_path / "patched-explained")
    assert handle.report.replaced == {}
    assert list(handle.report.kept) == ["ZeroDivisionError: division by zero"]


def test_functions_of_other_arguments_are_left_alone() -> None:
    text = "def push_prototypes(net): return 1\ndef prototype_plot(picture): return 2\n"
    with module_of(text) as theirs, xprotonet_ext.patch(say=None, **PROBE) as handle:
        assert (theirs.push_prototypes(5), theirs.prototype_plot(5)) == (1, 2)
    assert handle.report.notes == ("pm_fork.push_prototypes is left as it is: its arguments are not known",)


def test_grey_images_are_located(tmp_path: Path) -> None:
    model, images = xprotonet(channels=1).eval(), normalise(Loader().pictures[:1])[:, :1]
    for told, notes in (({"mean": [0.5], "std": [0.2]}, 0), ({}, 2)):
        with module_of(TENSORS) as theirs, xprotonet_ext.patch(say=None, **PROBE, **told) as handle:
            theirs.explain_local(images, model, torch.float32)
        assert handle.report.replaced == {"explanations": 6}
        assert len(handle.report.notes) == notes


def test_undone_and_refused() -> None:
    before = state()
    with repository("protoasnet"):
        with pytest.raises(KeyError), xprotonet_ext.patch(say=None, **PROBE):  # noqa: PT012
            module = importlib.import_module("push_abs_revision")
            raise KeyError
        assert not hasattr(module.push_prototypes, "__wrapped__")
        with pytest.raises(InputError, match="unknown"):
            xprotonet_ext.patch("unknown")
    assert same_objects(before, state())


def test_a_model_that_inherits_from_ppnet_is_an_xprotonet() -> None:
    class Inheriting(TheirXProtoNet):
        """As ProtoASNet's, which derives from its PPNet."""

        def distance_2_similarity(self, distances: torch.Tensor) -> torch.Tensor:
            return -distances

    model = xprotonet(Inheriting)
    assert not protopnet_ext.matches(model)
    assert xprotonet_ext.matches(model)
    assert isinstance(protomask.wrap(model), xprotonet_ext.XProtoNetModel)


def test_both_families_at_once(tmp_path: Path) -> None:
    before = state()
    with protopnet_ext.patch(say=None, **PROBE), xprotonet_ext.patch(say=None, **PROBE) as handle:
        with repository("protoasnet"):
            push(tmp_path, xprotonet())
            loader = importlib.import_module("push_abs_revision").__loader__
        with repository("protopnet"):
            assert hasattr(importlib.import_module("push").push_prototypes, "__wrapped__")
    assert type(loader).__name__ == "SourceFileLoader"
    assert handle.report.replaced == {"prototype plots": 6}
    assert same_objects(before, state())
