-- Windows whose KPIs are to be computed again: ingest/rollup/stale_metrics.py

-- note --
-- In the order of the key, so that two who note do not wait for each other
INSERT INTO analytics.stale_metrics AS stale (source, granularity, time_window_start)
SELECT $1, granularity::analytics.granularity, starts_at
FROM unnest($2::text[], $3::timestamptz[]) AS changed (granularity, starts_at)
ORDER BY 2, 3
ON CONFLICT (source, granularity, time_window_start) DO UPDATE SET token = excluded.token

-- noted --
-- Days after their hours, of which they may be made; else in any order, so that one that fails does not always come first
SELECT granularity::text, time_window_start, token FROM analytics.stale_metrics
WHERE source = $1 AND time_window_start < $2
ORDER BY stale_metrics.granularity, token

-- forget --
-- Not what was noted again meanwhile: that has another token
DELETE FROM analytics.stale_metrics
WHERE source = $1 AND granularity = $2::text::analytics.granularity AND time_window_start = $3 AND token = $4

-- kept_from --
-- The first minute that is kept, and the first day that has events
SELECT now() - ingest.retention('minutes', '7 days') AS minutes_from, (
    SELECT min(to_date(right(relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC'
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
) AS events_from
