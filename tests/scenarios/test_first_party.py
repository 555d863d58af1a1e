"""The script and its events below a site's own host, behind the proxies of deploy/: Debian's nginx and Caddy."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ingest.events.values.locations import COUNTRY_HEADERS
from ingest.service import scripts
from tests.support.collector import Client, Start
from tests.support.programs import needs
from tests.support.proxies import CADDY, DEPLOY, PROXIES, Caddy, Proxy
from tests.support.scripts import BESIDE, MAIN, version_of, write_scripts

SETTINGS = {"script_path": "/js/a.js", "collect_path": "/js/e", "trusted_proxies": ["127.0.0.1"]}
CLIENT = "127.0.0.9"
"""A client's address other than the proxy's."""


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_scripts(tmp_path / "dist")
    monkeypatch.setattr(scripts, "packaged", lambda: made)


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_site_serves_the_script_and_takes_events(start: Start, new_folder: Any, proxy: type[Proxy]):
    client: Client = await start(**SETTINGS, anonymise_ip=False, write_keys=("site",))
    front = proxy(new_folder(), [client.worker.port])
    (front.folder / "www" / "index.html").write_text("the site's own")
    url = front.url
    connector = aiohttp.TCPConnector(local_addr=(CLIENT, 0))
    with front:
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

            async def get(path: str, **headers: str) -> tuple[int, bytes, Any]:
                sent = {"Accept-Encoding": "identity", **headers}
                async with session.get(f"{url}{path}", headers=sent) as answer:
                    return answer.status, await answer.read(), answer.headers

            assert (await get("/index.html"))[1] == b"the site's own"
            placed = MAIN.replace(b"v1/events", b"e").replace(b'"./"', b'"../"')
            status, body, headers = await get("/js/a.js")
            assert (status, body) == (200, placed)
            assert headers["Access-Control-Allow-Origin"] == "*" and headers["Cache-Control"].startswith("public")
            assert (await get("/js/a.js", **{"If-None-Match": headers["ETag"]}))[0] == 304
            assert (await get("/js/a.js", **{"Accept-Encoding": "gzip"}))[2]["Content-Encoding"] == "gzip"
            assert (await get("/js/a.vitals.js"))[1] == BESIDE
            assert (await get(f"/js/a.{version_of(placed)}.js"))[1] == placed
            for path in ("/js/a", "/js/f", "/v1/stats/totals", "/metrics", "/v1/events", "/docs"):
                assert (await get(path))[0] == 404, path

            forged = {
                "X-Forwarded-For": "8.8.4.4",
                # It is no write key of ours.
                "Authorization": "Basic YWRtaW46cGFzc3dvcmQ=",
                "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            }
            event = {"name": "first", "url": "https://www.example.com/", "cookieless": True}
            for name in ("first", "second"):
                sent = {"batch": [{**event, "name": name}], "write_key": "site"}
                async with session.post(f"{url}/js/e", json=sent, headers=forged) as answer:
                    assert (answer.status, (await answer.json())["accepted"]) == (200, 1)
            flags = {"context": {"targetingKey": "u"}}
            async with session.post(f"{url}/ofrep/v1/evaluate/flags", json=flags) as answer:
                assert answer.status == 200
            # The collector's own answer to an exposure of nothing.
            async with session.post(f"{url}/v1/experiments/exposures", json={}) as answer:
                assert (answer.status, (await answer.json())["code"]) == (422, "invalid_fields")
    rows = await client.fetch("SELECT name, host(ip_address) AS ip, anonymous_id FROM analytics.events ORDER BY name")
    assert [(row["name"], row["ip"]) for row in rows] == [("first", CLIENT), ("second", CLIENT)]
    assert rows[0]["anonymous_id"] == rows[1]["anonymous_id"] is not None
    # Of requests; nginx's other log has those that failed.
    logged = front.access_log.read_text()
    assert logged and "/js/e" not in logged and "/js/a.js" not in logged


@pytest.mark.parametrize("proxy", PROXIES)
async def test_neither_secrets_nor_claims_reach_the_collector(new_folder: Any, proxy: type[Proxy]):
    heads: list[str] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    collector = await asyncio.start_server(note, "127.0.0.1", 0)
    paths = ("/js/a.js", "/js/e", "/v1/leads", "/ofrep/v1/evaluate/flags", "/v1/experiments/exposures")
    secrets = {"Cookie": "a=hidden", "Authorization": "Basic hidden"}
    claims = dict.fromkeys((*COUNTRY_HEADERS, "X-Forwarded-Host", "X-Forwarded-Prefix"), "hidden")
    with proxy(new_folder(), [collector.sockets[0].getsockname()[1]]) as front:
        async with collector, aiohttp.ClientSession() as session:
            for path in paths:
                headers = {**secrets, **claims, "Sec-Purpose": "prefetch"}
                async with session.get(f"{front.url}{path}", headers=headers) as answer:
                    assert answer.status == 200
    assert [head.split()[1] for head in heads] == list(paths)
    assert all("hidden" not in head and "sec-purpose: prefetch" in head for head in heads)


@pytest.mark.parametrize("proxy", PROXIES)
def test_it_finds_no_fault_with_its_files(new_folder: Any, proxy: type[Proxy]):
    front = proxy(new_folder(), [1])
    tried = subprocess.run(front.check, capture_output=True, text=True, timeout=60)
    assert tried.returncode == 0, tried.stderr
    # Caddy has said more by then.
    assert proxy is Caddy or tried.stderr == ""


@needs(CADDY)
@pytest.mark.parametrize("name", ["Caddyfile", "Caddyfile.collector", "ingest.caddy"])
def test_caddy_has_nothing_to_format(name: str):
    """Which is how it says that it reads our lines as we do."""
    file = DEPLOY / "caddy" / name
    formatted = subprocess.run([CADDY, "fmt", str(file)], capture_output=True, timeout=60)
    assert formatted.stdout == file.read_bytes()
