"""Bounce rate and session length of a range.

As the KPIs of these names define them, hour by hour of UTC: a session belongs to the hour (or the part of one that is
in the range) in which its first event is, unless it had one in the half hour before; of its events, those up to half
an hour after the hour count. It bounced if no more than one of these is not of type system. Bots are left out. The
rates of a range are those of all such sessions.

With filters, a session counts if any of these events matches all of them; then all of its events count: so a page's
bounce rate is that of the sessions that saw it.

Without filters the hours come from the KPIs where these are settled (see session_hours.py), else from events.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from ingest.dashboard.session_hours import HOUR, between, columns, hours_of, length
from ingest.features.stats import reading, slices
from ingest.features.stats.query import MAX_EVENTS_RANGE, Query
from ingest.features.stats.slices import Span

_KPIS: Final = ["bounce_rate", "session_length"]
_TOO_LONG: Final = f"with filters, known for at most {MAX_EVENTS_RANGE.days} days, as it is read from events"
_NOT_COMPUTED: Final = "not yet computed for so many hours that they cannot be read from events"
_GONE: Final = "with filters, read from events, which are no longer kept from then"
_OTHERS: Final = "not known of what aggregates had no room for"
_NONE: Final = "there are no sessions"


class Sessions(NamedTuple):
    """Sums over the sessions that began in a range; `why`: if they are not known, a phrase that says why."""

    sessions: int = 0
    bounces: float = 0
    seconds: float = 0
    source: str = "events"
    """`aggregates` if any of it is from KPIs."""
    why: str = ""

    @property
    def bounce_rate(self) -> float | None:
        """From 0 to 1; None: not known."""
        return min(1.0, self.bounces / self.sessions) if self.sessions else None

    @property
    def mean_seconds(self) -> float | None:
        """From the first to the last event; None: not known."""
        return self.seconds / self.sessions if self.sessions else None


async def sessions_of(connection: asyncpg.Connection, query: Query, now: datetime) -> Sessions:
    """The sessions that began in the query's range."""
    if query.asks_others:
        return Sessions(why=_OTHERS)
    freshness = await reading.freshness(connection)
    if query.filters or query.event is not None:
        if query.end - query.start > MAX_EVENTS_RANGE + HOUR:
            return Sessions(why=_TOO_LONG)
        if query.start < freshness.events_from:
            return Sessions(why=_GONE)
        return _known(await _from_events(connection, query, [(query.start, query.end)]))
    hours = await hours_of(connection, query, now, freshness.events_from, "hours_of_sessions", _KPIS)
    # What is not kept any more cannot be read: those hours have no figures, as no session began in them.
    kept = between(hours.spans, freshness.events_from, hours.end)
    if length(kept) > MAX_EVENTS_RANGE + HOUR:
        return Sessions(why=_NOT_COMPUTED)
    read = await _from_events(connection, query, kept)
    row = hours.row
    return _known(
        Sessions(
            read.sessions + row["sessions"],
            read.bounces + row["bounces"],
            read.seconds + row["seconds"],
            "aggregates" if hours.settled > hours.first else "events",
        )
    )


async def _from_events(connection: asyncpg.Connection, query: Query, spans: Sequence[Span]) -> Sessions:
    if not spans:
        return Sessions()
    read = await slices.sliced(connection, query, spans, around=slices.HALF_HOUR)
    asked = slices.of_visits("sessions", picked=bool(query.filters) or query.event is not None)
    row = await connection.fetchrow(asked, *read.arguments, *columns(spans))
    return Sessions(row["sessions"], row["bounces"], row["seconds"])


def _known(sessions: Sessions) -> Sessions:
    return sessions if sessions.sessions else sessions._replace(why=_NONE)
