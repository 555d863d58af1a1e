"""The certificate of the accounting: the past hours' aggregates have as many events as the table, each counted once.

Collectors' books end where events are stored. This is the same question for what comes after: it compares two counts
of each hour, in one snapshot, so that nothing has to wait; the rows of the hour are read once, by the primary key.
`ingest rollup verify` compares every bucket, and people, too, which takes the time of counting the events anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from ingest.base.errors import IngestError
from ingest.postgres.queries import fill, load_queries
from ingest.rollup.buckets import dimensions
from ingest.rollup.rebuild import HOUR
from ingest.rollup.rollup import batch_ranges
from ingest.rollup.tallies import BOTS

HOURS: Final = 3
"""How many hours are compared, the last of which has ended."""
BOTS_DIMENSIONS: Final = dimensions(("hour", datetime.min, "", "", *BOTS))
_QUERIES: Final = load_queries("certificate")


class AccountsDiffer(IngestError):
    """Aggregates that do not have as many events as the table."""


class Compared(NamedTuple):
    """The events of an hour: those of the table that are rolled up, and those that the aggregates have."""

    hour: datetime
    events: int
    counted: int


async def certify(connection: asyncpg.Connection, now: datetime) -> int:
    """Compare the last `HOURS` full hours before `now`. Returns how many could be compared: those that are due to be
    rebuilt cannot. Raises AccountsDiffer."""
    compared = await compare(connection, now)
    if differing := [one for one in compared if one.events != one.counted]:
        first = differing[0]
        raise AccountsDiffer(
            f"of the hour {first.hour.isoformat()} the aggregates count {first.counted} events, but"
            f" {first.events} are stored and rolled up ({len(differing)} of {len(compared)} hours differ);"
            " `ingest rollup verify` shows where"
        )
    return len(compared)


async def compare(connection: asyncpg.Connection, now: datetime) -> Sequence[Compared]:
    """What the last `HOURS` full hours before `now` have, oldest first, without those that are due to be rebuilt."""
    ended = now.replace(minute=0, second=0, microsecond=0)
    compared: list[Compared] = []
    for number in range(HOURS, 0, -1):
        hour = ended - timedelta(hours=number)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if await connection.fetchval(_QUERIES["is_stale"], hour):
                continue
            waiting = batch_ranges(await connection.fetch(_QUERIES["not_rolled_up"]))
            events, counted = await connection.fetchrow(
                fill(_QUERIES["counts"], batches=waiting), hour, hour + HOUR, BOTS_DIMENSIONS
            )
        compared.append(Compared(hour, events, counted))
    return compared
