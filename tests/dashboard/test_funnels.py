"""The page Funnels of a real worker: its numbers, building and saving a funnel, who may, and what is refused."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg
import pytest

from tests.support.aggregates import Event
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key
from tests.support.statistics import store

NOW = datetime.now(UTC).replace(microsecond=0)
HOSTILE = ("<script>alert(1)</script>", "javascript:alert(1)", "x" * 100, '"><img src=x onerror=alert(1)>', "a,b")


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


@pytest.fixture
async def admin(client: Client) -> Viewer:
    return await signed_in(client, ADMIN)


@pytest.fixture
async def analyst(client: Client, database_url: str) -> Viewer:
    return await signed_in(client, await new_key(database_url, "read"))


async def signed_in(client: Client, key: str) -> Viewer:
    viewer = Viewer(client)
    assert (await viewer.sign_in(key)).status == 303
    return viewer


async def page(viewer: Viewer, path: str = "/funnels", **query: str) -> str:
    answer = await viewer.get(f"{path}?{urlencode(query)}" if query else path)
    assert answer.status == 200, answer
    return answer.body.decode()


async def refusal(viewer: Viewer, path: str, **query: str) -> str:
    answer = await viewer.get(f"{path}?{urlencode(query)}")
    assert answer.status == 400, answer
    return words(answer.body.decode())


async def rows(viewer: Viewer, panel: str, **query: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(await page(viewer, f"/panels/{panel}.csv", **query))))


def words(text: str) -> str:
    """What is read: without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def link(text: str, name: str) -> str:
    """Where the link with this name (its aria-label, or its text) leads."""
    found = {label or words(inner): where for where, label, inner in LINK.findall(text)}
    return html.unescape(found[html.escape(name, quote=True)])


LINK = re.compile(r'<a(?: class="[^"]*")? href="([^"]*)"(?: aria-label="([^"]*)")?>(.*?)</a>', re.DOTALL)


def seen(ago: float, name: str, person: str, **more: Any) -> Event:
    return Event(NOW - timedelta(hours=ago), name, anonymous_id=person, **more)


def view(ago: float, person: str, path: str = "/", **more: Any) -> Event:
    return seen(ago, "page_view", person, type="page_view", page_path=path, **more)


# Its numbers.


def counted(events: Sequence[Event], matches: Sequence[Any], within: timedelta) -> list[int]:
    """How many people did each number of steps, by trying every first step."""
    reached = [0] * len(matches)
    for person in {event.anonymous_id for event in events}:
        own = sorted((event for event in events if event.anonymous_id == person), key=lambda event: event.created_at)
        best = 0
        for place, first in enumerate(own):
            if not matches[0](first):
                continue
            done = 1
            for event in own[place + 1 :]:
                if done < len(matches) and matches[done](event) and event.created_at - first.created_at <= within:
                    done += 1
            best = max(best, done)
        for step in range(best):
            reached[step] += 1
    return reached


async def test_numbers_are_those_of_the_events(admin: Viewer, connection: asyncpg.Connection):
    random = Random(7)
    events = []
    for _ in range(900):
        ago, person = random.uniform(0.2, 200), f"p{random.randrange(60)}"
        country = random.choice(["DE", "BR"])
        kind = random.choice(["view", "pricing", "signup", "order"])
        if kind in ("view", "pricing"):
            events.append(view(ago, person, "/pricing" if kind == "pricing" else "/", country=country))
        else:
            type_ = "conversion" if kind == "order" else "user_action"
            events.append(seen(ago, kind, person, type=type_, country=country))
    await store(connection, *events)
    matches = [
        lambda event: event.page_path == "/pricing",
        lambda event: event.name == "signup",
        lambda event: event.type == "conversion",
    ]
    steps = "page:/pricing,signup,type:conversion"
    for within, length in (("12h", timedelta(hours=12)), ("7d", timedelta(days=7))):
        for country in ("", "DE"):
            some = [event for event in events if country in ("", event.country)]
            filters = {"country": country} if country else {}
            found = await rows(admin, "funnel", steps=steps, within=within, **filters)
            expected = counted(some, matches, length)
            assert [int(row["People"]) for row in found] == expected
            assert expected[0] > expected[1] > expected[2] > 0
            assert [row["Lost"] for row in found[1:]] == [str(a - b) for a, b in pairwise(expected)]
            assert float(found[2]["Of the first"]) == pytest.approx(expected[2] / expected[0], abs=1e-4)
            shown = words(await page(admin, steps=steps, within=within, **filters))
            assert f"{expected[2]} of {expected[0]} people" in shown
            assert "Page /pricing" in shown and "Any conversion" in shown
    # The filter by an event's name would leave no other step.
    assert await rows(admin, "funnel", steps=steps, event="signup") == await rows(admin, "funnel", steps=steps)
    assert "filter by event is left out" in await page(admin, steps=steps, event="signup")


async def test_the_built_in_funnel(analyst: Viewer, connection: asyncpg.Connection):
    shown = words(await page(analyst))
    assert "neither a lead nor onboarding nor a conversion" in shown and "POST /v1/leads" in shown
    await store(
        connection,
        *[view(9, f"p{number}") for number in range(4)],
        *[seen(8, "lead_created", f"p{number}", type="conversion") for number in range(3)],
        *[seen(7, "onboarding_started", f"p{number}") for number in range(3)],
        *[seen(6 - step, "onboarding_step_completed", "p0") for step in range(4)],
        *[seen(2, "onboarding_completed", "p0", type="conversion")],
        seen(6, "onboarding_step_completed", "p1"),
    )
    found = await rows(analyst, "funnel")
    assert [(row["Step"], int(row["People"])) for row in found] == [
        *(("Visitors", 4), ("Lead", 3), ("Onboarding started", 3), ("Business info", 2), ("WhatsApp", 1)),
        *(("Bot setup", 1), ("Testing", 1)),
    ]
    assert float(found[1]["Median seconds"]) == 3600
    # Another range: what is shown is kept for two seconds.
    assert "so has no step: a conversion of your own" in words(await page(analyst, period="7d"))
    await store(connection, seen(1, "order", "p0", type="conversion"), seen(1, "order", "p3", type="conversion"))
    found = await rows(analyst, "funnel")
    assert (found[-1]["Step"], found[-1]["People"]) == ("Converted", "1")
    listed = await rows(analyst, "funnels")
    assert [(row["Funnel"], row["Began"], row["Finished"]) for row in listed] == [
        ("From visitor to customer", "4", "1")
    ]


async def test_a_range_that_is_too_long(admin: Viewer, connection: asyncpg.Connection):
    await store(connection, view(2, "p"), seen(1, "signup", "p"))
    asked = {"period": "90d", "steps": "type:page_view,signup"}
    text = await page(admin, **asked)
    assert "at most 31 days; this range has 90" in words(text)
    shorter = link(text, "last 30 days")
    # With the steps.
    assert "steps=" in shorter and "1 of 1 people" in words(await page(admin, shorter))
    assert "at most 31 days" in await refusal(admin, "/panels/funnel.csv", **asked)
    last = re.search(r'href="([^"]*period=custom[^"]*)"', text)
    assert last is not None and "1 of 1 people" in words(await page(admin, html.unescape(last[1])))


# Building one.


async def test_building_by_clicking(analyst: Viewer, connection: asyncpg.Connection):
    await store(connection, view(3, "p", "/a"), view(2, "p", "/b"), seen(1, "sign,up", "p"), seen(1, "page:odd", "p"))
    text = await page(analyst)
    text = await page(analyst, link(text, "build a funnel of your own"))
    assert "Add the first next to this" in words(text) and "No steps yet" in words(text)
    text = await page(analyst, link(text, "Add /b 1"))
    assert "Add another" in words(text)
    text = await page(analyst, link(text, "Add sign,up 1"))
    assert "1 of 1 people" in words(text)
    text = await page(analyst, link(text, "Add /a 1"))
    assert "0 of 1 people" in words(text)
    text = await page(analyst, link(text, "Move Page /a up"))
    text = await page(analyst, link(text, "Move Page /b down"))
    assert "1 of 1 people" in words(text)
    text = await page(analyst, link(text, "Add page:odd 1"))
    found = dict(re.findall(r'name="(steps|within)" value="([^"]*)"', text))
    assert html.unescape(found["steps"]) == 'page:/a,page:/b,"sign,up",event:page:odd'
    text = await page(analyst, link(text, "Remove page:odd"))
    # The same by typing, in a form: what it sends.
    sent = await page(analyst, steps="page:/a,page:/b", add="sign,up", within="7d")
    assert "1 of 1 people" in words(sent)
    assert 'option value="sign,up"' in sent and 'option value="page:/a"' in sent and 'value="type:page_view"' in sent
    # Another range keeps it.
    assert "1 of 1 people" in words(await page(analyst, link(sent, "7 days")))


async def test_what_does_not_occur_is_told_apart(admin: Viewer, connection: asyncpg.Connection):
    await store(connection, view(3, "p", "/pricing"), seen(1, "signup_completed", "p"))
    text = await page(admin, steps="type:page_view", add="Signup")
    assert "Nothing in this range is called “Signup”. Did you mean signup_completed" in words(text)
    text = await page(admin, link(text, "signup_completed 1"))
    assert "1 of 1 people" in words(text) and "Nothing in this range" not in text
    assert "Nothing in this range is called “Page /no”." in words(await page(admin, steps="type:page_view,page:/no"))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"steps": "a,b,c,d,e,f,g,h,i,j", "add": "k"}, "at most 10 steps"),
        ({"steps": "type:nothing,b"}, "A step is the name of an event"),
        ({"steps": '"a'}, "double quotes"),
        ({"steps": "a,b", "within": "32d"}, "within must be"),
        ({"steps": "a,b", "within": "x"}, "within must be"),
        ({"funnel": "no-id"}, "There is no such funnel"),
        ({"funnel": "00000000-0000-4000-8000-000000000000", "steps": "a,b"}, "There is no such funnel"),
    ],
)
async def test_bad_input_is_said(admin: Viewer, query: dict[str, str], said: str):
    text = words(await page(admin, **query))
    assert text.count(said) >= 2, text
    assert "All funnels" in text
    assert (await admin.get(f"/panels/funnel.csv?{urlencode(query)}")).status in (400, 404)


# Saving one.


async def test_saving_changing_deleting(analyst: Viewer, client: Client, connection: asyncpg.Connection):
    await store(connection, view(3, "p", "/a"), seen(1, "signup", "p"))
    fields = {"name": "  First\n two ", "steps": "page:/a,signup", "within": "12h", "view": "period=7d&steps=evil"}
    answer = await analyst.post("/funnels/save", fields)
    assert answer.status == 303
    where = answer.headers["Location"]
    assert re.fullmatch(r"/funnels\?period=7d&funnel=[0-9a-f-]{36}", where)
    saved = await client.fetch_now("SELECT * FROM analytics.saved_funnels")
    assert [(row["name"], row["steps"], row["within_seconds"]) for row in saved] == [
        ("First two", ["page:/a", "signup"], 43_200)
    ]
    assert "First two" in await page(analyst, where)
    assert [row["Funnel"] for row in await rows(analyst, "funnels", period="7d")] == ["First two"]
    twice = await analyst.post("/funnels/save", fields)
    assert twice.status == 422 and "already a funnel called “First two”" in words(twice.body.decode())
    other = await analyst.post("/funnels/save", {**fields, "name": "Other", "view": ""})
    other_id = other.headers["Location"].partition("funnel=")[2]
    # What is changed goes on being a change of the saved one.
    text = await page(analyst, funnel=other_id)
    text = await page(analyst, link(text, "Remove Page /a"))
    assert f'action="/funnels/{other_id}/change"' not in text  # One step cannot be saved.
    text = await page(analyst, funnel=other_id, steps="signup", add="page:/a", within="12h")
    assert f'action="/funnels/{other_id}/change"' in text
    changed = {"name": "Renamed", "steps": "signup,page:/a,signup", "within": "1h"}
    assert (await analyst.post(f"/funnels/{other_id}/change", changed)).status == 303
    taken = await analyst.post(f"/funnels/{other_id}/change", {**changed, "name": "First two"})
    assert taken.status == 422 and "already" in taken.body.decode()
    listed = await rows(analyst, "funnels")
    assert [(row["Funnel"], row["Steps"], row["Within"]) for row in listed] == [
        *(("First two", "page:/a,signup", "12h"), ("Renamed", "signup,page:/a,signup", "1h")),
    ]
    assert (await analyst.post(f"/funnels/{other_id}/delete")).headers["Location"] == "/funnels"
    assert [row["Funnel"] for row in await rows(analyst, "funnels")] == ["First two"]
    for path in (f"/funnels/{other_id}/delete", "/funnels/x/delete"):
        assert (await analyst.post(path)).status == 404
    assert (await analyst.post(f"/funnels/{other_id}/change", changed)).status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"name": " ", "steps": "a,b", "within": "7d"},
        {"name": "x" * 101, "steps": "a,b", "within": "7d"},
        {"name": "x", "steps": "a", "within": "7d"},
        {"name": "x", "steps": "a,b,c,d,e,f,g,h,i,j,k", "within": "7d"},
        {"name": "x", "steps": "type:x,b", "within": "7d"},
        {"name": "x", "steps": "a,b", "within": "40d"},
        {"name": "x", "steps": "a,b"},
        {},
    ],
)
async def test_what_cannot_be_saved(admin: Viewer, client: Client, fields: dict[str, str]):
    assert (await admin.post("/funnels/save", fields)).status == 422
    assert not await client.fetch_now("SELECT FROM analytics.saved_funnels")


async def test_no_more_than_fifty(admin: Viewer, connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO analytics.saved_funnels (name, steps)"
        " SELECT number::text, '{a,b}' FROM generate_series(1, 50) AS number"
    )
    refused = await admin.post("/funnels/save", {"name": "x", "steps": "a,b", "within": "7d"})
    assert refused.status == 422 and "50 saved funnels" in refused.body.decode()
    assert len(await rows(admin, "funnels")) == 50


async def test_who_may(client: Client, analyst: Viewer):
    nobody = Viewer(client)
    fields = {"name": "x", "steps": "a,b", "within": "7d"}
    assert (await nobody.get("/funnels")).headers["Location"].startswith("/sign-in?next=")
    for path in ("/funnels/save", f"/funnels/{'0' * 8}/delete"):
        assert (await nobody.post(path, fields)).headers["Location"].startswith("/sign-in")
        assert (await analyst.send(path, fields)).status == 403
        assert (await analyst.send(path, {**fields, "form_token": "x" * 40})).status == 403
        assert (await analyst.post(path, fields, Sec_Fetch_Site="cross-site")).status == 403
    assert not await client.fetch_now("SELECT FROM analytics.saved_funnels")


async def test_texts_stay_texts(admin: Viewer, connection: asyncpg.Connection):
    await store(
        connection,
        *[seen(2, text, "p") for text in HOSTILE],
        *[view(1, "p", f"/{text}") for text in HOSTILE],
        seen(2, "=1+1", "p"),
    )
    for text in HOSTILE:
        query = {"steps": "", "add": text}
        shown = await page(admin, **query)
        assert text not in shown.replace(html.escape(text), "") or "<" not in text
        assert "<script>alert" not in shown and "<img" not in shown and 'href="javascript' not in shown
        assert (await admin.post("/funnels/save", {"name": text, "steps": "=1+1,b", "within": "1d"})).status == 303
    shown = await page(admin)
    assert "<script>alert" not in shown and "<img" not in shown and 'href="javascript' not in shown
    found = await rows(admin, "funnel", steps="=1+1,b")
    assert found[0]["Event"] == "'=1+1"
    answer = await admin.get("/funnels?funnel=" + quote("<script>alert(1)</script>"))
    assert "<script>alert" not in answer.body.decode()
    # A view that leads elsewhere leads to our page.
    sent = {"name": "x", "steps": "a,b", "within": "1d", "view": "//evil.example/\r\nSet-Cookie: a=b"}
    where = (await admin.post("/funnels/save", sent)).headers["Location"]
    assert where.startswith("/funnels?") and "\n" not in where


async def test_a_shared_view_shows_its_funnel_alone(admin: Viewer, client: Client, connection: asyncpg.Connection):
    await store(connection, view(3, "p", "/a"), seen(1, "signup", "p"))
    fields = {"name": "For you", "page": "/funnels", "query": "steps=page:/a,signup&timezone=UTC", "days": "7"}
    assert (await admin.post("/shares", fields)).status == 303
    path = re.search(r"/shared/[A-Za-z0-9_.-]+", (await admin.get("/shares")).body.decode())
    assert path is not None
    stranger = Viewer(client)
    text = await page(stranger, path[0])
    assert "1 of 1 people" in words(text) and "form_token" not in text and "All funnels" not in text
    assert "Next step" not in text
    for panel in ("funnels", "funnel-steps", "funnels.csv"):
        assert (await stranger.get(f"{path[0]}/panels/{panel}")).status == 404
    assert "signup" in (await stranger.get(f"{path[0]}/panels/funnel.csv")).body.decode()
