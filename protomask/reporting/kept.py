"""What an evaluation keeps while it runs, chunk by chunk: on disk what every pair leaves, in memory the first few."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protomask import gallery
from protomask.data.sample import Sample
from protomask.localisers import LOCALISERS
from protomask.metrics import Truth
from protomask.pairs import Pair
from protomask.records import Localisation
from protomask.reporting.examples import EXAMPLES, INDEX, thumbnail_name, write_chunk, write_thumbnail
from protomask.store import ImageInfo, entries_of, write_entries
from protomask.store._json import read_json, write_json


def is_control(method: str) -> bool:
    """Whether a method looks at the annotation or at nothing: one of ours, or of a user's who says so of it."""
    return method in LOCALISERS and LOCALISERS[method].control


class Kept:
    """Takes in the chunks of an evaluation: memory stays bounded, whatever the number of pairs.

    Attributes:
        panels: how many pairs are kept whole, for pictures.
        examples: these pairs: (pair, its sample, method -> its localisation, the annotation [H, W] or None).
        settings: method -> its settings, as the localisations told them.
        labels: (sample, prototype) -> the sample's class index.
        places: (sample, prototype) -> (file of the chunk, row in it, annotated share of the image or None).
        unlocated: method -> how many pairs it located nothing on.
    """

    def __init__(
        self, panels: int, folder: str | Path | None = None, file_of: Callable[[int, str], str] | None = None
    ) -> None:
        """Args:
        panels: how many pairs to keep whole.
        folder: the output folder, whose ``examples/`` is written; a temporary one where it is not known yet.
        file_of: from a sample's index and image_id to the name of its file; the image_id is one where None.
        """
        self._file_of = file_of or (lambda index, image_id: image_id)
        self.panels = panels
        self.examples: list[tuple[Pair, Sample, dict[str, Localisation], np.ndarray | None]] = []
        self.settings: dict[str, Mapping[str, object]] = {}
        self.labels: dict[tuple[int, int], int] = {}
        self.places: dict[tuple[int, int], tuple[str, int, float | None]] = {}
        self.unlocated: dict[str, int] = {}
        self._own = tempfile.TemporaryDirectory(prefix="protomask-") if folder is None else None
        self._folder = Path(folder if self._own is None else self._own.name)  # type: ignore[arg-type]
        self._chunks: list[str] = []
        self._infos: list[list[ImageInfo]] = []
        self._thumbnails: set[str] = set()

    def see(
        self, pairs: Sequence[Pair], samples: Sequence[Sample], found: Mapping[str, Localisation], truth: Truth
    ) -> None:
        """Called by :func:`protomask.evaluation.evaluate` with every chunk of n pairs, each with its own sample."""
        if not pairs or not found:
            return
        name = f"{len(self._chunks):05d}"
        self._chunks.append(name)
        folder = self._folder / EXAMPLES
        annotations = None if truth.regions is None else truth.regions.cpu().numpy()
        write_chunk(folder / f"{name}.npz", found, annotations, [pair.index for pair in pairs])
        files = [self._file_of(pair.index, sample.image_id) for pair, sample in zip(pairs, samples, strict=True)]
        infos = [ImageInfo(s.image_id, s.geometry, file) for s, file in zip(samples, files, strict=True)]
        self._write_entries(folder / f"{name}.entries.json", infos, found)
        for row, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
            self._thumbnail(folder, pair.index, sample)
            self.labels[pair.index, pair.prototype] = sample.label
            area = None if annotations is None or not annotations[row].any() else float(annotations[row].mean())
            self.places[pair.index, pair.prototype] = (f"{name}.npz", row, area)
        for method, record in found.items():
            self.settings.setdefault(method, dict(record.settings))
            self.unlocated[method] = self.unlocated.get(method, 0) + int((~record.located).sum())
        for row in range(min(len(pairs), self.panels - len(self.examples))):
            one = {method: record[row : row + 1] for method, record in found.items()}
            self.examples.append((pairs[row], samples[row], one, gallery.annotation_of(truth, row)))

    def finish(self, out: Path, pairs: Sequence[Pair], names: Sequence[str]) -> None:
        """Put ``examples/`` and ``regions.json`` in their places, and remove what an earlier run left in ``examples/``.

        Args:
            out: the output folder.
            pairs: all, in the order of the tables.
            names: of all prototypes.
        """
        folder = out / EXAMPLES
        if self._folder.resolve() != out.resolve() and self._chunks:
            shutil.copytree(self._folder / EXAMPLES, folder, dirs_exist_ok=True)
        write_entries(out / "regions.json", self._pieces(folder), names)
        places = [self.places.get((pair.index, pair.prototype)) for pair in pairs]
        write_json(folder / INDEX, {"pairs": places})
        wanted = {f"{name}.npz" for name in self._chunks} | self._thumbnails
        for pattern in ("[0-9]*.npz", "[0-9]*.jpg", "[0-9]*.entries.json"):
            for path in folder.glob(pattern):
                if path.name not in wanted:
                    path.unlink()
        if self._own is not None:
            self._own.cleanup()

    def _thumbnail(self, folder: Path, index: int, sample: Sample) -> None:
        name = thumbnail_name(index)
        if name not in self._thumbnails:
            write_thumbnail(folder / name, sample.image)
            self._thumbnails.add(name)

    def _write_entries(self, path: Path, infos: list[ImageInfo], found: Mapping[str, Localisation]) -> None:
        shown = [record for method, record in found.items() if not is_control(method)]
        entries = [entry for record in shown for entry in entries_of(record, infos)]
        write_json(path, {"entries": entries})
        self._infos.append(infos)

    def _pieces(self, folder: Path) -> Iterator[tuple[list[dict[str, Any]], list[ImageInfo]]]:
        for name, infos in zip(self._chunks, self._infos, strict=True):
            yield read_json(folder / f"{name}.entries.json")["entries"], infos
