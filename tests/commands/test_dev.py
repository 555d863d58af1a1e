"""`ingest dev`, from the first start of a folder to its last."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
    """A data folder with a space in its path, as a user might have; afterwards its Postgres must be gone."""
    made = new_folder() / "a folder"
    yield made
    EmbeddedPostgres(made / "postgres").stop()


class Life:
    """Successive runs of `ingest dev` on a folder, each in its own process, and commands run meanwhile."""

    def __init__(self, folder: Path, ingest: Callable[..., Ran]) -> None:
        self.folder = folder
        self.ingest = ingest

    def start(self) -> AbstractContextManager[Service]:
        return running(Service(self.folder, None, command="dev"))

    def psql(self, query: str) -> str:
        ran = self.ingest("psql", "--data-dir", self.folder, "-Atc", query)
        assert (ran.code, ran.err) == (0, ""), ran
        return ran.out.strip()

    def stored(self) -> int:
        return int(self.psql("select count(*) from analytics.events"))

    def check_stopped(self, dev: Service) -> None:
        assert dev.running_process.wait(60) == 0, dev.log_text()
        assert dev.log_text().endswith("\nstopped; every accepted event is stored\n"), dev.log_text()
        assert "Traceback" not in dev.log_text()
        assert pids_in(self.folder) == []


def test_the_life_of_a_development_folder(ingest, folder):
    life = Life(folder, ingest)
    try_what_it_says(life)
    use_it_while_it_starts(life)
    use_it_while_it_is_stopped(life)
    stop_it_with_two_signals(life)
    kill_it(life)
    with life.start() as dev:
        dev.wait_stored()
        assert life.stored() == 21
        kill_its_postgres(life, dev)
        check_password(ingest, folder)
        dev.signal(signal.SIGINT)
        dev.running_process.wait(60)
        assert pids_in(folder) == []


def typed(line: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(None), check=False)
    assert ran.returncode == 0, ran
    return ran


def try_what_it_says(life: Life) -> None:
    """The commands it suggests work as printed; Ctrl-C stops it."""
    counted = "select event_count from analytics.event_aggregations where granularity = 'day' and dimensions = '{}'"
    with life.start() as dev:
        wait_until(lambda: "Ctrl-C stops" in dev.log_text(), 60, "what it says")
        assert f"POST http://localhost:{dev.port}/v1/events" in dev.log_text()
        link = re.search(rf"http://localhost:{dev.port}(/sign-in/\S+)", dev.log_text())
        assert link is not None and [dev.get(link[1])[0] for _ in range(2)] == [200, 401]
        for secret in ("admin_key", "encryption_keys"):
            assert (life.folder / secret).stat().st_mode & 0o777 == 0o600
        lines = [line.strip() for line in dev.log_text().splitlines() if "curl " in line or " psql " in line]
        post, select, totals = lines
        assert json.loads(typed(post).stdout) == {"accepted": 1, "rejected": []}
        typed(select)
        typed(totals)
        dev.wait_stored()
        wait_until(lambda: life.psql(counted) == "1", 60, "the event in the aggregates")
        assert json.loads(typed(totals).stdout)["events"] == 1
        selected = typed(select).stdout
        assert "hello" in selected and '{"plan": "pro"}' in selected
        looked = life.ingest("journal", "--data-dir", life.folder)
        assert looked.out.splitlines()[1].split()[:2] == ["1", "0"] and looked.code == 0
        # Ctrl-C goes to every process in the terminal's foreground group.
        os.killpg(dev.running_process.pid, signal.SIGINT)
        life.check_stopped(dev)


def use_it_while_it_starts(life: Life) -> None:
    """A command waits for the database, and leaves it running when it is done."""
    dev = Service(life.folder, None, command="dev").start(wait=False)
    try:
        wait_until(lambda: is_in_use(life.folder), 60, "the folder in use")
        assert life.psql("select 1") == "1"
        dev.wait_ready()
        assert life.stored() == 1
        os.killpg(dev.running_process.pid, signal.SIGINT)
        dev.running_process.wait(60)
    finally:
        dev.kill()


def use_it_while_it_is_stopped(life: Life) -> None:
    """Commands start the database for as long as they need it."""
    assert life.stored() == 1
    assert pids_in(life.folder) == []
    looked = life.ingest("journal", "--data-dir", life.folder)
    assert looked.code == 0 and "not running; what follows is the most that may be pending" in looked.out
    assert life.ingest("migrate", "--data-dir", life.folder).out == "nothing to do: the database is up to date\n"
    failed = life.ingest("psql", "--data-dir", life.folder, "-c", "select nonsense")
    assert failed.code == 1 and 'column "nonsense" does not exist' in failed.err


def stop_it_with_two_signals(life: Life) -> None:
    """The second must not cut the flush short."""
    with life.start() as dev:
        assert life.stored() == 1
        assert dev.post("/v1/events", [{"name": "second"}] * 10)[0] == 200
        dev.signal(signal.SIGTERM)
        dev.signal(signal.SIGTERM)
        life.check_stopped(dev)
    assert life.stored() == 11


def kill_it(life: Life) -> None:
    with life.start() as dev:
        assert dev.post("/v1/events", [{"name": "before the kill"}] * 10)[0] == 200
        dev.signal(signal.SIGKILL)
        dev.running_process.wait(60)


def kill_its_postgres(life: Life, dev: Service) -> None:
    """It is started again, and nothing is lost."""
    # The page is also complete once it includes the rollup worker's.
    wait_until(lambda: "ingest_rollup_leader" in dev.metrics(), 60, "the rollup worker is on the page")
    assert dev.metrics()["ingest_events_unaccounted"] == 0
    for pid in pids_in(life.folder):
        os.kill(pid, signal.SIGKILL)
    assert dev.post("/v1/events", [{"name": "database gone"}] * 10)[0] == 200
    dev.wait_stored()
    assert life.stored() == 31


def check_password(ingest: Callable[..., Ran], folder: Path) -> None:
    """A role with a password on the Postgres: the right one lets commands in, a wrong one is never repeated."""
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


def test_a_folder_that_is_removed_while_it_runs_is_not_replaced_by_an_empty_one(folder):
    with running(Service(folder, None, command="dev")) as dev:
        assert dev.post("/v1/events", [{"name": "before"}])[0] == 200
        dev.wait_stored()
        shutil.rmtree(folder)
        statuses = [dev.post("/v1/events", [{"name": f"after {number}"}])[0] for number in range(5)]
        assert statuses == [503] * 5
        wait_until(lambda: "start again with an empty database" in dev.log_text(), 60, "it says what to do")
        assert dev.post("/v1/events", [{"name": "later"}])[0] == 503
        assert not (folder / "postgres" / "cluster").exists()
        dev.stop()
