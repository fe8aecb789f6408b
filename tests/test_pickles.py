"""Pickles as data: the same tensors and values as torch and pickle give, and nothing runs, whatever a file asks for."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import decimal
import fractions
import functools
import io
import itertools
import logging
import math
import operator
import os
import pickle
import random
import re
import struct
import sys
import time
import types
import uuid
import zipfile
import zoneinfo
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from protomask.errors import CheckpointError, HostileError
from protomask.foreign import check_harmless, read_foreign, verdict
from protomask.pickles import Global, Inert, read_pickled
from protomask.pickles.reading import MAGIC
from tests.upstream import FORMS, write

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS: dict[str, Tensor] = {
    "plain": BASE,
    "transposed": BASE.t(),
    "strided": BASE[1:, ::2],
    "offset": BASE[2],
    "expanded": torch.ones(1).expand(5),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "empty part": BASE[4:],
    "half": BASE.half(),
    "bfloat16": BASE.bfloat16(),
    "double": BASE.double(),
    "complex": torch.complex(BASE, -BASE),
    "bool": BASE > 5,
    "bytes": BASE.to(torch.uint8),
    "ints": BASE.to(torch.int16),
    "unsigned": BASE.to(torch.uint16),
    "parameter": nn.Parameter(BASE * 2),
    "not trained": nn.Parameter(BASE * 3, requires_grad=False),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.same = self.conv
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("left", torch.arange(4), persistent=False)
        self.outside = torch.eye(3)
        self.size = 224


def same(came: Tensor, wanted: Tensor) -> None:
    assert (came.dtype, came.shape, came.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    assert torch.equal(came, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_tensors(form: str, tmp_path: Path) -> None:
    read = read_pickled(write(form, TENSORS, tmp_path / "x"))
    assert read.form == form
    assert list(read.value) == list(TENSORS)
    for name, tensor in TENSORS.items():
        same(read.value[name], tensor)
    bare = read_pickled(tmp_path / "x", data=False).value
    for name, tensor in TENSORS.items():
        assert bare[name].device.type == "meta"
        assert (bare[name].dtype, bare[name].shape) == (tensor.dtype, tensor.shape)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_shared_storage_stays_shared(form: str, tmp_path: Path) -> None:
    value = read_pickled(write(form, TENSORS, tmp_path / "x")).value
    value["plain"][2, 0] = 77
    assert value["transposed"][0, 2] == value["strided"][1, 0] == value["offset"][0] == 77
    assert value["half"][2, 0] == 12  # another storage


@pytest.mark.parametrize("form", FORMS)
def test_modules(form: str, tmp_path: Path) -> None:
    net = Net()
    path = write(form, {"net": nn.DataParallel(net), "epoch": 3}, tmp_path / "x")
    outer = read_pickled(path).value["net"]
    assert isinstance(outer, Inert)
    assert outer.origin == Global("torch.nn.parallel.data_parallel", "DataParallel")
    inner = outer.attributes["_modules"]["module"]
    assert str(inner.origin) == "tests.test_pickles.Net"
    assert not inner.called
    assert inner.attributes["size"] == 224
    same(inner.attributes["outside"], net.outside)
    foreign = read_foreign(path)
    assert (foreign.kind, foreign.keys, foreign.prefix) == ("module", ("net",), "module.")
    assert foreign.tensors.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        same(foreign.tensors[name], tensor)
    same(foreign.attributes["left"], net.left)


def test_half_modules(tmp_path: Path) -> None:
    net = Net().bfloat16()
    foreign = read_foreign(write("zip", net, tmp_path / "x"))
    for name, tensor in net.state_dict().items():
        same(foreign.tensors[name], tensor)


def test_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        write("zip", TENSORS, tmp_path / "x")
    finally:
        torch.serialization.set_crc32_options(before)
    same(read_pickled(tmp_path / "x").value["strided"], TENSORS["strided"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9), inner, max_size=4)
        | st.frozensets(st.integers(1 - 2**61, 2**61 - 1), max_size=3)
        | st.sets(st.text(), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_values(tmp_path: Path, value: object, protocol: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_pickled(path).value == value


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = [np.arange(6).reshape(2, 3).astype(d) for d in ("<f4", ">f8", "i8", "u1", "bool", "<U3", "S2")]
    arrays += [np.asfortranarray(arrays[0]), np.zeros((0, 3)), np.array(4.5)]
    arrays += [np.array([{}, None])]  # objects: read, and left as a stand-in
    value = [
        OrderedDict(a=1, b=2),
        Counter("aab"),
        defaultdict(int, a=3),
        np.float32(1.5),
        np.int64(-3),
        bytearray(b"x"),
    ]
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps([value, arrays, torch.Size([2, 3]), torch.float16], protocol))
    plain, came, size, dtype = read_pickled(path).value
    assert plain == value
    assert list(plain[0]) == ["a", "b"]
    assert (size, dtype) == ((2, 3), torch.float16)
    assert came.pop().array is None
    for array, wanted in zip(came, arrays[:-1], strict=True):
        assert array.array.dtype == wanted.dtype
        assert np.array_equal(array.array, wanted)


def test_cycles(tmp_path: Path) -> None:
    value: list[Any] = [1]
    value.append(value)
    (tmp_path / "x").write_bytes(pickle.dumps(value))
    came = read_pickled(tmp_path / "x").value
    assert came[1] is came


# Hostile pickles. Each would create the file `marker`; that it really would is tested too.


class Reduces:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    def __getstate__(self) -> dict[str, str]:
        return {"path": MARKER}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).write_text("ran")


class MakesNew:
    def __new__(cls, path: str = "") -> MakesNew:
        if path:
            Path(path).write_text("ran")
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[str]:
        return (MARKER,)


class Patched:
    """A class that a hostile pickle hands a ``__setstate__``."""


class Appends(list):  # type: ignore[type-arg]
    def extend(self, values: Any) -> None:
        Path(MARKER).write_text("ran")

    append = extend  # type: ignore[assignment]


MARKER = "marker"  # relative: the tests run in a folder of their own


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


TOUCH = f"touch {MARKER}"
EVAL = f"__import__('pathlib').Path({MARKER!r}).write_text('ran')"
HOSTILE: dict[str, bytes] = {
    "reduce os.system": pickle.dumps(Reduces(os.system, TOUCH)),
    "reduce os.system, protocol 0": pickle.dumps(Reduces(os.system, TOUCH), 0),
    "builtins.eval": pickle.dumps({"state_dict": Reduces(eval, EVAL)}),
    "builtins.exec, protocol 2": pickle.dumps(Reduces(exec, EVAL), 2),
    "setstate": pickle.dumps(SetsState()),
    "new": pickle.dumps(MakesNew(), 4),
    "append": pickle.dumps(Appends([1])),
    "nested": pickle.dumps({"a": [({"b": Reduces(os.system, TOUCH)},)]}),
    "global": b"cos\nsystem\n(" + text(TOUCH) + b"tR.",
    "dotted global": b"\x80\x04cos\npath.os.system\n(" + text(TOUCH) + b"tR.",
    "stack global": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93(" + text(TOUCH) + b"tR.",
    "inst": b"(" + text(TOUCH) + b"ios\nsystem\n.",
    "object": b"(cos\nsystem\n" + text(TOUCH) + b"o.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
    + text("os")
    + b"tR"
    + text("system")
    + b"tR("
    + text(TOUCH)
    + b"tR.",
    "memo": b"cos\nsystem\nq\x000h\x00(" + text(TOUCH) + b"tR.",
    "extension": b"\x80\x02\x82\xf0(" + text(TOUCH) + b"tR.",
    "pickle in a pickle": pickle.dumps(Reduces(pickle.loads, pickle.dumps(Reduces(os.system, TOUCH)))),
    "torch.load in a pickle": pickle.dumps(
        Reduces(torch.storage._load_from_bytes, b"cos\nsystem\n(" + text(TOUCH) + b"tR.")
    ),
    "numpy": pickle.dumps(Reduces(__import__("numpy.testing").testing._private.utils.runstring, EVAL, {})),
    "a function that a module imports": b"\x80\x04"
    + text("uuid")
    + text("os.system")
    + b"\x93("
    + text(TOUCH)
    + b"tR.",
    "a function of a harmless module": b"cuuid\n_get_command_stdout\n(" + text("touch") + text(MARKER) + b"tR.",
    "a function's globals": b"\x80\x04"
    + (text("torch._utils") + text("_rebuild_tensor.__builtins__.get") + b"\x93(" + text("eval") + b"tR")
    + (b"(" + text(EVAL) + b"tR."),
    "a base's constructor": b"\x80\x04ccopyreg\n_reconstructor\n(csubprocess\nPopen\ncsubprocess\nPopen\n("
    + (text("touch") + text(MARKER) + b"ltR."),
    "a generator's constructor": pickle.dumps(Reduces(np.random._pickle.__randomstate_ctor, TOUCH, os.system)),
    "a tensor's constructor": pickle.dumps(
        Reduces(torch._tensor._rebuild_from_type, os.system, torch.Tensor, (TOUCH,), {})
    ),
    "an iterator that calls": b"\x80\x02ccollections\ndeque\n(cbuiltins\nmap\n(cos\nsystem\n("
    + (text(TOUCH) + b"lt\x81tR."),
    "state for a class": b"\x80\x04ctests.test_pickles\nPatched\n(N}("
    + (text("__setstate__") + b"cos\nsystem\nutb0ctests.test_pickles\nPatched\n)\x81" + text(TOUCH) + b"b."),
    "keyword class": b"\x80\x04csubprocess\nPopen\n((" + text("touch") + text(MARKER) + b"ltR.",
}
SILENT = {"setstate", "new", "append"}  # classes that are ours here: nothing of the standard library is called


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", 0xF0)
    yield tmp_path / MARKER
    copyreg.remove_extension("os", "system", 0xF0)
    copyreg._extension_cache.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_hostile_pickles_bite(name: str, marker: Path) -> None:
    try:
        came = pickle.loads(HOSTILE[name])
        if hasattr(came, "wait"):
            came.wait()
    except Exception:
        pass  # after the deed
    assert marker.exists()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_hostile_pickles_are_read_and_refused_and_do_nothing(
    name: str, form: str, marker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.pth"
    content = HOSTILE[name]
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
            archive.writestr("x/version", "3\n")
    elif form == "legacy":
        parts = [pickle.dumps(v, 2) for v in (MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*parts, content, pickle.dumps([], 2)]))
    else:
        path.write_bytes(content)
    foreign = read_foreign(path)
    with pytest.raises(CheckpointError) as caught:
        check_harmless(foreign)
    assert str(path) in str(caught.value)
    if name not in SILENT | {"extension", "torch.load in a pickle"}:
        assert "would call" in str(caught.value)
    assert not marker.exists()


HOSTILE_MODULES = {
    "attribute": lambda net: setattr(net, "extra", Reduces(os.system, TOUCH)),
    "buffer": lambda net: net._buffers.update(bad=Reduces(os.system, TOUCH)),
    "hook": lambda net: net._forward_hooks.update({0: Reduces(eval, EVAL)}),
}


@pytest.mark.parametrize("name", HOSTILE_MODULES)
@pytest.mark.parametrize("form", FORMS)
def test_a_call_hidden_in_a_module_is_refused(name: str, form: str, marker: Path, tmp_path: Path) -> None:
    net = Net()
    HOSTILE_MODULES[name](net)
    foreign = read_foreign(write(form, net, tmp_path / "x"))
    with pytest.raises(CheckpointError, match=r"would call (posix|nt|builtins)\.(system|eval)"):
        check_harmless(foreign)
    assert not marker.exists()


def hidden(content: bytes) -> bytes:
    """A legacy file by ``torch.save`` with a call before the magic number of its first pickle."""
    call = b"\x80\x04cos\nsystem\n(" + text(TOUCH) + b"tR0"
    assert content.startswith(b"\x80\x02")
    return call + content[2:]


class FromBytes:
    """A storage as plain pickles hold it, in bytes that ``torch.save`` wrote; these begin with a call."""

    def __reduce__(self) -> Any:
        buffer = io.BytesIO()
        torch.save(torch.arange(3.0).storage(), buffer, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (hidden(buffer.getvalue()),)


@pytest.mark.parametrize("where", ["before the magic number", "in a storage's bytes"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_call_hidden_in_another_pickle_is_refused(where: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if where == "before the magic number":
        write("legacy", {"weight": torch.zeros(2)}, path)
        path.write_bytes(hidden(path.read_bytes()))
    else:
        rebuilt = Reduces(torch._utils._rebuild_tensor_v2, FromBytes(), 0, (3,), (1,), False, {})
        path.write_bytes(pickle.dumps({"weight": rebuilt}))
    foreign = read_foreign(path)
    assert foreign.tensors.keys() == {"weight"}
    with pytest.raises(HostileError, match=r"would call os\.system"):
        check_harmless(foreign)
    assert not marker.exists()
    torch.load(path, weights_only=False) if where == "before the magic number" else pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize(
    "name", ["enum bltns.eval", "pathlib os.system", "types FunctionType", "collections _sys.exit"]
)
def test_what_a_harmless_module_holds_is_not_harmless(name: str) -> None:
    assert verdict(Global(*name.split()), frozenset({"called"})) == "refused"


def test_a_base_that_would_be_called_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(HOSTILE["a base's constructor"])
    assert "called" in read_pickled(tmp_path / "x").uses[Global("subprocess", "Popen")]


def test_state_of_what_getattr_gives_is_refused() -> None:
    """A bound method is told by getattr, and called by nobody; state for it would be state for a class or a module."""
    assert verdict(Global("builtins", "getattr"), frozenset({"called"})) == "data"
    for how in ("chained", "set"):
        assert verdict(Global("builtins", "getattr"), frozenset({"called", how})) == "refused"


def generator(kind: Any) -> np.random.Generator:
    return np.random.Generator(kind(3))


BESIDE: dict[str, Any] = {
    "range": range(0, 30, 10),
    "path": Path("a/b"),
    "namespace": argparse.Namespace(out=Path("x"), device=torch.device("cuda:0"), steps=slice(3)),
    "dates": [datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(1), time.localtime()],
    "zone": datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1j, uuid.UUID(int=3)],
    "numpy's old generator": np.random.RandomState(0),
    "numpy's generator": np.random.default_rng(0),
    "numpy's generators": [generator(g) for g in (np.random.MT19937, np.random.Philox, np.random.SFC64)],
    "Python's generator": random.Random(1),
    "counter": itertools.count(3),
    "getters": [operator.itemgetter("a"), operator.attrgetter("a.b")],
    "containers": [collections.deque([1], maxlen=5), collections.ChainMap({})],
    "masked array": np.ma.array([1, 2], mask=[0, 1]),
    "sparse": torch.eye(2).to_sparse(),
    "transforms": torchvision.transforms.Resize(3),
    "others": [re.compile("a"), functools.partial(torch.relu), types.SimpleNamespace(a=1), logging.getLogger("a")],
    "bound": nn.Linear(2, 2).forward,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BESIDE)
def test_what_training_leaves_beside_the_weights_is_harmless(name: str, form: str, tmp_path: Path) -> None:
    foreign = read_foreign(write(form, {"state_dict": {"a": BASE}, "beside": BESIDE[name]}, tmp_path / "x"))
    check_harmless(foreign)
    same(foreign.tensors["a"], BASE)


@pytest.mark.parametrize("protocol", range(6))
def test_paths_of_any_python_are_harmless(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"state_dict": TENSORS["plain"].numpy(), "beside": Path("a/b")}, protocol)
    old, new = (b"pathlib", b"pathlib._local") if protocol < 4 else (b"\x07pathlib", b"\x0epathlib._local")
    if protocol >= 4:
        content = content[:2] + content[11:]  # without the frame, whose length would change
    (tmp_path / "x").write_bytes(content.replace(old, new))
    uses = read_pickled(tmp_path / "x").uses
    path = next(name for name in uses if name.name.endswith("Path"))
    assert path.module == "pathlib._local"
    assert verdict(path, uses[path]) == "class"


def test_python_2_names_are_of_protocols_up_to_2(tmp_path: Path) -> None:
    body = b"c__builtin__\nxrange\n(K\x03tR."
    for protocol, wanted in ((2, Global("builtins", "range")), (3, Global("__builtin__", "xrange"))):
        (tmp_path / "x").write_bytes(b"\x80" + bytes([protocol]) + body)
        assert list(read_pickled(tmp_path / "x").uses) == [wanted]


def test_keys_of_one_hash_are_refused(tmp_path: Path) -> None:
    keys = [k * sys.hash_info.modulus for k in range(2, 5)]
    assert len({hash(key) for key in keys}) == 1
    (tmp_path / "x").write_bytes(pickle.dumps(dict.fromkeys(keys)))
    with pytest.raises(CheckpointError, match="as keys"):
        read_pickled(tmp_path / "x")
    (tmp_path / "x").write_bytes(pickle.dumps({2**61 - 1: 1, -(2**60): 2, 2.5: 3}))
    assert len(read_pickled(tmp_path / "x").value) == 3


def test_a_chain_of_calls_keeps_where_it_began(tmp_path: Path) -> None:
    """Found out anew for each of them, it takes quadratic time."""
    (tmp_path / "x").write_bytes(b"\x80\x04cmine\nf\n" + b")R" * 2000 + b".")
    assert vars(read_pickled(tmp_path / "x").value)["origin"] == Global("mine", "f")


def persistent(identity: bytes) -> bytes:
    return b"\x80\x02" + identity + b"Q."


def pid(*entries: bytes) -> bytes:
    return persistent(b"(" + b"".join(entries) + b"t")


FLOATS = b"ctorch\nFloatStorage\n"
ABUSES = {
    "a name as class": pid(text("storage"), b"cos\nsystem\n", text("0"), text("cpu"), b"K\x01"),
    "a huge count": pid(text("storage"), FLOATS, text("0"), text("cpu"), b"\x8a\x08" + struct.pack("<q", 1 << 60)),
    "a negative count": pid(text("storage"), FLOATS, text("0"), text("cpu"), b"J" + struct.pack("<i", -1)),
    "no such key": pid(text("storage"), FLOATS, text("../../etc/passwd"), text("cpu"), b"K\x01"),
    "a number as key": pid(text("storage"), FLOATS, b"K\x00", text("cpu"), b"K\x01"),
    "another kind": pid(text("module"), b"cos\nsystem\n", text("a.py"), text("import os")),
    "too short": pid(text("storage")),
    "text": b"\x80\x02Pevil\n.",
    "no tuple": persistent(b"K\x01"),
}


@pytest.mark.parametrize("name", ABUSES)
def test_persistent_ids_are_checked(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", ABUSES[name])
        archive.writestr("x/data/0", b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"persistent id|storage|text"):
        read_pickled(path)


def tensor_of(offset: object, size: object, stride: object) -> bytes:
    """A pickle of one tensor over a storage of 8 floats; built by pickling the arguments alone."""
    arguments = pickle.dumps((offset, size, stride), 2)[2:-1]
    identity = b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x08tQ"
    unpacked = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity
    for value in (offset, size, stride):
        unpacked += pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")
    assert arguments
    return b"\x80\x02" + unpacked + b"\x89NtR."


VIEWS = [
    (0, (9,), (1,)),
    (1, (8,), (1,)),
    (0, (3, 3), (3, 1)),
    (-1, (4,), (1,)),
    (0, (4,), (-1,)),
    (0, (-4,), (1,)),
    (0, (2,), (1, 1)),
    (0, (1 << 40, 2), (0, 1)),
    (0, (1 << 62, 0), (1, 1)),
    (0, (2.0,), (1,)),
    (0, "22", (1, 1)),
    (True, (2,), (1,)),
]


@pytest.mark.parametrize("view", VIEWS)
def test_views_stay_inside_their_storage(view: tuple[object, object, object], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for data in (tensor_of(*view), tensor_of(2, (2, 3), (3, 1))):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", data)
            archive.writestr("x/data/0", np.arange(8, dtype="<f4").tobytes())
        if data == tensor_of(*view):
            with pytest.raises(CheckpointError, match="tensor"):
                read_pickled(path)
    assert read_pickled(path).value.tolist() == [[2, 3, 4], [5, 6, 7]]  # the last element is just inside


def shared_list(count: int) -> bytes:
    return b"\x80\x02]q\x00(" + b"K\x01" * count + b"e0"


BOMBS = {
    "a length without bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "a text without bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\xff.",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "a far memo entry": b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\x00.",
    "a frame without bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "many copies of one list": shared_list(50_000)
    + (b"c__builtin__\nset\nq\x01h\x00\x85R0" + b"h\x01h\x00\x85R0" * 50_000)
    + b"N.",
    "many copies of one text": b"\x80\x02"
    + text("x" * 100_000)
    + b"q\x00c_codecs\nencode\nq\x010"
    + (b"h\x01h\x00" + text("latin1") + b"\x86R0") * 20_000
    + b"N.",
    "a key that takes forever to hash": b"\x80\x02K\x01" + b"2\x86" * 60 + b"q\x00}h\x00K\x01s.",
    "a deep key": b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s.",
    "bytes of a size": b"\x80\x03cbuiltins\nbytearray\n\x8a\x06" + struct.pack("<q", 1 << 45)[:6] + b"\x85R.",
    "a range as list": b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\n\x8a\x06"
    + struct.pack("<q", 1 << 45)[:6]
    + b"\x85R\x85R.",
    "digits": b"I" + b"9" * 400_000 + b"\n.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[name])
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_pickled(path)
    assert time.perf_counter() - start < 5


def test_deep_nesting_is_no_danger(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x02" + b"(" * 200_000 + b"N" + b"l" * 200_000 + b".")
    foreign = read_foreign(tmp_path / "x")
    assert "a list at its root" in foreign.problem


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_zip_bombs(tmp_path: Path) -> None:
    start = time.perf_counter()
    zeros = b"\0" * (1 << 24)
    packed = zipped(tmp_path / "a", {"x/data.pkl": b"N.", "x/data/0": zeros}, zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match="no compression"):
        read_pickled(packed)
    whole = bytearray(zipped(tmp_path / "b", {"x/data.pkl": b"N.", "x/data/0": b"12345678"}).read_bytes())
    directory = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", directory + 4)
    for field in (20, 24):  # the sizes in the directory's second record
        whole[second + field : second + field + 4] = struct.pack("<I", 0x7FFFFFFF)
    (tmp_path / "b").write_bytes(whole)
    with pytest.raises(CheckpointError, match="bytes of its own inside the file"):
        read_pickled(tmp_path / "b")
    twice = zipped(tmp_path / "c", {"x/data.pkl": b"N.", "y/data.pkl": b"N."})
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        read_pickled(twice)
    assert time.perf_counter() - start < 5


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    whole = bytearray(zipped(tmp_path / "x", {"x/data.pkl": b"N.", "x/data/0": b"12345678"}).read_bytes())
    directory = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", directory + 4)
    whole[second + 42 : second + 46] = whole[directory + 42 : directory + 46]  # both start where the first does
    (tmp_path / "x").write_bytes(whole)
    with pytest.raises(CheckpointError):
        read_pickled(tmp_path / "x")


def test_a_changed_byte_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = write("zip", {"a": torch.full((64,), 1.5)}, tmp_path / "x")
    whole = bytearray(path.read_bytes())
    at = whole.index(struct.pack("<f", 1.5) * 8)
    whole[at] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="checksum"):
        read_pickled(path)


def test_legacy_sizes_are_checked(tmp_path: Path) -> None:
    path = write("legacy", {"a": torch.zeros(5)}, tmp_path / "x")
    whole = path.read_bytes()
    at = len(whole) - 5 * 4 - 8
    assert whole[at : at + 8] == struct.pack("<q", 5)
    path.write_bytes(whole[:at] + struct.pack("<q", 1 << 60) + whole[at + 8 :])
    with pytest.raises(CheckpointError, match="5 elements in 20 bytes"):
        read_pickled(path)
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="16 bytes left"):
        read_pickled(path)


def test_legacy_storages_that_view_others(tmp_path: Path) -> None:
    """PyTorch before 0.4 saved parts of storages: a sixth entry in the persistent id."""
    parts = [pickle.dumps(v, 2) for v in (MAGIC, 1001, {})]
    part = b"(" + text("part") + b"K\x03K\x02t"
    identity = b"(" + text("storage") + FLOATS + text("7") + text("cpu") + b"K\x08" + part + b"tQ"
    tensor = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + identity + b"K\x00K\x02\x85K\x01\x85tR."
    content = np.arange(8, dtype="<f4").tobytes()
    path = tmp_path / "x"
    path.write_bytes(b"".join([*parts, tensor, pickle.dumps(["7"], 2), struct.pack("<q", 8), content]))
    assert read_pickled(path).value.tolist() == [3, 4]


def test_torchscript_and_tar_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_pickled(zipped(tmp_path / "x", {"x/data.pkl": b"N.", "x/constants.pkl": b"N."}))
    (tmp_path / "y").write_bytes(b"storages\0" * 60)
    with pytest.raises(CheckpointError, match="got a file of 540 bytes that opens with b'storages"):
        read_pickled(tmp_path / "y")


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_refused(form: str, tmp_path: Path) -> None:
    whole = write(form, {"a": torch.arange(30.0), "b": [1, "two", {3: 4.0}]}, tmp_path / "x").read_bytes()
    for length in [*range(0, 60, 7), *range(60, len(whole), 31), len(whole) - 1]:
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_pickled(tmp_path / "x")


@pytest.mark.parametrize("form", FORMS)
def test_damage_gives_a_checkpoint_error_or_a_value(form: str, tmp_path: Path) -> None:
    whole = write(form, {"n": Net(), "a": torch.arange(6.0), "b": [1, "two"]}, tmp_path / "x").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        broken = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 4000), size=rng.integers(1, 6)):
            broken[at] = rng.integers(256)
        (tmp_path / "x").write_bytes(broken)
        foreign = read_foreign(tmp_path / "x")  # any other exception fails the test
        refused += bool(foreign.problem)
    assert refused > 20


@pytest.mark.parametrize("size", [1, 40, 5000])
def test_garbage(size: int, tmp_path: Path) -> None:
    for seed in range(40):
        (tmp_path / "x").write_bytes(np.random.default_rng(seed).bytes(size))
        with pytest.raises(CheckpointError):
            read_pickled(tmp_path / "x")


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_pickled(tmp_path / "nowhere")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(CheckpointError, match="an empty file"):
        read_pickled(tmp_path / "x")


def test_a_large_storage_is_not_read_without_data(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1 << 20)}, buffer)
    path = tmp_path / "x"
    path.write_bytes(buffer.getvalue())
    value = read_pickled(path, data=False).value["a"]
    assert math.prod(value.shape) == 1 << 20
    assert value.is_meta


def doubled(depth: int) -> dict[str, Any]:
    """A module of two that are one and the same module of two, and so on: 2 ** depth paths in a small file."""
    module = Net()
    for _ in range(depth):
        outer = nn.Module()
        outer.a = outer.b = module
        module = outer
    return {"model": module}


def wide() -> dict[str, Any]:
    """As many entries as a file of this size can hold, each of them the same dict of as many."""
    inner = {f"k{i}": 1 for i in range(3000)}
    return {f"k{i}": inner for i in range(3000)}


@pytest.mark.parametrize(("make", "message"), [(lambda: doubled(40), "at most"), (wide, "a dict without weights")])
def test_what_is_shared_is_not_walked_without_end(make: Any, message: str, tmp_path: Path) -> None:
    path = write("zip", make(), tmp_path / "x")
    start = time.perf_counter()
    assert message in read_foreign(path).problem
    assert time.perf_counter() - start < 5
    assert not read_foreign(write("zip", doubled(3), tmp_path / "x")).problem
