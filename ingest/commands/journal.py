"""`ingest journal`: show pending events, check segments for damage, and print records.

These actions only read files, so they work while the service runs, and when it cannot start. Those that change a
journal are in journal_drain.py and journal_resolve.py.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from ingest.base.config import Config
from ingest.base.errors import DatabaseError, IngestError, one_line
from ingest.commands.arguments import add_actions, natural
from ingest.commands.journal_files import folders_of, found, pieces, records_of
from ingest.commands.target import embedded_folder
from ingest.events import row
from ingest.journal import journals, segments
from ingest.journal.ownership import Ownership
from ingest.journal.segments import Record
from ingest.journal.survey import known_layouts, survey

if TYPE_CHECKING:
    from ingest.store.ledger import Standing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_action = add_actions(parser, default="pending")
    add_action("pending", "show how many events wait to be stored, by journal")
    add_action("verify", "check every file of the journals for damage and gaps")
    record = add_action("show", "print the events of a record")
    record.add_argument(
        "record",
        metavar="RECORD",
        type=natural,
        help="the record's number; for a row of analytics.events, batch_id & 1099511627775",
    )
    record.add_argument("--journal", metavar="N", type=natural, help="the journal's number [the first that has it]")
    add_action("drain", "store everything that waits, without serving")
    copied = add_action("resolve", "resolve a journal that exists twice, as after copying a data folder")
    copied.add_argument("--journal", metavar="N", type=natural, help="the journal's number [all journals]")
    copied.add_argument(
        "--how",
        choices=("store", "set-aside"),
        help="store what waits here, each event once even if the other copy has it too, or only move it away"
        " [list what there is to resolve]",
    )


def run(config: Config, given: argparse.Namespace) -> int:
    if given.action == "verify":
        return verify(config)
    if given.action == "show":
        return show(config, given.record, given.journal)
    if given.action == "drain":
        from ingest.commands.journal_drain import drain

        return drain(config)
    if given.action == "resolve":
        from ingest.commands.journal_resolve import resolve

        return resolve(config, given.how, given.journal)
    return pending(config)


def pending(config: Config) -> int:
    """Print a line for each journal: the records that the ledger does not cover."""
    import asyncio

    folders = folders_of(config.data_dir)
    standings: dict[Path, Standing] = {}
    try:
        standings = asyncio.run(_standings(config, folders))
    except IngestError as error:
        print(f"{error}; what follows is the most that may be pending")
    for folder, standing in standings.items():
        if standing.objection is not None:
            print(f"{folder} exists twice: {standing.objection}; see `ingest journal resolve`")
    print(f"{'journal':>7}  {'pending events':>14}  {'rejected':>8}  {'bytes':>12}  {'records':>8}  oldest")
    for folder in folders:
        layout = journals.read_layout(folder)
        summaries = {record.number: record for record in map(_summary, records_of(folder))}
        noted = max((record.stored_through for record in summaries.values()), default=0)
        position = max(noted, standings[folder].stored_through if folder in standings else 0)
        waiting = [
            one for number, one in sorted(summaries.items()) if number > position and one.events + one.rejected
        ]
        oldest = _moment(waiting[0].opened_at_us) if waiting else "-"
        print(
            f"{layout.journal:>7}  {sum(r.events for r in waiting):>14}  {sum(r.rejected for r in waiting):>8}  "
            f"{sum(r.size for r in waiting):>12}  {len(waiting):>8}  {oldest}"
        )
    return 0


def verify(config: Config) -> int:
    """Read every segment, check every checksum, and look for gaps; exit code 1 if anything is damaged or missing."""
    faults = 0
    for folder in folders_of(config.data_dir):
        layout, paths = journals.read_layout(folder), segments.list_segments(folder)
        known = known_layouts(paths, layout)
        for path in paths:
            records = events = 0
            problems = []
            for piece in pieces(path, known):
                if isinstance(piece, Record):
                    records, events = records + 1, events + piece.events
                else:
                    problems.append(piece)
            print(f"{path}: {records} records, {events} events, {'damaged' if problems else 'sound'}")
            for problem in problems:
                print(f"  {problem}")
            faults += len(problems)
        # Stored records are deleted, so only gaps after the first remaining record can be found.
        first = min((record.number for record in records_of(folder)), default=1)
        for gap in survey(paths, first - 1, layout, segments.read_mark(folder)).gaps:
            print(f"{folder}: {gap}")
            faults += 1
    return 1 if faults else 0


def show(config: Config, number: int, journal: int | None) -> int:
    """Print a record: its events, one JSON object per line."""
    for folder in folders_of(config.data_dir):
        if journal is not None and journals.read_layout(folder).journal != journal:
            continue
        for path, record in found(folder):
            if record.number == number:
                _print_record(record, path)
                return 0
    raise IngestError(f"there is no record {number}: it may have been stored and its segment deleted")


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


class _Summary(NamedTuple):
    """A record without its lines, all of which may not fit into memory."""

    number: int
    events: int
    rejected: int
    size: int
    opened_at_us: int
    stored_through: int


def _summary(record: Record) -> _Summary:
    return _Summary(
        record.number, record.events, record.rejected, record.size, record.opened_at_us, record.stored_through
    )


async def _standings(config: Config, folders: list[Path]) -> dict[Path, Standing]:
    """Each journal's standing in the ledger. Raises IngestError when the database does not answer."""
    import asyncpg

    from ingest.postgres import connections
    from ingest.postgres.embedded import EmbeddedPostgres
    from ingest.store.ledger import look

    url = config.database_url
    if url is None:
        postgres = EmbeddedPostgres(embedded_folder(config.data_dir))
        if not postgres.is_running():
            raise DatabaseError("the embedded database is not running")
        url = postgres.dsn
    connection = await connections.connect(url, purpose="journal", timeout_seconds=3)
    try:
        return {folder: await look(connection, journals.read_layout(folder), Ownership(folder)) for folder in folders}
    except asyncpg.PostgresError as error:
        raise DatabaseError(f"the database refused: {one_line(error)}") from error
    finally:
        await connections.close(connection)


def _moment(microseconds: int) -> str:
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return "after the year 9999"
