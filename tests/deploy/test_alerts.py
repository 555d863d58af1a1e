"""Each alert of deploy/prometheus is provoked by its fault, on a real service that a real Prometheus scrapes: it
is seen to fire, and to clear once the fault is gone. A minute of the rules takes three seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg
import pytest

from ingest.journal import journals, segments
from tests.support import grafana
from tests.support.events import batch
from tests.support.faults import kill_postgres, small_disk
from tests.support.prometheus import ALERT_SECONDS, Prometheus, Watch, alerts, needs_prometheus
from tests.support.rollup_process import RollupProcess, rolling_up, wait_rolled_up
from tests.support.service import Service, child_processes, running

MIB = 1024 * 1024
MOST_KILLS = 100
MOST_STEPS = 200
SMALL_JOURNAL = ("--journal-max-bytes", "24MiB", "--segment-bytes", "2MiB", "--memory-max-bytes", "4MiB")
PROVOKED: dict[str, tuple[str, ...]] = {}
"""The tests below, each with the alerts that it sees fire and clear."""
Test = TypeVar("Test", bound=Callable[..., Any])


def provokes(*names: str) -> Callable[[Test], Test]:
    """Marks a test that provokes these alerts; `watching` holds it to that."""

    def mark(test: Test) -> Test:
        PROVOKED[test.__name__] = names
        marked: Test = pytest.mark.system(pytest.mark.long(needs_prometheus(test)))
        return marked

    return mark


def test_each_alert_is_provoked_by_a_test() -> None:
    provoked = {name for names in PROVOKED.values() for name in names}
    assert provoked == {alert.name for alert in alerts()}


class Watched(NamedTuple):
    """A service that is watched: a collector, a rollup worker in its own process, and what their alerts do."""

    collector: Service
    rollup: RollupProcess
    watch: Watch


Watching = Callable[..., contextlib.AbstractContextManager[Watched]]


@pytest.fixture
def watching(request: pytest.FixtureRequest, tmp_path: Path) -> Watching:
    """`with watching(url) as …` starts a collector, with more flags if given, a rollup worker and Prometheus, and
    waits until that finds all well. At the end each alert that the test is to provoke must have fired and cleared."""
    names = PROVOKED[request.function.__name__]

    @contextmanager
    def watch(url: str, *flags: str, collector: Service | None = None) -> Iterator[Watched]:
        collector = collector or Service(tmp_path / "data", url, *flags)
        rollup = RollupProcess(tmp_path / "rollup", url, "--rollup-stalled-seconds", "5")
        with running(collector), rolling_up(rollup), watched(tmp_path, collector, rollup) as watch:
            yield Watched(collector, rollup, watch)
            assert watch.cleared.issuperset(names), f"fired: {watch.fired}, cleared: {watch.cleared}"

    return watch


@contextmanager
def watched(folder: Path, collector: Service, rollup: RollupProcess) -> Iterator[Watch]:
    """Prometheus on both, once it finds all well."""
    jobs = {"ingest": [f"127.0.0.1:{collector.port}"], "ingest-rollup": [f"127.0.0.1:{rollup.port}"]}
    prometheus = Prometheus(folder, jobs)
    try:
        watch = Watch(prometheus.start())
        watch.wait_quiet()
        yield watch
    finally:
        prometheus.stop()


class Traffic(threading.Thread):
    """Sends batches until it is stopped, whatever the answers. `make`: the events of a batch. `pause_seconds` between
    two may be changed."""

    def __init__(
        self, service: Service, make: Callable[[], list[dict[str, Any]]], pause_seconds: float = 0.2
    ) -> None:
        super().__init__(daemon=True)
        self._service = service
        self._make = make
        self.pause_seconds = pause_seconds
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(self.pause_seconds):
            with contextlib.suppress(OSError):
                self._service.post("/v1/events", self._make())

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join(30)


def large(kilobytes: int = 60) -> list[dict[str, Any]]:
    """Sixty events that fill a journal."""
    return [{**one, "properties": {"text": "x" * (kilobytes * 1000 // 60)}} for one in batch(60)]


# Postgres.


@provokes(
    "IngestPostgresDown",
    "IngestStoringLags",
    "IngestJournalFilling",
    "IngestNotReady",
    "IngestEventsTurnedAway",
    "IngestNoRollupLeader",
    "IngestRollupStalled",
)
def test_postgres_is_away_until_the_journal_is_full(mortal, tmp_path, watching):
    with watching(mortal.dsn, *SMALL_JOURNAL) as (collector, _, watch):
        with Traffic(collector, large) as traffic:
            kill_postgres(mortal)
            watch.wait_fired("IngestPostgresDown", "IngestStoringLags", "IngestJournalFilling", "IngestRollupStalled")
            traffic.pause_seconds = 0.01
            watch.wait_fired("IngestNotReady", "IngestEventsTurnedAway", "IngestNoRollupLeader")
        mortal.start()
        collector.wait_stored(120)
        watch.wait_cleared(*watch.fired)


# What clients send, and what the table takes.


@provokes("IngestEventsRefused")
def test_a_client_sends_what_is_malformed(database_url, tmp_path, watching):
    with watching(database_url) as (collector, _, watch):
        with Traffic(collector, lambda: [*batch(9), {"name": ""}]):
            watch.wait_fired("IngestEventsRefused")
        with Traffic(collector, lambda: batch(10)):
            watch.wait_cleared("IngestEventsRefused")


@provokes("IngestRowsRefused", "IngestTableRefuses")
async def test_the_table_refuses_a_row_and_then_all_rows(
    database_url: str, connection: asyncpg.Connection, tmp_path, watching
):
    refuse = "ALTER TABLE analytics.events ADD CONSTRAINT refuses CHECK ({}) NOT VALID"
    accept = "ALTER TABLE analytics.events DROP CONSTRAINT refuses"
    with watching(database_url) as (collector, _, watch):
        await connection.execute(refuse.format("name <> 'poison'"))
        assert collector.post("/v1/events", [*batch(5), *batch(1, "poison")])[0] == 200
        watch.wait_fired("IngestRowsRefused")
        await connection.execute(accept)
        await connection.execute(refuse.format("false"))
        assert collector.post("/v1/events", batch(5))[0] == 200
        watch.wait_fired("IngestTableRefuses")
        await connection.execute(accept)
        watch.wait_cleared("IngestRowsRefused", "IngestTableRefuses")
        collector.wait_stored(60)


# The books.

PLANT = """
import os
if os.path.exists({flag!r}):
    from ingest.journal.accounts import Accounts
    Accounts.reject = lambda self, reason, events=1: None
"""
"""Put into the service's processes: refused events are not booked. There is no known way to make the books wrong from
outside, so the fault is a bug that is planted; everything from the books on is the service's own."""


@provokes("IngestEventsUnaccounted")
def test_a_bug_leaves_an_event_unaccounted_for(database_url, tmp_path, watching):
    flag = tmp_path / "is-planted"
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "sitecustomize.py").write_text(PLANT.format(flag=str(flag)))
    search = os.pathsep.join([str(tmp_path / "plant"), os.environ.get("PYTHONPATH", "")])
    flag.touch()
    planted = Service(tmp_path / "data", database_url, environ={"PYTHONPATH": search})
    with watching(database_url, collector=planted) as (collector, _, watch):
        collector.post("/v1/events", {"name": ""})
        watch.wait_fired("IngestEventsUnaccounted")
        flag.unlink()
        collector.stop()
        collector.start()
        collector.post("/v1/events", {"name": ""})
        watch.wait_cleared("IngestEventsUnaccounted")


@provokes("IngestRecordsLost")
def test_a_byte_of_a_journal_is_flipped(mortal, tmp_path, watching):
    with watching(mortal.dsn) as (collector, _, watch):
        kill_postgres(mortal)
        for number in range(5):
            collector.post("/v1/events", batch(10, f"record {number}"))
        collector.kill()
        path = segments.list_segments(journals.folders(collector.data_dir)[0])[-1]
        content = bytearray(path.read_bytes())
        content[content.index(b"record 2") + 1] ^= 0x20
        path.write_bytes(content)
        mortal.start()
        collector.start()
        watch.wait_fired("IngestRecordsLost")
        assert collector.wait_stored()["ingest_journal_records_lost_total"] == 1
        watch.wait_cleared("IngestRecordsLost")


@provokes("IngestAccountingNotCertified")
async def test_an_aggregate_is_changed_by_hand(
    database_url: str, connection: asyncpg.Connection, tmp_path, ingest, watching
):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    moment = (hour + timedelta(minutes=30)).isoformat()
    with watching(database_url) as (collector, rollup, watch):
        collector.post("/v1/events", [{**one, "timestamp": moment} for one in batch(10)])
        collector.wait_stored()
        await wait_rolled_up(connection, 60)
        changed = await connection.execute(
            "UPDATE analytics.event_aggregations SET event_count = event_count + 1"
            " WHERE granularity = 'hour' AND time_bucket = $1 AND dimensions = '{}'",
            hour,
        )
        assert changed == "UPDATE 1"
        # The task runs at the start.
        rollup.stop()
        rollup.start()
        watch.wait_fired("IngestAccountingNotCertified")
        assert "the aggregates count 11 events, but 10 are stored" in rollup.log_text()
        until = (hour + timedelta(hours=1)).isoformat()
        rebuilt = ingest(
            "rollup", "rebuild", "--from", hour.isoformat(), "--to", until, url=database_url, seconds=ALERT_SECONDS
        )
        assert rebuilt.code == 0, rebuilt
        watch.wait_cleared("IngestAccountingNotCertified")


# Processes.


@provokes("IngestDown")
def test_a_collector_is_gone_and_comes_back(database_url, tmp_path, watching):
    with watching(database_url) as (collector, _, watch):
        collector.kill()
        watch.wait_fired("IngestDown")
        collector.start()
        watch.wait_cleared("IngestDown")


@provokes("IngestDown", "IngestNoRollupLeader")
def test_the_rollup_worker_is_killed(database_url, tmp_path, watching):
    with watching(database_url) as (_, rollup, watch):
        rollup.kill()
        watch.wait_fired("IngestDown", "IngestNoRollupLeader")
        rollup.start()
        watch.wait_cleared("IngestDown", "IngestNoRollupLeader")


@provokes("IngestWriterDies")
def test_a_writer_is_killed_again_and_again(database_url, tmp_path, watching):
    with watching(database_url) as (collector, _, watch):
        for _ in range(MOST_KILLS):
            watch.look()
            if "IngestWriterDies" in watch.fired:
                break
            for worker in collector.workers():
                for writer in child_processes(worker):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(writer, signal.SIGKILL)
            time.sleep(2)
        assert "IngestWriterDies" in watch.fired
        watch.wait_cleared("IngestWriterDies")
        collector.post("/v1/events", batch(5))
        collector.wait_stored()


# Aggregates and schedule.


@provokes("IngestRollupLags", "IngestRollupStalled")
async def test_the_aggregates_are_locked(database_url: str, connection: asyncpg.Connection, tmp_path, watching):
    with watching(database_url) as (collector, _, watch), Traffic(collector, lambda: batch(10)):
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.event_aggregations IN ACCESS EXCLUSIVE MODE")
            watch.wait_fired("IngestRollupLags", "IngestRollupStalled")
        watch.wait_cleared("IngestRollupLags", "IngestRollupStalled")


@provokes("IngestTaskFails")
async def test_a_task_fails(database_url: str, connection: asyncpg.Connection, tmp_path, watching):
    with watching(database_url) as (collector, _, watch), Traffic(collector, lambda: batch(10)):
        await connection.execute("ALTER TABLE analytics.metrics ADD CONSTRAINT refuses CHECK (false) NOT VALID")
        watch.wait_fired("IngestTaskFails")
        await connection.execute("ALTER TABLE analytics.metrics DROP CONSTRAINT refuses")
        watch.wait_cleared("IngestTaskFails")


@provokes("IngestTaskOverdue")
async def test_a_task_hangs(database_url: str, connection: asyncpg.Connection, tmp_path, watching):
    with watching(database_url) as (collector, _, watch), Traffic(collector, lambda: batch(10)):
        async with connection.transaction():
            await connection.execute("LOCK TABLE analytics.metrics IN SHARE ROW EXCLUSIVE MODE")
            watch.wait_fired("IngestTaskOverdue")
        watch.wait_cleared("IngestTaskOverdue")


# Journals and their disk.


@provokes("IngestJournalTaken")
def test_a_data_folder_is_copied(database_url, tmp_path, ingest, watching):
    copy = Service(tmp_path / "copy", database_url)
    with watching(database_url) as (original, _, watch):
        original.post("/v1/events", batch(5))
        original.wait_stored()
        original.stop()
        # Without the sockets, which cannot be copied.
        shutil.copytree(original.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("run"))
        with running(copy):
            assert copy.post("/v1/events", batch(5))[0] == 200
            copy.wait_stored()
            original.start(wait=False)
            watch.wait_fired("IngestJournalTaken")
            original.stop()
        decision = ("--how", "set-aside", "--data-dir", original.data_dir)
        resolved = ingest("journal", "resolve", *decision, url=database_url, seconds=ALERT_SECONDS)
        assert resolved.code == 0, resolved
        original.start()
        watch.wait_cleared("IngestJournalTaken")


@provokes("IngestDiskFilling", "IngestDiskShort", "IngestDiskNearlyFull", "IngestJournalWriteFails")
def test_something_else_fills_the_disk(database_url, tmp_path, watching):
    with small_disk(tmp_path / "disk", "96m") as mounted:
        if not mounted:
            pytest.skip("only root may mount a small disk")
        collector = Service(tmp_path / "disk" / "data", database_url, *SMALL_JOURNAL)
        collector.log = tmp_path / "collector.log"
        filler = tmp_path / "disk" / "filler"
        with watching(database_url, collector=collector) as (_, _, watch):
            for _ in range(MOST_STEPS):
                watch.look()
                if "IngestDiskFilling" in watch.fired:
                    break
                fill(filler, MIB // 2, leaving=24 * MIB)
                time.sleep(1)
            fill(filler, leaving=16 * MIB)
            watch.wait_fired("IngestDiskFilling", "IngestDiskShort")
            fill(filler, leaving=4 * MIB)
            watch.wait_fired("IngestDiskNearlyFull")
            fill(filler, leaving=0)
            with Traffic(collector, large):
                watch.wait_fired("IngestJournalWriteFails")
            filler.unlink()
            watch.wait_cleared(*watch.fired)
            assert collector.post("/v1/events", batch(5))[0] == 200
            collector.wait_stored()


def fill(file: Path, most: int | None = None, *, leaving: int) -> None:
    """Make a file longer, by at most so many bytes, until the disk has only `leaving` bytes left."""
    spare = shutil.disk_usage(file.parent).free - leaving
    size = spare if most is None else min(most, spare)
    if size <= 0:
        return
    with file.open("ab") as opened, contextlib.suppress(OSError):
        opened.write(b"x" * size)


# What Grafana shows.


@pytest.mark.system
@pytest.mark.long
@needs_prometheus
def test_every_panel_of_the_dashboard_is_filled(database_url, tmp_path):
    collector = Service(tmp_path / "data", database_url)
    rollup = RollupProcess(tmp_path / "rollup", database_url)
    again = batch(5)
    with ExitStack() as stack:
        stack.enter_context(running(collector))
        stack.enter_context(rolling_up(rollup))
        watch = stack.enter_context(watched(tmp_path, collector, rollup))
        stack.enter_context(Traffic(collector, lambda: [*batch(20), *again, {"name": ""}]))
        empty = list(grafana.targets())

        def filled() -> bool:
            empty[:] = [target for target in empty if not has_figures(watch.prometheus, target.expr)]
            return not empty

        deadline = time.monotonic() + ALERT_SECONDS
        while not filled():
            assert time.monotonic() < deadline, f"no figures for {empty}"
            time.sleep(2)


def has_figures(prometheus: Prometheus, expr: str) -> bool:
    """Whether a query has a result with a number in it, be it 0."""
    return any(series["value"][1] != "NaN" for series in prometheus.query(expr))
