-- Statistics: ingest/features/stats/. Everything from a request is passed as an argument.
--
-- Queries of events have the same first seven: created from $1 to before $2; types $3; name $4 (NULL: any); bots $5
-- (exclude, only, include); with the values $6, such as {"country": "DE"}; without a value of the dimensions $7. All
-- are constants to the planner, so an unused filter costs nothing.

-- piece filters --
-- Values are cut to 255 characters, as in buckets. The dimensions are those possible in `rollup_dimensions`.
CASE $5::text WHEN 'exclude' THEN device_type IS DISTINCT FROM 'bot' WHEN 'only' THEN device_type = 'bot' ELSE true END
    AND ($6::jsonb ->> 'country' IS NULL OR left(country::text, 255) = $6::jsonb ->> 'country')
    AND ('country' <> ALL ($7::text[]) OR country IS NULL)
    AND ($6::jsonb ->> 'device_type' IS NULL OR left(device_type::text, 255) = $6::jsonb ->> 'device_type')
    AND ('device_type' <> ALL ($7::text[]) OR device_type IS NULL)
    AND ($6::jsonb ->> 'browser' IS NULL OR left(browser::text, 255) = $6::jsonb ->> 'browser')
    AND ('browser' <> ALL ($7::text[]) OR browser IS NULL)
    AND ($6::jsonb ->> 'os' IS NULL OR left(os::text, 255) = $6::jsonb ->> 'os')
    AND ('os' <> ALL ($7::text[]) OR os IS NULL)
    AND ($6::jsonb ->> 'page_path' IS NULL OR left(page_path::text, 255) = $6::jsonb ->> 'page_path')
    AND ('page_path' <> ALL ($7::text[]) OR page_path IS NULL)
    AND ($6::jsonb ->> 'referrer_host' IS NULL OR left(referrer_host::text, 255) = $6::jsonb ->> 'referrer_host')
    AND ('referrer_host' <> ALL ($7::text[]) OR referrer_host IS NULL)
    AND ($6::jsonb ->> 'utm_source' IS NULL OR left(utm_source::text, 255) = $6::jsonb ->> 'utm_source')
    AND ('utm_source' <> ALL ($7::text[]) OR utm_source IS NULL)
    AND ($6::jsonb ->> 'utm_medium' IS NULL OR left(utm_medium::text, 255) = $6::jsonb ->> 'utm_medium')
    AND ('utm_medium' <> ALL ($7::text[]) OR utm_medium IS NULL)
    AND ($6::jsonb ->> 'utm_campaign' IS NULL OR left(utm_campaign::text, 255) = $6::jsonb ->> 'utm_campaign')
    AND ('utm_campaign' <> ALL ($7::text[]) OR utm_campaign IS NULL)

-- piece picked --
created_at >= $1 AND created_at < $2
    AND type = ANY ($3::text[]::analytics.event_type[]) AND ($4::text IS NULL OR name = $4)
    AND {filters}

-- freshness --
-- as_of: buckets have everything stored before this time; minutes_from: the first minute that is kept
SELECT now() AS now, coalesce((SELECT min(flushed_at) FROM analytics.flushes WHERE rolled_up_at IS NULL), now()) AS as_of,
    now() - ingest.retention('minutes', '7 days') AS minutes_from

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
-- {"other": true} is for values that had no room. Bots' events are not in the total, nor here.
WITH part AS (
    SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
), counted AS (
    SELECT dimensions -> $6 AS value, sum(event_count) AS events
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
    GROUP BY value
), total AS (
    SELECT coalesce(sum(event_count), 0) AS events
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
-- that had no room
SELECT event_name AS value, sum(event_count)::bigint AS events
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT event_name, event_count FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = ANY ($4::text[]::analytics.event_type[])
        AND ($5::text IS NULL OR event_name = $5) AND event_name <> ''
        AND dimensions = ANY ($6::text[]::jsonb[])
    OFFSET 0
) AS bucket
GROUP BY event_name
HAVING sum(event_count) > 0 AND (
    $7::bigint IS NULL OR sum(event_count) < $7
    OR (sum(event_count) = $7 AND NOT $9::boolean AND event_name COLLATE "C" > $8::text COLLATE "C")
)
ORDER BY events DESC, event_name COLLATE "C"
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

-- count_events --
-- Counts from events, by the starts of buckets ($8)
SELECT width_bucket(created_at, $8::timestamptz[]) - 1 AS place, count(*) AS events,
    count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions
FROM analytics.activity
WHERE {picked}
GROUP BY place

-- rank_events --
-- Values of a dimension, or names (if $8 is event), by their events, from events; NULL: no value. After the value $10
-- with $9 events, or after no value if $11.
SELECT value, count(*) AS events, count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions
FROM (
    SELECT person, visit, CASE $8::text
        WHEN 'event' THEN name
        WHEN 'country' THEN left(country::text, 255)
        WHEN 'device_type' THEN left(device_type::text, 255)
        WHEN 'browser' THEN left(browser::text, 255)
        WHEN 'os' THEN left(os::text, 255)
        WHEN 'page_path' THEN left(page_path::text, 255)
        WHEN 'referrer_host' THEN left(referrer_host::text, 255)
        WHEN 'utm_source' THEN left(utm_source::text, 255)
        WHEN 'utm_medium' THEN left(utm_medium::text, 255)
        WHEN 'utm_campaign' THEN left(utm_campaign::text, 255)
    END AS value
    FROM analytics.activity
    WHERE {picked}
) AS picked
GROUP BY value
HAVING $9::bigint IS NULL OR count(*) < $9
    OR (count(*) = $9 AND NOT $11::boolean AND (value IS NULL OR value COLLATE "C" > $10::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $12

-- piece sent --
-- The order in which events were sent; ids decide only for rows without a batch.
created_at, received_at, batch_id, batch_position, id

-- funnel_condition (step) --
-- ingest/features/stats/journeys.py builds a funnel of any number of steps from this and the next five. This condition
-- is whether an event matches a step: $9 has the kinds of all steps, $10 their values.
CASE ($9::text[])[{step}]
    WHEN 'event' THEN name = ($10::text[])[{step}]
    WHEN 'type' THEN type = ($10::text[])[{step}]::analytics.event_type
    WHEN 'page' THEN type = 'page_view' AND left(page_path::text, 255) = ($10::text[])[{step}]
END

-- funnel_begin (are, any) --
-- Events that match any step, and when the first step was done. {are} has a column per step: whether the event matches.
SELECT *, CASE WHEN is_1 THEN created_at END AS began_1, NULL::interval AS took_1
FROM (
    SELECT id, created_at, received_at, batch_id, batch_position, person, {are}
    FROM analytics.activity
    WHERE person IS NOT NULL AND ({any}) AND {picked}
) AS candidates

-- funnel_step (step, before, inner) --
-- One step of a funnel, around those before it: if it was done, when its funnel began and how long ago the previous
-- step was. The latest of the previous steps counts, as a funnel that began later also ends later. Events at the same
-- time are in the order in which they were sent. {step}: its number; {before}: the previous step's; $8: the time for
-- all steps.
SELECT *,
    CASE WHEN is_{step} AND created_at - max(began_{before}) OVER sofar <= $8::interval
        THEN max(began_{before}) OVER sofar END AS began_{step},
    created_at - max(CASE WHEN began_{before} IS NOT NULL THEN created_at END) OVER sofar AS took_{step}
FROM ({inner}) AS step_{before}
WINDOW sofar AS (PARTITION BY person ORDER BY {sent} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)

-- funnel_first (step) --
-- For each person, the first time counts.
bool_or(began_{step} IS NOT NULL) AS did_{step},
    (array_agg(took_{step} ORDER BY {sent}) FILTER (WHERE began_{step} IS NOT NULL))[1] AS took_{step}

-- funnel_count (step) --
count(*) FILTER (WHERE did_{step}) AS people_{step},
    percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM took_{step})::float8) AS seconds_{step}

-- funnel (counts, firsts, inner) --
-- How many people did each step, and the median time since the previous step
SELECT {counts} FROM (SELECT person, {firsts} FROM ({inner}) AS steps GROUP BY person) AS people

-- retention --
-- People by the bucket ($8: starts) of their first event, and how many of them came back with the event $9 in each
-- bucket after it, up to the period $10. The row without a period has the number of people.
WITH did AS MATERIALIZED (
    SELECT person, created_at,
        width_bucket(created_at, $8::timestamptz[]) - 1 AS bucket,
        ($4::text IS NULL OR name = $4) AND type = ANY ($3::text[]::analytics.event_type[]) AS begins,
        $9::text IS NULL OR name = $9 AS returns
    FROM analytics.activity
    WHERE created_at >= $1 AND created_at < $2 AND person IS NOT NULL AND {filters}
        AND ((($4::text IS NULL OR name = $4) AND type = ANY ($3::text[]::analytics.event_type[]))
            OR $9::text IS NULL OR name = $9)
), first AS (
    SELECT person, min(created_at) AS began_at, min(bucket) AS cohort FROM did WHERE begins GROUP BY person
)
SELECT cohort, NULL::int AS period, count(*) AS people FROM first GROUP BY cohort
UNION ALL
SELECT cohort, bucket - cohort, count(DISTINCT person)
FROM first JOIN did USING (person)
WHERE returns AND created_at >= began_at AND bucket - cohort < $10
GROUP BY cohort, bucket - cohort

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
