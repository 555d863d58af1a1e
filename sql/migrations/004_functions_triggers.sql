-- What the database does by itself: triggers that keep rows right, and functions that applications and schedulers call.
-- A function is SECURITY DEFINER only where its caller may not do what it does, and says so.


-- updated_at

CREATE FUNCTION ingest.keep_updated_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.keep_updated_at() IS 'Trigger: updated_at is when the row was last changed, whatever the statement says';

CREATE TRIGGER touch BEFORE UPDATE ON marketing.leads
FOR EACH ROW EXECUTE FUNCTION ingest.keep_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON onboarding.sessions
FOR EACH ROW EXECUTE FUNCTION ingest.keep_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON experiments.experiments
FOR EACH ROW EXECUTE FUNCTION ingest.keep_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON whatsapp.accounts
FOR EACH ROW EXECUTE FUNCTION ingest.keep_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON whatsapp.templates
FOR EACH ROW EXECUTE FUNCTION ingest.keep_updated_at();


-- Leads

CREATE FUNCTION public.calculate_lead_score(lead marketing.leads) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT least(100,
        CASE lead.source
            WHEN 'demo-request' THEN 30
            WHEN 'pricing-inquiry' THEN 25
            WHEN 'contact-form' THEN 15
            WHEN 'website-form' THEN 10
            ELSE 5
        END
        + CASE WHEN lead.phone_number IS NULL THEN 0 ELSE 15 END
        + CASE WHEN lead.company_name IS NULL THEN 0 ELSE 15 END
        + CASE WHEN num_nonnulls(lead.first_name, lead.last_name) = 2 THEN 5 ELSE 0 END
        -- An address of a company's own.
        + CASE WHEN split_part(lead.email, '@', 2) ~ '^(gmail|googlemail|outlook|hotmail|live|yahoo|icloud|aol|gmx|proton|protonmail)\.'
            THEN 0 ELSE 10 END
        + least(15, 3 * cardinality(lead.interested_features))
        + CASE WHEN lead.notes IS NULL THEN 0 ELSE 5 END
        + CASE WHEN lead.utm_campaign IS NULL THEN 0 ELSE 5 END
    )
$$;
COMMENT ON FUNCTION public.calculate_lead_score(marketing.leads) IS
    'How promising a lead is, 0 to 100: by what it asked for, and by how much it tells about itself';

-- All calling codes there are, of one, two or three digits. None is followed by a zero, but for those of countries whose
-- numbers begin with one and are dialled with it from abroad, as Italy's: these are left as they are.
CREATE FUNCTION ingest.without_trunk_zero(number text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT regexp_replace(
        number,
        '^(\+?(?!39|22[5679]|24[12]|378|992)'
            '(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]'
            '|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[035789]|9[679])[0-9]))\(*0[0(]*',
        '\1'
    )
$$;
COMMENT ON FUNCTION ingest.without_trunk_zero(text) IS
    'The number, a country code first, without the zero that is dialled inside the country only: +44020 and +44(020 become +4420';

CREATE FUNCTION ingest.normalised_phone(phone text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- Letters stay, for the constraint to refuse: a number is not guessed. Whether \s has the spaces that do not break
    -- is up to the locale. Brackets before a zero stay until the end: after a country code without + they tell that it is one.
    SELECT nullif(replace(
        CASE WHEN compact ~ '^(\+|[1-9][0-9]{0,2}\(0)' THEN ingest.without_trunk_zero(compact) ELSE compact END, '(', ''
    ), '')
    FROM (
        SELECT regexp_replace(
            regexp_replace(regexp_replace(phone, '[\s\u00A0\u202F).\-/]', '', 'g'), '^\(+|\((?!0)', '', 'g'), '^0\(*0', '+'
        ) AS compact
    ) AS without_blanks
$$;
COMMENT ON FUNCTION ingest.normalised_phone(text) IS
    'A phone number without white space and punctuation; 00 before the country code becomes +, and +44 (0)20 becomes +4420';

CREATE FUNCTION ingest.united_features(known text[], told text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN cardinality(united) <= 50 AND char_length(array_to_string(united, '')) <= 2500 THEN united
        ELSE known
    END
    FROM (
        SELECT known || ARRAY(SELECT DISTINCT feature FROM unnest(told) AS feature WHERE feature <> ALL (known)) AS united
    ) AS both_lists
$$;
COMMENT ON FUNCTION ingest.united_features(text[], text[]) IS 'The first list and what only the second has; the first alone if that were too much';

CREATE FUNCTION ingest.normalise_lead(lead marketing.leads) RETURNS marketing.leads
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    lead.email := lower(btrim(lead.email, E' \t\r\n'));
    lead.phone_number := ingest.normalised_phone(lead.phone_number);
    lead.company_name := nullif(btrim(lead.company_name), '');
    lead.first_name := nullif(btrim(lead.first_name), '');
    lead.last_name := nullif(btrim(lead.last_name), '');
    lead.notes := nullif(btrim(lead.notes), '');
    lead.country_code := upper(lead.country_code);
    lead.referrer := ingest.without_credentials(lead.referrer);
    lead.landing_page := ingest.without_credentials(lead.landing_page);
    lead.score := public.calculate_lead_score(lead);
    RETURN lead;
END
$$;
COMMENT ON FUNCTION ingest.normalise_lead(marketing.leads) IS 'The lead as it is stored: texts trimmed, blanks NULL, addresses without credentials, its score';

-- SECURITY DEFINER because a visitor who leaves an address again may not read or change the row that has it. What is
-- known stays, and only what is missing is filled, by who has credentials. What anybody says of a known address is a
-- row of its own, out of use: the lead stays as it is, and they cannot tell that it was known.
CREATE FUNCTION ingest.take_in_lead() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known_id uuid;
BEGIN
    NEW := ingest.normalise_lead(NEW);
    IF NEW.deleted_at IS NOT NULL OR NEW.email IS NULL THEN
        RETURN NEW;
    END IF;
    -- One after the other for one address: the second then finds the row of the first. To this transaction's end; of
    -- 1,024 locks, because a server has a few thousand, and an import of leads may be one statement.
    PERFORM pg_advisory_xact_lock(hashtext('ingest leads'), hashtext(NEW.email) & 1023);
    IF TG_ARGV[0] = 'of anybody' THEN
        SELECT id INTO known_id FROM marketing.leads WHERE email = NEW.email AND deleted_at IS NULL;
        IF FOUND THEN
            NEW.duplicate_of := known_id;
            NEW.deleted_at := now();
        END IF;
        RETURN NEW;
    END IF;
    UPDATE marketing.leads AS known SET
        phone_number = coalesce(known.phone_number, NEW.phone_number),
        company_name = coalesce(known.company_name, NEW.company_name),
        first_name = coalesce(known.first_name, NEW.first_name),
        last_name = coalesce(known.last_name, NEW.last_name),
        notes = CASE
            WHEN NEW.notes IS NULL OR strpos(coalesce(known.notes, ''), NEW.notes) > 0 THEN known.notes
            ELSE left(concat_ws(E'\n', known.notes, NEW.notes), 10000)
        END,
        interested_features = ingest.united_features(known.interested_features, NEW.interested_features),
        utm_source = coalesce(known.utm_source, NEW.utm_source),
        utm_medium = coalesce(known.utm_medium, NEW.utm_medium),
        utm_campaign = coalesce(known.utm_campaign, NEW.utm_campaign),
        utm_content = coalesce(known.utm_content, NEW.utm_content),
        utm_term = coalesce(known.utm_term, NEW.utm_term),
        referrer = coalesce(known.referrer, NEW.referrer),
        landing_page = coalesce(known.landing_page, NEW.landing_page),
        user_agent = coalesce(known.user_agent, NEW.user_agent),
        ip_address = coalesce(known.ip_address, NEW.ip_address),
        country_code = coalesce(known.country_code, NEW.country_code),
        region = coalesce(known.region, NEW.region),
        city = coalesce(known.city, NEW.city),
        consent = CASE
            WHEN octet_length((NEW.consent || known.consent)::text) <= 8192 THEN NEW.consent || known.consent
            ELSE known.consent
        END
    WHERE known.email = NEW.email AND known.deleted_at IS NULL;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.take_in_lead() IS
    'Trigger: normalise a new lead; one whose address is known fills what its row lacks instead or, if it is "of anybody", is kept beside it';

CREATE TRIGGER take_in BEFORE INSERT ON marketing.leads FOR EACH ROW
WHEN (NOT ingest.is_public('marketing.leads')) EXECUTE FUNCTION ingest.take_in_lead();
CREATE TRIGGER take_in_of_anybody BEFORE INSERT ON marketing.leads FOR EACH ROW
WHEN (ingest.is_public('marketing.leads')) EXECUTE FUNCTION ingest.take_in_lead('of anybody');

-- SECURITY DEFINER as what it calls is nobody else's to call.
CREATE FUNCTION ingest.keep_lead_normalised() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ingest.normalise_lead(NEW);
END
$$;
COMMENT ON FUNCTION ingest.keep_lead_normalised() IS 'Trigger: normalise a changed lead, and score it anew';

CREATE TRIGGER keep_normalised BEFORE UPDATE ON marketing.leads
FOR EACH ROW EXECUTE FUNCTION ingest.keep_lead_normalised();


-- Onboarding

CREATE FUNCTION public.calculate_onboarding_progress(session onboarding.sessions) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 25 * num_nonnulls(
        session.business_info_completed_at, session.whatsapp_integration_completed_at,
        session.bot_setup_completed_at, session.testing_completed_at
    )
$$;
COMMENT ON FUNCTION public.calculate_onboarding_progress(onboarding.sessions) IS 'How far a journey is, in percent: a quarter for each step that is done';

-- SECURITY DEFINER because a visitor may not look a lead up by its address.
CREATE FUNCTION ingest.link_session() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.lead_id := (
        SELECT id FROM marketing.leads
        WHERE email = lower(btrim(NEW.business_data ->> 'email', E' \t\r\n')) AND deleted_at IS NULL
    );
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.link_session() IS 'Trigger: link a session to the lead whose address is in its business_data';

CREATE TRIGGER link BEFORE INSERT OR UPDATE OF business_data ON onboarding.sessions FOR EACH ROW
WHEN (NEW.lead_id IS NULL AND NEW.business_data ->> 'email' IS NOT NULL) EXECUTE FUNCTION ingest.link_session();

-- SECURITY DEFINER because a visitor may not change another's session. Written to business_data, so that the trigger
-- above links it.
CREATE FUNCTION ingest.link_sessions_of_lead() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE onboarding.sessions SET business_data = business_data
    WHERE lower(business_data ->> 'email') = NEW.email AND lead_id IS NULL;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.link_sessions_of_lead() IS 'Trigger: link the sessions that named a lead''s address before it was a lead';

CREATE TRIGGER link_sessions AFTER INSERT ON marketing.leads
FOR EACH ROW EXECUTE FUNCTION ingest.link_sessions_of_lead();

CREATE FUNCTION ingest.first_step_left(session onboarding.sessions) RETURNS onboarding.step
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN session.business_info_completed_at IS NULL THEN 'business_info'
        WHEN session.whatsapp_integration_completed_at IS NULL THEN 'whatsapp_integration'
        WHEN session.bot_setup_completed_at IS NULL THEN 'bot_setup'
        WHEN session.testing_completed_at IS NULL THEN 'testing'
        ELSE 'complete'
    END::onboarding.step
$$;
COMMENT ON FUNCTION ingest.first_step_left(onboarding.sessions) IS 'The first step that is not done; complete: none is left';

-- SECURITY DEFINER as what it calls is nobody else's to call.
CREATE FUNCTION ingest.advance_session() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    next_step constant onboarding.step := ingest.first_step_left(NEW);
    -- Whether a step was done, whether anything was, and what it was before; OLD is not there for an INSERT.
    stepped boolean := true;
    moved boolean := true;
    status_before onboarding.session_status := 'not_started'::onboarding.session_status;
    step_before onboarding.step := 'business_info'::onboarding.step;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        status_before := OLD.status;
        step_before := OLD.current_step;
        stepped := (NEW.business_info_completed_at, NEW.whatsapp_integration_completed_at,
                NEW.bot_setup_completed_at, NEW.testing_completed_at)
            IS DISTINCT FROM (OLD.business_info_completed_at, OLD.whatsapp_integration_completed_at,
                OLD.bot_setup_completed_at, OLD.testing_completed_at);
        moved := stepped OR NEW.current_step <> OLD.current_step
            -- What was entered; taking it out, as erasure does, is nobody's going on.
            OR (NEW.business_data <> OLD.business_data AND NEW.business_data <> '{}')
            OR (NEW.whatsapp_config <> OLD.whatsapp_config AND NEW.whatsapp_config <> '{}')
            OR (NEW.bot_config <> OLD.bot_config AND NEW.bot_config <> '{}');
        IF moved AND NEW.last_activity_at = OLD.last_activity_at THEN
            NEW.last_activity_at := now();
        END IF;
    END IF;
    -- Whoever names the step to go on with is believed, but for the end, which is reached by doing all of them.
    IF (stepped AND NEW.current_step = step_before) OR NEW.current_step = 'complete' THEN
        NEW.current_step := next_step;
    END IF;
    NEW.progress_percentage := public.calculate_onboarding_progress(NEW);
    IF next_step = 'complete' THEN
        NEW.current_step := 'complete';
        NEW.status := 'completed';
        -- Another transaction may have begun later, started the session and ended before.
        NEW.completed_at := coalesce(NEW.completed_at, greatest(NEW.started_at, now()));
    ELSE
        NEW.completed_at := NULL;
        IF NEW.status = 'completed' THEN
            NEW.status := CASE WHEN status_before = 'abandoned' THEN status_before
                ELSE 'in_progress'::onboarding.session_status END;
        END IF;
        IF NEW.status = 'not_started' AND NEW.progress_percentage > 0 THEN
            NEW.status := 'in_progress';
        END IF;
        IF TG_OP = 'UPDATE' AND moved AND NEW.status = status_before AND NEW.status IN ('not_started', 'abandoned') THEN
            -- Who comes back goes on.
            NEW.status := 'in_progress';
            NEW.abandoned_at := NULL;
        END IF;
    END IF;
    IF NEW.status <> 'not_started' THEN
        NEW.started_at := coalesce(
            NEW.started_at, least(NEW.completed_at, NEW.abandoned_at, NEW.business_info_completed_at, now())
        );
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.advance_session() IS
    'Trigger: a step that is done moves the session to the next, sets its progress and, after the last, completes it';

CREATE TRIGGER progress BEFORE INSERT OR UPDATE ON onboarding.sessions
FOR EACH ROW EXECUTE FUNCTION ingest.advance_session();

-- SECURITY DEFINER because who may add an activity need not be able to change the session.
CREATE FUNCTION ingest.note_activity() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE onboarding.sessions SET
        last_activity_at = NEW.created_at,
        status = CASE status WHEN 'not_started' THEN 'in_progress' ELSE status END
    WHERE id = NEW.session_id AND status <> 'completed' AND last_activity_at < NEW.created_at;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.note_activity() IS 'Trigger: an activity is what keeps its session from being abandoned';

CREATE TRIGGER note_activity AFTER INSERT ON onboarding.step_activities
FOR EACH ROW EXECUTE FUNCTION ingest.note_activity();

CREATE FUNCTION public.abandon_inactive_sessions() RETURNS int
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    abandoned int;
BEGIN
    UPDATE onboarding.sessions SET status = 'abandoned', abandoned_at = now()
    WHERE status = 'in_progress' AND last_activity_at < now() - interval '2 hours';
    GET DIAGNOSTICS abandoned = ROW_COUNT;
    RETURN abandoned;
END
$$;
COMMENT ON FUNCTION public.abandon_inactive_sessions() IS
    'Mark the sessions in progress in which nothing was done for two hours; how many they were';


-- Ids that are nobody's

-- The same rule as the collector's for ids that are nobody's.
CREATE FUNCTION ingest.is_placeholder_word(word text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT bare ~ '^0*$'
        OR bare IN (
            'null', 'undefined', 'none', 'nil', 'nan', 'na', 'void', 'infinity', 'inf', '∞', 'dbnull', 'snil', 'vnil', 'dnil',
            'optionalnil', 'true', 'false', 'empty', 'blank', 'missing', 'unset', 'notset', 'notavailable',
            'notprovided', 'notspecified', 'notapplicable', 'notdefined',
            'anonymous', 'anonymoususer', 'guest', 'guestuser', 'unknown', 'unknownuser', 'unidentified',
            'nouser', 'noid', 'notauthenticated', 'unauthenticated', 'notloggedin', 'loggedout', 'default',
            'placeholder', 'id', 'uid', 'uuid', 'guid', 'userid', 'username', 'anonymousid', 'anonid', 'sessionid',
            'distinctid', 'deviceid', 'visitorid', 'clientid', 'customerid', 'accountid', 'email', 'emailaddress',
            'yourid', 'youruserid', 'string', 'object', 'ffffffffffffffffffffffffffffffff'
        )
        OR word = '-1'
        OR bare = ANY (string_to_array(
            lower(regexp_replace(
                normalize(coalesce(current_setting('app.placeholder_ids', true), ''), NFKC),
                '[\u0001-\u002b\u002d-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a0]+', '', 'g'
            )), ','
        ))
    FROM (SELECT lower(regexp_replace(
        word,
        '[\u0001-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]+',
        '', 'g'
    ))) AS each (bare)
$$;
COMMENT ON FUNCTION ingest.is_placeholder_word(text) IS
    'Whether one word is nobody''s id, such as null, undefined or 0; app.placeholder_ids, with commas between them, names more';

CREATE FUNCTION ingest.is_placeholder_id(id text) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plain text := id;
BEGIN
    IF id IS NULL THEN
        RETURN NULL;
    END IF;
    IF ingest.is_placeholder_word(id)
        OR id ~* '^[+-]?[19](\.[019]{0,20})?e\+?(9[019]{2}|[19][019]{3,7})$'
    THEN
        RETURN true;
    END IF;
    IF id !~ '[\u0009-\u000d ,;|%[{$#<]|[^\u0001-\u007f]' THEN
        RETURN false;
    END IF;
    IF char_length(id) <= 255 AND id ~ '%|[^\u0001-\u007f]' THEN
        FOR encoded IN 1..2 LOOP
            plain := normalize(ingest.url_decoded(replace(plain, '%00', ' ')), NFKC);
        END LOOP;
    END IF;
    IF plain ~ '^[\u0009-\u000d ,;|]*[[{$#<]' THEN
        plain := regexp_replace(plain, '\[object [A-Za-z]*\]|\{\{[^{}]*\}\}|[$#]\{[^{}]*\}|<%[^%]*%>', ' ', 'g');
    END IF;
    RETURN (
        SELECT bool_and(ingest.is_placeholder_word(part) OR (
            SELECT bool_and(ingest.is_placeholder_word(word))
            FROM regexp_split_to_table(part, '[\u0009-\u000d \u0085\u1680\u2028\u2029]+') AS word
        ))
        FROM regexp_split_to_table(plain, '[,;|]') AS part
    );
END
$$;
COMMENT ON FUNCTION ingest.is_placeholder_id(text) IS
    'Whether this is an id that is nobody''s: a word such as null, undefined or 0, several of them, a template that was not filled in, or no finite number';

CREATE FUNCTION ingest.known_id(id text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN NOT ingest.is_placeholder_id(id) THEN id END
$$;
COMMENT ON FUNCTION ingest.known_id(text) IS 'The id, NULL where it is nobody''s';


-- Addresses and sources

-- The same rules as the collector's; docs/sources.md is their table.

CREATE FUNCTION ingest.url_pieces(encoded text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    -- A character of UTF-8 off ASCII, a byte, a percent sign of neither, and what is between.
    SELECT match[1] FROM regexp_matches(encoded,
        '(?i)(%c[2-9a-f]%[89ab][0-9a-f]|%d[0-9a-f]%[89ab][0-9a-f]|%e0%[ab][0-9a-f]%[89ab][0-9a-f]|'
        || '%e[1-9a-cef](?:%[89ab][0-9a-f]){2}|%ed%[89][0-9a-f]%[89ab][0-9a-f]|%f0%[9ab][0-9a-f](?:%[89ab][0-9a-f]){2}|'
        || '%f[1-3](?:%[89ab][0-9a-f]){3}|%f4%8[0-9a-f](?:%[89ab][0-9a-f]){2}|%[0-9a-f]{2}|%|[^%]+)', 'g'
    ) AS match
$$;
COMMENT ON FUNCTION ingest.url_pieces(text) IS 'A text with percent sequences, apart: each character that they encode, each other sequence, and what is between';

CREATE FUNCTION ingest.url_decoded(encoded text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    decoded text := '';
    piece text;
BEGIN
    IF position('%' IN encoded) = 0 THEN
        RETURN encoded;
    END IF;
    FOR piece IN SELECT ingest.url_pieces(encoded) LOOP
        decoded := decoded || CASE
            WHEN left(piece, 1) <> '%' OR piece = '%' THEN piece
            WHEN piece = '%00' OR piece ~ '^%[89A-Fa-f].$' THEN U&'\FFFD'
            ELSE convert_from(decode(replace(piece, '%', ''), 'hex'), 'UTF8')
        END;
    END LOOP;
    RETURN decoded;
END
$$;
COMMENT ON FUNCTION ingest.url_decoded(text) IS 'A text without percent sequences; what is no UTF-8, and NUL, is U+FFFD';

CREATE FUNCTION ingest.tidy(words text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN length(words) <= 255 AND words ~ '^[!-~]+( [!-~]+)*$' THEN words ELSE nullif(rtrim(left(btrim(regexp_replace(left(words, 4096),
        '[\u0001-\u0020\u007f-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]+', ' ', 'g'
    ), ' '), 255), ' '), '') END
$$;
COMMENT ON FUNCTION ingest.tidy(text) IS 'The text without blanks around it, those inside as one space, at most 255 characters; NULL if it is blank';

-- Lower case is that of the database's locale; one that knows ASCII alone leaves other letters as they are.
CREATE FUNCTION ingest.folded(words text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ingest.tidy(CASE WHEN words ~ '[^\u0001-\u007f]'
        THEN normalize(lower(left(normalize(left(words, 512), NFKC), 512)), NFKC) ELSE lower(left(words, 512)) END)
$$;
COMMENT ON FUNCTION ingest.folded(text) IS 'What people type in any case and width, such as a campaign''s source, in one form';

CREATE FUNCTION ingest.punycode(label text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    digits constant text := 'abcdefghijklmnopqrstuvwxyz0123456789';
    points constant int[] := ARRAY(
        SELECT ascii(letter) FROM regexp_split_to_table(label, '') WITH ORDINALITY AS each (letter, place) ORDER BY place
    );
    encoded text := regexp_replace(label, '[^\u0001-\u007f]', '', 'g');
    basic constant int := length(encoded);
    handled int := basic;
    point int;
    next_point int := 128;
    delta int := 0;
    bias int := 72;
    rest int;
    threshold int;
    base int;
BEGIN
    -- RFC 3492, section 6.3
    IF basic > 0 THEN
        encoded := encoded || '-';
    END IF;
    WHILE handled < cardinality(points) LOOP
        point := (SELECT min(each) FROM unnest(points) AS each WHERE each >= next_point);
        delta := delta + (point - next_point) * (handled + 1);
        next_point := point;
        FOREACH point IN ARRAY points LOOP
            IF point < next_point THEN
                delta := delta + 1;
            ELSIF point = next_point THEN
                rest := delta;
                base := 36;
                LOOP
                    threshold := least(greatest(base - bias, 1), 26);
                    EXIT WHEN rest < threshold;
                    encoded := encoded || substr(digits, threshold + (rest - threshold) % (36 - threshold) + 1, 1);
                    rest := (rest - threshold) / (36 - threshold);
                    base := base + 36;
                END LOOP;
                encoded := encoded || substr(digits, rest + 1, 1);
                delta := delta / CASE WHEN handled = basic THEN 700 ELSE 2 END;
                delta := delta + delta / (handled + 1);
                base := 0;
                WHILE delta > 455 LOOP
                    delta := delta / 35;
                    base := base + 36;
                END LOOP;
                bias := base + 36 * delta / (delta + 38);
                delta := 0;
                handled := handled + 1;
            END IF;
        END LOOP;
        delta := delta + 1;
        next_point := next_point + 1;
    END LOOP;
    RETURN encoded;
END
$$;
COMMENT ON FUNCTION ingest.punycode(text) IS 'A label of a domain name in ASCII, without xn-- in front';

CREATE FUNCTION ingest.ipv6_form(address text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    form constant text := host(address::inet);
BEGIN
    -- Of an IPv4 address in it there are as many forms as there are libraries.
    RETURN CASE WHEN family(address::inet) = 6 THEN CASE WHEN form LIKE '%.%' THEN lower(address) ELSE form END END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION ingest.ipv6_form(text) IS 'An IPv6 address in one form; NULL if it is none';

CREATE FUNCTION ingest.host_form(place text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    form text := place;
BEGIN
    IF length(place) > 512 OR (place LIKE '%\%%' AND place !~ '^([^%]|%[0-9A-Fa-f]{2})+$') THEN
        RETURN NULL;
    END IF;
    form := ingest.url_decoded(form);
    IF form ~ '^\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{0,5})?$' THEN
        RETURN ingest.ipv6_form(substring(form FROM '^\[([^\]]*)\]'));
    END IF;
    IF form ~ '[^\u0001-\u007f]' THEN
        form := regexp_replace(regexp_replace(form, '[\u3002\uff0e\uff61]', '.', 'g'), '[\u00ad\u200b\u2060\ufeff]', '', 'g');
        form := normalize(lower(normalize(form, NFKC)), NFKC);
    END IF;
    IF form !~ '^[^\u0001-\u0020#%/:<>?@[\\\]^|\u007f\ufffd]{1,253}(:[0-9]{0,5})?$' THEN
        RETURN NULL;
    END IF;
    form := lower(rtrim(substring(form FROM '^[^:]+'), '.'));
    IF form ~ '[^\u0001-\u007f]' THEN
        IF length(regexp_replace(form, '[\u0001-\u007f]+', '', 'g')) > 32 THEN
            RETURN NULL;
        END IF;
        form := (
            SELECT string_agg(
                CASE WHEN label ~ '[^\u0001-\u007f]' THEN 'xn--' || ingest.punycode(label) ELSE label END, '.' ORDER BY place_in
            )
            FROM string_to_table(form, '.') WITH ORDINALITY AS each (label, place_in)
        );
    END IF;
    form := regexp_replace(form, '^www\.(?=.*\.)', '');
    RETURN CASE WHEN length(form) BETWEEN 1 AND 253 THEN form END;
END
$$;
COMMENT ON FUNCTION ingest.host_form(text) IS 'A host, or host:port, in one form: lower case, ASCII, without port and www.; NULL if it is none';

CREATE FUNCTION ingest.path_form(path text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pieces text[] := '{}'::text[];
    plain text := '';
    piece text;
    form text;
    kept text[] := '{}'::text[];
BEGIN
    IF length(path) <= 4096 AND path ~ '^(/[A-Za-z0-9_~!$&''()*+,;=:@-][.A-Za-z0-9_~!$&''()*+,;=:@-]*)*/?$' THEN
        RETURN coalesce(nullif(rtrim(path, '/'), ''), '/');
    END IF;
    FOR piece IN SELECT ingest.url_pieces(path) LOOP
        IF length(piece) > 3 AND left(piece, 1) = '%' THEN
            plain := plain || convert_from(decode(replace(piece, '%', ''), 'hex'), 'UTF8');
        ELSIF left(piece, 1) <> '%' THEN
            plain := plain || piece;
        ELSIF piece <> '%' AND piece !~ '^%([89A-Fa-f].|00)$'
            AND convert_from(decode(substr(piece, 2), 'hex'), 'UTF8') ~ '^[.A-Za-z0-9_~!$&''()*+,;=:@-]$' THEN
            plain := plain || convert_from(decode(substr(piece, 2), 'hex'), 'UTF8');
        ELSE
            -- What combines with the letter before must not take one of a sequence.
            pieces := pieces || ARRAY[plain, CASE WHEN piece = '%' THEN '%25' ELSE upper(piece) END];
            plain := '';
        END IF;
    END LOOP;
    form := (SELECT string_agg(CASE WHEN each ~ '[^\u0001-\u007f]' THEN normalize(each, NFC) ELSE each END, '' ORDER BY place)
        FROM unnest(pieces || plain) WITH ORDINALITY AS known (each, place));
    FOR piece IN SELECT DISTINCT match[1] FROM regexp_matches(form, '([\u0001-\u0020"#<>?\[\\\]^`{|}\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff\ufeff\ufff0-\ufffb\ufffe\uffff])', 'g') AS match LOOP
        form := replace(form, piece, upper(regexp_replace(encode(convert_to(piece, 'UTF8'), 'hex'), '(..)', '%\1', 'g')));
    END LOOP;
    FOREACH piece IN ARRAY string_to_array(form, '/') LOOP
        IF piece = '..' THEN
            kept := kept[:cardinality(kept) - 1];
        ELSIF piece NOT IN ('', '.') THEN
            kept := kept || piece;
        END IF;
    END LOOP;
    form := '/' || array_to_string(kept, '/');
    IF length(form) > 4096 THEN
        form := coalesce(nullif(rtrim(regexp_replace(left(form, 4096), '%[0-9A-F]?$', ''), './'), ''), '/');
    END IF;
    RETURN form;
END
$$;
COMMENT ON FUNCTION ingest.path_form(text) IS 'A path in one form: what is percent-encoded, without . and .., and no slash doubled or at the end';

CREATE TYPE ingest.address AS (host text, path text, query text);

CREATE FUNCTION ingest.read_url(url text) RETURNS ingest.address
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    spaces constant text := E'\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x20';
    trimmed constant text := split_part(translate(btrim(left(url, 65536), spaces), E'\t\r\n', ''), '#', 1);
    hierarchy text := left(split_part(trimmed, '?', 1), 4096);
    found ingest.address;
    rest text;
    scheme text;
BEGIN
    found.query := nullif(substr(trimmed, length(split_part(trimmed, '?', 1)) + 2), '');
    IF hierarchy ~* '^(https?:|/)' THEN
        -- Browsers take a backslash for a slash: what follows one is no host.
        hierarchy := replace(hierarchy, '\', '/');
    END IF;
    scheme := substring(hierarchy FROM '^[A-Za-z][A-Za-z0-9+.-]{0,31}:');
    rest := substr(hierarchy, coalesce(length(scheme), 0) + 1);
    IF left(rest, 2) <> '//' THEN
        IF scheme IS NULL AND left(rest, 1) = '/' THEN
            found.path := ingest.path_form(rest);
        ELSIF hierarchy <> '' THEN
            found.query := NULL;
        END IF;
        RETURN found;
    END IF;
    rest := substr(rest, 3);
    IF left(rest, 1) IN ('', '/') THEN
        IF lower(scheme) = 'file:' AND rest <> '' THEN
            found.path := ingest.path_form(rest);
        ELSE
            found.query := NULL;
        END IF;
        RETURN found;
    END IF;
    found.host := ingest.host_form(regexp_replace(split_part(rest, '/', 1), '^.*@', ''));
    IF found.host IS NULL THEN
        RETURN NULL::ingest.address;
    END IF;
    found.path := ingest.path_form('/' || substr(rest, length(split_part(rest, '/', 1)) + 2));
    RETURN found;
END
$$;
COMMENT ON FUNCTION ingest.read_url(text) IS 'Host, path and query of a URL, each in one form but the query; NULLs if it is none';

CREATE FUNCTION ingest.url_parameters(query text) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    -- Of several with one name, or of several clicks, the first that is not blank.
    SELECT coalesce(jsonb_object_agg(name, value), '{}') FROM (
        SELECT DISTINCT ON (name) name, value FROM (
            SELECT CASE WHEN clicks ? given THEN 'click' ELSE replace(given, '%5f', '_') END AS name, place,
                CASE WHEN clicks ? given AND told IS NOT NULL THEN clicks ->> given ELSE told END AS value
            FROM (
                SELECT lower(match[1]) AS given, place,
                    ingest.tidy(ingest.url_decoded(replace(left(match[2], 3072), '+', ' '))) AS told,
                    '{"gclid": "google", "gbraid": "google", "wbraid": "google", "dclid": "google", "fbclid": "facebook",
            "igshid": "instagram", "msclkid": "bing", "ttclid": "tiktok", "twclid": "twitter", "li_fat_id":
            "linkedin", "yclid": "yandex", "epik": "pinterest", "rdt_cid": "reddit", "sccid": "snapchat"}'::jsonb AS clicks
                FROM regexp_matches('&' || query,
                    '(?i)&(?:amp;)?(utm(?:_|%5f)(?:source|medium|campaign|term|content)|ref|source|'
                    || 'gclid|gbraid|wbraid|dclid|fbclid|igshid|msclkid|ttclid|twclid|li_fat_id|yclid|epik|rdt_cid|sccid)=([^&]+)', 'g'
                ) WITH ORDINALITY AS known (match, place) WHERE place <= 20
            ) AS each
        ) AS named WHERE value IS NOT NULL ORDER BY name, place
    ) AS first
$$;
COMMENT ON FUNCTION ingest.url_parameters(text) IS 'What a query tells of where a visit came from: {parameter: value}, and as click the network whose click id it has';

CREATE FUNCTION ingest.hint_of(parameters jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(ingest.folded(parameters ->> 'ref'), ingest.folded(parameters ->> 'source'), parameters ->> 'click')
$$;
COMMENT ON FUNCTION ingest.hint_of(jsonb) IS 'What an address says of its source beside a campaign: ref or source, or the network of a click id';

CREATE FUNCTION ingest.without_credentials(addresses text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN position('@' IN addresses) = 0 THEN addresses
        ELSE regexp_replace(addresses, '((?:^\s*|:)[/\\]{2,8})(?:[^/?#"\\@ ]*@)+', '\1', 'g') END
$$;
COMMENT ON FUNCTION ingest.without_credentials(text) IS 'A text without the user names and passwords in the URLs in it';

CREATE FUNCTION ingest.site_of(host text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN host ~ '^[0-9.]+$|:' THEN host ELSE coalesce(substring(host FROM
        '([^.]+\.(?:(?:ac|co|com|edu|gob|gov|go|gouv|id|ltd|me|mil|net|ne|nom|or|org|plc|sch|web)\.[a-z]{2}|'
        || 'github\.io|gitlab\.io|netlify\.app|vercel\.app|pages\.dev|workers\.dev|web\.app|firebaseapp\.com|herokuapp\.com|onrender\.com|fly\.dev|azurewebsites\.net|azurestaticapps\.net|amplifyapp\.com|cloudfront\.net|myshopify\.com|blogspot\.com|wordpress\.com|tumblr\.com|wixsite\.com|weebly\.com|webflow\.io|framer\.website|notion\.site|carrd\.co|substack\.com|medium\.com|hashnode\.dev|readthedocs\.io|bitbucket\.io|glitch\.me|repl\.co|replit\.app|surge\.sh|ngrok\.io|ngrok\-free\.app|'
        || '[^.]+))$'
    ), host) END
$$;
COMMENT ON FUNCTION ingest.site_of(text) IS 'The domain of a host that somebody has registered, as far as that can be told without a list of all suffixes';

CREATE FUNCTION ingest.is_own_host(host text, page_host text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(host = page_host OR ingest.site_of(host) = ingest.site_of(page_host), false) OR EXISTS (
        SELECT FROM string_to_table(current_setting('app.own_hosts', true), ',') AS named,
            ingest.host_form(btrim(named)) AS own
        WHERE host = own OR right(host, length(own) + 1) = '.' || own
    )
$$;
COMMENT ON FUNCTION ingest.is_own_host(text, text) IS 'Whether a host is of the site that the page is of, or below one of app.own_hosts, which has commas between them';

CREATE FUNCTION ingest.known_sources() RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '{"baidu.com": "baidu", "bing.com": "bing", "bsky.app": "bluesky", "go.bsky.app": "bluesky",
        "xyz.blueskyweb.app": "bluesky", "search.brave.com": "brave", "chatgpt.com": "chatgpt",
        "chat.openai.com": "chatgpt", "com.openai.chatgpt": "chatgpt", "claude.ai": "claude",
        "copilot.microsoft.com": "copilot", "discord.com": "discord", "discord.gg": "discord", "discordapp.com":
        "discord", "com.discord": "discord", "duckduckgo.com": "duckduckgo", "com.duckduckgo.mobile.android":
        "duckduckgo", "ecosia.org": "ecosia", "facebook.com": "facebook", "fb.com": "facebook", "fb.me":
        "facebook", "com.facebook.katana": "facebook", "com.facebook.lite": "facebook", "gemini.google.com":
        "gemini", "github.com": "github", "mail.google.com": "gmail", "com.google.android.gm": "gmail",
        "googleadservices.com": "google", "googlesyndication.com": "google", "g.doubleclick.net": "google",
        "com.google.android.googlequicksearchbox": "google", "news.ycombinator.com": "hackernews",
        "instagram.com": "instagram", "com.instagram.android": "instagram", "line.me": "line",
        "jp.naver.line.android": "line", "linkedin.com": "linkedin", "lnkd.in": "linkedin",
        "com.linkedin.android": "linkedin", "mastodon.social": "mastodon", "org.joinmastodon.android":
        "mastodon", "medium.com": "medium", "messenger.com": "messenger", "com.facebook.orca": "messenger",
        "naver.com": "naver", "outlook.com": "outlook", "outlook.live.com": "outlook", "outlook.office.com":
        "outlook", "outlook.office365.com": "outlook", "perplexity.ai": "perplexity",
        "ai.perplexity.app.android": "perplexity", "pin.it": "pinterest", "com.pinterest": "pinterest",
        "producthunt.com": "producthunt", "quora.com": "quora", "reddit.com": "reddit", "redd.it": "reddit",
        "com.reddit.frontpage": "reddit", "slack.com": "slack", "com.slack": "slack", "snapchat.com":
        "snapchat", "com.snapchat.android": "snapchat", "stackoverflow.com": "stackoverflow", "startpage.com":
        "startpage", "substack.com": "substack", "telegram.org": "telegram", "t.me": "telegram", "telegram.me":
        "telegram", "org.telegram.messenger": "telegram", "org.telegram.plus": "telegram", "threads.net":
        "threads", "threads.com": "threads", "com.instagram.barcelona": "threads", "tiktok.com": "tiktok",
        "com.zhiliaoapp.musically": "tiktok", "twitter.com": "twitter", "x.com": "twitter", "t.co": "twitter",
        "com.twitter.android": "twitter", "vk.com": "vk", "vk.ru": "vk", "com.vkontakte.android": "vk",
        "whatsapp.com": "whatsapp", "wa.me": "whatsapp", "com.whatsapp": "whatsapp", "search.yahoo.co.jp":
        "yahoo", "ya.ru": "yandex", "youtube.com": "youtube", "youtu.be": "youtube",
        "com.google.android.youtube": "youtube"}'::jsonb
$$;
COMMENT ON FUNCTION ingest.known_sources() IS 'Hosts of well-known sources, with their names';

CREATE FUNCTION ingest.name_of_host(host text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known constant jsonb := ingest.known_sources();
    rest text := host;
BEGIN
    IF position('.' IN host) = 0 THEN
        RETURN host;
    END IF;
    WHILE rest <> '' LOOP
        IF known ? rest THEN
            RETURN known ->> rest;
        END IF;
        rest := substr(rest, nullif(position('.' IN rest), 0) + 1);
    END LOOP;
    RETURN coalesce(substring(host FROM
        '^(?:.*\.)?(amazon|ebay|google|pinterest|yahoo|yandex)\.(?:com|(?:com?\.)?[a-z]{2})$'
    ), host);
END
$$;
COMMENT ON FUNCTION ingest.name_of_host(text) IS 'The well-known source whose host it is, else the host';

CREATE FUNCTION ingest.host_in(words text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ingest.host_form(substring(words FROM
        '^(?:(?:https?:|android-app:|ios-app:)?//)?(?:[^/?#@\\ ]*@)*'
        || '([^/?#@:\\ .]+(?:\.[^/?#@:\\ .]+)*\.(?:[a-z][a-z0-9-]*[a-z0-9]|[^\u0001-\u007f]+)\.?)(?::[0-9]{0,5})?(?:[/?#].*)?$'
    ))
$$;
COMMENT ON FUNCTION ingest.host_in(text) IS 'The host of a source that is given as one, or as a URL; NULL: it is a word';

CREATE FUNCTION ingest.source_name(words text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(ingest.name_of_host(ingest.host_in(words)), '{"fb": "facebook", "ig": "instagram", "insta": "instagram", "yt": "youtube", "linked in": "linkedin",
        "you tube": "youtube", "chat gpt": "chatgpt", "hacker news": "hackernews", "product hunt":
        "producthunt", "stack overflow": "stackoverflow", "duck duck go": "duckduckgo"}'::jsonb ->> words, words)
$$;
COMMENT ON FUNCTION ingest.source_name(text) IS 'A campaign''s source, folded, by its well-known name or its host, if it is one of these';

CREATE FUNCTION ingest.source_of(utm_source text, hint text, referrer text, came_from text, page_host text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN utm_source IS NOT NULL AND ingest.is_own_host(ingest.host_in(utm_source), page_host) IS NOT TRUE
            THEN ingest.source_name(utm_source)
        WHEN ingest.is_own_host(host, page_host) THEN NULL
        WHEN hint IS NOT NULL AND ingest.is_own_host(ingest.host_in(hint), page_host) IS NOT TRUE
            THEN ingest.source_name(hint)
        ELSE ingest.name_of_host(host)
    END
    FROM (SELECT CASE WHEN referrer ~* '^\s*(https?:|android-app:|ios-app:)?[/\\]{2}' THEN came_from END) AS page (host)
$$;
COMMENT ON FUNCTION ingest.source_of(text, text, text, text, text) IS 'What brought a visitor: the campaign''s source, else a hint of the address, else the referrer''s host; NULL: nothing did, or the site itself';

CREATE FUNCTION ingest.text_member(object jsonb, name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN jsonb_typeof(object -> name) = 'string' THEN nullif(object ->> name, '') END
$$;
COMMENT ON FUNCTION ingest.text_member(jsonb, text) IS 'A member of a JSON object, if it is a text that is not empty';

CREATE FUNCTION ingest.page_place(page jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(concat(
        regexp_replace(ingest.text_member(page, 'path'), '^(?!/)', '/'),
        -- By itself, without its ?, it is what somebody looked for.
        CASE WHEN ingest.text_member(page, 'path') IS NOT NULL OR page ->> 'search' LIKE '?%'
            THEN regexp_replace(ingest.text_member(page, 'search'), '^(?!\?)', '?') END
    ), '')
$$;
COMMENT ON FUNCTION ingest.page_place(jsonb) IS 'The path and search of a page in Segment''s spec, as a relative address';

CREATE FUNCTION ingest.campaign_field(context jsonb, name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN jsonb_typeof(context #> ARRAY['campaign', name]) IN ('string', 'number')
        THEN context #>> ARRAY['campaign', name] END
$$;
COMMENT ON FUNCTION ingest.campaign_field(jsonb, text) IS 'A field of the campaign in a context, if it is text or a number';


-- Events of plain INSERTs

CREATE FUNCTION ingest.device_of(user_agent text) RETURNS analytics.device_type
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        -- As the collector reads user agents.
        WHEN lower(user_agent) ~ (
            '(?<!cu)(?<!tal)(?<!tur)(?<!ab)(?<!\yro)bots?\y|\yrobot/|\ybot[-_/]|crawl(?:er|ers|ing)?\y|spiders?\y|'
            || 'slurp\y|\ygoogleother\y|\ygoogle-[a-z]|\y(?:apis|mediapartners|feedfetcher|appengine)-google\y|'
            || '\ygoogle (?:favicon|web)\y|\ygoogleproducer\y|\ygemini-|\y(?:chatgpt|claude|perplexity|mistralai)-(?:user|web|agent|search)|'
            || '\y(?:anthropic|cohere)-ai\y|\yfacebook(?:externalhit|catalog)\y|\ymeta-external|\ymeta-webindexer\y|'
            || '\ybingpreview\y|\yia_archiver\y|archiver\y|indexer\y|scrape[rd]?\y|scrapy\y|\yheritrix\y|\ynutch\y|'
            || '\yhttrack\y|^whatsapp/|\yskypeuripreview\y|\yvkshare\y|\yembedly\y|\yiframely\y|\yw3c[-_]|\yscreaming frog\y|'
            || '\yyeti/|\ydaum/|\ysogou (?:web|pic|inst)|\yqwantify\y|\ydiffbot\y|\yomgili|\ytimpi|\yflipboardproxy\y|'
            || '\yfeed(?:ly|burner|fetcher)\y|\yprerender\y|\yrendertron\y|\yyandex(?:images|video|media|blogs|favicons|webmaster|metrika|direct|market)|'
            || '\ypingdom|\ystatuscake\y|\ysite24x7\y|\ydatadog|\ynewrelic|\ycheckly\y|\ygtmetrix\y| ptst/|'
            || '\yspeedcurve\y|\ycatchpoint\y|\ydynatrace|\ythousandeyes\y|\ynodeping\y|\yfreshping\y|\ybetter ?(?:uptime|stack)|'
            || '\yuptime-?kuma|\yzgrab\y|\ymasscan\y|\ynmap\y|\ynuclei\y|\ycensys|\ynikto\y|\ysqlmap\y|\ywpscan\y|'
            || '\yinternet-?measurement\y|\(compatible;[^()]{0,250}\+https?://|headless|phantomjs|jsdom|lighthouse|puppeteer|playwright|selenium|webdriver|cypress/|healthcheck|health check|kube-probe|googlehc/|blackbox exporter|prometheus/'
        ) THEN 'bot'
        WHEN user_agent ~* '(ipad|tablet|playbook|silk|kindle)' THEN 'tablet'
        WHEN user_agent ~* '(iphone|ipod|mobi|phone)' THEN 'mobile'
        WHEN user_agent ~* 'android' THEN 'tablet'
        WHEN user_agent ~* '(windows|macintosh|x11|cros )' THEN 'desktop'
        ELSE 'other'
    END::analytics.device_type
$$;
COMMENT ON FUNCTION ingest.device_of(text) IS 'The kind of device behind a user agent, by its most telling words; the collector knows more of them';

CREATE FUNCTION ingest.is_made_ahead() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- As the collector does.
    SELECT coalesce(coalesce(
        ingest.request_header('Sec-Purpose'), ingest.request_header('Purpose'),
        ingest.request_header('X-Purpose'), ingest.request_header('X-Moz')
    ) ~* '(prefetch|prerender|preview)', false)
$$;
COMMENT ON FUNCTION ingest.is_made_ahead() IS
    'Whether PostgREST''s request was made by a browser ahead of time, for a page that perhaps nobody will see';

-- SECURITY DEFINER as what it calls is nobody else's to call.
CREATE FUNCTION ingest.enrich_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    agent constant text := left(NEW.user_agent, 512);
    address text;
    came_from text;
    page ingest.address;
    parameters jsonb;
    campaign_source text;
BEGIN
    NEW.user_id := ingest.known_id(left(NEW.user_id, 255));
    NEW.anonymous_id := ingest.known_id(left(NEW.anonymous_id, 255));
    NEW.session_id := ingest.known_id(left(coalesce(
        NEW.session_id, NEW.context ->> 'sessionId', NEW.context ->> 'session_id'
    ), 255));
    address := coalesce(
        nullif(NEW.url, ''), ingest.text_member(NEW.context -> 'page', 'url'),
        CASE WHEN NEW.type = 'page_view' THEN ingest.text_member(NEW.properties, 'url') END,
        ingest.page_place(NEW.context -> 'page'),
        CASE WHEN NEW.type = 'page_view' THEN ingest.page_place(NEW.properties) END
    );
    came_from := coalesce(
        nullif(NEW.referrer, ''),
        CASE WHEN NEW.type = 'page_view' AND coalesce(NEW.url, ingest.text_member(NEW.context -> 'page', 'url'), '') = ''
            THEN ingest.text_member(NEW.properties, 'referrer') END,
        ingest.text_member(NEW.context -> 'page', 'referrer')
    );
    IF address IS NOT NULL THEN
        page := ingest.read_url(address);
        parameters := ingest.url_parameters(page.query);
        NEW.url := ingest.without_credentials(left(address, 4096));
        NEW.page_host := coalesce(NEW.page_host, page.host);
        NEW.page_path := coalesce(NEW.page_path, page.path);
    END IF;
    IF came_from IS NOT NULL THEN
        NEW.referrer := ingest.without_credentials(left(came_from, 4096));
        NEW.referrer_host := coalesce(NEW.referrer_host, (ingest.read_url(left(came_from, 4096))).host);
    END IF;
    IF parameters IS NOT NULL OR NEW.context ? 'campaign'
        OR num_nonnulls(NEW.utm_source, NEW.utm_medium, NEW.utm_campaign, NEW.utm_term, NEW.utm_content) > 0 THEN
        campaign_source := coalesce(
            ingest.folded(NEW.utm_source), ingest.folded(ingest.campaign_field(NEW.context, 'source')),
            ingest.folded(parameters ->> 'utm_source')
        );
        NEW.utm_source := ingest.source_name(campaign_source);
        NEW.utm_medium := coalesce(
            ingest.folded(NEW.utm_medium), ingest.folded(ingest.campaign_field(NEW.context, 'medium')),
            ingest.folded(parameters ->> 'utm_medium')
        );
        NEW.utm_campaign := coalesce(
            ingest.folded(NEW.utm_campaign), ingest.folded(ingest.campaign_field(NEW.context, 'name')),
            ingest.folded(parameters ->> 'utm_campaign')
        );
        NEW.utm_term := coalesce(
            ingest.tidy(NEW.utm_term), ingest.tidy(ingest.campaign_field(NEW.context, 'term')), parameters ->> 'utm_term'
        );
        NEW.utm_content := coalesce(
            ingest.tidy(NEW.utm_content), ingest.tidy(ingest.campaign_field(NEW.context, 'content')),
            parameters ->> 'utm_content'
        );
    END IF;
    NEW.page_host := left(NEW.page_host, 253);
    NEW.page_path := left(NEW.page_path, 4096);
    NEW.referrer_host := left(NEW.referrer_host, 253);
    IF NEW.source IS NULL AND num_nonnulls(campaign_source, parameters, NEW.referrer_host) > 0 THEN
        NEW.source := ingest.source_of(
            campaign_source, ingest.hint_of(parameters), NEW.referrer, NEW.referrer_host, NEW.page_host
        );
    END IF;
    NEW.source := left(NEW.source, 255);
    IF NEW.properties::text LIKE '%://%@%' THEN
        NEW.properties := ingest.without_credentials(NEW.properties::text)::jsonb;
    END IF;
    IF NEW.context::text LIKE '%://%@%' THEN
        NEW.context := ingest.without_credentials(NEW.context::text)::jsonb;
    END IF;
    NEW.user_agent := agent;
    NEW.device_type := CASE WHEN ingest.is_made_ahead() THEN 'bot' ELSE coalesce(NEW.device_type, ingest.device_of(agent)) END;
    NEW.browser := left(coalesce(NEW.browser, CASE
        WHEN agent ~ 'Edg' THEN 'Edge'
        WHEN agent ~ '(OPR|Opera)' THEN 'Opera'
        WHEN agent ~ '(Firefox|FxiOS)' THEN 'Firefox'
        WHEN agent ~ '(Chrome|CriOS)' THEN 'Chrome'
        WHEN agent ~ 'Safari' THEN 'Safari'
    END), 255);
    NEW.os := left(coalesce(NEW.os, CASE
        WHEN agent ~ 'Windows' THEN 'Windows'
        WHEN agent ~ '(iPhone|iPad|iPod)' THEN 'iOS'
        WHEN agent ~ 'Mac OS X' THEN 'Mac OS X'
        WHEN agent ~ 'Android' THEN 'Android'
        WHEN agent ~ 'CrOS' THEN 'Chrome OS'
        WHEN agent ~ 'Linux' THEN 'Linux'
    END), 255);
    NEW.region := left(NEW.region, 100);
    NEW.ip_address := ingest.stored_address(NEW.ip_address);
    IF ingest.as_address(NEW.context ->> 'ip') IS NOT NULL THEN
        NEW.context := jsonb_set(
            NEW.context, '{ip}', to_jsonb(host(ingest.stored_address(ingest.as_address(NEW.context ->> 'ip'))))
        );
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ingest.enrich_event() IS
    'Trigger: give an event of a plain INSERT what the collector would have given it, and the collector''s limits';

-- Rows of the collector have a batch: the condition costs a COPY nothing that can be measured.
CREATE TRIGGER enrich BEFORE INSERT ON analytics.events FOR EACH ROW
WHEN (NEW.batch_id IS NULL) EXECUTE FUNCTION ingest.enrich_event();

-- They have a journal of their own in the ledger, which no collector holds. Its row, locked to the end of the
-- transaction, is what makes two at once take turns.
CREATE FUNCTION public.process_pending_events() RETURNS int
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plain_sql constant uuid := 'b6b7a1c0-0d5e-4a7b-9f0e-70656e64696e'::uuid;
    -- So that one transaction stays short; the caller comes again.
    most constant int := 50000;
    ledger record;
    adopted int;
    touched date[];
BEGIN
    -- ON CONFLICT alone would use up a journal number at every call, and there are eight million.
    IF NOT EXISTS (SELECT FROM analytics.journals WHERE identity = plain_sql) THEN
        INSERT INTO analytics.journals (identity) VALUES (plain_sql) ON CONFLICT (identity) DO NOTHING;
    END IF;
    SELECT number, stored_through + 1 AS next_record INTO STRICT ledger
    FROM analytics.journals WHERE identity = plain_sql FOR UPDATE;

    WITH pending AS (
        SELECT created_at, id, ctid AS place FROM analytics.events WHERE batch_id IS NULL
        LIMIT most FOR UPDATE SKIP LOCKED
    ), numbered AS (
        -- Rows of one INSERT have one time. Where they lie tells, as a rule, in which order it had them.
        SELECT created_at, id, row_number() OVER (ORDER BY created_at, place) - 1 AS position FROM pending
    ), given AS (
        UPDATE analytics.events AS event
        SET batch_id = (ledger.number::bigint << 40) | ledger.next_record, batch_position = numbered.position
        FROM numbered WHERE (event.created_at, event.id) = (numbered.created_at, numbered.id)
        RETURNING (event.created_at AT TIME ZONE 'UTC')::date AS day
    )
    SELECT count(*)::int, array_agg(DISTINCT day) INTO adopted, touched FROM given;
    IF adopted = 0 THEN
        RETURN 0;
    END IF;
    UPDATE analytics.journals SET
        stored_through = ledger.next_record, events_stored = events_stored + adopted, updated_at = now()
    WHERE number = ledger.number;
    INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, days)
    VALUES (ledger.number, ledger.next_record, ledger.next_record, adopted, touched);
    RETURN adopted;
END
$$;
COMMENT ON FUNCTION public.process_pending_events() IS
    'Give rows of analytics.events that came by plain INSERT a batch and a row in the ledger, so that they are rolled up; '
    'how many, at most 50,000 a call';


-- Experiments

-- As the service computes it. The spellings are those that a uuid is read from.
CREATE FUNCTION experiments.canonical_id(id text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN id ~ '^(([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|\{([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}\})$'
        THEN id::uuid::text ELSE id END
$$;
COMMENT ON FUNCTION experiments.canonical_id(text) IS
    'The one form of a unit''s id: a UUID, however it is spelt, in lower case with dashes; any other id as it is';

-- The same in every language: the first 12 hex digits of sha256("<experiment id>:<salt>:<unit>"), the ids in lower
-- case, as a number, divided by 2^48.
CREATE FUNCTION experiments.bucket(experiment_id uuid, salt text, unit text) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ('x' || left(encode(sha256(convert_to(
        experiment_id::text || ':' || salt || ':' || unit, 'UTF8'
    )), 'hex'), 12))::bit(48)::bigint::numeric / 281474976710656
$$;
COMMENT ON FUNCTION experiments.bucket(uuid, text, text) IS
    'Where a unit falls in [0, 1), evenly and for ever. Salts: "traffic" and "percentage" decide who takes part, "variant" which variant';

CREATE FUNCTION experiments.choose_variant(
    experiment_id uuid, control_variant jsonb, test_variants jsonb, unit text
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH variants AS (
        SELECT variant ->> 'id' AS id, place,
            sum(coalesce((variant ->> 'weight')::numeric, 1)) OVER (ORDER BY place) AS reach,
            sum(coalesce((variant ->> 'weight')::numeric, 1)) OVER () AS total
        FROM jsonb_array_elements('[]' || control_variant || test_variants) WITH ORDINALITY AS each (variant, place)
    )
    SELECT id FROM variants
    WHERE experiments.bucket(experiment_id, 'variant', unit) * total < reach
    ORDER BY place LIMIT 1
$$;
COMMENT ON FUNCTION experiments.choose_variant(uuid, jsonb, jsonb, text) IS
    'The variant a unit falls into, in the order control, then tests, each as wide as its weight';

CREATE FUNCTION experiments.is_target(
    rules jsonb, experiment_id uuid, unit text, country text, device text, url text, attributes jsonb
) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        (NOT rules ? 'country' OR to_jsonb(country) <@ ('[]' || (rules -> 'country')))
        AND (NOT rules ? 'device' OR to_jsonb(device) <@ ('[]' || (rules -> 'device')))
        AND (NOT rules ? 'url' OR EXISTS (
            SELECT FROM jsonb_array_elements_text('[]' || (rules -> 'url')) AS pattern
            WHERE url LIKE replace(regexp_replace(pattern, '([\\%_])', '\\\1', 'g'), '*', '%')
        ))
        AND (NOT rules ? 'attributes' OR NOT EXISTS (
            SELECT FROM jsonb_each(rules -> 'attributes') AS wanted
            WHERE NOT coalesce((attributes -> wanted.key) = ANY (
                ARRAY(SELECT jsonb_array_elements('[]' || wanted.value))
            ), false)
        ))
        AND (NOT rules ? 'percentage'
            OR experiments.bucket(experiment_id, 'percentage', unit) * 100 < (rules ->> 'percentage')::numeric),
        false
    )
$$;
COMMENT ON FUNCTION experiments.is_target(jsonb, uuid, text, text, text, text, jsonb) IS
    'Whether a unit may take part by the targeting rules, in the grammar told at experiments.experiments.targeting_rules';

CREATE FUNCTION ingest.assign_unit(
    running experiments.experiments, person uuid, visit text, nation text, device text, url text, attributes jsonb,
    INOUT counted boolean, OUT chosen text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- A user is one unit on every device, a session is one unit: neither inherits from the other, as a browser may
    -- have many users and a flag is evaluated by its targeting key alone.
    unit constant text := coalesce(person::text, experiments.canonical_id(visit));
    own_row uuid;
BEGIN
    IF experiments.bucket(running.id, 'traffic', unit) * 100 < running.traffic_percentage
        AND experiments.is_target(running.targeting_rules, running.id, unit, nation, device, url, attributes)
    THEN
        chosen := experiments.choose_variant(running.id, running.control_variant, running.test_variants, unit);
    END IF;
    SELECT id INTO own_row FROM experiments.assignments
    WHERE experiment_id = running.id
        AND CASE WHEN person IS NOT NULL THEN user_id = person ELSE user_id IS NULL AND session_id = visit END;
    IF own_row IS NOT NULL THEN
        -- Whose session it is, for the results: known only where the user is proved.
        IF person IS NOT NULL AND visit IS NOT NULL AND current_setting('role') <> 'anon' THEN
            UPDATE experiments.assignments SET linked_sessions = linked_sessions || visit
            WHERE id = own_row AND session_id IS DISTINCT FROM visit AND visit <> ALL (linked_sessions)
                AND cardinality(linked_sessions) < 100;
        END IF;
        RETURN;
    END IF;
    IF chosen IS NULL THEN
        RETURN;
    END IF;
    IF NOT counted THEN
        PERFORM ingest.count_hit(
            'assignments', ingest.limit_subject(ingest.client_address()), ingest.hourly_limit('assignments', 10000)
        );
        counted := true;
    END IF;
    -- Where another call was faster, it has stored the same.
    INSERT INTO experiments.assignments (experiment_id, user_id, session_id, variant_id, country)
    VALUES (running.id, person, visit, chosen, nation)
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION ingest.assign_unit(experiments.experiments, uuid, text, text, text, text, jsonb, boolean) IS
    'The variant of a unit in a running experiment, stored; NULL: it takes no part. "counted": whether the call was counted by address, or need not be';

-- SECURITY DEFINER because a visitor may neither read targeting rules nor write assignments but their own session's.
-- What it writes is counted by address for them all the same.
CREATE FUNCTION public.auto_assign_experiments(
    user_id uuid DEFAULT NULL, session_id text DEFAULT NULL, country text DEFAULT NULL,
    device text DEFAULT NULL, url text DEFAULT NULL, attributes jsonb DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    person constant uuid := ingest.known_id(auto_assign_experiments.user_id::text)::uuid;
    visit constant text := CASE WHEN char_length(auto_assign_experiments.session_id) BETWEEN 1 AND 255
        THEN ingest.known_id(auto_assign_experiments.session_id) END;
    nation constant text := substring(upper(auto_assign_experiments.country) FROM '^[A-Z]{2}$');
    assigned jsonb := '{}'::jsonb;
    running experiments.experiments;
    variant text;
    hit boolean := current_setting('role') <> 'anon';
BEGIN
    IF num_nonnulls(person, visit) = 0 THEN
        RETURN assigned;
    END IF;
    FOR running IN
        SELECT * FROM experiments.experiments
        WHERE status = 'running' AND is_active
            AND (start_date IS NULL OR start_date <= now()) AND (end_date IS NULL OR end_date > now())
        ORDER BY name
    LOOP
        SELECT counted, chosen INTO hit, variant FROM ingest.assign_unit(
            running, person, visit, nation, auto_assign_experiments.device, auto_assign_experiments.url,
            auto_assign_experiments.attributes, hit
        );
        IF variant IS NOT NULL THEN
            assigned := assigned || jsonb_build_object(
                running.name, jsonb_build_object('experiment_id', running.id, 'variant_id', variant)
            );
        END IF;
    END LOOP;
    RETURN assigned;
END
$$;
COMMENT ON FUNCTION public.auto_assign_experiments(uuid, text, text, text, text, jsonb) IS
    'The variant of a unit, which is the user or else the session, in each running experiment that it takes part in: '
    '{experiment name: {"experiment_id", "variant_id"}}. The variant depends on experiment and unit alone and never changes; '
    'whether it takes part, on traffic and targeting rules as they are met now';

-- SECURITY DEFINER for the same reason; so it asks itself whose user this is.
CREATE FUNCTION public.record_exposure(
    experiment text, user_id uuid DEFAULT NULL, session_id text DEFAULT NULL, variant text DEFAULT NULL,
    country text DEFAULT NULL, device text DEFAULT NULL, url text DEFAULT NULL, attributes jsonb DEFAULT NULL,
    OUT is_running boolean, OUT variant_id text, OUT recorded boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    person constant uuid := ingest.known_id(record_exposure.user_id::text)::uuid;
    visit constant text := CASE WHEN char_length(record_exposure.session_id) BETWEEN 1 AND 255
        THEN ingest.known_id(record_exposure.session_id) END;
    nation constant text := substring(upper(record_exposure.country) FROM '^[A-Z]{2}$');
    running experiments.experiments;
    given text;
    stored text;
BEGIN
    IF person IS NOT NULL AND (
        current_setting('role') = 'anon'
        OR (current_setting('role') = 'authenticated' AND person IS DISTINCT FROM auth.uid()
            AND auth.jwt() #>> '{app_metadata,role}' IS DISTINCT FROM 'admin')
    ) THEN
        RAISE EXCEPTION 'the exposures of a user are their own to record' USING ERRCODE = 'insufficient_privilege';
    END IF;
    recorded := false;
    SELECT * INTO running FROM experiments.experiments
    WHERE name = record_exposure.experiment AND status = 'running' AND is_active
        AND (start_date IS NULL OR start_date <= now()) AND (end_date IS NULL OR end_date > now());
    is_running := FOUND;
    IF NOT is_running OR num_nonnulls(person, visit) = 0 THEN
        RETURN;
    END IF;
    SELECT chosen INTO given FROM ingest.assign_unit(
        running, person, visit, nation, record_exposure.device, record_exposure.url, record_exposure.attributes,
        current_setting('role') <> 'anon'
    );
    -- Who was assigned before is counted also where the context is not given again.
    SELECT variant_id INTO stored FROM experiments.assignments
    WHERE experiment_id = running.id
        AND CASE WHEN person IS NOT NULL THEN user_id = person ELSE user_id IS NULL AND session_id = visit END;
    record_exposure.variant_id := coalesce(stored, given);
    IF record_exposure.variant_id IS NULL OR record_exposure.variant_id <> record_exposure.variant THEN
        RETURN;
    END IF;
    -- Nobody saw it: bots count nowhere. A server's own user agent says nothing of its visitors.
    IF record_exposure.device = 'bot' OR ingest.is_made_ahead() OR (
        current_setting('role') <> 'service_role' AND ingest.device_of(ingest.request_header('User-Agent')) = 'bot'
    ) THEN
        RETURN;
    END IF;
    UPDATE experiments.assignments SET
        first_exposure_at = coalesce(first_exposure_at, now()),
        last_exposure_at = greatest(last_exposure_at, first_exposure_at, now()),
        exposure_count = least(exposure_count, 2147483646) + 1
    WHERE experiment_id = running.id
        AND CASE WHEN person IS NOT NULL THEN user_id = person ELSE user_id IS NULL AND session_id = visit END;
    recorded := FOUND;
END
$$;
COMMENT ON FUNCTION public.record_exposure(text, uuid, text, text, text, text, text, jsonb) IS
    'Record that a unit, which is the user or else the session, was shown its variant of a running experiment, assigning it if it was not. '
    'Not recorded if no such experiment runs, if the unit takes no part and never did (variant_id is NULL), if its variant is another one, or if it is a bot''s';

CREATE FUNCTION experiments.as_shown(experiment experiments.experiments) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT to_jsonb(experiment) || jsonb_build_object('is_active', experiment.status = 'running' AND experiment.is_active)
$$;
COMMENT ON FUNCTION experiments.as_shown(experiments.experiments) IS
    'An experiment as JSON for people: active is one that is running and not switched off';

-- One person is one unit: the sessions that a user was seen in are the user's, each of the first user seen in it. Who
-- was shown two variants, as a session and as a user, stays with the first one: to leave them out would leave out
-- exactly those who signed up.
CREATE VIEW experiments.units WITH (security_invoker = true) AS
WITH owners AS (
    SELECT DISTINCT ON (experiment_id, visit) experiment_id, visit, user_id
    FROM experiments.assignments
    CROSS JOIN LATERAL unnest(session_id || linked_sessions) AS seen_in
    CROSS JOIN LATERAL experiments.canonical_id(seen_in) AS visit
    WHERE user_id IS NOT NULL AND visit IS NOT NULL
    ORDER BY experiment_id, visit, assigned_at, user_id
)
SELECT
    assignments.experiment_id,
    coalesce('user ' || coalesce(assignments.user_id, owners.user_id)::text, 'session ' || canonical.visit) AS unit,
    coalesce(assignments.user_id, owners.user_id) AS user_id,
    array_remove(array_agg(DISTINCT CASE WHEN assignments.user_id IS NULL THEN canonical.visit END), NULL) AS sessions,
    (array_agg(variant_id ORDER BY first_exposure_at, variant_id))[1] AS variant_id,
    min(first_exposure_at) AS first_exposure_at,
    count(DISTINCT variant_id) > 1 AS is_mixed
FROM experiments.assignments
CROSS JOIN LATERAL experiments.canonical_id(assignments.session_id) AS canonical (visit)
LEFT JOIN owners ON assignments.user_id IS NULL
    AND owners.experiment_id = assignments.experiment_id AND owners.visit = canonical.visit
WHERE first_exposure_at IS NOT NULL
GROUP BY 1, 2, 3;

REVOKE ALL ON experiments.units FROM PUBLIC, anon, authenticated, service_role;
GRANT SELECT ON experiments.units TO authenticated, service_role;

COMMENT ON VIEW experiments.units IS 'Who was shown a variant, one row an experiment and person as far as known';
COMMENT ON COLUMN experiments.units.sessions IS 'The sessions that were shown a variant before, or without, a user; as experiments.canonical_id() spells them';
COMMENT ON COLUMN experiments.units.variant_id IS 'The variant shown first';
COMMENT ON COLUMN experiments.units.is_mixed IS 'Whether they were shown another variant later, under another id';

CREATE FUNCTION ingest.freeze_experiment() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'experiment % was started: its name and variants never change, and it is no draft again', OLD.name
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'make another experiment';
END
$$;
COMMENT ON FUNCTION ingest.freeze_experiment() IS
    'Trigger: refuse what would give units that have a variant another one, and results that mean nothing';

CREATE TRIGGER keep_variants BEFORE UPDATE OF id, name, control_variant, test_variants, status ON experiments.experiments
FOR EACH ROW WHEN (
    OLD.status <> 'draft' AND (
        NEW.status = 'draft'
        OR (NEW.id, NEW.name, NEW.control_variant, NEW.test_variants)
            IS DISTINCT FROM (OLD.id, OLD.name, OLD.control_variant, OLD.test_variants)
    )
) EXECUTE FUNCTION ingest.freeze_experiment();


-- Values of properties

CREATE FUNCTION analytics.number_of(value jsonb) RETURNS numeric
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    -- 15 digits are what clients, whose numbers are float8, hold exactly. Whether a comma is decimal nobody tells.
    SELECT CASE WHEN abs(number) < 1e15 THEN trim_scale(round(number, 20)) END FROM (SELECT CASE
        WHEN jsonb_typeof(value) = 'number' THEN value::numeric
        WHEN jsonb_typeof(value) = 'string' AND value #>> '{}' ~ '^\s*[+-]?([0-9]{1,15}([.][0-9]{0,20})?|[.][0-9]{1,20})\s*$'
            THEN (value #>> '{}')::numeric
    END AS number) AS read
$$;
COMMENT ON FUNCTION analytics.number_of(jsonb) IS
    'A property as a number: a JSON number, or a text that is a plain one, such as "12.50"; NULL for any other, and from 1e15 on';


-- A person's data

CREATE FUNCTION ingest.require_admin() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Of a function SECURITY DEFINER current_user is the owner: this is who asked.
    caller constant text := coalesce(nullif(current_setting('role'), 'none'), session_user);
BEGIN
    IF NOT pg_has_role(caller, 'service_role', 'MEMBER')
        AND coalesce(auth.jwt() #>> '{app_metadata,role}', '') <> 'admin'
    THEN
        RAISE EXCEPTION 'only an admin or service_role may do this' USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;
COMMENT ON FUNCTION ingest.require_admin() IS 'Fail unless it was asked for by service_role, or with a token whose app_metadata.role is admin';

CREATE TYPE ingest.person AS (
    address text, phones text[], lead_ids uuid[], session_ids uuid[], account_ids uuid[],
    user_ids text[], anonymous_ids text[], visits text[], row_ids text[], pattern text, addresses text[]
);
COMMENT ON TYPE ingest.person IS 'By what a person is known in the tables';

-- Whole, not within another: ann@example.com is in neither joann@example.com nor ann@example.com.br. As it is in URLs,
-- too, and after \n in JSON; digits also with blanks and punctuation between them, or 00 before.
CREATE FUNCTION ingest.mention_pattern(texts text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(CASE WHEN needle ~ '^[0-9]+$'
        THEN '(^|[^0-9]|%[0-9a-f]{2})(00)?' || regexp_replace(needle, '([0-9])(?=[0-9])', '\1([ ().+/-]|%20)*', 'g') || '(?![0-9])'
        ELSE '(^|[^[:alnum:]._-]|%[0-9a-f]{2}|\\[bfnrt])'
            || replace(replace(replace(replace(
                regexp_replace(lower(needle), '([]*+.?^$|(){}\\[])', '\\\1', 'g'),
                '\+', '(\+|%2b|\\u002b)'), '@', '(@|%(25)*40|\\u0040|&#(64|x40);|&commat;|\uFF20)'), ' ', '(\s|\+|%20)+'),
                '\.', '[.\u3002\uFF0E\uFF61]')
            || '(?![[:alnum:]_-]|\.[[:alnum:]])'
        END, '|')
    FROM unnest(texts) AS needle
$$;
COMMENT ON FUNCTION ingest.mention_pattern(text[]) IS 'A regular expression that finds one of these texts in another in lower case';

CREATE FUNCTION ingest.unescaped(value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    plain text := value;
    code text;
    -- Whole characters of UTF-8 only: what is none would be an error.
    beyond_ascii constant text := '%c[2-9a-f]X|%d[0-9a-f]X|%e0%[ab][0-9a-f]X|%ed%[89][0-9a-f]X|%e[1-9a-cef]XX'
        '|%f0%[9ab][0-9a-f]XX|%f[1-3]XXX|%f4%8[0-9a-f]XX';
BEGIN
    -- What was encoded several times, as redirects do: a bound, as each round is another pass.
    FOR round IN 1..5 LOOP
        EXIT WHEN strpos(plain, '%25') = 0;
        plain := replace(plain, '%25', '%');
    END LOOP;
    -- Printable ASCII is what an address is made of.
    FOR code IN SELECT DISTINCT escape[1] FROM regexp_matches(plain, '(?:%|\\u00)([2-7][0-9A-Fa-f])', 'g') AS escape LOOP
        CONTINUE WHEN lower(code) IN ('25', '7f');
        plain := replace(replace(plain, '%' || code, chr(('x' || code)::bit(8)::int)), '\u00' || code, chr(('x' || code)::bit(8)::int));
    END LOOP;
    FOR code IN SELECT DISTINCT escape[1] FROM regexp_matches(
        plain, '(' || replace(beyond_ascii, 'X', '%[89ab][0-9a-f]') || ')', 'gi'
    ) AS escape LOOP
        plain := replace(plain, code, convert_from(decode(replace(code, '%', ''), 'hex'), 'UTF8'));
    END LOOP;
    FOR code IN SELECT DISTINCT escape[1] FROM regexp_matches(
        plain, '(\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})', 'gi'
    ) AS escape LOOP
        plain := replace(plain, code, chr(
            65536 + ((('x' || substr(code, 3, 4))::bit(16)::int & 1023) << 10) + (('x' || substr(code, 9, 4))::bit(16)::int & 1023)
        ));
    END LOOP;
    -- All but ASCII and the halves of pairs.
    FOR code IN SELECT DISTINCT escape[1] FROM regexp_matches(
        plain, '\\u(00[89a-f][0-9a-f]|(?!00|d[89a-f])[0-9a-f]{4})', 'gi'
    ) AS escape LOOP
        plain := replace(plain, '\u' || code, chr(('x' || code)::bit(16)::int));
    END LOOP;
    RETURN plain;
END
$$;
COMMENT ON FUNCTION ingest.unescaped(text) IS 'The text with percent-encoding and JSON''s \u of printable ASCII and of all that is not ASCII undone, however often it was done';

CREATE FUNCTION ingest.mentions(value text, pattern text) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        lower(value) ~ pattern OR (value ~ '%25|%[2-7C-Fc-f][0-9A-Fa-f]|\\u[0-9A-Fa-f]{4}' AND lower(ingest.unescaped(value)) ~ pattern),
        false
    )
$$;
COMMENT ON FUNCTION ingest.mentions(text, text) IS 'Whether what ingest.mention_pattern() is about is in it, escaped or not';

-- Wider than what is stored as one: a tel: or wa.me link, digits of other scripts, dashes of all kinds, an extension.
CREATE FUNCTION ingest.phones_in(value text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT regexp_replace(found[1], '[^0-9+]', '', 'g')
    FROM regexp_matches(
        -- A form's + is a blank.
        regexp_replace(
            translate(
                normalize(ingest.unescaped(value), NFKC),
                '٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹०१२३४५६७८९০১২৩৪৫৬৭৮৯', '0123456789012345678901234567890123456789'
            ),
            '([0-9])\+(?=[0-9])', '\1 ', 'g'
        ),
        '((?:\+[][\s()./_''~\u00A0\u00AD\u00B7\u2000-\u206F\u2212\u3000\uFEFF-]*)?[0-9]'
            '(?:[][\s()./_''~\u00A0\u00AD\u00B7\u2000-\u206F\u2212\u3000\uFEFF-]*[0-9])*)', 'g'
    ) AS found
$$;
COMMENT ON FUNCTION ingest.phones_in(text) IS 'The numbers that are written in the text of a field for phone numbers: digits, with + if it was there';

CREATE FUNCTION ingest.phone_forms(number text) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN number ~ '^(\+|00)' THEN ARRAY[ltrim(number, '+0'), ingest.without_trunk_zero(ltrim(number, '+0'))]
        WHEN number LIKE '0%' THEN ARRAY[number]
        ELSE ARRAY[number, '0' || number, ingest.without_trunk_zero(number)]
    END
$$;
COMMENT ON FUNCTION ingest.phone_forms(text) IS
    'Digits that are the same for two spellings of one number, of a number as ingest.phones_in() has it: without + and trunk zero, or as it is dialled inside the country';

-- The keys under which people and programs write phone numbers, at any depth.
CREATE FUNCTION ingest.names_phone(value jsonb, phones text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT cardinality(phones) > 0 AND EXISTS (
        SELECT FROM jsonb_path_query(value,
            'strict $.** ? (@.type() == "object").keyvalue() ? (@.key like_regex "phone|mobile|whatsapp|telef|^tel$" flag "i").value'
        ) AS number
        WHERE jsonb_typeof(number) IN ('string', 'number')
            AND EXISTS (
                SELECT FROM ingest.phones_in(number #>> '{}') AS written, unnest(phones) AS phone
                WHERE ingest.phone_forms(written) && ingest.phone_forms(phone)
            )
    )
$$;
COMMENT ON FUNCTION ingest.names_phone(jsonb, text[]) IS
    'Whether one of these numbers (digits, with + before a country code) is in a field that is for phone numbers, in any spelling';

CREATE FUNCTION ingest.is_audit_of(log public.audit_logs, person ingest.person) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(log.row_id = ANY (person.row_ids), false)
        -- What went with another row, or before it.
        OR coalesce(coalesce(log.new_values, log.old_values) ->> 'lead_id' = ANY (person.row_ids), false)
        OR coalesce(coalesce(log.new_values, log.old_values) ->> 'session_id' = ANY (person.row_ids), false)
        OR coalesce(coalesce(log.new_values, log.old_values) ->> 'account_id' = ANY (person.row_ids), false)
        OR ingest.mentions(concat_ws(' ', log.old_values::text, log.new_values::text), person.pattern)
$$;
COMMENT ON FUNCTION ingest.is_audit_of(public.audit_logs, ingest.person) IS 'Whether a row of the audit log is about a person''s row, or names them';

-- Reads all events: a person's address may be anywhere in their properties.
--
-- Anybody may send an event or a form, and claim in it to be somebody's browser, user or phone. So ids are joined only
-- by what the service made itself (leads and sessions by their address, events that name a lead's id) and by what an
-- authenticated caller said; the rest, also numbers, only if it is asked for. What holds the address itself is theirs.
CREATE FUNCTION ingest.find_person(email text, include_unverified boolean, spellings text[] DEFAULT '{}') RETURNS ingest.person
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found ingest.person;
    by_address text;
BEGIN
    -- A domain's last dot is the root, which is hardly ever written.
    found.address := lower(rtrim(btrim(find_person.email, E' \t\r\n'), '.'));
    found.addresses := ARRAY(SELECT found.address UNION SELECT lower(spelling) FROM unnest(spellings) AS spelling);
    -- All of them, as an empty one would be found in everything.
    IF EXISTS (SELECT FROM unnest(found.addresses) AS known WHERE coalesce(known, '') !~ '^[^@\s]+@[^@\s]+$') THEN
        RAISE EXCEPTION 'an email address is needed, such as user@company.com'
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    by_address := ingest.mention_pattern(found.addresses);
    -- Those that are gone are known from the log. One that has another address now is another's.
    found.lead_ids := ARRAY(
        SELECT id FROM marketing.leads WHERE leads.email = ANY (found.addresses)
        UNION
        SELECT substring(row_id FROM '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')::uuid AS id
        FROM public.audit_logs
        WHERE table_name = 'marketing.leads' AND ARRAY[old_values ->> 'email', new_values ->> 'email'] && found.addresses
            AND NOT EXISTS (SELECT FROM marketing.leads WHERE id::text = row_id)
    );
    found.session_ids := ARRAY(
        SELECT id FROM onboarding.sessions
        WHERE lead_id = ANY (found.lead_ids)
            OR ingest.mentions(concat_ws(' ', business_data::text, whatsapp_config::text, bot_config::text), by_address)
    );
    found.account_ids := ARRAY(SELECT id FROM whatsapp.accounts WHERE lead_id = ANY (found.lead_ids));
    -- The present ones and those before, but none that is another lead's, too.
    found.phones := CASE WHEN include_unverified THEN ARRAY(
        SELECT DISTINCT phone
        FROM (
            SELECT phone_number FROM marketing.leads WHERE id = ANY (found.lead_ids)
            UNION ALL SELECT phone_number FROM whatsapp.accounts WHERE id = ANY (found.account_ids)
            UNION ALL SELECT ingest.normalised_phone(whatsapp_config ->> 'phone_number')
                FROM onboarding.sessions WHERE id = ANY (found.session_ids)
            UNION ALL SELECT unnest(ARRAY[old_values ->> 'phone_number', new_values ->> 'phone_number'])
                FROM public.audit_logs WHERE row_id = ANY ((found.lead_ids || found.account_ids)::text[])
        ) AS known (phone)
        WHERE phone ~ '^\+?[0-9]{7,15}$' AND NOT EXISTS (
            SELECT FROM marketing.leads
            WHERE ltrim(phone_number, '+') = ltrim(phone, '+') AND id <> ALL (found.lead_ids)
        )
    ) ELSE '{}' END;
    -- The service's own events name a lead by its id.
    found.pattern := ingest.mention_pattern(found.addresses || found.lead_ids::text[]);
    -- Who says who they are, or has the address as their own; not who only names it, as one who invites them does.
    SELECT
        coalesce(array_agg(DISTINCT user_id) FILTER (WHERE user_id IS NOT NULL), '{}'),
        coalesce(array_agg(DISTINCT anonymous_id) FILTER (WHERE anonymous_id IS NOT NULL), '{}')
    INTO found.user_ids, found.anonymous_ids
    FROM analytics.events
    WHERE (authenticated OR include_unverified) AND (
        lower(user_id) = ANY (found.addresses) OR user_id = ANY (found.lead_ids::text[])
        OR (name = 'identify' AND ingest.mentions(properties::text, by_address))
        OR lower(context #>> '{traits,email}') = ANY (found.addresses)
        -- Whose visit left the lead; an admin's, who looks at it, has other names.
        OR (name IN ('lead_created', 'lead_updated') AND properties ->> 'lead_id' = ANY (found.lead_ids::text[]))
        OR (user_id IS NULL AND lower(properties ->> 'email') = ANY (found.addresses))
    );
    found.user_ids := found.user_ids || found.lead_ids::text[] || found.addresses || ARRAY(
        SELECT canonical FROM unnest(found.user_ids) AS known, experiments.canonical_id(known) AS canonical
        WHERE canonical <> ALL (found.user_ids)
    );
    -- Who entered the address in onboarding came as this visitor.
    found.anonymous_ids := found.anonymous_ids || ARRAY(
        SELECT anonymous_id FROM onboarding.sessions
        WHERE include_unverified AND id = ANY (found.session_ids) AND anonymous_id <> ALL (found.anonymous_ids)
    );
    -- An event without credentials is its sender's, but not the visit that it names.
    found.visits := found.session_ids::text[] || ARRAY(
        SELECT session_id FROM analytics.events
        WHERE (authenticated OR include_unverified) AND session_id IS NOT NULL AND CASE WHEN user_id IS NULL
            THEN anonymous_id = ANY (found.anonymous_ids) ELSE user_id = ANY (found.user_ids) END
        UNION
        SELECT visit_session_id FROM onboarding.sessions
        WHERE include_unverified AND id = ANY (found.session_ids) AND visit_session_id IS NOT NULL
    );
    found.row_ids := ARRAY(
        SELECT unnest(found.lead_ids || found.session_ids || found.account_ids)::text
        UNION SELECT id::text FROM marketing.lead_interactions WHERE lead_id = ANY (found.lead_ids)
        UNION SELECT id::text FROM onboarding.step_activities WHERE session_id = ANY (found.session_ids)
        UNION SELECT id::text FROM whatsapp.templates WHERE account_id = ANY (found.account_ids)
        UNION SELECT id::text FROM experiments.assignments AS unit WHERE ingest.is_assignment_of(unit, found)
        -- Sessions and accounts that are gone: what was within them names nobody by itself.
        UNION SELECT row_id FROM public.audit_logs
            WHERE table_name IN ('onboarding.sessions', 'whatsapp.accounts')
                AND old_values ->> 'lead_id' = ANY (found.lead_ids::text[])
    );
    RETURN found;
END
$$;
COMMENT ON FUNCTION ingest.find_person(text, boolean, text[]) IS
    'By what the person with this address is known: leads, sessions, users, browsers, accounts; with what anybody claimed only if that is asked for, phones among it';

-- A session is theirs only as long as nobody else is the unit.
CREATE FUNCTION ingest.is_assignment_of(assignment experiments.assignments, person ingest.person) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(CASE WHEN assignment.user_id IS NULL
        THEN assignment.session_id = ANY (person.visits || person.anonymous_ids)
        ELSE assignment.user_id::text = ANY (person.user_ids) END, false)
$$;
COMMENT ON FUNCTION ingest.is_assignment_of(experiments.assignments, ingest.person) IS 'Whether a person is the unit that was given a variant';

-- In SQL, so that it is one expression of the queries that delete and export. A browser that others use, too, is
-- theirs where they are named.
CREATE FUNCTION ingest.is_event_of(event analytics.events, person ingest.person) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(event.user_id = ANY (person.user_ids), false)
        OR coalesce(event.user_id IS NULL AND event.anonymous_id = ANY (person.anonymous_ids), false)
        OR ingest.mentions(
            concat_ws(' ', event.name, event.user_id, event.anonymous_id, event.session_id, event.properties::text,
                event.context::text, event.url, event.referrer, event.page_path, event.utm_source, event.utm_medium,
                event.utm_campaign, event.utm_term, event.utm_content, event.source, event.user_agent),
            person.pattern
        )
        OR ingest.names_phone(event.properties, person.phones) OR ingest.names_phone(event.context, person.phones)
$$;
COMMENT ON FUNCTION ingest.is_event_of(analytics.events, ingest.person) IS 'Whether an event is a person''s, or names them';

-- A payload that was refused may be anything.
CREATE FUNCTION ingest.payload_names_phone(payload text, phones text[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN cardinality(phones) > 0 AND ingest.names_phone(payload::jsonb, phones);
EXCEPTION WHEN data_exception THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION ingest.payload_names_phone(text, text[]) IS 'The same of a text, which may be no JSON';

CREATE FUNCTION ingest.ids_of(person ingest.person) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(kind, ids), '{}') FROM (VALUES
        ('address', person.addresses), ('leads', person.lead_ids::text[]),
        ('onboarding_sessions', person.session_ids::text[]), ('accounts', person.account_ids::text[]),
        ('user_ids', person.user_ids), ('anonymous_ids', person.anonymous_ids), ('session_ids', person.visits),
        ('phones', person.phones)
    ) AS known (kind, ids) WHERE cardinality(ids) > 0
$$;
COMMENT ON FUNCTION ingest.ids_of(ingest.person) IS 'By what a person is known, as JSON: {kind: [ids]}';

CREATE FUNCTION ingest.unverified_ids(email text, spellings text[]) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(kind, only_claimed), '{}') FROM (
        SELECT claimed.key AS kind, (
            SELECT jsonb_agg(id) FROM jsonb_array_elements(claimed.value) AS id
            WHERE NOT coalesce(proved.ids -> claimed.key @> id, false)
        ) AS only_claimed
        FROM (SELECT ingest.ids_of(ingest.find_person(email, false, spellings)) AS ids) AS proved,
            jsonb_each(ingest.ids_of(ingest.find_person(email, true, spellings))) AS claimed
    ) AS compared WHERE only_claimed IS NOT NULL
$$;
COMMENT ON FUNCTION ingest.unverified_ids(text, text[]) IS 'By what a person is known only by what anybody may claim: {kind: [ids]}';

-- Needle by needle, because what stands before one is kept. In JSON a number may be a phone's, so that what replaces it
-- must be a number, too; everything else is within strings.
CREATE FUNCTION ingest.scrub(relation regclass, needles text[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target record;
    needle text;
    scrubbed text;
    assignments text[] := '{}'::text[];
    searched text[] := '{}'::text[];
    affected bigint;
BEGIN
    FOR target IN
        SELECT attname, CASE atttypid WHEN 'jsonb'::regtype THEN '::jsonb' ELSE '' END AS back FROM pg_attribute
        WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
            AND atttypid IN ('text'::regtype, 'jsonb'::regtype)
    LOOP
        scrubbed := format('%I::text', target.attname);
        searched := searched || scrubbed;
        FOREACH needle IN ARRAY needles LOOP
            scrubbed := format('regexp_replace(%s, %L, %L, ''gi'')', scrubbed, ingest.mention_pattern(ARRAY[needle]),
                CASE WHEN needle ~ '^[0-9]+$' THEN '\10' ELSE '\1erased' END);
        END LOOP;
        assignments := assignments || format('%I = (%s)%s', target.attname, scrubbed, target.back);
    END LOOP;
    EXECUTE format('UPDATE %s SET %s WHERE ingest.mentions(concat_ws(E''\n'', %s), $1)',
        relation, array_to_string(assignments, ', '), array_to_string(searched, ', '))
    USING ingest.mention_pattern(needles);
    GET DIAGNOSTICS affected = ROW_COUNT;
    RETURN affected;
END
$$;
COMMENT ON FUNCTION ingest.scrub(regclass, text[]) IS
    'Take these addresses, numbers and names out of the texts and JSON of a table; how many rows had one';

-- SECURITY DEFINER because nobody but the owner may change the audit log or touch every table; for admins only.
CREATE FUNCTION public.gdpr_delete_user_data(
    email text, include_unverified boolean DEFAULT false, dry_run boolean DEFAULT false, spellings text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    person ingest.person;
    planned jsonb;
    unverified jsonb;
    names text[];
    counts jsonb := '{}'::jsonb;
    affected bigint;
    hours timestamptz[];
    relation regclass;
BEGIN
    PERFORM ingest.require_admin();
    person := ingest.find_person(gdpr_delete_user_data.email, include_unverified, spellings);
    -- A name is somebody's word, and others may have it.
    names := ARRAY(
        SELECT first_name || ' ' || last_name FROM marketing.leads WHERE id = ANY (person.lead_ids)
        UNION
        SELECT (new_values ->> 'first_name') || ' ' || (new_values ->> 'last_name')
        FROM public.audit_logs WHERE row_id = ANY (person.lead_ids::text[])
    );
    names := array_remove(names, NULL);
    IF dry_run THEN
        unverified := ingest.unverified_ids(gdpr_delete_user_data.email, spellings)
            || CASE WHEN cardinality(names) > 0 THEN jsonb_build_object('names', names) ELSE '{}' END;
        -- All of it is done and taken back: what would go is what goes.
        BEGIN
            planned := public.gdpr_delete_user_data(gdpr_delete_user_data.email, include_unverified, spellings := spellings);
            RAISE EXCEPTION 'a dry run' USING ERRCODE = 'PTDRY';
        EXCEPTION WHEN SQLSTATE 'PTDRY' THEN
            RETURN jsonb_build_object(
                'would_erase', planned,
                'because_of', ingest.ids_of(person) || CASE WHEN include_unverified AND cardinality(names) > 0
                    THEN jsonb_build_object('names', names) ELSE '{}' END,
                'unverified', unverified
            );
        END;
    END IF;
    IF NOT include_unverified THEN
        names := '{}';
    END IF;

    WITH gone AS (
        DELETE FROM analytics.events AS event WHERE ingest.is_event_of(event, person) RETURNING created_at
    )
    SELECT count(*), array_agg(DISTINCT date_trunc('hour', created_at, 'UTC')) INTO affected, hours FROM gone;
    counts := counts || jsonb_build_object('analytics.events', affected);
    DELETE FROM analytics.rejected_events
    WHERE ingest.mentions(concat_ws(' ', payload, detail, route, user_agent), ingest.mention_pattern(person.addresses || names))
        OR ingest.payload_names_phone(payload, person.phones);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.rejected_events', affected);
    -- The unit stays in the experiment's figures, as nobody.
    UPDATE experiments.assignments AS unit SET
        user_id = CASE WHEN user_id IS NULL THEN NULL ELSE gen_random_uuid() END,
        session_id = CASE WHEN user_id IS NULL THEN 'erased ' || gen_random_uuid() END,
        linked_sessions = '{}', user_agent = NULL, ip_address = NULL
    WHERE ingest.is_assignment_of(unit, person);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('experiments.assignments', affected);

    -- So does the journey in the funnel.
    UPDATE onboarding.step_activities SET field_value = NULL, error_message = NULL, metadata = '{}'
    WHERE session_id = ANY (person.session_ids)
        AND (num_nonnulls(field_value, error_message) > 0 OR metadata <> '{}');
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('onboarding.step_activities', affected);
    UPDATE onboarding.sessions SET
        lead_id = NULL, business_data = '{}', whatsapp_config = '{}', bot_config = '{}', user_agent = NULL, ip_address = NULL,
        anonymous_id = NULL, visit_session_id = NULL
    WHERE id = ANY (person.session_ids);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('onboarding.sessions', affected);

    SELECT counts || jsonb_build_object(
        'marketing.lead_interactions', (SELECT count(*) FROM marketing.lead_interactions WHERE lead_id = ANY (person.lead_ids)),
        'whatsapp.templates', (SELECT count(*) FROM whatsapp.templates WHERE account_id = ANY (person.account_ids)),
        'whatsapp.accounts', cardinality(person.account_ids)
    ) INTO counts;
    -- Interactions, accounts and templates go with it.
    DELETE FROM marketing.leads WHERE id = ANY (person.lead_ids);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('marketing.leads', affected);

    -- Rows that are others', and mention them.
    FOREACH relation IN ARRAY ARRAY[
        'marketing.leads', 'marketing.lead_interactions', 'onboarding.sessions', 'onboarding.step_activities',
        'whatsapp.accounts', 'whatsapp.templates'
    ]::regclass[] LOOP
        affected := ingest.scrub(relation, person.addresses || names);
        counts := counts || jsonb_build_object(relation::text, (counts ->> relation::text)::bigint + affected);
    END LOOP;

    -- From here to the end nobody counts events, by the lock that who does so takes: the worker still sees those deleted above,
    -- and would make these rows again. Not sooner, or it would wait for all of it; and nothing that it changes is
    -- touched sooner, or each might wait for the other.
    LOCK TABLE analytics.leases IN SHARE UPDATE EXCLUSIVE MODE;
    -- What they were counted in is made anew.
    INSERT INTO analytics.stale_buckets (granularity, time_bucket) SELECT 'hour', unnest(hours)
    ON CONFLICT (granularity, time_bucket) DO UPDATE SET noted_at = excluded.noted_at, due_at = excluded.due_at;
    -- What is noted of others' browsers stays, without the name.
    DELETE FROM analytics.stale_identities
    WHERE anonymous_id = ANY (person.anonymous_ids) OR ingest.mentions(anonymous_id, person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.stale_identities', affected);
    UPDATE analytics.stale_identities SET people = ARRAY(
        SELECT whose FROM unnest(people) AS whose
        WHERE whose <> ALL (person.user_ids) AND NOT ingest.mentions(whose, person.pattern)
    )
    WHERE people && person.user_ids OR ingest.mentions(people::text, person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object(
        'analytics.stale_identities', (counts ->> 'analytics.stale_identities')::bigint + affected
    );
    WITH gone AS (
        DELETE FROM analytics.identities
        WHERE user_id = ANY (person.user_ids) OR anonymous_id = ANY (person.anonymous_ids)
            OR ingest.mentions(concat_ws(' ', user_id, anonymous_id), person.pattern)
        RETURNING user_id, anonymous_id
    ), left_over AS (
        UPDATE analytics.people SET links = greatest(0, links - fewer)
        FROM (SELECT user_id AS whose, count(*)::int AS fewer FROM gone GROUP BY user_id) AS lost
        WHERE user_id = whose
    ), freed AS (
        -- A browser that is not proved to be theirs: its visits went under their name, and are made anew under its own.
        INSERT INTO analytics.stale_identities AS stale (anonymous_id, people)
        SELECT anonymous_id, ARRAY[anonymous_id] FROM gone
        WHERE anonymous_id <> ALL (person.anonymous_ids || person.user_ids)
            AND NOT ingest.mentions(anonymous_id, person.pattern)
        ON CONFLICT (anonymous_id) DO UPDATE SET noted_at = excluded.noted_at, people = stale.people || excluded.people
    )
    SELECT count(*) INTO affected FROM gone;
    counts := counts || jsonb_build_object('analytics.identities', affected);
    DELETE FROM analytics.people
    WHERE user_id = ANY (person.user_ids) OR ingest.mentions(user_id, person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.people', affected);
    -- Another user, whom somebody's event named together with the address.
    UPDATE analytics.people SET counted_as = gen_random_uuid()::text WHERE ingest.mentions(counted_as, person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.people', (counts ->> 'analytics.people')::bigint + affected);
    DELETE FROM analytics.visits
    WHERE visits.person = ANY (person.user_ids || person.anonymous_ids) OR ingest.mentions(visits.person, person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.visits', affected);
    -- A page's path may hold an address.
    DELETE FROM analytics.event_aggregations WHERE ingest.mentions(concat_ws(' ', event_name, dimensions::text), person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.event_aggregations', affected);
    DELETE FROM analytics.metrics WHERE ingest.mentions(concat_ws(' ', dimensions::text, value_json::text), person.pattern);
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('analytics.metrics', affected);

    -- At last, for the statements above have left their traces here.
    PERFORM set_config('app.audit_maintenance', 'on', true);
    -- What a person did to others' rows stays, as nobody's deed; who did something to theirs stays named, but for
    -- who was not signed in: that may have been they.
    UPDATE public.audit_logs AS log SET
        old_values = CASE WHEN NOT about THEN old_values END,
        new_values = CASE WHEN NOT about THEN new_values END,
        user_email = CASE WHEN NOT their_deed THEN user_email END,
        user_id = CASE WHEN NOT their_deed THEN user_id END,
        ip_address = CASE WHEN NOT their_deed THEN ip_address END,
        user_agent = CASE WHEN NOT their_deed THEN user_agent END
    FROM (
        SELECT id AS judged_id, about,
            coalesce(lower(user_email) = ANY (person.addresses), false) OR coalesce(user_id::text = ANY (person.user_ids), false)
                OR (about AND num_nonnulls(user_email, user_id) = 0) AS their_deed
        FROM (SELECT *, ingest.is_audit_of(entry, person) AS about FROM public.audit_logs AS entry) AS read
    ) AS judged
    WHERE id = judged_id AND (
        (about AND num_nonnulls(old_values, new_values) > 0)
        OR (their_deed AND num_nonnulls(user_email, user_id, ip_address, user_agent) > 0)
    );
    GET DIAGNOSTICS affected = ROW_COUNT;
    counts := counts || jsonb_build_object('public.audit_logs', affected);
    PERFORM set_config('app.audit_maintenance', 'off', true);

    IF EXISTS (SELECT FROM jsonb_each(counts) WHERE value <> '0') THEN
        INSERT INTO public.audit_logs (table_name, operation, new_values, actor_role, user_id)
        VALUES ('all', 'ERASE', counts, coalesce(nullif(current_setting('role'), 'none'), session_user), ingest.actor_id());
    END IF;
    RETURN counts;
END
$$;
COMMENT ON FUNCTION public.gdpr_delete_user_data(text, boolean, boolean, text[]) IS
    'Erase the person with this address from every table, or leave only what names nobody; how many rows of each. '
    'What rests only on what anybody may claim (a browser''s id in a form, the session that an event names, an identify without a key, a name, a phone number) goes '
    'with include_unverified; dry_run erases nothing and tells what would go, by which ids, and which are unverified. '
    'spellings are others of the address, such as one with the xn-- form of its domain. '
    'Twice is the same as once. What still waits in a collector''s journal is not here yet: call it again, or ask by '
    'DELETE /v1/people, which waits for that';

-- SECURITY DEFINER because nobody but the owner may read every table; for admins only.
CREATE FUNCTION public.gdpr_export_user_data(
    email text, include_unverified boolean DEFAULT false, spellings text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    person ingest.person;
    told jsonb;
BEGIN
    PERFORM ingest.require_admin();
    person := ingest.find_person(gdpr_export_user_data.email, include_unverified, spellings);
    SELECT jsonb_build_object(
        'email', person.address,
        'marketing.leads', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.created_at) FROM marketing.leads AS row WHERE row.id = ANY (person.lead_ids)),
        'marketing.lead_interactions', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.created_at) FROM marketing.lead_interactions AS row WHERE row.lead_id = ANY (person.lead_ids)),
        'onboarding.sessions', (SELECT jsonb_agg(to_jsonb(row) - 'session_token' ORDER BY row.created_at) FROM onboarding.sessions AS row WHERE row.id = ANY (person.session_ids)),
        'onboarding.step_activities', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.created_at) FROM onboarding.step_activities AS row WHERE row.session_id = ANY (person.session_ids)),
        'experiments.assignments', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.assigned_at) FROM experiments.assignments AS row
            WHERE ingest.is_assignment_of(row, person)),
        'whatsapp.accounts', (SELECT jsonb_agg(to_jsonb(row) - '{access_token_encrypted,webhook_verify_token_encrypted}'::text[] ORDER BY row.created_at)
            FROM whatsapp.accounts AS row WHERE row.id = ANY (person.account_ids)),
        'whatsapp.templates', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.created_at) FROM whatsapp.templates AS row WHERE row.account_id = ANY (person.account_ids)),
        'analytics.events', (SELECT jsonb_agg(to_jsonb(event) ORDER BY event.created_at) FROM analytics.events AS event WHERE ingest.is_event_of(event, person)),
        -- When a browser was seen, or in which visits, is its owner's to know, and no claim makes one that.
        'analytics.identities', (SELECT jsonb_agg(to_jsonb(row)
                - CASE WHEN row.verified OR include_unverified THEN '{}' ELSE '{last_seen_at}'::text[] END ORDER BY row.linked_at)
            FROM analytics.identities AS row
            WHERE row.user_id = ANY (person.user_ids) OR row.anonymous_id = ANY (person.anonymous_ids)
                OR ingest.mentions(concat_ws(' ', row.user_id, row.anonymous_id), person.pattern)),
        'analytics.people', (SELECT jsonb_agg(
                CASE WHEN row.user_id = ANY (person.user_ids) OR ingest.mentions(row.user_id, person.pattern)
                    THEN to_jsonb(row) ELSE jsonb_build_object('counted_as', row.counted_as) END ORDER BY row.user_id)
            FROM analytics.people AS row
            WHERE row.user_id = ANY (person.user_ids) OR ingest.mentions(concat_ws(' ', row.user_id, row.counted_as), person.pattern)),
        'analytics.visits', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.started_at) FROM analytics.visits AS row
            WHERE (row.person = ANY (person.user_ids || person.anonymous_ids) OR ingest.mentions(row.person, person.pattern))
                AND (include_unverified OR NOT EXISTS (
                    SELECT FROM analytics.identities AS link
                    WHERE link.user_id = row.person AND NOT link.verified AND link.anonymous_id <> ALL (person.anonymous_ids)
                ))),
        'analytics.stale_identities', (SELECT jsonb_agg(to_jsonb(row) - 'people' ORDER BY row.anonymous_id) FROM analytics.stale_identities AS row
            WHERE row.anonymous_id = ANY (person.anonymous_ids) OR row.people && person.user_ids
                OR ingest.mentions(concat_ws(' ', row.anonymous_id, row.people::text), person.pattern)),
        'analytics.rejected_events', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.id) FROM analytics.rejected_events AS row
            WHERE ingest.mentions(concat_ws(' ', row.payload, row.detail, row.route, row.user_agent), person.pattern)
                OR ingest.payload_names_phone(row.payload, person.phones)),
        'analytics.event_aggregations', (SELECT jsonb_agg(to_jsonb(row) - '{users_sketch,sessions_sketch}'::text[] ORDER BY row.time_bucket) FROM analytics.event_aggregations AS row
            WHERE ingest.mentions(concat_ws(' ', row.event_name, row.dimensions::text), person.pattern)),
        'analytics.metrics', (SELECT jsonb_agg(to_jsonb(row) ORDER BY row.id) FROM analytics.metrics AS row
            WHERE ingest.mentions(concat_ws(' ', row.dimensions::text, row.value_json::text), person.pattern)),
        -- Others' rows that they changed, and others who changed theirs, are not about them.
        'public.audit_logs', (SELECT jsonb_agg(to_jsonb(row)
                - CASE WHEN lower(row.user_email) = ANY (person.addresses) THEN '{}' ELSE '{user_id,user_email,ip_address,user_agent}'::text[] END
                - CASE WHEN ingest.is_audit_of(row, person) THEN '{}' ELSE '{old_values,new_values}'::text[] END ORDER BY row.id)
            FROM public.audit_logs AS row
            WHERE lower(row.user_email) = ANY (person.addresses) OR ingest.is_audit_of(row, person)),
        'unverified', CASE WHEN NOT include_unverified
            THEN nullif(ingest.unverified_ids(gdpr_export_user_data.email, spellings), '{}') END
    ) INTO told;
    -- Tables without a row of theirs; within rows a NULL is told.
    SELECT jsonb_object_agg(key, value) INTO told FROM jsonb_each(told) WHERE value <> 'null';
    INSERT INTO public.audit_logs (table_name, operation, actor_role, user_id)
    VALUES ('all', 'EXPORT', coalesce(nullif(current_setting('role'), 'none'), session_user), ingest.actor_id());
    RETURN told;
END
$$;
COMMENT ON FUNCTION public.gdpr_export_user_data(text, boolean, text[]) IS
    'Everything held on the person with this address, by table; no secrets: tokens and ciphertext are left out. What only '
    'unauthenticated claims join is told with include_unverified; else its ids are listed apart';


-- Retention

CREATE FUNCTION ingest.retention(name text, otherwise interval) RETURNS interval
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(nullif(current_setting('app.retention_' || name, true), '')::interval, otherwise)
$$;
COMMENT ON FUNCTION ingest.retention(text, interval) IS
    'How long something is kept: the setting app.retention_<name>, such as ALTER DATABASE … SET app.retention_events = ''1 year''; else the second argument';

-- SECURITY DEFINER because only the owner may drop a partition or delete from the audit log.
CREATE FUNCTION public.cleanup_old_data() RETURNS TABLE (table_name text, deleted_count bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Else 90 days are an hour more or less where summer time began or ended among them.
SET timezone = 'UTC'
-- Who drops a partition waits for whoever reads it, and everybody else waits behind: better at the next call then.
SET lock_timeout = '2s'
AS $$
#variable_conflict use_column
DECLARE
    day record;
    rows_of_day bigint;
    old_days regclass[] := '{}'::regclass[];
    old_rows bigint[] := '{}'::bigint[];
    -- A day goes when its last moment is older.
    oldest_day constant date := ((now() - ingest.retention('events', '90 days')) AT TIME ZONE 'UTC')::date;
    -- As long as there are events of them, at least.
    unseen constant interval := greatest(
        ingest.retention('identities', '400 days'), ingest.retention('events', '90 days') + interval '8 days'
    );
BEGIN
    table_name := 'analytics.event_aggregations';
    DELETE FROM analytics.event_aggregations
    WHERE granularity = 'minute' AND time_bucket < now() - ingest.retention('minutes', '7 days');
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    table_name := 'analytics.metrics';
    DELETE FROM analytics.metrics
    WHERE coalesce(time_window_end, timestamp) < now() - ingest.retention('metrics', '365 days');
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    table_name := 'analytics.rejected_events';
    DELETE FROM analytics.rejected_events WHERE received_at < now() - ingest.retention('rejected', '90 days');
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    -- What makes a replay exact is in analytics.journals, and the flush that proves it; the others are only history.
    table_name := 'analytics.flushes';
    DELETE FROM analytics.flushes
    WHERE rolled_up_at IS NOT NULL AND flushed_at < now() - ingest.retention('flushes', '30 days')
        AND NOT EXISTS (
            SELECT FROM analytics.journals WHERE (number, stored_through) = (flushes.journal, flushes.last_record)
        );
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    -- A visit is asked for as long as its events are there.
    table_name := 'analytics.visits';
    DELETE FROM analytics.visits
    WHERE started_at < now() - ingest.retention('events', '90 days') - interval '1 day'
        AND ended_at < now() - ingest.retention('events', '90 days') - interval '1 day';
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    -- But not a browser that its user is counted as: it would be taken for them when it comes back.
    table_name := 'analytics.identities';
    WITH gone AS (
        DELETE FROM analytics.identities
        WHERE last_seen_at < now() - unseen
            AND NOT EXISTS (SELECT FROM analytics.people WHERE counted_as = anonymous_id AND last_seen_at >= now() - unseen)
        RETURNING user_id
    ), left_over AS (
        UPDATE analytics.people SET links = greatest(0, links - fewer)
        FROM (SELECT user_id AS whose, count(*)::int AS fewer FROM gone GROUP BY user_id) AS lost
        WHERE user_id = whose
    )
    SELECT count(*) INTO deleted_count FROM gone;
    RETURN NEXT;

    table_name := 'analytics.people';
    DELETE FROM analytics.people WHERE last_seen_at < now() - unseen;
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    RETURN NEXT;

    table_name := 'public.audit_logs';
    PERFORM set_config('app.audit_maintenance', 'on', true);
    DELETE FROM public.audit_logs WHERE created_at < now() - ingest.retention('audit', '2 years');
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    PERFORM set_config('app.audit_maintenance', 'off', true);
    RETURN NEXT;

    -- As long as the events that they stand for.
    DELETE FROM analytics.event_keys WHERE created_at < oldest_day::timestamp AT TIME ZONE 'UTC';

    -- Counted before anything is dropped, and dropped at the very end: from the first DROP to the commit nobody can
    -- read or write events.
    table_name := 'analytics.events';
    deleted_count := 0;
    FOR day IN
        SELECT inhrelid::regclass AS partition FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'analytics.events'::regclass AND relname ~ '^events_[0-9]{8}$'
            AND to_date(substr(relname, 8), 'YYYYMMDD') < oldest_day
        ORDER BY relname
    LOOP
        EXECUTE format('SELECT count(*) FROM %s', day.partition) INTO rows_of_day;
        old_days := old_days || day.partition;
        old_rows := old_rows || rows_of_day;
    END LOOP;
    FOR place IN 1 .. cardinality(old_days) LOOP
        BEGIN
            EXECUTE format('DROP TABLE %s', old_days[place]);
            deleted_count := deleted_count + old_rows[place];
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING '% is in use, it goes at the next call', old_days[place];
        END;
    END LOOP;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION public.cleanup_old_data() IS
    'Delete what is older than its retention: events 90 days, by dropping partitions; minute aggregates 7 days; metrics 365; '
    'refused events 90; flushes 30; identities and people not seen for 400; the audit log 2 years; each period is a setting, see ingest.retention()';


-- Watching

CREATE VIEW public.index_usage_stats WITH (security_invoker = true) AS
SELECT
    schemaname AS schema_name,
    relname AS table_name,
    indexrelname AS index_name,
    idx_scan,
    idx_tup_read,
    pg_relation_size(indexrelid) AS size_bytes,
    pg_size_pretty(pg_relation_size(indexrelid)) AS size,
    CASE
        WHEN idx_scan = 0 THEN 'unused'
        WHEN idx_scan < 100 THEN 'rarely used'
        WHEN idx_scan < 10000 THEN 'used'
        ELSE 'often used'
    END AS usage_class
FROM pg_stat_user_indexes
WHERE schemaname IN ('marketing', 'onboarding', 'analytics', 'experiments', 'whatsapp', 'public');
COMMENT ON VIEW public.index_usage_stats IS 'How often each index was used since the statistics were reset, and what it costs';


-- Who may call them

REVOKE ALL ON public.index_usage_stats FROM PUBLIC, anon, authenticated, service_role;
GRANT SELECT ON public.index_usage_stats TO service_role;

-- Those in `ingest` are for triggers and for the functions here.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA ingest FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ingest.is_public(regclass) TO PUBLIC;

REVOKE EXECUTE ON FUNCTION
    public.auto_assign_experiments(uuid, text, text, text, text, jsonb),
    public.record_exposure(text, uuid, text, text, text, text, text, jsonb), public.gdpr_delete_user_data(text, boolean, boolean, text[]),
    public.gdpr_export_user_data(text, boolean, text[]), public.cleanup_old_data(), public.abandon_inactive_sessions(),
    public.process_pending_events(), public.calculate_lead_score(marketing.leads),
    public.calculate_onboarding_progress(onboarding.sessions)
FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION
    public.auto_assign_experiments(uuid, text, text, text, text, jsonb),
    public.record_exposure(text, uuid, text, text, text, text, text, jsonb)
TO anon, authenticated, service_role;
GRANT EXECUTE ON FUNCTION public.gdpr_delete_user_data(text, boolean, boolean, text[]), public.gdpr_export_user_data(text, boolean, text[])
TO authenticated, service_role;
GRANT EXECUTE ON FUNCTION
    public.calculate_lead_score(marketing.leads), public.calculate_onboarding_progress(onboarding.sessions)
TO authenticated, service_role;
GRANT EXECUTE ON FUNCTION
    public.cleanup_old_data(), public.abandon_inactive_sessions(), public.process_pending_events()
TO service_role;
