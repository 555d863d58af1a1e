"""The page Onboarding of a real worker: the numbers of the API, where people stumble, sessions; for admins only."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from tests.dashboard.test_funnels import HOSTILE, page, signed_in, words
from tests.support import seed
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key

NOW = datetime.now(UTC)
ADMINS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


@pytest.fixture
async def admin(client: Client) -> Viewer:
    return await signed_in(client, ADMIN)


async def rows(viewer: Viewer, panel: str, **query: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(await page(viewer, f"/panels/{panel}.csv", **query))))


async def funnel(client: Client, start: datetime, end: datetime) -> Mapping[str, Any]:
    query = f"from={quote(start.isoformat())}&to={quote(end.isoformat())}"
    found: Mapping[str, Any] = (await client.get(f"/v1/onboarding/funnel?{query}", **ADMINS)).json()
    return found


async def test_numbers_are_those_of_the_sessions(admin: Viewer, client: Client, connection: asyncpg.Connection):
    await seed.load(connection, anchor=NOW)
    first, last = (NOW - timedelta(days=14)).date(), (NOW - timedelta(days=5)).date()
    zone = "+05:30"
    start, end = (datetime.fromisoformat(f"{day}T00:00:00{zone}") for day in (first, last + timedelta(days=1)))
    query = {"period": "custom", "from": str(first), "to": str(last), "timezone": "Asia/Kolkata"}
    now = await funnel(client, start, end)
    before = await funnel(client, start - (end - start), start)
    assert now["sessions"] > now["completed"] > 0 and before["sessions"] > 0
    found = await rows(admin, "onboarding", **query)
    names = {"Reached": "reached", "Completed": "completed", "Dropped": "dropped", "Abandoned": "abandoned"}
    assert [{name: row[name] for name in names} for row in found] == [
        {name: str(step[field]) for name, field in names.items()} for step in now["steps"]
    ]
    for row, step, old in zip(found, now["steps"], before["steps"], strict=True):
        assert float(row["Drop-off rate"]) == step["drop_off_rate"]
        assert float(row["Drop-off rate before"]) == old["drop_off_rate"]
        assert float(row["Median seconds"]) == step["median_seconds"]
        assert float(row["95th percentile seconds"]) == step["p95_seconds"]
    text = words(await page(admin, "/onboarding", **query))
    assert f"Started {now['sessions']} " in text and f"Completed {now['completed']} " in text
    assert "than before" in text
    assert "than before" not in words(await page(admin, "/onboarding", **query, compare="no"))
    errors = await connection.fetch(
        "SELECT step::text AS step, field_name, count(*) AS errors FROM onboarding.step_activities"
        " WHERE activity_type = 'validation_error' AND created_at >= $1 AND created_at < $2"
        " GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        start,
        end,
    )
    shown_errors = await rows(admin, "onboarding-errors", **query)
    stumbled = [(row["Step"], row["Field"], int(row["Errors"])) for row in shown_errors]
    assert sorted(stumbled) == sorted((row["step"], row["field_name"], row["errors"]) for row in errors) != []
    assert [count for *_, count in stumbled] == sorted([count for *_, count in stumbled], reverse=True)
    sessions = await connection.fetch(
        "SELECT id, status::text, lead_id, session_token FROM onboarding.sessions"
        " WHERE created_at >= $1 AND created_at < $2 ORDER BY created_at DESC, id DESC",
        start,
        end,
    )
    listed = await rows(admin, "onboarding-sessions", **query)
    assert [(row["Session"], row["State"]) for row in listed] == [(str(row["id"]), row["status"]) for row in sessions]
    shown = await page(admin, "/onboarding", **query)
    leads = [row["lead_id"] for row in sessions[:20] if row["lead_id"]]
    assert leads and all(f'href="/leads/{lead}"' in shown for lead in leads)
    assert "sess_" not in shown and not [row for row in sessions if row["session_token"] in shown]


async def test_nothing_yet(admin: Viewer):
    text = words(await page(admin, "/onboarding"))
    for said in (
        "No onboarding began in this range",
        "POST /v1/onboarding/sessions",
        "No errors",
        "No session began",
    ):
        assert said in text
    # A page whose own parameters are called like the API's.
    assert "No onboarding began" in words(
        await page(admin, "/onboarding", **{"period": "custom", "from": "2026-01-01", "to": "2026-01-02"})
    )
    assert len(await rows(admin, "onboarding", period="today")) == 4


async def test_only_admins(client: Client, database_url: str):
    assert (await client.post({}, "/v1/onboarding/sessions")).status == 201
    assert (await Viewer(client).get("/onboarding")).headers["Location"].startswith("/sign-in")
    analyst = await signed_in(client, await new_key(database_url, "read"))
    panels = [f"/panels/onboarding{name}{form}" for name in ("", "-errors", "-sessions") for form in ("", ".csv")]
    for path in ("/onboarding", *panels):
        answer = await analyst.get(path)
        assert answer.status == 403, path
        assert "business_info" not in answer.body.decode()
    assert "Onboarding" not in words(await page(analyst, "/funnels"))


async def test_texts_stay_texts(admin: Viewer, client: Client, connection: asyncpg.Connection):
    session = (await client.post({}, "/v1/onboarding/sessions")).json()
    for text in HOSTILE:
        await connection.execute(
            "INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, error_message)"
            " SELECT id, 'business_info', 'validation_error', $1, $2 FROM onboarding.sessions",
            text[:100],
            text + "=" + "y" * 1500,
        )
    shown = await page(admin, "/onboarding")
    assert session["session_token"] not in shown
    assert "<script>alert" not in shown and "<img" not in shown and 'href="javascript' not in shown
    assert "y" * 501 not in shown and len(await rows(admin, "onboarding-errors")) == len(HOSTILE)
