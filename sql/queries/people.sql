-- allow --
-- The functions below read every event, so they get a longer timeout than other statements.
SELECT set_config('statement_timeout', $1, true)

-- export --
SELECT public.gdpr_export_user_data($1, $2, spellings := $3)

-- elsewhere --
-- Journals of other data folders that are in use: only a collector there can search what waits or was set aside there.
SELECT coalesce(array_agg(number ORDER BY number), '{}') FROM analytics.journals
WHERE number <> ALL ($1::int[]) AND stored_through > 0 AND updated_at > now() - interval '30 days'
    AND identity <> 'b6b7a1c0-0d5e-4a7b-9f0e-70656e64696e'

-- erase --
SELECT public.gdpr_delete_user_data($1, $2, spellings := $3, dry_run := $4)
