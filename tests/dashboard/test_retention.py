"""The page Retention of a real worker: its numbers, the average, by day and week, in a zone, and bad input."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from ingest.dashboard.retention import Cohort, average
from tests.dashboard.test_funnels import HOSTILE, page, refusal, signed_in, words
from tests.support.aggregates import Event
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key
from tests.support.statistics import store

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


@pytest.fixture
async def analyst(client: Client, database_url: str) -> Viewer:
    return await signed_in(client, await new_key(database_url, "read"))


async def rows(viewer: Viewer, **query: str) -> list[dict[str, str]]:
    text = await page(viewer, "/panels/retention.csv", **query)
    return list(csv.DictReader(io.StringIO(text)))


def some_events() -> list[Event]:
    random = Random(3)
    events = []
    for _ in range(300):
        moment = NOW - timedelta(hours=random.uniform(0.1, 24 * 24))
        name = random.choice(["visit", "visit", "order"])
        country = random.choice(["DE", "BR"])
        events.append(Event(moment, name, anonymous_id=f"p{random.randrange(50)}", country=country))
    return events


def came_back(
    events: Sequence[Event], first: str, back: str, days: int, zone: ZoneInfo
) -> dict[tuple[str, int], int]:
    """By the day or week of the first event and the number of periods after it: people, counted one by one."""

    def bucket(event: Event) -> datetime:
        day = event.created_at.astimezone(zone).date()
        if days == 7:
            day -= timedelta(days=day.weekday())
        return datetime(day.year, day.month, day.day, tzinfo=zone)

    who: dict[tuple[str, int], set[str | None]] = {}
    for person in {event.anonymous_id for event in events}:
        own = [event for event in events if event.anonymous_id == person]
        begun = min((event for event in own if first in ("", event.name)), key=lambda e: e.created_at, default=None)
        if begun is None:
            continue
        cohort = bucket(begun)
        who.setdefault((cohort.isoformat(), -1), set()).add(person)
        for event in own:
            if back in ("", event.name) and event.created_at >= begun.created_at:
                period = (bucket(event).date() - cohort.date()).days // days
                who.setdefault((cohort.isoformat(), period), set()).add(person)
    return {key: len(people) for key, people in who.items()}


async def test_numbers_are_those_of_the_events(analyst: Viewer, connection: asyncpg.Connection):
    events = some_events()
    await store(connection, *events)
    for zone in ("UTC", "Asia/Kolkata"):
        for days, interval in ((1, "day"), (7, "week")):
            for first, back, country in (("", "", ""), ("visit", "order", ""), ("order", "", "DE")):
                query = {"timezone": zone, "interval": interval, "first": first, "return": back}
                found = await rows(analyst, **query, **({"country": country} if country else {}))
                some = [event for event in events if country in ("", event.country)]
                expected = came_back(some, first, back, days, ZoneInfo(zone))
                known = {(row["Since"], int(row[interval.capitalize()])): int(row["Came back"]) for row in found}
                sizes = {row["Since"]: int(row["People"]) for row in found}
                assert {key: count for key, count in known.items() if count} == {
                    key: count for key, count in expected.items() if key[1] >= 0
                }
                assert {key: count for key, count in sizes.items() if count} == {
                    since: count for (since, period), count in expected.items() if period == -1
                }
                for row in found:
                    if row["People"] != "0":
                        share = int(row["Came back"]) / int(row["People"])
                        assert float(row["Share"]) == pytest.approx(share, abs=1e-6)
    # The period that is not over is told apart.
    last = {row["Since"]: row["Incomplete"] for row in await rows(analyst)}
    assert set(last.values()) == {"yes"}
    text = words(await page(analyst, "/retention", interval="day"))
    assert "Average" in text and "Day 23" in text and "By week" in text
    # The filter by an event is the first event.
    assert await rows(analyst, event="order") == await rows(analyst, first="order")


def test_the_average_weighs_people_and_leaves_out_what_is_not_over():
    start = NOW
    found = average([Cohort(start, 10, [10, 5, 9], 2), Cohort(start, 30, [30, 3], 1), Cohort(start, 0, [0], 0)])
    assert found == [1.0, 0.5, None]
    assert average([]) == []


async def test_a_range_that_is_too_long_and_an_empty_one(analyst: Viewer):
    text = words(await page(analyst, "/retention", period="90d"))
    assert "Retention is counted from events, which is possible for at most 31 days; this range has 90." in text
    assert "last 30 days" in text
    assert "at most 31 days" in await refusal(analyst, "/panels/retention.csv", period="90d")
    assert "Nobody came in this range" in words(await page(analyst, "/retention"))


async def test_who_may_and_bad_input(client: Client, analyst: Viewer):
    assert (await Viewer(client).get("/retention")).headers["Location"].startswith("/sign-in")
    for query, said in (({"first": "x" * 101}, "first must be"), ({"return": "x" * 101}, "return must be")):
        assert said in words(await page(analyst, "/retention", **query))
        assert (await analyst.get(f"/panels/retention.csv?{urlencode(query)}")).status == 400


async def test_texts_stay_texts(analyst: Viewer, connection: asyncpg.Connection):
    await store(connection, *[Event(NOW - timedelta(hours=1), text, anonymous_id="p") for text in HOSTILE])
    for text in HOSTILE:
        shown = await page(analyst, "/retention", first=text)
        assert "<script>alert" not in shown and "<img" not in shown and 'href="javascript' not in shown
        assert shown.count("selected") >= 1
        assert [row["People"] for row in await rows(analyst, first=text, period="today")] in (["1"], ["0"])
