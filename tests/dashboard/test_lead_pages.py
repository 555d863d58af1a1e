"""The pages of leads: the list and its export equal SQL, whose events are shown, changes are made and refused."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qs, quote

import pytest

from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key, signed_in

HOSTILE: dict[str, Any] = {
    "email": "a" * 60 + "@shop.example",
    "first_name": "<script>alert(1)</script>",
    "last_name": "w" * 70,
    "company_name": "=HYPERLINK(1)",
    "source": "demo-request",
    "notes": "\n</textarea><script>alert(2)</script>" + "w" * 9000,
    "landing_page": "javascript:alert(1)",
    "utm_source": "<i>",
    "consent": {"newsletter": True},
}


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN], api_rate_limit_per_second=0)


@pytest.fixture
async def admin(client: Client) -> Viewer:
    return await signed_in(client, ADMIN)


async def lead(client: Client, email: str, **fields: Any) -> str:
    given = {"email": email, "source": "website-form", **fields}
    answer = await client.post(given, "/v1/leads", Authorization=f"Bearer {ADMIN}")
    assert answer.status in (200, 201), answer.body
    return str(answer.json()["id"])


def text_of(html: bytes) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html.decode())).split())


async def emails(viewer: Viewer, query: str = "") -> list[str]:
    answer = await viewer.get(f"/panels/leads{query}")
    assert answer.status == 200, answer.body
    return re.findall(r'<td class="text wrap named">([^<]*)</td>', answer.body.decode())


# The list.


async def test_without_any_it_says_how_to_get_one(admin: Viewer):
    assert '/v1/leads -d \'{"email"' in text_of((await admin.get("/leads")).body)
    assert "No lead matches" in text_of((await admin.get("/leads?status=lost")).body)


async def test_filters_are_those_of_the_url(client: Client, admin: Viewer):
    await lead(client, "ann@shop.example", company_name="Zoo", source="demo-request", phone_number="+49301234567")
    await lead(client, "ben@shop.example", company_name="Anna's")
    old = await lead(client, "cat@shop.example", utm_source="x")
    await client.fetch_now("UPDATE marketing.leads SET created_at = now() - interval '45 days' WHERE id = $1", old)
    await client.fetch_now("UPDATE marketing.leads SET status = 'lost' WHERE email LIKE 'ben%'")
    assert await emails(admin) == ["ben@shop.example", "ann@shop.example"]
    assert await emails(admin, "?period=90d") == ["ben@shop.example", "ann@shop.example", "cat@shop.example"]
    assert await emails(admin, "?q=ann") == ["ben@shop.example", "ann@shop.example"], "by company, and by address"
    assert await emails(admin, "?q=ann@") == ["ann@shop.example"]
    assert await emails(admin, "?status=lost") == ["ben@shop.example"]
    assert await emails(admin, "?source=demo-request") == ["ann@shop.example"]
    scores = dict(tuple(row) for row in await client.fetch("SELECT email, score FROM marketing.leads"))
    least = scores["ann@shop.example"]
    assert await emails(admin, f"?min_score={least}&period=90d") == [
        email for email in ("ben@shop.example", "ann@shop.example", "cat@shop.example") if scores[email] >= least
    ]
    assert scores["cat@shop.example"] < least
    for wrong in ("status=nonsense", "min_score=101", "min_score=x", "source=x", "cursor=x", "q=" + "a" * 300):
        answer = await admin.get(f"/panels/leads?{wrong}")
        assert answer.status == 422 and b'class="mistake"' in answer.body, wrong
        assert (await admin.get(f"/leads?{wrong}")).status == 200, "the page says so in its panel"


async def test_a_range_keeps_the_filters_and_the_other_way_round(admin: Viewer):
    body = (await admin.get("/leads?status=new&q=ann&period=7d&cursor=x")).body.decode()
    links = [unescape(each) for each in re.findall(r'<li><a href="([^"]*)"', body)]
    assert "/leads?period=90d&status=new&q=ann" in links, links
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', body.split('role="search"')[1]))
    assert fields == {"period": "7d"}


async def test_times_are_in_the_viewers_zone(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example")
    await client.fetch_now("UPDATE marketing.leads SET created_at = date_trunc('day', now()) - interval '5 hours'")
    there = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(minutes=30)
    shown = f"{there.day} {there:%b %Y}, 00:30:00"
    assert shown in text_of((await admin.get("/leads?timezone=Asia/Kolkata")).body)
    assert f"Created {shown}" in text_of((await admin.get(f"/leads/{id}?timezone=Asia/Kolkata")).body)


async def test_pages_by_cursor_show_each_lead_once(client: Client, admin: Viewer):
    await client.fetch_now(
        "INSERT INTO marketing.leads (email, source) SELECT 'a' || number || '@shop.example', 'website-form'"
        " FROM generate_series(1, 120) AS number"
    )
    found: list[str] = []
    query = "?q=a"
    for _ in range(3):
        found += await emails(admin, query)
        body = (await admin.get(f"/panels/leads{query}")).body.decode()
        link = re.search(r'href="/leads(\?[^"]*)" rel="next"', body)
        query = unescape(link[1]) if link else ""
    assert query == "" and len(found) == len(set(found)) == 120


# The export.


async def test_the_export_is_what_is_filtered(client: Client, admin: Viewer):
    await lead(client, HOSTILE["email"], **{key: value for key, value in HOSTILE.items() if key != "email"})
    await lead(client, "ben@shop.example")
    body = (await admin.get("/leads?source=demo-request")).body.decode()
    links = {unescape(each) for each in re.findall(r'href="(/leads/export[^"]*)" download', body)}
    assert links == {f"/leads/export?format={form}&source=demo-request" for form in ("csv", "ndjson")}
    answer = await admin.get("/leads/export?format=csv&source=demo-request")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="leads.csv"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    [row] = csv.DictReader(io.StringIO(answer.body.decode()))
    assert row["email"] == HOSTILE["email"] and row["company_name"] == "'=HYPERLINK(1)"
    lines = (await admin.get("/leads/export?format=ndjson")).body.decode().splitlines()
    [stored] = await client.fetch("SELECT array_agg(email ORDER BY created_at DESC) AS emails FROM marketing.leads")
    assert [json.loads(line)["email"] for line in lines] == stored["emails"]
    assert (await admin.get("/leads/export?period=today&q=nobody")).body.count(b"\n") == 1
    assert (await admin.get("/leads/export?format=xml")).status == 422
    assert (await admin.get("/leads/export?period=nonsense")).status == 400


async def test_nobody_else_exports(client: Client, database_url: str):
    await lead(client, "ann@shop.example")
    assert (await Viewer(client).get("/leads/export")).headers["Location"].startswith("/sign-in?")
    analyst = Viewer(client)
    await analyst.sign_in(await new_key(database_url, "read"))
    for path in ("/leads/export", "/leads", "/panels/leads", "/panels/leads.csv"):
        answer = await analyst.get(path)
        assert answer.status == 403 and b"ann@" not in answer.body, path


# One.


async def test_a_lead_with_all_that_is_known(client: Client, admin: Viewer):
    id = await lead(client, HOSTILE["email"], **{key: value for key, value in HOSTILE.items() if key != "email"})
    await client.post({**HOSTILE, "first_name": "Another"}, "/v1/leads")
    page = (await admin.get(f"/leads/{id}")).body.decode()
    text = text_of(page.encode())
    for shown in ("javascript:alert(1)", HOSTILE["email"], "Later submissions", "Another", "newsletter,"):
        assert shown in text, shown
    assert page.count("<script") == page.count('<script type="module"')
    assert not re.search(r"href=\"(javascript|mailto|tel):|style=\"|<i>|\son\w+=", page)
    # The first line feed of a textarea is dropped by browsers: there is one more.
    notes = re.search(r'<textarea id="notes"[^>]*>(.*?)</textarea>', page, re.S)
    assert notes is not None and unescape(notes[1]) == "\n" + HOSTILE["notes"]


async def test_whose_events_are_shown(client: Client, admin: Viewer):
    """Those that the page says, and nobody else's."""
    id = await lead(client, "ann@shop.example", anonymous_id="browser-1", session_id="visit-1")
    other = await lead(client, "ben@shop.example", anonymous_id="browser-2")
    theirs = [
        {"name": "as_browser", "anonymous_id": "browser-1"},
        {"name": "as_visit", "session_id": "visit-1"},
        {"name": "as_user", "user_id": "ann@shop.example"},
        {"name": "as_lead", "user_id": id},
    ]
    nobodys = [
        {"name": "other_browser", "anonymous_id": "browser-2"},
        {"name": "other_user_there", "anonymous_id": "browser-1", "user_id": "u-9"},
        {"name": "only_mentions", "properties": {"email": "ann@shop.example", "lead_id": id}},
        {"name": "lead_created", "anonymous_id": "forged", "properties": {"lead_id": id}},
        {"name": "of_the_forger", "anonymous_id": "forged"},
    ]
    assert (await client.post(theirs + nobodys)).json()["accepted"] == 9
    await client.settled()
    answer = await admin.get(f"/panels/lead-events.csv?id={id}")
    names = [row["name"] for row in csv.DictReader(io.StringIO(answer.body.decode()))]
    assert sorted(names) == ["as_browser", "as_lead", "as_user", "as_visit", "lead_created"]
    [row] = [row for row in csv.DictReader(io.StringIO(answer.body.decode())) if row["name"] == "lead_created"]
    assert row["anonymous_id"] == "browser-1"
    others = (await admin.get(f"/panels/lead-events.csv?id={other}")).body.decode()
    assert "other_browser" in others and "as_browser" not in others
    past = datetime.now(UTC).date() - timedelta(days=3)
    empty = await admin.get(f"/panels/lead-events?id={id}&period=custom&from={past}&to={past}")
    assert "No events of this person in this range" in text_of(empty.body)


async def test_the_newest_hundred_events(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example")
    await client.fetch(
        "INSERT INTO analytics.events (type, name, user_id, created_at)"
        " SELECT 'user_action', 'e' || number, 'ann@shop.example', now() - number * interval '1 us'"
        " FROM generate_series(1, 150) AS number"
    )
    answer = await admin.get(f"/panels/lead-events.csv?id={id}")
    names = [row["name"] for row in csv.DictReader(io.StringIO(answer.body.decode()))]
    assert names == [f"e{number}" for number in range(1, 101)]
    assert "The newest 100" in text_of((await admin.get(f"/panels/lead-events?id={id}")).body)


async def test_onboarding_and_experiments(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example", session_id="visit-1")
    await client.fetch(
        "INSERT INTO onboarding.sessions (lead_id, status, started_at, current_step, progress_percentage)"
        " VALUES ($1, 'in_progress', now(), 'bot_setup', 50)",
        id,
    )
    answer = await client.post(
        {"name": "<u>button", "test_variants": [{"id": "green"}]}, "/v1/experiments", Authorization=f"Bearer {ADMIN}"
    )
    await client.fetch(
        "INSERT INTO experiments.assignments (experiment_id, session_id, variant_id)"
        " VALUES ($1, 'visit-1', 'green'), ($1, 'visit-2', 'control')",
        answer.json()["id"],
    )
    panel = (await admin.get(f"/panels/lead-history?id={id}")).body
    assert "In progress Bot setup" in text_of(panel) and "<u>button green" in text_of(panel)
    assert b"control" not in panel and b"<u>" not in panel
    none = await lead(client, "ben@shop.example")
    assert "No onboarding with this address yet. In no experiment." in text_of(
        (await admin.get(f"/panels/lead-history?id={none}")).body
    )


@pytest.mark.parametrize("id", ["nonsense", "00000000-0000-4000-8000-000000000001", "%3Cb%3E"])
async def test_unknown_ones_are_not_found(admin: Viewer, id: str):
    assert (await admin.get(f"/leads/{id}")).status == 404
    for panel in ("lead-events", "lead-history"):
        assert (await admin.get(f"/panels/{panel}?id={id}")).status == 404
    for action, fields in (("status", {"status": "lost"}), ("notes", {"notes": "a"}),
                           ("interactions", {"interaction_type": "call_made"})):  # fmt: skip
        assert (await admin.post(f"/leads/{id}/{action}", fields)).status == 404


# Changes.


async def test_the_status_changes_as_it_may(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example")
    page = f"/leads/{id}"

    async def offered() -> list[str]:
        return re.findall(r'name="status" value="(\w+)"', (await admin.get(page)).body.decode())

    assert await offered() == ["contacted", "qualified", "lost"]
    answer = await admin.post(f"{page}/status", {"status": "contacted", "query": "period=7d&timezone=Asia/Kolkata"})
    assert answer.headers["Location"] == f"{page}?period=7d&timezone={quote('Asia/Kolkata', safe='')}&done=status"
    assert "The status is saved." in text_of((await admin.get(answer.headers["Location"])).body)
    await admin.post(f"{page}/status", {"status": "converted"})
    assert await offered() == [] and "a customer now" in text_of((await admin.get(page)).body)
    refused = await admin.post(f"{page}/status", {"status": "lost"})
    assert refused.status == 303
    body = text_of((await admin.get(refused.headers["Location"])).body)
    assert "The status was not changed: A lead that is converted keeps this status." in body
    assert "is saved" not in body
    assert (await admin.post(f"{page}/status", {"status": "nonsense"})).status == 422
    changes = await client.fetch("SELECT properties FROM analytics.events WHERE name = 'lead_status_changed'")
    assert {json.loads(row["properties"])["to"] for row in changes} == {"contacted", "converted"}
    for words in ("<b>Call 555</b>", "converted", ""):
        assert b'role="alert"' not in (await admin.get(f"{page}?refused={quote(words)}")).body
        assert b'class="done"' not in (await admin.get(f"{page}?done={quote(words)}")).body


async def test_notes_are_kept_as_typed(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example", notes="before")
    answer = await admin.post(f"/leads/{id}/notes", {"notes": "one\r\n  two <b>"})
    assert answer.status == 303 and answer.headers["Location"] == f"/leads/{id}?done=notes"
    assert "The notes are saved." in text_of((await admin.get(answer.headers["Location"])).body)
    [row] = await client.fetch("SELECT notes FROM marketing.leads")
    assert row["notes"] == "one\n  two <b>"
    assert (await admin.post(f"/leads/{id}/notes", {"notes": "w" * 10_001})).status == 422
    await admin.post(f"/leads/{id}/notes", {"notes": ""})
    assert (await client.fetch("SELECT notes FROM marketing.leads"))[0]["notes"] is None


async def test_an_interaction_is_added(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example")
    path = f"/leads/{id}/interactions"
    fields = {"interaction_type": "call_made", "subject": "<b>Prices", "description": "a\r\nb", "outcome": "positive",
              "scheduled_at": "2026-01-31T18:00", "completed_at": "2026-07-01T09:30", "zone": "Europe/Berlin",
              "query": "period=7d"}  # fmt: skip
    location = (await admin.post(path, fields)).headers["Location"]
    assert location == f"/leads/{id}?period=7d&done=interaction"
    assert "The interaction is recorded." in text_of((await admin.get(location)).body)
    [row] = await client.fetch("SELECT * FROM marketing.lead_interactions")
    assert (row["interaction_type"], row["subject"], row["description"], row["outcome"]) == (
        "call_made", "<b>Prices", "a\nb", "positive",
    )  # fmt: skip
    assert row["scheduled_at"] == datetime(2026, 1, 31, 17, tzinfo=UTC), "winter"
    assert row["completed_at"] == datetime(2026, 7, 1, 7, 30, tzinfo=UTC), "summer"
    text = text_of((await admin.get(f"/leads/{id}?timezone=Europe/Berlin")).body)
    assert "Call made Positive <b>Prices a b" in text and "planned for 31 Jan 2026, 18:00:00" in text
    for wrong in (
        {"interaction_type": "Call made"},
        {"interaction_type": ""},
        {"outcome": "splendid"},
        {"scheduled_at": "tomorrow"},
        {"scheduled_at": "0001-01-01T00:00"},
        {"scheduled_at": "2026-01-31T18:00Z"},
        {"zone": "Europe/Nowhere"},
        {"subject": "w" * 301},
    ):
        answer = await admin.post(path, {**fields, **wrong})
        assert answer.status == 422 and b"<h1>" in answer.body, wrong
    assert len(await client.fetch("SELECT FROM marketing.lead_interactions")) == 1


async def test_a_form_leads_only_back_to_the_lead(client: Client, admin: Viewer):
    id = await lead(client, "ann@shop.example")
    for query in ("//evil.example", "a=b\r\nSet-Cookie: c=d", "x" * 5000, "=&%zz&refused=lost&done=status"):
        answer = await admin.post(f"/leads/{id}/notes", {"notes": "a", "query": query})
        assert answer.status == 303 and "Set-Cookie" not in answer.headers
        assert re.fullmatch(rf"/leads/{id}(\?[\x21-\x7e]*)?", answer.headers["Location"]), query
        assert "refused" not in answer.headers["Location"]
        assert parse_qs(answer.headers["Location"].partition("?")[2])["done"] == ["notes"]
