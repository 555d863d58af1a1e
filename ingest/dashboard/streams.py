"""Server-sent events to many viewers: each message is made once, and given only to those who have read the last one.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from aiohttp import HttpVersion11, web

from ingest.base.waits import wait_for
from ingest.http.answers import problem

RETRY_SECONDS: Final = 10
CHECK_SECONDS: Final = 3.0
"""How often a viewer is asked whether it may still look."""
_MOST_SKIPPED: Final = 60
"""A viewer that has read nothing during this many messages is disconnected: it keeps others from its place."""
_SOCKET_BYTES: Final = 64 * 1024
"""Of messages that the system keeps for a viewer that does not read them: they only become old."""
_GROUP: Final = 4
"""Viewers that get a message in one turn of the loop, in a quarter of a millisecond or so."""
_PAUSE_SECONDS: Final = 0.01
_OPENING: Final = b"retry: 2000\n\n"
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # nginx would collect the messages.
    "X-Accel-Buffering": "no",
}


class Message(NamedTuple):
    """The text of a message, and the same as a chunk of HTTP/1.1."""

    text: bytes
    chunk: bytes

    @classmethod
    def of(cls, text: bytes) -> Message:
        return cls(text, b"%x\r\n%b\r\n" % (len(text), text))


class Viewer:
    """A response that is being streamed. `ended` is set when it is to end, for whatever reason."""

    def __init__(self, transport: asyncio.WriteTransport, *, is_chunked: bool) -> None:
        self._transport = transport
        self._is_chunked = is_chunked
        self._skipped = 0
        self.ended = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        """Whether the connection is closed."""
        return self._transport.is_closing()

    def offer(self, message: Message) -> None:
        """Send the message, unless part of an earlier one still waits to be sent."""
        if self._transport.is_closing():
            self.ended.set()
        elif self._transport.get_write_buffer_size():
            self._skipped += 1
            if self._skipped > _MOST_SKIPPED:
                self.hang_up()
        else:
            self._skipped = 0
            self._transport.write(message.chunk if self._is_chunked else message.text)

    def hang_up(self) -> None:
        """Close the connection; what the viewer has not read is lost."""
        self._transport.abort()
        self.ended.set()

    def hang_up_if_stuck(self) -> None:
        """Close the connection if its end could not be sent now."""
        if self._transport.get_write_buffer_size():
            self.hang_up()


class Streams:
    """The streams that are open. Changed by `opened`, as streams begin and end, and by `close`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._closed = False
        # Including those that have had no message yet.
        self._taken = 0
        self.viewers: dict[Viewer, None] = {}

    @property
    def refusal(self) -> web.Response | None:
        """The answer to one more viewer, if there can be none."""
        headers = {"Retry-After": str(RETRY_SECONDS)}
        if self._closed:
            return problem(503, "stopping", "the service stops or restarts; try again later", headers)
        if self._taken >= self._limit:
            detail = f"{self._limit} viewers are watching, which is the limit; try again later"
            return problem(503, "too_many_viewers", detail, headers)
        return None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold one of the places; ask for a `refusal` first."""
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def serve(
        self, request: web.Request, first: Callable[[], bytes], still_valid: Callable[[], bool]
    ) -> web.StreamResponse:
        """Stream until the viewer leaves, may look no longer, or this is closed. `first` makes its first message."""
        response = web.StreamResponse(headers=_HEADERS)
        is_chunked = request.version >= HttpVersion11
        if is_chunked:
            response.enable_chunked_encoding()
        # Its socket is not as others are.
        response.force_close()
        await response.prepare(request)
        with suppress(ConnectionError):
            await response.write(_OPENING)
        transport = request.transport
        if transport is None or transport.is_closing() or self._closed:
            return response
        _shrink(transport)
        viewer = Viewer(transport, is_chunked=is_chunked)
        viewer.offer(Message.of(first()))
        self.viewers[viewer] = None
        try:
            while not await wait_for(viewer.ended, CHECK_SECONDS):
                if viewer.is_gone or not still_valid():
                    break
        finally:
            del self.viewers[viewer]
        viewer.hang_up_if_stuck()
        return response

    async def send(self, text: bytes, seconds: float) -> None:
        """Give the message to all viewers, a few at a time: all at once would hold the loop for milliseconds."""
        message, viewers = Message.of(text), list(self.viewers)
        groups = [viewers[at : at + _GROUP] for at in range(0, len(viewers), _GROUP)]
        for group in groups:
            for viewer in group:
                viewer.offer(message)
            if group is not groups[-1]:
                await asyncio.sleep(min(_PAUSE_SECONDS, seconds / len(groups)))

    def close(self) -> None:
        """End all streams, and accept no more."""
        self._closed = True
        for viewer in self.viewers:
            viewer.ended.set()


def _shrink(transport: asyncio.BaseTransport) -> None:
    connected = transport.get_extra_info("socket")
    if connected is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
