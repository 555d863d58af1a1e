-- The dashboard: who is signed in, views shared by a link, funnels that people have saved, and totals over all events. See
-- docs/decisions/0010-dashboard.md.

-- While a statement waits for a table's lock, requests for the table queue up behind it. So it fails soon, and
-- `ingest migrate` tries again.
SET LOCAL lock_timeout = '2s';


-- Signing in

CREATE TABLE ingest.secrets (
    purpose text NOT NULL CONSTRAINT secrets_purpose_length CHECK (char_length(purpose) BETWEEN 1 AND 100),
    secret bytea NOT NULL CONSTRAINT secrets_secret_length CHECK (octet_length(secret) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT secrets_pkey PRIMARY KEY (purpose)
);

COMMENT ON TABLE ingest.secrets IS 'What the service signs with; it makes a row anew if it is missing';
COMMENT ON COLUMN ingest.secrets.purpose IS 'dashboard: its cookies and sign-in links; deleting the row signs everybody out';
COMMENT ON COLUMN ingest.secrets.secret IS '32 random bytes';

CREATE TABLE ingest.spent_tokens (
    id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT spent_tokens_pkey PRIMARY KEY (id)
);
CREATE INDEX spent_tokens_expires_at_idx ON ingest.spent_tokens (expires_at);

COMMENT ON TABLE ingest.spent_tokens IS 'Sessions of the dashboard that were signed out, and sign-in links that were used';
COMMENT ON COLUMN ingest.spent_tokens.id IS 'The id within the signed cookie or link';
COMMENT ON COLUMN ingest.spent_tokens.expires_at IS 'When it would have ended by itself; deleted some time later';


-- Views shared by a link

CREATE TABLE ingest.shared_views (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL CONSTRAINT shared_views_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    page text NOT NULL CONSTRAINT shared_views_page_length CHECK (char_length(page) BETWEEN 1 AND 100),
    query text NOT NULL CONSTRAINT shared_views_query_length CHECK (char_length(query) <= 4000),
    created_by text NOT NULL CONSTRAINT shared_views_created_by_length CHECK (char_length(created_by) <= 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT shared_views_pkey PRIMARY KEY (id)
);

COMMENT ON TABLE ingest.shared_views IS 'Views of the dashboard that anybody with their link may look at; a link is signed with the secret of the dashboard';
COMMENT ON COLUMN ingest.shared_views.page IS 'Path of the page, such as /';
COMMENT ON COLUMN ingest.shared_views.query IS 'Its query: range, filters and time zone, which the link shows and nothing else';
COMMENT ON COLUMN ingest.shared_views.created_by IS 'The id of the API key, or the person of a token';
COMMENT ON COLUMN ingest.shared_views.expires_at IS 'NULL: never';


-- Funnels

CREATE TABLE analytics.saved_funnels (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL CONSTRAINT saved_funnels_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    steps text[] NOT NULL CONSTRAINT saved_funnels_steps_count CHECK (cardinality(steps) BETWEEN 2 AND 10),
    within_seconds int NOT NULL DEFAULT 604800 CONSTRAINT saved_funnels_within_range CHECK (within_seconds BETWEEN 1 AND 2678400),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT saved_funnels_pkey PRIMARY KEY (id),
    CONSTRAINT saved_funnels_name_key UNIQUE (name)
);

COMMENT ON TABLE analytics.saved_funnels IS 'Funnels that were built and named in the dashboard';
COMMENT ON COLUMN analytics.saved_funnels.steps IS 'As /v1/stats/funnel takes each: the name of an event, type:TYPE or page:PATH';
COMMENT ON COLUMN analytics.saved_funnels.within_seconds IS 'How long all steps together may take';


-- Totals

CREATE TABLE analytics.bucket_totals (
    granularity analytics.granularity NOT NULL
        CONSTRAINT bucket_totals_granularity_known CHECK (granularity IN ('hour', 'day')),
    time_bucket timestamptz NOT NULL,
    event_count bigint NOT NULL DEFAULT 0,
    page_views bigint NOT NULL DEFAULT 0,
    conversions bigint NOT NULL DEFAULT 0,
    users_sketch bytea,
    sessions_sketch bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT bucket_totals_pkey PRIMARY KEY (granularity, time_bucket),
    CONSTRAINT bucket_totals_counts_not_negative CHECK (least(event_count, page_views, conversions) >= 0)
);

-- As in analytics.event_aggregations: registers hardly compress.
ALTER TABLE analytics.bucket_totals
    ALTER COLUMN users_sketch SET STORAGE EXTERNAL, ALTER COLUMN sessions_sketch SET STORAGE EXTERNAL;

COMMENT ON TABLE analytics.bucket_totals IS 'The hours and days of analytics.event_aggregations that are over, each summed over all types and names, without bots. A row holds for as long as it is there: whatever changes a bucket deletes its row, in the same transaction, and the service makes it anew; until then the rows by name have to be summed';
COMMENT ON COLUMN analytics.bucket_totals.time_bucket IS 'Where the bucket begins, in UTC; those without any event have a row, too';
COMMENT ON COLUMN analytics.bucket_totals.page_views IS 'Those of event_count with the type page_view';
COMMENT ON COLUMN analytics.bucket_totals.conversions IS 'Those of event_count with the type conversion';
COMMENT ON COLUMN analytics.bucket_totals.users_sketch IS 'Sketch of the distinct users of all names, each counted once';
COMMENT ON COLUMN analytics.bucket_totals.sessions_sketch IS 'Sketch of the distinct sessions';

-- SECURITY DEFINER, as are others here: whoever may change a bucket need not know of this.
CREATE FUNCTION ingest.forget_changed_total() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM analytics.bucket_totals WHERE granularity = NEW.granularity AND time_bucket = NEW.time_window_start;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.forget_changed_total() IS 'Trigger: delete the total of a bucket that has changed';

-- Whoever adds to buckets, or makes them anew, notes there in the same transaction that their KPIs have to be computed
-- again. So what counts events, thousands in a second, does nothing more; and workers of the release before, which know of
-- no totals, leave none that are wrong.
CREATE TRIGGER forget_total AFTER INSERT OR UPDATE ON analytics.stale_metrics
FOR EACH ROW WHEN (NEW.source = 'aggregates' AND NEW.granularity IN ('hour', 'day'))
EXECUTE FUNCTION ingest.forget_changed_total();

CREATE FUNCTION ingest.forget_totals_of_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    bucket record;
BEGIN
    -- One by one, by the primary key: mostly there are none, as retention deletes minutes.
    FOR bucket IN
        SELECT DISTINCT granularity, time_bucket FROM deleted
        WHERE granularity IN ('hour', 'day') AND dimensions = '{}'
    LOOP
        DELETE FROM analytics.bucket_totals
        WHERE granularity = bucket.granularity AND time_bucket = bucket.time_bucket;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.forget_totals_of_deleted() IS 'Trigger: delete the totals of buckets of which rows were deleted';

-- Erasures delete rows without a note, and so may people.
CREATE TRIGGER forget_totals AFTER DELETE ON analytics.event_aggregations
REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION ingest.forget_totals_of_deleted();

REVOKE EXECUTE ON FUNCTION ingest.forget_changed_total(), ingest.forget_totals_of_deleted() FROM PUBLIC;


-- Activity

-- As before, except that the condition on visits is leakproof, which coalesce is not: under row security, a condition
-- that is not cannot use the index, and an analyst's query took twelve times as long as the owner's.
CREATE OR REPLACE VIEW analytics.activity WITH (security_invoker = true) AS
SELECT
    event.*,
    coalesce(event.user_id, identity.user_id, event.anonymous_id) AS person,
    coalesce(event.session_id, CASE WHEN event.type <> 'system' THEN (
        SELECT CASE WHEN visit.ended_at >= event.created_at THEN visit.session_id END
        FROM analytics.visits AS visit
        WHERE visit.person = CASE
                WHEN event.user_id IS NOT NULL THEN event.user_id
                WHEN identity.user_id IS NOT NULL THEN identity.user_id
                ELSE event.anonymous_id
            END
            AND visit.started_at <= event.created_at
        ORDER BY visit.started_at DESC LIMIT 1
    ) END) AS visit
FROM analytics.events AS event
LEFT JOIN analytics.identities AS identity
    ON identity.anonymous_id = event.anonymous_id AND event.user_id IS NULL;


-- Counting

-- What statistics count events by, of days that are over, without the rest of the rows: most of a row is properties,
-- context, URLs and the like. A B-tree takes no entry longer than 2,704 bytes, and these texts may be longer: events for
-- which they are have an index of their own, which is nearly always empty. So a late event never fails for its length.
CREATE OR REPLACE FUNCTION analytics.missing_closed_day_indexes(older_than interval DEFAULT '6 hours')
RETURNS TABLE (partition_name text, index_name text, statement text, leftover text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH closed AS (
        SELECT pg_class.oid, relname::text AS name
        FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
            AND (to_date(right(relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' < now() - older_than
    ), texts (bytes) AS (VALUES (
        'octet_length(name) + coalesce(octet_length(user_id), 0) + coalesce(octet_length(anonymous_id), 0)'
            ' + coalesce(octet_length(session_id), 0) + coalesce(octet_length(page_path), 0)'
            ' + coalesce(octet_length(referrer_host), 0) + coalesce(octet_length(utm_source), 0)'
            ' + coalesce(octet_length(utm_medium), 0) + coalesce(octet_length(utm_campaign), 0)'
            ' + coalesce(octet_length(browser), 0) + coalesce(octet_length(os), 0)'
    )), wanted (place, suffix, definition) AS (VALUES
        -- Events by what they tell: properties @> '{"plan": "pro"}'
        (1, 'properties_gin', 'USING gin (properties jsonb_path_ops)'),
        -- Events of one name
        (2, 'name_created_at', '(name, created_at)'),
        -- What a user did
        (3, 'user_id_created_at', '(user_id, created_at) WHERE user_id IS NOT NULL'),
        -- What a browser did, also before its user was known
        (4, 'anonymous_id_created_at', '(anonymous_id, created_at) WHERE anonymous_id IS NOT NULL'),
        -- What happened on a page
        (5, 'page_created_at', '(page_host, page_path, created_at) WHERE page_host IS NOT NULL'),
        -- What analytics.counted_activity reads
        (6, 'counted', '(created_at) INCLUDE (id, received_at, type, name, user_id, anonymous_id, session_id, page_path,'
            ' referrer_host, utm_source, utm_medium, utm_campaign, device_type, browser, os, country, batch_id,'
            ' batch_position) WHERE ' || (SELECT bytes FROM texts) || ' <= 2000'),
        (7, 'counted_long', '(created_at) WHERE ' || (SELECT bytes FROM texts) || ' > 2000')
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

CREATE VIEW analytics.counted_activity WITH (security_invoker = true) AS
SELECT
    event.*,
    coalesce(event.user_id, identity.user_id, event.anonymous_id) AS person,
    coalesce(event.session_id, CASE WHEN event.type <> 'system' THEN (
        SELECT CASE WHEN visit.ended_at >= event.created_at THEN visit.session_id END
        FROM analytics.visits AS visit
        WHERE visit.person = CASE
                WHEN event.user_id IS NOT NULL THEN event.user_id
                WHEN identity.user_id IS NOT NULL THEN identity.user_id
                ELSE event.anonymous_id
            END
            AND visit.started_at <= event.created_at
        ORDER BY visit.started_at DESC LIMIT 1
    ) END) AS visit
FROM (
    -- Of days that are over, each row is in one of two indexes; see missing_closed_day_indexes().
    SELECT id, created_at, received_at, type, name, user_id, anonymous_id, session_id, page_path, referrer_host, utm_source,
        utm_medium, utm_campaign, device_type, browser, os, country, batch_id, batch_position
    FROM analytics.events
    WHERE created_at < date_trunc('day', now() - interval '6 hours', 'UTC')
        AND octet_length(name) + coalesce(octet_length(user_id), 0) + coalesce(octet_length(anonymous_id), 0)
            + coalesce(octet_length(session_id), 0) + coalesce(octet_length(page_path), 0) + coalesce(octet_length(referrer_host), 0)
            + coalesce(octet_length(utm_source), 0) + coalesce(octet_length(utm_medium), 0) + coalesce(octet_length(utm_campaign), 0)
            + coalesce(octet_length(browser), 0) + coalesce(octet_length(os), 0) <= 2000
    UNION ALL
    SELECT id, created_at, received_at, type, name, user_id, anonymous_id, session_id, page_path, referrer_host, utm_source,
        utm_medium, utm_campaign, device_type, browser, os, country, batch_id, batch_position
    FROM analytics.events
    WHERE created_at < date_trunc('day', now() - interval '6 hours', 'UTC')
        AND octet_length(name) + coalesce(octet_length(user_id), 0) + coalesce(octet_length(anonymous_id), 0)
            + coalesce(octet_length(session_id), 0) + coalesce(octet_length(page_path), 0) + coalesce(octet_length(referrer_host), 0)
            + coalesce(octet_length(utm_source), 0) + coalesce(octet_length(utm_medium), 0) + coalesce(octet_length(utm_campaign), 0)
            + coalesce(octet_length(browser), 0) + coalesce(octet_length(os), 0) > 2000
    UNION ALL
    SELECT id, created_at, received_at, type, name, user_id, anonymous_id, session_id, page_path, referrer_host, utm_source,
        utm_medium, utm_campaign, device_type, browser, os, country, batch_id, batch_position
    FROM analytics.events
    WHERE created_at >= date_trunc('day', now() - interval '6 hours', 'UTC')
) AS event
LEFT JOIN analytics.identities AS identity
    ON identity.anonymous_id = event.anonymous_id AND event.user_id IS NULL;

COMMENT ON VIEW analytics.counted_activity IS
    'analytics.activity with the columns that statistics count by, which it reads from the indexes of days that are over: for long ranges';


-- Entry pages

-- A row for each page of each hour: found by time, and not among those of all other KPIs.
CREATE INDEX metrics_entries_granularity_window_idx
    ON analytics.metrics (granularity, time_window_start) WHERE name = 'session_entries';


-- Row security

DO $$
DECLARE
    admin constant text := $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' = 'admin', false))$p$;
    analyst constant text :=
        $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' IN ('admin', 'analyst'), false))$p$;
BEGIN
    -- The service's own, like its API keys.
    ALTER TABLE ingest.secrets ENABLE ROW LEVEL SECURITY;
    ALTER TABLE ingest.spent_tokens ENABLE ROW LEVEL SECURITY;
    ALTER TABLE ingest.shared_views ENABLE ROW LEVEL SECURITY;
    REVOKE ALL ON ingest.secrets, ingest.spent_tokens, ingest.shared_views
        FROM PUBLIC, anon, authenticated, service_role;

    -- Under row security of what it reads, as analytics.activity
    REVOKE ALL ON analytics.counted_activity FROM PUBLIC, anon, authenticated, service_role;
    GRANT SELECT ON analytics.counted_activity TO authenticated, service_role;

    -- Analysts name funnels, too: it changes no data.
    ALTER TABLE analytics.saved_funnels ENABLE ROW LEVEL SECURITY;
    REVOKE ALL ON analytics.saved_funnels FROM PUBLIC, anon, authenticated, service_role;
    GRANT SELECT, INSERT, UPDATE, DELETE ON analytics.saved_funnels TO authenticated, service_role;
    CREATE POLICY saved_funnels_service_role ON analytics.saved_funnels FOR ALL TO service_role USING (true) WITH CHECK (true);
    EXECUTE format('CREATE POLICY saved_funnels_authenticated_select ON analytics.saved_funnels FOR SELECT TO authenticated USING (%s)', analyst);
    EXECUTE format('CREATE POLICY saved_funnels_authenticated_insert ON analytics.saved_funnels FOR INSERT TO authenticated WITH CHECK (%s)', analyst);
    EXECUTE format('CREATE POLICY saved_funnels_authenticated_update ON analytics.saved_funnels FOR UPDATE TO authenticated USING (%s) WITH CHECK (%s)', analyst, analyst);
    EXECUTE format('CREATE POLICY saved_funnels_authenticated_delete ON analytics.saved_funnels FOR DELETE TO authenticated USING (%s)', analyst);

    -- As the rows they sum.
    ALTER TABLE analytics.bucket_totals ENABLE ROW LEVEL SECURITY;
    REVOKE ALL ON analytics.bucket_totals FROM PUBLIC, anon, authenticated, service_role;
    GRANT SELECT, INSERT, UPDATE, DELETE ON analytics.bucket_totals TO authenticated, service_role;
    CREATE POLICY bucket_totals_service_role ON analytics.bucket_totals FOR ALL TO service_role USING (true) WITH CHECK (true);
    EXECUTE format('CREATE POLICY bucket_totals_authenticated_select ON analytics.bucket_totals FOR SELECT TO authenticated USING (%s)', analyst);
    EXECUTE format('CREATE POLICY bucket_totals_authenticated_insert ON analytics.bucket_totals FOR INSERT TO authenticated WITH CHECK (%s)', admin);
    EXECUTE format('CREATE POLICY bucket_totals_authenticated_update ON analytics.bucket_totals FOR UPDATE TO authenticated USING (%s) WITH CHECK (%s)', admin, admin);
    EXECUTE format('CREATE POLICY bucket_totals_authenticated_delete ON analytics.bucket_totals FOR DELETE TO authenticated USING (%s)', admin);
END
$$;
