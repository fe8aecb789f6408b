"""Files written whole or not at all: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from protomask.errors import InputError, ResourceError, expected


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a new file beside ``path``, then move it there in one step; missing folders are made.

    Raises:
        ResourceError: the file cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            _to_disk(beside)
            beside.replace(path)
            _to_disk(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(expected(str(path), "a file that can be written", error)) from error
    return path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """:func:`write_with` for bytes."""
    return write_with(path, lambda beside: beside.write_bytes(content))


def write_text(path: str | Path, content: str) -> Path:
    """:func:`write_with` for text, as UTF-8 with the line ends it has."""
    return write_bytes(path, content.encode("utf-8"))


def prepare_output(folder: str | Path) -> Path:
    """The folder, created where it is missing, after a file was written into it and removed again.

    Raises:
        ResourceError: it cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{secrets.token_hex(8)}"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another process may be tidying up here
    except OSError as error:
        raise ResourceError(expected(f"output folder {path}", "a folder that can be written to", error)) from error
    return path


def remove_leftovers(folder: str | Path) -> None:
    """Remove the half-written files that a killed process left in a folder; nobody may be writing there."""
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{16}|\.probe-[0-9a-f]{16}", path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def safe_name(image_id: str) -> str:
    """A file name (without suffix) for an image: letters, digits, ``_`` and ``-`` only, and a hash of the whole id.

    Names differ wherever ids do, also on file systems that ignore case, but for a chance of 2^-48 per pair.
    """
    if not isinstance(image_id, str) or not image_id:
        raise InputError(expected("image_id", "a text that is not empty", repr(image_id)))
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", image_id).strip("_-")[-60:].lstrip("_-")
    return f"{readable or 'image'}-{digest}"


def _to_disk(path: Path) -> None:
    # Moving a file whose content is still in memory can leave an empty one after a power cut, and the move itself is
    # lost where the folder is not written out. Windows opens no folders, and writes out only what it may write to.
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
