"""The roles and the schema auth: created if missing, left unchanged if they are Supabase's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ingest.base.errors import MigrationError
from ingest.postgres import connections, migrations
from tests.support.databases import Server, execute, with_database
from tests.support.roles import acting, claims

ROLES = ["anon", "authenticated", "service_role"]

SUPABASE = """
CREATE SCHEMA auth;
CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb $$;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid $$;
CREATE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'of Supabase' $$;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
"""
"""The relevant parts of a Supabase project."""


@pytest.fixture
async def without_roles(postgres: Server) -> AsyncIterator[None]:
    """Without the roles on the server: other databases use them, so they are renamed meanwhile."""
    connection = await connections.connect(postgres.dsn, purpose="tests")
    there = [row[0] for row in await connection.fetch("SELECT rolname FROM pg_roles WHERE rolname = ANY ($1)", ROLES)]
    for role in there:
        await connection.execute(f"ALTER ROLE {role} RENAME TO away_{role}")
    yield
    # The databases that used the new roles are gone by now.
    for role in ROLES:
        await connection.execute(f"DROP ROLE IF EXISTS {role}")
    for role in there:
        await connection.execute(f"ALTER ROLE away_{role} RENAME TO {role}")
    await connection.close()


@pytest.fixture
async def empty(without_roles: None, empty_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await connections.connect(empty_database_url, purpose="tests")
    yield opened
    await opened.close()


async def test_two_databases_at_once(without_roles: None, postgres: Server):
    names = [f"ingest_test_{secrets.token_hex(4)}" for _ in range(3)]
    for name in names:
        await execute(postgres.dsn, f"CREATE DATABASE {name} TEMPLATE template0")
    opened = [await connections.connect(with_database(postgres.dsn, name), purpose="tests") for name in names]
    try:
        await asyncio.gather(*[migrations.migrate(one) for one in opened])
        for one in opened:
            await migrations.check(one)
            made = await one.fetch("SELECT rolname, rolbypassrls FROM pg_roles WHERE rolname = ANY ($1)", ROLES)
            assert dict(made) == {"anon": False, "authenticated": False, "service_role": True}
    finally:
        for one in opened:
            await one.close()
        for name in names:
            await execute(postgres.dsn, f"DROP DATABASE {name}")


async def test_ordinary_role(empty: asyncpg.Connection):
    """Without CREATEROLE it gets an explanation; with it, it creates the roles and can switch to them."""
    role = f"ordinary_{secrets.token_hex(4)}"
    # In a transaction that is rolled back, so that nothing outlasts the test.
    transaction = empty.transaction()
    await transaction.start()
    await empty.execute(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}")
    await empty.execute(
        f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$"
    )
    await empty.execute(f"SET ROLE {role}")
    with pytest.raises(MigrationError, match=rf"role anon is missing, and {role} may not make it"):
        await migrations.migrate(empty)
    await empty.execute(f"RESET ROLE; ALTER ROLE {role} CREATEROLE; SET ROLE {role}")
    await migrations.migrate(empty)
    made = await empty.fetch("SELECT rolname, rolbypassrls FROM pg_roles WHERE rolname = ANY ($1)", ROLES)
    assert dict(made) == dict.fromkeys(ROLES, False)

    for name in ROLES:
        await empty.execute(f"SET SESSION AUTHORIZATION {role}")
        await empty.execute(f"SET LOCAL ROLE {name}")
        await empty.execute("RESET SESSION AUTHORIZATION")
    async with acting(empty, "anon"):
        await empty.execute("INSERT INTO marketing.leads (email) VALUES ('ada@example.com')")
    # Without BYPASSRLS, by policy.
    async with acting(empty, "service_role"):
        await empty.execute("INSERT INTO marketing.leads (email) VALUES ('ada@example.com')")
        assert await empty.fetchval("SELECT count(*) FROM marketing.leads") == 1
    await transaction.rollback()


async def test_existing_roles_are_used_by_members(empty: asyncpg.Connection):
    """If they exist, no right to create roles is needed."""
    role = f"ordinary_{secrets.token_hex(4)}"
    transaction = empty.transaction()
    await transaction.start()
    await empty.execute(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}")
    await empty.execute(
        f"DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$"
    )
    await empty.execute("CREATE ROLE anon; CREATE ROLE authenticated; CREATE ROLE service_role")
    await empty.execute(f"SET ROLE {role}")
    await migrations.migrate(empty)
    await transaction.rollback()


async def test_on_supabase_nothing_of_theirs_is_replaced(template: str, empty_database_url: str):
    # The template has created the roles on this server.
    connection = await connections.connect(empty_database_url, purpose="tests")
    functions = (
        "SELECT oid, proname, proacl, prosrc, proconfig FROM pg_proc WHERE pronamespace = 'auth'::regnamespace"
        " ORDER BY proname"
    )
    roles = "SELECT * FROM pg_roles WHERE rolname = ANY ($1) ORDER BY rolname"
    try:
        await connection.execute(SUPABASE)
        before = await connection.fetch(functions), await connection.fetch(roles, ROLES)
        await migrations.migrate(connection)
        assert (await connection.fetch(functions), await connection.fetch(roles, ROLES)) == before
        assert await connection.fetchval("SELECT auth.role()") == "of Supabase"

        # Supabase's default grants on new tables in `public` are revoked.
        assert (
            await connection.fetchval("SELECT has_table_privilege('anon', 'public.audit_logs', 'TRUNCATE')") is False
        )
        async with acting(connection, "authenticated", claims("admin")):
            assert await connection.execute("INSERT INTO marketing.leads (email) VALUES ('ada@example.com')")
            assert await connection.fetchval("SELECT email FROM marketing.leads") == "ada@example.com"
            assert await connection.fetchval("SELECT user_email FROM audit_logs") == "ours@example.com"
        async with acting(connection, "authenticated", claims(user_metadata={"role": "admin"})):
            assert await connection.fetch("SELECT FROM marketing.leads") == []
    finally:
        await connection.close()


async def test_schema_auth_without_its_functions(empty_database_url: str):
    connection = await connections.connect(empty_database_url, purpose="tests")
    try:
        await connection.execute("CREATE SCHEMA auth")
        with pytest.raises(MigrationError, match=r"schema auth has no auth\.jwt\(\)"):
            await migrations.migrate(connection)
    finally:
        await connection.close()
