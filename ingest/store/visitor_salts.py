"""The salts of visitors without cookies, in the database: one a day for all collectors, and erased in time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import date
from typing import Final

import asyncpg

from ingest.events.values.visitors import SALT_BYTES
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("visitor_salts")


async def share(connection: asyncpg.Connection, today: date, days: Sequence[date]) -> dict[date, bytes]:
    """Make salts for those of `days` that have none, and return all from yesterday's on. Erases older ones."""
    await erase(connection, today)
    await connection.execute(_QUERIES["add"], days, [secrets.token_bytes(SALT_BYTES) for _ in days])
    return {row["day"]: row["salt"] for row in await connection.fetch(_QUERIES["known"], today)}


async def erase(connection: asyncpg.Connection, today: date) -> int:
    """Erase the salts of days before yesterday; returns how many."""
    return int((await connection.execute(_QUERIES["erase"], today)).split()[-1])
