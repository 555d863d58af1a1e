"""A rollup worker in its own process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from tests.support.service import HERE, environment, free_port, parse_metrics, request

LEADS = "this worker is now the rollup leader"
LEADS_NO_MORE = "this worker is no longer the rollup leader"


class RollupProcess:
    """`ingest rollup` in its own process, with its own data folder."""

    def __init__(
        self,
        data_dir: Path,
        database_url: str,
        *flags: str,
        program: Sequence[str] = HERE,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._environ = environment(database_url, **(environ or {}))
        self._command = [
            *program, "rollup", "--data-dir", str(data_dir), "--host", "127.0.0.1",
            "--rollup-port", str(self.port), "--rollup-interval-seconds", "0.1",
            "--rollup-lease-seconds", "1", *flags,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        # Where the output of the current process begins in the log; set by `start`.
        self._log_start = 0

    def start(self) -> RollupProcess:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log)
        return self

    def log_text(self) -> str:
        """The output of the current process."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def all_logs(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def leads(self) -> bool:
        """Whether its log says that it took the lead, and not since that it lost it."""
        text = self.log_text()
        return text.rfind(LEADS) > text.rfind(LEADS_NO_MORE)

    def is_up(self) -> bool:
        """Whether it answers. Fails if the process has ended, as it will never come up."""
        assert self.process is not None and self.process.poll() is None, self.all_logs()
        try:
            return request(f"http://127.0.0.1:{self.port}/healthz")[0] == 200
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        return parse_metrics(request(f"http://127.0.0.1:{self.port}/metrics")[1])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> int:
        """Send SIGTERM. Returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def rolling_up(worker: RollupProcess) -> Iterator[RollupProcess]:
    """Start the worker; it is stopped at the end, whatever happens."""
    try:
        yield worker.start()
    finally:
        worker.kill()


async def wait_rolled_up(connection: asyncpg.Connection, seconds: float) -> None:
    """Return when every row of the table has a batch, and every flush is in the aggregates."""
    deadline = time.monotonic() + seconds
    while True:
        await connection.execute("SELECT public.process_pending_events()")
        waiting = await connection.fetchval(
            "SELECT (SELECT count(*) FROM analytics.flushes WHERE rolled_up_at IS NULL)"
            " + (SELECT count(*) FROM analytics.events WHERE batch_id IS NULL)"
        )
        if not waiting:
            return
        assert time.monotonic() < deadline, f"{waiting} flushes and rows still wait after {seconds} s"
        await asyncio.sleep(0.1)


async def total(connection: asyncpg.Connection, granularity: str) -> int:
    count = await connection.fetchval(
        "SELECT coalesce(sum(event_count), 0)::bigint FROM analytics.event_aggregations"
        " WHERE granularity = $1::text::analytics.granularity AND dimensions = '{}'",
        granularity,
    )
    return int(count)


def verify(database_url: str) -> str:
    """The output of `ingest rollup verify` for five days and the next; it must have found nothing."""
    now = datetime.now(UTC)
    ranged = ["--from", (now - timedelta(days=5)).isoformat(), "--to", (now + timedelta(days=1)).isoformat()]
    done = subprocess.run(
        [sys.executable, "-m", "ingest", "rollup", "verify", *ranged],
        env=environment(database_url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


async def the_leader(workers: list[RollupProcess]) -> RollupProcess:
    """Wait for the worker that has the lead; there is never a second one."""
    deadline = time.monotonic() + 30
    while not (leaders := [worker for worker in workers if worker.leads]):
        assert time.monotonic() < deadline, f"nobody took the lead:\n{''.join(each.all_logs() for each in workers)}"
        await asyncio.sleep(0.02)
    assert len(leaders) == 1
    return leaders[0]


async def insert_today(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO analytics.events (type, name, session_id)"
        " SELECT 'system', 'inserted', 'plain-' || n FROM generate_series(1, 10) AS n"
    )
