"""JSON as the files of results use it: objects only, null for what is no number. Reading runs no code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from protomask.errors import DataError, expected
from protomask.files import write_text
from protomask.opening import check_regular

FORMAT_VERSION = 1


def finite(value: float | Tensor) -> float | None:
    """The number, None where it is NaN or infinite."""
    number = float(value)
    return number if math.isfinite(number) else None


def number(value: float | None) -> float:
    """The number, NaN for null."""
    return math.nan if value is None else float(value)


def dumped(value: object) -> bytes:
    """A value as JSON on one line."""
    return json.dumps(value, allow_nan=False).encode()


def write_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """An object as JSON, whole or not at all; ResourceError where it cannot be written."""
    write_text(path, json.dumps(content, allow_nan=False, indent=indent))


def read_json(path: str | Path) -> Any:
    """The object that a JSON file holds.

    Raises:
        DataError: no such file, no JSON, or no object.
    """
    path = Path(path)
    check_regular(path, "a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(expected(str(path), "a JSON file", error)) from error
    if not isinstance(content, dict):
        raise DataError(expected(str(path), "a JSON object", type(content).__name__))
    return content
