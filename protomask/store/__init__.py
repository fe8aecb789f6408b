"""Results on disk: ``regions.json`` (COCO), ``scores.json``, maps as ``.npz``, and runs as shards."""

from protomask.files import prepare_output, safe_name
from protomask.store.maps import DTYPES, read_maps, write_maps
from protomask.store.plans import Plan, ShardPlan
from protomask.store.regions import (
    ImageInfo,
    Region,
    Regions,
    Unlocated,
    entries_of,
    read_regions,
    to_original,
    write_entries,
    write_regions,
)
from protomask.store.rendering import render
from protomask.store.runs import Run, read_run
from protomask.store.scores import Interval, Score, read_scores, write_scores
from protomask.store.shards import Failure, Shard, read_shard, write_shard

__all__ = [
    "DTYPES",
    "Failure",
    "ImageInfo",
    "Interval",
    "Plan",
    "Region",
    "Regions",
    "Run",
    "Score",
    "Shard",
    "ShardPlan",
    "Unlocated",
    "entries_of",
    "prepare_output",
    "read_maps",
    "read_regions",
    "read_run",
    "read_scores",
    "read_shard",
    "render",
    "safe_name",
    "to_original",
    "write_entries",
    "write_maps",
    "write_regions",
    "write_scores",
    "write_shard",
]
