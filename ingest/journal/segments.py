"""Segments: the files of a journal, and the records in them. Synchronous, without an event loop.

A segment begins with its journal and the columns of its rows, written twice, followed by records:

    ingest-journal 2 <crc32 of the JSON, 8 hex digits> {"journal": 7, "identity": "…", "columns": …}\n
    the same line again
    record  = header (112 bytes, little endian) + event lines + rejected lines + footer (the header again)
    header  = magic, crc32 of the rest of the header, crc32 of the lines, crc32 of the first line's JSON,
              bytes of event lines, bytes of rejected lines, events, rejected,
              number, number of the record before it, stored through, opened at (Unix microseconds),
              records, events, rejected in the journal before this record; the same up to `stored through`

A record is written in one go and fsynced before the next is begun, so a crash can only tear the last one.
The lines are COPY text (see row.py). Columns belong to the segment: a release that changes them starts a new one.

Whichever byte is damaged, the other records can still be read. The first line exists twice, and each record has the
checksum of the line it belongs to. A damaged header is recovered from the footer. Records lost altogether are counted
by means of their neighbours: each record has the number of the one before it, and the totals up to that one.

Format 1 can still be read: one first line; a header of 52 bytes, without the previous record's number, the totals and
the checksum of the first line; no footer.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import orjson

HEADER: Final = struct.Struct("<IIIIIIIIQQQQQQQQQQ")
_HEADER_1: Final = struct.Struct("<IIIIIIIQQQ")
MAGIC: Final = 0x324E4A49  # "IJN2"
FOOTER_MAGIC: Final = 0x32454A49  # "IJE2"
MAGIC_1: Final = 0x314E4A49  # "IJN1"
OVERHEAD: Final = 2 * HEADER.size
"""Bytes of a record in addition to its lines."""
MAX_RECORD_BYTES: Final = 256 * 1024 * 1024
"""A header that claims more is damaged: no record is this long."""
_MAX_NUMBER: Final = 1 << 40
"""Lines never contain a zero byte, and a number below this always does: no event can be crafted to look like a
header."""
_UNKNOWN: Final = (1 << 64) - 1
_MAGIC_AND_CRC: Final = struct.Struct("<II")
_NO_TOTALS: Final = (_UNKNOWN, _UNKNOWN, _UNKNOWN)
HEAD: Final = b"ingest-journal "
SUFFIX: Final = ".segment"
_MARK: Final = "newest"
DAMAGED: Final = ".damaged"
TORN: Final = ".torn"
_PASSING: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN))


class Layout(msgspec.Struct, frozen=True, cache_hash=True):
    """The first line of a segment: the journal it belongs to, and the columns of its two kinds of rows."""

    journal: int
    identity: str
    event_columns: tuple[str, ...]
    rejected_columns: tuple[str, ...]


class Totals(NamedTuple):
    """A journal's totals since it was created, up to some record: durable records, and the events in them."""

    records: int
    events: int
    rejected: int


class Record(NamedTuple):
    """One fsynced journal entry: COPY lines of accepted events, COPY lines of rejected ones.

    `previous` is the number of the durable record before it, `before` the totals up to that one, `stored` the totals
    up to `stored_through`; None if unknown.
    """

    number: int
    events: int
    rejected: int
    opened_at_us: int
    stored_through: int
    event_lines: bytes
    rejected_lines: bytes
    layout: Layout
    previous: int | None = None
    before: Totals | None = None
    stored: Totals | None = None

    @property
    def size(self) -> int:
        """Bytes of lines."""
        return len(self.event_lines) + len(self.rejected_lines)

    @property
    def after(self) -> Totals | None:
        """The totals up to and including this record."""
        return _after(self)


class Header(NamedTuple):
    """Everything about a record except its lines; the footer is a copy of it."""

    is_old: bool
    lines_crc: int
    layout_id: int | None
    event_bytes: int
    rejected_bytes: int
    events: int
    rejected: int
    number: int
    previous: int | None
    stored_through: int
    opened_at_us: int
    before: Totals | None
    stored: Totals | None

    @property
    def lines_at(self) -> int:
        """The offset of the lines from the beginning of the record."""
        return _HEADER_1.size if self.is_old else HEADER.size

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        overhead = _HEADER_1.size if self.is_old else OVERHEAD
        return overhead + self.event_bytes + self.rejected_bytes

    @property
    def after(self) -> Totals | None:
        return _after(self)


def _after(record: Record | Header) -> Totals | None:
    if record.before is None:
        return None
    records, events, rejected = record.before
    return Totals(records + 1, events + record.events, rejected + record.rejected)


class Damage(NamedTuple):
    """A stretch of a segment that is not a readable record. `header`: that of the damaged record, if it can still be
    read. `is_whole`: the record had been written in full, so it is not the torn end of an unacknowledged write."""

    offset: int
    size: int
    header: Header | None
    is_whole: bool
    at_end: bool

    @property
    def events(self) -> int | None:
        return None if self.header is None else self.header.events


def encode(record: Record) -> bytes:
    """The record as bytes, as written to the file."""
    lines_crc = zlib.crc32(record.rejected_lines, zlib.crc32(record.event_lines))
    tail = HEADER.pack(
        0,
        0,
        lines_crc,
        layout_id(record.layout),
        len(record.event_lines),
        len(record.rejected_lines),
        record.events,
        record.rejected,
        record.number,
        _UNKNOWN if record.previous is None else record.previous,
        record.stored_through,
        record.opened_at_us,
        *(record.before or _NO_TOTALS),
        *(record.stored or _NO_TOTALS),
    )[8:]
    crc = zlib.crc32(tail)
    header, footer = _MAGIC_AND_CRC.pack(MAGIC, crc), _MAGIC_AND_CRC.pack(FOOTER_MAGIC, crc)
    return b"".join((header, tail, record.event_lines, record.rejected_lines, footer, tail))


def decode_header(raw: bytes, magic: int = MAGIC) -> Header | None:
    """Read a header, or a footer given its magic; None if it is damaged or something else."""
    if magic != MAGIC_1:
        if len(raw) < HEADER.size:
            return None
        found = HEADER.unpack_from(raw)
        if found[0] != magic or found[1] != zlib.crc32(raw[8 : HEADER.size]):
            return None
        _, _, crc, layout, event_bytes, rejected_bytes, events, rejected, *numbers = found
        number, previous, stored_through, opened_at_us, *totals = numbers
        header = Header(
            False,
            crc,
            layout,
            event_bytes,
            rejected_bytes,
            events,
            rejected,
            number,
            _known(previous),
            stored_through,
            opened_at_us,
            _totals(totals[:3]),
            _totals(totals[3:]),
        )
    else:
        if len(raw) < _HEADER_1.size:
            return None
        found = _HEADER_1.unpack_from(raw)
        if found[0] != magic or found[1] != zlib.crc32(raw[8 : _HEADER_1.size]):
            return None
        _, _, crc, event_bytes, rejected_bytes, events, rejected, number, stored_through, opened_at_us = found
        header = Header(
            True,
            crc,
            None,
            event_bytes,
            rejected_bytes,
            events,
            rejected,
            number,
            None,
            stored_through,
            opened_at_us,
            None,
            None,
        )
    if header.event_bytes + header.rejected_bytes > MAX_RECORD_BYTES or header.number >= _MAX_NUMBER:
        return None
    return header


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value


def _totals(values: list[int]) -> Totals | None:
    return None if values[0] == _UNKNOWN else Totals(*values)


def encode_layout(layout: Layout) -> bytes:
    """The head of a segment."""
    return _layout_line(layout)[0] * 2


def layout_id(layout: Layout) -> int:
    """The id by which records name their layout: the checksum of the first line's JSON."""
    return _layout_line(layout)[1]


@lru_cache(maxsize=64)
def _layout_line(layout: Layout) -> tuple[bytes, int]:
    text = orjson.dumps(msgspec.to_builtins(layout))
    crc = zlib.crc32(text)
    return b"%s2 %08x %s\n" % (HEAD, crc, text), crc


def decode_layout(line: bytes) -> Layout | None:
    """Read the first line of a segment; None if it is damaged, or in a format this release cannot read."""
    words = line.rstrip(b"\n").split(b" ", 3)
    if len(words) != 4 or words[0] + b" " != HEAD or words[1] not in (b"1", b"2"):
        return None
    try:
        if int(words[2], 16) != zlib.crc32(words[3]):
            return None
        return msgspec.json.decode(words[3], type=Layout)
    except (ValueError, msgspec.DecodeError):
        return None


def path_of(folder: Path, first_number: int) -> Path:
    """The path of the segment that begins with this record number; names sort by number."""
    return folder / f"{first_number:016d}{SUFFIX}"


def list_segments(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first going by their names."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}"))


def free_name(path: Path) -> Path:
    """This path, or a numbered variant of it that does not exist yet: existing files are never overwritten."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def set_aside(path: Path) -> Path:
    """Rename a damaged segment so that it is no longer read as one; returns its new path."""
    target = free_name(path.with_suffix(DAMAGED))
    path.rename(target)
    return target


def mark_path(folder: Path) -> Path:
    """The file with a copy of the header of the journal's newest durable record, so that its loss is noticed. It is
    not fsynced: after a power cut it may be that of an older record, which still holds."""
    return folder / _MARK


def read_mark(folder: Path) -> Header | None:
    """The header of the newest record known to have been durable; None if unknown."""
    try:
        descriptor = os.open(mark_path(folder), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return decode_header(os.read(descriptor, HEADER.size))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def is_passing(error: OSError) -> bool:
    """Whether the error is transient or about this process, and says nothing about the file."""
    return error.errno in _PASSING


def flush_folder(folder: Path) -> None:
    """fsync a folder, so that a file just created in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
