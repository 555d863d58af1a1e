-- Which person did an event, in which visit: ingest/rollup/identities.py and identity_repairs.py. 001_initial_schema.sql
-- has the rule.

-- links --
-- The links of these browsers
SELECT anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, verified,
    last_seen_at < now() - interval '7 days' AS aged
FROM analytics.identities WHERE anonymous_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::text::jsonb)))

-- people --
SELECT user_id, counted_as, links, last_seen_at < now() - interval '7 days' AS aged
FROM analytics.people WHERE user_id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::text::jsonb)))

-- taken --
-- Which of these names are taken
SELECT counted_as FROM analytics.people
WHERE counted_as = ANY (ARRAY(SELECT jsonb_array_elements_text($1::text::jsonb)))

-- first_events --
-- For each pair of ids and time, the first event in the order of sending; $4 has the distinct times. Events are looked
-- up once per time, not per pair: a batch without timestamps has thousands of pairs at one time.
SELECT DISTINCT ON (anonymous_id, user_id, created_at) anonymous_id, user_id, created_at, received_at, batch_id,
    coalesce(batch_position, 0) AS batch_position
FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS pair (anonymous_id, user_id, created_at)
JOIN (
    SELECT anonymous_id, user_id, created_at, received_at, batch_id, batch_position FROM analytics.events
    WHERE created_at = ANY ($4::timestamptz[]) AND batch_id IS NOT NULL
        AND anonymous_id IS NOT NULL AND user_id IS NOT NULL
    -- Keeps the planner from looking up pair by pair.
    OFFSET 0
) AS event USING (anonymous_id, user_id, created_at)
ORDER BY anonymous_id, user_id, created_at, received_at, batch_id, batch_position

-- add_links --
-- Links of browsers that have none. Nobody else adds any meanwhile, so no ON CONFLICT, which would cost half as much
-- again
INSERT INTO analytics.identities (
    anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, verified
)
SELECT * FROM ROWS FROM (
    jsonb_array_elements_text($1::text::jsonb), jsonb_array_elements_text($2::text::jsonb), unnest($3::timestamptz[]),
    unnest($4::timestamptz[]), unnest($5::bigint[]), unnest($6::int[]), unnest($7::boolean[])
)

-- put_links --
INSERT INTO analytics.identities AS link (
    anonymous_id, user_id, linked_at, received_at, batch_id, batch_position, verified
)
SELECT * FROM ROWS FROM (
    jsonb_array_elements_text($1::text::jsonb), jsonb_array_elements_text($2::text::jsonb), unnest($3::timestamptz[]),
    unnest($4::timestamptz[]), unnest($5::bigint[]), unnest($6::int[]), unnest($7::boolean[])
)
ON CONFLICT (anonymous_id) DO UPDATE SET
    user_id = excluded.user_id, linked_at = excluded.linked_at, received_at = excluded.received_at,
    batch_id = excluded.batch_id, batch_position = excluded.batch_position, verified = excluded.verified,
    last_seen_at = excluded.last_seen_at

-- add_people --
INSERT INTO analytics.people (user_id, counted_as, links)
SELECT * FROM ROWS FROM (
    jsonb_array_elements_text($1::text::jsonb), jsonb_array_elements_text($2::text::jsonb), unnest($3::int[])
)

-- put_people --
INSERT INTO analytics.people AS person (user_id, counted_as, links)
SELECT * FROM ROWS FROM (
    jsonb_array_elements_text($1::text::jsonb), jsonb_array_elements_text($2::text::jsonb), unnest($3::int[])
)
ON CONFLICT (user_id) DO UPDATE SET links = excluded.links, last_seen_at = excluded.last_seen_at

-- see_links --
UPDATE analytics.identities SET last_seen_at = now() WHERE anonymous_id = ANY ($1::text[])

-- visits --
-- Visits of the people $1 that are in, near or overlap some hours. For each person, $2 is the number of a span of hours,
-- whose first and last are in $3 and $4
WITH wanted AS MATERIALIZED (
    SELECT
        person,
        ($3::timestamptz[])[span] - interval '30 minutes' AS low,
        ($4::timestamptz[])[span] + interval '90 minutes' AS high
    FROM ROWS FROM (jsonb_array_elements_text($1::text::jsonb), unnest($2::int[])) AS wanted (person, span)
), latest AS MATERIALIZED (
    -- Most people have none, and for them this is the only lookup.
    SELECT wanted.person, wanted.low, visit.started_at, visit.ended_at, visit.session_id
    FROM wanted CROSS JOIN LATERAL (
        SELECT * FROM analytics.visits
        WHERE visits.person = wanted.person AND started_at <= high
        ORDER BY started_at DESC LIMIT 1
    ) AS visit
    WHERE visit.ended_at >= wanted.low
)
SELECT person, started_at, ended_at, session_id FROM latest
UNION ALL
SELECT visit.person, visit.started_at, visit.ended_at, visit.session_id
FROM latest CROSS JOIN LATERAL (
    SELECT * FROM analytics.visits
    WHERE visits.person = latest.person AND started_at < latest.started_at AND ended_at >= low
        -- A person's visits do not overlap: only the last that begins before `low` can reach it.
        AND started_at >= coalesce((
            SELECT max(started_at) FROM analytics.visits AS before
            WHERE before.person = latest.person AND before.started_at <= low
        ), '-infinity')
    OFFSET 0
) AS visit
WHERE latest.started_at > low

-- all_visits --
SELECT person, started_at, ended_at, session_id FROM analytics.visits WHERE person = ANY ($1::text[])

-- drop_visits --
DELETE FROM analytics.visits USING unnest($1::text[], $2::timestamptz[]) AS gone (person, started_at)
WHERE (visits.person, visits.started_at) = (gone.person, gone.started_at)

-- add_visits --
-- Visits of people who have none nearby. Without an end, a visit ends when it begins
INSERT INTO analytics.visits (person, started_at, ended_at, session_id)
SELECT person, started_at, coalesce(ended_at, started_at), session_id
FROM ROWS FROM (
    jsonb_array_elements_text($1::text::jsonb), unnest($2::timestamptz[]), unnest($3::timestamptz[]),
    jsonb_array_elements_text($4::text::jsonb)
) AS fresh (person, started_at, ended_at, session_id)

-- put_visits --
INSERT INTO analytics.visits (person, started_at, ended_at, session_id)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[])
ON CONFLICT (person, started_at) DO UPDATE SET ended_at = excluded.ended_at, session_id = excluded.session_id

-- note_identities --
-- Schedule the search for the hours in which these browsers' events were counted
INSERT INTO analytics.stale_identities AS stale (anonymous_id, people)
SELECT anonymous_id, ARRAY(SELECT jsonb_array_elements_text(people))
FROM jsonb_each($1::text::jsonb) AS noted (anonymous_id, people)
ON CONFLICT (anonymous_id) DO UPDATE SET noted_at = excluded.noted_at, people = ARRAY(
    SELECT DISTINCT unnest(stale.people || excluded.people)
)

-- note_hours_later --
-- Schedule hours to be rebuilt when further changes are unlikely: some minutes after they are over
INSERT INTO analytics.stale_buckets (granularity, time_bucket, due_at)
SELECT 'hour', hour, greatest(hour + interval '1 hour', now()) + interval '5 minutes'
FROM unnest($1::timestamptz[]) AS hour
ON CONFLICT DO NOTHING

-- stale_identities --
SELECT anonymous_id, people, noted_at FROM analytics.stale_identities ORDER BY noted_at, anonymous_id LIMIT $1

-- days --
SELECT to_date(right(relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS day
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
ORDER BY day

-- hours_of_browsers --
-- The hours within the day [$2, $3), so that the planner considers only its partition
SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM analytics.events
WHERE anonymous_id = ANY ($1::text[]) AND user_id IS NULL AND created_at >= $2 AND created_at < $3

-- forget_noted --
DELETE FROM analytics.stale_identities USING unnest($1::text[], $2::timestamptz[]) AS done (anonymous_id, noted_at)
WHERE (stale_identities.anonymous_id, stale_identities.noted_at) = (done.anonymous_id, done.noted_at)

-- browsers_of --
SELECT anonymous_id FROM analytics.identities WHERE user_id = $1

-- visits_of --
-- A person's visits, computed from their events: $1 the person, $2 their browsers
WITH own AS (
    SELECT created_at, lag(created_at) OVER (ORDER BY created_at) AS before FROM analytics.events
    WHERE session_id IS NULL AND type <> 'system' AND batch_id IS NOT NULL
        AND (user_id = $1 OR (anonymous_id = ANY ($2::text[]) AND user_id IS NULL))
), counted AS (
    SELECT created_at, count(*) FILTER (WHERE created_at - before > interval '30 minutes') OVER (ORDER BY created_at) AS visit
    FROM own
)
SELECT min(created_at) AS started_at, max(created_at) AS ended_at FROM counted GROUP BY visit ORDER BY visit
