"""OpenFeature's remote evaluation protocol (OFREP): experiments as flags, evaluated without asking the database.

Nothing is stored: an SDK evaluates flags that nobody is shown. Who was shown one tells the exposure that follows.
The hash is the same as that of an assignment, and what it depends on does not change while an experiment runs.

These requests are many and small. So they are found in front of the application, like those that take events; the
operations are declared for the docs, and for what other methods are told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from ingest.api.calls import Call
from ingest.api.dispatch import MAX_BODY_BYTES, Api
from ingest.api.fields import about, text
from ingest.api.operations import JSON, Documented, Operation
from ingest.api.problems import Problem
from ingest.base.refusals import STATUS_OF_REASON, PayloadRefused
from ingest.events.limits import MAX_ID_CHARACTERS
from ingest.events.placeholders import Placeholders
from ingest.events.values.locations import rate_limit_key
from ingest.features.experiments.assignment import NOTHING_KNOWN, Context, canonical_id, country_code
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.flags import Flag
from ingest.http.answers import OVERLOADED_RETRY_SECONDS, answer
from ingest.http.bodies import read_body
from ingest.postgres.pool import TooSlow, Unavailable

BULK_PATH: Final = "/ofrep/v1/evaluate/flags"
FLAG_PATH: Final = "/ofrep/v1/evaluate/flags/{key}"
PREFIX: Final = "/ofrep/v1/evaluate/flags/"
_KEY_AT: Final = len(PREFIX)
_RETRY: Final = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
_NO_ATTRIBUTES: Final = frozenset({"targetingKey", "country", "device", "url"})

ErrorCode = Literal["FLAG_NOT_FOUND", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "PARSE_ERROR", "GENERAL"]
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


# What is asked and answered.


class EvaluationContext(msgspec.Struct):
    """Who asks. `country` (ISO 3166-1), `device` (desktop, mobile, tablet, bot, other) and `url` are for targeting
    rules of these names, any other members for rules about attributes."""

    targeting_key: Annotated[
        str, text("The unit: the id of a user or a session, always the same", low=1, high=MAX_ID_CHARACTERS)
    ] = msgspec.field(name="targetingKey")


class EvaluationRequest(msgspec.Struct):
    """As OpenFeature's SDKs send it."""

    context: EvaluationContext


class Metadata(msgspec.Struct):
    """What is told beside the value."""

    experiment: Annotated[str, about("The experiment's id")]
    takes_part: Annotated[bool, about("Whether the unit was assigned: only then is there an exposure to record")]


class Evaluated(msgspec.Struct):
    """A flag's value for the unit."""

    key: str
    value: Annotated[Any, about("The variant's payload, or its id if it has none")]
    variant: str
    reason: Literal["SPLIT", "TARGETING_MATCH", "DEFAULT", "DISABLED", "STATIC"]
    metadata: Metadata


class EvaluatedAll(msgspec.Struct):
    """All flags for the unit."""

    flags: list[Evaluated]


class EvaluationError(msgspec.Struct):
    """Why there is no value."""

    errorCode: ErrorCode
    errorDetails: str
    key: str | None = None


class FlagParameters(msgspec.Struct, forbid_unknown_fields=True):
    """Which flag."""

    key: Annotated[str, text("The experiment's name", low=1, high=100)]


# How it is read.


class _Unit(msgspec.Struct):
    targeting_key: str | None = msgspec.field(name="targetingKey", default=None)


class _OfUnit(msgspec.Struct):
    context: _Unit | None = None


class _OfContext(msgspec.Struct):
    context: dict[str, Any] | None = None


_UNIT: Final = msgspec.json.Decoder(_OfUnit)
# A copy of these is quicker than having them made.
_HEADERS: Final = CIMultiDict({"Content-Type": JSON})
# With all digits of a number, as the database compares them.
_CONTEXT: Final = msgspec.json.Decoder(_OfContext, float_hook=Decimal)
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError)
"""What a decoder raises on some body or other: also what it skips may be no UTF-8, or nested without end."""


class _Refused(Exception):
    """An answer in the protocol's own form."""

    def __init__(self, status: int, code: ErrorCode, details: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(details)
        self.status = status
        self.code = code
        self.headers = headers


class Ofrep:
    """Evaluates flags over HTTP."""

    def __init__(self, api: Api, definitions: Definitions, placeholders: Placeholders) -> None:
        self._api = api
        self._placeholders = placeholders
        self._definitions = definitions

    def routes(self) -> dict[str, Handler]:
        """Path -> handler of its POST requests."""
        return {BULK_PATH: self.evaluate_all}

    def below(self) -> tuple[str, str, Handler]:
        """The beginning of the paths of single flags, their name, the handler. A flag may have any name: what its
        path has behind the beginning is all of it."""
        return PREFIX, FLAG_PATH, self.evaluate

    async def evaluate(self, request: web.BaseRequest) -> web.Response:
        """One flag."""
        key = _key(request)
        try:
            body = await self._body(request)
            definitions = self._definitions
            flag = (definitions.flags if definitions.version is not None else await self._flags()).get(key)
            if flag is None:
                raise _Refused(404, "FLAG_NOT_FOUND", "no experiment of that name was started")
            if flag.needs_context:
                unit, context = _read_context(body, flag.needs_attributes)
            else:
                unit, context = _read_unit(body), NOTHING_KNOWN
            self._require_somebody(unit)
        except _Refused as refused:
            return _refusal(refused, key)
        return web.Response(body=flag.evaluate(unit, context, _now).body, headers=_HEADERS.copy())

    async def evaluate_all(self, request: web.BaseRequest) -> web.Response:
        """All flags, or 304 when that is what the client has."""
        try:
            body = await self._body(request)
            flags = await self._flags()
            unit, context = _read_context(body, True)
            self._require_somebody(unit)
        except _Refused as refused:
            return _refusal(refused, None)
        now = _now()
        bodies = [flag.evaluate(unit, context, lambda: now).body for flag in flags.values()]
        told = b'{"flags":[' + b",".join(bodies) + b"]}"
        tag = _tag(self._definitions.version or "", body, told)
        known = request.headers.get("If-None-Match")
        if known is not None and _is_among(tag, known):
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=told, content_type=JSON, headers={"ETag": tag})

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The body of a caller who is welcome."""
        try:
            if not self._api.admits_anyone(request):
                await self._api.admit(request)
            if self._definitions.version is None:
                # Nobody's body is kept waiting for them.
                await self._flags()
            # It is decoded and evaluated in one go, and nothing of it is kept.
            hold = self._api.limits.budget.hold(rate_limit_key(self._api.address_of(request)))
            try:
                return await read_body(request, hold, MAX_BODY_BYTES, self._api.limits.body_timeout_seconds)
            finally:
                hold.release()
        except Problem as problem:
            raise _Refused(problem.status, "GENERAL", problem.detail, problem.headers) from None
        except PayloadRefused as error:
            status = STATUS_OF_REASON.get(error.refusal.reason, 400)
            if status == 503:
                raise _Refused(status, "GENERAL", error.refusal.detail, _RETRY) from None
            raise _Refused(status, "PARSE_ERROR", error.refusal.detail) from None

    def _require_somebody(self, unit: bytes) -> None:
        """All who have no id would be one unit."""
        if self._placeholders.has(unit.decode()):
            detail = "context.targetingKey is needed: null, 0 and the like are nobody's"
            raise _Refused(400, "TARGETING_KEY_MISSING", detail)

    async def _flags(self) -> Mapping[str, Flag]:
        try:
            return await self._definitions.loaded()
        except (Unavailable, TooSlow):
            raise _Refused(503, "GENERAL", "the database does not answer now; try again", _RETRY) from None

    def operations(self) -> list[Operation]:
        """For the docs. Their paths are served before these are looked at."""
        refused = {
            status: Documented(told, EvaluationError)
            for status, told in (
                (400, "Not understood, or no targetingKey"),
                (401, "The credentials are not good"),
                (413, "The body is too large"),
                (429, "Too many requests; Retry-After tells when"),
                (503, "No definitions yet: the database does not answer; or no memory for the body now"),
            )
        }
        return [
            Operation(
                "POST",
                FLAG_PATH,
                elsewhere,
                "Evaluate a flag",
                "flags",
                parameters=FlagParameters,
                body=EvaluationRequest,
                description=(__doc__ or "").partition("\n\n")[2].partition("\n\n")[0],
                answers={
                    200: Documented("The value for this unit", Evaluated),
                    404: Documented("No such flag", EvaluationError),
                    **refused,
                },
            ),
            Operation(
                "POST",
                BULK_PATH,
                elsewhere,
                "Evaluate all flags",
                "flags",
                body=EvaluationRequest,
                description="With an ETag over context and definitions; If-None-Match with it is answered 304.",
                answers={
                    200: Documented("The values for this unit", EvaluatedAll),
                    304: Documented("As the client has them", None),
                    **refused,
                },
            ),
        ]


async def elsewhere(call: Call) -> web.StreamResponse:
    """What a path is told that means one of ours, and is not written like it."""
    raise Problem(404, "unknown_route", f"flags are evaluated at {FLAG_PATH} and {BULK_PATH}, written so")


def _key(request: web.BaseRequest) -> str:
    path = request.raw_path
    if not path.startswith("/"):
        return request.path[_KEY_AT:]
    key = path[_KEY_AT:]
    return unquote(key.partition("?")[0]) if "%" in key or "?" in key else key


def _now() -> datetime:
    return datetime.now(UTC)


def _refusal(refused: _Refused, key: str | None) -> web.Response:
    told = {"errorCode": refused.code, "errorDetails": str(refused)}
    if key is not None:
        told = {"key": key.encode("utf-8", "replace").decode(), **told}
    return answer(refused.status, told, refused.headers)


def _read_unit(body: bytes) -> bytes:
    try:
        asked = _UNIT.decode(body)
    except _UNREADABLE as error:
        raise _not_understood(error) from None
    return _unit(asked.context.targeting_key if asked.context is not None else None)


def _read_context(body: bytes, with_attributes: bool) -> tuple[bytes, Context]:
    try:
        context = _CONTEXT.decode(body).context or {}
    except _UNREADABLE as error:
        raise _not_understood(error) from None
    unit = _unit(context.get("targetingKey"))
    attributes = None
    if with_attributes:
        attributes = {name: value for name, value in context.items() if name not in _NO_ATTRIBUTES}
    device, url = context.get("device"), context.get("url")
    return unit, Context(
        country_code(context.get("country")),
        device if isinstance(device, str) else None,
        url if isinstance(url, str) else None,
        attributes,
    )


def _unit(key: object) -> bytes:
    if key is None or key == "":
        raise _Refused(400, "TARGETING_KEY_MISSING", "context.targetingKey is needed: the unit that is evaluated")
    if not isinstance(key, str) or len(key) > MAX_ID_CHARACTERS or "\0" in key:
        detail = f"context.targetingKey must be a text of 1 to {MAX_ID_CHARACTERS} characters that can be stored"
        raise _Refused(400, "INVALID_CONTEXT", detail)
    return canonical_id(key).encode()


def _not_understood(error: Exception) -> _Refused:
    if isinstance(error, msgspec.ValidationError):
        return _Refused(400, "INVALID_CONTEXT", f"the body is not what is asked for: {str(error)[:300]}")
    return _Refused(400, "PARSE_ERROR", f"the body is not valid JSON: {str(error)[:300]}")


def _tag(version: str, asked: bytes, told: bytes) -> str:
    """Of definitions, context, and what they make now, when one of them has begun or ended."""
    found = hashlib.sha256(version.encode())
    found.update(b"%d:" % len(asked))
    found.update(asked)
    found.update(told)
    return f'"{found.hexdigest()[:32]}"'


def _is_among(tag: str, known: str) -> bool:
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in known.split(","))
