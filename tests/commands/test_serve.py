"""`ingest serve`: its workers, and what keeps it from running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.commands import NOBODY, check_refused
from tests.support.service import Service, is_dead, raw_metrics, received_by, running, wait_until


async def test_serve_and_the_database_of_another_release(ingest, empty_database_url, connection, database_url):
    refused = ["older than this release", "001_initial_schema.sql", "run `ingest migrate`"]
    check_refused(ingest("serve", "--port", "0", "--workers", "2", url=empty_database_url), *refused)
    check_refused(ingest("rejected", url=empty_database_url), *refused)

    add = "INSERT INTO ingest.migrations (number, name, sha256) VALUES (999, '999_from_the_future.sql', '')"
    await connection.execute(add)
    refused = ["newer than this release", "999_from_the_future.sql"]
    check_refused(ingest("serve", "--port", "0", url=database_url), *refused)
    check_refused(ingest("migrate", url=database_url), *refused)


@pytest.mark.long
async def test_workers_are_replaced_though_the_database_is_that_of_the_next_release(
    database_url, connection, tmp_path
):
    """As between the two steps of an upgrade: whatever runs goes on, whoever of it dies. Only a start is refused."""
    with running(Service(tmp_path / "data", database_url, "--workers", "2")) as service:
        add = "INSERT INTO ingest.migrations (number, name, sha256) VALUES (999, '999_from_the_future.sql', '')"
        await connection.execute(add)
        before = service.workers()
        for worker in before:
            os.kill(worker, signal.SIGKILL)

        def all_are_new() -> bool:
            # Who asks while there is no worker waits for one.
            serving = service.get("/metrics", timeout=60)[1].count("ingest_ready{")
            return serving == 2 and not {*before} & {*service.workers()}

        wait_until(all_are_new, 60, "two new workers serve")
        assert service.post("/v1/events", {"name": "hello"}, timeout=60)[0] == 200
        service.wait_stored(60)
        await connection.execute("DELETE FROM ingest.migrations WHERE number IN (7, 999)")
        os.kill(service.workers()[0], signal.SIGKILL)
        wait_until(lambda: "is not applied" in service.log_text(), 60, "a database that is older is refused")


async def test_a_second_service_is_refused_its_port_and_its_folder(ingest, service, shared_database, tmp_path):
    other = tmp_path / "other"
    for command in ("serve", "dev"):
        taken = ingest(command, "--port", service.port, "--data-dir", other, url=shared_database)
        check_refused(taken, f"cannot listen on 127.0.0.1:{service.port}", "another process is listening there")
        in_use = ingest(command, "--port", "0", "--data-dir", service.data_dir, url=shared_database)
        check_refused(in_use, str(service.data_dir), "in use by another ingest process")
    assert service.get("/readyz")[0] == 200


async def test_two_workers_share_a_port_and_one_that_dies_is_started_again(database_url, connection, tmp_path):
    accepted = 0

    def post(service: Service, count: int) -> None:
        nonlocal accepted
        for _ in range(count):
            # Each on its own connection: the kernel chooses the worker.
            assert service.post("/v1/events", [{"name": "shared"}, {"name": ""}])[0] == 200
            accepted += 1

    with running(Service(tmp_path / "data", database_url, "--workers", "2")) as service:
        wait_until(lambda: raw_metrics(service).count("ingest_ready{") == 2, 60, "both workers serve")
        post(service, 40)
        page = raw_metrics(service)
        assert received_by(page, 0) > 0 and received_by(page, 1) > 0
        assert received_by(page, 0) + received_by(page, 1) == 80
        assert page.count("# HELP ingest_events_pending ") == 1
        metrics = service.wait_stored()
        assert metrics["ingest_events_stored_total"] == 40
        assert metrics['ingest_events_rejected_total{reason="missing_name"}'] == 40

        before = service.workers()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        wait_until(
            lambda: len(service.workers()) == 2 and before[0] not in service.workers(), 60, "the worker is back"
        )
        assert before[1] in service.workers()
        assert "worker died, restarting it" in service.log_text()
        wait_until(lambda: raw_metrics(service).count("ingest_ready{") == 2, 60, "both workers serve again")
        post(service, 20)
        service.wait_stored()
        count = await connection.fetchval("SELECT count(*) FROM analytics.events")
        assert count == accepted == 60

        # kill -9 of only the supervisor: its workers notice, store what they have, and exit.
        left = [psutil.Process(pid) for pid in service.workers()]
        service.signal(signal.SIGKILL)
        wait_until(lambda: all(map(is_dead, left)), 60, "the workers are gone")
    with pytest.raises(OSError):
        service.get("/healthz")


SPAWNS = """
import signal, time
from ingest.base import processes
if __name__ == "__main__":
    process = processes.spawn(time.sleep, (60,), "sleeper")
    with open(f"/proc/{process.pid}/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("SigBlk:")))
    process.kill()
"""


def test_a_process_that_is_starting_is_not_cut_short_by_ctrl_c(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    blocked = int(ran.stdout, 16)
    assert blocked & 1 << signal.SIGINT - 1 and blocked & 1 << signal.SIGTERM - 1


@pytest.mark.long
async def test_a_worker_drains_the_journal_of_a_dead_one(ingest, database_url, connection, tmp_path):
    folder = tmp_path / "data"
    with running(Service(folder, database_url, "--workers", "2")) as two:
        wait_until(lambda: raw_metrics(two).count("ingest_ready{") == 2, 60, "both workers have made their journals")
    assert "Traceback" not in two.log_text()
    # With the database down, both journals fill; then everything dies at once.
    with running(Service(folder, NOBODY, "--workers", "2")) as cut_off:
        wait_until(lambda: raw_metrics(cut_off).count("ingest_ready{") == 2, 60, "both workers serve")
        for index in range(30):
            assert cut_off.post("/v1/events", {"name": f"kept {index}"})[0] == 200
        page = raw_metrics(cut_off)
        shares = sorted((received_by(page, 0), received_by(page, 1)))
        assert shares[0] > 0 and sum(shares) == 30
        cut_off.kill()
    before = ingest("journal", "--data-dir", folder, url=database_url).out.splitlines()[1:]
    assert sorted(float(line.split()[1]) for line in before) == shares
    with running(Service(folder, database_url)) as one:
        stored = "SELECT count(*) FROM analytics.events"
        deadline = time.monotonic() + 30
        while await connection.fetchval(stored) < 30:
            assert time.monotonic() < deadline, one.log_text()
            time.sleep(0.1)  # noqa: ASYNC251
        assert one.wait_stored()["ingest_events_stored_total"] == 30
    names = await connection.fetch("SELECT DISTINCT name FROM analytics.events")
    assert len(names) == 30
    after = ingest("journal", "--data-dir", folder, url=database_url).out.splitlines()[1:]
    assert [line.split()[1] for line in after] == ["0", "0"]


async def test_ctrl_c_stops_serve_at_once_while_it_waits_for_the_database(tmp_path):
    service = Service(tmp_path / "data", NOBODY, "--workers", "2").start(wait=False)
    try:
        wait_until(lambda: service.log_text().count("waiting for the database") == 2, 60, "both workers wait")
        # A terminal sends it to every process.
        os.killpg(service.running_process.pid, signal.SIGINT)
        assert service.running_process.wait(5) == 0
    finally:
        service.kill()
    assert "Traceback" not in service.log_text() and len(service.log_text().splitlines()) == 2


async def test_ctrl_c_while_workers_are_starting_is_quiet(database_url, tmp_path):
    service = Service(tmp_path / "data", database_url, "--workers", "2").start(wait=False)
    try:
        wait_until(lambda: len(service.workers()) == 2, 60, "both workers are processes")
        os.killpg(service.running_process.pid, signal.SIGINT)
        assert service.running_process.wait(60) == 0
    finally:
        service.kill()
    assert "Traceback" not in service.log_text() and "Error" not in service.log_text()
