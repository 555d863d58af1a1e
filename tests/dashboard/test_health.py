"""The page Health, at a real collector: its numbers, what it shows without a database, and replays by a click."""

from __future__ import annotations

import asyncio
import csv
import html
import io
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from ingest.dashboard import health
from ingest.dashboard.exposition import Exposition
from ingest.dashboard.health_sources import Kept
from ingest.dashboard.rendering import rendered
from ingest.postgres.queries import load_queries
from ingest.service.health_sources import disk_of
from tests.support.collector import Answer, Client, Start
from tests.support.dashboard import ADMIN, Viewer, new_key
from tests.support.faults import CuttingProxy

NAMES = [panel.name for panel in health.PANELS]
OLD = (datetime.now(UTC) - timedelta(days=300)).isoformat()
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`javascript:alert(1)"


@pytest.fixture
async def client(start: Start) -> Client:
    return await start(admin_keys=[ADMIN], api_rate_limit_per_second=0)


async def signed_in(client: Client, key: str = ADMIN) -> Viewer:
    viewer = Viewer(client)
    assert (await viewer.sign_in(key)).status == 303
    return viewer


def text_of(answer: Answer) -> str:
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.body.decode())).split())


async def panel(viewer: Viewer, name: str, query: str = "") -> str:
    answer = await viewer.get(f"/panels/{name}{query}")
    assert answer.status == 200, answer
    return text_of(answer)


async def table(viewer: Viewer, name: str) -> list[list[str]]:
    answer = await viewer.get(f"/panels/{name}.csv")
    assert answer.status == 200, answer
    return list(csv.reader(io.StringIO(answer.body.decode("utf-8-sig"))))


async def fresh(viewer: Viewer, name: str, said: str) -> str:
    """What a panel shows once it says this: it may be a few seconds old."""
    async with asyncio.timeout(60):
        while said not in (shown := await panel(viewer, name)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return shown


async def examples(viewer: Viewer, **fields: str) -> Answer:
    """Send the form of a replay."""
    return await viewer.post("/health/replay", fields)


async def test_the_books_are_those_of_the_metrics(client: Client):
    viewer = await signed_in(client)
    twice = {"name": "twice", "id": str(uuid.uuid4())}
    for body in ([{"name": "a"}] * 3, twice, twice, {"nme": "b"}, {"name": "old", "timestamp": OLD}):
        await client.post(body)
    await client.settled()
    metrics = await client.metrics()
    books = dict(await table(viewer, "health-books"))
    assert {name: int(books[name]) for name in ("received", "stored", "duplicate", "rejected", "pending")} == {
        "received": metrics["ingest_events_received_total"],
        "stored": metrics["ingest_events_stored_total"],
        "duplicate": metrics["ingest_events_duplicate_total"],
        "rejected": metrics["ingest_events_rejected_total"],
        "pending": metrics["ingest_events_pending"],
    }
    assert (books["received"], books["stored"], books["duplicate"], books["unaccounted"]) == ("7", "4", "1", "0")
    shown = await panel(viewer, "health-books")
    assert "✓ Balanced 7 received = 4 stored + 1 duplicate + 2 rejected + 0 pending" in shown
    assert "nothing is wrong" in shown


def test_books_that_do_not_balance_are_shown_in_red():
    labels = '{source="http",worker="0"}'
    found = Exposition.parse(f'ingest_events_received_total{labels} 5\ningest_events_stored_total{{worker="0"}} 3\n')
    ask = SimpleNamespace(view=SimpleNamespace(zone=UTC))
    shown = rendered("panels/health-books.html", {**health.balance(found, 1), "ask": ask})
    assert (
        "badge bad" in shown and "2 unaccounted" in shown and "which is a bug" in shown and "badge good" not in shown
    )


async def test_without_a_database_the_page_says_so_and_shows_what_the_workers_know(
    start: Start, database_url: str, tmp_path: Path
):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn, admin_keys=[ADMIN], api_rate_limit_per_second=0)
        viewer = await signed_in(client)
        analyst = await signed_in(client, await new_key(database_url, "read"))
        await client.post([{"name": "before"}] * 2)
        await client.settled()
        await proxy.go_away()
        assert (await client.post({"name": "after"})).status == 200
        await fresh(viewer, "health-delays", "down")
        for one in (viewer, analyst):
            page = await one.get("/health")
            assert page.status == 200, page
            shown = {name: await panel(one, name) for name in NAMES}
            without = "The database does not answer"
            assert {name for name in NAMES if without in shown[name]} == {
                f"health-{name}" for name in ("delays", "refusals", "examples", "workers", "partitions", "retention")
            }
            assert (
                "✓ Balanced 3 received = 2 stored" in shown["health-books"] and "1 pending" in shown["health-books"]
            )
            assert "Postgres does not answer. Events are still accepted, and 1 wait" in shown["health-books"]
            assert re.search(
                r"Postgres down since .* the oldest of 1 events|oldest of 1 events", shown["health-delays"]
            )
            assert "Collector 0" in shown["health-workers"] and "collector 0 1 " in shown["health-journals"]
        refused = await examples(viewer, reason="too_old")
        assert refused.status == 503 and "The database does not answer" in text_of(refused)
        await proxy.__aenter__()
        await fresh(viewer, "health-books", "3 stored")


async def test_an_event_is_replayed_once_its_cause_is_gone_and_stored_once(client: Client, connection):
    await connection.execute("ALTER TABLE analytics.events ADD CONSTRAINT no_bad CHECK (name <> 'bad') NOT VALID")
    viewer = await signed_in(client)
    await client.post([{"name": "bad", "properties": {"n": n}} for n in range(3)])
    kept = await client.rejected()
    assert [row["reason"] for row in kept] == ["database_refused"] * 3
    first = str(kept[0]["id"])
    again = await examples(viewer, id=first)
    assert again.status == 303 and again.headers["Location"].endswith("?stored=0&refused=1&because=database_refused")
    assert "0 replayed and stored; 1 not: refused again as database_refused ." in text_of(
        await viewer.get(again.headers["Location"])
    )
    await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT no_bad")
    one = await examples(viewer, id=first, view="period=7d&stored=99&evil=//x")
    assert one.headers["Location"] == "/health?period=7d&evil=%2F%2Fx&stored=1&refused=0"
    assert [row["name"] for row in await client.events()] == ["bad"]
    twice = await examples(viewer, id=first)
    assert twice.status == 422 and "has been replayed already" in text_of(twice)
    shown = await fresh(viewer, "health-examples", "It has been replayed already.")
    assert shown.count(" Replay") == 2
    rest = await examples(viewer, reason="database_refused")
    assert rest.headers["Location"] == "/health?stored=2&refused=0"
    rows = await client.events()
    assert sorted(row["properties"] for row in rows) == [f'{{"n": {n}}}' for n in range(3)]
    assert all(row["replayed_at"] for row in await client.rejected())
    none = await examples(viewer, reason="database_refused")
    assert none.status == 422 and "is left to replay" in text_of(none)
    # Even if it is not known that they were.
    await connection.execute("UPDATE analytics.rejected_events SET replayed_at = NULL")
    assert (await examples(viewer, reason="database_refused")).headers["Location"] == "/health?stored=3&refused=0"
    assert len(await client.events()) == 3


async def test_what_cannot_be_replayed_is_refused_with_the_reason(client: Client, connection):
    viewer = await signed_in(client)
    insert = (
        "INSERT INTO analytics.rejected_events (reason, route, payload, payload_truncated)"
        " VALUES ('too_old', $1, $2, $3) RETURNING id"
    )
    event = '{"name": "x"}'
    cut = await connection.fetchval(insert, "/v1/events", event, True)
    elsewhere = await connection.fetchval(insert, "/journals/clear?seconds=1", event, False)
    other_host = await connection.fetchval(insert, "@example.org/v1/events", event, False)
    empty = await connection.fetchval(insert, "/v1/events", None, False)
    for number, said in {
        cut: "Only the beginning",
        elsewhere: "not known how this was sent",
        other_host: "not known how this was sent",
        empty: "not known how this was sent",
        10**17: "There is no refused event",
    }.items():
        answer = await examples(viewer, id=str(number))
        assert answer.status == 422 and said in text_of(answer), (number, answer)
    for fields in (
        {},
        {"id": "1", "reason": "too_old"},
        {"id": "-1"},
        {"id": "1" * 30},
        {"id": "¹"},
        {"reason": "x"},
    ):
        assert (await examples(viewer, **fields)).status == 422, fields
    shown = await panel(viewer, "health-examples")
    assert "Only its beginning was kept" in shown and "It is not known how it was sent" in shown
    assert " Replay" not in shown and await client.events() == []


async def test_only_an_admins_own_form_replays(client: Client, database_url: str):
    await client.post({"nme": "x"})
    (kept,) = await client.rejected()
    analyst = await signed_in(client, await new_key(database_url, "read"))
    assert "missing_name" in await panel(analyst, "health-examples")
    for name in ("health-examples", "health-refusals"):
        assert "<form" not in (await analyst.get(f"/panels/{name}")).body.decode()
    assert (await examples(analyst, id=str(kept["id"]))).status == 403
    admin = await signed_in(client)
    assert "<form" in (await admin.get("/panels/health-examples")).body.decode()
    for token in ("", "wrong", analyst.form_token):
        assert (await admin.send("/health/replay", {"id": str(kept["id"]), "form_token": token})).status == 403
    assert (await Viewer(client).send("/health/replay", {"id": "1"})).status == 303
    assert (await client.rejected())[0]["replayed_at"] is None


async def test_what_others_sent_stays_text(client: Client, connection):
    viewer = await signed_in(client)
    await client.post({"nme": HOSTILE, "properties": {"long": "w" * 10_000}})
    await client.settled()
    await connection.execute("UPDATE analytics.rejected_events SET detail = $1, route = $1", HOSTILE)
    for path in ("/health", "/panels/health-examples"):
        body = (await viewer.get(path)).body.decode()
        assert HOSTILE not in body and "<img" not in body and "<script>" not in body
    shown = await panel(viewer, "health-examples")
    assert "<script>alert(1)</script>" in shown and "…" in shown and "w" * 401 not in shown
    # Of the outcome in the URL, only what is ours.
    page = (await viewer.get("/health?stored=1&refused=1&because=%3Cscript%3E")).body.decode()
    assert "1 replayed" in page and "script&gt;" not in page.split('class="grid"')[0].split('class="notice"')[1]
    assert "replayed and stored" not in (await viewer.get("/health?stored=-1e9")).body.decode()
    assert (await viewer.get("/panels/health-examples?reason=odd")).status == 400


async def test_reasons_are_counted_in_the_range_that_is_shown(client: Client, connection):
    viewer = await signed_in(client)
    await client.post([{"nme": "x"}] * 3)
    await client.post({"name": "old", "timestamp": "1990-01-01T00:00:00Z"})
    await client.settled()
    await connection.execute(
        "UPDATE analytics.rejected_events SET received_at = received_at - interval '20 days' WHERE id = 1"
    )
    rows = {row[0]: row[1:5] for row in (await table(viewer, "health-refusals"))[1:]}
    assert rows["missing_name"][:2] == ["3", "3"] and rows["missing_name"][3] == "3" and rows["too_old"][1] == "1"
    answer = await viewer.get("/panels/health-refusals.csv?period=7d")
    week = {row[0]: row[1:5] for row in csv.reader(io.StringIO(answer.body.decode("utf-8-sig")))}
    assert week["missing_name"][:2] == ["3", "2"]
    only = await panel(viewer, "health-examples", "?reason=too_old")
    assert "too_old" in only and "an event needs" not in only
    assert len(await table(viewer, "health-examples")) == 5


async def test_partitions_and_retention_are_those_of_the_database(client: Client, connection, database_url: str):
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE \"{name}\" SET app.retention_audit = '5 years'")
    analyst = await signed_in(client, await new_key(database_url, "read"))
    wanted = await connection.fetch(
        "SELECT to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD')::text AS day,"
        " pg_total_relation_size(inhrelid)::text AS bytes"
        " FROM pg_inherits WHERE inhparent = 'analytics.events'::regclass ORDER BY 1 DESC"
    )
    assert [row[:2] for row in (await table(analyst, "health-partitions"))[1:]] == [list(row) for row in wanted]
    assert "Tomorrow prepared" in await panel(analyst, "health-partitions")
    kept = {row[1]: row[2:] for row in (await table(analyst, "health-retention"))[1:]}
    assert kept["app.retention_audit"] == ["5 years", "yes"] and kept["app.retention_events"] == ["90 days", "no"]
    # The defaults are those that are deleted by.
    source = await connection.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'cleanup_old_data'")
    defaults = dict(re.findall(r"ingest\.retention\('(\w+)', '([^']+)'\)", source))
    shown = {name.removeprefix("app.retention_"): values[0] for name, values in kept.items()}
    assert {**shown, "audit": "2 years"} == defaults


async def test_tomorrows_partition_is_missed(client: Client, connection):
    viewer = await signed_in(client)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y%m%d")
    await connection.execute(f"DROP TABLE analytics.events_{tomorrow}")
    await fresh(viewer, "health-partitions", "Tomorrow missing")


async def test_journals_are_those_of_the_disk(client: Client):
    viewer = await signed_in(client)
    await client.post({"name": "a"})
    await client.settled()
    folder = client.worker.journal.folder
    (folder / "00000000000000000001.damaged").write_bytes(b"x" * 1000)
    idle = folder.parent / "000777"
    idle.mkdir()
    (idle / "00000000000000000001.segment").write_bytes(b"y" * 50)
    found = disk_of(client.worker.config.data_dir)
    own, other = found.journals
    assert own.number == client.worker.journal.number and own.bytes == client.worker.journal.backlog.disk_bytes
    assert (other.number, other.bytes, other.segments) == (777, 50, 1) and 0 < found.free < found.total
    assert [size for path, size in found.set_aside if path.endswith(".damaged")] == [1000]
    shown = await fresh(viewer, "health-journals", "held by no worker")
    assert "777" in shown and "1 files, 1 kB" in shown and "collector 0 0 " in shown


async def test_flushes_of_the_last_minutes_are_those_of_the_ledger(client: Client, connection):
    viewer = await signed_in(client)
    await client.post([{"name": "a"}] * 7)
    await client.settled()
    await connection.execute(
        "INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, flushed_at, rolled_up_at)"
        " SELECT number, 900, 901, 50, now() - interval '1 hour', now() FROM analytics.journals LIMIT 1"
    )
    wanted = await connection.fetchrow(
        "SELECT count(*)::text, sum(events_stored)::text FROM analytics.flushes WHERE rolled_up_at IS NULL"
    )
    rows = dict(await table(viewer, "health-delays"))
    assert (rows["last five minutes: flushes"], rows["last five minutes: stored"]) == tuple(wanted)
    assert rows["last five minutes: stored"] == "7" and float(rows["last five minutes: waiting_seconds"]) > 0
    assert float(rows["acknowledged"]) == 1 and 0 < float(rows["acknowledged_p50"]) <= float(rows["acknowledged_p99"])


async def test_a_lease_is_shown_with_who_holds_it(client: Client, connection):
    viewer = await signed_in(client)
    assert "Nobody has the lead" in await panel(viewer, "health-workers")
    await connection.execute(
        "INSERT INTO analytics.leases (name, token, holder, expires_at)"
        " VALUES ('rollup', gen_random_uuid(), $1, now() - interval '1 minute')",
        HOSTILE,
    )
    shown = await fresh(viewer, "health-workers", "expired")
    assert "<script>alert(1)</script>" in shown
    assert "No rollup worker runs" in await panel(viewer, "health-schedule")


async def test_no_panel_looks_at_events(client: Client, connection):
    """Their cost must not grow with what is stored."""
    for name, query in load_queries("health").items():
        assert "FROM analytics.events" not in query, name


async def test_many_viewers_ask_the_workers_once():
    asked = 0

    async def find() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        if asked == 1:
            raise OSError("not now")
        return asked

    kept = Kept(find, 60)
    failed = await asyncio.gather(*[kept.get() for _ in range(5)], return_exceptions=True)
    assert [str(error) for error in failed] == ["not now"] * 5
    assert await asyncio.gather(*[kept.get() for _ in range(5)]) == [2] * 5 and await kept.get() == 2
    one = Kept(find, 0)
    assert await one.get() != await one.get()
