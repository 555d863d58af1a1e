"""Where a link came after events of the browser were counted: which hours are to be rebuilt, and whose visits.

The rollup worker only notes such browsers, because what there is of them is anywhere in the last months. This looks
for it, for many browsers at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import asyncpg

from ingest.postgres.queries import load_queries
from ingest.rollup import identities, visits
from ingest.rollup.rollup import turn
from ingest.rollup.tallies import following
from ingest.rollup.visits import Visit

MOST_BROWSERS: Final = 2000
"""Of one run: days that are over are searched by an index, today's events are read through once."""
_QUERIES: Final = load_queries("identities")


async def run_once(connection: asyncpg.Connection, most: int = MOST_BROWSERS) -> int:
    """Look for the hours of browsers that are noted, at most so many; how many were."""
    noted = await connection.fetch(_QUERIES["stale_identities"], most)
    if not noted:
        return 0
    hours = await _hours_of(connection, [row["anonymous_id"] for row in noted])
    people = {person for row in noted for person in row["people"]}
    for person in sorted(people):
        await _tell_visits_apart(connection, person)
    async with connection.transaction():
        if hours:
            await identities.note_hours(connection, hours)
        # What was noted again meanwhile stays.
        await connection.execute(
            _QUERIES["forget_noted"], [row["anonymous_id"] for row in noted], [row["noted_at"] for row in noted]
        )
    return len(noted)


async def _hours_of(connection: asyncpg.Connection, browsers: Sequence[str]) -> set[datetime]:
    """The hours in which these browsers did something without a user_id."""
    hours: set[datetime] = set()
    for (day,) in await connection.fetch(_QUERIES["days"]):
        rows = await connection.fetch(_QUERIES["hours_of_browsers"], browsers, day, following("day", day))
        hours |= {hour for (hour,) in rows}
    return hours


async def _tell_visits_apart(connection: asyncpg.Connection, person: str) -> None:
    """Make a person's visits anew from all their events, while nobody counts any."""
    async with turn(connection):
        browsers = {row[0] for row in await connection.fetch(_QUERIES["browsers_of"], person)}
        if not await connection.fetch(_QUERIES["links"], identities.texts([person])):
            browsers.add(person)
        spans = await connection.fetch(_QUERIES["visits_of"], person, list(browsers))
        before = [Visit(*row) for row in await connection.fetch(_QUERIES["all_visits"], [person])]
        after = _named(person, [(row["started_at"], row["ended_at"]) for row in spans], sorted(before))
        lost, won = set(before) - set(after), set(after) - set(before)
        await identities.put_visits(connection, [visits.Change(sorted(won), sorted(lost), sorted(lost | won))])


def _named(person: str, spans: Collection[tuple[datetime, datetime]], before: Sequence[Visit]) -> list[Visit]:
    """Visits at these times, in order, which keep the ids of those they are made of as far as they can."""
    left = list(before)
    named: list[Visit] = []
    for start, end in spans:
        while left and left[0].ended_at < start:
            left.pop(0)
        session_id = None
        if left and left[0].started_at <= end:
            # Once given it is no other's: what the visit before it is divided into gets ids of its own.
            session_id = left.pop(0).session_id
        named.append(Visit(person, start, end, session_id or visits.new_id()))
    return named
