"""A journal, its recovery, its writer and its ledger on a simulated disk with a model of the database: one collector
that lives, dies and comes back, and what an observer who forgets nothing demands of it.

* What was acknowledged is stored once, whole and in order, whatever happened in between.
* Nothing is stored that was not accepted, and nothing twice: an event that was not acknowledged may be stored, once.
* The ledger's position never goes back.
* The books balance at each moment, and no loss or damage is reported: what a crash leaves is not one.
"""

from __future__ import annotations

import errno
import logging
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast
from unittest import mock

import asyncpg

from ingest.base.data_folder import DataFolder
from ingest.base.errors import DatabaseError, IngestError
from ingest.base.refusals import RejectReason
from ingest.journal import journals, segments
from ingest.journal.accounts import Accounts
from ingest.journal.journal import Journal, JournalFull
from ingest.journal.journals import Claimed
from ingest.journal.open_record import OpenRecord
from ingest.journal.segments import Record
from ingest.store.event_keys import Contents
from ingest.store.feeder import Feeder
from ingest.store.ledger import Ledger
from ingest.store.writer import Writer
from tests.simulated import database
from tests.simulated.database import Database, ModelLedger
from tests.simulated.disk import Died, Disk, SimulatedPath
from tests.simulated.turns import TurnLoop, TurnThread
from tests.support.journals import JournalSource

T = TypeVar("T")
FLUSH_BYTES: Final = 4096
_MOST_STEPS_TO_STORE: Final = 10_000
FAULTS: Final = (errno.EIO, errno.ENOSPC)
COMMITS: Final = ("done", "lost", "late")
STATEMENTS: Final = ("claim", "end given up", "counts", "BEGIN", "advance", "COPY", "COMMIT")


class _Source(JournalSource):
    def contents_of(self, record: Record) -> Contents:
        return Contents([record.event_lines], [], set())


class Collector:
    """A process: what is gone when it dies."""

    def __init__(self, folder: DataFolder, journal: Journal, ledger: Ledger, connect: Callable[[], Any]) -> None:
        self.folder = folder
        self.journal = journal
        self.ledger = ledger
        self.accounts = Accounts()
        self.accounts.watch_pending(lambda: journal.backlog.events)
        self.feeder = Feeder(journal, ledger, self.accounts, flush_max_bytes=FLUSH_BYTES)
        self._connect = connect
        self.writer = self._new_writer(gave_up=False)

    def _new_writer(self, gave_up: bool) -> Writer:
        return Writer(
            _Source(self.feeder),
            self.ledger,
            self._connect,
            flush_max_bytes=FLUSH_BYTES,
            statement_timeout_seconds=10.0,
            gave_up=gave_up,
        )

    def restart_writer(self) -> None:
        """Its process has died; see Feeder.detach and attach."""
        self.journal.backlog.give_back()
        self.writer = self._new_writer(gave_up=True)

    @property
    def thread(self) -> TurnThread:
        """The one that writes."""
        return cast("TurnThread", self.journal._thread)

    def __repr__(self) -> str:
        return f"Collector({self.journal}, {self.writer})"


class Trial:
    """Steps are the public methods; each may end with the collector dead (`collector` is None). Call `end` at last.

    `chance` decides what the disk and the database do, and nothing else of the run depends on anything.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.disk = Disk(chance)
        self.database = Database(chance)
        self.collector: Collector | None = None
        self.steps = 0
        # How a collector dies next: with the machine's power, or on its own.
        self.power_fails = True
        self._loop = TurnLoop()
        self._sizes: list[int] = []
        # Acknowledged and not in the database yet, by serial number, with the numbers of their records.
        self._owed: dict[int, int] = {}
        # Records that were begun to be written and not acknowledged.
        self._unsettled = 0
        # Events of those of which the journal cannot know that they were not acknowledged.
        self._doubtful = 0
        self._settled_rows = {"rows": 0, "refused": 0}
        self._newest_row = {"rows": -1, "refused": -1}
        self._positions: dict[int, int] = {}
        self._mounted = ExitStack()
        self._path = self._mounted.enter_context(self.disk.mounted())("/srv/ingest")
        for place, value in {
            "ingest.journal.journal.WorkThread": TurnThread,
            "ingest.journal.backlog.WorkThread": TurnThread,
            "ingest.journal.ownership.secrets": SimpleNamespace(randbelow=chance.randrange),
            "ingest.journal.journals.uuid": SimpleNamespace(uuid4=self._uuid),
            "ingest.store.ledger.uuid": SimpleNamespace(uuid4=self._uuid),
            # Read anew for each ledger, and not used here.
            "ingest.store.ledger.load_queries": lambda name: {},
            "ingest.store.copying.copy": database.copy,
            "ingest.journal.journals.row": SimpleNamespace(EVENT_COLUMNS=("line",), REJECTED_COLUMNS=("line",)),
        }.items():
            self._mounted.enter_context(mock.patch(place, value))
        self._mounted.enter_context(mock.patch.object(TurnThread, "loop", self._loop))
        # Faults are logged, thousands of them.
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        self._mounted.callback(logging.disable, before)
        SimulatedPath("/srv").mkdir()
        self.disk.flush_everything()

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.chance.getrandbits(128), version=4)

    def close(self) -> None:
        """Without any check. Repeatable."""
        self._mounted.close()

    @property
    def owes(self) -> int:
        """How many events are acknowledged and not in the database."""
        return len(self._owed)

    # Steps of the world.

    def open(self, *, segment_bytes: int, places: int, with_database: bool) -> None:
        """Start a collector, as service/stores.py does."""
        self.database.is_up = with_database
        with self._step():
            folder = DataFolder(cast("Any", self._path))
            claimed = journals.claim(cast("Any", self._path))
            if claimed is None:
                if not with_database:
                    folder.release()
                    return
                claimed = self._loop.finish(journals.create(cast("Any", self._path), self._register))
            self.collector = self._opened(folder, claimed, segment_bytes, places, with_database)
        self.database.is_up = True

    async def _register(self, identity: str, owner: uuid.UUID) -> int:
        return self.database.register(owner)

    def _opened(
        self, folder: DataFolder, claimed: Claimed, segment_bytes: int, places: int, with_database: bool
    ) -> Collector:
        ledger = ModelLedger(self.database, claimed.layout, claimed.ownership)
        position = None
        if with_database:
            position = self._loop.finish(ledger.open(cast("asyncpg.Connection", self.database.connect())))
        journal = Journal(
            claimed,
            segment_bytes=segment_bytes,
            max_bytes=1 << 20,
            memory_max_bytes=places * 512,
            on_lost=self._lose,
        )
        made = Collector(folder, journal, ledger, self._connect)
        journal.recover(position)
        made.accounts.recovered += journal.backlog.events
        self._check_gaps(journal)
        if position is None:
            journal.skip_to(claimed.ownership.leave_gap(journal.last_record))
        return made

    async def _connect(self) -> asyncpg.Connection:
        return cast("asyncpg.Connection", self.database.connect())

    def append(self, events: int, refused: int, size: int) -> None:
        """A request: lines of about this many bytes each."""
        with self._step() as collector:
            if collector is not None:
                serials = [self._serial(size) for _ in range(events + refused)]
                lines = [f"{self._line(serial).decode()}\n" for serial in serials]
                try:
                    record = collector.journal.append(
                        lines[:events], events, [], rejected_lines=lines[events:], rejected=refused
                    )
                except JournalFull:
                    return
                collector.accounts.received += events
                collector.journal.settle_with([record], partial(self._answer, collector, record, serials, events))

    def _serial(self, size: int) -> int:
        self._sizes.append(size)
        return len(self._sizes) - 1

    def _line(self, serial: int) -> bytes:
        return b"%d %s" % (serial, b"abcdefghij"[serial % 10 : serial % 10 + 1] * self._sizes[serial])

    def _answer(self, collector: Collector, record: OpenRecord, serials: list[int], events: int) -> None:
        if record.outcome:
            self._owed.update(dict.fromkeys(serials, record.number))
        else:
            collector.accounts.received -= events

    def rotate(self) -> None:
        """Ask for a new segment."""
        with self._step() as collector:
            if collector is not None:
                record = collector.journal.append((), 0, [])
                record.begins_segment = True

    def turn(self) -> None:
        """The event loop gets to what is ready."""
        with self._step():
            self._loop.turn()

    def write(self, *, acknowledges_first: bool) -> None:
        """The disk's thread does what it was asked to. `acknowledges_first`: the loop is faster than the thread."""
        with self._step() as collector:
            if collector is not None:
                self._loop.turn()
                collector.thread.move(self._loop.turn if acknowledges_first else lambda: None)

    def store(self, steps: int) -> None:
        """The writer takes some steps."""
        with self._step() as collector:
            for _ in range(steps if collector is not None else 0):
                self._store(collector)

    def _store(self, collector: Collector | None) -> None:
        assert collector is not None
        self.steps += 1
        try:
            self._loop.finish(collector.writer.step())
        except (OSError, DatabaseError, asyncpg.PostgresError):
            pass

    def restart_writer(self) -> None:
        """The writer's process is killed."""
        with self._step() as collector:
            if collector is not None:
                collector.restart_writer()

    def trouble(self, *, commit_is: str, breaks_at: str) -> None:
        """What becomes of the next COMMIT, and where the connection is lost."""
        self.database.commit_is, self.database.breaks_at = commit_is, breaks_at

    def fail(self, calls: int, number: int) -> None:
        """The disk will refuse one of the next calls."""
        self.disk.fails_in, self.disk.fails_with = calls, number

    def die(self, calls: int, *, power_fails: bool) -> None:
        """The collector will die in one of its next calls to the file system."""
        self.disk.dies_in, self.power_fails = calls, power_fails

    def kill(self, *, power_fails: bool) -> None:
        """It dies now."""
        self.power_fails = power_fails
        self._collapse()

    def shut_down(self) -> None:
        """It ends in good order; see Stores.close."""
        with self._step() as collector:
            if collector is not None:
                collector.writer.drop_connection()
                self._loop.finish(collector.journal.close())
                collector.folder.release()
                self.collector = None
                self._loop.forget()

    # What is demanded.

    def check_stored(self) -> None:
        """Without further faults, all that is owed gets stored, and its segments are deleted."""
        self.disk.fails_in = self.disk.dies_in = None
        self.trouble(commit_is="confirmed", breaks_at="")
        if self.collector is None:
            self.open(segment_bytes=2000, places=4, with_database=True)
        collector = self.collector
        assert collector is not None
        self.database.is_up = True
        with self._step():
            for _ in range(_MOST_STEPS_TO_STORE):
                while collector.thread.move():
                    self._loop.turn()
                self._loop.turn()
                # An empty record may be taken, too.
                if not collector.journal.has_backlog and not collector.journal.memory_bytes:
                    break
                self._store(collector)
        journal = collector.journal
        assert not self._owed, f"{len(self._owed)} acknowledged events are not stored: {sorted(self._owed)[:5]}"
        assert (journal.backlog.events, journal.backlog.rejected, journal.backlog.bytes) == (0, 0, 0), journal
        assert journal.memory_bytes == 0, journal

    def end(self) -> None:
        """All that was acknowledged is stored, also after one more power cut, and no segment is kept for nothing."""
        self.check_stored()
        self.kill(power_fails=True)
        self.check_stored()
        assert self.collector is not None
        self.collector.journal.delete_stored()
        left = segments.list_segments(self.collector.journal.folder)
        assert len(left) <= 1, f"stored segments are kept: {left}"
        self.close()

    @contextmanager
    def _step(self) -> Iterator[Collector | None]:
        self.steps += 1
        with self._loop:
            try:
                yield self.collector
            except Died:
                self._collapse()
            except (OSError, IngestError):
                # It could not start, or stop: whoever supervises it tries again.
                self._collapse()
        self._check()

    def _collapse(self) -> None:
        if self.collector is not None:
            self._unsettled += self.collector.journal._writing is not None
            self._unsettled += self.collector.journal.failed_writes
        self.collector = None
        self._loop.forget()
        if self.power_fails:
            self.disk.cut_power()
        else:
            self.disk.end_process()
        self._check()

    def _check(self) -> None:
        for name in ("rows", "refused"):
            self._check_rows(name, getattr(self.database, name))
        for journal, standing in self.database.positions.items():
            assert standing.stored_through >= self._positions.get(journal, 0), "the ledger's position went back"
            self._positions[journal] = standing.stored_through
        collector = self.collector
        if collector is not None:
            backlog = collector.journal.backlog
            assert collector.accounts.unaccounted == 0, f"the books do not balance: {collector.accounts}"
            assert not collector.journal.is_taken, "the journal was given up"
            assert backlog.corrupt_segments <= self._unsettled, "a segment is said to be damaged"

    def _check_rows(self, name: str, rows: list[bytes]) -> None:
        for line in rows[self._settled_rows[name] :]:
            serial = int(line.partition(b" ")[0])
            assert serial < len(self._sizes) and line == self._line(serial), f"stored, and never sent: {line[:80]!r}"
            assert serial > self._newest_row[name], f"stored twice, or out of order: {serial}"
            self._newest_row[name] = serial
            self._owed.pop(serial, None)
        self._settled_rows[name] = len(rows)

    def _check_gaps(self, journal: Journal) -> None:
        """A record of which the first and the last sector reached the disk, and not one between them, looks like one
        that was written, acknowledged and damaged later: it may be called lost. None that was acknowledged may."""
        self._doubtful = 0
        for gap in journal.backlog._gaps:
            missing = sorted(serial for serial, number in self._owed.items() if gap.first <= number <= gap.last)
            assert not missing, f"acknowledged events are missing in {gap}: {missing[:5]}"
            self._doubtful += gap.events

    def _lose(self, events: int) -> None:
        self._doubtful -= events
        assert self._doubtful >= 0, f"{events} events are said to be lost"
        assert self.collector is not None
        self.collector.accounts.reject(RejectReason.JOURNAL_CORRUPT, events)
