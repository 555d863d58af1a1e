-- The dashboard's page Health: ingest/dashboard/health.py. Run under the viewer's role.

-- flushes --
-- What was stored within five minutes, when last, and how long the oldest flush has waited to be rolled up
SELECT count(*)::int AS flushes, coalesce(sum(events_stored), 0)::bigint AS stored,
    coalesce(sum(events_duplicate), 0)::bigint AS duplicate, coalesce(sum(events_rejected), 0)::bigint AS rejected,
    (SELECT max(flushed_at) FROM analytics.flushes) AS last_at,
    coalesce((
        SELECT extract(epoch FROM clock_timestamp() - min(flushed_at)) FROM analytics.flushes WHERE rolled_up_at IS NULL
    ), 0)::float8 AS waiting_seconds
FROM analytics.flushes WHERE flushed_at > now() - interval '5 minutes'

-- refusals --
-- Of these reasons, $1, how many events were kept in [$2, $3), counted up to $4; the latest; and how many may be
-- replayed, counted up to a thousand. Each from an index.
SELECT reason, events, latest, replayable
FROM unnest($1::text[]) AS known (reason)
CROSS JOIN LATERAL (
    SELECT count(*)::int AS events, max(received_at) AS latest
    FROM (
        SELECT received_at FROM analytics.rejected_events AS event
        WHERE event.reason = known.reason AND received_at >= $2 AND received_at < $3
        ORDER BY received_at DESC
        LIMIT $4
    ) AS counted
) AS kept
CROSS JOIN LATERAL (
    SELECT count(*)::int AS replayable
    FROM (
        SELECT FROM analytics.rejected_events AS event
        WHERE event.reason = known.reason AND replayed_at IS NULL AND NOT payload_truncated
        LIMIT 1001
    ) AS counted
) AS waiting

-- examples --
-- The newest refused events of these reasons, $1, in [$2, $3): at most $4, and of each payload the beginning
SELECT newest.*
FROM unnest($1::text[]) AS known (reason)
CROSS JOIN LATERAL (
    SELECT id, received_at, event.reason, left(detail, 300) AS detail, left(route, 100) AS route,
        left(payload, 400) AS payload, coalesce(octet_length(payload), 0) AS bytes, payload_truncated, replayed_at
    FROM analytics.rejected_events AS event
    WHERE event.reason = known.reason AND received_at >= $2 AND received_at < $3
    ORDER BY received_at DESC, id DESC
    LIMIT $4
) AS newest
ORDER BY received_at DESC, id DESC
LIMIT $4

-- refused --
-- Whether one can be replayed
SELECT payload_truncated, replayed_at FROM analytics.rejected_events WHERE id = $1

-- partitions --
-- The days of analytics.events, the latest first; events as the last ANALYZE estimated them, NULL if there was none
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day, pg_total_relation_size(pg_class.oid) AS bytes,
    CASE WHEN reltuples >= 0 THEN reltuples::bigint END AS events
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
ORDER BY day DESC

-- retention --
-- How long each kind of row is kept: by ALTER DATABASE or ALTER ROLE, else for events as configured, $1, and for the
-- others as cleanup_old_data() has it. As pin_retention in maintenance.sql, whose reasons hold here, too.
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
    ORDER BY name, setrole = 0, setdatabase = 0
), effective AS (
    SELECT kind, place, coalesce(nullif(value, '')::interval, otherwise) AS kept, nullif(value, '') IS NOT NULL AS is_set
    FROM (VALUES
        ('events', 1, $1::interval), ('minutes', 2, '7 days'), ('metrics', 3, '365 days'), ('rejected', 4, '90 days'),
        ('flushes', 5, '30 days'), ('identities', 6, '400 days'), ('audit', 7, '2 years')
    ) AS known (kind, place, otherwise)
    LEFT JOIN lasting ON name = 'app.retention_' || kind
)
SELECT kind, kept::text AS kept, is_set, now() - kept AS since FROM effective ORDER BY place

-- leases --
-- Who works alone at something
SELECT name, holder, taken_at, expires_at, expires_at < clock_timestamp() AS is_over FROM analytics.leases ORDER BY name
