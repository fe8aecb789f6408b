"""What ``protomask locate`` leaves behind, put together from stored shards, one chunk in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protomask import gallery
from protomask.commands.common import write_table
from protomask.data import Sample, make_sample, read_image
from protomask.files import safe_name
from protomask.jobs.digests import digest
from protomask.jobs.folder import Folder
from protomask.loading import Loaded
from protomask.records import Localisation
from protomask.store import ImageInfo, Run, Shard, ShardPlan, write_entries
from protomask.visualise.figures import save_figure

_NUMBERS = ("activation", "activation_after", "kept", "x0", "y0", "x1", "y1")
COLUMNS = ("image", "prototype", "name", "method", *_NUMBERS, "note")


def write_tables(out: Path, loaded: Loaded, run: Run, method: str) -> int:
    """``regions.json`` of one method and ``regions.csv`` of all; how many images were located by it."""
    located = 0

    def pieces() -> Iterator[tuple[Sequence[Mapping[str, Any]], Sequence[ImageInfo]]]:
        nonlocal located
        for planned in run.plan.shards:
            if planned.method == method and run.stored(planned):
                shard = run.read(planned)
                if planned.low == 0 and shard.found is not None:
                    located += len(set(shard.found.targets.images.tolist()))
                yield shard.entries, _placed(run, planned, shard)

    write_entries(out / "regions.json", pieces(), loaded.names())
    shards = (run.read(planned) for chunk in run.plan.chunks for planned in chunk[::-1] if run.stored(planned))
    write_table(out / "regions.csv", COLUMNS, (row for shard in shards for row in _rows(loaded, shard)))
    return located


def _placed(run: Run, planned: ShardPlan, shard: Shard) -> list[ImageInfo]:
    """A shard's images with the paths of this run: they may have been moved since the shard was computed."""
    paths = {item["id"]: item["path"] for item in run.plan.items[planned.start : planned.stop]}
    return [replace(info, file_name=paths[info.image_id]) for info in shard.images]


def draw(folder: Folder, loaded: Loaded, method: str, images: int | None, *, progress: bool) -> None:
    """The panels of a run's pairs, and this-looks-like-that per image, of what is not drawn yet.

    Args:
        folder: of the run.
        loaded: the model.
        method: whose regions the explanations show; the other methods stand beside it in the panels.
        images: only the first so many of the plan; all where None.
        progress: show a progress bar.
    """
    run = folder.run
    wanted = len(run.plan.items) if images is None else images
    chunks = [chunk for chunk in run.plan.chunks if chunk[0].start < wanted and all(map(run.stored, chunk))]
    with tqdm(total=len(chunks), desc="pictures", unit="chunk", disable=not progress) as bar:
        for chunk in chunks:
            done = digest("drawn", [shard.key for shard in chunk], min(wanted, chunk[0].stop))
            if not folder.drawn(done):
                _draw_chunk(folder, loaded, chunk, method, wanted)
                folder.set_drawn(done)
            bar.update()


def _draw_chunk(folder: Folder, loaded: Loaded, chunk: list[ShardPlan], method: str, wanted: int) -> None:
    shards = {planned.method: folder.run.read(planned) for planned in chunk[::-1]}
    found = {name: shard.found for name, shard in shards.items() if shard.found is not None}
    if method not in found:
        return
    places = {item["id"]: index for index, item in enumerate(folder.run.plan.items[chunk[0].start : chunk[0].stop])}
    # Where one method failed on an image, its rows are of other pairs.
    same = {name: record for name, record in found.items() if list(record.targets) == list(found[method].targets)}
    for index, info in enumerate(_placed(folder.run, chunk[0], shards[method])):
        if chunk[0].start + places[info.image_id] < wanted:
            sample = make_sample(info.image_id, read_image(info.file_name), 0, loaded.size)
            _draw(loaded, sample, index, same, folder.path, str(folder.run.plan.settings["region"]))


def _draw(
    loaded: Loaded, sample: Sample, index: int, found: dict[str, Localisation], out: Path, region: str
) -> None:
    main = list(found.values())[-1]
    rows = [row for row, (image, _) in enumerate(main.targets) if image == index]
    name = safe_name(sample.image_id)
    for row in rows:
        prototype = int(main.targets.prototypes[row])
        figure = gallery.panel(loaded, sample, found, row, region=region)
        save_figure(figure, out / "panels" / f"{name}-prototype-{prototype}.png")
    figure = gallery.likeness(loaded, sample, main, rows, region=region)
    if figure is not None:
        save_figure(figure, out / "looks-like" / f"{name}.png")


def _rows(loaded: Loaded, shard: Shard) -> Iterator[tuple[object, ...]]:
    if shard.found is None:
        return
    found = shard.found
    for row, (image, prototype) in enumerate(found.targets):
        info = shard.images[image]
        box = info.geometry.to_source(found.boxes[row].numpy()).round(1).tolist()
        numbers = (found.activations_before[row], found.activations_after[row], found.scores[row])
        yield (
            info.image_id,
            prototype,
            loaded.model.describe(prototype),
            found.method,
            *(f"{float(v):.5f}" for v in numbers),
            *(box if found.located[row] else [""] * 4),
            found.reasons[row],
        )
