"""Entry pages equal SQL on events, whatever the KPI session_entries has of a range, or are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.dashboard.rankings import ENTRY_PAGE, Ranking, ranking
from ingest.dashboard.view import View
from ingest.features.stats.query import OTHER, Refused, Value
from tests.dashboard.test_rankings import entries_by_sql
from tests.dashboard.world import CROWDED, NOW, compute, view_of

pytestmark = pytest.mark.long

LONGEST = "period=custom&from=2025-02-27&to=2025-04-10"
FORTNIGHT = "period=custom&from=2025-03-15&to=2025-03-30"
NOTED = (
    "INSERT INTO analytics.stale_metrics (source, granularity, time_window_start)"
    " SELECT DISTINCT 'events', granularity, time_window_start FROM {} ON CONFLICT DO NOTHING"
)


@pytest.fixture
async def changing(plain: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection in a transaction that is rolled back."""
    transaction = plain.transaction()
    await transaction.start()
    yield plain
    await transaction.rollback()


async def lose_events(connection: asyncpg.Connection) -> None:
    """As if they were deleted; then nothing waits for being computed from them."""
    await connection.execute("SET LOCAL app.retention_events = '1 day'")
    await connection.execute("DELETE FROM analytics.stale_metrics")


async def entries(connection: asyncpg.Connection, view: View, limit: int = 1000) -> Ranking:
    return await ranking(connection, view, ENTRY_PAGE, DIMENSION_NAMES, NOW, limit)


async def check(connection: asyncpg.Connection, view: View) -> Ranking:
    """Whether each page has its true number; in the range of the crowd, those that are told apart."""
    true = {row["value"]: row["number"] for row in await entries_by_sql(connection, view)}
    found = await entries(connection, view)
    numbers: dict[Value, int] = {row.value: row.number for row in found.rows}
    other = numbers.pop(OTHER, 0)
    assert true and sum(true.values()) == found.total == sum(numbers.values()) + other
    for value, number in numbers.items():
        assert number == true[value] or (other and number < true[value]), value
    untold = [number for value, number in true.items() if value not in numbers]
    assert sum(untold) <= other
    return found


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Europe/Berlin", "America/St_Johns"])
@pytest.mark.parametrize("query", ["period=today", "period=7d", "period=30d", FORTNIGHT, LONGEST])
async def test_any_range_in_any_zone(changing: asyncpg.Connection, query: str, zone: str):
    view = view_of(f"{query}&timezone={zone}")
    found = await check(changing, view)
    # Also of today, the first hours are settled.
    assert found.source == "aggregates" and all(row.visitors is None for row in found.rows)
    assert not found.shifted
    if query != LONGEST and view.start > NOW - timedelta(days=28):
        assert not found.at_least


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
async def test_of_more_than_a_hundred_pages_in_an_hour_the_rest_are_others(changing: asyncpg.Connection, zone: str):
    await compute(changing)
    view = view_of(f"period=custom&from={CROWDED:%Y-%m-%d}&to={CROWDED:%Y-%m-%d}&timezone={zone}")
    found = await check(changing, view)
    *rows, other = found.rows
    assert other.value is OTHER and other.number >= 30 and other.visitors is None and found.at_least
    assert sum(str(row.value).startswith("/page/") for row in rows) <= 100 <= len(rows)
    # A day has no more than an hour may have; from hours, each has its own.
    assert (len(rows) == 100) == (zone == "UTC")
    first = await ranking(changing, view, ENTRY_PAGE, DIMENSION_NAMES, NOW, 60)
    assert first.rows == [*rows[:60], other] and first.after is not None
    second = await ranking(changing, view, ENTRY_PAGE, DIMENSION_NAMES, NOW, 60, first.after)
    assert second.rows == rows[60:] and (second.total, second.after) == (found.total, None)
    beyond = await ranking(changing, view, ENTRY_PAGE, DIMENSION_NAMES, NOW, 60, (0, "", True))
    assert beyond.rows == [] and beyond.total == found.total


async def test_whole_days_are_read_from_their_rows_unless_these_are_behind(changing: asyncpg.Connection):
    view = view_of(f"{FORTNIGHT}&timezone=Asia/Kolkata")
    await compute(changing)
    right = await check(changing, view)
    await changing.execute(
        "UPDATE analytics.metrics SET value_numeric = value_numeric + 1000 WHERE name = 'session_entries'"
        " AND granularity = 'day' AND dimensions ->> 'page_path' = '/'"
    )
    wrong = await entries(changing, view)
    # All but the first and the last day, which are not whole days of UTC.
    assert wrong.rows[0].value == "/" and wrong.rows[0].number == right.rows[0].number + 15_000
    # Any of these, and hours are read instead of the days.
    for behind in (
        NOTED.format("analytics.metrics WHERE name = 'session_entries' AND granularity = 'day'"),
        "UPDATE analytics.metrics SET timestamp = timestamp + interval '1 s' WHERE granularity = 'hour'",
        "UPDATE analytics.metrics SET value_numeric = value_numeric - 1"
        " WHERE name = 'session_entries' AND granularity = 'day' AND dimensions = '{}'",
        "DELETE FROM analytics.metrics WHERE name = 'session_entries' AND granularity = 'day'",
    ):
        async with changing.transaction():
            await changing.execute("SAVEPOINT before")
            await changing.execute(behind)
            assert (await entries(changing, view)).rows == right.rows, behind
            await changing.execute("ROLLBACK TO before")


async def test_one_noted_hour_is_read_from_events_and_its_day_by_hours(changing: asyncpg.Connection):
    view = view_of("period=custom&from=2025-03-20&to=2025-03-20")
    await compute(changing)
    right = await check(changing, view)
    # At nine, eighteen and twenty-two there are sessions.
    await changing.execute(
        "UPDATE analytics.metrics SET value_numeric = value_numeric + 1000 WHERE name = 'session_entries'"
        " AND dimensions ->> 'page_path' = '/'"
        " AND (granularity = 'day' OR date_part('hour', time_window_start AT TIME ZONE 'UTC') = 9)"
    )
    assert (await entries(changing, view)).rows[0].number == right.rows[0].number + 1000
    await changing.execute(
        "INSERT INTO analytics.stale_metrics (source, granularity, time_window_start)"
        " VALUES ('events', 'hour', '2025-03-20T09:00Z')"
    )
    assert (await entries(changing, view)).rows == right.rows
    await check(changing, view)


@pytest.mark.parametrize("until", ["infinity", "2025-03-22", "2025-03-28"])
async def test_hours_that_wait_to_be_computed_are_read_from_events(changing: asyncpg.Connection, until: str):
    """As after an import: they are noted, and the KPIs have none of them, or the latest."""
    view = view_of(FORTNIGHT)
    right = await check(changing, view)
    await changing.execute(
        "WITH gone AS (DELETE FROM analytics.metrics WHERE granularity IN ('hour', 'day')"
        f" AND time_window_start < '{until}' RETURNING granularity, time_window_start) {NOTED.format('gone')}"
    )
    found = await check(changing, view)
    assert [(row.value, row.number) for row in found.rows] == [(row.value, row.number) for row in right.rows]
    assert found.source == ("events" if until == "infinity" else "aggregates")


@pytest.mark.parametrize("granularities", ["hour", "hour,day"])
async def test_hours_of_before_the_kpi_are_read_from_events(changing: asyncpg.Connection, granularities: str):
    """As after an upgrade: the other KPIs have them, and nothing is noted."""
    await changing.execute(
        "DELETE FROM analytics.metrics WHERE name = 'session_entries' AND time_window_start < '2025-03-25'"
        f" AND granularity = ANY ('{{{granularities}}}')"
    )
    await check(changing, view_of(FORTNIGHT))
    await check(changing, view_of("period=30d&timezone=Asia/Kolkata"))
    await changing.execute(
        NOTED.format(
            "(SELECT 'hour'::analytics.granularity AS granularity, time_window_start"
            " FROM generate_series('2025-02-27Z', '2025-04-05Z'::timestamptz, '1 h') AS time_window_start) AS hours"
        )
    )
    with pytest.raises(Refused, match="read from events, which is possible for at most 31 days"):
        await entries(changing, view_of(LONGEST))


async def test_without_events_hours_are_as_they_are(changing: asyncpg.Connection):
    """A month ago, and in a zone with half an hour; noted hours, too."""
    view = view_of("period=custom&from=2025-03-14&to=2025-03-20&timezone=Asia/Kolkata")
    await compute(changing)
    expected = await check(changing, view_of("period=custom&from=2025-03-14&to=2025-03-20"))
    await lose_events(changing)
    found = await entries(changing, view)
    assert found.shifted and found.source == "aggregates" and found.total > 0
    await changing.execute(NOTED.format("analytics.metrics WHERE name = 'session_entries'"))
    assert (await entries(changing, view)).rows == found.rows
    utc = await entries(changing, view_of("period=custom&from=2025-03-14&to=2025-03-20"))
    assert utc.rows == expected.rows and not utc.shifted


@pytest.mark.parametrize(
    "lost",
    [
        # Never computed, and the other KPIs were.
        "DELETE FROM analytics.metrics WHERE name = 'session_entries' AND time_window_start = '2025-03-16T22:00Z'",
        # Never computed, but noted.
        "WITH gone AS (DELETE FROM analytics.metrics WHERE time_window_start = '2025-03-16T22:00Z'"
        f" AND granularity = 'hour' RETURNING granularity, time_window_start) {NOTED.format('gone')}",
        # Never computed: no hour was.
        "DELETE FROM analytics.metrics WHERE granularity = 'hour' AND time_window_start > '2025-03-16T21:00Z'",
    ],
)
async def test_an_hour_without_figures_and_events_is_not_left_out_in_silence(changing: asyncpg.Connection, lost: str):
    await lose_events(changing)
    await changing.execute(lost)
    with pytest.raises(Refused, match="entry pages are known from 2025-0"):
        await entries(changing, view_of("period=custom&from=2025-03-14&to=2025-03-20&timezone=Asia/Kolkata"))
    before = await entries(changing, view_of("period=custom&from=2025-03-14&to=2025-03-15"))
    assert before.total > 0 and before.source == "aggregates"


async def test_figures_of_before_their_retention_are_not_relied_on(changing: asyncpg.Connection):
    view = view_of(FORTNIGHT)
    right = await entries(changing, view)
    await changing.execute(
        "SELECT set_config('app.retention_metrics', (now() - '2025-03-20T12:30Z'::timestamptz)::text, true)"
    )
    # Deleted up to some hour, while the day that has it is there.
    await changing.execute("DELETE FROM analytics.metrics WHERE time_window_end < '2025-03-20T12:30Z'")
    assert [row[:2] for row in (await entries(changing, view)).rows] == [row[:2] for row in right.rows]
    await lose_events(changing)
    with pytest.raises(Refused, match="entry pages are known from 2025-03-21 on"):
        await entries(changing, view)
    later = await entries(changing, view_of("period=custom&from=2025-03-21&to=2025-03-30"))
    assert later.total > 0 and later.source == "aggregates"


async def test_a_range_that_began_before_everything_is_what_there_is(changing: asyncpg.Connection):
    """Nothing is missing where there was nothing."""
    await lose_events(changing)
    longer = await entries(changing, view_of("period=custom&from=2024-03-10&to=2025-04-09"))
    assert longer.total == (await entries(changing, view_of("period=custom&from=2025-02-27&to=2025-04-09"))).total > 0


async def test_pages_that_were_erased_are_among_the_others(changing: asyncpg.Connection):
    """gdpr_delete_user_data() deletes rows that name a person."""
    view = view_of("period=custom&from=2025-03-20&to=2025-03-20")
    right = await entries(changing, view)
    await changing.execute(
        "DELETE FROM analytics.metrics WHERE name = 'session_entries' AND dimensions ->> 'page_path' = '/pricing'"
    )
    found = await entries(changing, view)
    (gone,) = [row.number for row in right.rows if row.value == "/pricing"]
    assert found.total == right.total and found.rows[-1][:2] == (OTHER, gone)
