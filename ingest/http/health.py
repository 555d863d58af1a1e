"""GET /healthz, /readyz and /metrics."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from ingest.events.values.locations import Network, is_trusted
from ingest.http.answers import BEARER, answer, problem
from ingest.http.clients import authorization_key, one_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def healthz(request: web.Request) -> web.Response:
    """200: the process is alive and its event loop is running."""
    return answer(200, {"status": "ok"})


def readyz(state: Callable[[], tuple[bool, Mapping[str, object]]]) -> Handler:
    """200 while events can be accepted, else 503. A database outage is reported, but is no reason for a 503."""

    async def handle(request: web.Request) -> web.Response:
        ready, details = state()
        return answer(200 if ready else 503, {"status": "ready" if ready else "not ready", **details})

    return handle


FORWARDED: Final = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host", "X-Forwarded-Proto")
"""A request with any of these came through a proxy."""


class MetricsReaders:
    """Who may read metrics: clients that connect from these networks without a proxy, clients of a Unix socket in the
    data folder, which only its user can open, and holders of one of the keys."""

    def __init__(self, networks: Sequence[Network], keys: Sequence[str]) -> None:
        self._networks = tuple(networks)
        self._has_key = one_of(keys)

    def include(self, request: web.BaseRequest) -> bool:
        if request.transport is None:
            return False
        connected = request.transport.get_extra_info("socket")
        if connected is not None and connected.family == socket.AF_UNIX:
            return True
        peer = request.transport.get_extra_info("peername")
        if (
            isinstance(peer, tuple)
            and is_trusted(peer[0], self._networks)
            and not any(name in request.headers for name in FORWARDED)
        ):
            return True
        return self._has_key(authorization_key(request.headers.get("Authorization")) or "")


def metrics(
    page: Callable[[], Awaitable[str]],
    readers: MetricsReaders,
    identify: Callable[[web.Request], Awaitable[web.Response | None]] | None = None,
) -> Handler:
    """Metrics in Prometheus text format. For a client that is none of the readers, `identify` checks other
    credentials and returns the refusal, or None to let it in."""

    async def handle(request: web.Request) -> web.Response:
        if not readers.include(request):
            refused = _unknown_reader() if identify is None else await identify(request)
            if refused is not None:
                return refused
        text = await page()
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    return handle


def _unknown_reader() -> web.Response:
    detail = "connect from metrics_networks, or send Authorization: Bearer with one of metrics_keys"
    return problem(401, "unauthorized", detail, BEARER)
