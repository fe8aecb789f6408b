"""Maps of earlier evaluations in place of locating again, to score them by further metrics: a plugin.

In one folder and with the same code ``protomask evaluate`` does so itself; this is for maps that an earlier version of
the code made, or that another folder holds. Every method that a folder holds is answered from its shards, under its own
name, where the network's weights and the pair are those of the folder (of several folders the last that has the
method counts); under other weights, as ``randomisation`` has them, and on other pairs the method itself runs, and so
do the controls always. **Shards from before 2026-11-30 hold maps to 16 bits without ranks**: most of what MDM ranks
outside its mask became equal there, at .01 to .03 of full insertion on planted scenes, and nearly equal pixels of
other methods, at .002 of causal scores of birds. Locate MDM again. Whether a method's code is still the same is for
you to know: the commits stand in the tables. ::

    PROTOMASK_KEPT=scores/first:scores/second protomask evaluate runs/cub --data cub --root CUB_200_2011 \\
        --plugin benchmarks/kept_maps.py --methods rise,extremal --metrics deletion@road --out scores/more
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from protomask.errors import InputError, expected
from protomask.jobs.digests import digest_weights
from protomask.localisers import LOCALISERS, Localiser, Maps, Request, image_passes_of, settings_of
from protomask.reporting.results import read_results
from protomask.store import read_run
from protomask.store.runs import Run
from protomask.store.shards import Shard

FOLDERS = "PROTOMASK_KEPT"


@dataclass(frozen=True, eq=False)
class Held:
    """What a folder holds of one method.

    Attributes:
        weights: digest of the network's.
        places: (image id, prototype) -> (chunk's shard, row in it).
        read: a shard by its number; the last one read is remembered.
    """

    weights: str
    places: Mapping[tuple[str, int], tuple[int, int]]
    read: Callable[[int], Shard]

    def maps(self, request: Request) -> Maps | None:
        """The maps of the request's pairs; None where one is not held, or the network is another."""
        ids = request.image_ids
        if ids is None or digest_weights(request.model) != self.weights:
            return None
        places = [self.places.get((ids[image], prototype)) for image, prototype in request.targets]
        if not places or None in places:
            return None
        rows, fills, masks = [], set(), set()
        for number, row in (place for place in places if place is not None):
            found = self.read(number).found
            assert found is not None  # a place names a row of it
            rows.append(found.maps[row])
            fills.add(found.fill)
            masks.add(found.masks)
        return Maps(torch.stack(rows).to(request.images), masks=masks.pop(), fill=fills.pop())


@dataclass(frozen=True)
class Kept:
    """A method whose maps lie in a folder; its cost and settings are the method's own."""

    method: Localiser
    held: Held = field(compare=False, repr=False)

    @property
    def passes(self) -> float:
        """Of the method: what its maps did cost."""
        return self.method.passes

    @property
    def image_passes(self) -> float:
        """Of the method."""
        return image_passes_of(self.method)

    @property
    def settings(self) -> dict[str, object]:
        """Of the method."""
        return settings_of(self.method)

    def __call__(self, request: Request) -> Maps:
        """The maps as they were, else what the method finds."""
        found = self.held.maps(request)
        return self.method(request) if found is None else found


def hold(run: Run, method: str, weights: str) -> Held:
    """What a complete or unfinished run holds of a method."""
    shards = [shard for shard in run.plan.shards if shard.method == method and not shard.study and run.stored(shard)]
    last: dict[int, Shard] = {}

    def read(number: int) -> Shard:
        if number not in last:
            last.clear()
            last[number] = run.read(shards[number])
        return last[number]

    places = {}
    for number, planned in enumerate(shards):
        items = run.plan.items[planned.start : planned.stop]
        for row, item in enumerate(read(number).rows.tolist()):
            places[str(items[item][2]), int(items[item][1])] = number, row
    return Held(weights, places, read)


def keep(folder: str) -> None:
    """Answers for every method of a folder from now on."""
    run, about = read_run(Path(folder)), read_results(folder).about
    for method in about["methods"]:
        if method not in LOCALISERS:
            raise InputError(expected(FOLDERS, "folders of registered methods", f"{method} in {folder}"))
        known = LOCALISERS[method]
        if not known.control:
            LOCALISERS[method] = replace(known, make=_Maker(known.make, hold(run, method, about["model"]["digest"])))


@dataclass(frozen=True, eq=False)
class _Maker:
    """Makes the method as it was registered, and lets the folder answer for it."""

    make: Callable[..., Localiser]
    held: Held

    def __call__(self, **settings: object) -> Kept:
        return Kept(self.make(**settings), self.held)


for _folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
    keep(_folder)
