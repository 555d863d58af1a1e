"""Whatever is sent: an honest status, a JSON body, a quiet log, and no loss for well-behaved clients."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.refusals import RejectReason
from ingest.http.admission import FIRST_REQUEST_SECONDS
from ingest.intake.collect import NATIVE_PATH, SEGMENT_CALLS
from tests.support.collector import Answer, Client, Raw, Start, errors

PATHS = [NATIVE_PATH, *SEGMENT_CALLS]
DOCUMENTED = {200, 400, 401, 404, 405, 408, 413, 429, 503}
GOOD = b'{"name":"good"}'


def post(body: bytes, path: str = NATIVE_PATH, *headers: str) -> bytes:
    """A whole request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


CHUNKED = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def short_lingering(monkeypatch):
    """How long the rest of a refused body is read: short, so that no test waits for it."""
    monkeypatch.setattr("ingest.http.connections.LINGER_SECONDS", 0.3)


@pytest.fixture(autouse=True)
async def nothing_in_the_log(client: Client, caplog) -> AsyncIterator[None]:
    """After each test the worker is healthy and has logged no error."""
    yield
    assert errors(caplog) == []
    assert (await client.get("/readyz")).json()["status"] == "ready"
    assert (await client.post({"name": "after"})).status == 200
    fives = {name: value for name, value in (await client.metrics()).items() if 'status="5' in name}
    assert not [name for name in fives if 'status="503"' not in name], fives


def assert_documented(answer: Answer) -> None:
    assert answer.status in DOCUMENTED, answer
    reply = answer.json()
    if answer.status == 200:
        assert reply["accepted"] >= 1
    else:
        assert reply["code"] and reply["message"], reply


# Malformed bodies.

MALFORMED = [
    b"{",
    b"[",
    b"[{",
    b'{"name"}',
    b'{"name":}',
    b'{"name":"a"',
    b'{"name":"a",}',
    b'[{"name":"a"},]',
    b"{'name':'a'}",
    b'{name:"a"}',
    b'{"name":"a"} x',
    b'{"name":"a"}{"name":"b"}',
    b'{"name":"a\nb"}',
    b'{"name":"a\x00"}',
    b'{"name":"\\x"}',
    b'{"name":"\\u12"}',
    b'{"name":NaN}',
    b'{"name":"a","properties":{"x":NaN}}',
    b'{"name":"a","properties":{"x":Infinity}}',
    b'{"name":"a","properties":{"x":01}}',
    b'{"name":"a","properties":{"x":1.}}',
    b'{"name":"a","properties":{"x":.5}}',
    b'{"name":"a","properties":{"x":+1}}',
    b'{"name":"a","properties":{]}}',
    b'{"name":"a","properties":{"x":tru}}',
    b"null",
    b"true",
    b"7",
    b'"text"',
    b"<xml/>",
    b"name=a&value=b",
    b"\x00" * 100,
    b"\xff\xfe{\x00\x00}",
    '{"name":"a"'.encode("utf-16"),
    b"\x80\x81",
]


async def test_malformed_json_is_a_400_that_says_so(client: Client):
    async with await client.raw() as raw:
        for body in MALFORMED:
            await raw.send(post(body))
            answer = await raw.answer()
            assert (answer.status, answer.json()["code"]) == (400, "malformed_json"), body
            assert "connection" not in answer.headers
    assert client.worker.accounts.rejected[RejectReason.MALFORMED_JSON] == len(MALFORMED)
    assert client.worker.accounts.pending == 0
    # All of them are kept and readable, whatever their bytes.
    assert len(await client.rejected()) == len(MALFORMED)


WRONG: list[tuple[Any, str]] = [
    ({}, "missing_name"),
    ({"name": None}, "missing_name"),
    ({"name": "  "}, "missing_name"),
    ({"name": 7}, "invalid_name"),
    ({"name": ["a"]}, "invalid_name"),
    ({"name": "a" * 101}, "invalid_name"),
    ({"name": "a", "type": 7}, "invalid_type"),
    ({"name": "a", "type": "click"}, "invalid_type"),
    ({"name": "a", "id": {}}, "invalid_id"),
    ({"name": "a", "id": True}, "invalid_id"),
    ({"name": "a", "id": "x" * 256}, "invalid_id"),
    ({"name": "a", "timestamp": "soon"}, "invalid_timestamp"),
    ({"name": "a", "timestamp": [2020]}, "invalid_timestamp"),
    ({"name": "a", "timestamp": 1e300}, "invalid_timestamp"),
    ({"name": "a", "timestamp": -(10**18)}, "invalid_timestamp"),
    ({"name": "a", "timestamp": "0001-01-01T00:00:00+14:00"}, "too_old"),
    ({"name": "a", "timestamp": "1999-12-31T23:59:59Z"}, "too_old"),
    ({"name": "a", "timestamp": "9999-12-31T23:59:59Z"}, "in_future"),
    ({"name": "a", "user_id": []}, "invalid_field"),
    ({"name": "a", "user_id": "u" * 256}, "field_too_long"),
    ({"name": "a", "url": 7}, "invalid_field"),
    ({"name": "a", "properties": []}, "invalid_properties"),
    ({"name": "a", "properties": "text"}, "invalid_properties"),
    ({"name": "a", "context": 7}, "invalid_context"),
    ({"name": "a", "properties": {"filler": "x" * 70_000}}, "event_too_large"),
    (7, "not_an_object"),
    (None, "not_an_object"),
    ([], "not_an_object"),
]


async def test_wrong_types_have_their_reason_and_do_not_affect_other_events(client: Client):
    reply = (await client.post([each for wrong, _ in WRONG for each in (wrong, {"name": "good"})])).json()
    assert reply["accepted"] == len(WRONG)
    assert [each["reason"] for each in reply["rejected"]] == [reason for _, reason in WRONG]
    assert [each["index"] for each in reply["rejected"]] == list(range(0, 2 * len(WRONG), 2))
    assert await client.names() == ["good"] * len(WRONG)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"name":"a","properties":{"x":1e99999}}', "number_out_of_range"),
        (b'{"name":"a","properties":{"x":%b}}' % (b"9" * 60_000), "number_out_of_range"),
        (b'{"name":"a","properties":{"x":"\xff"}}', "invalid_utf8"),
        (b'{"name":"\xff"}', "invalid_utf8"),
        (b'{"name":"a","timestamp":%b}' % (b"9" * 5000), "invalid_timestamp"),
        (b'{"name":"a","properties":%b}' % (b'{"a":' * 40 + b"1" + b"}" * 40), "nested_too_deep"),
    ],
)
async def test_what_postgres_could_not_hold_is_refused_at_the_door(client: Client, text: bytes, reason: str):
    answer = await client.post(b'[%b,{"name":"good"}]' % text)
    reply = answer.json()
    assert (answer.status, reply["accepted"]) == (200, 1)
    assert [(each["index"], each["reason"]) for each in reply["rejected"]] == [(0, reason)]
    assert await client.names() == ["good"]
    assert client.worker.accounts.rejected[RejectReason.DATABASE_REFUSED] == 0


async def test_an_event_no_decoder_can_read_does_not_affect_others(client: Client):
    deep = b'{"name":"a","properties":%b}' % (b'{"a":' * 5000 + b"1" + b"}" * 5000)
    bad = [b'{"name":NaN}', b"{name: 'a'}", b'{"name":"a","properties":{"x":Infinity}}', deep]
    wanted = ["malformed_json", "malformed_json", "malformed_json", "nested_too_deep"]
    for body in (b"[%b]", b'{"batch":[%b]}'):
        answer = await client.post(body % b",".join(each + b"," + GOOD for each in bad))
        reply = answer.json()
        assert (answer.status, reply["accepted"]) == (200, len(bad))
        assert [(each["index"], each["reason"]) for each in reply["rejected"]] == list(
            zip(range(0, 8, 2), wanted, strict=True)
        )
    assert await client.names() == ["good"] * 2 * len(bad)
    assert [row["payload"].encode() for row in await client.rejected()] == bad * 2


@pytest.mark.parametrize("path", [NATIVE_PATH, "/v1/batch", "/v1/t"])
async def test_a_hundred_thousand_levels_are_refused_at_once(client: Client, path: str):
    deep = b"[" * 100_000
    bodies = [
        deep,
        deep + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'{"batch":' + deep + b"]" * 100_000 + b"}",
        b'{"name":"a","event":"a","type":"track","properties":{"x":' + deep + b"]" * 100_000 + b"}}",
        b'{"name":"a","event":"a","type":"track","context":' + b'{"a":' * 99_999 + b"1" + b"}" * 99_999 + b"}",
    ]
    for body in bodies:
        answer = await client.post(body, path)
        assert answer.status == 400 and answer.json()["code"] in {
            "malformed_json",
            "nested_too_deep",
            "not_an_object",
            "event_too_large",
        }, answer.body[:200]
    assert await client.names() == []


async def test_large_bodies_end_at_the_limits(start: Start):
    client = await start(max_body_bytes="5MiB", max_batch_events=1000)
    ten_megabytes = b'{"name":"' + b"x" * 10_000_000 + b'"}'
    million = b"[" + b",".join([b"{}"] * 1_000_000) + b"]"
    for path in (NATIVE_PATH, "/v1/batch"):
        answer = await client.post(ten_megabytes, path)
        assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
        for body in (million, b'{"batch":' + million + b"}", gzip.compress(million, 1)):
            answer = await client.post(body, path)
            assert (answer.status, answer.json()["code"]) == (413, "too_many_events")
    assert client.worker.accounts.received == 8


# Connections that misbehave.


async def test_a_body_that_stalls_is_a_408_and_the_connection_ends(start: Start):
    client = await start(body_timeout_seconds=0.2)
    for begun in (CHUNKED + chunk(b'{"name":'), post(GOOD)[:-3], CHUNKED + b"ff"):
        async with await client.raw() as raw:
            await raw.send(begun)
            answer = await raw.answer()
            assert (answer.status, answer.json()["code"]) == (408, "body_timeout")
            assert answer.headers["connection"] == "close"
            assert await raw.closed(3)
    assert await client.names() == []
    assert client.worker.accounts.rejected[RejectReason.BODY_TIMEOUT] == 3


async def test_a_body_that_trickles_in_has_the_same_time_limit(start: Start):
    client = await start(body_timeout_seconds=0.3)
    async with await client.raw() as raw:
        await raw.send(CHUNKED)
        trickle = asyncio.create_task(send_slowly(raw, [chunk(b" ")] * 100, 0.02))
        assert (await raw.answer()).status == 408
        trickle.cancel()
    async with await client.raw() as raw:
        await send_slowly(raw, [post(GOOD)[index : index + 5] for index in range(0, len(post(GOOD)), 5)], 0.002)
        assert (await raw.answer()).status == 200


async def send_slowly(raw: Raw, pieces: list[bytes], seconds: float) -> None:
    for piece in pieces:
        try:
            await raw.send(piece)
        except ConnectionError:
            return
        await asyncio.sleep(seconds)


async def test_a_client_that_disconnects_mid_body_is_counted(client: Client):
    for begun in (post(GOOD)[:-3], CHUNKED + chunk(GOOD), CHUNKED):
        raw = await client.raw()
        await raw.send(begun)
        await client.heard(raw, 1)
        raw.writer.transport.abort()
        await raw.close()
    # Disconnected after all of it was sent: nobody gets the response, but the event is stored.
    raw = await client.raw()
    await raw.send(post(b'{"name":"left early"}'))
    await client.heard(raw, 1)
    raw.writer.transport.abort()
    await raw.close()
    async with asyncio.timeout(60):
        while client.worker.accounts.received < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert client.worker.accounts.rejected[RejectReason.BODY_INCOMPLETE] == 3
    assert await client.names() == ["left early"]


async def test_pipelined_requests_are_answered_in_order(client: Client):
    wanted, sent = [], []
    for index in range(60):
        kind = index % 6
        name = f"n{index:03}"
        request, status = [
            (post(json.dumps({"name": name}).encode()), 200),
            (post(b"{malformed"), 400),
            (post(json.dumps([{"name": name}, {"name": ""}]).encode()), 200),
            (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
            (b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n", 405),
            (CHUNKED + chunk(b'{"name":"') + chunk(f'{name}"}}'.encode()) + chunk(b""), 200),
        ][kind]
        sent.append(request)
        wanted.append((status, name if status == 200 else None))
    async with await client.raw() as raw:
        await raw.send(b"".join(sent))
        answers = [await raw.answer() for _ in wanted]
    assert [answer.status for answer in answers] == [status for status, _ in wanted]
    assert await client.names() == [name for _, name in wanted if name]


async def test_bad_http_behind_good_requests_ends_the_connection_after_their_answers(client: Client):
    async with await client.raw() as raw:
        await raw.send(post(GOOD), post(GOOD))
        await client.heard(raw, 2)
        await raw.send(b"BAD\r\n\r\n", post(b'{"name":"never"}'))
        assert [(await raw.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await raw.closed()
    assert await client.names() == ["good", "good"]


async def test_what_comes_in_one_piece_with_bad_http_is_not_acknowledged_by_mistake(client: Client):
    statuses: list[int] = []
    async with await client.raw() as raw:
        await raw.send(post(GOOD) + post(GOOD) + b"BAD\r\n\r\n")
        while not statuses or statuses[-1] == 200:
            statuses.append((await raw.answer()).status)
        assert await raw.closed()
    assert statuses[-1] == 400
    assert await client.names() == ["good"] * statuses.count(200)


BAD_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n",
    b"\x00\x00\x00\x00\r\n\r\n",
    b"hello\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"FETCH /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBroken header\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: a\r\n" % index for index in range(500)) + b"\r\n",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


async def test_bad_http_is_answered_with_cors_headers_too(client: Client, start: Start):
    strict = await start(cors_origins=("https://a.example",))
    for origin, allowed, credentials in (
        (b"https://a.example", "https://a.example", "true"),
        (b"https://b.example", None, None),
        (b"https://a.example\x00", None, None),
        (None, None, None),
    ):
        line = b"" if origin is None else b"ORIGIN:  %b\r\n" % origin
        sent = b"POST /v1/t HTTP/1.1\r\nHost: x\r\n%bCookie: %b\r\n\r\n" % (line, b"a" * 40_000)
        for asked in (strict, client):
            async with await asked.raw() as raw:
                await raw.send(sent)
                answer = await raw.answer()
            assert (answer.status, answer.json()["code"]) == (400, "bad_http")
            if asked is client and allowed is None:
                # Any origin may read it, whatever this one is; but without cookies, as it is unknown.
                known = origin == b"https://b.example"
                allowed, credentials = ("https://b.example", "true") if known else ("*", None)
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert answer.headers.get("access-control-allow-credentials") == credentials
            assert answer.headers["vary"] == "Origin"


async def test_a_page_may_have_many_cookies(client: Client):
    async with await client.raw() as raw:
        await raw.send(post(GOOD, f"{NATIVE_PATH}?{'x' * 12_000}", "Cookie: " + "a" * 16_000))
        assert (await raw.answer()).status == 200


async def test_bad_http_is_a_400_in_json_and_the_end_of_the_connection(client: Client):
    for sent in BAD_HTTP:
        async with await client.raw() as raw:
            await raw.send(sent)
            answer = await raw.answer()
            assert (answer.status, answer.json()["code"]) == (400, "bad_http"), sent[:80]
            assert answer.json()["message"] and len(answer.body) < 500
            assert await raw.closed(), sent[:80]
    metrics = await client.metrics()
    assert metrics['ingest_http_requests_total{route="other",status="400"}'] == len(BAD_HTTP)
    assert client.worker.accounts.received == 0


BAD_CHUNKS = [b"zz\r\n", b"-1\r\n", b"5\r\nabc\r\nx", b"\r\n", b"fffffffffffffffffff\r\n", b"1;\x00=\r\na\r\n"]


@pytest.mark.parametrize("bad", BAD_CHUNKS, ids=repr)
async def test_a_bad_chunk_is_a_400_at_once_and_never_taken_for_the_end(client: Client, bad: bytes):
    with_origin = CHUNKED.replace(b"Host: x", b"Host: x\r\nOrigin: https://a.example")
    for before in (b"", chunk(GOOD), chunk(b"["), chunk(b"[" + GOOD) + chunk(b"," + GOOD)):
        async with await client.raw() as raw:
            await raw.send(with_origin + before)
            await client.heard(raw, 1)
            await raw.send(bad)
            answer = await raw.answer()
            assert (answer.status, answer.json()["code"]) == (400, "bad_encoding")
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
            assert answer.headers["connection"] == "close"
            # No other response: what follows belongs to no request.
            assert await raw.closed()
        async with await client.raw() as raw:
            await raw.send(CHUNKED + before + bad)
            assert (await raw.answer()).status == 400
            assert await raw.closed()
    assert client.worker.accounts.rejected[RejectReason.BAD_ENCODING] == 4
    assert await client.names() == []


async def test_a_bad_chunk_behind_other_requests(client: Client):
    async with await client.raw() as raw:
        await raw.send(post(GOOD), CHUNKED, chunk(GOOD))
        # Broken HTTP affects everything that comes in the same packet.
        await client.heard(raw, 2)
        await raw.send(b"zz\r\n", post(b'{"name":"never"}'))
        assert [(await raw.answer()).status for _ in range(2)] == [200, 400]
        assert await raw.closed()
    # If the body is not read, there is a different response, and no second one.
    unread = ((b"POST /nowhere", 404), (b"PUT /v1/events", 405), (b"OPTIONS /v1/events", 204), (b"GET /healthz", 200))
    for head, status in unread:
        async with await client.raw() as raw:
            await raw.send(CHUNKED.replace(b"POST /v1/events", head))
            assert (await raw.answer()).status == status
            await raw.send(b"zz\r\n")
            assert await raw.closed()
    assert await client.names() == ["good"]


async def test_a_bad_chunk_is_answered_at_any_stage_of_the_request(client: Client):
    """Between head and chunk the loop turns a few times: the request is queued, has just begun, or reads its body."""
    for turns in range(8):
        async with await client.raw() as raw:
            await raw.send(post(GOOD))
            assert (await raw.answer()).status == 200
            connection = client.connection(raw)
            assert connection is not None
            connection.data_received(CHUNKED)
            for _ in range(turns):
                await asyncio.sleep(0)
            connection.data_received(b"zz\r\n")
            assert (await raw.answer()).status == 400
            assert await raw.closed()


async def test_other_methods_are_answered_in_kind(client: Client):
    async with await client.raw() as raw:
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
            for path, status in ((NATIVE_PATH, 405), ("/v1/t", 405), ("/nowhere", 404)):
                await raw.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                answer = await raw.answer(of_head=method == "HEAD")
                assert answer.status == status, (method, path)
                assert status != 405 or answer.headers["allow"] == "POST, OPTIONS"
                assert method == "HEAD" or answer.json()["message"]
        await raw.send(post(GOOD))
        assert (await raw.answer()).status == 200


async def test_a_whole_url_is_a_path_like_another(client: Client):
    async with await client.raw() as raw:
        await raw.send(post(GOOD, "http://events.example.com/v1/events?x=1"))
        assert (await raw.answer()).status == 200
        await raw.send(post(GOOD, "http://events.example.com/nowhere"))
        assert (await raw.answer()).status == 404
        await raw.send(post(GOOD, "/v1/events?"), post(GOOD, "/v1/events#x"))
        assert [(await raw.answer()).status for _ in range(2)] == [200, 404]


async def test_expect_100_is_continued_or_refused_before_the_body(start: Start):
    client = await start(max_body_bytes="1kB", max_event_bytes="1kB")
    async with await client.raw() as raw:
        head, body = post(GOOD, NATIVE_PATH, "Expect: 100-continue").split(b"\r\n\r\n")
        for _ in range(2):
            await raw.send(head + b"\r\n\r\n")
            assert (await raw.answer()).status == 100
            await raw.send(body)
            assert (await raw.answer()).status == 200
        # Sent without waiting for the 100.
        await raw.send(post(GOOD, NATIVE_PATH, "Expect: 100-continue"))
        answer = await raw.answer()
        assert (answer if answer.status != 100 else await raw.answer()).status == 200
        await raw.send(post(b" " * 2000, NATIVE_PATH, "Expect: 100-continue").partition(b" " * 2000)[0])
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await raw.closed()
    assert await client.names() == ["good"] * 3


async def test_refusing_a_large_body_does_not_cut_off_the_response(client: Client):
    """The client sends all of its 20 MB before it reads: it must find the 413, not a reset connection."""
    async with await client.raw() as raw:
        await raw.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(20):
            await raw.send(b" " * 1_000_000)
        assert (await raw.answer()).status == 413


async def test_silent_connections_are_closed(client: Client):
    server = client.worker._server
    assert server is not None
    connections = server.connections
    clock = [0.0]
    connections._clock = lambda: clock[0]
    async with await client.raw() as silent, await client.raw() as slow, await client.raw() as served:
        await slow.send(b"POST /v1/events HTTP/1.1\r\nHost:")
        await served.send(post(GOOD))
        assert (await served.answer()).status == 200
        for clock[0] in (0.0, FIRST_REQUEST_SECONDS - 1, FIRST_REQUEST_SECONDS):
            await connections.sweep()
        assert not await silent.closed(0.1)
        clock[0] = FIRST_REQUEST_SECONDS + 1
        await connections.sweep()
        assert await silent.closed(2) and await slow.closed(2)
        await served.send(post(GOOD))
        assert (await served.answer()).status == 200


# All at once.


async def test_a_good_client_loses_nothing_among_attackers(start: Start, caplog):
    client = await start(
        body_timeout_seconds=0.5, max_body_bytes="1MB", max_event_bytes="10kB", max_batch_events=1000
    )
    stop = asyncio.Event()
    statuses: set[int] = set()
    bomb = gzip.compress(b" " * 20_000_000, 1)
    million = b"[" + b",".join([b"{}"] * 300_000) + b"]"

    async def exchange(raw: Raw, *sent: bytes) -> None:
        await raw.send(*sent)
        answer = await raw.answer()
        assert_documented(answer)
        statuses.add(answer.status)

    async def hang_up(raw: Raw) -> None:
        await raw.send(post(GOOD)[: random.randrange(1, len(post(GOOD)))])
        raw.writer.transport.abort()

    async def stall(raw: Raw) -> None:
        await exchange(raw, CHUNKED, chunk(b"{"))

    attacks: list[Callable[[Raw], Awaitable[None]]] = [
        lambda raw: exchange(raw, post(random.choice(MALFORMED), random.choice(PATHS))),
        lambda raw: exchange(raw, post(random.randbytes(2000), random.choice(PATHS))),
        lambda raw: exchange(raw, post(b"[" * 100_000, random.choice(PATHS))),
        lambda raw: exchange(raw, post(b" " * 1_100_000)),
        lambda raw: exchange(raw, post(million, random.choice(PATHS))),
        lambda raw: exchange(raw, post(bomb)),
        lambda raw: exchange(raw, post(bomb, NATIVE_PATH, "Content-Encoding: gzip")),
        lambda raw: exchange(raw, post(b"\x1f\x8bgarbage", NATIVE_PATH, "Content-Encoding: gzip")),
        lambda raw: exchange(raw, random.choice(BAD_HTTP)),
        lambda raw: exchange(raw, post(json.dumps([wrong for wrong, _ in WRONG]).encode())),
        lambda raw: exchange(raw, f"GET /{uuid4()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
        lambda raw: exchange(raw, b"TRACE /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"),
        hang_up,
        stall,
    ]

    async def attack(number: int) -> int:
        for count in itertools.count():
            if stop.is_set():
                return count
            raw = await client.raw()
            try:
                await attacks[(number + count) % len(attacks)](raw)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                await raw.close()
        raise AssertionError

    async def behave(number: int) -> list[str]:
        acknowledged = []
        for count in range(30):
            names = [f"{number}-{count}-{index}" for index in range(5)]
            answer = await client.post([{"name": name, "id": name} for name in names])
            assert (answer.status, answer.json()) == (200, {"accepted": 5, "rejected": []})
            acknowledged += names
        return acknowledged

    attackers = [asyncio.create_task(attack(number)) for number in range(20)]
    try:
        acknowledged = await asyncio.gather(*[behave(number) for number in range(2)])
    finally:
        stop.set()
        attempts = await asyncio.gather(*attackers)
    assert sum(attempts) >= 2 * len(attacks)
    assert {400, 404, 405, 408, 413} <= statuses
    assert await client.names() == sorted(itertools.chain(*acknowledged))
    assert errors(caplog) == []
    metrics = await client.metrics()
    assert metrics["ingest_events_unaccounted"] == metrics["ingest_events_pending"] == 0
    assert not [name for name in metrics if name.startswith("ingest_http_requests") and 'status="5' in name]


# Anything at all.

VALID = [
    b'{"name":"a","id":"8d1f2a34-0000-4000-8000-000000000001","properties":{"x":[1,2.5e3,"\\u00e9\\n"]},"url":"http://x/"}',
    b'[{"name":"a","timestamp":"2026-01-02T03:04:05.678Z"},{"name":"b","user_id":7,"context":{"page":{"url":"/p"}}}]',
    b'{"batch":[{"type":"track","event":"e","userId":"u","messageId":"m","traits":{}}],"sentAt":1700000000,"writeKey":"k"}',
    b'{"type":"page","name":"Home","properties":{"url":"https://a/?utm_source=b"},"anonymousId":"a"}',
]
PIECES = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"null",
    b"1e99999",
    b"\n",
]

mutated = st.builds(
    lambda body, places, pieces: _mutate(body, places, pieces),
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=4),
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)), min_size=4, max_size=4),
)


def _mutate(body: bytes, places: list[tuple[float, int]], pieces: list[bytes]) -> bytes:
    """Some of its bytes replaced by others."""
    for (place, length), piece in zip(places, pieces, strict=False):
        at = int(place * len(body))
        body = body[:at] + piece + body[at + length :]
    return body


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=False
)
@given(bodies=st.lists(st.one_of(mutated, st.binary(max_size=60)), min_size=16, max_size=16))
async def test_any_body_on_any_route_has_a_documented_answer(client: Client, bodies: list[bytes]):
    async with await client.raw() as raw:
        await raw.send(*[post(body, path) for body, path in zip(bodies, PATHS, strict=True)])
        for body, path in zip(bodies, PATHS, strict=True):
            answer = await raw.answer()
            assert_documented(answer)
            assert answer.status in {200, 400}, (path, body, answer)
    assert client.worker.accounts.unaccounted == 0
    await client.settled()
    assert client.worker.accounts.rejected[RejectReason.DATABASE_REFUSED] == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.binary(max_size=30).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b"").replace(b"\x00", b"")),
        min_size=7,
        max_size=7,
    )
)
async def test_any_header_has_a_documented_answer(client: Client, texts: list[bytes]):
    names = [
        b"User-Agent",
        b"Origin",
        b"Authorization",
        b"X-Forwarded-For",
        b"CF-IPCountry",
        b"Content-Encoding",
        b"Expect",
    ]
    headers = b"".join(b"%b: %b\r\n" % pair for pair in zip(names, texts, strict=True))
    async with await client.raw() as raw:
        await raw.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n", headers, b"\r\n", GOOD)
        answer = await raw.answer()
        assert answer.status in {200, 400}, texts
        assert_documented(answer)
