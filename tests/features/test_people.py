"""One person over HTTP: everything stored about them, exported and erased, including events waiting in a journal."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from ingest.base import config_sources
from ingest.http.binding import bind
from ingest.journal import journals
from ingest.service.collector import Collector, start_collector
from ingest.store import watermark
from tests.support.collector import QUICK, Answer, Client, Start

ADMIN = "an-admin-key"
ADDRESS = "ann@shop.example"
EVENT = {"name": "signed_up", "type": "user_action", "properties": {"email": ADDRESS}}
BLOCK = "LOCK TABLE analytics.journals IN ACCESS EXCLUSIVE MODE"
"""While this lock is held nothing is stored, and nothing shows that."""


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN])


async def ask(client: Client, method: str = "GET", email: str = ADDRESS) -> Answer:
    path = "/v1/people/export" if method == "GET" else "/v1/people"
    return await client.request(
        method, f"{path}?email={email}&include_unverified=true", Authorization=f"Bearer {ADMIN}"
    )


async def test_everything_stored_is_exported_and_erased(client: Client):
    lead = {"email": ADDRESS, "first_name": "Ann", "anonymous_id": "anon-1", "session_id": "visit-1"}
    await client.post([{"name": "page", "type": "page_view", "anonymous_id": "anon-1"}])
    await client.post(lead, "/v1/leads")
    await client.post({**lead, "email": "bob@shop.example", "anonymous_id": "anon-2"}, "/v1/leads")
    answer = await ask(client)
    assert answer.status == 200, answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    held = answer.json()
    assert held["email"] == ADDRESS
    assert [row["first_name"] for row in held["marketing.leads"]] == ["Ann"]
    # Found by the visit of the lead, which identifies nobody.
    assert sorted(event["name"] for event in held["analytics.events"]) == ["lead_created", "page"]

    erased = await ask(client, "DELETE", "Ann@Shop.Example")
    assert erased.status == 200, erased.body
    assert (erased.json()["marketing.leads"], erased.json()["analytics.events"]) == (1, 2)
    assert set((await ask(client)).json()) - {"public.audit_logs"} == {"email"}
    assert not any((await ask(client, "DELETE")).json().values()), "twice is the same as once"
    left = await client.fetch("SELECT properties ->> 'lead_id' AS lead, anonymous_id FROM analytics.events")
    [bob] = await client.fetch("SELECT id::text FROM marketing.leads")
    assert [(row["lead"], row["anonymous_id"]) for row in left] == [(bob["id"], "anon-2")]
    logs = await client.fetch(
        "SELECT operation, actor_role FROM public.audit_logs WHERE table_name = 'all' ORDER BY id"
    )
    assert [tuple(log) for log in logs][:2] == [("EXPORT", "authenticated"), ("ERASE", "authenticated")]


async def test_a_lead_without_a_visit_takes_its_events_along(client: Client):
    await client.post({"email": ADDRESS}, "/v1/leads")
    assert (await ask(client, "DELETE")).json()["analytics.events"] == 1
    assert not await client.fetch("SELECT FROM analytics.events")


async def test_what_waits_in_the_journal_is_waited_for(client: Client, connection: asyncpg.Connection):
    async with connection.transaction():
        await connection.execute(BLOCK)
        assert (await client.post([EVENT])).status == 200
        assert (await client.post(b'{"name": "' + ADDRESS.encode())).status == 400
        asked = asyncio.ensure_future(ask(client, "DELETE"))
        assert client.worker.journal.has_backlog
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
    counts = (await asked).json()
    assert (counts["analytics.events"], counts["analytics.rejected_events"]) == (1, 1)


async def test_what_comes_later_is_not_waited_for(client: Client, connection: asyncpg.Connection):
    """Otherwise a busy collector would keep a request waiting forever."""
    journal = client.worker.journal
    await client.post([EVENT])
    mark = await watermark.read(client.worker.config.data_dir, [journal])
    await client.settled()
    async with connection.transaction():
        await connection.execute(BLOCK)
        await client.post([EVENT])
        assert journal.has_backlog
        assert await watermark.wait_passed(mark, client.worker._calling, 0)
        later = await watermark.read(client.worker.config.data_dir, [journal])
        assert not await watermark.wait_passed(later, client.worker._calling, 0)
    await client.settled()


async def test_events_not_stored_in_time_are_an_honest_503(
    client: Client, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ingest.features.people.JOURNAL_SECONDS", 0.1)
    async with connection.transaction():
        await connection.execute(BLOCK)
        await client.post([EVENT])
        answer = await ask(client, "DELETE")
    assert (answer.status, answer.json()["code"]) == (503, "journal_pending")
    assert int(answer.headers["Retry-After"]) > 0
    [row] = await client.fetch("SELECT count(*) AS left FROM analytics.events")
    assert row["left"] == 1, "nothing was erased"


async def sibling(client: Client) -> Collector:
    """Another worker on the same data folder."""
    settings = {**QUICK, "data_dir": client.worker.config.data_dir, "database_url": client.worker.config.database_url}
    return await start_collector(config_sources.load(settings, {}, Path.cwd()), bind("127.0.0.1", 0), 1)


async def test_the_journals_of_siblings_are_waited_for(client: Client, connection: asyncpg.Connection):
    worker = await sibling(client)
    other = Client(worker, client.session, client.worker.config.database_url or "")
    async with connection.transaction():
        await connection.execute(BLOCK)
        await other.post([EVENT])
        assert worker.journal.has_backlog and not client.worker.journal.has_backlog
        asked = asyncio.ensure_future(ask(client, "DELETE"))
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
    assert (await asked).json()["analytics.events"] == 1
    await worker.stop()


async def test_a_journal_without_a_worker_is_waited_for(client: Client, connection: asyncpg.Connection):
    worker = await sibling(client)
    other = Client(worker, client.session, client.worker.config.database_url or "")
    folder = worker.journal.folder
    async with connection.transaction():
        await connection.execute(BLOCK)
        await other.post([EVENT])
        await worker.stop()
        assert journals.is_free(folder)
        mark = await watermark.read(client.worker.config.data_dir, [client.worker.journal])
        assert list(mark.others) == [worker.journal.layout.identity]
    assert not await watermark.wait_passed(mark, client.worker._calling, 0)
    await client.worker.stores.adopt()
    assert (await ask(client, "DELETE")).json()["analytics.events"] == 1
    assert await watermark.wait_passed(mark, client.worker._calling, 0)


async def test_reading_every_event_may_take_longer_than_other_statements(
    start: Start, connection: asyncpg.Connection
):
    client = await start(admin_keys=[ADMIN], statement_timeout_seconds=1)
    await connection.execute("""
        CREATE OR REPLACE FUNCTION public.gdpr_export_user_data(
            email text, include_unverified boolean DEFAULT false, spellings text[] DEFAULT '{}'
        ) RETURNS jsonb
        LANGUAGE sql AS $$ SELECT jsonb_build_object('slept', pg_sleep(1.2)::text) $$
    """)
    assert (await ask(client)).json() == {"slept": ""}


async def test_one_person_at_a_time(client: Client, connection: asyncpg.Connection):
    async with connection.transaction():
        await connection.execute(BLOCK)
        await client.post([EVENT])
        first = asyncio.ensure_future(ask(client))
        second = asyncio.ensure_future(ask(client))
        done, [asked] = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        [answer] = [task.result() for task in done]
        assert (answer.status, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["Retry-After"]) > 0
    assert (await asked).status == 200


async def test_an_address_is_required(client: Client):
    for query in (
        "",
        "?email=",
        "?email=ann",
        "?email=a%20b@c",
        "?email=a@b@c",
        "?email=a%00@b",
        "?email=a@b%C2%A0c",
        "?email=a@.",
        "?email=a@%E3%80%82",
    ):
        for method, path in (("GET", "/v1/people/export"), ("DELETE", "/v1/people")):
            answer = await client.request(method, path + query, Authorization=f"Bearer {ADMIN}")
            assert answer.status == 422, (query, answer.body)
            assert [error["field"] for error in answer.json()["errors"]] == ["email"]
    assert (await ask(client, "DELETE", "'%3BDROP/**/TABLE/**/marketing.leads%3B--@b")).status == 200
    assert await client.fetch("SELECT FROM marketing.leads") == []


async def test_an_international_address_is_found_in_each_form(client: Client):
    written, sent = "bob@b\u00fccher.example", "bob@xn--bcher-kva.example"
    decomposed = unicodedata.normalize("NFD", written)
    for asked in (written, sent, decomposed, f"{written}.", "BOB@B\u00dcCHER.EXAMPLE"):
        assert (await client.post({"email": sent}, "/v1/leads", Authorization=f"Bearer {ADMIN}")).status == 201
        forms = (written, sent, decomposed, f"https://x.example/?e={quote(written)}")
        events = [{**EVENT, "properties": {"email": form}} for form in forms]
        events += [{**EVENT, "user_id": form, "properties": {}} for form in forms[:3]]
        assert (await client.post(events)).status == 200
        query = quote(asked)
        answer = await client.request(
            "GET", f"/v1/people/export?include_unverified=true&email={query}", Authorization=f"Bearer {ADMIN}"
        )
        held = answer.json()
        assert held["email"] == sent and len(held["marketing.leads"]) == 1
        assert sum(event["name"] == EVENT["name"] for event in held["analytics.events"]) == len(events)
        erased = await client.request(
            "DELETE", f"/v1/people?include_unverified=true&email={query}", Authorization=f"Bearer {ADMIN}"
        )
        assert erased.status == 200 and erased.json()["marketing.leads"] == 1
        assert await client.fetch("SELECT FROM analytics.events WHERE name = $1", EVENT["name"]) == []


async def test_a_person_without_data_is_empty(client: Client):
    assert (await ask(client)).json() == {"email": ADDRESS}
    counts = (await ask(client, "DELETE")).json()
    assert counts and not any(counts.values())
    logs = await client.fetch("SELECT new_values FROM public.audit_logs WHERE new_values IS NOT NULL")
    assert ADDRESS not in json.dumps([log["new_values"] for log in logs])
