"""A client's connection: the only module that uses private parts of aiohttp; tests/http/test_aiohttp_contract.py
lists them."""

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
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import _ErrInfo

from ingest.events.values.locations import rate_limit_key
from ingest.http.admission import Connections, Refusal
from ingest.http.answers import plain, problem
from ingest.http.budget import Budget, Hold
from ingest.http.framing import Framing
from ingest.http.heads import Head, peer_of
from ingest.http.short_way import Known, Outcome, ShortWay

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS: Final = 75.0
"""Longer than the 60 seconds of common load balancers, so that they close first and never send a request on a
connection that we are closing."""
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body that is refused early is read: a client that is still sending would otherwise see a
connection reset instead of the response."""
_PARSED_BYTES: Final = 32 * 1024
"""How much is parsed in one turn of the loop: 5 ms of work if it is chunks of one byte."""
_BUFFERED_BYTES: Final = 64 * 1024
"""At most twice this much of a body that is not being read yet is taken from the socket."""
_LINE_BYTES: Final = 16 * 1024
"""The longest line of a request's head. Pages send all cookies of their site on one line."""
_HEAD_BYTES: Final = 64 * 1024
"""The whole head. aiohttp limits only the length and number of lines, which adds up to 2 MB for a head that never
ends."""
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
UNREAD_SECONDS: Final = 30.0
"""How long a client may take to read 64 kB, or the rest of a response, before it is disconnected."""


class Reader(web.RequestHandler):
    """A connection that charges what its client has not read yet to the budget, once the socket's buffer is full."""

    __slots__ = ("_budget", "_unread", "_until")

    def __init__(self, manager: web.Server, budget: Budget, **settings: Any) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **settings)
        self._budget = budget
        # While the client does not read: the memory this takes, and the timer that disconnects it.
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
    """A client's connection. Broken HTTP is answered in JSON like any other error, and is logged at debug level only:
    internet scanners send plenty of it."""

    __slots__ = (
        "_broken",
        "_connections",
        "_framing",
        "_head_bytes",
        "_held",
        "_later",
        "_on_broken",
        "_opened",
        "_outcome",
        "_short_way",
        "_taken",
        "_unfinished",
        "_whole",
        "address",
        "is_spared",
        "peer",
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
        short_way: ShortWay,
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
        # Received of a head that is not complete yet.
        self._head_bytes = 0
        self._connections = connections
        # What `connections` needs, see admission.py.
        self.slot: int | None = None
        self.address, self.since, self.is_spared = "", 0.0, False
        self.refusal: Refusal | None = None
        self._opened: asyncio.Transport | None = None
        # Received bytes that could not be parsed.
        self._broken = b""
        # The rest of a large piece, to be parsed in the next turns of the loop.
        self._later: deque[bytes] = deque()
        # The whole of that piece.
        self._whole = b""
        # The body of the newest request, if it did not all arrive with the head.
        self._unfinished: StreamReader | None = None
        # The body of a request that was answered before it was read.
        self.unread: StreamReader | None = None
        # The request on the short way, what has come after it, and the outcome of one that changes to the other way.
        self._short_way = short_way
        self._taken: tuple[Known, bytes] | None = None
        self._held = b""
        self._outcome: web.Response | Exception | None = None
        self._framing = Framing()
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio.Transport.
        self._opened = cast(asyncio.Transport, transport)
        self.peer = peer_of(transport.get_extra_info("peername"))
        super().connection_made(transport)
        if self._force_close:
            # Dropped before it was connected.
            self._opened.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether it is idle: all its requests are answered, and there are no unread bytes."""
        if self._opened is None or self._request_in_progress or self._taken is not None or self.has_more:
            return False
        if self._opened.get_write_buffer_size() and time.monotonic() - self.since < LINGER_SECONDS:
            # The client may still be reading its response.
            return False
        return (self._force_close or self._waiter is not None) and not self._unseen()

    @property
    def has_more(self) -> bool:
        """Whether there are more requests, or parts of one, behind the one being served."""
        return bool(self._messages or self._later or self._held)

    def _unseen(self) -> int:
        """How many bytes are in the socket's receive buffer."""
        if self.transport is None or self.transport.is_closing():
            return 0
        found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, b"\0" * 4)
        return int(struct.unpack("i", found)[0])

    def drop(self) -> None:
        """Close it immediately; what its client has not read is lost."""
        self.force_close()
        if self._opened is not None:
            self._opened.abort()

    def data_received(self, data: bytes) -> None:
        if self._taken is not None:
            self._hold(data)
        elif not self._later and len(data) <= _PARSED_BYTES:
            known = self._short_way.recall(data) if self._is_idle else None
            if known is not None:
                self._take(*known)
            else:
                self._parse(data)
        elif not data:
            # aiohttp continues with what it has buffered.
            super().data_received(data)
        else:
            if not self._later:
                asyncio.get_running_loop().call_soon(self._parse_later)
            self._whole = data
            self._later += [data[at : at + _PARSED_BYTES] for at in range(0, len(data), _PARSED_BYTES)]
            if self.transport is not None:
                self.transport.pause_reading()

    def _resume_transport_reading(self) -> None:
        # A handler that reads its body asks for more. What has arrived is parsed first, else it would pile up.
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
        # Without its waiter, aiohttp parses and does not wake the task that serves requests.
        waiter, self._waiter = self._waiter, None
        messages, earlier, is_new = self._messages, len(self._messages), self._framing.between
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if not messages:
            complete = self._unfinished is None or self._unfinished.is_eof()
            self._framing.parsed(data, 0, None, complete)
            if complete:
                self._add_to_head(len(data))
            return
        self._head_bytes = 0
        message, body = messages[-1]
        if isinstance(message, _ErrInfo):
            self._broken = whole or data
            self._end_body(message)
            self._framing.lose()
        else:
            self._unfinished = None if body.is_eof() else body
            self._framing.parsed(data, len(messages) - earlier, _length_of(message), body.is_eof())
            known = self._short_way.learn(data, message) if is_new and self._is_idle else None
            if known is not None:
                assert self._parser is not None
                messages.clear()
                self._parser.message_consumed()
                self._take(*known)
                return
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The short way.

    @property
    def _is_idle(self) -> bool:
        """Whether the next request may go the short way."""
        waiter = self._waiter
        return (
            waiter is not None
            and self._framing.between
            and not waiter.done()
            and not self._later
            and self._outcome is None
            and self.refusal is None
            and not self.writing_paused
            and self._short_way.is_open
            and not self._connections.draining
        )

    def _take(self, known: Known, body: bytes) -> None:
        self._taken = known, body
        self._connections.begin(self)
        try:
            outcome = known.take(Head(self.peer, known.headers, known.target, known.url), body, self._settle)
        except Exception as error:
            self._settle(error)
        else:
            if outcome is not None:
                self._settle(outcome)

    def _hold(self, data: bytes) -> None:
        """Keep what comes before a request on the short way is answered."""
        self._held += data
        if data and self.transport is not None:
            self.transport.pause_reading()

    def _settle(self, outcome: Outcome) -> None:
        """Respond to the request on the short way, or have it done on the ordinary way."""
        assert self._taken is not None
        known, body = self._taken
        self._taken = None
        transport = self.transport
        if transport is None or transport.is_closing():
            # Its client is gone.
            self._short_way.count(known.path, outcome)
            return
        if isinstance(outcome, bytes) and not self._connections.draining:
            self._short_way.count(known.path, outcome)
            self._connections.end(self)
            self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS
            transport.write(self._short_way.text(known.origin, outcome))
        else:
            self._outcome = plain(outcome) if isinstance(outcome, bytes) else outcome
            self._parse(known.request(body))
        if self._held:
            held, self._held = self._held, b""
            transport.resume_reading()
            self.data_received(held)

    def take_outcome(self) -> web.Response | None:
        """The response to the request being served, if it came the short way so far. Raises what went wrong there."""
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _process_keepalive(self) -> None:
        if self._taken is not None:
            self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_SECONDS
        super()._process_keepalive()

    # Broken requests.

    def _add_to_head(self, size: int) -> None:
        """`size` bytes of an incomplete head have arrived. Closes the connection if the head is too large."""
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES and self._opened is not None and not self._opened.is_closing():
            if not self._request_in_progress and self._taken is None:
                self._opened.write(_HEAD_TOO_LARGE)
            self.force_close()

    def _end_body(self, error: _ErrInfo) -> None:
        """If the parser failed within a body, pass the error on to its reader, which would wait forever."""
        body, self._unfinished = self._unfinished, None
        if body is None or body.is_eof():
            return
        if body is self.unread:
            # It is being discarded: its request has been answered, and there is no other one to answer.
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
        detail = _first_line(message or str(exc))
        logger.debug("broken HTTP from %s: %s", request.remote, detail)
        response = problem(status, "bad_http", detail)
        self._on_broken(self._broken, response)
        response.force_close()
        return response


def _length_of(message: RawRequestMessage) -> int | None:
    """The length of a request's body; None if only the parser knows where it ends, or what comes after it."""
    if message.chunked or message.upgrade:
        return None
    length = message.headers.get("Content-Length", "0")
    return int(length) if length.isascii() and length.isdigit() else None


def _first_line(message: str) -> str:
    """The first line of a parser error: the rest quotes the client's own bytes."""
    return message.partition("\n")[0].strip(": ")[:200]
