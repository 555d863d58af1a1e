-- Statistics from aggregates: ingest/features/stats/. Everything from a request is passed as an argument.

-- limits --
-- For the transaction: a statement and a wait for a lock may take so many ms, $1 and $2, and a sort at least $3 bytes
SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true),
    set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')), $3::bigint) / 1024 || 'kB', true)

-- freshness --
-- What ingest.retention says, which is for no role but the owner's
-- as_of: buckets have everything stored before this time; minutes_from: the first minute that is kept; events_from: the
-- first day of events that is, though older ones may not be deleted yet, or be there again with what came late
SELECT now() AS now, coalesce((SELECT min(flushed_at) FROM analytics.flushes WHERE rolled_up_at IS NULL), now()) AS as_of,
    now() - coalesce(nullif(current_setting('app.retention_minutes', true), '')::interval, '7 days') AS minutes_from,
    date_trunc('day', now() - coalesce(nullif(current_setting('app.retention_events', true), '')::interval, '90 days'), 'UTC') AS events_from

-- stale --
-- Weeks and months that are behind their days
SELECT granularity::text, time_bucket FROM analytics.stale_buckets WHERE granularity IN ('week', 'month')

-- buckets --
-- The buckets of some parts of a range, of one name or all, in total or of one value of a dimension. OFFSET 0 keeps it
-- to one index scan per part.
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT time_bucket, event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
    FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND dimensions = $6::jsonb
    OFFSET 0
) AS bucket
LIMIT $7

-- has_buckets --
-- Whether any such bucket exists
SELECT EXISTS (
    SELECT FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
    CROSS JOIN LATERAL (
        SELECT FROM analytics.event_aggregations
        WHERE granularity = part.granularity::analytics.granularity
            AND time_bucket >= starts_at AND time_bucket < ends_at
            AND event_type = ANY ($4::text[]::analytics.event_type[])
            AND ($5::text IS NULL OR event_name = $5) AND dimensions = $6::jsonb
        OFFSET 0
    ) AS bucket
)

-- rank_values --
-- Values of a dimension by their events, and NULL for events without one. jsonb sorts null, then texts, then numbers,
-- and objects last: all texts are between null and 0, so the primary key finds them without reading the table.
-- {"other": true} is for values that had no room. Bots' events are not in the total, nor here. $11 and $12 are values
-- and their events that no bucket has.
WITH part AS (
    SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
), counted AS (
    SELECT value, sum(events) AS events
    FROM (
        SELECT dimensions -> $6 AS value, event_count AS events
        FROM part CROSS JOIN LATERAL (
            SELECT dimensions, event_count FROM analytics.event_aggregations
            WHERE granularity = part.granularity::analytics.granularity
                AND time_bucket >= starts_at AND time_bucket < ends_at
                AND event_type = ANY ($4::text[]::analytics.event_type[])
                AND ($5::text IS NULL OR event_name = $5)
                AND dimensions > jsonb_build_object($6::text, NULL)
                AND dimensions <= jsonb_build_object($6::text, '{"other": true}'::jsonb)
                AND dimensions <> '{"device_type": "bot"}'
            OFFSET 0
        ) AS bucket
        UNION ALL
        SELECT to_jsonb(value), events FROM unnest($11::text[], $12::bigint[]) AS edge (value, events)
        WHERE value IS NOT NULL
    ) AS counted
    GROUP BY value
), total AS (
    SELECT coalesce(sum(event_count), 0)
        + (SELECT coalesce(sum(events), 0) FROM unnest($12::bigint[]) AS edge (events)) AS events
    FROM part CROSS JOIN LATERAL (
        SELECT event_count FROM analytics.event_aggregations
        WHERE granularity = part.granularity::analytics.granularity
            AND time_bucket >= starts_at AND time_bucket < ends_at
            AND event_type = ANY ($4::text[]::analytics.event_type[])
            AND ($5::text IS NULL OR event_name = $5) AND dimensions = '{}'
        OFFSET 0
    ) AS bucket
)
SELECT value, events::bigint AS events
FROM (
    SELECT value #>> '{}' AS value, events FROM counted WHERE jsonb_typeof(value) = 'string'
    UNION ALL
    SELECT NULL, events - coalesce((SELECT sum(events) FROM counted), 0) FROM total
) AS ranked
WHERE events > 0 AND (
    $7::bigint IS NULL OR events < $7
    OR (events = $7 AND NOT $9::boolean AND (value IS NULL OR value COLLATE "C" > $8::text COLLATE "C"))
)
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $10

-- events_without --
-- Events without a value of a dimension, by time bucket
SELECT time_bucket, sum(events)::bigint AS events
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT time_bucket, event_count AS events FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND dimensions = '{}'
    UNION ALL
    SELECT time_bucket, -event_count FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5)
        AND dimensions > jsonb_build_object($6::text, NULL)
        AND dimensions <= jsonb_build_object($6::text, '{"other": true}'::jsonb)
        AND dimensions <> '{"device_type": "bot"}'
    OFFSET 0
) AS bucket
GROUP BY time_bucket

-- rank_names --
-- Names by their events, from some rows of each, such as the total or one value of a dimension; except "", for names
-- that had no room. $11 and $12 are names and their events that no bucket has.
SELECT value, sum(event_count)::bigint AS events
FROM (
    SELECT bucket.*
    FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
    CROSS JOIN LATERAL (
        SELECT event_name AS value, event_count FROM analytics.event_aggregations
        WHERE granularity = part.granularity::analytics.granularity
            AND time_bucket >= starts_at AND time_bucket < ends_at
            AND event_type = ANY ($4::text[]::analytics.event_type[])
            AND ($5::text IS NULL OR event_name = $5) AND event_name <> ''
            AND dimensions = ANY ($6::text[]::jsonb[])
        OFFSET 0
    ) AS bucket
    UNION ALL
    SELECT value, events FROM unnest($11::text[], $12::bigint[]) AS edge (value, events)
) AS counted
GROUP BY value
HAVING sum(event_count) > 0 AND (
    $7::bigint IS NULL OR sum(event_count) < $7
    OR (sum(event_count) = $7 AND NOT $9::boolean AND value COLLATE "C" > $8::text COLLATE "C")
)
ORDER BY events DESC, value COLLATE "C"
LIMIT $10

-- value_buckets --
-- The buckets of these values of a dimension
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT dimensions ->> $6 AS value, event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
    FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5)
        AND dimensions > jsonb_build_object($6::text, NULL) AND dimensions < jsonb_build_object($6::text, 0)
        AND dimensions ->> $6 = ANY ($7::text[])
    OFFSET 0
) AS bucket
LIMIT $8

-- name_buckets --
-- The buckets of these names
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT event_name AS value, event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
    FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND dimensions = ANY ($6::text[]::jsonb[])
        AND event_name = ANY ($7::text[]) AND event_count > 0
    OFFSET 0
) AS bucket
LIMIT $8

-- value_sketches --
-- Who did the events of these values of a dimension
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT dimensions ->> $6 AS value, users_sketch FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5)
        AND dimensions > jsonb_build_object($6::text, NULL) AND dimensions < jsonb_build_object($6::text, 0)
        AND dimensions ->> $6 = ANY ($7::text[]) AND users_sketch IS NOT NULL
    OFFSET 0
) AS bucket
LIMIT $8

-- name_sketches --
-- Who did the events of these names
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT event_name AS value, users_sketch FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND dimensions = ANY ($6::text[]::jsonb[])
        AND event_name = ANY ($7::text[]) AND users_sketch IS NOT NULL
    OFFSET 0
) AS bucket
LIMIT $8

-- stored_by_type --
-- The buckets of some parts of a range by type, from some rows of each name, such as the total; with sketches only
-- where they are asked for ($7 users, $8 sessions), as these are nearly all there is to read
SELECT bucket.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT time_bucket, event_type::text AS type, event_count,
        CASE WHEN $7 THEN users_sketch END AS users_sketch, CASE WHEN $8 THEN sessions_sketch END AS sessions_sketch
    FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND dimensions = ANY ($6::text[]::jsonb[]) AND event_count > 0
    OFFSET 0
) AS bucket
LIMIT $9

-- stored_totals --
-- The totals over all types and names of some parts of a range, as far as they are there; with sketches as stored_by_type
SELECT total.*
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT granularity::text, time_bucket, event_count, page_views, conversions,
        CASE WHEN $4 THEN users_sketch END AS users_sketch, CASE WHEN $5 THEN sessions_sketch END AS sessions_sketch
    FROM analytics.bucket_totals
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
    OFFSET 0
) AS total
LIMIT $6

-- last_viewed --
-- The last hour in some times in which sessions saw a page
SELECT max(time_bucket)
FROM unnest($1::timestamptz[], $2::timestamptz[]) AS span (starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT time_bucket FROM analytics.event_aggregations
    WHERE granularity = 'hour' AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = 'page_view' AND dimensions = '{}' AND event_count > 0 AND sessions_sketch IS NOT NULL
    ORDER BY time_bucket DESC LIMIT 1
) AS bucket
