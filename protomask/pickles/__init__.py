"""Pickles read as data: tensors and plain values come out, everything else as an inert record, and nothing runs."""

from __future__ import annotations

from protomask.pickles.harmless import HARMLESS, never
from protomask.pickles.inert import Global, Inert, printable
from protomask.pickles.machine import PickleError
from protomask.pickles.reading import FORMS, Pickled, read_pickled
from protomask.pickles.rebuild import ALLOWED
from protomask.pickles.showing import shown

__all__ = [
    "ALLOWED",
    "FORMS",
    "HARMLESS",
    "Global",
    "Inert",
    "PickleError",
    "Pickled",
    "never",
    "printable",
    "read_pickled",
    "shown",
]
