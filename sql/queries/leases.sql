-- Leases: ingest/postgres/leases.py. Times are by the database's clock, as the holders' clocks may differ.

-- take --
-- If it is ours already, or expired and not held by a transaction, which is not waited for.
WITH free AS (
    SELECT name FROM analytics.leases
    WHERE name = $1 AND (token = $2 OR expires_at < clock_timestamp())
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE analytics.leases AS lease
    SET token = $2, holder = $3, expires_at = clock_timestamp() + $4,
        taken_at = CASE token WHEN $2 THEN taken_at ELSE clock_timestamp() END
    FROM free WHERE lease.name = free.name
    RETURNING lease.name
), made AS (
    INSERT INTO analytics.leases (name, token, holder, expires_at)
    SELECT $1, $2, $3, clock_timestamp() + $4 WHERE NOT EXISTS (SELECT FROM taken)
    ON CONFLICT (name) DO NOTHING
    RETURNING name
)
SELECT EXISTS (SELECT FROM taken) OR EXISTS (SELECT FROM made)

-- renew --
-- Only the time, which is not part of a key, so that `hold` does not block it. If it has expired and nobody has taken
-- it, it is still ours.
UPDATE analytics.leases SET expires_at = clock_timestamp() + $3 WHERE name = $1 AND token = $2 RETURNING true

-- hold --
SELECT true FROM analytics.leases WHERE name = $1 AND token = $2 FOR KEY SHARE

-- holder --
SELECT holder FROM analytics.leases WHERE name = $1

-- release --
DELETE FROM analytics.leases WHERE name = $1 AND token = $2
