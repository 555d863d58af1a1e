"""`ingest rollup rebuild`, `ingest rollup verify` and `ingest maintenance`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from ingest.service.maintenance import TASKS
from tests.support.aggregates import Event, Ledger, insert, make_partitions
from tests.support.commands import check_refused


async def test_aggregates_are_compared_and_rebuilt(ingest, database_url, connection):
    moment = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(days=1)
    await make_partitions(connection, [moment.date()])
    await Ledger(connection).flush([Event(moment, user_id="ada"), Event(moment, user_id="bob")])
    await Rollup(DIMENSION_NAMES, Room(100, 100)).run_once(connection)
    range_ = ("--from", moment.date(), "--to", moment.date() + timedelta(days=1))
    assert ingest("rollup", "verify", *range_, url=database_url).out == "25 hours and days compared, 0 differences\n"

    await connection.execute("UPDATE analytics.event_aggregations SET event_count = 5 WHERE granularity = 'hour'")
    found = ingest("rollup", "verify", *range_, url=database_url)
    hour = f"hour {moment:%Y-%m-%d %H}:00 user_action 'ping'"
    assert f"{hour}: stored 5 events, 2 users, 2 sessions, expected 2 events, 2 users, 2 sessions\n" in found.out
    assert found.out.endswith("25 hours and days compared, 2 differences: see `ingest rollup rebuild`\n")
    assert (found.code, found.err) == (1, "")

    made = ingest("rollup", "rebuild", *range_, url=database_url)
    assert (made.code, made.out, made.err) == (0, "24 hours rebuilt\n", "")
    assert ingest("rollup", "verify", *range_, url=database_url).code == 0
    none = ingest("rollup", "rebuild", "--from", "2020-01-01", "--to", "2020-02-01", url=database_url)
    assert none.out == "nothing to do: there are no events in that range\n"


async def test_scheduled_tasks_are_listed_and_run_by_hand(ingest, database_url, connection):
    listed = ingest("maintenance", "--list")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split()[0] for line in listed.out.splitlines()] == [task.name for task in TASKS]
    assert "retention            every 1 h" in listed.out

    await make_partitions(connection, [datetime.now(UTC).date()])
    await insert(connection, [Event(datetime.now(UTC))])
    assert ingest("maintenance", "--run", "pending-events", url=database_url).out == "1 events adopted\n"
    assert ingest("maintenance", "--run", "pending-events", url=database_url).out == "nothing to do\n"
    await connection.execute("DROP FUNCTION public.abandon_inactive_sessions")
    failed = ingest("maintenance", "--run", "abandoned-sessions", url=database_url)
    check_refused(failed, "abandon_inactive_sessions() does not exist")
