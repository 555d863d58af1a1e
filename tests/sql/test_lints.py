"""The lints of Supabase's advisor, as our own queries: a user's first look at it finds nothing to fix."""

from __future__ import annotations

import asyncpg
import pytest

SCHEMAS = "('marketing', 'onboarding', 'analytics', 'experiments', 'whatsapp', 'public', 'ingest')"
LINTS = {
    # A call that depends only on the request, and is made for each row because it is not wrapped in a SELECT.
    "auth_rls_initplan": f"""
        SELECT tablename || '.' || policyname AS name
        FROM pg_policies, LATERAL (VALUES (qual), (with_check)) AS conditions (condition)
        WHERE schemaname IN {SCHEMAS} AND EXISTS (
            SELECT FROM unnest('{{auth.uid(,auth.jwt(,auth.role(,auth.email(,current_setting(}}'::text[]) AS call
            WHERE (length(condition) - length(replace(condition, call, ''))) / length(call)
                > (length(condition) - length(replace(condition, 'SELECT ' || call, ''))) / length('SELECT ' || call)
        )
    """,
    "multiple_permissive_policies": f"""
        SELECT tablename || ' ' || role || ' ' || verb AS name
        FROM pg_policies, unnest(roles) AS role, unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS verb
        WHERE schemaname IN {SCHEMAS} AND permissive = 'PERMISSIVE' AND cmd IN ('ALL', verb)
        GROUP BY schemaname, tablename, role, verb HAVING count(*) > 1
    """,
    "rls_disabled": f"""
        SELECT oid::regclass::text AS name FROM pg_class
        WHERE relnamespace::regnamespace::text IN {SCHEMAS} AND relkind IN ('r', 'p') AND NOT relrowsecurity
    """,
    "policy_exists_rls_disabled": """
        SELECT polrelid::regclass::text AS name FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
        WHERE NOT relrowsecurity
    """,
    "unindexed_foreign_keys": f"""
        SELECT conname AS name FROM pg_constraint
        WHERE contype = 'f' AND connamespace::regnamespace::text IN {SCHEMAS} AND conparentid = 0 AND NOT EXISTS (
            SELECT FROM pg_index
            WHERE indrelid = conrelid AND (indkey::int2[])[0:cardinality(conkey) - 1] @> conkey
        )
    """,
    "function_search_path_mutable": f"""
        SELECT oid::regprocedure::text AS name FROM pg_proc
        WHERE pronamespace::regnamespace::text IN {SCHEMAS} AND NOT EXISTS (
            SELECT FROM unnest(proconfig) AS setting WHERE setting LIKE 'search_path=%'
        )
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    """,
    "security_definer_view": f"""
        SELECT oid::regclass::text AS name FROM pg_class
        WHERE relnamespace::regnamespace::text IN {SCHEMAS} AND relkind = 'v'
            AND NOT coalesce(reloptions, '{{}}') && '{{security_invoker=true,security_invoker=on}}'::text[]
    """,
    "duplicate_index": f"""
        SELECT string_agg(indexrelid::regclass::text, ' = ') AS name
        FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
        WHERE relnamespace::regnamespace::text IN {SCHEMAS}
        GROUP BY indrelid, regexp_replace(pg_get_indexdef(indexrelid), 'INDEX \\S+ ON', 'INDEX ON')
        HAVING count(*) > 1
    """,
    "no_primary_key": f"""
        SELECT oid::regclass::text AS name FROM pg_class
        WHERE relnamespace::regnamespace::text IN {SCHEMAS} AND relkind IN ('r', 'p') AND NOT EXISTS (
            SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary
        )
    """,
    "rls_references_user_metadata": f"""
        SELECT policyname AS name FROM pg_policies
        WHERE schemaname IN {SCHEMAS} AND coalesce(qual, '') || coalesce(with_check, '') LIKE '%user_metadata%'
    """,
    "extension_in_public": "SELECT extname AS name FROM pg_extension WHERE extnamespace = 'public'::regnamespace",
}
# A violation for each lint, to show that it finds one.
FAULTS = {
    "auth_rls_initplan": "CREATE POLICY bad ON marketing.leads FOR DELETE TO anon"
    " USING ((SELECT auth.uid()) IS NULL AND auth.jwt() ->> 'a' = 'b')",
    "multiple_permissive_policies": "CREATE POLICY bad ON marketing.leads FOR SELECT TO anon USING (true)",
    "rls_disabled": "CREATE TABLE public.bad (id int PRIMARY KEY)",
    "policy_exists_rls_disabled": "ALTER TABLE marketing.leads DISABLE ROW LEVEL SECURITY",
    "unindexed_foreign_keys": "CREATE TABLE public.bad (id int PRIMARY KEY, lead_id uuid REFERENCES marketing.leads)",
    "function_search_path_mutable": "CREATE FUNCTION public.bad() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "security_definer_view": "CREATE VIEW public.bad AS SELECT 1 AS one",
    "duplicate_index": "CREATE INDEX bad ON analytics.leases (token); CREATE INDEX bad2 ON analytics.leases (token)",
    "no_primary_key": "CREATE TABLE public.bad (id int)",
    "rls_references_user_metadata": "CREATE POLICY bad ON marketing.leads FOR DELETE TO anon"
    " USING ((SELECT auth.jwt()) -> 'user_metadata' ->> 'a' = 'b')",
    "extension_in_public": "",
}


@pytest.mark.parametrize("lint", LINTS)
async def test_the_advisor_finds_nothing(connection: asyncpg.Connection, lint: str):
    await connection.execute("SELECT analytics.ensure_events_partition(current_date)")
    assert [row["name"] for row in await connection.fetch(LINTS[lint])] == []
    if FAULTS[lint]:
        await connection.execute(FAULTS[lint])
        assert await connection.fetch(LINTS[lint]), "it would find nothing at all"
