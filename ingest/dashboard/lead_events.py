"""One lead as it is stored, and what is known of the person besides: their events, onboarding and experiments.

Whose an event is, is decided as for the export of a person's data (`ingest.find_person`), with what anybody may claim
but without reading all events, which has no limit: a user is the lead's id or address, or the user who left the lead;
a browser and a visit are those that left the lead or went through its onboarding, as long as no user is named. An
event that only mentions the address is not found here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from ingest.api.problems import Problem
from ingest.dashboard.asking import Ask
from ingest.dashboard.catalogue import Table
from ingest.dashboard.experiments import known_id
from ingest.features.leads.desk import lead_of
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("desk")
_OF_LEADS: Final = load_queries("leads")
_INTERACTIONS: Final = 50
_SUBMISSIONS: Final = 20
_EVENTS: Final = 100


class Known(NamedTuple):
    """By what a person is known."""

    users: list[str]
    browsers: list[str]
    visits: list[str]


async def one_lead(ask: Ask) -> dict[str, Any]:
    """The lead, with its latest interactions and submissions. Raises Problem if there is none.

    Not by the API's operation: that answers with up to a thousand submissions of 10 kB, which anybody may send.
    """
    async with ask.reading() as connection:
        lead = await _lead(ask, connection)
        interactions = await connection.fetch(_OF_LEADS["interactions"], lead["id"], _INTERACTIONS + 1)
        submissions = await connection.fetch(_OF_LEADS["submissions"], lead["id"], _SUBMISSIONS + 1)
    return {
        "lead": _shown(lead),
        "interactions": [_interaction(row) for row in interactions[:_INTERACTIONS]],
        "submissions": [_shown(row) for row in submissions[:_SUBMISSIONS]],
        "there_are_more": {
            "interactions": len(interactions) > _INTERACTIONS,
            "submissions": len(submissions) > _SUBMISSIONS,
        },
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """With times of consent as such; None for what is no time, as anybody with the database may write there."""
    lead = lead_of(row)
    return {**lead, "consent": {purpose: _moment(given) for purpose, given in lead["consent"].items()}}


def _moment(given: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(given))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _interaction(row: Mapping[str, Any]) -> dict[str, Any]:
    more = orjson.loads(row["metadata"])
    return {**row, "metadata": row["metadata"] if more else ""}


async def _lead(ask: Ask, connection: asyncpg.Connection) -> asyncpg.Record:
    id = UUID(known_id(ask.more.get("id", ""), "lead"))
    found = await connection.fetchrow(_OF_LEADS["one"], id)
    if found is None:
        raise Problem(404, "unknown_lead", "There is no such lead. It may have been erased.")
    return found


async def _known(connection: asyncpg.Connection, lead: Mapping[str, Any]) -> Known:
    rows = await connection.fetch(_QUERIES["lead_visits"], str(lead["id"]), lead["created_at"])
    users = {str(lead["id"]), lead["email"], *_distinct(rows, "user_id")}
    return Known(sorted(users), _distinct(rows, "anonymous_id"), _distinct(rows, "session_id"))


def _distinct(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({row[name] for row in rows if row[name] is not None})


async def lead_events(ask: Ask) -> Mapping[str, Any]:
    """The newest events of the person in the page's range."""
    async with ask.reading() as connection:
        lead = await _lead(ask, connection)
        known = await _known(connection, lead)
        rows = await connection.fetch(
            _QUERIES["lead_events"],
            ask.view.start,
            ask.view.end,
            known.users,
            known.browsers,
            known.visits,
            str(lead["id"]),
            _EVENTS,
        )
    return {"events": rows, "known": known, "most": _EVENTS, "has_visit": bool(known.browsers or known.visits)}


def lead_events_table(found: Mapping[str, Any]) -> Table:
    columns = ("created_at", "name", "type", "page_path", "user_id", "anonymous_id", "session_id", "properties")
    return columns, [[row[name] for name in columns] for row in found["events"]]


async def lead_history(ask: Ask) -> Mapping[str, Any]:
    """The person's onboarding, and the variants that they were given."""
    async with ask.reading() as connection:
        lead = await _lead(ask, connection)
        known = await _known(connection, lead)
        journeys = await connection.fetch(_QUERIES["lead_journeys"], str(lead["id"]))
        users = [user for user in known.users if _is_uuid(user)]
        variants = await connection.fetch(_QUERIES["lead_variants"], users, known.visits + known.browsers)
    return {"journeys": journeys, "variants": variants}


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
