"""What a journal finds on its disk when it is opened: which records wait, and what a crash or the disk has done.

A record is fsynced before the next one is written, so a crash can tear the last record of the newest segment only.
That one was never acknowledged and is cut off. Damage anywhere else has hit something that was durable: it is
reported, the records around it are stored, and the segment is set aside instead of deleted.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from ingest import segment
from ingest.segment import Damage, Reader, Record, SegmentError

logger = logging.getLogger(__name__)


class KnownSegment:
    """A segment on disk: `last` is its highest record number, `end` its durable bytes; both grow while it is the
    newest. A damaged one is set aside instead of deleted when its good records are stored."""

    __slots__ = ("damaged", "end", "last", "path")

    def __init__(self, path: Path, last: int, end: int) -> None:
        self.path = path
        self.last = last
        self.end = end
        self.damaged = False


class Recovered(NamedTuple):
    """`position`: every record up to it is stored.  events, rejected, size: what waits beyond it, and since
    when (`oldest_us`, Unix microseconds)."""

    position: int
    segments: list[KnownSegment]
    events: int
    rejected: int
    size: int
    oldest_us: int
    corrupt_segments: int
    torn_bytes: int


def recover(folder: Path, stored_through: int | None) -> Recovered:
    """Read all segments of a journal; cut a torn tail, set aside what cannot be read at all.

    `stored_through` is the ledger's position, None when it is not known; the newest record tells how far the
    ledger had come when it was written.
    """
    paths, corrupt_segments = _readable_segments(folder)
    position = max(stored_through or 0, _noted_position(paths[-1]) if paths else 0)
    segments: list[KnownSegment] = []
    events = rejected = size = oldest_us = torn_bytes = 0
    for path in paths:
        known = KnownSegment(path, 0, path.stat().st_size)
        segments.append(known)
        with Reader(path) as reader:
            for piece in reader:
                if isinstance(piece, Record):
                    known.last = piece.number
                    if piece.number <= position:
                        continue
                    oldest_us = oldest_us or piece.opened_at_us
                    rejected, size = rejected + piece.rejected, size + piece.size
                elif path == paths[-1] and piece.at_end:
                    _cut_torn_tail(known, piece)
                    torn_bytes += piece.size
                    continue
                elif not known.damaged:
                    known.damaged = True
                    corrupt_segments += 1
                    log_damage(path, piece)
                # Those of a damaged record are pending, too, until the writer has read past it and knows them lost.
                events += piece.events
    return Recovered(position, segments, events, rejected, size, oldest_us, corrupt_segments, torn_bytes)


def log_damage(path: Path, damage: Damage) -> None:
    """Say it where a person may see it."""
    logger.error(
        "segment %s/%s is damaged: %d bytes at %d, %s; it will be set aside",
        path.parent.name,
        path.name,
        damage.size,
        damage.offset,
        f"{damage.events} events" if damage.events else "an unknown number of events",
    )


def _readable_segments(folder: Path) -> tuple[list[Path], int]:
    good: list[Path] = []
    corrupt = 0
    for path in segment.list_segments(folder):
        try:
            Reader(path).close()
        except SegmentError as error:
            corrupt += _set_aside(path, error)
        else:
            good.append(path)
    return good, corrupt


def _set_aside(path: Path, error: SegmentError) -> bool:
    """Put away a segment without a readable first line; whether it held anything."""
    if segment.MAGIC.to_bytes(4, "little") not in path.read_bytes():
        # A crash between making the file and writing its first record: nothing was acknowledged in it.
        path.unlink()
        return False
    path.rename(path.with_suffix(".damaged"))
    logger.error("segment %s/%s is set aside: %s", path.parent.name, path.name, error)
    return True


def _noted_position(path: Path) -> int:
    with Reader(path) as reader:
        return max((piece.stored_through for piece in reader if isinstance(piece, Record)), default=0)


def _cut_torn_tail(known: KnownSegment, damage: Damage) -> None:
    """Kept beside the segment all the same: nobody can tell a torn record from one that rotted later, and nothing
    should vanish silently."""
    with known.path.open("r+b") as file:
        file.seek(damage.offset)
        known.path.with_suffix(".torn").write_bytes(file.read(damage.size))
        file.truncate(damage.offset)
        os.fsync(file.fileno())
    known.end = damage.offset
    logger.warning(
        "segment %s/%s: cut %d bytes of a record that was never acknowledged",
        known.path.parent.name,
        known.path.name,
        damage.size,
    )
