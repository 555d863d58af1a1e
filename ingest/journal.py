"""The durable log between the request and the database.

`append` puts lines into the open record and gives a future that is done when they are on stable storage.
While one record is being written and fsynced in a thread, the next one fills: group commit without a timer, so
that the wait is one or two fsyncs at any load. The writer takes records in order and forgets them once the
ledger covers them; a segment is deleted when all its records are forgotten.

Records wait in memory up to a limit. Past it they are only on disk, and are read back in order when the writer
gets there: while Postgres is away memory stays bounded for as long as the disk lasts.

Everything runs on the event loop's thread except the methods that end in `_in_thread`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from ingest import segment
from ingest.journals import Claimed
from ingest.recovery import KnownSegment, log_damage, recover
from ingest.segment import Damage, Reader, Record
from ingest.thread import WorkThread

logger = logging.getLogger(__name__)

MAX_OPEN_BYTES: Final = 8 * 1024 * 1024
"""Lines that may wait for the fsync in flight. More means that the disk is far behind: answer 503 instead."""
_O_DSYNC: Final = getattr(os, "O_DSYNC", 0)
_SYNCED_BY_WRITE: Final = bool(_O_DSYNC) and sys.platform == "linux"
"""On Linux a write to such a descriptor is a write and an fdatasync in one system call."""
RECORD_BITS: Final = 40
"""batch_id = journal number << 40 | record number."""


class JournalFull(Exception):
    """There is no room: the byte limit is reached, or the disk does not keep up. Nothing was taken; try later."""


class JournalFailed(Exception):
    """The record could not be made durable: the disk is full or broken. Nothing of it is acknowledged."""


class Backlog:
    """What is accepted and not yet stored, counted: `rejected` are refused events on their way to their table."""

    __slots__ = ("bytes", "events", "rejected")

    def __init__(self) -> None:
        self.events = 0
        self.rejected = 0
        self.bytes = 0

    def add(self, events: int, rejected: int, size: int) -> None:
        self.events += events
        self.rejected += rejected
        self.bytes += size

    def __repr__(self) -> str:
        return f"Backlog(events={self.events}, rejected={self.rejected}, bytes={self.bytes})"


class OpenRecord:
    """The record that requests are added to until the fsync in flight returns; then a handle to wait on.

    Changed by the journal only. `outcome` is None until the record is settled, then whether it is durable.
    """

    __slots__ = (
        "events",
        "keys",
        "lines",
        "number",
        "opened_at_us",
        "outcome",
        "rejected",
        "rejected_lines",
        "size",
        "waiters",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.opened_at_us = 0
        self.lines: list[str] = []
        self.rejected_lines: list[str] = []
        self.events = 0
        self.rejected = 0
        self.size = 0
        self.keys: list[bytes] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.outcome: bool | None = None


class _Written(NamedTuple):
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


class Journal:
    """One folder of segments, appended to by the process that has claimed it. `recover` it before use."""

    def __init__(
        self,
        claimed: Claimed,
        *,
        segment_bytes: int,
        max_bytes: int,
        memory_max_bytes: int,
        on_settled: Callable[[OpenRecord], None] = lambda record: None,
        on_lost: Callable[[int], None] = lambda events: None,
    ) -> None:
        self.folder = claimed.folder
        self.layout = claimed.layout
        self.backlog = Backlog()
        self.stored_through = 0
        self.failed_writes = 0
        self.corrupt_segments = 0
        self.torn_bytes = 0
        # Called after a write with its seconds and bytes; with a record that the ledger turned out to cover
        # although it was counted as pending.
        self.on_fsync: Callable[[float, int], None] = lambda seconds, size: None
        self.on_already_stored: Callable[[Record], None] = lambda record: None
        self._on_settled = on_settled
        self._on_lost = on_lost
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._memory_max_bytes = memory_max_bytes
        self._thread = WorkThread(f"journal-{self.number}")
        self._reading = WorkThread(f"journal-{self.number}-read")
        self._claimed = claimed
        self._closed = False
        # On disk, oldest first, and their bytes together.
        self._segments: deque[KnownSegment] = deque()
        self._disk_bytes = 0
        # Used by the write in flight only: where the next record goes. None: it begins a new segment.
        self._descriptor: int | None = None
        self._path = claimed.folder
        self._offset = 0
        self._open = OpenRecord(1)
        self._writing: OpenRecord | None = None
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Durable records that the writer has not taken, oldest first. Once `_spilled` is set, whatever comes
        # after them is only on disk, from that position on. `_memory_bytes` counts the taken ones too.
        self._memory: deque[Record] = deque()
        self._memory_bytes = 0
        self._spilled: tuple[Path, int] | None = None
        self._spilled_at_us = 0
        self._taken: list[Record] = []
        # Records up to here were stored when we opened, and never counted; how far the newest record says it is.
        self._counted_after = 0
        self._noted = 0
        self._readable = asyncio.Event()

    def __repr__(self) -> str:
        return (
            f"Journal({self.layout.journal}, open={self._open.number}, stored_through={self.stored_through}, "
            f"{self.backlog}, memory={len(self._memory)}, spilled={self._spilled}, disk={self._disk_bytes})"
        )

    @property
    def number(self) -> int:
        return self.layout.journal

    @property
    def disk_bytes(self) -> int:
        return self._disk_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of lines held in memory: durable ones not stored yet, and those on their way to the disk."""
        return self._memory_bytes + self._open.size + (self._writing.size if self._writing else 0)

    @property
    def last_record(self) -> int:
        """The number of the newest durable record, or of the one being written."""
        return self._open.number - 1

    @property
    def newest_record(self) -> int:
        """The number of the record that the newest lines are in, durable or not yet."""
        return self._open.number if self._open.opened_at_us else self._open.number - 1

    def is_stored(self, number: int) -> bool:
        """Whether what there was up to this record is in the database, or could not be made durable."""
        return not self.has_backlog or self.stored_through >= number

    @property
    def has_room(self) -> bool:
        """Whether the byte limit leaves room for one more full record."""
        return self._disk_bytes + min(MAX_OPEN_BYTES, self._max_bytes // 8) <= self._max_bytes

    @property
    def has_backlog(self) -> bool:
        """Whether anything waits to be stored."""
        return bool(self.backlog.events or self.backlog.rejected)

    @property
    def batch_id(self) -> int:
        """The batch_id of lines appended now, before anything else is awaited."""
        return self.layout.journal << RECORD_BITS | self._open.number

    @property
    def oldest_us(self) -> int | None:
        """When the oldest pending record was opened, Unix microseconds; None when nothing is pending."""
        if self._taken:
            return self._taken[0].opened_at_us
        if self._memory:
            return self._memory[0].opened_at_us
        if self._spilled:
            return self._spilled_at_us
        first = self._writing or self._open
        return first.opened_at_us or None

    # Appending.

    def append(
        self,
        lines: Sequence[str],
        events: int,
        keys: list[bytes],
        rejected_lines: Sequence[str] = (),
        rejected: int = 0,
    ) -> OpenRecord:
        """Add lines to the open record; `wait` on the record that is returned to know when they are durable.

        The lines end with the `batch_id` read since the last await. `keys` are the message ids in them.
        Raises JournalFull, having taken nothing.
        """
        record = self._open
        size = sum(map(len, lines)) + sum(map(len, rejected_lines))
        if record.size and record.size + size > MAX_OPEN_BYTES:
            raise JournalFull("the disk does not keep up")
        self.check_room(size)
        if not record.opened_at_us:
            record.opened_at_us = time.time_ns() // 1000
        record.lines += lines
        record.rejected_lines += rejected_lines
        record.events += events
        record.rejected += rejected
        record.size += size
        record.keys += keys
        self.backlog.add(events, rejected, size)
        if self._writing is None and not self._scheduled:
            # Not at once: other requests that are ready in this turn of the loop join the record.
            self._scheduled = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._begin_write)
        return record

    def check_room(self, size: int) -> None:
        """Raise JournalFull unless there is room for so many bytes of lines."""
        waiting = self._writing.size if self._writing else 0
        if self._disk_bytes + waiting + self._open.size + size > self._max_bytes:
            raise JournalFull("the journal has reached its byte limit")

    async def wait(self, record: OpenRecord) -> None:
        """Return when the record is durable; raise JournalFailed if it could not be made so."""
        if record.outcome is None:
            # A future of one's own: a cancelled request must not cancel its neighbours'.
            waiter = asyncio.get_running_loop().create_future()
            record.waiters.append(waiter)
            await waiter
        if not record.outcome:
            raise JournalFailed("the journal could not be written")

    def settle_with(self, records: Sequence[OpenRecord], waiter: asyncio.Future[None]) -> None:
        """Set the waiter's result when all these records are settled, one way or the other; see their `outcome`."""
        # Records are settled in order, and hardly any request is in more than one.
        newest = records[0] if len(records) == 1 else max(records, key=lambda record: record.number, default=None)
        if newest is not None and newest.outcome is None:
            newest.waiters.append(waiter)
        elif not waiter.done():
            waiter.set_result(None)

    def _begin_write(self) -> None:
        self._scheduled = False
        record = self._open
        self._writing = record
        self._open = OpenRecord(record.number + 1)
        durable = Record(
            number=record.number,
            events=record.events,
            rejected=record.rejected,
            opened_at_us=record.opened_at_us,
            stored_through=self.stored_through,
            event_lines=_encode(record.lines),
            rejected_lines=_encode(record.rejected_lines),
            layout=self.layout,
        )
        # All of the computing is done here: while the loop is busy the thread waits for the interpreter's lock
        # each time it needs it, so it should need it once, between two system calls.
        self._thread.submit(partial(self._write_in_thread, durable, segment.encode(durable)), self._finish_write)

    def _write_in_thread(self, record: Record, encoded: bytes) -> _Written:
        started = time.perf_counter()
        if self._descriptor is None or self._offset >= self._segment_bytes:
            self._begin_segment_in_thread(record.number)
        assert self._descriptor is not None
        offset = self._offset
        try:
            _write_all(self._descriptor, encoded)
            if not _SYNCED_BY_WRITE:
                os.fdatasync(self._descriptor)
        except OSError:
            self._abandon_segment_in_thread()
            raise
        self._offset += len(encoded)
        return _Written(record, self._path, offset, self._offset, time.perf_counter() - started)

    def _begin_segment_in_thread(self, first_number: int) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        path = segment.path_of(self.folder, first_number)
        head = segment.encode_layout(self.layout)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _O_DSYNC, 0o600)
        try:
            _write_all(descriptor, head)
            segment.flush_folder(self.folder)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._descriptor, self._path, self._offset = descriptor, path, len(head)

    def _abandon_segment_in_thread(self) -> None:
        """After a failed write or fsync the descriptor is never used again: the kernel may have dropped the
        dirty pages and would report the next fsync as good (https://wiki.postgresql.org/wiki/Fsync_Errors).
        What was acknowledged in it is durable; the rest is cut off, or found torn at the next start."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._offset)
        except OSError as error:
            logger.warning("the segment %s cannot be cut after a failed write: %s", self._path.name, error)
        os.close(self._descriptor)
        self._descriptor = None

    def _finish_write(self, written: _Written | None, error: BaseException | None) -> None:
        record = self._writing
        assert record is not None
        self._writing = None
        if written is not None:
            record.outcome = True
            self._keep(written)
        else:
            record.outcome = False
            self.failed_writes += 1
            self.backlog.add(-record.events, -record.rejected, -record.size)
            logger.error("journal %d cannot write: %s", self.number, error)
        self._on_settled(record)
        # The lines are in the durable record now, or nowhere; a handle that lives on must not hold them.
        record.lines, record.rejected_lines, record.keys = [], [], []
        for waiter in record.waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._open.opened_at_us:
            self._begin_write()
        else:
            self._idle.set()

    def _keep(self, written: _Written) -> None:
        record = written.record
        if not self._segments or self._segments[-1].path != written.path:
            self._segments.append(KnownSegment(written.path, record.number, 0))
        newest = self._segments[-1]
        self._disk_bytes += written.end - newest.end
        newest.last, newest.end = record.number, written.end
        self._noted = record.stored_through
        self.on_fsync(written.seconds, record.size)
        if not record.events and not record.rejected:
            return
        if self._spilled is None:
            if self._memory_bytes + record.size <= self._memory_max_bytes:
                self._memory.append(record)
                self._memory_bytes += record.size
            else:
                self._spilled = (written.path, written.offset)
                self._spilled_at_us = record.opened_at_us
        self._readable.set()

    # Taking and forgetting.

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
        self._memory_bytes += sum(record.size for record in back.records)
        for damage in back.damages:
            self._note_damage(source, damage)
        for record in back.already:
            self.backlog.add(-record.events, -record.rejected, -record.size)
            self.on_already_stored(record)
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
        events = sum(record.events for record in self._taken)
        rejected = sum(record.rejected for record in self._taken)
        size = sum(record.size for record in self._taken)
        for record in (self._writing, self._open):
            if record:
                events, rejected, size = (
                    events + record.events,
                    rejected + record.rejected,
                    size + record.size,
                )
        lost = self.backlog.events - events
        self.backlog.add(-lost, rejected - self.backlog.rejected, size - self.backlog.bytes)
        if lost:
            self._on_lost(lost)

    def forget(self, count: int) -> None:
        """The first `count` of the taken records are stored: they are no longer pending, and segments all of
        which is stored are deleted."""
        for record in self._taken[:count]:
            self.backlog.add(-record.events, -record.rejected, -record.size)
            self._memory_bytes -= record.size
            self.stored_through = max(self.stored_through, record.number)
        self._taken = self._taken[count:]
        self._delete_stored()

    def advance(self, stored_through: int) -> None:
        """The ledger says that everything up to this record is stored."""
        self.stored_through = max(self.stored_through, stored_through)
        if self._open.number <= stored_through:
            # The ledger is ahead of the files: they were lost or restored from a copy. Never use a number twice.
            self._open.number = stored_through + 1

    def _delete_stored(self) -> None:
        held = self._spilled[0] if self._spilled else None
        while len(self._segments) > 1 and self._segments[0].last <= self.stored_through:
            if self._segments[0].path == held:
                return
            oldest = self._segments.popleft()
            self._disk_bytes -= oldest.end
            try:
                if oldest.damaged:
                    oldest.path.rename(oldest.path.with_suffix(".damaged"))
                else:
                    oldest.path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("segment %s cannot be removed: %s", oldest.path.name, error)

    # Opening and closing.

    def recover(self, stored_through: int | None) -> None:
        """Read the segments that are on disk, before the first append. Synchronous: call it in a thread.

        `stored_through` is the ledger's position; None when the database cannot be asked yet: then the newest
        record tells how far the ledger had come when it was written, and the writer learns the rest later.
        """
        found = recover(self.folder, stored_through)
        self.stored_through = self._counted_after = self._noted = found.position
        self.corrupt_segments, self.torn_bytes = found.corrupt_segments, found.torn_bytes
        self.backlog.add(found.events, found.rejected, found.size)
        self._segments.extend(found.segments)
        self._disk_bytes = sum(known.end for known in found.segments)
        self._open = OpenRecord(max(found.position, *(known.last for known in found.segments), 0) + 1)
        self._delete_stored()
        if self.has_backlog:
            self._spilled = (self._segments[0].path, 0)
            self._spilled_at_us = found.oldest_us
            self._readable.set()

    async def close(self) -> None:
        """Wait for what is being written, note how far the ledger is, then let the folder go. Repeatable."""
        await self._idle.wait()
        if self._closed:
            return
        if self._segments and self.stored_through > self._noted:
            # An empty record: the next start knows without the database what is stored.
            with contextlib.suppress(JournalFull, JournalFailed):
                await self.wait(self.append((), 0, []))
            await self._idle.wait()
        self._thread.close()
        self._reading.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._closed = True
        self._claimed.release()


def _encode(lines: list[str]) -> bytes:
    """One by one: joined first, a single text outside Latin-1 would make the whole record wide and slow.

    "replace" can never be needed, but one text that is not well-formed must not fail its neighbours.
    """
    return b"".join([line.encode("utf-8", "replace") for line in lines])


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
