"""The durable log between the request and the database.

`append` adds lines to the open record, and `wait` returns once that record is on stable storage. While one record is
being written and fsynced in a thread, the next one fills up: group commit without a timer, so the wait is one or two
fsyncs at any load. Durable records go to the Backlog, from which the writer takes them in order, and which forgets
them once the ledger covers them: while Postgres is down, memory stays bounded and only the disk fills.

Everything runs on the event loop's thread except the SegmentWriter's writes, and `recover`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ingest.base.disk_thread import WorkThread
from ingest.base.refusals import RejectReason
from ingest.base.waits import set_done
from ingest.journal import segments
from ingest.journal.backlog import Backlog, Written
from ingest.journal.batch_ids import batch_id
from ingest.journal.journals import Claimed
from ingest.journal.open_record import OpenRecord, encode
from ingest.journal.places import Place
from ingest.journal.recovery import recover
from ingest.journal.segment_writer import SegmentWriter
from ingest.journal.segments import Record, Totals
from ingest.journal.survey import Gap

logger = logging.getLogger(__name__)

MAX_OPEN_BYTES: Final = 8 * 1024 * 1024
"""Lines that may wait for the fsync in flight. More means the disk is far behind: respond 503 instead."""
STALLED_SECONDS: Final = 10.0
"""A write that takes longer means the disk hangs; clients that can send elsewhere should."""


class JournalFull(Exception):
    """No room: the byte limit is reached, or the disk does not keep up. Nothing was appended; try later."""

    reason = RejectReason.OVERLOADED


class JournalClosed(JournalFull):
    """Another process holds the journal's position in the ledger. Nothing was appended."""

    reason = RejectReason.JOURNAL_UNAVAILABLE


class JournalFailed(Exception):
    """The record could not be made durable: the disk is full or broken. None of it is acknowledged."""


class Journal:
    """One folder of segments, appended to by the process that has claimed it. Call `recover` before use."""

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
        self.failed_writes = 0
        self.torn_bytes = 0
        # Called after each write with its seconds and bytes.
        self.on_fsync: Callable[[float, int], None] = lambda seconds, size: None
        # Called with records, on disk or missing there, that were counted as pending and turn out to be stored.
        self.on_already_stored: Callable[[Record | Gap], None] = lambda stored: None
        self._on_settled = on_settled
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self.backlog = Backlog(
            f"journal-{self.number}",
            memory_max_bytes,
            in_flight=self._in_flight,
            on_already_stored=lambda stored: self.on_already_stored(stored),
            on_lost=lambda events: self._on_lost(events),
        )
        self._thread = WorkThread(f"journal-{self.number}")
        self._claimed = claimed
        self._closed = False
        # Used only by the write in flight.
        self._segment = SegmentWriter(claimed.folder, claimed.layout, segment_bytes)
        self._open = OpenRecord(1)
        # The newest durable record, and the totals up to it.
        self._newest = 0
        self._totals = Totals(0, 0, 0)
        self._writing: OpenRecord | None = None
        self._writing_since = 0.0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Set once another process turns out to use the journal's number too: nothing more is accepted.
        self.is_taken = False
        # The ledger's position as noted in the newest record.
        self._noted = 0

    def __repr__(self) -> str:
        return f"Journal({self.layout.journal}, open={self._open.number}, {self.backlog})"

    @property
    def number(self) -> int:
        return self.layout.journal

    @property
    def stored_through(self) -> int:
        """The ledger's position, as far as it is known here."""
        return self.backlog.stored_through

    @property
    def awaits_ledger(self) -> bool:
        """Whether the ledger must be read even if there is nothing to store; see Backlog.awaits_ledger."""
        return self.backlog.awaits_ledger

    @property
    def memory_bytes(self) -> int:
        """Bytes held in memory: lines on their way to the disk, and the places of those that are not stored yet."""
        return self.backlog.memory_bytes + self._open.size + (self._writing.size if self._writing else 0)

    @property
    def last_record(self) -> int:
        """The number of the newest durable record, or of the one being written."""
        return self._open.number - 1

    @property
    def newest_record(self) -> int:
        """The number of the record with the newest lines, durable or not."""
        return self._open.number if self._open.opened_at_us else self._open.number - 1

    def is_stored(self, number: int) -> bool:
        """Whether every record up to this one is in the database, or could not be made durable."""
        return not self.has_backlog or self.stored_through >= number

    @property
    def full_at_bytes(self) -> int:
        """Bytes on disk beyond which one more full record may not fit within the byte limit."""
        return self._max_bytes - min(MAX_OPEN_BYTES, self._max_bytes // 8)

    @property
    def has_room(self) -> bool:
        """Whether one more full record fits within the byte limit."""
        return self.backlog.disk_bytes <= self.full_at_bytes

    @property
    def is_stalled(self) -> bool:
        """Whether the write in flight has been running for too long."""
        return self._writing is not None and time.monotonic() - self._writing_since > STALLED_SECONDS

    @property
    def has_backlog(self) -> bool:
        """Whether anything is waiting to be stored."""
        return bool(self.backlog.events or self.backlog.rejected)

    @property
    def batch_id(self) -> int:
        """The batch_id for lines appended now, before the next await."""
        return batch_id(self.layout.journal, self._open.number)

    @property
    def oldest_us(self) -> int | None:
        """When the oldest pending record was opened, Unix microseconds; None when nothing is pending."""
        oldest = self.backlog.oldest_us
        if oldest is not None:
            return oldest
        first = self._writing or self._open
        return first.opened_at_us or None

    # Appending.

    def append(
        self,
        lines: Sequence[str],
        events: int,
        keys: list[bytes],
        *,
        rejected_lines: Sequence[str] = (),
        rejected: int = 0,
    ) -> OpenRecord:
        """Add lines to the open record and return it; `wait` on it to know when they are durable.

        The lines must end with `batch_id` as read since the last await. `keys` are their message ids.
        Raises JournalFull, in which case nothing was added.
        """
        record = self._open
        encoded, encoded_rejected = encode(lines), encode(rejected_lines)
        size = sum(map(len, encoded)) + sum(map(len, encoded_rejected))
        if record.size and record.size + size > MAX_OPEN_BYTES:
            raise JournalFull("the disk does not keep up")
        self.check_room(size)
        if not record.opened_at_us:
            record.opened_at_us = _now_us()
        record.lines += encoded
        record.rejected_lines += encoded_rejected
        record.events += events
        record.rejected += rejected
        record.size += size
        record.keys += keys
        self.backlog.add(events, rejected, size)
        if self._writing is None and not self._scheduled:
            # Not immediately: other requests that are ready in this turn of the loop join the record.
            self._scheduled = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._begin_write)
        return record

    def take_positions(self, count: int) -> int:
        """Reserve `count` positions in the open record and return the first, for lines appended before any await."""
        first = self._open.positions
        self._open.positions = first + count
        return first

    def check_room(self, size: int) -> None:
        """Raise JournalFull unless there is room for `size` bytes of lines."""
        if self.is_taken:
            raise JournalClosed("the journal was taken over by another process")
        waiting = self._writing.size if self._writing else 0
        if self.backlog.disk_bytes + waiting + self._open.size + size + 2 * segments.OVERHEAD > self._max_bytes:
            raise JournalFull("the journal has reached its byte limit")

    async def wait(self, record: OpenRecord) -> None:
        """Return when the record is durable; raise JournalFailed if it could not be made durable."""
        if record.outcome is None:
            # A future for each caller: cancelling one must not cancel the others.
            settled = asyncio.get_running_loop().create_future()
            record.waiters.append(partial(set_done, settled))
            await settled
        if not record.outcome:
            raise JournalFailed("the journal could not be written")

    def settle_with(self, records: Sequence[OpenRecord], waiter: Callable[[], None]) -> None:
        """Call the waiter when all these records are settled, durable or not; see their `outcome`."""
        # Records are settled in order, and few requests span more than one.
        newest = records[0] if len(records) == 1 else max(records, key=lambda record: record.number, default=None)
        if newest is not None and newest.outcome is None:
            newest.waiters.append(waiter)
        else:
            waiter()

    async def rotate(self) -> int:
        """Begin a new segment, so that once they are stored, `delete_stored` deletes all lines that are durable now.

        Returns the number of the new segment's first record. Raises what `append` and `wait` raise.
        """
        record = self.append((), 0, [])
        record.begins_segment = True
        await self.wait(record)
        return record.number

    def delete_stored(self) -> None:
        """Delete fully stored segments, except the newest."""
        self.backlog.delete_stored()

    def _begin_write(self) -> None:
        self._scheduled = False
        record = self._open
        self._writing, self._writing_since = record, time.monotonic()
        self._open = OpenRecord(record.number + 1)
        try:
            durable = Record(
                number=record.number,
                events=record.events,
                rejected=record.rejected,
                opened_at_us=record.opened_at_us,
                stored_through=self.backlog.stored_through,
                event_lines=b"".join(record.lines),
                rejected_lines=b"".join(record.rejected_lines),
                layout=self.layout,
                previous=self._newest,
                before=self._totals,
                stored=self.backlog.stored_totals,
            )
            # Encode here, not in the thread: while the loop is busy the thread waits for the interpreter lock each
            # time it needs it, so it should need it only once, between two system calls.
            encoded = segments.encode(durable)
            work = partial(self._segment.write, durable, encoded, record.begins_segment)
            self._thread.submit(work, self._finish_write, partial(self._segment.mark, encoded))
        except Exception as error:
            # Whatever failed, be it a bug or no memory for a thread: no request may wait for this record forever.
            self._finish_write(None, error)

    def _finish_write(self, written: Written | None, error: BaseException | None) -> None:
        record = self._writing
        assert record is not None
        self._writing = None
        try:
            self._settle(record, written, error)
        except Exception:
            logger.exception("journal %d: settling record %d failed", self.number, record.number)
        finally:
            # The lines are in the durable record now, or lost; a handle that lives on must not keep them in memory.
            record.lines, record.rejected_lines, record.keys = [], [], []
            waiters, record.waiters = record.waiters, []
            for waiter in waiters:
                try:
                    waiter()
                except Exception:
                    # A bug must not affect the other requests of the record.
                    logger.exception(
                        "journal %d: a request was not answered after record %d", self.number, record.number
                    )
            if self._open.opened_at_us:
                self._begin_write()
            else:
                self._idle.set()

    def _settle(self, record: OpenRecord, written: Written | None, error: BaseException | None) -> None:
        record.outcome = written is not None
        if written is not None:
            self._noted = written.record.stored_through
            self._newest = record.number
            records, events, rejected = self._totals
            self._totals = Totals(records + 1, events + record.events, rejected + record.rejected)
            self.backlog.keep(written)
            self.on_fsync(written.seconds, written.record.size)
        else:
            self.failed_writes += 1
            self.backlog.add(-record.events, -record.rejected, -record.size)
            reason = error if isinstance(error, OSError) else repr(error)
            logger.error("journal %d cannot write: %s", self.number, reason)
        self._on_settled(record)

    def _in_flight(self) -> tuple[int, int, int]:
        """Events, rejected events and bytes that are not durable yet."""
        records = [self._open] if self._writing is None else [self._writing, self._open]
        return (
            sum(record.events for record in records),
            sum(record.rejected for record in records),
            sum(record.size for record in records),
        )

    # For the writer.

    async def wait_readable(self) -> None:
        """Return when there is something to take."""
        await self.backlog.wait_readable()

    async def take(self, max_bytes: int) -> list[Place]:
        """Where the oldest records are that are not taken yet; see Backlog.take."""
        return await self.backlog.take(max_bytes)

    def forget(self, through: int) -> None:
        """The taken records up to this number are stored."""
        self.backlog.forget(through)

    def advance(self, stored_through: int) -> None:
        """The ledger says that everything up to this record is stored."""
        self.backlog.advance(stored_through)
        if self._open.number <= stored_through:
            # The ledger is ahead of the files, which were lost or restored from a copy. Never use a number twice.
            self._open.number = stored_through + 1

    # Opening and closing.

    def recover(self, stored_through: int | None) -> None:
        """Read the segments on disk, before the first append. Synchronous: call it in a thread.

        `stored_through` is the ledger's position; None if the database cannot be reached yet. In that case the
        position noted in the newest record is used, and the writer learns the current one later.
        """
        found = recover(self.folder, self.layout, stored_through)
        self._noted, self.torn_bytes = found.position, found.torn_bytes
        self._newest, self._totals = found.newest, found.totals
        self._open = OpenRecord(found.highest + 1)
        self.backlog.open(found)

    def skip_to(self, number: int) -> None:
        """Give the next record this number, before the first append. The numbers skipped are never used."""
        self._open = OpenRecord(number)

    async def close(self) -> None:
        """Wait for the write in flight, note the ledger's position, then release the folder. Repeatable."""
        await self._idle.wait()
        if self._closed:
            return
        if self.backlog.has_segments and self.stored_through > self._noted:
            # An empty record notes the position, so that the next start knows it without the database.
            with contextlib.suppress(JournalFull, JournalFailed):
                await self.wait(self.append((), 0, []))
            await self._idle.wait()
        self._thread.close()
        self.backlog.close()
        self._segment.close()
        self._closed = True
        self._claimed.release()


def _now_us() -> int:
    """Now, in Unix microseconds, at least 1: a machine that has lost its clock may be before 1970, the header has no
    room for a sign, and 0 means that a record is not opened."""
    return max(1, time.time_ns() // 1000)
