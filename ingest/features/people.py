"""/v1/people: everything stored about one person, exported or erased. For admins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from aiohttp import web

from ingest.api import email_addresses, fields
from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import Documented, Operation
from ingest.api.problems import Problem
from ingest.base.errors import IngestError
from ingest.journal import journals, set_aside
from ingest.journal.traces import Traces
from ingest.postgres.queries import load_queries

JOURNAL_SECONDS: Final = 15.0
"""How long a request waits for events still in the journals: they are stored within a second, unless Postgres was
away or is far behind."""
LONGEST_SECONDS: Final = 900.0
"""For reading every event: some 100,000 a second."""
_GRACE_SECONDS: Final = 5.0
"""Lets the server report a timeout before we close the connection."""
_RETRY_SECONDS: Final = 30
_FILES_NAMED: Final = 5
_QUERIES: Final = load_queries("people")

WaitStored = Callable[[float], Awaitable[bool]]
ClearJournals = Callable[[float], Awaitable[list[Path]]]

_BLANK: Final = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
"""White space of every script, as the database's locale may take any of it for white space."""


class PersonQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The person."""

    # Accepts more than a lead's address: events may hold any.
    email: Annotated[
        str,
        fields.text(
            "Email address, in upper or lower case",
            what="an email address",
            low=3,
            high=254,
            pattern=f"^[^@{_BLANK}]+@[^@{_BLANK}]+$",
            examples=["user@company.com"],
        ),
    ]
    include_unverified: Annotated[
        bool,
        fields.about(
            "Include what only requests without a key claim: a form's browser, an event's session, phone numbers …"
        ),
    ] = False


class ErasureQuery(PersonQuery, forbid_unknown_fields=True, kw_only=True):
    """The person to erase."""

    dry_run: Annotated[
        bool,
        fields.about("Erase nothing: report what would be erased, by which ids, and which of these are unverified"),
    ] = False


def operations(wait_stored: WaitStored, clear_journals: ClearJournals, data_dir: Path) -> list[Operation]:
    """`wait_stored`: wait up to a number of seconds until this data folder's journals are stored; whether they are.
    `clear_journals`: the same, then delete their files; returns those that could not be deleted."""
    one_at_a_time = asyncio.Lock()

    def alone(run: Callable[[Call], Awaitable[str]]) -> Callable[[Call], Awaitable[web.StreamResponse]]:
        async def handle(call: Call) -> web.StreamResponse:
            if one_at_a_time.locked():
                raise _later("busy", "another export or erasure is running; try again")
            async with one_at_a_time:
                await _wait_for_journals(wait_stored)
                body = (await run(call)).encode()
            headers = {"Cache-Control": "no-store"}
            return web.Response(body=body, content_type="application/json", headers=headers)

        return handle

    async def export(call: Call) -> str:
        return await _run(call, _QUERIES["export"])

    async def erase(call: Call) -> str:
        query: ErasureQuery = call.query
        if not query.dry_run:
            await _clear(clear_journals, data_dir)
        planned: dict[str, Any] | None = None
        if query.dry_run or await asyncio.to_thread(set_aside.exist, data_dir):
            # The ids must be read from the tables before they are erased.
            planned = msgspec.json.decode(await _run(call, _QUERIES["erase"], dry_run=True))
        files = await _search_files(data_dir, planned, erase=not query.dry_run) if planned else []
        report = (
            planned if planned and query.dry_run else msgspec.json.decode(await _run(call, _QUERIES["erase"], False))
        )
        if files:
            report["journal_files"] = files
        if elsewhere := await _journals_elsewhere(call, data_dir):
            report["journals_elsewhere"] = elsewhere
        return msgspec.json.encode(report).decode()

    return [
        Operation(
            "GET",
            "/v1/people/export",
            alone(export),
            "Export everything stored about a person",
            "people",
            description=(
                "Rows by table, after storing what still waits in the journals of this data folder. Ids that only"
                " requests without a key claim are listed separately, as `unverified`, unless include_unverified is"
                " true."
            ),
            scope=Scope.ADMIN,
            query=PersonQuery,
            answers={200: Documented("Rows by table, and `email`", dict[str, Any])},
        ),
        Operation(
            "DELETE",
            "/v1/people",
            alone(erase),
            "Erase a person",
            "people",
            description=(
                "In every table, including the audit log, and in the journal files of this data folder: waiting"
                " events are stored and their files deleted; files that were set aside are rewritten without the"
                " person's lines. `journal_files` names the latter, and files with unreadable damage (`unclear`),"
                " which you have to delete yourself. `journals_elsewhere` has the numbers of journals in other data"
                " folders: send the request to their collectors too. Repeating it does no harm. Ids are linked by"
                " what the service assigned and what authenticated callers sent; use dry_run first to see what is"
                " based on unverified claims."
            ),
            scope=Scope.ADMIN,
            query=ErasureQuery,
            answers={
                200: Documented("Rows erased by table; with dry_run, what would be erased and why", dict[str, Any])
            },
        ),
    ]


async def _wait_for_journals(wait_stored: WaitStored) -> None:
    """Return once everything received before is in the database, the only place that can be searched."""
    try:
        stored = await wait_stored(JOURNAL_SECONDS)
    except IngestError as error:
        raise _later(
            "journal_unreadable", f"a journal cannot be read, and may hold events of this person: {error}"
        ) from None
    if not stored:
        raise _later("journal_pending", "earlier events are still waiting in the journal to be stored; try again")


def _later(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, headers={"Retry-After": str(_RETRY_SECONDS)})


async def _clear(clear_journals: ClearJournals, data_dir: Path) -> None:
    """Return once everything that was in a journal is gone from its files."""
    if left := await clear_journals(JOURNAL_SECONDS):
        names = ", ".join(str(path.relative_to(data_dir)) for path in left[:_FILES_NAMED])
        more = f" and {len(left) - _FILES_NAMED} more" if len(left) > _FILES_NAMED else ""
        raise _later(
            "journal_pending",
            f"events are still waiting to be stored in {names}{more}; nothing was erased, try again",
        )


async def _search_files(data_dir: Path, planned: dict[str, Any], *, erase: bool) -> list[set_aside.Found]:
    try:
        return await asyncio.to_thread(set_aside.search, data_dir, Traces(planned["because_of"]), erase=erase)
    except IngestError as error:
        raise _later("busy", str(error)) from None


async def _journals_elsewhere(call: Call, data_dir: Path) -> list[int]:
    """The numbers of journals in other data folders."""
    numbers = [int(folder.name) for folder in journals.folders(data_dir) if folder.name.isdigit()]
    async with call.transaction() as connection:
        found: list[int] = await connection.fetchval(_QUERIES["elsewhere"], numbers)
    return found


async def _run(call: Call, query: str, dry_run: bool | None = None) -> str:
    """The database function's result, as JSON. It checks the caller's rights itself."""
    try:
        async with call.transaction() as connection:
            await connection.execute(_QUERIES["allow"], str(round(LONGEST_SECONDS * 1000)))
            wanted = call.query
            spellings = _spellings(wanted.email)
            arguments: list[object] = [spellings[0], wanted.include_unverified, spellings]
            if dry_run is not None:
                arguments.append(dry_run)
            result: str = await connection.fetchval(query, *arguments, timeout=LONGEST_SECONDS + _GRACE_SECONDS)
    except asyncpg.InvalidParameterValueError:
        # The database's locale takes a character for white space that _BLANK does not have.
        raise Invalid([FieldError("email", "must be an email address")]) from None
    return result


def _spellings(email: str) -> list[str]:
    spellings = email_addresses.spellings(email)
    if spellings[0].endswith("@"):
        raise Invalid([FieldError("email", "must be an email address")])
    return spellings
