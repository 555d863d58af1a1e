"""A server prepared like Supabase's: its settings, the same files as everywhere, and none of its objects changed."""

import os
import secrets
import subprocess
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from ingest.postgres import connections, migrations
from ingest.postgres.embedded import EmbeddedPostgres
from ingest.postgres.queries import sql_folder
from ingest.postgres.typescript import SCHEMAS
from tests.support.databases import Server, execute

SUPABASE = Path(__file__).parents[2] / "deploy" / "supabase"
FILES = sorted((sql_folder() / "migrations").glob("*.sql"))
API_ROLES = ("anon", "authenticated", "service_role")

# Ownership is as there: `auth` belongs to a role that the migrating role cannot become, and that has granted it the
# use of the schema without grant option. Objects that the migrating role creates in `public` are open to everybody.
PREPARED = """
CREATE SCHEMA extensions;
CREATE SCHEMA auth AUTHORIZATION {theirs};
SET ROLE {theirs};
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text, raw_app_meta_data jsonb);
CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE AS
    $$SELECT coalesce(nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), ''))::jsonb$$;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS
    $$SELECT coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid$$;
CREATE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE AS
    $$SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'$$;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role, {ours};
RESET ROLE;
GRANT USAGE ON SCHEMA public, extensions TO anon, authenticated, service_role;
GRANT anon, authenticated, service_role TO {ours} WITH ADMIN OPTION;
SET ROLE {ours};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
RESET ROLE;
"""
THEIRS = """
SELECT 'function', oid::regprocedure::text, prosrc, proowner::regrole::text, proacl::text
FROM pg_proc WHERE pronamespace = 'auth'::regnamespace
UNION ALL
SELECT 'schema', nspname, nspowner::regrole::text, nspacl::text, NULL
FROM pg_namespace WHERE nspname IN ('auth', 'extensions')
UNION ALL
SELECT 'role', rolname, rolsuper::text, rolbypassrls::text, rolinherit || ' ' || rolcanlogin || ' ' || rolcreaterole
FROM pg_roles WHERE rolname IN ('anon', 'authenticated', 'service_role', 'authenticator')
ORDER BY 1, 2
"""


class Prepared:
    """A database as Supabase provides it: its URL as the migrating role, and the role with all rights there."""

    def __init__(self, url: str, administrator: asyncpg.Connection) -> None:
        self.url = url
        self.administrator = administrator


@pytest.fixture
async def supabase(postgres: Server, direct_empty_url: str, template: str) -> AsyncIterator[Prepared]:
    # Directly: the tests' pooler logs in as one user for everybody.
    # The template's migration has created the three roles, unless the server had them.
    word = secrets.token_hex(4)
    ours, theirs = f"postgres_{word}", f"supabase_admin_{word}"
    name = urlsplit(direct_empty_url).path[1:]
    administrator = await connections.connect(direct_empty_url, purpose="tests")
    had_authenticator = await administrator.fetchval("SELECT true FROM pg_roles WHERE rolname = 'authenticator'")
    if not had_authenticator:
        await administrator.execute("CREATE ROLE authenticator LOGIN NOINHERIT; GRANT anon TO authenticator")
    await administrator.execute(f"CREATE ROLE {theirs} CREATEROLE")
    await administrator.execute(f"CREATE ROLE {ours} LOGIN PASSWORD '{ours}' CREATEROLE CREATEDB BYPASSRLS")
    await administrator.execute(f"ALTER DATABASE {name} OWNER TO {ours}")
    await administrator.execute(PREPARED.format(ours=ours, theirs=theirs))
    parts = urlsplit(direct_empty_url)
    hosts = parts.netloc.rpartition("@")[2]
    yield Prepared(f"{parts.scheme}://{ours}:{ours}@{hosts}{parts.path}?{parts.query}", administrator)
    await administrator.execute(f"REASSIGN OWNED BY {ours}, {theirs} TO CURRENT_USER; DROP OWNED BY {ours}, {theirs}")
    await administrator.close()
    await execute(postgres.dsn, f"DROP ROLE {ours}", f"DROP ROLE {theirs}")
    if not had_authenticator:
        await execute(postgres.dsn, "DROP ROLE authenticator")


def psql(url: str, file: Path) -> None:
    """Apply a file in one transaction, like the CLI."""
    program = str(EmbeddedPostgres(Path("unused")).psql_path)
    arguments = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "-1", "-f", str(file)]
    command = connections.psql_command(url, program, arguments)
    environment = {**os.environ, **connections.psql_environment(url)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_settings():
    config: dict[str, Any] = tomllib.loads((SUPABASE / "config.toml").read_text())
    assert set(config["api"]["schemas"]) == set(SCHEMAS)
    assert config["api"]["max_rows"] == 1000
    assert config["db"]["pooler"]["enabled"] is True
    assert config["auth"]["email"]["enable_confirmations"] is True
    assert config["auth"]["enable_anonymous_sign_ins"] is False


def test_one_set_of_files():
    linked = {path.name: path.read_bytes() for path in (SUPABASE / "migrations").iterdir()}
    assert linked == {path.name: path.read_bytes() for path in FILES}
    # File names that the CLI accepts as migrations; it skips others with a message.
    assert all(path.name.partition("_")[0].isdecimal() for path in FILES)


async def test_files_apply_with_psql_and_change_none_of_its_objects(supabase: Prepared):
    before = await supabase.administrator.fetch(THEIRS)
    for file in FILES:
        psql(supabase.url, file)
    assert await supabase.administrator.fetch(THEIRS) == before
    owned = "SELECT count(*) FROM pg_class WHERE relnamespace = 'auth'::regnamespace AND relkind = 'r'"
    assert await supabase.administrator.fetchval(owned) == 1


PRIVILEGES = """
SELECT role, 'table' AS kind, relation.oid::regclass::text AS object, privilege
FROM unnest($1::text[]) AS role, pg_class AS relation,
    unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS privilege
WHERE relation.relkind IN ('r', 'p', 'v') AND relation.relnamespace = ANY ($2::text[]::regnamespace[])
    AND has_table_privilege(role, relation.oid, privilege)
UNION ALL
SELECT role, 'sequence', sequence.oid::regclass::text, privilege
FROM unnest($1::text[]) AS role, pg_class AS sequence, unnest('{USAGE,SELECT,UPDATE}'::text[]) AS privilege
WHERE sequence.relkind = 'S' AND sequence.relnamespace = ANY ($2::text[]::regnamespace[])
    AND has_sequence_privilege(role, sequence.oid, privilege)
UNION ALL
SELECT role, 'function', function.oid::regprocedure::text, 'EXECUTE'
FROM unnest($1::text[]) AS role, pg_proc AS function
WHERE function.pronamespace = ANY ($2::text[]::regnamespace[])
    AND has_function_privilege(role, function.oid, 'EXECUTE')
"""


async def privileges(connection: asyncpg.Connection) -> set[tuple[str, ...]]:
    return {tuple(row) for row in await connection.fetch(PRIVILEGES, API_ROLES, [*SCHEMAS, "ingest"])}


async def test_its_default_privileges_give_nobody_more(supabase: Prepared, connection: asyncpg.Connection):
    """On Supabase everything created in `public` is granted to the API's roles, unless the migrations revoke it."""
    ours = await connections.connect(supabase.url, purpose="tests")
    try:
        await migrations.migrate(ours)
    finally:
        await ours.close()
    assert await privileges(supabase.administrator) - await privileges(connection) == set()
    assert await privileges(connection) - await privileges(supabase.administrator) == set()


async def test_files_pushed_by_the_cli_are_recorded_and_not_applied_again(supabase: Prepared):
    ours = await connections.connect(supabase.url, purpose="tests")
    try:
        await ours.execute(
            "CREATE SCHEMA supabase_migrations;"
            "CREATE TABLE supabase_migrations.schema_migrations"
            " (version text PRIMARY KEY, statements text[], name text)"
        )
        push = "INSERT INTO supabase_migrations.schema_migrations (version, name) VALUES ($1, $2)"
        for file in FILES[:-1]:
            psql(supabase.url, file)
            version, _, name = file.stem.partition("_")
            await ours.execute(push, version, name)
        # A project's own file with the same number is a different one.
        await ours.execute(push, FILES[-1].stem.partition("_")[0], "something_else")
        # Applied again, the first file would fail, as its tables exist.
        assert await migrations.migrate(ours) == [file.name for file in FILES]
        await migrations.check(ours)
    finally:
        await ours.close()
