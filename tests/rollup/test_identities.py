"""One person from the first page to the payment: tables, endpoints, plain SQL and Python agree on people and visits,
in whatever order events arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.features.stats import counts, journeys
from ingest.features.stats.parsing import parse
from ingest.features.stats.query import Query
from ingest.postgres import connections
from ingest.rollup import identities, identity_repairs, kpis, rebuild, visits
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from ingest.rollup.visits import Visit
from ingest.service import maintenance
from tests.support.aggregates import Event, Ledger, expected, insert, make_partitions, recognise, recognised, stored
from tests.support.amounts import amount
from tests.support.databases import Server
from tests.support.rollups import differences
from tests.support.seed import ask_file, load, rows_of
from tests.support.service import lent_database
from tests.support.statistics import Asker

ROOM = Room(names=1000, values=100)
FUNNEL = Path(__file__).parents[2] / "docs" / "queries" / "funnel.sql"
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
DAYS = [(NOW + timedelta(days=number)).date() for number in range(-3, 2)]
MINUTE = timedelta(minutes=1)
SETTINGS = maintenance.Settings(1, 90, DIMENSION_NAMES, ROOM)
TABLES = "analytics.identities, analytics.people, analytics.visits, analytics.stale_identities"


@pytest.fixture(scope="module")
def module_database(postgres: Server, template: str) -> Any:
    with lent_database(postgres, template) as url:
        yield url


async def flush(connection: asyncpg.Connection, *flushes: Sequence[Event], most_links: int = 100) -> None:
    """Store each group of events as a collector does, and roll it up separately."""
    ledger, rollup = Ledger(connection), Rollup(DIMENSION_NAMES, ROOM, most_links)
    for events in flushes:
        await make_partitions(connection, sorted({event.created_at.astimezone(UTC).date() for event in events}))
        await ledger.flush(events)
        assert await rollup.run_once(connection) is not None


async def links(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT anonymous_id, user_id FROM analytics.identities")
    return {row["anonymous_id"]: row["user_id"] for row in rows}


async def uniques(connection: asyncpg.Connection, granularity: str = "day") -> tuple[int, int]:
    """Users and sessions of all buckets together."""
    rows = await connection.fetch(
        "SELECT event_count, unique_users, unique_sessions, users_sketch, sessions_sketch"
        " FROM analytics.event_aggregations WHERE granularity = $1 AND dimensions = '{}'",
        granularity,
    )
    both = counts.merged(rows, lambda row: None)[None]
    assert both.users is not None and both.sessions is not None
    return both.users, both.sessions


async def waits(connection: asyncpg.Connection) -> list[str]:
    """The hours noted to be rebuilt because links have changed."""
    rows = await connection.fetch(
        "SELECT anonymous_id FROM analytics.stale_identities UNION ALL"
        " SELECT 'an hour' FROM analytics.stale_buckets WHERE granularity = 'hour'"
    )
    return [row[0] for row in rows]


# Whatever the order.

# A few people with some devices, of which some are shared, in a few hours; many times are equal.
EVENTS = st.builds(
    Event,
    created_at=st.one_of(
        st.integers(0, 16).map(lambda part: NOW - timedelta(hours=3) + timedelta(minutes=10 * part)),
        st.integers(0, 40).map(lambda part: NOW - timedelta(hours=30) + timedelta(minutes=31 * part)),
    ),
    name=st.sampled_from(["visit", "signup", "pay"]),
    type=st.sampled_from(["page_view", "user_action", "user_action", "conversion", "system"]),
    user_id=st.sampled_from([None, None, "ada", "bob", "b1"]),
    anonymous_id=st.sampled_from([None, "b1", "b2", "b3", "ada"]),
    session_id=st.sampled_from([None, None, None, "s1", "s2"]),
    page_path=st.sampled_from(["/", "/pricing"]),
    country=st.none(),
    utm_source=st.none(),
    authenticated=st.sampled_from([None, True]),
    device_type=st.none(),
)
WAYS = ("flush", "other flush", "plain")
POPULATIONS = st.lists(
    st.tuples(st.sampled_from(WAYS), st.lists(EVENTS, min_size=1, max_size=7), st.booleans(), st.booleans()),
    min_size=1,
    max_size=6,
)
FUNNELS = (
    "steps=visit,signup,pay",
    "steps=visit,signup&within=40m",
    "steps=type:page_view,signup",
    "steps=page:/pricing,type:conversion&within=1h",
    "step=visit&step=event:visit&step=type:user_action",
)


@pytest.mark.longer
@settings(max_examples=amount(8, long=60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(populations=POPULATIONS)
def test_endpoints_sql_and_python_agree_on_any_population(
    module_database: str, populations: list[tuple[str, list[Event], bool, bool]]
):
    asyncio.run(agree(module_database, populations))


async def agree(url: str, populations: list[tuple[str, list[Event], bool, bool]]) -> None:
    connection = await connections.connect(url, purpose="tests")
    try:
        await connection.execute(
            "TRUNCATE analytics.events, analytics.event_aggregations, analytics.stale_buckets, analytics.flushes,"
            f" analytics.journals, {TABLES}"
        )
        await make_partitions(connection, DAYS)
        ledgers = {"flush": Ledger(connection), "other flush": Ledger(connection)}
        rollup = Rollup(DIMENSION_NAMES, ROOM)
        for way, events, roll_up, repair in populations:
            if way == "plain":
                await insert(connection, events)
            else:
                await ledgers[way].flush(events)
            if roll_up:
                await connection.execute("SELECT process_pending_events()")
                await rollup.run_once(connection)
            if repair:
                await recognise(connection, DIMENSION_NAMES, ROOM)
        await connection.execute("SELECT process_pending_events()")
        while await rollup.run_once(connection):
            pass
        await recognise(connection, DIMENSION_NAMES, ROOM)

        assert await stored(connection) == await expected(connection)
        assert await differences(connection) == []
        events = await in_order(connection)
        known = recognised(events)
        await check_activity(connection, events, known)
        await check_visits(connection)
        for asked in FUNNELS:
            query = asking("funnel", asked)
            answer = await journeys.funnel(connection, query)
            assert [step["people"] for step in answer["steps"]] == funnel(query, events, known), asked
        await check_people(connection)
    finally:
        await connection.close()


async def in_order(connection: asyncpg.Connection) -> list[Event]:
    columns = ", ".join("type::text" if name == "type" else name for name in Event._fields)
    rows = await connection.fetch(
        f"SELECT {columns} FROM analytics.events"
        ' ORDER BY created_at, received_at, batch_id, batch_position, user_id COLLATE "C"'
    )
    return [Event(*row) for row in rows]


async def check_activity(connection: asyncpg.Connection, events: Sequence[Event], known: Any) -> None:
    rows = await connection.fetch(
        "SELECT person, visit FROM analytics.activity"
        ' ORDER BY created_at, received_at, batch_id, batch_position, user_id COLLATE "C"'
    )
    assert [row["person"] for row in rows] == [known[id(event)].person for event in events]
    # Visits by other names, but the same.
    names: dict[object, str | None] = {}
    for row, event in zip(rows, events, strict=True):
        assert row["visit"] == names.setdefault(known[id(event)].visit, row["visit"])
    assert len(set(names.values())) == len(names)


async def check_visits(connection: asyncpg.Connection) -> None:
    """A person's visits are more than the silence apart, and each begins with an event."""
    near = await connection.fetch(
        "SELECT * FROM analytics.visits AS one JOIN analytics.visits AS other USING (person)"
        " WHERE one.started_at < other.started_at AND other.started_at - one.ended_at <= interval '30 minutes'"
    )
    assert near == []
    empty = await connection.fetch(
        "SELECT * FROM analytics.visits WHERE NOT EXISTS (SELECT FROM analytics.activity"
        " WHERE activity.visit = visits.session_id AND created_at = started_at)"
    )
    assert empty == []


async def check_people(connection: asyncpg.Connection) -> None:
    """The counts of links are right, and the users are those in the events."""
    rows = await connection.fetch(
        "SELECT user_id, links, (SELECT count(*) FROM analytics.identities WHERE identities.user_id = people.user_id)"
        " FROM analytics.people"
    )
    assert all(row[1] == row[2] for row in rows)
    users = await connection.fetch("SELECT DISTINCT user_id FROM analytics.events WHERE user_id IS NOT NULL")
    assert {row[0] for row in rows} == {row[0] for row in users}


def asking(endpoint: str, asked: str) -> Query:
    parameters = [tuple(part.split("=", 1)) for part in asked.split("&")]
    within = {"from": (NOW - timedelta(days=2)).isoformat(), "to": (NOW + timedelta(days=1)).isoformat()}
    return parse(endpoint, [*parameters, *within.items()], DIMENSION_NAMES, NOW)  # type: ignore[list-item]


def funnel(query: Query, events: Sequence[Event], known: Any) -> list[int]:
    """How many people did each of the steps, by trying every event as the first."""
    own: dict[str, list[Event]] = {}
    for event in events:
        if (person := known[id(event)].person) is not None:
            own.setdefault(person, []).append(event)
    depths = [max((depth(query, some[place:]) for place in range(len(some))), default=0) for some in own.values()]
    return [sum(one >= step for one in depths) for step in range(1, len(query.steps) + 1)]


def depth(query: Query, events: Sequence[Event]) -> int:
    """How many steps are done if the first event is the first step."""
    done = 0
    for event in events:
        step = query.steps[done]
        value = {"event": event.name, "type": event.type, "page": event.page_path}[step.kind]
        if value != step.value or (step.kind == "page" and event.type != "page_view"):
            if not done:
                return 0
            continue
        if event.created_at - events[0].created_at > query.within:
            return done
        done += 1
        if done == len(query.steps):
            return done
    return done


# What counts whom, case by case.


async def test_a_visitor_and_the_user_they_become_are_one_at_once(connection: asyncpg.Connection):
    """The usual case: pages, a sign-up with both ids, then events of the user. Nothing needs to be rebuilt."""
    signs_up = [Event(NOW + 6 * MINUTE, "signup", user_id="ada", anonymous_id="b1")]
    uses = [Event(NOW + 9 * MINUTE, "use", user_id="ada"), Event(NOW + 9 * MINUTE, "use", anonymous_id="b1")]
    await flush(
        connection, [Event(NOW, anonymous_id="b1")], [Event(NOW + 3 * MINUTE, anonymous_id="b1")], signs_up, uses
    )
    assert await uniques(connection) == (1, 1)
    assert await links(connection) == {"b1": "ada"}
    # It looks for a browser with the same id as the new user. There is none.
    assert await waits(connection) == ["ada"]
    await identity_repairs.run_once(connection)
    assert await waits(connection) == []
    assert await stored(connection) == await expected(connection, ("minute", "hour", "day"))


async def test_a_second_device_is_the_same_person_once_its_hours_are_rebuilt(connection: asyncpg.Connection):
    await flush(
        connection,
        [Event(NOW - timedelta(days=2), anonymous_id="b1"), Event(NOW, user_id="ada", anonymous_id="b1")],
        [Event(NOW - timedelta(days=1), anonymous_id="b2"), Event(NOW, anonymous_id="b2", session_id="s")],
        [Event(NOW + MINUTE, user_id="ada", anonymous_id="b2", session_id="s")],
    )
    assert (await uniques(connection))[0] == 2
    assert sorted(await waits(connection)) == ["ada", "b2"]
    # Until its hours are known they are not reported as wrong.
    assert await differences(connection) == []
    assert await identity_repairs.run_once(connection) == 2
    rows = await connection.fetch(
        "SELECT time_bucket, due_at FROM analytics.stale_buckets WHERE granularity = 'hour'"
    )
    due = {row["time_bucket"]: row["due_at"] for row in rows}
    assert set(due) == {NOW - timedelta(days=1), NOW}
    assert due[NOW] >= NOW + timedelta(hours=1) and all(at > datetime.now(UTC) for at in due.values())
    # It is too soon.
    assert await rebuild.run_once(connection, DIMENSION_NAMES, ROOM, ("hour",)) == 0
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert (await uniques(connection))[0] == 1
    assert await stored(connection) == await expected(connection)


async def test_the_earliest_link_wins_whenever_it_arrives(connection: asyncpg.Connection):
    """Two users of one browser are two people; anonymous events are the first one's, even if that link comes last."""
    bob, ada = (
        Event(NOW + 5 * MINUTE, "login", user_id="bob", anonymous_id="shared"),
        Event(NOW + 3 * MINUTE, "login", user_id="ada", anonymous_id="shared"),
    )
    await flush(connection, [Event(NOW, anonymous_id="shared"), bob], [Event(NOW, "x", anonymous_id="shared")])
    assert await links(connection) == {"shared": "bob"}
    await flush(connection, [ada])
    assert await links(connection) == {"shared": "ada"}
    await recognise(connection, DIMENSION_NAMES, ROOM)
    rows = await connection.fetch("SELECT name, person FROM analytics.activity ORDER BY name, person")
    assert [tuple(row) for row in rows] == [("login", "ada"), ("login", "bob"), ("ping", "ada"), ("x", "ada")]
    assert await stored(connection) == await expected(connection)
    # A later event of the first one does not change who was first.
    await flush(connection, [Event(NOW + 4 * MINUTE, user_id="bob", anonymous_id="shared")])
    assert await links(connection) == {"shared": "ada"}


async def test_of_two_links_at_one_time_the_one_sent_first_counts(connection: asyncpg.Connection):
    logins = [Event(NOW, "login", user_id=user, anonymous_id="b") for user in ("zoe", "ada", "bob")]
    await flush(connection, logins)
    assert await links(connection) == {"b": "zoe"}


async def test_links_are_not_chained(connection: asyncpg.Connection):
    await flush(
        connection,
        [
            Event(NOW, user_id="ada", anonymous_id="b1"),
            Event(NOW, user_id="bob", anonymous_id="b1"),
            Event(NOW, user_id="bob", anonymous_id="b2"),
            Event(NOW, user_id="cem", anonymous_id="ada"),
            *[Event(NOW, "anonymous", anonymous_id=browser) for browser in ("b1", "b2", "ada")],
        ],
    )
    assert await links(connection) == {"b1": "ada", "b2": "bob", "ada": "cem"}
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert await stored(connection) == await expected(connection)


@pytest.mark.parametrize("first", ["a visitor", "a user"])
async def test_one_id_for_a_browser_and_a_user(connection: asyncpg.Connection, first: str):
    """Some clients use the user's id for both; and an id that was a browser's may turn out to be a user's."""
    as_browser, as_user = Event(NOW, anonymous_id="ada"), Event(NOW + MINUTE, user_id="ada", anonymous_id="b1")
    flushes = [[as_browser], [as_user]]
    await flush(connection, *(flushes if first == "a visitor" else flushes[::-1]))
    await flush(connection, [Event(NOW + 2 * MINUTE, user_id="ada")])
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert (await uniques(connection)) == (1, 1)
    assert await stored(connection) == await expected(connection)


async def test_one_user_cannot_collect_everybodys_browsers(connection: asyncpg.Connection):
    everybody = [Event(NOW, anonymous_id=f"b{number}") for number in range(20)]
    claims = [Event(NOW + MINUTE, user_id="greedy", anonymous_id=f"b{number}") for number in range(20)]
    await flush(connection, everybody, claims[:5], claims[5:], most_links=7)
    assert len(await links(connection)) == 7
    assert await connection.fetchval("SELECT links FROM analytics.people WHERE user_id = 'greedy'") == 7
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert (await uniques(connection))[0] == 14
    assert await differences(connection) == []
    # A browser that moves to another user makes room for one more.
    await flush(connection, [Event(NOW, user_id="first", anonymous_id="b0")], most_links=7)
    await flush(connection, [Event(NOW + 2 * MINUTE, user_id="greedy", anonymous_id="b19")], most_links=7)
    known = await links(connection)
    assert (known["b0"], known["b19"], len(known)) == ("first", "greedy", 8)


async def test_a_link_is_verified_by_its_event_or_a_later_one(connection: asyncpg.Connection):
    def login(user: str, browser: str, minute: int, authenticated: bool | None) -> Event:
        return Event(NOW + minute * MINUTE, user_id=user, anonymous_id=browser, authenticated=authenticated)

    await flush(
        connection,
        [login("ada", "b1", 0, True), login("ada", "b2", 0, None), login("ada", "b3", 0, None)],
        [login("ada", "b1", 1, None), login("ada", "b2", 1, True), login("bob", "b3", 1, True)],
    )
    rows = await connection.fetch("SELECT anonymous_id, verified FROM analytics.identities")
    assert dict(rows) == {"b1": True, "b2": True, "b3": False}
    # A user found to be earlier has to be verified separately.
    await flush(connection, [login("bob", "b1", -1, None)])
    assert dict(await connection.fetch("SELECT anonymous_id, verified FROM analytics.identities"))["b1"] is False


async def test_ids_too_long_for_the_tables_stop_nothing(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    long = "x" * 5000
    await flush(
        connection,
        [Event(NOW, user_id=long, anonymous_id="b"), Event(NOW, user_id="u", anonymous_id=long)],
        [Event(NOW, anonymous_id=long), Event(NOW, user_id="ü" * 255, anonymous_id="💥" * 255)],
    )
    assert await links(connection) == {"💥" * 255: "ü" * 255}
    assert (await uniques(connection))[0] == 3


async def test_a_batch_without_timestamps_is_looked_up_once_and_not_by_pair(connection: asyncpg.Connection):
    """Thousands of people at one time: the number of rows read is that of the events, not its square."""
    people = [Event(NOW, user_id=f"u{number}", anonymous_id=f"b{number}") for number in range(3000)]
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush(people)
    query = identities._QUERIES["first_events"]
    users, browsers = [event.user_id for event in people], [event.anonymous_id for event in people]
    explained = await connection.fetchval(
        f"EXPLAIN (ANALYZE, FORMAT json) {query}", browsers, users, [NOW] * len(people), [NOW]
    )
    assert most_rows(json.loads(explained)[0]["Plan"]) <= 2 * len(people)
    assert await Rollup(DIMENSION_NAMES, ROOM).run_once(connection) is not None
    assert len(await links(connection)) == len(people)


def most_rows(plan: dict[str, Any]) -> float:
    """The most rows that a node of a plan returned or filtered out."""
    vain = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
    own = (plan["Actual Rows"] + vain) * plan["Actual Loops"]
    return float(max([own, *map(most_rows, plan.get("Plans", ()))]))


async def test_a_person_who_returns_within_a_week_is_not_written_again(connection: asyncpg.Connection):
    await flush(connection, [Event(NOW, user_id="ada", anonymous_id="b1")])
    where = "SELECT ctid FROM {} WHERE last_seen_at <= now()"
    tables = ("analytics.identities", "analytics.people")
    before = [await connection.fetch(where.format(table)) for table in tables]
    await flush(connection, [Event(NOW + MINUTE, user_id="ada", anonymous_id="b1")])
    assert [await connection.fetch(where.format(table)) for table in tables] == before
    for table in tables:
        await connection.execute(f"UPDATE {table} SET last_seen_at = now() - interval '8 days'")
    await flush(connection, [Event(NOW + 2 * MINUTE, anonymous_id="b1")])
    for table in tables:
        assert await connection.fetchval(f"SELECT last_seen_at > now() - interval '1 day' FROM {table}")


async def test_an_erasure_is_not_undone_by_a_concurrent_rollup(
    connection: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    """The worker has read the person's events when they are deleted: the erasure waits, and deletes its rows too."""
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush(
        [Event(NOW, user_id="ada@example.com", anonymous_id="b1"), Event(NOW, user_id="bob")]
    )
    other = await connections.connect(database_url, purpose="tests")
    reached, go_on = asyncio.Event(), asyncio.Event()
    learn = identities.learn

    async def slowly(*arguments: Any) -> Any:
        reached.set()
        await go_on.wait()
        return await learn(*arguments)

    monkeypatch.setattr(identities, "learn", slowly)
    try:
        rolling_up = asyncio.ensure_future(Rollup(DIMENSION_NAMES, ROOM).run_once(other))
        await reached.wait()
        erasing = asyncio.ensure_future(connection.fetchval("SELECT gdpr_delete_user_data('ada@example.com')"))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype IN ('advisory', 'relation') AND NOT granted"
        await until(database_url, waiting, 1)
        go_on.set()
        assert await rolling_up is not None
        await erasing
    finally:
        await other.close()
    assert await links(connection) == {}
    assert await connection.fetch("SELECT person FROM analytics.visits") == [("bob",)]
    assert await connection.fetch("SELECT user_id FROM analytics.people") == [("bob",)]
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert await stored(connection) == await expected(connection)


async def until(url: str, query: str, number: int) -> None:
    """Wait until a query returns this count."""
    connection = await connections.connect(url, purpose="tests")
    try:
        for _ in range(1500):
            if await connection.fetchval(query) >= number:
                return
            await asyncio.sleep(0.02)
        raise TimeoutError(query)
    finally:
        await connection.close()


# Visits.

AT = datetime(2026, 1, 2, 12, tzinfo=UTC)


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=5), min_size=1, max_size=8),
)
def test_visits_are_the_same_in_whatever_order_events_arrive(minutes: list[list[int]]):
    known: list[Visit] = []
    gone: list[Visit] = []
    for some in minutes:
        change = visits.joined("ada", known, [AT + minute * MINUTE for minute in some])
        assert set(change.absorbed) <= set(change.gone)
        known = change.visits
        gone += change.gone
    every = sorted({AT + minute * MINUTE for some in minutes for minute in some})
    at_once = visits.joined("ada", (), every).visits
    assert [visit[:3] for visit in known] == [visit[:3] for visit in at_once]
    assert all(visits.at(known, moment) is not None for moment in every)
    assert len({visit.session_id for visit in known}) == len(known)
    for one, other in pairwise(known):
        assert other.started_at - one.ended_at > timedelta(minutes=30)


def test_a_silence_of_exactly_thirty_minutes_ends_no_visit():
    moments = [AT, AT + timedelta(minutes=30), AT + timedelta(minutes=60, microseconds=1)]
    found = visits.joined("ada", (), moments).visits
    assert [(visit.started_at, visit.ended_at) for visit in found] == [(AT, moments[1]), (moments[2], moments[2])]
    assert visits.at(found, AT - MINUTE) is None and visits.at(found, moments[1] + MINUTE) is None
    assert visits.hours(found) == {AT, AT + timedelta(hours=1)}


async def test_an_event_that_joins_two_visits(connection: asyncpg.Connection):
    async def sessions() -> int:
        return (await uniques(connection))[1]

    await flush(
        connection, [Event(NOW - timedelta(hours=4), user_id="ada"), Event(NOW - timedelta(hours=3), user_id="ada")]
    )
    assert await sessions() == 2
    await flush(connection, [Event(NOW - timedelta(hours=3, minutes=30), user_id="ada")])
    assert await sessions() == 2
    await recognise(connection, DIMENSION_NAMES, ROOM)
    assert await sessions() == 1
    # A late event at either end has nothing rebuilt.
    await flush(connection, [Event(NOW - timedelta(hours=4, minutes=20), user_id="ada")])
    assert (await sessions(), await waits(connection)) == (1, [])


async def test_visits_of_clients_that_send_no_session(connection: asyncpg.Connection):
    """Messages of Segment's SDKs (pages of a visitor, an identify, tracks): their sessions, bounces and lengths."""

    def did(person: str, *minutes: int, type: str = "page_view") -> list[Event]:
        return [
            Event(NOW - timedelta(hours=3) + minute * MINUTE, type, type, anonymous_id=person) for minute in minutes
        ]

    hour = NOW - timedelta(hours=3)
    signs_up = Event(hour + 12 * MINUTE, "identify", "system", user_id="ada", anonymous_id="reads")
    await flush(
        connection,
        [*did("bounces", 1), *did("reads", 2, 10), signs_up],
        [Event(hour + 20 * MINUTE, "pays", "conversion", user_id="ada"), *did("comes twice", 0, 5, 40, 45)],
        # For example, of a nightly job: no visit.
        [Event(hour, "identify", "system", user_id=f"synchronised {number}") for number in range(9)],
        [Event(hour + MINUTE, "page_view", "page_view", session_id="sent"), *did("bot", 3)],
    )
    assert (await uniques(connection))[1] == 6
    await connection.execute("UPDATE analytics.events SET device_type = 'bot' WHERE anonymous_id = 'bot'")
    await kpis.run_once(connection, hour + timedelta(hours=2), kpis.load())
    row = await connection.fetchrow(
        "SELECT value_numeric, sample_count FROM analytics.metrics"
        " WHERE name = 'bounce_rate' AND granularity = 'hour'"
    )
    # Bounces are "bounces" and "sent"; ada has one visit, "comes twice" two.
    assert (float(row["value_numeric"]), row["sample_count"]) == (0.4, 5)
    row = await connection.fetchrow(
        "SELECT value_numeric FROM analytics.metrics WHERE name = 'session_length' AND granularity = 'hour'"
    )
    assert float(row["value_numeric"]) == (18 + 5 + 5) * 60 / 5
    rows = await connection.fetch(
        "SELECT count(DISTINCT visit) AS visits FROM analytics.activity WHERE person = 'ada' OR type = 'system'"
    )
    assert rows[0]["visits"] == 1


# Bounds.


async def test_hours_noted_for_later_do_not_delay_others(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """Made-up links take up only some seconds of a minute for rebuilding hours; those of an erasure come first."""
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush([Event(NOW, user_id="ada")])
    await Rollup(DIMENSION_NAMES, ROOM).run_once(connection)
    hours = [NOW - timedelta(hours=number) for number in range(40)]
    await connection.executemany(
        "INSERT INTO analytics.stale_buckets (granularity, time_bucket, noted_at, due_at)"
        " VALUES ('hour', $1, now() - interval '2 hours', now() - interval '1 hour')",
        [[hour] for hour in hours[1:]],
    )
    await connection.execute(
        "INSERT INTO analytics.stale_buckets (granularity, time_bucket) VALUES ('hour', $1)", NOW
    )
    task = next(task for task in maintenance.TASKS if task.name == "stale-buckets")
    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "_DELAYED_SECONDS", 0)
        await task.run(connection, NOW, SETTINGS)
    stale = "SELECT time_bucket FROM analytics.stale_buckets WHERE granularity = 'hour'"
    assert {row[0] for row in await connection.fetch(stale)} == set(hours[1:])
    await task.run(connection, NOW, SETTINGS)
    assert await connection.fetch(stale) == []
    assert await stored(connection) == await expected(connection, ("minute", "hour", "day"))


async def test_browsers_are_looked_up_in_groups_of_limited_size(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await connection.execute(
        "INSERT INTO analytics.stale_identities (anonymous_id) SELECT 'b' || n FROM generate_series(1, 25) AS n"
    )
    assert [await identity_repairs.run_once(connection, most=10) for _ in range(4)] == [10, 10, 5, 0]


# Over HTTP, and in plain SQL.


async def test_forty_people_whose_steps_have_one_time(start: Any, database_url: str):
    """They count in the order of sending, whatever their ids."""
    ask = Asker(await start(admin_keys=["another", "a secret of the analysts"]))
    for number in range(40):
        batch = [{"name": name, "user_id": f"u{number}"} for name in ("na", "nb")]
        assert (await ask.client.post(batch)).status == 200
    await until(database_url, "SELECT count(*) FROM analytics.events", 80)
    assert [step["people"] for step in (await ask("funnel", steps="na,nb"))["steps"]] == [40, 40]
    assert [step["people"] for step in (await ask("funnel", steps="nb,na"))["steps"]] == [40, 0]


async def test_steps_by_type_and_page_and_names_with_commas(start: Any, connection: asyncpg.Connection):
    ask = Asker(await start(admin_keys=["another", "a secret of the analysts"]))
    names = ["a,b", 'a"b,c"', "page:/x", "type:page_view", "plain"]
    await flush(
        connection,
        [
            Event(NOW, "Pricing", "page_view", user_id="ada", page_path="/pricing"),
            Event(NOW, "viewed", "user_action", user_id="bob", page_path="/pricing"),
            *[Event(NOW + MINUTE, name, user_id="ada") for name in names],
        ],
    )
    for steps, numbers in (
        ('type:page_view,"a,b"', [1, 1]),
        ("page:/pricing,plain", [1, 1]),
        ("page:/pricing,page:/", [1, 0]),
        ('"a,b","a""b,c""",event:page:/x,event:type:page_view,event:plain', [1, 1, 1, 1, 1]),
        ('plain,"plain"', [1, 0]),
        ("type:user_action,type:user_action", [2, 1]),
    ):
        answer = await ask("funnel", {"steps": steps})
        assert [step["people"] for step in answer["steps"]] == numbers, steps
    answer = await ask("funnel", [("step", "type:page_view"), ("step", "a,b"), ("step", 'a"b,c"')])
    assert [(step["step"], step["people"]) for step in answer["steps"]] == [
        ("type:page_view", 1),
        ("a,b", 1),
        ('a"b,c"', 1),
    ]
    bad = ["steps=a,type:click", "steps=a,page:", "steps=a,event:", 'steps=a,"b', 'steps="a"b,c', "step=a"]
    for query in (*bad, "steps=a,b&step=c", "steps=a," + "x" * 101, "steps=a,page:/" + "x" * 255):
        status, code, message = await ask.refused("funnel", query)
        assert (status, code) == (400, "bad_parameter"), query
        assert (
            "page:" in message
            and "page_view, user_action, conversion, system" in message
            and "step=a&step=b,c" in message
        )


SEEDED = """
with visitors as (
  select person, bool_or(name = 'page_view') as page, bool_or(name = 'signup_completed') as signup,
         bool_or(name = 'lead_submitted') as lead
  from analytics.activity where created_at >= $1 and created_at < $2 {without_bots}
  group by person
)
select count(*) filter (where page), count(*) filter (where page and signup),
       count(*) filter (where page and signup and lead)
from visitors
"""


async def test_the_seed_data_has_one_funnel(start: Any, connection: asyncpg.Connection, database_url: str):
    """Over HTTP, by the view, and by the query in docs/queries, exactly."""
    ask = Asker(await start(admin_keys=["another", "a secret of the analysts"]))
    await load(connection, anchor=datetime.now(UTC))
    rollup = Rollup(DIMENSION_NAMES, ROOM)
    while await connection.fetchval("SELECT process_pending_events()"):
        pass
    while await rollup.run_once(connection):
        pass
    await recognise(connection, DIMENSION_NAMES, ROOM)
    since, until = datetime.now(UTC) - timedelta(days=31), datetime.now(UTC) + timedelta(minutes=1)
    asked = {
        "steps": "page_view,signup_completed,lead_submitted",
        "within": "31d",
        "from": since.isoformat(),
        "to": until.isoformat(),
    }

    people = [step["people"] for step in (await ask("funnel", asked))["steps"]]
    query = SEEDED.replace("{without_bots}", "and device_type is distinct from 'bot'")
    assert people == list(await connection.fetchrow(query, since, until))
    assert people[0] >= 1000 > people[1] > people[2] > 50

    kinds = ("desktop", "mobile", "tablet", "other")
    by_kind = [
        [step["people"] for step in (await ask("funnel", asked | {"device_type": kind}))["steps"]] for kind in kinds
    ]
    without_bots = [sum(numbers) for numbers in zip(*by_kind, strict=True)]
    assert without_bots == people
    stages = {row[0]: int(row[1]) for row in rows_of(ask_file(FUNNEL, database_url))}
    assert [stages[stage] for stage in ("visit", "signup", "lead")] == without_bots

    # And as many people as there are, by either way.
    totals = await ask("totals", {"from": since.isoformat(), "to": until.isoformat()})
    exact = await connection.fetchval(
        "SELECT count(DISTINCT person) FROM analytics.activity"
        " WHERE created_at >= $1 AND device_type IS DISTINCT FROM 'bot'",
        since,
    )
    assert (totals["source"], totals["users"]) == ("events", exact)
    users, _ = await uniques(connection)
    assert abs(users - exact) <= 0.05 * exact
    assert await stored_equals_events(connection)


async def stored_equals_events(connection: asyncpg.Connection) -> bool:
    """Where a bucket has few people, exactly."""
    counted, events = await stored(connection), await expected(connection, ("hour",))
    few = {key: row for key, row in events.items() if max(row) <= 200}
    return len(few) > 1000 and all(counted[key] == row for key, row in few.items())
