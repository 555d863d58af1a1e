"""Numbered SQL files, each applied once, in order, in one transaction with the row that records it.

The advisory lock is transaction-level, as session-level locks do not work behind a transaction pooler. So each
transaction checks again, under the lock, what is applied.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg

from ingest.base.errors import MigrationError
from ingest.postgres.lock_waits import LOCKED, Patience
from ingest.postgres.queries import load_queries, sql_folder

LOCK_KEY: Final = 0x696E67657374
"""Any number that nobody else uses; this one is "ingest" in ASCII."""


class State(StrEnum):
    APPLIED = "applied"
    PENDING = "pending"
    # Applied, but the file has been changed since; applied, but this release has no such file (any more, or yet).
    EDITED = "edited"
    MISSING = "missing"


class Migration(NamedTuple):
    """A migration that is a file of this release, or applied to the database, or both."""

    number: int
    name: str
    state: State
    applied_at: datetime | None


class _File(NamedTuple):
    number: int
    name: str
    sql: str
    sha256: str


async def migrate(
    connection: asyncpg.Connection, *, folder: Path | None = None, patience: Patience | None = None
) -> list[str]:
    """Apply what is pending; returns the names of the files applied. Safe to run concurrently.

    `folder` is this release's, except in tests. `patience` limits the waiting for locks.
    """
    files = _read_files(folder)
    patience = patience or Patience()
    await patience.through(lambda: _prepare(connection, patience))
    _refuse_strangers(await patience.through(lambda: _compare(connection, files, patience)))
    return [file.name for file in files if await patience.through(partial(_apply, connection, file, patience))]


async def rehearse(
    connection: asyncpg.Connection, *, folder: Path | None = None, patience: Patience | None = None
) -> list[str]:
    """Do what `migrate` would do in one transaction and roll it back; returns the names of the files applied.

    Raises what `migrate` would. Until the end it holds every lock that the files take, also on tables in use.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        return await migrate(connection, folder=folder, patience=patience)
    finally:
        await transaction.rollback()


async def status(
    connection: asyncpg.Connection, *, folder: Path | None = None, patience: Patience | None = None
) -> list[Migration]:
    """Every migration that this release or the database has, by number."""
    files = _read_files(folder)
    if patience is None:
        return await _compare(connection, files)
    return await patience.through(lambda: _compare(connection, files, patience))


async def check(connection: asyncpg.Connection, *, folder: Path | None = None, may_be_newer: bool = False) -> None:
    """Raise MigrationError unless the database has exactly the migrations of this release.

    `may_be_newer`: those of later releases do not matter.
    """
    found = await status(connection, folder=folder)
    if may_be_newer:
        newest = _newest_of_ours(found)
        found = [m for m in found if m.state is not State.MISSING or m.number < newest]
    refuse_unless_applied(found)


def refuse_unless_applied(migrations: list[Migration]) -> None:
    """Raise MigrationError, saying what to do, unless all of them are applied as this release has them."""
    _refuse_strangers(migrations)
    pending = [migration.name for migration in migrations if migration.state is State.PENDING]
    if pending:
        raise MigrationError(
            f"the database is older than this release ({pending[0]} is not applied); run `ingest migrate`"
        )


def _read_files(folder: Path | None) -> list[_File]:
    files: dict[int, _File] = {}
    for path in sorted((folder or sql_folder() / "migrations").glob("*.sql")):
        parts = re.match(r"(\d+)_", path.name)
        if parts is None:
            raise MigrationError(f"{path.name} does not begin with a number such as 001_")
        number = int(parts[1])
        if number in files:
            raise MigrationError(f"{files[number].name} and {path.name} have the same number")
        content = path.read_bytes()
        files[number] = _File(number, path.name, content.decode(), hashlib.sha256(content).hexdigest())
    return sorted(files.values())


async def _prepare(connection: asyncpg.Connection, patience: Patience) -> None:
    """Create our schema and table if missing. Checked first, because IF NOT EXISTS needs the right to create them."""
    queries = load_queries("migrations")
    try:
        async with connection.transaction():
            await patience.begin(connection)
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
            if await connection.fetchval(queries["table_exists"]):
                return
            if not await connection.fetchval(queries["schema_exists"]):
                await connection.execute("CREATE SCHEMA ingest")
            await connection.execute(queries["make_table"])
    except LOCKED:
        raise
    except asyncpg.PostgresError as error:
        raise await _refused(connection, f"cannot create the table ingest.migrations: {error}", error) from error


async def _compare(
    connection: asyncpg.Connection, files: list[_File], patience: Patience | None = None
) -> list[Migration]:
    by_number = {file.number: file for file in files}
    applied: dict[int, Migration] = {}
    for number, name, sha256, applied_at in await _applied_rows(connection, patience):
        file = by_number.get(number)
        if file is None:
            state = State.MISSING
        else:
            state = State.APPLIED if (file.name, file.sha256) == (name, sha256) else State.EDITED
        applied[number] = Migration(number, name, state, applied_at)
    pending = [Migration(file.number, file.name, State.PENDING, None) for file in files if file.number not in applied]
    return sorted([*applied.values(), *pending])


async def _applied_rows(connection: asyncpg.Connection, patience: Patience | None) -> list[asyncpg.Record]:
    try:
        async with connection.transaction():
            if patience is not None:
                await patience.begin(connection)
            if await connection.fetchval("SELECT to_regclass('ingest.migrations')") is None:
                return []
            rows: list[asyncpg.Record] = await connection.fetch(
                "SELECT number, name, sha256, applied_at FROM ingest.migrations ORDER BY number"
            )
    except asyncpg.InsufficientPrivilegeError as error:
        raise await _refused(connection, f"cannot read which migrations are applied: {error}", error) from error
    return rows


def _refuse_strangers(migrations: list[Migration]) -> None:
    """Raise if a migration is applied that this release has with other content or not at all."""
    newest = _newest_of_ours(migrations)
    for migration in migrations:
        if migration.state is State.EDITED:
            raise MigrationError(
                f"{migration.name} was changed after it was applied ({migration.applied_at:%Y-%m-%d});"
                " restore the file and make the change in a new migration"
            )
        if migration.state is State.MISSING and migration.number > newest:
            raise MigrationError(
                f"the database is newer than this release ({migration.name} is applied); use a newer release"
            )
        if migration.state is State.MISSING:
            raise MigrationError(
                f"{migration.name} is applied, but this release has no such file; the installation is incomplete"
            )


def _newest_of_ours(migrations: list[Migration]) -> int:
    return max((m.number for m in migrations if m.state is not State.MISSING), default=0)


async def _apply(connection: asyncpg.Connection, file: _File, patience: Patience) -> bool:
    """Apply one file unless it is applied already; returns whether we did."""
    try:
        async with connection.transaction():
            await patience.begin(connection)
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
            if await connection.fetchval("SELECT true FROM ingest.migrations WHERE number = $1", file.number):
                return False
            if not await _is_pushed(connection, file):
                await connection.execute(file.sql)
            await connection.execute(
                "INSERT INTO ingest.migrations (number, name, sha256) VALUES ($1, $2, $3)",
                file.number,
                file.name,
                file.sha256,
            )
    except LOCKED:
        raise
    except asyncpg.PostgresError as error:
        raise await _refused(connection, _explain(file, error), error) from error
    return True


async def _is_pushed(connection: asyncpg.Connection, file: _File) -> bool:
    """Whether `supabase db push` has applied the file, so it only needs recording; Supabase keeps no checksum."""
    if await connection.fetchval("SELECT to_regclass('supabase_migrations.schema_migrations')") is None:
        return False
    version, _, name = file.name.removesuffix(".sql").partition("_")
    return bool(await connection.fetchval(load_queries("migrations")["pushed"], version, name))


async def _refused(connection: asyncpg.Connection, words: str, error: asyncpg.PostgresError) -> MigrationError:
    """The error to raise; if privileges were missing, with the statements that grant all missing ones."""
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        missing = [grant for (grant,) in await connection.fetch(load_queries("migrations")["missing_grants"])]
        if missing:
            return MigrationError(f"{words}; an administrator needs to run: {' '.join(missing)}")
    return MigrationError(words)


def _explain(file: _File, error: asyncpg.PostgresError) -> str:
    """One line: the file, the line in it if Postgres names a position (in characters, from 1), and its message."""
    where = file.name
    if error.position:
        where += f", line {file.sql.count(chr(10), 0, int(error.position) - 1) + 1}"
    more = [f"{word}: {text}" for word, text in (("detail", error.detail), ("hint", error.hint)) if text]
    return " ".join("; ".join([f"{where}: {error.message}", *more]).split())
