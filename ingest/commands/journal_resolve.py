"""`ingest journal resolve`: decide about a journal that exists twice and is therefore no longer being stored.

Its pending events may already be in the table, by way of another copy, or exist nowhere else. Stored under a new
journal number, each event gets into the table once: those already there are duplicates.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec

from ingest.base.config import Config
from ingest.base.errors import IngestError
from ingest.commands.journal_files import pieces, records_of
from ingest.commands.target import on_database
from ingest.journal import journals, segments
from ingest.journal.journal import Journal
from ingest.journal.journals import Claimed
from ingest.journal.ownership import Ownership
from ingest.journal.segments import Record
from ingest.journal.survey import known_layouts
from ingest.store import ledger

SET_ASIDE = "set-aside"


def resolve(config: Config, how: str | None, number: int | None) -> int:
    """List the journals of the data folder that need a decision, and carry it out if `how` is given ("store" or
    "set-aside"); exit code 1 if any are left to decide."""
    return on_database(config, "resolve", lambda connection: _resolve(config.data_dir, connection, how, number))


async def _resolve(data_dir: Path, connection: asyncpg.Connection, how: str | None, number: int | None) -> int:
    left = 0
    folders = [path for path in journals.folders(data_dir) if number in (None, journals.read_layout(path).journal)]
    if number is not None and not folders:
        raise IngestError(f"there is no journal {number} in the data folder {data_dir}")
    for folder in folders:
        layout = journals.read_layout(folder)
        standing = await ledger.look(connection, layout, Ownership(folder))
        if standing.objection is None:
            print(f"journal {layout.journal}: nothing to resolve, its events are stored when the service runs")
            continue
        waiting = sum(record.events for record in _waiting(folder, standing.stored_through))
        print(f"journal {layout.journal} exists twice, {waiting} events wait here: {standing.objection}")
        if how is None:
            left += 1
        else:
            await _decide(data_dir, folder, how, standing.stored_through, connection)
    if left:
        print(
            "`--how store` stores what waits here, each event once even if the other copy has it too;"
            " `--how set-aside` only moves it away"
        )
    return 1 if left else 0


async def _decide(data_dir: Path, folder: Path, how: str, position: int, connection: asyncpg.Connection) -> None:
    claimed = journals.claim_folder(folder)
    if claimed is None:
        raise IngestError(f"{folder} is in use by a running service: stop it first")
    try:
        if how == "store":
            made = await _move(data_dir, claimed, position, connection)
            names = " and ".join(str(journal) for journal in made) or "none"
            print(f"  it now waits in journal {names}, and is stored when the service runs")
            if _is_sound(folder):
                # Every unstored record is in another folder, on stable storage.
                shutil.rmtree(folder)
                return
        print(f"  its files are kept in {_set_aside(folder)}")
    finally:
        claimed.release()


async def _move(data_dir: Path, claimed: Claimed, position: int, connection: asyncpg.Connection) -> list[int]:
    """Write the pending records into new journals, one per row layout; returns their numbers.

    If this is interrupted and repeated, two journals have the events, with the same ids: they are stored once.
    """
    numbers: list[int] = []
    journal: Journal | None = None
    try:
        for record in _waiting(claimed.folder, position):
            if journal is None or journal.layout.event_columns != record.layout.event_columns:
                if journal is not None:
                    await journal.close()
                journal = await _new_journal(data_dir, record, connection)
                numbers.append(journal.number)
            columns, rejected_columns = record.layout.event_columns, record.layout.rejected_columns
            await journal.wait(
                journal.append(
                    _renumbered(record.event_lines, columns, journal.batch_id),
                    record.events,
                    [],
                    rejected_lines=_renumbered(record.rejected_lines, rejected_columns, journal.batch_id),
                    rejected=record.rejected,
                )
            )
    finally:
        if journal is not None:
            await journal.close()
    return numbers


async def _new_journal(data_dir: Path, record: Record, connection: asyncpg.Connection) -> Journal:
    made = await ledger.create_journal(data_dir, connection)
    made.layout = msgspec.structs.replace(
        made.layout,
        event_columns=record.layout.event_columns,
        rejected_columns=record.layout.rejected_columns,
    )
    journal = Journal(made, segment_bytes=1 << 26, max_bytes=1 << 62, memory_max_bytes=0)
    journal.recover(0)
    return journal


def _renumbered(lines: bytes, columns: tuple[str, ...], batch_id: int) -> list[str]:
    """The lines with the batch_id of their new record."""
    place = columns.index("batch_id")
    renumbered = []
    for line in lines.decode("utf-8", "replace").split("\n")[:-1]:
        values = line.split("\t")
        values[place] = str(batch_id)
        renumbered.append("\t".join(values) + "\n")
    return renumbered


def _waiting(folder: Path, position: int) -> Iterator[Record]:
    """The records not known to be stored: beyond `position`, and beyond the positions that the folder's own records
    note."""
    known = max(position, max((record.stored_through for record in records_of(folder)), default=0))
    seen: set[int] = set()
    for record in records_of(folder):
        if record.number > known and record.number not in seen and (record.events or record.rejected):
            seen.add(record.number)
            yield record


def _is_sound(folder: Path) -> bool:
    paths = segments.list_segments(folder)
    known = known_layouts(paths, journals.read_layout(folder))
    return all(isinstance(piece, Record) for path in paths for piece in pieces(path, known))


def _set_aside(folder: Path) -> Path:
    """Move the folder to where no service looks for journals; returns its new path."""
    place = folder.parent / SET_ASIDE
    place.mkdir(mode=0o700, exist_ok=True)
    kept = folder.rename(place / f"{folder.name}-{secrets.token_hex(4)}")
    for parent in (place, folder.parent):
        segments.flush_folder(parent)
    return kept
