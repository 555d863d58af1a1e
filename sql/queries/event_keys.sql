-- Keys of events with corrected times: ingest/store/event_keys.py

-- piece lock_key --
-- The number of our advisory lock: "events.." in ASCII
7311142570157092398

-- lock --
-- For flushes that store such events: from here to COMMIT they exclude all others, because each must see what the other
-- did. The statements after this one do see it.
SELECT pg_advisory_xact_lock({lock_key})

-- lock_shared --
-- For flushes that store no such event
SELECT pg_advisory_xact_lock_shared({lock_key})

-- lock_and_look (starts, seconds) --
-- `lock_shared`, and whether `known` may find any, in one round trip: every flush asks, and hardly any finds one.
-- {starts} are times separated by commas.
SELECT pg_advisory_xact_lock_shared({lock_key});
SELECT FROM unnest('{{starts}}'::timestamptz[]) AS start
JOIN analytics.event_keys ON client_time >= start AND client_time < start + interval '{seconds} s'
LIMIT 1

-- claim --
-- Places of the new events; of several with one key, the first. An event may also have been stored under the client's
-- time, while that was possible. OFFSET 0 makes the planner look up each in the primary key of analytics.events, and the
-- bounds ($4, $5) leave it few partitions. Sorted, so that two flushes claiming the same keys do not deadlock.
WITH first AS (
    SELECT DISTINCT ON (client_time, id) client_time, id, created_at, place
    FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[], $3::text[]::timestamptz[])
        WITH ORDINALITY AS given (id, client_time, created_at, place)
    ORDER BY client_time, id, place
), claimed AS (
    INSERT INTO analytics.event_keys (client_time, id, created_at)
    SELECT client_time, id, created_at FROM first
    WHERE NOT EXISTS (
        SELECT FROM analytics.events AS event
        WHERE event.created_at = first.client_time AND event.id = first.id AND event.client_time IS NULL
            AND event.created_at BETWEEN $4 AND $5
        OFFSET 0
    )
    ORDER BY client_time, id
    ON CONFLICT DO NOTHING
    RETURNING client_time, id
)
SELECT place FROM first JOIN claimed USING (client_time, id) ORDER BY place

-- taken --
-- Places of events whose created_at and id belong to another event
SELECT place
FROM unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) WITH ORDINALITY AS given (id, created_at, place)
WHERE EXISTS (
    SELECT FROM analytics.events AS event
    WHERE event.created_at = given.created_at AND event.id = given.id AND event.created_at BETWEEN $3 AND $4
    OFFSET 0
)

-- release --
-- For events that the table refused
DELETE FROM analytics.event_keys AS key
USING unnest($1::text[]::uuid[], $2::text[]::timestamptz[]) AS gone (id, client_time)
WHERE key.id = gone.id AND key.client_time = gone.client_time

-- known --
-- Events of these batches ($3 to $4) that were stored before under a corrected time, because their own was impossible
-- then. Their own times are in the spans that begin at $1 and are $2 long.
SELECT key.client_time AS created_at, key.id
FROM unnest($1::text[]::timestamptz[]) AS start
CROSS JOIN LATERAL (
    SELECT client_time, id FROM analytics.event_keys
    WHERE client_time >= start AND client_time < start + $2::interval
    OFFSET 0
) AS key
CROSS JOIN LATERAL (
    SELECT FROM analytics.events AS event
    WHERE event.created_at = key.client_time AND event.id = key.id AND event.client_time IS NULL
        AND event.batch_id BETWEEN $3 AND $4 AND event.created_at >= $5 AND event.created_at < $6
    OFFSET 0
) AS ours

-- drop --
DELETE FROM analytics.events WHERE created_at = $1 AND id = $2
