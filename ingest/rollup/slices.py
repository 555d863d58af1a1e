"""Slices of visits: the events of hours that are over, summed by visit, device, country and source.

What aggregates cannot answer, as they are kept by one dimension at a time, is counted from these, a few rows a visit,
in place of the events. An hour's slices are there only while they are right: whatever changes it deletes them in the
same transaction (triggers in sql/migrations/008_visit_slices.sql), and here they are made anew. Who finds none reads
events.

An hour of a busy site takes a minute, in which others go on counting events: so the hour is made under no lock, and
thrown away if it has changed meanwhile.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from ingest.base.errors import IngestError, one_line
from ingest.postgres.queries import load_queries

SECONDS: Final = 15.0
"""How long one run may go on beginning hours: anybody can send events for any number of them."""
SETTLED: Final = timedelta(minutes=2)
"""Most of the events that come after their hour come within this time: it is made once."""
MAX_PAGES: Final = 1000
"""In one row."""
_MOST: Final = 5000
_QUERIES: Final = load_queries("slices")


async def run_once(connection: asyncpg.Connection, now: datetime, seconds: float = SECONDS) -> int:
    """Make the hours that are missing at `now`, the latest first; none is begun after `seconds`. Returns how many
    were made. An hour that fails does not stop the others; at the end IngestError says how many did, and why the
    first.

    Must not be called in a transaction.
    """
    until = time.monotonic() + seconds
    made = 0
    failed: list[str] = []
    await connection.execute(_QUERIES["forget"], now)
    for (hour,) in await connection.fetch(_QUERIES["missing"], now - SETTLED, _MOST):
        if time.monotonic() >= until:
            break
        try:
            made += await _make(connection, hour)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise
            failed.append(f"{hour.isoformat()}: {one_line(error)}")
    if failed:
        raise IngestError(f"slices of {len(failed)} hours could not be made, such as {failed[0]}")
    return made


async def _make(connection: asyncpg.Connection, hour: datetime) -> bool:
    """Make an hour's slices. False if it has changed meanwhile: a later run makes them."""
    token = await connection.fetchval(_QUERIES["begin"], hour)
    try:
        # One snapshot, taken after `begin`: what it does not have deletes the row that `complete` looks for.
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute(_QUERIES["clear"], hour)
            await connection.execute(_QUERIES["make"], hour, MAX_PAGES)
            if await connection.fetchval(_QUERIES["complete"], hour, token) is None:
                raise _Changed
    except (_Changed, asyncpg.SerializationError):
        return False
    return True


class _Changed(Exception):
    """The hour has changed while its slices were made."""
