-- version --
-- Identifies the state of the definitions below: any change of a row changes its xmin. Polled every second.
SELECT coalesce(md5(string_agg(id::text || ' ' || xmin::text, ',' ORDER BY id)), '') AS version
FROM experiments.experiments WHERE status <> 'draft' AND archived_at IS NULL

-- definitions --
-- Experiments that were started and are not archived, each with the version of all of them.
SELECT id::text, name, status::text, is_active, traffic_percentage, control_variant::text, test_variants::text,
    targeting_rules::text, start_date, end_date, winner_variant_id,
    md5(string_agg(id::text || ' ' || xmin::text, ',') OVER (
        ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )) AS version
FROM experiments.experiments WHERE status <> 'draft' AND archived_at IS NULL
ORDER BY id

-- create --
INSERT INTO experiments.experiments (
    name, description, hypothesis, is_active, traffic_percentage, control_variant, test_variants, targeting_rules,
    start_date, end_date, created_by
)
SELECT row.name, row.description, row.hypothesis, coalesce(row.is_active, true), coalesce(row.traffic_percentage, 100),
    row.control_variant, row.test_variants, coalesce(row.targeting_rules, '{}'), row.start_date, row.end_date,
    row.created_by
FROM jsonb_populate_record(NULL::experiments.experiments, $1::jsonb) AS row
RETURNING experiments.as_shown(experiments)::text

-- one --
SELECT experiments.as_shown(experiments)::text FROM experiments.experiments WHERE id = $1

-- named --
-- By id or name, for the command line.
SELECT id FROM experiments.experiments WHERE id::text = $1 OR name = $1 ORDER BY id::text = $1 DESC LIMIT 1

-- locked --
-- What decides whether it may be changed, locked until the end of the transaction.
SELECT id, name, status::text, archived_at, traffic_percentage, end_date, start_date,
    jsonb_array_length(test_variants) AS tests, experiments.variant_ids(control_variant, test_variants) AS variant_ids,
    to_jsonb(experiments)::text AS row, now() AS now
FROM experiments.experiments WHERE id = $1 FOR UPDATE

-- change --
-- Changes the columns that the object names, and no others.
UPDATE experiments.experiments AS kept SET
    name = row.name, description = row.description, hypothesis = row.hypothesis, is_active = row.is_active,
    traffic_percentage = row.traffic_percentage, control_variant = row.control_variant,
    test_variants = row.test_variants, targeting_rules = row.targeting_rules, start_date = row.start_date,
    end_date = row.end_date, results = row.results, status = row.status, winner_variant_id = row.winner_variant_id,
    archived_at = row.archived_at
FROM experiments.experiments AS before
CROSS JOIN LATERAL jsonb_populate_record(before, $2::jsonb) AS row
WHERE before.id = $1 AND kept.id = $1
RETURNING experiments.as_shown(kept)::text

-- listed --
-- A page, the newest first: with status $1 (NULL: any), including archived ones if $2, after the experiment $3.
SELECT experiments.as_shown(experiments)::text AS row, id::text FROM experiments.experiments
WHERE ($1::text IS NULL OR status = $1::text::experiments.status) AND ($2::boolean OR archived_at IS NULL)
    AND ($3::uuid IS NULL OR (created_at, id) < (
        SELECT before.created_at, before.id FROM experiments.experiments AS before WHERE before.id = $3
    ))
ORDER BY created_at DESC, id DESC LIMIT $4

-- assign --
SELECT auto_assign_experiments($1, $2, $3, $4, $5, $6)::text

-- expose --
SELECT is_running, variant_id, recorded FROM record_exposure($1, $2, $3, $4, $5, $6, $7, $8)

-- subject --
SELECT id::text, name, status::text, control_variant::text, test_variants::text, start_date, end_date
FROM experiments.experiments WHERE id = $1

-- counts --
-- Units by the variant that they were shown first, how many of them were later shown another, and how many had the
-- event $2 after their first exposure, and before $3 unless that is NULL. Bots' events do not count. An event counts
-- for its user or, if no such user was shown a variant, for its session.
WITH units AS (
    SELECT * FROM experiments.units WHERE experiment_id = $1
), occurrences AS (
    SELECT experiments.canonical_id(user_id) AS user_id,
        experiments.canonical_id(session_id) AS session_id, created_at
    FROM analytics.events
    WHERE name = $2 AND created_at >= (SELECT min(first_exposure_at) FROM units) AND device_type IS DISTINCT FROM 'bot'
        AND ($3::timestamptz IS NULL OR created_at < $3)
), converted AS (
    SELECT DISTINCT coalesce(by_user.unit, by_session.unit) AS unit
    FROM occurrences
    LEFT JOIN units AS by_user ON by_user.user_id::text = occurrences.user_id
    LEFT JOIN (SELECT units.*, visit FROM units CROSS JOIN LATERAL unnest(units.sessions) AS visit) AS by_session
        ON by_session.visit = occurrences.session_id AND by_user.unit IS NULL
        AND (by_session.user_id IS NULL OR occurrences.user_id IS NULL)
    WHERE occurrences.created_at >= coalesce(by_user.first_exposure_at, by_session.first_exposure_at)
)
SELECT units.variant_id, count(*) AS exposures, count(converted.unit) AS conversions,
    count(*) FILTER (WHERE is_mixed) AS mixed
FROM units LEFT JOIN converted USING (unit)
GROUP BY units.variant_id

-- unrecorded --
-- Exposures that exist only as events, as their address had brought too many new units; without bots'. Only events that
-- the service itself wrote (authenticated is false), as anybody may send events with this name.
SELECT count(*) FROM analytics.events
WHERE name = 'experiment_exposure' AND properties @> jsonb_build_object('experiment', $1::text, 'recorded', false)
    AND authenticated = false AND device_type IS DISTINCT FROM 'bot'
    AND ($2::timestamptz IS NULL OR created_at >= $2) AND ($3::timestamptz IS NULL OR created_at < $3)
