"""Triggers of the database: leads are merged, onboarding advances, events of plain INSERTs are enriched."""

from __future__ import annotations

import datetime
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.support.roles import OURS, TOKEN, acting, affected

SCHEMAS = ["marketing", "onboarding", "analytics", "experiments", "whatsapp", "public", "ingest", "auth"]


async def insert(connection: asyncpg.Connection, table: str, **columns: Any) -> str:
    """Insert a row given as JSON. Returns Postgres' status."""
    names = ", ".join(columns)
    status = await connection.execute(
        f"INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_populate_record(NULL::{table}, $1)",
        json.dumps(columns),
    )
    return str(status)


async def only_row(connection: asyncpg.Connection, table: str) -> asyncpg.Record:
    (row,) = await connection.fetch(f"SELECT * FROM {table}")
    return row


# The documented statements of a visitor.


async def test_lead_as_written(connection: asyncpg.Connection):
    async with acting(connection, "anon"):
        await connection.execute(
            "INSERT INTO marketing.leads (email, company_name, source)"
            " VALUES ('user@company.com', 'Company Inc', 'website-form')"
        )
        await connection.execute("RESET ROLE")
        lead = await only_row(connection, "marketing.leads")
    assert (lead["email"], lead["company_name"], lead["source"]) == (
        "user@company.com",
        "Company Inc",
        "website-form",
    )
    # A form on the website, a company, and its own mail domain.
    assert lead["score"] == 10 + 15 + 10


async def test_event_as_written(connection: asyncpg.Connection):
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    async with acting(connection, "anon"):
        await connection.execute(
            "INSERT INTO analytics.events (type, name, session_id, properties)"
            " VALUES ('user_action', 'demo_request', 'session_123', '{\"page\": \"/demo\"}'::jsonb)"
        )
        await connection.execute("RESET ROLE")
        event = await only_row(connection, "analytics.events")
    assert (event["name"], event["session_id"], event["batch_id"]) == ("demo_request", "session_123", None)
    assert json.loads(event["properties"]) == {"page": "/demo"}


async def test_onboarding_update_as_written(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    async with acting(connection, "anon"):
        await connection.execute(f"SET app.session_token = '{TOKEN}'")
        status = await connection.execute(
            "UPDATE onboarding.sessions SET current_step = 'bot_setup', business_info_completed_at = now()"
            f" WHERE session_token = '{TOKEN}'"
        )
        assert status == "UPDATE 1"
        session = await only_row(connection, "onboarding.sessions")
    assert (session["current_step"], session["status"], session["progress_percentage"]) == (
        "bot_setup",
        "in_progress",
        25,
    )
    assert session["started_at"] == session["business_info_completed_at"] == session["last_activity_at"]
    assert (session["completed_at"], session["abandoned_at"]) == (None, None)


# Leads


async def test_new_lead_is_normalised(connection: asyncpg.Connection):
    await insert(
        connection,
        "marketing.leads",
        email=" \tUser@Company.COM\r\n",
        phone_number="0049 170 / 123-4567",
        company_name="  Company Inc ",
        first_name=" ",
        last_name="",
        notes="  ",
        country_code="de",
    )
    lead = await only_row(connection, "marketing.leads")
    assert (lead["email"], lead["phone_number"], lead["country_code"]) == ("user@company.com", "+491701234567", "DE")
    assert lead["company_name"] == "Company Inc"
    assert (lead["first_name"], lead["last_name"], lead["notes"]) == (None, None, None)
    await connection.execute("UPDATE marketing.leads SET email = ' Other@Company.com ', first_name = ' Ada '")
    lead = await only_row(connection, "marketing.leads")
    assert (lead["email"], lead["first_name"]) == ("other@company.com", "Ada")


PHONES: list[tuple[str, str | None]] = [
    ("+49 170 1234567", "+491701234567"),
    ("+49 (170) 123.45.67", "+491701234567"),
    ("0170-1234567", "01701234567"),
    ("001 555 123 4567", "+15551234567"),
    ("\t+55\u00a011 90000-0000\n", "+5511900000000"),
    ("+44 (0)20 7946 0958", "+442079460958"),
    ("(+49) ( 0 ) 30 1234567", "+49301234567"),
    ("0049 (0)30 1234567", "+49301234567"),
    ("(0) 30 1234567", "0301234567"),
    ("", None),
    (" - ", None),
]


async def test_phone_numbers(connection: asyncpg.Connection):
    for number, (given, _) in enumerate(PHONES):
        await insert(connection, "marketing.leads", email=f"n{number:02}@example.com", phone_number=given)
    stored = await connection.fetch("SELECT phone_number FROM marketing.leads ORDER BY email")
    assert [row["phone_number"] for row in stored] == [wanted for _, wanted in PHONES]


@pytest.mark.parametrize(
    "phone",
    [
        "call me",
        "0170 CALL ME",
        "+49170123456x",
        "123456",
        "++491701234567",
        "1" * 16,
        "0000000000",
        "+0441701234567",
        "0000441701234567",
    ],
)
async def test_invalid_phone_numbers_are_refused(connection: asyncpg.Connection, phone: str):
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await insert(connection, "marketing.leads", email="a@example.com", phone_number=phone)
    assert refused.value.constraint_name == "leads_phone_number_format"


async def test_known_address_is_merged(connection: asyncpg.Connection):
    known = {
        "first_name": "Ada",
        "notes": "Called.",
        "interested_features": ["inbox", "api"],
        "consent": {"terms": "2026"},
    }
    assert await insert(connection, "marketing.leads", email="ada@example.com", source="demo-request", **known) == (
        "INSERT 0 1"
    )
    before = await only_row(connection, "marketing.leads")
    later = {
        "email": "ADA@example.com ",
        "first_name": "Eve",
        "last_name": "Lovelace",
        "phone_number": "0044 20 7946 0000",
        "notes": "Wrote.",
        "interested_features": ["api", "bots"],
        "consent": {"terms": "2027", "newsletter": "2027"},
        "utm_source": "ads",
        "country_code": "gb",
        "source": "contact-form",
        "status": "lost",
    }
    assert await insert(connection, "marketing.leads", **later) == "INSERT 0 0"
    lead = await only_row(connection, "marketing.leads")
    assert (lead["id"], lead["created_at"]) == (before["id"], before["created_at"])
    assert (lead["first_name"], lead["last_name"], lead["phone_number"]) == ("Ada", "Lovelace", "+442079460000")
    assert (lead["source"], lead["status"]) == ("demo-request", before["status"])
    assert lead["notes"] == "Called.\nWrote."
    assert lead["interested_features"] == ["inbox", "api", "bots"]
    assert json.loads(lead["consent"]) == {"terms": "2026", "newsletter": "2027"}
    assert (lead["utm_source"], lead["country_code"]) == ("ads", "GB")
    assert lead["score"] > before["score"]
    assert lead["score"] == await connection.fetchval("SELECT calculate_lead_score(leads) FROM marketing.leads")
    assert lead["updated_at"] > before["updated_at"]
    # The same again changes nothing.
    await insert(connection, "marketing.leads", **later)
    again = await only_row(connection, "marketing.leads")
    assert (again["notes"], again["interested_features"]) == (lead["notes"], lead["interested_features"])


async def test_visitors_cannot_change_a_known_lead_or_learn_that_it_exists(connection: asyncpg.Connection):
    """The same rows are accepted and refused for a known address as for a new one."""
    await insert(
        connection, "marketing.leads", email="ada@example.com", company_name="Hers", consent={"terms": "2026"}
    )
    before = await only_row(connection, "marketing.leads")
    for column, value, outcome in (
        ("company_name", "Mine", "INSERT 0 1"),
        ("phone_number", "+49301234567", "INSERT 0 1"),
        ("notes", "mine", "INSERT 0 1"),
        ("consent", '{"newsletter": "2027"}', "INSERT 0 1"),
        ("phone_number", "none", asyncpg.CheckViolationError),
        ("company_name", "x" * 201, asyncpg.CheckViolationError),
        ("consent", "[]", asyncpg.CheckViolationError),
    ):
        for email in ("ADA@example.com ", "new@example.com"):
            async with acting(connection, "anon"):
                statement = f"INSERT INTO marketing.leads (email, {column}) VALUES ('{email}', '{value}')"
                try:
                    assert await connection.execute(statement) == outcome, (column, email)
                except asyncpg.CheckViolationError as error:
                    assert isinstance(error, outcome), (column, email)  # type: ignore[arg-type]
                    continue
                assert await connection.fetch("SELECT * FROM marketing.leads") == []
                await connection.execute("RESET ROLE")
                assert (
                    await connection.fetchrow("SELECT * FROM marketing.leads WHERE company_name = 'Hers'") == before
                )
                known = await connection.fetchval(
                    f"SELECT duplicate_of FROM marketing.leads WHERE {column}::text = $1"
                    " AND company_name IS DISTINCT FROM 'Hers'", value,
                )  # fmt: skip
                assert known == (before["id"] if email.startswith("ADA") else None)


async def test_callers_cannot_set_what_counts_as_a_duplicate(connection: asyncpg.Connection):
    async with acting(connection, "anon"):
        for columns in ("duplicate_of", "deleted_at"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(
                        f"INSERT INTO marketing.leads (email, {columns}) VALUES ('a@example.com', NULL)"
                    )


async def test_merging_stays_within_the_limits(connection: asyncpg.Connection):
    full = [f"feature {number}" for number in range(49)]
    await insert(
        connection,
        "marketing.leads",
        email="a@example.com",
        notes="a" * 9000,
        interested_features=full,
        consent={"a": "x" * 8000},
    )
    await insert(
        connection,
        "marketing.leads",
        email="a@example.com",
        notes="b" * 9000,
        interested_features=["one", "two"],
        consent={"b": "y" * 8000},
    )
    lead = await only_row(connection, "marketing.leads")
    assert lead["notes"] == "a" * 9000 + "\n" + "b" * 999
    assert lead["interested_features"] == full
    assert json.loads(lead["consent"]).keys() == {"a"}
    await insert(connection, "marketing.leads", email="a@example.com", interested_features=["one"])
    assert (await only_row(connection, "marketing.leads"))["interested_features"] == [*full, "one"]


async def test_a_deleted_lead_is_not_merged_into(connection: asyncpg.Connection):
    await insert(connection, "marketing.leads", email="a@example.com", city="Old")
    await connection.execute("UPDATE marketing.leads SET deleted_at = now()")
    assert await insert(connection, "marketing.leads", email="a@example.com") == "INSERT 0 1"
    assert await insert(connection, "marketing.leads", email="a@example.com", city="New") == "INSERT 0 0"
    leads = await connection.fetch("SELECT deleted_at IS NULL AS in_use, city FROM marketing.leads")
    assert sorted(tuple(lead) for lead in leads) == [(False, "Old"), (True, "New")]


async def test_the_forms_of_one_insert(connection: asyncpg.Connection):
    """Twice in one statement, ON CONFLICT with and without a target, and COPY: one row, no error."""
    statement = "INSERT INTO marketing.leads (email) VALUES ('a@example.com'), ('A@example.com')"
    assert await connection.execute(statement) == "INSERT 0 1"
    for action in ("DO NOTHING", "(email) WHERE deleted_at IS NULL DO UPDATE SET city = 'x'"):
        assert await connection.execute(f"{statement} ON CONFLICT {action}") == "INSERT 0 0"
    await connection.copy_records_to_table(
        "leads", schema_name="marketing", columns=["email"], records=[("a@example.com",), ("b@example.com",)] * 2
    )
    emails = await connection.fetch("SELECT email FROM marketing.leads ORDER BY email")
    assert [row["email"] for row in emails] == ["a@example.com", "b@example.com"]


SCORES: list[tuple[dict[str, Any], int]] = [
    ({"email": "a@gmail.com"}, 10),
    ({"email": "a@company.com"}, 20),
    ({"email": "a@company.com", "source": "demo-request"}, 40),
    ({"email": "a@gmail.com", "phone_number": "+491701234567", "company_name": "x"}, 40),
    ({"email": "a@gmail.com", "first_name": "x"}, 10),
    ({"email": "a@gmail.com", "first_name": "x", "last_name": "y", "notes": "z", "utm_campaign": "c"}, 25),
    ({"email": "a@gmail.com", "interested_features": list("abcdefgh")}, 25),
    (
        {
            "email": "a@company.com",
            "source": "demo-request",
            "phone_number": "+491701234567",
            "company_name": "x",
            "first_name": "x",
            "last_name": "y",
            "notes": "z",
            "utm_campaign": "c",
            "interested_features": list("abcdef"),
        },
        100,
    ),
]


async def test_score(connection: asyncpg.Connection):
    for lead, score in SCORES:
        # A given score is ignored.
        await insert(connection, "marketing.leads", score=99, **lead)
        assert (await only_row(connection, "marketing.leads"))["score"] == score, lead
        await connection.execute("UPDATE marketing.leads SET score = 1")
        assert (await only_row(connection, "marketing.leads"))["score"] == score, lead
        await connection.execute("DELETE FROM marketing.leads")


# Onboarding

STEPS = ["business_info", "whatsapp_integration", "bot_setup", "testing"]


async def update_session(connection: asyncpg.Connection, change: str) -> asyncpg.Record:
    row = await connection.fetchrow(f"UPDATE onboarding.sessions SET {change} RETURNING *")
    assert row is not None
    return row


async def test_each_step_advances_the_session(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    new = await only_row(connection, "onboarding.sessions")
    assert (new["current_step"], new["status"], new["progress_percentage"]) == ("business_info", "not_started", 0)
    assert new["started_at"] is None
    for place, step in enumerate(STEPS):
        session = await update_session(connection, f"{step}_completed_at = now()")
        assert session["progress_percentage"] == 25 * (place + 1)
        assert session["progress_percentage"] == await connection.fetchval(
            "SELECT calculate_onboarding_progress(sessions) FROM onboarding.sessions"
        )
        assert session["current_step"] == [*STEPS, "complete"][place + 1]
        assert session["status"] == ("completed" if place == 3 else "in_progress")
        assert session["last_activity_at"] > new["last_activity_at"]
    assert session["completed_at"] == session["testing_completed_at"]
    assert session["started_at"] == session["business_info_completed_at"]
    later = await update_session(connection, "user_agent = 'x'")
    assert later["completed_at"] == session["completed_at"]


async def test_steps_out_of_order(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    seen = [
        await update_session(connection, f"{step}_completed_at = now()")
        for step in ("bot_setup", "business_info", "testing", "whatsapp_integration")
    ]
    assert [session["current_step"] for session in seen] == [
        "business_info",
        "whatsapp_integration",
        "whatsapp_integration",
        "complete",
    ]
    assert [session["progress_percentage"] for session in seen] == [25, 50, 75, 100]


async def test_completion_cannot_be_claimed(connection: asyncpg.Connection):
    """Neither the last step nor the status completes a session, only completed steps do."""
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    for change in (
        "current_step = 'complete'",
        "status = 'completed', completed_at = now()",
        "progress_percentage = 99",
    ):
        session = await update_session(connection, f"{change}, business_info_completed_at = now()")
        assert (session["current_step"], session["status"]) == ("whatsapp_integration", "in_progress"), change
        assert (session["progress_percentage"], session["completed_at"]) == (25, None), change


async def test_a_step_that_is_undone(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    await update_session(connection, ", ".join(f"{step}_completed_at = now()" for step in STEPS))
    session = await update_session(connection, "testing_completed_at = NULL")
    assert (session["current_step"], session["status"], session["progress_percentage"]) == (
        "testing",
        "in_progress",
        75,
    )
    assert session["completed_at"] is None


async def test_an_abandoned_session_can_continue(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    await update_session(connection, "business_info_completed_at = now() - interval '3 hours'")
    await update_session(connection, "last_activity_at = now() - interval '1 hour'")
    assert await connection.fetchval("SELECT abandon_inactive_sessions()") == 0
    await update_session(connection, "last_activity_at = now() - interval '121 minutes'")
    assert await connection.fetchval("SELECT abandon_inactive_sessions()") == 1
    assert await connection.fetchval("SELECT abandon_inactive_sessions()") == 0
    abandoned = await only_row(connection, "onboarding.sessions")
    assert (abandoned["status"], abandoned["progress_percentage"]) == ("abandoned", 25)
    assert abandoned["abandoned_at"] > abandoned["last_activity_at"]
    async with acting(connection, "anon", {"app.session_token": TOKEN}):
        session = await update_session(connection, "whatsapp_integration_completed_at = now()")
    assert (session["status"], session["abandoned_at"], session["progress_percentage"]) == ("in_progress", None, 50)


async def test_activities_are_activity(connection: asyncpg.Connection):
    await insert(connection, "onboarding.sessions", session_token=TOKEN, id=OURS)
    before = await update_session(connection, "last_activity_at = now() - interval '1 day'")
    async with acting(connection, "anon", {"app.session_token": TOKEN}):
        await connection.execute(
            "INSERT INTO onboarding.step_activities (session_id, step, activity_type)"
            " VALUES ($1, 'business_info', 'form_started')",
            UUID(OURS),
        )
        session = await only_row(connection, "onboarding.sessions")
    assert session["last_activity_at"] - before["last_activity_at"] >= datetime.timedelta(days=1)
    assert session["status"] == "in_progress"
    assert session["started_at"] is not None


@pytest.mark.parametrize("role", ["anon", "service_role"])
async def test_session_is_linked_to_the_lead_with_its_address(connection: asyncpg.Connection, role: str):
    await insert(connection, "marketing.leads", email="ada@example.com", id=OURS)
    async with acting(connection, role, {"app.session_token": TOKEN}):
        await connection.execute(
            "INSERT INTO onboarding.sessions (session_token, business_data)"
            ' VALUES ($1, \'{"email": " ADA@example.com"}\')',
            TOKEN,
        )
        assert (await only_row(connection, "onboarding.sessions"))["lead_id"] == UUID(OURS)
    await insert(connection, "onboarding.sessions", session_token=TOKEN)
    async with acting(connection, role, {"app.session_token": TOKEN}):
        for email, lead_id in (("nobody@example.com", None), ("Ada@Example.com", UUID(OURS))):
            session = await update_session(connection, f"""business_data = '{{"email": "{email}"}}'""")
            assert session["lead_id"] == lead_id
        # The link is permanent: another address does not lead to another lead.
        assert (await update_session(connection, "business_data = '{}'"))["lead_id"] == UUID(OURS)


async def test_session_is_not_linked_to_a_deleted_lead(connection: asyncpg.Connection):
    await insert(connection, "marketing.leads", email="ada@example.com", deleted_at="2026-01-02T00:00:00Z")
    await insert(connection, "onboarding.sessions", session_token=TOKEN, business_data={"email": "ada@example.com"})
    assert (await only_row(connection, "onboarding.sessions"))["lead_id"] is None


# Events of plain INSERTs

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.0 Mobile/15E148 Safari/604.1"
)
WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
AGENTS = {
    IPHONE: ("mobile", "Safari", "iOS"),
    f"{WINDOWS} Chrome/126.0.0.0 Safari/537.36": ("desktop", "Chrome", "Windows"),
    f"{WINDOWS} Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0": ("desktop", "Edge", "Windows"),
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:127.0) Gecko/20100101 Firefox/127.0": (
        "desktop",
        "Firefox",
        "Mac OS X",
    ),
    "Mozilla/5.0 (Linux; Android 14; SM-X200) Chrome/126.0.0.0 Safari/537.36": ("tablet", "Chrome", "Android"),
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": ("bot", None, None),
    "curl/8.5.0": ("other", None, None),
}
"""User agents, each with its device, browser and system."""


@pytest.fixture
async def today(connection: asyncpg.Connection) -> asyncpg.Connection:
    """The connection to a database with today's partition."""
    await connection.execute("SELECT analytics.ensure_events_partition((now() AT TIME ZONE 'UTC')::date)")
    return connection


async def stored_event(connection: asyncpg.Connection, **columns: Any) -> asyncpg.Record:
    await connection.execute("DELETE FROM analytics.events")
    await insert(connection, "analytics.events", type="user_action", name="test", **columns)
    return await only_row(connection, "analytics.events")


async def test_user_agents(today: asyncpg.Connection):
    for agent, described in AGENTS.items():
        event = await stored_event(today, user_agent=agent)
        assert (event["device_type"], event["browser"], event["os"]) == described, agent
    event = await stored_event(today, user_agent=IPHONE, device_type="bot", browser="Mine", os="Own")
    assert (event["device_type"], event["browser"], event["os"]) == ("bot", "Mine", "Own")
    event = await stored_event(today)
    assert (event["device_type"], event["browser"], event["os"]) == (None, None, None)


PAGES: list[tuple[str, str | None, str | None]] = [
    ("https://Example.COM/en/pricing?plan=pro#top", "example.com", "/en/pricing"),
    ("https://user:secret@example.com:8443/a", "example.com", "/a"),
    ("https://example.com", "example.com", "/"),
    ("https://example.com?x=/y", "example.com", "/"),
    ("http://[2001:db8::1]:80/a", "2001:db8::1", "/a"),
    ("/pricing?x=1", None, "/pricing"),
    ("nonsense", None, None),
    ("", None, None),
]


async def test_pages(today: asyncpg.Connection):
    for url, host, path in PAGES:
        event = await stored_event(today, url=url, referrer=url)
        assert (event["page_host"], event["page_path"], event["referrer_host"]) == (host, path, host), url
    event = await stored_event(today, context={"page": {"url": PAGES[0][0], "referrer": "https://other.example/"}})
    assert (event["url"], event["page_host"], event["referrer_host"]) == (PAGES[0][0], "example.com", "other.example")
    pages: list[Any] = [[], "x", None]
    for page in pages:
        assert (await stored_event(today, context={"page": page}))["url"] is None


CAMPAIGNS: list[tuple[str, str | None]] = [
    ("?utm_campaign=spring+sale", "spring sale"),
    ("?a=b&utm_campaign=caf%C3%A9%20%26%20bar#x", "café & bar"),
    ("?utm_campaign=100%", "100%"),
    ("?utm_campaign=%zz%4", "%zz%4"),
    ("?utm_campaign=%ff%fe", "\ufffd\ufffd"),
    ("?utm_campaign=a%00b", "a\ufffdb"),
    ("?utm_campaign=", None),
    ("?utm_campaign=%20", None),
    ("?xutm_campaign=no", None),
    ("#utm_campaign", None),
    ("?utm_campaign=" + "%C3%A9" * 300, "é" * 255),
]


async def test_campaigns(today: asyncpg.Connection):
    for query, campaign in CAMPAIGNS:
        event = await stored_event(today, url=f"https://example.com/{query}")
        assert event["utm_campaign"] == campaign, query
    every = {f"utm_{name}": name for name in ("source", "medium", "campaign", "term", "content")}
    url = "https://example.com/?" + "&".join(f"{name}={value}" for name, value in every.items())
    event = await stored_event(today, url=url)
    assert {name: event[name] for name in every} == every
    assert (await stored_event(today, url=url, utm_term="given"))["utm_term"] == "given"


BOUNDS = {
    "user_id": 255,
    "anonymous_id": 255,
    "session_id": 255,
    "url": 4096,
    "referrer": 4096,
    "page_host": 253,
    "page_path": 4096,
    "referrer_host": 253,
    "utm_source": 255,
    "utm_medium": 255,
    "utm_campaign": 255,
    "utm_term": 255,
    "utm_content": 255,
    "user_agent": 512,
    "browser": 255,
    "os": 255,
    "region": 100,
}


async def test_texts_are_bounded(today: asyncpg.Connection):
    event = await stored_event(today, **dict.fromkeys(BOUNDS, "x" * 10_000))
    assert {name: len(event[name]) for name in BOUNDS} == BOUNDS


async def test_anon_cannot_set_when_an_event_was_received(today: asyncpg.Connection):
    """An import may set it; a visitor has no right to the column."""
    event = await stored_event(today, received_at="2000-01-01T00:00:00Z")
    assert event["received_at"].year == 2000
    event = await stored_event(today)
    assert event["received_at"] == event["created_at"]
    statement = "INSERT INTO analytics.events (type, name, received_at) VALUES ('system', 'ping', '2000-01-01')"
    async with acting(today, "anon"):
        assert await affected(today, statement) is None


async def test_rows_with_a_batch_are_left_unchanged(today: asyncpg.Connection):
    given = {
        "url": "https://example.com/?utm_source=x",
        "user_agent": IPHONE + "x" * 2000,
        "session_id": "s" * 300,
        "received_at": "2000-01-01T00:00:00Z",
    }
    event = await stored_event(today, batch_id=1, **given)
    assert [
        name for name in ("page_host", "page_path", "utm_source", "device_type", "browser", "os") if event[name]
    ] == []
    assert (event["user_agent"], event["session_id"]) == (given["user_agent"], given["session_id"])
    assert event["received_at"].year == 2000


# updated_at, and who may read and call what


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [
        ("marketing.leads", {"email": "a@example.com"}, "city"),
        ("onboarding.sessions", {"session_token": TOKEN}, "user_agent"),
        ("experiments.experiments", {"name": "test"}, "description"),
        (
            "whatsapp.accounts",
            {
                "lead_id": OURS,
                "business_account_id": "1",
                "phone_number_id": "2",
                "phone_number": "+5511900000000",
                "access_token_encrypted": "\\x01",
            },
            "display_name",
        ),
        (
            "whatsapp.templates",
            {"account_id": OURS, "template_name": "test", "category": "utility", "body_text": "a"},
            "footer_text",
        ),
    ],
)
async def test_updated_at_is_maintained(connection: asyncpg.Connection, table: str, row: dict[str, Any], column: str):
    await connection.execute("SET session_replication_role = replica")
    await insert(connection, table, **row)
    await connection.execute("SET session_replication_role = DEFAULT")
    before = await only_row(connection, table)
    await connection.execute(f"UPDATE {table} SET {column} = 'changed', updated_at = '2000-01-01'")
    after = await only_row(connection, table)
    assert after["updated_at"] > before["updated_at"]


async def test_every_updated_at_has_its_trigger(connection: asyncpg.Connection):
    bare = await connection.fetch(
        "SELECT attrelid::regclass::text AS name FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " WHERE attname = 'updated_at' AND relkind = 'r' AND relnamespace::regnamespace::text = ANY ($1)"
        " AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND tgname = 'touch') ORDER BY 1",
        SCHEMAS,
    )
    # The service's own tables set it themselves.
    assert {row["name"] for row in bare} <= {"analytics.journals", "analytics.event_aggregations"}


async def test_index_usage_is_for_service_role(connection: asyncpg.Connection):
    statement = (
        "SELECT schema_name, table_name, index_name, idx_scan, size, usage_class FROM public.index_usage_stats"
    )
    async with acting(connection, "service_role"):
        rows = await connection.fetch(statement)
    assert ("marketing", "leads", "leads_email_key") in {
        (row["schema_name"], row["table_name"], row["index_name"]) for row in rows
    }
    for role in ("anon", "authenticated"):
        async with acting(connection, role):
            assert await affected(connection, statement) is None


async def test_every_function_is_explained_and_has_a_fixed_search_path(connection: asyncpg.Connection):
    functions = await connection.fetch(
        "SELECT oid::regprocedure::text AS name, proconfig::text AS settings,"
        " obj_description(oid, 'pg_proc') AS comment FROM pg_proc"
        " WHERE pronamespace::regnamespace::text = ANY ($1) AND prokind = 'f'",
        [schema for schema in SCHEMAS if schema != "auth"],
    )
    assert len(functions) > 30
    assert [row["name"] for row in functions if "search_path=" not in (row["settings"] or "")] == []
    assert [row["name"] for row in functions if not row["comment"]] == []
