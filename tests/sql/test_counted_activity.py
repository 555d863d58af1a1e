"""analytics.counted_activity: the rows of analytics.activity, read from two indexes of each day that is over."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from ingest.store import partitions

CLOSED_DAY = date(2026, 1, 2)
TEXTS = (
    "name",
    "user_id",
    "anonymous_id",
    "session_id",
    "page_path",
    "referrer_host",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "browser",
    "os",
)
LONGEST = {text: 100 if text == "name" else 255 for text in TEXTS}
"""In characters, as the collector stores them."""
COLUMNS = f"{', '.join(TEXTS)}, id, created_at, received_at, type, device_type, country, batch_id, batch_position"


def random_text(number: int, characters: int, alphabet: str) -> str:
    """Texts that hardly compress."""
    state, found = number + 1, []
    for _ in range(characters):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append(alphabet[(state >> 33) % len(alphabet)])
    return "".join(found)


ALPHABETS = {
    "one byte": "abcdefghijklmnopqrstuvwxyz0123456789",
    "four bytes": "".join(map(chr, range(0x1F300, 0x1F500))),
}


async def insert(connection: asyncpg.Connection, day: date, values: dict[str, str | None], number: int) -> None:
    moment = datetime(day.year, day.month, day.day, 12, tzinfo=UTC) + timedelta(seconds=number)
    columns = {"created_at": moment, "name": "page_view", **values}
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    await connection.execute(
        f"INSERT INTO analytics.events (type, {', '.join(columns)}) VALUES ('page_view', {places})", *columns.values()
    )


def cases() -> list[dict[str, str | None]]:
    """Events with none, some and all texts, short and as long as they may be."""
    found: list[dict[str, str | None]] = [{}, dict.fromkeys(TEXTS, "x")]
    for alphabet in ALPHABETS.values():
        for count in range(1, len(TEXTS) + 1):
            some = TEXTS[:count]
            found.append({text: random_text(count, LONGEST[text], alphabet) for text in some})
    # Around the number of bytes that decides which index a row is in.
    for size in range(1990, 2011):
        texts = {"name": "n" * 100, **dict.fromkeys(TEXTS[1:8], "v" * 255)}
        left = size - 100 - 7 * 255
        found.append({**texts, "browser": "b" * left})
    return found


@pytest.fixture
async def days(connection: asyncpg.Connection) -> list[date]:
    found = [CLOSED_DAY, datetime.now(UTC).date()]
    await partitions.ensure(connection, [*found, found[1] - timedelta(days=1)])
    return found


@pytest.mark.parametrize("when", ["before the indexes", "late"])
async def test_every_event_is_in_it_once(connection: asyncpg.Connection, days: list[date], when: str):
    """Whatever its length: an entry that is too long for an index would refuse the event."""
    if when == "late":
        await partitions.index_closed_days(connection)
    for number, values in enumerate(cases()):
        for day in days:
            await insert(connection, day, values, number)
    await partitions.index_closed_days(connection)
    for planner in ("SET enable_seqscan = on", "SET enable_seqscan = off; SET enable_bitmapscan = off"):
        await connection.execute(planner)
        all_rows = f"SELECT {COLUMNS}, person, visit FROM analytics.%s ORDER BY created_at, id"
        expected = await connection.fetch(all_rows % "activity")
        assert len(expected) == 2 * len(cases())
        assert await connection.fetch(all_rows % "counted_activity") == expected


async def test_a_day_that_is_over_is_read_from_its_index_alone(connection: asyncpg.Connection, days: list[date]):
    for number in range(2000):
        await insert(connection, CLOSED_DAY, {"user_id": f"u{number}", "country": "DE"}, number)
    await partitions.index_closed_days(connection)
    explained = await connection.fetch(
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(DISTINCT person) FROM analytics.counted_activity"
        " WHERE created_at >= '2026-01-02' AND created_at < '2026-01-03' AND country = 'DE' AND page_path IS NULL"
    )
    plan = "\n".join(row[0] for row in explained)
    assert "Index Only Scan using events_20260102_counted on" in plan
    assert "Heap Fetches: 0" in plan
    assert "Seq Scan on events_20260102" not in plan


async def test_the_columns_that_are_indexed_are_those_of_the_view(connection: asyncpg.Connection, days: list[date]):
    await partitions.index_closed_days(connection)
    of_index = "SELECT attname FROM pg_attribute WHERE attrelid = 'analytics.events_20260102_counted'::regclass"
    of_view = (
        "SELECT attname FROM pg_attribute WHERE attrelid = 'analytics.counted_activity'::regclass AND attnum > 0"
    )
    indexed = {row["attname"] for row in await connection.fetch(of_index)}
    assert {row["attname"] for row in await connection.fetch(of_view)} == indexed | {"person", "visit"}
