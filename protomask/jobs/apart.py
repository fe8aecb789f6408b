"""One bad item must not take its company down: all together, or each alone where that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from protomask.errors import DataError, InputError, ModelError
from protomask.store.shards import Failure

Result = TypeVar("Result")


def read_each(read: Callable[[int], Result], names: Sequence[str]) -> tuple[list[Result], list[int], list[Failure]]:
    """What can be read of some items.

    Args:
        read: from an item's number to what it holds; DataError where it cannot be read.
        names: of the items.

    Returns:
        What was read, the number of each, and what could not be.
    """
    found, rows, failed = [], [], []
    for row, name in enumerate(names):
        try:
            found.append(read(row))
            rows.append(row)
        except DataError as error:
            failed.append(Failure(name, str(error)))
    return found, rows, failed


def all_or_each(
    compute: Callable[[list[int]], Result], names: Sequence[str]
) -> tuple[list[tuple[list[int], Result]], list[Failure]]:
    """``compute`` over all rows at once; where an item is at fault, over each row alone.

    Args:
        compute: from row numbers to a result; DataError, InputError or ModelError where an item is at fault.
        names: of the rows' items.

    Returns:
        (rows, their result) in order, and what failed alone.
    """
    rows = list(range(len(names)))
    if not rows:
        return [], []
    try:
        return [(rows, compute(rows))], []
    except (DataError, InputError, ModelError) as error:
        if len(rows) == 1:
            return [], [Failure(names[0], f"{names[0]}: {error}")]
    done, failed = [], []
    for row in rows:
        try:
            done.append(([row], compute([row])))
        except (DataError, InputError, ModelError) as error:
            failed.append(Failure(names[row], f"{names[row]}: {error}"))
    return done, failed
