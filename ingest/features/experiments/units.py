"""POST /v1/experiments/assignments and …/exposures: the variants of a unit, and that it was shown one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
import orjson
from aiohttp import web

from ingest.api import fields
from ingest.api.access import Caller, Scope
from ingest.api.calls import Call
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import JSON
from ingest.api.problems import Problem
from ingest.events.limits import MAX_ID_CHARACTERS, MAX_URL_CHARACTERS
from ingest.events.placeholders import Placeholders
from ingest.events.values.user_agents import describe_user_agent
from ingest.features.experiments.assignment import Context, canonical_id, country_code
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.flags import Reason
from ingest.http.prefetch import is_made_ahead
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("experiments")
_OVER_LIMIT: Final = "PT429"
"""The SQLSTATE of what exceeds a limit per address."""

SessionId = Annotated[str, fields.text("As in events", low=1, high=MAX_ID_CHARACTERS)]
UserId = Annotated[UUID, fields.about("Needs scope write, or the user's own token (its sub is this id)")]
Country = Annotated[
    str, fields.text("ISO 3166-1 alpha-2", low=2, high=2, pattern="^[A-Za-z]{2}$", what="two letters such as DE")
]
Attributes = Annotated[dict[str, Any], fields.about("For targeting rules about attributes")]


class Unit(msgspec.Struct, forbid_unknown_fields=True):
    """The unit, by session_id, user_id or both, and its context for targeting rules."""

    session_id: SessionId | None = None
    user_id: UserId | None = None
    country: Country | None = None
    device: Literal["desktop", "mobile", "tablet", "bot", "other"] | None = None
    url: Annotated[str, fields.text("URL of the page", high=MAX_URL_CHARACTERS)] | None = None
    attributes: Attributes | None = None


class Exposure(Unit, forbid_unknown_fields=True, kw_only=True):
    """A unit was shown its variant. If a flag assigned it, send the same context as to the flag."""

    experiment: Annotated[str, fields.text("The experiment's name", low=1, high=100)]
    variant: Annotated[str, fields.text("The variant shown; checked if given", low=1, high=100)] | None = None
    anonymous_id: (
        Annotated[str, fields.text("As in events; copied to the exposure's event", low=1, high=MAX_ID_CHARACTERS)]
        | None
    ) = None


class Given(msgspec.Struct):
    """The unit's variant in one experiment."""

    experiment_id: str
    variant_id: str
    payload: Any


class Assignments(msgspec.Struct):
    """By experiment name; experiments that the unit does not take part in are absent."""

    assignments: dict[str, Given]


class Exposed(msgspec.Struct, omit_defaults=True):
    """The variant that was shown."""

    experiment: str
    variant_id: str
    recorded: Annotated[
        bool,
        fields.about(
            "false: kept as an event, but not counted: the visitor is a bot or a prefetch, or the address has brought"
            " more new units than assignments_per_hour allows (results report how many exposures these are)"
        ),
    ] = True


class Units:
    """Assigns variants to units, and records exposures."""

    def __init__(self, definitions: Definitions, placeholders: Placeholders) -> None:
        self._definitions = definitions
        self._placeholders = placeholders

    async def assign(self, call: Call) -> web.StreamResponse:
        unit: Unit = call.body
        self._drop_placeholders(unit)
        caller = _authorized(call.caller, unit)
        async with call.transaction(caller=caller) as connection:
            found = await connection.fetchval(
                _QUERIES["assign"], unit.user_id, unit.session_id, unit.country, unit.device, unit.url, _json(unit)
            )
        assignments = orjson.loads(found)
        if not all(self._definitions.knows(each["experiment_id"]) for each in assignments.values()):
            await self._definitions.refresh()
        for each in assignments.values():
            payload = self._definitions.payload(each["experiment_id"], each["variant_id"])
            each["payload"] = msgspec.Raw((payload or "null").encode())
        return web.Response(body=msgspec.json.encode({"assignments": assignments}), content_type=JSON)

    async def expose(self, call: Call) -> web.StreamResponse:
        exposure: Exposure = call.body
        self._drop_placeholders(exposure)
        caller = _authorized(call.caller, exposure)
        call.require_room()
        if _is_unseen(call, exposure):
            # Bots are counted nowhere, and the event is marked as a bot's.
            return await self._leave_unrecorded(call, exposure, unseen=True)
        try:
            async with call.transaction(caller=caller) as connection:
                found = await connection.fetchrow(
                    _QUERIES["expose"],
                    exposure.experiment,
                    exposure.user_id,
                    exposure.session_id,
                    exposure.variant,
                    exposure.country,
                    exposure.device,
                    exposure.url,
                    _json(exposure),
                )
                # Raised inside the transaction, so that it is rolled back.
                _check_exposed(found["is_running"], found["variant_id"], exposure.variant)
        except asyncpg.PostgresError as error:
            if error.sqlstate != _OVER_LIMIT:
                raise
            # The variant was shown all the same: the event keeps it, and results report how many such there are.
            return await self._leave_unrecorded(call, exposure)
        await call.emit(_event(exposure, found["variant_id"]), of_client=not _is_server(call))
        return _exposed(Exposed(exposure.experiment, found["variant_id"]))

    async def _leave_unrecorded(self, call: Call, exposure: Exposure, unseen: bool = False) -> web.StreamResponse:
        variant = await self._computed(exposure)
        event = _event(exposure, variant) | {"properties": _properties(exposure, variant) | {"recorded": False}}
        await call.emit(event, of_client=not _is_server(call), unseen=unseen)
        return _exposed(Exposed(exposure.experiment, variant, False))

    def _drop_placeholders(self, unit: Unit) -> None:
        """Remove ids such as `null` or 0: everybody who sends one would be the same unit."""
        unit.session_id = self._placeholders.known(unit.session_id)
        if unit.user_id is not None and self._placeholders.has(str(unit.user_id)):
            unit.user_id = None

    async def _computed(self, exposure: Exposure) -> str:
        """The variant of a unit that is not stored. Raises Problem."""
        flag = (await self._definitions.loaded()).get(exposure.experiment)
        unit = str(exposure.user_id) if exposure.user_id is not None else exposure.session_id
        assert unit is not None
        context = Context(country_code(exposure.country), exposure.device, exposure.url, exposure.attributes)
        evaluation = flag.evaluate(canonical_id(unit).encode(), context, _now) if flag is not None else None
        if evaluation is None or evaluation.reason in (Reason.DISABLED, Reason.STATIC):
            _check_exposed(False, None, exposure.variant)
        takes_part = evaluation is not None and evaluation.reason is not Reason.DEFAULT
        variant = evaluation.variant if evaluation is not None and takes_part else None
        _check_exposed(True, variant, exposure.variant)
        assert variant is not None
        return variant


def _exposed(exposed: Exposed) -> web.Response:
    return web.Response(body=msgspec.json.encode(exposed), content_type=JSON)


def _is_server(call: Call) -> bool:
    """Whether a server sends this for its visitors: its address and user agent are not theirs."""
    return Scope.WRITE in call.caller.scopes


def _is_unseen(call: Call, exposure: Exposure) -> bool:
    """Whether nobody saw the variant: it went to a bot, or to a browser that loads pages ahead of time. A server has
    no reason to send such a prefetch header for itself: one that does passes on its visitor's."""
    if exposure.device == "bot" or is_made_ahead(call.request.headers):
        return True
    return not _is_server(call) and describe_user_agent(call.user_agent).device_type == "bot"


def _json(unit: Unit) -> str | None:
    return orjson.dumps(unit.attributes).decode() if unit.attributes is not None else None


def _authorized(caller: Caller, unit: Unit) -> Caller:
    """The caller to use for this unit. Raises Invalid and Problem. A session's id is its own credential, as nobody
    else knows it; a user's id is not."""
    if unit.session_id is None and unit.user_id is None:
        raise Invalid(
            [FieldError("session_id", "is required without a user_id; placeholders such as null and 0 do not count")]
        )
    may_write = Scope.WRITE in caller.scopes
    is_own = caller.role == "authenticated" and caller.person_id == unit.user_id
    if unit.user_id is not None and not may_write and not is_own:
        if caller.role == "anon":
            detail = "a user_id needs Authorization: Bearer, with scope write or the user's own token"
            raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="ingest"'})
        raise Problem(403, "forbidden", "these credentials are for another user_id, or may not write")
    if may_write and Scope.ADMIN not in caller.scopes:
        # Also for a key with scopes write and read: the role for reading may not write.
        return caller.for_visitors
    return caller


def _check_exposed(is_running: bool, variant: str | None, shown: str | None) -> None:
    """Raises Problem if there is no exposure to record."""
    if not is_running:
        raise Problem(404, "no_such_experiment", "no experiment of that name is running")
    if variant is None:
        raise Problem(
            409, "takes_no_part", "the unit takes no part: it is outside the experiment's traffic or targeting"
        )
    if shown is not None and shown != variant:
        raise Problem(409, "another_variant", f"the unit is assigned another variant: {variant}")


def _properties(exposure: Exposure, variant: str) -> dict[str, Any]:
    return {"experiment": exposure.experiment, "variant": variant}


def _event(exposure: Exposure, variant: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "name": "experiment_exposure",
        "type": "system",
        "properties": _properties(exposure, variant),
    }
    if exposure.user_id is not None:
        event["user_id"] = str(exposure.user_id)
    if exposure.session_id is not None:
        event["session_id"] = exposure.session_id
    if exposure.anonymous_id is not None:
        event["anonymous_id"] = exposure.anonymous_id
    return event


def _now() -> datetime:
    return datetime.now(UTC)
