"""Onboarding over HTTP: sessions, steps, activities, the funnel; who may what, and what never gets in or out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ingest.credentials import Cipher, new_key
from tests.worker import Answer, Client, Start, client, start

__all__ = ["client", "start"]

KEY = new_key()
ADMIN = {"Authorization": "Bearer an admin's"}
STEPS = ("business_info", "whatsapp_integration", "bot_setup", "testing")
TOKEN = "EAAGm0PX4ZCpsBAKZCexampleexample1234567890"
ENTERED: dict[str, dict[str, Any]] = {
    "business_info": {
        "company_name": "Analytical Engines", "contact_name": "Ada Lovelace", "email": "Ada@Example.com",
        "country": "gb", "phone": "+44 20 7946 0958", "website": "https://example.com/", "company_size": "2-10",
    },
    "whatsapp_integration": {
        "business_account_id": "102290129340398", "phone_number_id": "106540352242922",
        "phone_number": "0044 (20) 7946-0959", "display_name": "Engines", "access_token": TOKEN,
        "webhook_verify_token": "verify me",
    },
    "bot_setup": {"bot_name": "Charles", "language": "en", "greeting": "Hello!", "features": ["faq", "faq"]},
    "testing": {"confirmed": True, "time_spent_seconds": 12},
}  # fmt: skip
ENTERED["whatsapp_integration"]["webhook_verify_token"] = "verify-me"


class Visitor:
    """Someone with a session."""

    def __init__(self, client: Client, token: str, **headers: str) -> None:
        self.client = client
        self.token = token
        self.headers = {"X_Session_Token": token, **headers}

    async def session(self) -> Answer:
        return await self.client.get("/v1/onboarding/session", **self.headers)

    async def put(self, step: str, body: Any = None, **more: Any) -> Answer:
        path = f"/v1/onboarding/session/steps/{step}"
        return await self.client.request(
            "PUT", path, {**ENTERED[step], **more} if body is None else body, **self.headers
        )

    async def note(self, **body: Any) -> Answer:
        return await self.client.post(body, "/v1/onboarding/session/activities", **self.headers)

    async def until(self, step: str) -> None:
        """Do the steps before this one."""
        for each in STEPS[: STEPS.index(step)]:
            assert (await self.put(each)).status == 200


async def begin(client: Client, body: Any = None, **headers: str) -> Visitor:
    answer = await client.post(body, "/v1/onboarding/sessions", **headers)
    assert answer.status == 201, answer
    return Visitor(client, answer.json()["session_token"])


@pytest.fixture
async def onboarding(start: Start) -> Client:
    """A worker that can keep credentials."""
    return await start(encryption_keys=[KEY], admin_keys=["an admin's"])


async def test_from_beginning_to_end(onboarding: Client):
    answer = await onboarding.post({"anonymous_id": "a1", "session_id": "s1"}, "/v1/onboarding/sessions")
    assert answer.status == 201 and answer.headers["Cache-Control"] == "no-store"
    new = answer.json()
    visitor = Visitor(onboarding, new["session_token"])
    assert (new["current_step"], new["progress_percentage"], new["status"]) == ("business_info", 0, "not_started")
    assert new["steps"][0]["needs"] == ["company_name", "contact_name", "email", "country"]
    for number, step in enumerate(STEPS, start=1):
        answer = await visitor.put(step)
        assert answer.status == 200, answer
        told = answer.json()
        assert told["progress_percentage"] == 25 * number
        assert told["current_step"] == (*STEPS, "complete")[number]
        assert told == (await visitor.session()).json()
    assert told["status"] == "completed" and "session_token" not in told
    assert all(step["completed_at"] and step["needs"] == [] for step in told["steps"])
    assert [step["entered"] for step in told["steps"]] == [
        {**ENTERED["business_info"], "email": "ada@example.com", "country": "GB", "phone": "+442079460958"},
        {
            "business_account_id": "102290129340398", "phone_number_id": "106540352242922",
            "phone_number": "+442079460959", "display_name": "Engines",
        },
        {**ENTERED["bot_setup"], "features": ["faq"]},
        {"confirmed": True},
    ]  # fmt: skip
    assert told["steps"][1]["kept_secret"] == ["access_token", "webhook_verify_token"]
    events = await onboarding.events()
    assert sorted((event["name"], event["type"], event["properties"]) for event in events) == [
        ("onboarding_completed", "conversion", "{}"),
        ("onboarding_started", "user_action", "{}"),
        *[("onboarding_step_completed", "user_action", json.dumps({"step": step})) for step in sorted(STEPS)],
    ]
    assert {(event["anonymous_id"], event["session_id"], event["user_id"]) for event in events} == {
        ("a1", "s1", None)
    }
    [account] = await onboarding.fetch(
        "SELECT accounts.*, email, company_name, first_name, last_name, leads.phone_number AS phone, source,"
        " country_code FROM whatsapp.accounts JOIN marketing.leads ON leads.id = lead_id"
    )
    cipher = Cipher([KEY])
    assert cipher.decrypt(account["access_token_encrypted"]) == TOKEN
    assert cipher.decrypt(account["webhook_verify_token_encrypted"]) == "verify-me"
    assert [account[name] for name in ("email", "company_name", "first_name", "last_name", "phone", "source")] == [
        "ada@example.com", "Analytical Engines", "Ada", "Lovelace", "+442079460958", "website-form",
    ]  # fmt: skip
    [session] = await onboarding.fetch("SELECT * FROM onboarding.sessions")
    assert session["lead_id"] == account["lead_id"]
    activities = await onboarding.fetch("SELECT * FROM onboarding.step_activities ORDER BY created_at")
    assert [(each["step"], each["activity_type"], each["time_spent_seconds"]) for each in activities] == [
        (step, "step_completed", 12 if step == "testing" else None) for step in STEPS
    ]
