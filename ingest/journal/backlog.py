"""Records of a journal that are durable but not stored yet: the writer takes them in order, and they are forgotten
once the ledger covers them.

The place of each record is kept in memory up to a limit. Those past it are only to be found on disk, and are looked
up there in order when the writer gets to them. A segment is deleted when all its records have been forgotten.

Everything runs on the event loop's thread except the methods that end in `_in_thread`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ingest.base.disk_thread import WorkThread
from ingest.journal import segments
from ingest.journal.places import PLACE_BYTES, Place
from ingest.journal.recovery import KnownSegment, Recovered, Stretch, log_damage
from ingest.journal.segment_reader import SegmentError, SegmentReader
from ingest.journal.segments import Damage, Layout, Record, Totals
from ingest.journal.survey import Gap

logger = logging.getLogger(__name__)

_GAPS_LOGGED: Final = 20
_ALREADY_AT_ONCE: Final = 1000


class Written(NamedTuple):
    """A durable record and where it is: from `offset` to `end` in the segment `path`."""

    record: Record
    path: Path
    offset: int
    end: int
    seconds: float


class _ReadBack(NamedTuple):
    """`offset` is where to continue, `last` the highest record number read."""

    places: list[Place]
    damages: list[Damage]
    already: list[Record]
    offset: int
    last: int


class Backlog:
    """Changed only by the journal it belongs to.

    `events`, `rejected` and `bytes` count what is accepted and not yet stored, including what is not durable yet;
    `rejected` counts refused events on their way to their table. Records missing on disk are included until the
    ledger shows whether they had been stored.
    """

    def __init__(
        self,
        name: str,
        memory_max_bytes: int,
        *,
        in_flight: Callable[[], tuple[int, int, int]],
        on_already_stored: Callable[[Record | Gap], None],
        on_lost: Callable[[int], None],
    ) -> None:
        """`in_flight` returns the events, rejected and bytes that are counted here but not durable yet."""
        self._name = name
        self.events = 0
        self.rejected = 0
        self.bytes = 0
        self.stored_through = 0
        self.corrupt_segments = 0
        # Durable records that are known to be lost.
        self.lost_records = 0
        # The journal's totals up to `stored_through`; None if unknown.
        self.stored_totals: Totals | None = Totals(0, 0, 0)
        # Bytes of segments on disk.
        self.disk_bytes = 0
        self._in_flight = in_flight
        self._on_already_stored = on_already_stored
        self._on_lost = on_lost
        self._most_places = memory_max_bytes // PLACE_BYTES
        self._reading = WorkThread(f"{name}-read")
        # On disk, oldest first.
        self._segments: deque[KnownSegment] = deque()
        # Durable records that the writer has not taken, oldest first. Those after them are somewhere in the stretches
        # of `_spilled`, in this order; of those, numbers up to `_read_through` have been looked up.
        self._memory: deque[Place] = deque()
        self._spilled: deque[Stretch] = deque()
        self._read_through = 0
        self._spilled_at_us = 0
        # Taken and neither stored nor lost yet, oldest first.
        self._taken: deque[Place] = deque()
        self._taken_bytes = 0
        # Records up to here were already stored when the journal was opened, and were never counted.
        self._counted_after = 0
        # Records missing on disk, and whether the ledger's position is known yet.
        self._gaps: list[Gap] = []
        self._is_ledger_known = False
        self._layouts: Mapping[int, Layout] = {}
        self._readable = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"Backlog(events={self.events}, rejected={self.rejected}, bytes={self.bytes}, "
            f"stored_through={self.stored_through}, memory={len(self._memory)}, spilled={len(self._spilled)}, "
            f"disk={self.disk_bytes})"
        )

    @property
    def has_segments(self) -> bool:
        return bool(self._segments)

    @property
    def holds_lines(self) -> bool:
        """Whether any segment has lines, including stored ones."""
        return any(one.holds_lines for one in self._segments)

    @property
    def awaits_ledger(self) -> bool:
        """Whether records are missing on disk and only the ledger can say whether they were stored."""
        return bool(self._gaps) and not self._is_ledger_known

    @property
    def oldest_us(self) -> int | None:
        """When the oldest durable record was opened, Unix microseconds; None when there is none."""
        if self._taken:
            return self._taken[0].opened_at_us
        if self._memory:
            return self._memory[0].opened_at_us
        return self._spilled_at_us if self._spilled else None

    @property
    def waiting_bytes(self) -> int:
        """Bytes of lines that are not taken, durable or not."""
        return self.bytes - self._taken_bytes

    @property
    def memory_bytes(self) -> int:
        """The memory that the places take."""
        return PLACE_BYTES * (len(self._memory) + len(self._taken))

    @property
    def newest(self) -> Place | None:
        """The newest record whose place is known and that has not been taken; None when there is none."""
        return self._memory[-1] if self._memory else None

    def add(self, events: int, rejected: int, size: int) -> None:
        """Add to the counts."""
        self.events += events
        self.rejected += rejected
        self.bytes += size

    def keep(self, written: Written) -> None:
        """A record has become durable: keep its place if there is room, otherwise only the stretch that it is in."""
        record = written.record
        if not self._segments or self._segments[-1].path != written.path:
            self._segments.append(KnownSegment(written.path, record.number, 0))
        newest = self._segments[-1]
        self.disk_bytes += written.end - newest.end
        newest.last, newest.end = record.number, written.end
        if not record.events and not record.rejected:
            return
        newest.holds_lines = True
        if not self._spilled and len(self._memory) < self._most_places:
            self._memory.append(_place(record, written.path, written.offset, written.end))
        else:
            self._spill(newest, written)
        self._readable.set()

    def _spill(self, source: KnownSegment, written: Written) -> None:
        if not self._spilled:
            self._spilled_at_us = written.record.opened_at_us
        elif self._spilled[-1].source is source:
            self._spilled[-1].end = written.end
            return
        self._spilled.append(Stretch(source, written.offset, written.end))

    def open(self, found: Recovered) -> None:
        """Start with what recovery found on disk."""
        self.stored_through = self._counted_after = self._read_through = found.position
        self.stored_totals = found.at_position
        self.corrupt_segments = found.corrupt_segments
        self._layouts = found.layouts
        self._gaps, self._is_ledger_known = list(found.gaps), found.is_of_ledger
        self.add(found.events, found.rejected, found.size)
        for gap in self._gaps:
            self.add(gap.events, gap.rejected, 0)
        self._segments.extend(found.segments)
        self.disk_bytes = sum(known.end for known in found.segments)
        self._spilled.extend(found.stretches)
        self._spilled_at_us = found.oldest_us
        self.delete_stored()
        if self._spilled or self._gaps:
            self._readable.set()

    def close(self) -> None:
        """Stop the reading thread. Repeatable."""
        self._reading.close()

    # Taking.

    async def wait_readable(self) -> None:
        """Return when there is something to take."""
        await self._readable.wait()

    async def take(self, max_bytes: int) -> list[Place]:
        """The oldest records that are not taken yet, in order: about `max_bytes` in total, at least one record, []
        when there is none. They stay pending until they are forgotten. One call at a time."""
        self._settle_gaps()
        places: list[Place] = []
        size = 0
        while self._memory and (not size or size + self._memory[0].size <= max_bytes):
            places.append(self._memory.popleft())
            size += places[-1].size
        self._taken += places
        self._taken_bytes += size
        while self._spilled and not self._memory and not places:
            places = await self._take_from_disk(max_bytes)
        if not self._memory and not self._spilled:
            self._readable.clear()
        return places

    def give_back(self) -> None:
        """Whoever took records has died, or given up: they can be taken again."""
        self._memory.extendleft(reversed(self._taken))
        self._taken.clear()
        self._taken_bytes = 0
        # Even if there are none: the next one must ask the ledger if this one has not.
        self._readable.set()

    def lose(self, numbers: Collection[int]) -> None:
        """Taken records with these numbers could not be read any more."""
        lost = [place for place in self._taken if place.number in numbers]
        self._taken = deque(place for place in self._taken if place.number not in numbers)
        for place in lost:
            self.add(-place.events, -place.rejected, -place.size)
            self._taken_bytes -= place.size
            source = next((one for one in self._segments if one.path == place.path), None)
            if source is not None:
                damage = Damage(place.offset, place.end - place.offset, None, True, at_end=False)
                self._note_damage(source, damage)
        self.lost_records += len(lost)
        if events := sum(place.events for place in lost):
            logger.error("%d acknowledged events can no longer be read from the journal", events)
            self._on_lost(events)
        self.delete_stored()

    async def _take_from_disk(self, max_bytes: int) -> list[Place]:
        stretch = self._spilled[0]
        end = stretch.end
        back = await self._reading.run(partial(self._read_back_in_thread, stretch, end, max_bytes))
        self._taken += back.places
        self._taken_bytes += sum(place.size for place in back.places)
        self._read_through = back.last
        for damage in back.damages:
            self._note_damage(stretch.source, damage)
        for record in back.already:
            self.add(-record.events, -record.rejected, -record.size)
            if record.number == self.stored_through:
                self.stored_totals = record.after
            self._on_already_stored(record)
        if back.places:
            self._spilled_at_us = back.places[-1].opened_at_us
        stretch.start = back.offset
        if stretch.start >= stretch.end:
            self._spilled.popleft()
        if not self._spilled:
            # Caught up: the places of new records are kept again.
            self._reconcile()
        return back.places

    def _read_back_in_thread(self, stretch: Stretch, end: int, max_bytes: int) -> _ReadBack:
        back = _ReadBack(places=[], damages=[], already=[], offset=end, last=self._read_through)
        path, last, size = stretch.source.path, back.last, 0
        try:
            with SegmentReader(path, stretch.start, end, self._layouts) as reader:
                at = reader.offset
                while (piece := reader.read()) is not None:
                    if isinstance(piece, Damage):
                        back.damages.append(piece)
                    elif piece.number > last:
                        last = piece.number
                        if last > self.stored_through:
                            back.places.append(_place(piece, path, at, reader.offset))
                        elif last > self._counted_after:
                            back.already.append(piece)
                        size += piece.size
                        if size >= max_bytes or len(back.already) >= _ALREADY_AT_ONCE:
                            return back._replace(offset=reader.offset, last=last)
                    at = reader.offset
        except (OSError, SegmentError) as error:
            if isinstance(error, OSError) and segments.is_passing(error):
                raise
            logger.error("segment %s/%s cannot be read: %s", path.parent.name, path.name, error)
            back.damages.append(Damage(stretch.start, end - stretch.start, None, False, at_end=True))
        return back._replace(last=last)

    def _note_damage(self, source: KnownSegment, damage: Damage) -> None:
        if not source.damaged:
            source.damaged = True
            self.corrupt_segments += 1
            log_damage(source.path, damage)

    def _reconcile(self) -> None:
        """Everything on disk has been read: whatever is still counted beyond what we hold has been damaged since
        recovery, and is lost."""
        events, rejected, size = self._in_flight()
        events += sum(record.events for record in self._taken) + sum(gap.events for gap in self._gaps)
        rejected += sum(record.rejected for record in self._taken) + sum(gap.rejected for gap in self._gaps)
        size += sum(record.size for record in self._taken)
        lost = self.events - events
        self.add(-lost, rejected - self.rejected, size - self.bytes)
        if lost:
            logger.error("%d acknowledged events can no longer be read from the journal", lost)
            # At least one: the number of records is unknown.
            self.lost_records += 1
            self._on_lost(lost)

    def _settle_gaps(self) -> None:
        """Account for records missing on disk as stored or as lost, once the ledger's position is known."""
        if not self._gaps or not self._is_ledger_known:
            return
        gaps, self._gaps = self._gaps, []
        lost = [gap for gap in gaps if gap.last > self.stored_through]
        for gap in gaps:
            self.add(-gap.events, -gap.rejected, 0)
            if gap.last <= self.stored_through:
                self._on_already_stored(gap)
        for gap in lost[:_GAPS_LOGGED]:
            logger.error("%s: %s", self._name, gap)
        if len(lost) > _GAPS_LOGGED:
            logger.error("%s: %d more such gaps", self._name, len(lost) - _GAPS_LOGGED)
        self.lost_records += sum(gap.records for gap in lost)
        if events := sum(gap.events for gap in lost):
            self._on_lost(events)

    # Forgetting.

    def forget(self, through: int) -> None:
        """The taken records up to this number are stored: they are no longer pending, and fully stored segments are
        deleted."""
        while self._taken and self._taken[0].number <= through:
            place = self._taken.popleft()
            self.add(-place.events, -place.rejected, -place.size)
            self._taken_bytes -= place.size
            if place.number > self.stored_through:
                self.stored_through, self.stored_totals = place.number, place.after
        self.delete_stored()

    def advance(self, stored_through: int) -> None:
        """The ledger says that everything up to this record is stored."""
        if stored_through > self.stored_through:
            self.stored_through, self.stored_totals = stored_through, None
        self._is_ledger_known = True
        self._settle_gaps()

    def delete_stored(self) -> None:
        """Delete fully stored segments, except the newest; set aside the damaged ones instead."""
        held = {stretch.source for stretch in self._spilled}
        # If nothing is pending, records beyond the position are empty.
        waits = self.events or self.rejected or self._taken or self._gaps
        while len(self._segments) > 1 and not (waits and self._segments[0].last > self.stored_through):
            if self._segments[0] in held:
                return
            oldest = self._segments.popleft()
            self.disk_bytes -= oldest.end
            try:
                if oldest.damaged:
                    segments.set_aside(oldest.path)
                else:
                    oldest.path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("segment %s cannot be removed: %s", oldest.path.name, error)


def _place(record: Record, path: Path, offset: int, end: int) -> Place:
    return Place(
        record.number,
        record.events,
        record.rejected,
        record.size,
        record.opened_at_us,
        path,
        offset,
        end,
        record.layout,
        record.after,
    )
