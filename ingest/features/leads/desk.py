"""Leads for admins: listed, read with their interactions, changed, given another interaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
import msgspec
import orjson
from aiohttp import web
from msgspec import UNSET, UnsetType

from ingest.api import email_addresses, fields
from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import Documented, Operation
from ingest.api.problems import Problem
from ingest.features.leads.lead import (
    CURSOR_CHARACTERS,
    CURSOR_PATTERN,
    TRANSITIONS,
    CursorPlace,
    Lead,
    Outcome,
    Source,
    Status,
    Timestamp,
    cursor_of,
    place_of,
    utc,
)
from ingest.http.answers import answer
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("leads")
_MOST_INTERACTIONS: Final = 1000
_PRIVATE: Final = {"Cache-Control": "no-store"}
_METADATA_SIZE: Final = "lead_interactions_metadata_size"

Cursor = Annotated[
    str,
    fields.text(
        "`next` of the previous page",
        what="the `next` of a page",
        low=CURSOR_CHARACTERS,
        high=CURSOR_CHARACTERS,
        pattern=CURSOR_PATTERN,
    ),
]


class Filters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which leads: all conditions must hold."""

    status: Annotated[Status, fields.about("Only leads with this status")] | None = None
    source: Annotated[Source, fields.about("Only leads from this form")] | None = None
    min_score: Annotated[int, fields.number("Lowest score", 0, 100)] | None = None
    created_from: Annotated[Timestamp, fields.about("Created at or after this time")] | None = None
    created_to: Annotated[Timestamp, fields.about("Created before this time")] | None = None
    q: Annotated[str, fields.text("Beginning of the email address or the company name", low=1, high=254)] | None = (
        None
    )


class PageQuery(Filters, forbid_unknown_fields=True, kw_only=True):
    """Filters and page."""

    limit: Annotated[int, fields.number("Page size", 1, 1000)] = 100
    cursor: Cursor | None = None


class Page(msgspec.Struct):
    """Leads, the latest first; `next` is null on the last page."""

    leads: list[Lead]
    next: Cursor | None


class LeadPath(msgspec.Struct, forbid_unknown_fields=True):
    """The lead in the path."""

    id: UUID


class Interaction(msgspec.Struct):
    """An interaction with a lead, done or planned."""

    id: UUID
    interaction_type: str
    subject: str | None
    description: str | None
    outcome: Outcome | None
    scheduled_at: datetime | None
    completed_at: datetime | None
    created_by: UUID | None
    metadata: dict[str, Any]
    created_at: datetime


class Submission(msgspec.Struct):
    """What somebody without a key submitted again under a lead's address. As nobody has proved that the address is
    theirs, it did not change the lead."""

    id: UUID
    phone_number: str | None
    company_name: str | None
    first_name: str | None
    last_name: str | None
    source: Source
    notes: str | None
    interested_features: list[str]
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_content: str | None
    utm_term: str | None
    referrer: str | None
    landing_page: str | None
    user_agent: str | None
    ip_address: str | None
    country_code: str | None
    region: str | None
    city: str | None
    consent: dict[str, Any]
    created_at: datetime


class LeadWithInteractions(Lead):
    """A lead with its interactions and later submissions, the latest 1,000 of each."""

    interactions: list[Interaction]
    submissions: list[Submission]


class LeadChange(msgspec.Struct, forbid_unknown_fields=True):
    """The fields to change."""

    status: Annotated[Status, fields.about("New status")] | None = None
    notes: Annotated[str, fields.text("Replaces the previous notes", high=10_000)] | UnsetType | None = UNSET


class NewInteraction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An interaction, done or planned."""

    interaction_type: Annotated[
        str,
        fields.text(
            "For example email_sent, call_made or demo_scheduled",
            what="a name in lower_snake_case",
            low=1,
            high=50,
            pattern="^[a-z][a-z0-9_]*$",
            examples=["call_made"],
        ),
    ]
    subject: Annotated[str, fields.text("One line", high=300)] | None = None
    description: Annotated[str, fields.text("Full text", high=10_000)] | None = None
    outcome: Annotated[Outcome, fields.about("How the lead responded")] | None = None
    scheduled_at: Annotated[Timestamp, fields.about("When it is planned")] | None = None
    completed_at: Annotated[Timestamp, fields.about("When it was done")] | None = None
    metadata: Annotated[dict[str, Any], fields.about("Anything else, under 16 kB")] = msgspec.field(
        default_factory=dict
    )


def operations() -> list[Operation]:
    """For admins."""
    unknown = Documented("Unknown lead")
    return [
        Operation(
            "GET",
            "/v1/leads",
            page,
            "List leads",
            "leads",
            scope=Scope.ADMIN,
            query=PageQuery,
            answers={200: Documented("A page of leads, the latest first", Page)},
        ),
        Operation(
            "GET",
            "/v1/leads/{id}",
            read_one,
            "Read a lead",
            "leads",
            scope=Scope.ADMIN,
            parameters=LeadPath,
            answers={200: Documented("The lead", LeadWithInteractions), 404: unknown},
        ),
        Operation(
            "PATCH",
            "/v1/leads/{id}",
            change,
            "Change a lead",
            "leads",
            scope=Scope.ADMIN,
            parameters=LeadPath,
            body=LeadChange,
            answers={
                200: Documented("The changed lead", Lead),
                404: unknown,
                409: Documented("The status cannot change to this one; `detail` lists those it can change to"),
            },
        ),
        Operation(
            "POST",
            "/v1/leads/{id}/interactions",
            interact,
            "Add an interaction",
            "leads",
            scope=Scope.ADMIN,
            parameters=LeadPath,
            body=NewInteraction,
            answers={201: Documented("The recorded interaction", Interaction), 404: unknown},
        ),
    ]


def arguments(filters: Filters, place: CursorPlace | None, limit: int) -> list[Any]:
    """The parameters of the query `page`."""
    company, address = None, None
    if filters.q is not None:
        company, address = _beginning(filters.q), _beginning(email_addresses.in_ascii(filters.q))
    return [
        filters.status,
        filters.source,
        filters.min_score,
        _utc(filters.created_from),
        _utc(filters.created_to),
        company,
        place.created_at if place else None,
        place.id if place else None,
        limit,
        address,
    ]


def _beginning(text: str) -> str:
    """The LIKE pattern for lower-case texts that begin with this one."""
    return text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def lead_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Lead, from a row."""
    return {**row, "id": str(row["id"]), "consent": orjson.loads(row["consent"])}


async def page(call: Call) -> web.StreamResponse:
    query: PageQuery = call.query
    place = place_of(query.cursor) if query.cursor is not None else None
    async with call.transaction() as connection:
        # One row more than the page, to see whether there is another page.
        rows = await connection.fetch(_QUERIES["page"], *arguments(query, place, query.limit + 1))
    shown = rows[: query.limit]
    last = CursorPlace(shown[-1]["created_at"], shown[-1]["id"]) if len(rows) > len(shown) else None
    found = {"leads": [lead_of(row) for row in shown], "next": cursor_of(last) if last else None}
    return answer(200, found, _PRIVATE)


async def read_one(call: Call) -> web.StreamResponse:
    lead_id: UUID = call.parameters.id
    async with call.transaction() as connection:
        lead = await _lead(connection, lead_id)
        rows = await connection.fetch(_QUERIES["interactions"], lead_id, _MOST_INTERACTIONS)
        submissions = await connection.fetch(_QUERIES["submissions"], lead_id, _MOST_INTERACTIONS)
    shown = {
        **lead,
        "interactions": [_interaction_of(row) for row in rows],
        "submissions": [lead_of(row) for row in submissions],
    }
    return answer(200, shown, _PRIVATE)


async def change(call: Call) -> web.StreamResponse:
    lead_id, wanted = call.parameters.id, call.body
    call.require_room()
    async with call.transaction() as connection:
        before = await connection.fetchval(_QUERIES["lock"], lead_id)
        if before is None:
            raise _unknown()
        after = wanted.status or before
        check_transition(before, after)
        notes = wanted.notes
        await connection.execute(
            _QUERIES["change"], lead_id, wanted.status, notes is not UNSET, None if notes is UNSET else notes
        )
        lead = await _lead(connection, lead_id)
    if after != before:
        properties = {"lead_id": str(lead_id), "from": before, "to": after}
        await call.emit({"name": "lead_status_changed", "type": "system", "properties": properties}, of_client=False)
    return answer(200, lead, _PRIVATE)


def check_transition(before: str, after: str) -> None:
    """Raise a Problem 409 unless a lead's status may change from `before` to `after`, or is the same."""
    allowed = TRANSITIONS[before]
    if after != before and after not in allowed:
        may = f"can become {' or '.join(allowed)}, not {after}" if allowed else "keeps this status"
        raise Problem(409, "transition_not_allowed", f"a lead that is {before} {may}")


async def interact(call: Call) -> web.StreamResponse:
    lead_id: UUID = call.parameters.id
    new: NewInteraction = call.body
    call.require_room()
    try:
        async with call.transaction() as connection:
            row = await connection.fetchrow(
                _QUERIES["interact"],
                lead_id,
                new.interaction_type,
                new.subject,
                new.description,
                new.outcome,
                _utc(new.scheduled_at),
                _utc(new.completed_at),
                orjson.dumps(new.metadata).decode(),
                call.caller.person_id,
            )
    except asyncpg.CheckViolationError as error:
        if error.constraint_name != _METADATA_SIZE:
            raise
        raise Invalid([FieldError("metadata", "must be under 16 kB")]) from None
    if row is None:
        raise _unknown()
    properties = {"lead_id": str(lead_id), "interaction_type": new.interaction_type, "outcome": new.outcome}
    await call.emit({"name": "lead_interaction_added", "type": "system", "properties": properties}, of_client=False)
    return answer(201, _interaction_of(row), _PRIVATE)


async def _lead(connection: asyncpg.Connection, lead_id: UUID) -> dict[str, Any]:
    row = await connection.fetchrow(_QUERIES["one"], lead_id)
    if row is None:
        raise _unknown()
    return lead_of(row)


def _interaction_of(row: Mapping[str, Any]) -> dict[str, Any]:
    author = row["created_by"]
    return {
        **row,
        "id": str(row["id"]),
        "created_by": str(author) if author else None,
        "metadata": orjson.loads(row["metadata"]),
    }


def _unknown() -> Problem:
    return Problem(404, "unknown_lead", "there is no lead with this id")


def _utc(moment: datetime | None) -> datetime | None:
    return utc(moment) if moment is not None else None
