"""One HTTP server: routes that take events in front, the application behind them, CORS on every answer."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.web_protocol import _ErrInfo

from ingest.errors import IngestError
from ingest.http import Connections, Cors, problem
from ingest.metrics import Metrics

logger = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than the 60 seconds of common balancers, so that they close first and no request meets a closing end."""
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body that is refused early is read: a client that still sends would otherwise meet a
reset connection instead of the answer."""
OTHER: Final = "other"
"""The route of every request to a path that is not ours: a client cannot make the metrics grow."""
_BACKLOG: Final = 1024
_PARSED_BYTES: Final = 32 * 1024
"""Of what comes, this much is parsed in a turn of the loop: 5 ms, if it is chunks of one byte."""
_BUFFERED_BYTES: Final = 64 * 1024
"""Twice as much of a body that nobody reads yet is taken from the socket, and no more."""
_LINE_BYTES: Final = 16 * 1024
"""The longest line of a request's head. Pages send all cookies of their site, which are one line."""


class _Connection(web.RequestHandler):
    """A client's connection. Broken HTTP is answered in JSON like any other error, and is no error of ours: the log
    stays quiet, whoever scans the internet."""

    __slots__ = ("_broken", "_later", "_on_broken", "_unfinished", "_whole", "unread")

    def __init__(self, manager: web.Server, on_broken: Callable[[bytes, web.StreamResponse], None]) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp passes None itself
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            auto_decompress=False,
            read_bufsize=_BUFFERED_BYTES,
        )
        self._max_msg_queue_size, self._msg_queue_resume_size = 2, 0
        self._on_broken = on_broken
        # What came and could not be parsed.
        self._broken = b""
        # What came in one piece with what is being parsed, until the next turns of the loop.
        self._later: deque[bytes] = deque()
        # All of that piece.
        self._whole = b""
        # The body of the newest request, if not all of it had come with the head.
        self._unfinished: StreamReader | None = None
        # The body of a request that was answered without it.
        self.unread: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        if not self._later and len(data) <= _PARSED_BYTES:
            self._parse(data)
            return
        if not data:
            # aiohttp goes on with what it has.
            super().data_received(data)
            return
        if not self._later:
            asyncio.get_running_loop().call_soon(self._parse_later)
        self._whole = data
        self._later += [data[at : at + _PARSED_BYTES] for at in range(0, len(data), _PARSED_BYTES)]
        if self.transport is not None:
            self.transport.pause_reading()

    def _resume_transport_reading(self) -> None:
        # Whoever reads a body asks for more of it. What has come is parsed first, or there would be no end to it.
        if not self._later:
            super()._resume_transport_reading()

    def _parse_later(self) -> None:
        if self.transport is None or self.transport.is_closing():
            self._later.clear()
            return
        whole, data = self._whole, self._later.popleft()
        if self._later:
            asyncio.get_running_loop().call_soon(self._parse_later)
        else:
            self._whole = b""
            if not self._reading_paused and not self._buffer_paused:
                self.transport.resume_reading()
        self._parse(data, whole)

    def _parse(self, data: bytes, whole: bytes = b"") -> None:
        super().data_received(data)
        messages = self._messages
        if not messages:
            return
        message, body = messages[-1]
        if message.__class__ is _ErrInfo:
            self._broken = whole or data
            self._end_body(message)
        else:
            self._unfinished = None if body.is_eof() else body

    def _end_body(self, error: _ErrInfo) -> None:
        """If what came was the rest of a body, tell who reads that body: it would wait for more in vain."""
        body, self._unfinished = self._unfinished, None
        if body is None or body.is_eof():
            return
        if body is self.unread:
            # Only thrown away. The request has its answer, and there is no other one to answer.
            self.close()
        else:
            body.set_exception(web.RequestPayloadError(_first_line(error.message or str(error.exc))))
        body.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        told = _first_line(message or str(exc))
        logger.debug("broken HTTP from %s: %s", request.remote, told)
        response = problem(status, "bad_http", told)
        self._on_broken(self._broken, response)
        response.force_close()
        return response


def _first_line(message: str) -> str:
    """Of an error of the parser: what follows shows the client its own bytes."""
    return message.partition("\n")[0].strip(": ")[:200]


class Server:
    """Serves on sockets that the caller has bound. `stop` waits for the requests in flight; repeatable."""

    def __init__(
        self,
        posts: Mapping[str, Handler],
        app: web.Application,
        cors: tuple[Cors, Cors],
        of_events: Callable[[str], bool],
        metrics: Metrics,
        shutdown_timeout_seconds: float,
        below: tuple[str, str, Handler] | None = None,
    ) -> None:
        """posts: path -> handler of its POST requests.  below: the same for all paths that begin with a text: that
        text, their name in the metrics, the handler.  cors: for paths that are `of_events`, and for the others."""
        self._posts = posts
        self._below = below
        self._cors, self._other_cors = cors
        self._of_events = of_events
        self._metrics = metrics
        # What an answer that is a stream has in its head must be there before its handler is done.
        app.on_response_prepare.append(self._add_cors)
        self._runner = web.AppRunner(app, shutdown_timeout=shutdown_timeout_seconds)
        self._listener: asyncio.Server | None = None
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
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(server, self._finish_broken), sock=sock, backlog=_BACKLOG
        )

    async def _add_cors(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        self._cors_of(request.path).add(request, response)

    def _cors_of(self, path: str) -> Cors:
        return self._cors if self._of_events(path) else self._other_cors

    def _finish_broken(self, sent: bytes, response: web.StreamResponse) -> None:
        self._cors.add_unread(sent, response)
        response.headers["Server"] = "ingest"
        self._metrics.requests[OTHER, response.status] += 1

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def _dispatcher(self, application: Handler) -> Handler:
        posts, known, cors_of = self._posts, self._known, self._cors_of
        prefix, named, answer_below = self._below or (None, "", None)
        served = self.connections.served
        requests = self._metrics.requests

        async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
            # The routes that take events are found here, in front of the application: its router, match info
            # and middlewares cost a third of a small request.
            served.add(request.protocol)
            if request.protocol._messages:
                # More requests came with it. Others get their turn, too, before those are served.
                await asyncio.sleep(0)
            path = request.raw_path.partition("?")[0]
            handler = posts.get(path)
            if handler is None and not path.startswith("/"):
                # A whole URL, as a proxy may send it.
                path = request.path
                handler = posts.get(path)
            if handler is None and prefix is not None and request.method == "POST" and path.startswith(prefix):
                handler, path = answer_below, named
            cors = cors_of(path)
            try:
                if handler is not None and request.method == "POST":
                    response: web.StreamResponse = await handler(request)
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
            requests[path if path in known else OTHER, response.status] += 1
            content = request.content
            if not content.is_eof():
                # What is left of the body is thrown away; if it never ends, the connection does.
                assert isinstance(request.protocol, _Connection)
                request.protocol.unread = content
                if response.status != 200:
                    response.force_close()
            elif content.exception() is not None:
                response.force_close()
            return response

        return dispatch


async def _answer(application: Handler, request: web.BaseRequest, path: str) -> tuple[web.StreamResponse, str]:
    """The application's answer, and its route for the metrics."""
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
    """The answer to a request that a bug of ours has stopped."""
    if request.writer.output_size:
        raise error  # The client has the first half of another answer.
    logger.error("%s %s failed", request.method, request.path, exc_info=error)
    return problem(500, "internal_error", "this is a bug of the server; its log says more")


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
