-- schema_exists --
-- Not by to_regnamespace(), which answers from a cache that may lack what others have just created.
SELECT true FROM pg_namespace WHERE nspname = 'ingest'

-- table_exists --
-- Likewise.
SELECT true FROM pg_class
WHERE relname = 'migrations' AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'ingest')

-- make_table --
-- In a schema of its own: since PostgreSQL 15 only the owner of a database may make tables in `public`.
CREATE TABLE ingest.migrations (
    number int NOT NULL CONSTRAINT migrations_pkey PRIMARY KEY,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE ingest.migrations IS 'Which files of sql/migrations this database has had'

-- pushed --
-- Whether the Supabase CLI has applied this file; only if its table exists.
SELECT true FROM supabase_migrations.schema_migrations WHERE version = $1 AND name = $2

-- missing_grants --
-- What this role needs before it can apply the files, each as a statement for an administrator. Schemas and roles that
-- exist need not be created. The statements create the roles instead of granting CREATEROLE, which is more than the
-- service needs.
WITH needed_schemas AS (
    SELECT name, to_regnamespace(name) AS schema
    FROM unnest('{ingest,marketing,onboarding,analytics,experiments,whatsapp,public,auth}'::text[]) AS name
), missing_roles AS (
    SELECT name
    FROM unnest('{anon,authenticated,service_role}'::text[]) WITH ORDINALITY AS wanted (name, place)
    WHERE NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
        AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
    ORDER BY place
)
SELECT format('GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user)
WHERE NOT has_database_privilege(current_database(), 'CREATE')
    AND EXISTS (SELECT FROM needed_schemas WHERE schema IS NULL)
UNION ALL
SELECT format('GRANT USAGE, CREATE ON SCHEMA %I TO %I;', name, current_user)
FROM needed_schemas
-- If the schema auth exists it is only used, and nothing is created in it.
WHERE schema IS NOT NULL AND name <> 'auth'
    AND NOT (has_schema_privilege(schema, 'USAGE') AND has_schema_privilege(schema, 'CREATE'))
UNION ALL
SELECT format('CREATE ROLE %I', name) || CASE name WHEN 'service_role' THEN ' BYPASSRLS;' ELSE ';' END
    || format(' GRANT %I TO %I;', name, current_user)
FROM missing_roles

-- blockers --
-- Which lock the server process $1 waits for, and who blocks it; no rows if it waits for none. Only superusers and
-- pg_read_all_stats see what other sessions do, but everybody sees their names. A prepared transaction has the pid 0.
SELECT coalesce((
    SELECT CASE locktype
        WHEN 'advisory' THEN 'another migration, or a session that holds its lock'
        WHEN 'relation' THEN format('a lock on %s', relation::regclass)
        ELSE format('a lock (%s)', locktype)
    END
    FROM pg_locks WHERE pid = $1 AND NOT granted LIMIT 1
), 'a lock') AS what, blocking.pid, application_name, usename, state, backend_type,
    xact_start AT TIME ZONE 'UTC' AS began, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
FROM unnest(pg_blocking_pids($1)) AS blocking (pid)
LEFT JOIN pg_stat_activity AS activity ON activity.pid = blocking.pid
ORDER BY blocking.pid
