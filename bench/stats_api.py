"""How fast the statistics of a dashboard are answered, one at a time on one connection."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from statistics import quantiles
from typing import Final, NamedTuple
from urllib.parse import urlencode

from bench.service import Service

ADMIN_KEY: Final = "bench-admin-key"
WARM_UP: Final = 3


class Timing(NamedTuple):
    what: str
    executions: int
    p50_ms: float
    p95_ms: float
    from_aggregates: bool
    """Questions that read events have other limits, and no target."""


def questions(now: datetime) -> dict[str, tuple[str, Mapping[str, str], bool]]:
    """A dashboard's questions by title: (endpoint, parameters, whether aggregates answer it)."""

    def last(days: int) -> dict[str, str]:
        return {"from": (now - timedelta(days=days)).date().isoformat(), "to": now.date().isoformat()}

    page_views = {"event": "page_view"}
    return {
        "every event by hour, 7 days": ("timeseries", {**last(7), "granularity": "hour"}, True),
        "page views by day, 29 days": ("timeseries", {**last(29), **page_views, "granularity": "day"}, True),
        "page views of one country by day, 29 days": (
            "timeseries", {**last(29), **page_views, "country": "DE", "granularity": "day"}, True,
        ),
        "totals of 29 days": ("totals", last(29), True),
        "pages most seen, 29 days": ("top", {**last(29), **page_views, "dimension": "page_path"}, True),
        "countries of all events, 7 days": ("top", {**last(7), "dimension": "country"}, True),
        "funnel of three steps, 1 day": (
            "funnel", {**last(1), "steps": "page_view,form_started,form_submitted"}, False,
        ),
    }  # fmt: skip


def measure_dashboard(service: Service, executions: int) -> list[Timing]:
    """Time each question repeatedly, with a warm cache, from sending the request to the complete answer."""
    connection = http.client.HTTPConnection(service.host, timeout=60)
    try:
        asked = questions(datetime.now(UTC))
        return [
            Timing(what, executions, *_time(connection, endpoint, parameters, executions), aggregated)
            for what, (endpoint, parameters, aggregated) in asked.items()
        ]
    finally:
        connection.close()


def _time(
    connection: http.client.HTTPConnection, endpoint: str, parameters: Mapping[str, str], executions: int
) -> tuple[float, float]:
    path = f"/v1/stats/{endpoint}?{urlencode(parameters)}"
    durations = []
    for number in range(-WARM_UP, executions):
        started = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body.decode()}")
        if number >= 0:
            durations.append(1000 * (time.perf_counter() - started))
    cuts = quantiles(durations, n=20, method="inclusive")
    return cuts[9], cuts[18]
