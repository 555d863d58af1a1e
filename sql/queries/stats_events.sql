-- Statistics from events: ingest/features/stats/. Everything from a request is passed as an argument.
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
