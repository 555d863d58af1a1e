"""Values of a ranking, used as filters, give the same numbers: for every dimension and any value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import asyncpg
import orjson
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.aggregates import Event, Ledger, make_partitions, recognise, stored
from tests.support.statistics import Asker, all_pages, store

DAY = datetime(2024, 2, 5, tzinfo=UTC)
WHOLE = {"from_": "2024-02-01", "to": "2024-02-28"}
PART = {"from_": "2024-02-01T00:00:30", "to": "2024-02-28"}
"""Not whole minutes: answered from events."""
ODD = [
    None, "", " ", "   ", "(none)", "(other)", "null", "NULL", "None", "{}", "[]", '{"other": true}', "true", "0",
    "a,b", "a;b", '"quoted"', "it's", "a b", "%", "%41", "100%", "_", "a_b", "\\", "a\\b", "\\N", "\\0", "\n", "\r\n",
    "\t", "\x01", "\x1f", "\x7f", "\u2028", "ä", "a\u0308", "💥", "\u202eabc", "x" * 255,
    "ä" * 255, "x" * 300,
    "+", "a+b", "&", "a&b=c", "=", "#", "?", "/", "../", "::", "<b>", "$1", "{value}", "{filters}", "-- x", "é",
]  # fmt: skip
NAMES = [value for value in ODD if value and len(value) <= 100]


def odd(seed: int, column: str) -> list[Any]:
    """Odd values of the column, each one to three times."""
    random = Random(seed)
    if column == "device_type":
        values: list[Any] = [None, "desktop", "mobile", "tablet", "bot", "other"]
    elif column == "country":
        values = [None, "DE", "BR", "FR"]
    else:
        values = NAMES if column == "name" else ODD
    return [value for value in values for _ in range(random.randrange(1, 4))]


async def put(connection: asyncpg.Connection, column: str, values: list[Any], room: Room) -> None:
    """Events with these values of a column, each of a different person."""
    known = column in Event._fields
    events = [
        Event(DAY + timedelta(minutes=7 * number), user_id=f"u{number}")._replace(
            **({column: value} if known else {})
        )
        for number, value in enumerate(values)
    ]
    await make_partitions(connection, sorted({event.created_at.date() for event in events}))
    await Ledger(connection).flush(events)
    if not known:
        await connection.executemany(
            f"UPDATE analytics.events SET {column} = $2 WHERE user_id = $1",
            [(event.user_id, value) for event, value in zip(events, values, strict=True)],
        )
    while await Rollup(DIMENSION_NAMES, room).run_once(connection):
        pass
    await recognise(connection, DIMENSION_NAMES, room)


def question(dimension: str, row: dict[str, Any]) -> dict[str, Any]:
    """The filter for a row of a ranking."""
    return {"none": dimension} if row["value"] is None else {dimension: row["value"]}


def numbers(totals: dict[str, Any]) -> tuple[Any, ...]:
    return totals["events"], totals["users"], totals["sessions"]


@pytest.mark.parametrize("dimension", ["event", *DIMENSION_NAMES])
@pytest.mark.parametrize("values", [1000, 3])
async def test_values_of_a_ranking_work_as_filters(
    ask: Asker, connection: asyncpg.Connection, dimension: str, values: int
):
    column = "name" if dimension == "event" else dimension
    sent = odd(values, column)
    await put(connection, column, sent, Room(values, values))
    kept = [value[:255] if value else value for value in sent if column != "device_type" or value != "bot"]
    for asked in (WHOLE, PART):
        answer = await ask("top", **asked, dimension=dimension, limit=1000)
        rows = answer["values"]
        others = answer.get("other")
        assert sum(row["events"] for row in rows) + (others["events"] if others else 0) == len(kept)
        for row in rows:
            found = await ask("totals", **asked, **question(dimension, row))
            assert (found["source"], numbers(found)) == (answer["source"], numbers(row)), row
            points = await ask("timeseries", **asked, **question(dimension, row), granularity="day")
            if asked is WHOLE:
                assert sum(point["events"] for point in points["points"]) == row["events"]
            if others is None:
                assert row["events"] == kept.count(row["value"])
        assert len({row["value"] for row in rows}) == len(rows)
        if others is None:
            assert {row["value"] for row in rows} == set(kept)
        else:
            assert asked is WHOLE
            found = await ask("totals", **asked, other=dimension)
            assert (found["source"], numbers(found)) == ("aggregates", numbers(others))
        # The same, a page at a time.
        assert await all_pages(ask, "top", "values", **asked, dimension=dimension, limit=7) == rows
    crowded = values < len(set(kept) - {None})
    assert ("other" in await ask("top", **WHOLE, dimension=dimension)) == crowded


async def test_people_without_a_value_are_found_by_funnels_and_retention(ask: Asker, connection: asyncpg.Connection):
    sources = [None, None, "(none)", "", "(other)"]
    await store(
        connection,
        *[
            Event(DAY + timedelta(hours=hour), name, user_id=f"u{number}", utm_source=source)
            for number, source in enumerate(sources)
            for hour, name in enumerate(("a", "b"))
        ],
    )
    for asked, people in (({"none": "utm_source"}, 2), ({"utm_source": "(none)"}, 1), ({"utm_source": ""}, 1),
                          ({"utm_source": "(other)"}, 1), ({"utm_source": "x"}, 0)):  # fmt: skip
        steps = (await ask("funnel", **WHOLE, **asked, steps="a,b"))["steps"]
        assert [step["people"] for step in steps] == [people] * 2, asked
        cohorts = (await ask("retention", **WHOLE, **asked))["cohorts"]
        assert sum(cohort["people"] for cohort in cohorts) == people, asked
        # Two filters.
        assert (await ask("totals", **WHOLE, **asked, page_path="/"))["events"] == 0
        both = [("none", "page_path"), *asked.items(), *((name.rstrip("_"), value) for name, value in WHOLE.items())]
        assert (await ask("totals", both))["events"] == 2 * people, asked


async def test_no_value_passes_for_other(ask: Asker, connection: asyncpg.Connection):
    """Names and values that look like the ones for `other` are kept apart from it, in the table too."""
    names = ["(other)"] * 3 + ["often"] * 4 + ["seldom", "rare"]
    await put(connection, "name", names, Room(2, 2))
    days = {key[3]: row[0] for key, row in (await stored(connection)).items() if key[0] == "month" and key[4] == "{}"}
    assert sum(days.values()) == len(names) and "" in days
    found = await ask("top", **WHOLE, dimension="event")
    assert {row["value"] for row in found["values"]} == set(days) - {""}
    assert found["other"]["events"] == days[""]
    assert (await ask("totals", **WHOLE, event="(other)"))["events"] == 3
    assert (await ask("totals", **WHOLE, other="event"))["events"] == days[""]


async def test_values_for_which_there_is_no_room_are_no_value_in_the_table(connection: asyncpg.Connection):
    values = ["(other)", "(other)", "a", "a", "a", "b", "c", '{"other": true}', None]
    await store(connection, *[Event(DAY, utm_source=value) for value in values], room=Room(9, 2))
    rows = {key[4]: row[0] for key, row in (await stored(connection)).items() if key[0] == "day"}
    parsed = {of: orjson.loads(of).get("utm_source") for of in rows}
    assert [rows[of] for of, value in parsed.items() if value == {"other": True}] == [3]
    assert {value: rows[of] for of, value in parsed.items() if isinstance(value, str)} == {"a": 3, "(other)": 2}
