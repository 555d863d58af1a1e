-- Where people drop out of onboarding, and the median minutes that a step takes those who complete it.
select step, count(*) as began, count(done_at) as finished,
       round(100.0 * (count(*) - count(done_at)) / count(*), 1) as percent_lost,
       round((extract(epoch from percentile_cont(0.5) within group (order by done_at - began_at)
         filter (where done_at >= began_at)) / 60)::numeric, 1) as minutes
from onboarding.sessions,
     lateral (values ('1 business info', created_at, business_info_completed_at),
                     ('2 whatsapp integration', business_info_completed_at, whatsapp_integration_completed_at),
                     ('3 bot setup', whatsapp_integration_completed_at, bot_setup_completed_at),
                     ('4 testing', bot_setup_completed_at, testing_completed_at)) as steps (step, began_at, done_at)
where began_at is not null
group by step
order by step;
