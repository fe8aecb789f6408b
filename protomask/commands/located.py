"""What ``protomask locate`` leaves behind, put together from stored shards, one chunk in memory at a time."""

from __future__ import annotations

import re
from collections import Counter
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
from protomask.jobs.folder import Folder, remove
from protomask.loading import Loaded
from protomask.records import Localisation
from protomask.store import ImageInfo, Run, Shard, ShardPlan, write_entries
from protomask.visualise.figures import save_figure

_NUMBERS = ("activation", "activation_after", "kept", "x0", "y0", "x1", "y1")
ROWS = 10  # of "this looks like that", which with hundreds would be a picture that nothing opens
_OURS = re.compile(r"panels/.+-[0-9a-f]{12}-prototype-[0-9]+\.png|looks-like/.+-[0-9a-f]{12}\.png")
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


def draw(folder: Folder, loaded: Loaded, method: str, images: int | None, *, progress: bool) -> set[str]:
    """The panels of a run's pairs, and this-looks-like-that per image, of what is not drawn yet; others are removed.

    Args:
        folder: of the run.
        loaded: the model.
        method: whose regions the explanations show; the other methods stand beside it in the panels.
        images: only the first so many of the plan; all where None.
        progress: show a progress bar.

    Returns:
        The pictures in the folder, as in ``panels/x.png``.
    """
    run = folder.run
    wanted = len(run.plan.items) if images is None else images
    together: dict[int, list[list[ShardPlan]]] = {}  # an image with many targets is in several chunks
    for chunk in run.plan.chunks:
        if chunk[0].start < wanted and all(map(run.stored, chunk)):
            together.setdefault(chunk[0].start, []).append(chunk)
    names: set[str] = set()
    with tqdm(total=len(together), desc="pictures", unit="chunk", disable=not progress) as bar:
        for chunks in together.values():
            done = digest("pictures", [shard.key for c in chunks for shard in c], min(wanted, chunks[0][0].stop))
            made = folder.drawn(done)
            if made is None:
                made = _draw_chunks(folder, loaded, chunks, method, wanted)
                folder.set_drawn(done, made)
            names.update(made)
            bar.update()
    _remove_others(folder.path, names)
    return names


def _draw_chunks(
    folder: Folder, loaded: Loaded, chunks: Sequence[list[ShardPlan]], method: str, wanted: int
) -> list[str]:
    """The pictures of some images, of which each chunk holds a part of the targets; the files' names."""
    region = str(folder.run.plan.settings["region"])
    names: list[str] = []
    strongest: dict[str, tuple[Sample, Localisation]] = {}
    counts: Counter[str] = Counter()
    for chunk in chunks:
        for sample, found in _located(folder.run, loaded, chunk, method, wanted):
            for row, prototype in enumerate(found[method].targets.prototypes.tolist()):
                names.append(f"panels/{safe_name(sample.image_id)}-prototype-{prototype}.png")
                save_figure(gallery.panel(loaded, sample, found, row, region=region), folder.path / names[-1])
            before = [strongest[sample.image_id][1]] if sample.image_id in strongest else []
            strongest[sample.image_id] = sample, _strongest(Localisation.join([*before, found[method]]), ROWS)
            counts[sample.image_id] += len(found[method])
    for name, (sample, best) in strongest.items():
        figure = gallery.likeness(loaded, sample, best, range(len(best)), region=region, count=counts[name])
        if figure is not None:
            names.append(f"looks-like/{safe_name(sample.image_id)}.png")
            save_figure(figure, folder.path / names[-1])
    return names


def _located(
    run: Run, loaded: Loaded, chunk: list[ShardPlan], method: str, wanted: int
) -> Iterator[tuple[Sample, dict[str, Localisation]]]:
    """Each image of a chunk with its pairs by method, the main one last; nothing where that failed."""
    shards = {planned.method: run.read(planned) for planned in chunk[::-1]}
    found = {name: shard.found for name, shard in shards.items() if shard.found is not None}
    if method not in found:
        return
    places = {item["id"]: index for index, item in enumerate(run.plan.items[chunk[0].start : chunk[0].stop])}
    # Where one method failed on an image, its rows are of other pairs.
    same = {name: record for name, record in found.items() if list(record.targets) == list(found[method].targets)}
    window = run.plan.settings["window"]
    for index, info in enumerate(_placed(run, chunk[0], shards[method])):
        if chunk[0].start + places[info.image_id] < wanted:
            own = found[method].targets.images == index
            sample = make_sample(info.image_id, read_image(info.file_name, window), 0, loaded.size)
            yield sample, {name: record[own] for name, record in same.items()}


def _strongest(found: Localisation, most: int) -> Localisation:
    """The pairs of the highest activation, the highest first; no more than so many."""
    return found[found.activations_before.argsort(descending=True, stable=True)[:most]]


def _remove_others(out: Path, names: set[str]) -> None:
    """Remove pictures of earlier runs: what has the form of our names and is not among them."""
    for path in (*(out / "panels").glob("*.png"), *(out / "looks-like").glob("*.png")):
        name = f"{path.parent.name}/{path.name}"
        if name not in names and _OURS.fullmatch(name):
            remove(path)


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
