-- Who may do what: roles, grants, row security on every table, limits on what the public may write, the audit log.
-- On Supabase the roles and the schema `auth` are there already: they are used, and nothing of them is changed.
--
-- Settings that say on whose behalf a transaction works. The service sets them with SET LOCAL; under PostgREST a client
-- cannot set any, and request.jwt.claims and request.headers are PostgREST's own:
--   app.client_ip         the client's address, which rate limits count by
--   app.anonymise_ip      off: it is stored whole; else without its last part (IPv4), or but for its first 48 bits (IPv6)
--   app.client_ip_header  the header that names it under PostgREST, if x-forwarded-for does not; for ALTER DATABASE
--   app.user_agent        the client's user agent, for the audit log
--   app.user_email        an address that was proved to be the client's, such as by a link sent to it
--   app.session_token     the token of the onboarding session that the client goes on with
--   app.session_id        the client's session id, as in analytics.events


-- Roles

-- Roles belong to the whole server: another database's migration may be making them at this moment.
DO $$
DECLARE
    wanted text;
    -- Since PostgreSQL 16 a membership does not imply the right to SET ROLE.
    becoming constant text := CASE
        WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER'
    END;
BEGIN
    FOREACH wanted IN ARRAY '{anon,authenticated,service_role}'::text[] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
                IF wanted = 'service_role' THEN
                    -- Only who has BYPASSRLS may give it. The policies let service_role do everything without it, too.
                    BEGIN
                        ALTER ROLE service_role BYPASSRLS;
                    EXCEPTION WHEN insufficient_privilege THEN
                        NULL;
                    END;
                END IF;
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    NULL;
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'the role % is missing, and % may not make it', wanted, current_user
                    USING ERRCODE = 'insufficient_privilege', HINT = format(
                        'as an administrator: ALTER ROLE %1$I CREATEROLE; or CREATE ROLE anon; '
                        'CREATE ROLE authenticated; CREATE ROLE service_role BYPASSRLS; '
                        'GRANT anon, authenticated, service_role TO %1$I;', current_user
                    );
            END;
        END IF;
        -- The service takes on the role of whom it works for.
        IF NOT pg_has_role(current_user, wanted, becoming) THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', wanted, current_user);
            EXCEPTION
                WHEN unique_violation THEN
                    NULL;
                WHEN insufficient_privilege THEN
                    RAISE WARNING '% may not SET ROLE %, as the service must; as an administrator: GRANT % TO %',
                        current_user, wanted, quote_ident(wanted), quote_ident(current_user);
            END;
        END IF;
    END LOOP;
END
$$;


-- Whose request it is

DO $$
BEGIN
    IF to_regnamespace('auth') IS NOT NULL THEN
        IF to_regprocedure('auth.jwt()') IS NULL OR to_regprocedure('auth.uid()') IS NULL THEN
            RAISE EXCEPTION 'the schema auth has no auth.jwt() or no auth.uid()'
            USING HINT = 'make them as Supabase has them, or rename the schema';
        END IF;
        RETURN;
    END IF;
    CREATE SCHEMA auth;
    COMMENT ON SCHEMA auth IS 'Whose request it is, as on Supabase, where this schema is Supabase''s own';

    CREATE FUNCTION auth.jwt() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $body$
    DECLARE
        claims jsonb;
    BEGIN
        -- Here and not above, where an exception would not be caught.
        claims := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
        RETURN CASE jsonb_typeof(claims) WHEN 'object' THEN claims END;
    EXCEPTION WHEN data_exception THEN
        RETURN NULL;
    END
    $body$;
    COMMENT ON FUNCTION auth.jwt() IS 'The claims of the request''s token, checked by who set them; NULL: no token, or not an object';

    CREATE FUNCTION auth.uid() RETURNS uuid
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $body$
        SELECT substring(
            auth.jwt() ->> 'sub' FROM '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$'
        )::uuid
    $body$;
    COMMENT ON FUNCTION auth.uid() IS 'Who is signed in; NULL: nobody, or not known by a UUID';

    CREATE FUNCTION auth.role() RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $body$
        SELECT auth.jwt() ->> 'role'
    $body$;
    COMMENT ON FUNCTION auth.role() IS 'The database role that the request''s token asks for';

    GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
END
$$;

-- What no client calls. Nobody but the owner may name anything in it, as nobody else has USAGE; what triggers and
-- policies call they call all the same.
DO $$
BEGIN
    IF to_regnamespace('ingest') IS NULL THEN
        CREATE SCHEMA ingest;
    END IF;
    IF pg_has_role(current_user, (SELECT nspowner FROM pg_namespace WHERE nspname = 'ingest'), 'USAGE') THEN
        COMMENT ON SCHEMA ingest IS
            'The service''s own: its migrations, its rate limits, what its triggers call; for no client';
    END IF;
END
$$;

CREATE FUNCTION ingest.as_address(value text) RETURNS inet
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Mapped into IPv6, all of IPv4 would be one network of 64 bits.
    RETURN host(regexp_replace(trim(value), '^::ffff:(\d+\.\d+\.\d+\.\d+)$', '\1', 'i')::inet)::inet;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.as_address(text) IS 'This as an address, as IPv4 if it is mapped into IPv6; NULL if it is none';

CREATE FUNCTION ingest.request_header(name text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN nullif(current_setting('request.headers', true), '')::jsonb ->> lower(name);
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.request_header(text) IS 'A header of the request as PostgREST passes it on; NULL: no such header, or no PostgREST';

-- Of x-forwarded-for the last address counts, which the nearest proxy saw: those before it are what the client says.
-- Behind more than one proxy app.client_ip_header must name a header that the outermost one overwrites, such as
-- cf-connecting-ip on Supabase; taken without being told to, it would be anybody's to forge elsewhere.
CREATE FUNCTION ingest.client_address() RETURNS inet
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        ingest.as_address(current_setting('app.client_ip', true)),
        ingest.as_address(substring(
            ingest.request_header(
                coalesce(nullif(current_setting('app.client_ip_header', true), ''), 'x-forwarded-for')
            )
            FROM '[^,]*$'
        )),
        ingest.as_address(host(inet_client_addr()))
    )
$$;
COMMENT ON FUNCTION ingest.client_address() IS 'The address of the client on whose behalf this transaction works; NULL: not known';

CREATE FUNCTION ingest.stored_address(address inet) RETURNS inet
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN lower(current_setting('app.anonymise_ip', true)) IN ('off', 'false', 'no', '0') THEN address
        ELSE host(network(set_masklen(address, CASE family(address) WHEN 6 THEN 48 ELSE 24 END)))::inet
    END
$$;
COMMENT ON FUNCTION ingest.stored_address(inet) IS 'What may be stored of an address: without its last part, unless app.anonymise_ip is off';

-- Not by name, so that it holds for a role that was made a member of anon as well; and not for a table's owner, nor
-- for a function of theirs.
CREATE FUNCTION ingest.is_public(relation regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT row_security_active(relation)
        AND NOT pg_has_role(current_user, 'authenticated', 'USAGE')
        AND NOT pg_has_role(current_user, 'service_role', 'USAGE')
$$;
COMMENT ON FUNCTION ingest.is_public(regclass) IS 'Whether who writes to this table is anybody: anon';


-- Limits on what anybody may write

-- Counted here and not by the rows themselves: a lead that merged into another leaves none, and rows can be deleted.
-- Unlogged, because nobody misses it after a crash.
CREATE UNLOGGED TABLE ingest.rate_limits (
    kind text NOT NULL,
    subject text NOT NULL,
    hits int[] NOT NULL,
    last_hit_at timestamptz NOT NULL,
    CONSTRAINT rate_limits_pkey PRIMARY KEY (kind, subject)
);
CREATE INDEX rate_limits_last_hit_at_idx ON ingest.rate_limits (last_hit_at);

COMMENT ON TABLE ingest.rate_limits IS 'What was written by whom within the last hour; older rows go when others come';
COMMENT ON COLUMN ingest.rate_limits.kind IS 'What is counted, such as leads';
COMMENT ON COLUMN ingest.rate_limits.subject IS 'Whose: the hash of an address, or of a network of 64 bits in IPv6, or a session; "" for all whose address is not known';
COMMENT ON COLUMN ingest.rate_limits.hits IS 'How many in each minute, that of last_hit_at first';

CREATE TABLE ingest.api_keys (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL CONSTRAINT api_keys_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    shown text NOT NULL,
    hash bytea NOT NULL CONSTRAINT api_keys_hash_length CHECK (octet_length(hash) = 32),
    scopes text[] NOT NULL CONSTRAINT api_keys_scopes_known CHECK (
        scopes <@ '{write,read,admin}'::text[] AND cardinality(scopes) > 0
    ),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_hash_key UNIQUE (hash)
);

COMMENT ON TABLE ingest.api_keys IS 'Who may call the service over HTTP, and what they may; the keys themselves are not here';
COMMENT ON COLUMN ingest.api_keys.shown IS 'The key''s beginning, by which a person knows it';
COMMENT ON COLUMN ingest.api_keys.hash IS 'SHA-256 of the key';
COMMENT ON COLUMN ingest.api_keys.expires_at IS 'From when on it is believed no more; NULL: never';
COMMENT ON COLUMN ingest.api_keys.last_used_at IS 'To a minute; NULL: never';

-- By minute, so that a row stays small whatever the limit is: 61 of them hold any hour.
--
-- The row stays locked until the transaction ends, so that two at once count one after the other. Under REPEATABLE
-- READ the second fails instead. What is rolled back has not been counted.
CREATE FUNCTION ingest.count_hit(of_kind text, of_subject text, per_hour int) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    arrival constant timestamptz := clock_timestamp();
    minute constant bigint := floor(extract(epoch FROM arrival) / 60)::bigint;
    counts int[];
    within_hour bigint;
BEGIN
    IF per_hour = 0 THEN
        RETURN;
    END IF;
    INSERT INTO ingest.rate_limits AS known (kind, subject, hits, last_hit_at)
    VALUES (of_kind, of_subject, '{1}', arrival)
    ON CONFLICT (kind, subject) DO UPDATE SET
        hits = CASE WHEN floor(extract(epoch FROM known.last_hit_at) / 60) >= minute
            THEN (known.hits[1] + 1) || known.hits[2:61]
            ELSE (ARRAY[1] || array_fill(
                0, ARRAY[least(61, minute - floor(extract(epoch FROM known.last_hit_at) / 60) - 1)::int]
            ) || known.hits)[1:61]
        END,
        last_hit_at = greatest(arrival, known.last_hit_at)
    RETURNING known.hits INTO counts;
    within_hour := (SELECT sum(hit) FROM unnest(counts) AS hit);

    IF within_hour > per_hour THEN
        -- PostgREST answers PT429 with the status 429.
        RAISE EXCEPTION 'too many %: at most % an hour', of_kind, per_hour
        USING ERRCODE = 'PT429', HINT = 'try again later', DETAIL = (
            -- When so many minutes have passed that what is left of these leaves room for one more.
            SELECT format('%s seconds', greatest(1, least(3600, 60 * (61 - count(*)) - (extract(epoch FROM arrival))::bigint % 60)))
            FROM (
                SELECT sum(hit) OVER (ORDER BY place) - 1 AS newest FROM unnest(counts) WITH ORDINALITY AS each (hit, place)
            ) AS kept WHERE newest < per_hour
        );
    END IF;
    IF counts = '{1}' THEN
        DELETE FROM ingest.rate_limits WHERE (kind, subject) IN (
            SELECT kind, subject FROM ingest.rate_limits
            WHERE last_hit_at < arrival - interval '1 hour'
            ORDER BY last_hit_at LIMIT 10 FOR UPDATE SKIP LOCKED
        );
    END IF;
END
$$;
COMMENT ON FUNCTION ingest.count_hit(text, text, int) IS 'Count one more of this kind; fails with SQLSTATE PT429 if that is more than so many within an hour, give or take a minute; 0 is no limit';

CREATE FUNCTION ingest.hourly_limit(name text, otherwise int) RETURNS int
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(nullif(current_setting('app.' || name || '_per_hour', true), '')::int, otherwise)
$$;
COMMENT ON FUNCTION ingest.hourly_limit(text, int) IS
    'How many of a kind one address may make in an hour: the setting app.<name>_per_hour, such as ALTER DATABASE … SET app.assignments_per_hour = 50000; else the second argument';

-- Addresses are counted by a hash, keyed by what only this database has: the counts hold nobody's address.
DO $$
BEGIN
    EXECUTE format(
        'CREATE FUNCTION ingest.limit_key() RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS %L',
        format('SELECT %L::text', gen_random_uuid()::text || gen_random_uuid()::text)
    );
END
$$;
COMMENT ON FUNCTION ingest.limit_key() IS 'What addresses are hashed with; made at random with this database';

CREATE FUNCTION ingest.limit_subject(address inet) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN address IS NULL THEN ''
        ELSE left(encode(sha256(convert_to(
            ingest.limit_key() || host(CASE family(address) WHEN 6 THEN network(set_masklen(address, 64)) ELSE address END),
            'UTF8'
        )), 'hex'), 32)
    END
$$;
COMMENT ON FUNCTION ingest.limit_subject(inet) IS 'What shares a limit, hashed: an IPv4 address, an IPv6 network of 64 bits; "" for all that are not known';

-- SECURITY DEFINER because whom it counts may not touch the counts.
CREATE FUNCTION ingest.admit_by_address() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    address constant inet := ingest.client_address();
BEGIN
    PERFORM ingest.count_hit(
        TG_ARGV[0],
        ingest.limit_subject(address),
        ingest.hourly_limit(replace(TG_ARGV[0], ' ', '_'), TG_ARGV[1]::int)
    );
    NEW.ip_address := ingest.stored_address(address);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.admit_by_address() IS 'Trigger (kind, limit): at most so many rows an hour from one address, which is set, whatever the row says';

-- SECURITY DEFINER because whom it counts may not touch the counts.
CREATE FUNCTION ingest.admit_by_session() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM ingest.count_hit(TG_ARGV[0], NEW.session_id::text, TG_ARGV[1]::int);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.admit_by_session() IS 'Trigger (kind, limit): at most so many rows an hour for one session_id';

-- Their name makes them the first: triggers run by name, and one that merges a row away would leave it uncounted.
CREATE TRIGGER admit BEFORE INSERT ON marketing.leads FOR EACH ROW
WHEN (ingest.is_public('marketing.leads')) EXECUTE FUNCTION ingest.admit_by_address('leads', '10');
-- A known address merges and leaves no row, so that no policy refuses it: who is signed in and may not add leads would
-- learn whose addresses there are, as often as they like, and fill in what is missing.
CREATE FUNCTION ingest.refuse_lead() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'new row violates row-level security policy for table "leads"'
    USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION ingest.refuse_lead() IS 'Trigger: refuse a lead as its policy does, whether or not its address is known';
CREATE TRIGGER admit_signed_in BEFORE INSERT ON marketing.leads FOR EACH ROW
WHEN (
    row_security_active('marketing.leads') AND NOT ingest.is_public('marketing.leads')
    AND NOT pg_has_role(current_user, 'service_role', 'USAGE')
    AND auth.jwt() -> 'app_metadata' ->> 'role' IS DISTINCT FROM 'admin'
) EXECUTE FUNCTION ingest.refuse_lead();
CREATE TRIGGER admit BEFORE INSERT ON onboarding.sessions FOR EACH ROW
WHEN (ingest.is_public('onboarding.sessions')) EXECUTE FUNCTION ingest.admit_by_address('onboarding sessions', '5');
CREATE TRIGGER admit BEFORE INSERT ON onboarding.step_activities FOR EACH ROW
WHEN (ingest.is_public('onboarding.step_activities'))
EXECUTE FUNCTION ingest.admit_by_session('step activities', '100');
-- Rows of the collector have a batch: for them nothing more is asked.
CREATE TRIGGER admit BEFORE INSERT ON analytics.events FOR EACH ROW
WHEN (NEW.batch_id IS NULL AND ingest.is_public('analytics.events'))
EXECUTE FUNCTION ingest.admit_by_address('events', '1000');
CREATE TRIGGER admit BEFORE INSERT ON experiments.assignments FOR EACH ROW
WHEN (ingest.is_public('experiments.assignments')) EXECUTE FUNCTION ingest.admit_by_address('assignments', '10000');

CREATE FUNCTION ingest.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'this of %.% never changes: %', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
    USING ERRCODE = 'insufficient_privilege';
END
$$;
COMMENT ON FUNCTION ingest.refuse_change() IS 'Trigger (what): refuse, naming what must not change';

-- The grants below say the same. This holds also where they were widened by hand, and for a function that works with
-- its owner's rights on anon's behalf. UPDATE OF, so that a trigger may link the session to its lead.
CREATE TRIGGER keep_identity BEFORE UPDATE OF id, session_token, lead_id, created_at ON onboarding.sessions
FOR EACH ROW WHEN (
    (NEW.id, NEW.session_token, NEW.lead_id, NEW.created_at)
        IS DISTINCT FROM (OLD.id, OLD.session_token, OLD.lead_id, OLD.created_at)
    AND (current_setting('role') = 'anon' OR ingest.is_public('onboarding.sessions'))
) EXECUTE FUNCTION ingest.refuse_change('id, session_token, lead_id, created_at');
CREATE TRIGGER keep_identity
BEFORE UPDATE OF id, experiment_id, user_id, session_id, variant_id, assigned_at ON experiments.assignments
FOR EACH ROW WHEN (
    (NEW.id, NEW.experiment_id, NEW.user_id, NEW.session_id, NEW.variant_id, NEW.assigned_at)
        IS DISTINCT FROM (OLD.id, OLD.experiment_id, OLD.user_id, OLD.session_id, OLD.variant_id, OLD.assigned_at)
    AND (current_setting('role') = 'anon' OR ingest.is_public('experiments.assignments'))
) EXECUTE FUNCTION ingest.refuse_change('id, experiment_id, user_id, session_id, variant_id, assigned_at');


-- What holds for every table

-- SECURITY DEFINER because who asks may not read leads. It takes no argument: nobody can ask about another. The token's
-- `email` is proved as long as sign-up confirms addresses (Supabase: "Confirm email"); `user_metadata` proves nothing.
CREATE FUNCTION ingest.own_lead_id() RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT id FROM marketing.leads
    WHERE email = lower(trim(auth.jwt() ->> 'email')) AND deleted_at IS NULL
$$;
COMMENT ON FUNCTION ingest.own_lead_id() IS 'The lead whose address is in the token of who is signed in; NULL: none';

-- Every verb of every table has one policy a role. Who is an admin or an analyst is said by app_metadata, which only
-- the service may write; never by user_metadata, which everybody may write of themselves. The selects around calls
-- make them once a statement, not once a row.
DO $$
DECLARE
    -- The whole of each is a subquery: the planner then knows that it holds for all rows or for none, and does not take
    -- it for a condition that one row in 200 meets, for which it would read whole tables.
    admin constant text := $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' = 'admin', false))$p$;
    analyst constant text :=
        $p$(SELECT coalesce((SELECT auth.jwt()) -> 'app_metadata' ->> 'role' IN ('admin', 'analyst'), false))$p$;
    own_account constant text := 'lead_id = (SELECT ingest.own_lead_id())';
    -- The accounts in it are those that their own policy shows.
    own_template constant text := 'account_id IN (SELECT id FROM whatsapp.accounts)';
    relation regclass;
    readers text;
    name text;
BEGIN
    FOR relation, readers IN
        SELECT * FROM (VALUES
            ('marketing.leads'::regclass, admin),
            ('marketing.lead_interactions', admin),
            ('onboarding.sessions', admin),
            ('onboarding.step_activities', admin),
            ('analytics.events', analyst),
            ('analytics.event_keys', analyst),
            ('analytics.event_aggregations', analyst),
            ('analytics.stale_buckets', analyst),
            ('analytics.identities', analyst),
            ('analytics.people', analyst),
            ('analytics.visits', analyst),
            ('analytics.stale_identities', analyst),
            ('analytics.metrics', analyst),
            ('analytics.stale_metrics', analyst),
            ('analytics.journals', analyst),
            ('analytics.flushes', analyst),
            ('analytics.rejected_events', analyst),
            ('analytics.leases', analyst),
            ('experiments.experiments', admin),
            ('experiments.assignments', admin),
            ('whatsapp.accounts', own_account || ' OR ' || admin),
            ('whatsapp.templates', own_template || ' OR ' || admin),
            ('public.audit_logs', admin)
        ) AS tables
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        -- Supabase gives its roles everything on new tables in `public`, TRUNCATE too, which asks no policy.
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, anon, authenticated, service_role', relation);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO authenticated, service_role', relation);
        SELECT relname INTO name FROM pg_class WHERE oid = relation;
        EXECUTE format('CREATE POLICY %I ON %s FOR ALL TO service_role USING (true) WITH CHECK (true)',
            name || '_service_role', relation);
        EXECUTE format('CREATE POLICY %I ON %s FOR SELECT TO authenticated USING (%s)',
            name || '_authenticated_select', relation, readers);
        EXECUTE format('CREATE POLICY %I ON %s FOR INSERT TO authenticated WITH CHECK (%s)',
            name || '_authenticated_insert', relation, admin);
        EXECUTE format('CREATE POLICY %I ON %s FOR UPDATE TO authenticated USING (%s) WITH CHECK (%4$s)',
            name || '_authenticated_update', relation, admin, admin);
        EXECUTE format('CREATE POLICY %I ON %s FOR DELETE TO authenticated USING (%s)',
            name || '_authenticated_delete', relation, admin);
    END LOOP;

    -- Its tables' policies hold for who reads it.
    REVOKE ALL ON analytics.activity FROM PUBLIC, anon, authenticated, service_role;
    GRANT SELECT ON analytics.activity TO authenticated, service_role;

    -- Through analytics.events, whose policies hold then; nobody has a right on a partition, nor a policy.
    FOR relation IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'analytics.events'::regclass LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, anon, authenticated, service_role', relation);
    END LOOP;

    -- Not there if something else than the service applies these files.
    IF to_regclass('ingest.migrations') IS NOT NULL THEN
        ALTER TABLE ingest.migrations ENABLE ROW LEVEL SECURITY;
    END IF;
    ALTER TABLE ingest.rate_limits ENABLE ROW LEVEL SECURITY;
    ALTER TABLE ingest.api_keys ENABLE ROW LEVEL SECURITY;
END
$$;

-- Only if missing: a schema that was here before may be somebody else's.
DO $$
DECLARE
    usage record;
BEGIN
    FOR usage IN
        SELECT grantee, name
        FROM unnest('{anon,authenticated,service_role}'::text[]) AS grantee,
            unnest('{marketing,onboarding,analytics,experiments,whatsapp,public}'::text[]) AS name
        WHERE (grantee, name) <> ('anon', 'whatsapp') AND NOT has_schema_privilege(grantee, name, 'USAGE')
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', usage.name, usage.grantee);
    END LOOP;
END
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ingest FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ingest.is_public(regclass) TO PUBLIC;
GRANT EXECUTE ON FUNCTION ingest.own_lead_id() TO authenticated;
REVOKE EXECUTE ON FUNCTION analytics.ensure_events_partition(date) FROM PUBLIC;


-- anon: what a visitor may do

-- Columns that only the server writes are not granted: id, ip_address, times, score, status.
GRANT SELECT, INSERT (
    email, phone_number, company_name, first_name, last_name, source, notes, interested_features,
    utm_source, utm_medium, utm_campaign, utm_content, utm_term, referrer, landing_page,
    user_agent, country_code, region, city, consent
) ON marketing.leads TO anon;

CREATE POLICY leads_anon_insert ON marketing.leads FOR INSERT TO anon
-- Out of use is only what the trigger take_in has found to be known: nobody may write duplicate_of themselves.
WITH CHECK (status = 'new' AND (deleted_at IS NULL OR duplicate_of IS NOT NULL));

-- Who can set app.user_email reads that lead: over plain SQL anybody who may connect, which visitors may not; under
-- PostgREST nobody; and the service only after proof that the address is the visitor's.
CREATE POLICY leads_anon_select ON marketing.leads FOR SELECT TO anon
USING (
    email = (SELECT lower(trim(nullif((SELECT current_setting('app.user_email', true)), ''))))
    AND deleted_at IS NULL
);

-- A client learns the token of its session by choosing it: 32 random bytes, set as app.session_token first if it wants
-- RETURNING, which shows what the policy for SELECT shows. The service makes the token itself and does so.
GRANT SELECT, INSERT (
    session_token, current_step, status, started_at, user_agent, anonymous_id, visit_session_id,
    business_data, whatsapp_config, bot_config
), UPDATE (
    current_step, status, progress_percentage, business_info_completed_at, whatsapp_integration_completed_at,
    bot_setup_completed_at, testing_completed_at, completed_at, started_at, last_activity_at, abandoned_at,
    user_agent, business_data, whatsapp_config, bot_config
) ON onboarding.sessions TO anon;

CREATE POLICY sessions_anon_insert ON onboarding.sessions FOR INSERT TO anon
WITH CHECK (status IN ('not_started', 'in_progress'));

CREATE POLICY sessions_anon_select ON onboarding.sessions FOR SELECT TO anon
USING (
    session_token = (SELECT nullif((SELECT current_setting('app.session_token', true)), ''))
    AND (status <> 'abandoned' OR coalesce(abandoned_at, last_activity_at) > now() - interval '24 hours')
);

CREATE POLICY sessions_anon_update ON onboarding.sessions FOR UPDATE TO anon
USING (
    session_token = (SELECT nullif((SELECT current_setting('app.session_token', true)), ''))
    AND (status <> 'abandoned' OR coalesce(abandoned_at, last_activity_at) > now() - interval '24 hours')
);

GRANT SELECT, INSERT (
    session_id, step, activity_type, field_name, field_value, error_message, time_spent_seconds, metadata
) ON onboarding.step_activities TO anon;

-- The sessions in it are those that their own policy shows: one at most.
CREATE POLICY step_activities_anon_insert ON onboarding.step_activities FOR INSERT TO anon
WITH CHECK (session_id IN (SELECT id FROM onboarding.sessions));
CREATE POLICY step_activities_anon_select ON onboarding.step_activities FOR SELECT TO anon
USING (session_id IN (SELECT id FROM onboarding.sessions));

-- Without batch_id, which would make a row look like the collector's, and without what is derived from the rest.
GRANT INSERT (
    type, name, user_id, anonymous_id, session_id, properties, context, url, referrer,
    utm_source, utm_medium, utm_campaign, utm_term, utm_content, user_agent
) ON analytics.events TO anon;

CREATE POLICY events_anon_insert ON analytics.events FOR INSERT TO anon
WITH CHECK (
    batch_id IS NULL AND octet_length(properties::text) < 8192 AND octet_length(context::text) < 8192
);

-- Not: targeting_rules, hypothesis, results, winner_variant_id, created_by. SELECT * is therefore refused.
GRANT SELECT (
    id, name, description, is_active, traffic_percentage, control_variant, test_variants, start_date, end_date,
    status, created_at, updated_at
) ON experiments.experiments TO anon;

CREATE POLICY experiments_anon_select ON experiments.experiments FOR SELECT TO anon
USING (
    status = 'running' AND is_active
    AND (start_date IS NULL OR start_date <= now()) AND (end_date IS NULL OR end_date > now())
);

-- A visitor is a session, never a user: that needs signing in. Its own is the one in app.session_id, or the
-- onboarding session whose token is in app.session_token.
GRANT SELECT, INSERT (experiment_id, session_id, variant_id, user_agent, country),
UPDATE (first_exposure_at, last_exposure_at, exposure_count) ON experiments.assignments TO anon;

CREATE POLICY assignments_anon_insert ON experiments.assignments FOR INSERT TO anon
WITH CHECK (
    user_id IS NULL
    AND (
        session_id = (SELECT nullif((SELECT current_setting('app.session_id', true)), ''))
        OR session_id = (SELECT id::text FROM onboarding.sessions)
    )
    -- The experiments in it are those that their own policy shows: running ones.
    AND EXISTS (
        SELECT FROM experiments.experiments AS running
        WHERE running.id = experiment_id
            AND variant_id = ANY (experiments.variant_ids(running.control_variant, running.test_variants))
    )
);
CREATE POLICY assignments_anon_select ON experiments.assignments FOR SELECT TO anon
USING (
    user_id IS NULL
    AND (
        session_id = (SELECT nullif((SELECT current_setting('app.session_id', true)), ''))
        OR session_id = (SELECT id::text FROM onboarding.sessions)
    )
);
CREATE POLICY assignments_anon_update ON experiments.assignments FOR UPDATE TO anon
USING (
    user_id IS NULL
    AND (
        session_id = (SELECT nullif((SELECT current_setting('app.session_id', true)), ''))
        OR session_id = (SELECT id::text FROM onboarding.sessions)
    )
);


-- authenticated: what a customer may read

-- Without *_encrypted. Grants know roles of the database only: an admin reads none of it either, but may write it.
REVOKE SELECT ON whatsapp.accounts FROM authenticated;
GRANT SELECT (
    id, lead_id, business_account_id, phone_number_id, phone_number, display_name, is_verified, is_active,
    verification_status, messages_sent_today, messages_limit_daily, last_message_sent_at, created_at, updated_at
) ON whatsapp.accounts TO authenticated;


-- The audit log

-- Told by its name, whether it is a column or a key within one.
CREATE FUNCTION ingest.without_secrets(value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    secret constant text :=
        '(token|secret|passw|passphrase|credential|authorization|encrypted|(api|access|private|signing)[_-]?key)';
BEGIN
    IF value::text !~* secret THEN
        RETURN value;
    END IF;
    CASE jsonb_typeof(value)
        WHEN 'object' THEN
            RETURN (
                SELECT coalesce(jsonb_object_agg(key, ingest.without_secrets(child)), '{}')
                FROM jsonb_each(value) AS member (key, child)
                WHERE key !~* secret
                    -- What was typed into a field that is named so.
                    AND NOT (key = 'field_value' AND coalesce(value ->> 'field_name', '') ~* secret)
            );
        WHEN 'array' THEN
            RETURN (
                SELECT jsonb_agg(ingest.without_secrets(child) ORDER BY place)
                FROM jsonb_array_elements(value) WITH ORDINALITY AS element (child, place)
            );
        ELSE
            RETURN value;
    END CASE;
END
$$;
COMMENT ON FUNCTION ingest.without_secrets(jsonb) IS 'This without the members, at any depth, whose name says that they are secret';

-- auth.uid() of Supabase fails if a token names its user by something else than a UUID.
CREATE FUNCTION ingest.actor_id() RETURNS uuid
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN auth.uid();
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.actor_id() IS 'Who is signed in; NULL: nobody, or not known by a UUID';

CREATE FUNCTION ingest.actor_email() RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN coalesce(nullif(auth.jwt() ->> 'email', ''), nullif(current_setting('app.user_email', true), ''));
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.actor_email() IS 'The address of who is signed in, or was proved by the service; NULL: neither';

-- SECURITY DEFINER because who writes to a table may not write to the log. The role is then not current_user: SET
-- ROLE sets `role`, which a function's owner does not change; without it, it is who logged in.
CREATE FUNCTION ingest.write_audit_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    old_row jsonb := CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) END;
    new_row jsonb := CASE WHEN TG_OP IN ('INSERT', 'UPDATE') THEN to_jsonb(NEW) END;
    changed text[];
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(key ORDER BY key) INTO changed
        FROM jsonb_each(new_row) WHERE value IS DISTINCT FROM old_row -> key;
        IF changed IS NULL OR changed = '{updated_at}' THEN
            RETURN NULL;
        END IF;
    END IF;
    INSERT INTO public.audit_logs (
        table_name, operation, row_id, old_values, new_values, changed_columns,
        actor_role, user_id, user_email, ip_address, user_agent
    ) VALUES (
        TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, TG_OP, coalesce(new_row, old_row) ->> 'id',
        ingest.without_secrets(old_row), ingest.without_secrets(new_row), changed,
        coalesce(nullif(current_setting('role'), 'none'), session_user),
        ingest.actor_id(), ingest.actor_email(), ingest.stored_address(ingest.client_address()),
        left(coalesce(nullif(current_setting('app.user_agent', true), ''), ingest.request_header('user-agent')), 1024)
    );
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.write_audit_log() IS 'Trigger: record in public.audit_logs what was done to a row, or that all were truncated';

-- The tables that a person's traces or an admin's decisions are in. Events are too many, and nobody edits them.
DO $$
DECLARE
    relation regclass;
BEGIN
    FOREACH relation IN ARRAY ARRAY[
        'marketing.leads', 'marketing.lead_interactions', 'onboarding.sessions', 'onboarding.step_activities',
        'experiments.experiments', 'experiments.assignments', 'whatsapp.accounts', 'whatsapp.templates'
    ]::regclass[] LOOP
        EXECUTE format(
            'CREATE TRIGGER write_audit_log AFTER INSERT OR UPDATE OR DELETE ON %s '
            'FOR EACH ROW EXECUTE FUNCTION ingest.write_audit_log()', relation
        );
        EXECUTE format(
            'CREATE TRIGGER write_audit_log_of_truncate AFTER TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION ingest.write_audit_log()', relation
        );
    END LOOP;
END
$$;

-- Retention and erasure are the exceptions: functions SECURITY DEFINER of the log's owner that set
-- app.audit_maintenance to on meanwhile; in their bodies, as only a superuser may make a function that carries a
-- setting nobody has defined. The setting alone is no right: anybody can set it.
CREATE FUNCTION ingest.keep_audit_logs() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP <> 'TRUNCATE' AND current_setting('app.audit_maintenance', true) = 'on'
        AND pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE')
    THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the audit log is not to be changed: % refused', TG_OP
    USING ERRCODE = 'insufficient_privilege',
        HINT = 'cleanup_old_data() deletes what is past its retention, gdpr_delete_user_data() erases a person';
END
$$;
COMMENT ON FUNCTION ingest.keep_audit_logs() IS 'Trigger: refuse to change the log, unless its owner says app.audit_maintenance = on';

-- A statement is refused even if it would find no row.
CREATE TRIGGER keep_audit_logs BEFORE UPDATE OR DELETE OR TRUNCATE ON public.audit_logs
FOR EACH STATEMENT EXECUTE FUNCTION ingest.keep_audit_logs();

-- Who may add to the log by hand cannot do so in another's name or at another time.
CREATE FUNCTION ingest.sign_audit_log() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.actor_role := current_user::text;
    NEW.user_id := auth.uid();
    NEW.user_email := auth.jwt() ->> 'email';
    NEW.created_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.sign_audit_log() IS 'Trigger: put who it is and when into the row, whatever it says';

CREATE TRIGGER sign_audit_log BEFORE INSERT ON public.audit_logs FOR EACH ROW
WHEN (row_security_active('public.audit_logs') AND NOT pg_has_role(current_user, 'service_role', 'USAGE'))
EXECUTE FUNCTION ingest.sign_audit_log();

REVOKE UPDATE, DELETE ON public.audit_logs FROM authenticated, service_role;
-- Nor may anybody set its numbers back, as Supabase's default privileges would let them: every write would fail then.
REVOKE ALL ON SEQUENCE public.audit_logs_id_seq FROM PUBLIC, anon, authenticated, service_role;
DROP POLICY audit_logs_authenticated_update ON public.audit_logs;
DROP POLICY audit_logs_authenticated_delete ON public.audit_logs;

-- Those since the last time: these too are for no client.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ingest FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ingest.is_public(regclass) TO PUBLIC;
