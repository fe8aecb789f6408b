"""Damaged files of every kind that is read: 10,000 and more, and nothing but protomask's own errors comes out.

Each case is a valid file after one to six edits (bits flipped, pieces cut, copied, repeated, put in, numbers made
extreme), or bytes made up from the format's own pieces. The same cases come in every run.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from protomask import checkpoint
from protomask.checkpoint import load_checkpoint
from protomask.errors import ProtomaskError
from protomask.foreign import Stated
from tests import fuzzing
from tests.fuzzing import EXECUTED

# How many cases of each kind: more where a file has more ways to be wrong, fewer where a case takes longer.
CASES = {
    "image": 1600,
    "array": 900,
    "pickle": 800,
    "tensors": 400,
    "description": 800,
    "classes": 400,
    "cub": 700,
    "chest": 700,
    "boxes": 500,
    "regions": 600,
    "scores": 400,
    "maps": 600,
    "shard": 600,
    "plan": 400,
}
CASES_OF_STATES = 150
refused: Counter[str] = Counter()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzzing.Format]:
    return fuzzing.formats(tmp_path_factory.mktemp("valid"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # Pillow warns of much that it reads all the same
        warnings.simplefilter("ignore")
        yield


def contents(kind: fuzzing.Format) -> st.SearchStrategy[bytes]:
    """Files of a kind: damaged ones, and some made up."""
    piece = st.binary(max_size=12)
    if kind.tokens:
        piece |= st.sampled_from(kind.tokens)
    edit = st.tuples(st.sampled_from(fuzzing.KINDS), st.integers(0, 65535), piece)
    edits = st.lists(edit, min_size=1, max_size=6)
    damaged = st.builds(fuzzing.damaged, st.sampled_from(kind.seeds), edits)
    made_up = st.lists(piece, max_size=8).map(b"".join)
    return st.one_of(damaged, damaged, damaged, made_up)


@pytest.mark.parametrize("name", CASES)
def test_only_our_errors_come_out(name: str, made: dict[str, fuzzing.Format], tmp_path: Path) -> None:
    kind = made[name]

    @settings(
        max_examples=CASES[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents(kind))
    def read(content: bytes) -> None:
        EXECUTED[name] += 1
        with fuzzing.only_our_errors(name):
            try:
                kind.read(content, tmp_path)
            except ProtomaskError:
                refused[name] += 1
                raise

    read()
    assert refused[name] > EXECUTED[name] / 10, "the damage does no harm"


@pytest.mark.parametrize("name", CASES)
def test_the_valid_files_are_read(name: str, made: dict[str, fuzzing.Format], tmp_path: Path) -> None:
    """Or the fuzzer would look at the first check only."""
    fine = 0
    for content in made[name].seeds:
        with fuzzing.only_our_errors(name):
            made[name].read(content, tmp_path)
            fine += 1
    assert fine


EDITS = ("drop", "rename", "shape", "dtype", "nan", "huge", "extra")
STATED = st.builds(
    Stated,
    backbone=st.sampled_from(["conv-small", "resnet18", "x", None]),
    prototypes_per_class=st.sampled_from([2, 2, 2, 5, 0, None]),
    size=st.sampled_from([(96, 96), None]),
)


def unfit(tensors: dict[str, Tensor], edits: list[tuple[str, str, int]]) -> dict[str, Tensor]:
    """A state dict after edits (what, which tensor, how)."""
    tensors = dict(tensors)
    for what, name, number in edits:
        came = tensors.pop(name, torch.zeros(()))
        if what == "rename":
            tensors[name[number:] or "x"] = came
        elif what == "shape":
            tensors[name] = came.flatten()[: number * 7].reshape([-1] + [1] * (number % 5))
        elif what == "dtype":
            tensors[name] = came.to([torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8][number % 5])
        elif what == "nan":
            tensors[name] = came * torch.nan
        elif what == "huge":
            tensors[name] = came * 3e38
        elif what == "extra":
            tensors[f"{name}.{number}"] = tensors[name] = came
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def test_state_dicts_that_do_not_fit(tmp_path: Path) -> None:
    whole = load_file(Path(checkpoint.__file__).parents[1] / "protopnet_ext" / "demo" / "model.safetensors")
    edits = st.lists(
        st.tuples(st.sampled_from(EDITS), st.sampled_from(sorted(whole)), st.integers(0, 30)), min_size=1, max_size=3
    )

    @settings(max_examples=CASES_OF_STATES, derandomize=True, database=None, deadline=None)
    @given(edits, STATED)
    def read(changes: list[tuple[str, str, int]], stated: Stated) -> None:
        EXECUTED["states"] += 1
        save_file(unfit(whole, changes), tmp_path / "a.safetensors")
        with fuzzing.only_our_errors((changes, stated)):
            load_checkpoint(tmp_path / "a.safetensors", stated=stated)

    read()


def test_every_kind_is_fuzzed(made: dict[str, fuzzing.Format]) -> None:
    assert made.keys() == CASES.keys()


def test_the_helper_lets_no_other_error_pass() -> None:
    with pytest.raises(AssertionError, match="KeyError: 'x'"), fuzzing.only_our_errors():
        raise KeyError("x")
    with pytest.raises(AssertionError, match="no message of ours"), fuzzing.only_our_errors():
        raise ProtomaskError("something went wrong")
