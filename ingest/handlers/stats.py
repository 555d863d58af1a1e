"""GET /v1/stats/…: who asks, what, and the answer. For admins and analysts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from aiohttp import web

from ingest.access import Authenticator, Scope, Unauthorized
from ingest.http import OVERLOADED_RETRY_SECONDS, answer, problem
from ingest.logs import Quiet
from ingest.pool import Unavailable
from ingest.stats import counts, kept_metrics, people
from ingest.stats.query import Query, Refused, parse
from ingest.stats.reading import Reader

logger = logging.getLogger(__name__)

_QUIET_SECONDS: Final = 60.0
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="statistics"'}
Answer = Callable[[asyncpg.Connection, Query, datetime], Awaitable[Any]]


class Stats:
    """Handles the routes of statistics. `dimensions` are those there are, `rolled_up` the buckets' own."""

    def __init__(
        self,
        reader: Reader,
        authenticator: Authenticator,
        dimensions: Sequence[str],
        rolled_up: Sequence[str],
    ) -> None:
        self._reader = reader
        self._authenticator = authenticator
        self._dimensions = tuple(dimensions)
        self._rolled_up = tuple(rolled_up)
        self._quiet = Quiet(_QUIET_SECONDS)

    def routes(self) -> list[web.RouteDef]:
        rolled_up = self._rolled_up
        endpoints: dict[str, Answer] = {
            "timeseries": lambda connection, query, now: counts.timeseries(connection, query, rolled_up, now),
            "totals": lambda connection, query, _: counts.totals(connection, query, rolled_up),
            "top": lambda connection, query, _: counts.top(connection, query, rolled_up),
            "funnel": lambda connection, query, _: people.funnel(connection, query),
            "retention": people.retention,
            "metrics": lambda connection, query, _: kept_metrics.metrics(connection, query),
        }
        return [web.get(f"/v1/stats/{name}", self._handler(name, run)) for name, run in endpoints.items()]

    def _handler(self, endpoint: str, run: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            refused = await self._refuse_stranger(request.headers)
            if refused is not None:
                return refused
            now = datetime.now(UTC)
            try:
                query = parse(endpoint, request.query.items(), self._dimensions, now)
                async with self._reader.reading() as connection:
                    told = await run(connection, query, now)
            except Refused as error:
                return problem(error.status, error.code, error.message)
            except Unavailable as error:
                if self._quiet.due():
                    logger.warning("statistics cannot be read: %s", error)
                headers = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
                return problem(503, "database_unavailable", "the database does not answer now; try again", headers)
            return answer(200, told, {"Cache-Control": "no-store"})

        return handle

    async def _refuse_stranger(self, headers: Mapping[str, str]) -> web.Response | None:
        """The answer to who may not read statistics, else None."""
        try:
            caller = await self._authenticator.identify(headers.get("Authorization"), headers.get("X-API-Key"))
        except Unauthorized as error:
            return problem(401, "unauthorized", str(error), _CHALLENGE)
        if Scope.READ in caller.scopes:
            return None
        if caller.role != "anon":
            return problem(403, "wrong_scope", "these credentials may not read statistics: scope read is needed")
        message = (
            "a key or token that may read is needed: Authorization: Bearer KEY, or Basic with the key as user name;"
            " `ingest keys create` makes one"
        )
        return problem(401, "unauthorized", message, _CHALLENGE)
