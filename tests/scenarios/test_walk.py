"""One visitor's path through real HTTP, from the first page to the first payment, and where it shows up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from cryptography.fernet import Fernet

from ingest.base.config import DIMENSION_NAMES
from ingest.rollup import kpis
from ingest.rollup.buckets import Room
from ingest.rollup.rollup import Rollup
from tests.support.collector import Client, Start

KEY = "an admin key for these tests"
ADMIN = {"Authorization": f"Bearer {KEY}"}
VISIT = {"anonymous_id": "visitor-1", "session_id": "visit-1"}
EMAIL = "ada@example.com"
STEPS: dict[str, dict[str, Any]] = {
    "business_info": {
        "company_name": "Analytical Engines", "contact_name": "Ada Lovelace", "email": EMAIL, "country": "GB",
    },
    "whatsapp_integration": {
        "business_account_id": "102290129340398", "phone_number_id": "106540352242922",
        "phone_number": "+44 20 7946 0958", "access_token": "EAAGm0PX4ZCpsBAKZC",
    },
    "bot_setup": {"bot_name": "Charles", "language": "en", "greeting": "Hello!"},
    "testing": {"confirmed": True},
}  # fmt: skip
NAMES = [
    "page_view", "page_view", "experiment_exposure", "lead_created", "onboarding_started",
    "onboarding_step_completed", "onboarding_step_completed", "onboarding_step_completed",
    "onboarding_step_completed", "onboarding_completed", "subscription_started",
    "lead_status_changed", "lead_status_changed",
]  # fmt: skip
"""The events of the walk."""


class Walk:
    """Sends requests whose answers must have the expected status."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, method: str, path: str, body: Any, status: int, **headers: str) -> Any:
        answer = await self.client.request(method, path, body, **{"Content-Type": "application/json", **headers})
        assert answer.status == status, (method, path, answer)
        return answer.json()


@pytest.fixture
async def walked(start: Start) -> Client:
    client = await start(admin_keys=[KEY], encryption_keys=[Fernet.generate_key().decode()])
    walk = Walk(client)
    new = {"name": "headline", "test_variants": [{"id": "bold", "payload": "Answer while you sleep"}]}
    experiment = await walk("POST", "/v1/experiments", new, 201, **ADMIN)
    await walk("POST", f"/v1/experiments/{experiment['id']}/start", None, 200, **ADMIN)

    for page in ("/", "/pricing"):
        view = {**VISIT, "name": "page_view", "type": "page_view", "url": f"https://shop.example{page}"}
        await walk("POST", "/v1/events", view, 200)
    unit = {"session_id": VISIT["session_id"]}
    given = await walk("POST", "/v1/experiments/assignments", unit, 200)
    shown = {**VISIT, "experiment": "headline", "variant": given["assignments"]["headline"]["variant_id"]}
    await walk("POST", "/v1/experiments/exposures", shown, 200)

    lead = await walk("POST", "/v1/leads", {**VISIT, "email": EMAIL, "source": "demo-request"}, 201)
    session = await walk("POST", "/v1/onboarding/sessions", VISIT, 201)
    token = {"X-Session-Token": session["session_token"]}
    for step, entered in STEPS.items():
        session = await walk("PUT", f"/v1/onboarding/session/steps/{step}", entered, 200, **token)
    assert (session["status"], session["progress_percentage"]) == ("completed", 100)

    await walk("POST", "/v1/events", {**VISIT, "name": "subscription_started", "type": "conversion"}, 200)
    for status in ("contacted", "converted"):
        await walk("PATCH", f"/v1/leads/{lead['id']}", {"status": status}, 200, **ADMIN)
    await client.settled()
    return client


async def test_it_shows_up_in_every_table(walked: Client, connection: asyncpg.Connection):
    lead = await connection.fetchrow("SELECT * FROM marketing.leads")
    assert (lead["email"], lead["status"], lead["source"]) == (EMAIL, "converted", "demo-request")
    session = await connection.fetchrow("SELECT * FROM onboarding.sessions")
    assert (session["status"], session["lead_id"]) == ("completed", lead["id"])
    assert "Analytical Engines" in session["business_data"]
    activities = await connection.fetch(
        "SELECT step::text, activity_type FROM onboarding.step_activities ORDER BY created_at"
    )
    assert [tuple(row) for row in activities] == [(step, "step_completed") for step in STEPS]
    account = await connection.fetchrow("SELECT * FROM whatsapp.accounts")
    assert (account["lead_id"], account["phone_number"]) == (lead["id"], "+442079460958")
    assert STEPS["whatsapp_integration"]["access_token"].encode() not in account["access_token_encrypted"]
    assignment = await connection.fetchrow("SELECT * FROM experiments.assignments")
    assert (assignment["session_id"], assignment["exposure_count"]) == ("visit-1", 1)
    events = await connection.fetch("SELECT name, session_id, anonymous_id FROM analytics.events")
    assert sorted(row["name"] for row in events) == sorted(NAMES)
    of_visit = [row for row in events if row["session_id"] == "visit-1" and row["anonymous_id"] == "visitor-1"]
    assert len(of_visit) == len(events) - 2, "all but what the admin did"
    assert (
        await connection.fetchval("SELECT count(*) FROM public.audit_logs WHERE table_name = 'marketing.leads'") > 0
    )


async def test_it_shows_up_in_aggregates_kpis_and_answers(walked: Client, connection: asyncpg.Connection):
    await Rollup(DIMENSION_NAMES, Room(100, 100)).run_once(connection)
    rolled = await connection.fetch(
        "SELECT event_name, event_count, unique_users FROM analytics.event_aggregations"
        " WHERE granularity = 'day' AND dimensions = '{}'"
    )
    assert {row["event_name"]: row["event_count"] for row in rolled} == {name: NAMES.count(name) for name in NAMES}

    # As if it were tomorrow: the day of the walk is complete.
    now = datetime.now(UTC)
    await kpis.run_once(connection, now + timedelta(days=1), kpis.load())
    figures = {
        (row["name"], row["dimensions"]): float(row["value_numeric"])
        for row in await connection.fetch(
            "SELECT name, dimensions, value_numeric FROM analytics.metrics WHERE granularity = 'day'"
            " AND value_numeric IS NOT NULL AND time_window_start <= $1 AND time_window_end > $1",
            now,
        )
    }
    for name in (
        "visitor_to_lead_rate", "lead_to_onboarded_rate", "onboarded_to_converted_rate", "onboarding_completion_rate",
    ):  # fmt: skip
        assert figures[name, "{}"] == 1, figures
    assert figures["leads_by_source", '{"source": "demo-request"}'] == 1
    assert figures["leads_by_status", '{"status": "converted"}'] == 1
    of_experiments = {name: value for (name, _), value in figures.items() if name.startswith("experiment_")}
    assert of_experiments["experiment_exposures"] == 1
    assert of_experiments["experiment_conversions"] >= 1

    walk = Walk(walked)
    funnel = await walk("GET", "/v1/onboarding/funnel", None, 200, **ADMIN)
    assert [step["completed"] for step in funnel["steps"]] == [1, 1, 1, 1]
    (experiment,) = (await walk("GET", "/v1/experiments", None, 200, **ADMIN))["experiments"]
    results = await walk(
        "GET", f"/v1/experiments/{experiment['id']}/results?event=subscription_started", None, 200, **ADMIN
    )
    assert sum(variant["conversions"] for variant in results["variants"]) == 1
    assert sum(variant["exposures"] for variant in results["variants"]) == 1
    totals = await walk("GET", "/v1/stats/totals?event=lead_created", None, 200, **ADMIN)
    assert totals["events"] == 1
    exported = await walk("GET", f"/v1/people/export?email={EMAIL}&include_unverified=true", None, 200, **ADMIN)
    assert len(exported["analytics.events"]) >= len(NAMES) - 2
