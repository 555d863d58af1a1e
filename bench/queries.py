"""How fast the promised queries are on a full database, and how much disk space they need.

`python -m bench.queries [--events N] [--json PATH]`; bench/README.md explains each figure. Exits with 1 if a latency
misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import asyncpg

from bench.fill import EVENT_BYTES, Filled, fill, tell
from bench.promised import Query, make_queries
from bench.queries_report import Results, Sizes, Storage, Timing, as_json, as_text
from bench.report import machine, write_json
from ingest.base.errors import IngestError
from ingest.postgres import migrations
from ingest.postgres.connections import close, connect
from ingest.postgres.embedded import EmbeddedPostgres

WARM_UP: Final = 10
STORAGE_ROWS: Final = 200_000

# Not safe in a power failure, and used only for loading: the server is restarted with the settings of `ingest dev`
# before anything is measured.
BULK_SETTINGS: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
    "work_mem": "128MB",
}


async def time_query(connection: asyncpg.Connection, query: Query, executions: int) -> Timing:
    """Time of asyncpg's `fetch`, including planning and the round trip; with a warm cache."""
    durations: list[float] = []
    floors: list[float] = []
    rows = 0
    for n in range(-WARM_UP, executions):
        arguments = query.arguments(n % executions)
        async with connection.transaction():
            if query.as_anon:
                await connection.execute("SET LOCAL ROLE anon")
                await connection.execute("SELECT set_config('app.session_token', $1, true)", arguments[0])
            begun = time.perf_counter()
            await connection.fetch("SELECT 1")
            started = time.perf_counter()
            found = await connection.fetch(query.sql, *arguments)
            ended = time.perf_counter()
        if n >= 0:
            durations.append((ended - started) * 1000)
            floors.append((started - begun) * 1000)
            rows += len(found)
    scans = await _scans(connection, query)
    figures = (*_p50_p95(durations), *_p50_p95(floors), rows / executions)
    return Timing(query.what, executions, *figures, query.target_ms, scans)


def _p50_p95(durations: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(durations, n=20, method="inclusive")
    return cuts[9], cuts[18]


async def _scans(connection: asyncpg.Connection, query: Query) -> list[str]:
    arguments = query.arguments(0)
    async with connection.transaction():
        if query.as_anon:
            await connection.execute("SET LOCAL ROLE anon")
            await connection.execute("SELECT set_config('app.session_token', $1, true)", arguments[0])
        [plan] = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *arguments))
    return sorted({_any_day(name) for name in _scanned(plan["Plan"])})


def _any_day(name: str) -> str:
    """The name of a partition, or of an index on it, without its day."""
    return re.sub(r"_\d{8}(?!\d)", "_<day>", name)


def _scanned(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    elif node["Node Type"].endswith("Seq Scan"):
        yield f"{node['Relation Name']} whole"
    for child in node.get("Plans", ()):
        yield from _scanned(child)


async def insert_speed(connection: asyncpg.Connection, size: int, seconds: float) -> float:
    """Events a second by plain INSERTs of `size` rows, one after another, each durable when it returns."""
    places = (f"(${4 * n + 1}, ${4 * n + 2}, ${4 * n + 3}, ${4 * n + 4})" for n in range(size))
    sql = f"INSERT INTO analytics.events (type, name, session_id, properties) VALUES {', '.join(places)}"
    inserted, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        arguments: list[object] = []
        for n in range(inserted, inserted + size):
            arguments += ["user_action", "demo_request", f"plain_{n // 8}", f'{{"page": "/demo", "position": {n}}}']
        await connection.execute(sql, *arguments)
        inserted += size
    return inserted / (time.monotonic() - started)


_PARTIAL_INDEXES: Final = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index AS i
JOIN pg_class AS t ON t.oid = i.indrelid
WHERE i.indpred IS NOT NULL AND t.relkind = 'r' AND t.reltuples >= 1000
  AND (t.relname !~ '^events_\\d{8}$' OR t.relname = $1)
ORDER BY 1
"""


async def compare_indexes(connection: asyncpg.Connection, filled: Filled) -> list[Sizes]:
    """Compare every partial index of a table with rows, for events of one closed day, with the same without WHERE."""
    sizes = []
    for name, definition in await connection.fetch(_PARTIAL_INDEXES, f"events_{filled.days[-3]:%Y%m%d}"):
        # It grew row by row, and its twin did not, so it is rebuilt first.
        await connection.execute(f"REINDEX INDEX {name}")
        full = re.sub(
            r"^CREATE (?:UNIQUE )?INDEX \S+ ON (.*) WHERE .*$", r"CREATE INDEX bench_twin ON \1", definition
        )
        async with connection.transaction():
            await connection.execute(full)
            schema = name.partition(".")[0]
            ours, other = await connection.fetchrow(
                "SELECT pg_relation_size($1::text::regclass), pg_relation_size($2::text::regclass)",
                name,
                f"{schema}.bench_twin",
            )
            await connection.execute(f"DROP INDEX {schema}.bench_twin")
        sizes.append(Sizes(_any_day(name), ours, other))
    return sizes


# jsonb's text has a space after : and , that no SDK sends. None of the values contains these sequences.
_STORAGE_TABLES: Final = """
CREATE TABLE bench.as_jsonb (properties jsonb NOT NULL, context jsonb NOT NULL);
CREATE TABLE bench.as_text (properties text NOT NULL, context text NOT NULL);
INSERT INTO bench.as_jsonb SELECT properties, context FROM analytics.events WHERE batch_id IS NOT NULL LIMIT {rows};
INSERT INTO bench.as_text SELECT
    replace(replace(properties::text, '": ', '":'), ', "', ',"'),
    replace(replace(context::text, '": ', '":'), ', "', ',"') FROM bench.as_jsonb
"""
_STORAGE: Final = """
SELECT count(*) AS rows, current_setting('default_toast_compression') AS compression,
    avg((pg_column_compression(properties) IS NOT NULL)::int
        + (pg_column_compression(context) IS NOT NULL)::int) / 2 AS compressed,
    pg_total_relation_size('bench.as_jsonb') AS table_jsonb, pg_total_relation_size('bench.as_text') AS table_text,
    avg(pg_column_size(properties) + pg_column_size(context)) AS value_jsonb,
    (SELECT avg(pg_column_size(properties) + pg_column_size(context)) FROM bench.as_text) AS value_text
FROM bench.as_jsonb
"""


async def compare_storage(connection: asyncpg.Connection, filled: Filled) -> Storage:
    await connection.execute(_STORAGE_TABLES.format(rows=min(STORAGE_ROWS, filled.events)))
    row = await connection.fetchrow(_STORAGE)
    return Storage(
        row["rows"],
        row["compression"],
        float(row["compressed"]),
        Sizes("table", row["table_jsonb"], row["table_text"]),
        Sizes("properties and context of an event", round(row["value_jsonb"]), round(row["value_text"])),
    )


# The run.


@contextmanager
def fresh_folder(events: int) -> Iterator[Path]:
    """A temporary folder with room for this many events, removed afterwards. Raises OSError if there is no room."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-bench-"))
    try:
        free, needed = shutil.disk_usage(folder).free, events * EVENT_BYTES * 2 + 1_000_000_000
        if free < needed:
            raise OSError(f"{folder} has {free / 1e9:.1f} GB free, and {events:,} events need {needed / 1e9:.1f} GB")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    try:
        postgres.start()
        yield postgres
    finally:
        postgres.stop()


async def load(dsn: str, events: int) -> Filled:
    connection = await connect(dsn, purpose="bench")
    try:
        await migrations.migrate(connection)
        return await fill(connection, events)
    finally:
        await close(connection)


_EVENTS_BYTES: Final = """
SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('analytics.events') WHERE isleaf
"""


async def measure(dsn: str, filled: Filled, given: argparse.Namespace) -> tuple[str, Results]:
    """What was measured, and the version of the server."""
    connection = await connect(dsn, purpose="bench")
    try:
        events_bytes = await connection.fetchval(_EVENTS_BYTES)
        timings = []
        for query in await make_queries(connection, filled):
            timings.append(await time_query(connection, query, given.executions))
            tell(f"{query.what.strip()}: p95 {timings[-1].p95_ms:.2f} ms")
        inserts = {
            "plain INSERT of 10 rows": await insert_speed(connection, 10, given.insert_seconds),
            "plain INSERT of single rows": await insert_speed(connection, 1, given.insert_seconds),
        }
        tell("plain INSERTs measured")
        indexes = await compare_indexes(connection, filled)
        storage = await compare_storage(connection, filled)
        version = str(await connection.fetchval("SHOW server_version")).split()[0]
        return version, Results(filled, events_bytes, timings, inserts, indexes, storage)
    finally:
        await close(connection)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.queries", description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="how many events to load [10000000]")
    parser.add_argument("--executions", type=int, default=200, help="of each query [200]")
    parser.add_argument("--insert-seconds", type=float, default=5.0, help="length of each run of plain INSERTs [5]")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the JSON there instead of after the table")
    return parser


def run(given: argparse.Namespace) -> tuple[str, Results]:
    with fresh_folder(given.events) as folder:
        with running(EmbeddedPostgres(folder / "postgres", BULK_SETTINGS)) as postgres:
            filled = asyncio.run(load(postgres.dsn, given.events))
        with running(EmbeddedPostgres(folder / "postgres")) as postgres:
            return asyncio.run(measure(postgres.dsn, filled, given))


def main() -> int:
    given = _parser().parse_args()
    try:
        version, results = run(given)
    except (OSError, IngestError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the server and its folder are gone", file=sys.stderr)
        return 130
    where = machine(version)
    print(as_text(where, results))
    write_json(as_json(where, results), given.json)
    return 0 if all(timing.met for timing in results.timings) else 1


if __name__ == "__main__":
    sys.exit(main())
