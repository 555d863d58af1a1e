"""`ingest dev`, from the first start of a folder to its last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from ingest.base.data_folder import is_in_use
from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.commands import SECRET, Ran, check_refused
from tests.support.service import Service, environment, running, wait_until


def pids_in(folder: Path) -> list[int]:
    """Processes of a Postgres in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(str(folder.resolve()) in word for word in command) and "postgres" in Path(command[0]).name:
            found.append(process.pid)
    return found


@pytest.fixture
def folder(new_folder) -> Iterator[Path]:
    """A data folder, with a space in its path as a user might have one; its Postgres is gone in the end."""
    made = new_folder() / "a folder"
    yield made
    EmbeddedPostgres(made / "postgres").stop()


def test_the_life_of_a_development_folder(ingest, folder):
    def count() -> str:
        ran = ingest("psql", "--data-dir", folder, "-Atc", "select count(*) from analytics.events")
        assert (ran.code, ran.err) == (0, ""), ran
        return str(ran.out).strip()

    def counted() -> str:
        ran = ingest("psql", "--data-dir", folder, "-Atc",
            "select event_count from analytics.event_aggregations where granularity = 'day' and dimensions = '{}'",
        )  # fmt: skip
        return str(ran.out).strip()

    def stopped(dev: Service) -> None:
        assert dev.running_process.wait(20) == 0, dev.log_text()
        assert dev.log_text().endswith("\nstopped; every accepted event is stored\n"), dev.log_text()
        assert "Traceback" not in dev.log_text()
        assert pids_in(folder) == []

    with running(Service(folder, None, command="dev")) as dev:
        assert f"POST http://localhost:{dev.port}/v1/events" in dev.log_text()
        for secret in ("admin_key", "encryption_keys"):
            assert (folder / secret).stat().st_mode & 0o777 == 0o600
        # What it tells us to try is what works.
        typed = [line.strip() for line in dev.log_text().splitlines() if "curl " in line or " psql " in line]
        tried = [
            subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(None)) for line in typed
        ]
        assert [each.returncode for each in tried] == [0, 0, 0], tried
        assert json.loads(tried[0].stdout) == {"accepted": 1, "rejected": []}
        dev.wait_stored()
        wait_until(lambda: counted() == "1", 20, "the event in the aggregates")
        totals = subprocess.run(typed[2], shell=True, capture_output=True, text=True, env=environment(None))
        assert json.loads(totals.stdout)["events"] == 1, totals
        again = subprocess.run(typed[1], shell=True, capture_output=True, text=True, env=environment(None))
        assert "hello" in again.stdout and '{"plan": "pro"}' in again.stdout
        looked = ingest("journal", "--data-dir", folder)
        assert looked.out.splitlines()[1].split()[:2] == ["1", "0"] and looked.code == 0
        # Ctrl-C goes to every process of the terminal's foreground.
        os.killpg(dev.running_process.pid, signal.SIGINT)
        stopped(dev)

    # Starting: a command waits for the database, and does not take it along when it is done.
    dev.start(wait=False)
    wait_until(lambda: is_in_use(folder), 20, "the folder in use")
    assert ingest("psql", "--data-dir", folder, "-Atc", "select 1").out == "1\n"
    dev.wait_ready()
    assert count() == "1"
    os.killpg(dev.running_process.pid, signal.SIGINT)
    dev.running_process.wait(20)

    # Stopped: commands start the database for as long as they need it.
    assert count() == "1"
    assert pids_in(folder) == []
    looked = ingest("journal", "--data-dir", folder)
    assert looked.code == 0 and "not running; what follows is the most that may be pending" in looked.out
    assert ingest("migrate", "--data-dir", folder).out == "nothing to do: the database is up to date\n"
    failed = ingest("psql", "--data-dir", folder, "-c", "select nonsense")
    assert failed.code == 1 and 'column "nonsense" does not exist' in failed.err

    with running(Service(folder, None, command="dev")) as dev:
        assert count() == "1"
        assert dev.post("/v1/events", [{"name": "second"}] * 10)[0] == 200
        # Two at once, and the second must not cut the flush short.
        dev.signal(signal.SIGTERM)
        dev.signal(signal.SIGTERM)
        stopped(dev)
    assert count() == "11"

    with running(Service(folder, None, command="dev")) as dev:
        assert dev.post("/v1/events", [{"name": "before the kill"}] * 10)[0] == 200
        dev.signal(signal.SIGKILL)
        dev.running_process.wait(10)
    with running(Service(folder, None, command="dev")) as dev:
        dev.wait_stored()
        assert count() == "21"
        # The page is whole also once the rollup worker's is part of it.
        wait_until(lambda: "ingest_rollup_leader" in dev.metrics(), 20, "the rollup worker is on the page")
        assert dev.metrics()["ingest_events_unaccounted"] == 0
        for pid in pids_in(folder):
            # Its Postgres dies under it: started again, nothing lost.
            os.kill(pid, signal.SIGKILL)
        assert dev.post("/v1/events", [{"name": "database gone"}] * 10)[0] == 200
        dev.wait_stored()
        assert count() == "31"
        check_password(ingest, folder)
        dev.signal(signal.SIGINT)
        dev.running_process.wait(20)
        assert pids_in(folder) == []


def check_password(ingest: Callable[..., Ran], folder: Path) -> None:
    """A role with a password on the folder's Postgres: the right one lets commands in, a wrong one is not told."""
    rules = folder / "postgres" / "cluster" / "pg_hba.conf"
    rules.write_text("local all locked scram-sha-256\n" + rules.read_text())
    make = "create role locked login superuser password 'ri/ght'; select pg_reload_conf()"
    assert ingest("psql", "--data-dir", folder, "-c", make).code == 0
    sockets = ingest("psql", "--data-dir", folder, "-Atc", "show unix_socket_directories").out.strip()

    def url(password: str) -> str:
        return f"postgresql://locked:{quote(password, safe='')}@/ingest?host={quote(sockets)}&port=5432"

    for command in ("migrate", "rejected"):
        check_refused(ingest(command, url=url(SECRET)), "password authentication failed")
    wrong = ingest("psql", "-c", "select 1", url=url(SECRET))
    assert wrong.code == 2 and "password authentication failed" in wrong.err and SECRET not in wrong.err
    assert ingest("migrate", url=url("ri/ght")).code == 0
    right = ingest("psql", "-Atc", "select current_user", url=url("ri/ght"))
    assert (right.code, right.out, right.err) == (0, "locked\n", "")
