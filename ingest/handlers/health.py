"""GET /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from ingest.http import answer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def healthz(request: web.Request) -> web.Response:
    """The process runs and its loop turns."""
    return answer(200, {"status": "ok"})


def readyz(state: Callable[[], tuple[bool, Mapping[str, object]]]) -> Handler:
    """200 while events can be accepted, else 503. A database outage is told here, and is no reason for a 503."""

    async def handle(request: web.Request) -> web.Response:
        ready, details = state()
        return answer(200 if ready else 503, {"status": "ready" if ready else "not ready", **details})

    return handle


def metrics(page: Callable[[], Awaitable[str]]) -> Handler:
    """Prometheus text format."""

    async def handle(request: web.Request) -> web.Response:
        text = await page()
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    return handle
