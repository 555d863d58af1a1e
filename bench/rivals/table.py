"""The rivals' table, and how rows get into it. A retry of an event that is there already changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from bench.rivals.payload import Row

NAME: Final = "rivals.events"
# Without triggers, and no partition needs to be found.
MAKE_SCHEMA: Final = "CREATE SCHEMA rivals"
MAKE: Final = f"CREATE TABLE {NAME} (LIKE analytics.events INCLUDING ALL)"

COLUMNS: Final = {
    "id": "uuid",
    "created_at": "timestamptz",
    "received_at": "timestamptz",
    "type": "analytics.event_type",
    "name": "text",
    "user_id": "text",
    "anonymous_id": "text",
    "session_id": "text",
    "properties": "jsonb",
    "context": "jsonb",
    "url": "text",
    "referrer": "text",
    "user_agent": "text",
    "ip_address": "inet",
}
"""Column -> type."""

_INTO: Final = f"INSERT INTO {NAME} ({', '.join(COLUMNS)})"
_PLACES: Final = ", ".join(f"${place}" for place in range(1, len(COLUMNS) + 1))
_ARRAYS: Final = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(COLUMNS.values(), 1))
INSERT_ONE: Final = f"{_INTO} VALUES ({_PLACES}) ON CONFLICT DO NOTHING"
INSERT_MANY: Final = f"{_INTO} SELECT * FROM unnest({_ARRAYS}) ON CONFLICT DO NOTHING"

UNAVAILABLE: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    # Two statements with the same events, sent again, may wait for each other.
    asyncpg.TransactionRollbackError,
)
"""What asyncpg raises when the same may succeed later."""


async def insert_many(connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
    """Store rows with one statement."""
    await connection.execute(INSERT_MANY, *zip(*rows, strict=True))


async def copy(connection: asyncpg.Connection, rows: Sequence[Row]) -> None:
    """Store rows by COPY, or by INSERT if some are there already, which COPY cannot pass over."""
    schema, name = NAME.split(".")
    try:
        await connection.copy_records_to_table(name, schema_name=schema, records=rows, columns=list(COLUMNS))
    except asyncpg.UniqueViolationError:
        await insert_many(connection, rows)
