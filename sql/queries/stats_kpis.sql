-- Statistics from KPIs: ingest/features/stats/, and the dashboard's figures of sessions.
-- Everything from a request is passed as an argument.

-- piece hours_of_kpis --
-- Sessions that began in the hours from $1 to before $2, from the KPIs $4, up to `settled`: later hours, from $3 on, may
-- not have been computed; NULL: none was. `unsettled`: hours that have to be computed (again), or in which there were
-- sessions but none began, or which failed.
hours AS MATERIALIZED (
    SELECT hour, max(sample_count) FILTER (WHERE name <> 'sessions') AS sessions,
        max(value_numeric) FILTER (WHERE name = 'bounce_rate') AS bounce_rate,
        max(value_numeric) FILTER (WHERE name = 'session_length') AS seconds,
        max(value_numeric) FILTER (WHERE name = 'session_entries') AS entries,
        max(computed_at) FILTER (WHERE name = 'session_entries') AS entries_at,
        coalesce(min(computed_at) FILTER (WHERE name <> 'sessions') < hour + interval '90 minutes', true)
            OR count(*) FILTER (WHERE name <> 'sessions') < cardinality($4::text[])
            OR bool_or(name IS NULL) AS unsettled,
        coalesce(bool_or(name = 'sessions'), false) AS visited
    FROM (
        SELECT time_window_start AS hour, name, value_numeric, sample_count, timestamp AS computed_at
        FROM analytics.metrics
        WHERE name = ANY ($4::text[] || 'sessions'::text) AND granularity = 'hour' AND dimensions = '{}'
            AND time_window_start >= $1 AND time_window_start < $2
        UNION ALL
        SELECT time_window_start, NULL, NULL, NULL, NULL FROM analytics.stale_metrics
        WHERE source = 'events' AND granularity = 'hour' AND time_window_start >= $1 AND time_window_start < $2
    ) AS known
    GROUP BY hour
), settled AS (
    -- least ignores NULL.
    SELECT CASE WHEN max(time_window_start) IS NOT NULL THEN least($3::timestamptz, max(time_window_start)) END AS settled
    FROM analytics.metrics
    WHERE name = 'bounce_rate' AND granularity = 'hour' AND dimensions = '{}' AND time_window_start < $3
)

-- hours_of_sessions --
-- How many sessions began in some hours, bounced, and how long they were
WITH {hours_of_kpis}
SELECT settled, array_agg(hour ORDER BY hour) FILTER (WHERE unsettled) AS unsettled,
    coalesce(sum(sessions) FILTER (WHERE NOT unsettled), 0)::bigint AS sessions,
    coalesce(sum(sessions * bounce_rate) FILTER (WHERE NOT unsettled), 0)::float8 AS bounces,
    coalesce(sum(sessions * seconds) FILTER (WHERE NOT unsettled), 0)::float8 AS seconds
FROM settled LEFT JOIN hours ON hour < settled
GROUP BY settled

-- hours_of_entries --
-- In which hours and days the KPI session_entries may be read. `days`: those that are the sums of their hours. Hours
-- before $5 cannot be read from events and stay as they are: not `unsettled`. `lost`: the last of them with sessions, but
-- without figures; `waiting`: those that may have had some. Figures may be deleted if they ended before `kpis_from`.
WITH {hours_of_kpis}, days AS (
    SELECT day FROM (
        SELECT date_trunc('day', hour, 'UTC') AS day, sum(entries) AS entries, max(entries_at) AS entries_at
        FROM hours GROUP BY 1
        HAVING NOT bool_or(unsettled AND hour >= $5::timestamptz)
    ) AS summed JOIN analytics.metrics AS kept
        ON name = 'session_entries' AND granularity = 'day' AND dimensions = '{}' AND time_window_start = day
    WHERE day >= $1 AND time_window_end <= $2 AND value_numeric = entries AND kept.timestamp >= entries_at
        AND time_window_end <= (SELECT settled FROM settled)
        AND NOT EXISTS (
            SELECT FROM analytics.stale_metrics AS noted
            WHERE noted.source = 'events' AND noted.granularity = 'day' AND noted.time_window_start = day
        )
)
SELECT settled, array_agg(hour ORDER BY hour) FILTER (WHERE unsettled AND hour >= $5) AS unsettled,
    max(hour) FILTER (WHERE visited AND entries IS NULL AND hour < $5) AS lost,
    array_agg(hour ORDER BY hour) FILTER (WHERE NOT visited AND entries IS NULL AND hour < $5) AS waiting,
    (SELECT array_agg(day) FROM days) AS days,
    now() - coalesce(nullif(current_setting('app.retention_metrics', true), '')::interval, '365 days') AS kpis_from
FROM settled LEFT JOIN hours ON hour < settled
GROUP BY settled

-- metrics --
-- Metrics by time. A window that begins in the range ends in or after it, and the index is on its end.
SELECT id, coalesce(time_window_start, timestamp) AS at, name, type::text, granularity::text, value_numeric, value_json,
    dimensions, time_window_start, time_window_end, sample_count, description
FROM analytics.metrics
WHERE coalesce(time_window_start, timestamp) >= $1 AND coalesce(time_window_start, timestamp) < $2
    AND coalesce(time_window_end, timestamp) >= $1
    AND ($3::text IS NULL OR name = $3) AND ($4::text IS NULL OR granularity = $4::text::analytics.granularity)
    AND dimensions @> $5::jsonb
    AND ($6::timestamptz IS NULL OR (coalesce(time_window_start, timestamp), id) > ($6, $7::bigint))
ORDER BY at, id
LIMIT $8

-- metric_names --
-- The names of metrics, jumping from one to the next in the index instead of reading all rows
WITH RECURSIVE known (name) AS (
    (SELECT name FROM analytics.metrics ORDER BY name LIMIT 1)
    UNION ALL
    SELECT (SELECT metrics.name FROM analytics.metrics WHERE metrics.name > known.name ORDER BY metrics.name LIMIT 1)
    FROM known WHERE known.name IS NOT NULL
)
SELECT name FROM known WHERE name IS NOT NULL LIMIT 200
