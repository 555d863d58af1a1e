-- The dashboard's sessions and shared views: ingest/dashboard/vault.py, ingest/dashboard/shares.py

-- secret --
-- Made by whoever needs it first
WITH made AS (
    INSERT INTO ingest.secrets (purpose, secret) VALUES ('dashboard', $1) ON CONFLICT DO NOTHING RETURNING secret
)
SELECT secret FROM made UNION ALL SELECT secret FROM ingest.secrets WHERE purpose = 'dashboard' LIMIT 1

-- spent --
SELECT id FROM ingest.spent_tokens WHERE expires_at > now()

-- spend --
-- Whether it was unspent. Old ones go when others come.
WITH expired AS (
    DELETE FROM ingest.spent_tokens WHERE id IN (
        SELECT id FROM ingest.spent_tokens WHERE expires_at < now() - interval '1 day' LIMIT 100 FOR UPDATE SKIP LOCKED
    )
), spent AS (
    INSERT INTO ingest.spent_tokens (id, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id
)
SELECT count(*) = 1 FROM spent

-- share --
INSERT INTO ingest.shared_views (name, page, query, created_by, expires_at) VALUES ($1, $2, $3, $4, $5)

-- shared --
SELECT id, name, page, query FROM ingest.shared_views
WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())

-- shares --
-- Those that work now, the latest first
SELECT id, name, page, query, created_by, created_at, expires_at FROM ingest.shared_views
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
ORDER BY created_at DESC, id LIMIT 200

-- revoke_share --
-- Of anybody, or only of $2
UPDATE ingest.shared_views SET revoked_at = now()
WHERE id = $1 AND revoked_at IS NULL AND ($2::text IS NULL OR created_by = $2)
