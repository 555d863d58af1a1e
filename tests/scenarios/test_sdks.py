"""Third-party clients: Segment's SDKs run for real, and the requests of a browser, byte for byte."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.postgres import connections
from tests.support.amounts import some_of
from tests.support.databases import execute, run_apart, with_database
from tests.support.service import Service, lent_database, running

SDKS = Path(__file__).parents[1] / "sdks"
PROGRAMS = {
    "python": [sys.executable, str(SDKS / "segment_python.py")],
    "node": ["node", str(SDKS / "segment_node.mjs")],
}
KEY = "right-key"
# For message ids that are not UUIDs. Written out here again, because it must never change.
NAMESPACE = uuid.UUID("6ba3a1f2-5d0e-5c55-9d3a-8f6a1c0b7e11")

PROPERTIES = {
    "text": 'naïve 日本語 🎉 👩‍👩‍👧 \u202e "quotes" \\back\\slash\\ \n\t\r',
    "order": {"lines": [{"sku": "a/1", "price": 12.5}, {"sku": "b", "price": 0.1}], "paid": True, "note": None},
    "floats": [0.1, 1.5e-7, 1e21, -273.15],
    "largest": 9007199254740991,
    "empty": [{}, [], ""],
    "when": "2026-01-02T03:04:05.678Z",
    "ключ": "value",
}
ADDED_TO_CONTEXT = {
    "python": {"library": {"name": "analytics-python", "version": "2.4.0"}},
    "node": {"library": {"name": "@segment/analytics-node", "version": "3.1.0"}},
}
# How each of them writes a date that it got as an object.
SINCE = {"python": "2026-01-02T03:04:05", "node": "2026-01-02T03:04:05.000Z"}


@pytest.fixture(scope="module")
def shared_database(postgres, template):
    with lent_database(postgres, template) as url:
        yield url


@pytest.fixture(scope="module")
def service(shared_database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdks") / "data"
    with running(Service(folder, shared_database, "--write-keys", KEY)) as started:
        yield started


@pytest.fixture
async def stored(shared_database):
    """A connection to the database of the shared service."""
    connection = await connections.connect(shared_database, purpose="tests")
    yield connection
    await connection.close()


def start_sdk(sdk: str, host: str, app: str, mode: str, **options: object) -> subprocess.Popen[str]:
    """Start a program that uses an SDK; its rows are found by `app`, a name in the context."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(PROGRAMS[sdk], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"host": host, "key": KEY, "app": app, "mode": mode, **options}))
    process.stdin.close()
    process.stdin = None
    return process


@contextmanager
def both_sdks(service: Service, **options: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a program for each SDK, with the SDK's name as `app`; all are ended at the end."""
    programs = [start_sdk(sdk, service.url, sdk, "batched", **options) for sdk in PROGRAMS]
    try:
        yield programs
    finally:
        for program in programs:
            if program.poll() is None:
                program.kill()
                program.communicate()


def end_sdk(process: subprocess.Popen[str], seconds: float = 60) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    return summary


def run_sdk(sdk: str, host: str, app: str, mode: str, **options: object) -> dict[str, Any]:
    return end_sdk(start_sdk(sdk, host, app, mode, **options))


async def rows_of(connection: asyncpg.Connection, app: str) -> list[dict[str, Any]]:
    """The rows whose context names this app, oldest first, with their JSON decoded."""
    rows = await connection.fetch(
        "SELECT * FROM analytics.events WHERE context->'app'->>'name' = $1 ORDER BY created_at", app
    )
    decoded = ("properties", "context")
    return [{key: json.loads(value) if key in decoded else value for key, value in row.items()} for row in rows]


def id_of(message: dict[str, Any]) -> uuid.UUID:
    """The expected id of a message's event."""
    try:
        return uuid.UUID(message["messageId"])
    except ValueError:
        return uuid.uuid5(NAMESPACE, message["messageId"])


def at_of(message: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(message["timestamp"])


def expected_calls(sdk: str) -> dict[str, dict[str, Any]]:
    """The expected rows of the programs' six calls, by the SDK's name for the call."""
    traits = {"email": "josé@example.com", "address": {"city": "Zürich"}, "since": SINCE[sdk]}
    known = {"user_id": "u-1", "anonymous_id": None, "url": None, "page_host": None, "utm_source": None}
    page = {"url": "https://shop.example/prices?utm_source=news", "referrer": "https://search.example/q"}
    where = {**page, "page_host": "shop.example", "referrer_host": "search.example", "utm_source": "news"}
    return {
        "identify": {
            **known,
            "name": "identify",
            "type": "system",
            "anonymous_id": "a-1",
            "properties": traits,
        },
        "group": {
            **known,
            "name": "group",
            "type": "system",
            "properties": {"groupId": "g-9", "name": "Acme 株式会社", "seats": 25},
        },
        "track": {
            **known,
            "name": "Order ✅",
            "type": "user_action",
            "anonymous_id": "a-1",
            "properties": PROPERTIES,
        },
        "page": {
            **known,
            **where,
            "name": "Prices",
            "type": "page_view",
            "properties": {"category": "Docs", **page},
        },
        "screen": {
            **known,
            "name": "Home",
            "type": "page_view",
            "user_id": None,
            "anonymous_id": "a-1",
            "properties": {"tab": 2},
        },
        "alias": {**known, "name": "alias", "type": "system", "properties": {"previousId": "a-1"}},
    }


@pytest.mark.parametrize(
    ("sdk", "mode"),
    [("python", "sync"), ("python", "batched"), ("python", "gzip"), ("node", "sync"), ("node", "batched")],
)
async def test_every_call_of_an_sdk_is_stored_as_it_was_made(service, stored, sdk, mode):
    app, started = f"{sdk} {mode} ✓", datetime.now(UTC)
    before = service.metrics()
    summary = run_sdk(sdk, service.url, app, mode, all_calls=True, properties=PROPERTIES)
    assert summary["errors"] == []
    assert sorted(message["type"] for message in summary["sent"]) == sorted(expected_calls(sdk))
    after = service.wait_stored()
    assert after["ingest_events_received_total"] - before["ingest_events_received_total"] == 6

    rows = {row["id"]: row for row in await rows_of(stored, app)}
    assert rows.keys() == {id_of(message) for message in summary["sent"]}
    for message in summary["sent"]:
        row, call = rows[id_of(message)], message["type"]
        for column, value in expected_calls(sdk)[call].items():
            assert row[column] == value, (call, column)
        assert row["created_at"] == at_of(message), call
        assert started - timedelta(seconds=1) < row["created_at"] <= row["received_at"] < datetime.now(UTC)
        sent_context = {"app": {"name": app}, "traits": {"café": "☕"}}
        assert row["context"] == {**sent_context, **ADDED_TO_CONTEXT[sdk]}, call


@pytest.mark.parametrize("sdk", PROGRAMS)
async def test_many_batches_arrive_whole(service, stored, sdk):
    app = f"{sdk} many"
    summary = run_sdk(sdk, service.url, app, "batched", tracks=500, batch=60)
    service.wait_stored()
    rows = await rows_of(stored, app)
    assert len(summary["sent"]) == len(rows) == 500 and summary["errors"] == []
    assert {row["id"]: row["created_at"] for row in rows} == {id_of(sent): at_of(sent) for sent in summary["sent"]}
    assert sorted(row["properties"]["index"] for row in rows) == list(range(500))
    assert all(row["user_id"] == f"user {row['properties']['index']}" for row in rows)


@pytest.mark.parametrize(("sdk", "mode"), [("python", "sync"), ("python", "batched"), ("node", "batched")])
async def test_a_wrong_write_key_is_reported_and_stores_nothing(service, stored, sdk, mode):
    before = service.metrics()['ingest_events_rejected_total{reason="unauthorized"}']
    app = f"{sdk} {mode} with a wrong key"
    summary = run_sdk(sdk, service.url, app, mode, key="wrong", tracks=3)
    assert sum(error["messages"] for error in summary["errors"]) == 3
    assert all("401" in str(error["error"]) for error in summary["errors"])
    if sdk == "python":
        assert "the write key is not valid" in summary["errors"][0]["error"]
    after = service.wait_stored()['ingest_events_rejected_total{reason="unauthorized"}']
    # Once per request, without a retry.
    assert after - before == (3 if mode == "sync" else 1)
    assert await rows_of(stored, app) == []


async def test_the_same_messages_again_are_stored_once(postgres, template, tmp_path):
    """By both SDKs, at the same time, again, and after a restart, which has forgotten the recent ids."""
    at = datetime.now(UTC) - timedelta(days=2)
    fixed = [
        {"messageId": name, "timestamp": (at + timedelta(seconds=index)).isoformat(timespec="milliseconds")}
        for index, name in enumerate(("order-1001-paid", "ORDER 1002 ✅", str(uuid.uuid4()), "x" * 255))
    ]
    with lent_database(postgres, template) as url:
        service = Service(tmp_path / "data", url)
        for _ in range(2):
            with running(service), both_sdks(service, fixed=fixed) as programs:
                summaries = [end_sdk(program) for program in programs]
                metrics = service.wait_stored()
            assert all(len(each["sent"]) == 4 and each["errors"] == [] for each in summaries)
        assert metrics["ingest_events_stored_total"] == 0
        assert metrics['ingest_events_duplicate_total{caught_by="database"}'] == 4
        assert metrics['ingest_events_duplicate_total{caught_by="window"}'] == 4
        connection = await connections.connect(url, purpose="tests")
        try:
            rows = await connection.fetch("SELECT id, created_at FROM analytics.events")
        finally:
            await connection.close()
    assert len(rows) == 4
    assert {row["id"]: row["created_at"] for row in rows} == {id_of(each): at_of(each) for each in fixed}


# What the SDKs do while the service is down, or answers that there is no room.


@contextmanager
def away(url):
    """Make a database refuse connections, as if its server were down."""
    name = urlsplit(url).path[1:]
    elsewhere = with_database(url, "postgres")

    async def allow(connections: bool) -> None:
        await execute(elsewhere, f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(connections).lower()}")
        if not connections:
            end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            await execute(elsewhere, end)

    run_apart(lambda: allow(False))
    try:
        yield
    finally:
        run_apart(lambda: allow(True))


@pytest.mark.parametrize("sdk", some_of(PROGRAMS, 1))
async def test_events_sent_while_the_service_is_down_arrive_once_it_is_up(postgres, template, tmp_path, sdk):
    with lent_database(postgres, template) as url:
        service = Service(tmp_path / "data", url)
        with socket.create_server(("127.0.0.1", service.port)) as door:
            program = start_sdk(sdk, service.url, sdk, "batched", tracks=20, batch=20)
            try:
                # At first the port accepts and nobody answers; then it is closed for a while.
                door.settimeout(60)
                door.accept()[0].close()
                door.close()
                with running(service):
                    summary = end_sdk(program)
                    metrics = service.wait_stored()
            finally:
                program.kill()
                program.communicate()
        assert len(summary["sent"]) == 20 and summary["errors"] == []
        assert metrics["ingest_events_stored_total"] == 20
        await check_stored_once(url, {sdk: summary})


async def test_events_answered_503_while_the_journal_is_full_arrive_once_it_is_not(postgres, template, tmp_path):
    with lent_database(postgres, template) as url:
        service = Service(tmp_path / "data", url, "--journal-max-bytes", "16MiB", "--segment-bytes", "1MiB")
        with running(service), both_sdks_while_full(service, url) as (accepted, programs):
            summaries = dict(zip(PROGRAMS, map(end_sdk, programs), strict=True))
            metrics = service.wait_stored()
        assert all(len(each["sent"]) == 20 and each["errors"] == [] for each in summaries.values())
        assert metrics["ingest_events_stored_total"] == accepted + 40
        await check_stored_once(url, summaries)


@contextmanager
def both_sdks_while_full(service: Service, url: str) -> Iterator[tuple[int, list[subprocess.Popen[str]]]]:
    """Fill the journal while the database is unavailable and let both SDKs run into that; then restore the database.

    Yields how many events were accepted before, and the programs.
    """
    accepted = 0
    with ExitStack() as outage:
        outage.enter_context(away(url))
        # Smaller bodies may find room where a large one did not.
        for events, size in ((50, 60_000), (1, 60_000), (1, 1000)):
            filling = [{"name": "filling", "properties": {"text": "x" * size}}] * events
            while (answer := service.post("/v1/events", filling))[0] == 200:
                accepted += events
            assert answer[0] == 503 and json.loads(answer[1])["code"] == "overloaded"
        with both_sdks(service, tracks=20) as programs:
            refused = 'ingest_http_requests_total{route="/v1/batch",status="503"}'
            deadline = time.monotonic() + 20
            # One retries after half a second, the other follows our Retry-After.
            while service.metrics().get(refused, 0) < 3:
                assert time.monotonic() < deadline, service.log_text()
                time.sleep(0.1)
            outage.close()
            yield accepted, programs


async def check_stored_once(url: str, summaries: dict[str, dict[str, Any]]) -> None:
    """The table holds exactly what each SDK says it has sent."""
    connection = await connections.connect(url, purpose="tests")
    try:
        for sdk, each in summaries.items():
            ids = [row["id"] for row in await rows_of(connection, sdk)]
            assert sorted(ids) == sorted(map(id_of, each["sent"]))
    finally:
        await connection.close()


# Browsers. The headers are Chromium's, in its order, beginning with Host and Content-Length.

ORIGIN = "https://shop.example"
CHROMIUM = {
    "Connection": "keep-alive",
    "sec-ch-ua-platform": '"Linux"',
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/155.0.0.0 Safari/537.36",
    "sec-ch-ua": '"Chromium";v="155", "Not.A/Brand";v="24"',
    "sec-ch-ua-mobile": "?0",
    "Accept": "*/*",
    "Origin": ORIGIN,
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "no-cors",
    "Sec-Fetch-Dest": "empty",
    "Referer": f"{ORIGIN}/",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-US,en;q=0.9",
    "Cookie": "session=abc",
}
CORS = {**CHROMIUM, "Sec-Fetch-Mode": "cors"}
del CORS["Cookie"]


def send(service: Service, method: str, path: str, headers: dict[str, str], body: bytes = b""):
    """Send one request with exactly these headers. Returns the answer's status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        if method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def beacon(service: Service, body: bytes, content_type: str | None, path: str = f"/v1/events?writeKey={KEY}"):
    typed = {} if content_type is None else {"Content-Type": content_type}
    return send(service, "POST", path, {**CHROMIUM, **typed}, body)


def check_readable(headers) -> None:
    """A page of ORIGIN may read the answer, even if it sent cookies."""
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    ("way", "content_type", "compress"),
    [
        ("a string", "text/plain;charset=UTF-8", False),
        ("a Blob without a type", None, False),
        ("a Blob of text/plain", "text/plain", False),
        ("a Blob that calls itself a form", "application/x-www-form-urlencoded", False),
        ("a Blob that calls itself multipart", "multipart/form-data; boundary=x", False),
        ("a gzipped Blob without a type", None, True),
    ],
)
async def test_a_beacon_is_stored_whatever_its_content_type(service, stored, way, content_type, compress):
    event = {
        "name": "left the page",
        "anonymous_id": "a ✓",
        "url": f"{ORIGIN}/cart?utm_campaign=june",
        "properties": {"seconds": 12.5, "text": "naïve 🎉 a=b&c=d+%20"},
        "context": {"app": {"name": way}},
    }
    body = json.dumps(event, ensure_ascii=False).encode()
    status, headers, answer = beacon(service, gzip.compress(body) if compress else body, content_type)
    assert status == 200, answer
    assert json.loads(answer) == {"accepted": 1, "rejected": []}
    check_readable(headers)
    service.wait_stored()
    (row,) = await rows_of(stored, way)
    assert (row["name"], row["anonymous_id"], row["properties"]) == (
        event["name"],
        event["anonymous_id"],
        event["properties"],
    )
    assert (row["page_host"], row["page_path"], row["utm_campaign"]) == ("shop.example", "/cart", "june")
    assert (row["browser"], row["device_type"]) == ("Chrome", "desktop")


async def test_the_largest_beacon_a_browser_sends_is_accepted(service, stored):
    event: dict[str, Any] = {"name": "large", "context": {"app": {"name": "largest"}}, "properties": {"text": ""}}
    event["properties"]["text"] = "x" * (65_536 - len(json.dumps(event)))
    body = json.dumps(event).encode()
    assert len(body) == 65_536
    status, _, answer = beacon(service, body, "text/plain;charset=UTF-8")
    assert status == 200, answer
    service.wait_stored()
    (row,) = await rows_of(stored, "largest")
    assert row["properties"] == event["properties"]


async def test_a_form_is_refused_in_a_way_that_a_page_can_read(service):
    """FormData cannot be an event: it is refused with a reason, and not as a network error."""
    before = service.metrics()['ingest_events_rejected_total{reason="malformed_json"}']
    part = b'Content-Disposition: form-data; name="name"'
    form = b"------WebKitFormBoundaryA\r\n" + part + b"\r\n\r\nx\r\n------WebKitFormBoundaryA--\r\n"
    for body, content_type in (
        (form, "multipart/form-data; boundary=----WebKitFormBoundaryA"),
        (b"name=left&properties=%7B%7D", "application/x-www-form-urlencoded;charset=UTF-8"),
    ):
        status, headers, answer = beacon(service, body, content_type)
        assert status == 400
        assert json.loads(answer)["code"] == headers["X-Reject-Reason"] == "malformed_json"
        check_readable(headers)
    assert service.wait_stored()['ingest_events_rejected_total{reason="malformed_json"}'] == before + 2


async def test_fetch_of_json_passes_its_preflight(service, stored):
    asking = {
        **CORS,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    status, headers, answer = send(service, "OPTIONS", "/v1/events", asking)
    assert (status, answer) == (204, b"")
    check_readable(headers)
    assert "POST" in headers["Access-Control-Allow-Methods"].split(", ")
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert int(headers["Access-Control-Max-Age"]) > 0

    event = {"batch": [{"name": "kept alive", "context": {"app": {"name": "fetch"}}}], "sentAt": None}
    sent = {**CORS, "Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    status, headers, answer = send(service, "POST", "/v1/events", sent, json.dumps(event).encode())
    assert status == 200, answer
    check_readable(headers)
    exposed = headers["Access-Control-Expose-Headers"].split(", ")
    assert "Retry-After" in exposed and "X-Reject-Reason" in exposed
    service.wait_stored()
    assert len(await rows_of(stored, "fetch")) == 1


@pytest.mark.parametrize("origin", ["null", "https://xn--e1afmkfd.example:8443", None])
async def test_the_origin_is_echoed_and_never_a_star(service, origin):
    headers = {name: value for name, value in CORS.items() if name != "Origin"}
    if origin is not None:
        headers["Origin"] = origin
    for key, wanted in ((KEY, 200), ("wrong", 401)):
        body = b'{"name": "from a page"}'
        status, answered, _ = send(service, "POST", f"/v1/events?writeKey={key}", headers, body)
        assert status == wanted
        assert answered["Access-Control-Allow-Origin"] == origin
    # Only the routes that accept events are open to all pages.
    status, answered, _ = send(service, "GET", "/nowhere", headers)
    assert (status, answered["Access-Control-Allow-Origin"]) == (404, None)


async def test_segments_browser_library_is_pointed_back_at_us_and_stored(service, stored):
    """First its settings document, then a bare message as text/plain, with the key in the body."""
    status, headers, answer = send(service, "GET", f"/v1/projects/{KEY}/settings", CORS)
    assert status == 200
    check_readable(headers)
    destination = json.loads(answer)["integrations"]["Segment.io"]
    assert destination["apiKey"] == KEY
    assert destination["apiHost"] == f"127.0.0.1:{service.port}/v1"

    page = {"path": "/cart", "referrer": "", "search": "", "title": "Cart", "url": f"{ORIGIN}/cart"}
    message: dict[str, Any] = {
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "type": "page",
        "properties": page,
        "context": {"page": page, "app": {"name": "analytics.js"}, "timezone": "Europe/Berlin"},
        "messageId": f"ajs-next-1767323045678-{uuid.uuid4()}",
        "anonymousId": str(uuid.uuid4()),
        "writeKey": KEY,
        "userId": None,
        "sentAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "_metadata": {"bundled": ["Segment.io"], "unbundled": [], "bundledIds": []},
    }
    for _ in range(2):  # and again, as it does when it has not seen the answer
        typed = {**CORS, "Content-Type": "text/plain"}
        status, headers, answer = send(service, "POST", "/v1/p", typed, json.dumps(message).encode())
        assert status == 200, answer
        check_readable(headers)
    service.wait_stored()
    (row,) = await rows_of(stored, "analytics.js")
    assert (row["id"], row["created_at"]) == (id_of(message), at_of(message))
    assert (row["name"], row["type"], row["properties"]) == ("page", "page_view", page)
    assert (row["anonymous_id"], row["user_id"]) == (message["anonymousId"], None)
    assert (row["url"], row["page_host"], row["page_path"]) == (f"{ORIGIN}/cart", "shop.example", "/cart")
