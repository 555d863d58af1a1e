-- Stored KPIs: ingest/rollup/kpis.py

-- latest --
-- Only windows that were computed after their end: an open one may exist before missed ones are computed.
SELECT max(time_window_start) FROM analytics.metrics
WHERE name = $1 AND granularity = $2::text::analytics.granularity AND timestamp >= time_window_end

-- begin --
-- If two processes compute the same KPI at once, the later one sees everything that the earlier one saw.
SELECT set_config('statement_timeout', $1, true), pg_advisory_xact_lock(hashtextextended($2, 0))

-- clear --
-- Values that the window no longer has
DELETE FROM analytics.metrics
WHERE name = $1 AND granularity = $2::text::analytics.granularity AND time_window_start = $3 AND source = 'kpis'
    AND dimensions <> ALL ($4::text[]::jsonb[])

-- store --
INSERT INTO analytics.metrics (
    name, description, type, aggregation, granularity, time_window_start, time_window_end, source, timestamp,
    dimensions, value_numeric, value_json, sample_count
)
SELECT $1, $2, $3::text::analytics.metric_type, $4::text::analytics.metric_aggregation,
    $5::text::analytics.granularity, $6, $7, 'kpis', $8, dimensions::jsonb, value, json::jsonb, samples
FROM unnest($9::text[], $10::numeric[], $11::text[], $12::bigint[]) AS made (dimensions, value, json, samples)
ON CONFLICT ON CONSTRAINT metrics_window_key DO UPDATE SET
    description = excluded.description, timestamp = excluded.timestamp, value_numeric = excluded.value_numeric,
    value_json = excluded.value_json, sample_count = excluded.sample_count
