"""The figures at the top of the overview."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from ingest.dashboard import counting
from ingest.dashboard.counting import NOTHING, Distinct, Measured
from ingest.dashboard.sessions import Sessions, sessions_of
from ingest.dashboard.view import View

_WITHOUT: Final = "not known of events without a value for so long a time: read from events, for at most 31 days"


class Figure(NamedTuple):
    """One number of a range."""

    value: float | None
    source: str
    """aggregates or events."""
    estimated: bool = False
    """Whether its standard error is 1.6 %; otherwise it is exact."""
    why: str = ""
    """If it is not known, a phrase that says why."""


class Figures(NamedTuple):
    """The numbers of a range. Bots count only where the view asks for them.

    visitors: distinct people with any event.  sessions: distinct sessions with any event.  page_views, conversions:
    events of these types.
    """

    visitors: Figure
    sessions: Figure
    page_views: Figure
    conversions: Figure
    as_of: datetime
    """What was stored before is in them."""
    at_least: bool
    """Whether events may be missing from what is filtered by, as aggregates had no room for its value or name."""
    shifted: bool
    """Whether the range begins or ends up to an hour early, as neither its minutes nor its events are kept."""


async def figures(connection: asyncpg.Connection, view: View, dimensions: Sequence[str]) -> Figures:
    """The figures of a view. `dimensions`: those that aggregates are kept by. Raises Refused where neither aggregates
    nor, for at most 31 days, events have them."""
    measured = await counting.measure(connection, view.as_query(), dimensions, [view.start])
    found = measured.found.get(0, NOTHING)
    return Figures(
        _distinct(found.users, measured),
        _distinct(found.sessions, measured),
        Figure(found.page_views, measured.source),
        Figure(found.conversions, measured.source),
        measured.as_of,
        measured.at_least,
        measured.shifted,
    )


class Visits(NamedTuple):
    """Means over the sessions that began in a range: bounce_rate from 0 to 1, session_seconds. Definitions:
    ingest/dashboard/sessions.py."""

    bounce_rate: Figure
    session_seconds: Figure


async def visits(connection: asyncpg.Connection, view: View, now: datetime) -> Visits:
    """The visits of a view. With filters they are read from events."""
    began = await sessions_of(connection, view.as_query(end=view.end), now)
    return Visits(_rate(began.bounce_rate, began), _rate(began.mean_seconds, began))


def _distinct(found: Distinct | None, measured: Measured) -> Figure:
    if found is None:
        return Figure(None, measured.source, why=_WITHOUT)
    return Figure(found.number, measured.source, found.estimated)


def _rate(value: float | None, began: Sessions) -> Figure:
    return Figure(value, began.source, why=began.why)
