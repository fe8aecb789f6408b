"""Maps that another program made: found by name, resized, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import protomask
from protomask import opening
from protomask.errors import DataError, InputError
from protomask.files import safe_name
from protomask.localisers import LOCALISERS, Stored, make_localiser, register_stored
from tests.toys import BlockModel, ConvModel, scenes

IDS = ("one.jpg", "birds/two.jpg")


def grid(seed: int, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.random.default_rng(seed).random(size)


def shown(values: np.ndarray) -> torch.Tensor:
    fine = F.interpolate(torch.from_numpy(values)[None, None].double(), size=(32, 32), mode="bilinear")[0, 0]
    return ((fine - fine.min()) / (fine.max() - fine.min())).float()


def test_maps_are_found_by_name_and_resized(tmp_path: Path) -> None:
    np.save(tmp_path / "one.jpg--2.npy", grid(0))
    np.save(tmp_path / f"{safe_name('birds/two.jpg')}--1.npy", grid(1, (32, 32)).astype(np.float16))
    pixels = (grid(2) * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"{safe_name('one.jpg')}--0.png"), pixels)
    np.savez(tmp_path / f"{safe_name('birds/two.jpg')}.npz", **{"3": grid(3, (64, 40)).astype(np.float32)})
    pairs = [(0, 2), (1, 1), (0, 0), (1, 3)]
    found = protomask.locate(ConvModel(), scenes(2), pairs, Stored(str(tmp_path)), image_ids=IDS)
    stored = [grid(0), grid(1, (32, 32)).astype(np.float16), pixels, grid(3, (64, 40)).astype(np.float32)]
    for row, values in enumerate(stored):
        assert float((found.maps[row] - shown(values.astype(np.float64))).abs().max()) < 1e-6
    assert found.method == tmp_path.name
    assert found.settings == {"folder": str(tmp_path)}


def test_a_grey_png_saved_as_colour_is_taken(tmp_path: Path) -> None:
    pixels = (grid(2) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "one.jpg--0.png"), np.stack([pixels] * 3, 2))
    assert (Stored(str(tmp_path)).read("one.jpg", 0) == pixels).all()


def write(folder: Path, values: Any) -> None:
    np.save(folder / "one.jpg--0.npy", values)


BROKEN = [
    (np.array([[0.0, np.nan]]), r"one\.jpg--0\.npy: expected finite values, got 1 NaN"),
    (np.array([[0.0, np.inf]]), "expected finite values, got 1 NaN or infinite"),
    (np.array([[0.0, -0.5]]), "expected values of at least 0, got a lowest of -0.5"),
    (np.zeros((2, 2, 3)), r"expected a map \[h, w\], got \[2, 2, 3\]"),
    (np.zeros((0, 3)), r"expected a map \[h, w\], got \[0, 3\]"),
    (np.zeros((2, 2), complex), "expected real numbers, got complex128"),
    (np.array([["a"]]), "expected real numbers, got <U1"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN)
def test_what_is_no_map_is_refused_by_name(tmp_path: Path, values: np.ndarray, message: str) -> None:
    write(tmp_path, values)
    with pytest.raises(DataError, match=message):
        protomask.locate(ConvModel(), scenes(1), [(0, 0)], Stored(str(tmp_path)), image_ids=["one.jpg"])


@pytest.mark.parametrize("name", ["one.jpg--0.npy", "one.jpg--0.png", "one.jpg.npz"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    for content in (b"", b"nonsense", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            Stored(str(tmp_path)).read("one.jpg", 0)


def test_no_code_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "one.jpg--0.npy", np.array([[print]]), allow_pickle=True)
    with pytest.raises(DataError, match=r"one\.jpg--0\.npy"):
        Stored(str(tmp_path)).read("one.jpg", 0)


def test_missing_maps_say_what_was_looked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.jpg.npz", **{"1": grid(0)})
    with pytest.raises(DataError, match=r"one\.jpg\.npz: expected an array named 0, got 1"):
        Stored(str(tmp_path)).read("one.jpg", 0)
    with pytest.raises(DataError, match=r"map of image 'x\.jpg', prototype 4: expected x\.jpg--4\.npy"):
        Stored(str(tmp_path)).read("x.jpg", 4)


@pytest.mark.parametrize("image_id", ["../secret", "/secret", "a/../../secret", "..", ".hidden"])
def test_an_id_never_leads_out_of_the_folder(tmp_path: Path, image_id: str) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(tmp_path / "secret--0.npy", grid(0))
    np.save(folder / ".hidden--0.npy", grid(0))
    with pytest.raises(DataError, match="expected " + safe_name(image_id)):
        Stored(str(folder)).read(image_id, 0)


def test_names_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, grid(0))
    method = Stored(str(tmp_path))
    for ids, message in ((None, "image_ids: expected a name for each image"), (["a", "b"], "one name for each of the")):
        with pytest.raises(InputError, match=message):
            protomask.locate(ConvModel(), scenes(1), [(0, 0)], method, image_ids=ids)
    with pytest.raises(InputError, match="one name for each of the 1 images, got 'a'"):
        protomask.locate(ConvModel(), scenes(1), [(0, 0)], method, image_ids="a")
    with pytest.raises(InputError, match="maps: expected a folder of maps"):
        Stored(str(tmp_path / "nowhere"))


def test_a_folder_is_a_method_under_its_own_name(tmp_path: Path) -> None:
    folders = [tmp_path / "peers", tmp_path / "deeper" / "peers", tmp_path / "mdm", tmp_path / "third" / "peers"]
    for folder in folders:
        folder.mkdir(parents=True)
        write(folder, grid(0))
    try:
        names = [register_stored(folder) for folder in folders[:3]]
        assert names == ["peers", "maps-peers", "maps-mdm"]
        assert register_stored(folders[0]) == "peers"
        with pytest.raises(InputError, match="folders of different names"):
            register_stored(folders[3])
        found = protomask.locate(ConvModel(), scenes(1), [(0, 0)], "peers", image_ids=["one.jpg"])
        assert found.method == "peers"
        assert make_localiser("peers", found.settings) == Stored(str(folders[0]))
        with pytest.raises(InputError, match="settings of peers: expected one of folder, got sigma"):
            protomask.locate(ConvModel(), scenes(1), [(0, 0)], "peers", image_ids=["one.jpg"], sigma=3)
    finally:
        for name in ("peers", "maps-peers", "maps-mdm"):
            LOCALISERS.pop(name, None)


def test_a_floor_leaves_rows_out_and_names_stay_right(tmp_path: Path) -> None:
    """Only pairs with something to locate reach a method; their images keep their names."""
    model = BlockModel([(0, 0, 8, 8)])
    images = torch.zeros(3, 3, 32, 32)
    images[2, :, :8, :8] = 1
    np.save(tmp_path / "c--0.npy", grid(7))
    found = protomask.locate(model, images, "all", Stored(str(tmp_path)), image_ids=["a", "b", "c"])
    assert found.located.tolist() == [False, False, True]
    assert float((found.maps[2] - shown(grid(7))).abs().max()) < 1e-6


def test_maps_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The object's box as a map, at half the resolution: all of its top pixels are in the box."""
    from protomask.cli import main
    from protomask.data import Planted
    from protomask.store import read_scores

    folder = tmp_path / "peers"
    folder.mkdir()
    for sample in Planted("birds", "test", count=6):
        maps = np.zeros((48, 48))
        assert sample.box is not None
        x0, y0, x1, y1 = (int(v) for v in sample.box / 2)
        maps[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 1
        np.savez(folder / f"{safe_name(sample.image_id)}.npz", **{str(p): maps for p in range(200)})
    arguments = ["evaluate", "demo:xprotonet", "--data", "planted", "--scenes", "6", "--pairs", "2", "--quiet"]
    arguments += ["--methods", "random", "--metrics", "top5-in-box", "--panels", "0"]
    arguments += ["--out", str(tmp_path / "out"), "--maps"]
    assert main([*arguments, str(tmp_path / "nowhere")]) == 2
    assert "maps: expected a folder of maps" in capsys.readouterr().err
    try:
        assert main([*arguments, str(folder)]) == 0
        (scores,) = read_scores(tmp_path / "out" / "scores.json").values()
        assert set(scores) == {"random", "peers"}
        assert scores["peers"]["top5-in-box"].mean == 1
        assert scores["random"]["top5-in-box"].mean < 1
    finally:
        LOCALISERS.pop("peers", None)


def test_a_map_that_unpacks_to_far_more_than_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MOST_UNPACKED", 1 << 20)
    np.savez_compressed(tmp_path / "one.jpg.npz", **{"0": grid(0), "1": np.zeros((4096, 4096), np.uint8)})  # type: ignore[arg-type]
    assert (Stored(str(tmp_path)).read("one.jpg", 0) == grid(0)).all()
    with pytest.raises(DataError, match=r"one\.jpg\.npz: expected .* bytes that unpack to 16777344"):
        Stored(str(tmp_path)).read("one.jpg", 1)
