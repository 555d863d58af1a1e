"""What `bench.compare` compares: the service and its rivals, as processes that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import redis

from bench.rivals import table
from bench.rivals.stream import STREAM
from bench.service import free_port

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.02
RIVAL_PROCESSES: Final = 2
"""Of each rival's endpoint: one a core of a small machine."""
REDIS_SERVER: Final = "/usr/bin/redis-server"
REDIS_MAX_MEMORY: Final = "1gb"
_PENDING: Final = re.compile(r"^ingest_events_pending(?:\{.*\})? (\S+)$", re.MULTILINE)

Command = Sequence[str]


class Place(NamedTuple):
    """Where a contender lives: its own folder, database and port."""

    folder: Path
    dsn: str
    port: int

    @property
    def redis_socket(self) -> Path:
        return self.folder / "redis.sock"


class Kind(NamedTuple):
    """How to start a contender, and what it says of itself."""

    title: str
    answers_when: str
    """What has happened to an event by the time of its answer."""
    commands: Callable[[Place], Sequence[Command]]
    table: str = table.NAME
    rollup: bool = False
    redis: bool = False

    @property
    def is_ours(self) -> bool:
        return self.table != table.NAME

    @property
    def tells(self) -> bool:
        """Whether it can say what is not stored yet."""
        return self.is_ours or self.redis


def _endpoint(module: str, place: Place) -> Command:
    arguments = ["--host", "127.0.0.1", "--port", str(place.port), "--workers", str(RIVAL_PROCESSES)]
    quick = [
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "warning",
        "--backlog",
        "1024",
    ]
    return [sys.executable, "-m", "uvicorn", f"bench.rivals.{module}:app", *arguments, *quick]


def _rival(module: str) -> Callable[[Place], Sequence[Command]]:
    return lambda place: [_endpoint(module, place)]


def _redis(fsync: str) -> Callable[[Place], Sequence[Command]]:
    def commands(place: Place) -> Sequence[Command]:
        # On a socket alone, and nothing of Debian's own configuration.
        listening = ["--port", "0", "--unixsocket", str(place.redis_socket), "--dir", str(place.folder)]
        durable = ["--appendonly", "yes", "--appendfsync", fsync, "--save", ""]
        memory = ["--maxmemory", REDIS_MAX_MEMORY, "--maxmemory-policy", "noeviction"]
        server = [REDIS_SERVER, *listening, *durable, *memory]
        return [server, _endpoint("redis_stream", place), [sys.executable, "-m", "bench.rivals.redis_worker"]]

    return commands


def _ours(workers: int, rollup: bool) -> Callable[[Place], Sequence[Command]]:
    def commands(place: Place) -> Sequence[Command]:
        # All load comes from one address.
        limits = ["--address-events-per-second", "0", "--address-bytes-per-second", "0"]
        serve = [
            sys.executable,
            "-m",
            "ingest",
            "serve",
            "--workers",
            str(workers),
            "--port",
            str(place.port),
            *limits,
        ]
        worker = [sys.executable, "-m", "ingest", "rollup", "run", "--rollup-port", "0"]
        data = ["--data-dir", str(place.folder / "data")]
        return [[*serve, *data], *([[*worker, *data]] if rollup else [])]

    return commands


def _ingest(title: str, workers: int, rollup: bool) -> Kind:
    return Kind(title, "its journal is fsynced", _ours(workers, rollup), "analytics.events", rollup)


KINDS: Final[Mapping[str, Kind]] = {
    "insert": Kind("INSERT an event", "its transaction is committed", _rival("insert_each")),
    "insert-batches": Kind("INSERT of batches", "its transaction is committed", _rival("insert_batches")),
    "copy-memory": Kind("COPY from memory every second", "it is in memory", _rival("copy_memory")),
    "redis-everysec": Kind("Redis stream, fsync everysec", "Redis has it", _redis("everysec"), redis=True),
    "redis-always": Kind("Redis stream, fsync always", "Redis has fsynced it", _redis("always"), redis=True),
    "ingest": _ingest("ingest, 1 worker", 1, False),
    "ingest-rollup": _ingest("ingest, 1 worker, rollups", 1, True),
    "ingest-2": _ingest("ingest, 2 workers", 2, False),
    "ingest-2-rollup": _ingest("ingest, 2 workers, rollups", 2, True),
}


def redis_version() -> str:
    """Of Debian's server; raises OSError if it is not installed."""
    said = subprocess.run([REDIS_SERVER, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else "unknown"


class Contender:
    """A running contender. Made by `running_contender`."""

    def __init__(self, kind: Kind, place: Place) -> None:
        self.kind = kind
        self.place = place
        self.host = f"127.0.0.1:{place.port}"
        self._log = place.folder / "log"
        # One for each command; changed by `start`.
        self._programs: list[psutil.Popen] = []

    def start(self) -> None:
        """Start it, for the first time or after `kill`, and wait until it answers. Raises RuntimeError."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
        environment |= {"DATABASE_URL": self.place.dsn, "REDIS_URL": f"unix://{self.place.redis_socket}"}
        # The folder has no ingest.toml; the rivals are in the one where this was started.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH")]))
        self._programs = []
        deadline = time.monotonic() + START_SECONDS
        for command in self.kind.commands(self.place):
            with self._log.open("ab") as log:
                self._programs.append(
                    psutil.Popen(command, cwd=self.place.folder, env=environment, stdout=log, stderr=log)
                )
            if command[0] == REDIS_SERVER:
                self._wait(self._redis_answers, deadline)
        self._wait(self._answers, deadline)

    def _wait(self, ready: Callable[[], bool], deadline: float) -> None:
        while not ready():
            if time.monotonic() > deadline or any(program.poll() is not None for program in self._programs):
                raise RuntimeError(f"{self.kind.title} does not start:\n{self.log()}")
            time.sleep(LOOK_SECONDS)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.host}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def _answers(self) -> bool:
        try:
            self._get("/readyz")
        # Also what http.client raises when the process is killed within an answer.
        except OSError:
            return False
        return True

    def _redis_answers(self) -> bool:
        """Whether it has read its log again, too."""
        try:
            with self._redis() as server:
                return bool(server.ping())
        except redis.RedisError:
            return False

    def _redis(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.place.redis_socket))

    def log(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Its processes and their children."""
        found: list[psutil.Process] = []
        for program in self._programs:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(program.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def waiting(self) -> int:
        """How much is acknowledged and not stored, as far as the contender itself can tell: events or requests."""
        if self.kind.redis:
            with self._redis() as server:
                return int(server.xlen(STREAM))
        if self.kind.is_ours:
            return int(sum(float(value) for value in _PENDING.findall(self._get("/metrics"))))
        return 0

    def kill(self, others: Sequence[psutil.Process] = ()) -> None:
        """kill -9 of all its processes, and of these, at once. Returns when they are gone."""
        doomed = [*others, *self.processes()]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        for program in self._programs:
            program.wait(STOP_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        while any(not _is_dead(process) for process in doomed):
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {self.kind.title} survive SIGKILL")
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """End it in an orderly way, the servers that others need last. Repeatable."""
        for program in reversed(self._programs):
            if program.poll() is None:
                program.terminate()
        try:
            for program in reversed(self._programs):
                program.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            self.kill()


def _is_dead(process: psutil.Process) -> bool:
    """Also if nobody has waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def running_contender(kind: Kind, folder: Path, dsn: str) -> Iterator[Contender]:
    """A contender on a database that has the service's tables, and an empty folder."""
    contender = Contender(kind, Place(folder, dsn, free_port()))
    try:
        contender.start()
        yield contender
    except BaseException:
        print(contender.log(), file=sys.stderr)
        raise
    finally:
        contender.stop()
