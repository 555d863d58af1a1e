-- Scheduled maintenance: ingest/service/maintenance.py

-- pin_retention --
-- Pins every period that cleanup_old_data() uses, for this transaction. A pooler's server connection may still have
-- a value that some client once set for its session, which must not cause deletions. So only lasting settings count, by
-- ALTER DATABASE or ALTER ROLE, and for events otherwise the configured period, $1; a session's setting for events
-- can only make it longer.
WITH lasting AS (
    SELECT DISTINCT ON (name) name, value
    FROM pg_db_role_setting AS given
    CROSS JOIN LATERAL unnest(setconfig) AS line
    CROSS JOIN LATERAL (
        SELECT lower(split_part(line, '=', 1)) AS name, substr(line, strpos(line, '=') + 1) AS value
    ) AS setting
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
        AND name LIKE 'app.retention\_%'
    -- In Postgres' order: for the role in this database, for the role, for the database, for all.
    ORDER BY name, setrole = 0, setdatabase = 0
), pinned AS (
    SELECT 'app.retention_' || kind AS name FROM unnest('{minutes,metrics,rejected,flushes,audit}'::text[]) AS kind
    UNION SELECT name FROM lasting WHERE name <> 'app.retention_events'
)
SELECT set_config(name, coalesce((SELECT value FROM lasting WHERE lasting.name = pinned.name), ''), true) FROM pinned
UNION ALL
SELECT set_config('app.retention_events', greatest(
    coalesce(nullif((SELECT value FROM lasting WHERE name = 'app.retention_events'), '')::interval, $1),
    nullif(current_setting('app.retention_events', true), '')::interval
)::text, true)
