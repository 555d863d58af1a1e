-- Whether an experiment changes anything: of the people who saw a variant, those who signed up afterwards. Each person
-- counts once, for the first variant they saw.
with units as (
  select units.*, experiment.name
  from experiments.units join experiments.experiments as experiment on experiment.id = experiment_id
  where experiment.name = 'pricing_page_layout'
), signups as (
  select experiments.canonical_id(user_id) as user_id,
    experiments.canonical_id(session_id) as session_id, created_at
  from analytics.events
  where name = 'signup_completed' and created_at > now() - interval '31 days' and device_type is distinct from 'bot'
), converted as (
  select distinct coalesce(by_user.unit, by_session.unit) as unit
  from signups
  left join units as by_user on by_user.user_id::text = signups.user_id
  left join (select units.*, visit from units, unnest(sessions) as visit) as by_session
    on by_session.visit = signups.session_id and by_user.unit is null
    and (by_session.user_id is null or signups.user_id is null)
  where signups.created_at >= coalesce(by_user.first_exposure_at, by_session.first_exposure_at)
)
select name, variant_id, count(*) as saw_it, count(converted.unit) as signed_up,
       round(100.0 * count(converted.unit) / count(*), 1) as percent
from units left join converted using (unit)
group by name, variant_id
order by variant_id;
