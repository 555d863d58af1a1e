"""Views that are shared by a link: what they show, to whom, until when, and what they may take."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import asyncpg
import pytest

from ingest.dashboard import pages, rankings
from ingest.dashboard.view import View
from ingest.postgres import connections
from tests.support.collector import Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key, signed_in

CATALOGUE = pages.catalogue()


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


async def shared(viewer: Viewer, **fields: str) -> str:
    given = {"name": "Ours", "page": "/", "query": "period=7d&country=DE&timezone=Asia/Kolkata", **fields}
    answer = await viewer.post("/shares", given)
    assert answer.status == 303, answer.body
    found = re.search(r'href="(/shared/[^"]+)"', (await viewer.get("/shares")).body.decode())
    assert found is not None
    return found[1]


async def test_a_shared_view_shows_itself_and_nothing_else(client: Client, database_url: str):
    viewer = await signed_in(client, await new_key(database_url, "read"))
    path = await shared(viewer)
    nobody = Viewer(client)
    page = (await nobody.get(path)).body.decode()
    assert "Germany" in page and "Asia/Kolkata" in page
    assert viewer.form_token not in page and "form_token" not in page
    # Every link on it is to itself, and no other range or filter can be asked for.
    links = re.findall(r'(?:href|data-panel)="([^"]*)"', page)
    assert not [link for link in links if not link.startswith((path, "/dashboard/", "#", "data:"))], links
    assert (await nobody.get(f"{path}?country=FR&period=90d")).body == (await nobody.get(path)).body
    assert (await nobody.get(f"{path}/panels/figures")).status == 200
    for other in ("/", "/panels/figures", "/shares", path[:-1], path[:-1] + ("A" if path[-1] != "A" else "B")):
        assert (await nobody.get(other)).status in (303, 401, 404), other
    not_on_it = next((name for name in CATALOGUE.panels if name not in CATALOGUE.pages[0].panels), "unknown")
    assert (await nobody.get(f"{path}/panels/{not_on_it}")).status == 404


async def test_a_shared_view_ends(client: Client, database_url: str):
    owner = await signed_in(client, await new_key(database_url, "read"))
    other = await signed_in(client, await new_key(database_url, "read"))
    path = await shared(owner, days="7")
    (row,) = await client.fetch_now("SELECT id, expires_at - created_at AS lasting FROM ingest.shared_views")
    assert row["lasting"].days in (6, 7)
    await other.post("/shares/revoke", {"id": str(row["id"])})
    assert (await Viewer(client).get(path)).status == 200
    await owner.post("/shares/revoke", {"id": str(row["id"])})
    assert (
        (await Viewer(client).get(path)).status == (await Viewer(client).get(f"{path}/panels/figures")).status == 404
    )
    second = await shared(owner)
    await client.fetch_now("UPDATE ingest.shared_views SET expires_at = now() WHERE revoked_at IS NULL")
    assert (await Viewer(client).get(second)).status == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a" * 101},
        {"page": "/shares"},
        {"page": "https://evil.example"},
        {"query": "nonsense=1"},
        {"query": "period=1000y"},
        {"query": "a" * 5000},
        {"days": "8"},
    ],
)
async def test_what_cannot_be_shared(client: Client, fields: dict[str, str]):
    viewer = await signed_in(client, ADMIN)
    answer = await viewer.send(
        "/shares", {"form_token": viewer.form_token, "name": "Ours", "page": "/", "query": "", **fields}
    )
    assert answer.status == 422 and b"<h1>" in answer.body
    assert not await client.fetch_now("SELECT FROM ingest.shared_views")


async def test_no_more_links_than_are_listed(client: Client):
    viewer = await signed_in(client, ADMIN)
    await client.fetch_now(
        "INSERT INTO ingest.shared_views (name, page, query, created_by)"
        " SELECT 'n', '/', '', 'x' FROM generate_series(1, 200)"
    )
    fields = {"name": "Ours", "page": "/", "query": ""}
    assert (await viewer.post("/shares", fields)).status == 409
    await client.fetch_now("UPDATE ingest.shared_views SET revoked_at = now()")
    assert (await viewer.post("/shares", fields)).status == 303


async def test_who_has_a_link_keeps_nobody_from_the_database(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    """While panels of a shared view wait for a lock, those of who is signed in come as ever."""
    viewer = await signed_in(client, ADMIN)
    path = await shared(viewer)
    wait = "SELECT pg_advisory_xact_lock(14)"
    found = rankings.ranking

    async def locked(connection: asyncpg.Connection, view: View, what: str, *more: Any) -> Any:
        if what == "event" and view.filters.get("country") == "DE":
            await connection.execute(wait)
        return await found(connection, view, what, *more)

    monkeypatch.setattr("ingest.dashboard.overview.ranking", locked)
    holder = await connections.connect(database_url, purpose="tests")
    try:
        async with holder.transaction():
            await holder.execute(wait)
            of_guests = [asyncio.create_task(Viewer(client).get(f"{path}/panels/top-event.csv")) for _ in range(12)]
            while not await waiting_for_locks(holder):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for name in ("figures", "chart", "top-country"):
                assert (await viewer.get(f"/panels/{name}")).status == 200
            assert await waiting_for_locks(holder) <= 2
    finally:
        await holder.close()
    assert {answer.status for answer in await asyncio.gather(*of_guests)} <= {200, 503}


async def waiting_for_locks(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
