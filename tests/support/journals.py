"""A journal without a service."""

from __future__ import annotations

from ingest.journal.journal import Journal
from ingest.journal.segments import Layout, Record

LAYOUT = Layout(7, "0b8f2f6c-3c39-4d0c-9f0e-7a1d9f5b1d11", ("id", "name"), ("reason",))
MIB = 1024 * 1024


async def put(journal: Journal, text: str, events: int = 1) -> int:
    """Append one line and wait until it is durable. Returns the record's number."""
    record = journal.append([f"{text}\n"], events, [])
    await journal.wait(record)
    return record.number


async def drain(journal: Journal) -> list[Record]:
    """Take and forget everything in the journal."""
    drained = []
    while records := await journal.take(MIB):
        drained += records
        journal.forget(len(records))
    return drained


def lines_of(records: list[Record]) -> list[str]:
    return [line.decode() for record in records for line in record.event_lines.splitlines()]
