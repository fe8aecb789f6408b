"""What a stranger's folder may hold, case by case: read rightly, or refused by an error that says what is wrong."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from protomask import checkpoint as checkpoints
from protomask import loading, opening
from protomask.checkpoint import Description, load_checkpoint, read_description, save_checkpoint
from protomask.data import BoxList, Cub, Folder, list_images, make_sample
from protomask.data import images as reading
from protomask.data.images import read_image
from protomask.data.levels import to_bytes
from protomask.errors import CheckpointError, DataError, InputError, ModelError
from protomask.foreign import read_foreign
from protomask.inspection import inspect_checkpoint
from protomask.loading import load_model
from tests import fuzzing
from tests.fuzzing import DESCRIPTION, Tiny, picture, tiny_family


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and ends after a few pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


# Images.


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO", "TIFF"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, kind: str) -> None:
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    (tmp_path / "a").write_bytes(encoded(first, kind, save_all=True, append_images=[second], **options))
    with Image.open(tmp_path / "a") as image:
        assert image.n_frames == 2
    assert np.abs(read_image(tmp_path / "a").astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "a.png"), ("PNG", "a.jpg"), ("GIF", "a.tif"), ("BMP", "a.txt")])
def test_a_misnamed_file_is_read_by_its_content(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(Image.new("RGB", (8, 6), (255, 255, 255)), kind))
    assert read_image(tmp_path / name).shape == (6, 8, 3)
    assert read_image(tmp_path / name).min() >= 250


def test_cmyk_one_bit_grey_with_alpha_and_one_pixel(tmp_path: Path) -> None:
    red = Image.new("CMYK", (8, 6), (0, 255, 255, 0))
    (tmp_path / "a.jpg").write_bytes(encoded(red, "JPEG", quality=95))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 3
    (tmp_path / "b.png").write_bytes(encoded(Image.new("1", (8, 6), 1), "PNG"))
    assert (read_image(tmp_path / "b.png") == 255).all()
    (tmp_path / "c.png").write_bytes(encoded(Image.new("LA", (8, 6), (77, 0)), "PNG"))
    assert (read_image(tmp_path / "c.png") == 77).all()
    (tmp_path / "d.png").write_bytes(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))
    assert read_image(tmp_path / "d.png").tolist() == [[[1, 2, 3]]]
    assert make_sample("d", read_image(tmp_path / "d.png"), 0, (5, 4)).image.shape == (5, 4, 3)


def test_postscript_is_not_handed_to_its_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def never(*args: object, **options: object) -> None:
        raise SystemExit("the interpreter was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (8, 6)), "EPS"))
    with pytest.raises(SystemExit), Image.open(tmp_path / "a.png") as image:
        image.load()  # which is what Pillow does by itself
    with pytest.raises(DataError, match=r"a\.png: expected .* in none of the formats"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (9_000, 9_000)])
def test_a_size_that_the_file_cannot_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some training scripts do
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(png_header(*size))
    with pytest.raises(DataError, match=r"a\.png: expected at most .* declared"):
        read_image(tmp_path / "a.png")


def test_many_levels_take_little_more_memory_than_the_image() -> None:
    grey = np.tile(np.arange(4096, dtype=np.uint16), (2048, 1))
    tracemalloc.start()
    shown = to_bytes(grey, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < shown.nbytes + 8 * 6 * reading.to_bytes.__globals__["_AT_ONCE"]  # 8 bytes, six copies of a block
    assert np.array_equal(shown, np.round(grey / 4095 * 255).astype(np.uint8))


def test_arrays_of_time_spans_are_no_image(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 3), "m8[s]"))
    with pytest.raises(DataError, match=r"integers or floating-point numbers, got timedelta64"):
        read_image(tmp_path / "a.npy")


# What is no regular file.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_pipes_devices_and_loops_are_not_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError, match="got a pipe, a socket or a device"):
        read_image(path)  # opening it would wait for ever
    with pytest.raises(CheckpointError, match="got a pipe, a socket or a device"):
        read_foreign(path)
    data = Folder(tmp_path, "all", (4, 4))
    assert list(data.check()) == [0]
    path.unlink()
    path.symlink_to("/dev/zero")  # which has no end
    for read in (read_image, lambda p: opening.read_text(p, "a table")):
        with pytest.raises(DataError, match="got a pipe, a socket or a device"):
            read(path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match="expected a complete, readable image"):
        read_image(path)


@pytest.mark.parametrize("text", ["x" * 5000, "x/" * 3000, "a\0b"])
def test_names_that_no_file_system_takes(text: str) -> None:
    with pytest.raises(InputError, match="MODEL: expected"):
        load_model(text)
    for read in (read_image, list_images, Cub, Folder):
        with pytest.raises(DataError, match="expected"):
            read(text)
    for load in (load_checkpoint, inspect_checkpoint, read_foreign):
        with pytest.raises(CheckpointError, match="expected"):
            load(text)


# Names.

NAMES = ["<img src=x onerror=alert(1)>.png", "a\nb\r.png", "a..%2f..png", "-rf.png", "\x1b[31m.png", "é" * 60 + ".png"]


def hostile_folder(root: Path) -> Path:
    content = encoded(Image.fromarray(picture()), "PNG")
    for name in NAMES:
        (root / name).write_bytes(content)
    (root / os.fsdecode(b"\xff\xfe.png")).write_bytes(content)
    return root


@pytest.mark.skipif(os.name == "nt", reason="Windows does not take such names")
def test_names_of_files_can_always_be_written(tmp_path: Path) -> None:
    data = Folder(hostile_folder(tmp_path), "all", (4, 4))
    assert set(data.image_ids) == {*NAMES, r"\udcff\udcfe.png"}
    assert all(sample.image_id.encode("utf-8") for sample in data)
    splits = [Folder(tmp_path, split, (4, 4)).image_ids for split in ("train", "test")]
    assert sorted(splits[0] + splits[1]) == sorted(data.image_ids)


# Tables.


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for name, text in fuzzing.CUB.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for line in fuzzing.CUB["images.txt"].splitlines():
        path = tmp_path / "images" / line.split(" ", 1)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(path)
    return tmp_path


def test_the_tables_as_they_are(birds: Path) -> None:
    assert len(list(Cub(birds, "all", (6, 6)))) == 3


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.txt", "7 009", "9" * 5000 + " 009", r"images\.txt, line 1: expected image_id .* \(5000 characters\)"),
        ("images.txt", "030.Puffin/c.png", "..\\c.png", r"line 2: expected a path below images/"),
        ("images.txt", "030.Puffin/c.png", "C:\\c.png", r"line 2: expected a path below images/"),
        ("images.txt", "030.Puffin/c.png", "/etc/passwd", r"line 2: expected a path below images/"),
        ("images.txt", "030.Puffin/c.png", ".", r"line 2: expected a path below images/"),
        ("images.txt", "Puffin/c", "Puf\0fin/c", r"images\.txt, line 2: .* got a NUL character"),
        ("bounding_boxes.txt", "1.0", "1_0", r"line 1: expected x to be a finite number, got '1_0'"),
        ("bounding_boxes.txt", "1.0", "\u0661", r"line 1: expected x to be a finite number"),
        ("bounding_boxes.txt", "4.0", "1e308", r"line 1: expected a box within 1000000000 pixels"),
        ("bounding_boxes.txt", "4.0", "1e-300", r"line 1: expected a width and height above 0"),
        ("bounding_boxes.txt", "4.0", "nan", r"line 1: expected width to be a finite number, got 'nan'"),
        ("parts/part_locs.txt", "7 2 3 4.0 1", "7 2 3 4.0 1 " + "x" * 999, r"line 2: expected 5 columns"),
    ],
)
def test_tables_that_lie(birds: Path, name: str, old: str, new: str, message: str) -> None:
    (birds / name).write_text((birds / name).read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        Cub(birds, "all")
    assert len(str(caught.value)) < 600


def test_a_file_name_too_long_is_that_images_error(birds: Path) -> None:
    table = birds / "images.txt"
    (birds / "segmentations").mkdir()
    table.write_text(table.read_text().replace("009.Rock_Wren/a b.png", "x" * 300 + "/" + "y" * 300))
    data = Cub(birds, "all", (6, 6))
    with pytest.raises(DataError, match="expected a complete, readable image"):
        data[data.image_ids.index("x" * 300 + "/" + "y" * 300)]
    assert data[data.image_ids.index("030.Puffin/c.png")].label == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_are_named(birds: Path, encoding: str) -> None:
    (birds / "classes.txt").write_bytes("9 009.Möwe\n30 030.Puffin\n".encode(encoding))
    with pytest.raises(DataError, match=r"classes\.txt.*UTF-8"):
        Cub(birds, "all")


def test_line_ends_and_marks_make_no_difference(birds: Path) -> None:
    plain = [s.box.tolist() for s in Cub(birds, "all", (6, 6)) if s.box is not None]
    for end in ("\r\n", "\r"):
        for name, text in fuzzing.CUB.items():
            (birds / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())
        assert [s.box.tolist() for s in Cub(birds, "all", (6, 6)) if s.box is not None] == plain


def test_a_table_too_large_is_not_read(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MOST_TEXT", 30)
    with pytest.raises(DataError, match="of at most 30 bytes"):
        Cub(birds, "all")


@pytest.mark.parametrize(
    "box", [(3, 3, 3 + 1e-9, 5), (-5, -5, 1e-20, 1e-20), (0, 0, 1e-5, 1e-5), (11.9999999, 0, 50, 9)]
)
def test_thin_boxes_stay_boxes(box: tuple[float, ...]) -> None:
    sample = make_sample("a", picture(), 0, (6, 6), box=np.array(box, dtype=float))
    assert sample.box is not None
    assert sample.box[0] < sample.box[2]
    assert sample.box[1] < sample.box[3]
    assert (sample.box >= 0).all()
    assert (sample.box <= 6).all()


def test_lists_of_boxes_beyond_all_bounds(tmp_path: Path) -> None:
    for name, text in fuzzing.BOXES.items():
        (tmp_path / name).write_text(text.replace("a,right_lung,1,1,4,7", "a,right_lung,1,1,1.7e308,7"))
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.fromarray(picture()).save(tmp_path / "images" / f"{name}.png")
    with pytest.raises(DataError, match=r"boxes\.csv, line 2: expected a box within"):
        BoxList(tmp_path, "all", (6, 6), task="side")


# Checkpoints.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", Tiny(), DESCRIPTION)


def edited(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_stored_model_is_read(folder: Path) -> None:
    with tiny_family():
        assert load_checkpoint(folder).description == DESCRIPTION


def test_nan_weights_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layer.weight"][1, 2] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with tiny_family(), pytest.raises(CheckpointError, match=r"layer\.weight: expected finite values, got 1 NaN"):
        load_checkpoint(folder)


def test_nan_weights_of_a_factory_are_named() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    loading.check_finite(module)
    module[1].running_var[0] = torch.inf
    with pytest.raises(ModelError, match=r"model: 1\.running_var: expected finite values, got 1 NaN or infinite of 2"):
        loading.check_finite(module)


class Wide(Tiny):
    """A model whose layers are as large as its description says: 4 TB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10**6, 10**6)


def test_layers_are_compared_before_memory_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_family():
        wide = replace(fuzzing.FAMILY, build=lambda description: Wide())
        monkeypatch.setattr(checkpoints, "families", lambda: {"tiny": wide})
        with pytest.raises(CheckpointError, match=r"layer\.(weight|bias): expected shape"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    ("declared", "offsets"),
    [([2**31, 2**31], [0, 16]), ([2**62, 4], [0, 0]), ([4], [0, 2**60]), ([0, 2**64 - 1], [0, 0]), ([-1], [0, 4])],
)
def test_tensors_that_the_file_cannot_hold(folder: Path, declared: list[int], offsets: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": declared, "data_offsets": offsets}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with tiny_family(), pytest.raises(CheckpointError, match=r"model\.(safetensors|json)"):
        load_checkpoint(folder)
    assert read_foreign(folder / "model.safetensors").problem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [10**5, 10**5]}, "size: expected at most 67108864 pixels, got 100000 x 100000"),
        ({"class_names": ["a", "\ud800"]}, "class_names: expected a string without half a surrogate pair"),
        ({"epsilon": float("nan")}, "epsilon: expected a number"),
        ({"epsilon": 10**400}, "epsilon: expected a number"),
        ({"mean": [float("inf")] * 3}, "mean: expected a number"),
        ({"prototype_shape": [4, 2, 1, True]}, "prototype_shape: expected an integer"),
        ({"prototypes": {"file": "x"}}, "prototypes: expected a list"),
        ({"prototypes": [{"file": "../../x.png"}] * 4}, "a path inside the checkpoint's folder"),
        ({"extra": [1]}, "extra: expected a mapping"),
    ],
)
def test_descriptions_that_lie(folder: Path, changes: dict[str, object], message: str) -> None:
    edited(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_description(folder)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "9" * 5000, '{"format_version": 1, "size": ' + "9" * 5000]
)
def test_json_that_python_cannot_take(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json: expected a JSON"):
        read_description(folder)


def test_links_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "model.json").rename(tmp_path / "elsewhere.json")
    (folder / "model.json").symlink_to(moved)  # a link to a file is as good as a file
    assert read_description(folder) == DESCRIPTION
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"model\.json: expected the checkpoint's model\.json"):
        read_description(folder)


def test_a_description_in_memory_is_checked_too() -> None:
    with pytest.raises(InputError, match="size: expected at most"):
        Description("f", "b", (1, 1, 1, 1), 1, size=(1 << 14, 1 << 14))
