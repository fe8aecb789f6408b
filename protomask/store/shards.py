"""A shard on disk: what one method found for a fixed group of pairs. ``<key>.npz``, written whole or not at all.

A map that its mask vectors render to is not stored; others are stored to 16 bits, and where there are scores with the
rank of every pixel (:mod:`protomask.store.packing`). Boxes, peaks, activations and regions were computed from the exact
maps and are stored as they were; scores are those of the maps as they are stored (:func:`as_stored`), so that further
metrics can be scored later on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protomask.data.sample import Geometry
from protomask.files import write_bytes
from protomask.opening import open_npz
from protomask.records import Localisation
from protomask.store._json import FORMAT_VERSION
from protomask.store.maps import (
    DAMAGED,
    as_numpy,
    check_version,
    damaged,
    described,
    npz_bytes,
    read_npz,
    rebuilt,
    row_arrays,
)
from protomask.store.packing import (
    pack_exact,
    pack_maps,
    pack_ranked,
    unpack_exact,
    unpack_maps,
    unpack_ranked,
)
from protomask.store.regions import ImageInfo
from protomask.store.rendering import render_vectors, rendered_maps


@dataclass(frozen=True)
class Failure:
    """An item that could not be worked on, and why."""

    item: str
    reason: str


@dataclass(frozen=True, eq=False)
class Shard:
    """What one method found for a fixed group of pairs.

    Attributes:
        key: digest of everything that it depends on.
        found: N pairs, their images counted by ``images``; None where every item failed.
        images: the images, with how they lie in their originals.
        rows: [N] int64, which of the group's pairs each row is, counted from 0; pairs that failed are missing.
        scores: metric -> [N] float64, NaN where undefined; empty where nothing was scored.
        entries: what ``regions.json`` says of each pair (:func:`protomask.store.regions.entries_of`); may be empty.
        failed: items that could not be worked on.
    """

    key: str
    found: Localisation | None
    images: tuple[ImageInfo, ...]
    rows: np.ndarray
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    entries: Sequence[Mapping[str, Any]] = ()
    failed: tuple[Failure, ...] = ()


def write_shard(path: str | Path, shard: Shard) -> None:
    """One shard as a file; raises as :func:`shard_bytes`, or ResourceError where it cannot be written."""
    write_bytes(path, shard_bytes(shard))


def shard_bytes(shard: Shard) -> bytes:
    """One shard as a compressed ``.npz``; the same shard gives the same bytes.

    Raises:
        InputError: the method's settings are no JSON values.
    """
    arrays = {"rows": shard.rows, **{f"score.{name}": values for name, values in shard.scores.items()}}
    about: dict[str, object] = {
        "version": FORMAT_VERSION,
        "key": shard.key,
        "images": [_spelled(info) for info in shard.images],
        "scores": list(shard.scores),
        "entries": list(shard.entries),
        "failed": [[f.item, f.reason] for f in shard.failed],
        "found": None,
    }
    if shard.found is not None:
        packed, form = _pack(shard.found, ranked=bool(shard.scores))
        arrays |= packed
        about["found"] = {**described(shard.found), **form}
    return npz_bytes(arrays, about)


def read_shard(path: str | Path) -> Shard:
    """What :func:`write_shard` wrote: vectors and numbers exactly, maps rendered anew or to 16 bits.

    Raises:
        DataError: no such file, a truncated one, or not of that form.
    """
    try:
        arrays, about = read_npz(path)
        check_version(about)
        return Shard(
            key=about["key"],
            found=None if about["found"] is None else _unpack(arrays, about["found"]),
            images=tuple(_info(*spelled) for spelled in about["images"]),
            rows=arrays["rows"],
            scores={name: arrays[f"score.{name}"] for name in about["scores"]},
            entries=about["entries"],
            failed=_failures(about),
        )
    except DAMAGED as error:
        raise damaged(path, "a shard as write_shard writes it", error) from error


def read_failures(path: str | Path) -> tuple[Failure, ...]:
    """The failed items of a shard, without reading its arrays; DataError as :func:`read_shard`."""
    try:
        with open_npz(path, "about") as stored:
            about = json.loads(stored["about"].tobytes())
        return _failures(about)
    except DAMAGED as error:
        raise damaged(path, "a shard as write_shard writes it", error) from error


def _failures(about: dict[str, Any]) -> tuple[Failure, ...]:
    return tuple(Failure(str(item), str(reason)) for item, reason in about["failed"])


def as_stored(found: Localisation) -> Localisation:
    """The same with its maps as a shard with scores gives them back, on the CPU: as its vectors render, or with the
    order of the pixels as it was and values to 16 bits."""
    rendered = rendered_maps(found)
    if rendered is None:
        rendered = torch.from_numpy(unpack_ranked("maps", pack_ranked("maps", as_numpy(found.maps))))
    return replace(found, maps=rendered)


def _pack(found: Localisation, *, ranked: bool) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    arrays = row_arrays(found)
    for scale, vectors in found.mask_vectors.items():
        arrays |= pack_exact(f"vectors_{scale}", as_numpy(vectors))
    rendered = rendered_maps(found) is not None
    if not rendered:
        pack = pack_ranked if ranked else pack_maps
        arrays |= pack("maps", as_numpy(found.maps))
    return arrays, {"scales": list(found.mask_vectors), "size": list(found.maps.shape[1:]), "rendered": rendered}


def _unpack(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> Localisation:
    vectors = {int(scale): unpack_exact(f"vectors_{scale}", arrays) for scale in about["scales"]}
    height, width = about["size"]
    if not about["rendered"]:
        unpack = unpack_ranked if "maps.ranks" in arrays else unpack_maps
        return rebuilt(arrays, about, unpack("maps", arrays), vectors)
    empty = np.zeros((len(arrays["rows"]), 1, 1), np.float32)
    found = rebuilt(arrays, about, empty, vectors)
    return replace(found, maps=render_vectors(found, (height, width)))


def _spelled(info: ImageInfo) -> list[object]:
    geometry = info.geometry
    return [info.image_id, info.file_name, list(geometry.source_size), list(geometry.crop), list(geometry.size)]


def _info(image_id: str, file_name: str, source: list[int], crop: list[float], size: list[int]) -> ImageInfo:
    x0, y0, x1, y1 = crop
    return ImageInfo(image_id, Geometry((source[0], source[1]), (x0, y0, x1, y1), (size[0], size[1])), file_name)
