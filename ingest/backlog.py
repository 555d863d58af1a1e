"""What is durable in a journal and not stored yet: taken in order by the writer, forgotten once the ledger covers it.

Records wait in memory up to a limit. Past it they are only on disk, and are read back in order when the writer
gets there. A segment is deleted when all its records are forgotten.

Everything runs on the event loop's thread except the methods that end in `_in_thread`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ingest.recovery import KnownSegment, Recovered, log_damage
from ingest.segment import Damage, Reader, Record
from ingest.thread import WorkThread

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """A record that is durable, and where it stands: from `offset` to `end` of the segment `path`."""

    record: Record
    path: Path
    offset: int
    end: int
    seconds: float


class _ReadBack(NamedTuple):
    records: list[Record]
    damages: list[Damage]
    already: list[Record]
    position: tuple[Path, int]


class Backlog:
    """Changed by the journal it belongs to only.

    `events`, `rejected` and `bytes` count what is accepted and not yet stored, also what is not durable yet;
    `rejected` are refused events on their way to their table.
    """

    def __init__(
        self,
        name: str,
        memory_max_bytes: int,
        in_flight: Callable[[], tuple[int, int, int]],
        on_already_stored: Callable[[Record], None],
        on_lost: Callable[[int], None],
    ) -> None:
        """`in_flight` tells events, rejected and bytes of what is counted here and not durable yet."""
        self.events = 0
        self.rejected = 0
        self.bytes = 0
        self.stored_through = 0
        self.corrupt_segments = 0
        # Bytes of the lines held in memory, those of the taken records too; bytes of the segments on disk.
        self.memory_bytes = 0
        self.disk_bytes = 0
        self._in_flight = in_flight
        self._on_already_stored = on_already_stored
        self._on_lost = on_lost
        self._memory_max_bytes = memory_max_bytes
        self._reading = WorkThread(f"{name}-read")
        # On disk, oldest first.
        self._segments: deque[KnownSegment] = deque()
        # Durable records that the writer has not taken, oldest first. Once `_spilled` is set, whatever comes
        # after them is only on disk, from that position on.
        self._memory: deque[Record] = deque()
        self._spilled: tuple[Path, int] | None = None
        self._spilled_at_us = 0
        self._taken: list[Record] = []
        # Records up to here were stored when we opened, and never counted.
        self._counted_after = 0
        self._readable = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"Backlog(events={self.events}, rejected={self.rejected}, bytes={self.bytes}, "
            f"stored_through={self.stored_through}, memory={len(self._memory)}, spilled={self._spilled}, "
            f"disk={self.disk_bytes})"
        )

    @property
    def has_segments(self) -> bool:
        return bool(self._segments)

    @property
    def oldest_us(self) -> int | None:
        """When the oldest durable record was opened, Unix microseconds; None when there is none."""
        if self._taken:
            return self._taken[0].opened_at_us
        if self._memory:
            return self._memory[0].opened_at_us
        return self._spilled_at_us if self._spilled else None

    @property
    def newest(self) -> Record | None:
        """The last of the records that wait in memory and are not taken; None when there is none."""
        return self._memory[-1] if self._memory else None

    def add(self, events: int, rejected: int, size: int) -> None:
        """Count so many more."""
        self.events += events
        self.rejected += rejected
        self.bytes += size

    def keep(self, written: Written) -> None:
        """A record is durable: it waits in memory if there is room, else where it stands."""
        record = written.record
        if not self._segments or self._segments[-1].path != written.path:
            self._segments.append(KnownSegment(written.path, record.number, 0))
        newest = self._segments[-1]
        self.disk_bytes += written.end - newest.end
        newest.last, newest.end = record.number, written.end
        if not record.events and not record.rejected:
            return
        if self._spilled is None:
            if self.memory_bytes + record.size <= self._memory_max_bytes:
                self._memory.append(record)
                self.memory_bytes += record.size
            else:
                self._spilled = (written.path, written.offset)
                self._spilled_at_us = record.opened_at_us
        self._readable.set()

    def open(self, found: Recovered) -> int:
        """Begin with what was found on disk; the highest number of a record in it, or that was stored."""
        self.stored_through = self._counted_after = found.position
        self.corrupt_segments = found.corrupt_segments
        self.add(found.events, found.rejected, found.size)
        self._segments.extend(found.segments)
        self.disk_bytes = sum(known.end for known in found.segments)
        self._delete_stored()
        if self.events or self.rejected:
            self._spilled = (self._segments[0].path, 0)
            self._spilled_at_us = found.oldest_us
            self._readable.set()
        return max(found.position, *(known.last for known in found.segments), 0)

    def close(self) -> None:
        """End the thread. Repeatable."""
        self._reading.close()

    # Taking.

    async def wait_readable(self) -> None:
        """Return when there is something to take."""
        await self._readable.wait()

    async def take(self, max_bytes: int) -> list[Record]:
        """The oldest records that are not stored, in order, of one layout, some `max_bytes` together but at
        least one; [] when there is none. They stay pending until they are forgotten."""
        assert not self._taken, "forget what was taken first"
        if self._memory:
            size = 0
            while self._memory and (not size or size + self._memory[0].size <= max_bytes):
                record = self._memory.popleft()
                self._taken.append(record)
                size += record.size
        elif self._spilled:
            await self._take_from_disk(max_bytes)
        if not self._memory and self._spilled is None:
            self._readable.clear()
        return list(self._taken)

    async def _take_from_disk(self, max_bytes: int) -> None:
        assert self._spilled is not None
        path, offset = self._spilled
        index = next(i for i, known in enumerate(self._segments) if known.path == path)
        source = self._segments[index]
        back = await self._reading.run(partial(self._read_back_in_thread, path, offset, source.end, max_bytes))
        self._taken = back.records
        self.memory_bytes += sum(record.size for record in back.records)
        for damage in back.damages:
            self._note_damage(source, damage)
        for record in back.already:
            self.add(-record.events, -record.rejected, -record.size)
            self._on_already_stored(record)
        if back.records:
            self._spilled_at_us = back.records[-1].opened_at_us
        self._spilled = back.position
        if back.position[1] >= source.end:
            if source is self._segments[-1]:
                # Caught up: what is appended from now on goes through memory again.
                self._spilled = None
                self._reconcile()
            else:
                self._spilled = (self._segments[index + 1].path, 0)

    def _read_back_in_thread(self, path: Path, offset: int, end: int, max_bytes: int) -> _ReadBack:
        records: list[Record] = []
        damages: list[Damage] = []
        already: list[Record] = []
        size = 0
        with Reader(path, offset, end) as reader:
            while size < max_bytes and (piece := reader.read()) is not None:
                if isinstance(piece, Damage):
                    damages.append(piece)
                elif piece.number > self.stored_through:
                    records.append(piece)
                    size += piece.size
                elif piece.number > self._counted_after:
                    already.append(piece)
                    size += piece.size
            return _ReadBack(records, damages, already, (path, reader.offset))

    def _note_damage(self, source: KnownSegment, damage: Damage) -> None:
        if not source.damaged:
            source.damaged = True
            self.corrupt_segments += 1
            log_damage(source.path, damage)

    def _reconcile(self) -> None:
        """The disk is read to its end: what is pending beyond what we hold was in a damaged stretch."""
        events, rejected, size = self._in_flight()
        events += sum(record.events for record in self._taken)
        rejected += sum(record.rejected for record in self._taken)
        size += sum(record.size for record in self._taken)
        lost = self.events - events
        self.add(-lost, rejected - self.rejected, size - self.bytes)
        if lost:
            self._on_lost(lost)

    # Forgetting.

    def forget(self, count: int) -> None:
        """The first `count` of the taken records are stored: they are no longer pending, and segments all of
        which is stored are deleted."""
        for record in self._taken[:count]:
            self.add(-record.events, -record.rejected, -record.size)
            self.memory_bytes -= record.size
            self.stored_through = max(self.stored_through, record.number)
        self._taken = self._taken[count:]
        self._delete_stored()

    def advance(self, stored_through: int) -> None:
        """The ledger says that everything up to this record is stored."""
        self.stored_through = max(self.stored_through, stored_through)

    def _delete_stored(self) -> None:
        held = self._spilled[0] if self._spilled else None
        while len(self._segments) > 1 and self._segments[0].last <= self.stored_through:
            if self._segments[0].path == held:
                return
            oldest = self._segments.popleft()
            self.disk_bytes -= oldest.end
            try:
                if oldest.damaged:
                    oldest.path.rename(oldest.path.with_suffix(".damaged"))
                else:
                    oldest.path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("segment %s cannot be removed: %s", oldest.path.name, error)
