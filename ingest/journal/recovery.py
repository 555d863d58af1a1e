"""What a journal finds on disk when it is opened: the pending records, and any damage by a crash or by the disk.

A record is fsynced before the next one is written, so a crash can only tear the last record of the newest segment.
That record was never acknowledged; it is cut off and kept in a file next to the segment. Any other damage or loss has
hit durable records: it is counted and logged, the records around it are stored, and the segment is set aside instead
of deleted. A file that cannot be read at all is set aside immediately; none of this stops the other files.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ingest.journal import segments
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Damage, Layout, Totals
from ingest.journal.survey import Gap, Survey, SurveyedSegment, survey

logger = logging.getLogger(__name__)

_DAMAGES_LOGGED: Final = 5
"""Per segment. One that is damaged all over would fill the log."""

_HEAD_BYTES: Final = 64 * 1024
"""More than the head of a segment takes."""


class KnownSegment:
    """A segment on disk: `last` is its highest record number, `end` its size in bytes, `holds_lines` whether any
    record has, or may have had, lines; all three change while it is the newest. Once all its intact records are
    stored, a damaged segment is set aside instead of deleted."""

    __slots__ = ("damaged", "end", "holds_lines", "last", "path")

    def __init__(self, path: Path, last: int, end: int) -> None:
        self.path = path
        self.last = last
        self.end = end
        self.damaged = False
        self.holds_lines = False


class Stretch:
    """A part of a segment that is still to be read; `start` advances as it is."""

    __slots__ = ("end", "source", "start")

    def __init__(self, source: KnownSegment, start: int, end: int) -> None:
        self.source = source
        self.start = start
        self.end = end


class Recovered(NamedTuple):
    """`position`: every record up to it is stored.  events, rejected, size: what is pending beyond it in `stretches`,
    and since when (`oldest_us`, Unix microseconds); missing records are in `gaps`.  newest, totals: the number of the
    last durable record, and the journal's totals up to it.  highest: no number up to it may be reused."""

    position: int
    is_of_ledger: bool
    at_position: Totals | None
    segments: list[KnownSegment]
    stretches: list[Stretch]
    gaps: list[Gap]
    events: int
    rejected: int
    size: int
    oldest_us: int
    newest: int
    totals: Totals
    highest: int
    layouts: Mapping[int, Layout]
    corrupt_segments: int
    torn_bytes: int


def recover(folder: Path, layout: Layout, stored_through: int | None) -> Recovered:
    """Read all segments of a journal; cut off a torn tail, set aside files that cannot be read at all.

    `stored_through` is the ledger's position, None when it is not known; the newest record notes the position at
    the time it was written.
    """
    paths, mark = segments.list_segments(folder), segments.read_mark(folder)
    _sync(folder, paths)
    noted = max(mark.stored_through if mark else 0, _noted_position(paths[-1]) if paths else 0)
    found = survey(paths, max(stored_through or 0, noted), layout, mark)
    known: dict[Path, KnownSegment] = {}
    corrupt_segments = torn_bytes = 0
    for one in sorted(found.segments, key=lambda one: one.last):
        if _is_leftover(one, found):
            one.path.unlink(missing_ok=True)
            continue
        if one.trouble is not None or not (one.last or one.damages or one.is_sound):
            corrupt_segments += 1
            _set_aside(one)
            continue
        kept = known[one.path] = KnownSegment(one.path, one.last, one.size)
        kept.holds_lines = one.holds_lines
        damages = one.damages
        if damages and _is_torn(one, damages[-1], found) and _cut_torn_tail(kept, damages[-1]):
            torn_bytes += damages[-1].size
            damages = damages[:-1]
        if damages or not one.is_sound or one.duplicates:
            kept.damaged = True
            corrupt_segments += 1
            _log_damages(one, damages)
    runs = [run for run in found.runs if run.events or run.rejected]
    return Recovered(
        found.position,
        stored_through is not None,
        found.at_position,
        list(known.values()),
        [Stretch(known[run.path], run.start, run.end) for run in runs],
        found.gaps,
        sum(run.events for run in runs),
        sum(run.rejected for run in runs),
        sum(run.size for run in runs),
        next((run.oldest_us for run in runs if run.oldest_us), 0),
        found.covered,
        found.totals or Totals(0, 0, 0),
        found.highest,
        found.known,
        corrupt_segments,
        torn_bytes,
    )


def _sync(folder: Path, paths: Sequence[Path]) -> None:
    """A process that was killed may have left records, and names of files and folders, that only the kernel's memory
    has. What is acknowledged from now on must not depend on those."""
    for path in (*paths, folder, *folder.parents):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if segments.is_passing(error):
                raise
            # A folder that is not ours to read is older than the journal; and what is no file cannot be synced.
            harmless = isinstance(error, PermissionError) or error.errno == errno.EINVAL
            logger.log(logging.DEBUG if harmless else logging.WARNING, "%s cannot be synced: %s", path, error)


def log_damage(path: Path, damage: Damage) -> None:
    """Log a damage with its place and the number of events lost."""
    logger.error(
        "segment %s/%s is damaged: %d bytes at %d, %s; it will be set aside",
        path.parent.name,
        path.name,
        damage.size,
        damage.offset,
        "an unknown number of events" if damage.events is None else f"{damage.events} events",
    )


def _noted_position(path: Path) -> int:
    try:
        with SegmentReader(path) as reader:
            headers = (piece.header if isinstance(piece, Damage) else piece for piece in reader)
            return max((header.stored_through for header in headers if header is not None), default=0)
    except (OSError, SegmentError):
        return 0


def _is_leftover(one: SurveyedSegment, found: Survey) -> bool:
    """Whether a crash left this file between creating it and writing its first record. False if anything is missing
    that might have been in it."""
    if one.trouble is not None or one.last or one.damages or found.gaps:
        return False
    try:
        head = one.path.read_bytes() if one.size < _HEAD_BYTES else b"\0"
    except OSError:
        return False
    return segments.HEAD.startswith(head[: len(segments.HEAD)]) and b"\0" not in head


def _is_torn(one: SurveyedSegment, damage: Damage, found: Survey) -> bool:
    """Whether this damage is the torn end of an unacknowledged write: no missing durable record could have been
    there."""
    after = max(one.last, found.position)
    if damage.header is not None and damage.header.number <= found.covered:
        return False
    return damage.at_end and not any(gap.first == after + 1 for gap in found.gaps)


def _set_aside(one: SurveyedSegment) -> None:
    folder, name = one.path.parent.name, one.path.name
    trouble = one.trouble or "there is no record in it"
    try:
        target = segments.set_aside(one.path)
    except OSError as error:
        logger.error("segment %s/%s is skipped: %s; it cannot be set aside: %s", folder, name, trouble, error)
    else:
        logger.error("segment %s/%s is set aside as %s: %s", folder, name, target.name, trouble)


def _log_damages(one: SurveyedSegment, damages: list[Damage]) -> None:
    for damage in damages[:_DAMAGES_LOGGED]:
        log_damage(one.path, damage)
    more = []
    if len(damages) > _DAMAGES_LOGGED:
        more.append(f"{len(damages) - _DAMAGES_LOGGED} more places are damaged")
    if not one.is_sound:
        more.append("its first lines are damaged")
    if one.duplicates:
        more.append("it has records that other segments have too")
    if more:
        folder, name = one.path.parent.name, one.path.name
        logger.error("segment %s/%s: %s; it will be set aside", folder, name, ", and ".join(more))


def _cut_torn_tail(known: KnownSegment, damage: Damage) -> bool:
    """Move the torn end into a file next to the segment. It is kept because a torn record looks the same as one that
    rotted later, and nothing should vanish silently. False if it cannot be done."""
    folder, name = known.path.parent.name, known.path.name
    try:
        with known.path.open("r+b") as file:
            file.seek(damage.offset)
            torn = file.read(damage.size)
            with segments.free_name(known.path.with_suffix(segments.TORN)).open("xb") as kept:
                kept.write(torn)
                kept.flush()
                os.fsync(kept.fileno())
            file.truncate(damage.offset)
            os.fsync(file.fileno())
    except OSError as error:
        logger.error("segment %s/%s: the torn end cannot be cut off: %s", folder, name, error)
        return False
    known.end = damage.offset
    logger.warning("segment %s/%s: cut %d bytes of a record that was never acknowledged", folder, name, damage.size)
    return True
