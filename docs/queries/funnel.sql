-- From the first page to the first payment, without bots, in the last 31 days. A person counts once in each stage they
-- reached, in whatever order.
with visitors as (
  select person,
         bool_or(page_path = '/pricing') as prices, bool_or(name = 'signup_completed') as signup,
         bool_or(name = 'lead_submitted') as lead, bool_or(name = 'onboarding_started') as onboarding,
         bool_or(type = 'conversion') as conversion
  from analytics.activity
  where person is not null and created_at > now() - interval '31 days' and device_type is distinct from 'bot'
  group by person
)
select stage, people, round(100.0 * people / nullif(first_value(people) over (order by place), 0), 1) as percent,
       round(100.0 * people / nullif(lag(people) over (order by place), 0), 1) as of_the_stage_before
from (select count(*) as visit, count(*) filter (where prices) as prices, count(*) filter (where signup) as signup,
             count(*) filter (where lead) as lead, count(*) filter (where onboarding) as onboarding,
             count(*) filter (where conversion) as conversion from visitors) as total,
     lateral (values (1, 'visit', visit), (2, 'prices', prices), (3, 'signup', signup), (4, 'lead', lead),
                     (5, 'onboarding', onboarding), (6, 'conversion', conversion)) as stages (place, stage, people)
order by place;
