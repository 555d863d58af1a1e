-- allow --
-- These functions read every event: they may take longer than other statements of this transaction.
SELECT set_config('statement_timeout', $1, true)

-- export --
SELECT public.gdpr_export_user_data($1, $2)

-- erase --
SELECT public.gdpr_delete_user_data($1, $2, $3)
