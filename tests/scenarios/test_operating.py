"""What operators do, and what becomes of events meanwhile: the procedures of docs/how-to, each carried out."""

from __future__ import annotations

import asyncio
import copy
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

from ingest.journal import journals
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.commands import NOBODY, Ran
from tests.support.databases import execute, run_apart, with_database
from tests.support.impatient import Load
from tests.support.rollup_process import verify
from tests.support.service import Service, raw_metrics, received_by, running, wait_until

SECONDS = 60
QUICKLY = ("--shutdown-timeout-seconds", "0.2")
"""For services without a database: they cannot store what waits, however long they are given."""


def names(url: str) -> Counter[str]:
    """How many events of each name are stored."""

    async def read() -> Counter[str]:
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch("SELECT name, count(*) FROM analytics.events GROUP BY name")
            return Counter({row["name"]: row["count"] for row in rows})
        finally:
            await connection.close()

    return asyncio.run(read())


def send(service: Service, name: str, count: int) -> None:
    for _ in range(count):
        assert service.post("/v1/events", {"name": name})[0] == 200


def serve_workers(service: Service, count: int) -> None:
    """Wait until this many workers serve, each with its journal."""
    wait_until(lambda: raw_metrics(service).count("ingest_ready{") == count, SECONDS, f"{count} workers serve")


# An older backup of the database.


class Backups:
    """The database of a test, its dumps, and what is made of them (docs/how-to/back-up.md)."""

    def __init__(self, postgres: EmbeddedPostgres, url: str) -> None:
        self._programs = postgres.psql_path.parent
        self._server = postgres.dsn
        self.name = url.partition("?")[0].rpartition("/")[2]
        self.url = url

    def dump(self, file: Path) -> None:
        salts = "--exclude-table-data=analytics.visitor_salts"
        self._run("pg_dump", "--format=custom", salts, "--file", file, self.url)

    def lose(self) -> None:
        self._execute(f"DROP DATABASE {self.name} WITH (FORCE)")

    def rename(self, name: str) -> Backups:
        """Take the database away from those who use it; returns it under its new name."""
        self._execute(
            f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'",
            f"ALTER DATABASE {self.name} RENAME TO {name}",
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS true",
        )
        renamed = copy.copy(self)
        renamed.name, renamed.url = name, with_database(self._server, name)
        return renamed

    def restore(self, file: Path) -> None:
        """Under another name until it is complete, so that no service stores into half of it."""
        partial = f"{self.name}_restored"
        self._execute(f"CREATE DATABASE {partial} TEMPLATE template0")
        self._run("pg_restore", "--exit-on-error", "--dbname", with_database(self._server, partial), file)
        self._execute(f"ALTER DATABASE {partial} RENAME TO {self.name}")

    def _execute(self, *statements: str) -> None:
        run_apart(lambda: execute(self._server, *statements))

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.direct("pg_dump needs a session")
@pytest.mark.parametrize(
    "restarted", [pytest.param(False, id="running"), pytest.param(True, id="restarted", marks=pytest.mark.long)]
)
def test_an_older_backup_lacks_what_was_stored_since_and_gets_what_waits(
    postgres: EmbeddedPostgres, database_url: str, tmp_path: Path, restarted: bool
) -> None:
    """Events stored after the dump are gone; those accepted while there was no database are stored, each once."""
    backups = Backups(postgres, database_url)
    service = Service(tmp_path / "data", database_url)
    with running(service):
        send(service, "before the dump", 30)
        service.wait_stored(SECONDS)
        backups.dump(tmp_path / "dump")
        send(service, "after the dump", 20)
        service.wait_stored(SECONDS)
        backups.lose()
        send(service, "meanwhile", 10)
        if restarted:
            service.kill()
            service.start()
            send(service, "meanwhile", 1)
        backups.restore(tmp_path / "dump")
        service.wait_stored(SECONDS)
        send(service, "afterwards", 5)
        service.wait_stored(SECONDS)
        assert "the ledger of journal 1 went back from record" in service.log_text()
        assert "Traceback" not in service.log_text()
    assert names(database_url) == {"before the dump": 30, "meanwhile": 10 + restarted, "afterwards": 5}
    verify(database_url)


@pytest.mark.long
@pytest.mark.direct("pg_dump needs a session")
def test_a_database_moves_to_another_server_and_loses_nothing(
    postgres: EmbeddedPostgres, database_url: str, mortal: EmbeddedPostgres, tmp_path: Path
) -> None:
    """docs/how-to/upgrade.md: while it is away, events wait in the journal."""
    here = Backups(postgres, database_url)
    there = Backups(mortal, with_database(mortal.dsn, "moved"))
    settings = tmp_path / "ingest.toml"
    settings.write_text(f'database_url = "{here.url}"\n')
    service = Service(tmp_path / "data", None, "--config", str(settings))
    with running(service):
        send(service, "before", 30)
        service.wait_stored(SECONDS)
        taken = here.rename(f"{here.name}_old")
        send(service, "meanwhile", 10)
        taken.dump(tmp_path / "dump")
        there.restore(tmp_path / "dump")
        reconfigure(service, settings, f'database_url = "{there.url}"\n')
        send(service, "afterwards", 5)
        service.wait_stored(SECONDS)
        assert "went back" not in service.log_text() and "Traceback" not in service.log_text()
    assert names(there.url) == {"before": 30, "meanwhile": 10, "afterwards": 5}
    assert names(taken.url) == {"before": 30}
    taken.rename(here.name)


@pytest.mark.long
def test_an_older_backup_of_a_data_folder_does_not_store_until_it_is_told_to(
    database_url: str, tmp_path: Path, ingest: Callable[..., Ran]
) -> None:
    """What the copy and the database both have is stored once, and what neither lost is there."""
    service, older = Service(tmp_path / "data", database_url), Service(tmp_path / "older", database_url)
    with running(service):
        send(service, "before the copy", 10)
        service.wait_stored(SECONDS)
        subprocess.run(["cp", "-a", service.data_dir, older.data_dir], check=True)
    with running(service):
        send(service, "after the copy", 5)
        service.wait_stored(SECONDS)
        service.kill()
    older.start(wait=False)
    try:
        wait_until(lambda: answers(older) == 503, SECONDS, "it answers, and accepts nothing")
        assert "taken_over" in json.loads(older.get("/readyz")[1])
        assert older.post("/v1/events", {"name": "refused"})[0] == 503
    finally:
        older.kill()
    decided = ingest("journal", "resolve", "--how", "store", "--data-dir", older.data_dir, url=database_url)
    assert (decided.code, decided.err) == (0, ""), decided
    with running(older):
        send(older, "afterwards", 3)
        older.wait_stored(SECONDS)
    assert names(database_url) == {"before the copy": 10, "after the copy": 5, "afterwards": 3}


def answers(service: Service) -> int:
    try:
        return service.get("/readyz")[0]
    except OSError:
        return 0


# Journals elsewhere.


@pytest.mark.long
def test_a_journal_that_is_moved_to_another_machine_is_stored_there(database_url: str, tmp_path: Path) -> None:
    """The machine it comes from is dead, with events waiting. A collector that runs elsewhere finds it by itself."""
    lost = tmp_path / "lost"
    with running(Service(lost, database_url)):
        pass
    with running(Service(lost, NOBODY, *QUICKLY)) as cut_off:
        send(cut_off, "waits", 20)
        cut_off.kill()
    with running(Service(tmp_path / "other", database_url)) as other:
        send(other, "of its own", 3)
        incoming = other.data_dir / "incoming"
        subprocess.run(["cp", "-a", lost / "journals", incoming], check=True)
        for journal in sorted(incoming.iterdir()):
            journal.rename(other.data_dir / "journals" / journal.name)
        wait_until(lambda: names(database_url)["waits"] == 20, SECONDS, "the moved events are stored")
        metrics = other.wait_stored(SECONDS)
        assert metrics['ingest_events_received_total{source="recovered"}'] == 20
        assert len(journals.folders(other.data_dir)) == 2
    assert names(database_url) == {"waits": 20, "of its own": 3}


@pytest.mark.long
def test_fewer_workers_store_what_more_have_left(database_url: str, tmp_path: Path) -> None:
    """Three workers die with events waiting in each journal; one is started, then two."""
    data = tmp_path / "data"
    with running(Service(data, database_url, "--workers", "3")) as three:
        serve_workers(three, 3)
    sent = 0
    with running(Service(data, NOBODY, "--workers", "3", *QUICKLY)) as cut_off:
        serve_workers(cut_off, 3)
        for _ in range(50):
            send(cut_off, "waits", 20)
            sent += 20
            page = raw_metrics(cut_off)
            if all(received_by(page, worker) for worker in range(3)):
                break
        else:
            pytest.fail("a worker got none of 1,000 requests")
        cut_off.kill()
    with running(Service(data, database_url)) as one:
        wait_until(lambda: names(database_url)["waits"] == sent, SECONDS, "all three journals are stored")
        one.wait_stored(SECONDS)
    with running(Service(data, database_url, "--workers", "2")) as two:
        serve_workers(two, 2)
        send(two, "afterwards", 10)
        two.wait_stored(SECONDS)
    assert names(database_url) == {"waits": sent, "afterwards": 10}
    assert len(journals.folders(data)) == 3, "no journal is made where one is free"


# Keys.


@pytest.mark.long
def test_write_keys_are_rotated_without_a_refused_request(database_url: str, tmp_path: Path) -> None:
    """The new key is added, pages and SDKs take it over, the old one is removed: docs/how-to/keys.md."""
    settings = tmp_path / "ingest.toml"
    settings.write_text('write_keys = ["old"]\n')
    environ = {"INGEST_DRAIN_SECONDS": "0.3"}
    service = Service(tmp_path / "data", database_url, "--config", str(settings), environ=environ)
    of_old, of_new = (Load(service.port, 2, 2, {"X-Write-Key": key}) for key in ("old", "new"))
    with running(service):
        with ExitStack() as loads:
            with of_old:
                reconfigure(service, settings, 'write_keys = ["new", "old"]\n')
                loads.enter_context(of_new)
                wait_until(lambda: len(of_new.acknowledged) > 20, SECONDS, "the new key is used")
            reconfigure(service, settings, 'write_keys = ["new"]\n')
        assert of_old.errors == [] == of_new.errors
        assert service.post("/v1/events", {"name": "late"}, X_Write_Key="old")[0] == 401
        service.wait_stored(SECONDS)
    assert names(database_url) == {"drained": len(of_old.acknowledged) + len(of_new.acknowledged)}


def reconfigure(service: Service, settings: Path, text: str) -> None:
    """Change the settings and restart in place; returns when the new worker serves."""
    before = set(service.workers())
    settings.write_text(text)
    service.signal(signal.SIGUSR2)
    wait_until(lambda: len(now := set(service.workers())) == 1 and not now & before, SECONDS, "the worker is new")
    wait_until(lambda: answers(service) == 200, SECONDS, "it serves")
