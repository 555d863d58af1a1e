-- Onboarding: ingest/features/onboarding/. Run as anon with app.session_token set, so that row security shows no other
-- session.

-- piece columns --
id, lead_id, status::text, current_step::text, progress_percentage, created_at, started_at, last_activity_at,
    completed_at, business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at,
    testing_completed_at, business_data, whatsapp_config, bot_config, anonymous_id, visit_session_id

-- piece goes_on --
-- Also for an abandoned session
last_activity_at = now(), abandoned_at = NULL,
        status = CASE status WHEN 'abandoned' THEN 'in_progress'::onboarding.session_status ELSE status END

-- piece note --
-- Records the activity $4 (NULL: none) in step $3, which took $5 seconds
INSERT INTO onboarding.step_activities (session_id, step, activity_type, time_spent_seconds)
    SELECT id, $3::text::onboarding.step, $4, $5::int FROM changed WHERE $4::text IS NOT NULL

-- create --
INSERT INTO onboarding.sessions (session_token, user_agent, anonymous_id, visit_session_id)
VALUES ($1, $2, $3, $4) RETURNING {columns}

-- read --
SELECT {columns} FROM onboarding.sessions WHERE session_token = $1

-- lock --
-- Locked until the transaction ends, so that of two concurrent requests the second sees what the first did
SELECT {columns} FROM onboarding.sessions WHERE session_token = $1 FOR NO KEY UPDATE

-- business_info --
WITH changed AS (
    UPDATE onboarding.sessions SET business_data = $2::jsonb,
        business_info_completed_at = coalesce(business_info_completed_at, now()), {goes_on}
    WHERE id = $1 RETURNING {columns}
), noted AS ({note})
SELECT * FROM changed

-- whatsapp_integration --
WITH changed AS (
    UPDATE onboarding.sessions SET whatsapp_config = $2::jsonb,
        whatsapp_integration_completed_at = coalesce(whatsapp_integration_completed_at, now()), {goes_on}
    WHERE id = $1 RETURNING {columns}
), noted AS ({note})
SELECT * FROM changed

-- bot_setup --
WITH changed AS (
    UPDATE onboarding.sessions SET bot_config = $2::jsonb,
        bot_setup_completed_at = coalesce(bot_setup_completed_at, now()), {goes_on}
    WHERE id = $1 RETURNING {columns}
), noted AS ({note})
SELECT * FROM changed

-- testing --
WITH changed AS (
    UPDATE onboarding.sessions SET bot_config = bot_config || jsonb_build_object('testing', $2::jsonb),
        testing_completed_at = coalesce(testing_completed_at, now()), {goes_on}
    WHERE id = $1 RETURNING {columns}
), noted AS ({note})
SELECT * FROM changed

-- resume --
UPDATE onboarding.sessions SET {goes_on} WHERE session_token = $1 AND status = 'abandoned'

-- note --
INSERT INTO onboarding.step_activities (
    session_id, step, activity_type, field_name, field_value, error_message, time_spent_seconds
) VALUES ($1, $2::text::onboarding.step, $3, $4, $5, $6, $7) RETURNING id

-- note_errors --
INSERT INTO onboarding.step_activities (session_id, step, activity_type, field_name, error_message)
SELECT id, $2::text::onboarding.step, 'validation_error', nullif(field, ''), message
FROM onboarding.sessions, unnest($3::text[], $4::text[]) AS wrong (field, message)
WHERE session_token = $1 AND status <> 'completed'

-- unlinked --
-- A session with an email address but no lead yet
SELECT id, business_data FROM onboarding.sessions
WHERE session_token = $1 AND lead_id IS NULL AND business_info_completed_at IS NOT NULL AND status <> 'completed'

-- relink --
-- As service_role: moves the session and its account to the lead with this address.
WITH lead AS (
    SELECT id FROM marketing.leads WHERE email = $2 AND deleted_at IS NULL
), moved AS (
    UPDATE whatsapp.accounts SET lead_id = lead.id FROM lead WHERE accounts.session_id = $1
)
UPDATE onboarding.sessions SET lead_id = lead.id FROM lead WHERE sessions.id = $1

-- make_lead --
-- As service_role. An existing lead does not change: whoever enters an address has not proved that it is theirs.
INSERT INTO marketing.leads (email, phone_number, company_name, first_name, last_name, country_code, user_agent, source)
SELECT $1, $2, $3, $4, $5, $6, $7, 'website-form'
WHERE NOT EXISTS (SELECT FROM marketing.leads WHERE email = $1 AND deleted_at IS NULL)

-- link --
-- As service_role. Rewrites business_data, so that the trigger links the session to the lead with its address.
UPDATE onboarding.sessions SET business_data = business_data WHERE id = $1 AND lead_id IS NULL

-- is_taken --
-- As service_role: whether another session has verified the number
SELECT EXISTS (
    SELECT FROM whatsapp.accounts
    WHERE (business_account_id, phone_number_id) = ($2, $3) AND is_verified AND session_id IS DISTINCT FROM $1
)

-- keep_account --
-- As service_role: creates or updates the account of this session. Another number has to be verified again.
INSERT INTO whatsapp.accounts AS own (
    session_id, lead_id, business_account_id, phone_number_id, phone_number, display_name, access_token_encrypted,
    webhook_verify_token_encrypted
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (session_id) DO UPDATE SET
    business_account_id = excluded.business_account_id, phone_number_id = excluded.phone_number_id,
    phone_number = excluded.phone_number, display_name = excluded.display_name,
    access_token_encrypted = excluded.access_token_encrypted,
    webhook_verify_token_encrypted = excluded.webhook_verify_token_encrypted,
    is_verified = own.is_verified AND (own.business_account_id, own.phone_number_id, own.phone_number)
        = (excluded.business_account_id, excluded.phone_number_id, excluded.phone_number),
    verification_status = CASE
        WHEN (own.business_account_id, own.phone_number_id, own.phone_number)
            = (excluded.business_account_id, excluded.phone_number_id, excluded.phone_number)
        THEN own.verification_status ELSE 'not_verified'
    END
RETURNING id

-- funnel --
-- Sessions created within a time, by step: how many reached it, completed it, and abandoned onboarding there; how long
-- completing it took since the end of the previous step. An index-only scan of sessions_created_at_idx.
WITH begun AS (
    SELECT created_at, business_info_completed_at, whatsapp_integration_completed_at,
        bot_setup_completed_at, testing_completed_at, status
    FROM onboarding.sessions WHERE created_at >= $1 AND created_at < $2
)
SELECT step, count(begun_at) AS reached, count(done_at) AS completed,
    count(*) FILTER (WHERE begun_at IS NOT NULL AND done_at IS NULL AND status = 'abandoned') AS abandoned,
    percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
        ORDER BY CASE WHEN done_at >= begun_at THEN extract(epoch FROM done_at - begun_at)::float8 END
    ) AS seconds
FROM begun CROSS JOIN LATERAL (VALUES
    ('business_info', created_at, business_info_completed_at),
    ('whatsapp_integration', business_info_completed_at, whatsapp_integration_completed_at),
    ('bot_setup', whatsapp_integration_completed_at, bot_setup_completed_at),
    ('testing', bot_setup_completed_at, testing_completed_at)
) AS part (step, begun_at, done_at)
GROUP BY step
