"""Cutting a run into shards, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from protomask.jobs.digests import digest
from protomask.store.plans import SCORED, ShardPlan

PAIRS_PER_CHUNK = 64  # bounds memory: the maps of a chunk are held at once, a mask per scale and pair beside them
IMAGES_PER_CHUNK = 8


def cut_images(
    digests: Sequence[Any], targets: int, methods: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[ShardPlan]:
    """Shards of images with the same number of targets each: a few whole images, or a part of one image's targets.

    Args:
        digests: of the images, in order.
        targets: per image.
        methods: name -> what its results depend on.
        settings: what all results depend on.
    """
    together = max(1, min(IMAGES_PER_CHUNK, PAIRS_PER_CHUNK // targets))
    ranges = [
        (start, min(start + together, len(digests)), low, min(low + PAIRS_PER_CHUNK, targets))
        for start in range(0, len(digests), together)
        for low in range(0, targets, PAIRS_PER_CHUNK)
    ]
    return _shards(ranges, digests, methods, settings)


def cut_pairs(
    digests: Sequence[Any],
    size: int,
    methods: Mapping[str, Any],
    settings: Mapping[str, Any],
    metrics: Sequence[str],
) -> list[ShardPlan]:
    """Shards of ``size`` pairs each, the last with what is left.

    Args:
        digests: of the pairs, in order.
        size: pairs per shard.
        methods: name -> what its results depend on.
        settings: what maps depend on.
        metrics: what they are scored by; a part of the key of its own, so that further ones find the same maps.
    """
    ranges = [(start, min(start + size, len(digests)), 0, 0) for start in range(0, len(digests), size)]
    scored = f"{SCORED}{digest(list(metrics))[:16]}"
    shards = _shards(ranges, digests, methods, settings)
    return [replace(shard, key=f"{shard.key}{scored}") for shard in shards]


def cut_study(
    study: str,
    digests: Sequence[Any],
    size: int,
    maps: int,
    methods: Mapping[str, Any],
    settings: Mapping[str, Any],
    first: int,
) -> list[ShardPlan]:
    """Shards of a study, of ``size`` items each, the last with what is left.

    Args:
        study: its name.
        digests: of its items, in order.
        size: items per shard.
        maps: that an item takes.
        methods: name -> what its results depend on.
        settings: what all results depend on.
        first: number of the first chunk, after those of the pairs.
    """
    ranges = [(start, min(start + size, len(digests)), 0, maps) for start in range(0, len(digests), size)]
    shards = _shards(ranges, digests, methods, {**settings, "study": study})
    return [replace(shard, chunk=first + shard.chunk, study=study) for shard in shards]


def _shards(
    ranges: Sequence[tuple[int, int, int, int]],
    digests: Sequence[Any],
    methods: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[ShardPlan]:
    common = digest(dict(settings))
    return [
        ShardPlan(digest(common, name, how, list(digests[start:stop]), low, high), name, chunk, start, stop, low, high)
        for chunk, (start, stop, low, high) in enumerate(ranges)
        for name, how in methods.items()
    ]
