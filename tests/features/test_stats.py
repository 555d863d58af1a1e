"""Statistics over HTTP: from a real worker, with buckets that the real rollup made from real events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.api import api_keys
from ingest.base.config import DIMENSION_NAMES
from ingest.features.stats import cursors, parameters, times
from ingest.features.stats.parsing import parse
from ingest.features.stats.reading import StatsTransactions
from ingest.postgres.pool import Pool
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, make_partitions, recognised
from tests.support.clients import basic
from tests.support.collector import Start
from tests.support.databases import Server, execute
from tests.support.statistics import BEARER, KEY, ROOM, Asker, all_pages, store

FEBRUARY = {"from_": "2024-02-01", "to": "2024-03-01"}
ENDPOINTS = {
    "timeseries": "",
    "totals": "",
    "top": "dimension=country",
    "funnel": "steps=a,b",
    "retention": "",
    "metrics": "",
}


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def series(found: Any) -> list[tuple[str, int]]:
    return [(point["bucket"], point["events"]) for point in found["points"]]


async def test_events_are_counted_by_day(ask: Asker, connection: asyncpg.Connection):
    await store(
        connection,
        Event(at("2025-03-01T00:00:00"), user_id="ada", session_id="s1"),
        Event(at("2025-03-01T23:59:59.999999"), user_id="ada", session_id="s2"),
        Event(at("2025-03-03T00:00:00"), "other", user_id="bob"),
    )
    found = await ask("timeseries", from_="2025-03-01", to="2025-03-04", granularity="day")
    assert found["points"] == [
        {"bucket": "2025-03-01T00:00:00+00:00", "events": 2, "users": 1, "sessions": 2},
        {"bucket": "2025-03-02T00:00:00+00:00", "events": 0, "users": 0, "sessions": 0},
        {"bucket": "2025-03-03T00:00:00+00:00", "events": 1, "users": 1, "sessions": 1},
    ]
    assert found["source"] == "aggregates"
    assert "next" not in found


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_every_endpoint_answers_about_nothing(ask: Asker, endpoint: str):
    found = await ask(endpoint, ENDPOINTS[endpoint])
    assert found["source"] in ("aggregates", "events", "metrics")
    assert datetime.fromisoformat(found["as_of"]).tzinfo is not None


@pytest.mark.parametrize(
    ("asked", "events"),
    [
        ({"page_path": "p" * 254, "country": "DE"}, 1),
        ({"page_path": "p" * 255, "country": "DE"}, 3),
        ({"page_path": "p" * 255, "country": "DE "}, 0),
        ({"page_path": "p" * 253, "country": "DE"}, 0),
    ],
)
async def test_two_filters_compare_what_buckets_have(
    ask: Asker, connection: asyncpg.Connection, asked: dict[str, str], events: int
):
    """Values are cut to 255 characters, and nothing else is done to them."""
    paths = ["p" * length for length in (254, 255, 256, 300)]
    moment = at("2025-03-01T12:00:00")
    await store(connection, *[Event(moment, page_path=path, country="DE") for path in paths])
    found = await ask("totals", **asked, from_="2025-03-01", to="2025-03-04")
    assert (found["source"], found["events"]) == ("events", events)


# Time.

ZONES = ("UTC", "Europe/Berlin", "Europe/London", "America/Sao_Paulo", "Asia/Kolkata", "Asia/Kathmandu",
         "Australia/Lord_Howe", "Pacific/Apia", "America/Havana")  # fmt: skip
MOMENTS = st.datetimes(datetime(2009, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2024-03-31", 23),
        ("Europe/Berlin", "2024-10-27", 25),
        ("America/Sao_Paulo", "2018-11-04", 23),  # There is no midnight.
        ("America/Sao_Paulo", "2018-02-17", 25),  # Twice from 23 to 24 o'clock.
        ("Asia/Kolkata", "2024-03-31", 24),
        ("America/Havana", "2012-11-04", 25),  # Twice from 0 to 1 o'clock.
    ],
)
def test_a_day_has_as_many_hours_as_it_has(zone: str, day: str, hours: int):
    found = parse("timeseries", [("from", day), ("to", next_day(day)), ("timezone", zone)], (), at(day))
    assert found.end - found.start == timedelta(hours=hours)
    assert times.after(found.start, "day", found.zone) == found.end
    assert times.begin(found.end - timedelta(microseconds=1), "day", found.zone) == found.start
    assert len(list(times.starts(found.start, found.end, "hour", found.zone))) == hours


def next_day(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


@settings(deadline=None)
@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]))
def test_buckets_follow_each_other_and_hold_their_times(moment: datetime, name: str, granularity: str):
    zone = times.zone_of(name)
    start = times.begin(moment, granularity, zone)
    end = times.after(start, granularity, zone)
    assert start <= moment < end
    assert times.begin(end - timedelta(microseconds=1), granularity, zone) == start
    assert times.begin(end, granularity, zone) == end
    local = start.astimezone(zone)
    if granularity == "week":
        # In a zone that skipped a Monday the week would begin later; Samoa skipped another day.
        assert local.weekday() == 0
    elif granularity == "month":
        assert local.day == 1


@settings(deadline=None)
@given(MOMENTS, MOMENTS, st.sets(st.integers(0, 300)), st.sampled_from(["minute", "hour", "day"]))
def test_parts_cover_exactly_the_range(one: datetime, other: datetime, behind: set[int], granularity: str):
    first, last = sorted((times.begin(one, granularity), times.begin(other, granularity)))
    stale = {("month", times.begin(first + timedelta(days=30 * days), "month")) for days in behind}
    stale |= {("week", times.begin(first + timedelta(days=7 * days), "week")) for days in behind}
    parts = times.cover(first, last, stale)
    assert parts is not None
    assert [part.start for part in parts] == [first, *[part.end for part in parts]][: len(parts)]
    assert (parts[-1].end if parts else first) == last
    assert not stale & {(part.granularity, part.start) for part in parts}
    for part in parts:
        assert times.begin(part.start, part.granularity) == part.start < part.end
        assert times.begin(part.end, part.granularity) == part.end
    # Never finer than necessary.
    assert {part.granularity for part in parts} <= set(times.GRANULARITIES[times.GRANULARITIES.index(granularity) :])


def test_ranges_between_minutes_are_not_covered():
    start = at("2024-01-01T00:00:01")
    assert times.cover(start, at("2024-01-02"), ()) is None
    assert times.cover(at("2023-12-01"), start, ()) is None


def test_defaults_are_seven_days_with_today():
    now = at("2024-03-01T10:20:30")
    query = parse("timeseries", [("timezone", "Asia/Kolkata")], (), now)
    assert (query.start, query.end) == (at("2024-02-24", "Asia/Kolkata"), at("2024-03-01T10:21:00"))
    assert (query.granularity, query.limit) == ("day", 1000)
    lengths = {"2024-03-01T08:00": "minute", "2024-02-28": "hour", "2024-01-01": "day", "2023-01-01": "week",
               "2020-01-01": "month"}  # fmt: skip
    assert {text: parse("timeseries", [("from", text)], (), now).granularity for text in lengths} == lengths


def test_times_are_read_as_people_write_them():
    now = at("2024-03-01T10:20:30")

    def start_of(text: str) -> datetime:
        return parse("totals", [("from", text), ("timezone", "Europe/Berlin")], (), now).start

    assert start_of("2024-02-29") == at("2024-02-28T23:00:00")
    assert start_of("2024-02-29T12:00") == start_of("2024-02-29 12:00") == at("2024-02-29T11:00:00")
    assert start_of("2024-02-29T12:00:00Z") == at("2024-02-29T12:00:00")
    # The + of an offset that was not encoded.
    assert start_of("2024-02-29T12:00:00 02:00") == start_of("2024-02-29T12:00:00+02:00") == at("2024-02-29T10:00:00")


def some_events(start: datetime, end: datetime, count: int) -> list[Event]:
    """The same in each run: some at the borders to the microsecond, the rest anywhere."""
    random = Random(5)
    borders = [start, start - timedelta(microseconds=1), end - timedelta(microseconds=1), end]
    anywhere = [start + random.random() * (end - start) for _ in range(count - len(borders))]
    return [
        Event(
            moment,
            random.choice(["a", "b"]),
            random.choice(["page_view", "conversion"]),
            user_id=random.choice([None, "ada", "bob", "cem"]),
            anonymous_id=random.choice([None, "x", "ada"]),
            session_id=random.choice([None, "s1", "s2", "s3"]),
            country=random.choice([None, "DE", "DE", "BR"]),
            page_path=random.choice(["/", "/pricing"]),
        )
        for moment in borders + anywhere
    ]


def counted(some: Iterable[Event], of: Sequence[Event]) -> dict[str, int]:
    """The counts of these events."""
    known = recognised(of)
    did = [known[id(event)] for event in some]
    return {
        "events": len(did),
        "users": len({one.person for one in did} - {None}),
        "sessions": len({one.visit for one in did} - {None}),
    }


@pytest.mark.parametrize(
    ("zone", "first", "last", "granularity", "source"),
    [
        ("UTC", "2024-02-26", "2024-03-04", "day", "aggregates"),
        ("UTC", "2024-02-28", "2024-03-02", "hour", "aggregates"),
        ("Europe/Berlin", "2024-03-30", "2024-04-02", "day", "aggregates"),
        ("Europe/Berlin", "2024-10-26", "2024-10-29", "hour", "aggregates"),
        ("Europe/London", "2024-02-26", "2024-04-08", "week", "aggregates"),
        ("America/Sao_Paulo", "2018-11-03", "2018-11-06", "day", "aggregates"),
        ("America/Sao_Paulo", "2018-02-16", "2018-02-20", "hour", "aggregates"),
        ("America/Sao_Paulo", "2018-02-01", "2018-04-01", "month", "aggregates"),
        ("Asia/Kolkata", "2024-02-28", "2024-03-02", "day", "events"),
        ("Asia/Kolkata", "2024-02-28", "2024-03-01", "hour", "events"),
        ("Australia/Lord_Howe", "2024-04-06", "2024-04-09", "day", "events"),
        ("UTC", "2024-02-29T10:00", "2024-02-29T11:00", "minute", "events"),
        ("UTC", "2024-02-01", "2024-04-01", "month", "aggregates"),
        ("UTC", "2023-12-25", "2024-01-15", "week", "aggregates"),
    ],
)
async def test_each_bucket_holds_its_own_events(
    ask: Asker, connection: asyncpg.Connection, zone: str, first: str, last: str, granularity: str, source: str
):
    events = some_events(at(first, zone), at(last, zone), 120)
    await store(connection, *events)
    found = await ask("timeseries", from_=first, to=last, granularity=granularity, timezone=zone)
    assert found["source"] == source
    starts = [datetime.fromisoformat(point["bucket"]) for point in found["points"]]
    assert starts[0] == at(first, zone)
    ends = [*starts[1:], at(last, zone)]
    assert all(start < end for start, end in pairwise(starts))
    for point, start, end in zip(found["points"], starts, ends, strict=True):
        expected = counted([event for event in events if start <= event.created_at < end], events)
        assert point == {"bucket": point["bucket"], **expected}
        assert start.astimezone(ZoneInfo(zone)).isoformat() == point["bucket"]
    # All except the two just outside the borders.
    assert sum(point["events"] for point in found["points"]) == len(events) - 2


async def test_buckets_at_the_ends_are_whole(ask: Asker, connection: asyncpg.Connection):
    await store(connection, Event(at("2024-02-01")), Event(at("2024-02-29T23:59:59")), Event(at("2024-03-01")))
    found = await ask("timeseries", from_="2024-02-10", to="2024-02-20", granularity="month")
    assert series(found) == [("2024-02-01T00:00:00+00:00", 2)]
    assert (found["from"], found["to"]) == ("2024-02-01T00:00:00+00:00", "2024-03-01T00:00:00+00:00")


async def test_weeks_and_months_that_are_behind_are_read_from_days(ask: Asker, connection: asyncpg.Connection):
    asked = {"from_": "2024-02-01", "to": "2024-03-01"}
    await store(connection, Event(at("2024-02-15"), user_id="ada"))
    await Ledger(connection).flush([Event(at("2024-02-15T23:00:00"), user_id="bob")])
    await Rollup(DIMENSION_NAMES, ROOM).run_once(connection)
    month = await connection.fetchval(
        "SELECT event_count FROM analytics.event_aggregations WHERE granularity = 'month'"
    )
    assert month == 1
    for granularity in ("week", "month"):
        found = await ask("timeseries", **asked, granularity=granularity)
        assert (found["source"], sum(point["events"] for point in found["points"])) == ("aggregates", 2)
        assert max(point["users"] for point in found["points"]) == 2
    assert (await ask("totals", **asked))["events"] == 2


async def test_the_bucket_that_is_not_over_is_marked(ask: Asker, connection: asyncpg.Connection):
    now = datetime.now(UTC)
    await store(connection, Event(now, user_id="ada"))
    found = await ask("timeseries", to=(now + timedelta(hours=1)).isoformat(), granularity="month")
    *over, last = [point.get("partial", False) for point in found["points"]]
    assert last and not any(over[:-1])
    assert sum(point["events"] for point in found["points"]) == 1
    assert not any("partial" in point for point in (await ask("timeseries", **FEBRUARY))["points"])


async def test_users_of_several_names_and_days_are_counted_once(ask: Asker, connection: asyncpg.Connection):
    people = [f"user {number}" for number in range(50)]
    await store(
        connection,
        *[
            Event(at(f"2024-02-{day:02}T12:00:00"), name, user_id=person)
            for day in (3, 4, 20)
            for name in ("a", "b")
            for person in people
        ],
    )
    found = await ask("totals", from_="2024-01-15", to="2024-03-15")
    assert (found["source"], found["events"], found["users"], found["sessions"]) == ("aggregates", 300, 50, 150)


# Totals.


@pytest.mark.parametrize(
    ("first", "last", "source"),
    [
        ("2024-02-28T10:00:00Z", "2024-03-02T15:00:00Z", "aggregates"),
        ("2024-02-28T10:01:00Z", "2024-03-02T15:00:00Z", "events"),
        ("2024-02-28T10:00:00Z", "2024-03-02T15:00:00.000001Z", "events"),
    ],
)
async def test_totals_of_a_range_are_exact_at_its_ends(
    ask: Asker, connection: asyncpg.Connection, first: str, last: str, source: str
):
    start, end = datetime.fromisoformat(first), datetime.fromisoformat(last)
    events = some_events(start, end, 60)
    await store(connection, *events)
    found = await ask("totals", from_=first, to=last)
    inside = counted([event for event in events if start <= event.created_at < end], events)
    assert {name: found[name] for name in inside} == inside
    assert found["source"] == source


async def test_minutes_are_read_while_they_are_kept(ask: Asker, connection: asyncpg.Connection):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    start, end = hour + timedelta(minutes=7), hour + timedelta(hours=3, minutes=1)
    events = some_events(start, end, 40)
    await store(connection, *events)
    inside = counted([event for event in events if start <= event.created_at < end], events)
    found = await ask("totals", from_=start.isoformat(), to=end.isoformat())
    assert {"source": found["source"], **{name: found[name] for name in inside}} == {"source": "aggregates", **inside}
    found = await ask("timeseries", from_=start.isoformat(), to=end.isoformat(), granularity="minute")
    assert (found["source"], len(found["points"])) == ("aggregates", 174)
    assert sum(point["events"] for point in found["points"]) == inside["events"]
    # With an offset of half an hour, the hours of the zone consist of minutes.
    found = await ask(
        "timeseries", from_=start.isoformat(), to=end.isoformat(), granularity="hour", timezone="Asia/Kolkata"
    )
    assert (found["source"], found["points"][0]["bucket"][14:]) == ("aggregates", "00:00+05:30")
    assert sum(point["events"] for point in found["points"]) == len(events)


async def test_as_of_says_what_is_rolled_up(ask: Asker, connection: asyncpg.Connection):
    await make_partitions(connection, [date(2024, 2, 3)])
    ledger = Ledger(connection)
    await ledger.flush([Event(at("2024-02-03"))])
    flushed_at = await connection.fetchval("SELECT flushed_at FROM analytics.flushes")
    found = await ask("totals", **FEBRUARY)
    assert (found["events"], datetime.fromisoformat(found["as_of"])) == (0, flushed_at)
    # Events are readable at once.
    found = await ask("totals", from_="2024-02-03", to="2024-02-03T00:00:01")
    assert (found["events"], found["source"]) == (1, "events")
    await Rollup(DIMENSION_NAMES, ROOM).run_once(connection)
    found = await ask("totals", **FEBRUARY)
    assert found["events"] == 1 and datetime.fromisoformat(found["as_of"]) > flushed_at


# Filters.


FILTERS: list[tuple[dict[str, str], str]] = [
    ({"event": "a"}, "aggregates"),
    ({"type": "conversion"}, "aggregates"),
    ({"country": "DE"}, "aggregates"),
    ({"event": "a", "type": "page_view", "country": "DE"}, "aggregates"),
    ({"country": "DE", "page_path": "/pricing"}, "events"),
    ({"event": "b", "country": "BR", "page_path": "/"}, "events"),
    ({"event": "nobody did this"}, "aggregates"),
    ({"country": "XX"}, "aggregates"),
]


async def test_filters(ask: Asker, connection: asyncpg.Connection):
    start, end = at("2024-02-01"), at("2024-02-08")
    events = some_events(start, end, 100)
    await store(connection, *events)
    for filters, source in FILTERS:
        kept = counted(
            [
                event
                for event in events
                if start <= event.created_at < end
                and all(column(event, name) == value for name, value in filters.items())
            ],
            events,
        )
        found = await ask("totals", from_="2024-02-01", to="2024-02-08", **filters)
        assert (found["source"], {name: found[name] for name in kept}) == (source, kept), filters
        found = await ask("timeseries", from_="2024-02-01", to="2024-02-08", **filters, granularity="day")
        assert (found["source"], sum(point["events"] for point in found["points"])) == (source, kept["events"]), (
            filters
        )


def column(event: Event, name: str) -> Any:
    return getattr(event, "name" if name == "event" else name)


async def test_several_filters_are_answered_for_a_month_at_most(ask: Asker):
    both = {"country": "DE", "os": "Linux"}
    assert (await ask("totals", from_="2024-03-01", to="2024-04-01", timezone="Europe/Berlin", **both))["events"] == 0
    status, code, message = await ask.refused("totals", from_="2024-03-01", to="2024-04-02", **both)
    assert (status, code) == (400, "range_too_large") and "31 days" in message
    status, code, _ = await ask.refused("top", from_="2024-03-01", to="2024-04-02", dimension="os", country="DE")
    assert (status, code) == (400, "range_too_large")


async def test_a_dimension_that_is_not_rolled_up_is_read_from_events(start: Start, connection: asyncpg.Connection):
    ask = Asker(await start(admin_keys=[KEY], rollup_dimensions=["country"]))
    await store(connection, Event(at("2024-02-03"), country="DE", page_path="/"))
    found = await ask("totals", **FEBRUARY, page_path="/")
    assert (found["source"], found["events"]) == ("events", 1)
    found = await ask("totals", **FEBRUARY, country="DE")
    assert (found["source"], found["events"]) == ("aggregates", 1)
    assert (await ask("top", **FEBRUARY, dimension="page_path"))["source"] == "events"
    status, _, message = await ask.refused("top", from_="2024-01-01", to="2024-03-01", dimension="page_path")
    assert status == 400 and "rollup_dimensions" in message


async def test_a_name_without_room_is_still_found(ask: Asker, connection: asyncpg.Connection):
    events = [Event(at("2024-02-03"), "often")] * 3 + [Event(at("2024-02-03"), "seldom", country="DE")]
    await store(connection, *events, room=Room(names=1, values=1))
    found = await ask("totals", **FEBRUARY, event="seldom")
    assert (found["source"], found["events"], "at_least" in found) == ("events", 1, False)
    # Too long for events: the answer has what is known, and says that it may be more.
    found = await ask("totals", from_="2024-01-01", to="2024-03-01", event="seldom")
    assert (found["source"], found["events"], found["at_least"]) == ("aggregates", 0, True)
    found = await ask("totals", **FEBRUARY, event="often")
    assert (found["source"], found["events"], found["at_least"]) == ("aggregates", 3, True)
    assert "at_least" not in await ask("totals", **FEBRUARY)
    found = await ask("top", **FEBRUARY, dimension="event")
    assert {row["value"]: row["events"] for row in found["values"]} == {"often": 3}
    assert found["other"]["events"] == 1


async def test_a_value_without_room_is_still_found(ask: Asker, connection: asyncpg.Connection):
    countries = ["DE", "DE", "BR"]
    await store(connection, *[Event(at("2024-02-03"), country=one) for one in countries], room=Room(10, 1))
    found = await ask("totals", **FEBRUARY, country="BR")
    assert (found["source"], found["events"]) == ("events", 1)
    found = await ask("totals", **FEBRUARY, country="DE")
    assert (found["source"], found["events"], found["at_least"]) == ("aggregates", 2, True)


# Pages.


async def test_pages_of_points_give_each_point_once(ask: Asker, connection: asyncpg.Connection):
    await store(connection, *some_events(at("2024-10-26", "Europe/Berlin"), at("2024-10-29", "Europe/Berlin"), 60))
    asked = {"from_": "2024-10-26", "to": "2024-10-29", "granularity": "hour", "timezone": "Europe/Berlin"}
    whole = (await ask("timeseries", **asked))["points"]
    assert len(whole) == 73
    # A cursor that is not at the start of a bucket, or not in this range.
    inside = {**asked, "after": cursors.encode("2024-10-28T22:59:59.5+00:00")}
    assert (await ask("timeseries", **inside))["points"] == []
    inside["after"] = cursors.encode("2024-10-28T20:59:59.5+00:00")
    assert (await ask("timeseries", **inside))["points"] == whole[-2:]
    assert (await ask("timeseries", **asked, after=cursors.encode("2020-01-01T00:00:00+00:00")))["points"] == whole
    for limit in (1, 7, 73):
        assert await all_pages(ask, "timeseries", "points", **asked, limit=limit) == whole


RANKINGS: list[tuple[dict[str, str], str]] = [
    ({"dimension": "country"}, "aggregates"),
    ({"dimension": "page_path", "event": "b"}, "aggregates"),
    ({"dimension": "event"}, "aggregates"),
    ({"dimension": "event", "country": "DE"}, "aggregates"),
    ({"dimension": "country", "page_path": "/"}, "events"),
    ({"dimension": "country", "country": "DE"}, "events"),
    ({"dimension": "event", "country": "DE", "page_path": "/"}, "events"),
]


async def test_rankings(ask: Asker, connection: asyncpg.Connection):
    events = some_events(at("2024-02-01"), at("2024-02-08"), 100)
    # Equal counts, in an order that depends on the database's locale.
    events += [Event(at("2024-02-02"), name, country=name[:2].upper()) for name in ("Zoë", "zoo", "äh", "'; --", "é")]
    await store(connection, *events)
    week = {"from_": "2024-02-01", "to": "2024-02-08"}
    for asked, source in RANKINGS:
        inside = [event for event in events if at("2024-02-01") <= event.created_at < at("2024-02-08")]
        expected = ranking(asked, inside, events)
        if source == "aggregates":
            unknown = {"users": None, "sessions": None}
            expected = [row | unknown if row["value"] is None else row for row in expected]
        found = await ask("top", **week, **asked)
        assert (found["source"], found["values"]) == (source, expected), asked
        for limit in (1, 2):
            assert await all_pages(ask, "top", "values", **week, **asked, limit=limit) == expected, asked


def ranking(asked: dict[str, str], events: Iterable[Event], of: Sequence[Event]) -> list[dict[str, Any]]:
    """The expected ranking of these events."""
    groups: dict[str | None, list[Event]] = {}
    for event in events:
        if all(column(event, name) == value for name, value in asked.items() if name != "dimension"):
            groups.setdefault(column(event, asked["dimension"]), []).append(event)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0] is None, (group[0] or "").encode()))
    return [{"value": value, **counted(some, of)} for value, some in ordered]


# Funnels.


async def test_a_funnel_counts_people_who_did_the_steps_in_order(ask: Asker, connection: asyncpg.Connection):
    def did(person: str, *steps: tuple[str, int]) -> list[Event]:
        return [Event(at("2024-02-03") + timedelta(minutes=minute), name, user_id=person) for name, minute in steps]

    await store(
        connection,
        *did("all", ("visit", 0), ("signup", 10), ("pay", 40)),
        *did("too late", ("visit", 0), ("signup", 30), ("pay", 61)),
        *did("other way round", ("pay", 0), ("signup", 1), ("visit", 2)),
        *did("begins again", ("visit", 0), ("visit", 60), ("signup", 80), ("pay", 119)),
        *did("only visits", ("visit", 0), ("visit", 1)),
        *did("none", ("pay", 0)),
        Event(at("2024-02-03"), "visit"),
    )
    found = await ask("funnel", **FEBRUARY, steps="visit,signup,pay", within="1h")
    assert found["steps"] == [
        {"step": "visit", "people": 5, "of_first": 1.0, "of_previous": None, "median_seconds": None},
        {"step": "signup", "people": 3, "of_first": 0.6, "of_previous": 0.6, "median_seconds": 1200.0},
        {"step": "pay", "people": 2, "of_first": 0.4, "of_previous": 0.6667, "median_seconds": 2070.0},
    ]
    found = await ask("funnel", **FEBRUARY, steps="visit,visit", within=3600)
    assert [step["people"] for step in found["steps"]] == [5, 2]


async def test_a_step_may_have_a_comma_in_its_name(ask: Asker, connection: asyncpg.Connection):
    await store(
        connection, *[Event(at(f"2024-02-0{day}"), name, user_id="x") for day, name in ((1, "a"), (2, "b,c"))]
    )
    found = await ask("funnel", "from=2024-02-01&to=2024-03-01&steps=a&steps=b%2Cc")
    assert [(step["step"], step["people"]) for step in found["steps"]] == [("a", 1), ("b,c", 1)]


async def test_a_funnel_counts_the_same_as_trying_every_combination(ask: Asker, connection: asyncpg.Connection):
    random = Random(7)
    start, within = at("2024-02-03"), timedelta(minutes=30)
    steps = ["a", "b", "a", "c"]
    events = [
        Event(start + timedelta(seconds=index), random.choice("abcd"), anonymous_id=f"p{random.randrange(40)}")
        for index in sorted(random.sample(range(7200), 500))
    ]
    await store(connection, *events)

    def depth(own: list[Event]) -> int:
        best = 0
        for place, first in enumerate(own):
            if first.name != steps[0]:
                continue
            done = 1
            for event in own[place + 1 :]:
                if done < len(steps) and event.name == steps[done] and event.created_at - first.created_at <= within:
                    done += 1
            best = max(best, done)
        return best

    depths = [depth([event for event in events if event.anonymous_id == f"p{person}"]) for person in range(40)]
    found = await ask("funnel", **FEBRUARY, steps=",".join(steps), within="30m")
    assert [step["people"] for step in found["steps"]] == [sum(d >= step for d in depths) for step in (1, 2, 3, 4)]
    assert len(set(depths)) > 2


async def test_a_funnel_of_ten_steps_and_filters(ask: Asker, connection: asyncpg.Connection):
    names = [f"step {number}" for number in range(10)]
    await store(
        connection,
        *[
            Event(at("2024-02-03") + timedelta(hours=hour), name, user_id=country, country=country)
            for country in ("DE", "BR")
            for hour, name in enumerate(names)
        ],
    )
    found = await ask("funnel", **FEBRUARY, steps=",".join(names), country="DE", type="user_action")
    assert [step["people"] for step in found["steps"]] == [1] * 10


# Retention.


async def test_retention_by_days_of_the_time_zone(ask: Asker, connection: asyncpg.Connection):
    def seen(person: str, *moments: str, name: str = "open") -> list[Event]:
        return [Event(at(moment, "Europe/Berlin"), name, user_id=person) for moment in moments]

    await store(
        connection,
        *seen("ada", "2024-03-30T23:59:59", "2024-03-31T00:00:00", "2024-04-01T23:59:59"),
        *seen("bob", "2024-03-31T00:00:00", "2024-04-01T00:00:00"),
        *seen("cem", "2024-03-31T23:30:00"),
        *seen("cem", "2024-04-01T08:00:00", name="pay"),
        *seen("before", "2024-03-29T23:59:59"),
    )
    asked = {"from_": "2024-03-30", "to": "2024-04-02", "timezone": "Europe/Berlin"}
    found = await ask("retention", **asked)
    assert [(cohort["bucket"][:10], cohort["people"], cohort["periods"]) for cohort in found["cohorts"]] == [
        ("2024-03-30", 1, [1, 1, 1]),
        ("2024-03-31", 2, [2, 2]),
        ("2024-04-01", 0, [0]),
    ]
    found = await ask("retention", **asked, event="open", return_event="pay", periods=2)
    assert [cohort["periods"] for cohort in found["cohorts"]] == [[0, 0], [0, 1], [0]]


async def test_retention_by_weeks(ask: Asker, connection: asyncpg.Connection):
    await store(
        connection,
        *[Event(at(day), user_id="ada") for day in ("2024-02-05", "2024-02-11T23:59:59", "2024-02-12", "2024-02-26")],
    )
    found = await ask("retention", from_="2024-02-05", to="2024-03-04", granularity="week")
    assert [cohort["periods"] for cohort in found["cohorts"]] == [[1, 1, 0, 1], [0, 0, 0], [0, 0], [0]]


# Metrics.


async def put_metrics(connection: asyncpg.Connection) -> None:
    await connection.execute(
        """
        INSERT INTO analytics.metrics (name, type, value_numeric, value_json, dimensions, granularity, sample_count,
            time_window_start, time_window_end, timestamp)
        SELECT 'leads', 'gauge'::analytics.metric_type, day, NULL::jsonb, jsonb_build_object('status', status),
            'day'::analytics.granularity, day,
            day_start, day_start + interval '1 day', now()
        FROM unnest('{new,lost}'::text[]) AS status, generate_series(1, 5) AS day,
            make_timestamptz(2024, 2, day, 0, 0, 0, 'UTC') AS day_start
        UNION ALL
        SELECT 'lag', 'histogram', 0.5, '{"p50": 1}', '{}', NULL, NULL, NULL, NULL, '2024-02-03Z'
        """
    )


async def test_metrics(ask: Asker, connection: asyncpg.Connection):
    await put_metrics(connection)
    found = await ask("metrics", from_="2024-02-05", to="2024-03-01", **{"dimension.status": "lost"})
    assert found["metrics"] == [
        {
            "name": "leads",
            "type": "gauge",
            "granularity": "day",
            "start": "2024-02-05T00:00:00+00:00",
            "end": "2024-02-06T00:00:00+00:00",
            "dimensions": {"status": "lost"},
            "value": 5,
            "details": None,
            "samples": 5,
        }
    ]
    found = await ask("metrics", **FEBRUARY, name="lag")
    assert [(row["value"], row["details"], row["end"]) for row in found["metrics"]] == [(0.5, {"p50": 1}, None)]
    assert (await ask("metrics", from_="2024-02-01", to="2024-02-01T00:00:01", granularity="hour"))["metrics"] == []
    # A known name, in a range without rows.
    assert (await ask("metrics", from_="2023-02-01", to="2023-03-01", name="leads"))["metrics"] == []


async def test_pages_of_metrics_give_each_row_once(ask: Asker, connection: asyncpg.Connection):
    await put_metrics(connection)
    whole = (await ask("metrics", **FEBRUARY))["metrics"]
    assert len(whole) == 11
    for limit in (1, 2, 11):
        assert await all_pages(ask, "metrics", "metrics", **FEBRUARY, limit=limit) == whole


async def test_an_unknown_metric(ask: Asker, connection: asyncpg.Connection):
    assert await ask.refused("metrics", name="leads") == (
        404,
        "unknown_metric",
        "unknown metric 'leads'; There are none yet",
    )
    await put_metrics(connection)
    status, code, message = await ask.refused("metrics", name="laeds")
    assert (status, code) == (404, "unknown_metric")
    assert message == "unknown metric 'laeds'; did you mean leads? There are lag, leads"


# Bad queries.

SQL = "'; DROP TABLE analytics.events; --"


BAD = [
    ("totals", "from=2024-02-02&to=2024-02-01", "bad_range", "before"),
    ("totals", "from=2024-02-02&to=2024-02-02", "bad_range", "before"),
    ("totals", "from=2999-01-01", "bad_range", "2199"),
    ("totals", "from=0001-01-01&timezone=Asia/Kolkata", "bad_range", "1970"),
    ("totals", "to=9999-12-31&timezone=America/Sao_Paulo", "bad_range", "2199"),
    ("timeseries", "from=2024-01-01&to=2026-01-01&granularity=minute", "range_too_large", "10000"),
    ("timeseries", "from=1980-01-01&to=2190-01-01&granularity=day", "range_too_large", "10000"),
    ("timeseries", "granularity=fortnight", "bad_parameter", "minute, hour, day, week, month"),
    ("timeseries", "timezone=Europe/Atlantis", "bad_parameter", "Europe/Berlin"),
    ("timeseries", "timezone=Europe", "bad_parameter", "time zone"),
    ("timeseries", "timezone=../../etc/passwd", "bad_parameter", "time zone"),
    ("timeseries", "timezone=/etc/localtime", "bad_parameter", "time zone"),
    ("timeseries", "timezone=localtime", "bad_parameter", "time zone"),
    ("timeseries", "timezone=" + "A" * 5000, "bad_parameter", "time zone"),
    ("timeseries", "from=yesterday", "bad_parameter", "ISO 8601"),
    ("timeseries", "from=2024-02-30", "bad_parameter", "ISO 8601"),
    ("timeseries", "from=", "bad_parameter", "ISO 8601"),
    ("timeseries", "from=2024-02-03T25:00", "bad_parameter", "ISO 8601"),
    ("timeseries", "limit=0", "bad_parameter", "1 to 1000"),
    ("timeseries", "limit=1001", "bad_parameter", "1 to 1000"),
    ("timeseries", "limit=1e3", "bad_parameter", "1 to 1000"),
    ("timeseries", "limit=%D9%A3", "bad_parameter", "1 to 1000"),
    ("timeseries", "after=nonsense", "bad_parameter", "next"),
    ("timeseries", "after=WzEsMl0=", "bad_parameter", "next"),  # [1,2]
    ("timeseries", "after=WyJ4Il0=", "bad_parameter", "next"),  # ["x"]
    ("timeseries", "after=WyIyMDI0LTAxLTAxIl0=", "bad_parameter", "next"),  # A time without an offset
    ("timeseries", "after=%C3%A4", "bad_parameter", "next"),
    ("top", "dimension=country&after=WzEsbnVsbF0=", "bad_parameter", "next"),  # [1,null]
    ("top", "dimension=country&after=WzEsIlx1MDAwMCIsZmFsc2Vd", "bad_parameter", "next"),  # [1,"\u0000",false]
    ("totals", "none=planet", "bad_parameter", "country, device_type"),
    ("totals", "none=event", "bad_parameter", "country, device_type"),
    ("totals", "other=", "bad_parameter", "event"),
    ("totals", "none=country&country=DE", "bad_parameter", "twice"),
    ("totals", "none=country&other=country", "bad_parameter", "twice"),
    ("totals", "other=event&event=a", "bad_parameter", "twice"),
    ("totals", "other=country&none=os", "bad_parameter", "aggregates"),
    ("totals", "bots=some", "bad_parameter", "exclude, only, include"),
    ("funnel", "steps=a,b&other=country", "unknown_parameter", "none"),
    ("top", "dimension=country&after=Wzk5OTk5OTk5OTk5OTk5OTk5OTksImEiXQ==", "bad_parameter", "next"),  # 10^19
    ("timeseries", "type=click", "bad_parameter", "page_view, user_action"),
    ("timeseries", "event=" + "x" * 101, "bad_parameter", "100"),
    ("timeseries", "event=", "bad_parameter", "100"),
    ("timeseries", "event=a%00b", "bad_parameter", "NUL"),
    ("timeseries", "event=a&event=b", "bad_parameter", "twice"),
    ("timeseries", "page_path=" + "x" * 256, "bad_parameter", "255"),
    ("timeseries", "evnet=a", "unknown_parameter", "did you mean event?"),
    ("timeseries", "contry=DE", "unknown_parameter", "did you mean country?"),
    ("timeseries", "properties.plan=pro", "unknown_parameter", "Allowed are event, type"),
    ("totals", "granularity=day", "unknown_parameter", "Allowed are"),
    ("totals", f"{SQL.replace(';', '%3B')}=1", "unknown_parameter", "Allowed are"),
    ("top", "", "bad_parameter", "dimension is required"),
    ("top", "dimension=planet", "bad_parameter", "country, device_type"),
    ("top", "dimension=batch_id", "bad_parameter", "country, device_type"),
    ("funnel", "", "bad_parameter", "2 to 10"),
    ("funnel", "steps=a", "bad_parameter", "2 to 10"),
    ("funnel", "steps=" + ",".join("abcdefghijk"), "bad_parameter", "2 to 10"),
    ("funnel", "steps=a,,b", "bad_parameter", "2 to 10"),
    ("funnel", "steps=a,b&within=0", "bad_parameter", "7d"),
    ("funnel", "steps=a,b&within=32d", "bad_parameter", "7d"),
    ("funnel", "steps=a,b&within=-1", "bad_parameter", "7d"),
    ("funnel", "steps=a,b&from=2024-01-01&to=2024-03-01", "range_too_large", "31 days"),
    ("funnel", "steps=a,b&event=a", "unknown_parameter", "steps"),
    ("retention", "granularity=month", "bad_parameter", "day or week"),
    ("retention", "periods=32", "bad_parameter", "1 to 31"),
    ("retention", "from=2024-01-01&to=2024-03-01", "range_too_large", "31 days"),
    ("metrics", "country=DE", "unknown_parameter", "dimension.<key>"),
    ("metrics", "dimension.status=", "bad_parameter", "255"),
]


async def test_refusals_of_bad_queries_say_what_is_allowed(ask: Asker):
    for endpoint, asked, code, expected in BAD:
        status, found, message = await ask.refused(endpoint, asked)
        assert (status, found) == (400, code), (endpoint, asked, message)
        assert expected in message and len(message) < 1000, (endpoint, asked, message)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_sql_in_any_parameter_is_text_or_refused(ask: Asker, connection: asyncpg.Connection, endpoint: str):
    await store(connection, Event(at("2024-02-03"), user_id="ada"))
    takes = parameters.ENDPOINTS[endpoint]
    free = {"event", "return_event", "steps", *DIMENSION_NAMES, "dimension.x", f"dimension.{SQL}"}
    names = [*takes.parameters, *(DIMENSION_NAMES if takes.filters else ("dimension.x", f"dimension.{SQL}"))]
    for name in names:
        needed = [one for one in parse_qsl(ENDPOINTS[endpoint]) if one[0] != name]
        text = f"{SQL},{SQL}" if name == "steps" else SQL
        answer = await ask.answer(endpoint, urlencode([*needed, (name, text)]))
        allowed = {200} if name in free else {404} if name == "name" else {400}
        assert answer.status in allowed, (name, answer.body)
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 1


# Access, and failures.


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_without_a_key_nothing_is_answered(start: Start, endpoint: str):
    client = await start(admin_keys=["another", KEY], write_keys=["a write key"])
    path = f"/v1/stats/{endpoint}?{ENDPOINTS[endpoint]}"
    for header in ("", "Bearer", "Bearer a write key", f"Bearer {KEY}x", basic("nobody"), KEY, "Bearer é"):
        answer = await client.get(path, **({"Authorization": header} if header else {}))
        assert (answer.status, answer.json()["code"]) == (401, "unauthorized"), header
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    # Not in the URL, which proxies write to their logs.
    assert (await client.get(f"{path}&write_key=another")).status == 401
    for header in (f"Bearer {KEY}", f"bearer {KEY}", basic(KEY), basic("another")):
        answer = await client.get(path, Authorization=header)
        assert answer.status == 200, answer.body
        assert answer.headers["Cache-Control"] == "no-store"


async def test_without_admin_keys_only_api_keys_may_ask(start: Start, connection: asyncpg.Connection):
    client = await start()
    answer = await client.get("/v1/stats/totals", **BEARER)
    assert (answer.status, answer.json()["code"]) == (401, "unauthorized")
    keys = {scope: await api_keys.create(connection, scope, [scope]) for scope in ("write", "read", "admin")}
    for scope, status in (("write", 403), ("read", 200), ("admin", 200)):
        answer = await client.get("/v1/stats/totals", Authorization=f"Bearer {keys[scope]}")
        assert answer.status == status, answer


async def test_while_the_database_is_away(start: Start, postgres: Server, connection: asyncpg.Connection):
    ask = Asker(await start(admin_keys=[KEY]))
    assert (await ask("totals", **FEBRUARY))["events"] == 0
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'ingest statistics' AND datname = current_database()"
    )
    name = await connection.fetchval("SELECT current_database()")
    await execute(postgres.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    answer = await ask.answer("totals")
    assert (answer.status, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    # Bad queries are still refused, and events accepted.
    assert (await ask.refused("totals", from_="never"))[0] == 400
    assert (await ask.client.post({"name": "x"})).status == 200
    await execute(postgres.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (await ask("totals", **FEBRUARY))["events"] == 0


async def test_a_query_that_takes_too_long_is_cancelled(start: Start, connection: asyncpg.Connection):
    ask = Asker(await start(admin_keys=[KEY], stats_timeout_seconds=0.1))
    async with connection.transaction():
        await connection.execute("LOCK TABLE analytics.event_aggregations IN ACCESS EXCLUSIVE MODE")
        for _ in range(6):  # More often than there are connections.
            status, code, message = await ask.refused("totals", **FEBRUARY)
            assert (status, code) == (422, "too_slow") and "less time" in message
    assert (await ask("totals", **FEBRUARY))["events"] == 0


async def test_too_many_buckets_are_read_from_events_or_refused(ask: Asker, connection: asyncpg.Connection):
    await store(connection, Event(at("2024-02-03"), user_id="ada"))
    await connection.execute(
        """
        INSERT INTO analytics.event_aggregations (event_type, event_name, time_bucket, granularity, event_count)
        SELECT 'system', 'name ' || number, hour, 'hour', 1 FROM generate_series(1, 73) AS number,
            generate_series('2024-01-02Z', '2024-02-28Z', interval '1 hour') AS hour
        """
    )
    status, code, message = await ask.refused("timeseries", from_="2024-01-02", to="2024-02-27", granularity="hour")
    assert (status, code) == (422, "too_many_rows") and "25000" in message
    found = await ask("timeseries", from_="2024-01-29", to="2024-02-28", granularity="hour")
    assert (found["source"], sum(point["events"] for point in found["points"])) == ("events", 1)
    found = await ask("timeseries", from_="2024-01-29", to="2024-02-27", granularity="hour", event="name 5")
    assert (found["source"], {point["events"] for point in found["points"]}) == ("aggregates", {1})


async def test_nothing_can_be_written(database_url: str):
    pool = Pool(database_url, "statistics", 4, timeout_seconds=1)
    try:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with StatsTransactions(pool).read_only() as connection:
                await connection.execute("DELETE FROM analytics.events")
    finally:
        await pool.close()
        await pool.close()


async def test_concurrent_queries(ask: Asker, connection: asyncpg.Connection):
    await store(connection, *some_events(at("2024-02-01"), at("2024-03-01"), 100))
    found = await asyncio.gather(*[ask("timeseries", **FEBRUARY) for _ in range(20)])
    assert all(one["points"] == found[0]["points"] for one in found)
    limit = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'ingest statistics' AND datname = current_database()"
    )
    assert 1 <= limit <= 4
