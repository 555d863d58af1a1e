"""A request to the dashboard, checked, as pages and panels see it, and what they are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import asyncpg
import orjson
from aiohttp import web

from ingest.api.access import Caller, Scope
from ingest.api.calls import Backend, Call
from ingest.api.fields import read
from ingest.api.operations import Operation, Parameters
from ingest.api.problems import Problem
from ingest.api.transactions import Transactions
from ingest.dashboard.doorkeeper import Visitor
from ingest.dashboard.health_sources import HealthSources
from ingest.dashboard.shares import Shares
from ingest.dashboard.view import View
from ingest.features.stats.reading import StatsTransactions
from ingest.http.public_address import HOST, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the configuration says that pages show.

    dimensions: all that exist.  rolled_up: those that aggregates are kept by.  write_key: one that may send events,
    "" if anybody may.
    """

    dimensions: Sequence[str]
    rolled_up: Sequence[str]
    write_key: str
    script_path: str
    retention_days: int
    has_public_url: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What pages are made from. Its transactions and operations use the dashboard's own connections.

    shareable: the paths of pages that may be shared, and the parameters that are their own.
    """

    transactions: Transactions
    statistics: StatsTransactions
    backend: Backend
    operations: Mapping[tuple[str, str], Operation]
    site: Site
    shares: Shares
    shareable: Mapping[str, frozenset[str]]
    health: HealthSources


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    place: the address at which the viewer reaches the dashboard.  view: range, filters and time zone, from the URL.
    more: the page's other parameters, and those of its path.  visitor: None for a shared view; `shared` is its token.
    """

    desk: Desk
    request: web.Request
    address: str
    place: Place
    caller: Caller
    view: View
    now: datetime
    more: Mapping[str, str] = field(default_factory=dict)
    visitor: Visitor | None = None
    shared: str | None = None

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.caller.scopes

    @property
    def base(self) -> str:
        """What is before all paths in links: "" or "/a/prefix"."""
        return self.place.prefix

    @property
    def origin(self) -> str:
        """The dashboard's address as the viewer's browser has it, to be shown to the viewer alone: that a client says
        where it is proves nothing."""
        host = self.request.headers.get("Host", "")
        known = self.place.host if self.desk.site.has_public_url or not HOST.fullmatch(host) else host
        return f"{self.place.protocol}://{known}{self.base}"

    def shared_as(self, token: str) -> Ask:
        """The same by the link with this token."""
        return replace(self, shared=token)

    def counting(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A read-only transaction for statistics, as those of the API: under the service's own role, for whoever may
        read. Under the viewer's, aggregates could not be found by their index, as comparisons of enums and of jsonb
        are not leakproof. Raises Problem, Refused, Unavailable."""
        if Scope.READ not in self.caller.scopes:
            raise Problem(403, "wrong_scope", f"this needs a key of scope {Scope.READ.value}")
        return self.desk.statistics.read_only()

    def reading(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A read-only transaction under the viewer's role. Raises Unavailable and TooSlow."""
        return self.desk.transactions.reading(self.caller)

    def writing(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A transaction under the viewer's role, committed at its end. Raises Unavailable and TooSlow."""
        return self.desk.transactions.on_behalf(self.caller, self.address, "", {})

    async def call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        query: Iterable[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The JSON that `respond` answers with."""
        response = await self.respond(method, path, parameters=parameters, query=query, body=body)
        assert isinstance(response, web.Response) and isinstance(response.body, bytes)
        return orjson.loads(response.body)

    async def respond(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        query: Iterable[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
    ) -> web.StreamResponse:
        """What an operation of the API answers to this viewer. `path` is the operation's, with its braces. Raises
        Problem, Invalid, and what the database raises."""
        operation = self.desk.operations[method, path]
        if operation.scope is not None and operation.scope not in self.caller.scopes:
            raise Problem(403, "wrong_scope", f"this needs the scope {operation.scope.value}")
        call = Call(self.desk.backend, "any", self.request, self.address, self.caller)
        if operation.parameters is not None:
            call.parameters = read(operation.parameters, dict(parameters or {}), texts=True)
        if isinstance(operation.query, Parameters):
            call.query = operation.query.read(query)
        elif operation.query is not None:
            call.query = read(operation.query, dict(query), texts=True)
        if operation.body is not None:
            call.body = read(operation.body, dict(body or {}))
        return await operation.handle(call)
