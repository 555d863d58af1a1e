"""The promise under kill -9: whatever dies when, acknowledged = stored, once."""

from __future__ import annotations

import asyncio
import random
import time

import asyncpg
import pytest

from tests.support.amounts import amount
from tests.support.crashes import stored_ids
from tests.support.faults import StubbornClient, kill_postgres
from tests.support.service import Service, parse_metrics, running

KILLS = amount(5, long=50)
CLIENTS = 3


def ledger(dsn: str) -> tuple[int, int]:
    """(events stored according to the journals, according to the flushes)"""

    async def read() -> tuple[int, int]:
        connection = await asyncpg.connect(dsn)
        journals = await connection.fetchval("SELECT sum(events_stored) FROM analytics.journals")
        flushes = await connection.fetchval("SELECT sum(events_stored) FROM analytics.flushes")
        await connection.close()
        return int(journals), int(flushes)

    return asyncio.run(read())


@pytest.mark.longer
def test_random_kills_lose_nothing_and_store_nothing_twice(mortal_on_disk, tmp_path):
    """kill -9 of the collector or of Postgres, at random moments under load, the next often before recovery from the
    last. Clients retry what was not acknowledged."""
    chance = random.Random(20260102)
    limits = ("--segment-bytes", "1MiB", "--journal-max-bytes", "64MiB")
    service = Service(tmp_path / "data", mortal_on_disk.dsn, *limits)
    with running(service):
        clients = [StubbornClient(service.url) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        kills = {"collector": 0, "postgres": 0}
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.05, 0.5))
            victim = chance.choice(["collector", "postgres"])
            kills[victim] += 1
            if victim == "collector":
                service.kill()
                service.start(wait=chance.random() < 0.5)
            else:
                kill_postgres(mortal_on_disk)
                time.sleep(chance.uniform(0, 0.3))
                mortal_on_disk.start()
        service.wait_ready()
        for client in clients:
            client.finish()
        metrics = service.wait_stored(60)
    acknowledged = set().union(*(client.acknowledged for client in clients))
    stored = stored_ids(mortal_on_disk.dsn)
    assert min(kills.values()) >= KILLS // 3
    assert len(acknowledged) > KILLS * 20
    assert len(stored) == len(set(stored)), "an event is in the table twice"
    assert set(stored) == acknowledged, "every batch was acknowledged in the end, so every event is there, once"
    assert ledger(mortal_on_disk.dsn) == (len(stored), len(stored)), "the ledger counts what the table holds"
    assert metrics["ingest_events_unaccounted"] == 0


@pytest.mark.long
def test_the_table_holds_only_events_that_were_sent(mortal, tmp_path):
    """Clients that do not retry: the table holds everything acknowledged, and nothing that was not sent."""
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        clients = [StubbornClient(service.url, only_once=True) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(amount(2, long=6)):
            time.sleep(0.4)
            service.kill()
            service.start()
        for client in clients:
            client.finish()
        service.wait_stored()
    stored = stored_ids(mortal.dsn)
    acknowledged = set().union(*(client.acknowledged for client in clients))
    unknown = set().union(*(client.unknown for client in clients))
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored) <= acknowledged | unknown


def test_the_books_balance_across_a_restart_with_postgres_down(mortal, tmp_path):
    """Events accepted while Postgres is down, then kill -9: the next process recovers them, counts them as pending,
    and as stored when Postgres is back."""
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        assert service.post("/v1/events", [{"name": "before"}])[0] == 200
        service.wait_stored()
        kill_postgres(mortal)
        for _ in range(10):
            assert service.post("/v1/events", [{"name": "during"}] * 5)[0] == 200
        during = service.metrics()
        assert during["ingest_events_pending"] == 50 and during["ingest_events_unaccounted"] == 0
        service.kill()
        service.start()
        after = service.metrics()
        assert after['ingest_events_received_total{source="recovered"}'] >= 50
        assert after["ingest_events_pending"] == after['ingest_events_received_total{source="recovered"}']
        assert after["ingest_events_unaccounted"] == 0 and after["ingest_postgres_up"] == 0
        status, body = service.get("/readyz")
        assert status == 200 and '"postgres":"down"' in body
        assert service.post("/v1/events", {"name": "after"})[0] == 200
        mortal.start()
        end = service.wait_stored()
        assert end['ingest_events_received_total{source="http"}'] == 1
        assert end["ingest_events_received_total"] == end["ingest_events_stored_total"]
        assert end["ingest_events_unaccounted"] == 0 and end["ingest_postgres_up"] == 1
    names = sorted(_names(mortal.dsn))
    assert names == ["after", "before"] + ["during"] * 50


def _names(dsn: str) -> list[str]:
    async def read() -> list[str]:
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch("SELECT name FROM analytics.events")
        await connection.close()
        return [row["name"] for row in rows]

    return asyncio.run(read())


def test_sigterm_under_load_answers_what_is_in_flight_and_stores_what_was_accepted(mortal, tmp_path):
    """A second SIGTERM is harmless. When the process ends, everything acknowledged is in the table."""
    import signal

    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        clients = [StubbornClient(service.url, only_once=True) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(1.0)
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGTERM)
        assert service.process is not None
        assert service.process.wait(60) == 0
        for client in clients:
            client.finish()
    stored = stored_ids(mortal.dsn)
    acknowledged = set().union(*(client.acknowledged for client in clients))
    assert acknowledged <= set(stored) and len(stored) == len(set(stored)) and len(acknowledged) > 100


def test_metrics_text_is_read_as_prometheus_reads_it():
    page = 'a_total{worker="0",route="/x"} 2.0\na_total{worker="1",route="/x"} 3.0\nb 1\n'
    assert parse_metrics(page) == {"a_total": 5.0, 'a_total{route="/x"}': 5.0, "b": 1.0}
