"""The service as users run it, in its own process, on a fresh folder and a fresh Postgres."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.database import Database
from bench.processes import memory_mb
from ingest.commands.target import embedded_folder
from ingest.postgres.embedded import EmbeddedPostgres

START_SECONDS = 120.0
STOP_SECONDS = 60.0
WRITE_KEY = "bench-write-key"
"""For services that are started with a key."""
_SAMPLE = re.compile(r"^(\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)


class Service:
    """A running `ingest dev`, or `ingest serve` with several workers. Made by `running_service`."""

    def __init__(self, folder: Path, flags: tuple[str, ...], workers: int = 1) -> None:
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.postgres = EmbeddedPostgres(embedded_folder(folder / "data"))
        self.database = Database(self.postgres)
        self._log = folder / "service.log"
        # Where the rollup worker listens, and so which of the processes it is; None without one.
        self._rollup_port = free_port() if workers == 1 and "--no-rollup" not in flags else None
        # Set when it is ready.
        self.rollup: psutil.Process | None = None
        self.process = self._start(flags, workers)

    def _start(self, flags: tuple[str, ...], workers: int) -> psutil.Popen:
        # Only the flags may configure it; its working folder has no ingest.toml.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
        environment.pop("DATABASE_URL", None)
        ingest = [sys.executable, "-m", "ingest"]
        # All load comes from one address.
        common = ["--data-dir", "data", "--address-events-per-second", "0", "--address-bytes-per-second", "0"]
        with self._log.open("wb") as log:
            if workers == 1:
                command = [*ingest, "dev", "--rollup-port", str(self._rollup_port or 0)]
            else:
                # `ingest dev` has one worker.
                self.postgres.start()
                environment["DATABASE_URL"] = self.postgres.dsn
                migrate = [*ingest, "migrate"]
                subprocess.run(migrate, cwd=self.folder, env=environment, stdout=log, stderr=log, check=True)
                command = [*ingest, "serve", "--workers", str(workers)]
            command += ["--port", str(self.port), *common, *flags]
            return psutil.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self._get("/readyz")
                if self._rollup_port is not None:
                    self.rollup = self._listening(self._rollup_port)
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"the service does not start:\n{self.log()}")

    def _listening(self, port: int) -> psutil.Process:
        """The child process that listens on this port. Raises ConnectionError if none does yet."""
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for each in child.net_connections("tcp"):
                    if each.status == psutil.CONN_LISTEN and each.laddr.port == port:
                        return child
        raise ConnectionError(f"nothing listens on port {port}")

    def collectors(self) -> list[psutil.Process]:
        """The service's process and its children, without Postgres and the rollup worker."""
        others = {self.rollup, *self.database.processes()}
        return [self.process, *(each for each in self.process.children(recursive=True) if each not in others)]

    def processes(self) -> list[psutil.Process]:
        """All of them: the service's, its rollup worker's and Postgres', which may be among its children."""
        service = psutil.Process(self.process.pid)
        return [service, *service.children(recursive=True), *self.database.processes()]

    def log(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-4000:]

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.host}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """Samples by name, those with different labels added up."""
        samples: dict[str, float] = {}
        for name, value in _SAMPLE.findall(self._get("/metrics")):
            samples[name] = samples.get(name, 0.0) + float(value)
        return samples

    def wait_stored(self, load: psutil.Popen | None, seconds: float) -> tuple[float, dict[str, float]]:
        """Wait until the load has ended and nothing is pending: (when the last event was stored by
        time.monotonic(), the metrics then). Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        stored, stored_at = -1.0, 0.0
        while True:
            metrics = self.metrics()
            now = time.monotonic()
            if metrics["ingest_events_stored_total"] != stored:
                stored, stored_at = metrics["ingest_events_stored_total"], now
            if metrics["ingest_events_pending"] == 0 and (load is None or load.poll() is not None):
                return stored_at, metrics
            if now > deadline:
                raise TimeoutError(f"{metrics['ingest_events_pending']:.0f} events are pending after {seconds:.0f} s")
            time.sleep(0.05)

    def wait_rolled_up(self, seconds: float) -> None:
        """Wait until everything stored is in the aggregates. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while int(self.database.sql("SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"flushes are not rolled up after {seconds:.0f} s")
            time.sleep(0.1)

    def memory_mb(self) -> float:
        """Memory of the collector's processes."""
        return memory_mb(self.collectors())

    def stop(self) -> None:
        """Send SIGTERM and wait; Postgres is stopped even if the collector failed."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        finally:
            self.postgres.stop()


@contextmanager
def running_service(
    *flags: str, workers: int = 1, prepare: Callable[[Path], object] | None = None, folder: Path | None = None
) -> Iterator[Service]:
    """A service on a fresh folder; both are gone afterwards. `prepare` is called with the folder of its Postgres
    before the start, and may create a database there. `folder`: take this one, and leave it, with what the service
    has stored, for the next."""
    place = folder or Path(tempfile.mkdtemp(prefix="ingest-bench-"))
    try:
        if prepare is not None:
            prepare(embedded_folder(place / "data"))
        service = Service(place, flags, workers)
        try:
            service.wait_ready()
            yield service
        except BaseException:
            print(service.log(), file=sys.stderr)
            raise
        finally:
            service.stop()
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
