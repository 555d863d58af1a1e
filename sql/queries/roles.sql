-- Roles: ingest/postgres/connections.py

-- missing --
-- The roles needed to answer requests that this connection's user may not switch to. Since PostgreSQL 16, membership
-- does not imply the right to SET ROLE.
SELECT coalesce(array_agg(name ORDER BY place), '{}')
FROM unnest('{anon,authenticated,service_role}'::text[]) WITH ORDINALITY AS wanted (name, place)
WHERE CASE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN NOT pg_has_role(
    session_user, name, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END
) ELSE true END
