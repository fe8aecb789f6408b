"""Fail where a notebook is committed with outputs: they go stale, and pictures bloat the history."""

from __future__ import annotations

import json
import sys
from pathlib import Path

kept = [
    path
    for path in sys.argv[1:]
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    if cell.get("outputs") or cell.get("execution_count")
]
if kept:
    raise SystemExit(f"notebooks with outputs: {', '.join(sorted(set(kept)))}")
