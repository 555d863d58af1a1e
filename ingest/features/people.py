"""/v1/people: everything that is held on one person, told or erased. For admins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from aiohttp import web

from ingest.api import fields, mailbox
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
"""How long a request waits for what still sits in the journals: it is stored within a second, unless Postgres was
away or is far behind."""
LONGEST_SECONDS: Final = 900.0
"""For reading every event there is: some 100,000 a second."""
_GRACE_SECONDS: Final = 5.0
"""For the server to tell that it took too long, before we hang up."""
_RETRY_SECONDS: Final = 30
_FILES_TOLD: Final = 5
_QUERIES: Final = load_queries("people")

WaitStored = Callable[[float], Awaitable[bool]]
ClearJournals = Callable[[float], Awaitable[list[Path]]]


_BLANK: Final = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
"""In every script, as the database's locale may take any of them for white space."""


class PersonQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Whose data it is about."""

    # Wider than a lead's address: events may hold any.
    email: Annotated[
        str,
        fields.text(
            "Their address, in any case",
            what="an email address",
            low=3,
            high=254,
            pattern=f"^[^@{_BLANK}]+@[^@{_BLANK}]+$",
            examples=["user@company.com"],
        ),
    ]
    include_unverified: Annotated[
        bool,
        fields.about("Also what only requests without a key claim: a form's browser, an event's session, phones …"),
    ] = False


class ErasureQuery(PersonQuery, forbid_unknown_fields=True, kw_only=True):
    """Who is erased."""

    dry_run: Annotated[
        bool, fields.about("Erase nothing: tell what would go, by which ids, and which are unverified")
    ] = False


def operations(wait_stored: WaitStored, clear_journals: ClearJournals, data_dir: Path) -> list[Operation]:
    """`wait_stored`: whether all that the journals of this data folder hold is stored within so many seconds.
    `clear_journals`: the same, and their files are deleted; those that could not be."""
    one_at_a_time = asyncio.Lock()

    def alone(run: Callable[[Call], Awaitable[str]]) -> Callable[[Call], Awaitable[web.StreamResponse]]:
        async def handle(call: Call) -> web.StreamResponse:
            if one_at_a_time.locked():
                raise _later("busy", "another person's data is being read; try again")
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
            # What the tables tell of their ids must be asked before it is gone.
            planned = msgspec.json.decode(await _run(call, _QUERIES["erase"], dry_run=True))
        files = await _search_files(data_dir, planned, erase=not query.dry_run) if planned else []
        told = (
            planned if planned and query.dry_run else msgspec.json.decode(await _run(call, _QUERIES["erase"], False))
        )
        if files:
            told["journal_files"] = files
        if elsewhere := await _journals_elsewhere(call, data_dir):
            told["journals_elsewhere"] = elsewhere
        return msgspec.json.encode(told).decode()

    return [
        Operation(
            "GET",
            "/v1/people/export",
            alone(export),
            "Tell all that is held on a person",
            "people",
            description=(
                "By table; what still waited in a journal of this data folder is stored before. Ids that only"
                " requests without a key claim are listed apart, as `unverified`, unless include_unverified is true."
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
                "In every table, the audit log included, and in the files of the journals in this data folder: what"
                " waited is stored and its files are deleted, files that were set aside are rewritten without the"
                " person's lines. `journal_files` names these, and those with damaged bytes that nobody can read"
                " (`unclear`), which are yours to delete; `journals_elsewhere` are the numbers of journals in other"
                " data folders, whose collectors have to be asked, too. Twice is the same as once. Ids are joined by"
                " what the service made and what authenticated callers said; ask with dry_run first to see what rests"
                " on anybody's word."
            ),
            scope=Scope.ADMIN,
            query=ErasureQuery,
            answers={200: Documented("Rows of each table; with dry_run, what would go and why", dict[str, Any])},
        ),
    ]


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


async def _clear(clear_journals: ClearJournals, data_dir: Path) -> None:
    """Return when nothing that was in a journal is in its files any more."""
    if left := await clear_journals(JOURNAL_SECONDS):
        names = ", ".join(str(path.relative_to(data_dir)) for path in left[:_FILES_TOLD])
        more = f" and {len(left) - _FILES_TOLD} more" if len(left) > _FILES_TOLD else ""
        raise _later(
            "journal_pending", f"events still wait to be stored in {names}{more}; nothing is erased, try again"
        )


async def _search_files(data_dir: Path, planned: dict[str, Any], *, erase: bool) -> list[set_aside.Found]:
    try:
        return await asyncio.to_thread(set_aside.search, data_dir, Traces(planned["because_of"]), erase=erase)
    except IngestError as error:
        raise _later("busy", str(error)) from None


async def _journals_elsewhere(call: Call, data_dir: Path) -> list[int]:
    """Numbers of journals that collectors with other data folders store from."""
    numbers = [int(folder.name) for folder in journals.folders(data_dir) if folder.name.isdigit()]
    async with call.transaction() as connection:
        found: list[int] = await connection.fetchval(_QUERIES["elsewhere"], numbers)
    return found


async def _run(call: Call, query: str, dry_run: bool | None = None) -> str:
    """What the function tells, as JSON. Its own check of who asks is the one that counts."""
    try:
        async with call.transaction() as connection:
            await connection.execute(_QUERIES["allow"], str(round(LONGEST_SECONDS * 1000)))
            wanted = call.query
            spellings = _spellings(wanted.email)
            arguments: list[object] = [spellings[0], wanted.include_unverified, spellings]
            if dry_run is not None:
                arguments.append(dry_run)
            told: str = await connection.fetchval(query, *arguments, timeout=LONGEST_SECONDS + _GRACE_SECONDS)
    except asyncpg.InvalidParameterValueError:
        # White space to the database's locale that is none to us.
        raise Invalid([FieldError("email", "must be an email address")]) from None
    return told


def _spellings(email: str) -> list[str]:
    spellings = mailbox.spellings(email)
    if spellings[0].endswith("@"):
        raise Invalid([FieldError("email", "must be an email address")])
    return spellings
