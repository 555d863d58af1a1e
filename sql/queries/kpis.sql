-- KPIs: each query is one, and a query added here is a KPI added. Its head is its description, then a line with type,
-- aggregation; granularities; and its source if late events change it, so that past windows are recomputed: "from
-- aggregates" (analytics.event_aggregations) or "from events" (analytics.events), which runs less often. "from events
-- and flushes" runs less often, too, and past windows are not recomputed. ingest/rollup/kpis.py reads all of it.
--
-- $1 is the start of the window, $2 its end or now, whichever is earlier, $3 the granularity. A row is one value:
-- dimensions, value_numeric, value_json, sample_count; or dimensions, sketch: then the value is the distinct count over
-- all sketches of the same dimensions.
--
-- Bots count in no KPI except ingestion_lag: aggregates have their events only in {"device_type": "bot"}, and queries on
-- events leave them out.

-- events_per_minute --
-- Average number of events per minute.
-- rate, average; minute hour day; from aggregates
SELECT '{}'::jsonb AS dimensions, sum(event_count) / greatest(1, extract(epoch FROM $2 - $1) / 60) AS value_numeric,
    sum(event_count)::bigint AS sample_count
FROM analytics.event_aggregations
WHERE granularity = $3::analytics.granularity AND time_bucket = $1 AND dimensions = '{}'
HAVING sum(event_count) > 0

-- page_views --
-- Page views, without those of bots.
-- counter, sum; minute hour day week month; from aggregates
SELECT '{}'::jsonb AS dimensions, sum(event_count) AS value_numeric
FROM analytics.event_aggregations
WHERE granularity = $3::analytics.granularity AND time_bucket = $1 AND event_type = 'page_view' AND dimensions = '{}'
HAVING sum(event_count) > 0

-- sessions --
-- Distinct sessions with any event, including visits of people whose client sends no session id; estimated.
-- counter, unique_count; hour day week month; from aggregates
SELECT '{}'::jsonb AS dimensions, sessions_sketch AS sketch
FROM analytics.event_aggregations
WHERE granularity = $3::analytics.granularity AND time_bucket = $1 AND dimensions = '{}'
    AND sessions_sketch IS NOT NULL

-- active_users --
-- Distinct people with any event, identified or anonymous, each counted once; estimated.
-- gauge, unique_count; day week month; from aggregates
SELECT '{}'::jsonb AS dimensions, users_sketch AS sketch
FROM analytics.event_aggregations
WHERE granularity = $3::analytics.granularity AND time_bucket = $1 AND dimensions = '{}'
    AND users_sketch IS NOT NULL

-- bounce_rate --
-- Share of sessions (including visits of people whose client sends no session id) with a single page view or action,
-- without bots. A session belongs to the hour of its first event, unless it had one in the half hour before that hour;
-- events more than half an hour after the hour are ignored. A day is the average of its hours, weighted by sessions.
-- rate, average; hour day; from events
WITH visits AS (
    SELECT visit, count(*) FILTER (WHERE type <> 'system') AS acts, min(created_at) AS began
    FROM analytics.activity
    WHERE $3 = 'hour' AND created_at >= $1 - interval '30 minutes' AND created_at < $2 + interval '30 minutes'
        AND visit IS NOT NULL AND device_type IS DISTINCT FROM 'bot'
    GROUP BY visit
)
SELECT '{}'::jsonb AS dimensions, avg((acts <= 1)::int) AS value_numeric, count(*) AS sample_count
FROM visits WHERE began >= $1 AND began < $2
HAVING count(*) > 0
UNION ALL
SELECT '{}', sum(value_numeric * sample_count) / sum(sample_count), sum(sample_count)::bigint
FROM analytics.metrics
WHERE $3 = 'day' AND name = 'bounce_rate' AND granularity = 'hour' AND time_window_start >= $1 AND time_window_start < $2
HAVING sum(sample_count) > 0

-- session_length --
-- Mean seconds from the first to the last event of a session; value_json has p50, p95 and a cumulative histogram (seconds:
-- sessions up to that long). Sessions are assigned to hours as for bounce_rate. A day is the average of its hours,
-- weighted by sessions, with the sum of their histograms.
-- histogram, average; hour day; from events
WITH visits AS (
    SELECT visit, min(created_at) AS began, extract(epoch FROM max(created_at) - min(created_at)) AS seconds
    FROM analytics.activity
    WHERE $3 = 'hour' AND created_at >= $1 - interval '30 minutes' AND created_at < $2 + interval '30 minutes'
        AND visit IS NOT NULL AND device_type IS DISTINCT FROM 'bot'
    GROUP BY visit
), bounds (bound) AS (VALUES (10), (30), (60), (180), (600), (1800), (3600))
SELECT '{}'::jsonb AS dimensions, avg(seconds) AS value_numeric, count(*) AS sample_count,
    jsonb_build_object(
        'p50', percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
        'p95', percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds),
        'histogram', (
            SELECT jsonb_object_agg(bound, (
                SELECT count(*) FROM visits WHERE began >= $1 AND began < $2 AND seconds <= bound
            )) FROM bounds
        )
    ) AS value_json
FROM visits WHERE began >= $1 AND began < $2
HAVING count(*) > 0
UNION ALL
SELECT '{}', sum(value_numeric * sample_count) / sum(sample_count), sum(sample_count)::bigint,
    jsonb_build_object('histogram', (
        SELECT jsonb_object_agg(bound, sessions) FROM (
            SELECT bound, sum(count::bigint) AS sessions
            FROM analytics.metrics AS hours, jsonb_each_text(hours.value_json -> 'histogram') AS part (bound, count)
            WHERE hours.name = 'session_length' AND hours.granularity = 'hour'
                AND hours.time_window_start >= $1 AND hours.time_window_start < $2
            GROUP BY bound
        ) AS sums
    ))
FROM analytics.metrics
WHERE $3 = 'day' AND name = 'session_length' AND granularity = 'hour'
    AND time_window_start >= $1 AND time_window_start < $2
HAVING sum(sample_count) > 0

-- session_entries --
-- Sessions by the page of their first page view: the first 100 of a window, the rest as {"other": true}, and all as {}
-- (sample_count: with those that saw no page). Sessions are assigned to hours as for bounce_rate. A day is the sum of its
-- hours.
-- counter, sum; hour day; from events
WITH visits AS (
    SELECT min(created_at) AS began, max(created_at) AS ended, bool_or(type = 'page_view') AS viewed,
        (array_agg(left(page_path::text, 255) ORDER BY created_at, received_at, batch_id, batch_position, id)
            FILTER (WHERE type = 'page_view'))[1] AS page
    FROM analytics.activity
    WHERE $3 = 'hour' AND created_at >= $1 - interval '30 minutes' AND created_at < $2 + interval '30 minutes'
        AND visit IS NOT NULL AND device_type IS DISTINCT FROM 'bot'
    GROUP BY visit
), counted AS (
    SELECT jsonb_build_object('page_path', page) AS dimensions, count(*)::numeric AS sessions, NULL::bigint AS samples
    FROM visits WHERE began >= $1 AND began < $2 AND viewed
    GROUP BY page
    UNION ALL
    -- 0 where sessions of the hour before went on, which tells such an hour from one that was not computed.
    SELECT '{}', count(*) FILTER (WHERE began >= $1 AND viewed), count(*) FILTER (WHERE began >= $1)
    FROM visits WHERE began < $2 AND ended >= $1
    HAVING count(*) > 0
    UNION ALL
    SELECT dimensions, sum(value_numeric), sum(sample_count)::bigint
    FROM analytics.metrics
    WHERE $3 = 'day' AND name = 'session_entries' AND granularity = 'hour'
        AND time_window_start >= $1 AND time_window_start < $2
    GROUP BY dimensions
), ranked AS (
    -- The total and the others are no pages.
    SELECT *, row_number() OVER (
        PARTITION BY dimensions IN ('{}', '{"page_path": {"other": true}}') ORDER BY sessions DESC, dimensions
    ) AS place
    FROM counted
)
SELECT CASE WHEN place <= 100 THEN dimensions ELSE '{"page_path": {"other": true}}' END AS dimensions,
    sum(sessions) AS value_numeric, sum(samples)::bigint AS sample_count
FROM ranked
GROUP BY 1

-- visitor_to_lead_rate --
-- Leads created in the window, per active user.
-- rate, average; day week month; from aggregates
SELECT '{}'::jsonb AS dimensions, leads.count / users.value_numeric AS value_numeric,
    users.value_numeric::bigint AS sample_count
FROM (SELECT count(*) FROM marketing.leads WHERE deleted_at IS NULL AND created_at >= $1 AND created_at < $2) AS leads
JOIN analytics.metrics AS users ON users.name = 'active_users' AND users.dimensions = '{}'
    AND users.granularity = $3::analytics.granularity AND users.time_window_start = $1
WHERE users.value_numeric > 0

-- lead_to_onboarded_rate --
-- Onboarding sessions of leads completed in the window, per lead created in it.
-- rate, average; day week month
SELECT '{}'::jsonb AS dimensions, onboarded.count::numeric / leads.count AS value_numeric, leads.count AS sample_count
FROM (SELECT count(*) FROM marketing.leads WHERE deleted_at IS NULL AND created_at >= $1 AND created_at < $2) AS leads,
    (SELECT count(*) FROM onboarding.sessions
     WHERE status = 'completed' AND lead_id IS NOT NULL AND completed_at >= $1 AND completed_at < $2) AS onboarded
WHERE leads.count > 0

-- onboarded_to_converted_rate --
-- Converted leads last changed in the window, per onboarding session of a lead completed in it.
-- rate, average; day week month
SELECT '{}'::jsonb AS dimensions, converted.count::numeric / onboarded.count AS value_numeric,
    onboarded.count AS sample_count
FROM (SELECT count(*) FROM onboarding.sessions
      WHERE status = 'completed' AND lead_id IS NOT NULL AND completed_at >= $1 AND completed_at < $2) AS onboarded,
    (SELECT count(*) FROM marketing.leads
     WHERE status = 'converted' AND deleted_at IS NULL AND updated_at >= $1 AND updated_at < $2) AS converted
WHERE onboarded.count > 0

-- leads_by_source --
-- Leads created in the window, by source.
-- counter, count; day week month
SELECT jsonb_build_object('source', source) AS dimensions, count(*) AS value_numeric
FROM marketing.leads WHERE deleted_at IS NULL AND created_at >= $1 AND created_at < $2
GROUP BY source

-- leads_by_status --
-- All leads, by the status they had when the window was last computed.
-- gauge, count; day
SELECT jsonb_build_object('status', status) AS dimensions, count(*) AS value_numeric
FROM marketing.leads WHERE deleted_at IS NULL AND created_at < $2
GROUP BY status

-- onboarding_completion_rate --
-- Share of the onboarding sessions begun in the window that were completed, up to two days after it.
-- rate, average; day week month
SELECT '{}'::jsonb AS dimensions, avg((status = 'completed')::int) AS value_numeric, count(*) AS sample_count
FROM onboarding.sessions WHERE created_at >= $1 AND created_at < $2
HAVING count(*) > 0

-- onboarding_drop_off --
-- Share of the onboarding sessions begun in the window that reached a step and did not complete it, by step, up to two
-- days after it.
-- rate, average; day week month
SELECT jsonb_build_object('step', step) AS dimensions, avg((done_at IS NULL)::int) AS value_numeric,
    count(*) AS sample_count
FROM onboarding.sessions,
    LATERAL (VALUES
        ('business_info', created_at, business_info_completed_at),
        ('whatsapp_integration', business_info_completed_at, whatsapp_integration_completed_at),
        ('bot_setup', whatsapp_integration_completed_at, bot_setup_completed_at),
        ('testing', bot_setup_completed_at, testing_completed_at)
    ) AS steps (step, began_at, done_at)
WHERE created_at >= $1 AND created_at < $2 AND began_at IS NOT NULL
GROUP BY step

-- onboarding_step_seconds --
-- Median seconds that an onboarding step took, if completed in the window, by step; value_json has p50, p95 and a
-- cumulative histogram (seconds: sessions up to that long).
-- histogram, average; day week month
SELECT jsonb_build_object('step', step) AS dimensions,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS value_numeric, count(*) AS sample_count,
    jsonb_build_object(
        'p50', percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
        'p95', percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds),
        'histogram', jsonb_build_object(
            '30', count(*) FILTER (WHERE seconds <= 30), '60', count(*) FILTER (WHERE seconds <= 60),
            '300', count(*) FILTER (WHERE seconds <= 300), '900', count(*) FILTER (WHERE seconds <= 900),
            '3600', count(*) FILTER (WHERE seconds <= 3600), '86400', count(*) FILTER (WHERE seconds <= 86400)
        )
    ) AS value_json
FROM onboarding.sessions,
    LATERAL (VALUES
        ('business_info', created_at, business_info_completed_at),
        ('whatsapp_integration', business_info_completed_at, whatsapp_integration_completed_at),
        ('bot_setup', whatsapp_integration_completed_at, bot_setup_completed_at),
        ('testing', bot_setup_completed_at, testing_completed_at)
    ) AS steps (step, began_at, done_at),
    LATERAL (SELECT extract(epoch FROM done_at - began_at) AS seconds) AS took
WHERE done_at >= $1 AND done_at < $2 AND done_at >= began_at
GROUP BY step

-- experiment_exposures --
-- Units first shown a variant in the window, by experiment and variant.
-- counter, count; day week month
SELECT jsonb_build_object('experiment', name, 'variant', variant_id) AS dimensions, count(*) AS value_numeric
FROM experiments.units JOIN experiments.experiments ON experiments.id = experiment_id
WHERE first_exposure_at >= $1 AND first_exposure_at < $2
GROUP BY name, variant_id

-- experiment_conversions --
-- Conversion events in the window by units that had been shown a variant, by experiment and variant. An event counts for
-- its user or, if that user was not shown a variant, for its session. A day is the sum of its hours.
-- counter, sum; hour day; from events
WITH conversions AS (
    SELECT experiments.canonical_id(user_id) AS user_id,
        experiments.canonical_id(session_id) AS session_id, created_at
    FROM analytics.events
    WHERE $3 = 'hour' AND type = 'conversion' AND created_at >= $1 AND created_at < $2
        AND device_type IS DISTINCT FROM 'bot'
), units AS MATERIALIZED (
    SELECT experiment.name, unit.* FROM experiments.units AS unit
    JOIN experiments.experiments AS experiment ON experiment.id = experiment_id
    WHERE $3 = 'hour' AND experiment_id IN (
        SELECT id FROM experiments.experiments WHERE status <> 'draft' AND (end_date IS NULL OR end_date > $1)
    )
), counted AS (
    SELECT name, variant_id FROM conversions
    JOIN units ON units.user_id::text = conversions.user_id AND first_exposure_at <= created_at
    UNION ALL
    SELECT name, variant_id FROM conversions
    JOIN (units CROSS JOIN LATERAL unnest(units.sessions) AS visit)
        ON visit = session_id AND first_exposure_at <= created_at
        AND (units.user_id IS NULL OR conversions.user_id IS NULL)
    WHERE NOT EXISTS (
        SELECT FROM units AS own
        WHERE own.experiment_id = units.experiment_id AND own.user_id::text = conversions.user_id
    )
)
SELECT jsonb_build_object('experiment', name, 'variant', variant_id) AS dimensions, count(*)::numeric AS value_numeric
FROM counted
GROUP BY name, variant_id
UNION ALL
SELECT dimensions, sum(value_numeric) FROM analytics.metrics
WHERE $3 = 'day' AND name = 'experiment_conversions' AND granularity = 'hour'
    AND time_window_start >= $1 AND time_window_start < $2
GROUP BY dimensions

-- ingestion_lag --
-- Seconds from receiving the first event of a record to storing it, 95th percentile; value_json has p50 and max. Events
-- received more than half an hour after their hour are ignored.
-- histogram, max; hour; from events and flushes
WITH records AS (
    SELECT batch_id, min(received_at) AS received_at, count(*) AS events
    FROM analytics.events
    WHERE created_at >= $1 AND created_at < $2 AND batch_id IS NOT NULL
        AND received_at >= $1 AND received_at < $2 + interval '30 minutes'
    GROUP BY batch_id
), lags AS (
    SELECT events, greatest(0, extract(epoch FROM flush.flushed_at - received_at)) AS seconds
    FROM records CROSS JOIN LATERAL (
        SELECT flushed_at, first_record FROM analytics.flushes
        WHERE journal = (batch_id >> 40)::int AND last_record >= batch_id & 1099511627775
        ORDER BY last_record LIMIT 1
    ) AS flush
    WHERE first_record <= batch_id & 1099511627775
)
SELECT '{}'::jsonb AS dimensions, percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS value_numeric,
    sum(events)::bigint AS sample_count,
    jsonb_build_object('p50', percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds), 'max', max(seconds)) AS value_json
FROM lags
HAVING count(*) > 0
