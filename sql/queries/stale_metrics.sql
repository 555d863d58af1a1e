-- Windows whose KPIs must be recomputed: ingest/rollup/stale_metrics.py

-- note --
-- In key order, so that concurrent calls cannot deadlock
INSERT INTO analytics.stale_metrics AS stale (source, granularity, time_window_start)
SELECT $1, granularity::analytics.granularity, starts_at
FROM unnest($2::text[], $3::timestamptz[]) AS changed (granularity, starts_at)
ORDER BY 2, 3
ON CONFLICT (source, granularity, time_window_start) DO UPDATE SET token = excluded.token

-- noted --
-- Days after their hours, which they may be computed from; otherwise in no particular order, so that a failing one does
-- not always come first
SELECT granularity::text, time_window_start, token FROM analytics.stale_metrics
WHERE source = $1 AND time_window_start < $2
ORDER BY stale_metrics.granularity, token

-- forget --
-- Unless it was noted again meanwhile: then it has another token
DELETE FROM analytics.stale_metrics
WHERE source = $1 AND granularity = $2::text::analytics.granularity AND time_window_start = $3 AND token = $4

-- kept_from --
-- The earliest minute that is kept, and the earliest day that has events
SELECT now() - ingest.retention('minutes', '7 days') AS minutes_from, (
    SELECT min(to_date(right(relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC'
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
) AS events_from
