"""One HTTP server: the routes that take events first, then the application; CORS on every response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from aiohttp import web

from ingest.base.descriptors import LAST_RESERVE, limit
from ingest.base.waits import wait_for
from ingest.events.values.locations import Network, is_trusted, rate_limit_key
from ingest.http.admission import Connections, Limits
from ingest.http.answers import OVERLOADED_RETRY_SECONDS, problem
from ingest.http.binding import cannot_listen
from ingest.http.budget import Budget
from ingest.http.census import Census, Seat
from ingest.http.connections import ClientConnection
from ingest.http.cors import Cors
from ingest.http.listener import Listener
from ingest.http.short_way import ShortWay, Take

logger = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

OTHER: Final = "other"
"""The route label of requests to unknown paths, so that clients cannot make the metrics grow."""
SPARED: Final = frozenset(("/healthz", "/readyz", "/metrics"))
"""Paths that are served even when the connection limit is reached."""
_CLOSING_SECONDS: Final = 1.0
"""How long a request that was cancelled for taking too long has to finish."""
_NEWCOMER_SECONDS: Final = 1.0
"""A connection younger than this at shutdown gets this long to send its request."""
_LOOK_SECONDS: Final = 0.02


class Admission(NamedTuple):
    """How many connections a server may have; `exempt` peers have no limit per address."""

    limits: Limits
    exempt: tuple[Network, ...] = ()
    conceal: Callable[[str], str] = str


class Server:
    """Serves on sockets that the caller has bound. `stop` waits for the requests in flight; repeatable."""

    def __init__(
        self,
        *,
        posts: Mapping[str, Handler],
        app: web.Application,
        cors: tuple[Cors, Cors],
        of_events: Callable[[str], bool],
        answered: Counter[tuple[str, int]],
        budget: Budget,
        shutdown_timeout_seconds: float,
        admission: Admission,
        seat: Seat | None = None,
        below: tuple[str, str, Handler] | None = None,
        takers: Mapping[str, Take] | None = None,
    ) -> None:
        """posts: path -> handler of its POST requests.  takers: the same for the short way.  below: for all paths
        with a prefix: the prefix, their route in the metrics, the handler.  cors: for paths that are `of_events`, and
        for the others.  answered: counts responses by route and status.  seat: this worker's, if several share the
        socket."""
        self._posts = posts
        self._below = below
        self._cors, self._other_cors = cors
        self._of_events = of_events
        self._answered = answered
        self.short_way = ShortWay(takers or {}, self._cors, answered)
        self._budget = budget
        # A streamed response sends its headers before its handler returns.
        app.on_response_prepare.append(self._add_cors)
        self._shutdown_timeout_seconds = shutdown_timeout_seconds
        self._runner = web.AppRunner(app, shutdown_timeout=min(_CLOSING_SECONDS, shutdown_timeout_seconds))
        self._listener: Listener | None = None
        self._exempt = admission.exempt
        self.connections = Connections(admission.limits, seat or Seat(Census(), 0), admission.conceal, time.monotonic)
        # Tasks that turn accepted sockets into connections.
        self._opening: set[asyncio.Task[None]] = set()
        self._known = frozenset(posts) | {
            path for route in app.router.routes() if (path := _canonical(route)) is not None
        }

    async def start(self, sock: socket.socket) -> None:
        """Serve on this bound socket. Raises IngestError if another process is listening there."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_handler = self._dispatcher(server.request_handler)
        listener = Listener(sock, self.connections.seat, self._take, self.connections.cannot_accept)
        try:
            listener.start()
        except OSError as error:
            raise cannot_listen(sock.getsockname(), error) from None
        self._listener = listener

    def _take(self, sock: socket.socket, peer: object) -> bool:
        """Admit or close an accepted connection; returns whether to accept another in this turn of the loop."""
        connections, server = self.connections, self._runner.server
        address = peer[0] if isinstance(peer, tuple) else ""
        address = "" if not address or is_trusted(address, self._exempt) else rate_limit_key(address)
        refusal = connections.make_room(address)
        # A new descriptor gets the lowest free number, so all below it are in use.
        if sock.fileno() >= limit() - LAST_RESERVE:
            connections.cannot_accept("too many files are open")
            sock.close()
            return False
        if refusal is not None and not connections.make_spare_room():
            connections.refuse(refusal, address)
            sock.close()
            return False
        assert server is not None
        connection = ClientConnection(server, self._budget, self._finish_broken, connections, self.short_way)
        connections.admit(connection, address, refusal)
        task = asyncio.get_running_loop().create_task(self._open(connection, sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return refusal is None and not connections.is_full

    async def _open(self, connection: ClientConnection, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            logger.debug("a connection broke as it was opened: %s", error)
            self.connections.remove(connection)
            sock.close()

    async def _add_cors(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        self._cors_of(request.path).add(request, response)

    def _cors_of(self, path: str) -> Cors:
        return self._cors if self._of_events(path) else self._other_cors

    def _finish_broken(self, sent: bytes, response: web.StreamResponse) -> None:
        self._cors.add_unread(sent, response)
        response.headers["Server"] = "ingest"
        self._answered[OTHER, response.status] += 1

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Keep serving for `seconds`, or until `hurry` is set, and close each connection after its next response."""
        self.connections.draining = True
        await wait_for(hurry, seconds)

    async def stop(self) -> None:
        """Stop accepting connections, answer the requests that have arrived, close."""
        drained, self.connections.draining = self.connections.draining, True
        if self._listener is not None:
            self._listener.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._shutdown_timeout_seconds):
                    await self._finish(_NEWCOMER_SECONDS if drained else 0.0)
        await self._runner.cleanup()

    async def _finish(self, newcomer_seconds: float) -> None:
        while self._opening or self.connections.close_idle(newcomer_seconds):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    def _dispatcher(self, application: Handler) -> Handler:
        posts, known, cors_of = self._posts, self._known, self._cors_of
        prefix, named, answer_below = self._below or (None, "", None)
        cors_of_known = {path: cors_of(path) for path in known}
        connections = self.connections
        answered = self._answered

        async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
            # The routes that take events are looked up here, before the application: its router, match info and
            # middlewares take a third of a small request's time.
            connection = request.protocol
            assert isinstance(connection, ClientConnection)
            connections.begin(connection)
            if connection.has_more:
                # More requests came with this one. Other connections get a turn before those are served.
                await asyncio.sleep(0)
            path = request.raw_path.partition("?")[0]
            handler = posts.get(path)
            if handler is None and not path.startswith("/"):
                # A whole URL, as a proxy may send it.
                path = request.path
                handler = posts.get(path)
            if handler is None and prefix is not None and request.method == "POST" and path.startswith(prefix):
                handler, path = answer_below, named
            cors = cors_of_known.get(path) or cors_of(path)
            try:
                connection.is_spared = path in SPARED
                if connection.refusal is not None and not connection.is_spared and connections.is_refused(connection):
                    response: web.StreamResponse = _no_room()
                elif (outcome := connection.take_outcome()) is not None:
                    response = outcome
                elif handler is not None and request.method == "POST":
                    response = await handler(request)
                elif request.method == "OPTIONS":
                    response = cors.preflight(request)
                elif handler is not None:
                    response = problem(405, "method_not_allowed", f"{path} takes POST", {"Allow": "POST, OPTIONS"})
                else:
                    response, path = await _answer(application, request, path)
            except Exception as error:
                response = _failed(request, error)
            cors.add(request, response)
            response.headers["Server"] = "ingest"
            answered[path if path in known else OTHER, response.status] += 1
            content = request.content
            if not content.is_eof():
                # The rest of the body is discarded; if it never ends, the connection is closed.
                connection.unread = content
                if response.status != 200:
                    response.force_close()
            elif content.exception() is not None:
                response.force_close()
            if connection.refusal is not None or (connections.draining and not connection.has_more):
                response.force_close()
            connections.end(connection)
            return response

        return dispatch


async def _answer(application: Handler, request: web.BaseRequest, path: str) -> tuple[web.StreamResponse, str]:
    """The application's response, and its route for the metrics."""
    try:
        response = await application(request)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        code = error.reason.lower().replace(" ", "_")
        return problem(error.status, code, error.text or error.reason, allow), path
    assert isinstance(request, web.Request)
    route = request.match_info.route
    return response, path if route.method == "*" else _canonical(route) or path


def _failed(request: web.BaseRequest, error: Exception) -> web.StreamResponse:
    """The response to a request whose handler raised an unexpected error."""
    if request.writer.output_size:
        raise error  # The first part of another response has been sent already.
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return problem(500, "internal_error", "this is a bug in the server; see its log for details")


def _no_room() -> web.Response:
    headers = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
    return problem(503, "too_many_connections", "too many connections; try again later", headers)


def _canonical(route: web.AbstractRoute) -> str | None:
    return route.resource.canonical if route.resource is not None else None
