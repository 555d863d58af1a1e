"""Whom a collector trusts, and what it shows to whom: pages of other sites, proxies, keys, readers of metrics."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from ingest.api import api_keys
from ingest.http.health import FORWARDED
from ingest.intake.collect import NATIVE_PATH, SEGMENT_CALLS
from tests.support.collector import Answer, Client, Start

ADMIN = "an-admin-key-of-these-tests"
EVIL = "https://evil.example"
DESK = "https://desk.example"
SETTINGS = "/v1/projects/KEY/settings"
EVENTS = [("POST", path) for path in (NATIVE_PATH, *SEGMENT_CALLS)] + [("GET", SETTINGS)]


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_PAUSE_SECONDS", 0.01)


async def declared(client: Client) -> Iterator[tuple[str, str]]:
    """Every route in /openapi.json, and the others, with a value for each parameter."""
    document = (await client.get("/openapi.json")).json()
    found = [
        (method.upper(), path.replace("{id}", "0190a6e0-0000-7000-8000-000000000000").replace("{key}", "x"))
        for path, methods in document["paths"].items()
        for method in methods
    ]
    return iter([*found, ("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nowhere")])


# Pages of other sites.


def shown_to_pages(answer: Answer) -> dict[str, str]:
    return {
        name.lower(): value for name, value in answer.headers.items() if name.lower().startswith("access-control")
    }


async def test_pages_of_anybody_may_send_events_and_nothing_else(start: Start):
    """Whatever the method, the credentials and the outcome: otherwise a page could make an admin's browser read data
    for it."""
    client = await start(admin_keys=(ADMIN,))
    basic = "Basic " + base64.b64encode(f"{ADMIN}:".encode()).decode()
    seen = 0
    for method, path in await declared(client):
        takes_events = (method, path) in EVENTS or path.startswith("/v1/projects/")
        for headers in ({}, {"Authorization": basic}, {"Authorization": "Basic d3Jvbmc6"}):
            for asked in (method, "OPTIONS"):
                body = b"{}" if asked in ("POST", "PUT", "PATCH") else None
                answer = await client.request(asked, path, body, Origin=EVIL, **headers)
                headers = shown_to_pages(answer)
                if takes_events:
                    assert headers["access-control-allow-origin"] == EVIL, (asked, path)
                    assert headers["access-control-allow-credentials"] == "true", (asked, path)
                else:
                    assert "access-control-allow-origin" not in headers, (asked, path, headers)
                    assert "access-control-allow-credentials" not in headers, (asked, path, headers)
                    assert answer.headers["Vary"] == "Origin"
                    seen += 1
    assert seen > 100


@pytest.mark.parametrize(("origins", "allowed"), [((DESK,), DESK), (("*",), "*")])
async def test_listed_pages_may_use_the_rest_without_what_the_browser_keeps(start: Start, origins, allowed):
    client = await start(api_origins=origins, cors_origins=("https://www.example",))
    for method, path in await declared(client):
        if (method, path) in EVENTS or path.startswith("/v1/projects/"):
            continue
        for asked in (method, "OPTIONS"):
            body = b"{}" if asked in ("POST", "PUT", "PATCH") else None
            headers = shown_to_pages(await client.request(asked, path, body, Origin=DESK))
            assert headers["access-control-allow-origin"] == allowed, (asked, path)
            assert "access-control-allow-credentials" not in headers
            strange = shown_to_pages(await client.request(asked, path, body, Origin=EVIL))
            assert strange.get("access-control-allow-origin") == ("*" if allowed == "*" else None)
    # Pages that may read statistics may not send events for that reason.
    answer = await client.post({"name": "x"}, Origin=DESK)
    assert "access-control-allow-origin" not in shown_to_pages(answer)


# Statistics.


async def test_only_a_missing_write_key_makes_a_browser_ask_for_a_password(start: Start):
    client = await start(admin_keys=(ADMIN,), write_keys=("k",), metrics_networks=())
    for method, path in await declared(client):
        body = b"{}" if method in ("POST", "PUT", "PATCH") else None
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic d3Jvbmc6"}):
            answer = await client.request(method, path, body, **headers)
            challenge = answer.headers.get("WWW-Authenticate", "")
            assert answer.status != 401 or challenge, (method, path)
            assert challenge.startswith("Basic") <= ((method, path) in EVENTS), (method, path, challenge)


async def test_guessing_keys_of_statistics_and_metrics_is_rate_limited(start: Start):
    shapes: tuple[dict[str, str], ...] = (
        {"Authorization": "Bearer guess"},
        {"X_API_Key": "guess"},
        {"Authorization": "Bearer ing_guess"},
        {},
    )
    for path in ("/v1/stats/totals", "/v1/stats/top?dimension=country", "/metrics"):
        client = await start(
            admin_keys=(ADMIN,), metrics_networks=(), api_rate_limit_per_second=0.001, api_rate_limit_burst=4
        )
        for headers in shapes:
            assert (await client.get(path, **headers)).status == 401
        for headers in shapes:
            answer = await client.get(path, **headers)
            assert answer.status == 429 and int(answer.headers["Retry-After"]) > 0
        # Guesses from an address do not lock out valid keys there.
        assert (await client.get(path, Authorization=f"Bearer {ADMIN}")).status == 200


# Keys of the configuration.


async def test_configured_keys_are_free_of_limits_by_address(start: Start, connection: asyncpg.Connection):
    """For every route, as for keys in the database; these have the limit per key instead."""
    client = await start(
        admin_keys=(ADMIN,), api_rate_limit_per_second=0.001, api_rate_limit_burst=1, rate_limit_per_second=0
    )
    kept = [await api_keys.create(connection, scope, [scope]) for scope in ("admin", "write")]
    experiment = {"name": "e", "control_variant": {"id": "a"}, "test_variants": [{"id": "b"}]}
    made = await client.post(experiment, "/v1/experiments", Authorization=f"Bearer {ADMIN}")
    answer = await client.post({}, f"/v1/experiments/{made.json()['id']}/start", Authorization=f"Bearer {ADMIN}")
    assert answer.status == 200
    flag = {"context": {"targetingKey": "u"}}
    for number in range(15):
        for key in (ADMIN, *kept):
            named = {"Authorization": f"Bearer {key}"} if number % 2 else {"X_API_Key": key}
            wanted: list[tuple[str, str, Any, int]] = [
                ("POST", "/ofrep/v1/evaluate/flags/e", flag, 200),
                ("POST", "/ofrep/v1/evaluate/flags", flag, 200),
                ("POST", "/v1/onboarding/sessions", {}, 201),
                ("POST", "/v1/leads", {"email": f"a{number}-{key[-5:]}@shop.example"}, 201),
                ("POST", "/v1/experiments/assignments", {"session_id": f"s-{number}-{key[-5:]}"}, 200),
                ("POST", "/v1/events", {"name": "x"}, 200),
            ]
            for method, path, body, status in wanted:
                answer = await client.request(method, path, body, **named)
                # Leads of known and new addresses may have the same answer.
                assert answer.status in (status, 202, 200), (key, path, answer)
    assert (await client.post(flag, "/ofrep/v1/evaluate/flags/e")).status == 200
    assert (await client.post(flag, "/ofrep/v1/evaluate/flags/e")).status == 429


async def test_configured_keys_share_the_limit_of_a_key(start: Start):
    client = await start(admin_keys=(ADMIN, "other"), key_rate_limit_per_second=0.001, api_rate_limit_burst=2)
    found = [(await client.get("/v1/stats/totals", Authorization=f"Bearer {key}")).status for key in (ADMIN, "other")]
    assert found == [200, 200]
    assert (await client.get("/v1/stats/totals", Authorization=f"Bearer {ADMIN}")).status == 429


async def test_configured_keys_may_send_events_where_write_keys_are_needed(start: Start):
    client = await start(admin_keys=(ADMIN,), write_keys=("public",))
    for headers in ({"Authorization": f"Bearer {ADMIN}"}, {"X_Write_Key": ADMIN}, {"X_Write_Key": "public"}):
        assert (await client.post({"name": "x"}, **headers)).status == 200
    assert (await client.post({"name": "x", "writeKey": ADMIN})).status == 200
    assert (await client.post({"name": "x"}, X_Write_Key=f"{ADMIN}x")).status == 401


# Where clients reach us.

FORGED = {
    "Host": "evil.example", "X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https",
    "X_Forwarded_Prefix": "/evil", "Forwarded": "host=evil.example;proto=https", "X_Original_Host": "evil.example",
    "X_Forwarded_Server": "evil.example", "X_Forwarded_Scheme": "https",
}  # fmt: skip


async def destination(client: Client, **headers: str) -> tuple[str, str, str]:
    """The settings document's host and protocol, and whether caches may store it."""
    answer = await client.get(SETTINGS, **headers)
    assert answer.status == 200
    settings = answer.json()["integrations"]["Segment.io"]
    return settings["apiHost"], settings["protocol"], answer.headers["Cache-Control"]


async def test_no_client_decides_where_others_are_sent(start: Start):
    direct = await start()
    configured = await start(public_url="https://events.example.com/a/b/", trusted_proxies=("127.0.0.1",))
    headers: list[dict[str, str]] = [{}, FORGED, *[{name: value} for name, value in FORGED.items()]]
    for sent in headers:
        ours = (f"127.0.0.1:{direct.worker.port}/v1", "http", "no-store")
        assert await destination(direct, **sent) == ours, sent
        fixed = ("events.example.com/a/b/v1", "https", "public, max-age=300")
        assert await destination(configured, **sent) == fixed, sent


@pytest.mark.parametrize(
    ("sent", "host", "protocol"),
    [
        ({"Host": "events.example.com"}, "events.example.com/v1", "http"),
        ({"Host": "in", "X_Forwarded_Host": "out.example", "X_Forwarded_Proto": "https"}, "out.example/v1", "https"),
        ({"Host": "a.example:8443", "X_Forwarded_Prefix": "/events"}, "a.example:8443/events/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Prefix": "/a/b.c/"}, "a.example/a/b.c/v1", "http"),
        # What the client sent is left of what the proxy has added.
        ({"Host": "in", "X_Forwarded_Host": "evil.example, out.example"}, "out.example/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Prefix": "/evil, /events"}, "a.example/events/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Proto": "http, https"}, "a.example/v1", "https"),
        ({"Host": "[::1]:8080"}, "[::1]:8080/v1", "http"),
        # Text that is no host or path is not repeated.
        ({"Host": "a.example", "X_Forwarded_Prefix": "//evil.example"}, "a.example/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Prefix": "/a?b"}, "a.example/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Prefix": "a"}, "a.example/v1", "http"),
        ({"Host": "a.example", "X_Forwarded_Prefix": "/" + "a" * 500}, "a.example/v1", "http"),
        ({"Host": "a.example/evil"}, None, "http"),
        ({"Host": "user@a.example"}, None, "http"),
        ({"Host": "a.example", "X_Forwarded_Host": "<script>"}, None, "http"),
    ],
)
async def test_a_trusted_proxy_says_where_clients_reach_us(start: Start, sent, host, protocol):
    client = await start(trusted_proxies=("127.0.0.0/8",))
    wanted = host or f"127.0.0.1:{client.worker.port}/v1"
    assert await destination(client, **sent) == (wanted, protocol, "no-store")


# Metrics.


async def test_metrics_are_for_this_machine_and_for_keys(start: Start, connection: asyncpg.Connection):
    open_here = await start(metrics_keys=("m",), admin_keys=(ADMIN,))
    closed = await start(metrics_keys=("m", "n"), metrics_networks=(), admin_keys=(ADMIN,))
    elsewhere = await start(metrics_networks=("10.0.0.0/8",))
    keys = {scope: await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    assert (await open_here.get("/metrics")).status == 200
    for each in (closed, elsewhere):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"X_API_Key": "wrong"}):
            answer = await each.get("/metrics", **headers)
            assert (answer.status, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer") and b"ingest_events" not in answer.body
    for key, status in (("m", 200), ("n", 200), (ADMIN, 200), (keys["read"], 200), (keys["admin"], 200),
                        (keys["write"], 403)):  # fmt: skip
        assert (await closed.get("/metrics", Authorization=f"Bearer {key}")).status == status
    # It opens nothing else.
    assert (await closed.get("/v1/stats/totals", Authorization="Bearer m")).status == 401
    assert (await closed.get("/v1/leads", Authorization="Bearer m")).status == 401
    for path in ("/healthz", "/readyz"):
        assert (await closed.get(path)).status == 200


@pytest.mark.parametrize("header", FORWARDED)
async def test_a_proxy_on_this_machine_does_not_open_the_metrics(start: Start, header: str):
    for trusted in ((), ("127.0.0.1",)):
        client = await start(trusted_proxies=trusted)
        name = header.replace("-", "_")
        assert (await client.get("/metrics", **{name: "127.0.0.1"})).status == 401
        assert (await client.get("/metrics", **{name: "198.51.100.7"})).status == 401
        assert (await client.get("/metrics")).status == 200


# The root.


async def test_the_root_lists_the_documents(client: Client):
    """For programs; somebody with a browser sees the dashboard."""
    answer = await client.get("/")
    assert answer.status == 200
    links = answer.json()
    for path in (links["documentation"], links["openapi"]):
        assert (await client.get(path)).status == 200
    assert links["documentation"] == "/docs"
    for path in ("/nowhere", "/v1", "/v2/events"):
        answer = await client.get(path)
        assert answer.status == 404 and "/docs" in json.loads(answer.body)["message"]
    assert (await client.request("HEAD", "/")).status == 200
    assert (await client.post({}, "/")).status == 405
