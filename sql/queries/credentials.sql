-- batch --
-- The next accounts with credentials, locked, so that a concurrent change is not overwritten
SELECT id, access_token_encrypted, webhook_verify_token_encrypted FROM whatsapp.accounts
WHERE id > $1 AND num_nonnulls(access_token_encrypted, webhook_verify_token_encrypted) > 0
ORDER BY id LIMIT $2 FOR NO KEY UPDATE

-- replace --
UPDATE whatsapp.accounts SET access_token_encrypted = access, webhook_verify_token_encrypted = verify
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS encrypted (account_id, access, verify)
WHERE id = account_id
