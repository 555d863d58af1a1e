"""The collector over HTTP, from the request to the row: requests, responses, and what is stored."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.base.refusals import RejectReason
from ingest.intake.collect import SEGMENT_CALLS
from ingest.intake.opening import RECEIVED_AT_HEADER, SENT_AT_HEADER
from ingest.journal import segment_writer
from ingest.service import control
from tests.support.clients import basic
from tests.support.collector import Answer, Client, Start, errors
from tests.support.countries import write_database

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
ORIGIN = "https://app.example.com"
ACCEPTED_ONE = {"accepted": 1, "rejected": []}


def assert_refused(answer: Answer, status: int, reason: str) -> None:
    """Assert that nothing of a request was accepted, in the form in which every SDK must see it."""
    outcome = answer.json()
    assert (answer.status, outcome["code"], outcome["accepted"]) == (status, reason, 0), outcome
    assert outcome["message"] and outcome["rejected"][0]["reason"] == reason
    assert answer.headers["X-Reject-Reason"] == reason
    assert answer.headers["Content-Type"].startswith("application/problem+json")


@contextlib.asynccontextmanager
async def locked_events(database_url: str) -> AsyncIterator[None]:
    """While this is open the writer cannot store anything: Postgres responds, but waits for a lock."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.events IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


# Bodies.


async def test_the_content_type_does_not_matter(client: Client):
    types = [
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=----x",
        "multipart/form-data",
        None,
        "application/json",
        "application/json; charset=latin-1",
        "nonsense",
        "",
    ]
    for index, kind in enumerate(types):
        headers = {} if kind is None else {"Content_Type": kind}
        answer = await client.post({"name": f"sent-{index}"}, **headers)
        assert (answer.status, answer.json()) == (200, ACCEPTED_ONE), kind
    assert await client.names() == [f"sent-{index}" for index in range(len(types))]


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


async def test_compressed_bodies_with_and_without_content_encoding(client: Client):
    def body(index: int) -> bytes:
        return json.dumps({"name": f"sent-{index}", "properties": {"filler": "x" * 1000}}).encode()

    sent = [
        (gzip.compress(body(0)), {"Content_Encoding": "gzip"}),
        (gzip.compress(body(1)), {}),
        (gzip.compress(body(2)), {"Content_Encoding": "x-gzip"}),
        (gzip.compress(body(3)[:7]) + gzip.compress(body(3)[7:]), {"Content_Encoding": "GZIP"}),
        (zlib.compress(body(4)), {"Content_Encoding": "deflate"}),
        (raw_deflate(body(5)), {"Content_Encoding": "deflate"}),
        (body(6), {"Content_Encoding": "identity"}),
        (body(7), {"Content_Encoding": "gzip"}),
        (b"\xef\xbb\xbf \n" + body(8) + b"\n", {}),
    ]
    for content, headers in sent:
        answer = await client.post(content, **headers)
        assert (answer.status, answer.json()) == (200, ACCEPTED_ONE), (content[:20], headers)
    assert await client.names() == [f"sent-{index}" for index in range(len(sent))]


async def test_damaged_compression_is_a_400_on_a_connection_that_goes_on(client: Client, caplog):
    whole = gzip.compress(b'{"name": "never"}' * 100)
    damaged = whole[:20] + b"\xff" * 10 + whole[30:]
    wrong_sum = gzip.compress(b'{"name": "never"}')[:-8] + b"12345678"
    cut = gzip.compress(b'{"name": "never"}')[:-4]
    bad = [
        (content, headers)
        for content in (damaged, wrong_sum, cut, b"\x1f\x8b")
        for headers in ({}, {"Content-Encoding": "gzip"})
    ]
    bad += [
        (b"not gzip at all", {"Content-Encoding": "gzip"}),
        (zlib.compress(b'{"name": "never"}')[:-3], {"Content-Encoding": "deflate"}),
        (b"not deflate at all", {"Content-Encoding": "deflate"}),
        (b"\x0b\x02\x80", {"Content-Encoding": "br"}),
        (b"\x28\xb5\x2f\xfd", {"Content-Encoding": "zstd"}),
    ]
    async with await client.raw() as raw:
        for content, headers in bad:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            await raw.send(f"POST /v1/events HTTP/1.1\r\nHost: x\r\n{head}".encode())
            await raw.send(b"Content-Length: %d\r\n\r\n" % len(content), content)
            answer = await raw.answer()
            outcome = answer.json()
            assert (answer.status, outcome["code"]) == (400, "bad_encoding"), (content, headers, outcome)
            assert "connection" not in answer.headers
        await raw.send(b'POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"name": "last"}')
        assert (await raw.answer()).status == 200
    assert errors(caplog) == []
    assert client.worker.accounts.rejected[RejectReason.BAD_ENCODING] == len(bad)
    assert await client.names() == ["last"]


async def test_gzip_bombs_end_at_the_limit(start: Start):
    client = await start(max_body_bytes="1MB")
    megabyte = b" " * 1_000_000
    stream = zlib.compressobj(wbits=31)
    bomb = b"".join(stream.compress(megabyte) for _ in range(200)) + stream.flush()
    joined = gzip.compress(megabyte[:999_000]) * 90
    flat = zlib.compress(b'{"name": "' + megabyte * 50)
    tracemalloc.start()
    try:
        for content, headers in (
            (bomb, {}),
            (bomb, {"Content_Encoding": "gzip"}),
            (joined, {"Content_Encoding": "gzip"}),
            (flat, {"Content_Encoding": "deflate"}),
        ):
            assert len(content) < 1_000_000
            assert_refused(await client.post(content, **headers), 413, "body_too_large")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert (await client.post({"name": "after"})).status == 200


async def test_a_body_may_be_as_large_as_the_limit_and_no_larger(start: Start):
    client = await start(max_body_bytes="100kB", max_event_bytes="1kB")
    body = json.dumps({"name": "padded"}).encode()
    assert (await client.post(body.ljust(100_000))).status == 200
    assert_refused(await client.post(body.ljust(100_001)), 413, "body_too_large")
    assert_refused(await client.post(body.ljust(3_000_000)), 413, "body_too_large")
    assert (await client.post(gzip.compress(body.ljust(100_000)))).status == 200
    assert_refused(await client.post(gzip.compress(body.ljust(100_001))), 413, "body_too_large")


# Shapes and refusals.


async def test_one_event_an_array_or_a_batch(client: Client):
    assert (await client.post({"name": "alone"})).json() == ACCEPTED_ONE
    assert (await client.post([{"name": "first"}, {"name": "second"}])).json() == {"accepted": 2, "rejected": []}
    batch = {"batch": [{"name": "third"}] * 3, "sentAt": "2020-01-01T00:00:00Z"}
    assert (await client.post(batch)).json() == {"accepted": 3, "rejected": []}
    assert await client.names() == ["alone", "first", "second", "third", "third", "third"]


async def test_bad_events_are_refused_by_index_and_the_rest_is_stored(client: Client):
    mixed = [
        {"name": "good"},
        {"name": ""},
        7,
        {"name": "good", "timestamp": "yesterday"},
        {"name": "good", "properties": []},
        {"name": "good"},
        {"name": "x", "type": "unknown"},
    ]
    for body in (mixed, {"batch": mixed}):
        answer = await client.post(body)
        outcome = answer.json()
        assert answer.status == 200 and outcome["accepted"] == 2
        assert [(each["index"], each["reason"]) for each in outcome["rejected"]] == [
            (1, "missing_name"),
            (2, "not_an_object"),
            (3, "invalid_timestamp"),
            (4, "invalid_properties"),
            (6, "invalid_type"),
        ]
        assert all(each["detail"] for each in outcome["rejected"])
        assert answer.headers["X-Reject-Reason"] == "missing_name"
    assert await client.names() == ["good"] * 4


async def test_the_index_is_right_beyond_the_first_slice(client: Client):
    events: list[dict[str, Any]] = [{"name": f"n{index}"} for index in range(1800)]
    bad = [3, 499, 500, 501, 999, 1000, 1799]
    for index in bad:
        events[index] = {"properties": {"at": index}}
    outcome = (await client.post(events)).json()
    assert outcome["accepted"] == len(events) - len(bad)
    assert [each["index"] for each in outcome["rejected"]] == bad
    rows = await client.rejected()
    assert [json.loads(row["payload"])["properties"]["at"] for row in rows] == bad


async def test_a_400_names_the_first_reason_if_no_event_is_accepted(client: Client):
    answer = await client.post([{"name": ""}, 7])
    assert_refused(answer, 400, "missing_name")
    assert [each["index"] for each in answer.json()["rejected"]] == [0, 1]
    answer = await client.post(b'{"name": ')
    assert_refused(answer, 400, "malformed_json")
    assert answer.json()["rejected"][0]["index"] is None
    for body in (b"", b"  \n", b"[]", b'{"batch": []}'):
        assert_refused(await client.post(body), 400, "empty_payload")
    assert await client.events() == []


async def test_too_many_events_are_refused_as_a_whole(start: Start):
    client = await start(max_batch_events=3)
    assert (await client.post([{"name": "a"}] * 3)).json()["accepted"] == 3
    assert_refused(await client.post([{"name": "b"}] * 4), 413, "too_many_events")
    assert_refused(
        await client.post({"batch": [{"event": "b", "type": "track"}] * 4}, "/v1/batch"), 413, "too_many_events"
    )
    assert await client.names() == ["a"] * 3


# Rows.


async def test_a_country_is_accepted_only_from_trusted_proxies(start: Start):
    strangers, behind = await start(), await start(trusted_proxies=["127.0.0.1"])
    elsewhere = await start(trusted_proxies=["10.0.0.0/8"])
    for client, name in ((strangers, "stranger"), (elsewhere, "elsewhere"), (behind, "behind")):
        for header in ("CF_IPCountry", "X_Country_Code", "CloudFront_Viewer_Country"):
            for country in ("AU", "EU", "XX", "T1"):
                assert (await client.post({"name": f"{name} {country}"}, **{header: country})).status == 200
        await client.settled()
    rows = await behind.fetch("SELECT DISTINCT name, country FROM analytics.events WHERE country IS NOT NULL")
    assert [tuple(row) for row in rows] == [("behind AU", "AU")]


async def test_the_row_holds_what_event_and_request_say(start: Start):
    client = await start(trusted_proxies=["127.0.0.1"])
    message_id = str(uuid4())
    event = {
        "id": message_id,
        "name": "page_view",
        "user_id": 17,
        "anonymous_id": "anon",
        "session_id": "s1",
        "url": "https://Shop.example.com:8443/a%20b?utm_source=news&utm_medium=mail&utm_campaign=may&utm_term=t&utm_content=c",
        "referrer": "https://www.google.com/search?q=x",
        "properties": {"price": 1.50, "tab": "a\tb\\n", "emoji": "😀"},
        "context": {"locale": "de"},
    }
    assert (await client.post(event, User_Agent=CHROME, CF_IPCountry="au")).status == 200
    (row,) = await client.events()
    wanted = {
        "type": "page_view",
        "name": "page_view",
        "user_id": "17",
        "anonymous_id": "anon",
        "session_id": "s1",
        "url": event["url"],
        "page_host": "shop.example.com",
        "page_path": "/a%20b",
        "referrer_host": "google.com",
        "source": "news",
        "utm_source": "news",
        "utm_medium": "mail",
        "utm_campaign": "may",
        "utm_term": "t",
        "utm_content": "c",
        "user_agent": CHROME,
        "device_type": "desktop",
        "browser": "Chrome",
        "os": "Windows",
        "country": "AU",
        "region": None,
    }
    assert {name: row[name] for name in wanted} == wanted
    assert str(row["id"]) == message_id
    assert str(row["ip_address"]) == "127.0.0.0"
    assert json.loads(row["properties"]) == event["properties"]
    assert json.loads(row["context"]) == event["context"]
    assert row["created_at"] == row["received_at"]
    assert row["batch_id"] >> 40 == client.worker.journal.number


async def test_events_of_one_time_keep_the_order_in_which_they_were_sent(client: Client):
    """In a batch of several turns of the loop, across requests of one connection, and with refused and repeated ones
    between them."""
    at = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    sent: list[str] = []

    def batch(size: int) -> bytes:
        events: list[object] = []
        for _ in range(size):
            sent.append(f"n{len(sent)}")
            event = {"name": sent[-1], "id": sent[-1], "timestamp": at}
            again = {"name": "again", "id": sent[len(sent) // 2], "timestamp": at}
            # The second is refused by a step, and the third is a duplicate.
            events += [event, {"name": ""}, again] if len(sent) % 3 == 0 else [event]
        return json.dumps(events).encode()

    async with await client.raw() as raw:
        for sizes in ([1, 2, 700, 3], [1] * 20, [40, 1200, 1, 1]):
            for body in map(batch, sizes):
                raw.writer.write(
                    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
            for _ in sizes:
                assert (await raw.answer()).status == 200
    rows = await client.fetch(
        "SELECT name, batch_id, batch_position FROM analytics.events"
        " ORDER BY created_at, received_at, batch_id, batch_position"
    )
    assert [row["name"] for row in rows] == sent
    assert len({(row["batch_id"], row["batch_position"]) for row in rows}) == len(sent)


async def test_nothing_is_invented_for_a_bare_event(client: Client):
    await client.post({"name": "bare"})
    (row,) = await client.events()
    filled = {name for name, value in row.items() if value is not None}
    assert filled == {
        "id", "created_at", "received_at", "type", "name", "properties", "context", "ip_address", "batch_id",
        "batch_position",
    }  # fmt: skip
    assert (row["type"], row["properties"], row["context"]) == ("user_action", "{}", "{}")


async def test_the_whole_address_is_kept_when_asked(start: Start):
    client = await start(anonymise_ip=False)
    await client.post({"name": "a"})
    assert str((await client.events())[0]["ip_address"]) == "127.0.0.1"


async def test_an_address_in_the_context_is_stored_like_the_connections(start: Start, tmp_path):
    """A server sends its user's address; it is anonymised, and looked up if a file is configured."""
    message = {"type": "track", "event": "e", "userId": "u"}
    batch = [
        {**message, "event": "public", "context": {"ip": "1.2.3.4"}},
        {**message, "event": "private", "context": {"ip": "10.1.2.3"}},
        {**message, "event": "six", "context": {"ip": "2600:1f00:1:2::3"}},
    ]
    query = "SELECT host(ip_address) AS address, country, region FROM analytics.events ORDER BY received_at, name"
    proxies = ["127.0.0.1"]
    plain = await start(anonymise_ip=False, trusted_proxies=proxies)
    looked_up = await start(geoip_database=write_database(tmp_path / "city.mmdb"), trusted_proxies=proxies)
    for client in (plain, looked_up):
        assert (await client.post({"batch": batch}, "/v1/batch", CF_IPCountry="US")).status == 200
        await client.settled()
    assert [tuple(row) for row in await looked_up.fetch(query)] == [
        ("127.0.0.1", "US", None),
        ("1.2.3.4", None, None),
        ("2600:1f00:1:2::3", None, None),
        ("127.0.0.0", "US", None),
        ("1.2.3.0", "AU", "NSW"),
        ("2600:1f00:1::", None, None),
    ]


async def test_an_address_in_the_context_does_not_count_for_the_rate_limit(start: Start):
    client = await start(rate_limit_per_second=0.001, rate_limit_burst=2)
    answers = [await client.post({"name": "a", "context": {"ip": f"1.2.3.{index}"}}) for index in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_forwarded_addresses_count_only_behind_a_trusted_proxy(start: Start):
    plain = await start()
    await plain.post({"name": "plain"}, X_Forwarded_For="198.51.100.7")
    assert str((await plain.events())[0]["ip_address"]) == "127.0.0.0"
    behind = await start(trusted_proxies=("127.0.0.1", "10.0.0.0/8"))
    for index, forwarded in enumerate(("198.51.100.7", "6.6.6.6, 198.51.100.7, 10.1.2.3", "2001:db8:1:2::3")):
        await behind.post({"name": f"behind-{index}"}, X_Forwarded_For=forwarded)
    rows = await behind.fetch(
        "SELECT ip_address::text FROM analytics.events WHERE name LIKE 'behind-%' ORDER BY name"
    )
    assert [row["ip_address"] for row in rows] == ["198.51.100.0/32", "198.51.100.0/32", "2001:db8:1::/128"]


async def test_a_header_that_is_not_utf_8_is_harmless(client: Client, caplog):
    async with await client.raw() as raw:
        for name in (
            b"User-Agent",
            b"Origin",
            b"CF-IPCountry",
            b"X-Forwarded-For",
            b"Authorization: Basic",
            b"Content-Encoding",
        ):
            await raw.send(b"POST /v1/events HTTP/1.1\r\nHost: x\r\n", name, b": \xff\xfe\x80\r\n")
            await raw.send(b'Content-Length: 12\r\n\r\n{"name":"a"}')
            assert (await raw.answer()).status == 200, name
        await raw.send(b"GET /v1/projects/k/settings HTTP/1.1\r\nHost: \xff\r\n\r\n")
        assert (await raw.answer()).status == 200
        await raw.send(
            b"OPTIONS / HTTP/1.1\r\nHost: x\r\nOrigin: \xff\r\nAccess-Control-Request-Headers: \xff\r\n\r\n"
        )
        assert (await raw.answer()).status == 204
    assert len(await client.events()) == 6
    assert errors(caplog) == []


# Segment.


async def test_every_path_of_segment(client: Client):
    kinds = {"track": ("user_action", "Bought"), "page": ("page_view", "Home"), "screen": ("page_view", "Home")}
    for path, call in SEGMENT_CALLS.items():
        message: dict[str, object] = {"event": "Bought", "name": "Home", "messageId": path, "anonymousId": "anon"}
        message |= {"userId": "u1", "groupId": "g1", "previousId": "p1", "traits": {"plan": "pro"}}
        body: object = message if call else {"batch": [{**message, "type": "identify"}]}
        answer = await client.post(body, path, Content_Type="text/plain")
        assert (answer.status, answer.json()) == (200, ACCEPTED_ONE), path
    rows = await client.fetch("SELECT type::text, name, user_id, properties FROM analytics.events ORDER BY batch_id")
    found = [(row["type"], row["name"]) for row in rows]
    assert found == [kinds.get(call or "identify", ("system", call or "identify")) for call in SEGMENT_CALLS.values()]
    assert {row["user_id"] for row in rows} == {"u1"}
    properties = {"plan": "pro", "event": "Bought", "name": "Home", "groupId": "g1", "previousId": "p1"}
    assert json.loads(rows[0]["properties"]) == properties


async def test_a_segment_batch_mixes_calls_and_refuses_unknown_ones(client: Client):
    answer = await client.post(
        {
            "batch": [
                {"type": "track", "event": "Bought", "userId": "u1", "messageId": "not-a-uuid", "timestamp": None},
                {"type": "video", "userId": "u1"},
                {"type": "track", "userId": "u1"},
                {"type": "alias", "previousId": "old", "userId": "u1"},
            ],
            "sentAt": None,
        },
        "/v1/batch",
    )
    outcome = answer.json()
    assert (answer.status, outcome["accepted"]) == (200, 2)
    assert [(each["index"], each["reason"]) for each in outcome["rejected"]] == [
        (1, "invalid_type"),
        (2, "missing_name"),
    ]
    assert await client.names() == ["Bought", "alias"]


async def test_the_settings_document_points_the_browser_back_at_us(start: Start):
    client = await start()
    answer = await client.get("/v1/projects/KEY/settings", Origin=ORIGIN)
    named = answer.json()["integrations"]["Segment.io"]
    assert answer.status == 200
    assert (named["apiKey"], named["apiHost"], named["protocol"]) == (
        "KEY",
        f"127.0.0.1:{client.worker.port}/v1",
        "http",
    )
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    public = await start(public_url="https://events.example.com")
    answer = await public.get("/v1/projects/KEY/settings")
    named = answer.json()["integrations"]["Segment.io"]
    assert (named["apiHost"], named["protocol"]) == ("events.example.com/v1", "https")
    # A cache must not give a browser the response without CORS headers that a server requested.
    assert "max-age" in answer.headers["Cache-Control"] and answer.headers["Vary"] == "Origin"


# Write keys.


async def test_the_write_key_is_accepted_in_many_places(start: Start):
    client = await start(write_keys=("first", "second"))
    event = {"name": "a"}
    welcome: list[Any] = [
        (event, "", {"Authorization": basic("first")}),
        (event, "", {"Authorization": basic("second")}),
        (event, "", {"Authorization": "Basic " + base64.b64encode(b"first").decode()}),
        (event, "", {"Authorization": "Bearer first"}),
        (event, "", {"Authorization": "bearer  first "}),
        (event, "", {"X_Write_Key": "first"}),
        (event, "?writeKey=first", {}),
        (event, "?x=1&write_key=second", {}),
        *[({**event, name: "first"}, "", {}) for name in ("writeKey", "write_key", "api_key", "token")],
        ({"batch": [event], "writeKey": "first"}, "", {}),
        # A header takes precedence over the body, where some clients mask the key.
        ({**event, "writeKey": "****"}, "", {"Authorization": basic("first")}),
        ({**event, "writeKey": "****"}, "?writeKey=first", {}),
        (event, "", {"Authorization": "Digest x", "X_Write_Key": "first"}),
    ]
    for body, query, headers in welcome:
        answer = await client.post(body, f"/v1/events{query}", **headers)
        assert answer.status == 200, (body, query, headers, answer.body)
    segment = {"type": "track", "event": "b", "writeKey": "second"}
    assert (await client.post(segment, "/v1/t")).status == 200
    assert len(await client.names()) == len(welcome) + 1


async def test_without_the_right_key_nothing_is_stored(start: Start):
    client = await start(write_keys=("right", "clé"))
    event = {"name": "never", "writeKey": "right"}
    refused: list[Any] = [
        ({"name": "never"}, "", {}),
        ([{"name": "never"}], "", {}),
        ({"name": "never"}, "", {"Authorization": basic("wrong")}),
        ({"name": "never"}, "", {"Authorization": basic("")}),
        ({"name": "never"}, "", {"Authorization": "Basic !!!"}),
        ({"name": "never"}, "", {"Authorization": "Basic ÿé"}),
        ({"name": "never"}, "", {"Authorization": "Basic"}),
        ({"name": "never"}, "", {"Authorization": "Bearer "}),
        ({"name": "never"}, "", {"X_Write_Key": "righ"}),
        ({"name": "never"}, "", {"X_Write_Key": "right2"}),
        ({"name": "never"}, "?writeKey=%ff", {}),
        ({"name": "never", "writeKey": 7}, "", {}),
        ({"name": "never", "writeKey": ["right"]}, "", {}),
        ({"batch": [{"name": "never", "writeKey": "right"}]}, "", {}),
        (event, "", {"Authorization": basic("wrong")}),
        (event, "", {"X_Write_Key": "wrong"}),
        (event, "?writeKey=wrong", {}),
    ]
    for body, query, headers in refused:
        answer = await client.post(body, f"/v1/events{query}", **headers)
        assert_refused(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert b"right" not in answer.body
    assert client.worker.accounts.rejected[RejectReason.UNAUTHORIZED] == len(refused)
    assert (await client.post({"name": "ok"}, X_Write_Key="clé")).status == 200
    assert await client.names() == ["ok"]
    assert await client.rejected() == []


# CORS.


def assert_readable(answer: Answer, origin: str = ORIGIN) -> None:
    """Assert that a page of this origin, which sends cookies, may read the response."""
    headers = answer.headers
    assert headers["Access-Control-Allow-Origin"] == origin
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"
    exposed = headers["Access-Control-Expose-Headers"]
    assert "Retry-After" in exposed and "X-Reject-Reason" in exposed and "ETag" in exposed


async def test_every_status_carries_cors_headers(start: Start, monkeypatch, caplog):
    client = await start(write_keys=("k",), max_body_bytes="1kB", max_event_bytes="1kB")
    limited = await start(rate_limit_per_second=0.001, rate_limit_burst=1)
    named = {"Origin": ORIGIN, "X_Write_Key": "k"}
    answers = [
        await client.post({"name": "a"}, **named),
        await client.request("OPTIONS", "/v1/events", **named),
        await client.post(b"{", **named),
        await client.post({"name": "a"}, Origin=ORIGIN),
        await client.get("/nowhere", **named),
        await client.post(b"{}", "/nowhere", **named),
        await client.get("/v1/events", **named),
        await client.post(b" " * 2000, **named),
        await client.get("/healthz", **named),
        await client.get("/metrics", **named),
        await limited.post({"name": "a"}, **named),
        await limited.post({"name": "a"}, **named),
    ]
    monkeypatch.setattr(client.worker.journal, "_max_bytes", 0)
    answers += [await client.post({"name": "a"}, **named), await client.get("/readyz", **named)]
    statuses = [200, 204, 400, 401, 404, 404, 405, 413, 200, 200, 200, 429, 503, 503]
    assert [answer.status for answer in answers] == statuses
    for place, answer in enumerate(answers):
        if place in (4, 5, 8, 9, 13):
            # Routes that take no events are only for pages that api_origins lists.
            assert "Access-Control-Allow-Origin" not in answer.headers
        else:
            assert_readable(answer)
        if answer.status >= 400 and answer.body and "code" not in answer.json():
            assert answer.json()["status"] == "not ready"
    monkeypatch.undo()
    monkeypatch.setattr("ingest.intake.collect.Submission", None)
    broken = await client.post({"name": "a"}, **named)
    assert (broken.status, broken.json()["code"]) == (500, "internal_error")
    assert_readable(broken)
    assert (await client.metrics())['ingest_http_requests_total{route="/v1/events",status="500"}'] == 1
    assert errors(caplog) == ["POST /v1/events failed"]
    caplog.clear()


@pytest.mark.parametrize(
    "head",
    ["HTTP/1.1", "HTTP/1.0", "HTTP/1.0\r\nConnection: keep-alive", "HTTP/1.1\r\nConnection: close"],
)
@pytest.mark.parametrize("origin", ["", "\r\nOrigin: https://shop.example"])
async def test_the_usual_response_has_the_same_headers_as_others(client: Client, head: str, origin: str):
    """It is written by a fast path. A response with a refusal, which is not, has the same headers."""

    def request(body: bytes) -> bytes:
        return f"POST /v1/events {head}\r\nHost: x{origin}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    heads: list[dict[str, str]] = []
    for body in (b'[{"name":"a"}]', b'[{"name":"a"},{}]'):
        async with await client.raw() as raw:
            await raw.send(request(body))
            answer = await raw.answer()
            assert answer.status == 200 and answer.json()["accepted"] == 1
            heads.append(dict(answer.headers))
            if head in ("HTTP/1.0", "HTTP/1.1\r\nConnection: close"):
                assert await raw.closed()
            else:
                await raw.send(request(body))
                assert (await raw.answer()).json()["accepted"] == 1
    usual, other = heads
    assert usual.keys() == other.keys() - {"x-reject-reason"}
    differing = {"date", "content-length"}
    assert {name: usual[name] for name in usual.keys() - differing} == {
        name: other[name] for name in usual.keys() - differing
    }


async def test_without_an_origin_there_are_no_cors_headers(client: Client):
    answer = await client.post({"name": "a"})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_only_listed_origins_may_read(start: Start):
    client = await start(cors_origins=(ORIGIN, "https://other.example.com"))
    assert_readable(await client.post({"name": "a"}, Origin=ORIGIN))
    assert_readable(await client.post({"name": "a"}, Origin="https://other.example.com"), "https://other.example.com")
    for stranger in ("https://evil.example.com", "null", f"{ORIGIN}.evil.com", ORIGIN.upper()):
        for method in ("POST", "OPTIONS"):
            answer = await client.request(method, "/v1/events", {"name": "a"}, Origin=stranger)
            assert "Access-Control-Allow-Origin" not in answer.headers, stranger
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert answer.headers["Vary"] == "Origin"


async def test_a_preflight_grants_what_is_requested(client: Client):
    wanted = "authorization,content-type,x-write-key,anonymousid,sentat"
    for path in ("/v1/events", "/v1/t"):
        answer = await client.request(
            "OPTIONS",
            path,
            Origin=ORIGIN,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers=wanted,
        )
        assert (answer.status, answer.body) == (204, b"")
        assert_readable(answer)
        assert answer.headers["Access-Control-Allow-Headers"] == wanted
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert int(answer.headers["Access-Control-Max-Age"]) >= 600
    assert client.worker.accounts.received == 0


# Limits and health.


async def test_a_rate_limit_says_when_to_come_back(start: Start):
    client = await start(rate_limit_per_second=0.5, rate_limit_burst=3, trusted_proxies=("127.0.0.1",))
    answers = [await client.post({"name": "a"}, X_Forwarded_For="198.51.100.1") for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert_refused(answers[-1], 429, "rate_limited")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 3
    assert (await client.post({"name": "b"}, X_Forwarded_For="198.51.100.2")).status == 200
    assert client.worker.accounts.rejected[RejectReason.RATE_LIMITED] == 2
    assert await client.names() == ["a", "a", "a", "b"]


async def test_a_full_journal_is_an_honest_503_and_recovers(start: Start, database_url: str):
    client = await start(journal_max_bytes="12MiB", segment_bytes="1MiB", max_event_bytes="512kB")
    assert (await client.get("/readyz")).status == 200
    filler = {"filler": "x" * 500_000}
    accepted = 0
    async with locked_events(database_url):
        while True:
            body = [{"id": str(uuid4()), "name": "a", "properties": filler} for _ in range(4)]
            if (answer := await client.post(body)).status != 200:
                break
            accepted += 4
            assert accepted < 40
        assert_refused(answer, 503, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1
        assert accepted >= 12
        # A single event still fits where the batch did not, until the journal is full.
        while (await client.post({"name": "a", "properties": filler})).status == 200:
            accepted += 1
            assert accepted < 40
        ready = await client.get("/readyz")
        assert (ready.status, ready.json()["status"]) == (503, "not ready")
        assert (await client.get("/healthz")).status == 200
        # Invalid events get a 400, full or not.
        assert_refused(await client.post([{"name": ""}]), 400, "missing_name")
        assert_refused(await client.post(b"{"), 400, "malformed_json")
        assert client.worker.accounts.unaccounted == 0
    await client.settled()
    assert 1 <= client.worker.accounts.rejected[RejectReason.OVERLOADED] <= 4
    assert (await client.get("/readyz")).status == 200
    assert (await client.post(body)).json() == {"accepted": 4, "rejected": []}
    assert len(await client.events()) == accepted + 4


async def test_a_failing_disk_is_a_503_and_the_retry_is_no_duplicate(client: Client, monkeypatch):
    event = {"id": str(uuid4()), "name": "a"}

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ingest.journal.segment_writer.write_all", fail)
        assert_refused(await client.post(event), 503, "journal_unavailable")
        assert (await client.get("/readyz")).status == 503
    answer = await client.post(event)
    assert (answer.status, answer.json()) == (200, ACCEPTED_ONE)
    assert (await client.get("/readyz")).status == 200
    assert await client.names() == ["a"]


async def test_without_the_database_events_are_accepted_and_stored_later(start: Start, database_url: str, postgres):
    client = await start()
    name = urlsplit(database_url).path.lstrip("/")
    admin = await asyncpg.connect(postgres.dsn)
    try:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'ingest partitions'"
        while await admin.fetchval(busy, name):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        assert (await client.post({"name": "kept"})).json() == ACCEPTED_ONE
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).json()["postgres"] != "down":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ready = await client.get("/readyz")
        assert (ready.status, ready.json()["status"], ready.json()["pending"]) == (200, "ready", 1)
        assert (await client.metrics())["ingest_postgres_up"] == 0
        assert (await client.post({"name": "kept"})).status == 200
    finally:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()
    assert await client.names() == ["kept", "kept"]
    assert (await client.get("/readyz")).json()["postgres"] == "up"


async def test_health_answers_get_and_head(client: Client):
    answer = await client.get("/healthz")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert (await client.request("HEAD", "/readyz")).status == 200


# Duplicates.


async def test_an_event_sent_again_is_stored_once(client: Client):
    event = {"id": str(uuid4()), "name": "once"}
    again = [event, event, {**event, "id": event["id"].upper()}]
    assert (await client.post(again)).json() == {"accepted": 3, "duplicates": 2, "rejected": []}
    assert (await client.post(event)).json() == {"accepted": 1, "duplicates": 1, "rejected": []}
    answer = await client.post([{"id": "not a uuid", "name": "other"}, {"name": ""}] * 2)
    assert (answer.json()["accepted"], answer.json()["duplicates"], len(answer.json()["rejected"])) == (2, 1, 2)
    assert (
        await client.post({"type": "track", "event": "other", "messageId": "not a uuid"}, "/v1/batch")
    ).status == 200
    assert await client.names() == ["once", "other"]
    accounts = client.worker.accounts
    assert (accounts.received, accounts.stored, accounts.duplicate_at_door) == (9, 2, 5)


async def test_a_retry_in_flight_waits_for_the_first_try(client: Client, monkeypatch):
    event = {"id": str(uuid4()), "name": "once"}
    for fails in (True, False):
        gate = threading.Event()

        def write_slowly(descriptor, content, gate=gate, fails=fails, write=segment_writer.write_all):
            gate.wait(60)
            if fails:
                raise OSError(5, "Input/output error")
            write(descriptor, content)

        with monkeypatch.context() as patch:
            patch.setattr("ingest.journal.segment_writer.write_all", write_slowly)
            tries = [asyncio.create_task(client.post(event)) for _ in range(3)]
            try:
                _, waiting = await asyncio.wait(tries, timeout=0.2)
                assert len(waiting) == 3
            finally:
                gate.set()
            answers = [await each for each in tries]
        assert [answer.status for answer in answers] == [503 if fails else 200] * 3
    assert await client.names() == ["once"]


async def test_without_the_window_the_database_catches_the_retry(start: Start):
    client = await start(dedupe_window_events=0)
    now = (await client.fetch("SELECT now()"))[0]["now"].isoformat()
    event = {"id": str(uuid4()), "name": "once", "timestamp": now}
    for _ in range(3):
        assert (await client.post(event)).json() == ACCEPTED_ONE
        await client.settled()
    assert await client.names() == ["once"]
    accounts = client.worker.accounts
    assert (accounts.stored, accounts.duplicate_at_door, accounts.duplicate_in_database) == (1, 0, 2)


# Refused events.


async def test_refused_events_are_kept_as_they_were_sent(client: Client):
    first = '{ "name" : "" ,\t"properties":{"price":1.50e2, "é":"\\u00e9\\\\"} }'
    await client.post(f'[{{"name":"good"}},\n {first} , 7]'.encode(), User_Agent=CHROME)
    malformed = b'{"name": "\xff\x00 \t cut'
    await client.post(malformed, "/v1/batch")
    rows = await client.rejected()
    assert [(row["reason"], row["route"]) for row in rows] == [
        ("missing_name", "/v1/events"),
        ("not_an_object", "/v1/events"),
        ("malformed_json", "/v1/batch"),
    ]
    assert [row["payload"] for row in rows] == [first, "7", malformed.decode("utf-8", "replace").replace("\x00", "�")]
    assert {row["payload_truncated"] for row in rows} == {False}
    assert (rows[0]["user_agent"], str(rows[0]["ip_address"])) == (CHROME, "127.0.0.0")
    assert all(row["detail"] for row in rows) and all(row["batch_id"] for row in rows)
    assert await client.names() == ["good"]


async def test_a_long_refused_event_is_cut_and_marked(start: Start):
    client = await start(max_event_bytes="2kB")
    await client.post({"name": "long", "properties": {"filler": "x" * 5000}})
    await client.post(b"{" + b"y" * 5000)
    rows = await client.rejected()
    assert [row["reason"] for row in rows] == ["event_too_large", "malformed_json"]
    assert [(len(row["payload"]), row["payload_truncated"]) for row in rows] == [(2000, True)] * 2


async def test_kept_refused_events_are_bounded(start: Start):
    client = await start(rejected_kept_per_second=5)
    bad = [{"name": ""}] * 400
    for _ in range(3):
        await client.post(bad)
        await client.post(b"{")
    assert 5 <= len(await client.rejected()) < 30
    accounts = client.worker.accounts
    assert accounts.rejected[RejectReason.MISSING_NAME] == 1200
    assert accounts.rejected[RejectReason.MALFORMED_JSON] == 3
    nothing = await start(rejected_kept_per_second=0)
    before = len(await client.rejected())
    await nothing.post(bad)
    assert len(await nothing.rejected()) == before


# Metrics.


async def test_the_metrics_account_for_every_event(client: Client, database_url: str):
    event = {"id": str(uuid4()), "name": "a"}
    await client.post([event, event, {"name": ""}])
    await client.post({"batch": [{"name": "b"}], "sentAt": "2020-01-01T00:00:00Z"})
    await client.settled()
    await client.get("/healthz")
    await client.get("/v1/projects/KEY/settings")
    await client.request("OPTIONS", "/v1/events")
    async with locked_events(database_url):
        await client.post([{"name": "pending"}] * 5)
        await asyncio.sleep(0.05)
        waiting = await client.metrics()
    assert waiting["ingest_events_pending"] == 5
    assert waiting["ingest_pending_bytes"] > 100
    assert 0.04 < waiting["ingest_oldest_pending_seconds"] < 10
    await client.settled()
    page = await client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(page.body.decode())}
    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")

    def value(name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in families.values()
            for sample in family.samples
            if sample.name == name and {**sample.labels, **labels} == sample.labels
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    assert value("ingest_events_received_total", source="http") == 9
    assert value("ingest_events_received_total", source="recovered") == 0
    assert value("ingest_events_stored_total") == 7
    assert value("ingest_events_duplicate_total", caught_by="window") == 1
    assert value("ingest_events_duplicate_total", caught_by="database") == 0
    assert value("ingest_events_rejected_total", reason="missing_name") == 1
    reasons = {sample.labels["reason"] for sample in families["ingest_events_rejected"].samples}
    assert reasons == {reason.value for reason in RejectReason}
    assert value("ingest_events_pending") == value("ingest_events_unaccounted") == value("ingest_pending_bytes") == 0
    assert value("ingest_oldest_pending_seconds") == 0
    assert value("ingest_postgres_up") == value("ingest_ready") == 1
    for name in ("acknowledgement_seconds", "journal_write_seconds", "flush_seconds"):
        family = families[f"ingest_{name}"]
        assert family.type == "histogram" and value(f"ingest_{name}_bucket", le="+Inf") >= 1
    assert value("ingest_acknowledgement_seconds_count") == 3
    assert value("ingest_flush_rows_sum") == 7
    routes = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["ingest_http_requests"].samples
    }
    assert routes["/v1/events", "200"] == 3 and routes["/v1/events", "204"] == 1
    assert routes["/healthz", "200"] == routes["/v1/projects/{key}/settings", "200"] == 1
    assert all(sample.labels["worker"] == "0" for family in families.values() for sample in family.samples)


async def test_clocks_ahead_and_behind_are_counted_separately(client: Client):
    now = datetime.now(UTC)
    for skew in (timedelta(hours=-2), timedelta(hours=-3), timedelta(seconds=-2), timedelta(days=1)):
        answer = await client.post({"batch": [{"name": "a"}], "sentAt": (now + skew).isoformat()})
        assert answer.status == 200
    page = (await client.get("/metrics")).body.decode()
    (family,) = [each for each in text_string_to_metric_families(page) if each.name == "ingest_clock_skew_seconds"]
    found = {
        (sample.name.rpartition("_")[2], sample.labels["direction"], sample.labels.get("le")): sample.value
        for sample in family.samples
    }
    assert family.type == "histogram"
    assert (found["count", "behind", None], found["count", "ahead", None]) == (3, 1)
    assert (found["bucket", "behind", "3600.0"], found["bucket", "behind", "86400.0"]) == (1, 3)
    assert (found["bucket", "ahead", "3600.0"], found["bucket", "ahead", "86400.0"]) == (0, 1)
    # The sums are in seconds, so that a mean can be calculated.
    assert found["sum", "behind", None] == pytest.approx(5 * 3600 + 2, abs=60)
    assert found["sum", "ahead", None] == pytest.approx(86_400, abs=60)


async def test_unknown_routes_and_methods_cannot_grow_the_metrics(client: Client):
    async def requests_series() -> set[str]:
        return {name for name in await client.metrics() if name.startswith("ingest_http_requests_total{")}

    await client.get("/nowhere")
    await client.get("/metrics")
    before = await requests_series()
    for index in range(30):
        assert (await client.get(f"/nowhere/{index}")).status == 404
        assert (await client.post(b"{}", f"/v1/events/{index}")).status == 404
        assert (await client.request("PUT", f"/x{index}?y={index}")).status == 404
        assert (await client.get(f"/v1/projects/{index}/settings")).status == 200
    after = await requests_series()
    assert after - before == {'ingest_http_requests_total{route="/v1/projects/{key}/settings",status="200"}'}
    assert client.worker.accounts.received == 0


# The control socket.


async def test_the_control_socket_serves_metrics(client: Client):
    async with client.control() as session, session.get("http://worker/metrics") as response:
        page = await response.text()
    assert response.status == 200 and "ingest_events_received_total" in page
    path = control.socket_path(client.worker.config.data_dir, 0)
    assert path.stat().st_mode & 0o077 == 0
    assert await control.metrics_page(path) is not None
    assert await control.metrics_page(Path("/nowhere/worker-0.sock")) is None


async def test_tail_shows_what_is_accepted_and_what_is_refused(client: Client):
    async with client.control() as session, session.get("http://worker/tail") as response:
        async with asyncio.timeout(60):
            while not client.worker.tail.followed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await client.post([{"name": "seen", "user_id": "u1", "properties": {"a": "tab\t\\"}}, {"name": ""}])
        await client.post(b"{malformed", "/v1/batch")
        async with asyncio.timeout(60):
            lines = [json.loads(await response.content.readline()) for _ in range(3)]
    accepted, refused, whole = lines
    assert (accepted["result"], accepted["name"], accepted["user_id"]) == ("accepted", "seen", "u1")
    assert json.loads(accepted["properties"]) == {"a": "tab\t\\"}
    assert (refused["result"], refused["reason"], refused["payload"]) == ("rejected", "missing_name", '{"name": ""}')
    assert (whole["reason"], whole["route"]) == ("malformed_json", "/v1/batch")
    # The follower has gone: after at most one more event it is removed.
    await client.post([{"name": "unseen"}])
    async with asyncio.timeout(60):
        while client.worker.tail.followed:
            await client.post([{"name": "unseen"}])
            await asyncio.sleep(0.01)


async def test_stopping_ends_a_tail(client: Client):
    async with client.control() as session, session.get("http://worker/tail") as response:
        async with asyncio.timeout(60):
            while not client.worker.tail.followed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            stopping = asyncio.create_task(client.worker.stop())
            assert await response.content.read() == b""
            await stopping


@pytest.mark.parametrize(
    ("sent_at", "kept"),
    [
        ("2026-01-02T03:04:05.678Z", "2026-01-02 03:04:05.678+00"),
        ("2026-01-02T03:04:05+01:00:00.5", "2026-01-02 02:04:04.5+00"),
        (1767323045678, "2026-01-02 03:04:05.678+00"),
        ("0001-01-01T00:00:00Z", "0001-01-01 00:00:00+00"),
        ("9999-12-31T23:59:59Z", "9999-12-31 23:59:59+00"),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-12:00", None),
        ("soon", None),
        (None, None),
    ],
)
async def test_when_it_was_sent_is_kept_with_a_refused_event(client: Client, sent_at, kept):
    await client.post({"batch": [{"name": ""}, {"name": "good"}], "sentAt": sent_at})
    await client.post({"batch": [{"type": "page"}, {"type": "odd", "sentAt": sent_at}]}, "/v1/batch")
    rows = await client.fetch(
        "SELECT reason, (sent_at AT TIME ZONE 'UTC')::text || '+00' AS sent_at"
        " FROM analytics.rejected_events ORDER BY id"
    )
    assert [(row["reason"], row["sent_at"]) for row in rows] == [("missing_name", kept), ("invalid_type", kept)]


async def test_only_a_replay_may_say_when_it_first_came(client: Client):
    now = datetime.now(UTC).replace(microsecond=0)
    slow = timedelta(days=100)
    came, sent = now - timedelta(hours=1), now - timedelta(hours=1) - slow
    event = {"name": "a", "timestamp": (now - timedelta(hours=5) - slow).isoformat()}
    replayed = {RECEIVED_AT_HEADER: came.isoformat(), SENT_AT_HEADER: sent.isoformat()}
    answers = [await client.post(event, **{name.replace("-", "_"): value for name, value in replayed.items()})]
    assert answers[0].status == 400
    async with client.control() as session:
        for body, headers in (
            (event, replayed),
            (event, {**replayed, SENT_AT_HEADER: "0001-01-01T00:00:00Z"}),
            ({"name": "b"}, replayed),
            ({"name": "c"}, {**replayed, RECEIVED_AT_HEADER: "soon"}),
        ):
            async with session.post("http://worker/v1/events", json=body, headers=headers) as response:
                assert response.status in (200, 400)
    rows = {row["name"]: row for row in await client.events()}
    assert rows["a"]["created_at"] == now - timedelta(hours=5)
    assert rows["b"]["created_at"] == came
    assert rows["c"]["created_at"] == rows["c"]["received_at"]


async def test_a_replay_needs_no_key_and_has_no_limit(start: Start):
    client = await start(write_keys=("k",), rate_limit_per_second=0.001, rate_limit_burst=1, max_event_bytes="4MiB")
    assert (await client.post({"name": "a"})).status == 401
    async with client.control() as session:

        async def replay(body: Any) -> tuple[int, Any]:
            async with session.post(
                "http://worker/v1/events", data=io.BytesIO(json.dumps(body).encode())
            ) as response:
                return response.status, await response.json()

        for _ in range(3):
            assert await replay({"name": "replayed"}) == (200, ACCEPTED_ONE)
        assert await replay({"name": "large", "properties": {"filler": "x" * 2_000_000}}) == (200, ACCEPTED_ONE)
        status, outcome = await replay({"name": ""})
        assert (status, outcome["code"]) == (400, "missing_name")
    assert await client.names() == ["large", "replayed", "replayed", "replayed"]
    # A replayed event that is refused again is not kept twice.
    assert await client.rejected() == []


async def test_an_ordinary_client_cannot_reach_the_tail(client: Client):
    assert (await client.get("/tail")).status == 404
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as session, session.get(f"https://127.0.0.1:{client.worker.port}/"):
            pass
