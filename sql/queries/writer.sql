-- end_given_up --
-- A transaction that we gave up on may live on in the server, if the network ate our good-bye, and hold the journal's
-- row for hours. It is ours, so we may end it; whether it had committed, the ledger will tell. It is known by the name
-- that each of our transactions takes on for as long as it lasts: the number of the server's process would be a
-- pooler's invention, or another client's process by now.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()
