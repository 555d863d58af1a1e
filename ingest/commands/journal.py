"""`ingest journal`: what waits to be stored, whether the segments are sound, what a record holds.

Reads the files only, so it may be used while the service runs, and when it cannot start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import orjson

from ingest import database, journals, row, segment
from ingest.commands.target import embedded_folder
from ingest.config import Config
from ingest.embedded import EmbeddedPostgres
from ingest.errors import DatabaseError, IngestError
from ingest.segment import Damage, Reader, Record, SegmentError


def pending(config: Config) -> int:
    """A line for each journal: what it holds that the ledger does not cover."""
    folders = _folders(config)
    positions: dict[int, int] = {}
    try:
        positions = asyncio.run(_positions(config, folders))
    except IngestError as error:
        print(f"{error}; what follows is the most that may be pending")
    print(f"{'journal':>7}  {'pending events':>14}  {'rejected':>8}  {'bytes':>12}  {'records':>8}  oldest")
    for folder in folders:
        layout = journals.read_layout(folder)
        records = list(_summaries(folder))
        noted = max((record.stored_through for record in records), default=0)
        position = max(noted, positions.get(layout.journal, 0))
        waiting = [record for record in records if record.number > position and record.events + record.rejected]
        oldest = _moment(waiting[0].opened_at_us) if waiting else "-"
        print(
            f"{layout.journal:>7}  {sum(r.events for r in waiting):>14}  {sum(r.rejected for r in waiting):>8}  "
            f"{sum(r.size for r in waiting):>12}  {len(waiting):>8}  {oldest}"
        )
    return 0


def verify(config: Config) -> int:
    """Read every segment and check every checksum; exit code 1 when something is damaged."""
    damaged = 0
    for folder in _folders(config):
        for path in segment.list_segments(folder):
            records = events = 0
            problems = []
            for piece in _pieces(path):
                if isinstance(piece, Record):
                    records, events = records + 1, events + piece.events
                else:
                    problems.append(piece)
            print(f"{path}: {records} records, {events} events, {'damaged' if problems else 'sound'}")
            for problem in problems:
                print(f"  {problem}")
            damaged += len(problems)
    return 1 if damaged else 0


def show(config: Config, number: int, journal: int | None) -> int:
    """Print a record: its events, one JSON object a line."""
    for folder in _folders(config):
        if journal is not None and journals.read_layout(folder).journal != journal:
            continue
        for path in segment.list_segments(folder):
            for piece in _pieces(path):
                if isinstance(piece, Record) and piece.number == number:
                    _print_record(piece, path)
                    return 0
    raise IngestError(f"there is no record {number}: it may be stored already and its segment deleted")


def _print_record(record: Record, path: Path) -> None:
    print(
        f"record {record.number} of journal {record.layout.journal}, {_moment(record.opened_at_us)}: "
        f"{record.events} events, {record.rejected} rejected, {record.size} bytes, in {path.name}"
    )
    for columns, lines in (
        (record.layout.event_columns, record.event_lines),
        (record.layout.rejected_columns, record.rejected_lines),
    ):
        for line in lines.splitlines():
            values = {name: value for name, value in row.split_line(line, columns).items() if value is not None}
            print(orjson.dumps(values).decode())


def _folders(config: Config) -> list[Path]:
    folders = journals.folders(config.data_dir)
    if not folders:
        raise IngestError(f"there is no journal in the data folder {config.data_dir}")
    return folders


def _summaries(folder: Path) -> Iterator[Record]:
    for path in segment.list_segments(folder):
        yield from (piece for piece in _pieces(path) if isinstance(piece, Record))


def _pieces(path: Path) -> Iterator[Record | Damage | str]:
    try:
        with Reader(path) as reader:
            for piece in reader:
                if isinstance(piece, Damage):
                    count = f"{piece.events} events" if piece.events else "an unknown number of events"
                    place = "at the end (a record being written, or torn by a crash)" if piece.at_end else "inside"
                    yield f"{piece.size} bytes at {piece.offset} {place} are no record: {count}"
                else:
                    yield piece
    except FileNotFoundError:
        return  # Stored and deleted while we looked.
    except SegmentError as error:
        yield str(error)


async def _positions(config: Config, folders: list[Path]) -> dict[int, int]:
    """How far each journal is stored. Raises IngestError when the database does not tell."""
    url = config.database_url
    if url is None:
        postgres = EmbeddedPostgres(embedded_folder(config.data_dir))
        if not postgres.is_running():
            raise DatabaseError("the embedded database is not running")
        url = postgres.dsn
    connection = await database.connect(url, purpose="journal", timeout_seconds=3)
    try:
        layouts = [journals.read_layout(folder) for folder in folders]
        return {layout.journal: await journals.position(connection, layout) for layout in layouts}
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"the database refused: {' '.join(str(error).split())}") from error
    finally:
        await database.close(connection)


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")
