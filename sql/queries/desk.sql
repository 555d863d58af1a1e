-- The dashboard's pages of experiments and leads: ingest/dashboard/

-- names --
-- Names of events since $1, conversions first, then by how often they happened; without page views and system events.
SELECT event_name AS name, bool_or(event_type = 'conversion') AS is_conversion FROM analytics.event_aggregations
WHERE granularity = 'day' AND dimensions = '{}' AND time_bucket >= $1 AND event_name <> ''
    AND event_type IN ('conversion', 'user_action')
GROUP BY 1 ORDER BY 2 DESC, sum(event_count) DESC, 1 LIMIT $2

-- exposed --
-- How many rows of assignments were exposed, by experiment.
SELECT experiment_id::text AS id, count(*) AS exposed FROM experiments.assignments
WHERE first_exposure_at IS NOT NULL AND experiment_id = ANY ($1::text[]::uuid[])
GROUP BY 1

-- lead_visits --
-- As whom somebody left lead $1, created at $2, by the events that the service itself wrote then (authenticated is
-- false), and by the lead's onboarding.
SELECT user_id, anonymous_id, session_id FROM analytics.events
WHERE name IN ('lead_created', 'lead_updated') AND created_at >= $2::timestamptz - interval '1 minute'
    AND created_at < $2 + interval '10 minutes' AND properties ->> 'lead_id' = $1::text AND authenticated = false
UNION
SELECT NULL, anonymous_id, visit_session_id FROM onboarding.sessions WHERE lead_id = $1::text::uuid
LIMIT 100

-- lead_events --
-- The latest events from $1 to before $2 of users $3, of browsers $4 and visits $5 before their user was known, and
-- those that the service wrote of lead $6, at most $7.
-- Under row security only conditions that cannot leak a value, such as text = text, may use an index; ->> may not. So
-- the first ones, which can, find a little more than the others leave, in one scan where there is no index yet. What
-- is found is looked up one by one, as the planner would rather merge it with all that there is.
WITH found AS MATERIALIZED (
    SELECT created_at, id FROM analytics.events
    WHERE created_at >= $1 AND created_at < $2 AND (
        user_id = ANY ($3::text[]) OR (user_id IS NULL AND anonymous_id = ANY ($4::text[]))
        OR (user_id IS NULL AND session_id = ANY ($5::text[]))
        OR name IN ('lead_created', 'lead_updated', 'lead_status_changed', 'lead_interaction_added')
    ) AND (
        user_id = ANY ($3::text[]) OR (user_id IS NULL AND anonymous_id = ANY ($4::text[]))
        OR (user_id IS NULL AND session_id = ANY ($5::text[]))
        OR (properties ->> 'lead_id' = $6::text AND authenticated = false)
    )
), latest AS (
    SELECT created_at, id FROM found ORDER BY created_at DESC, id DESC LIMIT $7
)
SELECT event.*
FROM latest CROSS JOIN LATERAL (
    SELECT created_at, name, type::text, user_id, anonymous_id, session_id, page_path,
        left(properties::text, 2000) AS properties
    FROM analytics.events WHERE events.created_at = latest.created_at AND events.id = latest.id LIMIT 1
) AS event
ORDER BY latest.created_at DESC, latest.id DESC

-- lead_journeys --
-- Onboarding of lead $1, the latest first.
SELECT status::text, current_step::text AS step, progress_percentage AS progress, started_at, last_activity_at, completed_at
FROM onboarding.sessions WHERE lead_id = $1::text::uuid ORDER BY created_at DESC, id DESC LIMIT 20

-- lead_variants --
-- Variants of users $1, and of visits and browsers $2 without a user.
SELECT experiment_id::text AS id, experiments.name, variant_id, assigned_at, first_exposure_at
FROM experiments.assignments JOIN experiments.experiments ON experiments.id = experiment_id
WHERE user_id = ANY ($1::text[]::uuid[]) OR (user_id IS NULL AND session_id = ANY ($2::text[]))
ORDER BY assigned_at DESC, experiment_id LIMIT 50
