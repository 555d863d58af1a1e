"""Late links: finds the hours and visits to rebuild where a browser was linked after its events had been counted.

The rollup worker only notes such browsers, because their events may be anywhere in the last months. Here they are
looked up, many browsers at once.
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
"""Per run: past days are searched through an index, today's events are scanned once."""
_QUERIES: Final = load_queries("identities")


async def run_once(connection: asyncpg.Connection, most: int = MOST_BROWSERS) -> int:
    """Schedule rebuilds for up to `most` noted browsers. Returns how many were handled."""
    noted = await connection.fetch(_QUERIES["stale_identities"], most)
    if not noted:
        return 0
    hours = await _hours_of(connection, [row["anonymous_id"] for row in noted])
    people = {person for row in noted for person in row["people"]}
    for person in sorted(people):
        await _rebuild_visits(connection, person)
    async with connection.transaction():
        if hours:
            await identities.note_hours(connection, hours)
        # Those noted again meanwhile stay.
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


async def _rebuild_visits(connection: asyncpg.Connection, person: str) -> None:
    """Rebuild a person's visits from all their events, while none are being counted."""
    async with turn(connection):
        browsers = {row[0] for row in await connection.fetch(_QUERIES["browsers_of"], person)}
        if not await connection.fetch(_QUERIES["links"], identities.as_json([person])):
            browsers.add(person)
        spans = await connection.fetch(_QUERIES["visits_of"], person, list(browsers))
        before = [Visit(*row) for row in await connection.fetch(_QUERIES["all_visits"], [person])]
        after = _with_ids(person, [(row["started_at"], row["ended_at"]) for row in spans], sorted(before))
        removed, new = set(before) - set(after), set(after) - set(before)
        await identities.put_visits(connection, [visits.Change(sorted(new), sorted(removed), sorted(removed | new))])


def _with_ids(person: str, spans: Collection[tuple[datetime, datetime]], before: Sequence[Visit]) -> list[Visit]:
    """Visits at these times, in order, keeping the ids of the earlier visits they overlap where possible."""
    left = list(before)
    found: list[Visit] = []
    for start, end in spans:
        while left and left[0].ended_at < start:
            left.pop(0)
        session_id = None
        if left and left[0].started_at <= end:
            # Each id is used once: if a visit was split, its other parts get new ids.
            session_id = left.pop(0).session_id
        found.append(Visit(person, start, end, session_id or visits.new_id()))
    return found
