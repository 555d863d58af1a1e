-- Buckets summed over all types and names: ingest/rollup/totals.py

-- missing --
-- Hours and days from $1 on, over by $2, that have no total, latest first
SELECT granularity, time_bucket
FROM (VALUES ('hour', interval '1 hour'), ('day', interval '24 hours')) AS kind (granularity, length)
CROSS JOIN LATERAL (
    SELECT min(time_bucket) AS first FROM analytics.event_aggregations
    WHERE granularity = kind.granularity::analytics.granularity
        AND time_bucket >= date_trunc(kind.granularity, $1::timestamptz, 'UTC')
) AS known
CROSS JOIN LATERAL generate_series(first, $2::timestamptz - length, length) AS over (time_bucket)
WHERE NOT EXISTS (
    SELECT FROM analytics.bucket_totals AS total
    WHERE total.granularity = kind.granularity::analytics.granularity AND total.time_bucket = over.time_bucket
)
ORDER BY time_bucket DESC
LIMIT $3

-- rows --
-- What a bucket has of each type and name
SELECT event_type::text AS type, event_count, users_sketch, sessions_sketch
FROM analytics.event_aggregations
WHERE granularity = $1::text::analytics.granularity AND time_bucket = $2 AND dimensions = '{}' AND event_count > 0

-- put --
INSERT INTO analytics.bucket_totals
    (granularity, time_bucket, event_count, page_views, conversions, users_sketch, sessions_sketch)
VALUES ($1::text::analytics.granularity, $2, $3, $4, $5, $6, $7)
ON CONFLICT (granularity, time_bucket) DO NOTHING
