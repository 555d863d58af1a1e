"""A data folder that exists twice: whatever its copies do, each acknowledged event is in the table once, or stays in
the folder, counted as pending, until an operator decides; it is never counted as stored while it is nowhere."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from ingest.commands.journal_resolve import _waiting
from ingest.events import row
from ingest.journal import journals
from ingest.journal.ownership import Ownership
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.store import ledger
from tests.support.crashes import stored_ids
from tests.support.faults import StubbornClient, kill_postgres
from tests.support.service import Service, environment, wait_until

FLAGS = ("--segment-bytes", "1MiB", "--shutdown-timeout-seconds", "2")


class Folders:
    """Copies of one data folder, the services on them, and the events that any of them acknowledged."""

    def __init__(self, parent: Path, postgres: EmbeddedPostgres) -> None:
        self.parent = parent
        self.postgres = postgres
        self.services: list[Service] = [Service(parent / "folder-0", postgres.dsn, *FLAGS)]
        self.acknowledged: set[str] = set()
        self.loads: list[StubbornClient] = []

    def start(self, index: int) -> Service:
        """Start a service and wait until it responds, ready or not: a copy that may not store reports and counts."""
        service = self.services[index].start(wait=False)

        def answers() -> bool:
            assert service.running_process.poll() is None, service.log_text()
            try:
                return service.get("/readyz")[0] in (200, 503)
            except OSError:
                return False

        wait_until(answers, 60, "it answers")
        return service

    def is_running(self, index: int) -> bool:
        process = self.services[index].process
        return process is not None and process.poll() is None

    def copy(self, index: int, *, clone: bool = False) -> int:
        """Copy a folder, of a running service or not; returns the number of the copy. A clone cannot be told from the
        original, as when a disk is copied block by block."""
        service = Service(self.parent / f"folder-{len(self.services)}", self.postgres.dsn, *FLAGS)
        # cp reports files that are deleted meanwhile, which does not matter.
        subprocess.run(
            ["cp", "-a", self.services[index].data_dir, service.data_dir], check=False, capture_output=True
        )
        self.services.append(service)
        if clone:
            for folder in journals.folders(service.data_dir):
                with (folder / "owners").open("a") as file:
                    file.write(f"inode {folder.stat().st_ino:020d}\n")
        return len(self.services) - 1

    def post(self, index: int, count: int) -> int:
        """Send events, and expect them to be stored if they are acknowledged; returns the status."""
        now = datetime.now(UTC).isoformat()
        ids = [str(uuid.uuid4()) for _ in range(count)]
        events = [{"name": f"of {index}", "id": one, "timestamp": now} for one in ids]
        status, _ = self.services[index].post("/v1/events", events)
        assert status in (200, 503)
        if status == 200:
            self.acknowledged.update(ids)
        return status

    def load(self, index: int) -> None:
        """Start a client that does not retry refused events."""
        client = StubbornClient(self.services[index].url, only_once=True)
        client.start()
        self.loads.append(client)

    def end_loads(self) -> None:
        for client in self.loads:
            client.finish()
            self.acknowledged |= client.acknowledged
        self.loads.clear()

    def waiting_ids(self) -> list[set[str]]:
        """The ids of the events pending in each folder."""
        return asyncio.run(self._waiting_ids())

    async def _waiting_ids(self) -> list[set[str]]:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            found: list[set[str]] = []
            for service in self.services:
                found.append(set())
                for folder in journals.folders(service.data_dir):
                    standing = await ledger.look(connection, journals.read_layout(folder), Ownership(folder))
                    for record in _waiting(folder, standing.stored_through):
                        for line in record.event_lines.splitlines():
                            message_id = row.split_line(line, record.layout.event_columns)["id"]
                            assert message_id is not None
                            found[-1].add(message_id)
            return found
        finally:
            await connection.close()

    def check_accounting(self) -> None:
        """With the database up: acknowledged events are in the table once or pending, and running services report how
        many are."""
        stored = stored_ids(self.postgres.dsn)
        assert len(stored) == len(set(stored))
        waiting = self.waiting_ids()
        missing = self.acknowledged - set(stored) - set().union(*waiting)
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} are nowhere"
        for index, service in enumerate(self.services):
            if self.is_running(index):
                metrics = service.metrics()
                assert metrics["ingest_events_unaccounted"] == 0
                unstored = waiting[index] - set(stored)
                assert metrics["ingest_events_pending"] >= len(unstored), "unstored events are not counted as pending"

    def settle(self) -> None:
        """Wait until each running service has stored everything, or has found that it may not."""

        def is_settled(service: Service) -> bool:
            metrics = service.metrics()
            return metrics["ingest_journals_taken"] > 0 or metrics["ingest_events_pending"] == 0

        for index, service in enumerate(self.services):
            if self.is_running(index):
                wait_until(lambda service=service: is_settled(service), 60, "it has stored all, or may not")  # type: ignore[misc]

    def stop(self) -> None:
        for index, service in enumerate(self.services):
            if self.is_running(index):
                assert service.stop() == 0

    def resolve_all(self, how: str = "store") -> None:
        """Resolve all copies, as an operator does in the end: no acknowledged event is missing then."""
        self.stop()
        for service in self.services:
            ran = subprocess.run(
                [sys.executable, "-m", "ingest", "journal", "resolve", "--how", how,
                 "--data-dir", str(service.data_dir)],
                env=environment(self.postgres.dsn), capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (ran.returncode, ran.stderr) == (0, ""), ran
        for index, service in enumerate(self.services):
            self.start(index)
            wait_until(lambda service=service: service.get("/readyz")[0] == 200, 60, "it accepts again")  # type: ignore[misc]

        def nothing_waits() -> bool:
            return not any(service.metrics()["ingest_events_pending"] for service in self.services) and not any(
                self.waiting_ids()
            )

        # Services look for free journals every 15 seconds.
        wait_until(nothing_waits, 60, "everything is stored")
        stored = stored_ids(self.postgres.dsn)
        assert len(stored) == len(set(stored))
        assert self.acknowledged <= set(stored)

    def kill(self) -> None:
        for index, service in enumerate(self.services):
            if self.is_running(index):
                service.kill()


@pytest.fixture
def folders(tmp_path: Path, mortal: EmbeddedPostgres) -> Iterator[Folders]:
    made = Folders(tmp_path, mortal)
    yield made
    made.kill()


def taken(service: Service) -> bool:
    status, body = service.get("/readyz")
    return status == 503 and "taken_over" in json.loads(body)


@pytest.mark.parametrize(
    "clone", [pytest.param(False, id="copied"), pytest.param(True, id="cloned", marks=pytest.mark.long)]
)
def test_two_live_copies_under_load(folders: Folders, clone: bool):
    """One continues, the other stops accepting and logs why; the accounts still balance after a kill and restart."""
    folders.start(0)
    folders.load(0)
    time.sleep(1)
    folders.start(folders.copy(0, clone=clone))
    folders.load(1)
    time.sleep(2)
    wait_until(lambda: taken(folders.services[0]) or taken(folders.services[1]), 60, "one of them stops accepting")
    loser = 0 if taken(folders.services[0]) else 1
    assert loser == (0 if clone else 1), "a folder recognized as a copy must not stop the original"
    assert not taken(folders.services[1 - loser])
    said = [line for line in folders.services[loser].log_text().splitlines() if "exists twice" in line]
    assert len(said) == 1 and "another process" in said[0] and " error " in said[0]
    assert folders.post(loser, 1) == 503 and folders.post(1 - loser, 1) == 200
    for index in (0, 1):
        folders.services[index].kill()
    folders.end_loads()
    folders.check_accounting()
    for index in (0, 1):
        folders.start(index)
    folders.settle()
    folders.check_accounting()
    folders.resolve_all()


@pytest.mark.long
def test_an_old_copy_started_while_the_database_is_down_then_restarted(folders: Folders):
    """Its new records would reuse numbers of records that were stored since the copy was made."""
    folders.start(0)
    folders.post(0, 10)
    folders.settle()
    folders.services[0].stop()
    old = folders.copy(0)
    folders.start(0)
    for _ in range(20):
        folders.post(0, 5)
        time.sleep(0.02)
    folders.settle()
    # The machine is lost, the copy is put back.
    folders.services[0].kill()
    kill_postgres(folders.postgres)
    folders.start(old)
    for _ in range(10):
        assert folders.post(old, 5) == 200
    folders.services[old].kill()
    folders.start(old)
    folders.post(old, 5)
    folders.services[old].kill()
    folders.postgres.start()
    folders.start(old)
    folders.settle()
    folders.check_accounting()
    folders.resolve_all()


@pytest.mark.long
def test_two_copies_started_while_the_database_is_down_use_different_numbers(folders: Folders):
    folders.start(0)
    folders.post(0, 5)
    folders.settle()
    folders.services[0].stop()
    kill_postgres(folders.postgres)
    for index in (0, folders.copy(0), folders.copy(0)):
        folders.start(index)
        for _ in range(3):
            assert folders.post(index, 5) == 200
    numbers: list[int] = []
    for service in folders.services:
        (folder,) = journals.folders(service.data_dir)
        numbers += [record.number for record in _waiting(folder, 0)]
    assert len(numbers) == len(set(numbers)) >= 9
    folders.postgres.start()
    wait_until(lambda: sum(map(taken, folders.services)) == 2, 60, "two of three stop accepting")
    folders.settle()
    folders.check_accounting()
    assert len(stored_ids(folders.postgres.dsn)) == 5 + 15
    folders.resolve_all()


@pytest.mark.long
@pytest.mark.parametrize("down", [False, True], ids=["database up", "database down"])
def test_the_original_comes_back_after_its_copy_took_over(folders: Folders, down: bool):
    folders.start(0)
    folders.post(0, 10)
    folders.settle()
    folders.services[0].stop()
    copy = folders.copy(0)
    folders.start(copy)
    for _ in range(5):
        assert folders.post(copy, 5) == 200
    folders.settle()
    assert not taken(folders.services[copy])
    if down:
        kill_postgres(folders.postgres)
    folders.start(0)
    assert folders.post(0, 7) == (200 if down else 503)
    if down:
        folders.postgres.start()
        wait_until(lambda: taken(folders.services[0]), 60, "it has lost the position")
        assert folders.services[0].metrics()["ingest_events_pending"] == 7
    folders.check_accounting()
    assert folders.post(copy, 5) == 200
    folders.settle()
    folders.check_accounting()
    folders.resolve_all()


@pytest.mark.long
def test_what_is_set_aside_is_kept(folders: Folders):
    folders.start(0)
    folders.post(0, 10)
    folders.settle()
    folders.services[0].stop()
    folders.start(folders.copy(0))
    folders.post(1, 5)
    folders.settle()
    kill_postgres(folders.postgres)
    folders.start(0)
    assert folders.post(0, 7) == 200
    folders.postgres.start()
    wait_until(lambda: taken(folders.services[0]), 60, "it has lost the position")
    folders.stop()
    arguments = [sys.executable, "-m", "ingest", "journal", "--data-dir", str(folders.services[0].data_dir)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*arguments, *more], env=environment(folders.postgres.dsn), capture_output=True, text=True, check=False
        )

    listed = run()
    assert listed.returncode == 0 and "exists twice" in listed.stdout
    assert listed.stdout.splitlines()[-1].split()[1] == "7"
    undecided = run("resolve")
    assert undecided.returncode == 1 and "7 events wait here" in undecided.stdout and "--how" in undecided.stdout
    decided = run("resolve", "--how", "set-aside", "--journal", "1")
    assert decided.returncode == 0, decided
    (kept,) = (folders.services[0].data_dir / "journals" / "set-aside").iterdir()
    assert str(kept) in decided.stdout
    folders.start(0)
    assert folders.post(0, 3) == 200
    folders.settle()
    missing = folders.acknowledged - set(stored_ids(folders.postgres.dsn))
    assert len(missing) == 7
    lines = b"".join(record.event_lines for record in _waiting(kept, 0))
    assert all(one.encode() in lines for one in missing)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_copies_that_come_and_go_in_any_order(folders: Folders, seed: int):
    chance = random.Random(seed)
    folders.start(0)
    folders.post(0, 5)
    is_up = True
    for _ in range(25):
        running = [index for index in range(len(folders.services)) if folders.is_running(index)]
        stopped = [index for index in range(len(folders.services)) if not folders.is_running(index)]
        steps = ["database"]
        steps += ["post"] * 4 + ["kill", "stop"] if running else []
        steps += ["start"] * 2 if stopped else []
        steps += ["copy"] if len(folders.services) < 4 else []
        match chance.choice(steps):
            case "post":
                folders.post(chance.choice(running), chance.randint(1, 9))
            case "kill":
                folders.services[chance.choice(running)].kill()
            case "stop":
                folders.services[chance.choice(running)].stop()
            case "start":
                folders.start(chance.choice(stopped))
            case "copy":
                folders.copy(chance.randrange(len(folders.services)), clone=chance.random() < 0.5)
            case "database":
                if is_up:
                    kill_postgres(folders.postgres)
                else:
                    folders.postgres.start()
                is_up = not is_up
    if not is_up:
        folders.postgres.start()
    for index in range(len(folders.services)):
        if not folders.is_running(index):
            folders.start(index)
    folders.settle()
    folders.check_accounting()
    folders.resolve_all()
