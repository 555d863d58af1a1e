"""The service as users run it: real processes, killed and restarted, and their metrics."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.databases import Server, execute, run_apart, with_database

START_SECONDS = 120.0
HERE = (sys.executable, "-m", "ingest")
"""`ingest` of this checkout; others are installed somewhere else."""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


class Service:
    """`ingest serve` or `ingest dev` in its own process."""

    def __init__(
        self,
        data_dir: Path,
        database_url: str | None,
        *flags: str,
        command: str = "serve",
        environ: Mapping[str, str] | None = None,
        preexec=None,
        program: Sequence[str] = HERE,
    ) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.log = data_dir.parent / f"{data_dir.name}.log"
        # All that tests send comes from one address. Draining is for services that have clients elsewhere: nearly no
        # test needs to wait for it.
        usual = {
            "INGEST_ADDRESS_EVENTS_PER_SECOND": "0",
            "INGEST_ADDRESS_BYTES_PER_SECOND": "0",
            "INGEST_DRAIN_SECONDS": "0",
        }
        self._environ = environment(database_url, **{**usual, **(environ or {})})
        self._command = [
            *program, command,
            "--port", str(self.port), "--data-dir", str(data_dir), *flags,
        ]  # fmt: skip
        self._preexec = preexec
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running_process(self) -> subprocess.Popen[bytes]:
        """The process, once started."""
        assert self.process is not None
        return self.process

    def start(self, *, wait: bool = True) -> Service:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdout=log,
                stderr=log,
                preexec_fn=self._prepare,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def _prepare(self) -> None:
        # Under nohup, which tests may run under, it would be ignored.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        if self._preexec is not None:
            self._preexec()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended with {self.process.returncode}:\n{self.log_text()}")
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the service is not ready after {seconds} s:\n{self.log_text()}")

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def workers(self) -> list[int]:
        """Process ids of the collectors: the children of `serve`, except multiprocessing's resource tracker."""
        return child_processes(self.running_process.pid)

    def kill(self) -> None:
        """kill -9 all processes of the service at once."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(60)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def restart_in_place(self, seconds: float = 60.0) -> None:
        """Send SIGUSR2. Returns when each worker is a new one."""
        before = set(self.workers())
        self.signal(signal.SIGUSR2)
        wait_until(
            lambda: len(now := set(self.workers())) == len(before) and not before & now, seconds, "new workers"
        )

    def stop(self, seconds: float = 60.0) -> int:
        """Send SIGTERM. Returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def get(self, path: str, timeout: float = 5.0) -> tuple[int, str]:
        return request(f"{self.url}{path}", timeout=timeout)

    def post(self, path: str, body: object, timeout: float = 10.0, **headers: str) -> tuple[int, str]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request(f"{self.url}{path}", content, timeout, headers)

    def metrics(self) -> dict[str, float]:
        """Samples by name, and by name{label="value",…} without the worker, summed over the workers."""
        return parse_metrics(self.get("/metrics")[1])

    def wait_stored(self, seconds: float = 60.0) -> dict[str, float]:
        """Wait until nothing is pending. Returns the metrics then."""
        deadline = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            assert metrics["ingest_events_unaccounted"] == 0, metrics
            if metrics["ingest_events_pending"] == 0:
                return metrics
            assert time.monotonic() < deadline, f"still pending after {seconds} s: {metrics}\n{self.log_text()}"
            time.sleep(0.05)


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """Start the service; it is gone at the end, whatever happens."""
    try:
        yield service.start()
    finally:
        if service.process is not None and service.process.poll() is None:
            try:
                service.stop(20)
            except subprocess.TimeoutExpired:
                service.kill()
                raise


def child_processes(pid: int) -> list[int]:
    """Process ids of the Python processes that this one has started, except multiprocessing's resource tracker."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [child for child in map(int, found.stdout.split()) if b"spawn_main" in command_line(child)]


def command_line(pid: int) -> bytes:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_dead(process: psutil.Process) -> bool:
    """Whether it runs no more. A zombie does not, and process 1 may take seconds to collect those it inherits."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def raw_metrics(service: Service) -> str:
    return service.get("/metrics")[1]


def received_by(page: str, worker: int) -> float:
    """Events that a worker has received, by a page of metrics."""
    name = f'ingest_events_received_total{{source="http",worker="{worker}"}} '
    return next(float(line.removeprefix(name)) for line in page.splitlines() if line.startswith(name))


def request(
    url: str, body: bytes | None = None, timeout: float = 5.0, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and body, also of HTTP errors. OSError if nobody answers."""
    named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=named), timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def parse_metrics(page: str) -> dict[str, float]:
    samples: dict[str, float] = {}
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if line.startswith("#") or match is None:
            continue
        name, labels, value = match[1], match[2] or "", float(match[3])
        kept = ",".join(pair for pair in re.findall(r'\w+="[^"]*"', labels) if not pair.startswith("worker="))
        samples[name] = samples.get(name, 0.0) + value
        if kept:
            key = f"{name}{{{kept}}}"
            samples[key] = samples.get(key, 0.0) + value
    return samples


@contextmanager
def lent_database(server: Server, template: str) -> Iterator[str]:
    """A clone of the template, shared by several tests or a module, and dropped afterwards."""
    name = f"ingest_test_{secrets.token_hex(4)}"
    run_apart(lambda: execute(server.dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log"))
    try:
        yield with_database(server.dsn, name)
    finally:
        run_apart(lambda: execute(server.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


def environment(database_url: str | None, **more: str) -> dict[str, str]:
    """Our environment without variables that configure `ingest`, plus the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
    kept.pop("DATABASE_URL", None)
    # Hundreds of processes are started, and each would compile all modules again: a quarter of a second of CPU time.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, **({"DATABASE_URL": database_url} if database_url else {}), **more}


_FIRST_PORT = 10_000
_PORTS_OF_ONE = 2_000
_ports = itertools.count(secrets.randbelow(_PORTS_OF_ONE))


def free_port() -> int:
    """A port that nobody listens on, and nobody else gets: services are stopped and started again on theirs. So it
    is not one of those that the system gives to connections, and each process of the tests has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(_PORTS_OF_ONE):
        port = _FIRST_PORT + worker % 10 * _PORTS_OF_ONE + next(_ports) % _PORTS_OF_ONE
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
