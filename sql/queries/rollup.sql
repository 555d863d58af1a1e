-- Rollups: ingest/rollup/rollup.py, buckets.py and rebuild.py

-- take_turn --
-- The keepalives and timeout are for a holder that vanishes: the server notices within seconds, or minutes behind a
-- pooler, and the next one gets its turn.
SET LOCAL lock_timeout = '2s';
SET LOCAL tcp_keepalives_idle = 5; SET LOCAL tcp_keepalives_interval = 2; SET LOCAL tcp_keepalives_count = 3;
SET LOCAL idle_in_transaction_session_timeout = '120s';
LOCK TABLE analytics.leases IN SHARE UPDATE EXCLUSIVE MODE;
SET LOCAL lock_timeout TO DEFAULT

-- claim --
-- Flushes that are not rolled up, oldest first. Locked, so that a second worker that believes it has the lead adds
-- nothing twice.
SELECT journal, first_record, last_record, flushes.events_stored, days, flushed_at,
    identity = 'b6b7a1c0-0d5e-4a7b-9f0e-70656e64696e' AS adopted
FROM analytics.flushes JOIN analytics.journals ON number = journal
WHERE rolled_up_at IS NULL
ORDER BY flushed_at, journal, last_record
LIMIT 2000
FOR UPDATE OF flushes

-- mark --
UPDATE analytics.flushes SET rolled_up_at = clock_timestamp()
FROM unnest($1::int[], $2::bigint[]) AS claimed (journal, last_record)
WHERE (flushes.journal, flushes.last_record) = (claimed.journal, claimed.last_record)
RETURNING extract(epoch FROM rolled_up_at - flushed_at)::float8

-- waiting --
-- What is not rolled up, for how long, which flush is first, and which worker has the lead
SELECT count(*)::int AS flushes, coalesce(sum(events_stored), 0)::bigint AS events,
    coalesce(extract(epoch FROM clock_timestamp() - min(flushed_at)), 0)::float8 AS seconds,
    (
        SELECT (journal, last_record)::text FROM analytics.flushes WHERE rolled_up_at IS NULL
        ORDER BY flushed_at, journal, last_record LIMIT 1
    ) AS first,
    (SELECT holder FROM analytics.leases WHERE name = 'rollup') AS leader,
    (SELECT greatest(reltuples, 0)::float8 FROM pg_class WHERE oid = 'analytics.event_aggregations'::regclass) AS buckets
FROM analytics.flushes WHERE rolled_up_at IS NULL

-- minutes_from --
-- The earliest minute that is kept
SELECT now() - ingest.retention('minutes', '7 days')

-- partitions --
-- The days of analytics.events, and how many pages each has now
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day, pg_relation_size(pg_class.oid) / 8192 AS pages
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'

-- piece events --
-- {partition} is a day's table, {dimensions} an expression for each dimension, {batches} a constant with ranges of
-- batch_id. None of it is outside input.
-- The time in microseconds, exact for centuries to come, and with an offset by which all have 19 digits.
SELECT 5000000000000000000 + (date_part('epoch', created_at) * 1000000)::bigint,
    user_id, anonymous_id, session_id, authenticated, device_type IS NOT DISTINCT FROM 'bot', type::text, name{dimensions}
FROM {partition}

-- events_in_pages (dimensions, partition, start, end, batches) --
-- Events of these batches, from a page to before another
{events} WHERE ctid >= '({start},0)'::tid AND ctid < '({end},0)'::tid AND batch_id <@ {batches}

-- events_of_batches (dimensions, partition, between, end, batches) --
-- Events of these batches, wherever they are before a page: {between} is for the index, and true for all of them
{events} WHERE ({between}) AND ctid < '({end},0)'::tid AND batch_id <@ {batches}

-- events_within (dimensions, partition, batches) --
-- Events in [$1, $2), except those of these batches
{events} WHERE created_at >= $1 AND created_at < $2 AND batch_id IS NOT NULL AND NOT batch_id <@ {batches}

-- stored --
-- What these buckets hold now, by their place in the arguments. One primary key lookup each.
SELECT place, event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS wanted (granularity, time_bucket, event_type, event_name, dimensions, place)
CROSS JOIN LATERAL (
    SELECT event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
    FROM analytics.event_aggregations AS bucket
    WHERE bucket.granularity = wanted.granularity::analytics.granularity
        AND bucket.time_bucket = wanted.time_bucket
        AND bucket.event_type = wanted.event_type::analytics.event_type
        AND bucket.event_name = wanted.event_name
        AND bucket.dimensions = wanted.dimensions::jsonb
    -- Keeps the planner from choosing another kind of join.
    OFFSET 0
) AS bucket

-- names --
-- How many names each time bucket has
SELECT place, (
    SELECT count(DISTINCT event_name) FROM analytics.event_aggregations AS bucket
    WHERE bucket.granularity = wanted.granularity::analytics.granularity
        AND bucket.time_bucket = wanted.time_bucket AND bucket.dimensions = '{}'
) AS names
FROM unnest($1::text[], $2::timestamptz[]) WITH ORDINALITY AS wanted (granularity, time_bucket, place)

-- known_names --
-- Which of these names a time bucket already has, with any type
SELECT place FROM unnest($1::text[], $2::timestamptz[], $3::text[])
    WITH ORDINALITY AS wanted (granularity, time_bucket, event_name, place)
WHERE EXISTS (
    SELECT FROM analytics.event_aggregations AS bucket
    WHERE bucket.granularity = wanted.granularity::analytics.granularity
        AND bucket.time_bucket = wanted.time_bucket
        AND bucket.event_type = ANY (enum_range(NULL::analytics.event_type))
        AND bucket.event_name = wanted.event_name AND bucket.dimensions = '{}'
)

-- values --
-- How many values of each dimension an event has in a bucket
SELECT place, dimension, count(*) AS values
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[])
    WITH ORDINALITY AS wanted (granularity, time_bucket, event_type, event_name, place)
CROSS JOIN LATERAL (
    SELECT jsonb_object_keys(dimensions) AS dimension FROM analytics.event_aggregations AS bucket
    WHERE bucket.granularity = wanted.granularity::analytics.granularity
        AND bucket.time_bucket = wanted.time_bucket
        AND bucket.event_type = wanted.event_type::analytics.event_type
        AND bucket.event_name = wanted.event_name
        AND bucket.dimensions <> '{"device_type": "bot"}'
    OFFSET 0
) AS bucket
GROUP BY place, dimension

-- stored_values --
-- The values that a dimension of an event has in a bucket
SELECT place, dimensions ->> dimension AS value
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS wanted (granularity, time_bucket, event_type, event_name, dimension, place)
CROSS JOIN LATERAL (
    SELECT dimensions FROM analytics.event_aggregations AS bucket
    WHERE bucket.granularity = wanted.granularity::analytics.granularity
        AND bucket.time_bucket = wanted.time_bucket
        AND bucket.event_type = wanted.event_type::analytics.event_type
        AND bucket.event_name = wanted.event_name
        AND jsonb_typeof(bucket.dimensions -> wanted.dimension) = 'string'
    OFFSET 0
) AS bucket

-- put --
INSERT INTO analytics.event_aggregations AS bucket (
    granularity, time_bucket, event_type, event_name, dimensions,
    event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
)
SELECT granularity::analytics.granularity, time_bucket, event_type::analytics.event_type, event_name, dimensions::jsonb,
    event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
FROM unnest(
    $1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[],
    $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[], $10::bytea[]
) AS made (
    granularity, time_bucket, event_type, event_name, dimensions,
    event_count, unique_users, unique_sessions, users_sketch, sessions_sketch
)
ON CONFLICT (granularity, time_bucket, event_type, event_name, dimensions) DO UPDATE SET
    event_count = excluded.event_count, unique_users = excluded.unique_users,
    unique_sessions = excluded.unique_sessions, users_sketch = excluded.users_sketch,
    sessions_sketch = excluded.sessions_sketch, updated_at = now()

-- note_stale --
INSERT INTO analytics.stale_buckets (granularity, time_bucket)
SELECT granularity::analytics.granularity, time_bucket
FROM unnest($1::text[], $2::timestamptz[]) AS touched (granularity, time_bucket)
ON CONFLICT DO NOTHING
