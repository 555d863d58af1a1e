"""Serves operations: limits, credentials and fields before a handler, and its failures as answers after it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
from aiohttp import web

from ingest.api.access import Authenticator, Caller, Scope, Unauthorized
from ingest.api.calls import Backend, Call
from ingest.api.fields import Invalid, read
from ingest.api.operations import JSON, Operation
from ingest.api.problems import Problem, of_database, retry_after
from ingest.api.requests import body_of, query_of, session_token_of
from ingest.base.logs import Quiet
from ingest.base.refusals import STATUS_OF_REASON, PayloadRefused
from ingest.events.anonymity import conceal_own_number, own_address
from ingest.events.values.locations import rate_limit_key
from ingest.http.answers import BEARER
from ingest.http.bodies import read_body
from ingest.http.budget import Budget, Hold
from ingest.http.rate_limits import RateLimit
from ingest.postgres.pool import TooSlow, Unavailable

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 256 * 1024
"""No body here is a batch: the largest is an experiment with the payloads of its variants."""
_MAY: Final = {Scope.WRITE: "write", Scope.READ: "read", Scope.ADMIN: "administer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one client may ask for. by_address is for callers without an API key, and for wrong keys.

    budget: the bytes of all bodies at a time.  body_timeout_seconds: how long a body may take to arrive.
    """

    by_address: RateLimit
    by_key: RateLimit
    budget: Budget
    body_timeout_seconds: float


class Api:
    """Serves operations. `address_of`: the address of a request's client."""

    def __init__(
        self,
        backend: Backend,
        authenticator: Authenticator,
        limits: RequestLimits,
        address_of: Callable[[web.BaseRequest], str],
    ) -> None:
        self.backend = backend
        self.authenticator = authenticator
        self.limits = limits
        self.address_of = address_of
        self._quiet = Quiet()
        self._quiet_refusals = Quiet()

    def routes(self, operations: Sequence[Operation]) -> list[web.RouteDef]:
        return [web.route(each.method, each.route, self._handler(each)) for each in operations]

    async def admit(self, request: web.BaseRequest, scope: Scope | None = None) -> tuple[str, Caller]:
        """A request's address and caller, within their limits and with the scope. Raises Problem."""
        address = self.address_of(request)
        try:
            caller = await self.authenticator.identify(
                request.headers.get("Authorization"), request.headers.get("X-API-Key")
            )
        except Unauthorized as error:
            # Guessing keys is rate limited like asking without one.
            take(self.limits.by_address, rate_limit_key(address))
            raise Problem(401, "unauthorized", str(error), headers=BEARER) from None
        if caller.key is None:
            take(self.limits.by_address, rate_limit_key(address))
        else:
            take(self.limits.by_key, caller.key)
        if scope is not None and scope not in caller.scopes:
            raise _wrong_scope(caller, scope)
        return address, caller

    def admits_anyone(self, request: web.BaseRequest) -> bool:
        """Whether `admit` need not be awaited, as there are neither credentials nor a limit."""
        headers = request.headers
        return not self.limits.by_address.enabled and "Authorization" not in headers and "X-API-Key" not in headers

    def _handler(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._served(operation, request)
            except Problem as error:
                return error.response()
            except Invalid as error:
                return Problem(422, "invalid_fields", str(error)[:1000], errors=error.errors).response()
            except (asyncpg.PostgresError, TooSlow, Unavailable) as error:
                return self._failed(error).response()

        return handle

    def _failed(self, error: asyncpg.PostgresError | TooSlow | Unavailable) -> Problem:
        """The answer when the database refuses, is too slow, or is away."""
        if isinstance(error, TooSlow):
            return Problem(503, "too_slow", "the database took too long; try again", headers=retry_after())
        if isinstance(error, Unavailable):
            if self._quiet.due():
                logger.warning("the database does not answer: %s", error)
            detail = "the database does not answer now; try again"
            return Problem(503, "database_unavailable", detail, headers=retry_after())
        found = of_database(error)
        if found.code == "refused_by_database" and self._quiet_refusals.due():
            # Not its message, which may repeat what somebody entered.
            logger.warning("the database refuses requests: %s %s", error.sqlstate, error.constraint_name or "")
        return found

    async def _served(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        """The answer of the operation's handler. Raises Problem, Invalid, and what the database raises."""
        address, caller = await self.admit(request, operation.scope)
        call = Call(self.backend, operation.feature, request, address, caller)
        call.session_token = session_token_of(request, needed=operation.session)
        hold = self.limits.budget.hold(rate_limit_key(address))
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

    async def _read(self, operation: Operation, call: Call, hold: Hold) -> None:
        """Put into the call what the request asks, checked. Raises Problem and Invalid."""
        if operation.parameters is not None:
            call.parameters = read(operation.parameters, dict(call.request.match_info), texts=True)
        call.query = query_of(operation, call.request)
        if operation.body is not None:
            body = await self._body(call, hold)
            content_type = call.request.headers.get("Content-Type", JSON)
            call.body, call.is_form = body_of(operation, content_type, body)

    async def _body(self, call: Call, hold: Hold) -> bytes:
        """The body, without the client's own address unless that may be stored. Raises Problem."""
        try:
            body = await read_body(call.request, hold, MAX_BODY_BYTES, self.limits.body_timeout_seconds)
            # The handler keeps what is made of it for as long as it works.
            hold.take_decoded(body)
        except PayloadRefused as error:
            refusal = error.refusal
            status = STATUS_OF_REASON.get(refusal.reason, 400)
            headers = retry_after() if status == 503 else None
            raise Problem(status, refusal.reason.value, refusal.detail, headers=headers) from None
        if not self.backend.conceals:
            return body
        text = self.backend.concealed(body.decode("utf-8", "surrogateescape"), call.address)
        return conceal_own_number(text.encode("utf-8", "surrogateescape"), own_address(call.address))


def take(limit: RateLimit, subject: str) -> None:
    """Count a request against a limit. Raises Problem when there is none left."""
    if limit.enabled and (wait := limit.take(subject)):
        seconds = int(wait) + 1
        raise Problem(
            429, "rate_limited", f"too many requests; try again in {seconds} s", headers=retry_after(seconds)
        )


def _wrong_scope(caller: Caller, scope: Scope) -> Problem:
    if caller.role != "anon":
        return Problem(403, "wrong_scope", f"these credentials may not {_MAY[scope]}: scope {scope.value} is needed")
    detail = (
        f"this needs an API key or token that may {_MAY[scope]}: Authorization: Bearer KEY, or Basic with the key"
        " as user name; `ingest keys create` makes one"
    )
    return Problem(401, "unauthorized", detail, headers=BEARER)
