"""The writer is a process of its own. Whichever of the two dies or hangs, and when: acknowledged = stored, once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from functools import partial

import psutil
import pytest

from ingest.journal import segments
from tests.support.amounts import amount
from tests.support.crashes import stored_ids
from tests.support.faults import StubbornClient, kill_postgres
from tests.support.service import Service, child_processes, is_dead, running, wait_until

CLIENTS = 3
ROUNDS = amount(10, long=40)


def writers(service: Service) -> list[int]:
    """Process ids of the writers: the children of the collectors."""
    return [pid for worker in service.workers() for pid in child_processes(worker)]


def has_writer(service: Service, *other_than: int) -> bool:
    return any(pid not in other_than for pid in writers(service))


def new_writer(service: Service, *other_than: int) -> int:
    wait_until(partial(has_writer, service, *other_than), 60, "there is a writer")
    return next(pid for pid in writers(service) if pid not in other_than)


def is_gone(pid: int) -> bool:
    try:
        return is_dead(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def finish(clients: list[StubbornClient]) -> set[str]:
    """Ids of all acknowledged events."""
    for client in clients:
        client.finish()
    return set[str]().union(*(client.acknowledged for client in clients))


def check_stored_once(dsn: str, acknowledged: set[str]) -> None:
    stored = stored_ids(dsn)
    assert len(stored) == len(set(stored)), "an event is in the table twice"
    assert set(stored) == acknowledged


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_a_killed_writer_is_replaced_and_nobody_notices(mortal, tmp_path, command):
    service = Service(tmp_path / "data", mortal.dsn, command=command, environ={"INGEST_ROLLUP": "false"})
    find = writers if command == "serve" else lambda service: child_processes(service.running_process.pid)
    with running(service):
        wait_until(lambda: bool(find(service)), 60, "there is a writer")
        (first,) = find(service)
        assert service.post("/v1/events", [{"name": "before"}] * 3)[0] == 200
        service.wait_stored()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: bool(set(find(service)) - {first}), 60, "there is another one")
        assert service.post("/v1/events", [{"name": "after"}] * 2)[0] == 200
        metrics = service.wait_stored()
        assert metrics["ingest_events_stored_total"] == 5 and metrics["ingest_postgres_up"] == 1
        assert metrics["ingest_writer_deaths_total"] == 1
        assert service.log_text().count("the writer died, restarting it: exit code -9") == 1
    assert len(stored_ids(mortal.dsn)) == 5


@pytest.mark.long
def test_a_copied_folder_whose_writer_is_killed_keeps_the_position_it_has_taken_over(mortal, tmp_path):
    """The position has moved since the copy was opened: by the writer that died, not by the original."""
    original = Service(tmp_path / "data", mortal.dsn)
    with running(original):
        assert original.post("/v1/events", [{"name": "original"}])[0] == 200
        original.wait_stored()
    # Without the sockets, which cannot be copied; they are elsewhere if the folder's path is long.
    shutil.copytree(original.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("run"))
    copy = Service(tmp_path / "copy", mortal.dsn)
    with running(copy):
        for name in ("first", "second"):
            assert copy.post("/v1/events", [{"name": name}])[0] == 200
            copy.wait_stored()
            writer = new_writer(copy)
            os.kill(writer, signal.SIGKILL)
            new_writer(copy, writer)
        assert copy.post("/v1/events", [{"name": "third"}])[0] == 200
        assert copy.wait_stored()["ingest_journals_taken"] == 0
    assert len(stored_ids(mortal.dsn)) == 4


def test_a_collector_that_fails_to_start_leaves_no_writer_behind(mortal, tmp_path):
    service = Service(tmp_path / "data", mortal.dsn, command="dev", environ={"INGEST_ROLLUP": "false"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", service.port))
        taken.listen()
        service.start(wait=False)
        assert service.running_process.wait(30) == 1
    with running(service):
        (writer,) = child_processes(service.running_process.pid)
        # As a bug would end it: not stopped, and not killed either.
        service.signal(signal.SIGABRT)
        service.running_process.wait(30)
        wait_until(partial(is_gone, writer), 60, "the writer is gone")


@pytest.mark.long
def test_random_deaths_of_writer_collector_and_postgres(mortal_on_disk, tmp_path):
    """Under load: SIGKILL of the writer alone, of the collector alone (its writer goes on for a moment), of both, of
    Postgres; and a writer that hangs for a while. The next one often comes before the recovery from the last."""
    chance = random.Random(20261129)
    limits = ("--segment-bytes", "1MiB", "--journal-max-bytes", "64MiB")
    service = Service(tmp_path / "data", mortal_on_disk.dsn, *limits)
    with running(service):
        clients = [StubbornClient(service.url) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.05, 0.6))
            pids = writers(service)
            what = chance.choice(["writer", "writer", "collector", "both", "postgres", "hang"])
            if what == "writer" and pids:
                os.kill(pids[0], signal.SIGKILL)
            elif what == "collector" and (workers := service.workers()):
                os.kill(workers[0], signal.SIGKILL)
            elif what == "both":
                service.kill()
                service.start(wait=chance.random() < 0.5)
            elif what == "postgres":
                kill_postgres(mortal_on_disk)
                time.sleep(chance.uniform(0, 0.3))
                mortal_on_disk.start()
            elif what == "hang" and pids:
                os.kill(pids[0], signal.SIGSTOP)
                time.sleep(chance.uniform(0, 0.3))
                os.kill(pids[0], signal.SIGCONT)
        service.wait_ready()
        acknowledged = finish(clients)
        metrics = service.wait_stored(60)
    assert metrics["ingest_events_unaccounted"] == 0
    check_stored_once(mortal_on_disk.dsn, acknowledged)


@pytest.mark.longer
def test_a_writer_ends_with_its_collector_even_while_it_stores(mortal, tmp_path):
    """Killed alone, again and again under load. The next collector's writer takes the position over; what the old one
    had sent counts if it was committed, and only then."""
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        clients = [StubbornClient(service.url) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(amount(2, long=6)):
            time.sleep(0.4)
            old = new_writer(service)
            os.kill(service.workers()[0], signal.SIGKILL)
            wait_until(partial(is_gone, old), 60, "the writer of a dead collector ends")
            wait_until(partial(has_writer, service, old), 60, "there is a writer again")
        acknowledged = finish(clients)
        service.wait_stored()
    check_stored_once(mortal.dsn, acknowledged)


@pytest.mark.long
def test_while_its_writer_hangs_a_collector_accepts_and_keeps_every_file(mortal, tmp_path):
    """Nothing is stored, so nothing may be deleted; a stop does not wait for it forever, and the next start stores
    all."""
    flags = ("--segment-bytes", "1MiB", "--shutdown-timeout-seconds", "1")
    service = Service(tmp_path / "data", mortal.dsn, *flags)
    with running(service):
        writer = new_writer(service)
        assert service.post("/v1/events", [{"name": "before"}])[0] == 200
        service.wait_stored()
        os.kill(writer, signal.SIGSTOP)
        for number in range(40):
            body = [{"name": f"event {number}", "properties": {"padding": "x" * 2000}}] * 50
            assert service.post("/v1/events", body)[0] == 200
        metrics = service.metrics()
        assert metrics["ingest_events_pending"] == 2000 and metrics["ingest_events_unaccounted"] == 0
        (folder,) = (tmp_path / "data" / "journals").glob("*/")
        kept = segments.list_segments(folder)
        assert len(kept) >= 4 and sum(path.stat().st_size for path in kept) > 4_000_000
        assert service.stop(30) == 0
        wait_until(partial(is_gone, writer), 60, "the writer that hung is gone, too")
        assert "killing it" in service.log_text()
        service.start()
        assert service.wait_stored()['ingest_events_received_total{source="recovered"}'] >= 2000
        wait_until(lambda: len(segments.list_segments(folder)) <= 2, 60, "what is stored is deleted")
    assert len(stored_ids(mortal.dsn)) == 2001


def test_records_that_are_damaged_before_they_are_read_are_counted_and_the_others_stored(mortal, tmp_path):
    """The collector keeps no copy in memory: what the disk loses between write and read is lost, and reported."""
    service = Service(tmp_path / "data", mortal.dsn)
    with running(service):
        writer = new_writer(service)
        assert service.post("/v1/events", [{"name": "before"}])[0] == 200
        service.wait_stored()
        os.kill(writer, signal.SIGSTOP)
        for number in range(6):
            assert service.post("/v1/events", [{"name": f"event {number} mark"}] * 10)[0] == 200
        (folder,) = (tmp_path / "data" / "journals").glob("*/")
        (path,) = segments.list_segments(folder)
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(content.index(b"event 2 mark"))
            file.write(b"EVENT")
        os.kill(writer, signal.SIGCONT)
        metrics = service.wait_stored()
        assert metrics['ingest_events_rejected_total{reason="journal_corrupt"}'] == 10
        assert metrics["ingest_journal_records_lost_total"] == 1
        assert metrics["ingest_journal_corrupt_segments_total"] == 1
        assert service.post("/v1/events", [{"name": "after"}])[0] == 200
        service.wait_stored()
    assert len(stored_ids(mortal.dsn)) == 1 + 50 + 1
