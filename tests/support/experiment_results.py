"""An experiment with results."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from ingest.features.experiments import store
from tests.support.sql_assignment import make_experiment

EXPERIMENT = UUID("00000000-0000-4000-8000-0000000000e1")


async def shown(connection: asyncpg.Connection, variant: str, at: str | None, **unit: Any) -> None:
    await connection.execute(
        "INSERT INTO experiments.assignments"
        " (experiment_id, user_id, session_id, variant_id, first_exposure_at, last_exposure_at)"
        " VALUES ($1, $2, $3, $4, $5::text::timestamptz, $5::text::timestamptz)",
        EXPERIMENT, unit.get("user_id"), unit.get("session_id"), variant, at,
    )  # fmt: skip


async def event(connection: asyncpg.Connection, name: str, at: str, **unit: Any) -> None:
    user_id = unit.get("user_id")
    await connection.execute(
        "INSERT INTO analytics.events (type, name, user_id, session_id, created_at)"
        " VALUES ('conversion', $1, $2, $3, $4::text::timestamptz)",
        name, str(user_id) if user_id is not None else None, unit.get("session_id"), at,
    )  # fmt: skip


@pytest.fixture
async def running(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute("SELECT analytics.ensure_events_partition('2026-01-02')")
    await make_experiment(connection)
    return connection


async def counted(connection: asyncpg.Connection, name: str = "buy") -> dict[str, tuple[int, int]]:
    found = await store.count(connection, EXPERIMENT, name)
    return {count.variant: (count.exposures, count.conversions) for count in found.counts}


NINE, TEN, ELEVEN = (f"2026-01-02 {hour:02}:00+00" for hour in (9, 10, 11))
