"""PgBouncer in transaction mode, three server connections a database, in front of a test's server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.programs import needs
from tests.support.texts import replaced

PROGRAM = "/usr/sbin/pgbouncer"
START_SECONDS = 60.0

needs_pooler = needs(PROGRAM, ".ci/on-pooler")
"""A mark for tests that start poolers of their own."""


EXAMPLE = Path(__file__).parents[2] / "deploy" / "pgbouncer" / "pgbouncer.ini"
PASSWORD = "a password of the pooler's"


class Pooler:
    """One pooler; `url_of` turns a URL of the server into one that goes through it.

    `example`: with the configuration of deploy/, but for places and the number of server connections, and for the
    database of `dsn` alone.
    """

    def __init__(self, dsn: str, folder: Path, *, reset_always: bool = False, example: bool = False) -> None:
        parts = urlsplit(dsn)
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        host = unquote(parts.hostname or "") or options.get("host", "localhost")
        port = str(parts.port or options.get("port", 5432))
        user = unquote(parts.username or "") or options.get("user", "postgres")
        self.folder = folder
        self._user = user
        self._owner: tuple[int, int] | None = None
        folder.mkdir(mode=0o755, parents=True)
        if os.geteuid() == 0:
            # It refuses to run as root; and the server's socket may be for its owner alone.
            found = os.stat(Path(host) / f".s.PGSQL.{port}") if host.startswith("/") else None
            self._owner = (found.st_uid, found.st_gid) if found is not None and found.st_uid else (65534, 65534)
            os.chown(folder, *self._owner)
        self._config = folder / "pgbouncer.ini"
        password = f" password={unquote(parts.password)}" if parts.password else ""
        self._password = f":{quote(PASSWORD)}" if example else ""
        (folder / "users.txt").write_text(f'"{user}" "{PASSWORD if example else ""}"\n')
        if example:
            name = urlsplit(dsn).path[1:]
            self._config.write_text(self._of_example(f"{name} = host={host} port={port} dbname={name}{password}"))
        else:
            self._config.write_text(f"""
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
server_reset_query_always = {int(reset_always)}
server_idle_timeout = 60
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
""")
        self.process: subprocess.Popen[bytes] | None = None

    def _of_example(self, database: str) -> str:
        folder = self.folder
        return replaced(
            EXAMPLE.read_text(),
            {
                "ingest = host=/var/run/postgresql port=5432 dbname=ingest": database,
                "listen_addr = 127.0.0.1": "listen_addr =",
                "/etc/pgbouncer/userlist.txt": f"{folder}/users.txt",
                "/var/run/postgresql": str(folder),
                "/var/log/postgresql": str(folder),
                "default_pool_size = 20": "default_pool_size = 3",
                "reserve_pool_size = 5": "reserve_pool_size = 0",
            },
        )

    def url_of(self, dsn: str) -> str:
        return f"postgresql://{quote(self._user)}{self._password}@/{urlsplit(dsn).path[1:]}?host={quote(str(self.folder))}&port=6432"

    def start(self) -> Pooler:
        uid, gid = self._owner or (None, None)
        self.process = subprocess.Popen(
            [PROGRAM, "-q", str(self._config)],
            user=uid,
            group=gid,
            extra_groups=[] if uid is not None else None,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log_text()
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(self.folder / ".s.PGSQL.6432"))
                    return self
                except OSError:
                    assert time.monotonic() < deadline, self.log_text()
            time.sleep(0.02)

    def log_text(self) -> str:
        path = self.folder / "pgbouncer.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def restart(self, seconds: float = 60.0) -> None:
        """As Debian's unit does it: what is running at the moment may end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(seconds)
        self.start()

    def reload(self) -> None:
        """Have it read its file again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """kill -9: every client and every server connection is cut."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(60)
        (self.folder / "pgbouncer.pid").unlink(missing_ok=True)
        (self.folder / ".s.PGSQL.6432").unlink(missing_ok=True)
