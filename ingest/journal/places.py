"""Where a record is: what the journal remembers of one until it is stored, and how whoever stores it reads it there.

The process that appends to a journal keeps no lines of durable records, only places. Another process reads them, from
the page cache as long as it keeps up. A record that is no longer intact at its place is missing from what `read`
returns.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from ingest.journal import segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import HEADER, Layout, Record, Totals, decode_header, layout_id

logger = logging.getLogger(__name__)

PLACE_BYTES: Final = 512
"""The memory that a place takes, with its numbers, at most."""
_READ_BYTES: Final = 384 * 1024
"""Neighbouring records are read at once, up to this much: for larger buffers the allocator asks the system each time,
which then clears their pages one by one."""


class Place(msgspec.Struct, gc=False, frozen=True):
    """A durable record, from `offset` to `end` in the segment `path`. `after`: the journal's totals up to it, if
    known; `size`: the bytes of its lines."""

    number: int
    events: int
    rejected: int
    size: int
    opened_at_us: int
    path: Path
    offset: int
    end: int
    layout: Layout
    after: Totals | None


class Span(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """A record's place within its segment."""

    number: int
    offset: int
    end: int


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Records of one segment with one layout, in order: what another process needs to read them."""

    path: str
    layout: Layout
    spans: list[Span]


def runs_of(places: Sequence[Place]) -> list[Run]:
    """The same records, by segment and layout, in order."""
    return [
        Run(str(path), layout, [Span(place.number, place.offset, place.end) for place in group])
        for (path, layout), group in groupby(places, key=lambda place: (place.path, place.layout))
    ]


def read(run: Run) -> list[Record]:
    """The records of a run that are intact, in order. Raises OSError only for transient errors that are not about the
    file."""
    records: list[Record] = []
    try:
        descriptor = os.open(run.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for spans in _neighbours(run.spans):
                start = spans[0].offset
                raw = _read_bytes(descriptor, spans[-1].end - start, start)
                for span in spans:
                    record = _record_in(raw, span.offset - start, span, run.layout) or _read_damaged(run, span)
                    if record is not None:
                        records.append(record)
        finally:
            os.close(descriptor)
    except OSError as error:
        if segments.is_passing(error):
            raise
        logger.error("segment %s cannot be read: %s", run.path, error.strerror)
    return records


def _read_bytes(descriptor: int, size: int, offset: int) -> bytes:
    """Fewer if the disk cannot read all of it."""
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        if segments.is_passing(error):
            raise
        return b""


def _neighbours(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Groups of spans that follow each other without a gap, none longer than is read at once."""
    group: list[Span] = []
    for span in spans:
        if group and (span.offset != group[-1].end or span.end - group[0].offset > _READ_BYTES):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _record_in(raw: bytes, at: int, span: Span, layout: Layout) -> Record | None:
    """The record that begins at `at`; None unless every byte of it is as it was written."""
    header = decode_header(raw[at : at + HEADER.size])
    if header is None or header.number != span.number or header.layout_id != layout_id(layout):
        return None
    middle = at + header.lines_at + header.event_bytes
    event_lines, rejected_lines = raw[at + header.lines_at : middle], raw[middle : middle + header.rejected_bytes]
    if zlib.crc32(rejected_lines, zlib.crc32(event_lines)) != header.lines_crc:
        return None
    return Record(
        number=header.number,
        events=header.events,
        rejected=header.rejected,
        opened_at_us=header.opened_at_us,
        stored_through=header.stored_through,
        event_lines=event_lines,
        rejected_lines=rejected_lines,
        layout=layout,
        previous=header.previous,
        before=header.before,
        stored=header.stored,
    )


def _read_damaged(run: Run, span: Span) -> Record | None:
    """A record of an older format, or one of which only the header is damaged."""
    try:
        with SegmentReader(Path(run.path), span.offset, span.end, {layout_id(run.layout): run.layout}) as reader:
            for piece in reader:
                if isinstance(piece, Record) and piece.number == span.number:
                    return piece
    except (OSError, SegmentError) as error:
        if isinstance(error, OSError) and segments.is_passing(error):
            raise
        # The others of the run may be intact.
        logger.error("record %d of segment %s cannot be read: %s", span.number, run.path, error)
    return None
