"""The script that pages load: what is served at which path, how it is cached, and where it sends events."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

from ingest.base import paths
from ingest.base.errors import IngestError
from ingest.service import scripts
from ingest.service.scripts import Scripts, _best_coding, _is_known
from tests.support.collector import Answer, Client, Start
from tests.support.scripts import BESIDE, MAIN, PACKED, version_of, write_scripts

ALL = ("br", "gzip", "identity")
CACHING = ("ETag", "Cache-Control", "Vary")
PUBLIC = {
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built scripts, which take the place of those in the package."""
    made = write_scripts(tmp_path / "dist")
    monkeypatch.setattr(scripts, "packaged", lambda: made)
    return made


def public_headers(answer: Answer) -> dict[str, str]:
    return {name: answer.headers[name] for name in PUBLIC if name in answer.headers}


# What is served.


@pytest.mark.parametrize(
    ("path", "body", "cached"),
    [
        ("/t.js", MAIN, "public, max-age=3600, stale-while-revalidate=86400"),
        (f"/t.{version_of(MAIN)}.js", MAIN, "public, max-age=31536000, immutable"),
        ("/t.vitals.js", BESIDE, "public, max-age=3600, stale-while-revalidate=86400"),
        (f"/t.vitals.{version_of(BESIDE)}.js", BESIDE, "public, max-age=31536000, immutable"),
    ],
)
async def test_a_script_is_public_and_may_be_cached(client: Client, path: str, body: bytes, cached: str):
    for headers in ({"Via": "1.1 x"}, {"Origin": "https://shop.example"}, {"Origin": "null", "Cookie": "a=b"}):
        answer = await client.get(path, Accept_Encoding="identity", **headers)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Cache-Control"] == cached
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert public_headers(answer) == PUBLIC
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Content-Encoding" not in answer.headers and "Set-Cookie" not in answer.headers


async def test_it_is_sent_as_short_as_the_client_can_unpack_it(client: Client):
    packed = await client.get("/t.js", Accept_Encoding="gzip, deflate, br, zstd")
    assert (packed.headers["Content-Encoding"], packed.body) == ("br", PACKED)
    zipped = await client.get("/t.js", Accept_Encoding="gzip")
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == MAIN and len(zipped.body) < len(MAIN)
    # No file of it is packed with brotli.
    beside = await client.get("/t.vitals.js", Accept_Encoding="br, gzip")
    assert beside.headers["Content-Encoding"] == "gzip"
    plain = await client.get("/t.js", Accept_Encoding="identity")
    etags = {answer.headers["ETag"] for answer in (packed, zipped, plain)}
    assert len(etags) == 3


async def test_head_says_what_get_would(client: Client):
    async with await client.raw() as raw:
        for path, status in (("/t.js", 200), (f"/t.{version_of(MAIN)}.js", 200), (f"/t.{'0' * 16}.js", 404)):
            await raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = await raw.answer()
            await raw.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await raw.answer(of_head=True)
            assert got.status == head.status == status
            assert {**got.headers, "date": ""} == {**head.headers, "date": ""}


async def test_what_a_client_has_is_not_sent_again(client: Client):
    for coding in ("br", "gzip", "identity"):
        first = await client.get("/t.js", Accept_Encoding=coding)
        etag = first.headers["ETag"]
        for known in (etag, f"W/{etag}", f'"other", W/"x",{etag}', "*"):
            again = await client.get("/t.js", Accept_Encoding=coding, If_None_Match=known)
            assert (again.status, again.body) == (304, b""), known
            assert {name: again.headers[name] for name in CACHING} == {name: first.headers[name] for name in CACHING}
            assert public_headers(again) == PUBLIC
        for other in ('"other"', etag.strip('"'), "", "W/*", '"*"', etag.replace('"', "'")):
            assert (await client.get("/t.js", Accept_Encoding=coding, If_None_Match=other)).status == 200, other


async def test_the_etag_of_another_coding_is_another(client: Client):
    zipped = await client.get("/t.js", Accept_Encoding="gzip")
    plain = await client.get("/t.js", Accept_Encoding="identity", If_None_Match=zipped.headers["ETag"])
    assert (plain.status, plain.body) == (200, MAIN)


async def test_another_version_is_not_served_and_is_looked_for_again_soon(client: Client):
    for path in (f"/t.{'0' * 16}.js", f"/t.{version_of(BESIDE)}.js", f"/t.vitals.{version_of(MAIN)}.js"):
        answer = await client.get(path, Origin="https://shop.example")
        assert (answer.status, answer.json()["code"]) == (404, "unknown_version")
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        assert public_headers(answer) == PUBLIC
    for path in ("/t.nothing.js", "/t.js.map", "/t.js.br", "/test.js", "/t.0000.js", "/t", "/T.js", "/t.js/"):
        answer = await client.get(path)
        assert (answer.status, answer.json()["code"]) == (404, "unknown_route"), path


async def test_other_methods_are_refused_and_pages_are_not_asked_for_a_password(start: Start):
    client = await start(write_keys=("k",), admin_keys=("an-admin-key-of-these-tests",))
    assert (await client.get("/t.js", Authorization="Bearer wrong")).status == 200
    answer = await client.post(b"{}", "/t.js")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_versions_do_not_make_the_metrics_grow(client: Client):
    for number in range(5):
        await client.get(f"/t.{number:016}.js")
    await client.get("/t.js")
    page = (await client.get("/metrics")).body.decode()
    labels = set(re.findall(r'route="(/t[^"]*)"', page))
    assert labels == {"/t.js", "/t.{version}.js"}


# Where it is served.


@pytest.mark.parametrize(
    ("script_path", "collect_path", "events", "root"),
    [
        ("/t.js", "/e", "e", "./"),
        ("/js/a.js", "/v1/events", "../v1/events", "../"),
        ("/js/a.js", "/js/e", "e", "../"),
        ("/a/b/c", "/d/e/f", "../../d/e/f", "../../"),
        ("/a@1+b/x~y.js", "/a@1+b/.e", ".e", "../"),
    ],
)
async def test_paths_may_be_any(start: Start, script_path: str, collect_path: str, events: str, root: str):
    client = await start(script_path=script_path, collect_path=collect_path)
    answer = await client.get(script_path, Accept_Encoding="br, gzip")
    # Brotli's is that of the script with the usual paths.
    assert answer.headers["Content-Encoding"] == "gzip"
    body = gzip.decompress(answer.body)
    placed = MAIN.replace(b"v1/events", events.encode()).replace(b'"./"', f'"{root}"'.encode())
    assert body == placed
    stem, extension = (script_path[:-3], ".js") if script_path.endswith(".js") else (script_path, "")
    assert (await client.get(f"{stem}.{version_of(placed)}{extension}")).status == 200
    assert (await client.get(f"{stem}.vitals{extension}", Accept_Encoding="identity")).body == BESIDE
    assert (await client.get("/t.js")).status == (200 if script_path == "/t.js" else 404)


async def test_events_are_taken_at_that_path_and_at_the_usual_one(start: Start):
    client = await start(collect_path="/js/e", script_path="/js/a.js")
    assert client.worker._server is not None
    short_way = client.worker._server.short_way
    for is_open in (True, False):
        short_way.is_open = is_open
        for path in ("/js/e", "/v1/events", "/js/e?write_key=x"):
            answer = await client.post({"name": f"{path} {is_open}"}, path, Origin="https://shop.example")
            assert answer.json() == {"accepted": 1, "rejected": []}
            assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert (await client.get("/js/e")).status == 405
    preflight = await client.request("OPTIONS", "/js/e", Origin="https://shop.example")
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert len(await client.names()) == 6
    # Many on one connection, so that it takes the short way.
    async with await client.raw() as raw:
        short_way.is_open = True
        body = b'{"name":"short"}'
        for _ in range(3):
            await raw.send(b"POST /js/e HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert (await raw.answer()).status == 200
    metrics = await client.metrics()
    assert metrics['ingest_http_requests_total{route="/js/e",status="200"}'] >= 7


async def test_what_is_refused_there_can_be_replayed_when_the_path_has_changed(start: Start):
    client = await start(collect_path="/js/e")
    answer = await client.post([{"name": "x", "type": "none of these"}], "/js/e")
    assert answer.json()["accepted"] == 0
    assert [row["route"] for row in await client.rejected()] == ["/v1/events"]


def test_no_path_of_the_service_itself_can_be_taken():
    for path in ("/", "/v1", "/v1/batch", "/v1/e", "/docs", "/docs/x.js", "/healthz", "/ofrep/v1/x", "t.js", "/a//b"):
        with pytest.raises(ValueError):
            paths.free_path(path)
    for path in ("/../a", "/a/..", "/a/./b", "/a b", "/a%20b", "/{a}", "/a?b", "/a#b", "/ä", "/" + "a" * 101, "/a/"):
        with pytest.raises(ValueError):
            paths.free_path(path)


async def test_every_route_of_the_service_is_below_what_is_kept_free(client: Client):
    server = client.worker._server
    assert server is not None
    routes = server._known - {
        "/",
        "/{anything}",
        "/t.js",
        "/t.vitals.js",
        "/t.{version}.js",
        "/t.vitals.{version}.js",
    }
    assert {route.split("/")[1] for route in routes} <= set(paths.OWN)


def test_a_script_without_the_literals_cannot_be_placed(folder: Path):
    (folder / "t.js").write_bytes(b"'v1/events' 'v1/events' './'")
    with pytest.raises(IngestError, match="v1/events 2 times"):
        Scripts(folder, "/t.js", "/e")
    with pytest.raises(IngestError, match=r'"\./" 0 times'):
        Scripts(folder, "/a/t.js", "/a/v1/events")
    assert Scripts(folder, "/t.js", "/v1/events").main.bodies["identity"] == b"'v1/events' 'v1/events' './'"


def test_the_literals_may_be_in_different_scripts(folder: Path):
    (folder / "t.js").write_bytes(b'a("v1/events")')
    (folder / "t.vitals.js").write_bytes(b'b("./")')
    main, beside = Scripts(folder, "/js/t.js", "/js/e")
    assert (main.bodies["identity"], beside.bodies["identity"]) == (b'a("e")', b'b("../")')
    # Only what has changed is without brotli.
    (folder / "t.vitals.js.br").write_bytes(b"packed")
    main, beside = Scripts(folder, "/t.js", "/e")
    assert ("br" in main.bodies, beside.bodies["br"]) == (False, b"packed")


@pytest.mark.parametrize(
    ("script_path", "collect_path"),
    [
        ("/js/a.js", "/js"),
        ("/a/b/c.js", "/a"),
        ("/a/b/c.js", "/a/b"),
        ("/a/b/c.js", "/a/e"),
        ("/a/b/c.js", "/v1/events"),
        ("/t.js", "/e"),
        ("/t.js", "/v1/events"),
        ("/js/a.js", "/js/e"),
    ],
)
def test_the_script_finds_the_path_of_events_and_the_root(script_path: str, collect_path: str):
    for prefix in ("https://example.com", "https://example.com/behind/a/proxy"):
        script = f"{prefix}{script_path}"
        assert urljoin(script, paths.relative(script_path, collect_path)) == f"{prefix}{collect_path}"
        assert urljoin(script, paths.relative(script_path, "/")) == f"{prefix}/"


def test_what_is_made_is_the_same_in_each_process(folder: Path):
    one, other = (Scripts(folder, "/js/t.js", "/e").main for _ in range(2))
    assert one == other
    assert base64.b64decode(one.integrity.removeprefix("sha384-")) == hashlib.sha384(one.bodies["identity"]).digest()


# Headers.


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("br", "br"),
        ("gzip, br", "br"),
        ("GZIP;Q=0.5 , bR ;q=0.4", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("br;q=0.0, gzip;q=0", "identity"),
        ("*", "br"),
        ("*;q=0.1, br;q=0", "gzip"),
        ("br;q=0, *", "gzip"),
        ("identity, br;q=0.5", "identity"),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("identity;q=0", "identity"),
        ("*;q=0", "identity"),
        ("x-gzip", "gzip"),
        ("deflate, zstd", "identity"),
        ("gzipped, brr", "identity"),
        ("gzip;q=", "identity"),
        ("gzip;q=2", "identity"),
        ("gzip;q=-1", "identity"),
        ("gzip;q=nan", "identity"),
        ("gzip;q=0.001", "gzip"),
        ("gzip;level=9;q=0", "identity"),
        (",;,gzip,,", "gzip"),
        ("gzip" + "," * 300, "identity"),
    ],
)
def test_content_codings_are_read_as_they_are_meant(header: str | None, coding: str):
    assert _best_coding(header, ALL) == coding


def test_without_a_packed_file_the_next_best_is_taken():
    assert _best_coding("br, gzip;q=0.1", ("gzip", "identity")) == "gzip"
    assert _best_coding("br", ("gzip", "identity")) == "identity"


def test_no_header_is_no_etag():
    assert not _is_known(None, '"a"') and not _is_known("", '"a"')
