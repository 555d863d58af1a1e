"""The seed data, and the queries of docs/queries as a person runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from tests.support.service import environment

INGEST = [sys.executable, "-m", "ingest"]
ANCHOR = datetime(2026, 3, 11, 15, 30, tzinfo=UTC)
"""A Wednesday afternoon."""


async def load(connection: asyncpg.Connection, seed: int = 1, anchor: datetime = ANCHOR) -> dict[str, int]:
    """Rows by table, as returned by the function."""
    async with connection.transaction():
        await connection.execute("SET LOCAL app.environment = 'test'")
        rows = await connection.fetch("SELECT * FROM ingest.load_seed_data($1, $2)", seed, anchor)
    return {row["table_name"]: row["inserted"] for row in rows}


def ask_file(query: Path, url: str) -> str:
    """The output of `ingest psql -f`."""
    ran = subprocess.run(
        [*INGEST, "psql", "-f", str(query)],
        env=environment(url, PAGER="cat"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


def rows_of(table: str) -> list[list[str]]:
    """The rows in psql's output."""
    lines = table.splitlines()
    assert set(lines[1]) <= set("-+") and lines[-1] == "" and re.fullmatch(r"\(\d+ rows\)", lines[-2]), table
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:-2]]
