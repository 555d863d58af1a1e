-- Statistics: ingest/features/stats/. Everything from a request is passed as an argument.
--
-- Queries of events have the same first seven: created from $1 to before $2; types $3; name $4 (NULL: any); bots $5
-- (exclude, only, include); with the values $6, such as {"country": "DE"}; without a value of the dimensions $7. All
-- are constants to the planner, so an unused filter costs nothing. analytics.counted_activity is analytics.activity, read
-- from the indexes of days that are over.

-- piece filters --
-- Values are cut to 255 characters, as in buckets; only for one that is as long, texts have to be. The dimensions are those
-- possible in `rollup_dimensions`.
CASE $5::text WHEN 'exclude' THEN device_type IS DISTINCT FROM 'bot' WHEN 'only' THEN device_type = 'bot' ELSE true END
    AND ($6::jsonb ->> 'country' IS NULL OR country::text = $6::jsonb ->> 'country')
    AND ('country' <> ALL ($7::text[]) OR country IS NULL)
    AND ($6::jsonb ->> 'device_type' IS NULL OR device_type::text = $6::jsonb ->> 'device_type')
    AND ('device_type' <> ALL ($7::text[]) OR device_type IS NULL)
    AND CASE WHEN $6::jsonb ->> 'browser' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'browser') < 255 THEN browser = $6::jsonb ->> 'browser'
        ELSE left(browser, 255) = $6::jsonb ->> 'browser' END
    AND ('browser' <> ALL ($7::text[]) OR browser IS NULL)
    AND CASE WHEN $6::jsonb ->> 'os' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'os') < 255 THEN os = $6::jsonb ->> 'os'
        ELSE left(os, 255) = $6::jsonb ->> 'os' END
    AND ('os' <> ALL ($7::text[]) OR os IS NULL)
    AND CASE WHEN $6::jsonb ->> 'page_path' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'page_path') < 255 THEN page_path = $6::jsonb ->> 'page_path'
        ELSE left(page_path, 255) = $6::jsonb ->> 'page_path' END
    AND ('page_path' <> ALL ($7::text[]) OR page_path IS NULL)
    AND CASE WHEN $6::jsonb ->> 'referrer_host' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'referrer_host') < 255 THEN referrer_host = $6::jsonb ->> 'referrer_host'
        ELSE left(referrer_host, 255) = $6::jsonb ->> 'referrer_host' END
    AND ('referrer_host' <> ALL ($7::text[]) OR referrer_host IS NULL)
    AND CASE WHEN $6::jsonb ->> 'utm_source' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'utm_source') < 255 THEN utm_source = $6::jsonb ->> 'utm_source'
        ELSE left(utm_source, 255) = $6::jsonb ->> 'utm_source' END
    AND ('utm_source' <> ALL ($7::text[]) OR utm_source IS NULL)
    AND CASE WHEN $6::jsonb ->> 'utm_medium' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'utm_medium') < 255 THEN utm_medium = $6::jsonb ->> 'utm_medium'
        ELSE left(utm_medium, 255) = $6::jsonb ->> 'utm_medium' END
    AND ('utm_medium' <> ALL ($7::text[]) OR utm_medium IS NULL)
    AND CASE WHEN $6::jsonb ->> 'utm_campaign' IS NULL THEN true
        WHEN char_length($6::jsonb ->> 'utm_campaign') < 255 THEN utm_campaign = $6::jsonb ->> 'utm_campaign'
        ELSE left(utm_campaign, 255) = $6::jsonb ->> 'utm_campaign' END
    AND ('utm_campaign' <> ALL ($7::text[]) OR utm_campaign IS NULL)

-- piece typed --
-- Not looked at if all types are asked for
($3::text[] @> '{page_view,user_action,conversion,system}' OR type = ANY ($3::text[]::analytics.event_type[]))

-- piece picked --
created_at >= $1 AND created_at < $2 AND {typed} AND ($4::text IS NULL OR name = $4) AND {filters}

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

-- piece token --
-- What an event's person is called in the sketches of users
coalesce((
    SELECT counted_as FROM analytics.people
    WHERE people.user_id = person AND (activity.user_id IS NOT NULL OR person <> anonymous_id)
), person) AS token

-- edges --
-- Events of some short times ($8, $9; $10 is what they belong to) that no bucket has for itself, by type; with the
-- distinct people, as they are called in sketches, and visits
SELECT place, type::text, count(*) AS events,
    array_agg(DISTINCT token) FILTER (WHERE token IS NOT NULL) AS users,
    array_agg(DISTINCT visit) FILTER (WHERE visit IS NOT NULL) AS sessions
FROM unnest($8::timestamptz[], $9::timestamptz[], $10::int[]) AS edge (starts_at, ends_at, place)
CROSS JOIN LATERAL (
    SELECT type, visit, {token} FROM analytics.counted_activity AS activity
    WHERE created_at >= starts_at AND created_at < ends_at AND {picked}
    OFFSET 0
) AS event
GROUP BY place, type

-- events_by_type --
-- Counts from events by the starts of buckets ($8), with those of two types
SELECT width_bucket(created_at, $8::timestamptz[]) - 1 AS place, count(*) AS events,
    count(*) FILTER (WHERE type = 'page_view') AS page_views,
    count(*) FILTER (WHERE type = 'conversion') AS conversions,
    count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions
FROM analytics.counted_activity AS activity
WHERE {picked}
GROUP BY place

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

-- piece sent --
-- The order in which events were sent; ids decide only for rows without a batch.
created_at, received_at, batch_id, batch_position, id

-- piece event_of_times --
-- Events of some times ($8, $9) and of half an hour before and after each
unnest($8::timestamptz[], $9::timestamptz[]) AS span (starts_at, ends_at)
    CROSS JOIN LATERAL (
        SELECT visit, person, type, created_at, received_at, batch_id, batch_position, id, page_path,
            {typed} AND ($4::text IS NULL OR name = $4) AND {filters} AS matches
        FROM analytics.counted_activity AS activity
        WHERE created_at >= $1::timestamptz - interval '30 minutes'
            AND created_at < $2::timestamptz + interval '30 minutes'
            AND created_at >= starts_at - interval '30 minutes' AND created_at < ends_at + interval '30 minutes'
            AND visit IS NOT NULL AND ($5 <> 'exclude' OR device_type IS DISTINCT FROM 'bot')
        OFFSET 0
    ) AS event

-- piece half_hours --
-- What events are summed by first: an hour with half an hour before and after it, or the part of one that is in a time,
-- is some of these.
GROUP BY starts_at, ends_at, visit, date_bin('30 minutes', created_at, 'epoch'), created_at >= starts_at, created_at < ends_at

-- piece hours --
-- Half hours (slots) for each of the two hours that they are of, or the part of one that is in the time: that is [low, high)
hours AS (
    SELECT slots.*, greatest(hour, starts_at) AS low, least(hour + interval '1 hour', ends_at) AS high
    FROM slots CROSS JOIN (VALUES (interval '-30 minutes'), (interval '30 minutes')) AS near (away)
    CROSS JOIN LATERAL (SELECT date_trunc('hour', first + away, 'UTC') AS hour) AS hour
    WHERE hour < ends_at AND hour + interval '1 hour' > starts_at
)

-- matching_visits --
-- The visits of sessions_from_events that any event is of that is picked
SELECT visit FROM analytics.counted_activity AS activity
WHERE created_at >= $1::timestamptz - interval '30 minutes' AND created_at < $2::timestamptz + interval '30 minutes'
    AND visit IS NOT NULL AND {typed} AND ($4::text IS NULL OR name = $4) AND {filters}

-- sessions_from_events (among) --
-- Sessions that began in some times ($8, $9), hour by hour as the KPI bounce_rate counts them, if any of their events is
-- one of those that are picked. {among}: a WHERE that leaves out visits without any such event, or nothing
WITH slots AS (
    SELECT starts_at, ends_at, visit, count(*) FILTER (WHERE type <> 'system') AS acts, min(created_at) AS first,
        max(created_at) AS last, bool_or(matches) AS matches
    FROM {event_of_times} {among}
    {half_hours}
), {hours}, visits AS (
    SELECT low, high, sum(acts) AS acts, min(first) AS began, extract(epoch FROM max(last) - min(first)) AS seconds,
        bool_or(matches) AS matches
    FROM hours
    WHERE first >= low - interval '30 minutes' AND first < high + interval '30 minutes'
    GROUP BY visit, low, high
)
SELECT count(*) AS sessions, count(*) FILTER (WHERE acts <= 1) AS bounces, coalesce(sum(seconds), 0)::float8 AS seconds
FROM visits WHERE began >= low AND began < high AND matches

-- count_events --
-- Counts from events, by the starts of buckets ($8)
SELECT width_bucket(created_at, $8::timestamptz[]) - 1 AS place, count(*) AS events,
    count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions
FROM analytics.counted_activity AS activity
WHERE {picked}
GROUP BY place

-- piece value --
-- The value of the dimension $8, or the name
CASE $8::text
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

-- rank_events --
-- Values of a dimension, or names (if $8 is event), by their events, from events; NULL: no value. After the value $10
-- with $9 events, or after no value if $11. `total`: the events of these and all that follow.
SELECT value, count(*) AS events, count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions,
    sum(count(*)) OVER ()::bigint AS total
FROM (
    SELECT person, visit, {value}
    FROM analytics.counted_activity AS activity
    WHERE {picked}
) AS picked
GROUP BY value
HAVING $9::bigint IS NULL OR count(*) < $9
    OR (count(*) = $9 AND NOT $11::boolean AND (value IS NULL OR value COLLATE "C" > $10::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $12

-- rank_people --
-- The same with people alone, without visits: each is counted where it is read, which several processes can do at once
SELECT value, sum(events)::bigint AS events, count(person) AS users, sum(sum(events)) OVER ()::bigint AS total
FROM (
    SELECT value, person, count(*) AS events
    FROM (
        SELECT person, {value}
        FROM analytics.counted_activity AS activity
        WHERE {picked}
    ) AS picked
    GROUP BY value, person
) AS people
GROUP BY value
HAVING $9::bigint IS NULL OR sum(events) < $9
    OR (sum(events) = $9 AND NOT $11::boolean AND (value IS NULL OR value COLLATE "C" > $10::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $12

-- edges_by_value --
-- The same as edges, by the value of a dimension or the name ($8), without the visits
SELECT value, count(*) AS events, array_agg(DISTINCT token) FILTER (WHERE token IS NOT NULL) AS users
FROM unnest($9::timestamptz[], $10::timestamptz[]) AS edge (starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT {value}, {token} FROM analytics.counted_activity AS activity
    WHERE created_at >= starts_at AND created_at < ends_at AND {picked}
    OFFSET 0
) AS event
GROUP BY value

-- entry_pages --
-- Pages by the sessions whose first page view they are, from events: none in the half hour before the range, and with
-- any event that is picked up to half an hour before or after it. $8 to $11 are as $9 to $12 of rank_events.
WITH matching AS MATERIALIZED (
    SELECT visit FROM analytics.counted_activity AS activity
    WHERE created_at >= $1::timestamptz - interval '30 minutes' AND created_at < $2::timestamptz + interval '30 minutes'
        AND visit IS NOT NULL AND {typed} AND ($4::text IS NULL OR name = $4) AND {filters}
    GROUP BY visit
), first AS (
    SELECT DISTINCT ON (visit) visit, person, created_at, left(page_path, 255) AS value
    FROM analytics.counted_activity AS activity JOIN matching USING (visit)
    WHERE created_at >= $1::timestamptz - interval '30 minutes' AND created_at < $2 AND type = 'page_view'
        AND ($5 <> 'exclude' OR device_type IS DISTINCT FROM 'bot')
    ORDER BY visit, {sent}
), picked AS (
    SELECT person, value FROM first WHERE created_at >= $1
)
SELECT value, count(*) AS events, count(DISTINCT person) AS users, sum(count(*)) OVER ()::bigint AS total
FROM picked
GROUP BY value
HAVING $8::bigint IS NULL OR count(*) < $8
    OR (count(*) = $8 AND NOT $10::boolean AND (value IS NULL OR value COLLATE "C" > $9::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $11

-- entries --
-- Pages by the sessions whose first page view they are, hour by hour as the KPI session_entries counts them: from it, for
-- the hours and days $10 to $12, and from events of other times ($8, $9). $13 to $16 are as $9 to $12 of rank_events.
-- `total`: of all pages; `other`: of those that are not told apart. There is always a row; without a page if none is left.
WITH slots AS (
    SELECT starts_at, ends_at, visit, min(created_at) AS first,
        min(created_at) FILTER (WHERE type = 'page_view') AS viewed_at,
        (array_agg(left(page_path, 255) ORDER BY {sent}) FILTER (WHERE type = 'page_view'))[1] AS value,
        (array_agg(person ORDER BY {sent}) FILTER (WHERE type = 'page_view'))[1] AS person
    FROM {event_of_times}
    {half_hours}
), {hours}, visits AS (
    SELECT min(first) AS began, low, high, min(viewed_at) IS NOT NULL AS viewed,
        (array_agg(value ORDER BY viewed_at) FILTER (WHERE viewed_at IS NOT NULL))[1] AS value,
        (array_agg(person ORDER BY viewed_at) FILTER (WHERE viewed_at IS NOT NULL))[1] AS person
    FROM hours
    WHERE first >= low - interval '30 minutes' AND first < high + interval '30 minutes'
    GROUP BY visit, low, high
), found AS (
    SELECT value, count(*)::numeric AS events, count(DISTINCT person) AS users
    FROM visits WHERE began >= low AND began < high AND viewed
    GROUP BY value
), stored AS MATERIALIZED (
    SELECT bucket.dimensions, sum(value_numeric) AS events
    FROM unnest($10::text[], $11::timestamptz[], $12::timestamptz[]) AS part (granularity, starts_at, ends_at)
    CROSS JOIN LATERAL (
        SELECT dimensions, value_numeric FROM analytics.metrics
        WHERE name = 'session_entries' AND granularity = part.granularity::analytics.granularity
            AND time_window_start >= starts_at AND time_window_start < ends_at
        OFFSET 0
    ) AS bucket
    GROUP BY bucket.dimensions
), counted AS MATERIALIZED (
    SELECT value, sum(events) AS events, sum(users)::bigint AS users
    FROM (
        SELECT * FROM found
        UNION ALL
        SELECT dimensions ->> 'page_path', events, NULL FROM stored
        WHERE jsonb_typeof(dimensions -> 'page_path') IN ('string', 'null')
    ) AS known
    GROUP BY value
), sums AS (
    SELECT (SELECT coalesce(sum(events), 0) FROM found)
        + (SELECT coalesce(sum(events), 0) FROM stored WHERE dimensions = '{}') AS total,
        (SELECT coalesce(sum(events), 0) FROM counted) AS listed
), page AS (
    SELECT * FROM counted
    WHERE $13::bigint IS NULL OR events < $13
        OR (events = $13 AND NOT $15::boolean AND (value IS NULL OR value COLLATE "C" > $14::text COLLATE "C"))
    ORDER BY events DESC, value COLLATE "C" NULLS LAST
    LIMIT $16
)
SELECT value, events::bigint, users, total::bigint, (total - listed)::bigint AS other
FROM sums LEFT JOIN page ON true
ORDER BY events DESC NULLS LAST, value COLLATE "C" NULLS LAST

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
    FROM analytics.counted_activity AS activity
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
    -- Of each person in each bucket, the first and the last are enough.
    SELECT person, width_bucket(created_at, $8::timestamptz[]) - 1 AS bucket,
        min(created_at) FILTER (WHERE ($4::text IS NULL OR name = $4) AND {typed}) AS began_at,
        max(created_at) FILTER (WHERE $9::text IS NULL OR name = $9) AS returned_at
    FROM analytics.counted_activity AS activity
    WHERE created_at >= $1 AND created_at < $2 AND person IS NOT NULL AND {filters}
        AND ((($4::text IS NULL OR name = $4) AND {typed}) OR $9::text IS NULL OR name = $9)
    GROUP BY person, bucket
), first AS (
    SELECT person, min(began_at) AS began_at, min(bucket) AS cohort FROM did WHERE began_at IS NOT NULL GROUP BY person
)
SELECT cohort, NULL::int AS period, count(*) AS people FROM first GROUP BY cohort
UNION ALL
SELECT cohort, bucket - cohort, count(*)
FROM first JOIN did USING (person)
WHERE returned_at >= first.began_at AND bucket - cohort < $10
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
