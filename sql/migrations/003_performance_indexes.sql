-- Every index that is not a constraint, each with the query it is for. What a constraint's index serves already has none
-- here: an email, a session's token, a bucket by its key, a journal's flushes.


-- Leads

-- The newest leads, a page at a time: WHERE (created_at, id) < (…) ORDER BY created_at DESC, id DESC.
CREATE INDEX leads_recent_idx ON marketing.leads (created_at DESC, id DESC) WHERE deleted_at IS NULL;
-- The same of one status: the list that sales works through.
CREATE INDEX leads_status_recent_idx ON marketing.leads (status, created_at DESC, id DESC) WHERE deleted_at IS NULL;
-- Leads by source and status, counted over a time without reading the rows.
CREATE INDEX leads_source_idx ON marketing.leads (source, created_at) INCLUDE (status) WHERE deleted_at IS NULL;
-- Who is most promising among those nobody has called yet.
CREATE INDEX leads_promising_idx ON marketing.leads (score DESC, created_at) WHERE status = 'new' AND deleted_at IS NULL;
-- Conversions of a campaign.
CREATE INDEX leads_campaign_idx ON marketing.leads (utm_source, utm_campaign, created_at)
WHERE utm_source IS NOT NULL AND deleted_at IS NULL;
-- Leads of a country over time.
CREATE INDEX leads_country_idx ON marketing.leads (country_code, created_at) WHERE country_code IS NOT NULL;
-- Everybody at a company, whatever the case.
CREATE INDEX leads_company_idx ON marketing.leads (lower(company_name)) WHERE company_name IS NOT NULL;
-- Who calls: a lead by phone number.
CREATE INDEX leads_phone_number_idx ON marketing.leads (phone_number) WHERE phone_number IS NOT NULL;
-- All who asked for a feature: interested_features @> '{…}'.
CREATE INDEX leads_interested_features_idx ON marketing.leads USING gin (interested_features);
-- All who agreed to something: consent ? 'newsletter'.
CREATE INDEX leads_consent_idx ON marketing.leads USING gin (consent);
-- What came from one address, when it is abused.
CREATE INDEX leads_ip_address_idx ON marketing.leads (ip_address, created_at) WHERE ip_address IS NOT NULL;
-- Erasure and export: the rows of an address, deleted ones included.
CREATE INDEX leads_deleted_email_idx ON marketing.leads (email) WHERE deleted_at IS NOT NULL;
-- What changed since a synchronisation.
CREATE INDEX leads_updated_at_idx ON marketing.leads (updated_at);

-- The history of a lead, the newest first; and its foreign key.
CREATE INDEX lead_interactions_lead_idx ON marketing.lead_interactions (lead_id, created_at DESC);
-- The calendar: what is to be done and is not yet.
CREATE INDEX lead_interactions_open_idx ON marketing.lead_interactions (scheduled_at)
WHERE completed_at IS NULL AND scheduled_at IS NOT NULL;
-- What a kind of interaction comes to.
CREATE INDEX lead_interactions_type_idx ON marketing.lead_interactions (interaction_type, created_at) INCLUDE (outcome);
-- What a colleague did.
CREATE INDEX lead_interactions_created_by_idx ON marketing.lead_interactions (created_by, created_at)
WHERE created_by IS NOT NULL;


-- Onboarding

-- The journeys of a lead; and the foreign key.
CREATE INDEX sessions_lead_idx ON onboarding.sessions (lead_id) WHERE lead_id IS NOT NULL;
-- abandon_inactive_sessions(): those in progress, the longest silent first.
CREATE INDEX sessions_in_progress_idx ON onboarding.sessions (last_activity_at) WHERE status = 'in_progress';
-- The funnel: how many journeys that began in a time stand where, without reading the rows.
CREATE INDEX sessions_funnel_idx ON onboarding.sessions (created_at) INCLUDE (status, current_step);
-- Journeys of one status, the newest first, a page at a time.
CREATE INDEX sessions_status_recent_idx ON onboarding.sessions (status, created_at DESC, id DESC);
-- Time to completion.
CREATE INDEX sessions_completed_idx ON onboarding.sessions (completed_at) INCLUDE (started_at) WHERE status = 'completed';
-- Where journeys are given up.
CREATE INDEX sessions_abandoned_idx ON onboarding.sessions (abandoned_at, current_step) WHERE status = 'abandoned';
-- The journey of an address that is no lead yet.
CREATE INDEX sessions_email_idx ON onboarding.sessions (lower(business_data ->> 'email'))
WHERE business_data ->> 'email' IS NOT NULL;
-- What applications ask of the answers: business_data @> '{"industry": "…"}'.
CREATE INDEX sessions_business_data_idx ON onboarding.sessions USING gin (business_data jsonb_path_ops);
-- What came from one address, when it is abused.
CREATE INDEX sessions_ip_address_idx ON onboarding.sessions (ip_address, created_at) WHERE ip_address IS NOT NULL;

-- A session's activities in order; the policy of visitors; and the foreign key.
CREATE INDEX step_activities_session_idx ON onboarding.step_activities (session_id, created_at);
-- Time spent on a step, over a time, without reading the rows.
CREATE INDEX step_activities_time_spent_idx ON onboarding.step_activities (step, created_at) INCLUDE (time_spent_seconds)
WHERE time_spent_seconds IS NOT NULL;
-- Which field people fail at.
CREATE INDEX step_activities_errors_idx ON onboarding.step_activities (step, field_name, created_at)
WHERE activity_type = 'validation_error';
-- What happened lately, of one kind.
CREATE INDEX step_activities_type_idx ON onboarding.step_activities (activity_type, created_at);


-- Events: every row of every COPY pays for what is here. The expensive ones are built on a day's partition once the day
-- has closed; see analytics.missing_closed_day_indexes() below.

-- The rollup worker: the rows of some batches. As batches come in order, a BRIN finds them and costs next to nothing.
CREATE INDEX events_batch_id_idx ON analytics.events USING brin (batch_id) WITH (pages_per_range = 16);
-- The events of a session in order.
CREATE INDEX events_session_idx ON analytics.events (session_id, created_at);
-- process_pending_events(): rows of plain INSERTs. A COPY adds nothing to it.
CREATE INDEX events_pending_idx ON analytics.events (created_at) WHERE batch_id IS NULL;


-- The ledger, refused events

-- The rollup worker: flushes that are not rolled up, in order. Empty most of the time.
CREATE INDEX flushes_not_rolled_up_idx ON analytics.flushes (flushed_at) WHERE rolled_up_at IS NULL;
-- cleanup_old_data(): what is long rolled up.
CREATE INDEX flushes_rolled_up_idx ON analytics.flushes (flushed_at) WHERE rolled_up_at IS NOT NULL;
-- `ingest rejected --reason`: the newest of one reason.
CREATE INDEX rejected_events_reason_idx ON analytics.rejected_events (reason, id DESC);
-- `ingest rejected replay`: what may be sent again, the oldest first.
CREATE INDEX rejected_events_replayable_idx ON analytics.rejected_events (id)
WHERE replayed_at IS NULL AND NOT payload_truncated;
-- Retention; what was refused in a time. Rows are in the order of time.
CREATE INDEX rejected_events_received_at_idx ON analytics.rejected_events USING brin (received_at);
-- Who sends what is refused.
CREATE INDEX rejected_events_ip_address_idx ON analytics.rejected_events (ip_address, received_at)
WHERE ip_address IS NOT NULL;


-- Rollups and KPIs

-- A time series of one event in total, the dashboard's most frequent question, without reading the rows.
CREATE INDEX event_aggregations_totals_idx ON analytics.event_aggregations (event_name, granularity, time_bucket)
INCLUDE (event_count, unique_users, unique_sessions) WHERE dimensions = '{}';
-- The same of a type of event, such as all page views.
CREATE INDEX event_aggregations_types_idx ON analytics.event_aggregations (event_type, granularity, time_bucket)
INCLUDE (event_count) WHERE dimensions = '{}';
-- Top pages, countries, campaigns: one dimension over a time. dimensions @> '{"country": "DE"}'.
CREATE INDEX event_aggregations_dimensions_idx ON analytics.event_aggregations USING gin (dimensions jsonb_path_ops);
-- One event by dimension: the rows of a time that have one.
CREATE INDEX event_aggregations_split_idx ON analytics.event_aggregations (event_name, granularity, time_bucket)
INCLUDE (event_count) WHERE dimensions <> '{}';
-- Retention: minutes that are old.
CREATE INDEX event_aggregations_minutes_idx ON analytics.event_aggregations (time_bucket) WHERE granularity = 'minute';
-- What changed since a reader's last look.
CREATE INDEX event_aggregations_updated_at_idx ON analytics.event_aggregations (updated_at);

-- The latest values of a KPI.
CREATE INDEX metrics_name_recent_idx ON analytics.metrics (name, timestamp DESC);
-- A KPI over time at one granularity.
CREATE INDEX metrics_series_idx ON analytics.metrics (name, granularity, time_window_start) INCLUDE (value_numeric);
-- KPIs with a tag.
CREATE INDEX metrics_tags_idx ON analytics.metrics USING gin (tags);
-- KPIs of an experiment, a source, a step: dimensions @> '{…}'.
CREATE INDEX metrics_dimensions_idx ON analytics.metrics USING gin (dimensions jsonb_path_ops);
-- Retention.
CREATE INDEX metrics_end_idx ON analytics.metrics (coalesce(time_window_end, timestamp));


-- Experiments

-- What runs now: asked at each assignment.
CREATE INDEX experiments_running_idx ON experiments.experiments (name) WHERE status = 'running' AND is_active;
-- The list for admins, by status, the newest first.
CREATE INDEX experiments_status_idx ON experiments.experiments (status, created_at DESC);
-- Those whose end has come.
CREATE INDEX experiments_end_date_idx ON experiments.experiments (end_date) WHERE status = 'running' AND end_date IS NOT NULL;

-- Results: units and exposures of each variant, without reading the rows; and the foreign key.
CREATE INDEX assignments_variant_idx ON experiments.assignments (experiment_id, variant_id) INCLUDE (exposure_count, assigned_at);
-- Who saw it: conversions after the first exposure.
CREATE INDEX assignments_exposed_idx ON experiments.assignments (experiment_id, first_exposure_at)
INCLUDE (variant_id) WHERE first_exposure_at IS NOT NULL;
-- The assignments of a user.
CREATE INDEX assignments_user_idx ON experiments.assignments (user_id) WHERE user_id IS NOT NULL;
-- The assignments of a session; the policy of visitors.
CREATE INDEX assignments_session_idx ON experiments.assignments (session_id) WHERE session_id IS NOT NULL;
-- Assignments over time.
CREATE INDEX assignments_assigned_at_idx ON experiments.assignments (assigned_at);


-- WhatsApp

-- The accounts of a lead; the policy of customers; and the foreign key.
CREATE INDEX accounts_lead_idx ON whatsapp.accounts (lead_id);
-- A webhook: the account of the number that a message came to.
CREATE INDEX accounts_phone_number_idx ON whatsapp.accounts (phone_number_id) WHERE is_active;
-- Accounts that wait for verification.
CREATE INDEX accounts_verification_idx ON whatsapp.accounts (verification_status, created_at)
WHERE verification_status <> 'verified';
-- Accounts near their daily limit.
CREATE INDEX accounts_sent_today_idx ON whatsapp.accounts (messages_sent_today DESC) WHERE is_active;

-- The templates of an account that may be sent. (Those of an account at all: its unique key.)
CREATE INDEX templates_approved_idx ON whatsapp.templates (account_id, template_name) WHERE status = 'approved';
-- Templates that wait for approval.
CREATE INDEX templates_pending_idx ON whatsapp.templates (created_at) WHERE status = 'pending';
-- A template by the id that WhatsApp gave it, as its webhooks name it.
CREATE INDEX templates_whatsapp_id_idx ON whatsapp.templates (whatsapp_template_id) WHERE whatsapp_template_id IS NOT NULL;


-- The audit log

-- The history of a row; erasure.
CREATE INDEX audit_logs_row_idx ON public.audit_logs (row_id, created_at DESC);
-- The history of a table.
CREATE INDEX audit_logs_table_idx ON public.audit_logs (table_name, created_at DESC);
-- What somebody did.
CREATE INDEX audit_logs_user_idx ON public.audit_logs (user_id, created_at DESC) WHERE user_id IS NOT NULL;
CREATE INDEX audit_logs_email_idx ON public.audit_logs (lower(user_email)) WHERE user_email IS NOT NULL;
-- Retention, and everything of a time. Rows are in the order of time.
CREATE INDEX audit_logs_created_at_idx ON public.audit_logs USING brin (created_at);


-- Closed days

-- A statement to be run outside a transaction each, as CONCURRENTLY wants; it locks neither readers nor writers out.
-- Late events still come into a closed day: they pay, the stream does not.
CREATE FUNCTION analytics.missing_closed_day_indexes(closed_for interval DEFAULT '6 hours')
RETURNS TABLE (partition_name text, index_name text, statement text, leftover boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT day.relname::text, wanted.name, format(
            'CREATE INDEX CONCURRENTLY %I ON analytics.%I %s', wanted.name, day.relname, kind.definition
        ), known.oid IS NOT NULL
    FROM pg_inherits
    JOIN pg_class AS day ON day.oid = pg_inherits.inhrelid
    CROSS JOIN (VALUES
        -- properties @> '{"plan": "pro"}'
        ('properties', 'USING gin (properties jsonb_path_ops)'),
        -- Events of one name, the latest first; how often and by whom.
        ('name', '(name, created_at)'),
        -- Everything that a user did; export and erasure.
        ('user', '(user_id, created_at) WHERE user_id IS NOT NULL'),
        -- Everything that a browser did, before and after it was known whose it is.
        ('anonymous', '(anonymous_id, created_at) WHERE anonymous_id IS NOT NULL'),
        -- Views of a page.
        ('page', '(page_path, created_at) WHERE page_path IS NOT NULL')
    ) AS kind (name, definition)
    CROSS JOIN LATERAL (SELECT format('%s_%s_closed_idx', day.relname, kind.name) AS name) AS wanted
    LEFT JOIN pg_class AS known ON known.relname = wanted.name AND known.relnamespace = day.relnamespace
    LEFT JOIN pg_index ON pg_index.indexrelid = known.oid
    WHERE inhparent = 'analytics.events'::regclass
        AND CASE WHEN day.relname ~ '^events_[0-9]{8}$'
            THEN to_date(substr(day.relname, 8), 'YYYYMMDD') + 1 <= (now() - closed_for) AT TIME ZONE 'UTC'
        END
        -- A CONCURRENTLY that was interrupted leaves an invalid one behind, to be dropped first.
        AND (known.oid IS NULL OR NOT pg_index.indisvalid)
    ORDER BY day.relname, kind.name
$$;
COMMENT ON FUNCTION analytics.missing_closed_day_indexes(interval) IS
    'The indexes that closed days of analytics.events lack, each as a statement to run outside a transaction; leftover: '
    'drop the invalid index of that name first. A day is closed so long after its end';
REVOKE EXECUTE ON FUNCTION analytics.missing_closed_day_indexes(interval) FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION analytics.missing_closed_day_indexes(interval) TO service_role;
