-- Slices of visits: what filters, retention and sessions over long ranges are counted from, a few rows a visit in place of
-- one an event. See docs/reference/aggregates.md.

-- While a statement waits for a table's lock, requests for the table queue up behind it. So it fails soon, and
-- `ingest migrate` tries again.
SET LOCAL lock_timeout = '2s';


-- Slices

CREATE TABLE analytics.sliced_hours (
    hour timestamptz NOT NULL,
    is_complete boolean NOT NULL DEFAULT false,
    token uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sliced_hours_pkey PRIMARY KEY (hour)
);

COMMENT ON TABLE analytics.sliced_hours IS 'The hours of analytics.visit_slices. Whatever changes an hour deletes its row and its slices, in the same transaction, and the service makes them anew; until then its events have to be read';
COMMENT ON COLUMN analytics.sliced_hours.hour IS 'When it begins; those without any event have a row, too';
COMMENT ON COLUMN analytics.sliced_hours.is_complete IS 'False while its slices are being made: they are not to be read';
COMMENT ON COLUMN analytics.sliced_hours.token IS 'Of who makes them: another each time';

CREATE TABLE analytics.visit_slices (
    hour timestamptz NOT NULL,
    number int NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    viewed_at timestamptz,
    person bigint,
    visit bigint,
    viewed_place int,
    events int NOT NULL,
    page_views int NOT NULL,
    conversions int NOT NULL,
    acts int NOT NULL,
    device_type analytics.device_type,
    country char(2),
    browser text,
    os text,
    referrer_host text,
    utm_source text,
    utm_medium text,
    utm_campaign text,
    pages text[] NOT NULL,
    events_of_pages int[] NOT NULL,
    page_views_of_pages int[] NOT NULL,
    conversions_of_pages int[] NOT NULL,
    CONSTRAINT visit_slices_pkey PRIMARY KEY (hour, number)
);

COMMENT ON TABLE analytics.visit_slices IS 'The events of hours that are over, summed: a row for what one person did in one visit, within one half of an hour, from one device, country and source. With hashes in place of ids, and without names: statistics only';
COMMENT ON COLUMN analytics.visit_slices.hour IS 'When the hour begins, in UTC; a slice is in one half of it';
COMMENT ON COLUMN analytics.visit_slices.first_at IS 'created_at of its first event';
COMMENT ON COLUMN analytics.visit_slices.last_at IS 'created_at of its last one';
COMMENT ON COLUMN analytics.visit_slices.viewed_at IS 'created_at of its first page view, whose page is the first of pages';
COMMENT ON COLUMN analytics.visit_slices.person IS 'hashtextextended(…, 0) of what the person is called in the sketches of analytics.event_aggregations: one number for each person';
COMMENT ON COLUMN analytics.visit_slices.visit IS 'The same of the visit in analytics.activity';
COMMENT ON COLUMN analytics.visit_slices.viewed_place IS 'Place of that page view among the events of the hour in the order in which they were sent, which decides where two are of the same time';
COMMENT ON COLUMN analytics.visit_slices.page_views IS 'Those of events with the type page_view';
COMMENT ON COLUMN analytics.visit_slices.conversions IS 'Those of events with the type conversion';
COMMENT ON COLUMN analytics.visit_slices.acts IS 'Those of events that are not of type system';
COMMENT ON COLUMN analytics.visit_slices.browser IS 'Cut to 255 characters, as are the other texts';
COMMENT ON COLUMN analytics.visit_slices.pages IS 'The paths of its events, each once, by when they were first viewed; NULL for events without a path. A slice with more than a thousand is divided into several rows';
COMMENT ON COLUMN analytics.visit_slices.events_of_pages IS 'How many of events each of these has; likewise the next two';

-- SECURITY DEFINER: whoever may note that a bucket has changed need not know of this.
CREATE FUNCTION ingest.forget_slices() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- As either table calls it.
    changed constant timestamptz :=
        coalesce(to_jsonb(NEW) ->> 'time_bucket', to_jsonb(NEW) ->> 'time_window_start')::timestamptz;
BEGIN
    DELETE FROM analytics.sliced_hours WHERE hour = changed;
    -- Without such a row there are none.
    IF FOUND THEN
        DELETE FROM analytics.visit_slices WHERE hour = changed;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.forget_slices() IS 'Trigger: delete the slices of an hour that has changed';

-- Whoever counts events, or counts them anew, notes there that the KPIs of their hours have to be computed again; whoever
-- erases a person, or finds that events are somebody else's, notes here which hours have to be counted anew. Both in the
-- transaction that changes something. So workers of the release before leave no slices that are wrong.
CREATE TRIGGER forget_slices AFTER INSERT OR UPDATE ON analytics.stale_metrics
FOR EACH ROW WHEN (NEW.source = 'aggregates' AND NEW.granularity = 'hour')
EXECUTE FUNCTION ingest.forget_slices();
CREATE TRIGGER forget_slices AFTER INSERT OR UPDATE ON analytics.stale_buckets
FOR EACH ROW WHEN (NEW.granularity = 'hour')
EXECUTE FUNCTION ingest.forget_slices();

REVOKE EXECUTE ON FUNCTION ingest.forget_slices() FROM PUBLIC;


-- Row security

DO $$
DECLARE
    relation regclass;
    admin constant text := $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' = 'admin', false))$p$;
    analyst constant text :=
        $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' IN ('admin', 'analyst'), false))$p$;
BEGIN
    -- As the aggregates.
    FOREACH relation IN ARRAY ARRAY['analytics.sliced_hours', 'analytics.visit_slices']::regclass[] LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, anon, authenticated, service_role', relation);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO authenticated, service_role', relation);
        EXECUTE format('CREATE POLICY %I ON %s FOR ALL TO service_role USING (true) WITH CHECK (true)',
            (SELECT relname FROM pg_class WHERE oid = relation) || '_service_role', relation);
        EXECUTE format('CREATE POLICY %I ON %s FOR SELECT TO authenticated USING (%s)',
            (SELECT relname FROM pg_class WHERE oid = relation) || '_authenticated_select', relation, analyst);
        EXECUTE format('CREATE POLICY %I ON %s FOR INSERT TO authenticated WITH CHECK (%s)',
            (SELECT relname FROM pg_class WHERE oid = relation) || '_authenticated_insert', relation, admin);
        EXECUTE format('CREATE POLICY %I ON %s FOR UPDATE TO authenticated USING (%s) WITH CHECK (%s)',
            (SELECT relname FROM pg_class WHERE oid = relation) || '_authenticated_update', relation, admin, admin);
        EXECUTE format('CREATE POLICY %I ON %s FOR DELETE TO authenticated USING (%s)',
            (SELECT relname FROM pg_class WHERE oid = relation) || '_authenticated_delete', relation, admin);
    END LOOP;
END
$$;
