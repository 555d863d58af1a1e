-- list_rejected --
-- Refused events, newest first, for one reason or all.
SELECT id, received_at, reason, detail, route, payload, replayed_at
FROM analytics.rejected_events
WHERE ($1::text IS NULL OR reason = $1) AND ($2 OR replayed_at IS NULL)
ORDER BY id DESC
LIMIT $3

-- count_rejected --
-- How many are kept for each reason, and how many of them were replayed.
SELECT reason, count(*) AS events, count(replayed_at) AS replayed, max(received_at) AS latest
FROM analytics.rejected_events
GROUP BY reason
ORDER BY events DESC

-- last --
-- Events refused during a replay are not part of it.
SELECT coalesce(max(id), 0) FROM analytics.rejected_events

-- replayable --
-- Events that can be sent again, oldest first; those with a truncated payload cannot.
SELECT id, received_at, sent_at, route, payload, user_agent, host(ip_address) AS address
FROM analytics.rejected_events
WHERE replayed_at IS NULL AND NOT payload_truncated
    AND ($1::text IS NULL OR reason = $1) AND ($2::bigint IS NULL OR id = $2) AND id > $3 AND id <= $4
ORDER BY id
LIMIT $5

-- mark_replayed --
-- Once they are stored.
UPDATE analytics.rejected_events SET replayed_at = now() WHERE id = ANY ($1::bigint[])
