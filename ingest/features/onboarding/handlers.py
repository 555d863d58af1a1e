"""Onboarding: a session, its steps one after the other, what is done within them.

A session's token is all the credential there is: whatever others come along, its routes work as anon.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import asyncpg
import msgspec
import orjson
from aiohttp import web

from ingest.api import fields
from ingest.api.access import ANYBODY
from ingest.api.calls import Call
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import Documented, Operation
from ingest.api.problems import CONTENTION, Problem
from ingest.events.limits import MAX_ID_CHARACTERS
from ingest.events.placeholders import Placeholders
from ingest.features.onboarding.activities import conceal, told_errors, told_value
from ingest.features.onboarding.journey import NamedSession, Session, event, events_of, kept, session
from ingest.features.onboarding.steps import OF_NAME, STEPS, Seconds, Step, StepName, check, cleaned, lead_of
from ingest.http.answers import answer, problem
from ingest.postgres.pool import TooSlow, Unavailable
from ingest.postgres.queries import load_queries

if TYPE_CHECKING:
    from ingest.features.onboarding.credentials import Cipher

logger = logging.getLogger(__name__)

SESSIONS: Final = "/v1/onboarding/sessions"
SESSION: Final = "/v1/onboarding/session"
MAX_NOTED: Final = 20
"""Errors of one request that are recorded."""
_TAG: Final = "onboarding"
_FIELD_NAME: Final = r"^[A-Za-z][A-Za-z0-9_.\[\]-]*$"
_PRIVATE: Final = {"Cache-Control": "no-store"}
_QUERIES: Final = load_queries("onboarding")


# What is asked.


def _visitor_id(description: str) -> msgspec.Meta:
    what = f"1 to {MAX_ID_CHARACTERS} characters without white space and @"
    return fields.text(description, what=what, low=1, high=MAX_ID_CHARACTERS, pattern="^[!-?A-~]+$")


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """Who begins: as the site's events call them, so that theirs and the session's are one journey."""

    anonymous_id: Annotated[str, _visitor_id("The visitor's anonymous_id")] | None = None
    session_id: Annotated[str, _visitor_id("The session_id of this visit")] | None = None


class Activity(msgspec.Struct, forbid_unknown_fields=True):
    """Something that was done within a step. A value is kept only if it is nobody's address, number or secret."""

    activity_type: Annotated[
        Literal["form_started", "field_filled", "validation_error"],
        fields.about("What", what="form_started, field_filled or validation_error"),
    ]
    step: Annotated[StepName, fields.about("Where", what=f"one of {', '.join(OF_NAME)}")]
    field_name: (
        Annotated[
            str,
            fields.text("Which field", what="a field's name", low=1, high=100, pattern=_FIELD_NAME),
        ]
        | None
    ) = None
    field_value: Annotated[str, fields.text("What was entered", high=2000)] | None = None
    error_message: Annotated[str, fields.text("What was wrong with it", high=500)] | None = None
    time_spent_seconds: Seconds | None = None


# What is answered.


class Noted(msgspec.Struct):
    """An activity that was recorded; `concealed`: without the value, or parts of the texts."""

    id: str
    concealed: bool


def operations(cipher: Cipher | None, placeholders: Placeholders) -> list[Operation]:
    """`cipher` is None where no key is configured; `placeholders`: the visitors' ids that are nobody's."""
    gone = Documented("No session has this token, or it was left for over 24 hours")
    return [
        Operation(
            "POST",
            SESSIONS,
            partial(begin, placeholders),
            "Begin onboarding",
            _TAG,
            body=NewSession,
            body_optional=True,
            answers={201: Documented("A new session", NamedSession)},
            description="At most 5 an hour from one address; with a key that may write there is no such limit.",
        ),
        Operation(
            "GET",
            SESSION,
            read,
            "Where a session stands, to go on with it",
            _TAG,
            session=True,
            answers={200: Documented("The session", Session), 404: gone},
        ),
        *[_operation(step, cipher, gone) for step in STEPS],
        Operation(
            "POST",
            f"{SESSION}/activities",
            note,
            "Record what is done within a step",
            _TAG,
            body=Activity,
            session=True,
            description="At most 100 an hour in one session.",
            answers={201: Documented("Recorded", Noted), 404: gone, 409: Documented("session_completed: it is over")},
        ),
    ]


def _operation(step: Step, cipher: Cipher | None, gone: Documented) -> Operation:
    conflict = "step_not_reached: one before is to be done first; session_completed: nothing of it changes any more"
    if step.secrets:
        conflict += "; account_taken: the number cannot be connected to this session"
    return Operation(
        "PUT",
        f"{SESSION}/steps/{step.name}",
        partial(complete, step, cipher),
        step.summary,
        _TAG,
        body=step.fields,
        session=True,
        on_invalid=partial(note_errors, step),
        answers={200: Documented("Done; the session as it is now", Session), 404: gone, 409: Documented(conflict)},
        description="Done again before the session is completed, it corrects what was entered.",
    )


async def unknown_step(request: web.Request) -> web.Response:
    """An unknown step."""
    return problem(404, "unknown_step", f"there is no such step; the steps are {', '.join(OF_NAME)}")


# Sessions.


async def begin(placeholders: Placeholders, call: Call) -> web.StreamResponse:
    wanted: NewSession = call.body
    call.require_room()
    token = "sess_" + secrets.token_urlsafe(32)
    visitor = [placeholders.known(each and each.strip()) for each in (wanted.anonymous_id, wanted.session_id)]
    caller = call.caller.for_visitors
    async with call.transaction(caller=caller, session_token=token) as connection:
        row = await connection.fetchrow(_QUERIES["create"], token, call.user_agent, *visitor)
    # A server begins them for its own visitors: its address is not theirs.
    await call.emit(event(row, "onboarding_started"), of_client=caller is ANYBODY)
    named = NamedSession(session_token=token, **msgspec.structs.asdict(session(row)))
    return answer(201, msgspec.to_builtins(named), _PRIVATE)


async def read(call: Call) -> web.StreamResponse:
    async with call.transaction(caller=ANYBODY) as connection:
        row = _found(await connection.fetchrow(_QUERIES["read"], call.session_token))
    return _told(row)


def _found(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        # Row security shows neither that of another token nor one that was left too long ago.
        raise Problem(
            404, "session_not_found", "no session has this token, or it was left for over 24 hours: begin another"
        )
    return row


def _told(row: asyncpg.Record) -> web.Response:
    return answer(200, msgspec.to_builtins(session(row)), _PRIVATE)


# Steps.


async def complete(step: Step, cipher: Cipher | None, call: Call) -> web.StreamResponse:
    if errors := check(call.body):
        raise Invalid(errors)
    if step.secrets and cipher is None:
        raise Problem(
            503,
            "encryption_not_configured",
            "credentials cannot be kept: make a key with `ingest encryption key`, and set encryption_keys to it",
        )
    call.require_room()
    entered = cleaned(call.body)
    seconds = entered.pop("time_spent_seconds", None)
    try:
        before, row = await _done(step, cipher, call, entered, seconds)
    except asyncpg.UniqueViolationError:
        raise _taken() from None
    except asyncpg.PostgresError as error:
        if error.sqlstate != "PT429":
            raise
        # So many activities that no more are recorded. Nobody is kept from going on because they are counted.
        before, row = await _done(step, cipher, call, entered, seconds, noted=False)
    await call.emit(*events_of(step, before, row))
    return _told(row)


async def _done(
    step: Step,
    cipher: Cipher | None,
    call: Call,
    entered: dict[str, Any],
    seconds: int | None,
    *,
    noted: bool = True,
) -> tuple[asyncpg.Record, asyncpg.Record]:
    """The session before the step was done, and after."""
    async with call.transaction(caller=ANYBODY) as connection:
        if step.secrets:
            await _link_lead(connection, call)
        before = _found(await connection.fetchrow(_QUERIES["lock"], call.session_token))
        _require_reached(step, before)
        if step.secrets:
            assert cipher is not None
            entered = await _keep_account(connection, step, cipher, before, entered)
        kind = "step_completed" if before[step.done_at] is None else "step_corrected"
        row = await connection.fetchrow(
            _QUERIES[step.name],
            before["id"],
            orjson.dumps(entered).decode(),
            step.name,
            kind if noted else None,
            seconds,
        )
        if step is STEPS[0]:
            await _relink(connection, call, before, entered)
    return before, row


def _require_reached(step: Step, row: asyncpg.Record) -> None:
    if row["status"] == "completed":
        raise Problem(409, "session_completed", "onboarding is completed: nothing of it changes any more")
    missing = [each.name for each in STEPS[: STEPS.index(step)] if row[each.done_at] is None]
    if missing:
        raise Problem(
            409,
            "step_not_reached",
            f"to be done first: {', '.join(missing)}",
            errors=[FieldError(name, "is to be done first") for name in missing],
        )


def _taken() -> Problem:
    return Problem(409, "account_taken", "this number cannot be connected here; if it is yours, ask us")


@asynccontextmanager
async def _as_service(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """What a visitor's session may cause and anon may not do: that leads and accounts are read and written. As narrow
    as can be: a few statements, whose arguments are this session's own."""
    await connection.execute("SET LOCAL ROLE service_role")
    yield
    # An error ends the transaction, and the role with it.
    await connection.execute("SET LOCAL ROLE anon")


async def _link_lead(connection: asyncpg.Connection, call: Call) -> None:
    """See to it that a session which gives its address has a lead. Before the session is locked: who adds a lead
    locks its address first and its sessions then."""
    row = await connection.fetchrow(_QUERIES["unlinked"], call.session_token)
    lead = lead_of(orjson.loads(row["business_data"])) if row is not None else None
    if row is None or lead is None:
        return
    async with _as_service(connection):
        await connection.execute(_QUERIES["make_lead"], *lead, call.user_agent)
        await connection.execute(_QUERIES["link"], row["id"])


async def _relink(
    connection: asyncpg.Connection, call: Call, before: asyncpg.Record, entered: dict[str, Any]
) -> None:
    """When an address is corrected, the session and the account that it has made go to that address's lead."""
    lead = lead_of(entered)
    if lead is None or before["lead_id"] is None or kept(STEPS[0], before).get("email") == lead.email:
        return
    async with _as_service(connection):
        await connection.execute(_QUERIES["make_lead"], *lead, call.user_agent)
        await connection.execute(_QUERIES["relink"], before["id"], lead.email)


async def _keep_account(
    connection: asyncpg.Connection, step: Step, cipher: Cipher, row: asyncpg.Record, entered: dict[str, Any]
) -> dict[str, Any]:
    """Put the credentials into the session's account; returns the part of the step that the session keeps."""
    if row["lead_id"] is None:
        # Erased since, or the address was entered this moment by another request.
        raise Problem(
            409,
            "step_not_reached",
            "business_info is to be done again",
            errors=[FieldError("business_info", "is to be done again")],
        )
    given = [name for name in step.secrets if name in entered]
    encrypted = [cipher.encrypt(entered[name]) if name in entered else None for name in step.secrets]
    shown = {name: value for name, value in entered.items() if name not in step.secrets}
    ids = ("business_account_id", "phone_number_id", "phone_number", "display_name")
    values = [row["lead_id"], *[shown.get(name) for name in ids], *encrypted]
    async with _as_service(connection):
        if await connection.fetchval(_QUERIES["is_taken"], row["id"], *values[1:3]):
            raise _taken()
        account = await connection.fetchval(_QUERIES["keep_account"], row["id"], *values)
    return {**shown, "account_id": str(account), "kept_secret": given}


# Activities.


async def note(call: Call) -> web.StreamResponse:
    activity: Activity = call.body
    step = OF_NAME[activity.step]
    name = activity.field_name.strip() if activity.field_name else None
    value = told_value(step, name, activity.field_value)
    texts = [each if each is None else conceal(each) for each in (name, activity.error_message)]
    concealed = [value, *texts] != [activity.field_value, name, activity.error_message]
    async with call.transaction(caller=ANYBODY) as connection:
        row = _found(await connection.fetchrow(_QUERIES["read"], call.session_token))
        if row["status"] == "completed":
            raise Problem(409, "session_completed", "onboarding is completed: nothing is done in it any more")
        if row["status"] == "abandoned":
            await connection.execute(_QUERIES["resume"], call.session_token)
        noted = await connection.fetchval(
            _QUERIES["note"],
            row["id"],
            activity.step,
            activity.activity_type,
            texts[0],
            value,
            texts[1],
            activity.time_spent_seconds,
        )
    return answer(201, {"id": str(noted), "concealed": concealed}, _PRIVATE)


async def note_errors(step: Step, call: Call, errors: Sequence[FieldError]) -> None:
    """Record what was wrong with a step's fields, if it can be: the client is told in any case."""
    names, messages = zip(*told_errors(step, errors)[:MAX_NOTED], strict=True)
    try:
        async with call.transaction(caller=ANYBODY) as connection:
            await connection.execute(_QUERIES["note_errors"], call.session_token, step.name, names, messages)
    except (Unavailable, TooSlow) as error:
        logger.debug("errors of a step were not recorded: %s", error)
    except asyncpg.PostgresError as error:
        # So many activities that no more are recorded, or others write the same; anything else is a bug of ours.
        if error.sqlstate != "PT429" and not isinstance(error, CONTENTION):
            logger.exception("errors of a step were not recorded")
