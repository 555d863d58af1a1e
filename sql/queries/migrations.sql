-- schema_exists --
-- Asked of the table, as to_regnamespace() answers from a cache that knows nothing of what others have just made.
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
-- Whether the Supabase CLI has applied this file; to be asked only where its table is.
SELECT true FROM supabase_migrations.schema_migrations WHERE version = $1 AND name = $2

-- missing_grants --
-- What this role must be given before it can apply the files, each as the statement for an administrator. Schemas and
-- roles that are there need not be made. The roles are made rather than the right to make roles given, which is more
-- than the service needs.
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
-- Where auth is there it is used, and nothing is made in it.
WHERE schema IS NOT NULL AND name <> 'auth'
    AND NOT (has_schema_privilege(schema, 'USAGE') AND has_schema_privilege(schema, 'CREATE'))
UNION ALL
SELECT format('CREATE ROLE %I', name) || CASE name WHEN 'service_role' THEN ' BYPASSRLS;' ELSE ';' END
    || format(' GRANT %I TO %I;', name, current_user)
FROM missing_roles

-- blockers --
-- Which lock the server's process $1 waits for, and who is in its way; no rows if it waits for none. What others do is
-- shown to superusers and pg_read_all_stats only, their names to everybody. A prepared transaction has the number 0.
SELECT coalesce((
    SELECT CASE locktype
        WHEN 'advisory' THEN 'another migration, or who has taken its lock'
        WHEN 'relation' THEN format('a lock on %s', relation::regclass)
        ELSE format('a lock (%s)', locktype)
    END
    FROM pg_locks WHERE pid = $1 AND NOT granted LIMIT 1
), 'a lock') AS what, blocking.pid, application_name, usename, state, backend_type,
    xact_start AT TIME ZONE 'UTC' AS began, extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
FROM unnest(pg_blocking_pids($1)) AS blocking (pid)
LEFT JOIN pg_stat_activity AS activity ON activity.pid = blocking.pid
ORDER BY blocking.pid
