-- register_journal --
-- A journal gets its number once, when its folder is made. Numbers are never used again.
INSERT INTO analytics.journals (identity) VALUES ($1::text::uuid) RETURNING number

-- ledger_position --
-- How far this journal is stored. No row: this database does not know the journal.
SELECT stored_through FROM analytics.journals WHERE number = $1 AND identity = $2::text::uuid

-- advance_ledger --
-- The first statement of every flush, and its guard: it moves the journal's position from where we believe it to
-- be. A transaction that we gave up on but that is still alive in the server holds the row; we wait for its end
-- here, and then either go on or find that the position has moved and nothing is to be done.
WITH advanced AS (
    UPDATE analytics.journals
    SET stored_through = $4, events_stored = events_stored + $5, events_rejected = events_rejected + $6,
        updated_at = now()
    WHERE number = $1 AND identity = $2::text::uuid AND stored_through = $3
    RETURNING number
)
INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, events_rejected, days)
SELECT number, $7, $4, $5, $6, $8 FROM advanced
RETURNING true

-- correct_flush --
-- What the merge found: some events were duplicates, some were refused by the table.
WITH corrected AS (
    UPDATE analytics.flushes
    SET events_stored = events_stored - $3 - $4, events_duplicate = $3, events_rejected = events_rejected + $4
    WHERE journal = $1 AND last_record = $2
)
UPDATE analytics.journals
SET events_stored = events_stored - $3 - $4, events_duplicate = events_duplicate + $3,
    events_rejected = events_rejected + $4
WHERE number = $1

-- flush_counts --
-- What a flush whose COMMIT we did not see has done.
SELECT events_stored, events_duplicate, events_rejected FROM analytics.flushes WHERE journal = $1 AND last_record = $2

-- end_given_up --
-- A transaction that we gave up on may live on in the server, if the network ate our good-bye, and hold the journal's
-- row for hours. It is ours, so we may end it; whether it had committed, the ledger will tell.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1 AND usename = current_user AND datname = current_database() AND application_name = 'ingest writer'
    AND pid <> pg_backend_pid()
