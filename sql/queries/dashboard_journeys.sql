-- Funnels and retention on the dashboard: ingest/dashboard/funnels.py, ingest/dashboard/retention.py. Under the viewer's
-- role. $1 to $3 are the stored buckets of a range, as in stats.sql.

-- piece of_parts --
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT event_name, event_type, event_count FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND dimensions = '{}' AND event_count > 0
    OFFSET 0
) AS bucket

-- names --
-- Events by type, and by name the $4 most frequent of those with $5 in them (NULL: all), first the one that is $5.
-- Those that buckets had no room for have no name.
SELECT event_name AS name, event_type::text AS type, sum(event_count)::bigint AS events
{of_parts}
WHERE $5::text IS NULL OR position(lower($5) IN lower(event_name)) > 0
GROUP BY GROUPING SETS ((event_type), (event_name))
HAVING event_name IS DISTINCT FROM ''
ORDER BY event_name IS NULL DESC, event_name IS NOT DISTINCT FROM $5 DESC, events DESC, event_name COLLATE "C"
LIMIT $4::int + 4

-- pages --
-- The $4 most viewed pages of those with $5 in their path (NULL: all), first the one that is $5
SELECT value, sum(event_count)::bigint AS events
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS part (granularity, starts_at, ends_at)
CROSS JOIN LATERAL (
    SELECT dimensions ->> 'page_path' AS value, event_count FROM analytics.event_aggregations
    WHERE granularity = part.granularity::analytics.granularity AND time_bucket >= starts_at AND time_bucket < ends_at
        AND event_type = 'page_view' AND event_count > 0
        AND dimensions > '{"page_path": null}' AND dimensions < '{"page_path": 0}'
    OFFSET 0
) AS bucket
WHERE $5::text IS NULL OR position(lower($5) IN lower(value)) > 0
GROUP BY value
ORDER BY value IS NOT DISTINCT FROM $5 DESC, events DESC, value COLLATE "C"
LIMIT $4

-- occurring --
-- Which of the names $4 occur, and names of conversions
SELECT event_name AS name, bool_or(event_type = 'conversion') AS is_conversion
{of_parts}
WHERE event_name = ANY ($4::text[]) OR event_type = 'conversion'
GROUP BY event_name
ORDER BY event_name = ANY ($4::text[]) DESC, event_name
LIMIT 100

-- funnels --
SELECT id, name, steps, within_seconds FROM analytics.saved_funnels ORDER BY created_at, id LIMIT $1

-- funnel --
SELECT id, name, steps, within_seconds FROM analytics.saved_funnels WHERE id = $1

-- save_funnel --
-- Nothing if there are $4 already
INSERT INTO analytics.saved_funnels (name, steps, within_seconds)
SELECT $1, $2, $3 WHERE (SELECT count(*) FROM analytics.saved_funnels) < $4::int
RETURNING id

-- change_funnel --
UPDATE analytics.saved_funnels SET name = $2, steps = $3, within_seconds = $4 WHERE id = $1 RETURNING id

-- delete_funnel --
DELETE FROM analytics.saved_funnels WHERE id = $1 RETURNING id
