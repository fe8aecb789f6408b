"""The plan of a run: which shards it consists of, cut before anything is computed. ``shards/plan.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from protomask.errors import DataError, expected
from protomask.store._json import FORMAT_VERSION, read_json, write_json

SHARDS = "shards"
PLAN = "plan.json"
SCORED = "-"
"""In the key of a shard of scored pairs: between what its maps depend on and what they are scored by."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard of a plan: a method on a range of the plan's items.

    Attributes:
        key: digest of everything that its result depends on; the name of its file. Where pairs are scored, two of them,
            of what maps depend on and of the metrics, with :data:`SCORED` between.
        method: the localiser's name.
        chunk: which group of pairs; every method has a shard of each.
        start, stop: the items, by index.
        low, high: of each image's targets those of index low .. high - 1; both 0 where items are pairs.
        study: what is computed where it is no map per item, such as ``"prototypes"``; ``start`` and ``stop`` then count
            what the plan tells of it under that word in ``about``, and ``high`` is how many maps each of these takes.
    """

    key: str
    method: str
    chunk: int
    start: int
    stop: int
    low: int = 0
    high: int = 0
    study: str = ""

    @property
    def maps(self) -> int:
        """How many maps it makes."""
        return (self.stop - self.start) * max(1, self.high - self.low)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run computes, with everything that changes its bytes.

    Attributes:
        kind: ``"locate"`` or ``"evaluate"``.
        settings: JSON values, by name: model digest, targets, seed, batch, threads, versions, ...
        items: JSON values: images (``id``, ``path``, ``digest``) or pairs.
        shards: in the order in which they are worked on.
        about: JSON values that are needed to put the results together and change no shard.
    """

    kind: str
    settings: Mapping[str, Any]
    items: tuple[Any, ...]
    shards: tuple[ShardPlan, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunks(self) -> list[list[ShardPlan]]:
        """The shards by chunk, each chunk's in the order of the methods."""
        grouped: dict[int, list[ShardPlan]] = {}
        for shard in self.shards:
            grouped.setdefault(shard.chunk, []).append(shard)
        return list(grouped.values())


def plan_path(folder: str | Path) -> Path:
    """Where the plan of a run in ``folder`` lies."""
    return Path(folder) / SHARDS / PLAN


def write_plan(folder: str | Path, plan: Plan) -> None:
    """The plan as ``shards/plan.json``; ResourceError where it cannot be written."""
    content = {
        "version": FORMAT_VERSION,
        "kind": plan.kind,
        "settings": dict(plan.settings),
        "about": dict(plan.about),
        "items": list(plan.items),
        "shards": [list(asdict(shard).values()) for shard in plan.shards],
    }
    write_json(plan_path(folder), content)


def read_plan(folder: str | Path) -> Plan:
    """What :func:`write_plan` wrote.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = plan_path(folder)
    content = read_json(path)
    try:
        if content["version"] != FORMAT_VERSION:
            raise ValueError(f"version {content['version']}")
        if not all(isinstance(content[name], dict) for name in ("settings", "about")):
            raise TypeError("settings or about that are no objects")
        shards = tuple(_shard(fields) for fields in content["shards"])
        return Plan(content["kind"], content["settings"], tuple(content["items"]), shards, content["about"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(expected(str(path), "a plan as write_plan writes it", repr(error))) from error


def _shard(fields: list[Any]) -> ShardPlan:
    shard = ShardPlan(*fields)
    # The key becomes the name of a file: nothing in it may lead out of the folder.
    if not isinstance(shard.key, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", shard.key):
        raise ValueError(f"the key {str(shard.key)[:40]!r}")
    if not all(isinstance(n, int) for n in (shard.chunk, shard.start, shard.stop, shard.low, shard.high)):
        raise TypeError("a range that is none")
    if not isinstance(shard.study, str):
        raise TypeError("a study that is none")
    return shard
