-- Data to develop with: ingest.load_seed_data(), and what it consists of. Six leads with names and stories, some
-- thousand visitors of a web site and what they did in thirty days, their journeys through onboarding, experiments,
-- WhatsApp accounts. `ingest seed` calls it.
--
-- Refuses unless app.environment is development, test or local. The file itself must not fail elsewhere, because every
-- database gets every file: there it makes the functions, which nobody but the owner may call and which refuse, and
-- nothing else. They are in `ingest`, as no API exposes that schema.
--
-- The same seed gives the same rows with the same ids: every draw is a hash of (seed, what is drawn), never random().
-- The anchor, the moment at which the thirty days end, only moves them in time; who does what does not depend on it.
-- Left alone are analytics.journals and flushes, which belong to collectors: the events are plain rows, as if
-- inserted by hand, and wait to be adopted like those.

DO $$
BEGIN
    IF to_regnamespace('ingest') IS NULL THEN
        CREATE SCHEMA ingest;
    END IF;
END
$$;


-- The guard

CREATE FUNCTION ingest.is_development() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(current_setting('app.environment', true), '') IN ('development', 'test', 'local')
$$;
COMMENT ON FUNCTION ingest.is_development() IS 'Whether app.environment is development, test or local';

CREATE FUNCTION ingest.refuse_outside_development() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT ingest.is_development() THEN
        RAISE EXCEPTION 'seed data is for development: app.environment is %, not development, test or local',
            coalesce('"' || nullif(current_setting('app.environment', true), '') || '"', 'not set')
            USING ERRCODE = 'object_not_in_prerequisite_state',
                HINT = 'On a database to develop with: SET app.environment = ''development''';
    END IF;
END
$$;
COMMENT ON FUNCTION ingest.refuse_outside_development() IS 'Raise unless app.environment allows seed data';


-- Draws

CREATE FUNCTION ingest.seed_hash(seed int, key text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT sha256(convert_to(seed || '/' || key, 'UTF8'))
$$;
COMMENT ON FUNCTION ingest.seed_hash(int, text) IS 'What every draw comes from: 32 bytes, alike on all servers and versions';

-- In plpgsql, as seed_pick(): a tenth of the time of the same in SQL, which starts an executor for each call.
CREATE FUNCTION ingest.seed_fraction(seed int, key text) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hash constant bytea := sha256(convert_to(seed || '/' || key, 'UTF8'));
BEGIN
    RETURN (get_byte(hash, 0) + get_byte(hash, 1) / 256.0::float8 + get_byte(hash, 2) / 65536.0::float8
        + get_byte(hash, 3) / 16777216.0::float8) / 256;
END
$$;
COMMENT ON FUNCTION ingest.seed_fraction(int, text) IS 'From 0 to below 1';

CREATE FUNCTION ingest.seed_uuid(seed int, key text) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    -- Version 8: a UUID whose bits are the maker's own affair.
    SELECT encode(set_byte(set_byte(hash, 6, get_byte(hash, 6) & 15 | 128), 8, get_byte(hash, 8) & 63 | 128), 'hex')::uuid
    FROM substr(ingest.seed_hash(seed, key), 1, 16) AS hash
$$;
COMMENT ON FUNCTION ingest.seed_uuid(int, text) IS 'The id of the thing of that name';

CREATE FUNCTION ingest.seed_pick(fraction double precision, weights int[]) RETURNS int
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    remaining double precision := 0.0::float8;
    weight int;
    place int := 0;
BEGIN
    FOREACH weight IN ARRAY weights LOOP
        remaining := remaining + weight;
    END LOOP;
    remaining := remaining * fraction;
    LOOP
        place := place + 1;
        remaining := remaining - weights[place];
        EXIT WHEN remaining < 0 OR place = cardinality(weights);
    END LOOP;
    RETURN place;
END
$$;
COMMENT ON FUNCTION ingest.seed_pick(double precision, int[]) IS 'Which place in the weights, from 1, a fraction falls on';


-- The leads

-- Addresses under .example reach nobody, and the telephone numbers are not given to anybody: reserved for films where
-- a country has such (US, Germany, France), else not in its numbering plan.
CREATE FUNCTION ingest.seed_people() RETURNS TABLE (
    number int, email text, phone_number text, company_name text, first_name text, last_name text, industry text,
    lead_source text, status text, score int, interested_features text[], notes text, city text,
    channel int, device int, depth int, steps_done int, days_ago int, minutes_ago int
)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- channel, device, depth and steps_done as in seed_visitors(). Their last visit was so many days before the
    -- anchor, or so many minutes.
    VALUES
    (1, 'camila@padariadocamila.example', '+551000000001', 'Padaria da Camila', 'Camila', 'Souza', 'food',
        'demo-request', 'converted', 92, '{order_bot,catalogue,payments}'::text[],
        'Takes 80 orders a day by hand, most of them between six and nine in the morning.', 'São Paulo',
        4, 1, 6, 4, 12, NULL::int),
    (2, 'jonas.weber@weber-werkstatt.example', '+493023125002', 'Autowerkstatt Weber', 'Jonas', 'Weber', 'car repair',
        'pricing-inquiry', 'converted', 88, '{appointments,reminders}',
        'Three workshops. Asked for a contract on data processing before anything else.', 'Berlin',
        1, 4, 6, 4, 17, NULL),
    (3, 'priya@lotusclinic.example', '+911000000003', 'Lotus Clinic', 'Priya', 'Nair', 'health',
        'website-form', 'qualified', 74, '{appointments,reminders,multi_language}',
        'Wants reminders in English, Hindi and Kannada.', 'Bengaluru',
        2, 6, 5, 2, NULL, 65),
    (4, 'diego@casasdelvalle.example', '+521000000004', 'Casas del Valle', 'Diego', 'Hernández', 'real estate',
        'contact-form', 'contacted', 55, '{lead_qualification,catalogue}',
        'Sells flats; nobody answers him after six in the evening.', 'Ciudad de México',
        5, 2, 5, 0, NULL, 15),
    (5, 'claire@atelierdubois.example', '+33465710005', 'Atelier Dubois', 'Claire', 'Dubois', 'fashion',
        'website-form', 'lost', 31, '{catalogue}',
        'Gave up when her number could not be verified.', 'Lyon',
        8, 3, 5, 1, 6, NULL),
    (6, 'marcus@brightpixel.example', '+15125550106', 'Bright Pixel', 'Marcus', 'Johnson', 'agency',
        'newsletter-signup', 'new', 40, '{white_label,api}',
        'Agency with a dozen clients; reads first, asks later.', 'Austin',
        6, 4, 4, 0, 2, NULL)
$$;
COMMENT ON FUNCTION ingest.seed_people() IS 'The six leads: who they are, and how far they came';


-- The visitors

-- Visitors 1 to 6 are the six leads, those up to 1,000 are people, the rest are bots. The stream has more leads in it
-- than marketing.leads: a funnel needs hundreds of people, and a person to read about needs a name and a story.
CREATE FUNCTION ingest.seed_visitors(seed int, anchor timestamptz, visitors int DEFAULT 1060) RETURNS TABLE (
    visitor int, is_bot boolean, country text, region text, timezone text, locale text, currency text,
    ip_address inet, device_type text, browser text, os text, user_agent text,
    utm_source text, utm_medium text, utm_campaign text, referrer text, landing_path text,
    pages int, depth int, steps_done int, pricing_variant text, onboarding_variant text,
    early_at timestamptz, main_at timestamptz, onboarding_at timestamptz
)
LANGUAGE sql STABLE ROWS 1060
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
    WITH places (place, country, region, timezone, minutes_east, locale, currency) AS (VALUES
        (1, 'BR', 'SP', 'America/Sao_Paulo', -180, 'pt-BR', 'BRL'),
        (2, 'DE', 'BE', 'Europe/Berlin', 60, 'de-DE', 'EUR'),
        (3, 'IN', 'KA', 'Asia/Kolkata', 330, 'en-IN', 'INR'),
        (4, 'MX', 'CMX', 'America/Mexico_City', -360, 'es-MX', 'MXN'),
        (5, 'FR', 'ARA', 'Europe/Paris', 60, 'fr-FR', 'EUR'),
        (6, 'US', 'TX', 'America/Chicago', -360, 'en-US', 'USD'),
        (7, 'ES', 'MD', 'Europe/Madrid', 60, 'es-ES', 'EUR'),
        (8, 'GB', 'LND', 'Europe/London', 0, 'en-GB', 'GBP')
    ),
    -- With the names that the collector reads out of these user agents.
    devices (device, device_type, browser, os, user_agent) AS (VALUES
        (1, 'mobile', 'Chrome Mobile', 'Android', 'Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile Safari/537.36'),
        (2, 'mobile', 'Samsung Internet', 'Android', 'Mozilla/5.0 (Linux; Android 14; SM-A546B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36'),
        (3, 'mobile', 'Mobile Safari', 'iOS', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1'),
        (4, 'desktop', 'Chrome', 'Windows', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36'),
        (5, 'desktop', 'Edge', 'Windows', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0'),
        (6, 'desktop', 'Safari', 'Mac OS X', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15'),
        (7, 'desktop', 'Firefox', 'Linux', 'Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0'),
        (8, 'tablet', 'Mobile Safari', 'iOS', 'Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1'),
        (9, 'bot', 'Googlebot', NULL, 'Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)'),
        (10, 'bot', 'bingbot', NULL, 'Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)'),
        (11, 'bot', 'AhrefsBot', NULL, 'Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)')
    ),
    -- Warmth: how much likelier than others they are to go on.
    channels (channel, utm_source, utm_medium, utm_campaign, referrer, landing_path, warmth) AS (VALUES
        (1, 'google', 'cpc', 'brand_search', 'https://www.google.com/', '/', 1.2),
        (2, NULL, NULL, NULL, 'https://www.google.com/', '/blog/whatsapp-automation', 0.8),
        (3, NULL, NULL, NULL, NULL, '/', 1.0),
        (4, 'instagram', 'paid_social', 'whatsapp_bots', 'https://l.instagram.com/', '/use-cases', 0.6),
        (5, 'facebook', 'paid_social', 'lookalike', 'https://m.facebook.com/', '/use-cases', 0.5),
        (6, 'newsletter', 'email', 'monthly_update', NULL, '/features', 1.5),
        (7, 'linkedin', 'paid_social', 'agencies', 'https://www.linkedin.com/', '/customers', 0.9),
        (8, NULL, NULL, NULL, 'https://partners.example/tools', '/', 1.3)
    ),
    drawn AS MATERIALIZED (
        SELECT
            number AS visitor,
            number > 1000 AS is_bot,
            CASE
                WHEN number <= 6 THEN number
                -- A crawler comes from one data centre.
                WHEN number > 1000 THEN 6
                ELSE ingest.seed_pick(ingest.seed_fraction(seed, 'place/' || number), '{26,16,12,12,8,10,9,7}')
            END AS place,
            coalesce(person.device, CASE
                WHEN number > 1000 THEN 8 + ingest.seed_pick(ingest.seed_fraction(seed, 'device/' || number), '{6,3,2}')
                ELSE ingest.seed_pick(ingest.seed_fraction(seed, 'device/' || number), '{28,12,22,18,5,7,3,5}')
            END) AS device,
            coalesce(person.channel, CASE
                WHEN number > 1000 THEN 3
                ELSE ingest.seed_pick(ingest.seed_fraction(seed, 'channel/' || number), '{18,24,20,12,8,8,5,5}')
            END) AS channel,
            person.depth AS given_depth,
            person.steps_done AS given_steps,
            person.days_ago,
            person.minutes_ago,
            CASE WHEN ingest.seed_fraction(seed, 'pricing_page_layout/' || number) < 0.5
                THEN 'control' ELSE 'annual_first' END AS pricing_variant,
            CASE WHEN ingest.seed_fraction(seed, 'onboarding_checklist/' || number) < 0.5
                THEN 'control' ELSE 'guided' END AS onboarding_variant
        FROM generate_series(1, visitors) AS number
        LEFT JOIN ingest.seed_people() AS person USING (number)
    ),
    -- How far each comes: 0 leaves at once, 1 looks around, 2 sees the prices, 3 signs up, 4 becomes a lead, 5 begins
    -- onboarding, 6 pays. Each is the number of draws that went well in a row.
    reached AS MATERIALIZED (
        SELECT
            drawn.*,
            CASE WHEN drawn.is_bot THEN 0 ELSE coalesce(given_depth, ingest.seed_pick(0, ARRAY[
                (ingest.seed_fraction(seed, 'stays/' || visitor) >= 0.5 * (0.5 + warmth / 2))::int,
                (ingest.seed_fraction(seed, 'prices/' || visitor) >= 0.45 * warmth)::int,
                (ingest.seed_fraction(seed, 'signup/' || visitor)
                    >= CASE pricing_variant WHEN 'control' THEN 0.30 ELSE 0.48 END * (0.5 + warmth / 2))::int,
                (ingest.seed_fraction(seed, 'lead/' || visitor) >= 0.75)::int,
                (ingest.seed_fraction(seed, 'onboarding/' || visitor) >= 0.75)::int,
                1
            ]) - 1) END AS came_to,
            coalesce(given_steps, ingest.seed_pick(0, ARRAY[
                (ingest.seed_fraction(seed, 'business_info/' || visitor) >= 0.88)::int,
                (ingest.seed_fraction(seed, 'whatsapp_integration/' || visitor)
                    >= CASE onboarding_variant WHEN 'control' THEN 0.55 ELSE 0.85 END)::int,
                (ingest.seed_fraction(seed, 'bot_setup/' || visitor) >= 0.88)::int,
                (ingest.seed_fraction(seed, 'testing/' || visitor) >= 0.92)::int,
                1
            ]) - 1) AS steps_done
        FROM drawn JOIN channels USING (channel)
    ),
    -- When: the last visit on a day that the weekday makes likely and the earlier ones days before it, each at an hour
    -- that the hour where they live makes likely. The local clock is a fixed distance from UTC, so that summer time
    -- moves nothing.
    spans AS MATERIALIZED (
        SELECT
            reached.*,
            CASE
                WHEN came_to >= 5 AND steps_done = 4 AND (given_depth IS NOT NULL
                    OR ingest.seed_fraction(seed, 'pays/' || visitor) < 0.7) THEN 6
                ELSE came_to
            END AS depth,
            CASE WHEN came_to >= 5 THEN
                CASE WHEN given_depth IS NOT NULL THEN 2
                    ELSE 1 + floor(ingest.seed_fraction(seed, 'later/' || visitor) * 3)::int END
            ELSE 0 END AS days_to_onboarding,
            CASE WHEN came_to >= 1 AND ingest.seed_fraction(seed, 'returns/' || visitor) < 0.3
                THEN 2 + floor(ingest.seed_fraction(seed, 'earlier/' || visitor) * 5)::int ELSE 0 END AS days_from_early
        FROM reached
    ),
    clocks AS MATERIALIZED (
        SELECT
            spans.*,
            places.country, places.region, places.timezone, places.minutes_east, places.locale, places.currency,
            seconds[1] AS early_second, seconds[2] AS main_second, seconds[3] AS onboarding_second
        FROM spans JOIN places USING (place)
        CROSS JOIN LATERAL (
            SELECT array_agg((
                CASE WHEN is_bot THEN floor(ingest.seed_fraction(seed, concat('hour/', visit, '/', visitor)) * 24)::int
                ELSE ingest.seed_pick(ingest.seed_fraction(seed, concat('hour/', visit, '/', visitor)),
                    '{3,1,1,1,1,2,4,9,16,22,24,22,18,20,22,21,19,16,13,12,12,10,7,5}') - 1
                END * 3600
                + floor(ingest.seed_fraction(seed, concat('second/', visit, '/', visitor)) * 3600)::int
                - minutes_east * 60 + 86400
            ) % 86400 ORDER BY visit) AS seconds
            FROM generate_series(1, 3) AS visit
        ) AS each_visit
    ),
    lasts AS MATERIALIZED (
        SELECT
            clocks.*,
            midnight,
            CASE WHEN minutes_ago IS NOT NULL THEN anchor - make_interval(mins => minutes_ago)
            ELSE midnight + make_interval(
                secs => last_second,
                days => -coalesce(days_ago, first_day - 1 + ingest.seed_pick(
                    ingest.seed_fraction(seed, 'day/' || visitor), weights
                ))
            ) END AS last_at
        FROM clocks
        CROSS JOIN LATERAL (
            SELECT
                date_trunc('day', anchor) AS midnight,
                CASE WHEN came_to >= 5 THEN onboarding_second ELSE main_second END AS last_second
        ) AS moment
        -- Today if the longest visit, 75 minutes, would be over by now; else yesterday at the latest.
        CROSS JOIN LATERAL (
            SELECT CASE WHEN midnight + make_interval(secs => last_second + 4500) <= anchor THEN 0 ELSE 1 END AS first_day
        ) AS limits
        CROSS JOIN LATERAL (
            SELECT array_agg(
                CASE WHEN is_bot THEN 1 ELSE ('{10,11,11,10,9,5,4}'::int[])[extract(isodow FROM
                    midnight + make_interval(days => -day, secs => last_second + minutes_east * 60)
                )::int] END ORDER BY day
            ) AS weights
            FROM generate_series(first_day, 29 - days_to_onboarding - days_from_early) AS day
        ) AS likely
    ),
    -- Half of the addresses are IPv4: all are of the networks that are kept for documentation, without the last part.
    mains AS MATERIALIZED (
        SELECT
            lasts.*,
            CASE
                WHEN came_to < 5 THEN last_at
                WHEN minutes_ago IS NOT NULL THEN last_at - make_interval(hours => 24 * days_to_onboarding)
                ELSE date_trunc('day', last_at) + make_interval(days => -days_to_onboarding, secs => main_second)
            END AS main_at,
            CASE WHEN ingest.seed_fraction(seed, 'address/' || visitor) < 0.5
                THEN ('{192.0.2.0,198.51.100.0,203.0.113.0}'::inet[])[1 + place % 3]
                ELSE ('2001:db8:' || to_hex(place * 256 + visitor % 256) || '::')::inet
            END AS ip_address
        FROM lasts
    )
    SELECT
        visitor, is_bot, country, region, timezone, locale, currency,
        ip_address, device_type, browser, os, user_agent,
        utm_source, utm_medium, utm_campaign, referrer, landing_path,
        CASE WHEN is_bot THEN 2 WHEN depth >= 1 THEN 1 + floor(ingest.seed_fraction(seed, 'pages/' || visitor) * 4)::int
            ELSE 0 END,
        depth, CASE WHEN depth >= 5 THEN steps_done ELSE 0 END, pricing_variant, onboarding_variant,
        CASE WHEN days_from_early > 0
            THEN date_trunc('day', main_at) + make_interval(days => -days_from_early, secs => early_second) END,
        main_at,
        CASE WHEN depth >= 5 THEN last_at END
    FROM mains JOIN devices USING (device) JOIN channels USING (channel)
    ORDER BY visitor
$$;
COMMENT ON FUNCTION ingest.seed_visitors(int, timestamptz, int) IS
    'The first so many visitors: who comes in the thirty days before the anchor, from where, when, and how far they get';


-- What they do

CREATE FUNCTION ingest.seed_stream(seed int, anchor timestamptz, visitors int DEFAULT 1060) RETURNS TABLE (
    visitor int, visit text, place int, happened_at timestamptz, type text, name text, path text, properties jsonb
)
LANGUAGE sql STABLE ROWS 4000
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
    -- Each step of a visit comes between `shortest` and `longest` seconds after the one before.
    SELECT
        who.visitor, step.visit, step.place,
        CASE step.visit WHEN 'early' THEN early_at WHEN 'main' THEN main_at ELSE onboarding_at END
            + make_interval(secs => sum(round((
                shortest + (longest - shortest)
                    * ingest.seed_fraction(seed, concat_ws('/', 'gap', who.visitor, step.visit, step.place))
            )::numeric, 3)) OVER (PARTITION BY who.visitor, step.visit ORDER BY step.place)::float8),
        step.type, step.name, step.path, step.properties
    FROM ingest.seed_visitors(seed, anchor, visitors) AS who
    CROSS JOIN LATERAL (
        SELECT 0, 'early', 'page_view', 'page_view', landing_path, 0, 0, '{}'::jsonb
        WHERE early_at IS NOT NULL
        UNION ALL
        SELECT 0, 'main', 'page_view', 'page_view', CASE WHEN early_at IS NULL THEN landing_path ELSE '/' END, 0, 0, '{}'
        UNION ALL
        SELECT
            number, 'main', 'page_view', 'page_view',
            ('{/features,/use-cases,/customers,/blog/whatsapp-automation,/docs,/about}'::text[])[
                1 + floor(ingest.seed_fraction(seed, concat_ws('/', 'page', who.visitor, number)) * 6)::int],
            8, 75, '{}'
        FROM generate_series(1, pages) AS number
        UNION ALL
        SELECT 10, 'main', 'user_action', 'video_played', '/features', 5, 40, '{"video": "tour", "seconds": 90}'
        WHERE depth >= 1 AND ingest.seed_fraction(seed, 'video/' || who.visitor) < 0.2
        UNION ALL
        SELECT 11, 'main', 'system', 'client_error', NULL, 1, 5, '{"message": "NetworkError", "script": "app.js"}'
        WHERE NOT is_bot AND ingest.seed_fraction(seed, 'error/' || who.visitor) < 0.03
        UNION ALL
        SELECT made.place, made.visit, made.type, made.name, made.path, made.shortest, made.longest, made.properties
        FROM (VALUES
            (20, 'main', 2, 'page_view', 'page_view', '/pricing', 8, 75, '{}'),
            (21, 'main', 2, 'system', 'experiment_viewed', '/pricing', 0, 1, jsonb_build_object(
                'experiment', 'pricing_page_layout', 'variant', pricing_variant)),
            (30, 'main', 3, 'user_action', 'signup_started', '/pricing', 10, 60, '{"button": "start_trial"}'),
            (31, 'main', 3, 'page_view', 'page_view', '/signup', 1, 3, '{}'),
            (32, 'main', 3, 'user_action', 'signup_completed', '/signup', 20, 90, '{"method": "email"}'),
            (40, 'main', 4, 'user_action', 'lead_submitted', '/welcome', 20, 120, '{"form": "company"}'),
            (50, 'onboarding', 5, 'page_view', 'page_view', '/onboarding', 0, 0, '{}'),
            (51, 'onboarding', 5, 'system', 'experiment_viewed', '/onboarding', 0, 1, jsonb_build_object(
                'experiment', 'onboarding_checklist', 'variant', onboarding_variant)),
            (52, 'onboarding', 5, 'user_action', 'onboarding_started', '/onboarding', 5, 20, '{}'),
            (65, 'onboarding', 6, 'page_view', 'page_view', '/billing', 5, 40, '{}'),
            (66, 'onboarding', 6, 'conversion', 'subscription_started', '/billing', 30, 180, CASE
                WHEN ingest.seed_fraction(seed, 'plan/' || who.visitor) < 0.7
                THEN '{"plan": "starter", "value": 29, "currency": "EUR"}'::jsonb
                ELSE '{"plan": "business", "value": 99, "currency": "EUR"}' END)
        ) AS made (place, visit, needed, type, name, path, shortest, longest, properties)
        WHERE depth >= needed
        UNION ALL
        SELECT
            60 + number, 'onboarding', 'user_action', 'onboarding_step_completed', '/onboarding', 180, 600,
            jsonb_build_object(
                'step', ('{business_info,whatsapp_integration,bot_setup,testing}'::text[])[number], 'number', number
            )
        FROM generate_series(1, steps_done) AS number
    ) AS step (place, visit, type, name, path, shortest, longest, properties)
$$;
COMMENT ON FUNCTION ingest.seed_stream(int, timestamptz, int) IS
    'Every step of every visit: what analytics.events is filled with, and what the other tables take their times from';

CREATE FUNCTION ingest.seed_events(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    PERFORM analytics.ensure_events_partition(day::date)
    FROM generate_series(date_trunc('day', anchor - interval '30 days'), anchor, interval '1 day') AS day;

    INSERT INTO analytics.events (
        id, created_at, received_at, type, name, user_id, anonymous_id, session_id, properties, context,
        url, referrer,
        user_agent, device_type, browser, os, ip_address, country, region
    )
    SELECT
        ingest.seed_uuid(seed, concat_ws('/', 'event', visitor, visit, place)),
        happened_at,
        happened_at + make_interval(secs => 0.05 + round(
            ingest.seed_fraction(seed, concat_ws('/', 'network', visitor, visit, place))::numeric, 3)::float8 / 2),
        type::analytics.event_type,
        name,
        -- Known from the moment they sign up.
        CASE WHEN place >= 32 THEN ingest.seed_uuid(seed, 'lead/' || visitor)::text END,
        ingest.seed_uuid(seed, 'browser/' || visitor)::text,
        concat('session_', ingest.seed_uuid(seed, concat_ws('/', 'visit', visitor, visit))),
        properties,
        jsonb_build_object('locale', locale, 'timezone', timezone, 'library', '{"name": "seed"}'::jsonb),
        'https://www.example.com' || path || CASE
            WHEN arrives AND utm_source IS NOT NULL THEN concat(
                '?utm_source=', utm_source, '&utm_medium=', utm_medium, '&utm_campaign=', utm_campaign)
            ELSE ''
        END,
        CASE WHEN arrives THEN referrer END,
        user_agent, device_type::analytics.device_type, browser, os, ip_address, country, region
    FROM ingest.seed_stream(seed, anchor)
    JOIN ingest.seed_visitors(seed, anchor) USING (visitor)
    -- The address of the first page alone tells where they come from.
    CROSS JOIN LATERAL (SELECT place = 0 AND (visit = 'early' OR early_at IS NULL) AS arrives) AS first_page
    ORDER BY happened_at;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_events(int, timestamptz) IS 'Fill analytics.events; how many rows';


-- What the other tables know of it

CREATE FUNCTION ingest.seed_leads(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO marketing.leads (
        id, email, phone_number, company_name, first_name, last_name, source, status, score, notes,
        interested_features, utm_source, utm_medium, utm_campaign, referrer, landing_page, user_agent, ip_address,
        country_code, region, city, consent, created_at, updated_at
    )
    SELECT
        ingest.seed_uuid(seed, 'lead/' || number), email, phone_number, company_name, first_name, last_name,
        lead_source::marketing.lead_source, status::marketing.lead_status, score, notes, interested_features,
        utm_source, utm_medium, utm_campaign, referrer, 'https://www.example.com' || landing_path, user_agent,
        ip_address, country, region, city,
        jsonb_build_object('terms', happened_at) || CASE lead_source
            WHEN 'newsletter-signup' THEN jsonb_build_object('newsletter', happened_at) ELSE '{}' END,
        happened_at, happened_at
    FROM ingest.seed_people()
    JOIN ingest.seed_visitors(seed, anchor, 6) ON visitor = number
    JOIN ingest.seed_stream(seed, anchor, 6) AS step ON step.visitor = number AND name = 'lead_submitted'
    ORDER BY number;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_leads(int, timestamptz) IS 'Fill marketing.leads; how many rows';

CREATE FUNCTION ingest.seed_interactions(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO marketing.lead_interactions (
        id, lead_id, interaction_type, subject, description, outcome, scheduled_at, completed_at, created_by, metadata,
        created_at
    )
    SELECT
        ingest.seed_uuid(seed, concat_ws('/', 'interaction', said.number, nth)),
        ingest.seed_uuid(seed, 'lead/' || said.number),
        interaction_type, subject, description, outcome::marketing.interaction_outcome,
        happened_at + make_interval(mins => scheduled_after),
        CASE WHEN outcome IS NOT NULL THEN happened_at + make_interval(mins => coalesce(scheduled_after, minutes)) END,
        -- Who is thanked by a mail of the application's own was seen by nobody.
        CASE WHEN minutes > 1 THEN ingest.seed_uuid(seed, 'colleague/' || nth % 2) END,
        jsonb_build_object('channel', channel),
        happened_at + make_interval(mins => minutes)
    FROM (VALUES
        -- Minutes after they left their address. Everything is over by the anchor, but for what is scheduled.
        (1, 1, 'email_sent', 'Welcome', 'Confirmation of the demo request', 'positive', 1, NULL, 'email'),
        (1, 2, 'demo_scheduled', 'Order bot', 'Wants to see orders by WhatsApp end to end', 'positive', 95, 1500, 'video'),
        (1, 3, 'call_made', 'After the demo', 'Starts with one shop, the other two in autumn', 'positive', 1700, NULL, 'phone'),
        (1, 4, 'contract_signed', 'Starter plan', NULL, 'positive', 2700, NULL, 'email'),
        (2, 1, 'email_sent', 'Prices', 'Price list and the contract on data processing', 'positive', 1, NULL, 'email'),
        (2, 2, 'call_made', 'Data protection', 'Asked where data is kept; satisfied', 'neutral', 240, NULL, 'phone'),
        (2, 3, 'contract_signed', 'Business plan', NULL, 'positive', 2600, NULL, 'email'),
        (3, 1, 'email_sent', 'Welcome', NULL, 'no_response', 1, NULL, 'email'),
        (3, 2, 'call_made', 'Languages', 'English and Hindi now, Kannada later', 'positive', 1300, NULL, 'phone'),
        (4, 1, 'email_sent', 'Your message', 'Answer to the contact form', 'positive', 1, NULL, 'email'),
        (4, 2, 'demo_scheduled', 'Qualifying leads', 'Tomorrow, in Spanish', NULL, 1200, 4300, 'video'),
        (5, 1, 'email_sent', 'Welcome', NULL, 'positive', 1, NULL, 'email'),
        (5, 2, 'call_made', 'Stuck at verification', 'Her number is used by another account', 'negative', 4400, NULL, 'phone'),
        (5, 3, 'email_sent', 'How to free a number', NULL, 'no_response', 5800, NULL, 'email'),
        (6, 1, 'email_sent', 'Welcome to the newsletter', NULL, 'no_response', 1, NULL, 'email')
    ) AS said (
        number, nth, interaction_type, subject, description, outcome, minutes, scheduled_after, channel
    )
    JOIN ingest.seed_stream(seed, anchor, 6) AS step ON step.visitor = said.number AND name = 'lead_submitted'
    ORDER BY said.number, nth;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_interactions(int, timestamptz) IS 'Fill marketing.lead_interactions; how many rows';

-- A journey for each visitor who began onboarding, and one for a lead who was invited and has not begun. Those of no
-- lead of ours are without what was entered, as if the person had been erased since.
CREATE FUNCTION ingest.seed_journeys(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO onboarding.sessions (
        id, lead_id, session_token, current_step, status, progress_percentage,
        business_info_completed_at, whatsapp_integration_completed_at, bot_setup_completed_at, testing_completed_at,
        completed_at, started_at, last_activity_at, abandoned_at, user_agent, ip_address,
        business_data, whatsapp_config, bot_config, created_at, updated_at
    )
    SELECT
        ingest.seed_uuid(seed, 'journey/' || visitor),
        CASE WHEN person.number IS NOT NULL THEN ingest.seed_uuid(seed, 'lead/' || visitor) END,
        'sess_' || encode(ingest.seed_hash(seed, 'token/' || visitor), 'hex'),
        ('{business_info,whatsapp_integration,bot_setup,testing,complete}'::onboarding.step[])[1 + done],
        CASE
            WHEN begun IS NULL THEN 'not_started'
            WHEN done = 4 THEN 'completed'
            WHEN active + interval '2 hours' < anchor THEN 'abandoned'
            ELSE 'in_progress'
        END::onboarding.session_status,
        done * 25,
        steps[1], steps[2], steps[3], steps[4], steps[4],
        begun, active,
        CASE WHEN done < 4 AND begun IS NOT NULL AND active + interval '2 hours' < anchor
            THEN active + interval '2 hours' END,
        user_agent, ip_address,
        CASE WHEN done >= 1 AND person.number IS NOT NULL THEN jsonb_build_object(
            'email', person.email, 'company_name', company_name, 'industry', industry, 'country', country
        ) ELSE '{}' END,
        CASE WHEN done >= 2 AND person.number IS NOT NULL THEN jsonb_build_object(
            'phone_number', phone_number, 'display_name', company_name
        ) ELSE '{}' END,
        CASE WHEN done >= 3 AND person.number IS NOT NULL THEN jsonb_build_object(
            'language', left(locale, 2), 'features', interested_features, 'hand_over_to_people', true
        ) ELSE '{}' END,
        made, active
    FROM ingest.seed_visitors(seed, anchor)
    JOIN (
        SELECT
            visitor,
            min(happened_at) FILTER (WHERE name = 'onboarding_started') AS begun,
            coalesce(
                min(happened_at) FILTER (WHERE name = 'onboarding_started'),
                min(happened_at) FILTER (WHERE name = 'lead_submitted') + interval '1 minute'
            ) AS made,
            count(*) FILTER (WHERE name = 'onboarding_step_completed')::int AS done,
            array_agg(happened_at ORDER BY place) FILTER (WHERE name = 'onboarding_step_completed') AS steps
        FROM ingest.seed_stream(seed, anchor)
        GROUP BY visitor
    ) AS journey USING (visitor)
    LEFT JOIN ingest.seed_people() AS person ON number = visitor
    -- Who leaves a step undone has tried for four minutes.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN done = 4 THEN steps[4] WHEN begun IS NULL THEN made
            ELSE coalesce(steps[done], begun) + interval '4 minutes' END AS active
    ) AS activity
    WHERE begun IS NOT NULL OR (number IS NOT NULL AND made IS NOT NULL)
    ORDER BY visitor;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_journeys(int, timestamptz) IS 'Fill onboarding.sessions; how many rows';

CREATE FUNCTION ingest.seed_activities(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO onboarding.step_activities (
        id, session_id, step, activity_type, field_name, field_value, error_message, time_spent_seconds, metadata,
        created_at
    )
    WITH moments AS (
        -- A step lasts from the end of the one before; the one left undone has no end.
        SELECT
            visitor,
            row_number() OVER (PARTITION BY visitor ORDER BY place)::int AS number,
            happened_at AS begun,
            lead(happened_at) OVER (PARTITION BY visitor ORDER BY place) AS done
        FROM ingest.seed_stream(seed, anchor)
        WHERE name IN ('onboarding_started', 'onboarding_step_completed')
    )
    SELECT
        ingest.seed_uuid(seed, concat_ws('/', 'activity', visitor, number, place)),
        ingest.seed_uuid(seed, 'journey/' || visitor),
        field.step::onboarding.step,
        activity_type,
        CASE WHEN activity_type IN ('field_filled', 'validation_error') THEN field.name END,
        CASE activity_type WHEN 'field_filled' THEN field.value END,
        CASE activity_type WHEN 'validation_error' THEN field.error END,
        CASE activity_type WHEN 'step_completed' THEN extract(epoch FROM done - begun)::int END,
        '{}',
        begun + (coalesce(done, begun + interval '4 minutes') - begun) * share
    FROM moments
    JOIN (VALUES
        (1, 'business_info', 'industry', 'services', 'Choose an industry'),
        (2, 'whatsapp_integration', 'verification_method', 'sms', 'The number is used by another account'),
        (3, 'bot_setup', 'greeting', 'Hello! How can we help?', 'The greeting is too long'),
        (4, 'testing', 'test_message', 'Are you open on Sunday?', 'No answer within ten seconds')
    ) AS field (number, step, name, value, error) USING (number)
    JOIN (VALUES
        (1, 'form_started', 0.05), (2, 'validation_error', 0.4), (3, 'field_filled', 0.6), (4, 'step_completed', 1.0)
    ) AS activity (place, activity_type, share) ON true
    WHERE CASE activity_type
        WHEN 'step_completed' THEN done IS NOT NULL
        -- What is never left undone is the first thing; then comes what makes people leave.
        WHEN 'field_filled' THEN done IS NOT NULL
        WHEN 'validation_error' THEN ingest.seed_fraction(seed, concat_ws('/', 'error', visitor, number))
            < CASE WHEN done IS NULL THEN 0.8 WHEN number = 2 THEN 0.4 ELSE 0.15 END
        ELSE true
    END
    ORDER BY visitor, number, place;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_activities(int, timestamptz) IS 'Fill onboarding.step_activities; how many rows';

CREATE FUNCTION ingest.seed_experiments(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO experiments.experiments (
        id, name, description, hypothesis, control_variant, test_variants, targeting_rules, traffic_percentage,
        start_date, end_date, status, results, winner_variant_id, created_by, created_at, updated_at
    )
    SELECT
        ingest.seed_uuid(seed, 'experiment/' || name), name, description, hypothesis,
        '{"id": "control", "weight": 1}', test_variants::jsonb, rules::jsonb, traffic,
        day + make_interval(days => begins), day + make_interval(days => ends),
        status::experiments.status, results::jsonb, winner, ingest.seed_uuid(seed, 'colleague/1'),
        day + make_interval(days => created), day + make_interval(days => coalesce(changed, created))
    FROM date_trunc('day', anchor) AS day
    CROSS JOIN (VALUES
        ('pricing_page_layout', 'Yearly prices first on /pricing',
            'Who sees the yearly price first signs up more often, as it looks smaller',
            '[{"id": "annual_first", "weight": 1, "payload": {"default_period": "year"}}]', '{}', 100,
            -31, 30, 'running', '{}', NULL, -35, -31),
        ('onboarding_checklist', 'A checklist beside the onboarding steps',
            'Who knows what to have at hand gets through the verification of the number',
            '[{"id": "guided", "weight": 1, "payload": {"checklist": true}}]', '{}', 100,
            -31, 14, 'running', '{}', NULL, -40, -31),
        ('signup_button_text', '"Start for free" against "Sign up"', 'Free is the word that counts',
            '[{"id": "start_for_free", "weight": 1}]', '{"device": ["mobile", "desktop"]}', 100,
            -75, -45, 'completed', '{"control": {"seen": 412, "signed_up": 61}, "start_for_free": {"seen": 398, "signed_up": 83}}',
            'start_for_free', -80, -44),
        ('referral_banner', 'A banner for customers who recommend us', NULL,
            '[{"id": "top", "weight": 2}, {"id": "footer", "weight": 1}]', '{"country": ["BR", "MX"]}', 50,
            NULL, NULL, 'draft', '{}', NULL, -3, NULL)
    ) AS made (
        name, description, hypothesis, test_variants, rules, traffic, begins, ends, status, results, winner, created,
        changed
    );
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_experiments(int, timestamptz) IS 'Fill experiments.experiments; how many rows';

CREATE FUNCTION ingest.seed_assignments(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO experiments.assignments (
        id, experiment_id, user_id, session_id, variant_id, assigned_at, first_exposure_at, last_exposure_at,
        exposure_count, user_agent, ip_address, country
    )
    SELECT
        ingest.seed_uuid(seed, concat_ws('/', 'assignment', experiment, visitor)),
        ingest.seed_uuid(seed, 'experiment/' || experiment),
        CASE WHEN by_user THEN ingest.seed_uuid(seed, 'lead/' || visitor) END,
        concat('session_', ingest.seed_uuid(seed, concat_ws('/', 'visit', visitor, visit))),
        variant, assigned_at, seen_at, seen_at, (seen_at IS NOT NULL)::int, user_agent, ip_address, country
    FROM ingest.seed_visitors(seed, anchor)
    -- The layout by visit, as nobody is known yet: on the first page, and exposed only if they come to the prices.
    -- The checklist by user.
    CROSS JOIN LATERAL (VALUES
        ('pricing_page_layout', false, 'main', pricing_variant, main_at, 1),
        ('onboarding_checklist', true, 'onboarding', onboarding_variant, onboarding_at, 5)
    ) AS assigned (experiment, by_user, visit, variant, assigned_at, needed)
    LEFT JOIN (
        SELECT visitor, visit, happened_at AS seen_at
        FROM ingest.seed_stream(seed, anchor)
        WHERE name = 'experiment_viewed'
    ) AS exposure USING (visitor, visit)
    WHERE depth >= needed
    ORDER BY experiment, visitor;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_assignments(int, timestamptz) IS 'Fill experiments.assignments; how many rows';

CREATE FUNCTION ingest.seed_accounts(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO whatsapp.accounts (
        id, lead_id, business_account_id, phone_number_id, phone_number, display_name, access_token_encrypted,
        webhook_verify_token_encrypted, is_verified, is_active, verification_status, messages_sent_today,
        messages_limit_daily, last_message_sent_at, created_at, updated_at
    )
    SELECT
        ingest.seed_uuid(seed, 'account/' || number), ingest.seed_uuid(seed, 'lead/' || number),
        'seed-business-' || number, 'seed-number-' || number, phone_number, company_name,
        -- Bytes that any application must fail to decrypt, and that say why to who looks at them.
        convert_to('seed data, no ciphertext: access token ' || number, 'UTF8'),
        convert_to('seed data, no ciphertext: verify token ' || number, 'UTF8'),
        true, true, 'verified',
        20 + floor(ingest.seed_fraction(seed, 'messages/' || number) * 60)::int, 1000,
        anchor - make_interval(mins => 5 * number), happened_at, anchor - make_interval(mins => 5 * number)
    FROM ingest.seed_people()
    JOIN ingest.seed_stream(seed, anchor, 6) AS step
        ON step.visitor = number AND name = 'onboarding_step_completed' AND properties ->> 'step' = 'whatsapp_integration'
    WHERE status = 'converted'
    ORDER BY number;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_accounts(int, timestamptz) IS 'Fill whatsapp.accounts; how many rows';

CREATE FUNCTION ingest.seed_templates(seed int, anchor timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    inserted bigint;
BEGIN
    PERFORM ingest.refuse_outside_development();
    INSERT INTO whatsapp.templates (
        id, account_id, template_name, category, language, status, header_type, header_content, body_text, footer_text,
        buttons, whatsapp_template_id, created_at, updated_at
    )
    SELECT
        ingest.seed_uuid(seed, concat_ws('/', 'template', number, template_name)),
        ingest.seed_uuid(seed, 'account/' || number),
        template_name, category::whatsapp.template_category, language, template.status::whatsapp.template_status,
        header_type::whatsapp.header_type, header_content, body_text, footer_text, buttons::jsonb,
        CASE WHEN template.status <> 'pending' THEN concat('seed-template-', number, '-', template_name) END,
        happened_at, happened_at
    FROM (VALUES
        (1, 'order_confirmation', 'utility', 'pt_BR', 'approved', 'text', 'Pedido recebido',
            'Olá {{1}}! Seu pedido {{2}} fica pronto às {{3}}.', NULL, '[{"type": "QUICK_REPLY", "text": "Alterar"}]'),
        (1, 'weekend_offer', 'marketing', 'pt_BR', 'pending', 'image', 'https://www.example.com/bread.jpg',
            'Neste sábado: {{1}} por {{2}}.', 'Responda SAIR para não receber mais', '[]'),
        (1, 'login_code', 'authentication', 'pt_BR', 'rejected', NULL, NULL, 'Seu código é {{1}}.', NULL, '[]'),
        (2, 'appointment_reminder', 'utility', 'de', 'approved', 'text', 'Ihr Termin',
            'Guten Tag {{1}}, wir erwarten Ihren Wagen am {{2}} um {{3}} Uhr.', 'Autowerkstatt Weber',
            '[{"type": "QUICK_REPLY", "text": "Verschieben"}, {"type": "PHONE_NUMBER", "text": "Anrufen", "phone_number": "+493023125002"}]'),
        (2, 'car_ready', 'utility', 'de', 'approved', NULL, NULL,
            'Ihr {{1}} ist fertig. Die Rechnung beträgt {{2}} Euro.', NULL, '[]'),
        (2, 'tyre_change', 'marketing', 'de', 'disabled', NULL, NULL,
            'Von Oktober bis Ostern: Zeit für Winterreifen. Ihr Wunschtermin?', NULL, '[]')
    ) AS template (
        number, template_name, category, language, status, header_type, header_content, body_text, footer_text, buttons
    )
    JOIN ingest.seed_stream(seed, anchor, 6) AS step
        ON step.visitor = number AND name = 'onboarding_step_completed' AND properties ->> 'step' = 'bot_setup'
    ORDER BY number, template_name;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;
COMMENT ON FUNCTION ingest.seed_templates(int, timestamptz) IS 'Fill whatsapp.templates; how many rows';


-- All of it

CREATE FUNCTION ingest.load_seed_data(seed int DEFAULT 1, anchor timestamptz DEFAULT now())
RETURNS TABLE (table_name text, inserted bigint)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM ingest.refuse_outside_development();
    IF seed IS NULL OR NOT isfinite(anchor) IS TRUE THEN
        RAISE EXCEPTION 'seed and anchor must be a number and a moment' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Two at once: the second waits, and then finds it all there.
    PERFORM pg_advisory_xact_lock(hashtextextended('ingest.load_seed_data', 0));
    -- Whatever seed and anchor it was loaded with; other data beside it is no hindrance. To have it anew, begin with a
    -- new database: nothing here deletes.
    IF EXISTS (SELECT FROM marketing.leads AS lead JOIN ingest.seed_people() AS person USING (email))
        OR EXISTS (SELECT FROM experiments.experiments WHERE name IN ('pricing_page_layout', 'onboarding_checklist'))
    THEN
        RETURN;
    END IF;

    RETURN QUERY VALUES
        ('marketing.leads', ingest.seed_leads(seed, anchor)),
        ('marketing.lead_interactions', ingest.seed_interactions(seed, anchor)),
        ('onboarding.sessions', ingest.seed_journeys(seed, anchor)),
        ('onboarding.step_activities', ingest.seed_activities(seed, anchor)),
        ('analytics.events', ingest.seed_events(seed, anchor)),
        ('experiments.experiments', ingest.seed_experiments(seed, anchor)),
        ('experiments.assignments', ingest.seed_assignments(seed, anchor)),
        ('whatsapp.accounts', ingest.seed_accounts(seed, anchor)),
        ('whatsapp.templates', ingest.seed_templates(seed, anchor));
END
$$;
COMMENT ON FUNCTION ingest.load_seed_data(int, timestamptz) IS
    'Load data to develop with, up to the anchor, once; rows by table, none if it is there. Refuses unless app.environment is development, test or local';


-- Nobody but the owner, also where default privileges have granted the functions of a schema to API roles.
DO $$
DECLARE
    found regprocedure;
    grantee text;
BEGIN
    FOR found IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'ingest'::regnamespace
            AND (proname ~ '^(load_)?seed_' OR proname IN ('is_development', 'refuse_outside_development'))
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', found);
        FOREACH grantee IN ARRAY '{anon,authenticated,service_role}'::text[] LOOP
            IF to_regrole(grantee) IS NOT NULL THEN
                EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', found, grantee);
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- A database that says of itself that it is for development gets the data with the schema.
DO $$
BEGIN
    IF ingest.is_development() THEN
        PERFORM ingest.load_seed_data();
    ELSE
        RAISE NOTICE 'no seed data: app.environment is not development, test or local';
    END IF;
END
$$;
