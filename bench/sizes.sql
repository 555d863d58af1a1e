-- What stored events take on disk: bytes for each of them in the table, in its indexes, and in all other tables of the
-- schema, which have the aggregates, the ledger and what is known of people.
with events as (
    select sum(pg_table_size(relid)) as in_table, sum(pg_indexes_size(relid)) as in_indexes,
        (select count(*) from analytics.events) as stored
    from pg_partition_tree('analytics.events') where isleaf
), others as (
    select coalesce(sum(pg_total_relation_size(pg_class.oid)), 0) as bytes
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace
    where nspname = 'analytics' and relkind = 'r'
        and pg_class.oid not in (select relid from pg_partition_tree('analytics.events'))
)
select stored, round(in_table / stored) as table_bytes, round(in_indexes / stored) as index_bytes,
    round(others.bytes / stored) as other_bytes
from events, others
where stored > 0;
