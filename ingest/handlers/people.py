"""/v1/people: everything that is held on one person, told or erased. For admins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from aiohttp import web

from ingest import fields
from ingest.access import Scope
from ingest.database import load_queries
from ingest.errors import IngestError
from ingest.fields import FieldError, Invalid
from ingest.operations import Answer, Call, Operation, Problem

JOURNAL_SECONDS: Final = 15.0
"""How long a request waits for what still sits in the journals: it is stored within a second, unless Postgres was
away or is far behind."""
LONGEST_SECONDS: Final = 900.0
"""For reading every event there is: some 100,000 a second."""
_GRACE_SECONDS: Final = 5.0
"""For the server to tell that it took too long, before we hang up."""
_RETRY_SECONDS: Final = 30
_QUERIES: Final = load_queries("people")

WaitStored = Callable[[float], Awaitable[bool]]


_BLANK: Final = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
"""In every script, as the database's locale may take any of them for white space."""


class PersonQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Whose data it is about."""

    # Wider than a lead's address: events may hold any.
    email: Annotated[
        str,
        fields.text("Their address, in any case", what="an email address", low=3, high=254,
                    pattern=f"^[^@{_BLANK}]+@[^@{_BLANK}]+$", examples=["user@company.com"]),
    ]  # fmt: skip


def operations(wait_stored: WaitStored) -> list[Operation]:
    """`wait_stored`: whether all that the journals of this data folder hold is stored within so many seconds."""
    one_at_a_time = asyncio.Lock()

    def running(query: str) -> Callable[[Call], Awaitable[web.StreamResponse]]:
        async def handle(call: Call) -> web.StreamResponse:
            if one_at_a_time.locked():
                raise _later("busy", "another person's data is being read; try again")
            async with one_at_a_time:
                await _wait_for_journals(wait_stored)
                return web.Response(
                    body=(await _run(call, _QUERIES[query])).encode(),
                    content_type="application/json",
                    headers={"Cache-Control": "no-store"},
                )

        return handle

    return [
        Operation(
            "GET", "/v1/people/export", running("export"), "Tell all that is held on a person", "people",
            description="By table; what events of this data folder still waited in a journal is stored before.",
            scope=Scope.ADMIN, query=PersonQuery,
            answers={200: Answer("Rows by table, and `email`", dict[str, Any])},
        ),
        Operation(
            "DELETE", "/v1/people", running("erase"), "Erase a person", "people",
            description=(
                "In every table, the audit log included, after what still waited in a journal is stored. Twice is the"
                " same as once."
            ),
            scope=Scope.ADMIN, query=PersonQuery,
            answers={200: Answer("How many rows of each table", dict[str, int])},
        ),
    ]  # fmt: skip


async def _wait_for_journals(wait_stored: WaitStored) -> None:
    """Return when all that came before is in the database, where alone it can be found."""
    try:
        stored = await wait_stored(JOURNAL_SECONDS)
    except IngestError as error:
        raise _later(
            "journal_unreadable", f"a journal cannot be read, and may hold events of theirs: {error}"
        ) from None
    if not stored:
        raise _later("journal_pending", "events that came before still wait in the journal to be stored; try again")


def _later(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, headers={"Retry-After": str(_RETRY_SECONDS)})


async def _run(call: Call, query: str) -> str:
    """What the function tells, as JSON. Its own check of who asks is the one that counts."""
    try:
        async with call.transaction() as connection:
            await connection.execute(_QUERIES["allow"], str(round(LONGEST_SECONDS * 1000)))
            told: str = await connection.fetchval(query, call.query.email, timeout=LONGEST_SECONDS + _GRACE_SECONDS)
    except asyncpg.InvalidParameterValueError:
        # White space to the database's locale that is none to us.
        raise Invalid([FieldError("email", "must be an email address")]) from None
    return told
