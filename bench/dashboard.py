"""How fast the dashboard is on a full database: each panel, the first view, its weight, and events asked directly.

`python -m bench.dashboard [--events N] [--executions N] [--json PATH]`; bench/README.md explains each figure. Exits
with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import http.client
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import psutil

from bench import report
from bench.report import Line
from bench.rollup import fill_postgres
from bench.service import Service, running_service
from bench.stats_api import ADMIN_KEY
from ingest.base.errors import IngestError
from ingest.dashboard import pages
from ingest.dashboard.panels import KEPT_SECONDS
from ingest.postgres.connections import close, connect

PANEL_TARGET_MS: Final = 50.0
FIRST_VIEW_TARGET_MS: Final = 300.0
WEIGHT_TARGET_BYTES: Final = 60_000
LIMIT_MS: Final = 5_000.0
"""The dashboard's own limit, `dashboard_timeout_seconds`."""
WARM_UP: Final = 2
_FROM_EVENTS: Final = (b"Counted from the events themselves", b"Counted from events")
_VIEWS: Final = ("period=30d", "period=90d", "period=today", "period=30d&country=DE")
"""Each panel of the overview is asked for with all of them, the other panels with the first."""
_ASSET: Final = re.compile(rb'(?:href|src)="(/dashboard/[^"]+)"')

DIRECTLY: Final = {
    "visitors, 30 days": (
        "SELECT count(DISTINCT person) FROM analytics.activity"
        " WHERE created_at >= now() - interval '30 days' AND device_type IS DISTINCT FROM 'bot'"
    ),
    "visitors by day, 30 days": (
        "SELECT date_trunc('day', created_at), count(DISTINCT person) FROM analytics.activity"
        " WHERE created_at >= now() - interval '30 days' AND device_type IS DISTINCT FROM 'bot' GROUP BY 1"
    ),
    "pages, 30 days": (
        "SELECT page_path, count(*), count(DISTINCT person) FROM analytics.activity"
        " WHERE created_at >= now() - interval '30 days' AND type = 'page_view'"
        " AND device_type IS DISTINCT FROM 'bot' GROUP BY 1 ORDER BY 2 DESC LIMIT 10"
    ),
}
"""The overview's questions, asked of the events themselves."""


class Timing(NamedTuple):
    what: str
    p50_ms: float
    p95_ms: float
    status: int
    from_events: bool


class Results(NamedTuple):
    panels: list[Timing]
    first_view: Timing
    weights: dict[str, int]
    """Bytes, gzipped."""
    directly: dict[str, float]
    """Milliseconds."""


class Browser:
    """Somebody who signs in and asks, on one connection."""

    def __init__(self, service: Service) -> None:
        self._connection = http.client.HTTPConnection(service.host, timeout=60)

    def sign_in(self) -> str:
        """The cookie of a new session."""
        body = urlencode({"key": ADMIN_KEY})
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/sign-in", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise RuntimeError(f"signing in failed: {answer.status}")
        return (answer.getheader("Set-Cookie") or "").partition(";")[0]

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str, cookie: str) -> tuple[int, bytes, float]:
        """Status, body and milliseconds."""
        started = time.perf_counter()
        self._connection.request("GET", path, headers={"Cookie": cookie, "Accept-Encoding": "gzip"})
        answer = self._connection.getresponse()
        body = answer.read()
        milliseconds = 1000 * (time.perf_counter() - started)
        if answer.getheader("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return answer.status, body, milliseconds


def time_all(browser: Browser, questions: Sequence[tuple[str, str]], executions: int) -> list[Timing]:
    """Ask all of them, one after the other, as often as that, with so much time between two rounds that nothing is
    shown again."""
    durations: dict[str, list[float]] = {what: [] for what, _ in questions}
    last: dict[str, tuple[int, bytes]] = {}
    cookie = browser.sign_in()
    for number in range(-WARM_UP, executions):
        until = time.monotonic() + KEPT_SECONDS + 0.1
        for what, path in questions:
            status, body, milliseconds = browser.get(path, cookie)
            last[what] = status, body
            if number >= 0:
                durations[what].append(milliseconds)
        time.sleep(max(0.0, until - time.monotonic()))
    return [_timing(what, durations[what], *last[what]) for what, _ in questions]


def _timing(what: str, durations: Sequence[float], status: int, body: bytes) -> Timing:
    cuts = quantiles(durations, n=20, method="inclusive")
    return Timing(what, cuts[9], cuts[18], status, any(word in body for word in _FROM_EVENTS))


def _questions() -> Iterator[tuple[str, str]]:
    """Title and path of each panel's URL."""
    catalogue = pages.catalogue()
    overview = next(page for page in catalogue.pages if page.path == "/")
    for name in overview.panels:
        for view in _VIEWS:
            yield f"{name}, {view.replace('period=', '').replace('&', ', ')}", f"/panels/{name}?{view}"
    for page in catalogue.pages:
        if page.path != "/" and "{" not in page.path:
            for name in page.panels:
                yield f"{name} ({page.title})", f"/panels/{name}"


def measure(service: Service, executions: int) -> Results:
    with contextlib.closing(Browser(service)) as browser:
        panels = time_all(browser, list(_questions()), executions)
        [first] = time_all(browser, [("first view", "/")], executions)
        cookie = browser.sign_in()
        _, page, _ = browser.get("/", cookie)
        weights = {"page": len(gzip.compress(page, 5))}
        for path in sorted(set(_ASSET.findall(page))):
            _, body, _ = browser.get(path.decode(), cookie)
            weights[path.decode().rpartition(".")[2]] = len(gzip.compress(body, 9))
    return Results(panels, first, weights, asyncio.run(_ask_directly(service.postgres.dsn)))


async def _ask_directly(dsn: str) -> dict[str, float]:
    connection = await connect(dsn, purpose="bench")
    try:
        return {what: await _median_of(partial(connection.fetch, query)) for what, query in DIRECTLY.items()}
    finally:
        await close(connection)


async def _median_of(ask: Callable[[], Any], times: int = 3) -> float:
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        await ask()
        durations.append(1000 * (time.perf_counter() - started))
    return median(durations)


# The report.


def lines(results: Results) -> list[Line]:
    weight = sum(results.weights.values())
    parts = ", ".join(f"{name} {size:,}" for name, size in results.weights.items())
    first = results.first_view
    return [
        *[_panel_line(timing) for timing in results.panels],
        _line("first view", first, FIRST_VIEW_TARGET_MS),
        Line(
            f"weight of the first view, gzipped ({parts})",
            f"{weight:,} B",
            target=f"< {WEIGHT_TARGET_BYTES:,} B",
            verdict="ok" if weight < WEIGHT_TARGET_BYTES else "MISSED",
        ),
        *[Line(f"asked of analytics.events: {what}", f"{ms:,.0f} ms") for what, ms in results.directly.items()],
    ]


def _panel_line(timing: Timing) -> Line:
    what = timing.what if timing.status == 200 else f"{timing.what} ({timing.status})"
    return _line(what, timing, LIMIT_MS if timing.from_events or timing.status != 200 else PANEL_TARGET_MS)


def _line(what: str, timing: Timing, target_ms: float) -> Line:
    verdict = "ok" if timing.p95_ms < target_ms else "MISSED"
    return Line(
        f"{what}: p95 (p50)",
        f"{timing.p95_ms:.1f} ({timing.p50_ms:.1f}) ms",
        target=f"< {target_ms:g} ms",
        verdict=verdict,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="in the table [10000000]")
    parser.add_argument("--executions", type=int, default=40, help="of each question [40]")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    given = parser.parse_args()
    prepare = partial(fill_postgres, given.events, roll_up=True)
    try:
        with running_service("--admin-keys", ADMIN_KEY, prepare=prepare) as service:
            results, version = measure(service, given.executions), service.database.version()
    except (TimeoutError, OSError, IngestError, psutil.NoSuchProcess) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    shown = lines(results)
    where = report.machine(version)
    print(report.table(where, shown, 0.0))
    report.write_json({"machine": where, "events": given.events, **results._asdict()}, given.json)
    return int(any(line.verdict == "MISSED" for line in shown))


if __name__ == "__main__":
    sys.exit(main())
