-- Whether the aggregates have as many events as the table: ingest/rollup/certificate.py

-- is_stale --
SELECT EXISTS (SELECT FROM analytics.stale_buckets WHERE (granularity, time_bucket) = ('hour', $1))

-- not_rolled_up --
SELECT journal, first_record, last_record FROM analytics.flushes WHERE rolled_up_at IS NULL

-- counts (batches) --
-- Events of the hour [$1, $2) in the table, except those of these batches, and in the aggregates: in total, and of bots,
-- whose dimensions are $3 and which are in no total
SELECT
    (
        SELECT count(*) FROM analytics.events
        WHERE created_at >= $1 AND created_at < $2 AND batch_id IS NOT NULL AND NOT batch_id <@ {batches}
    ),
    (
        SELECT coalesce(sum(event_count), 0)::bigint FROM analytics.event_aggregations
        WHERE granularity = 'hour' AND time_bucket = $1 AND dimensions IN ('{}', $3::text::jsonb)
    )
