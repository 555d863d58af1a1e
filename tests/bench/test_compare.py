"""`bench.compare`: the rivals store what they say, kills are counted right, and the page shows what was measured."""

from __future__ import annotations

import asyncio
import datetime
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from random import Random
from xml.etree import ElementTree

import asyncpg
import psutil
import pytest
from aiohttp import web

from bench import compare, compare_report
from bench.arena import Arena, Meter, Used, running_arena, until
from bench.compare_chart import Bar, draw
from bench.compare_report import Capacity, Killed, RawCopy, Results, Scores
from bench.contenders import KINDS, REDIS_SERVER
from bench.events import batch_requests, fill, single_requests
from bench.measure import BATCH_EVENTS, Latency, batches
from bench.rivals import table
from bench.rivals.payload import rows_of
from bench.rivals.stream import entry_of, rows_of_entry
from bench.stubborn import Stubborn, running_stubborn
from tests.support.databases import SMALL
from tests.support.programs import needs

BODIES = {
    1: fill(single_requests(1, "here")[0], 5, 16).partition(b"\r\n\r\n")[2],
    3: fill(batch_requests(1, 3, "here")[0], 5, 16).partition(b"\r\n\r\n")[2],
}
"""Events -> a body with them, as the load generators send it."""


# The rivals.


@pytest.mark.parametrize("events", BODIES)
def test_rows_have_what_was_sent(events):
    sent = json.loads(BODIES[events])
    rows = [dict(zip(table.COLUMNS, row, strict=True)) for row in rows_of(BODIES[events], "agent", "127.0.0.1")]
    assert len(rows) == events
    for event, row in zip(sent if events > 1 else [sent], rows, strict=True):
        assert row["id"] == uuid.UUID(event["id"])
        assert row["created_at"] == datetime.datetime.fromisoformat(event["timestamp"])
        assert json.loads(row["properties"]) == event["properties"]
        assert json.loads(row["context"]) == event["context"]
        assert row["url"] == event["context"]["page"]["url"]
        assert {name: row[name] for name in ("name", "user_id", "referrer")} == {
            name: event[name] for name in ("name", "user_id", "referrer")
        }
        assert row["type"] == ("page_view" if event["name"] == "page_view" else "user_action")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "no"},
        {"name": ""},
        {"name": "n" * 101},
        {"timestamp": "2026-01-02T03:04:05"},
        {"type": "unknown"},
        {"user_id": "u" * 256},
        {"properties": []},
        {"properties": {"text": "\0"}},
    ],
    ids=str,
)
def test_a_wrong_event_refuses_its_body(wrong):
    right = json.loads(BODIES[1])
    assert len(rows_of(json.dumps([right]).encode(), None, None)) == 1
    with pytest.raises(ValueError):
        rows_of(json.dumps([right, right | wrong]).encode(), None, None)


def test_a_streams_entry_has_the_same_rows():
    rows = rows_of(BODIES[3], "agent", "127.0.0.1")
    back = rows_of_entry(entry_of(rows))
    # The id as a text, which Postgres takes, too.
    assert [(uuid.UUID(row[0]), *row[1:]) for row in back] == rows


async def test_each_way_stores_the_same_and_a_retry_nothing(direct_url):
    connection = await asyncpg.connect(direct_url)
    await connection.execute(f"{table.MAKE_SCHEMA}; {table.MAKE}")
    rows = rows_of(BODIES[3], "agent", "127.0.0.1")
    found = []
    for store in (table.copy, table.insert_many, _insert_each, _copy_entry):
        await store(connection, rows)
        await store(connection, rows)
        found.append(await connection.fetch(f"SELECT {', '.join(table.COLUMNS)} FROM {table.NAME} ORDER BY id"))
        await connection.execute(f"TRUNCATE {table.NAME}")
    await connection.close()
    assert len(found[0]) == 3
    assert found[0] == found[1] == found[2] == found[3]


async def _insert_each(connection, rows):
    for row in rows:
        await connection.execute(table.INSERT_ONE, *row)


async def _copy_entry(connection, rows):
    await table.copy(connection, rows_of_entry(entry_of(rows)))


# Load that does not give up.


class Unreliable:
    """Stores one request in three and says so, refuses one, and breaks the connection after storing the third."""

    def __init__(self) -> None:
        self.numbers = 0
        self.stored: Counter[bytes] = Counter()
        self.acknowledged: set[bytes] = set()
        self.enough = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.numbers += 1
        if self.numbers % 3 == 1:
            return web.Response(status=503)
        self.stored[body] += 1
        if self.numbers % 3 == 2:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.acknowledged.add(body)
        if len(self.acknowledged) == 20:
            self.enough.set()
        return web.json_response({"accepted": 1, "rejected": []})


async def test_every_request_is_sent_the_same_until_it_is_acknowledged():
    server = Unreliable()
    app = web.Application()
    app.add_routes([web.post("/v1/events", server.handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"127.0.0.1:{runner.addresses[0][1]}"
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    load = asyncio.create_task(Stubborn(host, single_requests(20, host), 32).run(4, ended))
    async with asyncio.timeout(60):
        await server.enough.wait()
        ended.set_result("")
        delivered = await load
    await runner.cleanup()
    assert delivered.unacknowledged == []
    assert delivered.sent == delivered.acknowledged == len(server.acknowledged)
    # Whatever was stored was acknowledged in the end, also what was not at first.
    assert server.acknowledged == server.stored.keys()
    assert delivered.sent + delivered.again == server.numbers
    assert max(server.stored.values()) > 1


async def test_what_nobody_takes_is_unacknowledged(monkeypatch):
    monkeypatch.setattr("bench.stubborn.LAST_ANSWERS_SECONDS", 0.2)
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    load = asyncio.create_task(Stubborn("127.0.0.1:1", single_requests(3, "nowhere"), 32).run(2, ended))
    await asyncio.sleep(0)
    ended.set_result("")
    delivered = await asyncio.wait_for(load, 60)
    assert (delivered.sent, delivered.acknowledged, delivered.unacknowledged) == (2, 0, [0, 1])


# Meters.


def test_a_meter_keeps_what_ended_processes_used(tmp_path):
    program = "import sys; open(sys.argv[1], 'wb').write(bytes(3_000_000)); sum(range(3_000_000)); sys.stdin.read()"
    process = psutil.Popen(["python3", "-c", program, str(tmp_path / "file")], stdin=-1)
    meter = Meter(lambda: [process])
    before = Used(0.0, 0)
    assert until(lambda: meter.look().cpu > 0.02 and (tmp_path / "file").exists(), 60)
    process.communicate()
    used = meter.look().since(before)
    assert used.cpu > 0.02
    assert used.an_event(1000).cpu == pytest.approx(1000 * used.cpu)
    assert used.an_event(0) == Used(0.0, 0.0)


# The page.


def capacity(per_second: float, refused: int = 0) -> Capacity:
    return Capacity(
        per_second, per_second, per_second / 50, Used(20.4, 700.0), Used(9.6, 1100.0), 9000, refused, 0.25
    )


def killed(lost: int = 0, twice: int = 0, unacknowledged: int = 0) -> Killed:
    return Killed(2, 40_000, lost, twice, 64, unacknowledged, 1.25)


def scores(batches_per_second: float, **kills: int) -> Scores:
    latency = Latency(0.71, 1.0, 2.82, 5.43, 9.0, 0.3, 5000)
    singles = capacity(1234.0, refused=7)
    return Scores(capacity(batches_per_second), singles, latency, 617.0, latency, 3, killed(**kills), killed())


def results(**of: Scores) -> Results:
    by_name = {name.replace("_", "-"): each for name, each in of.items()}
    return Results(by_name, RawCopy(1000, 99_000.0, Used(1.0, 0.0), Used(8.0, 900.0), 0), 500.0, 50)


@pytest.mark.parametrize(
    ("found", "complaints"),
    [
        (results(copy_memory=scores(1.0, lost=9), ingest=scores(2.0)), 0),
        (results(ingest=scores(2.0, lost=1)), 1),
        (results(ingest_2_rollup=scores(2.0, twice=1)), 1),
        (results(ingest=scores(2.0, unacknowledged=1)), 1),
    ],
)
def test_only_what_the_service_lost_fails_a_run(found, complaints):
    assert len(compare.judge(found)) == complaints


def test_the_page_has_every_figure(monkeypatch):
    monkeypatch.setattr(compare_report, "redis_version", lambda: "7.0")
    where = {"cores": 2, "cpu": "c", "memory_gb": 1, "system": "s", "postgres": "18", "python": "3", "load": "wrk"}
    found = results(copy_memory=scores(31_000.0, lost=1234), redis_always=scores(9.0), ingest=scores(80_000.0))
    page = compare_report.page(found, where, "the command", datetime.date(2026, 1, 2))
    assert "- 2026-01-02: `the command`" in page
    costs = "20 + 10 | 700 + 1,100"
    assert "PostgreSQL 18, Redis 7.0, Python 3" in page
    assert f"| COPY from memory every second | 31,000 | {costs} | 1,234 | {costs} |" in page
    assert "| ingest, 1 worker | its journal is fsynced | 0.7 | 2.8 | 5.4 | 617 | 0.7 | 2.8 | 5.4 |" in page
    assert "| COPY from memory every second | 40,000 | **1,234** | 0 | 1.2 s | 40,000 | 0 | 0 | 1.2 s |" in page
    assert "ingest, 1 worker: 7 requests with single events were answered with 503" in page
    assert "ingest, 1 worker: 3 of these requests were refused or failed" in page
    assert "it left 0 of 1,000 rows" in page
    widths = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert widths == [8] * 6 + [10] * 5 + [10] * 5
    written = json.loads(json.dumps(compare_report.as_json(found, where, "the command")))
    assert written["contenders"]["copy-memory"]["killed"]["lost"] == 1234
    assert written["raw_copy"]["postgres"]["written"] == 900.0


def test_the_chart_has_bars_as_long_as_their_values():
    drawn = draw("A & B", [Bar("<one>", 500.0, "12 lost", False, True), Bar("two", 1000.0, "0 lost", True, False)])
    root = ElementTree.fromstring(drawn)
    one, two = (
        float(each.attrib["width"]) for each in root.iter("{http://www.w3.org/2000/svg}rect") if "rx" in each.attrib
    )
    assert two == 2 * one > 0
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["A & B", "<one>", "500", "12 lost", "two", "1,000", "0 lost"]


def test_a_chart_of_nothing_is_one():
    ElementTree.fromstring(draw("", []))


# All of them, on a real Postgres.


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with running_arena(SMALL) as arena:
        yield arena


CONTENDERS = [pytest.param(name, marks=[needs(REDIS_SERVER)] if kind.redis else []) for name, kind in KINDS.items()]


@pytest.mark.long
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_stores_events_survives_and_is_counted(name, arena):
    with arena.ring(KINDS[name]) as ring:
        found = compare.measure_kills(ring, 1, Random(1), with_postgres=False)
        assert found.acknowledged > 0 == found.unacknowledged == found.twice
        assert 0 <= found.lost <= found.acknowledged
        if name not in ("copy-memory", "redis-everysec"):
            assert found.lost == 0
        with_postgres = compare.measure_kills(ring, 1, Random(2), with_postgres=True)
        assert with_postgres.acknowledged > 0 == with_postgres.unacknowledged == with_postgres.twice
        if name not in ("copy-memory", "redis-everysec"):
            assert with_postgres.lost == 0
        # Ended in an orderly way, nobody loses anything.
        ring.forget_events()
        requests = batches(ring.contender.host)
        with running_stubborn(ring.contender.host, requests.texts, 4, ring.contender.place.folder) as load:
            assert until(lambda: load.acknowledged() > 0, 60)
            delivered = load.finish()
        ring.contender.stop()
        if KINDS[name].tells:
            ring.contender.start()
            assert until(lambda: ring.contender.waiting() == 0, 60)
        assert delivered.acknowledged == delivered.sent > 0
        assert ring.rows() == delivered.sent * BATCH_EVENTS
        assert compare.lost_and_twice(ring, delivered) == (0, 0)
        # And what is missing is noticed.
        events = ring.contender.kind.table
        ring.session.execute(f"DELETE FROM {events} WHERE id IN (SELECT id FROM {events} LIMIT 7)")
        assert compare.lost_and_twice(ring, delivered) == (7, 0)
        # Once more, with another time, which is another key.
        ring.session.execute(
            f"INSERT INTO {events} (id, created_at, type, name, batch_id)"
            f" SELECT id, created_at + interval '1 microsecond', type, name, 0 FROM {events} LIMIT 3"
        )
        assert compare.lost_and_twice(ring, delivered) == (7, 3)


@pytest.mark.long
def test_a_short_run_writes_page_chart_and_figures(tmp_path, capsys):
    page, figures = tmp_path / "compare.md", tmp_path / "compare.json"
    names = ("insert-batches", "ingest", "raw-copy")
    chosen = [argument for name in names for argument in ("--only", name)]
    assert compare.main(["--quick", *chosen, "--report", str(page), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert set(found["contenders"]) == {"insert-batches", "ingest"}
    for each in found["contenders"].values():
        assert each["batches"]["stored_per_second"] > 0
        assert each["batches"]["postgres"]["cpu"] > 0
        assert each["batches"]["postgres"]["written"] > 0
        assert each["latency"]["p50"] > 0
    assert found["raw_copy"]["left_by_kill"] in (0, found["raw_copy"]["rows"])
    assert found["raw_copy"]["postgres"]["written"] > 0
    assert "(compare.svg)" in page.read_text()
    assert "INSERT of batches" in (tmp_path / "compare.svg").read_text()
