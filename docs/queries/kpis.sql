-- The latest KPIs by day, with their descriptions, but no entry pages one by one.
select name, time_window_start, dimensions, value_numeric, description from analytics.metrics
where granularity = 'day' and (name <> 'session_entries' or dimensions = '{}')
order by time_window_start desc, name, dimensions limit 30;
