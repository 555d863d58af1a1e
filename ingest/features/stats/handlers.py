"""GET /v1/stats/…: the operations of statistics. For admins and analysts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import asyncpg
from aiohttp import web

from ingest.api.access import Scope
from ingest.api.calls import Call
from ingest.api.operations import Documented, Operation, Parameters
from ingest.api.problems import Problem
from ingest.features.stats import counts, journeys, kpi_values
from ingest.features.stats.query import ENDPOINTS, PARAMETERS, Query, Refused, parse
from ingest.features.stats.reading import Reader
from ingest.http.answers import answer

Endpoint = Callable[[asyncpg.Connection, Query, datetime], Awaitable[Any]]

_SUMMARIES: Final = {
    "timeseries": "Events, users and sessions by time",
    "totals": "Events, users and sessions of a range",
    "top": "The most frequent values of a dimension",
    "funnel": "How many went through steps, in order",
    "retention": "Who came back, by the day or week they first came",
    "metrics": "KPIs",
}
_NEEDED: Final = {"top": ("dimension",)}


class _Asked(NamedTuple):
    """A question, and the time it is asked at."""

    query: Query
    now: datetime


def operations(reader: Reader, dimensions: Sequence[str], rolled_up: Sequence[str]) -> list[Operation]:
    """Those of all endpoints. `dimensions`: all there are; `rolled_up`: those that aggregates are kept by."""
    endpoints: dict[str, Endpoint] = {
        "timeseries": lambda connection, query, now: counts.timeseries(connection, query, rolled_up, now),
        "totals": lambda connection, query, _: counts.totals(connection, query, rolled_up),
        "top": lambda connection, query, _: counts.top(connection, query, rolled_up),
        "funnel": lambda connection, query, _: journeys.funnel(connection, query),
        "retention": journeys.retention,
        "metrics": lambda connection, query, _: kpi_values.metrics(connection, query),
    }
    return [_operation(reader, name, run, dimensions) for name, run in endpoints.items()]


def _operation(reader: Reader, endpoint: str, run: Endpoint, dimensions: Sequence[str]) -> Operation:
    def read(given: Iterable[tuple[str, str]]) -> _Asked:
        now = datetime.now(UTC)
        try:
            return _Asked(parse(endpoint, given, dimensions, now), now)
        except Refused as error:
            raise Problem(error.status, error.code, error.message) from None

    async def handle(call: Call) -> web.Response:
        asked: _Asked = call.query
        try:
            async with reader.reading() as connection:
                found = await run(connection, asked.query, asked.now)
        except Refused as error:
            raise Problem(error.status, error.code, error.message) from None
        return answer(200, found, {"Cache-Control": "no-store"})

    return Operation(
        method="GET",
        path=f"/v1/stats/{endpoint}",
        handle=handle,
        summary=_SUMMARIES[endpoint],
        tag="statistics",
        answers={200: Documented("The answer", dict[str, Any]), 400: Documented("The question cannot be understood")},
        query=Parameters(_documented(endpoint, dimensions), read),
        scope=Scope.READ,
    )


def _documented(endpoint: str, dimensions: Sequence[str]) -> list[dict[str, Any]]:
    takes = ENDPOINTS[endpoint]
    return [
        {
            "name": name,
            "required": name in _NEEDED.get(endpoint, ()),
            "description": _description(name, dimensions),
            "schema": {"type": "string"},
        }
        for name in (*takes.parameters, *(dimensions if takes.filters else ()))
    ]


def _description(name: str, dimensions: Sequence[str]) -> str:
    if name in PARAMETERS:
        return PARAMETERS[name].what
    if name == "none":
        return f"only events without a value of one of {', '.join(dimensions)}; may be given several times"
    if name == "other":
        return f"only what aggregates had no room for, of one of {', '.join((*dimensions, 'event'))}"
    if name == "dimension":
        return f"one of {', '.join((*dimensions, 'event'))}"
    return "2 to 10 names of events, in order, with commas between them" if name == "steps" else f"only this {name}"
