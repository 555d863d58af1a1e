-- The schema `analytics`: the stream of events, the ledger of the ingestion path, rollups and KPIs.
-- Runs unchanged on PostgreSQL 15 to 18, as any role that may create a schema here; needs no extension.

CREATE SCHEMA IF NOT EXISTS analytics;
COMMENT ON SCHEMA analytics IS 'Product analytics: events, their ledger, rollups and KPIs';

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
    CONSTRAINT events_pkey PRIMARY KEY (created_at, id),
    CONSTRAINT events_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT events_properties_object CHECK (jsonb_typeof(properties) = 'object'),
    CONSTRAINT events_context_object CHECK (jsonb_typeof(context) = 'object')
) PARTITION BY RANGE (created_at);

COMMENT ON TABLE analytics.events IS 'What happened: one row an event, each exactly once; a partition a UTC day of created_at';
COMMENT ON COLUMN analytics.events.id IS 'The client''s message id if it is a UUID, else a UUIDv5 of it, else a fresh UUIDv7';
COMMENT ON COLUMN analytics.events.created_at IS 'When it happened, by the client''s clock; shifted only if that clock was wrong';
COMMENT ON COLUMN analytics.events.received_at IS 'When the collector received it, by the collector''s clock';
COMMENT ON COLUMN analytics.events.name IS 'What happened, 1 to 100 characters';
COMMENT ON COLUMN analytics.events.user_id IS 'Who, as the sending application knows the person; NULL before they are known';
COMMENT ON COLUMN analytics.events.anonymous_id IS 'The browser or device that sent it, as its SDK calls it';
COMMENT ON COLUMN analytics.events.properties IS 'What the event tells about itself, a JSON object as it was sent';
COMMENT ON COLUMN analytics.events.context IS 'What the SDK tells about its surroundings, a JSON object';
COMMENT ON COLUMN analytics.events.ip_address IS 'The client''s address, without its last part unless the service is told otherwise';
COMMENT ON COLUMN analytics.events.country IS 'ISO 3166-1 alpha-2, upper case';
COMMENT ON COLUMN analytics.events.region IS 'ISO 3166-2 subdivision without the country, as the CDN or the MaxMind file has it';
COMMENT ON COLUMN analytics.events.batch_id IS 'The record that carried it: journal number << 40 | record number; NULL for a plain INSERT';


-- The ledger of the ingestion path

CREATE TABLE analytics.journals (
    -- A journal number above 2^23 - 1 would not fit into a batch_id.
    number int GENERATED ALWAYS AS IDENTITY (MAXVALUE 8388607),
    identity uuid NOT NULL,
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
COMMENT ON COLUMN analytics.journals.stored_through IS 'The ledger position: every record up to this number is stored';
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
    flushed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rolled_up_at timestamptz,
    CONSTRAINT flushes_pkey PRIMARY KEY (journal, last_record),
    CONSTRAINT flushes_journal_fkey FOREIGN KEY (journal) REFERENCES analytics.journals (number),
    CONSTRAINT flushes_record_order CHECK (first_record <= last_record)
);

COMMENT ON TABLE analytics.flushes IS 'The ledger: one row a COPY transaction, written by that transaction';
COMMENT ON COLUMN analytics.flushes.first_record IS 'Number of the first record of the journal that this transaction stored';
COMMENT ON COLUMN analytics.flushes.last_record IS 'Number of the last one';
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


-- Rollups and KPIs

CREATE TABLE analytics.event_aggregations (
    event_type analytics.event_type NOT NULL,
    event_name text NOT NULL,
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
    CONSTRAINT event_aggregations_dimensions_object CHECK (jsonb_typeof(dimensions) = 'object')
);

COMMENT ON TABLE analytics.event_aggregations IS 'Events counted by time bucket, name and dimensions';
COMMENT ON COLUMN analytics.event_aggregations.time_bucket IS 'Where the bucket begins, in UTC; a week begins on Monday';
COMMENT ON COLUMN analytics.event_aggregations.dimensions IS 'What the bucket is split by, such as {"country": "DE"}; {} is the total';
COMMENT ON COLUMN analytics.event_aggregations.unique_users IS 'Estimated from users_sketch';
COMMENT ON COLUMN analytics.event_aggregations.unique_sessions IS 'Estimated from sessions_sketch';
COMMENT ON COLUMN analytics.event_aggregations.users_sketch IS 'Sketch of the distinct users: merges with that of another bucket, which a count does not';
COMMENT ON COLUMN analytics.event_aggregations.sessions_sketch IS 'Sketch of the distinct sessions';

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
    CONSTRAINT metrics_window_order CHECK (time_window_start <= time_window_end),
    CONSTRAINT metrics_dimensions_object CHECK (jsonb_typeof(dimensions) = 'object')
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
    events constant regclass := 'analytics.events';
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
