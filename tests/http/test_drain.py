"""Services and workers that stop or are replaced while clients are busy, none of which ever retries."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.impatient import CLIENT_SECONDS, Load
from tests.support.service import Service, environment, free_port, running, wait_until


async def stored(database_url: str) -> list[str]:
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT id::text FROM analytics.events WHERE name = 'drained'")
        return [row["id"] for row in rows]
    finally:
        await connection.close()


def check_books(database_url: str, load: Load) -> None:
    found = asyncio.run(stored(database_url))
    assert load.errors == []
    assert sorted(found) == sorted(load.acknowledged) and len(found) > 20


def make(tmp_path: Path, database_url: str, drain_seconds: float, *flags: str) -> Service:
    environ = {"INGEST_DRAIN_SECONDS": str(drain_seconds)}
    return Service(tmp_path / "data", database_url, *flags, environ=environ)


def serving(service: Service) -> int:
    # While a service restarts, its clients wait.
    return service.get("/metrics", timeout=CLIENT_SECONDS)[1].count("ingest_ready{")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_workers_are_replaced_one_after_the_other_without_an_error(database_url: str, tmp_path: Path, workers: int):
    # Long enough for each client to send once more, also on a busy machine: that response closes its connection.
    with running(make(tmp_path, database_url, 3.0, "--workers", str(workers))) as service:
        wait_until(lambda: serving(service) == workers, 60, "all workers serve")
        with Load(service.port) as load:
            for worker in service.workers():
                os.kill(worker, signal.SIGTERM)
                wait_until(lambda worker=worker: worker not in service.workers(), 60, "it ends")  # type: ignore[misc]
                wait_until(lambda: len(service.workers()) == workers, 60, "another is started")
                wait_until(lambda: serving(service) == workers, 60, "all workers serve")
        service.wait_stored()
        assert load.closes_announced > 0
        assert "worker died" not in service.log_text() and "Traceback" not in service.log_text()
        check_books(database_url, load)


def test_a_service_restarts_in_place_without_an_error(database_url: str, tmp_path: Path):
    """Twice, with clients all the time. It reads its configuration again each time."""
    settings = tmp_path / "ingest.toml"
    settings.write_text("max_batch_events = 10\n")
    with running(make(tmp_path, database_url, 0.3, "--workers", "2", "--config", str(settings))) as service:
        pid = service.running_process.pid
        for times in (1, 2):
            settings.write_text(f"max_batch_events = {10 + times}\n")
            before = set(service.workers())
            with Load(service.port) as load:
                service.signal(signal.SIGUSR2)
                wait_until(
                    lambda before=before: len(service.workers()) == 2 and not before & set(service.workers()),  # type: ignore[misc]
                    60,
                    "the workers are new",
                )
                wait_until(lambda: serving(service) == 2, 60, "all workers serve")
            assert load.errors == []
            assert service.post("/v1/events", [{"name": "x"}] * (10 + times))[0] == 200
            assert service.post("/v1/events", [{"name": "x"}] * (11 + times))[0] == 413
            service.wait_stored()
            found = asyncio.run(stored(database_url))
            assert set(load.acknowledged) <= set(found) and len(found) == len(set(found))
        assert service.running_process.pid == pid and service.running_process.poll() is None
        assert service.stop() == 0
        assert "Traceback" not in service.log_text()


class Passed:
    """A socket as systemd would hold it, and services started with it, one after the other."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.sock.getsockname()[1]
        self._folder, self._url = folder, database_url

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        program = (
            "import os, sys\n"
            f"os.dup2({self.sock.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'ingest', *sys.argv[1:]])\n"
        )
        command = [sys.executable, "-c", program, "serve", "--data-dir", str(self._folder), "--drain-seconds", "0.3"]
        with (self._folder.parent / "passed.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment(self._url), stdout=log, stderr=log, pass_fds=(self.sock.fileno(),)
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


def test_a_socket_that_is_passed_outlives_the_services(database_url: str, tmp_path: Path):
    passed = Passed(tmp_path / "data", database_url)
    with passed.sock, Load(passed.port) as load:
        for _ in range(2):
            with passed.started() as process:
                before = len(load.acknowledged)
                wait_until(lambda before=before: len(load.acknowledged) > before + 20, 60, "it serves")  # type: ignore[misc]
                process.terminate()
                assert process.wait(60) == 0
        with passed.started() as process:
            before = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > before + 20, 60, "it serves")
            load.__exit__()
            process.terminate()
            assert process.wait(60) == 0
    check_books(database_url, load)


def test_while_draining_it_is_not_ready_and_closes_each_connection_after_its_response(
    database_url: str, tmp_path: Path
):
    with running(make(tmp_path, database_url, 600)) as service:
        kept = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=60) for _ in range(3)]
        for connection in kept:
            connection.request("POST", "/v1/events", b'{"name":"before"}')
            answer = connection.getresponse()
            assert (answer.status, answer.will_close) == (200, False)
            answer.read()
        service.signal(signal.SIGTERM)
        wait_until(lambda: service.get("/readyz")[0] == 503, 60, "it says not ready")
        assert '"draining":true' in service.get("/readyz")[1]
        assert service.get("/healthz")[0] == 200
        assert service.metrics()["ingest_ready"] == 0
        for connection in kept[:2]:
            for target in ("/v1/events",):
                connection.request("POST", target, b'{"name":"during"}')
                answer = connection.getresponse()
                assert (answer.status, answer.will_close) == (200, True)
                answer.read()
        # All requests sent at once are answered, and only the last response closes the connection.
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as piped:
            one = b'POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"name":"piped"}'
            piped.sendall(one * 3)
            seen = b""
            while more := piped.recv(65536):
                seen += more
            assert seen.count(b"HTTP/1.1 200") == 3 and seen.lower().count(b"connection: close") == 1
        assert service.running_process.poll() is None
        # A second signal means: do not wait any longer.
        service.signal(signal.SIGTERM)
        assert service.running_process.wait(30) == 0
        for connection in kept:
            connection.close()
        assert "Traceback" not in service.log_text()
    assert asyncio.run(count(database_url)) == 3 + 2 + 3


async def count(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM analytics.events"))
    finally:
        await connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_stopping_from_a_terminal_does_not_wait(database_url: str, tmp_path: Path, number: int):
    with running(make(tmp_path, database_url, 3600, "--workers", "2")) as service:
        assert service.post("/v1/events", {"name": "hello"})[0] == 200
        # Ctrl-C goes to all processes.
        os.killpg(service.running_process.pid, number)
        assert service.running_process.wait(60) == 0


def test_a_sigterm_to_all_processes_is_one(database_url: str, tmp_path: Path):
    """As systemd sends it by default: the workers get it twice, and drain all the same."""
    with running(make(tmp_path, database_url, 3600, "--workers", "2")) as service:
        os.killpg(service.running_process.pid, signal.SIGTERM)
        wait_until(lambda: service.get("/readyz")[0] == 503, 60, "it says not ready")
        time.sleep(0.5)
        assert service.post("/v1/events", {"name": "served"})[0] == 200
        service.signal(signal.SIGTERM)
        assert service.running_process.wait(60) == 0


def test_what_has_arrived_before_the_end_is_answered(database_url: str, tmp_path: Path):
    """Connections in the listen queue, and requests not read yet, when a service stops without draining."""
    with running(make(tmp_path, database_url, 0.0)) as service:
        for _ in range(3):
            service.post("/v1/events", {"name": "warm"})
        (worker,) = service.workers()
        os.kill(worker, signal.SIGSTOP)
        body = b'{"name":"queued"}'
        request = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        queued = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(100)]
        for sock in queued:
            sock.sendall(request)
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        answers = [sock.recv(65536) for sock in queued]
        assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 100
        for sock in queued:
            sock.close()


def test_sockets_that_are_passed_wrongly_are_a_one_line_error(database_url: str, tmp_path: Path):
    program = (
        "import os, sys\n"
        "os.environ.update(LISTEN_FDS=sys.argv[1], LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'ingest', 'serve', *sys.argv[2:]])\n"
    )
    flags = ["--data-dir", str(tmp_path / "data"), "--port", str(free_port())]
    for passed, words in (("2", "LISTEN_FDS passes 2 sockets"), ("1", "no socket was passed")):
        ran = subprocess.run(
            [sys.executable, "-c", program, passed, *flags],
            env=environment(database_url),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 1 and words in ran.stderr and len(ran.stderr.splitlines()) == 1, ran
