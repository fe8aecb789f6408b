"""How the benchmarks' tables spell what they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protomask.metrics import Summary


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spelt(summary: Summary) -> str:
    if summary.n == 0:
        return "-"
    if not np.isfinite(summary.low):
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} [{summary.low:.3f}, {summary.high:.3f}]"


def spelt_p(p: float) -> str:
    if not np.isfinite(p):
        return ""
    return "p < .001" if p < 0.001 else f"p {p:.3f}".replace("0.", ".")
