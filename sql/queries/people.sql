-- allow --
-- These functions read every event: they may take longer than other statements of this transaction.
SELECT set_config('statement_timeout', $1, true)

-- export --
SELECT public.gdpr_export_user_data($1, $2, spellings := $3)

-- elsewhere --
-- Journals of other data folders, if they are in use: what waits there, or was set aside, is for a collector there.
SELECT coalesce(array_agg(number ORDER BY number), '{}') FROM analytics.journals
WHERE number <> ALL ($1::int[]) AND stored_through > 0 AND updated_at > now() - interval '30 days'
    AND identity <> 'b6b7a1c0-0d5e-4a7b-9f0e-70656e64696e'

-- erase --
SELECT public.gdpr_delete_user_data($1, $2, spellings := $3, dry_run := $4)
