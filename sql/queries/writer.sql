-- end_given_up --
-- A transaction that we gave up on may live on in the server, if the network ate our good-bye, and hold the journal's
-- row for hours. It is ours, so we may end it; whether it had committed, the ledger will tell.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1 AND usename = current_user AND datname = current_database() AND application_name = 'ingest writer'
    AND pid <> pg_backend_pid()
