"""The pairs of an evaluation: drawn once, stored with what their samples contain, drawn again when that has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from protomask.data.planted import Planted
from protomask.data.sample import Dataset
from protomask.errors import DataError
from protomask.jobs.digests import digest, digest_model, digest_sample, versions
from protomask.jobs.folder import locked
from protomask.jobs.threads import threads
from protomask.loading import Loaded, Relabelled
from protomask.model import device_of
from protomask.pairs import Pair, PairSet, draw_pairs
from protomask.store._json import read_json, write_json
from protomask.store.plans import SHARDS


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pairs with the digests of their samples.

    Attributes:
        pairs: what was drawn.
        digests: one per pair.
        model: digest of the model, from before it was used.
        skipped: reasons, of samples that could not be read.
        unread: their indices; where one can be read now, pairs are drawn again.
    """

    pairs: PairSet
    digests: tuple[str, ...]
    model: str
    skipped: tuple[str, ...] = ()
    unread: tuple[int, ...] = ()


def drawn_pairs(
    out: Path,
    loaded: Loaded,
    dataset: Dataset,
    data: Mapping[str, Any],
    *,
    pairs: int,
    seed: int,
    batch: int,
    clear: bool,
    thread_count: int,
    strict: bool = False,
    progress: bool = False,
) -> Drawn:
    """The pairs of an evaluation, from the folder where they were drawn before; one process draws, others wait.

    Args:
        out: the output folder.
        loaded: the model.
        dataset: its samples.
        data: JSON values that tell the data set from others.
        pairs, seed, batch, clear: as :func:`protomask.pairs.draw_pairs` takes them.
        thread_count: of the processor.
        strict: stop at the first sample that cannot be read.
        progress: show a progress bar.
    """
    model = digest_model(loaded.model)
    about = [model, device_of(loaded.model).type, dict(data), dataset.name, len(dataset)]
    names = [list(dataset.class_names), list(dataset.part_names), list(loaded.size)]
    key = digest("pairs", about, names, pairs, seed, batch, clear, thread_count, versions())
    path = out / SHARDS / f"pairs-{key}.json"
    content = contents(dataset, data)
    with locked(out, "drawing"):
        stored = _stored(path, content, model)
        if stored is not None and not (strict and stored.skipped):
            return stored
        skipped: dict[int, str] = {}
        told: dict[str, Any] = {} if strict else {"skip": lambda index, error: skipped.update({index: str(error)})}
        with threads(thread_count), tqdm(total=pairs, desc="pairs", unit="pair", disable=not progress) as bar:
            drawn = draw_pairs(
                loaded.model, dataset, pairs, seed=seed, batch=batch, clear=clear, progress=bar.update, **told
            )
        result = Drawn(
            drawn, tuple(content(pair.index) for pair in drawn.pairs), model, tuple(skipped.values()), tuple(skipped)
        )
        write_json(path, _spelled(result))
        return result


def pair_of(item: Sequence[Any]) -> Pair:
    """A pair from the values that :func:`spell_pair` made of it."""
    return Pair(*item)


def spell_pair(pair: Pair) -> list[Any]:
    """A pair as JSON values."""
    return list(asdict(pair).values())


def contents(dataset: Dataset, data: Mapping[str, Any]) -> Callable[[int], str]:
    """What a sample contains, by index: its digest, or, of scenes that are generated, what generates it."""
    inner = dataset.dataset if isinstance(dataset, Relabelled) else dataset
    if isinstance(inner, Planted):
        drawn = [inner.scene, inner.split, inner.size, inner.classes, inner.seed, dict(data)]
        return lambda index: digest("planted", drawn, index)
    return lambda index: digest_sample(dataset[index])


def _stored(path: Path, content: Callable[[int], str], model: str) -> Drawn | None:
    """What was drawn before, if every sample still contains what it did."""
    if not path.is_file():
        return None
    try:
        told = read_json(path)
        pairs = tuple(pair_of(item) for item in told["pairs"])
        drawn = Drawn(
            PairSet(pairs, told["drawn"], told["qualified"], told["kind"]),
            tuple(told["digests"]),
            model,
            tuple(told["skipped"]),
            tuple(told["unread"]),
        )
        same = not any(_readable(content, index) for index in drawn.unread) and all(
            content(pair.index) == known for pair, known in zip(pairs, drawn.digests, strict=True)
        )
    except (DataError, LookupError, TypeError, ValueError):
        return None
    return drawn if same else None


def _spelled(drawn: Drawn) -> dict[str, Any]:
    return {
        "pairs": [spell_pair(pair) for pair in drawn.pairs.pairs],
        "drawn": drawn.pairs.drawn,
        "qualified": drawn.pairs.qualified,
        "kind": drawn.pairs.kind,
        "digests": list(drawn.digests),
        "skipped": list(drawn.skipped),
        "unread": list(drawn.unread),
    }


def _readable(content: Callable[[int], str], index: int) -> bool:
    try:
        content(index)
    except DataError:
        return False
    return True
