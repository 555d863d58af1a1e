"""Onboarding: sessions, their steps in order, and the activities within steps.

A session's token is its only credential: whatever others the request has, its routes run as anon.
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
from ingest.features.onboarding.activities import conceal, recordable_errors, recordable_value
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
"""How many errors of one request are recorded."""
_TAG: Final = "onboarding"
_FIELD_NAME: Final = r"^[A-Za-z][A-Za-z0-9_.\[\]-]*$"
_PRIVATE: Final = {"Cache-Control": "no-store"}
_QUERIES: Final = load_queries("onboarding")


# Requests.


def _visitor_id(description: str) -> msgspec.Meta:
    what = f"1 to {MAX_ID_CHARACTERS} characters without white space and @"
    return fields.text(description, what=what, low=1, high=MAX_ID_CHARACTERS, pattern="^[!-?A-~]+$")


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """The visitor's ids in the site's events, so that these and the session's events form one journey."""

    anonymous_id: Annotated[str, _visitor_id("The visitor's anonymous_id")] | None = None
    session_id: Annotated[str, _visitor_id("The session_id of this visit")] | None = None


class Activity(msgspec.Struct, forbid_unknown_fields=True):
    """Something done within a step. A value is kept only if it is no address, phone number or secret."""

    activity_type: Annotated[
        Literal["form_started", "field_filled", "validation_error"],
        fields.about("Type of activity", what="form_started, field_filled or validation_error"),
    ]
    step: Annotated[StepName, fields.about("The step it was done in", what=f"one of {', '.join(OF_NAME)}")]
    field_name: (
        Annotated[
            str,
            fields.text("Name of the field", what="a field's name", low=1, high=100, pattern=_FIELD_NAME),
        ]
        | None
    ) = None
    field_value: Annotated[str, fields.text("The value entered", high=2000)] | None = None
    error_message: Annotated[str, fields.text("The error shown", high=500)] | None = None
    time_spent_seconds: Seconds | None = None


# Responses.


class Noted(msgspec.Struct):
    """The recorded activity; `concealed`: the value, or parts of the texts, were left out."""

    id: str
    concealed: bool


def operations(cipher: Cipher | None, placeholders: Placeholders) -> list[Operation]:
    """`cipher`: None where no key is configured.  `placeholders`: ids that identify no visitor."""
    gone = Documented("No session has this token, or it has been idle for over 24 hours")
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
            description="At most 5 an hour from one IP address; no limit with a key that may write.",
        ),
        Operation(
            "GET",
            SESSION,
            read,
            "Read a session, to continue it",
            _TAG,
            session=True,
            answers={200: Documented("The session", Session), 404: gone},
        ),
        *[_operation(step, cipher, gone) for step in STEPS],
        Operation(
            "POST",
            f"{SESSION}/activities",
            note,
            "Record an activity within a step",
            _TAG,
            body=Activity,
            session=True,
            description="At most 100 an hour in one session.",
            answers={
                201: Documented("Recorded", Noted),
                404: gone,
                409: Documented("session_completed: onboarding is over"),
            },
        ),
    ]


def _operation(step: Step, cipher: Cipher | None, gone: Documented) -> Operation:
    conflict = (
        "step_not_reached: an earlier step must be done first; session_completed: the session can no longer change"
    )
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
        answers={200: Documented("The session after the step", Session), 404: gone, 409: Documented(conflict)},
        description="Sending it again before the session is completed corrects what was entered.",
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
    # A server begins sessions for its visitors: its address is not theirs.
    await call.emit(event(row, "onboarding_started"), of_client=caller is ANYBODY)
    named = NamedSession(session_token=token, **msgspec.structs.asdict(session(row)))
    return answer(201, msgspec.to_builtins(named), _PRIVATE)


async def read(call: Call) -> web.StreamResponse:
    async with call.transaction(caller=ANYBODY) as connection:
        row = _found(await connection.fetchrow(_QUERIES["read"], call.session_token))
    return _session_answer(row)


def _found(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        # Row security shows neither sessions of other tokens nor ones idle for too long.
        raise Problem(
            404,
            "session_not_found",
            "no session has this token, or it has been idle for over 24 hours: begin another",
        )
    return row


def _session_answer(row: asyncpg.Record) -> web.Response:
    return answer(200, msgspec.to_builtins(session(row)), _PRIVATE)


# Steps.


async def complete(step: Step, cipher: Cipher | None, call: Call) -> web.StreamResponse:
    if errors := check(call.body):
        raise Invalid(errors)
    if step.secrets and cipher is None:
        raise Problem(
            503,
            "encryption_not_configured",
            "credentials cannot be stored: create a key with `ingest encryption key`, and set encryption_keys to it",
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
        # Too many activities to record another. That must not keep anybody from completing the step.
        before, row = await _done(step, cipher, call, entered, seconds, noted=False)
    await call.emit(*events_of(step, before, row))
    return _session_answer(row)


async def _done(
    step: Step,
    cipher: Cipher | None,
    call: Call,
    entered: dict[str, Any],
    seconds: int | None,
    *,
    noted: bool = True,
) -> tuple[asyncpg.Record, asyncpg.Record]:
    """Do the step; returns the session before and after it."""
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
        raise Problem(409, "session_completed", "onboarding is completed: the session can no longer change")
    missing = [each.name for each in STEPS[: STEPS.index(step)] if row[each.done_at] is None]
    if missing:
        raise Problem(
            409,
            "step_not_reached",
            f"must be done first: {', '.join(missing)}",
            errors=[FieldError(name, "must be done first") for name in missing],
        )


def _taken() -> Problem:
    return Problem(409, "account_taken", "this number cannot be connected here; if it is yours, contact us")


@asynccontextmanager
async def _as_service(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """For what a visitor's session may cause but anon may not do: reading and writing leads and accounts. As narrow
    as possible: a few statements, whose arguments belong to this session."""
    await connection.execute("SET LOCAL ROLE service_role")
    yield
    # An error ends the transaction, and the role with it.
    await connection.execute("SET LOCAL ROLE anon")


async def _link_lead(connection: asyncpg.Connection, call: Call) -> None:
    """Make sure that a session with an email address has a lead. To be called before the session is locked: adding a
    lead locks its address first and then its sessions."""
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
    """If the email address was corrected, move the session and its account to the lead with that address."""
    lead = lead_of(entered)
    if lead is None or before["lead_id"] is None or kept(STEPS[0], before).get("email") == lead.email:
        return
    async with _as_service(connection):
        await connection.execute(_QUERIES["make_lead"], *lead, call.user_agent)
        await connection.execute(_QUERIES["relink"], before["id"], lead.email)


async def _keep_account(
    connection: asyncpg.Connection, step: Step, cipher: Cipher, row: asyncpg.Record, entered: dict[str, Any]
) -> dict[str, Any]:
    """Store the credentials in the session's account; returns the part of the step that the session keeps."""
    if row["lead_id"] is None:
        # The lead was erased, or another request entered the address a moment ago.
        raise Problem(
            409,
            "step_not_reached",
            "business_info must be done again",
            errors=[FieldError("business_info", "must be done again")],
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
    value = recordable_value(step, name, activity.field_value)
    texts = [each if each is None else conceal(each) for each in (name, activity.error_message)]
    concealed = [value, *texts] != [activity.field_value, name, activity.error_message]
    async with call.transaction(caller=ANYBODY) as connection:
        row = _found(await connection.fetchrow(_QUERIES["read"], call.session_token))
        if row["status"] == "completed":
            raise Problem(409, "session_completed", "onboarding is completed: no more activities are recorded")
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
    """Record what was wrong with a step's fields, if possible. The client gets the errors in any case."""
    names, messages = zip(*recordable_errors(step, errors)[:MAX_NOTED], strict=True)
    try:
        async with call.transaction(caller=ANYBODY) as connection:
            await connection.execute(_QUERIES["note_errors"], call.session_token, step.name, names, messages)
    except (Unavailable, TooSlow) as error:
        logger.debug("errors of a step were not recorded: %s", error)
    except asyncpg.PostgresError as error:
        # Too many activities to record more, or a concurrent write; anything else is a bug.
        if error.sqlstate != "PT429" and not isinstance(error, CONTENTION):
            logger.exception("errors of a step were not recorded")
