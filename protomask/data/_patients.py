"""Splits in which a patient's images stay together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from protomask.checks import check_count, check_number
from protomask.errors import InputError, expected


def check_shares(name: str, shares: Sequence[float]) -> tuple[float, ...]:
    """``shares`` as they came, if they lie in [0, 1] and sum to 1; else InputError."""
    if not isinstance(shares, Sequence) or len(shares) != 3:
        raise InputError(expected(name, "the shares of train, dev and test", repr(shares)))
    values = tuple(float(check_number(f"{name}[{k}]", share, 0, 1)) for k, share in enumerate(shares))
    if not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise InputError(expected(name, "shares that sum to 1", values))
    return values


def split_patients(patients: Iterable[str], shares: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """Which split each patient is in: about the wanted share of the patients (not of their images) in each.

    The patients are ranked by the SHA-256 of ``"seed/patient"`` and cut where the running sum of the shares, times
    their number, rounds to: the split depends on names alone, not on the machine, the order or the images at hand.

    Args:
        patients: names, each as often as it likes.
        shares: of each split, in the order in which the ranking is cut; they sum to 1.
        seed: of the ranking, at least 0.
    """
    check_count("split_seed", seed, 0)
    ranked = sorted(set(patients), key=lambda name: digest(seed, name))
    found: dict[str, str] = {}
    start, total = 0, 0.0
    for split, share in shares.items():
        total += share
        stop = round(total * len(ranked))
        found.update(dict.fromkeys(ranked[start:stop], split))
        start = stop
    return found


def digest(seed: int, name: str) -> bytes:
    """32 bytes that look random and depend on seed and name alone."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
