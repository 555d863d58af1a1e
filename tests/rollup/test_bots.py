"""Events of bots and of prefetches are counted nowhere unless asked for; one rule everywhere."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import pytest

from ingest.http.prefetch import is_made_ahead
from ingest.rollup import kpis
from ingest.rollup.buckets import Room
from tests.support.aggregates import BY_DEFINITION, Event, make_partitions
from tests.support.amounts import some_of
from tests.support.experiment_results import NINE, TEN, counted, event, shown
from tests.support.statistics import Asker, store

START, END = datetime(2024, 2, 5, tzinfo=UTC), datetime(2024, 2, 9, tzinfo=UTC)
RANGE = {"from_": "2024-02-05", "to": "2024-02-09"}
CONDITIONS = {"exclude": "device_type IS DISTINCT FROM 'bot'", "only": "device_type = 'bot'", "include": "true"}
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
COUNTS = "count(*) AS events, count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions"


def traffic(seed: int) -> list[Event]:
    """People, bots, and a browser with events of both kinds, by prefetching. Bots also have names of their own."""
    random = Random(seed)
    events = []
    for _ in range(random.randrange(60, 160)):
        device = random.choice(["desktop", "mobile", None, "bot", "bot"])
        events.append(
            Event(
                START + random.random() * (END - START),
                random.choice(["a", "b", "crawled"] if device == "bot" else ["a", "b", "page_view"]),
                random.choice(["page_view", "page_view", "user_action", "conversion", "system"]),
                user_id=random.choice([None, "ada", "bob"]),
                anonymous_id=random.choice([None, "x", "y", "crawler"]),
                session_id=random.choice([None, "s1", "s2", "s3"]),
                country=random.choice([None, "DE", "BR"]),
                page_path=random.choice(["/", "/robots.txt"]),
                device_type=device,
            )
        )
    return events


@pytest.mark.parametrize("seed", some_of(range(4), 1))
async def test_everything_that_counts_agrees_with_one_query(ask: Asker, connection: asyncpg.Connection, seed: int):
    await store(connection, *traffic(seed), room=Room(2, 1) if seed == 3 else Room(100, 100))
    for mode, condition in CONDITIONS.items():
        window = f"created_at >= '{START}' AND created_at < '{END}'"
        selected = f"SELECT * FROM ({BY_DEFINITION}) AS event WHERE {condition} AND {window}"

        async def counts(where: str = "true", of: str = selected) -> dict[str, int]:
            return dict(await connection.fetchrow(f"SELECT {COUNTS} FROM ({of}) AS selected WHERE {where}"))

        asked: dict[str, Any] = {**RANGE, "bots": mode}
        for filters, where in (
            ({}, "true"),
            ({"type": "page_view"}, "type = 'page_view'"),
            ({"country": "DE"}, "country = 'DE'"),
            ({"device_type": "bot"}, "device_type = 'bot'"),
            ({"device_type": "mobile"}, "device_type = 'mobile'"),
            ({"country": "DE", "page_path": "/"}, "country = 'DE' AND page_path = '/'"),
        ):
            found = await ask("totals", **asked, **filters)
            if not found.get("at_least"):
                assert {name: found[name] for name in ("events", "users", "sessions")} == await counts(where), filters
            points = (await ask("timeseries", **asked, **filters, granularity="day"))["points"]
            for day, point in enumerate(points):
                low = START + timedelta(days=day)
                own = f"{where} AND created_at >= '{low}' AND created_at < '{low + timedelta(days=1)}'"
                if not found.get("at_least"):
                    assert {name: point[name] for name in ("events", "users", "sessions")} == await counts(own)
        for dimension in ("event", "country", "device_type"):
            of = "name" if dimension == "event" else dimension
            rows = await connection.fetch(
                f"SELECT {of}::text AS value, count(*) FROM ({selected}) AS selected GROUP BY 1"
            )
            answer = await ask("top", **asked, dimension=dimension)
            found = {row["value"]: row["events"] for row in answer["values"]}
            assert sum(found.values()) + answer.get("other", {"events": 0})["events"] == sum(row[1] for row in rows)
            if "other" not in answer:
                assert found == {row[0]: row[1] for row in rows}
        funnel = (await ask("funnel", **asked, steps="a,b"))["steps"]
        assert funnel[0]["people"] == (await counts("name = 'a' AND person IS NOT NULL"))["users"]
        retention = (await ask("retention", **asked))["cohorts"]
        assert sum(cohort["people"] for cohort in retention) == (await counts())["users"]

    people = f"SELECT * FROM ({BY_DEFINITION}) AS event WHERE {CONDITIONS['exclude']}"
    names = ("events_per_minute", "page_views", "sessions", "active_users", "bounce_rate", "session_length")
    await kpis.run_once(connection, datetime.now(UTC), [kpi for kpi in kpis.load() if kpi.name in names])
    for day in range((END - START).days):
        low = START + timedelta(days=day)
        own = f"{people} AND created_at >= '{low}' AND created_at < '{low + timedelta(days=1)}'"
        expected = await counts(of=own)
        rows = await connection.fetch(
            "SELECT name, value_numeric, sample_count FROM analytics.metrics"
            " WHERE granularity = 'day' AND time_window_start = $1",
            low,
        )
        kept = {row["name"]: (row["value_numeric"], row["sample_count"]) for row in rows}
        assert kept["page_views"][0] == (await counts("type = 'page_view'", own))["events"]
        assert kept["events_per_minute"][1] == expected["events"]
        assert kept["sessions"][0] == expected["sessions"]
        assert kept["active_users"][0] == expected["users"]
        assert kept["bounce_rate"][1] == kept["session_length"][1] <= 24 * expected["sessions"]


async def test_a_filter_on_the_device_bot_includes_bots(ask: Asker, connection: asyncpg.Connection):
    await store(connection, Event(START, device_type="bot"), Event(START, device_type="mobile"))
    assert (await ask("totals", **RANGE))["events"] == 1
    assert (await ask("totals", **RANGE, device_type="bot"))["events"] == 1
    assert (await ask("totals", **RANGE, device_type="bot", bots="exclude"))["events"] == 0
    for mode, events in (("exclude", 1), ("only", 1), ("include", 2)):
        totals = await ask("totals", **RANGE, bots=mode)
        assert (totals["source"], totals["events"]) == ("aggregates", events)
    assert (await ask.refused("metrics", bots="include"))[:2] == (400, "unknown_parameter")


async def test_a_bot_converts_in_no_experiment(running: asyncpg.Connection):
    await shown(running, "b", NINE, session_id="visit")
    await event(running, "buy", TEN, session_id="visit")
    await running.execute("UPDATE analytics.events SET device_type = 'bot'")
    assert (await counted(running))["b"] == (1, 0)
    query = next(kpi.query for kpi in kpis.load() if kpi.name == "experiment_conversions")
    hour = datetime(2026, 1, 2, 10, tzinfo=UTC)
    bound, arguments = kpis._bound(query, hour, hour + timedelta(hours=1), "hour")
    assert await running.fetch(bound, *arguments) == []


AHEAD: list[dict[str, str]] = [
    {"Sec-Purpose": "prefetch"},
    {"Sec-Purpose": "prefetch;prerender"},
    {"sec-purpose": "prefetch;anonymous-client-ip"},
    {"Sec-Purpose": " PREFETCH "},
    {"Purpose": "prefetch"},
    {"purpose": "prerender"},
    {"X-Moz": "prefetch"},
    {"X-Purpose": "preview"},
]
NOT_AHEAD: list[dict[str, str]] = [
    {},
    {"Sec-Purpose": ""},
    {"Purpose": "navigate"},
    {"Sec-Fetch-Purpose": "prefetch"},
    {"Referer": "https://example.com/prefetch"},
]


@pytest.mark.parametrize(("headers", "ahead"), [(one, True) for one in AHEAD] + [(one, False) for one in NOT_AHEAD])
async def test_prefetches_are_stored_and_not_counted(
    ask: Asker, connection: asyncpg.Connection, headers: dict[str, str], ahead: bool
):
    with_agent = {"name": "page_view", "context": {"userAgent": CHROME}}
    for body in ({"name": "page_view"}, [{"name": "page_view"}, with_agent]):
        answer = await ask.client.post(body, **{"User-Agent": CHROME}, **headers)
        assert answer.status == 200, answer.body
    for _ in range(200):
        rows = await connection.fetch("SELECT device_type::text, browser, os FROM analytics.events")
        if len(rows) == 3:
            break
        await asyncio.sleep(0.05)
    assert [tuple(row) for row in rows] == [("bot" if ahead else "desktop", "Chrome", "Linux")] * 3


@pytest.mark.parametrize(("headers", "ahead"), [(one, True) for one in AHEAD] + [(one, False) for one in NOT_AHEAD])
async def test_plain_sql_knows_the_same_headers(connection: asyncpg.Connection, headers: dict[str, str], ahead: bool):
    """As PostgREST passes them: names in lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    titled = {name.title(): value for name, value in headers.items()}
    assert is_made_ahead(titled) == ahead
    await make_partitions(connection, [datetime.now(UTC).date()])
    async with connection.transaction():
        await connection.execute("SELECT set_config('request.headers', $1, true)", json.dumps(lower))
        device = await connection.fetchval(
            "INSERT INTO analytics.events (type, name, user_agent) VALUES ('page_view', 'page_view', $1)"
            " RETURNING device_type::text",
            CHROME,
        )
    assert device == ("bot" if ahead else "desktop")
