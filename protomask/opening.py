"""Opening files that others made: regular files only, of a size that memory can take, and texts without surprises.

A pipe would be waited for without end, a device may never end, and ``pathlib`` raises for names that are too long.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from protomask.errors import DataError, ProtomaskError, expected

MOST_TEXT = 1 << 28  # bytes of a table or a JSON file; the largest public one has 10 MB

MOST_UNPACKED = 1 << 30  # bytes of the arrays of an .npz or the columns of a table, unless ...
MOST_PER_BYTE = 200  # ... they are fewer for each byte of the file; deflate packs 1032 zeros into one


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there; False, too, for a name that no file system takes."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a name is too long


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there, links followed; False, too, for a name that no file system takes."""
    return os.path.isfile(path)  # noqa: PTH113 - as above


def check_regular(path: Path, wanted: str, kind: type[ProtomaskError] = DataError) -> int:
    """The file's size in bytes, if it is a regular file, links followed; else an error of ``kind``."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise kind(expected(str(path), wanted, "no such file")) from error
    except (OSError, ValueError) as error:  # no right to look, a loop of links, a name that is none
        raise kind(expected(str(path)[:500], wanted, error)) from error
    if not stat.S_ISREG(found.st_mode):
        came = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise kind(expected(str(path), wanted, came))
    return found.st_size


def read_text(path: Path, wanted: str, kind: type[ProtomaskError] = DataError) -> str:
    """The text in a file: UTF-8 with or without a byte order mark, at most :data:`MOST_TEXT` bytes, without NUL.

    Args:
        path: of the file.
        wanted: what it should be, for the messages.
        kind: of the error that is raised.
    """
    size = check_regular(path, wanted, kind)
    if size > MOST_TEXT:
        raise kind(expected(str(path), f"{wanted} of at most {MOST_TEXT} bytes", size))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise kind(expected(str(path), f"{wanted}, readable and in UTF-8", error)) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise kind(expected(f"{path}, line {line}", f"{wanted} in UTF-8", "a NUL character (is it UTF-16?)"))
    return text


def check_unpacked(size: int, declared: int) -> None:
    """ValueError where a file of ``size`` bytes says that it unpacks to far more (:data:`MOST_UNPACKED`)."""
    if declared > max(MOST_UNPACKED, MOST_PER_BYTE * size):
        raise ValueError(f"{size} bytes that unpack to {declared}")


@contextmanager
def open_npz(path: str | Path, *names: str) -> Iterator[NpzFile]:
    """The arrays of an ``.npz``, each read when it is asked for, after what the file says of their sizes was checked.

    Args:
        path: of the file.
        names: of the arrays that will be read; all where none is named.

    Raises:
        ValueError: no regular file, or one that unpacks to far more than it holds (:data:`MOST_UNPACKED`); and whatever
            else zipfile and numpy raise for damaged files.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    # Opened here, since numpy leaves its own handle open on a damaged archive.
    with path.open("rb") as file:
        members = {f"{name}.npy" for name in names}
        with zipfile.ZipFile(file) as archive:
            declared = sum(i.file_size for i in archive.infolist() if not names or i.filename in members)
        size = file.seek(0, os.SEEK_END)
        check_unpacked(size, declared)
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            yield stored


def readable_name(path: Path, root: Path) -> str:
    """``path`` relative to ``root``, with ``/``; bytes that are no UTF-8 as ``\\udcXX``, so that it can be written."""
    return path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
