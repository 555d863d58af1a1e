"""If the user was not granted the roles of requests, the start reports it."""

from __future__ import annotations

import secrets
from itertools import combinations

import asyncpg
import pytest

from ingest.postgres import connections
from ingest.service.stores import _report_missing_roles

ROLES = ("anon", "authenticated", "service_role")


@pytest.mark.parametrize("granted", [some for size in range(4) for some in combinations(ROLES, size)])
async def test_missing_grants_are_reported_in_one_line(
    connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture, granted: tuple[str, ...]
):
    name = f"collector_{secrets.token_hex(4)}"
    await connection.execute(f"CREATE ROLE {name}")
    try:
        for role in granted:
            await connection.execute(f"GRANT {role} TO {name}")
        await connection.execute(f"SET SESSION AUTHORIZATION {name}")
        missing = [role for role in ROLES if role not in granted]
        assert await connections.missing_roles(connection) == missing
        await _report_missing_roles(connection)
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == bool(missing)
        assert all(f"GRANT {', '.join(missing)} TO {name}" in line for line in errors)
    finally:
        await connection.execute("RESET SESSION AUTHORIZATION")
        await connection.execute(f"DROP ROLE {name}")
