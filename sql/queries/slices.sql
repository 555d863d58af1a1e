-- Slices of visits: ingest/rollup/slices.py

-- piece kept --
-- From when on events are kept: they are dropped when the service's retention_days are over, or the database's setting
(
    SELECT greatest(
        min(to_date(right(relname, 8), 'YYYYMMDD'))::timestamp AT TIME ZONE 'UTC',
        date_trunc('day', $1::timestamptz - ingest.retention('events', '90 days'), 'UTC')
    ) AS first
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
) AS kept

-- missing --
-- Hours over by $1 that have no slices, as far back as events are kept, the latest first
SELECT hour
FROM {kept} CROSS JOIN LATERAL generate_series(first, $1::timestamptz - interval '1 hour', '1 hour') AS over (hour)
WHERE NOT EXISTS (SELECT FROM analytics.sliced_hours AS made WHERE made.hour = over.hour AND is_complete)
ORDER BY hour DESC
LIMIT $2

-- begin --
-- From here on, a change of the hour deletes this row, and `complete` finds none.
INSERT INTO analytics.sliced_hours AS made (hour) VALUES ($1)
ON CONFLICT (hour) DO UPDATE SET token = excluded.token, is_complete = false, created_at = excluded.created_at
RETURNING token

-- clear --
DELETE FROM analytics.visit_slices WHERE hour = $1

-- make --
-- Each page of a slice first, then slices of up to $2 pages
WITH act AS (
    SELECT created_at, type, device_type, country, left(browser, 255) AS browser, left(os, 255) AS os,
        left(page_path, 255) AS page, left(referrer_host, 255) AS referrer_host, left(utm_source, 255) AS utm_source,
        left(utm_medium, 255) AS utm_medium, left(utm_campaign, 255) AS utm_campaign,
        hashtextextended(coalesce((
            SELECT counted_as FROM analytics.people
            WHERE people.user_id = person AND (
                activity.user_id IS NOT NULL OR person <> anonymous_id
                OR EXISTS (SELECT FROM analytics.identities WHERE identities.anonymous_id = activity.anonymous_id)
            )
        ), person), 0) AS person,
        hashtextextended(visit, 0) AS visit,
        row_number() OVER (ORDER BY created_at, received_at, batch_id, batch_position, id) AS place
    FROM analytics.activity
    WHERE created_at >= $1::timestamptz AND created_at < $1::timestamptz + interval '1 hour'
), page AS (
    SELECT created_at >= $1::timestamptz + interval '30 minutes' AS is_late, person, visit, device_type, country, browser, os,
        referrer_host, utm_source, utm_medium, utm_campaign, page,
        min(created_at) AS first_at, max(created_at) AS last_at,
        min(created_at) FILTER (WHERE type = 'page_view') AS viewed_at,
        min(place) FILTER (WHERE type = 'page_view') AS viewed_place,
        count(*) AS events,
        count(*) FILTER (WHERE type = 'page_view') AS page_views,
        count(*) FILTER (WHERE type = 'conversion') AS conversions,
        count(*) FILTER (WHERE type <> 'system') AS acts
    FROM act
    GROUP BY is_late, person, visit, device_type, country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign,
        page
), numbered AS (
    SELECT page.*, (row_number() OVER (
        PARTITION BY is_late, person, visit, device_type, country, browser, os, referrer_host, utm_source, utm_medium,
            utm_campaign
        ORDER BY viewed_place NULLS LAST, page
    ) - 1) / $2::int AS part
    FROM page
)
INSERT INTO analytics.visit_slices (
    hour, number, first_at, last_at, viewed_at, person, visit, viewed_place, events, page_views, conversions, acts,
    device_type, country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign,
    pages, events_of_pages, page_views_of_pages, conversions_of_pages
)
SELECT $1, row_number() OVER (), min(first_at), max(last_at), min(viewed_at), person, visit, min(viewed_place),
    sum(events), sum(page_views), sum(conversions), sum(acts),
    device_type, country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign,
    array_agg(page ORDER BY viewed_place NULLS LAST, page),
    array_agg(events::int ORDER BY viewed_place NULLS LAST, page),
    array_agg(page_views::int ORDER BY viewed_place NULLS LAST, page),
    array_agg(conversions::int ORDER BY viewed_place NULLS LAST, page)
FROM numbered
GROUP BY is_late, person, visit, device_type, country, browser, os, referrer_host, utm_source, utm_medium, utm_campaign, part

-- complete --
-- Unless the hour has changed since `begin`
UPDATE analytics.sliced_hours SET is_complete = true WHERE hour = $1 AND token = $2 RETURNING hour

-- forget --
-- Of days whose events are not kept any more
WITH old AS (
    DELETE FROM analytics.sliced_hours USING {kept} WHERE hour < first RETURNING hour
), gone AS (
    DELETE FROM analytics.visit_slices USING old WHERE visit_slices.hour = old.hour
)
SELECT count(*) FROM old
