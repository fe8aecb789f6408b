"""``protomask methods`` and ``protomask metrics``: what there is, a name and a sentence per line."""

from __future__ import annotations

import argparse

from protomask.localisers import LOCALISERS
from protomask.metrics import METRICS


def methods(args: argparse.Namespace) -> None:
    """Print every localiser."""
    _print({name: entry.sentence for name, entry in LOCALISERS.items()})


def metrics(args: argparse.Namespace) -> None:
    """Print every metric and its direction."""
    arrow = {True: "Higher is better.", False: "Lower is better."}
    _print({name: f"{m.sentence} {arrow[m.higher_is_better]}" for name, m in METRICS.items()})


def _print(sentences: dict[str, str]) -> None:
    width = max(map(len, sentences)) + 2
    for name, sentence in sentences.items():
        print(f"{name:<{width}}{sentence}")
