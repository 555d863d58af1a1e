"""One HTTP server: routes that take events in front, the application behind them, CORS on every answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import termios
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, cast

from aiohttp import StreamReader, web
from aiohttp.web_protocol import _ErrInfo

from ingest.base.descriptors import LAST_RESERVE, limit
from ingest.base.errors import IngestError
from ingest.base.waits import wait_for
from ingest.events.values.locations import Network, is_trusted, rate_limit_key
from ingest.http.admission import Connections, Limits, Refusal
from ingest.http.answers import OVERLOADED_RETRY_SECONDS, Cors, problem
from ingest.http.budget import Budget
from ingest.http.census import Census, Seat
from ingest.http.listener import Listener
from ingest.http.unread import Reader

logger = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than the 60 seconds of common balancers, so that they close first and no request meets a closing end."""
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body that is refused early is read: a client that still sends would otherwise meet a
reset connection instead of the answer."""
OTHER: Final = "other"
"""The route of every request to a path that is not ours: a client cannot make the metrics grow."""
SPARED: Final = frozenset(("/healthz", "/readyz", "/metrics"))
"""What is answered when there is no room for more connections."""
_CLOSING_SECONDS: Final = 1.0
"""How long a request may still take that was cancelled because it did not end in time."""
_NEWCOMER_SECONDS: Final = 1.0
"""A connection that came so shortly before the end gets the time to say what it came for."""
_LOOK_SECONDS: Final = 0.02
_PARSED_BYTES: Final = 32 * 1024
"""Of what comes, this much is parsed in a turn of the loop: 5 ms, if it is chunks of one byte."""
_BUFFERED_BYTES: Final = 64 * 1024
"""Twice as much of a body that nobody reads yet is taken from the socket, and no more."""
_LINE_BYTES: Final = 16 * 1024
"""The longest line of a request's head. Pages send all cookies of their site, which are one line."""
_HEAD_BYTES: Final = 64 * 1024
"""All lines of a head together. aiohttp limits each of them, and how many there are: 2 MB for who never ends."""
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class _Connection(Reader):
    """A client's connection. Broken HTTP is answered in JSON like any other error, and is no error of ours: the log
    stays quiet, whoever scans the internet."""

    __slots__ = (
        "_broken", "_connections", "_head_bytes", "_later", "_on_broken", "_opened", "_unfinished", "_whole",
        "address", "is_spared", "refusal", "since", "slot", "unread",
    )  # fmt: skip

    def __init__(
        self,
        manager: web.Server,
        budget: Budget,
        on_broken: Callable[[bytes, web.StreamResponse], None],
        connections: Connections,
    ) -> None:
        super().__init__(
            manager,
            budget,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            auto_decompress=False,
            read_bufsize=_BUFFERED_BYTES,
        )
        self._max_msg_queue_size, self._msg_queue_resume_size = 2, 0
        self._on_broken = on_broken
        # Of the head that has begun to come.
        self._head_bytes = 0
        self._connections = connections
        # What `connections` knows of it.
        self.slot: int | None = None
        self.address, self.since, self.is_spared = "", 0.0, False
        self.refusal: Refusal | None = None
        self._opened: asyncio.Transport | None = None
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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's have other classes.
        self._opened = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        if self._force_close:
            # Dropped before it was made.
            self._opened.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether every request that came is answered, and nothing has come that was not looked at."""
        if self._opened is None or self._request_in_progress or self.has_more:
            return False
        if self._opened.get_write_buffer_size() and time.monotonic() - self.since < LINGER_SECONDS:
            # The client reads its answer still; or never will.
            return False
        return (self._force_close or self._waiter is not None) and not self._unseen()

    @property
    def has_more(self) -> bool:
        """Whether there are requests, or bytes of some, behind the one that is being served."""
        return bool(self._messages or self._later)

    def _unseen(self) -> int:
        """Bytes that the system has for us."""
        if self.transport is None or self.transport.is_closing():
            return 0
        found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", found)[0])

    def drop(self) -> None:
        """Close it at once, whatever it has not read yet."""
        self.force_close()
        if self._opened is not None:
            self._opened.abort()

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
            if self._unfinished is None or self._unfinished.is_eof():
                self._add_to_head(len(data))
            return
        self._head_bytes = 0
        message, body = messages[-1]
        if message.__class__ is _ErrInfo:
            self._broken = whole or data
            self._end_body(message)
        else:
            self._unfinished = None if body.is_eof() else body

    def _add_to_head(self, size: int) -> None:
        """What came is part of a request's head that has not ended yet."""
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES and self._opened is not None and not self._opened.is_closing():
            if not self._request_in_progress:
                self._opened.write(_HEAD_TOO_LARGE)
            self.force_close()

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


class Admission(NamedTuple):
    """How many connections a server may have; those of `exempt` peers are not counted by address."""

    limits: Limits
    exempt: tuple[Network, ...] = ()
    conceal: Callable[[str], str] = str


class Server:
    """Serves on sockets that the caller has bound. `stop` waits for the requests in flight; repeatable."""

    def __init__(
        self,
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
    ) -> None:
        """seat: of this worker, where several share the socket.  answered: counts answers by route and status.
        posts: path -> handler of its POST requests.  below: the same for all paths that begin with a text: that
        text, their name in the metrics, the handler.  cors: for paths that are `of_events`, and for the others."""
        self._posts = posts
        self._below = below
        self._cors, self._other_cors = cors
        self._of_events = of_events
        self._answered = answered
        self._budget = budget
        # What an answer that is a stream has in its head must be there before its handler is done.
        app.on_response_prepare.append(self._add_cors)
        self._shutdown_timeout_seconds = shutdown_timeout_seconds
        self._runner = web.AppRunner(app, shutdown_timeout=min(_CLOSING_SECONDS, shutdown_timeout_seconds))
        self._listener: Listener | None = None
        self._exempt = admission.exempt
        self.connections = Connections(admission.limits, seat or Seat(Census(), 0), admission.conceal, time.monotonic)
        # What makes connections of accepted sockets.
        self._opening: set[asyncio.Task[None]] = set()
        self._known = frozenset(posts) | {
            path for route in app.router.routes() if (path := _canonical(route)) is not None
        }

    async def start(self, sock: socket.socket) -> None:
        """Serve on this bound socket. Raises IngestError when another process listens there."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_handler = self._dispatcher(server.request_handler)
        listener = Listener(sock, self.connections.seat, self._take, self.connections.cannot_accept)
        try:
            listener.start()
        except OSError as error:
            raise _cannot_listen(sock.getsockname(), error) from None
        self._listener = listener

    def _take(self, sock: socket.socket, peer: object) -> bool:
        """Give an accepted connection its place, or none; whether to accept another in this turn of the loop."""
        connections, server = self.connections, self._runner.server
        address = peer[0] if isinstance(peer, tuple) else ""
        address = "" if not address or is_trusted(address, self._exempt) else rate_limit_key(address)
        refusal = connections.make_room(address)
        # The system gives the lowest number that is free: all below it are taken.
        if sock.fileno() >= limit() - LAST_RESERVE:
            connections.cannot_accept("too many files are open")
            sock.close()
            return False
        if refusal is not None and not connections.make_spare_room():
            connections.refuse(refusal, address)
            sock.close()
            return False
        assert server is not None
        connection = _Connection(server, self._budget, self._finish_broken, connections)
        connections.admit(connection, address, refusal)
        task = asyncio.get_running_loop().create_task(self._open(connection, sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return refusal is None and not connections.is_full

    async def _open(self, connection: _Connection, sock: socket.socket) -> None:
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
        """Go on for so long, or until told to hurry, but with each answer as the last of its connection."""
        self.connections.draining = True
        await wait_for(hurry, seconds)

    async def stop(self) -> None:
        """Accept nobody any more, answer what has come, close."""
        drained, self.connections.draining = self.connections.draining, True
        if self._listener is not None:
            self._listener.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._shutdown_timeout_seconds):
                    await self._finish(_NEWCOMER_SECONDS if drained else 0.0)
        await self._runner.cleanup()

    async def _finish(self, newcomer_seconds: float) -> None:
        while self._opening or self.connections.hang_up(newcomer_seconds):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    def _dispatcher(self, application: Handler) -> Handler:
        posts, known, cors_of = self._posts, self._known, self._cors_of
        prefix, named, answer_below = self._below or (None, "", None)
        cors_of_known = {path: cors_of(path) for path in known}
        connections = self.connections
        answered = self._answered

        async def dispatch(request: web.BaseRequest) -> web.StreamResponse:
            # The routes that take events are found here, in front of the application: its router, match info
            # and middlewares cost a third of a small request.
            connection = request.protocol
            assert isinstance(connection, _Connection)
            connections.begin(connection)
            if connection._messages:
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
            cors = cors_of_known.get(path) or cors_of(path)
            try:
                connection.is_spared = path in SPARED
                if connection.refusal is not None and not connection.is_spared and connections.is_refused(connection):
                    response: web.StreamResponse = _no_room()
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
                # What is left of the body is thrown away; if it never ends, the connection does.
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


def _no_room() -> web.Response:
    headers = {"Retry-After": str(OVERLOADED_RETRY_SECONDS)}
    return problem(503, "too_many_connections", "there are too many connections; try again later", headers)


def _canonical(route: web.AbstractRoute) -> str | None:
    return route.resource.canonical if route.resource is not None else None


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to host and port, not listening yet.

    Raises IngestError with one clear line when the address is taken or is not ours.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            return sock
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _cannot_listen((host, port), error) from None


def _cannot_listen(address: object, error: OSError) -> IngestError:
    where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
    reason = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return IngestError(f"cannot listen on {where}: {reason}")


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
