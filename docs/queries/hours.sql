-- What happened in each hour of the last day, by name.
select time_bucket, event_name, event_count, unique_users, unique_sessions
from analytics.event_aggregations
where granularity = 'hour' and dimensions = '{}' and event_count > 0 and time_bucket > now() - interval '1 day'
order by time_bucket desc, event_count desc, event_name;
