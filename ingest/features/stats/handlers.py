"""GET /v1/stats/…: who asks, what, and the answer. For admins and analysts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from aiohttp import web

from ingest.api.access import Scope
from ingest.api.operations import Api, Problem
from ingest.base.logs import Quiet
from ingest.features.stats import counts, journeys, kpi_values
from ingest.features.stats.query import Query, Refused, parse
from ingest.features.stats.reading import Reader
from ingest.http.answers import BEARER, OVERLOADED_RETRY_SECONDS, answer, problem
from ingest.postgres.pool import Unavailable

logger = logging.getLogger(__name__)

_QUIET_SECONDS: Final = 60.0
Answer = Callable[[asyncpg.Connection, Query, datetime], Awaitable[Any]]


class Stats:
    """Handles the routes of statistics. `dimensions` are those there are, `rolled_up` the buckets' own."""

    def __init__(
        self,
        reader: Reader,
        api: Api,
        dimensions: Sequence[str],
        rolled_up: Sequence[str],
    ) -> None:
        self._reader = reader
        self._api = api
        self._dimensions = tuple(dimensions)
        self._rolled_up = tuple(rolled_up)
        self._quiet = Quiet(_QUIET_SECONDS)

    def routes(self) -> list[web.RouteDef]:
        rolled_up = self._rolled_up
        endpoints: dict[str, Answer] = {
            "timeseries": lambda connection, query, now: counts.timeseries(connection, query, rolled_up, now),
            "totals": lambda connection, query, _: counts.totals(connection, query, rolled_up),
            "top": lambda connection, query, _: counts.top(connection, query, rolled_up),
            "funnel": lambda connection, query, _: journeys.funnel(connection, query),
            "retention": journeys.retention,
            "metrics": lambda connection, query, _: kpi_values.metrics(connection, query),
        }
        return [web.get(f"/v1/stats/{name}", self._handler(name, run)) for name, run in endpoints.items()]

    def _handler(self, endpoint: str, run: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            now = datetime.now(UTC)
            try:
                await self._refuse_stranger(request)
                query = parse(endpoint, request.query.items(), self._dimensions, now)
                async with self._reader.reading() as connection:
                    told = await run(connection, query, now)
            except Problem as error:
                return error.response()
            except Refused as error:
                return problem(error.status, error.code, error.message)
            except asyncpg.LockNotAvailableError:
                headers = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
                return problem(503, "busy", "somebody is changing the tables; try again", headers)
            except Unavailable as error:
                if self._quiet.due():
                    logger.warning("statistics cannot be read: %s", error)
                headers = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
                return problem(503, "database_unavailable", "the database does not answer now; try again", headers)
            return answer(200, told, {"Cache-Control": "no-store"})

        return handle

    async def _refuse_stranger(self, request: web.Request) -> None:
        """Raise Problem for who may not read statistics, or asks more than the limits of the API allow."""
        await admit_reader(self._api, request, "statistics")


async def admit_reader(api: Api, request: web.Request, what: str) -> None:
    """Raise Problem for who may not read, or asks more than the limits of the API allow."""
    _, caller = await api.admit(request)
    if Scope.READ in caller.scopes:
        return
    if caller.role != "anon":
        raise Problem(403, "wrong_scope", f"these credentials may not read {what}: scope read is needed")
    message = (
        "a key or token that may read is needed: Authorization: Bearer KEY, or Basic with the key as user name;"
        " `ingest keys create` makes one"
    )
    raise Problem(401, "unauthorized", message, headers=BEARER)
