"""The zip archives that ``torch.save`` writes: where each entry's bytes lie, checked against the file's size.

``torch.save`` stores without compression, so an archive never holds more than its file: a compressed entry, or entries
that share bytes, is how a small file pretends to be huge, and is refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from protomask.errors import CheckpointError, expected

Buffer = memoryview
_LOCAL = struct.Struct("<4s22xHH")  # signature ... length of the name, length of the extra field


@dataclass(frozen=True)
class Entry:
    """Where an entry's bytes lie: ``start`` and ``size`` in bytes, and their CRC-32."""

    start: int
    size: int
    crc: int


class Archive:
    """The entries of one archive under the folder that holds ``data.pkl``.

    Attributes:
        entries: by name below that folder, such as ``"data.pkl"`` and ``"data/0"``.
        script: whether the archive is a TorchScript program.

    Raises:
        CheckpointError: truncated, compressed, overlapping, or no archive of ``torch.save``'s.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        found = _entries(buffer)
        tops = [name.removesuffix("/data.pkl") for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(tops) != 1:
            raise CheckpointError(expected("zip file", "one data.pkl, as torch.save writes it", len(tops)))
        prefix = tops[0] + "/"
        self.entries = {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}
        self.script = "constants.pkl" in self.entries
        if "byteorder" in self.entries and bytes(self.read("byteorder")) != b"little":
            raise CheckpointError(expected("zip file", "little-endian numbers", "another byte order"))

    def read(self, name: str) -> bytearray:
        """An entry's bytes."""
        entry = self.entries[name]
        content = bytearray(self._buffer[entry.start : entry.start + entry.size])
        if entry.crc and zlib.crc32(content) != entry.crc:  # 0 where checksums were switched off
            raise CheckpointError(expected(f"zip entry {name}", "the checksum that the file states", "another"))
        return content

    def sizes(self) -> dict[str, int]:
        """Bytes of each storage, by key."""
        found = self.entries.items()
        return {name.removeprefix("data/"): entry.size for name, entry in found if name.startswith("data/")}


def _entries(buffer: Buffer) -> dict[str, Entry]:
    try:
        with zipfile.ZipFile(Reader(buffer)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error, EOFError) as error:
        came = f"a truncated or corrupt one ({error})"
        raise CheckpointError(expected("zip file", "a whole archive", came)) from error
    found: dict[str, Entry] = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise CheckpointError(expected(f"zip entry {info.filename[:80]}", "no compression", "a compressed one"))
        if info.filename in found:
            raise CheckpointError(expected(f"zip entry {info.filename[:80]}", "one of that name", "two"))
        found[info.filename] = _located(buffer, info)
    _check_apart(found, len(buffer))
    return found


def _located(buffer: Buffer, info: zipfile.ZipInfo) -> Entry:
    head = bytes(buffer[info.header_offset : info.header_offset + 30]) if info.header_offset >= 0 else b""
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise CheckpointError(expected(f"zip entry {info.filename[:80]}", "a header where the directory says", "none"))
    _, name, extra = _LOCAL.unpack(head)
    return Entry(info.header_offset + 30 + name + extra, info.file_size, info.CRC)


def _check_apart(found: dict[str, Entry], size: int) -> None:
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end or entry.start + entry.size > size:
            raise CheckpointError(expected(f"zip entry {name[:80]}", "bytes of its own inside the file", "others"))
        end = entry.start + entry.size


class Reader(io.RawIOBase):
    """A buffer as a seekable file; a read never allocates more than what is left."""

    def __init__(self, buffer: Buffer) -> None:
        super().__init__()
        self._buffer = buffer
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, bytes from the start."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As any file's; a position behind the end is one where nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._buffer)}[whence]
        if base + offset < 0:
            raise OSError("a position before the file's start")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes, at most what is left."""
        left = max(0, len(self._buffer) - self._at)
        count = left if size is None or size < 0 else min(size, left)
        content = bytes(self._buffer[self._at : self._at + count])
        self._at += count
        return content

    def readline(self, size: int | None = -1) -> bytes:
        """Up to the next line feed, whatever ``size`` is."""
        line = bytearray()
        while chunk := self.read(4096):
            cut = chunk.find(b"\n") + 1
            if cut:
                self._at -= len(chunk) - cut
                return bytes(line + chunk[:cut])
            line += chunk
        return bytes(line)
