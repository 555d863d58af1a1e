"""Reading the body of a request within the memory budget."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import HttpVersion11, web

from ingest.base.refusals import PayloadRefused, RejectReason
from ingest.http.budget import Hold, too_slow
from ingest.http.encodings import is_packed, unpack


async def read_body(request: web.BaseRequest, hold: Hold, max_bytes: int, timeout_seconds: float) -> bytes:
    """The body, decompressed; gzip also when no header says so. Raises PayloadRefused."""
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
    """The body as it was sent; its bytes are charged to `hold`. Raises PayloadRefused.

    The connection must not decompress by itself: aiohttp takes a truncated gzip body for a complete one, and closes
    the connection on a damaged one.
    """
    content = request.content
    try:
        if not content.is_eof():
            return await _read_rest(request, hold, max_bytes, timeout_seconds)
        # The whole body has arrived already, as with nearly every request.
        body = content.read_nowait()
    except TimeoutError:
        if hold.is_dropped:
            raise too_slow() from None
        detail = f"the body did not arrive within {timeout_seconds:g} seconds"
        raise PayloadRefused(RejectReason.BODY_TIMEOUT, detail) from None
    except (web.RequestPayloadError, aiohttp.http.HttpProcessingError) as error:
        # Broken chunked encoding.
        raise PayloadRefused(RejectReason.BAD_ENCODING, f"the body cannot be read: {error}") from None
    except ConnectionError as error:
        raise PayloadRefused(RejectReason.BODY_INCOMPLETE, f"the client closed the connection: {error}") from None
    except RuntimeError as error:
        # aiohttp raises this one if we closed the connection before the body was read.
        if request.transport is not None and not request.transport.is_closing():
            raise
        raise PayloadRefused(RejectReason.BODY_INCOMPLETE, f"the connection is closed: {error}") from None
    take_whole(body, hold, max_bytes)
    return body


def take_whole(body: bytes, hold: Hold, max_bytes: int) -> None:
    """Charge a body that has arrived completely to `hold`. Raises PayloadRefused."""
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    hold.take(len(body))


async def _read_rest(request: web.BaseRequest, hold: Hold, max_bytes: int, timeout_seconds: float) -> bytes:
    promised = request.content_length or 0
    if promised > max_bytes:
        raise _too_large(max_bytes)
    hold.expect(promised)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # The response itself has not begun.
    # Not a list of the pieces: there may be as many as there are bytes.
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
            # In any case: the deadline cannot be rescheduled after this block.
            hold.arrived()
    return bytes(body)


def _too_large(max_bytes: int) -> PayloadRefused:
    return PayloadRefused(RejectReason.BODY_TOO_LARGE, f"the body is over {max_bytes} bytes")
