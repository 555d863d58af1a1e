"""How much an address may send: events, and bytes as written to the journal. And how many refused events are kept."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from ingest.base.refusals import RejectReason
from ingest.http.rate_limits import Volume
from ingest.journal import journal
from tests.support.collector import Answer, Start

SECRET = "an-admin-key-of-the-tests"
CALLS = {"name": "a"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# The bucket.


def test_events_and_bytes_share_a_bucket():
    clock = Clock()
    volume = Volume(10.0, 1000, 10, clock)
    assert volume.take("a", 50, 100) == 0.0
    assert volume.take("a", 1, 5000) == 0.0
    # Five seconds by events and five by bytes.
    assert volume.take("a", 1, 1) > 0
    assert volume.take("b", 100, 0) == 0.0
    clock.now += 1.0
    assert volume.take("a", 10, 1000) == 0.0
    assert volume.take("a", 0, 500) == pytest.approx(0.5)


def test_what_exceeds_the_burst_is_accepted_from_a_full_bucket_and_leaves_a_debt():
    clock = Clock()
    volume = Volume(10.0, 0, 10, clock)
    assert volume.take("a", 500, 10**9) == 0.0
    assert volume.wait("a") == pytest.approx(40.0)
    clock.now += 40.5
    assert volume.wait("a") == 0.0
    assert volume.take("a", 500, 0) == pytest.approx(9.5)


def test_a_body_over_the_limit_blocks_long_bodies_no_longer_than_it_must():
    clock = Clock()
    volume = Volume(0.0, 1000, 10, clock)
    assert volume.take("a", 1, 8000) == 0.0
    assert volume.wait_long("a") == 0.0
    assert volume.take("a", 1, 5000) == pytest.approx(3.0)
    assert volume.wait_long("a") == pytest.approx(3.0) and volume.wait("a") == 0.0
    # Small bodies are still accepted.
    assert volume.take("a", 1, 10) == 0.0
    clock.now += 3.1
    assert volume.wait_long("a") == 0.0 and volume.take("a", 1, 5000) == 0.0
    volume.add("a", 10_000)
    assert volume.wait("a") > 9.0


def test_the_memory_of_addresses_is_bounded(monkeypatch):
    monkeypatch.setattr(Volume, "MAX_CLOSED", 50)
    volume = Volume(1.0, 1, 1, Clock())
    for number in range(500):
        share = str(number)
        assert volume.take(share, 1, 1) == 0.0 and volume.take(share, 1, 1) > 0
        assert len(volume._closed) <= 50


@pytest.mark.parametrize(("events", "size", "enabled"), [(0.0, 0, False), (1.0, 0, True), (0.0, 1, True)])
def test_nothing_is_no_limit(events, size, enabled):
    assert Volume(events, size, 10, Clock()).enabled is enabled


# Over HTTP.


def batch(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{**CALLS, **more} for _ in range(count)]


def segment(count: int) -> dict[str, Any]:
    return {"batch": [{"type": "track", "event": "a", "userId": "u"} for _ in range(count)]}


def assert_limited(answer: Answer) -> None:
    assert answer.status == 429
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json()["code"] == answer.headers["X-Reject-Reason"] == "rate_limited"
    assert answer.json()["accepted"] == 0 and int(answer.headers["Retry-After"]) >= 1


SLOW = {"address_events_per_second": 0.1}
"""One event at once."""
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SHAPES: dict[str, tuple[str, Any, dict[str, str]]] = {
    "array": ("/v1/events", batch(20), {}),
    "batch": ("/v1/events", {"batch": batch(20), "sentAt": "2026-01-01T00:00:00Z"}, {}),
    "segment": ("/v1/batch", segment(20), {}),
    "gzip": ("/v1/events", gzip.compress(json.dumps(batch(20)).encode()), {}),
    "form": ("/v1/events", b"data=" + quote(json.dumps(batch(20))).encode(), FORM),
    "long": ("/v1/events", batch(20, properties={"x": "y" * 5000}), {}),
    "refused ones too": ("/v1/events", [*batch(5), *[{"name": ""}] * 15], {}),
    "beside the batch": ("/v1/events", {"batch": batch(20), "user_id": "u"}, {}),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_batch_is_refused_whole(start: Start, shape: str):
    path, body, headers = SHAPES[shape]
    client = await start(address_events_per_second=2.5)
    first = await client.post(body, path, **headers)
    accepted = first.json()["accepted"]
    assert first.status == 200 and accepted in (5, 20)
    # 25 at once: some would fit, but none is accepted.
    assert_limited(await client.post(body, path, **headers))
    assert (await client.post(CALLS)).status == 200
    assert len(await client.events()) == accepted + 1
    assert client.worker.accounts.rejected[RejectReason.RATE_LIMITED] == 1


async def test_single_events_are_counted_too(start: Start):
    client = await start(**SLOW)
    assert (await client.post(batch(3))).status == 200
    # The address is two in debt, so the body is not even read.
    for path, body in (("/v1/events", CALLS), ("/v1/t", {"event": "a"}), ("/v1/events", batch(3))):
        assert_limited(await client.post(body, path))
    assert len(await client.events()) == 3


async def test_an_address_is_what_a_trusted_proxy_says_and_of_ipv6_a_network(start: Start):
    client = await start(**SLOW, trusted_proxies=("127.0.0.1",))
    for address, status in (
        ("198.51.100.1", 200), ("198.51.100.1", 429), ("198.51.100.2", 200), ("2001:db8::1", 200),
        ("2001:db8::ffff:1", 429), ("2001:db8:0:1::1", 200), ("203.0.113.9, 198.51.100.1", 429),
    ):  # fmt: skip
        assert (await client.post(batch(2), X_Forwarded_For=address)).status == status


async def test_an_unlisted_proxy_is_named_in_the_log(start: Start, caplog: pytest.LogCaptureFixture):
    client = await start(**SLOW)
    for _ in range(4):
        await client.post(batch(2), X_Forwarded_For="198.51.100.1")
    lines = [record.getMessage() for record in caplog.records if "trusted_proxies" in record.getMessage()]
    assert len(lines) == 1 and "127.0.0.1" in lines[0] and "198.51.100.1" not in lines[0]


@pytest.mark.parametrize("where", ["Authorization", "X_Write_Key", "body", "query"])
async def test_secret_keys_are_not_limited(start: Start, where: str):
    client = await start(**SLOW, admin_keys=(SECRET,), write_keys=("public",))
    body: dict[str, Any] = {"batch": batch(50)}
    headers, path = {"X_Write_Key": SECRET}, "/v1/events"
    if where == "Authorization":
        headers = {"Authorization": f"Bearer {SECRET}"}
    elif where == "body":
        body, headers = {**body, "writeKey": SECRET}, {}
    elif where == "query":
        headers, path = {}, f"/v1/events?write_key={SECRET}"
    for _ in range(3):
        assert (await client.post(body, path, **headers)).status == 200
        assert (await client.post(gzip.compress(json.dumps(body).encode()), path, **headers)).status == 200
    # A write key is known to every visitor.
    assert (await client.post(body | {"writeKey": "public"}, X_Write_Key="public")).status == 200
    assert_limited(await client.post(body | {"writeKey": "public"}, X_Write_Key="public"))
    if where in ("Authorization", "X_Write_Key"):
        assert (await client.post(body, path, **headers)).status == 200


async def test_replays_are_not_limited(start: Start):
    client = await start(**SLOW)
    async with client.control() as session:
        for _ in range(3):
            async with session.post("http://worker/v1/events", data=json.dumps(batch(5))) as response:
                assert response.status == 200
    assert len(await client.events()) == 15


async def test_bytes_count_as_they_are_written(start: Start):
    """Including what is copied into separate columns, which cannot be known before."""
    url = "https://shop.example/" + "p" * 1500
    views = [{"name": "page_view", "properties": {"url": url}}] * 30
    plain = [{"name": "page_view", "properties": {"some": url}}] * 30
    sizes = {}
    for name, body in (("views", views), ("plain", plain)):
        client = await start(address_bytes_per_second=7000)
        assert (await client.post(body)).status == 200
        sizes[name] = await client.post(CALLS)
        await client.fetch("TRUNCATE analytics.events")
    assert sizes["plain"].status == 200
    assert_limited(sizes["views"])


PACKED = gzip.compress(json.dumps(batch(10_000)).encode())


@pytest.mark.parametrize(
    "body",
    [
        PACKED,
        gzip.compress(json.dumps({"batch": batch(10_000), "url": "https://a.example/" + "x" * 300}).encode()),
        gzip.compress(json.dumps(batch(4000, context={"userAgent": "u" * 1000})).encode()),
    ],
    ids=["a user agent", "an address beside the batch", "user agents in contexts"],
)
async def test_compression_does_not_evade_the_limit(start: Start, body: bytes, monkeypatch: pytest.MonkeyPatch):
    """An address may send a fixed amount and no more, however small the bodies that carry it."""
    # What of a body waits for a slow disk is more than 8 MiB here, and would be refused for that.
    monkeypatch.setattr(journal, "MAX_OPEN_BYTES", 512 * 1024 * 1024)
    per_second = 1000
    client = await start(journal_max_bytes="512MiB", retention_days=3650, address_events_per_second=per_second)
    assert len(body) < 50_000
    began = time.monotonic()
    answers = [await client.post(body, User_Agent="u" * 1000) for _ in range(25)]
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429} and statuses[0] == 200
    seconds = time.monotonic() - began
    rows = await client.fetch("SELECT count(*), max(length(user_agent)) AS agent FROM analytics.events")
    assert rows[0]["count"] == sum(answer.json()["accepted"] for answer in answers)
    assert rows[0]["agent"] <= 512
    assert rows[0]["count"] <= per_second * (10 + seconds) + 10_000
    assert_limited(next(answer for answer in answers if answer.status == 429))


async def test_kept_refusals_are_bounded_by_bytes(start: Start):
    client = await start(rejected_kept_per_second=1000, rejected_kept_bytes_per_second=20_000)
    began = time.monotonic()
    for _ in range(4):
        await client.post([{"name": "", "properties": {"x": "y" * 5000}}] * 10)
        await client.post(b"{" + b"y" * 10_000)
    seconds = time.monotonic() - began
    rows = await client.rejected()
    kept = sum(len(row["payload"]) for row in rows)
    assert 3 * 5000 < kept <= 20_000 * (1 + seconds)
    assert client.worker.accounts.rejected[RejectReason.MISSING_NAME] == 40
    # One that exceeds the whole limit is kept if nothing else was.
    alone = await start(rejected_kept_bytes_per_second=100)
    before = len(rows)
    await alone.post(b"{" + b"y" * 10_000)
    await alone.post(b"{" + b"y" * 10_000)
    assert len(await alone.rejected()) == before + 1
