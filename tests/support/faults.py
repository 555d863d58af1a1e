"""Things that break: a proxy that cuts connections at COMMIT, a Postgres to kill, a client that never gives up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psutil

from ingest.postgres.embedded import EmbeddedPostgres
from tests.support.service import is_dead, request, wait_until


class CuttingProxy:
    """Sits between a collector and the socket of its Postgres, and breaks COMMITs on demand.

    `at_commit` is called for each COMMIT, and returns "pass", "cut before" (the server never sees it), "cut after"
    (the server does, the client gets no answer) or "stall" (the client is cut off, the server sees it seconds later).
    """

    STALL_SECONDS = 2.0

    def __init__(self, dsn: str, folder: Path) -> None:
        parts = urlsplit(dsn)
        options = parse_qs(parts.query)
        self._target = Path(options["host"][0]) / f".s.PGSQL.{options.get('port', ['5432'])[0]}"
        folder.mkdir(mode=0o700)
        self._path = folder / ".s.PGSQL.5432"
        self.dsn = urlunsplit((parts.scheme, parts.netloc, parts.path, f"host={folder}&port=5432", ""))
        self.at_commit: Callable[[], str] = lambda: "pass"
        self.commits = 0
        # Stop reading from the first connection that has sent this much, like a network that has silently failed.
        self.freeze_after_bytes: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    async def go_away(self) -> None:
        """Make Postgres unreachable: connections are cut, new ones refused. Repeatable."""
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        except (OSError, asyncio.CancelledError):
            writer.close()
            return
        back = asyncio.create_task(_pipe(server_reader, writer))
        try:
            sent = 0
            while data := await reader.read(65536):
                sent += len(data)
                if self.freeze_after_bytes is not None and sent > self.freeze_after_bytes:
                    self.freeze_after_bytes = None
                    await asyncio.Event().wait()
                # asyncpg sends a simple query as one message: Q, its length, the text and a zero.
                if b"COMMIT\x00" in data:
                    self.commits += 1
                    done = await self._on_commit(self.at_commit(), data, writer, server_writer, back)
                    if done:
                        return
                    continue
                server_writer.write(data)
                await server_writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            back.cancel()
            writer.close()
            server_writer.close()

    async def _on_commit(
        self,
        what: str,
        data: bytes,
        writer: asyncio.StreamWriter,
        server_writer: asyncio.StreamWriter,
        back: asyncio.Task[None],
    ) -> bool:
        if what == "pass":
            server_writer.write(data)
            await server_writer.drain()
            return False
        back.cancel()
        if what == "stall":
            writer.close()
            await asyncio.sleep(self.STALL_SECONDS)
        if what != "cut before":
            server_writer.write(data)
            await server_writer.drain()
            await asyncio.sleep(0.2)
        return True


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def kill_postgres(postgres: EmbeddedPostgres) -> None:
    """kill -9 of the postmaster and of every backend at once, as a power cut would."""
    pid = postgres.pid
    if pid is None:
        return
    postmaster = psutil.Process(pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    wait_until(lambda: all(map(is_dead, processes)), 60, "Postgres is gone")


def signal_postgres(postgres: EmbeddedPostgres, number: int) -> None:
    """SIGSTOP or SIGCONT for the whole server."""
    pid = postgres.pid
    assert pid is not None
    postmaster = psutil.Process(pid)
    for process in [*postmaster.children(recursive=True), postmaster]:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "6m") -> Iterator[bool]:
    """Mount a tmpfs of this size. Returns whether it was permitted."""
    folder.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
        )
    ).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


class StubbornClient(threading.Thread):
    """Sends batches of events with ids, each repeatedly until it is acknowledged, as SDKs do.

    `acknowledged` are the ids for which a 200 came. `only_once` sends nothing again: batches not acknowledged at
    the first try are in `unknown`. `others`: more services, to which it turns when one refuses it or does not answer;
    the list may change while it runs.
    """

    def __init__(
        self, url: str, batch: int = 20, *, only_once: bool = False, others: Sequence[str] | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._others: Sequence[str] = others if others is not None else ()
        # Where the next batch goes: `_url` comes before `_others`.
        self._turn = 0
        self._batch = batch
        self._only_once = only_once
        self._stop_asked = threading.Event()
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()
        self.statuses: dict[int, int] = {}
        self.broken = 0

    def run(self) -> None:
        while not self._stop_asked.is_set():
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            ids = [str(uuid.uuid4()) for _ in range(self._batch)]
            events = [
                {"name": "load", "id": one, "timestamp": now, "properties": {"n": n, "text": "x" * 100}}
                for n, one in enumerate(ids)
            ]
            self._deliver(json.dumps(events).encode(), set(ids))

    def _deliver(self, body: bytes, ids: set[str]) -> None:
        while True:
            services = [self._url, *self._others]
            try:
                status, _ = request(f"{services[self._turn % len(services)]}/v1/events", body, 10)
            except OSError:
                self.broken += 1
                status = 0
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.acknowledged |= ids
                return
            self._turn += 1
            if self._only_once:
                self.unknown |= ids
                return
            time.sleep(0.02)

    def finish(self, seconds: float = 60.0) -> None:
        """Send no new batch; return when the last one is acknowledged."""
        self._stop_asked.set()
        self.join(seconds)
        assert not self.is_alive(), "the last batch was not acknowledged in time"
