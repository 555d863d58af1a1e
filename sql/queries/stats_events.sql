-- Statistics from events: ingest/features/stats/. Everything from a request is passed as an argument.
--
-- Queries of events have the same first seven: created from $1 to before $2; types $3; name $4 (NULL: any); bots $5
-- (exclude, only, include); with the values $6, such as {"country": "DE"}; without a value of the dimensions $7. All
-- are constants to the planner, so an unused filter costs nothing. analytics.counted_activity is analytics.activity, read
-- from the indexes of days that are over. Those of slices have fifteen in common; see the piece slices.

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
    WHERE people.user_id = person AND (
        activity.user_id IS NOT NULL OR person <> anonymous_id
        -- A user may be called as their browser.
        OR EXISTS (SELECT FROM analytics.identities WHERE identities.anonymous_id = activity.anonymous_id)
    )
), person)

-- edges --
-- Events of some short times ($8, $9; $10 is what they belong to) that no bucket has for itself, by type; with the
-- distinct people, as they are called in sketches, and visits
SELECT place, type::text, count(*) AS events,
    array_agg(DISTINCT token) FILTER (WHERE token IS NOT NULL) AS users,
    array_agg(DISTINCT visit) FILTER (WHERE visit IS NOT NULL) AS sessions
FROM unnest($8::timestamptz[], $9::timestamptz[], $10::int[]) AS edge (starts_at, ends_at, place)
CROSS JOIN LATERAL (
    SELECT type, visit, {token} AS token FROM analytics.counted_activity AS activity
    WHERE created_at >= starts_at AND created_at < ends_at AND {picked}
    OFFSET 0
) AS event
GROUP BY place, type

-- piece sent --
-- The order in which events were sent; ids decide only for rows without a batch.
created_at, received_at, batch_id, batch_position, id

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

-- edges_by_value --
-- The same as edges, by the value of a dimension or the name ($8), without the visits
SELECT value, count(*) AS events, array_agg(DISTINCT token) FILTER (WHERE token IS NOT NULL) AS users
FROM unnest($9::timestamptz[], $10::timestamptz[]) AS edge (starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT {value}, {token} AS token FROM analytics.counted_activity AS activity
    WHERE created_at >= starts_at AND created_at < ends_at AND {picked}
    OFFSET 0
) AS event
GROUP BY value

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

-- sliced_hours --
-- Hours that have slices
SELECT hour FROM analytics.sliced_hours
WHERE is_complete AND hour >= date_trunc('hour', $1::timestamptz, 'UTC') AND hour < $2

-- piece columns_of_event --
-- An event as a slice
created_at, created_at, hashtextextended({token}, 0), hashtextextended(visit, 0),
    CASE WHEN type = 'page_view' THEN created_at END, NULL::int,
    1, (type = 'page_view')::int, (type = 'conversion')::int, (type <> 'system')::int, device_type, country,
    left(browser, 255), left(os, 255), left(referrer_host, 255), left(utm_source, 255), left(utm_medium, 255),
    left(utm_campaign, 255), ARRAY[left(page_path, 255)], ARRAY[1], ARRAY[(type = 'page_view')::int],
    ARRAY[(type = 'conversion')::int], name, {typed} AND ($4::text IS NULL OR name = $4),
    received_at, batch_id, batch_position, id

-- piece of_slices --
(
    SELECT first_at, last_at, person, visit, viewed_at, viewed_place, events, page_views, conversions, acts, device_type,
        country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign,
        pages, events_of_pages, page_views_of_pages, conversions_of_pages, NULL::text AS name, true AS is_named,
        NULL::timestamptz AS received_at, NULL::bigint AS batch_id, NULL::int AS batch_position, NULL::uuid AS id
    FROM analytics.visit_slices
    WHERE hour >= $8 AND hour < $9 AND (cardinality($10::timestamptz[]) = 0 OR hour <> ALL ($10))
        AND (cardinality($11::timestamptz[]) = 0 OR date_bin('30 minutes', first_at, 'epoch') <> ALL ($11))
) AS slice

-- piece of_events --
(
    SELECT {columns_of_event} FROM analytics.counted_activity AS activity
    WHERE created_at >= $12 AND created_at < $13
    UNION ALL
    SELECT {columns_of_event}
    FROM unnest($14::timestamptz[], $15::timestamptz[]) AS part (starts_at, ends_at)
    CROSS JOIN LATERAL (
        SELECT * FROM analytics.counted_activity
        WHERE created_at >= $1 AND created_at < $2 AND created_at >= starts_at AND created_at < ends_at
        OFFSET 0
    ) AS activity
) AS slice (
    first_at, last_at, person, visit, viewed_at, viewed_place, events, page_views, conversions, acts, device_type, country,
    browser, os, referrer_host, utm_source, utm_medium, utm_campaign, pages, events_of_pages, page_views_of_pages,
    conversions_of_pages, name, is_named, received_at, batch_id, batch_position, id
)

-- piece slices --
-- What was done between $1 and $2, a row or a few a visit: from slices for the hours from $8 to before $9, except for the
-- hours $10 and the half hours $11; and from events, a row each, for a long time from $12 to before $13 and short ones
-- from $14 to before $15. is_named: whether it is of the types and the name that are asked for, which slices do not know;
-- person and visit are hashes. Bounds are constants, by which the planner knows how many rows there will be.
(SELECT * FROM {of_slices} UNION ALL SELECT * FROM {of_events}) AS slice

-- piece slice_filters --
CASE $5::text WHEN 'exclude' THEN device_type IS DISTINCT FROM 'bot' WHEN 'only' THEN device_type = 'bot' ELSE true END
    AND ($6::jsonb ->> 'country' IS NULL OR country::text = $6::jsonb ->> 'country')
    AND ('country' <> ALL ($7::text[]) OR country IS NULL)
    AND ($6::jsonb ->> 'device_type' IS NULL OR device_type::text = $6::jsonb ->> 'device_type')
    AND ('device_type' <> ALL ($7::text[]) OR device_type IS NULL)
    AND ($6::jsonb ->> 'browser' IS NULL OR browser = $6::jsonb ->> 'browser')
    AND ('browser' <> ALL ($7::text[]) OR browser IS NULL)
    AND ($6::jsonb ->> 'os' IS NULL OR os = $6::jsonb ->> 'os')
    AND ('os' <> ALL ($7::text[]) OR os IS NULL)
    AND ($6::jsonb ->> 'page_path' IS NULL OR $6::jsonb ->> 'page_path' = ANY (pages))
    AND ('page_path' <> ALL ($7::text[]) OR array_position(pages, NULL) IS NOT NULL)
    AND ($6::jsonb ->> 'referrer_host' IS NULL OR referrer_host = $6::jsonb ->> 'referrer_host')
    AND ('referrer_host' <> ALL ($7::text[]) OR referrer_host IS NULL)
    AND ($6::jsonb ->> 'utm_source' IS NULL OR utm_source = $6::jsonb ->> 'utm_source')
    AND ('utm_source' <> ALL ($7::text[]) OR utm_source IS NULL)
    AND ($6::jsonb ->> 'utm_medium' IS NULL OR utm_medium = $6::jsonb ->> 'utm_medium')
    AND ('utm_medium' <> ALL ($7::text[]) OR utm_medium IS NULL)
    AND ($6::jsonb ->> 'utm_campaign' IS NULL OR utm_campaign = $6::jsonb ->> 'utm_campaign')
    AND ('utm_campaign' <> ALL ($7::text[]) OR utm_campaign IS NULL)

-- piece matching --
is_named AND {slice_filters}

-- piece on_page --
-- Which of the slice's pages is filtered by; NULL: none, all count
CASE WHEN $6::jsonb ->> 'page_path' IS NOT NULL THEN array_position(pages, $6::jsonb ->> 'page_path')
    WHEN 'page_path' = ANY ($7::text[]) THEN array_position(pages, NULL) END

-- piece counted --
-- Slices that match, with the numbers of their events that do
SELECT *
FROM (
    SELECT first_at, person, visit, device_type, country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign, name,
        CASE $3::text[] WHEN ARRAY['page_view'] THEN viewed WHEN ARRAY['conversion'] THEN converted ELSE happened END AS events,
        CASE WHEN 'page_view' = ANY ($3::text[]) THEN viewed ELSE 0 END AS page_views,
        CASE WHEN 'conversion' = ANY ($3::text[]) THEN converted ELSE 0 END AS conversions
    FROM {slices}
    CROSS JOIN LATERAL (
        SELECT coalesce(events_of_pages[{on_page}], events) AS happened,
            coalesce(page_views_of_pages[{on_page}], page_views) AS viewed,
            coalesce(conversions_of_pages[{on_page}], conversions) AS converted
    ) AS numbers
    WHERE {matching}
) AS counted
WHERE events > 0

-- count_slices --
-- By the starts of buckets ($16)
SELECT width_bucket(first_at, $16::timestamptz[]) - 1 AS place, sum(events)::bigint AS events,
    sum(page_views)::bigint AS page_views, sum(conversions)::bigint AS conversions,
    count(DISTINCT person) AS users, count(DISTINCT visit) AS sessions
FROM ({counted}) AS slice
GROUP BY place

-- piece ranked --
-- The values of `valued` by their events, and their people, which are sorted by number first: it costs a fraction of texts.
-- $16 to $19 are as $9 to $12 of rank_events.
SELECT value, sum(events)::bigint AS events, count(person) AS users, sum(sum(events)) OVER ()::bigint AS total
FROM (SELECT value, person, sum(events) AS events FROM valued WHERE events > 0 GROUP BY person, value) AS people
GROUP BY value
HAVING $16::bigint IS NULL OR sum(events) < $16
    OR (sum(events) = $16 AND NOT $18::boolean AND (value IS NULL OR value COLLATE "C" > $17::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $19

-- rank_people --
-- Values of the dimension $20, which is not the page, or names (if it is event)
WITH valued AS (
    SELECT person, events, CASE $20::text
        WHEN 'event' THEN name
        WHEN 'country' THEN country::text
        WHEN 'device_type' THEN device_type::text
        WHEN 'browser' THEN browser
        WHEN 'os' THEN os
        WHEN 'referrer_host' THEN referrer_host
        WHEN 'utm_source' THEN utm_source
        WHEN 'utm_medium' THEN utm_medium
        WHEN 'utm_campaign' THEN utm_campaign
    END AS value
    FROM ({counted}) AS slice
)
{ranked}

-- rank_pages --
-- Two unnest() side by side take a third of the time of one with two arguments, in FROM.
WITH valued AS (
    SELECT *
    FROM (
        SELECT person, unnest(pages) AS value, unnest(CASE $3::text[]
            WHEN ARRAY['page_view'] THEN page_views_of_pages
            WHEN ARRAY['conversion'] THEN conversions_of_pages
            ELSE events_of_pages
        END) AS events
        FROM {slices}
        WHERE {matching}
    ) AS seen
    WHERE ($6::jsonb ->> 'page_path' IS NULL OR value = $6::jsonb ->> 'page_path')
        AND ('page_path' <> ALL ($7::text[]) OR value IS NULL)
)
{ranked}

-- piece columns_of_seen --
person, visit, first_at, last_at, acts, viewed_at, viewed_place, received_at, batch_id, batch_position, id, pages[1] AS value,
    {matching} AS matches

-- piece of_visits --
visit IS NOT NULL AND ($5 <> 'exclude' OR device_type IS DISTINCT FROM 'bot')

-- piece seen --
-- Slices of visits. {among} leaves out those that are not among picked_visits, or nothing.
(
    SELECT {columns_of_seen} FROM {of_slices} WHERE {of_visits} {among}
    UNION ALL
    SELECT {columns_of_seen} FROM {of_events} WHERE {of_visits} {among}
) AS seen

-- piece picked_visits --
-- Those that any event is of that is picked
picked_visits AS MATERIALIZED (SELECT visit FROM {slices} WHERE visit IS NOT NULL AND {matching} GROUP BY visit)

-- piece viewed_first --
-- The order of first page views
viewed_at, viewed_place, received_at, batch_id, batch_position, id

-- piece of_spans --
-- Of the times $16 and $17, and of half an hour before and after each
JOIN unnest($16::timestamptz[], $17::timestamptz[]) AS span (starts_at, ends_at)
    ON first_at >= starts_at - interval '30 minutes' AND first_at < ends_at + interval '30 minutes'

-- piece hours --
-- What is `near` the times, for each of the two hours that a half hour is of, or the part of one that is in the time: that is
-- [low, high)
hours AS (
    SELECT near.*, greatest(hour, starts_at) AS low, least(hour + interval '1 hour', ends_at) AS high
    FROM near CROSS JOIN (VALUES (interval '-30 minutes'), (interval '30 minutes')) AS half (away)
    CROSS JOIN LATERAL (SELECT date_bin('1 hour', first_at + away, 'epoch') AS hour) AS hour
    WHERE hour < ends_at AND hour + interval '1 hour' > starts_at
)

-- sessions (among) --
-- Sessions that began in some times, hour by hour as the KPI bounce_rate counts them, if any of their events is one of
-- those that are picked
WITH {picked_visits}, near AS (
    SELECT visit, first_at, last_at, acts, matches, starts_at, ends_at FROM {seen} {of_spans}
), {hours}, visits AS (
    SELECT low, high, sum(acts) AS acts, min(first_at) AS began, bool_or(matches) AS matches,
        extract(epoch FROM max(last_at) - min(first_at)) AS seconds
    FROM hours
    WHERE first_at >= low - interval '30 minutes' AND first_at < high + interval '30 minutes'
    GROUP BY visit, low, high
)
SELECT count(*) AS sessions, count(*) FILTER (WHERE acts <= 1) AS bounces, coalesce(sum(seconds), 0)::float8 AS seconds
FROM visits WHERE began >= low AND began < high AND matches

-- entry_pages (among) --
-- Pages by the sessions whose first page view they are, from $16 to before $17: none in the half hour before, and with any
-- event that is picked up to half an hour before or after. $18 to $21 are as $9 to $12 of rank_events.
WITH {picked_visits}, first AS (
    SELECT DISTINCT ON (visit) visit, person, viewed_at, value FROM {seen}
    WHERE viewed_at < $17
    ORDER BY visit, {viewed_first}
), picked AS (
    SELECT person, value FROM first WHERE viewed_at >= $16
)
SELECT value, count(*) AS events, count(DISTINCT person) AS users, sum(count(*)) OVER ()::bigint AS total
FROM picked
GROUP BY value
HAVING $18::bigint IS NULL OR count(*) < $18
    OR (count(*) = $18 AND NOT $20::boolean AND (value IS NULL OR value COLLATE "C" > $19::text COLLATE "C"))
ORDER BY events DESC, value COLLATE "C" NULLS LAST
LIMIT $21

-- entries (among) --
-- Pages by the sessions whose first page view they are, hour by hour as the KPI session_entries counts them: from it, for
-- the hours and days $18 to $20, and from slices and events of other times ($16, $17). $21 to $24 are as $9 to $12 of
-- rank_events. `total`: of all pages; `other`: of those that are not told apart. There is always a row; without a page if
-- none is left.
WITH near AS (
    SELECT * FROM {seen} {of_spans}
), {hours}, visits AS (
    SELECT min(first_at) AS began, low, high, min(viewed_at) IS NOT NULL AS viewed,
        (array_agg(value ORDER BY {viewed_first}) FILTER (WHERE viewed_at IS NOT NULL))[1] AS value,
        (array_agg(person ORDER BY {viewed_first}) FILTER (WHERE viewed_at IS NOT NULL))[1] AS person
    FROM hours
    WHERE first_at >= low - interval '30 minutes' AND first_at < high + interval '30 minutes'
    GROUP BY visit, low, high
), found AS (
    SELECT value, count(*)::numeric AS events, count(DISTINCT person) AS users
    FROM visits WHERE began >= low AND began < high AND viewed
    GROUP BY value
), stored AS MATERIALIZED (
    SELECT bucket.dimensions, sum(value_numeric) AS events
    FROM unnest($18::text[], $19::timestamptz[], $20::timestamptz[]) AS part (granularity, starts_at, ends_at)
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
    WHERE $21::bigint IS NULL OR events < $21
        OR (events = $21 AND NOT $23::boolean AND (value IS NULL OR value COLLATE "C" > $22::text COLLATE "C"))
    ORDER BY events DESC, value COLLATE "C" NULLS LAST
    LIMIT $24
)
SELECT value, events::bigint, users, total::bigint, (total - listed)::bigint AS other
FROM sums LEFT JOIN page ON true
ORDER BY events DESC NULLS LAST, value COLLATE "C" NULLS LAST

-- retention --
-- People by the bucket ($16: starts) of their first event, and how many of them came back with the event $17 in each
-- bucket after it, up to the period $18. The row without a period has the number of people.
WITH did AS MATERIALIZED (
    -- Of each person in each bucket, the first and the last are enough.
    SELECT person, width_bucket(first_at, $16::timestamptz[]) - 1 AS bucket,
        min(first_at) FILTER (WHERE is_named) AS began_at,
        max(last_at) FILTER (WHERE $17::text IS NULL OR name = $17) AS returned_at
    FROM {slices}
    WHERE person IS NOT NULL AND {slice_filters} AND (is_named OR $17::text IS NULL OR name = $17)
    GROUP BY person, bucket
), first AS (
    SELECT person, min(began_at) AS began_at, min(bucket) AS cohort FROM did WHERE began_at IS NOT NULL GROUP BY person
)
SELECT cohort, NULL::int AS period, count(*) AS people FROM first GROUP BY cohort
UNION ALL
SELECT cohort, bucket - cohort, count(*)
FROM first JOIN did USING (person)
WHERE returned_at >= first.began_at AND bucket - cohort < $18
GROUP BY cohort, bucket - cohort
