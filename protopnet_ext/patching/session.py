"""The state that the hooks of one patch share: what was seen, what was located, what is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from protomask.patching import Tally
from protomask.redrawing import Redrawer, Values
from protopnet_ext.descendants import wrap

from .seen import Pair, Seen

UNKNOWN = "map not recognised"
AMBIGUOUS = "map of several different prototypes"
TRAINING = "the model was in training mode, in which a batch's images change each other's maps"
REPLICA = "seen inside a multi-GPU replica, which has no parameters of its own: let one GPU do it"


class Session(Redrawer):
    """What one patch knows while code runs.

    Attributes:
        seen: the last batches, oldest first.
        pushing: true inside a push, which is drawn again as a whole: ``cv2.resize`` only resizes then.
        search: the search for nearest patches that is running, if any; its own module knows what it is.
    """

    def __init__(self, options: Mapping[str, Any], remember: int, tally: Tally, **statistics: Values | None) -> None:
        super().__init__(options, wrap, tally, **statistics)
        self.seen: deque[Seen] = deque(maxlen=remember)
        self.pushing = False
        self.search: object = None
        self._located: dict[tuple[int, Pair], tuple[Seen, np.ndarray | str]] = {}

    @contextmanager
    def push(self) -> Iterator[None]:
        """Inside, maps are left as they are."""
        before, self.pushing = self.pushing, True
        try:
            yield
        finally:
            self.pushing = before

    def identify(self, array: np.ndarray) -> tuple[Seen, Pair] | str | None:
        """The pair that a map [h, w] belongs to; a reason where it cannot be told; None where it is no map of ours."""
        if not any(batch.cells == array.shape for batch in self.seen):
            return None
        for batch in reversed(self.seen):
            pairs = batch.find(array)
            if pairs:
                return (batch, pairs[0]) if _same(batch, pairs) else AMBIGUOUS
        return UNKNOWN

    def map_of(self, batch: Seen, pair: Pair) -> np.ndarray | str:
        """The located map [H, W] of one pair, drawable, or the reason why there is none; each pair is located once."""
        if batch.training:
            return TRAINING
        if getattr(batch.module, "_is_replica", False):  # set by torch's DataParallel
            return REPLICA
        key = (id(batch), pair)
        if key not in self._located:
            alive = {id(b) for b in self.seen}
            self._located = {k: v for k, v in self._located.items() if k[0] in alive}
            self._located[key] = (batch, self.locate(batch.module, batch.images, [pair])[0])
        return self._located[key][1]


def _same(batch: Seen, pairs: Sequence[Pair]) -> bool:
    """Whether all pairs are one in effect: the same pixels, and prototypes with the same vector."""
    (image, prototype), *others = pairs
    vectors = getattr(batch.module, "prototype_vectors", None)
    for other, another in others:
        if other != image and not torch.equal(batch.images[other], batch.images[image]):
            return False
        if another == prototype:
            continue
        if vectors is None or not torch.equal(vectors[another], vectors[prototype]):
            return False
    return True
