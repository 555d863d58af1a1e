"""Each row of the table of failures in docs/explanation/guarantees.md, provoked for real."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import uvloop

import ingest.journal.segment_writer
from bench.chaos import wire
from bench.chaos.wire import Break
from ingest.base.errors import DatabaseError
from ingest.base.refusals import RejectReason
from ingest.events import row
from ingest.journal import journals, segments
from ingest.journal.journal import Journal
from ingest.journal.segment_reader import SegmentReader
from ingest.journal.segments import Layout, Record
from ingest.postgres import connections
from ingest.store.ledger import create_journal
from ingest.store.merge import copy_lines
from tests.support.amounts import some_of
from tests.support.collector import Start
from tests.support.crashes import stored_ids
from tests.support.events import batch
from tests.support.faults import CuttingProxy, StubbornClient, kill_postgres, signal_postgres, small_disk
from tests.support.service import Service, running, wait_until

# Postgres is down.


def test_while_postgres_is_down_the_journal_fills_to_its_limit_then_503_and_memory_stays_bounded(mortal, tmp_path):
    limits = ("--journal-max-bytes", "24MiB", "--segment-bytes", "2MiB", "--memory-max-bytes", "4MiB")
    service = Service(tmp_path / "data", mortal.dsn, *limits)
    with running(service):
        service.post("/v1/events", batch(10))
        service.wait_stored()
        kill_postgres(mortal)
        accepted, status = 10, 200
        before = service.metrics()["process_resident_memory_bytes"]
        for _ in range(2000):
            events = [{**one, "properties": {"text": "x" * 900}} for one in batch(50)]
            status, _ = service.post("/v1/events", events)
            if status != 200:
                break
            accepted += 50
        assert status == 503
        metrics = service.metrics()
        assert metrics["ingest_journal_disk_bytes"] <= 24 * 1024 * 1024
        assert metrics["ingest_journal_memory_bytes"] <= 5 * 1024 * 1024
        assert metrics["process_resident_memory_bytes"] - before < 40e6
        assert metrics["ingest_events_pending"] == accepted - 10
        assert metrics['ingest_events_rejected_total{reason="overloaded"}'] > 0
        assert metrics["ingest_events_unaccounted"] == 0
        assert service.get("/readyz")[0] == 503, "full: it cannot accept"
        mortal.start()
        service.wait_stored(60)
        assert service.get("/readyz")[0] == 200
        assert service.post("/v1/events", batch(1))[0] == 200
        service.wait_stored()
    stored = stored_ids(mortal.dsn)
    assert len(stored) == len(set(stored)) == accepted + 1


async def test_a_503_says_when_to_try_again_and_sdks_find_code_and_message(start: Start, database_url, tmp_path):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn, journal_max_bytes="12MiB", segment_bytes="1MiB")
        await proxy.go_away()
        for _ in range(1000):
            answer = await client.post({"name": "x", "properties": {"text": "y" * 60_000}})
            if answer.status != 200:
                break
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
        assert answer.json()["code"] == "overloaded" and answer.json()["message"]
        assert (await client.get("/readyz")).status == 503


def test_a_collector_with_a_journal_starts_and_accepts_while_postgres_is_down(mortal, tmp_path):
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        service.post("/v1/events", batch(5))
        service.wait_stored()
    kill_postgres(mortal)
    with running(service):
        assert service.post("/v1/events", batch(7))[0] == 200
        assert service.metrics()["ingest_events_pending"] == 7
        mortal.start()
        service.wait_stored()
    assert len(stored_ids(mortal.dsn)) == 12


def serving(service: Service) -> set[str]:
    """The numbers of the workers that serve."""
    return set(re.findall(r'worker="(\d+)"', service.get("/metrics")[1]))


def test_a_worker_added_while_postgres_is_down_waits_and_stops_no_other(mortal, tmp_path):
    with running(Service(tmp_path / "data", mortal.dsn)) as alone:
        alone.post("/v1/events", batch(5))
        alone.wait_stored()
    kill_postgres(mortal)
    with running(Service(tmp_path / "data", mortal.dsn, "--workers", "2", "--database-wait-seconds", "0.2")) as two:
        wait_until(lambda: "waiting for the database" in two.log_text(), 60, "the new one waits")
        # Longer than it would have waited at the first start.
        time.sleep(1)
        assert two.post("/v1/events", batch(7))[0] == 200
        assert len(serving(two)) == 1
        mortal.start()
        wait_until(lambda: serving(two) == {"0", "1"}, 60, "the new one serves")
        two.wait_stored()
    assert "needs a number" in two.log_text()
    assert len(stored_ids(mortal.dsn)) == 12


@pytest.mark.parametrize("transaction", range(4))
async def test_a_collector_with_a_journal_starts_though_its_connection_is_cut_meanwhile(
    start: Start, database_url, tmp_path, transaction
):
    """At each of the transactions of a start, of which the last takes over the position."""
    first = await start(data_dir=tmp_path / "data")
    assert (await first.post(batch(3))).status == 200
    await first.settled()
    await first.worker.stop()
    between = wire.before_postgres(database_url)
    async with between.listening_for_postgres(tmp_path / "wire"):
        between.break_next(Break("begin", "cut after", 0.0, after=transaction))
        client = await start(
            data_dir=tmp_path / "data", database_url=wire.dsn_through(tmp_path / "wire", database_url)
        )
        assert between.broken["begin", "cut after"] == 1
        assert (await client.post(batch(5))).status == 200
        await client.settled()
        assert client.worker.accounts.stored == 5
        await client.worker.stop()
    assert len(await first.fetch_now("SELECT FROM analytics.events")) == 8


async def test_a_worker_that_waits_takes_a_journal_that_gets_free(start: Start, database_url, tmp_path):
    connection = await asyncpg.connect(database_url)
    made = await create_journal(tmp_path / "worker-0", connection)
    await connection.close()
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        await proxy.go_away()
        starting = asyncio.ensure_future(start(database_url=proxy.dsn, database_wait_seconds=0))
        await asyncio.sleep(0.2)
        assert not starting.done()
        made.release()
        client = await starting
        assert client.worker.journal.number == made.layout.journal
        assert (await client.post(batch(1))).status == 200


# COPY meets a duplicate, or a row that the table refuses.


async def test_a_duplicate_that_the_window_forgot_is_caught_by_the_database_and_counted(start: Start):
    client = await start(dedupe_window_events=0)
    first, second = batch(20), batch(20)
    await client.post(first)
    await client.settled()
    await client.post([*second[:10], *first, *second[10:], first[3]])
    assert len(await client.events()) == 40
    accounts = client.worker.accounts
    assert (accounts.stored, accounts.duplicate_in_database, accounts.duplicate_at_door) == (40, 20, 1)
    flushes = await client.fetch("SELECT sum(events_stored) AS s, sum(events_duplicate) AS d FROM analytics.flushes")
    assert dict(flushes[0]) == {"s": 40, "d": 20}
    totals = await client.fetch("SELECT events_stored AS s, events_duplicate AS d FROM analytics.journals")
    assert dict(totals[0]) == {"s": 40, "d": 20}


async def test_a_row_the_table_refuses_is_found_and_kept_and_its_neighbours_are_stored(
    client, connection: asyncpg.Connection
):
    await connection.execute(
        "ALTER TABLE analytics.events ADD CONSTRAINT no_poison CHECK (name NOT LIKE 'poison%') NOT VALID"
    )
    events = batch(200)
    for index in (0, 57, 58, 199):
        events[index]["name"] = f"poison {index}"
    assert (await client.post(events)).json() == {"accepted": 200, "rejected": []}
    stored = await client.events()
    assert len(stored) == 196 and not [one for one in stored if one["name"].startswith("poison")]
    kept = await client.rejected()
    assert [one["reason"] for one in kept] == ["database_refused"] * 4
    assert {json.loads(one["payload"])["name"] for one in kept} == {f"poison {n}" for n in (0, 57, 58, 199)}
    assert "no_poison" in kept[0]["detail"]
    assert client.worker.accounts.rejected[RejectReason.DATABASE_REFUSED] == 4
    assert client.worker.accounts.stored == 196
    # And the kept ones can be sent again when the table accepts them.
    await connection.execute("ALTER TABLE analytics.events DROP CONSTRAINT no_poison")
    for one in kept:
        assert (await client.post(one["payload"].encode(), one["route"])).status == 200


async def test_permanently_refused_rows_do_not_stop_the_others(client, connection: asyncpg.Connection):
    await connection.execute(
        "ALTER TABLE analytics.events ADD CONSTRAINT no_poison CHECK (name <> 'poison') NOT VALID"
    )
    for _ in range(20):
        await asyncio.gather(client.post(batch(30, "poison")), client.post(batch(3)))
    assert len(await client.events()) == 60
    assert len(await client.rejected()) == 600


async def test_an_old_event_gets_its_days_partition_on_demand(client):
    old = datetime.now(UTC) - timedelta(days=40)
    events = [{"name": "old", "timestamp": (old + timedelta(days=n)).isoformat()} for n in range(5)]
    assert (await client.post(events)).status == 200
    assert await client.names() == ["old"] * 5


async def test_an_old_event_next_to_a_duplicate_gets_its_partition_too_and_is_not_refused(start: Start):
    """Here the flush goes through the merge, which keeps refused rows: a missing partition is not a row's fault."""
    client = await start(dedupe_window_events=0)
    events = batch(5)
    await client.post(events)
    await client.settled()
    for days in (41, 43):
        old = datetime.now(UTC) - timedelta(days=days)
        await client.post([*events, {"name": "old", "timestamp": old.isoformat()}])
        await client.settled()
    assert (await client.names()).count("old") == 2
    assert await client.rejected() == []
    assert client.worker.accounts.duplicate_in_database == 10


# The outcome of COMMIT is unknown.


@pytest.mark.parametrize("what", ["cut before", "cut after", "stall"])
async def test_a_connection_cut_at_commit_stores_everything_once(start: Start, database_url, tmp_path, what):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn, flush_max_bytes="64kB", statement_timeout_seconds=5)
        plan = iter(["pass", what, what, "pass", what, "pass", what])
        proxy.at_commit = lambda: next(plan, "pass")
        sent = []
        for _ in range(8):
            events = batch(30)
            sent += [one["id"] for one in events]
            assert (await client.post(events)).status == 200
            await asyncio.sleep(0.15)
        await client.settled()
        assert proxy.commits >= 3
        accounts = client.worker.accounts
        assert accounts.stored == len(sent) and accounts.duplicate_in_database == 0
    connection = await asyncpg.connect(database_url)
    stored = [r["id"] for r in await connection.fetch("SELECT id::text FROM analytics.events")]
    ledger = await connection.fetchval("SELECT sum(events_stored) FROM analytics.flushes")
    await connection.close()
    assert sorted(stored) == sorted(sent)
    assert ledger == len(sent)


async def test_events_without_an_id_are_stored_once_too_when_commit_is_cut(start: Start, database_url, tmp_path):
    """Only the ledger can know: their ids are generated, and a replay from the journal has the same lines."""
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn)
        plan = iter(["cut after", "cut after", "cut before"])
        proxy.at_commit = lambda: next(plan, "pass")
        for n in range(4):
            await client.post([{"name": f"anonymous {n}"}] * 10)
            await asyncio.sleep(0.3)
        await client.settled()
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 40
    await connection.close()


async def test_a_server_that_stops_reading_in_the_middle_of_a_copy_is_given_up_on(
    start: Start, database_url, tmp_path
):
    """As if the network had silently failed: then no time-out of the client library applies."""
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn, statement_timeout_seconds=1)
        proxy.freeze_after_bytes = 500_000
        events = [{**one, "properties": {"text": "x" * 20_000}} for one in batch(200)]
        assert (await client.post(events)).status == 200
        async with asyncio.timeout(60):
            while client.worker.journal.has_backlog:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert proxy.freeze_after_bytes is None, "it was frozen"
        assert client.worker.accounts.stored == 200
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM analytics.events") == 200
    await connection.close()


def on_uvloop(work: Callable[[], Coroutine[None, None, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_connection_that_breaks_while_a_copy_waits_is_an_outage_and_hides_no_cancellation(
    database_url, tmp_path, monkeypatch, is_cancelled
):
    """The server stops reading, then the connection breaks, which asyncpg does not notice; then the time is up, or
    the writer is to stop. On uvloop, as in a writer process: it minds that the connection is closed."""
    between = wire.before_postgres(database_url)
    limits: list[asyncio.Timeout] = []

    class Limited(asyncio.Timeout):  # type: ignore[misc]
        def __init__(self, when: float | None) -> None:
            super().__init__(when)
            limits.append(self)

    monkeypatch.setattr(asyncio.timeouts, "Timeout", Limited)

    async def copy() -> None:
        async with between.listening_for_postgres(tmp_path / "wire"):
            connection = await connections.connect(wire.dsn_through(tmp_path / "wire", database_url), purpose="tests")
            await connection.execute("CREATE TEMPORARY TABLE lines (line text)")
            between.break_next(Break("rows", "drop", 0.1))
            lines = [b"x" * 999 + b"\n"] * 20_000
            limits.clear()
            copying = asyncio.ensure_future(copy_lines(connection, (None, "lines"), ("line",), lines, 600.0))
            while not connection.is_closed():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if is_cancelled:
                copying.cancel()
            else:
                limits[0].reschedule(asyncio.get_running_loop().time())
            with pytest.raises(asyncio.CancelledError if is_cancelled else DatabaseError):
                await copying
            assert between.broken["rows", "drop"] == 1

    await asyncio.to_thread(on_uvloop, copy)


async def test_a_worker_stops_in_time_although_postgres_does_not_answer(start: Start, database_url, tmp_path):
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn, statement_timeout_seconds=300, shutdown_timeout_seconds=1)
        proxy.freeze_after_bytes = 500_000
        events = [{**one, "properties": {"text": "x" * 20_000}} for one in batch(200)]
        assert (await client.post(events)).status == 200
        while proxy.freeze_after_bytes is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        async with asyncio.timeout(60):
            await client.worker.stop()
        accounts = client.worker.accounts
        # Those that came in the first turn may be stored by then.
        assert accounts.pending == 200 - accounts.stored > 100, "they are in the journal, for the next start"
    again = await start(data_dir=client.worker.config.data_dir)
    assert len(await again.events()) == 200


@pytest.mark.long
def test_a_postgres_that_freezes_is_given_up_on_and_asked_again(mortal, tmp_path):
    """SIGSTOP under load, longer than the statement time-out; then it continues, with our old transaction still
    open."""
    service = Service(tmp_path / "data", mortal.dsn, "--statement-timeout-seconds", "1")
    with running(service):
        load = StubbornClient(service.url)
        load.start()
        for _ in range(2):
            time.sleep(0.7)
            signal_postgres(mortal, signal.SIGSTOP)
            time.sleep(2.5)
            assert service.post("/v1/events", batch(1))[0] == 200, "the collector accepts all the while"
            signal_postgres(mortal, signal.SIGCONT)
        time.sleep(0.5)
        load.finish()
        service.wait_stored(60)
        stored = stored_ids(mortal.dsn)
        assert len(stored) == len(set(stored)) == len(load.acknowledged) + 2


def test_a_collector_that_freezes_continues_where_it_was(mortal, tmp_path):
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        load = StubbornClient(service.url)
        load.start()
        time.sleep(0.5)
        for pid in service.workers():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)
        for pid in service.workers():
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)
        load.finish()
        service.wait_stored()
    assert sorted(stored_ids(mortal.dsn)) == sorted(load.acknowledged)


# The disk.


async def test_a_failed_fsync_is_a_503_for_its_requests_and_the_next_ones_are_fine(start: Start, monkeypatch):
    client = await start()
    assert (await client.post(batch(1, "before"))).status == 200
    real, failures = ingest.journal.segment_writer.write_all, iter([True, False])

    def failing(descriptor: int, content: bytes) -> None:
        real(descriptor, content)
        if next(failures, False):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(ingest.journal.segment_writer, "write_all", failing)
    lost = batch(3, "lost")
    answer = await client.post(lost)
    assert answer.status == 503 and answer.headers["Retry-After"] and answer.json()["code"] == "journal_unavailable"
    assert client.worker.accounts.rejected[RejectReason.JOURNAL_UNAVAILABLE] == 3
    assert (await client.get("/readyz")).status == 503
    # The client sends them again: they are no duplicates, because they were never durable.
    assert (await client.post(lost)).json()["accepted"] == 3
    assert (await client.get("/readyz")).status == 200
    assert await client.names() == ["before", "lost", "lost", "lost"]
    assert client.worker.accounts.duplicate_at_door == 0
    monkeypatch.undo()


async def test_the_tail_shows_as_accepted_only_what_is_durable(start: Start, monkeypatch):
    client = await start()
    real, failures = ingest.journal.segment_writer.write_all, iter([True])

    def failing(descriptor: int, content: bytes) -> None:
        real(descriptor, content)
        if next(failures, False):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest.journal.segment_writer, "write_all", failing)
    async with client.control() as session, session.get("http://worker/tail") as response:
        async with asyncio.timeout(60):
            while not client.worker.tail.followed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await client.post([{"name": "lost", "properties": {"a": 1}}, {"name": ""}])).status == 503
        monkeypatch.setattr(client.worker.journal, "_max_bytes", 0)
        assert (await client.post({"name": "no room"})).status == 503
        monkeypatch.undo()
        assert (await client.post({"name": "kept"})).status == 200
        async with asyncio.timeout(60):
            lines = [json.loads(await response.content.readline()) for _ in range(4)]
    assert [(each["result"], each.get("reason"), each.get("name")) for each in lines] == [
        ("rejected", "journal_unavailable", None),
        ("rejected", "missing_name", None),
        ("rejected", "overloaded", None),
        ("accepted", None, "kept"),
    ]
    lost = json.loads(lines[0]["payload"])
    assert (lost["name"], lost["properties"]) == ("lost", {"a": 1})
    assert json.loads(lines[2]["payload"])["name"] == "no room" and lines[2]["detail"]


def limit_file_size() -> None:
    """Limit files to 3 MB: a full disk for users who may not mount one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))


def test_a_full_disk_is_an_honest_503_and_nothing_acknowledged_is_lost(mortal, tmp_path):
    with small_disk(tmp_path / "disk") as mounted:
        service = Service(
            tmp_path / "disk" / "data",
            mortal.dsn,
            "--segment-bytes", "64MiB", "--journal-max-bytes", "1GiB",
            preexec=None if mounted else limit_file_size,
        )  # fmt: skip
        service.log = tmp_path / "service.log"
        with running(service):
            service.post("/v1/events", batch(5))
            service.wait_stored()
            kill_postgres(mortal)
            accepted, refused = 5, 0
            for _ in range(400):
                events = [{**one, "properties": {"text": "x" * 2000}} for one in batch(20)]
                status, _ = service.post("/v1/events", events)
                assert status in (200, 503)
                accepted += 20 if status == 200 else 0
                refused += status == 503
                if refused >= 10:
                    break
            assert refused and accepted > 500
            metrics = service.metrics()
            assert metrics["ingest_journal_write_failures_total"] > 0
            assert metrics['ingest_events_rejected_total{reason="journal_unavailable"}'] == refused * 20
            assert metrics["ingest_events_unaccounted"] == 0
            # A crash on the full disk, then Postgres is back: everything acknowledged is stored.
            service.kill()
            service.start(wait=False)
            mortal.start()
            service.wait_ready()
            service.wait_stored(60)
        stored = stored_ids(mortal.dsn)
    assert len(stored) == len(set(stored))
    assert accepted <= len(stored) <= accepted + refused * 20


def test_a_torn_tail_is_cut_and_everything_acknowledged_is_stored(mortal, tmp_path):
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        service.post("/v1/events", batch(1))
        service.wait_stored()
        kill_postgres(mortal)
        for _ in range(5):
            service.post("/v1/events", batch(10))
        service.kill()
        newest = segments.list_segments(journals.folders(tmp_path / "data")[0])[-1]
        whole = newest.read_bytes()
        newest.write_bytes(whole + whole[-200:-40])
        mortal.start()
        service.start()
        metrics = service.wait_stored()
        assert metrics["ingest_journal_torn_bytes_total"] == 160
        assert metrics["ingest_journal_corrupt_segments_total"] == 0
    assert len(stored_ids(mortal.dsn)) == 51


def test_a_flipped_byte_costs_its_record_is_counted_and_the_segment_is_set_aside(mortal, tmp_path):
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        service.post("/v1/events", batch(1))
        service.wait_stored()
        kill_postgres(mortal)
        for n in range(5):
            service.post("/v1/events", batch(10, f"record {n}"))
        service.kill()
        folder = journals.folders(tmp_path / "data")[0]
        path = segments.list_segments(folder)[-1]
        content = bytearray(path.read_bytes())
        content[content.index(b"record 2") + 1] ^= 0x20
        path.write_bytes(content)
        mortal.start()
        service.start()
        service.post("/v1/events", batch(1, "new"))
        metrics = service.wait_stored()
        assert metrics["ingest_journal_corrupt_segments_total"] == 1
        assert metrics['ingest_events_rejected_total{reason="journal_corrupt"}'] == 10
        assert metrics["ingest_events_unaccounted"] == 0
        assert "damaged" in service.log_text()
        assert len(stored_ids(mortal.dsn)) == 1 + 40 + 1
        assert service.post("/v1/events", batch(1, "still"))[0] == 200


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


LOSSES = ["newest emptied", "oldest deleted", "swapped", "a folder", "first line"]


@pytest.mark.parametrize("what", some_of(LOSSES, 1))
def test_segments_that_are_lost_or_moved_are_counted_and_stop_nobody(mortal, tmp_path, what):
    """Some are stored, then Postgres is down and several segments fill; kill -9, and the files are altered."""
    service = Service(tmp_path / "data", mortal.dsn, "--segment-bytes", "1MiB")
    with running(service):
        service.post("/v1/events", batch(5))
        service.wait_stored()
        kill_postgres(mortal)
        for _ in range(20):
            events = [{**one, "properties": {"text": "x" * 9000}} for one in batch(20)]
            assert service.post("/v1/events", events)[0] == 200
        folder = journals.folders(tmp_path / "data")[0]
        paths = segments.list_segments(folder)
        assert len(paths) >= 3
        with SegmentReader(paths[-1]) as reader:
            newest = max(piece.number for piece in reader if isinstance(piece, Record))
        # The number of the newest record is written after the answer. Without it nobody can know what was there.
        wait_until(lambda: getattr(segments.read_mark(folder), "number", 0) == newest, 60, "the note")
        service.kill()
        if what == "newest emptied":
            os.truncate(paths[-1], 0)
        elif what == "oldest deleted":
            paths[0].unlink()
        elif what == "a folder":
            become_folder(paths[1])
        elif what == "swapped":
            paths[0].rename(tmp_path / "aside")
            paths[1].rename(paths[0])
            (tmp_path / "aside").rename(paths[1])
        else:
            content = paths[1].read_bytes()
            paths[1].write_bytes(b"?" + content[1:])
        mortal.start()
        service.start()
        metrics = service.wait_stored()
        lost = metrics['ingest_events_rejected_total{reason="journal_corrupt"}']
        assert len(stored_ids(mortal.dsn)) + lost == 405
        assert (
            (lost > 0)
            == (metrics["ingest_journal_records_lost_total"] > 0)
            == (what not in ("swapped", "first line"))
        )
        assert metrics["ingest_events_unaccounted"] == 0 and metrics["ingest_pending_bytes"] == 0
        assert (f"{lost:.0f} acknowledged events" in service.log_text()) == (lost > 0)
        assert service.post("/v1/events", batch(1, "still"))[0] == 200


# Other processes and other releases.


def make_journal(data_dir: Path, number: int, identity: str, layout: Layout | None = None) -> Journal:
    folder = data_dir / "journals" / f"{number:06d}"
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(json.dumps({"number": number, "identity": identity}))
    claimed = journals.claim_folder(folder)
    assert claimed is not None
    if layout is not None:
        claimed.layout = layout
    journal = Journal(claimed, segment_bytes=1 << 20, max_bytes=1 << 26, memory_max_bytes=1 << 20)
    journal.recover(0)
    return journal


def line_of(values: dict[str, str], columns: tuple[str, ...]) -> str:
    return "\t".join(row.field(values.get(column)) for column in columns) + "\n"


async def test_an_unclaimed_journal_is_adopted_and_drained(start: Start, database_url):
    connection = await asyncpg.connect(database_url)
    client = await start()
    orphan = await create_journal(client.worker.config.data_dir, connection)
    orphan.release()
    await connection.close()
    claimed = journals.claim_folder(orphan.folder)
    assert claimed is not None
    journal = Journal(claimed, segment_bytes=1 << 20, max_bytes=1 << 26, memory_max_bytes=1 << 20)
    journal.recover(0)
    now = datetime.now(UTC).isoformat()
    values = {"created_at": now, "received_at": now, "type": "system", "properties": "{}", "context": "{}"}
    for n in range(10):
        line = line_of({**values, "id": str(uuid.uuid4()), "name": f"left {n}"}, row.EVENT_COLUMNS)
        await journal.wait(journal.append([line], 1, []))
    await journal.close()
    await client.worker.stores.adopt()
    async with asyncio.timeout(60):
        while client.worker.stores.adopted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await client.names() == [f"left {n}" for n in range(10)]
    assert client.worker.accounts.recovered == 10 and client.worker.accounts.stored == 10
    await client.worker.stores.adopt()
    assert not client.worker.stores.adopted, "what is drained is not looked at again"


async def test_nobody_can_take_a_journal_that_is_just_being_created(database_url, tmp_path, monkeypatch):
    """Another worker is looking for unclaimed journals at that very moment."""
    real, looks = segments.flush_folder, []

    def look(folder: Path) -> None:
        real(folder)
        looks.append(journals.claim(tmp_path))

    monkeypatch.setattr(segments, "flush_folder", look)
    connection = await asyncpg.connect(database_url)
    made = await create_journal(tmp_path, connection)
    await connection.close()
    made.release()
    assert looks == [None] * 3
    claimed = journals.claim(tmp_path)
    assert claimed is not None and claimed.layout == made.layout
    claimed.release()


async def test_without_a_database_a_journal_is_left_to_the_worker_that_is_starting(
    start: Start, database_url, tmp_path
):
    """That worker would have to wait for another number, and one that adopted its journal could not drain it."""
    async with CuttingProxy(database_url, tmp_path / "px") as proxy:
        client = await start(database_url=proxy.dsn)
        connection = await asyncpg.connect(database_url)
        orphan = await create_journal(client.worker.config.data_dir, connection)
        await connection.close()
        orphan.release()
        await proxy.go_away()
        with pytest.raises(DatabaseError):
            await client.worker.stores.adopt()
        claimed = journals.claim(client.worker.config.data_dir)
        assert claimed is not None and claimed.folder == orphan.folder
        # While another process holds it, the database is not even queried.
        await client.worker.stores.adopt()
        claimed.release()
        assert not client.worker.stores.adopted


async def test_records_of_an_older_release_are_stored_with_their_own_columns(start: Start, database_url, tmp_path):
    connection = await asyncpg.connect(database_url)
    data_dir = tmp_path / "old"
    made = await create_journal(data_dir, connection)
    await connection.close()
    old = tuple(column for column in row.EVENT_COLUMNS if column not in ("region", "utm_term", "page_host"))
    made.layout = Layout(made.layout.journal, made.layout.identity, old, row.REJECTED_COLUMNS)
    journal = Journal(made, segment_bytes=1 << 20, max_bytes=1 << 26, memory_max_bytes=1 << 20)
    journal.recover(0)
    now = datetime.now(UTC).isoformat()
    values = {"created_at": now, "received_at": now, "type": "system", "properties": "{}", "context": "{}"}
    line = line_of({**values, "id": str(uuid.uuid4()), "name": "old", "country": "DE", "page_path": "/x"}, old)
    await journal.wait(journal.append([line], 1, []))
    await journal.close()
    client = await start(data_dir=data_dir)
    await client.post({"name": "new"})
    events = {event["name"]: event for event in await client.events()}
    assert set(events) == {"old", "new"}
    assert (events["old"]["country"], events["old"]["page_path"], events["old"]["region"]) == ("DE", "/x", None)


async def test_two_processes_with_copies_of_one_journal_do_not_lose_or_double_anything_silently(
    start: Start, database_url, tmp_path, caplog
):
    """A copied data folder: the second collector finds the ledger ahead of its files and stores nothing."""
    import shutil

    client = await start(data_dir=tmp_path / "one")
    await client.post(batch(5, "first"))
    await client.settled()
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("*.sock", "run"))
    other = await start(data_dir=tmp_path / "two")
    await client.post(batch(5, "second"))
    await client.settled()
    for _ in range(3):
        await client.post(batch(1, "more"))
        await client.settled()
    await other.post(batch(5, "other"))
    async with asyncio.timeout(60):
        while "another process" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert other.worker.accounts.pending == 5, "kept, and said: not dropped, not stored over the other's"
    assert (await client.names()).count("second") == 5


def test_two_collectors_with_duplicates_between_them_store_each_event_once(mortal, tmp_path):
    """The same ids sent to both workers at once: the primary key decides."""
    service = Service(tmp_path / "data", mortal.dsn, "--workers", "2")
    with running(service):
        events = batch(400)
        for _ in range(6):
            for at in range(0, 400, 40):
                assert service.post("/v1/events", events[at : at + 40])[0] == 200
        metrics = service.wait_stored()
    assert metrics["ingest_events_stored_total"] == 400
    assert metrics["ingest_events_duplicate_total"] == 2000
    assert len(stored_ids(mortal.dsn)) == 400
