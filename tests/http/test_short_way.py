"""The short way and the ordinary one: whatever is sent, the same answers, the same rows, the same books."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence

import pytest

from ingest.http.connections import ClientConnection
from ingest.http.short_way import Known
from tests.support.amounts import amount
from tests.support.collector import Client, Start
from tests.support.conversations import OWN, BothWays, both_ways, converse, short_way

EVENT = b'{"name":"a","user_id":"u1","properties":{"x":1}}'


def post(body: bytes = EVENT, *lines: str, target: str = "/v1/events", host: str = "Host: x") -> bytes:
    """A POST with a Content-Length."""
    head = [f"POST {target} HTTP/1.1", *([host] if host else []), *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("utf-8", "surrogateescape") + body


def raw(head: str, body: bytes = EVENT) -> bytes:
    """A request as it stands; {n} in it is the length of the body."""
    return head.replace("{n}", str(len(body))).encode("utf-8", "surrogateescape") + body


def line(text: str) -> bytes:
    """A POST with this line in its head instead of a Content-Length."""
    return raw(f"POST /v1/events HTTP/1.1\r\nHost: x\r\n{text}\r\n\r\n")


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT)
GOOD = [
    post(),
    post(b'[{"name":"a"},{"name":"b"}]'),
    post(b'{"name":"\xc3\xbc \\u20ac \\n","properties":{"a":"\\u0000"}}'),
    post(b'{"name":"a","id":"%b-1"}' % OWN),
    post(b'{"name":"a","sentAt":"2026-01-01T00:00:00Z"}'),
    post(b'[{"name":"a","id":"%b-2"},{"name":"a","id":"%b-2"}]' % (OWN, OWN)),
    post(b'{"name":"a"}', "Origin: https://shop.example"),
    post(b'{"name":"a"}', "Origin: null", "Referer: https://shop.example/a"),
    post(b'{"name":"a"}', "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0"),
    post(b'{"name":"a"}', "Sec-Purpose: prefetch;prerender"),
    post(b'{"name":"a"}', "X-Forwarded-For: 1.2.3.4"),
    post(b'{"name":"a"}', "Cookie: a=1", "Cookie: b=2", "Accept: */*", "Accept: text/html"),
    post(b'{"name":"a"}', "Connection: keep-alive"),
    post(b'{"name":"a"}', "Content-Type: text/plain;charset=UTF-8"),
    post(b'{"type":"track","event":"a","userId":"u"}', target="/v1/track"),
    post(b'{"batch":[{"type":"track","event":"a","userId":"u"}]}', target="/v1/batch"),
    post(b'{"name":"a","properties":{"t":"\\r\\n\\r\\nContent-Length: 3\\r\\n"}}'),
    post(b'[{"name":"a","properties":{"t":"%b"}}]' % (b"x" * 2000)),
    post(b"[" + b",".join([b'{"name":"many"}'] * 501) + b"]"),
]
"""Events that are taken; most on the short way."""
REFUSED = [
    post(b""),
    post(b"{"),
    post(b"[]"),
    post(b"nonsense"),
    post(b'{"name":1}'),
    post(b'{"nome":"a"}'),
    post(b'[{"name":"a"},{}]'),
    post(b'[{},{"name":"a","type":"x"}]'),
    post(b'{"name":"a","timestamp":"1999-01-01T00:00:00Z"}'),
    post(b'{"name":"a","id":"%b"}' % (b"i" * 500)),
    post(b"[" * 2000),
    post(b'{"name":"\xff"}'),
    post(b"\x1f\x8bnonsense"),
    post(b'{"name":"a"}', "Origin: https://shop.example", target="/v1/track"),
    post(b'{"name":"a","properties":{"t":"%b"}}' % (b"x" * 5000)),
    post(b"x" * 20_000),
]
"""Requests to the same paths that are refused, in whole or in part."""
OTHERS = [
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS /v1/events HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n\r\n",
    post(target="/v1/nothing"),
    post(target="/v1/events/"),
    post(target="//v1/events"),
    post(target="/v1/%65vents"),
    post(target="/v1/events?writeKey=k&a=%20"),
    post(target="/v1/events#a"),
    post(target="http://other.example/v1/events"),
    post(gzip.compress(EVENT, mtime=0)),
    post(gzip.compress(EVENT, mtime=0), "Content-Encoding: gzip"),
    post(EVENT, "Content-Encoding: identity"),
    post(EVENT, "Expect: 100-continue"),
    post(EVENT, "Expect: nothing"),
    post(EVENT, "Origin: https://\udcff\udcfe.example"),
    post(EVENT, "Origin: https://a.example", "Origin: https://b.example"),
    post(b'{"name":"k"}', "Authorization: Basic azo="),
    post(b'{"name":"k"}', "X-Write-Key: k"),
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    b"\r\n" + post(),
    b"\r\n\r\n" + post(),
]
"""Whole requests that go the ordinary way, or to other paths."""
LAST = [
    post(EVENT, "Connection: close"),
    raw("POST /v1/events HTTP/1.0\r\nContent-Length: {n}\r\n\r\n"),
    raw("POST /v1/events HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {n}\r\n\r\n"),
    post(EVENT, "Connection: upgrade", "Upgrade: h2c"),
    post(EVENT, "Connection: Upgrade", "Upgrade: websocket"),
    post(EVENT, "Connection: close, keep-alive"),
]
"""Whole requests after which a connection may end."""
HOSTILE = [
    raw("POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {n}\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKED),
    raw("POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n", CHUNKED),
    raw("POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: {n}\r\n\r\n"),
    line("Transfer-Encoding: xchunked"),
    line("Transfer-Encoding : chunked"),
    line("Content-Length: {n}\r\nContent-Length: {n}"),
    line("Content-Length: {n}\r\nContent-Length: 3"),
    line("Content-Length: 3\r\nContent-Length: {n}"),
    line("Content-Length: {n}, {n}"),
    *[line(f"{name}{value}") for name in ("Content-Length:", "content-length: ", "CONTENT-LENGTH:  ") for value in (
        "{n}", "+{n}", "-{n}", "0{n}", "{n} ", " {n}", "\t{n}", "0x30", "{n}.0", "{n}a", "", "4_8", "4 8",
        "99999999999999999999999",
    )],
    line("Content-Length : {n}"),
    line("Content-Length\t: {n}"),
    line(" Content-Length: {n}"),
    line("Content-Length:\r\n {n}"),
    line("X-A: b\r\n c\r\nContent-Length: {n}"),
    line("X-A: b\r\nContent-Length: {n}\r\n d"),
    line("X-A: \x00\r\nContent-Length: {n}"),
    line("X-A: \x7f\r\nContent-Length: {n}"),
    line("X-A: a\rb\r\nContent-Length: {n}"),
    line("X-A: a\nContent-Length: {n}"),
    line("X-\u00e9: a\r\nContent-Length: {n}"),
    line("X A: a\r\nContent-Length: {n}"),
    line("X-A\r\nContent-Length: {n}"),
    line(": a\r\nContent-Length: {n}"),
    line("X-Big: " + "x" * 17_000 + "\r\nContent-Length: {n}"),
    line("\r\n".join(f"X-{n}: y" for n in range(200)) + "\r\nContent-Length: {n}"),
    line("Host: y\r\nContent-Length: {n}"),
    post(host=""),
    post().replace(b"\r\n", b"\n"),
    post().replace(b"\r\n\r\n", b"\n\r\n"),
    post().replace(b"\r\n\r\n", b"\r\n\n"),
    post().replace(b"\r\n", b"\r"),
    post().replace(b"POST", b"post"),
    post().replace(b"POST ", b"POST  "),
    post().replace(b"POST", b" POST"),
    post().replace(b" HTTP", b"  HTTP"),
    post().replace(b"HTTP/1.1", b"HTTP/1.1 "),
    post().replace(b"HTTP/1.1", b"HTTP/2.0"),
    post().replace(b"HTTP/1.1", b"HTTP/1.2"),
    post().replace(b" HTTP/1.1", b""),
    post(target="v1/events"),
    post(target="*"),
    post(target="/v1/events\x00"),
    post(target="/v1/ev\u00e9nts"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"nonsense\r\n\r\n",
]  # fmt: skip
"""What two parsers might read differently, and what none should read."""
EVERYTHING = [*GOOD, *REFUSED, *OTHERS, *LAST, *HOSTILE]
SETTINGS = {"max_body_bytes": 16_384, "max_event_bytes": 4096, "body_timeout_seconds": 0.5}


@pytest.fixture(autouse=True)
def short_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the rest of a refused body is read: short, so that no test waits for it."""
    monkeypatch.setattr("ingest.http.connections.LINGER_SECONDS", 0.3)


async def check(ways: BothWays, conversations: Sequence[Sequence[bytes]]) -> None:
    for pieces in conversations:
        short, ordinary = await ways.say(*pieces)
        assert short == ordinary, pieces
    books = ways.books()
    assert books[0] == books[1]
    rows = await ways.rows()
    assert rows[0] == rows[1]


@pytest.fixture
async def ways(start: Start) -> BothWays:
    return await both_ways(start, **SETTINGS)


async def test_each_case_alone_and_again(ways: BothWays):
    """The second time, its head may be known."""
    await check(ways, [[case, case] for case in EVERYTHING])


async def test_each_case_between_others(ways: BothWays):
    """In three pieces, and as one: the requests before and after it must not be affected."""
    await check(ways, [[post(), case, post()] for case in EVERYTHING])
    await check(ways, [[post() + case + post()] for case in EVERYTHING])
    await check(ways, [[post(), case + post()] for case in EVERYTHING])


@pytest.mark.long
async def test_each_case_cut_in_two(ways: BothWays):
    """Within the head, at its end, within the body; what comes last might be taken for a request of its own."""
    cut: list[list[bytes]] = []
    for case in EVERYTHING:
        head = case.find(b"\r\n\r\n")
        places = {1, len(case) // 3, case.find(b"\r\n"), head, head + 2, head + 4, head + 6, len(case) - 1}
        cut += [[case[:at], case[at:], post()] for at in sorted(places) if 0 < at < len(case)]
    await check(ways, cut)


async def test_cut_everywhere(ways: BothWays):
    case = post(EVENT, "Origin: https://shop.example")
    await check(ways, [[case[:at], case[at:], case] for at in range(1, len(case))])
    await check(ways, [[bytes([each]) for each in case + case]])


async def test_the_rest_of_a_request_is_not_taken_for_another(ways: BothWays):
    """A value of a header, or a body, that looks like a request whose head is known."""
    await check(
        ways,
        [
            [post(), b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-A: ", post()],
            [post() + b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", post()],
            [b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", post(), post()],
            [b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(post()), post(), post()],
            [b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(post()), post(), post()],
            [b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", post(), post()],
            [post(post(), "Connection: upgrade", "Upgrade: websocket"), post()],
            [b"CONNECT /v1/events HTTP/1.1\r\nHost: x\r\n\r\n", post(), post()],
            [b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", post()],
            [b"POST /v1/events HT", b"TP/1.1\r\n" + post()[26:], b"TP/1.1\r\n" + post()[26:]],
            [b"\r\n", post(), post()],
            [b"\r", post(), post()],
            [post()[:-1], post()[-1:] + b"\r\n", post()],
            [post() + b"P", post()[1:], post()],
            [post() + b"\r\n\r\n", post(), post()],
        ],
    )


async def test_what_follows_a_request_after_which_a_connection_may_end(ways: BothWays):
    """A head that is remembered must not be taken for a request where the parser would not read one."""
    known = post()
    await check(ways, [[known, known], *[[known, last, known, known] for last in LAST]])
    await check(ways, [[known, last + known, known] for last in LAST])
    upgrade = b"%b /v1/events HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: %b\r\n%b\r\n%b"
    for method in (b"GET", b"POST", b"CONNECT"):
        for protocol in (b"websocket", b"h2c", b"tcp"):
            for body in (b"", EVENT):
                length = b"Content-Length: %d\r\n" % len(body) if body else b""
                await check(ways, [[known, upgrade % (method, protocol, length, body), known, known]])


@pytest.mark.longer
async def test_pipelines_of_all_kinds(ways: BothWays):
    """Two to twenty requests in a row, cut at any places."""
    rng = random.Random(12)
    conversations: list[list[bytes]] = []
    for _ in range(amount(60, long=1000)):
        several = rng.choices([*GOOD, *REFUSED, *OTHERS], k=rng.randint(2, 20))
        if rng.random() < 0.5:
            several.append(rng.choice([*LAST, *HOSTILE]))
        sent = b"".join(several)
        cuts = sorted(rng.sample(range(1, len(sent)), k=rng.choice([0, 0, 1, 2, 5])))
        conversations.append([sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)])
    await check(ways, conversations)


@pytest.mark.parametrize(
    "settings",
    [
        {"write_keys": ("k",)},
        {"cors_origins": ("https://shop.example",)},
        {"anonymise_ip": True},
        {"trusted_proxies": ("127.0.0.0/8",)},
        {"rate_limit_per_second": 0.001, "rate_limit_burst": 40},
        {"address_events_per_second": 0.001},
        {"dedupe_window_events": 0},
        {"max_batch_events": 1},
    ],
    ids=lambda settings: "-".join(settings),
)
async def test_each_case_with_other_settings(start: Start, settings: dict[str, object]):
    ways = await both_ways(start, **{**SETTINGS, **settings})
    await check(ways, [[case, case] for case in [*GOOD, *REFUSED, *OTHERS]])


async def test_most_requests_go_the_short_way(client: Client, monkeypatch: pytest.MonkeyPatch):
    """Known heads as well as new ones, and the first as well as later ones of a connection."""
    taken: list[bytes] = []
    take = ClientConnection._take

    def counted(connection: ClientConnection, known: Known, body: bytes) -> None:
        taken.append(body)
        take(connection, known, body)

    monkeypatch.setattr(ClientConnection, "_take", counted)
    for case in GOOD:
        await converse(client, [post(b'{"name":"first"}'), case, case])
    assert len(taken) > 2.9 * len(GOOD)
    short_way(client).is_open = False
    taken.clear()
    await converse(client, [post(), post()])
    assert not taken
    names = [row["name"] for row in await client.fetch("SELECT name FROM analytics.events WHERE name = 'first'")]
    assert len(names) == len(GOOD)


@pytest.mark.parametrize(("body", "status"), [(b'{"name":"gone"}', 200), (b"{}", 400)])
async def test_a_client_that_leaves_before_its_answer(client: Client, body: bytes, status: int):
    """Its request is counted and its event stored, and nothing is left of it."""
    async with await client.raw() as raw:
        await raw.send(post())
        await raw.answer()
        served = client.connection(raw)
        assert isinstance(served, ClientConnection)
        answered = client.worker.metrics.requests
        before = answered["/v1/events", status]
        served.data_received(post(body))
        assert served._taken is not None
        served.drop()
        assert await raw.closed()
    assert await client.names() == (["a", "gone"] if status == 200 else ["a"])
    assert answered["/v1/events", status] == before + 1
    assert client.worker.budget.held == 0


async def test_a_draining_server_closes_after_the_answer(client: Client):
    async with await client.raw() as raw:
        await raw.send(post())
        assert "connection" not in (await raw.answer()).headers
        assert client.worker._server is not None
        await raw.send(post())
        client.worker._server.connections.draining = True
        answer = await raw.answer()
        assert answer.status == 200 and answer.headers["connection"] == "close"
        assert await raw.closed()
        client.worker._server.connections.draining = False


async def test_a_drain_that_begins_while_the_record_is_written(client: Client):
    """The request is on the short way by then, and its outcome takes the ordinary one."""
    async with await client.raw() as raw:
        await raw.send(post())
        await raw.answer()
        assert client.worker._server is not None
        connections = client.worker._server.connections
        served = client.connection(raw)
        assert isinstance(served, ClientConnection)
        served.data_received(post())
        assert served._taken is not None and not served.is_waiting
        served.data_received(post(b"{}"))
        connections.draining = True
        first, second = await raw.answer(), await raw.answer()
        assert (first.status, second.status) == (200, 400)
        assert "connection" not in first.headers and second.headers["connection"] == "close"
        assert await raw.closed()
        connections.draining = False


async def test_a_connection_is_not_idle_while_its_record_is_written(client: Client):
    async with await client.raw() as raw:
        await raw.send(post())
        await raw.answer()
        served = client.connection(raw)
        assert isinstance(served, ClientConnection)
        served.data_received(post())
        served._next_keepalive_close_time = 0.0
        served._process_keepalive()
        assert (await raw.answer()).status == 200
        served._next_keepalive_close_time = 0.0
        served._process_keepalive()
        assert await raw.closed()


async def test_what_is_remembered_is_bounded_whatever_heads_say(client: Client):
    """A header takes far more memory than its bytes, and an origin is repeated in the response."""
    known, texts = short_way(client)._known, short_way(client)._head
    for number in range(3):
        many = {f"X-{number}-{index}": "" for index in range(40)}
        assert (await client.post({"name": "many"}, **many)).status == 200
        assert (await client.post({"name": "long"}, Origin=f"https://{number}{'x' * 1000}")).status == 200
    assert not any(len(one.headers) > 32 for one in known.values())
    assert texts.cache_info().currsize <= 1
    assert len(await client.events()) == 6
