"""Sources of visits: docs/reference/sources.md, rule by rule; the database agrees on every URL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.events.page_fields import make_page_fields
from ingest.events.values import sources, urls
from ingest.events.values.sources import (
    ALIASES,
    NAMES,
    NO_HOSTS,
    OwnHosts,
    is_own,
    name_of_host,
    site_of,
    source_name,
    source_of,
)
from ingest.events.values.urls import describe_page, folded, referrer_host, without_credentials
from ingest.postgres import connections
from tests.support.collector import Client, Start
from tests.support.databases import Server, run_apart
from tests.support.service import lent_database
from tests.support.steps import accepted

SITE = "https://www.example.com/"


def source(url: str = SITE, referrer: str | None = None, own: OwnHosts = NO_HOSTS) -> str | None:
    page = describe_page(url)
    return source_of(page.utm_source, page.hint, referrer, referrer_host(referrer or ""), page.host, own)


# One value for all spellings.

ONE_SOURCE = {
    "linkedin": [
        "LinkedIn",
        "linkedin",
        "LINKEDIN",
        " LinkedIn ",
        "www.linkedin.com",
        "linkedin.com",
        "LinkedIn.com.",
        "lnkd.in",
        "https://www.linkedin.com/feed",
        "de.linkedin.com",
        "ＬｉｎｋｅｄＩｎ",
        "linkedin.com:443",
        "Linked In",
        "//linkedin.com",
        "user:secret@linkedin.com",
        "linkedin\u200b",
        "android-app://com.linkedin.android/",
    ],
    "google": [
        "google",
        "Google",
        "GOOGLE.com",
        "www.google.co.uk",
        "google.de",
        "https://www.google.com.br/search?q=a",
    ],
    "gmail": ["mail.google.com", "Gmail", "com.google.android.gm"],
    "facebook": ["fb", "FB", "facebook", "l.facebook.com", "lm.facebook.com", "m.facebook.com", "fb.me"],
    "twitter": ["Twitter", "x.com", "t.co", "https://t.co/abc", "mobile.twitter.com"],
    "xn--mnchen-3ya.de": ["münchen.de", "MÜNCHEN.de", "xn--mnchen-3ya.de", "www.München.de", "mu\u0308nchen.de"],
    "news letter": ["news letter", "News\u00a0 Letter", "news\tletter\n"],
    "newsletter": ["newsletter", "NewsLetter", "Newsletter "],
    "grüße": ["Grüße", "GRÜßE", "gru\u0308ße"],
    "google.evil.com": ["google.evil.com"],
    "notlinkedin.com": ["notlinkedin.com", "www.NotLinkedIn.com"],
    "linkedin.com.evil.example": ["linkedin.com.evil.example"],
}
"""source -> its spellings in campaigns."""


@pytest.mark.parametrize(
    ("name", "written"), [(name, written) for name, every in ONE_SOURCE.items() for written in every]
)
def test_all_spellings_of_a_source_are_one_value(name: str, written: str) -> None:
    assert source_name(folded(written)) == name
    for spelled in (written, json.loads(json.dumps(written))):
        quoted = "".join([f"%{byte:02x}" for byte in spelled.encode()])
        for key in ("utm_source", "UTM_Source", "utm%5Fsource", "ref", "source"):
            assert source(f"{SITE}?a=b&{key}={quoted}#x") == name
            assert source(f"{SITE}?{key}=&{key}=%20&{key}={quoted}&{key}=other") == name


CAME_FROM = [
    # Referrer, source
    ("https://www.linkedin.com/feed/", "linkedin"),
    ("HTTP://LinkedIn.com:80", "linkedin"),
    ("android-app://com.linkedin.android", "linkedin"),
    ("android-app://com.google.android.gm/", "gmail"),
    ("ios-app://544007664/vnd.youtube/x", "544007664"),
    ("//t.co/x", "twitter"),
    ("https://a\\@evil.example/", "a"),
    ("https://user:pw@evil.example\\@google.com/", "evil.example"),
    ("https://news.example:8443/a?b", "news.example"),
    ("https://NEWS.example./", "news.example"),
    ("https://münchen.de/", "xn--mnchen-3ya.de"),
    ("https://XN--MNCHEN-3YA.DE/", "xn--mnchen-3ya.de"),
    ("https://[2001:DB8:0::1]:80/", "2001:db8::1"),
    ("https://10.0.0.1/", "10.0.0.1"),
    ("https://example.org/", "example.org"),
    ("https://example.com.evil.org/", "example.com.evil.org"),
    ("https://notexample.com/", "notexample.com"),
    ("chrome-extension://abcdef/x.html", None),
    ("capacitor://localhost", None),
    ("file:///home/a.html", None),
    ("about:blank", None),
    ("$direct", None),
    ("", None),
    ("/pricing", None),
    # The site itself
    ("https://example.com/", None),
    ("https://www.example.com", None),
    ("https://WWW.EXAMPLE.COM:443/x", None),
    ("http://blog.example.com/", None),
    ("https://a.b.example.com./", None),
]


@pytest.mark.parametrize(("referrer", "name"), CAME_FROM)
@pytest.mark.parametrize("site", [SITE, "https://example.com", "https://app.example.com:8080/x?y=z"])
def test_the_source_of_a_referrer(site: str, referrer: str, name: str | None) -> None:
    assert source(site, referrer) == name


SITES = [
    ("www.example.com", "example.com"),
    ("a.b.example.com", "example.com"),
    ("shop.example.co.uk", "example.co.uk"),
    ("example.co.uk", "example.co.uk"),
    ("shop.example.com.au", "example.com.au"),
    ("ada.github.io", "ada.github.io"),
    ("docs.ada.github.io", "ada.github.io"),
    ("github.io", "github.io"),
    ("localhost", "localhost"),
    ("10.0.0.1", "10.0.0.1"),
    ("2001:db8::1", "2001:db8::1"),
    ("x.co", "x.co"),
    ("a.x.co", "x.co"),
    ("ada.wordpress.com", "ada.wordpress.com"),
    ("app.xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
]


@pytest.mark.parametrize(("host", "site"), SITES)
def test_registered_domains(host: str, site: str) -> None:
    assert site_of(host) == site


@pytest.mark.parametrize(
    ("own", "page", "host", "is_ours"),
    [
        ((), "ada.github.io", "bob.github.io", False),
        ((), "ada.github.io", "github.io", False),
        ((), "shop.example.co.uk", "other.co.uk", False),
        ((), "10.0.0.1", "10.0.0.2", False),
        ((), "app.example.com", "docs.example.com", True),
        ((), None, "example.com", False),
        (("Example.com",), None, "www.example.com", True),
        (("www.example.com:443",), "other.example", "a.b.example.com", True),
        (("münchen.de",), None, "xn--mnchen-3ya.de", True),
        (("example.com",), None, "notexample.com", False),
        (("com.example.app",), "example.com", "com.example.app", True),
    ],
)
def test_own_hosts(own: tuple[str, ...], page: str | None, host: str, is_ours: bool) -> None:
    assert is_own(host, page, OwnHosts.of(own)) == is_ours


RANKED = [
    # In order of precedence, from lowest to highest.
    ("", "https://news.example/", "news.example"),
    ("gclid=x", "https://news.example/", "google"),
    ("fbclid=+&msclkid=x&gclid=x", "https://news.example/", "bing"),
    ("gclid=x&source=Partner", "https://news.example/", "partner"),
    ("gclid=x&source=Partner&ref=Ada", "https://news.example/", "ada"),
    ("gclid=x&source=Partner&ref=Ada&utm_source=Mail", "https://news.example/", "mail"),
    # Blank values are ignored.
    ("utm_source=+&ref=%20&source=&fbclid=x", "https://news.example/", "facebook"),
    # Between two pages of the site only a campaign counts.
    ("gclid=x&source=Partner&ref=nav", "https://example.com/", None),
    ("gclid=x&utm_source=Mail", "https://example.com/", "mail"),
    # The site itself is not a source.
    ("utm_source=www.example.com", "https://news.example/", "news.example"),
    ("utm_source=https://example.com/&ref=blog.example.com", None, None),
    ("utm_medium=cpc", None, None),
]


@pytest.mark.parametrize(("query", "referrer", "name"), RANKED)
def test_precedence_of_sources(query: str, referrer: str | None, name: str | None) -> None:
    assert source(f"{SITE}?{query}", referrer) == name


def test_click_ids_and_well_known_names_agree() -> None:
    known = {*NAMES, *ALIASES.values(), "amazon", "ebay"}
    assert {*urls.CLICKS.values()} <= known
    for name in known:
        assert source_name(name) == name == folded(name)
    for name, hosts in NAMES.items():
        for host in hosts:
            assert urls.host_form(host) == host
            assert name_of_host(host) == name_of_host(f"m.{host}") == name
    for host in sources.SHARED:
        assert site_of(f"ada.{host}") == f"ada.{host}"


# Documentation


def test_the_examples_in_the_documentation_are_right() -> None:
    """Every example in docs/reference/sources.md."""
    text = (Path(__file__).parents[2] / "docs" / "reference" / "sources.md").read_text()
    examples = re.findall(r"`([^`\n]+)` → `([^`\n]+)`", text)
    assert len(examples) >= 25
    for written, form in examples:
        url, _, referrer = written.partition(" from ")
        page = describe_page(url)
        stored_forms = {page.path, page.host, source(url, referrer or None) or "NULL", without_credentials(url)}
        assert form in stored_forms, (written, form, stored_forms)


# The database agrees.

PARTS = st.sampled_from(
    [
        "https:",
        "HTTP:",
        "file:",
        "android-app:",
        "//",
        "/",
        "\\",
        "?",
        "#",
        "@",
        ":",
        "[",
        "]",
        "[::1]",
        "[1:0::0:2]",
        "&",
        "utm_source=",
        "UTM%5fSource=",
        "&ref=",
        "&amp;source=",
        "gclid=1",
        "&fbclid=1",
        "%00",
        "%ff",
        "%c3%a4",
        "%C3%A4",
        "%41",
        "%2e",
        "%2F",
        "%25",
        "%",
        "%e2%80%8b",
        "%f0%9f%92%a5",
        "+",
        "a",
        "B",
        "www.",
        "Example.com",
        "google.de",
        "münchen",
        "💥",
        "。",
        "..",
        ".",
        " ",
        "\t",
        "\n",
        "a\u0301",
        "\u0301",
        ":80",
        "ä",
        "<",
        "`",
        "xn--",
        "%20",
        "\u200d",
        "\u3000",
        "Ⓐ",
        "co.uk",
        ";",
    ]
)
ADDRESSES = st.one_of(
    st.lists(PARTS, max_size=12).map("".join),
    st.lists(PARTS, max_size=8).map(lambda parts: "https://www.example.com/" + "".join(parts)),
    st.lists(PARTS, max_size=8).map(lambda parts: "https://example.com/?utm_source=" + "".join(parts)),
)
TABLE = [
    *[f"{SITE}?utm_source={written}" for every in ONE_SOURCE.values() for written in every],
    *[referrer for referrer, _ in CAME_FROM],
    *[f"{SITE}?{query}" for query, _, _ in RANKED],
]
STORED = (
    "url",
    "referrer",
    "page_host",
    "page_path",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "referrer_host",
    "source",
)


@pytest.fixture(scope="module")
def module_url(postgres: Server, template: str) -> Iterator[str]:
    with lent_database(postgres, template) as url:
        yield url


async def by_database(url: str, events: list[dict[str, Any]]) -> list[tuple[str | None, ...]]:
    """The columns after a plain INSERT of these."""
    connection = await connections.connect(url, purpose="tests")
    try:
        await connection.execute("SELECT analytics.ensure_events_partition(current_date)")
        await connection.execute("TRUNCATE analytics.events")
        for number, event in enumerate(events):
            given = {"type": "user_action", "name": f"{number:04}", **event}
            await connection.execute(
                "INSERT INTO analytics.events (type, name, url, referrer, context, properties)"
                " SELECT type, name, url, referrer, coalesce(context, '{}'), coalesce(properties, '{}')"
                " FROM jsonb_populate_record(NULL::analytics.events, $1)",
                json.dumps(given),
            )
        rows = await connection.fetch(f"SELECT {', '.join(STORED)} FROM analytics.events ORDER BY name")
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


def by_collector(url: str | None, referrer: str | None) -> tuple[str | None, ...]:
    line = make_page_fields(url, referrer, None, NO_HOSTS)
    return tuple(None if cell == "\\N" else unescaped(cell) for cell in line.split("\t"))


def unescaped(cell: str) -> str:
    for escape, character in (("\\t", "\t"), ("\\n", "\n"), ("\\r", "\r"), ("\\\\", "\\")):
        cell = cell.replace(escape, character) if escape != "\\\\" else cell
    return re.sub(r"\\(.)", lambda match: {"t": "\t", "n": "\n", "r": "\r"}.get(match[1], match[1]), cell)


def check(url: str, pairs: list[tuple[str, str]]) -> None:
    found: list[list[tuple[str | None, ...]]] = []

    async def ask() -> None:
        found.append(await by_database(url, [{"url": page, "referrer": referrer} for page, referrer in pairs]))

    run_apart(ask)
    for pair, stored in zip(pairs, found[0], strict=True):
        # An empty URL is NULL in the database.
        assert dict(zip(STORED, stored, strict=True)) == dict(zip(STORED, by_collector(*pair), strict=True)), pair


def test_the_database_agrees_on_the_tables(module_url: str) -> None:
    check(
        module_url,
        [(SITE, text) for text in TABLE if text] + [(text, "https://news.example/") for text in TABLE if text],
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(ADDRESSES.filter(bool), ADDRESSES.filter(bool)), min_size=10, max_size=30))
def test_the_database_agrees_on_any_url(module_url: str, pairs: list[tuple[str, str]]) -> None:
    check(module_url, pairs)


_PAGE = {"url": "https://shop.example/a?utm_source=Mail&utm_term=T", "referrer": "https://t.co/x"}
_PLACE = {"path": "/b/", "search": "utm_medium=CPC&ref=Ada", "referrer": "https://news.example/"}
SHAPES: list[dict[str, Any]] = [
    {},
    {"context": {"page": _PAGE}},
    {"context": {"page": _PLACE}},
    {"context": {"page": {**_PAGE, "url": 5}}},
    {"context": {"page": {**_PAGE, "url": "", **_PLACE}}},
    {"context": {"page": [], "campaign": 7}},
    {"context": {"page": {"path": 7, "search": "?a=b"}}},
    {"context": {"page": {"path": 7, "search": "red shoes"}}},
    {"type": "page_view", "properties": {"search": "red shoes"}},
    {"url": "", "referrer": "", "context": {"page": _PAGE}},
    {"url": "https://shop.example/", "context": {"page": _PAGE}},
    {"type": "page_view", "properties": _PAGE},
    {"type": "page_view", "properties": _PLACE},
    {"type": "page_view", "properties": {**_PAGE, "referrer": 7}, "context": {"page": _PLACE}},
    {"type": "page_view", "properties": _PAGE, "context": {"page": {"referrer": "https://news.example/"}}},
    {"type": "page_view", "url": "https://shop.example/", "properties": _PAGE},
    {"type": "conversion", "properties": _PAGE},
    {
        "context": {
            "campaign": {
                "source": "LinkedIn.com",
                "medium": "CPC",
                "name": " Spring  Sale ",
                "term": "A  B",
                "content": 7,
            }
        }
    },
    {"context": {"campaign": {"source": [], "medium": None, "name": {}, "term": True, "content": ""}, "page": _PAGE}},
    {"context": {"campaign": {"source": "www.shop.example"}, "page": _PAGE}},
    {"context": {"campaign": {"name": "only"}}, "referrer": "https://shop.example"},
]


def test_the_database_agrees_on_contexts_and_properties(module_url: str) -> None:
    found: list[list[tuple[str | None, ...]]] = []

    async def ask() -> None:
        found.append(await by_database(module_url, SHAPES))

    run_apart(ask)
    for shape, stored in zip(SHAPES, found[0], strict=True):
        row = accepted({"name": "x", "type": "user_action", **shape})
        # A missing value is NULL in the database, and an empty one may be either.
        in_database = {name: row[name] or None for name in STORED}
        assert {name: value or None for name, value in zip(STORED, stored, strict=True)} == in_database, shape


async def test_the_database_has_the_same_lists(connection: asyncpg.Connection) -> None:
    known = json.loads(await connection.fetchval("SELECT ingest.known_sources()::text"))
    assert known == {host: name for name, hosts in NAMES.items() for host in hosts}
    for alias, name in ALIASES.items():
        assert await connection.fetchval("SELECT ingest.source_name($1)", alias) == name
    for click, name in urls.CLICKS.items():
        found = await connection.fetchval("SELECT ingest.hint_of(ingest.url_parameters($1))", f"a=b&{click}=x")
        assert found == name
    hosts = [host for host, _ in SITES] + [f"ada.{host}" for host in sources.SHARED]
    for host in hosts:
        assert await connection.fetchval("SELECT ingest.site_of($1)", host) == site_of(host)
    await connection.execute("SET app.own_hosts = 'Example.com, münchen.de'")
    for host in ("example.com", "www.example.com", "a.example.com", "xn--mnchen-3ya.de"):
        form = urls.host_form(host)
        assert await connection.fetchval("SELECT ingest.is_own_host($1, NULL)", form) is True
    assert await connection.fetchval("SELECT ingest.is_own_host('notexample.com', NULL)") is False


# End to end.


async def test_no_credentials_in_urls_are_in_any_table(client: Client) -> None:
    """Stored and refused events, plain INSERTs, and leads."""
    secret = "https://ann:s3cret@shop.example/x"
    good = {
        "name": "a",
        "url": secret,
        "referrer": secret,
        "properties": {"u": secret},
        "context": {"page": {"url": secret}},
    }
    bad = {"name": "", "url": secret, "properties": {"u": secret}}
    answer = (await client.post([good, bad])).json()
    assert answer["accepted"] == 1 and len(answer["rejected"]) == 1
    page = {"type": "page", "name": "p", "properties": {"url": secret, "referrer": secret}}
    assert (await client.post({"batch": [page]}, "/v1/batch")).json()["accepted"] == 1
    lead = {"email": "bob@shop.example", "landing_page": secret, "referrer": secret}
    assert (await client.post(lead, "/v1/leads")).status == 201
    rows = await client.fetch(
        "INSERT INTO analytics.events (type, name, url, referrer, properties, context)"
        " SELECT 'user_action', 'plain', $1, $1, texts, texts FROM jsonb_build_object('u', $1::text) AS texts"
        " RETURNING events::text",
        secret,
    )
    for table in ("analytics.events", "analytics.rejected_events", "marketing.leads", "public.audit_logs"):
        rows += await client.fetch(f"SELECT {table.partition('.')[2]}::text FROM {table}")
    texts = [row[0] for row in rows]
    assert len(texts) >= 7 and not [text for text in texts if "s3cret" in text]
    assert len([text for text in texts if "shop.example/x" in text]) >= 5


async def test_the_source_is_the_same_for_every_way_in(start: Start) -> None:
    client = await start(own_hosts=["ours.example"], cors_origins=["https://partner.example"])
    ways: list[tuple[dict[str, Any], str | None]] = [
        ({"referrer": "https://www.LinkedIn.com/"}, "linkedin"),
        ({"referrer": "https://blog.ours.example/"}, None),
        ({"referrer": "https://www.partner.example/"}, None),
        ({"url": "https://shop.example/?utm_source=LinkedIn", "referrer": "https://www.shop.example"}, "linkedin"),
        ({"context": {"page": {"path": "/%F0%9F%92%A5-neu", "search": "?ref=ProductHunt"}}}, "producthunt"),
        ({"url": "/💥-neu/?gclid=x", "context": {"campaign": {"source": "LinkedIn", "name": []}}}, "linkedin"),
    ]
    body = [{"name": f"{number}", "url": "https://shop.example/", **event} for number, (event, _) in enumerate(ways)]
    body[4].pop("url")
    assert (await client.post(body)).json()["accepted"] == len(ways)
    rows = await client.fetch("SELECT name, source, page_path FROM analytics.events ORDER BY name")
    assert [row["source"] for row in rows] == [source for _, source in ways]
    assert [row["page_path"] for row in rows[4:]] == ["/💥-neu", "/💥-neu"]
