"""What stands beside the pairs: ``prototypes.csv`` and ``agreement.csv``, one row per item, method and metric. ::

    prototype,prototype_name,class,method,metric,value
    3,Cardinal / 3,Cardinal,mdm,consistency,1

    item,image,group,models,method,metric,value
    0,birds/12.png,birds/12.png,first and second,mdm,agreement,0.71

An undefined score is empty.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protomask.errors import DataError, ResourceError, expected
from protomask.files import write_with
from protomask.metrics import Summary, summarise
from protomask.visualise.wording import printable

Items = tuple[tuple[str, ...], ...]
Values = Mapping[str, Mapping[str, np.ndarray]]
"""method -> metric -> [N] float64, NaN where undefined."""


@dataclass(frozen=True)
class Kind:
    """A table of this form.

    Attributes:
        file: its name.
        keys: the columns before method, metric and value; the first counts or names the item by an integer.
        group: the column that intervals are clustered by.
    """

    file: str
    keys: tuple[str, ...]
    group: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.keys, "method", "metric", "value")


PROTOTYPES = Kind("prototypes.csv", ("prototype", "prototype_name", "class"), "prototype")
AGREEMENT = Kind("agreement.csv", ("item", "image", "group", "models"), "group")


@dataclass(frozen=True, eq=False)
class Beside:
    """One such table.

    Attributes:
        kind: which.
        items: N, what the columns before method say of each.
        values: method -> metric -> [N] float64, NaN where undefined.
    """

    kind: Kind
    items: Items = ()
    values: Values = field(default_factory=dict)

    def column(self, name: str) -> tuple[str, ...]:
        """[N] what one of the columns says."""
        return tuple(item[self.kind.keys.index(name)] for item in self.items)

    def summaries(self, seed: int) -> dict[str, dict[str, Summary]]:
        """method -> metric -> mean and 95 % bootstrap interval, over prototypes, or clustered by group."""
        groups = self.column(self.kind.group)
        return {
            method: {metric: summarise(column, groups, seed=seed) for metric, column in columns.items()}
            for method, columns in self.values.items()
        }


def write_beside(folder: Path, table: Beside) -> bool:
    """The table as CSV, whole or not at all; where it holds nothing, that of an earlier run is removed.

    Returns:
        Whether there is a file.

    Raises:
        ResourceError: the file cannot be written or removed.
    """
    path = folder / table.kind.file
    if not table.values:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(expected(str(path), "a file that can be removed", error)) from error
        return False

    def write(place: Path) -> None:
        with place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.kind.columns)
            for k, item in enumerate(table.items):
                for method, columns in table.values.items():
                    for metric, column in columns.items():
                        value = f"{column[k]:.9g}" if math.isfinite(column[k]) else ""
                        writer.writerow((*map(printable, item), method, metric, value))

    write_with(path, write)
    return True


def read_beside(folder: Path, kind: Kind) -> Beside:
    """What :func:`write_beside` wrote; an empty table where there is no file.

    Raises:
        DataError: not of that form.
    """
    path = folder / kind.file
    if not path.is_file():
        return Beside(kind)
    rows: dict[tuple[str, ...], int] = {}
    cells: list[tuple[int, str, str, float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != kind.columns:
                raise ValueError("other columns")
            for *keys, method, metric, value in reader:
                if len(keys) != len(kind.keys):
                    raise ValueError(f"a line of {len(keys) + 3} cells")
                int(keys[0])
                row = rows.setdefault(tuple(keys), len(rows))
                cells.append((row, method, metric, float(value) if value else math.nan))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(expected(str(path), f"a table with the columns {', '.join(kind.columns)}", error)) from error
    return Beside(kind, tuple(rows), _columns(cells, len(rows)))


def _columns(cells: Sequence[tuple[int, str, str, float]], count: int) -> dict[str, dict[str, np.ndarray]]:
    values: dict[str, dict[str, np.ndarray]] = {}
    for row, method, metric, value in cells:
        values.setdefault(method, {}).setdefault(metric, np.full(count, math.nan))[row] = value
    return values
