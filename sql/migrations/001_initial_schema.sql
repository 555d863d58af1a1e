-- Every schema, type, table and constraint. Roles, grants and row security are in 002, indexes that are no constraint
-- in 003, business functions and triggers in 004.
-- Runs unchanged on PostgreSQL 15 to 18, as any role that may make schemas here and tables in `public` (only the
-- owner of a database may by default: GRANT CREATE ON SCHEMA public TO ...); needs no extension.

-- Not CREATE SCHEMA IF NOT EXISTS, which asks for the right to make a schema even where it is there.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{marketing,onboarding,analytics,experiments,whatsapp}'::text[] LOOP
        IF to_regnamespace(name) IS NULL THEN
            EXECUTE format('CREATE SCHEMA %I', name);
        END IF;
    END LOOP;
END
$$;

COMMENT ON SCHEMA marketing IS 'Who might become a customer, and what was said to them';
COMMENT ON SCHEMA onboarding IS 'The way from signing up to a working bot, step by step';
COMMENT ON SCHEMA analytics IS 'Product analytics: events, their ledger, rollups and KPIs';
COMMENT ON SCHEMA experiments IS 'A/B tests: their variants, and who was given which';
COMMENT ON SCHEMA whatsapp IS 'WhatsApp Business accounts and their message templates';

-- The limits on texts are those of the collector where it has the same field: 255 characters for an id or a campaign,
-- 1,024 for a user agent, 4,096 for a URL. Constraints on one column stand beside it.


-- Leads

CREATE TYPE marketing.lead_source AS ENUM (
    'website-form', 'demo-request', 'newsletter-signup', 'pricing-inquiry', 'contact-form'
);
CREATE TYPE marketing.lead_status AS ENUM ('new', 'contacted', 'qualified', 'converted', 'lost');
CREATE TYPE marketing.interaction_outcome AS ENUM ('positive', 'neutral', 'negative', 'no_response');

CREATE TABLE marketing.leads (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- What mail servers accept, but for quoted local parts and addresses in brackets; an international domain as xn--.
    email text NOT NULL
        CONSTRAINT leads_email_length CHECK (char_length(email) <= 254)
        CONSTRAINT leads_email_format CHECK (
            email ~ '^[a-z0-9!#$%&''*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&''*+/=?^_`{|}~-]+)*@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])$'
        )
        CONSTRAINT leads_email_local_part_length CHECK (strpos(email, '@') <= 65),
    phone_number text CONSTRAINT leads_phone_number_format CHECK (phone_number ~ '^(?=\+?[0-9]{7,15}$)(\+|0)?[1-9]'),
    company_name text CONSTRAINT leads_company_name_length CHECK (char_length(company_name) BETWEEN 1 AND 200),
    first_name text CONSTRAINT leads_first_name_length CHECK (char_length(first_name) BETWEEN 1 AND 100),
    last_name text CONSTRAINT leads_last_name_length CHECK (char_length(last_name) BETWEEN 1 AND 100),
    source marketing.lead_source NOT NULL DEFAULT 'website-form',
    status marketing.lead_status NOT NULL DEFAULT 'new',
    score int NOT NULL DEFAULT 0 CONSTRAINT leads_score_range CHECK (score BETWEEN 0 AND 100),
    notes text CONSTRAINT leads_notes_length CHECK (char_length(notes) <= 10000),
    interested_features text[] NOT NULL DEFAULT '{}'
        CONSTRAINT leads_interested_features_count CHECK (cardinality(interested_features) <= 50)
        CONSTRAINT leads_interested_features_length CHECK (
            char_length(array_to_string(interested_features, '')) <= 2500
        )
        -- An empty array has no dimension, and array_position() fails on two.
        CONSTRAINT leads_interested_features_shape CHECK (
            CASE coalesce(array_ndims(interested_features), 1)
                WHEN 1 THEN array_position(interested_features, NULL) IS NULL
                ELSE false
            END
        ),
    utm_source text CONSTRAINT leads_utm_source_length CHECK (char_length(utm_source) <= 255),
    utm_medium text CONSTRAINT leads_utm_medium_length CHECK (char_length(utm_medium) <= 255),
    utm_campaign text CONSTRAINT leads_utm_campaign_length CHECK (char_length(utm_campaign) <= 255),
    utm_content text CONSTRAINT leads_utm_content_length CHECK (char_length(utm_content) <= 255),
    utm_term text CONSTRAINT leads_utm_term_length CHECK (char_length(utm_term) <= 255),
    referrer text CONSTRAINT leads_referrer_length CHECK (char_length(referrer) <= 4096),
    landing_page text CONSTRAINT leads_landing_page_length CHECK (char_length(landing_page) <= 4096),
    user_agent text CONSTRAINT leads_user_agent_length CHECK (char_length(user_agent) <= 1024),
    ip_address inet,
    country_code char(2) CONSTRAINT leads_country_code_format CHECK (country_code ~ '^[A-Z]{2}$'),
    region text CONSTRAINT leads_region_length CHECK (char_length(region) <= 100),
    city text CONSTRAINT leads_city_length CHECK (char_length(city) <= 100),
    consent jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT leads_consent_object CHECK (jsonb_typeof(consent) = 'object')
        CONSTRAINT leads_consent_size CHECK (octet_length(consent::text) <= 8192),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    duplicate_of uuid,
    CONSTRAINT leads_pkey PRIMARY KEY (id),
    CONSTRAINT leads_duplicate_of_fkey FOREIGN KEY (duplicate_of) REFERENCES marketing.leads (id) ON DELETE CASCADE,
    CONSTRAINT leads_duplicate_of_out_of_use CHECK (duplicate_of IS NULL OR deleted_at IS NOT NULL)
);

-- A constraint but for its form: UNIQUE takes no WHERE. An address is free again once its lead is deleted.
-- To be named as ON CONFLICT (email) WHERE deleted_at IS NULL.
CREATE UNIQUE INDEX leads_email_key ON marketing.leads (email) WHERE deleted_at IS NULL;

COMMENT ON TABLE marketing.leads IS 'People who left their address; one row an address, but for deleted rows';
COMMENT ON COLUMN marketing.leads.email IS 'Lower case and trimmed; a trigger makes it so';
COMMENT ON COLUMN marketing.leads.phone_number IS '7 to 15 digits, with + before a country code; a trigger takes blanks and punctuation out';
COMMENT ON COLUMN marketing.leads.source IS 'Which form they came by first';
COMMENT ON COLUMN marketing.leads.score IS 'How promising, 0 to 100, by calculate_lead_score()';
COMMENT ON COLUMN marketing.leads.notes IS 'What they wrote, and what was noted about them since; the latest last';
COMMENT ON COLUMN marketing.leads.landing_page IS 'URL of the first page they saw';
COMMENT ON COLUMN marketing.leads.referrer IS 'URL of the page that led them there';
COMMENT ON COLUMN marketing.leads.country_code IS 'ISO 3166-1 alpha-2, upper case';
COMMENT ON COLUMN marketing.leads.region IS 'ISO 3166-2 subdivision without the country, or its name';
COMMENT ON COLUMN marketing.leads.consent IS 'What they agreed to, and when, such as {"newsletter": "2026-01-02T12:00:00Z"}';
COMMENT ON COLUMN marketing.leads.deleted_at IS 'When it was taken out of use but kept; NULL: in use. Erasure takes the row itself';
COMMENT ON COLUMN marketing.leads.duplicate_of IS 'The lead that had this address already when somebody without credentials left it again: what they said is kept here, out of use, and changes nothing of that lead';

CREATE TABLE marketing.lead_interactions (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    lead_id uuid NOT NULL,
    interaction_type text NOT NULL
        CONSTRAINT lead_interactions_interaction_type_format CHECK (interaction_type ~ '^[a-z][a-z0-9_]{0,49}$'),
    subject text CONSTRAINT lead_interactions_subject_length CHECK (char_length(subject) <= 300),
    description text CONSTRAINT lead_interactions_description_length CHECK (char_length(description) <= 10000),
    outcome marketing.interaction_outcome,
    scheduled_at timestamptz,
    completed_at timestamptz,
    created_by uuid,
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT lead_interactions_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
        CONSTRAINT lead_interactions_metadata_size CHECK (octet_length(metadata::text) <= 16384),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT lead_interactions_pkey PRIMARY KEY (id),
    -- What was said to a person is theirs: it goes when they go.
    CONSTRAINT lead_interactions_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES marketing.leads (id) ON DELETE CASCADE
);

COMMENT ON TABLE marketing.lead_interactions IS 'What was done about a lead: mails, calls, demos, each with its outcome';
COMMENT ON COLUMN marketing.lead_interactions.interaction_type IS 'What it was, in lower_snake_case: email_sent, demo_scheduled, call_made; the list is open';
COMMENT ON COLUMN marketing.lead_interactions.outcome IS 'How they took it; NULL: not known yet';
COMMENT ON COLUMN marketing.lead_interactions.scheduled_at IS 'When it is to be, if it is to be; completed_at may be earlier';
COMMENT ON COLUMN marketing.lead_interactions.created_by IS 'auth.uid() of who recorded it; NULL: no person did';


-- Onboarding

CREATE TYPE onboarding.step AS ENUM ('business_info', 'whatsapp_integration', 'bot_setup', 'testing', 'complete');
CREATE TYPE onboarding.session_status AS ENUM ('not_started', 'in_progress', 'completed', 'abandoned');

CREATE TABLE onboarding.sessions (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    lead_id uuid,
    -- 256 random bits. Four version 4 UUIDs, of 122 random bits each from the server's strong source, are hashed to
    -- 32 bytes: with 488 bits going in, practically nothing of the 256 is lost. Written as 64 hex digits.
    session_token text NOT NULL DEFAULT 'sess_' || encode(sha256(
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
        || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    ), 'hex')
        -- 32 bytes are 43 characters in base64url.
        CONSTRAINT sessions_session_token_format CHECK (session_token ~ '^sess_[A-Za-z0-9_-]{43,128}$'),
    current_step onboarding.step NOT NULL DEFAULT 'business_info',
    status onboarding.session_status NOT NULL DEFAULT 'not_started',
    progress_percentage int NOT NULL DEFAULT 0
        CONSTRAINT sessions_progress_range CHECK (progress_percentage BETWEEN 0 AND 100),
    business_info_completed_at timestamptz,
    whatsapp_integration_completed_at timestamptz,
    bot_setup_completed_at timestamptz,
    testing_completed_at timestamptz,
    completed_at timestamptz,
    started_at timestamptz,
    last_activity_at timestamptz NOT NULL DEFAULT now(),
    abandoned_at timestamptz,
    user_agent text CONSTRAINT sessions_user_agent_length CHECK (char_length(user_agent) <= 1024),
    ip_address inet,
    anonymous_id text CONSTRAINT sessions_anonymous_id_length CHECK (char_length(anonymous_id) BETWEEN 1 AND 255),
    visit_session_id text
        CONSTRAINT sessions_visit_session_id_length CHECK (char_length(visit_session_id) BETWEEN 1 AND 255),
    business_data jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT sessions_business_data_object CHECK (jsonb_typeof(business_data) = 'object')
        CONSTRAINT sessions_business_data_size CHECK (octet_length(business_data::text) <= 32768),
    whatsapp_config jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT sessions_whatsapp_config_object CHECK (jsonb_typeof(whatsapp_config) = 'object')
        CONSTRAINT sessions_whatsapp_config_size CHECK (octet_length(whatsapp_config::text) <= 32768),
    bot_config jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT sessions_bot_config_object CHECK (jsonb_typeof(bot_config) = 'object')
        CONSTRAINT sessions_bot_config_size CHECK (octet_length(bot_config::text) <= 32768),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_session_token_key UNIQUE (session_token),
    -- A journey counts in the funnel without its lead, as it did before the lead was known. That deleting the lead
    -- leaves the texts in it is why a person is erased by gdpr_delete_user_data(), which takes them out.
    CONSTRAINT sessions_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES marketing.leads (id) ON DELETE SET NULL,
    CONSTRAINT sessions_completed_after_start CHECK (completed_at >= started_at),
    CONSTRAINT sessions_abandoned_after_start CHECK (abandoned_at >= started_at)
);

COMMENT ON TABLE onboarding.sessions IS 'Journeys through onboarding; who knows the token may go on with one';
COMMENT ON COLUMN onboarding.sessions.lead_id IS 'The lead whose address is in business_data; NULL: not known';
COMMENT ON COLUMN onboarding.sessions.session_token IS 'A secret: "sess_" and at least 32 random bytes in hex or base64url; as good as a password for this session';
COMMENT ON COLUMN onboarding.sessions.current_step IS 'The step to be done next';
COMMENT ON COLUMN onboarding.sessions.progress_percentage IS '0 to 100, by calculate_onboarding_progress()';
COMMENT ON COLUMN onboarding.sessions.completed_at IS 'When the last step was done';
COMMENT ON COLUMN onboarding.sessions.started_at IS 'When the first thing was done in it; NULL while the status is not_started';
COMMENT ON COLUMN onboarding.sessions.last_activity_at IS 'When anything was last done in it: what decides that it is abandoned';
COMMENT ON COLUMN onboarding.sessions.anonymous_id IS 'The visitor, as in analytics.events, told when the session was made';
COMMENT ON COLUMN onboarding.sessions.visit_session_id IS 'The visit in which it was made: session_id of analytics.events';
COMMENT ON COLUMN onboarding.sessions.business_data IS 'What was entered in the step business_info, as the application has it; "email" links it to a lead';
COMMENT ON COLUMN onboarding.sessions.whatsapp_config IS 'What was entered in the step whatsapp_integration; no tokens: those belong, encrypted, in whatsapp.accounts';
COMMENT ON COLUMN onboarding.sessions.bot_config IS 'What was entered in the step bot_setup';

CREATE TABLE onboarding.step_activities (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    session_id uuid NOT NULL,
    step onboarding.step NOT NULL,
    activity_type text NOT NULL
        CONSTRAINT step_activities_activity_type_format CHECK (activity_type ~ '^[a-z][a-z0-9_]{0,49}$'),
    field_name text CONSTRAINT step_activities_field_name_length CHECK (char_length(field_name) <= 100),
    field_value text CONSTRAINT step_activities_field_value_length CHECK (char_length(field_value) <= 2000),
    error_message text CONSTRAINT step_activities_error_message_length CHECK (char_length(error_message) <= 2000),
    time_spent_seconds int
        CONSTRAINT step_activities_time_spent_not_negative CHECK (time_spent_seconds >= 0),
    metadata jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT step_activities_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
        CONSTRAINT step_activities_metadata_size CHECK (octet_length(metadata::text) <= 16384),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT step_activities_pkey PRIMARY KEY (id),
    -- Without its session nobody can tell what it was about.
    CONSTRAINT step_activities_session_id_fkey
        FOREIGN KEY (session_id) REFERENCES onboarding.sessions (id) ON DELETE CASCADE
);

COMMENT ON TABLE onboarding.step_activities IS 'What was done within a step: where people hesitate, err and leave';
COMMENT ON COLUMN onboarding.step_activities.activity_type IS 'What it was, in lower_snake_case: form_started, field_filled, validation_error, step_completed; the list is open';
COMMENT ON COLUMN onboarding.step_activities.field_value IS 'What was entered; no passwords and no tokens';
COMMENT ON COLUMN onboarding.step_activities.time_spent_seconds IS 'Time spent on it, by the client''s clock';


-- Analytics

CREATE TYPE analytics.event_type AS ENUM ('page_view', 'user_action', 'conversion', 'system');
CREATE TYPE analytics.device_type AS ENUM ('desktop', 'mobile', 'tablet', 'bot', 'other');
CREATE TYPE analytics.granularity AS ENUM ('minute', 'hour', 'day', 'week', 'month');
CREATE TYPE analytics.metric_type AS ENUM ('counter', 'gauge', 'histogram', 'rate');
CREATE TYPE analytics.metric_aggregation AS ENUM ('sum', 'average', 'min', 'max', 'count', 'unique_count');


-- Events

-- Few checks, and cheap ones: every row of every COPY pays for them. There is no default partition, because a row
-- in it would keep the partition of its day from being made without a scan under an exclusive lock.
CREATE TABLE analytics.events (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    received_at timestamptz NOT NULL DEFAULT now(),
    type analytics.event_type NOT NULL,
    name text NOT NULL,
    user_id text,
    anonymous_id text,
    session_id text,
    properties jsonb NOT NULL DEFAULT '{}',
    context jsonb NOT NULL DEFAULT '{}',
    url text,
    referrer text,
    page_host text,
    page_path text,
    referrer_host text,
    source text,
    utm_source text,
    utm_medium text,
    utm_campaign text,
    utm_term text,
    utm_content text,
    user_agent text,
    device_type analytics.device_type,
    browser text,
    os text,
    ip_address inet,
    country char(2),
    region text,
    batch_id bigint,
    batch_position int,
    authenticated boolean,
    client_time timestamptz,
    CONSTRAINT events_pkey PRIMARY KEY (created_at, id),
    CONSTRAINT events_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT events_properties_object CHECK (jsonb_typeof(properties) = 'object'),
    CONSTRAINT events_context_object CHECK (jsonb_typeof(context) = 'object')
) PARTITION BY RANGE (created_at);

COMMENT ON TABLE analytics.events IS 'What happened: one row an event, each exactly once; a partition a UTC day of created_at';
COMMENT ON COLUMN analytics.events.id IS 'The client''s message id if it is a UUID, else a UUIDv5 of it, else a fresh UUIDv7';
COMMENT ON COLUMN analytics.events.created_at IS 'When it happened, by the client''s clock wherever that is possible; see client_time';
COMMENT ON COLUMN analytics.events.received_at IS 'When the collector received it, by the collector''s clock';
COMMENT ON COLUMN analytics.events.name IS 'What happened, 1 to 100 characters';
COMMENT ON COLUMN analytics.events.user_id IS 'Who, as the sending application knows the person; NULL before they are known';
COMMENT ON COLUMN analytics.events.anonymous_id IS 'The browser or device that sent it, as its SDK calls it';
COMMENT ON COLUMN analytics.events.properties IS 'What the event tells about itself, a JSON object as it was sent';
COMMENT ON COLUMN analytics.events.context IS 'What the SDK tells about its surroundings, a JSON object';
COMMENT ON COLUMN analytics.events.page_host IS 'The host of url, in one form: lower case, ASCII, without port and www.';
COMMENT ON COLUMN analytics.events.page_path IS 'The path of url, in one form, so that a page is one value however it is written';
COMMENT ON COLUMN analytics.events.referrer_host IS 'The host of referrer, as page_host';
COMMENT ON COLUMN analytics.events.source IS 'What brought the visitor to the page: the campaign''s source, else what the address says, else the referrer, by a well-known name or its host; NULL: nothing did, or another page of the site';
COMMENT ON COLUMN analytics.events.ip_address IS 'The client''s address, without its last part unless the service is told otherwise';
COMMENT ON COLUMN analytics.events.device_type IS 'bot: no person saw it, as a program did it, or a browser ahead of time (prefetch, prerender); counted nowhere unless asked for';
COMMENT ON COLUMN analytics.events.country IS 'ISO 3166-1 alpha-2, upper case';
COMMENT ON COLUMN analytics.events.region IS 'ISO 3166-2 subdivision without the country, as the CDN or the MaxMind file has it';
COMMENT ON COLUMN analytics.events.batch_id IS 'The record that carried it: journal number << 40 | record number; NULL for a plain INSERT';
COMMENT ON COLUMN analytics.events.batch_position IS 'Its place in that record. Events of equal created_at were sent in the order of (received_at, batch_id, batch_position)';
COMMENT ON COLUMN analytics.events.authenticated IS 'True: its request carried a secret credential, an API key that may write or an admin key. False: the service itself wrote it, such as experiment_exposure, whoever asked. Else NULL, also with a public write key';
COMMENT ON COLUMN analytics.events.client_time IS 'Where created_at is not the client''s own time: the impossible one that it gave, or ''-infinity'' if it gave an id but no time. An event is known by (id, coalesce(client_time, created_at)), whenever it is delivered';

CREATE TABLE analytics.event_keys (
    client_time timestamptz NOT NULL,
    id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT event_keys_pkey PRIMARY KEY (client_time, id)
);

COMMENT ON TABLE analytics.event_keys IS 'The events that the key of analytics.events would not know again, as another delivery has another created_at; written by the flush that stores the event';
COMMENT ON COLUMN analytics.event_keys.client_time IS 'As in analytics.events: the time that the client gave, or ''-infinity''';
COMMENT ON COLUMN analytics.event_keys.id IS 'The id of the event';
COMMENT ON COLUMN analytics.event_keys.created_at IS 'When the event happened, by created_at; both go at the end of their retention';


-- The ledger of the ingestion path

CREATE TABLE analytics.journals (
    -- A journal number above 2^23 - 1 would not fit into a batch_id.
    number int GENERATED ALWAYS AS IDENTITY (MAXVALUE 8388607),
    identity uuid NOT NULL,
    owner uuid,
    stored_through bigint NOT NULL DEFAULT 0,
    events_stored bigint NOT NULL DEFAULT 0,
    events_duplicate bigint NOT NULL DEFAULT 0,
    events_rejected bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT journals_pkey PRIMARY KEY (number),
    CONSTRAINT journals_identity_key UNIQUE (identity),
    -- And a record number from 2^40 on would run into the journal's.
    CONSTRAINT journals_stored_through_range CHECK (stored_through >= 0 AND stored_through < 1099511627776)
);

COMMENT ON TABLE analytics.journals IS 'The collectors'' journals, and how far each is stored: what makes a replay after a crash exact';
COMMENT ON COLUMN analytics.journals.identity IS 'Names the folder on the collector''s disk, so that another database''s journal is not taken for this one';
COMMENT ON COLUMN analytics.journals.owner IS 'Token of the process that holds the position, random each time the folder is opened: of two copies of a folder only one is the owner';
COMMENT ON COLUMN analytics.journals.stored_through IS 'The ledger position: every record up to this number is stored. Moved by its owner, with a row in analytics.flushes';
COMMENT ON COLUMN analytics.journals.events_stored IS 'Events of this journal in analytics.events, since it was made';
COMMENT ON COLUMN analytics.journals.events_duplicate IS 'Events that were already there, since it was made';
COMMENT ON COLUMN analytics.journals.events_rejected IS 'Refused events in analytics.rejected_events, since it was made';

CREATE TABLE analytics.flushes (
    journal int NOT NULL,
    first_record bigint NOT NULL,
    last_record bigint NOT NULL,
    events_stored int NOT NULL DEFAULT 0,
    events_duplicate int NOT NULL DEFAULT 0,
    events_rejected int NOT NULL DEFAULT 0,
    days date[],
    owner uuid,
    flushed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rolled_up_at timestamptz,
    CONSTRAINT flushes_pkey PRIMARY KEY (journal, last_record),
    CONSTRAINT flushes_journal_fkey FOREIGN KEY (journal) REFERENCES analytics.journals (number),
    CONSTRAINT flushes_record_order CHECK (first_record <= last_record)
);

COMMENT ON TABLE analytics.flushes IS 'The ledger: one row a COPY transaction, written by that transaction';
COMMENT ON COLUMN analytics.flushes.first_record IS 'Number of the first record of the journal that this transaction stored';
COMMENT ON COLUMN analytics.flushes.last_record IS 'Number of the last one';
COMMENT ON COLUMN analytics.flushes.days IS 'The days, in UTC, whose partitions it wrote to; NULL: not told, it may be any';
COMMENT ON COLUMN analytics.flushes.owner IS 'Token of the process that wrote it, as in analytics.journals; NULL: not a collector''s';
COMMENT ON COLUMN analytics.flushes.flushed_at IS 'When the transaction wrote this row: before its COPY, a moment before its COMMIT';
COMMENT ON COLUMN analytics.flushes.rolled_up_at IS 'When its events went into analytics.event_aggregations; NULL: not yet';

CREATE TABLE analytics.rejected_events (
    id bigint GENERATED ALWAYS AS IDENTITY,
    received_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    reason text NOT NULL,
    detail text,
    route text,
    payload text,
    payload_truncated boolean NOT NULL DEFAULT false,
    ip_address inet,
    user_agent text,
    batch_id bigint,
    replayed_at timestamptz,
    CONSTRAINT rejected_events_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE analytics.rejected_events IS 'Events that were refused, why, and what was sent, to be read and replayed';
COMMENT ON COLUMN analytics.rejected_events.sent_at IS 'When the client sent it, by the client''s clock, which a replay corrects as the first try would have; NULL: not told';
COMMENT ON COLUMN analytics.rejected_events.reason IS 'From the service''s closed list of reasons, as in its answers and metrics';
COMMENT ON COLUMN analytics.rejected_events.detail IS 'The reason in a sentence for a person';
COMMENT ON COLUMN analytics.rejected_events.route IS 'Path of the request that brought it, which tells the dialect of the payload';
COMMENT ON COLUMN analytics.rejected_events.payload IS 'What was refused, as it was sent; NUL and invalid UTF-8 are replaced by U+FFFD';
COMMENT ON COLUMN analytics.rejected_events.payload_truncated IS 'The payload was too long to keep: this is only its beginning, and cannot be replayed';
COMMENT ON COLUMN analytics.rejected_events.batch_id IS 'The record that carried it: journal number << 40 | record number';
COMMENT ON COLUMN analytics.rejected_events.replayed_at IS 'When it was sent through the collector again; NULL: never';

-- In place of locks of a session, which behind a transaction pooler is nobody's. Whoever holds a lease renews it before
-- it expires, and what must not be done by two looks at it in its own transaction: FOR KEY SHARE, so that nobody takes it
-- over before that transaction has ended, while a renewal, which leaves the key alone, goes on. Whoever changes
-- time buckets locks the whole table in SHARE UPDATE EXCLUSIVE MODE, which keeps nobody from their leases; that too ends
-- with the transaction.
CREATE TABLE analytics.leases (
    name text NOT NULL CONSTRAINT leases_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    token uuid NOT NULL,
    holder text NOT NULL CONSTRAINT leases_holder_length CHECK (char_length(holder) <= 500),
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (name),
    -- Makes the token a part of a key.
    CONSTRAINT leases_token_key UNIQUE (token)
);

COMMENT ON TABLE analytics.leases IS 'Who works alone at something, and until when unless they renew it';
COMMENT ON COLUMN analytics.leases.name IS 'What is held, such as rollup';
COMMENT ON COLUMN analytics.leases.token IS 'The holder''s, random each time it is taken';
COMMENT ON COLUMN analytics.leases.holder IS 'Who it is, for people';
COMMENT ON COLUMN analytics.leases.expires_at IS 'From when on, by the clock of the database, anybody may take it';


-- Rollups and KPIs

CREATE TABLE analytics.event_aggregations (
    event_type analytics.event_type NOT NULL,
    event_name text NOT NULL
        CONSTRAINT event_aggregations_event_name_length CHECK (char_length(event_name) <= 100),
    time_bucket timestamptz NOT NULL,
    granularity analytics.granularity NOT NULL,
    dimensions jsonb NOT NULL DEFAULT '{}',
    event_count bigint NOT NULL DEFAULT 0,
    unique_users bigint NOT NULL DEFAULT 0,
    unique_sessions bigint NOT NULL DEFAULT 0,
    users_sketch bytea,
    sessions_sketch bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT event_aggregations_pkey PRIMARY KEY (granularity, time_bucket, event_type, event_name, dimensions),
    CONSTRAINT event_aggregations_dimensions_object CHECK (jsonb_typeof(dimensions) = 'object'),
    CONSTRAINT event_aggregations_counts_not_negative CHECK (least(event_count, unique_users, unique_sessions) >= 0)
)
-- A bucket is counted up many times: room on its page lets it stay there, without a new entry in any index.
WITH (fillfactor = 70);

-- Registers of a sketch hardly compress: to try it with each of the many updates is in vain.
ALTER TABLE analytics.event_aggregations
    ALTER COLUMN users_sketch SET STORAGE EXTERNAL, ALTER COLUMN sessions_sketch SET STORAGE EXTERNAL;

COMMENT ON TABLE analytics.event_aggregations IS 'Events counted by time bucket, name and dimensions';
COMMENT ON COLUMN analytics.event_aggregations.event_name IS 'The event''s name; empty, as no event''s is: those for which a time bucket had no room';
COMMENT ON COLUMN analytics.event_aggregations.time_bucket IS 'Where the bucket begins, in UTC; a week begins on Monday';
COMMENT ON COLUMN analytics.event_aggregations.dimensions IS 'What the bucket is split by, one dimension at a time, such as {"country": "DE"}; {} is the total. Events without a value are only in the total; {"country": {"other": true}} is the values for which it had no room. None of these has events of bots: all of a name''s are in {"device_type": "bot"}, and there alone';
COMMENT ON COLUMN analytics.event_aggregations.unique_users IS 'Estimated from users_sketch';
COMMENT ON COLUMN analytics.event_aggregations.unique_sessions IS 'Estimated from sessions_sketch';
COMMENT ON COLUMN analytics.event_aggregations.users_sketch IS 'Sketch of the distinct users: merges with that of another bucket, which a count does not';
COMMENT ON COLUMN analytics.event_aggregations.sessions_sketch IS 'Sketch of the distinct sessions';

CREATE TABLE analytics.stale_buckets (
    granularity analytics.granularity NOT NULL,
    time_bucket timestamptz NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stale_buckets_pkey PRIMARY KEY (granularity, time_bucket),
    CONSTRAINT stale_buckets_granularity_known CHECK (granularity <> 'minute')
);

COMMENT ON TABLE analytics.stale_buckets IS 'Time buckets that are to be made anew: hours, with their minutes, from events, after some were erased or turned out to be another person''s; days from hours; weeks and months from days';
COMMENT ON COLUMN analytics.stale_buckets.time_bucket IS 'Where the bucket begins, in UTC';
COMMENT ON COLUMN analytics.stale_buckets.noted_at IS 'When something in it changed first since it was made';
COMMENT ON COLUMN analytics.stale_buckets.due_at IS 'Not to be made before; later than noted_at where more of the kind may come, so that it is made once for all of it';

CREATE TABLE analytics.metrics (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    description text,
    type analytics.metric_type NOT NULL,
    value_numeric numeric(20, 8),
    value_json jsonb,
    dimensions jsonb NOT NULL DEFAULT '{}',
    tags text[] NOT NULL DEFAULT '{}',
    timestamp timestamptz NOT NULL DEFAULT now(),
    time_window_start timestamptz,
    time_window_end timestamptz,
    granularity analytics.granularity,
    source text,
    aggregation analytics.metric_aggregation,
    sample_count bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT metrics_pkey PRIMARY KEY (id),
    -- A gauge has no window and perhaps no granularity: NULLs are one value here.
    CONSTRAINT metrics_window_key UNIQUE NULLS NOT DISTINCT
        (name, dimensions, granularity, time_window_start, time_window_end),
    CONSTRAINT metrics_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT metrics_window_order CHECK (time_window_start <= time_window_end),
    CONSTRAINT metrics_window_whole CHECK (num_nonnulls(time_window_start, time_window_end) <> 1),
    CONSTRAINT metrics_dimensions_object CHECK (jsonb_typeof(dimensions) = 'object'),
    CONSTRAINT metrics_sample_count_not_negative CHECK (sample_count >= 0)
);

COMMENT ON TABLE analytics.metrics IS 'KPIs: one row a name, dimensions, granularity and time window';
COMMENT ON COLUMN analytics.metrics.value_numeric IS 'The value, if it is one number; its unit is in the description';
COMMENT ON COLUMN analytics.metrics.value_json IS 'The value, if it is not one number, such as a histogram''s buckets';
COMMENT ON COLUMN analytics.metrics.timestamp IS 'When the value was measured or computed';
COMMENT ON COLUMN analytics.metrics.time_window_start IS 'Start of the time the value is about, inclusive; NULL: it is about a moment';
COMMENT ON COLUMN analytics.metrics.time_window_end IS 'End of that time, exclusive';
COMMENT ON COLUMN analytics.metrics.source IS 'What computed it';
COMMENT ON COLUMN analytics.metrics.aggregation IS 'How the samples became one value';
COMMENT ON COLUMN analytics.metrics.sample_count IS 'How many events or values it was computed from';

-- Written in the transaction that changes what a KPI is computed from, so that no change is missed whatever dies when.
-- The token makes a note that was written again meanwhile another one: who has computed the window forgets only the note
-- that they read.
CREATE TABLE analytics.stale_metrics (
    source text NOT NULL CONSTRAINT stale_metrics_source_known CHECK (source IN ('aggregates', 'events')),
    granularity analytics.granularity NOT NULL,
    time_window_start timestamptz NOT NULL,
    token uuid NOT NULL DEFAULT gen_random_uuid(),
    CONSTRAINT stale_metrics_pkey PRIMARY KEY (source, granularity, time_window_start)
);

COMMENT ON TABLE analytics.stale_metrics IS 'Time windows whose KPIs are to be computed again once they are over, as what these are computed from has changed';
COMMENT ON COLUMN analytics.stale_metrics.source IS 'What has changed: aggregates (analytics.event_aggregations) or events; each KPI is computed from one of them, or from neither';
COMMENT ON COLUMN analytics.stale_metrics.token IS 'Another each time something changes';


-- People and visits

-- The rule, once for all. The person of an event is its user_id; without one, the user that its anonymous_id was linked
-- to first; else the anonymous_id. First is the earliest event with both ids, in the order (created_at, received_at,
-- batch_id, batch_position), whenever it comes in. A link is never passed on: two users of one browser are two people,
-- and what the browser did before anybody was known is the first one's.
--
-- The visit of an event is its session_id; without one, what its person did without a silence of more than 30 minutes,
-- looking only at events that have no session_id either. Events of type system neither begin nor prolong a visit,
-- and have none but that which they tell.
--
-- The rollup worker keeps these tables as it counts events, in the same transaction; they hold what the events say. For
-- statistics only: anybody can send any ids.
CREATE TABLE analytics.identities (
    anonymous_id text NOT NULL CONSTRAINT identities_anonymous_id_length CHECK (char_length(anonymous_id) <= 255),
    user_id text NOT NULL CONSTRAINT identities_user_id_length CHECK (char_length(user_id) <= 255),
    linked_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    batch_id bigint NOT NULL,
    batch_position int NOT NULL,
    verified boolean NOT NULL DEFAULT false,
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT identities_pkey PRIMARY KEY (anonymous_id)
);

COMMENT ON TABLE analytics.identities IS 'Which user a browser or device belongs to: the first that it was seen with';
COMMENT ON COLUMN analytics.identities.linked_at IS 'created_at of the earliest event that has both ids; received_at, batch_id and batch_position are that event''s, too';
COMMENT ON COLUMN analytics.identities.verified IS 'Whether that event, or a later one with the same two ids, was authenticated';
COMMENT ON COLUMN analytics.identities.last_seen_at IS 'When an event with this anonymous_id was last counted; up to a week behind';

CREATE TABLE analytics.people (
    user_id text NOT NULL CONSTRAINT people_user_id_length CHECK (char_length(user_id) <= 255),
    counted_as text NOT NULL CONSTRAINT people_counted_as_length CHECK (char_length(counted_as) <= 255),
    links int NOT NULL DEFAULT 0 CONSTRAINT people_links_not_negative CHECK (links >= 0),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT people_pkey PRIMARY KEY (user_id),
    CONSTRAINT people_counted_as_key UNIQUE (counted_as)
);

-- A sketch cannot forget. Who is counted as their first anonymous_id from the start was never counted as two.
COMMENT ON TABLE analytics.people IS 'Users that events name, and what each is called in the sketches of event_aggregations';
COMMENT ON COLUMN analytics.people.counted_as IS 'The anonymous_id that the user was linked to when first seen, if there was one, else the user_id; it never changes';
COMMENT ON COLUMN analytics.people.links IS 'How many rows of analytics.identities are theirs';
COMMENT ON COLUMN analytics.people.last_seen_at IS 'When an event of theirs was last counted; up to a week behind';

CREATE TABLE analytics.visits (
    person text NOT NULL CONSTRAINT visits_person_length CHECK (char_length(person) <= 255),
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    session_id text NOT NULL,
    CONSTRAINT visits_pkey PRIMARY KEY (person, started_at),
    CONSTRAINT visits_time_order CHECK (started_at <= ended_at)
)
-- A visit that goes on is written again and again: room on its page lets it stay there.
WITH (fillfactor = 80);

COMMENT ON TABLE analytics.visits IS 'Visits of people whose client tells no session_id: without a silence of more than 30 minutes';
COMMENT ON COLUMN analytics.visits.person IS 'As in analytics.activity: a user_id, or the anonymous_id of who is not known';
COMMENT ON COLUMN analytics.visits.started_at IS 'created_at of its first event';
COMMENT ON COLUMN analytics.visits.ended_at IS 'created_at of its last event';
COMMENT ON COLUMN analytics.visits.session_id IS 'What it is counted as in place of a session_id';

CREATE TABLE analytics.stale_identities (
    anonymous_id text NOT NULL,
    people text[] NOT NULL DEFAULT '{}',
    noted_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stale_identities_pkey PRIMARY KEY (anonymous_id)
);

COMMENT ON TABLE analytics.stale_identities IS 'Browsers some of whose events may have been counted as somebody else''s than they are by now: their hours are looked for, and noted in stale_buckets';
COMMENT ON COLUMN analytics.stale_identities.people IS 'Whose visits are to be told apart again, as events of the browser went from one person to another';

CREATE VIEW analytics.activity WITH (security_invoker = true) AS
SELECT
    event.*,
    coalesce(event.user_id, identity.user_id, event.anonymous_id) AS person,
    coalesce(event.session_id, CASE WHEN event.type <> 'system' THEN (
        SELECT CASE WHEN visit.ended_at >= event.created_at THEN visit.session_id END
        FROM analytics.visits AS visit
        WHERE visit.person = coalesce(event.user_id, identity.user_id, event.anonymous_id)
            AND visit.started_at <= event.created_at
        ORDER BY visit.started_at DESC LIMIT 1
    ) END) AS visit
FROM analytics.events AS event
LEFT JOIN analytics.identities AS identity
    ON identity.anonymous_id = event.anonymous_id AND event.user_id IS NULL;

COMMENT ON VIEW analytics.activity IS
    'Every event with its person and its visit: what statistics count people and sessions by. Of events that are not rolled up yet, a second or so, a new link or visit is not known';
COMMENT ON COLUMN analytics.activity.person IS 'Who it was: the user_id, else the user that the anonymous_id was linked to first, else the anonymous_id';
COMMENT ON COLUMN analytics.activity.visit IS 'The session_id, else the person''s visit: their events without a silence of more than 30 minutes';


-- Partitions

-- Never stops readers or writers of analytics.events. CREATE TABLE ... PARTITION OF would: it takes an ACCESS
-- EXCLUSIVE lock on the parent, and everyone who comes after it waits behind the longest query. ATTACH PARTITION
-- takes SHARE UPDATE EXCLUSIVE, which conflicts with neither SELECT nor INSERT.
--
-- Two sessions that race take turns by that same lock, not by an advisory one: a session that has waited for an
-- advisory lock does not hear of the tables made meanwhile, and would make the day once more and fail. For the same
-- reason the system caches are asked whether the day is there, not pg_inherits: under REPEATABLE READ a query would
-- not see it.
CREATE FUNCTION analytics.ensure_events_partition(day date) RETURNS boolean
LANGUAGE plpgsql STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partition_name text := 'events_' || to_char(day, 'YYYYMMDD');
    qualified_name text := 'analytics.' || partition_name;
    -- With the offset written out, so that the session's TimeZone has no say.
    starts_at text := to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00';
    ends_at text := to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00';
    events constant regclass := 'analytics.events'::regclass;
BEGIN
    IF pg_partition_root(to_regclass(qualified_name)) = events THEN
        RETURN false;
    END IF;
    -- Held until the transaction ends. ONLY, because the partitions need not be locked.
    LOCK TABLE ONLY analytics.events IN SHARE UPDATE EXCLUSIVE MODE;
    IF pg_partition_root(to_regclass(qualified_name)) = events THEN
        RETURN false;
    END IF;

    -- A table of that name that is not attached is a day that was detached. Its rows come back with it, because a
    -- second table for the day would store their retries once more. ATTACH refuses it if it is anything else.
    IF to_regclass(qualified_name) IS NULL THEN
        EXECUTE format('CREATE TABLE analytics.%I (LIKE analytics.events INCLUDING ALL EXCLUDING COMMENTS)', partition_name);
    END IF;
    -- LIKE does not copy row security. The policies of the parent do not hold for who reads a partition directly, and
    -- without one of its own nobody may but its owner and who is above policies: that is meant.
    IF (SELECT relrowsecurity FROM pg_class WHERE oid = events) THEN
        EXECUTE format('ALTER TABLE analytics.%I ENABLE ROW LEVEL SECURITY', partition_name);
    END IF;
    EXECUTE format('ALTER TABLE analytics.%I DROP CONSTRAINT IF EXISTS events_of_the_day', partition_name);
    -- Says what the bounds say, so that ATTACH need not scan; only a detached day that comes back is scanned, here.
    EXECUTE format(
        'ALTER TABLE analytics.%I ADD CONSTRAINT events_of_the_day CHECK (created_at >= %L AND created_at < %L)',
        partition_name, starts_at, ends_at
    );
    EXECUTE format(
        'ALTER TABLE analytics.events ATTACH PARTITION analytics.%I FOR VALUES FROM (%L) TO (%L)',
        partition_name, starts_at, ends_at
    );
    EXECUTE format('ALTER TABLE analytics.%I DROP CONSTRAINT events_of_the_day', partition_name);
    RETURN true;
END
$$;

COMMENT ON FUNCTION analytics.ensure_events_partition(date) IS
    'Make the partition of analytics.events for this UTC day unless it is there; true if it was made. Stops nobody.';


-- Experiments

CREATE TYPE experiments.status AS ENUM ('draft', 'running', 'paused', 'completed', 'cancelled');

-- What the checks of experiments.experiments ask. Each answers true or false whatever JSON it is given: a CHECK that
-- yields NULL lets the row pass.

CREATE FUNCTION experiments.is_variant(variant jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        jsonb_typeof(variant) = 'object'
        AND jsonb_typeof(variant -> 'id') = 'string'
        AND char_length(variant ->> 'id') BETWEEN 1 AND 100
        -- Compared as JSON, in which numbers compare as numbers: a cast would fail on what is none.
        AND (NOT variant ? 'weight' OR (jsonb_typeof(variant -> 'weight') = 'number'
            AND variant -> 'weight' BETWEEN '0' AND '1000000')),
        false
    )
$$;
COMMENT ON FUNCTION experiments.is_variant(jsonb) IS
    'Whether this is an object with an id of 1 to 100 characters and, if there is a weight, a number from 0 to 1000000';

CREATE FUNCTION experiments.are_variants(variants jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE jsonb_typeof(variants)
        WHEN 'array' THEN NOT EXISTS (
            SELECT FROM jsonb_array_elements(variants) AS variant WHERE NOT experiments.is_variant(variant)
        )
        ELSE false
    END
$$;
COMMENT ON FUNCTION experiments.are_variants(jsonb) IS 'Whether this is an array of variants, perhaps an empty one';

CREATE FUNCTION experiments.variant_ids(control_variant jsonb, test_variants jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_agg(variant ->> 'id' ORDER BY place)
    FROM jsonb_array_elements('[]' || control_variant || test_variants) WITH ORDINALITY AS variants (variant, place)
$$;
COMMENT ON FUNCTION experiments.variant_ids(jsonb, jsonb) IS 'The ids of an experiment''s variants, the control''s first';

CREATE FUNCTION experiments.are_distinct(ids text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(id) = count(DISTINCT id) FROM unnest(ids) AS id
$$;
COMMENT ON FUNCTION experiments.are_distinct(text[]) IS 'Whether no id is there twice';

CREATE FUNCTION experiments.is_one_or_list(value jsonb, types text[], pattern text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    -- To an array, || appends one value and adds the elements of another array.
    SELECT coalesce(bool_and(jsonb_typeof(one) = ANY (types) AND one #>> '{}' ~ pattern), false)
    FROM jsonb_array_elements('[]' || value) AS one
$$;
COMMENT ON FUNCTION experiments.is_one_or_list(jsonb, text[], text) IS
    'Whether this is one value of these JSON types whose text matches the pattern, or an array of at least one such';

CREATE FUNCTION experiments.are_targeting_rules(rules jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE jsonb_typeof(rules) WHEN 'object' THEN coalesce(
        rules - '{country,device,url,attributes,percentage}'::text[] = '{}'
        AND (NOT rules ? 'country' OR experiments.is_one_or_list(rules -> 'country', '{string}', '^[A-Z]{2}$'))
        AND (NOT rules ? 'device'
            OR experiments.is_one_or_list(rules -> 'device', '{string}', '^(desktop|mobile|tablet|bot|other)$'))
        AND (NOT rules ? 'url' OR experiments.is_one_or_list(rules -> 'url', '{string}', '^\S+$'))
        AND (NOT rules ? 'attributes' OR (jsonb_typeof(rules -> 'attributes') = 'object' AND NOT EXISTS (
            SELECT FROM jsonb_each(
                CASE jsonb_typeof(rules -> 'attributes') WHEN 'object' THEN rules -> 'attributes' END
            ) AS attribute
            WHERE NOT experiments.is_one_or_list(attribute.value, '{string,number,boolean}', '')
        )))
        AND (NOT rules ? 'percentage' OR (jsonb_typeof(rules -> 'percentage') = 'number'
            AND rules -> 'percentage' BETWEEN '0' AND '100')),
        false
    ) ELSE false END
$$;
COMMENT ON FUNCTION experiments.are_targeting_rules(jsonb) IS
    'Whether this is in the grammar that is told at experiments.experiments.targeting_rules';

CREATE TABLE experiments.experiments (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL CONSTRAINT experiments_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    description text CONSTRAINT experiments_description_length CHECK (char_length(description) <= 5000),
    hypothesis text CONSTRAINT experiments_hypothesis_length CHECK (char_length(hypothesis) <= 5000),
    is_active boolean NOT NULL DEFAULT true,
    -- Without a scale, so that 100.004 is refused instead of rounded.
    traffic_percentage numeric NOT NULL DEFAULT 100
        CONSTRAINT experiments_traffic_percentage_range CHECK (traffic_percentage BETWEEN 0 AND 100),
    control_variant jsonb NOT NULL DEFAULT '{"id": "control"}'
        CONSTRAINT experiments_control_variant_shape CHECK (experiments.is_variant(control_variant)),
    test_variants jsonb NOT NULL DEFAULT '[]'
        CONSTRAINT experiments_test_variants_shape CHECK (experiments.are_variants(test_variants)),
    targeting_rules jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT experiments_targeting_rules_grammar CHECK (experiments.are_targeting_rules(targeting_rules)),
    start_date timestamptz,
    end_date timestamptz,
    status experiments.status NOT NULL DEFAULT 'draft',
    results jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT experiments_results_object CHECK (jsonb_typeof(results) = 'object'),
    winner_variant_id text,
    created_by uuid,
    archived_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT experiments_pkey PRIMARY KEY (id),
    CONSTRAINT experiments_name_key UNIQUE (name),
    CONSTRAINT experiments_dates_order CHECK (start_date < end_date),
    CONSTRAINT experiments_archived_when_over CHECK (archived_at IS NULL OR status IN ('completed', 'cancelled')),
    CONSTRAINT experiments_variant_ids_distinct CHECK (
        experiments.are_distinct(experiments.variant_ids(control_variant, test_variants))
    ),
    -- Else nobody could be given anything.
    CONSTRAINT experiments_weights_not_all_zero CHECK (
        jsonb_path_exists('[]' || control_variant || test_variants, '$[*] ? (!exists(@.weight) || @.weight > 0)')
    ),
    CONSTRAINT experiments_winner_is_a_variant CHECK (
        winner_variant_id = ANY (experiments.variant_ids(control_variant, test_variants))
    )
);

COMMENT ON TABLE experiments.experiments IS 'A/B tests and gradual rollouts';
COMMENT ON COLUMN experiments.experiments.name IS 'What applications know it by, 1 to 100 characters';
COMMENT ON COLUMN experiments.experiments.is_active IS 'The switch to stop it at once: false assigns nobody, whatever the status';
COMMENT ON COLUMN experiments.experiments.traffic_percentage IS 'How many of 100 units that match the targeting rules take part; may have decimals';
COMMENT ON COLUMN experiments.experiments.control_variant IS
    'What it was before: {"id": text, "weight": number, "payload": anything}. Weight (1 if absent) is relative to the '
    'sum of all weights; payload is for the application';
COMMENT ON COLUMN experiments.experiments.test_variants IS 'An array of what is tried instead, each like control_variant with an id of its own';
COMMENT ON COLUMN experiments.experiments.targeting_rules IS
    'Who may take part: an object of rules that must all hold; {} is everybody. A rule about what is not known of a '
    'unit does not hold. '
    '"country": a code of two capitals, or an array of them; one must be the unit''s. '
    '"device": likewise, of desktop, mobile, tablet, bot, other. '
    '"url": likewise a pattern for the whole URL of the page: * stands for any characters or none, everything else '
    'for itself. '
    '"attributes": an object; each name in it must be among the unit''s attributes, with that value or one of that '
    'array (text, number or boolean). '
    '"percentage": how many of 100 units, 0 to 100, chosen by a hash apart from that of traffic_percentage';
COMMENT ON COLUMN experiments.experiments.start_date IS 'Nobody is assigned before; NULL: no such limit';
COMMENT ON COLUMN experiments.experiments.end_date IS 'Nobody is assigned from then on; NULL: no such limit';
COMMENT ON COLUMN experiments.experiments.results IS 'What was found, as the analyst writes it down';
COMMENT ON COLUMN experiments.experiments.archived_at IS 'When it was put away: in no list and no flag any more; NULL: it was not';
COMMENT ON COLUMN experiments.experiments.created_by IS 'auth.uid() of who made it; NULL: no person did';

CREATE TABLE experiments.assignments (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    experiment_id uuid NOT NULL,
    user_id uuid,
    session_id text CONSTRAINT assignments_session_id_length CHECK (char_length(session_id) BETWEEN 1 AND 255),
    linked_sessions text[] NOT NULL DEFAULT '{}'
        CONSTRAINT assignments_linked_sessions_count CHECK (cardinality(linked_sessions) <= 100),
    variant_id text NOT NULL
        CONSTRAINT assignments_variant_id_length CHECK (char_length(variant_id) BETWEEN 1 AND 100),
    assigned_at timestamptz NOT NULL DEFAULT now(),
    first_exposure_at timestamptz,
    last_exposure_at timestamptz,
    exposure_count int NOT NULL DEFAULT 0
        CONSTRAINT assignments_exposure_count_not_negative CHECK (exposure_count >= 0),
    user_agent text CONSTRAINT assignments_user_agent_length CHECK (char_length(user_agent) <= 1024),
    ip_address inet,
    country char(2) CONSTRAINT assignments_country_format CHECK (country ~ '^[A-Z]{2}$'),
    CONSTRAINT assignments_pkey PRIMARY KEY (id),
    -- Who was given which variant means nothing without the experiment.
    CONSTRAINT assignments_experiment_id_fkey
        FOREIGN KEY (experiment_id) REFERENCES experiments.experiments (id) ON DELETE CASCADE,
    CONSTRAINT assignments_unit_given CHECK (num_nonnulls(user_id, session_id) >= 1),
    CONSTRAINT assignments_exposure_order CHECK (first_exposure_at <= last_exposure_at)
);

-- The unit is the user where there is one, else the session. UNIQUE NULLS NOT DISTINCT over all three columns is too
-- weak: a user would have a variant in every session. And two users of one browser are two units, so that a session
-- counts only without a user.
CREATE UNIQUE INDEX assignments_user_key ON experiments.assignments (experiment_id, user_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX assignments_session_key ON experiments.assignments (experiment_id, session_id)
    WHERE user_id IS NULL;

COMMENT ON TABLE experiments.assignments IS 'Who was given which variant: one row an experiment and unit';
COMMENT ON COLUMN experiments.assignments.user_id IS 'The unit, if given; else the session is';
COMMENT ON COLUMN experiments.assignments.session_id IS 'As in analytics.events; beside a user only where they were first met';
COMMENT ON COLUMN experiments.assignments.linked_sessions IS 'Further sessions of the user, 100 at most: exposures of these sessions are the user''s in results';
COMMENT ON COLUMN experiments.assignments.variant_id IS 'The id of one of the experiment''s variants at that time';
COMMENT ON COLUMN experiments.assignments.exposure_count IS 'How often they saw the variant, which an assignment alone does not mean';
COMMENT ON COLUMN experiments.assignments.country IS 'ISO 3166-1 alpha-2, upper case, when assigned';


-- WhatsApp

CREATE TYPE whatsapp.verification_status AS ENUM ('not_verified', 'pending', 'verified', 'rejected', 'expired');
CREATE TYPE whatsapp.template_category AS ENUM ('marketing', 'utility', 'authentication');
CREATE TYPE whatsapp.template_status AS ENUM ('pending', 'approved', 'rejected', 'disabled');
CREATE TYPE whatsapp.header_type AS ENUM ('text', 'image', 'video', 'document', 'location');

CREATE TABLE whatsapp.accounts (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    lead_id uuid NOT NULL,
    session_id uuid,
    business_account_id text NOT NULL
        CONSTRAINT accounts_business_account_id_length CHECK (char_length(business_account_id) BETWEEN 1 AND 64),
    phone_number_id text NOT NULL
        CONSTRAINT accounts_phone_number_id_length CHECK (char_length(phone_number_id) BETWEEN 1 AND 64),
    phone_number text NOT NULL CONSTRAINT accounts_phone_number_format CHECK (phone_number ~ '^(?=\+?[0-9]{7,15}$)(\+|0)?[1-9]'),
    display_name text CONSTRAINT accounts_display_name_length CHECK (char_length(display_name) <= 200),
    access_token_encrypted bytea
        CONSTRAINT accounts_access_token_length CHECK (octet_length(access_token_encrypted) <= 8192),
    webhook_verify_token_encrypted bytea
        CONSTRAINT accounts_webhook_verify_token_length CHECK (octet_length(webhook_verify_token_encrypted) <= 8192),
    is_verified boolean NOT NULL DEFAULT false,
    is_active boolean NOT NULL DEFAULT true,
    verification_status whatsapp.verification_status NOT NULL DEFAULT 'not_verified',
    messages_sent_today int NOT NULL DEFAULT 0
        CONSTRAINT accounts_messages_sent_today_not_negative CHECK (messages_sent_today >= 0),
    messages_limit_daily int NOT NULL DEFAULT 1000
        CONSTRAINT accounts_messages_limit_daily_not_negative CHECK (messages_limit_daily >= 0),
    last_message_sent_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_session_id_key UNIQUE (session_id),
    CONSTRAINT accounts_session_id_fkey
        FOREIGN KEY (session_id) REFERENCES onboarding.sessions (id) ON DELETE SET NULL,
    -- Nobody could reach it without its lead, and it holds their number and their tokens.
    CONSTRAINT accounts_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES marketing.leads (id) ON DELETE CASCADE
);

-- A number has one account once Meta has verified whose it is. Before that anybody may claim it: who enters another's
-- ids neither gets at their account nor keeps them from making it.
CREATE UNIQUE INDEX accounts_business_account_id_phone_number_id_key
    ON whatsapp.accounts (business_account_id, phone_number_id) WHERE is_verified;

COMMENT ON TABLE whatsapp.accounts IS 'Customers'' WhatsApp Business numbers; one account a number once it is verified';
COMMENT ON COLUMN whatsapp.accounts.session_id IS 'The onboarding session that made it, which alone may change its credentials; NULL: it was not made by one, or that is gone';
COMMENT ON COLUMN whatsapp.accounts.business_account_id IS 'As Meta knows the account';
COMMENT ON COLUMN whatsapp.accounts.phone_number_id IS 'As Meta knows the number';
COMMENT ON COLUMN whatsapp.accounts.phone_number IS '7 to 15 digits, with + before a country code';
COMMENT ON COLUMN whatsapp.accounts.access_token_encrypted IS 'Ciphertext under a key of the application''s own; nothing in this database can read it';
COMMENT ON COLUMN whatsapp.accounts.webhook_verify_token_encrypted IS 'Likewise';
COMMENT ON COLUMN whatsapp.accounts.is_active IS 'Whether the application may send with it';
COMMENT ON COLUMN whatsapp.accounts.verification_status IS 'How far Meta''s verification of the number is';
COMMENT ON COLUMN whatsapp.accounts.messages_sent_today IS 'Kept by the application, on the day of last_message_sent_at in UTC';
COMMENT ON COLUMN whatsapp.accounts.messages_limit_daily IS 'What Meta lets it send within a day; may have been lowered below what was sent';

CREATE TABLE whatsapp.templates (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    account_id uuid NOT NULL,
    -- 512 characters at most, which a regular expression's {n} cannot say.
    template_name text NOT NULL
        CONSTRAINT templates_template_name_format CHECK (template_name ~ '^[a-z0-9_]+$')
        CONSTRAINT templates_template_name_length CHECK (char_length(template_name) <= 512),
    category whatsapp.template_category NOT NULL,
    language text NOT NULL DEFAULT 'en'
        CONSTRAINT templates_language_format CHECK (language ~ '^[a-z]{2,3}(_[A-Z]{2,3})?$'),
    status whatsapp.template_status NOT NULL DEFAULT 'pending',
    header_type whatsapp.header_type,
    header_content text CONSTRAINT templates_header_content_length CHECK (char_length(header_content) <= 4096),
    body_text text NOT NULL CONSTRAINT templates_body_text_length CHECK (char_length(body_text) BETWEEN 1 AND 1024),
    footer_text text CONSTRAINT templates_footer_text_length CHECK (char_length(footer_text) <= 60),
    buttons jsonb NOT NULL DEFAULT '[]'
        CONSTRAINT templates_buttons_array CHECK (jsonb_typeof(buttons) = 'array')
        CONSTRAINT templates_buttons_size CHECK (octet_length(buttons::text) <= 16384),
    whatsapp_template_id text
        CONSTRAINT templates_whatsapp_template_id_length CHECK (char_length(whatsapp_template_id) BETWEEN 1 AND 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT templates_pkey PRIMARY KEY (id),
    CONSTRAINT templates_account_id_template_name_language_key UNIQUE (account_id, template_name, language),
    CONSTRAINT templates_account_id_fkey
        FOREIGN KEY (account_id) REFERENCES whatsapp.accounts (id) ON DELETE CASCADE
);

COMMENT ON TABLE whatsapp.templates IS 'Message templates of an account; what Meta''s rules say of names and lengths holds here too';
COMMENT ON COLUMN whatsapp.templates.language IS 'As Meta writes it, such as en or pt_BR';
COMMENT ON COLUMN whatsapp.templates.status IS 'Meta''s decision on it';
COMMENT ON COLUMN whatsapp.templates.header_type IS 'NULL: no header';
COMMENT ON COLUMN whatsapp.templates.header_content IS 'The header''s text, or the URL of its file';
COMMENT ON COLUMN whatsapp.templates.body_text IS 'With {{1}}, {{2}} where a message fills in its own, 1 to 1,024 characters';
COMMENT ON COLUMN whatsapp.templates.buttons IS 'An array of button objects as Meta''s API takes them';
COMMENT ON COLUMN whatsapp.templates.whatsapp_template_id IS 'As Meta knows it; NULL until it was submitted';


-- Audit

-- In no relation to any row: it outlives what it tells of.
CREATE TABLE public.audit_logs (
    id bigint GENERATED ALWAYS AS IDENTITY,
    table_name text NOT NULL,
    operation text NOT NULL CONSTRAINT audit_logs_operation_known CHECK (
        operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'ERASE', 'EXPORT')
    ),
    row_id text,
    old_values jsonb CONSTRAINT audit_logs_old_values_object CHECK (jsonb_typeof(old_values) = 'object'),
    new_values jsonb CONSTRAINT audit_logs_new_values_object CHECK (jsonb_typeof(new_values) = 'object'),
    changed_columns text[],
    actor_role text NOT NULL DEFAULT current_user,
    user_id uuid,
    user_email text,
    ip_address inet,
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT audit_logs_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE public.audit_logs IS 'Who changed which row and how, written by triggers; without secrets; nobody may change it';
COMMENT ON COLUMN public.audit_logs.table_name IS 'With its schema, such as marketing.leads';
COMMENT ON COLUMN public.audit_logs.operation IS 'INSERT, UPDATE, DELETE, TRUNCATE; ERASE or EXPORT of everything held on a person';
COMMENT ON COLUMN public.audit_logs.row_id IS 'The primary key as text; NULL where it is not about one row';
COMMENT ON COLUMN public.audit_logs.old_values IS 'The row before, without secrets; NULL: there was none';
COMMENT ON COLUMN public.audit_logs.new_values IS 'The row after; NULL: there is none';
COMMENT ON COLUMN public.audit_logs.changed_columns IS 'What an UPDATE changed; NULL for anything else';
COMMENT ON COLUMN public.audit_logs.actor_role IS 'The database role that did it, such as anon or service_role';
COMMENT ON COLUMN public.audit_logs.user_id IS 'auth.uid() of who did it; NULL: not signed in';
