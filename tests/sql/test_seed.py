"""Seed data: where it is refused, that it is deterministic, that it makes sense; the queries in docs/."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.events.values import sources, urls, user_agents
from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.databases import run_apart
from tests.support.seed import ANCHOR, INGEST, ask_file, load, rows_of
from tests.support.service import environment, lent_database

QUERIES = Path(__file__).parents[2] / "docs" / "queries"
TABLES = [
    "marketing.leads",
    "marketing.lead_interactions",
    "onboarding.sessions",
    "onboarding.step_activities",
    "analytics.events",
    "experiments.experiments",
    "experiments.assignments",
    "whatsapp.accounts",
    "whatsapp.templates",
]


async def hashes(connection: asyncpg.Connection) -> dict[str, str]:
    """A hash of all rows of each table."""
    await connection.execute("SET TimeZone = 'UTC'")
    query = (
        "SELECT coalesce(encode(sha256(string_agg(t::text, E'\\n' ORDER BY t::text)::bytea), 'hex'), '') FROM {} AS t"
    )
    return {table: await connection.fetchval(query.format(table)) for table in TABLES}


def ingest(folder: Path, *arguments: object, url: str | None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*INGEST, *map(str, arguments)],
        env=environment(url, **environ),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_refused(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ran.returncode == 1 and ran.stdout == "", ran
    assert ran.stderr.startswith("ingest: ") and len(ran.stderr.splitlines()) == 1, ran
    assert all(word in ran.stderr for word in words), ran


@pytest.fixture(scope="module")
def seeded_url(postgres, template):
    """A database with seed 1 up to ANCHOR, shared by the tests that only read it."""

    async def fill() -> None:
        connection = await connections.connect(url, purpose="tests")
        try:
            await load(connection)
        finally:
            await connection.close()

    with lent_database(postgres, template) as url:
        run_apart(fill)
        yield url


@pytest.fixture
async def seeded(seeded_url):
    opened = await connections.connect(seeded_url, purpose="tests")
    yield opened
    await opened.close()


# Where it is refused.


@pytest.mark.parametrize("setting", [None, "", "production", "staging", "Development"])
async def test_the_database_refuses_outside_development(connection: asyncpg.Connection, setting: str | None):
    if setting is not None:
        await connection.execute("SELECT set_config('app.environment', $1, false)", setting)
    current = f'"{setting}"' if setting else "not set"
    writers = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'ingest'::regnamespace AND proname ~ '^seed_'"
        " AND provolatile = 'v'"
    )
    assert len(writers) == len(TABLES)
    for name in ["load_seed_data", *(row["proname"] for row in writers)]:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=f"app.environment is {current}, not dev"):
            await connection.execute(f"SELECT ingest.{name}(1, now())")
    for table in TABLES:
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_nobody_but_the_owner_may_call_it(connection: asyncpg.Connection):
    # 0 is PUBLIC; without an acl the default would apply, which permits everybody.
    open_to = await connection.fetch(
        "SELECT proname, grantee FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))"
        " WHERE pronamespace = 'ingest'::regnamespace AND grantee <> proowner"
        " AND (proname ~ '^(load_)?seed_' OR proname IN ('is_development', 'refuse_outside_development'))"
    )
    assert open_to == []


@pytest.mark.long
async def test_migrating_loads_it_only_where_the_database_says_so(empty_database_url: str):
    connection = await connections.connect(empty_database_url, purpose="tests")
    try:
        await connection.execute("SET app.environment = 'development'")
        await migrations.migrate(connection)
        assert await connection.fetchval("SELECT count(*) FROM marketing.leads") == 6
    finally:
        await connection.close()


async def test_migrating_elsewhere_loads_nothing(connection: asyncpg.Connection):
    for table in TABLES:
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert (
        await connection.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'analytics.events'::regclass")
        == 0
    )


# Deterministic.


@pytest.mark.long
async def test_the_same_seed_gives_the_same_rows_and_another_seed_others(postgres, template, seeded):
    expected = await hashes(seeded)
    assert "" not in expected.values()
    with lent_database(postgres, template) as same, lent_database(postgres, template) as other:
        # In another session, with another time zone and other formats of numbers and times.
        one = await connections.connect(same, purpose="tests")
        two = await connections.connect(other, purpose="tests")
        try:
            await one.execute(
                "SET TimeZone = 'America/New_York'; SET DateStyle = 'German'; SET extra_float_digits = 0"
            )
            await load(one)
            await one.execute("RESET DateStyle; RESET extra_float_digits")
            assert await hashes(one) == expected
            await load(two, seed=2)
            found = await hashes(two)
            assert [table for table in TABLES if found[table] == expected[table]] == []
        finally:
            await one.close()
            await two.close()


@pytest.mark.parametrize(
    "anchor", [datetime(2026, 3, 29, 0, 0, 5, tzinfo=UTC), datetime(2027, 1, 2, 23, 59, 59, tzinfo=UTC)]
)
async def test_the_anchor_only_moves_it_in_time(connection, seeded, anchor):
    await load(connection, anchor=anchor)
    names = "SELECT id, name, session_id, page_path, country FROM analytics.events ORDER BY id"
    assert await connection.fetch(names) == await seeded.fetch(names)
    first, last = await connection.fetchrow("SELECT min(created_at), max(created_at) FROM analytics.events")
    assert anchor - timedelta(days=30) <= first < anchor - timedelta(days=28)
    assert anchor - timedelta(days=1) < last <= anchor


async def test_a_second_time_adds_nothing(connection: asyncpg.Connection):
    assert sum((await load(connection)).values()) > 2500
    before = await hashes(connection)
    for again in (await load(connection), await load(connection, 2, ANCHOR + timedelta(days=3))):
        assert again == {}
    assert await hashes(connection) == before


async def test_two_concurrent_calls_load_it_once(database_url: str, connection: asyncpg.Connection):
    other = await connections.connect(database_url, purpose="tests")
    try:
        loaded = await asyncio.gather(load(connection), load(other))
    finally:
        await other.close()
    assert sorted(len(rows) for rows in loaded) == [0, len(TABLES)]
    assert await connection.fetchval("SELECT count(*) FROM marketing.leads") == 6


# That it makes sense.


async def test_what_is_there(connection: asyncpg.Connection):
    loaded = await load(connection)
    assert list(loaded) == TABLES
    for table in TABLES:
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == loaded[table] > 0, table
    assert loaded["marketing.leads"] == 6
    assert loaded["analytics.events"] >= 2500


async def test_the_leads_are_six_stories(seeded: asyncpg.Connection):
    leads = await seeded.fetch(
        "SELECT l.*, (SELECT count(*) FROM marketing.lead_interactions AS i WHERE i.lead_id = l.id) AS interactions,"
        " (SELECT min(created_at) FROM marketing.lead_interactions AS i WHERE i.lead_id = l.id) AS first_interaction,"
        " (SELECT count(*) FROM analytics.events AS e WHERE e.user_id = l.id::text) AS events,"
        " (SELECT s.status FROM onboarding.sessions AS s WHERE s.lead_id = l.id) AS journey,"
        " (SELECT count(*) FROM whatsapp.accounts AS a JOIN whatsapp.templates AS t ON t.account_id = a.id"
        " WHERE a.lead_id = l.id) AS templates FROM marketing.leads AS l"
    )
    assert len({lead["country_code"] for lead in leads}) == 6
    assert {lead["status"] for lead in leads} == {"new", "contacted", "qualified", "converted", "lost"}
    assert len({lead["source"] for lead in leads}) >= 4
    assert all(lead["interactions"] > 0 and lead["events"] > 0 for lead in leads)
    assert all(lead["email"].endswith(".example") for lead in leads)
    assert all(lead["created_at"] <= lead["first_interaction"] <= ANCHOR for lead in leads)
    assert sorted(lead["journey"] for lead in leads) == [
        "abandoned", "completed", "completed", "in_progress", "in_progress", "not_started",
    ]  # fmt: skip
    assert {lead["status"] for lead in leads if lead["journey"] == "completed"} == {"converted"}
    assert all((lead["templates"] > 0) == (lead["status"] == "converted") for lead in leads)


async def test_only_planned_dates_are_after_the_anchor(seeded: asyncpg.Connection):
    planned = {
        ("marketing.lead_interactions", "scheduled_at"), ("experiments.experiments", "end_date"),
    }  # fmt: skip
    for table in TABLES:
        schema, name = table.split(".")
        columns = await seeded.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2"
            " AND data_type = 'timestamp with time zone'",
            schema,
            name,
        )
        assert columns
        for (column,) in columns:
            latest = await seeded.fetchval(f"SELECT max({column}) FROM {table}")
            assert latest is None or latest <= ANCHOR + timedelta(seconds=1) or (table, column) in planned, (
                table,
                column,
            )


async def test_journeys_and_their_activities_fit_together(seeded: asyncpg.Connection):
    count = "SELECT count(*) FROM onboarding.sessions AS s WHERE "
    for status in ("not_started", "in_progress", "completed", "abandoned"):
        assert await seeded.fetchval(count + "status::text = $1", status) > 0, status
    assert await seeded.fetchval(count + "(status = 'completed') <> (completed_at IS NOT NULL)") == 0
    assert await seeded.fetchval(count + "(status = 'completed') <> (current_step = 'complete')") == 0
    assert await seeded.fetchval(count + "(status = 'abandoned') <> (abandoned_at IS NOT NULL)") == 0
    assert await seeded.fetchval(count + "(status = 'not_started') <> (started_at IS NULL)") == 0
    assert await seeded.fetchval(count + "(progress_percentage = 100) <> (status = 'completed')") == 0
    assert (
        await seeded.fetchval(count + "status = 'in_progress' AND last_activity_at < $1", ANCHOR - timedelta(hours=2))
        == 0
    )
    assert (
        await seeded.fetchval(
            count + "NOT (coalesce(started_at <= business_info_completed_at, true)"
            " AND coalesce(business_info_completed_at < whatsapp_integration_completed_at, true)"
            " AND coalesce(whatsapp_integration_completed_at < bot_setup_completed_at, true)"
            " AND coalesce(bot_setup_completed_at < testing_completed_at, true)"
            " AND created_at <= last_activity_at AND coalesce(completed_at <= last_activity_at, true))"
        )
        == 0
    )
    outside = (
        "SELECT count(*) FROM onboarding.step_activities AS a JOIN onboarding.sessions AS s ON s.id = a.session_id"
    )
    assert await seeded.fetchval(f"{outside} WHERE a.created_at NOT BETWEEN s.started_at AND s.last_activity_at") == 0
    started = (
        count
        + "started_at IS NOT NULL AND NOT EXISTS (SELECT FROM onboarding.step_activities WHERE session_id = s.id)"
    )
    assert await seeded.fetchval(started) == 0
    kinds = await seeded.fetch("SELECT DISTINCT activity_type FROM onboarding.step_activities ORDER BY 1")
    assert [kind for (kind,) in kinds] == ["field_filled", "form_started", "step_completed", "validation_error"]
    # The events and the table agree.
    finished = await seeded.fetchval("SELECT count(*) FROM analytics.events WHERE name = 'onboarding_step_completed'")
    assert finished == await seeded.fetchval(
        "SELECT count(*) FROM onboarding.step_activities WHERE activity_type = 'step_completed'"
    )


async def test_people_sleep_at_night_and_work_in_the_week(seeded: asyncpg.Connection):
    hours = dict(
        await seeded.fetch(
            "SELECT extract(hour FROM created_at AT TIME ZONE (context ->> 'timezone'))::int, count(*)"
            " FROM analytics.events WHERE device_type <> 'bot' GROUP BY 1"
        )
    )
    night, day = (sum(hours.get(hour, 0) for hour in which) for which in (range(6), range(9, 21)))
    # An hour at night against an hour of the day.
    assert night / 6 < day / 12 / 3
    in_utc = dict(
        await seeded.fetch("SELECT extract(hour FROM created_at)::int, count(*) FROM analytics.events GROUP BY 1")
    )
    assert len(in_utc) == 24 and max(in_utc.values()) > 3 * min(in_utc.values())
    days = await seeded.fetch(
        "SELECT created_at::date AS day, count(*) AS events FROM analytics.events"
        " WHERE device_type <> 'bot' GROUP BY 1 ORDER BY 1"
    )
    # Whole days only.
    whole = [(row["day"], row["events"]) for row in days][1:-1]
    assert len(whole) >= 28 and min(events for _, events in whole) > 20
    workdays = [events for day, events in whole if day.isoweekday() <= 5]
    weekend = [events for day, events in whole if day.isoweekday() > 5]
    assert sum(weekend) / len(weekend) < 0.8 * sum(workdays) / len(workdays)


async def test_sources_countries_and_devices_are_varied(seeded: asyncpg.Connection):
    async def distinct(column: str, where: str = "true") -> dict[str, int]:
        return dict(
            await seeded.fetch(
                f"SELECT {column}, count(DISTINCT anonymous_id) FROM analytics.events WHERE {where}"
                f" GROUP BY 1 HAVING {column} IS NOT NULL"
            )
        )

    assert set(await distinct("type")) == {"page_view", "user_action", "conversion", "system"}
    assert {"desktop", "mobile", "tablet", "bot"} == set(await distinct("device_type"))
    assert len(await distinct("country")) >= 8
    assert len(await distinct("page_path")) >= 8
    assert len(await distinct("browser")) >= 6
    assert {"google", "newsletter", "instagram"} <= set(await distinct("utm_source"))
    assert {"cpc", "email", "paid_social"} == set(await distinct("utm_medium"))
    bots = (await distinct("device_type"))["bot"]
    assert bots == 60 and set(await distinct("type", "device_type = 'bot'")) == {"page_view"}
    bounced = await seeded.fetchval(
        "SELECT count(*) FROM (SELECT anonymous_id FROM analytics.events WHERE device_type <> 'bot'"
        " GROUP BY anonymous_id HAVING count(*) = 1) AS visitors"
    )
    assert 300 < bounced < 700
    returning = await seeded.fetchval(
        "SELECT count(*) FROM (SELECT FROM analytics.events GROUP BY anonymous_id"
        " HAVING count(DISTINCT session_id) > 1) AS visitors"
    )
    assert returning > 50


async def test_the_columns_are_those_that_the_collector_would_derive(seeded: asyncpg.Connection):
    rows = await seeded.fetch(
        "SELECT DISTINCT url, referrer, user_agent, page_host, page_path, utm_source, utm_medium, utm_campaign,"
        " referrer_host, source, device_type::text, browser, os FROM analytics.events"
    )
    for row in rows:
        page = urls.describe_page(row["url"]) if row["url"] else urls.NO_PAGE
        assert page[:5] == tuple(
            row[name] for name in ("page_host", "page_path", "utm_source", "utm_medium", "utm_campaign")
        )
        came_from = urls.referrer_host(row["referrer"]) if row["referrer"] else None
        assert row["referrer_host"] == came_from
        assert row["source"] == sources.source_of(page[2], page.hint, row["referrer"], came_from, page.host)
        assert user_agents.describe_user_agent(row["user_agent"]) == (row["device_type"], row["browser"], row["os"])
    assert await seeded.fetchval("SELECT count(*) FROM analytics.events WHERE batch_id IS NOT NULL") == 0
    assert await seeded.fetchval("SELECT count(*) FROM analytics.events WHERE received_at < created_at") == 0


async def test_each_visitor_goes_down_the_funnel_in_order(seeded: asyncpg.Connection):
    stages = ["signup_started", "signup_completed", "lead_submitted", "onboarding_started", "subscription_started"]
    skipped = (
        "SELECT count(*) FROM analytics.events AS later WHERE name = $2 AND NOT EXISTS ("
        "SELECT FROM analytics.events AS earlier WHERE earlier.anonymous_id = later.anonymous_id"
        " AND earlier.name = $1 AND earlier.created_at < later.created_at)"
    )
    for earlier, later in pairwise(["page_view", *stages]):
        assert await seeded.fetchval("SELECT count(*) FROM analytics.events WHERE name = $1", later) > 10
        assert await seeded.fetchval(skipped, earlier, later) == 0, (earlier, later)


async def test_assignments_are_to_a_variant_of_a_running_experiment(seeded: asyncpg.Connection):
    found = await seeded.fetch(
        "SELECT e.name, e.status, count(*) AS units, count(first_exposure_at) AS exposed,"
        " bool_and(a.variant_id = ANY (experiments.variant_ids(control_variant, test_variants))) AS known,"
        " bool_and(a.assigned_at BETWEEN start_date AND end_date) AS in_time"
        " FROM experiments.experiments AS e JOIN experiments.assignments AS a ON a.experiment_id = e.id GROUP BY e.id"
    )
    assert sorted(row["name"] for row in found) == ["onboarding_checklist", "pricing_page_layout"]
    assert all(row["status"] == "running" and row["known"] and row["in_time"] for row in found)
    assert all(0 < row["exposed"] <= row["units"] for row in found)
    # Not everybody assigned is exposed; and exposures have events.
    assert any(row["exposed"] < row["units"] for row in found)
    seen = await seeded.fetchval("SELECT count(*) FROM analytics.events WHERE name = 'experiment_viewed'")
    assert seen == sum(row["exposed"] for row in found)


# The command.


async def test_ingest_seed_loads_once_and_lists_the_rows(
    tmp_path: Path, database_url: str, connection: asyncpg.Connection
):
    first = ingest(tmp_path, "seed", "--environment", "development", url=database_url)
    assert (first.returncode, first.stderr) == (0, ""), first
    printed = {name: int(count) for count, name in (line.split() for line in first.stdout.splitlines())}
    assert list(printed) == TABLES
    for table, rows in printed.items():
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == rows
    assert await connection.fetchval("SELECT max(created_at) > now() - interval '1 day' FROM analytics.events")
    again = ingest(tmp_path, "seed", url=database_url, INGEST_ENVIRONMENT="test")
    assert (again.returncode, again.stdout, again.stderr) == (
        0, "nothing to do: the seed data is already loaded\n", "",
    )  # fmt: skip


async def test_ingest_seed_takes_seed_and_anchor(tmp_path: Path, database_url: str, connection, seeded):
    words = ["--environment", "local", "--seed", "1", "--anchor", "2026-03-11T15:30Z"]
    ran = ingest(tmp_path, "seed", *words, url=database_url)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert await hashes(connection) == await hashes(seeded)


async def test_ingest_seed_refuses(tmp_path: Path, database_url: str, empty_database_url: str, connection):
    check_refused(ingest(tmp_path, "seed", url=database_url), "for development", "--environment development")
    check_refused(ingest(tmp_path, "seed", url=database_url, INGEST_ENVIRONMENT="staging"), '"staging"')
    check_refused(ingest(tmp_path, "seed", "--environment", "production", url=database_url), '"production"')
    check_refused(ingest(tmp_path, "seed", "--environment", "prod", url=database_url), "environment", "'prod'")
    check_refused(ingest(tmp_path, "seed", "--anchor", "soon", url=database_url), "--anchor", "2026-01-31")
    check_refused(ingest(tmp_path, "seed", "--seed", "4294967296", url=database_url), "--seed", "2147483647")
    check_refused(ingest(tmp_path, "seed", "--sede", "1", url=database_url), "did you mean --seed?")
    check_refused(ingest(tmp_path, "seed", url=None), "no database yet")
    words = ("--environment", "test")
    check_refused(
        ingest(tmp_path, "seed", *words, url=empty_database_url), "older than this release", "ingest migrate"
    )
    # The database's own setting takes precedence, both ways.
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET app.environment = 'production'")
    check_refused(ingest(tmp_path, "seed", *words, url=database_url), "app.environment", '"production"')
    assert await connection.fetchval("SELECT count(*) FROM marketing.leads") == 0
    await connection.execute(f"ALTER DATABASE {name} SET app.environment = 'development'")
    assert ingest(tmp_path, "seed", url=database_url).returncode == 0
    assert await connection.fetchval("SELECT count(*) FROM marketing.leads") == 6


def test_ingest_seed_on_the_embedded_database(tmp_path: Path, new_folder):
    folder = new_folder() / "data"
    where = ("--data-dir", folder)
    assert ingest(tmp_path, "migrate", *where, url=None).returncode == 0
    check_refused(ingest(tmp_path, "seed", *where, url=None, INGEST_ENVIRONMENT="production"), '"production"')
    ran = ingest(tmp_path, "seed", *where, url=None)
    assert (ran.returncode, ran.stderr) == (0, "") and "6  marketing.leads\n" in ran.stdout, ran
    assert not EmbeddedPostgres(folder / "postgres").is_running()


# The queries of docs/queries.


async def test_the_questions_have_sensible_answers(tmp_path: Path, database_url: str, connection: asyncpg.Connection):
    ran = ingest(tmp_path, "seed", url=database_url, INGEST_ENVIRONMENT="test")
    assert (ran.returncode, ran.stderr) == (0, "") and "6  marketing.leads\n" in ran.stdout, ran
    # The worker of `make run` does this within seconds: it links browsers to people.
    await connection.execute("SELECT process_pending_events()")
    assert await Rollup(DIMENSION_NAMES, Room(names=1000, values=100)).run_once(connection) is not None
    asked = ("funnel", "onboarding", "sources", "experiment")
    tables = {name: rows_of(ask_file(QUERIES / f"{name}.sql", database_url)) for name in asked}

    funnel = tables["funnel"]
    assert [row[0] for row in funnel] == ["visit", "prices", "signup", "lead", "onboarding", "conversion"]
    people = [int(row[1]) for row in funnel]
    assert people[0] == 1000 and people[-1] > 10 and people == sorted(set(people), reverse=True)
    assert [float(row[2]) for row in funnel] == [round(100 * count / 1000, 1) for count in people]
    assert funnel[0][3] == "" and all(10 < float(row[3]) < 95 for row in funnel[1:])

    steps = tables["onboarding"]
    assert [row[0][0] for row in steps] == list("1234")
    # A lead whose session was created for them, and who did nothing in it, is lost at the first step.
    idle = await connection.fetchval("SELECT count(*) FROM onboarding.sessions WHERE status = 'not_started'")
    assert idle > 0 and int(steps[0][1]) == people[4] + idle
    for step, following in pairwise(steps):
        assert step[2] == following[1]
    assert max(steps, key=lambda row: float(row[3]))[0] == "2 whatsapp integration"
    assert all(0 < float(row[3]) < 50 and 3 <= float(row[4]) <= 10 for row in steps)

    sources = tables["sources"]
    channels = {"google", "direct", "newsletter", "linkedin", "facebook", "instagram", "partners.example"}
    assert channels == {row[0] for row in sources}
    assert sum(int(row[1]) for row in sources) == 1000
    assert sum(int(row[2]) for row in sources) == people[-1]
    assert sum(int(row[4]) for row in sources) > 29 * people[-1]
    rates = {row[0]: float(row[3]) for row in sources}
    assert rates["newsletter"] > rates["facebook"]

    better, control = tables["experiment"]
    assert (better[1], control[1]) == ("annual_first", "control")
    assert int(better[2]) + int(control[2]) == people[1] and int(better[3]) + int(control[3]) == people[2]
    assert float(better[4]) > float(control[4]) + 10
