"""One HTTP server: routes that take events in front, the application behind them, CORS on every answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from ingest.errors import IngestError
from ingest.http import Connections, Cors, problem
from ingest.metrics import Metrics

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than the 60 seconds of common balancers, so that they close first and no request meets a closing end."""
_BACKLOG: Final = 1024


class Server:
    """Serves on sockets that the caller has bound. `stop` waits for the requests in flight; repeatable."""

    def __init__(
        self,
        posts: Mapping[str, Handler],
        app: web.Application,
        cors: Cors,
        metrics: Metrics,
        shutdown_timeout_seconds: float,
    ) -> None:
        self._posts = posts
        self._cors = cors
        self._metrics = metrics
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=shutdown_timeout_seconds,
        )
        self._known = frozenset(posts) | {
            path for route in app.router.routes() if (path := _canonical(route)) is not None
        }
        self.connections: Connections

    async def start(self, sock: socket.socket) -> None:
        """Serve on this bound socket."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self.connections = Connections(server, time.monotonic)
        server.request_handler = self._dispatcher(server.request_handler)
        await web.SockSite(self._runner, sock, backlog=_BACKLOG).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _dispatcher(self, application: Handler) -> Handler:
        posts, cors = self._posts, self._cors
        served = self.connections.served
        labels = self._metrics.requests.labels
        ok = {path: labels(path, "200") for path in posts}

        async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
            # The routes that take events are found here, in front of the application: its router, match info
            # and middlewares cost a third of a small request.
            served.add(request.protocol)
            path = request.raw_path.partition("?")[0]
            handler = posts.get(path)
            if handler is not None and request.method == "POST":
                response = await handler(request)
            elif request.method == "OPTIONS":
                response = cors.preflight(request)
            elif handler is not None:
                response = problem(405, "method_not_allowed", f"{path} takes POST", {"Allow": "POST, OPTIONS"})
            else:
                response = await _answer(application, request)
            cors.add(request, response)
            response.headers["Server"] = "ingest"
            if response.status == 200 and handler is not None:
                ok[path].inc()
            else:
                labels(path if path in self._known else "other", str(response.status)).inc()
            return response

        return dispatch


async def _answer(application: Handler, request: web.BaseRequest) -> web.StreamResponse:
    try:
        return await application(request)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return problem(error.status, error.reason.lower().replace(" ", "_"), error.text or error.reason, allow)


def _canonical(route: web.AbstractRoute) -> str | None:
    return route.resource.canonical if route.resource is not None else None


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A TCP socket bound to host and port, not listening yet. `shared` ones may be bound by several processes.

    Raises IngestError with one clear line when the address is taken or is not ours.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            return sock
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = "another process listens there" if error.errno == 98 else error.strerror or str(error)
        raise IngestError(f"cannot listen on {host}:{port}: {reason}") from None


def bind_unix(path: Path) -> socket.socket:
    """A socket at this path, for this user only; one that a dead process left is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(mask)
    return sock
