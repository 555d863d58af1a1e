"""A journal without a service, and the source of a writer without another process."""

from __future__ import annotations

import os
from pathlib import Path

from ingest.journal import places
from ingest.journal.journal import Journal
from ingest.journal.journals import Claimed, claim_folder
from ingest.journal.segments import Layout, Record
from ingest.store import event_keys
from ingest.store.channel import Position, Standing, Stored, Taken
from ingest.store.event_keys import Contents
from ingest.store.feeder import Feeder
from ingest.store.flush import Outcome
from ingest.store.ledger import JournalTaken

LAYOUT = Layout(7, "0b8f2f6c-3c39-4d0c-9f0e-7a1d9f5b1d11", ("id", "name"), ("reason",))
MIB = 1024 * 1024


def claimed(folder: Path, layout: Layout = LAYOUT) -> Claimed:
    """A folder, made if it is missing, as that of a journal with this layout."""
    folder.mkdir(exist_ok=True)
    (folder / "journal.json").write_text(f'{{"number": 7, "identity": "{layout.identity}"}}')
    held = claim_folder(folder)
    assert held is not None
    made = Claimed(folder, os.dup(held._lock), layout)
    held.release()
    return made


async def put(journal: Journal, text: str, events: int = 1) -> int:
    """Append one line and wait until it is durable. Returns the record's number."""
    record = journal.append([f"{text}\n"], events, [])
    await journal.wait(record)
    return record.number


async def take(journal: Journal, max_bytes: int = MIB) -> list[Record]:
    """Take records and read them; those that cannot be read are lost."""
    while taken := await journal.take(max_bytes):
        found = [record for run in places.runs_of(taken) for record in places.read(run)]
        journal.backlog.lose({place.number for place in taken} - {record.number for record in found})
        if found:
            return found
    return []


async def drain(journal: Journal) -> list[Record]:
    """Take and forget everything in the journal."""
    drained = []
    while records := await take(journal):
        drained += records
        journal.forget(records[-1].number)
    return drained


def lines_of(records: list[Record]) -> list[str]:
    return [line.decode() for record in records for line in record.event_lines.splitlines()]


class JournalSource:
    """A journal in this process as the source of a writer: what `Follower` does, at once."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._journal = feeder.journal
        self.number = feeder.journal.number
        self.failures: list[Exception] = []

    @property
    def stored_through(self) -> int:
        return self._journal.stored_through

    @property
    def awaits_ledger(self) -> bool:
        return self._journal.awaits_ledger

    @property
    def newest(self) -> Record | None:
        place = self._journal.backlog.newest
        return places.read(places.runs_of([place])[0])[0] if place is not None else None

    async def wait_readable(self) -> None:
        await self._journal.wait_readable()

    async def take(self, max_bytes: int) -> list[Record]:
        return await take(self._journal, max_bytes)

    def contents_of(self, record: Record) -> Contents:
        return event_keys.examine(record)

    def is_kept(self, key: bytes) -> bool:
        return False

    def release(self, through: int, outcome: Outcome, seconds: float | None) -> None:
        bad = None if outcome.bad is None else dict(outcome.bad)
        stored, duplicate, refused, _ = outcome
        self._feeder.receive(Stored(self.number, through, stored, duplicate, refused, bad, seconds))

    def advance(self, position: int) -> None:
        self._feeder.receive(Position(self.number, position))

    def note_state(self, postgres_up: bool, table_refuses: str | None) -> None:
        self._feeder.receive(Standing(self.number, postgres_up, table_refuses))

    def note_failure(self, error: Exception) -> None:
        self.failures.append(error)

    def note_taken(self, error: JournalTaken) -> None:
        self._feeder.receive(Taken(self.number, str(error)))
