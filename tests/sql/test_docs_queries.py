"""The queries in docs/queries, which people copy: nothing that clients send breaks them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.events.values.sources import source_of
from ingest.events.values.urls import describe_page, referrer_host
from ingest.postgres import connections
from ingest.postgres.queries import load_queries
from ingest.rollup import kpis
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.amounts import amount
from tests.support.databases import Server, run_apart
from tests.support.seed import load
from tests.support.service import lent_database

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "queries").glob("*.sql"))}
COLUMNS = {
    "funnel": ["stage", "people", "percent", "of_the_stage_before"],
    "onboarding": ["step", "began", "finished", "percent_lost", "minutes"],
    "sources": ["source", "visitors", "customers", "percent", "value", "unreadable"],
    "experiment": ["name", "variant_id", "saw_it", "signed_up", "percent"],
    "hours": ["time_bucket", "event_name", "event_count", "unique_users", "unique_sessions"],
    "kpis": ["name", "time_window_start", "dimensions", "value_numeric", "description"],
}


def bare(query: str) -> str:
    return "\n".join(line for line in query.splitlines() if not line.startswith("--")).rstrip().rstrip(";")


async def ask(connection: asyncpg.Connection, name: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(FILES[name])]


def test_each_file_is_one_query_that_says_what_it_is_and_is_in_the_guide() -> None:
    assert FILES.keys() == COLUMNS.keys()
    guide = (ROOT / "docs" / "how-to" / "ask-your-data.md").read_text()
    for name, query in FILES.items():
        assert query.startswith("-- ") and query.endswith(";\n") and query.count(";") == 1
        assert f"ingest psql -f docs/queries/{name}.sql\n" in guide


async def test_without_an_event_there_is_an_answer(connection: asyncpg.Connection) -> None:
    for name, query in FILES.items():
        one = f"SELECT * FROM ({bare(query)}) AS every LIMIT 1"
        (row,) = await connection.fetch(
            f"SELECT result.* FROM (SELECT) AS nothing LEFT JOIN ({one}) AS result ON true"
        )
        assert list(row.keys()) == COLUMNS[name]
        rows = await ask(connection, name)
        assert rows == [] or {row["people"] for row in rows} == {0}


VALUES: list[tuple[Any, str | None]] = [
    # The value as JSON, and what it counts as; None: unreadable.
    (12.5, "12.5"),
    (-3, "-3"),
    (0, "0"),
    ("12.50", "12.50"),
    (" 7 ", "7"),
    ("-.5", "-0.5"),
    ("+1.", "1"),
    ("12,50 €", None),
    ("12,50", None),
    ("1,234.50", None),
    ("1.234,50", None),
    ("€12", None),
    ("12 EUR", None),
    ("NaN", None),
    ("Infinity", None),
    ("-inf", None),
    ("1e3", None),
    ("0x10", None),
    ("", None),
    ("   ", None),
    ("- 5", None),
    ("1 2", None),
    ("5\n;DROP TABLE x", None),
    ("٣", None),
    ("9" * 16, None),
    ("9" * 5000, None),
    (True, None),
    ([12.5], None),
    ({"amount": 12.5}, None),
    ([[]], None),
]
RAW = [
    # JSON that Python would not write so
    ("1e400", None),
    ("-1e300", None),
    ("1e-400", "0"),
    ("999999999999999", "999999999999999"),
    ("1000000000000000", None),
    ("1.0000000000000000000000000000001", "1"),
    ('"\\u0031"', "1"),
]


async def events(connection: asyncpg.Connection, *rows: dict[str, Any] | str) -> None:
    await connection.execute("SELECT analytics.ensure_events_partition(current_date - 1)")
    await connection.execute("SELECT analytics.ensure_events_partition(current_date)")
    for row in rows:
        await connection.execute(
            "INSERT INTO analytics.events"
            " (type, name, anonymous_id, user_id, session_id, url, referrer, properties, created_at, device_type)"
            " SELECT type, name, anonymous_id, user_id, session_id, url, referrer, coalesce(properties, '{}'),"
            " coalesce(created_at, now()), device_type FROM jsonb_populate_record(NULL::analytics.events, $1)",
            row if isinstance(row, str) else json.dumps({"name": "x", **row}),
        )


def visit(person: str, url: str = "https://shop.example/", **more: Any) -> dict[str, Any]:
    return {"type": "page_view", "anonymous_id": person, "url": url, **more}


def paid(person: str, **properties: Any) -> dict[str, Any]:
    return {"type": "conversion", "anonymous_id": person, "properties": properties}


async def test_a_value_is_a_number_or_counted_as_unreadable(connection: asyncpg.Connection) -> None:
    texts = [(json.dumps(value), number) for value, number in VALUES] + RAW
    for text, number in texts:
        found = await connection.fetchval("SELECT analytics.number_of($1::jsonb)", text)
        assert found == (None if number is None else Decimal(number)), text
    assert await connection.fetchval("SELECT analytics.number_of('null')") is None


async def test_no_value_breaks_the_sources(connection: asyncpg.Connection) -> None:
    numbers = [(value, number) for value, number in VALUES]
    rows = [paid(f"p{place}", value=value) for place, (value, _) in enumerate(numbers)]
    visits = [visit(f"p{place}", "https://shop.example/?utm_source=News") for place in range(len(numbers))]
    nothing = [visit("n1"), paid("n1"), visit("n2"), paid("n2", value=None), visit("n3")]
    nobody: list[dict[str, Any]] = [{"type": "conversion", "properties": {"value": "x"}}, {"type": "page_view"}]
    await events(connection, *rows, *visits, *nothing, *nobody)
    for text, _ in RAW:
        row = json.dumps({"type": "conversion", "name": "x", "anonymous_id": "raw"})[:-1]
        await events(connection, f'{row}, "properties": {{"value": {text}}}}}')
    await events(connection, visit("raw", "https://shop.example/?ref=Raw"))
    sources = {row["source"]: row for row in await ask(connection, "sources")}
    total = sum([Decimal(number) for _, number in numbers if number is not None])
    unreadable = len([number for _, number in numbers if number is None])
    assert sources["news"] == {
        "source": "news",
        "visitors": len(numbers),
        "customers": len(numbers),
        "percent": 100,
        "value": total,
        "unreadable": unreadable,
    }
    assert (sources["raw"]["value"], sources["raw"]["unreadable"]) == (Decimal("1000000000000001"), 3)
    assert (sources["direct"]["visitors"], sources["direct"]["customers"], sources["direct"]["value"]) == (3, 2, 0)
    assert sources["direct"]["unreadable"] == 0
    for name in FILES:
        await ask(connection, name)


async def test_the_first_page_says_where_a_person_came_from(connection: asyncpg.Connection) -> None:
    at = datetime.now(UTC)
    began, later = (at - timedelta(hours=2)).isoformat(), at.isoformat()
    written = ["LinkedIn", "linkedin", "www.linkedin.com", "LINKEDIN.com"]
    rows = [visit(f"l{n}", f"https://www.shop.example/?utm_source={text}") for n, text in enumerate(written)]
    rows += [visit("l9", referrer="https://www.linkedin.com/feed"), visit("l8", referrer="https://lnkd.in/x")]
    # From the site itself, in every spelling, and from hosts that only look like it.
    own = [
        "https://shop.example/",
        "https://www.shop.example:443",
        "HTTPS://BLOG.SHOP.EXAMPLE./x",
        "https://u:p@shop.example",
    ]
    rows += [visit(f"o{n}", "https://www.shop.example/", referrer=text) for n, text in enumerate(own)]
    rows += [
        visit("e1", referrer="https://a\\@evil.example/"),
        visit("e2", referrer="https://shop.example.evil.example"),
    ]
    # One person, identified later; the first page counts, and so does a conversion under the user's id.
    rows += [
        visit("b1", referrer="https://news.example/", created_at=began),
        visit("b1", "https://shop.example/?utm_source=mail", created_at=later),
        {"type": "user_action", "anonymous_id": "b1", "user_id": "ada"},
        {"type": "conversion", "user_id": "ada", "properties": {"value": 5}},
    ]
    await events(connection, *rows)
    await connection.execute("SELECT process_pending_events()")
    assert await Rollup(DIMENSION_NAMES, Room(names=1000, values=100)).run_once(connection) is not None
    found = {
        row["source"]: (row["visitors"], row["customers"], row["value"]) for row in await ask(connection, "sources")
    }
    assert found == {
        "linkedin": (6, 0, 0),
        "direct": (4, 0, 0),
        "a": (1, 0, 0),
        "shop.example.evil.example": (1, 0, 0),
        "news.example": (1, 1, 5),
    }


URLS = st.lists(
    st.sampled_from(
        [
            "https://",
            "shop.example",
            "www.",
            "SHOP.",
            "münchen.de",
            ":443",
            ":",
            "/",
            "\\",
            "@",
            "?",
            "#",
            "&",
            "utm_source=",
            "ref=",
            "%00",
            "%ff",
            "💥",
            "''",
            "--",
            "a",
            "[::1]",
            "LinkedIn",
            " ",
        ]
    ),
    max_size=8,
).map("".join)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["12,50 €", "NaN", "1e9999", "٣", "-"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "a"]), inner, max_size=2),
    max_leaves=4,
)
UNIT = "00000000-0000-4000-8000-00000000000a"
ROWS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["page_view", "conversion", "user_action"]),
        "name": st.sampled_from(["x", "signup_completed", "lead_submitted"]),
    },
    optional={
        "anonymous_id": st.sampled_from(["a", "b", "c"]),
        "user_id": st.sampled_from(["ada", "a", UNIT]),
        "session_id": st.sampled_from(["s1", "s2"]),
        "url": URLS,
        "referrer": URLS,
        "properties": st.fixed_dictionaries({}, optional={"value": JSON}),
    },
)
# A bot may have any id, also one of these people's, and do anything that the queries count.
BOTS: list[dict[str, Any]] = [
    {"type": kind, "name": name, "device_type": "bot", "properties": {"value": 1000}, **who, **page}
    for kind in ("page_view", "conversion", "user_action", "system")
    for name in ("x", "signup_completed", "lead_submitted", "onboarding_started")
    for who in (
        {"anonymous_id": "a"},
        {"anonymous_id": "bot"},
        {"user_id": "ada"},
        {"user_id": UNIT, "session_id": "s1"},
    )
    for page in ({"url": "https://shop.example/pricing"}, {"url": "https://shop.example/?utm_source=bots"})
]


@pytest.fixture(scope="module")
def module_url(postgres: Server, template: str) -> Any:
    with lent_database(postgres, template) as url:
        yield url


@pytest.mark.longer
@settings(max_examples=amount(8, long=40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=15))
def test_nothing_that_clients_send_breaks_a_query(module_url: str, rows: list[dict[str, Any]]) -> None:
    rows = json.loads(json.dumps(rows).replace("\\u0000", ""))
    run_apart(lambda: hold(module_url, rows))


COPY_AS_BOTS = (
    "INSERT INTO analytics.events"
    " (type, name, anonymous_id, user_id, session_id, url, referrer, properties, created_at, device_type)"
    " SELECT type, name, anonymous_id, user_id, session_id, url, referrer, properties, created_at, 'bot'"
    " FROM analytics.events"
)


async def shown_an_experiment(connection: asyncpg.Connection) -> None:
    """Show variants to a user and to a session, an hour ago."""
    await connection.execute(
        "INSERT INTO experiments.experiments (id, name, status, test_variants)"
        f" VALUES ('{UNIT}', 'pricing_page_layout', 'running', '[{{\"id\": \"b\"}}]') ON CONFLICT DO NOTHING"
    )
    await connection.execute(
        "INSERT INTO experiments.assignments"
        " (experiment_id, user_id, session_id, variant_id, first_exposure_at, last_exposure_at, exposure_count)"
        f" SELECT '{UNIT}', person::uuid, visit, variant, now() - interval '1 hour', now() - interval '1 hour', 1"
        f" FROM (VALUES ('{UNIT}', NULL, 'b'), (NULL, 's1', 'control')) AS unit (person, visit, variant)"
        " ON CONFLICT DO NOTHING"
    )


async def hold(url: str, rows: list[dict[str, Any]]) -> None:
    connection = await connections.connect(url, purpose="tests")
    try:
        await connection.execute("TRUNCATE analytics.events")
        await shown_an_experiment(connection)
        await events(connection, *rows)
        answers = {name: await ask(connection, name) for name in FILES}
        assert sum([row["saw_it"] for row in answers["experiment"]]) == 2
        await connection.execute("SELECT analytics.ensure_events_partition(current_date)")
        await connection.execute(COPY_AS_BOTS)
        await events(connection, *BOTS)
        assert {name: await ask(connection, name) for name in FILES} == answers
        people = {row.get("user_id") or row.get("anonymous_id") for row in rows} - {None}
        assert {row["people"] for row in answers["funnel"] if row["stage"] == "visit"} == {len(people)}
        assert sum([row["visitors"] for row in answers["sources"]]) == len(
            {row.get("user_id") or row.get("anonymous_id") for row in rows if row["type"] == "page_view"} - {None}
        )
        # Every source is the one that the collector would derive.
        possible: set[str | None] = {None}
        for row in rows:
            page, referrer = describe_page(row.get("url", "")), row.get("referrer") or None
            came_from = referrer_host(referrer or "")
            possible.add(source_of(page.utm_source, page.hint, referrer, came_from, page.host))
        assert {row["source"] for row in answers["sources"]} <= {source or "direct" for source in possible}
    finally:
        await connection.close()


@pytest.mark.long
async def test_bots_change_no_answer(connection: asyncpg.Connection) -> None:
    await load(connection, anchor=datetime.now(UTC))
    computed = [kpi for kpi in kpis.load() if kpi.name in ("page_views", "active_users", "experiment_conversions")]

    async def answers() -> dict[str, Any]:
        await connection.execute("SELECT process_pending_events()")
        while await Rollup(DIMENSION_NAMES, Room(names=1000, values=100)).run_once(connection):
            pass
        await kpis.run_once(connection, datetime.now(UTC), computed)
        answers: dict[str, Any] = {name: await ask(connection, name) for name in FILES}
        # The hour that a day ago was in may have ended meanwhile.
        oldest = datetime.now(UTC) - timedelta(hours=22)
        return answers | {"hours": [row for row in answers["hours"] if row["time_bucket"] > oldest]}

    before = await answers()
    assert all(before.values())
    people = await connection.fetchval("SELECT count(*) FROM analytics.events WHERE device_type <> 'bot'")
    await connection.execute(COPY_AS_BOTS)
    await events(connection, *BOTS)
    assert (
        await connection.fetchval("SELECT count(*) FROM analytics.events WHERE device_type = 'bot'") > people > 1000
    )
    assert await answers() == before


async def test_the_queries_agree_with_each_other_on_the_seed_data(connection: asyncpg.Connection) -> None:
    await load(connection, anchor=datetime.now(UTC))
    await connection.execute("SELECT process_pending_events()")
    while await Rollup(DIMENSION_NAMES, Room(names=1000, values=100)).run_once(connection):
        pass
    stages = {row["stage"]: row["people"] for row in await ask(connection, "funnel")}
    sources = {row["source"]: row for row in await ask(connection, "sources")}
    assert sources.keys() == {
        "direct",
        "facebook",
        "google",
        "instagram",
        "linkedin",
        "newsletter",
        "partners.example",
    }
    assert sum([row["visitors"] for row in sources.values()]) == stages["visit"]
    assert sum([row["customers"] for row in sources.values()]) == stages["conversion"]
    shown = await ask(connection, "experiment")
    assert sum([row["saw_it"] for row in shown]) == stages["prices"]
    # As the endpoint for results counts.
    known = await connection.fetchval("SELECT id FROM experiments.experiments WHERE name = 'pricing_page_layout'")
    counted = await connection.fetch(load_queries("experiments")["counts"], known, "signup_completed", None)
    assert {row["variant_id"]: (row["exposures"], row["conversions"]) for row in counted} == {
        row["variant_id"]: (row["saw_it"], row["signed_up"]) for row in shown
    }
    results = await connection.fetch(
        "SELECT source, count(*) FROM (SELECT DISTINCT ON (anonymous_id) coalesce(source, 'direct') AS source"
        " FROM analytics.events WHERE type = 'page_view' AND device_type <> 'bot'"
        " ORDER BY anonymous_id, created_at) AS first GROUP BY source"
    )
    assert {row["source"]: row["visitors"] for row in sources.values()} == dict(map(tuple, results))
