"""Onboarding over HTTP: sessions, steps, activities, the funnel, access, and what is never stored or shown."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import jwt
import pytest

from ingest.api import api_keys
from ingest.api.contact_fields import plain_phone
from ingest.features.onboarding import activities
from ingest.features.onboarding.credentials import Cipher, new_key
from ingest.features.onboarding.steps import OF_NAME, WhatsAppIntegration, check
from ingest.rollup import kpis
from tests.support.collector import Answer, Client, Start

ROOT = Path(__file__).parents[2]
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
        "webhook_verify_token": "verify-me",
    },
    "bot_setup": {"bot_name": "Charles", "language": "en", "greeting": "Hello!", "features": ["faq", "faq"]},
    "testing": {"confirmed": True, "time_spent_seconds": 12.0},
}  # fmt: skip


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
    """A worker that can encrypt credentials."""
    return await start(encryption_keys=[KEY], admin_keys=["an admin's"])


async def test_a_migration_while_it_runs_is_a_503_once(onboarding: Client, connection: asyncpg.Connection):
    """Statements prepared before no longer fit the table, and are prepared again."""
    visitor = await begin(onboarding)
    # On all connections: the next request may get any of them.
    for answer in await asyncio.gather(*[visitor.session() for _ in range(40)]):
        assert answer.status == 200
    await connection.execute("ALTER TABLE onboarding.sessions ALTER COLUMN anonymous_id TYPE varchar(255)")
    answers = [await visitor.session() for _ in range(8)]
    assert [answer.status for answer in answers] == [503, *[200] * 7]
    assert (answers[0].json()["code"], answers[0].headers["Retry-After"]) == ("busy", "1")


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
        found = answer.json()
        assert found["progress_percentage"] == 25 * number
        assert found["current_step"] == (*STEPS, "complete")[number]
        assert found == (await visitor.session()).json()
    assert found["status"] == "completed" and "session_token" not in found
    assert all(step["completed_at"] and step["needs"] == [] for step in found["steps"])
    assert [step["entered"] for step in found["steps"]] == [
        {**ENTERED["business_info"], "email": "ada@example.com", "country": "GB", "phone": "+442079460958"},
        {
            "business_account_id": "102290129340398", "phone_number_id": "106540352242922",
            "phone_number": "+442079460959", "display_name": "Engines",
        },
        {**ENTERED["bot_setup"], "features": ["faq"]},
        {"confirmed": True},
    ]  # fmt: skip
    assert found["steps"][1]["kept_secret"] == ["access_token", "webhook_verify_token"]
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


async def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["code"]


# Sessions.


async def test_the_body_is_optional_and_the_session_is_the_visit_of_its_events(onboarding: Client):
    for body in (None, b"", {}, {"anonymous_id": None}):
        visitor = await begin(onboarding, body)
        found = (await visitor.session()).json()
        assert found["status"] == "not_started" and found["current_step"] == "business_info"
    events = await onboarding.fetch("SELECT session_id, anonymous_id FROM analytics.events ORDER BY session_id")
    sessions = await onboarding.fetch("SELECT id::text, session_token FROM onboarding.sessions ORDER BY id::text")
    assert [tuple(event) for event in events] == [(session["id"], None) for session in sessions]
    assert len({session["session_token"] for session in sessions}) == 4
    # The fifth is the last within an hour, even if they come at once.
    answers = await asyncio.gather(*[onboarding.post(None, "/v1/onboarding/sessions") for _ in range(4)])
    assert Counter(answer.status for answer in answers) == {201: 1, 429: 3}
    refused = next(answer for answer in answers if answer.status == 429)
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert await onboarding.names() == ["onboarding_started"] * 5


async def test_unknown_tokens(onboarding: Client):
    mine = await begin(onboarding)
    for token, expected in (
        ("sess_" + "x" * 43, (404, "session_not_found")),
        (mine.token[:-1] + ("x" if mine.token[-1] != "x" else "y"), (404, "session_not_found")),
        (mine.token.upper(), (401, "session_token_malformed")),
        ("' OR true --", (401, "session_token_malformed")),
        ("sess_" + "x" * 5000, (401, "session_token_malformed")),
    ):
        stranger = Visitor(onboarding, token)
        assert await code(await stranger.session()) == expected
        assert await code(await stranger.put("business_info")) == expected
        assert await code(await stranger.note(activity_type="form_started", step="testing")) == expected
    none = await onboarding.get("/v1/onboarding/session")
    assert await code(none) == (401, "session_token_needed")
    assert none.headers["WWW-Authenticate"].startswith("SessionToken")
    assert await onboarding.fetch("SELECT FROM onboarding.step_activities") == []


async def test_resuming_a_session(onboarding: Client, connection: asyncpg.Connection):
    visitor = await begin(onboarding)
    await visitor.until("bot_setup")
    leave = (
        "UPDATE onboarding.sessions SET status = 'abandoned', started_at = now() - interval '3 days',"
        " last_activity_at = now() - $1::interval, abandoned_at = now() - $1::interval"
    )
    for back in ("bot_setup", "business_info", "activity"):
        await connection.execute(leave, timedelta(hours=23))
        assert (await visitor.session()).json()["status"] == "abandoned"
        if back == "activity":
            assert (await visitor.note(activity_type="form_started", step="testing")).status == 201
        else:
            assert (await visitor.put(back)).status == 200
        found = (await visitor.session()).json()
        assert (found["status"], found["current_step"], found["progress_percentage"]) == (
            "in_progress",
            "testing",
            75,
        )
        assert await connection.fetchval("SELECT abandon_inactive_sessions()") == 0
    await connection.execute(leave, timedelta(hours=25))
    assert await code(await visitor.session()) == (404, "session_not_found")
    assert await code(await visitor.put("testing")) == (404, "session_not_found")
    assert await code(await visitor.put("testing", {"confirmed": 1})) == (422, "invalid_fields")
    assert await code(await visitor.note(activity_type="form_started", step="testing")) == (404, "session_not_found")


# Steps.


async def test_no_step_is_skipped_and_a_completed_session_does_not_change(onboarding: Client):
    visitor = await begin(onboarding)
    for number, step in enumerate(STEPS):
        before = (await visitor.session()).json()
        for later in STEPS[number + 1 :]:
            refused = await visitor.put(later)
            assert await code(refused) == (409, "step_not_reached")
            missing = STEPS[number : STEPS.index(later)]
            assert [error["field"] for error in refused.json()["errors"]] == list(missing)
            assert all(each in refused.json()["detail"] for each in missing)
        assert (await visitor.session()).json() == before
        assert (await visitor.put(step)).status == 200
    completed = (await visitor.session()).json()
    for step in STEPS:
        assert await code(await visitor.put(step)) == (409, "session_completed")
    assert await code(await visitor.note(activity_type="form_started", step="testing")) == (409, "session_completed")
    assert (await visitor.session()).json() == completed
    assert Counter(await onboarding.names())["onboarding_step_completed"] == 4
    # Nor does what was refused leave a trace elsewhere.
    noted = await onboarding.fetch("SELECT activity_type, step::text FROM onboarding.step_activities")
    assert sorted(map(tuple, noted)) == sorted(("step_completed", step) for step in STEPS)
    [changes] = await onboarding.fetch(
        "SELECT count(*) FROM public.audit_logs WHERE table_name = 'onboarding.sessions' AND operation = 'UPDATE'"
        " AND changed_columns && ARRAY['business_data', 'whatsapp_config', 'bot_config', 'status']"
    )
    assert changes["count"] == len(STEPS)


async def test_an_unknown_step(onboarding: Client):
    visitor = await begin(onboarding)
    for step in ("complete", "Testing", "x%2Fy", "a" * 3000):
        answer = await onboarding.request("PUT", f"/v1/onboarding/session/steps/{step}", {}, **visitor.headers)
        assert await code(answer) == (404, "unknown_step")
        assert "business_info, whatsapp_integration, bot_setup, testing" in answer.json()["detail"]
    answer = await onboarding.post({}, "/v1/onboarding/session/steps/testing", **visitor.headers)
    assert (answer.status, answer.headers["Allow"]) == (405, "OPTIONS, PUT")


async def test_a_step_sent_again_is_corrected_and_progress_stays(onboarding: Client):
    visitor = await begin(onboarding)
    await visitor.until("testing")
    before = (await visitor.session()).json()
    corrected = await visitor.put("business_info", company_name="Difference Engines", phone=None)
    assert corrected.status == 200
    found = corrected.json()
    assert (found["current_step"], found["progress_percentage"]) == ("testing", 75)
    assert found["steps"][0]["completed_at"] == before["steps"][0]["completed_at"]
    assert found["steps"][0]["entered"]["company_name"] == "Difference Engines"
    assert "phone" not in found["steps"][0]["entered"]
    assert Counter(await onboarding.names())["onboarding_step_completed"] == 3
    kinds = await onboarding.fetch("SELECT activity_type FROM onboarding.step_activities ORDER BY created_at")
    assert [row["activity_type"] for row in kinds] == ["step_completed"] * 3 + ["step_corrected"]


async def test_two_concurrent_requests(onboarding: Client):
    visitor = await begin(onboarding)
    for step in STEPS:
        answers = await asyncio.gather(*[visitor.put(step) for _ in range(4)])
        expected = {200, 409} if step == "testing" else {200}
        assert {answer.status for answer in answers} == expected
    assert Counter(await onboarding.names()) == {
        "onboarding_started": 1, "onboarding_step_completed": 4, "onboarding_completed": 1,
    }  # fmt: skip
    [accounts] = await onboarding.fetch("SELECT count(*) FROM whatsapp.accounts")
    assert accounts["count"] == 1
    done = await onboarding.fetch("SELECT activity_type FROM onboarding.step_activities")
    assert Counter(row["activity_type"] for row in done)["step_completed"] == 4


TEXT = ("<script>alert(1)</script>", "'; DROP TABLE onboarding.sessions; --", "\u202eevil ✓ 🦆\r\nX: y")


async def test_entering_a_known_leads_address_does_not_change_the_lead(
    onboarding: Client, connection: asyncpg.Connection
):
    await connection.execute("INSERT INTO marketing.leads (email, first_name) VALUES ('ada@example.com', 'Ada')")
    before = await connection.fetch("SELECT * FROM marketing.leads")
    visitor = await begin(onboarding)
    await visitor.until("bot_setup")
    assert await connection.fetch("SELECT * FROM marketing.leads") == before


async def test_every_kind_of_text_is_stored(onboarding: Client):
    visitor = await begin(onboarding)
    await visitor.until("bot_setup")
    for text in TEXT:
        found = (await visitor.put("bot_setup", bot_name=text, greeting=text, features=[text])).json()
        assert [found["steps"][2]["entered"][name] for name in ("bot_name", "greeting", "features")] == [
            text, text, [text],
        ]  # fmt: skip
    # As large as possible, in characters that take six bytes in JSON.
    largest = "\x01" * 998
    most: dict[str, Any] = dict.fromkeys(("greeting", "away_message"), f"a{largest}b")
    most |= {"bot_name": "x" * 100, "language": "en"}
    most["features"] = [f"{n:02}{largest[:47]}x" for n in range(20)]
    assert (await visitor.put("bot_setup", most)).status == 200
    assert (await visitor.put("testing", {"confirmed": True, "notes": f"a{largest}b"})).status == 200


WRONG: dict[str, dict[str, list[Any]]] = {
    "business_info": {
        "company_name": [None, "", "   ", "x" * 201, 4, ["x"], {"a": 1}, True, "a\x00b"],
        "email": [
            "ada", "ada@", "@example.com", "ada@example", "ada@example.c", "a b@example.com", "ada@exa_mple.com",
            "é@example.com", "ada@example.com, b@example.com", f"{'x' * 65}@example.com", ".ada@example.com",
            "ada@example.com\nBcc: x@example.com", f"ada@{'x' * 64}.com", f"ada@{'x.' * 125}com",
        ],
        "country": ["", "D", "DEU", "d1", "ÄÖ"],
        "phone": ["", "call me", "123456", "030 1234567", "+49 30 1234567 ext. 5", "+" + "1" * 16, "+1/-/-/-2345678"],
        "website": ["example.com", "javascript:alert(1)", "https://", "https://a b.c", "http://" + "x" * 500],
        "industry": ["", "x" * 101],
        "company_size": ["", "many", 5, "2 - 10"],
        "time_spent_seconds": [-1, 1.5, "5", 10**12, True],
        "<b>surprise</b>": [1],
        "whatsapp_config": [{}],
    },
    "whatsapp_integration": {
        "business_account_id": [None, "", "1 2", "x" * 65, 102290129340398],
        "phone_number_id": ["'", "../x"],
        "phone_number": [None, "0123", "+0123456789"],
        "access_token": [None, "", "short", "x" * 2049, "two words", "ünïcödé-tokens"],
        "webhook_verify_token": ["", " ", "x" * 2049],
        "lead_id": ["00000000-0000-4000-8000-000000000001"],
    },
    "bot_setup": {
        "bot_name": [None, "\t", "x" * 101],
        "language": ["", "e", "english!", "en--GB"],
        "greeting": [None, "x" * 1001],
        "features": [["x"] * 21, ["x" * 51], [1], "faq", {}],
        "hand_over_to_people": ["yes", 1],
    },
    "testing": {"confirmed": [False, None, "true", 1], "notes": ["", 1]},
}  # fmt: skip


async def test_each_wrong_field_is_reported_and_recorded(onboarding: Client, connection: asyncpg.Connection):
    visitor = await begin(onboarding)
    for step, wrong in WRONG.items():
        for name, values in wrong.items():
            await connection.execute("TRUNCATE onboarding.step_activities; TRUNCATE ingest.rate_limits")
            messages = set()
            for value in values:
                answer = await visitor.put(step, **{name: value})
                assert answer.status == 422, (step, name, value)
                [error] = answer.json()["errors"]
                assert error["field"].partition("[")[0] == name, (step, name, value)
                messages.add(error["message"])
            rows = await connection.fetch("SELECT * FROM onboarding.step_activities ORDER BY created_at")
            assert {(row["step"], row["activity_type"]) for row in rows} == {(step, "validation_error")}
            known = name in OF_NAME[step].known
            assert {row["field_name"] for row in rows} == {name if known else None}
            assert {row["error_message"] for row in rows} == (messages if known else {"is unknown"})
            assert {row["field_value"] for row in rows} == {None}
        await connection.execute("TRUNCATE ingest.rate_limits")
        if step != "testing":
            assert (await visitor.put(step)).status == 200
    missing = await visitor.put("business_info", {})
    assert [error["field"] for error in missing.json()["errors"]] == OF_NAME["business_info"].required


async def test_recording_errors_has_bounds_and_never_changes_the_answer(onboarding: Client):
    visitor = await begin(onboarding)
    wrong: dict[str, Any] = {name: [] for name in OF_NAME["business_info"].known}
    many = {**wrong, **{f"unknown {n}": 1 for n in range(300)}}
    assert await code(await visitor.put("business_info", many)) == (422, "invalid_fields")
    for _ in range(12):
        assert await code(await visitor.put("business_info", wrong)) == (422, "invalid_fields")
    for _ in range(3):
        assert await code(await visitor.put("business_info", many)) == (422, "invalid_fields")
    [count] = await onboarding.fetch("SELECT count(*) FROM onboarding.step_activities")
    assert 90 < count["count"] <= 100
    limited = [await visitor.note(activity_type="form_started", step="testing") for _ in range(10)]
    assert limited[-1].status == 429 and int(limited[-1].headers["Retry-After"]) > 0
    # The step can still be done.
    assert (await visitor.put("business_info")).status == 200
    assert await code(await visitor.put("testing", {"confirmed": False})) == (422, "invalid_fields")


async def test_bodies_that_are_no_object(client: Client):
    visitor = await begin(client)
    for body in (b"", b"[]", b"{", b"null", b'{"confirmed": true', b'"x"', b"\xff", b'{"a": "\\ud800"}', b"[" * 9999):
        assert await code(await visitor.put("testing", body)) == (400, "malformed_json")
    assert (await visitor.put("testing", b" " * 300_000)).status == 413


# Credentials.


async def test_tokens_are_nowhere_in_plain_text(onboarding: Client, connection: asyncpg.Connection):
    visitor = await begin(onboarding)
    await visitor.until("bot_setup")
    await visitor.put("whatsapp_integration", access_token=f"{TOKEN}!", display_name="")
    again = await visitor.put("whatsapp_integration", webhook_verify_token=None)
    found = (await visitor.session()).body + again.body
    assert again.json()["steps"][1]["kept_secret"] == ["access_token"]
    await onboarding.settled()
    dumps = [found]
    for table in (
        "onboarding.sessions", "onboarding.step_activities", "analytics.events", "public.audit_logs",
        "marketing.leads", "whatsapp.accounts",
    ):  # fmt: skip
        dumps += [row["text"].encode() for row in await connection.fetch(f"SELECT t::text AS text FROM {table} AS t")]
    assert len(dumps) > 8
    assert not [dump for dump in dumps if TOKEN.encode() in dump or b"verify-me" in dump]
    of_others = [row["t"] for row in await connection.fetch("SELECT t::text AS t FROM analytics.events AS t")]
    assert not [row for row in of_others if "example.com" in row or "Ada" in row or "7946" in row]
    [account] = await onboarding.fetch("SELECT * FROM whatsapp.accounts")
    assert account["access_token_encrypted"].startswith(b"gAAAA")
    assert account["webhook_verify_token_encrypted"] is None


ACCOUNTS = (
    "SELECT session_id, phone_number_id, display_name, access_token_encrypted FROM whatsapp.accounts"
    " ORDER BY created_at"
)


async def test_only_its_own_session_changes_an_account(onboarding: Client, connection: asyncpg.Connection):
    """Neither the same email address nor the same ids give access to another's token."""
    ada, eve = await begin(onboarding), await begin(onboarding)
    for visitor in (ada, eve):
        await visitor.put("business_info")
    assert (await ada.put("whatsapp_integration", display_name="Ada")).status == 200
    [hers] = await connection.fetch(ACCOUNTS)
    assert (await eve.put("whatsapp_integration", display_name="Eve", access_token="evil-token")).status == 200
    # Nor does a reference to it: the visitor controls a session's JSON.
    await connection.execute(
        "UPDATE onboarding.sessions SET whatsapp_config = whatsapp_config || jsonb_build_object('account_id',"
        " (SELECT id FROM whatsapp.accounts WHERE display_name = 'Ada'))"
    )
    assert (await eve.put("whatsapp_integration", display_name="Evil")).status == 200
    assert (await eve.put("business_info", email="eve@example.com")).status == 200
    rows = await connection.fetch(ACCOUNTS)
    assert rows[0] == hers and [row["display_name"] for row in rows] == ["Ada", "Evil"]
    assert (await ada.put("whatsapp_integration", display_name="Ada II")).status == 200
    assert [row["display_name"] for row in await connection.fetch(ACCOUNTS)] == ["Ada II", "Evil"]


async def test_a_number_is_verified_once(onboarding: Client, connection: asyncpg.Connection):
    ada, eve, late = [await begin(onboarding) for _ in range(3)]
    await eve.put("business_info", email="eve@example.com")
    # Claiming ids first does not keep their owner from using them.
    assert (await eve.put("whatsapp_integration")).status == 200
    await ada.put("business_info")
    assert (await ada.put("whatsapp_integration", display_name="Ada")).status == 200
    verified = "UPDATE whatsapp.accounts SET is_verified = true, verification_status = 'verified'"
    await connection.execute(f"{verified} WHERE display_name = 'Ada'")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(verified)
    # Now they are taken, even for another session with the same email address.
    email = (await ada.session()).json()["steps"][0]["entered"]["email"]
    await late.put("business_info", email=email)
    for visitor in (eve, late):
        refused = await visitor.put("whatsapp_integration")
        assert await code(refused) == (409, "account_taken")
        assert b"example.com" not in refused.body and b"Engines" not in refused.body
        # Nor by changing from another number to it.
        assert (await visitor.put("whatsapp_integration", phone_number_id="another")).status == 200
        assert await code(await visitor.put("whatsapp_integration")) == (409, "account_taken")
        assert (await visitor.session()).json()["steps"][1]["entered"]["phone_number_id"] == "another"
    assert (await ada.put("whatsapp_integration", display_name="Ada II")).status == 200
    states = "SELECT is_verified, verification_status FROM whatsapp.accounts WHERE display_name LIKE 'Ada%'"
    assert await connection.fetch(states) == [(True, "verified")]
    assert (await ada.put("whatsapp_integration", display_name="Ada", phone_number="+49 30 1234567")).status == 200
    assert await connection.fetch(states) == [(False, "not_verified")]


async def test_correcting_the_address_moves_the_account(onboarding: Client, connection: asyncpg.Connection):
    visitor = await begin(onboarding)
    await visitor.put("business_info", email="ada@exmaple.com")
    await visitor.put("whatsapp_integration")
    assert (await visitor.put("business_info")).status == 200
    owner = "SELECT email FROM marketing.leads JOIN {} AS theirs ON lead_id = leads.id"
    assert await connection.fetchval(owner.format("onboarding.sessions")) == "ada@example.com"
    assert await connection.fetchval(owner.format("whatsapp.accounts")) == "ada@example.com"
    assert (await visitor.put("whatsapp_integration", display_name="Other")).status == 200
    assert await connection.fetchval("SELECT array_agg(display_name) FROM whatsapp.accounts") == ["Other"]


async def test_concurrent_sessions_of_one_new_lead(onboarding: Client):
    visitors = [await begin(onboarding) for _ in range(4)]
    for visitor in visitors:
        await visitor.put("business_info")
    answers = await asyncio.gather(
        *[visitor.put("whatsapp_integration", phone_number_id=str(n)) for n, visitor in enumerate(visitors)]
    )
    assert [answer.status for answer in answers] == [200] * 4
    [leads] = await onboarding.fetch("SELECT count(*) FROM marketing.leads")
    [accounts] = await onboarding.fetch("SELECT count(DISTINCT lead_id) AS leads, count(*) FROM whatsapp.accounts")
    assert (leads["count"], *accounts) == (1, 1, 4)


async def test_a_person_erased_in_between(onboarding: Client, connection: asyncpg.Connection):
    visitor = await begin(onboarding, {"anonymous_id": "a1", "session_id": "s1"})
    await visitor.until("bot_setup")
    await onboarding.post({"name": "seen", "anonymous_id": "a1"})
    await onboarding.settled()
    await connection.execute("SELECT gdpr_delete_user_data('ada@example.com', include_unverified := true)")
    [row] = await onboarding.fetch("SELECT * FROM onboarding.sessions")
    assert (row["anonymous_id"], row["visit_session_id"], row["business_data"]) == (None, None, "{}")
    assert await onboarding.names() == []
    refused = await visitor.put("whatsapp_integration")
    assert await code(refused) == (409, "step_not_reached")
    assert [error["field"] for error in refused.json()["errors"]] == ["business_info"]
    assert (await visitor.put("business_info")).status == 200
    assert (await visitor.put("whatsapp_integration")).status == 200


async def test_without_an_encryption_key_nothing_is_stored(client: Client):
    visitor = await begin(client)
    await visitor.put("business_info")
    refused = await visitor.put("whatsapp_integration")
    assert await code(refused) == (503, "encryption_not_configured")
    assert "ingest encryption key" in refused.json()["detail"]
    assert (await visitor.session()).json()["progress_percentage"] == 25


async def test_without_room_for_events_nothing_changes(onboarding: Client, monkeypatch: pytest.MonkeyPatch):
    visitor = await begin(onboarding)
    monkeypatch.setattr(onboarding.worker.stores, "write_failing", True)
    for answer in (await visitor.put("business_info"), await onboarding.post({}, "/v1/onboarding/sessions")):
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
    assert (await visitor.session()).json()["status"] == "not_started"
    [sessions] = await onboarding.fetch("SELECT count(*) FROM onboarding.sessions")
    assert sessions["count"] == 1
    monkeypatch.setattr(onboarding.worker.stores, "write_failing", False)


# Activities.


async def test_activities_are_recorded_without_what_is_personal(onboarding: Client):
    visitor = await begin(onboarding)
    recorded: list[tuple[str, str | None, str | None, str | None]] = []
    for name, value, message, expected, said in (
        (None, None, None, None, None),
        ("industry", "retail", None, "retail", None),
        ("industry", "<b>'; --", 'too "short"', "<b>'; --", 'too "short"'),
        ("email", "x", "is wrong", None, "is wrong"),
        ("access_token", "abc", None, None, None),
        ("phone_number_id", "5", None, None, None),
        ("contact_name", "Ada", None, None, None),
        ("billing.email_address", "y", None, None, None),
        ("industry", "ask ada@example.com", "ada@example.com is taken", None, "[concealed] is taken"),
        ("industry", TOKEN, f"bad token {TOKEN}", None, "bad token [concealed]"),
        (TOKEN, "x", "+44 (20) 7946-0958 is no number", "x", "[concealed] is no number"),
    ):
        kind = "form_started" if name is None else "validation_error" if message else "field_filled"
        answer = await visitor.note(
            activity_type=kind, step="business_info", field_name=name, field_value=value, error_message=message,
            time_spent_seconds=3,
        )  # fmt: skip
        assert answer.status == 201
        assert answer.json()["concealed"] is ((value, message) != (expected, said) or name == TOKEN)
        recorded.append((kind, "[concealed]" if name == TOKEN else name, expected, said))
    rows = await onboarding.fetch("SELECT * FROM onboarding.step_activities ORDER BY created_at")
    names = ("activity_type", "field_name", "field_value", "error_message")
    assert [tuple(row[name] for name in names) for row in rows] == recorded
    assert {row["time_spent_seconds"] for row in rows} == {3}
    assert (await visitor.session()).json()["status"] == "in_progress"
    wrong: dict[str, Any]
    for wrong in (
        {"activity_type": "step_completed"}, {"step": "complete"}, {"step": 1}, {"field_name": "a b"},
        {"field_value": "x" * 2001}, {"error_message": "x" * 501}, {"metadata": {}}, {"time_spent_seconds": -1},
    ):  # fmt: skip
        refused = await visitor.note(**{"activity_type": "form_started", "step": "testing", **wrong})
        assert await code(refused) == (422, "invalid_fields"), wrong
        assert [error["field"] for error in refused.json()["errors"]] == list(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "ada@example.com",
        "mailto:ada@localhost",
        "+44 20 7946 0958",
        "(020) 7946-0958",
        "00442079460958",
        "2079460958",
        "٠١٢٣٤٥٦٧٨٩",
        "+49\u00a030\u00a01234567",
        "sess_" + "a" * 43,
        "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        TOKEN,
        "020\u20137946\u20130958",
        "020\u20117946\u20110958",
        "020,7946,0958",
        "020_7946_0958",
        "020\u200b7946\u200b0958",
        "0\u200d2\u200d0\u200d7\u200d9\u200d4\u200d6",
        "０２０７９４６０９５８",
        "020 · 7946 · 0958",
        "+44·20·7946·0958",
        "020\u00ad79460958",
        "ann＠example.com",
        "ann﹫example.com",
        "ann @ example.com",
        "ann(at)example.com",
        "ann [at] example.com",
        "ann at example.com",
        "ann%40example.com",
        "ann&#64;example.com",
        "an\u200bn@example.com",
        "sk_live_4eC39Hq\u200bLyjWDarjtT1zdp7dc",
        "ｓｋ_live_4eC39HqLyjWDarjtT1zdp7dc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        "Bearer secret",
        "0123456789abcdef0123456789abcdef",
        "a" * 40,
    ],
)
def test_what_looks_personal_is_concealed(text: str):
    assert activities.conceal(f"before {text} after") == "before [concealed] after"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello! How can we help?",
        "Wie heißt das?",
        "skateboarding in session",
        "we are 2-10, since 1999",
        "internationalisation",
        "Zoë’s café — 50 % off…",
        "👩‍👩‍👧 emoji",
        "look at this",
        "tab\tand\nline",
        "https://example.com/a/b",
        "a.b, c/d (e) #1 50 %",
        "ingredients",
    ],
)
def test_other_texts_are_not_concealed(text: str):
    assert activities.conceal(text) == text


def test_addresses_in_words_are_concealed():
    assert activities.conceal("write to ann at example dot com, please").startswith("write to [concealed]")
    assert activities.conceal("ann@example.com") == "[concealed]"
    assert activities.conceal("a@b @ c@d").replace("[concealed]", "") == ""
    assert "ann" not in activities.conceal("it is ann   @   example.com now")


def test_long_texts_take_no_time():
    for text in ("a" * 100_000, "1 " * 50_000, "+" * 100_000, "@" * 100_000, "a1" * 50_000, "1(((" * 25_000):
        activities.conceal(text)


def test_phones_are_stored_plain():
    assert plain_phone("+44 (20) 7946-0958") == "+442079460958"
    assert plain_phone("0044 20 7946.0958") == "+442079460958"
    assert plain_phone("44 20 7946/0958") == "442079460958"
    assert plain_phone("+44 (0)20 7946 0958") == plain_phone("(+44) ( 0 ) 20 7946 0958") == "+442079460958"
    assert plain_phone("0049 (0) 30 1234567") == "+49301234567"
    assert plain_phone("(0) 30 1234567") == "0301234567"
    number = WhatsAppIntegration("1", "2", "+44 (0)1234", "token-of-meta")
    assert [error.field for error in check(number)] == ["phone_number"]


# The funnel.

FILL = """
INSERT INTO onboarding.sessions (
    created_at, status, started_at, abandoned_at, last_activity_at, business_info_completed_at,
    whatsapp_integration_completed_at, bot_setup_completed_at, testing_completed_at
)
SELECT
    begun, status::onboarding.session_status, begun,
    CASE status WHEN 'abandoned' THEN begun + interval '1 day' END,
    begun, begun + done[1], begun + done[2], begun + done[3], begun + done[4]
FROM (VALUES
    (0, 'in_progress', '{}'), (1, 'abandoned', '{}'), (2, 'abandoned', '{60 s}'), (3, 'in_progress', '{2 min,3 min}'),
    (4, 'completed', '{1 min,3 min,6 min,10 min}'), (5, 'completed', '{1 min,2 min,3 min,4 min}'), (40, 'completed',
    '{1 min,2 min,3 min,4 min}')
) AS begun (day, status, times)
CROSS JOIN LATERAL (SELECT '2026-03-01 12:00+00'::timestamptz + make_interval(days => day), times::interval[])
    AS parts (begun, done)
"""


async def test_the_funnel(onboarding: Client, connection: asyncpg.Connection):
    await connection.execute(FILL)
    path = "/v1/onboarding/funnel?from=2026-03-01T00:00:00Z&to=2026-04-01T00:00:00%2B02:00"
    answer = await onboarding.get(path, **ADMIN)
    assert answer.status == 200, answer
    found = answer.json()
    assert (found["from"], found["to"]) == ("2026-03-01T00:00:00Z", "2026-03-31T22:00:00Z")
    assert (found["sessions"], found["completed"], found["completion_rate"]) == (6, 2, 0.3333)
    columns = ["step", "reached", "completed", "dropped", "abandoned", "drop_off_rate"]
    columns += ["median_seconds", "p95_seconds"]
    assert [tuple(step[column] for column in columns) for step in found["steps"]] == [
        ("business_info", 6, 4, 2, 1, 0.3333, 60.0, 111.0),
        ("whatsapp_integration", 4, 3, 1, 1, 0.25, 60.0, 114.0),
        ("bot_setup", 3, 2, 1, 0, 0.3333, 120.0, 174.0),
        ("testing", 2, 2, 0, 0, 0.0, 150.0, 231.0),
    ]
    for query in ("", "?from=2030-01-01T00:00:00Z&to=2029-01-01T00:00:00Z", "?to=0001-01-01T00:00:00%2B14:00",
                  "?from=9999-12-31T23:59:59-14:00&to=9999-12-31T23:59:59Z"):  # fmt: skip
        answer = await onboarding.get(f"/v1/onboarding/funnel{query}", **ADMIN)
        assert (answer.status, answer.json()["sessions"], answer.json()["completion_rate"]) == (200, 0, None), query
        assert [step["median_seconds"] for step in answer.json()["steps"]] == [None] * 4
    for query in ("from=yesterday", "from=2026-02-31T00:00:00Z", "step=testing", "to=1", "from=&to="):
        assert await code(await onboarding.get(f"/v1/onboarding/funnel?{query}", **ADMIN)) == (422, "invalid_fields")


@pytest.mark.parametrize("seed", range(4))
async def test_funnel_query_and_kpis_agree(onboarding: Client, connection: asyncpg.Connection, seed: int):
    """On realistic sessions: created, and continued later or never."""
    random = Random(seed)
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    for _ in range(random.randrange(20, 60)):
        made = moment = day + timedelta(hours=random.randrange(12), seconds=random.randrange(3600))
        id = await connection.fetchval(
            "INSERT INTO onboarding.sessions (created_at, last_activity_at) VALUES ($1, $1) RETURNING id", made
        )
        for step in STEPS[: random.choice([0, 0, 1, 1, 2, 3, 4])]:
            # Two hours at most; a page may also send an impossible time.
            moment += timedelta(seconds=random.randrange(-60, 7200))
            await connection.execute(
                f"UPDATE onboarding.sessions SET {step}_completed_at = $2,"
                " started_at = least(coalesce(started_at, $2), $2) WHERE id = $1",
                id,
                moment,
            )
        if random.random() < 0.3:
            await connection.execute(
                "UPDATE onboarding.sessions SET status = 'abandoned', abandoned_at = now()"
                " WHERE id = $1 AND status <> 'completed'",
                id,
            )
    path = f"/v1/onboarding/funnel?from={day:%Y-%m-%dT%H:%M:%SZ}"
    found = (await onboarding.get(path, **ADMIN)).json()
    steps = [(step["reached"], step["completed"], step["drop_off_rate"]) for step in found["steps"]]
    assert found["sessions"] == steps[0][0] == await connection.fetchval("SELECT count(*) FROM onboarding.sessions")
    assert steps[0][1] < steps[0][0] and found["steps"][0]["median_seconds"] > 0

    query = (ROOT / "docs" / "queries" / "onboarding.sql").read_text()
    rows = await connection.fetch(query)
    assert [(row["began"], row["finished"]) for row in rows] == [step[:2] for step in steps]
    assert [float(row["percent_lost"]) for row in rows] == pytest.approx([100 * step[2] for step in steps], abs=0.06)
    seconds = [step["median_seconds"] for step in found["steps"]]
    assert [60 * float(row["minutes"]) for row in rows] == pytest.approx(seconds, abs=3.1)

    await kpis.run_once(
        connection, datetime.now(UTC), [kpi for kpi in kpis.load() if kpi.name.startswith("onboarding_")]
    )
    figures = {
        (row["name"], row["step"]): (float(row["value_numeric"]), row["sample_count"])
        for row in await connection.fetch(
            "SELECT name, dimensions ->> 'step' AS step, value_numeric, sample_count FROM analytics.metrics"
            " WHERE granularity = 'day' AND time_window_start = $1",
            day,
        )
    }
    share, sessions = figures["onboarding_completion_rate", None]
    assert sessions == found["sessions"] and share == pytest.approx(found["completion_rate"], abs=1e-4)
    for name, (reached, _, rate), median in zip(STEPS, steps, seconds, strict=True):
        lost, came = figures["onboarding_drop_off", name]
        assert came == reached and lost == pytest.approx(rate, abs=1e-4)
        assert figures["onboarding_step_seconds", name][0] == pytest.approx(median, abs=1e-3)


# Access. "token": with a session's token besides the credentials; the answer depends on the token alone.

MATRIX = """
                          anon  customer  analyst  admin  service  write  read  admin_key
begin                      201       201      201    201      201    201   201        201
session                    401       401      401    401      401    401   401        401
step                       401       401      401    401      401    401   401        401
activity                   401       401      401    401      401    401   401        401
session with token         200       200      200    200      200    200   200        200
step with token            200       200      200    200      200    200   200        200
activity with token        201       201      201    201      201    201   201        201
session of another         404       404      404    404      404    404   404        404
funnel                     401       403      403    200      200    403   403        200
"""
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "begin": ("POST", "/v1/onboarding/sessions", {}),
    "session": ("GET", "/v1/onboarding/session", None),
    "step": ("PUT", "/v1/onboarding/session/steps/business_info", ENTERED["business_info"]),
    "activity": ("POST", "/v1/onboarding/session/activities", {"activity_type": "form_started", "step": "testing"}),
    "funnel": ("GET", "/v1/onboarding/funnel", None),
}
SECRET = "a secret of thirty-two bytes, or more"


def bearer(role: str, **claims: Any) -> str:
    return jwt.encode({"role": role, "exp": time.time() + 600, "email": "ada@example.com", **claims}, SECRET, "HS256")


async def test_the_table_of_callers_and_operations(start: Start, connection: asyncpg.Connection):
    client = await start(jwt_secret=SECRET, trusted_proxies=["127.0.0.1"])
    credentials = {
        "customer": bearer("authenticated"),
        "analyst": bearer("authenticated", app_metadata={"role": "analyst"}),
        "admin": bearer("authenticated", app_metadata={"role": "admin"}),
        "service": bearer("service_role"),
        "write": await api_keys.create(connection, "w", ["write"]),
        "read": await api_keys.create(connection, "r", ["read"]),
        "admin_key": await api_keys.create(connection, "a", ["admin"]),
    }
    visitor = await begin(client)
    header, *lines = MATRIX.strip("\n").splitlines()
    callers = header.split()
    expected = {line[:24].strip(): dict(zip(callers, map(int, line[24:].split()), strict=True)) for line in lines}
    found: dict[str, dict[str, int]] = {}
    for row in expected:
        what, _, whose = row.partition(" ")
        method, path, body = REQUESTS[what]
        token = {"": {}, "with token": visitor.headers, "of another": {"X_Session_Token": "sess_" + "x" * 43}}[whose]
        for number, caller in enumerate(callers):
            headers = {"Authorization": f"Bearer {credentials[caller]}"} if caller in credentials else {}
            answer = await client.request(
                method, path, body, **headers, **token, X_Forwarded_For=f"198.51.100.{number}"
            )
            found.setdefault(row, {})[caller] = answer.status
    assert found == expected
    # Invalid credentials are refused even where the token would be enough.
    answer = await client.get("/v1/onboarding/session", Authorization="Bearer nobody's", **visitor.headers)
    assert answer.status == 401


async def test_servers_begin_sessions_without_limit(start: Start, connection: asyncpg.Connection):
    client = await start()
    key = await api_keys.create(connection, "server", ["write"])
    for _ in range(8):
        visitor = await begin(client, {"anonymous_id": "a1"}, Authorization=f"Bearer {key}")
    assert (await visitor.put("business_info")).status == 200
    assert len(await client.fetch("SELECT FROM onboarding.sessions")) == 8


async def test_placeholders_for_the_visitors_ids(client: Client):
    for value in ("", "ada@example.com", "a b", "x" * 256, 5, ["a"], "é"):
        for name in ("anonymous_id", "session_id"):
            answer = await client.post({name: value}, "/v1/onboarding/sessions")
            assert await code(answer) == (422, "invalid_fields")
    for wrong in ({"session_token": "sess_" + "x" * 43}, {"lead_id": "1"}, {"status": "completed"}):
        assert (await client.post(wrong, "/v1/onboarding/sessions")).status == 422
    assert await client.fetch("SELECT FROM onboarding.sessions") == []
