"""Arbitrary damage to the segments of a journal, and arbitrary files in their place.

An input that begins like a segment is one. Any other is a script: how many records there are and how long their
lines are, whether the second half is in a segment of its own, and then what happens to the files: stretches
overwritten, put in, taken out, cut off, repeated elsewhere or zeroed. Whatever it is, reading and recovery raise
nothing; what they yield is in the files with its checksum; each written record that is still whole is recovered,
once; and a second recovery finds the same.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest import mock

from ingest.journal import recovery, segments
from ingest.journal.segment_reader import SegmentReader
from ingest.journal.segments import Record, Totals
from tests.fuzz.targets import SCRATCH
from tests.support.databases import memory_folder
from tests.support.journals import LAYOUT

_MOST_RECORDS: Final = 8
_MOST_CHANGES: Final = 12
_CHANGE: Final = struct.Struct("<BHB")
_HEADER: Final = struct.Struct("<4s7I10Q")
"""A record's header, after the description at the top of `segments.py`: magic, its checksum, that of the lines, that
of the layout, bytes of lines of both kinds, events of both kinds, and ten numbers, of which the first is the
record's."""
_HEADER_1: Final = struct.Struct("<IIIIIIIQQQ")


def written(sizes: bytes) -> list[Record]:
    """Records with so many bytes of lines, as a journal writes them."""
    records: list[Record] = []
    totals = Totals(0, 0, 0)
    for number, size in enumerate(sizes, 1):
        events, rejected = number % 3, number % 2
        lines = b"".join([b"%d.%d\t%b\n" % (number, index, b"x" * size) for index in range(events)])
        refused = b"no %d\t%b\n" % (number, b"y" * (size // 4)) if rejected else b""
        records.append(
            Record(number, events, rejected, number, 0, lines, refused, LAYOUT, number - 1, totals, Totals(0, 0, 0))
        )
        totals = records[-1].after or totals
    return records


def intact_in(blob: bytes) -> dict[int, bytes]:
    """Number and lines of each record of format 2 that a file has whole, found without the reader."""
    found: dict[int, bytes] = {}
    layout = segments.layout_id(LAYOUT)
    for match in re.finditer(b"(?=IJN2)", blob):
        start = match.start()
        header = blob[start : start + _HEADER.size]
        if len(header) < _HEADER.size:
            continue
        _, crc, lines_crc, layout_id, event_bytes, rejected_bytes, _, _, number, *_ = _HEADER.unpack(header)
        end = start + _HEADER.size + event_bytes + rejected_bytes
        lines, footer = blob[start + _HEADER.size : end], blob[end : end + _HEADER.size]
        if (
            (crc, lines_crc, layout_id) == (zlib.crc32(header[8:]), zlib.crc32(lines), layout)
            and len(lines) == event_bytes + rejected_bytes
            and footer == b"IJE2" + header[4:]
        ):
            found[number] = lines
    return found


def damaged(script: bytes) -> tuple[list[Record], list[bytearray]]:
    """What a script says was written, and the files that it leaves."""
    shape = script[:1] or b"\0"
    count = 1 + shape[0] % _MOST_RECORDS
    records = written(script[1 : 1 + count].ljust(count, b"\x10"))
    split = count // 2 if shape[0] & 0x80 else count
    files = [bytearray(segments.encode_layout(LAYOUT)) for _ in range(2 if split < count and split else 1)]
    for index, record in enumerate(records):
        files[index >= split and len(files) > 1] += segments.encode(record)
    rest = script[1 + count :]
    for _ in range(_MOST_CHANGES):
        if len(rest) < _CHANGE.size:
            break
        how, place, length = _CHANGE.unpack_from(rest)
        content, rest = rest[_CHANGE.size : _CHANGE.size + length], rest[_CHANGE.size :]
        file = files[how >> 7 and len(files) > 1]
        at = place % (len(file) + 1)
        kind = how % 6
        if kind == 0:
            file[at : at + len(content)] = content
        elif kind == 1:
            file[at:at] = content
        elif kind == 2:
            del file[at : at + length]
        elif kind == 3:
            del file[at:]
        elif kind == 4:
            file += file[at : at + 4 * length]
        else:
            file[at : at + length] = bytes(len(file[at : at + length]))
        if kind < 2:
            rest = rest[len(content) :]
    return records, files


class RecoveryTarget:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self, data: bytes) -> None:
        if data.startswith(segments.HEAD):
            records, files = None, [bytearray(data)]
        else:
            records, files = damaged(data)
        for path in self._folder.iterdir():
            path.unlink()
        # The second begins with the record that follows those of the first, as far as names say.
        paths = [segments.path_of(self._folder, 1 + index) for index in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_bytes(content)
            self._read(path, bytes(content))
        found = self._recover()
        if records is not None:
            blob = bytes(b"".join(files))
            whole: dict[int, bytes] = {}
            for file in files:
                whole |= intact_in(bytes(file))
            for record in records:
                if any(segments.encode(record) in file for file in files):
                    assert record.number in whole, f"record {record.number} is whole, and the format does not say so"
            for number, lines in whole.items():
                # One without lines has nothing to be stored.
                assert found.get(number, b"") == lines, (
                    f"record {number} is whole, and was not recovered: {found.keys()}"
                )
            for number, lines in found.items():
                assert lines in blob, f"record {number} is nowhere in the files"
        assert self._recover() == found, "a second recovery finds something else"

    def _read(self, path: Path, content: bytes) -> None:
        """Each piece follows the one before, to the end; and each record is in the file."""
        with SegmentReader(path, known={segments.layout_id(LAYOUT): LAYOUT}) as reader:
            at = reader.offset
            for piece in reader:
                if isinstance(piece, Record):
                    assert _is_in(content[at : reader.offset], piece), f"{piece} is not in the file"
                else:
                    assert piece.offset == at and piece.size == reader.offset - at > 0, piece
                assert reader.offset > at
                at = reader.offset
            assert at == len(content)

    def _recover(self) -> dict[int, bytes]:
        """Number and lines of each pending record."""
        recovered = recovery.recover(self._folder, LAYOUT, 0)
        found: dict[int, bytes] = {}
        events = rejected = 0
        for stretch in recovered.stretches:
            with SegmentReader(stretch.source.path, stretch.start, stretch.end, recovered.layouts) as reader:
                for piece in reader:
                    if isinstance(piece, Record) and piece.number > recovered.position and piece.number not in found:
                        found[piece.number] = piece.event_lines + piece.rejected_lines
                        events += piece.events
                        rejected += piece.rejected
        assert (recovered.events, recovered.rejected) == (events, rejected), recovered
        for gap in recovered.gaps:
            assert not [number for number in found if gap.first <= number <= gap.last], (gap, found.keys())
        assert max(found, default=0) <= recovered.highest
        return found

    def finish(self) -> None:
        pass


def _is_in(stretch: bytes, record: Record) -> bool:
    """Whether a stretch of a file holds the record's lines next to a header or footer whose checksum is right."""
    lines, encoded = record.event_lines + record.rejected_lines, segments.encode(record)
    size = segments.HEADER.size
    if encoded[:size] + lines in stretch or lines + encoded[-size:] in stretch:
        return True
    tail = _HEADER_1.pack(
        0,
        0,
        zlib.crc32(lines),
        len(record.event_lines),
        len(record.rejected_lines),
        record.events,
        record.rejected,
        record.number,
        record.stored_through,
        record.opened_at_us,
    )[8:]
    return struct.pack("<II", segments.MAGIC_1, zlib.crc32(tail)) + tail + lines in stretch


@contextmanager
def opened() -> Iterator[RecoveryTarget]:
    folder = Path(tempfile.mkdtemp(prefix="ingest-fuzz-", dir=os.environ.get(SCRATCH) or memory_folder()))
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # Syncing each folder up to the root says nothing here, and would make this a test of the disk.
        with mock.patch.object(recovery, "_sync", lambda folder, paths: None):
            yield RecoveryTarget(folder)
    finally:
        logging.disable(before)
        shutil.rmtree(folder)
