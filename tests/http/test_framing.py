"""Where requests begin and end, compared with aiohttp's parser: never between two requests when it is not."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from ingest.http.framing import Framing

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab\r\n\r",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
]


@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4), st.sets(st.integers(1, 200), max_size=6))
def test_it_agrees_with_the_parser(several: list[bytes], places: set[int]):
    sent = b"".join(several)
    cuts = sorted(place for place in places if place < len(sent))
    ends = {len(b"".join(several[: count + 1])) for count in range(len(several))}
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16, payload_exception=web.RequestPayloadError)
        framing, body = Framing(), None
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            found, _, _ = parser.feed_data(sent[start:end])
            length = int(found[-1][0].headers.get("Content-Length", 0)) if found else None
            body = found[-1][1] if found else body
            framing.parsed(sent[start:end], len(found), length, body is None or body.is_eof())
            assert not framing.between or end in ends
    finally:
        loop.close()


@given(st.lists(st.sampled_from(REQUESTS[:4]), min_size=1, max_size=4))
def test_it_finds_the_end_of_each_request_that_comes_alone(several: list[bytes]):
    framing = Framing()
    for request in several:
        body = request.partition(b"\r\n\r\n")[2]
        framing.parsed(request[:7], 0, None, True)
        assert not framing.between
        framing.parsed(request[7:], 1, len(body), True)
        assert framing.between
    framing.lose()
    framing.parsed(several[0], 1, 0, True)
    assert not framing.between
