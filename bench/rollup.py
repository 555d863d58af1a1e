"""Whether rollups keep up with ingestion, and what they cost compared with it.

`python -m bench.rollup [--quick] [--json PATH]`; bench/README.md explains each figure. Exits with 1 if an
acknowledged event was not stored and counted exactly once, whatever the speed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg
import psutil

from bench import report
from bench.fill import Filled, grow
from bench.measure import OnceFailed
from bench.meter import wait_leader
from bench.queries import BULK_SETTINGS, running
from bench.queries import load as fill_database
from bench.report import Line
from bench.rolled import Rolled, Sent, measure_load, send_all_it_takes, send_steadily
from bench.service import Service, running_service
from bench.stats_api import ADMIN_KEY, Timing, measure_dashboard
from bench.watch import OtherCpu
from ingest.base.config import Config
from ingest.base.config_sources import load as load_config
from ingest.base.errors import IngestError
from ingest.postgres.connections import close, connect
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.rollup import kpis, rebuild, slices, totals
from ingest.rollup.buckets import Room

T = TypeVar("T")

LAG_TARGET_SECONDS: Final = 3.0
SHARE_TARGET: Final = 0.2
FLAT_TARGET: Final = 0.2
WARM_UP_SECONDS: Final = 3.0
PARTS: Final = ("steady", "full", "stored", "dashboard")
DASHBOARD_TARGET_MS: Final = 50.0


# A full table.


def fill_postgres(events: int, folder: Path, *, roll_up: bool = False) -> Filled:
    """Load events over thirty days into a database, and stop its server again. `roll_up`: with aggregates and KPIs as
    the service makes them, including uniques and dimensions."""
    with running(EmbeddedPostgres(folder, BULK_SETTINGS)) as postgres:
        return asyncio.run(_fill(postgres.dsn, events, load_config({}, {}, folder) if roll_up else None))


def grow_postgres(filled: Filled, events: int, folder: Path) -> Filled:
    """Load further events into a database that `fill_postgres` has filled, until there are so many of them. Their
    aggregates and KPIs are left to `roll_up_postgres`."""
    with running(EmbeddedPostgres(folder, BULK_SETTINGS)) as postgres:
        return asyncio.run(_with_connection(postgres.dsn, partial(grow, filled=filled, events=events)))


def roll_up_postgres(filled: Filled, folder: Path, kpi_seconds: float = math.inf) -> None:
    """Make the aggregates of a filled database, and as many of its KPIs of past windows as this takes."""
    config = load_config({}, {}, folder)
    with running(EmbeddedPostgres(folder, BULK_SETTINGS)) as postgres:
        asyncio.run(
            _with_connection(postgres.dsn, partial(roll_up, filled=filled, config=config, kpi_seconds=kpi_seconds))
        )


async def _with_connection(dsn: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    connection = await connect(dsn, purpose="bench")
    try:
        return await work(connection)
    finally:
        await close(connection)


async def _fill(dsn: str, events: int, config: Config | None) -> Filled:
    filled = await fill_database(dsn, events)
    connection = await connect(dsn, purpose="bench")
    try:
        # The loaded events name the first journal as theirs. It must not be the collector's.
        await connection.execute("INSERT INTO analytics.journals (identity) VALUES (gen_random_uuid())")
        if config is not None:
            await roll_up(connection, filled, config)
        return filled
    finally:
        await close(connection)


async def roll_up(
    connection: asyncpg.Connection, filled: Filled, config: Config, kpi_seconds: float = math.inf
) -> None:
    """Make the aggregates, their totals and KPIs of all days again, as the service does."""
    room = Room(names=config.rollup_event_names, values=config.rollup_dimension_values)
    await rebuild.note(connection, filled.since, filled.until)
    while await rebuild.run_once(connection, config.rollup_dimensions, room):
        pass
    await totals.run_once(connection, datetime.now(UTC), seconds=math.inf)
    await slices.run_once(connection, datetime.now(UTC), seconds=math.inf)
    await kpis.run_once(connection, datetime.now(UTC), kpis.load(), seconds=kpi_seconds)
    for table in ("event_aggregations", "bucket_totals", "visit_slices", "metrics"):
        await connection.execute(f"VACUUM ANALYZE analytics.{table}")


# The run.


class Results(NamedTuple):
    """The results; None or empty for what was left out."""

    steady: Rolled | None
    full: Rolled | None
    stored: dict[int, Rolled]
    """By number of events in the table."""
    dashboard: list[Timing]
    others_cores: float


class Measurements:
    """Runs one measurement after the other, and reports each on standard error."""

    def __init__(self) -> None:
        self.others_cores = 0.0

    def measure(self, what: str, service: Service, send: Callable[[Service], Sent]) -> Rolled:
        others = OtherCpu(service.processes)
        rolled = measure_load(service, send)
        self.others_cores = max(self.others_cores, cores := others.cores())
        print(f"{what}: {rolled.events:,} events; others used {cores:.2f} cores", file=sys.stderr, flush=True)
        return rolled


@contextlib.contextmanager
def warm_service(per_second: float, prepare: Callable[[Path], object] | None = None) -> Iterator[Service]:
    with running_service(prepare=prepare) as service:
        wait_leader(service)
        measure_load(service, partial(send_steadily, per_second=per_second, seconds=WARM_UP_SECONDS))
        yield service


def measure_all(given: argparse.Namespace) -> tuple[str, Results]:
    wanted = given.only or PARTS
    measurements = Measurements()
    steadily = partial(send_steadily, per_second=given.rate, seconds=given.seconds)
    steady = full = None
    stored: dict[int, Rolled] = {}
    version = ""
    if "steady" in wanted or "full" in wanted:
        with warm_service(given.rate) as service:
            version = service.database.version()
            if "steady" in wanted:
                steady = measurements.measure("steady load", service, steadily)
            if "full" in wanted:
                full = measurements.measure(
                    "full load", service, partial(send_all_it_takes, seconds=given.full_seconds)
                )
    if "stored" in wanted:
        for events in given.stored:
            with warm_service(given.stored_rate, partial(fill_postgres, events)) as service:
                version = service.database.version()
                send = partial(send_steadily, per_second=given.stored_rate, seconds=given.stored_seconds)
                stored[events] = measurements.measure(f"with {events:,} events stored", service, send)
    dashboard: list[Timing] = []
    if "dashboard" in wanted:
        prepare = partial(fill_postgres, given.dashboard_events, roll_up=True)
        with running_service("--admin-keys", ADMIN_KEY, prepare=prepare) as service:
            version = service.database.version()
            dashboard = measure_dashboard(service, given.executions)
    return version, Results(steady, full, stored, dashboard, measurements.others_cores)


# The report.


def lines(results: Results) -> list[Line]:
    shown: list[Line] = []
    if results.steady:
        shown += _lag_lines(results.steady)
    if results.full:
        shown += _share_lines(results.full)
    if results.stored:
        shown += _stored_lines(results.stored)
    return shown + [_dashboard_line(timing) for timing in results.dashboard]


def _dashboard_line(timing: Timing) -> Line:
    target, verdict = "", ""
    if timing.from_aggregates:
        target, verdict = f"< {DASHBOARD_TARGET_MS:g} ms", _verdict(timing.p95_ms < DASHBOARD_TARGET_MS)
    what = f"{timing.what}: p95 (p50)"
    return Line(what, f"{timing.p95_ms:.1f} ({timing.p50_ms:.1f}) ms", target=target, verdict=verdict)


def _lag_lines(rolled: Rolled) -> list[Line]:
    return [
        Line(
            f"lag from storage to rollup at {rolled.per_second:,.0f} events/s, p99",
            f"{rolled.lag_p99:.2f} s",
            target=f"< {LAG_TARGET_SECONDS:g} s",
            verdict=_verdict(rolled.lag_p99 < LAG_TARGET_SECONDS),
        ),
        Line("  p50; longest", f"{rolled.lag_p50:.2f} s; {rolled.lag_longest:.2f} s"),
        Line("  everything in the aggregates after the last answer", f"{rolled.rolled_up_after:.1f} s"),
        _cpu_line(rolled),
    ]


def _share_lines(rolled: Rolled) -> list[Line]:
    return [
        Line(
            f"CPU of rollup at full load ({rolled.per_second:,.0f} events/s), µs an event, against ingestion",
            f"{rolled.rollup_us:.1f}",
            f"{rolled.ingestion_us:.1f}",
            f"{rolled.share:.2f}",
            f"<= {SHARE_TARGET:g}",
            _verdict(rolled.share <= SHARE_TARGET),
        ),
        Line("  lag p50; p99", f"{rolled.lag_p50:.2f} s; {rolled.lag_p99:.2f} s"),
        Line("  everything in the aggregates after the last answer", f"{rolled.rolled_up_after:.1f} s"),
        _cpu_line(rolled),
    ]


def _stored_lines(stored: dict[int, Rolled]) -> list[Line]:
    first = next(iter(stored.values()))
    shown: list[Line] = []
    for events, rolled in stored.items():
        ratio = rolled.rollup_us / first.rollup_us
        what = f"CPU of rollup with {events:,} events stored, µs an event"
        if rolled is first:
            shown.append(Line(what, f"{rolled.rollup_us:.1f}"))
        else:
            verdict = _verdict(abs(ratio - 1) <= FLAT_TARGET)
            target = f"1 ± {FLAT_TARGET:g}"
            shown.append(
                Line(what, f"{rolled.rollup_us:.1f}", f"{first.rollup_us:.1f}", f"{ratio:.2f}", target, verdict)
            )
        shown.append(_cpu_line(rolled))
    return shown


def _cpu_line(rolled: Rolled) -> Line:
    cpu = rolled.cpu_us
    figures = (cpu.worker, cpu.worker_backend, cpu.collector, cpu.collector_backends, cpu.shared)
    return Line(
        "  CPU, µs an event: worker + its backend; collector + its backends; rest of Postgres",
        "{:.1f} + {:.1f}; {:.1f} + {:.1f}; {:.1f}".format(*figures),
    )


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def as_json(where: dict[str, Any], results: Results) -> dict[str, Any]:
    """Everything; units are in the names, lags in seconds."""
    return {
        "machine": where,
        "steady": _plain(results.steady),
        "full": _plain(results.full),
        "stored": {str(events): _plain(rolled) for events, rolled in results.stored.items()},
        "dashboard": [timing._asdict() for timing in results.dashboard],
        "others_cores": results.others_cores,
        "table": [line._asdict() for line in lines(results)],
    }


def _plain(rolled: Rolled | None) -> dict[str, Any] | None:
    if rolled is None:
        return None
    sums = {"rollup_us": rolled.rollup_us, "ingestion_us": rolled.ingestion_us, "share": rolled.share}
    return {**rolled._asdict(), "cpu_us": rolled.cpu_us._asdict(), **sums}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.rollup", description=__doc__)
    parser.add_argument("--rate", type=float, default=10_000.0, help="events a second of the steady load [10000]")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the steady load [60]")
    parser.add_argument("--full-seconds", type=float, default=20.0, help="length of the full load [20]")
    parser.add_argument(
        "--stored", type=int, nargs="+", default=[1_000_000, 20_000_000], metavar="N",
        help="events in the table when the cost is measured; the first is compared with [1000000 20000000]",
    )  # fmt: skip
    parser.add_argument("--stored-rate", type=float, default=5_000.0, help="events a second meanwhile [5000]")
    parser.add_argument("--stored-seconds", type=float, default=30.0, help="for so long [30]")
    parser.add_argument(
        "--dashboard-events", type=int, default=10_000_000, help="in the table for the dashboard [10000000]"
    )
    parser.add_argument("--executions", type=int, default=200, help="of each question of the dashboard [200]")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    parser.add_argument("--quick", action="store_true", help="little of everything; too noisy to quote")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    return parser


def main() -> int:
    given = _parser().parse_args()
    if given.quick:
        given.seconds, given.full_seconds, given.stored_seconds = 8.0, 3.0, 5.0
        given.stored, given.dashboard_events, given.executions = [20_000, 200_000], 20_000, 20
    try:
        version, results = measure_all(given)
    except (OnceFailed, TimeoutError, OSError, IngestError, psutil.NoSuchProcess) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    where = report.machine(version)
    print(report.table(where, lines(results), results.others_cores))
    if results.steady or results.full or results.stored:
        print("\nevery acknowledged event was counted once")
    report.write_json(as_json(where, results), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
