-- Buckets rebuilt and compared: ingest/rollup/rebuild.py

-- piece hours --
-- The hours in [$1, $2) of all days that have a partition
SELECT hour FROM (
    SELECT to_date(right(relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS day
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
) AS days
CROSS JOIN LATERAL (SELECT day + make_interval(hours => number) AS hour FROM generate_series(0, 23) AS number) AS hours
WHERE hour + interval '1 hour' > $1 AND hour < $2

-- piece of_hour --
-- The hour $1, and its minutes
(granularity = 'hour' AND time_bucket = $1)
    OR (granularity = 'minute' AND time_bucket >= $1 AND time_bucket < $1 + interval '1 hour')

-- piece rows --
SELECT granularity::text, time_bucket, event_type::text, event_name, dimensions::text,
    event_count, unique_users, unique_sessions
FROM analytics.event_aggregations

-- note_hours --
WITH hours AS (
    SELECT hour FROM ({hours}) AS all_hours WHERE hour <= now() + interval '1 day'
), noted AS (
    INSERT INTO analytics.stale_buckets (granularity, time_bucket) SELECT 'hour', hour FROM hours
    ON CONFLICT (granularity, time_bucket) DO UPDATE SET noted_at = excluded.noted_at, due_at = excluded.due_at
)
SELECT count(*) FROM hours

-- count_stale --
SELECT count(*) FROM analytics.stale_buckets
WHERE granularity IN ('hour', 'day') AND due_at <= clock_timestamp() AND time_bucket >= date_trunc('day', $1::timestamptz, 'UTC') AND time_bucket < $2

-- take_stale --
-- The next bucket to rebuild: finer granularities first, as coarser ones are computed from them. Delayed ones come
-- last, or not at all ($2).
DELETE FROM analytics.stale_buckets
WHERE (granularity, time_bucket) = (
    SELECT granularity, time_bucket FROM analytics.stale_buckets
    WHERE granularity = ANY ($1::text[]::analytics.granularity[])
        AND due_at <= clock_timestamp() AND ($2 OR due_at <= noted_at)
    ORDER BY due_at > noted_at, granularity, time_bucket LIMIT 1
)
RETURNING granularity::text, time_bucket

-- is_stale --
SELECT EXISTS (
    SELECT FROM analytics.stale_buckets
    WHERE (granularity, time_bucket) = ($1::text::analytics.granularity, $2)
        -- A day differs for a moment after one of its hours was rebuilt, and as long as one is waiting for it.
        OR (granularity = 'hour' AND $1 = 'day' AND time_bucket >= $2 AND time_bucket < $2 + interval '1 day')
)

-- is_noted_in --
-- Whether any event of this hour is from a browser whose hours are still to be looked up
SELECT EXISTS (
    SELECT FROM analytics.events
    WHERE created_at >= $1 AND created_at < $1 + interval '1 hour' AND user_id IS NULL
        AND anonymous_id IN (SELECT anonymous_id FROM analytics.stale_identities)
)

-- not_rolled_up --
SELECT journal, first_record, last_record FROM analytics.flushes WHERE rolled_up_at IS NULL

-- minutes_from --
SELECT now() - ingest.retention('minutes', '7 days')

-- clear_hour --
DELETE FROM analytics.event_aggregations
WHERE {of_hour}

-- clear_others --
-- Rows of the bucket that this transaction has not written
DELETE FROM analytics.event_aggregations
WHERE granularity = $1::text::analytics.granularity AND time_bucket = $2 AND updated_at <> now()

-- parts --
-- Buckets within [$2, $3)
SELECT event_type::text, event_name, dimensions::text, event_count, users_sketch, sessions_sketch
FROM analytics.event_aggregations
WHERE granularity = $1::text::analytics.granularity
    AND time_bucket >= $2 AND time_bucket < $3
ORDER BY event_type, event_name, dimensions

-- hour_rows --
{rows}
WHERE {of_hour}

-- day_rows --
{rows} WHERE granularity = 'day' AND time_bucket = $1

-- to_compare --
-- Hours and days within [$1, $2) that have events or buckets
SELECT hour AS bucket, 'hour' AS granularity FROM ({hours}) AS hours
UNION ALL
SELECT DISTINCT time_bucket, 'day' FROM analytics.event_aggregations
WHERE granularity = 'day' AND time_bucket + interval '1 day' > $1 AND time_bucket < $2
ORDER BY bucket, granularity DESC
