"""Entry pages of a range without filters: from the KPI session_entries as far as it goes, otherwise from events.

As that KPI defines them, hour by hour of UTC: a session belongs to the hour (or the part of one that is in the range)
in which its first event is, unless it had one in the half hour before; it counts for the page of its first page view
up to half an hour after that hour. Whole days whose row is the sum of their hours are read as days.

No hour is left out in silence: where there were sessions, but neither figures nor events are kept, a range is
refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from ingest.dashboard.session_hours import HOUR, Hours, between, columns, hours_of, length
from ingest.features.stats import reading, slices, times
from ingest.features.stats.query import MAX_EVENTS_RANGE, Query, Refused
from ingest.features.stats.reading import QUERIES, Freshness
from ingest.features.stats.slices import Span, joined
from ingest.features.stats.times import Part

_KPIS: Final = ["session_entries"]
_DAY: Final = timedelta(days=1)
_NOT_COMPUTED: Final = (
    "entry pages of so many hours are not computed yet that they would have to be read from events, which is possible"
    f" for at most {MAX_EVENTS_RANGE.days} days"
)


class Entries(NamedTuple):
    """A page of the ranking. rows: value, events (sessions) and users, by sessions; one more than was asked for if
    there are more.  total: all sessions that saw a page; other: those of pages that KPIs do not tell apart."""

    rows: Sequence[Mapping[str, Any]]
    total: int
    other: int
    from_kpis: bool
    """Whether any of it is; then `users` are not known."""
    shifted: bool
    """Whether the range begins or ends earlier than it was asked for, with the hour."""


async def entries_of(connection: asyncpg.Connection, query: Query, now: datetime, freshness: Freshness) -> Entries:
    """The query's page of the ranking. Raises Refused."""
    events_from = freshness.events_from
    hours = await hours_of(connection, query, now, events_from, "hours_of_entries", _KPIS, events_from)
    # Figures of what ended before this may be deleted.
    first = min(max(hours.first, times.up(hours.row["kpis_from"] - HOUR, "hour")), hours.settled)
    spans = joined([(hours.start, first), *hours.spans]) if first > hours.first else hours.spans
    waiting = [(hour, hour + HOUR) for hour in hours.row["waiting"] or ()]
    await _check_known(connection, query, hours, [*waiting, *between(spans, hours.start, events_from)])
    kept = between(spans, events_from, hours.end)
    if length(kept) > MAX_EVENTS_RANGE + HOUR:
        raise Refused("range_too_large", _NOT_COMPUTED)
    parts = _parts(first, hours.settled, spans, hours.row["days"] or ())
    read = await slices.sliced(connection, query, kept or [(hours.start, hours.start)], around=slices.HALF_HOUR)
    rows = await connection.fetch(
        slices.of_visits("entries", picked=False),
        *read.arguments,
        *columns(kept),
        *reading.columns(parts),
        *(query.after or (None, None, None)),
        query.limit + 1,
    )
    found = [row for row in rows if row["events"] is not None]
    shifted = (hours.start, hours.end) != (query.start, query.end)
    return Entries(found, rows[0]["total"], rows[0]["other"], bool(parts), shifted)


async def _check_known(connection: asyncpg.Connection, query: Query, hours: Hours, gone: Sequence[Span]) -> None:
    """Raise Refused if there were sessions in an hour that has neither figures nor events. `gone`: times without
    either, in which there may have been none: aggregates, which are kept for longer, know."""
    viewed = await connection.fetchval(QUERIES["last_viewed"], *columns(gone)) if gone else None
    lost = max((hour for hour in (viewed, hours.row["lost"]) if hour is not None), default=None)
    if lost is not None:
        day = (lost.astimezone(query.zone) + _DAY).date()
        raise Refused("bad_range", f"entry pages are known from {day} on")


def _parts(first: datetime, settled: datetime, spans: Sequence[Span], days: Collection[datetime]) -> list[Part]:
    """The hours from `first` to before `settled`, without those in `spans`; some days as such."""
    parts: list[Part] = []
    whole = set(days)
    moment = first
    for low, high in [*between(spans, first, max(first, settled)), (settled, settled)]:
        while moment < low:
            day = times.begin(moment, "day")
            end = min(day + _DAY, low)
            is_whole = moment in whole and end == moment + _DAY
            parts.append(Part("day" if is_whole else "hour", moment, end))
            moment = end
        moment = max(moment, high)
    return times.joined(parts)
