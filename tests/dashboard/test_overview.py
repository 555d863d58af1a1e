"""The overview's page: what it says before there are events, and when a part of it takes too long."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import pytest

from ingest.dashboard.sessions import Sessions
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, signed_in

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
VIEW = {"name": "page_view", "type": "page_view", "url": "https://shop.example/pricing", "anonymous_id": "a"}


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN], write_keys=["a-write-key"], dashboard_timeout_seconds=0.5)


@pytest.fixture
async def viewer(client: Client) -> Viewer:
    return await signed_in(client, ADMIN)


async def page(viewer: Viewer, path: str = "/") -> str:
    answer = await viewer.get(path)
    assert answer.status == 200, answer.body
    return re.sub(r"\s+", " ", answer.body.decode())


async def test_before_the_first_event_it_says_how_to_send_one(client: Client, viewer: Viewer):
    shown = await page(viewer)
    where = client.url
    assert "No events yet" in shown and 'class="grid"' not in shown
    assert f"{where}/t.js" in shown and "a-write-key" in shown and f"{where}/v1/events" in shown
    # As the viewer's browser knows it.
    assert "stats.example:8080/t.js" in await page_as(viewer, "stats.example:8080")
    assert "<b>" not in await page_as(viewer, "<b>evil</b>")


async def page_as(viewer: Viewer, host: str) -> str:
    return (await viewer.get("/", Host=host)).body.decode()


async def test_bots_alone_are_no_visitors(client: Client, viewer: Viewer):
    await client.post(VIEW, X_Write_Key="a-write-key", User_Agent="Googlebot/2.1 (+http://www.google.com/bot.html)")
    await client.settled()
    shown = await page(viewer)
    assert "No events of people yet" in shown and "stored, but not counted" in shown
    assert 'class="grid"' in await page(viewer, "/?device_type=bot")
    await client.post(VIEW, X_Write_Key="a-write-key", User_Agent=BROWSER)
    await client.settled()
    assert 'class="grid"' in await page(viewer)


async def test_visits_that_take_too_long_keep_nobody_from_the_figures(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
):
    async def slow(connection: asyncpg.Connection, *more: Any) -> Sessions:
        await connection.execute("SELECT pg_sleep(60)")
        return Sessions()

    monkeypatch.setattr("ingest.dashboard.figures.sessions_of", slow)
    answer = await viewer.get("/panels/visits?compare=no")
    assert answer.status == 422 and b"longer than the dashboard may take" in answer.body
    answer = await viewer.get("/panels/figures?compare=no")
    assert answer.status == 200
    assert re.search(r'Visitors</span>\s*<span class="figure-value">0<', answer.body.decode())


async def test_what_the_chart_shows_is_chosen(viewer: Viewer):
    for metric, title in (("visitors", "Visitors"), ("page_views", "Page views")):
        assert f"{title} by day" in (await viewer.get(f"/panels/chart?metric={metric}")).body.decode()
    answer = await viewer.get("/panels/chart?metric=nonsense")
    assert answer.status == 400 and b"metric must be one of" in answer.body


async def test_a_mistake_in_the_address_is_said_on_the_page(viewer: Viewer):
    answer = await viewer.get("/?period=custom&from=2025-11-20&to=2025-11-10")
    assert answer.status == 400
    assert b"The first day, 2025-11-20, is after the last, 2025-11-10. Shown is the default view." in answer.body
    assert b'href="/?period=7d"' in answer.body


async def test_programs_and_people_who_come_to_no_page(client: Client, viewer: Viewer):
    answer = await viewer.get("/nowhere")
    assert answer.status == 404 and b"There is no such page" in answer.body
    assert (await client.get("/nowhere")).json()["code"] == "unknown_route"
