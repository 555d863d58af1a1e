"""The short way of a request that has arrived completely: no task, no request and response objects.

A connection with nothing else to do hands head and body over at once, and writes the response when the events are
durable. Most requests of a collector are like that, and cost half as much as on the ordinary way. All others go that
way, as do those whose outcome is not a plain 200: every other response is made in one place only.

It is always aiohttp's parser that reads a head. But a head whose very bytes it has read before, when it was between
two requests as it is now, need not be read again, whatever the digits of its Content-Length: it would read the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ingest.http.answers import plain
from ingest.http.cors import Cors
from ingest.http.heads import Head

Outcome = bytes | web.Response | Exception
"""The body of a plain 200; or any other response; or a bug."""
Take = Callable[[Head, bytes, Callable[[Outcome], None]], web.Response | None]
"""Takes head and body of a request. Returns its response if it is known at once, else calls back with its outcome."""

_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([1-9][0-9]{0,8})\r\n")
_END: Final = b"\r\n\r\n"
_ORDINARY: Final = ("Expect", "Content-Encoding", "Transfer-Encoding", "Upgrade")
"""Requests with any of these headers go the ordinary way."""
_KNOWN_BYTES: Final = 2048
"""The longest head that is remembered."""
_KNOWN_HEADERS: Final = 32
"""A header takes some hundred bytes of memory, however short it is."""
_KNOWN_HEADS: Final = 1024
_TEXTS: Final = 1024
_ORIGIN_CHARACTERS: Final = 256
"""The longest origin whose responses' head is kept."""


class Known(msgspec.Struct, frozen=True, eq=False):
    """A head that the parser has read. `before` and `after` are its bytes around the digits of its Content-Length:
    with other digits, the parser would read the same, but for the length."""

    before: bytes
    after: bytes
    path: str
    take: Take
    headers: CIMultiDictProxy[str]
    target: str
    url: URL
    origin: str | None

    def request(self, body: bytes) -> bytes:
        """The whole request with this body, as it was sent."""
        return b"%b%d%b%b" % (self.before, len(body), self.after, body)


class ShortWay:
    """What the connections of a server share of it."""

    def __init__(self, takers: Mapping[str, Take], cors: Cors, answered: Counter[tuple[str, int]]) -> None:
        """`takers`: by path, for POST requests.  `answered`: counts responses by route and status."""
        # Tests close it to compare both ways.
        self.is_open = True
        self._takers = takers
        self._cors = cors
        self._answered = answered
        # By the bytes before and after the digits of their Content-Length.
        self._known: dict[tuple[bytes, bytes], Known] = {}
        self._head = lru_cache(maxsize=_TEXTS)(self._head_of)

    def recall(self, received: bytes) -> tuple[Known, bytes] | None:
        """The head and the body, if this is a whole request and its head is known."""
        end = received.find(_END) + len(_END)
        length = _LENGTH.search(received, 0, end)
        if length is None or len(received) - end != int(length[1]):
            return None
        start, stop = length.span(1)
        known = self._known.get((received[:start], received[stop:end]))
        return (known, received[end:]) if known is not None else None

    def learn(self, received: bytes, message: RawRequestMessage) -> tuple[Known, bytes] | None:
        """The head and the body of a whole request, which the parser has just read, if it can go this way."""
        if message.method != "POST":
            return None
        path = message.path.partition("?")[0]
        take = self._takers.get(path)
        end = received.find(_END) + len(_END)
        length = _LENGTH.search(received, 0, end)
        if (
            take is None
            or length is None
            or len(received) - end != int(length[1])
            or message.should_close
            or message.chunked
            or message.upgrade
            or message.version != HttpVersion11
        ):
            return None
        headers = message.headers
        for name in _ORDINARY:
            if name in headers:
                return None
        origin = headers.get("Origin")
        if origin is not None and not (origin.isascii() and origin.isprintable()):
            return None
        start, stop = length.span(1)
        before, after = received[:start], received[stop:end]
        # The length is that of one body only.
        others = CIMultiDict(headers)
        del others["Content-Length"]
        known = Known(before, after, path, take, CIMultiDictProxy(others), message.path, message.url, origin)
        if end <= _KNOWN_BYTES and len(headers) <= _KNOWN_HEADERS:
            if len(self._known) >= _KNOWN_HEADS:
                self._known.clear()
            self._known[before, after] = known
        return known, received[end:]

    def text(self, origin: str | None, body: bytes) -> bytes:
        """A plain 200 as it is sent."""
        head = self._head if origin is None or len(origin) <= _ORIGIN_CHARACTERS else self._head_of
        return head(origin, len(body), rfc822_formatted_time()) + body

    def _head_of(self, origin: str | None, size: int, date: str) -> bytes:
        headers = plain(b"").headers
        if origin is not None:
            headers.update(self._cors.headers_for(origin))
        headers.update({"Server": "ingest", "Content-Length": str(size), "Date": date})
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        return f"HTTP/1.1 200 OK\r\n{''.join(lines)}\r\n".encode()

    def count(self, path: str, outcome: Outcome) -> None:
        """Count a request that is answered here."""
        status = outcome.status if isinstance(outcome, web.Response) else 200 if isinstance(outcome, bytes) else 500
        self._answered[path, status] += 1
