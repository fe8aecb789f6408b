"""``regions.json``: COCO annotations in pixels of the EXIF-rotated original image; it loads in pycocotools."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco
from torch import Tensor

from protomask.checks import check_choice, check_count
from protomask.data.images import MOST_PIXELS
from protomask.data.sample import Geometry
from protomask.errors import DataError, InputError, expected
from protomask.files import write_with
from protomask.records import Localisation
from protomask.region import REGIONS, regions_of, rule_of
from protomask.store._json import FORMAT_VERSION, dumped, finite, number, read_json

_CHUNK = 64  # maps ranked at a time: ranking takes about 50 bytes per pixel


@dataclass(frozen=True)
class ImageInfo:
    """What ``regions.json`` says of an image.

    Attributes:
        image_id: its stable name, as in :class:`~protomask.data.sample.Sample`.
        geometry: how the maps lie in the original.
        file_name: the file, as COCO readers look for it; the image_id where empty.
    """

    image_id: str
    geometry: Geometry
    file_name: str = ""


@dataclass(frozen=True, eq=False)
class Region:
    """One annotation of ``regions.json``, in pixels of the EXIF-rotated original image.

    Attributes:
        image_id: the image's stable name.
        file_name: its file.
        prototype: index of the prototype.
        name: what the prototype is called.
        method: the localiser's name.
        kind: ``"percentile"`` or ``"own-area"``.
        box: (x0, y0, x1, y1), exclusive end.
        area: pixels.
        activation: the prototype's activation on the image.
        score: the relative activation kept; NaN where undefined.
        rle: COCO's run-length encoding, ``{"size": [H, W], "counts": str}``.
    """

    image_id: str
    file_name: str
    prototype: int
    name: str
    method: str
    kind: str
    box: tuple[float, float, float, float]
    area: int
    activation: float
    score: float
    rle: Mapping[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """[H, W] bool, decoded; DataError where the encoding says nonsense."""
        with warnings.catch_warnings():
            # pycocotools 2.0.11 decodes by a numpy protocol of before numpy 2.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            try:
                return np.asarray(coco.decode(_checked_rle(self.rle))).astype(bool)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                came = f"{type(error).__name__}: {error}"
                raise DataError(expected(f"mask of {self.image_id!r}", "a run-length encoding", came)) from error


@dataclass(frozen=True)
class Unlocated:
    """A pair without a region, and why: there was nothing to locate, or the map says nothing."""

    image_id: str
    prototype: int
    method: str
    activation: float
    reason: str


@dataclass(frozen=True, eq=False)
class Regions:
    """What a ``regions.json`` holds."""

    regions: tuple[Region, ...]
    unlocated: tuple[Unlocated, ...]
    names: Mapping[int, str]


def write_regions(
    path: str | Path,
    results: Iterable[tuple[Localisation, Sequence[ImageInfo]]],
    names: Mapping[int, str] | Sequence[str],
    *,
    region: str = "percentile",
    percentile: float = 95,
) -> None:
    """Regions of any number of methods and batches as COCO annotations, in pixels of the original images.

    The region is cut from the map in the sample's frame and brought to the original by nearest neighbours; enlarging
    every map first would cost a hundred times as much and differ by less than one sample pixel at the edge. A region
    that falls between the pixels of a smaller original keeps its first pixel. Pairs without a region go to the extra
    list ``unlocated``. Image and annotation ids count from 1; ``category_id`` is the prototype.

    Args:
        path: of the file.
        results: each a Localisation and the images that its ``targets.images`` count. An image may come again under
            other methods or prototypes; it is known by its image_id.
        names: the prototypes' names by index; each becomes a category.
        region: ``"percentile"``, or ``"own-area"``, which falls back to the percentile where maps are no masks. Each
            annotation says which was used.
        percentile: of the first kind, in [0, 100].

    Raises:
        InputError: a target without image or name, a map of another size than its image's geometry, or one image_id
            with two geometries or files.
        ResourceError: the file cannot be written.
    """
    pieces = ((entries_of(found, infos, region=region, percentile=percentile), infos) for found, infos in results)
    write_entries(path, pieces, names)


def entries_of(
    found: Localisation, infos: Sequence[ImageInfo], *, region: str = "percentile", percentile: float = 95
) -> list[dict[str, Any]]:
    """What ``regions.json`` says of each pair, as JSON values, in the pairs' order; for :func:`write_entries`.

    ``image`` counts ``infos``; an entry with a ``reason`` has no region. Arguments and errors are those of
    :func:`write_regions`.
    """
    check_choice("region", region, REGIONS)
    _check_targets(found, infos)
    kind = rule_of(region, found.masks)
    entries: list[dict[str, Any]] = []
    for row, ((image, prototype), mask) in enumerate(
        zip(found.targets, _cut(found.maps, kind, percentile), strict=True)
    ):
        activation = finite(found.activations_before[row])
        entry = {"image": image, "category_id": prototype, "method": found.method, "activation": activation}
        if found.located[row]:
            shape = _encode(to_original(mask, infos[image].geometry))
            entries.append({**entry, "score": finite(found.scores[row]), "region": kind, **shape})
        else:
            entries.append({**entry, "reason": found.reasons[row]})
    return entries


def write_entries(
    path: str | Path,
    pieces: Iterable[tuple[Sequence[Mapping[str, Any]], Sequence[ImageInfo]]],
    names: Mapping[int, str] | Sequence[str],
) -> None:
    """``regions.json`` from entries of :func:`entries_of`, piece by piece: one piece is in memory at a time.

    Args:
        path: of the file.
        pieces: entries, and the images that they count.
        names: the prototypes' names by index; each becomes a category.

    Raises:
        InputError: a prototype without a name, or one image_id with two geometries or files.
        ResourceError: the file cannot be written.
    """
    named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))

    def write(beside: Path) -> None:
        with ExitStack() as open_files:
            annotations, unlocated, listed = (open_files.enter_context(_Listed(beside.parent)) for _ in range(3))
            images = _Images(listed)
            for entries, infos in pieces:
                _check_names(entries, named)
                for entry in entries:
                    pair = {"image_id": images.number(infos[entry["image"]]), **entry}
                    del pair["image"]
                    if "reason" in pair:
                        unlocated.append(pair)
                    else:
                        annotations.append({"id": len(annotations) + 1, **pair})
            info = {"description": "Regions of prototypes, in pixels of the upright image", "version": FORMAT_VERSION}
            categories = [{"id": k, "name": name} for k, name in sorted(named.items())]
            with beside.open("wb") as file:
                file.write(b'{"info": ' + dumped(info) + b', "images": [')
                listed.copy_to(file)
                file.write(b'], "categories": ' + dumped(categories) + b', "annotations": [')
                annotations.copy_to(file)
                file.write(b'], "unlocated": [')
                unlocated.copy_to(file)
                file.write(b"]}")

    write_with(path, write)


def read_regions(path: str | Path) -> Regions:
    """What :func:`write_regions` wrote.

    Raises:
        DataError: no such file, no JSON, or not of that form.
    """
    content = read_json(path)
    try:
        images = {i["id"]: i for i in content["images"]}
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        regions = tuple(_region(a, images[a["image_id"]], names) for a in content["annotations"])
        unlocated = tuple(_unlocated(u, images[u["image_id"]]) for u in content.get("unlocated", ()))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(expected(str(path), "regions as write_regions writes them", repr(error))) from error
    return Regions(regions, unlocated, names)


def to_original(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A mask [h, w] bool of the sample's size in the original image: [H, W] bool, False outside what was cut out.

    An original pixel takes the sample pixel that its centre falls into. Where that leaves nothing of a mask that held
    something (the original is the smaller one), the original pixel under the mask's first pixel is kept.
    """
    height, width = geometry.source_size
    x0, y0, x1, y1 = geometry.crop
    rows, inside_y = _nearest(height, y0, y1, geometry.size[0])
    columns, inside_x = _nearest(width, x0, x1, geometry.size[1])
    original: np.ndarray = mask[rows][:, columns] & inside_y[:, None] & inside_x
    if mask.any() and not original.any():
        y, x = (float(v[0]) for v in np.nonzero(mask))
        column, row = geometry.to_source(np.array([x + 0.5, y + 0.5, x + 0.5, y + 0.5]))[:2]
        original[min(int(row), height - 1), min(int(column), width - 1)] = True
    return original


class _Listed:
    """The items of a JSON list, kept on disk beyond the first megabyte."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def __enter__(self) -> _Listed:
        self._file = tempfile.SpooledTemporaryFile(1 << 20, dir=str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, item: object) -> None:
        self._file.write((b", " if self._count else b"") + dumped(item))
        self._count += 1

    def copy_to(self, file: BinaryIO) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, file)


class _Images:
    """The images of a COCO file, numbered from 1 in the order in which they come."""

    def __init__(self, listed: _Listed) -> None:
        self._listed = listed
        self._known: dict[str, tuple[int, ImageInfo]] = {}

    def number(self, info: ImageInfo) -> int:
        number, known = self._known.setdefault(info.image_id, (len(self._listed) + 1, info))
        if known != info:
            raise InputError(expected(f"image {info.image_id!r}", f"one geometry and file, {known}", info))
        if number > len(self._listed):
            height, width = info.geometry.source_size
            file_name = info.file_name or info.image_id
            entry = {"id": number, "file_name": file_name, "width": width, "height": height, "name": info.image_id}
            self._listed.append(entry)
        return number


def _cut(maps: Tensor, kind: str, percentile: float) -> Iterator[np.ndarray]:
    for start in range(0, len(maps), _CHUNK):
        yield from regions_of(maps[start : start + _CHUNK], kind, percentile).cpu().numpy()


def _check_targets(found: Localisation, infos: Sequence[ImageInfo]) -> None:
    check_rows("images", len(infos), found)
    size = tuple(found.maps.shape[1:])
    for image, _ in found.targets:
        if tuple(infos[image].geometry.size) != size:
            wanted = f"the maps' size {size}"
            raise InputError(expected(f"geometry of {infos[image].image_id!r}", wanted, infos[image].geometry.size))


def _check_names(entries: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    unnamed = sorted({e["category_id"] for e in entries if e["category_id"] not in names})
    if unnamed:
        raise InputError(expected("names", "a name for every prototype of the targets", f"none for {unnamed}"))


def check_rows(name: str, count: int, found: Localisation) -> None:
    """InputError unless there are at least as many as the images that the targets count."""
    wanted = int(found.targets.images.max()) + 1
    if count < wanted:
        raise InputError(expected(name, f"at least {wanted}, one per image of the targets", count))


def _nearest(length: int, start: float, stop: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = np.arange(length) + 0.5
    cells = np.floor((centres - start) * size / (stop - start)).astype(np.int64)
    # A mirrored sample starts at the greater edge.
    return cells.clip(0, size - 1), (centres >= min(start, stop)) & (centres < max(start, stop))


def _encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "bbox": [float(v) for v in coco.toBbox(rle)],
        "area": int(coco.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")},
    }


def _region(annotation: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[int, str]) -> Region:
    x, y, width, height = (float(v) for v in annotation["bbox"])
    prototype = int(annotation["category_id"])
    return Region(
        image_id=str(image["name"]),
        file_name=str(image["file_name"]),
        prototype=prototype,
        name=names[prototype],
        method=str(annotation["method"]),
        kind=str(annotation["region"]),
        box=(x, y, x + width, y + height),
        area=int(annotation["area"]),
        activation=number(annotation["activation"]),
        score=number(annotation["score"]),
        rle=dict(annotation["segmentation"]),
    )


def _checked_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """``size`` and ``counts`` alone, if so many pixels can be an image; else ValueError, before memory is taken."""
    height, width = (check_count("size", side, 0) for side in rle["size"])
    if height * width > MOST_PIXELS:
        raise ValueError(f"{height} x {width} pixels")
    if not isinstance(rle["counts"], (str, bytes)):
        raise TypeError("counts that are no text")
    return {"size": [height, width], "counts": rle["counts"]}


def _unlocated(entry: Mapping[str, Any], image: Mapping[str, Any]) -> Unlocated:
    return Unlocated(
        image_id=str(image["name"]),
        prototype=int(entry["category_id"]),
        method=str(entry["method"]),
        activation=number(entry["activation"]),
        reason=str(entry["reason"]),
    )
