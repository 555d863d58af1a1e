"""Collectors behind the proxies of deploy/ on a host of their own: Debian's nginx and Caddy, with TLS."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ingest.events.values.locations import COUNTRY_HEADERS
from tests.support.certificates import Certificates, make_certificates
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN
from tests.support.programs import needs
from tests.support.proxies import CADDY, HOST, NGINX, PROXIES, Caddy, Nginx, Proxy
from tests.support.retrying import RetryingLoad, check_stored, session_of
from tests.support.service import Service, running

CURL = "/usr/bin/curl"
CLIENT = "127.9.8.7"
"""A client's address; the proxy's is 127.0.0.1."""
STORED = "127.9.8.0"
PAGE = "https://shop.example"
SETTINGS = {"trusted_proxies": ["127.0.0.1"], "public_url": f"https://{HOST}"}
SECONDS = 60.0

# One of them in `make test`, where time is short.
ONE_OF_THEM = [PROXIES[0], pytest.param(Caddy, marks=[needs(CADDY), pytest.mark.long], id="caddy")]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path, HOST)


async def post(session: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and body of the answer."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(url, data=sent, headers=named) as answer:
        return answer.status, answer.headers, await answer.read()


@needs(CURL)
@pytest.mark.parametrize("proxy", PROXIES)
async def test_clients_reach_collectors_by_tls_and_the_collector_sees_who_they_are(
    start: Start, new_folder: Any, certificates: Certificates, proxy: type[Proxy]
):
    client: Client = await start(**SETTINGS)
    with proxy(new_folder(), [client.worker.port], certificates) as front:
        async with session_of(certificates.client(), CLIENT) as session:
            claims = {name.replace("-", "_"): "FR" for name in COUNTRY_HEADERS}
            for number in range(20):
                status, _, _ = await post(
                    session, f"{front.url}/v1/events", {"name": f"n{number}"}, X_Forwarded_For="8.8.4.4", **claims
                )
                assert status == 200
            # One connection was enough for them, and is kept for the next; the other is the one that asks.
            assert (await client.metrics())["ingest_connections"] == 2

            over_http2 = await curl(front, certificates, "--http2", "-d", '{"name":"http2"}', "/v1/events")
            assert over_http2 == ("2", 200, 0)
            assert (await curl(front, certificates, "--http1.1", "/healthz"))[:2] == ("1.1", 200)

            for path, expected in {"/metrics": 404, "//metrics": 404, "/%6detrics": 404, "/readyz": 404}.items():
                got = await curl(front, certificates, "--path-as-is", path)
                assert got[1] == expected, path
            assert (await curl(front, certificates, "/docs"))[1] == 200
            await check_documents(session, front)
        # An authority that the client does not know.
        async with session_of(ssl.create_default_context()) as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{front.url}/healthz")
    rows = await client.fetch("SELECT name, host(ip_address) AS ip, country FROM analytics.events")
    assert len(rows) == 21
    assert {(row["ip"], row["country"]) for row in rows if row["name"] != "http2"} == {(STORED, None)}


async def check_documents(session: aiohttp.ClientSession, front: Proxy) -> None:
    """The host that a client claims is in no answer."""
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil"}
    async with session.get(f"{front.url}/v1/projects/any/settings", headers=headers) as answer:
        assert answer.status == 200 and "evil" not in await answer.text()


async def curl(front: Proxy, certificates: Certificates, *arguments: str) -> tuple[str, int, int]:
    """The version of HTTP, the status, and the result of checking the certificate (0: good)."""
    *options, path = arguments
    process = await asyncio.create_subprocess_exec(
        CURL, "--silent", "--show-error", "--max-time", "60", "--cacert", str(certificates.authority),
        "--resolve", f"{HOST}:{front.port}:127.0.0.1", "--output", os.devnull,
        "--write-out", "%{http_version} %{http_code} %{ssl_verify_result}", *options, f"{front.url}{path}",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    said, errors = await process.communicate()
    assert process.returncode == 0, errors
    version, status, verified = said.decode().split()
    return version, int(status), int(verified)


@pytest.mark.parametrize("proxy", ONE_OF_THEM)
async def test_what_is_over_a_limit_is_refused_in_a_way_that_pages_can_read(
    start: Start, new_folder: Any, certificates: Certificates, proxy: type[Proxy]
):
    """By whoever finds out first: nginx, or behind Caddy, which Debian builds without limits, the collector."""
    # Fewer a second than any machine manages.
    collectors = {} if proxy is Nginx else {"rate_limit_per_second": 2, "rate_limit_burst": 200}
    client: Client = await start(**SETTINGS, **collectors, max_body_bytes=5 << 20)
    event = {"name": "beacon"}
    with proxy(new_folder(), [client.worker.port], certificates, per_second=2) as front:
        url = f"{front.url}/v1/events"
        async with session_of(certificates.client(), CLIENT) as session:
            # As large as is allowed; and larger, of a length that is known or not.
            largest = json.dumps(event).encode().ljust(5 << 20)
            for size, expected in ((0, 200), (1, 413), (100_000, 413)):
                sent = chunks(largest + b" " * size)
                length = {} if size == 100_000 else {"Content-Length": str(len(largest) + size)}
                async with session.post(url, data=sent, headers={"Origin": PAGE, **length}) as answer:
                    assert answer.status == expected, (size, answer.status, await answer.text())
                    check_readable(answer.status, answer.headers, expected)

            seen = await until_limited(lambda: post(session, url, event, Origin=PAGE))
            status, headers, body = seen[-1]
            check_readable(status, headers, 429)
            assert json.loads(body)["code"] == "rate_limited"
            # Not of one's questions before a request with headers of its own, which a browser would not repeat.
            preflight = {"Access-Control-Request-Method": "POST", "Origin": PAGE}
            async with session.options(url, headers=preflight) as answer:
                assert answer.status == 204 and "Access-Control-Allow-Methods" in answer.headers
        # Others have limits of their own.
        async with session_of(certificates.client(), "127.9.8.6") as session:
            assert (await post(session, url, event))[0] == 200
            await client.worker.stop()
            # No collector at all.
            status, headers, body = await post(session, url, event, Origin=PAGE)
            check_readable(status, headers, 503)
            assert json.loads(body)["accepted"] == 0


async def until_limited(ask: Callable[[], Awaitable[tuple[int, Any, bytes]]]) -> list[tuple[int, Any, bytes]]:
    """Send as fast as answers come until one is a 429, the last returned. Nearly 200 pass before: what is left of the
    burst."""
    answers: list[tuple[int, Any, bytes]] = []
    async with asyncio.timeout(SECONDS):
        while not answers or answers[-1][0] != 429:
            answers += sorted(await asyncio.gather(*[ask() for _ in range(50)]), key=lambda answer: answer[0])
    seen = Counter(status for status, _, _ in answers)
    assert seen[200] >= 190 and set(seen) == {200, 429}, seen
    return answers


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces, whose sum nobody knows in advance."""
    for at in range(0, len(body), 1 << 16):
        yield body[at : at + (1 << 16)]


def check_readable(status: int, headers: Any, expected: int) -> None:
    """That a script of a page sees the status and, if it is to come again, when."""
    assert status == expected
    assert headers.getall("Access-Control-Allow-Origin") == [PAGE]
    assert headers.getall("Access-Control-Allow-Credentials") == ["true"]
    if expected in (429, 503):
        assert "Retry-After" in headers["Access-Control-Expose-Headers"]
        assert 1 <= int(headers["Retry-After"]) <= 60


@pytest.mark.parametrize("proxy", ONE_OF_THEM)
async def test_somebody_signs_in_to_the_dashboard_and_follows_live(
    start: Start, new_folder: Any, certificates: Certificates, proxy: type[Proxy]
):
    client: Client = await start(**SETTINGS, admin_keys=(ADMIN,))
    with proxy(new_folder(), [client.worker.port], certificates) as front:
        async with session_of(certificates.client(), CLIENT) as session:
            sent = {"key": ADMIN, "next": "/"}
            async with session.post(f"{front.url}/sign-in", data=sent, allow_redirects=False) as answer:
                assert answer.status == 303
                cookie = answer.headers["Set-Cookie"]
            # It knows that it is reached by TLS, and as a host of its own.
            assert cookie.startswith("__Host-ingest_session=") and "Secure" in cookie
            viewer = {"Cookie": cookie.partition(";")[0], "Accept": "text/event-stream"}
            async with session.get(f"{front.url}/live/stream", headers=viewer) as stream, asyncio.timeout(SECONDS):
                assert stream.status == 200 and stream.content_type == "text/event-stream"
                # Each message as it is made, not when a buffer is full.
                assert await stream.content.readuntil(b"\n\n") == b"retry: 2000\n\n"
                assert (await post(session, f"{front.url}/v1/events", {"name": "seen_live"}))[0] == 200
                while b"seen_live" not in await stream.content.readuntil(b"\n\n"):
                    pass


@needs(NGINX)
@pytest.mark.long
async def test_nginx_counts_a_network_of_ipv6_as_one_sender(
    start: Start, new_folder: Any, certificates: Certificates
):
    """Behind a proxy that tells it addresses, as it has only one of its own here."""
    client: Client = await start(trusted_proxies=["127.0.0.1", "2001:db8::/32"], public_url=f"https://{HOST}")
    behind = "set_real_ip_from 127.0.0.1;\nreal_ip_header X-Forwarded-For;"
    with Nginx(new_folder(), [client.worker.port], certificates, more=behind, per_second=2) as front:
        async with session_of(certificates.client()) as session:

            async def ask(address: str) -> tuple[int, Any, bytes]:
                return await post(session, f"{front.url}/v1/events", {"name": "x"}, X_Forwarded_For=address)

            # A newline is a byte of an address like any other.
            for network in ("2001:db8:0:a0a", "2001:db8:0:b0b"):
                numbers = itertools.count(1)
                await until_limited(lambda network=network, numbers=numbers: ask(f"{network}::{next(numbers):x}"))  # type: ignore[misc]
            spread = await asyncio.gather(*[ask(f"2001:db8:1:{number:x}::1") for number in range(300)])
            assert {status for status, _, _ in spread} == {200}


@pytest.mark.long
@pytest.mark.parametrize("proxy", PROXIES)
async def test_reloads_and_restarts_under_load_lose_nothing_and_store_nothing_twice(
    database_url: str, tmp_path: Path, new_folder: Any, certificates: Certificates, proxy: type[Proxy]
):
    environ = {"INGEST_DRAIN_SECONDS": "0.3", "INGEST_TRUSTED_PROXIES": "127.0.0.1"}
    service = Service(tmp_path / "data", database_url, "--workers", "2", environ=environ)
    with running(service), proxy(new_folder(), [service.port], certificates) as front:
        async with RetryingLoad(front.url, certificates.client()) as load:
            for _ in range(4):
                await load.acknowledges(50)
                await asyncio.to_thread(front.reload)
                await load.acknowledges(50)
                await asyncio.to_thread(service.restart_in_place)
                await load.acknowledges(50)
        await asyncio.to_thread(service.wait_stored, SECONDS)
        assert "Traceback" not in service.log_text()
        await check_stored(database_url, [load])


@pytest.mark.long
@pytest.mark.parametrize("proxy", PROXIES)
async def test_of_several_collectors_one_is_killed_and_no_event_is_sent_to_another_as_well(
    database_url: str, tmp_path: Path, new_folder: Any, certificates: Certificates, proxy: type[Proxy]
):
    """Events without an id would be stored twice if the proxy asked another collector after it had asked one."""
    environ = {"INGEST_TRUSTED_PROXIES": "127.0.0.1"}
    first, second = (Service(tmp_path / name, database_url, environ=environ) for name in ("first", "second"))
    with running(first), running(second):
        with proxy(new_folder(), [first.port, second.port], certificates) as front:
            async with RetryingLoad(front.url, certificates.client(), once=6) as load:
                for number in range(20):
                    killed = (first, second)[number % 2]
                    await load.acknowledges(50)
                    await asyncio.to_thread(killed.kill)
                    # The other one goes on.
                    await load.acknowledges(50)
                    await asyncio.to_thread(killed.start)
                    if number >= 3 and load.statuses[503]:
                        break
        for service in (first, second):
            await asyncio.to_thread(service.wait_stored, SECONDS)
        await check_stored(database_url, [load])
        # Some were being answered when their collector was killed: else nothing has been tried.
        assert load.unconfirmed and load.statuses[503], load.statuses
