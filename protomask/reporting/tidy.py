"""``pairs.csv`` and ``pairs.parquet``: one row per pair, method and metric, for any statistics program. ::

    pair,image,group,class,prototype,prototype_name,part,method,metric,value
    0,birds/12.png,birds/12.png,Cardinal,3,Cardinal / 3,head,mdm,energy,0.71

An undefined score is empty in the CSV file and null in the Parquet file; so that names such as ``None`` and ``NA`` stay
names, read the CSV file by ``pandas.read_csv(file, keep_default_na=False, na_values={"value": [""]})``. Names that are
no valid Unicode (file names may hold any bytes) have the offending bytes spelt out.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protomask.errors import DataError, expected
from protomask.files import write_with
from protomask.opening import check_regular, check_unpacked
from protomask.visualise.wording import printable

COLUMNS = ("pair", "image", "group", "class", "prototype", "prototype_name", "part", "method", "metric", "value")

_WANTED = f"a table with the columns {', '.join(COLUMNS)}"
_BYTES_PER_ROW = 44  # of the columns in memory, names as their numbers

Values = Mapping[str, Mapping[str, np.ndarray]]
"""method -> metric -> [N] float64, NaN where undefined."""


@dataclass(frozen=True)
class Scored:
    """What the tables say of one (image, prototype) pair.

    Attributes:
        image: its image_id.
        group: what intervals are clustered by.
        class_name: of the image; empty where unknown.
        prototype: index.
        prototype_name: what it is called.
        part: name of the causal part; empty where there is none.
    """

    image: str
    group: str
    class_name: str
    prototype: int
    prototype_name: str
    part: str

    def __post_init__(self) -> None:
        for name in ("image", "group", "class_name", "prototype_name", "part"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def write_csv(path: Path, pairs: Sequence[Scored], values: Values) -> None:
    """The tidy table as CSV, whole or not at all; values with nine digits."""

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in _rows(pairs, values):
                writer.writerow((*row[:-1], f"{row[-1]:.9g}" if math.isfinite(row[-1]) else ""))

    write_with(path, write)


def write_parquet(path: Path, pairs: Sequence[Scored], values: Values, *, small: bool = False) -> None:
    """The tidy table as Parquet: int32 ``pair`` and ``prototype``, dictionary-encoded names, float64 ``value``.

    Args:
        path: of the file, written whole or not at all.
        pairs: N.
        values: of theirs.
        small: 30 % smaller, and slower to write; for files that are kept under version control.
    """
    # Imported here: it takes a quarter of a second, which every command would pay.
    import pyarrow
    from pyarrow import parquet

    scores = [(method, metric, column) for method, columns in values.items() for metric, column in columns.items()]
    rows = np.repeat(np.arange(len(pairs), dtype=np.int32), len(scores))  # the row order of the CSV file

    def named(of_pairs: Sequence[str]) -> object:
        codes = {name: k for k, name in enumerate(dict.fromkeys(of_pairs))}
        own = np.array([codes[name] for name in of_pairs], dtype=np.int32)
        return pyarrow.DictionaryArray.from_arrays(own[rows], pyarrow.array(list(codes), pyarrow.string()))

    def repeated(of_scores: Sequence[str]) -> object:
        codes = {name: k for k, name in enumerate(dict.fromkeys(of_scores))}
        own = np.tile(np.array([codes[name] for name in of_scores], dtype=np.int32), len(pairs))
        return pyarrow.DictionaryArray.from_arrays(own, pyarrow.array(list(codes), pyarrow.string()))

    columns = {
        "pair": rows,
        "image": named([pair.image for pair in pairs]),
        "group": named([pair.group for pair in pairs]),
        "class": named([pair.class_name for pair in pairs]),
        "prototype": np.array([pair.prototype for pair in pairs], dtype=np.int32)[rows],
        "prototype_name": named([pair.prototype_name for pair in pairs]),
        "part": named([pair.part for pair in pairs]),
        "method": repeated([method for method, _, _ in scores]),
        "metric": repeated([metric for _, metric, _ in scores]),
        "value": pyarrow.array(np.stack([c for _, _, c in scores], 1).ravel(), pyarrow.float64(), from_pandas=True),
    }
    # Scores have no repeated values but similar exponents: their bytes pack better apart than as a dictionary.
    apart = {"compression": "zstd", "use_byte_stream_split": ["value"], "use_dictionary": list(COLUMNS[:-1])}
    options = apart if small else {}
    write_with(path, lambda beside: parquet.write_table(pyarrow.table(columns), beside, **options))


def _rows(
    pairs: Sequence[Scored], values: Values
) -> Iterator[tuple[int, str, str, str, int, str, str, str, str, float]]:
    for k, pair in enumerate(pairs):
        about = (k, pair.image, pair.group, pair.class_name, pair.prototype, pair.prototype_name, pair.part)
        for method, scores in values.items():
            for metric, column in scores.items():
                yield (*about, method, metric, float(column[k]))


def read_csv(path: Path) -> tuple[tuple[Scored, ...], dict[str, dict[str, np.ndarray]]]:
    """The pairs, and their values by method and metric, of a file that :func:`write_csv` wrote.

    Raises:
        DataError: no such file, or not of that form.
    """
    pairs: dict[int, Scored] = {}
    cells: dict[str, dict[str, tuple[array[int], array[float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != COLUMNS:
                raise ValueError("other columns")
            for pair, image, group, class_name, prototype, name, part, method, metric, value in reader:
                k = int(pair)
                if k not in pairs:
                    pairs[k] = Scored(image, group, class_name, int(prototype), name, part)
                rows, scores = cells.setdefault(method, {}).setdefault(metric, (array("q"), array("d")))
                rows.append(k)
                scores.append(float(value) if value else math.nan)
    except (OSError, ValueError, csv.Error) as error:
        came = "no such file" if isinstance(error, OSError) else error
        raise DataError(expected(str(path), _WANTED, came)) from error
    count = _check_counted(path, sorted(pairs))
    values = {
        method: {metric: _filled(column, count) for metric, column in metrics.items()}
        for method, metrics in cells.items()
    }
    return tuple(pairs[k] for k in range(count)), values


def _filled(column: tuple[array[int], array[float]], count: int) -> np.ndarray:
    filled = np.full(count, np.nan)
    filled[np.frombuffer(column[0], dtype=np.int64)] = np.frombuffer(column[1], dtype=np.float64)
    return filled


def read_parquet(path: Path) -> tuple[tuple[Scored, ...], dict[str, dict[str, np.ndarray]]]:
    """The pairs, and their values by method and metric, of a file that :func:`write_parquet` wrote.

    Raises:
        DataError: no such file, not of that form, or one that unpacks to far more than it holds.
    """
    import pyarrow

    size = check_regular(path, _WANTED)
    try:
        table = _parquet_table(path, size)
        numbers, first = np.unique(table["pair"].to_numpy(), return_index=True)
        count = _check_counted(path, numbers.tolist())
        pairs = tuple(Scored(*row.values()) for row in table.select(COLUMNS[1:7]).take(first).to_pylist())
        return pairs, _columns(table, count)
    except DataError:  # is a ValueError, too
        raise
    # Arrow's errors for damaged files are of many kinds, not all of them ArrowExceptions.
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(expected(str(path), _WANTED, error)) from error


def _parquet_table(path: Path, size: int) -> Any:
    """The pyarrow.Table in a file of ``size`` bytes, checked cell by cell; ValueError, or Arrow's own errors."""
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    kinds = {"pair": pyarrow.int32(), "prototype": pyarrow.int32(), "value": pyarrow.float64()}
    with parquet.ParquetFile(path, read_dictionary=[name for name in COLUMNS if name not in kinds]) as file:
        if tuple(file.schema_arrow.names) != COLUMNS:
            raise ValueError("other columns")
        # Repeated values take next to no room in the file.
        check_unpacked(size, file.metadata.num_rows * _BYTES_PER_ROW)
        table = file.read().combine_chunks().cast(pyarrow.schema([(name, kinds.get(name, text)) for name in COLUMNS]))
    table.validate(full=True)  # damaged numbers may name what is in no dictionary
    empty = [name for name in COLUMNS[:-1] if table[name].null_count]
    if empty:
        raise ValueError(f"empty cells in {', '.join(empty)}")
    return table


def _columns(table: Any, count: int) -> dict[str, dict[str, np.ndarray]]:
    """method -> metric -> [count], of a pyarrow.Table; in the order in which they first come, as in the CSV file."""
    method, metric = (table[name].combine_chunks() for name in ("method", "metric"))
    names = len(metric.dictionary)
    keys = method.indices.to_numpy().astype(np.int64) * names + metric.indices.to_numpy()
    found, first, sizes = np.unique(keys, return_index=True, return_counts=True)
    rows = np.split(np.argsort(keys, kind="stable"), np.cumsum(sizes)[:-1])
    pair, value = table["pair"].to_numpy(), table["value"].to_numpy()
    values: dict[str, dict[str, np.ndarray]] = {}
    for k in np.argsort(first):
        filled = np.full(count, np.nan)
        filled[pair[rows[k]]] = value[rows[k]]
        of, what = divmod(int(found[k]), names)
        values.setdefault(str(method.dictionary[of]), {})[str(metric.dictionary[what])] = filled
    return values


def _check_counted(path: Path, numbers: Sequence[int]) -> int:
    """How many pairs there are, by their numbers in ascending order; DataError where these do not count from 0."""
    if numbers != list(range(len(numbers))):
        raise DataError(expected(str(path), "pairs that count from 0", f"{len(numbers)} pairs with gaps between"))
    return len(numbers)
