"""Tables with a header line and commas, read strictly: every complaint names the file, the line and the column."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protomask.data._tables import Row, shortened
from protomask.errors import DataError, expected
from protomask.opening import read_text


@dataclass(frozen=True)
class Table:
    """A header and the lines below it.

    Attributes:
        path: the file.
        header: the columns' names, without blanks around them; columns without a name at the end are left out.
        rows: one per line that is not empty, with as many cells as the header has names.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, what: str, names: Sequence[str]) -> int:
        """Where the first of ``names`` stands that the header has, or DataError."""
        index = self.find(names)
        if index is None:
            wanted = f"a column for {what}, named {' or '.join(repr(n) for n in names)}"
            raise DataError(expected(f"{self.path}, line 1", wanted, ", ".join(self.header)))
        return index

    def find(self, names: Sequence[str]) -> int | None:
        """Where the first of ``names`` stands that the header has; None where it has none of them."""
        for name in names:
            if self.header.count(name) > 1:
                raise DataError(expected(f"{self.path}, line 1", f"the column {name!r} once", "it twice"))
            if name in self.header:
                return self.header.index(name)
        return None


def read_csv(path: Path) -> Table:
    """The table in a file: UTF-8 with or without a byte order mark, LF or CRLF, empty lines left out.

    Every line has as many cells as the header; empty cells at the end, as NIH's tables have them, may be there or not.

    Raises:
        DataError: no such file, no UTF-8, damaged quotes, no line below the header, or a line of another length.
    """
    rows: list[Row] = []
    header: tuple[str, ...] = ()
    width = 0
    for line, cells in _lines(path):
        filled = _stripped(cells)
        if not filled:
            continue
        if not header:
            header, width = filled, len(cells)
            continue
        row = Row(path, line, (*filled, *[""] * (len(header) - len(filled))))
        if len(filled) > len(header) or (len(cells) != width and len(cells) < len(header)):
            raise row.complaint(
                f"{len(header)} cells ({', '.join(header)})", f"{len(cells)}: {shortened(','.join(cells))}"
            )
        rows.append(row)
    if not rows:
        raise DataError(expected(str(path), "a table with a header and lines below it", "no line below a header"))
    return Table(path, header, tuple(rows))


def distinct(table: Table, column: int, what: str) -> Mapping[str, Row]:
    """The rows by the text of ``column``, in the file's order.

    Raises:
        DataError: an empty cell, or the same text twice.
    """
    found: dict[str, Row] = {}
    for row in table.rows:
        key = row.text(column, what)
        if key in found:
            raise row.complaint(f"each {what} once", f"{key} again, first in line {found[key].line}")
        found[key] = row
    return found


def read_names(path: Path) -> dict[str, int]:
    """A list with one name a line: the line number of each, empty lines left out.

    Raises:
        DataError: no such file, no UTF-8, no name, or one twice.
    """
    found: dict[str, int] = {}
    for line, content in enumerate(read_text(path, "a list of names").split("\n"), start=1):
        name = content.strip()
        if not name:
            continue
        if name in found:
            raise Row(path, line, (name,)).complaint("each name once", f"{name} again, first in line {found[name]}")
        found[name] = line
    if not found:
        raise DataError(expected(str(path), "a list with one name a line", "an empty file"))
    return found


def _lines(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    reader = csv.reader(io.StringIO(read_text(path, "a table"), newline=""), strict=True)
    try:
        return [(reader.line_num, tuple(cell.strip() for cell in cells)) for cells in reader]
    except csv.Error as error:
        raise DataError(expected(f"{path}, line {reader.line_num}", "cells separated by commas", error)) from error


def _stripped(cells: Sequence[str]) -> tuple[str, ...]:
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return tuple(cells[:end])
