"""What every answer has in common: errors as JSON, CORS and rate limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
import orjson
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

from ingest.base.refusals import STATUS_OF_REASON, PayloadRefused, Refusal, RejectReason
from ingest.events.encodings import is_packed, unpack
from ingest.http.budget import Hold, too_slow

REASON_HEADER: Final = "X-Reject-Reason"
OVERLOADED_RETRY_SECONDS: Final = 5
BEARER: Final = {"WWW-Authenticate": 'Bearer realm="ingest"'}
"""Not Basic: a browser would ask its user for a password, and send it along from then on, whoever's page asks."""
_JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_ORIGIN: Final = re.compile(rb"\r\norigin:[ \t]*([!-~]{1,255})[ \t]*\r\n", re.IGNORECASE)


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=orjson.dumps(body), content_type=_JSON, headers=headers)


class Brief(web.Response):
    """A JSON answer to one of very many small requests: 200, some bytes. The client sees what it would see of any
    other; what aiohttp considers for an answer of every kind takes twice as long."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body=body, content_type=_JSON)
        self._writer: AbstractStreamWriter | None = None

    @property
    def keep_alive(self) -> bool | None:
        return True if self._writer is not None else super().keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self.keep_alive is False or not request.keep_alive or request.version != HttpVersion11:
            return await super().prepare(request)
        assert isinstance(self.body, bytes)
        self._writer = request.writer
        headers = self.headers
        headers["Content-Length"] = str(len(self.body))
        headers["Date"] = rfc822_formatted_time()
        await self._writer.write_headers("HTTP/1.1 200 OK", headers)
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        if self._writer is None:
            await super().write_eof(data)
        else:
            assert isinstance(self.body, bytes)
            await self._writer.write_eof(self.body)


def refuse(refusal: Refusal, retry_after_seconds: int | None = None) -> web.Response:
    """The answer to a request nothing of which was accepted.

    `code` and `message` are there for SDKs that index them and retry for ever when they are missing.
    """
    status = STATUS_OF_REASON.get(refusal.reason, 400)
    headers = {REASON_HEADER: refusal.reason.value}
    if status == 503:
        retry_after_seconds = OVERLOADED_RETRY_SECONDS
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(retry_after_seconds)
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="write key"'
    rejected = [{"index": None, "reason": refusal.reason.value, "detail": refusal.detail}]
    return problem(status, refusal.reason.value, refusal.detail, headers, {"accepted": 0, "rejected": rejected})


def problem(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> web.Response:
    """An error as problem+json (RFC 9457), with the members that SDKs look for and `more` beside."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        **(more or {}),
    }
    return web.Response(status=status, body=orjson.dumps(body), content_type=PROBLEM, headers=headers)


async def read_body(request: web.BaseRequest, hold: Hold, max_bytes: int, timeout_seconds: float) -> bytes:
    """The body, decompressed whether it says that it is gzip or not. Raises PayloadRefused."""
    body = await read_packed(request, hold, max_bytes, timeout_seconds)
    encoding = request.headers.get("Content-Encoding")
    if not is_packed(body, encoding):
        return body
    work = unpack(body, encoding, max_bytes)
    while True:
        try:
            hold.take(next(work) or 0)
        except StopIteration as end:
            return bytes(end.value)
        await asyncio.sleep(0)


async def read_packed(request: web.BaseRequest, hold: Hold, max_bytes: int, timeout_seconds: float) -> bytes:
    """The body as it was sent; `hold` has its bytes. Raises PayloadRefused.

    The connection must not decompress by itself: aiohttp takes a gzip body that is cut short for a whole one, and
    hangs up over one that is damaged.
    """
    content = request.content
    try:
        if not content.is_eof():
            return await _read_rest(request, hold, max_bytes, timeout_seconds)
        # All of it is here already, as with nearly every request.
        body = content.read_nowait()
    except TimeoutError:
        if hold.is_dropped:
            raise too_slow() from None
        detail = f"the body did not come within {timeout_seconds:g} seconds"
        raise PayloadRefused(RejectReason.BODY_TIMEOUT, detail) from None
    except (web.RequestPayloadError, aiohttp.http.HttpProcessingError) as error:
        # What aiohttp could not dechunk.
        raise PayloadRefused(RejectReason.BAD_ENCODING, f"the body cannot be read: {error}") from None
    except ConnectionError as error:
        raise PayloadRefused(RejectReason.BODY_INCOMPLETE, f"the client hung up: {error}") from None
    except RuntimeError as error:
        # What aiohttp raises for the same where it is we who closed the connection before the body was asked for.
        if request.transport is not None and not request.transport.is_closing():
            raise
        raise PayloadRefused(RejectReason.BODY_INCOMPLETE, f"the connection is closed: {error}") from None
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    hold.take(len(body))
    return body


async def _read_rest(request: web.BaseRequest, hold: Hold, max_bytes: int, timeout_seconds: float) -> bytes:
    promised = request.content_length or 0
    if promised > max_bytes:
        raise _too_large(max_bytes)
    hold.expect(promised)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # The answer itself has not begun.
    # Not the pieces themselves, which may be as many as there are bytes.
    body = bytearray()
    async with asyncio.timeout(timeout_seconds) as deadline:
        hold.arriving(deadline)
        try:
            while piece := await request.content.readany():
                if len(body) + len(piece) > max_bytes:
                    raise _too_large(max_bytes)
                hold.take(len(piece))
                body += piece
        finally:
            # Whatever ends it: outside of this block its deadline cannot be moved any more.
            hold.arrived()
    return bytes(body)


def _too_large(max_bytes: int) -> PayloadRefused:
    return PayloadRefused(RejectReason.BODY_TOO_LARGE, f"the body is over {max_bytes} bytes")


class Cors:
    """CORS headers for any answer, errors included: without them a browser sees a network error and retries.

    `credentials`: whether a page may have the browser send along what it keeps, cookies and Basic passwords. A beacon
    does so unasked. What such a request may read, any page of these origins may read in its visitor's name.
    """

    def __init__(self, origins: tuple[str, ...], *, credentials: bool) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)
        self._credentials = credentials

    def add(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Put the headers on an answer. Never `*` with credentials, which forbids it."""
        origin = request.headers.get("Origin")
        if origin is not None:
            self._allow(origin, response)

    def add_unread(self, sent: bytes, response: web.StreamResponse) -> None:
        """The same for a request that could not be parsed, by what of it has just come.

        If its origin is not found there, any may read the answer who is not sent cookies; unless some may not.
        """
        found = _ORIGIN.search(sent)
        if found is not None:
            self._allow(found[1].decode(), response)
            return
        response.headers["Vary"] = "Origin"
        if self._any:
            response.headers["Access-Control-Allow-Origin"] = "*"

    def _allow(self, origin: str, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["Vary"] = "Origin"
        if not self._any and origin not in self._origins:
            return
        headers["Access-Control-Allow-Origin"] = origin if self._credentials or not self._any else "*"
        if self._credentials:
            headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = f"ETag, Retry-After, {REASON_HEADER}"

    def preflight(self, request: web.BaseRequest) -> web.Response:
        """The answer to OPTIONS. A refused origin gets one without permission, which the browser enforces."""
        wanted = request.headers.get("Access-Control-Request-Headers", "")
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": wanted[:1024] or "content-type",
                "Access-Control-Max-Age": "86400",
            },
        )


_ROUNDING: Final = 1e-9


class RateLimit:
    """A token bucket for each key: `burst` at once, then `per_second`. Bounded in keys.

    When there are too many keys the older half is forgotten: an attacker with that many addresses is let
    through a little more often, but cannot fill the memory.
    """

    MAX_KEYS: Final = 100_000

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self.enabled = per_second > 0
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        # key -> (tokens, at): what was left when it was last asked.
        self._recent: dict[str, tuple[float, float]] = {}
        self._older: dict[str, tuple[float, float]] = {}

    def take(self, key: str, tokens: float = 1.0) -> float:
        """Take so many tokens: 0.0 when there were as many, else the seconds until there are.

        What costs more than the burst goes through when all of that is there; what it costs is owed then.
        """
        now = self._clock()
        left, at = self._recent.get(key) or self._older.get(key) or (self._burst, now)
        left = min(self._burst, left + (now - at) * self._per_second)
        wait = 0.0
        needed = min(tokens, self._burst)
        if left >= needed - _ROUNDING:
            left -= tokens
        else:
            wait = (needed - left) / self._per_second
        self._put(key, left, now)
        return wait

    def owe(self, key: str, tokens: float) -> None:
        """Take so many tokens, whether they are there or not."""
        now = self._clock()
        self._put(key, self._left(key, now) - tokens, now)

    def wait(self, key: str) -> float:
        """The seconds until nothing is owed; 0.0 if nothing is."""
        known = self._recent.get(key) or self._older.get(key)
        if known is None or known[0] >= 0:
            return 0.0
        left = self._left(key, self._clock())
        return -left / self._per_second if left < 0 else 0.0

    def _left(self, key: str, now: float) -> float:
        tokens, at = self._recent.get(key) or self._older.get(key) or (self._burst, now)
        return min(self._burst, tokens + (now - at) * self._per_second)

    def _put(self, key: str, tokens: float, now: float) -> None:
        self._recent[key] = (tokens, now)
        if len(self._recent) > self.MAX_KEYS // 2:
            self._older, self._recent = self._recent, {}


class Volume:
    """How many events an address may send, and how many bytes of the journal they may take; the one that it has more
    of counts, so that one bucket holds both: tokens are seconds of what it may send."""

    MAX_CLOSED: Final = 10_000

    def __init__(
        self, events_per_second: float, bytes_per_second: int, burst_seconds: int, clock: Callable[[], float]
    ) -> None:
        """0 is no limit. What it may send in `burst_seconds`, it may send at once."""
        self.enabled = events_per_second > 0 or bytes_per_second > 0
        self._event_seconds = 1 / events_per_second if events_per_second else 0.0
        self._byte_seconds = 1 / bytes_per_second if bytes_per_second else 0.0
        self._clock = clock
        self._limit = RateLimit(1.0, burst_seconds, clock)
        self.wait = self._limit.wait
        """share -> the seconds until anything may come; 0.0 if it may now."""
        # Addresses whose last body was too much -> when it would not have been. Until then no other that is long is
        # unpacked to find out the same.
        self._closed: dict[str, float] = {}

    def take(self, share: str, events: int, size: int) -> float:
        """Charge for so many events and bytes: 0.0 if they may come, else the seconds until they may."""
        wait = self._limit.take(share, max(events * self._event_seconds, size * self._byte_seconds))
        if wait:
            if len(self._closed) >= self.MAX_CLOSED:
                self._closed.clear()
            self._closed[share] = self._clock() + wait
        return wait

    def add(self, share: str, size: int) -> None:
        """Charge for so many bytes more, of what has come."""
        self._limit.owe(share, size * self._byte_seconds)

    def wait_long(self, share: str) -> float:
        """The seconds until a body may come that has to be unpacked or decoded in bites."""
        until = self._closed.get(share)
        if until is None:
            return 0.0
        wait = until - self._clock()
        if wait <= 0:
            del self._closed[share]
            return 0.0
        return wait
