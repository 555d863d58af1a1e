-- create --
INSERT INTO ingest.api_keys (name, shown, hash, scopes, expires_at) VALUES ($1, $2, $3, $4, $5)

-- listed --
SELECT id, name, shown, scopes, created_at, expires_at, last_used_at, revoked_at
FROM ingest.api_keys ORDER BY created_at, id

-- revoke --
WITH revoked AS (
    UPDATE ingest.api_keys SET revoked_at = now()
    WHERE revoked_at IS NULL AND $1 IN (id::text, name, shown)
    RETURNING id
)
SELECT count(*) FROM revoked

-- refresh --
-- The use of a key is noted at most once a minute, so that its row is not written at every refresh.
WITH used AS (
    UPDATE ingest.api_keys SET last_used_at = now()
    WHERE id = ANY ($1::uuid[]) AND coalesce(last_used_at, '-infinity') < now() - interval '1 minute'
)
SELECT id, name, shown, hash, scopes, created_at, expires_at, last_used_at, revoked_at
FROM ingest.api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
