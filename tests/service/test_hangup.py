"""Closing the terminal stops everything, as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.amounts import some_of
from tests.support.service import Service, running


@pytest.mark.parametrize("number", some_of([signal.SIGTERM, signal.SIGHUP], 1))
def test_dev_ends_with_its_postgres(new_folder, number: int):
    folder: Path = new_folder() / "data"
    with running(Service(folder, None, command="dev")) as dev:
        postgres = EmbeddedPostgres(folder / "postgres")
        assert postgres.is_running()
        assert dev.post("/v1/events", {"name": "hello"})[0] == 200
        dev.signal(number)
        assert dev.running_process.wait(60) == 0, dev.log_text()
        assert not postgres.is_running()
        assert "stopped; every accepted event is stored" in dev.log_text()


def test_dev_and_its_postgres_ignore_a_restart_in_place(new_folder):
    """Somebody may mistake it for `serve`, and signal it or everything it started."""
    folder: Path = new_folder() / "data"
    with running(Service(folder, None, command="dev")) as dev:
        postgres = EmbeddedPostgres(folder / "postgres")
        children = dev.workers()
        assert len(children) == 2, "the writer and the rollup worker"
        dev.signal(signal.SIGUSR2)
        os.killpg(dev.running_process.pid, signal.SIGUSR2)
        assert dev.post("/v1/events", {"name": "hello"})[0] == 200
        dev.wait_stored()
        assert dev.workers() == children and postgres.is_running()
        assert "SIGUSR2 is ignored" in dev.log_text()
        dev.signal(signal.SIGTERM)
        assert dev.running_process.wait(60) == 0, dev.log_text()
        assert not postgres.is_running()


def test_serve_ends_in_order(database_url: str, tmp_path: Path):
    with running(Service(tmp_path / "data", database_url, "--workers", "2")) as service:
        assert service.post("/v1/events", {"name": "hello"})[0] == 200
        workers = service.workers()
        assert len(workers) == 2
        service.signal(signal.SIGHUP)
        assert service.running_process.wait(60) == 0, service.log_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert "Traceback" not in service.log_text()


def test_nohup_is_heard(database_url: str, tmp_path: Path):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with running(Service(tmp_path / "data", database_url, preexec=ignore)) as service:
        service.signal(signal.SIGHUP)
        for pid in service.workers():
            os.kill(pid, signal.SIGHUP)
        assert service.post("/v1/events", {"name": "hello"})[0] == 200
