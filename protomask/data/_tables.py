"""Text tables whose first column is an id, read strictly: every complaint names the file and the line."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from protomask.errors import DataError, expected
from protomask.opening import read_text

_DIGITS = 18  # of an integer that 64 bits hold; Python refuses to read one of thousands
_SHOWN = 200  # characters of a cell in a message


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        path: the file.
        line: its number, from 1.
        cells: the text of each column.
    """

    path: Path
    line: int
    cells: tuple[str, ...]

    def complaint(self, wanted: str, came: object) -> DataError:
        """The error that says what this line should have held."""
        return DataError(expected(f"{self.path}, line {self.line}", wanted, came))

    def text(self, column: int, name: str) -> str:
        """The column's text, without blanks around it, or DataError where there is none."""
        if not self.cells[column].strip():
            raise self.complaint(f"{name} to be given", "an empty cell")
        return self.cells[column].strip()

    def count(self, column: int, name: str) -> int:
        """The column as an integer of at least 0, or DataError."""
        text = self.cells[column]
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
            raise self.complaint(f"{name} to be an integer of at least 0", shortened(text))
        return int(text)

    def number(self, column: int, name: str) -> float:
        """The column as a finite number, or DataError."""
        text = self.cells[column]
        try:
            # Python would also take 1_000 and the digits of other scripts.
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.complaint(f"{name} to be a finite number", shortened(text))
        return value

    def flag(self, column: int, name: str) -> bool:
        """The column as 0 or 1, or DataError."""
        if self.cells[column] not in ("0", "1"):
            raise self.complaint(f"{name} to be 0 or 1", shortened(self.cells[column]))
        return self.cells[column] == "1"


def shortened(text: str) -> str:
    """A cell as a message shows it: in quotes, and cut where a line would drown the message."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"


def read_rows(path: Path, columns: Sequence[str], *, open_end: bool = False) -> list[Row]:
    """The lines of a file of columns separated by blanks, empty lines left out.

    UTF-8 with or without a byte order mark, LF or CRLF. With ``open_end`` the last column is the rest of the line,
    blanks included.

    Raises:
        DataError: no such file, no UTF-8, no line, or a line with another number of columns.
    """
    text = read_text(path, "a table of " + " ".join(columns)).replace("\r\n", "\n").replace("\r", "\n")
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        cells = tuple(content.strip().split(None, len(columns) - 1 if open_end else -1))
        if not cells:
            continue
        row = Row(path, line, cells)
        if len(cells) != len(columns):
            raise row.complaint(
                f"{len(columns)} columns ({' '.join(columns)})", f"{len(cells)}: {shortened(content.strip())}"
            )
        rows.append(row)
    if not rows:
        raise DataError(expected(str(path), "a table of " + " ".join(columns), "an empty file"))
    return rows


def by_id(rows: Sequence[Row], name: str, known: Collection[int] | None = None, source: str = "") -> dict[int, Row]:
    """The rows by the id in their first column; with ``known`` exactly those ids, which stand in the file ``source``.

    Raises:
        DataError: an id that is no integer, comes twice, is not in ``known``, or is missing.
    """
    found: dict[int, Row] = {}
    for row in rows:
        key = row.count(0, name)
        if key in found:
            raise row.complaint(f"each {name} once", f"{key} again, first in line {found[key].line}")
        if known is not None and key not in known:
            raise row.complaint(f"a {name} of {source}", key)
        found[key] = row
    missing = [key for key in known or () if key not in found]
    if missing:
        wanted = f"a line for every {name} of {source}"
        raise DataError(expected(str(rows[0].path), wanted, f"none for {len(missing)} of them, first {missing[0]}"))
    return found
