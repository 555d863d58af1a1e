-- Which source brings customers, by each visitor's first page in the last 31 days. docs/reference/sources.md has the
-- rules for sources.
-- A value that is not a number, such as '12,50 €', is counted in `unreadable` and not in `value`.
with first as (
  select distinct on (person) person, coalesce(source, 'direct') as source
  from analytics.activity
  where type = 'page_view' and person is not null and device_type is distinct from 'bot'
    and created_at > now() - interval '31 days'
  order by person, created_at, received_at, batch_id, batch_position
), conversions as (
  select person, sum(analytics.number_of(properties -> 'value')) as value,
         count(*) filter (where properties -> 'value' <> 'null' and analytics.number_of(properties -> 'value') is null) as unreadable
  from analytics.activity
  where type = 'conversion' and person is not null and device_type is distinct from 'bot'
    and created_at > now() - interval '31 days'
  group by person
)
select source, count(*) as visitors, count(conversions.person) as customers,
       round(100.0 * count(conversions.person) / count(*), 2) as percent, coalesce(sum(value), 0) as value,
       coalesce(sum(unreadable), 0) as unreadable
from first left join conversions using (person)
group by source
order by customers desc, visitors desc, source;
