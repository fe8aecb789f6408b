"""Results on disk: ``regions.json`` (COCO), ``scores.json``, and maps as ``.npz``."""

from protomask.files import prepare_output, safe_name
from protomask.store.maps import DTYPES, read_maps, write_maps
from protomask.store.regions import ImageInfo, Region, Regions, Unlocated, read_regions, to_original, write_regions
from protomask.store.scores import Interval, Score, read_scores, write_scores

__all__ = [
    "DTYPES",
    "ImageInfo",
    "Interval",
    "Region",
    "Regions",
    "Score",
    "Unlocated",
    "prepare_output",
    "read_maps",
    "read_regions",
    "read_scores",
    "safe_name",
    "to_original",
    "write_maps",
    "write_regions",
    "write_scores",
]
