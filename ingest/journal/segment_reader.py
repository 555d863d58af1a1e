"""Reading a segment in any condition: every intact record, and a Damage wherever one is not."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ingest.journal.segments import (
    FOOTER_MAGIC,
    HEAD,
    HEADER,
    MAGIC_1,
    Damage,
    Header,
    Layout,
    Record,
    decode_header,
    decode_layout,
    is_passing,
    layout_id,
)

_ANY_MAGIC: Final = re.compile(rb"IJN[12]")
_CHUNK: Final = 1024 * 1024
_BLOCK: Final = 4096
_HEAD_BYTES: Final = 64 * 1024


class SegmentError(Exception):
    """The file cannot be read as a segment."""


class SegmentReader:
    """Reads a segment from an offset, one record at a time, with two small reads per record.

    `offset` is where the next record begins. Iterating yields Records and Damages, until `end` or the end of the
    file; a Damage that reaches the end is the last. Raises OSError if the file cannot be opened, SegmentError if it
    is not a regular file.

    `layout` is None if no first line can be read. `known`: layouts that the segment may have had, by id; a record
    with any other layout is a Damage.
    """

    def __init__(
        self, path: Path, offset: int = 0, end: int | None = None, known: Mapping[int, Layout] | None = None
    ) -> None:
        self.path = path
        self._known = known or {}
        # O_NONBLOCK: if it is a pipe, do not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise SegmentError("it is not a regular file")
        self._file = open(descriptor, "rb", buffering=256 * 1024)  # noqa: SIM115
        self.size = status.st_size
        self.end = self.size if end is None else min(end, self.size)
        self.layout: Layout | None = None
        self.is_sound = True
        """Whether the head of the file is intact."""
        begin = self._read_head()
        self.offset = offset or begin

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Record | Damage]:
        while (piece := self.read()) is not None:
            yield piece

    def read(self) -> Record | Damage | None:
        """The next record, a damage where one should be, or None at the end."""
        start = self.offset
        if start >= self.end:
            return None
        header = self._header_at(start)
        if header is not None and (record := self._record_at(start, header)) is not None:
            self.offset = self._end_of(start, header)
            return record
        following = self._find_header(start + 1)
        stop = self.end if following is None else following
        footer = self._footer_at(stop)
        if footer is not None:
            # The record that ends here was written in full: if only its header is damaged, nothing is lost.
            begin = stop - footer.size
            if begin > start:
                self.offset = begin
                return Damage(start, begin - start, header, self._is_whole(start, header), at_end=False)
            if begin == start and (record := self._record_at(start, footer)) is not None:
                self.offset = stop
                return record
        self.offset = stop
        known = header or footer
        whole = footer is not None or self._is_whole(start, header)
        return Damage(start, stop - start, known, whole, at_end=following is None)

    def _read_head(self) -> int:
        """Find the layout, and return where the records begin."""
        head = self._bytes(0, min(_HEAD_BYTES, self.size))
        place = head.find(HEAD)
        while place >= 0:
            end = head.find(b"\n", place) + 1
            line = head[place:end]
            self.layout = decode_layout(line)
            if self.layout is not None:
                double = not line.startswith(HEAD + b"1")
                begin = 2 * len(line) if double and place == 0 else end
                self.is_sound = place == 0 and (not double or head[end:begin] == line)
                if self.is_sound:
                    return begin
                # If bytes of the second are missing, the first record begins sooner; and if this is a stray copy of
                # the first line, there may be records before it.
                return min(begin, self._first_record(end if place == 0 else 0))
            place = head.find(HEAD, place + 1)
        # The length of the head is unknown, so it ends where the first record begins.
        self.is_sound = False
        return self._first_record(0)

    def _first_record(self, start: int) -> int:
        """Where the first record from `start` on begins, found by its header or footer; the end of the file if there
        is none."""
        found = self._find_header(start)
        begin = self.size if found is None else found
        while (footer := self._footer_at(begin)) is not None and start + footer.size <= begin:
            begin -= footer.size
        return begin

    def _bytes(self, offset: int, size: int) -> bytes:
        """`size` bytes of the file, fewer at its end; zeros in place of blocks that the disk cannot read."""
        try:
            self._file.seek(offset)
            return self._file.read(size)
        except OSError as error:
            if is_passing(error):
                raise
        found = bytearray()
        end = min(offset + size, self.size)
        while (at := offset + len(found)) < end:
            length = min(_BLOCK - at % _BLOCK, end - at)
            try:
                found += os.pread(self._file.fileno(), length, at).ljust(length, b"\0")
            except OSError:
                found += bytes(length)
        return bytes(found)

    def _header_at(self, offset: int) -> Header | None:
        raw = self._bytes(offset, min(HEADER.size, self.end - offset))
        return decode_header(raw) or decode_header(raw, MAGIC_1)

    def _footer_at(self, stop: int) -> Header | None:
        """The footer of the record that ends here."""
        if stop < HEADER.size:
            return None
        return decode_header(self._bytes(stop - HEADER.size, HEADER.size), FOOTER_MAGIC)

    def _end_of(self, start: int, header: Header) -> int:
        """The end of a record that has been read; it comes sooner than its header says if bytes of the footer are
        missing, and the next record must not be passed over."""
        end = start + header.size
        if not header.is_old and self._footer_at(end) is None:
            following = self._find_header(end - HEADER.size)
            end = end if following is None else min(end, following)
        return min(end, self.end)

    def _is_whole(self, start: int, header: Header | None) -> bool:
        if header is None or start + header.size > self.end:
            return False
        return header.is_old or self._footer_at(start + header.size) is not None

    def _record_at(self, start: int, header: Header) -> Record | None:
        place = start + header.lines_at
        if place + header.event_bytes + header.rejected_bytes > self.end:
            return None
        event_lines = self._bytes(place, header.event_bytes)
        rejected_lines = self._bytes(place + header.event_bytes, header.rejected_bytes)
        if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != header.lines_crc:
            return None
        layout = self._layout_of(header, event_lines)
        if layout is None:
            return None
        return Record(
            header.number,
            header.events,
            header.rejected,
            header.opened_at_us,
            header.stored_through,
            event_lines,
            rejected_lines,
            layout,
            header.previous,
            header.before,
            header.stored,
        )

    def _layout_of(self, header: Header, event_lines: bytes) -> Layout | None:
        own = self.layout
        if header.layout_id is not None:
            is_own = own is not None and layout_id(own) == header.layout_id
            return own if is_own else self._known.get(header.layout_id)
        if own is not None or not event_lines:
            return own or next(iter(self._known.values()), None)
        # Format 1 has no layout id; take a layout with the same number of columns.
        columns = event_lines.partition(b"\n")[0].count(b"\t") + 1
        return next((layout for layout in self._known.values() if len(layout.event_columns) == columns), None)

    def _find_header(self, offset: int) -> int | None:
        while offset < self.end:
            chunk = self._bytes(offset, min(_CHUNK, self.end - offset))
            for found in _ANY_MAGIC.finditer(chunk):
                if self._header_at(offset + found.start()) is not None:
                    return offset + found.start()
            if len(chunk) < _CHUNK:
                return None
            offset += _CHUNK - 3
        return None
