"""CaBRNet itself, in an environment of its own: configuration files name ``mdm``, and its own commands draw it."""

from __future__ import annotations

import csv
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import protomask
import protopnet_ext
from protomask.cli import main
from protomask.errors import ModelError
from protopnet_ext.cabrnet import wrap

from .patching_tools import Loader, normalise

pytest.importorskip("cabrnet", reason="CaBRNet is not installed: it has an environment of its own")
pytestmark = pytest.mark.filterwarnings("ignore")  # CaBRNet's own, and those of what it imports
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cabrnet.archs.generic.model import CaBRNet
    from cabrnet.core.visualization import visualizer
    from cabrnet.core.visualization.visualizer import SimilarityVisualizer

SIZE = 32
QUICK: dict[str, Any] = {"steps": 4, "scales": (6,)}


def configuration(similarity: str = "LegacyProtoPNetSimilarity") -> dict[str, Any]:
    """A ProtoPNet with 6 prototypes of 3 classes on the first stages of a ResNet."""
    return {
        "extractor": {
            "backbone": {"arch": "resnet18", "weights": "None", "layer": "layer2"},
            "add_on": {
                "conv1": {"type": "Conv2d", "params": {"out_channels": 8, "kernel_size": 1}},
                "sigmoid1": {"type": "Sigmoid"},
            },
        },
        "classifier": {
            "module": "cabrnet.archs.protopnet.decision",
            "name": "ProtoPNetClassifier",
            "params": {"num_classes": 3, "num_features": 8, "num_proto_per_class": 2},
        },
        "similarity": {"name": similarity},
        "top_arch": {"module": "cabrnet.archs.protopnet.model", "name": "ProtoPNet"},
    }


def projected(similarity: str = "LegacyProtoPNetSimilarity") -> tuple[Any, list[dict[str, Any]]]:
    """A model whose prototypes are patches of the pictures, and where they are from."""
    torch.manual_seed(0)
    model = CaBRNet.build_from_config(configuration(similarity))
    model.train()
    images = normalise(Loader().pictures)
    with torch.no_grad():
        for _ in range(20):
            model.extractor(images)  # batch norm takes up the pictures' statistics
    model.eval()
    loader = torch.utils.data.DataLoader(list(zip(images, Loader().labels, strict=True)), batch_size=4)
    return model, model.project(loader, device="cpu")


def picture(index: int) -> Image.Image:
    pixels = (Loader().pictures[index].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def visualise(**params: Any) -> dict[str, Any]:
    return {"attribution": {"type": "mdm", **params}, "view": {"type": "heatmap", "params": {"overlay": True}}}


def test_a_configuration_names_the_method() -> None:
    model, info = projected()
    before = dict(visualizer.SUPPORTED_ATTRIBUTION_FUNCTIONS)
    with pytest.raises(NotImplementedError):
        SimilarityVisualizer.build_from_config(visualise(), model=model)
    row = info[2]
    images = normalise(Loader().pictures[row["img_idx"] : row["img_idx"] + 1])
    with protopnet_ext.patch(say=None, **QUICK) as handle:
        view = SimilarityVisualizer.build_from_config(visualise(), model=model)
        big = picture(row["img_idx"]).resize((50, 40))
        drawn = view.get_attribution(img=big, img_tensor=images, proto_idx=2, device="cpu")
        assert view.forward(img=big, img_tensor=images, proto_idx=2, device="cpu").size == (50, 40)
        fixed = view.get_attribution(big, images, 2, "cpu", location=(row["h"], row["w"]))
    assert before == visualizer.SUPPORTED_ATTRIBUTION_FUNCTIONS
    assert handle.report.replaced == {"attributions": 3}
    assert drawn.shape == fixed.shape == (40, 50)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.min() < drawn.max() <= 1
    adapter = wrap(model, input_shape=(3, SIZE, SIZE))
    found = protomask.locate(adapter, images, [(0, 2)], **QUICK)
    again = np.asarray(Image.fromarray(found.maps[0].numpy()).resize((50, 40), Image.Resampling.BILINEAR))
    assert np.corrcoef(drawn.ravel(), again.ravel())[0, 1] > 0.99


def test_the_activation_is_the_largest_similarity_or_a_cell() -> None:
    model, _ = projected()
    images = normalise(Loader().pictures[:2])
    maps = model.similarities(images)
    largest, cell = wrap(model, input_shape=(3, SIZE, SIZE)), wrap(model, input_shape=(3, SIZE, SIZE), cell=(1, 3))
    assert torch.equal(largest.activations(images), maps.amax((2, 3)))
    assert torch.equal(cell.activations(images, torch.tensor([4, 0])), maps[[0, 1], [4, 0], 1, 3])
    assert largest.activation_range == (0.0, None)
    assert torch.equal(largest.class_weights(), model.classifier.last_layer.weight.T)
    assert largest.describe(5) == "class 2 / 5"


def test_scores_that_do_not_follow_are_refused() -> None:
    model, _ = projected()
    model.classifier.forward = lambda features, **_: (torch.ones(len(features), 3), None)
    with pytest.raises(ModelError, match="last_layer"):
        wrap(model, input_shape=(3, SIZE, SIZE))
    with protopnet_ext.patch(say=None, **QUICK):
        view = SimilarityVisualizer.build_from_config(visualise(), model=model)
        with pytest.raises(ModelError, match="last_layer"):
            view.get_attribution(picture(0), normalise(Loader().pictures[:1]), 0, "cpu")


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as CaBRNet's commands take it, with pictures; and a stand-in for graphviz, which lays out the result."""
    model, info = projected()
    for split in ("train", "test"):
        for index, label in enumerate(Loader().labels.tolist()):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            picture(index).save(folder / f"{index}.png")
    order = sorted(range(9), key=lambda i: (int(Loader().labels[i]), f"{i}.png"))  # as ImageFolder lists them
    home = tmp_path / "checkpoint"
    home.mkdir()
    torch.save(model.state_dict(), home / "model_state.pth")
    (home / "model_arch.yml").write_text(json.dumps(configuration()))
    transform = {
        "type": "Compose",
        "transforms": {
            "tensor": {"type": "ToTensor"},
            "norm": {"type": "Normalize", "params": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
        },
    }
    sets = {
        name: {
            "name": "ImageFolder",
            "module": "torchvision.datasets",
            "params": {"root": str(tmp_path / folder), "transform": transform},
            "batch_size": 3,
            "shuffle": False,
        }
        for name, folder in (("train_set", "train"), ("projection_set", "train"), ("test_set", "test"))
    }
    (home / "dataset.yml").write_text(json.dumps(sets))
    (home / "view.yml").write_text(json.dumps(visualise()))
    with (home / "projection_info.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(info[0]))
        writer.writeheader()
        writer.writerows({**row, "img_idx": order.index(row["img_idx"])} for row in info)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("dot", "circo"):
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{sys.exec_prefix}/bin:/usr/bin:/bin")
    return home


def command(*words: object) -> int:
    """One of CaBRNet's own commands under ``protomask run``."""
    options = ["--device", "cpu", "--set", "steps=4"]
    logging.disable(logging.CRITICAL)
    try:
        return main(["run", *options, "--", "-m", "cabrnet.main", *map(str, words), "--device", "cpu"])
    finally:
        logging.disable(logging.NOTSET)


def test_its_own_commands_draw_it(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "global"
    common = ("-c", checkpoint, "-z", checkpoint / "view.yml")
    assert command("explain_global", *common, "-o", out, "-f", "png") == 0
    assert "replaced 6 of 6 regions drawn (attributions 6 of 6)" in capsys.readouterr().err
    drawn = sorted(path.name for path in (out / "prototypes").glob("*.png"))
    assert drawn == [f"prototype_{j}.png" for j in range(6)]
    image = next((tmp_path / "test").rglob("*.png"))
    local = ("-i", image, "-o", tmp_path / "local", "-y", out / "prototypes", "-f", "png")
    assert command("explain_local", *common, *local) == 0
    assert "replaced 2 of 2 regions drawn (attributions 2 of 2)" in capsys.readouterr().err
    patches = list((tmp_path / "local" / image.stem / "test_patches").glob("*.png"))
    assert len(patches) == 2
    assert all(Image.open(path).size == (SIZE, SIZE) for path in patches)
