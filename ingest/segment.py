"""Segments: the files of a journal, and the records in them. Synchronous; knows no event loop.

A segment is a line that names its journal and the columns of its rows, then records one after another:

    ingest-journal 1 <crc32 of the JSON, 8 hex digits> {"journal": 7, "identity": "…", "columns": …}\n
    record  = header (52 bytes, little endian) + event lines + rejected lines
    header  = magic, crc32 of the rest of the header, crc32 of the lines, bytes of event lines,
              bytes of rejected lines, events, rejected, number, stored through, opened at (Unix microseconds)

A record is written in one go and fsynced before the next is begun, so a crash can tear the last one only.
The lines are COPY text (see row.py). Columns belong to the segment: a release that changes them starts a new one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import orjson

HEADER: Final = struct.Struct("<IIIIIIIQQQ")
MAGIC: Final = 0x314E4A49  # "IJN1"
MAX_RECORD_BYTES: Final = 256 * 1024 * 1024
"""A header that claims more is damaged; no record is ever this long."""
_CHUNK: Final = 1024 * 1024
SUFFIX: Final = ".segment"


class Layout(msgspec.Struct, frozen=True):
    """The first line of a segment: whose it is, and what the columns of its two kinds of rows are."""

    journal: int
    identity: str
    event_columns: tuple[str, ...]
    rejected_columns: tuple[str, ...]


class Record(NamedTuple):
    """One fsynced journal entry: COPY lines of accepted events, COPY lines of rejected ones."""

    number: int
    events: int
    rejected: int
    opened_at_us: int
    stored_through: int
    event_lines: bytes
    rejected_lines: bytes
    layout: Layout

    @property
    def size(self) -> int:
        """Bytes of lines."""
        return len(self.event_lines) + len(self.rejected_lines)


class Damage(NamedTuple):
    """A stretch of a segment that is no record. `events` and `rejected` are known when the header survived."""

    offset: int
    size: int
    events: int
    rejected: int
    at_end: bool


class SegmentError(Exception):
    """The first line of a segment cannot be read: nothing in it can be trusted."""


def encode(record: Record) -> bytes:
    """The record as it stands in the file."""
    lines_crc = zlib.crc32(record.rejected_lines, zlib.crc32(record.event_lines))
    tail = HEADER.pack(
        0,
        0,
        lines_crc,
        len(record.event_lines),
        len(record.rejected_lines),
        record.events,
        record.rejected,
        record.number,
        record.stored_through,
        record.opened_at_us,
    )[8:]
    return struct.pack("<II", MAGIC, zlib.crc32(tail)) + tail + record.event_lines + record.rejected_lines


def encode_layout(layout: Layout) -> bytes:
    """The first line of a segment."""
    text = orjson.dumps(msgspec.to_builtins(layout))
    return b"ingest-journal 1 %08x %s\n" % (zlib.crc32(text), text)


def decode_layout(line: bytes) -> Layout:
    """Read the first line of a segment; SegmentError if it is damaged or of a format this release cannot read."""
    words = line.rstrip(b"\n").split(b" ", 3)
    if len(words) != 4 or words[0] != b"ingest-journal":
        raise SegmentError("the first line is not that of a journal segment")
    if words[1] != b"1":
        raise SegmentError(f"format {words[1].decode('ascii', 'replace')} is not one this release can read")
    try:
        if int(words[2], 16) != zlib.crc32(words[3]):
            raise SegmentError("the first line is damaged")
        return msgspec.json.decode(words[3], type=Layout)
    except (ValueError, msgspec.DecodeError) as error:
        raise SegmentError(f"the first line is damaged: {error}") from None


def path_of(folder: Path, first_number: int) -> Path:
    """Where the segment that begins with this record number stands; names sort by number."""
    return folder / f"{first_number:016d}{SUFFIX}"


def list_segments(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}"))


class Reader:
    """Reads a segment from an offset, a record at a time, with two small reads a record.

    `offset` is where the next record begins. Iterating yields Records and Damages; it ends at `end` or at the
    end of the file. After a Damage that reaches the end there is nothing more.
    """

    def __init__(self, path: Path, offset: int = 0, end: int | None = None) -> None:
        self.path = path
        self._file = path.open("rb", buffering=256 * 1024)
        try:
            line = self._file.readline(1024 * 1024)
            self.layout = decode_layout(line)
        except BaseException:
            self._file.close()
            raise
        self.end = os.fstat(self._file.fileno()).st_size if end is None else end
        self.offset = offset or len(line)
        self._file.seek(self.offset)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Record | Damage]:
        while (piece := self.read()) is not None:
            yield piece

    def read(self) -> Record | Damage | None:
        """The next record, a damage where one should be, or None at the end."""
        if self.offset >= self.end:
            return None
        header = self._read_header(self.offset)
        if header is None:
            return self._skip_damage(0, 0)
        record = self._read_lines(header)
        if record is None:
            return self._skip_damage(header[5], header[6])
        self.offset += HEADER.size + record.size
        return record

    def _read_header(self, offset: int) -> tuple[int, ...] | None:
        if offset + HEADER.size > self.end:
            return None
        self._file.seek(offset)
        raw = self._file.read(HEADER.size)
        if len(raw) < HEADER.size:
            return None
        header = HEADER.unpack(raw)
        if header[0] != MAGIC or header[1] != zlib.crc32(raw[8:]) or header[3] + header[4] > MAX_RECORD_BYTES:
            return None
        return header

    def _read_lines(self, header: tuple[int, ...]) -> Record | None:
        _, _, crc, event_bytes, rejected_bytes, events, rejected, number, stored_through, opened_at_us = header
        if self.offset + HEADER.size + event_bytes + rejected_bytes > self.end:
            return None
        event_lines = self._file.read(event_bytes)
        rejected_lines = self._file.read(rejected_bytes)
        if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != crc:
            return None
        return Record(
            number, events, rejected, opened_at_us, stored_through, event_lines, rejected_lines, self.layout
        )

    def _skip_damage(self, events: int, rejected: int) -> Damage:
        """Step over what cannot be read, to the next readable header or to the end."""
        start = self.offset
        following = self._find_header(start + 1)
        self.offset = self.end if following is None else following
        return Damage(start, self.offset - start, events, rejected, at_end=following is None)

    def _find_header(self, offset: int) -> int | None:
        magic = struct.pack("<I", MAGIC)
        while offset + HEADER.size <= self.end:
            self._file.seek(offset)
            chunk = self._file.read(_CHUNK)
            found = chunk.find(magic)
            while found >= 0:
                if self._read_header(offset + found) is not None:
                    return offset + found
                found = chunk.find(magic, found + 1)
            if len(chunk) < _CHUNK:
                return None
            offset += _CHUNK - HEADER.size
        return None


def flush_folder(folder: Path) -> None:
    """fsync a folder, so that a file just made in it is still there after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
