"""Events read as COPY text are those that a query returns, and how they are counted changes no aggregate."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup import buckets
from ingest.rollup.alike import Alike, Lines, from_records, moment
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup, rows_query
from tests.support.aggregates import Event, Ledger, make_partitions, stored
from tests.support.amounts import amount
from tests.support.rollups import NOW, connected, differences

DAYS = [(NOW + timedelta(days=number)).date() for number in (-1, 0, 1)]
TABLES = (
    "analytics.events, analytics.event_aggregations, analytics.stale_buckets, analytics.flushes, analytics.journals,"
    " analytics.identities, analytics.people, analytics.visits, analytics.stale_identities"
)
TEXTS = st.one_of(
    st.none(),
    st.sampled_from(["", "\\N", "\\", "\\\\N", "\t", "\n", "\r\n", "\\t", "\x01", "\b\f\v", "t", "ä", "\U0001f600"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
)
ODD = st.builds(
    Event,
    created_at=st.sampled_from([NOW, NOW + timedelta(seconds=59, microseconds=999_999)])
    | st.integers(0, 90_000_000).map(lambda number: NOW + timedelta(microseconds=number)),
    name=st.sampled_from(["a", "\\N", "b\tc"]),
    type=st.sampled_from(["page_view", "user_action"]),
    user_id=TEXTS,
    anonymous_id=TEXTS,
    session_id=TEXTS,
    country=st.sampled_from([None, "DE"]),
    page_path=TEXTS,
    utm_source=TEXTS,
    authenticated=st.sampled_from([None, False, True]),
    device_type=st.sampled_from([None, "bot", "mobile"]),
)


# Reading.


@settings(
    max_examples=amount(15, long=100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(ODD, min_size=1, max_size=12), copies=st.integers(1, 3), size=st.integers(1, 400))
def test_lines_say_what_records_say(module_database: str, events: list[Event], copies: int, size: int):
    async def read() -> tuple[Alike, Alike]:
        async with connected(module_database) as connection:
            await connection.execute(f"TRUNCATE {TABLES}")
            await make_partitions(connection, DAYS)
            await Ledger(connection).flush(events * copies)
            query = rows_query(
                "events_in_pages", DAYS[1], DIMENSION_NAMES, start=0, end=999, batches="'{[0,)}'::int8multirange"
            )
            text = bytearray()

            async def add(part: bytes) -> None:
                text.extend(part)

            await connection.copy_from_query(query, output=add)
            lines = Lines(len(DIMENSION_NAMES))
            for start in range(0, len(text), size):
                lines.add(text[start : start + size])
                if start % 3 == 0:
                    lines.end()
            lines.end()
            records = await connection.fetch(query)
            assert lines.events == len(records) == len(events) * copies
            return lines.alike(), from_records(records, len(DIMENSION_NAMES))

    lines, records = asyncio.run(read())
    # Each place of `lines` is different, and all of it is what the records say.
    assert by_kind(lines) == by_kind(records)
    assert len(by_kind(lines)) == len(lines.events)
    times = [(moment(time) - NOW) / timedelta(microseconds=1) for time in records.first]
    assert sorted(times) == sorted((event.created_at - NOW) / timedelta(microseconds=1) for event in events * copies)


def by_kind(alike: Alike) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    found: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    columns = (alike.users, alike.browsers, alike.sessions, alike.authenticated, alike.of_bots, alike.kinds)
    for minute, events, first, last, *kind in zip(
        alike.minutes, alike.events, alike.first, alike.last, *columns, alike.names, *alike.values, strict=True
    ):
        key = minute, *kind
        known = found.get(key, (0, first, last))
        found[key] = known[0] + events, min(known[1], first), max(known[2], last)
    return found


def test_nothing_is_read():
    lines = Lines(2)
    lines.end()
    assert lines.alike() == from_records([], 2) == Alike([], [], [], [], (), (), (), [], (), (), (), [(), ()])


# Values without room.

CROWDED = st.builds(
    Event,
    created_at=st.integers(0, 4).map(lambda number: NOW + timedelta(seconds=45 * number)),
    name=st.sampled_from(["a", "a", "a", "b", "c"]),
    type=st.sampled_from(["page_view", "user_action"]),
    user_id=st.sampled_from([None, "ada", "bob"]),
    anonymous_id=st.none(),
    session_id=st.sampled_from(["s1", "s2"]),
    country=st.none(),
    page_path=st.integers(0, 12).map(lambda number: f"/{number // 3}"),
    utm_source=st.sampled_from([None, "news", "mail", "x", "y", "z"]),
    authenticated=st.none(),
    device_type=st.sampled_from([None, None, "bot"]),
)


@pytest.mark.long
@pytest.mark.longer
@settings(
    max_examples=amount(20, long=100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flushes=st.lists(st.lists(CROWDED, min_size=1, max_size=25), min_size=1, max_size=4),
    names=st.integers(1, 3),
    values=st.integers(1, 3),
)
def test_values_counted_early_as_others_change_nothing(
    module_database: str, flushes: list[list[Event]], names: int, values: int
):
    async def roll_up(connection: asyncpg.Connection) -> dict[Any, Any]:
        await connection.execute(f"TRUNCATE {TABLES}")
        await make_partitions(connection, DAYS)
        ledger, rollup = Ledger(connection), Rollup(DIMENSION_NAMES, Room(names, values))
        for events in flushes:
            await ledger.flush(events)
            await rollup.run_once(connection)
        assert await differences(connection) == []
        return await stored(connection)

    async def both() -> tuple[dict[Any, Any], dict[Any, Any]]:
        async def all_kept(*_: object) -> dict[Any, Any]:
            return {}

        async with connected(module_database) as connection:
            early = await roll_up(connection)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(buckets, "kept", all_kept)
                return early, await roll_up(connection)

    early, late = asyncio.run(both())
    assert early == late


@pytest.mark.parametrize("granularity", ["minute", "hour"])
async def test_a_value_that_has_a_row_is_counted_in_it_however_rare_it_has_become(
    connection: asyncpg.Connection, granularity: str
):
    """The room is taken when others become more frequent, in the same minute or in another one of the hour."""
    await make_partitions(connection, DAYS)
    ledger, rollup = Ledger(connection), Rollup(DIMENSION_NAMES, Room(10, 3))
    first = ["/a", "/b", "/c"]
    await ledger.flush([Event(NOW, page_path=path) for path in first])
    await rollup.run_once(connection)
    later = NOW if granularity == "minute" else NOW + timedelta(minutes=1)
    crowd = [f"/{number}" for number in range(20)] * 5
    await ledger.flush([Event(later, page_path=path) for path in [*first, *crowd]])
    await rollup.run_once(connection)
    assert await differences(connection) == []
    rows = await connection.fetch(
        "SELECT dimensions ->> 'page_path' AS path, event_count AS events FROM analytics.event_aggregations"
        " WHERE granularity = $1::text::analytics.granularity AND dimensions ? 'page_path'"
        " AND time_bucket <= $2 ORDER BY 1",
        granularity,
        NOW,
    )
    counted = {row["path"]: row["events"] for row in rows}
    assert {path: counted.get(path) for path in first} == dict.fromkeys(first, 2), counted


async def test_only_values_that_may_have_a_row_are_counted_on_their_own(connection: asyncpg.Connection):
    """Else a site whose pages are visited once each costs ten times as much."""
    await make_partitions(connection, DAYS)
    ledger, rollup = Ledger(connection), Rollup(DIMENSION_NAMES, Room(10, 5))
    written = []
    for number in range(3):
        events = [Event(NOW + timedelta(minutes=number), page_path=f"/{number}/{n}") for n in range(300)]
        await ledger.flush([*events, *events[:20]])
        cycle = await rollup.run_once(connection)
        assert cycle is not None
        written.append(cycle.buckets)
    # Minute, hour and day: their total, the others, five pages, and those five for which the hour has rows.
    assert max(written) <= 3 * (1 + 1 + 5 + 5)
    rows = Counter(key[0] for key in await stored(connection))
    assert rows["minute"] == 3 * 7
    assert rows["hour"] == rows["day"] == 7


# Pages.


@pytest.mark.long
async def test_rows_in_pages_that_an_earlier_flush_left(connection: asyncpg.Connection):
    """Whatever the distance: they are found by going back, and through the index."""
    await make_partitions(connection, DAYS)
    ledger, rollup = Ledger(connection), Rollup(DIMENSION_NAMES, Room(10, 5))
    total = 0
    for number in range(6):
        await rollup.sample(connection)
        await connection.execute("DELETE FROM analytics.events WHERE ctid < '(3,0)'::tid")
        await connection.execute("VACUUM analytics.events")
        count = 40 * 4**number
        await ledger.flush([Event(NOW, user_id=f"u{n}", page_path="x" * 250) for n in range(count)])
        cycle = await rollup.run_once(connection)
        assert cycle is not None
        assert cycle.events == count
        total += count
    assert {row[0] for key, row in (await stored(connection)).items() if key[4] == "{}"} == {total}
