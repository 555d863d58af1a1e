"""GET /v1/stats/…: who asks, what, and the answer. For admins and analysts."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from aiohttp import web

from ingest.handlers.collect import authorization_key
from ingest.http import OVERLOADED_RETRY_SECONDS, answer, problem
from ingest.logs import Quiet
from ingest.stats import counts, kept_metrics, people
from ingest.stats.query import Query, Refused, parse
from ingest.stats.reading import Reader, Unavailable

logger = logging.getLogger(__name__)

_QUIET_SECONDS: Final = 60.0
Answer = Callable[[asyncpg.Connection, Query, datetime], Awaitable[Any]]


class Stats:
    """Handles the routes of statistics. `dimensions` are those there are, `rolled_up` the buckets' own."""

    def __init__(
        self, reader: Reader, admin_keys: Sequence[str], dimensions: Sequence[str], rolled_up: Sequence[str]
    ) -> None:
        self._reader = reader
        self._keys = tuple(key.encode() for key in admin_keys)
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
            refused = self._refuse_stranger(request.headers.get("Authorization"))
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

    def _refuse_stranger(self, authorization: str | None) -> web.Response | None:
        """The answer to who has no admin key, else None."""
        if not self._keys:
            return problem(403, "statistics_off", "nobody may read statistics: set admin_keys (INGEST_ADMIN_KEYS)")
        given = (authorization_key(authorization) or "").encode("utf-8", "replace")
        # All are compared, so that the time taken tells nothing about any of them.
        if sum(hmac.compare_digest(given, known) for known in self._keys):
            return None
        message = "an admin key is needed: Authorization: Bearer KEY, or Basic with the key as user name"
        return problem(401, "unauthorized", message, {"WWW-Authenticate": 'Basic realm="admin key"'})
