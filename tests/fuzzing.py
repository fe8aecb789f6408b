"""What the fuzzers share: small valid files of every kind that is read, their readers, and ways to damage a file.

A reader takes a file's bytes and a folder that is its own. Whatever the bytes are, it comes back or raises one of
protomask's own errors; anything else is a defect. ``tests/test_fuzz_readers.py`` runs the readers under Hypothesis,
``benchmarks/fuzz_readers.py`` guided by coverage.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from protomask import checkpoint as checkpoints
from protomask.checkpoint import Description, PrototypeSource, load_checkpoint, read_description
from protomask.data import BoxList, ChestXray14, Cub
from protomask.data.images import read_image
from protomask.data.sample import Geometry
from protomask.errors import ProtomaskError
from protomask.foreign import Foreign, Layout, check_harmless, read_foreign
from protomask.inspection import as_text, inspect_checkpoint
from protomask.model import Family
from protomask.records import Localisation, Targets
from protomask.store import (
    ImageInfo,
    Plan,
    Score,
    Shard,
    ShardPlan,
    read_maps,
    read_regions,
    read_run,
    read_scores,
    read_shard,
    write_maps,
    write_regions,
    write_scores,
    write_shard,
)
from protomask.store.plans import plan_path, write_plan
from protomask.store.shards import read_failures
from protopnet_ext.foreign import read_classes

EXECUTED: Counter[str] = Counter()
"""How many cases have run in this process, by what was tested."""

Reader = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Format:
    """A kind of file: valid examples, what reads it, and pieces that a fuzzer should try to put in."""

    seeds: tuple[bytes, ...]
    read: Reader
    tokens: tuple[bytes, ...] = ()


@contextmanager
def only_our_errors(what: object = "") -> Iterator[None]:
    """Protomask's own errors pass, each with a message of our form; anything else becomes an AssertionError."""
    try:
        yield
    except ProtomaskError as error:
        if ": expected" not in str(error):
            raise AssertionError(f"no message of ours: {error}") from error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} {what}") from error


# Damage: edits (kind, where, content), where ``where`` is a fraction of the file in 1 / 65536.

Edit = tuple[str, int, bytes]
KINDS = ("flip", "set", "insert", "delete", "cut", "repeat", "copy", "number")


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """``content`` after the edits, one after the other; at most 256 KiB of it."""
    for kind, where, piece in edits:
        at = where * (len(content) + 1) >> 16
        content = _EDITS[kind](content, at, piece or b"\0")[: 1 << 18]
    return content


def _number(content: bytes, at: int, piece: bytes) -> bytes:
    """A little-endian number of 4 or 8 bytes in place, of the extremes that counts and offsets break at."""
    extremes = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40)
    value = extremes[piece[0] % len(extremes)]
    packed = struct.pack("<Q", value)[: 4 if value < 1 << 32 else 8]
    return content[:at] + packed + content[at + len(packed) :]


def _over(content: bytes, at: int, piece: bytes) -> bytes:
    return content[:at] + piece + content[at + len(piece) :]


def _copied(content: bytes, at: int, piece: bytes) -> bytes:
    start = int.from_bytes(piece[:2], "little") * (len(content) + 1) >> 16
    return content[:at] + content[start : start + 16 * (1 + piece[-1] % 16)] + content[at:]


_EDITS: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "flip": lambda c, at, p: c[:at] + bytes([c[at] ^ 1 << p[0] % 8]) + c[at + 1 :] if at < len(c) else c,
    "set": _over,
    "insert": lambda c, at, p: c[:at] + p + c[at:],
    "delete": lambda c, at, p: c[:at] + c[at + 1 + p[0] % 32 :],
    "cut": lambda c, at, p: c[:at],
    "repeat": lambda c, at, p: c[:at] + p * (1 + p[0] * 4) + c[at:],
    "copy": _copied,
    "number": _number,
}


# Images.


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 9, width: int = 12) -> np.ndarray:
    """[H, W, 3] uint8, smooth, each channel of its own."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 20 % 256, y * 25 % 256, (x + y) * 9 % 256], axis=2).astype(np.uint8)


def images() -> Format:
    """Pictures of every mode and file format that Pillow writes and a folder may hold."""
    colour = Image.fromarray(picture())
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [colour.transpose(Image.Transpose.ROTATE_180)]
    palette = colour.quantize(16)
    grey16 = Image.fromarray(picture()[..., 0].astype(np.uint16) * 200)
    clear = colour.convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    seeds = (
        _encoded(colour, "PNG"),
        _encoded(palette, "PNG", transparency=3),
        _encoded(grey16, "PNG"),
        _encoded(colour.convert("1"), "PNG"),
        _encoded(colour.convert("LA"), "PNG"),
        _encoded(colour, "PNG", save_all=True, append_images=frames),
        _encoded(colour, "JPEG"),
        _encoded(colour, "JPEG", exif=turned, progressive=True),
        _encoded(colour.convert("CMYK"), "JPEG"),
        _encoded(colour.convert("L"), "JPEG"),
        _encoded(colour, "MPO", save_all=True, append_images=frames),
        _encoded(palette, "GIF", save_all=True, append_images=[palette], transparency=1),
        _encoded(clear, "WEBP", save_all=True, append_images=frames),
        _encoded(colour, "WEBP", lossless=True),
        _encoded(colour, "TIFF"),
        _encoded(colour, "TIFF", compression="tiff_lzw"),
        _encoded(colour, "TIFF", compression="tiff_adobe_deflate"),
        _encoded(grey16, "TIFF"),
        _encoded(Image.fromarray(picture()[..., 0].astype(np.float32)), "TIFF"),
        _encoded(colour.convert("CMYK"), "TIFF"),
        _encoded(colour.convert("LAB"), "TIFF"),
        _encoded(colour, "BMP"),
        _encoded(palette, "BMP"),
        _encoded(colour, "PPM"),
        _encoded(grey16, "PPM"),
        _encoded(colour.convert("1"), "PPM"),
        _encoded(colour, "JPEG2000"),
    )

    def read(content: bytes, folder: Path) -> None:
        path = folder / "a.png"
        path.write_bytes(content)
        check_pixels(read_image(path))

    tokens = (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"IHDR", b"acTL", b"Exif\0\0", b"\xff\xe1", b"\xff\xda", b"II*\0", b"P5\n")
    return Format(seeds, read, tokens)


def check_pixels(pixels: np.ndarray) -> None:
    """What :func:`read_image` promises of what it gives back."""
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.size


def arrays() -> Format:
    """``.npy`` files."""

    def stored(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    grey = picture()[..., 0]
    values = [grey, picture(), grey.astype(np.uint16) * 16, grey.astype(np.float32) / 255, grey.astype(">i4")]
    values += [np.array([["a"]], dtype=object), np.zeros((2, 2), "M8[s]"), np.zeros((2, 2), "U3"), grey > 3]
    values += [np.full((3, 3), np.nan), np.asfortranarray(picture()), np.zeros((2, 2), [("a", "u1")])]

    def read(content: bytes, folder: Path) -> None:
        path = folder / "a.npy"
        path.write_bytes(content)
        check_pixels(read_image(path))

    tokens = (b"'fortran_order': True", b"(9223372036854775807, 2)", b"'|O'", b"'<f8'", b"-1", b"None", b"[" * 60)
    return Format(tuple(stored(v) for v in values), read, tokens)


# Checkpoints.


class Tiny(nn.Module):
    """A linear model with one tensor outside its state dict."""

    num_prototypes = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("count", torch.tensor(3))
        self.identity = torch.eye(4, 2)

    def activations(self, images: Tensor, prototypes: Tensor | None = None) -> Tensor:
        found = self.layer(images.mean((2, 3)))
        return found if prototypes is None else found.gather(1, prototypes[:, None])[:, 0]

    def extra_tensors(self) -> dict[str, Tensor]:
        return {"identity": self.identity}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.identity = tensors["identity"]


DESCRIPTION = Description(
    "tiny",
    "tiny",
    (4, 2, 1, 1),
    2,
    size=(16, 16),
    class_names=("Möwe", "b"),
    prototypes=(PrototypeSource("a/1.jpg", "prototypes/0.png", 1, 9.2, (1, 2, 30, 40)), *[PrototypeSource()] * 3),
    extra={"training": {"seed": 3, "size": [64, 96]}},
)


def _recognise(foreign: Foreign) -> Layout | None:
    return Layout("tiny", "Tiny") if "layer.weight" in foreign.tensors else None


def _adopt(foreign: Foreign, layout: Layout, stated: object) -> tuple[Description, dict[str, Tensor]]:
    return DESCRIPTION, {"identity": torch.eye(4, 2), **foreign.tensors}


FAMILY = Family(
    "tiny",
    lambda module: isinstance(module, Tiny),
    lambda module: module,  # type: ignore[arg-type, return-value]
    lambda description: Tiny(),
    lambda parser: None,
    lambda args: None,
    recognise=_recognise,
    adopt=_adopt,
)


@contextmanager
def tiny_family() -> Iterator[None]:
    """The family of :class:`Tiny` installed beside the others."""
    installed, others = checkpoints.families, checkpoints.families()
    checkpoints.families = lambda: {**others, "tiny": FAMILY}
    try:
        yield
    finally:
        checkpoints.families = installed


def pickles() -> Format:
    """State dicts and whole modules by ``torch.save`` in both its formats, and by ``pickle``."""
    module = Tiny()
    state = {"epoch": 3, "state_dict": module.state_dict(), "names": ["a", "b"], "array": np.arange(4.0)}
    seeds = []
    for value in (module.state_dict(), module, state):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            seeds.append(buffer.getvalue())
    seeds += [pickle.dumps(state, protocol=protocol) for protocol in (0, 2, 5)]

    def read(content: bytes, folder: Path) -> None:
        path = folder / "a.pth"
        path.write_bytes(content)
        with tiny_family():
            as_text(inspect_checkpoint(path))
            load_checkpoint(path)

    tokens = (
        b"cos\nsystem\n",
        b"(S'ls'\ntR.",
        b"\x80\x02",
        b"R",
        b"b",
        b"\x93",
        b"\x81",
        b"]" * 30,
        b"\x8b\xff\xff\xff\x7f",
    )
    return Format(tuple(seeds), read, (*tokens, b"h\x00" * 20, b"2" * 30, b"ctorch._utils\n_rebuild_tensor_v2\n", b"Q"))


def tensors() -> Format:
    """``model.safetensors`` of a folder of ours, and as a foreign file."""
    module = Tiny()
    whole = {k: v.clone() for k, v in {**module.state_dict(), **module.extra_tensors()}.items()}
    half = {k: v.half() if v.is_floating_point() else v for k, v in whole.items()}
    wrong = {**whole, "layer.bias": torch.tensor([0.0, torch.nan, 1, 2])}
    seeds = tuple(safetensors_bytes(t) for t in (whole, half, wrong, {}, {"a": torch.zeros(0, 3), "b": torch.ones(())}))

    def read(content: bytes, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(content)
        (folder / "model.json").write_bytes(description_bytes())
        as_text(inspect_checkpoint(path))
        problem = None
        for load in (lambda: check_harmless(read_foreign(path)), lambda: inspect_checkpoint(folder)):
            try:
                load()
            except ProtomaskError as error:
                problem = error
        with tiny_family():
            load_checkpoint(folder)
        if problem is not None:
            raise problem

    tokens = (b'"dtype":"F64"', b'"shape":[9223372036854775807,2]', b'"shape":[0,18446744073709551615]', b'"F8_E4M3"')
    return Format(
        seeds, read, (*tokens, b'"BF16"', b'"C64"', b'"F4"', b'"__metadata__":{"a":"b"}', b"[" * 200, b"-1", b"1e400")
    )


def description_bytes() -> bytes:
    """``model.json`` of :class:`Tiny`."""
    return json.dumps({"format_version": 1} | asdict(DESCRIPTION), indent=1).encode()


JSON_TOKENS = (
    *(b"[" * 2000, b'{"a":' * 2000, b"\xff", b"\xef\xbb\xbf", b'"../x"', b'"\\u0000"'),
    *(
        token.encode()
        for token in (
            "NaN",
            "-Infinity",
            "1e400",
            "null",
            "true",
            "{}",
            "[]",
            '"\\ud800"',
            '"<b>"',
            "9" * 5000,
            "-1",
            "0.5",
        )
    ),
)


def classes() -> Format:
    """Upstream's ``bb.npy``, whose last column says each prototype's class."""

    def stored(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    table = np.array([[0, 1, 2, 3, 4, k] for k in range(4)])
    values = [table, table.astype(float), table * np.nan, table[:, :5], table.astype("U3"), table.astype(object)]
    values += [table.astype("m8[s]"), table.astype(complex), table.astype(">i2"), np.zeros((4, 6), [("a", "u1")])]

    def read(content: bytes, folder: Path) -> None:
        (folder / "bb.npy").write_bytes(content)
        read_classes(folder / "bb.npy", 4, 4)

    return Format(tuple(stored(v) for v in values), read, (b"'|O'", b"'<f8'", b"(4, 6)", b"(9999999999, 6)", b"-1"))


def descriptions() -> Format:
    """``model.json`` of a folder of ours."""
    tensors_file = safetensors_bytes(
        {k: v.clone() for k, v in {**Tiny().state_dict(), "identity": torch.eye(4, 2)}.items()}
    )
    demo = Path(checkpoints.__file__).parents[1] / "protopnet_ext" / "demo" / "model.json"

    def read(content: bytes, folder: Path) -> None:
        (folder / "model.json").write_bytes(content)
        (folder / "model.safetensors").write_bytes(tensors_file)
        read_description(folder)
        with tiny_family():
            load_checkpoint(folder)

    return Format((description_bytes(), demo.read_bytes()), read, JSON_TOKENS)


# Tables: a file of many in a folder; the first byte of the input says which.

WORDS = (
    *(b"nan", b"inf", b"-1", b"1e309", b"1e308", b"1e-308", b"9" * 5000, b"0", b"1", b"1_0", b"x" * 5000),
    *(b"\r\n", b"\n", b"\t", b'"', b",", b" ", b"\x0c", b"\0", b"\xef\xbb\xbf", b"\xe9", b"\xd9\xa1", b"\xe2\x80\xa8"),
    *(b"..", b"/", b"../../a", b"<b>"),
)
CUB = {
    "images.txt": "7 009.Rock_Wren/a b.png\n12 030.Puffin/c.png\n3 030.Puffin/d.png\n",
    "image_class_labels.txt": "7 9\n12 30\n3 30\n",
    "classes.txt": "9 009.Rock_Wren\n30 030.Puffin\n31 031.Gull\n",
    "train_test_split.txt": "7 1\n12 0\n3 1\n",
    "bounding_boxes.txt": "7 1.0 2.0 4.0 5.0\n12 0.0 0.0 12.0 9.0\n3 -5.0 3.0 9.0 30.0\n",
    "parts/parts.txt": "1 back\n2 left eye\n",
    "parts/part_locs.txt": "7 1 10 5 1\n7 2 3 4.0 1\n12 1 0 0 0\n12 2 9 3 1\n3 1 4 39 1\n3 2 6 2 1\n",
}
CHEST = {
    "Data_Entry_2017_v2020.csv": "Image Index,Finding Labels,Follow-up #,Patient ID\n"
    "a.png,Mass|Nodule,0,1\nb.png,No Finding,0,2\nc.png,Effusion,0,3\n",
    "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,10.5,20,300,400,,,\n",
    "train_val_list.txt": "a.png\nb.png\n",
    "test_list.txt": "c.png\n",
}
BOXES = {
    "images.csv": "id,patientid,view,width,height\na,1,PA,12,9\nb,2,AP,12,9\nc,3,PA,12,9\n",
    "boxes.csv": "id,class,x,y,w,h\na,right_lung,1,1,4,7\na,left_lung,7,1,4,7\nb,right_lung,0.5,1,4.5,7\n"
    "b,left_lung,6,0,6,7\nc,right_lung,1,1,4,7\nc,left_lung,7,-1,40,7\n",
}


def _written(folder: Path, files: dict[str, str], pictures: Sequence[str], size: tuple[int, int]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    for name in pictures:
        path = folder / "images" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(*size)).save(path)


def _tables(
    files: dict[str, str], pictures: Sequence[str], size: tuple[int, int], read: Callable[[Path], Any]
) -> Format:
    names = list(files)
    seeds = tuple(bytes([k]) + text.encode() for k, text in enumerate(files.values()))

    def mutated(content: bytes, folder: Path) -> None:
        if not (folder / "images").is_dir():
            _written(folder, files, pictures, size)
        name = names[content[0] % len(names)] if content else names[0]
        (folder / name).write_bytes(content[1:])
        try:
            read(folder)
        finally:
            (folder / name).write_bytes(files[name].encode())

    return Format(seeds, mutated, WORDS)


def _all(data: Any) -> None:
    """Every sample is read, also behind one that cannot be."""
    problem = None
    for index in range(len(data)):
        try:
            sample = data[index]
            assert sample.box is None or np.isfinite(sample.box).all()
            data.without_part(index, 0)
        except ProtomaskError as error:
            problem = error
    if problem is not None:
        raise problem


def cub() -> Format:
    """The tables of CUB."""
    pictures = ("009.Rock_Wren/a b.png", "030.Puffin/c.png", "030.Puffin/d.png")
    return _tables(CUB, pictures, (9, 12), lambda f: [_all(Cub(f, "all", (6, 6), crop)) for crop in ("none", "box")])


def chest() -> Format:
    """The tables of ChestX-ray14."""
    return _tables(CHEST, ("a.png", "b.png", "c.png"), (9, 9), lambda f: _all(ChestXray14(f, "all", (6, 6))))


def boxes() -> Format:
    """The tables of a list of boxes, read for a label and for the task."""

    def read(folder: Path) -> None:
        problem = None
        for options in ({"label": "view"}, {"task": "side"}, {"task": "side", "crop": "box"}):
            try:
                _all(BoxList(folder, "all", (6, 6), **options))
            except ProtomaskError as error:
                problem = error
        if problem is not None:
            raise problem

    return _tables(BOXES, ("a.png", "b.png", "c.png"), (9, 12), read)


# Results.


def found() -> Localisation:
    """Two pairs, one of them located."""
    maps = torch.linspace(0, 1, 96).reshape(2, 6, 8)
    floats = torch.tensor([1.0, 2.0])
    return Localisation(
        "mdm",
        Targets(torch.tensor([0, 0]), torch.tensor([0, 1])),
        maps,
        torch.tensor([[1, 1, 4, 4]] * 2),
        torch.tensor([[2, 2]] * 2),
        floats,
        floats,
        floats,
        torch.tensor([True, False]),
        ("", "constant map"),
        mask_vectors={3: torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))},
        settings={"scales": [3, 5]},
    )


def results(folder: Path) -> dict[str, Format]:
    """``regions.json``, ``scores.json`` and maps; ``folder`` is where the valid ones are made."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = Geometry((12, 16), (0.0, 0.0, 16.0, 12.0), (6, 8))
    write_regions(folder / "regions.json", [(found(), [ImageInfo("a", geometry)])], ["one", "<b>two</b>"])
    write_scores(folder / "scores.json", {"m": {"mdm": {"part hit": Score(0.5, 0.4, 0.6, 3)}}})
    write_maps(folder / "maps.npz", found(), ["a"])

    def regions(content: bytes, at: Path) -> None:
        (at / "regions.json").write_bytes(content)
        for region in read_regions(at / "regions.json").regions[:3]:
            assert isinstance(region.mask, np.ndarray)

    def scores(content: bytes, at: Path) -> None:
        (at / "scores.json").write_bytes(content)
        read_scores(at / "scores.json")

    def maps(content: bytes, at: Path) -> None:
        (at / "maps.npz").write_bytes(content)
        read_maps(at / "maps.npz")

    def shard(content: bytes, at: Path) -> None:
        (at / "a.npz").write_bytes(content)
        read_failures(at / "a.npz")
        read_shard(at / "a.npz")

    def plan(content: bytes, at: Path) -> None:
        plan_path(at).parent.mkdir(exist_ok=True)
        plan_path(at).write_bytes(content)
        read_run(at).missing()

    rows = np.arange(2)
    write_shard(folder / "a.npz", Shard("k", found(), (ImageInfo("a", geometry),), rows, {"part hit": rows * 0.5}))
    write_plan(folder, Plan("locate", {"seed": 0}, ({"id": "a"},), (ShardPlan("k", "mdm", 0, 0, 1),)))
    kinds: dict[str, tuple[str, Reader, tuple[bytes, ...]]] = {
        "regions": ("regions.json", regions, JSON_TOKENS),
        "scores": ("scores.json", scores, JSON_TOKENS),
        "shard": ("a.npz", shard, (b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY")),
        "plan": ("shards/plan.json", plan, JSON_TOKENS),
        "maps": ("maps.npz", maps, (b"PK\x01\x02", b"PK\x05\x06", b"\x93NUMPY")),
    }
    return {name: Format(((folder / file).read_bytes(),), read, tokens) for name, (file, read, tokens) in kinds.items()}


def formats(folder: Path) -> dict[str, Format]:
    """Every kind of file that is read, by name."""
    made = {
        "image": images(),
        "array": arrays(),
        "pickle": pickles(),
        "tensors": tensors(),
        "description": descriptions(),
        "classes": classes(),
        "cub": cub(),
        "chest": chest(),
        "boxes": boxes(),
    }
    return made | results(folder)
