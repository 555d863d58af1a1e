-- Who did it, and in which visit: ingest/identities.py and identity_repairs.py. The rule is in 001_initial_schema.sql.

-- links --
-- What these browsers are linked to
SELECT anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, verified,
    last_seen_at < now() - interval '7 days' AS aged
FROM analytics.identities WHERE anonymous_id = ANY ($1::text[])

-- people --
SELECT user_id, counted_as, links, last_seen_at < now() - interval '7 days' AS aged
FROM analytics.people WHERE user_id = ANY ($1::text[])

-- taken --
-- Which of these names cannot be given to another person any more
SELECT counted_as FROM analytics.people WHERE counted_as = ANY ($1::text[])
UNION
SELECT user_id FROM analytics.people WHERE user_id = ANY ($1::text[])

-- first_events --
-- Of each pair of ids at a time, the first event in the order in which they were sent; $4 are these times. Events are
-- looked for by time once, and not by pair: a batch without timestamps has thousands of pairs at one time.
SELECT DISTINCT ON (anonymous_id, user_id, created_at) anonymous_id, user_id, created_at, received_at, batch_id,
    coalesce(batch_position, 0) AS batch_position
FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS pair (anonymous_id, user_id, created_at)
JOIN (
    SELECT anonymous_id, user_id, created_at, received_at, batch_id, batch_position FROM analytics.events
    WHERE created_at = ANY ($4::timestamptz[]) AND batch_id IS NOT NULL
        AND anonymous_id IS NOT NULL AND user_id IS NOT NULL
    -- Keeps the pairs from being looked for one by one.
    OFFSET 0
) AS event USING (anonymous_id, user_id, created_at)
ORDER BY anonymous_id, user_id, created_at, received_at, batch_id, batch_position

-- put_links --
INSERT INTO analytics.identities AS link (
    anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, verified
)
SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::int[], $7::boolean[])
ON CONFLICT (anonymous_id) DO UPDATE SET
    user_id = excluded.user_id, linked_at = excluded.linked_at, received_at = excluded.received_at,
    batch_id = excluded.batch_id, batch_position = excluded.batch_position, verified = excluded.verified,
    last_seen_at = excluded.last_seen_at

-- put_people --
INSERT INTO analytics.people AS person (user_id, counted_as, links)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[])
ON CONFLICT (user_id) DO UPDATE SET links = excluded.links, last_seen_at = excluded.last_seen_at

-- see_links --
UPDATE analytics.identities SET last_seen_at = now() WHERE anonymous_id = ANY ($1::text[])

-- visits --
-- The visits of people from some time to another, and those that these reach into
SELECT visit.person, visit.started_at, visit.ended_at, visit.session_id
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS wanted (person, low, high)
CROSS JOIN LATERAL (
    SELECT * FROM analytics.visits
    WHERE visits.person = wanted.person AND started_at <= high AND ended_at >= low
        -- Visits of a person do not overlap: none before the last that begins before reaches so far.
        AND started_at >= coalesce((
            SELECT max(started_at) FROM analytics.visits AS before
            WHERE before.person = wanted.person AND before.started_at <= low
        ), '-infinity')
    OFFSET 0
) AS visit

-- all_visits --
SELECT person, started_at, ended_at, session_id FROM analytics.visits WHERE person = ANY ($1::text[])

-- drop_visits --
DELETE FROM analytics.visits USING unnest($1::text[], $2::timestamptz[]) AS gone (person, started_at)
WHERE (visits.person, visits.started_at) = (gone.person, gone.started_at)

-- put_visits --
INSERT INTO analytics.visits (person, started_at, ended_at, session_id)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[])
ON CONFLICT (person, started_at) DO UPDATE SET ended_at = excluded.ended_at, session_id = excluded.session_id

-- note_identities --
-- Have the hours looked for in which these browsers' events were counted
INSERT INTO analytics.stale_identities AS stale (anonymous_id, people)
SELECT anonymous_id, ARRAY(SELECT jsonb_array_elements_text(people::jsonb))
FROM unnest($1::text[], $2::text[]) AS noted (anonymous_id, people)
ON CONFLICT (anonymous_id) DO UPDATE SET noted_at = excluded.noted_at, people = ARRAY(
    SELECT DISTINCT unnest(stale.people || excluded.people)
)

-- note_hours_later --
-- Have hours made anew when more that changes them is hardly to come: once they are over, and not at once
INSERT INTO analytics.stale_buckets (granularity, time_bucket, due_at)
SELECT 'hour', hour, greatest(hour + interval '1 hour', now()) + interval '5 minutes'
FROM unnest($1::timestamptz[]) AS hour
ON CONFLICT DO NOTHING

-- stale_identities --
SELECT anonymous_id, people, noted_at FROM analytics.stale_identities ORDER BY noted_at, anonymous_id LIMIT $1

-- days --
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
ORDER BY day

-- hours_of_browsers --
SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM {partition}
WHERE anonymous_id = ANY ($1::text[]) AND user_id IS NULL

-- forget_noted --
DELETE FROM analytics.stale_identities USING unnest($1::text[], $2::timestamptz[]) AS done (anonymous_id, noted_at)
WHERE (stale_identities.anonymous_id, stale_identities.noted_at) = (done.anonymous_id, done.noted_at)

-- browsers_of --
SELECT anonymous_id FROM analytics.identities WHERE user_id = $1

-- visits_of --
-- A person's visits, told from their events: $1 the person, $2 their browsers
WITH own AS (
    SELECT created_at, lag(created_at) OVER (ORDER BY created_at) AS before FROM analytics.events
    WHERE session_id IS NULL AND type <> 'system' AND batch_id IS NOT NULL
        AND (user_id = $1 OR (anonymous_id = ANY ($2::text[]) AND user_id IS NULL))
), counted AS (
    SELECT created_at, count(*) FILTER (WHERE created_at - before > interval '30 minutes') OVER (ORDER BY created_at) AS visit
    FROM own
)
SELECT min(created_at) AS started_at, max(created_at) AS ended_at FROM counted GROUP BY visit ORDER BY visit
