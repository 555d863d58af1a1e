-- The latest KPIs by day, with their descriptions.
select name, time_window_start, dimensions, value_numeric, description from analytics.metrics
where granularity = 'day' order by time_window_start desc, name, dimensions limit 30;
