"""Whether anything gets slower as more is stored: ingestion, rollups, the dashboard and statistics, in one database
that grows.

`python -m bench.scale [--sizes N ...] [--report PATH]`; bench/README.md explains each figure. Exits with 1 if an
acknowledged event was not stored and counted exactly once, whatever the speed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from bench import dashboard, report, stats_api
from bench.database import Database
from bench.fill import Filled, tell
from bench.measure import BatchRound, OnceFailed, add_load, batches
from bench.meter import wait_leader
from bench.queries import fresh_folder
from bench.rolled import Rolled, measure_load, send_steadily
from bench.rollup import fill_postgres, grow_postgres, roll_up_postgres
from bench.scale_report import Stage, as_json, as_markdown, chart
from bench.service import Service, running_service
from bench.stats_api import ADMIN_KEY
from bench.watch import OtherCpu
from ingest.base.errors import IngestError
from ingest.commands.target import embedded_folder
from ingest.postgres import migrations
from ingest.postgres.connections import close, connect
from ingest.store import partitions

ROOT: Final = Path(__file__).parent.parent
SIZES: Final = (1_000_000, 10_000_000, 30_000_000)
QUICK_SIZES: Final = (20_000, 150_000, 300_000)
QUICK_KPI_SECONDS: Final = 5.0
"""KPIs take minutes, however few events there are, as there are thirty days."""
WARM_UP_SECONDS: Final = 3.0
REPORT: Final = ROOT / "bench" / "results" / "scale.md"
_COPY: Final = "empty_copy"
_COUNT: Final = "SELECT count(*) FROM analytics.events"
_SIZE: Final = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('analytics.events') WHERE isleaf"


# Growing.


class Growing:
    """One database, as large as it is asked to be, and the service on it."""

    def __init__(self, folder: Path, kpi_seconds: float = math.inf) -> None:
        self._folder = folder
        self._kpi_seconds = kpi_seconds
        self._filled: Filled | None = None
        # Events of the loads so far, which are in the table, too.
        self.sent = 0

    def grow(self, events: int) -> None:
        """Have so many events in all, with the aggregates and KPIs that the service would have made of them."""
        folder = embedded_folder(self._folder / "data")
        if self._filled is None:
            self._filled = fill_postgres(events, folder)
        else:
            wanted = events - self.sent
            if wanted <= self._filled.events:
                raise ValueError(f"the loads have stored {self.sent:,} events: {events:,} is not more than there are")
            self._filled = grow_postgres(self._filled, wanted, folder)
        tell(f"{events:,} events are there")
        roll_up_postgres(self._filled, folder, self._kpi_seconds)
        # It was loaded without fsync: gigabytes that the system still has to write would slow down what is measured.
        os.sync()

    @contextmanager
    def service(self) -> Iterator[Service]:
        with running_service("--admin-keys", ADMIN_KEY, folder=self._folder) as service:
            wait_leader(service)
            yield service


@contextmanager
def empty_copy(service: Service) -> Iterator[Database]:
    """Another database of the service's server, with the same tables, indexes and triggers, and no event in it."""
    database = service.database.beside(_COPY)
    service.database.sql(f"CREATE DATABASE {_COPY} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        asyncio.run(_migrate(database.dsn))
        yield database
    finally:
        service.database.sql(f"DROP DATABASE {_COPY} WITH (FORCE)")


async def _migrate(dsn: str) -> None:
    connection = await connect(dsn, purpose="bench")
    try:
        await migrations.migrate(connection)
        await partitions.ensure_ahead(connection, today=datetime.now(UTC).date())
    finally:
        await close(connection)


# Measuring.


def measure_ingestion(service: Service, copy: Database, seconds: float) -> BatchRound:
    """Batches into the table as it is; and then the same rows by one raw COPY into the empty copy of it."""
    service.database.sql("CHECKPOINT")
    since = service.database.sql("SELECT clock_timestamp()")
    run = add_load(service, batches(service.host), seconds, since)
    file = service.folder / "rows"
    # With those of requests whose answer came too late to be counted.
    stored = service.database.stored(since).rows
    service.database.export_events(file, since)
    copy.forget_events()
    copy_seconds = copy.copy_events(file)
    file.unlink()
    rows = copy.stored().rows
    if rows != stored:
        raise OnceFailed(f"the raw COPY stored {rows} rows of {stored}")
    return BatchRound(run, rows / copy_seconds)


def measure_rollup(service: Service, given: argparse.Namespace) -> Rolled:
    """The cost of rollups at a steady rate."""
    measure_load(service, partial(send_steadily, per_second=given.rate, seconds=WARM_UP_SECONDS))
    return measure_load(service, partial(send_steadily, per_second=given.rate, seconds=given.rate_seconds))


def measure_stage(growing: Growing, events: int, given: argparse.Namespace) -> Stage:
    """Everything at one size. What is asked comes first, as what is sent makes the table larger."""
    tell(f"growing to {events:,} events")
    started = time.monotonic()
    growing.grow(events)
    tell(f"{events:,} events are rolled up, after {time.monotonic() - started:.0f} s")
    with growing.service() as service:
        others = OtherCpu(service.processes)
        database = service.database
        stored = int(database.sql(_COUNT))
        asked = dashboard.measure(service, given.executions)
        tell(f"{stored:,} events: the dashboard is measured")
        statistics = stats_api.measure_dashboard(service, given.executions)
        tell(f"{stored:,} events: statistics are measured")
        rolled = measure_rollup(service, given)
        tell(f"{stored:,} events: rollups are measured")
        with empty_copy(service) as copy:
            rounds = [measure_ingestion(service, copy, given.seconds) for _ in range(given.rounds)]
        sent = int(database.sql(_COUNT)) - stored
        growing.sent += sent
        tell(f"{stored:,} events: ingestion is measured; {time.monotonic() - started:.0f} s in all")
        return Stage(
            events=stored,
            sent=sent,
            table_bytes=int(database.sql(_SIZE)),
            version=database.version(),
            rounds=rounds,
            rolled=rolled,
            asked=asked,
            statistics=statistics,
            others_cores=others.cores(),
        )


def measure_all(given: argparse.Namespace) -> Iterator[list[Stage]]:
    """The stages so far, after each of them: hours of work are not lost with the last one."""
    stages: list[Stage] = []
    with fresh_folder(max(given.sizes)) as folder:
        growing = Growing(folder, QUICK_KPI_SECONDS if given.quick else math.inf)
        for events in given.sizes:
            stages.append(measure_stage(growing, events, given))
            yield stages


# The run.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="N",
        help="stored events at which everything is measured, growing [1000000 10000000 30000000]",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="of ingestion; medians are shown [3]")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each [4]")
    parser.add_argument("--rate", type=float, default=5_000.0, help="events a second for the cost of rollups [5000]")
    parser.add_argument("--rate-seconds", type=float, default=20.0, help="for so long [20]")
    parser.add_argument("--executions", type=int, default=20, help="of each question [20]")
    parser.add_argument("--quick", action="store_true", help="small sizes and short loads; its figures say little")
    parser.add_argument(
        "--report", type=Path, default=REPORT, metavar="PATH",
        help="Markdown; the chart and the JSON are beside it [bench/results/scale.md]",
    )  # fmt: skip
    return parser


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_args(arguments)
    given.sizes = given.sizes or list(QUICK_SIZES if given.quick else SIZES)
    if given.quick:
        given.rounds, given.seconds, given.rate_seconds, given.executions = 1, 1.0, 2.0, 3
        # So that what is sent does not exceed the sizes.
        given.rate = 1000.0
    if any(one >= other for one, other in pairwise(given.sizes)):
        parser.error("sizes must grow")
    return given


def write(stages: Sequence[Stage], path: Path, command: str) -> str:
    """Write the report, its chart and its JSON; returns the report."""
    where = report.machine(stages[-1].version)
    text = as_markdown(where, stages, datetime.now(UTC).date(), command, path.with_suffix(".svg").name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.with_suffix(".svg").write_text(chart(stages))
    report.write_json(as_json(where, stages), path.with_suffix(".json"))
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    given = _given(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python -m bench.scale", *words])
    text = ""
    try:
        for stages in measure_all(given):
            text = write(stages, given.report, command)
    except (OnceFailed, TimeoutError, OSError, ValueError, RuntimeError, IngestError, psutil.Error) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the server and its folder are gone, and what was measured is in the report", file=sys.stderr)
        return 130
    print(text)
    print(f"{given.report}, and a chart and the JSON beside it; every acknowledged event was stored and counted once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
