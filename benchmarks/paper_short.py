"""``mdm-paper-short``, to stand in tables where the authors' procedure at 48,024 passes a pair cannot: a plugin.

A tenth of the steps at ten times the rate, 4,824 passes. How far it agrees with the full procedure is to be measured
wherever it stands in for it (``docs/search-protocol.md``). ::

    protomask evaluate demo:protopnet --data planted --plugin benchmarks/paper_short.py \\
        --methods mdm-paper-short,mdm --pairs 20 --out scores
"""

from __future__ import annotations

from dataclasses import dataclass

import protomask
from protomask.localisers.mdm_paper import MDMPaper


@protomask.register("mdm-paper-short", "The MDM authors' procedure with a tenth of its steps, at ten times the rate.")
@dataclass(frozen=True)
class Shortened(MDMPaper):
    """:class:`MDMPaper` with other defaults; its docstring tells the procedure and the settings."""

    steps: int = 201
    learning_rate: float = 0.03
