"""Results on disk: read by pycocotools and by ourselves, coordinates by closed forms, and nothing half-written."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from protomask import files
from protomask.data import Geometry, make_sample
from protomask.errors import DataError, InputError, ResourceError
from protomask.records import Localisation, Targets
from protomask.store import (
    ImageInfo,
    Score,
    prepare_output,
    read_maps,
    read_regions,
    read_scores,
    safe_name,
    to_original,
    write_maps,
    write_regions,
    write_scores,
)


def localisation(maps: torch.Tensor, images: list[int], prototypes: list[int], **changed: object) -> Localisation:
    n = len(maps)
    values = {
        "method": "mdm",
        "targets": Targets(torch.tensor(images), torch.tensor(prototypes)),
        "maps": maps,
        "boxes": torch.arange(4 * n).view(n, 4),
        "peaks": torch.arange(2 * n).view(n, 2),
        "activations_before": torch.linspace(1, 2, n),
        "activations_after": torch.linspace(0.5, 1, n),
        "scores": torch.linspace(0.25, 0.75, n),
        "located": torch.ones(n, dtype=torch.bool),
        "reasons": ("",) * n,
        "masks": True,
    }
    return Localisation(**{**values, **changed})


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    mask[:, y0:y1, x0:x1] = 1
    return mask


def coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# A file of 60 x 120 pixels, of which the right half was cut out and squashed to 20 x 20: x three, y three.
HALF = ImageInfo("birds/one.jpg", Geometry((60, 120), (60.0, 0.0, 120.0, 60.0), (20, 20)))
WHOLE = ImageInfo("birds/two.jpg", Geometry((40, 40), (0.0, 0.0, 40.0, 40.0), (20, 20)), "two-on-disk.jpg")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, in annToMask
def test_pycocotools_reads_regions_in_original_pixels(tmp_path: Path) -> None:
    maps = torch.cat([rectangle((20, 20), 2, 4, 7, 8), rectangle((20, 20), 0, 0, 3, 3)])
    mdm = localisation(maps, [0, 1], [5, 0])
    up = localisation(maps[:1], [0], [0], method="upsampling", masks=False)
    path = tmp_path / "regions.json"
    names = {0: "Cardinal / 1", 5: "Mallard / 2"}
    write_regions(path, [(mdm, [HALF, WHOLE]), (up, [WHOLE])], names, region="own-area")
    data = coco(path)
    assert {k: c["name"] for k, c in data.cats.items()} == names
    assert [(i["file_name"], i["width"], i["height"]) for i in data.loadImgs([1, 2])] == [
        ("birds/one.jpg", 120, 60),
        ("two-on-disk.jpg", 40, 40),
    ]
    first, second, third = data.loadAnns([1, 2, 3])
    assert (first["category_id"], first["image_id"], first["method"], first["region"]) == (5, 1, "mdm", "own-area")
    assert first["bbox"] == [60 + 2 * 3, 4 * 3, 5 * 3, 4 * 3]
    assert first["area"] == 5 * 4 * 9
    wanted = np.zeros((60, 120), bool)
    wanted[12:24, 66:81] = True
    assert np.array_equal(data.annToMask(first).astype(bool), wanted)
    assert (first["score"], first["activation"], first["iscrowd"]) == (0.25, 1.0, 0)
    assert (second["bbox"], second["category_id"], second["image_id"]) == ([0, 0, 6, 6], 0, 2)
    # Maps that are no masks have no area of their own: 5 % of 400 pixels, four file pixels each.
    assert (third["method"], third["region"], third["area"], third["image_id"]) == ("upsampling", "percentile", 80, 2)
    assert data.getAnnIds(imgIds=[2], catIds=[0]) == [2, 3]
    with contextlib.redirect_stdout(io.StringIO()):
        data.info()
        data.loadRes([{**first, "score": 0.5}])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = localisation(
        torch.cat([rectangle((20, 20), 2, 4, 7, 8)] * 3),
        [0, 1, 1],
        [1, 1, 0],
        located=torch.tensor([True, False, True]),
        reasons=("", "constant map", ""),
        scores=torch.tensor([0.5, math.nan, math.nan]),
        activations_before=torch.tensor([1.5, 2.0, math.inf]),
    )
    write_regions(tmp_path / "r.json", [(found, [HALF, WHOLE])], ["a", "b"], region="own-area")
    got = read_regions(tmp_path / "r.json")
    assert got.names == {0: "a", 1: "b"}
    one, two = got.regions
    assert (one.image_id, one.file_name, one.prototype, one.name) == ("birds/one.jpg", "birds/one.jpg", 1, "b")
    assert (one.method, one.kind, one.box, one.area) == ("mdm", "own-area", (66, 12, 81, 24), 180)
    assert (one.score, one.activation) == (0.5, 1.5)
    assert one.mask.dtype == np.bool_
    assert np.argwhere(one.mask).min(0).tolist() == [12, 66]
    assert one.mask.sum() == 180
    assert math.isnan(two.score)
    assert math.isnan(two.activation)
    (missed,) = got.unlocated
    assert (missed.image_id, missed.prototype, missed.method) == ("birds/two.jpg", 1, "mdm")
    assert (missed.activation, missed.reason) == (2.0, "constant map")
    assert "NaN" not in (tmp_path / "r.json").read_text()
    assert "Infinity" not in (tmp_path / "r.json").read_text()


def test_many_pairs_are_cut_as_each_alone(tmp_path: Path) -> None:
    maps = torch.rand(150, 20, 20, generator=torch.Generator().manual_seed(0))
    infos = [HALF, WHOLE]
    together = localisation(maps, [i % 2 for i in range(150)], [0] * 150)
    write_regions(tmp_path / "all.json", [(together, infos)], ["a"])
    alone = ((together[i : i + 1], infos) for i in range(150))
    write_regions(tmp_path / "one.json", alone, ["a"])
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_to_original_undoes_the_samples_resize() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(v) for v in rng.integers(20, 90, 2))
        x0, y0 = (int(v) for v in rng.integers(0, 10, 2))
        box = np.array([x0, y0, width - 3, height - 2], dtype=float)
        image = np.zeros((height, width, 3), np.uint8)
        original = rng.random((height, width)) < 0.5
        # At whole multiples each original pixel is a block of sample pixels, so the way there and back is exact.
        size = (3 * (height - 2 - y0), 2 * (width - 3 - x0))
        sample = make_sample("x", image, 0, size, crop="box", box=box, segmentation=original)
        cut = np.zeros_like(original)
        cut[y0 : height - 2, x0 : width - 3] = original[y0 : height - 2, x0 : width - 3]
        assert np.array_equal(to_original(sample.segmentation, sample.geometry), cut)


def test_an_original_pixel_takes_the_sample_pixel_at_its_centre() -> None:
    mask = np.random.default_rng(0).random((30, 50)) < 0.5
    geometry = Geometry((10, 10), (0.0, 0.0, 10.0, 10.0), (30, 50))
    assert np.array_equal(to_original(mask, geometry), mask[1::3, 2::5])


def test_a_region_between_the_pixels_of_a_small_original_keeps_one() -> None:
    geometry = Geometry((4, 4), (0.0, 0.0, 4.0, 4.0), (40, 40))
    for y, x in ((0, 0), (13, 27), (39, 39)):
        mask = np.zeros((40, 40), bool)
        mask[y, x] = True
        assert np.argwhere(to_original(mask, geometry)).tolist() == [[y // 10, x // 10]]
    assert not to_original(np.zeros((40, 40), bool), geometry).any()


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    found = localisation(rectangle((20, 20), 2, 4, 7, 8), [1], [1])
    with pytest.raises(InputError, match=r"images: expected at least 2, one per image of the targets, got 1"):
        write_regions(path, [(found, [HALF])], ["a", "b"])
    with pytest.raises(InputError, match=r"names: expected a name for every prototype .* none for \[1\]"):
        write_regions(path, [(found, [HALF, WHOLE])], ["a"])
    with pytest.raises(InputError, match="region: expected one of percentile, own-area"):
        write_regions(path, [(found, [HALF, WHOLE])], ["a", "b"], region="box")
    large = localisation(rectangle((24, 24), 2, 4, 7, 8), [1], [1])
    with pytest.raises(InputError, match=r"geometry of 'birds/two.jpg': expected the maps' size \(24, 24\)"):
        write_regions(path, [(large, [HALF, WHOLE])], ["a", "b"])
    moved = replace(WHOLE, file_name="elsewhere.jpg")
    with pytest.raises(InputError, match=r"image 'birds/two.jpg': expected one geometry and file"):
        write_regions(path, [(found, [HALF, WHOLE]), (found, [HALF, moved])], ["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_scores_round_trip_with_null_for_what_is_undefined(tmp_path: Path) -> None:
    class Summary:  # another's class with the same attributes, numpy numbers inside
        mean, low, high, n = np.float32(0.5), np.float64(0.25), math.nan, np.int64(7)

    path = tmp_path / "scores.json"
    nan = math.nan
    write_scores(path, {"demo": {"mdm": {"energy": Summary(), "iou-p95": Score(nan, nan, math.inf, 0)}}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "demo": {
            "mdm": {
                "energy": {"mean": 0.5, "low": 0.25, "high": None, "n": 7},
                "iou-p95": {"mean": None, "low": None, "high": None, "n": 0},
            }
        }
    }
    got = read_scores(path)["demo"]["mdm"]
    assert (got["energy"].mean, got["energy"].low, got["energy"].n) == (0.5, 0.25, 7)
    assert all(math.isnan(v) for v in (got["energy"].high, got["iou-p95"].mean))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_round_trip(tmp_path: Path, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    found = localisation(
        torch.rand(3, 9, 11, generator=generator),
        [0, 2, 1],
        [4, 0, 1],
        scores=torch.tensor([0.1, math.nan, 0.3]),
        located=torch.tensor([True, False, True]),
        reasons=("", "constant map", ""),
        mask_vectors={6: torch.rand(3, 6, 6, generator=generator), 24: torch.rand(3, 24, 24, generator=generator)},
        fill="blur",
        settings={"scales": (6, 24), "area_weight": 2.0, "name": "ü", "nested": {"a": 1}},
    )
    write_maps(tmp_path / "m.npz", found, ["a/ü.jpg", "b", "c"], dtype=dtype)
    got, image_ids = read_maps(tmp_path / "m.npz")
    assert image_ids == ("a/ü.jpg", "b", "c")
    assert torch.allclose(got.maps, found.maps, atol=0 if dtype == "float32" else 2.5e-4, rtol=0)
    assert got.maps.dtype == torch.float32
    for name in ("boxes", "peaks", "activations_before", "activations_after", "located"):
        assert torch.equal(getattr(got, name), getattr(found, name)), name
    assert torch.equal(got.scores.isnan(), found.scores.isnan())
    assert list(got.targets) == [(0, 4), (2, 0), (1, 1)]
    assert {s: v.shape for s, v in got.mask_vectors.items()} == {6: (3, 6, 6), 24: (3, 24, 24)}
    assert torch.equal(got.mask_vectors[24], found.mask_vectors[24])
    assert (got.method, got.fill, got.masks, got.reasons) == ("mdm", "blur", True, ("", "constant map", ""))
    assert got.settings == found.settings
    assert len(Localisation.join([found, got])) == 6


def test_maps_in_bfloat16_and_with_gradients_are_stored(tmp_path: Path) -> None:
    maps = rectangle((8, 8), 1, 1, 3, 3).bfloat16().requires_grad_()
    write_maps(tmp_path / "m.npz", localisation(maps, [0], [0]), ["a"])
    assert torch.equal(read_maps(tmp_path / "m.npz")[0].maps, maps.detach().float())


def test_maps_that_cannot_be_stored(tmp_path: Path) -> None:
    found = localisation(rectangle((8, 8), 1, 1, 3, 3), [1], [0])
    with pytest.raises(InputError, match="image_ids: expected at least 2"):
        write_maps(tmp_path / "m.npz", found, ["a"])
    with pytest.raises(InputError, match="settings: expected plain JSON values"):
        write_maps(tmp_path / "m.npz", replace(found, settings={"fill": object()}), ["a", "b"])
    with pytest.raises(InputError, match="dtype: expected one of float32, float16"):
        write_maps(tmp_path / "m.npz", found, ["a", "b"], dtype="int8")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_errors_that_name_them(tmp_path: Path) -> None:
    found = localisation(rectangle((20, 20), 2, 4, 7, 8), [0], [0])
    write_maps(tmp_path / "m.npz", found, ["a"])
    write_regions(tmp_path / "r.json", [(found, [HALF])], ["a"])
    write_scores(tmp_path / "s.json", {"m": {"mdm": {"energy": Score(0.1, 0, 0.2, 3)}}})
    for name, read in (("m.npz", read_maps), ("r.json", read_regions), ("s.json", read_scores)):
        path = tmp_path / name
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"[1, 2]", b'{"images": 3, "m": 4}', b"\xff\xfe\x00"):
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{name}: expected"):
                read(path)
        path.unlink()
        with pytest.raises(DataError, match=f"{name}: expected .*no such file"):
            read(path)


def test_an_npz_with_a_pickle_inside_is_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "m.npz", about=np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"m\.npz"):
        read_maps(tmp_path / "m.npz")
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.json"
    write_scores(path, {})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"s\.json: expected a file that can be written, got .*No space left"):
        write_scores(path, {"m": {}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_files_are_as_readable_as_any_others(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_scores(tmp_path / "s.json", {})
    assert stat.S_IMODE((tmp_path / "s.json").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_prepare_output_creates_proves_and_leaves_no_trace(tmp_path: Path) -> None:
    made = prepare_output(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b"
    assert made.is_dir()
    (made / "kept.txt").write_text("kept")
    assert prepare_output(str(made)) == made
    assert [p.name for p in made.iterdir()] == ["kept.txt"]


def test_an_output_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match=f"output folder {wrong}: expected a folder that can be written to"):
            prepare_output(wrong)
    with pytest.raises(ResourceError, match=r"file/s\.json: expected a file that can be written"):
        write_scores(tmp_path / "file" / "s.json", {})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ResourceError, match="Permission denied"):
        prepare_output(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError):
        prepare_output(tmp_path)


def test_safe_names_are_safe_and_distinct(tmp_path: Path) -> None:
    ids = [
        "a/b.jpg",
        "a_b.jpg",
        "a/b_jpg",
        "A/B.jpg",
        "../../etc/passwd",
        "..",
        ".",
        "/",
        "a\nb",
        "a\0b",
        "a b",
        "ü",
        "û",
    ]
    ids += ["x" * 5000, "x" * 5001, "CON", "con", "\udcff", "planted-birds/7/test/12", "-rf", " ", "a:b*?<>|\\"]
    names = [safe_name(i) for i in ids]
    assert len({n.lower() for n in names}) == len(ids)
    for name in names:
        assert len(name) <= 80
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert name[0] not in "-_"
        (tmp_path / name).touch()
    assert safe_name("a/b.jpg") == safe_name("a/b.jpg")
    assert safe_name("birds/Cardinal.jpg").startswith("birds_Cardinal_jpg-")
    for wrong in ("", 3):
        with pytest.raises(InputError, match="image_id"):
            safe_name(wrong)
