"""What the service offers over HTTP beside taking events: each operation declared once, to be checked and documented.

A handler is told who calls and what they ask, both checked, and answers; this module does what comes before and
after: limits, credentials, the body, and what the database refuses, as problem+json (RFC 9457).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, get_type_hints
from urllib.parse import parse_qsl
from uuid import UUID

import asyncpg
import msgspec
from aiohttp import web

from ingest.api.access import Authenticator, Caller, Scope, Unauthorized
from ingest.api.fields import FieldError, Invalid, Malformed, decode_object, read
from ingest.api.transactions import Transactions
from ingest.base.logs import Quiet
from ingest.base.refusals import STATUS_OF_REASON, PayloadRefused
from ingest.events.anonymity import conceal_own, conceal_own_number, own_address
from ingest.events.values.locations import rate_limit_key
from ingest.http.answers import BEARER, OVERLOADED_RETRY_SECONDS, problem
from ingest.http.bodies import read_body
from ingest.http.budget import Budget, Hold
from ingest.http.rate_limits import RateLimit
from ingest.intake.emitter import Emitter
from ingest.postgres.pool import TooSlow, Unavailable

logger = logging.getLogger(__name__)

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
MAX_BODY_BYTES: Final = 256 * 1024
"""No body here is a batch: the largest is an experiment with the payloads of its variants."""
_QUIET_SECONDS: Final = 60.0
_HOUR: Final = 3600
_TOKEN_FORM: Final = re.compile(r"sess_[A-Za-z0-9_-]{43,128}")
_UUID: Final = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_SECONDS: Final = re.compile(r"(\d+) seconds")


class Problem(Exception):
    """An answer other than success, from anywhere in a handler."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def response(self) -> web.Response:
        more = {"errors": [error._asdict() for error in self.errors]} if self.errors else {}
        return problem(self.status, self.code, self.detail, self.headers, more)


class Answer(NamedTuple):
    """A documented answer: what it means, the shape of its JSON, or other content types with ", " between them."""

    description: str
    body: Any = None
    content_type: str = JSON


class Parameters(NamedTuple):
    """Query parameters that no Struct describes, because they may be repeated or depend on each other.

    documented: OpenAPI's parameter objects.  read: names and texts, as often as each is given -> what the handler
    finds in `call.query`; raises Problem.
    """

    documented: Sequence[Mapping[str, Any]]
    read: Callable[[Iterable[tuple[str, str]]], Any]


class Operation(NamedTuple):
    """One method of one path.

    path: aiohttp's, `{name}` for a parameter; each is a field of `parameters`, a Struct that checks their texts.
    query, body: Structs, None for no such thing; `query` may also be Parameters.  scope: who may, None for anybody.
    session: X-Session-Token is needed.  forms: an HTML form is taken, too.  answers: status -> what it is; those to
    errors that every operation has are added by the docs.  body_optional: no body is the same as {}.  on_invalid:
    gets the call and what was wrong with its fields, before that is answered.
    """

    method: str
    path: str
    handle: Callable[[Call], Awaitable[web.StreamResponse]]
    summary: str
    tag: str
    answers: Mapping[int, Answer]
    description: str = ""
    parameters: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | Parameters | None = None
    body: type[msgspec.Struct] | None = None
    scope: Scope | None = None
    session: bool = False
    forms: bool = False
    body_optional: bool = False
    on_invalid: Callable[[Call, Sequence[FieldError]], Awaitable[None]] | None = None

    @property
    def feature(self) -> str:
        """Whose share of the connections it takes: its tag, whoever may call it."""
        return self.tag.partition(" (")[0]


class Call:
    """One request to an operation, checked: what a handler is given."""

    __slots__ = (
        "_api",
        "_feature",
        "address",
        "body",
        "caller",
        "is_form",
        "parameters",
        "query",
        "request",
        "session_token",
    )

    def __init__(self, api: Api, feature: str, request: web.Request, address: str, caller: Caller) -> None:
        self._api = api
        self._feature = feature
        self.request = request
        self.address = address
        self.caller = caller
        self.parameters: Any = None
        self.query: Any = None
        self.body: Any = None
        self.is_form = False
        self.session_token = ""

    @property
    def user_agent(self) -> str:
        text = self.request.headers.get("User-Agent", "").encode("utf-8", "replace").decode()[:1024]
        return self._api.concealed(text, self.address)

    @property
    def country(self) -> str | None:
        """The client's, if a proxy that is believed named it."""
        return self._api.country_of(self.request)

    def transaction(
        self, *, caller: Caller | None = None, **settings: str
    ) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A transaction on the caller's behalf, committed at the end of the block; `settings` as Transactions has.
        The session's token is set if the request has one."""
        if self.session_token:
            settings = {"session_token": self.session_token, **settings}
        return self._api.transactions.on_behalf(
            caller or self.caller, self.address, self.user_agent, settings, self._feature
        )

    def require_room(self) -> None:
        """Raise an honest 503 unless events could be made durable now: asked before anything is changed."""
        if not self._api.emitter.can_accept():
            raise Problem(503, "overloaded", "the journal cannot take events now; try again", headers=_retry())

    async def emit(self, *events: dict[str, Any], of_client: bool = True, unseen: bool = False) -> None:
        """Put events of our own into the stream, after the transaction they tell of. Durable when this returns.
        `of_client`: whether address and device are those of whom they are about; a server's or an admin's are not.
        `unseen`: they are a bot's."""
        path = self.request.match_info.route.resource
        assert path is not None
        address, headers = (self.address, self.request.headers) if of_client else ("", {})
        country = self.country if of_client else None
        await self._api.emitter.emit(list(events), path.canonical, address, headers, country, unseen)


class Api:
    """Serves operations. `address_of` tells a request's client, `country_of` where they are; `conceals`: whether
    their whole address is not to be stored. The limits are by address and by API key."""

    def __init__(
        self,
        authenticator: Authenticator,
        transactions: Transactions,
        emitter: Emitter,
        address_of: Callable[[web.BaseRequest], str],
        country_of: Callable[[web.BaseRequest], str | None],
        conceals: bool,
        by_address: RateLimit,
        by_key: RateLimit,
        budget: Budget,
        body_timeout_seconds: float,
    ) -> None:
        self.transactions = transactions
        self.emitter = emitter
        self.authenticator = authenticator
        self.address_of = address_of
        self.country_of = country_of
        self._conceals = conceals
        self._by_address = by_address
        self._by_key = by_key
        self.budget = budget
        self._body_timeout_seconds = body_timeout_seconds
        self._quiet = Quiet(_QUIET_SECONDS)
        self._quiet_refusals = Quiet(_QUIET_SECONDS)

    def concealed(self, text: str, address: str) -> str:
        """The text, in which the client's whole address does not stand unless it may be stored."""
        return conceal_own(text, own_address(address)) if self._conceals else text

    def routes(self, operations: Sequence[Operation]) -> list[web.RouteDef]:
        return [web.route(each.method, _route(each), self._handler(each)) for each in operations]

    def _handler(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._served(operation, request)
            except Problem as error:
                found = error
            except Invalid as error:
                found = Problem(422, "invalid_fields", str(error)[:1000], errors=error.errors)
            except asyncpg.PostgresError as error:
                found = _of_database(error)
                if found.code == "refused_by_database" and self._quiet_refusals.due():
                    # Not its words, which may repeat what somebody entered.
                    logger.warning(
                        "the database refuses requests: %s %s", error.sqlstate, error.constraint_name or ""
                    )
            except TooSlow:
                found = Problem(503, "too_slow", "the database took too long; try again", headers=_retry())
            except Unavailable as error:
                if self._quiet.due():
                    logger.warning("the database does not answer: %s", error)
                found = Problem(
                    503, "database_unavailable", "the database does not answer now; try again", headers=_retry()
                )
            return found.response()

        return handle

    async def _served(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        """The answer to a request that nothing is wrong with. Raises Problem and Invalid."""
        call = await self._call(operation, request)
        hold = self.budget.hold(rate_limit_key(call.address))
        try:
            await self._read(operation, call, hold)
            return await operation.handle(call)
        except Invalid as error:
            hold.release()
            if operation.on_invalid is not None:
                await operation.on_invalid(call, error.errors)
            raise
        finally:
            hold.release()

    async def _call(self, operation: Operation, request: web.Request) -> Call:
        """The request, of which only who calls is known. Raises Problem."""
        address, caller = await self.admit(request, operation.scope)
        call = Call(self, operation.feature, request, address, caller)
        call.session_token = _session_token(request, needed=operation.session)
        return call

    async def admit(self, request: web.BaseRequest, scope: Scope | None = None) -> tuple[str, Caller]:
        """A request's address and caller, within their limits, who may do what `scope` says. Raises Problem."""
        address = self.address_of(request)
        try:
            caller = await self.authenticator.identify(
                request.headers.get("Authorization"), request.headers.get("X-API-Key")
            )
        except Unauthorized as error:
            # Guessing keys is rate limited like asking without one.
            self._limit(self._by_address, rate_limit_key(address))
            raise Problem(401, "unauthorized", str(error), headers=BEARER) from None
        if caller.key is None:
            self._limit(self._by_address, rate_limit_key(address))
        else:
            self._limit(self._by_key, caller.key)
        if scope is not None and scope not in caller.scopes:
            _refuse_scope(caller, scope)
        return address, caller

    def admits_anyone(self, request: web.BaseRequest) -> bool:
        """Whether `admit` need not be awaited, as there are neither credentials nor a limit."""
        headers = request.headers
        return not self._by_address.enabled and "Authorization" not in headers and "X-API-Key" not in headers

    async def _read(self, operation: Operation, call: Call, hold: Hold) -> None:
        """What the request asks, checked. Raises Problem and Invalid."""
        if operation.parameters is not None:
            call.parameters = read(operation.parameters, dict(call.request.match_info), texts=True)
        call.query = _query(operation, call.request)
        if operation.body is not None:
            await self._read_body(operation, call, hold)

    @staticmethod
    def _limit(limit: RateLimit, subject: str) -> None:
        if limit.enabled and (wait := limit.take(subject)):
            seconds = int(wait) + 1
            detail = f"too many requests; try again in {seconds} s"
            raise Problem(429, "rate_limited", detail, headers={"Retry-After": str(seconds)})

    async def _read_body(self, operation: Operation, call: Call, hold: Hold) -> None:
        request = call.request
        assert operation.body is not None
        try:
            body = await read_body(request, hold, MAX_BODY_BYTES, self._body_timeout_seconds)
            # The handler keeps what is made of it for as long as it works.
            hold.take_decoded(body)
        except PayloadRefused as error:
            refusal = error.refusal
            status = STATUS_OF_REASON.get(refusal.reason, 400)
            headers = _retry() if status == 503 else None
            raise Problem(status, refusal.reason.value, refusal.detail, headers=headers) from None
        body = self.concealed(body.decode("utf-8", "surrogateescape"), call.address).encode(
            "utf-8", "surrogateescape"
        )
        if self._conceals:
            body = conceal_own_number(body, own_address(call.address))
        if operation.body_optional and not body:
            call.body = read(operation.body, {})
            return
        content_type = request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower() or JSON
        # A form's own brace would be %7B: this is JSON, from a client such as curl that calls everything a form.
        if content_type == FORM and body.lstrip().startswith(b"{"):
            content_type = JSON
        call.is_form = operation.forms and content_type == FORM
        if call.is_form:
            call.body = read(operation.body, _form(body), texts=True)
            return
        # A page that posts to us without a preflight says text/plain.
        if content_type not in (JSON, "text/plain") and not content_type.endswith("+json"):
            taken = f"{JSON} or {FORM}" if operation.forms else JSON
            raise Problem(415, "wrong_content_type", f"this takes {taken}", headers={"Accept-Post": taken})
        try:
            given = decode_object(body)
        except Malformed as error:
            raise Problem(400, "malformed_json", str(error)) from None
        call.body = read(operation.body, given)


def _route(operation: Operation) -> str:
    """The path for aiohttp's router. What is no UUID is not taken for one: it may be another operation's name."""
    path = operation.path
    for name, type_ in get_type_hints(operation.parameters).items() if operation.parameters else ():
        if type_ is UUID:
            path = path.replace(f"{{{name}}}", f"{{{name}:{_UUID}}}")
    return path


def _query(operation: Operation, request: web.Request) -> Any:
    if isinstance(operation.query, Parameters):
        return operation.query.read(request.query.items())
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Invalid([FieldError(name[:100], "is there twice")])
        given[name] = value
    if operation.query is not None:
        return read(operation.query, given, texts=True)
    if given:
        raise Invalid([FieldError(name[:100], "is not known here; there are no parameters") for name in given])
    return None


def _form(body: bytes) -> dict[str, Any]:
    """The fields of an HTML form. A field left blank was not filled in; one that is there twice is a list; `a.b` is
    the field b of the object a, where a checkbox without a value of its own is true."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=False, errors="strict", max_num_fields=200)
    except ValueError:
        raise Problem(400, "malformed_form", "the form is not valid UTF-8, or has over 200 fields") from None
    found: dict[str, Any] = {}
    for name, value in pairs:
        outer, _, inner = name.partition(".")
        within = found.setdefault(outer, {}) if inner else None
        if isinstance(within, dict):
            _put(within, inner, "true" if value == "on" else value)
        else:
            _put(found, name, value)
    return found


def _put(found: dict[str, Any], name: str, value: str) -> None:
    before = found.get(name)
    if before is None:
        found[name] = value
    else:
        found[name] = [*before, value] if isinstance(before, list) else [before, value]


def _session_token(request: web.Request, *, needed: bool) -> str:
    token = request.headers.get("X-Session-Token")
    if token is None:
        if needed:
            raise Problem(401, "session_token_needed", "the header X-Session-Token is needed",
                headers={"WWW-Authenticate": 'SessionToken realm="onboarding"'},
            )  # fmt: skip
        return ""
    if not _TOKEN_FORM.fullmatch(token):
        raise Problem(401, "session_token_malformed", "X-Session-Token is not a session's token",
            headers={"WWW-Authenticate": 'SessionToken realm="onboarding"'},
        )  # fmt: skip
    return token


def _refuse_scope(caller: Caller, scope: Scope) -> None:
    if caller.role == "anon":
        detail = (
            f"this needs an API key or token that may {_MAY[scope]}: Authorization: Bearer KEY, or Basic with the key"
            " as user name; `ingest keys create` makes one"
        )
        raise Problem(401, "unauthorized", detail, headers=BEARER)
    raise Problem(403, "wrong_scope", f"these credentials may not {_MAY[scope]}: scope {scope.value} is needed")


CONTENTION: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
"""Others work on the same rows: the same again may well succeed."""
_REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,  # A trigger of the user's own.
)
_MAY: Final = {Scope.WRITE: "write", Scope.READ: "read", Scope.ADMIN: "administrate"}


def _retry(seconds: int = OVERLOADED_RETRY_SECONDS) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _of_database(error: asyncpg.PostgresError) -> Problem:
    """What the database's own rules refused. Anything else is a bug of ours, and raised again.

    No text of the database's own becomes part of an answer, but for the words of our limits and for the name of a
    constraint: details and hints name columns, and hold what other rows have.
    """
    if error.sqlstate == "PT429":
        told = _SECONDS.fullmatch(error.detail or "")
        return Problem(429, "rate_limited", error.message, headers=_retry(int(told[1]) if told else _HOUR))
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Problem(403, "forbidden", "row security does not allow this")
    if isinstance(error, asyncpg.CheckViolationError):
        constraint = error.constraint_name or ""
        table = (error.table_name or "") + "_"
        return Problem(422, "refused_by_database", f"refused by the database: {constraint.removeprefix(table)}")
    if isinstance(error, asyncpg.UniqueViolationError | asyncpg.ExclusionViolationError):
        return Problem(409, "conflict", "the database has another row that this would contradict")
    if isinstance(error, _REFUSALS):
        return Problem(422, "refused_by_database", "refused by the database")
    if isinstance(error, CONTENTION):
        return Problem(503, "busy", "somebody else is changing the same; try again", headers=_retry(1))
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        # A migration changed a table since the statement was prepared. It is prepared again.
        return Problem(503, "busy", "the database has just changed; try again", headers=_retry(1))
    raise error
