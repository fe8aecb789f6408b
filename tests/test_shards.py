"""Shards and plans on disk: what was stored is read, to the bit where that is promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import protomask
from protomask import opening
from protomask.data import Geometry
from protomask.errors import DataError, InputError
from protomask.masks import render as render_masks
from protomask.records import Localisation
from protomask.store import Failure, ImageInfo, Plan, Shard, ShardPlan, read_maps, read_shard, render, write_shard
from protomask.store.packing import (
    LEVELS,
    pack_exact,
    pack_maps,
    pack_ranked,
    unpack_exact,
    unpack_maps,
    unpack_ranked,
)
from protomask.store.plans import read_plan, write_plan
from protomask.store.shards import as_stored, read_failures
from tests.toys import BlockScenes, block_model


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_maps_keep_their_order_and_nearly_their_values(seed: int, n: int, height: int, width: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((n, height, width), dtype=np.float32)
    maps = np.round(maps) if flat else maps
    got = unpack_maps("m", pack_maps("m", maps))
    assert np.abs(got.astype(np.float64) - maps).max() <= 0.5 / LEVELS + 1e-7
    order = np.argsort(maps.reshape(n, -1), axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(got.reshape(n, -1), order, 1)) >= 0).all()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from(range(6)))
def test_ranked_maps_keep_order_and_ties_exactly(seed: int, n: int, height: int, width: int, kind: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((n, height, width), dtype=np.float32)
    steps = rng.integers(0, 50, maps.shape)
    near_one = (np.float32(1).view(np.int32) - steps).astype(np.int32).view(np.float32)
    low = (np.float32(9 / LEVELS).view(np.int32) + steps).astype(np.int32).view(np.float32)
    maps = (maps, np.round(maps), maps * np.float32(1e-6), near_one, low, (steps * 1e-45).astype(np.float32))[kind]
    got = unpack_ranked("m", pack_ranked("m", maps))
    assert got.dtype == np.float32
    assert np.abs(got.astype(np.float64) - maps).max() < 1 / LEVELS
    for one, other in zip(maps, got, strict=True):
        assert np.array_equal(np.unique(one, return_inverse=True)[1], np.unique(other, return_inverse=True)[1])
    again = pack_ranked("m", got)
    assert all(np.array_equal(again[name], array) for name, array in pack_ranked("m", maps).items())
    assert np.array_equal(unpack_ranked("m", again), got)


def test_maps_of_more_values_than_16_bits_count_are_ranked_too() -> None:
    maps = np.random.default_rng(0).permutation(300 * 300).reshape(1, 300, 300).astype(np.float32) / 90000
    got = unpack_ranked("m", pack_ranked("m", maps))
    assert np.array_equal(np.argsort(got.ravel()), np.argsort(maps.ravel()))


def test_maps_outside_the_range_are_kept_as_they_are() -> None:
    maps = np.array([[[-1.0, 2.5]]], np.float32)
    assert np.array_equal(unpack_maps("m", pack_maps("m", maps)), maps)
    assert np.array_equal(unpack_ranked("m", pack_ranked("m", maps)), maps)


def test_what_is_scored_ranks_as_what_was_found() -> None:
    found = located("mdm", steps=3)
    stored = as_stored(found)
    for one, other in zip(found.maps.flatten(1), stored.maps.flatten(1), strict=True):
        assert torch.equal(one.unique(return_inverse=True)[1], other.unique(return_inverse=True)[1])


def test_smooth_maps_take_less_than_half_of_what_float16_takes(tmp_path: Path) -> None:
    maps = render_masks(torch.rand(8, 7, 7, generator=torch.Generator().manual_seed(0)), (96, 96)).numpy()
    np.savez_compressed(tmp_path / "ours.npz", **pack_maps("m", maps))
    np.savez_compressed(tmp_path / "half.npz", m=maps.astype(np.float16))
    assert (tmp_path / "ours.npz").stat().st_size < 0.5 * (tmp_path / "half.npz").stat().st_size


@pytest.mark.parametrize("values", [3, 256, 257, 5000])
def test_vectors_are_kept_to_the_bit(values: int) -> None:
    grid = np.random.default_rng(0).random(values, dtype=np.float32)
    vectors = np.random.default_rng(1).choice(grid, (6, 24, 24))
    packed = pack_exact("v", vectors)
    assert np.array_equal(unpack_exact("v", packed), vectors)
    assert ("v.codes" in packed) == (len(np.unique(vectors)) <= 256)


def located(method: str, **options: object) -> Localisation:
    data = BlockScenes()
    images = torch.stack([torch.from_numpy(data[k].image).permute(2, 0, 1) / 255 for k in range(3)])
    return protomask.locate(block_model(), images, "all", method, **options)  # type: ignore[arg-type]


INFOS = tuple(ImageInfo(f"{k}", Geometry((64, 64), (0, 0, 64, 64), (32, 32))) for k in range(3))


def shard(found: Localisation | None) -> Shard:
    rows = np.arange(0 if found is None else len(found))
    scores = {"energy": np.linspace(0, 1, len(rows)), "hit": np.full(len(rows), np.nan)}
    return Shard("abc", found, INFOS, rows, scores, failed=(Failure("bad.png", "it is bad"),))


@pytest.mark.parametrize("method", ["mdm", "mdm-fast", "single-mask", "centre"])
def test_a_shard_is_read_as_it_was_written(method: str, tmp_path: Path) -> None:
    settings: dict[str, dict[str, int]] = {"centre": {}, "mdm": {"steps": 3, "gradient_power": 0}}
    found = located(method, **settings.get(method, {"steps": 3}))
    write_shard(tmp_path / "a.npz", shard(found))
    got = read_shard(tmp_path / "a.npz")
    assert got.found is not None
    assert (got.key, got.images, got.failed) == ("abc", INFOS, (Failure("bad.png", "it is bad"),))
    assert got.found.settings == found.settings
    assert got.found.mask_vectors.keys() == found.mask_vectors.keys()
    for scale, vectors in found.mask_vectors.items():
        assert torch.equal(got.found.mask_vectors[scale], vectors)
    for name in ("boxes", "peaks", "activations_before", "activations_after", "located"):
        assert torch.equal(getattr(got.found, name), getattr(found, name)), name
    assert np.array_equal(got.scores["energy"], shard(found).scores["energy"])
    assert np.isnan(got.scores["hit"]).all()
    if method in ("centre", "mdm-fast"):  # no mask vectors, or a gradient weighs what they render to
        assert float((got.found.maps - found.maps).abs().max()) < 1 / LEVELS
    else:
        assert torch.equal(got.found.maps, found.maps)
        with np.load(tmp_path / "a.npz") as stored:
            assert not [name for name in stored.files if name.startswith("maps")]
    write_shard(tmp_path / "b.npz", shard(found))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_map_that_its_vectors_do_not_render_to_is_stored(tmp_path: Path) -> None:
    found = located("mdm", steps=3)
    found = replace(found, maps=found.maps.flip(2))
    write_shard(tmp_path / "a.npz", shard(found))
    got = read_shard(tmp_path / "a.npz").found
    assert got is not None
    assert torch.allclose(got.maps, found.maps, rtol=0, atol=1 / LEVELS)


def test_rendering_at_any_resolution() -> None:
    single = located("single-mask", steps=3)
    assert torch.equal(render(single, (32, 32)), single.maps)
    assert torch.equal(render(single, (50, 70)), render_masks(single.mask_vectors[12], (50, 70)))
    weighed = located("mdm", steps=3)  # by a gradient: its vectors are not the map
    assert torch.equal(render(weighed, (32, 32)), weighed.maps)
    mdm = located("mdm", steps=3, gradient_power=0)
    product = torch.stack([render_masks(v, (64, 48)) for v in mdm.mask_vectors.values()]).prod(0)
    assert torch.allclose(render(mdm, (64, 48)), product, atol=1e-6)
    assert render(located("centre"), (8, 10)).shape == (9, 8, 10)
    with pytest.raises(InputError, match="size: expected an integer of at least 1"):
        render(mdm, (0, 4))


def test_a_shard_of_failures_only(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.npz", shard(None))
    assert read_shard(tmp_path / "a.npz").found is None
    assert read_failures(tmp_path / "a.npz") == (Failure("bad.png", "it is bad"),)


def test_damaged_shards_and_plans_are_errors_that_name_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.npz", shard(located("centre")))
    whole = (tmp_path / "a.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"[1, 2]", whole[:40] + b"\0" * 40 + whole[80:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz: expected a shard"):
            read_shard(tmp_path / "a.npz")
    plan = Plan("locate", {"threads": 1}, ({"id": "a"},), (ShardPlan("k", "mdm", 0, 0, 1, 0, 3),), {"per_image": 3})
    write_plan(tmp_path, plan)
    assert vars(read_plan(tmp_path)) == vars(plan)
    assert plan.shards[0].maps == 3
    (tmp_path / "shards" / "plan.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match=r"plan\.json: expected a plan"):
        read_plan(tmp_path)


def test_a_file_that_unpacks_to_far_more_than_it_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.npz", shard(located("centre")))
    monkeypatch.setattr(opening, "MOST_UNPACKED", 1 << 16)
    assert read_shard(tmp_path / "a.npz").found is not None
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored)
    np.savez_compressed(tmp_path / "a.npz", **arrays, more=np.zeros(1 << 24, np.uint8))  # type: ignore[arg-type]
    for read in (read_shard, read_maps):
        with pytest.raises(DataError, match=r"a\.npz: expected .*ValueError: \d+ bytes that unpack to \d{8}"):
            read(tmp_path / "a.npz")
    assert read_failures(tmp_path / "a.npz") == (Failure("bad.png", "it is bad"),)  # which reads no array


def test_another_version_of_the_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protomask.store.shards.FORMAT_VERSION", 99)
    write_shard(tmp_path / "a.npz", shard(None))
    with pytest.raises(DataError, match=r"a\.npz: expected a shard .* version 99"):
        read_shard(tmp_path / "a.npz")
