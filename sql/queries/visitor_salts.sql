-- The salts of visitors without cookies: ingest/store/visitor_salts.py

-- erase --
-- $1: today, by the caller's clock. One that is ahead erases nothing too early.
UPDATE analytics.visitor_salts SET salt = NULL, erased_at = now()
WHERE salt IS NOT NULL AND day < least($1::date, (now() AT TIME ZONE 'UTC')::date) - 1

-- add --
-- For days that have none. Whoever is first decides: all others read that.
INSERT INTO analytics.visitor_salts (day, salt)
SELECT day, salt FROM unnest($1::date[], $2::bytea[]) AS made (day, salt)
ON CONFLICT DO NOTHING

-- known --
SELECT day, salt FROM analytics.visitor_salts WHERE salt IS NOT NULL AND day >= $1::date - 1
