"""A client's connection: the only module that touches what aiohttp calls private; tests/http/test_aiohttp_contract.py
says what that is."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.web_protocol import _ErrInfo

from ingest.events.values.locations import rate_limit_key
from ingest.http.admission import Connections, Refusal
from ingest.http.answers import problem
from ingest.http.budget import Budget, Hold

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than the 60 seconds of common balancers, so that they close first and no request meets a closing end."""
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body that is refused early is read: a client that still sends would otherwise meet a
reset connection instead of the answer."""
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
UNREAD_SECONDS: Final = 30.0
"""How long a client may take to read 64 kB, or what is left of an answer, before it is disconnected."""


class Reader(web.RequestHandler):
    """A connection that knows what its client has not read yet, once the system takes no more of it."""

    __slots__ = ("_budget", "_unread", "_until")

    def __init__(self, manager: web.Server, budget: Budget, **settings: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **settings)
        self._budget = budget
        # While it does not read: what it holds, and when it is disconnected.
        self._unread: Hold | None = None
        self._until: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        transport = self.transport
        if transport is None:
            return
        peer = transport.get_extra_info("peername")
        self._unread = self._budget.hold(rate_limit_key(peer[0]) if isinstance(peer, tuple) else "")
        self._unread.add(transport.get_write_buffer_size())
        self._until = self._loop.call_later(UNREAD_SECONDS, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._until is not None:
            self._until.cancel()
        if self._unread is not None:
            self._unread.release()
        self._until = self._unread = None


class ClientConnection(Reader):
    """A client's connection. Broken HTTP is answered in JSON like any other error, and is no error of ours: the log
    stays quiet, whoever scans the internet."""

    __slots__ = (
        "_broken",
        "_connections",
        "_head_bytes",
        "_later",
        "_on_broken",
        "_opened",
        "_unfinished",
        "_whole",
        "address",
        "is_spared",
        "refusal",
        "since",
        "slot",
        "unread",
    )

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
        """If what came was the rest of a body, tell whoever reads that body, who would wait forever."""
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
