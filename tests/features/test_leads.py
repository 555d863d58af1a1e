"""Leads over HTTP: what visitors may submit, and how; what admins see, change and export."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import socket
import time
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest

from ingest.api.contact_fields import plain_phone
from ingest.api.csv_cells import disarmed
from ingest.api.problems import Problem
from ingest.features.leads.capture import Captured, may_redirect
from ingest.features.leads.desk import LeadWithInteractions, Page, check_transition
from ingest.features.leads.export import AT_ONCE
from ingest.features.leads.lead import COLUMNS, TRANSITIONS, Lead
from tests.support.collector import Answer, Client, Start, errors

ADMIN = "an-admin-key"
BEARER = f"Bearer {ADMIN}"
FORM = "application/x-www-form-urlencoded"
EMAIL = "ann@shop.example"
EVERYTHING: dict[str, Any] = {
    "email": "  Ann@Shop.Example ",
    "phone_number": "+49 (30) 1234-567",
    "company_name": "Shop",
    "first_name": "Ann",
    "last_name": "Lee",
    "source": "demo-request",
    "notes": "Please call.\nThanks",
    "interested_features": ["bots", "templates"],
    "utm_source": "google",
    "utm_medium": "cpc",
    "utm_campaign": "spring",
    "utm_content": "a",
    "utm_term": "b",
    "referrer": "https://google.com/",
    "landing_page": "https://shop.example/?q=1",
    "user_agent": "Mine/1.0",
    "country_code": "de",
    "region": "BE",
    "city": "Berlin",
    "consent": {"newsletter": True, "terms": "2026-01-02T12:00:00Z", "calls": False},
    "anonymous_id": "anon-1",
    "session_id": "visit-1",
}
LEAD = f"SELECT * FROM marketing.leads WHERE email = '{EMAIL}'"
EVENTS = "SELECT * FROM analytics.events ORDER BY received_at, name"


@pytest.fixture
async def client(start: Start) -> Client:
    """A worker with an admin key, and origins that forms may redirect to."""
    return await start(admin_keys=[ADMIN], redirect_origins=["https://www.shop.example"])


async def post_form(client: Client, fields: Any, **headers: str) -> Answer:
    """A form as a browser sends it; redirects are not followed."""
    body = urlencode(fields).encode()
    async with client.session.post(
        f"{client.url}/v1/leads", data=body, headers={"Content-Type": FORM, **headers}, allow_redirects=False
    ) as response:
        return Answer(response.status, response.headers, await response.read())


def field_errors(answer: Answer) -> dict[str, str]:
    assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json"), answer.body
    listed = answer.json()["errors"]
    found = {error["field"]: error["message"] for error in listed}
    assert len(found) == len(listed), "one error a field"
    return found


# Capturing.


async def test_every_field_of_a_visitor_is_stored(client: Client):
    answer = await client.post(EVERYTHING, "/v1/leads")
    assert answer.status == 201, answer.body
    lead_id = msgspec.json.decode(answer.body, type=Captured).id
    [row] = await client.fetch(LEAD)
    assert row["id"] == lead_id
    same = EVERYTHING.keys() - {"email", "phone_number", "country_code", "consent", "anonymous_id", "session_id"}
    assert {name: row[name] for name in same} == {name: EVERYTHING[name] for name in same}
    assert (row["email"], row["phone_number"], row["country_code"]) == (EMAIL, "+49301234567", "DE")
    assert (str(row["ip_address"]), row["status"]) == ("127.0.0.0", "new")


async def test_consent_is_recorded_with_its_time(client: Client):
    before = time.time()
    future = {"later": "2199-01-01T00:00:00Z", "first": "0001-01-01T00:00:00+14:00"}
    await client.post({**EVERYTHING, "consent": {**EVERYTHING["consent"], **future}}, "/v1/leads")
    [row] = await client.fetch(
        "SELECT (consent ->> 'newsletter')::timestamptz AS newsletter, consent FROM marketing.leads"
    )
    consent = json.loads(row["consent"])
    assert before - 1 <= row["newsletter"].timestamp() <= time.time()
    assert consent["later"] == consent["newsletter"], "nobody agrees later than now"
    assert consent["terms"] == "2026-01-02T12:00:00+00:00"
    assert consent.keys() == {"newsletter", "terms", "later", "first"}, "what is not agreed to is not there"


async def test_a_new_lead_emits_a_conversion_that_identifies_nobody(client: Client):
    lead_id = (await client.post(EVERYTHING, "/v1/leads")).json()["id"]
    [event] = await client.fetch(EVENTS)
    assert (event["name"], event["type"]) == ("lead_created", "conversion")
    assert (event["anonymous_id"], event["session_id"], event["user_id"]) == ("anon-1", "visit-1", None)
    assert json.loads(event["properties"]) == {"lead_id": lead_id, "source": "demo-request"}
    assert (event["utm_source"], event["utm_campaign"], event["user_agent"]) == ("google", "spring", "Mine/1.0")
    text = " ".join(map(str, event.values())).lower()
    assert not [word for word in ("ann@", "1234", "lee", "thanks", "berlin") if word in text]


async def test_with_a_key_a_known_lead_gets_missing_values(client: Client):
    first = await client.post({"email": EMAIL, "company_name": "First"}, "/v1/leads")
    again = await client.post({**EVERYTHING, "source": "contact-form"}, "/v1/leads", Authorization=BEARER)
    assert (first.status, again.status) == (201, 200)
    assert first.json() == again.json()
    [row] = await client.fetch(LEAD)
    assert (row["company_name"], row["first_name"], row["source"]) == ("First", "Ann", "website-form")
    assert json.loads(row["consent"]).keys() == {name for name, agreed in EVERYTHING["consent"].items() if agreed}
    events = await client.fetch(EVENTS)
    assert [(event["name"], event["type"]) for event in events] == [
        ("lead_created", "conversion"),
        ("lead_updated", "user_action"),
    ]


@pytest.mark.parametrize("how", ["json", "form"])
async def test_without_a_key_a_known_lead_does_not_change(client: Client, how: str):
    """Knowing an address is not enough to change its lead or consent, nor to find out that it is known."""
    sent = {"email": EMAIL, "company_name": "Mine", "phone_number": "+49301234567", "notes": "mine", "city": "Bonn"}
    form = {**sent, "consent.newsletter": "on"}
    await client.post({"email": EMAIL, "first_name": "Ann"}, "/v1/leads", Authorization=BEARER)
    [before] = await client.fetch(LEAD)
    answers = []
    for email in (EMAIL, f" {EMAIL.upper()} ", "new@shop.example"):
        if how == "json":
            answer = await client.post({**sent, "email": email, "consent": {"newsletter": True}}, "/v1/leads")
        else:
            answer = await post_form(client, {**form, "email": email})
        answers.append(answer)
    assert {(answer.status, answer.json().keys() == {"id"}, len(answer.body)) for answer in answers} == {
        (201, True, 45)
    }
    assert answers[0].headers.keys() == answers[2].headers.keys()
    assert (await client.fetch(f"SELECT * FROM ({LEAD}) AS lead WHERE id = '{before['id']}'")) == [before]
    found = (await admin(client, "GET", f"/v1/leads/{before['id']}")).json()
    assert (found["company_name"], found["consent"]) == (None, {})
    assert [(said["company_name"], said["notes"], list(said["consent"])) for said in found["submissions"]] == [
        ("Mine", "mine", ["newsletter"])
    ] * 2
    # They are in no list and no figure, and are erased with the person.
    listed = (await admin(client, "GET", "/v1/leads")).json()["leads"]
    assert sorted(lead["email"] for lead in listed) == [EMAIL, "new@shop.example"]
    await client.fetch(f"SELECT gdpr_delete_user_data('{EMAIL}')")
    assert [row["email"] for row in await client.fetch("SELECT email FROM marketing.leads")] == ["new@shop.example"]


async def test_concurrent_leads_of_one_address_are_one(client: Client):
    answers = await asyncio.gather(*[client.post({"email": EMAIL}, "/v1/leads") for _ in range(8)])
    assert [answer.status for answer in answers] == [201] * 8
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await client.fetch("SELECT FROM marketing.leads WHERE deleted_at IS NULL")) == 1
    answers = await asyncio.gather(
        *[client.post({"email": "b@shop.example"}, "/v1/leads", Authorization=BEARER) for _ in range(8)]
    )
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]


async def test_leaving_an_address_proves_nothing(client: Client):
    await client.post({"email": EMAIL}, "/v1/leads")
    await client.post({"email": EMAIL, "first_name": "Ann"}, "/v1/leads")
    logs = await client.fetch("SELECT actor_role, user_email, ip_address FROM public.audit_logs ORDER BY id")
    assert [(log["actor_role"], log["user_email"], str(log["ip_address"])) for log in logs] == [
        ("anon", None, "127.0.0.0")
    ] * 2


async def test_headers_are_used_only_from_visitors(start: Start):
    client = await start(admin_keys=[ADMIN], trusted_proxies=["127.0.0.1"])
    headers = {"CF_IPCountry": "BR", "User_Agent": "Theirs/2.0"}
    await client.post({"email": EMAIL}, "/v1/leads", **headers)
    [row] = await client.fetch(LEAD)
    assert (row["country_code"], row["user_agent"]) == ("BR", "Theirs/2.0")
    # A server's headers are not its visitors'.
    await client.post({"email": "bob@shop.example"}, "/v1/leads", Authorization=BEARER, **headers)
    [row] = await client.fetch("SELECT * FROM marketing.leads WHERE email = 'bob@shop.example'")
    assert (row["country_code"], row["user_agent"], row["ip_address"]) == (None, None, None)
    events = await client.fetch(
        "SELECT country, user_agent, host(ip_address) FROM analytics.events ORDER BY received_at"
    )
    assert [tuple(event) for event in events] == [("BR", "Theirs/2.0", "127.0.0.0"), (None, None, None)]


async def test_ten_an_hour_from_one_address(client: Client):
    answers = [await client.post({"email": f"a{n}@shop.example"}, "/v1/leads") for n in range(11)]
    assert [answer.status for answer in answers] == [201] * 10 + [429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 3600
    assert len(await client.fetch("SELECT FROM marketing.leads")) == 10
    assert len(await client.fetch(EVENTS)) == 10
    # Admins are not limited.
    assert (await client.post({"email": EMAIL}, "/v1/leads", Authorization=BEARER)).status == 201


async def test_each_wrong_field_has_an_error(client: Client):
    wrong = {
        "email": "no address",
        "phone_number": "12",
        "company_name": "",
        "first_name": "x" * 101,
        "source": "nowhere",
        "interested_features": ["a"] * 51,
        "referrer": "x" * 4097,
        "country_code": "DEU",
        "consent": {"newsletter": "maybe"},
        "notes": "a\x00",
        "status": "converted",
        "score": 100,
        "ip_address": "1.2.3.4",
    }
    found = field_errors(await client.post(wrong, "/v1/leads"))
    assert {name.partition("[")[0].partition(".")[0] for name in found} == wrong.keys()
    assert found["email"] == "must be an email address (write a non-ASCII domain in its xn-- form)"
    assert found["phone_number"] == "must be a phone number of 7 to 15 digits"
    assert found["status"].startswith("is unknown")
    assert not await client.fetch("SELECT FROM marketing.leads")
    assert field_errors(await client.post({}, "/v1/leads")) == {"email": "is required"}
    long = {"email": "a" * 65 + "@shop.example"}
    assert "before the @" in field_errors(await client.post(long, "/v1/leads"))["email"]


PHONES = {
    "+49 (30) 1234-567": "+49301234567",
    "0049 30 1234567": "+49301234567",
    "030/1234567": "0301234567",
    "(0) 30 . 1234567\u00a0": "0301234567",
    "+44 (0)20 7946 0958": "+442079460958",
    "+49 (0) 30 1234567": "+49301234567",
    "(0049) (0)30/1234567": "+49301234567",
    "0000000000": None,
    "+0049301234567": None,
    "00 0 30 1234567": None,
    "1234567": "1234567",
    "+44 0 20 7946 0958": "+442079460958",
    "44 (0)20 7946 0958": "442079460958",
    "(44) (020) 7946 0958": "442079460958",
    "+44 (0) 1234": None,
    # Dialled with the zero from abroad too.
    "+39 (0)6 1234567": "+39061234567",
    "+39 06 1234567": "+39061234567",
    "+225 07 12 34 56 78": "+2250712345678",
    "+1 (202) 555-0123": "+12025550123",
    "+420 (0) 212345678": "+420212345678",
    "00" + "1" * 15: "+" + "1" * 15,
    "123456": None,
    "001234": None,
    "1" * 16: None,
    "+49 call me": None,
}


async def test_phone_numbers_are_accepted_as_by_the_database(client: Client):
    for number, (given, stored) in enumerate(PHONES.items()):
        sent = {"email": f"a{number:02}@shop.example", "phone_number": given}
        answer = await client.post(sent, "/v1/leads", Authorization=BEARER)
        assert answer.status == (201 if stored else 422), (given, answer.body)
    rows = await client.fetch("SELECT phone_number FROM marketing.leads ORDER BY email")
    assert [row["phone_number"] for row in rows] == [stored for stored in PHONES.values() if stored]


async def test_a_zero_after_a_country_code_is_never_stored(client: Client):
    chance = random.Random(3)
    zeros = ["", "0", "(0)", "((0))", "(0)(0)", "(00)", "( 0 )", "(0", "((0)", "0(0)", "-0-", "(0) 0"]
    blanks = ["", " ", "-", ".", "/", "\u00a0", " - "]
    given: dict[str, str] = {}
    for code, number in [("44", "2079460958"), ("1", "2025550123"), ("353", "12345678"), ("7", "4951234567")] * 8:
        for zero in zeros:
            prefix = chance.choice(["+", "00", "(+", "0 0 ", "+("])
            close = ")" if "(" in prefix else ""
            for_area = chance.choice(["", "("])
            area = f"{for_area}{number[:2]}{')' if for_area else ''}"
            text = f"{prefix}{code}{close}{chance.choice(blanks)}{zero}{chance.choice(blanks)}{area}"
            given[text + chance.choice(blanks) + number[2:]] = f"+{code}{number}"
    stored = await client.fetch(
        "SELECT ingest.normalised_phone(given) FROM unnest($1::text[]) WITH ORDINALITY AS sent (given, place)"
        " ORDER BY place",
        list(given),
    )
    assert [row[0] for row in stored] == list(given.values())
    assert [plain_phone(text) for text in given] == list(given.values())


async def test_leads_are_found_by_a_domain_as_people_write_it(client: Client):
    sent = {"email": "ann@xn--mnchen-3ya.example", "company_name": "Ann@K\u00f6ln"}
    assert (await client.post(sent, "/v1/leads", Authorization=BEARER)).status == 201
    for beginning, found in [
        ("ann@m\u00fcnchen", 1), ("ANN@M\u00dcNCHEN.exa", 1), ("ann@mu\u0308nchen.example", 1), ("ann@xn--mn", 1),
        ("ann@k\u00f6ln", 1), ("ann@b\u00fccher", 0),
    ]:  # fmt: skip
        answer = await client.request("GET", f"/v1/leads?q={quote(beginning)}", Authorization=BEARER)
        assert len(answer.json()["leads"]) == found, beginning
    errors = field_errors(await client.post({"email": "ann@m\u00fcnchen.example"}, "/v1/leads"))
    assert "xn-- form" in errors["email"]


async def test_every_kind_of_text_is_stored(client: Client):
    hostile = "'; DROP TABLE marketing.leads; -- <script>alert(1)</script> \\ % {0} \u202e\U0001f600\r\nX: y"
    names = (
        "company_name",
        "first_name",
        "notes",
        "city",
        "utm_campaign",
        "anonymous_id",
        "session_id",
        "user_agent",
    )
    sent = {"email": EMAIL, **dict.fromkeys(names, hostile[:90]), "interested_features": [hostile[:50]]}
    assert (await client.post(sent, "/v1/leads")).status == 201
    [row] = await client.fetch(LEAD)
    assert (row["city"], row["interested_features"]) == (hostile[:90], [hostile[:50]])
    [event] = await client.fetch(EVENTS)
    assert event["anonymous_id"] == hostile[:90]


# Forms.


async def test_a_form_is_accepted(client: Client):
    fields = [
        ("email", EMAIL), ("first_name", "Änn"), ("company_name", ""), ("consent.newsletter", "on"),
        ("interested_features", "bots"), ("interested_features", "api"), ("website", ""),
    ]  # fmt: skip
    answer = await post_form(client, fields)
    assert answer.status == 201, answer.body
    [row] = await client.fetch(LEAD)
    assert (row["first_name"], row["company_name"], row["interested_features"]) == ("Änn", None, ["bots", "api"])
    assert json.loads(row["consent"]).keys() == {"newsletter"}
    assert (await post_form(client, [("email", "b@shop.example"), ("interested_features", "one")])).status == 201


async def test_a_form_redirects_its_browser(client: Client):
    for target in ("/thanks?a=1", "https://www.shop.example/thanks", "https://www.shop.example:443"):
        answer = await post_form(client, {"email": EMAIL, "redirect": target})
        assert (answer.status, answer.headers["Location"]) == (303, target)
    assert len(await client.fetch("SELECT FROM marketing.leads WHERE deleted_at IS NULL")) == 1
    # JSON is answered, not redirected.
    assert (await client.post({"email": EMAIL, "redirect": "/thanks"}, "/v1/leads")).status == 201


ELSEWHERE = [
    "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "http://www.shop.example",
    "https://www.shop.example.evil.example", "https://www.shop.example@evil.example", "https:///evil.example",
    "https://evil.example/https://www.shop.example", "https://www.shop.example:444/", "javascript:alert(1)",
    "https://www.shop.example\\@evil.example", "data:text/html,x", "/a\r\nSet-Cookie: a=b", "/a b", "/\u00e4",
    "/thanks\n", "/\t/evil.example", "thanks", "https://[", "https://www.shop.example%2eevil.example/",
]  # fmt: skip


async def test_a_form_redirects_nowhere_else(client: Client):
    for target in ELSEWHERE:
        assert not may_redirect(target, frozenset({"https://www.shop.example"})), target
        answer = await post_form(client, {"email": EMAIL, "redirect": target})
        assert list(field_errors(answer)) == ["redirect"], target
        assert "Location" not in answer.headers and "Set-Cookie" not in answer.headers
    assert not await client.fetch(LEAD)
    # A blank field counts as absent.
    assert (await post_form(client, {"email": EMAIL, "redirect": ""})).status == 201


async def test_bad_forms_are_problems(client: Client):
    found = field_errors(await post_form(client, {"email": "x", "consent": "x", "consent.a": "on", "foo": "1"}))
    assert found.keys() == {"email", "consent", "consent.a", "foo"}
    twice = field_errors(await post_form(client, [("email", EMAIL), ("email", EMAIL)]))
    assert twice.keys() == {"email"}
    for body in (b"email=%FF%FE", b"&".join(b"a%d=1" % n for n in range(300))):
        answer = await client.post(body, "/v1/leads", Content_Type=FORM)
        assert (answer.status, answer.json()["code"]) == (400, "malformed_form")
    answer = await client.post({"email": EMAIL}, "/v1/leads", Content_Type=FORM)
    assert answer.status == 201, "JSON, as curl -d sends it"
    answer = await client.post(b"--x", "/v1/leads", Content_Type="multipart/form-data; boundary=x")
    assert (answer.status, answer.json()["code"]) == (415, "wrong_content_type")


async def test_a_filled_in_honeypot_is_answered_like_success(client: Client, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    answer = await client.post({"email": EMAIL, "website": "https://spam.example"}, "/v1/leads")
    assert answer.status == 201
    msgspec.json.decode(answer.body, type=Captured)
    sent_on = await post_form(client, {"email": EMAIL, "website": "x", "redirect": "/thanks"})
    assert (sent_on.status, sent_on.headers["Location"]) == (303, "/thanks")
    assert not await client.fetch("SELECT FROM marketing.leads")
    assert not await client.fetch(EVENTS)
    assert any("hidden field" in record.getMessage() for record in caplog.records)
    assert (await client.post({"email": EMAIL, "website": ""}, "/v1/leads")).status == 201


async def test_a_full_journal_is_an_honest_503(start: Start):
    client = await start(admin_keys=[ADMIN])
    client.worker.closing = True  # As while it stops: no more events are wanted.
    answer = await client.post({"email": EMAIL}, "/v1/leads")
    assert (answer.status, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) > 0
    assert not await client.fetch("SELECT FROM marketing.leads")


# For admins.


async def admin(client: Client, method: str, path: str, body: Any = None) -> Answer:
    return await client.request(method, path, body, Authorization=BEARER)


async def fill(client: Client, count: int, text: str = "") -> None:
    """Leads of the last minutes, without triggers: every third has the same time as the previous one."""
    await client.fetch(
        "INSERT INTO marketing.leads (email, company_name, source, status, score, notes, created_at)"
        " SELECT format('lead%s@shop.example', n), format('Company %s', n % 10),"
        " (enum_range(NULL::marketing.lead_source))[1 + n % 5], 'new', n % 101, $2,"
        " '2026-01-02 12:00Z'::timestamptz + (n / 3) * interval '1 minute' FROM generate_series(1, $1::int) AS n",
        count, text or None,
    )  # fmt: skip


async def pages(client: Client, query: str, cursor: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = await admin(client, "GET", f"/v1/leads?{query}" + (f"&cursor={cursor}" if cursor else ""))
        assert answer.status == 200, answer.body
        msgspec.json.decode(answer.body, type=Page)
        found += answer.json()["leads"]
        if answer.json()["next"] is None:
            return found
        cursor = answer.json()["next"]


async def test_pages_give_each_lead_once_whatever_is_added_meanwhile(client: Client):
    await fill(client, 50)
    first = (await admin(client, "GET", "/v1/leads?limit=7")).json()
    await client.post({"email": EMAIL}, "/v1/leads")
    rest = await pages(client, "limit=7", first["next"])
    emails = [lead["email"] for lead in first["leads"] + rest]
    assert sorted(emails) == sorted(f"lead{n}@shop.example" for n in range(1, 51))
    moments = [(lead["created_at"], lead["id"]) for lead in first["leads"] + rest]
    assert moments == sorted(moments, reverse=True)
    assert len(await pages(client, "limit=17")) == 51
    assert len((await admin(client, "GET", "/v1/leads?limit=1000")).json()["leads"]) == 51


async def test_filters_are_combined(client: Client):
    await fill(client, 60)
    await client.post(EVERYTHING, "/v1/leads")
    assert {lead["source"] for lead in await pages(client, "source=demo-request")} == {"demo-request"}
    assert [lead["email"] for lead in await pages(client, "q=ANN%40")] == [EMAIL]
    assert [lead["email"] for lead in await pages(client, "q=sho")] == [EMAIL], "a company's beginning"
    assert len(await pages(client, "q=company%203")) == 6
    assert await pages(client, "q=%25") == await pages(client, "q=_") == await pages(client, "q=%5C") == []
    assert all(lead["score"] >= 40 for lead in await pages(client, "min_score=40&limit=5"))
    within = "created_from=2026-01-02T12:05:00Z&created_to=2026-01-02T14:06:00%2B02:00"
    assert {lead["email"] for lead in await pages(client, within)} == {f"lead{n}@shop.example" for n in (15, 16, 17)}
    assert await pages(client, "status=lost") == []
    assert await pages(client, "created_to=0001-01-01T00:00:00%2B14:00") == []


async def test_a_wrong_query_is_refused(client: Client):
    for query, field in (
        ("limit=1001", "limit"), ("limit=0", "limit"), ("cursor=abc", "cursor"), ("status=open", "status"),
        ("created_from=yesterday", "created_from"), ("order=email", "order"), ("min_score=x", "min_score"),
        ("limit=1&limit=2", "limit"),
    ):  # fmt: skip
        assert list(field_errors(await admin(client, "GET", f"/v1/leads?{query}"))) == [field]
    # Any text that looks like a cursor is accepted, even if it is no lead's.
    for cursor in ("_" * 32, "A" * 32, "f" + "_" * 31, "gAAA" * 8):
        assert (await admin(client, "GET", f"/v1/leads?cursor={cursor}")).status == 200


async def test_a_lead_with_its_interactions(client: Client):
    lead_id = (await client.post(EVERYTHING, "/v1/leads")).json()["id"]
    path = f"/v1/leads/{lead_id}"
    sent = {
        "interaction_type": "call_made", "subject": "Hello", "description": "Long", "outcome": "positive",
        "scheduled_at": "2026-01-02T12:00:00+02:00", "completed_at": "0001-01-01T00:00:00+14:00",
        "metadata": {"a": [1, 2.5, {"b": None}]},
    }  # fmt: skip
    answer = await admin(client, "POST", f"{path}/interactions", sent)
    assert answer.status == 201, answer.body
    await admin(client, "POST", f"{path}/interactions", {"interaction_type": "email_sent"})
    found = await admin(client, "GET", path)
    lead = msgspec.json.decode(found.body, type=LeadWithInteractions)
    assert found.json().keys() == {*COLUMNS, "interactions", "submissions"}
    assert (lead.email, lead.score, lead.ip_address) == (EMAIL, 91, "127.0.0.0")
    assert [one.interaction_type for one in lead.interactions] == ["email_sent", "call_made"]
    assert lead.interactions[1].metadata == sent["metadata"]
    assert found.json()["interactions"][1] == answer.json()
    names = [(event["name"], event["type"]) for event in await client.fetch(EVENTS)]
    assert names == [("lead_created", "conversion")] + [("lead_interaction_added", "system")] * 2


async def test_refused_interactions(client: Client):
    lead_id = (await client.post(EVERYTHING, "/v1/leads")).json()["id"]
    for body, field in (
        ({}, "interaction_type"),
        ({"interaction_type": "Call made"}, "interaction_type"),
        ({"interaction_type": "x", "outcome": "good"}, "outcome"),
        ({"interaction_type": "x", "metadata": [1]}, "metadata"),
        ({"interaction_type": "x", "metadata": {"a": "b" * 16_400}}, "metadata"),
        ({"interaction_type": "x", "created_by": lead_id}, "created_by"),
    ):
        assert list(field_errors(await admin(client, "POST", f"/v1/leads/{lead_id}/interactions", body))) == [field]
    nobody = "00000000-0000-4000-8000-000000000000"
    for answer in (
        await admin(client, "POST", f"/v1/leads/{nobody}/interactions", {"interaction_type": "x"}),
        await admin(client, "GET", f"/v1/leads/{nobody}"),
        await admin(client, "PATCH", f"/v1/leads/{nobody}", {"status": "lost"}),
    ):
        assert (answer.status, answer.json()["code"]) == (404, "unknown_lead")
    assert (await admin(client, "GET", "/v1/leads/1")).status == 404


async def test_status_and_notes_change(client: Client):
    lead_id = (await client.post(EVERYTHING, "/v1/leads")).json()["id"]
    path = f"/v1/leads/{lead_id}"
    answer = await admin(client, "PATCH", path, {"status": "contacted", "notes": "Called"})
    assert answer.status == 200, answer.body
    lead = msgspec.json.decode(answer.body, type=Lead)
    assert (lead.status, lead.notes) == ("contacted", "Called")
    assert (await admin(client, "PATCH", path, {"status": "contacted"})).json()["notes"] == "Called"
    assert (await admin(client, "PATCH", path, {"notes": None})).json()["notes"] is None
    assert (await admin(client, "PATCH", path, {})).status == 200
    refused = await admin(client, "PATCH", path, {"status": "new", "notes": "not kept"})
    assert (refused.status, refused.json()["code"]) == (409, "transition_not_allowed")
    assert refused.json()["detail"] == ("a lead that is contacted can become qualified or converted or lost, not new")
    assert (await admin(client, "GET", path)).json()["notes"] is None
    changes = [event for event in await client.fetch(EVENTS) if event["name"] == "lead_status_changed"]
    assert [json.loads(event["properties"]) for event in changes] == [
        {"lead_id": lead_id, "from": "new", "to": "contacted"}
    ]
    assert list(field_errors(await admin(client, "PATCH", path, {"score": 100}))) == ["score"]
    assert list(field_errors(await admin(client, "PATCH", path, {"status": None, "x": 1}))) == ["x"]


def test_every_status_has_its_transitions():
    for before, allowed in TRANSITIONS.items():
        check_transition(before, before)
        for after in TRANSITIONS:
            if after == before or after in allowed:
                check_transition(before, after)
                continue
            with pytest.raises(Problem) as refused:
                check_transition(before, after)
            assert refused.value.status == 409
            assert all(word in refused.value.detail for word in allowed or ("keeps this status",))


async def test_of_two_concurrent_changes_the_second_sees_the_first(client: Client):
    lead_id = (await client.post({"email": EMAIL}, "/v1/leads")).json()["id"]
    wanted = [{"status": "qualified"}, {"status": "lost"}]
    answers = await asyncio.gather(*[admin(client, "PATCH", f"/v1/leads/{lead_id}", body) for body in wanted])
    # new -> qualified -> lost, or new -> lost, which cannot become qualified.
    status = (await admin(client, "GET", f"/v1/leads/{lead_id}")).json()["status"]
    assert (sorted(answer.status for answer in answers), status) in (([200, 200], "lost"), ([200, 409], "lost"))


# Export.


async def test_the_export_has_every_lead(client: Client):
    await fill(client, 450)
    await client.post({**EVERYTHING, "notes": 'a "b", c\nd'}, "/v1/leads")
    answer = await admin(client, "GET", "/v1/leads/export?format=ndjson")
    assert answer.headers["Content-Type"] == "application/x-ndjson; charset=utf-8"
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert lines == await pages(client, "limit=1000")
    msgspec.convert(lines, list[Lead])
    table = await admin(client, "GET", "/v1/leads/export")
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert table.headers["Content-Disposition"] == 'attachment; filename="leads.csv"'
    rows = list(csv.DictReader(io.StringIO(table.body.decode(), newline="")))
    assert [row["email"] for row in rows] == [line["email"] for line in lines]
    assert (rows[0]["notes"], rows[0]["phone_number"]) == ('a "b", c\nd', "+49301234567")
    assert rows[0]["interested_features"] == "bots; templates"
    some = await admin(client, "GET", "/v1/leads/export?format=csv&q=lead44")
    assert len(some.body.splitlines()) == 1 + 11
    nothing = await admin(client, "GET", "/v1/leads/export?q=nobody")
    assert nothing.body.decode().strip() == ",".join(COLUMNS)


async def test_no_cell_is_a_formula(client: Client):
    formulas = {
        "company_name": "=HYPERLINK(\"https://evil.example\")", "first_name": "+1+1", "last_name": "-1+1",
        "city": "@SUM(1)", "utm_source": "\t=1", "utm_term": "\uff1d1", "notes": "fine = fine",
    }  # fmt: skip
    await client.post({"email": EMAIL, "interested_features": ["=1"], **formulas}, "/v1/leads")
    await client.post({"email": "-+=a@shop.example"}, "/v1/leads")
    table = await admin(client, "GET", "/v1/leads/export")
    second, first = csv.DictReader(io.StringIO(table.body.decode(), newline=""))
    armed = formulas.keys() - {"notes"}
    assert {name: first[name] for name in armed} == {name: disarmed(formulas[name]) for name in armed}
    assert all(first[name].startswith("'") for name in armed)
    assert (first["notes"], first["interested_features"]) == ("fine = fine", "'=1")
    assert second["email"] == "'-+=a@shop.example"
    assert disarmed("a=1") == "a=1"
    for cell, guarded in {
        "x;=1+1;y": "x;'=1+1;y",
        "x,=1,y": "x,'=1,y",
        "a|-1": "a|'-1",
        "a\t@SUM(1)": "a\t'@SUM(1)",
        "a\r\n=1": "a\r\n'=1",
        "a; =1": "a; '=1",
        'a;"=1"': 'a;"\'=1"',
        " =1": " '=1",
        ";;+1": ";;'+1",
        "=a;=b": "'=a;'=b",
        "\u3000\uff1d1": "\u3000'\uff1d1",
        "a - b": "a - b",
        "1=1; fine": "1=1; fine",
    }.items():
        assert disarmed(cell) == guarded


async def test_pages_of_listed_origins_may_read_the_export(start: Start):
    client = await start(admin_keys=(ADMIN,), api_origins=("https://desk.example",))
    for origin, allowed in (("https://desk.example", "https://desk.example"), ("https://evil.example", None)):
        answer = await client.get("/v1/leads/export", Authorization=BEARER, Origin=origin)
        assert answer.status == 200
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def raw_export(client: Client, version: str) -> socket.socket:
    """A client that has requested the export and not read any of it yet."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", client.worker.port))
    await loop.sock_sendall(
        sock,
        f"GET /v1/leads/export?format=ndjson HTTP/{version}\r\nHost: x\r\nAuthorization: {BEARER}\r\n\r\n".encode(),
    )
    return sock


EXPORTING = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%marketing.leads%' AND state = 'idle in transaction'"
"""Database connections waiting for a client to read."""


async def waiting_exports(client: Client, count: int) -> list[int]:
    async with asyncio.timeout(60):
        while len(found := await client.fetch(EXPORTING)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return [row["pid"] for row in found]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_error_half_way_does_not_look_like_a_complete_file(
    client: Client, version: str, caplog: pytest.LogCaptureFixture
):
    await client.fetch("ALTER TABLE marketing.leads DISABLE TRIGGER USER")
    await fill(client, 2500, "x" * 9000)
    sock = await raw_export(client, version)
    with sock:
        loop = asyncio.get_running_loop()
        size = len(await loop.sock_recv(sock, 100))
        [pid] = await waiting_exports(client, 1)
        await client.fetch("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(60):
                while piece := await loop.sock_recv(sock, 1 << 20):
                    size += len(piece)
        assert 0 < size < 2500 * 9000
    assert any("ended half-way" in record.getMessage() for record in caplog.records)
    assert errors(caplog) == []


async def test_concurrent_exports_are_limited_and_a_client_that_leaves_makes_room(client: Client):
    await client.fetch("ALTER TABLE marketing.leads DISABLE TRIGGER USER")
    await fill(client, 1500, "x" * 9000)
    socks = [await raw_export(client, "1.1") for _ in range(AT_ONCE)]
    await waiting_exports(client, AT_ONCE)
    answer = await admin(client, "GET", "/v1/leads/export")
    assert (answer.status, answer.json()["code"]) == (503, "busy")
    assert int(answer.headers["Retry-After"]) > 0
    for sock in socks:
        sock.close()
    async with asyncio.timeout(60):
        while (await admin(client, "GET", "/v1/leads/export?q=nobody")).status == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
