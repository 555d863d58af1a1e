"""The database accepts every statement in sql/queries: each is prepared as loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

import asyncpg
import pytest

from ingest.base.config import DIMENSION_NAMES
from ingest.features.stats.journeys import funnel_query
from ingest.postgres.queries import fill, load_queries, read_queries, sql_folder
from ingest.rollup.rollup import batch_ranges, rows_query

FILES = sorted(path.stem for path in (sql_folder() / "queries").glob("*.sql"))
DAY = date(2026, 1, 2)
FLUSHES = batch_ranges([{"journal": 1, "first_record": 3, "last_record": 5}])
MERGE = {"table": "analytics.events", "columns": '"id", "created_at", "name", "type"', "servers": "'^08'"}
# Queries with arguments, as filled in by the service. The parts of the funnel are prepared as a whole.
FILLED: dict[str, dict[str, Callable[[str], str]]] = {
    "certificate": {"counts": lambda query: fill(query, batches=FLUSHES)},
    "event_keys": {
        "lock_and_look": lambda query: fill(query, starts="2026-01-02T03:04:00+00:00", seconds=60),
    },
    "merge": dict.fromkeys(("begin", "insert_all", "insert_each", "copy_recent"), lambda query: fill(query, **MERGE)),
    "rollup": {
        "events_in_pages": lambda _: rows_query(
            "events_in_pages", DAY, DIMENSION_NAMES, start=7, end=9, batches=FLUSHES
        ),
        "events_of_batches": lambda _: rows_query(
            "events_of_batches", DAY, ["os"], between="batch_id BETWEEN 1 AND 2", end=7, batches=FLUSHES
        ),
        "events_within": lambda _: rows_query("events_within", DAY, [], batches=batch_ranges([])),
    },
    "stats_events": {
        "funnel": lambda _: funnel_query(2),
        **dict.fromkeys(
            ("funnel_condition", "funnel_begin", "funnel_step", "funnel_first", "funnel_count"),
            lambda _: funnel_query(10),
        ),
        **dict.fromkeys(
            ("sessions", "entry_pages"),
            lambda query: fill(query, among="AND visit IN (SELECT visit FROM picked_visits)"),
        ),
        "entries": lambda query: fill(query, among=""),
    },
    "transactions": {
        "on_behalf": lambda query: re.sub(r"\{[a-z_]+\}", "E'x'", query),
    },
}
# Queries that need the type of each argument, as they may not use all of them.
TYPES = {"kpis": "(timestamptz, timestamptz, text)"}


@pytest.mark.parametrize("file", FILES)
async def test_every_statement_is_one(connection: asyncpg.Connection, file: str):
    await connection.execute(
        f"SELECT analytics.ensure_events_partition('{DAY}');"
        "CREATE SCHEMA supabase_migrations;"
        "CREATE TABLE supabase_migrations.schema_migrations (version text, name text);"
        "ALTER TABLE ingest.migrations RENAME TO had_migrations;"
        "ALTER TABLE ingest.had_migrations RENAME CONSTRAINT migrations_pkey TO had_pkey"
    )
    filled = FILLED.get(file, {})
    loaded = read_queries(file)
    assert {query.name for query in loaded if query.arguments} == filled.keys()
    transaction = connection.transaction()
    await transaction.start()
    for query in loaded:
        text = filled[query.name](query.text) if query.arguments else query.text
        # In the order of their file, as one may need a table created by an earlier one.
        await connection.execute("SAVEPOINT merge")
        try:
            if is_query(text):
                await connection.execute(f"PREPARE one {TYPES.get(file, '')} AS {text}; DEALLOCATE one")
            else:
                await connection.execute(text)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{file}.sql, {query.name}: {error}")
    await transaction.rollback()


def is_query(text: str) -> bool:
    """Whether it can be prepared: no DDL, no DO, not several statements."""
    return text.split()[0] in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE") and ";" not in text


def test_statistics_know_every_dimension():
    loaded = load_queries("stats_events")
    for name in ("count_slices", "rank_events", "rank_people", "rank_pages", "retention"):
        assert set(re.findall(r"\$6::jsonb ->> '(\w+)' IS NULL", loaded[name])) == set(DIMENSION_NAMES), name
        assert set(re.findall(r"'(\w+)' <> ALL \(\$7::text\[\]\)", loaded[name])) == set(DIMENSION_NAMES), name
    assert set(re.findall(r"WHEN '(\w+)' THEN left", loaded["rank_events"])) == set(DIMENSION_NAMES)
    # Pages have a query of their own.
    by_slice = set(re.findall(r"WHEN '(\w+)' THEN \w+", loaded["rank_people"]))
    assert by_slice >= set(DIMENSION_NAMES) - {"page_path"}
