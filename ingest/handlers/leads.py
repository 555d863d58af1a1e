"""Leads: captured by the marketing site."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from aiohttp import web

from ingest import fields
from ingest.database import load_queries
from ingest.http import answer
from ingest.operations import Answer, Call, Operation

_QUERIES: Final = load_queries("leads")


class NewLead(msgspec.Struct, forbid_unknown_fields=True):
    """A lead as the site sends it."""

    email: Annotated[str, fields.text("Address", what="an email address", low=3, high=254)]
    company_name: Annotated[str, fields.text("Company", low=1, high=200)] | None = None


class Captured(msgspec.Struct):
    """A lead that was taken in."""

    id: str


def operations() -> list[Operation]:
    return [
        Operation(
            "POST", "/v1/leads", capture, "Leave an address", "leads", body=NewLead,
            answers={201: Answer("A new lead", Captured), 200: Answer("A known address", Captured)},
        )
    ]  # fmt: skip


async def capture(call: Call) -> web.StreamResponse:
    lead: NewLead = call.body
    email = lead.email.strip().lower()
    async with call.transaction(user_email=email) as connection:
        status = await connection.execute(_QUERIES["capture"], email, lead.company_name)
        row = await connection.fetchrow(_QUERIES["captured"], email)
    created = status == "INSERT 0 1"
    await call.emit({"name": "lead_created" if created else "lead_updated", "type": "conversion"})
    return answer(201 if created else 200, {"id": str(row["id"])})
