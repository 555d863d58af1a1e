"""Aggregates equal one GROUP BY over the events, in whatever order these arrive and whatever crashes meanwhile."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup import rebuild, sketches
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, expected, insert, make_partitions, recognise, stored
from tests.support.amounts import amount
from tests.support.rollups import NOW, connected, differences

ROOM = Room(names=1000, values=100)
DAYS = [(NOW + timedelta(days=number)).date() for number in range(-4, 2)]


def rollup(**changed: Any) -> Rollup:
    return Rollup(DIMENSION_NAMES, changed.pop("room", ROOM), **changed)


async def roll_up(connection: asyncpg.Connection, room: Room = ROOM) -> int:
    """Roll up everything that is waiting, including weeks and months. Returns the number of events."""
    one = rollup(room=room)
    total = 0
    for _ in range(100):
        cycle = await one.run_once(connection)
        if cycle is None:
            break
        total += cycle.events
    await recognise(connection, DIMENSION_NAMES, room)
    return total


# Whatever the order.

TIMES = st.one_of(
    st.integers(0, 3 * 86_400 - 1).map(lambda second: NOW - timedelta(days=2) + timedelta(seconds=second)),
    # Some of them close together: visits and who came first are about minutes.
    st.integers(0, 12).map(lambda part: NOW + timedelta(minutes=15 * part)),
)
EVENTS = st.builds(
    Event,
    created_at=st.one_of(TIMES, st.sampled_from([NOW, NOW - timedelta(microseconds=1), NOW - timedelta(days=1)])),
    name=st.sampled_from(["ping", "signup", "(other)", 'Ünïcode \\ "quoted"']),
    type=st.sampled_from(["page_view", "user_action", "conversion", "system"]),
    user_id=st.sampled_from([None, "ada", "bob"]),
    anonymous_id=st.sampled_from([None, "a1", "a2", "ada"]),
    session_id=st.sampled_from([None, "s1", "s2", "s3"]),
    country=st.sampled_from([None, "DE", "BR"]),
    page_path=st.sampled_from([None, "/", "/a?b", "/\"'\\"]),
    utm_source=st.sampled_from([None, "news", "(none)", "(other)", ""]),
    device_type=st.sampled_from([None, "mobile", "bot"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("flush"), st.integers(0, 1), st.lists(EVENTS, min_size=1, max_size=6)),
        st.tuples(st.just("plain"), st.just(0), st.lists(EVENTS, min_size=1, max_size=3)),
        st.tuples(st.just("adopt"), st.just(0), st.just([])),
        st.tuples(st.just("roll up"), st.integers(0, 1), st.just([])),
        st.tuples(st.just("die"), st.integers(0, 5), st.just([])),
        st.tuples(st.just("both at once"), st.just(0), st.just([])),
        st.tuples(st.just("rebuild"), st.integers(0, 71), st.just([])),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.longer
@settings(
    max_examples=amount(10, long=50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_any_interleaving(module_database: str, steps: list[tuple[str, int, list[Event]]]):
    asyncio.run(interleave(module_database, steps))


class Died(Exception):
    pass


async def interleave(url: str, steps: list[tuple[str, int, list[Event]]]) -> None:
    async with connected(url) as first, connected(url) as second:
        await first.execute(
            "TRUNCATE analytics.events, analytics.event_aggregations, analytics.stale_buckets, analytics.flushes,"
            " analytics.journals, analytics.identities, analytics.people, analytics.visits,"
            " analytics.stale_identities"
        )
        await make_partitions(first, DAYS)
        ledgers = [Ledger(first), Ledger(second)]
        workers = [rollup(), rollup()]
        for step, number, events in steps:
            match step:
                case "flush":
                    await ledgers[number].flush(events, tells_days=len(events) % 3 != 0)
                case "plain":
                    await insert(first, events)
                case "adopt":
                    await first.execute("SELECT process_pending_events()")
                case "roll up":
                    await workers[number].run_once(first if number else second)
                case "die":
                    await die_while_rolling_up(url, number)
                case "both at once":
                    await asyncio.gather(workers[0].run_once(first), workers[1].run_once(second))
                case "rebuild":
                    hour = NOW - timedelta(days=2) + timedelta(hours=number)
                    await rebuild.note(first, hour, hour + timedelta(hours=3))
                    await rebuild.run_once(second, DIMENSION_NAMES, ROOM)
        await first.execute("SELECT process_pending_events()")
        await roll_up(first)
        assert await stored(first) == await expected(first)
        assert await differences(first) == []


async def die_while_rolling_up(url: str, statements: int) -> None:
    """A worker whose connection is cut after this many statements of its transaction."""
    async with connected(url) as connection:
        done = 0

        def cut(query: Any) -> None:
            nonlocal done
            done += 1
            if done > statements + 3:
                connection.terminate()

        with connection.query_logger(cut):
            try:
                await rollup().run_once(connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                pass


# Borders.


async def test_borders_to_the_microsecond(connection: asyncpg.Connection):
    days = [datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 12, 31, tzinfo=UTC)]
    await make_partitions(connection, [(day + timedelta(days=n)).date() for day in days for n in (-1, 0, 1)])
    border = timedelta(microseconds=1)
    events = [
        Event(day + side, user_id=f"u{number}") for number, day in enumerate(days) for side in (-border, 0 * border)
    ]
    await Ledger(connection).flush(events)
    assert await roll_up(connection) == 6

    without_minutes = ("hour", "day", "week", "month")
    # Older than minutes are kept.
    assert await stored(connection) == await expected(connection, without_minutes)
    by_month = {key[1]: row[0] for key, row in (await stored(connection)).items() if key[0] == "month"}
    assert by_month == {
        datetime(2024, 2, 1, tzinfo=UTC): 3,
        datetime(2024, 3, 1, tzinfo=UTC): 1,
        datetime(2024, 12, 1, tzinfo=UTC): 2,
    }


# Uniques.


async def test_many_users_are_estimated_within_the_bound_and_alike_in_any_order(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    ledger = Ledger(connection)
    people = [
        Event(NOW - timedelta(seconds=n % 50), user_id=f"user-{n}", session_id=f"s{n // 2}") for n in range(6000)
    ]
    for start in range(0, 6000, 750):
        await ledger.flush(people[start : start + 1000])
        await roll_up(connection)
    incremental = await stored(connection)
    for key, (events, users, sessions) in incremental.items():
        exact = (await expected(connection))[key]
        assert events == exact[0]
        assert abs(users - exact[1]) <= 5 * sketches.RELATIVE_STANDARD_ERROR * exact[1]
        assert abs(sessions - exact[2]) <= 5 * sketches.RELATIVE_STANDARD_ERROR * exact[2]

    await rebuild.note(connection, NOW - timedelta(hours=2), NOW + timedelta(hours=1))
    await rebuild.run_once(connection, DIMENSION_NAMES, ROOM)
    assert await stored(connection) == incremental


@pytest.mark.parametrize("people", [310, 700, 1000, 2300])
async def test_an_estimate_is_never_above_the_events(connection: asyncpg.Connection, people: int):
    """Events of distinct users in distinct sessions, then anonymous ones without a session."""
    await make_partitions(connection, DAYS)
    ledger = Ledger(connection)
    for seed in range(3):
        mine = [Event(NOW, f"name {seed}", user_id=f"{seed}-{n}", session_id=f"{seed}/{n}") for n in range(people)]
        nobody = [Event(NOW, f"name {seed}") for _ in range(40)]
        for events in (mine, nobody):
            await ledger.flush(events)
            await roll_up(connection)
            rows = await stored(connection)
            assert all(users <= count and sessions <= count for count, users, sessions in rows.values())
    incremental = await stored(connection)
    await rebuild.note(connection, NOW - timedelta(hours=2), NOW + timedelta(hours=1))
    await rebuild.run_once(connection, DIMENSION_NAMES, ROOM)
    assert await stored(connection) == incremental


# Room.


async def test_names_and_values_without_room_are_counted_as_other(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    ledger = Ledger(connection)
    room = Room(names=2, values=2)
    await ledger.flush([Event(NOW, country=country, user_id=country) for country in ("DE", "DE", "BR", "FR", "GB")])
    await roll_up(connection, room)
    await ledger.flush([Event(NOW, name, country="DE") for name in ("a", "b", "b", "c")])
    await roll_up(connection, room)
    await ledger.flush([Event(NOW, country=country, user_id=country) for country in ("FR", "BR")])
    await roll_up(connection, room)

    rows = await stored(connection)
    for granularity in ("minute", "hour", "day", "week", "month"):
        of = {(key[3], key[4]): row[:2] for key, row in rows.items() if key[0] == granularity}
        assert of == {
            ("ping", "{}"): (7, 4),
            ("ping", '{"country": "DE"}'): (2, 1),
            ("ping", '{"country": "BR"}'): (2, 1),
            ("ping", '{"country": {"other": true}}'): (3, 2),
            ("b", "{}"): (2, 0),
            ("b", '{"country": "DE"}'): (2, 0),
            ("", "{}"): (2, 0),
            ("", '{"country": "DE"}'): (2, 0),
        }
    assert await differences(connection) == []

    # After a rebuild there is no more room than before.
    await rebuild.note(connection, NOW, NOW + timedelta(hours=1))
    await rebuild.run_once(connection, DIMENSION_NAMES, room)
    assert await stored(connection) == rows


async def test_a_flood_of_names_makes_no_more_rows_than_there_is_room_for(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush([Event(NOW, f"name-{n}", page_path=f"/{n}") for n in range(500)])
    await roll_up(connection, Room(names=20, values=5))
    for granularity in ("minute", "hour", "day", "week", "month"):
        rows = {key: row for key, row in (await stored(connection)).items() if key[0] == granularity}
        totals = {key[3]: row[0] for key, row in rows.items() if key[4] == "{}"}
        assert len(totals) == 21
        assert totals[""] == 480
        pages = [key for key in rows if key[3] == "" and "page_path" in key[4]]
        assert len(pages) == 6
    assert await differences(connection) == []


async def test_a_long_value_is_cut(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush([Event(NOW, page_path="/" + "ä" * 4000), Event(NOW, page_path="/" + "ä" * 3000)])
    await roll_up(connection)
    pages = {key[4]: row[0] for key, row in (await stored(connection)).items() if key[0] == "day" and key[4] != "{}"}
    assert pages == {f'{{"page_path": "/{"ä" * 254}"}}': 2}


# Reading.


async def test_events_are_found_by_the_ends_of_partitions_and_without_them(connection: asyncpg.Connection):
    """By one worker over many flushes, small and large, and by a new one that knows no ends."""
    await make_partitions(connection, DAYS)
    ledger, one = Ledger(connection), rollup()
    for _ in range(12):
        events = [
            Event(NOW - timedelta(hours=n % 40), user_id=f"u{n % 100}", page_path="x" * 200) for n in range(400)
        ]
        await ledger.flush(events)
        cycle = await one.run_once(connection)
        assert cycle is not None
        assert (cycle.events, cycle.flushes) == (400, 1)
    assert await one.run_once(connection) is None
    await ledger.flush([Event(NOW)])
    assert await roll_up(connection) == 1
    assert await stored(connection) == await expected(connection)


async def test_pages_that_are_filled_again(connection: asyncpg.Connection):
    """Rows in space freed by VACUUM are before the end of the partition; the ledger shows that some are missing."""
    await make_partitions(connection, DAYS)
    ledger, one = Ledger(connection), rollup()
    await ledger.flush([Event(NOW, user_id=f"u{n}", page_path="x" * 250) for n in range(12_000)])
    await one.run_once(connection)
    await connection.execute("DELETE FROM analytics.events WHERE substr(user_id, 2)::int < 3000")
    await connection.execute("VACUUM analytics.events")
    for _ in range(3):
        await one.run_once(connection)
        await ledger.flush([Event(NOW, "again", user_id=f"v{n}", page_path="x" * 250) for n in range(500)])
        cycle = await one.run_once(connection)
        assert cycle is not None
        assert cycle.events == 500
    first = await connection.fetchval("SELECT min((ctid::text::point)[0]) FROM analytics.events WHERE name = 'again'")
    assert first == 0


async def test_erased_events_leave_the_aggregates(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush(
        [
            Event(NOW, user_id="ada@example.com", country="DE"),
            Event(NOW - timedelta(days=1), user_id="ada@example.com"),
            Event(NOW, user_id="bob", country="DE"),
        ]
    )
    await roll_up(connection)
    await connection.execute("SELECT gdpr_delete_user_data('ada@example.com')")
    assert await rebuild.run_once(connection, DIMENSION_NAMES, ROOM) > 2
    rows = await stored(connection)
    assert rows == await expected(connection)
    assert {row[1] for row in rows.values()} == {1}


async def test_a_day_whose_events_are_gone_keeps_its_aggregates(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush([Event(NOW - timedelta(days=3), user_id="ada")])
    await roll_up(connection)
    before = await stored(connection)
    await rebuild.note(connection, NOW - timedelta(days=4), NOW)
    await connection.execute(f"DROP TABLE analytics.events_{NOW - timedelta(days=3):%Y%m%d}")
    await rebuild.run_once(connection, DIMENSION_NAMES, ROOM)
    assert await stored(connection) == before


async def test_verify_finds_what_is_wrong(connection: asyncpg.Connection):
    await make_partitions(connection, DAYS)
    await Ledger(connection).flush([Event(NOW, user_id="ada", country="DE"), Event(NOW, "signup")])
    await roll_up(connection)
    await connection.execute(
        """
        UPDATE analytics.event_aggregations SET event_count = 7 WHERE granularity = 'hour' AND event_name = 'signup';
        DELETE FROM analytics.event_aggregations WHERE granularity = 'minute' AND dimensions = '{"country": "DE"}';
        UPDATE analytics.event_aggregations SET unique_users = 2
        WHERE granularity = 'day' AND event_name = 'ping' AND dimensions = '{}'
        """
    )
    found = {(difference.key[0], *difference.key[3:]): difference[1:] for difference in await differences(connection)}
    assert found == {
        ("hour", "signup", "", ""): ((7, 0, 0), (1, 0, 0)),
        ("minute", "ping", "country", "DE"): (None, (1, 1, 1)),
        ("day", "ping", "", ""): ((1, 2, 1), (1, 1, 1)),
        ("day", "signup", "", ""): ((1, 0, 0), (7, 0, 0)),
    }
