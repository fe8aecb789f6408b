"""What results depend on: a change of it is never answered by what was stored before."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import protomask
from protomask.cli import main
from protomask.data import Folder, open_dataset
from protomask.errors import ModelError
from protomask.jobs import digests
from protomask.jobs.digests import digest_method, digest_model
from protomask.jobs.drawing import drawn_pairs
from protomask.loading import Loaded
from protomask.localisers import LOCALISERS
from protomask.model import contract
from tests.test_locate import same, snapshot
from tests.toys import ConvModel, scenes

CORNER = """
import torch, protomask

@protomask.register("corner-{name}", "One corner.")
def corner(place: int = 0):
    def find(request):
        maps = torch.zeros((len(request.targets), *request.size))
        maps[:, {shift} + place, place] = 1
        return protomask.Maps(maps)
    find.passes = 0.0
    return find
"""


@pytest.fixture
def corner(tmp_path: Path) -> Any:
    """Registers a factory of plain functions from a file whose text may change."""

    def put(shift: int) -> None:
        LOCALISERS.pop("corner-a", None)
        path = tmp_path / "pm_corner.py"
        path.write_text(CORNER.format(name="a", shift=shift))
        digests._file.cache_clear()
        code = compile(path.read_text(), str(path), "exec")
        scope: dict[str, Any] = {"__name__": "pm_corner"}
        exec(code, scope)

    yield put
    LOCALISERS.pop("corner-a", None)


def test_a_factory_of_functions_counts_with_its_file_and_its_settings(corner: Callable[[int], None]) -> None:
    corner(0)
    plain = digest_method("corner-a", {})
    assert digest_method("corner-a", {}) == plain
    assert digest_method("corner-a", {"place": 3}) != plain
    assert "pm_corner" in str(plain["code"])


def test_a_word_is_no_folder_though_one_be_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = digest_method("neuromask", {})
    (tmp_path / "blur").mkdir()
    (tmp_path / "blur" / "new").write_text("x")
    (tmp_path / "fp32").mkdir()
    assert digest_method("neuromask", {}) == before
    assert digest_method("mdm", {})["files"] == {}


class Held:
    """A model that is no module; where its network lies is what differs."""

    num_prototypes = 4
    activation_range = (0.0, 1.0)

    def __init__(self, network: ConvModel, how: str) -> None:
        self.how: object
        if how == "wrapper":
            self.how = SimpleNamespace(inner=SimpleNamespace(network=network))
        elif how == "bound method":
            self.how = network.activations
        elif how == "closure":
            self.how = lambda images, prototypes=None: network.activations(images, prototypes)
        else:
            self.how = Namespace(network=network, again=self)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("how", ["wrapper", "bound method", "closure", "circle"])
def test_weights_count_wherever_they_are_held(how: str) -> None:
    known = digest_model(contract(Held(ConvModel(), how)))
    assert digest_model(contract(Held(ConvModel(), how))) == known
    assert digest_model(contract(Held(ConvModel(seed=1), how))) != known


def test_options_of_a_module_count() -> None:
    models = [ConvModel(), ConvModel(), ConvModel()]
    for model, power in zip(models, (1.0, 1.0, 2.0), strict=True):
        model.args = Namespace(power=power)  # type: ignore[assignment]
    first, again, other = (digest_model(contract(model)) for model in models)
    assert first == again != other


class Neck(nn.Module):
    """A backbone in ``module`` and layers of its own beside it, which a mode or running statistics would change."""

    num_prototypes = 4
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    activation_range = (0.0, 1.0)
    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.module = ConvModel()
        self.neck = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        return self.module.activations(self.neck(images), prototypes)


def test_a_module_within_a_module_is_not_the_whole() -> None:
    torch.manual_seed(0)
    model, images = Neck().train(), scenes(2)
    before = snapshot(model)
    both = protomask.locate(model, images, [(0, 0), (1, 1)], "rise", masks=16)
    alone = protomask.locate(model, images[1:], [(0, 1)], "rise", masks=16)
    assert same(before, snapshot(model))
    torch.testing.assert_close(both.maps[1:], alone.maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["mdm-fast", "saliency", "upsampling"])
def test_inference_mode_changes_nothing(method: str) -> None:
    model, images = ConvModel(), scenes(2)
    wanted = protomask.locate(model, images, [(0, 0), (1, 1)], method)
    with torch.inference_mode():
        found = protomask.locate(model, scenes(2), [(0, 0), (1, 1)], method)
    torch.testing.assert_close(found.maps, wanted.maps)


def test_a_floor_that_is_nan_is_an_error() -> None:
    class Cosine(ConvModel):
        activation_range = (None, None)  # type: ignore[assignment]

        def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
            values = super().activations(images) * (images.sum((1, 2, 3)) / images.sum((1, 2, 3)))[:, None]
            return values if prototypes is None else values.gather(1, prototypes[:, None])[:, 0]

    with pytest.raises(ModelError, match="finite values on an image of the mean colour"):
        protomask.locate(Cosine(), scenes(2), "top:1", "upsampling")


def test_cells_without_a_gradient_lie_where_even_cells_would() -> None:
    from protomask.localisers.upsampling import cell_centres

    class Narrow(ConvModel):
        """Only on the first probe do the cells answer to the image; on none the last row does."""

        def similarity_maps(self, images: Tensor) -> Tensor:
            whole = super().similarity_maps(images)
            scale = torch.zeros_like(whole)
            scale[:1, :, :-1] = 1
            return whole * scale

    like = torch.zeros(1, 3, 32, 32)
    rows, _ = cell_centres(contract(Narrow().eval()), like, probes=4)
    first, _ = cell_centres(contract(ConvModel().eval()), like, probes=1)
    assert np.abs(rows[:-1] - first[:-1]).max() < 4  # the mean of one probe, not of one and three zeros
    assert rows[-1] == pytest.approx(max(rows[-2], 31.5 - 32 / len(rows) / 2))


# Data ------------------------------------------------------------------------------------------------------------


def fill(folder: Path, count: int) -> Path:
    for k in range(count):
        for name in ("first", "second"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(k).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f"{k}.png"), image)
    return folder


def test_no_seed_of_a_training_moves_a_folders_split(tmp_path: Path) -> None:
    root = fill(tmp_path, 20)
    tests = [open_dataset("folder", split="test", size=(32, 32), root=root, seed=seed) for seed in (0, 1, 7)]
    assert len({tuple(data.image_ids) for data in tests}) == 1  # type: ignore[attr-defined]
    other = open_dataset("folder", split="test", size=(32, 32), root=root, split_seed=1)
    assert other.image_ids != tests[0].image_ids  # type: ignore[attr-defined]
    assert main(["evaluate", "demo:protopnet", "--data", "planted", "--split-seed", "1", "--out", str(tmp_path)]) == 2


def test_pairs_are_drawn_again_once_a_sample_is_repaired(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", 4)
    broken = root / "first" / "1.png"
    good = broken.read_bytes()
    broken.write_bytes(b"none")
    model = ConvModel(prototypes=4, classes=2)
    loaded = Loaded("toy", contract(model), (32, 32), "none", ("first", "second"))

    def draw() -> Any:
        out = tmp_path / "out"
        (out / "shards").mkdir(parents=True, exist_ok=True)
        data = Folder(root, "all", (32, 32))
        told: dict[str, Any] = {"pairs": 20, "seed": 0, "batch": 4, "clear": False, "thread_count": 1}
        return drawn_pairs(out, loaded, data, {}, **told)

    first = draw()
    assert len(first.skipped) == 1
    assert draw().skipped == first.skipped
    broken.write_bytes(good)
    again = draw()
    assert again.skipped == ()
    assert len(again.pairs.pairs) > len(first.pairs.pairs)
