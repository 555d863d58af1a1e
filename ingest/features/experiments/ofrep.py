"""OpenFeature's remote evaluation protocol (OFREP): experiments as flags, evaluated without asking the database.

Nothing is stored: SDKs also evaluate flags that are never shown. Record an exposure when one is. The hash is the same
as for assignments, and what it depends on does not change while an experiment runs.

These requests are many and small. So they are routed in front of the application, like those that take events; the
operations are declared for the docs, and for the answers to other methods.
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


# Requests and responses.


class EvaluationContext(msgspec.Struct):
    """The unit, and its context: `country` (ISO 3166-1), `device` (desktop, mobile, tablet, bot, other) and `url` are
    for the targeting rules of these names, any other members for rules about attributes."""

    targeting_key: Annotated[
        str, text("The unit: a user's or session's id, the same in every request", low=1, high=MAX_ID_CHARACTERS)
    ] = msgspec.field(name="targetingKey")


class EvaluationRequest(msgspec.Struct):
    """As OpenFeature's SDKs send it."""

    context: EvaluationContext


class Metadata(msgspec.Struct):
    """Returned with the value."""

    experiment: Annotated[str, about("The experiment's id")]
    takes_part: Annotated[bool, about("Whether the unit takes part: record exposures only if so")]


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
    """The flag in the path."""

    key: Annotated[str, text("The experiment's name", low=1, high=100)]


# Decoding.


class _Unit(msgspec.Struct):
    targeting_key: str | None = msgspec.field(name="targetingKey", default=None)


class _OfUnit(msgspec.Struct):
    context: _Unit | None = None


class _OfContext(msgspec.Struct):
    context: dict[str, Any] | None = None


_UNIT: Final = msgspec.json.Decoder(_OfUnit)
# Copying these is faster than having aiohttp build them.
_HEADERS: Final = CIMultiDict({"Content-Type": JSON})
# Numbers keep all their digits, as in the database's comparisons.
_CONTEXT: Final = msgspec.json.Decoder(_OfContext, float_hook=Decimal)
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError)
"""What a decoder may raise: even parts that it skips may be invalid UTF-8, or nested too deep."""


class _Refused(Exception):
    """An error, to be answered in the protocol's format."""

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
        """The prefix of single flags' paths, the route's name, the handler. Everything after the prefix is the flag's
        name, which may hold any character."""
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
        """All flags, or 304 if the client already has this response."""
        try:
            body = await self._body(request)
            flags = await self._flags()
            unit, context = _read_context(body, True)
            self._require_somebody(unit)
        except _Refused as refused:
            return _refusal(refused, None)
        now = _now()
        bodies = [flag.evaluate(unit, context, lambda: now).body for flag in flags.values()]
        evaluated = b'{"flags":[' + b",".join(bodies) + b"]}"
        tag = _tag(self._definitions.version or "", body, evaluated)
        known = request.headers.get("If-None-Match")
        if known is not None and _is_among(tag, known):
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=evaluated, content_type=JSON, headers={"ETag": tag})

    async def _body(self, request: web.BaseRequest) -> bytes:
        """The body, if the caller is admitted. Raises _Refused."""
        try:
            if not self._api.admits_anyone(request):
                await self._api.admit(request)
            if self._definitions.version is None:
                # Before reading, so that no body is held while waiting for them.
                await self._flags()
            # The hold ends here: the body is decoded and evaluated at once, and not kept.
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
        """Raises _Refused for placeholders: everybody who sends one would be the same unit."""
        if self._placeholders.has(unit.decode()):
            detail = "context.targetingKey is required; placeholders such as null and 0 do not count"
            raise _Refused(400, "TARGETING_KEY_MISSING", detail)

    async def _flags(self) -> Mapping[str, Flag]:
        try:
            return await self._definitions.loaded()
        except (Unavailable, TooSlow):
            raise _Refused(503, "GENERAL", "the database is not available; try again", _RETRY) from None

    def operations(self) -> list[Operation]:
        """For the docs. Their POST requests are served by `routes` and `below`, before these."""
        refused = {
            status: Documented(description, EvaluationError)
            for status, description in (
                (400, "Invalid body, or no targetingKey"),
                (401, "The credentials are not accepted"),
                (413, "The body is too large"),
                (429, "Too many requests; Retry-After says when to try again"),
                (
                    503,
                    "No definitions loaded, as the database is not available; or no memory for the body now",
                ),
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
                description="The ETag covers context and definitions; with it in If-None-Match the answer is 304"
                " while nothing has changed.",
                answers={
                    200: Documented("The values for this unit", EvaluatedAll),
                    304: Documented("Unchanged", None),
                    **refused,
                },
            ),
        ]


async def elsewhere(call: Call) -> web.StreamResponse:
    """The answer to a path that routes here but is spelled differently."""
    raise Problem(404, "unknown_route", f"flags are evaluated at exactly {FLAG_PATH} and {BULK_PATH}")


def _key(request: web.BaseRequest) -> str:
    path = request.raw_path
    if not path.startswith("/"):
        return request.path[_KEY_AT:]
    key = path[_KEY_AT:]
    return unquote(key.partition("?")[0]) if "%" in key or "?" in key else key


def _now() -> datetime:
    return datetime.now(UTC)


def _refusal(refused: _Refused, key: str | None) -> web.Response:
    error = {"errorCode": refused.code, "errorDetails": str(refused)}
    if key is not None:
        error = {"key": key.encode("utf-8", "replace").decode(), **error}
    return answer(refused.status, error, refused.headers)


def _read_unit(body: bytes) -> bytes:
    try:
        asked = _UNIT.decode(body)
    except _UNREADABLE as error:
        raise _unreadable(error) from None
    return _unit(asked.context.targeting_key if asked.context is not None else None)


def _read_context(body: bytes, with_attributes: bool) -> tuple[bytes, Context]:
    try:
        context = _CONTEXT.decode(body).context or {}
    except _UNREADABLE as error:
        raise _unreadable(error) from None
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
        raise _Refused(400, "TARGETING_KEY_MISSING", "context.targetingKey is required: the unit to evaluate for")
    if not isinstance(key, str) or len(key) > MAX_ID_CHARACTERS or "\0" in key:
        detail = f"context.targetingKey must be text of 1 to {MAX_ID_CHARACTERS} characters, without NUL"
        raise _Refused(400, "INVALID_CONTEXT", detail)
    return canonical_id(key).encode()


def _unreadable(error: Exception) -> _Refused:
    if isinstance(error, msgspec.ValidationError):
        return _Refused(400, "INVALID_CONTEXT", f"the body is invalid: {str(error)[:300]}")
    return _Refused(400, "PARSE_ERROR", f"the body is not valid JSON: {str(error)[:300]}")


def _tag(version: str, asked: bytes, evaluated: bytes) -> str:
    """An ETag of definitions, context and result: an experiment that begins or ends changes only the result."""
    found = hashlib.sha256(version.encode())
    found.update(b"%d:" % len(asked))
    found.update(asked)
    found.update(evaluated)
    return f'"{found.hexdigest()[:32]}"'


def _is_among(tag: str, known: str) -> bool:
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in known.split(","))
