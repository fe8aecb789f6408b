"""The reference XProtoNet and its training: costs and push by brute force, grey images, several labels, resuming."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from protomask import checkpoint as checkpoints
from protomask.checkpoint import Description, load_checkpoint
from protomask.cli import main
from protomask.data.sample import Sample
from protomask.errors import CheckpointError, InputError
from protomask.store import read_regions
from protomask.training.backbones import build_features, load_weights
from protomask.training.batches import read_pictures
from protomask.training.push import own_classes
from protomask.training.run import right
from protomask.training.schedule import Step
from tests.test_protopnet_train import SIZE, Colours, weights
from xprotonet_ext import FAMILY, TrainSettings, XProtoNet, build, fit, wrap
from xprotonet_ext.losses import (
    blank_images,
    classification,
    cluster_and_separation,
    foreign_l1,
    moved,
    nearest_by_class,
    random_affine,
    transformation,
)
from xprotonet_ext.push import push
from xprotonet_ext.settings import settings_of
from xprotonet_ext.stages import Run

train_module = importlib.import_module("protomask.training.train")
QUICK = TrainSettings(
    "conv-small",
    prototypes_per_class=2,
    prototype_depth=8,
    size=SIZE,
    batch=8,
    warm_epochs=1,
    joint_epochs=2,
    last_layer_epochs=2,
    lr_features=1e-3,
    transformed=4,
    locate=False,
    progress=False,
)


class Many(Colours):
    """Images of two classes at once; every third of none."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        labels = np.zeros(len(self.class_names), bool)
        if index % 3:
            labels[[sample.label, (sample.label + 1) % len(labels)]] = True
        object.__setattr__(sample, "labels", labels)
        return sample


def model(prototypes: int = 6, channels: int = 3) -> XProtoNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return XProtoNet(build_features("conv-small", channels), (prototypes, 8, 1, 1), 3, img_size=32).eval()


def pictures(count: int = 5, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, channels, 64, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)


def run_of(settings: TrainSettings, folder: Path, data: Colours | None = None) -> Run:
    read = read_pictures(data or Colours(), SIZE, multi_label=settings.multi_label)
    net = model(channels=len(settings.mean))
    net.mean, net.std = settings.mean, settings.std
    return Run(settings, net, read, read, folder, settings.batch_norm == "eval", lambda items, name, total: iter(items))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(QUICK, Colours(), Colours(9, seed=1), folder)
    return folder


# The model


def test_the_forward_pass_by_hand() -> None:
    net, x = model().double(), pictures(2, dtype=torch.float64)
    base = net.features(x)
    maps, deep = torch.sigmoid(net.occurrence_module(base)), net.add_on_layers(base)
    pooled = torch.zeros(2, 6, 8, dtype=torch.float64)
    for b in range(2):
        for p in range(6):
            for y in range(4):
                for z in range(4):
                    pooled[b, p] += (maps[b, p, y, z] * deep[b, :, y, z]).detach()
    vectors = net.prototype_vectors.detach().flatten(1)
    cosine = (pooled * vectors).sum(2) / (pooled.norm(dim=2) * vectors.norm(dim=1))
    logits, similarity, occurrence = net(x)
    assert torch.allclose(similarity, cosine, rtol=0, atol=1e-12)
    assert torch.allclose(logits, cosine @ net.last_layer.weight.T, rtol=0, atol=1e-12)
    assert torch.equal(occurrence[:, :, 0], maps)
    features, distances, again, known = net.push_forward(x)
    assert torch.allclose(features, pooled, rtol=0, atol=1e-12)
    assert torch.allclose(distances, 1 - cosine, rtol=0, atol=1e-12)
    assert torch.equal(again, occurrence)
    assert torch.equal(known, logits)
    assert torch.equal(net.compute_occurrence_map(x), occurrence)
    chosen = torch.tensor([4, 1])
    assert torch.allclose(net.selected_similarity(x, chosen), cosine[[0, 1], chosen], rtol=0, atol=1e-12)


def test_the_adapter_reads_it_and_takes_the_cheap_route(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap(model())
    assert wrapped.activation_range == (0.0, 1.0)
    x = pictures(4)[:, :, :32, :32]
    chosen = torch.tensor([5, 0, 3, 3])
    wanted = wrapped.activations(x)[range(4), chosen]
    monkeypatch.setattr(XProtoNet, "forward", lambda *_: pytest.fail("all prototypes were computed"))
    assert torch.allclose(wrapped.activations(x, chosen), wanted, rtol=0, atol=1e-6)


def test_the_range_tells_negative_prototypes() -> None:
    net = model()
    net.prototype_vectors.data[0, 0] = -1
    assert wrap(net).activation_range == (-1.0, 1.0)


def test_a_grey_backbone_is_the_rgb_one_on_equal_channels(tmp_path: Path) -> None:
    rgb = build_features("resnet18").eval()
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    grey = build_features("resnet18", 1).eval()
    load_weights(grey, tmp_path / "rgb.pth")
    x = pictures(2, channels=1)
    assert torch.allclose(grey(x), rgb(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    again = build_features("resnet18", 1)
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    load_weights(again, tmp_path / "grey.pth")
    assert all(torch.equal(v, grey.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(InputError, match="channels: expected 1 or 3, got 2"):
        build_features("resnet18", 2)


def test_building_refuses_what_it_cannot() -> None:
    values: dict[str, Any] = {"family": "xprotonet", "backbone": "conv-small", "num_classes": 3, "size": (64, 64)}
    with pytest.raises(InputError, match="activation: expected cosine"):
        build(Description(prototype_shape=(6, 8, 1, 1), activation="log", **values))
    with pytest.raises(InputError, match=r"prototype_shape: expected \(P, D, 1, 1\)"):
        build(Description(prototype_shape=(6, 8, 2, 2), activation="cosine", **values))
    made = build(Description(prototype_shape=(6, 8, 1, 1), activation="cosine", mean=(0.5,), std=(0.2,), **values))
    assert wrap(made).input_shape == (1, 64, 64)


# The costs


def test_cluster_and_separation_by_hand() -> None:
    similarity = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    identity = torch.eye(3).repeat_interleave(2, 0)
    near = [[max(float(similarity[b, 2 * k]), float(similarity[b, 2 * k + 1])) for k in range(3)] for b in range(4)]
    assert torch.allclose(nearest_by_class(similarity, identity), torch.tensor(near))
    one = torch.tensor([0, 2, 1, 1])
    several = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    for labels in (one, several):
        of = functional.one_hot(one, 3).tolist() if labels is one else several.tolist()
        pairs = [(b, k) for b in range(4) for k in range(3)]
        pulled = [1 - near[b][k] for b, k in pairs if of[b][k]]
        pushed = [near[b][k] for b, k in pairs if not of[b][k]]
        cluster, separation = cluster_and_separation(similarity, labels, identity)
        assert float(cluster) == pytest.approx(sum(pulled) / len(pulled))
        assert float(separation) == pytest.approx(sum(pushed) / len(pushed))
    assert nearest_by_class(similarity, torch.eye(3)[[0, 0, 0, 1, 1, 1]])[:, 2].tolist() == [-1] * 4


def test_classification_of_several_labels_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 1]], dtype=torch.float64)
    total = 0.0
    for k in range(2):
        sides: dict[bool, list[float]] = {True: [], False: []}
        for b in range(3):
            yes = 1 / (1 + math.exp(-float(logits[b, k])))
            p = yes if labels[b, k] else 1 - yes
            sides[bool(labels[b, k])].append(-((1 - p) ** 2) * math.log(p))
        total += sum(sum(values) / len(values) for values in sides.values())
    assert float(classification(logits, labels)) == pytest.approx(total / 2, rel=1e-9)
    one = torch.tensor([0, 0, 1])
    assert torch.equal(classification(logits, one), functional.cross_entropy(logits, one))


def test_l1_leaves_a_class_its_own_prototypes() -> None:
    identity = torch.eye(3).repeat_interleave(2, 0)
    assert float(foreign_l1(torch.ones(3, 6), identity)) == 12


def test_what_moves_along_costs_nothing() -> None:
    x = pictures(3)
    affine = random_affine(3, 5, x)
    assert torch.equal(affine, random_affine(3, 5, x))
    assert not torch.equal(affine, random_affine(3, 6, x))
    along = transformation(x, x[:, :2], affine, lambda images: images[:, :2])
    assert float(along) == pytest.approx(0, abs=1e-6)
    assert float(transformation(x, x[:, :2], affine, lambda images: images[:, :2].flip(3))) > 0.1
    still = torch.eye(3)[None, :2].expand(3, 2, 3)
    assert torch.allclose(moved(x, still), x, atol=1e-5)
    # Only the cells that stay inside count: a map that is one everywhere moves along with itself.
    ones = torch.ones(3, 2, 64, 64)
    assert float(transformation(x, ones, affine, lambda images: torch.ones(3, 2, 64, 64))) == pytest.approx(0, abs=0.01)


# Push and stages


def test_push_against_brute_force() -> None:
    net, x = model().double(), pictures(7, dtype=torch.float64)
    labels = torch.tensor([0, 2, 0, 2, 2, 0, 0])  # no image of class 1
    before = net.prototype_vectors.detach().clone()
    pooled = net.push_forward(x)[0].detach()
    best: list[tuple[float, int]] = []
    for p in range(6):
        cosines = functional.cosine_similarity(pooled[:, p], before[p].flatten(), dim=-1)
        known = [(float(1 - cosines[b]), b) for b in range(7) if labels[b] == p // 2]
        best.append(min(known, default=(math.inf, -1)))
    found = push(net, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert found.images.tolist() == [b for _, b in best]
    assert torch.allclose(found.distances, torch.tensor([d for d, _ in best]).double(), atol=1e-12)
    for p, (_, b) in enumerate(best):
        wanted = before[p].flatten() if b < 0 else pooled[b, p]
        assert torch.allclose(net.prototype_vectors[p].flatten(), wanted, rtol=0, atol=1e-12)


def test_labels_of_both_kinds() -> None:
    identity = torch.eye(3).repeat_interleave(2, 0)
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert own_classes(several, identity).tolist() == [[True, True, False, False, True, True], [False] * 6]
    assert own_classes(torch.tensor([2]), identity).tolist() == [[False] * 4 + [True] * 2]
    assert right(torch.tensor([[3.0, -1, 2], [1, -1, -1]]), several).tolist() == pytest.approx([1, 2 / 3])
    assert right(torch.tensor([[3.0, -1, 2]]), torch.tensor([2])).tolist() == [0]


def moved_by(stage: str, folder: Path, **changes: Any) -> set[str]:
    run = run_of(replace(QUICK, batch_norm="eval", **changes), folder)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.do(Step(stage, 1), 1)
    return {k.split(".")[0] for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}


def test_each_stage_moves_its_own_layers(tmp_path: Path) -> None:
    head = {"add_on_layers", "occurrence_module", "prototype_vectors"}
    assert moved_by("warm", tmp_path) == head
    assert moved_by("joint", tmp_path) == head | {"features"}
    assert moved_by("push", tmp_path) == {"prototype_vectors"}
    assert moved_by("last", tmp_path) == {"last_layer"}


def test_area_and_transformation_do_what_they_are_for(tmp_path: Path) -> None:
    areas = []
    for area in (0.0, 5.0):
        run = run_of(replace(QUICK, area=area, transformation=0), tmp_path)
        entries = [run.joint(n, 1) for n in range(3)]
        areas.append(entries[-1]["area"])
        assert entries[0]["transformation"] == 0
        assert bool((run.model.prototype_vectors >= 0).all())
    assert areas[1] < 0.8 * areas[0]


def test_blank_images_hold_one_colour_each() -> None:
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    blank = blank_images(images, 3)
    assert blank.shape == (3, 3, 4, 6)
    assert float(blank[0].abs().max()) == 0
    for row in (1, 2):
        assert torch.allclose(blank[row], images[row - 1].mean((1, 2))[:, None, None].expand(3, 4, 6))


def test_the_blank_cost_makes_nothing_of_nothing(tmp_path: Path) -> None:
    left = []
    for blank in (0.0, 5.0):
        run = run_of(replace(QUICK, blank=blank, transformation=0), tmp_path)
        entries = [run.joint(n, 1) for n in range(3)]
        assert (entries[0]["blank"] > 0) == (blank > 0)
        run.model.eval()
        with torch.no_grad():
            left.append(float(run.model(torch.zeros(1, 3, *SIZE))[1].mean()))
    assert left[1] < 0.8 * left[0]


# Whole runs


def test_it_learns(tmp_path: Path) -> None:
    settings = replace(QUICK, joint_epochs=8, warm_epochs=0, lr_step=8)
    result = fit(settings, Colours(48), Colours(30, seed=1), tmp_path)
    assert result.test_accuracy >= 0.9


def test_grey_images_of_several_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, mean=(0.5,), std=(0.2,), multi_label=True, locate=True, prototypes_per_class=1)
    fit(settings, Many(), Many(9, seed=1), tmp_path)
    monkeypatch.setattr(checkpoints, "families", lambda: {"xprotonet": FAMILY})
    loaded = load_checkpoint(tmp_path)
    assert loaded.description.multi_label
    assert loaded.description.mean == (0.5,)
    assert loaded.model.input_shape == (1, *SIZE)  # type: ignore[attr-defined]
    for j, source in enumerate(loaded.description.prototypes):
        assert source.label == j
        assert source.activation == 1.0
        assert Many()[int(source.image_id.split("/")[1])].labels[j]  # type: ignore[index]
    stored = read_regions(tmp_path / "prototypes" / "regions.json")
    assert len(stored.regions) + len(stored.unlocated) == 3


def test_what_a_run_leaves_behind(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "families", lambda: {"xprotonet": FAMILY})
    loaded = load_checkpoint(trained)
    assert loaded.description.family == "xprotonet"
    assert loaded.description.activation == "cosine"
    data = Colours()
    for j, source in enumerate(loaded.description.prototypes):
        index = int(source.image_id.split("/")[1])
        assert source.label == data[index].label == j // 2
        run = run_of(QUICK, trained)
        x = next(run.batches(run.train, [np.array([index])]))[0]
        known = loaded.model.activations(x, torch.tensor([j]))
        assert float(known.detach()) == pytest.approx(1, abs=1e-4)
    lines = [json.loads(line) for line in (trained / "train.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["warm", "joint", "joint", "push", "last", "last"]
    assert {"area", "transformation", "cluster", "separation"} <= lines[0].keys()


@pytest.mark.parametrize("broken_after", [1, 2, 4])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    trained: Path, tmp_path: Path, broken_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = train_module.save_state

    def interrupt(folder: Path, identity: Any, state: Any) -> None:
        saved(folder, identity, state)
        if len(state["history"]) == broken_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(QUICK, Colours(), Colours(9, seed=1), tmp_path)
    torch.manual_seed(99)  # what the global random state is must not matter
    assert len(fit(QUICK, Colours(), Colours(9, seed=1), tmp_path).history) == 6
    wanted = weights(trained)
    assert all(torch.equal(v, wanted[k]) for k, v in weights(tmp_path).items())


def test_other_settings_need_another_folder(trained: Path) -> None:
    with pytest.raises(InputError, match=r"area: expected 0\.5, as the run in .* began with .*, got 1"):
        fit(replace(QUICK, area=1), Colours(), Colours(9, seed=1), trained)


def test_a_state_of_another_family_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "train-state.pt").write_bytes((trained / "train-state.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="expected the state of a training run"):
        fit(QUICK, Colours(), Colours(9), tmp_path)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    FAMILY.add_train_arguments(parser)
    return parser.parse_args(arguments)


def test_options_default_to_the_settings() -> None:
    assert settings_of(parsed("--backbone", "vgg19")) == TrainSettings("vgg19")
    given = parsed("--backbone", "vgg11", "--multi-label", "--area", "2", "--mean", ".5", "--std", ".25")
    wanted = TrainSettings("vgg11", multi_label=True, area=2, mean=(0.5,), std=(0.25,))
    assert settings_of(given) == wanted


def test_wrong_settings() -> None:
    for changes, message in (
        ({"area": -1}, "area: expected a number"),
        ({"strength": 0}, "strength: expected a number"),
        ({"strength": math.inf}, "strength: expected a number"),
        ({"transformed": -1}, "transformed: expected an integer"),
        ({"mean": (0.5,)}, "mean, std: expected 1 or 3 values each"),
    ):
        with pytest.raises(InputError, match=message):
            replace(QUICK, **changes)


def test_the_planted_recipe_is_a_command_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's own command with fewer scenes and epochs."""
    script = (Path(__file__).parents[1] / "benchmarks" / "train_planted_xprotonet.sh").read_text(encoding="utf-8")
    command = script[script.index("protomask train") :].replace("\\\n", " ")
    command = command.replace('"${3:-planted}"', "planted").replace('"$1"', "0").replace('"$2"', str(tmp_path / "run"))
    shorter = ["--scenes", "60", "--joint-epochs", "2", "--push-every", "1", "--quiet", "--no-locate"]
    assert main([*shlex.split(command)[1:], *shorter]) == 0
    assert "test accuracy" in capsys.readouterr().out
    known = load_checkpoint(tmp_path / "run")
    assert known.description.family == "xprotonet"
    assert known.model.activation_range == (0.0, 1.0)  # type: ignore[attr-defined]
