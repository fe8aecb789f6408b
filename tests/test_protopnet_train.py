"""Training: the published costs and stages, push against brute force, and resuming as if nothing had happened."""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protomask import checkpoint as checkpoints
from protomask.checkpoint import load_checkpoint
from protomask.data import Planted
from protomask.data.levels import to_bytes
from protomask.data.sample import Geometry, Sample
from protomask.errors import CheckpointError, DataError, InputError, ResourceError
from protomask.store import read_regions
from protomask.training.backbones import build_features
from protomask.training.batches import Chain, Erase, Warp, batches, in_order, read_pictures, shuffled
from protomask.training.schedule import Step, one_cycle, schedule
from protomask.training.settings import parse_size
from protopnet_ext import FAMILY, ProtoPNet, TrainSettings, fit
from protopnet_ext.losses import costs, foreign_l1
from protopnet_ext.push import nearest_patches, push
from protopnet_ext.settings import settings_of
from protopnet_ext.stages import Run

train_module = importlib.import_module("protomask.training.train")
SIZE = (32, 32)
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
    locate=False,
    progress=False,
)


class Colours:
    """A coloured square somewhere on a noisy grey picture; its colour is the class. Learned in seconds."""

    name = "colours"
    part_names: tuple[str, ...] = ()
    _RGB = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])

    def __init__(self, count: int = 24, seed: int = 0, classes: int = 3) -> None:
        self.count, self.seed = count, seed
        self.class_names = ("red", "green", "blue")[:classes]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        label = index % len(self.class_names)
        rng = np.random.default_rng([self.seed, index])
        colour = np.full((*SIZE, 3), 120)
        top, left = rng.integers(0, 17, 2)
        colour[top : top + 16, left : left + 16] = self._RGB[label]
        image = (colour + rng.integers(-20, 21, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        return Sample(f"{self.seed}/{index}", image, label, Geometry((64, 64), (0, 0, 64, 64), SIZE))

    def without_part(self, index: int, part: int) -> None:
        return None


def model(prototypes: int = 6, kernel: int = 1) -> ProtoPNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ProtoPNet(build_features("conv-small"), (prototypes, 8, kernel, kernel), 3, img_size=32).eval()


def run_of(settings: TrainSettings, folder: Path, frozen_norm: bool = False, net: ProtoPNet | None = None) -> Run:
    pictures = read_pictures(Colours(), SIZE)
    return Run(
        settings, net or model(), pictures, pictures, folder, frozen_norm, lambda items, name, total: iter(items)
    )


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoints._read_tensors(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(QUICK, Colours(), Colours(9, seed=1), folder)
    return folder


# The costs, in the form of the published code: maxima of inverted distances.


def test_costs_are_the_published_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(5, 6, generator=generator) * 12
    labels = torch.tensor([0, 1, 2, 2, 0])
    identity = torch.eye(3).repeat_interleave(2, 0)
    last = torch.randn(3, 6, generator=generator)
    logits = torch.randn(5, 3, generator=generator)
    found = costs(logits, distances, labels, identity, last, limit=8.0)
    own = identity[:, labels].t()
    cluster = (8 - ((8 - distances) * own).max(1).values).mean()
    separation = (8 - ((8 - distances) * (1 - own)).max(1).values).mean()
    l1 = (last * (1 - identity.t())).norm(p=1)
    entropy = -torch.log_softmax(logits, 1)[range(5), labels].mean()
    assert float(found.cluster) == pytest.approx(float(cluster), rel=1e-6)
    assert float(found.separation) == pytest.approx(float(separation), rel=1e-6)
    assert float(found.l1) == pytest.approx(float(l1), rel=1e-6)
    assert float(found.cross_entropy) == pytest.approx(float(entropy), rel=1e-6)
    total = entropy + 0.8 * cluster - 0.08 * separation + 1e-4 * l1
    assert float(found.total(0.8, 0.08, 1e-4)) == pytest.approx(float(total), rel=1e-6)


def test_l1_leaves_a_class_its_own_prototypes() -> None:
    weight = torch.ones(3, 6, requires_grad=True)
    foreign_l1(weight, torch.eye(3).repeat_interleave(2, 0)).backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, 1 - torch.eye(3).repeat_interleave(2, 0).T)


# Push


@pytest.mark.parametrize("kernel", [1, 2])
def test_push_against_brute_force(kernel: int) -> None:
    net = model(kernel=kernel).double()
    x = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 2, 0, 2, 2, 0, 0])  # no image of class 1
    before = net.prototype_vectors.detach().clone()
    features = net.conv_features(x).detach()
    best: list[Any] = [(np.inf, -1, before[p]) for p in range(6)]
    for p in range(6):
        for b in range(7):
            for top in range(features.shape[2] - kernel + 1):
                for left in range(features.shape[3] - kernel + 1):
                    patch = features[b, :, top : top + kernel, left : left + kernel]
                    distance = float((patch - before[p]).square().sum())
                    if labels[b] == p // 2 and distance < best[p][0]:
                        best[p] = (distance, b, patch)
    found = push(net, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert found.images.tolist() == [b for _, b, _ in best]
    assert found.images[2] == -1
    assert torch.allclose(found.distances, torch.tensor([d for d, _, _ in best]).double(), atol=1e-10)
    assert torch.allclose(net.prototype_vectors.detach(), torch.stack([v for _, _, v in best]), atol=1e-12)


def test_ties_go_to_the_first_image() -> None:
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).expand(4, -1, -1, -1)
    found = nearest_patches(model(), [(x[:2], torch.tensor([0, 1])), (x[2:], torch.tensor([1, 0]))])
    assert found.images.tolist() == [0, 0, 1, 1, -1, -1]


# Batches


def test_batches_depend_on_the_seed_alone() -> None:
    pictures = read_pictures(Colours(), SIZE)
    groups = shuffled(24, 7, (0, 3))
    assert [len(g) for g in groups] == [6, 6, 6, 6]
    assert sorted(np.concatenate(groups).tolist()) == list(range(24))
    assert any((a != b).any() for a, b in zip(groups, shuffled(24, 7, (0, 4)), strict=True))
    once, again, other = (
        list(batches(pictures, groups, [0] * 3, [1] * 3, augment=Warp(), seed=(0, n))) for n in (3, 3, 4)
    )
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(once, other, strict=True))
    # An image is augmented alike whichever batch it is in.
    rows = groups[1][::-1].copy()
    alone = next(batches(pictures, [rows], [0] * 3, [1] * 3, augment=Warp(), seed=(0, 3)))
    assert torch.equal(alone[0], once[1][0].flip(0))


def test_workers_change_nothing() -> None:
    pictures = read_pictures(Colours(), SIZE)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = [
        list(batches(pictures, in_order(24, 8), [0] * 3, [1] * 3, augment=Warp(), seed=(1,), workers=n)) for n in (0, 2)
    ]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*made, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    pickle.dumps((pictures, Warp()))  # where processes are spawned and not forked


def test_images_too_many_to_keep_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read_pictures(Colours(), SIZE)
    monkeypatch.setattr("protomask.training.batches._KEPT", 100)
    data = Colours()
    reread = read_pictures(data, SIZE)
    assert all(np.array_equal(kept.read(i), reread.read(i)) for i in range(24))
    monkeypatch.setattr(Colours, "_RGB", 0 * Colours._RGB)
    assert not np.array_equal(kept.read(0), reread.read(0))


def test_augmentation_moves_the_picture_a_little() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[28:36, 28:36] = 255
    augment = Warp()
    moved = [augment(image, seed) for seed in range(20)]
    assert all(m.shape == image.shape and m.dtype == np.uint8 for m in moved)
    assert len({m.tobytes() for m in moved}) > 10
    assert all(m[26:38, 26:38].mean() > 60 for m in moved)  # the centre stays near the centre


def test_data_that_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match=r"0/0: size: expected \(48, 48\), got \(32, 32\)"):
        read_pictures(Colours(), (48, 48))
    with pytest.raises(DataError, match="colours: expected at least one sample"):
        read_pictures(Colours(0), SIZE)


# Stages


def test_schedule() -> None:
    steps = schedule(replace(QUICK, joint_epochs=4, push_every=2, last_layer_epochs=1, locate=True))
    kinds = [s.kind for s in steps]
    assert kinds == ["warm", "joint", "joint", "push", "last", "joint", "joint", "push", "last", "locate"]
    assert [s.kind for s in schedule(replace(QUICK, activation="linear"))] == ["warm", "joint", "joint", "push"]


def moved_by(stage: str, folder: Path, **changes: Any) -> set[str]:
    """The layers whose parameters or buffers a stage changes."""
    settings = replace(QUICK, **changes)
    run = run_of(settings, folder, frozen_norm=settings.batch_norm == "eval")
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.do(Step(stage, 1), 1)
    changed = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    return {"norm" if "running" in k or "tracked" in k else k.split(".")[0] for k in changed}


def test_each_stage_moves_its_own_layers(tmp_path: Path) -> None:
    assert moved_by("warm", tmp_path, batch_norm="eval") == {"add_on_layers", "prototype_vectors"}
    assert moved_by("warm", tmp_path) == {"add_on_layers", "prototype_vectors", "norm"}
    assert moved_by("joint", tmp_path) == {"features", "add_on_layers", "prototype_vectors", "norm"}
    assert moved_by("joint", tmp_path, batch_norm="eval") == {"features", "add_on_layers", "prototype_vectors"}
    assert moved_by("push", tmp_path) == {"prototype_vectors"}
    assert moved_by("last", tmp_path) == {"last_layer"}


def test_learning_rates_fall_after_the_step(tmp_path: Path) -> None:
    run = run_of(replace(QUICK, lr_step=2), tmp_path)
    rates = []
    for number in range(3):
        rates.append([group["lr"] for group in run.optimisers["joint"].param_groups])
        run.joint(number, number + 1)
    assert rates[0] == rates[1] == [1e-3, 3e-3, 3e-3]
    assert rates[2] == pytest.approx([1e-4, 3e-4, 3e-4])
    assert [group["weight_decay"] for group in run.optimisers["joint"].param_groups] == [1e-3, 1e-3, 0]


@pytest.mark.parametrize(("joint", "every", "lengths"), [(5, 4, (4, 1)), (6, 3, (3, 3)), (3, 8, (3,)), (4, 0, (4,))])
def test_every_cycle_ends_at_its_push(tmp_path: Path, joint: int, every: int, lengths: tuple[int, ...]) -> None:
    run = run_of(replace(QUICK, one_cycle=True, joint_epochs=joint, push_every=every), tmp_path)
    rate = run.optimisers["joint"].param_groups[0]
    epoch = 0
    for cycle, length in enumerate(lengths):
        rates = []
        for _ in range(length):
            epoch += 1
            for done in np.linspace(0, 1, 40, endpoint=False):
                run._cycle(epoch)(done)
                rates.append(rate["lr"])
        peak = 1e-3 / 2**cycle
        assert rates[0] == pytest.approx(0.04 * peak)
        assert max(rates) == pytest.approx(peak, rel=0.01)
        assert rates[-1] < 0.01 * peak
        assert (np.diff(rates[int(np.argmax(rates)) :]) < 0).all()


def test_the_last_layer_learns_as_adam_does_on_all_it_sees(tmp_path: Path) -> None:
    """One batch, one step, by another route: the whole model's forward pass, its gradients, and Adam's first step."""
    run = run_of(replace(QUICK, batch=24), tmp_path)
    images, labels = next(batches(run.train, in_order(24, 24), run.model.mean, run.model.std))
    before = run.model.last_layer.weight.detach().clone()
    logits = run.model(images)[0]
    loss = nn.functional.cross_entropy(logits, labels)
    foreign = 1 - run.model.prototype_class_identity.T
    loss = loss + 1e-4 * (run.model.last_layer.weight * foreign).abs().sum()
    slope = torch.autograd.grad(loss, run.model.last_layer.weight)[0]
    run.last(1)
    wanted = before - 1e-4 * slope / (slope.abs() + 1e-8)
    assert torch.allclose(run.model.last_layer.weight, wanted, rtol=0, atol=1e-7)


# Whole runs


def test_it_learns(tmp_path: Path) -> None:
    settings = replace(QUICK, joint_epochs=8, warm_epochs=0, lr_step=8)
    result = fit(settings, Colours(48), Colours(30, seed=1), tmp_path)
    assert result.test_accuracy >= 0.9
    assert "test accuracy" in result.summary()


def test_what_a_run_leaves_behind(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "families", lambda: {"protopnet": FAMILY})
    loaded = load_checkpoint(trained)
    assert loaded.description.class_names == ("red", "green", "blue")
    assert loaded.description.extra["training"]["batch"] == 8
    data = Colours()
    for j, source in enumerate(loaded.description.prototypes):
        index = int(source.image_id.split("/")[1])
        assert source.label == data[index].label == j // 2
        picture = cv2.imread(str(trained / source.file))
        assert np.array_equal(picture[..., ::-1], data[index].image)
        x = next(batches(read_pictures(data, SIZE), [np.array([index])], loaded.model.mean, loaded.model.std))[0]  # type: ignore[attr-defined]
        known = loaded.model.activations(x, torch.tensor([j]))
        assert source.activation == pytest.approx(float(known.detach()), abs=1e-3)
        assert source.activation == pytest.approx(np.log(1e4))
    lines = [json.loads(line) for line in (trained / "train.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["warm", "joint", "joint", "push", "last", "last"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= line["test_accuracy"] <= 1 for line in lines)


def test_regions_of_the_prototypes(tmp_path: Path) -> None:
    settings = replace(QUICK, prototypes_per_class=1, warm_epochs=0, joint_epochs=4, last_layer_epochs=0, locate=True)
    fit(settings, Colours(24, classes=2), Colours(4, seed=1, classes=2), tmp_path)
    sources = checkpoints.read_description(tmp_path).prototypes
    stored = read_regions(tmp_path / "prototypes" / "regions.json")
    found = {r.prototype: r for r in stored.regions}
    assert len(stored.regions) + len(stored.unlocated) == 2
    assert stored.names[0] == "red / 0"
    assert found
    for j, region in found.items():
        assert region.image_id == sources[j].image_id
        assert region.method == "mdm"
        box = np.array(sources[j].box) * 2  # the file is twice the sample's size
        assert np.abs(box - np.array(region.box)).max() <= 2
    for j in {u.prototype for u in stored.unlocated}:
        assert sources[j].box is None


@pytest.mark.parametrize("broken_after", [1, 3, 4])
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
    assert not (tmp_path / "model.json").exists()
    torch.manual_seed(99)  # what the global random state is must not matter
    result = fit(QUICK, Colours(), Colours(9, seed=1), tmp_path)
    assert len(result.history) == 6
    wanted = weights(trained)
    assert all(torch.equal(v, wanted[k]) for k, v in weights(tmp_path).items())
    assert checkpoints.read_description(tmp_path) == checkpoints.read_description(trained)


def test_a_finished_run_is_not_repeated(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(trained)
    monkeypatch.setattr(Run, "do", lambda *_: pytest.fail("a step was repeated"))
    fit(replace(QUICK, test_every=0), Colours(), Colours(9, seed=1), trained)
    assert all(torch.equal(v, before[k]) for k, v in weights(trained).items())


def test_other_settings_need_another_folder(trained: Path) -> None:
    with pytest.raises(InputError, match=r"joint_epochs: expected 2, as the run in .* began with .*, got 3"):
        fit(replace(QUICK, joint_epochs=3), Colours(), Colours(9, seed=1), trained)
    with pytest.raises(InputError, match="training images: expected"):
        fit(QUICK, Colours(23), Colours(9, seed=1), trained)
    with pytest.raises(InputError, match=r"test\.class_names: expected those of train"):
        fit(QUICK, Colours(), Colours(9, classes=2), trained)


class Wide(Colours):
    """Pixels of more than 8 bits, seen through a window."""

    def __init__(self, count: int = 24, seed: int = 0, window: tuple[float, float] | None = (0, 510)) -> None:
        super().__init__(count, seed)
        self.window = window

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        wide = sample.image.astype(np.uint16) * 2
        return replace(sample, image=to_bytes(wide, sample.image_id, self.window))


class Dark(Wide):
    """Other pixels under the same names."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, image=sample.image // 2)


def test_other_data_need_another_folder(tmp_path: Path) -> None:
    settings = replace(QUICK, joint_epochs=1, last_layer_epochs=0)
    test = Colours(9, seed=1)
    fit(settings, Wide(), test, tmp_path)
    assert checkpoints.read_description(tmp_path).extra["data"] == {
        **{"name": "colours", "train": 24, "test": 9},
        "window": [0, 510],
    }
    with pytest.raises(InputError, match=r"window: expected \[0\.0, 510\.0\], as the run .*, got \[0\.0, 99"):
        fit(settings, Wide(window=(0, 99)), test, tmp_path)
    for train, test, message in (
        (Wide(), Colours(8, seed=1), "test images: expected"),
        (Dark(), Colours(9, seed=1), "training pixels: expected"),
        (Wide(), Dark(9, seed=1), "test pixels: expected"),
    ):
        with pytest.raises(InputError, match=message):
            fit(settings, train, test, tmp_path)


class Redecoded(Wide):
    """What another build of an image library makes of the same files."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, image=np.where(sample.image < 255, sample.image + 1, 254).astype(np.uint8))


def test_another_decoder_is_no_other_data(tmp_path: Path) -> None:
    settings = replace(QUICK, joint_epochs=1, last_layer_epochs=0)
    fit(settings, Wide(), Colours(9, seed=1), tmp_path)
    fit(settings, Redecoded(), Colours(9, seed=1), tmp_path)


def test_a_state_that_tells_less_of_its_data_goes_on(trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained / "train-state.pt", weights_only=True)
    for name in ("training pixels", "test images", "test pixels", "window"):
        del state["identity"][name]
    torch.save(state, tmp_path / "train-state.pt")
    fit(QUICK, Colours(), Colours(9, seed=1), tmp_path)
    with pytest.raises(InputError, match="training images: expected"):
        fit(QUICK, Colours(23), Colours(9, seed=1), tmp_path)


def test_a_run_that_diverges_stops_before_its_state_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"step 2, joint: expected finite .*loss.* infinite at lr_features 1e\+30,"):
        fit(replace(QUICK, lr_features=1e30), Colours(), Colours(9, seed=1), tmp_path)
    assert not (tmp_path / "model.json").exists()
    state = torch.load(tmp_path / "train-state.pt", weights_only=True)
    assert [entry["stage"] for entry in state["history"]] == ["warm"]
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [1]


def test_what_no_cost_shows_is_seen_after_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(replace(QUICK, batch=24), tmp_path)
    monkeypatch.setattr(run, "after_step", lambda: run.model.prototype_vectors.data.fill_(torch.inf))
    with pytest.raises(InputError, match=r"step 4, warm: .* got prototype_vectors NaN or infinite at lr_add_on 0\.003"):
        run.do(Step("warm", 4), 3)
    run = run_of(QUICK, tmp_path)
    run.model.prototype_vectors.data.fill_(1e30)  # finite, but its squared distances are not
    with pytest.raises(InputError, match=r"step 1, push: .* got distance NaN or infinite"):
        run.do(Step("push", 1), 0)
    run = run_of(QUICK, tmp_path)
    run.model.last_layer.weight.data.fill_(3e38)
    with pytest.raises(InputError, match=r"step 1, last: .* got loss NaN or infinite at lr_last_layer 0\.0001"):
        run.do(Step("last", 1), 0)


def test_a_class_without_images_is_no_divergence(tmp_path: Path) -> None:
    run = run_of(QUICK, tmp_path)
    run.train = read_pictures(Colours(2), SIZE)
    assert run.do(Step("push", 1), 0)["pushed"] == 4


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-state.pt").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CheckpointError, match=r"train-state\.pt: expected the state of a training run"):
        fit(QUICK, Colours(), Colours(9), tmp_path)


def test_an_unwritable_folder_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(Colours, "__getitem__", lambda *_: pytest.fail("data was read first"))
    with pytest.raises(ResourceError):
        fit(QUICK, Colours(), Colours(), tmp_path / "file" / "out")


def test_training_leaves_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(replace(QUICK, joint_epochs=1, last_layer_epochs=0), Colours(9), Colours(3), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_with_folded_batch_norm_keep_it_still(tmp_path: Path) -> None:
    net = build_features("conv-small")
    torch.save(net.state_dict(), tmp_path / "folded.pth")  # a fresh network's statistics are 0 and 1
    settings = replace(QUICK, weights=str(tmp_path / "folded.pth"), joint_epochs=1, last_layer_epochs=0)
    fit(settings, Colours(9), Colours(3), tmp_path / "auto")
    assert checkpoints.read_description(tmp_path / "auto").extra["frozen_batch_norm"] is True
    kept = {k: v for k, v in weights(tmp_path / "auto").items() if k.endswith("running_mean")}
    assert kept
    assert all((v == 0).all() for v in kept.values())
    fit(replace(settings, batch_norm="train"), Colours(9), Colours(3), tmp_path / "train")
    assert any((v != 0).any() for k, v in weights(tmp_path / "train").items() if k.endswith("running_mean"))


# The command line


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    FAMILY.add_train_arguments(parser)
    for name in ("data", "root", "crop", "out"):
        parser.add_argument(f"--{name}")
    return parser.parse_args(arguments)


def test_options_default_to_the_settings() -> None:
    assert settings_of(parsed("--backbone", "vgg19")) == TrainSettings("vgg19")
    given = parsed(
        *("--backbone", "resnet18", "--size", "192x256", "--augment", "off"),
        *("--no-locate", "--crop", "box", "--lr-step", "3"),
    )
    wanted = TrainSettings("resnet18", size=(192, 256), augment=False, locate=False, crop="box", lr_step=3)
    assert settings_of(given) == wanted
    assert parse_size("225") == (225, 225)
    assert settings_of(parsed("--backbone", "mobilenet_v2@16")).backbone == "mobilenet_v2@16"


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--warm-epochs", "--separation", "--batch-norm", "--no-locate", "(default: 0.003)"):
        assert option in text


@pytest.mark.parametrize("arguments", [["--backbone", "alexnet"], [], ["--backbone", "vgg11", "--size", "1x2x3"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)


def test_an_unknown_backbone_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--backbone", "alexnet@16")
    assert "expected one of vgg11, vgg11_bn" in capsys.readouterr().err


def test_wrong_settings() -> None:
    with pytest.raises(InputError, match="batch: expected an integer of at least 1, got 0"):
        replace(QUICK, batch=0)
    with pytest.raises(InputError, match="lr_features: expected a number"):
        replace(QUICK, lr_features=-1)
    with pytest.raises(InputError, match=r"lr_add_on: expected a number in \[0, 3e\+38\], got inf"):
        replace(QUICK, lr_add_on=float("inf"))
    with pytest.raises(InputError, match="size: expected"):
        replace(QUICK, size=(8, 8))
    with pytest.raises(InputError, match=r"backbone: expected one of vgg11.*'alexnet'"):
        replace(QUICK, backbone="alexnet@16")


def test_a_seed_may_be_a_date_and_time(tmp_path: Path) -> None:
    seed = 20250101000000
    fit(replace(QUICK, seed=seed, warm_epochs=0, joint_epochs=1, locate=True), Colours(9), Colours(3), tmp_path)
    assert checkpoints.read_description(tmp_path).extra["training"]["seed"] == seed
    most = 18_446_000_000_000  # up to here a step's seed was never too great, and is what it always was
    assert train_module._step_seed(most, 5) == most * 1_000_003 + 5 < 2**64
    with pytest.raises(InputError, match="seed: expected a number in"):
        replace(QUICK, seed=2**63)


def test_the_command_trains_on_planted_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    opened = train_module.open_dataset

    def few(name: str, **options: Any) -> Planted:
        return opened(name, count=12, classes=3, **options)  # type: ignore[return-value]

    monkeypatch.setattr(train_module, "open_dataset", few)
    arguments = "--backbone conv-small --size 32 --warm-epochs 0 --joint-epochs 1 --last-layer-epochs 1 --no-locate"
    args = parsed(*arguments.split(), "--data", "planted", "--prototypes-per-class", "1", "--out", str(tmp_path / "o"))
    FAMILY.train(args)
    told = capsys.readouterr()
    assert "test accuracy" in told.out
    assert "about" in told.err
    assert "s per joint batch of 20" in told.err
    assert checkpoints.read_description(tmp_path / "o").prototype_shape == (3, 128, 1, 1)


def test_erase_leaves_the_rest_and_depends_on_the_seed() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 48, 3), dtype=np.uint8)
    erase = Erase(3)
    made = [erase(image, seed) for seed in range(40)]
    assert all(np.array_equal(erase(image, seed), made[seed]) for seed in range(40))
    shares = np.array([(m != image).any(2).mean() for m in made])
    assert (shares == 0).any()  # up to three, so sometimes none
    assert 0.05 < shares.mean() < 0.4
    assert shares.max() <= 3 * 0.25
    assert np.array_equal(Chain([erase, erase])(image, 7), erase(erase(image, 7), 7))
    assert np.array_equal(Erase(0)(image, 1), image)


def test_one_cycle_rises_and_falls_once() -> None:
    values = np.array([one_cycle(p) for p in np.linspace(0, 1, 200, endpoint=False)])
    top = int(values.argmax())
    assert values[0] == pytest.approx(0.04)
    assert values.max() == pytest.approx(1, abs=1e-3)
    assert (np.diff(values[: top + 1]) > 0).all()
    assert (np.diff(values[top:]) < 0).all()
    assert values[-1] < 1e-3
