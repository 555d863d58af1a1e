"""Assignments made by the database."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg

EXPERIMENT = UUID("00000000-0000-4000-8000-0000000000e1")


async def make_experiment(connection: asyncpg.Connection, name: str = "test", **columns: Any) -> None:
    """Create a running experiment with control and b, unless the columns say otherwise."""
    row = {"name": name, "status": "running", "test_variants": [{"id": "b"}]} | columns
    if name == "test":
        row = {"id": str(EXPERIMENT)} | row
    await connection.execute(
        f"INSERT INTO experiments.experiments ({', '.join(row)}) SELECT {', '.join(row)}"
        " FROM jsonb_populate_record(NULL::experiments.experiments, $1)",
        json.dumps(row),
    )


async def assign(connection: asyncpg.Connection, **unit: Any) -> dict[str, str]:
    """The variant that the unit gets in each experiment."""
    if "attributes" in unit:
        unit["attributes"] = json.dumps(unit["attributes"])
    arguments = ", ".join(f"{name} := ${place}" for place, name in enumerate(unit, 1))
    answer = await connection.fetchval(f"SELECT auto_assign_experiments({arguments})", *unit.values())
    return {name: given["variant_id"] for name, given in json.loads(answer).items()}
