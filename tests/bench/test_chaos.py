"""The parts of `bench.chaos`: what stands before libc, what breaks connections, and what fails a run."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from bench.chaos import judge, report, wire
from bench.chaos.faults import Happened
from bench.chaos.interposed import COMPILER, Interposed
from bench.chaos.judge import Drained, Found
from bench.chaos.load import Load
from bench.chaos.run import Outcome, Plan
from bench.chaos.wire import ACTIONS, HTTP_STEPS, POSTGRES_STEPS, Break, random_break
from tests.support.programs import needs

linux = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux'")

# What stands before libc.

WRITE = """
import os, sys
path, size = sys.argv[1], int(sys.argv[2])
try:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC, 0o600)
    view = memoryview(b"x" * size)
    while view:
        view = view[os.write(descriptor, view):]
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.fixture
def interposed(tmp_path) -> Iterator[Interposed]:
    made = Interposed(tmp_path, tmp_path / "data")
    (tmp_path / "data" / "journals" / "1").mkdir(parents=True)
    yield made
    made.close()


def run(interposed: Interposed, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **interposed.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@linux
@needs(COMPILER)
@pytest.mark.parametrize(
    ("disk", "sync", "code", "left"),
    [
        (0, 0, 0, 15_000),
        (errno.EROFS, 0, errno.EROFS, 5_000),
        (errno.EIO, 0, errno.EIO, 5_000),
        # The last block takes what fits.
        (errno.ENOSPC, 0, errno.ENOSPC, 8_192),
        # Written, but perhaps not durable.
        (0, errno.EIO, errno.EIO, 15_000),
    ],
)
def test_disks_fail_for_files_of_the_data_folder_and_no_others(interposed, tmp_path, disk, sync, code, left):
    segment, other = tmp_path / "data" / "journals" / "1" / "1.segment", tmp_path / "other"
    segment.write_bytes(b"y" * 5_000)
    interposed.fail_disk("supervisor", disk)
    interposed.fail_sync("supervisor", sync)
    assert run(interposed, WRITE, segment, 10_000).returncode == code
    assert segment.stat().st_size == left
    assert run(interposed, WRITE, other, 10_000).returncode == 0 and other.stat().st_size == 10_000


@linux
@needs(COMPILER)
@pytest.mark.parametrize("seconds", [86_400.0, -3600.5])
def test_a_clock_jumps_and_the_other_one_does_not(interposed, seconds):
    interposed.set_clock("supervisor", seconds)
    shown = run(interposed, "import time; print(time.time(), time.monotonic())").stdout.split()
    assert abs(float(shown[0]) - time.time() - seconds) < 60 and abs(float(shown[1]) - time.monotonic()) < 60


@linux
@needs(COMPILER)
@pytest.mark.parametrize(
    ("point", "left"), [("before write", 0), ("torn write", 500), ("after write", 1_000), ("after open", 0)]
)
def test_a_process_dies_at_a_point_the_how_many_th_time_it_gets_there(interposed, tmp_path, point, left):
    first, second = (tmp_path / "data" / "journals" / "1" / f"{n}.segment" for n in (1, 2))
    interposed.kill_at((f"supervisor: {point} segment", 2))
    assert run(interposed, WRITE, first, 1_000).returncode == 0 and interposed.fired == 0
    assert run(interposed, WRITE, second, 1_000).returncode == -signal.SIGKILL and interposed.fired == 1
    assert second.stat().st_size == left
    assert interposed.points()[f"supervisor: {point} segment"] == 2
    assert run(interposed, WRITE, second, 1_000).returncode == 0, "once is enough"


@linux
@needs(COMPILER)
def test_the_second_point_counts_from_when_the_first_has_killed(interposed, tmp_path):
    path = tmp_path / "data" / "journals" / "1" / "1.segment"
    interposed.kill_at(("supervisor: after write segment", 1), ("supervisor: before write segment", 1))
    assert [run(interposed, WRITE, path, 10).returncode for _ in range(3)] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert path.stat().st_size == 20


# Connections.


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def test_messages_of_postgres_are_found_however_they_arrive():
    startup = (12).to_bytes(4, "big") + b"12345678"
    asked = [startup, message(b"Q", b"SET CONSTRAINTS ALL IMMEDIATE; COMMIT\0"), message(b"Q", b"SELECT 1\0")]
    asked += [message(b"P", b"\0SELECT 2\0"), message(b"d", b"a\tb\n" * 100), message(b"c", b"")]
    stream = b"".join(asked)
    for size in (1, 7, 100, len(stream)):
        frames, arrived, found = wire.postgres_asked(), bytearray(), []
        for start in range(0, len(stream), size):
            arrived += stream[start : start + size]
            found += frames(arrived)
        assert [step for step, _ in found] == ["startup", "commit", "query", "parse", "rows", "end of rows"]
        assert [each for _, each in found] == asked
    answered = message(b"C", b"COMMIT\0") + message(b"C", b"COPY 5\0") + message(b"C", b"SET\0") + message(b"Z", b"I")
    assert [step for step, _ in wire.postgres_answered()(bytearray(answered))] == [
        "committed", "copied", "done", "ready",
    ]  # fmt: skip


@asynccontextmanager
async def echo_behind_a_wire() -> AsyncIterator[tuple[wire.Wire, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server that sends back what it gets, a wire before it, and a connection to that."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        between = wire.before_http(lambda: asyncio.open_connection("127.0.0.1", port))
        async with await asyncio.start_server(between.serve, "127.0.0.1", 0) as before:
            reader, writer = await asyncio.open_connection("127.0.0.1", before.sockets[0].getsockname()[1])
            yield between, reader, writer
            writer.close()
            await between.close()


@pytest.mark.parametrize(
    ("one", "arrives"),
    [
        (Break("request", "cut before", 0.0), b""),
        (Break("answer", "cut within", 0.0), b"he"),
        (Break("answer", "cut after", 0.0), b"hell"),
        (Break("answer", "drop", 0.01), b""),
        (Break("answer", "cut before", 0.0, after=1), b"hell"),
    ],
)
async def test_a_connection_breaks_at_its_step(one, arrives):
    async with echo_behind_a_wire() as (between, reader, writer):
        between.break_next(one)
        assert await received_until_broken(reader, writer) == arrives
        assert between.broken == {(one.step, one.action): 1}


async def received_until_broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while len(found) % 4 == 0:
                writer.write(b"hell")
                while data := await reader.read(100):
                    found += data
                    if len(found) % 4 == 0:
                        break
                else:
                    break
    return found


async def test_a_delayed_message_arrives_all_the_same():
    async with echo_behind_a_wire() as (between, reader, writer):
        between.break_next(Break("request", "delay", 0.05))
        writer.write(b"late")
        async with asyncio.timeout(60):
            assert await reader.readexactly(4) == b"late"
        between.break_next(Break("request", "cut before", 0.0))
        between.calm()
        writer.write(b"next")
        async with asyncio.timeout(60):
            assert await reader.readexactly(4) == b"next"


def test_a_seed_decides_what_breaks():
    breaks = [[random_break(Random(seed), POSTGRES_STEPS, 5.0) for _ in range(3)] for seed in (1, 1, 2)]
    assert breaks[0] == breaks[1] != breaks[2]
    random = Random(3)
    many = [random_break(random, HTTP_STEPS, 5.0) for _ in range(200)]
    assert {each.action for each in many} == set(ACTIONS) and {each.step for each in many} == set(HTTP_STEPS)


# The judgement.


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("OSError: [Errno 5] I/O error: '/a/b-1/journals/000003/lock'", "OSError: [Errno …] I/O error: 'lock'"),
        ("ImportError: /home/me/.venv/lib/x.so: failed", "ImportError: x.so: failed"),
        ("ImportError: no 'b' in 'h' (/opt/py/h.py)", "ImportError: no 'b' in 'h' (h.py)"),
    ],
)
def test_a_complaint_does_not_say_where_files_are(line: str, shown: str):
    assert judge.alike(line) == shown


FOUND = Found(
    acknowledged=100,
    stored=102,
    lost=0,
    twice=0,
    unknown=0,
    only_tried=2,
    refused=Counter({"in_future": 2}),
    kept=Counter({"in_future": 2}),
    in_ledger=(102, 102),
    journals=2,
    duplicate=7,
    in_aggregates={"hour": 102, "day": 102},
    verified="48 hours and days compared, 0 differences",
    drained=Drained(0.5, 1.0, 2.0),
    complaints=Counter(),
    wrong=[],
)
CALM = {"ingest_journals_taken": 0.0, "ingest_events_unaccounted": 0.0}


def load() -> Load:
    return Load("http://localhost", Random(1), connections=1, per_second=1.0)


@pytest.mark.parametrize(
    ("change", "metrics", "complaint"),
    [
        ({"lost": 1}, {}, "1 acknowledged events are not in the table"),
        ({"twice": 2}, {}, "2 events are in the table twice"),
        ({"unknown": 3}, {}, "3 rows have an id that nobody sent"),
        ({"in_ledger": (101, 102)}, {}, "the journals count 101 events, the table 102"),
        ({"in_ledger": (102, 103)}, {}, "the flushes count 103 events, the table 102"),
        ({"in_aggregates": {"hour": 102, "day": 90}}, {}, "the aggregates by day count 90 events, the table 102"),
        ({"verified": "5 compared, 10 differences"}, {}, "aggregates differ from events: 5 compared, 10 differences"),
        ({"kept": Counter({"database_refused": 4})}, {}, "4 rows were refused by the table"),
        ({}, {"ingest_journals_taken": 1.0}, "1 journals are taken for copies"),
        ({}, {"ingest_events_unaccounted": 5.0}, "5 events are not accounted for"),
        (
            {},
            {'ingest_events_rejected_total{reason="journal_corrupt"}': 6.0},
            "6 events were lost in a journal",
        ),
    ],
)
def test_what_fails_a_run(change, metrics, complaint):
    assert judge.wrong_with(FOUND, [], CALM) == []
    assert judge.wrong_with(FOUND._replace(**change), [], CALM | metrics) == [complaint]
    assert judge.wrong_with(FOUND, ["418: teapot"], CALM) == ["418: teapot"]


def test_a_client_knows_what_an_answer_has_accepted():
    client = load()
    events: list[dict[str, object]] = [{"id": f"00000000-0000-4000-8000-00000000000{n}"} for n in range(3)]
    client._note(events, b'{"accepted": 2, "rejected": [{"index": 1, "reason": "in_future"}]}')
    assert len(client.acknowledged) == 2 and list(client.refused.values()) == ["in_future"] and not client.wrong
    client._note(events, b'{"accepted": 1, "rejected": []}')
    assert client.wrong == ['of 3 events: {"accepted": 1, "rejected": []}']


def test_a_report_says_what_happened():
    outcome = Outcome(
        plan=Plan(7, 10, 100, 60.0, 120.0),
        began=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        seconds=61.0,
        happened=Happened(
            Counter(writer=9, point=1), Counter({"writer: after send COMMIT": 1}), Counter({"disk: full": 1})
        ),
        broken=Counter({("commit", "cut after"): 3}),
        answers=Counter({"200": 10, "cut": 2}),
        made=110,
        again=20,
        exits=Counter({"serve -9": 1}),
        points=70,
        busiest=2.5,
        books=50,
        postgres="18.4",
        found=FOUND,
    )
    text = report.text(outcome)
    for words in (
        "2026-01-02, seed 7: `python -m bench.chaos --seed 7 --kills 10 --events 100 --minutes 1`",
        "| verdict | **passed** |",
        "| kills | 10 |",
        "| writer: after send COMMIT | 1 |",
        "| commit | cut after | 3 |",
        "serve -9: 1",
        "in_future: 2",
    ):
        assert words in text
    failed = report.text(outcome._replace(found=FOUND._replace(wrong=["1 acknowledged events are not in the table"])))
    assert "**failed**" in failed and "- 1 acknowledged events are not in the table" in failed
