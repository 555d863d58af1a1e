-- Every index that is no constraint, each below the query that it is for; what keys and unique indexes serve already
-- (an email, a token, the reads of whole buckets) has none here.
-- `ingest migrate` runs a file in a transaction, where nothing is CONCURRENTLY, and the tables are new: nobody waits.
-- squawk-ignore-file require-concurrent-index-creation


-- Leads

-- The list of leads, page by page: (created_at, id) < (..., ...) of the last one seen; conversion by source from the
-- index alone
CREATE INDEX leads_created_at_idx ON marketing.leads (created_at DESC, id DESC) INCLUDE (source, status)
    WHERE deleted_at IS NULL;
-- The same list of one status
CREATE INDEX leads_status_created_at_idx ON marketing.leads (status, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;
-- Latest leads of one source and status
CREATE INDEX leads_source_status_created_at_idx ON marketing.leads (source, status, created_at DESC)
    WHERE deleted_at IS NULL;
-- Whom to call next: open leads, the most promising first
CREATE INDEX leads_open_score_idx ON marketing.leads (score DESC, id DESC)
    WHERE status IN ('new', 'contacted', 'qualified') AND deleted_at IS NULL;
-- Search by the beginning of an address; erasing and exporting a person, whose deleted rows count, too
CREATE INDEX leads_email_pattern_idx ON marketing.leads (email text_pattern_ops);
-- Search by the beginning of a company's name, in any case
CREATE INDEX leads_lower_company_name_idx ON marketing.leads (lower(company_name) text_pattern_ops)
    WHERE company_name IS NOT NULL;
-- Who calls from this number?
CREATE INDEX leads_phone_number_idx ON marketing.leads (phone_number) WHERE phone_number IS NOT NULL;
-- What a campaign brought, and when
CREATE INDEX leads_utm_source_utm_campaign_created_at_idx
    ON marketing.leads (utm_source, utm_campaign, created_at DESC) WHERE utm_source IS NOT NULL;
-- Leads of a country, latest first
CREATE INDEX leads_country_code_created_at_idx ON marketing.leads (country_code, created_at DESC)
    WHERE country_code IS NOT NULL AND deleted_at IS NULL;
-- Who is interested in all of these features: interested_features @> ARRAY[...]
CREATE INDEX leads_interested_features_idx ON marketing.leads USING gin (interested_features);
-- Who agreed to the newsletter: consent ? 'newsletter', which jsonb_path_ops cannot answer
CREATE INDEX leads_consent_idx ON marketing.leads USING gin (consent);
-- What was said again of a lead, by anybody; its foreign key
CREATE INDEX leads_duplicate_of_created_at_idx ON marketing.leads (duplicate_of, created_at DESC)
    WHERE duplicate_of IS NOT NULL;
-- What was deleted, and how long ago
CREATE INDEX leads_deleted_at_idx ON marketing.leads (deleted_at) WHERE deleted_at IS NOT NULL;

-- All that was done about a lead, latest first; its foreign key
CREATE INDEX lead_interactions_lead_id_created_at_idx ON marketing.lead_interactions (lead_id, created_at DESC);
-- What was done about anybody, page by page
CREATE INDEX lead_interactions_created_at_idx ON marketing.lead_interactions (created_at DESC, id DESC);
-- What is planned or overdue
CREATE INDEX lead_interactions_open_scheduled_at_idx ON marketing.lead_interactions (scheduled_at)
    WHERE scheduled_at IS NOT NULL AND completed_at IS NULL;
-- How calls, or demos, went within a time
CREATE INDEX lead_interactions_type_outcome_created_at_idx
    ON marketing.lead_interactions (interaction_type, outcome, created_at DESC);
-- What a colleague did
CREATE INDEX lead_interactions_created_by_created_at_idx
    ON marketing.lead_interactions (created_by, created_at DESC) WHERE created_by IS NOT NULL;
-- Interactions by what else is known of them: metadata @> '{"template": "welcome"}'
CREATE INDEX lead_interactions_metadata_idx ON marketing.lead_interactions USING gin (metadata jsonb_path_ops);


-- Onboarding

-- The sessions of a lead; its foreign key
CREATE INDEX sessions_lead_id_idx ON onboarding.sessions (lead_id) WHERE lead_id IS NOT NULL;
-- The list of sessions, page by page; the funnel from the index alone
CREATE INDEX sessions_created_at_idx ON onboarding.sessions (created_at DESC, id DESC) INCLUDE (
    started_at, business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at,
    testing_completed_at, completed_at, status
);
-- The same list of one status
CREATE INDEX sessions_status_created_at_idx ON onboarding.sessions (status, created_at DESC, id DESC);
-- abandon_inactive_sessions(): who has done nothing for two hours
CREATE INDEX sessions_in_progress_last_activity_at_idx ON onboarding.sessions (last_activity_at)
    WHERE status = 'in_progress';
-- At which step people leave
CREATE INDEX sessions_abandoned_current_step_idx ON onboarding.sessions (current_step, abandoned_at DESC)
    WHERE status = 'abandoned';
-- How long it took those who were done within a time
CREATE INDEX sessions_completed_at_idx ON onboarding.sessions (completed_at DESC) INCLUDE (started_at)
    WHERE status = 'completed';
-- The sessions in which an address was entered: linking them to their lead, erasing a person
CREATE INDEX sessions_lower_business_email_idx ON onboarding.sessions (lower(business_data ->> 'email'))
    WHERE business_data ->> 'email' IS NOT NULL;
-- Sessions by what was entered: business_data @> '{"industry": "retail"}'
CREATE INDEX sessions_business_data_idx ON onboarding.sessions USING gin (business_data jsonb_path_ops);

-- What was done in a session, in order; its foreign key; the policy by which visitors see their own
CREATE INDEX step_activities_session_id_created_at_idx ON onboarding.step_activities (session_id, created_at);
-- How long people spend on a step, from the index alone
CREATE INDEX step_activities_step_type_created_at_idx
    ON onboarding.step_activities (step, activity_type, created_at DESC) INCLUDE (time_spent_seconds);
-- Which fields people get wrong
CREATE INDEX step_activities_error_step_field_idx
    ON onboarding.step_activities (step, field_name, created_at DESC) WHERE error_message IS NOT NULL;
-- Everything within a time: rows come in the order of their time, which a BRIN needs and little else
CREATE INDEX step_activities_created_at_brin ON onboarding.step_activities USING brin (created_at);


-- Events

-- Every COPY pays for what is here, so that it is little: the day that is being written has the primary key and these
-- three. What else reads want is made once a day is over; see missing_closed_day_indexes() below.

-- The events of the records that are to be rolled up: batch_id BETWEEN ... AND ...
-- A range of 32 pages is a few hundred events, and at most one record's worth is read in vain at either end.
-- minmax_multi, because each journal counts on its own: where collectors take turns nearly every range has batches of
-- all of them, and by one least and one greatest batch a range almost the whole day would be read.
-- Not autosummarize: it takes up to 256 ranges a minute, about 1,200 events a second, and writes a line into the server's
-- log for each one more. Pages that VACUUM has not seen yet are read whole, so that whoever looks for the latest batches
-- calls brin_summarize_new_values() on the day's index first.
CREATE INDEX events_batch_id_brin ON analytics.events USING brin (batch_id int8_minmax_multi_ops)
    WITH (pages_per_range = 32);
-- What happened in a session
CREATE INDEX events_session_id_created_at_idx ON analytics.events (session_id, created_at);
-- process_pending_events(): plain INSERTs that no record carried. A COPY only compares its batch_id.
CREATE INDEX events_waiting_created_at_idx ON analytics.events (created_at) WHERE batch_id IS NULL;
-- cleanup_old_data()
CREATE INDEX event_keys_created_at_idx ON analytics.event_keys (created_at);


-- The ledger. analytics.journals has a row a collector, which each flush updates: another index would be of no use
-- and make those updates dearer.

-- What is to be rolled up, oldest first
CREATE INDEX flushes_not_rolled_up_idx ON analytics.flushes (flushed_at, journal, last_record)
    WHERE rolled_up_at IS NULL;
-- How much was stored within a time, from the index alone; what is old enough to be deleted
CREATE INDEX flushes_flushed_at_idx ON analytics.flushes (flushed_at)
    INCLUDE (events_stored, events_duplicate, events_rejected);

-- How many were refused for which reason within a time
CREATE INDEX rejected_events_reason_received_at_idx ON analytics.rejected_events (reason, received_at DESC);
-- `ingest rejected`: the latest of a reason that were not replayed
CREATE INDEX rejected_events_not_replayed_reason_idx ON analytics.rejected_events (reason, id)
    WHERE replayed_at IS NULL;
-- `ingest replay`: what can be replayed, whatever the reason
CREATE INDEX rejected_events_replayable_idx ON analytics.rejected_events (id)
    WHERE replayed_at IS NULL AND NOT payload_truncated;
-- What is old enough to be deleted
CREATE INDEX rejected_events_received_at_brin ON analytics.rejected_events USING brin (received_at);
-- What of these records was refused
CREATE INDEX rejected_events_batch_id_brin ON analytics.rejected_events USING brin (batch_id);


-- Rollups and KPIs

-- In none of the indexes on event_aggregations are counts included: a bucket is counted up many times, and those
-- updates would have to write to every index.

-- One event by hour, or day, or minute
CREATE INDEX event_aggregations_total_name_idx
    ON analytics.event_aggregations (granularity, event_type, event_name, time_bucket DESC) WHERE dimensions = '{}';
-- Totals of everything by time: one row a name, where the primary key has one a dimension as well
CREATE INDEX event_aggregations_total_time_bucket_idx
    ON analytics.event_aggregations (granularity, time_bucket DESC) WHERE dimensions = '{}';
-- Days of an event of which only the name is known, and which names there are
CREATE INDEX event_aggregations_day_event_name_idx
    ON analytics.event_aggregations (event_name, time_bucket DESC) WHERE granularity = 'day';
-- What came from one country, or page: dimensions @> '{"country": "DE"}'
CREATE INDEX event_aggregations_dimensions_idx ON analytics.event_aggregations USING gin (dimensions jsonb_path_ops);

-- Which browsers a user has
CREATE INDEX identities_user_id_idx ON analytics.identities (user_id);
-- Who was not seen for so long that they are forgotten
CREATE INDEX identities_last_seen_at_brin ON analytics.identities USING brin (last_seen_at);
-- Likewise of users
CREATE INDEX people_last_seen_at_brin ON analytics.people USING brin (last_seen_at);
-- What is old enough to be deleted; not by ended_at, which every event of a visit moves
CREATE INDEX visits_started_at_brin ON analytics.visits USING brin (started_at);

-- A KPI over time, from the index alone
CREATE INDEX metrics_total_name_granularity_window_idx
    ON analytics.metrics (name, granularity, time_window_start DESC) INCLUDE (value_numeric) WHERE dimensions = '{}';
-- The latest value of a KPI
CREATE INDEX metrics_name_timestamp_idx ON analytics.metrics (name, timestamp DESC);
-- KPIs with a tag: tags @> ARRAY['revenue']
CREATE INDEX metrics_tags_idx ON analytics.metrics USING gin (tags);
-- KPIs of one plan, or country: dimensions @> '{"plan": "pro"}'
CREATE INDEX metrics_dimensions_idx ON analytics.metrics USING gin (dimensions jsonb_path_ops);
-- What one source computed lately: is it still at work?
CREATE INDEX metrics_source_timestamp_idx ON analytics.metrics (source, timestamp DESC) WHERE source IS NOT NULL;
-- What is old enough to be deleted
CREATE INDEX metrics_ended_at_idx ON analytics.metrics (coalesce(time_window_end, timestamp));


-- Experiments

-- auto_assign_experiments() and what visitors may read: running ones, by name
CREATE INDEX experiments_running_name_idx ON experiments.experiments (name) WHERE status = 'running' AND is_active;
-- Which of them are over
CREATE INDEX experiments_running_end_date_idx ON experiments.experiments (end_date)
    WHERE status = 'running' AND end_date IS NOT NULL;
-- The list of experiments of one status, page by page
CREATE INDEX experiments_status_created_at_idx ON experiments.experiments (status, created_at DESC, id DESC);
-- The list of all that are not put away, page by page
CREATE INDEX experiments_created_at_idx ON experiments.experiments (created_at DESC, id DESC)
    WHERE archived_at IS NULL;
-- What the collectors serve as flags, looked through every second
CREATE INDEX experiments_served_idx ON experiments.experiments (id) WHERE status <> 'draft' AND archived_at IS NULL;
-- What a colleague has made
CREATE INDEX experiments_created_by_created_at_idx ON experiments.experiments (created_by, created_at DESC)
    WHERE created_by IS NOT NULL;

-- How many were given which variant; the foreign key
CREATE INDEX assignments_experiment_id_variant_id_assigned_at_idx
    ON experiments.assignments (experiment_id, variant_id, assigned_at DESC);
-- Those of them who saw it. Without how often, which is counted up: those updates need not touch any index.
CREATE INDEX assignments_exposed_experiment_id_variant_id_idx
    ON experiments.assignments (experiment_id, variant_id, first_exposure_at) WHERE first_exposure_at IS NOT NULL;
-- All variants of a user
CREATE INDEX assignments_user_id_idx ON experiments.assignments (user_id, assigned_at DESC) WHERE user_id IS NOT NULL;
-- All variants of a session, which is what the policy for visitors looks for
CREATE INDEX assignments_session_id_idx ON experiments.assignments (session_id) WHERE session_id IS NOT NULL;


-- WhatsApp

-- The accounts of a lead, which the policy for customers looks for; the foreign key
CREATE INDEX accounts_lead_id_idx ON whatsapp.accounts (lead_id);
-- Which account a webhook is about: Meta tells the number's id
CREATE INDEX accounts_phone_number_id_idx ON whatsapp.accounts (phone_number_id);
-- Whose number is this?
CREATE INDEX accounts_phone_number_idx ON whatsapp.accounts (phone_number);
-- Which wait for verification, or failed it
CREATE INDEX accounts_unverified_created_at_idx ON whatsapp.accounts (verification_status, created_at)
    WHERE verification_status <> 'verified';
-- The list of accounts, page by page
CREATE INDEX accounts_created_at_idx ON whatsapp.accounts (created_at DESC, id DESC);

-- What an account may send, by category
CREATE INDEX templates_approved_account_id_category_idx ON whatsapp.templates (account_id, category)
    INCLUDE (template_name, language) WHERE status = 'approved';
-- Which wait for Meta's decision, the oldest first
CREATE INDEX templates_pending_created_at_idx ON whatsapp.templates (created_at) WHERE status = 'pending';
-- Which template a webhook is about
CREATE INDEX templates_whatsapp_template_id_idx ON whatsapp.templates (whatsapp_template_id)
    WHERE whatsapp_template_id IS NOT NULL;
-- The list of templates, page by page
CREATE INDEX templates_created_at_idx ON whatsapp.templates (created_at DESC, id DESC);


-- Audit

-- What happened to a row; the rows of a person who is erased, whatever the table
CREATE INDEX audit_logs_row_id_table_name_created_at_idx
    ON public.audit_logs (row_id, table_name, created_at DESC) WHERE row_id IS NOT NULL;
-- What somebody did
CREATE INDEX audit_logs_user_id_created_at_idx ON public.audit_logs (user_id, created_at DESC)
    WHERE user_id IS NOT NULL;
-- The same by address, also when that person is erased
CREATE INDEX audit_logs_lower_user_email_idx ON public.audit_logs (lower(user_email)) WHERE user_email IS NOT NULL;
-- The latest of one table
CREATE INDEX audit_logs_table_name_id_idx ON public.audit_logs (table_name, id);
-- Which persons were erased or exported, and when
CREATE INDEX audit_logs_rare_operation_created_at_idx ON public.audit_logs (operation, created_at DESC)
    WHERE operation IN ('TRUNCATE', 'ERASE', 'EXPORT');
-- Everything within a time; what is old enough to be deleted
CREATE INDEX audit_logs_created_at_brin ON public.audit_logs USING brin (created_at);


-- Indexes of closed days

-- CREATE INDEX CONCURRENTLY stops nobody, but runs in no transaction and so in no function: this says what is to be
-- run, and the service does, one after the other. Events that come late for such a day pay for its indexes.
CREATE FUNCTION analytics.missing_closed_day_indexes(older_than interval DEFAULT '6 hours')
RETURNS TABLE (partition_name text, index_name text, statement text, leftover text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH closed AS (
        SELECT pg_class.oid, relname::text AS name
        FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
            AND (to_date(right(relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' < now() - older_than
    ), wanted (place, suffix, definition) AS (VALUES
        -- Events by what they tell: properties @> '{"plan": "pro"}'
        (1, 'properties_gin', 'USING gin (properties jsonb_path_ops)'),
        -- Events of one name
        (2, 'name_created_at', '(name, created_at)'),
        -- What a user did
        (3, 'user_id_created_at', '(user_id, created_at) WHERE user_id IS NOT NULL'),
        -- What a browser did, also before its user was known
        (4, 'anonymous_id_created_at', '(anonymous_id, created_at) WHERE anonymous_id IS NOT NULL'),
        -- What happened on a page
        (5, 'page_created_at', '(page_host, page_path, created_at) WHERE page_host IS NOT NULL')
    )
    SELECT closed.name, named.index_name,
        format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON analytics.%I %s',
            named.index_name, closed.name, wanted.definition),
        CASE WHEN found.indexrelid IS NOT NULL THEN format('analytics.%I', named.index_name) END
    FROM closed
    CROSS JOIN wanted
    CROSS JOIN LATERAL (SELECT closed.name || '_' || wanted.suffix AS index_name) AS named
    LEFT JOIN (pg_index AS found JOIN pg_class AS known ON known.oid = found.indexrelid)
        ON found.indrelid = closed.oid AND known.relname = named.index_name
    -- An index that is being made is not valid yet, either, but no leftover.
    WHERE found.indisvalid IS NOT TRUE AND NOT EXISTS (
        SELECT FROM pg_stat_progress_create_index AS progress WHERE progress.index_relid = found.indexrelid
    )
    ORDER BY closed.name, wanted.place
$$;

COMMENT ON FUNCTION analytics.missing_closed_day_indexes(interval) IS
    'The indexes that days of analytics.events lack which ended longer ago: the statement that makes each, and in leftover an invalid index to be dropped first';

-- For the owner, as making partitions is.
REVOKE EXECUTE ON FUNCTION analytics.missing_closed_day_indexes(interval) FROM PUBLIC;
