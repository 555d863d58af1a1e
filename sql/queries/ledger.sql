-- The position of a journal: ingest/store/ledger.py and journals.py

-- register --
-- A journal gets its number once, when its folder is made. Numbers are never used again.
INSERT INTO analytics.journals (identity, owner) VALUES ($1::text::uuid, $2) RETURNING number

-- claim --
-- Take over a position whose last holder this folder knows: it was held here, or by the folder that this one was copied
-- from. Not if it has reached records that this folder took before it had asked ($5): then another folder has stored
-- records of the same numbers. And if this folder is a copy, only if it is still where it was when we started
-- ($6), so that a living original keeps it. Waits for a flush that is just being stored.
UPDATE analytics.journals SET owner = $3, updated_at = now()
WHERE number = $1 AND identity = $2::text::uuid
    AND (owner IS NULL OR owner = ANY ($4::uuid[])) AND ($5::bigint IS NULL OR stored_through < $5)
    AND ($6::bigint IS NULL OR stored_through = $6)
RETURNING stored_through

-- proved --
-- The position according to the flushes. They are kept for a while, the last one of each journal always.
-- Not part of `claim`, which may have waited for a flush that its own snapshot does not show.
SELECT coalesce(max(last_record), 0) FROM analytics.flushes WHERE journal = $1 AND last_record <= $2

-- put_back --
-- Correct a position that no flush has moved there.
UPDATE analytics.journals SET stored_through = $4 WHERE number = $1 AND owner = $2 AND stored_through = $3

-- end_given_up --
-- A transaction that we gave up on may live on in the server, if our disconnect was lost in the network, and hold the
-- journal's row for hours. It is ours, so we may end it; the ledger will show whether it had committed. It is identified
-- by the application_name that each of our transactions has while it lasts: the pid that we know might be one invented
-- by a pooler, or by now another client's.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = $1 AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()

-- advance --
-- The first statement of every flush, and its guard: it moves the journal's position from where we believe it to
-- be, if it is still ours. A transaction that we gave up on but that is still alive in the server holds the row; this
-- waits for its end, then either succeeds or finds that the position has moved and there is nothing to do.
WITH advanced AS (
    UPDATE analytics.journals
    SET stored_through = $5, events_stored = events_stored + $6, events_rejected = events_rejected + $7,
        updated_at = now()
    WHERE number = $1 AND identity = $2::text::uuid AND owner = $3 AND stored_through = $4 AND stored_through < $5
    RETURNING number
)
INSERT INTO analytics.flushes (journal, first_record, last_record, events_stored, events_rejected, days, owner)
SELECT number, $8, $5, $6, $7, $9, $3 FROM advanced
RETURNING true

-- correct --
-- After a merge: some events were duplicates, some were refused by the table.
WITH corrected AS (
    UPDATE analytics.flushes
    SET events_stored = events_stored - $3 - $4, events_duplicate = $3, events_rejected = events_rejected + $4
    WHERE journal = $1 AND last_record = $2
)
UPDATE analytics.journals
SET events_stored = events_stored - $3 - $4, events_duplicate = events_duplicate + $3,
    events_rejected = events_rejected + $4
WHERE number = $1

-- counts --
-- The counts of a flush of ours whose COMMIT was not confirmed
SELECT events_stored, events_duplicate, events_rejected
FROM analytics.flushes WHERE journal = $1 AND last_record = $2 AND owner = $3

-- look --
-- Whether the position's owner is one of these tokens, and the position according to the flushes. If the owner is
-- unknown, only flushes count that were made here, or by the folder that this one was copied from.
SELECT is_known, stored_through, updated_at AT TIME ZONE 'UTC' AS updated_at, coalesce((
    SELECT max(last_record) FROM analytics.flushes
    WHERE journal = $1 AND last_record <= stored_through AND (is_known OR flushes.owner = ANY ($3::uuid[]))
), 0) AS proved
FROM (
    SELECT stored_through, updated_at, owner IS NULL OR owner = ANY ($3::uuid[]) AS is_known
    FROM analytics.journals WHERE number = $1 AND identity = $2::text::uuid
) AS journal
