-- Onboarding on the dashboard: ingest/dashboard/onboarding.py. Under the viewer's role: only admins see rows.

-- errors --
-- Fields by the errors that people were shown, from $1 to before $2, and the commonest error of each
SELECT step::text, field_name, count(*) AS errors, count(DISTINCT session_id) AS sessions,
    left(mode() WITHIN GROUP (ORDER BY error_message), 500) AS commonest
FROM onboarding.step_activities
WHERE activity_type = 'validation_error' AND created_at >= $1 AND created_at < $2
GROUP BY step, field_name
ORDER BY errors DESC, step, field_name
LIMIT $3

-- sessions --
-- The newest sessions created from $1 to before $2. Neither their tokens nor what was entered.
SELECT id, lead_id, status::text, current_step::text, progress_percentage, created_at, last_activity_at, completed_at
FROM onboarding.sessions
WHERE created_at >= $1 AND created_at < $2
ORDER BY created_at DESC, id DESC
LIMIT $3
