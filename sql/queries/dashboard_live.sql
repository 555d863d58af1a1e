-- The dashboard's live page: ingest/dashboard/live_page.py

-- newest_events --
-- Of the last day, by time; the latest partitions' indexes have them in this order
SELECT created_at, type::text, name, left(coalesce(user_id, anonymous_id), 12) AS person, left(page_path, 200) AS path,
    country, device_type::text AS device
FROM analytics.events WHERE created_at >= $1 ORDER BY created_at DESC LIMIT $2

-- newest_refused --
SELECT received_at, reason, left(detail, 300) AS detail, left(payload, 300) AS payload
FROM analytics.rejected_events ORDER BY id DESC LIMIT $1
