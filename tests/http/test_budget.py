"""Memory for bodies is bounded, whatever is sent: measured in real processes, and released on every way out."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import socket
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.base.refusals import PayloadRefused
from ingest.events.payload import Payload
from ingest.http import connections
from ingest.http.budget import GRACE_SECONDS, SMALL_BYTES, Budget, Hold, decoded_bytes
from ingest.intake import intake, opening, waiting
from ingest.intake.dialects.native import decode_native
from ingest.intake.dialects.segment import decode_segment
from tests.support.amounts import some_of
from tests.support.collector import Client, Raw, Start
from tests.support.service import Service, running

MIB = 1 << 20
BODY_BYTES = 5 * MIB
ADMIN = "an-admin-key-of-the-tests"


def padded(events: list[bytes], size: int = BODY_BYTES) -> bytes:
    """A batch of about this many bytes, with blanks in each event."""
    blanks = b" " * (size // len(events) - len(events[0]) - 1)
    return b"[" + b",".join([event[:-1] + blanks + event[-1:] for event in events]) + b"]"


def filling(event: bytes, count: int) -> bytes:
    """A batch of events, filled up to the body limit with %b."""
    each = (BODY_BYTES - 100) // count - len(event)
    return padded([event % (b"y" * each)] * count)


ODD = json.dumps({"name": "a", "url": "\U0001f4a5" + "u" * 400}, ensure_ascii=False).encode()
TINY = padded([b'{"name":"a"}'] * 10_000)
BODIES = {
    "tiny events": TINY,
    "refused events": padded([b"{}"] * 10_000),
    "wide characters": padded([ODD] * 10_000),
    "properties": filling(b'{"name":"a","properties":{"x":"%b"}}', 1000),
    "fields of other names": filling(b'{"event_name":"a","more":"%b"}', 500),
    "lists": filling(b'{"name":"a","properties":{"x":[%b1]}}', 90).replace(b"yy", b"0,"),
    "nothing but blanks": b" " * (BODY_BYTES - 12) + b'{"name":"a"}',
    "one long text": b'{"name":"%b"}' % (b"x" * (BODY_BYTES - 20)),
    "an array that never ends": padded([b'{"name":"a"}'] * 9_000)[:-1],
}


def zipped(body: bytes) -> bytes:
    return gzip.compress(body, 6)


def deflated(body: bytes) -> bytes:
    return zlib.compress(body, 6)


PACKINGS: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "gzip": (zipped, b"Content-Encoding: gzip\r\n"),
    "gzip without a word": (zipped, b""),
    "deflate": (deflated, b"Content-Encoding: deflate\r\n"),
    "bare deflate": (lambda body: deflated(body)[2:-4], b"Content-Encoding: deflate\r\n"),
    "members": (
        lambda body: b"".join([zipped(body[at : at + 1_000_000]) for at in range(0, len(body), 1_000_000)]),
        b"Content-Encoding: x-gzip\r\n",
    ),
}


# In a separate process.


def peak_mib(pids: list[int]) -> int:
    """The peak memory of any of these processes."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return max(int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) for text in texts) // 1024


def most_mib(before: int, connections: int) -> int:
    """What the settings allow: the budget, which one body may exceed; what waits to be stored; three records on their
    way to disk; and for each connection what was read from its socket and is not parsed yet."""
    return before + 64 + 32 + 32 + 3 * 8 + connections * 384 // 1024


async def exchange(port: int, sent: bytes, hang_up: asyncio.Event | None = None) -> str:
    """The status of the response; "closed" if the connection ended without one, "nothing" if `hang_up` was set."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        line = asyncio.ensure_future(reader.readline())
        done = asyncio.ensure_future(hang_up.wait() if hang_up is not None else asyncio.sleep(240))
        await asyncio.wait({line, done}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        if not line.done():
            line.cancel()
            return "nothing"
        return line.result().split()[1].decode() if line.result() else "closed"
    except ConnectionError:
        return "closed"
    finally:
        writer.transport.abort()


def post(body: bytes, headers: bytes = b"", path: bytes = b"/v1/events", short: int = 0) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (path, len(body), headers)
    return head + body[: len(body) - short]


def chunked(body: bytes, size: int, headers: bytes = b"", *, ends: bool = True) -> bytes:
    head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%b\r\n" % headers
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return head + b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]) + b"0\r\n\r\n" * ends


async def stored(service: Service, accepted: int) -> None:
    """Everything accepted is in the table, and every event is accounted for."""
    metrics = await asyncio.to_thread(service.wait_stored, 120)
    assert metrics["ingest_events_stored_total"] == accepted
    assert metrics["ingest_body_bytes"] == 0


UNLIMITED = ("--address-events-per-second", "0", "--address-bytes-per-second", "0")
LIMITED = ("--address-events-per-second", "5000", "--address-bytes-per-second", "5MiB")


async def attacked(service: Service, requests: list[bytes]) -> Counter[str]:
    """The statuses of requests that come all at once. Ordinary ones are answered meanwhile, and afterwards."""
    before = peak_mib(service.workers())
    asked = [asyncio.create_task(exchange(service.port, each)) for each in requests]
    ordinary = 0
    while ordinary < 5 or not all(one.done() for one in asked):
        assert await exchange(service.port, post(b'{"name":"ordinary"}')) in ("200", "429")
        ordinary += 1
        await asyncio.sleep(0.2)
    statuses = Counter(await asyncio.gather(*asked))
    assert peak_mib(service.workers()) < most_mib(before, len(requests)), (before, statuses)
    return statuses


@pytest.mark.long
async def test_300_bodies_of_5_kb_that_unpack_to_5_mb(tmp_path: Path, database_url: str):
    packed = zipped((b"[" + b",".join([b'{"name":"a"}'] * 10_000) + b"]").ljust(BODY_BYTES))
    assert 4_000 < len(packed) < 6_000
    with running(Service(tmp_path / "data", database_url, *LIMITED)) as service:
        statuses = await attacked(service, [post(packed, b"Content-Encoding: gzip\r\n")] * 300)
        assert statuses.keys() <= {"200", "429"} and statuses["200"] >= 5
        metrics = await asyncio.to_thread(service.wait_stored, 120)
        assert metrics["ingest_events_stored_total"] >= statuses["200"] * 10_000
        assert metrics["ingest_body_bytes"] == 0


@pytest.mark.parametrize("packing", some_of(PACKINGS, 1))
async def test_packed_bodies_of_any_shape(tmp_path: Path, database_url: str, packing: str):
    pack, headers = PACKINGS[packing]
    bodies = [pack(body) for body in BODIES.values()]
    sent = [post(body, headers) for body in bodies] + [chunked(body, 1000, headers) for body in bodies]
    # Truncated, they are refused when they are unpacked.
    sent += [post(body[:-9], headers) for body in bodies]
    with running(Service(tmp_path / "data", database_url, *LIMITED)) as service:
        statuses = await attacked(service, sent * 4)
        assert statuses.keys() <= {"200", "400", "413", "429", "503"} and statuses["200"]
        await asyncio.to_thread(service.wait_stored, 120)


UPLOADS: dict[str, bytes] = {
    "one byte short": post(TINY, short=1),
    "chunks without an end": chunked(TINY, 16_000, ends=False),
    "tiny chunks without an end": chunked(TINY[:400_000], 1, ends=False),
    "gzip one byte short": post(gzip.compress(TINY, 0), b"Content-Encoding: gzip\r\n", short=1),
    "a form one byte short": post(
        b"data=" + TINY.replace(b" ", b"+"), b"Content-Type: application/x-www-form-urlencoded\r\n", short=1
    )[: 5 * MIB],
    "behind other requests": post(b'{"name":"ordinary"}') * 3 + post(TINY, short=1),
    "to a route of the application": post(b"x" * 256 * 1024, b"", b"/v1/leads", short=1),
}


@pytest.mark.parametrize("how", some_of(UPLOADS, 1))
async def test_120_uploads_that_stop(tmp_path: Path, database_url: str, how: str):
    with running(Service(tmp_path / "data", database_url, *UNLIMITED)) as service:
        before = peak_mib(service.workers())
        hang_up = asyncio.Event()
        uploads = [asyncio.create_task(exchange(service.port, UPLOADS[how], hang_up)) for _ in range(120)]
        ordinary = 0
        for _ in range(20):
            assert await exchange(service.port, post(b'{"name":"ordinary"}')) == "200"
            ordinary += 1
            await asyncio.sleep(0.1)
        # So is a larger batch, once the stalled uploads have had their time.
        deadline = asyncio.get_running_loop().time() + 60
        batch = json.dumps([{"name": "ordinary", "properties": {"x": "y" * 900}}] * 100).encode()
        while (status := await exchange(service.port, post(batch))) == "503":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.5)
        assert status == "200"
        assert peak_mib(service.workers()) < most_mib(before, len(uploads))
        hang_up.set()
        statuses = Counter(await asyncio.gather(*uploads))
        assert statuses.keys() <= {"nothing", "503", "408", "200", "closed"}, statuses
        # An upload may have sent three ordinary ones ahead, which are answered whether it reads the responses or not.
        ahead = 3 * 120 if how == "behind other requests" else 0
        metrics = await asyncio.to_thread(service.wait_stored, 60)
        assert ordinary + 100 <= metrics["ingest_events_stored_total"] <= ordinary + 100 + ahead
        while service.metrics()["ingest_body_bytes"]:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)


# One worker, with a small budget.

LITTLE = {"bodies_max_bytes": "2MiB", "max_body_bytes": "400kB", "api_rate_limit_per_second": 0}
"""1 MiB for bodies as they were sent, 448 kB of which for large ones from one address."""
ROUTES = (
    ("POST", "/v1/events"), ("POST", "/v1/batch"), ("POST", "/v1/t"), ("POST", "/v1/leads"),
    ("POST", "/v1/onboarding/sessions"), ("POST", "/v1/experiments"), ("POST", "/v1/experiments/assignments"),
    ("POST", "/v1/experiments/exposures"), ("POST", "/ofrep/v1/evaluate/flags"),
    ("POST", "/ofrep/v1/evaluate/flags/x"),
    ("PATCH", "/v1/leads/00000000-0000-4000-8000-000000000000"),
)  # fmt: skip


def is_free(client: Client) -> bool:
    budget = client.worker.budget
    return (budget.held, budget.worked, budget._by_address, budget._arriving) == (0, 0, {}, {})


async def wait_free(client: Client) -> None:
    async with asyncio.timeout(60):
        while not is_free(client):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def wait_held(client: Client, size: int) -> None:
    async with asyncio.timeout(60):
        while client.worker.budget.held < size:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def stalled(client: Client, sizes: list[int], **headers: str) -> list[Raw]:
    """Uploads of these sizes that stop one byte short, once they are held."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()
    uploads = []
    held = client.worker.budget.held
    for size in sizes:
        upload = await client.raw()
        await upload.send(post(b"[" * size, lines, short=1))
        held += size - 1
        await wait_held(client, held)
        uploads.append(upload)
    return uploads


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_an_exhausted_budget_is_503_on_every_route(start: Start, method: str, path: str):
    client = await start(**LITTLE, admin_keys=(ADMIN,))
    uploads = await stalled(client, [200_000, 200_000])
    body = b'{"x":"' + b"y" * 100_000 + b'"}'
    refused = await client.request(method, path, body, Authorization=f"Bearer {ADMIN}")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
    body = refused.json()
    if path.startswith("/ofrep"):
        assert body["errorCode"] == "GENERAL"
    else:
        assert refused.headers["Content-Type"].startswith("application/problem+json")
        assert (body["status"], body["code"]) == (503, "overloaded")
    # Small bodies get in; but one of many values counts many times its size when decoded.
    assert (await client.post({"name": "small"})).status == 200
    if path == "/v1/leads":
        assert (await client.post(b'{"x":[%b1]}' % (b"[]," * 10_000), path)).status == 503
    for upload in uploads:
        await upload.close()
    await wait_free(client)
    again = await client.request(method, path, body, Authorization=f"Bearer {ADMIN}")
    assert again.status not in (500, 503)
    assert await client.names() == ["small"]
    await wait_free(client)


async def test_what_an_address_holds_does_not_affect_others(start: Start):
    client = await start(**LITTLE, trusted_proxies=("127.0.0.1",))
    uploads = await stalled(client, [200_000, 200_000], X_Forwarded_For="2001:db8::1")
    body = json.dumps([{"name": "a", "properties": {"x": "y" * 60_000}}] * 2).encode()
    # In IPv6, a subscriber has a whole /64.
    for address, status in (("2001:db8::2", 503), ("2001:db8:0:1::1", 200), ("198.51.100.1", 200)):
        assert (await client.post(body, X_Forwarded_For=address)).status == status
    uploads += await stalled(client, [200_000, 200_000], X_Forwarded_For="198.51.100.2")
    # Two of them hold seven eighths.
    assert (await client.post(body, X_Forwarded_For="198.51.100.3")).status == 503
    assert (await client.post({"name": "small"}, X_Forwarded_For="198.51.100.3")).status == 200
    for upload in uploads:
        await upload.close()
    await wait_free(client)


async def test_slow_uploads_give_way(start: Start, monkeypatch: pytest.MonkeyPatch):
    client = await start(**LITTLE)
    clock = Clock()
    monkeypatch.setattr(client.worker.budget, "_clock", clock)
    small, large, larger = uploads = await stalled(client, [10_000, 150_000, 250_000])
    clock.now += GRACE_SECONDS
    body = json.dumps([{"name": "a", "properties": {"x": "y" * 50_000}}] * 2).encode()
    assert (await client.post(body)).status == 200
    # The one that held most has made room, and got 503.
    answer = await larger.answer()
    assert (answer.status, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "5")
    assert client.worker.budget.dropped == 1
    assert (await client.post(padded([b'{"name":"b"}'] * 100, 350_000))).status == 200
    assert (await large.answer()).status == 503
    await small.send(b"[")
    assert (await small.answer()).status == 400
    for upload in uploads:
        await upload.close()
    await wait_free(client)
    assert Counter(await client.names()) == {"a": 2, "b": 100}


async def cut_short(raw: Raw) -> None:
    await raw.send(post(b"[" * 100_000, short=1))
    await asyncio.sleep(0.05)


WAYS_OUT: dict[str, tuple[bytes, int | None]] = {
    "accepted": (post(padded([b'{"name":"a"}'] * 500, 100_000)), 200),
    "refused one by one": (post(padded([b"{}"] * 5000, 100_000)), 400),
    "no JSON": (post(b"x" * 100_000), 400),
    "damaged": (post(b"\x1f\x8b" + b"x" * 100_000), 400),
    "cut short": (post(zipped(b" " * 100_000)[:-9]), 400),
    "unpacks to too much": (post(zipped(TINY)), 413),
    "too large": (post(b"x" * 500_000), 413),
    "chunks that become too large": (chunked(b"x" * 500_000, 10_000), 413),
    "broken chunks": (chunked(b"[" * 100_000, 50_000, ends=False) + b"zz\r\n", 400),
    "too many events": (post(zipped(b"[" + b"{}," * 20_000 + b"{}]")), 413),
    "a client that is gone": (post(b"[" * 100_000, short=1), None),
    "a client that is slow": (post(b"[" * 100_000, short=1), 408),
    "a lead": (post(b'{"email":"ann@shop.example"}', path=b"/v1/leads"), 201),
    "a lead that is wrong": (post(b'{"email":1}', path=b"/v1/leads"), 422),
    "a lead that is packed": (post(zipped(b" " * 50_000), path=b"/v1/leads"), 400),
    "a flag": (post(b"[" * 100_000, path=b"/ofrep/v1/evaluate/flags/x"), 404),
}


@pytest.mark.parametrize("way", WAYS_OUT)
async def test_everything_is_released_on_every_way_out(start: Start, way: str):
    client = await start(**LITTLE, body_timeout_seconds=0.5)
    sent, status = WAYS_OUT[way]
    async with await client.raw() as raw:
        await raw.send(sent)
        if status is None:
            await wait_held(client, 90_000)
        else:
            assert (await raw.answer()).status == status
    await wait_free(client)
    assert (await client.post({"name": "ordinary"})).status == 200
    await wait_free(client)


async def test_an_unexpected_error_releases_it(client: Client, monkeypatch: pytest.MonkeyPatch, caplog):
    body = json.dumps([{"name": "a", "properties": {"x": "y" * 5000}}] * 50).encode()

    def fail(*_: object) -> None:
        raise RuntimeError

    for module, name in ((intake, "draft"), (opening.Opener, "_share"), (opening.Opener, "open")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, fail)
            assert (await client.post(body)).status == 500
            assert (await client.post(zipped(body))).status == 500
        await wait_free(client)
    caplog.clear()
    assert (await client.post(body)).status == 200
    await wait_free(client)


async def test_a_full_journal_releases_it(start: Start, database_url: str):
    client = await start(journal_max_bytes="4MiB", segment_bytes="1MiB")
    body = json.dumps([{"name": "a", "properties": {"x": "y" * 900}}] * 3000).encode()
    answers = await asyncio.gather(*[client.post(body) for _ in range(6)])
    assert {answer.status for answer in answers} <= {200, 503}
    await wait_free(client)


async def connection_of(client: Client, sock: socket.socket) -> connections.Reader:
    """The server's side of a socket."""
    while True:
        for one in client.worker._server.connections:  # type: ignore[union-attr]
            assert isinstance(one, connections.Reader)
            if one.transport is not None and one.transport.get_extra_info("peername") == sock.getsockname():
                return one
        await asyncio.sleep(0.005)


async def test_responses_that_nobody_reads(start: Start, monkeypatch: pytest.MonkeyPatch):
    """10,000 refusals make a response of nearly a megabyte: it is charged, and does not wait forever for a reader."""
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1.0)
    client = await start(**LITTLE)
    refused = post(zipped(json.dumps([{"name": ""}] * 10_000).encode()))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", client.worker.port))
        # Nothing is read beyond what the system buffers.
        await loop.sock_sendall(sock, refused * 20)
        connection = await connection_of(client, sock)
        async with asyncio.timeout(60):
            while connection._unread is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert client.worker.budget.held >= connection._unread.size > 64 * 1024
        await wait_free(client)
        assert connection.transport is None
    assert (await client.post({"name": "small"})).status == 200
    await wait_free(client)


# Whose turn it is.


async def test_bodies_are_unpacked_in_turn(start: Start, monkeypatch: pytest.MonkeyPatch):
    client = await start(trusted_proxies=("127.0.0.1",), address_events_per_second=0, address_bytes_per_second=0)
    most, shared = 0, 0
    count = intake.Intake._count

    def look(self: intake.Intake, submission: Any) -> None:
        nonlocal most, shared
        count(self, submission)
        shares = [one.share for one in self._working]
        most, shared = max(most, len(shares)), max(shared, len(shares) - len(set(shares)))

    monkeypatch.setattr(intake.Intake, "_count", look)
    events = [{"name": "a", "id": "%d", "properties": {"x": "y" * 100}}] * 1000
    bodies = [json.dumps(events).replace("%d", f"batch-{number}").encode() for number in range(40)]
    answers = await asyncio.gather(
        *[
            client.post(zipped(body) if number % 2 else body, X_Forwarded_For=f"198.51.100.{number % 10}")
            for number, body in enumerate(bodies)
        ]
    )
    assert [answer.status for answer in answers] == [200] * 40
    # One per address at a time, and four in total.
    assert shared == 0 and 1 < most <= waiting.MOST_AT_ONCE
    assert len(await client.fetch("SELECT DISTINCT id FROM analytics.events")) == 40
    await wait_free(client)


async def test_when_memory_is_short_the_oldest_continues(start: Start):
    client = await start(trusted_proxies=("127.0.0.1",), address_events_per_second=0, address_bytes_per_second=0)
    client.worker.budget.work_room = 1
    large = json.dumps([{"name": "large", "properties": {"x": "y" * 100}}] * 2000).encode()
    # Small though they are, they take several bites.
    many = b"[" + b",".join([b'{"name":"many"}'] * 1500) + b"]"
    assert len(many) < SMALL_BYTES
    sent = [large, many, zipped(large), b'{"name":"small"}'] * 10
    answers = await asyncio.gather(
        *[client.post(body, X_Forwarded_For=f"198.51.100.{number % 7}") for number, body in enumerate(sent)]
    )
    assert [answer.status for answer in answers] == [200] * 40
    rows = await client.fetch("SELECT name, count(*) FROM analytics.events GROUP BY name ORDER BY name")
    assert [tuple(row) for row in rows] == [("large", 40_000), ("many", 15_000), ("small", 10)]
    await wait_free(client)


async def test_short_bodies_do_not_wait_for_memory(start: Start):
    """Single events get in while long bodies fill the memory for decoding, and are answered first."""
    client = await start(trusted_proxies=("127.0.0.1",), address_events_per_second=0, address_bytes_per_second=0)
    client.worker.budget.work_room = 1
    agents = [{"name": "a", "context": {"userAgent": f"agent {number} " + "Android " * 40}} for number in range(2000)]
    long = [
        asyncio.create_task(client.post(zipped(json.dumps(agents).encode()), X_Forwarded_For=f"198.51.100.{number}"))
        for number in range(4)
    ]
    async with asyncio.timeout(60):
        while client.worker.budget.worked <= 1:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for _ in range(5):
        answer = await client.post(b'{"name":"small"}', X_Forwarded_For="203.0.113.7")
        assert answer.status == 200
        assert not any(task.done() for task in long)
    assert [answer.status for answer in await asyncio.gather(*long)] == [200] * 4
    await wait_free(client)


async def test_finished_bodies_are_no_longer_in_turn(client: Client):
    """Including small ones that take bites all the same: each user agent is one."""
    agents = [{"name": "a", "context": {"userAgent": f"agent {number}"}} for number in range(50)]
    answers = await asyncio.gather(*[client.post(agents) for _ in range(5)], client.post(TINY))
    assert {answer.status for answer in answers} == {200}
    # There are intakes for clients' events, for internal ones and for replays: none has anything left.
    collect = next(iter(client.worker._server._posts.values()))  # type: ignore[union-attr]
    found = [cell.cell_contents for cell in collect.__closure__ or ()]
    intakes = [one._intake for one in found if hasattr(one, "_intake")]
    assert intakes and not any(one._working or one._queue or one._waiting for one in intakes)
    await wait_free(client)


@given(st.lists(st.integers(0, 5), max_size=60))
def test_nobody_waits_for_more_than_one_of_each(shares):
    line = waiting.Waiting()
    submissions: list[Any] = [
        SimpleNamespace(share=f"a{share}", place=place, admitted=False) for place, share in enumerate(shares)
    ]
    for submission in submissions:
        line.add(submission)
    order: list[Any] = []
    begun: list[Any] = []
    while line or begun:
        while (next_one := line.begin()) is not None:
            order.append(next_one)
            begun.append(next_one)
        assert len(begun) == len({one.share for one in begun}) <= waiting.MOST_AT_ONCE
        line.done(begun.pop(0))
    assert sorted(one.place for one in order) == list(range(len(shares)))
    for share in set(shares):
        places = [one.place for one in order if one.share == f"a{share}"]
        assert places == sorted(places)
        # Between two turns of an address, every other one has at most one that began before.
        turns = [index for index, one in enumerate(order) if one.share == f"a{share}"]
        for one, other in itertools.pairwise(turns):
            between = Counter(each.share for each in order[one + 1 : other])
            assert not between or max(between.values()) <= waiting.MOST_AT_ONCE


# The budget alone.


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Deadline:
    def __init__(self) -> None:
        self.has_come = False

    def expired(self) -> bool:
        return self.has_come

    def reschedule(self, when: float | None) -> None:
        self.has_come = True


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from((1, 5000, 30_000, 100_000)), st.sampled_from("tttra")),
        max_size=80,
    )
)
def test_the_books_of_the_budget(steps):
    clock = Clock()
    budget = Budget(1_000_000, clock)
    holds: list[Hold] = []
    for address, size, what in steps:
        clock.now += 1.0
        if what == "r" and holds:
            holds.pop(0).release()
        elif what == "a" and holds:
            # Bytes in memory already are counted in any case.
            holds[-1].add(10)
        else:
            hold = budget.hold(address)
            try:
                hold.take(size)
                holds.append(hold)
            except PayloadRefused:
                assert hold.size == 0
        assert budget.held == sum(hold.size for hold in holds) <= 500_000 + 1000
        for each in "abc":
            assert (
                budget._by_address.get(each, 0) == sum(h.size for h in holds if h.address == each) <= 250_000 + 1000
            )
    for hold in holds:
        hold.release()
        hold.release()
    assert (budget.held, budget._by_address, budget._arriving) == (0, {}, {})


async def test_which_upload_is_dropped():
    clock = Clock()
    budget = Budget(800_000, clock)  # 350,000 for large ones, 175,000 per address.
    uploads: dict[str, tuple[Hold, Deadline]] = {}
    for name, address, size in (("old", "a", 60_000), ("large", "a", 110_000), ("other", "b", 170_000)):
        hold, deadline = budget.hold(address), Deadline()
        hold.arriving(cast(asyncio.Timeout, deadline))
        hold.take(size)
        uploads[name] = hold, deadline
    newcomer = budget.hold("a")
    with pytest.raises(PayloadRefused):
        newcomer.take(50_000)
    clock.now += GRACE_SECONDS
    # One of the same address, although another's is larger.
    newcomer.take(50_000)
    assert [name for name, (_, deadline) in uploads.items() if deadline.has_come] == ["large"]
    with pytest.raises(PayloadRefused, match="memory for request bodies is short"):
        uploads["large"][0].take(1)
    # What has arrived is not dropped, and nothing is if it would not be enough.
    uploads["old"][0].arrived()
    late = budget.hold("c")
    with pytest.raises(PayloadRefused):
        late.expect(340_000)
    assert not uploads["other"][1].has_come
    late.expect(100_000)
    late.take(100_000)
    assert uploads["other"][1].has_come and not uploads["old"][1].has_come
    assert budget.dropped == 2 and budget.held == 60_000 + 50_000 + 100_000


@pytest.mark.parametrize("turns", range(4))
async def test_an_upload_dropped_at_its_deadline(turns: int):
    """Room is needed before, in and after the very turn of the loop in which the upload times out."""
    clock = Clock()
    budget = Budget(800_000, clock)
    outcomes: list[str] = []

    async def upload() -> None:
        hold = budget.hold("a")
        try:
            async with asyncio.timeout(60) as deadline:
                deadlines.append(deadline)
                hold.arriving(deadline)
                hold.take(170_000)
                await asyncio.sleep(60)
        except TimeoutError:
            outcomes.append("dropped" if hold.is_dropped else "too late")
        finally:
            hold.release()

    deadlines: list[asyncio.Timeout] = []
    task = asyncio.create_task(upload())
    await asyncio.sleep(0)
    clock.now += GRACE_SECONDS
    deadlines[0].reschedule(asyncio.get_running_loop().time())
    for _ in range(turns):
        await asyncio.sleep(0)
    newcomer = budget.hold("a")
    newcomer.take(170_000)
    await task
    assert outcomes == ["dropped" if turns < 2 else "too late"]
    newcomer.release()
    assert (budget.held, budget._by_address, budget._arriving) == (0, {}, {})


# What things cost.

SHAPES = {
    "lists": b"[" + b"[]," * 20_000 + b"[]]",
    "deep lists": b"[" + b"[[[[[[[[]]]]]]]]," * 4000 + b"[]]",
    "objects": b"[" + b'{"a":{}},' * 20_000 + b"{}]",
    "one large object": b"{" + b",".join([b'"%d":{}' % number for number in range(20_000)]) + b"}",
    "numbers": b"[" + b"1.5," * 20_000 + b"1]",
    "texts": b"[" + b",".join([b'"k%d"' % number for number in range(20_000)]) + b"]",
    "wide texts": json.dumps(["\U0001f4a5" + "a" * 30] * 3000, ensure_ascii=False).encode(),
    "one wide text": json.dumps("\U0001f4a5" + "a" * 100_000, ensure_ascii=False).encode(),
}


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        made = work()
        return tracemalloc.get_traced_memory()[1] if made is not None else 0
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", SHAPES)
def test_json_costs_no_more_than_is_counted(shape):
    text = SHAPES[shape]
    assert len(text) < peak_of(lambda: msgspec.json.decode(text)) + len(text) <= decoded_bytes(text)


FULL = {
    "name": "n", "type": "user_action", "id": "i", "timestamp": "2026-01-01T00:00:00Z", "user_id": "u",
    "anonymous_id": "a", "session_id": "s", "properties": {}, "context": {}, "url": "/", "referrer": "r",
}  # fmt: skip
EVENTS = {
    "empty": {}, "tiny": {"name": "a"}, "full": FULL, "wide": {**FULL, "url": "\U0001f4a5" + "u" * 300},
    "long": {**FULL, "properties": {"x": "y" * 1000}}, "renamed": {"Event_Name": "a", "more": {"x": "y" * 100}},
}  # fmt: skip


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("decode", [decode_native, lambda body, most: decode_segment(body, "track", most)])
def test_events_cost_no_more_than_is_counted(kind, decode):
    body = json.dumps([EVENTS[kind]] * 2000, ensure_ascii=False).encode()
    peak = peak_of(lambda: decode(body, 10_000))
    found: Payload = decode(body, 10_000)
    assert peak <= sum(part.memory_bytes for part in found.parts) + len(body)
