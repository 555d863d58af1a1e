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
from ingest.features.stats.parameters import ENDPOINTS, PARAMETERS
from ingest.features.stats.parsing import parse
from ingest.features.stats.query import Query, Refused
from ingest.features.stats.reading import StatsTransactions
from ingest.http.answers import answer

Compute = Callable[[asyncpg.Connection, Query, datetime], Awaitable[Any]]

_SUMMARIES: Final = {
    "timeseries": "Events, users and sessions over time",
    "totals": "Events, users and sessions in a range",
    "top": "The most frequent values of a dimension",
    "funnel": "How many people did each step, in order",
    "retention": "How many people came back, by the day or week of their first event",
    "metrics": "KPIs",
}
_REQUIRED: Final = {"top": ("dimension",)}


class _Asked(NamedTuple):
    """A query, and the time of the request."""

    query: Query
    now: datetime


def operations(
    transactions: StatsTransactions, dimensions: Sequence[str], rolled_up: Sequence[str]
) -> list[Operation]:
    """One per endpoint. `dimensions`: all that exist; `rolled_up`: those that aggregates are kept by."""
    endpoints: dict[str, Compute] = {
        "timeseries": lambda connection, query, now: counts.timeseries(connection, query, rolled_up, now),
        "totals": lambda connection, query, _: counts.totals(connection, query, rolled_up),
        "top": lambda connection, query, _: counts.top(connection, query, rolled_up),
        "funnel": lambda connection, query, _: journeys.funnel(connection, query),
        "retention": journeys.retention,
        "metrics": lambda connection, query, _: kpi_values.metrics(connection, query),
    }
    return [_operation(transactions, name, compute, dimensions) for name, compute in endpoints.items()]


def _operation(
    transactions: StatsTransactions, endpoint: str, compute: Compute, dimensions: Sequence[str]
) -> Operation:
    def read(given: Iterable[tuple[str, str]]) -> _Asked:
        now = datetime.now(UTC)
        try:
            return _Asked(parse(endpoint, given, dimensions, now), now)
        except Refused as error:
            raise Problem(error.status, error.code, error.message) from None

    async def handle(call: Call) -> web.Response:
        asked: _Asked = call.query
        try:
            async with transactions.read_only() as connection:
                found = await compute(connection, asked.query, asked.now)
        except Refused as error:
            raise Problem(error.status, error.code, error.message) from None
        return answer(200, found, {"Cache-Control": "no-store"})

    return Operation(
        method="GET",
        path=f"/v1/stats/{endpoint}",
        handle=handle,
        summary=_SUMMARIES[endpoint],
        tag="statistics",
        answers={200: Documented("The statistics", dict[str, Any]), 400: Documented("A parameter is invalid")},
        query=Parameters(_documented(endpoint, dimensions), read),
        scope=Scope.READ,
    )


def _documented(endpoint: str, dimensions: Sequence[str]) -> list[dict[str, Any]]:
    takes = ENDPOINTS[endpoint]
    return [
        {
            "name": name,
            "required": name in _REQUIRED.get(endpoint, ()),
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
        return f"only events whose value aggregates had no room for, of one of {', '.join((*dimensions, 'event'))}"
    if name == "steps":
        return "2 to 10 steps in order, separated by commas: an event's name, type:TYPE or page:PATH"
    if name == "step":
        return "one step, given 2 to 10 times, instead of steps"
    if name == "dimension":
        return f"one of {', '.join((*dimensions, 'event'))}"
    return f"only this {name}"
